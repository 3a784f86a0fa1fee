"""One measurement: the arrays of its successful requests, and what is computed from them.

Notation: C is the concurrency of a closed loop; a sum Σ is over the measured requests; the seconds
of a request run from its sending to its end.

E2EL, TTFT, TPOT and ITL are those of ``vllm bench serve`` (``vllm/benchmarks/serve.py``,
``calculate_metrics``):

- E2EL: from the request's origin to its last chunk.
- TTFT: from the request's origin to its first token.
- TPOT: (E2EL - TTFT) / (output tokens - 1); requests of one token have none.
- ITL: gaps between the chunks of a request. Under speculation a chunk carries several tokens, so
  ITL is the pace of verification steps, not of tokens. ``vllm bench serve`` also counts chunks
  without text, such as half of a Korean character; they do not count here.

A request's origin is the moment of sending, as in ``vllm bench serve``, or the intended start
(``workload.latency_from`` of a study).

**Throughput of a closed loop.** At a full load the server delivers

    C · Σ tokens / Σ seconds

tokens per second, because each of the C sequences of requests delivers Σ tokens / Σ seconds (W. L.
Smith, "Renewal theory and its ramifications", Journal of the Royal Statistical Society B 20, 1958:
the renewal-reward theorem). The requests are a fixed list, so there is no window at whose edges
long requests are cut off or counted twice. Counting tokens in a window, as autotune 0.1 did, was
off by -26 to +42 % with C requests, and by up to 4 % with 8·C.

**Throughput of an open loop.** Output tokens per second from the first sending to the first end
after the last sending. The arrivals determine it, not the server, unless the server cannot keep
up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

LatencyFrom = Literal["send", "intended"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class SampleLike(Protocol):
    """A request that can be measured, such as :class:`autotune.bench.sample.Sample`."""

    @property
    def status(self) -> str: ...
    @property
    def intended(self) -> float: ...
    @property
    def start(self) -> float: ...
    @property
    def ttft(self) -> float | None: ...
    @property
    def end(self) -> float: ...
    @property
    def prompt_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int | None: ...
    @property
    def chunks(self) -> Sequence[float]: ...


@dataclass(frozen=True)
class Measurement:
    """The measured, successful requests of one phase, in the order of their sending.

    Attributes:
        intended: Intended start of each request, in seconds on the phase's clock.
        start: Time of sending, in seconds on the phase's clock.
        ttft: Seconds from ``start`` to the first text.
        end: Time of the last chunk, in seconds on the phase's clock.
        prompt_tokens: Number of prompt tokens by the server's usage.
        output_tokens: Number of output tokens by the server's usage.
        chunks: For each request, the seconds from ``start`` to each of its chunks.
        latency_from: Origin of E2EL and TTFT.
        concurrency: Concurrency of a closed loop, which was full while these requests ran; None: an
            open loop.
    """

    intended: Floats
    start: Floats
    ttft: Floats
    end: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    chunks: tuple[Floats, ...]
    latency_from: LatencyFrom
    concurrency: int | None = None

    @classmethod
    def of(
        cls,
        samples: Iterable[SampleLike],
        latency_from: LatencyFrom,
        concurrency: int | None = None,
        *,
        busy: bool = True,
    ) -> Measurement:
        """Return the measurement of those samples whose status is ``ok``.

        Args:
            samples: Samples of one phase, in any order.
            latency_from: Origin of E2EL and TTFT.
            concurrency: Concurrency of a closed loop; None: an open loop.
            busy: Whether other requests kept the load full before the first sample and after the
                last. If not, as autotune 0.1 measured, the first and the last ``concurrency``
                samples are left out where it is above 1: they ran while the batch filled and
                emptied.

        Raises:
            ValueError: no sample is ``ok``, or fewer than ``concurrency`` ran at the full load.
        """
        ok = sorted((s for s in samples if s.status == "ok"), key=lambda s: s.start)
        if not ok:
            raise ValueError("no request was answered successfully, so there is nothing to measure")
        if not busy and concurrency is not None and concurrency > 1:
            sent, ok = len(ok), ok[concurrency:-concurrency]
            if len(ok) < concurrency:
                raise ValueError(
                    f"of {sent} requests fewer than {concurrency} ran at the full concurrency of "
                    f"{concurrency}"
                )
        return cls(
            intended=np.array([s.intended for s in ok], dtype=np.float64),
            start=np.array([s.start for s in ok], dtype=np.float64),
            ttft=np.array([s.ttft for s in ok], dtype=np.float64),
            end=np.array([s.end for s in ok], dtype=np.float64),
            prompt_tokens=np.array([s.prompt_tokens for s in ok], dtype=np.int64),
            output_tokens=np.array([s.output_tokens for s in ok], dtype=np.int64),
            chunks=tuple(np.array(s.chunks, dtype=np.float64) for s in ok),
            latency_from=latency_from,
            concurrency=concurrency,
        )

    def head(self, count: int) -> Measurement:
        """Return the measurement of the first ``count`` requests that were sent."""
        return self.part(0, count)

    def part(self, start: int, stop: int) -> Measurement:
        """Return the measurement of the requests ``start`` to ``stop - 1`` in order of sending."""
        arrays = {
            f.name: getattr(self, f.name)[start:stop]
            for f in fields(Measurement)
            if f.name not in ("latency_from", "concurrency")
        }
        return Measurement(**arrays, latency_from=self.latency_from, concurrency=self.concurrency)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def waited(self) -> Floats:
        """Seconds of each request before its sending that count as latency."""
        if self.latency_from == "intended":
            return self.start - self.intended
        return np.zeros(len(self))

    @property
    def e2el(self) -> Floats:
        """E2EL of each request, in seconds from its origin."""
        return self.end - self.start + self.waited

    @property
    def first_token(self) -> Floats:
        """TTFT of each request, in seconds from its origin."""
        return self.ttft + self.waited

    @property
    def tpot(self) -> Floats:
        """TPOT of each request with at least two output tokens, in seconds."""
        several = self.output_tokens > 1
        seconds = (self.end - self.start - self.ttft)[several]
        return np.asarray(seconds / (self.output_tokens[several] - 1), dtype=np.float64)

    @property
    def itl(self) -> Floats:
        """ITL, in seconds; one array for all requests."""
        return np.concatenate([np.diff(c) for c in self.chunks])

    @property
    def seconds(self) -> Floats:
        """Seconds from the sending of each request to its end."""
        return np.asarray(self.end - self.start, dtype=np.float64)

    @property
    def window(self) -> tuple[float, float]:
        """First sending and first end after the last sending, in seconds on the phase's clock."""
        after_last = self.end[self.end > self.start.max()]
        return float(self.start.min()), float(after_last.min())

    def delivered(self, at: float) -> float:
        """Return the number of output tokens that had come by a time on the phase's clock.

        A request that was under way counts with the share of its chunks that had come, because
        ``usage`` does not say which chunk brought how many tokens.
        """
        tokens = np.where(self.end <= at, self.output_tokens, 0).astype(np.float64)
        for i in np.flatnonzero((self.start < at) & (self.end > at)):
            tokens[i] = self.output_tokens[i] * np.mean(self.chunks[i] <= at - self.start[i])
        return float(tokens.sum())

    @property
    def throughput(self) -> float:
        """Output tokens per second; see the module."""
        if self.concurrency is not None:
            return float(self.concurrency * self.output_tokens.sum() / self.seconds.sum())
        opened, close = self.window
        return self.delivered(close) / (close - opened)

    @property
    def output_throughput(self) -> float:
        """``output_throughput`` of ``vllm bench serve``, in tokens per second.

        Its time runs from the first sending to the last end, so it includes the end, where the load
        is not full.
        """
        return float(self.output_tokens.sum() / (self.end.max() - self.start.min()))
