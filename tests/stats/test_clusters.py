"""Ratios over requests, and how often their intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.stats.clusters import FEWEST, ratio_of_sums


def test_the_ratio_is_that_of_the_sums() -> None:
    e = ratio_of_sums(np.array([1.0, 9.0]), np.array([1.0, 3.0]))
    assert e is not None
    assert (e.value, e.low, e.high) == (2.5, None, None)  # too few for an interval


def test_a_request_without_anything_counts_for_nothing() -> None:
    above, below = np.array([2.0, 4.0] * FEWEST), np.array([2.0] * 2 * FEWEST)
    with_zero = ratio_of_sums(np.append(above, 0.0), np.append(below, 0.0))
    assert with_zero == ratio_of_sums(above, below)
    assert ratio_of_sums(np.zeros(3), np.zeros(3)) is None


def test_equal_requests_do_not_say_how_sure_they_are() -> None:
    e = ratio_of_sums(np.full(20, 30.0), np.full(20, 20.0))
    assert e is not None
    assert (e.low, e.high) == (None, None)


def test_a_repeated_step_is_no_further_request() -> None:
    """Ten times the steps of the same requests are not ten times the evidence."""
    rng = np.random.default_rng(3)
    below = rng.integers(20, 60, 40).astype(float)
    above = below * rng.beta(4, 4, 40)
    a, b = ratio_of_sums(above, below), ratio_of_sums(10 * above, 10 * below)
    assert a is not None
    assert b is not None
    assert b.low == pytest.approx(a.low)
    assert b.high == pytest.approx(a.high)


def _requests(kind: str, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return accepted drafts and steps of requests: n = 5, 20 to 60 steps."""
    steps = rng.integers(20, 61, count)
    chance = {
        "beta": lambda: rng.beta(4, 4, count),
        "uniform": lambda: rng.random(count),
        "rare": lambda: np.where(rng.random(count) < 0.05, 1.0, rng.beta(2, 8, count)),
    }[kind]()
    of = np.repeat(np.arange(count), steps)
    accepted = np.cumprod(rng.random((len(of), 5)) < chance[of, None], axis=1).sum(axis=1)
    return np.bincount(of, accepted, count), steps.astype(float)


@pytest.mark.parametrize(
    ("kind", "requests", "least", "most"),
    [
        ("beta", 8, 0.89, 0.94),
        ("beta", 32, 0.92, 0.96),
        ("beta", 128, 0.93, 0.97),
        ("uniform", 16, 0.91, 0.95),
        ("rare", 16, 0.55, 0.70),  # as the docstring says: far too narrow
        ("rare", 128, 0.90, 0.95),
    ],
)
def test_how_often_the_interval_holds(kind: str, requests: int, least: float, most: float) -> None:
    rng = np.random.default_rng(1)
    above, below = _requests(kind, 100_000, rng)
    truth, hits = above.sum() / below.sum(), 0
    for _ in range(2000):
        chosen = rng.integers(0, len(above), requests)
        e = ratio_of_sums(above[chosen], below[chosen])
        assert e is not None
        hits += e.low is not None and e.high is not None and e.low <= truth <= e.high
    assert least <= hits / 2000 <= most
