"""Accepted drafts of one request, as vLLM tells them in the last chunk of a stream.

From 0.29 on, ``--per-request-spec-decode-metrics`` adds ``metrics.speculative_decoding`` to the
chunk with the usage (``vllm/entrypoints/generate/base/protocol.py: SpeculativeDecodingMetrics``,
called experimental there; filled from ``vllm/v1/metrics/stats.py: RequestSpecDecodeMetrics``).
Of it are read:

- ``acceptance_histogram``: number of verification steps that accepted 0, 1, …, n drafts;
- ``num_draft_tokens``: number of drafted tokens of all steps;
- with ``detailed``, ``per_step_accepted`` and ``per_step_drafted``: both numbers of each step, in
  order. Steps without a draft, such as the prefill, are in none of them.

What is missing or contradicts itself is left out: it is a by-product, and never fails a request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_MOST_N = 1024  # drafts of a step
_MOST_STEPS = 10**6
_MOST_TOKENS = 2**31


@dataclass(frozen=True, slots=True)
class RequestDrafts:
    """Accepted drafts of one request.

    Attributes:
        histogram: Number of steps that accepted exactly j drafts, j from 0 to n; shape (n + 1,).
        drafted: Number of drafted tokens of all steps; None: unknown.
        by_step: Accepted and drafted tokens of each step with a draft, in order; empty if vLLM told
            the histogram only.
    """

    histogram: tuple[int, ...]
    drafted: int | None = None
    by_step: tuple[tuple[int, int], ...] = ()

    @property
    def steps(self) -> int:
        """Number of verification steps."""
        return sum(self.histogram)

    @property
    def accepted(self) -> int:
        """Number of accepted drafts of all steps."""
        return sum(j * steps for j, steps in enumerate(self.histogram))


def request_drafts(metrics: object) -> RequestDrafts | None:
    """Return what the ``metrics`` of a chunk say of drafts; None: nothing that can be used.

    Args:
        metrics: The value of the chunk's key, which a server may fill with anything.
    """
    told = metrics.get("speculative_decoding") if isinstance(metrics, dict) else None
    if not isinstance(told, dict):
        return None
    accepted = _numbers(told.get("per_step_accepted"), _MOST_N)
    drafted = _numbers(told.get("per_step_drafted"), _MOST_N)
    by_step: tuple[tuple[int, int], ...] = ()
    if accepted and drafted and len(accepted) == len(drafted) <= _MOST_STEPS:
        by_step = tuple(zip(accepted, drafted, strict=True))
    histogram = _numbers(told.get("acceptance_histogram"), _MOST_TOKENS)
    if histogram is None or not 2 <= len(histogram) <= _MOST_N + 1:
        if not by_step:
            return None
        n = max(max(pair) for pair in by_step)
        histogram = counted([a for a, _ in by_step], n)
    elif by_step and histogram != counted(accepted or (), len(histogram) - 1):
        by_step = ()
    total = told.get("num_draft_tokens")
    known = type(total) is int and 0 <= total < _MOST_TOKENS
    return RequestDrafts(histogram, total if known else None, by_step)


def counted(accepted: Sequence[int], n: int) -> tuple[int, ...]:
    """Return the number of steps that accepted 0, 1, …, n drafts.

    Args:
        accepted: Accepted drafts of each step; more than n are counted nowhere.
        n: Most drafts of a step.
    """
    found = Counter(accepted)
    return tuple(found[j] for j in range(n + 1))


def _numbers(value: object, most: int) -> tuple[int, ...] | None:
    """Return a list of whole numbers from 0 to ``most``; None: it is none, or empty."""
    # this runs between two reads of the streams under measure, so no loop in Python
    if not isinstance(value, list) or not value or set(map(type, value)) != {int}:
        return None
    return tuple(value) if min(value) >= 0 and max(value) <= most else None
