"""Errors of a database, as one clear line each."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from autotune.errors import AutotuneError, DatabaseLocked, MachineError
from autotune.storage.location import Database
from autotune.storage.server_words import find_server_error, server_words

# End of the line of an error while a study runs.
NOTHING_CHANGED = "; nothing was changed in it"
GOES_ON = ". What was finished is kept; the same command goes on from there"


@contextmanager
def database_errors(
    database: Database,
    error: type[AutotuneError] = MachineError,
    what_now: str = GOES_ON,
) -> Iterator[None]:
    """Turn errors of a database into one clear line each.

    Args:
        database: The database.
        error: Class of the error that it cannot be read or written.
        what_now: End of the line.

    Raises:
        DatabaseLocked: another program has held it for longer than ``BUSY_TIMEOUT_S``.
        AutotuneError: it cannot be read or written; a ``MachineError`` by default.
    """
    try:
        yield
    except Exception as e:
        if not is_of_database(e):
            raise
        if (of_server := find_server_error(e)) is not None:
            raise error(f"{database}: {server_words(of_server)}{what_now}") from e
        code, words = in_words(e)
        if code in LOCKED:
            raise DatabaseLocked(f"{database}: {words}") from e
        raise error(f"{database}: {words}{what_now}") from e


LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
DAMAGED = (
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
    sqlite3.SQLITE_CANTOPEN: "cannot be opened ({said}); is its folder there and writable?",
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: (
        "is no SQLite database, or its beginning is damaged; put back a copy of it, or give "
        "another --db"
    ),
}


def is_of_database(error: Exception) -> bool:
    """Return whether a database raised it; only what is imported can have."""
    wrappers = [
        getattr(sys.modules[module], name)
        for module, name in (
            ("sqlalchemy.exc", "SQLAlchemyError"),
            ("optuna.exceptions", "StorageInternalError"),
            ("psycopg", "Error"),
        )
        if module in sys.modules
    ]
    return isinstance(error, (sqlite3.Error, *wrappers))


def in_words(error: BaseException) -> tuple[int, str]:
    """Return SQLite's primary code of an error that SQLAlchemy or Optuna wrapped, and one line."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, sqlite3.Error):
        found = getattr(found, "orig", None) or found.__cause__ or found.__context__
    code = getattr(found, "sqlite_errorcode", 0) & 0xFF
    said = " ".join(str(found or error).split())
    if "no such table" in said or "no such column" in said:
        return code, f"is incomplete ({said}): another program changed it; put back a copy of it"
    return code, _WORDS.get(code, "cannot be used ({said})").format(said=said)
