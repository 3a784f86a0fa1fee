"""When a trial has been measured enough.

A measurement is looked at a few times, at sizes that grow geometrically (:func:`look_sizes`), and
ends when one of two things is known.

**Precision.** Every objective's interval is narrow against its value: :func:`precise`. Stopping
because an interval became narrow prefers intervals that are narrow by luck; the fixed-width
procedure of Y. S. Chow and H. Robbins ("On the asymptotic theory of fixed-width sequential
confidence intervals for the mean", Annals of Mathematical Statistics 36, 1965) keeps its coverage
in the limit only. Looks are few for that reason, and the 95 % intervals of a measurement that may
end so are computed at :data:`STOPPING_CONFIDENCE`. At 95 %, those of p95 hold the truth at the stop
in 95 to 97 % of the runs, but in 91.5 % where the machine's speed drifts; at 97 % in 97 to 98 % and
94.5 %, for a fifth more requests (``benchmarks/coverage.py``). To ask for two precise looks in a
row takes a third more and gains 1 %; a larger minimum or fewer looks gain nothing.

**Domination.** A finished rival is certainly better in all objectives: :class:`Domination`. For
each objective the logarithms are compared, g = log(trial / rival) with "larger is worse", by a
one-sided test at level a:

    g > sqrt(l² + u² + 2 (z_a σ)²)

with l from the trial to its better bound and u from the rival to its worse bound, both one-sided at
level a, each by its objective's own interval, and σ the standard deviation between launches, which
both have. That is the method of variance estimates recovery (G. Y. Zou, A. Donner, "Construction of
confidence limits about effect measures: a general approach", Statistics in Medicine 27, 2008); to
ask that intervals do not overlap would need a gap up to √3 times as large.

- All objectives must be worse: an intersection-union test, which needs no smaller level for several
  objectives (R. L. Berger, "Multiparameter hypothesis testing and acceptance sampling",
  Technometrics 24, 1982).
- Many looks: the total error α is spent in equal parts over the looks (K. K. G. Lan, D. L. DeMets,
  "Discrete sequential boundaries for clinical trials", Biometrika 70, 1983), here with the union
  bound, which needs no model of how looks depend on each other. The last look spends nothing: there
  is nothing left to save.
- Many rivals: the union bound again. It counts the rivals, not the trials that they were chosen
  from.

By simulation at α = 5 %, trials that equal their one rival in one objective and are far worse in
the other end wrongly in 0 to 3 % of the runs; where the rival is the luckiest of eight that are
equal there, in 2 to 5 %, and in up to 9 % where the machine's speed drifts. Give all finished
trials as rivals, and the bound holds for that choice too. Early ends need rivals of some hundred
requests: at small levels the p95 of fewer has no upper bound, and nothing is certain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from autotune.measure.intervals import Interval

# Of the intervals that end a measurement, so that they hold 95 % when they do.
STOPPING_CONFIDENCE = 0.97
_GROWTH = 1.3  # of the sizes between looks


def look_sizes(minimum: int, maximum: int, growth: float = _GROWTH) -> list[int]:
    """Numbers of requests after which to look, the last one the maximum.

    >>> look_sizes(32, 128)
    [32, 40, 51, 64, 81, 102, 128]
    """
    if minimum >= maximum:
        return [maximum]
    steps = math.ceil(math.log(maximum / minimum) / math.log(growth))
    return sorted({round(float(x)) for x in np.geomspace(minimum, maximum, steps + 1)})


def relative_half_width(value: float, interval: Interval) -> float:
    """Half of an interval's width, as a share of the value; infinite if a bound is missing."""
    if interval.low is None or interval.high is None:
        return math.inf
    return (interval.high - interval.low) / 2 / abs(value)


def precise(estimates: Iterable[tuple[float, Interval]], precision: float) -> bool:
    """Whether every value's interval is narrower than ± ``precision`` of the value."""
    return all(relative_half_width(value, i) < precision for value, i in estimates)


@dataclass(frozen=True)
class Bounded:
    """One objective of one launch.

    Attributes:
        value: Positive.
        interval: Its interval within the launch, two-sided, for a confidence.
    """

    value: float
    interval: Callable[[float], Interval]


@dataclass(frozen=True)
class Domination:
    """The test whether a running trial is certainly worse than another one; see the module.

    Attributes:
        looks: How many looks there are at most, the last, after all requests, included.
        directions: The better way of each objective.
        sigma: For each objective, the standard deviation of the logarithm between launches. Where
            few launches tell it, better an upper bound: it is taken as known.
        alpha: The chance that a trial is ever called dominated which no rival dominates.
    """

    looks: int
    directions: Sequence[Literal["maximize", "minimize"]]
    sigma: Sequence[float]
    alpha: float = 0.05

    def by(self, trial: Sequence[Bounded], rivals: Sequence[Sequence[Bounded]]) -> int | None:
        """The index of the first rival that is better in all objectives, at one look.

        Args:
            trial: What is known of the running trial, in the order of the objectives.
            rivals: The same of finished trials: as many at every look.
        """
        if not rivals or self.looks < 2:
            return None
        level = self.alpha / (self.looks - 1) / len(rivals)
        return next((i for i, rival in enumerate(rivals) if self._worse(trial, rival, level)), None)

    def _worse(self, trial: Sequence[Bounded], rival: Sequence[Bounded], level: float) -> bool:
        return all(
            _certainly_worse(a, b, direction, sigma, level)
            for a, b, direction, sigma in zip(
                trial, rival, self.directions, self.sigma, strict=True
            )
        )


def _certainly_worse(
    trial: Bounded, rival: Bounded, direction: str, sigma: float, level: float
) -> bool:
    """One objective, at a one-sided level."""
    sign = 1 if direction == "minimize" else -1
    gap = sign * math.log(trial.value / rival.value)
    if gap <= 0:
        return False
    a, b = trial.interval(1 - 2 * level), rival.interval(1 - 2 * level)
    better, worse = (a.low, b.high) if direction == "minimize" else (a.high, b.low)
    if better is None or worse is None or better <= 0 or worse <= 0:
        return False
    trial_half = math.log(trial.value / better)
    rival_half = math.log(worse / rival.value)
    launch_half = math.sqrt(2) * sigma * float(special.ndtri(1 - level))
    return gap > math.hypot(trial_half, rival_half, launch_half)
