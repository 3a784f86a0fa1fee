"""One open database: its creation, its integrity, its studies, and its repositories.

Optuna's tables hold trials, parameters and objective values; autotune's hold the study file, every
launch (what was started, on which machine, how it ended), every request, and events with times.
The database alone explains a trial.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import URL, create_engine, inspect, select, text
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import sessionmaker

from autotune._version import __version__
from autotune.engine.probe import VllmInfo
from autotune.errors import DatabaseLocked, UserError
from autotune.storage.failures import DAMAGED, LOCKED, database_errors, in_words
from autotune.storage.launches import Launches
from autotune.storage.lease import take
from autotune.storage.load_maps import LoadMaps, rename_points
from autotune.storage.migrations import REVISIONS, revision_of, upgrade
from autotune.storage.requests import Requests
from autotune.storage.schema import StudyRow
from autotune.storage.sqlite import damage, draft_of, on_connect, url_of, views_of_today
from autotune.study.differences import contents, fingerprint, fingerprints, why_not_same
from autotune.study.files import LoadedStudy, parse_study, text_without_secrets

BUSY_TIMEOUT_S = 20
_VLLM = "autotune:vllm"


def _in_optuna(url: URL) -> str:
    """Return a URL as Optuna wants it: Optuna fills {names} into its text."""
    return url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")


@contextmanager
def opened(path: Path, *, create: bool = False, write: bool = False) -> Iterator[Store]:
    """Yield a :class:`Store` that is closed in the end; each of its errors is one clear line.

    Raises:
        UserError: see :class:`Store`.
        DatabaseLocked: another program has held it for longer than ``BUSY_TIMEOUT_S``.
        MachineError: it cannot be read or written any more.
    """
    with database_errors(path):
        store = Store(path, create=create, write=write)
        try:
            yield store
        finally:
            store.close()


class Store:
    """One open database.

    Args:
        path: File of the SQLite database.
        create: Make the database if it is missing; otherwise a missing file is the user's mistake.
        write: Bring the database to the last revision of its tables, as ``create`` does.
            Otherwise only Optuna's tables may be written, and an older database is read unchanged.

    Attributes:
        path: File of the database.
        url: SQLAlchemy's URL of the database.
        storage: Optuna's storage in the database.
        launches: Launches of all studies.
        requests: Requests of all launches.
        load_maps: Load sweeps of all studies.

    Raises:
        UserError: it cannot be opened, is not autotune's, is damaged, or is from another version.
        DatabaseLocked: another program has held it for longer than ``BUSY_TIMEOUT_S``.
    """

    def __init__(self, path: Path, *, create: bool = False, write: bool = False) -> None:
        self.path = path
        self.url = url_of(path)
        write = write or create
        try:
            if not create and not path.exists():
                raise UserError(
                    f"{path}: no such database; `autotune run` makes one, --db names it"
                )
            if create and not (path.exists() and path.stat().st_size):
                self._make(path.resolve())
            views = self._look(create, write)
            self._open(self.url, write, views)
        except OSError as e:
            raise UserError(f"{path}: cannot be opened: {e.strerror}") from e
        except (OperationalError, DatabaseError) as e:
            code, words = in_words(e)
            if code in LOCKED:
                raise DatabaseLocked(f"{path}: {words}") from e
            raise UserError(f"{path}: {words}; nothing was changed in it") from e
        except RuntimeError as e:  # Optuna's own version check
            raise UserError(f"{path}: {' '.join(str(e).split())}") from e

    def _make(self, file: Path) -> None:
        """Make the database as a whole or not at all, even if this process is killed."""
        with draft_of(file) as draft:
            self._open(url_of(draft), True, [])
            self._engine.dispose()

    def _look(self, create: bool, write: bool) -> list[str]:
        """Check the file before anything is written; return views for an older database."""
        engine = create_engine(self.url)
        try:
            tables = inspect(engine).get_table_names()
            if create and tables and (said := damage(engine)) is not None:
                words = DAMAGED.format(said=said)
                raise UserError(f"{self.path}: {words}; nothing was changed in it")
            if not create and "autotune_meta" not in tables:
                raise UserError(f"{self.path}: is not a database of autotune")
            if tables and "autotune_meta" not in tables and "alembic_version" not in tables:
                raise UserError(f"{self.path}: holds another program's tables; give another --db")
            found = revision_of(engine)
            if found is not None and found not in REVISIONS:
                raise UserError(
                    f"{self.path}: was written by another version of autotune (tables {found}, "
                    f"this one reads {REVISIONS[-1]}); use that version, or give another --db"
                )
            return [] if write or found == REVISIONS[-1] else views_of_today(engine)
        finally:
            engine.dispose()

    def _open(self, url: URL, write: bool, views: list[str]) -> None:
        self.storage = RDBStorage(
            _in_optuna(url), engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_S}}
        )
        self._engine = self.storage.engine
        on_connect(self._engine, BUSY_TIMEOUT_S, views)
        self._engine.dispose()  # connections made before they were set up
        if write:
            upgrade(self._engine, BUSY_TIMEOUT_S)
            with self._engine.connect() as c:
                c.execute(text("PRAGMA journal_mode = WAL"))
        self._sessions = sessionmaker(self._engine)
        self.launches = Launches(self._sessions)
        self.requests = Requests(self._sessions)
        self.load_maps = LoadMaps(self._sessions)

    def take_lease(self) -> None:
        """Become the only driver of the database; the caller holds :func:`lease.exclusive`."""
        self.launches.holder = take(self._sessions)

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def study_names(self) -> list[str]:
        """Return the names of the studies in this database, oldest first."""
        with self._sessions() as s:
            return list(s.scalars(select(StudyRow.name).order_by(StudyRow.created_at)))

    def pick_study(self, name: str | None) -> str:
        """Return the name of the requested study: the named one, or the only one.

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
        """Return the study file as it was run, with its row."""
        with self._sessions() as s:
            row = s.get_one(StudyRow, name)
            s.expunge(row)
        loaded = parse_study(row.yaml, Path(row.path), check_files=False)
        if loaded.spec.name != name:  # files are named after it, and a study file's is checked
            raise UserError(f"{self.path}: the study {name!r} is another one in its own file")
        return loaded, row

    def begin_study(self, loaded: LoadedStudy, *, seed: int, wanted: int) -> StudyRow:
        """Store the study, or check that the stored one is the same.

        The row then holds the present study file: keys that affect no result may have changed.

        Raises:
            UserError: a study of this name was run from a file that says something else.
        """
        spec = loaded.spec
        now = fingerprint(loaded)
        with self._sessions() as s:
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
                rename_points(s, spec.name, {row.fingerprint}, now)
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
        with self._sessions() as s:
            row = s.get(StudyRow, loaded.spec.name)
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
        number = self.storage.get_study_id_from_name(study)
        kept = self.storage.get_study_system_attrs(number).get(_VLLM)
        try:
            return None if kept is None else TypeAdapter(VllmInfo).validate_python(kept)
        except ValidationError as e:
            raise UserError(f"{self.path}: what it says of {study}'s vLLM cannot be read") from e

    def optuna_study(self, name: str) -> optuna.Study:
        """Return Optuna's study of a study that exists.

        Raises:
            UserError: the study's first run ended before it was made.
        """
        try:
            return optuna.load_study(study_name=name, storage=self.storage)
        except KeyError:
            raise UserError(
                f"{self.path}: {name} was begun and never ran; `autotune run` goes on with it"
            ) from None

    def trial_id(self, study: str, number: int) -> int:
        """Return Optuna's id of a trial, which is unique in the database."""
        study_id = self.storage.get_study_id_from_name(study)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def set_trial_attrs(self, study: str, number: int, attrs: Mapping[str, object]) -> None:
        """Write user attributes of a trial that Optuna has not been told of yet."""
        trial_id = self.trial_id(study, number)
        for key, value in attrs.items():
            self.storage.set_trial_user_attr(trial_id, key, value)


def _why_not_same(row: StudyRow, loaded: LoadedStudy) -> str | None:
    """Return why a stored study is another experiment; None: it is not."""
    old = parse_study(row.yaml, Path(row.path), check_files=False)
    return why_not_same(old, row.fingerprint, loaded)
