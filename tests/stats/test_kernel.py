"""Covariance and likelihood of Gaussian processes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from autotune.stats.kernel import log_likelihoods, matern


def test_the_likelihoods_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(5, 7, 7))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(7)
    y = rng.normal(size=7)
    expected = [multivariate_normal(np.zeros(7), k).logpdf(y) for k in covariances]
    assert log_likelihoods(covariances, y) == pytest.approx(expected)


def test_a_covariance_that_is_none_is_refused() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        log_likelihoods(np.array([np.eye(2), -np.eye(2)]), np.zeros(2))


def test_the_correlation_falls_from_one() -> None:
    found = matern(np.linspace(0, 5, 20))
    assert found[0] == 1
    assert (np.diff(found) < 0).all()
    assert found[-1] < 1e-3
