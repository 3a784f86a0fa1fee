"""Scatter of the baseline and of the other points, pooled as far as they agree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autotune.stats import Estimate, Scatter
from autotune.stats.two_pools import TwoPools


def half(e: Estimate) -> float:
    assert e.low is not None
    assert e.high is not None
    return math.log(e.high / e.low) / 2


def test_nothing_is_known_without_a_degree() -> None:
    none = TwoPools((0.0, 0.0), (0, 0))
    assert not none.known
    assert none.around(0.1, 0.5, 0.5) == Estimate(round(math.exp(0.1), 12), None, None)
    assert none.variance(1.0, 0.0) == 0


def test_equal_launches_have_no_interval_to_speak_of() -> None:
    same = TwoPools((0.0, 0.0), (2, 3)).around(0.0, 0.5, 0.5)
    assert half(same) == 0


def test_an_interval_that_says_nothing_is_left_out() -> None:
    assert TwoPools((4.0, 4.0), (1, 0)).around(0.0, 1.0, 1.0).low is None


@pytest.mark.parametrize("degrees", [(3, 3), (3, 5), (10, 10)])
def test_equal_scatter_is_nearly_pooled(degrees: tuple[int, int]) -> None:
    squares = (0.03**2 * degrees[0], 0.03**2 * degrees[1])
    pooled = Scatter(0.03, sum(degrees)).around(0.0, 1.0)
    both = TwoPools(squares, degrees).around(0.0, 0.5, 0.5)
    assert half(pooled) <= half(both) <= 1.15 * half(pooled)


def test_unequal_scatter_is_not_pooled() -> None:
    pools = TwoPools((0.1**2 * 12, 0.005**2 * 12), (12, 12))
    own = Scatter(0.1, 12).around(0.0, 0.5)
    assert half(pools.around(0.0, 0.5, 0.0)) == pytest.approx(half(own), rel=0.05)
    assert half(pools.around(0.0, 0.0, 0.5)) < 0.02
    assert pools.variance(0.5, 0.0) == pytest.approx(0.005, rel=0.1)


@pytest.mark.parametrize(
    ("scatter", "degrees", "launches"),
    [
        ((0.03, 0.03), (3, 5), (2, 4)),
        ((0.1, 0.005), (3, 5), (2, 4)),
        ((0.005, 0.1), (3, 5), (2, 4)),
        ((0.005, 0.1), (2, 3), (2, 2)),
    ],
)
def test_the_interval_of_a_ratio_holds(
    scatter: tuple[float, float], degrees: tuple[int, int], launches: tuple[int, int]
) -> None:
    rng = np.random.default_rng(3)
    x = [1 / n for n in launches]
    held = []
    for _ in range(1200):
        squares = [s**2 * float(rng.chisquare(d)) for s, d in zip(scatter, degrees, strict=True)]
        error = rng.normal() * math.sqrt(sum(s**2 * y for s, y in zip(scatter, x, strict=True)))
        e = TwoPools((squares[0], squares[1]), degrees).around(error, x[0], x[1])
        held.append(e.low is None or e.high is None or e.low <= 1 <= e.high)
    assert np.mean(held) >= 0.91  # too few launches to tell the two scatters apart for certain
    assert np.mean(held) <= 0.98
