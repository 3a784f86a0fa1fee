"""Drafts of another acceptance length: exact at the asked n, and inside what a curve can do."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.search.acceptance import Prediction, SpeculationLaunch
from autotune.search.draft_quality import (
    latency_constants,
    latency_of,
    limits,
    shift_of,
    shifted,
    usual_lengths,
    what_if,
)
from autotune.stats.acceptance_curve import unconditional_rates
from tests.fuzzing import fuzz

NS = range(16)


def prediction(*hazards: float, slope: float = 0.002) -> Prediction:
    """Of a draft with these conditional acceptances, launched at n = 0, 3 and 15."""
    every = (*hazards, *hazards[-1:] * 15)[:15]
    launches = [SpeculationLaunch(0, 1 / 0.02)]
    for n in (3, 15):
        positions = unconditional_rates(every[:n])
        length = 1 + sum(positions)
        launches.append(SpeculationLaunch(n, length / (0.03 + slope * n), positions, length))
    found = Prediction.fit(launches)
    assert found is not None
    return found


@fuzz(30)
@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=15), st.floats(0.02, 0.98))
def test_a_shift_gives_the_length_and_keeps_the_order_of_positions(
    hazards: list[float], share: float
) -> None:
    length = 1 + share * len(hazards)
    moved = shifted(hazards, shift_of(hazards, length))
    assert 1 + sum(unconditional_rates(moved)) == pytest.approx(length)
    assert all(0 < h <= 1 for h in moved)
    for (a, b), (x, y) in zip(itertools.pairwise(hazards), itertools.pairwise(moved), strict=True):
        assert (a - b) * (x - y) >= -1e-12


def test_all_odds_change_by_the_same_factor() -> None:
    hazards = (0.75, 0.5, 0.2)
    moved = shifted(hazards, math.log(2))
    assert [m / (1 - m) / (h / (1 - h)) for h, m in zip(hazards, moved, strict=True)] == (
        pytest.approx([2, 2, 2])
    )
    assert shifted((0.0, 1.0), 3.0) == (0.0, 1.0)


def test_the_length_is_that_of_its_n_and_other_n_follow() -> None:
    found = what_if(prediction(0.6), 4.0, 15, NS)
    assert found.length == pytest.approx(4.0)
    # the curve is geometric before and after, because the shift is the same for all positions
    rate = shifted((0.6,), found.shift)[0]
    for x in found.by_n:
        assert x.tokens_per_step == pytest.approx(1 + sum(rate**i for i in range(1, x.n + 1)))
        assert x.rate == pytest.approx(x.tokens_per_step / (0.03 + 0.002 * x.n if x.n else 0.02))
    assert found.best == max(found.by_n, key=lambda x: x.rate)
    assert found.speedup == pytest.approx(found.best.rate * 0.02)
    assert 1 + sum(found.per_position) == pytest.approx(found.best.tokens_per_step)
    assert len(found.per_position) == found.best.n


def test_a_better_draft_wants_a_larger_n_and_a_bad_one_none() -> None:
    known = prediction(0.6, slope=0.004)
    several = [what_if(known, length, 15, NS) for length in (1.2, 2.0, 3.5, 6.0, 12.0)]
    assert [w.best.n for w in several] == sorted(w.best.n for w in several)
    assert [w.best.rate for w in several] == sorted(w.best.rate for w in several)
    assert several[0].best.n == 0
    assert several[-1].best.n == 15
    as_is = what_if(known, None, 15, NS)
    assert as_is.shift == 0
    assert as_is.best.rate == pytest.approx(max(map(known.rate, NS)))


def test_no_position_becomes_certain_however_good_the_draft() -> None:
    known = prediction(0.75, 0.77, 0.79, 0.8, 0.81, 0.8)
    better = what_if(known, 8.0, 15, NS)
    rates = better.per_position
    assert all(a > b for a, b in itertools.pairwise((1.0, *rates)))


def test_limits_are_named() -> None:
    known = prediction(0.6)
    for length in (1.0, 0.5, 16.0, 20.0, math.nan):
        with pytest.raises(
            ValueError, match=f"length {length:g} at n = 15 is not between 1 and 16"
        ):
            what_if(known, length, 15, NS)
    assert limits((0.5, 0.5, 0.0, 0.0)) == (1, 3)
    with pytest.raises(ValueError, match="not between 1 and 3"):
        shift_of((0.5, 0.5, 0.0, 0.0), 3.5)
    with pytest.raises(ValueError, match="not between 16 and 16"):
        shift_of((1.0,) * 15, 16)
    with pytest.raises(ValueError, match="n = 0"):
        what_if(known, 2.0, 0, NS)
    with pytest.raises(ValueError, match="no n"):
        what_if(known, 2.0, 15, ())


@fuzz(30)
@given(st.floats(1, 30), st.integers(0, 5), st.integers(1, 30))
def test_usual_lengths_lie_between_the_limits(measured: float, always: int, more: int) -> None:
    least, most = 1 + always, 1 + always + more
    measured = min(max(measured, least), most)
    found = usual_lengths(measured, least, most)
    assert all(least < x < most for x in found)
    assert sorted(set(found)) == found
    assert measured not in found


def test_latency_follows_from_the_rate() -> None:
    constants = latency_constants([(0, 100.0, 2.0), (3, 150.0, 1.5), (7, 200.0, 1.1), (9, 10, 99)])
    assert constants == {False: pytest.approx(200), True: pytest.approx(225)}
    assert latency_of(constants, 5, 250.0) == pytest.approx(0.9)
    assert latency_of(constants, 0, 50.0) == pytest.approx(4.0)
    assert latency_of({True: 225.0}, 0, 50.0) is None
