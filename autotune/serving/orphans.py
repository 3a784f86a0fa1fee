"""Servers of autotune that are alive on this machine, whoever started them, and their end.

They are found by the marks that every launch has in its environment: its id, and pid and start of
the autotune that owns it. Processes of other users do not show their environment, and are theirs.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections import defaultdict
from dataclasses import dataclass

import psutil

from autotune.engine.command import LAUNCH_VARIABLE, OWNER_VARIABLE
from autotune.serving.process_tree import Identity, boot_id, end_leftover, start_ticks


@dataclass(frozen=True)
class LivingLaunch:
    """The processes of one launch.

    Attributes:
        launch_id: Its id.
        owner: Pid of the autotune that runs it; None if that is gone.
        processes: All of them, the oldest first; the guard is one.
        memory: Bytes that they hold (RSS; what they share is counted in each).
        seconds: Since the oldest began.
        command: Command line of the server's first process.
    """

    launch_id: str
    owner: int | None
    processes: tuple[psutil.Process, ...]
    memory: int
    seconds: float
    command: str


def living_launches() -> list[LivingLaunch]:
    """Every launch with a living process, the oldest first."""
    found: dict[str, dict[psutil.Process, str]] = defaultdict(dict)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone, or another user's
            environ = process.environ()
            if launch_id := environ.get(LAUNCH_VARIABLE):
                found[launch_id][process] = environ.get(OWNER_VARIABLE, "")
    out = [_living(launch_id, processes) for launch_id, processes in found.items()]
    return sorted(out, key=lambda x: -x.seconds)


def _living(launch_id: str, found: dict[psutil.Process, str]) -> LivingLaunch:
    begun, memory = {}, 0
    command = ""
    for process in sorted(found, key=lambda p: p.pid):
        with contextlib.suppress(psutil.Error):
            begun[process] = process.create_time()
            memory += process.memory_info().rss
            shown = _command(process)
            if not command and not shown.rstrip("'").endswith("guard.py"):
                command = shown
    processes = tuple(sorted(begun, key=begun.__getitem__))
    oldest = min(begun.values(), default=time.time())
    owner = next((o for o in map(_living_owner, found.values()) if o is not None), None)
    return LivingLaunch(launch_id, owner, processes, memory, time.time() - oldest, command)


def _command(process: psutil.Process) -> str:
    words = [w for w in process.cmdline() if w]
    return words[0] if len(words) == 1 else shlex.join(words)  # one: a title that it gave itself


def _living_owner(mark: str) -> int | None:
    """The pid in ``pid:start``, if that process still runs."""
    pid, _, ticks = mark.partition(":")
    if not pid.isdigit() or str(start_ticks(int(pid))) != ticks:
        return None
    return int(pid)


def end_living(launch: LivingLaunch, *, grace_s: float) -> int:
    """Ends a launch whose owner is gone; the number of processes.

    Args:
        launch: From :func:`living_launches`.
        grace_s: Wait after SIGTERM before SIGKILL, seconds.

    Raises:
        StopError: a process survives SIGKILL.
    """
    return end_leftover(Identity(launch.launch_id, boot_id()), grace_s=grace_s)
