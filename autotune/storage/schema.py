"""Rows of autotune's tables as the code sees them; ``migrations/`` makes and changes the tables.

A class is a table, and a field is a column; ``dict`` and ``list`` are kept as JSON. The classes are
plain, so that a database is read without SQLAlchemy; :mod:`autotune.storage.tables` maps them to
write them. All times are unix times in seconds unless a column says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

KEY = {"primary_key": True}
INDEX = {"index": True}

# Trial of a launch that belongs to none yet: it was copied or prelaunched.
NO_TRIAL = -1


@dataclass(kw_only=True, eq=False)
class Meta:
    """Hold the schema number for an autotune that knows no revisions: it accepts only its own."""

    __tablename__: ClassVar[str] = "autotune_meta"
    schema: int = field(metadata=KEY)


@dataclass(kw_only=True, eq=False)
class StudyRow:
    """The study file as the latest run had it; keys that affect a result never change."""

    __tablename__: ClassVar[str] = "autotune_studies"
    name: str = field(metadata=KEY)
    path: str
    yaml: str
    fingerprint: str
    seed: int
    wanted: int  # finished trials asked for by the latest run
    created_at: float  # unix time, s
    autotune_version: str


@dataclass(kw_only=True, eq=False)
class LaunchRow:
    """One server process tree, from before its start to after its end."""

    __tablename__: ClassVar[str] = "autotune_launches"
    launch_id: str = field(metadata=KEY)  # also in the processes' environment
    study: str = field(metadata=INDEX)
    trial: int
    attempt: int
    argv: list[str]
    env: dict[str, Any]  # what study and autotune added; secrets masked
    machine: dict[str, Any]
    port: int
    log_path: str
    boot_id: str
    identity: dict[str, Any] | None = None
    vllm_version: str | None = None
    planned_at: float  # unix time, s, as all *_at
    ready_at: float | None = None
    measured_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    killed: int | None = None  # processes that needed SIGKILL
    failure_kind: str | None = None
    failure_reason: str | None = None
    evidence: list[str] | None = None
    log_tail: str | None = None
    stats: dict[str, Any] | None = None  # ServerStats of the measurement
    values: dict[str, Any] | None = None  # by objective, in its unit
    intervals: dict[str, Any] | None = None  # [low, high], None: no bound
    quality: dict[str, Any] | None = None  # records.Quality
    # Who launched it; None: an earlier autotune, or a process without the lease.
    host: str | None = None
    worker: str | None = None  # name of the worker on that host
    lease_epoch: int | None = None


@dataclass(kw_only=True, eq=False)
class RequestRow:
    """One request; times in seconds on the clock of its phase."""

    __tablename__: ClassVar[str] = "autotune_requests"
    id: int = field(init=False, metadata=KEY)
    launch_id: str = field(metadata={"foreign_key": "autotune_launches.launch_id", **INDEX})
    phase: str
    index: int
    intended: float
    start: float
    ttft: float | None = None
    end: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    status: str
    error: str | None = None
    chunks: bytes  # float32, s after start, native order


@dataclass(kw_only=True, eq=False)
class RequestAcceptanceRow:
    """Accepted drafts of one request: :class:`autotune.bench.request_drafts.RequestDrafts`."""

    __tablename__: ClassVar[str] = "autotune_request_acceptance"
    id: int = field(init=False, metadata=KEY)
    launch_id: str = field(metadata={"foreign_key": "autotune_launches.launch_id", **INDEX})
    phase: str  # of the request, as is `index`
    index: int
    category: str | None = None  # of the request in its dataset
    histogram: list[int]
    drafted: int | None = None
    by_step: bytes  # uint16, accepted and drafted of each step in turn, native order; may be empty


@dataclass(kw_only=True, eq=False)
class MapPointRow:
    """One point of a load sweep (`autotune map`): one way to speculate under one setting."""

    __tablename__: ClassVar[str] = "autotune_map_points"
    id: int = field(init=False, metadata=KEY)  # the `trial` of its launches
    study: str = field(metadata=INDEX)
    setting: dict[str, Any]  # what all points of one load sweep have in common
    n: int  # the largest one of a schedule
    schedule: list[Any] | None = None  # [[first, last, n], …]
    created_at: float  # unix time, s
    # A name of WayKind; None: a fixed n, or a schedule that the sweep's own numbers suggested.
    way: str | None = None
    arm: str | None = None  # of the study, where it is not that of the fixed n
    repeat: int | None = None  # launch of the confirmation, from 1; None: of the sweep


@dataclass(kw_only=True, eq=False)
class LoadRow:
    """One measured part of a load sweep's point at one concurrency."""

    __tablename__: ClassVar[str] = "autotune_loads"
    id: int = field(init=False, metadata=KEY)
    launch_id: str = field(metadata={"foreign_key": "autotune_launches.launch_id", **INDEX})
    point: int = field(metadata={"foreign_key": "autotune_map_points.id", **INDEX})
    concurrency: int
    part: int  # from 0
    phase: str  # of its requests
    requests: int
    stats: dict[str, Any]  # ServerStats of the part
    values: dict[str, Any]  # by objective, in its unit
    intervals: dict[str, Any]  # [low, high], None: no bound
    quality: dict[str, Any]  # records.Quality
    measured_at: float  # unix time, s


@dataclass(kw_only=True, eq=False)
class CertificateRow:
    """One verification of a trial's point (`autotune verify`), from before its first launch."""

    __tablename__: ClassVar[str] = "autotune_certificates"
    id: int = field(init=False, metadata=KEY)  # its launches: `autotune.storage.certificates`
    study: str = field(metadata=INDEX)
    trial: int  # the one whose point is verified
    setting: dict[str, Any]  # what its launches have in common
    created_at: float  # unix time, s
    ended_at: float | None = None  # when it was judged
    verdict: str | None = None  # a name of autotune.results.certificates.Verdict
    judgement: dict[str, Any] | None = None  # numbers only, no text of an answer


@dataclass(kw_only=True, eq=False)
class AnswerRow:
    """One answer of a verification: :class:`autotune.bench.written.Written` and its score."""

    __tablename__: ClassVar[str] = "autotune_answers"
    id: int = field(init=False, metadata=KEY)
    certificate: int = field(metadata={"foreign_key": "autotune_certificates.id", **INDEX})
    launch_id: str = field(metadata={"foreign_key": "autotune_launches.launch_id", **INDEX})
    role: str  # a name of autotune.storage.certificates.AnswerRole
    index: int  # of its request
    prompt_ids: bytes  # int32, native order
    token_ids: bytes  # the same
    text: bytes  # UTF-8; it may have characters that no database keeps as text
    stop: str
    logprobs: bytes | None = None  # float32, native order; None: not scored yet
    best: bytes | None = None  # the same, of the likeliest token


@dataclass(kw_only=True, eq=False)
class StagesRow:
    """Stages of one launch: :class:`autotune.engine.launch_stages.Stages`."""

    __tablename__: ClassVar[str] = "autotune_stages"
    launch_id: str = field(metadata={"foreign_key": "autotune_launches.launch_id", **KEY})
    seconds: dict[str, Any]  # by stage, None: not known
    imports: dict[str, Any]  # by process


@dataclass(kw_only=True, eq=False)
class CompileCacheRow:
    """Use of torch.compile's cache in one launch: :mod:`autotune.engine.compile_cache`."""

    __tablename__: ClassVar[str] = "autotune_compile_cache"
    launch_id: str = field(metadata={"foreign_key": "autotune_launches.launch_id", **KEY})
    use: str  # a name of CacheUse
    folder: str | None = None


@dataclass(kw_only=True, eq=False)
class EventRow:
    """One event with its time."""

    __tablename__: ClassVar[str] = "autotune_events"
    id: int = field(init=False, metadata=KEY)
    at: float
    study: str = field(metadata=INDEX)
    trial: int | None = None
    launch_id: str | None = None
    what: str


@dataclass(kw_only=True, eq=False)
class LeaseRow:
    """The lease, one row: names the only driver that may write to this database."""

    __tablename__: ClassVar[str] = "autotune_lease"
    id: int = field(metadata=KEY)  # always 1
    epoch: int  # grows whenever the lease is taken
    owner: str | None = None  # unique to each taking
    host: str | None = None
    pid: int | None = None
    taken_at: float | None = None
    # None: as long as the owner locks the database's file. Of a server: by its clock
    expires_at: float | None = None
    written: int | None = None  # transactions of the owner, on a server


@dataclass(kw_only=True, eq=False)
class WorkerRow:
    """One worker: launches servers on one slot (GPUs or cores) for the holder of a lease."""

    __tablename__: ClassVar[str] = "autotune_workers"
    id: int = field(init=False, metadata=KEY)
    lease_epoch: int = field(metadata=INDEX)
    host: str
    name: str  # unique on its host, within its lease
    slot: dict[str, Any] | None = None  # None: the whole host
    joined_at: float
    seen_at: float | None = None
    ended_at: float | None = None  # or when the next lease was taken


KINDS = (
    Meta,
    StudyRow,
    LaunchRow,
    RequestRow,
    RequestAcceptanceRow,
    MapPointRow,
    LoadRow,
    CertificateRow,
    AnswerRow,
    StagesRow,
    CompileCacheRow,
    EventRow,
    LeaseRow,
    WorkerRow,
)
