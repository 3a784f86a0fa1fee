"""Measures one running server: warm-up until it is steady, then requests until enough is known.

The requests are those of the study, in its order; what differs between trials is only how many of
them are sent. Sending ends when every objective is known to the study's ``precision``, when another
trial is certainly better in all of them, or with the last request
(:mod:`autotune.measure.stopping`). Requests under way at that moment are waited for and count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

from autotune.canary import GPU_OURS_MIB, LoadWatch, MachineState, Rest, read_gpus
from autotune.errors import FailureKind, MeasureError, TrialFailure
from autotune.load import (
    Counters,
    Request,
    Sample,
    ServerStats,
    Workload,
    difference,
    run_phase,
    scrape,
)
from autotune.measure import (
    STOPPING_CONFIDENCE,
    Bounded,
    Domination,
    Interval,
    Measurement,
    drift,
    look_sizes,
    precise,
    warm_from,
)
from autotune.nvml import Energy, EnergyMeter
from autotune.serving import Server
from autotune.spec import StudySpec, WorkloadSpec
from objectives import Objective, WithEnergy

# A server whose requests fail may be about to end: the API process outlives its engine for a bit.
DYING_S = 3.0
# The two clocks that tell a machine's sleep are not read at the same moment.
MOST_ASLEEP_S = 0.5
# Standard deviation between launches that an early end reckons with at least: few launches tell
# it badly, and 5 to 10 % are usual (vLLM issue #53436).
LEAST_BETWEEN = 0.05


class Stop(StrEnum):
    """Why the measuring of a trial ended; shown to the user."""

    ALL = "every request was sent"
    PRECISE = "the intervals are narrow enough"
    DOMINATED = "another trial is better in everything"


@dataclass(frozen=True)
class Rival:
    """A finished trial that the running one is compared with.

    Attributes:
        trial: Its number.
        measurement: What was measured of it.
    """

    trial: int
    measurement: Measurement


@dataclass(frozen=True)
class Result:
    """What one launch gave.

    Attributes:
        values: By objective name, in its unit.
        intervals: 95 % intervals within this launch, by objective name.
        stats: The server's own counters over the measurement.
        requests: Measured requests.
        stop: Why there are not more.
        dominated_by: The trial that is better in everything, with ``Stop.DOMINATED``.
        warmup_requests: Requests before the measurement.
        steady: False: the warm-up ended with its last prompt, not with a steady server.
        drift: How much faster or slower, as a share, the last requests were than the first, where
            that is more than chance explains; None: it is not.
        machine: The machine while it was measured.
        energy: What the server's GPUs took meanwhile; None: it has none, or they do not tell.
    """

    values: dict[str, float]
    intervals: dict[str, Interval]
    stats: ServerStats
    requests: int
    stop: Stop
    dominated_by: int | None
    warmup_requests: int
    steady: bool
    drift: float | None
    machine: MachineState
    energy: Energy | None = None

    def quality(self) -> dict[str, Any]:
        """What the database keeps beside the numbers, as plain data."""
        looked_up, hits = self.stats.prefix_cache_queries, self.stats.prefix_cache_hits
        return {
            "requests": self.requests,
            "stop": self.stop.name.lower(),
            "dominated_by": self.dominated_by,
            "warmup_requests": self.warmup_requests,
            "steady": self.steady,
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
        self._warmup_requests = 0
        self._steady = True

    def warm(self, requests: Sequence[Request]) -> None:
        """Sends warm-up requests until their rates are steady, or there are no more.

        Raises:
            TrialFailure: the server died, or a request failed.
        """
        rates: list[float] = []
        places = self._spec.workload.max_concurrency or 1
        self._steady = not requests

        def seen(sample: Sample) -> None:
            # those under way when it became steady end on a server that empties, and are faster
            if not self._steady and sample.output_tokens:
                rates.append(sample.output_tokens / (sample.end - sample.start))
                self._steady = warm_from(rates, places) is not None

        samples = self._send(
            requests, [0.0] * len(requests), "warmup", seen, lambda: not self._steady
        )
        self._warmup_requests = len(samples)

    def measure(
        self,
        workload: Workload,
        rest: Rest,
        *,
        whole: bool,
        rivals: Sequence[Rival] = (),
        between: Mapping[str, float] | None = None,
    ) -> Result:
        """Sends the measured requests.

        Args:
            workload: What to send.
            rest: The machine before the launch.
            whole: Send every request, whatever is known before.
            rivals: Finished trials of which one may be better in everything.
            between: By objective, what is known of the standard deviation of its logarithm between
                launches.

        Raises:
            TrialFailure: the server died, a request failed, or an objective cannot be computed.
        """
        most = len(workload.measured)
        looks = [] if whole else look_sizes(self._spec.measure.min_prompts, most)
        domination = Domination(
            len(looks),
            [o.direction for o in self._objectives],
            [max(LEAST_BETWEEN, (between or {}).get(o.name, 0.0)) for o in self._objectives],
            self._spec.measure.dominated_error,
        )
        metered = any(o.needs_energy for o in self._objectives)
        known_rivals = [
            (r, self._bounded(r.measurement))
            for r in rivals
            if not metered or isinstance(r.measurement, WithEnergy)
        ]
        known_rivals = [(r, b) for r, b in known_rivals if all(x.value > 0 for x in b)]
        others = [b for _, b in known_rivals]
        gpus = _gpus_of_server(rest)
        done: list[Sample] = []
        stop, dominated_by = Stop.ALL, None

        def seen(sample: Sample) -> None:
            nonlocal stop, dominated_by
            done.append(sample)
            if stop is not Stop.ALL or len(done) not in looks or len(done) == most:
                return
            if any(s.status != "ok" for s in done):
                return
            now = self._bounded(self._measurement(done, meter.read().of(gpus), whole=False))
            if any(b.value == 0 for b in now):  # no share of it can be told
                return
            known = ((b.value, b.interval(STOPPING_CONFIDENCE)) for b in now)
            if precise(known, self._spec.measure.precision):
                stop = Stop.PRECISE
                return
            by = None
            if domination.alpha and all(b.value > 0 for b in now):
                by = domination.by(now, others)
            if by is not None:
                stop, dominated_by = Stop.DOMINATED, known_rivals[by][0].trial

        before = self._scrape()
        owned = self._server.processes if self._server.known_processes else None
        with LoadWatch(rest, owned) as watch, EnergyMeter(sample=metered) as meter:
            samples = self._send(
                workload.measured,
                workload.arrivals,
                "measure",
                seen,
                lambda: stop is Stop.ALL,
            )
            energy = meter.read().of(gpus)
        stats = difference(before, self._scrape())
        if not self._server.alive():
            raise self._server.failure(FailureKind.CRASH, "the server died after the last request")
        measurement = self._measurement(samples, energy)
        bounded = self._bounded(measurement)
        # wider where narrowness was what ended it, or fewer than 95 % would hold
        confidence = STOPPING_CONFIDENCE if stop is Stop.PRECISE else 0.95
        intervals = {
            o.name: b.interval(confidence) for o, b in zip(self._objectives, bounded, strict=True)
        }
        rates = measurement.output_tokens / (measurement.end - measurement.start)
        return Result(
            values={o.name: b.value for o, b in zip(self._objectives, bounded, strict=True)},
            intervals={
                o.name: intervals[o.name]
                for o in self._objectives
                if o.interval or intervals[o.name].low is not None
            },
            stats=stats,
            requests=len(samples),
            stop=stop,
            dominated_by=dominated_by,
            warmup_requests=self._warmup_requests,
            steady=self._steady,
            drift=drift(rates.tolist()),
            machine=watch.state,
            energy=energy,
        )

    def _scrape(self) -> Counters:
        plan = self._server.plan
        try:
            return scrape(plan.base_url, plan.api_key)
        except MeasureError as e:
            raise blamed(self._server, e) from e

    def _measurement(
        self, samples: Sequence[Sample], energy: Energy | None, *, whole: bool = True
    ) -> Measurement:
        """With its energy; not ``whole``: requests that are still under way took a part of it."""
        m = Measurement.of(samples, self._spec.workload.latency_origin)
        if energy is None:
            return m
        if whole or not m.throughput:
            return WithEnergy.added(m, energy.total)
        seconds = float(m.output_tokens.sum()) / m.throughput
        return WithEnergy.added(m, energy.total / energy.seconds * seconds)

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

    def _send(
        self,
        requests: Sequence[Request],
        arrivals: Sequence[float],
        phase: str,
        seen: Callable[[Sample], None],
        more: Callable[[], bool],
    ) -> tuple[Sample, ...]:
        """One phase of requests, kept also when it is interrupted.

        Raises:
            TrialFailure: see :func:`send`.
        """
        done: list[Sample] = []

        def on_done(sample: Sample) -> None:
            done.append(sample)
            self._progress(len(done), len(requests))
            seen(sample)

        try:
            return send(self._server, self._spec.workload, requests, arrivals, phase, on_done, more)
        finally:
            self._keep(done)


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
) -> tuple[Sample, ...]:
    """One phase of requests; arguments as of :func:`autotune.load.run_phase`.

    Returns:
        The sent requests in their order, all of them ok.

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
