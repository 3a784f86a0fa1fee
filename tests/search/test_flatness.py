"""How far any point can differ from the baseline: that the bounds hold, and when there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from autotune.search.features import unit
from autotune.search.flatness import (
    LEAST_LAUNCHES,
    MOST_LAUNCHES,
    MOST_POINTS,
    Flatness,
    _distinct,
    flatness,
)
from autotune.study.space import MNBT, IntParam, N, Point, Pow2Param, Space

PLANE = Space(
    {N: IntParam(type="int", low=0, high=15), MNBT: Pow2Param(type="pow2", low=512, high=8192)}
)
BASELINE: Point = {N: 0, MNBT: 2048}


@dataclass(frozen=True)
class Launch:
    point: Point
    costs: tuple[float, ...]
    variances: tuple[float, ...]


def bounds(
    cost: Callable[[Point], float], launches: int, between: float, seed: int
) -> tuple[Flatness, np.ndarray]:
    """Bounds by random launches in a world, and the true differences from the baseline."""
    rng = np.random.default_rng(seed)
    points = list(PLANE.points() or ())
    chosen = [BASELINE, BASELINE, {N: 15, MNBT: 2048}, {N: 3, MNBT: 2048}]
    chosen += [points[i] for i in rng.permutation(len(points))[: launches - 4]]
    own = [
        Launch(q, tuple(cost(q) + rng.normal(0, between) + rng.normal(0, 0.01, 2)), (1e-4, 1e-4))
        for q in chosen
    ]
    found = flatness(PLANE, own, points, BASELINE)
    assert found is not None
    return found, np.array([cost(q) - cost(BASELINE) for q in points])


@pytest.mark.parametrize(
    ("cost", "between"),
    [
        (lambda _q: 0.0, 0.03),
        (lambda q: 0.1 * int(q[N]) / 15, 0.01),
        (lambda q: -0.1 * int(q[N]) / 15, 0.03),
        (lambda q: 0.05 * (int(q[MNBT]) > 2048), 0.005),
        (lambda q: -0.1 * (int(q[MNBT]) > 2048), 0.03),
    ],
)
def test_the_bounds_hold(cost: Callable[[Point], float], between: float) -> None:
    """Of 10 studies, more than 2 are wrong with a probability of 1.2 % if 5 % are."""
    wrong = 0
    for seed in range(10):
        found, truth = bounds(cost, 12, between, seed)
        assert (found.better <= found.differs).all()
        held = (abs(truth).max() <= found.differs).all() and (-truth.min() <= found.better).all()
        wrong += not held
    assert wrong <= 2


def test_more_launches_and_less_noise_say_more() -> None:
    def median(launches: int, between: float) -> float:
        found = [bounds(lambda _q: 0.0, launches, between, seed)[0] for seed in range(4)]
        return float(np.median([x.differs for x in found]))

    few, many, noisy = median(10, 0.01), median(30, 0.01), median(10, 0.1)
    assert many < few < noisy
    assert many < 0.06
    assert noisy > 0.15


def test_where_drafts_only_hurt_the_baseline_is_nearly_the_best() -> None:
    found, _ = bounds(lambda q: 0.5 * (int(q[N]) / 15) ** 0.5, 14, 0.01, 0)
    assert (found.differs > 0.4).all()
    assert (found.better < found.differs / 2).all()
    assert found.better[0] < 0.15


@pytest.mark.parametrize("between", [0.0, 0.03, 0.2, 0.5, 1.0, 20.0])
@pytest.mark.parametrize("slope", [0.0, 0.7, 6.0])
def test_launches_far_outside_of_what_is_expected_do_not_make_a_small_bound(
    between: float, slope: float
) -> None:
    """Else the priors would speak, or the single θ that is nearest to such launches."""
    for seed in range(3):
        found, truth = bounds(lambda q: slope * int(q[N]) / 15, 12, between, seed)
        assert (found.differs > min(0.25, 0.9 * abs(truth).max())).all()
        if between >= 0.5:
            assert (found.differs > 0.25).all()


def test_launches_that_are_too_few_or_points_that_are_too_many_say_nothing() -> None:
    points = list(PLANE.points() or ())
    own = [Launch(q, (0.0,), (1e-4,)) for q in [BASELINE, *points[3:11]]]
    assert flatness(PLANE, own, points, BASELINE) is not None
    assert flatness(PLANE, own[: LEAST_LAUNCHES - 1], points, BASELINE) is None
    most = [own[i % len(own)] for i in range(MOST_LAUNCHES + 1)]
    assert flatness(PLANE, most, points, BASELINE) is None
    assert flatness(PLANE, [own[0]] * 9, points, BASELINE) is None  # a single point
    assert flatness(PLANE, own[1:], points, BASELINE) is None  # the baseline was not launched
    large = Space({**PLANE.params, "x": IntParam(type="int", low=0, high=9)})
    every = list(large.points() or ())
    assert len(every) > MOST_POINTS
    own = [Launch({**x.point, "x": 0}, x.costs, x.variances) for x in own]
    assert flatness(large, own, every, {**BASELINE, "x": 0}) is None


def test_a_cost_that_is_not_finite_is_refused_and_unknown_variances_are_not() -> None:
    points = list(PLANE.points() or ())
    own = [Launch(q, (0.0,), (float("nan"),)) for q in [BASELINE, *points[3:11]]]
    assert flatness(PLANE, own, points, BASELINE) is not None
    with pytest.raises(ValueError, match="finite"):
        flatness(PLANE, [*own, Launch(points[11], (float("inf"),), (1e-4,))], points, BASELINE)


def test_the_distances_of_a_grid_are_those_of_its_points() -> None:
    x = np.array([unit(PLANE, q) for q in PLANE.points() or ()])
    distinct, place = _distinct(x)
    assert len(distinct) < len(x) ** 2 / 8
    assert distinct[place] == pytest.approx((x[:, None] - x[None]) ** 2, abs=1e-9)


@pytest.mark.parametrize("between", [0.02, 0.08])
def test_it_is_known_how_far_launches_of_one_point_differ(between: float) -> None:
    found = [bounds(lambda _q: 0.0, 20, between, seed)[0].between for seed in range(4)]
    assert np.median(found) == pytest.approx(between, rel=0.5)


def test_the_same_launches_say_the_same() -> None:
    one, two = (bounds(lambda _q: 0.0, 12, 0.03, 4)[0] for _ in range(2))
    assert one.differs.tolist() == two.differs.tolist()
