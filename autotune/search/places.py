"""Places of launches: on which slot each was, and which slots have launched the same point."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autotune.stats.measurement import Floats
from autotune.stats.slot_effects import Layout, effects

# One launch in so many may be there to link slots.
ONE_IN = 8
# Launches of points that other slots have launched, from which on a slot compares well enough.
ENOUGH = 2


def place_of(kept: Mapping[str, Any] | None) -> str:
    """Return the name of a slot that no other slot has.

    Args:
        kept: What a trial or a launch keeps of its slot; None: its run had one server at a time.

    Returns:
        The slot's GPUs, or host and cores where it has none; empty: there was no slot.
    """
    if not kept:
        return ""
    if gpus := kept.get("gpus"):
        return ",".join(map(str, gpus))
    return f"{kept.get('host') or ''}:{kept.get('cores')}"


@dataclass(frozen=True)
class Places:
    """Places of the launches of a study, in the order of the launches, by point.

    Attributes:
        searched: Places of the launches of the search.
        confirmed: Places of those of confirmations.
    """

    searched: Mapping[int, Sequence[str]] = field(default_factory=dict)
    confirmed: Mapping[int, Sequence[str]] = field(default_factory=dict)

    @property
    def several(self) -> bool:
        """Whether there is more than one place."""
        of = (*self.searched.values(), *self.confirmed.values())
        return len({place for places in of for place in places}) > 1


def on_one_slot(
    costs: Floats, points: Sequence[Hashable], places: Sequence[str]
) -> tuple[Floats, Floats]:
    """Return costs less how their slots differ, and the variances of what is not known of it.

    Args:
        costs: Logarithms, of shape (launches, objectives).
        points: Point of each launch.
        places: Place of each launch.

    Returns:
        Arrays of the shape of ``costs``; of launches in one place these and zeros.
    """
    layout = Layout.of(points, places)
    if not layout.several:
        return costs, np.zeros_like(costs)
    found = [effects(y, layout) for y in costs.T]
    off = np.column_stack([x.mean for x in found])[layout.slots]
    return costs - off, np.column_stack([x.variance for x in found])[layout.slots]


def linked(points: Mapping[str, Collection[Hashable]], place: str, other: str) -> bool:
    """Return whether two places can be compared: over points that places share, step by step.

    Args:
        points: Points that each place has launched.
        place: The one place.
        other: The other place.
    """
    reached, new = {place}, {place}
    while new and other not in reached:
        own = {point for p in new for point in points.get(p, ())}
        new = {p for p, of in points.items() if p not in reached and not own.isdisjoint(of)}
        reached |= new
    return other in reached
