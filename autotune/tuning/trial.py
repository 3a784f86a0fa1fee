"""One trial, from its point to an outcome: launched, measured, retried; Optuna is told elsewhere.

The same attempts serve the points of a load map and a crosscheck: a transient failure is retried
once, a failure of the machine ends everything, and any other is final.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

from autotune.bench.drafting import check_drafts
from autotune.bench.looks import Rival
from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.bench.session import Result
from autotune.errors import FailureKind, TrialFailure
from autotune.results.trials import throttled_text
from autotune.serving.interrupts import held_back
from autotune.stats import ESTIMATOR
from autotune.storage.records import Quality, Role, TrialAttrs
from autotune.storage.schema import LaunchRow
from autotune.study.schema import ServerSpec
from autotune.study.space import N, Point, as_int
from autotune.tuning.launcher import CrowdedError, Launcher, LiveServer, no_prelaunch
from autotune.tuning.ledger import Ledger
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import OUTSIDE, At
from autotune.tuning.tools import Tools, real


@dataclass(frozen=True)
class Trial:
    """What is run: a value that any slot can take.

    Attributes:
        number: Optuna's number of the trial.
        point: What is launched.
        attrs: The trial's attributes at its begin.
        rivals: Finished trials of which one may be better in everything.
        between: By objective, the standard deviation of its logarithm between launches.
        searched: Number of points that the rivals are the best of.
        ruled_out: Why it cannot launch, by what earlier launches stated; None: it may.
        slot: Number of the slot that runs it.
    """

    kind: ClassVar[str] = "trial"

    number: int
    point: Point
    attrs: TrialAttrs = field(default_factory=TrialAttrs)
    rivals: Sequence[Rival] = ()
    between: Mapping[str, float] = field(default_factory=dict)
    searched: int = 0
    ruled_out: str | None = None
    slot: int = 0

    @property
    def words(self) -> str:
        """What it is, in texts."""
        return f"trial {self.number}"

    def on_slot(self, slot: int) -> Self:
        """Return the same for another slot."""
        return replace(self, slot=slot)


@dataclass(frozen=True)
class Measured:
    """It has numbers.

    Attributes:
        launch_id: The launch that they are of.
    """

    launch_id: str


@dataclass(frozen=True)
class Failed:
    """It has none, and is not launched again."""

    failure: TrialFailure


@dataclass(frozen=True)
class Infeasible:
    """It was not launched: the rules, or what an earlier launch stated, forbid its point."""

    reason: str


@dataclass(frozen=True)
class MachineFailed:
    """The machine gave way: every other launch would fail, too, and this one is tried again."""

    failure: TrialFailure


Outcome = Measured | Failed | Infeasible | MachineFailed


class Task(Protocol):
    """What is launched until it is measured."""

    @property
    def number(self) -> int:
        """Number of the trial, or id of the load map's point."""

    @property
    def point(self) -> Point:
        """What is launched."""

    @property
    def server(self) -> ServerSpec | None:
        """The server to launch, where it is not the study's own."""

    def log(self, attempt: int) -> str:
        """Return the name of a launch's log."""

    def stage(self, text: str) -> None:
        """Receive the begin of a stage."""

    def measure(self, live: LiveServer) -> None:
        """Measure a server and keep what it gave."""

    def failed(self, failure: TrialFailure, *, retried: bool) -> None:
        """Receive a failed launch that is no failure of the machine."""

    def why_again(self, measured: Sequence[LaunchRow]) -> str | None:
        """Return why a task with these measured launches is measured again; None: it is not."""

    def repeated(self, why: str) -> None:
        """Receive that it is measured again."""


def attempts(
    task: Task,
    launcher: Launcher,
    ledger: Ledger,
    rests: Sequence[float],
    ahead: Callable[[int], Sequence[Point]] = no_prelaunch,
) -> Measured | Failed | MachineFailed:
    """Launch a task until it is measured or has failed for good, from wherever an ended run was.

    Args:
        task: What is launched.
        launcher: Starts and ends its servers.
        ledger: Has the earlier launches.
        rests: Seconds of the interference check before earlier launches on this machine.
        ahead: Returns points to be started together with this one.
    """
    launches = ledger.launches(task.number)
    measured = [x for x in launches if x.values is not None]
    if measured and task.why_again(measured) is None:  # but the run ended before it was told
        return Measured(measured[-1].launch_id)
    kinds = [FailureKind(x.failure_kind) for x in launches if x.failure_kind is not None]
    failed = sum(not kind.of_the_machine for kind in kinds)
    attempt = len(launches)
    while True:
        try:
            launch_id = launcher.run(
                task.number,
                attempt,
                task.point,
                log=task.log(attempt),
                rests=rests,
                measure=task.measure,
                say=task.stage,
                server=task.server,
                then=ahead,
            )
        except CrowdedError:
            attempt += 1
            continue
        except TrialFailure as failure:
            if failure.kind.of_the_machine:  # no fault of the point: it is tried again
                return MachineFailed(failure)
            attempt += 1
            failed += 1
            retried = not failure.kind.is_final(failed)
            task.failed(failure, retried=retried)
            if not retried:
                return Failed(failure)
            continue
        attempt += 1
        measured += [x for x in ledger.launches(task.number) if x.launch_id == launch_id]
        if (why := task.why_again(measured)) is None:
            return Measured(launch_id)
        task.repeated(why)


def quality_of(
    result: Result,
    *,
    disturbed: str | None = None,
    beside: int | None = None,
    weights: Mapping[str, str] | None = None,
) -> Quality:
    """Return what is kept of how a measurement came about.

    Args:
        result: The measurement.
        disturbed: Why the machine was not this server's alone.
        beside: Number of other servers that were idle meanwhile.
        weights: Hashes of the weights that the server was started with.
    """
    looked_up, hits = result.stats.prefix_cache_queries, result.stats.prefix_cache_hits
    seen = result.at_once
    return Quality(
        estimator=ESTIMATOR,
        errors=result.errors,
        requests=result.requests,
        stop=result.stop.name.lower(),
        dominated_by=result.dominated_by,
        warmup_requests=result.warmup_requests,
        steady=result.steady,
        busy=result.busy,
        unanswered=result.unanswered,
        drift=result.drift,
        prefix_cache_share=hits / looked_up if looked_up and hits is not None else None,
        running_peak=None if seen is None else seen.peak,
        running_asked=None if seen is None else seen.asked,
        throttled=None if seen is None else seen.throttled,
        machine=asdict(result.machine),
        energy=None if result.energy is None else asdict(result.energy),
        disturbed=disturbed,
        beside=beside,
        weights=weights or {},
    )


def drafts_note(
    stats: ServerStats, requests: int, server: ServerSpec, point: Point, version: str | None
) -> str | None:
    """Compare the drafts of a measurement with its launch; see :func:`check_drafts`.

    Raises:
        MeasureError: the server drafts although n = 0, or does not although n > 0.
    """
    keys = server.draft_settings(point)
    n = as_int(keys.get(N)) or 0 if server.drafts else 0
    return check_drafts(stats, requests, n, keys, version)


def throttled_note(result: Result) -> str | None:
    """Return what to know of a load that vLLM throttled, in one line; None: it did not."""
    seen = result.at_once
    if seen is None or seen.peak is None or not seen.throttled:
        return None
    return (
        f"{throttled_text(seen.peak, seen.asked)}. It never wins. A larger MNBT or KV cache "
        "may let more run; or measure at a lower workload.max_concurrency"
    )


class TrialRequests(Protocol):
    """Where the requests of a launch are kept."""

    def add(self, launch_id: str, samples: Sequence[Sample]) -> None:
        """Store every request of one phase."""


class TrialLaunches(Protocol):
    """Where the measurements of launches are kept."""

    def measured(
        self,
        launch_id: str,
        stats: ServerStats,
        values: Mapping[str, float],
        intervals: Mapping[str, tuple[float | None, float | None]],
        quality: Mapping[str, Any],
    ) -> None:
        """Keep a complete measurement."""

    def idle_baselines(self, study: str, machine: Mapping[str, Any]) -> list[float]:
        """Return the idle baselines of a study on a machine, oldest first."""


class TrialStore(Protocol):
    """The part of :class:`autotune.storage.store.Store` that a trial writes to."""

    @property
    def requests(self) -> TrialRequests:
        """Requests of all launches."""

    @property
    def launches(self) -> TrialLaunches:
        """Launches of all studies."""


class TrialProgress(Protocol):
    """The part of :class:`autotune.tuning.progress.Progress` that a trial tells."""

    def stage(self, at: At, text: str) -> None:
        """Receive the begin of a stage."""

    def progress(self, at: At, done: int, total: int) -> None:
        """Receive how many requests of a stage are done, of how many at most."""

    def message(self, text: str, at: At = OUTSIDE) -> None:
        """Receive one line that is neither a stage nor a trial."""


class TrialRunner:
    """Runs the trials of one study on one slot, and returns what came of each.

    It writes launches and requests as they happen; what a trial amounts to is for its caller to
    tell.

    Args:
        prepared: The study.
        store: Where requests and measurements are kept.
        ledger: Where launches are written down.
        launcher: Starts and ends the servers; the caller enters it.
        progress: Told of stages, requests and retries.
        weights: Returns the hashes of the weights that are there now, and raises a UserError where
            they are not those of the earlier trials.
        slot: Number of the slot.
        tools: What servers are measured with; None: this machine's.
    """

    def __init__(
        self,
        prepared: Prepared,
        store: TrialStore,
        ledger: Ledger,
        launcher: Launcher,
        progress: TrialProgress,
        weights: Callable[[], dict[str, str]],
        *,
        slot: int = 0,
        tools: Tools | None = None,
    ) -> None:
        self._p = prepared
        self._store = store
        self._ledger = ledger
        self._launcher = launcher
        self._progress = progress
        self._weights = weights
        self._slot = slot
        self._tools = real(tools)

    def run(self, trial: Trial, ahead: Callable[[int], Sequence[Point]] = no_prelaunch) -> Outcome:
        """Bring a trial to its end.

        Args:
            trial: What to run.
            ahead: Returns points to be started together with this one.
        """
        if (why := self._p.infeasible(trial.point) or trial.ruled_out) is not None:
            return Infeasible(why)
        return attempts(_Running(self, trial), self._launcher, self._ledger, self._rests, ahead)

    @cached_property
    def _rests(self) -> list[float]:
        """Seconds of the check before each measured launch of the study on this machine."""
        return self._store.launches.idle_baselines(self._p.spec.name, self._launcher.machine)

    def measure(self, live: LiveServer, trial: Trial) -> None:
        """Warm a server up and measure it; store every request and the objective values."""
        confirms = trial.attrs.role is Role.CONFIRMATION
        workload = self._p.confirmation if confirms else self._p.workload
        at = At(trial.number, self._slot)

        def keep(samples: Sequence[Sample]) -> None:
            with held_back():  # a second Ctrl-C must not lose them
                self._store.requests.add(live.launch_id, samples)

        measuring = self._tools.measuring(
            live.server,
            self._p.spec,
            self._p.objectives,
            keep=keep,
            progress=lambda done, total: self._progress.progress(at, done, total),
        )
        weights = self._weights()  # they may have been exchanged while the study ran

        def begin() -> None:
            live.clock.mark("warm")
            live.event("warm")
            self._progress.stage(at, "measuring")

        self._progress.stage(at, "warming")
        if self._p.spec.workload.open_loop:
            measuring.warm(workload.warmup)
        result = measuring.measure(
            workload,
            live.rest,
            whole=confirms,
            rivals=trial.rivals,
            between=trial.between,
            finished=trial.searched,
            begin=begin,
            asked=self._p.asked(trial.point),
        )
        live.clock.mark("measured")
        note = drafts_note(
            result.stats, result.requests, self._p.spec.server, trial.point, live.version
        )
        if note is not None:
            self._progress.message(f"trial {trial.number}: {note}", at)
        if (note := throttled_note(result)) is not None:
            self._progress.message(f"trial {trial.number} is throttled: {note}", at)
        self._keep(live, result, weights)

    def _keep(self, live: LiveServer, result: Result, weights: Mapping[str, str]) -> None:
        """Write down what a launch measured."""
        quality = quality_of(
            result,
            disturbed=self._tools.disturbed(result.machine, self._rests),
            beside=live.beside,
            weights=weights,
        )
        self._store.launches.measured(
            live.launch_id,
            result.stats,
            result.values,
            {name: (i.low, i.high) for name, i in result.intervals.items()},
            quality.to_json(),
        )
        self._rests.append(live.rest.kernel_s)
        live.event("measured")

    def why_again(self, measured: Sequence[LaunchRow]) -> str | None:
        """Return why a trial is launched once more: its only launch was disturbed."""
        if len(measured) != 1 or not self._p.spec.measure.repeat_disturbed:
            return None
        return Quality.read(measured[-1].quality).disturbed or None

    def say(self, trial: Trial, text: str) -> None:
        """Tell the user of a retry."""
        self._progress.message(f"trial {trial.number}: {text}", At(trial.number, self._slot))

    def stage(self, trial: Trial, text: str) -> None:
        """Tell the user of a stage."""
        self._progress.stage(At(trial.number, self._slot), text)


class _Running:
    """A trial as a task of :func:`attempts`."""

    server = None

    def __init__(self, runner: TrialRunner, trial: Trial) -> None:
        self._runner = runner
        self._trial = trial
        self.number = trial.number
        self.point = trial.point

    def log(self, attempt: int) -> str:
        return f"trial-{self.number:04d}-{attempt}.log"

    def stage(self, text: str) -> None:
        self._runner.stage(self._trial, text)

    def measure(self, live: LiveServer) -> None:
        self._runner.measure(live, self._trial)

    def failed(self, failure: TrialFailure, *, retried: bool) -> None:
        if retried:
            self._runner.say(self._trial, f"{failure.reason}; retrying once")

    def why_again(self, measured: Sequence[LaunchRow]) -> str | None:
        return self._runner.why_again(measured)

    def repeated(self, why: str) -> None:
        self._runner.say(self._trial, f"{why}; measuring again")
