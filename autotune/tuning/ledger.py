"""Where a launch is written down, from the plan to the proof that its server is gone.

A launch is planned here before its process exists, and ended only after the process is dead. So
however this process ends, the next one knows what to look for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.engine.command import LaunchPlan
from autotune.engine.compile_cache import CompileCache
from autotune.engine.launch_stages import Stages
from autotune.errors import MachineError, TrialFailure
from autotune.serving.process_tree import Identity
from autotune.storage.lease import Place
from autotune.storage.location import file_identity
from autotune.storage.schema import NO_TRIAL, LaunchRow
from autotune.storage.store import Store


class Ledger:
    """The launches of one study, of one load map, or of a run without a database.

    This one keeps nothing: the marks of the processes alone say whose they are.
    """

    def check(self) -> None:
        """Check that what is written is kept.

        Raises:
            MachineError: the database was deleted or replaced.
        """

    def plan(
        self,
        launch_id: str,
        trial: int,
        attempt: int,
        plan: LaunchPlan,
        machine: Mapping[str, Any],
        log_path: Path,
        place: Place | None = None,
    ) -> None:
        """Write a launch down; nothing of it is started yet."""

    def started(self, identity: Identity) -> None:
        """Write down which processes a launch has."""

    def ready(self, launch_id: str, version: str | None) -> None:
        """Write down that a server answers ``/health``, and its version."""

    def failed(self, launch_id: str, failure: TrialFailure, log_tail: Sequence[str]) -> None:
        """Write down why a launch has no numbers."""

    def ended(self, launch_id: str, exit_code: int | None, killed: int) -> None:
        """Write down that nothing of a server is left."""

    def event(self, launch_id: str, trial: int, what: str, at: float | None = None) -> None:
        """Write down what happened, now or at a Unix time."""

    def give(self, launch_id: str, trial: int, attempt: int) -> None:
        """Write down which trial a prelaunched server belongs to."""

    def first_request(self, launch_id: str) -> float | None:
        """Return the seconds from the begin of the warm-up to the end of its first request.

        None: nothing is kept of requests.
        """
        return None

    def time(self, launch_id: str, stages: Stages, cache: CompileCache | None) -> None:
        """Write down where the time of a launch went, and what was compiled in it."""

    def launches(self, trial: int) -> list[LaunchRow]:
        """Return the launches of a trial, oldest first."""
        return []


class StoredLedger(Ledger):
    """A ledger in a database.

    Args:
        store: The database.
        name: Name of the study there, or :func:`autotune.storage.names.load_sweep_name` of it.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._inode = file_identity(store.database)

    def check(self) -> None:
        """Check that the database is there; SQLite would go on writing into a deleted file.

        Raises:
            MachineError: it was deleted or replaced.
            LeaseLost: another driver took it over.
        """
        self._store.check_lease()
        database = self._store.database
        if file_identity(database) != self._inode:
            raise MachineError(
                f"{database}: was deleted or replaced while it was in use; put it back, and the "
                "same command goes on from there"
            )

    def plan(
        self,
        launch_id: str,
        trial: int,
        attempt: int,
        plan: LaunchPlan,
        machine: Mapping[str, Any],
        log_path: Path,
        place: Place | None = None,
    ) -> None:
        """Write a launch down; nothing of it is started yet."""
        self._store.launches.plan(
            launch_id,
            study=self._name,
            trial=trial,
            attempt=attempt,
            plan=plan,
            machine=machine,
            log_path=log_path,
            place=place,
        )

    def started(self, identity: Identity) -> None:
        """Write down which processes a launch has."""
        self._store.launches.started(identity)

    def ready(self, launch_id: str, version: str | None) -> None:
        """Write down that a server answers ``/health``, and its version."""
        self._store.launches.ready(launch_id, version)

    def failed(self, launch_id: str, failure: TrialFailure, log_tail: Sequence[str]) -> None:
        """Write down why a launch has no numbers."""
        self._store.launches.failed(launch_id, failure, log_tail)

    def ended(self, launch_id: str, exit_code: int | None, killed: int) -> None:
        """Write down that nothing of a server is left."""
        self._store.launches.ended(launch_id, exit_code, killed)

    def event(self, launch_id: str, trial: int, what: str, at: float | None = None) -> None:
        """Write down what happened, now or at a Unix time."""
        number = None if trial == NO_TRIAL else trial
        self._store.launches.event(self._name, what, trial=number, launch_id=launch_id, at=at)

    def give(self, launch_id: str, trial: int, attempt: int) -> None:
        """Write down which trial a prelaunched server belongs to."""
        self._store.launches.give(launch_id, trial, attempt)

    def first_request(self, launch_id: str) -> float | None:
        """Return the seconds from the begin of the warm-up to the end of its first request."""
        return self._store.requests.first_end(launch_id)

    def time(self, launch_id: str, stages: Stages, cache: CompileCache | None) -> None:
        """Write down where the time of a launch went, and what was compiled in it."""
        self._store.launches.keep_stages(launch_id, stages)
        if cache is not None:
            self._store.launches.keep_compile_cache(launch_id, cache)

    def launches(self, trial: int) -> list[LaunchRow]:
        """Return the launches of a trial, oldest first."""
        return self._store.launches.of_trial(self._name, trial)
