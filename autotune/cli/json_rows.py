"""Trials of a study as plain data, as ``--json`` prints them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from autotune.views import StudyView, TrialView

_SHORT = {"throughput": "tok_s", "p95_latency": "p95_ms"}


def trial_json(view: StudyView, t: TrialView) -> dict[str, Any]:
    """Return a trial as plain data.

    Objectives are given by name, with their unit; the two usual ones by a short name as well.

    Args:
        view: The study of the trial.
        t: The trial.
    """
    values = t.values or {}
    short = {_SHORT[o]: v for o, v in values.items() if o in _SHORT}
    return {
        "trial": t.number,
        "state": t.state,
        "params": dict(t.point),
        **short,
        "objectives": _objectives(view, t),
        "acceptance_length": t.acceptance_length,
        "acceptance_per_position": list(t.acceptance_per_position),
        "speedup": t.speedup,
        "speedup_interval": t.speedup_interval,
        "launches": t.launches,
        "requests": t.requests,
        "stop": t.stop,
        "truncated": t.truncated,
        "outdated": t.outdated,
        "recomputed": t.recomputed,
        "warnings": list(t.warnings),
        "baseline": t.baseline,
        "front": t.front,
        "replicates": t.replicates,
        "confirms": t.confirms,
        "reused": t.reused and asdict(t.reused),
        "confirmed": t.confirmed and _confirmed(view, t),
        "failure_kind": t.failure_kind,
        "failure_reason": t.failure_reason,
        "seconds": t.seconds,
    }


def _objectives(view: StudyView, t: TrialView) -> dict[str, Any]:
    values = t.values or {}
    return {
        o.name: {
            "value": values[o.name],
            "interval": (t.intervals or {}).get(o.name),
            "interval_within_launch": (t.within or {}).get(o.name),
            "unit": o.unit,
            "direction": o.direction,
        }
        for o in view.objectives
        if o.name in values
    }


def _confirmed(view: StudyView, t: TrialView) -> dict[str, Any]:
    return {
        "launches": t.confirmed_launches,
        "values": t.confirmed,
        "intervals": t.confirmed_intervals,
        "speedup": t.confirmed_speedup,
        "chosen": _chosen(view, t.number),
    }


def _chosen(view: StudyView, number: int) -> dict[str, Any]:
    """Return the rules by which the confirmation chose a trial, its values and how sure that is."""
    if view.verdict is None:
        return {}
    names = [o.name for o in view.objectives]
    choices = [*zip(names, view.verdict.winners, strict=True), ("balanced", view.verdict.balanced)]
    return {
        rule: {
            "values": {n: asdict(e) for n, e in zip(names, c.values, strict=True)},
            "over_baseline": c.over_baseline
            and {n: asdict(e) for n, e in zip(names, c.over_baseline, strict=True)},
            "runner_up": c.runner_up,
            "chance": c.chance,
            "ties": list(c.ties),
        }
        for rule, c in choices
        if c.number == number
    }
