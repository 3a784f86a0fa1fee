"""Reads a database without SQLAlchemy: a command that shows a study starts at once.

A file is read with Python's own SQLite. SQLAlchemy and Optuna take longer to import than such a
command runs. They write, and migrate.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import Field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol, TypeVar

from autotune.errors import UserError

# SQLite's primary codes where it may not write: SQLITE_READONLY, SQLITE_CANTOPEN
_NOT_WRITABLE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}


class Row(Protocol):
    """A dataclass that has a table."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    __tablename__: ClassVar[str]


R = TypeVar("R", bound=Row)


class Reader(ABC):
    """Reads one database; threads may share it.

    Attributes:
        schema: What stands before the name of a real table where a view hides it.
        views: Statements that run before every query: see :func:`views_of_today`.
    """

    schema: ClassVar[str] = ""

    def __init__(self) -> None:
        self.views: Sequence[str] = ()

    @abstractmethod
    def rows(self, sql: str, **values: object) -> list[dict[str, Any]]:
        """Return the rows of a query, by column; ``:name`` in it is a value."""

    @abstractmethod
    def tables(self) -> dict[str, set[str]]:
        """Return the columns of every table."""

    def close(self) -> None:  # noqa: B027 – most hold nothing
        """Let go of what it holds."""

    def one(self, sql: str, **values: object) -> Any:
        """Return the first column of the first row; None if there is none."""
        found = self.rows(sql, **values)
        return next(iter(found[0].values())) if found else None

    def records(self, kind: type[R], rest: str = "", **values: object) -> list[R]:
        """Return rows of a table.

        Args:
            kind: Class of the rows.
            rest: What follows the name of the table in the query.
            values: Of the names in it.
        """
        columns = ", ".join(f'"{kind.__tablename__}"."{f.name}"' for f in fields(kind))
        query = f'SELECT {columns} FROM "{kind.__tablename__}" {rest}'  # noqa: S608 – our names
        return list(_records(kind, self.rows(query, **values)))


class FileReader(Reader):
    """Reads one SQLite file; each query has a connection of its own, so that threads may share it.

    A file that this user may not write is read, too. SQLite wants to write next to a file that has
    a write-ahead log (WAL), so such a file is opened as one that nobody changes, or, if there is a
    log that was not written back into it, as a copy of both.

    Args:
        path: File of the database.
        busy_timeout_s: How long another program's lock is waited for.
    """

    schema: ClassVar[str] = "main."

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        super().__init__()
        self._path, self._busy_timeout_s = path, busy_timeout_s
        self._copy: TemporaryDirectory[str] | None = None
        self._opened: tuple[str | Path, bool] = (path, False)  # what to open, whether it is a URI

    def rows(self, sql: str, **values: object) -> list[dict[str, Any]]:
        """Return the rows of a query, by column; ``:name`` in it is a value."""
        try:
            return self._rows(sql, values)
        except sqlite3.OperationalError as e:
            if e.sqlite_errorcode & 0xFF not in _NOT_WRITABLE or not self._without_writing():
                raise
            return self._rows(sql, values)

    def _rows(self, sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        name, uri = self._opened
        with closing(sqlite3.connect(name, timeout=self._busy_timeout_s, uri=uri)) as c:
            c.row_factory = sqlite3.Row
            c.execute("PRAGMA temp_store = MEMORY")
            for view in self.views:
                c.execute(view)
            return [dict(row) for row in c.execute(sql, values)]

    def _without_writing(self) -> bool:
        """Open the file from now on without writing next to it; return whether that may help."""
        if self._opened != (self._path, False) or not os.access(self._path, os.R_OK):
            return False
        file = self._path.resolve()
        if log_of(file) is not None:
            self._copy = TemporaryDirectory(prefix="autotune-")
            self._opened = copy_of(file, Path(self._copy.name)), False
        else:
            self._opened = f"{file.as_uri()}?mode=ro&immutable=1", True
        return True

    def close(self) -> None:
        """Remove the copy, if one was made."""
        if self._copy is not None:
            self._copy.cleanup()

    def tables(self) -> dict[str, set[str]]:
        """Return the columns of every table of the file."""
        found: dict[str, set[str]] = {}
        for row in self.rows(
            "SELECT m.name AS of, p.name AS column FROM sqlite_master AS m, "
            "pragma_table_info(m.name) AS p WHERE m.type = 'table'"
        ):
            found.setdefault(row["of"], set()).add(row["column"])
        return found


def log_of(file: Path) -> Path | None:
    """Return the write-ahead log of a database, if it has content that is not in the file."""
    log = file.with_name(f"{file.name}-wal")
    return log if log.exists() and log.stat().st_size else None


def copy_of(file: Path, folder: Path) -> Path:
    """Return a copy of a database with what is in its write-ahead log."""
    copy = folder / file.name
    shutil.copyfile(file, copy)
    if (log := log_of(file)) is not None:
        shutil.copyfile(log, folder / log.name)
    return copy


def _records(kind: type[R], rows: Iterable[dict[str, Any]]) -> Iterator[R]:
    """Yield rows as their class; JSON becomes plain data."""
    kept_as_json = [f.name for f in fields(kind) if is_json(f)]
    later = [f.name for f in fields(kind) if not f.init]
    for row in rows:
        for name in kept_as_json:
            if row[name] is not None:
                try:
                    row[name] = json.loads(row[name])
                except (TypeError, ValueError, RecursionError) as e:
                    raise unreadable(kind, name) from e
        given = {name: row.pop(name) for name in later}
        out = kind(**row)
        for name, value in given.items():
            setattr(out, name, value)
        yield out


def unreadable(kind: type[Row], column: str) -> UserError:
    """Return the error of a row that autotune did not write so."""
    return UserError(
        f"the database's {kind.__tablename__} has a row whose {column} cannot be read: another "
        "program changed it; put back a copy of the database"
    )


def is_json(f: Field[Any]) -> bool:
    """Return whether a column is kept as JSON."""
    return str(f.type).startswith(("dict", "list"))


def views_of_today(reader: Reader, kinds: Sequence[type[Row]]) -> list[str]:
    """Return temporary views that show a database of an older revision as one of today.

    They belong to a connection and change nothing in the database, which may be read-only. Tables
    and columns that it does not have are empty in them.
    """
    there = reader.tables()
    return [
        _view(kind, there.get(kind.__tablename__), reader.schema)
        for kind in kinds
        if not {f.name for f in fields(kind)} <= there.get(kind.__tablename__, set())
    ]


def _view(kind: type[Row], there: set[str] | None, schema: str) -> str:
    columns = ", ".join(
        f'"{f.name}"' if there and f.name in there else f'NULL AS "{f.name}"' for f in fields(kind)
    )
    name = kind.__tablename__
    source = "WHERE 1 = 0" if there is None else f'FROM {schema}"{name}"'
    return f'CREATE TEMP VIEW "{name}" AS SELECT {columns} {source}'
