"""The judgement whether a tuned server writes what n = 0 writes."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.stats.losslessness import (
    LEVEL,
    Answer,
    Evidence,
    Verdict,
    compare_greedy,
    compare_sampled,
    detectable_share,
    judge,
    prompts_needed,
)

PROMPTS, TOKENS = 96, 64


def greedy(
    rng: np.random.Generator, launch: int = 0, ties: float = 0.005, wrong: float = 0.0
) -> list[Answer]:
    """Answers with ties that rounding decides, and tokens that no rounding explains."""
    shape = (PROMPTS, TOKENS)
    g = np.where(rng.random(shape) < ties, rng.exponential(0.15, shape), 0.0)
    g = np.where(rng.random(shape) < wrong, 2 + rng.exponential(2, shape), g)
    return [Answer(p, launch, row) for p, row in enumerate(g)]


def sampled(rng: np.random.Generator, launch: int, temperature: float = 1.0) -> list[Answer]:
    """Answers drawn from distributions of 50 words, at another temperature than they are read."""
    logits = np.random.default_rng(0).normal(0, 2, (PROMPTS, 50))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    q = np.exp(logits / temperature)
    q /= q.sum(axis=1, keepdims=True)
    return [
        Answer(p, launch, -log_p[p, rng.choice(50, TOKENS, p=q[p])],
               np.full(TOKENS, -np.exp(log_p[p]) @ log_p[p]))
        for p in range(PROMPTS)
    ]  # fmt: skip


def evidence(rng: np.random.Generator, **of_tested: float) -> Evidence:
    return compare_greedy(greedy(rng) + greedy(rng, 1), greedy(rng, **of_tested))


def test_n_0_against_itself_is_certified_and_wrong_tokens_are_a_fault() -> None:
    rng = np.random.default_rng(1)
    own = [judge(evidence(rng)).verdict for _ in range(4)]
    assert own.count(Verdict.CERTIFIED) >= 3
    wrong = [judge(evidence(rng, wrong=0.01)) for _ in range(4)]
    assert all(j.verdict == Verdict.FAULT for j in wrong)
    assert all(next(t for t in j.tests if t.name == "large differences").fault for j in wrong)


def test_identical_answers_are_certified() -> None:
    zero = [Answer(p, 0, np.zeros(TOKENS)) for p in range(PROMPTS)]
    other = [Answer(p, 1, np.zeros(TOKENS)) for p in range(PROMPTS)]
    found = judge(compare_greedy(zero + other, zero))
    assert found.verdict == Verdict.CERTIFIED
    assert [t.p_value for t in found.tests] == [1, 1]
    assert found.greedy is not None
    assert found.greedy.within_null
    assert found.greedy.worst == ()
    assert found.detectable is not None
    assert found.detectable < 0.002


def test_more_ties_than_n_0_has_are_a_fault() -> None:
    found = judge(evidence(np.random.default_rng(2), ties=0.03))
    assert [t.name for t in found.tests if t.fault][-1] == "more differences"


def test_what_the_evidence_counts() -> None:
    def of(*gaps: list[float]) -> list[Answer]:
        return [Answer(p, 0, np.array(g)) for p, g in enumerate(gaps)]

    null = of([0, 0.1], [0, 0, 0.2], [0.0], []) + [Answer(p, 1, np.zeros(2)) for p in (0, 1, 3)]
    found = compare_greedy(null, of([0, 3.0, 0.5], [0.1], [7.0], [0.0]))
    assert (found.prompts, found.left_out, found.launches) == (3, 1, (2, 1))
    assert (found.tokens, found.differences) == (5, 3)
    assert (found.null_tokens, found.null_differences) == (11, 2)
    assert (found.largest, found.null_largest, found.within_null) == (3.0, 0.2, False)
    assert [(c.prompt, c.position, c.value) for c in found.worst] == [(0, 1, 3.0), (1, 0, 0.1)]


def test_few_prompts_or_one_launch_of_n_0_are_undecided() -> None:
    rng = np.random.default_rng(3)
    few = judge(compare_greedy(greedy(rng)[:4] + greedy(rng, 1)[:4], greedy(rng)[:4]))
    assert few.verdict == Verdict.UNDECIDED
    assert few.detectable is None
    one = judge(compare_greedy(greedy(rng), greedy(rng)))
    assert one.verdict == Verdict.UNDECIDED


def test_the_smallest_share_that_is_found_is_found_that_often() -> None:
    rng = np.random.default_rng(4)
    share = detectable_share(evidence(rng), LEVEL / 2)
    assert share is not None
    hits = [evidence(rng, wrong=share).tests[0][1] <= LEVEL / 2 for _ in range(60)]
    assert 36 <= sum(hits) <= 58  # 48 are promised


def test_sampling_at_another_temperature_is_found() -> None:
    rng = np.random.default_rng(5)
    null = sampled(rng, 0) + sampled(rng, 1)
    same = judge(sampled=compare_sampled(null, sampled(rng, 0)))
    hot = judge(sampled=compare_sampled(null, sampled(rng, 0, 1.1)))
    assert same.verdict == Verdict.CERTIFIED
    assert hot.verdict == Verdict.FAULT
    assert same.detectable_shift is not None
    assert 0 < same.detectable_shift < 0.2
    without = [Answer(a.prompt, a.launch, a.values) for a in null]
    with pytest.raises(ValueError, match="some answers have entropies"):
        compare_sampled(without, sampled(rng, 0))


def test_drawn_answers_of_few_tokens_are_undecided() -> None:
    """Each kind of answer has so few that a wrong one need not be among them."""
    rng = np.random.default_rng(5)
    for null_tokens, tokens, verdict in (
        (0, 0, Verdict.UNDECIDED),
        (64, 0, Verdict.UNDECIDED),
        (64, 1, Verdict.UNDECIDED),
        (64, 2, Verdict.CERTIFIED),  # 192 tokens
    ):
        null, tested = (
            [Answer(a.prompt, a.launch, a.values[:most]) for a in answers]
            for most, answers in (
                (null_tokens, sampled(rng, 0) + sampled(rng, 1)),
                (tokens, sampled(rng, 0)),
            )
        )
        assert judge(sampled=compare_sampled(null, tested)).verdict == verdict, (
            null_tokens,
            tokens,
        )


def test_both_kinds_share_the_level() -> None:
    rng = np.random.default_rng(6)
    both = judge(evidence(rng), compare_sampled(sampled(rng, 0) + sampled(rng, 1), sampled(rng, 0)))
    assert both.verdict == Verdict.CERTIFIED
    assert [t.name for t in both.tests] == [
        "large differences",
        "more differences",
        "likelihood",
        "unlikely tokens",
    ]


def test_prompts_needed_shrink_with_the_shift_and_with_launches() -> None:
    assert prompts_needed(0.05, 0.25) == pytest.approx(4 * prompts_needed(0.1, 0.25), abs=4)
    assert prompts_needed(0.1, 0.25, launches=(4, 4)) < prompts_needed(0.1, 0.25)


@pytest.mark.parametrize(
    ("null", "tested", "said"),
    [
        ([], [Answer(0, 0, np.zeros(1))], "no answers of n = 0"),
        ([Answer(0, 0, np.zeros(1))], [], "no answers of the tested server"),
        ([Answer(0, 0, np.zeros(1))] * 2, [Answer(0, 0, np.zeros(1))], "two answers"),
        ([Answer(0, 0, np.array([np.nan]))], [Answer(0, 0, np.zeros(1))], "not finite"),
        ([Answer(0, 0, np.array([-0.1]))], [Answer(0, 0, np.zeros(1))], "above that of the best"),
    ],
)
def test_answers_that_cannot_be_are_refused(
    null: list[Answer], tested: list[Answer], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        compare_greedy(null, tested)


def test_nothing_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="no answers to judge"):
        judge()
