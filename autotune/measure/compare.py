"""Launches of the same point against each other: what differs by luck, and what does not.

Requests of one launch share its luck (memory layout, clocks, neighbours), so one launch against
another says little, however many requests each had. Points that are launched several times show
how far launches scatter; that scatter, pooled over the points, gives every comparison its interval:
Student's t for means of logarithms with a common variance (W. G. Cochran, "Sampling Techniques",
3rd ed. 1977, 2.9; logarithms because noise here is a percentage, and because then a ratio has an
interval as plain as a mean's).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True)
class Estimate:
    """A value with its bounds; the bounds are None where nothing is known of the scatter.

    Attributes:
        value: In the unit of what was averaged, or a ratio.
        low: Lower bound of the interval.
        high: Upper bound of the interval.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Scatter:
    """How far launches of one point scatter.

    Attributes:
        sigma: Standard deviation of the logarithm between launches; 0.05 is about 5 %.
        degrees: Of freedom; 0 if no point was launched twice.
    """

    sigma: float
    degrees: int

    @classmethod
    def pooled(cls, groups: Sequence[Sequence[float]]) -> Scatter:
        """From the positive values of several points, one group for each point's launches."""
        logs = [np.log(np.asarray(g, dtype=float)) for g in groups if len(g) > 1]
        degrees = sum(len(x) - 1 for x in logs)
        squares = sum(float(np.sum((x - x.mean()) ** 2)) for x in logs)
        return cls(math.sqrt(squares / degrees) if degrees else 0.0, degrees)

    def mean(self, values: Sequence[float], confidence: float = 0.95) -> Estimate:
        """Geometric mean of one point's launches.

        >>> Scatter.pooled([[100.0]]).mean([100.0])
        Estimate(value=100.0, low=None, high=None)
        """
        return self._estimate(float(np.mean(np.log(values))), 1 / len(values), confidence)

    def ratio(self, a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Estimate:
        """Mean of the launches ``a`` over the mean of the launches ``b``."""
        log = float(np.mean(np.log(a)) - np.mean(np.log(b)))
        return self._estimate(log, 1 / len(a) + 1 / len(b), confidence)

    def _estimate(self, log: float, share: float, confidence: float) -> Estimate:
        value = round(math.exp(log), 12)
        if self.degrees == 0:
            return Estimate(value, None, None)
        t = float(special.stdtrit(self.degrees, (1 + confidence) / 2))
        half = t * self.sigma * math.sqrt(share)
        return Estimate(value, math.exp(log - half), math.exp(log + half))
