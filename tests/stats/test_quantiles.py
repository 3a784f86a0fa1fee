"""Quantiles that are computed here are SciPy's."""

from __future__ import annotations

import math

import pytest
from scipy import special

from autotune.stats import quantiles

LEVELS = (0.0005, 0.005, 0.025, 0.1, 0.3, 0.5, 0.6, 0.9, 0.975, 0.995, 0.9999)


@pytest.mark.parametrize("p", LEVELS)
def test_normal(p: float) -> None:
    assert quantiles.normal(p) == pytest.approx(special.ndtri(p), rel=1e-12, abs=1e-15)
    z = quantiles.normal(p)
    assert quantiles.normal_probability(z) == pytest.approx(special.ndtr(z), rel=1e-12)


@pytest.mark.parametrize("p", LEVELS)
@pytest.mark.parametrize("degrees", [1, 2, 3, 4.7, 9, 19, 63, 250, 5000])
def test_student_t(degrees: float, p: float) -> None:
    expected = float(special.stdtrit(degrees, p))
    assert quantiles.student_t(degrees, p) == pytest.approx(expected, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("p", LEVELS)
@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 40), (40, 1), (12, 189), (500, 501)])
def test_beta(a: float, b: float, p: float) -> None:
    expected = float(special.betaincinv(a, b, p))
    assert quantiles.beta(a, b, p) == pytest.approx(expected, rel=1e-11)
    assert quantiles.incomplete_beta(a, b, expected) == pytest.approx(p, rel=1e-10)


@pytest.mark.parametrize("p", LEVELS)
@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("n", [12, 57.3, 400, 20_000])
def test_binomial(n: float, q: float, p: float) -> None:
    expected = float(special.bdtrik(p, n, q))
    found = quantiles.binomial(p, n, q)
    assert found == pytest.approx(0.0 if math.isnan(expected) else expected, rel=1e-9, abs=1e-9)


def test_the_ends_of_the_incomplete_beta_function() -> None:
    assert quantiles.incomplete_beta(2, 3, 0) == 0
    assert quantiles.incomplete_beta(2, 3, 1) == 1
    assert quantiles.incomplete_beta(0, 3, 0.2) == 1
