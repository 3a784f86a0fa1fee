"""The referee of load sweeps: rivals against the best fixed n, verdicts and crossovers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from autotune.stats import Estimate, LaunchVariance, Scatter
from autotune.stats.crossover import Rate
from autotune.stats.referee import (
    Compared,
    Verdict,
    compare,
    crossing,
    there_and_back,
    winners,
)

# vllm#52362, MI350X, DeepSeek-V4-Flash: tok/s by concurrency
NONE = {4: 382.0, 8: 729.0, 16: 1343.0, 32: 2393.0, 64: 4095.0, 128: 6341.0, 256: 8879.0}
SEVEN = {4: 970.0, 8: 1763.0, 16: 2910.0, 32: 4756.0, 64: 6712.0, 128: 8779.0, 256: 7852.0}
ADAPTIVE = {4: 902.0, 8: 1617.0, 16: 2774.0, 32: 4501.0, 64: 7144.0, 128: 10356.0, 256: 13325.0}
TABLE = {"0": NONE, "7": SEVEN, "adaptive": ADAPTIVE}


def launches(
    values: dict[int, float], count: int, noise: float, seed: int
) -> list[dict[int, Rate]]:
    rng = np.random.default_rng(seed)
    return [
        {
            load: Rate(v * math.exp(noise * rng.standard_normal()), 0.001)
            for load, v in values.items()
        }
        for _ in range(count)
    ]


def estimates(*bounds: tuple[int, float, float | None, float | None]) -> dict[int, Estimate]:
    return {load: Estimate(value, low, high) for load, value, low, high in bounds}


def test_ways_are_launched_there_and_back_in_whole_rounds() -> None:
    for ways, asked in itertools.product(("A", "AB", "ABC", "ABCD"), range(1, 25)):
        order = there_and_back(ways, asked)
        assert order == order[::-1]  # a steady drift affects all equally
        assert {order.count(x) for x in ways} == {len(order) // len(ways)}
        assert len(order) <= max(asked, 2 * len(ways))
        more = there_and_back(ways, asked + 8)
        assert more[: len(order)] == order
    assert there_and_back("", 8) == []


def test_a_steady_drift_cancels() -> None:
    order = there_and_back("AB", 8)
    runs: dict[str, list[dict[int, Rate]]] = {"A": [], "B": []}
    for i, way in enumerate(order):
        value = (100.0 if way == "A" else 110.0) * 1.01**i
        runs[way].append({1: Rate(value, 0.001)})
    [found] = compare(runs, {1: "A"}, ["B"], None)
    assert found.ratio.value == pytest.approx(1.1)
    assert found.launches == (4, 4)
    assert found.ratio.low is not None
    assert found.ratio.low < 1.1  # and its scatter is counted


def test_the_only_complete_published_table() -> None:
    """Below concurrency 64 the fixed n is kept, from 64 on adaptive verification is chosen."""
    # as exact as the launches of vllm#52228 (0.3 to 0.4 %)
    runs = {way: launches(v, 4, 0.004, seed) for seed, (way, v) in enumerate(TABLE.items())}
    fixed = {load: "7" if load < 256 else "0" for load in NONE}
    found = compare(runs, fixed, ["adaptive"], None)
    assert winners(found) == {
        load: "adaptive" if load >= 64 else "7" for load in (4, 8, 16, 32, 64, 128, 256)
    }
    assert [x.verdict for x in found] == [Verdict.FIXED] * 4 + [Verdict.RIVAL] * 3
    cross = crossing({x.load: x.ratio for x in found})
    assert cross is not None
    assert cross.load is not None
    assert cross.low is not None
    assert cross.high is not None
    assert 32 < cross.low < cross.load < cross.high < 64
    exact = 32 * 2 ** (math.log(4756 / 4501) / (math.log(4756 / 4501) + math.log(7144 / 6712)))
    assert cross.low < exact < cross.high
    # where launches differ by 10 %, four of each rarely tell at 32 and 64, and are rarely wrong
    wrong, ties = 0, 0
    for seed in range(100):
        noisy = {
            way: launches(v, 4, 0.10, 3 * seed + i) for i, (way, v) in enumerate(TABLE.items())
        }
        near = {x.load: x.verdict for x in compare(noisy, {32: "7", 64: "7"}, ["adaptive"], None)}
        wrong += (near[32] is Verdict.RIVAL) + (near[64] is Verdict.FIXED)
        ties += (near[32] is Verdict.TIE) + (near[64] is Verdict.TIE)
    assert wrong <= 4
    assert ties > 150


def test_a_rival_needs_more_the_more_rivals_there_are() -> None:
    runs = {
        way: launches({8: v}, 4, 0.02, seed)
        for seed, (way, v) in enumerate({"3": 100.0, "a": 104.0, "b": 103.0, "c": 90.0}.items())
    }
    [alone] = compare(runs, {8: "3"}, ["a"], None)
    first, *_ = compare(runs, {8: "3"}, ["a", "b", "c"], None)
    assert first.ratio.value == alone.ratio.value
    assert alone.ratio.low is not None
    assert first.ratio.low is not None
    assert first.ratio.low < alone.ratio.low
    # the fixed way is no rival of itself, and ways without launches are left out
    assert [x.rival for x in compare(runs, {8: "3"}, ["3", "a", "z"], None)] == ["a"]
    assert compare(runs, {8: "z"}, ["a"], None) == []
    assert compare(runs, {16: "3"}, ["a"], None) == []


def test_single_launches_have_the_intervals_of_what_is_known_of_launches() -> None:
    runs = {"3": [{1: Rate(100.0, 0.01)}], "a": [{1: Rate(110.0, 0.01)}]}
    [within] = compare(runs, {1: "3"}, ["a"], None)
    [between] = compare(runs, {1: "3"}, ["a"], LaunchVariance(Scatter(0.1, 8), 0.01, 0.1))
    assert within.verdict is Verdict.RIVAL
    assert between.verdict is Verdict.TIE
    unknown = {**runs, "a": [{1: Rate(110.0, None)}]}
    [none] = compare(unknown, {1: "3"}, ["a"], None)
    assert none.ratio == Estimate(1.1, None, None)
    assert none.verdict is Verdict.TIE


def test_the_fastest_of_the_certain_rivals_is_served() -> None:
    def found(rival: str, low: float, value: float) -> Compared[str]:
        return Compared(8, "3", rival, Estimate(value, low, 2 * value), (4, 4))

    assert winners([found("a", 0.9, 1.4)]) == {8: "3"}
    assert winners([found("a", 1.1, 1.2), found("b", 1.05, 1.3), found("c", 0.9, 1.4)]) == {8: "b"}


def test_the_crossover_is_between_the_loads_where_it_passes_one() -> None:
    found = crossing(
        estimates((1, 0.5, 0.4, 0.6), (4, 0.8, 0.7, 0.95), (16, 1.25, 1.1, 1.4), (64, 2, 1.8, 2.2))
    )
    assert found is not None
    assert found.load == pytest.approx(8)
    assert found.wins_above
    assert found.low is not None
    assert found.high is not None
    assert 4 < found.low < 8 < found.high < 16
    # the upper bound passes 1 between 4 and 16
    share = math.log(1 / 0.95) / math.log(1.4 / 0.95)
    assert found.low == pytest.approx(4 * 4**share)


def test_the_other_direction_and_bounds_that_stay_open() -> None:
    down = crossing(estimates((1, 2, 1.5, 2.5), (4, 1.25, 0.9, 1.6), (16, 0.8, 0.5, 1.2)))
    assert down is not None
    assert (down.load, down.high, down.wins_above) == (pytest.approx(8), None, False)
    assert down.low is not None
    assert 1 < down.low < 4
    unbounded = crossing(estimates((1, 0.9, None, None), (4, 1.2, None, None)))
    assert unbounded is not None
    assert unbounded.load is not None
    assert (unbounded.low, unbounded.high) == (None, None)
    half = crossing(estimates((1, 0.9, 0.8, 0.95), (4, 1.2, None, None)))
    assert half is not None
    assert half.low == pytest.approx(1)  # nothing bounds it but the load that surely loses
    for value in (0.5, 2.0):
        one_side = crossing(estimates((1, value, None, None), (4, value, None, None)))
        assert one_side is not None
        assert (one_side.load, one_side.wins_above) == (None, value > 1)
    assert crossing({}) is None
    again = crossing(estimates((1, 2, 1.9, 2.1), (2, 0.5, 0.4, 0.6), (4, 2, 1.9, 2.1)))
    assert again is not None
    assert again.load is not None
    assert 2 < again.load < 4  # the last one
