"""One launch of a server, from the plan to the proof that it is gone, with all of it written down.

A launch is in the ledger before its process exists, and its end is only after it is dead; so
however this process ends, the next one knows what to look for. Studies, load maps and crosschecks
all launch by this.

With `server.ahead` the servers of the next points are started together with the current one, since
several starts at once take little longer than one where there are cores enough (eight cold ones on
an H200: as long as one). All are up before anything is measured, and then idle: a start never runs
during a measurement. One that does not come up in company is launched again alone when its trial
begins, so no trial fails for the company it kept.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from autotune.bench.interference import IdleBaseline
from autotune.engine.command import LaunchPlan, free_port, plan_launch
from autotune.engine.compile_cache import compile_cache_of
from autotune.engine.launch_stages import StageClock, head_of, stages_of
from autotune.errors import FailureKind, LaunchError, TrialFailure
from autotune.serving.logs import LogFolder
from autotune.serving.machine import describe_machine
from autotune.serving.server import Server
from autotune.serving.slots import Slot
from autotune.serving.warm_start import WarmStart
from autotune.storage.schema import NO_TRIAL
from autotune.study.schema import ServerSpec
from autotune.study.space import Point
from autotune.tuning.ledger import Ledger
from autotune.tuning.prepare import Prepared
from autotune.tuning.room import Room
from autotune.tuning.tools import Tools, real

# Reasons for which a server may fail because others start with it.
_CROWDED = {
    FailureKind.OOM_LOAD,
    FailureKind.OOM_CAPTURE,
    FailureKind.KV_CACHE,
    FailureKind.OOM,
}


class CrowdedError(Exception):
    """The first server had too little memory next to others: launch it again, alone."""


def no_prelaunch(_most: int) -> Sequence[Point]:
    """Return nothing: no point after this one is known."""
    return ()


def _port(slot: Slot | None, taken: Container[int]) -> int:
    """Return a free port that no other server takes, not of another slot either."""
    free = (port for port in iter(free_port, None) if port not in taken)
    return next(port for port in free if slot is None or slot.owns_port(port))


def _fork_server_log(slot: Slot | None) -> str:
    """Return the name of the log of what warm starts are forked from."""
    return "fork-server.log" if slot is None else f"fork-server-{slot.number}.log"


@dataclass(frozen=True)
class LiveServer:
    """A healthy server, for as long as it is measured.

    Attributes:
        server: The server.
        launch_id: Id of its launch.
        version: vLLM's version, as the server told it; None: it did not.
        rest: The machine before the server, or any that was started together with it.
        clock: Takes the marks ``warm`` and ``measured``.
        event: Writes down what happened to the server.
        beside: Number of other servers that are idle meanwhile.
    """

    server: Server
    launch_id: str
    version: str | None
    rest: IdleBaseline
    clock: StageClock
    event: Callable[[str], None]
    beside: int


@dataclass
class _Life:
    """A launch that is in the database, until its end is.

    Attributes:
        spec: What the server was made from.
        rest: The machine before it, or before the first of those that are alive with it.
        trial: The trial or the point of the map; ``NO_TRIAL`` until its trial begins.
        version: vLLM's version, as the server told it.
        up: It answered ``/health``, and the machine is quiet again.
    """

    launch_id: str
    spec: ServerSpec
    point: Point
    plan: LaunchPlan
    log_path: Path
    process: Server
    clock: StageClock
    rest: IdleBaseline
    trial: int
    version: str | None = None
    up: bool = False


class Launcher:
    """Launches the servers of one run; measured is one at a time.

    Enter it before the first launch, and leave it after the last: that ends what was prelaunched,
    and what warm starts are forked from.

    Args:
        prepared: The study; its server is what warm starts are made for.
        ledger: Where launches are written down.
        logs: Folder of the servers' logs.
        warm: Whether servers may be forked from one that has imported vLLM.
        tools: What servers are made with; None: this machine's.
        slot: Slot of the servers, whose cores and GPUs this process has; None: the whole host.
        neighbors: Number of other slots on this host, which start servers at the same time.
        known: Whether the study's points were launched before, so that they are known to launch.

    Attributes:
        machine: This machine, as it is written down.
        logs: The servers' logs.
    """

    def __init__(
        self,
        prepared: Prepared,
        ledger: Ledger,
        logs: Path,
        *,
        warm: bool = True,
        tools: Tools | None = None,
        slot: Slot | None = None,
        neighbors: int = 0,
        known: bool = False,
    ) -> None:
        self.machine: dict[str, Any] = describe_machine()
        if slot is not None:
            self.machine["slot"] = slot.stored()
        self.logs = LogFolder(logs)
        self._p = prepared
        self._ledger = ledger
        self._tools = real(tools)
        self._slot = slot
        self._free_since = time.monotonic()  # the begin of the run, or the end of a launch
        self._warm = (
            WarmStart(prepared.spec.server, prepared.info, self.logs.path(_fork_server_log(slot)))
            if warm
            else None
        )
        self._living: list[_Life] = []  # all whose end is not written down
        self._prelaunched: list[_Life] = []  # of these, whose trials have not begun
        self._room = Room(prepared, self.machine["gpus"], neighbors, known=known)
        self._works = False  # whether one was measured
        self._hurry = False  # the user asked twice: every server ends at once

    @property
    def untested(self) -> str | None:
        """Why no server starts warm: see :class:`autotune.serving.warm_start.WarmStart`."""
        return None if self._warm is None else self._warm.untested

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._warm or contextlib.nullcontext(), contextlib.ExitStack() as ends:
            for life in self._prelaunched:
                ends.callback(self._drop, life)

    def run(
        self,
        number: int,
        attempt: int,
        point: Point,
        *,
        log: str,
        rests: Sequence[float],
        measure: Callable[[LiveServer], None],
        say: Callable[[str], None],
        server: ServerSpec | None = None,
        then: Callable[[int], Sequence[Point]] = no_prelaunch,
    ) -> str:
        """Bring one server from its start to the proof of its end; return the id of the launch.

        Args:
            number: The trial, or the point of the map.
            attempt: How many launches of it there were.
            point: Its parameters.
            log: Name of the server's log.
            rests: Seconds of the idle baselines before earlier launches on this machine.
            measure: What is done with the server.
            say: Tells the user of a stage.
            server: Where it is not the study's own.
            then: Returns the next points, at most the given number; called where there is room to
                start their servers next to this one.

        Raises:
            TrialFailure: it did not come up, or gave nothing that may be called a number.
            CrowdedError: it was the first, and had too little memory next to others.
            MachineError: the database was deleted or replaced.
        """
        self._ledger.check()
        spec = self._p.spec.server if server is None else server
        life = self._prelaunched_for(spec, point, number, attempt)
        if life is None:
            rest = self._living[0].rest if self._living else self._tools.take_idle_baseline(rests)
            life = self._planned(spec, point, rest, log, number, attempt)
        try:
            if not life.up:
                self._event(life, "launching")
                say("launching")
                self._start(life)
                self._prelaunch(then, life.rest)
                if self._prelaunched:
                    say(f"launching, and {len(self._prelaunched)} of the next")
                self._wait(life)
            for other in [x for x in self._prelaunched if not x.up]:
                self._settle(other)
            life.clock.mark("healthy")
            measure(
                LiveServer(
                    life.process,
                    life.launch_id,
                    life.version,
                    life.rest,
                    life.clock,
                    lambda what: self._event(life, what),
                    len(self._prelaunched),
                )
            )
            self._works = True
            if self._p.spec.server.ahead and not self._prelaunched:
                self._room.learn(life.process)
        except TrialFailure as e:
            failure = life.plan.masked_failure(e)
            if self._end_unknown() and e.kind in _CROWDED:
                self._event(life, f"failed next to other servers, to be launched alone: {failure}")
                raise CrowdedError from e
            self._ledger.failed(life.launch_id, failure, life.process.log_tail())
            self._event(life, f"failed: {failure}")
            raise failure from e
        finally:
            say("stopping")
            life.clock.mark("stopping")
            self._end(life)
            life.clock.mark("ended")
            self._free_since = time.monotonic()
            self._event(life, "stopped")
            self._keep_stages(life)
        return life.launch_id

    # -- one launch ------------------------------------------------------------------------------

    def _planned(
        self, spec: ServerSpec, point: Point, rest: IdleBaseline, log: str, trial: int, attempt: int
    ) -> _Life:
        """Return a launch that is written down, and of which nothing is started."""
        launch_id = uuid.uuid4().hex
        clock = StageClock(self._free_since)
        taken = {x.plan.port for x in self._living}  # not all of them listen yet
        plan = plan_launch(
            spec,
            point,
            self._p.info,
            port=_port(self._slot, taken),
            launch_id=launch_id,
            resolve=self._p.resolve,
            acceptance=self._p.spec.measure.per_request_acceptance,
        )
        log_path = self.logs.path(log)
        self._ledger.plan(launch_id, trial, attempt, plan, self.machine, log_path)
        process = self._tools.server(
            plan,
            launch_id=launch_id,
            log_path=log_path,
            server=spec,
            info=self._p.info,
            warm=self._warm,
        )
        life = _Life(launch_id, spec, point, plan, log_path, process, clock, rest, trial)
        self._living.append(life)
        return life

    def _start(self, life: _Life) -> None:
        """Start the processes; raise a LaunchError where they do not exist."""
        first = self._living[0].process  # what they all must give back was there before it
        gpus = None if first is life.process else first.gpus_before
        self._ledger.started(life.process.start(gpus))
        life.clock.mark("started")

    def _wait(self, life: _Life) -> None:
        """Wait until the server answers; raise a LaunchError if it does not."""
        life.version = life.process.wait_ready(lambda _seconds: None)
        self._ledger.ready(life.launch_id, life.version)
        life.up = True
        self._event(life, "healthy")

    def _event(self, life: _Life, what: str) -> None:
        self._ledger.event(life.launch_id, life.trial, what)

    def _end(self, life: _Life) -> None:
        """Stop a server, prove that it is gone, and write it down."""
        self._living.remove(life)
        last = not self._living
        try:
            report = life.process.stop(force=self._hurry, last=last)
        except KeyboardInterrupt:  # asked twice: at once
            self._hurry = True
            report = life.process.stop(force=True, last=last)
            self._ledger.ended(life.launch_id, report.exit_code, report.killed)
            raise
        self._ledger.ended(life.launch_id, report.exit_code, report.killed)

    def _keep_stages(self, life: _Life) -> None:
        """Write down where the time of an ended launch went, and what was compiled.

        One that was prelaunched began, for its trial, when that trial began: the time of its
        start is in the launch that it was started with.
        """
        log = head_of(life.log_path)
        stages = stages_of(
            log if "started" in life.clock.marks else (),
            life.clock.marks,
            tuner_s=life.clock.tuner_s,
            first_s=self._ledger.first_request(life.launch_id),
        )
        self._ledger.time(life.launch_id, stages, compile_cache_of(log))

    # -- those that come next --------------------------------------------------------------------

    def _prelaunch(self, then: Callable[[int], Sequence[Point]], rest: IdleBaseline) -> None:
        """Start the servers of the next points, as far as study and machine allow."""
        there = [x.point for x in self._prelaunched]
        most = min(self._p.spec.server.ahead, len(there) + self._room.more())
        for point in [*then(most)][:most] if most > len(there) else ():
            if point in there:
                there.remove(point)
                continue
            log = f"prelaunched-{uuid.uuid4().hex[:8]}.log"
            life = self._planned(self._p.spec.server, point, rest, log, NO_TRIAL, 0)
            self._prelaunched.append(life)
            self._event(life, "prelaunching")
            try:
                self._start(life)
            except LaunchError:
                self._drop(life)

    def _settle(self, life: _Life) -> None:
        """Wait for a server that was prelaunched; end one that does not come up."""
        try:
            self._wait(life)
        except LaunchError as e:
            failure = life.plan.masked_failure(e)
            self._event(life, f"failed next to other servers, to be launched alone: {failure}")
            self._drop(life)

    def _drop(self, life: _Life) -> None:
        """End a server that no trial gets."""
        self._prelaunched.remove(life)
        try:
            self._end(life)
        finally:
            self._event(life, "stopped")

    def _end_unknown(self) -> bool:
        """End what is prelaunched if no server was measured yet; return whether anything was.

        What made the first one fail may be the same for all, and nothing is known of their room.
        """
        others = [] if self._works else [*self._prelaunched]
        for other in others:
            self._drop(other)
        return bool(others)

    def _prelaunched_for(
        self, spec: ServerSpec, point: Point, number: int, attempt: int
    ) -> _Life | None:
        """Return the server that was prelaunched for a point; None: none lives."""
        life = next((x for x in self._prelaunched if x.point == point and x.spec == spec), None)
        if life is None:
            return None
        if not life.up:  # the one that it was started with did not come up
            self._settle(life)
        elif not life.process.alive():
            self._drop(life)
        if life not in self._prelaunched:
            return None
        self._prelaunched.remove(life)
        life.trial = number
        life.clock = StageClock(self._free_since)
        self._ledger.give(life.launch_id, number, attempt)
        self._event(life, "trial begins")
        return life
