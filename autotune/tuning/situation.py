"""What the planner is given and gives: the budget, the situation of a study, a choice.

All of it is plain: no database, no terminal and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from autotune.results.standing import counts
from autotune.storage.records import TrialAttrs, attrs_of
from autotune.study.space import Point, Space


@dataclass(frozen=True)
class Choice:
    """A trial that is still to be begun.

    Attributes:
        point: What is launched.
        attrs: The trial's attributes at its begin.
        place: Slot that it is reserved for; None: there is one slot, or it is free.
    """

    point: Point
    attrs: TrialAttrs = field(default_factory=TrialAttrs)
    place: str | None = None


@dataclass(frozen=True)
class Budget:
    """How many trials a study is to have in the end.

    Attributes:
        wanted: Finished trials, those of earlier runs included.
        held: How many of them are held back for the confirmation.
    """

    wanted: int
    held: int

    @property
    def search(self) -> int:
        """Number of the wanted trials that search."""
        return self.wanted - self.held


@dataclass(frozen=True)
class Situation:
    """What a choice depends on.

    Attributes:
        trials: All trials that compare, in the order of their numbers; running ones included.
        pending: Choices that are not begun yet.
        searching: Whether the search goes on; False: what is left is to confirm.
        confirmation: Numbers of the trials to confirm, in the order of their launches, as far as
            its steps are planned; None: none is.
        blocks: Lengths of the blocks of that order; empty: it is one block.
        slots: Number of slots that launch at the same time; it may change during a run.
        place: Slot of the next launch (:func:`autotune.search.places.place_of`); None: there is one
            slot.
        places: Slots of the running trials, by number.
    """

    trials: Sequence[FrozenTrial]
    pending: Sequence[Choice] = ()
    searching: bool = True
    confirmation: Sequence[int] | None = None
    blocks: Sequence[int] = ()
    slots: int = 1
    place: str | None = None
    places: Mapping[int, str] = field(default_factory=dict)

    def is_here(self, x: FrozenTrial | Choice) -> bool:
        """Return whether an unfinished trial is on the slot of the next launch."""
        at = x.place if isinstance(x, Choice) else self.places.get(x.number)
        return self.place is not None and self.place == at

    @property
    def running(self) -> list[FrozenTrial]:
        """Trials that were begun and have not ended."""
        return [t for t in self.trials if t.state == TrialState.RUNNING]

    @property
    def unfinished(self) -> list[FrozenTrial | Choice]:
        """Trials that run, then those that are chosen."""
        return [*self.running, *self.pending]

    @property
    def finished(self) -> int:
        """Number of trials that count towards the wanted ones."""
        return sum(map(counts, self.trials))

    @property
    def begun(self) -> int:
        """Number of trials that count, run, or are chosen."""
        return self.finished + len(self.unfinished)

    def point(self, number: int, space: Space) -> Point:
        """Return the point of a trial."""
        return space.decode(next(t for t in self.trials if t.number == number).params)


def attrs_at_begin(x: FrozenTrial | Choice) -> TrialAttrs:
    """Return the attributes of a trial that was begun, or will be."""
    return x.attrs if isinstance(x, Choice) else attrs_of(x)


def is_unfinished(x: FrozenTrial | Choice) -> bool:
    """Return whether a trial waits, runs, or was not begun."""
    return isinstance(x, Choice) or not x.state.is_finished()
