"""Points that are one for the objectives: launched once, checked once, or split for good."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.search import proposer as proposer_module
from autotune.search.alike import Alike, Classes, key_of
from autotune.search.challenges import unseen
from autotune.search.front import Direction
from autotune.search.model import Observed
from autotune.search.proposer import (
    LEAST_WITH_CLASSES,
    Converged,
    Proposer,
    SearchEnds,
    SpaceExhausted,
)
from autotune.study.space import MNBT, IntParam, N, Point, Pow2Param, Space

BOTH: tuple[Direction, ...] = ("maximize", "minimize")
SPACE = Space(
    {N: IntParam(type="int", low=0, high=15), MNBT: Pow2Param(type="pow2", low=512, high=4096)}
)


def alike(certain_from: int, likely_from: int) -> Alike:
    """MNBT matters below both; it is proven not to from the first, and likely from the second."""

    def one(least: int) -> Callable[[Point], Point]:
        return lambda q: q if int(q[MNBT]) < least else {**q, MNBT: least}

    return Alike(
        MNBT,
        one(certain_from),
        one(min(certain_from, likely_from)),
    )


def observed(n: int, mnbt: int, rate: float) -> Observed:
    return Observed({N: n, MNBT: mnbt}, (-math.log(rate), -math.log(rate)), (1e-4, 1e-4))


def trial(number: int, point: Point, rate: float, *, challenge: bool = False) -> FrozenTrial:
    out = create_trial(
        values=[rate, 1e5 / rate],
        params=SPACE.encode(point),
        distributions=SPACE.distributions(),
        user_attrs={"log_variances": [1e-4, 1e-4], "challenge": challenge},
    )
    out.number = number
    return out


def search(
    same: Alike | None, rate: Callable[[Point], float], stop_below: float = 0.005
) -> tuple[list[Point], SearchEnds | None]:
    """Points of a whole search, in order, and what ended it."""
    proposer = Proposer(
        SPACE, lambda q: None, BOTH, method="gp", seed=1, stop_below=stop_below, alike=same
    )
    trials = [trial(i, q, rate(q)) for i, q in enumerate([{N: 0, MNBT: 1024}, {N: 15, MNBT: 1024}])]
    try:
        while len(trials) < 40:
            found = proposer.propose(trials)
            trials.append(
                trial(len(trials), found.point, rate(found.point), challenge=found.challenge)
            )
    except SearchEnds as e:
        return [SPACE.decode(t.params) for t in trials], e
    return [SPACE.decode(t.params) for t in trials], None


def by_n(q: Point) -> float:
    return 100.0 + 10 * float(q[N]) - 0.5 * float(q[N]) ** 2


def test_without_classes_every_point_is_alone() -> None:
    classes = Classes(None, [])
    assert classes.of({N: 1, MNBT: 512}) == {N: 1, MNBT: 512}
    assert classes.to_check({N: 1, MNBT: 512}, [], SPACE.points() or ()) is None
    assert not classes.checked
    assert not classes.split


def test_of_a_certain_class_one_point_is_launched_the_smallest() -> None:
    points, end = search(alike(1024, 1024), by_n)
    assert isinstance(end, Converged)
    assert {q[MNBT] for q in points[2:]} <= {512, 1024}
    assert len(points) >= LEAST_WITH_CLASSES


def test_a_search_that_could_end_early_launches_its_leaders_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proposer_module, "LEAST_WITH_CLASSES", 12)

    def flat(q: Point) -> float:
        return 100.0 if q[N] else 50.0

    points, end = search(alike(512, 512), flat, 0.2)
    assert isinstance(end, Converged)
    assert len(points) == 12
    again = [q for i, q in enumerate(points) if q in points[:i]]
    assert again
    assert all(q[N] for q in again)


def test_a_likely_class_is_checked_once_at_its_largest_budget() -> None:
    points, end = search(alike(8192, 512), by_n)
    assert isinstance(end, Converged)
    pairs = [(q, p) for i, q in enumerate(points) for p in points[:i] if q[N] == p[N] and q != p]
    assert len({key_of(q) for q, _ in pairs}) == 1
    assert pairs[0][0][MNBT] == 4096


def test_a_likely_class_is_checked_before_the_points_next_to_the_best() -> None:
    proposer = Proposer(
        SPACE, lambda q: None, BOTH, method="gp", seed=1, stop_below=0.005, alike=alike(8192, 512)
    )
    points: list[Point] = [{N: 0, MNBT: 512}, {N: 15, MNBT: 512}]
    trials = [trial(i, q, by_n(q)) for i, q in enumerate(points)]
    while all(q[MNBT] == 512 for q in points):
        feasible = [q for q in SPACE.points() or () if q[MNBT] == 512 and q not in points]
        gaps = bool(unseen(SPACE, feasible, points).any())
        found = proposer.propose(trials)
        # only a gap is filled before the check
        assert gaps or not found.challenge or found.point[MNBT] == 4096
        points.append(found.point)
        trials.append(trial(len(trials), found.point, by_n(found.point)))


def test_a_check_that_differs_takes_every_likely_class_apart() -> None:
    points, end = search(
        alike(8192, 512), lambda q: by_n(q) * (1.3 if int(q[MNBT]) >= 2048 else 1.0)
    )
    assert isinstance(end, SearchEnds)
    best = max(points, key=lambda q: by_n(q) * (int(q[MNBT]) >= 2048))
    assert sum(int(q[MNBT]) >= 2048 for q in points) >= 3
    assert int(best[N]) in range(8, 13)


def test_the_difference_that_splits_is_one_of_launches() -> None:
    same = alike(8192, 512)
    two = [observed(3, 512, 100), observed(3, 4096, 108)]
    assert not Classes(same, two).split
    assert Classes(same, two).checked
    assert Classes(same, two).of({N: 9, MNBT: 4096}) == {N: 9, MNBT: 512}
    far = Classes(same, [*two, observed(5, 512, 100), observed(5, 1024, 130)])
    assert far.split
    assert far.of({N: 9, MNBT: 4096}) == {N: 9, MNBT: 4096}
    unknown = Observed({N: 3, MNBT: 4096}, (-math.log(114), 0.0), (math.nan, math.nan))
    assert not Classes(
        same, [Observed({N: 3, MNBT: 512}, (-math.log(100), 0.0), (math.nan, math.nan)), unknown]
    ).split


def test_a_check_that_runs_or_failed_is_not_asked_for_again() -> None:
    same = alike(8192, 512)
    classes = Classes(same, [observed(3, 512, 100)])
    point: Point = {N: 3, MNBT: 512}
    everything = [q for q in SPACE.points() or () if q != point]
    assert classes.to_check(point, [point], everything) == {N: 3, MNBT: 4096}
    running: Sequence[Point] = [point, {N: 3, MNBT: 4096}]
    assert classes.to_check(point, running, everything) is None
    left = [q for q in everything if q[MNBT] != 4096]  # its launch failed
    assert classes.to_check(point, [point], left) == {N: 3, MNBT: 2048}


def test_a_space_of_few_classes_is_checked_before_it_is_exhausted() -> None:
    small = Space({N: IntParam(type="int", low=0, high=1), MNBT: SPACE.params[MNBT]})
    proposer = Proposer(small, lambda q: None, BOTH, method="gp", seed=1, alike=alike(8192, 512))
    trials: list[FrozenTrial] = []
    with contextlib.suppress(SpaceExhausted):
        while len(trials) < 30:
            q = proposer.propose(trials).point if len(trials) > 1 else {N: len(trials), MNBT: 512}
            trials.append(trial(len(trials), q, by_n(q)))
    assert all(t.state == TrialState.COMPLETE for t in trials)
    assert len(trials) == LEAST_WITH_CLASSES
    assert sum(t.params[MNBT] == 4096 for t in trials) == 1


def test_the_leader_is_of_the_model_s_best_class() -> None:
    proposer = Proposer(SPACE, lambda q: None, BOTH, method="gp", seed=1, alike=alike(512, 512))
    assert proposer.leader([]) is None
    ns = [0, 15, 3, 9, 10, 11, 12]
    trials = [trial(i, {N: n, MNBT: 1024}, by_n({N: n})) for i, n in enumerate(ns)]
    leader = proposer.leader(trials)
    assert leader is not None
    assert leader[MNBT] == 1024  # as it was launched
    assert leader[N] in {9, 10, 11}
    plain = Proposer(SPACE, lambda q: None, BOTH, method="gp", seed=1)
    assert plain.leader(trials) is None
