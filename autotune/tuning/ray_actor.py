"""What stands on a node of a Ray cluster for one slot: an actor between a driver and a process.

The process of the slot (:mod:`autotune.tuning.slot_worker`) is the same as on the driver's own
host, and a child of the actor, which passes messages on in both directions. It ends with the actor,
and its server with it. What Ray does to children of an actor in sessions of their own, which is
nothing, does not matter then.

The driver asks for messages again and again (:meth:`SlotActor.listen`), every :data:`RENEW_S` at
least. That renews the lease of the slot. When nobody has asked for :data:`LEASE_S`, the driver is
gone or cut off, and the server is ended.

Messages are numbered in both directions, so that one that Ray has to send again counts once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from socket import gethostname
from typing import Any

import psutil
from platformdirs import user_cache_dir

from autotune._version import __version__
from autotune.engine.memory_fit import why_too_large
from autotune.engine.probe import probe
from autotune.errors import AutotuneError, UserError, one_line
from autotune.serving.logs import LogFolder
from autotune.serving.machine import describe_machine, memory_size
from autotune.serving.process_tree import Identity, boot_id, end_orphan
from autotune.serving.resolve import model_resolver
from autotune.serving.slots import SLOT_VARIABLES, Slot, cores_of_slots, slot_gpus
from autotune.study.files import LoadedStudy
from autotune.tuning import late_outcomes
from autotune.tuning.prepare import weights_here
from autotune.tuning.slot_messages import LEASE_S, Call, FromSlot, Raised, Setup, ToSlot
from autotune.tuning.slot_process import MODULE, SlotProcess, receive_from

# Longest time between two questions of the driver, each of which renews the lease.
RENEW_S = 3.0
# For the process to end its server and itself; then it is killed, and its supervisor ends the rest.
_GRACE_S = 5.0
_LOOK_S = 0.5
# After the end of the lease the place stays that of the driver, which may come back.
_PLACE_S = 30.0


@dataclass(frozen=True)
class Begin:
    """Start the process of the slot.

    Attributes:
        setup: What it is given first; its study comes apart, as only that may hold secrets.
        variables: Variables that it adds to the node's own.
    """

    setup: Setup
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Signal:
    """Interrupt the process of the slot, or kill it."""

    kill: bool


@dataclass(frozen=True)
class EndLeft:
    """End what earlier runs, or a lost actor of this one, left on this host; tell what it measured.

    Attributes:
        identities: Their launches, of the driver's database.
        grace_s: Grace of a server after SIGTERM, in seconds.
    """

    identities: tuple[Identity, ...]
    grace_s: float


@dataclass(frozen=True)
class Forget:
    """A late outcome was taken, or is not needed."""

    launch_id: str


ToActor = ToSlot | Begin | Signal | EndLeft | Forget


def machine_id() -> str:
    """Return what two processes of one host have in common, which see each other's pids."""
    return f"{gethostname()} {boot_id()} {Path('/proc/self/ns/pid').readlink()}"


class SlotActor:
    """The actor of one slot.

    Args:
        module: Module whose ``main`` the process of the slot runs.
    """

    def __init__(self, module: str = MODULE) -> None:
        self._module = module
        _take_own_environment()
        self._news = threading.Condition()
        self._received = 0
        self._early: dict[int, ToActor] = {}
        self._inbox: deque[ToActor] = deque()
        self._sent = 0
        self._outbox: deque[tuple[int, FromSlot]] = deque()
        self._renewed = time.monotonic()
        self._interrupted = False  # since the lease has run out
        self._begun = False  # whether there ever was a process
        self._processes: list[SlotProcess] = []
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # the kernel ends a child when the thread that started it ends, and this one never does
        threading.Thread(target=self._pump, name="autotune-slot", daemon=True).start()

    # -- before the first launch -----------------------------------------------------------------

    def look(self, index: int, count: int) -> dict[str, Any]:
        """Return version, host, cores and GPUs of this slot, as data that every version reads.

        Args:
            index: Number of the slot among those without GPUs on its host.
            count: Number of those.
        """
        self._renewed = time.monotonic()
        found: dict[str, Any] = {
            "version": __version__,
            "host": gethostname(),
            "machine": machine_id(),
            "cache": user_cache_dir("dflash-autotune"),
            "variables": {name: os.environ.get(name) for name in SLOT_VARIABLES},
        }
        usable = sorted(os.sched_getaffinity(0))
        ids = _ids_of_gpus()
        if not ids:
            parts = cores_of_slots(usable, [()] * count) if count <= len(usable) else []
            return {**found, "gpus": (), "cores": tuple(parts[index] if parts else usable)}
        every = slot_gpus()
        mine = [gpu for gpu in every if str(gpu.index) in ids or gpu.uuid in ids]
        if len(mine) != len(ids):
            return {**found, "error": "NVML (the package nvidia-ml-py) does not show its GPUs"}
        if any(gpu.split for gpu in mine):
            return {**found, "error": "MIG splits a GPU there, and slots need whole GPUs"}
        cores: set[int] = set(usable)
        if len(every) <= len(usable):
            of_each = cores_of_slots(usable, [(gpu,) for gpu in every])
            cores = {core for gpu in mine for core in of_each[every.index(gpu)]}
        return {**found, "gpus": tuple(mine), "cores": tuple(sorted(cores))}

    def check(self, loaded: LoadedStudy, slot: Slot) -> dict[str, Any]:
        """Return this node's vLLM, weights and machine, or why the study cannot be run here.

        Args:
            loaded: The study.
            slot: The slot.
        """
        self._renewed = time.monotonic()
        try:
            info = probe(loaded.spec.server)
            weights = weights_here(loaded.spec, model_resolver(loaded, info))
        except UserError as e:
            return {"error": str(e)}
        if why := why_too_large(loaded, info, memory_size()):
            return {"error": why}
        return {"info": info, "weights": weights, "machine": slot.machine(describe_machine())}

    # -- the two directions ----------------------------------------------------------------------

    def tell(self, number: int, message: ToActor, loaded: LoadedStudy | None = None) -> None:
        """Take a message of the driver; one that came before is not taken again.

        Args:
            number: Its number, from 1.
            message: The message.
            loaded: The study of a :class:`Begin`.
        """
        self._renewed = time.monotonic()
        if isinstance(message, Begin) and loaded is not None:
            message = replace(message, setup=replace(message.setup, loaded=loaded))
        with self._news:
            if number > self._received:
                self._early[number] = message
            while self._received + 1 in self._early:
                self._received += 1
                self._inbox.append(self._early.pop(self._received))
        with contextlib.suppress(BlockingIOError):  # it was woken often enough
            os.write(self._waker, b".")

    def listen(self, after: int, wait_s: float) -> tuple[int, list[tuple[int, FromSlot]]]:
        """Return how many messages were taken, and those for the driver; waits for one.

        Args:
            after: Number of the last message that the driver has.
            wait_s: Longest wait, seconds.
        """
        self._renewed = time.monotonic()
        with self._news:
            while self._outbox and self._outbox[0][0] <= after:
                self._outbox.popleft()
            self._news.wait_for(lambda: self._outbox, wait_s)
            return self._received, [*self._outbox]

    def _put(self, message: FromSlot) -> None:
        with self._news:
            self._sent += 1
            self._outbox.append((self._sent, message))
            self._news.notify_all()

    # -- the thread that has the process ---------------------------------------------------------

    def _pump(self) -> None:
        while True:
            try:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                while self._inbox:
                    self._do(self._inbox.popleft())
                for _, message in receive_from(self._processes, _LOOK_S, [self._wake]):
                    self._put(message)
                self._look_at_lease()
            except AutotuneError as e:
                self._put(Raised(type(e)(f"{gethostname()}: {e}")))
            except Exception:  # noqa: BLE001 – the driver says it
                self._put(Raised(RuntimeError(traceback.format_exc())))

    def _do(self, message: ToActor) -> None:
        match message:
            case Begin():
                self._begin(message)
            case Signal():
                for process in self._processes:
                    (process.kill if message.kill else process.interrupt)()
            case EndLeft():
                for identity in message.identities:
                    ended = end_orphan(identity, grace_s=message.grace_s)
                    self._put(Call("left", (identity.launch_id, ended)))
                for outcome in late_outcomes.kept():
                    self._put(Call("late", (outcome,)))
                self._put(Call("searched", ()))
            case Forget():
                late_outcomes.forget(message.launch_id)
            case _:
                for process in self._processes:
                    process.send(message)

    def _begin(self, begin: Begin) -> None:
        setup = begin.setup
        self._interrupted = False
        process = SlotProcess(
            setup.slot,
            {**_without_rays(os.environ), **begin.variables},
            LogFolder(setup.logs).path(f"slot-{setup.slot.number}.log"),
            grace_s=setup.loaded.spec.server.stop_timeout_s,
            module=self._module,
        )
        self._processes.append(process)
        self._begun = True
        process.send(setup)

    def _look_at_lease(self) -> None:
        """End the process and its server when the driver has not asked for too long.

        Later, end the actor, which gives its place back: another driver may wait for it.
        """
        late = time.monotonic() - self._renewed - LEASE_S
        if late > _PLACE_S and self._begun and not self._processes:
            _leave_node()
        for process in self._processes if late > 0 else ():
            if late > _GRACE_S:
                process.kill()
            elif not self._interrupted:
                process.interrupt()
        self._interrupted = late > 0


def logs_on(found: Mapping[str, Any], logs: Path, study: str) -> Path:
    """Return the folder of a study's logs on a node.

    Args:
        found: What :meth:`SlotActor.look` returned.
        logs: The folder on the driver's host.
        study: Name of the study.
    """
    if found["machine"] == machine_id():
        return logs.resolve()
    return Path(found["cache"], "ray", study, "logs")


def _ids_of_gpus() -> Sequence[str]:
    """Return the ids of the GPUs that Ray gave this actor: numbers, or UUIDs."""
    import ray

    found = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return [str(x) for x in found]


def _take_own_environment() -> None:
    """Undo what Ray does to the environment of an actor, such as ``OMP_NUM_THREADS=1``.

    A server is to get the variables of its node, as ``ray start`` had them: they are those of the
    raylet, which is the parent. Only ``LD_PRELOAD`` is not: Ray 2.60 puts its own jemalloc there
    (ray/_private/services.py, propagate_jemalloc_env_var), and what was there before is lost.
    """
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(os.getppid())
        if "raylet" not in parent.name():
            return
        own = parent.environ()
        if own.get("LD_PRELOAD", "").endswith("/ray/core/libjemalloc.so"):
            del own["LD_PRELOAD"]
        for name in [x for x in os.environ if not x.startswith("RAY_") and x not in own]:
            del os.environ[name]
        os.environ.update({k: v for k, v in own.items() if not k.startswith("RAY_")})


def _leave_node() -> None:
    """End the process of this actor, if it is one of Ray's."""
    with contextlib.suppress(psutil.Error):
        if "raylet" in psutil.Process(os.getppid()).name():
            os._exit(0)


def _without_rays(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without Ray's own variables, of which vLLM reads some."""
    return {k: v for k, v in env.items() if not k.startswith("RAY_")}


def said_of(error: BaseException) -> str:
    """Return why an actor could not be made or asked, in one line."""
    text = str(error)
    if "No module named 'autotune" in text:
        return f"autotune {__version__} is not installed there"
    return one_line((text.strip().splitlines() or [repr(error)])[-1].strip(), 300)
