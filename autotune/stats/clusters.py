"""A ratio of two sums over requests, with an interval whose unit is the request.

=======  ==========================================================================================
symbol   meaning
=======  ==========================================================================================
G        number of requests (clusters) that have something to count
a_i      what request i has of the upper sum, such as its accepted drafts
s_i      what it has of the lower sum, such as its verification steps
R        Σa_i / Σs_i
=======  ==========================================================================================

Steps of one request are similar, because its text is easy or hard to draft as a whole. So a
thousand steps of ten requests say about as much as ten numbers, and an interval over steps would be
far too narrow. The variance of R is that of a ratio estimator, linearized over requests
(W. G. Cochran, "Sampling Techniques", 3rd ed. 1977, 2.11 and 6.4):

    var R = G/(G-1) Σ(a_i - R s_i)² / (Σs_i)²

with Student's t at G - 1 degrees of freedom. It speaks of requests like those that were sent, in
this launch, and is an approximation. Simulated were truncated geometric steps, n = 5, 20 to 60
steps a request, 3000 runs a cell (``tests/stats/test_clusters.py``). 95 % intervals held the truth
in

==================================================  ====  ====  ====  ====  ====
chances of the requests                              8     16    32    64   128
==================================================  ====  ====  ====  ====  ====
beta(4, 4) and uniform                               91%   93%   93%   94%   95%
beta(2, 8), one request in twenty accepts it all     56%   62%   80%   88%   92%
==================================================  ====  ====  ====  ====  ====

requests. So it is somewhat too narrow for few requests, and far too narrow where a rare kind of
request, perhaps not among them at all, accepts most. Nothing else was simulated.
"""

from __future__ import annotations

import math

import numpy as np

from autotune.stats import quantiles
from autotune.stats.launch_variance import Estimate
from autotune.stats.measurement import Floats

FEWEST = 8  # requests; below, there is no interval


def ratio_of_sums(above: Floats, below: Floats, confidence: float = 0.95) -> Estimate | None:
    """Return Σ above / Σ below with its interval; None: nothing to divide by.

    The bounds are None with fewer than :data:`FEWEST` requests, and where no request differs from
    the others.

    Args:
        above: Upper sum of each request, 0 or more; shape (requests,).
        below: Lower sum of each request, 0 or more; shape (requests,). A request with 0 counts for
            nothing.
        confidence: Confidence of the interval.
    """
    counts = below > 0
    a, s = above[counts], below[counts]
    if not s.size:
        return None
    whole = float(s.sum())
    ratio = float(a.sum()) / whole
    rest = a - ratio * s
    if s.size < FEWEST or not np.any(rest):
        return Estimate(ratio, None, None)
    error = math.sqrt(s.size / (s.size - 1) * float(rest @ rest)) / whole
    half = quantiles.student_t(s.size - 1, 0.5 + confidence / 2) * error
    return Estimate(ratio, max(0.0, ratio - half), ratio + half)
