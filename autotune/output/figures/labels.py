"""Labels of points in a plot: never on a point, an error bar or another label."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import plotly.graph_objects as go

from autotune.output.figures.points import Axis
from autotune.output.figures.theme import GRAY, Theme
from autotune.results.text import Bounds
from autotune.results.views import TrialView

_Pixel = tuple[float, float]

# Where a label may be placed: pixels between point and text (negative: on the worse side), and
# down.
_SPOTS = [(reach, drop) for drop in (0, 6, 10, 15, -6, -15) for reach in (12, -12)]
_SPOTS += [
    (reach, sign * drop)
    for drop in (32, 50, 68, 86)
    for sign in (1, -1)
    for reach in (14, 40, -14, -40)
]


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


class _Frame(NamedTuple):
    """The plot's area: ranges of its axes, and its size in pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float
    height: float

    def pixel(self, vx: float, vy: float) -> _Pixel:
        (x_low, x_high), (y_low, y_high) = self.x, self.y
        return (
            (vx - x_low) / (x_high - x_low) * self.width,
            (y_high - vy) / (y_high - y_low) * self.height,
        )

    def holds(self, box: _Box) -> bool:
        return (
            box.left > 2
            and box.right < self.width - 2
            and box.top > 2
            and box.bottom < self.height - 2
        )


class _Spot(NamedTuple):
    """Position of a label: its box, where it begins, and its leader line, if it is far."""

    label: _Box
    start: _Pixel
    line: list[_Box]
    far: bool


def add_labels(
    fig: go.Figure,
    shown: Sequence[TrialView],
    axes: tuple[Axis, Axis],
    size: tuple[float, float],
    theme: Theme,
) -> None:
    """Label the Pareto front and the baseline where there is room, and set the axes' ranges.

    The better side of the front is free of other trials, so labels go there first. A trial whose
    name finds no room still has its hover text.

    Args:
        fig: The figure.
        shown: The trials that it shows; at least one.
        axes: Its axes.
        size: Width and height of the plot's area in pixels; on a wider page the labels only move
            apart.
        theme: Colors of the page.
    """
    x, y = axes
    right = x.objective is None or x.objective.direction == "maximize"
    down = y.objective is not None and y.objective.direction == "minimize"
    x_range = _range(shown, x, *((0.06, 0.26) if right else (0.26, 0.06)))
    frame = _Frame(x_range, _range(shown, y, 0.1, 0.1), *size)
    fig.update_layout(xaxis_range=list(frame.x), yaxis_range=list(frame.y))
    taken = [*_marks(shown, axes, frame), *_bars(shown, axes, frame)]
    taken += _staircase(shown, axes, frame, right=right)
    side, fall = 1 if right else -1, 1 if down else -1
    named = [t for t in shown if t.front or t.baseline]

    def place(t: TrialView) -> _Pixel:
        return frame.pixel(x.of(t), y.of(t))

    # the baseline first, then from the free corner inwards
    for t in sorted(named, key=lambda t: (not t.baseline, -fall * place(t)[1])):
        text = f"baseline, {t.setting}" if t.baseline else t.setting
        text = textwrap.shorten(text, 44, placeholder=" …")
        spot = _spot(text, place(t), (side, fall), frame, taken)
        if spot is not None:
            taken += [spot.label, *spot.line]
            color = theme.baseline if t.baseline else theme.front
            looks = {"font": {"size": 12, "color": color}, "bgcolor": theme.veil}
            _annotate(fig, (x.of(t), y.of(t)), text, place(t), spot, looks)


def _spot(
    text: str, at: _Pixel, ways: tuple[int, int], frame: _Frame, taken: Sequence[_Box]
) -> _Spot | None:
    """Return the first position where a text fits; None: there is none.

    Args:
        text: The label.
        at: The point that it names.
        ways: Whether better is to the right (1) or left (-1), and down (1) or up (-1).
        frame: The plot.
        taken: What it must not cover.
    """
    (px, py), (side, fall) = at, ways
    half = 3.2 * len(text) + 2
    for reach, drop in _SPOTS:
        cx = px + side * math.copysign(half + abs(reach), reach)
        cy = py + fall * drop
        label = _Box(cx - half, cy - 7, cx + half, cy + 7)
        far = abs(drop) > 20
        start = (cx - math.copysign(half, cx - px), cy)
        line = _along((px, py), start) if far else []
        if (
            frame.holds(label)
            and not any(label.meets(other) for other in taken)
            and not any(dot.meets(other) for dot in line for other in taken)
        ):
            return _Spot(label, start, line, far)
    return None


def _annotate(
    fig: go.Figure,
    value: _Pixel,
    text: str,
    at: _Pixel,
    spot: _Spot,
    looks: Mapping[str, Any],
) -> None:
    (px, py), (start, cy) = at, spot.start
    far: dict[str, Any] = {"ax": start - px, "ay": cy - py, "arrowhead": 0, "arrowwidth": 0.8}
    far |= {"arrowcolor": GRAY, "standoff": 7}
    near: dict[str, Any] = {"xshift": start - px, "yshift": py - cy}
    fig.add_annotation(
        x=value[0],
        y=value[1],
        text=escape(text, quote=False),
        borderpad=0,
        showarrow=spot.far,
        **looks,
        **(far if spot.far else near),
        xanchor="left" if (spot.label.left + spot.label.right) / 2 > px else "right",
    )


def _marks(shown: Sequence[TrialView], axes: tuple[Axis, Axis], frame: _Frame) -> Iterator[_Box]:
    x, y = axes
    for t in shown:
        yield _box(*frame.pixel(x.of(t), y.of(t)), 9 if t.baseline else 6)
    for t in shown:
        if t.confirmed:
            cx, cy = x.confirmed(t), y.confirmed(t)
            if cx is not None and cy is not None:
                yield _box(*frame.pixel(cx, cy), 7)


def _bars(shown: Sequence[TrialView], axes: tuple[Axis, Axis], frame: _Frame) -> Iterator[_Box]:
    """Yield the error bars."""
    x, y = axes
    for t in shown:
        if t.front or t.baseline:
            for vx, vy, intervals in (
                (x.of(t), y.of(t), t.intervals),
                (x.confirmed(t), y.confirmed(t), t.confirmed_intervals),
            ):
                if vx is not None and vy is not None:
                    left, right_end = _ends(x, vx, intervals)
                    low, high = _ends(y, vy, intervals)
                    yield _around(frame.pixel(left, vy), frame.pixel(right_end, vy))
                    yield _around(frame.pixel(vx, low), frame.pixel(vx, high))


def _staircase(
    shown: Sequence[TrialView], axes: tuple[Axis, Axis], frame: _Frame, *, right: bool
) -> Iterator[_Box]:
    """Yield the line of the front."""
    x, y = axes
    front = sorted(frame.pixel(x.of(t), y.of(t)) for t in shown if t.front)
    for (ax, ay), (bx, by) in itertools.pairwise(front):
        corner = (ax, by) if right else (bx, ay)
        yield _around(corner, (ax, ay))
        yield _around(corner, (bx, by))


def _ends(axis: Axis, value: float, intervals: Mapping[str, Bounds] | None) -> tuple[float, float]:
    """Return where an error bar begins and ends; at the value where it has no bound."""
    name = axis.objective.name if axis.objective else ""
    low, high = (intervals or {}).get(name) or (None, None)
    return value if low is None else low, value if high is None else high


def _box(cx: float, cy: float, r: float) -> _Box:
    return _Box(cx - r, cy - r, cx + r, cy + r)


def _around(a: _Pixel, b: _Pixel) -> _Box:
    (ax, ay), (bx, by) = a, b
    return _Box(min(ax, bx) - 1, min(ay, by) - 1, max(ax, bx) + 1, max(ay, by) + 1)


def _along(a: _Pixel, b: _Pixel) -> list[_Box]:
    """Return a leader line as dots, from the rim of the point's marker on."""
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
    """Return the ends of error bars and the confirmed points, which must be visible as well."""
    if axis.objective is None:
        return []
    name = axis.objective.name
    ends = [end for t in shown for end in (t.intervals or {}).get(name, ())]
    ends += [end for t in shown for end in (t.confirmed_intervals or {}).get(name, ())]
    ends += [t.confirmed[name] for t in shown if t.confirmed and name in t.confirmed]
    return [end for end in ends if end is not None and math.isfinite(end)]
