"""Launches of servers: what was started, on which machine, how it ended, and its stages in time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autotune.engine.compile_cache import CompileCache
from autotune.engine.launch_stages import Stages
from autotune.errors import TrialFailure
from autotune.storage.backend import Sessions, patient
from autotune.storage.reading import Reader
from autotune.storage.schema import (
    NO_TRIAL,
    CompileCacheRow,
    EventRow,
    LaunchRow,
    RequestAcceptanceRow,
    RequestRow,
    StagesRow,
)
from autotune.storage.stored_launches import StoredLaunches

if TYPE_CHECKING:  # a database is read without them
    from sqlalchemy import CursorResult

    from autotune.bench.server_metrics import ServerStats
    from autotune.engine.command import LaunchPlan
    from autotune.serving.process_tree import Identity
    from autotune.storage.lease import Holder, Place


class Launches(StoredLaunches):
    """Launches of all studies of one database.

    Args:
        reader: Reads it.
        sessions: Opens a session on it, to write.

    Attributes:
        holder: Holder of the lease, which starts the planned launches; None while nobody has it.
    """

    def __init__(self, reader: Reader, sessions: Sessions) -> None:
        super().__init__(reader)
        self._sessions = sessions
        self.holder: Holder | None = None

    @patient
    def plan(
        self,
        launch_id: str,
        *,
        study: str,
        trial: int,
        attempt: int,
        plan: LaunchPlan,
        machine: Mapping[str, Any],
        log_path: Path,
        place: Place | None = None,
    ) -> None:
        """Write a launch down before anything is started, so that every process is known here.

        ``place`` is where it is started, if not by the holder's own worker.
        """
        from autotune.serving.process_tree import boot_id

        who = self.holder.columns() if self.holder else {}
        if place is not None:
            who |= {"host": place.host, "worker": place.worker}
        with self._sessions() as s:
            s.add(
                LaunchRow(
                    launch_id=launch_id,
                    study=study,
                    trial=trial,
                    attempt=attempt,
                    argv=list(plan.argv),
                    env=dict(plan.public_env),
                    machine=dict(machine),
                    port=plan.port,
                    log_path=str(log_path),
                    boot_id=boot_id() if place is None else place.boot_id,
                    planned_at=time.time(),
                    **who,
                )
            )
            s.commit()

    def started(self, identity: Identity) -> None:
        """Note that the server's processes exist."""
        self._update(identity.launch_id, identity=identity.stored())

    def ready(self, launch_id: str, vllm_version: str | None) -> None:
        """Note that the server answers ``/health`` and is the requested one."""
        self._update(launch_id, ready_at=time.time(), vllm_version=vllm_version)

    def measured(
        self,
        launch_id: str,
        stats: ServerStats,
        values: Mapping[str, float],
        intervals: Mapping[str, tuple[float | None, float | None]],
        quality: Mapping[str, Any],
    ) -> None:
        """Keep a complete measurement; ``values`` and ``intervals`` are by objective name."""
        self._update(
            launch_id,
            measured_at=time.time(),
            stats=asdict(stats),
            values=dict(values),
            intervals={name: list(bounds) for name, bounds in intervals.items()},
            quality=dict(quality),
        )

    def counted(self, launch_id: str, stats: ServerStats) -> None:
        """Keep the server's counters of a launch that has no values."""
        self._update(launch_id, stats=asdict(stats))

    def failed(self, launch_id: str, failure: TrialFailure, log_tail: Sequence[str]) -> None:
        """Keep why a launch has no numbers."""
        self._update(
            launch_id,
            failure_kind=str(failure.kind),
            failure_reason=failure.reason,
            evidence=list(failure.evidence),
            log_tail="\n".join(log_tail),
        )

    def ended(self, launch_id: str, exit_code: int | None, killed: int) -> None:
        """Note that no process of the server is left."""
        self._update(launch_id, ended_at=time.time(), exit_code=exit_code, killed=killed)

    @patient
    def _update(self, launch_id: str, **columns: Any) -> None:
        from sqlalchemy import update

        with self._sessions() as s:  # maps the rows, which a statement about them needs
            change = update(LaunchRow).filter_by(launch_id=launch_id).values(columns)
            done = cast("CursorResult[Any]", s.execute(change))
            if done.rowcount != 1:
                raise LookupError(f"the database has no launch {launch_id}")
            s.commit()

    @patient
    def event(
        self,
        study: str,
        what: str,
        *,
        trial: int | None = None,
        launch_id: str | None = None,
        at: float | None = None,
    ) -> None:
        """Note what happened, now or at a Unix time."""
        at = time.time() if at is None else at
        with self._sessions() as s:
            s.add(EventRow(at=at, study=study, trial=trial, launch_id=launch_id, what=what))
            s.commit()

    @patient
    def copy(self, other: Launches, launch_id: str, *, new_id: str, study: str) -> None:
        """Copy a launch of another study with its requests; it gets its trial by :meth:`give`.

        A launch that was copied before stays as it is.

        Args:
            other: Launches of the database that has it, which may be this one.
            launch_id: Its id there.
            new_id: Its id here.
            study: Study that it becomes a launch of.
        """
        from sqlalchemy import insert

        with self._sessions() as s:
            if s.get(LaunchRow, new_id) is not None:
                return
        launch = _columns(other.get(launch_id))
        which = "WHERE launch_id = :launch ORDER BY id"
        found = other._reader.records(RequestRow, which, launch=launch_id)
        told = other._reader.records(RequestAcceptanceRow, which, launch=launch_id)
        requests, acceptance = [_columns(r) for r in found], [_columns(r) for r in told]
        launch |= {"launch_id": new_id, "study": study, "trial": NO_TRIAL}
        launch |= {"worker": None, "lease_epoch": None}  # those of the other database
        for r in (*requests, *acceptance):
            r["launch_id"] = new_id
            del r["id"]
        with self._sessions() as s:
            s.add(LaunchRow(**launch))
            s.flush()
            if requests:
                s.execute(insert(RequestRow), requests)
            if acceptance:
                s.execute(insert(RequestAcceptanceRow), acceptance)
            s.commit()

    def give(self, launch_id: str, trial: int, attempt: int | None = None) -> None:
        """Give a copied or prelaunched launch to a trial.

        Args:
            launch_id: Id of the launch.
            trial: Number of the trial.
            attempt: Number of the trial's launches before it; None leaves it unchanged.
        """
        self._update(launch_id, trial=trial, **({} if attempt is None else {"attempt": attempt}))

    @patient
    def keep_stages(self, launch_id: str, stages: Stages) -> None:
        """Keep the stages of a launch that has ended."""
        row = StagesRow(
            launch_id=launch_id, seconds=dict(stages.seconds), imports=dict(stages.imports)
        )
        with self._sessions() as s:
            s.add(row)
            s.commit()

    @patient
    def keep_compile_cache(self, launch_id: str, found: CompileCache) -> None:
        """Keep what torch.compile's cache did in a launch that has ended."""
        row = CompileCacheRow(launch_id=launch_id, use=found.use.name, folder=found.folder)
        with self._sessions() as s:
            s.add(row)
            s.commit()


def _columns(row: LaunchRow | RequestRow | RequestAcceptanceRow) -> dict[str, Any]:
    """Return a row as plain data."""
    return {f.name: getattr(row, f.name) for f in fields(row)}
