"""Launch-to-launch variance: what differs between launches by chance, and what does not.

========  =======================================================================================
symbol    meaning
========  =======================================================================================
point     logarithm of the true value of a configuration
L         deviation of a launch from its point, shared by all of its requests
e         deviation of a launch's value by the requests that it had
between   standard deviation of L
within    standard deviation of e: the standard error of the launch's logarithm
total     standard deviation between launches of one point, pooled over the points
========  =======================================================================================

Requests of one launch share the launch's conditions (memory layout, clocks, neighbors). Therefore
comparing one launch with another says little, even with many requests. All values are logarithms,
because noise here is a percentage, and because a ratio then has an interval as simple as a mean's:

    log value of a launch = point + L + e,   var(L) = between²,   var(e) = within²

``within`` is known of every launch; ``between`` only from points that were launched several times.
Launches of one kind need the total scatter only: Student's t for means with a common variance (W.
G. Cochran, "Sampling Techniques", 3rd ed. 1977, 2.9). Launches with a larger standard error than
those need the two parts. ``between`` is the moment estimator, the root of ``total² - within²``, cut
off at 0 (L. V. Hedges, I. Olkin, "Statistical Methods for Meta-Analysis", 1985, 9.3; the estimators
of DerSimonian & Laird 1986 and of Paule & Mandel 1982 give the same for equal ``within``, which
launches of one study nearly have).

The variance of a point or a ratio has two parts: the observed scatter, which is at least what the
requests explain of it, and the excess of its own launches' ``within²``. Its degrees of freedom are
those of F. E. Satterthwaite ("An approximate distribution of estimates of variance components",
Biometrics Bulletin 2, 1946), from the scatter's and the seven of the batches. An estimate of 0 for
``between`` makes nothing certain: with two launches each of two to ten points, intervals that then
took the requests' scatter as known held 92 to 98 %. These hold 94 to 97 % where launches differ by
more than their requests explain, and up to 99.8 % where they do not (``benchmarks/coverage.py``).

Every launch of a study is sent the same requests, but the intervals within launches treat the
requests as a new random sample for each launch. Differences between requests are therefore counted
as chance although they are not: the interval of a comparison of single launches is rather too wide,
and ``between`` is rather too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.stats import quantiles
from autotune.stats.intervals import BATCHES

# An interval that reaches further than this factor is left out: that of two launches of one point
# that happen to differ much reaches 10^30.
SAYS_NOTHING = 10.0


@dataclass(frozen=True)
class Estimate:
    """A value with its bounds; they are None where too little is known of the scatter.

    Attributes:
        value: Estimated value, in the unit of the averaged values, or a ratio.
        low: Lower bound of the interval.
        high: Upper bound of the interval.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Scatter:
    """Scatter of launches of one point.

    Attributes:
        sigma: Standard deviation of the logarithm between launches; 0.05 is about 5 %.
        degrees: Degrees of freedom of ``sigma``; 0 if no point was launched twice.
    """

    sigma: float
    degrees: int

    @classmethod
    def pooled(cls, groups: Sequence[Sequence[float]]) -> Scatter:
        """Return the scatter of positive values, one group for the launches of each point."""
        logs = [np.log(np.asarray(g, dtype=float)) for g in groups if len(g) > 1]
        degrees = sum(len(x) - 1 for x in logs)
        squares = sum(float(np.sum((x - x.mean()) ** 2)) for x in logs)
        return cls(math.sqrt(squares / degrees) if degrees else 0.0, degrees)

    def mean(self, values: Sequence[float], confidence: float = 0.95) -> Estimate:
        """Return the geometric mean of one point's launches, with its interval.

        >>> Scatter.pooled([[100.0]]).mean([100.0])
        Estimate(value=100.0, low=None, high=None)
        """
        return self.around(float(np.mean(np.log(values))), 1 / len(values), confidence)

    def ratio(self, a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Estimate:
        """Return the geometric mean of ``a`` over that of ``b``, with its interval."""
        log = float(np.mean(np.log(a)) - np.mean(np.log(b)))
        return self.around(log, 1 / len(a) + 1 / len(b), confidence)

    def around(self, log: float, share: float, confidence: float = 0.95) -> Estimate:
        """Return ``exp(log)`` with its interval.

        Args:
            log: Measured logarithm, such as the difference of two means of logarithms.
            share: Variance of ``log`` in units of one launch's, such as 1/2 + 1/2.
            confidence: Confidence of the interval.
        """
        if self.degrees == 0:
            return Estimate(round(math.exp(log), 12), None, None)
        return _student(log, share * self.sigma**2, self.degrees, confidence)


@dataclass(frozen=True)
class SingleLaunch:
    """Value of one launch, or the mean of several.

    Attributes:
        value: Positive value, in the objective's unit.
        within: Standard error of the value's logarithm by the launch's own requests; for the mean
            of several launches, that of a single one of them. See
            :func:`autotune.stats.intervals.standard_error`.
    """

    value: float
    within: float


@dataclass(frozen=True)
class LaunchVariance:
    """Scatter of replicated launches in its two parts, as standard deviations of logarithms.

    Attributes:
        total: Total scatter.
        within: Part that the launches' own intervals explain, as a root mean square.
        between: Remaining part, by which launches differ.
    """

    total: Scatter
    within: float
    between: float

    @classmethod
    def of(cls, groups: Sequence[Sequence[SingleLaunch]]) -> LaunchVariance | None:
        """Return the variance by groups of launches, one for each point; None: no point has two."""
        groups = [g for g in groups if len(g) > 1]
        total = Scatter.pooled([[x.value for x in g] for g in groups])
        if total.degrees == 0:
            return None
        # expected sum of squares of n launches: (1 - 1/n) times the sum of their variances
        within2 = sum((1 - 1 / len(g)) * x.within**2 for g in groups for x in g) / total.degrees
        between2 = max(0.0, total.sigma**2 - within2)
        return cls(total, math.sqrt(within2), math.sqrt(between2))

    def ratio(
        self,
        a: SingleLaunch,
        b: SingleLaunch,
        launches: tuple[int, int] = (1, 1),
        confidence: float = 0.95,
    ) -> Estimate:
        """Return one point over another one, with an interval that holds between launches.

        Args:
            a: A launch of the one point, or the mean of several.
            b: A launch of the other point, or the mean of several.
            launches: Number of launches that ``a`` and ``b`` are the means of.
            confidence: Confidence of the interval.
        """
        share = 1 / launches[0] + 1 / launches[1]
        within2 = a.within**2 / launches[0] + b.within**2 / launches[1]
        return self._around(math.log(a.value / b.value), share, within2, confidence)

    def point(self, x: SingleLaunch, launches: int, confidence: float = 0.95) -> Estimate:
        """Return the value of a point, with an interval that holds between launches.

        Args:
            x: A launch, or the mean of several.
            launches: Number of launches that ``x`` is the mean of.
            confidence: Confidence of the interval.
        """
        share = 1 / launches
        return self._around(math.log(x.value), share, share * x.within**2, confidence)

    def _around(self, log: float, share: float, own2: float, confidence: float) -> Estimate:
        """Return ``exp(log)`` with its interval.

        Args:
            log: Measured logarithm.
            share: Variance of ``log`` in units of one launch's.
            own2: Variance of ``log`` by its own launches' requests.
            confidence: Confidence of the interval.
        """
        if self.total.degrees == 0:  # only the requests' scatter is known
            return _student(log, own2, BATCHES - 1, confidence)
        seen2, explained2 = share * self.total.sigma**2, share * self.within**2
        variance = max(seen2, explained2) + max(0.0, own2 - explained2)
        parts = seen2**2 / self.total.degrees + max(own2, explained2) ** 2 / (BATCHES - 1)
        degrees = variance**2 / parts if parts > 0 else self.total.degrees
        return _student(log, variance, degrees, confidence)


def _student(log: float, variance: float, degrees: float, confidence: float) -> Estimate:
    half = quantiles.student_t(degrees, (1 + confidence) / 2) * math.sqrt(variance)
    if half > math.log(SAYS_NOTHING):
        return Estimate(round(math.exp(log), 12), None, None)
    return Estimate(round(math.exp(log), 12), math.exp(log - half), math.exp(log + half))
