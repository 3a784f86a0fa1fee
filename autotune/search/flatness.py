"""How far any point can differ from the baseline, at a stated level, by the launches of a study.

=========  ========================================================================================
symbol     meaning
=========  ========================================================================================
x          features of a point, each from 0 to 1
y_j(x)     cost of objective j at point x: its logarithm, with the sign that makes less better
b          the baseline's point
d_j(x)     y_j(x) - y_j(b): the logarithm of a ratio; 0.01 is one percent
θ          length scales, standard deviation of the process, and that between launches of a point
k          number of objectives
=========  ========================================================================================

    P(max_x |d_j(x)| ≤ differs_j | launches) = 1 - 0.05 / k
    P(max_x -d_j(x)  ≤ better_j  | launches) = 1 - 0.05 / k

over all points x, launched or not, so that the bounds of one kind hold for all objectives together
with a probability of 95 % at least. By drawing all points of a process together, the maximum takes
their correlation into account: 80 points of which the data say that they are alike do not count as
80.

The belief is the process of :mod:`autotune.search.surrogate` with a constant trend only: what an
acceptance foretells must not make a statement about points that were not launched. θ is not the
most probable one, as for the search, but integrated out, since ten launches determine neither how
rough an objective is nor how far launches differ, and "no more than" is a statement about the tail
(C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for Machine Learning", MIT Press 2006,
section 5.2). It is drawn by importance sampling in steps: from the priors, then from a Student's t
with the mean and covariance of what the last step found, until enough draws count (T. Kloek, H. K.
van Dijk, "Bayesian estimates of equation system parameters", Econometrica 46, 1978; O. Cappé et
al., "Population Monte Carlo", Journal of Computational and Graphical Statistics 13, 2004). The
priors of the two standard deviations have smaller medians than the search's, because bounds are
said of studies in which little differs. `benchmarks/statements.py` checks how often they hold.

A process assumes that points next to each other are similar. A jump between launched points, at one
n say, cannot be foreseen and is in no bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.search.alike import Launched, key_of
from autotune.search.features import unit
from autotune.search.noise import UNKNOWN
from autotune.stats.kernel import log_likelihoods, matern
from autotune.stats.measurement import Floats, Ints
from autotune.study.space import Point, Space

# Probability of the bounds of all objectives together.
LEVEL = 0.95
# Fewest launches, and points of them, that bounds are computed from.
LEAST_LAUNCHES, LEAST_POINTS = 6, 4
# More points are not drawn together: time and memory grow with their third and second power.
MOST_POINTS = 400
# Of more launches nothing is computed, for the same reason: 300 take 800 MiB and 10 s.
MOST_LAUNCHES = 200
# Log-normal priors: the median, and the standard deviation of the logarithm.
_LENGTH = (0.5, 0.7)
_SCALE = (0.02, 1.2)
_BETWEEN = (0.03, 0.5)
_CONSTANT = 1.0  # standard deviation of the level, which is far more than any difference
_JITTER = 1e-9
# Launches with a larger standard deviation of their own say so little that the priors would speak.
_NOISIEST = 0.1
# The same for a larger standard deviation between launches, as far as they show it.
_UNSTEADIEST = 0.15
# Largest distance of the launches from what a process expects, in standard deviations of its χ².
_UNLIKELY = 4
_THETAS = 256  # θ of each step
_COUNTING = 16  # effective number of θ that ends the steps
_MOST_STEPS = 8  # largest number of steps; after them there is no bound
_KEPT = 64  # θ that points are drawn with
_DRAWS = 32  # draws of the points with each of them
_FREEDOM = 5  # of Student's t


@dataclass(frozen=True)
class Flatness:
    """How far any point can differ from the baseline; 0.01 is one percent.

    Attributes:
        differs: Bound of the largest difference in either direction, of the logarithm of each
            objective, of shape (objectives,); infinite: its launches are too noisy for a bound, or
            too far apart.
        better: Bound of the largest improvement, likewise; 0: the baseline is the best point.
        between: Standard deviation between launches of one point, of the logarithm of each
            objective, likewise: the median of its posterior; infinite where there is no bound.
    """

    differs: Floats
    better: Floats
    between: Floats


def flatness(
    space: Space, launched: Sequence[Launched], points: Sequence[Point], baseline: Point
) -> Flatness | None:
    """Return how far any of the points can differ from the baseline.

    Args:
        space: Searched parameters.
        launched: All launches that compare, of the search and of a confirmation; their costs are
            logarithms.
        points: Points that can launch.
        baseline: Point that they are compared with; it was launched.

    Returns:
        None: too few or too many launches, too many points, no launch of the baseline, or numbers
        too far apart to compute with.

    Raises:
        ValueError: a cost is not finite.
    """
    own = {key_of(item.point) for item in launched}
    every = list({key_of(q): q for q in [baseline, *points]}.values())
    if not LEAST_LAUNCHES <= len(launched) <= MOST_LAUNCHES:
        return None
    if len(own) < LEAST_POINTS or len(every) > MOST_POINTS:
        return None
    if key_of(baseline) not in own:
        return None
    costs = np.array([item.costs for item in launched])
    if not np.isfinite(costs).all():
        raise ValueError("a cost is not finite")
    x = np.array([unit(space, q) for q in every])
    at = np.array([unit(space, item.point) for item in launched])
    within = np.array([item.variances for item in launched])
    within = np.where(np.isfinite(within), within, UNKNOWN)
    rng = np.random.default_rng(0)
    share = 1 - (1 - LEVEL) / costs.shape[1]
    bounds = np.full((3, costs.shape[1]), np.inf)
    for i, (y, v) in enumerate(zip(costs.T, within.T, strict=True)):
        if np.median(v) > _NOISIEST**2:
            continue
        try:
            found = _differences(at, y - y.mean(), v, x, rng)
        except np.linalg.LinAlgError:  # numbers of no scale
            return None
        if found is None:
            continue
        d, between = found
        differs = float(np.quantile(abs(d).max(axis=1), share))
        better = float(np.quantile((-d).max(axis=1), share))
        bounds[:, i] = differs, better, between
    return Flatness(*bounds)


def _differences(
    at: Floats, y: Floats, v: Floats, x: Floats, rng: np.random.Generator
) -> tuple[Floats, float] | None:
    """Return draws of all points' differences from the first one, of shape (draws, points).

    The second value is the median standard deviation between launches of one point. None: the
    launches differ by so much that the priors would speak, or are out of their reach.
    """
    squares = (at[:, None] - at[None]) ** 2
    thetas = _hyperparameters(squares, y, v, rng)
    if thetas is None or (unsteady := float(np.median(thetas[:, -1]))) > _UNSTEADIEST:
        return None
    out, distances = [], []
    distinct, place = _distinct(x)
    # many of the kept θ are one draw several times
    found, counts = np.unique(thetas, axis=0, return_counts=True)
    for theta, count in zip(found, counts.tolist(), strict=True):
        lengths, scale, between = theta[:-2], float(theta[-2]), float(theta[-1])
        noise = np.diag(v + between**2 + _JITTER)
        chol = np.linalg.cholesky(_kernel(squares, lengths, scale) + _CONSTANT**2 + noise)
        cross = _kernel((at[:, None] - x[None]) ** 2, lengths, scale)
        # the constant is no part of a difference from the first point
        half = np.linalg.solve(chol, np.column_stack([cross - cross[:, :1], y]))
        distance = float(half[:, -1] @ half[:, -1])  # χ² with a degree for each launch
        distances += [distance] * count
        prior = _kernel(distinct, lengths, scale)[place]
        prior = prior - prior[:1] - prior[:, :1] + prior[0, 0]
        covariance = prior - half[:, :-1].T @ half[:, :-1]
        root = np.linalg.cholesky(covariance + 1e-7 * scale**2 * np.eye(len(x)))
        mean = half[:, :-1].T @ half[:, -1]
        out.append(mean + rng.standard_normal((count * _DRAWS, len(x))) @ root.T)
    if np.mean(distances) > len(y) + _UNLIKELY * np.sqrt(2 * len(y)):
        return None
    return np.concatenate(out), unsteady


def _distinct(x: Floats) -> tuple[Floats, Ints]:
    """Return the different squared distances of points by feature, and which each two points have.

    Points are on a grid, so that few of their distances differ.

    Args:
        x: Features, of shape (points, features).

    Returns:
        Arrays of shapes (distances, features) and (points, points).
    """
    place: Ints = np.zeros((len(x), len(x)), dtype=np.int64)
    first = np.zeros(1, dtype=np.int64)
    for column in x.T:
        levels, own = np.unique(column, return_inverse=True)
        far = np.round((levels[:, None] - levels) ** 2, 12)
        values, code = np.unique(far, return_inverse=True)
        both = place * len(values) + code.reshape(far.shape)[own[:, None], own]
        _, first, numbers = np.unique(both, return_index=True, return_inverse=True)
        place = np.asarray(numbers, dtype=np.int64).reshape(both.shape)
    a, b = np.unravel_index(first, place.shape)
    return (x[a] - x[b]) ** 2, place


def _hyperparameters(
    squares: Floats, y: Floats, v: Floats, rng: np.random.Generator
) -> Floats | None:
    """Return draws of θ from its posterior, of shape (draws, features + 2).

    None: it is so far from the priors that too few draws count.
    """
    features = squares.shape[-1]
    medians = np.log([*[_LENGTH[0]] * features, _SCALE[0], _BETWEEN[0]])
    spreads = np.array([*[_LENGTH[1]] * features, _SCALE[1], _BETWEEN[1]])
    size = features + 2

    def likelihood(z: Floats) -> Floats:
        return _likelihood(squares, y, v, np.exp(medians + spreads * z))

    z = rng.standard_normal((_THETAS, size))
    weights = _weights(likelihood(z))
    for _ in range(_MOST_STEPS):
        mean = weights @ z
        off = z - mean
        # a little of the prior keeps the proposal wide where few draws of the last step count
        chol = np.linalg.cholesky((off * weights[:, None]).T @ off + 0.05 * np.eye(size))
        spread = np.sqrt(rng.chisquare(_FREEDOM, _THETAS) / _FREEDOM)
        standard = rng.standard_normal((_THETAS, size)) / spread[:, None]
        z = mean + standard @ chol.T
        proposed = -(_FREEDOM + size) / 2 * np.log1p((standard**2).sum(axis=1) / _FREEDOM)
        weights = _weights(likelihood(z) - (z**2).sum(axis=1) / 2 - proposed)
        if 1 / (weights**2).sum() >= _COUNTING:
            break
    else:
        return None
    steps = (np.arange(_KEPT) + rng.random()) / _KEPT
    kept = np.minimum(np.searchsorted(np.cumsum(weights), steps), _THETAS - 1)
    return np.asarray(np.exp(medians + spreads * z[kept]))


def _weights(log: Floats) -> Floats:
    w = np.exp(log - log.max())
    return np.asarray(w / w.sum())


def _likelihood(squares: Floats, y: Floats, v: Floats, theta: Floats) -> Floats:
    """Return the logarithm of the marginal likelihood of each θ, of shape (thetas,)."""
    r = np.sqrt(np.einsum("ijk,tk->tij", squares, 1 / theta[:, :-2] ** 2))
    k = theta[:, -2, None, None] ** 2 * matern(r) + _CONSTANT**2
    k += np.eye(len(y)) * (theta[:, -1, None, None] ** 2 + _JITTER) + np.diag(v)
    return log_likelihoods(k, y)


def _kernel(squares: Floats, lengths: Floats, scale: float) -> Floats:
    return np.asarray(scale**2 * matern(np.sqrt((squares / lengths**2).sum(axis=-1))))
