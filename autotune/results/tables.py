"""A table as a value, and its text: aligned columns for a terminal or a log, or Markdown.

The command line renders the same values with rich.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Tone(StrEnum):
    """Meaning of a line or a cell; each medium shows it in its own way."""

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
        heading: Heading; it may have several lines.
        right: Whether it is aligned to the right, as numbers are.
        width: Number of characters; None: as many as its cells need.
        least: Least number of characters.
        folds: Whether cells that do not fit continue in a next line.
        stretches: Whether it takes the room that the other columns leave.
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
        cells: Cell, or its text, for each column.
        tone: Tone of the whole row.
        ruled: Whether a rule is drawn above the row.
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
    """Columns and rows.

    Attributes:
        columns: Columns from left to right.
        rows: Rows with a cell for each column.
        gap: Number of spaces between two columns.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    gap: int = 2


@dataclass(frozen=True)
class Line:
    """A line of text outside of tables."""

    text: str = ""
    tone: Tone = Tone.NONE


Block = Line | Table


def text_lines(table: Table) -> list[str]:
    """Return a table as lines of text: headings above, then rows, without a frame.

    Headings are aligned at the bottom.
    """
    gap = " " * table.gap
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
        table: Table whose headings and cells have one line each.
        escape: Makes others' text harmless, such as :func:`autotune.results.text.markdown`.
        aligned: Pad the cells, so that the source looks like a table, too.
    """
    rows = [[escape(c.heading) for c in table.columns]]
    rows += [[escape(text) for text in row.texts] for row in table.rows]
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*rows, strict=True)]
    rules = ["-" * w if aligned else "---" for w in widths]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    return [line(rows[0]), line(rules), *map(line, rows[1:])]
