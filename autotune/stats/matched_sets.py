"""Whether one server's answers score higher than another's to the same prompts, exactly.

======  ===========================================================================================
symbol  meaning
======  ===========================================================================================
N       number of prompts
L, M    number of launches of the reference and of the tested server
x_pj    score of launch j's answer to prompt p, a whole number of 0 or more
S       sum of the scores of the tested launches over all prompts
ρ       how many times as often the tested launches have an event, for a reason that is no fault
τ       standard deviation of the logarithm of a launch's rate of events
======  ===========================================================================================

**Permutation by prompt.** If both servers write the same, the L + M answers to a prompt are
exchangeable, however long they are and however the tokens within one depend on each other. So given
the scores, each choice of M answers out of the L + M is equally likely the tested server's, in each
prompt on its own (R. A. Fisher, "The Design of Experiments", 1935, §21). S is then a sum of N
independent variables whose distributions are known; their convolution is the distribution of S
without any simulation (M. Pagano, D. Tritchler, "On obtaining permutation distributions in
polynomial time", Journal of the American Statistical Association 78, 1983). The test holds its
level for every N and every distribution of scores, also where nearly all scores are 0.

**Launches.** What a launch has in common over all prompts is not exchangeable by prompt. With a few
launches a permutation of whole launches could never reject: of L + M = 3 its smallest p is 1/3. So
how much launches differ has to be assumed in part. The answers are no longer equally likely the
tested server's, but with weights, as in the sensitivity analysis of matched sets (P. R. Rosenbaum,
"Sensitivity analysis for certain permutation inferences in matched observational studies",
Biometrika 74, 1987):

- counts of events: weight ρ^x. It is exact for Poisson counts of rate ρ, and conservative where
  events come in clusters.
- the largest of an answer's events: weight [H(x)^ρ - H(x-)^ρ] / [H(x) - H(x-)], with H the share
  of all answers up to x. It is exact where events are Poisson, ρ times as many, and of the same
  sizes (E. L. Lehmann, "The power of rank tests", Annals of Mathematical Statistics 24, 1953).
  Before that the tested server's events are divided by √ρ, because what makes events more frequent
  makes them larger, too.

The p value is the mean over ρ, with log ρ = τ √(1/L + 1/M) t and Student's t. τ² pools an
assumption that counts for :data:`PRIOR_DEGREES` degrees of freedom with what the reference launches
show, which is L - 1 degrees. For ρ below 1 that of ρ = 1 is taken, so the p value is never below
that of the permutation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.stats import quantiles
from autotune.stats.measurement import Floats

Ints = NDArray[np.int64]

USUAL_LAUNCHES = 0.25  # τ that is assumed before launches show it
PRIOR_DEGREES = 8  # degrees of freedom that this assumption counts for
MOST_STEPS = 1024  # of the distribution of S; finer scores are rounded
_FEWEST_EVENTS = 5  # of a launch, below which it says nothing of τ
# Tail probabilities of t at which ρ is taken
_TAILS = (0.5, 0.3, 0.15, 0.07, 0.035, 0.017, 0.008, 0.004, 0.002, 0.001, 2e-4, 2e-5)


@dataclass(frozen=True)
class LaunchEffect:
    """What is assumed of launches that are equal but for chance.

    Attributes:
        tau: Standard deviation of the logarithm of a launch's rate of events.
        degrees: Degrees of freedom of ``tau``.
    """

    tau: float = USUAL_LAUNCHES
    degrees: int = PRIOR_DEGREES

    def ratios(self, reference: int, tested: int) -> Floats:
        """Return the ρ of the integration, ascending from 1, for numbers of launches L and M."""
        scale = self.tau * math.sqrt(1 / reference + 1 / tested)
        t = [quantiles.student_t(self.degrees, 1 - tail) for tail in _TAILS]
        return np.exp(scale * np.array(t))


def estimate_launch_effect(counts: Ints) -> LaunchEffect:
    """Return the launch effect of the reference launches, pooled with what is assumed.

    The variance of the launches' logarithms, less what the prompts explain, is at least 0.

    Args:
        counts: Events of each answer of the reference; shape (prompts, launches).
    """
    totals = counts.sum(axis=0)
    launches = counts.shape[1]
    if launches < 2 or totals.min() < _FEWEST_EVENTS:
        return LaunchEffect()
    apart = counts - counts.mean(axis=1, keepdims=True)
    within = float((apart**2).sum()) / (launches - 1) / float(totals.mean()) ** 2
    between = max(0.0, float(np.var(np.log(totals), ddof=1)) - within)
    degrees = PRIOR_DEGREES + launches - 1
    pooled = PRIOR_DEGREES * USUAL_LAUNCHES**2 + (launches - 1) * between
    return LaunchEffect(math.sqrt(pooled / degrees), degrees)


def whole_scores(values: Floats) -> Ints:
    """Return values as whole numbers of 0 or more, so fine that S has :data:`MOST_STEPS` steps.

    Args:
        values: Scores; shape (prompts, launches).
    """
    spread = float(np.ptp(values, axis=1).sum())
    if spread == 0:
        return np.zeros(values.shape, dtype=np.int64)
    scaled = (values - values.min()) * (MOST_STEPS / spread)
    return np.asarray(np.rint(scaled), dtype=np.int64)


def count_p_value(counts: Ints, reference: int, effect: LaunchEffect | None) -> float:
    """Return the probability of as many events of the tested launches, or more, without a fault.

    Args:
        counts: Events of each answer; shape (prompts, launches), the reference's launches first.
        reference: Number of the reference's launches.
        effect: What launches differ by; None: nothing.
    """
    scores = counts
    if np.ptp(counts, axis=1).sum() > MOST_STEPS:
        scores = whole_scores(counts.astype(np.float64))
    ratios = _ratios(counts, reference, effect)
    return _integrated(_tails(scores, reference, counts * np.log(ratios)[:, None, None]))


def largest_p_value(largest: Floats, reference: int, effect: LaunchEffect | None) -> float:
    """Return the probability of such large events of the tested launches without a fault.

    S is the sum of (1 - exp(-largest))³, which counts what is clearly too large as about one each,
    and hardly counts the rest.

    Args:
        largest: Largest event of each answer, 0 or more; shape (prompts, launches), the reference's
            launches first.
        reference: Number of the reference's launches.
        effect: What launches differ by; None: nothing.
    """
    tails = []
    for rho in _ratios(largest, reference, effect):
        alike = largest.copy()
        alike[:, reference:] /= math.sqrt(rho)
        scores = whole_scores((-np.expm1(-alike)) ** 3)
        tails += _tails(scores, reference, _largest_weights(alike, float(rho))[None])
    return _integrated(tails)


def _largest_weights(largest: Floats, rho: float) -> Floats:
    """Return the logarithms of the weights of the answers' largest events; see the module."""
    _, where, sizes = np.unique(largest, return_inverse=True, return_counts=True)
    share = sizes / max(largest.size, 1)
    upto = np.cumsum(share)
    weights = np.log((upto**rho - (upto - share).clip(0) ** rho) / share)
    return np.asarray(weights[where.reshape(largest.shape)])


def shift_p_value(values: Floats, reference: int) -> float:
    """Return the two-sided p value of a shift of the tested launches' scores, by permutation.

    Args:
        values: Score of each answer; shape (prompts, launches), the reference's launches first.
        reference: Number of the reference's launches.
    """
    scores = whole_scores(values)
    even = np.zeros((1, *values.shape))
    upper = _tails(scores, reference, even)[0]
    lower = _tails(scores.max(initial=0) - scores, reference, even)[0]
    return min(1.0, 2 * min(upper, lower))


def _ratios(scores: NDArray[Any], reference: int, effect: LaunchEffect | None) -> Floats:
    """Return the ρ to integrate over; 1 alone where launches are assumed not to differ."""
    if effect is None or effect.tau == 0:
        return np.ones(1)
    return effect.ratios(reference, scores.shape[1] - reference)


def _integrated(tails: Sequence[float]) -> float:
    """Return the mean over ρ of P(S is at least what it is), given it at each ρ; see the module.

    The probabilities between two ρ are taken as the mean of both; above the last it is 1.
    """
    if len(tails) == 1:
        return tails[0]
    total = (1 - _TAILS[0]) * tails[0] + _TAILS[-1]
    for (a, b), (p, q) in zip(itertools.pairwise(_TAILS), itertools.pairwise(tails), strict=True):
        total += (a - b) * (p + q) / 2
    return min(1.0, total)


def _tails(scores: Ints, reference: int, log_weights: Floats) -> list[float]:
    """Return P(S is at least what it is) for several weights of the answers.

    Args:
        scores: Whole numbers of 0 or more; shape (prompts, launches), the reference's first.
        reference: Number of the reference's launches.
        log_weights: Logarithms of the weights; shape (several, prompts, launches).
    """
    launches = scores.shape[1]
    choices = np.array(list(itertools.combinations(range(launches), launches - reference)))
    sums = scores[:, choices].sum(axis=2)
    sums -= sums.min(axis=1, keepdims=True)
    observed = int(sums[:, -1].sum())  # the last choice is the tested server's own launches
    logs = log_weights[:, :, choices].sum(axis=3)
    weights = np.exp(logs - logs.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    distribution = np.ones((len(weights), 1))
    for p in np.flatnonzero(sums.max(axis=1)):
        size = distribution.shape[1]
        wider = np.zeros((len(weights), size + int(sums[p].max())))
        for c, shift in enumerate(sums[p]):
            wider[:, shift : shift + size] += weights[:, p, c, None] * distribution
        distribution = wider
    return [min(1.0, float(x)) for x in distribution[:, observed:].sum(axis=1)]
