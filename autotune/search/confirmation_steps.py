"""The steps of the confirmation: what is launched next, by what its launches gave so far.

The held launches are spent in steps. Each step launches its candidates there and back
(A B C C B A), so a machine that steadily becomes slower or faster affects all of them equally.
After a step the verdict is asked. A candidate is dropped when by every rule the choice is better
than it with the probability :data:`autotune.search.confirmation_verdict.SURE`. The next step
launches the others and the baseline, to which every speed-up refers. If too few launches are left
for all of them, they go to the choices and their nearest rivals, because only those decide what is
a tie. (Dropping one by one: J.-Y. Audibert, S. Bubeck, R. Munos, "Best arm identification in
multi-armed bandits", COLT 2010; the leader and its nearest rival: S. Kalyanakrishnan et al., "PAC
subset selection in stochastic multi-armed bandits", ICML 2012.)

With several slots a step has a block for each of them: one pass over the candidates, there on one
slot and back on another at the same time, so that as many steps take less time. A block stays on
its slot. The next step is planned when all blocks have ended, so what decides on a drop is of whole
blocks.

A dropped candidate stays in the verdict, which weighs each point by its own number of launches. The
verdict's probability is a posterior, which stays valid where results decide on further launches.
``benchmarks/confirmation_power.py`` counts the errors of whole confirmations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

from autotune.search.confirmation import Launches, first_step, passes_of, step_of, thin
from autotune.search.confirmation_verdict import SURE, Choice, verdict
from autotune.search.front import Direction
from autotune.search.places import Places
from autotune.search.spending import Dropped, Spending


def next_step(
    so_far: Spending,
    confirmed: Launches,
    searched: Launches,
    directions: Sequence[Direction],
    baseline: int | None,
    *,
    slots: int = 1,
    places: Places | None = None,
) -> Spending:
    """Return a confirmation with its next step.

    It depends on nothing but the arguments, so a resumed run goes on in the same way.

    Args:
        so_far: Its steps so far, of which all launches have ended. Without any it begins with those
            of ``confirmed`` that are still in question.
        confirmed: Launches of all confirmations that gave numbers, by the trial that was measured
            again.
        searched: As in :func:`autotune.search.confirmation.candidates_of`.
        directions: Better direction of each objective.
        baseline: As in :func:`autotune.search.confirmation.candidates_of`.
        slots: Number of slots that launch at the same time.
        places: Where the launches were; None: on one slot.
    """
    known = {k: x for k, x in confirmed.items() if x and k in searched}
    try:
        found = verdict(known, searched, directions, baseline, places)
    except ValueError:  # a launch gave a value that makes no ratio
        found = None
    choices = () if found is None else (*found.winners, found.balanced)
    every = list(dict.fromkeys([*(so_far.order or known), *(c.number for c in choices)]))
    live = [k for k in every if k not in so_far.dropped]
    if not choices:
        return with_step(so_far, live, slots)
    dropped = {
        k: why for k in live if (why := _why_dropped(k, known, choices, baseline)) is not None
    }
    near = {k: _nearness(k, choices) for k in known}
    # of equally near ones, the choice by the first objective is never left out
    rank = {c.number: i for i, c in reversed(list(enumerate(choices)))}
    order = {k: (-near.get(k, 0.0), rank.get(k, len(choices))) for k in live}
    live = sorted((k for k in live if k not in dropped), key=order.__getitem__)
    if len(live) < 2:  # one alone cannot be compared
        others = [k for k in known if k not in live and k in every]
        again = max(others, key=lambda k: near[k], default=None)
        if again is not None:
            live.append(again)
    gone = {k: why for k, why in {**so_far.dropped, **dropped}.items() if k not in live}
    return with_step(replace(so_far, dropped=gone), live or every, slots)


def with_step(so_far: Spending, candidates: Sequence[int], slots: int) -> Spending:
    """Return a confirmation with one more step.

    Args:
        so_far: Its steps so far.
        candidates: What is launched, the most important one first.
        slots: Number of slots that launch at the same time.
    """
    left = so_far.held - len(so_far.order)
    if not so_far.order and thin(candidates, left):
        once = first_step(candidates, left)
        half = len(once) if slots == 1 else (len(once) + 1) // 2  # the first is in both halves
        blocks = [block for block in (once[:half], once[half:]) if block]
    else:
        blocks = [step_of(candidates, left)] if slots == 1 else passes_of(candidates, left, slots)
    order = [*so_far.order, *chain.from_iterable(blocks)]
    if slots == 1 and not so_far.blocks:
        return replace(so_far, order=order)
    before = so_far.blocks or ((len(so_far.order),) if so_far.order else ())
    return replace(so_far, order=order, blocks=(*before, *map(len, blocks)))


def _why_dropped(
    number: int, known: Launches, choices: Sequence[Choice], baseline: int | None
) -> Dropped | None:
    """Return why a candidate is launched no more; None: it is still in question."""
    if number not in known:
        return Dropped(0)
    if number == baseline:
        return None
    lowest, better = 2.0, -1
    for choice in choices:
        chance = None if number == choice.number else choice.chances.get(number)
        if chance is None or chance < SURE:
            return None
        if chance < lowest:
            lowest, better = chance, choice.number
    return Dropped(len(known[number]), better, round(lowest, 4))


def _nearness(number: int, choices: Sequence[Choice]) -> float:
    """Return how near a candidate is to being the best by any rule: 1 for a choice itself."""

    def by(chances: Mapping[int, float | None]) -> float:
        chance = chances.get(number)
        return 0.5 if chance is None else 1 - chance

    return max(1.0 if number == c.number else by(c.chances) for c in choices)
