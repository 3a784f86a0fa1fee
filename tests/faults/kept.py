"""What a study's database keeps, read without autotune: an SQLite file, or one of PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.storage.location import Database, Server

if TYPE_CHECKING:
    import psycopg

Row = tuple[Any, ...]


def _server_errors() -> tuple[type[Exception], ...]:
    try:
        import psycopg
    except ImportError:
        return ()
    return (psycopg.Error,)


ERRORS: tuple[type[Exception], ...] = (sqlite3.Error, *_server_errors())


class Reading:
    """A connection that reads; each query sees what is committed then."""

    def __init__(self, connection: sqlite3.Connection | psycopg.Connection[Row]) -> None:
        self._connection = connection

    def rows(self, sql: str, *values: object) -> list[Row]:
        """Rows of a query; each ``?`` in it is a value."""
        if isinstance(self._connection, sqlite3.Connection):
            return self._connection.execute(sql, values).fetchall()
        found = self._connection.execute(sql.replace("?", "%s"), values or None)  # type: ignore[arg-type]
        return found.fetchall() if found.description else []


class Kept:
    """Reads one database.

    Args:
        database: Where it is. The URL of a server must ask for no password.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """A connection; a file must exist."""
        if isinstance(self.database, Path):
            uri = f"{self.database.as_uri()}?mode=rw"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60)) as c:
                yield Reading(c)
            return
        import psycopg

        with psycopg.connect(self.database.conninfo, autocommit=True, connect_timeout=60) as s:
            yield Reading(s)

    def rows(self, sql: str, *values: object) -> list[Row]:
        with self.reading() as c:
            return c.rows(sql, *values)

    def has(self, table: str) -> bool:
        """True if there is such a table."""
        if isinstance(self.database, Server):
            return self.rows("select to_regclass(?) is not null", table) == [(True,)]
        if not self.database.exists():
            return False
        return bool(self.rows("select 1 from sqlite_master where name = ?", table))

    def damage(self) -> list[str]:
        """What is wrong with its pages and indexes."""
        if isinstance(self.database, Path):
            said = self.rows("pragma integrity_check")
            return [] if said == [("ok",)] else [f"integrity_check: {said[:3]}"]
        with self.reading() as c:
            if not c.rows("select 1 from pg_available_extensions where name = 'amcheck'"):
                return []
            with contextlib.suppress(*ERRORS):  # somebody else makes it at this moment
                c.rows("create extension if not exists amcheck")
            c.rows(  # raises what is wrong
                "select bt_index_check(i.indexrelid, true) from pg_index i "
                "join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam "
                "join pg_namespace n on n.oid = c.relnamespace "
                "where a.amname = 'btree' and n.nspname = 'public' and i.indisvalid"
            )
        return []

    def finished(self) -> dict[int, Row]:
        """State, values, parameters and attributes of every trial that came to its end."""
        if not self.has("trials"):
            return {}
        with self.reading() as c:
            trials = c.rows(
                "select trial_id, number, state from trials where state in ('COMPLETE', 'FAIL') "
                "order by number"
            )
            values = _by_trial(
                c.rows("select trial_id, objective, value from trial_values order by objective")
            )
            params = _by_trial(
                c.rows("select trial_id, param_name, param_value from trial_params order by 2")
            )
            attrs = _by_trial(
                c.rows("select trial_id, key, value_json from trial_user_attributes order by 2")
            )
        return {
            number: (str(state), values[key], params[key], attrs[key])
            for key, number, state in trials
        }

    def measured(self) -> dict[str, Row]:
        """Every launch that was measured, with its numbers and how many requests it has."""
        if not self.has("autotune_launches"):
            return {}
        sql = (
            'select launch_id, trial, "values", intervals, stats, (select count(*) from '
            "autotune_requests r where r.launch_id = l.launch_id) from autotune_launches l "
            "where measured_at is not null"
        )
        return {row[0]: row[1:] for row in self.rows(sql)}

    def forked(self) -> int:
        """How many launches were forked from a fork server."""
        found = self.rows("select identity from autotune_launches where identity is not null")
        return sum(bool(json.loads(identity).get("warm")) for (identity,) in found)


def _by_trial(rows: list[Row]) -> defaultdict[int, dict[Any, Any]]:
    found: defaultdict[int, dict[Any, Any]] = defaultdict(dict)
    for key, name, value in rows:
        found[key][name] = value
    return found
