"""Best n by load, crossover, the next n, schedules: pure functions."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.stats import LaunchVariance, Scatter
from autotune.stats.crossover import (
    Rate,
    Where,
    best_fixed,
    by_load,
    combined,
    crossover,
    over_loads,
    propose,
    ratio,
    schedule,
)
from tests.fuzzing import fuzz

LADDER = (1, 2, 3, 5, 7, 11, 15)
# FACTS: the demo pair's times and acceptance lengths on two cores
LENGTHS = {0: 1.0, 1: 1.54, 2: 1.77, 3: 1.88, 5: 1.92, 7: 1.94, 11: 1.94, 15: 1.94}


def speed(n: int, load: int, length: Mapping[int, float] = LENGTHS) -> float:
    """tok/s: a step costs a base, each token in it, and a draft."""
    return load * length[n] / (18e-3 + 1.4e-3 * load * (n + 1) + 6e-3 * (n > 0))


def rates(
    ns: tuple[int, ...],
    loads: tuple[int, ...],
    within: float | None = 0.001,
    f: Callable[[int, int], float] = speed,
) -> dict[int, dict[int, Rate]]:
    return {n: {c: Rate(f(n, c), within) for c in loads} for n in ns}


# -- what is best ------------------------------------------------------------------------------


def test_both_regimes_and_the_crossover_between_them() -> None:
    at = by_load(rates((0, 1, 3, 7), (1, 2, 4, 8, 16)), None)
    assert [x.best for x in at] == [3, 3, 1, 0, 0]
    assert [x.draft for x in at] == [3, 3, 1, 1, 1]
    assert at[0].speedup.value == pytest.approx(speed(3, 1) / speed(0, 1))
    assert at[-1].speedup.value == 1
    found = crossover(at)
    assert found is not None
    assert found.where is Where.BETWEEN
    assert (found.wins, found.loses) == (4, 8)
    assert found.load is not None
    assert 4 < found.load < 8
    assert (found.surely_wins, found.surely_loses) == (4, 8)
    assert found.also_loses == ()
    # on the line between the logarithms
    up, down = (math.log(speed(1, c) / speed(0, c)) for c in (4, 8))
    assert math.log(found.load / 4) / math.log(2) == pytest.approx(up / (up - down))


def test_a_crossover_beyond_what_was_measured() -> None:
    above = crossover(by_load(rates((0, 3), (1, 2)), None))
    assert above is not None
    assert (above.where, above.load, above.wins, above.loses) == (Where.ABOVE, None, 2, None)
    below = crossover(by_load(rates((0, 3), (8, 16)), None))
    assert below is not None
    assert (below.where, below.load, below.wins, below.loses) == (Where.BELOW, None, None, 8)
    assert below.surely_loses == 8
    assert crossover(by_load(rates((0,), (1, 2)), None)) is None


def test_what_is_not_certain_is_a_tie_and_no_sure_loss() -> None:
    at = by_load(rates((0, 1, 3), (1, 8), within=0.2), None)
    assert at[0].ties == (0, 1)
    found = crossover(at)
    assert found is not None
    assert (found.wins, found.loses) == (1, 8)
    assert (found.surely_wins, found.surely_loses) == (None, None)
    unknown = by_load(rates((0, 3), (1,), within=None), None)
    assert unknown[0].speedup.low is None
    assert unknown[0].ties == (0,)


def test_a_loss_among_wins_is_told() -> None:
    up = {1: 1.2, 2: 0.9, 4: 1.1, 8: 0.8}
    found = crossover(
        by_load(rates((0, 1), (1, 2, 4, 8), f=lambda n, c: up[c] if n else 1.0), None)
    )
    assert found is not None
    assert (found.wins, found.loses, found.also_loses) == (4, 8, (2,))


def test_what_launches_differ_by_widens_the_intervals() -> None:
    table = rates((0, 3), (1,))
    variance = LaunchVariance(Scatter(0.05, 8), 0.01, 0.049)
    narrow, wide = (by_load(table, v)[0].speedup for v in (None, variance))
    assert narrow.low is not None
    assert wide.low is not None
    assert wide.low < narrow.low
    assert wide.value == pytest.approx(narrow.value)


def test_parts_that_differ_more_than_their_requests_say_so() -> None:
    assert combined([Rate(100, 0.02), Rate(100, 0.02)]).within == pytest.approx(0.02 / 2**0.5)
    apart = combined([Rate(90, 0.001), Rate(110, 0.001)])
    assert apart.within is not None
    assert apart.within == pytest.approx(math.log(110 / 90) / 2)
    assert combined([Rate(90, None), Rate(110, 0.001)]).within is None
    assert combined([Rate(90, 0.03)]).within == pytest.approx(0.03)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(2000):
        a, b = (
            combined([Rate(float(np.exp(rng.normal(0, 0.03))), 0.03) for _ in range(2)])
            for _ in range(2)
        )
        e = ratio(a, b, None)
        assert e.low is not None
        assert e.high is not None
        held += e.low <= 1 <= e.high
    assert 0.945 < held / 2000 < 0.995  # never below what is said; 0.95 and a bit


positive = st.floats(1, 1e4)
tables = st.lists(st.integers(0, 15), min_size=1, max_size=6, unique=True).flatmap(
    lambda ns: st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True).flatmap(
        lambda loads: st.fixed_dictionaries(
            {
                n: st.fixed_dictionaries(
                    {c: st.builds(Rate, positive, st.none() | st.floats(1e-4, 0.5)) for c in loads}
                )
                for n in {0, *ns}
            }
        )
    )
)


@fuzz(100)
@given(tables)
def test_whatever_was_measured_the_map_is_consistent(table: dict[int, dict[int, Rate]]) -> None:
    at = by_load(table, None)
    assert [x.load for x in at] == sorted(table[0])
    for x in at:
        values = {n: row[x.load].value for n, row in table.items()}
        assert values[x.best] == max(values.values())
        assert x.best not in x.ties
        assert x.speedup.value >= 1 - 1e-9
    found = crossover(at)
    assert (found is None) == (set(table) == {0})
    if found is not None and found.load is not None:
        assert found.wins is not None
        assert found.loses is not None
        assert found.wins <= found.load <= found.loses
    if found is not None and found.surely_wins is not None and found.surely_loses is not None:
        assert found.surely_wins < found.surely_loses
    ranges = schedule(table, at, 64)
    assert ranges[0][0] == 1
    assert ranges[-1][1] >= max(table[0])
    assert all(b[0] == a[1] + 1 for a, b in itertools.pairwise(ranges))
    assert all(a <= b for a, b, _ in ranges)
    for x in at:  # at each load an n that is best, or not certainly worse
        n = next(n for a, b, n in ranges if a <= x.load <= b)
        assert n == x.best or n in x.ties


# -- the next n --------------------------------------------------------------------------------


@fuzz(100)
@given(tables, st.lists(st.integers(0, 15), max_size=8))
def test_only_a_new_candidate_is_proposed(
    table: dict[int, dict[int, Rate]], candidates: list[int]
) -> None:
    found = propose(table, candidates)
    if found is not None:
        assert found.n in candidates
        assert found.n not in table
        assert found.gain >= 0


def searched(
    loads: tuple[int, ...], f: Callable[[int, int], float], launches: int = 6
) -> dict[int, dict[int, Rate]]:
    """The n that a map would launch."""
    ns = [0, 3]
    while len(ns) < launches:
        found = propose(rates(tuple(ns), loads, 0.01, f), LADDER)
        if found is None or found.gain < 0.01:
            break
        ns.append(found.n)
    return rates(tuple(ns), loads, 0.01, f)


def test_the_best_n_of_every_load_is_found_in_few_launches() -> None:
    loads = (1, 2, 4, 8, 16)
    table = searched(loads, speed)
    for load in loads:
        best = max(speed(n, load) for n in LENGTHS)
        assert max(row[load].value for row in table.values()) > 0.99 * best
    assert len(table) <= 6


@fuzz(60)
@given(st.floats(0.2, 0.95), st.floats(1e-4, 5e-3), st.floats(0, 2e-2))
def test_it_is_found_whatever_a_draft_accepts_and_costs(
    accepted: float, token_s: float, draft_s: float
) -> None:
    lengths = {n: sum(accepted**i for i in range(n + 1)) for n in (0, *LADDER)}

    def f(n: int, load: int) -> float:
        return load * lengths[n] / (18e-3 + token_s * load * (n + 1) + draft_s * (n > 0))

    loads = (1, 4, 16)
    table = searched(loads, f, launches=8)
    for load in loads:
        best = max(f(n, load) for n in lengths)
        assert max(row[load].value for row in table.values()) > 0.96 * best


def test_nothing_is_proposed_where_nothing_can_be_better() -> None:
    table = rates((0, 1), (8, 16))
    found = propose(table, LADDER)  # at these loads every further token costs
    assert found is None or found.gain < 0.05
    assert propose(rates((0,), (1,)), LADDER) is None
    assert propose(rates((0, 3), (1,)), (0, 3)) is None


# -- schedules ---------------------------------------------------------------------------------


def test_a_schedule_follows_the_best_n() -> None:
    table = rates((0, 1, 3), (1, 2, 4, 8, 16))
    assert schedule(table, by_load(table, None), 32) == ((1, 2, 3), (3, 5, 1), (6, 32, 0))


def test_luck_makes_no_schedule() -> None:
    table = rates((0, 1, 3), (1, 2, 4, 8, 16), within=0.3)
    [(first, last, n)] = schedule(table, by_load(table, None), 16)
    assert (first, last) == (1, 16)
    assert n == best_fixed(table)


def test_the_best_fixed_n_counts_every_load_alike() -> None:
    table = {
        0: {1: Rate(100, 0.01), 8: Rate(100, 0.01)},
        1: {1: Rate(150, 0.01), 8: Rate(80, 0.03)},
        3: {1: Rate(300, 0.01)},  # not measured at every load
    }
    assert best_fixed(table) == 1
    mean = over_loads(table[1], [1, 8])
    assert mean.value == pytest.approx((150 * 80) ** 0.5)
    assert mean.within == pytest.approx(math.hypot(0.01, 0.03) / 2)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
@fuzz(50)
@given(tables)
def test_vllm_takes_every_schedule(table: dict[int, dict[int, Rate]]) -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = f"{spec.submodule_search_locations[0]}/v1/spec_decode/dynamic/utils.py"
    found = importlib.util.spec_from_file_location("dynamic_utils", path)  # vllm itself takes 5 s
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    ranges = schedule(table, by_load(table, None), 64)
    largest = max(n for _, _, n in ranges)
    if largest == 0:
        return  # no draft: no schedule
    lookup = module.build_dynamic_sd_schedule_lookup([list(x) for x in ranges], 64, largest)
    for first, last, n in ranges:
        assert set(lookup[first : min(last, 64) + 1]) <= {n}
