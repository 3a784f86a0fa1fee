"""Whether anything matters at all: the evidence for one truth at all points.

=========  ========================================================================================
symbol     meaning
=========  ========================================================================================
y          costs of the launches by one objective
M          hypothesis: same (all points have one truth), plain (a surrogate without prior
           knowledge), told (one whose trend has the prediction from acceptance)
θ          hyperparameters of M: length scales, s, the standard deviation between launches
p(y | M)   evidence: the mean of p(y | θ, M) over the prior of θ
J          number of objectives
=========  ========================================================================================

A surrogate cannot say that nothing matters: its scale s is never 0, so it always believes in peaks
that nobody has looked at, and in those that noise has made. Therefore the expected improvement is
averaged over two beliefs (J. A. Hoeting, D. Madigan, A. E. Raftery, C. T. Volinsky, "Bayesian model
averaging", Statistical Science 14, 1999): that of the surrogate, and that all points are the same,
by which no launch gains anything. With the prior odds q / (1 - q), the odds of *same* are

    q / (1 - q) · exp( mean over the objectives of log p(y | same) - log p(y | some) ),
    p(y | some) = (p(y | plain) + p(y | told)) / 2

The mean over the objectives is a sum divided by J: a lucky launch is lucky in all of them, so they
are one piece of evidence, not J. Each objective has its own mean of the surrogates, because what
acceptance tells of tok/s may be wrong of p95. p(y | θ, M) is normal (C. E. Rasmussen, C. K. I.
Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, equation 2.30), and its mean
over the prior is one over quasi-random draws of θ.

If points do differ, the same likelihoods are the posterior of surrogates and θ, by which an
improvement is averaged where a search could end.

Where points differ by more than launches of one point do, the chance is 0 after the first launches,
and the search is what it would be without this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import expit, logit, logsumexp, ndtri, softmax
from scipy.stats import qmc

from autotune.search.surrogate import Trend, priors
from autotune.stats.kernel import log_likelihoods, matern
from autotune.stats.measurement import Floats

# Prior chance that nothing matters, chosen by replays of a flat world with 10 % between launches.
_PRIOR = 0.7
_DRAWS = 128
# Largest number of launches: after so many the surrogate's scale has learned what matters.
_MOST = 64


@dataclass(frozen=True)
class Evidence:
    """What launches say of the hypotheses.

    Attributes:
        same: Posterior chance, 0 … 1, that all points have the same truth.
        thetas: Draws of θ of each surrogate, of shape (surrogates, draws, features + 2).
        weights: Posterior chances of surrogates and draws, if points differ, by each objective, of
            shape (objectives, surrogates, draws); of no objectives after too many launches.
    """

    same: float
    thetas: Floats
    weights: Floats


def weigh(
    x: Floats,
    costs: Floats,
    variances: Floats,
    surrogates: Sequence[tuple[Sequence[Trend], float]],
) -> Evidence:
    """Return what launches say of the hypotheses.

    Args:
        x: Features of the launches, of shape (launches, features).
        costs: Costs, of shape (launches, objectives).
        variances: Their variances within the launches, of the same shape.
        surrogates: The surrogates that say otherwise: trend functions, the constant first, and the
            median of the prior of s.
    """
    count, features = x.shape
    # the priors of the length scales are those of every surrogate
    thetas = np.array([_thetas(features, scale) for _, scale in surrogates])
    if count > _MOST:
        return Evidence(0.0, thetas, np.empty((0, *thetas.shape[:2])))
    squares = (x[:, None, :] - x[None, :, :]) ** 2
    correlations = matern(np.sqrt(np.einsum("ijf,kf->kij", squares, thetas[0][:, :-2] ** -2.0)))
    rest = costs - costs.mean(axis=0)
    for_same, weights = [], []
    for y, v in zip(rest.T, variances.T, strict=True):
        same = _likelihoods(y, v, surrogates[0][0][:1], thetas[0], None)
        some = np.array(
            [
                _likelihoods(y, v, trends, theta, correlations)
                for (trends, _), theta in zip(surrogates, thetas, strict=True)
            ]
        )
        for_same.append(logsumexp(same) - logsumexp(some) + np.log(len(some)))
        weights.append(softmax(some))
    chance = float(expit(logit(_PRIOR) + np.mean(for_same)))
    return Evidence(chance, thetas, np.array(weights))


@cache
def _draws(size: int) -> Floats:
    """Return quasi-random draws of standard normal numbers, of shape (draws, size)."""
    out = ndtri(qmc.Sobol(size, rng=0).random(_DRAWS) * 0.998 + 0.001)
    out.flags.writeable = False
    return np.asarray(out)


def _thetas(features: int, scale: float) -> Floats:
    """Return draws of θ from its prior, of shape (draws, features + 2)."""
    medians, spreads = priors(features, scale)
    return np.asarray(np.exp(medians + spreads * _draws(features + 2)))


def _likelihoods(
    y: Floats,
    variances: Floats,
    trends: Sequence[Trend],
    theta: Floats,
    correlations: Floats | None,
) -> Floats:
    """Return the logarithm of the likelihood of one objective by each θ, of shape (draws,).

    Args:
        y: Costs less their mean, of shape (launches,).
        variances: Their variances within the launches.
        trends: Trend functions.
        theta: Draws of θ, of shape (draws, features + 2).
        correlations: Of the launches by each of them, of shape (draws, launches, launches); None: s
            is 0.
    """
    rest = y - sum(t.mean * t.values for t in trends)
    fixed = np.diag(variances) + sum(t.sd**2 * np.outer(t.values, t.values) for t in trends)
    k = fixed + (theta[:, -1] ** 2)[:, None, None] * np.eye(len(y))
    if correlations is not None:
        k += (theta[:, -2] ** 2)[:, None, None] * correlations
    return log_likelihoods(k, rest)
