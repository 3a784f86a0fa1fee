"""Where launches fail that no rule foresaw: learnt from those that failed, and from those that ran.

A failed launch is taken as one point of a *box*: conditions on some of the parameters under which
every launch fails. Which conditions, nobody knows; what is known is that the box holds the failed
point and no point that ran. Many boxes of that kind are drawn for each failure, and the chance that
a point fails is the share of boxes that hold it: a failure's own neighbourhood and what asks for
more in everything are in all of them, what lies between the failure and points that ran is in some,
in fewer the nearer it is to those that ran, and what asks for no more than a point that ran is in
none.

How a box may look depends on the kind of failure.

- **Out of memory** (`oom`, `oom_load`, `oom_capture`, `kv_cache`): conditions "at least so much" on
  what takes memory: n, MNBT, max_num_seqs, ….
- **Budget**: n and max_num_seqs at least, MNBT at most so much.
- **Draft does not fit**: everything with n ≥ 1.
- **Of the machine or the moment** (no port, a full disk, a clock that jumped, …): no box at all.
- **Rejected by vLLM** (`bad_config`): mostly for a choice, seldom for a number.
- **All others** (`crash`, `timeout`, …): any bounds on any parameter.

Otherwise a parameter has no bound on one side with chance ½, a priori. A draft's parameters have
none where a launch failed with n = 0: there was no draft. A point that ran and lies in a box cuts
it: by one condition, somewhere between the two, on one of the parameters in which they differ; on
one of the kind's own parameters, if it can be.

Points are avoided when a failure's boxes hold them too often (:data:`RISK`). A search that climbs
towards a failure thus makes small steps, each of which clears boxes away, and stops where the next
step would be a gamble: one crash a region is the aim, and what lies within the last steps before a
region is given up for it. Where values grow right up to a region that costs: with five times the
risk a search that always goes for the best point ends nearer to it, and crashes two or three times.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.errors import FailureKind
from autotune.study.space import MNBT, ChoiceParam, FloatParam, N, Point, Space, Value

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# The most risk that is run: of one more launch that runs out of memory, and of one more in a
# region of any other form, which is smaller.
RISK, RISK_AROUND = 0.02, 0.05
_BOXES = 256  # for each failure
_FREE = 0.5  # the chance that a parameter has no bound on one side
_FREE_REJECTED = 0.8  # … where vLLM rejected the flags; and that it was for a choice among them
_MOST_LEVELS = 64  # of one parameter

_MEMORY = {
    FailureKind.OOM,
    FailureKind.OOM_LOAD,
    FailureKind.OOM_CAPTURE,
    FailureKind.KV_CACHE,
}
# Failures that hold towards one end of every parameter.
_TOWARDS = {*_MEMORY, FailureKind.BUDGET}
# No fault of the point: another launch of it, or of its neighbours, may work.
_ELSEWHERE = {
    FailureKind.INFEASIBLE,  # never launched: the rules know where
    FailureKind.MODEL_MISSING,
    FailureKind.PORT,
    FailureKind.WRONG_SERVER,
    FailureKind.CLOCK,
    FailureKind.DISK,
}
# What takes memory (+1) or gives some (-1) as it grows.
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
_OF_THE_DRAFT = {N, "draft_tensor_parallel_size"}


class CrashModel:
    """The chance that a point can launch.

    The same launches always give the same chances; a new one changes those near it only.

    Args:
        space: The searched parameters.
        ok: Points that gave numbers.
        failed: Points that did not, with the kind of failure (:class:`FailureKind`; unknown words
            are taken as a crash).
    """

    def __init__(
        self, space: Space, ok: Sequence[Point], failed: Sequence[tuple[Point, str]]
    ) -> None:
        self._space = space
        self._names = list(space.params)
        self._levels = [_Levels(space, name) for name in self._names]
        ran = self._of(ok)
        # by failure: its boxes, and the risk that is run with its kind
        self._known: list[tuple[Ints, Ints, float]] = []
        for point, word in {(_Frozen(q), kind): None for q, kind in failed}:
            kind = _kind(word)
            boxes = self._boxes(self._of([point])[0], kind, ran)
            if boxes is not None:
                self._known.append((*boxes, RISK if kind in _TOWARDS else RISK_AROUND))

    def chances(self, points: Sequence[Point]) -> Floats:
        """For each point the chance, 0 … 1, that it can launch."""
        return np.asarray(np.prod(1 - self._shares(points), axis=0))

    def chance(self, point: Point) -> float:
        """The chance, 0 … 1, that the point can launch."""
        return float(self.chances([point])[0])

    def all_avoided(self, points: Sequence[Point]) -> NDArray[np.bool_]:
        """For each point whether it is too likely to fail to be launched at all."""
        limits = np.array([limit for _, _, limit in self._known])
        return np.asarray((self._shares(points) > limits[:, None]).any(axis=0))

    def avoided(self, point: Point) -> bool:
        """Whether the point is too likely to fail to be launched at all."""
        return bool(self.all_avoided([point])[0])

    def _shares(self, points: Sequence[Point]) -> Floats:
        """Failures × points: the share of the failure's boxes that hold the point."""
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
        """Points × parameters: the level of each value."""
        columns = [
            [level.of(q[name]) for q in points]
            for name, level in zip(self._names, self._levels, strict=True)
        ]
        return np.array(columns, dtype=np.int64).reshape(len(self._names), len(points)).T

    def _boxes(self, failed: Ints, kind: FailureKind, ran: Ints) -> tuple[Ints, Ints] | None:
        """Lower and upper levels of boxes, both included: boxes × parameters."""
        if kind in _ELSEWHERE:
            return None
        last = np.array([level.last for level in self._levels])
        drafts = N not in self._names or self._value(failed, N) != 0
        sides = up, down, _ = self._sides(kind, drafts)
        # bounds are drawn by the failed point alone, so that a new launch does not shuffle them
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
        for point in ran[order]:  # the far ones first: what they cut leaves the most of a box
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
        """Takes a point that ran out of the boxes that hold it, in place."""
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
            return  # it ran here once, and failed another time
        which = ways[(draws[0] * len(ways)).astype(np.int64)]
        for i in ways:
            now = held & (which == i)
            if self._levels[i].choice:
                low[now, i] = high[now, i] = failed[i]
            elif below[i]:  # the new bound: above what ran, up to what failed
                low[now, i] = ran[i] + 1 + (draws[1][now] * (failed[i] - ran[i])).astype(np.int64)
            else:
                high[now, i] = failed[i] + (draws[1][now] * (ran[i] - failed[i])).astype(np.int64)

    def _sides(
        self, kind: FailureKind, drafts: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """For each parameter: may there be a lower bound, an upper one, one in need."""
        demand = dict(_DEMAND)
        if kind == FailureKind.KV_CACHE:
            demand["gpu_memory_utilization"] = -1  # a larger share has more room for it
        elif kind == FailureKind.BUDGET:
            demand = {N: 1, "max_num_seqs": 1, MNBT: -1}
        up, down, need = [], [], []
        for name, level in zip(self._names, self._levels, strict=True):
            touches = drafts or name not in _OF_THE_DRAFT
            if kind in _TOWARDS:
                way = 0 if level.choice else demand.get(name, 0)
                # the cache's data type decides how much of it fits
                own = kind == FailureKind.KV_CACHE and name == "kv_cache_dtype"
                up.append(touches and (way > 0 or own))
                down.append(touches and (way < 0 or own))
            else:
                all_alike = kind == FailureKind.DRAFT_MISMATCH
                up.append(touches and not all_alike)
                down.append(touches and not all_alike)
            need.append(touches)
        return np.array(up), np.array(down), np.array(need)

    def _value(self, levels: Ints, name: str) -> Value | None:
        i = self._names.index(name)
        values = self._space.params[name].values()
        return None if values is None else values[int(levels[i])]


class _Levels:
    """Values of one parameter as whole numbers from 0, ascending; long ranges are rounded."""

    def __init__(self, space: Space, name: str) -> None:
        p = space.params[name]
        self.choice = isinstance(p, ChoiceParam)
        self._float = p if isinstance(p, FloatParam) else None
        values = p.values()
        self._places: dict[tuple[type, Value], int] = {}
        if values is None:
            self.last = _MOST_LEVELS - 1
        else:
            width = 1 if self.choice else math.ceil(len(values) / _MOST_LEVELS)
            self._places = {(type(v), v): i // width for i, v in enumerate(values)}
            self.last = (len(values) - 1) // width

    def of(self, value: Value) -> int:
        if self._float is None:
            return self._places[type(value), value]
        f = math.log if self._float.log else float
        low, high = f(self._float.low), f(self._float.high)
        share = (f(float(value)) - low) / (high - low) if high > low else 0.0
        return round(share * self.last)


class _Frozen(dict[str, Value]):
    """A point that can be a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _kind(word: str) -> FailureKind:
    try:
        return FailureKind(word)
    except ValueError:
        return FailureKind.CRASH
