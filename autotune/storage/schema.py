"""Tables of autotune as the code sees them; ``migrations/`` makes and changes them.

All times are unix times in seconds unless a column says otherwise.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, LargeBinary
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Trial of a launch that belongs to none yet: it was copied or prelaunched.
NO_TRIAL = -1


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, list[float]: JSON}  # noqa: RUF012


class Meta(Base):
    """Hold the schema number for an autotune that knows no revisions: it accepts only its own."""

    __tablename__ = "autotune_meta"
    schema: Mapped[int] = mapped_column(primary_key=True)


class StudyRow(Base):
    """The study file as the latest run had it; keys that affect a result never change."""

    __tablename__ = "autotune_studies"
    name: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str]
    yaml: Mapped[str]
    fingerprint: Mapped[str]
    seed: Mapped[int]
    wanted: Mapped[int]  # finished trials asked for by the latest run
    created_at: Mapped[float]  # unix time, s
    autotune_version: Mapped[str]


class LaunchRow(Base):
    """One server process tree, from before its start to after its end."""

    __tablename__ = "autotune_launches"
    launch_id: Mapped[str] = mapped_column(primary_key=True)  # also in the processes' environment
    study: Mapped[str] = mapped_column(index=True)
    trial: Mapped[int]
    attempt: Mapped[int]
    argv: Mapped[list[str]]
    env: Mapped[dict[str, Any]]  # what study and autotune added; secrets masked
    machine: Mapped[dict[str, Any]]
    port: Mapped[int]
    log_path: Mapped[str]
    boot_id: Mapped[str]
    identity: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    vllm_version: Mapped[str | None]
    planned_at: Mapped[float]  # unix time, s, as all *_at
    ready_at: Mapped[float | None]
    measured_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    exit_code: Mapped[int | None]
    killed: Mapped[int | None]  # processes that needed SIGKILL
    failure_kind: Mapped[str | None]
    failure_reason: Mapped[str | None]
    evidence: Mapped[list[str] | None] = mapped_column(JSON)
    log_tail: Mapped[str | None]
    stats: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # ServerStats of the measurement
    values: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # by objective, in its unit
    intervals: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # [low, high], None: no bound
    quality: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # records.Quality
    # Who launched it; None: an earlier autotune, or a process without the lease.
    host: Mapped[str | None]
    worker: Mapped[str | None]  # name of the worker on that host
    lease_epoch: Mapped[int | None]


class RequestRow(Base):
    """One request; times in seconds on the clock of its phase."""

    __tablename__ = "autotune_requests"
    id: Mapped[int] = mapped_column(primary_key=True)
    launch_id: Mapped[str] = mapped_column(ForeignKey("autotune_launches.launch_id"), index=True)
    phase: Mapped[str]
    index: Mapped[int]
    intended: Mapped[float]
    start: Mapped[float]
    ttft: Mapped[float | None]
    end: Mapped[float]
    prompt_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    status: Mapped[str]
    error: Mapped[str | None]
    chunks: Mapped[bytes] = mapped_column(LargeBinary)  # float32, s after start, native order


class MapPointRow(Base):
    """One point of a load sweep (`autotune map`): one n, or a schedule of n, under one setting."""

    __tablename__ = "autotune_map_points"
    id: Mapped[int] = mapped_column(primary_key=True)  # the `trial` of its launches
    study: Mapped[str] = mapped_column(index=True)
    setting: Mapped[dict[str, Any]]  # what all points of one load sweep have in common
    n: Mapped[int]  # the largest one of a schedule
    schedule: Mapped[list[Any] | None] = mapped_column(JSON)  # [[first, last, n], …]
    created_at: Mapped[float]  # unix time, s


class LoadRow(Base):
    """One measured part of a load sweep's point at one concurrency."""

    __tablename__ = "autotune_loads"
    id: Mapped[int] = mapped_column(primary_key=True)
    launch_id: Mapped[str] = mapped_column(ForeignKey("autotune_launches.launch_id"), index=True)
    point: Mapped[int] = mapped_column(ForeignKey("autotune_map_points.id"), index=True)
    concurrency: Mapped[int]
    part: Mapped[int]  # from 0
    phase: Mapped[str]  # of its requests
    requests: Mapped[int]
    stats: Mapped[dict[str, Any]]  # ServerStats of the part
    values: Mapped[dict[str, Any]]  # by objective, in its unit
    intervals: Mapped[dict[str, Any]]  # [low, high], None: no bound
    quality: Mapped[dict[str, Any]]  # records.Quality
    measured_at: Mapped[float]  # unix time, s


class StagesRow(Base):
    """Stages of one launch: :class:`autotune.engine.launch_stages.Stages`."""

    __tablename__ = "autotune_stages"
    launch_id: Mapped[str] = mapped_column(
        ForeignKey("autotune_launches.launch_id"), primary_key=True
    )
    seconds: Mapped[dict[str, Any]]  # by stage, None: not known
    imports: Mapped[dict[str, Any]]  # by process


class CompileCacheRow(Base):
    """Use of torch.compile's cache in one launch: :mod:`autotune.engine.compile_cache`."""

    __tablename__ = "autotune_compile_cache"
    launch_id: Mapped[str] = mapped_column(
        ForeignKey("autotune_launches.launch_id"), primary_key=True
    )
    use: Mapped[str]  # a name of CacheUse
    folder: Mapped[str | None]


class EventRow(Base):
    """One event with its time."""

    __tablename__ = "autotune_events"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    study: Mapped[str] = mapped_column(index=True)
    trial: Mapped[int | None]
    launch_id: Mapped[str | None]
    what: Mapped[str]


class LeaseRow(Base):
    """The lease, one row: names the only driver that may write to this database."""

    __tablename__ = "autotune_lease"
    id: Mapped[int] = mapped_column(primary_key=True)  # always 1
    epoch: Mapped[int]  # grows whenever the lease is taken
    owner: Mapped[str | None]  # unique to each taking
    host: Mapped[str | None]
    pid: Mapped[int | None]
    taken_at: Mapped[float | None]
    expires_at: Mapped[float | None]  # None: as long as the owner locks the database's file


class WorkerRow(Base):
    """One worker: launches servers on one slot (GPUs or cores) for the holder of a lease."""

    __tablename__ = "autotune_workers"
    id: Mapped[int] = mapped_column(primary_key=True)
    lease_epoch: Mapped[int] = mapped_column(index=True)
    host: Mapped[str]
    name: Mapped[str]  # unique on its host, within its lease
    slot: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # None: the whole host
    joined_at: Mapped[float]
    seen_at: Mapped[float | None]
    ended_at: Mapped[float | None]  # or when the next lease was taken
