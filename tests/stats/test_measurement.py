from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autotune.stats
from autotune.bench.sample import Sample
from autotune.stats import Measurement, Scatter, percentile_interval, quantile, throughput_interval
from autotune.stats.intervals import quantile_bound
from autotune.stats.measurement import Floats


def sample(
    start: float,
    seconds: float,
    tokens: int = 10,
    *,
    intended: float = 0.0,
    chunks: Sequence[float] | None = None,
    status: str = "ok",
) -> Sample:
    """A request whose chunks come evenly, one a token, the last at its end."""
    stamps = tuple(np.linspace(seconds / tokens, seconds, tokens)) if chunks is None else chunks
    ok = status == "ok"
    return Sample(
        index=0,
        phase="measure",
        intended=intended,
        start=start,
        ttft=stamps[0] if ok else None,
        end=start + seconds,
        prompt_tokens=5 if ok else None,
        output_tokens=tokens if ok else None,
        status=status,
        error=None if ok else "broken",
        chunks=tuple(stamps) if ok else (),
    )


def closed_loop(seconds: Sequence[float], width: int, tokens: int = 10) -> list[Sample]:
    free = [0.0] * width
    out = []
    for s in seconds:
        place = int(np.argmin(free))
        out.append(sample(free[place], s, tokens))
        free[place] += s
    return out


def test_only_successful_requests_count_in_the_order_of_sending() -> None:
    m = Measurement.of([sample(3, 1), sample(1, 2), sample(2, 9, status="timeout")], "send")
    assert len(m) == 2
    assert m.start.tolist() == [1, 3]
    assert m.e2el.tolist() == [2, 1]
    assert m.prompt_tokens.tolist() == [5, 5]


def test_nothing_usable_is_an_error() -> None:
    for samples in ([], [sample(0, 1, status="http")]):
        with pytest.raises(ValueError, match="no request was answered"):
            Measurement.of(samples, "send")


def test_definitions_of_vllm_bench() -> None:
    # 7 tokens in 3 chunks: the first after 1 s, the last after 4 s
    m = Measurement.of([sample(10, 4, 7, chunks=(1.0, 2.0, 4.0)), sample(20, 1, 1)], "send")
    assert m.e2el.tolist() == [4, 1]
    assert m.ttft.tolist() == [1, 1]
    assert m.tpot.tolist() == [3 / 6]  # (4 - 1) / (7 - 1); one token has none
    assert m.itl.tolist() == [1, 2]  # of chunks


def test_latency_from_the_intended_start_counts_the_waiting() -> None:
    samples = [sample(2, 3, intended=0.5)]
    sent, intended = Measurement.of(samples, "send"), Measurement.of(samples, "intended")
    assert sent.e2el.tolist() == [3]
    assert intended.e2el.tolist() == [4.5]
    assert intended.first_token - sent.first_token == 1.5
    assert intended.tpot == sent.tpot


def test_throughput_of_one_client_is_all_tokens_over_all_time() -> None:
    m = Measurement.of(closed_loop([1, 2, 3], 1), "send", 1)
    assert m.throughput == pytest.approx(30 / 6)
    assert m.output_throughput == pytest.approx(30 / 6)


def test_throughput_of_a_closed_loop_is_that_of_a_place_times_the_places() -> None:
    # two places: [0, 4] then [4, 8]; [0, 4] then [4, 14], and others are busy before and after
    m = Measurement.of(closed_loop([4, 4, 4, 10], 2), "send", 2)
    assert m.seconds.tolist() == [4, 4, 4, 10]
    assert m.throughput == pytest.approx(2 * 40 / 22)
    assert m.output_throughput == pytest.approx(40 / 14)


def test_throughput_of_an_open_loop_ends_with_the_first_end_after_the_last_sending() -> None:
    m = Measurement.of(closed_loop([4, 4, 4, 10], 2), "send")
    assert m.window == (0, 8)
    assert m.delivered(8) == 34  # the last one had four of its ten chunks
    assert m.throughput == pytest.approx(34 / 8)


def test_a_request_that_the_window_cuts_counts_by_its_chunks() -> None:
    # usage says 12 tokens, in chunks at 1, 2, 3 and 9 s: three of four are inside
    samples = [sample(0, 4, 8), sample(0, 9, 12, chunks=(1.0, 2.0, 3.0, 9.0))]
    m = Measurement.of(samples, "send")
    assert m.window == (0, 4)
    assert m.delivered(4) == 8 + 9
    assert m.delivered(0.9) == 1  # of the first, whose chunks come every half second
    assert m.delivered(100) == 20


def test_the_windows_last_chunk_is_not_lost_to_rounding() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        m = Measurement.of([sample(rng.uniform(0, 1e5), rng.uniform(1, 9), 96)], "send")
        assert m.delivered(m.window[1]) == 96


def test_a_few_requests_of_each_place_tell_throughput_without_bias() -> None:
    """One or two requests a place, as many others before and after them."""
    rng = np.random.default_rng(1)
    for places, n in ((64, 64), (32, 64), (2, 32)):
        by_place, by_window = [], []
        for _ in range(200):
            seconds = rng.lognormal(0, 0.3, 3 * places + n).tolist()
            samples = closed_loop(seconds, places, 96)[2 * places : 2 * places + n]
            by_place.append(Measurement.of(samples, "send", places).throughput)
            by_window.append(Measurement.of(samples, "send").throughput)
        truth = places * 96 / np.exp(0.3**2 / 2)  # places × tokens / mean service time
        assert np.mean(by_place) / truth == pytest.approx(1, abs=0.01)
        if places > 2:
            assert np.mean(by_window) / truth < 0.9


def test_a_loop_that_was_not_kept_busy_loses_the_first_and_last_of_each_place() -> None:
    samples = closed_loop([1.0, 1.1, 1.2, 1.3] * 3, 3)
    m = Measurement.of(reversed(samples), "send", 3, busy=False)
    assert m.start.tolist() == [s.start for s in samples[3:-3]]
    assert len(Measurement.of(samples, "send", 3)) == 12
    assert len(Measurement.of(samples, "send", busy=False)) == 12  # open loop
    assert len(Measurement.of(samples, "send", 1, busy=False)) == 12  # one place is never idle
    with pytest.raises(ValueError, match="of 8 requests fewer than 3 ran"):
        Measurement.of(samples[:8], "send", 3, busy=False)


def test_parts_of_a_measurement_are_in_the_order_of_sending() -> None:
    m = Measurement.of(closed_loop([3, 1, 2, 1, 1], 2), "send", 2)
    assert m.head(2).e2el.tolist() == [3, 1]
    assert m.part(1, 3).e2el.tolist() == [1, 2]
    assert m.part(1, 3).throughput == pytest.approx(2 * 20 / 3)
    assert [len(c) for c in m.head(2).chunks] == [10, 10]


def test_statistics_import_no_other_room() -> None:
    def imported(tree: ast.AST) -> set[str]:
        names: set[Any] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
        return names

    folder = Path(autotune.stats.__file__).parent
    ours = set().union(*(imported(ast.parse(f.read_text())) for f in folder.glob("*.py")))
    outside = {n for n in ours if n.startswith(("autotune", "objectives"))}
    assert all(n == "autotune.stats" or n.startswith("autotune.stats.") for n in outside)


def ramp(n: int) -> Floats:
    """1 … n, small and large in turn: no trend that would make them count as fewer."""
    values = np.empty(n)
    values[::2] = np.arange(1, (n + 1) // 2 + 1)
    values[1::2] = np.arange(n, (n + 1) // 2, -1)
    return values


def test_p95_has_no_upper_bound_with_few_requests() -> None:
    few = percentile_interval(ramp(32), 95)
    assert few.low is not None
    assert few.high is None
    assert percentile_interval(ramp(71), 95).high is None  # 71: 0.95^71 > 0.025
    enough = percentile_interval(ramp(72), 95)
    assert enough.low is not None
    assert enough.high is not None
    assert enough.low < quantile(ramp(72), 95) < enough.high <= 72
    assert percentile_interval(np.array([1.0]), 95).low is None


def test_percentiles_are_the_median_unbiased_ones() -> None:
    """Type 8 of Hyndman and Fan: the rank of p95 of n values is 0.95 n + 1.95 / 3."""
    values = np.random.default_rng(0).permutation(np.arange(1.0, 101))
    assert quantile(values, 95) == pytest.approx(95 + 1.95 / 3)
    assert quantile(values, 50) == pytest.approx(50.5)
    assert quantile(np.array([7.0]), 95) == 7


def test_percentile_bounds_lie_between_the_exact_order_statistics() -> None:
    """n = 100, p95: ranks 90 and 99 by binomial tables, one step wider than interpolated."""
    values = np.arange(1.0, 101)
    low, high = (quantile_bound(values, 100, 0.95, level) for level in (0.025, 0.975))
    assert low is not None
    assert high is not None
    assert 90 <= low <= 92
    assert 98 <= high <= 100


def test_median_interval_is_symmetric() -> None:
    interval = percentile_interval(ramp(41), 50)
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low - 1 == pytest.approx(41 - interval.high)


def test_throughput_interval_needs_sixteen_requests() -> None:
    rng = np.random.default_rng(2)
    seconds = rng.lognormal(0, 0.3, 16).tolist()
    short = throughput_interval(Measurement.of(closed_loop(seconds[:15], 2), "send", 2))
    assert (short.low, short.high) == (None, None)
    m = Measurement.of(closed_loop(seconds, 2), "send", 2)
    interval = throughput_interval(m)
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < m.throughput < interval.high


def test_equal_requests_leave_no_doubt_about_throughput() -> None:
    m = Measurement.of(closed_loop([2.0] * 32, 2), "send", 2)
    interval = throughput_interval(m)
    assert interval.low == pytest.approx(m.throughput)
    assert interval.high == pytest.approx(m.throughput)


# -- launches against each other


def test_the_ratio_of_two_points_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    held = 0
    runs = 4000
    for _ in range(runs):
        # two launches of each of three points, 5 % noise between launches
        a, b, c = (list(m * np.exp(rng.normal(0, 0.05, 2))) for m in (100.0, 112.0, 90.0))
        e = Scatter.pooled([a, b, c]).ratio(b, a)
        assert e.low is not None
        assert e.high is not None
        held += e.low <= 1.12 <= e.high
    assert 0.93 <= held / runs <= 0.97


def test_single_launches_have_no_interval() -> None:
    scatter = Scatter.pooled([[100.0], [110.0]])
    assert scatter.degrees == 0
    e = scatter.ratio([110.0], [100.0])
    assert (e.value, e.low, e.high) == (pytest.approx(1.1), None, None)


def test_the_scatter_is_pooled_over_points() -> None:
    scatter = Scatter.pooled([[100.0, 110.0], [50.0, 55.0], [7.0]])
    assert scatter.degrees == 2
    assert scatter.sigma == pytest.approx(np.log(1.1) / np.sqrt(2))
    e = scatter.mean([100.0, 110.0])
    assert e.value == pytest.approx(np.sqrt(100 * 110))
    assert e.low is not None
    assert e.high is not None
    assert e.low < e.value < e.high
