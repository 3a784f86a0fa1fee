"""The picture of a study: what each trial gave, what no trial beats, what failed.

Plotly reads a subset of HTML in every text, so all that comes from a study, a model or a log is
escaped. Colours are Okabe and Ito's, which colour-blind people can tell apart; shape and position
say the same once more.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import logging
import math
import os
import signal
import textwrap
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import kaleido
import plotly.graph_objects as go
from choreographer import Browser, Tab
from choreographer.browsers import Chromium

from autotune.results.text import (
    Bounds,
    bounds_text,
    objective_text,
    plain,
    point_text,
    value_text,
    value_with_interval,
)
from autotune.results.views import StudyView, TrialView

if TYPE_CHECKING:
    from objectives import Objective

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
GREY = "#8A94A0"
_BACKGROUND = {"dominated", "ended early", "launched again"}

_log = logging.getLogger(__name__)
logging.getLogger("choreographer").addHandler(logging.NullHandler())  # what matters is raised


@dataclass(frozen=True)
class Theme:
    """Colours of what is no data, for a light or a dark page.

    Attributes:
        ink: Of text, and of marks that would be black.
        grid: Of grid lines.
        axis: Of axes and their ticks.
        page: Behind everything, and the rims of markers.
        veil: Behind labels on the plot: the page, seen through.
        strip: Behind what stands apart from the plot.
        front: Text in the front's colour.
        baseline: Text in the baseline's colour.
    """

    ink: str
    grid: str
    axis: str
    page: str
    veil: str
    strip: str
    front: str
    baseline: str


# Text takes more contrast than a marker: 4.5 : 1 against the page (WCAG 2.2, 1.4.3).
LIGHT = Theme(
    ink="#333333",
    grid="#E8EAED",
    axis="#9AA0A6",
    page="#FFFFFF",
    veil="rgba(255, 255, 255, 0.7)",
    strip="#F1F3F4",
    front=BLUE,
    baseline="#B34F00",
)
DARK = Theme(
    ink="#E3E6EA",
    grid="#31363C",
    axis="#7B838C",
    page="#15181B",
    veil="rgba(21, 24, 27, 0.7)",
    strip="#22272C",
    front="#6DB8EA",
    baseline="#F39A5B",
)


def template(theme: Theme) -> go.layout.Template:
    """What all our figures have in common."""
    axis = {
        "gridcolor": theme.grid,
        "linecolor": theme.axis,
        "tickcolor": theme.axis,
        "ticks": "outside",
        "zeroline": False,
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "font": {
                "family": "Inter, Segoe UI, Helvetica, Arial, sans-serif",
                "size": 13,
                "color": theme.ink,
            },
            "title": {"x": 0, "xref": "paper", "font": {"size": 18}},
            "paper_bgcolor": theme.page,
            "plot_bgcolor": theme.page,
            "hoverlabel": {
                "align": "left",
                "bgcolor": theme.page,
                "bordercolor": theme.axis,
                "font": {"color": theme.ink},
            },
            "xaxis": axis,
            "yaxis": axis,
            "colorway": [BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", theme.ink],
            "margin": {"l": 78, "r": 24, "t": 70, "b": 62},
        }
    )


# Labels are placed for this width in pixels; a wider picture only moves them apart.
_WIDTH, _STRIP_ROW = 700, 26
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 24, 110, 62
_PNG_SIZE = {"width": 1000, "scale": 2}


def pareto_figure(view: StudyView, height: int = 640, theme: Theme = LIGHT) -> go.Figure:
    """The trials by the study's first two objectives; a third one is shown as colour.

    With one objective the trials stand in the order they were run. Trials that are running or
    waiting, and those whose numbers do not compare, are not shown. Axis titles have units and say
    which way is better.

    Args:
        view: What to draw.
        height: Of the whole picture in pixels; the width is that of the page.
        theme: Of the page.
    """
    x, y, third = _axes(view)
    shown = [
        t
        for t in view.trials
        if t.state == "complete"
        and not t.outdated
        and all(t.value(o) is not None for o in view.objectives)
    ]
    fig = go.Figure()
    if third is None:
        _add_front_line(fig, [t for t in shown if t.front], x, y)
    again = [t for t in shown if t.again is not None]
    rest = [t for t in shown if not t.front and not t.baseline and t.again is None]
    groups = (
        ("launched again", again, GREY, "diamond-open", 7),
        ("dominated", [t for t in rest if not t.truncated], GREY, "circle", 9),
        ("ended early", [t for t in rest if t.truncated], GREY, "circle-open", 9),
        ("front", [t for t in shown if t.front and not t.baseline], BLUE, "circle", 12),
        ("baseline", [t for t in shown if t.baseline], ORANGE, "star", 17),
    )
    for name, trials, colour, symbol, size in groups:
        if trials:
            _add_points(fig, view, trials, (x, y, third), name, colour, symbol, size, theme)
    _add_confirmed(fig, view, shown, x, y)
    rows = _add_failed(fig, view, theme)
    _layout(fig, view, shown, (x, y), rows, height, theme)
    return fig


class Axis(NamedTuple):
    """An axis of a figure of the trials.

    Attributes:
        title: With the unit and which way is better.
        objective: What it shows; None: the trial's number.
    """

    title: str
    objective: Objective | None

    def of(self, trial: TrialView) -> float:
        """Where the search saw a trial; NaN where it has no value."""
        value = trial.value(self.objective) if self.objective else float(trial.number)
        return math.nan if value is None else value

    def confirmed(self, trial: TrialView) -> float | None:
        """Where the confirmation saw a trial's point; None: it was not measured again."""
        if self.objective is None:
            return float(trial.number)
        return (trial.confirmed or {}).get(self.objective.name)

    def error(
        self, trials: Sequence[TrialView], *, confirmed: bool = False
    ) -> dict[str, Any] | None:
        """Plotly's error bar of this axis, or None where no trial has an interval.

        Args:
            trials: Those of one trace, in its order.
            confirmed: Of what the confirmation saw instead of the search.
        """
        if self.objective is None:
            return None
        up, down = [], []
        for t in trials:
            value = self.confirmed(t) if confirmed else self.of(t)
            intervals = t.confirmed_intervals if confirmed else t.intervals
            interval = (intervals or {}).get(self.objective.name)
            low, high = interval if interval is not None else (None, None)
            up.append(0.0 if high is None or value is None else max(0.0, high - value))
            down.append(0.0 if low is None or value is None else max(0.0, value - low))
        if not any(up) and not any(down):
            return None
        return {"type": "data", "array": up, "arrayminus": down, "thickness": 1.2, "width": 4}


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
    """The attainment staircase: the border of what some trial of the front is as good as.

    Going right from a point, the points left of the next one are attained by the next one if
    more is better (so the line goes vertically first), by this one if less is.
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
    colour: str,
    symbol: str,
    size: int,
    theme: Theme,
) -> None:
    x, y, third = axes
    marker: dict[str, Any] = {
        "symbol": symbol,
        "size": size,
        "color": colour,
        "opacity": 0.55 if name in _BACKGROUND else 1.0,
        "line": {
            "width": 1,
            "color": theme.page if third is None and not symbol.endswith("open") else colour,
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
        error_x=None if name in _BACKGROUND else coloured(x.error(trials), colour),
        error_y=None if name in _BACKGROUND else coloured(y.error(trials), colour),
        hovertext=[hover_text(view, t) for t in trials],
        hoverinfo="text",
        name=name,
    )


def coloured(error: dict[str, Any] | None, colour: str) -> dict[str, Any] | None:
    """An error bar of :class:`Axis` in a colour."""
    return None if error is None else error | {"color": colour}


def _add_confirmed(
    fig: go.Figure, view: StudyView, shown: Sequence[TrialView], x: Axis, y: Axis
) -> None:
    """Points that were measured again, tied to where the search saw them."""
    again = [t for t in shown if x.confirmed(t) is not None and y.confirmed(t) is not None]
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
        error_x=coloured(x.error(again, confirmed=True), GREEN),
        error_y=coloured(y.error(again, confirmed=True), GREEN),
        hovertext=[hover_text(view, t) for t in again],
        hoverinfo="text",
        name="confirmed",
    )


def _add_failed(fig: go.Figure, view: StudyView, theme: Theme) -> int:
    """Failed trials in a strip below, a row for each kind; gives the number of rows."""
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


def hover_text(view: StudyView, trial: TrialView) -> str:
    """All that a point tells of its trial, as Plotly's subset of HTML."""
    name = f"trial {trial.number}" + (", baseline" if trial.baseline else "")
    lines = [f"<b>{name}</b>{', on the front' if trial.front else ''}"]
    lines += [f"{plain(k)} = {value_text(v)}" for k, v in trial.point.items()]
    for o in view.objectives:
        value = trial.value(o)
        if value is not None:
            shown = value_with_interval(value, (trial.intervals or {}).get(o.name), o)
            lines.append(f"{plain(o.title)}: {shown}")
        again = (trial.confirmed or {}).get(o.name)
        if again is not None:
            shown = value_with_interval(again, (trial.confirmed_intervals or {}).get(o.name), o)
            lines.append(f"   confirmed: {shown}")
    if trial.speedup is not None:
        bounds = f" {bounds_text(trial.speedup_interval)}" if trial.speedup_interval else ""
        lines.append(f"speed-up over the baseline: {trial.speedup:.2f}×{bounds}")
    if trial.acceptance_length is not None:
        lines.append(f"acceptance length: {trial.acceptance_length:.2f} tokens a step")
    if trial.acceptance_per_position:
        rates = " ".join(f"{r:.2f}" for r in trial.acceptance_per_position)
        lines += textwrap.wrap(f"accepted by position: {rates}", 60)
    if trial.failure_kind is not None:
        reason = f"failed: {trial.failure_kind}: {plain(trial.failure_reason or '')}"
        lines += textwrap.wrap(reason, 60, max_lines=6, placeholder=" …")
    for warning in trial.warnings:
        lines += textwrap.wrap(plain(warning), 60)
    if trial.requests is not None:
        early = ", ended early: another trial is better in everything" if trial.truncated else ""
        lines.append(f"{trial.requests} requests{early}")
    if trial.seconds is not None:
        lines.append(f"took {trial.seconds:.0f} s")
    return "<br>".join([lines[0], *(escape(line, quote=False) for line in lines[1:])])


def headline(view: StudyView) -> dict[str, Any]:
    """Plotly's title of a study's figure: its name, how far it is, and on what."""
    done = f"{view.finished} of {view.wanted} trials"
    failed = view.failures()
    parts = [
        done + (f", {len(failed)} failed" if failed else ""),
        f"vLLM {view.vllm_version}" if view.vllm_version else "",
        view.machine,
    ]
    subtitle = textwrap.shorten(" · ".join(plain(p) for p in parts if p), 105, placeholder=" …")
    return {
        "text": f"<b>{escape(plain(view.name), quote=False)}</b><br>"
        f'<span style="font-size: 12px">{escape(subtitle, quote=False)}</span>',
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "pad": {"t": 30},
    }


def _layout(
    fig: go.Figure,
    view: StudyView,
    shown: Sequence[TrialView],
    axes: tuple[Axis, Axis],
    rows: int,
    whole: int,
    theme: Theme,
) -> None:
    x, y = axes
    strip = rows * _STRIP_ROW
    gap = 78 if rows else 0  # the x axis' ticks and title stand between plot and strip
    below = 24 if rows else _BOTTOM
    height = whole - _TOP - below
    bottom = (gap + strip) / height
    failed = view.failures()
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
        o = view.objectives[2]
        side = {"text": _title(o), "side": "right", "font": {"size": 13}}
        fig.update_layout(
            coloraxis={
                "colorscale": "Cividis",
                "reversescale": o.direction == "minimize",
                "colorbar": {
                    "title": side,
                    "thickness": 14,
                    "len": 1 - bottom,
                    "y": 1,
                    "yanchor": "top",
                },
            }
        )
    if rows:
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
                "domain": [0, strip / height],
                "anchor": "x2",
                "range": [rows - 0.5, -0.5],
                "showgrid": False,
                "fixedrange": True,
                "tickfont": {"size": 11},
            },
            shapes=[
                {
                    "type": "rect",
                    "xref": "paper",
                    "yref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": 0,
                    "y1": strip / height,
                    "fillcolor": theme.strip,
                    "line": {"width": 0},
                    "layer": "below",
                }
            ],
        )
        fig.add_annotation(
            text=f"failed trials ({len(failed)})",
            xref="paper",
            yref="paper",
            x=0,
            y=strip / height,
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            font={"size": 12},
        )
    if not shown:
        fig.add_annotation(
            text="no trial has finished yet" if not failed else "no trial gave numbers",
            xref="paper",
            yref="paper",
            x=0.5,
            y=(1 + bottom) / 2,
            showarrow=False,
            font={"size": 16, "color": GREY},
        )
        nothing = {"range": [0, 1], "showticklabels": False, "showgrid": False, "ticks": ""}
        fig.update_layout(xaxis=nothing, yaxis=nothing)
        return
    _label(fig, shown, x, y, height - gap - strip, theme)


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def within(self, width: float, height: float) -> bool:
        return (
            self.left > 2 and self.right < width - 2 and self.top > 2 and self.bottom < height - 2
        )


def _label(
    fig: go.Figure,
    shown: Sequence[TrialView],
    x: Axis,
    y: Axis,
    height: float,
    theme: Theme,
) -> None:
    """Names front and baseline where there is room; what finds none has its hover text.

    The better side of the front is free of other trials, so labels go there first.
    """
    right = x.objective is None or x.objective.direction == "maximize"
    down = y.objective is not None and y.objective.direction == "minimize"
    x_low, x_high = _range(shown, x, *((0.06, 0.26) if right else (0.26, 0.06)))
    y_low, y_high = _range(shown, y, 0.1, 0.1)
    fig.update_layout(xaxis_range=[x_low, x_high], yaxis_range=[y_low, y_high])
    width = _WIDTH - _LEFT - _RIGHT

    def pixel(vx: float, vy: float) -> tuple[float, float]:
        return (
            (vx - x_low) / (x_high - x_low) * width,
            (y_high - vy) / (y_high - y_low) * height,
        )

    taken = [_box(*pixel(x.of(t), y.of(t)), 9 if t.baseline else 6) for t in shown]
    again = [(x.confirmed(t), y.confirmed(t)) for t in shown if t.confirmed]
    taken += [_box(*pixel(cx, cy), 7) for cx, cy in again if cx is not None and cy is not None]
    for t in shown:  # error bars
        if t.front or t.baseline:
            for vx, vy, intervals in (
                (x.of(t), y.of(t), t.intervals),
                (x.confirmed(t), y.confirmed(t), t.confirmed_intervals),
            ):
                if vx is not None and vy is not None:
                    left, right_end = _ends(x, vx, intervals)
                    low, high = _ends(y, vy, intervals)
                    taken.append(_around(pixel(left, vy), pixel(right_end, vy)))
                    taken.append(_around(pixel(vx, low), pixel(vx, high)))
    front = sorted(pixel(x.of(t), y.of(t)) for t in shown if t.front)
    for (ax, ay), (bx, by) in itertools.pairwise(front):  # the staircase
        corner = (ax, by) if right else (bx, ay)
        taken += [_around(corner, (ax, ay)), _around(corner, (bx, by))]

    side, fall = 1 if right else -1, 1 if down else -1
    named = [t for t in shown if t.front or t.baseline]
    # the baseline first, then from the free corner inwards
    for t in sorted(named, key=lambda t: (not t.baseline, -fall * pixel(x.of(t), y.of(t))[1])):
        text = f"baseline, {point_text(t.point)}" if t.baseline else point_text(t.point)
        text = textwrap.shorten(text, 44, placeholder=" …")
        half, px, py = 3.2 * len(text) + 2, *pixel(x.of(t), y.of(t))
        for reach, drop in _SPOTS:
            cx = px + side * math.copysign(half + abs(reach), reach)
            cy = py + fall * drop
            label = _Box(cx - half, cy - 7, cx + half, cy + 7)
            far = abs(drop) > 20
            start = (cx - math.copysign(half, cx - px), cy)
            line = _along((px, py), start) if far else []
            if (
                label.within(width, height)
                and not any(label.meets(other) for other in taken)
                and not any(dot.meets(other) for dot in line for other in taken)
            ):
                break
        else:
            continue
        taken += [label, *line]
        fig.add_annotation(
            x=x.of(t),
            y=y.of(t),
            text=escape(text, quote=False),
            font={"size": 12, "color": theme.baseline if t.baseline else theme.front},
            bgcolor=theme.veil,
            borderpad=0,
            showarrow=far,
            **(
                {"ax": start[0] - px, "ay": start[1] - py, "arrowhead": 0, "arrowwidth": 0.8}
                | {"arrowcolor": GREY, "standoff": 7}
                if far
                else {"xshift": start[0] - px, "yshift": py - cy}
            ),
            xanchor="left" if cx > px else "right",
        )


def _ends(axis: Axis, value: float, intervals: Mapping[str, Bounds] | None) -> tuple[float, float]:
    """Where an error bar begins and ends; at the value where it has no bound."""
    name = axis.objective.name if axis.objective else ""
    low, high = (intervals or {}).get(name) or (None, None)
    return value if low is None else low, value if high is None else high


# Where a label may stand: pixels between point and text (negative: on the worse side), and down.
_SPOTS = [(reach, drop) for drop in (0, 6, 10, 15, -6, -15) for reach in (12, -12)]
_SPOTS += [
    (reach, sign * drop)
    for drop in (32, 50, 68, 86)
    for sign in (1, -1)
    for reach in (14, 40, -14, -40)
]


def _box(cx: float, cy: float, r: float) -> _Box:
    return _Box(cx - r, cy - r, cx + r, cy + r)


def _around(a: tuple[float, float], b: tuple[float, float]) -> _Box:
    (ax, ay), (bx, by) = a, b
    return _Box(min(ax, bx) - 1, min(ay, by) - 1, max(ax, bx) + 1, max(ay, by) + 1)


def _along(a: tuple[float, float], b: tuple[float, float]) -> list[_Box]:
    """A leader line as dots, from the rim of the point's marker on."""
    (ax, ay), (bx, by) = a, b
    length = math.hypot(bx - ax, by - ay)
    steps = [d / length for d in range(13, int(length), 3)]
    return [_box(ax + (bx - ax) * f, ay + (by - ay) * f, 1) for f in steps]


def _range(
    shown: Sequence[TrialView], axis: Axis, below: float, above: float
) -> tuple[float, float]:
    values = [axis.of(t) for t in shown] + _extent(shown, axis)
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    return low - below * span, high + above * span


def _extent(shown: Sequence[TrialView], axis: Axis) -> list[float]:
    """Ends of error bars and confirmed points, which must be in the picture as well."""
    if axis.objective is None:
        return []
    name = axis.objective.name
    ends = [end for t in shown for end in (t.intervals or {}).get(name, ())]
    ends += [end for t in shown for end in (t.confirmed_intervals or {}).get(name, ())]
    ends += [t.confirmed[name] for t in shown if t.confirmed and name in t.confirmed]
    return [end for end in ends if end is not None and math.isfinite(end)]


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0; background: white; }}
main {{ max-width: 1200px; margin: 0 auto; }}
</style>
</head>
<body>
<main>{body}</main>
</body>
</html>
"""


def write_html(fig: go.Figure, path: Path, title: str) -> None:
    """One file that needs no network (about 5 MB, most of it Plotly itself).

    Raises:
        OSError: the file cannot be written.
    """
    body = fig.to_html(
        full_html=False,
        include_plotlyjs=True,
        config={"displaylogo": False, "responsive": True},
    )
    path.write_text(_PAGE.format(title=escape(plain(title)), body=body), encoding="utf-8")


def find_chromium() -> str | None:
    """A Chromium or Chrome that can draw, or None; the variable BROWSER_PATH names another."""
    found: str | None = Chromium.find_browser(skip_local=False)
    return found if found and Path(found).is_file() else None


def write_png(fig: go.Figure, path: Path, timeout_s: float = 90) -> bool:
    """Draws the figure with a Chromium.

    Returns:
        False where there is no Chromium, or where the one there is gave no picture within
        ``timeout_s`` seconds, which is logged.

    Raises:
        OSError: the file cannot be written.
    """
    if find_chromium() is None:
        return False
    browser = kaleido.Kaleido(timeout=timeout_s, mathjax=False)  # MathJax would be downloaded

    async def draw() -> bytes:
        image: bytes = await browser.calc_fig(
            fig, opts={"format": "png", "height": fig.layout.height, **_PNG_SIZE}
        )
        return image

    image = _with_browser(browser, draw, timeout_s)
    if image is None:
        return False
    path.write_bytes(image)
    return True


def print_page(page: Path, timeout_s: float = 120) -> bytes | None:
    """A page as PDF, printed as soon as its promise ``figuresDrawn`` is kept.

    Returns:
        None where there is no Chromium, or where the one there is printed nothing within
        ``timeout_s`` seconds, which is logged.
    """
    if find_chromium() is None:
        return None
    browser = Browser(headless=True)

    async def command(tab: Tab, name: str, **params: Any) -> dict[str, Any]:
        answer = await tab.send_command(name, params=params)
        if "error" in answer or "exceptionDetails" in answer["result"]:
            raise RuntimeError(f"{name}: {answer.get('error') or answer['result']}")
        found: dict[str, Any] = answer["result"]
        return found

    async def draw() -> bytes:
        tab = await browser.create_tab(page.absolute().as_uri())
        await command(tab, "Page.enable")
        while True:  # the tab is there before the page is
            loaded = await command(
                tab, "Runtime.evaluate", expression="Boolean(window.figuresDrawn)"
            )
            if loaded["result"]["value"]:
                break
            await asyncio.sleep(0.1)
        await command(tab, "Runtime.evaluate", expression="figuresDrawn", awaitPromise=True)
        printed = await command(
            tab,
            "Page.printToPDF",
            printBackground=True,
            preferCSSPageSize=True,
            generateTaggedPDF=True,
            generateDocumentOutline=True,
        )
        return base64.b64decode(printed["data"])

    return _with_browser(browser, draw, timeout_s)


def _with_browser(
    browser: Browser, work: Callable[[], Awaitable[bytes]], timeout_s: float
) -> bytes | None:
    """What a browser makes; None, and a line in the log, where it makes nothing in time."""
    with ThreadPoolExecutor(1) as pool:  # a notebook's own event loop must not be in the way
        return pool.submit(asyncio.run, _drawn(browser, work, timeout_s)).result()


async def _drawn(
    browser: Browser, work: Callable[[], Awaitable[bytes]], timeout_s: float
) -> bytes | None:
    # Kaleido's own time-out covers the drawing, not a browser that starts and never answers. With
    # its processes gone, all that waits for it ends.
    late = False

    def give_up() -> None:
        nonlocal late
        late = True
        _kill(browser)

    killer = asyncio.get_running_loop().call_later(timeout_s, give_up)
    try:
        async with browser:
            return await work()
    except (Exception, asyncio.CancelledError) as e:  # noqa: BLE001 – a picture is not worth a run
        why = f"no answer within {timeout_s:g} s" if late else f"{type(e).__name__}: {e}"
        _log.warning("%s drew no picture: %s", find_chromium(), why)
        return None
    finally:
        killer.cancel()
        _kill(browser)


def _kill(browser: Browser) -> None:
    """Ends what is left of a browser; it was started as a process group of its own."""
    process = getattr(browser, "subprocess", None)
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
