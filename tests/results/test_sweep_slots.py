"""Rates of a load sweep on several slots: how these differ is taken out, or widens intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autotune.results.sweep_slots import is_balanced, without_slots
from autotune.stats import Estimate, LaunchVariance
from autotune.stats.crossover import Rate, expect, propose, ratio
from autotune.stats.launch_variance import Scatter
from autotune.stats.referee import compare

LOADS = (1, 8)


def row(value: float) -> dict[int, Rate]:
    return {load: Rate(value * load, 0.01) for load in LOADS}


def test_one_slot_changes_no_digit() -> None:
    rows = [row(50.123456789), row(61.3)]
    assert without_slots([0, 3], ["GPU-1", "GPU-1"], rows) == rows
    assert without_slots([0, 3], ["", ""], rows) == rows
    assert without_slots([], [], []) == []


def test_a_faster_slot_makes_no_faster_n() -> None:
    """n = 3 is as fast as n = 0, and was launched on a slot that is 8 % faster."""
    found = without_slots([0, 0, 3], ["a", "b", "b"], [row(50), row(54), row(54)])
    for load in LOADS:
        raw = 54 / 50
        less = found[2][load].value / found[0][load].value
        assert 1 <= less < 1 + 0.75 * (raw - 1)  # what one launch tells of a slot is shrunk
        assert ratio(found[2][load], found[0][load], None).low < 1  # type: ignore[operator]
        assert found[2][load].within > 0.01  # type: ignore[operator]


def test_a_slot_that_nothing_compares_has_wide_intervals() -> None:
    linked, alone = (
        without_slots([0, 0, 3], ["a", "b", place], [row(50), row(50), row(60)])[2][1].within
        for place in ("b", "c")
    )
    assert linked is not None
    assert alone is not None
    assert 0.01 < linked < alone


def test_a_load_that_one_launch_lacks_is_left_out_there_only() -> None:
    rows = [row(50), {1: Rate(53, 0.01)}, row(60)]
    found = without_slots([0, 0, 3], ["a", "b", "b"], rows)
    assert [set(x) for x in found] == [{1, 8}, {1}, {1, 8}]


def test_intervals_hold_the_truth_with_planted_differences_of_slots() -> None:
    """200 sweeps on slots that differ by 5 %, launches by 2 %: n = 0 on each of four, then n."""
    rng = np.random.default_rng(7)
    variance = LaunchVariance(Scatter(0.02, 12), 0.02, 0.01)
    truth = {0: 50.0, 1: 55.0, 3: 55.0, 7: 45.0}
    ways, places = [0, 0, 0, 0, 1, 3, 7], [0, 1, 2, 3, 0, 1, 2]
    held = wrong = wrong_as_measured = 0
    for _ in range(200):
        slots = rng.choice([-0.025, 0.025], 4)
        logs = [math.log(truth[n]) + slots[p] for n, p in zip(ways, places, strict=True)]
        noisy = np.exp(np.array(logs) + rng.normal(0, 0.02, len(logs)))
        rows = [{1: Rate(float(x), 0.005)} for x in noisy]
        found = without_slots(ways, [f"s{p}" for p in places], rows)
        none, one, three, seven = (found[i][1] for i in (0, 4, 5, 6))
        for n, rate in ((1, one), (3, three), (7, seven)):
            e = ratio(rate, none, variance)
            assert e.low is not None
            assert e.high is not None
            held += e.low <= truth[n] / truth[0] <= e.high
        wrong += is_sure(ratio(three, one, variance))  # two n that are equally fast
        wrong_as_measured += is_sure(ratio(rows[5][1], rows[4][1], variance))
    assert held / 600 > 0.95
    assert wrong / 200 < 0.08
    assert wrong < wrong_as_measured


def test_slots_cancel_in_whole_passes_and_ratios_hold_the_truth() -> None:
    """200 confirmations of two ways in four passes on slots that differ by 5 % or not at all."""
    rng = np.random.default_rng(3)
    ways, places = ["fixed", "rival"] * 4, ["a", "a", "b", "b", "c", "c", "d", "d"]
    assert is_balanced(ways, places)
    assert not is_balanced(ways[1:], places[1:])
    for spread in (0.0, 0.025):
        held = 0
        for _ in range(200):
            slots = dict(zip("abcd", rng.choice([-spread, spread], 4), strict=True))
            logs = [
                slots[p] + rng.normal(0, 0.02) + 0.03 * (w == "rival")
                for w, p in zip(ways, places, strict=True)
            ]
            rows = [{1: Rate(100 * math.exp(x), 0.005)} for x in logs]
            runs = {k: [r for w, r in zip(ways, rows, strict=True) if w == k] for k in set(ways)}
            [found] = compare(runs, {1: "fixed"}, ["rival"], None)
            assert found.ratio.low is not None
            assert found.ratio.high is not None
            held += found.ratio.low <= math.exp(0.03) <= found.ratio.high
        assert held / 200 > 0.92


def is_sure(e: Estimate) -> bool:
    """Whether a ratio is surely not 1, by its interval."""
    return e.low is not None and e.high is not None and not e.low <= 1 <= e.high


def test_n_that_run_count_as_expected() -> None:
    rates = {0: row(50), 7: row(60)}
    alone = propose(rates, [1, 3, 5, 15])
    assert alone is not None
    found = expect(rates, [alone.n])
    assert found.keys() == {0, 7, alone.n}
    assert min(60, 50) <= found[alone.n][1].value <= 60 + 1e-9
    beside = propose(found, [1, 3, 5, 15])
    assert beside is not None
    assert beside.n != alone.n
    assert expect(rates, []) == rates
    beyond = expect(rates, [15])[15][8]
    assert beyond.value == pytest.approx(60 * 8)
