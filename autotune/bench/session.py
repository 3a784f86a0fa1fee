"""The measuring of one running server: warm-up until it is steady, requests until enough is known.

The requests are those of the study, in its order. Trials differ only in how many of them are
measured. A closed loop sends them into a full load, at the study's concurrency: warm-up requests
keep the load full until the server is steady, the measured requests follow without a gap, and
after the last one warm-up requests follow again until all measured ones have ended. Counters,
energy and the load of the machine are counted from the first measured request to the end of the
last one. Without a full load at the beginning the first requests would be a burst that no user
sees. With four measured requests for each concurrent one, p95 would consist of that burst.

Measuring ends when every objective is known to the study's ``precision``, when another trial is
certainly better in all of them, or with the last request (:mod:`autotune.stats.stopping`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.bench.counting import Counting, gpus_of_server
from autotune.bench.interference import IdleBaseline, LoadWatch, MachineState
from autotune.bench.judging import Judge
from autotune.bench.looks import EarlyEnd, Look, Rival
from autotune.bench.measured_loop import MeasuredLoop, Warmup
from autotune.bench.running import AtOnce, GaugeReader, RunningWatch
from autotune.bench.sample import Sample
from autotune.bench.sending import blamed, send
from autotune.bench.server_metrics import Counters, ServerStats, difference, scrape
from autotune.bench.workload import Request, Workload
from autotune.engine.active_requests import Asked
from autotune.errors import FailureKind, MeasureError
from autotune.serving.nvml import Energy, EnergyMeter
from autotune.stats import (
    STOPPING_CONFIDENCE,
    Interval,
    Looks,
    drift,
    first_look,
    look_sizes,
    standard_error,
)
from autotune.stats.stopping import Stop
from autotune.study.schema import StudySpec
from objectives import Objective

if TYPE_CHECKING:
    import psutil

    from autotune.serving.server import Server


@dataclass(frozen=True)
class Result:
    """Result of measuring one launch.

    Attributes:
        values: Value of each objective by its name, in the objective's unit.
        intervals: 95 % interval of each objective within this launch, by its name.
        errors: Standard error of each value's logarithm within this launch; None: unknown.
        stats: Changes of the server's own counters over the measurement.
        requests: Number of measured requests.
        stop: Reason why there are not more.
        dominated_by: Number of the trial that is better in everything, with ``Stop.DOMINATED``.
        warmup_requests: Number of requests before the measurement.
        steady: Whether the server was steady; False: the warm-up ended with its last prompt.
        busy: Whether the load of a closed loop was full from the first measured request to the end
            of the last one.
        unanswered: Number of warm-up requests that were under way until the last measured one had
            ended.
        drift: Change of speed from the first to the last requests, as a share, where it is more
            than chance explains; None: it is not.
        machine: State of the machine during the measurement.
        energy: Energy of the server's GPUs meanwhile; None: there are none, or none reports it.
        at_once: Requests that ran at once meanwhile; None: an open loop, or they were not watched.
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
    at_once: AtOnce | None = None


class Measuring:
    """One server under the load of one study.

    Args:
        server: A running server that has answered ``/health``.
        spec: The study.
        objectives: The objectives to compute.
        keep: Stores the requests of each phase, also those of a phase that was interrupted.
        progress: Called after each request with the number of requests that are done, and the
            largest number that there may be.
        known: Processes of this run besides this one and the server's: their load is not foreign.
    """

    def __init__(
        self,
        server: Server,
        spec: StudySpec,
        objectives: Sequence[Objective],
        *,
        keep: Callable[[Sequence[Sample]], None],
        progress: Callable[[int, int], None],
        known: Sequence[psutil.Process] = (),
    ) -> None:
        self._server = server
        self._known = known
        self._spec = spec
        self._objectives = objectives
        self._judge = Judge(spec, objectives)
        self._keep = keep
        self._progress = progress
        self._warmup = Warmup(spec.workload.places or spec.workload.max_concurrency or 1)

    def warm(self, requests: Sequence[Request]) -> None:
        """Send warm-up requests until their rates are steady, or all were sent; wait for them.

        This warms an open loop. A closed loop is not empty between its warm-up and its measurement,
        so :meth:`measure` warms it.

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
        idle: IdleBaseline,
        *,
        whole: bool,
        rivals: Sequence[Rival] = (),
        between: Mapping[str, float] | None = None,
        finished: int | None = None,
        until_steady: bool = True,
        begin: Callable[[], None] = lambda: None,
        shadow: Callable[[Look], None] | None = None,
        asked: Asked | None = None,
    ) -> Result:
        """Warm a closed loop up, and send the measured requests.

        Args:
            workload: Requests to send; in an open loop its warm-up was sent before.
            idle: Idle baseline before the launch.
            whole: Whether to measure every request, even when enough is known before.
            rivals: Finished trials of which one may be better in everything.
            between: Standard deviation of the logarithm between launches, by objective name; a
                missing one is the usual one.
            finished: Number of trials of which the rivals are the best; None: the rivals are all.
            until_steady: Whether the warm-up ends when the rates are steady; False: all of it is
                sent.
            begin: Called when the first measured request is sent.
            shadow: Called with every look, and no look ends the measuring.
            asked: Number of requests that should run at once in a closed loop; None: they are not
                watched.

        Raises:
            TrialFailure: the server died, a request failed, or an objective cannot be computed.
        """
        load = self._spec.workload
        most = len(workload.measured)
        start = first_look(self._spec.measure.min_prompts, load.places)
        sizes = [most] if whole else look_sizes(start, most)
        judge = self._judge.at_looks(sizes, rivals, between or {}, finished)
        busy = load.keeps_busy(len(workload.warmup))
        fills = load.places is not None and (busy or most >= load.places)
        counting = self._counting(idle, asked if fills else None)
        earlier = self._warmup.requests

        def ask(size: int) -> EarlyEnd | None:
            if not loop.all_ok or not counting.begun:
                return None
            m = self._judge.measurement(loop.first(size), busy, counting.energy())
            values, verdict = judge(m)
            if shadow is None:
                return verdict
            shadow(Look(size, loop.sent, values, verdict))
            return None

        def at_first() -> None:
            counting.begin(in_thread=load.places is not None)
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

        energy, stats = self._counted(loop, counting, seen)
        return self._result(
            loop.first(loop.looks.size),
            loop.looks.verdict or EarlyEnd(Stop.ALL),
            busy=busy,
            unanswered=loop.unanswered,
            stats=stats,
            machine=counting.machine,
            energy=energy,
            at_once=counting.at_once,
        )

    def _counted(
        self, loop: MeasuredLoop, counting: Counting, seen: Callable[[Sample], None]
    ) -> tuple[Energy | None, ServerStats]:
        """Send the loop's requests; return the energy and the changes of the server's counters."""
        with counting:
            try:
                loop.begin()
                send(
                    self._server,
                    self._spec.workload,
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
        return energy, stats

    def _counting(self, idle: IdleBaseline, asked: Asked | None) -> Counting:
        owned = self._server.processes if self._server.known_processes else None
        meter = EnergyMeter(sample=self._judge.metered)
        plan = self._server.plan
        running = (
            None if asked is None else RunningWatch(asked, GaugeReader(plan.base_url, plan.api_key))
        )
        return Counting(
            self._scrape, LoadWatch(idle, owned, self._known), meter, gpus_of_server(idle), running
        )

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
        at_once: AtOnce | None,
    ) -> Result:
        measurement = self._judge.measurement(samples, busy, energy)
        bounded = self._judge.bounded(measurement)
        # stopping because intervals are narrow costs coverage; the wider level keeps 95 %
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
            at_once=at_once,
        )

    def _scrape(self) -> Counters:
        plan = self._server.plan
        try:
            return scrape(plan.base_url, plan.api_key)
        except MeasureError as e:
            raise blamed(self._server, e) from e
