"""Whether a server is warm, and whether it stayed as it was.

Notation: x_1 … x_n are the logarithms of the requests' rates (tokens per second) in order of
completion; d is the number of rates that are left out at the beginning.

**Warm-up.** MSER (K. P. White, "An effective truncation heuristic for bias reduction in simulation
output", Simulation 69, 1997) chooses the d that minimizes

    MSER(d) = Σ_{i>d} (x_i - mean of x_{d+1} … x_n)² / (n - d)²,

the squared standard error of the mean of the remaining rates. A minimum in the second half says
that the series is too short to decide (W. Franklin, K. P. White, "Stationarity tests and MSER-5",
Winter Simulation Conference 2008). Then more requests are sent and the test is repeated, as
K. Hoad, S. Robinson and R. Davies automate it ("Automating warm-up length estimation", Journal of
the Operational Research Society 61, 2010). The test needs no threshold, no model and few requests.
These authors search up to the last five of batch means. Here the values are single requests, and
few. The search goes up to the last two, because otherwise a warm-up longer than half of the series
would not be seen.

By simulation (concurrency 1 to 4, noise 20 to 30 %) a steady server is called warm after 9 to 10
requests, 8 being the fewest. A server whose first 3 to 6 requests take 2 to 8 times as long is
called warm after 12, and in 1 to 2 % of the runs before its slow requests are recognized. A server
that is equally slow in all of the first ``fewest(concurrency)`` requests looks steady, which no
test of rates alone can avoid.

**Drift.** A straight line is fitted through the logarithms of the rates of a finished measurement,
by the means of eight batches, and its slope is tested by Student's t with six degrees of freedom.
The residuals' correlation widens the test as in :mod:`autotune.stats.intervals`, so a wandering
machine is seldom taken for a drifting one: at the 1 % level, 1 % of independent and 2 % of
wandering series are called drifting. Comparing the first with the last part (J. Geweke 1992; two
halves here) found a slowdown by 20 % over 400 requests with a noise of 30 % in 17 of 100 runs; the
line found it in 48.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autotune.stats import quantiles
from autotune.stats.intervals import BATCHES, MIN_REQUESTS, batch_sums, correlation_factor

_TAIL = 2  # MSER of a single value is 0


def fewest(concurrency: int) -> int:
    """Return the fewest requests to judge by: two for each concurrent one, and at least eight."""
    return max(8, 2 * concurrency)


def warm_from(rates: Sequence[float], concurrency: int = 1) -> int | None:
    """Return the index of the first steady request of a series.

    Args:
        rates: Output tokens per second of each request, positive, in order of completion.
        concurrency: Number of concurrent requests, which see the same slow start.

    Returns:
        The index; None: the series is not steady yet, or too short to decide.
    """
    n = len(rates)
    if n < fewest(concurrency):
        return None
    backwards = np.log(rates)[::-1]
    backwards = backwards - backwards[0]  # so that rounding does not decide between equal rates
    left = np.arange(1, n + 1)  # n - d
    squares = np.cumsum(backwards**2) - np.cumsum(backwards) ** 2 / left
    mser = (squares / left**2)[_TAIL - 1 :][::-1]  # of d = 0, 1, …
    d = int(np.argmin(mser))
    return d if d < n / 2 else None


def drift(rates: Sequence[float], error: float = 0.01) -> float | None:
    """Return how much faster (0.1: by 10 %) or slower (negative) a measurement became.

    Args:
        rates: Output tokens per second of each request, positive, in order of sending.
        error: Probability that a steady measurement is said to drift.

    Returns:
        Change of the rate from the first to the last eighth, by the line, as a share; None: no more
        than chance explains, or fewer than 16 requests.
    """
    n = len(rates)
    if n < MIN_REQUESTS:
        return None
    means = batch_sums(np.log(rates)) / batch_sums(np.ones(n))
    time = np.arange(BATCHES) - (BATCHES - 1) / 2
    slope = float(means @ time / (time @ time))
    residuals = means - means.mean() - slope * time
    degrees = BATCHES - 2
    variance = float(residuals @ residuals) / degrees * correlation_factor(residuals)
    half = quantiles.student_t(degrees, 1 - error / 2) * math.sqrt(variance / (time @ time))
    return math.expm1(slope * (BATCHES - 1)) if abs(slope) > half else None
