"""Functions that only a database in one SQLite file needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, Table, event, inspect, text

from autotune.storage.schema import Base


def url_of(path: Path) -> URL:
    """Return SQLAlchemy's URL of a file; its name may have any characters."""
    return URL.create("sqlite", database=str(path))


def on_connect(engine: Engine, busy_timeout_s: float, views: Sequence[str] = ()) -> None:
    """Set every new connection up.

    Args:
        engine: Engine of a file.
        busy_timeout_s: How long to wait for another program's lock, in seconds.
        views: Statements of :func:`views_of_today`.
    """

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


def damage(engine: Engine) -> str | None:
    """Return what is damaged in a file, which may go unnoticed for many trials; None: nothing."""
    with engine.connect() as c:
        found = c.execute(text("PRAGMA quick_check(1)")).scalar()
    return None if found == "ok" else " ".join(str(found).split())


def views_of_today(engine: Engine) -> list[str]:
    """Return temporary views that show a database of an older revision as one of today.

    They belong to a connection and change nothing in the file, which may be read-only. Tables and
    columns that the file does not have are empty in them. Only reading works through them.
    """
    found = inspect(engine)
    there = {
        name: {column["name"] for column in found.get_columns(name)}
        for name in found.get_table_names()
    }
    return [
        _view(table, there.get(table.name))
        for table in Base.metadata.sorted_tables
        if not set(table.columns.keys()) <= there.get(table.name, set())
    ]


def _view(table: Table, there: set[str] | None) -> str:
    columns = ", ".join(
        f'"{name}"' if there and name in there else f'NULL AS "{name}"'
        for name in table.columns.keys()  # noqa: SIM118 – not its columns
    )
    source = "WHERE 0" if there is None else f'FROM main."{table.name}"'
    return f'CREATE TEMP VIEW "{table.name}" AS SELECT {columns} {source}'


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
