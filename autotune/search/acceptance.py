"""Tokens per second for every n, from the acceptance and the speed of a few launches.

=================  =================================================================================
symbol             meaning
=================  =================================================================================
n                  tokens drafted per step; 0: no speculation
P(accept ≥ i | n)  probability that at least i tokens of a draft of n are accepted
h_i(n)             conditional acceptance: probability of token i if all before it were accepted
E(n)               tokens per step
T(n)               time of a step
F(n)               P(accept ≥ n | n): share of the drafts that are accepted to their end
g(n)               factor on all conditional acceptances of a larger n
c                  slope of g over F
=================  =================================================================================

    rate(n) = E(n) / T(n)

**Tokens per step.** E(n) = 1 + Σ P(accept ≥ i | n), i = 1 … n (Leviathan, Kalman, Matias, "Fast
Inference from Transformers via Speculative Decoding", ICML 2023, section 3.1, with the measured
acceptance of each position instead of their single α). The server counts P(accept ≥ i | n):
``vllm:spec_decode_num_accepted_tokens_per_pos`` over ``_num_drafts``
(vllm/v1/spec_decode/metrics.py). T(n) is the time to draft n tokens and to verify n + 1.

**E(n) from a launch at a larger n.** P(accept ≥ i) is the product of h_1 … h_i. *Truncation* uses
h_i of the larger n. It is inaccurate for two reasons. First, DFlash drafts a block at once, and its
mask slots attend to each other in both directions (Chen, Liang, Liu, "DFlash: Block Diffusion for
Flash Speculative Decoding", arXiv 2602.06036). So a draft of 3 is not the first 3 of a draft of 15.
Second, the acceptance of any drafter is measured where its steps begin. With a small n a step often
begins after a draft that was accepted to its end, in text that is easy to guess. With a large n it
nearly always begins after a token that was not accepted. The share of the former is F(n). So for n
between launches at a < b:

    h_i(n) = min(1, h_i(b) · g(n)),   g linear in F, from g(b) = 1 to g(a), which gives E(a)

Below the smallest launch, g continues with the slope c that all neighbors have in common. The slope
is shrunk towards 0 where they say little about it (a priori c is 0 ± 0.15; a g within ± 2 % is
noise). Beyond the largest launch, h continues as it was over the last half of its positions. With a
single launch this is truncation. E(n) of the launched n is as measured, and is monotonic from one
to the next. It may also fall: a draft that is longer than the block on which its drafter was
trained can collapse.

**Time of a step.** T(n) = fixed + slope · n for n ≥ 1, by least squares of the relative errors with
Huber's weights. Its bounds are fixed ≥ T(0) and slope ≥ 0, because drafting and verifying drafts
takes no less time than a step without them. T(0) is that of the launches without speculation. If
the launches are too few, or their n too similar, to distinguish a slope from noise, they only
correct usual values, each part in proportion to its uncertainty. Usually drafting adds half a step
without speculation (``DRAFT_FIXED``) and each token a tenth (``PER_TOKEN``), which is about what
the demo pair had on CPUs. If n = 0 was not launched either, the two parts have that proportion.

``benchmarks/acceptance.py`` compares truncation, this method, and tok/s by n with measured grids,
and with made-up texts for the second reason alone. Other differences between launches (MNBT, …) are
noise here. A prediction is never a result: it is a prior, and a reason to launch.

All functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from autotune.stats.acceptance_curve import conditional_rates, unconditional_rates

DRAFT_FIXED = 0.5  # time of drafting before its first token, in steps without speculation
PER_TOKEN = 0.1  # … and for each token, with its verification
_FIXED_SD, _TOKEN_SD = 0.25, 0.1  # standard deviations of these two

MOST_N = 1000  # launches with a longer draft are left out, which limits the time of a fit

_SLOPE_PRIOR = 0.15  # standard deviation of c a priori
_SLOPE_NOISE = 0.02  # … of one g, between launches of the same prompts
_SLOPE_MOST = 0.5  # largest |c|; with more, neighbors differ by more than where their steps begin
_NOISE = 0.1  # relative standard deviation of a launch's tok/s (10 % is usual at low concurrency)
_LEAST_SPREAD = 8.0  # Σ (n − mean)²: with less, a slope is known no better than to 3.5 % a token
_HUBER = 1.5  # deviation, in standard deviations, above which a launch counts less
_ROUNDS = 5
_ITERATIONS = 100
_EXACT = 1e-12  # accuracy of E while a factor is sought
_LENGTH_EXACT = 1e-6  # … of the factor that was found
_SLOWEST, _FASTEST = 1e-9, 1e15  # tok/s of valid measurements


@dataclass(frozen=True)
class SpeculationLaunch:
    """Speculation in one launch, or the mean of several.

    Impossible values (NaN, a share above 1, a length outside 1 … n + 1) count as unknown.

    Attributes:
        n: Number of tokens drafted per step; 0: no speculation.
        rate: Output tok/s, or another speed that is proportional to it.
        per_position: P(accept ≥ i | n) for i = 1 … n; empty: unknown.
        acceptance_length: E = 1 + Σ per_position, tokens per step; None: unknown.
    """

    n: int
    rate: float
    per_position: tuple[float, ...] = ()
    acceptance_length: float | None = None


@dataclass(frozen=True)
class Prediction:
    """E(n), T(n) and tok/s for every n; :meth:`fit` makes one.

    Attributes:
        launched: Every n ≥ 1 whose acceptance was measured, ascending.
        positions: P(accept ≥ i | n), i = 1 … n, for n = 0 up to the largest launched one.
        tail: Conditional acceptance of all positions beyond the largest launched n.
        baseline_time: T(0), in tokens / rate.
        fixed_time: Part of T(n) for n ≥ 1 that does not depend on n, in tokens / rate.
        time_per_token: Part of T(n) for each drafted token, in tokens / rate.
        baseline_launched: Whether T(0) was measured. If not, it is ``fixed_time``, an upper bound.
    """

    launched: tuple[int, ...]
    positions: tuple[tuple[float, ...], ...]
    tail: float
    baseline_time: float
    fixed_time: float
    time_per_token: float
    baseline_launched: bool

    @classmethod
    def fit(cls, launches: Sequence[SpeculationLaunch]) -> Prediction | None:
        """Return the prediction by launches; None: none has n ≥ 1, an acceptance, and a speed.

        Args:
            launches: Launches in any order; several with the same n are averaged.
        """
        valid = [x for x in launches if 0 <= x.n <= MOST_N]
        hazards = _launched_hazards([x for x in valid if x.n >= 1])
        if not hazards:
            return None
        positions, tail = _all_positions(hazards)
        launched = tuple(sorted(hazards))
        untimed = cls(launched, positions, tail, 1.0, 1.0, 0.0, False)
        base: list[float] = []
        times: dict[int, list[float]] = {}
        for x in valid:
            if not _SLOWEST <= x.rate <= _FASTEST:  # nor NaN
                continue
            if x.n == 0:
                base.append(1 / x.rate)
            else:
                length = _length_of(x)
                length = untimed.tokens_per_step(x.n) if length is None else length
                times.setdefault(x.n, []).append(length / x.rate)
        if not times:
            return None
        baseline = _mean(base) if base else None
        fixed, slope = _fit_times(times, baseline)
        return cls(
            launched,
            positions,
            tail,
            fixed if baseline is None else baseline,
            fixed,
            slope,
            baseline is not None,
        )

    def tokens_per_step(self, n: int) -> float:
        """Return E(n), which is 1 without speculation.

        Raises:
            ValueError: n is negative.
        """
        if n < 0:
            raise ValueError(f"n = {n} is negative")
        most = len(self.positions) - 1
        length = 1 + sum(self.positions[min(n, most)])
        if n > most:
            length += self.positions[most][-1] * _geometric(self.tail, n - most)
        return length

    def step_time(self, n: int) -> float:
        """Return T(n), in tokens / rate; always positive.

        It is in seconds for tok/s at a concurrency of 1.

        Raises:
            ValueError: n is negative.
        """
        if n < 0:
            raise ValueError(f"n = {n} is negative")
        return self.fixed_time + self.time_per_token * n if n else self.baseline_time

    def rate(self, n: int) -> float:
        """Return E(n) / T(n), in the unit of the launches' rate.

        Raises:
            ValueError: n is negative.
        """
        return self.tokens_per_step(n) / self.step_time(n)

    def extrapolated(self, n: int) -> bool:
        """Return whether n lies outside the range of launched n, so that it is less certain."""
        if n == 0:
            return not self.baseline_launched
        return not self.launched[0] <= n <= self.launched[-1]

    def hazards(self, n: int) -> tuple[float, ...]:
        """Return the conditional acceptances of the positions 1 … n of a draft of n tokens."""
        most = len(self.positions) - 1
        return conditional_rates(self.positions[min(n, most)]) + (self.tail,) * (n - most)


def without(launches: Sequence[SpeculationLaunch], n: int) -> Prediction | None:
    """Return the prediction by all launches at another n, to compare it with those at ``n``."""
    return Prediction.fit([x for x in launches if x.n != n])


def _launched_hazards(
    launches: Sequence[SpeculationLaunch],
) -> dict[int, Sequence[float]]:
    """Return by n the conditional acceptances that give the measured E(n) exactly.

    Args:
        launches: Launches with n ≥ 1.
    """
    lengths: dict[int, list[float]] = {}
    shapes: dict[int, list[tuple[float, ...]]] = {}
    for x in launches:
        length = _length_of(x)
        if length is not None:
            lengths.setdefault(x.n, []).append(length)
            if _known(x):
                shapes.setdefault(x.n, []).append(x.per_position)
    own = {
        n: conditional_rates([_mean(p) for p in zip(*several, strict=True)])
        for n, several in shapes.items()
    }
    found = {}
    for n, several in lengths.items():
        length = _mean(several)
        for shape in (own.get(n) or _borrowed(own, n), (1.0,) * n):
            found[n] = _scaled(shape, _factor(shape, length))
            if abs(_length(found[n]) - length) < _LENGTH_EXACT:
                break  # otherwise the shape has positions that were never accepted
    return found


def _borrowed(own: Mapping[int, tuple[float, ...]], n: int) -> tuple[float, ...]:
    """Return the shape of the next larger n, else of the largest; without any, all equal."""
    if not own:
        return (1.0,) * n
    nearest = min((k for k in own if k > n), default=max(own))
    shape = own[nearest]
    return (shape + (_tail(shape),) * (n - nearest))[:n]


def _all_positions(
    launched: Mapping[int, Sequence[float]],
) -> tuple[tuple[tuple[float, ...], ...], float]:
    """Return P(accept ≥ i | n) for every n up to the largest launched one, and h beyond."""
    ns = sorted(launched)
    spans = [_Span.of(launched[a], launched[b]) for a, b in pairwise(ns)]
    under = (_SLOPE_NOISE / _SLOPE_PRIOR) ** 2 + sum(s.width**2 for s in spans)
    common = sum(s.width * (s.factor - 1) for s in spans) / under
    slope = min(max(common, -_SLOPE_MOST), _SLOPE_MOST)
    table: list[tuple[float, ...]] = [()]
    for i, b in enumerate(ns):
        upper = launched[b]
        shares = unconditional_rates(upper)  # F of a truncated draft of n tokens: shares[n - 1]
        if i:
            span = spans[i - 1]
            slope = (span.factor - 1) / span.width if span.width > 0 else 0.0
        start, end = 1 + sum(table[-1]), 1 + sum(shares)
        low, high = min(start, end), max(start, end)
        for n in range(len(table), b):
            hazards = _scaled(upper[:n], max(0.0, 1 + slope * (shares[n - 1] - shares[-1])))
            length = _length(hazards)
            if not low <= length <= high:
                length = min(max(length, low), high)
                hazards = _scaled(upper[:n], _factor(upper[:n], length))
            low, high = (length, high) if end >= start else (low, length)
            table.append(unconditional_rates(hazards))
        table.append(shares)
    return tuple(table), _tail(launched[ns[-1]])


@dataclass(frozen=True)
class _Span:
    """Two neighbors among the launched n.

    Attributes:
        factor: g at the lower n.
        width: F of the draft truncated to the lower n, less F at the upper n.
    """

    factor: float
    width: float

    @classmethod
    def of(cls, lower: Sequence[float], upper: Sequence[float]) -> _Span:
        shares = unconditional_rates(upper)
        width = shares[len(lower) - 1] - shares[-1]
        return cls(_factor(upper[: len(lower)], _length(lower)), width)


def _fit_times(times: Mapping[int, Sequence[float]], baseline: float | None) -> tuple[float, float]:
    """Return the fixed part and the slope of T(n) for n ≥ 1.

    Args:
        times: T of each launch by n, n ≥ 1.
        baseline: T(0); None: unknown.
    """
    unit = max(map(_mean, times.values()))
    points = [(n, _mean(several) / unit, len(several)) for n, several in sorted(times.items())]
    # if T(0) is unknown: no token takes longer than a whole step without speculation
    least = min(t / (1 + n) for n, t, _ in points) if baseline is None else baseline / unit
    count = sum(c for _, _, c in points)
    center = sum(c * n for n, _, c in points) / count
    if sum(c * (n - center) ** 2 for n, _, c in points) < _LEAST_SPREAD:
        time = sum(c * t for _, t, c in points) / count
        fixed, slope = _usual(
            center, time, _NOISE * time / math.sqrt(count), None if baseline is None else least
        )
        return fixed * unit, slope * unit
    fixed = slope = 0.0
    trust = [float(c) for _, _, c in points]
    expected = [t for _, t, _ in points]
    for _ in range(_ROUNDS if len(points) > 2 else 1):
        weights = [w / max(e, 1e-6) ** 2 for w, e in zip(trust, expected, strict=True)]
        fixed, slope = _line([(n, t) for n, t, _ in points], weights, least)
        expected = [fixed + slope * n for n, _, _ in points]
        for i, ((_, t, c), e) in enumerate(zip(points, expected, strict=True)):
            off = abs(t - e) / max(t, e)
            trust[i] = c * min(1.0, _HUBER * _NOISE / off) if off > 0 else c
    return fixed * unit, slope * unit


def _usual(n: float, time: float, error: float, baseline: float | None) -> tuple[float, float]:
    """Return the usual fixed part and slope, corrected by T at one n and its standard error."""
    if baseline is None:
        fixed = time / (1 + PER_TOKEN / (1 + DRAFT_FIXED) * n)
        return fixed, (time - fixed) / n
    fixed, slope = (1 + DRAFT_FIXED) * baseline, PER_TOKEN * baseline
    of_fixed, of_slope = (_FIXED_SD * baseline) ** 2, (_TOKEN_SD * baseline) ** 2
    off = (time - fixed - slope * n) / (of_fixed + of_slope * n * n + error**2)
    fixed = max(fixed + of_fixed * off, min(baseline, time))
    return fixed, max(0.0, slope + of_slope * n * off)


def _line(
    points: Sequence[tuple[int, float]], weights: Sequence[float], least: float
) -> tuple[float, float]:
    """Return fixed and slope of t = fixed + slope · n by weighted least squares.

    The bounds are fixed ≥ least and slope ≥ 0.
    """
    rows = [(w, n, t) for w, (n, t) in zip(weights, points, strict=True)]
    total = sum(weights)
    n_mean = sum(w * n for w, n, _ in rows) / total
    t_mean = sum(w * t for w, _, t in rows) / total
    slope = sum(w * (n - n_mean) * t for w, n, t in rows) / sum(
        w * (n - n_mean) ** 2 for w, n, _ in rows
    )
    slope = max(0.0, slope)
    fixed = t_mean - slope * n_mean
    if fixed < least:
        fixed = least
        slope = sum(w * n * (t - least) for w, n, t in rows) / sum(w * n * n for w, n, _ in rows)
    return fixed, max(0.0, slope)


def _length_of(launch: SpeculationLaunch) -> float | None:
    """Return the measured E of a launch with n ≥ 1; None: unknown."""
    length = launch.acceptance_length
    if length is not None and 1 <= length <= 1 + launch.n:
        return float(length)
    return 1 + sum(launch.per_position) if _known(launch) else None


def _known(launch: SpeculationLaunch) -> bool:
    """Return whether the acceptance per position is known and possible."""
    found = launch.per_position
    return len(found) == launch.n and all(0 <= p <= 1 for p in found)


def _scaled(hazards: Sequence[float], factor: float) -> Sequence[float]:
    """Return conditional acceptances times a factor, each at most 1."""
    if factor == 1:
        return hazards
    return [x if (x := h * factor) < 1 else 1.0 for h in hazards]  # min() would cost more


def _length(hazards: Iterable[float], factor: float = 1.0) -> float:
    """Return E of conditional acceptances, each times the factor and at most 1."""
    p = total = 1.0
    for h in hazards:
        x = h * factor
        if x < 1:
            p *= x
        total += p
    return total


def _factor(hazards: Sequence[float], length: float) -> float:
    """Return the factor on all conditional acceptances whose E is ``length``, or nearest to it.

    The method is regula falsi with the Illinois modification (Dowell, Jarratt, BIT 11, 1971).
    """
    first = hazards[0]
    if first <= 0 or abs(_length(hazards) - length) < _EXACT:
        return 1.0
    if length <= 1:
        return 0.0
    # P(accept ≥ 1) is between 1/n of E − 1 and the whole of it
    low = (length - 1) / (len(hazards) * first)
    high = (length - 1) / first if length < 2 else 1 / min(h for h in hazards if h > 0)
    below, above = _length(hazards, low) - length, _length(hazards, high) - length
    if above <= 0:
        return high
    side = 0
    for _ in range(_ITERATIONS):
        if high - low <= _EXACT * high or below >= 0:
            return low
        middle = (low * above - high * below) / (above - below)
        off = _length(hazards, middle) - length
        if abs(off) < _EXACT:
            return middle
        if off < 0:
            low, below = middle, off
            above, side = (above / 2 if side < 0 else above), -1
        else:
            high, above = middle, off
            below, side = (below / 2 if side > 0 else below), 1
    return (low + high) / 2


def _tail(hazards: Sequence[float]) -> float:
    """Return the conditional acceptance over the last half of the positions, of all steps."""
    p = (1.0, *unconditional_rates(hazards))
    half = len(hazards) // 2
    reached = sum(p[half:-1])
    return sum(p[half + 1 :]) / reached if reached > 0 else 0.0


def _geometric(x: float, count: int) -> float:
    """Return x + x² + … + x^count, for 0 ≤ x ≤ 1."""
    return x * (1 - x**count) / (1 - x) if x < 1 else float(count)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
