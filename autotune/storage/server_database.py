"""A database of a PostgreSQL server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from autotune.storage.backend import Backend, Sessions
from autotune.storage.lease import Holder
from autotune.storage.location import Server
from autotune.storage.migrations import MAKING
from autotune.storage.postgresql import ServerReader, Watched, connect
from autotune.storage.reading import Reader
from autotune.storage.server_lease import ServerLease

if TYPE_CHECKING:  # a database is read without it
    from optuna.storages import RDBStorage
    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry

# Idle time after which a connection is asked whether it is still there.
IDLE_S = 1.0

T = TypeVar("T")


class ServerDatabase(Backend):
    """A database of a server; see :class:`Backend`.

    Args:
        server: Where it is.
    """

    def __init__(self, server: Server) -> None:
        self.database: Server = server
        self.say = lambda _text: None
        self._lease = ServerLease(server, lambda text: self.say(text))
        self.reader = ServerReader(server, self._lease.again)

    def is_there(self) -> bool:
        """Return whether there is a database of autotune."""
        return "autotune_meta" in self.reader.tables()

    def has_tables(self) -> bool:
        """Return whether there is any table in the schema."""
        return bool(self.reader.tables())

    def damage(self) -> str | None:
        """Return nothing: a server checks its pages when it reads them."""
        return None

    @contextmanager
    def new(self) -> Iterator[tuple[RDBStorage, Reader]]:
        """Yield Optuna's storage, whose tables one process makes at a time."""
        with connect(self.database) as c:
            c.execute("SELECT pg_advisory_xact_lock(%s)", (MAKING,))
            storage = self.optuna()
        yield storage, self.reader
        storage.engine.dispose()

    def optuna(self, views: Sequence[str] = ()) -> RDBStorage:
        """Return Optuna's storage in it; tables that are there are not asked for again."""
        del views  # they are of autotune's tables, which Optuna does not read
        found = _storage(
            self._connection,
            self._lease.again,
            has_tables="trials" in self.reader.tables(),
        )
        _check_idle(found.engine)
        return found

    def _connection(self) -> Watched:
        """Return a new connection for the pool, which begins transactions when it writes."""
        c = connect(self.database, autocommit=True)
        c.begins = True
        self._lease.watch(c)
        return c

    def again(self, work: Callable[[], T]) -> T:
        """Do what reads or writes; again when the connection was lost and the lease is held."""
        return self._lease.again(work)

    def take_lease(self, sessions: Sessions) -> Holder:
        """Become the only driver: see :meth:`ServerLease.take`."""
        return self._lease.take()

    def check_lease(self) -> None:
        """Check that this process may still write."""
        self._lease.check()

    def close(self) -> None:
        """Give the lease back, and close the connections."""
        self._lease.release()
        super().close()


def _check_idle(engine: Engine) -> None:
    """Replace a connection that was lost while nobody used it; one that was just used is there."""
    from sqlalchemy import event
    from sqlalchemy.exc import DisconnectionError

    @event.listens_for(engine, "checkin")
    def _back(_connection: Watched, record: ConnectionPoolEntry) -> None:
        record.info["since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _out(connection: Watched, record: ConnectionPoolEntry, _proxy: object) -> None:
        idle_s = time.monotonic() - record.info.get("since", time.monotonic())
        if connection.closed or (idle_s > IDLE_S and not connection.answers()):
            raise DisconnectionError


def _storage(
    connection: Callable[[], Watched],
    again: Callable[[Callable[[], Any]], Any],
    *,
    has_tables: bool,
) -> RDBStorage:
    """Return Optuna's storage, each of whose calls waits for a server that is away.

    Each of these calls writes in one transaction. Optuna's cache in front of it uses private ones,
    too; one that another one calls waits for nothing.
    """
    from optuna.storages import RDBStorage

    def waiting(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(self: Any, *args: Any, **options: Any) -> Any:
            return again(lambda: method(self, *args, **options))

        return call

    calls = {
        name: waiting(method)
        for name, method in vars(RDBStorage).items()
        if isinstance(method, FunctionType) and not name.startswith("__")
    }
    patient: type[RDBStorage] = type("PatientStorage", (RDBStorage,), calls)
    return patient(
        "postgresql+psycopg://",  # no part of it is needed: connections are made elsewhere
        engine_kwargs={
            "creator": connection,
            "pool_size": 2,
            "max_overflow": 4,
        },
        skip_table_creation=has_tables,
    )
