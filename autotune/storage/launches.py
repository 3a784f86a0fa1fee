"""Launches of servers: what was started, on which machine, how it ended, and its stages in time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autotune.engine.compile_cache import CacheUse, CompileCache
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

if TYPE_CHECKING:  # a database is read without them
    from sqlalchemy import CursorResult

    from autotune.bench.server_metrics import ServerStats
    from autotune.engine.command import LaunchPlan
    from autotune.serving.process_tree import Identity
    from autotune.storage.lease import Holder, Place


# Rows of another table that belong to a study's launches.
_OF_STUDY = "JOIN autotune_launches USING (launch_id) WHERE study = :study"


def weights_of(quality: Mapping[str, Any] | None) -> dict[str, str]:
    """Return hashes of the weights that a launch was measured with, by role; empty if unknown."""
    kept = (quality or {}).get("weights")
    return {str(k): str(v) for k, v in kept.items()} if isinstance(kept, dict) else {}


class Launches:
    """Launches of all studies of one database.

    Args:
        reader: Reads it.
        sessions: Opens a session on it, to write.

    Attributes:
        holder: Holder of the lease, which starts the planned launches; None while nobody has it.
    """

    def __init__(self, reader: Reader, sessions: Sessions) -> None:
        self._reader, self._sessions = reader, sessions
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

    def get(self, launch_id: str) -> LaunchRow:
        """Return one launch."""
        [row] = self._reader.records(LaunchRow, "WHERE launch_id = :launch", launch=launch_id)
        return row

    def has(self, launch_id: str) -> bool:
        """Return whether there is such a launch."""
        sql = "SELECT 1 FROM autotune_launches WHERE launch_id = :launch"
        return self._reader.one(sql, launch=launch_id) is not None

    def of_study(self, study: str) -> list[LaunchRow]:
        """Return every launch of a study, oldest first."""
        return self._oldest_first("study = :study", study=study)

    def of_trial(self, study: str, trial: int) -> list[LaunchRow]:
        """Return every launch of one trial, or of one point of a load sweep, oldest first."""
        return self._oldest_first("study = :study AND trial = :trial", study=study, trial=trial)

    def latest(self, study: str) -> LaunchRow | None:
        """Return the latest launch of a study that came up; None: there is none."""
        found = self._reader.records(
            LaunchRow,
            "WHERE study = :study AND ready_at IS NOT NULL ORDER BY planned_at DESC LIMIT 1",
            study=study,
        )
        return found[0] if found else None

    def measuring(self, study: str, trial: int) -> LaunchRow | None:
        """Return the launch that a trial's numbers are from; None: it has none."""
        found = self._oldest_first(
            "study = :study AND trial = :trial AND measured_at IS NOT NULL "
            "AND failure_kind IS NULL",
            study=study,
            trial=trial,
        )
        return found[-1] if found else None

    def environments(self, study: str) -> dict[str, tuple[dict[str, str], bool]]:
        """Return the variables of every launch of a study, by launch id.

        The flag says whether every family of variables was kept, which autotune 0.1 did not.
        """
        rows = self._reader.rows(
            "SELECT launch_id, env, host FROM autotune_launches WHERE study = :study", study=study
        )
        return {r["launch_id"]: (json.loads(r["env"]), r["host"] is not None) for r in rows}

    def unended(self) -> list[LaunchRow]:
        """Return launches of all studies whose end was never noted."""
        return self._oldest_first("ended_at IS NULL")

    def _oldest_first(self, which: str, **values: object) -> list[LaunchRow]:
        return self._reader.records(LaunchRow, f"WHERE {which} ORDER BY planned_at", **values)

    def measured_on(self, study: str) -> tuple[dict[str, Any] | None, str | None]:
        """Return the machine of a study's latest launch, and the latest known vLLM version."""
        machine = self._reader.one(
            "SELECT machine FROM autotune_launches WHERE study = :study "
            "ORDER BY planned_at DESC LIMIT 1",
            study=study,
        )
        version = self._reader.one(
            "SELECT vllm_version FROM autotune_launches WHERE study = :study "
            "AND vllm_version IS NOT NULL ORDER BY planned_at DESC LIMIT 1",
            study=study,
        )
        return None if machine is None else json.loads(machine), version

    def versions(self, study: str) -> dict[int, str]:
        """Return the version of vLLM that the latest server of each trial told, by its number."""
        rows = self._reader.rows(
            "SELECT trial, vllm_version FROM autotune_launches WHERE study = :study "
            "AND vllm_version IS NOT NULL ORDER BY planned_at",
            study=study,
        )
        return {r["trial"]: r["vllm_version"] for r in rows}

    def weights(self, study: str) -> dict[str, str]:
        """Return the latest hashes of the weights that a study was measured with, by role."""
        found: dict[str, str] = {}
        for _machine, quality in self._qualities(study):
            found |= weights_of(quality)
        return found

    def idle_baselines(self, study: str, machine: Mapping[str, Any]) -> list[float]:
        """Return the idle baselines of a study on this machine, oldest first.

        An idle baseline is the duration of the interference check before a measured launch, in
        seconds.
        """
        return [
            quality["machine"]["rest"]["kernel_s"]
            for of, quality in self._qualities(study)
            if quality and of == machine
        ]

    def _qualities(self, study: str) -> list[tuple[Any, Any]]:
        """Return machine and quality of a study's measured launches, oldest first."""
        rows = self._reader.rows(
            "SELECT machine, quality FROM autotune_launches WHERE study = :study "
            "AND quality IS NOT NULL ORDER BY planned_at",
            study=study,
        )
        return [(json.loads(row["machine"]), json.loads(row["quality"])) for row in rows]

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

    def events(self, study: str) -> list[EventRow]:
        """Return what happened in a study, oldest first."""
        return self._reader.records(EventRow, "WHERE study = :study ORDER BY id", study=study)

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

    def stages(self, study: str) -> dict[str, Stages]:
        """Return the stages of a study's launches, by launch id."""
        rows = self._reader.records(StagesRow, _OF_STUDY, study=study)
        return {row.launch_id: Stages(row.seconds, row.imports) for row in rows}

    @patient
    def keep_compile_cache(self, launch_id: str, found: CompileCache) -> None:
        """Keep what torch.compile's cache did in a launch that has ended."""
        row = CompileCacheRow(launch_id=launch_id, use=found.use.name, folder=found.folder)
        with self._sessions() as s:
            s.add(row)
            s.commit()

    def compile_caches(self, study: str) -> dict[str, CompileCache]:
        """Return what torch.compile's cache did, by launch id, for launches whose log says so."""
        rows = self._reader.records(CompileCacheRow, _OF_STUDY, study=study)
        return {row.launch_id: CompileCache(CacheUse[row.use], row.folder) for row in rows}


def _columns(row: LaunchRow | RequestRow | RequestAcceptanceRow) -> dict[str, Any]:
    """Return a row as plain data."""
    return {f.name: getattr(row, f.name) for f in fields(row)}
