"""A database in one SQLite file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from autotune.storage.backend import Backend, Sessions
from autotune.storage.lease import Holder, take
from autotune.storage.reading import FileReader, Reader, copy_of

if TYPE_CHECKING:  # a database is read without it
    from optuna.storages import RDBStorage
    from sqlalchemy import URL, Engine


class SqliteFile(Backend):
    """A database in one SQLite file; see :class:`Backend`.

    Args:
        path: The file.
        busy_timeout_s: How long another program's lock is waited for.
    """

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        self.database: Path = path
        self.say = lambda _text: None
        self._busy_timeout_s = busy_timeout_s
        self.reader = FileReader(path, busy_timeout_s)

    def is_there(self) -> bool:
        """Return whether there is such a file."""
        return self.database.exists()

    def has_tables(self) -> bool:
        """Return whether there is anything in the file."""
        return self.database.exists() and self.database.stat().st_size > 0

    def damage(self) -> str | None:
        """Return what is damaged in the file, which may go unnoticed for many trials."""
        return damage(self.reader)

    @contextmanager
    def new(self) -> Iterator[tuple[RDBStorage, Reader]]:
        """Yield a new file that is made as a whole or not at all, even if this process is killed.

        It gets its real name in the end.
        """
        with draft_of(self.database.resolve()) as draft:
            storage = self._optuna(draft, ())
            yield storage, FileReader(draft, self._busy_timeout_s)
            storage.engine.dispose()

    def optuna(self, views: Sequence[str] = ()) -> RDBStorage:
        """Return Optuna's storage in the file; ``views`` as of ``Reader``."""
        return self._optuna(self.database, views)

    def _optuna(self, path: Path, views: Sequence[str]) -> RDBStorage:
        from optuna.storages import RDBStorage

        found = RDBStorage(
            _in_optuna(url_of(path)),
            engine_kwargs={"connect_args": {"timeout": self._busy_timeout_s}},
        )
        on_connect(found.engine, self._busy_timeout_s, views)
        found.engine.dispose()  # connections made before they were set up
        return found

    def settle(self, storage: RDBStorage) -> None:
        """Let the file have a write-ahead log."""
        from sqlalchemy import text

        with storage.engine.connect() as c:
            c.execute(text("PRAGMA journal_mode = WAL"))

    def take_lease(self, sessions: Sessions) -> Holder:
        """Become the only driver; the caller holds the lock of the file (lease.exclusive)."""
        return take(sessions)


def _in_optuna(url: URL) -> str:
    """Return a URL as Optuna wants it: Optuna fills {names} into its text."""
    return url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")


def url_of(path: Path) -> URL:
    """Return SQLAlchemy's URL of a file; its name may have any characters."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(path))


def on_connect(engine: Engine, busy_timeout_s: float, views: Sequence[str] = ()) -> None:
    """Set every new connection up.

    Args:
        engine: Engine of a file.
        busy_timeout_s: How long to wait for another program's lock, in seconds.
        views: As of :func:`autotune.storage.reading.views_of_today`.
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {round(busy_timeout_s * 1000)}")
        cursor.execute("PRAGMA synchronous = NORMAL")  # safe with WAL against a killed process
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA temp_store = MEMORY")
        for view in views:
            cursor.execute(view)
        cursor.close()


def damage(reader: Reader) -> str | None:
    """Return what is damaged in a file, which may go unnoticed for many trials; None: nothing."""
    found = reader.one("PRAGMA quick_check(1)")
    return None if found == "ok" else " ".join(str(found).split())


@contextmanager
def writable(file: Path) -> Iterator[Path]:
    """Yield a database that may be written: the file, or a copy of it that is removed after it."""
    if all(os.access(x, os.W_OK, effective_ids=True) for x in (file, file.resolve().parent)):
        yield file
        return
    with TemporaryDirectory(prefix="autotune-") as folder:
        yield copy_of(file.resolve(), Path(folder))


@contextmanager
def draft_of(file: Path) -> Iterator[Path]:
    """Yield a file to be filled; it gets its real name if nothing was raised."""
    draft = file.with_name(f"{file.name}.new")
    every = [draft.with_name(draft.name + end) for end in ("", "-wal", "-shm")]
    for part in every:
        part.unlink(missing_ok=True)
    try:
        draft.touch(mode=0o600)
        yield draft
        draft.replace(file)
    finally:
        for part in every:
            part.unlink(missing_ok=True)
