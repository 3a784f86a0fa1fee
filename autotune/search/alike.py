"""Points that are one for the objectives: budgets that cannot bind, of which one is launched.

=========  ========================================================================================
term       meaning
=========  ========================================================================================
class      points that differ in a budget only, and whose budgets never fill
certain    the class follows from vLLM's source and the study alone
likely     it follows if a condition holds that cannot be proven, such as enough KV cache blocks
check      one launch of a likely class at its largest budget, compared with one at its smallest
=========  ========================================================================================

A class is one point for throughput and latency, not for memory and start-up: a larger budget
reserves more memory and compiles again. The smallest budget stands for the class.

The check is the launch that would repeat the leader anyway. If the two differ in one objective by
more than ``_DIFFERENT`` standard deviations, every likely class is taken apart for good; otherwise
they are treated as the certain ones. One launch sees only large differences: with 3 % between
launches and 2 % within, 13 % are found in half of all cases, 19 % in nine of ten.

Which budgets bind is not known here; see :mod:`autotune.results.batch_budget`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autotune.search.noise import UNKNOWN
from autotune.study.space import Point, Value

# Standard deviations beyond which two launches are of two servers.
_DIFFERENT = 2.5
# Standard deviation between launches of one server, of logarithms.
_BETWEEN = 0.03

Key = frozenset[tuple[str, Value]]


def key_of(point: Point) -> Key:
    """Return a point as a key of sets and mappings."""
    return frozenset(point.items())


class Launched(Protocol):
    """A measured launch."""

    @property
    def point(self) -> Point:
        """Launched point."""

    @property
    def costs(self) -> Sequence[float]:
        """Logarithm of each objective, with the sign that makes less better."""

    @property
    def variances(self) -> Sequence[float]:
        """Variances of the costs within the launch; NaN: unknown."""


@dataclass(frozen=True)
class Alike:
    """Classes of points of a study.

    Attributes:
        param: Parameter in which the points of a class differ.
        certain: Returns the point that stands for a point, by proof; the point itself where it is
            alone.
        likely: The same, if the conditions that cannot be proven hold.
    """

    param: str
    certain: Callable[[Point], Point]
    likely: Callable[[Point], Point]


class Classes:
    """Classes of points, after what the launches so far say about the likely ones.

    Args:
        alike: Classes of the study; None: every point is alone.
        launched: Measured launches.
    """

    def __init__(self, alike: Alike | None, launched: Sequence[Launched]) -> None:
        self._alike = alike
        checks = [] if alike is None else _checks(alike, launched)
        self.checked = bool(checks)
        self.split = any(_differ(a, b) for a, b in checks)

    def of(self, point: Point) -> Point:
        """Return the point that stands for a point's class."""
        if self._alike is None:
            return point
        return self._alike.certain(point) if self.split else self._alike.likely(point)

    def smallest(self, points: Iterable[Point]) -> dict[Key, dict[str, Value]]:
        """Return of each class the given point with the smallest budget, by the class's key."""
        found: dict[Key, dict[str, Value]] = {}
        for q in points:
            key = key_of(self.of(q))
            if key not in found or self._budget(q) < self._budget(found[key]):
                found[key] = dict(q)
        return found

    def to_check(
        self, point: Point, own: Sequence[Point], points: Iterable[Point]
    ) -> dict[str, Value] | None:
        """Return the point whose launch checks whether a launched point's class is one.

        Args:
            point: Launched point.
            own: Points of all launches, running ones included.
            points: Points that can launch.

        Returns:
            The one with the largest budget of those that are only likely the same; None: the class
            is certain, or a class was checked, or its check runs.
        """
        if self._alike is None or self.checked:
            return None
        f, g = self._alike.likely, self._alike.certain
        of_own = {(key_of(f(q)), key_of(g(q))) for q in own}
        if len(of_own) > len({likely for likely, _ in of_own}):
            return None  # two launches of one likely class: the check runs
        others = [q for q in points if f(q) == f(point) and g(q) != g(point)]
        largest = max(others, key=lambda q: self._budget(q), default=None)
        return None if largest is None else dict(largest)

    def _budget(self, point: Point) -> float:
        value = 0 if self._alike is None else point[self._alike.param]
        return float(value)


def _checks(alike: Alike, launched: Sequence[Launched]) -> list[tuple[list[Launched], ...]]:
    """Return the launches of each two points that are likely, but not certainly, one."""
    groups: dict[Key, dict[Key, list[Launched]]] = {}
    for item in launched:
        likely, certain = (key_of(f(item.point)) for f in (alike.likely, alike.certain))
        groups.setdefault(likely, {}).setdefault(certain, []).append(item)
    return [pair for parts in groups.values() for pair in itertools.combinations(parts.values(), 2)]


def _differ(a: Sequence[Launched], b: Sequence[Launched]) -> bool:
    """Return whether launches of two points differ by more than chance in one objective."""

    def mean(items: Sequence[Launched]) -> tuple[np.ndarray, np.ndarray]:
        costs = np.array([x.costs for x in items])
        within = np.array([x.variances for x in items])
        each = np.where(np.isfinite(within), within, UNKNOWN) + _BETWEEN**2
        return costs.mean(axis=0), each.sum(axis=0) / len(items) ** 2

    (m, v), (n, w) = mean(a), mean(b)
    return bool((abs(m - n) > _DIFFERENT * np.sqrt(v + w)).any())
