"""Whether a server with speculative decoding writes what it writes without: the judgement.

======  ===========================================================================================
symbol  meaning
======  ===========================================================================================
n       tokens drafted per step; n = 0 is the server without speculation
g       log-probability of the most likely token minus that of the written one, 0 or more, under a
        launch with n = 0 that reads the answer (teacher forcing), each token after the answer's own
        tokens before it
u       -log-probability of a written token, likewise
α       level of the whole judgement: probability of a fault although there is none
m       number of tests
======  ===========================================================================================

**Greedy answers.** A server without a fault writes the most likely token, so g is 0, except where
two tokens are about equally likely and rounding decides. How often that happens, and how large g is
then, depends on model, precision and load, so it is taken from n = 0 itself: two or more launches
at the same load, read by the same launch (the null). Two tests, both by prompt
(:mod:`autotune.stats.matched_sets`):

- *large differences*: the largest g of each answer. A wrong token has a g far beyond those of ties.
  No finite null shows its own 1 - α/(tokens) quantile, and a tail that is assumed can be wrong. So
  the test ranks instead: k answers with a g beyond all of the null's have about the probability
  (1/(L+1))^k without a fault. One such answer alone proves nothing, however large its g.
- *more differences*: the number of tokens with g > 0 of each answer. It finds a model that was
  changed a little, whose g are small.

**Sampled answers** (temperature above 0; top-p, top-k and penalties off). Both servers draw from
the same distribution, so likelihoods of whole answers under n = 0 are distributed alike (two-sample
tests of language models: I. Gao, P. Liang, C. Guestrin, "Model equality testing: which model is
this API serving?", ICLR 2025). Two tests, likewise by prompt:

- *likelihood*: the mean u of each answer, two-sided. Given the tokens before it, u of a token that
  is drawn from the launch's own distribution has that distribution's entropy as its mean. Where the
  entropies are known, u less the entropy is taken, which scatters less.
- *unlikely tokens*: the number of tokens whose u is beyond the pooled 99th percentile.

**Level.** Holm's procedure over the m tests (S. Holm, "A simple sequentially rejective multiple
test procedure", Scandinavian Journal of Statistics 6, 1979): a fault if the smallest p is at most
α/m.
``benchmarks/losslessness.py`` counts false alarms and faults found.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from autotune.stats import quantiles
from autotune.stats.matched_sets import (
    Ints,
    LaunchEffect,
    count_p_value,
    estimate_launch_effect,
    largest_p_value,
    shift_p_value,
)
from autotune.stats.measurement import Floats

LEVEL = 0.02  # α
POWER = 0.8
MOST_UNSEEN = 0.01  # share of wrong tokens that a certificate must be able to find
WRONG_GAP = 2.0  # g of a wrong token that :attr:`Judgement.detectable` speaks of, in nats
WORST = 3
_ARRANGEMENTS = 8  # of planted faults
_UNLIKELY = 0.99  # percentile of u beyond which a token is unlikely


class Verdict(StrEnum):
    """Outcome of a judgement."""

    CERTIFIED = "certified"
    FAULT = "fault"
    UNDECIDED = "undecided"  # no fault was found, and too little was seen to find one


@dataclass(frozen=True)
class Answer:
    """One answer of one launch, as a launch with n = 0 reads it.

    Attributes:
        prompt: Index of the prompt, the same for all launches.
        launch: Index of the launch among those of its server.
        values: For each written token, with the token that ended the answer if there is one: g for
            greedy answers, u for sampled ones, in nats; shape (tokens,).
        entropies: Entropy of the launch's distribution at each token of a sampled answer, in nats;
            shape (tokens,). None: unknown. All answers have them, or none.
    """

    prompt: int
    launch: int
    values: Floats
    entropies: Floats | None = None


@dataclass(frozen=True)
class Case:
    """A token of the tested server that n = 0 finds unlikely.

    Attributes:
        prompt: Index of the prompt.
        launch: Index of the launch of the tested server.
        position: Index of the token in the answer.
        value: g or u of the token, in nats.
    """

    prompt: int
    launch: int
    position: int
    value: float


@dataclass(frozen=True)
class Evidence:
    """What the answers to one kind of request say.

    Attributes:
        tests: Name and p value of each test.
        prompts: Number of prompts that all launches answered; only these are judged.
        left_out: Number of prompts that some launch did not answer.
        launches: Number of launches of n = 0, and of the tested server.
        tokens: Number of tokens judged, of the tested server.
        differences: Those of them with g > 0 (greedy), or that are unlikely (sampled).
        null_tokens: Number of tokens of n = 0, over all its launches.
        null_differences: Likewise.
        largest: Largest g or u of the tested server, in nats; 0 without tokens.
        null_largest: That of n = 0, over all its launches.
        worst: The largest values, each of another prompt, largest first, at most :data:`WORST`.
        effect: What launches are taken to differ by; None: nothing (sampled).
        null_scores: Score of each answer of n = 0, by which a planted fault is looked for: largest
            g (greedy), or mean of u less the entropy (sampled); shape (prompts, launches).
    """

    tests: tuple[tuple[str, float], ...]
    prompts: int
    left_out: int
    launches: tuple[int, int]
    tokens: int
    differences: int
    null_tokens: int
    null_differences: int
    largest: float
    null_largest: float
    worst: tuple[Case, ...]
    effect: LaunchEffect | None
    null_scores: Floats = field(repr=False, compare=False)

    @property
    def within_null(self) -> bool:
        """Whether no token of the tested server is beyond all of n = 0's own."""
        return self.largest <= self.null_largest


@dataclass(frozen=True)
class Tested:
    """One test of a judgement.

    Attributes:
        name: What was tested.
        p_value: Probability of what was seen, or of more, without a fault.
        fault: Whether the test finds a fault at the judgement's level, by Holm's procedure.
    """

    name: str
    p_value: float
    fault: bool


@dataclass(frozen=True)
class Judgement:
    """Whether the tested server writes what n = 0 writes.

    Attributes:
        verdict: The outcome.
        level: Probability of a fault although there is none, over all tests together.
        tests: All tests, those of greedy answers first.
        greedy: What the greedy answers say; None: none were given.
        sampled: What the sampled answers say; None: none were given.
        detectable: Smallest share of tokens, replaced by wrong ones at random, that these greedy
            answers find with probability :data:`POWER`; None: none, or no greedy answers.
        detectable_shift: Smallest shift of the mean u, in nats a token, that these sampled
            answers find with probability :data:`POWER`; None: none, or no sampled answers.
    """

    verdict: Verdict
    level: float
    tests: tuple[Tested, ...]
    greedy: Evidence | None
    sampled: Evidence | None
    detectable: float | None
    detectable_shift: float | None


def compare_greedy(null: Sequence[Answer], tested: Sequence[Answer]) -> Evidence:
    """Return what greedy answers say; see the module.

    Args:
        null: Answers of n = 0, of two or more launches.
        tested: Answers of the tested server, to the same prompts.

    Raises:
        ValueError: no launch of one of them, an answer twice, or a g that is negative or not
            finite.
    """
    sets = _Sets.of(null, tested)
    if np.any(sets.values < 0):
        raise ValueError("the log-probability of a written token is above that of the best one")
    counts = sets.each(lambda a: float(np.count_nonzero(a.values))).astype(np.int64)
    largest = sets.each(lambda a: float(a.values.max(initial=0.0)))
    effect = estimate_launch_effect(counts[:, : sets.reference])
    tests = (
        ("large differences", largest_p_value(largest, sets.reference, effect)),
        ("more differences", count_p_value(counts, sets.reference, effect)),
    )
    return sets.evidence(tests, counts, largest[:, : sets.reference], effect)


def compare_sampled(null: Sequence[Answer], tested: Sequence[Answer]) -> Evidence:
    """Return what sampled answers say; see the module.

    Args:
        null: Answers of n = 0, of one or more launches.
        tested: Answers of the tested server, to the same prompts, drawn with other seeds.

    Raises:
        ValueError: no launch of one of them, an answer twice, a value that is not finite, or
            entropies of some answers only.
    """
    sets = _Sets.of(null, tested)
    if len({a.entropies is None for a in sets.answers}) > 1:
        raise ValueError("some answers have entropies, and others have none")
    means = sets.each(_mean_excess)
    known = means[~np.isnan(means)]
    means = np.where(np.isnan(means), known.mean() if known.size else 0.0, means)
    every = sets.values
    unlikely = float(np.quantile(every, _UNLIKELY)) if every.size else 0.0
    counts = sets.each(lambda a: float(np.count_nonzero(a.values > unlikely))).astype(np.int64)
    tests = (
        ("likelihood", shift_p_value(means, sets.reference)),
        ("unlikely tokens", count_p_value(counts, sets.reference, None)),
    )
    return sets.evidence(tests, counts, means[:, : sets.reference], None)


def judge(
    greedy: Evidence | None = None, sampled: Evidence | None = None, level: float = LEVEL
) -> Judgement:
    """Return the judgement of all that was compared.

    Undecided is: no fault, and fewer than two launches of n = 0, or so few prompts (greedy) or
    tokens (sampled) that :data:`MOST_UNSEEN` of wrong tokens would stay unseen too often.

    Args:
        greedy: From :func:`compare_greedy`.
        sampled: From :func:`compare_sampled`.
        level: α.

    Raises:
        ValueError: nothing was compared.
    """
    found = [e for e in (greedy, sampled) if e is not None]
    if not found:
        raise ValueError("there are no answers to judge")
    tests = find_faults([t for e in found for t in e.tests], level)
    each = level / len(tests)
    detectable = None if greedy is None else detectable_share(greedy, each)
    shift = None if sampled is None else detectable_mean(sampled, each)
    few = detectable is None or detectable > MOST_UNSEEN
    enough = not (greedy and (few or greedy.launches[0] < 2))
    if sampled is not None and (shift is None or not _shows_wrong(sampled)):
        enough = False
    fault = any(t.fault for t in tests)
    verdict = Verdict.FAULT if fault else Verdict.CERTIFIED if enough else Verdict.UNDECIDED
    return Judgement(verdict, level, tests, greedy, sampled, detectable, shift)


def _shows_wrong(sampled: Evidence) -> bool:
    """Return whether a wrong token is among so many with probability :data:`POWER`.

    It is where :data:`MOST_UNSEEN` of all are wrong; n = 0 has to have written as much.
    """
    tokens = min(sampled.tokens, sampled.null_tokens)
    return 1 - (1 - MOST_UNSEEN) ** tokens >= POWER


def detectable_share(greedy: Evidence, level: float) -> float | None:
    """Return the smallest share of wrong tokens that is found with probability :data:`POWER`.

    Wrong tokens are at random places and have g = :data:`WRONG_GAP` at least. They are planted in
    answers of n = 0 itself, which stand for the tested server's, :data:`_ARRANGEMENTS` times.

    Args:
        greedy: From :func:`compare_greedy`.
        level: Level of the test of large differences.

    Returns:
        Share of all tokens; None: not even a wrong token in each answer is found so often.
    """
    if not greedy.tokens:
        return None
    rng = np.random.default_rng(0)
    least: list[int | None] = []
    for _ in range(_ARRANGEMENTS):
        least.append(_fewest_found(greedy, level, rng, (least and least[-1]) or 4))
    prompts = greedy.prompts

    def missed(answers: float) -> float:
        """Return by how much the chance falls short of what is wanted, with its sign changed."""
        found = [quantiles.incomplete_beta(k, prompts - k + 1, answers) for k in least if k]
        return math.fsum(found) / len(least) - POWER

    if missed(1.0) < 0:
        return None
    # from the share of prompts with a wrong token to that of tokens
    answers = quantiles.root(missed, 0.0, 1.0)
    return float(-np.expm1(np.log1p(-min(answers, 1 - 1e-12)) * prompts / greedy.tokens))


def _fewest_found(
    greedy: Evidence, level: float, rng: np.random.Generator, guess: int
) -> int | None:
    """Return how many prompts with a wrong token are found, in one arrangement; None: not all."""
    null, tested = greedy.null_scores, greedy.launches[1]
    prompts, reference = null.shape
    own = np.take_along_axis(null, rng.integers(reference, size=(prompts, tested)), axis=1)
    order = rng.permutation(prompts)

    def found(k: int) -> bool:
        planted = own.copy()
        planted[order[:k], 0] = np.maximum(planted[order[:k], 0], WRONG_GAP)
        return largest_p_value(np.hstack([null, planted]), reference, greedy.effect) <= level

    guess = min(guess, prompts)
    below, above, step = 0, prompts + 1, 1  # not found, and found or impossible
    if found(guess):
        above = guess
        while above - step > below and found(above - step):
            above, step = above - step, 2 * step
        below = max(below, above - step)
    else:
        below = guess
        while below + step < above and not found(below + step):
            below, step = below + step, 2 * step
        above = min(above, below + step)
    wrong = bisect_left(range(below + 1, above), True, key=found) + below + 1
    return wrong if wrong <= prompts else None


def detectable_mean(sampled: Evidence, level: float) -> float | None:
    """Return the smallest shift of the mean u that is found with probability :data:`POWER`.

    Args:
        sampled: From :func:`compare_sampled`.
        level: Level of the test of the likelihood.

    Returns:
        Shift in nats a token; None: one launch of n = 0, or too few prompts to find anything.
    """
    reference, tested = sampled.launches
    choices = math.comb(reference + tested, tested)
    if reference < 2 or 2 * choices ** -float(sampled.prompts) > level:
        return None
    spread = math.sqrt(float(sampled.null_scores.var(axis=1, ddof=1).mean()))
    return (
        _deviations(level, POWER)
        * spread
        * math.sqrt((1 / reference + 1 / tested) / sampled.prompts)
    )


def prompts_needed(
    shift: float,
    spread: float,
    *,
    launches: tuple[int, int] = (2, 1),
    level: float = LEVEL / 4,
    power: float = POWER,
) -> int:
    """Return how many prompts find a shift of the mean u of sampled answers.

    It is the usual normal approximation for a two-sided test of two means (W. G. Cochran,
    "Sampling Techniques", 3rd ed. 1977, 4.4).

    Args:
        shift: Shift of the mean of an answer's u, in nats a token, not 0. Temperature 1 + d instead
            of 1 shifts it by about d times the variance of u of one token.
        spread: Standard deviation of the mean u between answers to one prompt, in nats.
        launches: Number of launches of n = 0, and of the tested server.
        level: Level of the test; as a default, that of one of four tests.
        power: Probability with which the shift is found.

    >>> prompts_needed(0.1, 0.25)
    125
    """
    reference, tested = launches
    variance = spread**2 * (1 / reference + 1 / tested)
    return math.ceil((_deviations(level, power) / shift) ** 2 * variance)


def _deviations(level: float, power: float) -> float:
    """Return how many standard errors off zero a mean must be to be found two-sided."""
    return quantiles.normal(1 - level / 2) + quantiles.normal(power)


def find_faults(tests: Sequence[tuple[str, float]], level: float) -> tuple[Tested, ...]:
    """Return the tests with their outcome by Holm's procedure, in the order given.

    Args:
        tests: Name and p value of each.
        level: α, of all together.
    """
    order = sorted(range(len(tests)), key=lambda i: tests[i][1])
    fault, rejects = [False] * len(tests), True
    for rank, i in enumerate(order):
        rejects = rejects and tests[i][1] <= level / (len(tests) - rank)
        fault[i] = rejects
    return tuple(Tested(*t, f) for t, f in zip(tests, fault, strict=True))


def _mean_excess(answer: Answer) -> float:
    """Return the mean of u, less the entropy where it is known; NaN without a token."""
    values = answer.values if answer.entropies is None else answer.values - answer.entropies
    return float(values.mean()) if values.size else math.nan


@dataclass(frozen=True)
class _Sets:
    """Answers to the prompts that all launches answered.

    Attributes:
        rows: For each prompt, its answers, those of n = 0 first.
        prompts: Indices of the prompts, ascending.
        reference: Number of launches of n = 0.
        left_out: Number of prompts that some launch did not answer.
    """

    rows: tuple[tuple[Answer, ...], ...]
    prompts: tuple[int, ...]
    reference: int
    launches: int
    left_out: int

    @classmethod
    def of(cls, null: Sequence[Answer], tested: Sequence[Answer]) -> _Sets:
        """Return the sets.

        Raises:
            ValueError: no launch of one of them, an answer twice, or a value that is not finite.
        """
        found: dict[tuple[bool, int, int], Answer] = {}
        for of_tested, answers in ((False, null), (True, tested)):
            if not answers:
                raise ValueError(f"no answers of {'the tested server' if of_tested else 'n = 0'}")
            for a in answers:
                if (key := (of_tested, a.launch, a.prompt)) in found:
                    raise ValueError(f"prompt {a.prompt} has two answers of launch {a.launch}")
                found[key] = a
        if not np.all(np.isfinite(np.concatenate([a.values for a in found.values()]))):
            raise ValueError("a token has a value that is not finite")
        launches = sorted({key[:2] for key in found})
        prompts = sorted({key[2] for key in found})
        complete = [p for p in prompts if all((*launch, p) in found for launch in launches)]
        return cls(
            tuple(tuple(found[(*launch, p)] for launch in launches) for p in complete),
            tuple(complete),
            sum(not of_tested for of_tested, _ in launches),
            len(launches),
            len(prompts) - len(complete),
        )

    @property
    def answers(self) -> list[Answer]:
        """All answers."""
        return [a for row in self.rows for a in row]

    @property
    def values(self) -> Floats:
        """Values of all tokens of all answers."""
        return np.concatenate([a.values for a in self.answers] or [np.zeros(0)])

    def each(self, measure: Callable[[Answer], float]) -> Floats:
        """Return a number of each answer; shape (prompts, launches), those of n = 0 first."""
        values = [[measure(a) for a in row] for row in self.rows]
        return np.array(values, dtype=np.float64).reshape(len(self.rows), self.launches)

    def evidence(
        self,
        tests: tuple[tuple[str, float], ...],
        counts: Ints,
        null_scores: Floats,
        effect: LaunchEffect | None,
    ) -> Evidence:
        """Return what the answers say, given the tests and each answer's differences."""
        null = [a for row in self.rows for a in row[: self.reference]]
        tested = [a for row in self.rows for a in row[self.reference :]]
        return Evidence(
            tests=tests,
            prompts=len(self.rows),
            left_out=self.left_out,
            launches=(self.reference, self.launches - self.reference),
            tokens=sum(a.values.size for a in tested),
            differences=int(counts[:, self.reference :].sum()),
            null_tokens=sum(a.values.size for a in null),
            null_differences=int(counts[:, : self.reference].sum()),
            largest=_largest(tested),
            null_largest=_largest(null),
            worst=_worst(tested),
            effect=effect,
            null_scores=null_scores,
        )


def _largest(answers: Iterable[Answer]) -> float:
    return max((float(a.values.max(initial=0.0)) for a in answers), default=0.0)


def _worst(answers: Iterable[Answer]) -> tuple[Case, ...]:
    """Return the largest values above 0, each of another prompt."""
    cases: dict[int, Case] = {}
    for a in answers:
        if a.values.size and (value := float(a.values.max())) > 0:
            case = Case(a.prompt, a.launch, int(a.values.argmax()), value)
            if a.prompt not in cases or cases[a.prompt].value < value:
                cases[a.prompt] = case
    return tuple(sorted(cases.values(), key=lambda c: -c.value)[:WORST])
