"""Measures one running server: warm-up until it is steady, then requests until enough is known.

The requests are those of the study, in its order; what differs between trials is only how many of
them are measured. In a closed loop they are sent into a full load: warm-up requests keep all places
busy until the server is steady, the measured ones follow in the same places, and when the last one
has been sent, warm-up requests follow again until all measured ones have ended. Counters, energy
and the watch over the machine begin with the first measured request and end with the last. Without
such a beginning the first requests are a burst that no user is part of: with four requests a place,
all of p95.

Measuring ends when every objective is known to the study's ``precision``, when another trial is
certainly better in all of them, or with the last request (:mod:`autotune.stats.stopping`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from autotune.bench import (
    Counters,
    Request,
    Sample,
    ServerStats,
    Workload,
    difference,
    run_phase,
    scrape,
)
from autotune.bench.energy import with_energy
from autotune.bench.interference import GPU_OURS_MIB, LoadWatch, MachineState, Rest, read_gpus
from autotune.errors import FailureKind, MeasureError, TrialFailure
from autotune.serving.nvml import Energy, EnergyMeter
from autotune.stats import (
    ESTIMATOR,
    STOPPING_CONFIDENCE,
    Bounded,
    Domination,
    Interval,
    Looks,
    Measurement,
    averaged,
    drift,
    expected_between,
    first_look,
    look_sizes,
    narrow_enough,
    precise,
    standard_error,
    warm_from,
)
from autotune.stats.stopping import Stop
from autotune.study.schema import StudySpec
from autotune.study.workload import WorkloadSpec
from objectives import Objective, WithEnergy

if TYPE_CHECKING:
    from autotune.serving import Server

# A server whose requests fail may be about to end: the API process outlives its engine for a bit.
DYING_S = 3.0
# The two clocks that tell a machine's sleep are not read at the same moment.
MOST_ASLEEP_S = 0.5


@dataclass(frozen=True)
class Rival:
    """A finished trial that the running one is compared with.

    Attributes:
        trial: Its number.
        measurement: What was measured of it.
        again: The same of further launches of its point.
    """

    trial: int
    measurement: Measurement
    again: tuple[Measurement, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Why a look would end the measuring.

    Attributes:
        stop: The reason.
        by: The trial that is better in everything, with ``Stop.DOMINATED``.
    """

    stop: Stop
    by: int | None = None


@dataclass(frozen=True)
class Look:
    """One look at a measurement that runs.

    Attributes:
        size: Requests that it saw, the first ones that were sent.
        sent: Measured requests that had been sent by then.
        values: Each objective of those requests, in the study's order.
        verdict: What it found; None: not enough.
    """

    size: int
    sent: int
    values: tuple[float, ...]
    verdict: Verdict | None


@dataclass(frozen=True)
class Result:
    """What one launch gave.

    Attributes:
        values: By objective name, in its unit.
        intervals: 95 % intervals within this launch, by objective name.
        errors: Standard error of each value's logarithm within this launch; None: unknown.
        stats: The server's own counters over the measurement.
        requests: Measured requests.
        stop: Why there are not more.
        dominated_by: The trial that is better in everything, with ``Stop.DOMINATED``.
        warmup_requests: Requests before the measurement.
        steady: False: the warm-up ended with its last prompt, not with a steady server.
        busy: All places of a closed loop were busy from the first measured request to the last.
        unanswered: Warm-up requests that held a place until the last measured one had ended.
        drift: How much faster or slower, as a share, the last requests were than the first, where
            that is more than chance explains; None: it is not.
        machine: The machine while it was measured.
        energy: What the server's GPUs took meanwhile; None: it has none, or they do not tell.
    """

    values: dict[str, float]
    intervals: dict[str, Interval]
    errors: dict[str, float | None]
    stats: ServerStats
    requests: int
    stop: Stop
    dominated_by: int | None
    warmup_requests: int
    steady: bool
    busy: bool
    unanswered: int
    drift: float | None
    machine: MachineState
    energy: Energy | None = None

    def quality(self) -> dict[str, Any]:
        """What the database keeps beside the numbers, as plain data."""
        looked_up, hits = self.stats.prefix_cache_queries, self.stats.prefix_cache_hits
        return {
            "estimator": ESTIMATOR,
            "errors": self.errors,
            "requests": self.requests,
            "stop": self.stop.name.lower(),
            "dominated_by": self.dominated_by,
            "warmup_requests": self.warmup_requests,
            "steady": self.steady,
            "busy": self.busy,
            "unanswered": self.unanswered,
            "drift": self.drift,
            "prefix_cache_share": hits / looked_up if looked_up and hits is not None else None,
            "machine": asdict(self.machine),
            "energy": self.energy and asdict(self.energy),
        }


class Measuring:
    """One server under the load of one study.

    Args:
        server: Runs, and answered ``/health``.
        spec: The study.
        objectives: What is computed.
        keep: Takes the requests of each phase, also those of a phase that was interrupted.
        progress: Told after each request how many are done, of how many at most.
    """

    def __init__(
        self,
        server: Server,
        spec: StudySpec,
        objectives: Sequence[Objective],
        *,
        keep: Callable[[Sequence[Sample]], None],
        progress: Callable[[int, int], None],
    ) -> None:
        self._server = server
        self._spec = spec
        self._objectives = objectives
        self._keep = keep
        self._progress = progress
        self._warmup = _Warmup(spec.workload.places or spec.workload.max_concurrency or 1)

    def warm(self, requests: Sequence[Request]) -> None:
        """Send warm-up requests until their rates are steady, or there are no more.

        They are waited for. An open loop is warmed so; a closed loop need not be empty between its
        warm-up and its measurement, so :meth:`measure` warms it.

        Raises:
            TrialFailure: the server died, or a request failed.
        """
        warmup = self._warmup

        def seen(sample: Sample) -> None:
            self._progress(warmup.requests, len(requests))
            warmup.seen(sample)

        try:
            send(
                self._server,
                self._spec.workload,
                requests,
                [0.0] * len(requests),
                "warmup",
                seen,
                lambda: not warmup.steady,
            )
        finally:
            self._keep(warmup.samples)

    def measure(
        self,
        workload: Workload,
        rest: Rest,
        *,
        whole: bool,
        rivals: Sequence[Rival] = (),
        between: Mapping[str, float] | None = None,
        finished: int | None = None,
        until_steady: bool = True,
        begin: Callable[[], None] = lambda: None,
        shadow: Callable[[Look], None] | None = None,
    ) -> Result:
        """Warm a closed loop up, and send the measured requests.

        Args:
            workload: What to send; in an open loop its warm-up was sent before.
            rest: The machine before the launch.
            whole: Measure every request, whatever is known before.
            rivals: Finished trials of which one may be better in everything.
            between: By objective, the standard deviation of its logarithm between launches; without
                it, the usual one.
            finished: Trials of which the rivals are the best; None: the rivals are all.
            until_steady: Warm up until the rates are steady; False: send the whole warm-up.
            begin: Called when the first measured request is sent.
            shadow: Told of every look, and none ends the measuring.

        Raises:
            TrialFailure: the server died, a request failed, or an objective cannot be computed.
        """
        load = self._spec.workload
        most = len(workload.measured)
        start = first_look(self._spec.measure.min_prompts, load.places)
        sizes = [most] if whole else look_sizes(start, most)
        judge = self._judge(sizes, rivals, between or {}, finished)
        counting = self._counting(rest)
        busy = load.keeps_busy(len(workload.warmup))
        earlier = self._warmup.requests

        def ask(size: int) -> Verdict | None:
            if not loop.all_ok or not counting.begun:
                return None
            m = self._measurement(loop.first(size), busy, counting.energy())
            values, verdict = judge(m)
            if shadow is None:
                return verdict
            shadow(Look(size, loop.sent, values, verdict))
            return None

        def at_first() -> None:
            counting.begin(beside=load.places is not None)
            begin()

        loop = _Loop(
            workload,
            Looks(sizes, ask),
            self._warmup if load.places is not None else None,
            until_steady=until_steady,
            at_first=at_first,
        )

        def seen(sample: Sample) -> None:
            loop.seen(sample)
            if loop.sent:
                self._progress(loop.looks.complete, most)
            else:
                self._progress(self._warmup.requests - earlier, len(workload.warmup))

        with counting:
            try:
                loop.begin()
                send(
                    self._server,
                    load,
                    loop.requests,
                    loop.arrivals,
                    "measure",
                    seen,
                    choose=loop.choose,
                    enough=lambda: loop.looks.over or counting.failed,
                )
                energy = counting.energy()
            finally:
                self._keep(loop.kept())
        stats = difference(counting.counters(), self._scrape())
        if not self._server.alive():
            raise self._server.failure(FailureKind.CRASH, "the server died after the last request")
        return self._result(
            loop.first(loop.looks.size),
            loop.looks.verdict or Verdict(Stop.ALL),
            busy=busy,
            unanswered=loop.unanswered,
            stats=stats,
            machine=counting.machine,
            energy=energy,
        )

    def _counting(self, rest: Rest) -> _Counting:
        owned = self._server.processes if self._server.known_processes else None
        meter = EnergyMeter(sample=self._metered)
        return _Counting(self._scrape, LoadWatch(rest, owned), meter, _gpus_of_server(rest))

    @property
    def _metered(self) -> bool:
        return any(o.needs_energy for o in self._objectives)

    def _judge(
        self,
        sizes: Sequence[int],
        rivals: Sequence[Rival],
        between: Mapping[str, float],
        finished: int | None,
    ) -> Callable[[Measurement], tuple[tuple[float, ...], Verdict | None]]:
        """What a look asks: each objective's value, and whether they are enough."""
        domination = Domination(
            len(sizes),
            [o.direction for o in self._objectives],
            [between.get(o.name, expected_between(0.0, 0)) for o in self._objectives],
            self._spec.measure.dominated_error,
            finished,
        )
        known: list[tuple[int, list[Bounded]]] = []
        for r in rivals:
            launches = [r.measurement, *r.again]
            if self._metered and not all(isinstance(m, WithEnergy) for m in launches):
                continue
            columns = list(zip(*map(self._bounded, launches), strict=True))
            if all(b.value > 0 for column in columns for b in column):
                known.append((r.trial, [_cached(averaged(column)) for column in columns]))
        others = [bounded for _, bounded in known]
        domination.prepare(others)

        def judge(m: Measurement) -> tuple[tuple[float, ...], Verdict | None]:
            now = self._bounded(m)
            values = tuple(b.value for b in now)
            if any(b.value == 0 for b in now):  # no share of it can be told
                return values, None
            found = ((b.value, b.interval(STOPPING_CONFIDENCE)) for b in now)
            if narrow_enough(len(m), m.places) and precise(found, self._spec.measure.precision):
                return values, Verdict(Stop.PRECISE)
            by = domination.by(now, others) if all(b.value > 0 for b in now) else None
            return values, None if by is None else Verdict(Stop.DOMINATED, known[by][0])

        return judge

    def _result(
        self,
        samples: Sequence[Sample],
        verdict: Verdict,
        *,
        busy: bool,
        unanswered: int,
        stats: ServerStats,
        machine: MachineState,
        energy: Energy | None,
    ) -> Result:
        measurement = self._measurement(samples, busy, energy)
        bounded = self._bounded(measurement)
        # wider where narrowness was what ended it, or fewer than 95 % would hold
        confidence = STOPPING_CONFIDENCE if verdict.stop is Stop.PRECISE else 0.95
        intervals = {
            o.name: b.interval(confidence) for o, b in zip(self._objectives, bounded, strict=True)
        }
        values = {o.name: b.value for o, b in zip(self._objectives, bounded, strict=True)}
        rates = measurement.output_tokens / measurement.seconds
        return Result(
            values=values,
            intervals={
                o.name: intervals[o.name]
                for o in self._objectives
                if o.interval or intervals[o.name].low is not None
            },
            errors={name: standard_error(values[name], i) for name, i in intervals.items()},
            stats=stats,
            requests=len(samples),
            stop=verdict.stop,
            dominated_by=verdict.by,
            warmup_requests=self._warmup.requests,
            steady=self._warmup.was_steady,
            busy=busy,
            unanswered=unanswered,
            drift=drift(rates.tolist()),
            machine=machine,
            energy=energy,
        )

    def _scrape(self) -> Counters:
        plan = self._server.plan
        try:
            return scrape(plan.base_url, plan.api_key)
        except MeasureError as e:
            raise blamed(self._server, e) from e

    def _measurement(
        self, samples: Sequence[Sample], busy: bool, energy: Energy | None
    ) -> Measurement:
        """What was measured, with its energy.

        Raises:
            MeasureError: too few requests ran while all places were busy.
        """
        load = self._spec.workload
        with _as_failure():
            m = Measurement.of(samples, load.latency_origin, load.places, busy=busy)
        return m if energy is None else with_energy(m, energy)

    def _bounded(self, measurement: Measurement) -> list[Bounded]:
        """Each objective with its interval; one that has none is never known precisely.

        Raises:
            MeasureError: one cannot be computed, here or when its interval is asked for.
        """

        def interval(o: Objective, confidence: float) -> Interval:
            with _as_failure():
                return o.bounds(measurement, confidence)

        with _as_failure():
            return [Bounded(o.value(measurement), partial(interval, o)) for o in self._objectives]


def _cached(b: Bounded) -> Bounded:
    """The same, each interval computed once."""
    return replace(b, interval=cache(b.interval))


@dataclass
class _Warmup:
    """The warm-up requests of a server, and whether they have become steady.

    Attributes:
        places: Concurrency.
        steady: No more of them are needed.
        samples: Those that have ended.
    """

    places: int
    steady: bool = False
    samples: list[Sample] = field(default_factory=list)
    _rates: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return len(self.samples)

    @property
    def was_steady(self) -> bool:
        """True also where no warm-up was wanted."""
        return self.steady or not self.samples

    def seen(self, sample: Sample) -> None:
        self.samples.append(sample)
        # what was under way when it became steady says nothing more
        if not self.steady and sample.output_tokens:
            self._rates.append(sample.output_tokens / (sample.end - sample.start))
            self.steady = warm_from(self._rates, self.places) is not None


class _Counting:
    """The server's counters, the machine and the energy, from one moment to the end of the block.

    Args:
        scrape: Reads the counters.
        watch: Over the machine.
        meter: Of the energy.
        gpus: The server's.
    """

    def __init__(
        self,
        scrape: Callable[[], Counters],
        watch: LoadWatch,
        meter: EnergyMeter,
        gpus: set[int],
    ) -> None:
        self._scrape, self._watch, self._meter, self._gpus = scrape, watch, meter, gpus
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._ended = False
        self._counters: Future[Counters] = Future()

    def __enter__(self) -> _Counting:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:  # a thread that comes too late begins nothing
            self._ended = True
        self._stack.close()

    def begin(self, *, beside: bool) -> None:
        """Begin to count.

        Args:
            beside: In a thread of its own, because streams are under way that must not wait.
        """
        if beside:
            threading.Thread(target=self._begin, name="counters").start()
        else:
            self._begin()

    def _begin(self) -> None:
        try:
            found = self._scrape()
            with self._lock:
                if not self._ended:
                    self._stack.enter_context(self._watch)
                    self._stack.enter_context(self._meter)
            self._counters.set_result(found)
        except BaseException as e:  # noqa: BLE001 – it is raised where the result is asked for
            self._counters.set_exception(e)

    @property
    def begun(self) -> bool:
        """Whether everything is counted by now."""
        return self._counters.done() and self._counters.exception() is None

    @property
    def failed(self) -> bool:
        """Whether the counters could not be read."""
        return self._counters.done() and self._counters.exception() is not None

    def energy(self) -> Energy | None:
        """What the server's GPUs took so far; None: nothing of them tells.

        Raises:
            TrialFailure: the counters could not be read.
        """
        self._counters.result()
        return self._meter.read().of(self._gpus)

    def counters(self) -> Counters:
        """The counters at the beginning.

        Raises:
            TrialFailure: they could not be read.
        """
        return self._counters.result()

    @property
    def machine(self) -> MachineState:
        """The machine meanwhile, after the block."""
        return self._watch.state


class _Loop:
    """What is sent for one measurement, in its order.

    A closed loop: warm-up requests until the server is steady, the measured ones, then warm-up
    requests again, the unused ones first, while measured ones are under way. An open loop: the
    measured ones.

    Args:
        workload: Warm-up and measured requests.
        looks: Told of each measured request that is sent and that ends.
        warmup: Of a closed loop; None: an open one.
        until_steady: Whether the warm-up may end before its last request.
        at_first: Called when the first measured request is sent, in an open loop before.

    Attributes:
        looks: As given.
        requests: All that may be sent.
        arrivals: When, at the earliest.
        sent: Measured requests so far.
        all_ok: No measured request has failed.
    """

    def __init__(
        self,
        workload: Workload,
        looks: Looks[Verdict],
        warmup: _Warmup | None,
        *,
        until_steady: bool,
        at_first: Callable[[], None],
    ) -> None:
        lead = () if warmup is None else workload.warmup
        self.looks = looks
        self.requests = [*lead, *workload.measured]
        self.arrivals = [*(0.0 for _ in lead), *workload.arrivals]
        self.sent = 0
        self.all_ok = True
        self._lead = len(lead)
        self._led = 0  # warm-up requests so far, those that fill places at the end included
        self._warming = 0  # … before the first measured one
        self._order = {r.index: i for i, r in enumerate(workload.measured)}
        self._warmup = warmup
        self._before = 0 if warmup is None else warmup.requests  # sent and kept earlier
        self._until_steady = until_steady
        self._at_first = at_first
        self._measured: dict[int, Sample] = {}  # by place in the order of sending
        self._fill: list[Sample] = []

    def begin(self) -> None:
        """Begin to count where nothing is under way before the first measured request."""
        if self._warmup is None:
            self._at_first()

    def choose(self) -> tuple[int, str] | None:
        """The next request and its phase, as :func:`autotune.bench.run_phase` wants it."""
        w = self._warmup
        warm = w is None or (w.steady and self._until_steady) or self._led == self._lead
        if not warm and not self.sent:
            self._led += 1
            self._warming += 1
            return self._led - 1, "warmup"
        if self.sent < len(self._order):
            if not self.sent and w is not None:
                self._at_first()
            self.sent += 1
            self.looks.sent()
            return self._lead + self.sent - 1, "measure"
        if not self._lead:
            return None
        self._led += 1
        return (self._led - 1) % self._lead, "fill"

    def seen(self, sample: Sample) -> None:
        """Note an answer."""
        if sample.phase == "measure":
            place = self._order[sample.index]
            self._measured[place] = sample
            self.all_ok = self.all_ok and sample.status == "ok"
            self.looks.ended(place)
        elif sample.phase == "warmup" and self._warmup is not None:
            self._warmup.seen(sample)
        else:
            self._fill.append(sample)

    @property
    def unanswered(self) -> int:
        """Warm-up requests before the first measured one that have not been answered."""
        return 0 if self._warmup is None else self._warming - len(self._warmup_samples)

    def first(self, count: int) -> list[Sample]:
        """The first measured requests that were sent, all of which have ended."""
        return [self._measured[i] for i in range(count)]

    def kept(self) -> list[Sample]:
        """Every answered request; what does not count among the measured ones is a filling one."""
        size = self.looks.size
        measured = [
            x if place < size else replace(x, phase="fill") for place, x in self._measured.items()
        ]
        return [*self._warmup_samples, *measured, *self._fill]

    @property
    def _warmup_samples(self) -> list[Sample]:
        return [] if self._warmup is None else self._warmup.samples[self._before :]


@contextmanager
def _as_failure() -> Iterator[None]:
    """Makes a trial's failure of an objective that cannot be computed."""
    try:
        yield
    except ValueError as e:
        raise MeasureError(FailureKind.REQUESTS, str(e)) from e


def _gpus_of_server(rest: Rest) -> set[int]:
    """Numbers of the GPUs whose used memory grew since ``rest``, or that do not tell it."""
    if not rest.gpus:
        return set()
    return {
        i
        for i, (before, now) in enumerate(zip(rest.gpus, read_gpus(), strict=False))
        if before.memory_mib is None
        or now.memory_mib is None
        or now.memory_mib >= before.memory_mib + GPU_OURS_MIB
    }


def send(
    server: Server,
    load: WorkloadSpec,
    requests: Sequence[Request],
    arrivals: Sequence[float],
    phase: str,
    on_done: Callable[[Sample], None],
    more: Callable[[], bool] = lambda: True,
    choose: Callable[[], tuple[int, str] | None] | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> tuple[Sample, ...]:
    """One phase of requests; arguments as of :func:`autotune.bench.run_phase`.

    Returns:
        The answered requests in their order, all of them ok.

    Raises:
        TrialFailure: the server died, the machine slept, or a request failed; one is enough,
            because a number without it would be better than what users get.
    """

    def masked(sample: Sample) -> Sample:
        """Its error is the server's text, which may hold a secret."""
        error = sample.error and server.plan.masked(sample.error)
        return sample if error == sample.error else replace(sample, error=error)

    failed = False

    def seen(sample: Sample) -> None:
        nonlocal failed
        failed = failed or sample.status != "ok"
        on_done(masked(sample))

    # without a cap on concurrency a request may wait long behind others, and nothing hangs
    hang = load.request_timeout_s if load.max_concurrency is None else load.hang_timeout_s
    asleep = _asleep()
    samples = asyncio.run(
        run_phase(
            server.plan.base_url,
            server.plan.served_name,
            requests,
            arrivals,
            load,
            api_key=server.plan.api_key,
            phase=phase,
            hang_timeout_s=hang,
            on_done=seen,
            more=lambda: not failed and more(),  # every other one would hang as long
            choose=choose,
            enough=enough,
        )
    ).samples
    if (asleep := _asleep() - asleep) > MOST_ASLEEP_S:
        raise MeasureError(FailureKind.CLOCK, f"the machine slept for {asleep:.0f} s meanwhile")
    bad = [masked(s) for s in samples if s.status != "ok"]
    if not bad:
        return samples
    kinds = {"timeout": FailureKind.HANG, "server": FailureKind.SERVER_ERROR}
    kind = kinds.get(bad[0].status, FailureKind.REQUESTS)
    words = f"{len(bad)} of {len(samples)} requests failed: {bad[0].error}"
    raise blamed(server, MeasureError(kind, words))


def _asleep() -> float:
    """Seconds since boot in which the machine was suspended; no time of ours counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def blamed(server: Server, failure: TrialFailure) -> TrialFailure:
    """The server's own failure if it died, else ``failure``."""
    if server.died(DYING_S):
        return server.failure(FailureKind.CRASH, "the server died while it was being measured")
    return failure
