"""Slots in virtual time: an executor over a world, below the driver that `autotune run` has.

Nothing is launched and nobody waits. A launch ends after the stages of a launch that was measured,
in a committed study; its numbers are those of a world (`surfaces.py`). The driver, the planner, the
search, the confirmation and the database (a temporary SQLite file) are autotune's own.
"""

from __future__ import annotations

import heapq
import json
import os
import pickle
import sqlite3
import statistics
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from surfaces_base import Outcome as Numbers
from surfaces_base import World

from autotune.bench.objectives import study_objectives
from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.bench.workload import build_workload
from autotune.engine.command import LaunchPlan
from autotune.engine.launch_stages import Stages
from autotune.engine.probe import VllmInfo
from autotune.errors import TrialFailure
from autotune.results.views import StudyView, TrialView
from autotune.serving.process_tree import Identity, boot_id
from autotune.serving.slots import Slot
from autotune.stats import ESTIMATOR
from autotune.storage.location import Database
from autotune.storage.records import Quality, Role
from autotune.storage.store import Store
from autotune.study.files import parse_study
from autotune.study.space import Point
from autotune.tuning import study_begin, study_run
from autotune.tuning.comparable import WeightsCheck
from autotune.tuning.local_slots import Served, served_by
from autotune.tuning.planner import Planner
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import OUTSIDE, At, Progress
from autotune.tuning.situation import Budget
from autotune.tuning.slot_messages import Call
from autotune.tuning.supervise import StopReason, run_on
from autotune.tuning.tools import Tools
from autotune.tuning.trial import Failed, Measured, Outcome, Trial

RESULTS = Path(__file__).resolve().parents[1] / "studies" / "results"
H200 = Path(__file__).parent / "data" / "stages_h200.json"
VERSION = "0.32.0"  # of vLLM, as the worlds' rules have it
DRIVER_S = 0.3  # the driver's own part of a trial, of which it does one at a time
NAME = "virtual"
MACHINE = {"cpu": "virtual", "cores": 1, "memory_gib": 1.0, "gpus": []}
_NORMAL = 1.96


# -- stages ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """Seconds of one measured launch.

    Attributes:
        launching: From the begin to the first answer of ``/health``.
        warming: Until the measured requests.
        measuring: Until the last of them.
        stopping: Until the server's processes are gone.
        rate: Its tok/s over the median of its study.
        confirms: Whether it is of a confirmation.
    """

    launching: float
    warming: float
    measuring: float
    stopping: float
    rate: float
    confirms: bool


def stages(name: str) -> list[Stage]:
    """Return the stages of all measured launches of a committed study.

    Args:
        name: Folder in ``studies/results``.
    """
    file = RESULTS / name / "autotune.db"
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as c:
        rows = c.execute(
            'SELECT l.launch_id, l."values", a.value_json IS NOT NULL FROM autotune_launches l '
            "JOIN studies s ON s.study_name = l.study "
            "JOIN trials t ON t.study_id = s.study_id AND t.number = l.trial "
            "LEFT JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = 'confirms' "
            "WHERE l.measured_at IS NOT NULL AND l.failure_kind IS NULL ORDER BY l.planned_at"
        ).fetchall()
        found = []
        for launch, values, confirms in rows:
            at = dict(
                c.execute("SELECT what, at FROM autotune_events WHERE launch_id = ?", (launch,))
            )
            found.append((at, float(json.loads(values)["throughput"]), bool(confirms)))
    median = statistics.median(rate for _, rate, _ in found)
    return [
        Stage(
            at["healthy"] - at["launching"],
            at["warm"] - at["healthy"],
            at["measured"] - at["warm"],
            at["stopped"] - at["measured"],
            rate / median,
            confirms,
        )
        for at, rate, confirms in found
    ]


def stages_h200() -> tuple[list[Stage], float]:
    """Return the stages of `H200`, and how much longer a start takes for each that starts with it.

    In the search every point compiles (cold); the confirmation starts points that were started.
    """
    found = json.loads(H200.read_text())
    alone, most = found["start_alone_s"], statistics.fmean(found["start_of_four_s"]["cold"])
    rest = (0.0, found["measuring_s"], found["stop_s"], 1.0)
    each = (most / alone["cold"] - 1) / 3
    return [Stage(alone["cold"], *rest, False), Stage(alone["warm"], *rest, True)], each


def constant(seconds: float) -> list[Stage]:
    """Return stages that add up to a number of seconds, for trials of the search only."""
    return [Stage(0.45 * seconds, 0.05 * seconds, 0.49 * seconds, 0.01 * seconds, 1.0, False)]


def slot_of(number: int, count: int) -> Slot:
    """Return a slot with a core of its own."""
    return Slot(number, count, (number,))


# -- the executor ----------------------------------------------------------------------------------


@dataclass
class Clock:
    """Virtual time, s."""

    now: float = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@dataclass(frozen=True)
class Run:
    """A trial on its slot.

    Attributes:
        trial: The trial.
        begin: When its first launch began, s.
        end: When its last one had ended, s.
        stage: Stages of each of its launches.
        numbers: What they gave.
        attempts: Number of launches: two where a failure may pass.
    """

    trial: Trial
    begin: float
    end: float
    stage: Stage
    numbers: Numbers
    attempts: int


@dataclass
class VirtualSlots:
    """The executor of slots whose launches take virtual time; see :class:`Executor`.

    Args:
        world: Answers.
        slots: Number of slots.
        stages: Stages to draw from.
        served: What the process of a slot would call, by name.
        seed: Of a launch's stages, luck and noise, together with the trial's number.
        clock: The time, which this moves on.
        driver_s: What the driver takes for a trial, s; it begins one after the other.
        sends: Whether calls are pickled, as they are between processes, and progress is told.
        requests: Number of measured requests that are kept of a launch, and of their chunks.
        ended: Told of each trial that has ended.
        ahead: As `server.ahead`: so many of the next points start together with a launch on its
            slot, from the first one on, and there is room for them. One that does not come up is
            launched again when its trial begins.
        together: How much longer each of them makes the start, as a share.
    """

    world: World
    slots: int
    stages: Sequence[Stage]
    served: Served
    seed: int
    clock: Clock
    driver_s: float = DRIVER_S
    sends: bool = False
    requests: tuple[int, int] = (8, 8)
    ended: Callable[[Run], None] = lambda run: None
    ahead: int = 0
    together: float = 0.0
    _begun: list[tuple[Trial, float]] = field(default_factory=list)
    _prelaunched: dict[int, list[Point]] = field(default_factory=dict)
    _free: dict[int, float] = field(default_factory=dict)
    _under_way: list[tuple[float, int, Run]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # the mean of no rates would be a warning; where nothing launches, nothing asks for it
        places = self.world.launchable()
        self._rate = float(np.exp(np.median(self.world.logs[places, 0]))) if places else 1.0

    @property
    def capacity(self) -> int:
        """How many more trials may be submitted now."""
        return self.slots - len(self._begun) - len(self._under_way)

    def submit(self, trial: Trial) -> None:
        """Begin a trial, as soon as its slot is free."""
        if not self.capacity:
            raise RuntimeError("no slot is free")
        self.clock.now += self.driver_s
        self._begun.append((trial, self.clock.now))

    def completed(self) -> list[tuple[Trial, Outcome]]:
        """Go on to the end of the next trial, and return it with those that ended by then."""
        for trial, at in self._begun:  # all slots are busy before one asks what follows
            run = self._run(trial, max(at, self._free.get(trial.slot, 0.0)))
            self._free[trial.slot] = run.end
            heapq.heappush(self._under_way, (run.end, trial.number, run))
        self._begun.clear()
        if not self._under_way:
            return []
        self.clock.now = max(self.clock.now, self._under_way[0][0])
        found = []
        while self._under_way and self._under_way[0][0] <= self.clock.now:
            run = heapq.heappop(self._under_way)[2]
            found.append((run.trial, self._written(run)))
            self.ended(run)
        return found

    def cancel(self) -> None:
        """Drop everything."""
        self._begun.clear()
        self._under_way.clear()

    def close(self) -> None:
        """Drop everything; nothing was started."""
        self.cancel()

    def _run(self, trial: Trial, begin: float) -> Run:
        rng = np.random.default_rng([self.seed, trial.number])
        numbers = self.world.launch(trial.point, rng)
        confirms = trial.attrs.role is Role.CONFIRMATION
        alike = [x for x in self.stages if x.confirms == confirms] or self.stages
        drawn = alike[int(rng.integers(len(alike)))]
        launching = self._start(trial, drawn.launching, failed=numbers.values is None)
        if numbers.values is None:
            assert numbers.failure is not None
            attempts = 1 if numbers.failure.is_final(1) else 2
            seconds = attempts * (launching + drawn.stopping)
            return Run(trial, begin, begin + seconds, drawn, numbers, attempts)
        # as many tokens as that launch measured, at this point's speed
        measuring = drawn.measuring * drawn.rate * self._rate / numbers.values[0]
        stage = replace(drawn, launching=launching, measuring=measuring, confirms=confirms)
        seconds = stage.launching + stage.warming + stage.measuring + stage.stopping
        return Run(trial, begin, begin + seconds, stage, numbers, 1)

    def _start(self, trial: Trial, alone: float, *, failed: bool) -> float:
        """Return the seconds until a trial's server is up, with those that are started with it."""
        there = self._prelaunched.setdefault(trial.slot, [])
        if trial.point in there:
            there.remove(trial.point)
            if not failed:
                return 0.0
        if not self.ahead:
            return alone
        known, new = [*there], []
        for point in self._call("ahead", trial.number, self.ahead):
            if point in known:
                known.remove(point)
            else:
                new.append(point)
        there += new
        return alone * (1 + self.together * len(new))

    # -- what the process of a slot would have asked the driver to write ---------------------------

    def _call(self, name: str, *args: Any) -> Any:
        if self.sends:
            args = pickle.loads(pickle.dumps(Call(name, args, 0))).args  # noqa: S301 – our own
        answer = self.served[name](*args)
        return pickle.loads(pickle.dumps(answer)) if self.sends else answer  # noqa: S301

    def _written(self, run: Run) -> Outcome:
        trial, at = run.trial, At(run.trial.number, run.trial.slot)
        self._call("launches", trial.number)
        for attempt in range(run.attempts):
            launch = uuid.UUID(int=(trial.number << 8) + attempt).hex
            self._call("check")
            plan = LaunchPlan(("vllm", "serve", "org/model"), {}, {}, "", 8000, "org/model", "m")
            machine = {**MACHINE, "slot": slot_of(trial.slot, self.slots).stored()}
            self._call("plan", launch, trial.number, attempt, plan, machine, Path("log"))
            self._call("event", launch, trial.number, "launching", run.begin)
            self._call("stage", at, "launching")
            self._call("started", Identity(launch, boot_id()))
            if run.numbers.values is None:
                assert run.numbers.failure is not None
                failure = TrialFailure(run.numbers.failure, "the world says so")
                self._call("failed", launch, failure, [])
            else:
                self._measured(run, launch, at)
            self._call("ended", launch, 0, 0)
            self._call("event", launch, trial.number, "stopped", run.end)
            self._call("first_request", launch)
            self._call("time", launch, _stages(run.stage), None)
        if run.numbers.values is None:
            return Failed(failure)
        return Measured(launch)

    def _measured(self, run: Run, launch: str, at: At) -> None:
        number, count = run.trial.number, self.requests[0]
        healthy = run.begin + run.stage.launching
        self._call("ready", launch, VERSION)
        self._call("event", launch, number, "healthy", healthy)
        weights = self._call("weights")
        self._call("stage", at, "warming")
        self._call("event", launch, number, "warm", healthy + run.stage.warming)
        self._call("stage", at, "measuring")
        for done in range(1, count + 1) if self.sends else ():
            self._call("progress", at, done, count)
        for phase, several in (("warmup", 2), ("measure", count)):
            self._call("keep", launch, _samples(phase, several, self.requests[1]))
        values = dict(zip(("throughput", "p95_latency"), run.numbers.values or (), strict=True))
        errors = [float(v) ** 0.5 for v in run.numbers.log_variances or ()]
        quality = Quality(
            estimator=ESTIMATOR,
            errors=dict(zip(values, errors, strict=True)),
            requests=count,
            stop="all",
            warmup_requests=2,
            steady=True,
            busy=True,
            machine={"rest": {"kernel_s": 0.05}, "cores": 1},
            weights=weights,
        )
        intervals = {
            name: (v * float(np.exp(-_NORMAL * e)), v * float(np.exp(_NORMAL * e)))
            for (name, v), e in zip(values.items(), errors, strict=True)
        }
        per_position = run.numbers.acceptance_per_position
        stats = ServerStats(
            None, None, None, run.numbers.acceptance_length, per_position, None, None, None
        )
        self._call("measured", launch, stats, values, intervals, quality.to_json())
        self._call("event", launch, number, "measured", run.end - run.stage.stopping)


def _stages(stage: Stage) -> Stages:
    return Stages(
        {"spawn": stage.launching, "warm-up": stage.warming, "measuring": stage.measuring}
    )


def _samples(phase: str, count: int, chunks: int) -> list[Sample]:
    times = tuple(0.01 * k for k in range(1, chunks + 1))
    return [
        Sample(i, phase, 0.0, 0.1 * i, 0.01, 0.1 * i + times[-1], 16, chunks, "ok", None, times)
        for i in range(count)
    ]


# -- the driver over it ----------------------------------------------------------------------------


class Quiet(Progress):
    """Shows nothing."""

    def study(self, view: StudyView, database: Database) -> None:
        """Show nothing."""

    def begin(self, at: At, position: int, point: Point) -> None:
        """Show nothing."""

    def stage(self, at: At, text: str) -> None:
        """Show nothing."""

    def progress(self, at: At, done: int, total: int) -> None:
        """Show nothing."""

    def trial(self, at: At, trial: TrialView) -> None:
        """Show nothing."""

    def message(self, text: str, at: At = OUTSIDE) -> None:
        """Show nothing."""

    def waiting(self, text: str) -> AbstractContextManager[None]:
        """Wait for nothing."""
        return nullcontext()

    def download(self, stage: str, done: float) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class InWorld(Prepared):
    """A study whose rules and weights are a world's."""

    world: World | None = None

    def infeasible(self, point: Point) -> str | None:
        """Return why the rules of the world forbid a point, or None."""
        assert self.world is not None
        return self.world.infeasible(point)

    def weights(self) -> dict[str, str]:
        """Return nothing: there are none."""
        return {}


def prepared(world: World, folder: Path, method: str = "gp") -> InWorld:
    """Return the study of a world's space, with the defaults of a study file."""
    study = {
        "name": NAME,
        "server": {
            "model": "org/model",
            "speculative": {"method": "dflash", "model": "org/draft"},
        },
        "space": {k: p.model_dump(mode="json") for k, p in world.space.params.items()},
        "workload": {
            "random": {"input_len": 16},
            "output_len": 12,
            "num_prompts": 8,
            "max_concurrency": 1,
        },
        "search": {"method": method},
    }
    text = yaml.safe_dump(study, sort_keys=False)
    loaded = parse_study(text, folder / f"{NAME}.yaml", check_files=False)
    load = build_workload(loaded.spec.workload, folder)
    info = VllmInfo(VERSION, "vllm", None, "cpu", None, (), ())
    return InWorld(loaded, info, load, load, study_objectives(loaded), lambda ref: ref, world=world)


class Driver(study_run._Driver):
    """The driver of `autotune run`, with another executor.

    Args:
        study: The study.
        store: Its database.
        progress: Told of what happens.
        clock: The time.
        slots: Number of slots.
        make: Makes the executor from what its slots may call.
    """

    def __init__(
        self,
        study: InWorld,
        store: Store,
        progress: Progress,
        clock: Clock,
        slots: int,
        make: Callable[[Served], VirtualSlots],
    ) -> None:
        of_host = [slot_of(k, slots) for k in range(slots)] if slots > 1 else ()
        super().__init__(study, store, None, progress, Tools(clock=clock), of_host, None)
        self._make, self._world = make, study.world

    def make_planner(self, seed: int) -> Planner:
        """Return the planner, which knows the world's classes of points."""
        known = mock.Mock()
        known.return_value.alike.return_value = self._world and self._world.alike
        with mock.patch.object(study_begin, "families_of", known):
            return super().make_planner(seed)

    def make_executor(self, weights: WeightsCheck) -> VirtualSlots:
        """Return the executor."""
        served = served_by(self.store, self.ledger, self.progress, weights.of_launch)
        ahead = {"ahead": lambda number, most: self.upcoming(most, self.taken[number])}
        return self._make({**served, **ahead})


@contextmanager
def temporary() -> Iterator[Path]:
    """Yield a folder, in memory if there is one."""
    memory = "/dev/shm"  # noqa: S108 – a private folder is made in it
    where = memory if os.access(memory, os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix="autotune-", dir=where) as folder:
        yield Path(folder)


def run(
    world: World,
    folder: Path,
    trials: int,
    seed: int,
    clock: Clock,
    slots: int,
    make: Callable[[Served], VirtualSlots],
    *,
    method: str = "gp",
    confirm: int | None = None,
    stop_below: float | None = None,
    progress: Progress | None = None,
    look: Callable[[Driver], None] = lambda driver: None,
) -> StopReason:
    """Run a whole study in virtual time.

    Args:
        world: Answers.
        folder: Gets the database.
        trials: As of `autotune run`.
        seed: Of the study.
        clock: The time.
        slots: Number of slots.
        make: Makes the executor from what its slots may call.
        method: Of the search.
        confirm: Trials that are held back for the confirmation; None: as the study does.
        stop_below: As of :func:`autotune.tuning.study_run.run_study`.
        progress: Told of what happens; None: nobody.
        look: Gets the driver in the end.
    """
    shown = Quiet() if progress is None else progress
    study = prepared(world, folder, method)

    def go(store: Store) -> StopReason:
        driver = Driver(study, store, shown, clock, slots, make)
        held = study.spec.budget.confirm_of(trials) if confirm is None else confirm
        driver.open(Budget(trials, held), seed, stop_below, ())
        with driver.launcher:
            reason = driver.go()
        look(driver)
        return reason

    return run_on(folder / "autotune.db", shown, go)
