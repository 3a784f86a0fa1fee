"""Effects of slots: how far each is off by nature, as points that several of them launched tell.

=======  ==========================================================================================
symbol   meaning
=======  ==========================================================================================
y        logarithm of an objective, one a launch
X, β     which launch is of which point; what the points would give on a typical slot
Z, u     which launch was on which slot; effects of the slots
τ, σ     standard deviation of u; that of launches of one point on one slot
ρ        τ²/σ²
V        I + ρ·Z·Zᵀ: covariance of the launches in units of σ²
P        V⁻¹ - V⁻¹·X·(Xᵀ·V⁻¹·X)⁻¹·Xᵀ·V⁻¹
n, p     number of launches and of points
=======  ==========================================================================================

Two GPUs of one model differ by some percent. A point that was launched on the faster one then looks
better than it is, and so do all its launches there. Therefore slots are a random effect:

    y = X·β + Z·u + e,   u ~ N(0, τ²),   e ~ N(0, σ²)

Only points that two slots launched tell how the slots differ; all others have a β of their own. The
effects are shrunk towards 0 as far as little is known of them (C. R. Henderson, "Best linear
unbiased estimation and prediction under a selection model", Biometrics 31, 1975):

    û = ρ·Zᵀ·P·y,   cov(u | y) = σ²·(ρ·I - ρ²·Zᵀ·P·Z),   β̂ = (Xᵀ·V⁻¹·X)⁻¹·Xᵀ·V⁻¹·y

β̂ uses differences within the slots, and between them as far as ρ lets them count. Where each slot
launched the same points equally often it is the plain mean, and a difference of two points has no
part of u in it. σ and τ are those of the restricted likelihood, in which β has no part (H. D.
Patterson, R. Thompson, "Recovery of inter-block information when block sizes are unequal",
Biometrika 58, 1971),

    p(y | σ, τ) ∝ σ^(p-n) · |V|^(-1/2) · |Xᵀ·V⁻¹·X|^(-1/2) · exp(-yᵀ·P·y / 2σ²),

on a grid, times log-normal priors. With two or three slots the likelihood alone puts τ at 0 as
often as not; a prior that is 0 there does not (Y. Chung, S. Rabe-Hesketh, V. Dorie, A. Gelman, J.
Liu, "A nondegenerate penalized likelihood estimator for variance parameters in multilevel models",
Psychometrika 78, 2013).

The residuals P·y have the expected squares σ²·P_ii. So their sum over some launches, with Σ P_ii
degrees of freedom, estimates σ² without what the slots add; with one slot these are the squares
around the points' means with n - p degrees. That is 0 for points that were launched once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autotune.stats.measurement import Floats, Ints

# Log-normal priors of τ and σ: the median, and the standard deviation of the logarithm.
_TAU = (0.02, 0.7)
_SIGMA = (0.03, 1.0)
# Grid of both; its step is the same, so that there are few different ratios.
_GRID = np.geomspace(0.001, 0.5, 19)
_RATIOS = np.geomspace((_GRID[0] / _GRID[-1]) ** 2, (_GRID[-1] / _GRID[0]) ** 2, 2 * len(_GRID) - 1)


@dataclass(frozen=True)
class Layout:
    """Which launch is of which point, and on which slot it was.

    Attributes:
        points: Index of each launch's point, of shape (launches,).
        slots: Index of each launch's slot, of shape (launches,).
    """

    points: Ints
    slots: Ints

    @classmethod
    def of(cls, points: Sequence[Hashable], slots: Sequence[Hashable]) -> Layout:
        """Return the layout of launches, whose points and slots are counted as they come."""
        return cls(_indices(points), _indices(slots))

    @property
    def several(self) -> bool:
        """Whether more than one slot launched."""
        return bool(self.slots.max(initial=0) > 0)

    @cached_property
    def x(self) -> Floats:
        """The matrix X, of shape (launches, points)."""
        return np.eye(int(self.points.max(initial=-1)) + 1)[self.points]

    @cached_property
    def z(self) -> Floats:
        """The matrix Z, of shape (launches, slots)."""
        return np.eye(int(self.slots.max(initial=-1)) + 1)[self.slots]

    def projections(self, ratios: Floats) -> tuple[Floats, Floats, Floats]:
        """Return β̂'s weights, P, and the logarithms of the two determinants together.

        Args:
            ratios: Values of ρ, of shape (ratios,).

        Returns:
            Arrays of shapes (ratios, points, launches), (ratios, launches, launches) and (ratios,).
        """
        counts = self.z.sum(axis=0)
        # V⁻¹ by Sherman and Morrison: each slot is a block of its own
        shrink = ratios[:, None] / (1 + ratios[:, None] * counts)
        inverse = np.eye(len(self.z)) - np.einsum("is,rs,js->rij", self.z, shrink, self.z)
        by_point = np.einsum("ip,rij->rpj", self.x, inverse)
        information = by_point @ self.x
        weights = np.linalg.solve(information, by_point)
        p = inverse - np.swapaxes(by_point, 1, 2) @ weights
        logs = np.log1p(ratios[:, None] * counts).sum(axis=1)
        return weights, p, np.asarray(logs + np.linalg.slogdet(information)[1])


@dataclass(frozen=True)
class SlotFit:
    """What launches say of one objective at a given ρ.

    Attributes:
        ratio: The value of ρ.
        weights: Weight of each launch in each β̂, of shape (points, launches).
        residuals: Residuals P·y, of shape (launches,).
        free: Degrees of freedom P_ii of each, of shape (launches,).
    """

    ratio: float
    weights: Floats
    residuals: Floats
    free: Floats

    @classmethod
    def at(cls, y: Floats, layout: Layout, ratio: float) -> SlotFit:
        """Return the fit of logarithms of shape (launches,)."""
        weights, p, _ = layout.projections(np.array([ratio]))
        return cls(ratio, weights[0], p[0] @ y, np.maximum(np.diag(p[0]), 0.0))


@dataclass(frozen=True)
class Effects:
    """What is known of the slots' effects on one objective.

    Attributes:
        ratio: Geometric mean of ρ by its posterior.
        mean: Mean of each slot's u, of shape (slots,).
        variance: Variance of u less the mean over the slots, which changes no comparison, of shape
            (slots,); of a slot that no point links to another one, that of u by the prior.
    """

    ratio: float
    mean: Floats
    variance: Floats


def effects(y: Floats, layout: Layout) -> Effects:
    """Return the posterior of the slots' effects.

    Args:
        y: Logarithms of one objective, of shape (launches,).
        layout: Points and slots of the launches.
    """
    counts = np.bincount(layout.points)
    again = counts[layout.points] > 1  # a point that was launched once says nothing
    own, slots = Layout.of(layout.points[again].tolist(), layout.slots[again].tolist()), layout.z
    named = list(dict.fromkeys(layout.slots[again].tolist()))
    y = y[again]
    _, p, logs = own.projections(_RATIOS)
    residuals = p @ y  # of shape (ratios, launches)
    squares = residuals @ y
    degrees = len(y) - own.x.shape[1]
    # [σ, τ] → index of its ρ
    size = len(_GRID)
    index = np.arange(size)[None, :] - np.arange(size)[:, None] + size - 1
    log = -degrees * np.log(_GRID)[:, None] - logs[index] / 2
    log = log - np.maximum(squares[index], 0.0) / (2 * _GRID[:, None] ** 2)
    log = log + _log_prior(_SIGMA)[:, None] + _log_prior(_TAU)
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    by_ratio = np.bincount(index.ravel(), weights.ravel(), len(_RATIOS))
    means = _RATIOS[:, None] * (residuals @ own.z)
    mean = by_ratio @ means
    held = own.z.T @ p @ own.z
    sigma2 = np.bincount(index.ravel(), (weights * _GRID[:, None] ** 2).ravel(), len(_RATIOS))
    # cov(u | y), with the mean over σ and τ
    covariance = (sigma2 @ _RATIOS) * np.eye(len(named))
    covariance -= np.einsum("r,rst->st", sigma2 * _RATIOS**2, held)
    covariance += np.einsum("r,rs,rt->st", by_ratio, means - mean, means - mean)
    tau2 = float(weights.sum(axis=0) @ _GRID**2)
    every, known = np.zeros(slots.shape[1]), np.full(slots.shape[1], tau2)
    if len(named) > 1:
        less = np.eye(len(named)) - 1 / len(named)
        every[named] = mean
        known[named] = np.diag(less @ covariance @ less).clip(0.0)
    return Effects(float(np.exp(by_ratio @ np.log(_RATIOS))), every, known)


def _log_prior(prior: tuple[float, float]) -> Floats:
    """Return the logarithm of a prior's density on the grid, of shape (19,)."""
    median, spread = prior
    return np.asarray(-((np.log(_GRID / median) / spread) ** 2) / 2)


def _indices(names: Sequence[Hashable]) -> Ints:
    """Return names as numbers, in the order in which they first come."""
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names], dtype=np.int64)
