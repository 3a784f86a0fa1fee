"""What a report consists of, without any HTML or Markdown: both are made from the same blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import plotly.graph_objects as go

from autotune.output.figures.theme import Theme


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
class Table:
    """Cells of plain text.

    Attributes:
        caption: What it shows.
        head: Headings of the columns.
        rows: As many cells each; the first one names the row.
        words: Columns, from 0, that hold words; the others hold numbers.
        folded: On a page it is opened by hand: the data of a figure, or what is long.
    """

    kind: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset()
    folded: bool = False


@dataclass(frozen=True)
class Code:
    """Text to copy, or lines of a log.

    Attributes:
        caption: What it is.
        text: As it is, line breaks included.
        language: For who shows it in colours.
        folded: As of a table.
    """

    kind: ClassVar[str] = "code"
    caption: str
    text: str
    language: str = "sh"
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A picture; Markdown has the table that comes with it instead.

    Attributes:
        name: Unique in the report.
        caption: What it shows and what is to be seen in it: its text alternative, too.
        draw: Draws it for a theme.
    """

    kind: ClassVar[str] = "figure"
    name: str
    caption: str
    draw: Callable[[Theme], go.Figure]


Block = Paragraph | Points | Table | Code | Figure


@dataclass(frozen=True)
class Section:
    """A part with a heading.

    Attributes:
        name: Unique in the report.
        title: The heading.
        blocks: In their order.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Fact:
    """One number of the answer.

    Attributes:
        label: What it is.
        value: With its unit.
        notes: Interval and comparison, a line each.
    """

    label: str
    value: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What to serve and how sure that is.

    Attributes:
        headline: What to serve.
        sure: How sure that is, in a sentence or two.
        certain: It was measured again, and nothing else is as good.
        facts: The numbers.
        notes: What else must be known before acting on it.
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
        about: What it is of: versions, machine, date.
        answer: Comes first.
        sections: Everything else, in its order.
        made_by: Version of autotune and the time, for the foot of the page.
    """

    study: str
    about: tuple[str, ...]
    answer: Answer
    sections: tuple[Section, ...]
    made_by: str
