"""Processes of a launch: how they are recognized, found and ended, with proof."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from autotune.engine.command import LAUNCH_VARIABLE
from autotune.errors import StopError
from autotune.serving.containers import end_containers
from autotune.serving.supervisor import members, remove_cgroup

KILL_S = 30.0  # for the kernel to end processes after SIGKILL; a driver can delay it
# Keys of a stored identity that differ from the attributes.
_STORED = {"supervisor_pid": "guard_pid", "supervisor_ticks": "guard_ticks"}


@dataclass(frozen=True)
class Identity:
    """Identity of a server's process tree, valid after a reboot or the reuse of a pid.

    Attributes:
        launch_id: Launch id, which every process of the tree has in its environment.
        boot_id: Id of the kernel's boot; pids of another boot mean nothing.
        supervisor_pid: Pid of the supervisor.
        supervisor_ticks: Start of the supervisor, see :func:`start_ticks`.
        pid: Pid of the server's first process.
        ticks: Start of that process.
        cgroup: Folder of the server's control group; None where it has none.
        warm: Whether the server was forked from a process that had imported vLLM.
    """

    launch_id: str
    boot_id: str
    supervisor_pid: int = 0
    supervisor_ticks: int | None = None
    pid: int = 0
    ticks: int | None = None
    cgroup: str | None = None
    warm: bool = False

    def stored(self) -> dict[str, Any]:
        """Return the identity as the database keeps it."""
        return {_STORED.get(key, key): value for key, value in asdict(self).items()}

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> Identity:
        """Return an identity of the database; the inverse of :meth:`stored`."""
        names = {stored: name for name, stored in _STORED.items()}
        return cls(**{names.get(key, key): value for key, value in values.items()})


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Return the start of a process, in clock ticks since boot; None: the process is gone.

    Unlike a time of day, it stays the same when somebody sets the clock. Source: ``man 5 proc``,
    ``stat``, field 22.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since boot."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return 0


def processes_of(launch_id: str) -> list[psutil.Process]:
    """Return every living process with a launch id; zombies have no environment any more.

    Processes of other users do not show their environment.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone, or another user's
            if process.environ().get(LAUNCH_VARIABLE) == launch_id:
                found.append(process)
    return found


def remains(identity: Identity) -> list[psutil.Process]:
    """Return every living process of a launch: by launch id, by pid, by control group.

    A pid counts only with its stored start, because another process may have it by now.
    """
    found = set(processes_of(identity.launch_id))
    pids = members(identity.cgroup)
    for pid, ticks in (
        (identity.pid, identity.ticks),
        (identity.supervisor_pid, identity.supervisor_ticks),
    ):
        if ticks is not None and start_ticks(pid) == ticks:
            pids.add(pid)
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
    return list(found)


def kill_all(identity: Identity) -> set[int]:
    """Send SIGKILL to every process of a launch until none is left; return their pids.

    A container of the launch is killed and removed by its engine; its id is none of the pids.

    Raises:
        StopError: a process survives for :data:`KILL_S` seconds, or a container survives.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_S
    while left := remains(identity):
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
    end_containers(identity.launch_id)
    return killed


def port_is_free(port: int) -> bool:
    """Return whether a server could bind a TCP port on 127.0.0.1."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def end_orphan(identity: Identity, *, grace_s: float) -> int:
    """End the orphaned processes and containers of a launch; return their number.

    Only processes that have the launch id, are in its control group, or have the stored pid and
    start are touched, and containers with the launch id as label. After a reboot there are no
    processes.

    Args:
        identity: Stored identity of the launch.
        grace_s: Wait after SIGTERM before SIGKILL, seconds.

    Raises:
        StopError: a process or a container survives SIGKILL.
    """
    if identity.boot_id != boot_id():
        return end_containers(identity.launch_id)
    found = remains(identity)
    supervisors = [p for p in found if p.pid == identity.supervisor_pid]
    servers = [p for p in found if p.pid == identity.pid]
    # the supervisor ends the tree as stop() does; without one, the server gets the signal
    contained = 0 if supervisors else end_containers(identity.launch_id, grace_s=grace_s)
    for process in supervisors or servers or found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(found, timeout=grace_s + (1 if supervisors else 0))
    ended = {p.pid for p in found} | kill_all(identity)
    return len(ended) + contained
