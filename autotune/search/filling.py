"""A start that fills the space: launches that begin before there are numbers to propose by.

=======  ==========================================================================================
symbol   meaning
=======  ==========================================================================================
p        points that can launch
x        point of the next launch
T        points that were launched or are running, whatever came of them
k        correlation of two points: Matérn 5/2, by the median length scales of the surrogate's prior
r        variance of a launch around its point, in units of the points' variance
c(p, x)  covariance of p and x after launches of T, in the same units
v(x)     c(x, x)
=======  ==========================================================================================

With several slots, as many launches begin before the first of them has ended. Points drawn at
random leave holes and lie next to each other. Here the next point is the one whose launch makes the
mean variance over all points that can launch the smallest, that is, with the largest

    Σ_p c(p, x)² / (v(x) + r)

(the integrated mean squared error: J. Sacks, W. J. Welch, T. J. Mitchell, H. P. Wynn, "Design and
analysis of computer experiments", Statistical Science 4, 1989, section 6; one point after the
other: D. A. Cohn, "Neural network exploration using optimal experiment design", Neural Networks 9,
1996). A covariance does not depend on outcomes, so running launches count as those that have ended,
and a point next to one of T tells little. Low-discrepancy sequences and the largest smallest
distance (maximin) were not taken: the first know neither what rules exclude nor what runs already,
and the second begins with the corners, which tell least about the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import cdist

from autotune.search.features import unit
from autotune.search.noise import BETWEEN
from autotune.search.surrogate import priors
from autotune.stats.kernel import matern
from autotune.stats.measurement import Floats
from autotune.study.space import Point, Space

# Standard deviation by which points are expected to differ; of logarithms.
_SCALE = 0.3
_NOISE = (BETWEEN[0] / _SCALE) ** 2
# Largest number of points whose mean variance is looked at.
_MOST = 500
_EQUAL = 1e-9  # relative difference of worths that are one


def fill(
    space: Space,
    points: Sequence[Point],
    taken: Sequence[Point],
    chances: Floats,
    rng: np.random.Generator,
) -> int:
    """Return the index of the point whose launch tells most about all points.

    Args:
        space: Searched parameters.
        points: Points that can launch, at least one.
        taken: Points that were launched or are running.
        chances: Probability of each point that it can launch, of shape (points,).
        rng: Chooses between points that tell equally much.
    """
    worth = information(space, points, taken) * chances
    return int(rng.choice(np.flatnonzero(worth >= worth.max() * (1 - _EQUAL))))


def information(space: Space, points: Sequence[Point], taken: Sequence[Point]) -> Floats:
    """Return by how much a launch of each point lowers the mean variance of all points.

    The arguments are those of :func:`fill`.

    Returns:
        Shares of the variance before any launch, of shape (points,).
    """
    x = np.array([unit(space, q) for q in points])
    medians, _ = priors(x.shape[1], _SCALE)
    scales = np.exp(medians[: x.shape[1]])
    x = x / scales
    some = slice(None, None, -(-len(x) // _MOST))
    every = x[some]
    covariance, variance = matern(cdist(every, x)), np.ones(len(x))
    if taken:
        at = np.array([unit(space, q) for q in taken]) / scales
        chol = np.linalg.cholesky(matern(cdist(at, at)) + _NOISE * np.eye(len(at)))
        half = np.linalg.solve(chol, matern(cdist(at, x)))
        covariance -= half[:, some].T @ half
        variance = np.maximum(variance - (half**2).sum(axis=0), 0.0)
    return np.asarray((covariance**2).mean(axis=0) / (variance + _NOISE))
