"""Content of a report, without any HTML or Markdown: both are made from the same blocks."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import plotly.graph_objects as go

from autotune.output.figures.points import noted
from autotune.output.figures.theme import Theme
from autotune.results.tables import Column, Row, Table
from autotune.results.text import plain


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    kind: ClassVar[str] = "points"
    items: tuple[str, ...]


@dataclass(frozen=True)
class DataTable:
    """A table with its caption.

    Attributes:
        caption: Caption: what the table shows.
        table: Columns and rows; the first cell of a row names it.
        folded: Whether the reader opens it on a page: the data of a figure, or a long table.
    """

    kind: ClassVar[str] = "table"
    caption: str
    table: Table
    folded: bool = False

    @classmethod
    def of(
        cls,
        caption: str,
        head: Sequence[str],
        rows: Iterable[tuple[str, ...]],
        words: Container[int] = (),
        *,
        folded: bool = False,
    ) -> DataTable:
        """Return a table from its cells.

        Args:
            caption: Caption of the table.
            head: Headings of the columns.
            rows: Rows with a cell for each heading.
            words: Columns, from 0, that hold words; the others hold numbers.
            folded: Whether the reader opens it on a page.
        """
        columns = (Column(heading, right=i not in words) for i, heading in enumerate(head))
        return cls(caption, Table(tuple(columns), tuple(map(Row, rows))), folded)


@dataclass(frozen=True)
class Code:
    """Text to copy, or lines of a log.

    Attributes:
        caption: Caption: what the text is.
        text: The text as it is, line breaks included.
        language: Language for highlighting.
        folded: Whether the reader opens it on a page.
    """

    kind: ClassVar[str] = "code"
    caption: str
    text: str
    language: str = "sh"
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A picture; Markdown has the table that follows it instead.

    Attributes:
        name: Name, unique in the report.
        caption: Caption: what the figure shows and what can be seen in it; also its text
            alternative.
        draw: Function that draws it for a theme.
    """

    kind: ClassVar[str] = "figure"
    name: str
    caption: str
    draw: Callable[[Theme], go.Figure]


Block = Paragraph | Points | DataTable | Code | Figure


def labeled(block: Block, label: str) -> Block:
    """Return a figure or a table that says what of a rehearsal is real; other blocks as they are.

    Args:
        block: A block.
        label: What is real and what is not; empty: it is no rehearsal.
    """
    if not label or not isinstance(block, Figure | DataTable):
        return block
    caption = f"{block.caption.rstrip('.:')} ({plain(label)})"
    if isinstance(block, DataTable):
        return replace(block, caption=caption)
    draw = block.draw
    return replace(block, caption=f"{caption}.", draw=lambda theme: noted(draw(theme), label))


@dataclass(frozen=True)
class Section:
    """A part with a heading.

    Attributes:
        name: Name, unique in the report.
        title: The heading.
        blocks: Content, in order.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Fact:
    """One number of the answer.

    Attributes:
        label: Name of the number.
        value: Value with its unit.
        notes: Interval and comparison, a line each.
    """

    label: str
    value: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What to serve and how sure that is.

    Attributes:
        headline: The point to serve.
        sure: How sure that is, in a sentence or two.
        certain: Whether it was measured again, and nothing else is as good.
        facts: The numbers.
        notes: Sentences to know before acting on it.
    """

    headline: str
    sure: str
    certain: bool
    facts: tuple[Fact, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        study: Name of the study.
        about: Description, versions, machine and date of the study.
        answer: The answer, which comes first.
        sections: Everything else, in order.
        made_by: Version of autotune and the time, for the foot of the page.
    """

    study: str
    about: tuple[str, ...]
    answer: Answer
    sections: tuple[Section, ...]
    made_by: str
