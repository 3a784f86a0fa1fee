"""Launches against each other: scatter and its parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from autotune.stats import (
    Interval,
    LaunchVariance,
    Scatter,
    SingleLaunch,
    percentile_interval,
    standard_error,
)


def test_the_parts_of_the_scatter_add_up() -> None:
    groups = [
        [SingleLaunch(100.0, 0.02), SingleLaunch(110.0, 0.02)],
        [SingleLaunch(50.0, 0.02), SingleLaunch(52.0, 0.02), SingleLaunch(49.0, 0.02)],
        [SingleLaunch(7.0, 0.5)],  # alone it tells nothing
    ]
    v = LaunchVariance.of(groups)
    assert v is not None
    assert v.total == Scatter.pooled([[x.value for x in g] for g in groups])
    assert v.within == pytest.approx(0.02)
    assert v.between**2 + v.within**2 == pytest.approx(v.total.sigma**2)


def test_the_part_between_launches_is_never_negative() -> None:
    v = LaunchVariance.of([[SingleLaunch(100.0, 0.1), SingleLaunch(101.0, 0.1)]])
    assert v is not None
    assert v.between == 0
    e = v.ratio(SingleLaunch(120.0, 0.1), SingleLaunch(100.0, 0.1))
    # the requests' scatter is known with the seven degrees of the batches, and never for certain
    seven = float(special.stdtrit(7, 0.975))
    assert e.low == pytest.approx(1.2 * np.exp(-seven * 0.1 * np.sqrt(2)), rel=1e-3)


@pytest.mark.parametrize("between", [0.0, 0.1])
def test_nothing_is_ever_as_sure_as_a_normal_distribution(between: float) -> None:
    rng = np.random.default_rng(0)
    for points in (1, 10, 1000):
        groups = [
            [SingleLaunch(math.exp(rng.normal(0, math.hypot(between, 0.1))), 0.1) for _ in range(2)]
            for _ in range(points)
        ]
        v = LaunchVariance.of(groups)
        assert v is not None
        e = v.point(SingleLaunch(100.0, 0.1), 1)
        assert e.high is None or math.log(e.high / 100) > 1.96 * math.hypot(v.between, v.within)


def test_without_replicates_nothing_is_known() -> None:
    assert LaunchVariance.of([]) is None
    assert LaunchVariance.of([[SingleLaunch(100.0, 0.1)], [SingleLaunch(90.0, 0.1)]]) is None


def test_between_is_unbiased_where_launches_are_not_equally_precise() -> None:
    rng = np.random.default_rng(3)
    within = np.array([0.01, 0.03, 0.06])
    squares = []
    for _ in range(4000):
        logs = rng.normal(0, np.hypot(0.1, within))
        v = LaunchVariance.of(
            [[SingleLaunch(float(np.exp(y)), w) for y, w in zip(logs, within, strict=True)]]
        )
        assert v is not None
        squares.append(v.total.sigma**2 - v.within**2)
    assert np.mean(squares) == pytest.approx(0.1**2, rel=0.05)


@pytest.mark.parametrize(
    ("between", "within", "of_the_two", "low", "high"),
    [
        (0.05, 0.03, 0.03, 0.93, 0.97),
        (0.05, 0.02, 0.05, 0.93, 0.97),  # the compared launches are shorter than the replicates
        (0.0, 0.04, 0.04, 0.93, 1.0),  # cut off at 0: too wide
    ],
)
def test_the_ratio_of_single_launches_holds_the_truth(
    between: float, within: float, of_the_two: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(11)
    runs, held = 4000, 0

    def launch(point: float, w: float) -> SingleLaunch:
        return SingleLaunch(float(point * np.exp(rng.normal(0, np.hypot(between, w)))), w)

    for _ in range(runs):
        groups = [[launch(p, within) for _ in range(n)] for p, n in ((100, 3), (120, 2), (90, 3))]
        v = LaunchVariance.of(groups)
        assert v is not None
        e = v.ratio(launch(130.0, of_the_two), launch(100.0, of_the_two))
        assert e.low is not None
        assert e.high is not None
        held += e.low <= 1.3 <= e.high
    assert low <= held / runs <= high


def test_means_of_launches_are_surer() -> None:
    v = LaunchVariance.of([[SingleLaunch(x, 0.02) for x in (90.0, 100.0, 111.0)]])
    assert v is not None
    a, b = SingleLaunch(120.0, 0.02), SingleLaunch(100.0, 0.02)
    single, of_two, mixed = v.ratio(a, b), v.ratio(a, b, (2, 2)), v.ratio(a, b, (1, 2))
    assert single.low is not None
    assert of_two.low is not None
    assert mixed.low is not None
    assert single.value == of_two.value == pytest.approx(1.2)
    assert np.log(1.2 / single.low) == pytest.approx(np.sqrt(2) * np.log(1.2 / of_two.low))
    assert single.low < mixed.low < of_two.low


@pytest.mark.parametrize("between", [0.0, 0.03])
def test_the_ratio_of_means_of_two_launches_holds_the_truth(between: float) -> None:
    """Its own launches are those that the scatter is known from; errors as eight batches tell."""
    rng = np.random.default_rng(13)
    runs, held = 2000, 0

    def launch() -> SingleLaunch:
        told = 0.03 * math.sqrt(rng.chisquare(7) / 7)
        return SingleLaunch(float(np.exp(rng.normal(0, math.hypot(between, 0.03)))), told)

    def mean(group: list[SingleLaunch]) -> SingleLaunch:
        value = math.sqrt(group[0].value * group[1].value)
        return SingleLaunch(value, math.hypot(group[0].within, group[1].within) / math.sqrt(2))

    for _ in range(runs):
        groups = [[launch(), launch()] for _ in range(3)]
        v = LaunchVariance.of(groups)
        assert v is not None
        e = v.ratio(mean(groups[0]), mean(groups[1]), (2, 2))
        assert e.low is not None
        assert e.high is not None
        held += e.low <= 1 <= e.high
    assert 0.94 <= held / runs <= 0.995


def test_the_standard_error_is_told_by_the_interval() -> None:
    known = Interval(90.0, 120.0, 0.95, 0.03)
    assert standard_error(100.0, known) == standard_error(5.0, known) == 0.03
    assert standard_error(100.0, known.scaled(1000)) == 0.03
    assert standard_error(-1.0, known) is None
    values = np.random.default_rng(0).lognormal(0, 0.3, 400)
    of_p95 = percentile_interval(values, 95)
    assert standard_error(1.0, of_p95) == of_p95.error == percentile_interval(values, 95, 0.8).error


def test_bounds_alone_tell_the_standard_error_too() -> None:
    """As of an objective of a user, whose intervals have nothing else."""
    low, high = 100 * np.exp(-1.96 * 0.05), 100 * np.exp(1.96 * 0.05)
    for bounds in ((low, high), (low, None), (None, high), (0.0, high)):
        found = standard_error(100, Interval(*bounds, 0.95))
        assert found == pytest.approx(0.05, rel=1e-3)
    assert standard_error(100, Interval(None, None, 0.95)) is None
    assert standard_error(0.0, Interval(low, high, 0.95)) is None


def test_a_points_interval_has_what_launches_differ_by() -> None:
    one = SingleLaunch(100.0, 0.02)
    v = LaunchVariance.of([[SingleLaunch(x, 0.02) for x in (90.0, 100.0, 111.0)]])
    assert v is not None
    single, mean = v.point(one, 1), v.point(one, 4)
    assert single.low is not None
    assert mean.low is not None
    assert single.low < min(96, mean.low)  # 1.96 × 2 % would end at 96
    # 4 launches: half as wide
    assert np.log(100 / single.low) == pytest.approx(2 * np.log(100 / mean.low))
