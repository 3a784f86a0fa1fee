"""The executor of several slots: hands trials out, does what they ask, replaces what breaks.

Each slot has a process (:mod:`autotune.tuning.slot_worker`) that launches and measures one trial at
a time. What is to be written it asks of this process, which does it while it waits for outcomes:
the database has one writer, in one thread. Where the slots are and how their processes are reached
is left to :class:`Places`: this host (:mod:`autotune.tuning.local_slots`), or the nodes of a Ray
cluster (:mod:`autotune.tuning.ray_slots`).

However a run ends, no server is left: an interrupt is passed on to the processes, which end their
servers as a run with one slot does. A process that dies or stands still is replaced, and its trial
is launched again.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol

from autotune.errors import AutotuneError, MachineError
from autotune.serving.process_tree import KILL_S, Identity
from autotune.serving.slots import Slot
from autotune.tuning.late_outcomes import LateOutcome
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import At
from autotune.tuning.slot_messages import (
    BEAT_S,
    LEASE_S,
    Answer,
    Beat,
    Call,
    Done,
    Ended,
    FromSlot,
    J,
    Raised,
    Sweep,
    ToSlot,
)
from autotune.tuning.trial import Outcome

# A process that ends its server has this time after the server's own `stop_timeout_s`.
_MORE_S = 30.0
# And this much in all when the user has asked twice.
_HURRY_S = KILL_S + 15.0
# A process that gives no sign of life for so long is suspected, and replaced if it gives none in
# the time of another one either: this process itself may have stood still, or ended something.
SILENT_S = LEASE_S - BEAT_S - 1.0
_SURE_S = BEAT_S + 1.0
# The first sign comes when it has imported everything, perhaps from a slow disk.
START_S = 180.0
# A trial whose process was lost is launched again so often; then it is at fault, or the machine.
MOST_LOST = 3
# For a host with a slot to come back, when there is none any more.
AWAY_S = 600.0
_LOOK_S = 1.0

Served = Mapping[str, Callable[..., Any]]


class Link(Protocol):
    """The process of one slot, wherever it is."""

    @property
    def slot(self) -> Slot:
        """Its slot."""

    @property
    def log(self) -> str:
        """Where the file is that has what it printed, in words."""

    def send(self, message: ToSlot) -> None:
        """Send a message; one to a process that has ended is lost."""

    def interrupt(self) -> None:
        """Tell it to end its server and itself."""

    def kill(self) -> None:
        """End it at once; its servers end with it."""


class Places(Protocol):
    """Where the slots are."""

    @property
    def slots(self) -> Mapping[int, Slot]:
        """The slots that can be used now, by number."""

    def start(self, slot: Slot) -> Link:
        """Start the process of a slot, and send it what it needs first."""

    def receive(self, timeout: float) -> Iterator[tuple[Link | None, FromSlot]]:
        """Wait for messages and yield them; the last one of a process is ``Ended``.

        Those of no process, such as about nodes, come with None.
        """

    def close(self) -> None:
        """Give back what a run took; no process is left."""


class LeftBehind(Protocol):
    """Writes down what was left behind on a host."""

    def ended(self, launch_id: str, ended: int) -> None:
        """Write down that a launch has ended: so many of its processes were found, and ended."""

    def measured(self, outcome: LateOutcome) -> bool:
        """Write a measurement down if it is needed; return whether its file is not needed."""


class Cluster(Places, Protocol):
    """Slots on several hosts."""

    @property
    def prepared(self) -> Prepared:
        """The study, as it is launched there."""

    @property
    def machine(self) -> dict[str, Any]:
        """What one slot is."""

    def name(self, number: int) -> str:
        """Return the name of a slot in texts."""

    def notes(self) -> Iterator[str]:
        """Yield what to know of the slots, a line each."""

    def open(
        self,
        logs: Path,
        left: Sequence[tuple[str, Identity]],
        left_behind: LeftBehind,
        sweep: Sweep | None = None,
    ) -> None:
        """Begin a study, which has the database; wait until the hosts have looked what is left.

        Args:
            logs: Folder of the servers' logs on this host.
            left: Launches that earlier runs left on other hosts, each with its host.
            left_behind: Writes down what the hosts find, now and later, in this thread.
            sweep: What is launched instead of trials.
        """


@dataclass
class _Worker(Generic[J]):
    """The process of one slot.

    Attributes:
        link: To it.
        heard: When it last gave a sign of life, by the clock of those that were waited for.
        limit: Seconds of silence after which it is replaced.
        trial: The trial that it runs; None: it is idle.
        interrupted: Whether it was told to end its server.
        killed: When it was killed, for it gave no sign of life; None: it was not.
        suspected: When it had given none for too long; None: it gives them.
    """

    link: Link
    heard: float
    limit: float = START_S
    trial: J | None = None
    interrupted: bool = False
    killed: float | None = None
    suspected: float | None = None


class SlotPool(Generic[J]):
    """The executor of several slots.

    Args:
        places: Has the slots.
        served: What the processes may call, by name.
        stop_timeout_s: Grace of a slot's servers after SIGTERM, in seconds, together.
        moved: Told that a trial goes to another slot than it was submitted for.
    """

    def __init__(
        self,
        places: Places,
        served: Served,
        *,
        stop_timeout_s: float,
        moved: Callable[[J], None] = lambda _trial: None,
    ) -> None:
        self._places = places
        self._served = served
        self._stop_timeout_s = stop_timeout_s
        self._moved = moved
        self._workers: dict[int, _Worker[J]] = {}
        self._waiting: deque[J] = deque()
        self._ended: list[tuple[J, Outcome]] = []
        self._closed = False
        self._ending = False  # processes are told to end
        self._broken = False  # meanwhile something could not be written
        self._lost_of: Counter[int] = Counter()  # processes of each trial, by its number
        self._listened = time.monotonic()
        self._placeless: float | None = None  # since when there is no slot

    @property
    def capacity(self) -> int:
        """How many more trials may be submitted now.

        Where no slot is there for a while, one trial is taken, and waits.
        """
        if self._closed:
            return 0
        under_way = len(self._running()) + len(self._waiting)
        return max(0, max(1, len(self._places.slots)) - under_way)

    def submit(self, trial: J) -> None:
        """Take a trial for its slot, whose process begins it as soon as it is idle."""
        if not self.capacity:
            raise RuntimeError("no slot is free")
        self._waiting.append(trial)
        self._hand_out()

    def completed(self) -> list[tuple[J, Outcome]]:
        """Wait until at least one trial has ended, and do what the processes ask meanwhile.

        Raises:
            AutotuneError: what ends the run.
            KeyboardInterrupt: likewise.
        """
        while not self._ended and (self._waiting or self._running()):
            self._listen(_LOOK_S)
            self._replace_silent()
            self._hand_out()
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
            self._places.close()

    # -- the processes ---------------------------------------------------------------------------

    def _running(self) -> list[J]:
        return [w.trial for w in self._workers.values() if w.trial is not None]

    def _hand_out(self) -> None:
        """Give idle slots the trials that wait for them, or whose own slot is gone."""
        usable = self._places.slots
        self._check_places(usable)
        for waiting in [*self._waiting]:
            trial = waiting
            if trial.slot not in usable:
                if (free := self._free(usable)) is None:
                    continue
                trial = trial.on_slot(free)
                self._waiting[self._waiting.index(waiting)] = trial
                self._moved(trial)
            idle = self._workers.get(trial.slot) or self._start(usable[trial.slot])
            if idle.trial is None and not idle.interrupted and idle.killed is None:
                self._waiting.remove(trial)
                idle.trial = trial
                idle.link.send(trial)

    def _free(self, usable: Mapping[int, Slot]) -> int | None:
        """Return the first slot that no trial has; None: there is none."""
        taken = {trial.slot for trial in [*self._running(), *self._waiting]}
        return next((number for number in sorted(usable) if number not in taken), None)

    def _check_places(self, usable: Mapping[int, Slot]) -> None:
        """Raise MachineError where there has been no slot for too long."""
        if usable or not self._waiting:
            self._placeless = None
            return
        now = time.monotonic()
        if self._placeless is None:
            self._placeless = now
            self._say(f"no slot is left. Waiting up to {AWAY_S / 60:.0f} min for one")
        if now - self._placeless > AWAY_S:
            raise MachineError(
                "no slot is left, and none came back. Run the same command again to resume"
            )

    def _start(self, slot: Slot) -> _Worker[J]:
        """Start the process of a slot."""
        worker: _Worker[J] = _Worker(self._places.start(slot), time.monotonic())
        self._workers[slot.number] = worker
        return worker

    def _listen(self, timeout: float) -> None:
        """Take in what the processes have sent.

        Raises:
            MachineError: too many processes have ended with one trial.
            AutotuneError: what a process raised, or what was raised here for it.
        """
        away = time.monotonic() - self._listened  # as for a database: nobody was heard meanwhile
        for worker in self._workers.values():
            worker.heard += away
            worker.suspected = None if worker.suspected is None else worker.suspected + away
        try:
            waiting = True
            for link, message in self._places.receive(timeout):
                waiting, self._listened = False, time.monotonic()
                if link is None:
                    self._take_loose(message)
                    continue
                of = self._workers.get(link.slot.number)
                if of is not None and of.link is link:
                    of.heard, of.limit, of.suspected = self._listened, SILENT_S, None
                    self._take(of, message)
        finally:
            if waiting:
                self._listened = time.monotonic()

    def _take(self, worker: _Worker[J], message: FromSlot) -> None:
        match message:
            case Call():
                self._serve(message, worker.link)
            case Done(number, outcome):
                trial, worker.trial = worker.trial, None
                if trial is None or trial.number != number:
                    raise AssertionError(
                        f"{worker.link.slot.name} ended a trial that it was not given"
                    )
                self._ended.append((trial, outcome))
            case Raised(error):
                raise error
            case Ended(why):
                self._lost(worker, why)
            case Beat():
                pass

    def _take_loose(self, message: FromSlot) -> None:
        """Do what is asked for no process, or raise what was raised for none."""
        match message:
            case Call():
                self._serve(message, None)
            case Raised(error):
                raise error

    def _serve(self, call: Call, link: Link | None) -> None:
        """Do what a process asks for, and answer."""
        answer = Answer(call.number or 0, refused=True)
        try:
            if not self._broken:
                answer = replace(answer, value=self._served[call.name](*call.args), refused=False)
        except KeyboardInterrupt:
            self._broken = self._ending  # asked again while this waited, as for a database
            raise
        except Exception:
            self._broken = self._ending  # what ends the run was raised already; tried only once
            if not self._ending:
                raise
        finally:
            if call.number is not None and link is not None:
                link.send(answer)

    def _replace_silent(self) -> None:
        """Kill processes that give no sign of life; each is replaced when it has ended."""
        now = self._listened
        for worker in self._workers.values():
            slot = worker.link.slot
            if worker.suspected is None and now - worker.heard > worker.limit:
                worker.suspected = now
            sure = worker.suspected is not None and now - worker.suspected > _SURE_S
            if worker.killed is None and sure:
                worker.killed = now
                self._say(
                    f"the process of {slot.name} has given no sign of life for "
                    f"{now - worker.heard:.0f} s, and is ended",
                    At(None if worker.trial is None else worker.trial.number, slot.number),
                )
                worker.link.kill()
            elif worker.killed is not None and now - worker.killed > KILL_S + _MORE_S:
                raise MachineError(
                    f"the process of {slot.name} survives SIGKILL; the kernel or a driver holds "
                    "it: look at `dmesg`, a reboot may be needed"
                )

    def _lost(self, worker: _Worker[J], why: str) -> None:
        """Take a process out that has ended; its trial waits again if nobody told it to end.

        Raises:
            MachineError: too many have ended with this trial.
        """
        slot, trial = worker.link.slot, worker.trial
        del self._workers[slot.number]
        if worker.interrupted:
            return
        of = f" of {trial.words}" if trial is not None else ""
        said = f"the process of {slot.name}{of} {why}; its log is {worker.link.log}"
        if trial is None:
            self._say(said)
            return
        self._lost_of[trial.number] += 1
        if self._lost_of[trial.number] > MOST_LOST:
            raise MachineError(
                f"{said}. So did {MOST_LOST} before it. Run the same command again to resume"
            )
        self._waiting.appendleft(trial)
        self._say(f"{said}. The {trial.kind} is launched again", At(trial.number, slot.number))

    def _say(self, text: str, at: At | None = None) -> None:
        self._served["message"](text, *(() if at is None else (at,)))

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
                worker.link.send(None)
        deadline = time.monotonic() + self._stop_timeout_s + KILL_S + _MORE_S
        self._ending, asked_twice = True, False
        while ending := [w for w in self._workers.values() if w.interrupted]:
            try:
                if time.monotonic() > deadline:
                    for worker in ending:
                        worker.link.kill()  # its server ends with it
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


def _interrupt(worker: _Worker[Any]) -> None:
    """Tell a process to end its server."""
    worker.interrupted = True
    worker.link.interrupt()
