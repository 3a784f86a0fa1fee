"""Scatter of launches where the baseline may scatter by another amount than the other points.

=======  ==========================================================================================
symbol   meaning
=======  ==========================================================================================
S, d     sum of squares of launches around their points' means, and its degrees of freedom
σ        standard deviation of the logarithm between launches of one point
λ        σ² of the baseline ÷ σ² of the other points
x        variance of an estimate in units of one launch's, such as 1/2 for the mean of two
=======  ==========================================================================================

A server without drafts often repeats within 0.5 % while one with drafts scatters by 10 %, or the
other way round. One pooled scatter then makes the interval of their ratio too narrow or too wide.
Two separate ones have too few launches: with two degrees of freedom Student's t is 4.3, with
five 2.6. Therefore both are pooled as far as the launches agree with one scatter.

λ is integrated out (W. V. Behrens 1929 and R. A. Fisher 1935 treat two unknown variances; H.
Jeffreys, "Theory of Probability", 3rd ed. 1961, 5.4, as a posterior). The prior of log λ has 65 %
around 0, normal with 0.5, and 35 % uniform between ± 9: factors of up to 90 between the two σ.
Given λ, with the usual prior dσ/σ, the launches have one variance with d₁ + d₂ degrees:

    S(λ) = S₁ + S₂/λ,   p(λ | launches) ∝ p(λ) · λ^(-d₂/2) · S(λ)^(-(d₁ + d₂)/2),

and an estimate with the shares x₁ and x₂ has Student's t with the variance
(x₁ + λ·x₂) · S(λ)/(d₁ + d₂). The interval is the central one of this mixture. Where one kind has no
degree, its σ is known as well as the prior says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from autotune.stats.launch_variance import SAYS_NOTHING, Estimate
from autotune.stats.measurement import Floats

_LOG_RATIOS = np.linspace(-9, 9, 37)
_ALIKE, _WIDTH = 0.65, 0.5
_PRIOR = np.log(
    _ALIKE * np.exp(-((_LOG_RATIOS / _WIDTH) ** 2) / 2) / (_WIDTH * math.sqrt(2 * math.pi))
    + (1 - _ALIKE) / 18
)
_STEPS = 40  # halvings of the interval's half-width


@dataclass(frozen=True)
class TwoPools:
    """Scatter of one objective's logarithm between launches of a point, for two kinds of points.

    Attributes:
        squares: Sum of squares of the launches around their point's mean: of all points but the
            baseline, and of the baseline.
        degrees: Degrees of freedom of each; of launches on several slots they need not be whole.
    """

    squares: tuple[float, float]
    degrees: tuple[float, float]

    @property
    def known(self) -> bool:
        """Whether any point was launched twice."""
        return sum(self.degrees) > 0

    @property
    def ratios(self) -> Floats:
        """Values of λ that :attr:`weights` are for, of shape (37,)."""
        return np.exp(_LOG_RATIOS)

    @property
    def sums(self) -> Floats:
        """S(λ), of shape (37,)."""
        return self.squares[0] + self.squares[1] / self.ratios

    @cached_property
    def weights(self) -> Floats:
        """Posterior probability of each λ, of shape (37,)."""
        degrees = sum(self.degrees)
        logs = _PRIOR - self.degrees[1] / 2 * _LOG_RATIOS
        sums = self.sums
        if sums.min() > 0:
            logs = logs - degrees / 2 * np.log(sums)
        weights = np.exp(logs - logs.max())
        return np.asarray(weights / weights.sum())

    def variance(self, share: float, baseline_share: float) -> float:
        """Return the expected variance of an estimate with such shares; 0: unknown."""
        degrees = sum(self.degrees)
        if degrees == 0:
            return 0.0
        parts = self.sums / degrees * (share + self.ratios * baseline_share)
        return math.exp(float(self.weights @ np.log(parts))) if parts.min() > 0 else 0.0

    def around(
        self, log: float, share: float, baseline_share: float, confidence: float = 0.95
    ) -> Estimate:
        """Return ``exp(log)`` with its interval.

        Args:
            log: Measured logarithm.
            share: Part x₁ of its variance, from launches of all points but the baseline.
            baseline_share: Part x₂ of its variance, from the baseline's.
            confidence: Confidence of the interval.
        """
        value = round(math.exp(log), 12)
        degrees = sum(self.degrees)
        if degrees == 0:
            return Estimate(value, None, None)
        scales = np.sqrt(self.sums / degrees * (share + self.ratios * baseline_share))
        half = _half_width(scales, self.weights, degrees, confidence)
        if half > math.log(SAYS_NOTHING):
            return Estimate(value, None, None)
        return Estimate(value, math.exp(log - half), math.exp(log + half))


def _half_width(scales: Floats, weights: Floats, degrees: float, confidence: float) -> float:
    """Return the half-width of a mixture of Student's t with common degrees around one center."""
    if scales.max() == 0:
        return 0.0
    scales = np.maximum(scales, 1e-12 * scales.max())
    at, below = _student_table(degrees)
    low, high = 0.0, float(scales.max())

    def inside(half: float) -> float:
        return 2 * float(weights @ np.interp(half / scales, at, below)) - 1

    while inside(high) < confidence and high < 1e6:
        high *= 4
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < confidence else (low, middle)
    return high


@lru_cache(maxsize=64)
def _student_table(degrees: float) -> tuple[Floats, Floats]:
    """Return values ≥ 0, and the probability that Student's t is below each, to about 1e-5."""
    at = np.sinh(np.linspace(0, 12, 3001))
    log = (
        math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    )
    density = np.exp(log - (degrees + 1) / 2 * np.log1p(at**2 / degrees))
    steps = (density[1:] + density[:-1]) / 2 * np.diff(at)
    return at, np.minimum(0.5 + np.concatenate([[0.0], np.cumsum(steps)]), 1.0)
