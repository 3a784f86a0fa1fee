"""The plan of the confirmation: which points are launched again, and in which order.

====  =============================================================================================
term  meaning
====  =============================================================================================
gain  logarithm of an objective with the sign that makes more better; the last one is their sum
rule  what is chosen by: one objective's gain, or the sum
====  =============================================================================================

The best of many single launches is also the one with the best chance deviation. Therefore
candidates are launched again, forwards and backwards (A B C C B A). A machine that becomes
slower or faster then affects all of them equally, and the mean of the paired differences is the
difference of the means. Removing the rounds from the scatter as well was tried: at 4 to 8 launches
the lost degrees of freedom widen the interval by 7 to 30 % on a steady machine, and the gain is at
most 10 % on a drifting one. Eight launches begin with three candidates: each further one widens the
speed-up's interval by a fifth to a third (``benchmarks/selection_bias.py``). Remaining launches are
planned later, by :mod:`autotune.search.confirmation_steps`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

import numpy as np

from autotune.search.front import Direction
from autotune.search.places import Places
from autotune.stats.measurement import Floats
from autotune.stats.slot_effects import Layout, SlotFit, effects

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
    """Return the trial numbers of the first launches of a confirmation on one slot, in their order.

    They are its first step; :func:`autotune.search.confirmation_steps.next_step` plans the others.
    The arguments are those of :func:`candidates_of`.

    Raises:
        ValueError: a value is not positive.
    """
    found = candidates_of(searched, directions, baseline, held, leader=leader, most=most)
    return first_step(found, held)


def candidates_of(
    searched: Launches,
    directions: Sequence[Direction],
    baseline: int | None,
    held: int,
    *,
    leader: int | None = None,
    most: int | None = None,
    places: Places | None = None,
) -> list[int]:
    """Return the trial numbers of what a confirmation launches first, the most important one first.

    Candidates are the baseline, the leader, the best by each objective, the balanced choice, and
    then the next best by its rule.

    Args:
        searched: Launches of every point of the search; a point is named by one of its trials.
        directions: Better direction of each objective.
        baseline: Trial that all are compared with; None: there is none with values.
        held: Number of launches.
        leader: Trial of the point that the search's model takes for the best; None: it has none.
        most: Largest number of candidates. None: 2 for 4 launches, 3 for 6 to 11, 4 for more; with
            three objectives 4 from 8 on, for the baseline and the best by each. With 4 or 5
            launches a leader that is not the best by the first objective is one more.
        places: Where the launches were; of several slots, how they differ is taken out. None: on
            one slot.

    Raises:
        ValueError: a value is not positive.
    """
    if not searched:
        return []
    numbers = np.array(list(searched))
    if places is not None and places.several:
        gains = typical_gains(searched, places.searched, directions)
    else:
        gains = np.array([gains_of(x, directions).mean(axis=0) for x in searched.values()])
    order = [baseline] if baseline is not None and baseline in searched else []
    order += [leader] if leader is not None and leader in searched else []
    order += [int(n) for n in numbers[gains.argmax(axis=0)]]
    order += [int(n) for n in numbers[np.argsort(-gains[:, -1], kind="stable")]]
    if most is None:
        enough = max(held // 4 + 1, 3, len(directions) + 1)
        most = max(2, min(held // 2, enough, 4))
        best = int(numbers[gains[:, 0].argmax()])
        most += held in (4, 5) and leader in order and leader not in (baseline, best)
    return list(dict.fromkeys(order))[:most]


def step_of(candidates: Sequence[int], left: int) -> list[int]:
    """Return the launches of the next step, there and back.

    Args:
        candidates: The most important ones first, if there are too few launches for all.
        left: Number of launches that are left. Where one would remain, it belongs to this step.
    """
    count = len(candidates)
    length = min(left, 2 * count)
    if left < 2 * count:
        count = max(min(count, left // 2), min(count, 2))
    elif left == 2 * count + 1:
        length = left
    chosen = candidates[:count]
    if length < 3:
        return list(islice(cycle(chosen), length))
    there = list(islice(cycle(chosen), math.ceil(length / 2)))
    return [*there, *reversed(there[: length // 2])]


def first_step(candidates: Sequence[int], left: int) -> list[int]:
    """Return the launches of a confirmation's first step on one slot, there and back.

    Of three candidates all are launched also where 4 or 5 launches do not suffice for two of each:
    A B C A, or A B C B A. On several slots these are two blocks, each with the first candidate: A B
    and C A, or A B C and B A.

    Args:
        candidates: As for :func:`step_of`.
        left: As for :func:`step_of`.
    """
    if thin(candidates, left):
        return [*candidates, *reversed(candidates[: left - len(candidates)])]
    return step_of(candidates, left)


def thin(candidates: Sequence[int], left: int) -> bool:
    """Return whether a first step has one launch only of some of its three candidates."""
    return len(candidates) == 3 and left in (4, 5)


def passes_of(candidates: Sequence[int], left: int, slots: int) -> list[list[int]]:
    """Return the launches of the next step on several slots: a block for each of them.

    A block is one pass over the candidates, there (A B C) or back (C B A). It stays on one slot, so
    that how slots differ is no part of a difference within it. Blocks run at the same time.

    Args:
        candidates: As for :func:`step_of`.
        left: Number of launches that are left. Where one would remain, it belongs to this step.
        slots: Number of slots, two at least.
    """
    if not candidates:
        return []
    count = len(candidates)
    if left < 2 * count:
        count = max(min(count, left // 2), min(count, 2))
    launches = min(left, max(slots, 2) * count)
    launches += left - launches == 1
    whole, rest = divmod(launches, count)
    sizes = [*[count] * whole, *([rest] if rest > 1 or not whole else [])]
    blocks = [list(candidates[:size]) for size in sizes]
    if whole and rest == 1:  # one launch alone has nothing next to it: A B A
        blocks[-1 if len(blocks) % 2 else -2].append(candidates[0])
    return [block[::-1] if i % 2 else block for i, block in enumerate(blocks)]


def typical_gains(
    launches: Launches, places: Mapping[int, Sequence[str]], directions: Sequence[Direction]
) -> Floats:
    """Return each point's gains on a typical slot, of shape (points, objectives + 1).

    Args:
        launches: Launches of each point.
        places: Where they were.
        directions: Better direction of each objective.

    Raises:
        ValueError: a value is not positive.
    """
    y = np.concatenate([gains_of(x, directions) for x in launches.values()])
    layout = layout_of(launches, places)
    fits = (SlotFit.at(c, layout, effects(c, layout).ratio).weights @ c for c in y.T)
    return np.column_stack([*fits])


def layout_of(launches: Launches, places: Mapping[int, Sequence[str]]) -> Layout:
    """Return which launch is of which point and slot, in the order of the mappings."""
    points = [k for k, x in launches.items() for _ in x]
    return Layout.of(points, [place for k in launches for place in places[k]])


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
