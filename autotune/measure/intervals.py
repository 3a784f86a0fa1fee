"""How sure one measurement is of its throughput and of a percentile.

Both intervals speak of the launch that was measured: another launch of the same configuration may
have better or worse luck, and only more launches can tell how much. Within a launch requests are
not independent either: the machine's speed wanders, and requests that are preempted come in groups.

**Batch means.** The requests, in the order of sending, are cut into k = 8 batches; the variance of
their sums S_i shows what of the wandering outlives one request. As sums of short batches still
follow each other, it is widened by their own correlation φ:

    long-run variance = k/(k-1) ΣS_i²/n · (1 + φ)/(1 - φ),    φ = (r_1 + 1/k)/(1 - 4/k) in [0, 0.6]

with r_1 the correlation of neighbouring sums and its bias for short series taken back (M. G.
Kendall, "Note on bias in the estimation of autocorrelation", Biometrika 41, 1954). The factor is
that of N-Skart (A. Tafazzoli, N. M. Steiger, J. R. Wilson, "N-Skart: A nonsequential skewness- and
autocorrelation-adjusted batch-means procedure for simulation analysis", IEEE Transactions on
Automatic Control 56, 2011); the limit is ours, because eight sums cannot tell 0.6 from more.

**Throughput.** A closed loop's throughput is the number of its places divided by the place-seconds
of a token: the sum of the requests' times over the sum of their tokens. Student's t with k - 1
degrees holds for that ratio (linearised: W. G. Cochran, "Sampling Techniques", 3rd ed. 1977, 6.4),
here for its logarithm, whose bounds stay positive. In an open loop the arrivals hold throughput
more steady than this says: there the interval is too wide.

**Percentiles.** The number of values below the true percentile is binomial whatever the
distribution, so order statistics bound it (H. A. David, H. N. Nagaraja, "Order Statistics", 3rd ed.
2003, 7.1), at real-valued ranks, or the binomial's steps would make the interval too wide (A. D.
Hutson, "Calculating nonparametric confidence intervals for quantiles using fractional order
statistics", Journal of Applied Statistics 26, 1999). Dependent values count as fewer, as in survey
samples (E. L. Korn, B. I. Graubard, "Confidence intervals for proportions with small expected
number of positive counts estimated from survey data", Survey Methodology 24, 1998):

    n_eff = n / (1 + f(z)²/(q(1 - q)) · (v - 1)),    v = long-run variance / variance

v says how much the values' mean is blurred by dependence; the factor (0.22 for p95) how much of
that reaches the share of values beyond the percentile: the first term of the tetrachoric series of
the correlation of normal values that are cut at their quantile z, f their density (H. Cramér, M. R.
Leadbetter, "Stationary and Related Stochastic Processes", 1967). A bound that n independent values
lack is never given.

Why these: coverage of 95 % by simulation at 100, 200 and 400 requests (``benchmarks/coverage.py``),
log-normal | a machine whose speed drifts, percent.

- Throughput. Ten batches without φ: 94-95 | 87-93. Five: 95 | 92-94. φ from ten or more batches:
  96-97 | 91-95. The spectrum of P. Heidelberger and P. D. Welch (1981) from 25 frequencies: 95 |
  88-95. These eight: 97 | 93-96. A hundred requests hold too little of a slow drift for more.
- p95. Taken as independent: 95 | 90. n_eff from the exceedances' own batch variance, which few
  exceedances leave noisy: 96 | 92-93, and with Student's t and n_eff ≤ n 98 | 96. From normal
  scores instead of values: 96-97 | 95, but 90 instead of 92 where preemptions come in groups.
  These: 96-97 | 95.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats would take two seconds to import

from autotune.measure.measurement import Floats, Measurement

BATCHES = 8  # with fewer, Student's t gives intervals that say nothing
MIN_REQUESTS = 2 * BATCHES
_MOST_CORRELATION = 0.6


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
    if len(m) < MIN_REQUESTS:
        return Interval(None, None, confidence)
    seconds = m.end - m.start
    residuals = seconds - seconds.sum() / m.output_tokens.sum() * m.output_tokens
    error = np.sqrt(long_run_variance(residuals) / len(m)) / seconds.mean()
    factor = float(np.exp(special.stdtrit(BATCHES - 1, (1 + confidence) / 2) * error))
    throughput = m.throughput
    return Interval(throughput / factor, throughput * factor, confidence)


def percentile_interval(values: Floats, percent: float, confidence: float = 0.95) -> Interval:
    """Of a percentile, in the unit of the values; see the module.

    A bound that would lie beyond the smallest or largest value does not exist: for the 95th
    percentile at 95 % confidence the upper one needs 72 independent values (0.95^72 < 0.025).

    Args:
        values: In the order of sending; fewer than 16 are taken as independent.
        percent: Above 0 and below 100.
        confidence: See :class:`Interval`.
    """
    q, tail = percent / 100, (1 - confidence) / 2
    ordered, size = np.sort(values), _effective_size(values, q)
    low, high = (quantile_bound(ordered, size, q, level) for level in (tail, 1 - tail))
    return Interval(low, high, confidence)


def batch_sums(values: Floats) -> Floats:
    """Sums over eight batches of neighbours."""
    return np.add.reduceat(values, np.arange(BATCHES) * len(values) // BATCHES)


def correlation_factor(sums: Floats) -> float:
    """What the variance of batch sums about their mean, 0, is multiplied with; see the module."""
    total = float(np.sum(sums**2))
    r1 = float(np.sum(sums[1:] * sums[:-1])) / total if total else 0.0
    phi = (r1 + 1 / len(sums)) / (1 - 4 / len(sums))
    phi = min(max(phi, 0.0), _MOST_CORRELATION)
    return (1 + phi) / (1 - phi)


def long_run_variance(residuals: Floats) -> float:
    """Of residuals with sum 0: the variance of their mean, times their number."""
    sums = batch_sums(residuals)
    variance = float(np.sum(sums**2)) * BATCHES / (BATCHES - 1) / len(residuals)
    return variance * correlation_factor(sums)


def _effective_size(values: Floats, q: float) -> float:
    """So many independent values would tell as much of the ``q`` quantile."""
    variance = float(np.var(values))
    if len(values) < MIN_REQUESTS or variance == 0:
        return len(values)
    ratio = long_run_variance(values - values.mean()) / variance
    density2 = float(np.exp(-(special.ndtri(q) ** 2))) / (2 * np.pi)
    return len(values) / (1 + density2 / (q * (1 - q)) * (ratio - 1))


def quantile_bound(ordered: Floats, size: float, q: float, level: float) -> float | None:
    """The point below which the true ``q`` quantile is with probability ``level`` (Hutson).

    Args:
        ordered: All values, ascending.
        size: So many independent values would tell as much.
        q: Between 0 and 1.
        level: Between 0 and 1.
    """
    n = len(ordered)
    if (1 - q) ** n > level or q**n > 1 - level:  # it lies below all values, or above
        return None
    # P(at most `below` of `size` values are below the quantile) = level; 0 where there is none
    below = float(special.bdtrik(level, size, q))
    position = (below + 1) * (n + 1) / (size + 1)
    if below <= 0 or not 1 <= position <= n:
        return None
    return float(np.interp(position, np.arange(1, n + 1), ordered))
