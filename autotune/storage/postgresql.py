"""Connections to PostgreSQL, and what is read through one; imported only where a URL is given.

A connection keeps nothing in its session, so that pgbouncer may give each transaction another one:
no prepared statement, no ``SET``, no session lock, no temporary table beyond a transaction.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator
from contextlib import nullcontext
from threading import RLock
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row
from psycopg.types.string import StrDumperUnknown

from autotune.errors import UserError
from autotune.storage.location import Server
from autotune.storage.reading import Reader

T = TypeVar("T")

OLDEST = 13
# Time without an answer after which a connection is taken for lost.
SILENT_S = 30.0
# Parameters of libpq unless the URL has them: a peer that is gone is noticed within some 20 s.
_DEFAULTS: dict[str, Any] = {
    "application_name": "autotune",
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,  # ms
}


# A transaction whose process stands still is ended by the server, with its locks.
_BEGIN = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '10s'"
_LOCKS = re.compile("FOR UPDATE|pg_advisory")


class _Text(StrDumperUnknown):
    """Text for a server, which keeps no NUL: its picture takes its place, as in a server's log."""

    def dump(self, obj: str) -> Any:
        """Return a text's bytes."""
        return super().dump(obj.replace("\0", "\N{SYMBOL FOR NULL}"))


class Watched(psycopg.Connection[Any]):
    """A connection whose commits may be guarded by a lease.

    Attributes:
        begins: Whether a transaction begins with the first statement that writes or locks, on a
            connection that commits each statement otherwise. What only reads then takes one turn
            to the server in place of three, and sees the same: each statement sees what was
            committed before it, in PostgreSQL's transactions (``READ COMMITTED``), too.
        on_commit: Commits instead, if the transaction wrote anything; None: nobody guards it.
        silent_s: Longest time without an answer; None: as long as the network lets it wait.
    """

    begins = False
    on_commit: Callable[[Watched, Callable[[], None]], None] | None = None
    silent_s: float | None = None
    _wrote = False

    def commit(self) -> None:
        """Commit; see ``on_commit``."""
        try:
            if self._wrote and self.on_commit is not None:
                self.on_commit(self, super().commit)
            else:
                super().commit()
        except BaseException:
            self.rollback()  # SQLAlchemy takes a commit that raises for one that ended
            raise
        finally:
            self._wrote = False

    def rollback(self) -> None:
        """Roll back; a server does so itself when a connection ends."""
        self._wrote = False
        try:
            if not self.closed:
                super().rollback()
        except psycopg.Error:
            if not self.closed:
                raise

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        """Run an operation to its end, or close the connection when it stays without an answer."""
        if self.silent_s is None:
            return super().wait(gen, *args, **options)
        try:
            return super().wait(_in_time(gen, time.monotonic() + self.silent_s), *args, **options)
        except _SilentError as e:
            self.close()
            raise psycopg.OperationalError(f"no answer for {self.silent_s:.0f} s") from e

    def note(self, query: Any) -> None:
        """Note whether a statement writes or locks, before it is executed."""
        words = str(query)
        if self._wrote or (
            words.lstrip().upper().startswith("SELECT") and not _LOCKS.search(words)
        ):
            return
        self._wrote = True
        if self.begins:
            self.execute(_BEGIN)

    def answers(self) -> bool:
        """Return whether it is still there."""
        try:
            self.execute("SELECT 1")
            self.rollback()
        except psycopg.Error:
            return False
        return not self.closed


class _SilentError(Exception):
    """Nothing came for too long."""


def _in_time(gen: Generator[Any, Any, T], end: float) -> Generator[Any, Any, T]:
    """Yield what an operation waits for until a time, s of the monotonic clock."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > end:
                raise _SilentError
            wanted = gen.send(ready)
    except StopIteration as e:
        return e.value  # type: ignore[no-any-return]


class _Cursor(psycopg.Cursor[Any]):
    """Tells its connection what writes."""

    def execute(self, query: Any, *args: Any, **options: Any) -> _Cursor:
        """Execute a statement."""
        if isinstance(self.connection, Watched):
            self.connection.note(query)
        return super().execute(query, *args, **options)

    def executemany(self, query: Any, *args: Any, **options: Any) -> None:
        """Execute a statement again and again."""
        if isinstance(self.connection, Watched):
            self.connection.note(query)
        super().executemany(query, *args, **options)


def connect(server: Server, *, autocommit: bool = False, **options: Any) -> Watched:
    """Return a new connection.

    Args:
        server: The database.
        autocommit: Make each statement a transaction.
        options: Parameters of libpq, unless the URL has them.

    Raises:
        psycopg.Error: there is none; :mod:`autotune.storage.server_words` says why.
        UserError: the server is too old, or keeps text in another encoding.
    """
    given = {k: v for k, v in (_DEFAULTS | options).items() if k not in server.options}
    c = Watched.connect(
        server.conninfo,
        autocommit=autocommit,
        prepare_threshold=None,
        cursor_factory=_Cursor,
        **given,
    )
    try:
        _check(server, c)
    except BaseException:
        c.close()
        raise
    c.adapters.register_dumper(str, _Text)
    return c


def _check(server: Server, c: Watched) -> None:
    version = c.info.server_version // 10_000
    if 0 < version < OLDEST:
        raise UserError(
            f"{server}: is PostgreSQL {version}, and autotune needs {OLDEST} or later; upgrade it"
        )
    encoding = c.info.parameter_status("server_encoding")
    if encoding not in {"UTF8", None}:
        raise UserError(
            f"{server}: keeps text as {encoding}, not as UTF8; make one with `createdb "
            "-T template0 -E UTF8 NAME`"
        )


class ServerReader(Reader):
    """Reads one database of a server, through one connection that threads take in turn.

    Args:
        server: The database.
        again: Runs a query, again when the connection was lost meanwhile.
    """

    def __init__(self, server: Server, again: Callable[[Callable[[], Any]], Any]) -> None:
        super().__init__()
        self._server, self._again = server, again
        self._lock = RLock()
        self._connection: Watched | None = None

    def rows(self, sql: str, **values: object) -> list[dict[str, Any]]:
        """Return the rows of a query, by column; ``:name`` in it is a value."""
        query = re.sub(r"(?<![:\w]):([A-Za-z_]\w*)", r"%(\1)s", sql.replace("%", "%%"))
        with self._lock:
            found: list[dict[str, Any]] = self._again(lambda: self._rows(query, values))
        return found

    def _rows(self, query: str, values: dict[str, object]) -> list[dict[str, Any]]:
        old = self._connection
        try:
            return self._read(query, values)
        except psycopg.OperationalError:
            if old is None or not old.closed:
                raise
            return self._read(query, values)  # it was idle, and had been closed by the other side

    def _read(self, query: str, values: dict[str, object]) -> list[dict[str, Any]]:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._server, autocommit=True)
        with self._connection.transaction(force_rollback=True) if self.views else nullcontext():
            cursor = self._connection.cursor(row_factory=dict_row)
            for view in self.views:
                cursor.execute(view)
            cursor.execute(query, values)
            return list(cursor)

    def tables(self) -> dict[str, set[str]]:
        """Return the columns of every table of the schema that new tables are made in."""
        found: dict[str, set[str]] = {}
        for row in self.rows(
            "SELECT c.table_name AS of, c.column_name AS column FROM information_schema.columns c "
            "JOIN information_schema.tables t USING (table_schema, table_name) "
            "WHERE c.table_schema = current_schema() AND t.table_type = 'BASE TABLE'"
        ):
            found.setdefault(row["of"], set()).add(row["column"])
        return found

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
