"""The worst cases of a verification side by side: what the chosen point wrote, and what n = 0 did.

They quote answers, so they are for the user's own terminal, not for pages that are handed out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from autotune.results.certificates import Certificate
from autotune.results.text import number, plain
from autotune.storage.certificates import AnswerRole, KeptAnswer

_BEFORE = 32  # characters of what both wrote, before the first difference
_AFTER = 120


def case_lines(
    certificate: Certificate, answers: Mapping[AnswerRole, Sequence[KeptAnswer]], trial: int
) -> Iterator[str]:
    """Yield the worst cases, three lines each; none where nothing was judged or kept.

    Args:
        certificate: The verdict with its numbers.
        answers: The answers by launch.
        trial: Number of the trial.
    """
    chosen = {x.written.index: x for x in answers.get(AnswerRole.CHOSEN, ())}
    base = {x.written.index: x for x in answers.get(AnswerRole.PLAIN, ())}
    names = f"trial {trial}", "n = 0"
    width = max(map(len, names))
    of = certificate.judgement
    for case in () if of is None else of.worst:
        prompt = case.prompt
        if prompt not in chosen or prompt not in base:
            continue
        what = "less likely than the best one by" if of is not None and of.greedy else "of"
        yield (f"prompt {prompt}, token {case.position + 1}: {what} {number(case.value)} nats")
        texts = chosen[prompt].written.text, base[prompt].written.text
        for name, text in zip(names, side_by_side(*texts), strict=True):
            yield f"  {name:<{width}}  {text}"


def side_by_side(a: str, b: str) -> tuple[str, str]:
    """Return two texts from shortly before their first difference on, on one line each."""
    pairs = zip(a, b, strict=False)
    first = next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
    if a == b:
        return _cut(a, 0), "(the same text)"
    start = max(0, first - _BEFORE)
    return _cut(a, start), _cut(b, start)


def _cut(text: str, start: int) -> str:
    end = start + _BEFORE + _AFTER
    shown = " ".join(text[start:end].split())
    head, tail = "…" if start else "", "…" if end < len(text) else ""
    return plain(f"{head}{shown}{tail}") or "(nothing)"
