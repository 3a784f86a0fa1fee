"""Accepted drafts by kind of request and by position in the answer: numbers and texts.

The numbers are of one launch, from what vLLM told of each of its measured requests
(:mod:`autotune.bench.request_drafts`). The unit of the intervals is the request
(:mod:`autotune.stats.clusters`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autotune.bench.request_drafts import RequestDrafts
from autotune.bench.sample import Sample
from autotune.results.text import count, known_estimate_text, plain
from autotune.stats import Estimate
from autotune.stats.clusters import ratio_of_sums

CATEGORY, PROMPT_LENGTH = "category", "prompt length"
OTHERS = "others"
UNNAMED = "without a category"
_MOST_CLASSES = 12
_MOST_LENGTHS = 6  # classes of prompt lengths
_MOST_PARTS = 5  # of an answer
_LEAST_PART = 8  # tokens
# Largest share of the answers' tokens from steps without a draft with which a step's position in
# the answer is known: vLLM tells nothing of these steps.
_MOST_UNSEEN = 0.05


@dataclass(frozen=True)
class Group:
    """Accepted drafts of a group of requests, or of a part of all answers.

    Attributes:
        name: Name of the group.
        requests: Number of requests with a step in it.
        steps: Number of verification steps.
        length: Tokens per verification step, 1 + accepted drafts, with its 95 % interval.
        share: Share of the drafted tokens that were accepted; None: unknown.
    """

    name: str
    requests: int
    steps: int
    length: Estimate
    share: float | None


@dataclass(frozen=True)
class RequestAcceptance:
    """Accepted drafts of the requests of one launch.

    Attributes:
        requests: Number of measured requests of which the server told them.
        untold: Number of those of which it did not.
        whole: All requests.
        spread: 10th, 50th and 90th percentile of single requests' tokens per step.
        kind: What the classes are by: ``category``, or ``prompt length`` in tokens.
        classes: Classes of requests; empty: all requests are of one.
        parts: Parts of the answers, in tokens from 1; empty: unknown.
        unseen: Share of the answers' tokens that came from steps without a draft.
        biased: Why the figures are biased or not those of all steps; None: they are not.
    """

    requests: int
    untold: int
    whole: Group
    spread: tuple[float, float, float]
    kind: str
    classes: tuple[Group, ...]
    parts: tuple[Group, ...]
    unseen: float
    biased: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data; the keys are the attributes of the classes here."""
        return asdict(self)

    @property
    def tables(self) -> list[tuple[str, tuple[Group, ...]]]:
        """Classes and parts, each with what they are by; those without figures are left out."""
        by = self.kind if self.kind == CATEGORY else f"{self.kind} (tokens)"
        found = [(by, self.classes), ("position in the answer (tokens)", self.parts)]
        return [(title, groups) for title, groups in found if groups]

    @property
    def notes(self) -> list[str]:
        """Sentences on what the figures do not say."""
        found = [] if self.biased is None else [self.biased]
        if self.untold:
            found.append(f"the server told nothing of {count(self.untold, 'request')}")
        if self.unseen > _MOST_UNSEEN:
            found.append(
                f"{self.unseen:.0%} of the tokens came from steps without a draft, of which vLLM "
                "tells nothing: positions in the answer are unknown"
            )
        return found


def request_acceptance(
    samples: Sequence[Sample], biased: str | None = None
) -> RequestAcceptance | None:
    """Return the accepted drafts of a launch's requests; None: the server told of no step.

    Args:
        samples: Requests of one launch.
        biased: Why the figures are biased, in words.
    """
    ok = [s for s in samples if s.status == "ok"]
    told = [(s, s.drafts) for s in ok if s.drafts is not None and s.drafts.steps]
    if not told:
        return None
    drafts = [d for _, d in told]
    untold = sum(s.drafts is None for s in ok)
    lengths = [1 + d.accepted / d.steps for d in drafts]
    low, middle, high = (float(x) for x in np.percentile(lengths, (10, 50, 90)))
    tokens = sum(s.output_tokens or 0 for s, _ in told)
    seen = sum(1 + d.accepted + d.steps for d in drafts)  # the first one is the prefill's
    unseen = max(0.0, 1 - seen / tokens) if tokens else 0.0
    kind, classes = _classes([s for s, _ in told])
    groups = [
        (name, [d for d, c in zip(drafts, classes, strict=True) if c == name])
        for name in _ordered(kind, classes)
    ]
    return RequestAcceptance(
        requests=len(told),
        untold=untold,
        whole=_group("all", drafts),
        spread=(low, middle, high),
        kind=kind,
        classes=tuple(_group(*g) for g in groups) if len(groups) > 1 else (),
        parts=() if unseen > _MOST_UNSEEN else _parts(drafts),
        unseen=unseen,
        biased=biased,
    )


def _group(name: str, drafts: Sequence[RequestDrafts]) -> Group:
    known = all(d.drafted is not None for d in drafts)
    rows = [(d.accepted, d.steps, d.drafted or 0) for d in drafts if d.steps]
    return _counted(name, rows, known=known)


def _counted(name: str, rows: Sequence[tuple[int, int, int]], *, known: bool = True) -> Group:
    """Return a group.

    Args:
        name: Its name.
        rows: Accepted drafts, steps and drafted tokens of each request.
        known: Whether the drafted tokens are known.
    """
    table = np.asarray(rows, float)
    drafts = ratio_of_sums(table[:, 0], table[:, 1])
    assert drafts is not None  # noqa: S101 – every row has a step
    low, high = (None if x is None else 1 + x for x in (drafts.low, drafts.high))
    drafted = float(table[:, 2].sum())
    return Group(
        name,
        len(rows),
        int(table[:, 1].sum()),
        Estimate(1 + drafts.value, low, high),
        float(table[:, 0].sum()) / drafted if known and drafted else None,
    )


# -- classes of requests -------------------------------------------------------------------------


def _classes(samples: Sequence[Sample]) -> tuple[str, list[str]]:
    """Return what the classes are by, and the class of each request."""
    given = [s.category for s in samples]
    if len(set(given)) > 1:
        often = [c for c, _ in Counter(given).most_common() if c is not None]
        kept = set(often if len(often) <= _MOST_CLASSES else often[: _MOST_CLASSES - 1])
        return CATEGORY, [UNNAMED if c is None else c if c in kept else OTHERS for c in given]
    tokens = [max(1, s.prompt_tokens or 1) for s in samples]
    doublings, width = [math.ceil(math.log2(t)) for t in tokens], 1
    while len({d // width for d in doublings}) > _MOST_LENGTHS:
        width += 1
    return PROMPT_LENGTH, [_range(d // width * width, width) for d in doublings]


def _range(first: int, width: int) -> str:
    """Return the lengths that round up to 2^first … 2^(first + width - 1), in words."""
    low = 1 if first == 0 else 2 ** (first - 1) + 1
    high = 2 ** (first + width - 1)
    return _span(low, high)


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _ordered(kind: str, classes: Sequence[str]) -> list[str]:
    """Return the names of the classes: short prompts first, or the most frequent ones first."""
    if kind == PROMPT_LENGTH:
        return sorted(set(classes), key=lambda name: int(name.split()[0]))
    often = [name for name, _ in Counter(classes).most_common()]
    return sorted(often, key=lambda name: name in (OTHERS, UNNAMED))


# -- parts of the answers ------------------------------------------------------------------------


def _parts(drafts: Sequence[RequestDrafts]) -> tuple[Group, ...]:
    """Return the parts of the answers, each twice as long as those before; none without steps."""
    detailed = [d.by_step for d in drafts if d.by_step]
    if not detailed:
        return ()
    longest = max(1 + sum(a + 1 for a, _ in steps) for steps in detailed)
    top = math.ceil(math.log2(longest))
    first = max(_LEAST_PART, 2 ** (top - _MOST_PARTS + 1))
    ends = [first]
    while ends[-1] < longest:
        ends.append(2 * ends[-1])
    sums = np.zeros((len(detailed), len(ends), 3), int)  # accepted, steps, drafted
    for row, steps in zip(sums, detailed, strict=True):
        at = 2  # the prefill gives the first token
        for accepted, drafted in steps:
            part = int(np.searchsorted(ends, at))
            row[min(part, len(ends) - 1)] += (accepted, 1, drafted)
            at += accepted + 1
    found = []
    for i, end in enumerate(ends):
        rows = [(int(a), int(s), int(d)) for a, s, d in sums[:, i] if s]
        if rows:
            found.append(_counted(_span(1 if i == 0 else ends[i - 1] + 1, end), rows))
    return tuple(found)


# -- in words ------------------------------------------------------------------------------------


def acceptance_lines(found: RequestAcceptance) -> Iterator[str]:
    """Yield the figures as lines of text."""
    low, middle, high = found.spread
    yield (
        f"accepted drafts of {count(found.requests, 'request')}: {length_text(found.whole)} tokens "
        f"per step; of single requests {low:.2f} to {high:.2f}, 10th to 90th percentile, median "
        f"{middle:.2f}"
    )
    for title, groups in found.tables:
        yield f"  by {title}:"
        for g in groups:
            share = "" if g.share is None else f", {g.share:.0%} of the drafts"
            yield (
                f"    {plain(g.name)}: {length_text(g)} tokens per step{share}; "
                f"{count(g.requests, 'request')}"
            )
    yield from (f"  note: {note}" for note in found.notes)


def length_text(group: Group) -> str:
    """Return tokens per step with the interval, such as ``2.59 [2.51, 2.68]``."""
    return known_estimate_text(group.length, "{:.2f}".format)
