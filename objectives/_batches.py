"""An interval for any objective: the requests in eight batches, the objective of each.

The requests, in the order of sending, are cut into the k = 8 batches of
:mod:`autotune.stats.intervals`, and the objective is computed of each batch alone. How far these
k values scatter, widened by their own correlation, says how sure their mean is, with Student's t at
k - 1 degrees of freedom; the objective of all requests is taken to be as sure, as a share of it.
That is sectioning (S. Asmussen, P. W. Glynn, "Stochastic Simulation: Algorithms and Analysis",
2007; M. K. Nakayama, "Confidence intervals for quantiles using sectioning when applying
variance-reduction techniques", ACM Transactions on Modeling and Computer Simulation 24, 2014): the
centre is the estimate of all data, not the mean of the batches, which their few requests bias.

Why not a bootstrap over requests: requests of one launch depend on each other, and a request that
is drawn twice or left out has no place in time any more, which throughputs are made of. Eight
batches keep both, and cost two computations' time. What a batch alone cannot tell, such as the
largest of all latencies, gets an interval here that means little: such an objective shall bring its
own.
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
    """Of ``compute`` over the whole measurement, in its unit; see the module.

    It does not exist for fewer than 16 requests, and where a batch alone cannot be computed.
    """
    unknown = Interval(None, None, confidence)
    if len(m) < MIN_REQUESTS:
        return unknown
    edges = [len(m) * i // BATCHES for i in range(BATCHES + 1)]
    try:
        value = float(compute(m))
        values = np.array([compute(m.part(a, b)) for a, b in pairwise(edges)], dtype=np.float64)
    except (ValueError, ArithmeticError, LookupError):  # too few requests for it
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
