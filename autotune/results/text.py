"""Words for values: numbers, intervals, points of a space, and text that others wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autotune.study.space import MNBT, N, Point, Value

if TYPE_CHECKING:
    from objectives import Objective

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\].*?(?:\x07|\x1b\\)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# Low and high, in the unit of the value; None where there are too few requests for that bound.
Bounds = tuple[float | None, float | None]


def plain(text: str) -> str:
    """Text of a log, a model or a user on one line, without colour codes and control characters."""
    return _CONTROL.sub(" ", _ANSI.sub("", text))


def number(value: float) -> str:
    """Three to four digits that mean something: 2361, 110.3, 98.1, 1.88."""
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{digits}f}"


def value_text(value: Value) -> str:
    """A parameter's value in words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else plain(str(value))


def point_text(point: Point) -> str:
    """A point in one line.

    >>> point_text({"num_speculative_tokens": 3, "max_num_batched_tokens": 512})
    'n = 3, MNBT 512'
    """
    return ", ".join(
        f"n = {value_text(value)}"
        if name == N
        else f"MNBT {value_text(value)}"
        if name == MNBT
        else f"{plain(name)} = {value_text(value)}"
        for name, value in point.items()
    )


def objective_text(objective: Objective) -> str:
    """An objective with its unit: ``output throughput (tok/s)``."""
    return f"{plain(objective.title)} ({plain(objective.unit)})"


def bounds_text(bounds: Bounds) -> str:
    """An interval: ``[105.0, 114.2]``, with ? for a bound that too few requests leave open."""
    low, high = ("?" if x is None else number(x) for x in bounds)
    return f"[{low}, {high}]"


def value_with_interval(value: float, interval: Bounds | None, objective: Objective) -> str:
    """A value in its unit, with its interval where there is one: ``110 tok/s [105, 114]``."""
    text = f"{number(value)} {plain(objective.unit)}"
    return f"{text} {bounds_text(interval)}" if interval else text


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, neighbours joined: ``0 to 3, 7``."""
    runs: list[list[int]] = []
    for k in numbers:
        if runs and k == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], k]
        else:
            runs.append([k])
    return ", ".join(" to ".join(map(str, run)) for run in runs)
