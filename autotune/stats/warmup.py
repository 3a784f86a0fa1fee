"""Is the server warm, and did it stay as it was?

Warm-up: MSER (K. P. White, "An effective truncation heuristic for bias reduction in simulation
output", Simulation 69, 1997). Of the rates x_1 … x_n in order of completion, as logarithms, the
first d are left out that make

    MSER(d) = Σ_{i>d} (x_i - mean of x_{d+1} … x_n)² / (n - d)²

smallest, the squared standard error of the mean of the rest. A minimum in the second half says that
the series is too short to know (W. Franklin, K. P. White, "Stationarity tests and MSER-5", Winter
Simulation Conference 2008); then more requests are sent and it is asked again, as K. Hoad,
S. Robinson and R. Davies automate it ("Automating warm-up length estimation", Journal of the
Operational Research Society 61, 2010). It needs no threshold, no model, and few requests. They
search up to the last five of batch means; with single requests and so few of them, up to the last
two, or a warm-up longer than half of the series would not be seen.

By simulation (concurrency 1 to 4, noise 20 to 30 %): a steady server is called warm after 9 to 10
requests, 8 being the fewest; one whose first 3 to 6 requests take 2 to 8 times as long after 12,
and in 1 to 2 % of the runs before the slow ones are told apart. A server that is as slow in all of
the first ``fewest(places)`` requests looks steady: no test of rates alone can know.

Drift: a straight line through the logarithms of the rates of a finished measurement, fitted to
the means of eight batches, its slope tested by Student's t with six degrees. The residuals'
correlation widens it as in :mod:`autotune.stats.intervals`, so a wandering machine is seldom
taken for a drifting one: at 1 %, 1 % of independent and 2 % of wandering series are called so.
Comparing the first with the last part (J. Geweke 1992; two halves here) found a slowdown by 20 %
over 400 requests with a noise of 30 % in 17 of 100 runs, the line in 48.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autotune.stats import quantiles
from autotune.stats.intervals import BATCHES, MIN_REQUESTS, batch_sums, correlation_factor

_TAIL = 2  # MSER of a single value is 0


def fewest(places: int) -> int:
    """Requests before which nothing is said: two rounds of all places, and at least eight."""
    return max(8, 2 * places)


def warm_from(rates: Sequence[float], places: int = 1) -> int | None:
    """Where a series becomes steady: the index of its first steady request.

    Args:
        rates: Output tokens per second of each request, positive, in order of completion.
        places: Concurrency: so many requests see the same slow start.

    Returns:
        None: not yet, or too few requests to tell.
    """
    n = len(rates)
    if n < fewest(places):
        return None
    backwards = np.log(rates)[::-1]
    backwards = backwards - backwards[0]  # or the squares would differ by rounding only
    left = np.arange(1, n + 1)  # n - d
    squares = np.cumsum(backwards**2) - np.cumsum(backwards) ** 2 / left
    mser = (squares / left**2)[_TAIL - 1 :][::-1]  # of d = 0, 1, …
    d = int(np.argmin(mser))
    return d if d < n / 2 else None


def drift(rates: Sequence[float], error: float = 0.01) -> float | None:
    """How much faster (0.1: by 10 %) or slower (negative) a measurement became while it ran.

    Args:
        rates: Output tokens per second of each request, positive, in order of sending.
        error: The chance that a steady measurement is said to drift.

    Returns:
        The last eighth against the first, by the line; None: no more than chance explains, or
        fewer than 16 requests.
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
