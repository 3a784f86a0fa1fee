"""A comparison of two studies for people: lines and tables, and a sentence for each objective."""

from __future__ import annotations

from collections.abc import Iterator

from autotune.results.comparison import Comparison, Winners
from autotune.results.ratios import Difference, Finding
from autotune.results.tables import Block, Cell, Column, Line, Row, Table, Tone
from autotune.results.text import (
    HEADINGS,
    bounds_text,
    count,
    number,
    other_parameters,
    percent_change,
    plain,
    value_text,
    way_text,
)
from autotune.stats import Estimate
from objectives import Objective

_TONES = {Finding.WORSE: Tone.BAD, Finding.BETTER: Tone.GOOD, Finding.UNDECIDED: Tone.OPEN}
_MOST_LOST = 5  # points that are named
_NAME_WIDTH = 44  # of a key of the study; a longer one is folded


def comparison_page(c: Comparison) -> list[Block]:
    """Return a comparison as lines and tables, in 80 columns."""
    return [
        *_sides(c),
        Line(),
        *_differences(c),
        Line(),
        *_warning(c),
        *_same_points(c),
        Line(),
        *(_winners_line(o, w) for o in c.objectives if (w := c.winners.get(o.name)) is not None),
        *_lost(c),
        *(Line(plain(text), Tone.OPEN) for text in c.throttled),
        Line(),
        *(Line(text, _TONES.get(found, Tone.NONE)) for found, text in verdict_lines(c)),
    ]


def _sides(c: Comparison) -> Iterator[Line]:
    for letter, side in (("A", c.a), ("B", c.b)):
        vllm = f"vLLM {plain(side.view.vllm_version)}" if side.view.vllm_version else "unknown vLLM"
        yield Line(
            f"{letter}: {side.name}, begun {side.view.created:%Y-%m-%d}, {vllm}, "
            f"{count(len(side.points), 'point')}"
        )
        if side.view.rehearsal:
            yield Line(f"   {plain(side.view.rehearsal)}", Tone.WARNING)


def _differences(c: Comparison) -> list[Block]:
    if not c.different:
        return [Line("Both have the same setup, on machines of the same kind.")]
    longest = max(len(what) for what, _, _ in c.different)
    name = Column("", right=False, folds=True, width=min(longest, _NAME_WIDTH))
    columns = (name, *(Column(side, right=False, folds=True) for side in ("A", "B")))
    table = Table(columns, tuple(Row(row) for row in c.different))
    return [Line("What differs between them:"), Line(), table]


def _warning(c: Comparison) -> list[Block]:
    if not c.incomparable:
        return []
    text = (
        f"Warning: the workload differs ({'; '.join(c.incomparable)}): figures under another load "
        "are not comparable, and nothing is concluded from them."
    )
    return [Line(text, Tone.WARNING), Line()]


def _same_points(c: Comparison) -> list[Block]:
    if not c.pairs:
        return [Line("They have no measured point in common.")]
    title = "B against A where both measured, with the 95 % interval:"
    return [Line(title), Line(), _pairs_table(c)]


def _pairs_table(c: Comparison) -> Table:
    names = list(dict.fromkeys(name for p in c.pairs for name in p.point))
    shown = [name for name in names if name in HEADINGS]
    others = len(shown) < len(names)
    columns = [Column(HEADINGS[name]) for name in shown]
    if others:
        columns.append(Column("other", right=False, folds=True, stretches=True))
    columns.append(Column("launches"))
    columns += [Column(f"{plain(o.title)}\n({way_text(o)})", least=16) for o in c.objectives]
    rows = []
    for p in c.pairs:
        cells: list[str | Cell] = [value_text(p.point[n]) if n in p.point else "" for n in shown]
        if others:
            cells.append(", ".join(other_parameters(p.point)))
        cells.append(f"{p.launches[0]} + {p.launches[1]}{', lossy' if p.lossy else ''}")
        rows.append(Row((*cells, *(_cell(p.differences.get(o.name)) for o in c.objectives))))
    if c.together:
        label = ["all"] + [""] * (len(shown) + others)
        figures = (_cell(c.together.get(o.name)) for o in c.objectives)
        rows.append(Row((*label, *figures), ruled=True))
    return Table(tuple(columns), tuple(rows))


def _cell(d: Difference | None) -> Cell:
    """Return two lines: ``−12.3 % worse`` and the interval."""
    if d is None:
        return Cell("")
    word = d.finding if d.finding not in (None, Finding.UNDECIDED) else ""
    return Cell(f"{_percent(d.ratio.value)} % {word}".rstrip() + f"\n{_bounds(d.ratio)}", _tone(d))


def _tone(d: Difference) -> Tone:
    if d.finding in (None, Finding.UNDECIDED):
        return Tone.NONE
    return _TONES.get(d.finding, Tone.NONE)


def _percent(ratio: float) -> str:
    return percent_change(ratio, digits=1, unit="")


def _bounds(ratio: Estimate) -> str:
    return bounds_text((ratio.low, ratio.high), _percent)


def _winners_line(objective: Objective, w: Winners) -> Line:
    d = w.difference
    one, two = w.a.setting, w.b.setting
    points = f"{one} in both" if one == two else f"{one} in A, {two} in B"
    text = f"Best by {plain(objective.title).lower()}: {points}: {_percent(d.ratio.value)} %"
    if d.finding is None and d.ratio.low is None:
        return Line(
            f"{text}; not judged, because not both were measured again (`autotune confirm`)."
        )
    word = "" if d.finding in (None, Finding.UNDECIDED) else f", {d.finding}"
    return Line(f"{text} {_bounds(d.ratio)}{word}.", _tone(d))


def _lost(c: Comparison) -> list[Block]:
    if not c.lost:
        return []
    kinds = "; ".join(f"{t.setting} ({t.failure_kind})" for t in c.lost[:_MOST_LOST])
    more = f" and {len(c.lost) - _MOST_LOST} more" if len(c.lost) > _MOST_LOST else ""
    return [Line(f"Measured in A, failed in B: {plain(kinds)}{more}.", Tone.OPEN)]


def verdict_lines(c: Comparison) -> list[tuple[Finding, str]]:
    """Return the conclusions, a line for each objective."""
    if c.incomparable:
        return [(Finding.UNDECIDED, "Undecided: the two are not comparable.")]
    limit = f"{number(100 * c.threshold).rstrip('0').rstrip('.') if c.threshold else '0'} %"
    findings = [(o, c.finding(o)) for o in c.objectives]
    words = {
        Finding.WORSE: f"B is worse than A, certainly by more than {limit}",
        Finding.BETTER: f"B is better than A, certainly by more than {limit}",
        Finding.EQUAL: f"no difference of more than {limit}",
        Finding.UNDECIDED: f"undecided: more launches would tell whether it is more than {limit}",
    }
    return [(found, f"{plain(o.title)}: {words[found]}.") for o, found in findings]
