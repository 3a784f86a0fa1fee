"""Slots on the nodes of a Ray cluster: which there are, and the messages to and from them.

Ray places an actor (:mod:`autotune.tuning.ray_actor`) for each slot and says which nodes live. A
thread asks the actors for messages, also while the main thread plans or waits for a database: that
renews their leases. Nodes are looked for again and again: one that joins is checked and used, one
that leaves is survived.

The first actor on a node checks it: version of autotune, vLLM and its device, hashes of the
weights, GPUs or processor. A node that differs is left out, with one line that says why.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autotune._version import __version__
from autotune.errors import AutotuneError, UserError, one_line
from autotune.results.text import count
from autotune.serving.interrupts import held_back
from autotune.serving.process_tree import Identity, end_orphan
from autotune.serving.slots import Slot
from autotune.study.weights import shown_weights
from autotune.tuning.prepare import Prepared
from autotune.tuning.ray_actor import (
    RENEW_S,
    Begin,
    EndLeft,
    SlotActor,
    logs_on,
    machine_id,
    said_of,
)
from autotune.tuning.ray_seat import Node, RayLink, Seat, Stage
from autotune.tuning.slot_messages import Call, Ended, FromSlot, Raised, Setup
from autotune.tuning.slot_process import MODULE
from autotune.tuning.slots import check_bound, gpus_needed, slot_environment

# An actor that has not answered for so long is given up; it answers every RENEW_S.
SILENT_S = 15.0
# Between two looks at which nodes there are.
_NODES_S = 2.0
# For the other nodes, once the first slot is there, and for the first one.
_SETTLE_S = 60.0
_FIRST_S = 600.0
# An actor that could not be made is made again after a while, and so often.
_RETRY_S = 5.0
_MOST_FAILED = 5
_WAIT_S = 0.5


class RayCluster:
    """The slots of a study on a Ray cluster (:class:`autotune.tuning.slot_pool.Cluster`).

    Args:
        prepared: The study.
        address: Of the cluster: ``auto``, or the host and port of its head.
        each: Number of slots of a node without GPUs.
        say: Told, as one line, what a user should know before the run.
        module: Module whose ``main`` the processes of the slots run.

    Attributes:
        prepared: The study, with the vLLM of the nodes where the driver's host has no device.

    Raises:
        UserError: there is no such cluster, or no node of it can run the study.
    """

    def __init__(
        self,
        prepared: Prepared,
        address: str,
        each: int,
        say: Callable[[str], None],
        *,
        module: str = MODULE,
    ) -> None:
        self.prepared = prepared
        self._address, self._each, self._say, self._module = address, each, say, module
        self._need, self._flags = gpus_needed(prepared.spec)
        self._logs = Path("logs")
        self._ours = False  # whether this object has connected
        self._on_gpus = False
        self._weights = prepared.weights()
        self._nodes: dict[str, Node] = {}
        self._seats: list[Seat] = []
        self._ready: dict[int, Seat] = {}  # by number of the slot; replaced as a whole
        self._numbers: dict[tuple[object, ...], int] = {}  # of slots that were ever ready
        self._rows: dict[str, dict[str, Any]] | None = None  # of Ray, by node; None: not seen yet
        self._looked = False  # whether actors were made for them
        self._left: dict[str, list[Identity]] = defaultdict(list)  # by host
        self._to_prove: deque[Identity] = deque()  # of this host
        self._queue: queue.SimpleQueue[tuple[RayLink | None, FromSlot]] = queue.SimpleQueue()
        self._got: deque[tuple[RayLink | None, FromSlot]] = deque()
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=work, name="autotune-ray", daemon=True)
            for work in (self._watch, self._keep)
        ]

    def __enter__(self) -> RayCluster:
        check_bound(self.prepared, "--ray")
        self._connect()
        try:
            self._check_sizes()
            for thread in self._threads:
                thread.start()
            self._await_first()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    # -- for the driver of a study ---------------------------------------------------------------

    @property
    def slots(self) -> Mapping[int, Slot]:
        """The slots that can be used now, by number."""
        return {n: seat.slot for n, seat in self._ready.items() if seat.slot is not None}

    @property
    def machine(self) -> dict[str, Any]:
        """What one slot is."""
        return next(x.machine for x in self._nodes.values() if x.machine is not None)

    def name(self, number: int) -> str:
        """Return the name of a slot in texts."""
        slot = self.slots.get(number)
        return f"slot {number}" if slot is None else slot.name

    def notes(self) -> Iterator[str]:
        """Yield what to know of the slots, a line each."""
        for node in self._nodes.values():
            found = [seat.slot for seat in self._ready.values() if seat.node is node and seat.slot]
            if found:
                each = count(len(found[0].cores), "core")
                if gpus := len(found[0].gpus):
                    each = f"{count(gpus, 'GPU')} and {each}"
                yield f"node {node.label}: {count(len(found), 'slot')} of {each}"
        if self.prepared.spec.server.ahead:
            yield "server.ahead is not used with --ray"

    def open(self, logs: Path, left: Sequence[tuple[str, Identity]]) -> None:
        """Begin a study, which has the database.

        Args:
            logs: Folder of the servers' logs on this host.
            left: Launches that earlier runs left on other hosts, each with its host.
        """
        with self._lock:
            self._logs = logs
            for host, identity in left:
                self._left[host].append(identity)
            for seat in self._ready.values():
                self._send_left(seat)

    def start(self, slot: Slot) -> RayLink:
        """Start the process of a slot, and send it what it needs first."""
        with self._lock:
            seat = self._ready.get(slot.number)
            if seat is None:  # it went a moment ago
                gone = Seat(Node("", slot.host, slot.host, 0), 0, None, None, Stage.GONE)
                link = RayLink(gone, slot, slot.host)
                self._queue.put((link, Ended("could not be started: its node is gone")))
                return link
            p, here = self.prepared, seat.found["machine"] == machine_id()
            slot = replace(slot, count=max(len(self._numbers), slot.number + 1))
            logs = logs_on(seat.found, self._logs, p.spec.name)
            seat.link = RayLink(seat, slot, f"{logs}/slot-{slot.number}.log on {seat.node.label}")
            setup = Setup(
                slot,
                p.loaded,
                seat.node.info,
                p.workload,
                p.confirmation,
                logs,
                seat.found["variables"] if slot.gpus else {},
                os.getpid() if here else None,
            )
            seat.send(Begin(setup, slot_environment(slot, seat.node.info.version)))
            return seat.link

    def receive(self, timeout: float) -> Iterator[tuple[RayLink | None, FromSlot]]:
        """Wait for messages and yield them; those that are no process's come with None."""
        while self._to_prove:  # what a lost actor left on this host
            identity = self._to_prove.popleft()
            ended = end_orphan(identity, grace_s=self.prepared.spec.server.stop_timeout_s)
            self._queue.put((None, Call("left", (identity.launch_id, ended))))
        if not self._got:
            with contextlib.suppress(queue.Empty), held_back():
                self._got.append(self._queue.get(timeout=timeout))
        with contextlib.suppress(queue.Empty), held_back():
            while True:
                self._got.append(self._queue.get_nowait())
        while self._got:
            yield self._got.popleft()

    def close(self) -> None:
        """Do nothing: the actors stay until the end of the context, for another run."""

    def _leave(self) -> None:
        """Give the actors back, and leave the cluster."""
        self._over.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2 * RENEW_S)
        for seat in self._seats:
            _kill(seat.actor)
        self._seats, self._ready = [], {}
        if self._ours:
            self._ours = False
            ray.shutdown()

    # -- before the run --------------------------------------------------------------------------

    def _connect(self) -> None:
        """Connect to the cluster, unless this process is.

        Raises:
            UserError: there is none.
        """
        if ray.is_initialized():
            return
        if self._address.startswith("ray://"):
            raise UserError(
                f"--ray {self._address}: the driver must be on a node of the cluster. Give `auto` "
                "there, or HOST:PORT of its head, or use `ray job submit`"
            )
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            ray.init(
                address=self._address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        except (RayError, ConnectionError, RuntimeError, ValueError, TimeoutError) as e:
            why = one_line(" ".join(str(e).split()), 200)
            raise UserError(
                f"--ray {self._address}: cannot connect to a Ray cluster ({why}). Start one with "
                "`ray start --head`, or give HOST:PORT of its head"
            ) from e
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self._ours = True

    def _check_sizes(self) -> None:
        """Refuse devices that have no slots, and a server larger than any node."""
        device, path = self.prepared.info.device, self.prepared.loaded.path
        if device not in ("cuda", "cpu", "", None):
            raise UserError(
                f"{path}: --ray needs NVIDIA GPUs, or a vLLM for CPUs; this vLLM is for {device}"
            )
        rows = [row for row in ray.nodes() if row["Alive"]]
        gpus = {str(row["NodeManagerHostname"]): int(row["Resources"].get("GPU", 0)) for row in rows}
        host = max(gpus, key=gpus.__getitem__)
        self._on_gpus = device == "cuda" or (device != "cpu" and gpus[host] > 0)
        if self._on_gpus and gpus[host] < self._need:
            raise UserError(
                f"{path}: {self._flags or 'one server'} needs {count(self._need, 'GPU')}, and the "
                f"largest node of the Ray cluster ({host}) has {gpus[host]}. Lower it, or add a "
                "larger node"
            )

    def _await_first(self) -> None:
        """Wait until every node was checked, or one was and the others take long.

        Raises:
            UserError: no node can run the study.
        """
        begun, first, told = time.monotonic(), None, False
        while True:
            for _, message in self.receive(0.1):
                if isinstance(message, Call) and message.name == "message":
                    self._say(message.args[0])
                elif isinstance(message, Raised):
                    raise message.error
            now = time.monotonic()
            with self._lock:
                ready, settled = bool(self._ready), self._settled()
            first = now if ready and first is None else first
            if ready and (settled or (first is not None and now - first > _SETTLE_S)):
                break
            if settled or now - begun > _FIRST_S:
                raise UserError(self._why_none())
            if not told and now - begun > 10:
                told = True
                self._say("waiting for a free slot on a node of the Ray cluster")
        if not self.prepared.info.device:
            info = next(iter(self._ready.values())).node.info
            self.prepared = replace(self.prepared, info=info)

    def _settled(self) -> bool:
        """Return whether every node has all its slots, or is left out."""
        seats = [seat.node for seat in self._ready.values()]
        nodes = self._nodes.values()
        return self._looked and all(
            x.refused is not None or seats.count(x) >= x.slots for x in nodes
        )

    def _why_none(self) -> str:
        refused = [f"{x.label}: {x.refused}" for x in self._nodes.values() if x.refused]
        if refused:
            return f"--ray: no node of the cluster can run this study: {'; '.join(refused)}"
        what = "free GPUs" if self._on_gpus else "free CPUs"
        return f"--ray: no node of the cluster has {what} for a slot; `ray status` shows what is used"

    # -- the threads that ask --------------------------------------------------------------------

    def _watch(self) -> None:
        """Look which nodes live, until the end; a head that does not answer is waited for."""
        while not self._over.is_set():
            with contextlib.suppress(RayError, RuntimeError, ConnectionError):
                self._rows = {row["NodeID"]: row for row in ray.nodes() if row["Alive"]}
            self._over.wait(_NODES_S)

    def _keep(self) -> None:
        """Take up nodes, and ask the actors, until the end."""
        woke = time.monotonic()
        while not self._over.is_set():
            try:
                with self._lock:
                    if (rows := self._rows) is not None:
                        self._look_for_nodes(rows)
                        self._looked = True
                    asked = {seat.ref: seat for seat in self._seats}
                ready: list[Any] = []
                if asked:
                    ready, _ = ray.wait([*asked], num_returns=1, timeout=_WAIT_S)
                else:
                    self._over.wait(_WAIT_S)
                away, woke = time.monotonic() - woke - _WAIT_S, time.monotonic()
                with self._lock:
                    for ref in ready:
                        self._answer(asked[ref], ref)
                    for seat in [*self._seats]:
                        seat.heard += max(0.0, away)  # this process stood still
                        self._look_after(seat)
            except Exception:  # noqa: BLE001 – the main thread raises it
                if not self._over.is_set():
                    self._queue.put((None, Raised(RuntimeError(traceback.format_exc()))))
                    self._over.wait(_RETRY_S)

    def _look_for_nodes(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up nodes that joined, drop those that left, and make actors where some are due."""
        for gone in [self._nodes[x] for x in self._nodes.keys() - rows.keys()]:
            for seat in [x for x in self._seats if x.node is gone]:
                self._drop(seat, "is gone with its node, which has left the cluster")
            del self._nodes[gone.id]
        for number, row in rows.items():
            if number not in self._nodes:
                host, resources = str(row["NodeManagerHostname"]), row["Resources"]
                shared = any(x.host == host for x in self._nodes.values())
                label = f"{host}/{number[:6]}" if shared else host
                gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
                slots = gpus // self._need if self._on_gpus else min(self._each, cpus)
                self._nodes[number] = Node(number, host, label, slots)
        now = time.monotonic()
        for node in self._nodes.values():
            there = sum(seat.node is node for seat in self._seats)
            wanted = node.slots if node.machine is not None else min(1, node.slots)
            if node.refused is None and now >= node.not_before:
                for _ in range(wanted - there):
                    self._make(node, rows[node.id]["Resources"])

    def _make(self, node: Node, resources: Mapping[str, float]) -> None:
        """Make an actor for one more slot of a node; Ray starts it when the node has room."""
        of_host = [x for x in self._nodes.values() if x.host == node.host]
        total = sum(x.slots for x in of_host)
        taken = {seat.index for seat in self._seats if seat.node.host == node.host}
        index = next(i for i in range(total + len(taken)) if i not in taken)
        if self._on_gpus:  # with num_gpus=0 Ray would show the actor every GPU
            asks: dict[str, Any] = {"num_gpus": self._need, "num_cpus": 0}
        else:
            asks = {"num_cpus": max(1, int(resources.get("CPU", 1)) // node.slots)}
        actor = (
            ray.remote(SlotActor)
            .options(
                **asks,
                max_concurrency=8,
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            )
            .remote(self._module)
        )
        self._seats.append(Seat(node, index, actor, actor.look.remote(index, max(total, index + 1))))

    def _answer(self, seat: Seat, ref: Any) -> None:
        """Take what an actor answered, and ask it again."""
        if seat.stage is Stage.GONE:
            return
        try:
            answer = ray.get(ref)
        except ActorUnavailableError:  # for a moment, or for good: then it is silent
            if seat.stage is not Stage.READY:
                self._failed(seat, "its actor does not answer")
                return
            self._over.wait(0.1)
            seat.ref = seat.actor.listen.remote(seat.got, RENEW_S)
            return
        except (RayActorError, RayError) as e:
            if seat.stage is Stage.READY:
                self._drop(seat, f"is gone with its actor ({said_of(e)})")
            else:
                self._failed(seat, said_of(e))
            return
        except AutotuneError as e:
            self._refuse(seat, str(e))
            return
        if seat.stage is Stage.LOOKING:
            self._looked_at(seat, answer)
        elif seat.stage is Stage.CHECKING:
            self._checked(seat, answer)
        else:
            for message in seat.answered(*answer):
                seat.launches.note(message)
                loose = isinstance(message, Call) and message.name == "left"
                self._queue.put((None if loose else seat.link, message))
            seat.ref = seat.actor.listen.remote(seat.got, RENEW_S)

    def _looked_at(self, seat: Seat, found: dict[str, Any]) -> None:
        """Take what an actor sees of its host."""
        seat.found = found
        if found["version"] != __version__:
            self._refuse(seat, f"it has autotune {found['version']}, and this is {__version__}")
            return
        if "error" in found:
            self._refuse(seat, found["error"])
            return
        if not found["gpus"] and len(found["cores"]) < self._need:
            cores = count(len(found["cores"]), "core")
            self._refuse(seat, f"a slot there has {cores}, and {self._flags} needs {self._need}")
            return
        seat.slot = Slot(0, 0, found["cores"], found["gpus"], seat.node.label)
        if seat.node.machine is not None:
            self._settle(seat)
            return
        seat.stage = Stage.CHECKING
        seat.ref = seat.actor.check.remote(self.prepared.loaded, seat.slot)

    def _checked(self, seat: Seat, found: dict[str, Any]) -> None:
        """Compare a node with the driver's host, and with the first node."""
        if (why := found.get("error") or self._why_not(found)) is not None:
            self._refuse(seat, why)
            return
        seat.node.info, seat.node.machine = found["info"], found["machine"]
        self._settle(seat)

    def _why_not(self, found: Mapping[str, Any]) -> str | None:
        """Return why launches on a node would not compare with the others; None: they would."""
        ours, info = self.prepared.info, found["info"]
        if ours.version and info.version and ours.version != info.version:
            return f"it has vLLM {info.version}, and the driver's host {ours.version}"
        if ours.device and info.device != ours.device:
            return f"its vLLM is for {info.device}, and that of the driver's host for {ours.device}"
        if found["weights"] != self._weights:
            theirs, mine = shown_weights(found["weights"]), shown_weights(self._weights)
            return f"it has other weights ({theirs}) than the driver's host ({mine})"
        known = next((x for x in self._nodes.values() if x.machine is not None), None)
        if known is not None and known.machine is not None:
            here, there = alike(known.machine), alike(found["machine"])
            if here != there:
                return f"its trials would not compare with those of {known.label} ({there}; {here})"
        return None

    def _settle(self, seat: Seat) -> None:
        """Let a seat be used: its slot gets the number that it had before, or the next one."""
        if seat.slot is None:
            raise AssertionError("a seat is ready without a slot")
        gpus = tuple(gpu.uuid for gpu in seat.slot.gpus)
        key = (seat.node.host, gpus or seat.index)
        number = self._numbers.setdefault(key, len(self._numbers))
        seat.slot = replace(seat.slot, number=number)
        seat.stage, seat.heard, seat.node.failed = Stage.READY, time.monotonic(), 0
        self._ready = {**self._ready, number: seat}
        self._send_left(seat)
        seat.ref = seat.actor.listen.remote(0, RENEW_S)

    def _send_left(self, seat: Seat) -> None:
        """Let an actor end what is left on its host."""
        if identities := self._left.pop(seat.found["host"], []):
            grace_s = self.prepared.spec.server.stop_timeout_s
            seat.send(EndLeft(tuple(identities), grace_s))

    def _look_after(self, seat: Seat) -> None:
        """Give an actor up that has not answered for too long."""
        if seat.stage is not Stage.READY:
            return
        if time.monotonic() - seat.heard > SILENT_S:
            self._drop(seat, f"is given up: its actor has not answered for {SILENT_S:.0f} s")
        else:
            seat.repeat()

    def _refuse(self, seat: Seat, why: str) -> None:
        """Leave a node out for good."""
        seat.node.refused = why
        self._note(f"node {seat.node.label} is left out: {why}")
        for other in [x for x in self._seats if x.node is seat.node]:
            self._drop(other, "is gone: its node is left out")

    def _failed(self, seat: Seat, why: str) -> None:
        """Make an actor again that could not be made, a few times."""
        node = seat.node
        node.failed, node.not_before = node.failed + 1, time.monotonic() + _RETRY_S
        if node.failed >= _MOST_FAILED or "is not installed there" in why:
            self._refuse(seat, why)
        else:
            self._drop(seat, why)

    def _drop(self, seat: Seat, why: str) -> None:
        """Forget an actor; what its process left is ended by whoever can reach it."""
        was_ready = seat.stage is Stage.READY
        seat.stage = Stage.GONE
        self._seats.remove(seat)
        self._ready = {n: x for n, x in self._ready.items() if x is not seat}
        _kill(seat.actor)
        left = [*seat.launches.found.values()]
        if left and seat.found["machine"] == machine_id():
            self._to_prove.extend(left)
        elif left:
            self._left[seat.found["host"]] += left
        if was_ready:
            seat.node.not_before = time.monotonic() + 1.0
        if seat.link is not None:
            self._queue.put((seat.link, Ended(why)))

    def _note(self, text: str) -> None:
        self._queue.put((None, Call("message", (text,))))


def alike(machine: Mapping[str, Any]) -> str:
    """Return what two slots must have in common, in words: their GPUs, or cores of a processor."""
    if gpus := machine["gpus"]:
        return ", ".join(f"{gpu['name']} with driver {gpu['driver']}" for gpu in gpus)
    return f"{count(machine['cores'], 'core')} of {machine['cpu']}"


def _kill(actor: Any) -> None:
    with contextlib.suppress(Exception):  # it is gone, or the cluster is
        ray.kill(actor, no_restart=True)
