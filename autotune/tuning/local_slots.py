"""The executor of several slots on this host: a process for each, which ends with the run.

Each slot's process (:mod:`autotune.tuning.slot_worker`) launches and measures one trial at a time.
What is to be written it asks of this process, which does it while it waits for outcomes: the
database has one writer, in one thread. However a run ends, no server is left: an interrupt is
passed on to the processes, which end their servers as a run with one slot does; when this process
is killed, the kernel kills them, and the supervisors of their servers see it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from autotune.errors import AutotuneError, MachineError
from autotune.serving.interrupts import held_back
from autotune.serving.logs import LogFolder, open_log
from autotune.serving.process_tree import KILL_S, Identity, boot_id, end_orphan
from autotune.serving.slots import SLOT_VARIABLES, Slot
from autotune.storage.schema import LaunchRow
from autotune.storage.store import Store
from autotune.tuning.ledger import Ledger
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import Progress
from autotune.tuning.slot_messages import Answer, Call, Done, Raised, Setup
from autotune.tuning.slots import slot_environment
from autotune.tuning.trial import Outcome, Trial

# A process that ends its server has this time after the server's own `stop_timeout_s`.
_MORE_S = 30.0
# And this much in all when the user has asked twice.
_HURRY_S = KILL_S + 15.0
# The process is bound to its cores before it imports anything, whose threads inherit that.
_START = """
import importlib, json, os, sys
said = json.loads(sys.argv[1])
os.sched_setaffinity(0, said["cores"])
sys.path[:] = said["path"]
importlib.import_module(said["module"]).main(said["fd"], said["owner"])
"""
_MODULE = "autotune.tuning.slot_worker"

Served = Mapping[str, Callable[..., Any]]


@dataclass
class _Worker:
    """The process of one slot.

    Attributes:
        slot: Its slot.
        process: The process.
        connection: To it.
        trial: The trial that it runs; None: it is idle.
        launches: Launches that are written down and have not ended, with what is known of them.
        interrupted: Whether it was told to end its server.
    """

    slot: Slot
    process: subprocess.Popen[bytes]
    connection: Connection
    trial: Trial | None = None
    launches: dict[str, Identity] = field(default_factory=dict)
    interrupted: bool = False


class LocalSlots:
    """The executor of several slots of this host.

    Args:
        slots: The slots.
        setup: Returns what the process of a slot is given first.
        environment: Returns the variables that a slot adds to its process's environment.
        served: What the processes may call, by name.
        logs: Folder of the processes' own logs.
        stop_timeout_s: Grace of a server after SIGTERM, in seconds.
        module: Module whose ``main`` the processes run.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        setup: Callable[[Slot], Setup],
        environment: Callable[[Slot], Mapping[str, str]],
        served: Served,
        logs: LogFolder,
        *,
        stop_timeout_s: float,
        module: str = _MODULE,
    ) -> None:
        self._slots = tuple(slots)
        self._setup = setup
        self._environment = environment
        self._served = served
        self._logs = logs
        self._stop_timeout_s = stop_timeout_s
        self._module = module
        self._workers: dict[int, _Worker] = {}
        self._waiting: deque[Trial] = deque()
        self._ended: list[tuple[Trial, Outcome]] = []
        self._closed = False
        self._ending = False  # processes are told to end
        self._broken = False  # meanwhile something could not be written
        self._cores = os.sched_getaffinity(0)

    @property
    def capacity(self) -> int:
        """How many more trials may be submitted now."""
        if self._closed:
            return 0
        return max(0, len(self._slots) - len(self._running()) - len(self._waiting))

    def submit(self, trial: Trial) -> None:
        """Take a trial for its slot, whose process begins it as soon as it is idle."""
        if not self.capacity:
            raise RuntimeError("no slot is free")
        self._waiting.append(trial)
        self._hand_out()

    def completed(self) -> list[tuple[Trial, Outcome]]:
        """Wait until at least one trial has ended, and do what the processes ask meanwhile.

        Raises:
            AutotuneError: what ends the run.
            KeyboardInterrupt: likewise.
        """
        while not self._ended and (self._waiting or self._running()):
            self._listen(None)
        found, self._ended = self._ended, []
        return found

    def cancel(self) -> None:
        """Drop the trials that are not begun and end the servers of those that run."""
        self._waiting.clear()
        self._end(dismiss=False)

    def close(self) -> None:
        """End every process with its server, and prove that nothing is left."""
        if self._closed:
            return
        self._closed = True
        self._waiting.clear()
        try:
            self._end(dismiss=True)
        finally:
            os.sched_setaffinity(0, self._cores)

    # -- the processes ---------------------------------------------------------------------------

    def _running(self) -> list[Trial]:
        return [w.trial for w in self._workers.values() if w.trial is not None]

    def _hand_out(self) -> None:
        """Give idle slots the trials that wait for them."""
        for trial in [*self._waiting]:
            worker = self._workers.get(trial.slot) or self._start(self._slots[trial.slot])
            if worker.trial is None:
                self._waiting.remove(trial)
                worker.trial = trial
                _send(worker, trial)

    def _start(self, slot: Slot) -> _Worker:
        """Start the process of a slot."""
        ours, theirs = socket.socketpair()
        said = {
            "fd": theirs.fileno(),
            "owner": os.getpid(),
            "cores": slot.cores,
            "path": sys.path,
            "module": self._module,
        }
        with theirs, held_back():
            log = open_log(self._logs.path(_log_name(slot)))
            try:
                process = subprocess.Popen(
                    [sys.executable, "-c", _START, json.dumps(said)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self._environment(slot)},
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C in the terminal is passed on by this process
                )
            finally:
                os.close(log)
            worker = _Worker(slot, process, Connection(ours.detach()))
            self._workers[slot.number] = worker
        self._leave_cores()
        _send(worker, self._setup(slot))
        return worker

    def _leave_cores(self) -> None:
        """Leave the slots' cores to them, if there are others for this process."""
        if rest := self._cores.difference(*(slot.cores for slot in self._slots)):
            os.sched_setaffinity(0, rest)

    def _listen(self, timeout: float | None) -> None:
        """Take in one message of each process that has sent one.

        Raises:
            MachineError: a process has ended.
            AutotuneError: what a process raised, or what was raised here for it.
        """
        workers = [*self._workers.values()]
        ready = wait([w.connection for w in workers], timeout)
        for worker in workers:
            if worker.connection not in ready:
                continue
            try:
                with held_back():  # a message is read as a whole
                    message = worker.connection.recv()
            except (EOFError, ConnectionError):
                self._lost(worker)
            else:
                self._take(worker, message)

    def _take(self, worker: _Worker, message: Call | Done | Raised) -> None:
        match message:
            case Call():
                self._serve(worker, message)
            case Done(number, outcome):
                trial, worker.trial = worker.trial, None
                if trial is None or trial.number != number:
                    raise AssertionError(f"{worker.slot.name} ended a trial that it was not given")
                self._ended.append((trial, outcome))
                self._hand_out()
            case Raised(error):
                raise error

    def _serve(self, worker: _Worker, call: Call) -> None:
        """Do what a process asks for, and answer."""
        if call.name == "started":
            worker.launches[call.args[0].launch_id] = call.args[0]
        answer = Answer(call.number or 0, refused=True)
        try:
            if not self._broken:
                answer = replace(answer, value=self._served[call.name](*call.args), refused=False)
                if call.name == "plan":
                    worker.launches[call.args[0]] = Identity(call.args[0], boot_id())
                elif call.name == "ended":
                    worker.launches.pop(call.args[0], None)
        except KeyboardInterrupt:
            self._broken = self._ending  # asked again while this waited, as for a database
            raise
        except Exception:
            self._broken = self._ending  # what ends the run was raised already; tried only once
            if not self._ending:
                raise
        finally:
            if call.number is not None:
                _send(worker, answer)

    def _lost(self, worker: _Worker) -> None:
        """Take a process out that has ended; raise MachineError if nobody told it to."""
        worker.connection.close()
        code = worker.process.wait()
        del self._workers[worker.slot.number]
        for identity in [*worker.launches.values()]:
            # its server ends with it; this is the proof
            ended = end_orphan(identity, grace_s=self._stop_timeout_s)
            self._serve(worker, Call("ended", (identity.launch_id, None, ended)))
        if not worker.interrupted:
            of = f" of trial {worker.trial.number}" if worker.trial is not None else ""
            raise MachineError(
                f"the process of {worker.slot.name}{of} ended with exit code {code}; its log is "
                f"{self._logs.folder / _log_name(worker.slot)}. Run the same command again to "
                "resume"
            )

    # -- the end ---------------------------------------------------------------------------------

    def _end(self, *, dismiss: bool) -> None:
        """Interrupt the processes that run a trial, and wait for the end of all that are to end.

        Args:
            dismiss: Whether idle ones end, too.
        """
        for worker in self._workers.values():
            if worker.trial is not None:
                _interrupt(worker)
            elif dismiss:
                worker.interrupted = True
                _send(worker, None)
        deadline = time.monotonic() + self._stop_timeout_s + KILL_S + _MORE_S
        self._ending, asked_twice = True, False
        while ending := [w for w in self._workers.values() if w.interrupted]:
            try:
                if time.monotonic() > deadline:
                    for worker in ending:
                        worker.process.kill()  # its server ends with it
                with contextlib.suppress(AutotuneError):  # a process that is ended raised it
                    self._listen(0.5)
            except KeyboardInterrupt:
                asked_twice = True
                deadline = time.monotonic() + _HURRY_S
                for worker in ending:
                    _interrupt(worker)
        self._ending = self._broken = False
        if asked_twice:
            raise KeyboardInterrupt


def slots_of(
    prepared: Prepared, slots: Sequence[Slot], served: Served, logs: LogFolder
) -> LocalSlots:
    """Return the executor of a study's slots.

    Args:
        prepared: The study.
        slots: Its slots.
        served: What their processes may call, as of :func:`served_by`.
        logs: Folder of the servers' logs, and of the processes' own.
    """
    own = {name: os.environ.get(name) for name in SLOT_VARIABLES}

    def environment(slot: Slot) -> dict[str, str]:
        return slot_environment(slot, prepared.info.version)

    def setup(slot: Slot) -> Setup:
        return Setup(
            slot,
            prepared.loaded,
            prepared.info,
            prepared.workload,
            prepared.confirmation,
            logs.folder,
            own if slot.gpus else {},
        )

    grace = prepared.spec.server.stop_timeout_s
    return LocalSlots(slots, setup, environment, served, logs, stop_timeout_s=grace)


def _log_name(slot: Slot) -> str:
    return f"slot-{slot.number}.log"


def _send(worker: _Worker, message: Trial | Setup | Answer | None) -> None:
    """Send a message; that a process has ended is seen when it is listened to."""
    with contextlib.suppress(OSError), held_back(all_of_them=True):
        worker.connection.send(message)


def _interrupt(worker: _Worker) -> None:
    """Tell a process to end its server; SIGINT may be ignored, as in a script's background."""
    worker.interrupted = True
    worker.process.send_signal(signal.SIGTERM)


def served_by(
    store: Store, ledger: Ledger, progress: Progress, weights: Callable[[], dict[str, str]]
) -> Served:
    """Return what the processes of slots may call, by name.

    Args:
        store: Has the study.
        ledger: Where its launches are written down.
        progress: Told of stages, requests and retries.
        weights: Checks the weights that are there now.
    """

    def launches(trial: int) -> list[dict[str, Any]]:
        found = ledger.launches(trial)
        return [{f.name: getattr(row, f.name) for f in fields(LaunchRow)} for row in found]

    return {
        "check": ledger.check,
        "plan": ledger.plan,
        "started": ledger.started,
        "ready": ledger.ready,
        "failed": ledger.failed,
        "ended": ledger.ended,
        "event": ledger.event,
        "first_request": ledger.first_request,
        "time": ledger.time,
        "launches": launches,
        "keep": store.requests.add,
        "measured": store.launches.measured,
        "weights": weights,
        "stage": progress.stage,
        "progress": progress.progress,
        "message": progress.message,
    }
