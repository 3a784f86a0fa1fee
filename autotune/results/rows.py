"""Rows of plain data: a study's trials as `--json` prints and `Result.rows` returns them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autotune.results.views import StudyView, TrialView

# Objectives that have a column of their own; the others are under ``objectives`` only.
SHORT_NAMES = {"throughput": "tok_s", "p95_latency": "p95_ms"}


def study_rows(view: StudyView) -> list[dict[str, Any]]:
    """Return a row for each trial, in the order of their numbers; see :func:`trial_row`."""
    return [trial_row(view, t) for t in view.trials]


def trial_row(view: StudyView, t: TrialView) -> dict[str, Any]:
    """Return a trial as plain data that ``json.dumps`` takes.

    Its keys:

    - ``trial``, ``state``, ``params``: number, state and point of the trial.
    - ``tok_s``, ``p95_ms``: output throughput in tokens per second and 95th percentile of E2EL in
      milliseconds; only where the study has these objectives and the trial has numbers.
    - ``objectives``: by name, ``value``, ``interval`` (with launch-to-launch variance where it is
      known), ``interval_within_launch``, ``unit`` and ``direction``. An interval is ``[low, high]``
      with 95 % confidence, in the objective's unit; null is a bound that is not known.
    - ``acceptance_length``: tokens per verification step; ``acceptance_per_position``: accepted
      share of the drafts at each position, 0 to 1. With ``skips_steps`` there may be steps without
      drafts, and the length is that of the others.
    - ``lossy``: whether drafts are accepted that the target would not have written.
    - ``speedup``, ``speedup_interval``: ratio of output throughput to the baseline's.
    - ``launches``, ``requests``, ``stop``, ``seconds``: launches of which the values are the mean,
      measured requests of the last one, why there were no more, duration of the trial in seconds.
    - ``throttled``, ``running_peak``, ``running_asked``, ``truncated``, ``outdated``,
      ``recomputed``, ``warnings``, ``baseline``, ``front``, ``replicates``, ``confirms``,
      ``reused``: as in :class:`TrialView`.
    - ``output``: null for a trial that drafts nothing or has no numbers, or ``verdict`` (certified,
      not certified, not judged, not verified), ``why``, ``judged_at``, ``vllm`` and ``judgement``
      (the numbers behind it) of :class:`autotune.results.certificates.Certificate`.
    - ``confirmed``: null, or ``launches``, ``values``, ``intervals``, ``speedup`` (value, low,
      high) and ``chosen`` (:func:`chosen_by`) of the confirmation.
    - ``slot``: null, or ``number``, ``count``, ``cores`` and ``gpus`` (UUIDs) of the slot that
      measured it or launches it now, where several servers run at the same time.
    - ``failure_kind``, ``failure_reason``: null unless the trial failed.
    - ``rehearsal``: only in a rehearsal, what of it is real and what is not.

    Args:
        view: The trial's study.
        t: The trial.
    """
    values = t.values or {}
    short = {SHORT_NAMES[o]: v for o, v in values.items() if o in SHORT_NAMES}
    return {
        "trial": t.number,
        "state": t.state,
        "params": dict(t.point),
        **short,
        "objectives": _objectives(view, t, values),
        "acceptance_length": t.acceptance_length,
        "acceptance_per_position": list(t.acceptance_per_position),
        "skips_steps": t.skips_steps,
        "lossy": t.lossy,
        "speedup": t.speedup,
        "speedup_interval": t.speedup_interval,
        "launches": t.launches,
        "requests": t.requests,
        "stop": t.stop,
        "throttled": t.throttled,
        "running_peak": t.running_peak,
        "running_asked": t.running_asked,
        "truncated": t.truncated,
        "outdated": t.outdated,
        "recomputed": t.recomputed,
        "warnings": list(t.warnings),
        "baseline": t.baseline,
        "front": t.front,
        "replicates": t.replicates,
        "confirms": t.confirms,
        "reused": t.reused and asdict(t.reused),
        "confirmed": t.confirmed
        and {
            "launches": t.confirmed_launches,
            "values": t.confirmed,
            "intervals": t.confirmed_intervals,
            "speedup": t.confirmed_speedup,
            "chosen": chosen_by(view, t.number),
        },
        "slot": t.slot and dict(t.slot),
        "output": None if t.certificate is None else t.certificate.to_json(),
        "failure_kind": t.failure_kind,
        "failure_reason": t.failure_reason,
        "seconds": t.seconds,
        **({"rehearsal": view.rehearsal} if view.rehearsal else {}),
    }


def _objectives(view: StudyView, t: TrialView, values: Mapping[str, float]) -> dict[str, Any]:
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


def chosen_by(view: StudyView, number: int) -> dict[str, Any]:
    """Return the rules by which the confirmation chose a trial, and how sure each choice is.

    Args:
        view: The study.
        number: Number of the trial.

    Returns:
        By rule, which is the name of an objective or ``balanced``: ``values`` (by objective:
        ``value``, ``low``, ``high``), ``over_baseline`` (the same as ratios), ``runner_up`` (number
        of the next best trial), ``chance`` (probability of being better than that one) and ``ties``
        (numbers). Empty for a trial that was not chosen.
    """
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
