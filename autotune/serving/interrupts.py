"""Delay of interrupts that would come at a bad moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_held = False  # whether a SIGINT is held back now


def is_held() -> bool:
    """Return whether a SIGINT came in a block of :func:`held_back`, which should end soon."""
    return _held


@contextmanager
def held_back(*, all_of_them: bool = False) -> Iterator[None]:
    """Raise a SIGINT that comes inside at the end of the block, which should be short.

    A second SIGINT is raised at once. The delay is needed because an exception between taking a
    lock and the ``try`` that frees it leaves the lock taken. httpcore has such a moment, and
    closing its connections then waited forever.

    Args:
        all_of_them: Whether a second SIGINT is held back, too.
    """
    global _held
    if threading.current_thread() is not threading.main_thread():  # other threads get no signals
        yield
        return
    came = False

    def note(*_: object) -> None:
        global _held
        nonlocal came
        if came and not all_of_them:  # asked twice: at once
            raise KeyboardInterrupt
        came = _held = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            _held = False
            raise KeyboardInterrupt
