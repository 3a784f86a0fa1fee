"""What the kinds of databases differ in: an SQLite file, and a database on a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from autotune.storage.lease import Holder
from autotune.storage.location import Database, Server
from autotune.storage.reading import Reader

if TYPE_CHECKING:  # a database is read without them
    from optuna.storages import RDBStorage
    from sqlalchemy.orm import Session

T = TypeVar("T")


class Sessions(Protocol):
    """Opens sessions to write."""

    def __call__(self) -> Session:
        """Return a new session."""

    def again(self, work: Callable[[], T]) -> T:
        """Do what writes; again when the connection was lost before it was done."""


F = TypeVar("F", bound=Callable[..., Any])


def patient(method: F) -> F:
    """Let a method that writes in one transaction wait for a server that is away.

    Its object has the ``_sessions``.
    """

    @wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        return self._sessions.again(lambda: method(self, *args, **options))

    return cast(F, call)


class Backend(ABC):
    """One database of one kind.

    Attributes:
        database: Where it is.
        reader: Reads it.
        say: Told, as one line, what is waited for.
    """

    database: Database
    reader: Reader
    say: Callable[[str], None]

    @abstractmethod
    def is_there(self) -> bool:
        """Return whether there is a database, of any program."""

    @abstractmethod
    def has_tables(self) -> bool:
        """Return whether there is anything in it."""

    @abstractmethod
    def damage(self) -> str | None:
        """Return what is damaged; None: nothing that is known."""

    @abstractmethod
    def new(self) -> AbstractContextManager[tuple[RDBStorage, Reader]]:
        """Yield a new database to be filled, which then takes its place as a whole."""

    @abstractmethod
    def optuna(self, views: Sequence[str] = ()) -> RDBStorage:
        """Return Optuna's storage in it; ``views`` as of ``Reader``."""

    def settle(self, storage: RDBStorage) -> None:  # noqa: B027 – most have nothing to do
        """Set what holds for a database from now on."""

    def again(self, work: Callable[[], T]) -> T:
        """Do what reads or writes; again when the connection was lost and the lease is held."""
        return work()

    @abstractmethod
    def take_lease(self, sessions: Sessions) -> Holder:
        """Become the only driver."""

    def check_lease(self) -> None:  # noqa: B027 – the lock of a file is never lost
        """Check that this process may still write.

        Raises:
            LeaseLost: another driver has taken the lease.
        """

    def close(self) -> None:
        """Give everything back."""
        self.reader.close()


def backend_of(database: Database, busy_timeout_s: float) -> Backend:
    """Return the kind of a database.

    Raises:
        UserError: a server needs psycopg, which is not installed.
    """
    if not isinstance(database, Server):
        from autotune.storage.sqlite import SqliteFile

        return SqliteFile(database, busy_timeout_s)
    try:
        import psycopg  # noqa: F401
    except ImportError as e:
        from autotune.errors import UserError

        raise UserError(
            f"{database}: PostgreSQL needs psycopg ({e}); `pip install "
            "'dflash-autotune[postgresql]'`"
        ) from e
    from autotune.storage.server_database import ServerDatabase

    return ServerDatabase(database)
