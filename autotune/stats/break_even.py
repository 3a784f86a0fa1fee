"""Break-even of drafting: the acceptance length at which tok/s equal those without speculation.

======  ===========================================================================================
symbol  meaning
======  ===========================================================================================
n       tokens drafted per step; 0: no speculation
C       concurrency of a closed loop
X       output tokens per second
y       seconds of one output token of one request, C / X
L       acceptance length: tokens per step
u       1 / L: steps per token
a, b    prefill of a request per output token; time of a step
w       position between two measured u: 0 at that of the lower L, 1 at that of the higher L
D       y of a draft less y of n = 0
V, t    variance of D; Student's t
L*      break-even: L at which D = 0
Q       acceptance length of a draft at the largest n, which stands for its quality
======  ===========================================================================================

**The law.** A request takes prefill + steps · step time, and its steps are tokens / L. In a closed
loop C / X is that time per output token (J. D. C. Little, "A Proof for the Queuing Formula: L =
λW", Operations Research 9, 1961):

    y = a + b · u

A step of C requests also carries the prompt tokens that enter while it runs. Their number per
output token does not depend on L, because every output token brings prompt / output of them; it is
part of a, and b is the step without them. So y is a line in u, and two launches of an n, with a
lower and a higher L, give all others. Where b depends on L in another way (KV caches that are
filled to another degree, graphs of another size), the line is an interpolation between the two, and
the check of a point on it shows the error.

**Break-even.** With y_l and y_h of the two launches and y_0 of n = 0 at the same load, D(w) =
(1 − w) y_l + w y_h − y_0, and V(w) = (1 − w)² var y_l + w² var y_h + var y_0. The interval of its
zero is the set of all w whose D is not certainly different from 0, D² ≤ t² V: E. C. Fieller ("Some
Problems in Interval Estimation", Journal of the Royal Statistical Society B 16, 1954). It is the
inside of a parabola's roots, or unbounded where the two launches hardly differ. A standard
deviation of y is y times that of the logarithm, which has the scatter between launches, shared by
all, and that within each launch (:mod:`autotune.stats.launch_variance`). The degrees of freedom
are those of F. E. Satterthwaite (1946).

**Which n.** L of different n do not compare: a draft has more at a larger n. A draft is one number
Q only along a family of curves, L_n(Q). For each n the break-even is then a Q, and a draft needs
the least of them. Its lower bound is the least of the n's lower bounds. Its upper bound is the
least of upper bounds whose error is shared by all n (C. E. Bonferroni), because the least of many
is too small by selection. At each Q the best n is the one with the largest 1 / y.

All functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.stats import quantiles
from autotune.stats.intervals import BATCHES
from autotune.stats.launch_variance import Estimate, LaunchVariance
from autotune.stats.measurement import Floats

_GRID = 801  # drafts of a family, up to a first position that is certain; and beyond


@dataclass(frozen=True)
class Speed:
    """Throughput of one point at one load.

    Attributes:
        value: Output tokens per second, positive.
        within: Standard error of its logarithm by a launch's own requests; None: unknown.
        launches: Number of launches that ``value`` is the mean of.
    """

    value: float
    within: float | None
    launches: int = 1


@dataclass(frozen=True)
class Played:
    """One n that was launched with a given acceptance.

    Attributes:
        length: L, more than 1.
        speed: Its throughput.
    """

    length: float
    speed: Speed


@dataclass(frozen=True)
class BreakEven:
    """Break-even of one n at one load.

    Attributes:
        n: Tokens drafted per step.
        lower: The launch with the lower acceptance.
        higher: The launch with the higher acceptance.
        length: L*, with its interval; infinite: no acceptance pays by the two launches. A bound
            that is None is unknown. It may lie outside of what a draft of n can have, 1 … n + 1.
    """

    n: int
    lower: Played
    higher: Played
    length: Estimate

    @property
    def reachable(self) -> bool:
        """Whether a draft of n can have this acceptance length."""
        return self.length.value <= self.n + 1

    def rate(self, length: float) -> float:
        """Return tok/s at an acceptance length, by the line through the two launches."""
        return rate_between(self.lower, self.higher, length)


def rate_between(lower: Played, higher: Played, length: float) -> float:
    """Return tok/s at an acceptance length, by the line in 1 / L through two launches.

    Args:
        lower: The launch with the lower L.
        higher: The launch with the higher L.
        length: L, at least 1.

    Returns:
        Output tokens per second; infinite where the line reaches 0.
    """
    w = (1 / length - 1 / lower.length) / (1 / higher.length - 1 / lower.length)
    y = (1 - w) / lower.speed.value + w / higher.speed.value
    return 1 / y if y > 0 else math.inf


def break_even(
    n: int,
    lower: Played,
    higher: Played,
    none: Speed,
    variance: LaunchVariance | None,
    confidence: float = 0.95,
) -> BreakEven:
    """Return the break-even of one n at one load; see the module.

    Args:
        n: Tokens drafted per step, at least 1.
        lower: Launch with the lower acceptance length.
        higher: Launch with the higher one.
        none: Throughput without speculation at the same load.
        variance: Launch-to-launch variance; None: the interval is within the launches.
        confidence: Confidence of the interval.

    Raises:
        ValueError: the lengths are not in this order, above 1.
    """
    if not 1 < lower.length < higher.length:
        raise ValueError(
            f"acceptance lengths {lower.length:g} and {higher.length:g} are not ascending from 1 on"
        )
    y_low, y_high, y_none = (1 / s.value for s in (lower.speed, higher.speed, none))
    u_low, u_high = 1 / lower.length, 1 / higher.length
    slope = y_high - y_low

    def length(w: float) -> float:
        u = u_low + w * (u_high - u_low)
        return 1 / u if u > 0 else math.inf

    if slope >= 0:  # more accepted tokens are no faster: the launches say nothing
        value = math.inf if y_low > y_none else 1.0
        return BreakEven(n, lower, higher, Estimate(value, None, None))
    root = (y_none - y_low) / slope
    bounds = _fieller(
        (y_low, y_high, y_none), (lower.speed, higher.speed, none), root, variance, confidence
    )
    found = (None, None) if bounds is None else (length(bounds[0]), length(bounds[1]))
    return BreakEven(n, lower, higher, Estimate(length(root), *found))


def _fieller(
    y: tuple[float, float, float],
    speeds: tuple[Speed, Speed, Speed],
    root: float,
    variance: LaunchVariance | None,
    confidence: float,
) -> tuple[float, float] | None:
    """Return the lowest and the highest w that are not excluded; None: they have no bounds.

    Args:
        y: Seconds per token of the lower, the higher, and n = 0.
        speeds: Their throughput.
        root: w at which D = 0.
        variance: Launch-to-launch variance, or None.
        confidence: Confidence of the interval.
    """
    within = [s.within for s in speeds]
    own = [w**2 / s.launches for w, s in zip(within, speeds, strict=True) if w is not None]
    if len(own) < len(speeds):
        return None
    shares = [1 / s.launches for s in speeds]
    known = variance is not None and variance.total.degrees > 0
    seen2 = variance.total.sigma**2 if variance is not None and known else 0.0
    explained2 = variance.within**2 if variance is not None and known else 0.0
    of_launches = max(seen2, explained2)
    # variance of each y, and the part of it that all launches share the estimate of
    shared = [v**2 * share * of_launches for v, share in zip(y, shares, strict=True)]
    more = [
        v**2 * max(0.0, o - share * explained2) for v, o, share in zip(y, own, shares, strict=True)
    ]
    low, high, none = (s + m for s, m in zip(shared, more, strict=True))
    weights = ((1 - root) ** 2, root**2, 1.0)
    total = sum(c * (s + m) for c, s, m in zip(weights, shared, more, strict=True))
    if total <= 0:
        return root, root
    requests = [
        v**2 * max(o, share * explained2) for v, o, share in zip(y, own, shares, strict=True)
    ]
    parts = sum((c * r) ** 2 for c, r in zip(weights, requests, strict=True)) / (BATCHES - 1)
    if variance is not None and known:
        seen = sum(c * v**2 * share for c, v, share in zip(weights, y, shares, strict=True)) * seen2
        parts += seen**2 / variance.total.degrees
    degrees = total**2 / parts if parts > 0 else float(BATCHES - 1)
    k = quantiles.student_t(degrees, (1 + confidence) / 2) ** 2
    y_low, y_high, y_none = y
    slope, offset = y_high - y_low, y_low - y_none
    # D(w)² − k V(w) = square · w² + 2 · half · w + constant
    square = slope**2 - k * (low + high)
    half = slope * offset + k * low
    constant = offset**2 - k * (low + none)
    inside = half**2 - square * constant
    if square <= 0 or inside < 0:
        return None
    return (-half - math.sqrt(inside)) / square, (-half + math.sqrt(inside)) / square


@dataclass(frozen=True)
class Range:
    """Qualities of a draft at which one n is the fastest.

    Attributes:
        low: Lowest Q.
        high: Highest Q.
        n: The fastest n; 0: drafting does not pay.
    """

    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Needed:
    """What a draft must reach at one load, along a family of curves.

    Attributes:
        quality: Q at which the best n equals n = 0, with its interval; infinite: no draft of the
            family pays.
        n: The n that pays first; None: none does.
        by_n: Q at which each n equals n = 0; infinite: no draft of the family reaches it.
        ranges: The best n by Q, from the lowest Q to the highest, without gaps.
    """

    quality: Estimate
    n: int | None
    by_n: Mapping[int, Estimate]
    ranges: tuple[Range, ...]


@dataclass(frozen=True)
class Family:
    """Curves of drafts of ascending quality.

    Attributes:
        quality: Q of each, ascending.
        lengths: L_n of each, for every n: ascending, as many as ``quality``.
    """

    quality: Floats
    lengths: Mapping[int, Floats]

    def quality_of(self, n: int, length: float) -> float:
        """Return the least Q at which a draft of n has a length; infinite: it has it at no Q."""
        lengths = self.lengths[n]
        if length > lengths[-1]:
            return math.inf
        # several drafts may have the same length, where their first positions are certain
        i = int(np.searchsorted(lengths, length))
        around = slice(max(0, i - 1), i + 1)
        return float(np.interp(length, lengths[around], self.quality[around]))

    def length_of(self, n: int, quality: float) -> float:
        """Return the length of a draft of n with a quality."""
        return float(np.interp(quality, self.quality, self.lengths[n]))


def needed(
    found: Sequence[BreakEven],
    none: Speed,
    family: Family,
    variance: LaunchVariance | None,
    confidence: float = 0.95,
) -> Needed:
    """Return what a draft must reach at one load, and the n that it wants; see the module.

    Args:
        found: Break-even of each n at this load, at least one.
        none: Throughput without speculation.
        family: Curves of drafts.
        variance: As in :func:`break_even`.
        confidence: Confidence of the interval.
    """
    by_n = {x.n: _qualities(x, x.length, family) for x in found}
    shared = 1 - (1 - confidence) / len(found)
    upper = {
        x.n: _qualities(
            x, break_even(x.n, x.lower, x.higher, none, variance, shared).length, family
        ).high
        for x in found
    }
    first = min(by_n, key=lambda n: by_n[n].value)
    value = by_n[first].value
    lows = [e.low for e in by_n.values()]
    highs = [high for high in upper.values() if high is not None]
    low = None if None in lows else min(x for x in lows if x is not None)
    high = max(value, min(highs)) if highs else None
    return Needed(
        quality=Estimate(value, low, high),
        n=None if math.isinf(value) else first,
        by_n=by_n,
        ranges=_ranges(found, none, family),
    )


def _qualities(x: BreakEven, length: Estimate, family: Family) -> Estimate:
    low, high = (
        None if b is None else family.quality_of(x.n, b) for b in (length.low, length.high)
    )
    return Estimate(family.quality_of(x.n, length.value), low, high)


def _ranges(found: Sequence[BreakEven], none: Speed, family: Family) -> tuple[Range, ...]:
    """Return the best n by quality; neighbors with the same n are one range."""
    ns = [0, *(x.n for x in found)]
    rates = np.array(
        [
            np.full(len(family.quality), none.value),
            *([x.rate(float(v)) for v in family.lengths[x.n]] for x in found),
        ]
    )
    best = [ns[int(i)] for i in rates.argmax(axis=0)]  # of equally fast ones the smallest n
    out: list[Range] = []
    for q, n in zip(family.quality, best, strict=True):
        if out and out[-1].n == n:
            out[-1] = Range(out[-1].low, float(q), n)
        else:
            start = float(q) if not out else (out[-1].high + float(q)) / 2
            if out:
                out[-1] = Range(out[-1].low, start, out[-1].n)
            out.append(Range(start, float(q), n))
    return tuple(out)


def family(decay: float, ns: Sequence[int]) -> Family:
    """Return the drafts whose conditional acceptance is min(1, a · decay^(i-1)) at position i.

    Their quality Q is the acceptance length at the largest n.

    Args:
        decay: Factor from one position to the next, above 0; 1: all positions are equal.
        ns: The n to have the lengths of, each at least 1.

    Raises:
        ValueError: the decay is not positive and finite, or there is no n.
    """
    if not 0 < decay < math.inf:
        raise ValueError(f"decay {decay:g} is not above 0 and finite")
    if not ns or min(ns) < 1:
        raise ValueError("a family of drafts is for n of at least 1")
    most = max(ns)
    top = max(0.0, (1 - most) * math.log(decay))  # of log a, at which every position is certain
    first = np.linspace(0, 1, _GRID)
    if top > 0:
        first = np.concatenate([first, np.exp(np.linspace(0, top, _GRID)[1:])])
    position = decay ** np.arange(most)
    lengths = 1 + np.cumsum(np.cumprod(np.minimum(1, np.outer(first, position)), axis=1), axis=1)
    return Family(lengths[:, most - 1], {n: lengths[:, n - 1] for n in ns})
