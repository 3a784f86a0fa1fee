"""The figure of where the time went: a stacked bar for each trial."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from autotune.engine.launch_stages import STAGES
from autotune.output.figures.theme import BLUE, GRAY, GREEN, LIGHT, ORANGE, Theme, template
from autotune.results.text import number, plain
from autotune.results.timings import TimeView, TrialTime

# Okabe and Ito's colors, as in the other plots; a pattern distinguishes stages of one
# color. Weights and requests are plain blue and green.
_LOOKS: dict[str, tuple[str | None, str]] = {
    "tuner": (None, ""),  # the ink
    "spawn": ("#F0E442", ""),
    "imports": (ORANGE, ""),
    "weights": (BLUE, ""),
    "profile": ("#E69F00", ""),
    "compile": ("#CC79A7", ""),
    "capture": ("#CC79A7", "/"),
    "first": ("#56B4E9", "/"),
    "warm-up": ("#56B4E9", ""),
    "measuring": (GREEN, ""),
    "stop": (GRAY, "/"),
    "other": (GRAY, ""),
}


def time_figure(view: TimeView, height: int = 460, theme: Theme = LIGHT) -> go.Figure:
    """Return the wall time by trial, stacked by stage in the order of the stages.

    Args:
        view: The study.
        height: Height in pixels; the width is that of the page.
        theme: Colors of the page.
    """
    fig = go.Figure()
    for stage in STAGES:
        trials = [t for t in view.trials if t.seconds.get(stage) is not None]
        if not trials:
            continue
        color, pattern = _LOOKS[stage]
        fig.add_bar(
            x=[t.trial for t in trials],
            y=[t.seconds[stage] for t in trials],
            name=stage,
            marker={
                "color": color or theme.ink,
                "pattern": {"shape": pattern},
                "line": {"width": 0},
            },
            hovertext=[_hover(t, stage) for t in trials],
            hoverinfo="text",
        )
    fig.update_layout(
        template=template(theme),
        barmode="stack",
        bargap=0.15,
        title=f"<b>{escape(plain(view.study), quote=False)}: where the time goes</b>",
        showlegend=True,  # also of one stage
        legend={"traceorder": "reversed"},  # as they lie
        height=height,
        xaxis={"title": {"text": "Trial"}, "tickformat": "d"},
        yaxis={"title": {"text": "better  ←  wall time (s)"}, "rangemode": "tozero"},
    )
    if len(view.trials) <= 20:  # else Plotly's own choice of ticks
        fig.update_xaxes(tickvals=[t.trial for t in view.trials])
    return fig


def _hover(trial: TrialTime, stage: str) -> str:
    seconds = trial.seconds[stage] or 0.0
    lines = [f"<b>trial {trial.trial}</b>, {stage}: {number(seconds)} s of {number(trial.total)} s"]
    if trial.launches > 1:
        lines.append(f"{trial.launches} launches")
    if stage == "imports":
        lines += [f"{process}: {number(s)} s" for process, s in trial.imports.items()]
    return "<br>".join(lines)
