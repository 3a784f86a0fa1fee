"""How sure one measurement is of its throughput and of a percentile.

Both intervals speak of the launch that was measured: another launch of the same configuration may
have better or worse luck, and only more launches can tell how much.

Throughput: batch means of a ratio. A closed loop's throughput is the number of its places divided
by the place-seconds of a token: the sum of the requests' times over the sum of their tokens. The
requests, in the order of sending, are cut into batches; sums over batches are nearly independent
even where neighbouring requests are not, so Student's t holds for their ratio (C. Chien,
D. Goldsman, B. Melamed, "Large-sample results for batch means", Management Science 43, 1997; ratio
by linearisation, W. G. Cochran, "Sampling Techniques", 3rd ed. 1977, 6.4). Ten batches, the fewest
that B. Schmeiser recommends ("Batch size effects in the analysis of simulation output", Operations
Research 30, 1982), as long batches bear correlation best; 20 were tried and covered less. So was
cutting time instead of requests: a long request lies on both sides of a cut, and 90 to 92 % were
covered. In an open loop the arrivals hold throughput more steady than this says: there the interval
is too wide.

Percentiles: the number of values below the true percentile is binomial whatever the distribution,
so order statistics bound it (H. A. David, H. N. Nagaraja, "Order Statistics", 3rd ed. 2003, 7.1);
interpolated between neighbours, or the steps of the binomial would make the interval too wide
(J. Nyblom, "Note on interpolated order statistics", Statistics & Probability Letters 14, 1992). It
takes the latencies as independent: under drift or autocorrelation it is too narrow
(``benchmarks/coverage.py`` shows how much).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats would take two seconds to import

from autotune.measure.measurement import Floats, Measurement

_BATCHES = 10
_MIN_BATCHES = 8  # Student's t with fewer gives intervals that say nothing


@dataclass(frozen=True)
class Interval:
    """Bounds that hold the true value with probability ``confidence``.

    Attributes:
        low: None: too few requests to bound it from below.
        high: None: too few requests to bound it from above.
        confidence: Such as 0.95; half of the rest on each side.
    """

    low: float | None
    high: float | None
    confidence: float

    def scaled(self, factor: float) -> Interval:
        """The same interval in another unit."""
        low, high = (None if x is None else x * factor for x in (self.low, self.high))
        return Interval(low, high, self.confidence)


def throughput_interval(m: Measurement, confidence: float = 0.95) -> Interval:
    """Of :attr:`Measurement.throughput`, output tokens per second; see the module.

    It does not exist for fewer than 16 requests: eight batches of two.
    """
    batches = min(_BATCHES, len(m) // 2)
    if batches < _MIN_BATCHES:
        return Interval(None, None, confidence)
    cuts = np.arange(batches) * len(m) // batches
    seconds = np.add.reduceat(m.end - m.start, cuts)
    tokens = np.add.reduceat(m.output_tokens, cuts)
    ratio = seconds.sum() / tokens.sum()
    spread = float(np.sqrt(np.sum((seconds - ratio * tokens) ** 2) * batches / (batches - 1)))
    t = float(special.stdtrit(batches - 1, (1 + confidence) / 2))
    # relative half-width of seconds per token; throughput is its inverse
    half = t * spread / float(seconds.sum())
    return Interval(
        m.throughput / (1 + half), m.throughput / (1 - half) if half < 1 else None, confidence
    )


def percentile_interval(values: Floats, percent: float, confidence: float = 0.95) -> Interval:
    """Of a percentile of independent values, in their unit; see the module.

    A bound that would lie beyond the smallest or largest value does not exist: for the 95th
    percentile at 95 % confidence the upper one needs 72 values (0.95^72 < 0.025).
    """
    ordered, q = np.sort(values), percent / 100
    tail = (1 - confidence) / 2
    return Interval(_bound(ordered, q, tail), _bound(ordered, q, 1 - tail), confidence)


def _bound(ordered: Floats, q: float, level: float) -> float | None:
    """The point below which the true ``q`` quantile is with probability ``level`` (Nyblom)."""
    n = len(ordered)
    # chance[r - 1] = P(quantile <= r-th smallest) = P(at most r - 1 of n are below the quantile)
    chance = special.bdtr(np.arange(n), n, q)
    r = int(np.searchsorted(chance, level, side="right"))  # chance[r - 1] <= level < chance[r]
    if r == 0 or (r == n and chance[-1] < level):
        return None
    if r == n:
        return float(ordered[-1])
    over, under = float(chance[r]) - level, level - float(chance[r - 1])
    weight = 1 / (1 + r * (1 - q) * over / ((n - r) * q * under)) if under > 0 else 0.0
    return float((1 - weight) * ordered[r - 1] + weight * ordered[r])
