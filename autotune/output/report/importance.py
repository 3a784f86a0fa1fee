"""Importance of the searched parameters for each objective.

PED-ANOVA (S. Watanabe, A. Bansal, F. Hutter, "PED-ANOVA: Efficiently quantifying hyperparameter
importance in arbitrary subspaces", IJCAI 2023), as Optuna implements it: how differently a
parameter is spread over the best trials and over all of them. Optuna's evaluator takes the lowest
values of a ``target`` for the best ones, also of an objective that is maximized; here it is given a
cost, for which that is right. fANOVA would need scikit-learn, and its forests say no more of few
trials.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autotune.results.views import cost
from autotune.storage.trials import Trial
from objectives import Objective

if TYPE_CHECKING:  # a report of few trials does without it
    from optuna.trial import FrozenTrial

# Optuna advises 5 trials at least among the best ones, which are a quarter of all.
LEAST_TRIALS = 20
_BEST = 0.25


def importances(
    trials: Sequence[Trial], objectives: Sequence[Objective]
) -> dict[str, Mapping[str, float]]:
    """Return the share of each parameter in each objective's importance, largest first.

    Args:
        trials: Complete trials, each of another point.
        objectives: The objectives with the study's directions, in the order of the trials' values.

    Returns:
        Nothing of fewer than ``LEAST_TRIALS`` trials, or where a single parameter was searched.
    """
    if len(trials) < LEAST_TRIALS:
        return {}
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)  # it names each study that it makes
    try:
        return _importances([_by_equal_steps(t) for t in trials], objectives)
    finally:
        logging.set_verbosity(before)


def _importances(
    trials: Sequence[FrozenTrial], objectives: Sequence[Objective]
) -> dict[str, Mapping[str, float]]:
    import optuna
    from optuna.exceptions import ExperimentalWarning
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    searched = {
        name for t in trials for name, space in t.distributions.items() if not space.single()
    }
    if len(searched) < 2:
        return {}
    found: dict[str, Mapping[str, float]] = {}
    for i, o in enumerate(objectives):
        study = optuna.create_study(direction="minimize")
        study.add_trials(
            [
                create_trial(
                    value=cost(o, t.values[i]), params=t.params, distributions=t.distributions
                )
                for t in trials
            ]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            evaluator = PedAnovaImportanceEvaluator(target_quantile=_BEST)
            found[o.name] = get_param_importances(
                study, evaluator=evaluator, params=sorted(searched)
            )
    return found


def _by_equal_steps(trial: Trial) -> FrozenTrial:
    """Return a trial with its powers of two as exponents, which are equally far apart."""
    from optuna.distributions import IntDistribution, json_to_distribution
    from optuna.trial import create_trial

    params = dict(trial.params)
    distributions = {k: json_to_distribution(kept) for k, kept in trial.distributions.items()}
    for name, space in list(distributions.items()):
        if isinstance(space, IntDistribution) and space.log:
            params[name] = trial.params[name].bit_length() - 1
            low, high = (x.bit_length() - 1 for x in (space.low, space.high))
            distributions[name] = IntDistribution(low, high)
    return create_trial(values=trial.values, params=params, distributions=distributions)
