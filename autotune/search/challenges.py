"""Where a belief that expects no gain is challenged: in the gaps, and next to the best points.

=========  ========================================================================================
term       meaning
=========  ========================================================================================
axis       n, where it is searched; otherwise the number with the most values
step       from one value of the axis to the next that a point has
gap        steps from a point to the nearest launch on the axis, of the same arm
covered    no point that may be launched has a gap above the reach: one step of up to 20
beside     one parameter differs: by one step, or as another choice, or as one end of a number that
           is not the axis
=========  ========================================================================================

A belief is wrong where it was never tested, and a surrogate's own uncertainty does not show that:
it is small wherever the values seem to vary slowly. Therefore challenges fill the largest gap first
(T. F. Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical Computer
Science 38, 1985: choosing the farthest point gives a largest gap within a factor of two of the
smallest possible one). When the axis is covered, a peak can still lie between two launches. It then
shows as a slope, so that one of the two is the best point. So the points beside the best ones come
last: a search that has ended has launched them all, as far as they can launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.study.space import ARM, ChoiceParam, N, Point, Space

# Number of reaches from one end of the axis to the other.
_PARTS = 10


def unseen(space: Space, points: Sequence[Point], seen: Sequence[Point]) -> NDArray[np.bool_]:
    """Return for each point whether it lies in the largest gap; none does if all are covered.

    Args:
        space: Searched parameters.
        points: Points that may be launched.
        seen: Points of all launches: measured, failed and running ones.
    """
    axis = _axis(space)
    if axis is None or not points:
        return np.zeros(len(points), dtype=bool)
    values = sorted({float(q[axis]) for q in [*points, *seen]})
    step = {v: i for i, v in enumerate(values)}
    of_arm: dict[object, set[int]] = {}
    for q in seen:
        of_arm.setdefault(_arm(q), set()).add(step[float(q[axis])])
    found: dict[tuple[object, int], int] = {}  # gaps by arm and step, which many points share
    gaps = []
    for q in points:
        arm, own = _arm(q), step[float(q[axis])]
        if (arm, own) not in found:
            near = of_arm.get(None, set()) | of_arm.get(arm, set())
            found[arm, own] = min((abs(own - s) for s in near), default=len(values))
        gaps.append(found[arm, own])
    largest = max(gaps)
    reach = max(1, (len(values) - 1) // _PARTS)
    return np.array([largest > reach and gap == largest for gap in gaps])


def _arm(point: Point) -> object:
    """Return the arm of a point; None: no draft is used, so the point belongs to all arms."""
    return point.get(ARM) if point.get(N) else None


def _axis(space: Space) -> str | None:
    """Return the name of the axis; None: no number is searched."""
    counts = {
        name: len(values)
        for name, p in space.params.items()
        if not isinstance(p, ChoiceParam) and (values := p.values()) is not None
    }
    if counts.get(N, 0) > 2:
        return N
    return max(counts, key=lambda name: counts[name], default=None)


def compared(space: Space, points: Sequence[Point], best: Sequence[Point]) -> NDArray[np.bool_]:
    """Return for each point whether it differs from one of the best on the axis only."""
    axis = _axis(space)
    others = [name for name in space.params if name != axis]
    known = {tuple(b[name] for name in others) for b in best}
    return np.array([tuple(q[name] for name in others) in known for q in points], dtype=bool)


def beside(space: Space, points: Sequence[Point], best: Sequence[Point]) -> NDArray[np.bool_]:
    """Return for each point whether it is beside one of the best.

    Args:
        space: Searched parameters.
        points: Points that may be launched.
        best: The best launched points.
    """
    axis = _axis(space)
    near = np.zeros((len(points), len(best)), dtype=bool)
    away = np.zeros((len(points), len(best)), dtype=np.int64)
    for name, p in space.params.items():
        differs = np.array([[q[name] != b[name] for b in best] for q in points])
        away += differs
        if isinstance(p, ChoiceParam):
            near |= differs
            continue
        values = np.unique([float(q[name]) for q in [*points, *best]])
        own = np.searchsorted(values, [float(q[name]) for q in points])[:, None]
        step = np.abs(own - np.searchsorted(values, [float(q[name]) for q in best]))
        end = (own == 0) | (own == len(values) - 1)
        near |= differs & ((step == 1) | (end if name != axis else False))
    return np.asarray((near & (away == 1)).any(axis=1))
