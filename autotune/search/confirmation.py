"""The plan of the confirmation: which points are launched again, and in which order.

====  =============================================================================================
term  meaning
====  =============================================================================================
gain  logarithm of an objective with the sign that makes more better; the last one is their sum
rule  what is chosen by: one objective's gain, or the sum
====  =============================================================================================

The best of many single launches is also the one with the best chance deviation. Therefore
candidates are launched again, forwards and backwards (A B C A A C B A). A machine that becomes
slower or faster then affects all of them equally, and the mean of the paired differences is the
difference of the means. Removing the rounds from the scatter as well was tried: at 4 to 8 launches
the lost degrees of freedom widen the interval by 7 to 30 % on a steady machine, and the gain is at
most 10 % on a drifting one. Eight launches have three candidates. With 2, 3 and 4 candidates the
choice was within 2 % of the best in 95, 91 and 88 % of the replays on one measured grid, and in 83,
91 and 95 % on another. Each further candidate widens the speed-up's interval by a fifth to a
quarter. Remaining launches go to the baseline, because every speed-up refers to it (C. W. Dunnett,
"A multiple comparison procedure for comparing several treatments with a control", Journal of the
American Statistical Association 50, 1955: with k others, √k times as many launches as each of them
are best).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

import numpy as np

from autotune.search.front import Direction
from autotune.stats.measurement import Floats

# Launches of a point by its trial number, in the order they ran: one value for each objective.
Launches = Mapping[int, Sequence[Sequence[float]]]


def plan(
    searched: Launches,
    directions: Sequence[Direction],
    baseline: int | None,
    held: int,
    *,
    leader: int | None = None,
    most: int | None = None,
) -> list[int]:
    """Return the trial numbers of the ``held`` launches of the confirmation, in their order.

    Candidates are the baseline, the leader, the best by each objective, the balanced choice, and
    then the next best by its rule.

    Args:
        searched: Launches of every point of the search; a point is named by one of its trials.
        directions: Better direction of each objective.
        baseline: Trial that all are compared with; None: there is none with values.
        held: Number of launches.
        leader: Trial of the point that the search's model takes for the best; None: it has none.
        most: Largest number of candidates. None: 2 for 4 launches, 3 for 6 to 8, 4 for more; with
            three objectives also 4 for 8, for the baseline and the best by each.

    Raises:
        ValueError: a value is not positive.
    """
    if not searched:
        return []
    numbers = np.array(list(searched))
    gains = np.array([gains_of(x, directions).mean(axis=0) for x in searched.values()])
    order = [baseline] if baseline is not None and baseline in searched else []
    order += [leader] if leader is not None and leader in searched else []
    order += [int(n) for n in numbers[gains.argmax(axis=0)]]
    order += [int(n) for n in numbers[np.argsort(-gains[:, -1], kind="stable")]]
    if most is None:
        enough = max(math.ceil(held / 4) + 1, len(directions) + 1)
        most = max(2, min(held // 2, enough, 4))
    chosen = list(dict.fromkeys(order))[:most]
    if held < 3:
        return chosen[:held]
    there = list(islice(cycle(chosen), math.ceil(held / 2)))
    return [*there, *reversed(there[: held // 2])]


def sign_of(direction: Direction) -> int:
    """Return the sign that makes more of an objective better."""
    return 1 if direction == "maximize" else -1


def gains_of(launches: Sequence[Sequence[float]], directions: Sequence[Direction]) -> Floats:
    """Return the gains, of shape (launches, objectives + 1); the last column is their sum.

    Raises:
        ValueError: a value is not positive.
    """
    values = np.array(launches, dtype=np.float64)
    if not (values > 0).all():
        raise ValueError("only positive objective values can be compared as ratios")
    gains = np.log(values) * [sign_of(d) for d in directions]
    return np.column_stack([gains, gains.sum(axis=1)])
