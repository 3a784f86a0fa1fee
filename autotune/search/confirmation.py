"""The confirmation: which points are launched again, in which order, and what comes out.

**Plan.** The best of many single launches is the luckiest, so candidates are launched again, there
and back (A B C A A C B A): a machine that grows slower or faster hits all of them alike, and the
mean of the paired differences is the difference of the means. (Taking the rounds out of the scatter
as well was tried: at 4 to 8 launches the degrees of freedom that it costs widen the interval by 7
to 30 % on a steady machine, and it gains 10 % at most on a drifting one.) Eight launches get three
candidates: with 2, 3 and 4 the choice came within 2 % of the best in 95, 91 and 88 % of the replays
on one measured grid, and in 83, 91 and 95 % on another; each widens the speed-up's interval by a
fifth to a quarter. What is left over goes to the baseline, which every speed-up refers to (C. W.
Dunnett, "A multiple comparison procedure for comparing several treatments with a control", Journal
of the American Statistical Association 50, 1955: best is as many times more as the root of the
others' number).

**Verdict.** The best point is chosen by all launches of the candidates, the search's counting as
one more round; its numbers come from the confirmation only. Even so, the best of several
measurements is too good by a part of its own luck, so the choice is cross-fitted: each round is
left out in turn, the choice is made by the rest, and the round that took no part in it tells what
that choice gives. The mean difference to what the rounds say of the final choice is its optimism.
It is taken off, from each objective by the share that its luck has in the luck of what was chosen
by; where every round would have left the choice as it is, there is none. (R. J. Tibshirani,
R. Tibshirani, "A bias correction for the minimum error rate in cross-validation", Annals of Applied
Statistics 3, 2009; for two stages A. Cohen, H. B. Sackrowitz, "Two stage conditionally unbiased
estimators of the selected mean", Statistics & Probability Letters 8, 1989.) A parametric bootstrap
was tried and left half of the bias, shrinking towards the search's mean left all of it;
``benchmarks/selection_bias.py`` replays what is done.

The balanced choice maximises the sum over the objectives of the logarithm of the improvement: one
percent of either counts alike. For the usual two that is the largest tok/s ÷ p95. Intervals and
chances: :class:`autotune.stats.Scatter`, over all points that were launched several times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from autotune.search.front import Direction
from autotune.stats import Estimate, Scatter
from autotune.stats.measurement import Floats

# By trial number, the launches of its point in the order they ran: one value for each objective.
Launches = Mapping[int, Sequence[Sequence[float]]]

SURE = 0.95  # below this chance a choice and its rival are a tie


def plan(
    searched: Launches,
    directions: Sequence[Direction],
    baseline: int | None,
    held: int,
    *,
    most: int | None = None,
) -> list[int]:
    """Trial numbers of the ``held`` launches of the confirmation, in their order.

    Candidates are the baseline, the best by each objective, the balanced choice and then the next
    best by its rule.

    Args:
        searched: Every point of the search with its launches; a point is named by one trial.
        directions: What is better, for each objective.
        baseline: The trial that all are compared with; None: there is none with numbers.
        held: How many launches there are.
        most: Most candidates; None: 2 for 4 launches, 3 for 6 to 8, 4 for more, and for 8 where
            there are three objectives: the baseline and the best by each.

    Raises:
        ValueError: a value is not positive.
    """
    if not searched:
        return []
    numbers = np.array(list(searched))
    gains = np.array([_gains(x, directions).mean(axis=0) for x in searched.values()])
    order = [baseline] if baseline is not None and baseline in searched else []
    order += [int(n) for n in numbers[gains.argmax(axis=0)]]
    order += [int(n) for n in numbers[np.argsort(-gains[:, -1], kind="stable")]]
    if most is None:
        enough = max(math.ceil(held / 4) + 1, len(directions) + 1)
        most = max(2, min(held // 2, enough, 4))
    chosen = list(dict.fromkeys(order))[:most]
    if held < 3:
        return chosen[:held]
    there = list(islice(cycle(chosen), math.ceil(held / 2)))
    return [*there, *reversed(there[: held // 2])]


@dataclass(frozen=True)
class Confirmed:
    """One candidate by its launches of the confirmation.

    Attributes:
        launches: How many.
        values: Mean of each objective, with an interval that holds between launches.
        over_baseline: Each objective as a ratio to the baseline's; None: it was not confirmed.
    """

    launches: int
    values: tuple[Estimate, ...]
    over_baseline: tuple[Estimate, ...] | None


@dataclass(frozen=True)
class Choice:
    """The best candidate by one rule.

    Attributes:
        number: Its trial.
        values: What it gives, without the luck of having been chosen; by objective.
        over_baseline: The same as a ratio to the baseline; None: that was not confirmed.
        chances: For each other candidate, the next best first, the chance that the choice really is
            better by this rule; None: no point was launched twice, so nothing is known.
    """

    number: int
    values: tuple[Estimate, ...]
    over_baseline: tuple[Estimate, ...] | None
    chances: Mapping[int, float | None]

    @property
    def runner_up(self) -> int | None:
        """The next best candidate; None: there is no other."""
        return next(iter(self.chances), None)

    @property
    def chance(self) -> float | None:
        """That the choice is better than the runner-up."""
        return next(iter(self.chances.values()), None)

    @property
    def ties(self) -> tuple[int, ...]:
        """The candidates that may be as good, the next best first."""
        return tuple(k for k, chance in self.chances.items() if chance is None or chance < SURE)

    @property
    def tie(self) -> bool:
        """Whether any other candidate may be as good."""
        return bool(self.ties)


@dataclass(frozen=True)
class ConfirmationVerdict:
    """What the confirmation found.

    Attributes:
        candidates: By trial number.
        winners: The choice by each objective.
        balanced: The choice by all of them; see the module.
        scatters: How far launches of one point scatter, by objective.
    """

    candidates: Mapping[int, Confirmed]
    winners: tuple[Choice, ...]
    balanced: Choice
    scatters: tuple[Scatter, ...]


def verdict(
    confirmed: Launches, searched: Launches, directions: Sequence[Direction], baseline: int | None
) -> ConfirmationVerdict | None:
    """What launches of the confirmation say, with the search's as a part of the choice.

    Args:
        confirmed: The candidates, by the trial that was measured again. An unfinished confirmation
            will do; candidates without a launch are left out.
        searched: As in :func:`plan`; those with several launches add to what is known of scatter.
        directions: What is better, for each objective.
        baseline: As in :func:`plan`.

    Returns:
        None where no candidate has a launch.

    Raises:
        ValueError: a value is not positive.
        KeyError: a candidate is not in ``searched``.
    """
    gains = {k: _gains(x, directions) for k, x in confirmed.items() if x}
    if not gains:
        return None
    before = {k: _gains(x, directions) for k, x in searched.items()}
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
    """Estimates of candidates; ``gains`` as of :func:`_gains`."""

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
            scatter.around(_sign(d) * float(g), share)
            for scatter, d, g in zip(self.scatters, self.directions, gain, strict=False)
        )


def _sign(direction: Direction) -> int:
    return 1 if direction == "maximize" else -1


def _gains(launches: Sequence[Sequence[float]], directions: Sequence[Direction]) -> Floats:
    """Logarithms, more is better: a row a launch, a column an objective, their sum the last."""
    values = np.array(launches, dtype=np.float64)
    if not (values > 0).all():
        raise ValueError("only positive objective values can be compared as ratios")
    gains = np.log(values) * [_sign(d) for d in directions]
    return np.column_stack([gains, gains.sum(axis=1)])


def _scatter(groups: Sequence[Floats]) -> tuple[Floats, int]:
    """Pooled covariance between launches of one point, rules × rules, and its degrees of freedom.

    Args:
        groups: For each point the :func:`_gains` of its launches.
    """
    degrees = sum(len(x) - 1 for x in groups)
    rest = np.concatenate([x - x.mean(axis=0) for x in groups])
    return rest.T @ rest / max(degrees, 1), degrees


def _rounds(gains: Sequence[Floats]) -> Floats:
    """Candidates × rounds × rules: as many rounds as the fewest launches, in their order.

    More launches than that are spread over the rounds and averaged.
    """
    count = min(map(len, gains))
    return np.array([[part.mean(axis=0) for part in np.array_split(x, count)] for x in gains])
