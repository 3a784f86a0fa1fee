"""Where speculation stops paying: the best n at each load, the crossover, a schedule of n.

======  ===========================================================================================
symbol  meaning
======  ===========================================================================================
load    concurrency of a closed loop
n       tokens drafted per step; 0: no speculation
value   output tokens per second of one n at one load
x       log2(n + 1)
a, b    x of the two measured n around an n
σ²      variance of the random walk per unit of x
======  ===========================================================================================

All comparisons are of logarithms, as in :mod:`autotune.stats.launch_variance`. Where the scatter
between launches is known, it widens the intervals.

**A value from its parts.** Each load is measured in several parts of one launch, in the order
1 2 4 8 8 4 2 1, so that a steady drift affects all loads equally. The value is the geometric mean
of the parts. Its variance is that of the parts' own intervals, or that between the parts if it is
larger: the ratio of R. T. Birge ("The calculation of errors by the method of least squares",
Physical Review 40, 1932), never below 1.

**Which n next.** The logarithm of the value is modeled as a random walk in x (H. J. Kushner, "A new
method of locating the maximum point of an arbitrary multipeak curve in the presence of noise",
Journal of Basic Engineering 86, 1964). Between measured n its mean is the line between them, and
its variance is σ²(x - a)(b - x)/(b - a), with σ² from the load's own steps. At each load only the n
between the neighbors of its best n are candidates, or those beyond the best if it is the largest.
The next n has the largest expected gain over the best, summed over the loads (J. Mockus, "On
Bayesian methods for seeking the extremum", 1975).

Where several n are launched at the same time, those that run count with their expected value, as if
they were measured (D. Ginsbourger, R. Le Riche, L. Carraro, "Kriging is well-suited to parallelize
optimization", Computational Intelligence in Expensive Optimization Problems, 2010: the kriging
believer).

**Crossover.** At each load the best n >= 1 has a speed-up over n = 0. The crossover is interpolated
on logarithms of load and speed-up, between the last load at which the speed-up is at least 1 and
the load after it.

**Schedule.** The range of a load begins at the geometric mean with the load before it and ends at
that with the load after it. A schedule should not follow chance, so it has as few ranges as
possible: neighboring loads share an n while some n is not certainly worse than the best at any of
them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from autotune.stats import quantiles
from autotune.stats.launch_variance import Estimate, LaunchVariance, Scatter, SingleLaunch

# Smallest σ of the random walk, per doubling of n + 1: two n may happen to have equal values.
_LEAST_SIGMA = 0.05
# Variance for single launches where nothing is known of how launches differ: the requests' only.
_WITHIN_ONLY = LaunchVariance(Scatter(0.0, 0), 0.0, 0.0)


@dataclass(frozen=True)
class Rate:
    """Value of one n at one load.

    Attributes:
        value: Output tokens per second, positive.
        within: Standard deviation of the value's logarithm within the launch; None: unknown.
    """

    value: float
    within: float | None


Rates = Mapping[int, Mapping[int, Rate]]  # by n, then by load


@dataclass(frozen=True)
class AtLoad:
    """The best n at one load.

    Attributes:
        load: Concurrency.
        best: The n with the highest value, 0 included.
        value: Value of ``best``, in tokens per second.
        ties: Other n that are not certainly worse.
        speedup: Speed-up of ``best`` over n = 0.
        draft: The best n of at least 1; None: none was measured.
        draft_speedup: Speed-up of ``draft`` over n = 0; None: there is no ``draft``.
    """

    load: int
    best: int
    value: Estimate
    ties: tuple[int, ...]
    speedup: Estimate
    draft: int | None
    draft_speedup: Estimate | None


class Where(StrEnum):
    """Where the crossover lies."""

    ABOVE = "above all measured loads"
    BETWEEN = "between measured loads"
    BELOW = "below all measured loads"


@dataclass(frozen=True)
class Crossover:
    """The load above which speculation loses.

    Attributes:
        where: Position of the crossover among the measured loads.
        load: Interpolated concurrency with ``Where.BETWEEN``, else None.
        wins: The last load at which the best n >= 1 is at least as fast as n = 0; None: at none.
        loses: The load after ``wins``; None: there is none.
        surely_wins: The last load at which the interval of the speed-up lies above 1, or None.
        surely_loses: The first load after ``wins`` at which the interval lies below 1, or None.
        also_loses: Loads below ``wins`` at which the speed-up is below 1.
    """

    where: Where
    load: float | None
    wins: int | None
    loses: int | None
    surely_wins: int | None
    surely_loses: int | None
    also_loses: tuple[int, ...]


@dataclass(frozen=True)
class Proposal:
    """The n to launch next.

    Attributes:
        n: Number of tokens drafted per step.
        gain: Largest expected gain at any load over its best n, as a share.
    """

    n: int
    gain: float


Schedule = tuple[tuple[int, int, int], ...]  # first batch size, last batch size, n


def combined(parts: Sequence[Rate]) -> Rate:
    """Return one value from the parts of a launch; see the module.

    >>> round(combined([Rate(90.0, 0.02), Rate(110.0, 0.02)]).value, 2)
    99.5
    """
    logs = np.log([p.value for p in parts])
    value = float(np.exp(logs.mean()))
    known = [p.within for p in parts if p.within is not None]
    if len(known) < len(parts):
        return Rate(value, None)
    inner = sum(w**2 for w in known) / len(parts) ** 2
    outer = float(logs.var(ddof=1)) / len(parts) if len(parts) > 1 else 0.0
    return Rate(value, math.sqrt(max(inner, outer)))


def by_load(rates: Rates, variance: LaunchVariance | None) -> list[AtLoad]:
    """Return the best n at each load at which n = 0 was measured, by ascending load.

    Args:
        rates: Values by n, then by load; n = 0 is among them.
        variance: Scatter of launches of one point; None: the intervals are within one launch.
    """
    out = []
    for load in sorted(rates.get(0, {})):
        here = {n: row[load] for n, row in sorted(rates.items()) if load in row}
        best = max(here, key=lambda n: here[n].value)
        drafts = [n for n in here if n > 0]
        draft = max(drafts, key=lambda n: here[n].value) if drafts else None
        one = Estimate(1.0, 1.0, 1.0)
        out.append(
            AtLoad(
                load=load,
                best=best,
                value=interval(here[best], variance),
                ties=tuple(
                    n
                    for n in here
                    if n != best and not _surely(ratio(here[best], here[n], variance))
                ),
                speedup=one if best == 0 else ratio(here[best], here[0], variance),
                draft=draft,
                draft_speedup=None if draft is None else ratio(here[draft], here[0], variance),
            )
        )
    return out


def interval(rate: Rate, variance: LaunchVariance | None) -> Estimate:
    """Return a value with its 95 % interval."""
    if rate.within is None:
        return Estimate(rate.value, None, None)
    return (variance or _WITHIN_ONLY).point(SingleLaunch(rate.value, rate.within), 1)


def ratio(a: Rate, b: Rate, variance: LaunchVariance | None) -> Estimate:
    """Return the value of one launch over that of another, with its 95 % interval."""
    if a.within is None or b.within is None:
        return Estimate(a.value / b.value, None, None)
    known = variance or _WITHIN_ONLY
    return known.ratio(SingleLaunch(a.value, a.within), SingleLaunch(b.value, b.within))


def _surely(e: Estimate) -> bool:
    """Return whether a ratio is above 1 by its interval."""
    return e.low is not None and e.low > 1


def crossover(at: Sequence[AtLoad]) -> Crossover | None:
    """Return where speculation stops paying; None where no n of at least 1 was measured.

    Args:
        at: Result of :func:`by_load`.
    """
    known = [(x.load, x.draft_speedup) for x in at if x.draft_speedup is not None]
    if not known:
        return None
    loads = [load for load, _ in known]
    won = [i for i, (_, s) in enumerate(known) if s.value >= 1]
    last = won[-1] if won else -1
    sure = [load for load, s in known[: last + 1] if _surely(s)]
    lost = [load for load, s in known[last + 1 :] if s.high is not None and s.high < 1]
    at_load = None
    where = Where.BELOW if not won else Where.ABOVE
    if won and last + 1 < len(known):
        where = Where.BETWEEN
        (a, up), (b, down) = known[last], known[last + 1]
        high, low = math.log(up.value), math.log(down.value)
        at_load = a * (b / a) ** (high / (high - low))
    return Crossover(
        where=where,
        load=at_load,
        wins=loads[last] if won else None,
        loses=loads[last + 1] if last + 1 < len(loads) else None,
        surely_wins=sure[-1] if sure else None,
        surely_loses=lost[0] if lost else None,
        also_loses=tuple(load for i, load in enumerate(loads[: last + 1]) if i not in won),
    )


def propose(rates: Rates, candidates: Iterable[int]) -> Proposal | None:
    """Return the n with the largest expected gain; see the module.

    Args:
        rates: Measured values; at least those of n = 0 and of another n.
        candidates: The n that may be launched; measured ones among them are left out.

    Returns:
        The proposal; None: no n is a candidate, or none is expected to gain.
    """
    measured = sorted(rates)
    loads = [load for load in rates[0] if all(load in rates[n] for n in measured)]
    free = sorted(set(candidates) - set(measured))
    if len(measured) < 2 or not loads or not free:
        return None
    x = np.log2(np.array(measured) + 1.0)
    sums, most = dict.fromkeys(free, 0.0), dict.fromkeys(free, 0.0)
    for load in loads:
        y = _logs(rates, measured, load)
        noise = np.array([rates[n][load].within or 0.0 for n in measured]) ** 2
        at = int(y.argmax())
        sigma2 = max(_LEAST_SIGMA**2, float(np.mean(np.diff(y) ** 2 / np.diff(x))))
        for n in free:
            between = np.searchsorted(measured, n)  # index of the measured n after this one
            if between not in {at, at + 1}:
                continue
            mean, variance = _walk(math.log2(n + 1), x, y, noise, int(between), sigma2)
            gain = _expected_gain(mean - y[at], math.sqrt(variance))
            sums[n] += gain
            most[n] = max(most[n], gain)
    n = max(free, key=lambda k: (sums[k], -k))
    return Proposal(n, math.expm1(most[n])) if sums[n] > 0 else None


def expect(rates: Rates, beside: Iterable[int]) -> dict[int, Mapping[int, Rate]]:
    """Return rates with the expected ones of n that are being launched; see the module.

    So several n can be launched at the same time that are not all next to each other.

    Args:
        rates: Measured values; at least those of n = 0 and of another n.
        beside: The n that are being launched.
    """
    found: dict[int, Mapping[int, Rate]] = dict(rates)
    measured = sorted(rates)
    x = np.log2(np.array(measured) + 1.0)
    for n in sorted(set(beside) - set(measured)):
        row = {}
        for load in rates[0]:
            if all(load in rates[k] for k in measured):
                noise = np.array([rates[k][load].within or 0.0 for k in measured]) ** 2
                at = math.log2(n + 1)
                i = int(np.searchsorted(measured, n))
                mean, variance = _walk(at, x, _logs(rates, measured, load), noise, i, 0.0)
                row[load] = Rate(math.exp(mean), math.sqrt(variance))
        if row:
            found[n] = row
    return found


_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _logs(rates: Rates, measured: Sequence[int], load: int) -> _Array:
    return np.log([rates[n][load].value for n in measured])


def _walk(
    at: float, x: _Array, y: _Array, noise: _Array, i: int, sigma2: float
) -> tuple[float, float]:
    """Return mean and variance of a random walk at ``at``, between x[i - 1] and x[i]."""
    if i == len(x):  # beyond the last n: the variance falls again after one doubling
        d = at - float(x[-1])
        return float(y[-1]), sigma2 * (d if d <= 1 else 1 / d) + float(noise[-1])
    a, b = float(x[i - 1]), float(x[i])
    w = (at - a) / (b - a)
    mean = (1 - w) * y[i - 1] + w * y[i]
    variance = (
        (1 - w) ** 2 * noise[i - 1] + w**2 * noise[i] + sigma2 * (at - a) * (b - at) / (b - a)
    )
    return float(mean), float(variance)


def _expected_gain(mean: float, sigma: float) -> float:
    """Return the expected value of the part of a normal variable above 0."""
    if sigma == 0:
        return max(0.0, mean)
    z = mean / sigma
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return sigma * (density + z * quantiles.normal_probability(z))


def best_fixed(rates: Rates) -> int:
    """Return the n with the highest mean logarithm over all loads of n = 0, equally weighted."""
    loads = list(rates[0])
    whole = [n for n in rates if all(load in rates[n] for load in loads)]
    return max(sorted(whole), key=lambda n: over_loads(rates[n], loads).value)


def over_loads(row: Mapping[int, Rate], loads: Sequence[int]) -> Rate:
    """Return the geometric mean of one n over loads, equally weighted."""
    return mean_rate([row[load] for load in loads])


def mean_rate(rates: Sequence[Rate]) -> Rate:
    """Return the geometric mean of rates of launches or loads, equally weighted; at least one."""
    value = math.exp(sum(math.log(x.value) for x in rates) / len(rates))
    known = [x.within for x in rates if x.within is not None]
    if len(known) < len(rates):
        return Rate(value, None)
    return Rate(value, math.sqrt(sum(w**2 for w in known)) / len(rates))


def schedule(rates: Rates, at: Sequence[AtLoad], most: int) -> Schedule:
    """Return the n for each batch size, in as few ranges as the intervals allow; see the module.

    Args:
        rates: Values as given to :func:`by_load`.
        at: Result of :func:`by_load`.
        most: Largest batch size.

    Returns:
        Ranges of batch sizes, ascending and without gaps from 1 on.
    """
    groups: list[tuple[list[int], set[int]]] = []  # loads, and the n that are good at all of them
    for x in at:
        good = {x.best, *x.ties}
        if groups and (shared := groups[-1][1] & good):
            groups[-1] = ([*groups[-1][0], x.load], shared)
        else:
            groups.append(([x.load], good))
    ends = [math.isqrt(a[0][-1] * b[0][0]) for a, b in itertools.pairwise(groups)]
    starts = [1, *(end + 1 for end in ends)]
    last = max(most, *(x.load for x in at)) if at else most
    ranges: list[tuple[int, int, int]] = []
    for (loads, good), start, end in zip(groups, starts, [*ends, last], strict=True):
        n = max(sorted(good), key=lambda k: over_loads(rates[k], loads).value)
        if ranges and ranges[-1][2] == n:
            ranges[-1] = (ranges[-1][0], end, n)
        else:
            ranges.append((start, end, n))
    return tuple(ranges)
