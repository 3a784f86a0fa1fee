"""Probability that one point is truly better than another one, when both were picked from many.

======  ===========================================================================================
symbol  meaning
======  ===========================================================================================
θ       logarithm of a point's true value
μ, τ    center and width of the θ of a study's points
σ       standard deviation of a launch of a point
n, y    number of a point's launches, and their mean
======  ===========================================================================================

The better of two equals looks better in every study, and the best of twenty by far. What its lead
is worth depends on how far points differ at all, which the study itself says: where the points'
means scatter by no more than launches of one point do, most of a lead is noise (empirical Bayes: B.
Efron, C. Morris, "Stein's estimation rule and its competitors", Journal of the American Statistical
Association 68, 1973; M. Stephens, "False discovery rates: a new deal", Biostatistics 18, 2017, with
the same mixture of normals). A posterior needs no correction for the choice, because it is
conditional on all points, also on those that were not chosen, nor for a number of launches that
depended on what came out before (A. P. Dawid, "Selection paradoxes of Bayesian inference", 1994).

    y ~ N(θ, σ²/n),   θ ~ Σ_j w_j N(μ, (m_j τ)²),   m = 1, 3, 10, 30

The mixture has heavy tails, so one point that is far better than many equal ones is not drawn to
them. μ, τ, σ and the ratio of the baseline's scatter are integrated out on a grid; τ is uniform on
a logarithmic scale around σ; σ has the posterior of :class:`autotune.stats.two_pools.TwoPools`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.stats.measurement import Floats
from autotune.stats.two_pools import TwoPools

_WIDER = 3.0 ** np.arange(4)
_TAIL = 1 / 5
_MIX = _TAIL ** np.arange(4) / (_TAIL ** np.arange(4)).sum()
_TAUS = np.geomspace(0.03, 30, 13)  # τ in units of σ
_SIGMAS = np.linspace(-2.5, 3.5, 9)  # log σ² around its center, in units of its standard deviation
_MUS = np.linspace(-2.4, 2.4, 7)  # μ around the median, in units of its standard error
_SKIP = 1e-3  # λ below this probability are left out
_Z = np.linspace(-9, 9, 3601)
_BELOW = np.array([math.erfc(-z / math.sqrt(2)) / 2 for z in _Z])


@dataclass(frozen=True)
class Known:
    """A point by its launches.

    Attributes:
        mean: Mean of the logarithms, with the sign that makes more better.
        launches: Number of launches.
        baseline: Whether it is the baseline, which may scatter by another amount.
    """

    mean: float
    launches: int
    baseline: bool = False


def chances(
    points: Sequence[Known], best: int, rivals: Sequence[int], pools: TwoPools
) -> list[float | None]:
    """Return the probability that a point is better than each of some others.

    Args:
        points: All points of the study with a launch.
        best: Index of the one point.
        rivals: Indices of the others.
        pools: Scatter between launches.

    Returns:
        One probability a rival; None: no scatter is known.
    """
    degrees = sum(pools.degrees)
    if degrees == 0:
        return [None] * len(rivals)
    leads = [points[best].mean - points[k].mean for k in rivals]
    if pools.sums.max() == 0:
        return [0.5 if x == 0 else float(x > 0) for x in leads]
    keep = pools.weights > _SKIP
    ratios, sums, weights = pools.ratios[keep], pools.sums[keep], pools.weights[keep]
    # axes: λ, σ, τ, μ, then the mixture
    logs = _SIGMAS * math.sqrt(2 / degrees)
    center = np.maximum(sums, 1e-12 * sums.max()) / degrees
    sigma2 = (center[:, None] * np.exp(logs))[:, :, None, None]
    posterior = np.log(weights)[:, None] - degrees / 2 * (logs + np.exp(-logs))
    tau2 = sigma2 * (_TAUS**2)[:, None]
    spread = np.sqrt(sigma2 + tau2)
    mu = np.median([p.mean for p in points]) + 1.25 * spread / math.sqrt(len(points)) * _MUS
    log = posterior[:, :, None, None] + np.log(spread) + np.zeros(mu.shape)
    wide2 = tau2[..., None] * _WIDER**2
    own2 = {True: sigma2 * ratios[:, None, None, None], False: sigma2}
    found = {}
    for k, p in enumerate(points):
        noise2 = (own2[p.baseline] / p.launches)[..., None]
        total2 = noise2 + wide2
        off = (p.mean - mu)[..., None]
        density = _MIX * np.exp(-(off**2) / (2 * total2)) / np.sqrt(total2)
        whole = np.maximum(density.sum(axis=-1), 1e-300)
        log = log + np.log(whole)
        if k == best or k in rivals:
            pull = wide2 / total2
            found[k] = (density / whole[..., None], mu[..., None] + pull * off, pull * noise2)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    use = weight > 1e-5
    weight = weight[use] / weight[use].sum()
    a = [x[use] for x in (np.broadcast_to(x, (*use.shape, len(_MIX))) for x in found[best])]
    out: list[float | None] = []
    for k in rivals:
        b = [x[use] for x in (np.broadcast_to(x, (*use.shape, len(_MIX))) for x in found[k])]
        z = (a[1][:, :, None] - b[1][:, None]) / np.sqrt(a[2][:, :, None] + b[2][:, None])
        better = np.interp(z, _Z, _BELOW) * a[0][:, :, None] * b[0][:, None]
        out.append(float(weight @ better.sum(axis=(1, 2))))
    return out
