"""Ratios of the values that two studies measured, with intervals, and what each ratio shows.

Points that both studies measured are compared as ratios, B over A, of geometric means over all of
a point's launches. For each of the two studies, the variance of a ratio has two parts (see
:mod:`autotune.stats.launch_variance`):

    variance of a point's mean = (between² + own · mean within²) / launches

The intervals within launches treat the requests as a new random sample for each launch, but all
launches got the same requests. If replicated launches scatter less than these intervals explain,
the intervals are too wide by a known factor: ``own`` is then ``total² / within²`` of the
replicates, and 1 otherwise. So a launch with few requests counts less than one with many, and
nothing is added twice.

Each study uses its own variance if that has two degrees of freedom, else the pooled one of both
studies. The two variances add up, with the degrees of freedom of F. E. Satterthwaite and of
B. L. Welch ("The generalization of 'Student's' problem when several different population variances
are involved", Biometrika 34, 1947). Three kinds of figures are judged:

- **All same points together**: the mean of their logarithms. It shows an effect on every point.
- **The winners**: each study's best point by the objective, with the values of its confirmation,
  which have no selection bias. Single launches of a search are not judged, because the best of many
  looks better than it is (the winner's curse).
- **Each same point**: by an interval so wide that all of them together err with 5 % (Bonferroni).
  Their 95 % intervals are shown; one of twenty misses.

A figure is *worse* if its interval lies beyond the threshold, *better* if it lies beyond it on the
good side, *equal* if it lies within, and undecided otherwise. So a figure that is hardly known is
never called equal. Changes from day to day on one machine are not part of the launch-to-launch
variance of one study; a comparison of a study with its own repetition shows them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from autotune.results.standing import LEAST_DEGREES
from autotune.results.views import TrialView
from autotune.stats import Estimate, LaunchVariance, Scatter
from objectives import Objective

CONFIDENCE = 0.95
_MOST_DEGREES = 10**6  # as many as are normal


class Finding(StrEnum):
    """Finding of a ratio, by the rule in the module's docstring."""

    WORSE = "worse"
    BETTER = "better"
    EQUAL = "equal"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Point:
    """One point of one study.

    Attributes:
        trial: The trial that first measured it.
        values: Values of its launches, by objective name; only positive ones make a ratio.
        within: Mean square of the standard errors within its launches, by objective name. Launches
            of too few requests have none.
    """

    trial: TrialView
    values: Mapping[str, Sequence[float]]
    within: Mapping[str, float]


@dataclass(frozen=True)
class Difference:
    """The ratio of one figure of both studies.

    Attributes:
        ratio: B over A, with its 95 % interval.
        finding: What the ratio shows; None: it is not judged.
    """

    ratio: Estimate
    finding: Finding | None


def scatters(
    a: LaunchVariance | None, b: LaunchVariance | None
) -> tuple[LaunchVariance, LaunchVariance] | None:
    """Return the launch-to-launch variance in A and in B; pooled where one knows too little.

    None: both together have too few degrees of freedom.
    """
    own = a, b
    known = [v for v in own if v is not None]
    if len(known) == 2 and all(v.total.degrees >= LEAST_DEGREES for v in known):
        return known[0], known[1]
    degrees = sum(v.total.degrees for v in known)
    if degrees < LEAST_DEGREES:
        return None

    def pooled(squares: Sequence[float]) -> float:
        weighted = (v.total.degrees * s for v, s in zip(known, squares, strict=True))
        return sum(weighted) / degrees

    total2 = pooled([v.total.sigma**2 for v in known])
    within2 = pooled([v.within**2 for v in known])
    between = math.sqrt(max(0.0, total2 - within2))
    both = LaunchVariance(Scatter(math.sqrt(total2), degrees), math.sqrt(within2), between)
    return both, both


def paired_ratio(
    pairs: Sequence[tuple[Point, Point]],
    name: str,
    variances: tuple[LaunchVariance, LaunchVariance] | None,
    confidence: float,
) -> Estimate:
    """Return B over A, the geometric mean over points, with its interval.

    Args:
        pairs: The same point in A and in B, for each point.
        name: Name of the objective.
        variances: Result of :func:`scatters`; None: no interval can be given.
        confidence: Confidence of the interval.
    """
    logs = [np.mean(np.log(q.values[name])) - np.mean(np.log(p.values[name])) for p, q in pairs]
    log = float(np.mean(logs))
    if variances is None:
        return Estimate(math.exp(log), None, None)
    a, b = (_mean([pair[i] for pair in pairs], name, variances[i]) for i in (0, 1))
    if variances[0] is variances[1]:
        both = _Mean(a.share + b.share, a.within2 + b.within2)
        return around(log, [(both.variance(variances[0]), both.degrees(variances[0]))], confidence)
    parts = [(x.variance(s), x.degrees(s)) for x, s in zip((a, b), variances, strict=True)]
    return around(log, parts, confidence)


def _mean(points: Sequence[Point], name: str, scatter: LaunchVariance) -> _Mean:
    launches = [len(p.values[name]) for p in points]
    usual = scatter.within**2
    squares = [p.within.get(name, usual) / n for p, n in zip(points, launches, strict=True)]
    return _Mean(sum(1 / n for n in launches) / len(points) ** 2, sum(squares) / len(points) ** 2)


@dataclass(frozen=True)
class _Mean:
    """Parts of the variance of a mean of logarithms.

    Attributes:
        share: Factor of ``between²``.
        within2: Part of the launches' own intervals.
    """

    share: float
    within2: float

    def variance(self, scatter: LaunchVariance) -> float:
        own = 1.0
        if scatter.between == 0 and scatter.within > 0:
            own = scatter.total.sigma**2 / scatter.within**2
        return self.share * scatter.between**2 + own * self.within2

    def degrees(self, scatter: LaunchVariance) -> float:
        """Return the degrees of freedom by Satterthwaite; errors within launches are known."""
        if scatter.between == 0:
            return scatter.total.degrees
        share = self.variance(scatter) / (self.share * scatter.total.sigma**2)
        return scatter.total.degrees * share**2


def around(log: float, parts: Sequence[tuple[float, float]], confidence: float) -> Estimate:
    """Return ``exp(log)`` with its interval, by Welch; each part is a variance and its degrees."""
    variance = sum(v for v, _ in parts)
    if variance == 0:
        return Estimate(math.exp(log), math.exp(log), math.exp(log))
    spent = sum(v**2 / degrees for v, degrees in parts)
    degrees = _MOST_DEGREES if spent == 0 else min(variance**2 / spent, _MOST_DEGREES)
    return Scatter(math.sqrt(variance), int(degrees)).around(log, 1.0, confidence)


def finding(objective: Objective, ratio: Estimate, threshold: float) -> Finding:
    """Return what a ratio's interval shows.

    Args:
        objective: Says which way is better.
        ratio: B over A.
        threshold: Share of a value that does not matter.
    """
    if ratio.low is None or ratio.high is None:
        return Finding.UNDECIDED
    below, above = ratio.high < 1 - threshold, ratio.low > 1 + threshold
    if below or above:
        more_is_better = objective.direction == "maximize"
        return Finding.BETTER if above is more_is_better else Finding.WORSE
    within = 1 - threshold <= ratio.low and ratio.high <= 1 + threshold
    return Finding.EQUAL if within else Finding.UNDECIDED
