"""One measurement: the arrays of its successful requests, and what is computed from them.

E2EL, TTFT, TPOT and ITL are those of ``vllm bench serve`` (``vllm/benchmarks/serve.py``,
``calculate_metrics``):

- E2EL: from the request's origin to its last chunk.
- TTFT: from the request's origin to its first token.
- TPOT: (E2EL - TTFT) / (output tokens - 1); requests of one token have none.
- ITL: gaps between the chunks of a request. Under speculation a chunk carries several tokens, so
  ITL is the pace of verification steps, not of tokens. Chunks without text, such as half of a
  Korean character, count in ``vllm bench serve`` and not here.

The origin is the moment of sending, as in ``vllm bench serve``, or the intended start
(``workload.latency_from`` of a study). Percentiles are NumPy's ``linear`` estimator (type 7 of
Hyndman & Fan, "Sample quantiles in statistical packages", The American Statistician 50, 1996), also
as there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

LatencyFrom = Literal["send", "intended"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class SampleLike(Protocol):
    """What a request must tell to be measured; :class:`autotune.load.Sample` does."""

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
        intended: Intended start, seconds on the phase's clock.
        start: Sending, seconds on the phase's clock.
        ttft: First text, seconds after ``start``.
        end: Last chunk, seconds on the phase's clock.
        prompt_tokens: By usage.
        output_tokens: By usage.
        chunks: For each request, the arrival of its chunks, seconds after ``start``.
        latency_from: Origin of E2EL and TTFT.
    """

    intended: Floats
    start: Floats
    ttft: Floats
    end: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    chunks: tuple[Floats, ...]
    latency_from: LatencyFrom

    @classmethod
    def of(cls, samples: Iterable[SampleLike], latency_from: LatencyFrom) -> Measurement:
        """The measurement of those samples whose status is ``ok``.

        Raises:
            ValueError: there is none.
        """
        ok = sorted((s for s in samples if s.status == "ok"), key=lambda s: s.start)
        if not ok:
            raise ValueError("no request was answered successfully, so there is nothing to measure")
        return cls(
            intended=np.array([s.intended for s in ok], dtype=np.float64),
            start=np.array([s.start for s in ok], dtype=np.float64),
            ttft=np.array([s.ttft for s in ok], dtype=np.float64),
            end=np.array([s.end for s in ok], dtype=np.float64),
            prompt_tokens=np.array([s.prompt_tokens for s in ok], dtype=np.int64),
            output_tokens=np.array([s.output_tokens for s in ok], dtype=np.int64),
            chunks=tuple(np.array(s.chunks, dtype=np.float64) for s in ok),
            latency_from=latency_from,
        )

    def __len__(self) -> int:
        return len(self.start)

    @property
    def waited(self) -> Floats:
        """Seconds before the sending that count as latency."""
        if self.latency_from == "intended":
            return self.start - self.intended
        return np.zeros(len(self))

    @property
    def e2el(self) -> Floats:
        """End-to-end latency of each request, seconds from its origin."""
        return self.end - self.start + self.waited

    @property
    def first_token(self) -> Floats:
        """TTFT of each request, seconds from its origin."""
        return self.ttft + self.waited

    @property
    def tpot(self) -> Floats:
        """Seconds per output token after the first, of the requests with at least two."""
        several = self.output_tokens > 1
        seconds = (self.end - self.start - self.ttft)[several]
        return np.asarray(seconds / (self.output_tokens[several] - 1), dtype=np.float64)

    @property
    def itl(self) -> Floats:
        """Seconds between the chunks of each request, of all requests in one array."""
        return np.concatenate([np.diff(c) for c in self.chunks])

    @property
    def steady_window(self) -> tuple[float, float]:
        """The time in which the load was full, on the phase's clock.

        From the first sending to the first end after the last sending: until then every finished
        request of a closed loop is replaced at once; after it, places stay empty. It always holds
        at least one whole request. With a concurrency of one it holds all of them.
        """
        after_last = self.end[self.end > self.start.max()]
        return float(self.start.min()), float(after_last.min())

    @property
    def steady_tokens(self) -> Floats:
        """Output tokens of each request that came within :attr:`steady_window`.

        A request that the window cuts counts with the share of its chunks that came inside:
        ``usage`` tells how many tokens it had, not which chunk brought them.
        """
        _, close = self.steady_window
        tokens = self.output_tokens.astype(np.float64)
        for i in np.flatnonzero(self.end > close):
            tokens[i] *= np.mean(self.chunks[i] <= close - self.start[i])
        return tokens

    @property
    def throughput(self) -> float:
        """Output tokens per second over :attr:`steady_window`."""
        opened, close = self.steady_window
        return float(self.steady_tokens.sum() / (close - opened))

    @property
    def output_throughput(self) -> float:
        """``output_throughput`` of ``vllm bench serve``: all output tokens per second of the whole
        time from the first sending to the last end, the emptying at the end included."""
        return float(self.output_tokens.sum() / (self.end.max() - self.start.min()))
