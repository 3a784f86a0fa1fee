"""What is kept: our tables beside Optuna's, in one SQLite file, through SQLAlchemy.

Optuna's tables hold trials, parameters and objective values; ours hold the study file, every
launch (what was started, on what machine, how it ended), every request, and events with times.
A trial can be explained from this file alone. Nothing but this module and Optuna touches SQL.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import (
    JSON,
    URL,
    ForeignKey,
    LargeBinary,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from autotune import __version__
from autotune.bench import Sample, ServerStats
from autotune.engine.command import LaunchPlan
from autotune.engine.compile_cache import CacheUse, CompileCache
from autotune.engine.launch_stages import Stages
from autotune.engine.probe import VllmInfo
from autotune.errors import DatabaseLocked, MachineError, TrialFailure, UserError
from autotune.serving import Identity, boot_id
from autotune.study.differences import contents, fingerprint, fingerprints, why_not_same
from autotune.study.files import LoadedStudy, parse_study, text_without_secrets

SCHEMA = 2
BUSY_TIMEOUT_S = 20
_VLLM = "autotune:vllm"
# Of a launch whose trial is not there yet: it was copied, or its server was started ahead.
NO_TRIAL = -1


class _Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, list[float]: JSON}  # noqa: RUF012


class Meta(_Base):
    """One row: which version of these tables this is."""

    __tablename__ = "autotune_meta"
    schema: Mapped[int] = mapped_column(primary_key=True)


class StudyRow(_Base):
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


class LaunchRow(_Base):
    """One server process tree, from before its birth to after its death."""

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
    quality: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # measuring.Quality


class RequestRow(_Base):
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


class MapPointRow(_Base):
    """What `autotune map` launches: one n, or a schedule of n, under one setting."""

    __tablename__ = "autotune_map_points"
    id: Mapped[int] = mapped_column(primary_key=True)  # the `trial` of its launches
    study: Mapped[str] = mapped_column(index=True)
    setting: Mapped[dict[str, Any]]  # what all points of one map have in common
    n: Mapped[int]  # the largest one of a schedule
    schedule: Mapped[list[Any] | None] = mapped_column(JSON)  # [[first, last, n], …]
    created_at: Mapped[float]  # unix time, s


class LoadRow(_Base):
    """One part of what `autotune map` measured of a point at one load."""

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
    quality: Mapped[dict[str, Any]]  # measuring.Quality
    measured_at: Mapped[float]  # unix time, s


class StagesRow(_Base):
    """Where the time of one launch went: :class:`autotune.engine.launch_stages.Stages`."""

    __tablename__ = "autotune_stages"
    launch_id: Mapped[str] = mapped_column(
        ForeignKey("autotune_launches.launch_id"), primary_key=True
    )
    seconds: Mapped[dict[str, Any]]  # by stage, None: not known
    imports: Mapped[dict[str, Any]]  # by process


class CompileCacheRow(_Base):
    """What torch.compile's cache did in one launch: :mod:`autotune.engine.compile_cache`."""

    __tablename__ = "autotune_compile_cache"
    launch_id: Mapped[str] = mapped_column(
        ForeignKey("autotune_launches.launch_id"), primary_key=True
    )
    use: Mapped[str]  # a name of CacheUse
    folder: Mapped[str | None]


class EventRow(_Base):
    """What happened when."""

    __tablename__ = "autotune_events"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    study: Mapped[str] = mapped_column(index=True)
    trial: Mapped[int | None]
    launch_id: Mapped[str | None]
    what: Mapped[str]


def _url(path: Path) -> str:
    """SQLAlchemy's URL of a file, whatever characters its name has."""
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def _engine_events(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
        cursor.execute("PRAGMA synchronous = NORMAL")  # safe with WAL against a killed process
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()


@contextmanager
def exclusive(database: Path) -> Iterator[None]:
    """Holds the database for one runner; the kernel lets go when the process dies, however.

    Raises:
        UserError: another runner holds it, or the folder cannot be written.
    """
    if not database.parent.is_dir():
        raise UserError(f"{database}: the folder {database.parent} does not exist; make it first")
    lock = _lock_file(database)
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise UserError(f"{lock}: cannot be written: {e.strerror}") from e
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.read(fd, 20).decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"{database}: another autotune (pid {holder}) is running on it; wait for it, or "
                "give this run another --db"
            ) from e
        with suppress(OSError):  # a full disk; the pid is only for the message above
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


def _lock_file(database: Path) -> Path:
    """Beside the file itself, so that two links to one database have one lock."""
    file = database.resolve()
    return file.with_name(file.name + ".lock")


def is_free(database: Path) -> bool:
    """True if no runner holds the database now."""
    try:
        fd = os.open(_lock_file(database), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:  # another user's
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def file_identity(path: Path) -> tuple[int, int] | None:
    """Which file a path leads to now; None if to none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def opened(path: Path, *, create: bool = False) -> Iterator[Store]:
    """A :class:`Store` that is closed in the end, and whose errors are one clear line each.

    Raises:
        UserError: see :class:`Store`.
        DatabaseLocked: another program has held it for longer than ``BUSY_TIMEOUT_S``.
        MachineError: it cannot be read or written any more.
    """
    with database_errors(path):
        store = Store(path, create=create)
        try:
            yield store
        finally:
            store.close()


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Makes one clear line of what a database raises while it is used.

    Raises:
        DatabaseLocked: another program has held it for longer than ``BUSY_TIMEOUT_S``.
        MachineError: it cannot be read or written any more.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error) as e:
        code, words = _in_words(e)
        if code in _LOCKED:
            raise DatabaseLocked(f"{path}: {words}") from e
        raise MachineError(
            f"{path}: {words}. What was finished is kept; the same command goes on from there"
        ) from e


_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = (
    "is damaged ({said}); `sqlite3 DAMAGED.db .recover | sqlite3 NEW.db` saves into a new file "
    "what can be read"
)
# By SQLite's primary error code (https://sqlite.org/rescode.html): what happened, what to do.
_WORDS = {
    sqlite3.SQLITE_BUSY: "another program holds it locked; end that program",
    sqlite3.SQLITE_LOCKED: "another program holds it locked; end that program",
    sqlite3.SQLITE_FULL: "cannot be written, the disk is full; make room",
    sqlite3.SQLITE_READONLY: "cannot be written ({said}); look at the modes of file and folder",
    sqlite3.SQLITE_IOERR: "cannot be read or written ({said}); is its disk full or gone?",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened ({said}); is its folder there, and ours to write?",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: (
        "is no SQLite database, or its beginning is damaged; put back a copy of it, or give "
        "another --db"
    ),
}


def _in_words(error: BaseException) -> tuple[int, str]:
    """SQLite's primary code of an error that SQLAlchemy or Optuna wrapped, and one line."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, sqlite3.Error):
        found = getattr(found, "orig", None) or found.__cause__ or found.__context__
    code = getattr(found, "sqlite_errorcode", 0) & 0xFF
    said = " ".join(str(found or error).split())
    return code, _WORDS.get(code, "cannot be used ({said})").format(said=said)


def weights_of(quality: Mapping[str, Any] | None) -> dict[str, str]:
    """Hashes of the weights that a launch was measured with, by role; empty: none were kept."""
    kept = (quality or {}).get("weights")
    return {str(k): str(v) for k, v in kept.items()} if isinstance(kept, dict) else {}


class Store:
    """One database file.

    Args:
        path: The SQLite file.
        create: Make it if it is missing; otherwise a missing file is the user's mistake.

    Raises:
        UserError: it cannot be opened, is no database of ours, is damaged, or is from another
            version.
        DatabaseLocked: another program has held it for longer than ``BUSY_TIMEOUT_S``.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        try:
            if not create and not path.exists():
                raise UserError(
                    f"{path}: no such database; `autotune run` makes one, --db names it"
                )
            if create and not (path.exists() and path.stat().st_size):
                self._make(path.resolve())
            self._check_readable(create)
            self._open(path, create)
        except OSError as e:
            raise UserError(f"{path}: cannot be opened: {e.strerror}") from e
        except (OperationalError, DatabaseError) as e:
            code, words = _in_words(e)
            if code in _LOCKED:
                raise DatabaseLocked(f"{path}: {words}") from e
            raise UserError(f"{path}: {words}; nothing was changed in it") from e
        except RuntimeError as e:  # Optuna's own version check
            raise UserError(f"{path}: {' '.join(str(e).split())}") from e

    def _make(self, file: Path) -> None:
        """A database is there with all its tables or not at all, whenever we are killed."""
        draft = file.with_name(f"{file.name}.new")
        every = [draft.with_name(draft.name + end) for end in ("", "-wal", "-shm")]
        for part in every:
            part.unlink(missing_ok=True)
        try:
            draft.touch(mode=0o600)
            self._open(draft, create=True)
            self._engine.dispose()
            draft.replace(file)
        finally:
            for part in every:
                part.unlink(missing_ok=True)

    def _open(self, file: Path, create: bool) -> None:
        self.storage = RDBStorage(
            # Optuna fills {names} into a URL
            _url(file).replace("{", "{{").replace("}", "}}"),
            engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_S}},
        )
        self._engine = self.storage.engine
        _engine_events(self._engine)
        self._engine.dispose()  # connections made before the pragmas were set
        if create:
            with self._engine.connect() as c:
                c.execute(text("PRAGMA journal_mode = WAL"))
        self._schema(create)

    def _check_readable(self, create: bool) -> None:
        """Looks before Optuna writes its tables into a file that is something else."""
        engine = create_engine(_url(self.path))
        try:
            tables = inspect(engine).get_table_names()
            if create and tables:
                with engine.connect() as c:  # a damaged page may not be met for many trials
                    found = c.execute(text("PRAGMA quick_check(1)")).scalar()
                if found != "ok":
                    words = _DAMAGED.format(said=" ".join(str(found).split()))
                    raise UserError(f"{self.path}: {words}; nothing was changed in it")
        finally:
            engine.dispose()
        if not create and "autotune_meta" not in tables:
            raise UserError(f"{self.path}: is not a database of autotune")
        if tables and "autotune_meta" not in tables and "alembic_version" not in tables:
            raise UserError(f"{self.path}: holds another program's tables; give another --db")

    def _schema(self, create: bool) -> None:
        if create:
            _Base.metadata.create_all(self._engine)
        with Session(self._engine) as s:
            found = s.scalar(select(Meta.schema))
            if found is None and create:
                s.add(Meta(schema=SCHEMA))
                s.commit()
            elif found != SCHEMA:
                raise UserError(
                    f"{self.path}: was written by another version of autotune (tables {found}, "
                    f"this one reads {SCHEMA}); use that version, or give another --db"
                )

    def close(self) -> None:
        """Lets go of the file."""
        self._engine.dispose()

    # -- studies ---------------------------------------------------------------------------

    def study_names(self) -> list[str]:
        """Names of the studies in this file, oldest first."""
        with Session(self._engine) as s:
            return list(s.scalars(select(StudyRow.name).order_by(StudyRow.created_at)))

    def pick_study(self, name: str | None) -> str:
        """The study that is meant: the named one, or the only one.

        Raises:
            UserError: there is none, or several and none is named.
        """
        names = self.study_names()
        if not names:
            raise UserError(f"{self.path}: holds no study yet; `autotune run` starts one")
        if name is None:
            if len(names) > 1:
                raise UserError(
                    f"{self.path}: holds several studies; add --study with one of "
                    + ", ".join(names)
                )
            return names[0]
        if name not in names:
            raise UserError(f"{self.path}: has no study {name}; it has {', '.join(names)}")
        return name

    def load_study(self, name: str) -> tuple[LoadedStudy, StudyRow]:
        """The study file as it was run, with its row."""
        with Session(self._engine) as s:
            row = s.get_one(StudyRow, name)
            s.expunge(row)
        loaded = parse_study(row.yaml, Path(row.path), check_files=False)
        if loaded.spec.name != name:  # files are named after it, and a study file's is checked
            raise UserError(f"{self.path}: the study {name!r} is another one in its own file")
        return loaded, row

    def begin_study(self, loaded: LoadedStudy, *, seed: int, wanted: int) -> StudyRow:
        """Write the study down, or check that it is the one that is there already.

        The row then has the study file as it is now: keys that affect no result may have changed.

        Raises:
            UserError: a study of this name was run from a file that says something else.
        """
        spec = loaded.spec
        now = fingerprint(loaded)
        with Session(self._engine) as s:
            row = s.get(StudyRow, spec.name)
            if row is None:
                row = StudyRow(
                    name=spec.name, seed=seed, created_at=time.time(), autotune_version=__version__
                )
                s.add(row)
            elif changed := _why_not_same(row, loaded):
                raise UserError(
                    f"{loaded.path}: the study {spec.name} in {self.path} was begun with another "
                    f"{changed}; trials would not compare. "
                    "Change the name in the file, or give another --db"
                )
            else:
                _rename_maps(s, spec.name, {row.fingerprint}, now)
            row.path, row.yaml = str(loaded.path.resolve()), text_without_secrets(loaded)
            row.fingerprint, row.wanted = now, wanted
            s.commit()
            s.refresh(row)
            s.expunge(row)
        return row

    def fingerprints(self, loaded: LoadedStudy) -> frozenset[str]:
        """Return every fingerprint under which this file may hold trials that compare.

        Args:
            loaded: A study, which need not be in this file.
        """
        known = fingerprints(loaded.spec, contents(loaded.spec, loaded.base))
        with Session(self._engine) as s:
            row = s.get(StudyRow, loaded.spec.name)
        if row is None or _why_not_same(row, loaded) is not None:
            return known
        return known | {row.fingerprint}

    # -- launches --------------------------------------------------------------------------

    def plan_launch(
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
        """Written before anything is started, so that no process exists that is not in here."""
        with Session(self._engine) as s:
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
                )
            )
            s.commit()

    def launch_started(self, identity: Identity) -> None:
        """The server's processes exist."""
        self._update(identity.launch_id, identity=asdict(identity))

    def launch_ready(self, launch_id: str, vllm_version: str | None) -> None:
        """The server answers ``/health`` and is the one we asked for."""
        self._update(launch_id, ready_at=time.time(), vllm_version=vllm_version)

    def launch_measured(
        self,
        launch_id: str,
        stats: ServerStats,
        values: Mapping[str, float],
        intervals: Mapping[str, tuple[float | None, float | None]],
        quality: Mapping[str, Any],
    ) -> None:
        """The measurement is whole; ``values`` and ``intervals`` by objective name."""
        self._update(
            launch_id,
            measured_at=time.time(),
            stats=asdict(stats),
            values=dict(values),
            intervals={name: list(bounds) for name, bounds in intervals.items()},
            quality=dict(quality),
        )

    def launch_failed(self, launch_id: str, failure: TrialFailure, log_tail: Sequence[str]) -> None:
        """Why this launch has no numbers."""
        self._update(
            launch_id,
            failure_kind=str(failure.kind),
            failure_reason=failure.reason,
            evidence=list(failure.evidence),
            log_tail="\n".join(log_tail),
        )

    def launch_ended(self, launch_id: str, exit_code: int | None, killed: int) -> None:
        """Nothing of the server is left."""
        self._update(launch_id, ended_at=time.time(), exit_code=exit_code, killed=killed)

    def _update(self, launch_id: str, **columns: Any) -> None:
        with Session(self._engine) as s:
            row = s.get_one(LaunchRow, launch_id)
            for name, value in columns.items():
                setattr(row, name, value)
            s.commit()

    def add_samples(self, launch_id: str, samples: Sequence[Sample]) -> None:
        """Every request of one phase."""
        with Session(self._engine) as s:
            s.add_all(
                RequestRow(
                    launch_id=launch_id,
                    phase=x.phase,
                    index=x.index,
                    intended=x.intended,
                    start=x.start,
                    ttft=x.ttft,
                    end=x.end,
                    prompt_tokens=x.prompt_tokens,
                    output_tokens=x.output_tokens,
                    status=x.status,
                    error=x.error,
                    chunks=array("f", x.chunks).tobytes(),
                )
                for x in samples
            )
            s.commit()

    def launch(self, launch_id: str) -> LaunchRow:
        """One launch."""
        with Session(self._engine) as s:
            row = s.get_one(LaunchRow, launch_id)
            s.expunge(row)
        return row

    def launches(self, study: str, trial: int | None = None) -> list[LaunchRow]:
        """Every launch of a study, or of one trial of it, oldest first."""
        query = select(LaunchRow).where(LaunchRow.study == study).order_by(LaunchRow.planned_at)
        if trial is not None:
            query = query.where(LaunchRow.trial == trial)
        with Session(self._engine) as s:
            rows = list(s.scalars(query))
            s.expunge_all()
        return rows

    def measured_on(self, study: str) -> tuple[dict[str, Any] | None, str | None]:
        """The machine of a study's latest launch, and the vLLM of the latest that told its own."""
        latest = LaunchRow.planned_at.desc()
        of = LaunchRow.study == study
        machine = select(LaunchRow.machine).where(of).order_by(latest).limit(1)
        version = select(LaunchRow.vllm_version).where(of, LaunchRow.vllm_version.is_not(None))
        with Session(self._engine) as s:
            return s.scalar(machine), s.scalar(version.order_by(latest).limit(1))

    def weights(self, study: str) -> dict[str, str]:
        """Hashes of the weights that a study was measured with, the latest ones, by role."""
        query = (
            select(LaunchRow.quality)
            .where(LaunchRow.study == study, LaunchRow.quality.is_not(None))
            .order_by(LaunchRow.planned_at)
        )
        found: dict[str, str] = {}
        with Session(self._engine) as s:
            for quality in s.scalars(query):
                found |= weights_of(quality)
        return found

    def rests(self, study: str, machine: Mapping[str, Any]) -> list[float]:
        """Seconds of the canary before each measured launch of a study on this machine."""
        query = (
            select(LaunchRow.machine, LaunchRow.quality)
            .where(LaunchRow.study == study, LaunchRow.quality.is_not(None))
            .order_by(LaunchRow.planned_at)
        )
        with Session(self._engine) as s:
            return [
                quality["machine"]["rest"]["kernel_s"]
                for of, quality in s.execute(query)
                if quality and of == machine
            ]

    def requests(self, launch_id: str, phase: str | None = None) -> list[RequestRow]:
        """Every request of a launch, or of one phase of it, in the order they ended."""
        query = select(RequestRow).where(RequestRow.launch_id == launch_id).order_by(RequestRow.id)
        if phase is not None:
            query = query.where(RequestRow.phase == phase)
        with Session(self._engine) as s:
            rows = list(s.scalars(query))
            s.expunge_all()
        return rows

    def samples(self, launch_id: str, phase: str = "measure") -> list[Sample]:
        """The requests of one phase of a launch, as the client gave them."""
        return [
            Sample(
                index=r.index,
                phase=r.phase,
                intended=r.intended,
                start=r.start,
                ttft=r.ttft,
                end=r.end,
                prompt_tokens=r.prompt_tokens,
                output_tokens=r.output_tokens,
                status=r.status,
                error=r.error,
                chunks=tuple(array("f", r.chunks)),
            )
            for r in self.requests(launch_id, phase)
        ]

    def unended_launches(self) -> list[LaunchRow]:
        """Launches of all studies whose end was never written down: the ledger."""
        with Session(self._engine) as s:
            rows = list(s.scalars(select(LaunchRow).where(LaunchRow.ended_at.is_(None))))
            s.expunge_all()
        return rows

    def event(
        self, study: str, what: str, *, trial: int | None = None, launch_id: str | None = None
    ) -> None:
        """Notes what happened, now."""
        with Session(self._engine) as s:
            s.add(
                EventRow(at=time.time(), study=study, trial=trial, launch_id=launch_id, what=what)
            )
            s.commit()

    def events(self, study: str) -> list[EventRow]:
        """What happened in a study, oldest first."""
        with Session(self._engine) as s:
            rows = list(
                s.scalars(select(EventRow).where(EventRow.study == study).order_by(EventRow.id))
            )
            s.expunge_all()
        return rows

    # -- launches of other studies -----------------------------------------------------------

    def copy_launch(self, other: Store, launch_id: str, *, new_id: str, study: str) -> None:
        """Copies a launch of another study, with its requests; of no trial until it gets one.

        One that was copied before stays as it is.

        Args:
            other: Has the launch; may be a store of the same file.
            launch_id: Its id there.
            new_id: Its id here.
            study: Whose launch it becomes.
        """
        with Session(self._engine) as s:
            if s.get(LaunchRow, new_id) is not None:
                return
        with Session(other._engine) as s:
            launch = _columns(s.get_one(LaunchRow, launch_id))
            query = select(RequestRow).where(RequestRow.launch_id == launch_id)
            requests = [_columns(r) for r in s.scalars(query.order_by(RequestRow.id))]
        launch |= {"launch_id": new_id, "study": study, "trial": NO_TRIAL}
        for r in requests:
            r["launch_id"] = new_id
            del r["id"]
        with Session(self._engine) as s:
            s.add(LaunchRow(**launch))
            s.flush()
            if requests:
                s.execute(insert(RequestRow), requests)
            s.commit()

    def give_launch(self, launch_id: str, trial: int, attempt: int | None = None) -> None:
        """A launch that was copied, or started ahead, is that of a trial.

        Args:
            launch_id: Its id.
            trial: The trial's number.
            attempt: How many launches of the trial there were; None: as it is.
        """
        self._update(launch_id, trial=trial, **({} if attempt is None else {"attempt": attempt}))

    # -- time ------------------------------------------------------------------------------
    # These tables came later, as those of maps did.

    def keep_stages(self, launch_id: str, stages: Stages) -> None:
        """A launch has ended, and this is where its time went."""
        row = StagesRow(
            launch_id=launch_id, seconds=dict(stages.seconds), imports=dict(stages.imports)
        )
        with Session(self._engine) as s:
            s.add(row)
            s.commit()

    def stages(self, study: str) -> dict[str, Stages]:
        """By launch id, of the launches of a study that were split."""
        if not inspect(self._engine).has_table(StagesRow.__tablename__):
            return {}
        query = (
            select(StagesRow)
            .join(LaunchRow, LaunchRow.launch_id == StagesRow.launch_id)
            .where(LaunchRow.study == study)
        )
        with Session(self._engine) as s:
            return {row.launch_id: Stages(row.seconds, row.imports) for row in s.scalars(query)}

    def keep_compile_cache(self, launch_id: str, found: CompileCache) -> None:
        """A launch has ended, and this is what torch.compile's cache did in it."""
        row = CompileCacheRow(launch_id=launch_id, use=found.use.name, folder=found.folder)
        with Session(self._engine) as s:
            s.add(row)
            s.commit()

    def compile_caches(self, study: str) -> dict[str, CompileCache]:
        """By launch id, of the launches of a study whose log tells."""
        if not inspect(self._engine).has_table(CompileCacheRow.__tablename__):
            return {}
        query = (
            select(CompileCacheRow)
            .join(LaunchRow, LaunchRow.launch_id == CompileCacheRow.launch_id)
            .where(LaunchRow.study == study)
        )
        with Session(self._engine) as s:
            return {
                row.launch_id: CompileCache(CacheUse[row.use], row.folder)
                for row in s.scalars(query)
            }

    def first_request(self, launch_id: str) -> float | None:
        """Seconds from the begin of the warm-up to the end of its first request."""
        query = select(func.min(RequestRow.end)).where(
            RequestRow.launch_id == launch_id, RequestRow.phase == "warmup"
        )
        with Session(self._engine) as s:
            return s.scalar(query)

    # -- maps ------------------------------------------------------------------------------
    # Their two tables came later: a database that only an earlier autotune wrote has none, and
    # gets them when it is opened to be written.

    def add_map_point(
        self, study: str, setting: Mapping[str, Any], n: int, schedule: Sequence[Any] | None
    ) -> MapPointRow:
        """Written before its first launch."""
        with Session(self._engine) as s:
            row = MapPointRow(
                study=study,
                setting=dict(setting),
                n=n,
                schedule=None if schedule is None else [list(x) for x in schedule],
                created_at=time.time(),
            )
            s.add(row)
            s.commit()
            s.refresh(row)
            s.expunge(row)
        return row

    def rename_maps(self, study: str, known: Collection[str], now: str) -> None:
        """Give the load sweeps of a study its present fingerprint.

        Args:
            study: Its name.
            known: Fingerprints that are the same experiment: :meth:`fingerprints`.
            now: The present one.
        """
        with Session(self._engine) as s:
            _rename_maps(s, study, known, now)
            s.commit()

    def map_points(self, study: str) -> list[MapPointRow]:
        """Of all settings, oldest first."""
        if not inspect(self._engine).has_table(MapPointRow.__tablename__):
            return []
        query = select(MapPointRow).where(MapPointRow.study == study).order_by(MapPointRow.id)
        with Session(self._engine) as s:
            rows = list(s.scalars(query))
            s.expunge_all()
        return rows

    def add_load(
        self,
        launch_id: str,
        point: int,
        *,
        concurrency: int,
        part: int,
        phase: str,
        stats: ServerStats,
        values: Mapping[str, float],
        intervals: Mapping[str, tuple[float | None, float | None]],
        quality: Mapping[str, Any],
    ) -> None:
        """One part was measured; arguments as of :meth:`launch_measured`."""
        with Session(self._engine) as s:
            s.add(
                LoadRow(
                    launch_id=launch_id,
                    point=point,
                    concurrency=concurrency,
                    part=part,
                    phase=phase,
                    requests=quality["requests"],
                    stats=asdict(stats),
                    values=dict(values),
                    intervals={name: list(bounds) for name, bounds in intervals.items()},
                    quality=dict(quality),
                    measured_at=time.time(),
                )
            )
            s.commit()

    def loads(self, point: int) -> list[LoadRow]:
        """What was measured of a point, in the launches that did not fail, oldest first."""
        query = (
            select(LoadRow)
            .join(LaunchRow, LaunchRow.launch_id == LoadRow.launch_id)
            .where(LoadRow.point == point, LaunchRow.failure_kind.is_(None))
            .order_by(LoadRow.id)
        )
        with Session(self._engine) as s:
            rows = list(s.scalars(query))
            s.expunge_all()
        return rows

    def keep_vllm(self, study: str, info: VllmInfo) -> None:
        """What is known of the study's vLLM, so that nobody has to ask it again."""
        number = self.storage.get_study_id_from_name(study)
        self.storage.set_study_system_attr(number, _VLLM, json.loads(json.dumps(asdict(info))))

    def vllm(self, study: str) -> VllmInfo | None:
        """What :meth:`keep_vllm` kept; None: nothing, by an earlier version of autotune.

        Raises:
            UserError: it is something else.
        """
        number = self.storage.get_study_id_from_name(study)
        kept = self.storage.get_study_system_attrs(number).get(_VLLM)
        try:
            return None if kept is None else TypeAdapter(VllmInfo).validate_python(kept)
        except ValidationError as e:
            raise UserError(f"{self.path}: what it says of {study}'s vLLM cannot be read") from e

    def optuna_study(self, name: str) -> optuna.Study:
        """Optuna's side of a study that exists.

        Raises:
            UserError: the study's first run ended before it was made.
        """
        try:
            return optuna.load_study(study_name=name, storage=self.storage)
        except KeyError:
            raise UserError(
                f"{self.path}: {name} was begun and never ran; `autotune run` goes on with it"
            ) from None


def _columns(row: _Base) -> dict[str, Any]:
    """A row as plain data."""
    return {c.key: getattr(row, c.key) for c in inspect(type(row)).column_attrs}


def _why_not_same(row: StudyRow, loaded: LoadedStudy) -> str | None:
    old = parse_study(row.yaml, Path(row.path), check_files=False)
    return why_not_same(old, row.fingerprint, loaded)


def _rename_maps(session: Session, study: str, known: Collection[str], now: str) -> None:
    """Give the load sweeps of a study its present fingerprint."""
    for point in session.scalars(select(MapPointRow).where(MapPointRow.study == study)):
        if point.setting["fingerprint"] in known:
            point.setting = {**point.setting, "fingerprint": now}
