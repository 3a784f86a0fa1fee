"""What encloses every run: the database's lock, a wait where it is locked, and signals."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from types import FrameType
from typing import TypeVar

from autotune.errors import DatabaseLocked
from autotune.storage.lease import exclusive
from autotune.storage.location import Database
from autotune.storage.store import Store, opened
from autotune.tuning.progress import Progress

T = TypeVar("T")

# So long a database that another program holds is waited for; a backup or a forgotten shell.
LOCKED_S = 600.0


class StopReason(StrEnum):
    """Why a run ended; shown to the user."""

    DONE = "all trials are done"
    TIMEOUT = "the time limit was reached"
    EXHAUSTED = "every point that can launch has been measured"
    CONVERGED = "no further launch is expected to be worth its time"


def run_on(database: Database, progress: Progress, go: Callable[[Store], T]) -> T:
    """Run what launches servers, alone on a database; again when that was locked meanwhile.

    Args:
        database: Made if missing.
        progress: Told that the database is waited for.
        go: Takes up its work from wherever the database says it stands.

    Raises:
        DatabaseLocked: another program held the database for ``LOCKED_S``.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP.
    """
    locked_since: float | None = None
    with exclusive(database), signals():
        while True:
            try:
                with opened(database, create=True) as store:
                    store.take_lease(progress.message)
                    return go(store)
            except DatabaseLocked as e:  # its server is gone: wait, and go on as after a kill
                now = time.monotonic()
                if locked_since is None or now - locked_since > 2 * LOCKED_S:
                    locked_since = now
                    progress.message(f"{e}. Waiting until it is free")
                if now - locked_since > LOCKED_S:
                    raise


@contextmanager
def signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does, also one that a script started with ``&``.

    And no interrupt is lost: Python prints and forgets what is raised while an object is destroyed,
    as in a garbage collection, which is where a signal is handled that arrives during one. What
    an interrupt broke off, such as SQLAlchemy in the middle of its books, complains when it is
    destroyed; that says nothing to anybody.
    """
    interrupted = False

    def as_interrupt(_signum: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does so for `command &`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)  # again, somewhere else
        elif not interrupted:
            hook(lost)

    hook = sys.unraisablehook
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = {s: signal.signal(s, as_interrupt) for s in numbers}
    sys.unraisablehook = unraisable
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not interrupted:
            sys.unraisablehook = hook
        for s, handler in before.items():
            signal.signal(s, handler)
