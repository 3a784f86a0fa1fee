"""What is believed of points that were not launched, and what a launch of them is worth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import multivariate_normal

from autotune.search.gain import (
    Belief,
    gains,
    hypervolume,
    improvements,
    leading,
    optimism,
    potential,
    reference_point,
)
from autotune.search.model import expecting
from autotune.search.surrogate import Trend, _sum, fit, priors
from autotune.stats.kernel import matern


def ones(count: int) -> Trend:
    return Trend(np.ones(count), 0.0, 1.0)


def curve(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.4 * np.sin(3 * x[:, 0]) + 0.05 * x[:, 1])


def test_the_belief_is_near_the_truth_and_knows_how_near() -> None:
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(10):
        x, new = rng.random((16, 2)), rng.random((60, 2))
        model = fit(
            x, curve(x) + rng.normal(0, 0.02, 16), np.full(16, 0.02**2), [ones(16)], scale=0.3
        )
        mean, variance, _ = model.posterior(new, [np.ones(60)], 0)
        error = mean - curve(new)
        assert error.std() < curve(new).std() / 2
        scores.append(np.mean(error**2 / variance))
    assert 0.2 < np.mean(scores) < 3  # 1: errors are as large as they are believed to be


def test_a_noisy_launch_counts_less() -> None:
    x = np.array([[0.5], [0.5]])
    model = fit(x, np.array([0.0, 1.0]), np.array([1e-4, 1.0]), [ones(2)], scale=0.3)
    mean, _, _ = model.posterior(x[:1], [np.ones(1)], 0)
    assert mean[0] < 0.1


def test_a_right_prediction_carries_beyond_the_data_and_a_wrong_one_does_not() -> None:
    x = np.linspace(0, 0.5, 6)[:, None]
    far = np.array([[1.0]])
    truth = -2 * x[:, 0]
    for slope, right in ((-2.0, True), (2.0, False)):
        trend = Trend(slope * x[:, 0], 1.0, 0.4)
        model = fit(x, truth, np.full(6, 1e-4), [ones(6), trend], scale=0.1)
        mean, variance, _ = model.posterior(far, [np.ones(1), slope * far[:, 0]], 0)
        sd = float(np.sqrt(variance[0]))
        if right:
            assert mean[0] == pytest.approx(-2, abs=0.15)
        else:  # the data have the last word: it falls on, or is not sure
            assert mean[0] - 3 * sd < -1
            inside, _, _ = model.posterior(x, [np.ones(6), slope * x[:, 0]], 0)
            assert inside == pytest.approx(truth, abs=0.05)


def test_the_hyperparameters_are_the_most_probable_ones() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((12, 2))
    y, variances = curve(x) + rng.normal(0, 0.05, 12), np.full(12, 0.02**2)
    trends = [ones(12), Trend(x[:, 0], 1.0, 0.4)]
    model = fit(x, y, variances, trends, scale=0.3)
    medians, spreads = priors(2, 0.3)
    rest = y - x[:, 0]

    def posterior(z: np.ndarray) -> float:
        *lengths, s, between = np.exp(medians + spreads * z)
        r = np.sqrt((((x[:, None] - x[None]) / lengths) ** 2).sum(axis=2))
        k = s**2 * matern(r) + np.diag(variances + between**2)
        k += sum(t.sd**2 * np.outer(t.values, t.values) for t in trends)
        return float(multivariate_normal(np.zeros(12), k).logpdf(rest) - z @ z / 2)

    z = (np.log([*model.lengths, model.scale, model.between]) - medians) / spreads
    steps = np.vstack([np.eye(4), -np.eye(4)]) * 0.05
    assert all(posterior(z + step) < posterior(z) for step in steps)


def test_a_surrogate_needs_numbers() -> None:
    with pytest.raises(ValueError, match="finite"):
        fit(np.zeros((0, 1)), np.zeros(0), np.zeros(0), [], 1.0)
    with pytest.raises(ValueError, match="finite"):
        fit(np.zeros((1, 1)), np.array([np.nan]), np.zeros(1), [ones(1)], 1.0)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_the_hypervolume_is_what_random_points_say(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    costs = rng.random((5, 7, objectives)) * 1.2  # some beyond the reference
    reference = np.ones(objectives)
    probes = rng.random((20_000, objectives))
    below = (costs[:, :, None, :] <= probes).all(axis=-1).any(axis=1).mean(axis=-1)
    assert hypervolume(costs, reference) == pytest.approx(below, abs=0.02)


def test_hypervolume_counts_only_what_dominates() -> None:
    front = np.array([[0.0, 1.0], [1.0, 0.0]])
    more = np.array([[0.0, 1.0], [1.0, 0.0], [1.5, 1.5], [5.0, -9.0]])
    reference = np.array([2.0, 2.0])
    assert hypervolume(front, reference) == hypervolume(more, reference) == 3.0


def belief(launched: int, means: list[float], sds: list[float], noise: float) -> Belief:
    covariance = np.diag(np.array(sds) ** 2)
    return Belief(np.array(means), np.diag(covariance), covariance[:launched], noise)


def test_nothing_is_gained_where_everything_is_known() -> None:
    both = [belief(2, [0.0, 0.5, 1.0], [0.0, 0.0, 0.0], 0.01)] * 2
    assert gains(both, np.ones(2)) == pytest.approx(0, abs=1e-9)


def test_the_uncertain_point_that_may_be_best_is_worth_most() -> None:
    both = [belief(1, [0.0, 0.05, 0.05, 0.9], [0.01, 0.01, 0.3, 0.3], 1e-4)] * 2
    worth = gains(both, np.ones(2))
    assert worth.argmax() == 2
    assert worth[2] > 10 * worth[1]


def test_of_two_noisy_rivals_one_is_launched_again_before_a_hopeless_third() -> None:
    both = [belief(2, [0.0, 0.01, 0.9], [0.1, 0.1, 0.05], 1e-3)] * 2
    worth = gains(both, np.ones(2))
    assert min(worth[:2]) > 100 * worth[2]


def test_an_improvement_is_that_of_the_best_mean_in_units_of_the_objective() -> None:
    """One launched point at 0 and a new one at 0.1 ± 0.2: E max(0, -x) of its mean."""
    sd, noise = 0.2, 0.01
    mean, variance = np.array([0.0, 0.1]), np.array([0.0, sd**2])
    belief = Belief(mean, variance, np.zeros((1, 2)), noise)
    found = improvements([belief])
    spread = variance[1] / np.sqrt(variance[1] + noise)
    z = -0.1 / spread
    expected = spread * (z * ndtr(z) + np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))
    assert found[0] == pytest.approx(0, abs=1e-9)
    assert found[1] == pytest.approx(expected, rel=0.1)
    # of two objectives the one that gains counts, and not a hypervolume of both
    sure = Belief(np.array([0.0, 1.0]), np.zeros(2), np.zeros((1, 2)), noise)
    assert improvements([belief, sure])[1] == pytest.approx(expected, rel=0.2)
    assert optimism([belief])[1] == pytest.approx(2 * sd - 0.1)


def test_the_best_are_those_of_each_objective_and_of_their_mean() -> None:
    rate, latency = (
        Belief(np.array(m), np.zeros(4), np.zeros((4, 4)), 0.01)
        for m in ([0.0, 3.0, 1.0, -9.0], [3.0, 0.0, 1.0, -9.0])
    )
    assert leading([rate, latency], 3) == [0, 1, 2]
    assert leading([rate], 3) == [0]


def test_potential_is_the_best_case() -> None:
    both = [belief(1, [0.0, 0.5, 0.3], [0.0, 0.4, 0.1], 0.01)] * 2
    best = potential(both, np.ones(2))
    assert best[0] == 0
    assert best[1] == pytest.approx(1.3**2 - 1)  # 0.5 - 2 * 0.4 = -0.3
    assert best[2] == 0  # not even then


def test_the_reference_is_the_worst_but_never_the_best() -> None:
    assert reference_point(np.array([[0.0, 3.0], [1.0, 2.0]])) == pytest.approx([1.0, 3.0])
    assert (reference_point(np.array([[1.0, 1.0], [1.0, 1.0]])) > 1.0).all()


def fitted(launched: int = 3, others: int = 4) -> tuple[Belief, np.ndarray]:
    """A belief of a fitted process, and the covariance of all its points."""
    rng = np.random.default_rng(1)
    x = rng.random((launched + others, 2))
    data = x[:launched]
    model = fit(data, curve(data), np.full(launched, 1e-4), [ones(launched)], scale=0.3)
    mean, variance, whole = model.posterior(x, [np.ones(len(x))], len(x))
    noise = 1e-4 + model.between**2
    return Belief(mean, variance, whole[: launched + 2], noise), whole  # two of them pending


@pytest.mark.parametrize("pending", [[3], [3, 4], [0, 3], [1, 1], [4, 2, 4]])
def test_unknown_outcomes_leave_the_means_and_take_their_part_of_the_doubt(
    pending: list[int],
) -> None:
    """By hand: what launches tell adds up as precision, one over the noise each."""
    belief, whole = fitted()
    after = expecting(belief, np.array(pending))
    told = np.zeros(len(whole))
    np.add.at(told, pending, 1 / belief.noise)
    by_hand = np.linalg.inv(np.linalg.inv(whole) + np.diag(told))
    assert np.array_equal(after.mean, belief.mean)
    assert after.noise == belief.noise
    assert after.variance == pytest.approx(np.diag(by_hand), rel=1e-6, abs=1e-12)
    assert after.covariance == pytest.approx(by_hand[:5], rel=1e-6, abs=1e-9)
    assert (after.variance[pending] < belief.variance[pending]).all()
    one_by_one = belief
    for k in pending:
        one_by_one = expecting(one_by_one, np.array([k]))
    assert one_by_one.variance == pytest.approx(after.variance, rel=1e-6, abs=1e-12)


def test_nothing_pending_changes_nothing() -> None:
    belief, _ = fitted()
    after = expecting(belief, np.array([], dtype=np.int64))
    assert after.mean.tobytes() == belief.mean.tobytes()
    assert after.variance.tobytes() == belief.variance.tobytes()
    assert after.covariance.tobytes() == belief.covariance.tobytes()


@pytest.mark.parametrize("features", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 1), (1, 40), (60, 40)])
def test_sums_are_numpys_to_the_last_bit(features: int, rows: int, columns: int) -> None:
    a = np.random.default_rng(0).lognormal(0, 8, (rows, columns, features))
    assert np.array_equal(_sum(a), a.sum(axis=2))


def test_a_fit_is_kept_for_the_same_launches_only() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((12, 2))
    y, v = curve(x), np.full(12, 1e-4)
    first = fit(x, y, v, [ones(12)], scale=0.3)
    assert fit(x.copy(), y.copy(), v.copy(), [ones(12)], scale=0.3) is first
    assert fit(x, y, v, [ones(12)], scale=0.2) is not first
    assert fit(x, y, v, [Trend(np.ones(12), 0.1, 1.0)], scale=0.3) is not first
    assert fit(x, y + np.eye(12)[0] * 1e-12, v, [ones(12)], scale=0.3) is not first
