"""What the statistics of one launch promise, by simulation with fixed seeds."""

from __future__ import annotations

import math
import runpy
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.measure import (
    Bounded,
    Domination,
    Interval,
    drift,
    look_sizes,
    percentile_interval,
    precise,
    warm_from,
)
from autotune.measure.measurement import Floats
from autotune.measure.stopping import relative_half_width
from autotune.measure.warmup import fewest


@cache
def bench() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "coverage.py"))


# -- intervals


@pytest.mark.parametrize("shape", ["log-normal", "bimodal", "drifting"])
@pytest.mark.parametrize(("n", "places"), [(200, 4), (400, 8)])
def test_intervals_hold_the_truth_as_often_as_they_say(shape: str, n: int, places: int) -> None:
    """Nominal is 95 %; the whole table is that of benchmarks/coverage.py."""
    got = bench()["simulate"](bench()["shapes"]()[shape], [n], places, runs=2500, seed=7)
    assert 0.93 <= got.throughput <= 0.97
    assert 0.93 <= got.p95 <= 0.97
    assert (got.throughput_none, got.p95_open) == (0, 0)


def test_intervals_of_a_hundred_requests_on_a_drifting_machine() -> None:
    got = bench()["simulate"](bench()["shapes"]()["drifting"], [100], 2, runs=2500, seed=7)
    assert 0.93 <= got.throughput <= 0.97
    assert 0.93 <= got.p95 <= 0.97


def test_values_that_follow_each_other_count_as_fewer() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 0.3, 400)
    apart, together = percentile_interval(values, 95), percentile_interval(np.sort(values), 95)
    assert together.low is not None
    assert apart.low is not None
    assert apart.high is not None
    assert together.low < apart.low
    assert together.high is None or together.high > apart.high


def test_equal_values_have_an_interval_without_width() -> None:
    interval = percentile_interval(np.full(100, 2.0), 95)
    assert (interval.low, interval.high) == (2, 2)


def test_more_confidence_needs_more_requests() -> None:
    values = np.random.default_rng(1).permutation(100).astype(np.float64)
    wide, narrow = percentile_interval(values, 95, 0.995), percentile_interval(values, 95, 0.8)
    assert wide.high is None  # 0.95^100 > 0.0025
    assert wide.low is not None
    assert narrow.low is not None
    assert narrow.high is not None
    assert wide.low < narrow.low < narrow.high


# -- warm-up and drift


def warm_after(rates: Sequence[float], places: int) -> tuple[int, int | None]:
    """After how many requests it is called warm, and from which on."""
    for n in range(1, len(rates) + 1):
        if (start := warm_from(rates[:n], places)) is not None:
            return n, start
    return len(rates), None


def noise(rng: np.random.Generator, n: int) -> Floats:
    return rng.lognormal(0, 0.2, n)


@pytest.mark.parametrize("places", [1, 2, 4, 8])
def test_a_steady_server_is_called_warm_soon(places: int) -> None:
    rng = np.random.default_rng(places)
    needed = [warm_after(noise(rng, 60).tolist(), places)[0] for _ in range(300)]
    assert min(needed) == fewest(places) == max(8, 2 * places)
    assert np.mean(needed) < fewest(places) + 2


@pytest.mark.parametrize("places", [1, 2, 4, 8])
def test_a_slow_start_is_told_apart(places: int) -> None:
    """Three to six requests take two to eight times as long."""
    rng = np.random.default_rng(places)
    early, needed = 0, []
    for _ in range(300):
        slow, rates = int(rng.integers(3, 7)), noise(rng, 60)
        rates[:slow] /= rng.uniform(2, 8)
        n, start = warm_after(rates.tolist(), places)
        assert start is not None
        early += start < slow
        needed.append(n)
    assert early / 300 <= 0.03
    assert np.mean(needed) < fewest(places) + 6


def test_a_series_that_became_steady_only_now_is_not_warm() -> None:
    assert warm_from([1.0] * 7 + [8.0] * 3) is None
    assert warm_from([1.0] * 3 + [8.0] * 7) == 3
    assert warm_from([8.0] * 7) is None  # fewer than eight
    assert warm_from([8.0] * 8) == 0
    assert warm_from([8.0] * 15, places=8) is None


def test_a_wandering_machine_is_not_called_drifting() -> None:
    rng = np.random.default_rng(0)
    for shape, most in (("log-normal", 0.02), ("bimodal", 0.02), ("drifting", 0.03)):
        draw = bench()["shapes"]()[shape].draw
        said = [drift((1 / draw(rng, 100)).tolist()) is not None for _ in range(1500)]
        assert np.mean(said) <= most


def test_a_machine_that_slows_down_is_called_drifting() -> None:
    rng = np.random.default_rng(0)
    throttled = np.linspace(1, 0.7, 200)  # by 30 % from the first to the last request
    found = [drift((noise(rng, 200) * throttled).tolist()) for _ in range(200)]
    said = [x for x in found if x is not None]
    assert len(said) > 150
    assert max(said) < 0
    assert np.mean(said) == pytest.approx(-0.27, abs=0.02)  # between the eighths' middles
    assert drift([1.0] * 15) is None
    assert drift([1.0] * 16) is None


# -- stopping


def test_looks_grow_geometrically_up_to_the_maximum() -> None:
    looks = look_sizes(32, 400)
    assert (looks[0], looks[-1]) == (32, 400)
    growth = np.array(looks[1:]) / looks[:-1]
    assert growth.min() > 1.2
    assert growth.max() <= 1.32
    assert look_sizes(64, 32) == look_sizes(32, 32) == [32]
    assert look_sizes(1, 4) == [1, 2, 3, 4]


def test_precision_asks_for_every_interval() -> None:
    narrow, wide = Interval(96, 104, 0.95), Interval(90, 110, 0.95)
    assert precise([(100.0, narrow), (100.0, narrow)], 0.05)
    assert not precise([(100.0, narrow), (100.0, wide)], 0.05)
    assert not precise([(100.0, Interval(99, None, 0.95))], 0.05)
    assert relative_half_width(100.0, Interval(None, 101, 0.95)) == math.inf


@pytest.mark.parametrize("shape", ["log-normal", "drifting"])
def test_intervals_hold_where_their_width_ended_the_measurement(shape: str) -> None:
    looks = look_sizes(32, 600)
    got = bench()["simulate"](bench()["shapes"]()[shape], looks, 4, 500, 7, precision=0.12)
    assert got.early > 0.9
    assert got.requests < 350
    assert got.throughput >= 0.93
    assert got.p95 >= 0.93


def known(value: float, spread: float = 0.01) -> Bounded:
    """A value whose interval is symmetric in the logarithm, and wider at more confidence."""

    def interval(confidence: float) -> Interval:
        half = spread / (1 - confidence) ** 0.25
        return Interval(value * math.exp(-half), value * math.exp(half), confidence)

    return Bounded(value, interval)


def one_sided(value: float, low: float | None, high: float | None) -> Bounded:
    return Bounded(value, partial(Interval, low, high))


def test_a_trial_is_dominated_only_by_a_rival_that_is_better_in_everything() -> None:
    test = Domination(5, ("maximize", "minimize"), (0.0, 0.0))
    trial = (known(100), known(2.0))
    assert test.by(trial, [(known(200), known(1.0))]) == 0
    assert test.by(trial, [(known(200), known(2.0)), (known(100), known(1.0))]) is None
    assert test.by(trial, [(known(200), known(3.0)), (known(200), known(1.0))]) == 1
    assert test.by(trial, [(known(101), known(1.0))]) is None  # nearly equal
    assert test.by(trial, []) is None
    # one look at the end leaves nothing to save
    assert Domination(1, test.directions, test.sigma).by(trial, [(known(200), known(1.0))]) is None


def test_launch_to_launch_variance_makes_a_trial_harder_to_rule_out() -> None:
    trial, rival = (known(100), known(2.0)), (known(125), known(1.6))
    assert Domination(5, ("maximize", "minimize"), (0.0, 0.0)).by(trial, [rival]) == 0
    assert Domination(5, ("maximize", "minimize"), (0.0, 0.1)).by(trial, [rival]) is None


def test_only_the_bounds_that_face_each_other_are_needed() -> None:
    test = Domination(5, ("maximize", "minimize"), (0.0, 0.0))
    trial = one_sided(100, None, 104), one_sided(2.0, 1.9, None)
    rival = one_sided(200, 190, None), one_sided(1.0, None, 1.1)
    assert test.by(trial, [rival]) == 0
    assert test.by(trial, [(rival[0], one_sided(1.0, 0.9, None))]) is None
    assert test.by((trial[0], one_sided(2.0, None, 2.1)), [rival]) is None


@pytest.mark.parametrize(
    ("slower", "tokens"),
    [
        pytest.param(1, 48, id="p95 equal"),
        pytest.param(2, 192, id="throughput equal"),
    ],
)
def test_a_trial_that_is_equal_in_one_objective_is_rarely_stopped(
    slower: float, tokens: int
) -> None:
    """At most 5 % in all looks together, however much worse the other objective is."""
    shape = bench()["shapes"]()["drifting"]
    got = bench()["dominate"](shape, 200, 4, 300, 7, slower=slower, tokens=tokens)
    assert got.share <= 0.05


def test_a_clearly_worse_trial_saves_requests() -> None:
    shape = bench()["shapes"]()["log-normal"]
    assert bench()["dominate"](shape, 400, 8, 100, 7, slower=1.3).saved > 0.3
