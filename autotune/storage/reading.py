"""Reads a database with Python's own SQLite: a command that shows a study starts at once.

SQLAlchemy and Optuna take longer to import than such a command runs. They write, and migrate.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar


class Row(Protocol):
    """A dataclass that has a table."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    __tablename__: ClassVar[str]


R = TypeVar("R", bound=Row)


class Reader:
    """Reads one file; each query has a connection of its own, so that threads may share it.

    Args:
        path: File of the database.
        busy_timeout_s: How long another program's lock is waited for.

    Attributes:
        views: Statements that every connection runs first: see :func:`views_of_today`.
    """

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        self._path, self._busy_timeout_s = path, busy_timeout_s
        self.views: Sequence[str] = ()

    def rows(self, sql: str, **values: object) -> list[dict[str, Any]]:
        """Return the rows of a query, by column; ``:name`` in it is a value."""
        with closing(sqlite3.connect(self._path, timeout=self._busy_timeout_s)) as c:
            c.row_factory = sqlite3.Row
            c.execute("PRAGMA temp_store = MEMORY")
            for view in self.views:
                c.execute(view)
            return [dict(row) for row in c.execute(sql, values)]

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

    def tables(self) -> dict[str, set[str]]:
        """Return the columns of every table of the file."""
        found: dict[str, set[str]] = {}
        for row in self.rows(
            "SELECT m.name AS of, p.name AS column FROM sqlite_master AS m, "
            "pragma_table_info(m.name) AS p WHERE m.type = 'table'"
        ):
            found.setdefault(row["of"], set()).add(row["column"])
        return found


def _records(kind: type[R], rows: Iterable[dict[str, Any]]) -> Iterator[R]:
    """Yield rows as their class; JSON becomes plain data."""
    kept_as_json = [f.name for f in fields(kind) if is_json(f)]
    later = [f.name for f in fields(kind) if not f.init]
    for row in rows:
        for name in kept_as_json:
            if row[name] is not None:
                row[name] = json.loads(row[name])
        given = {name: row.pop(name) for name in later}
        out = kind(**row)
        for name, value in given.items():
            setattr(out, name, value)
        yield out


def is_json(f: Field[Any]) -> bool:
    """Return whether a column is kept as JSON."""
    return str(f.type).startswith(("dict", "list"))


def views_of_today(reader: Reader, kinds: Sequence[type[Row]]) -> list[str]:
    """Return temporary views that show a database of an older revision as one of today.

    They belong to a connection and change nothing in the file, which may be read-only. Tables and
    columns that the file does not have are empty in them.
    """
    there = reader.tables()
    return [
        _view(kind, there.get(kind.__tablename__))
        for kind in kinds
        if not {f.name for f in fields(kind)} <= there.get(kind.__tablename__, set())
    ]


def _view(kind: type[Row], there: set[str] | None) -> str:
    columns = ", ".join(
        f'"{f.name}"' if there and f.name in there else f'NULL AS "{f.name}"' for f in fields(kind)
    )
    name = kind.__tablename__
    source = "WHERE 0" if there is None else f'FROM main."{name}"'
    return f'CREATE TEMP VIEW "{name}" AS SELECT {columns} {source}'
