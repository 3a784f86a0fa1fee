"""An interval for any objective: the requests in eight batches, the objective of each.

The requests, in the order of sending, are cut into the k = 8 batches of
:mod:`autotune.stats.intervals`, and the objective is computed for each batch. The scatter of these
k values, widened by their own correlation, gives the standard error of their mean, with Student's t
at k - 1 degrees of freedom. The relative error of the objective of all requests is taken to be the
same. That is sectioning (S. Asmussen, P. W. Glynn, "Stochastic Simulation: Algorithms and
Analysis", 2007; M. K. Nakayama, "Confidence intervals for quantiles using sectioning when applying
variance-reduction techniques", ACM Transactions on Modeling and Computer Simulation 24, 2014). The
center is the estimate from all data, not the mean of the batches, which is biased because each has
few requests.

A bootstrap over requests is no alternative. Requests of one launch depend on each other, and a
request that is drawn twice or left out has no position in time, of which throughputs are made.
Eight batches keep both, and cost the time of two computations. What a single batch does not show,
such as the largest of all latencies, gets an interval here that means little; such an objective
needs its own ``interval``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from autotune.stats import Interval, Measurement, quantiles
from autotune.stats.intervals import BATCHES, MEAN_FACTOR, MIN_REQUESTS, correlation_factor


def batch_interval(
    m: Measurement, compute: Callable[[Measurement], float], confidence: float = 0.95
) -> Interval:
    """Return the interval of ``compute`` over the whole measurement, in its unit; see the module.

    It has no bounds for fewer than 16 requests, or if ``compute`` fails for a single batch.
    """
    unknown = Interval(None, None, confidence)
    if len(m) < MIN_REQUESTS:
        return unknown
    edges = [len(m) * i // BATCHES for i in range(BATCHES + 1)]
    try:
        value = float(compute(m))
        values = np.array([compute(m.part(a, b)) for a, b in pairwise(edges)], dtype=np.float64)
    except (ValueError, ArithmeticError, LookupError):  # too few requests for the objective
        return unknown
    if not np.isfinite(values).all():
        return unknown
    residuals = values - values.mean()
    plain = float(np.mean(residuals**2)) / (BATCHES - 1)
    factor = correlation_factor(residuals)
    half = quantiles.student_t(BATCHES - 1, (1 + confidence) / 2) * math.sqrt(plain * factor)
    if value > 0 and (values > 0).all():
        widest = math.exp(half / values.mean())
        error = math.sqrt(plain * factor / MEAN_FACTOR) / float(values.mean())
        return Interval(value / widest, value * widest, confidence, error)
    return Interval(value - half, value + half, confidence)
