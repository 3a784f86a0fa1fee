"""The figure of a break-even map: the fastest n by concurrency and quality of the draft."""

from __future__ import annotations

import math
from pathlib import Path

import plotly.graph_objects as go

from autotune.output.figures.browser import write_figure
from autotune.output.figures.points import colored, error_bar, title_text
from autotune.output.figures.theme import BLUE, GRAY, GREEN, LIGHT, ORANGE, Theme, template
from autotune.results.break_even import (
    BreakEvenView,
    length_estimate,
    quality_name,
    ranges_text,
)
from autotune.results.text import bounds_text, number, point_text, ratio_text
from autotune.stats.break_even import Range

_TICKS = (1, 1.2, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Okabe and Ito's, as in the other plots; the first is that of n = 0.
_COLORS = (GRAY, BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")


def break_even_figure(view: BreakEvenView, height: int = 560, theme: Theme = LIGHT) -> go.Figure:
    """Return the fastest n as colored bars, a bar for each concurrency, and the break-even on them.

    Args:
        view: The break-even map; one without numbers gives an empty figure.
        height: Height in pixels; the width is that of the page.
        theme: Colors of the page.
    """
    fig = go.Figure()
    most = 1 + (view.most_n or 1)
    names = {load: str(load) for load in view.needed}
    for i, n in enumerate((0, *view.pairs)):
        _add_bars(fig, view, names, n, _COLORS[i % len(_COLORS)])
    _add_line(fig, view, names, theme)
    _add_checks(fig, view, names, theme)
    about = [
        view.label,
        f"vLLM {view.vllm}" if view.vllm else "",
        point_text(view.point),
        view.machine,
    ]
    fig.update_layout(
        template=template(theme),
        title={
            "text": title_text(
                f"{view.study}: how good must a draft be? (rehearsal)", [*filter(None, about)]
            )
        },
        barmode="overlay",
        bargap=0.25,
        showlegend=True,
        legend={"x": 1.01, "y": 1.0, "yanchor": "top", "xanchor": "left", "traceorder": "reversed"},
        margin={"l": 78, "r": 160, "t": 90, "b": 62},
        height=height,
        xaxis={"title": {"text": "Concurrency"}, "type": "category"},
        yaxis={
            "title": {"text": f"acceptance length of the draft ({quality_name(view)})"},
            "type": "log",
            "range": [0, math.log10(most)],
            "tickvals": [x for x in _TICKS if x <= most],
        },
    )
    return fig


def _add_bars(
    fig: go.Figure, view: BreakEvenView, names: dict[int, str], n: int, color: str
) -> None:
    """Add the qualities at which one n is the fastest, at each concurrency."""
    found: list[tuple[int, Range]] = [
        (load, r) for load, x in view.needed.items() for r in x.ranges if r.n == n
    ]
    name = "no speculation" if n == 0 else f"n = {n}"
    fig.add_bar(
        x=[names[load] for load, _ in found],
        base=[r.low for _, r in found],
        y=[r.high - r.low for _, r in found],
        marker={"color": color, "line": {"width": 0}},
        opacity=0.45 if n == 0 else 0.75,
        name=name,
        hovertext=[
            f"<b>{name}</b> is the fastest at concurrency {load}<br>from {r.low:.2f} to "
            f"{r.high:.2f} {quality_name(view)}<br>{ranges_text(view.needed[load].ranges)}"
            for load, r in found
        ],
        hoverinfo="text",
    )


def _add_line(fig: go.Figure, view: BreakEvenView, names: dict[int, str], theme: Theme) -> None:
    """Add the break-even of each concurrency with its interval."""
    found = {load: x.quality for load, x in view.needed.items() if math.isfinite(x.quality.value)}
    most = 1.0 + (view.most_n or 1)
    bounds = [(e.low, None if e.high is None else min(e.high, most)) for e in found.values()]
    fig.add_scatter(
        x=[names[load] for load in found],
        y=[e.value for e in found.values()],
        mode="lines+markers",
        line={"color": theme.ink, "width": 2},
        marker={"symbol": "line-ew-open", "size": 16, "color": theme.ink},
        error_y=colored(error_bar([e.value for e in found.values()], bounds), theme.ink),
        name="break-even [95 %]",
        hovertext=[
            f"<b>break-even at concurrency {load}</b><br>{length_estimate(e)} "
            f"{quality_name(view)}<br>n = {view.needed[load].n}, no speculation "
            f"{number(view.none[load].value)} tok/s"
            for load, e in found.items()
        ],
        hoverinfo="text",
    )


def _add_checks(fig: go.Figure, view: BreakEvenView, names: dict[int, str], theme: Theme) -> None:
    """Add the points next to the line that were launched."""
    found = [x for x in view.checked() if x.at_line and x.load in names]
    if not found or view.family is None:
        return
    fig.add_scatter(
        x=[names[x.load] for x in found],
        y=[view.family.quality_of(x.n, x.length) for x in found],
        mode="markers",
        marker={
            "symbol": ["triangle-up" if x.expected >= 1 else "triangle-down" for x in found],
            "size": 12,
            "color": theme.page,
            "line": {"color": theme.ink, "width": 2},
        },
        name="launched to check",
        hovertext=[
            f"<b>n = {x.n} at {x.length:.2f} tokens per step</b><br>over no speculation: "
            f"{ratio_text(x.expected)} by the map, launched {ratio_text(x.found.value)} "
            f"{bounds_text((x.found.low, x.found.high), ratio_text)}<br>{x.verdict}"
            for x in found
        ],
        hoverinfo="text",
    )


def write_break_even(view: BreakEvenView, path: Path) -> None:
    """Write the figure of a break-even map as one HTML file.

    Raises:
        UserError: the file cannot be written.
    """
    write_figure(break_even_figure(view), path, view.study)
