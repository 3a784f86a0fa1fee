"""Which trials are on the Pareto front, and how much faster than the baseline they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Direction = Literal["maximize", "minimize"]


def front_numbers(
    values: Mapping[int, Sequence[float]], directions: Sequence[Direction]
) -> set[int]:
    """Return the numbers of the trials that no other trial dominates: the Pareto front.

    A trial dominates another if it is at least as good in every objective and better in one.
    Trials with equal values are all on the front.

    Args:
        values: Objective values by trial number, each of length ``len(directions)``.
        directions: Better direction of each objective.

    >>> sorted(front_numbers({0: (98, 2.0), 1: (110, 2.4), 2: (99, 2.5)}, ("maximize", "minimize")))
    [0, 1]
    """
    if not values:
        return set()
    numbers = list(values)
    sign = np.array([-1.0 if d == "maximize" else 1.0 for d in directions])
    costs = np.array([values[k] for k in numbers], dtype=float) * sign  # less is better
    no_worse = (costs[:, None, :] <= costs[None, :, :]).all(axis=2)
    better = (costs[:, None, :] < costs[None, :, :]).any(axis=2)
    dominated = (no_worse & better).any(axis=0)
    return {k for k, d in zip(numbers, dominated, strict=True) if not d}


def baseline_speedup(throughput: float | None, baseline: float | None) -> float | None:
    """Return the throughput over the baseline's; None where one of the two is unknown."""
    if throughput is None or not baseline:
        return None
    return throughput / baseline
