"""A table as a value, in each of its forms."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from autotune.cli.console import rendered
from autotune.results.tables import (
    Cell,
    Column,
    Line,
    Row,
    Table,
    Tone,
    markdown_lines,
    text_lines,
)
from autotune.results.text import markdown

TABLE = Table(
    (Column("n"), Column("tok/s\n[95 %]"), Column("note", right=False)),
    (Row(("0", "98.1", "baseline")), Row(("12", Cell("110.3", Tone.GOOD), ""), ruled=True)),
)


def test_text_is_aligned_with_headings_at_the_bottom() -> None:
    assert text_lines(TABLE) == [
        "     tok/s",
        " n  [95 %]  note",
        " 0    98.1  baseline",
        "--------------------",
        "12   110.3",
    ]


def test_a_width_is_kept_where_it_is_given() -> None:
    table = Table((Column("a", width=4), Column("b", right=False)), (Row(("1", "x")),))
    assert text_lines(replace(table, gap=1)) == ["   a b", "   1 x"]


def test_markdown_escapes_cells_and_is_padded_on_demand() -> None:
    table = Table((Column("name"), Column("v")), (Row(("a|b", "1")),))
    assert markdown_lines(table, markdown) == ["| name | v |", "| --- | --- |", r"| a\|b | 1 |"]
    assert markdown_lines(table, aligned=True) == [
        "| name | v |",
        "| ---- | - |",
        "| a|b  | 1 |",
    ]


def test_a_terminal_shows_the_same_cells() -> None:
    out = io.StringIO()
    Console(file=out, width=40).print(rendered([Line("two points:"), TABLE]))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["two", "points:"] in lines
    assert ["0", "98.1", "baseline"] in lines
    assert ["12", "110.3"] in lines
    headless = io.StringIO()
    Console(file=headless, width=40).print(rendered([TABLE], header=False))
    assert "tok/s" not in headless.getvalue()


def test_a_line_is_not_broken_within_a_name_or_an_interval() -> None:
    out = io.StringIO()
    line = Line("n = 0, MNBT 2048 in A, n = 0, MNBT 1024 in B: −13.2 % [−26.2, +2.1].")
    Console(file=out, width=30).print(rendered([line, Line(), line]))
    found = ["n = 0, MNBT 2048 in A, n = 0,", "MNBT 1024 in B: −13.2 %", "[−26.2, +2.1]."]
    assert [text.rstrip() for text in out.getvalue().splitlines()] == [*found, "", *found]
