"""The process of one slot, as whoever started it sees it: the driver, or an actor of Ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from autotune.serving.interrupts import held_back
from autotune.serving.logs import open_log
from autotune.serving.process_tree import Identity, end_orphan
from autotune.serving.slots import Slot
from autotune.storage.lease import Place
from autotune.tuning.slot_messages import Call, Ended, FromSlot, ToSlot

# Module whose ``main`` such a process runs.
MODULE = "autotune.tuning.slot_worker"
# The process is bound to its cores before it imports anything, whose threads inherit that. An actor
# of Ray blocks signals, which its children inherit.
_START = """
import importlib, json, os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, [])
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
said = json.loads(sys.argv[1])
os.sched_setaffinity(0, said["cores"])
sys.path[:] = said["path"]
importlib.import_module(said["module"]).main(said["fd"], said["owner"])
"""


class OpenLaunches:
    """Launches of a slot's process that are under way, by what it asks to write down.

    Attributes:
        found: Their identities, as far as they are known, by launch id.
    """

    def __init__(self) -> None:
        self.found: dict[str, Identity] = {}

    def note(self, message: FromSlot) -> None:
        """Take note of a message of the process."""
        match message:
            case Call("plan", (str(launch_id), *_, Place() as place)):
                self.found[launch_id] = Identity(launch_id, place.boot_id)
            case Call("started", (Identity() as identity,)):
                self.found[identity.launch_id] = identity
            case Call("ended" | "left", (str(launch_id), *_)):
                self.found.pop(launch_id, None)


class SlotProcess:
    """A process that launches and measures on one slot; its parent's end is its own.

    Args:
        slot: The slot.
        env: Its environment.
        log: File for what it prints; made anew.
        grace_s: Grace of a server after SIGTERM, in seconds.
        module: Module whose ``main`` it runs.

    Attributes:
        slot: The slot.
        log: File with what it printed.
        ended: Whether all that it sent was received, and its end, too.
    """

    def __init__(
        self, slot: Slot, env: Mapping[str, str], log: Path, *, grace_s: float, module: str = MODULE
    ) -> None:
        self.slot, self.log = slot, str(log)
        self.ended = False
        self._grace_s = grace_s
        self._launches = OpenLaunches()
        self._proofs: list[FromSlot] = []
        self._read: deque[FromSlot] = deque()
        ours, theirs = socket.socketpair()
        said = {
            "fd": theirs.fileno(),
            "owner": os.getpid(),
            "cores": slot.cores,
            "path": sys.path,
            "module": module,
        }
        with theirs, held_back():
            out = open_log(log)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START, json.dumps(said)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=dict(env),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C in the terminal is passed on by the driver
                )
            finally:
                os.close(out)
            self._connection = Connection(ours.detach())

    def send(self, message: ToSlot) -> None:
        """Send a message; that the process has ended is seen when it is listened to."""
        with contextlib.suppress(OSError), held_back(all_of_them=True):
            self._connection.send(message)

    def interrupt(self) -> None:
        """Tell it to end its server and itself; a script's background may ignore SIGINT."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once; its servers end with it."""
        self._process.kill()

    def receive(self) -> list[FromSlot]:
        """Return the message that is there; what its servers left is ended, once it has ended.

        Raises:
            StopError: a process of a server survives SIGKILL.
        """
        if not self.due:
            try:
                with held_back():  # a message is read as a whole, and kept if an interrupt came
                    self._read.append(self._connection.recv())
            except (EOFError, ConnectionError):
                self._connection.close()
        if self._read:
            message = self._read.popleft()
            self._launches.note(message)
            return [message]
        code = self._process.wait()
        for identity in [*self._launches.found.values()]:  # they end with it; this is the proof
            ended = end_orphan(identity, grace_s=self._grace_s)
            self._proofs.append(Call("left", (identity.launch_id, ended)))
            self._launches.note(self._proofs[-1])
        self.ended = True
        return [*self._proofs, Ended(f"ended with exit code {code}")]

    @property
    def due(self) -> bool:
        """Whether something can be received without waiting for the socket."""
        return bool(self._read) or self._connection.closed

    def fileno(self) -> int:
        """Return the number of the file of the socket to it, to wait for it."""
        return self._connection.fileno()


def receive_from(
    processes: list[SlotProcess], timeout: float, also: Sequence[int] = ()
) -> Iterator[tuple[SlotProcess, FromSlot]]:
    """Wait for messages, and yield one of each process that has sent one, and all at its end.

    Args:
        processes: The processes; those that ended are taken out.
        timeout: Longest wait, seconds.
        also: Numbers of files that end the wait when something can be read from them.
    """
    due = [p for p in processes if p.due]
    waited = [p for p in processes if not p.due]
    sockets: list[Any] = [*waited, *also]
    ready = [*due, *wait(sockets, 0 if due else timeout)]
    for process in [p for p in processes if p in ready]:
        for message in process.receive():
            yield process, message
        if process.ended:
            processes.remove(process)
