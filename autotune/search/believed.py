"""How far any point differs from the baseline, by the surrogates of a study.

=========  ========================================================================================
symbol     meaning
=========  ========================================================================================
y_j(x)     cost of objective j at point x: its logarithm, with the sign that makes less better
b          the baseline's point
d_j(x)     y_j(x) - y_j(b), a logarithm of a ratio
C_j        posterior covariance of y_j over the points and b
=========  ========================================================================================

A linear function of a Gaussian process is a Gaussian process, so d_j has the covariance

    cov(d_j(x), d_j(x')) = C_j(x, x') - C_j(x, b) - C_j(b, x') + C_j(b, b)

(C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for Machine Learning", MIT Press 2006,
section 2.2). It is of the points themselves, without the noise of one more launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.search.alike import key_of
from autotune.search.model import Observed, Surrogates
from autotune.stats.measurement import Floats
from autotune.study.space import Point, Space


@dataclass(frozen=True)
class Differences:
    """Posterior of the costs of points, less those of the baseline.

    Costs are logarithms, so that 0.01 is one percent, and less is better. The objectives are
    modeled independently of each other.

    Attributes:
        mean: Expected differences, of shape (objectives, points).
        covariance: Their covariances, of shape (objectives, points, points).
    """

    mean: Floats
    covariance: Floats


def believed(
    space: Space,
    launched: Sequence[Observed],
    points: Sequence[Point],
    baseline: Point,
    fixed_n: int | None = None,
    known: Callable[[Point], float] | None = None,
) -> Differences:
    """Return what the search believes of points, as ratios to the baseline.

    Args:
        space: Searched parameters.
        launched: Launches so far, at least one.
        points: Points of interest, launched or not.
        baseline: Point that they are compared with, launched or not.
        fixed_n: n of all points, where it is not searched.
        known: Returns a number on which objectives may depend; see
            :func:`autotune.search.model.propose`.

    Raises:
        ValueError: nothing was launched, or a cost is not finite.
    """
    asked = [*points, baseline]
    every = list({key_of(q): q for q in [*asked, *(x.point for x in launched)]}.values())
    place = {key_of(q): i for i, q in enumerate(every)}
    at = np.array([place[key_of(q)] for q in asked])
    means, covariances = [], []
    for b in Surrogates(space, launched, every, fixed_n, known).beliefs(len(every)):
        mean, c = b.mean[at], b.covariance[np.ix_(at, at)]
        means.append(mean[:-1] - mean[-1])
        with_base = c[:-1, -1]
        covariances.append(c[:-1, :-1] - with_base[:, None] - with_base[None, :] + c[-1, -1])
    return Differences(np.array(means), np.array(covariances))
