"""Acceptance curves: how many drafted tokens a draft of n gives, measured, given, or extended.

======  ===========================================================================================
symbol  meaning
======  ===========================================================================================
n       tokens drafted per step
i       position in the draft, 1 … n
r_i     rate: probability that position i is accepted, and so all before it (unconditional)
a_i     conditional rate: probability that position i is accepted if all before it were
d       decay of the conditional rates from one position to the next
L(n)    acceptance length: tokens per verification step
======  ===========================================================================================

    r_i = a_1 · a_2 · … · a_i        a_i = r_i / r_(i-1), r_0 = 1        L(n) = 1 + r_1 + … + r_n

The rates never increase, because position i is accepted only if position i − 1 was. L(n) is from 1
to n + 1: it is equation 1 of Leviathan, Kalman, Matias, "Fast Inference from Transformers via
Speculative Decoding", ICML 2023 (section 3.1), with a rate for each position instead of their
single a_i = α. vLLM takes such rates as ``synthetic_acceptance_rates`` (vllm/config/speculative.py:
exactly n, not increasing, from 0 to 1).

**A curve from its length.** Two numbers choose one curve: a_i = min(1, a_1 · d^(i−1)), with the a_1
that gives the length. L rises strictly with a_1 until all a_i are 1, so there is exactly one such
curve for each length from 1 to n + 1. It is found by Brent's method (R. P. Brent, "Algorithms for
Minimization without Derivatives", 1973, chapter 4) on log a_1. The bounds of a_1 are (L − 1) / n,
since no rate is above a_1, and the larger of 1 and d^(1−n), at which all a_i are 1.

**A longer draft.** Beyond the last position m, a_i = min(1, a_m · d^(i−m)). It is an assumption,
not a measurement.

All functions are pure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NEVER = 1e-12  # a lower rate counts as never accepted: no server counts so many drafts

_EXACT = 1e-13  # accuracy of log a_1


@dataclass(frozen=True)
class AcceptanceCurve:
    """Probability that each position of a draft is accepted.

    Attributes:
        rates: r_1 … r_n: unconditional, each from 0 to 1, none above the one before it.

    Raises:
        ValueError: a rate is outside of 0 … 1, or above the one before it.
    """

    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        for i, rate in enumerate(self.rates, 1):
            if not 0 <= rate <= 1:  # nor NaN
                raise ValueError(f"rate {rate:.15g} of position {i} is not from 0 to 1")
        for i, (before, rate) in enumerate(itertools.pairwise(self.rates), 2):
            if rate > before:
                raise ValueError(
                    f"rate {rate:.15g} of position {i} is above {before:.15g} of the position "
                    "before it"
                )

    def first(self, n: int) -> AcceptanceCurve:
        """Return the curve of the first n positions.

        Raises:
            ValueError: n is negative or above the number of positions.
        """
        return AcceptanceCurve(self.rates[: self._checked(n)])

    def length(self, n: int) -> float:
        """Return L(n), the tokens per step of a draft of n tokens.

        Raises:
            ValueError: n is negative or above the number of positions.
        """
        return 1 + math.fsum(self.rates[: self._checked(n)])

    @property
    def conditional(self) -> tuple[float, ...]:
        """Conditional rates a_1 … a_n; 0 from the first position on that is never reached."""
        return conditional_rates(self.rates)

    def _checked(self, n: int) -> int:
        if not 0 <= n <= len(self.rates):
            raise ValueError(f"n = {n} is not from 0 to the {len(self.rates)} positions")
        return n


def from_rates(rates: Iterable[float]) -> AcceptanceCurve:
    """Return the curve of unconditional rates r_1, r_2, ….

    Raises:
        ValueError: a rate is outside of 0 … 1, or above the one before it.
    """
    return AcceptanceCurve(tuple(map(float, rates)))


def from_conditional(rate: float, n: int) -> AcceptanceCurve:
    """Return the curve of n positions with the same conditional rate.

    Raises:
        ValueError: the rate is outside of 0 … 1, or n is below 1.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"conditional rate {rate:.15g} is not from 0 to 1")
    return AcceptanceCurve(unconditional_rates((rate,) * _positive(n)))


def from_length(length: float, decay: float, n: int) -> AcceptanceCurve:
    """Return the curve of n positions with an acceptance length and a decay; see the module.

    >>> [round(a, 3) for a in from_length(3.0, 0.9, 4).conditional]
    [0.807, 0.726, 0.653, 0.588]

    Args:
        length: L(n).
        decay: d; 1: all conditional rates are equal; above 1: they rise, up to 1.
        n: Number of positions.

    Raises:
        ValueError: the length is outside of 1 … n + 1, the decay is not positive and finite, or n
            is below 1.
    """
    from scipy.optimize import brentq  # commands that only read should not wait for it

    _positive(n)
    _checked_decay(decay)
    if not 1 <= length <= n + 1:
        raise ValueError(f"acceptance length {length:.15g} is not from 1 to n + 1 = {n + 1}")
    step = math.log(decay)
    most = max(0.0, (1 - n) * step)

    def curve(log_first: float) -> AcceptanceCurve:
        rates = (math.exp(min(0.0, log_first + i * step)) for i in range(n))
        return AcceptanceCurve(unconditional_rates(rates))

    if length == 1:
        return AcceptanceCurve((0.0,) * n)
    least = math.log((length - 1) / n)
    if curve(most).length(n) <= length:
        return curve(most)
    if curve(least).length(n) >= length:
        return curve(least)
    found = brentq(lambda x: curve(x).length(n) - length, least, most, xtol=_EXACT)
    return curve(float(found))


def extend(curve: AcceptanceCurve, decay: float, n: int) -> AcceptanceCurve:
    """Return the curve with n positions: cut, or continued with decaying conditional rates.

    Args:
        curve: Curve with at least one position.
        decay: d from the last position on.
        n: Number of positions of the result.

    Raises:
        ValueError: the curve is empty, the decay is not positive and finite, or n is below 1.
    """
    _checked_decay(decay)
    if _positive(n) <= len(curve.rates):
        return curve.first(n)
    if not curve.rates:
        raise ValueError("a curve without positions cannot be extended")
    last, step = curve.conditional[-1], math.log(decay)
    if last <= 0:
        return AcceptanceCurve(curve.rates + (0.0,) * (n - len(curve.rates)))
    more = (
        math.exp(min(0.0, math.log(last) + i * step)) for i in range(1, n - len(curve.rates) + 1)
    )
    tail = tuple(curve.rates[-1] * p for p in unconditional_rates(more))
    return AcceptanceCurve(curve.rates + tail)


def conditional_rates(rates: Sequence[float]) -> tuple[float, ...]:
    """Return a_i from r_i; 0 from the first position on that is never reached."""
    before = (1.0, *rates)
    return tuple(
        min(1.0, p / q) if p > NEVER and q > NEVER else 0.0
        for p, q in zip(rates, before, strict=False)
    )


def unconditional_rates(conditional: Iterable[float]) -> tuple[float, ...]:
    """Return r_i from a_i."""
    p, out = 1.0, []
    for a in conditional:
        p *= a
        out.append(p)
    return tuple(out)


def _positive(n: int) -> int:
    if n < 1:
        raise ValueError(f"n = {n} is below 1")
    return n


def _checked_decay(decay: float) -> None:
    if not 0 < decay < math.inf:  # nor NaN
        raise ValueError(f"decay {decay:g} is not above 0 and finite")
