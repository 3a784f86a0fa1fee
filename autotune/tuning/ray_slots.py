"""Slots on the nodes of a Ray cluster, as the driver of a study has them.

:mod:`autotune.tuning.ray_nodes` says which nodes are used and asks the actors on them
(:mod:`autotune.tuning.ray_actor`) for messages; here they are given to the executor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError

from autotune.errors import UserError, one_line
from autotune.results.text import count
from autotune.serving.interrupts import held_back
from autotune.serving.process_tree import Identity, end_orphan
from autotune.serving.slots import Slot
from autotune.tuning.late_outcomes import LateOutcome
from autotune.tuning.prepare import Prepared, check_ahead
from autotune.tuning.ray_actor import Begin, Forget, logs_on, machine_id
from autotune.tuning.ray_nodes import Nodes
from autotune.tuning.ray_seat import Node, RayLink, Seat, Stage
from autotune.tuning.slot_messages import Call, Ended, FromSlot, Raised, Setup, Sweep
from autotune.tuning.slot_pool import LeftBehind
from autotune.tuning.slot_process import MODULE
from autotune.tuning.slots import check_bound, gpus_needed, slot_environment, what_it_has

# For the other nodes, once the first slot is there, and for the first one.
_SETTLE_S = 60.0
_FIRST_S = 600.0
# For the head to take a connection.
_CONNECT_S = 10.0
# And for its first answer: one that was stopped takes connections, too.
_ANSWER_S = 20.0
# What a client of gRPC sends first (RFC 9113, 3.4), and the type of the frame that answers it.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
_SETTINGS = 4
_TLS_ALERT = 0x15
# For the nodes to look what earlier runs left; those that take longer tell it later.
_SEARCH_S = 30.0


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
        self._address, self._say = address, say
        self._need, self._flags = gpus_needed(prepared.spec)
        self._logs = Path("logs")
        self._left_behind: LeftBehind | None = None
        self._sweep: Sweep | None = None
        self._ours = False  # whether this object has connected
        self._queue: queue.SimpleQueue[tuple[RayLink | None, FromSlot]] = queue.SimpleQueue()
        self._got: deque[tuple[RayLink | None, FromSlot]] = deque()
        self._nodes = Nodes(
            prepared,
            need=self._need,
            flags=self._flags,
            each=each,
            module=module,
            messages=self._queue,
        )

    def __enter__(self) -> RayCluster:
        check_bound(self.prepared, "--ray")
        self._connect()
        try:
            self._check_sizes()
            self._nodes.start()
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
        return {n: seat.slot for n, seat in self._nodes.ready.items() if seat.slot is not None}

    @property
    def machine(self) -> dict[str, Any]:
        """What one slot is, also while no node is left."""
        if (first := self._nodes.first) is None or first.machine is None:
            raise AssertionError("no node was checked")
        return first.machine

    def name(self, number: int) -> str:
        """Return the name of a slot in texts."""
        slot = self.slots.get(number)
        return f"slot {number}" if slot is None else slot.name

    def notes(self) -> Iterator[str]:
        """Yield what to know of the slots, a line each."""
        with self._nodes.lock:
            nodes, ready = [*self._nodes.nodes.values()], self._nodes.ready
        for node in nodes:
            found = [seat.slot for seat in ready.values() if seat.node is node and seat.slot]
            if found:
                each = what_it_has(found[0])
                yield f"node {node.label}: {count(len(found), 'slot')} of {each}"

    def open(
        self,
        logs: Path,
        left: Sequence[tuple[str, Identity]],
        left_behind: LeftBehind,
        sweep: Sweep | None = None,
    ) -> None:
        """Begin a study, which has the database; wait until the nodes have looked what is left.

        Args:
            logs: Folder of the servers' logs on this host.
            left: Launches that earlier runs left on other hosts, each with its host.
            left_behind: Writes down what the nodes find.
            sweep: What is launched instead of trials.
        """
        self._sweep = sweep
        with self._nodes.lock:
            self._logs, self._left_behind, self._nodes.begun = logs, left_behind, True
            for host, identity in left:
                self._nodes.left[host].append(identity)
            asked = {*self._nodes.ready.values()}
            for seat in asked:
                self._nodes.send_left(seat)
        deadline = time.monotonic() + _SEARCH_S
        while any(not seat.searched and seat.stage is Stage.READY for seat in asked):
            if time.monotonic() > deadline:
                break
            for _, message in self.receive(0.2):
                match message:
                    case Raised(error):
                        raise error
                    case Call("message", (str(text), *_)):
                        self._say(text)

    def start(self, slot: Slot) -> RayLink:
        """Start the process of a slot, and send it what it needs first."""
        with self._nodes.lock:
            seat = self._nodes.ready.get(slot.number)
            if seat is None:  # it went a moment ago
                gone = Seat(Node("", slot.host, slot.host, 0), 0, None, None, Stage.GONE)
                link = RayLink(gone, slot, slot.host)
                self._queue.put((link, Ended("could not be started: its node is gone")))
                return link
            p, here = self.prepared, seat.found["machine"] == machine_id()
            slot = replace(slot, count=max(len(self._nodes.numbers), slot.number + 1))
            logs = logs_on(seat.found, self._logs, p.spec.name)
            seat.link = RayLink(seat, slot, f"{logs}/slot-{slot.number}.log on {seat.node.label}")
            sweep = self._sweep
            setup = Setup(
                slot,
                p.loaded if sweep is None else sweep.loaded,
                seat.node.info,
                p.workload,
                p.confirmation,
                logs,
                seat.found["variables"] if slot.gpus else {},
                os.getpid() if here else None,
                None if sweep is None else sweep.requests,
                sum(other.node is seat.node for other in self._nodes.ready.values()) - 1,
            )
            seat.send(Begin(setup, slot_environment(slot, seat.node.info.version)))
            return seat.link

    def receive(self, timeout: float) -> Iterator[tuple[RayLink | None, FromSlot]]:
        """Wait for messages and yield them; those that are no process's come with None."""
        while self._nodes.to_prove:  # what a lost actor left on this host
            identity = self._nodes.to_prove.popleft()
            ended = end_orphan(identity, grace_s=self.prepared.spec.server.stop_timeout_s)
            self._queue.put((None, Call("left", (identity.launch_id, ended))))
        if not self._got:
            with contextlib.suppress(queue.Empty), held_back():
                self._got.append(self._queue.get(timeout=timeout))
        with contextlib.suppress(queue.Empty), held_back():
            while True:
                self._got.append(self._queue.get_nowait())
        while self._got:
            link, message = self._got.popleft()
            if not self._of_left(message):
                yield link, message

    def _of_left(self, message: FromSlot) -> bool:
        """Write down what a node has found, if it is that."""
        if self._left_behind is None:
            return False
        match message:
            case Call("left", (str(launch_id), int(ended))):
                self._left_behind.ended(launch_id, ended)
            case Call("late", (LateOutcome() as outcome, Seat() as seat)):
                if self._left_behind.measured(outcome):
                    seat.send(Forget(outcome.launch_id))
            case _:
                return False
        return True

    def close(self) -> None:
        """Do nothing: the actors stay until the end of the context, for another run."""

    def _leave(self) -> None:
        """Give the actors back, and leave the cluster."""
        self._nodes.stop()
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
        _check_answers(self._address)
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
        gpus = {
            str(row["NodeManagerHostname"]): int(row["Resources"].get("GPU", 0)) for row in rows
        }
        host = max(gpus, key=gpus.__getitem__)
        self._nodes.on_gpus = device == "cuda" or (device != "cpu" and gpus[host] > 0)
        if self._nodes.on_gpus and gpus[host] < self._need:
            raise UserError(
                f"{path}: {self._flags or 'one server'} needs {count(self._need, 'GPU')}, and the "
                f"largest node of the Ray cluster ({host}) has {gpus[host]}. Lower it, or add a "
                "larger node"
            )

    def _await_first(self) -> None:
        """Wait until every node was checked, or one was and the others take long.

        Raises:
            UserError: no node can run the study, or not with `server.ahead`.
        """
        begun, first, told = time.monotonic(), None, False
        while True:
            for _, message in self.receive(0.1):
                if isinstance(message, Call) and message.name == "message":
                    self._say(message.args[0])
                elif isinstance(message, Raised):
                    raise message.error
            now = time.monotonic()
            with self._nodes.lock:
                ready, settled = bool(self._nodes.ready), self._nodes.settled()
            first = now if ready and first is None else first
            if ready and (settled or (first is not None and now - first > _SETTLE_S)):
                break
            if settled or now - begun > _FIRST_S:
                raise UserError(self._why_none())
            if not told and now - begun > 10:
                told = True
                self._say("waiting for a free slot on a node of the Ray cluster")
        if not self.prepared.info.device and (node := self._nodes.first) is not None:
            self.prepared = replace(self.prepared, info=node.info)
            check_ahead(self.prepared)

    def _why_none(self) -> str:
        with self._nodes.lock:
            nodes = [*self._nodes.nodes.values()]
        refused = [f"{x.label}: {x.refused}" for x in nodes if x.refused]
        if refused:
            return f"--ray: no node of the cluster can run this study: {'; '.join(refused)}"
        what = "free GPUs" if self._nodes.on_gpus else "free CPUs"
        return (
            f"--ray: no node of the cluster has {what} for a slot; `ray status` shows what is used"
        )


def _check_answers(address: str) -> None:
    """Refuse a head that nobody hears: Ray would ask for it for minutes.

    Raises:
        UserError: nothing listens at a host and port, or it is not a head's; what `auto` finds is
            left to Ray where this cannot tell.
    """
    option, at = f"--ray {one_line(address, 100)}", address
    if address == "auto":
        at, origin = _meant_by_auto()
        if at == "auto":
            return
        option += f" ({one_line(at, 100)} by {origin})"
    if at.startswith("ray://"):
        raise UserError(
            f"{option}: the driver must be on a node of the cluster. Give `auto` "
            "there, or HOST:PORT of its head, or use `ray job submit`"
        )
    host, colon, port = at.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"{option}: is neither auto nor HOST:PORT of a cluster's head")
    start = "Start a Ray cluster with `ray start --head`, or give HOST:PORT of its head"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S) as c:
            answer = _first_answer(c)
    except (OSError, UnicodeError) as e:
        why = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise UserError(f"{option}: nothing answers there ({why}). {start}") from e
    if answer is None:
        raise UserError(
            f"{option}: takes connections, and has not answered for {_ANSWER_S:.0f} s: its head "
            "is stopped, or it is another program. Look at it with `ray status`, or start it "
            "again"
        )
    if answer and answer[0] != _TLS_ALERT and (len(answer) < 4 or answer[3] != _SETTINGS):
        raise UserError(f"{option}: what answers there is no head of a Ray cluster. {start}")


def _first_answer(c: socket.socket) -> bytes | None:
    """Return what answers the first words of gRPC; empty: it hangs up; None: there is no answer."""
    c.settimeout(_ANSWER_S)
    answer = b""
    try:
        c.sendall(_PREFACE)
        while len(answer) < 4 and (more := c.recv(64)):
            answer += more
    except TimeoutError:
        return answer or None
    except ConnectionError:
        return answer
    return answer


def _meant_by_auto() -> tuple[str, str]:
    """Return the address that Ray takes for `auto`, and where it is from; `auto`: unknown.

    The address of a head that was killed stays in a variable, in a file of Ray's, or in the
    arguments of a process that was left.
    """
    if named := os.environ.get("RAY_ADDRESS"):
        return named, "RAY_ADDRESS"
    with contextlib.suppress(Exception):  # a part of Ray without a promise, and it may find none
        from ray._private.services import canonicalize_bootstrap_address

        return canonicalize_bootstrap_address("auto") or "auto", "what Ray left on this host"
    return "auto", ""
