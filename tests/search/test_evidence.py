"""Whether anything matters at all, by the launches."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from autotune.search.evidence import weigh
from autotune.search.surrogate import Trend

X = np.column_stack([np.linspace(0, 1, 8), np.tile([0.0, 1.0], 4)])


def chance(costs: np.ndarray, within: float = 0.02, x: np.ndarray = X) -> float:
    ones = Trend(np.ones(len(costs)), 0.0, 1.0)
    variances = np.full_like(costs, within**2)
    return weigh(x, costs, variances, [([ones], 0.3)]).same


@pytest.mark.parametrize("sigma", [0.005, 0.03])
def test_launches_that_differ_as_launches_do_say_that_nothing_matters(sigma: float) -> None:
    rng = np.random.default_rng(0)
    found = [chance(rng.normal(0, sigma, (8, 2)), sigma) for _ in range(10)]
    assert min(found) > 0.5
    assert np.median(found) > 0.9


def test_a_peak_that_many_launches_see_leaves_no_chance() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(X, 2, axis=0)
    peak = np.exp(-(((x[:, 0] - 0.4) / 0.3) ** 2))[:, None] * [1.0, -0.7]
    assert max(chance(peak + rng.normal(0, 0.03, (16, 2)), x=x) for _ in range(10)) < 0.05


def test_a_deviation_that_both_objectives_share_counts_once() -> None:
    one = np.array([0.1, -0.1, 0.15, 0.0, -0.2, 0.1, 0.0, -0.05])[:, None]
    assert chance(np.hstack([one, -one])) == pytest.approx(chance(one), abs=1e-9)


def test_each_objective_has_the_surrogate_that_explains_it() -> None:
    rng = np.random.default_rng(0)
    ones, told = np.ones(8), np.tile([0.3, -0.3], 4)
    surrogates = [
        ([Trend(ones, 0.0, 1.0)], 0.3),
        ([Trend(ones, 0.0, 1.0), Trend(told, 1.0, 0.1)], 0.03),
    ]
    foretold = (told + rng.normal(0, 0.03, 8))[:, None]
    otherwise = (-told + rng.normal(0, 0.03, 8))[:, None]

    def of(costs: np.ndarray) -> float:
        return weigh(X, costs, np.full_like(costs, 0.02**2), surrogates).same

    alone = [of(foretold), of(otherwise)]
    both = of(np.hstack([foretold, otherwise]))
    assert both == pytest.approx(expit(np.mean(logit(alone))))
    assert max(alone) < 0.05


def test_the_level_of_the_costs_does_not_matter_and_many_launches_end_the_question() -> None:
    costs = np.random.default_rng(0).normal(0, 0.02, (8, 2))
    assert chance(costs + np.array([3.0, -7.0])) == pytest.approx(chance(costs))
    many = np.tile(costs, (9, 1))
    ones = Trend(np.ones(len(many)), 0.0, 1.0)
    x = np.tile(X, (9, 1))
    found = weigh(x, many, np.full_like(many, 1e-4), [([ones], 0.3)])
    assert found.same == 0.0
    assert not len(found.weights)


def test_surrogates_and_hyperparameters_weigh_as_they_foretell_the_launches() -> None:
    rng = np.random.default_rng(0)
    ones, told = np.ones(8), np.tile([0.3, -0.3], 4)
    surrogates = [
        ([Trend(ones, 0.0, 1.0)], 0.3),
        ([Trend(ones, 0.0, 1.0), Trend(told, 1.0, 0.1)], 0.03),
    ]
    steady = told + rng.normal(0, 0.01, 8)
    costs = np.column_stack([steady, -steady])
    found = weigh(X, costs, np.full_like(costs, 0.01**2), surrogates)
    assert found.weights.sum(axis=(1, 2)) == pytest.approx([1, 1])
    assert found.weights[0, 1].sum() > 0.9  # as foretold
    assert found.weights[1, 1].sum() < 0.1
    between = (found.weights[0] * found.thetas[:, :, -1]).sum()
    assert between < np.median(found.thetas[:, :, -1])
