"""Who may write to a database, and the files next to it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autotune.errors import UserError


def output_folder(database: Path, study: str) -> Path:
    """Return the folder of a study's plots and server logs, which is next to its database."""
    return database.parent / f"{database.stem}-{study}"


@contextmanager
def exclusive(database: Path) -> Iterator[None]:
    """Hold the database for one runner; the kernel lets go when the process dies, however.

    Raises:
        UserError: another runner holds it, or the folder cannot be written.
    """
    if not database.parent.is_dir():
        raise UserError(f"{database}: the folder {database.parent} does not exist; make it first")
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


def is_free(database: Path) -> bool:
    """True if no runner holds the database now."""
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


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return which file a path leads to now; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
