"""Acceptance curves: exact lengths, rates that a curve can have, bad input in one line."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.stats.acceptance_curve import (
    AcceptanceCurve,
    conditional_rates,
    extend,
    from_conditional,
    from_length,
    from_rates,
    unconditional_rates,
)
from tests.fuzzing import fuzz

MEASURED = (0.75, 0.58, 0.46, 0.37, 0.30, 0.24, 0.19, 0.15, 0.12, 0.095, 0.075, 0.06)


def test_length_and_conditional_rates_of_given_rates() -> None:
    curve = from_rates([0.8, 0.4, 0.1])
    assert [curve.length(n) for n in range(4)] == pytest.approx([1, 1.8, 2.2, 2.3])
    assert curve.conditional == pytest.approx((0.8, 0.5, 0.25))
    assert curve.first(2) == from_rates([0.8, 0.4])
    assert curve.first(0).length(0) == 1


def test_a_position_that_is_never_reached_has_no_conditional_rate() -> None:
    assert from_rates([0.5, 0.0, 0.0]).conditional == (0.5, 0.0, 0.0)
    assert unconditional_rates((0.5, 0.0, 0.9)) == (0.5, 0.0, 0.0)


def test_a_conditional_rate_gives_a_geometric_curve() -> None:
    curve = from_conditional(0.7, 5)
    assert curve.rates == pytest.approx([0.7**i for i in range(1, 6)])
    assert curve.length(5) == pytest.approx((1 - 0.7**6) / 0.3)  # equation 1 of Leviathan et al.


@fuzz(50)
@given(
    st.floats(0, 1), st.floats(0.05, 3), st.integers(1, 60), st.sampled_from([0.0, 1e-9, 1e-3, 1.0])
)
def test_a_length_is_met_at_any_decay(share: float, decay: float, n: int, edge: float) -> None:
    for length in (1 + share * n, 1 + edge * n, n + 1 - edge * n):
        curve = from_length(length, decay, n)
        assert len(curve.rates) == n
        assert curve.length(n) == pytest.approx(length, abs=1e-9 * n)


def test_the_decay_is_that_of_the_conditional_rates_below_one() -> None:
    found = from_length(4.0, 0.95, 15).conditional
    assert all(b / a == pytest.approx(0.95) for a, b in itertools.pairwise(found))
    capped = from_length(11.0, 0.8, 15).conditional
    below = [a for a in capped if a < 1]
    assert capped[0] == 1
    assert 0 < len(below) < 15
    assert all(b / a == pytest.approx(0.8) for a, b in itertools.pairwise(below))
    assert from_length(4.0, 1.0, 15).conditional == pytest.approx(
        from_conditional(found_rate(4.0, 15), 15).conditional
    )


def found_rate(length: float, n: int) -> float:
    """The conditional rate of a length, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if 1 + sum(middle**i for i in range(1, n + 1)) < length
            else (low, middle)
        )
    return low


def test_a_curve_is_cut_or_extended() -> None:
    curve = from_rates(MEASURED)
    assert extend(curve, 0.9, 5) == curve.first(5)
    longer = extend(curve, 0.9, 15)
    assert longer.first(12) == curve
    last = curve.conditional[-1]
    assert longer.conditional[12:] == pytest.approx([last * 0.9**i for i in (1, 2, 3)])
    assert extend(curve, 2.0, 15).rates[12:] == (0.06, 0.06, 0.06)  # no rate is above 1
    assert extend(from_rates([0.5, 0.0]), 0.9, 4).rates == (0.5, 0.0, 0.0, 0.0)


@fuzz(50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 10), st.integers(1, 60))
def test_whatever_is_extended_is_a_curve(given_rates: list[float], decay: float, n: int) -> None:
    curve = from_rates(unconditional_rates(given_rates))
    assert len(extend(curve, decay, n).rates) == n
    assert all(0 <= a <= 1 for a in curve.conditional)
    if curve.rates[-1] > 1e-6:
        assert unconditional_rates(conditional_rates(curve.rates)) == pytest.approx(curve.rates)


def test_what_no_curve_can_have_is_named() -> None:
    curve = from_rates([0.8, 0.4])
    for make, said in (
        (lambda: from_rates([0.8, 1.2]), r"rate 1\.2 of position 2 is not from 0 to 1"),
        (lambda: from_rates([math.nan]), "rate nan of position 1"),
        (lambda: from_rates([0.5, 0.6]), r"0\.6 of position 2 is above 0\.5"),
        (lambda: AcceptanceCurve((-0.1,)), r"-0\.1 of position 1"),
        (lambda: curve.first(3), "n = 3 is not from 0 to the 2 positions"),
        (lambda: curve.length(-1), "n = -1"),
        (lambda: from_conditional(1.1, 3), r"conditional rate 1\.1"),
        (lambda: from_conditional(0.5, 0), "n = 0 is below 1"),
        (lambda: from_length(0.9, 0.9, 3), r"length 0\.9 is not from 1 to n \+ 1 = 4"),
        (lambda: from_length(4.1, 0.9, 3), r"length 4\.1"),
        (lambda: from_length(math.nan, 0.9, 3), "length nan"),
        (lambda: from_length(2.0, 0.0, 3), "decay 0 is not above 0"),
        (lambda: from_length(2.0, math.inf, 3), "decay inf"),
        (lambda: from_length(2.0, 0.9, 0), "n = 0"),
        (lambda: extend(curve, -1.0, 3), "decay -1"),
        (lambda: extend(curve, 0.9, 0), "n = 0"),
        (lambda: extend(AcceptanceCurve(()), 0.9, 2), "without positions"),
    ):
        with pytest.raises(ValueError, match=said):
            make()
