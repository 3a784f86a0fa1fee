"""Which trials the model of a long study is fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial

from autotune.search.front import Direction


def informative(
    trials: Sequence[FrozenTrial], directions: Sequence[Direction], most: int
) -> list[FrozenTrial]:
    """Return the measured trials that a model of at most ``most`` trials is fitted to.

    Half of them are the best: those that the fewest others dominate, so the Pareto front first (C.
    M. Fonseca, P. J. Fleming, "Genetic algorithms for multiobjective optimization", ICGA 1993, rank
    by this number). Of equal ones the latest come first. The other half are the latest of the
    remaining trials. They show where the search has been, also without success, so that it does not
    return there.

    Args:
        trials: Complete trials.
        directions: Better direction of each objective.
        most: Largest number of trials, at least 1.

    Returns:
        The selected trials in the given order; all of them if there are no more than ``most``.
    """
    if len(trials) <= most:
        return list(trials)
    sign = [-1.0 if d == "maximize" else 1.0 for d in directions]
    costs = np.array([t.values for t in trials]) * sign  # less is better
    no_worse = np.ones((len(costs), len(costs)), dtype=bool)
    for own in costs.T:  # much faster than all() over so few objectives
        no_worse &= own[:, None] <= own[None, :]
    dominators = (no_worse & ~no_worse.T).sum(axis=0)
    latest_first = np.arange(len(trials))[::-1]
    ranked = latest_first[np.argsort(dominators[latest_first], kind="stable")]
    best = ranked[: (most + 1) // 2]
    rest = np.setdiff1d(latest_first, best)[::-1]
    return [trials[i] for i in sorted([*best, *rest[: most - len(best)]])]
