"""Tokens per second for a draft of another quality, given as its acceptance length.

=======  ==========================================================================================
symbol   meaning
=======  ==========================================================================================
n        tokens drafted per step
h_i(n)   conditional acceptance of position i: probability that it is accepted if all before it were
E(n)     acceptance length: tokens per step, 1 + Σ h_1 · … · h_i
T(n)     time of a step
δ        shift of all conditional acceptances on the logit scale
=======  ==========================================================================================

    logit h'_i(n) = logit h_i(n) + δ        rate'(n) = E'(n) / T(n)

A better draft has a higher E at the same n, and the question is what its other n give. One number
cannot say that, so a family of curves through the measured one has to be chosen. Here δ is the same
for all positions and all n: the odds of every conditional acceptance are multiplied by the same
factor, as in a logistic model with one coefficient for the draft (D. R. Cox, "The Regression
Analysis of Binary Sequences", 1958). δ is the one with which E'(n) at a chosen n is the wanted
length. It exists and is unique, because E' rises strictly with δ.

The family keeps inside what a curve can do. No conditional acceptance reaches 1, and one that is
high already gains little: a factor on h_i itself would reach 1 at all positions, where each step
yields n + 1 tokens. Positions that were never accepted stay so, and limit E'.

The time of a step is that of the measured draft, so it holds for a draft of the same size. What is
predicted has at least the error of :class:`autotune.search.acceptance.Prediction`, and more the
further the length is from the measured one, since the shape of the curve is an assumption.

**Latency.** In a closed loop of C requests the mean time of a request is C · tokens / rate (J. D.
C. Little, "A Proof for the Queuing Formula: L = λW", Operations Research 9, 1961). A percentile is
taken to be the same multiple of that mean as in the launches: latency · rate is one constant, the
median over the launches that draft. Where nothing is drafted it is that of the launches without.

All functions are pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autotune.search.acceptance import Prediction
from autotune.stats import quantiles
from autotune.stats.acceptance_curve import unconditional_rates

_MOST_SHIFT = 40.0  # |δ|: an acceptance of 1e-12 then counts as certain, and the other way round


@dataclass(frozen=True)
class AtN:
    """One n with a draft of another quality.

    Attributes:
        n: Tokens drafted per step.
        tokens_per_step: E'(n).
        rate: E'(n) / T(n), in the unit of the launches' rate.
    """

    n: int
    tokens_per_step: float
    rate: float


@dataclass(frozen=True)
class WhatIf:
    """Every n for a draft of another quality, and the best one.

    Attributes:
        length: Acceptance length of the draft at ``at_n``.
        at_n: The n of that length.
        shift: δ; 0: the measured draft.
        by_n: Every n to choose from, ascending.
        best: The fastest n; of equally fast ones the smallest.
        per_position: P(accept ≥ i) for i = 1 … n at the best n.
        speedup: Rate over that of n = 0, which no draft changes; None: n = 0 was not launched.
    """

    length: float
    at_n: int
    shift: float
    by_n: tuple[AtN, ...]
    best: AtN
    per_position: tuple[float, ...]
    speedup: float | None


def what_if(prediction: Prediction, length: float | None, at_n: int, ns: Iterable[int]) -> WhatIf:
    """Return what a draft with another acceptance length gives at every n; see the module.

    Args:
        prediction: Prediction by the measured launches.
        length: Acceptance length at ``at_n``; None: as measured.
        at_n: The n of the length, at least 1.
        ns: The n to choose from.

    Raises:
        ValueError: no draft of the family has such a length, ``at_n`` is below 1, or there is no n.
    """
    if at_n < 1:
        raise ValueError(f"an acceptance length is that of an n of at least 1, not of n = {at_n}")
    wanted = sorted(set(ns))
    if not wanted:
        raise ValueError("there is no n to choose from")
    shift = 0.0 if length is None else shift_of(prediction.hazards(at_n), length)

    def curve(n: int) -> tuple[float, ...]:
        return unconditional_rates(shifted(prediction.hazards(n), shift))

    def tokens(n: int) -> float:
        return prediction.tokens_per_step(n) if shift == 0 else 1 + math.fsum(curve(n))

    by_n = tuple(AtN(n, e := tokens(n), e / prediction.step_time(n)) for n in wanted)
    best = max(by_n, key=lambda x: x.rate)
    base = prediction.rate(0) if prediction.baseline_launched else None
    return WhatIf(
        length=tokens(at_n),
        at_n=at_n,
        shift=shift,
        by_n=by_n,
        best=best,
        per_position=curve(best.n),
        speedup=None if base is None else best.rate / base,
    )


def shifted(conditional: Iterable[float], shift: float) -> tuple[float, ...]:
    """Return conditional acceptances shifted on the logit scale; 0 and 1 stay as they are."""
    odds = math.exp(shift)
    return tuple(h * odds / (1 - h + h * odds) for h in conditional)


def shift_of(conditional: Sequence[float], length: float) -> float:
    """Return the shift δ with which conditional acceptances have a length.

    Raises:
        ValueError: no shift gives this length, because it is at or outside of the limits.
    """

    def at(shift: float) -> float:
        return 1 + math.fsum(unconditional_rates(shifted(conditional, shift)))

    low, high = -_MOST_SHIFT, _MOST_SHIFT
    if not at(low) < length < at(high):  # nor NaN
        n, (least, most) = len(conditional), limits(conditional)
        raise ValueError(
            f"acceptance length {length:g} at n = {n} is not between {least} and {most}, which "
            "this draft can only come near to: positions that are never, or always, accepted stay "
            "so, and no draft of n has more than n + 1"
        )
    return quantiles.root(lambda shift: at(shift) - length, low, high)


def limits(conditional: Sequence[float]) -> tuple[int, int]:
    """Return the lengths that no shift reaches, the lower and the upper one.

    >>> limits((1.0, 0.7, 0.5, 0.0))
    (2, 4)
    """
    positions = len(conditional)
    always = next((i for i, h in enumerate(conditional) if h < 1), positions)
    never = next((i for i, h in enumerate(conditional) if h <= 0), positions)
    return 1 + always, 1 + never


def usual_lengths(measured: float, least: float, most: float) -> list[float]:
    """Return round lengths around a measured one: the next below it and three above it.

    >>> usual_lengths(4.5, 1, 16)
    [4.0, 5.0, 5.5, 6.0]

    Args:
        measured: The measured acceptance length, which is left out.
        least: The lower limit of the lengths.
        most: The upper limit; no length is in its last tenth.
    """
    step = 0.5 if measured < 6 else 1.0
    low, high = least + 0.1, most - 0.1 * (most - least)
    below = [x for x in _multiples(step, most) if low <= x <= measured - step / 4]
    above = [x for x in _multiples(step, most) if measured + step / 4 <= x <= high]
    return [*below[-1:], *above[:3]]


def _multiples(step: float, most: float) -> list[float]:
    return [i * step for i in range(1, math.ceil(most / step))]


def latency_constants(launches: Iterable[tuple[int, float, float]]) -> dict[bool, float]:
    """Return latency · rate of launches with drafts (True) and without (False); see the module.

    Args:
        launches: n, rate, and latency of each launch, the latency in any unit.
    """
    found: dict[bool, list[float]] = {}
    for n, rate, latency in launches:
        found.setdefault(n > 0, []).append(rate * latency)
    return {drafts: statistics.median(values) for drafts, values in found.items()}


def latency_of(constants: Mapping[bool, float], n: int, rate: float) -> float | None:
    """Return the latency of an n at a rate; None: no launch of its kind tells.

    Args:
        constants: Result of :func:`latency_constants`.
        n: Tokens drafted per step.
        rate: Its rate, positive.
    """
    known = constants.get(n > 0)
    return None if known is None else known / rate
