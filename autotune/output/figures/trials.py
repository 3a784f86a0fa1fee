"""The report's own figures; front, map and time are those of the commands that show them.

A figure has no title: its caption stands below it. Colours are Okabe and Ito's, and a symbol, a
dash or a place says the same once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autotune.output.figures.theme import BLUE, GREEN, GREY, ORANGE, Theme, template
from autotune.prediction import Outlook
from autotune.stats.measurement import Floats
from autotune.study.space import MNBT, N, Value
from autotune.views import (
    Bounds,
    StudyView,
    TrialView,
    bounds_text,
    cost,
    number,
    objective_text,
    plain,
    point_text,
    value_text,
    value_with_interval,
)
from objectives import Objective

_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")
_DASHES = ("solid", "dash", "dot", "dashdot")
_LEGEND = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "xanchor": "left"}
# More points of a curve cannot be told apart on a screen.
_MOST_STEPS = 600


def searched(view: StudyView) -> list[TrialView]:
    """The trials of the search that count: complete, comparable, a point of their own."""
    return [
        t
        for t in view.trials
        if t.state == "complete"
        and t.again is None
        and not t.truncated
        and not t.outdated
        and all(t.value(o) is not None for o in view.objectives)
    ]


def n_of(trial: TrialView) -> int | None:
    """Its ``num_speculative_tokens``; None: that was not searched."""
    n = trial.point.get(N)
    return n if isinstance(n, int) else None


def best_by_n(trials: Sequence[TrialView], objective: Objective) -> dict[int, TrialView]:
    """For each n, ascending, the trial that is best by an objective."""
    found: dict[int, TrialView] = {}
    for t in sorted(trials, key=lambda t: cost(objective, t.value(objective))):
        if (n := n_of(t)) is not None:
            found.setdefault(n, t)
    return dict(sorted(found.items()))


def by_n_figure(view: StudyView, theme: Theme) -> go.Figure:
    """Each objective by n, one above the other, with the baseline as a line."""
    trials = [t for t in searched(view) if n_of(t) is not None]
    base = next((t for t in view.trials if t.baseline), None)
    fig = make_subplots(rows=len(view.objectives), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, o in enumerate(view.objectives, 1):
        best = best_by_n(trials, o)
        rest = [t for t in trials if t is not best[n_of(t) or 0]]
        again = [t for t in trials if t.confirmed and o.name in t.confirmed]
        groups = (
            ("other trials", rest, GREY, "circle-open", 7, "markers", None),
            ("best trial of an n", list(best.values()), BLUE, "circle", 10, "lines+markers", False),
            ("confirmed", again, GREEN, "diamond-open", 12, "markers", True),
        )
        for name, of, colour, symbol, size, mode, confirmed in groups:
            if not of:
                continue
            values = [(t.confirmed or {})[o.name] if confirmed else t.value(o) for t in of]
            fig.add_scatter(
                x=[n_of(t) for t in of],
                y=values,
                mode=mode,
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                marker={
                    "symbol": symbol,
                    "size": size,
                    "color": colour,
                    "line": {"width": 2, "color": colour},
                },
                line={"color": colour, "width": 1.6},
                error_y=None
                if confirmed is None
                else _error(
                    values,
                    [
                        ((t.confirmed_intervals if confirmed else t.intervals) or {}).get(o.name)
                        for t in of
                    ],
                    colour,
                ),
                hovertext=[_trial_hover(t, o) for t in of],
                hoverinfo="text",
                row=row,
                col=1,
            )
        if base is not None and (value := base.value(o)) is not None:
            fig.add_hline(y=value, line={"color": ORANGE, "dash": "dash", "width": 1.6}, row=row)
            if row == 1:  # a line has no entry in the legend of its own
                fig.add_scatter(
                    x=[None],
                    y=[None],
                    mode="lines",
                    name=f"baseline, {point_text(base.point)}",
                    line={"color": ORANGE, "dash": "dash", "width": 1.6},
                )
        fig.update_yaxes(title_text=_better(o), rangemode="tozero", row=row, col=1)
    ns = sorted({n for t in trials if (n := n_of(t)) is not None})
    fig.update_xaxes(title_text="n: tokens drafted per step", row=len(view.objectives), col=1)
    fig.update_xaxes(**_ticks(ns), range=[min(ns) - 0.5, max(ns) + 0.5])
    return _finished(fig, theme, 110 + 230 * len(view.objectives))


def grid_figure(view: StudyView, objective: Objective, theme: Theme) -> go.Figure:
    """An objective over n and MNBT: the best trial of each pair, × where only failures are."""
    trials = searched(view)
    best: dict[tuple[Value, Value], TrialView] = {}
    for t in sorted(trials, key=lambda t: cost(objective, t.value(objective))):
        best.setdefault((t.point[N], t.point[MNBT]), t)
    failed = {(t.point[N], t.point[MNBT]) for t in view.failures()} - best.keys()
    pairs = [*best, *failed]
    ns, budgets = (sorted({pair[i] for pair in pairs}, key=float) for i in (0, 1))
    cells = [[best.get((n, budget)) for n in ns] for budget in budgets]
    fig = go.Figure(
        go.Heatmap(
            x=[value_text(n) for n in ns],
            y=[value_text(b) for b in budgets],
            z=[[None if t is None else t.value(objective) for t in row] for row in cells],
            text=[
                ["" if t is None else number(t.value(objective) or 0.0) for t in row]
                for row in cells
            ],
            texttemplate="%{text}",
            hovertext=[
                ["not launched" if t is None else _trial_hover(t, objective) for t in row]
                for row in cells
            ],
            hoverinfo="text",
            colorscale="Cividis",
            reversescale=objective.direction == "minimize",  # the better, the brighter
            xgap=2,
            ygap=2,
            hoverongaps=False,
            colorbar={
                "title": {"text": escape(objective_text(objective)), "side": "right"},
                "thickness": 14,
                "outlinewidth": 0,
                "tickcolor": theme.axis,
            },
        )
    )
    if failed:
        fig.add_scatter(
            x=[value_text(n) for n, _ in failed],
            y=[value_text(b) for _, b in failed],
            mode="markers",
            marker={"symbol": "x", "size": 10, "color": theme.ink},
            hovertext=[f"n = {value_text(n)}, MNBT {value_text(b)}: failed" for n, b in failed],
            hoverinfo="text",
            name="failed",
            showlegend=False,
        )
    fig.update_xaxes(title_text="n", type="category", showgrid=False)
    fig.update_yaxes(title_text="MNBT", type="category", showgrid=False, title_standoff=10)
    return _finished(fig, theme, 130 + 38 * max(3, len(budgets)))


def acceptance_figure(trials: Mapping[int, TrialView], theme: Theme) -> go.Figure:
    """The share of drafted tokens that were accepted, by position, a line for each n."""
    fig = go.Figure()
    for i, (n, t) in enumerate(trials.items()):
        again = i // len(_COLOURS)  # the same colour has another symbol and dash then
        colour, symbol = _COLOURS[i % 7], _SYMBOLS[(i + again) % 7]
        shares = t.acceptance_per_position
        fig.add_scatter(
            x=list(range(1, len(shares) + 1)),
            y=list(shares),
            mode="lines+markers",
            name=f"n = {n}",
            line={"color": colour, "width": 1.6, "dash": _DASHES[again % 4]},
            marker={"symbol": symbol, "size": 8},
            hovertext=[
                f"<b>n = {n}</b>, position {k}<br>accepted: {s:.0%}"
                for k, s in enumerate(shares, 1)
            ],
            hoverinfo="text",
        )
    most = max(len(t.acceptance_per_position) for t in trials.values())
    fig.update_xaxes(title_text="Position in the draft", **_ticks(range(1, most + 1)))
    fig.update_yaxes(title_text="Accepted  →  better", tickformat=".0%", range=[0, 1])
    return _finished(fig, theme, 380)


def prediction_figure(found: Outlook, theme: Theme) -> go.Figure:
    """tok/s by n: what the launches at the other n predict, and what was measured."""
    fig = go.Figure()
    expected = [r for r in found.rows if r.predicted is not None]
    measured = [r for r in found.rows if r.measured is not None]
    fig.add_scatter(
        x=[r.n for r in expected],
        y=[r.predicted for r in expected],
        mode="lines+markers",
        name="predicted",
        line={"color": ORANGE, "width": 1.6, "dash": "dot"},
        marker={
            "symbol": ["square-open" if r.extrapolated else "square" for r in expected],
            "size": 8,
        },
        hovertext=[
            f"<b>n = {r.n}</b><br>predicted: {number(r.predicted or 0.0)} tok/s"
            + ("<br>beyond the launched n, less certain" if r.extrapolated else "")
            for r in expected
        ],
        hoverinfo="text",
    )
    fig.add_scatter(
        x=[r.n for r in measured],
        y=[r.measured for r in measured],
        mode="markers",
        name="measured",
        marker={"symbol": "circle", "size": 11, "color": BLUE},
        hovertext=[
            f"<b>n = {r.n}</b>, trial {r.trial}<br>measured: {number(r.measured or 0.0)} tok/s"
            + ("" if r.error is None else f"<br>predicted: {r.error:+.0%}")
            for r in measured
        ],
        hoverinfo="text",
    )
    fig.update_xaxes(title_text="n: tokens drafted per step", **_ticks([r.n for r in found.rows]))
    fig.update_yaxes(title_text="tok/s  →  better", rangemode="tozero")
    return _finished(fig, theme, 380)


@dataclass(frozen=True)
class Latencies:
    """The requests of one point.

    Attributes:
        name: Of the point, as the reader knows it.
        launches: How many the requests are of.
        e2el: End-to-end latencies, s.
        ttft: Times to the first token, s.
    """

    name: str
    launches: int
    e2el: Floats
    ttft: Floats


def latency_figure(curves: Sequence[Latencies], theme: Theme) -> go.Figure:
    """Empirical distribution functions of E2EL, and of TTFT below it."""
    fig = make_subplots(rows=2, cols=1, vertical_spacing=0.2)
    looks = list(zip(curves, (BLUE, ORANGE, GREEN), _DASHES, strict=False))
    for row, kind in ((1, "E2EL"), (2, "TTFT")):
        for c, colour, dash in looks:
            x, share = _steps((c.e2el if kind == "E2EL" else c.ttft) * 1000)
            fig.add_scatter(
                x=x,
                y=share,
                mode="lines",
                name=escape(c.name),
                legendgroup=c.name,
                showlegend=row == 1,
                line={"shape": "hv", "color": colour, "width": 2, "dash": dash},
                hovertemplate="<b>%{fullData.name}</b><br>%{y:.0%} within %{x:.4r} ms"
                "<extra></extra>",
                row=row,
                col=1,
            )
        fig.add_hline(y=0.95, line={"color": GREY, "width": 1, "dash": "dot"}, row=row)
        fig.update_xaxes(title_text=f"better  ←  {kind} (ms)", rangemode="tozero", row=row, col=1)
        fig.update_yaxes(title_text="Requests", tickformat=".0%", range=[0, 1.02], row=row, col=1)
    fig.update_xaxes(title_standoff=4)  # the upper one stands between two plots
    fig.update_yaxes(tickvals=[0, 0.25, 0.5, 0.75, 0.95])
    return _finished(fig, theme, 560)


def _steps(values: Floats) -> tuple[list[float], list[float]]:
    """Where the distribution function steps, to 0.01 ms, and to what.

    Args:
        values: In ms.
    """
    values = np.sort(values)
    shares = np.arange(1, len(values) + 1) / len(values)
    if len(values) > _MOST_STEPS:
        keep = np.unique(np.linspace(0, len(values) - 1, _MOST_STEPS).astype(int))
        values, shares = values[keep], shares[keep]
    x, share = (np.round(v, digits).tolist() for v, digits in ((values, 2), (shares, 4)))
    return [x[0], *x], [0.0, *share]


def importance_figure(
    found: Mapping[str, Mapping[str, float]], objectives: Sequence[Objective], theme: Theme
) -> go.Figure:
    """How much each parameter decides over each objective."""
    fig = go.Figure()
    names = list(dict.fromkeys(name for shares in found.values() for name in shares))
    for o, colour, pattern in zip(objectives, _COLOURS, ("", "/", "x"), strict=False):
        shares = found[o.name]
        fig.add_bar(
            y=[escape(plain(n)) for n in names],
            x=[shares.get(n, 0.0) for n in names],
            orientation="h",
            name=escape(plain(o.title)),
            marker={"color": colour, "pattern": {"shape": pattern}},
            hovertext=[
                f"<b>{escape(plain(n))}</b>, {escape(plain(o.title))}: {shares.get(n, 0.0):.0%}"
                for n in names
            ],
            hoverinfo="text",
        )
    fig.update_layout(barmode="group")
    fig.update_xaxes(title_text="Share of the importance", tickformat=".0%", rangemode="tozero")
    fig.update_yaxes(autorange="reversed")
    return _finished(fig, theme, 130 + 26 * len(names) * (len(found) + 1))


def untitled(fig: go.Figure) -> go.Figure:
    """A figure of another command, as it stands above a caption."""
    margin = fig.layout.margin.to_plotly_json()
    fig.update_layout(title=None, margin={**margin, "t": 48})
    return fig


def _finished(fig: go.Figure, theme: Theme, height: int) -> go.Figure:
    fig.update_layout(
        template=template(theme),
        height=height,
        legend=_LEGEND,
        margin={"l": 70, "r": 24, "t": 48, "b": 56},
    )
    return fig


def _error(
    values: Sequence[float | None], bounds: Sequence[Bounds | None], colour: str
) -> dict[str, object]:
    up, down = [], []
    for value, (low, high) in zip(values, (b or (None, None) for b in bounds), strict=True):
        up.append(0.0 if high is None or value is None else max(0.0, high - value))
        down.append(0.0 if low is None or value is None else max(0.0, value - low))
    return {
        "type": "data",
        "array": up,
        "arrayminus": down,
        "thickness": 1.2,
        "width": 4,
        "color": colour,
    }


def _trial_hover(t: TrialView, o: Objective) -> str:
    lines = [f"<b>trial {t.number}</b>, {escape(point_text(t.point))}"]
    if (value := t.value(o)) is not None:
        lines.append(escape(value_with_interval(value, (t.intervals or {}).get(o.name), o)))
    if t.confirmed and o.name in t.confirmed:
        bounds = (t.confirmed_intervals or {}).get(o.name)
        lines.append(
            f"confirmed: {number(t.confirmed[o.name])} {bounds_text(bounds) if bounds else ''}"
        )
    return "<br>".join(lines)


def _better(o: Objective) -> str:
    text = escape(objective_text(o))
    return f"{text}  →" if o.direction == "maximize" else f"←  {text}"


def _ticks(values: Sequence[int] | range) -> dict[str, object]:
    """Whole numbers, each of them while there are few."""
    few = 0 < len(values) <= 20
    return {"tickvals": list(values)} if few else {"tickformat": "d"}
