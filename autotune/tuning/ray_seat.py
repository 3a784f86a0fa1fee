"""One slot on a node of a Ray cluster, as the driver sees it: its actor, and what was said."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from autotune.serving.interrupts import held_back
from autotune.serving.slots import Slot
from autotune.tuning.ray_actor import Begin, Signal, ToActor
from autotune.tuning.slot_messages import FromSlot, ToSlot
from autotune.tuning.slot_process import OpenLaunches

# A message that was not taken for so long is sent again; the actor takes it once.
_AGAIN_S = 5.0


@dataclass(eq=False)
class Node:
    """A node of the cluster.

    Attributes:
        id: Ray's id.
        host: Name of its host.
        label: Name in texts: that of the host, and more where two nodes have one host.
        slots: Number of slots that it should have.
        info: Its vLLM, once it was checked.
        machine: What its slots are, once it was checked.
        refused: Why the study is not run on it; None: it is, or was not checked yet.
        failed: Number of its actors that could not be made.
        not_before: When the next actor is made, by the monotonic clock.
    """

    id: str
    host: str
    label: str
    slots: int
    info: Any = None
    machine: dict[str, Any] | None = None
    refused: str | None = None
    failed: int = 0
    not_before: float = 0.0


class Stage(Enum):
    """How far a seat is."""

    LOOKING = auto()
    CHECKING = auto()
    READY = auto()
    GONE = auto()


@dataclass(eq=False)
class Seat:
    """A place for one slot on a node, with its actor.

    Attributes:
        node: The node.
        index: Number among the seats without GPUs of its host.
        actor: Ray's handle of the actor.
        ref: What the actor was asked last and has not answered.
        stage: How far it is.
        found: What the actor said of the node.
        slot: Its slot, once it is ready.
        link: To the process that runs; None: none was started.
        launches: Launches of that process.
        heard: When the actor last answered, by the monotonic clock.
        got: Number of the last message of the actor.
        searched: Whether it has told what earlier runs left on its host.
    """

    node: Node
    index: int
    actor: Any
    ref: Any
    stage: Stage = Stage.LOOKING
    found: dict[str, Any] = field(default_factory=dict)
    slot: Slot | None = None
    link: RayLink | None = None
    launches: OpenLaunches = field(default_factory=OpenLaunches)
    heard: float = 0.0
    got: int = 0
    searched: bool = False
    _sent: int = 0
    _open: deque[tuple[int, float, ToActor]] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: ToActor) -> None:
        """Send a message to the actor, which takes them in their order."""
        with held_back(all_of_them=True), self._lock:
            self._sent += 1
            self._open.append((self._sent, time.monotonic(), message))
            self._tell(self._sent, message)

    def _tell(self, number: int, message: ToActor) -> None:
        loaded = None
        if isinstance(message, Begin):  # small, so that it goes from process to process only
            loaded = message.setup.loaded
            message = replace(message, setup=replace(message.setup, loaded=None))  # type: ignore[arg-type]
        if self.stage is not Stage.GONE:
            self.actor.tell.remote(number, message, loaded)

    def answered(self, received: int, messages: list[tuple[int, FromSlot]]) -> list[FromSlot]:
        """Take an answer of the actor; return the messages that are new.

        Args:
            received: How many messages it has taken.
            messages: Its own, with their numbers.
        """
        self.heard = time.monotonic()
        with self._lock:
            while self._open and self._open[0][0] <= received:
                self._open.popleft()
        found = [message for number, message in messages if number > self.got]
        self.got = max([self.got, *(number for number, _ in messages)])
        return found

    def repeat(self) -> None:
        """Send again what the actor has not taken for a while: Ray may have lost it."""
        now = time.monotonic()
        with self._lock:
            if self._open and now - self._open[0][1] > _AGAIN_S:
                again = [(number, message) for number, _, message in self._open]
                self._open = deque((number, now, message) for number, message in again)
                for number, message in again:
                    self._tell(number, message)


@dataclass(eq=False)
class RayLink:
    """The process of a slot on a node (:class:`autotune.tuning.slot_pool.Link`).

    Attributes:
        seat: Its seat.
        slot: Its slot.
        log: Where the file is that has what it printed, in words.
    """

    seat: Seat
    slot: Slot
    log: str

    def send(self, message: ToSlot) -> None:
        """Send a message; one to a process that has ended is lost."""
        self.seat.send(message)

    def interrupt(self) -> None:
        """Tell it to end its server and itself."""
        self.seat.send(Signal(kill=False))

    def kill(self) -> None:
        """End it at once; its servers end with it."""
        self.seat.send(Signal(kill=True))
