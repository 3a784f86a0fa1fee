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
such a mixture of normals). As far as the mixture describes a study's points, a posterior needs no
correction for the choice, because it is conditional on all points, also on those that were not
chosen, nor for a number of launches that depended on what came out before (A. P. Dawid, "Selection
paradoxes of Bayesian inference", 1994). ``benchmarks/confirmed_worlds.py`` counts how often the
stated probabilities are right where points differ by other amounts.

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
_TAUS = np.geomspace(0.03, 30, 11)  # τ in units of σ
_BELOW_CENTER, _ABOVE_CENTER = 2.5, 3.5  # range of log σ², in units of its standard deviation
_STEP = 0.8  # of log σ², likewise
_MUS = np.linspace(-2.2, 2.2, 9)  # μ around the median, in units of its standard error
_ROUNDING = 1e-9  # logarithms that differ by less are equal
_SKIP = 1e-3  # λ below this probability are left out
_RARE = 1e-5  # nodes below this probability are left out
_Z = np.linspace(-8, 8, 801)
_BELOW = np.array([math.erfc(-z / math.sqrt(2)) / 2 for z in _Z])


@dataclass(frozen=True)
class Known:
    """A point by its launches.

    Attributes:
        mean: Mean of the logarithms, with the sign that makes more better.
        launches: Number of launches; on several slots the number that would say as much on one.
        baseline: Whether it is the baseline, which may scatter by another amount.
    """

    mean: float
    launches: float
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
    if not pools.known:
        return [None] * len(rivals)
    leads = [points[best].mean - points[k].mean for k in rivals]
    if sum(pools.squares) <= sum(pools.degrees) * _ROUNDING**2:
        return [0.5 if abs(x) <= _ROUNDING else float(x > 0) for x in leads]
    nodes = _Grid.of(points, pools).likely(points)
    return [nodes.better(points[best], points[k]) for k in rivals]


@dataclass(frozen=True)
class _Grid:
    """Nodes of the integration.

    Attributes:
        ratios: Values of λ, of shape (λ, 1, 1, 1).
        sigma2: Values of σ², of shape (1, σ, 1, 1).
        tau2: Values of τ², of shape (1, σ, τ, 1).
        mu: Values of μ, of shape (1, σ, τ, μ).
        log: Logarithm of the nodes' probability before any y, of shape (λ, σ, τ, 1).
    """

    ratios: Floats
    sigma2: Floats
    tau2: Floats
    mu: Floats
    log: Floats

    @classmethod
    def of(cls, points: Sequence[Known], pools: TwoPools) -> _Grid:
        """Return the nodes for the points of a study."""
        degrees = sum(pools.degrees)
        keep = pools.weights > _SKIP
        sums = np.maximum(pools.sums, 1e-12 * pools.sums.max())[keep]
        center, width = np.log(sums / degrees), math.sqrt(2 / degrees)
        low, high = center.min() - _BELOW_CENTER * width, center.max() + _ABOVE_CENTER * width
        steps = math.ceil((high - low) / (_STEP * width))
        sigma2 = np.exp(np.linspace(low, high, steps + 1))
        # p(λ, log σ²); the weights have the integral over σ in them
        log = (np.log(pools.weights[keep]) + degrees / 2 * np.log(sums))[:, None]
        log = log - degrees / 2 * np.log(sigma2) - sums[:, None] / (2 * sigma2)
        tau2 = sigma2[:, None] * _TAUS**2
        spread = np.sqrt(sigma2[:, None] + tau2)
        middle = float(np.median([p.mean for p in points]))
        mu = middle + 1.25 / math.sqrt(len(points)) * spread[..., None] * _MUS
        return cls(
            pools.ratios[keep][:, None, None, None],
            sigma2[None, :, None, None],
            tau2[None, :, :, None],
            mu[None],
            (log[:, :, None] + np.log(spread))[..., None],
        )

    def likely(self, points: Sequence[Known]) -> _Nodes:
        """Return the nodes that the points leave likely."""
        log = self.log
        for p in points:
            own2 = self.sigma2 * self.ratios if p.baseline else self.sigma2
            total2 = (own2 / p.launches)[..., None] + self.tau2[..., None] * _WIDER**2
            most, density = _densities((p.mean - self.mu[..., None]) ** 2, total2)
            log = log + most[..., 0] + np.log(density @ _MIX)
        weight = np.exp(log - log.max())
        use = weight > _RARE * weight.sum()

        def at(x: Floats) -> Floats:
            return np.asarray(np.broadcast_to(x, use.shape)[use])

        weights = weight[use] / weight[use].sum()
        return _Nodes(weights, *map(at, (self.ratios, self.sigma2, self.tau2, self.mu)))


@dataclass(frozen=True)
class _Nodes:
    """Likely nodes: their probability, λ, σ², τ² and μ, each of shape (nodes,)."""

    weights: Floats
    ratios: Floats
    sigma2: Floats
    tau2: Floats
    mu: Floats

    def better(self, a: Known, b: Known) -> float:
        """Return the probability that the θ of ``a`` is above that of ``b``."""
        weights_a, means_a, variances_a = self._posterior(a)
        weights_b, means_b, variances_b = self._posterior(b)
        apart = means_a[:, :, None] - means_b[:, None]
        error = np.sqrt(variances_a[:, :, None] + variances_b[:, None])
        above = np.interp(apart / error, _Z, _BELOW)
        above = above * weights_a[:, :, None] * weights_b[:, None]
        return float(self.weights @ above.sum(axis=(1, 2)))

    def _posterior(self, p: Known) -> tuple[Floats, Floats, Floats]:
        """Return weights, means and variances of a point's θ, each of shape (nodes, 4)."""
        own2 = self.sigma2 * self.ratios if p.baseline else self.sigma2
        noise2 = (own2 / p.launches)[:, None]
        wide2 = self.tau2[:, None] * _WIDER**2
        total2 = noise2 + wide2
        off = p.mean - self.mu[:, None]
        density = _MIX * _densities(off**2, total2)[1]
        pull = wide2 / total2
        weights = density / density.sum(axis=1, keepdims=True)
        return weights, self.mu[:, None] + pull * off, pull * noise2


def _densities(off2: Floats, total2: Floats) -> tuple[Floats, Floats]:
    """Return normal densities as a logarithm, and the factors that it is times.

    Far from every component all densities are 0 as numbers, but not their ratios.

    Args:
        off2: Square of the distance from the center, of shape (…, 1).
        total2: Variance of each component, of shape (…, 4), ascending.

    Returns:
        Logarithms of shape (…, 1), and factors of shape (…, 4), of which the last is not 0.
    """
    most = off2 / (-2 * total2[..., -1:])
    return most, np.exp(off2 / (-2 * total2) - most) / np.sqrt(total2)
