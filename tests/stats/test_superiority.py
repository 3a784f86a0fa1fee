"""The probability that the best of many is truly better."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.stats.superiority import Known, chances
from autotune.stats.two_pools import TwoPools

POOLS = TwoPools((0.03**2 * 4, 0.03**2 * 4), (4, 4))


def equal(count: int, scatter: float = 0.03) -> list[Known]:
    """Return points with one launch each, whose means scatter as launches of one point do."""
    ranks = (np.arange(count) + 0.5) / count - 0.5
    return [Known(float(scatter * 2.5 * x), 1) for x in ranks]


def test_no_scatter_and_no_launch_twice() -> None:
    points = [Known(0.1, 1), Known(0.0, 1), Known(0.1, 1)]
    assert chances(points, 0, [1], TwoPools((0.0, 0.0), (0, 0))) == [None]
    assert chances(points, 0, [1, 2], TwoPools((0.0, 0.0), (1, 1))) == [1.0, 0.5]
    assert chances(points, 0, [], POOLS) == []


def test_two_points_are_symmetric() -> None:
    points = [Known(0.05, 3), Known(0.0, 3)]
    [up], [down] = chances(points, 0, [1], POOLS), chances(points, 1, [0], POOLS)
    assert up is not None
    assert down is not None
    assert up + down == pytest.approx(1, abs=1e-3)
    assert 0.7 < up < 0.99


def test_a_lead_is_worth_less_where_points_do_not_differ() -> None:
    lead = [Known(0.04, 3), Known(0.0, 3)]
    alike = [*lead, *equal(16)]
    apart = [*lead, *(Known(float(x), 1) for x in np.linspace(-0.3, 0.3, 16))]
    [few], [many] = chances(alike, 0, [1], POOLS), chances(apart, 0, [1], POOLS)
    assert few is not None
    assert many is not None
    assert few + 0.1 < many


def test_one_that_is_far_better_than_many_equals_is_not_drawn_to_them() -> None:
    points = [Known(0.12, 4), Known(0.01, 4), *equal(15)]
    [chance] = chances(points, 0, [1], POOLS)
    assert chance is not None
    assert chance > 0.97


def test_a_steady_baseline_does_not_make_the_others_steady() -> None:
    pools = TwoPools((0.1**2 * 4, 0.005**2 * 6), (4, 6))
    points = [Known(0.05, 3), Known(0.0, 5, baseline=True), Known(-0.1, 1), Known(0.1, 1)]
    [chance] = chances(points, 0, [1], pools)
    [pooled] = chances(points, 0, [1], TwoPools((0.005**2 * 4, 0.005**2 * 6), (4, 6)))
    assert chance is not None
    assert pooled is not None
    assert chance < 0.9 < pooled


@pytest.mark.parametrize("scatter", [1e-14, 1e-10, 1e-6, 1e-3])
@pytest.mark.parametrize("launches", [2, 300])
def test_launches_that_hardly_scatter_say_which_is_better(scatter: float, launches: int) -> None:
    """An objective that launches reproduce, like accepted tokens, and many launches."""
    degrees = 2 * (launches - 1)
    pools = TwoPools((scatter**2 * degrees, scatter**2 * degrees), (degrees, degrees))
    points = [Known(0.7, launches, baseline=True), Known(0.0, launches), Known(0.7, launches)]
    points += [Known(-20.0, 1), Known(0.01, 1)]
    found = chances(points, 0, [1, 2, 3], pools)
    assert found == pytest.approx([1, 0.5, 1], abs=0.01)


def test_rounding_is_no_scatter() -> None:
    """The mean of three equal logarithms is not always that logarithm."""
    pools = TwoPools((1e-32, 1e-32), (2, 2))
    points = [Known(0.1 + 1e-16, 3), Known(0.1, 2), Known(0.05, 2)]
    assert chances(points, 0, [1, 2], pools) == [0.5, 1.0]


@pytest.mark.parametrize(("spread", "scatter"), [(0.03, 0.03), (0.1, 0.03), (0.01, 0.005)])
def test_the_chance_is_right_as_often_as_it_says(spread: float, scatter: float) -> None:
    """The best of twelve by three launches, against the second best: both were picked."""
    rng = np.random.default_rng(4)
    stated, true = [], []
    for _ in range(200):
        theta = rng.normal(0, spread, 12)
        means = theta + rng.normal(0, scatter / np.sqrt(3), 12)
        squares = scatter**2 * rng.chisquare(4, 2)
        first, second = np.argsort(-means)[:2]
        points = [Known(float(x), 3, baseline=k == 0) for k, x in enumerate(means)]
        pools = TwoPools((float(squares[0]), float(squares[1])), (4, 4))
        [chance] = chances(points, int(first), [int(second)], pools)
        assert chance is not None
        stated.append(chance)
        true.append(theta[first] > theta[second])
    assert np.mean(stated) - np.mean(true) < 0.05
    assert np.mean(true) - np.mean(stated) < 0.1
