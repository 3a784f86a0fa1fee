"""Value of one more launch: the expected gain in hypervolume of what can be recommended.

=============  ====================================================================================
symbol         meaning
=============  ====================================================================================
cost           logarithm of an objective, with the sign that makes less better
x              point of the next launch
m(p), v(p)     mean and variance of a cost at point p, by the surrogate
c(p, x)        covariance of a cost at p and x
noise          variance of one more launch around the true cost
z              standard normal outcome of the launch at x, in units of its standard deviation
HV(M)          hypervolume that the points of M dominate, up to a reference point
=============  ====================================================================================

A study ends by recommending launched points, by their means at that time. So the gain of a launch
at x is that of the *means*. For each outcome z the means move to

    m(p) + z · c(p, x) / √(v(x) + noise),

the more, the closer p is to x. The gain is the mean of HV over the outcomes, less today's HV. HV
takes the moved means of the launched points and x. This is the knowledge gradient (P. I. Frazier,
W. B. Powell, S. Dayanik, "The knowledge-gradient policy for correlated normal beliefs", INFORMS
Journal on Computing 21, 2009) with the hypervolume as utility (S. Daulton, M. Balandat, E. Bakshy,
"Hypervolume knowledge gradient: a lookahead approach for multi-objective Bayesian optimization with
partial information", ICML 2023), exact over the finite set of points of a study.

A point that was already launched is a candidate like any other. Where noise hides which of two
points is better, launching one of them again gains more than a third point, so no separate rule has
to decide when to replicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc

from autotune.stats.measurement import Floats, Ints

_OUTCOMES = 32  # quasi-random outcomes; with 128 the proposals were the same in replay
_LOOKED_AT = 64  # candidates of the best estimate, whose gain is computed in full


def hypervolume(costs: Floats, reference: Floats) -> Floats:
    """Return the volume that points dominate, up to a reference point; exact, by slicing.

    Args:
        costs: Costs of shape (…, points, objectives), with one to three objectives; points beyond
            the reference add nothing.
        reference: Reference point, of shape (objectives,).

    Returns:
        Volumes of shape (…).

    >>> hypervolume(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([2.0, 2.0])).item()
    3.0
    """
    c = np.minimum(costs, reference)
    if c.shape[-1] == 1:
        return np.asarray(reference[0] - c[..., 0].min(axis=-1))
    order = np.argsort(c[..., 1], axis=-1, kind="stable")
    c = np.take_along_axis(c, order[..., None], axis=-2)
    height = _steps(c[..., 1], reference[1])
    if c.shape[-1] == 2:
        return _area(c[..., 0], height, reference[0])
    # slices of the third objective from below: the area of the points that reach each slice
    x, z = c[..., 0], c[..., 2]
    levels = np.sort(z, axis=-1)
    thick = _steps(levels, reference[2])
    volume = np.zeros(c.shape[:-2])
    for k in np.flatnonzero(thick.any(axis=tuple(range(thick.ndim - 1)))):
        reaching = np.where(z <= levels[..., k, None], x, reference[0])
        volume += _area(reaching, height, reference[0]) * thick[..., k]
    return volume


def _steps(ascending: Floats, end: float) -> Floats:
    """Return the distances from each value to the next, and from the last to the end."""
    return np.diff(ascending, axis=-1, append=np.broadcast_to(end, (*ascending.shape[:-1], 1)))


def _area(x: Floats, height: Floats, reference: float) -> Floats:
    """Return the area of points in the order of their second objective, with steps ``height``."""
    best = np.minimum.accumulate(x, axis=-1)
    return np.asarray(((reference - best) * height).sum(axis=-1))


@dataclass(frozen=True)
class Belief:
    """Posterior of one objective's cost at the launched points and the candidates.

    Attributes:
        mean: Means, of shape (points,); the launched points come first.
        variance: Variances, of shape (points,).
        covariance: Covariances, of shape (launched points, points).
        noise: Variance of one more launch around the true cost.
    """

    mean: Floats
    variance: Floats
    covariance: Floats
    noise: float


def gains(beliefs: Sequence[Belief], reference: Floats) -> Floats:
    """Return the expected gain of one more launch at each point, in shares of today's hypervolume.

    Args:
        beliefs: Beliefs of all objectives, over the same points.
        reference: Reference point; see :func:`hypervolume`.

    Returns:
        Gains of shape (points,), at least 0. Only the 64 points of the best rough estimate and the
        launched points that may be on the Pareto front are computed; the others have 0.
    """
    means, sds = _moments(beliefs)
    launched = len(beliefs[0].covariance)  # only these can be recommended today
    today = float(hypervolume(means[:launched], reference))
    kept = _contenders(means[:launched], sds[:launched])
    glance = _hoped(means[kept], means - sds, reference)
    looked = np.union1d(np.argsort(-glance, kind="stable")[:_LOOKED_AT], kept)
    out = np.zeros(len(means))
    volumes = hypervolume(_moved(beliefs, looked, kept), reference).mean(axis=1)
    out[looked] = np.maximum(volumes - today, 0.0)
    scale = today if today > 0 else float(np.prod(np.maximum(sds.max(axis=0), 1e-9)))
    return np.asarray(out / scale)


def improvements(beliefs: Sequence[Belief]) -> Floats:
    """Return how much one more launch at each point is expected to improve an objective.

    It is the knowledge gradient of each objective, and of the mean of all, of which the largest
    counts: the expected decrease of the best mean among the points that can be recommended. Costs
    are logarithms, so that 0.01 is one percent of an objective, or of their geometric mean.

    Args:
        beliefs: Beliefs of all objectives, over the same points.

    Returns:
        Improvements of shape (points,), at least 0. Only the 64 points of the best rough estimate
        and the launched points that may be the best are computed; the others have 0.
    """
    launched = len(beliefs[0].covariance)
    weights = _weights(len(beliefs))
    mixed, spreads = _mixed(beliefs, weights)
    today = mixed[:launched].min(axis=0)
    low, high = mixed - 3 * spreads, mixed + 3 * spreads
    kept = np.flatnonzero((low[:launched] <= high[:launched].min(axis=0)).any(axis=1))
    glance = (today - mixed + spreads).max(axis=1)
    looked = np.union1d(np.argsort(-glance, kind="stable")[:_LOOKED_AT], kept)
    out = np.zeros(len(mixed))
    best = (_moved(beliefs, looked, kept) @ weights).min(axis=2)
    out[looked] = np.maximum((today - best.mean(axis=1)).max(axis=1), 0.0)
    return out


def leading(beliefs: Sequence[Belief], first: int) -> list[int]:
    """Return the indices of the best of the first points: by each objective, and by their mean."""
    mixed, _ = _mixed(beliefs, _weights(len(beliefs)))
    return sorted(set(mixed[:first].argmin(axis=0).tolist()))


def optimism(beliefs: Sequence[Belief]) -> Floats:
    """Return how much each point would improve an objective, were it two deviations better.

    Arguments and result are those of :func:`improvements`; less than 0 is worse than today's best.
    """
    launched = len(beliefs[0].covariance)
    mixed, spreads = _mixed(beliefs, _weights(len(beliefs)))
    return np.asarray((mixed[:launched].min(axis=0) - mixed + 2 * spreads).max(axis=1))


def _weights(count: int) -> Floats:
    """Return the weights of each objective and of their mean, of shape (objectives, mixtures)."""
    return np.unique(np.vstack([np.eye(count), np.full(count, 1 / count)]), axis=0).T


def _mixed(beliefs: Sequence[Belief], weights: Floats) -> tuple[Floats, Floats]:
    """Return means and standard deviations of mixtures, each of shape (points, mixtures)."""
    means, sds = _moments(beliefs)
    return means @ weights, np.sqrt(sds**2 @ weights**2)


def _moments(beliefs: Sequence[Belief]) -> tuple[Floats, Floats]:
    """Return means and standard deviations, each of shape (points, objectives)."""
    means = np.stack([b.mean for b in beliefs], axis=-1)
    return means, np.sqrt(np.stack([b.variance for b in beliefs], axis=-1))


def _moved(beliefs: Sequence[Belief], looked: Ints, kept: Ints) -> Floats:
    """Return the means after one more launch, of shape (looked, outcomes, kept + 1, objectives).

    Args:
        beliefs: Beliefs of all objectives, over the same points.
        looked: Indices of the points of that launch.
        kept: Indices of the launched points whose means are wanted; the last is the launch's own.
    """
    outcomes = _outcomes(len(beliefs))
    moved = np.empty((len(looked), _OUTCOMES, len(kept) + 1, len(beliefs)))
    for j, b in enumerate(beliefs):
        spread = np.sqrt(b.variance[looked] + b.noise)
        own = b.variance[looked] / spread
        others = b.covariance[np.ix_(kept, looked)].T / spread[:, None]
        step = np.concatenate([others, own[:, None]], axis=1)  # candidates × (kept + itself)
        base = np.concatenate(
            [np.broadcast_to(b.mean[kept], (len(looked), len(kept))), b.mean[looked, None]], axis=1
        )
        moved[..., j] = base[:, None, :] + outcomes[None, :, j, None] * step[:, None, :]
    return moved


@cache
def _outcomes(objectives: int) -> Floats:
    """Return outcomes of a launch in standard deviations, of shape (outcomes, objectives)."""
    out = ndtri(qmc.Sobol(objectives, rng=0).random(_OUTCOMES) * 0.998 + 0.001)
    out.flags.writeable = False
    return np.asarray(out)


def potential(beliefs: Sequence[Belief], reference: Floats) -> Floats:
    """Return the growth of the hypervolume by each point, were it two standard deviations better.

    The arguments are those of :func:`gains`. The growth is not in shares.
    """
    means, sds = _moments(beliefs)
    launched = len(beliefs[0].covariance)
    front = means[_contenders(means[:launched], sds[:launched])]
    today = hypervolume(means[:launched], reference)
    return np.asarray(_hoped(front, means - 2 * sds, reference) - today)


def _hoped(front: Floats, hopeful: Floats, reference: Floats) -> Floats:
    """Return the hypervolume of the front together with each of the hopeful points."""
    fronts = np.broadcast_to(front, (len(hopeful), *front.shape))
    return hypervolume(np.concatenate([fronts, hopeful[:, None, :]], axis=1), reference)


def _contenders(means: Floats, sds: Floats) -> Ints:
    """Return the indices of the launched points that no other point certainly dominates."""
    low, high = means - 3 * sds, means + 3 * sds
    dominated = (high[:, None, :] < low[None, :, :]).all(axis=2).any(axis=0)
    return np.flatnonzero(~dominated)


def reference_point(costs: Floats) -> Floats:
    """Return the reference point of the hypervolume: the worst launched cost of each objective.

    Args:
        costs: Costs of shape (launched points, objectives).
    """
    worst, best = costs.max(axis=0), costs.min(axis=0)
    return np.asarray(np.maximum(worst, best + 0.05))  # if all are equal: 5 % above the best
