"""Where trials run: an executor takes them and returns what came of each.

The driver (:mod:`autotune.tuning.study_run`) submits as many trials as there is capacity for, each
for a slot, and waits for outcomes. An executor writes nothing that a trial amounts to and tells
Optuna nothing. :class:`OneSlot` has one slot, :class:`autotune.tuning.slot_pool.SlotPool` several,
on this host or on others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

from autotune.study.space import Point
from autotune.tuning.slot_messages import J, Job
from autotune.tuning.trial import Outcome

J_contra = TypeVar("J_contra", bound=Job, contravariant=True)


class Executor(Protocol[J]):
    """Runs trials, or points of a load sweep, on one or more slots."""

    @property
    def capacity(self) -> int:
        """How many more trials may be submitted now."""

    def submit(self, trial: J) -> None:
        """Take a trial; only while there is capacity."""

    def completed(self) -> list[tuple[J, Outcome]]:
        """Wait until at least one trial has ended, and return those that have.

        Returns:
            Nothing where no trial was submitted.

        Raises:
            AutotuneError: what ends the whole run; the servers of this executor are gone.
            KeyboardInterrupt: likewise.
        """

    def cancel(self) -> None:
        """Drop the trials that are not begun and end those that run; none of them completes."""

    def close(self) -> None:
        """End everything that the executor started; it takes nothing afterwards."""


def slot_for(taken: Collection[int], home: int | None = None) -> int:
    """Return the slot of a trial: its home, or the first one that is free.

    Args:
        taken: Slots of the trials that were submitted and have not ended.
        home: Slot of the trial's block in a confirmation, which stays on it; None: it has none, or
            is the block's first one.
    """
    if home is not None:
        return home
    return next(slot for slot in itertools.count() if slot not in taken)


class Runner(Protocol[J_contra]):
    """Runs one trial after another, in the caller's thread."""

    def run(self, trial: J_contra, ahead: Callable[[int], Sequence[Point]], /) -> Outcome:
        """Bring a trial to its end."""


class OneSlot(Generic[J]):
    """The executor of one slot: a trial runs in the caller's thread while it is waited for.

    Args:
        runner: Runs the trials.
        ahead: Returns points whose servers may be started together with the running trial's.
    """

    def __init__(self, runner: Runner[J], ahead: Callable[[int], Sequence[Point]]) -> None:
        self._runner = runner
        self._ahead = ahead
        self._waiting: J | None = None
        self._closed = False

    @property
    def capacity(self) -> int:
        """1 while no trial waits, 0 while one does or after the end."""
        return int(self._waiting is None and not self._closed)

    def submit(self, trial: J) -> None:
        """Take a trial, which runs when :meth:`completed` is called."""
        if not self.capacity:
            raise RuntimeError("no slot is free")
        self._waiting = trial

    def completed(self) -> list[tuple[J, Outcome]]:
        """Run the trial that waits, and return its outcome."""
        if self._waiting is None:
            return []
        trial, self._waiting = self._waiting, None
        return [(trial, self._runner.run(trial, self._ahead))]

    def cancel(self) -> None:
        """Drop the trial that waits; one that runs is in the caller's thread."""
        self._waiting = None

    def close(self) -> None:
        """Take nothing any more."""
        self.cancel()
        self._closed = True
