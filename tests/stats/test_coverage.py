"""What the statistics of one launch promise, by simulation with fixed seeds."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autotune.stats import (
    Bounded,
    Domination,
    Interval,
    Looks,
    averaged,
    drift,
    expected_between,
    first_look,
    look_sizes,
    narrow_enough,
    percentile_interval,
    precise,
    precise_needs,
    rivals_need,
    warm_from,
)
from autotune.stats.measurement import Floats
from autotune.stats.stopping import LEAST_BETWEEN, USUAL_BETWEEN, relative_half_width
from autotune.stats.warmup import fewest
from tests.paths import ROOT

pytestmark = pytest.mark.slow

RUNS = 2000


@cache
def bench() -> Any:
    path = ROOT / "benchmarks" / "coverage.py"
    return SimpleNamespace(**runpy.run_path(str(path)))


@cache
def served(load: str, places: int, count: int, runs: int = RUNS) -> Any:
    """Requests of a full loop, as arrays over many runs."""
    rng = np.random.default_rng([7, places, count])
    return bench().serve(bench().shapes()[load], places, count, runs, rng)


def fixed(load: str, places: int, size: int) -> Any:
    return bench().fixed(served(load, places, size), size, load, bench().truth(load, places))


# -- intervals


@pytest.mark.parametrize("load", ["log-normal", "bimodal", "drifting"])
@pytest.mark.parametrize(("places", "size"), [(4, 200), (64, 512)])
def test_intervals_hold_the_truth_as_often_as_they_say(load: str, places: int, size: int) -> None:
    """Nominal is 95 %; the whole table is that of benchmarks/coverage.py."""
    got = fixed(load, places, size)
    assert 0.93 <= got.throughput <= 0.985
    assert 0.93 <= got.p95 <= 0.985
    assert 0.93 <= got.goodput <= 0.99
    assert got.p95_open < 0.01


@pytest.mark.parametrize("load", ["recorded lengths", "neighbours' prefills"])
def test_a_few_requests_of_each_place_are_not_biased(load: str) -> None:
    """Two of each of 64 places; answers of very different lengths, or arrivals delay others."""
    got = fixed(load, 64, 128)
    assert abs(got.throughput_bias) < 0.01
    assert abs(got.p95_bias) < 0.02
    assert got.throughput >= 0.91


@pytest.mark.parametrize("load", ["log-normal", "three-modal", "zero-inflated"])
@pytest.mark.parametrize("size", [32, 200])
def test_p95_is_as_often_too_small_as_too_large(load: str, size: int) -> None:
    """Five standard deviations of 2000 runs are 5.6 %."""
    assert fixed(load, 1, size).p95_median == pytest.approx(0.5, abs=0.056)


@pytest.mark.parametrize("load", ["log-normal", "zero-inflated"])
@pytest.mark.parametrize(("places", "size"), [(4, 400), (64, 512)])
def test_standard_errors_are_those_that_runs_differ_by(load: str, places: int, size: int) -> None:
    """Within 15 %, as root mean squares."""
    got = fixed(load, places, size)
    assert math.sqrt(got.throughput_told) == pytest.approx(1, abs=0.15)
    assert math.sqrt(got.p95_told) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("arrivals", [7, 8, 9])
def test_an_open_loops_interval_holds_and_says_something(arrivals: int) -> None:
    """Arrivals set tok/s, so it is known much better than the requests' times differ."""
    got = bench().opened(400, 150, arrivals)
    assert got.throughput >= 0.93
    assert math.sqrt(got.throughput_told) < 5
    assert got.p95 >= 0.93


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
    assert warm_from([8.0] * 15, concurrency=8) is None


def test_a_wandering_machine_is_not_called_drifting() -> None:
    rng = np.random.default_rng(0)
    for shape, most in (("log-normal", 0.02), ("bimodal", 0.02), ("drifting", 0.03)):
        draw = bench().shapes()[shape].draw
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


def test_the_first_look_comes_after_four_requests_of_each_place() -> None:
    assert first_look(32, 1) == first_look(32, 8) == first_look(32, None) == 32
    assert first_look(32, 64) == 256


class Watched:
    """Looks at 4, 8 and 16 of 16 requests, and what they asked."""

    def __init__(self, answer: Callable[[int], str | None]) -> None:
        self.asked: list[int] = []
        self._answer = answer
        self.looks: Looks[str] = Looks([4, 8, 16], self._ask)

    def _ask(self, size: int) -> str | None:
        self.asked.append(size)
        return self._answer(size)

    def send(self, count: int) -> None:
        for _ in range(count):
            self.looks.sent()

    def end(self, *indices: int) -> None:
        for index in indices:
            self.looks.ended(index)


def test_a_look_waits_for_every_request_that_was_sent_before() -> None:
    w = Watched(lambda size: None)
    w.send(10)
    w.end(1, 2, 3, 4, 5, 6)  # the first is long
    assert w.asked == []
    assert w.looks.complete == 0
    w.end(0)
    assert w.looks.complete == 7
    assert w.asked == [4]


def test_requests_may_end_in_any_order() -> None:
    w = Watched(lambda size: None)
    w.send(16)
    w.end(*range(15, -1, -1))
    assert w.asked == [8]  # both sizes became complete at once: the larger counts
    assert w.looks.over
    assert (w.looks.size, w.looks.verdict) == (16, None)


def test_a_verdict_is_asked_again_of_what_was_under_way() -> None:
    w = Watched(lambda size: "enough")
    w.send(7)
    w.end(0, 1, 2)
    assert w.asked == []
    w.end(3)
    assert w.asked == [4]
    assert not w.looks.over
    w.send(1)  # sending goes on, and what is sent now is not waited for
    w.end(7, 4, 6)
    assert not w.looks.over
    w.end(5)
    assert w.asked == [4, 7]
    assert w.looks.over
    assert (w.looks.size, w.looks.verdict) == (7, "enough")
    w.end(7)
    assert w.asked == [4, 7]


def test_nothing_ends_if_the_second_answer_is_another_one() -> None:
    w = Watched(lambda size: "enough" if size == 4 else None)
    w.send(9)
    w.end(0, 1, 2, 3)
    w.end(4, 5, 6, 7, 8)  # 8 was complete in between, and is less than 9
    assert w.asked == [4, 9]
    w.send(7)
    w.end(*range(9, 16))
    assert w.asked == [4, 9]
    assert w.looks.over
    assert (w.looks.size, w.looks.verdict) == (16, None)


def test_a_single_place_ends_at_once() -> None:
    w = Watched(lambda size: "enough" if size == 8 else None)
    for index in range(8):
        w.send(1)
        w.end(index)
    assert w.asked == [4, 8]
    assert (w.looks.size, w.looks.verdict) == (8, "enough")


def test_requests_that_were_all_sent_count() -> None:
    w = Watched(lambda size: "enough")
    w.send(16)
    w.end(0, 1, 2, 3)
    assert w.asked == [4]
    w.end(*range(4, 15))
    assert not w.looks.over
    w.end(15)
    assert w.asked == [4]
    assert (w.looks.size, w.looks.verdict) == (16, None)


def test_precision_asks_for_every_interval() -> None:
    narrow, wide = Interval(96, 104, 0.95), Interval(90, 110, 0.95)
    assert precise([(100.0, narrow), (100.0, narrow)], 0.05)
    assert not precise([(100.0, narrow), (100.0, wide)], 0.05)
    assert not precise([(100.0, Interval(99, None, 0.95))], 0.05)
    assert relative_half_width(100.0, Interval(None, 101, 0.95)) == math.inf


def test_narrow_intervals_count_from_eight_requests_of_each_place_on() -> None:
    assert not narrow_enough(255, 32)
    assert narrow_enough(256, 32)
    assert narrow_enough(8, None)


def test_p95_has_bounds_with_enough_requests() -> None:
    values = np.arange(500) % 2 * 1000 + np.arange(500.0)  # small and large in turn: no trend
    assert percentile_interval(values[: precise_needs()], 95, 0.97).high is not None
    assert percentile_interval(values[: precise_needs() - 1], 95, 0.97).high is None
    for finished in (1, 8):
        need, confidence = rivals_need(finished, 0.05), 1 - 0.05 / finished
        assert percentile_interval(values[:need], 95, confidence).high is not None
        assert percentile_interval(values[: need - 1], 95, confidence).high is None


@pytest.mark.parametrize("load", ["log-normal", "neighbours' prefills"])
def test_intervals_hold_where_their_width_ended_the_measurement(load: str) -> None:
    loop = served(load, 64, 1600, 600)
    got = bench().stopped(loop, 1600, load, bench().truth(load, 64))
    assert got.early > 0.5
    assert got.used < 0.85
    assert got.throughput >= 0.93
    assert got.p95 >= 0.93
    assert abs(got.throughput_bias) < 0.002


def known(value: float, spread: float = 0.01) -> Bounded:
    """A value whose interval is symmetric in the logarithm, and wider at more confidence."""

    def interval(confidence: float) -> Interval:
        half = spread / (1 - confidence) ** 0.25
        return Interval(value * math.exp(-half), value * math.exp(half), confidence)

    return Bounded(value, interval)


def one_sided(value: float, low: float | None, high: float | None) -> Bounded:
    return Bounded(value, partial(Interval, low, high))


def test_a_trial_is_dominated_only_by_a_rival_that_is_better_in_all() -> None:
    test = Domination(5, ("maximize", "minimize"), (0.0, 0.0))
    trial = (known(100), known(2.0))
    assert test.by(trial, [(known(200), known(1.0))]) == 0
    assert test.by(trial, [(known(200), known(2.0)), (known(100), known(1.0))]) is None
    assert test.by(trial, [(known(200), known(3.0)), (known(200), known(1.0))]) == 1
    assert test.by(trial, [(known(101), known(1.0))]) is None  # nearly equal
    assert test.by(trial, []) is None
    # one look at the end leaves nothing to save
    assert Domination(1, test.directions, test.sigma).by(trial, [(known(200), known(1.0))]) is None
    assert (
        Domination(5, test.directions, test.sigma, 0.0).by(trial, [(known(200), known(1.0))])
        is None
    )


def test_launch_to_launch_variance_makes_a_trial_harder_to_rule_out() -> None:
    trial, rival = (known(100), known(2.0)), (known(125), known(1.6))
    assert Domination(5, ("maximize", "minimize"), (0.0, 0.0)).by(trial, [rival]) == 0
    assert Domination(5, ("maximize", "minimize"), (0.0, 0.1)).by(trial, [rival]) is None


def test_the_best_of_many_trials_rules_out_less_than_the_only_other_one() -> None:
    trial, rival = (known(100), known(2.0)), (known(160), known(1.25))
    directions, sigma = ("maximize", "minimize"), (0.1, 0.1)
    assert Domination(5, directions, sigma, finished=1).by(trial, [rival]) == 0
    assert Domination(5, directions, sigma, finished=30).by(trial, [rival]) is None


def test_a_rival_that_was_launched_again_rules_out_more() -> None:
    trial, single = (known(100), known(2.0)), (known(136), known(2 / 1.36))
    rival = [averaged([x] * 4) for x in single]
    test = Domination(5, ("maximize", "minimize"), (0.1, 0.1))
    assert test.by(trial, [single]) is None
    assert test.by(trial, [rival]) == 0


def test_only_the_bounds_that_face_each_other_are_needed() -> None:
    test = Domination(5, ("maximize", "minimize"), (0.0, 0.0))
    trial = one_sided(100, None, 104), one_sided(2.0, 1.9, None)
    rival = one_sided(200, 190, None), one_sided(1.0, None, 1.1)
    assert test.by(trial, [rival]) == 0
    assert test.by(trial, [(rival[0], one_sided(1.0, 0.9, None))]) is None
    assert test.by((trial[0], one_sided(2.0, None, 2.1)), [rival]) is None


def test_the_mean_of_launches_is_geometric_and_surer() -> None:
    one = averaged([known(100)])
    assert (one.value, one.launches) == (100, 1)
    mean = averaged([known(80, 0.03), known(125, 0.04)])
    assert mean.value == pytest.approx(100)
    assert mean.launches == 2
    half = 0.05 / 0.05**0.25 / 2  # 3 % and 4 % in quadrature, halved
    found = mean.interval(0.95)
    assert found.low == pytest.approx(100 * math.exp(-half))
    assert found.high == pytest.approx(100 * math.exp(half))


def test_a_bound_that_one_launch_lacks_the_mean_lacks() -> None:
    mean = averaged([known(1.0), one_sided(1.0, 0.9, None), one_sided(1.0, 0.0, 1.2)])
    assert mean.interval(0.95) == Interval(None, None, 0.95)
    found = averaged([known(1.0), one_sided(1.0, 0.9, None)]).interval(0.95)
    assert found.low is not None
    assert found.high is None


def test_the_usual_scatter_between_launches_gives_way_to_the_studys_own() -> None:
    assert expected_between(0.0, 0) == expected_between(0.5, 0) == USUAL_BETWEEN
    assert expected_between(USUAL_BETWEEN, 7) == pytest.approx(USUAL_BETWEEN)
    assert expected_between(0.02, 4) == pytest.approx(math.sqrt((0.1**2 + 0.02**2) / 2))
    assert expected_between(0.2, 1000) == pytest.approx(0.2, rel=0.01)
    assert expected_between(0.0, 1000) == LEAST_BETWEEN
    told = [expected_between(0.02, n) for n in range(20)]
    assert told == sorted(told, reverse=True)


@cache
def contest(load: str, places: int, most: int) -> Any:
    both = served(load, places, most, 1200)
    return bench().Contest(both.part(0, 600), both.part(600, 1200), most)


def share(kind: str, load: str, scatter: float, tail: str, rivals: int) -> tuple[float, float]:
    """Of 600 trials those that ended early, and their mean size; 10 of them by `Looks` itself."""
    found = contest(load, 32, 512)
    rng = np.random.default_rng(5)
    ended, sizes = bench().dominate(found, kind, scatter, tail, rivals, rng, 10)
    return float(ended.mean()), float(sizes[ended].mean()) if ended.any() else math.nan


@pytest.mark.parametrize("kind", ["equal", "better", "equal tok/s", "equal p95"])
@pytest.mark.parametrize("load", ["log-normal", "drifting"])
@pytest.mark.parametrize(("scatter", "tail"), [(0.03, "normal"), (0.1, "normal"), (0.1, "t")])
@pytest.mark.parametrize("rivals", [1, 20])
def test_trials_that_are_as_good_in_one_objective_are_rarely_stopped(
    kind: str, load: str, scatter: float, tail: str, rivals: int
) -> None:
    """At most 5 %, in all looks and against all rivals, whatever launches differ by."""
    assert share(kind, load, scatter, tail, rivals)[0] <= (0.02 if kind == "better" else 0.05)


@pytest.mark.parametrize("load", ["log-normal", "neighbours' prefills"])
@pytest.mark.parametrize("rivals", [1, 20])
def test_trials_that_are_half_as_fast_are_stopped_soon(load: str, rivals: int) -> None:
    ended, size = share("half", load, 0.03, "normal", rivals)
    assert ended > 0.95
    assert size < 300
