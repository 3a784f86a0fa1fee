"""What the client says of the requests that it sent; read and stored without the client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of one request. Times are seconds on the phase's clock, which starts at 0.

    Attributes:
        index: The request's index.
        phase: ``warmup``, ``measure``, or ``fill``: it kept a place busy for measured ones.
        intended: When the workload wanted it to be sent.
        start: When it was sent.
        ttft: Seconds from ``start`` to the first text; None unless ok.
        end: When its last chunk came, or when it was given up.
        prompt_tokens: By usage; None unless ok.
        output_tokens: By usage; None unless ok.
        status: ``ok``, or the kind of failure (see :mod:`autotune.bench.client`).
        error: One line in words; None if ok.
        chunks: Seconds from ``start`` to each chunk with text; empty unless ok.
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


@dataclass(frozen=True)
class Phase:
    """One run over a list of requests.

    Attributes:
        samples: One for each request that was answered or failed, in the requests' order.
        seconds: From the phase's start to the end of its last request.
        started_at: Unix time of the clock's 0.
    """

    samples: tuple[Sample, ...]
    seconds: float
    started_at: float
