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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from autotune.bench import Counters, Request, Sample, ServerStats, Workload, difference, scrape
from autotune.bench.counting import Counting, gpus_of_server
from autotune.bench.interference import LoadWatch, MachineState, Rest
from autotune.bench.looks import EarlyEnd, Look, Rival, Stop
from autotune.bench.measured_loop import MeasuredLoop, Warmup
from autotune.bench.sending import blamed, send
from autotune.errors import FailureKind, MeasureError
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
)
from autotune.study.schema import StudySpec
from objectives import Objective, WithEnergy

if TYPE_CHECKING:
    from autotune.serving import Server


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
        self._warmup = Warmup(spec.workload.places or spec.workload.max_concurrency or 1)

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

        def ask(size: int) -> EarlyEnd | None:
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

        loop = MeasuredLoop(
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
            loop.looks.verdict or EarlyEnd(Stop.ALL),
            busy=busy,
            unanswered=loop.unanswered,
            stats=stats,
            machine=counting.machine,
            energy=energy,
        )

    def _counting(self, rest: Rest) -> Counting:
        owned = self._server.processes if self._server.known_processes else None
        meter = EnergyMeter(sample=self._metered)
        return Counting(self._scrape, LoadWatch(rest, owned), meter, gpus_of_server(rest))

    @property
    def _metered(self) -> bool:
        return any(o.needs_energy for o in self._objectives)

    def _judge(
        self,
        sizes: Sequence[int],
        rivals: Sequence[Rival],
        between: Mapping[str, float],
        finished: int | None,
    ) -> Callable[[Measurement], tuple[tuple[float, ...], EarlyEnd | None]]:
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

        def judge(m: Measurement) -> tuple[tuple[float, ...], EarlyEnd | None]:
            now = self._bounded(m)
            values = tuple(b.value for b in now)
            if any(b.value == 0 for b in now):  # no share of it can be told
                return values, None
            found = ((b.value, b.interval(STOPPING_CONFIDENCE)) for b in now)
            if narrow_enough(len(m), m.places) and precise(found, self._spec.measure.precision):
                return values, EarlyEnd(Stop.PRECISE)
            by = domination.by(now, others) if all(b.value > 0 for b in now) else None
            return values, None if by is None else EarlyEnd(Stop.DOMINATED, known[by][0])

        return judge

    def _result(
        self,
        samples: Sequence[Sample],
        verdict: EarlyEnd,
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


def with_energy(m: Measurement, energy: Energy) -> Measurement:
    """Return the measurement with the energy of its tokens' share of the time it was counted in."""
    if not m.throughput or not energy.seconds:
        return WithEnergy.added(m, energy.total)
    seconds = float(m.output_tokens.sum()) / m.throughput
    return WithEnergy.added(m, energy.total / energy.seconds * seconds)


def _cached(b: Bounded) -> Bounded:
    """The same, each interval computed once."""
    return replace(b, interval=cache(b.interval))


@contextmanager
def _as_failure() -> Iterator[None]:
    """Makes a trial's failure of an objective that cannot be computed."""
    try:
        yield
    except ValueError as e:
        raise MeasureError(FailureKind.REQUESTS, str(e)) from e
