"""Where launches fail that no rule foresaw: learned from launches that failed and that ran.

=============  ====================================================================================
term           meaning
=============  ====================================================================================
level          a parameter's value as a whole number from 0, ascending
box            a lower and an upper level for every parameter; every launch inside fails
boxes          256 random boxes of one failure, each of which may be the true one
chance         probability that a point can launch: Π over the failures of 1 - share of its boxes
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

Points are avoided when too large a share of a failure's boxes contains them (:data:`RISK`). A
search that moves towards a failure therefore makes small steps, each of which removes boxes, and
stops where the next step would be too risky. The aim is one crash for each region; the points
within the last steps before the region are given up for it. That has a cost where values increase
up to the region: with five times the risk a search that always takes the best point ends nearer to
it, and crashes two or three times.
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


class CrashModel:
    """The probability that a point can launch.

    The same launches always give the same probabilities; a new launch changes only those near it.

    Args:
        space: Searched parameters.
        ok: Points that ran.
        failed: Points that failed, with the kind of failure (:class:`FailureKind`; unknown words
            are taken as a crash).
    """

    def __init__(
        self, space: Space, ok: Sequence[Point], failed: Sequence[tuple[Point, str]]
    ) -> None:
        self._space = space
        self._names = list(space.params)
        self._levels = [_Levels(space, name) for name in self._names]
        ran = self._of(ok)
        # for each failure its boxes, and the accepted risk of its kind
        self._known: list[tuple[Ints, Ints, float]] = []
        for point, word in {(_Frozen(q), kind): None for q, kind in failed}:
            kind = _kind(word)
            boxes = self._boxes(self._of([point])[0], kind, ran)
            if boxes is not None:
                self._known.append((*boxes, RISK if kind in _TOWARDS else RISK_AROUND))

    def chances(self, points: Sequence[Point]) -> Floats:
        """Return the probability that each point can launch, of shape (points,)."""
        return np.asarray(np.prod(1 - self._shares(points), axis=0))

    def chance(self, point: Point) -> float:
        """Return the probability, 0 … 1, that the point can launch."""
        return float(self.chances([point])[0])

    def all_avoided(self, points: Sequence[Point]) -> NDArray[np.bool_]:
        """Return for each point whether it is too likely to fail to be launched."""
        limits = np.array([limit for _, _, limit in self._known])
        return np.asarray((self._shares(points) > limits[:, None]).any(axis=0))

    def avoided(self, point: Point) -> bool:
        """Return whether the point is too likely to fail to be launched."""
        return bool(self.all_avoided([point])[0])

    def _shares(self, points: Sequence[Point]) -> Floats:
        """Return the share of a failure's boxes that contain a point: (failures, points)."""
        out = np.zeros((len(self._known), len(points)))
        if not self._known or not len(points):
            return out
        levels = self._of(points)
        for row, (low, high, _) in zip(out, self._known, strict=True):
            inside = np.ones((len(points), len(low)), dtype=bool)
            for i, level in enumerate(self._levels):
                if low[:, i].any():
                    inside &= levels[:, i, None] >= low[:, i]
                if (high[:, i] < level.last).any():
                    inside &= levels[:, i, None] <= high[:, i]
            row[:] = inside.mean(axis=1)
        return out

    def _of(self, points: Sequence[Point]) -> Ints:
        """Return the levels of points, of shape (points, parameters)."""
        columns = [
            [level.of(q[name]) for q in points]
            for name, level in zip(self._names, self._levels, strict=True)
        ]
        return np.array(columns, dtype=np.int64).reshape(len(self._names), len(points)).T

    def _boxes(self, failed: Ints, kind: FailureKind, ran: Ints) -> tuple[Ints, Ints] | None:
        """Return lower and upper levels of a failure's boxes, each of shape (boxes, parameters).

        Both levels belong to the box. None: the failure is not the point's fault.
        """
        if kind in _ELSEWHERE:
            return None
        last = np.array([level.last for level in self._levels])
        drafts = N not in self._names or self._value(failed, N) != 0
        sides = up, down, _ = self._sides(kind, drafts)
        # the seed depends on the failure alone, so that a new launch does not change the draws
        rng = np.random.default_rng([zlib.crc32(kind.encode()), *(int(x) for x in failed)])
        size = (_BOXES, len(self._names))
        rejected = kind == FailureKind.BAD_CONFIG
        free = rng.random((2, *size)) < (_FREE_REJECTED if rejected else _FREE)
        low = np.where(free[0] | ~up, 0, rng.integers(0, failed + 1, size))
        high = np.where(free[1] | ~down, last, rng.integers(failed, last + 1, size))
        choice = np.array([level.choice for level in self._levels])
        same = choice & up & (free[0] if rejected else ~free[0])
        low = np.where(choice, np.where(same, failed, 0), low)
        high = np.where(choice, np.where(same, failed, last), high)
        if kind == FailureKind.DRAFT_MISMATCH and drafts and N in self._names:
            low[:, self._names.index(N)] = min(1, failed[self._names.index(N)])

        order = np.argsort(-np.abs(ran - failed).sum(axis=1), kind="stable")
        for point in ran[order]:  # the farthest first: their cuts leave the most of a box
            self._cut(point, failed, low, high, sides)
        return low, high

    def _cut(
        self,
        ran: Ints,
        failed: Ints,
        low: Ints,
        high: Ints,
        sides: tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]],
    ) -> None:
        """Cut the boxes that contain a point that ran, in place, so that they no longer do."""
        held = ((low <= ran) & (ran <= high)).all(axis=1)
        if not held.any():
            return
        draws = np.random.default_rng([int(x) for x in (*failed, *ran)]).random((2, len(low)))
        below, above = ran < failed, ran > failed
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
                low[now, i] = high[now, i] = failed[i]
            elif below[i]:  # the new bound lies above the point that ran, up to the failed one
                low[now, i] = ran[i] + 1 + (draws[1][now] * (failed[i] - ran[i])).astype(np.int64)
            else:
                high[now, i] = failed[i] + (draws[1][now] * (ran[i] - failed[i])).astype(np.int64)

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
