"""Interrupts that come at a bad moment wait for a good one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_back() -> Iterator[None]:
    """The first SIGINT inside is raised at the end of the block: keep the block short.

    An exception between taking a lock and the ``try`` that frees it leaves the lock taken for good.
    httpcore's has such a moment, and the closing of its connections then waited for ever.
    """
    if threading.current_thread() is not threading.main_thread():  # they get no signals
        yield
        return
    came = False

    def note(*_: object) -> None:
        nonlocal came
        if came:  # asked twice: at once
            raise KeyboardInterrupt
        came = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            raise KeyboardInterrupt
