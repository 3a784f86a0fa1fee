"""When a trial has been measured enough.

=======  ==========================================================================================
symbol   meaning
=======  ==========================================================================================
g        logarithm of trial / rival for one objective, with the sign that makes larger worse
l        distance of the logarithms from the trial to its better bound, by the objective's interval
u        distance of the logarithms from the rival to its worse bound, by the objective's interval
σ        standard deviation of the logarithm between launches of one point
r        number of the rival's launches, whose mean it is
t_c      quantile of Student's t for the difference between launches
α        probability that a trial is called dominated although no rival dominates it
=======  ==========================================================================================

A measurement is looked at a few times, at sizes that grow geometrically (:func:`look_sizes`). It
ends when one of two things is known.

**What a look sees.** The size of a look counts requests in the order of sending. The look takes
place when all of these have ended (:class:`Looks`). The requests that have ended so far are another
set, which has the short ones and not yet the long ones. autotune 0.1 looked at that set; at a
concurrency of 64, tok/s was 8 to 78 % too small at the first look. Before a measurement ends,
sending continues until all requests that were under way at the look have ended, and the larger set
is judged again. No look comes before four requests for each concurrent one (:func:`first_look`).

**Precision.** Every objective's interval is narrow against its value: :func:`precise`. Stopping
because an interval became narrow prefers intervals that are narrow by chance. The fixed-width
procedure of Y. S. Chow and H. Robbins ("On the asymptotic theory of fixed-width sequential
confidence intervals for the mean", Annals of Mathematical Statistics 36, 1965) keeps its coverage
in the limit only. Therefore looks are few, and the 95 % intervals of a measurement that may end so
are computed at :data:`STOPPING_CONFIDENCE`. What slows all concurrent requests at the same time,
such as a stall, shows once a turn at any concurrency; a turn is as many requests as are concurrent.
Therefore narrowness counts from eight turns on (:func:`narrow_enough`), as there are eight batches.

**Domination.** A finished rival is certainly better in all objectives (:class:`Domination`) if for
each of them

    g > sqrt(l² + u² + (t_c σ)² (1 + 1/r)).

That is the method of variance estimates recovery (G. Y. Zou, A. Donner, "Construction of confidence
limits about effect measures: a general approach", Statistics in Medicine 27, 2008). The condition
that the intervals do not overlap would need a gap up to √3 times as large.

- All objectives must be worse. This is an intersection-union test, which needs no smaller level for
  several objectives (R. L. Berger, "Multiparameter hypothesis testing and acceptance sampling",
  Technometrics 24, 1982).
- The union bound spends one half of α on each of two errors. The trial's own requests are looked at
  several times, so l has the one-sided level α/2 ÷ looks (K. K. G. Lan, D. L. DeMets, "Discrete
  sequential boundaries for clinical trials", Biometrika 70, 1983). The last look spends nothing,
  because nothing is left to save. A rival is the same at every look, as is the launch-to-launch
  variation of both. But the rival is selected as the best of all finished trials, so u and t_c have
  the level α/2 ÷ finished trials.
- σ is 10 % (:data:`USUAL_BETWEEN`; 5 to 10 % are usual, vLLM issue #53436) until launches of this
  study show it (:func:`expected_between`). Launches have outliers, so t_c is a quantile of
  Student's t with :data:`LAUNCH_DEGREES` degrees of freedom.

Where a p95 is an objective, early ends need rivals of about a hundred requests. The p95 of fewer
has no upper bound at these levels, so nothing is certain (:func:`rivals_need`).

``benchmarks/coverage.py`` shows how often either condition ends a measurement wrongly, and how much
it saves; the results are in ``docs/statistics.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Literal, TypeVar

import numpy as np

from autotune.stats import quantiles
from autotune.stats.intervals import Interval

# Confidence of the intervals that may end a measurement; after such an end they hold 95 %.
STOPPING_CONFIDENCE = 0.97
# Standard deviation of the logarithm between launches that is assumed until a study shows its own.
USUAL_BETWEEN = 0.10
# Degrees of freedom that this assumption counts for, against those of a study's own launches.
_USUAL_DEGREES = 4
# Smallest standard deviation between launches that is assumed: few launches estimate it badly.
LEAST_BETWEEN = 0.03
# Degrees of Student's t for the difference between launches, which has more outliers than a normal.
LAUNCH_DEGREES = 10
TURNS = 4  # requests for each concurrent one before the first look
PRECISE_TURNS = 8  # … and before narrow intervals are believed
_GROWTH = 1.3  # factor between the sizes of successive looks
_PERCENTILE = 0.95  # among usual objectives, the one whose bounds need most requests


class Stop(StrEnum):
    """Reason why the measuring of a trial ended; shown to the user."""

    ALL = "every request was sent"
    PRECISE = "the intervals are narrow enough"
    DOMINATED = "another trial is better in everything"


def look_sizes(minimum: int, maximum: int, growth: float = _GROWTH) -> list[int]:
    """Return the numbers of requests after which to look, ascending; the last is the maximum.

    >>> look_sizes(32, 128)
    [32, 40, 51, 64, 81, 102, 128]
    """
    if minimum >= maximum:
        return [maximum]
    steps = math.ceil(math.log(maximum / minimum) / math.log(growth))
    return sorted({round(float(x)) for x in np.geomspace(minimum, maximum, steps + 1)})


def first_look(minimum: int, concurrency: int | None) -> int:
    """Return the fewest requests of a look.

    Args:
        minimum: ``min_prompts`` of the study.
        concurrency: Concurrency of a closed loop, of which it is at least four times; None: an
            open loop.
    """
    return max(minimum, TURNS * (concurrency or 1))


def expected_between(sigma: float, degrees: int) -> float:
    """Return the standard deviation of the logarithm between launches to assume.

    The variances of :data:`USUAL_BETWEEN` and of the study's own launches are averaged, weighted by
    their degrees of freedom (the update of a scaled inverse chi-squared prior; A. Gelman et al.,
    "Bayesian Data Analysis", 3rd ed. 2013, 2.6). The result is at least :data:`LEAST_BETWEEN`.

    Args:
        sigma: Standard deviation of the logarithm over the study's launches of equal points.
        degrees: Degrees of freedom of ``sigma``; 0: no point was launched twice.
    """
    pooled = _USUAL_DEGREES * USUAL_BETWEEN**2 + degrees * sigma**2
    return max(LEAST_BETWEEN, math.sqrt(pooled / (_USUAL_DEGREES + degrees)))


def rivals_need(finished: int, alpha: float) -> int:
    """Return how many requests a rival needs so that its p95 has an upper bound to compare with.

    Args:
        finished: Number of finished trials.
        alpha: As in :class:`Domination`; at 0 nothing is compared, and 0 is returned.

    >>> rivals_need(1, 0.05), rivals_need(8, 0.05), rivals_need(32, 0.05)
    (72, 113, 140)
    """
    if not alpha:
        return 0
    return math.ceil(math.log(alpha / 2 / finished) / math.log(_PERCENTILE))


def bound_needs(percent: int, confidence: float = 0.95) -> int:
    """Return how many requests the upper bound of a percentile's interval needs.

    >>> bound_needs(95), bound_needs(99)
    (72, 368)
    """
    return math.floor(math.log((1 - confidence) / 2) / math.log(percent / 100)) + 1


def precise_needs() -> int:
    """Return how many requests an interval of p95 needs at the level that ends a measurement.

    >>> precise_needs()
    82
    """
    return bound_needs(round(100 * _PERCENTILE), STOPPING_CONFIDENCE)


def narrow_enough(size: int, concurrency: int | None) -> bool:
    """Return whether narrow intervals over ``size`` requests may end a measurement."""
    return size >= PRECISE_TURNS * (concurrency or 1)


V = TypeVar("V")


class Looks(Generic[V]):
    """Decide when to look at a running measurement, and how much of it is seen.

    Args:
        sizes: Sizes of the looks, ascending; the last is the number of all requests, and ``ask`` is
            not called there.
        ask: Called with a number of requests; those that were sent first have all ended. Returns
            the reason to end the measurement, or None.

    Attributes:
        size: Number of requests that count, when the measurement is over.
        verdict: Reason that ended the measurement; None: its last request, or it is not over.
    """

    def __init__(self, sizes: Sequence[int], ask: Callable[[int], V | None]) -> None:
        self._sizes = list(sizes[:-1])
        self._ask = ask
        self._most = sizes[-1]
        self._ended = bytearray(self._most)
        self._complete = 0
        self._sent = 0
        self._again: int | None = None
        self.size = self._most
        self.verdict: V | None = None

    @property
    def complete(self) -> int:
        """Number of requests that have ended, up to the first one that has not."""
        return self._complete

    @property
    def over(self) -> bool:
        """Whether the measurement has ended."""
        return self.verdict is not None or self._complete == self._most

    def sent(self) -> None:
        """Note that the next request was sent."""
        self._sent += 1

    def ended(self, index: int) -> None:
        """Note that a request has ended, and look if a look is due.

        Args:
            index: Position of the request in the order of sending, from 0.
        """
        if self.over:
            return
        self._ended[index] = 1
        while self._complete < self._most and self._ended[self._complete]:
            self._complete += 1
        if self._again is not None:
            self._look_again()
        elif self._sizes and self._sizes[0] <= self._complete:
            self._look()

    def _look(self) -> None:
        """Take the first look at a size; a verdict is confirmed after those under way."""
        reached = [x for x in self._sizes if x <= self._complete]
        self._sizes = self._sizes[len(reached) :]
        if (found := self._ask(reached[-1])) is None:
            return
        if self._sent <= reached[-1]:  # nothing is under way
            self.verdict, self.size = found, reached[-1]
        elif self._sent < self._most:
            self._again = self._sent
        else:
            self._sizes = []  # all requests were sent: wait for them, and count them

    def _look_again(self) -> None:
        size = self._again
        if size is None or self._complete < size:
            return
        self._again = None
        self._sizes = [x for x in self._sizes if x > size]
        found = self._ask(size)
        if found is not None:
            self.verdict, self.size = found, size


def relative_half_width(value: float, interval: Interval) -> float:
    """Return half of an interval's width as a share of the value; infinite without a bound."""
    if interval.low is None or interval.high is None:
        return math.inf
    return (interval.high - interval.low) / 2 / abs(value)


def precise(estimates: Iterable[tuple[float, Interval]], precision: float) -> bool:
    """Return whether every value's interval is narrower than ± ``precision`` of the value."""
    return all(relative_half_width(value, i) < precision for value, i in estimates)


@dataclass(frozen=True)
class Bounded:
    """One objective of one launch.

    Attributes:
        value: Positive value, in the objective's unit.
        interval: Returns the two-sided interval within the launch at a confidence.
        launches: Number of launches whose mean the value is.
    """

    value: float
    interval: Callable[[float], Interval]
    launches: int = 1


def averaged(launches: Sequence[Bounded]) -> Bounded:
    """Return the geometric mean of one objective over a point's launches, with its interval.

    The distances of the bounds, as logarithms, add up in quadrature. The mean lacks a bound that
    one of its launches lacks.
    """
    if len(launches) == 1:
        return launches[0]
    value = math.exp(sum(math.log(b.value) for b in launches) / len(launches))

    def interval(confidence: float) -> Interval:
        found = [(b.value, b.interval(confidence)) for b in launches]

        def bound(pick: Callable[[Interval], float | None], sign: int) -> float | None:
            logs = []
            for center, i in found:
                at = pick(i)
                if at is None or at <= 0:
                    return None
                logs.append(math.log(at / center))
            return value * math.exp(sign * math.hypot(*logs) / len(logs))

        return Interval(bound(lambda i: i.low, -1), bound(lambda i: i.high, 1), confidence)

    return Bounded(value, interval, len(launches))


@dataclass(frozen=True)
class Domination:
    """The test whether a running trial is certainly worse than another one; see the module.

    Attributes:
        looks: Largest number of looks, including the last one after all requests.
        directions: Better direction of each objective.
        sigma: Standard deviation of the logarithm between launches, for each objective.
        alpha: Probability that a trial is ever called dominated although no rival dominates it.
        finished: Number of trials of which the rivals are the best; None: the rivals are all.
    """

    looks: int
    directions: Sequence[Literal["maximize", "minimize"]]
    sigma: Sequence[float]
    alpha: float = 0.05
    finished: int | None = None

    def by(self, trial: Sequence[Bounded], rivals: Sequence[Sequence[Bounded]]) -> int | None:
        """Return the index of the first rival that is better in all objectives, at one look.

        Args:
            trial: The running trial, one value for each objective.
            rivals: Finished trials in the same form; the same number at every look.

        Returns:
            The index; None: no rival certainly is.
        """
        if not rivals or self.looks < 2 or not self.alpha:
            return None
        of_trial = self.alpha / 2 / (self.looks - 1)
        of_rival = self._of_rival(len(rivals))
        return next(
            (i for i, x in enumerate(rivals) if self._worse(trial, x, of_trial, of_rival)), None
        )

    def prepare(self, rivals: Sequence[Sequence[Bounded]]) -> None:
        """Compute the rivals' intervals that :meth:`by` needs, so that no look waits for them."""
        if rivals and self.alpha:
            confidence = 1 - 2 * self._of_rival(len(rivals))
            for bounded in rivals:
                for b in bounded:
                    b.interval(confidence)

    def _of_rival(self, rivals: int) -> float:
        return self.alpha / 2 / max(rivals, self.finished or 0)

    def _worse(
        self, trial: Sequence[Bounded], rival: Sequence[Bounded], of_trial: float, of_rival: float
    ) -> bool:
        t_c = quantiles.student_t(LAUNCH_DEGREES, 1 - of_rival)
        return all(
            _certainly_worse(
                a,
                b,
                direction,
                t_c * sigma * math.sqrt(1 / a.launches + 1 / b.launches),
                of_trial,
                of_rival,
            )
            for a, b, direction, sigma in zip(
                trial, rival, self.directions, self.sigma, strict=True
            )
        )


def _certainly_worse(
    trial: Bounded,
    rival: Bounded,
    direction: str,
    launch_half: float,
    of_trial: float,
    of_rival: float,
) -> bool:
    """Return whether one objective of the trial is certainly worse, at one-sided levels."""
    sign = 1 if direction == "minimize" else -1
    gap = sign * math.log(trial.value / rival.value)
    if gap <= launch_half:
        return False
    a, b = trial.interval(1 - 2 * of_trial), rival.interval(1 - 2 * of_rival)
    better, worse = (a.low, b.high) if direction == "minimize" else (a.high, b.low)
    if better is None or worse is None or better <= 0 or worse <= 0:
        return False
    trial_half = math.log(trial.value / better)
    rival_half = math.log(worse / rival.value)
    return gap > math.hypot(trial_half, rival_half, launch_half)
