"""The figure of a study with three objectives: the Pareto front in space, and trials as lines.

In space, stems lead from the points of the front and the baseline to the floor: their feet show
where the points are. Below, in parallel coordinates, a line is a trial and an axis
an objective or a parameter (A. Inselberg, "The plane with parallel coordinates", The Visual
Computer 1, 1985); every objective is better upwards, so that a line above another one dominates it,
and an axis can be brushed to see only what passes there. Both need no third dimension on paper.
Texts and colors are those of :mod:`autotune.output.figures.points` and ``theme``.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from autotune.output.figures.points import Axis, colored, headline, hover_text, shown
from autotune.output.figures.theme import BLUE, GRAY, GREEN, LIGHT, ORANGE, Theme, template
from autotune.results.text import objective_text, plain, value_text, way_text, wrapped
from autotune.results.views import StudyView, TrialView
from autotune.study.space import MNBT, N, Value

if TYPE_CHECKING:
    from objectives import Objective

_SCENE, _LINES = (0.44, 1.0), (0.09, 0.34)  # shares of the height, from below
_LINES_ALONE = (0.22, 0.93)  # below them, each axis has its name
_NOTE_ABOVE = 0.03  # of the lines, where both pictures are one
_MOST_LEVELS = 12  # of a parameter whose values get a tick each
_MISSING = "–"  # value of a parameter that a trial's arm does not have
_MARGIN = 0.06  # around the points, as a share of an axis


def front_figure(view: StudyView, height: int = 1080, theme: Theme = LIGHT) -> go.Figure:
    """Return the trials by the study's three objectives, and below in parallel coordinates.

    Args:
        view: The study.
        height: Height of the whole picture in pixels; the width is that of the page.
        theme: Colors of the page.
    """
    fig = _titled(view, height, theme)
    _add_space(fig, view, _SCENE, theme)
    _add_lines(fig, view, _LINES, _LINES[1] + _NOTE_ABOVE, theme)
    return fig


def space_figure(view: StudyView, height: int, theme: Theme = LIGHT) -> go.Figure:
    """Return the upper part of :func:`front_figure` alone: the trials by three objectives."""
    fig = _titled(view, height, theme)
    _add_space(fig, view, (0, 1), theme)
    return fig


def lines_figure(view: StudyView, height: int, theme: Theme = LIGHT) -> go.Figure:
    """Return the lower part of :func:`front_figure`: the trials in parallel coordinates."""
    fig = _titled(view, height, theme)
    _add_lines(fig, view, _LINES_ALONE, 1, theme)
    return fig


def _titled(view: StudyView, height: int, theme: Theme) -> go.Figure:
    return go.Figure(
        layout={
            "template": template(theme),
            "title": headline(view),
            "margin": {"l": 40, "r": 40, "t": 110, "b": 20},
            "height": height,
        }
    )


def _add_space(fig: go.Figure, view: StudyView, heights: tuple[float, float], theme: Theme) -> None:
    """Add the trials as points.

    Args:
        fig: The figure.
        view: The study.
        heights: Share of the plot's height that it takes, from and to, from below.
        theme: Colors of the page.
    """
    points = shown(view)
    axes = [Axis(_way(o), o) for o in view.objectives]
    rest = [t for t in points if not t.front and not t.baseline and t.again is None]
    early = (GRAY, "circle-open", 4)
    groups = (
        ("launched again", [t for t in points if t.again is not None], GRAY, "diamond-open", 4),
        ("dominated", [t for t in rest if t.may_win], GRAY, "circle", 4),
        ("ended early", [t for t in rest if t.truncated and not t.throttled], *early),
        ("throttled", [t for t in rest if t.throttled], GRAY, "x", 3),
        ("Pareto front", [t for t in points if t.front and not t.baseline], BLUE, "circle", 6),
        ("baseline", [t for t in points if t.baseline], ORANGE, "square", 6),
    )
    ranges = [_range([a.of(t) for t in points]) for a in axes]
    floor = ranges[2][1 if view.objectives[2].direction == "minimize" else 0]
    for name, trials, color, symbol, size in groups:
        if trials:
            if color != GRAY:
                _add_stems(fig, trials, axes, floor, color)
            _add_points(fig, view, trials, axes, name, color, symbol, size)
    _add_confirmed(fig, view, points, axes)
    _place_scene(fig, view, axes, ranges, heights, theme)


def _way(objective: Objective) -> str:
    return f"{objective_text(objective)}, {way_text(objective)}"


def _broken(text: str, width: int) -> str:
    """Return a text for Plotly, in lines of at most ``width`` characters."""
    return "<br>".join(escape(line, quote=False) for line in wrapped(text, width, hyphens=True))


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    span = (high - low) or abs(high) or 1.0
    return low - _MARGIN * span, high + _MARGIN * span


def _add_points(
    fig: go.Figure,
    view: StudyView,
    trials: Sequence[TrialView],
    axes: Sequence[Axis],
    name: str,
    color: str,
    symbol: str,
    size: int,
) -> None:
    axis_of = dict(zip("xyz", axes, strict=True))
    # of dominated points they would only hide the others; their hover text has them
    bars = {} if color == GRAY else {f"error_{k}": a.error(trials) for k, a in axis_of.items()}
    fig.add_scatter3d(
        **{k: [a.of(t) for t in trials] for k, a in axis_of.items()},
        **{k: colored(bar, color) for k, bar in bars.items() if bar is not None},
        mode="markers",
        marker={"symbol": symbol, "size": size, "color": color},
        hovertext=[hover_text(view, t) for t in trials],
        hoverinfo="text",
        name=name,
    )


def _add_stems(
    fig: go.Figure, trials: Sequence[TrialView], axes: Sequence[Axis], floor: float, color: str
) -> None:
    """Add lines from the points to the floor: the worst end of the third objective."""
    x, y, z = axes
    fig.add_scatter3d(
        x=[v for t in trials for v in (x.of(t), x.of(t), None)],
        y=[v for t in trials for v in (y.of(t), y.of(t), None)],
        z=[v for t in trials for v in (z.of(t), floor, None)],
        mode="lines",
        line={"color": color, "width": 1.5},
        opacity=0.45,
        hoverinfo="skip",
        showlegend=False,
        name="stems",
    )


def _add_confirmed(
    fig: go.Figure, view: StudyView, points: Sequence[TrialView], axes: Sequence[Axis]
) -> None:
    """Add the points that were measured again, tied to where the search saw them."""
    again = [t for t in points if all(a.confirmed(t) is not None for a in axes)]
    if not again:
        return
    axis_of = dict(zip("xyz", axes, strict=True))
    bars = {f"error_{k}": a.error(again, confirmed=True) for k, a in axis_of.items()}
    fig.add_scatter3d(
        **{
            k: [v for t in again for v in (a.of(t), a.confirmed(t), None)]
            for k, a in axis_of.items()
        },
        mode="lines",
        line={"color": GREEN, "width": 2, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
        name="search to confirmation",
    )
    fig.add_scatter3d(
        **{k: [a.confirmed(t) for t in again] for k, a in axis_of.items()},
        **{k: colored(bar, GREEN) for k, bar in bars.items() if bar is not None},
        mode="markers",
        marker={"symbol": "diamond-open", "size": 5, "color": GREEN},
        hovertext=[hover_text(view, t) for t in again],
        hoverinfo="text",
        name="confirmed",
    )


def _add_lines(
    fig: go.Figure,
    view: StudyView,
    heights: tuple[float, float],
    note_at: float,
    theme: Theme,
) -> None:
    """Add a line for each trial of the search, the dominated ones below the others.

    Args:
        fig: The figure.
        view: The study.
        heights: Share of the plot's height that the axes take, from and to, from below.
        note_at: Height of the explanation, in the same measure.
        theme: Colors of the page.
    """

    def rank(t: TrialView) -> int:
        return 2 if t.baseline else 1 if t.front else 0

    trials = sorted((t for t in shown(view) if t.again is None), key=rank)
    if not trials:
        return
    objectives = [_objective_axis(o, trials) for o in view.objectives]
    parameters = [
        _dimension(name, [t.point.get(name, _MISSING) for t in trials])
        for name in view.parameters()
    ]
    fig.add_parcoords(
        dimensions=objectives + parameters,
        line={
            "color": [rank(t) for t in trials],
            "colorscale": [[0, GRAY], [0.5, BLUE], [1, ORANGE]],
            "cmin": 0,
            "cmax": 2,
        },
        domain={"x": [0.03, 0.97], "y": list(heights)},
        labelside="bottom",  # above, a second line would lie on the ends of the range
        name="trials",
    )
    _add_note(fig, note_at, theme)


def _add_note(fig: go.Figure, at: float, theme: Theme) -> None:
    fig.add_annotation(
        text=f'A line is a trial: <span style="color:{theme.front}"><b>Pareto front</b></span>, '
        f'<span style="color:{theme.baseline}"><b>baseline</b></span>, dominated.<br>'
        "Objectives: up is better. Drag along an axis to filter.",
        xref="paper",
        yref="paper",
        x=0,
        y=at,
        xanchor="left",
        align="left",
        yanchor="bottom",
        showarrow=False,
        font={"size": 12, "color": theme.ink},
    )


def _objective_axis(o: Objective, trials: Sequence[TrialView]) -> dict[str, Any]:
    values = [v for t in trials if (v := t.value(o)) is not None]
    low, high = (float(f"{end:.3g}") for end in _range(values))  # both are shown
    return {
        "label": _broken(objective_text(o), 24),
        "values": values,
        "range": (low, high) if o.direction == "maximize" else (high, low),
    }


def _dimension(name: str, values: Sequence[Value]) -> dict[str, Any]:
    """Return a parameter's axis: its values in turn, or a scale where they are many."""
    short = {N: "n", MNBT: "MNBT"}.get(name, plain(name).replace("_", " "))
    label = _broken(short, 18)
    given = [v for v in values if v != _MISSING]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in given)
    levels = list(dict.fromkeys(given))
    levels = sorted(levels) if numbers else sorted(levels, key=str)
    if len(given) < len(values):  # an axis of places, with one for these
        numbers, levels = False, [*levels, _MISSING]
    if numbers and len(levels) > _MOST_LEVELS:
        return {"label": label, "values": values}
    return {
        "label": label,
        "values": [levels.index(v) for v in values],
        "range": (-0.5, len(levels) - 0.5),
        "tickvals": list(range(len(levels))),
        "ticktext": [escape(value_text(v), quote=False) for v in levels],
    }


def _scene_axis(axis: Axis, bounds: tuple[float, float], theme: Theme) -> dict[str, Any]:
    return {
        "title": {"text": _broken(axis.title, 30), "font": {"size": 12}},
        "tickfont": {"size": 11},
        "range": bounds,
        "gridcolor": theme.grid,
        "linecolor": theme.axis,
        "backgroundcolor": theme.page,
        "showbackground": True,
        "zeroline": False,
    }


def _place_scene(
    fig: go.Figure,
    view: StudyView,
    axes: Sequence[Axis],
    ranges: Sequence[tuple[float, float]],
    heights: tuple[float, float],
    theme: Theme,
) -> None:
    scene: dict[str, Any] = {
        f"{k}axis": _scene_axis(a, bounds, theme)
        for k, a, bounds in zip("xyz", axes, ranges, strict=True)
    }
    if view.objectives[2].direction == "minimize":  # better is up
        scene["zaxis"]["range"] = ranges[2][::-1]
    fig.update_layout(
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.0,
            "yanchor": "bottom",
            "xanchor": "left",
            "itemsizing": "constant",
        },
        scene=scene
        | {
            "domain": {"x": [0, 1], "y": list(heights)},
            "camera": {
                "eye": {"x": 1.36, "y": -1.5, "z": 0.66},
                "center": {"x": 0, "y": 0, "z": -0.16},
            },
            "aspectmode": "cube",
        },
    )
