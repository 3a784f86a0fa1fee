"""What the figures of trials share: which are shown, their axes, hover texts and title.

Plotly reads a subset of HTML in every text, so all that comes from a study, a model or a log is
escaped.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from autotune.views import (
    StudyView,
    TrialView,
    bounds_text,
    plain,
    value_text,
    value_with_interval,
)

if TYPE_CHECKING:
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


def coloured(error: dict[str, Any] | None, colour: str) -> dict[str, Any] | None:
    """An error bar of :class:`Axis` in a colour."""
    return None if error is None else error | {"color": colour}


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
