"""What is odd in how many drafted tokens a server accepts.

======  ===========================================================================================
symbol  meaning
======  ===========================================================================================
i       position in the draft, from 1
d, c_i  number of drafts; number of those whose token at position i was accepted
a_i     conditional rate c_i / c_(i-1), with c_0 = d
β       level of each comparison
k       number of tokens that count as one, because those of one request are similar
======  ===========================================================================================

- A conditional rate is odd if it is exactly 1, or 0, and its interval lies above 99 %, or below 1 %
  (:data:`SELDOM`). The bound is exact for c = 0 or c = d (C. J. Clopper, E. S. Pearson, "The use of
  confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26, 1934):
  β^(1/d), so 459 drafts are enough at β = 1 %. The unconditional rate of a late position may well
  be near 0, so it is not judged.
- A conditional rate is far from another launch's if the two differ by more than :data:`APART` and
  by more than chance explains: two proportions, with numbers divided by k
  (A. Agresti, B. Caffo, "Simple and effective confidence intervals for proportions and differences
  of proportions", The American Statistician 54, 2000, with one success and one failure added to
  each).

Either says that something is wrong with the draft or that texts differ, not that the output is:
text that repeats itself is accepted whole, and a draft that is never accepted costs time only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from autotune.stats import quantiles

SELDOM = 0.01
APART = 0.1
LEVEL = 0.01  # β, for all comparisons together
ALIKE = 4  # k
FEWEST = 100  # drafts that reached a position, in both launches, below which it is not compared


class Oddity(StrEnum):
    """What is odd in an acceptance."""

    ALL = "all accepted"
    NONE = "none accepted"
    FAR = "far from the other launch"


@dataclass(frozen=True)
class DraftCounts:
    """Drafts of a launch.

    Attributes:
        drafts: Number of drafts.
        accepted: Number of drafts whose token at position 1, 2, … was accepted, and so all before.

    Raises:
        ValueError: a number is negative or above the one before it.
    """

    drafts: int
    accepted: tuple[int, ...]

    def __post_init__(self) -> None:
        reached = (self.drafts, *self.accepted)
        for i, (before, here) in enumerate(itertools.pairwise(reached), 1):
            if not 0 <= here <= before:
                raise ValueError(f"{here} of {before} drafts accepted at position {i}")

    @classmethod
    def of_shares(cls, drafts: int, shares: Sequence[float]) -> DraftCounts:
        """Return the counts of a launch of which only shares of its drafts were kept.

        A position has at most the count of the one before it: counters that are read while drafts
        are being counted may say one more.

        Args:
            drafts: Number of drafts.
            shares: Share of the drafts whose token at position 1, 2, … was accepted, from 0 to 1.
        """
        accepted = itertools.accumulate((round(x * drafts) for x in shares), min, initial=drafts)
        return cls(drafts, tuple(accepted)[1:])


@dataclass(frozen=True)
class Odd:
    """One odd rate.

    Attributes:
        position: Position in the draft, from 1.
        oddity: What is odd.
        rate: Conditional rate of the launch.
        drafts: Number of drafts that reached the position.
        expected: Conditional rate of the other launch; None where there is no comparison.
    """

    position: int
    oddity: Oddity
    rate: float
    drafts: int
    expected: float | None = None


def check_acceptance(
    launch: DraftCounts, other: DraftCounts | None = None, level: float = LEVEL
) -> tuple[Odd, ...]:
    """Return what is odd in a launch's acceptance; see the module.

    Args:
        launch: The launch to judge.
        other: Another launch of the same point, such as the search's; None: no comparison.
        level: Probability of anything odd in the comparison although both are equal, over all
            positions.
    """
    found = []
    compared = [] if other is None else list(_reached(other))
    each = level / max(len(launch.accepted), 1)
    for i, (reached, accepted) in enumerate(_reached(launch)):
        if not reached:
            break
        rate = accepted / reached
        if rate in (0.0, 1.0) and each ** (1 / reached) >= 1 - SELDOM:
            found.append(Odd(i + 1, Oddity.ALL if rate else Oddity.NONE, rate, reached))
        if i < len(compared) and _far((reached, accepted), compared[i], each):
            of_other = compared[i][1] / compared[i][0]
            found.append(Odd(i + 1, Oddity.FAR, rate, reached, of_other))
    return tuple(found)


def _reached(counts: DraftCounts) -> list[tuple[int, int]]:
    """Return the drafts that reached each position, and those accepted there."""
    return list(zip((counts.drafts, *counts.accepted), counts.accepted, strict=False))


def _far(a: tuple[int, int], b: tuple[int, int], level: float) -> bool:
    """Return whether two numbers of drafts, with those accepted, have different rates."""
    if min(a[0], b[0]) < FEWEST:
        return False
    shares, variances = [], []
    for reached, accepted in (a, b):
        size = reached / ALIKE + 2
        share = (accepted / ALIKE + 1) / size
        shares.append(share)
        variances.append(share * (1 - share) / size)
    apart = abs(shares[0] - shares[1])
    return apart > APART and apart > quantiles.normal(1 - level / 2) * math.sqrt(sum(variances))
