"""Covariance and likelihood of Gaussian processes; NumPy alone: `best` starts without SciPy."""

from __future__ import annotations

import math

import numpy as np

from autotune.stats.measurement import Floats

_SQRT5 = math.sqrt(5)


def matern(r: Floats) -> Floats:
    """Return the Matérn 5/2 correlation at distances in units of the length scales."""
    return np.asarray((1 + _SQRT5 * r + 5 / 3 * r**2) * np.exp(-_SQRT5 * r))


def log_likelihoods(covariances: Floats, y: Floats) -> Floats:
    """Return the logarithms of normal densities with mean 0, one for each covariance.

    Args:
        covariances: Covariances, of shape (many, values, values).
        y: Values, of shape (values,).

    Returns:
        Logarithms of shape (many,) (C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for
        Machine Learning", MIT Press 2006, equation 2.30).

    Raises:
        numpy.linalg.LinAlgError: a covariance is not positive definite.
    """
    chol = np.linalg.cholesky(covariances)
    diagonal = np.diagonal(chol, axis1=1, axis2=2)
    half = np.empty(chol.shape[:2])
    for i in range(len(y)):  # forward substitution, of all at once; NumPy would factorize again
        known = (chol[:, i, :i] * half[:, :i]).sum(axis=1)
        half[:, i] = (y[i] - known) / diagonal[:, i]
    logs = np.log(diagonal).sum(axis=1)
    return np.asarray(-(half**2).sum(axis=1) / 2 - logs - len(y) * math.log(2 * math.pi) / 2)
