"""What is odd in how many drafted tokens a server accepts."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.stats.acceptance_check import DraftCounts, Oddity, check_acceptance


def odd(launch: DraftCounts, other: DraftCounts | None = None) -> list[tuple[int, Oddity]]:
    return [(x.position, x.oddity) for x in check_acceptance(launch, other)]


def test_all_or_none_is_odd_with_enough_drafts() -> None:
    assert odd(DraftCounts(2000, (2000, 900))) == [(1, Oddity.ALL)]
    assert odd(DraftCounts(2000, (900, 0))) == [(2, Oddity.NONE)]
    assert odd(DraftCounts(200, (200, 0))) == []
    assert odd(DraftCounts(2000, (1990, 1000))) == []
    assert odd(DraftCounts(0, (0, 0))) == []


def test_a_late_position_that_is_hardly_reached_is_not_odd() -> None:
    assert odd(DraftCounts(5000, (1000, 100, 0, 0))) == []


def test_far_from_another_launch() -> None:
    search = DraftCounts.of_shares(2000, (0.7, 0.4))
    assert search.accepted == (1400, 800)
    assert odd(DraftCounts(2000, (1380, 790)), search) == []
    found = check_acceptance(DraftCounts(2000, (900, 500)), search)
    assert [(x.position, x.oddity, x.rate, x.expected) for x in found] == [
        (1, Oddity.FAR, 0.45, 0.7)
    ]
    assert odd(DraftCounts(50, (5, 1)), search) == []  # too few drafts to say


def test_shares_that_were_read_while_drafts_were_counted_are_no_fault() -> None:
    assert DraftCounts.of_shares(100, (0.5, 0.51, 0.2)).accepted == (50, 50, 20)
    assert DraftCounts.of_shares(100, (1.01,)).accepted == (100,)
    assert DraftCounts.of_shares(100, ()).accepted == ()


def test_equal_launches_are_hardly_ever_far() -> None:
    rng = np.random.default_rng(1)

    def launch() -> DraftCounts:
        """300 drafts of 20 requests, which have different rates."""
        steps = rng.binomial(15, rng.beta(6, 4, 20)).sum()
        return DraftCounts(300, (int(steps), int(rng.binomial(steps, 0.5))))

    assert sum(bool(odd(launch(), launch())) for _ in range(300)) <= 9


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="30 of 20 drafts accepted at position 2"):
        DraftCounts(100, (20, 30))
