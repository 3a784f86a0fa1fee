"""Quantiles of the normal, Student's t, the beta and the binomial distribution.

SciPy has all of them. Importing it takes more time than a command that shows a database may, so
they are computed here, to about 13 digits. The tests compare them with SciPy's.

Notation: I is the regularized incomplete beta function, I(a, b, x) = ∫₀ˣ t^(a−1) (1−t)^(b−1) dt /
B(a, b). Its continued fraction is 8.17.22 of NIST's Digital Library of Mathematical Functions,
evaluated by the modified method of Lentz.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

_TINY = 1e-300
_NORMAL = NormalDist()


def normal(p: float) -> float:
    """Return the value below which a standard normal variable is with probability ``p``."""
    return _NORMAL.inv_cdf(p)


def normal_probability(z: float) -> float:
    """Return the probability that a standard normal variable is below ``z``."""
    return math.erfc(-z / math.sqrt(2)) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return I(a, b, x) for positive ``b`` and x from 0 to 1; 1 where ``a`` is 0."""
    if a <= 0:
        return 1.0
    if x <= 0 or x >= 1:
        return float(x >= 1)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log += a * math.log(x) + b * math.log1p(-x)
    if x > (a + 1) / (a + b + 2):
        return 1 - math.exp(log) / b * _fraction(b, a, 1 - x)
    return math.exp(log) / a * _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of I(a, b, x); it converges for x < (a + 1)/(a + b + 2)."""
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 / _not_zero(1 + step * d)
            c = _not_zero(1 + step / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _not_zero(x: float) -> float:
    return x if abs(x) > _TINY else _TINY


def root(f: Callable[[float], float], low: float, high: float) -> float:
    """Return where an increasing function is zero, by the method of Ridders, to about 1e-15."""
    at_low, at_high, found = f(low), f(high), math.nan
    for _ in range(200):
        middle = (low + high) / 2
        at_middle = f(middle)
        scale = math.sqrt(at_middle**2 - at_low * at_high)
        last, found = found, middle
        if scale > 0:
            found = min(max(middle - (middle - low) * at_middle / scale, low), high)
        at_found = f(found)
        for x, value in ((middle, at_middle), (found, at_found)):
            if value <= 0 and x > low:
                low, at_low = x, value
            elif value > 0 and x < high:
                high, at_high = x, value
        if at_found == 0 or abs(found - last) <= 1e-15 * abs(found) or not high > low:
            break
    return found


@lru_cache(maxsize=4096)
def beta(a: float, b: float, p: float) -> float:
    """Return the value below which a beta variable is with probability ``p``."""
    return root(lambda x: incomplete_beta(a, b, x) - p, 0.0, 1.0)


@lru_cache(maxsize=4096)
def student_t(degrees: float, p: float) -> float:
    """Return the value below which a variable of Student's t is with probability ``p``."""
    if p < 0.5:
        return -student_t(degrees, 1 - p)
    tail = 2 * (1 - p)
    if tail < 0.5:  # I's argument is degrees/(degrees + t²) here, and 1 minus it below
        x = beta(degrees / 2, 0.5, tail)
        return math.sqrt(degrees * (1 - x) / x)
    y = beta(0.5, degrees / 2, 1 - tail)
    return math.sqrt(degrees * y / (1 - y))


@lru_cache(maxsize=4096)
def binomial(p: float, n: float, q: float) -> float:
    """Return the k, between 0 and ``n``, at which the probability of at most k hits is ``p``.

    There are ``n`` trials, each a hit with probability ``q``. Where k and n are not whole numbers,
    the probability is I(n − k, k + 1, 1 − q).
    """
    if (1 - q) ** n >= p:
        return 0.0
    return root(lambda k: incomplete_beta(n - k, k + 1, 1 - q) - p, 0.0, float(n))
