"""Outcomes of requests; they are stored and read without the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autotune.bench.request_drafts import RequestDrafts


@dataclass(frozen=True, slots=True)
class Sample:
    """Outcome of one request; times are seconds on the phase's clock, which starts at 0.

    Attributes:
        index: Index of the request.
        phase: ``warmup``, ``measure``, or ``fill``: it kept the load full for measured requests.
        intended: Time at which the workload wanted it to be sent.
        start: Time of sending.
        ttft: Seconds from ``start`` to the first text; None unless ok.
        end: Time of its last chunk, or of giving up.
        prompt_tokens: Number of prompt tokens, by usage; None unless ok.
        output_tokens: Number of output tokens, by usage; None unless ok.
        status: ``ok``, or the kind of failure (see :mod:`autotune.bench.client`).
        error: Error in one line; None if ok.
        chunks: Seconds from ``start`` to each chunk with text; empty unless ok.
        drafts: Accepted drafts of the request, where the server told them.
        category: Category of the request in its dataset; None: it has none. It is kept with
            ``drafts`` only.
    """

    index: int
    phase: str
    intended: float
    start: float
    ttft: float | None
    end: float
    prompt_tokens: int | None
    output_tokens: int | None
    status: str
    error: str | None
    chunks: tuple[float, ...]
    drafts: RequestDrafts | None = None
    category: str | None = None


@dataclass(frozen=True)
class Phase:
    """One run over a list of requests.

    Attributes:
        samples: Samples of all requests that were answered or failed, in the requests' order.
        seconds: Seconds from the phase's start to the end of its last request.
        started_at: Unix time at 0 on the phase's clock.
    """

    samples: tuple[Sample, ...]
    seconds: float
    started_at: float
