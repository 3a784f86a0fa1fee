"""Which nodes of a Ray cluster are used, with an actor for each slot; the threads that ask them.

One thread asks Ray which nodes live, another one asks the actors for messages, also while the main
thread plans or waits for a database: that renews their leases. A node that joins is checked and
used, one that leaves is survived.

The first actor on a node checks it: version of autotune, vLLM and its device, hashes of the
weights, GPUs or processor. A node that differs is left out, with one line that says why.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autotune._version import __version__
from autotune.errors import AutotuneError
from autotune.results.text import count
from autotune.serving.process_tree import Identity
from autotune.serving.slots import Slot
from autotune.study.weights import shown_weights
from autotune.tuning.comparable import MachineClass
from autotune.tuning.late_outcomes import LateOutcome
from autotune.tuning.prepare import Prepared
from autotune.tuning.ray_actor import RENEW_S, EndLeft, SlotActor, machine_id, said_of
from autotune.tuning.ray_seat import Node, RayLink, Seat, Stage
from autotune.tuning.slot_messages import Call, Ended, FromSlot, Raised

# An actor that has not answered for so long is given up; it answers every RENEW_S.
SILENT_S = 15.0
# Between two looks at which nodes there are.
_NODES_S = 2.0
# An actor that could not be made is made again after a while, and so often.
_RETRY_S = 5.0
_MOST_FAILED = 5
_WAIT_S = 0.5

Messages = queue.SimpleQueue[tuple[RayLink | None, FromSlot]]


class Nodes:
    """The nodes of a cluster, and what stands on them. All but the lock is read under the lock.

    Args:
        prepared: The study.
        need: Number of GPUs of a server, or of cores on a node without.
        flags: Flags that say so, in words.
        each: Number of slots of a node without GPUs.
        module: Module whose ``main`` the processes of the slots run.
        messages: Gets what the actors send, and what is to be told.

    Attributes:
        lock: Of all that follows.
        on_gpus: Whether servers run on GPUs.
        nodes: The nodes that live, by Ray's id.
        first: The first node that was checked, with which all others are compared, also when it has
            left; None: none was.
        ready: Seats with a slot that can be used, by its number; replaced as a whole.
        numbers: Numbers of all slots that were ever ready.
        looked: Whether actors were made for the nodes.
        begun: Whether a study has begun; before, nothing is looked for that was left.
        left: Launches that nobody has ended yet, by host.
        to_prove: Those of this host.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        need: int,
        flags: str,
        each: int,
        module: str,
        messages: Messages,
    ) -> None:
        self._prepared, self._weights = prepared, prepared.weights()
        self._need, self._flags, self._each = need, flags, each
        self._module, self._queue = module, messages
        self.lock = threading.RLock()
        self.on_gpus = False
        self.nodes: dict[str, Node] = {}
        self.first: Node | None = None
        self.ready: dict[int, Seat] = {}
        self.numbers: dict[tuple[object, ...], int] = {}
        self.looked = False
        self.begun = False
        self.left: dict[str, list[Identity]] = defaultdict(list)
        self.to_prove: deque[Identity] = deque()
        self._seats: list[Seat] = []
        self._rows: dict[str, dict[str, Any]] | None = None  # of Ray, by node; None: not seen yet
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=work, name="autotune-ray", daemon=True)
            for work in (self._watch, self._keep)
        ]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Give the actors back; may be called again."""
        self._over.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2 * RENEW_S)
        for seat in self._seats:
            _kill(seat.actor)
        self._seats, self.ready = [], {}

    def settled(self) -> bool:
        """Return whether every node has all its slots, or is left out."""
        seats = [seat.node for seat in self.ready.values()]
        return self.looked and all(
            x.refused is not None or seats.count(x) >= x.slots for x in self.nodes.values()
        )

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
                with self.lock:
                    if (rows := self._rows) is not None:
                        self._look_for_nodes(rows)
                        self.looked = True
                    asked = {seat.ref: seat for seat in self._seats}
                ready: list[Any] = []
                if asked:
                    ready, _ = ray.wait([*asked], num_returns=1, timeout=_WAIT_S)
                else:
                    self._over.wait(_WAIT_S)
                away, woke = time.monotonic() - woke - _WAIT_S, time.monotonic()
                with self.lock:
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
        for gone in [self.nodes[x] for x in self.nodes.keys() - rows.keys()]:
            for seat in [x for x in self._seats if x.node is gone]:
                self._drop(seat, "is gone with its node, which has left the cluster")
            del self.nodes[gone.id]
        for number, row in rows.items():
            if number not in self.nodes:
                host, resources = str(row["NodeManagerHostname"]), row["Resources"]
                shared = any(x.host == host for x in self.nodes.values())
                label = f"{host}/{number[:6]}" if shared else host
                gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
                slots = gpus // self._need if self.on_gpus else min(self._each, cpus)
                self.nodes[number] = Node(number, host, label, slots)
        now = time.monotonic()
        for node in self.nodes.values():
            there = sum(seat.node is node for seat in self._seats)
            wanted = node.slots if node.machine is not None else min(1, node.slots)
            if node.refused is None and now >= node.not_before:
                for _ in range(wanted - there):
                    self._make(node, rows[node.id]["Resources"])

    def _make(self, node: Node, resources: Mapping[str, float]) -> None:
        """Make an actor for one more slot of a node; Ray starts it when the node has room."""
        of_host = [x for x in self.nodes.values() if x.host == node.host]
        total = sum(x.slots for x in of_host)
        taken = {seat.index for seat in self._seats if seat.node.host == node.host}
        index = next(i for i in range(total + len(taken)) if i not in taken)
        if self.on_gpus:  # with num_gpus=0 Ray would show the actor every GPU
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
        self._seats.append(
            Seat(node, index, actor, actor.look.remote(index, max(total, index + 1)))
        )

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
        except RayError as e:
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
                match message:
                    case Call("searched"):
                        seat.searched = True
                    case Call("late", (LateOutcome() as outcome,)):
                        # one of a launch that is under way comes by its own process, too
                        if not any(outcome.launch_id in x.launches.found for x in self._seats):
                            self._queue.put((None, Call("late", (outcome, seat))))
                    case Call("left"):
                        self._queue.put((None, message))
                    case _:
                        self._queue.put((seat.link, message))
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
        seat.ref = seat.actor.check.remote(self._prepared.loaded, seat.slot)

    def _checked(self, seat: Seat, found: dict[str, Any]) -> None:
        """Compare a node with the driver's host, and with the first node."""
        why = found.get("error") or _why_other(found, self._prepared, self._weights, self.first)
        if why is not None:
            self._refuse(seat, why)
            return
        seat.node.info, seat.node.machine = found["info"], found["machine"]
        self.first = self.first or seat.node
        self._settle(seat)

    def _settle(self, seat: Seat) -> None:
        """Let a seat be used: its slot gets the number that it had before, or the next one."""
        if seat.slot is None:
            raise AssertionError("a seat is ready without a slot")
        gpus = tuple(gpu.uuid for gpu in seat.slot.gpus)
        key = (seat.node.host, gpus or seat.index)
        number = self.numbers.setdefault(key, len(self.numbers))
        seat.slot = replace(seat.slot, number=number)
        seat.stage, seat.heard, seat.node.failed = Stage.READY, time.monotonic(), 0
        self.ready = {**self.ready, number: seat}
        self.send_left(seat)
        seat.ref = seat.actor.listen.remote(0, RENEW_S)

    def send_left(self, seat: Seat) -> None:
        """Let an actor end what is left on its host, once there is a study."""
        if self.begun:
            identities = self.left.pop(seat.found["host"], [])
            grace_s = self._prepared.spec.server.stop_timeout_s
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
        self.ready = {n: x for n, x in self.ready.items() if x is not seat}
        _kill(seat.actor)
        left = [*seat.launches.found.values()]
        if left and seat.found["machine"] == machine_id():
            self.to_prove.extend(left)
        elif left:
            self.left[seat.found["host"]] += left
        if was_ready:
            seat.node.not_before = time.monotonic() + 1.0
        if seat.link is not None:
            self._queue.put((seat.link, Ended(why)))

    def _note(self, text: str) -> None:
        self._queue.put((None, Call("message", (text,))))


def _why_other(
    found: Mapping[str, Any], prepared: Prepared, weights: Mapping[str, str], first: Node | None
) -> str | None:
    """Return why launches on a node would not compare with the others; None: they would.

    Args:
        found: What :meth:`SlotActor.check` returned.
        prepared: The study, on the driver's host.
        weights: Hashes of the weights there.
        first: The first node that was checked; None: this one is.
    """
    ours, info = prepared.info, found["info"]
    if ours.version and info.version and ours.version != info.version:
        return f"it has vLLM {info.version}, and the driver's host {ours.version}"
    if ours.device and info.device != ours.device:
        return f"its vLLM is for {info.device}, and that of the driver's host for {ours.device}"
    if found["weights"] != weights:
        theirs, mine = shown_weights(found["weights"]), shown_weights(weights)
        return f"it has other weights ({theirs}) than the driver's host ({mine})"
    if first is not None and first.machine is not None:
        known = MachineClass.of(first.machine, first.info.version, {})
        this = MachineClass.of(found["machine"], info.version, {})
        if (what := this.other(known)) is not None:
            return f"its trials would not compare with those of {first.label}: {what}"
    return None


def _kill(actor: Any) -> None:
    with contextlib.suppress(Exception):  # it is gone, or the cluster is
        ray.kill(actor, no_restart=True)
