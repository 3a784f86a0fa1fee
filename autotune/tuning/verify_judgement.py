"""Answers that were written and scored → a verdict with the numbers behind it.

Three launches wrote them: n = 0, the chosen point, and n = 0 again; the last one scored all. The
statistics are :mod:`autotune.stats.losslessness` for tokens and :mod:`autotune.stats.text_faults`
for texts. The numbers have no text of an answer, because reports show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from autotune.results.certificates import Verdict
from autotune.results.judged import Judged, TextTest, TokenTest, WorstCase
from autotune.results.text import count
from autotune.stats import losslessness
from autotune.stats.acceptance_check import Odd, Oddity
from autotune.stats.losslessness import Evidence, Judgement
from autotune.stats.text_faults import LEVEL as TEXT_LEVEL
from autotune.stats.text_faults import compare_faults, faults_of
from autotune.storage.certificates import AnswerRole, KeptAnswer

Answers = Mapping[AnswerRole, Sequence[KeptAnswer]]
_PLAIN = (AnswerRole.PLAIN, AnswerRole.SCORING)
_ODDITIES = {
    Oddity.ALL: "acceptance: every draft that got there was accepted",
    Oddity.NONE: "acceptance: no draft that got there was accepted",
    Oddity.FAR: "acceptance: far from the search's",
}
_VERDICTS = {
    losslessness.Verdict.CERTIFIED: Verdict.CERTIFIED,
    losslessness.Verdict.FAULT: Verdict.FAULT,
    losslessness.Verdict.UNDECIDED: Verdict.NOT_JUDGED,
}


def judge_answers(
    answers: Answers, temperature: float, notes: Sequence[str] = ()
) -> tuple[Verdict, Judged]:
    """Return the verdict on a point's answers, and the numbers behind it.

    Args:
        answers: Of all three launches, each scored.
        temperature: Of the sampling.
        notes: Sentences on what else was seen.
    """
    greedy = temperature == 0
    null = [a for i, role in enumerate(_PLAIN) for a in _scored(answers[role], i, greedy=greedy)]
    tested = _scored(answers[AnswerRole.CHOSEN], 0, greedy=greedy)
    if greedy:
        evidence = losslessness.compare_greedy(null, tested)
        judged = losslessness.judge(greedy=evidence)
    else:
        evidence = losslessness.compare_sampled(null, tested)
        judged = losslessness.judge(sampled=evidence)
    faults = [
        {
            x.written.index: faults_of(x.written.text, x.written.token_ids, x.written.stop)
            for x in of
        }
        for of in (answers[AnswerRole.CHOSEN], *(answers[role] for role in _PLAIN))
    ]
    texts = compare_faults(faults[0], faults[1:])
    found = [t.name for t in judged.tests if t.fault] + [x.fault.value for x in texts if x.found]
    verdict = Verdict.FAULT if found else _VERDICTS[judged.verdict]
    return verdict, Judged(
        why=_why(judged, evidence) if verdict is Verdict.NOT_JUDGED else None,
        temperature=temperature,
        found=tuple(found),
        level=judged.level,
        text_level=TEXT_LEVEL,
        prompts=evidence.prompts,
        tokens=evidence.tokens,
        differences=evidence.differences,
        null_launches=evidence.launches[0],
        null_tokens=evidence.null_tokens,
        null_differences=evidence.null_differences,
        largest=evidence.largest,
        null_largest=evidence.null_largest,
        tests=tuple(TokenTest(name=t.name, p=t.p_value, fault=t.fault) for t in judged.tests),
        texts=tuple(TextTest(**asdict(x), found=x.found) for x in texts),
        worst=tuple(
            WorstCase(prompt=c.prompt, position=c.position, value=c.value) for c in evidence.worst
        ),
        same_answers=_same(answers, AnswerRole.CHOSEN, AnswerRole.PLAIN),
        null_same_answers=_same(answers, *_PLAIN),
        detectable=judged.detectable,
        detectable_shift=judged.detectable_shift,
        power=losslessness.POWER,
        notes=tuple(notes),
    )


def _scored(
    answers: Sequence[KeptAnswer], launch: int, *, greedy: bool
) -> list[losslessness.Answer]:
    out = []
    for x in answers:
        if x.scored is None:
            raise ValueError(f"answer {x.written.index} was not scored")
        own = np.asarray(x.scored.logprobs, dtype=np.float64)
        values = np.asarray(x.scored.best, dtype=np.float64) - own if greedy else -own
        out.append(losslessness.Answer(x.written.index, launch, values))
    return out


def _same(answers: Answers, a: AnswerRole, b: AnswerRole) -> int:
    """Return how many answers of two launches have the same tokens."""
    others = {x.written.index: x.written.token_ids for x in answers[b]}
    return sum(others.get(x.written.index) == x.written.token_ids for x in answers[a])


def odd_lines(odd: Sequence[Odd]) -> list[str]:
    """Return what is odd in an acceptance, a sentence for each kind.

    Args:
        odd: From :func:`autotune.stats.acceptance_check.check_acceptance`.
    """
    lines = []
    for kind, words in _ODDITIES.items():
        found = [x for x in odd if x.oddity is kind]
        if found:
            at = ", ".join(
                f"{x.position} ({x.rate:.0%}"
                + (")" if x.expected is None else f", {x.expected:.0%} in the search)")
                for x in found
            )
            lines.append(f"{words} at position {at}")
    return lines


def _why(judged: Judgement, evidence: Evidence) -> str:
    """Return why too little was seen to find a fault, in words."""
    seen = f"{count(evidence.tokens, 'token')} of {count(evidence.prompts, 'answer')}"
    more = (
        "send more (--prompts), or give a study of another name more or longer answers "
        "(workload.num_prompts, workload.output_len)"
    )
    if judged.detectable is not None:
        return (
            f"no fault was found in {seen}, which would find a share of wrong tokens from "
            f"{judged.detectable:.2%} on, and {losslessness.MOST_UNSEEN:.0%} is asked for; {more}"
        )
    return f"no fault was found, and too little was seen to find one ({seen}); {more}"
