"""Launches of servers: what was started, on which machine, how it ended, and its stages in time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, insert, inspect, select
from sqlalchemy.orm import Session, sessionmaker

from autotune.bench import ServerStats
from autotune.engine.command import LaunchPlan
from autotune.engine.compile_cache import CacheUse, CompileCache
from autotune.engine.launch_stages import Stages
from autotune.errors import TrialFailure
from autotune.serving import Identity, boot_id
from autotune.storage.lease import Holder
from autotune.storage.schema import (
    NO_TRIAL,
    Base,
    CompileCacheRow,
    EventRow,
    LaunchRow,
    RequestRow,
    StagesRow,
)


def weights_of(quality: Mapping[str, Any] | None) -> dict[str, str]:
    """Return hashes of the weights that a launch was measured with, by role; empty if unknown."""
    kept = (quality or {}).get("weights")
    return {str(k): str(v) for k, v in kept.items()} if isinstance(kept, dict) else {}


class Launches:
    """Launches of all studies of one database.

    Args:
        sessions: Opens a session on it.

    Attributes:
        holder: Holder of the lease, which starts the planned launches; None while nobody has it.
    """

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions
        self.holder: Holder | None = None

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
    ) -> None:
        """Write a launch down before anything is started, so that every process is known here."""
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
                    boot_id=boot_id(),
                    planned_at=time.time(),
                    **(self.holder.columns() if self.holder else {}),
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

    def _update(self, launch_id: str, **columns: Any) -> None:
        with self._sessions() as s:
            row = s.get_one(LaunchRow, launch_id)
            for name, value in columns.items():
                setattr(row, name, value)
            s.commit()

    def get(self, launch_id: str) -> LaunchRow:
        """Return one launch."""
        with self._sessions() as s:
            row = s.get_one(LaunchRow, launch_id)
            s.expunge(row)
        return row

    def of_study(self, study: str) -> list[LaunchRow]:
        """Return every launch of a study, oldest first."""
        return self._oldest_first(LaunchRow.study == study)

    def of_trial(self, study: str, trial: int) -> list[LaunchRow]:
        """Return every launch of one trial, or of one point of a load sweep, oldest first."""
        return self._oldest_first(LaunchRow.study == study, LaunchRow.trial == trial)

    def unended(self) -> list[LaunchRow]:
        """Return launches of all studies whose end was never noted."""
        return self._oldest_first(LaunchRow.ended_at.is_(None))

    def _oldest_first(self, *which: ColumnElement[bool]) -> list[LaunchRow]:
        with self._sessions() as s:
            rows = list(s.scalars(select(LaunchRow).where(*which).order_by(LaunchRow.planned_at)))
            s.expunge_all()
        return rows

    def measured_on(self, study: str) -> tuple[dict[str, Any] | None, str | None]:
        """Return the machine of a study's latest launch, and the latest known vLLM version."""
        latest = LaunchRow.planned_at.desc()
        of = LaunchRow.study == study
        machine = select(LaunchRow.machine).where(of).order_by(latest).limit(1)
        version = select(LaunchRow.vllm_version).where(of, LaunchRow.vllm_version.is_not(None))
        with self._sessions() as s:
            return s.scalar(machine), s.scalar(version.order_by(latest).limit(1))

    def weights(self, study: str) -> dict[str, str]:
        """Return the latest hashes of the weights that a study was measured with, by role."""
        query = (
            select(LaunchRow.quality)
            .where(LaunchRow.study == study, LaunchRow.quality.is_not(None))
            .order_by(LaunchRow.planned_at)
        )
        found: dict[str, str] = {}
        with self._sessions() as s:
            for quality in s.scalars(query):
                found |= weights_of(quality)
        return found

    def idle_baselines(self, study: str, machine: Mapping[str, Any]) -> list[float]:
        """Return the idle baselines of a study on this machine, oldest first.

        An idle baseline is the duration of the interference check before a measured launch, in
        seconds.
        """
        query = (
            select(LaunchRow.machine, LaunchRow.quality)
            .where(LaunchRow.study == study, LaunchRow.quality.is_not(None))
            .order_by(LaunchRow.planned_at)
        )
        with self._sessions() as s:
            return [
                quality["machine"]["rest"]["kernel_s"]
                for of, quality in s.execute(query)
                if quality and of == machine
            ]

    def event(
        self, study: str, what: str, *, trial: int | None = None, launch_id: str | None = None
    ) -> None:
        """Note what happened, now."""
        with self._sessions() as s:
            s.add(
                EventRow(at=time.time(), study=study, trial=trial, launch_id=launch_id, what=what)
            )
            s.commit()

    def events(self, study: str) -> list[EventRow]:
        """Return what happened in a study, oldest first."""
        with self._sessions() as s:
            rows = list(
                s.scalars(select(EventRow).where(EventRow.study == study).order_by(EventRow.id))
            )
            s.expunge_all()
        return rows

    def copy(self, other: Launches, launch_id: str, *, new_id: str, study: str) -> None:
        """Copy a launch of another study with its requests; it gets its trial by :meth:`give`.

        A launch that was copied before stays as it is.

        Args:
            other: Launches of the database that has it, which may be this one.
            launch_id: Its id there.
            new_id: Its id here.
            study: Study that it becomes a launch of.
        """
        with self._sessions() as s:
            if s.get(LaunchRow, new_id) is not None:
                return
        with other._sessions() as s:
            launch = _columns(s.get_one(LaunchRow, launch_id))
            query = select(RequestRow).where(RequestRow.launch_id == launch_id)
            requests = [_columns(r) for r in s.scalars(query.order_by(RequestRow.id))]
        launch |= {"launch_id": new_id, "study": study, "trial": NO_TRIAL}
        launch |= {"worker": None, "lease_epoch": None}  # those of the other database
        for r in requests:
            r["launch_id"] = new_id
            del r["id"]
        with self._sessions() as s:
            s.add(LaunchRow(**launch))
            s.flush()
            if requests:
                s.execute(insert(RequestRow), requests)
            s.commit()

    def give(self, launch_id: str, trial: int, attempt: int | None = None) -> None:
        """Give a copied or prelaunched launch to a trial.

        Args:
            launch_id: Id of the launch.
            trial: Number of the trial.
            attempt: Number of the trial's launches before it; None leaves it unchanged.
        """
        self._update(launch_id, trial=trial, **({} if attempt is None else {"attempt": attempt}))

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
        query = (
            select(StagesRow)
            .join(LaunchRow, LaunchRow.launch_id == StagesRow.launch_id)
            .where(LaunchRow.study == study)
        )
        with self._sessions() as s:
            return {row.launch_id: Stages(row.seconds, row.imports) for row in s.scalars(query)}

    def keep_compile_cache(self, launch_id: str, found: CompileCache) -> None:
        """Keep what torch.compile's cache did in a launch that has ended."""
        row = CompileCacheRow(launch_id=launch_id, use=found.use.name, folder=found.folder)
        with self._sessions() as s:
            s.add(row)
            s.commit()

    def compile_caches(self, study: str) -> dict[str, CompileCache]:
        """Return what torch.compile's cache did, by launch id, for launches whose log says so."""
        query = (
            select(CompileCacheRow)
            .join(LaunchRow, LaunchRow.launch_id == CompileCacheRow.launch_id)
            .where(LaunchRow.study == study)
        )
        with self._sessions() as s:
            return {
                row.launch_id: CompileCache(CacheUse[row.use], row.folder)
                for row in s.scalars(query)
            }


def _columns(row: Base) -> dict[str, Any]:
    """Return a row as plain data."""
    return {c.key: getattr(row, c.key) for c in inspect(type(row)).column_attrs}
