"""Effects of slots against mixed models computed in full."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.search.places import on_one_slot
from autotune.stats.slot_effects import Layout, SlotFit, effects


def study(
    rng: np.random.Generator, slots: int, tau: float, sigma: float, shared: int
) -> tuple[np.ndarray, Layout, np.ndarray]:
    """So many points that all slots launched, and as many that one did."""
    u = rng.normal(0, tau, slots)
    points = [k for k in range(shared) for _ in range(slots)] + list(range(shared, 2 * shared))
    at = list(range(slots)) * shared + [k % slots for k in range(shared)]
    beta = rng.normal(0, 0.2, 2 * shared)
    y = beta[points] + u[at] + rng.normal(0, sigma, len(points))
    return y, Layout.of(points, at), u


def test_the_fit_is_that_of_generalized_least_squares() -> None:
    rng = np.random.default_rng(1)
    points, at = rng.integers(0, 5, 30).tolist(), rng.integers(0, 3, 30).tolist()
    layout, y, ratio = Layout.of(points, at), rng.normal(0, 1, 30), 0.7
    x, z = layout.x, layout.z
    inverse = np.linalg.inv(np.eye(30) + ratio * z @ z.T)
    beta = np.linalg.solve(x.T @ inverse @ x, x.T @ inverse @ y)
    p = inverse - inverse @ x @ np.linalg.solve(x.T @ inverse @ x, x.T @ inverse)
    fit = SlotFit.at(y, layout, ratio)
    assert fit.weights @ y == pytest.approx(beta)
    assert fit.residuals == pytest.approx(p @ y)
    assert fit.free == pytest.approx(np.diag(p))
    _, _, logs = layout.projections(np.array([ratio]))
    whole = -np.linalg.slogdet(inverse)[1] + np.linalg.slogdet(x.T @ inverse @ x)[1]
    assert logs[0] == pytest.approx(whole)


def test_on_one_slot_they_are_squares_around_means() -> None:
    y = np.array([1.0, 2.0, 4.0, 9.0])
    fit = SlotFit.at(y, Layout.of([0, 0, 1, 2], ["a"] * 4), 0.5)
    assert fit.weights @ y == pytest.approx([1.5, 4.0, 9.0])
    assert fit.residuals == pytest.approx([-0.5, 0.5, 0.0, 0.0])
    assert fit.free.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("slots", [2, 4, 8])
@pytest.mark.parametrize("tau", [0.0, 0.05])
def test_effects_are_shrunk_and_as_uncertain_as_they_say(slots: int, tau: float) -> None:
    squares, stated, before = [], [], []
    for seed in range(200):
        rng = np.random.default_rng([seed, slots])
        y, layout, u = study(rng, slots, tau, 0.03, 2)
        found = effects(y, layout)
        off = found.mean - (u - u.mean())
        assert found.mean.sum() == pytest.approx(0.0, abs=1e-9)
        squares.append((off**2).mean())
        stated.append(found.variance.mean())
        before.append(((u - u.mean()) ** 2).mean())
    if tau:
        assert np.mean(squares) < 0.5 * np.mean(before)
        assert 0.7 < np.mean(stated) / np.mean(squares) < 1.5
    else:  # what noise alone says of equal slots is mostly left out
        assert np.sqrt(np.mean(squares)) < 0.014


def test_without_a_shared_point_nothing_is_taken_out_and_little_is_known() -> None:
    y = np.array([[0.1], [0.2], [0.5], [0.6]])
    costs, more = on_one_slot(y, ["p", "p", "q", "q"], ["a", "a", "b", "b"])
    assert costs == pytest.approx(y, abs=1e-9)
    assert (more > 0.01**2).all()
    costs, more = on_one_slot(y, ["p", "q", "r", "s"], ["a", "a", "b", "b"])
    assert costs == pytest.approx(y, abs=1e-9)
    assert (more > 0.02**2).all()
    # in one place nothing changes at all
    costs, more = on_one_slot(y, ["p", "p", "q", "q"], ["a"] * 4)
    assert costs is y
    assert not more.any()


def test_a_shared_point_tells_of_points_that_are_not() -> None:
    effect = 0.1
    points = ["base", "base", "base", "base", "x", "z"]
    at = ["a", "b", "a", "b", "a", "b"]
    y = np.array([[0.0], [effect], [0.002], [effect - 0.002], [0.5], [0.5 + effect]])
    costs, more = on_one_slot(y, points, at)
    assert costs[4, 0] == pytest.approx(costs[5, 0], abs=0.02)
    alone = on_one_slot(y[[0, 3, 4, 5]], ["base", "other", "x", "z"], ["a", "b", "a", "b"])[1]
    assert more.max() < alone.max() / 2
