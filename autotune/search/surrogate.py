"""What is believed of one objective at points that were not launched: a Gaussian process.

    y(x) = Σ_j b_j·h_j(x) + f(x) + noise,   b_j ~ N(mean_j, sd_j²),   f ~ GP(0, s²·k)

y is the logarithm of an objective, so that everything is in shares. The *trend* functions h carry
what is known beforehand: a constant, the prediction from acceptance (its coefficient is expected
to be 1; where the prediction is wrong the data move it, and f takes over), how well the CUDA graphs
cover a point. k is Matérn 5/2 with a length scale for each feature. The noise of a launch is its
own measured variance (the interval of its requests) plus what launches of one point differ by,
which is learnt: a launch measured with few requests counts less.

The coefficients are integrated out (C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for
Machine Learning", MIT Press 2006, section 2.7); length scales, s and the scatter between launches
maximise the posterior under log-normal priors, since ten launches alone do not tell them (section
5.4.1; gradients are those of equation 5.9). BoTorch and scikit-learn were looked at: the one takes
half a second for a fit that takes 10 ms here, which a replay of 10,000 studies does not survive,
the other has neither priors nor a trend with uncertain coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from autotune.stats.measurement import Floats

# Log-normal priors: median and the standard deviation of the logarithm.
_LENGTH = (0.4, 0.8)  # of a feature that runs from 0 to 1
_BETWEEN = (0.03, 0.4)  # launches of one point; 10 to 20 % were seen (vLLM issue #53436), 3 % often
_BOUNDS = 4.0  # no hyperparameter leaves its median by more standard deviations
_JITTER = 1e-8
_SQRT5 = math.sqrt(5)


@dataclass(frozen=True)
class Trend:
    """One function of the trend.

    Attributes:
        values: At the observed points.
        mean: Expected coefficient.
        sd: How sure that is.
    """

    values: Floats
    mean: float
    sd: float


@dataclass(frozen=True)
class Surrogate:
    """A fitted process; made by :func:`fit`.

    Attributes:
        lengths: Length scale of each feature.
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
        """Mean, variance and covariance of the noiseless objective.

        Args:
            x: Points × features.
            trends: The trend functions at those points, in the order of the fit.
            first: Of how many points, the first ones, the covariance with all is wanted.

        Returns:
            Of shapes (points,), (points,) and (first, points).
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
        cov = self.scale**2 * _matern(_distances(a / self.lengths, b / self.lengths))
        for t, ha, hb in zip(self._trends, trends_a, trends_b, strict=True):
            cov = cov + t.sd**2 * np.outer(ha, hb)
        return np.asarray(cov)


def fit(
    x: Floats, y: Floats, variances: Floats, trends: Sequence[Trend], scale: float
) -> Surrogate:
    """Fits the process to what was measured.

    Args:
        x: Launches × features, each from 0 to 1; a point that was launched twice stands twice.
        y: Logarithms of the objective.
        variances: Of y, within its launch.
        trends: What is known beforehand.
        scale: How large f is expected to be.

    Raises:
        ValueError: there is no launch, or a number is not finite.
    """
    if not len(x) or not all(np.isfinite(a).all() for a in (x, y, variances)):
        raise ValueError("a surrogate needs finite numbers of at least one launch")
    features = x.shape[1]
    medians = np.log([*[_LENGTH[0]] * features, scale, _BETWEEN[0]])
    spreads = np.array([*[_LENGTH[1]] * features, 1.0, _BETWEEN[1]])
    rest = y - _trend_mean(trends, [t.values for t in trends])
    fixed = np.diag(variances + _JITTER)
    for t in trends:
        fixed += t.sd**2 * np.outer(t.values, t.values)
    squares = (x[:, None, :] - x[None, :, :]) ** 2

    def loss(z: Floats) -> tuple[float, Floats]:
        """Minus the log posterior, and its gradient, in standardised logarithms."""
        theta = np.exp(medians + spreads * z)
        scaled = squares / theta[:features] ** 2
        r = np.sqrt(scaled.sum(axis=2))
        k = theta[-2] ** 2 * _matern(r)
        try:
            chol = cho_factor(fixed + k + theta[-1] ** 2 * np.eye(len(y)), lower=True)
        except LinAlgError:
            return math.inf, np.zeros_like(z)
        alpha = cho_solve(chol, rest)
        value = rest @ alpha / 2 + np.log(np.diag(chol[0])).sum() + z @ z / 2
        inner = np.outer(alpha, alpha) - cho_solve(chol, np.eye(len(y)))
        # d Matérn / d log length = 5/3·(1 + √5 r)·exp(−√5 r)·(distance in that feature)²
        slope = inner * theta[-2] ** 2 * (5 / 3) * (1 + _SQRT5 * r) * np.exp(-_SQRT5 * r)
        by_length = np.einsum("ij,ijk->k", slope, scaled)
        by_scale = 2 * (inner * k).sum()
        by_between = 2 * theta[-1] ** 2 * np.trace(inner)
        gradient = -np.array([*by_length, by_scale, by_between]) / 2 * spreads + z
        return float(value), gradient

    start = np.zeros(features + 2)
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[(-_BOUNDS, _BOUNDS)] * len(start)
    )
    theta = np.exp(medians + spreads * (found.x if np.isfinite(found.fun) else start))
    lengths, amplitude, between = theta[:features], float(theta[-2]), float(theta[-1])
    k = amplitude**2 * _matern(_distances(x / lengths, x / lengths))
    chol = np.asarray(np.linalg.cholesky(fixed + k + between**2 * np.eye(len(y))), dtype=np.float64)
    weights = cho_solve((chol, True), rest)
    return Surrogate(lengths, amplitude, between, x, tuple(trends), chol, weights)


def _trend_mean(trends: Sequence[Trend], values: Sequence[Floats]) -> Floats:
    return np.asarray(sum(t.mean * v for t, v in zip(trends, values, strict=True)))


def _distances(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.sqrt(((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)))


def _matern(r: Floats) -> Floats:
    return np.asarray((1 + _SQRT5 * r + 5 / 3 * r**2) * np.exp(-_SQRT5 * r))
