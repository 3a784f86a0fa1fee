"""A server's processes, found by identity, and their proven end."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from autotune.engine.command import LAUNCH_VARIABLE
from autotune.errors import AutotuneError
from autotune.serving.guard import members, remove_cgroup

_KILL_S = 30.0  # for the kernel to end processes after SIGKILL; a driver can delay it


class StopError(AutotuneError):
    """A server could not be proven dead: nothing may be launched beside it."""


@dataclass(frozen=True)
class Identity:
    """Enough to recognise a server's processes later, even after a reboot or pid re-use.

    Attributes:
        launch_id: In the environment of every process of the tree.
        boot_id: Of the running kernel; pids of another boot mean nothing.
        guard_pid: The guard.
        guard_ticks: When the guard started, see :func:`start_ticks`.
        pid: The server's first process.
        ticks: When it started.
        cgroup: Folder of its control group; None where it has none.
        warm: It was forked from a process that had imported vLLM.
    """

    launch_id: str
    boot_id: str
    guard_pid: int = 0
    guard_ticks: int | None = None
    pid: int = 0
    ticks: int | None = None
    cgroup: str | None = None
    warm: bool = False


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """When a process started: clock ticks since boot (``man 5 proc``, ``stat``, field 22).

    Unlike a time of day, it stays the same when somebody sets the clock. None if it is gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _oom_kills() -> int:
    """Processes that the kernel killed for want of memory, since boot."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return 0


def _processes(launch_id: str) -> list[psutil.Process]:
    """Every living process that carries the launch id; zombies have no environment any more."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone, or another user's
            if process.environ().get(LAUNCH_VARIABLE) == launch_id:
                found.append(process)
    return found


def _remains(identity: Identity) -> list[psutil.Process]:
    """Every living process of a launch: by its mark, by the ledger, by its control group.

    A pid of the ledger counts only with the start that it was written down with; it may be
    another process's by now.
    """
    found = set(_processes(identity.launch_id))
    pids = members(identity.cgroup)
    for pid, ticks in (
        (identity.pid, identity.ticks),
        (identity.guard_pid, identity.guard_ticks),
    ):
        if ticks is not None and start_ticks(pid) == ticks:
            pids.add(pid)
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
    return list(found)


def _kill_all(identity: Identity) -> set[int]:
    """SIGKILL to every process of a launch, again and again until none is left; their pids."""
    killed: set[int] = set()
    deadline = time.monotonic() + _KILL_S
    while left := _remains(identity):
        if time.monotonic() > deadline:
            raise StopError(
                f"process {left[0].pid} of launch {identity.launch_id} survives SIGKILL; the "
                "kernel or a driver holds it: look at `dmesg`, a reboot may be needed"
            )
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.add(process.pid)
        time.sleep(0.05)
    remove_cgroup(identity.cgroup)
    return killed


def _port_is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def end_leftover(identity: Identity, *, grace_s: float) -> int:
    """Ends what an earlier run left of a launch.

    Only processes that carry the launch id, are in its control group, or have pid and start of the
    ledger are touched; after a reboot there are none.

    Args:
        identity: The launch, as it was recorded.
        grace_s: Wait after SIGTERM before SIGKILL, seconds.

    Returns:
        Number of processes that were ended.

    Raises:
        StopError: a process survives SIGKILL.
    """
    if identity.boot_id != boot_id():
        return 0
    found = _remains(identity)
    guards = [p for p in found if p.pid == identity.guard_pid]
    servers = [p for p in found if p.pid == identity.pid]
    # the guard ends the tree as stop() does; without it, the server is told itself
    for process in guards or servers or found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(found, timeout=grace_s + (1 if guards else 0))
    ended = {p.pid for p in found} | _kill_all(identity)
    return len(ended)
