"""What a world of a replay is: points, their truth, their noise, and what fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autotune.engine.rule import METHOD
from autotune.errors import FailureKind
from autotune.search.alike import Alike
from autotune.study.space import MNBT, N, Point, Space, Value

Floats = NDArray[np.float64]
# the worlds draft as DFlash does; vLLM's rules differ by method
DFLASH = {METHOD: "dflash"}
SEQS, KV = "max_num_seqs", "kv_cache_dtype"
SIGMA = 0.03  # of the logarithm of a launch's luck
DEFAULT_MNBT = 2048  # where the baseline stands
SIGNS = np.array([-1.0, 1.0])  # luck makes tok/s fall and latencies rise


@dataclass(frozen=True)
class Outcome:
    """What the tuner learns from one launch.

    Attributes:
        values: tok/s and p95 of E2EL in ms; None: it failed.
        log_variances: Of the logarithms of both, as the launch's own intervals tell: without luck.
        acceptance_per_position: Share of the drafts whose first i tokens were all accepted.
        acceptance_length: Tokens per step; None without drafts.
        seconds: From one launch to the next.
        failure: Why it failed.
    """

    values: tuple[float, float] | None
    log_variances: tuple[float, float] | None
    acceptance_per_position: tuple[float, ...]
    acceptance_length: float | None
    seconds: float
    failure: FailureKind | None = None


@dataclass(frozen=True)
class Region:
    """Where launches fail that no rule forbids.

    Attributes:
        words: What it is, in a few words.
        kind: How they fail.
        holds: Whether a point is in it.
    """

    words: str
    kind: FailureKind
    holds: Callable[[Point], bool]


@dataclass(frozen=True)
class World:
    """One load on one machine.

    Attributes:
        name: For the command line.
        words: What it is, in one line.
        space: What is searched.
        points: All points of the space, in its order.
        reasons: For each, why the rules forbid it, or None.
        regions: Unforeseen failures; hidden from a search until it launches there.
        logs: Points × (log tok/s, log p95 in ms), without noise; NaN where forbidden.
        noise: Points × standard deviations of the same in a launch, without luck.
        pool: Points × launches × 2: deviations from ``logs`` to draw from; None: normal ones.
        acceptance: Per position, for each point.
        lengths: Acceptance lengths; None without drafts.
        seconds: Of a launch, for each point.
        failed_seconds: Of a launch that fails.
        sigma: Of the logarithm of a launch's luck.
        alike: Which points are one for the objectives, as a study would know it; None: none.
    """

    name: str
    words: str
    space: Space
    points: Sequence[dict[str, Value]] = field(repr=False)
    reasons: Sequence[str | None] = field(repr=False)
    regions: Sequence[Region] = field(repr=False)
    logs: Floats = field(repr=False)
    noise: Floats = field(repr=False)
    pool: Floats | None = field(repr=False)
    acceptance: Sequence[tuple[float, ...]] = field(repr=False)
    lengths: Sequence[float | None] = field(repr=False)
    seconds: Floats = field(repr=False)
    failed_seconds: float = 60.0
    sigma: float = SIGMA
    alike: Alike | None = field(default=None, repr=False)
    _places: dict[tuple[Value, ...], int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._places.update({tuple(q.values()): i for i, q in enumerate(self.points)})

    def place(self, point: Point) -> int:
        """Where the point stands in ``points``."""
        return self._places[tuple(point[name] for name in self.space.params)]

    def infeasible(self, point: Point) -> str | None:
        """Why the rules forbid the point, or None."""
        return self.reasons[self.place(point)]

    def crash(self, point: Point) -> str | None:
        """The unforeseen failure there, in words, or None."""
        region = self._region(point)
        return None if region is None else region.words

    def _region(self, point: Point) -> Region | None:
        return next((r for r in self.regions if r.holds(point)), None)

    def truth(self, point: Point) -> tuple[float, float]:
        """tok/s and p95 in ms without noise."""
        rate, p95 = np.exp(self.logs[self.place(point)])
        return float(rate), float(p95)

    def launchable(self) -> list[int]:
        """Places of the points that give numbers."""
        found = range(len(self.points))
        return [i for i in found if self.reasons[i] is None and not self._region(self.points[i])]

    def baseline(self) -> dict[str, Value]:
        """The first point of a study: n = 0, vLLM's default budget, else the middle."""
        point: dict[str, Value] = {}
        for name, p in self.space.params.items():
            values = p.values()
            assert values is not None
            if name in (N, MNBT):
                wanted = 0 if name == N else DEFAULT_MNBT
                point[name] = min(values, key=lambda v: abs(int(v) - wanted))
            else:
                point[name] = values[len(values) // 2]
        return point

    def launch(self, point: Point, rng: np.random.Generator) -> Outcome:
        """One launch, with its luck and noise."""
        i = self.place(point)
        region = self._region(point)
        if self.reasons[i] is not None or region is not None:
            kind = FailureKind.BUDGET if region is None else region.kind
            return Outcome(None, None, (), None, self.failed_seconds, kind)
        if self.pool is None:
            off = rng.normal(0, self.noise[i])
        else:
            off = self.pool[i, rng.integers(self.pool.shape[1])]
        rate, p95 = np.exp(self.logs[i] + off + SIGNS * rng.normal(0, self.sigma))
        variances = self.noise[i] ** 2
        return Outcome(
            (float(rate), float(p95)),
            (float(variances[0]), float(variances[1])),
            self.acceptance[i],
            self.lengths[i],
            float(self.seconds[i]),
        )
