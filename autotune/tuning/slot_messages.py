"""What a driver and the processes of its slots say to each other, pickled over a socket of theirs.

The driver sends a :class:`Setup`, then a :class:`Job` at a time, which is a trial or a point of a
load sweep, then None; and an :class:`Answer` to each :class:`Call` that waits for one. The process
of a slot sends calls, and :class:`Done` or :class:`Raised`, and every :data:`BEAT_S` a
:class:`Beat`. Whoever started it adds :class:`Ended`. On another host an actor of Ray stands
between the two and passes all of it on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

from autotune.bench.workload import Workload
from autotune.engine.probe import VllmInfo
from autotune.serving.slots import Slot
from autotune.study.files import LoadedStudy
from autotune.tuning.load_map_requests import Requests
from autotune.tuning.trial import Outcome

# Between two signs of life of a slot's process, which has a thread for them.
BEAT_S = 3.0
# So long after the last one everything below is ended: a server by its supervisor, and the process
# by whoever started it.
LEASE_S = 15.0


class Job(Protocol):
    """What a slot is given: a trial of a study, or a point of a load sweep."""

    kind: ClassVar[str]

    @property
    def number(self) -> int:
        """Number of the trial, or id of the point."""

    @property
    def slot(self) -> int:
        """Number of the slot that runs it."""

    @property
    def words(self) -> str:
        """What it is, in texts."""

    def on_slot(self, slot: int) -> Self:
        """Return the same for another slot."""


J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Setup:
    """All that the process of a slot needs to run trials of a study, or points of a load sweep.

    Attributes:
        slot: Its slot.
        loaded: The study.
        info: Its vLLM.
        workload: Requests of a trial.
        confirmation: Requests of a launch of the confirmation.
        logs: Folder of the servers' logs.
        variables: Variables that the slot sets, as the user's own environment has them; None: not
            set there.
        driver: Pid of the driver, if it is on the slot's host; its load is known.
        sweep: What the launches of a load sweep are sent; None: there are trials.
        neighbors: Number of the other slots of the run on the slot's host.
    """

    slot: Slot
    loaded: LoadedStudy
    info: VllmInfo
    workload: Workload
    confirmation: Workload
    logs: Path
    variables: Mapping[str, str | None] = field(default_factory=dict)
    driver: int | None = None
    sweep: Requests | None = None
    neighbors: int = 0


@dataclass(frozen=True)
class Sweep:
    """A load sweep, where a cluster has begun with the study that it is of.

    Attributes:
        loaded: The study as the sweep launches it.
        requests: What each launch is sent.
    """

    loaded: LoadedStudy
    requests: Requests


@dataclass(frozen=True)
class Call:
    """A call of something that only the driver does, such as to write a launch down.

    Attributes:
        name: Name of what is called.
        args: Its arguments.
        number: Number of the answer that is waited for; None: nothing waits.
    """

    name: str
    args: tuple[Any, ...]
    number: int | None = None


@dataclass(frozen=True)
class Answer:
    """What a call returned.

    Attributes:
        number: Number of the call.
        value: What it returned.
        refused: Whether it raised; the driver then ends the run.
    """

    number: int
    value: Any = None
    refused: bool = False


@dataclass(frozen=True)
class Done:
    """A trial, or a point of a load sweep, has ended."""

    number: int
    outcome: Outcome


@dataclass(frozen=True)
class Raised:
    """What ends the whole run was raised; the slot's server is gone."""

    error: Exception


@dataclass(frozen=True)
class Beat:
    """The process lives."""


@dataclass(frozen=True)
class Ended:
    """The process has ended; what its servers left was ended, or cannot be reached.

    Attributes:
        why: How, in words that follow those for the process.
    """

    why: str


ToSlot = Setup | Job | Answer | None
FromSlot = Call | Done | Raised | Beat | Ended
