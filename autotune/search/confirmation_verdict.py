"""The verdict of the confirmation: the choices, their values and how sure they are.

=========  ========================================================================================
term       meaning
=========  ========================================================================================
gain       logarithm of an objective with the sign that makes more better; the last one is their sum
rule       what is chosen by: one objective's gain, or the sum
round      one launch of each candidate, in order; the search's launches count as one more round
optimism   estimate of a choice's selection bias
=========  ========================================================================================

The best point is chosen by all launches of the candidates, including the search's; its
numbers come from the confirmation only. Selection bias (the winner's curse) remains, because the
best of several measurements is better than its true value. Therefore the choice is cross-fitted:
each round is left out in turn, the choice is made by the others, and the left-out round measures
that choice. The mean difference to the rounds' values of the final choice is its optimism. It is
subtracted from each objective in proportion to the objective's covariance with the rule. If every
round would have left the choice unchanged, it is 0. (R. J. Tibshirani, R. Tibshirani, "A bias
correction for the minimum error rate in cross-validation", Annals of Applied Statistics 3, 2009;
for two stages A. Cohen, H. B. Sackrowitz, "Two stage conditionally unbiased estimators of the
selected mean", Statistics & Probability Letters 8, 1989.) A parametric bootstrap left half of the
bias, and shrinking towards the search's mean left all of it. ``benchmarks/selection_bias.py``
replays the method that is used.

The balanced choice maximizes the sum over the objectives of the logarithm of the improvement, so
one percent of each objective has the same weight. For the usual two it has the largest tok/s ÷ p95.
Intervals and probabilities are those of :class:`autotune.stats.Scatter`, over all points that were
launched several times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.search.confirmation import Launches, gains_of, sign_of
from autotune.search.front import Direction
from autotune.stats import Estimate, Scatter
from autotune.stats.measurement import Floats

SURE = 0.95  # probability below which a choice and its rival are a tie


@dataclass(frozen=True)
class Confirmed:
    """One candidate by its launches in the confirmation.

    Attributes:
        launches: Number of launches.
        values: Mean of each objective, with an interval that holds between launches.
        over_baseline: Ratio of each objective to the baseline's; None: the baseline was not
            confirmed.
    """

    launches: int
    values: tuple[Estimate, ...]
    over_baseline: tuple[Estimate, ...] | None


@dataclass(frozen=True)
class Choice:
    """The best candidate by one rule.

    Attributes:
        number: Number of its trial.
        values: Estimate of each objective without selection bias.
        over_baseline: Ratio of each objective to the baseline's, without selection bias; None: the
            baseline was not confirmed.
        chances: Probability that the choice is truly better by this rule than each other candidate,
            the next best first; None: unknown, because no point was launched twice.
    """

    number: int
    values: tuple[Estimate, ...]
    over_baseline: tuple[Estimate, ...] | None
    chances: Mapping[int, float | None]

    @property
    def runner_up(self) -> int | None:
        """Trial number of the next best candidate; None: there is no other."""
        return next(iter(self.chances), None)

    @property
    def chance(self) -> float | None:
        """Probability that the choice is better than the runner-up; None: unknown."""
        return next(iter(self.chances.values()), None)

    @property
    def ties(self) -> tuple[int, ...]:
        """Trial numbers of the candidates that may be as good, the next best first."""
        return tuple(k for k, chance in self.chances.items() if chance is None or chance < SURE)

    @property
    def tie(self) -> bool:
        """Whether another candidate may be as good."""
        return bool(self.ties)


@dataclass(frozen=True)
class ConfirmationVerdict:
    """Result of the confirmation.

    Attributes:
        candidates: Confirmed candidates by trial number.
        winners: Choice by each objective.
        balanced: Choice by all objectives; see the module.
        scatters: Scatter of launches of one point, for each objective.
    """

    candidates: Mapping[int, Confirmed]
    winners: tuple[Choice, ...]
    balanced: Choice
    scatters: tuple[Scatter, ...]


def verdict(
    confirmed: Launches, searched: Launches, directions: Sequence[Direction], baseline: int | None
) -> ConfirmationVerdict | None:
    """Return the result of a confirmation, whose choices also use the search's launches.

    Args:
        confirmed: Launches of the candidates, by the trial that was measured again. The
            confirmation may be unfinished; candidates without a launch are left out.
        searched: As in :func:`autotune.search.confirmation.plan`; points with several launches add
            to the known scatter.
        directions: Better direction of each objective.
        baseline: As in :func:`autotune.search.confirmation.plan`.

    Returns:
        The verdict; None: no candidate has a launch.

    Raises:
        ValueError: a value is not positive.
        KeyError: a candidate is not in ``searched``.
    """
    gains = {k: gains_of(x, directions) for k, x in confirmed.items() if x}
    if not gains:
        return None
    before = {k: gains_of(x, directions) for k, x in searched.items()}
    covariance, degrees = _scatter([*gains.values(), *before.values()])
    scatters = tuple(Scatter(math.sqrt(v), degrees) for v in np.diag(covariance))
    numbers = list(gains)
    rounds = _rounds(list(gains.values()))
    search = np.array([before[k].mean(axis=0) for k in numbers])
    points = _Points(gains, baseline if baseline in gains else None, directions, scatters)

    def choice(rule: int) -> Choice:
        by = rounds[:, :, rule]
        total = by.sum(axis=1) + search[:, rule]
        ranked = np.argsort(-total, kind="stable")
        best, launches = ranked[0], by.shape[1] + 1
        left_out = [by[(total - now).argmax(), r] for r, now in enumerate(by.T)]
        variance = covariance[rule, rule]
        share = covariance[rule] / variance if variance > 0 else np.zeros(len(covariance))
        optimism = (by[best].mean() - np.mean(left_out)) * share
        gaps = (total[best] - total) / launches
        return Choice(
            numbers[best],
            points.values(numbers[best], optimism),
            points.over_baseline(numbers[best], optimism),
            {numbers[i]: scatters[rule].chance(float(gaps[i]), 2 / launches) for i in ranked[1:]},
        )

    none = np.zeros(len(directions) + 1)
    return ConfirmationVerdict(
        {
            k: Confirmed(len(x), points.values(k, none), points.over_baseline(k, none))
            for k, x in gains.items()
        },
        tuple(choice(rule) for rule in range(len(directions))),
        choice(len(directions)),
        scatters[:-1],
    )


@dataclass(frozen=True)
class _Points:
    """Estimates of candidates by their ``gains``; see :func:`gains_of`."""

    gains: Mapping[int, Floats]
    baseline: int | None
    directions: Sequence[Direction]
    scatters: Sequence[Scatter]

    def values(self, number: int, optimism: Floats) -> tuple[Estimate, ...]:
        x = self.gains[number]
        return self._estimates(x.mean(axis=0) - optimism, 1 / len(x))

    def over_baseline(self, number: int, optimism: Floats) -> tuple[Estimate, ...] | None:
        if self.baseline is None:
            return None
        if number == self.baseline:
            return tuple(Estimate(1.0, 1.0, 1.0) for _ in self.directions)
        x, base = self.gains[number], self.gains[self.baseline]
        gain = x.mean(axis=0) - base.mean(axis=0) - optimism
        return self._estimates(gain, 1 / len(x) + 1 / len(base))

    def _estimates(self, gain: Floats, share: float) -> tuple[Estimate, ...]:
        return tuple(
            scatter.around(sign_of(d) * float(g), share)
            for scatter, d, g in zip(self.scatters, self.directions, gain, strict=False)
        )


def _scatter(groups: Sequence[Floats]) -> tuple[Floats, int]:
    """Return the pooled covariance between launches of one point, and its degrees of freedom.

    Args:
        groups: Gains of the launches of each point.

    Returns:
        The covariance, of shape (rules, rules), and the degrees.
    """
    degrees = sum(len(x) - 1 for x in groups)
    rest = np.concatenate([x - x.mean(axis=0) for x in groups])
    return rest.T @ rest / max(degrees, 1), degrees


def _rounds(gains: Sequence[Floats]) -> Floats:
    """Return the gains of shape (candidates, rounds, rules).

    There are as many rounds as the candidate with the fewest launches has. Further launches of a
    candidate are spread over the rounds, in their order, and averaged.
    """
    count = min(map(len, gains))
    return np.array([[part.mean(axis=0) for part in np.array_split(x, count)] for x in gains])
