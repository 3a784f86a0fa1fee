"""Common parts of the figures of trials: selection, axes, hover texts and title.

Plotly reads a subset of HTML in every text, so every text of a study, a model or a log is escaped.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from autotune.results.text import Bounds, plain, times, value_text, value_with_interval
from autotune.results.views import StudyView, TrialView
from autotune.stats import Estimate

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from objectives import Objective


def shown(view: StudyView) -> list[TrialView]:
    """Return the trials that have a value of every objective, comparable with the others."""
    return [
        t
        for t in view.trials
        if t.state == "complete"
        and not t.outdated
        and all(t.value(o) is not None for o in view.objectives)
    ]


class Axis(NamedTuple):
    """An axis of a figure of the trials.

    Attributes:
        title: Title with the unit, which says which way is better.
        objective: The objective that it shows; None: the trial's number.
    """

    title: str
    objective: Objective | None

    def of(self, trial: TrialView) -> float:
        """Return the value that the search measured; NaN where it has none."""
        value = trial.value(self.objective) if self.objective else float(trial.number)
        return math.nan if value is None else value

    def confirmed(self, trial: TrialView) -> float | None:
        """Return the value that the confirmation measured; None: it was not measured again."""
        if self.objective is None:
            return float(trial.number)
        return (trial.confirmed or {}).get(self.objective.name)

    def error(
        self, trials: Sequence[TrialView], *, confirmed: bool = False
    ) -> dict[str, Any] | None:
        """Return Plotly's error bar of this axis; None where no trial has an interval.

        Args:
            trials: The trials of one trace, in its order.
            confirmed: Take the confirmation's values and intervals, not the search's.
        """
        if self.objective is None:
            return None
        name = self.objective.name
        bar = error_bar(
            [self.confirmed(t) if confirmed else self.of(t) for t in trials],
            [
                ((t.confirmed_intervals if confirmed else t.intervals) or {}).get(name)
                for t in trials
            ],
        )
        return bar if any(bar["array"]) or any(bar["arrayminus"]) else None


def error_bar(values: Sequence[float | None], bounds: Sequence[Bounds | None]) -> dict[str, Any]:
    """Return Plotly's error bar from values and their bounds; an unknown bound has no bar."""
    up, down = [], []
    for value, (low, high) in zip(values, (b or (None, None) for b in bounds), strict=True):
        up.append(0.0 if high is None or value is None else max(0.0, high - value))
        down.append(0.0 if low is None or value is None else max(0.0, value - low))
    return {"type": "data", "array": up, "arrayminus": down, "thickness": 1.2, "width": 4}


def colored(error: dict[str, Any] | None, color: str) -> dict[str, Any] | None:
    """Return an error bar in a color."""
    return None if error is None else error | {"color": color}


def hover_text(view: StudyView, trial: TrialView) -> str:
    """Return all that is known of a point's trial, as Plotly's subset of HTML."""
    name = f"trial {trial.number}" + (", baseline" if trial.baseline else "")
    lines = [f"<b>{name}</b>{', on the Pareto front' if trial.front else ''}"]
    lines += [f"{plain(k)} = {value_text(v)}" for k, v in trial.point.items()]
    lines += ["lossy"] if trial.lossy else []
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
        speedup = Estimate(trial.speedup, *(trial.speedup_interval or (None, None)))
        lines.append(f"speed-up over the baseline: {times(speedup)}")
    if trial.acceptance_length is not None:
        which = "a step with drafts" if trial.skips_steps else "a step"
        lines.append(f"acceptance length: {trial.acceptance_length:.2f} tokens {which}")
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
    """Return Plotly's title of a study's figure: its name, its progress, vLLM and machine."""
    done = f"{view.finished} of {view.wanted} trials"
    failed = view.failures()
    parts = [
        view.rehearsal,
        done + (f", {len(failed)} failed" if failed else ""),
        f"vLLM {view.vllm_version}" if view.vllm_version else "",
        view.machine,
    ]
    return {
        "text": title_text(view.name, parts),
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "pad": {"t": 30},
    }


def title_text(head: str, about: Iterable[str]) -> str:
    """Return a title with two smaller lines, at most, of what the figure is about, as HTML."""
    parts = " · ".join(plain(part) for part in about if part)
    lines = textwrap.wrap(parts, 115, max_lines=2, placeholder=" …")
    small = "<br>".join(escape(line, quote=False) for line in lines)
    return (
        f'<b>{escape(plain(head), quote=False)}</b><br><span style="font-size: 12px">{small}</span>'
    )


def noted(fig: go.Figure, text: str) -> go.Figure:
    """Return a figure with a line of text below its plots.

    Args:
        fig: The figure; its lower margin grows by the line.
        text: The line.
    """
    below = fig.layout.margin.b
    below = 80 if below is None else below
    fig.add_annotation(
        text=escape(plain(text), quote=False),
        showarrow=False,
        x=0,
        xref="paper",
        xanchor="left",
        y=0,
        yref="paper",
        yanchor="top",
        yshift=-below - 2,
        font={"size": 11},
    )
    return fig.update_layout(margin_b=below + 22)
