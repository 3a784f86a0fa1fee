"""The right to write to a database and to the files next to it.

A runner holds the lock of an SQLite file. It also takes the lease, which is a row: its epoch grows
with every runner, and each launch says under which one it was started. On a server the lease alone
decides: :mod:`autotune.storage.server_lease`.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import UserError
from autotune.storage.location import Database, Server
from autotune.storage.schema import LeaseRow, WorkerRow

if TYPE_CHECKING:  # a database is read without it
    from sqlalchemy.orm import Session

# The worker of a run that launches one server after another, on the whole host.
ONLY_WORKER = "0"
# Seconds that the lease of a server's database lasts each time it is renewed.
LEASE_S = 15.0


@contextmanager
def exclusive(database: Database) -> Iterator[None]:
    """Hold a file for one runner; the kernel releases it whenever the process dies.

    A database on a server has no file: its lease does the same.

    Raises:
        UserError: another runner holds it, or the folder cannot be written.
    """
    if isinstance(database, Server):
        yield
        return
    if not database.parent.is_dir():
        raise UserError(f"{database}: the folder {database.parent} does not exist; make it first")
    if database.exists() and not database.is_file():  # a new file would take its place
        raise UserError(f"{database}: is not a regular file; name another one")
    lock = _lock_file(database)
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise UserError(f"{lock}: cannot be written: {e.strerror}") from e
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.read(fd, 20).decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"{database}: another autotune (pid {holder}) is running on it; wait for it, or "
                "give this run another --db"
            ) from e
        with suppress(OSError):  # a full disk; the pid is only for the message above
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


def _lock_file(database: Path) -> Path:
    """Return the lock next to the file itself, so that two links to one database share it."""
    file = database.resolve()
    return file.with_name(file.name + ".lock")


def is_free(database: Database) -> bool:
    """Return whether no runner holds the database now."""
    if isinstance(database, Server):
        from autotune.storage import server_lease

        return server_lease.is_free(database)
    try:
        fd = os.open(_lock_file(database), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:  # another user's
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def check_free(database: Database) -> None:
    """Check that no other runner holds a database, before what takes long; takes nothing.

    Raises:
        UserError: another one does; or the database cannot be used.
    """
    if isinstance(database, Server):
        from autotune.storage import server_lease
        from autotune.storage.failures import NOTHING_CHANGED, database_errors

        with database_errors(database, UserError, NOTHING_CHANGED):
            server_lease.check_free(database)
    elif database.exists():
        with exclusive(database):
            pass


@dataclass(frozen=True)
class Holder:
    """Holder of the lease, which launches servers under it.

    Attributes:
        host: Name of this host, as ``hostname`` prints it.
        worker: Name of the worker on this host.
        epoch: Number of the lease, from 1.
    """

    host: str
    worker: str
    epoch: int

    def columns(self) -> dict[str, Any]:
        """Return the columns of a launch that say who launched it."""
        return {"host": self.host, "worker": self.worker, "lease_epoch": self.epoch}


@dataclass(frozen=True)
class Place:
    """Where a launch is, if that is not the holder's own host and worker.

    Attributes:
        host: Name of the host, as ``hostname`` prints it.
        worker: Name of the worker on that host.
        boot_id: Id of the boot of that host's kernel.
    """

    host: str
    worker: str
    boot_id: str


def take(sessions: Callable[[], Session]) -> Holder:
    """Take the lease of a file, of which the caller holds the lock (:func:`exclusive`).

    This ends the workers of earlier holders.
    """
    from sqlalchemy import update

    now, host = time.time(), socket.gethostname()
    with sessions() as s:
        lease = s.get(LeaseRow, 1, with_for_update=True) or LeaseRow(id=1, epoch=0)
        lease.epoch += 1
        lease.owner = uuid.uuid4().hex
        lease.host, lease.pid = host, os.getpid()
        lease.taken_at, lease.expires_at = now, None
        s.execute(update(WorkerRow).filter_by(ended_at=None).values(ended_at=now))
        holder = Holder(host, ONLY_WORKER, lease.epoch)
        s.add_all(
            [
                lease,
                WorkerRow(lease_epoch=holder.epoch, host=host, name=ONLY_WORKER, joined_at=now),
            ]
        )
        s.commit()
    return holder
