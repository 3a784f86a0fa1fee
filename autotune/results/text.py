"""Words for values: numbers, intervals, plurals, durations, wrapped lines, and others' text.

All displayed values are formatted here: in tables of the terminal, in the report, the dashboard,
figures and comments of exported files. So a number has the same digits everywhere.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from autotune.study.space import ARM, MNBT, N, Point, Value

if TYPE_CHECKING:
    from autotune.stats import Estimate
    from objectives import Objective

# Columns of a terminal, and of comments in files.
WIDTH = 80

# Headings of the parameters that have a column; any other parameter keeps its name.
HEADINGS = {ARM: "arm", N: "n", MNBT: "MNBT"}

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\].*?(?:\x07|\x1b\\)")
# Control characters, and halves of surrogate pairs, which no terminal's encoding can write.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NBSP = "\xa0"

# Spaces at which :func:`wrapped` breaks no line: in ``n = 8`` and ``MNBT 512``; in ``[1.2, 3.4]``
# and ``5 %``, too.
HELD = re.compile(r" (?== )|(?<= =) |(?<=MNBT) ")
HELD_INTERVALS = re.compile(rf"{HELD.pattern}| (?=[^\s\[\]]+\])| (?=%)")

# Low and high, in the unit of the value; None: there are too few requests for that bound.
Bounds = tuple[float | None, float | None]


# -- text of others ------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Return others' text on one line, without color codes and control characters.

    Use it for every text that a log, a model or a user wrote.
    """
    return _CONTROL.sub(" ", _ANSI.sub("", text))


def shortened(line: str, width: int = WIDTH) -> str:
    """Return a line cut to a width, with … where it was cut."""
    return line if len(line) <= width else line[: width - 1] + "…"


def wrapped(
    text: str,
    width: int = WIDTH,
    *,
    indent: str = "",
    hanging: str | None = None,
    held: re.Pattern[str] = HELD,
    long_words: bool = True,
    hyphens: bool = False,
) -> list[str]:
    """Return a text as lines of at most ``width`` columns.

    Args:
        text: Others' text; control characters become spaces.
        width: Number of columns.
        indent: Beginning of the first line.
        hanging: Beginning of every other line; ``indent``, if None.
        held: Spaces at which no line is broken.
        long_words: Break words that are longer than a line.
        hyphens: Break after hyphens.
    """
    lines = textwrap.wrap(
        held.sub(_NBSP, plain(text)),
        width,
        initial_indent=indent,
        subsequent_indent=indent if hanging is None else hanging,
        break_long_words=long_words,
        break_on_hyphens=hyphens,
    )
    return [line.replace(_NBSP, " ") for line in lines]


def markdown(text: str) -> str:
    """Return others' text so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#~!&])", r"\\\1", plain(text))


def fenced(text: str, language: str = "text") -> str:
    """Return a Markdown block of code that its text cannot leave: its fence is longer."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


# -- numbers -------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Return a number with three to four significant digits: 2361, 110.3, 98.1, 1.88."""
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{digits}f}"


def optional(value: float | None, form: str) -> str:
    """Return a number in a format such as ``.2f``; an empty text for None."""
    return "" if value is None else format(value, form)


def percent_change(ratio: float, digits: int = 0, unit: str = "%") -> str:
    """Return a ratio as a change, with a minus sign: ``+12%`` for 1.12, ``−5%`` for 0.95."""
    return f"{ratio - 1:+.{digits}%}".replace("-", "−").removesuffix("%") + unit


def count(n: int, what: str) -> str:
    """Return a number of things: ``1 launch``, ``2 launches``."""
    return f"{n} {plural(n, what)}"


def plural(n: int, what: str) -> str:
    """Return the word for ``n`` things."""
    if n == 1:
        return what
    return f"{what}es" if what.endswith("ch") else f"{what}s"


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers with three or more neighbors joined: ``0 to 3, 7, 8``."""
    return ", ".join(range_words(numbers))


def range_words(numbers: Sequence[int]) -> list[str]:
    """Return a word for each run of neighbors in ascending numbers: ``0 to 3``, ``7, 8``."""
    return [
        str(a) if a == b else f"{a} to {b}" if b > a + 1 else f"{a}, {b}" for a, b in runs(numbers)
    ]


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last number of each run of neighbors in ascending numbers."""
    found: list[tuple[int, int]] = []
    for k in numbers:
        if found and k == found[-1][1] + 1:
            found[-1] = (found[-1][0], k)
        else:
            found.append((k, k))
    return found


def duration(seconds: float) -> str:
    """Return a duration in words, 0 for a negative one: ``90 s``, ``12 min``, ``2 h 05 min``."""
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


# -- intervals -----------------------------------------------------------------------------------


def bounds_text(bounds: Bounds, text: Callable[[float], str] = number) -> str:
    """Return an interval: ``[105.0, 114.2]``, with ? for an unknown bound.

    Args:
        bounds: Low and high.
        text: Formats a bound.
    """
    low, high = ("?" if x is None else text(x) for x in bounds)
    return f"[{low}, {high}]"


def estimate_text(e: Estimate, text: Callable[[float], str] = number) -> str:
    """Return an estimate with its interval: ``1.21 [1.08, ?]``."""
    return f"{text(e.value)} {bounds_text((e.low, e.high), text)}"


def known_estimate_text(e: Estimate, text: Callable[[float], str], unit: str = "") -> str:
    """Return an estimate in its unit, with its interval if a bound is known."""
    shown, bounds = f"{text(e.value)}{unit}", (e.low, e.high)
    return shown if bounds == (None, None) else f"{shown} {bounds_text(bounds, text)}"


def value_and_bounds(value: float | None, bounds: Bounds | None, gap: str = " ") -> str:
    """Return a cell: a value without its unit, and its interval where there is one.

    Args:
        value: Value; None: the cell is empty.
        bounds: Interval of the value.
        gap: Text between the two.
    """
    if value is None:
        return ""
    return number(value) + (f"{gap}{bounds_text(bounds)}" if bounds else "")


def value_with_interval(value: float, interval: Bounds | None, objective: Objective) -> str:
    """Return a value in its unit, with its interval if known: ``110 tok/s [105, 114]``."""
    text = f"{number(value)} {plain(objective.unit)}"
    return f"{text} {bounds_text(interval)}" if interval else text


def ratio_text(value: float) -> str:
    """Return a ratio: ``2.40``."""
    return f"{value:.2f}"


def times(e: Estimate) -> str:
    """Return a ratio as a factor: ``2.40× [2.21, 2.60]``, without bounds where none is known."""
    return known_estimate_text(e, ratio_text, "×")


def change(e: Estimate, objective: Objective) -> str:
    """Return a ratio of an objective's values: a factor where more is better, else in percent."""
    return times(e) if objective.direction == "maximize" else known_estimate_text(e, percent_change)


# -- parameters and objectives -------------------------------------------------------------------


def value_text(value: Value) -> str:
    """Return a parameter's value in words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else plain(str(value))


def heading(name: str) -> str:
    """Return a parameter's heading in a table."""
    return HEADINGS.get(name, plain(name))


def point_text(point: Point) -> str:
    """Return a point in one line.

    >>> point_text({"num_speculative_tokens": 3, "max_num_batched_tokens": 512})
    'n = 3, MNBT 512'
    """
    return ", ".join(
        f"n = {value_text(value)}"
        if name == N
        else f"{'MNBT' if name == MNBT else 'arm'} {value_text(value)}"
        if name in {ARM, MNBT}
        else f"{plain(name)} = {value_text(value)}"
        for name, value in point.items()
    )


def other_parameters(point: Point) -> list[str]:
    """Return the parameters of a point that have no column of their own: ``name=value``."""
    return [f"{plain(k)}={value_text(v)}" for k, v in point.items() if k not in HEADINGS]


def objective_text(objective: Objective) -> str:
    """Return an objective with its unit: ``output throughput (tok/s)``."""
    return f"{plain(objective.title)} ({plain(objective.unit)})"


def way_text(objective: Objective) -> str:
    """Return which way an objective is better: ``more is better``."""
    return f"{'more' if objective.direction == 'maximize' else 'less'} is better"


def upper(text: str) -> str:
    """Return a sentence from its beginning in lower case."""
    return text[:1].upper() + text[1:]


def lower(title: str) -> str:
    """Return a title as it is within a sentence: ``throughput``, but ``p95 TTFT``."""
    return title[:1].lower() + title[1:]
