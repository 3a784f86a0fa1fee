"""The figure of a study with one or two objectives: trials, Pareto front and failures.

A third objective is shown as color.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from autotune.output.figures.labels import add_labels
from autotune.output.figures.points import Axis, colored, headline, hover_text, shown
from autotune.output.figures.theme import BLUE, GRAY, GREEN, LIGHT, ORANGE, Theme, template
from autotune.results.text import objective_text, plain
from autotune.results.views import StudyView, TrialView

if TYPE_CHECKING:
    from objectives import Objective

_BACKGROUND = {"dominated", "ended early", "launched again"}
# Labels are placed for this width in pixels; a wider picture only moves them apart.
_WIDTH, _STRIP_ROW = 700, 26
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 24, 110, 62


def pareto_figure(view: StudyView, height: int = 640, theme: Theme = LIGHT) -> go.Figure:
    """Return the trials by the study's first two objectives; a third one is shown as color.

    With one objective the trials are in the order they were run. Trials that are running or
    waiting, and those whose numbers do not compare, are not shown. Axis titles have units and say
    which way is better.

    Args:
        view: The study.
        height: Height of the whole picture in pixels; the width is that of the page.
        theme: Colors of the page.
    """
    x, y, third = _axes(view)
    points = shown(view)
    fig = go.Figure()
    if third is None:
        _add_front_line(fig, [t for t in points if t.front], x, y)
    again = [t for t in points if t.again is not None]
    rest = [t for t in points if not t.front and not t.baseline and t.again is None]
    early = (GRAY, "circle-open", 9)
    groups = (
        ("launched again", again, GRAY, "diamond-open", 7),
        ("dominated", [t for t in rest if t.may_win], GRAY, "circle", 9),
        ("ended early", [t for t in rest if t.truncated and not t.throttled], *early),
        ("throttled", [t for t in rest if t.throttled], GRAY, "x-open", 9),
        ("Pareto front", [t for t in points if t.front and not t.baseline], BLUE, "circle", 12),
        ("baseline", [t for t in points if t.baseline], ORANGE, "star", 17),
    )
    for name, trials, color, symbol, size in groups:
        if trials:
            _add_points(fig, view, trials, (x, y, third), name, color, symbol, size, theme)
    _add_confirmed(fig, view, points, x, y)
    rows = _add_failed(fig, view, theme)
    _layout(fig, view, points, (x, y), rows, height, theme)
    return fig


def _axes(view: StudyView) -> tuple[Axis, Axis, Objective | None]:
    first, *rest = view.objectives
    if not rest:
        return Axis("trial", None), Axis(_title(first), first), None
    return (
        Axis(_title(first), first),
        Axis(_title(rest[0]), rest[0]),
        rest[1] if len(rest) > 1 else None,
    )


def _title(objective: Objective) -> str:
    text = escape(objective_text(objective), quote=False)
    return f"{text}  →  better" if objective.direction == "maximize" else f"better  ←  {text}"


def _add_front_line(fig: go.Figure, front: Sequence[TrialView], x: Axis, y: Axis) -> None:
    """Add the attainment staircase: the border of the region that the Pareto front attains.

    Between two neighbors on the front, the right one attains the values if more is better, so the
    line goes vertically first. If less is better, the left one attains them.
    """
    if x.objective is None or len(front) < 2:
        return
    front = sorted(front, key=lambda t: (x.of(t), y.of(t)))
    fig.add_scatter(
        x=[x.of(t) for t in front],
        y=[y.of(t) for t in front],
        mode="lines",
        line={
            "shape": "vh" if x.objective.direction == "maximize" else "hv",
            "color": BLUE,
            "width": 1.6,
        },
        hoverinfo="skip",
        showlegend=False,
        name="front line",
    )


def _add_points(
    fig: go.Figure,
    view: StudyView,
    trials: Sequence[TrialView],
    axes: tuple[Axis, Axis, Objective | None],
    name: str,
    color: str,
    symbol: str,
    size: int,
    theme: Theme,
) -> None:
    x, y, third = axes
    marker: dict[str, Any] = {
        "symbol": symbol,
        "size": size,
        "color": color,
        "opacity": 0.55 if name in _BACKGROUND else 1.0,
        "line": {
            "width": 1,
            "color": theme.page if third is None and not symbol.endswith("open") else color,
        },
    }
    if third is not None:
        marker |= {"color": [t.value(third) for t in trials], "coloraxis": "coloraxis"}
        marker["line"]["width"] = 1 if name in _BACKGROUND else 2.5
        marker["opacity"] = 1.0
    fig.add_scatter(
        x=[x.of(t) for t in trials],
        y=[y.of(t) for t in trials],
        mode="markers",
        marker=marker,
        # of dominated points they would only hide the others; their hover text has them
        error_x=None if name in _BACKGROUND else colored(x.error(trials), color),
        error_y=None if name in _BACKGROUND else colored(y.error(trials), color),
        hovertext=[hover_text(view, t) for t in trials],
        hoverinfo="text",
        name=name,
    )


def _add_confirmed(
    fig: go.Figure, view: StudyView, points: Sequence[TrialView], x: Axis, y: Axis
) -> None:
    """Add the points that were measured again, tied to where the search saw them."""
    again = [t for t in points if x.confirmed(t) is not None and y.confirmed(t) is not None]
    again = [t for t in again if t.confirmed]
    if not again:
        return
    ties: list[tuple[float | None, float | None]] = []
    for t in again:
        ties += [(x.of(t), y.of(t)), (x.confirmed(t), y.confirmed(t)), (None, None)]
    fig.add_scatter(
        x=[p[0] for p in ties],
        y=[p[1] for p in ties],
        mode="lines",
        line={"color": GREEN, "width": 1.2, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
        name="search to confirmation",
    )
    fig.add_scatter(
        x=[x.confirmed(t) for t in again],
        y=[y.confirmed(t) for t in again],
        mode="markers",
        marker={"symbol": "diamond-open", "size": 12, "color": GREEN, "line": {"width": 2.5}},
        error_x=colored(x.error(again, confirmed=True), GREEN),
        error_y=colored(y.error(again, confirmed=True), GREEN),
        hovertext=[hover_text(view, t) for t in again],
        hoverinfo="text",
        name="confirmed",
    )


def _add_failed(fig: go.Figure, view: StudyView, theme: Theme) -> int:
    """Add the failed trials in a strip below, a row for each kind; return the number of rows."""
    rows: dict[str, list[TrialView]] = {}
    for t in view.failures():
        rows.setdefault(plain(t.failure_kind or "unknown").replace("_", " "), []).append(t)
    for kind, trials in rows.items():
        fig.add_scatter(
            x=list(range(len(trials))),
            y=[escape(kind, quote=False)] * len(trials),
            xaxis="x2",
            yaxis="y2",
            mode="markers+text",
            marker={"symbol": "x", "size": 8, "color": theme.ink},
            text=[f" #{t.number}" if len(trials) <= 15 else "" for t in trials],
            textposition="middle right",
            textfont={"size": 11, "color": theme.ink},
            hovertext=[hover_text(view, t) for t in trials],
            hoverinfo="text",
            name="failed",
            showlegend=False,
        )
    return len(rows)


def _layout(
    fig: go.Figure,
    view: StudyView,
    points: Sequence[TrialView],
    axes: tuple[Axis, Axis],
    rows: int,
    whole: int,
    theme: Theme,
) -> None:
    """Set titles, axes and legend, place the strip of failures, and name the points.

    Args:
        fig: The figure.
        view: The study.
        points: The trials that are shown as points.
        axes: The axes of the plot.
        rows: Number of rows of the strip.
        whole: Height of the whole picture in pixels.
        theme: Colors of the page.
    """
    x, y = axes
    strip = rows * _STRIP_ROW
    gap = 78 if rows else 0  # the x axis' ticks and title are between plot and strip
    below = 24 if rows else _BOTTOM
    height = whole - _TOP - below
    bottom = (gap + strip) / height
    fig.update_layout(
        template=template(theme),
        title=headline(view),
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "xanchor": "left"},
        margin={"l": _LEFT, "r": _RIGHT, "t": _TOP, "b": below},
        height=whole,
        xaxis={"title": {"text": x.title, "standoff": 10, "font": {"size": 14}}, "anchor": "y"},
        yaxis={
            "title": {"text": y.title, "standoff": 10, "font": {"size": 14}},
            "domain": [bottom, 1],
        },
    )
    if len(view.objectives) > 2:
        fig.update_layout(coloraxis=_color_axis(view.objectives[2], bottom))
    if rows:
        _add_strip(fig, view.failures(), rows, strip / height, theme)
    if points:
        size = (_WIDTH - _LEFT - _RIGHT, height - gap - strip)
        add_labels(fig, points, axes, size, theme)
    else:
        _say_empty(fig, (1 + bottom) / 2, failed=bool(view.failures()))


def _color_axis(objective: Objective, bottom: float) -> dict[str, Any]:
    return {
        "colorscale": "Cividis",
        "reversescale": objective.direction == "minimize",
        "colorbar": {
            "title": {"text": _title(objective), "side": "right", "font": {"size": 13}},
            "thickness": 14,
            "len": 1 - bottom,
            "y": 1,
            "yanchor": "top",
        },
    }


def _add_strip(
    fig: go.Figure, failed: Sequence[TrialView], rows: int, top: float, theme: Theme
) -> None:
    """Add axes and background of the strip of failures; ``top`` is its share of the height."""
    most = max(sum(1 for t in failed if t.failure_kind == f.failure_kind) for f in failed)
    fig.update_layout(
        xaxis2={
            "domain": [0, 1],
            "anchor": "y2",
            "range": [-0.5, max(most, 12) - 0.5],
            "visible": False,
            "fixedrange": True,
        },
        yaxis2={
            "domain": [0, top],
            "anchor": "x2",
            "range": [rows - 0.5, -0.5],
            "showgrid": False,
            "fixedrange": True,
            "tickfont": {"size": 11},
        },
    )
    fig.add_shape(
        type="rect",
        **{"xref": "paper", "yref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": top},
        fillcolor=theme.strip,
        line={"width": 0},
        layer="below",
    )
    fig.add_annotation(
        text=f"failed trials ({len(failed)})",
        **{"xref": "paper", "yref": "paper", "x": 0, "y": top},
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
        font={"size": 12},
    )


def _say_empty(fig: go.Figure, middle: float, *, failed: bool) -> None:
    fig.add_annotation(
        text="no trial gave numbers" if failed else "no trial has finished yet",
        **{"xref": "paper", "yref": "paper", "x": 0.5, "y": middle},
        showarrow=False,
        font={"size": 16, "color": GRAY},
    )
    nothing = {"range": [0, 1], "showticklabels": False, "showgrid": False, "ticks": ""}
    fig.update_layout(xaxis=nothing, yaxis=nothing)
