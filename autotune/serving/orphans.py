"""Living launches of this machine, whoever started them; those without an owner are orphans.

They are found by two variables in the environment of every process of a launch: the launch id, and
pid and start of the autotune that owns it. Processes of other users do not show their environment,
and are left to them. Containers are found by their label, as :mod:`autotune.serving.containers` has
them.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections import defaultdict
from dataclasses import dataclass, replace

import psutil

from autotune.engine.command import LAUNCH_VARIABLE, OWNER_VARIABLE
from autotune.serving.containers import ContainerRecord, forget, records
from autotune.serving.process_tree import Identity, boot_id, end_orphan, start_ticks


@dataclass(frozen=True)
class LivingLaunch:
    """The processes of one launch.

    Attributes:
        launch_id: Launch id.
        owner: Pid of the autotune that runs it; None: the launch is an orphan.
        processes: All its processes, the oldest first; the supervisor is one.
        memory: Bytes that they hold (RSS, with shared memory counted in each).
        seconds: Age of the oldest process, seconds.
        command: Command line of the server's first process.
        containers: Ids of its containers.
    """

    launch_id: str
    owner: int | None
    processes: tuple[psutil.Process, ...]
    memory: int
    seconds: float
    command: str
    containers: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """Number of its processes and containers, in words."""
        text = f"{len(self.processes)} processes"
        if not self.containers:
            return text
        return f"{text} and container {', '.join(x[:12] for x in self.containers)}"


def living_launches() -> list[LivingLaunch]:
    """Return every launch with a living process or a container, the oldest first."""
    found: dict[str, dict[psutil.Process, str]] = defaultdict(dict)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone, or another user's
            environ = process.environ()
            if launch_id := environ.get(LAUNCH_VARIABLE):
                found[launch_id][process] = environ.get(OWNER_VARIABLE, "")
    out = [_living(launch_id, processes) for launch_id, processes in found.items()]
    for record in records():
        out = _with_containers(record, out)
    return sorted(out, key=lambda x: -x.seconds)


def _living(launch_id: str, found: dict[psutil.Process, str]) -> LivingLaunch:
    begun, memory = {}, 0
    command = ""
    for process in sorted(found, key=lambda p: p.pid):
        with contextlib.suppress(psutil.Error):
            begun[process] = process.create_time()
            memory += process.memory_info().rss
            shown = _command(process)
            if not command and not shown.rstrip("'").endswith("supervisor.py"):
                command = shown
    processes = tuple(sorted(begun, key=begun.__getitem__))
    oldest = min(begun.values(), default=time.time())
    owner = next((o for o in map(_living_owner, found.values()) if o is not None), None)
    return LivingLaunch(launch_id, owner, processes, memory, time.time() - oldest, command)


def _with_containers(record: ContainerRecord, found: list[LivingLaunch]) -> list[LivingLaunch]:
    """Return launches with the containers of one of them, which may have no process any more."""
    answered = True
    try:
        ids = tuple(sorted(record.containers.ids()))
    except OSError:  # the engine does not answer: what it told last
        ids, answered = tuple(sorted(record.containers.written_id())), False
    if any(x.launch_id == record.launch_id for x in found):
        return [replace(x, containers=ids) if x.launch_id == record.launch_id else x for x in found]
    owner = _living_owner(record.owner)
    if ids:
        command, seconds = shlex.join(record.command), time.time() - record.since
        return [*found, LivingLaunch(record.launch_id, owner, (), 0, seconds, command, ids)]
    if owner is None and answered:
        forget(record.launch_id)
    return found


def _command(process: psutil.Process) -> str:
    words = [w for w in process.cmdline() if w]
    return (
        words[0] if len(words) == 1 else shlex.join(words)
    )  # one word: a title that the process has set


def _living_owner(mark: str) -> int | None:
    """Return the pid in ``pid:start``, if that process still runs."""
    pid, _, ticks = mark.partition(":")
    if not pid.isdigit() or str(start_ticks(int(pid))) != ticks:
        return None
    return int(pid)


def end_living(launch: LivingLaunch, *, grace_s: float) -> int:
    """End an orphaned launch; return the number of its processes and containers.

    Args:
        launch: Launch of :func:`living_launches` without an owner.
        grace_s: Wait after SIGTERM before SIGKILL, seconds.

    Raises:
        StopError: a process or a container survives SIGKILL.
    """
    return end_orphan(Identity(launch.launch_id, boot_id()), grace_s=grace_s)
