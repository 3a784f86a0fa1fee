"""Launches that failed without a rule: what is avoided afterwards, and what is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from autotune.errors import FailureKind
from autotune.search.crashes import CrashModel, Kept
from autotune.study.space import MNBT, ChoiceParam, FloatParam, IntParam, N, Point, Pow2Param, Space

SPACE = Space(
    {
        N: IntParam(type="int", low=0, high=15),
        MNBT: Pow2Param(type="pow2", low=128, high=16384),
    }
)
POINTS = list(SPACE.points() or ())
SEEDS: list[Point] = [{N: 0, MNBT: 2048}, {N: 15, MNBT: 2048}, {N: 3, MNBT: 2048}]
Fails = Callable[[Point], str | None]


def climb(scores: Sequence[float], fails: Fails, launches: int) -> tuple[list[Point], list[Point]]:
    """A search that always launches the untried point with the best score that is not avoided.

    Returns:
        Points that ran, seeds included, and points that failed.
    """
    ran = [q for q in SEEDS if fails(q) is None]
    failed: list[tuple[Point, str]] = []
    for _ in range(launches):
        avoided = CrashModel(SPACE, ran, failed).all_avoided(POINTS)
        tried = [*ran, *(q for q, _ in failed)]
        left = [i for i, q in enumerate(POINTS) if not avoided[i] and q not in tried]
        if not left:
            break
        point = POINTS[max(left, key=lambda i: scores[i])]
        kind = fails(point)
        if kind is None:
            ran.append(point)
        else:
            failed.append((point, kind))
    return ran, [q for q, _ in failed]


def hills(top: tuple[float, float], seed: int = 0) -> list[float]:
    """Scores that fall off around a point of the unit square, a little rough."""
    rough = np.random.default_rng(seed).normal(0, 0.02, len(POINTS))
    return [
        float(
            np.exp(
                -1.5
                * ((int(q[N]) / 15 - top[0]) ** 2 + (np.log2(int(q[MNBT]) / 128) / 7 - top[1]) ** 2)
            )
            + r
        )
        for q, r in zip(POINTS, rough, strict=True)
    ]


def at_least(n: int, mnbt: int, kind: str = "oom") -> Fails:
    return lambda q: kind if int(q[N]) >= n and int(q[MNBT]) >= mnbt else None


@pytest.mark.parametrize("kind", ["oom", "oom_capture", "oom_load", "kv_cache"])
@pytest.mark.parametrize(("n", "mnbt"), [(4, 16384), (8, 8192), (10, 8192), (0, 16384), (12, 4096)])
def test_a_search_that_climbs_into_a_full_memory_crashes_once(n: int, mnbt: int, kind: str) -> None:
    _, failed = climb(hills((1.0, 1.0)), at_least(n, mnbt, kind), 25)
    assert len(failed) == 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["crash", "timeout", "bad_config"])
def test_a_region_in_the_middle_costs_one_crash(seed: int, kind: str) -> None:
    def fails(q: Point) -> str | None:
        return kind if 8 <= int(q[N]) <= 11 and int(q[MNBT]) >= 4096 else None

    _, failed = climb(hills((0.6, 0.8), seed), fails, 25)
    assert len(failed) == 1


@pytest.mark.parametrize("seed", range(4))
def test_the_best_point_away_from_a_crash_is_still_found(seed: int) -> None:
    scores = hills((0.4, 0.5), seed)
    scores[POINTS.index({N: 15, MNBT: 16384})] = 9.0  # promises much, and fails
    ran, failed = climb(scores, at_least(12, 8192), 30)
    assert failed == [{N: 15, MNBT: 16384}]
    best = max((i for i, q in enumerate(POINTS) if q not in failed), key=lambda i: scores[i])
    assert POINTS[best] in ran


def test_two_regions_cost_a_crash_each() -> None:
    def fails(q: Point) -> str | None:
        if int(q[N]) >= 12 and int(q[MNBT]) >= 8192:
            return "oom"
        return "crash" if 5 <= int(q[N]) <= 6 and int(q[MNBT]) <= 256 else None

    peaks = np.maximum(hills((1.0, 1.0)), hills((0.36, 0.0)))
    _, failed = climb([float(x) for x in peaks], fails, 30)
    assert sorted(str(fails(q)) for q in failed) == ["crash", "oom"]


def test_more_than_what_failed_is_avoided_and_no_more_than_what_ran_is_not() -> None:
    ran: list[Point] = [{N: 0, MNBT: 2048}, {N: 7, MNBT: 4096}]
    model = CrashModel(SPACE, ran, [({N: 10, MNBT: 8192}, "oom")])
    for q in POINTS:
        if int(q[N]) >= 10 and int(q[MNBT]) >= 8192:
            assert model.chance(q) == 0
            assert model.avoided(q)
        elif int(q[N]) <= 7 and int(q[MNBT]) <= 4096:
            assert model.chance(q) == 1
            assert not model.avoided(q)


def test_the_chance_falls_from_what_ran_to_what_failed() -> None:
    model = CrashModel(SPACE, [{N: 3, MNBT: 2048}], [({N: 12, MNBT: 8192}, "oom")])
    chances = model.chances([{N: n, MNBT: 8192} for n in range(3, 13)])
    assert (np.diff(chances) <= 0).all()
    assert chances[0] > chances[-1] == 0


def test_each_point_that_ran_makes_its_neighbours_safer() -> None:
    failed: list[tuple[Point, str]] = [({N: 12, MNBT: 8192}, "oom")]
    ran: list[Point] = [{N: 0, MNBT: 2048}]
    between = {N: 8, MNBT: 4096}
    before = CrashModel(SPACE, ran, failed).chance(between)
    after = CrashModel(SPACE, [*ran, {N: 7, MNBT: 4096}], failed).chance(between)
    assert before < after < 1


def test_without_a_failure_nothing_is_avoided() -> None:
    model = CrashModel(SPACE, SEEDS, [])
    assert model.chances(POINTS).tolist() == [1.0] * len(POINTS)
    assert not model.all_avoided(POINTS).any()
    assert model.chances([]).shape == (0,)


@pytest.mark.parametrize(
    "kind", ["port", "disk", "machine", "clock", "model_missing", "infeasible"]
)
def test_a_failure_of_the_machine_says_nothing_of_the_point(kind: str) -> None:
    model = CrashModel(SPACE, [], [({N: 7, MNBT: 2048}, kind)])
    assert not model.all_avoided(POINTS).any()


def test_without_drafts_the_draft_is_not_to_blame() -> None:
    """n = 0 ran out of memory: every n does with such a budget, and none because of its draft."""
    model = CrashModel(SPACE, [{N: 0, MNBT: 2048}], [({N: 0, MNBT: 16384}, "oom")])
    chances = model.chances([{N: n, MNBT: 16384} for n in range(16)])
    assert (chances == 0).all()


def test_a_draft_that_does_not_fit_is_given_up_for_all_n() -> None:
    model = CrashModel(SPACE, [{N: 0, MNBT: 2048}], [({N: 7, MNBT: 2048}, "draft_mismatch")])
    avoided = model.all_avoided(POINTS)
    assert [bool(a) for a in avoided] == [q[N] != 0 for q in POINTS]


def test_a_budget_that_is_too_small_fails_below_and_not_above() -> None:
    model = CrashModel(SPACE, [{N: 7, MNBT: 4096}], [({N: 7, MNBT: 512}, "budget")])
    assert model.avoided({N: 7, MNBT: 256})
    assert model.avoided({N: 9, MNBT: 512})
    assert not model.avoided({N: 5, MNBT: 8192})


def test_a_choice_that_never_ran_is_blamed_for_what_failed_with_it() -> None:
    cache = ChoiceParam(type="choice", choices=("auto", "fp8"))
    space = Space({**SPACE.params, "kv_cache_dtype": cache})
    ran: list[Point] = [
        {N: n, MNBT: mnbt, "kv_cache_dtype": "auto"}
        for n, mnbt in ((0, 2048), (15, 2048), (3, 512), (7, 8192), (8, 1024))
    ]
    failed: Point = {N: 7, MNBT: 2048, "kv_cache_dtype": "fp8"}
    model = CrashModel(space, ran, [(failed, "bad_config")])
    assert model.avoided({**failed, N: 8})
    assert model.chance({**failed, N: 8}) < model.chance({**failed, "kv_cache_dtype": "auto"})


def test_gpu_memory_helps_the_cache_and_hurts_the_rest() -> None:
    name = "gpu_memory_utilization"
    space = Space({**SPACE.params, name: FloatParam(type="float", low=0.5, high=0.95)})
    ran: list[Point] = [{N: 0, MNBT: 128, name: 0.7}]
    failed: Point = {N: 7, MNBT: 2048, name: 0.7}
    cache = CrashModel(space, ran, [(failed, "kv_cache")])
    rest = CrashModel(space, ran, [(failed, "oom")])
    assert cache.avoided({**failed, name: 0.6})
    assert cache.chance({**failed, name: 0.9}) > cache.chance({**failed, name: 0.6})
    assert rest.avoided({**failed, name: 0.9})
    assert rest.chance({**failed, name: 0.6}) > rest.chance({**failed, name: 0.9})


def test_a_point_that_failed_once_and_ran_once_may_be_launched() -> None:
    point: Point = {N: 7, MNBT: 2048}
    other: Point = {N: 3, MNBT: 256}
    model = CrashModel(SPACE, [point, other], [(point, "timeout")])
    assert 0 <= model.chance(point) < 1
    assert model.chance(other) == 1


@pytest.mark.parametrize("kind", [str(k) for k in FailureKind] + ["a word of a later version"])
def test_every_kind_of_failure_gives_chances(kind: str) -> None:
    rng = np.random.default_rng(1)
    picks = rng.permutation(len(POINTS))
    ran = [POINTS[i] for i in picks[:30]]
    failed = [(POINTS[i], kind) for i in picks[30:40]]
    chances = CrashModel(SPACE, ran, failed).chances(POINTS)
    assert ((chances >= 0) & (chances <= 1)).all()
    again = CrashModel(SPACE, ran, failed).chances(POINTS)
    assert (chances == again).all()


def test_the_last_try_is_next_to_what_ran_and_a_second_failure_ends_it() -> None:
    ran: list[Point] = [{N: 0, MNBT: 2048}, {N: 3, MNBT: 2048}, {N: 6, MNBT: 2048}]
    one = CrashModel(SPACE, ran, [({N: 15, MNBT: 2048}, "crash")])
    left = [q for q in POINTS if q not in ran]
    may = [q for q, x in zip(left, one.retriable(left), strict=True) if x]
    assert {N: 7, MNBT: 2048} in may
    assert all(one.avoided(q) for q in may)
    assert {int(q[N]) for q in may} <= {4, 5, 6, 7}
    two = CrashModel(SPACE, ran, [({N: 15, MNBT: 2048}, "crash"), ({N: 7, MNBT: 2048}, "crash")])
    assert not two.retriable(left).any()
    assert not CrashModel(SPACE, ran, []).retriable(left).any()


def test_two_failures_of_one_region_are_in_one_box() -> None:
    """What ran at n = 7 shows that the box begins above it, at every MNBT that the box has."""
    ran: list[Point] = [{N: 0, MNBT: 2048}, {N: 3, MNBT: 2048}, {N: 7, MNBT: 16384}]
    far, near = {N: 15, MNBT: 2048}, {N: 8, MNBT: 16384}
    before = CrashModel(SPACE, ran, [(far, "crash")]).chance({N: 7, MNBT: 4096})
    after = CrashModel(SPACE, ran, [(far, "crash"), (near, "crash")])
    assert before < 0.95
    assert after.chance({N: 7, MNBT: 4096}) == 1.0
    assert after.chance({N: 9, MNBT: 8192}) == 0.0
    # a launch between two failures makes them two regions
    between = CrashModel(SPACE, [*ran, {N: 11, MNBT: 8192}], [(far, "crash"), (near, "crash")])
    assert between.chance({N: 11, MNBT: 8192}) == 1.0


def test_a_point_that_shares_the_region_of_a_running_launch_waits() -> None:
    model = CrashModel(SPACE, SEEDS, [])
    running: list[Point] = [{N: 12, MNBT: 16384}]
    factor = model.apart([{N: 13, MNBT: 16384}, {N: 12, MNBT: 512}, SEEDS[2]], running)
    assert factor[0] < 0.3
    assert factor[1] > factor[0]
    assert factor[2] == 1.0  # it ran
    assert (model.apart(POINTS, SEEDS) == 1).all()  # what ran does not fail


def test_what_is_kept_of_pending_launches_changes_nothing() -> None:
    kept: Kept = {}
    rng = np.random.default_rng(0)
    order = [POINTS[i] for i in rng.permutation(len(POINTS))[:24]]
    for i in range(4, 20):
        running = order[i : i + 4]
        fresh = CrashModel(SPACE, order[:i], []).apart(POINTS, running)
        assert np.array_equal(CrashModel(SPACE, order[:i], [], kept).apart(POINTS, running), fresh)
    assert len(kept) == 4  # of the last ones only
