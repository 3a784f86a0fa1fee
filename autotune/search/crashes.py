"""Where launches fail that no rule foresaw: learned from launches that failed and that ran.

=============  ====================================================================================
term           meaning
=============  ====================================================================================
level          a parameter's value as a whole number from 0, ascending
box            a lower and an upper level for every parameter; every launch inside fails
region         failures of one kind, with no point between them that ran
boxes          256 random boxes of one region, each of which may be the true one
chance         probability that a point can launch: Π over the regions of 1 - share of its boxes
               that contain the point
=============  ====================================================================================

A failed launch is modeled as one point of a *box*: bounds on some of the parameters within which
every launch fails. The bounds are unknown. It is known that the box contains the failed point, and
no point that ran. Many such boxes are drawn for each failure, and a point fails by that failure
with a probability that is the share of boxes that contain it. The failure's neighborhood, and
points that need more of everything, are in all boxes. Points between the failure and points that
ran are in some boxes, and in fewer, the nearer they are to those that ran. Points that need no more
than a point that ran are in none.

The possible boxes depend on the kind of failure.

- **Out of memory** (`oom`, `oom_load`, `oom_capture`, `kv_cache`): lower bounds on parameters that
  need memory: n, MNBT, max_num_seqs, ….
- **Budget**: lower bounds on n and max_num_seqs, an upper bound on MNBT.
- **Draft does not fit**: all points with n ≥ 1.
- **Failures of the machine or the moment** (no port, a full disk, an old driver, …): no box.
- **Rejected by vLLM** (`bad_config`): mostly by a choice, seldom by a number.
- **All others** (`crash`, `timeout`, …): any bounds on any parameter.

A priori, a parameter has no bound on one side with probability ½. A draft's parameters have no
bound if the launch failed with n = 0, because there was no draft. A point that ran and lies in a
box cuts the box by one bound, at a random level between the point and the failure, on one of the
parameters in which they differ. This is one of the failure kind's own parameters, if possible.

Several failures of one kind are of one region, and in one box, unless a point between them ran.

Points are avoided when too large a share of a region's boxes contains them (:data:`RISK`). A
search that moves towards a failure therefore makes small steps, each of which removes boxes, and
stops where the next step would be too risky. The aim is one crash for each region; the points
within the last steps before the region are given up for it. That has a cost where values increase
up to the region. So one of them may be tried in the end (:meth:`CrashModel.retriable`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.errors import FailureKind
from autotune.study.space import ARM, MNBT, ChoiceParam, FloatParam, N, Point, Space, Value

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Largest accepted probability of one more crash: by lack of memory or budget, and in a region of
# another form, which is smaller.
RISK, RISK_AROUND = 0.02, 0.05
_BOXES = 256  # number of boxes for each failure
_FREE = 0.5  # probability that a parameter has no bound on one side
_FREE_REJECTED = 0.8  # … if vLLM rejected the flags, and probability that a choice was the reason
_MOST_LEVELS = 64  # largest number of levels of one parameter
_TOGETHER = 0.8  # share of its gain that a point loses if it shares a region with a pending launch
_NEAREST = 100  # points that ran that bound the region of a pending launch: there are many of these
_FAR = 10**6  # more levels than any two points are apart

_MEMORY = {
    FailureKind.OOM,
    FailureKind.OOM_LOAD,
    FailureKind.OOM_CAPTURE,
    FailureKind.KV_CACHE,
}
# Failures that extend to one end of every parameter.
_TOWARDS = {*_MEMORY, FailureKind.BUDGET}
# Failures that are not the point's fault: another launch of it, or of its neighbors, may succeed.
_ELSEWHERE = {
    FailureKind.INFEASIBLE,  # never launched: the rules know where
    FailureKind.MODEL_MISSING,
    FailureKind.PORT,
    FailureKind.WRONG_SERVER,
    FailureKind.CLOCK,
    FailureKind.DISK,
    FailureKind.MACHINE,
}
# Parameters that need more memory (+1) or less (-1) as they grow.
_DEMAND: Mapping[str, int] = {
    N: 1,
    MNBT: 1,
    "max_num_seqs": 1,
    "max_model_len": 1,
    "max_cudagraph_capture_size": 1,
    "gpu_memory_utilization": 1,
    "tensor_parallel_size": -1,
    "pipeline_parallel_size": -1,
    "draft_tensor_parallel_size": -1,
}
_OF_THE_DRAFT = {ARM, N, "draft_tensor_parallel_size"}


# Boxes by levels of a pending point, and of the points that ran nearest to it.
Kept = dict[tuple[bytes, bytes], tuple[Ints, Ints] | None]


class CrashModel:
    """The probability that a point can launch.

    The same launches always give the same probabilities; a new launch changes only those near it.

    Args:
        space: Searched parameters.
        ok: Points that ran.
        failed: Points that failed, with the kind of failure (:class:`FailureKind`; unknown words
            are taken as a crash).
        kept: Boxes of pending launches, for the next model of the space; None: they are not kept.
    """

    def __init__(
        self,
        space: Space,
        ok: Sequence[Point],
        failed: Sequence[tuple[Point, str]],
        kept: Kept | None = None,
    ) -> None:
        self._space = space
        self._names = list(space.params)
        self._levels = [_Levels(space, name) for name in self._names]
        self._ran = self._of(ok)
        self._kept: Kept = {} if kept is None else kept
        # for each region its boxes, the accepted risk of its kind, and how many launches failed
        self._known: list[tuple[Ints, Ints, float, int]] = []
        for kind, points in self._regions(failed):
            boxes = self._boxes(points, kind, self._farthest_first(points))
            if boxes is not None:
                risk = RISK if kind in _TOWARDS else RISK_AROUND
                self._known.append((*boxes, risk, len(points)))

    def _regions(self, failed: Sequence[tuple[Point, str]]) -> list[tuple[FailureKind, Ints]]:
        """Return the failed points, of shape (points, parameters), of each region.

        Failures of one kind are of one region, unless a point between them ran.
        """
        found: list[tuple[FailureKind, Ints]] = []
        for point, word in {(_Frozen(q), kind): None for q, kind in failed}:
            kind, own = _kind(word), self._of([point])
            for i, (other, points) in enumerate(found):
                joint = np.concatenate([points, own])
                inside = (joint.min(axis=0) <= self._ran) & (self._ran <= joint.max(axis=0))
                if kind == other and not inside.all(axis=1).any():
                    found[i] = (kind, joint)
                    break
            else:
                found.append((kind, own))
        return found

    def chances(self, points: Sequence[Point]) -> Floats:
        """Return the probability that each point can launch, of shape (points,)."""
        return np.asarray(np.prod(1 - self._shares(points), axis=0))

    def chance(self, point: Point) -> float:
        """Return the probability, 0 … 1, that the point can launch."""
        return float(self.chances([point])[0])

    def all_avoided(self, points: Sequence[Point]) -> NDArray[np.bool_]:
        """Return for each point whether it is too likely to fail to be launched."""
        limits = np.array([limit for _, _, limit, _ in self._known])
        return np.asarray((self._shares(points) > limits[:, None]).any(axis=0))

    def avoided(self, point: Point) -> bool:
        """Return whether the point is too likely to fail to be launched."""
        return bool(self.all_avoided([point])[0])

    def apart(self, points: Sequence[Point], pending: Sequence[Point]) -> Floats:
        """Return a factor, 0 … 1, for the gain of each point while other launches are pending.

        A pending launch that fails would show a region; a point that shares it is better launched
        after that is known. So the factor falls with the share of the boxes of such a failure that
        hold the point. The failure is taken for one by lack of memory, by far the most frequent
        kind, so that what needs no more than a point that ran is not delayed.

        Args:
            points: Points that may be launched.
            pending: Points of launches whose outcomes are not known.
        """
        out = np.ones(len(points))
        ran, levels = {tuple(x) for x in self._ran}, self._of(points)
        used: Kept = {}
        for own in self._of(pending) if len(points) else ():
            if tuple(own) in ran:
                continue
            near = self._farthest_first(own[None, :])[-_NEAREST:]
            key = own.tobytes(), near.tobytes()
            if key not in self._kept:  # most launches change the nearest of few pending ones
                self._kept[key] = self._boxes(own[None, :], FailureKind.OOM, near)
            used[key] = boxes = self._kept[key]
            if boxes:
                out *= 1 - _TOGETHER * self._inside(levels, *boxes)
        self._kept.clear()
        self._kept.update(used)
        return out

    def retriable(self, points: Sequence[Point]) -> NDArray[np.bool_]:
        """Return for each point whether it is avoided for a single failure, and next to what ran.

        Where two launches failed in one region, none of its points is retriable.
        """
        if not self._known or not len(points):
            return np.zeros(len(points), dtype=bool)
        limits = np.array([limit for _, _, limit, _ in self._known])[:, None]
        single = np.array([count == 1 for *_, count in self._known])[:, None]
        held = self._shares(points) > limits
        once = (held.sum(axis=0) == 1) & (held & single).any(axis=0)
        steps = self._steps(points)
        nearest = steps[once].min(initial=_FAR)
        return np.asarray(once & (steps == nearest) & (steps < _FAR))

    def _steps(self, points: Sequence[Point]) -> Ints:
        """Return the levels from each point to the nearest that ran; another choice is far."""
        levels = self._of(points)
        if not len(self._ran):
            return np.full(len(points), _FAR)
        away = np.abs(levels[:, None, :] - self._ran[None, :, :])
        choice = np.array([level.choice for level in self._levels])
        steps = np.where(choice & (away > 0), _FAR, away).sum(axis=2).min(axis=1)
        return np.asarray(np.minimum(steps, _FAR))

    def _shares(self, points: Sequence[Point]) -> Floats:
        """Return the share of a region's boxes that contain a point: (regions, points)."""
        out = np.zeros((len(self._known), len(points)))
        if not self._known or not len(points):
            return out
        levels = self._of(points)
        for row, (low, high, *_) in zip(out, self._known, strict=True):
            row[:] = self._inside(levels, low, high)
        return out

    def _inside(self, levels: Ints, low: Ints, high: Ints) -> Floats:
        """Return the share of boxes that contain each point, of shape (points,)."""
        inside = np.ones((len(levels), len(low)), dtype=bool)
        for i, level in enumerate(self._levels):
            if low[:, i].any():
                inside &= levels[:, i, None] >= low[:, i]
            if (high[:, i] < level.last).any():
                inside &= levels[:, i, None] <= high[:, i]
        return np.asarray(np.count_nonzero(inside, axis=1) / len(low))

    def _of(self, points: Sequence[Point]) -> Ints:
        """Return the levels of points, of shape (points, parameters)."""
        columns = [
            [level.of(q[name]) for q in points]
            for name, level in zip(self._names, self._levels, strict=True)
        ]
        return np.array(columns, dtype=np.int64).reshape(len(self._names), len(points)).T

    def _farthest_first(self, failed: Ints) -> Ints:
        """Return the points that ran, of shape (points, parameters), the nearest to a region last.

        Args:
            failed: Levels of the points that failed, of shape (points, parameters).
        """
        least, most = failed.min(axis=0), failed.max(axis=0)
        away = np.maximum(least - self._ran, 0) + np.maximum(self._ran - most, 0)
        return np.asarray(self._ran[np.argsort(-away.sum(axis=1), kind="stable")])

    def _boxes(self, failed: Ints, kind: FailureKind, ran: Ints) -> tuple[Ints, Ints] | None:
        """Return lower and upper levels of a region's boxes, each of shape (boxes, parameters).

        Both levels belong to the box. None: the failures are not the points' fault.

        Args:
            failed: Levels of the points that failed, of shape (points, parameters).
            kind: How they failed.
            ran: Points that ran and cut the boxes, the farthest first: its cuts leave the most of
                a box.
        """
        if kind in _ELSEWHERE:
            return None
        least, most = failed.min(axis=0), failed.max(axis=0)
        last = np.array([level.last for level in self._levels])
        drafts = N not in self._names or self._value(least, N) != 0
        sides = up, down, _ = self._sides(kind, drafts)
        # the seed depends on the failures alone, so that a new launch does not change the draws
        rng = np.random.default_rng([zlib.crc32(kind.encode()), *(int(x) for x in failed.flat)])
        size = (_BOXES, len(self._names))
        rejected = kind == FailureKind.BAD_CONFIG
        free = rng.random((2, *size)) < (_FREE_REJECTED if rejected else _FREE)
        low = np.where(free[0] | ~up, 0, rng.integers(0, least + 1, size))
        high = np.where(free[1] | ~down, last, rng.integers(most, last + 1, size))
        choice = np.array([level.choice for level in self._levels])
        same = choice & (least == most) & up & (free[0] if rejected else ~free[0])
        low = np.where(choice, np.where(same, least, 0), low)
        high = np.where(choice, np.where(same, most, last), high)
        if kind == FailureKind.DRAFT_MISMATCH and drafts and N in self._names:
            low[:, self._names.index(N)] = min(1, least[self._names.index(N)])

        for point in ran:
            self._cut(point, least, most, low, high, sides)
        return low, high

    def _cut(
        self,
        ran: Ints,
        least: Ints,
        most: Ints,
        low: Ints,
        high: Ints,
        sides: tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]],
    ) -> None:
        """Cut the boxes that contain a point that ran, in place, so that they no longer do."""
        held = ((low <= ran) & (ran <= high)).all(axis=1)
        if not held.any():
            return
        seed = [int(x) for x in (*least, *most, *ran)]
        draws = np.random.default_rng(seed).random((2, len(low)))
        below, above = ran < least, ran > most
        up, down, rest = sides
        usable = (below & up) | (above & down)
        if not usable.any():
            usable = (below | above) & rest
        ways = np.flatnonzero(usable)
        if not len(ways):
            return  # the same point ran once, and failed another time
        which = ways[(draws[0] * len(ways)).astype(np.int64)]
        for i in ways:
            now = held & (which == i)
            if self._levels[i].choice:
                low[now, i], high[now, i] = least[i], most[i]
            elif below[i]:  # the new bound lies above the point that ran, up to the failed ones
                low[now, i] = ran[i] + 1 + (draws[1][now] * (least[i] - ran[i])).astype(np.int64)
            else:
                high[now, i] = most[i] + (draws[1][now] * (ran[i] - most[i])).astype(np.int64)

    def _sides(
        self, kind: FailureKind, drafts: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return for each parameter whether it may have a lower bound, an upper one, and any.

        The third is used only where no parameter with one of the first two separates the points.
        """
        demand = dict(_DEMAND)
        if kind == FailureKind.KV_CACHE:
            demand["gpu_memory_utilization"] = -1  # a larger share leaves more memory for the cache
        elif kind == FailureKind.BUDGET:
            demand = {N: 1, "max_num_seqs": 1, MNBT: -1}
        up, down, need = [], [], []
        for name, level in zip(self._names, self._levels, strict=True):
            touches = drafts or name not in _OF_THE_DRAFT
            if kind in _TOWARDS:
                way = 0 if level.choice else demand.get(name, 0)
                # the cache's data type determines how many tokens fit
                own = kind == FailureKind.KV_CACHE and name == "kv_cache_dtype"
                up.append(touches and (way > 0 or own))
                down.append(touches and (way < 0 or own))
            else:
                everywhere = kind == FailureKind.DRAFT_MISMATCH
                up.append(touches and not everywhere)
                down.append(touches and not everywhere)
            need.append(touches)
        return np.array(up), np.array(down), np.array(need)

    def _value(self, levels: Ints, name: str) -> Value | None:
        i = self._names.index(name)
        values = self._space.params[name].values()
        return None if values is None else values[int(levels[i])]


class _Levels:
    """Levels of one parameter's values; several values of a long range share a level."""

    def __init__(self, space: Space, name: str) -> None:
        p = space.params[name]
        self.choice = isinstance(p, ChoiceParam)
        self._float = p if isinstance(p, FloatParam) else None
        values = p.values()
        self._level: dict[tuple[type, Value], int] = {}
        if values is None:
            self.last = _MOST_LEVELS - 1
        else:
            width = 1 if self.choice else math.ceil(len(values) / _MOST_LEVELS)
            self._level = {(type(v), v): i // width for i, v in enumerate(values)}
            self.last = (len(values) - 1) // width

    def of(self, value: Value) -> int:
        """Return the level of a value."""
        if self._float is None:
            return self._level[type(value), value]
        f = math.log if self._float.log else float
        low, high = f(self._float.low), f(self._float.high)
        share = (f(float(value)) - low) / (high - low) if high > low else 0.0
        return round(share * self.last)


class _Frozen(dict[str, Value]):
    """A point that can be a key of a dictionary."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _kind(word: str) -> FailureKind:
    try:
        return FailureKind(word)
    except ValueError:
        return FailureKind.CRASH
