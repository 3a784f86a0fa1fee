"""The figure of a load sweep: speed-up by concurrency, a line for each n."""

from __future__ import annotations

import math
from pathlib import Path

import plotly.graph_objects as go

from autotune.output.figures.browser import write_figure
from autotune.output.figures.points import colored, error_bar, title_text
from autotune.output.figures.theme import BLUE, GRAY, GREEN, LIGHT, ORANGE, Theme, template
from autotune.results.load_map import LoadSweepView, PointView
from autotune.results.load_map_ways import MapWay
from autotune.results.referee import load_text
from autotune.results.text import Bounds, bounds_text, number, point_text
from autotune.stats import Estimate
from autotune.stats.crossover import ratio
from autotune.stats.referee import Crossing

# Okabe and Ito's, as in the other plots, and symbols that say the same once more; then the ink
_COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", None)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")
# Ways that are no fixed n: other lines and symbols, from the other end of the colors.
_DASHES = ("dot", "dash", "dashdot", "longdash")
_STARS = ("star", "hexagram", "star-diamond", "hourglass")


def load_sweep_figure(view: LoadSweepView, height: int = 560, theme: Theme = LIGHT) -> go.Figure:
    """Return speed-up over n = 0 by concurrency with 95 % intervals, a line for each way.

    A gray band is the interval of the concurrency at which a way passes the best fixed n.

    Args:
        view: The load sweep.
        height: Height in pixels; the width is that of the page.
        theme: Colors of the page.
    """
    fig = go.Figure()
    fig.add_hline(
        y=1,
        line={"color": theme.ink, "width": 1.2},
        # right of the lines, which it cannot cover there
        annotation={"text": " no speculation", "xanchor": "left", "yanchor": "middle"},
    )
    drafts = sorted((p for p in view.points if p.is_fixed and p.n > 0), key=lambda p: p.n)
    for i, p in enumerate(drafts):
        _add_line(fig, view, p, f"n = {p.n}", _COLORS[i % 7] or theme.ink, _SYMBOLS[i % 7])
    for i, p in enumerate(view.rivals):
        name = "schedule" if p is view.checked else p.way.name
        color = theme.ink if i == 0 else _COLORS[-1 - i % 6] or theme.ink
        _add_line(fig, view, p, name, color, _STARS[i % 4], dash=_DASHES[i % 4])
    if view.referee is not None:
        for i, (way, cross) in enumerate(view.referee.passing.items()):
            _add_passing(fig, view, way, cross, i)
    if view.crossover is not None and view.crossover.load is not None:
        _add_crossover(fig, view.crossover.load)
    about = [
        view.rehearsal,
        f"vLLM {view.vllm}" if view.vllm else "",
        point_text(view.point),
        view.machine,
    ]
    fig.update_layout(
        template=template(theme),
        title={"text": title_text(f"{view.study}: does speculation pay?", about)},
        showlegend=True,  # also of one line
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "xanchor": "left"},
        margin={"l": 78, "r": 116, "t": 110, "b": 62},
        height=height,
        xaxis={
            "title": {"text": "Concurrency"},
            "type": "log",
            "tickvals": list(view.loads),
            "ticktext": [str(x) for x in view.loads],
        },
        yaxis={"title": {"text": "tok/s over no speculation (×)  →  better"}},
    )
    return fig


def _add_crossover(fig: go.Figure, load: float) -> None:
    fig.add_vline(x=load, line={"color": GRAY, "dash": "dash", "width": 1.2})
    fig.add_annotation(
        x=math.log10(load),  # Plotly's way with annotations on logarithmic axes
        y=1,
        yref="paper",
        yanchor="top",
        xanchor="left",
        text=f" crossover {load_text(load)}",
        showarrow=False,
    )


def _add_passing(
    fig: go.Figure, view: LoadSweepView, way: MapWay, cross: Crossing, line: int
) -> None:
    """Add the concurrency at which a way passes the best fixed n, and its interval."""
    if cross.load is None:
        return
    low, high = cross.low or view.loads[0], cross.high or view.loads[-1]
    fig.add_vrect(x0=low, x1=high, fillcolor=GRAY, opacity=0.12, line_width=0, layer="below")
    fig.add_vline(x=cross.load, line={"color": GRAY, "dash": "dot", "width": 1.2})
    side = "above" if cross.wins_above else "below"
    fig.add_annotation(
        x=math.log10(cross.load),
        y=0,
        yref="paper",
        yanchor="bottom",
        yshift=4 + 16 * line,  # several ways may pass at about the same concurrency
        xanchor="left",
        text=f" {way.name}: faster {side} {load_text(cross.load)}",
        showarrow=False,
    )


def _add_line(
    fig: go.Figure,
    view: LoadSweepView,
    point: PointView,
    name: str,
    color: str,
    symbol: str,
    dash: str = "solid",
) -> None:
    none, rates = view.rates.get(0, {}), point.rates()
    loads = [x for x in view.loads if x in rates and x in none]
    if not loads:
        return
    found = [ratio(rates[x], none[x], view.variance) for x in loads]
    fig.add_scatter(
        x=loads,
        y=[e.value for e in found],
        mode="lines+markers",
        line={"color": color, "width": 2, "dash": dash},
        marker={"symbol": symbol, "size": 9, "color": color},
        error_y=colored(error_bar([e.value for e in found], [_finite(e) for e in found]), color),
        hovertext=[
            f"<b>{name}</b> at {x}<br>{e.value:.3f}× {bounds_text((e.low, e.high))}<br>"
            f"{number(rates[x].value)} tok/s, p95 {number(point.loads[x].p95_ms)} ms"
            for x, e in zip(loads, found, strict=True)
        ],
        hoverinfo="text",
        name=name,
    )


def _finite(e: Estimate) -> Bounds:
    return e.low, e.high if e.high is not None and math.isfinite(e.high) else None


def write_load_sweep(view: LoadSweepView, path: Path) -> None:
    """Write the figure of a load sweep as one HTML file.

    Raises:
        UserError: the file cannot be written.
    """
    write_figure(load_sweep_figure(view), path, view.study)
