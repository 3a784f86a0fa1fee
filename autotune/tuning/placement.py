"""On which slot a trial runs: blocks of a confirmation stay on theirs, and slots share points.

How slots differ can be told only from points that several of them launched
(:mod:`autotune.stats.slot_effects`). So that there are such points, a slot that shares too few with
the others launches the baseline, then the best point, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from autotune.search.alike import Key, key_of
from autotune.search.places import ENOUGH, ONE_IN, linked, place_of
from autotune.serving.slots import Slot
from autotune.storage.records import attrs_of
from autotune.storage.schema import LaunchRow
from autotune.study.space import Point, Space
from autotune.tuning.situation import Choice


def next_of_blocks(
    begun: Sequence[tuple[int | None, bool, bool]], order: Sequence[int], blocks: Sequence[int]
) -> tuple[int, int] | None:
    """Return what follows on a slot, in the first block that may go on there.

    On a slot that is free that is a block of which no launch is under way. On one that is not, so
    that a server is to be prelaunched, it is a block that is under way there or was not begun.

    Args:
        begun: Block and state of each launch of the confirmation that was begun or chosen: whether
            it is under way, and whether that is on the slot. The block None is the first one.
        order: Numbers of the trials to confirm, in the order of their launches.
        blocks: Lengths of the blocks of that order; empty: it is one block.

    Returns:
        The number, and that of its block; None: no block may go on.
    """
    ahead = any(under_way and here for _, under_way, here in begun)
    start = 0
    for block, length in enumerate(blocks or (len(order),)):
        own = [(under_way, here) for of, under_way, here in begun if (of or 0) == block]
        under_way = [here for goes_on, here in own if goes_on]
        known = bool(under_way) or not own or not ahead
        if len(own) < length and all(under_way) and known:
            return order[start + len(own)], block
        start += length
    return None


def home_of(
    trial: FrozenTrial,
    trials: Sequence[FrozenTrial],
    taken: Mapping[int, int],
    slots: Sequence[Slot],
    launches: Callable[[int], Sequence[LaunchRow]],
) -> int | None:
    """Return the slot of the block of a confirmation that a trial belongs to.

    Args:
        trial: The trial.
        trials: All trials that compare.
        taken: Slots of the trials that were submitted and have not ended, by trial.
        slots: Slots of the run.
        launches: Returns the launches of a trial, oldest first.

    Returns:
        None: it belongs to none, or its block was not launched on a slot that is still there.
    """

    def block_of(of: FrozenTrial) -> tuple[int | None, int]:
        attrs = attrs_of(of)
        return attrs.confirmation, attrs.confirmation_block or 0

    if not slots or block_of(trial)[0] is None:
        return None
    numbers = {place_of(slot.stored()): slot.number for slot in slots}
    for t in reversed(trials):
        if block_of(t) != block_of(trial):
            continue
        if t.number in taken:
            return taken[t.number]
        kept = attrs_of(t).slot
        if kept is None and (found := launches(t.number)):  # an ended run was at it
            kept = found[-1].machine.get("slot")
        if kept is not None and (number := numbers.get(place_of(kept))) is not None:
            return number
    return None


@dataclass(frozen=True)
class Links:
    """Which slot has launched which point in the search.

    Attributes:
        launched: Point and place of each launch that was measured, runs, or is reserved for a slot,
            the baseline's first; a place that is not known is None.
    """

    launched: Sequence[tuple[Key, str | None]]

    @classmethod
    def of(
        cls,
        trials: Sequence[FrozenTrial],
        places: Mapping[int, str],
        space: Space,
        pending: Sequence[Choice] = (),
    ) -> Links:
        """Return the links of a study.

        Args:
            trials: All trials that compare.
            places: Slots of the running ones, by number.
            space: The searched parameters.
            pending: Choices that are not begun yet; those of a slot count as launched there.
        """
        found: list[tuple[Key, str | None]] = []
        for t in trials:
            attrs = attrs_of(t)
            if not attrs.searches or not space.has_point(t.params):
                continue
            if t.state == TrialState.COMPLETE:
                place: str | None = place_of(attrs.slot)
            elif t.state == TrialState.RUNNING:
                place = places.get(t.number)
            else:
                continue
            launch = key_of(space.decode(t.params)), place
            found.insert(0 if attrs.baseline else len(found), launch)
        reserved = [x for x in pending if x.place is not None and x.attrs.searches]
        return cls([*found, *((key_of(x.point), x.place) for x in reserved)])

    def wants_link(self, place: str) -> bool:
        """Return whether a slot is to launch a point that links it with the baseline's slot.

        At most one launch in eight is of a point that another slot has launched before.
        """
        points: dict[str, set[Key]] = {}
        at_of: dict[Key, set[str]] = {}
        spent = 0
        for key, at in self.launched:
            if at is not None:
                spent += bool(at_of.setdefault(key, set()) - {at})
                at_of[key].add(at)
                points.setdefault(at, set()).add(key)
        main = next(iter(points), place)
        if place == main or ONE_IN * (spent + 1) > len(self.launched) + 1:
            return False
        if not linked(points, place, main):
            return True
        others = {key for p, own in points.items() if p != place for key in own}
        shared = sum(at == place and key in others for key, at in self.launched)
        return shared < ENOUGH and all(linked(points, p, main) for p in points)

    def has(self, point: Point, place: str) -> bool:
        """Return whether a slot has launched a point."""
        return (key_of(point), place) in self.launched

    def wants_elsewhere(self, point: Point, place: str) -> bool:
        """Return whether a slot has launched a point that another slot has not launched."""
        own = {at for key, at in self.launched if key == key_of(point)}
        return place in own and not own >= {at for _, at in self.launched if at is not None}
