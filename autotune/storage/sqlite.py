"""Functions that only a database in one SQLite file needs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from autotune.storage.reading import Reader, copy_of

if TYPE_CHECKING:  # a database is read without it
    from sqlalchemy import URL, Engine


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
