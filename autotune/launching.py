"""One launch of a server, from the plan to the proof that it is gone, with all of it written down.

A launch is in the database before its process exists, and its end is only after it is dead; so
whatever ends this process, the next one knows what to look for. Studies and maps launch by this.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.canary import Rest, take_rest
from autotune.compilecache import compile_cache_of
from autotune.errors import MachineError, TrialFailure
from autotune.machine import describe_machine
from autotune.serving import LogFolder, Server, WarmStart, free_port, plan_launch
from autotune.serving.stages import StageClock, head_of, stages_of
from autotune.space import Point
from autotune.spec import ServerSpec
from autotune.store import Store, file_identity

if TYPE_CHECKING:
    from autotune.loop import Prepared


def output_folder(database: Path, study: str) -> Path:
    """Where plots and server logs of a study go: beside its database."""
    return database.parent / f"{database.stem}-{study}"


@dataclass(frozen=True)
class Launched:
    """A healthy server, for as long as it is measured.

    Attributes:
        server: It.
        launch_id: Its key in the database.
        rest: The machine before it was there.
        clock: Takes the marks ``warm`` and ``measured``.
        event: Writes down what happened to it.
    """

    server: Server
    launch_id: str
    rest: Rest
    clock: StageClock
    event: Callable[[str], None]


class Launcher:
    """Launches the servers of one run, one at a time.

    Args:
        prepared: The study; its server is what warm starts are made for.
        store: Where launches are written down.
        ledger: The study there, or :func:`autotune.ledger.map_name` of it.

    Attributes:
        machine: This machine, as it is written down.
        logs: Their logs.
        warm: To be entered before the first launch, and left after the last.
    """

    def __init__(self, prepared: Prepared, store: Store, ledger: str) -> None:
        self.machine = describe_machine()
        self._p = prepared
        self._store = store
        self._ledger = ledger
        self._inode = file_identity(store.path)
        self.logs = LogFolder(output_folder(store.path, prepared.spec.name) / "logs")
        self._free_since = time.monotonic()  # the begin of the run, or the end of a launch
        self.warm = WarmStart(prepared.spec.server, prepared.info, self.logs.path("template.log"))

    def run(
        self,
        number: int,
        attempt: int,
        point: Point,
        *,
        log: str,
        rests: Sequence[float],
        measure: Callable[[Launched], None],
        say: Callable[[str], None],
        server: ServerSpec | None = None,
    ) -> str:
        """One server from birth to proof of death; returns the id of the launch.

        Args:
            number: The trial, or the point of the map.
            attempt: How many launches of it there were.
            point: Its parameters.
            log: Name of the server's log, without its ending.
            rests: Seconds that the canary took before earlier launches on this machine.
            measure: What is done with the server.
            say: Tells the user of a stage.
            server: Where it is not the study's own.

        Raises:
            TrialFailure: it did not come up, or gave nothing that may be called a number.
            MachineError: the database was deleted or replaced.
        """
        self._check_database()
        launch_id = uuid.uuid4().hex
        rest = take_rest(rests)  # while no server of ours is there
        clock = StageClock(self._free_since)
        spec = self._p.spec.server if server is None else server
        plan = plan_launch(
            spec,
            point,
            self._p.info,
            port=free_port(),
            launch_id=launch_id,
            resolve=self._p.resolve,
        )
        log_path = self.logs.path(f"{log}-{attempt}.log")
        self._store.plan_launch(
            launch_id,
            study=self._ledger,
            trial=number,
            attempt=attempt,
            plan=plan,
            machine=self.machine,
            log_path=log_path,
        )

        def event(what: str) -> None:
            self._store.event(self._ledger, what, trial=number, launch_id=launch_id)

        event("launching")
        say("launching")
        process = Server(
            plan,
            launch_id=launch_id,
            log_path=log_path,
            server=spec,
            info=self._p.info,
            warm=self.warm,
        )
        try:
            self._store.launch_started(process.start())
            clock.mark("started")
            version = process.wait_ready(lambda _seconds: None)
            clock.mark("healthy")
            self._store.launch_ready(launch_id, version)
            event("healthy")
            measure(Launched(process, launch_id, rest, clock, event))
        except TrialFailure as e:
            failure = plan.masked_failure(e)
            self._store.launch_failed(launch_id, failure, process.log_tail())
            event(f"failed: {failure}")
            raise failure from e
        finally:
            say("stopping")
            clock.mark("stopping")
            self._end(process, launch_id)
            clock.mark("ended")
            self._free_since = time.monotonic()
            event("stopped")
            self._keep_stages(log_path, clock, launch_id)
        return launch_id

    def _check_database(self) -> None:
        """SQLite itself would go on writing into a file that was deleted.

        Raises:
            MachineError: it was deleted or replaced.
        """
        database = self._store.path
        if file_identity(database) != self._inode:
            raise MachineError(
                f"{database}: was deleted or replaced while it was in use; put it back, and the "
                "same command goes on from there"
            )

    def _end(self, server: Server, launch_id: str) -> None:
        """Stops a server, proves that it is gone, and writes it down."""
        try:
            report = server.stop()
        except KeyboardInterrupt:  # asked twice: at once
            report = server.stop(force=True)
            self._store.launch_ended(launch_id, report.exit_code, report.killed)
            raise
        self._store.launch_ended(launch_id, report.exit_code, report.killed)

    def _keep_stages(self, log_path: Path, clock: StageClock, launch_id: str) -> None:
        """Writes down where the time of a launch went that has ended, and what was compiled."""
        log = head_of(log_path)
        stages = stages_of(
            log,
            clock.marks,
            tuner_s=clock.tuner_s,
            first_s=self._store.first_request(launch_id),
        )
        self._store.keep_stages(launch_id, stages)
        if (cache := compile_cache_of(log)) is not None:
            self._store.keep_compile_cache(launch_id, cache)
