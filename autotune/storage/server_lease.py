"""The lease of a database on a server: a row that says who may write, by the server's clock.

The holder renews the row on a connection of its own. Each of its transactions that writes counts up
``written`` in that row, where epoch and owner are still its own, as its last statement: so the row
is locked when it commits, and a transaction is either done before another driver takes the lease or
is refused. The same number tells whether a commit was done whose answer never came.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import TypeVar

import psycopg

from autotune.errors import AutotuneError, LeaseLost, UserError
from autotune.serving.interrupts import is_held
from autotune.storage.lease import LEASE_S, ONLY_WORKER, Holder
from autotune.storage.location import Server
from autotune.storage.postgresql import SILENT_S, Watched, connect
from autotune.storage.server_words import find_server_error, is_lost, server_words

T = TypeVar("T")

RENEW_S = 3.0
# In which a holder that lives is seen to renew it.
SEEN_S = RENEW_S + 1.0
# Longest wait for a server that is away.
AWAY_S = 600.0
# And where the run is interrupted, which nobody expects to take minutes.
INTERRUPTED_S = 5.0
_RETRY_S = 0.5
_NOW = "extract(epoch FROM clock_timestamp())"


class ServerLease:
    """The lease of one database on a server.

    Args:
        server: The database.
        say: Told, as one line, what is waited for.

    Attributes:
        holder: The holder, while this process is it.
    """

    def __init__(self, server: Server, say: Callable[[str], None]) -> None:
        self._server, self._say = server, say
        self.holder: Holder | None = None
        self._owner = ""
        self._written = 0
        self._lost = False
        self._gives_up = inf  # when a run that is interrupted waits no more
        self._committing = threading.RLock()
        self._outermost = threading.local()
        self._end = threading.Event()
        self._renewing: threading.Thread | None = None

    def take(self) -> Holder:
        """Become the only driver of the database.

        A lease that is not renewed is taken when it has run out.

        Raises:
            UserError: another driver holds it, and renews it.
        """
        seen: tuple[object, object] | None = None
        began, told = time.monotonic(), False
        while (held := self._try()) is not None:
            owner, host, pid, expires, left = held
            if seen is not None and seen != (owner, expires):
                raise _is_held(self._server, pid, host)
            seen = owner, expires
            if not told and time.monotonic() - began > SEEN_S:
                told = True
                self._say(
                    f"{self._server}: autotune (pid {pid} on {host}) holds it and seems to be "
                    f"gone. Waiting up to {left:.0f} s until its lease ends"
                )
            time.sleep(_RETRY_S)
        self._renewing = threading.Thread(target=self._renew, name="autotune-lease", daemon=True)
        self._renewing.start()
        assert self.holder is not None  # noqa: S101 – _try took it
        return self.holder

    def _try(self) -> tuple[str, str, int, float, float] | None:
        """Take the lease if it is free; return who holds it otherwise, and for how long, s."""
        with connect(self._server) as c:
            c.execute(
                "INSERT INTO autotune_lease (id, epoch, written) VALUES (1, 0, 0) "
                "ON CONFLICT DO NOTHING"
            )
            row = c.execute(
                f"SELECT epoch, owner, host, pid, expires_at, expires_at - {_NOW} "  # noqa: S608
                "FROM autotune_lease WHERE id = 1 FOR UPDATE"
            ).fetchone()
            assert row is not None  # noqa: S101 – it was inserted
            epoch, owner, host, pid, expires, left = row
            if owner is not None and expires is not None and left > 0:
                return owner, host, pid, expires, float(left)
            self._owner, self._written = uuid.uuid4().hex, 0
            holder = Holder(socket.gethostname(), ONLY_WORKER, epoch + 1)
            c.execute(
                f"UPDATE autotune_lease SET epoch = %s, owner = %s, host = %s, pid = %s, "  # noqa: S608
                f"written = 0, taken_at = {_NOW}, expires_at = {_NOW} + %s WHERE id = 1",
                (holder.epoch, self._owner, holder.host, os.getpid(), LEASE_S),
            )
            c.execute(f"UPDATE autotune_workers SET ended_at = {_NOW} WHERE ended_at IS NULL")  # noqa: S608
            c.execute(
                "INSERT INTO autotune_workers (lease_epoch, host, name, joined_at) "  # noqa: S608
                f"VALUES (%s, %s, %s, {_NOW})",
                (holder.epoch, holder.host, holder.worker),
            )
        self.holder = holder
        return None

    def _renew(self) -> None:
        """Renew the lease until it is given back or lost; a server that is away is asked again."""
        c: Watched | None = None
        while not self._end.wait(RENEW_S):
            try:
                if c is None or c.closed:
                    c = connect(self._server, autocommit=True, connect_timeout=5)
                    c.silent_s = LEASE_S
                renewed = c.execute(
                    f"UPDATE autotune_lease SET expires_at = {_NOW} + %s "  # noqa: S608
                    "WHERE id = 1 AND epoch = %s AND owner = %s",
                    (LEASE_S, *self._mine()),
                )
                if renewed.rowcount != 1:
                    self._lost = True
                    break
            except (psycopg.Error, AutotuneError):  # the next renewal tries again
                if c is not None:
                    c.close()
        if c is not None:
            c.close()

    def _mine(self) -> tuple[int, str]:
        return (self.holder.epoch if self.holder else 0), self._owner

    def check(self) -> None:
        """Check that this process may still write.

        Raises:
            LeaseLost: another driver has taken the lease.
        """
        if self._lost:
            raise self._refusal()

    def _refusal(self) -> LeaseLost:
        self._lost = True
        now = ""
        with suppress(psycopg.Error, AutotuneError), connect(self._server) as c:
            row = c.execute("SELECT host, pid, owner FROM autotune_lease WHERE id = 1").fetchone()
            if row is not None and row[2] is not None:
                now = f" (pid {row[1]} on {row[0]})"
        return LeaseLost(
            f"{self._server}: another autotune{now} took it over while this one did not answer; "
            "nothing more is written. What was finished is kept"
        )

    def watch(self, connection: Watched) -> None:
        """Let a connection commit only while this process holds the lease."""
        connection.on_commit, connection.silent_s = self.commit, SILENT_S

    def commit(self, connection: Watched, commit: Callable[[], None]) -> None:
        """Commit a transaction that wrote, if the lease is still held.

        Args:
            connection: Has the transaction.
            commit: Commits it.

        Raises:
            LeaseLost: another driver has taken the lease; the transaction is rolled back.
        """
        if self.holder is None:
            commit()
            return
        with self._committing:
            number = self._written + 1
            mine = connection.execute(
                "UPDATE autotune_lease SET written = %s WHERE id = 1 AND epoch = %s AND owner = %s",
                (number, *self._mine()),
            )
            if mine.rowcount != 1:
                raise self._refusal()
            self._written = number
            try:
                commit()
            except psycopg.Error as e:
                if not is_lost(e) or not self._repeat(lambda: self._was_written(number)):
                    raise

    def _is_taken(self) -> bool:
        """Return whether another driver has the lease; False if the server does not tell."""
        with suppress(psycopg.Error, AutotuneError), connect(self._server) as c:
            row = c.execute("SELECT epoch, owner FROM autotune_lease WHERE id = 1").fetchone()
            return row is None or tuple(row) != self._mine()
        return False

    def _was_written(self, number: int) -> bool:
        """Return whether a commit was done that had no answer; waits until its fate is known."""
        with connect(self._server) as c:  # the lock is held as long as the other one may go on
            row = c.execute(
                "SELECT epoch, owner, written FROM autotune_lease WHERE id = 1 FOR UPDATE"
            ).fetchone()
        if row is None or tuple(row[:2]) != self._mine():
            raise self._refusal()
        return bool(row[2] == number)

    def again(self, work: Callable[[], T]) -> T:
        """Do what reads or writes; again, up to ``AWAY_S`` long, when the connection was lost.

        Only the outermost call repeats, and only for the holder: others say at once what is wrong.
        A run that is interrupted gives up ``INTERRUPTED_S`` after it first had to wait: what was to
        be written, such as the end of a launch, the next run finds out.

        Raises:
            KeyboardInterrupt: a run that is interrupted gave up.
        """
        if self.holder is None or getattr(self._outermost, "runs", False):
            return work()
        self._outermost.runs = True
        try:
            return self._repeat(work)
        finally:
            self._outermost.runs = False

    def _repeat(self, work: Callable[[], T]) -> T:
        end: float | None = None
        while True:
            try:
                return work()
            except Exception as e:
                if isinstance(e, AutotuneError):
                    raise
                if not is_lost(e):
                    if self._is_taken():  # what is there is the other driver's
                        raise self._refusal() from e
                    raise
                now, interrupted = time.monotonic(), _is_interrupted()
                if end is None:
                    end = now + AWAY_S
                    words = server_words(find_server_error(e))
                    if not interrupted:
                        again = f"Trying again for {AWAY_S / 60:.0f} min"
                        self._say(f"{self._server}: {words}. {again}")
                if interrupted:
                    self._gives_up = min(self._gives_up, now + INTERRUPTED_S)
                    if now >= self._gives_up:
                        raise KeyboardInterrupt from e
                if now > end:
                    raise
            time.sleep(_RETRY_S)

    def release(self) -> None:
        """Give the lease back, so that another driver need not wait."""
        if self.holder is None:
            return
        self._end.set()
        if self._renewing is not None:
            self._renewing.join(LEASE_S)
        with suppress(psycopg.Error, AutotuneError), connect(self._server) as c:
            c.execute(
                f"UPDATE autotune_lease SET owner = NULL, expires_at = {_NOW} "  # noqa: S608
                "WHERE id = 1 AND epoch = %s AND owner = %s",
                self._mine(),
            )
        self.holder = None


def _is_interrupted() -> bool:
    """Return whether an interrupt waits for the caller, or the caller cleans up after one."""
    if is_held():
        return True
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _is_held(server: Server, pid: object, host: object) -> UserError:
    return UserError(
        f"{server}: another autotune (pid {pid} on {host}) is running on it; wait for it, or give "
        "this run another --db"
    )


def check_free(server: Server) -> None:
    """Check that nobody holds the lease of a database and renews it; waits for a renewal.

    Raises:
        UserError: another driver does.
    """
    seen: object = None
    end = time.monotonic() + SEEN_S
    with connect(server, autocommit=True) as c:
        there = c.execute("SELECT to_regclass('autotune_lease') IS NOT NULL").fetchone()
        while there is not None and there[0] and time.monotonic() < end:
            row = c.execute(
                "SELECT owner, expires_at, pid, host FROM autotune_lease "  # noqa: S608
                f"WHERE owner IS NOT NULL AND expires_at > {_NOW}"
            ).fetchone()
            if row is None:
                return
            if seen is not None and seen != tuple(row[:2]):
                raise _is_held(server, *row[2:])
            seen = tuple(row[:2])
            time.sleep(_RETRY_S)


def is_free(server: Server) -> bool:
    """Return whether nobody holds the lease of a database now."""
    with connect(server) as c:
        row = c.execute(
            "SELECT 1 FROM autotune_lease WHERE owner IS NOT NULL "  # noqa: S608
            f"AND expires_at > {_NOW}"
        ).fetchone()
    return row is None
