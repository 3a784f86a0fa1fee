"""Answers of two servers to the same prompts: exact permutation, and what launches differ by."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from autotune.stats.matched_sets import (
    PRIOR_DEGREES,
    USUAL_LAUNCHES,
    LaunchEffect,
    count_p_value,
    estimate_launch_effect,
    largest_p_value,
    shift_p_value,
)


def enumerate_p(counts: np.ndarray, tested: int, rho: float = 1.0) -> float:
    """P(S ≥ observed) by all choices in all prompts, weighted by ρ to the events."""
    launches = counts.shape[1]
    choices = list(itertools.combinations(range(launches), tested))
    observed = counts[:, launches - tested :].sum()
    hit = total = 0.0
    for pick in itertools.product(choices, repeat=len(counts)):
        s = sum(int(row[list(c)].sum()) for row, c in zip(counts, pick, strict=True))
        weight = rho ** float(s)
        total += weight
        hit += weight * (s >= observed)
    return hit / total


@pytest.mark.parametrize("tested", [1, 2])
def test_a_count_s_p_value_is_that_of_all_permutations(tested: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        counts = rng.poisson(0.8, (4, 2 + tested))
        expected = enumerate_p(counts, tested)
        assert count_p_value(counts, 2, None) == pytest.approx(expected, rel=1e-12)


def test_beyond_all_others_in_each_of_k_prompts_is_a_third_each() -> None:
    largest = np.zeros((50, 3))
    largest[:4, 2] = 5.0
    assert largest_p_value(largest, 2, None) == pytest.approx(3.0**-4, rel=1e-12)
    assert largest_p_value(np.zeros((50, 3)), 2, None) == 1.0


def test_what_launches_differ_by_makes_a_p_value_larger() -> None:
    counts = np.zeros((60, 3), dtype=np.int64)
    counts[:30, :2], counts[:30, 2] = 1, 2
    even = count_p_value(counts, 2, None)
    some = [count_p_value(counts, 2, LaunchEffect(tau, 8)) for tau in (0.05, 0.2, 0.5)]
    assert even < some[0] < some[1] < some[2] < 1
    assert count_p_value(counts, 2, LaunchEffect(0.0, 8)) == even


def test_weights_of_one_ratio_are_the_enumerated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ρ the same: the mean over them is the tilted permutation itself."""
    monkeypatch.setattr(LaunchEffect, "ratios", lambda *_: np.array([1.0, *[1.7] * 11]))
    counts = np.array([[0, 1, 2], [1, 0, 1], [3, 0, 4], [0, 0, 1]])
    even, tilted = enumerate_p(counts, 1), enumerate_p(counts, 1, 1.7)
    # 0.5 of ρ ≤ 1, 0.2 between the first two, 2e-5 beyond the last
    expected = 0.5 * even + 0.2 * (even + tilted) / 2 + (0.3 - 2e-5) * tilted + 2e-5
    assert count_p_value(counts, 2, LaunchEffect()) == pytest.approx(expected, rel=1e-9)


def test_permutation_holds_its_level_for_ties_clusters_and_heavy_tails() -> None:
    rng = np.random.default_rng(2)
    kinds = {
        "rare": lambda: rng.poisson(0.02, (40, 3)),
        "clustered": lambda: rng.negative_binomial(0.1, 0.1, (40, 3)),
        "prompts differ": lambda: rng.poisson(rng.gamma(0.3, 3, (40, 1)), (40, 3)),
    }
    for kind, draw in kinds.items():
        hits = sum(count_p_value(draw(), 2, None) <= 0.05 for _ in range(150))
        assert hits <= 16, kind  # 7.5 are expected at most; 16 is beyond 3 standard deviations
    heavy = [largest_p_value(rng.pareto(0.5, (40, 3)), 2, None) for _ in range(150)]
    assert sum(p <= 0.05 for p in heavy) <= 16
    shifts = [shift_p_value(rng.standard_cauchy((40, 3)), 2) for _ in range(150)]
    assert sum(p <= 0.05 for p in shifts) <= 16


def test_a_shift_is_found_in_both_directions() -> None:
    values = np.random.default_rng(3).normal(0, 1, (60, 3))
    for shift in (-1.0, 1.0):
        moved = values.copy()
        moved[:, 2] += shift
        assert shift_p_value(moved, 2) < 1e-4
    assert shift_p_value(np.zeros((60, 3)), 2) == 1.0


def test_launches_that_differ_are_seen_in_part() -> None:
    counts = np.tile([[1, 3]], (100, 1))
    effect = estimate_launch_effect(counts)
    between = math.log(3) ** 2 / 2 - (2 * 100) / 200**2
    pooled = (PRIOR_DEGREES * USUAL_LAUNCHES**2 + between) / (PRIOR_DEGREES + 1)
    assert effect.degrees == PRIOR_DEGREES + 1
    assert effect.tau == pytest.approx(math.sqrt(pooled))


@pytest.mark.parametrize("counts", [np.zeros((9, 2), dtype=np.int64), np.ones((99, 1), dtype=int)])
def test_without_events_or_a_second_launch_it_is_assumed(counts: np.ndarray) -> None:
    assert estimate_launch_effect(counts) == LaunchEffect(USUAL_LAUNCHES, PRIOR_DEGREES)


def test_many_events_are_counted_coarsely_and_found() -> None:
    counts = np.random.default_rng(4).poisson(100, (200, 3))
    assert count_p_value(counts, 2, None) > 0.01
    counts[:, 2] *= 2
    assert count_p_value(counts, 2, None) < 1e-9
