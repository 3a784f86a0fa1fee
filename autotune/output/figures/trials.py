"""Figures of a study's trials for the report, which needs no titles: captions are below them.

Colors are Okabe and Ito's; a symbol, a dash or a place says the same once more.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autotune.output.figures.points import colored, error_bar
from autotune.output.figures.theme import BLUE, GRAY, GREEN, ORANGE, Theme, template
from autotune.results.prediction import Outlook
from autotune.results.request_acceptance import Group, RequestAcceptance, length_text
from autotune.results.text import (
    bounds_text,
    count,
    number,
    objective_text,
    plain,
    shortened,
    value_text,
    value_with_interval,
)
from autotune.results.views import StudyView, TrialView, cost
from autotune.stats.measurement import Floats
from autotune.study.space import ARM, MNBT, N, Value
from objectives import Objective

_COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GRAY)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")
_DASHES = ("solid", "dash", "dot", "dashdot")
_LEGEND = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "xanchor": "left"}
# More points of a curve cannot be distinguished on a screen.
_MOST_STEPS = 600


def searched(view: StudyView) -> list[TrialView]:
    """Return the trials of the search that count: complete, comparable, a point of their own."""
    return [
        t
        for t in view.trials
        if t.state == "complete"
        and t.again is None
        and t.may_win
        and all(t.value(o) is not None for o in view.objectives)
    ]


def n_of(trial: TrialView) -> int | None:
    """Return a trial's ``num_speculative_tokens``; None: that was not searched."""
    n = trial.point.get(N)
    return n if isinstance(n, int) else None


def best_by_way(
    trials: Sequence[TrialView], objective: Objective
) -> dict[tuple[str, int], TrialView]:
    """Return for each arm and n, ascending, the trial that is best by an objective.

    The arm is an empty text at n = 0, and in a study without arms.
    """
    found: dict[tuple[str, int], TrialView] = {}
    for t in sorted(trials, key=lambda t: cost(objective, t.value(objective))):
        if (n := n_of(t)) is not None:
            found.setdefault((plain(str(t.point.get(ARM, ""))), n), t)
    return dict(sorted(found.items()))


def by_n_figure(view: StudyView, theme: Theme) -> go.Figure:
    """Return each objective by n, one above the other, with the baseline as a line."""
    trials = [t for t in searched(view) if n_of(t) is not None]
    base = next((t for t in view.trials if t.baseline and t.comparable), None)
    fig = make_subplots(rows=len(view.objectives), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, o in enumerate(view.objectives, 1):
        best = best_by_way(trials, o)
        rest = [t for t in trials if all(t is not b for b in best.values())]
        again = [t for t in trials if t.confirmed and o.name in t.confirmed]
        _add_by_n(fig, row, o, rest, _OTHERS)
        arms = dict.fromkeys(arm for arm, _ in best)
        for i, arm in enumerate(arms):
            of_arm = [t for (name, _), t in best.items() if name == arm]
            _add_by_n(fig, row, o, of_arm, _best_of(arm, i) if len(arms) > 1 else _BEST)
        _add_by_n(fig, row, o, again, _CONFIRMED)
        if base is not None and (value := base.value(o)) is not None:
            _add_baseline(fig, row, value, base)
        fig.update_yaxes(title_text=_better(o), rangemode="tozero", row=row, col=1)
    ns = sorted({n for t in trials if (n := n_of(t)) is not None})
    fig.update_xaxes(title_text="n: tokens drafted per step", row=len(view.objectives), col=1)
    fig.update_xaxes(**_ticks(ns), range=[min(ns) - 0.5, max(ns) + 0.5])
    return _finished(fig, theme, 110 + 230 * len(view.objectives))


class _Group(NamedTuple):
    """How a group of trials is drawn; ``bars``: with error bars."""

    name: str
    color: str
    symbol: str
    size: int
    mode: str
    bars: bool
    confirmed: bool = False


_OTHERS = _Group("other trials", GRAY, "circle-open", 7, "markers", bars=False)
_BEST = _Group("best trial of an n", BLUE, "circle", 10, "lines+markers", bars=True)
_CONFIRMED = _Group("confirmed", GREEN, "diamond-open", 12, "markers", bars=True, confirmed=True)


def _best_of(arm: str, place: int) -> _Group:
    """Return how the best trials of an arm are drawn."""
    name = f"best of an n, arm {arm}" if arm else "no speculation"
    symbol = _SYMBOLS[place % len(_SYMBOLS)]
    color = _COLORS[place % len(_COLORS)]
    return _BEST._replace(name=escape(name), color=color, symbol=symbol)


def _add_by_n(
    fig: go.Figure, row: int, o: Objective, trials: Sequence[TrialView], group: _Group
) -> None:
    if not trials:
        return
    values = [(t.confirmed or {})[o.name] if group.confirmed else t.value(o) for t in trials]
    bounds = [
        ((t.confirmed_intervals if group.confirmed else t.intervals) or {}).get(o.name)
        for t in trials
    ]
    fig.add_scatter(
        x=[n_of(t) for t in trials],
        y=values,
        mode=group.mode,
        name=group.name,
        legendgroup=group.name,
        showlegend=row == 1,
        marker={
            "symbol": group.symbol,
            "size": group.size,
            "color": group.color,
            "line": {"width": 2, "color": group.color},
        },
        line={"color": group.color, "width": 1.6},
        error_y=colored(error_bar(values, bounds), group.color) if group.bars else None,
        hovertext=[_trial_hover(t, o) for t in trials],
        hoverinfo="text",
        row=row,
        col=1,
    )


def _add_baseline(fig: go.Figure, row: int, value: float, base: TrialView) -> None:
    line = {"color": ORANGE, "dash": "dash", "width": 1.6}
    fig.add_hline(y=value, line=line, row=row)
    if row == 1:  # a line alone has no entry in the legend
        fig.add_scatter(
            x=[None],
            y=[None],
            mode="lines",
            name=f"baseline, {base.setting}",
            line=line,
        )


def grid_figure(view: StudyView, objective: Objective, theme: Theme) -> go.Figure:
    """Return an objective over n and MNBT: the best trial of each pair, × where all failed."""
    trials = searched(view)
    best: dict[tuple[Value, Value], TrialView] = {}
    for t in sorted(trials, key=lambda t: cost(objective, t.value(objective))):
        best.setdefault((t.point[N], t.point[MNBT]), t)
    failed = {(t.point[N], t.point[MNBT]) for t in view.failures()} - best.keys()
    pairs = [*best, *failed]
    ns, budgets = (sorted({pair[i] for pair in pairs}, key=float) for i in (0, 1))
    cells = [[best.get((n, budget)) for n in ns] for budget in budgets]
    fig = go.Figure(_heatmap(cells, ns, budgets, objective, theme))
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


def _heatmap(
    cells: Sequence[Sequence[TrialView | None]],
    ns: Sequence[Value],
    budgets: Sequence[Value],
    objective: Objective,
    theme: Theme,
) -> go.Heatmap:
    return go.Heatmap(
        x=[value_text(n) for n in ns],
        y=[value_text(b) for b in budgets],
        z=[[None if t is None else t.value(objective) for t in row] for row in cells],
        text=[
            ["" if t is None else number(t.value(objective) or 0.0) for t in row] for row in cells
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


def acceptance_figure(trials: Mapping[tuple[str, int], TrialView], theme: Theme) -> go.Figure:
    """Return the share of drafted tokens that were accepted, by position, a line for each n."""
    fig = go.Figure()
    for i, ((arm, n), t) in enumerate(trials.items()):
        name = escape(f"{arm}, n = {n}" if arm else f"n = {n}")
        again = i // len(_COLORS)  # the same color has another symbol and dash then
        color, symbol = _COLORS[i % 7], _SYMBOLS[(i + again) % 7]
        shares = t.acceptance_per_position
        fig.add_scatter(
            x=list(range(1, len(shares) + 1)),
            y=list(shares),
            mode="lines+markers",
            name=name,
            line={"color": color, "width": 1.6, "dash": _DASHES[again % 4]},
            marker={"symbol": symbol, "size": 8},
            hovertext=[
                f"<b>{name}</b>, position {k}<br>accepted: {s:.0%}" for k, s in enumerate(shares, 1)
            ],
            hoverinfo="text",
        )
    most = max(len(t.acceptance_per_position) for t in trials.values())
    fig.update_xaxes(title_text="Position in the draft", **_ticks(range(1, most + 1)))
    fig.update_yaxes(title_text="Accepted  →  better", tickformat=".0%", range=[0, 1])
    return _finished(fig, theme, 380)


def request_acceptance_figure(
    found: RequestAcceptance, groups: Sequence[Group], theme: Theme
) -> go.Figure:
    """Return tokens per step of each group, and of all requests together.

    Args:
        found: Accepted drafts of a launch's requests.
        groups: Its classes, which get a row each, or its parts, which are drawn from left to right.
        theme: Theme of the figure.
    """
    rows = groups is found.classes
    names = [escape(shortened(plain(g.name), 24)) for g in groups]
    values = [g.length.value for g in groups]
    error = {
        "array": [0.0 if e.high is None else e.high - e.value for e in (g.length for g in groups)],
        "arrayminus": [
            0.0 if e.low is None else e.value - e.low for e in (g.length for g in groups)
        ],
        "thickness": 1.4,
    }
    fig = go.Figure()
    fig.add_scatter(
        **({"x": values, "y": names} if rows else {"x": names, "y": values}),
        **{"error_x" if rows else "error_y": error},
        mode="markers" if rows else "lines+markers",
        marker={"color": BLUE if rows else ORANGE, "symbol": _SYMBOLS[not rows], "size": 9},
        line={"color": ORANGE, "width": 1.6},
        showlegend=False,
        hovertext=[
            f"<b>{escape(plain(g.name))}</b><br>{length_text(g)} tokens per step<br>"
            f"{count(g.requests, 'request')}, {count(g.steps, 'step')}"
            for g in groups
        ],
        hoverinfo="text",
    )
    dashed = {"color": GRAY, "dash": "dash", "width": 1.2}
    whole, title = found.whole.length.value, "Tokens per step  →  better"
    if rows:
        fig.add_vline(whole, line=dashed)
        fig.update_xaxes(title_text=title)
        fig.update_yaxes(type="category", autorange="reversed", automargin=True)
    else:
        fig.add_hline(whole, line=dashed)
        fig.update_yaxes(title_text=title)
        fig.update_xaxes(type="category", title_text="Position in the answer (tokens)")
    return _finished(fig, theme, 130 + 26 * len(names) if rows else 320)


def prediction_figure(found: Outlook, theme: Theme) -> go.Figure:
    """Return tok/s by n: what the launches at the other n predict, and what was measured."""
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
            + ("<br>extrapolated, so less certain" if r.extrapolated else "")
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
        name: Name of the point, as the reader knows it.
        launches: Number of launches that the requests are of.
        e2el: End-to-end latencies, s.
        ttft: Times to the first token, s.
    """

    name: str
    launches: int
    e2el: Floats
    ttft: Floats


def latency_figure(curves: Sequence[Latencies], theme: Theme) -> go.Figure:
    """Return empirical distribution functions of E2EL, and of TTFT below it."""
    fig = make_subplots(rows=2, cols=1, vertical_spacing=0.2)
    looks = list(zip(curves, (BLUE, ORANGE, GREEN), _DASHES, strict=False))
    for row, kind in ((1, "E2EL"), (2, "TTFT")):
        for c, color, dash in looks:
            x, share = _steps((c.e2el if kind == "E2EL" else c.ttft) * 1000)
            fig.add_scatter(
                x=x,
                y=share,
                mode="lines",
                name=escape(c.name),
                legendgroup=c.name,
                showlegend=row == 1,
                line={"shape": "hv", "color": color, "width": 2, "dash": dash},
                hovertemplate="<b>%{fullData.name}</b><br>%{y:.0%} within %{x:.4r} ms"
                "<extra></extra>",
                row=row,
                col=1,
            )
        fig.add_hline(y=0.95, line={"color": GRAY, "width": 1, "dash": "dot"}, row=row)
        fig.update_xaxes(title_text=f"better  ←  {kind} (ms)", rangemode="tozero", row=row, col=1)
        fig.update_yaxes(title_text="Requests", tickformat=".0%", range=[0, 1.02], row=row, col=1)
    fig.update_xaxes(title_standoff=4)  # the upper one is between two plots
    fig.update_yaxes(tickvals=[0, 0.25, 0.5, 0.75, 0.95])
    return _finished(fig, theme, 560)


def _steps(values: Floats) -> tuple[list[float], list[float]]:
    """Return where the distribution function steps, to 0.01 ms, and to what.

    Args:
        values: Latencies in ms.
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
    """Return the importance of each parameter for each objective."""
    fig = go.Figure()
    names = list(dict.fromkeys(name for shares in found.values() for name in shares))
    for o, color, pattern in zip(objectives, _COLORS, ("", "/", "x"), strict=False):
        shares = found[o.name]
        fig.add_bar(
            y=[escape(plain(n)) for n in names],
            x=[shares.get(n, 0.0) for n in names],
            orientation="h",
            name=escape(plain(o.title)),
            marker={"color": color, "pattern": {"shape": pattern}},
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


def message_figure(text: str, theme: Theme) -> go.Figure:
    """Return a figure without axes that has one sentence."""
    fig = go.Figure()
    words = "<br>".join(textwrap.wrap(escape(plain(text)), 60))
    fig.add_annotation(text=words, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    return _finished(fig, theme, 200)


def untitled(fig: go.Figure) -> go.Figure:
    """Return a figure of another command without its title: a caption follows below."""
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


def _trial_hover(t: TrialView, o: Objective) -> str:
    lines = [f"<b>trial {t.number}</b>, {escape(t.setting)}"]
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
    """Return ticks at whole numbers, at each of them while there are few."""
    few = 0 < len(values) <= 20
    return {"tickvals": list(values)} if few else {"tickformat": "d"}
