"""On which slot a trial runs: blocks of a confirmation stay on theirs, and slots share points.

How slots differ can be told only from points that several of them launched
(:mod:`autotune.stats.slot_effects`). So that there are such points, a slot that shares none with the
slot of the baseline launches the baseline, too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from optuna.trial import FrozenTrial

from autotune.search.places import ONE_IN, linked, place_of
from autotune.serving.slots import Slot
from autotune.storage.records import attrs_of
from autotune.storage.schema import LaunchRow


def next_of_blocks(
    begun: Sequence[tuple[int | None, bool]], order: Sequence[int], blocks: Sequence[int]
) -> tuple[int, int] | None:
    """Return what follows in the first block of which no launch is under way.

    Args:
        begun: Block and state of each launch of the confirmation that was begun or chosen: whether
            it is under way. The block None is the first one.
        order: Numbers of the trials to confirm, in the order of their launches.
        blocks: Lengths of the blocks of that order; empty: it is one block.

    Returns:
        The number, and that of its block; None: a launch is under way in each block that goes on.
    """
    start = 0
    for block, length in enumerate(blocks or (len(order),)):
        own = [under_way for of, under_way in begun if (of or 0) == block]
        if len(own) < length and not any(own):
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
        None: it belongs to none, or nothing of the block was launched on a slot that is still there.
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


def wants_link(
    launched: Iterable[tuple[Hashable, str | None]], again: int, place: str, main: str
) -> bool:
    """Return whether a slot is to launch a point that the main one has launched.

    Args:
        launched: Point and place of each trial of the search that was measured, runs or was chosen;
            a place that is not known is None.
        again: How many of them launch a point once more.
        place: Place of the next launch.
        main: Place that has launched the baseline.
    """
    every = list(launched)
    if ONE_IN * (again + 1) > len(every) + 1:
        return False
    points: dict[str, set[Hashable]] = {}
    for point, at in every:
        if at is not None:
            points.setdefault(at, set()).add(point)
    return not linked(points, place, main)
