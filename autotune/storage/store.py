"""One open database: its creation, its integrity, its studies, and its repositories.

Optuna's tables hold trials, parameters and objective values; autotune's hold the study file, every
launch (what was started, on which machine, how it ended), every request, and events with times.
The database alone explains a trial.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autotune.errors import UserError
from autotune.storage import trials
from autotune.storage.backend import Backend, backend_of, patient
from autotune.storage.certificates import Certificates
from autotune.storage.failures import DAMAGED, GOES_ON, NOTHING_CHANGED, database_errors
from autotune.storage.hosts import Hosts
from autotune.storage.launches import Launches
from autotune.storage.load_maps import LoadMaps, rename_points
from autotune.storage.location import Database
from autotune.storage.migrations import REVISIONS, revision_of, upgrade
from autotune.storage.names import break_even_name
from autotune.storage.reading import Reader, views_of_today
from autotune.storage.requests import Requests
from autotune.storage.schema import KINDS, EventRow, StudyRow
from autotune.storage.trial_end import write_end
from autotune.storage.trials import StoredStudy
from autotune.study.differences import contents, fingerprint, fingerprints, why_not_same
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.stored import text_to_store

if TYPE_CHECKING:  # a database is read without them
    import optuna
    from optuna.storages import RDBStorage
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from autotune.engine.probe import VllmInfo

T = TypeVar("T")

BUSY_TIMEOUT_S = 20
_VLLM = "autotune:vllm"


@contextmanager
def opened(database: Database, *, create: bool = False, write: bool = False) -> Iterator[Store]:
    """Yield a :class:`Store` that is closed in the end; each of its errors is one clear line.

    Raises:
        UserError: see :class:`Store`.
        DatabaseLocked: another program has held it for longer than ``BUSY_TIMEOUT_S``.
        LeaseLost: another driver took it over.
        MachineError: it cannot be read or written any more.
    """
    writes = create or write
    with database_errors(database, what_now=GOES_ON if writes else NOTHING_CHANGED):
        store = Store(database, create=create, write=write)
        try:
            yield store
        finally:
            store.close()


def is_there(database: Database) -> bool:
    """Return whether there is such a file, or the server has a database of autotune.

    Raises:
        UserError: the server cannot be used.
    """
    if isinstance(database, Path):
        return database.exists()
    with database_errors(database, UserError, NOTHING_CHANGED):
        backend = backend_of(database, BUSY_TIMEOUT_S)
        try:
            return backend.is_there()
        finally:
            backend.close()


def no_such(database: Database) -> str:
    """Return the line that says that :func:`is_there` finds nothing."""
    if isinstance(database, Path):
        return f"{database}: no such database; `autotune run` makes one, --db names it"
    return (
        f"{database}: has no tables of autotune; `autotune run` makes them, --db names a database"
    )


class _Sessions:
    """Sessions to write, and the patience for it."""

    def __init__(self, store: Store, backend: Backend) -> None:
        self._store, self.again = store, backend.again

    def __call__(self) -> Session:
        from sqlalchemy.orm import Session

        import autotune.storage.tables  # noqa: F401 – maps the rows

        return Session(self._store.storage.engine)


class Store:
    """One open database.

    Args:
        database: Where it is: a file of SQLite, or a database of a server.
        create: Make the database if it is missing; otherwise a missing one is the user's mistake.
        write: Bring the database to the last revision of its tables, as ``create`` does.
            Otherwise only Optuna's tables may be written, and an older database is read unchanged.

    Attributes:
        database: Where it is.
        storage: Optuna's storage in the database, opened when it is first used.
        launches: Launches of all studies.
        requests: Requests of all launches.
        load_maps: Load sweeps of all studies.
        certificates: Verifications of all studies.
        hosts: What is known of the hosts that launch.

    Raises:
        UserError: it cannot be opened, is not autotune's, is damaged, or is from another version.
        DatabaseLocked: another program has held it for longer than ``BUSY_TIMEOUT_S``.
    """

    def __init__(self, database: Database, *, create: bool = False, write: bool = False) -> None:
        self.database = database
        self._backend = backend = backend_of(database, BUSY_TIMEOUT_S)
        self._reader = backend.reader
        self._sessions = _Sessions(self, backend)
        self.launches = Launches(self._reader, self._sessions)
        self.requests = Requests(self._reader, self._sessions)
        self.load_maps = LoadMaps(self._reader, self._sessions)
        self.certificates = Certificates(self._reader, self._sessions)
        self.hosts = Hosts(self._reader, database)
        write = write or create
        try:
            with database_errors(database, UserError, NOTHING_CHANGED):
                if not create and not backend.is_there():
                    raise UserError(no_such(database))
                if create and not backend.has_tables():
                    with backend.new() as (storage, reader):
                        self._upgrade(storage, reader)
                self._look(create, write)
                if write:
                    self._upgrade(self.storage, self._reader)
        except OSError as e:
            raise UserError(f"{database}: cannot be opened: {e.strerror}") from e

    def _look(self, create: bool, write: bool) -> None:
        """Check the database before anything is written; show an older database as one of today."""
        tables = self._reader.tables()
        if create and tables and (said := self._backend.damage()) is not None:
            words = DAMAGED.format(said=said)
            raise UserError(f"{self.database}: {words}{NOTHING_CHANGED}")
        if not create and "autotune_meta" not in tables:
            raise UserError(f"{self.database}: is not a database of autotune")
        if tables and not tables.keys() & {"autotune_meta", "alembic_version", "version_info"}:
            raise UserError(f"{self.database}: holds another program's tables; give another --db")
        found = revision_of(self._reader)
        if found is not None and found not in REVISIONS:
            raise UserError(
                f"{self.database}: was written by another version of autotune (tables {found}, "
                f"this one reads {REVISIONS[-1]}); use that version, or give another --db"
            )
        theirs = trials.revision_of(self._reader)
        if theirs is not None and theirs not in trials.REVISIONS:
            raise UserError(
                f"{self.database}: was written by another version of Optuna (tables {theirs}, this "
                f"version of autotune reads {trials.REVISIONS[-1]}); use the version of Optuna "
                "that autotune is installed with, or give another --db"
            )
        if not write and found != REVISIONS[-1]:
            self._reader.views = views_of_today(self._reader, KINDS)

    @cached_property
    def storage(self) -> RDBStorage:
        """Optuna's side of the database."""
        return self._backend.optuna(self._reader.views)

    @property
    def _engine(self) -> Engine:
        return self.storage.engine

    def _upgrade(self, storage: RDBStorage, reader: Reader) -> None:
        upgrade(storage.engine, reader, BUSY_TIMEOUT_S)
        self._backend.settle(storage)

    def take_lease(self, say: Callable[[str], None] = lambda _text: None) -> None:
        """Become the only driver of the database; of a file, the caller holds the lock.

        Args:
            say: Told, as one line, what is waited for, now and later.

        Raises:
            UserError: another driver holds the lease of a database on a server.
        """
        self._backend.say = say
        self.launches.holder = self._backend.take_lease(self._sessions)

    def again(self, work: Callable[[], T]) -> T:
        """Do what writes in one transaction; again when the connection to a server was lost."""
        return self._backend.again(work)

    def check_lease(self) -> None:
        """Check that this process may still write.

        Raises:
            LeaseLost: another driver has taken the lease.
        """
        self._backend.check_lease()

    def close(self) -> None:
        """Give back the lease of a server, and close all connections."""
        if "storage" in self.__dict__:
            self._engine.dispose()
        self._backend.close()

    def study_names(self) -> list[str]:
        """Return the names of the studies in this database, oldest first."""
        rows = self._reader.rows("SELECT name FROM autotune_studies ORDER BY created_at")
        return [row["name"] for row in rows]

    def _study(self, name: str) -> StudyRow | None:
        found = self._reader.records(StudyRow, "WHERE name = :name", name=name)
        return found[0] if found else None

    def pick_study(self, name: str | None) -> str:
        """Return the name of the requested study: the named one, or the only one.

        Raises:
            UserError: there is none, or several and none is named.
        """
        names = self.study_names()
        if not names:
            raise UserError(f"{self.database}: holds no study yet; `autotune run` starts one")
        if name is None:
            if len(names) > 1:
                raise UserError(
                    f"{self.database}: holds several studies; add --study with one of "
                    + ", ".join(names)
                )
            return names[0]
        if name not in names:
            raise UserError(f"{self.database}: has no study {name}; it has {', '.join(names)}")
        return name

    def load_study(self, name: str) -> tuple[LoadedStudy, StudyRow]:
        """Return the study file as it was run, with its row."""
        row = self._study(name)
        if row is None:
            raise UserError(f"{self.database}: has no study {name}")
        loaded = parse_study(row.yaml, Path(row.path), check_files=False, stored=True)
        if loaded.spec.name != name:  # files are named after it, and a study file's is checked
            raise UserError(f"{self.database}: the study {name!r} is another one in its own file")
        return loaded, row

    @patient
    def begin_study(self, loaded: LoadedStudy, *, seed: int, wanted: int) -> StudyRow:
        """Store the study, or check that the stored one is the same.

        The row then holds the present study file: keys that affect no result may have changed.

        Raises:
            UserError: a study of this name was run from a file that says something else.
        """
        spec = loaded.spec
        now: dict[str, Any] = {
            "path": str(loaded.path.resolve()),
            "yaml": text_to_store(loaded),
            "fingerprint": fingerprint(loaded),
            "wanted": wanted,
        }
        with self._sessions() as s:
            row = s.get(StudyRow, spec.name)
            if row is None:
                from autotune._version import __version__

                began: dict[str, Any] = {
                    "seed": seed,
                    "created_at": time.time(),
                    "autotune_version": __version__,
                }
                row = StudyRow(name=spec.name, **began, **now)
                s.add(row)
            elif changed := _why_not_same(row, loaded):
                raise UserError(
                    f"{loaded.path}: the study {spec.name} in {self.database} was begun with "
                    f"another {changed}; trials would not compare. "
                    "Change the name in the file, or give another --db"
                )
            else:
                for kept_as in (spec.name, break_even_name(spec.name)):
                    rename_points(s, kept_as, {row.fingerprint}, now["fingerprint"])
                for column, value in now.items():
                    setattr(row, column, value)
            s.commit()
            s.refresh(row)
            s.expunge(row)
        return row

    def fingerprints(self, loaded: LoadedStudy) -> frozenset[str]:
        """Return every fingerprint under which this file may hold trials that compare.

        Args:
            loaded: A study, which need not be in this database.
        """
        known = fingerprints(loaded.spec, contents(loaded.spec, loaded.base))
        row = self._study(loaded.spec.name)
        if row is None or _why_not_same(row, loaded) is not None:
            return known
        return known | {row.fingerprint}

    def keep_vllm(self, study: str, info: VllmInfo) -> None:
        """Keep what is known of the study's vLLM, so that it need not be asked again."""
        number = self.storage.get_study_id_from_name(study)
        self.storage.set_study_system_attr(number, _VLLM, json.loads(json.dumps(asdict(info))))

    def vllm(self, study: str) -> VllmInfo | None:
        """Return what :meth:`keep_vllm` kept; None if an earlier version of autotune kept nothing.

        Raises:
            UserError: it is something else.
        """
        from pydantic import TypeAdapter, ValidationError

        from autotune.engine.probe import VllmInfo

        kept = trials.system_attr(self._reader, study, _VLLM)
        try:
            return None if kept is None else TypeAdapter(VllmInfo).validate_python(kept)
        except ValidationError as e:
            raise UserError(
                f"{self.database}: what it says of {study}'s vLLM cannot be read"
            ) from e

    def optuna_study(self, name: str) -> optuna.Study:
        """Return Optuna's study of a study that exists.

        Raises:
            UserError: the study's first run ended before it was made.
        """
        import optuna

        try:
            return optuna.load_study(study_name=name, storage=self.storage)
        except KeyError:
            raise self._never_ran(name) from None

    def stored_study(self, name: str) -> StoredStudy:
        """Return Optuna's side of a study that exists, read without Optuna.

        Raises:
            UserError: the study's first run ended before it was made.
        """
        found = trials.stored_study(self._reader, name)
        if found is None:
            raise self._never_ran(name)
        return found

    def ran(self, name: str) -> bool:
        """Return whether a study has Optuna's side, which its first run makes."""
        return trials.study_id(self._reader, name) is not None

    def _never_ran(self, name: str) -> UserError:
        return UserError(
            f"{self.database}: {name} was begun and never ran; `autotune run` goes on with it"
        )

    def trial_id(self, study: str, number: int) -> int:
        """Return Optuna's id of a trial, which is unique in the database."""
        study_id = self.storage.get_study_id_from_name(study)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)

    @patient
    def end_trial(
        self,
        trial_id: int,
        attrs: Mapping[str, object],
        values: Sequence[float] | None,
        told: tuple[str, int, str | None] | None = None,
    ) -> None:
        """End a trial that runs, with its attributes, in one transaction.

        Args:
            trial_id: Optuna's id of the trial.
            attrs: User attributes to write.
            values: Value of each objective; None: it failed.
            told: Study, trial and launch of the event ``told``; None: there is none.
        """
        with self._sessions() as s:
            write_end(s, self.storage, trial_id, attrs, values)
            if told is not None:
                study, trial, launch = told
                s.add(
                    EventRow(
                        at=time.time(), study=study, trial=trial, launch_id=launch, what="told"
                    )
                )
            s.commit()


def _why_not_same(row: StudyRow, loaded: LoadedStudy) -> str | None:
    """Return why a stored study is another experiment; None: it is not."""
    old = parse_study(row.yaml, Path(row.path), check_files=False, stored=True)
    return why_not_same(old, row.fingerprint, loaded)
