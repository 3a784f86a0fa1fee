"""Intervals of one measurement: of its throughput and of a percentile.

=======  ==========================================================================================
symbol   meaning
=======  ==========================================================================================
n        number of requests, or of values
k        number of batches, 8
S_i      sum of the residuals of batch i
r_1      correlation of neighboring sums
φ        r_1 with its bias for short series removed, limited to 0 … 0.6
B        backlog of an open loop: tokens of the requests that have arrived less the delivered tokens
q, z     quantile as a share, and the normal distribution's value there
f, He_k  density of the normal distribution, and Hermite's polynomial of degree k
v        long-run variance over variance
ρ        correlation of neighbors of an AR(1) process with this v
n_eff    number of independent values that are as informative as the n values
=======  ==========================================================================================

Both intervals hold for the launch that was measured. Another launch of the same configuration may
be faster or slower, and only more launches show by how much
(:mod:`autotune.stats.launch_variance`). Within a launch requests are not independent, either: the
machine's speed wanders, and preempted requests come in groups.

**Batch means.** The requests, in the order of sending, are cut into k batches. The variance of
their sums S_i contains the wandering that outlasts one request. Sums of short batches are still
correlated, so the variance is widened by their own correlation φ:

    long-run variance = k/(k-1) ΣS_i²/n · (1 + φ)/(1 - φ),    φ = (r_1 + 1/k)/(1 - 4/k) in [0, 0.6]

The correction of r_1 is that of M. G. Kendall ("Note on bias in the estimation of autocorrelation",
Biometrika 41, 1954). The factor is that of N-Skart (A. Tafazzoli, N. M. Steiger, J. R. Wilson,
"N-Skart: A nonsequential skewness- and autocorrelation-adjusted batch-means procedure for
simulation analysis", IEEE Transactions on Automatic Control 56, 2011). The limit of 0.6 is
autotune's, because eight sums cannot distinguish 0.6 from more.

**Throughput.** A closed loop's throughput is its concurrency divided by the seconds of a token: the
sum of the requests' seconds over the sum of their tokens. Student's t with k - 1 degrees of freedom
holds for that ratio (linearized: W. G. Cochran, "Sampling Techniques", 3rd ed. 1977, 6.4). Here it
is used for the ratio's logarithm, so that the bounds stay positive.

In an open loop the arrivals are given, and the backlog B at the end of the window is random. If the
server keeps up, B only wanders; its standard deviation over eight times, as a share of the tokens,
is the standard error. If B grows, the server is the limit, and the tokens of the eight eighths
count as batches. B grows if a straight line through the eight values rises at the 1 % level, and by
more than four times the square root of the number of requests under way, which is the standard
deviation of such a number. The line alone was wrong for a third of the runs of some arrival
processes, whose standard errors were then 20 times too large.

**Percentiles.** The number of values below the true percentile is binomial for any distribution, so
order statistics bound the percentile (H. A. David, H. N. Nagaraja, "Order Statistics", 3rd ed.
2003, 7.1). Their ranks are real-valued, because the binomial's steps would make the interval too
wide (A. D. Hutson, "Calculating nonparametric confidence intervals for quantiles using fractional
order statistics", Journal of Applied Statistics 26, 1999). Dependent values count as fewer, as in
survey samples (E. L. Korn, B. I. Graubard, "Confidence intervals for proportions with small
expected number of positive counts estimated from survey data", Survey Methodology 24, 1998):

    n_eff = n / (1 + Σ_k c_k · 2ρ^k/(1 - ρ^k)),    c_k = He_{k-1}(z)² f(z)²/(k! q(1 - q)),
    ρ = (v - 1)/(v + 1),    v = long-run variance / variance

v is the factor by which dependence increases the variance of the values' mean. The sum says how
much of that reaches the share of values beyond the percentile. It is the tetrachoric series of the
correlation of normal values that are cut at their quantile z (H. Cramér, M. R. Leadbetter,
"Stationary and Related Stochastic Processes", 1967), summed over the lags of an AR(1) process with
that v. With its first term alone (0.22 (v - 1) for p95) intervals held 90 % for AR(1) 0.8; with the
sum they hold 93 to 95 %. A bound that n independent values lack is never given, and n_eff never
exceeds n.

The estimate is the median-unbiased one (type 8 of R. J. Hyndman, Y. Fan, "Sample quantiles
in statistical packages", The American Statistician 50, 1996). NumPy's default, type 7, is too small
for few values: at 32 requests the median p95 of log-normal times is 4 % too small and that of three
modes 21 %, at 400 requests 0.4 %. Trials of different length were therefore not comparable. Type 8
is off by at most 0.3 % at 32 requests in both. Its logarithm scatters by 13 % more at 32 log-normal
requests, and by 3 % more at 100.

**Standard errors.** An interval has to hold the truth, so its half-width is more than the scatter:
it includes Student's t at 7 degrees, and (1 + φ)/(1 - φ), which is 1.79 on average for independent
requests because φ is cut off at 0. `Interval.error` is the standard error of the logarithm without
both, which a surrogate or a comparison of launches needs. For percentiles it is half the width of
the interval at 68.3 %, with v / 1.79 for v. By simulation its root mean square is 0.91 to 1.05 of
the true one for tok/s, and 1.03 to 1.24 for p95, from a hundred requests on that are independent
and have one mode.

**Alternatives.** Coverage of 95 % intervals in percent, by simulation of 4000 runs at 100, 200 and
400 requests: log-normal | a machine whose speed drifts (``benchmarks/coverage.py`` has all loads).

- Throughput. Ten batches without φ: 95 | 87-92. Five: 95 | 92-94. φ from ten or more batches:
  96-97 | 90-96. The spectrum of P. Heidelberger and P. D. Welch (1981) from 25 frequencies: 95-96 |
  87-95. The eight batches used here: 97 | 94-96. A hundred requests contain too little of a slow
  drift for more.
- p95. Taken as independent: 95 | 89-91. n_eff from the exceedances' own batch variance, which is
  noisy because exceedances are few: 95 | 94, and with Student's t and n_eff ≤ n 98-99 | 97. From
  normal scores instead of values: 96-97 | 96-97, but 92 instead of 93-94 where preemptions come in
  groups. The method used here: 96-97 | 96.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autotune.stats import quantiles
from autotune.stats.measurement import Floats, Measurement

BATCHES = 8  # with fewer, Student's t gives intervals too wide to use
MIN_REQUESTS = 2 * BATCHES
_MOST_CORRELATION = 0.6
# Mean of (1 + φ)/(1 - φ) where requests are independent (20 to 800 requests, by simulation). It is
# above 1 because φ is cut off at 0.
MEAN_FACTOR = 1.79
_GROWS = 4.0  # standard deviations of a backlog that keeps its size
_ONE_SIGMA = 0.6826894921370859  # confidence of ± one standard error


@dataclass(frozen=True)
class Interval:
    """Bounds that hold the true value with probability ``confidence``.

    Attributes:
        low: Lower bound; None: too few requests for one.
        high: Upper bound; None: too few requests for one.
        confidence: Confidence, such as 0.95; half of the remainder is on each side.
        error: Standard error of the estimate's logarithm; None: unknown, or only to be inferred
            from the bounds (:func:`standard_error`).
    """

    low: float | None
    high: float | None
    confidence: float
    error: float | None = None

    def scaled(self, factor: float) -> Interval:
        """Return the interval in another unit: its bounds times ``factor``."""
        low, high = (None if x is None else x * factor for x in (self.low, self.high))
        return Interval(low, high, self.confidence, self.error)


def standard_error(value: float, interval: Interval) -> float | None:
    """Return the standard error of a value's logarithm.

    It is that of the interval. Where a user's objective gives only bounds, it is the mean distance
    of their logarithms from the value's, in units of the normal quantile; one bound is enough.

    Returns:
        The standard error; None: both bounds are missing or not positive, or the value is not
        positive.
    """
    if value <= 0 or interval.error is not None:
        return interval.error if value > 0 else None
    z = quantiles.normal((1 + interval.confidence) / 2)
    bounds = [x for x in (interval.low, interval.high) if x is not None and x > 0]
    halves = [abs(float(np.log(x / value))) / z for x in bounds]
    return sum(halves) / len(halves) if halves else None


def quantile(values: Floats, percent: float) -> float:
    """Return a percentile by the median-unbiased estimator; see the module."""
    return float(np.percentile(values, percent, method="median_unbiased"))


def throughput_interval(m: Measurement, confidence: float = 0.95) -> Interval:
    """Return the interval of :attr:`Measurement.throughput`, in output tokens per second.

    See the module. There are no bounds for fewer than 16 requests, which are eight batches of two.
    """
    if len(m) < MIN_REQUESTS:
        return Interval(None, None, confidence)
    if m.concurrency is None:
        return _open_loop(m, confidence)
    residuals = m.seconds - m.seconds.sum() / m.output_tokens.sum() * m.output_tokens
    return ratio_interval(m.throughput, residuals, float(m.seconds.mean()), confidence)


def ratio_interval(
    value: float, residuals: Floats, mean: float, confidence: float = 0.95
) -> Interval:
    """Return the interval of a ratio of sums over requests, by batch means of its linear form.

    Args:
        value: The ratio, positive, in any unit.
        residuals: For each request in the order of sending, its numerator less the ratio times its
            denominator; their sum is 0.
        mean: Mean of the numerators, positive.
        confidence: Confidence; see :class:`Interval`.

    Returns:
        The interval, in the unit of ``value``.
    """
    relative2 = long_run_variance(residuals) / len(residuals) / mean**2
    return _student(value, np.sqrt(relative2), np.sqrt(relative2 / MEAN_FACTOR), confidence)


def _student(value: float, error: float, standard: float, confidence: float) -> Interval:
    """Return the interval for an ``error`` of the logarithm; ``standard`` is its standard error."""
    factor = float(np.exp(quantiles.student_t(BATCHES - 1, (1 + confidence) / 2) * error))
    return Interval(value / factor, value * factor, confidence, float(standard))


def _open_loop(m: Measurement, confidence: float) -> Interval:
    """Return the interval of an open loop's throughput, for the arrivals that it had."""
    opened, close = m.window
    origin = m.intended if m.latency_from == "intended" else m.start
    times = np.linspace(opened, close, BATCHES + 1)
    came = np.array([m.delivered(t) for t in times])
    backlog = np.array([m.output_tokens[origin <= t].sum() for t in times]) - came
    time = np.arange(1, BATCHES + 1) - (BATCHES + 1) / 2
    slope = float(backlog[1:] @ time / (time @ time))
    rest = backlog[1:] - backlog[1:].mean() - slope * time
    degrees = BATCHES - 2
    half = quantiles.student_t(degrees, 0.995) * np.sqrt(rest @ rest / degrees / (time @ time))
    wander = math.sqrt(max(0.0, float(backlog[1:].mean())) * float(m.output_tokens.mean()))
    if slope > half and slope * BATCHES > _GROWS * wander:
        error = float(np.std(np.diff(came), ddof=1)) * math.sqrt(BATCHES)
    else:
        error = float(np.std(backlog[1:], ddof=1))
    relative = error / float(came[-1])
    return _student(m.throughput, relative, relative, confidence)


def percentile_interval(values: Floats, percent: float, confidence: float = 0.95) -> Interval:
    """Return the interval of a percentile, in the unit of the values; see the module.

    A bound that would lie beyond the smallest or largest value does not exist. For the 95th
    percentile at 95 % confidence the upper one needs 72 independent values (0.95^72 < 0.025).

    Args:
        values: One value for each request, in the order of sending; fewer than 16 are taken as
            independent.
        percent: Percentile, above 0 and below 100.
        confidence: Confidence; see :class:`Interval`.
    """
    q, tail = percent / 100, (1 - confidence) / 2
    ordered, ratio = np.sort(values), _long_run_ratio(values)
    size = _effective_size(len(values), q, ratio)
    low, high = (quantile_bound(ordered, size, q, level) for level in (tail, 1 - tail))
    unwidened = _effective_size(len(values), q, ratio / MEAN_FACTOR)
    return Interval(low, high, confidence, _quantile_error(ordered, unwidened, q))


def _quantile_error(ordered: Floats, size: float, q: float) -> float | None:
    """Return the standard error of a quantile's logarithm; None: too few or no positive values."""
    tail = (1 - _ONE_SIGMA) / 2
    bounds = [quantile_bound(ordered, size, q, level) for level in (tail, 1 - tail)]
    middle = quantile(ordered, 100 * q)
    if middle <= 0:
        return None
    halves = [abs(float(np.log(x / middle))) for x in bounds if x is not None and x > 0]
    return sum(halves) / len(halves) if halves else None


def batch_sums(values: Floats) -> Floats:
    """Return the sums of eight batches of neighboring values."""
    return np.add.reduceat(values, np.arange(BATCHES) * len(values) // BATCHES)


def correlation_factor(sums: Floats) -> float:
    """Return (1 + φ)/(1 - φ) of batch sums whose mean is 0; see the module."""
    total = float(np.sum(sums**2))
    r1 = float(np.sum(sums[1:] * sums[:-1])) / total if total else 0.0
    phi = (r1 + 1 / len(sums)) / (1 - 4 / len(sums))
    phi = min(max(phi, 0.0), _MOST_CORRELATION)
    return (1 + phi) / (1 - phi)


def long_run_variance(residuals: Floats) -> float:
    """Return the variance of the mean of residuals with sum 0, times their number."""
    sums = batch_sums(residuals)
    variance = float(np.sum(sums**2)) * BATCHES / (BATCHES - 1) / len(residuals)
    return variance * correlation_factor(sums)


def _long_run_ratio(values: Floats) -> float:
    """Return the long-run variance over the variance; 1 where there are too few values."""
    variance = float(np.var(values))
    if len(values) < MIN_REQUESTS or variance == 0:
        return 1.0
    return long_run_variance(values - values.mean()) / variance


def _effective_size(n: int, q: float, ratio: float) -> float:
    """Return n_eff for the ``q`` quantile of ``n`` values with v = ``ratio``; see the module."""
    rho = max(0.0, (ratio - 1) / (ratio + 1))
    z = quantiles.normal(q)
    density2 = float(np.exp(-(z**2))) / (2 * np.pi) / (q * (1 - q))
    hermite = (1.0, z, z**2 - 1)
    widened = 1 + sum(
        h**2 * density2 / math.factorial(k) * 2 * rho**k / (1 - rho**k)
        for k, h in enumerate(hermite, start=1)
    )
    return n / widened


def quantile_bound(ordered: Floats, size: float, q: float, level: float) -> float | None:
    """Return the point below which the true ``q`` quantile is with probability ``level`` (Hutson).

    Args:
        ordered: All values, ascending.
        size: Number of independent values that are as informative.
        q: Quantile, between 0 and 1.
        level: Probability, between 0 and 1.

    Returns:
        The point, in the unit of the values; None: it lies beyond all of them.
    """
    n = len(ordered)
    if (1 - q) ** n > level or q**n > 1 - level:  # the quantile may lie below or above all values
        return None
    # P(at most `below` of `size` values are below the quantile) = level; 0: there is no such number
    below = quantiles.binomial(level, size, q)
    position = (below + 1) * (n + 1) / (size + 1)
    if below <= 0 or not 1 <= position <= n:
        return None
    return float(np.interp(position, np.arange(1, n + 1), ordered))
