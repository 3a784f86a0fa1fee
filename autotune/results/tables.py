"""A table as a value, and its text: aligned columns for a terminal or a log, or Markdown.

The command line renders the same values with rich.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Tone(StrEnum):
    """What a line or a cell says of its content; each medium has its own way to show it."""

    NONE = "none"
    GOOD = "good"
    BAD = "bad"
    OPEN = "open"
    FAILED = "failed"
    WARNING = "warning"
    STRONG = "strong"


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        heading: A line for each line of the heading.
        right: Aligned to the right, as numbers are.
        width: Number of characters; None: as its cells need.
        least: Least number of characters.
        folds: Its cells go on in a next line where they do not fit.
        stretches: Takes the room that the others leave.
    """

    heading: str
    right: bool = True
    width: int | None = None
    least: int | None = None
    folds: bool = False
    stretches: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell; its text may have several lines."""

    text: str
    tone: Tone = Tone.NONE


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        cells: A cell or its text for each column.
        tone: Of the whole row.
        ruled: A rule is drawn above it.
    """

    cells: tuple[str | Cell, ...]
    tone: Tone = Tone.NONE
    ruled: bool = False

    @property
    def texts(self) -> list[str]:
        """Text of each cell."""
        return [c if isinstance(c, str) else c.text for c in self.cells]


@dataclass(frozen=True)
class Table:
    """Columns and rows."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Line:
    """A line of text outside of tables."""

    text: str = ""
    tone: Tone = Tone.NONE


Block = Line | Table


def text_lines(table: Table, gap: str = "  ") -> list[str]:
    """Return a table as lines of text: headings above, then rows, without a frame.

    Args:
        table: A heading of several lines stands at the bottom of the others' height.
        gap: Between two columns.
    """
    headings = [c.heading.split("\n") for c in table.columns]
    height = max(map(len, headings), default=0)
    above = [[""] * (height - len(h)) + h for h in headings]
    heads = [list(line) for line in zip(*above, strict=True)]
    cells = [*heads, *(row.texts for row in table.rows)]
    widths = [
        c.width or max([c.least or 0, *(len(line[i]) for line in cells)])
        for i, c in enumerate(table.columns)
    ]

    def line(texts: Sequence[str]) -> str:
        padded = (
            text.rjust(w) if c.right else text.ljust(w)
            for text, w, c in zip(texts, widths, table.columns, strict=True)
        )
        return gap.join(padded).rstrip()

    lines = [line(texts) for texts in heads]
    for row in table.rows:
        if row.ruled:
            lines.append("-" * (sum(widths) + len(gap) * (len(widths) - 1)))
        lines.append(line(row.texts))
    return lines


def markdown_lines(
    table: Table, escape: Callable[[str], str] = str, *, aligned: bool = False
) -> list[str]:
    """Return a table in Markdown.

    Args:
        table: Headings and cells of one line each.
        escape: Makes text of others harmless, such as :func:`autotune.results.text.markdown`.
        aligned: Pad the cells, so that the source is a table, too.
    """
    rows = [[escape(c.heading) for c in table.columns]]
    rows += [[escape(text) for text in row.texts] for row in table.rows]
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*rows, strict=True)]
    rules = ["-" * w if aligned else "---" for w in widths]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    return [line(rows[0]), line(rules), *map(line, rows[1:])]
