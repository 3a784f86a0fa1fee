"""When a trial has been measured enough.

A measurement is looked at a few times, at sizes that grow geometrically (:func:`look_sizes`), and
ends when one of two things is known.

**What a look sees.** Its size counts requests in the order of sending, and it takes place when all
of these have ended (:class:`Looks`). The requests that have ended so far are another set: it has
the short ones and not yet the long ones. autotune 0.1 looked at that set, and at 64 requests at a
time tok/s came out 8 to 78 % too small at the first look. Before a measurement ends, sending goes
on until all that were under way at the look have ended, and the question is asked again of the
larger set. No look comes before four requests a place (:func:`first_look`).

**Precision.** Every objective's interval is narrow against its value: :func:`precise`. Stopping
because an interval became narrow prefers intervals that are narrow by luck; the fixed-width
procedure of Y. S. Chow and H. Robbins ("On the asymptotic theory of fixed-width sequential
confidence intervals for the mean", Annals of Mathematical Statistics 36, 1965) keeps its coverage
in the limit only. Looks are few for that reason, and the 95 % intervals of a measurement that may
end so are computed at :data:`STOPPING_CONFIDENCE`. What strikes all places at the same time, such
as a stall, shows once a turn however many places there are, so narrowness counts from eight turns
on (:func:`narrow_enough`): the batches are eight, too.

**Domination.** A finished rival is certainly better in all objectives: :class:`Domination`. For
each objective the logarithms are compared, g = log(trial / rival) with "larger is worse":

    g > sqrt(l² + u² + (t_c σ)² (1 + 1/r))

with l from the trial to its better bound, u from the rival to its worse bound, each by its
objective's own interval, σ the standard deviation between launches and r the rival's launches,
whose mean it is. That is the method of variance estimates recovery (G. Y. Zou, A. Donner,
"Construction of confidence limits about effect measures: a general approach", Statistics in
Medicine 27, 2008); to ask that intervals do not overlap would need a gap up to √3 times as large.

- All objectives must be worse: an intersection-union test, which needs no smaller level for several
  objectives (R. L. Berger, "Multiparameter hypothesis testing and acceptance sampling",
  Technometrics 24, 1982).
- The error α is spent by the union bound, each half on what can go wrong by itself. The trial's own
  requests are looked at several times: l at one-sided level α/2 ÷ looks (K. K. G. Lan,
  D. L. DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70, 1983; the last
  look spends nothing, as nothing is left to save). A rival is the same at every look, and so is the
  luck of both launches, but the rival is the luckiest of all trials that have finished: u and t_c
  at α/2 ÷ finished trials.
- σ is 10 % (:data:`USUAL_BETWEEN`; 5 to 10 % are usual, vLLM issue #53436) until launches of this
  study tell (:func:`expected_between`), and launches have outliers: t_c is Student's t with
  :data:`LAUNCH_DEGREES` degrees of freedom.

Early ends need rivals of some hundred requests where a p95 is an objective: at such levels the p95
of fewer has no upper bound, and nothing is certain (:func:`rivals_need`).

How often either ends a measurement wrongly, and how much it saves: ``benchmarks/coverage.py``, with
the results in ``docs/statistics.md``.
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

# Of the intervals that end a measurement, so that they hold 95 % when they do.
STOPPING_CONFIDENCE = 0.97
# Standard deviation of the logarithm between launches that is assumed until a study tells.
USUAL_BETWEEN = 0.10
# So many degrees of freedom that assumption counts for, against those of a study's own launches.
_USUAL_DEGREES = 4
# No launches are so alike that less is reckoned with: few tell it badly.
LEAST_BETWEEN = 0.03
# Of Student's t for the luck of a launch, whose outliers are more than a normal distribution's.
LAUNCH_DEGREES = 10
TURNS = 4  # requests of each place before the first look
PRECISE_TURNS = 8  # … and before narrow intervals are believed
_GROWTH = 1.3  # of the sizes between looks
_PERCENTILE = 0.95  # the one whose bounds need most requests, of those that are usual objectives


class Stop(StrEnum):
    """Why the measuring of a trial ended; shown to the user."""

    ALL = "every request was sent"
    PRECISE = "the intervals are narrow enough"
    DOMINATED = "another trial is better in everything"


def look_sizes(minimum: int, maximum: int, growth: float = _GROWTH) -> list[int]:
    """Numbers of requests after which to look, the last one the maximum.

    >>> look_sizes(32, 128)
    [32, 40, 51, 64, 81, 102, 128]
    """
    if minimum >= maximum:
        return [maximum]
    steps = math.ceil(math.log(maximum / minimum) / math.log(growth))
    return sorted({round(float(x)) for x in np.geomspace(minimum, maximum, steps + 1)})


def first_look(minimum: int, places: int | None) -> int:
    """Return the fewest requests of a look: a study's ``min_prompts``, and four of each place."""
    return max(minimum, TURNS * (places or 1))


def expected_between(sigma: float, degrees: int) -> float:
    """Return the standard deviation between launches to reckon with.

    The usual one and the study's own, as variances weighted by degrees of freedom (the mean of a
    scaled inverse chi-squared prior's update; A. Gelman et al., "Bayesian Data Analysis", 3rd ed.
    2013, 2.6), and no less than :data:`LEAST_BETWEEN`.

    Args:
        sigma: What the study's launches of equal points tell, as a logarithm's.
        degrees: Of freedom, that they tell it with; 0: no point was launched twice.
    """
    pooled = _USUAL_DEGREES * USUAL_BETWEEN**2 + degrees * sigma**2
    return max(LEAST_BETWEEN, math.sqrt(pooled / (_USUAL_DEGREES + degrees)))


def rivals_need(finished: int, alpha: float) -> int:
    """Return how many requests a rival needs so that its p95 has an upper bound to compare with.

    Args:
        finished: Trials that have finished.
        alpha: Of :class:`Domination`; at 0 nothing is compared, and 0 is returned.

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


def narrow_enough(size: int, places: int | None) -> bool:
    """Whether narrow intervals of so many requests may end a measurement."""
    return size >= PRECISE_TURNS * (places or 1)


V = TypeVar("V")


class Looks(Generic[V]):
    """When to look at a measurement that runs, and how much of it is seen.

    Args:
        sizes: Of the looks, ascending; the last one is all requests, at which nothing is asked.
        ask: What is known of the first so many requests that were sent, all of which have ended;
            None: not enough to end.

    Attributes:
        size: Requests that count, once the measurement is over.
        verdict: What ended it; None: the last request, or nothing yet.
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
        """How many requests have ended without one before them that has not."""
        return self._complete

    @property
    def over(self) -> bool:
        """Whether the measurement has ended."""
        return self.verdict is not None or self._complete == self._most

    def sent(self) -> None:
        """Note that the next request was sent."""
        self._sent += 1

    def ended(self, index: int) -> None:
        """Note that a request has ended, and look if it is time to.

        Args:
            index: Its place in the order of sending, from 0.
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
        """A size's first look; a verdict is asked for again when what is under way has ended."""
        reached = [x for x in self._sizes if x <= self._complete]
        self._sizes = self._sizes[len(reached) :]
        if (found := self._ask(reached[-1])) is None:
            return
        if self._sent <= reached[-1]:  # nothing is under way
            self.verdict, self.size = found, reached[-1]
        elif self._sent < self._most:
            self._again = self._sent
        else:
            self._sizes = []  # all were sent: they are waited for, and count

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
    """Half of an interval's width, as a share of the value; infinite if a bound is missing."""
    if interval.low is None or interval.high is None:
        return math.inf
    return (interval.high - interval.low) / 2 / abs(value)


def precise(estimates: Iterable[tuple[float, Interval]], precision: float) -> bool:
    """Whether every value's interval is narrower than ± ``precision`` of the value."""
    return all(relative_half_width(value, i) < precision for value, i in estimates)


@dataclass(frozen=True)
class Bounded:
    """One objective of one launch.

    Attributes:
        value: Positive.
        interval: Its interval within the launch, two-sided, for a confidence.
        launches: Whose mean it is.
    """

    value: float
    interval: Callable[[float], Interval]
    launches: int = 1


def averaged(launches: Sequence[Bounded]) -> Bounded:
    """Return the geometric mean of one objective over a point's launches, with its interval.

    The bounds' distances, as logarithms, add up in quadrature; a bound that one launch lacks, the
    mean lacks.
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
        looks: How many looks there are at most, the last, after all requests, included.
        directions: The better way of each objective.
        sigma: For each objective, the standard deviation of the logarithm between launches.
        alpha: The chance that a trial is ever called dominated which no rival dominates.
        finished: Trials of which the rivals are the best; None: the rivals are all there are.
    """

    looks: int
    directions: Sequence[Literal["maximize", "minimize"]]
    sigma: Sequence[float]
    alpha: float = 0.05
    finished: int | None = None

    def by(self, trial: Sequence[Bounded], rivals: Sequence[Sequence[Bounded]]) -> int | None:
        """The index of the first rival that is better in all objectives, at one look.

        Args:
            trial: What is known of the running trial, in the order of the objectives.
            rivals: The same of finished trials: as many at every look.
        """
        if not rivals or self.looks < 2 or not self.alpha:
            return None
        of_trial = self.alpha / 2 / (self.looks - 1)
        of_rival = self._of_rival(len(rivals))
        return next(
            (i for i, x in enumerate(rivals) if self._worse(trial, x, of_trial, of_rival)), None
        )

    def prepare(self, rivals: Sequence[Sequence[Bounded]]) -> None:
        """Ask each rival once for what :meth:`by` will ask it for, so that none is late then."""
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
        luck = quantiles.student_t(LAUNCH_DEGREES, 1 - of_rival)
        return all(
            _certainly_worse(
                a,
                b,
                direction,
                luck * sigma * math.sqrt(1 / a.launches + 1 / b.launches),
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
    """One objective, at one-sided levels."""
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
