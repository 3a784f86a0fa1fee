"""Belief of one objective at points that were not launched: a Gaussian process.

=========  ========================================================================================
symbol     meaning
=========  ========================================================================================
x          features of a point, each from 0 to 1
y          logarithm of an objective, so that all differences are shares
h_j, b_j   trend function j and its coefficient
f          the part of y that the trend does not explain
s, k       standard deviation of f, and its correlation: Matérn 5/2, one length scale a feature
r          distance of two points in units of the length scales
noise      deviation of a launch from its point
=========  ========================================================================================

    y(x) = Σ_j b_j·h_j(x) + f(x) + noise,   b_j ~ N(mean_j, sd_j²),   f ~ GP(0, s²·k)

The *trend* functions contain prior knowledge: a constant, the prediction from acceptance, and how
well the CUDA graphs cover a point. The coefficient of the prediction is expected to be 1. Where the
prediction is wrong the data change the coefficient, and f explains the rest. The variance of the
noise is the launch's own measured variance (the interval of its requests) plus that between
launches of one point, which is fitted. So a launch measured with few requests counts less.

The coefficients are integrated out (C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for
Machine Learning", MIT Press 2006, section 2.7). Length scales, s and the standard deviation between
launches maximize the posterior under log-normal priors, because ten launches alone do not determine
them (section 5.4.1; gradients are those of equation 5.9). BoTorch needs half a second for a fit
that takes 10 ms here, which is too slow to replay 10,000 studies. scikit-learn has neither priors
nor a trend with uncertain coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs
from scipy.optimize import minimize

from autotune.search.noise import BETWEEN
from autotune.stats.kernel import matern
from autotune.stats.measurement import Floats

# Log-normal priors: the median, and the standard deviation of the logarithm.
_LENGTH = (0.4, 0.8)  # length scale of a feature from 0 to 1
_BOUNDS = 4.0  # largest distance of a hyperparameter from its median, in standard deviations
_JITTER = 1e-8
_SQRT5 = math.sqrt(5)


@dataclass(frozen=True)
class Trend:
    """One function of the trend.

    Attributes:
        values: Values at the observed launches, of shape (launches,).
        mean: Expected coefficient.
        sd: Standard deviation of the coefficient.
    """

    values: Floats
    mean: float
    sd: float


@dataclass(frozen=True)
class Surrogate:
    """A fitted process; :func:`fit` makes it.

    Attributes:
        lengths: Length scales, of shape (features,).
        scale: Standard deviation of f.
        between: Standard deviation between launches of one point.
    """

    lengths: Floats
    scale: float
    between: float
    _x: Floats
    _trends: tuple[Trend, ...]
    _chol: Floats
    _weights: Floats

    def posterior(
        self, x: Floats, trends: Sequence[Floats], first: int
    ) -> tuple[Floats, Floats, Floats]:
        """Return mean, variance and covariance of the objective's logarithm without noise.

        Args:
            x: Features of the points, of shape (points, features).
            trends: Trend functions at those points, in the order of the fit.
            first: Number of the first points whose covariance with all points is returned.

        Returns:
            Arrays of shapes (points,), (points,) and (first, points).
        """
        mean = _trend_mean(self._trends, trends)
        cross = self._prior(self._x, [t.values for t in self._trends], x, trends)
        half = solve_triangular(self._chol, cross, lower=True)
        prior = self.scale**2 + sum(
            (t.sd * h) ** 2 for t, h in zip(self._trends, trends, strict=True)
        )
        covariance = self._prior(x[:first], [h[:first] for h in trends], x, trends)
        return (
            mean + cross.T @ self._weights,
            np.maximum(prior - (half**2).sum(axis=0), 0.0),
            covariance - half[:, :first].T @ half,
        )

    def _prior(
        self, a: Floats, trends_a: Sequence[Floats], b: Floats, trends_b: Sequence[Floats]
    ) -> Floats:
        cov = self.scale**2 * matern(_distances(a / self.lengths, b / self.lengths))
        for t, ha, hb in zip(self._trends, trends_a, trends_b, strict=True):
            cov = cov + t.sd**2 * np.outer(ha, hb)
        return np.asarray(cov)


def priors(features: int, scale: float) -> tuple[Floats, Floats]:
    """Return the log-normal priors: means and standard deviations of the logarithms.

    They are those of the length scales, s and the standard deviation between launches, so both are
    of shape (features + 2,).

    Args:
        features: Number of features.
        scale: Median of the prior of s.
    """
    medians = np.log([*[_LENGTH[0]] * features, scale, BETWEEN[0]])
    return medians, np.array([*[_LENGTH[1]] * features, 1.0, BETWEEN[1]])


def fit(
    x: Floats, y: Floats, variances: Floats, trends: Sequence[Trend], scale: float
) -> Surrogate:
    """Fit the process to measured launches.

    Args:
        x: Features, of shape (launches, features), each from 0 to 1; a point that was launched
            twice has two rows.
        y: Logarithms of the objective, of shape (launches,).
        variances: Variances of ``y`` within the launches, of shape (launches,).
        trends: Trend functions: prior knowledge.
        scale: Median of the prior of s.

    Raises:
        ValueError: there is no launch, or a number is not finite.
    """
    if not len(x) or not all(np.isfinite(a).all() for a in (x, y, variances)):
        raise ValueError("a surrogate needs finite numbers of at least one launch")
    arrays = (x, y, variances, *(t.values for t in trends))
    key = (
        x.shape,
        scale,
        *((t.mean, t.sd) for t in trends),
        *(np.asarray(a, dtype=np.float64).tobytes() for a in arrays),
    )
    if key not in _FITTED:  # for a batch it is asked with the same launches again and again
        if len(_FITTED) >= _MOST_FITTED:
            _FITTED.clear()
        _FITTED[key] = _fit(x, y, variances, trends, scale)
    return _FITTED[key]


# By all that they are of, to the last bit.
_FITTED: dict[tuple[object, ...], Surrogate] = {}
_MOST_FITTED = 16  # two objectives, with and without prior knowledge, of the last four proposals


def _fit(
    x: Floats, y: Floats, variances: Floats, trends: Sequence[Trend], scale: float
) -> Surrogate:
    """Fit the process: :func:`fit`."""
    features = x.shape[1]
    medians, spreads = priors(features, scale)
    rest = y - _trend_mean(trends, [t.values for t in trends])
    fixed = _fixed(variances, trends)
    squares = (x[:, None, :] - x[None, :, :]) ** 2
    diagonal = np.arange(len(y))
    lower = np.tril(np.ones((len(y), len(y))), -1) + np.eye(len(y)) / 2

    def loss(z: Floats) -> tuple[float, Floats]:
        """Return minus the log posterior and its gradient, in standardized logarithms."""
        theta = np.exp(medians + spreads * z)
        scaled = squares / theta[:features] ** 2
        t = _SQRT5 * np.sqrt(_sum(scaled))
        decay = theta[-2] ** 2 * np.exp(-t)
        k = decay * (1 + t + t * t / 3)
        covariance = fixed + k
        covariance[diagonal, diagonal] += theta[-1] ** 2
        # LAPACK itself: SciPy's functions around it take longer than so small a matrix
        chol, failed = dpotrf(covariance, lower=1, clean=0)
        if failed:
            return math.inf, np.zeros_like(z)
        alpha = dpotrs(chol, rest, lower=1)[0]
        value = rest @ alpha / 2 + np.log(chol[diagonal, diagonal]).sum() + z @ z / 2
        half = dpotri(chol, lower=1)[0] * lower  # of the inverse: half of its diagonal, too
        inner = np.outer(alpha, alpha) - half - half.T
        # d Matérn / d log length = 5/3·(1 + √5 r)·exp(−√5 r)·(distance in that feature)²
        slope = inner * decay * (1 + t) * (5 / 3)
        by_length = slope.ravel() @ scaled.reshape(-1, features)
        by_scale = 2 * (inner * k).sum()
        by_between = 2 * theta[-1] ** 2 * inner[diagonal, diagonal].sum()
        gradient = -np.array([*by_length, by_scale, by_between]) / 2 * spreads + z
        return float(value), gradient

    start = np.zeros(features + 2)
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[(-_BOUNDS, _BOUNDS)] * len(start)
    )
    theta = np.exp(medians + spreads * (found.x if np.isfinite(found.fun) else start))
    return process(x, y, variances, trends, theta)


def process(
    x: Floats, y: Floats, variances: Floats, trends: Sequence[Trend], theta: Floats
) -> Surrogate:
    """Return the process of given hyperparameters.

    The other arguments are those of :func:`fit`.

    Args:
        theta: Length scales, s, and the standard deviation between launches, of shape
            (features + 2,).
    """
    lengths, amplitude, between = theta[:-2], float(theta[-2]), float(theta[-1])
    rest = y - _trend_mean(trends, [t.values for t in trends])
    k = _fixed(variances, trends) + amplitude**2 * matern(_distances(x / lengths, x / lengths))
    chol = np.asarray(np.linalg.cholesky(k + between**2 * np.eye(len(y))), dtype=np.float64)
    weights = cho_solve((chol, True), rest)
    return Surrogate(lengths, amplitude, between, x, tuple(trends), chol, weights)


def _fixed(variances: Floats, trends: Sequence[Trend]) -> Floats:
    """Return the part of the covariance of launches that no hyperparameter changes."""
    out = np.diag(variances + _JITTER)
    for t in trends:
        out += t.sd**2 * np.outer(t.values, t.values)
    return np.asarray(out)


def _trend_mean(trends: Sequence[Trend], values: Sequence[Floats]) -> Floats:
    return np.asarray(sum(t.mean * v for t, v in zip(trends, values, strict=True)))


def _distances(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.sqrt(_sum((a[:, None, :] - b[None, :, :]) ** 2)))


def _sum(a: Floats) -> Floats:
    """Return the sum over the last of three axes, to the last bit as NumPy gives it.

    NumPy adds fewer than eight numbers one after the other, too, but takes several times as long.
    """
    if not 0 < a.shape[2] < 8:
        return np.asarray(a.sum(axis=2))
    out = a[:, :, 0].copy()
    for i in range(1, a.shape[2]):
        out += a[:, :, i]
    return out
