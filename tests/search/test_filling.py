"""A start that fills the space: what is launched before there are numbers to propose by."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from autotune.search.alike import Alike, key_of
from autotune.search.features import unit
from autotune.search.filling import fill, information
from autotune.search.proposer import Proposer, grid_points, nearest, seed_points
from autotune.study.space import (
    MNBT,
    ChoiceParam,
    FloatParam,
    IntParam,
    N,
    Point,
    Pow2Param,
    Space,
    Value,
)
from tests.search.test_proposer import BOTH, SPACE, finished, infeasible, smooth

WIDE = Space(
    {N: IntParam(type="int", low=0, high=15), MNBT: Pow2Param(type="pow2", low=512, high=8192)}
)
EVERY = grid_points(WIDE)
BASELINE: dict[str, Value] = {N: 0, MNBT: 8192}


def start(slots: int, *, seed: int = 0, space: Space = WIDE) -> list[Point]:
    """The points that so many slots begin with: seeds, then what is proposed."""
    proposer = Proposer(space, lambda _q: None, BOTH, method="gp", seed=seed)
    points: list[Point] = list(seed_points(space, BASELINE, lambda _q: True))
    while len(points) < slots:
        points.append(proposer.propose([], points).point)
    return points


def off(points: list[Point]) -> float:
    """Root mean square distance of all points to the nearest of some."""
    x, at = (np.array([unit(WIDE, q) for q in own]) for own in (EVERY, points))
    return float(np.sqrt((np.linalg.norm(x[:, None] - at, axis=2).min(axis=1) ** 2).mean()))


@pytest.mark.parametrize("slots", [8, 16, 32])
def test_slots_begin_with_the_baseline_and_points_that_fill_the_space(slots: int) -> None:
    points = start(slots)
    assert points[0] == BASELINE
    assert len({key_of(q) for q in points}) == slots
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(100):
        picks = rng.choice(len(EVERY), slots - 3, replace=False)
        drawn.append(off([*points[:3], *(EVERY[i] for i in picks)]))
    assert off(points) < np.quantile(drawn, 0.2 if slots == 8 else 0.0)
    ns = sorted({int(q[N]) for q in points})
    assert max(b - a for a, b in pairwise(ns)) <= {8: 9, 16: 7, 32: 3}[slots]
    assert len({q[MNBT] for q in points if q[N]}) >= 3


def test_the_start_is_that_of_the_seed() -> None:
    assert start(16, seed=3) == start(16, seed=3)


def test_a_launch_tells_most_where_nothing_was_launched() -> None:
    taken = [q for q in EVERY if int(q[N]) > 4]
    new = [q for q in EVERY if q not in taken[::2]]
    worth = information(WIDE, new, taken[::2])
    assert worth.min() >= 0
    assert int(new[int(worth.argmax())][N]) <= 4
    # what was launched tells little, whether it has ended or not
    again = information(WIDE, EVERY, [EVERY[40]])
    assert again[40] < 0.1 * again.max()


def test_points_that_probably_crash_are_not_in_the_way() -> None:
    rng = np.random.default_rng(0)
    first = fill(WIDE, EVERY, [], np.ones(len(EVERY)), rng)
    chances = np.ones(len(EVERY))
    chances[first] = 0.1
    assert fill(WIDE, EVERY, [], chances, rng) != first


def test_what_rules_exclude_and_what_is_one_is_not_begun() -> None:
    proposer = Proposer(SPACE, infeasible, BOTH, method="gp", seed=1)
    points: list[Point] = list(
        seed_points(SPACE, {N: 0, MNBT: 64}, lambda q: infeasible(q) is None)
    )
    while len(points) < 16:
        points.append(proposer.propose([], points).point)
    assert all(infeasible(q) is None for q in points)

    def one(q: Point) -> Point:
        return {**q, MNBT: 512}

    alike = Proposer(WIDE, lambda _q: None, BOTH, method="gp", seed=1, alike=Alike(MNBT, one, one))
    points = [BASELINE]
    while len(points) < 12:
        points.append(alike.propose([], points).point)
    assert len({q[N] for q in points}) == 12


def test_the_model_proposes_from_two_outcomes_on() -> None:
    proposer = Proposer(WIDE, lambda _q: None, BOTH, method="gp", seed=0)
    seeds = seed_points(WIDE, BASELINE, lambda _q: True)
    trials = [finished(i, q, smooth(q), space=WIDE) for i, q in enumerate(seeds)]
    assert proposer.propose(trials[:1]).gain is None
    assert proposer.propose(trials[:2]).gain is not None
    assert proposer.propose(trials[:1], seeds[1:]).gain is None
    assert proposer.propose(trials[:2], seeds[2:]).gain is not None


def test_failed_launches_are_not_begun_around_again() -> None:
    proposer = Proposer(WIDE, lambda _q: None, BOTH, method="gp", seed=0)
    trials = [finished(0, {N: 15, MNBT: 8192}, None, space=WIDE)]
    trials[0].user_attrs["failure_kind"] = "crash"
    found = proposer.propose(trials).point
    assert int(found[N]) < 15


def test_large_and_real_valued_spaces_are_filled() -> None:
    space = Space(
        {
            N: IntParam(type="int", low=0, high=15),
            "gpu_memory_utilization": FloatParam(type="float", low=0.5, high=0.9),
            "kv-cache-dtype": ChoiceParam(type="choice", choices=("auto", "fp8")),
        }
    )
    proposer = Proposer(space, lambda _q: None, BOTH, method="gp", seed=0)
    points: list[Point] = []
    while len(points) < 6:
        points.append(proposer.propose([], points).point)
    assert {q["kv-cache-dtype"] for q in points} == {"auto", "fp8"}
    used = sorted(float(q["gpu_memory_utilization"]) for q in points)
    assert used[0] < 0.65 < 0.75 < used[-1]
    assert nearest(space, points[0], lambda _q: True) == points[0]
