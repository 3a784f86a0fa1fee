"""The picture of a map: speed-up by load, a line for each n."""

from __future__ import annotations

import math
import textwrap
from html import escape
from pathlib import Path

import plotly.graph_objects as go

from autotune.errors import UserError
from autotune.mapview import MapView, PointView, load_text
from autotune.output.figures.browser import write_html
from autotune.output.figures.theme import BLUE, GREEN, GREY, LIGHT, ORANGE, Theme, template
from autotune.stats import Estimate
from autotune.stats.crossover import ratio
from autotune.views import bounds_text, number, plain, point_text

# Okabe and Ito's, as in the other plots, and symbols that say the same once more; then the ink
_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", None)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")


def map_figure(view: MapView, height: int = 560, theme: Theme = LIGHT) -> go.Figure:
    """Speed-up over n = 0 by load with 95 % intervals, one line for each n, and the crossover.

    Args:
        view: What to draw.
        height: In pixels; the width is that of the page.
        theme: Of the page.
    """
    fig = go.Figure()
    fig.add_hline(
        y=1,
        line={"color": theme.ink, "width": 1.2},
        # right of the lines, which it cannot cover there
        annotation={"text": " no speculation", "xanchor": "left", "yanchor": "middle"},
    )
    drafts = sorted((p for p in view.points if p.schedule is None and p.n > 0), key=lambda p: p.n)
    for i, p in enumerate(drafts):
        _add_line(fig, view, p, f"n = {p.n}", _COLOURS[i % 7] or theme.ink, _SYMBOLS[i % 7])
    if view.checked is not None:
        _add_line(fig, view, view.checked, "schedule", theme.ink, "star", dash="dot")
    found = view.crossover
    if found is not None and found.load is not None:
        fig.add_vline(x=found.load, line={"color": GREY, "dash": "dash", "width": 1.2})
        fig.add_annotation(
            x=math.log10(found.load),  # Plotly's way with annotations on logarithmic axes
            y=1,
            yref="paper",
            yanchor="top",
            xanchor="left",
            text=f" crossover {load_text(found.load)}",
            showarrow=False,
        )
    about = [f"vLLM {view.vllm}" if view.vllm else "", point_text(view.point), view.machine]
    text = " · ".join(plain(x) for x in about if x)
    subtitle = textwrap.shorten(text, 105, placeholder=" …")
    fig.update_layout(
        template=template(theme),
        title={
            "text": f"<b>{escape(plain(view.study), quote=False)}: does speculation pay?</b><br>"
            f'<span style="font-size: 12px">{escape(subtitle, quote=False)}</span>',
        },
        showlegend=True,  # also of one line
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "xanchor": "left"},
        margin={"l": 78, "r": 116, "t": 110, "b": 62},
        height=height,
        xaxis={
            "title": {"text": "Requests at a time"},
            "type": "log",
            "tickvals": list(view.loads),
            "ticktext": [str(x) for x in view.loads],
        },
        yaxis={"title": {"text": "tok/s over no speculation (×)  →  better"}},
    )
    return fig


def _add_line(
    fig: go.Figure,
    view: MapView,
    point: PointView,
    name: str,
    colour: str,
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
        line={"color": colour, "width": 2, "dash": dash},
        marker={"symbol": symbol, "size": 9, "color": colour},
        error_y={
            "type": "data",
            "array": [_above(e) for e in found],
            "arrayminus": [_below(e) for e in found],
            "thickness": 1.2,
            "width": 4,
            "color": colour,
        },
        hovertext=[
            f"<b>{name}</b> at {x}<br>{e.value:.3f}× {bounds_text((e.low, e.high))}<br>"
            f"{number(rates[x].value)} tok/s, p95 {number(point.loads[x].p95_ms)} ms"
            for x, e in zip(loads, found, strict=True)
        ],
        hoverinfo="text",
        name=name,
    )


def _above(e: Estimate) -> float:
    return 0.0 if e.high is None or not math.isfinite(e.high) else max(0.0, e.high - e.value)


def _below(e: Estimate) -> float:
    return 0.0 if e.low is None else max(0.0, e.value - e.low)


def write_map(view: MapView, path: Path) -> None:
    """Draws the map into one HTML file.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        write_html(map_figure(view), path, view.study)
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {e.strerror}") from e
