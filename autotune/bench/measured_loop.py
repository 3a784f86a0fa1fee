"""Which request is sent next: warm-up, measured requests, then requests that keep the load full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from autotune.bench.looks import EarlyEnd
from autotune.bench.sample import Sample
from autotune.bench.workload import Workload
from autotune.stats import Looks, warm_from


@dataclass
class Warmup:
    """The warm-up requests of a server, and whether their rates have become steady.

    Attributes:
        concurrency: Concurrency.
        steady: Whether no more warm-up requests are needed.
        samples: Warm-up requests that have ended.
    """

    concurrency: int
    steady: bool = False
    samples: list[Sample] = field(default_factory=list)
    _rates: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Number of warm-up requests that have ended."""
        return len(self.samples)

    @property
    def was_steady(self) -> bool:
        """Whether the rates became steady; True also without any warm-up request."""
        return self.steady or not self.samples

    def seen(self, sample: Sample) -> None:
        """Note a warm-up request that has ended."""
        self.samples.append(sample)
        # requests that were under way when the rates became steady are not looked at
        if not self.steady and sample.output_tokens:
            self._rates.append(sample.output_tokens / (sample.end - sample.start))
            self.steady = warm_from(self._rates, self.concurrency) is not None


class MeasuredLoop:
    """What is sent for one measurement, in its order.

    A closed loop sends warm-up requests until the server is steady, then the measured ones. While
    measured ones are under way it sends warm-up requests again, the unused ones first. An open loop
    sends the measured ones only.

    Args:
        workload: Warm-up and measured requests.
        looks: Told of each measured request that is sent and that ends.
        warmup: Warm-up of a closed loop; None: an open loop.
        until_steady: Whether the warm-up may end before its last request.
        at_first: Called when the first measured request is sent, in an open loop before.

    Attributes:
        looks: As given.
        requests: All requests that may be sent.
        arrivals: Earliest start of each request, in seconds from the first measured one's.
        sent: Number of measured requests that were sent.
    """

    def __init__(
        self,
        workload: Workload,
        looks: Looks[EarlyEnd],
        warmup: Warmup | None,
        *,
        until_steady: bool,
        at_first: Callable[[], None],
    ) -> None:
        lead = () if warmup is None else workload.warmup
        self.looks = looks
        self.requests = [*lead, *workload.measured]
        self.arrivals = [*(0.0 for _ in lead), *workload.arrivals]
        self.sent = 0
        self._warmup_sent = 0
        self._lead = len(lead)
        self._order = {r.index: i for i, r in enumerate(workload.measured)}
        self._warmup = warmup
        self._before = 0 if warmup is None else warmup.requests  # sent and kept earlier
        self._until_steady = until_steady
        self._at_first = at_first
        self._measured: dict[int, Sample] = {}  # by place in the order of sending
        self._fill: list[Sample] = []
        self._choices = self._in_order()

    def begin(self) -> None:
        """Begin to count where nothing is under way before the first measured request."""
        if self._warmup is None:
            self._at_first()

    def choose(self) -> tuple[int, str] | None:
        """Return the next request and its phase, for :func:`autotune.bench.client.run_phase`."""
        return next(self._choices, None)

    def _in_order(self) -> Iterator[tuple[int, str]]:
        """Yield each request's number and phase when a place for it is free."""
        if self._warmup is not None:
            while not self._warm:
                self._warmup_sent += 1
                yield self._warmup_sent - 1, "warmup"
            self._at_first()
        for i in range(len(self._order)):
            self.sent += 1
            self.looks.sent()
            yield self._lead + i, "measure"
        if self._lead:
            for i in count(self._warmup_sent):
                yield i % self._lead, "fill"

    @property
    def _warm(self) -> bool:
        """Whether no further warm-up request is sent before the measured ones."""
        steady = self._warmup is None or (self._warmup.steady and self._until_steady)
        return steady or self._warmup_sent == self._lead

    def seen(self, sample: Sample) -> None:
        """Note an answer."""
        if sample.phase == "measure":
            place = self._order[sample.index]
            self._measured[place] = sample
            self.looks.ended(place)
        elif sample.phase == "warmup" and self._warmup is not None:
            self._warmup.seen(sample)
        else:
            self._fill.append(sample)

    @property
    def all_ok(self) -> bool:
        """Whether no measured request has failed."""
        return all(x.status == "ok" for x in self._measured.values())

    @property
    def unanswered(self) -> int:
        """Number of warm-up requests before the first measured one that were not answered."""
        return self._warmup_sent - len(self._warmup_samples)

    def first(self, count: int) -> list[Sample]:
        """Return the first ``count`` measured requests that were sent; all of them have ended."""
        return [self._measured[i] for i in range(count)]

    def kept(self) -> list[Sample]:
        """Return every answered request; a measured one that does not count has phase ``fill``."""
        size = self.looks.size
        measured = [
            x if place < size else replace(x, phase="fill") for place, x in self._measured.items()
        ]
        return [*self._warmup_samples, *measured, *self._fill]

    @property
    def _warmup_samples(self) -> list[Sample]:
        return [] if self._warmup is None else self._warmup.samples[self._before :]
