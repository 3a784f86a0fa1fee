"""Which way to speculate wins at each load: rivals against the best fixed n, and where they cross.

=======  ==========================================================================================
symbol   meaning
=======  ==========================================================================================
way      a fixed n, a schedule of n by batch size, adaptive verification, another draft
fixed    the way to beat at a load: its best fixed n, chosen before the launches that are compared
rival    any other way
ratio    geometric mean of the rival's launches over that of the fixed n's, at one load
R        number of rivals that are compared
=======  ==========================================================================================

**Launches.** Each launch serves one way and is measured at every load. Ways are launched there and
back, A B C C B A, as often as whole rounds fit into the launches that are asked for. A machine that
gets steadily faster or slower then affects all ways equally, and the difference of the means is the
mean of the paired differences. The launches that chose the fixed n and the rivals do not count, so
a ratio has no selection bias.

**Ratio.** Launches of one way at one load scatter around their mean. The scatter is pooled over the
ways, at each load for itself, because launches differ more at some loads than at others; its
degrees of freedom are the launches less the ways. It is never below what the requests explain
(:class:`autotune.stats.launch_variance.LaunchVariance`). Pairing is not also taken out of the
scatter: see :mod:`autotune.search.confirmation`.

**Verdict.** At a load, a rival replaces the fixed n only if its interval lies above 1. The
confidence is 1 - 0.05 / R (C. E. Bonferroni, "Teoria statistica delle classi e calcolo delle
probabilità", 1936), so a load at which all ways are equal is given to a rival in at most 2.5 % of
the cases, with any number of rivals. The loads are judged one by one: with several loads the chance
of one wrong verdict is larger.

**Crossover.** The logarithm of the ratio is interpolated on the logarithm of the load, and so are
both bounds. The crossover is the last load at which the ratio passes 1. Its interval has the loads
around it at which 1 lies between the bounds: those that the launches do not rule out (E. C.
Fieller, "Some problems in interval estimation", Journal of the Royal Statistical Society B 16,
1954). Interpolated bounds are at least as wide as those of an interpolated ratio would be.

``benchmarks/referee.py`` simulates all three: how often the intervals hold the truth, and how often
a verdict is wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

import numpy as np

from autotune.stats.crossover import Rate
from autotune.stats.launch_variance import (
    Estimate,
    LaunchVariance,
    Scatter,
    SingleLaunch,
)

ERROR = 0.05  # of the intervals of all rivals at one load together

K = TypeVar("K", bound=Hashable)
# Launches of each way, oldest first; of each launch its rates, by load.
Runs = Mapping[K, Sequence[Mapping[int, Rate]]]


class Verdict(StrEnum):
    """Result of a comparison at one load."""

    RIVAL = "the rival is certainly faster"
    FIXED = "the fixed n is certainly faster"
    TIE = "neither is certainly faster"


@dataclass(frozen=True)
class Compared(Generic[K]):
    """A rival against the best fixed n at one load.

    Attributes:
        load: Concurrency.
        fixed: The way to beat.
        rival: The rival.
        ratio: Rate of the rival over that of the fixed n.
        launches: Number of compared launches of the rival and of the fixed n.
    """

    load: int
    fixed: K
    rival: K
    ratio: Estimate
    launches: tuple[int, int]

    @property
    def verdict(self) -> Verdict:
        """Verdict by the ratio's interval."""
        if self.ratio.low is not None and self.ratio.low > 1:
            return Verdict.RIVAL
        if self.ratio.high is not None and self.ratio.high < 1:
            return Verdict.FIXED
        return Verdict.TIE


@dataclass(frozen=True)
class Crossing:
    """The load at which a ratio passes 1 for the last time.

    Attributes:
        load: Interpolated concurrency; None: the ratio is on one side of 1 at all measured loads.
        low: Lower bound of ``load``; None: the measured loads do not bound it.
        high: Upper bound of ``load``; None: the measured loads do not bound it.
        wins_above: Whether the ratio is at least 1 above ``load``; at all loads if that is None.
    """

    load: float | None
    low: float | None
    high: float | None
    wins_above: bool


def there_and_back(ways: Sequence[K], launches: int) -> list[K]:
    """Return the order of launches, in whole rounds there and back, at least one.

    More launches only add to the order, so a run that is asked for more goes on with it.

    >>> there_and_back("AB", 8)
    ['A', 'B', 'B', 'A', 'A', 'B', 'B', 'A']
    >>> there_and_back("ABC", 8)
    ['A', 'B', 'C', 'C', 'B', 'A']
    """
    if not ways:
        return []
    return [*ways, *reversed(ways)] * max(1, launches // (2 * len(ways)))


def compare(
    runs: Runs[K],
    fixed: Mapping[int, K],
    rivals: Sequence[K],
    variance: LaunchVariance | None,
) -> list[Compared[K]]:
    """Return each rival against the fixed n of each load, by ascending load, then by rival.

    Args:
        runs: The launches that count; a way without any is left out.
        fixed: The way to beat, by load.
        rivals: What is compared with it; the fixed one itself is left out.
        variance: Scatter of launches, used where no way was launched twice; None: the intervals are
            then within one launch.
    """
    confidence = 1 - ERROR / max(1, len(rivals))
    out = []
    for load in sorted(fixed):
        here = {way: [x[load] for x in launches if load in x] for way, launches in runs.items()}
        ratio = _ratios([x for x in here.values() if x], variance, confidence)
        base = here.get(fixed[load])
        for rival in rivals:
            if base and rival != fixed[load] and (found := here.get(rival)):
                launches = (len(found), len(base))
                out.append(Compared(load, fixed[load], rival, ratio(found, base), launches))
    return out


def _ratios(
    groups: Sequence[Sequence[Rate]], variance: LaunchVariance | None, confidence: float
) -> Callable[[Sequence[Rate], Sequence[Rate]], Estimate]:
    """Return what gives the ratio of two groups of launches by the scatter within all groups."""
    scatter = Scatter.pooled([[x.value for x in g] for g in groups])
    if any(x.within is None for g in groups for x in g):  # too few requests for an interval
        return lambda a, b: scatter.ratio(_values(a), _values(b), confidence)
    known = LaunchVariance.of([[_launch([x]) for x in g] for g in groups]) or variance
    known = known or LaunchVariance(Scatter(0.0, 0), 0.0, 0.0)
    return lambda a, b: known.ratio(_launch(a), _launch(b), (len(a), len(b)), confidence)


def _values(rates: Sequence[Rate]) -> list[float]:
    return [x.value for x in rates]


def _launch(rates: Sequence[Rate]) -> SingleLaunch:
    """Return the mean of launches, with the standard error of one of them."""
    value = math.exp(float(np.mean(np.log(_values(rates)))))
    return SingleLaunch(value, math.sqrt(float(np.mean([(x.within or 0.0) ** 2 for x in rates]))))


def winners(compared: Sequence[Compared[K]]) -> dict[int, K]:
    """Return what to serve at each load: the fastest rival that certainly wins, or the fixed n."""
    out: dict[int, K] = {}
    for load, group in itertools.groupby(compared, key=lambda x: x.load):
        here = list(group)
        sure = [x for x in here if x.verdict is Verdict.RIVAL]
        out[load] = max(sure, key=lambda x: x.ratio.value).rival if sure else here[0].fixed
    return out


def crossing(ratios: Mapping[int, Estimate]) -> Crossing | None:
    """Return where a ratio passes 1 for the last time; None: no ratio is given.

    Args:
        ratios: Ratios by load; a bound of None is none.
    """
    loads = sorted(ratios)
    if not loads:
        return None
    wins = [ratios[x].value >= 1 for x in loads]
    last = next((i for i in range(len(loads) - 1, 0, -1) if wins[i] != wins[i - 1]), None)
    if last is None:
        return Crossing(None, None, None, wins[-1])
    x = [math.log(load) for load in loads]
    logs = [math.log(ratios[load].value) for load in loads]
    lows = [-math.inf if (e := ratios[load].low) is None else math.log(e) for load in loads]
    highs = [math.inf if (e := ratios[load].high) is None else math.log(e) for load in loads]

    def bound(outside: int, inside: int) -> float:
        """Return the load between two points at which 1 leaves the bounds."""
        bounds = lows if lows[outside] > 0 else highs
        return math.exp(_zero(x, bounds, outside, inside))

    out = [i for i in range(len(x)) if lows[i] > 0 or highs[i] < 0]
    below = [i for i in out if i < last]
    above = [i for i in out if i >= last]
    return Crossing(
        load=math.exp(_zero(x, logs, last - 1, last)),
        low=bound(below[-1], below[-1] + 1) if below else None,
        high=bound(above[0], above[0] - 1) if above else None,
        wins_above=wins[last],
    )


def _zero(x: Sequence[float], y: Sequence[float], a: int, b: int) -> float:
    """Return where the line through the points ``a`` and ``b`` is zero; ``y[a]`` is finite."""
    if math.isinf(y[b]):
        return x[a]
    return x[a] + (x[b] - x[a]) * (y[a] / (y[a] - y[b]))
