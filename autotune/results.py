"""Reads a study back from the database, as the plots, tables and exports want it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

import objectives as objective_registry
from autotune.errors import FailureKind, UserError
from autotune.machine import machine_line
from autotune.measure import Scatter
from autotune.search import baseline_speedup, front_numbers
from autotune.space import Value
from autotune.spec import LoadedStudy, StudySpec
from autotune.store import Store
from autotune.views import StudyView, TrialView, plain, point_text, value_with_interval
from objectives import Objective

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def failure_of(trial: FrozenTrial) -> tuple[FailureKind | None, str | None]:
    """Kind and reason of a failed trial; None, None of any other."""
    kind = trial.user_attrs.get("failure_kind")
    return (FailureKind(kind) if kind else None), trial.user_attrs.get("failure_reason")


def is_finished(trial: FrozenTrial) -> bool:
    """True for a trial that was launched and came to an end, measured or failed."""
    if trial.state == TrialState.COMPLETE:
        return True
    return trial.state == TrialState.FAIL and failure_of(trial)[0] != FailureKind.INFEASIBLE


def study_objectives(loaded: LoadedStudy) -> tuple[Objective, ...]:
    """The study's objectives, with the study's directions.

    Raises:
        UserError: one has a name that no module in ``objectives/`` has.
    """
    out = []
    for i, o in enumerate(loaded.spec.objectives):
        try:
            found = objective_registry.get(o.name)
        except KeyError:
            raise UserError(
                f"{loaded.path}: objectives.{i}.name: {o.name} is unknown; "
                f"known are {', '.join(objective_registry.names())}"
            ) from None
        out.append(replace(found, direction=o.direction) if o.direction else found)
    return tuple(out)


def study_view(store: Store, name: str) -> StudyView:
    """A whole study: every trial that has a point, in the order of their numbers."""
    loaded, row = store.load_study(name)
    spec = loaded.spec
    launches = store.launches(name)
    last = launches[-1] if launches else None
    objectives = study_objectives(loaded)
    study = store.optuna_study(name)
    trials = trial_views(study, spec, objectives)
    return StudyView(
        name=name,
        objectives=objectives,
        trials=trials,
        wanted=row.wanted,
        finished=sum(map(is_finished, study.get_trials(deepcopy=False))),
        machine=machine_line(last.machine) if last else "",
        vllm_version=next((x.vllm_version for x in reversed(launches) if x.vllm_version), None),
        created=datetime.fromtimestamp(row.created_at, UTC),
    )


def trial_views(
    study: optuna.Study, spec: StudySpec, objectives: Sequence[Objective]
) -> list[TrialView]:
    """Every trial of a study that was given a point."""
    space = spec.to_space()
    names = set(space.distributions())
    trials = [t for t in study.get_trials(deepcopy=False) if names <= set(_params(t))]
    names_of = [o.name for o in objectives]
    values = {t.number: list(t.values) for t in trials if t.state == TrialState.COMPLETE}
    by_number = {k: dict(zip(names_of, v, strict=True)) for k, v in values.items()}
    confirms = {t.number: t.user_attrs.get("confirms") for t in trials}
    searched = {k: v for k, v in values.items() if confirms[k] is None}
    front = front_numbers(searched, [o.direction for o in objectives])
    base = next((t.number for t in trials if t.user_attrs.get("baseline")), None)
    base_rate = by_number.get(base, {}).get("throughput") if base is not None else None
    again: dict[int, list[dict[str, float]]] = {}
    for k, of in confirms.items():
        if of is not None and k in by_number:
            again.setdefault(of, []).append(by_number[k])
    confirmed = _confirmations(again, base, names_of)
    out = []
    for t in trials:
        kind, reason = failure_of(t)
        numbers = by_number.get(t.number)
        out.append(
            TrialView(
                number=t.number,
                state=_STATES[t.state],
                point=space.decode(_params(t)),
                values=numbers,
                acceptance_length=t.user_attrs.get("acceptance_length"),
                acceptance_per_position=tuple(t.user_attrs.get("acceptance_per_position") or ()),
                speedup=baseline_speedup((numbers or {}).get("throughput"), base_rate),
                baseline=t.number == base,
                front=t.number in front,
                failure_kind=str(kind) if kind else None,
                failure_reason=reason,
                failure_evidence=tuple(t.user_attrs.get("failure_evidence") or ()),
                intervals={
                    name: (bounds[0], bounds[1])
                    for name, bounds in (t.user_attrs.get("intervals") or {}).items()
                },
                confirms=confirms[t.number],
                **confirmed.get(t.number, {}),
                seconds=t.duration.total_seconds() if t.duration else None,
            )
        )
    return out


def trial_story(store: Store, name: str, number: int) -> list[str]:
    """All that the database knows of one trial, as lines: launches, times, requests, failure.

    Raises:
        UserError: the study has no such trial.
    """
    view = study_view(store, name)
    trial = next((t for t in view.trials if t.number == number), None)
    if trial is None:
        raise UserError(f"{name} has no trial {number}; `autotune status` lists them")
    attrs = store.optuna_study(name).get_trials(deepcopy=False)[number].user_attrs
    lines = [f"trial {number} of {name}: {point_text(trial.point)}, {trial.state}"]
    if trial.confirms is not None:
        lines.append(f"measures trial {trial.confirms} again")
    if "moved_because" in attrs:
        lines.append(f"the proposal was moved here: {attrs['moved_because']}")
    for o in view.objectives:
        value = trial.value(o)
        if value is not None:
            interval = (trial.intervals or {}).get(o.name)
            lines.append(f"{o.title}: {value_with_interval(value, interval, o)}")
    if trial.acceptance_length is not None:
        shares = ", ".join(f"{p:.2f}" for p in trial.acceptance_per_position)
        lines.append(f"acceptance length {trial.acceptance_length:.2f}, by position {shares}")
    if trial.failure_kind is not None:
        lines.append(f"failed: {trial.failure_kind}: {trial.failure_reason}")
    events = store.events(name)
    for launch in (x for x in store.launches(name) if x.trial == number):
        began = datetime.fromtimestamp(launch.planned_at, UTC)
        version = launch.vllm_version or "of unknown version"
        lines += [
            "",
            f"launch {launch.attempt + 1}, {began:%Y-%m-%d %H:%M:%S} UTC",
            f"  vLLM {version} on {machine_line(launch.machine)}",
            f"  command: {shlex.join(launch.argv)}",
            *(f"  environment: {key}={value}" for key, value in launch.env.items()),
        ]
        for e in events:
            if e.launch_id == launch.launch_id:
                lines.append(f"  {e.at - launch.planned_at:6.1f} s  {plain(e.what)}")
        requests = store.requests(launch.launch_id)
        for phase in dict.fromkeys(r.phase for r in requests):
            of = [r for r in requests if r.phase == phase]
            ok = [r for r in of if r.status == "ok"]
            tokens = sum(r.output_tokens or 0 for r in ok)
            lines.append(f"  {phase}: {len(ok)} of {len(of)} requests ok, {tokens} output tokens")
            lines += [f"    request {r.index}: {r.error}" for r in of if r.error][:5]
        if launch.failure_kind is not None:
            lines.append(f"  failed: {launch.failure_kind}: {launch.failure_reason}")
            lines += [f"    {plain(line)}" for line in launch.evidence or ()]
        if launch.ended_at is not None:
            lines.append(
                f"  exit code {launch.exit_code}, {launch.killed} processes needed SIGKILL; "
                f"log: {launch.log_path}"
            )
    return lines


def _confirmations(
    again: Mapping[int, Sequence[Mapping[str, float]]], base: int | None, names: Sequence[str]
) -> dict[int, dict[str, Any]]:
    """The ``confirmed…`` fields of each trial that was measured again, by its number.

    Only launches of the confirmation count: that of the search was chosen for being good. Their
    scatter is pooled over all points, for two launches of one point tell little.
    """
    scatters = {
        name: Scatter.pooled([[v[name] for v in launches] for launches in again.values()])
        for name in names
    }
    out = {}
    for number, launches in again.items():
        means = {name: scatters[name].mean([v[name] for v in launches]) for name in names}
        speedup = None
        if base is not None and base in again and "throughput" in names:
            e = scatters["throughput"].ratio(
                [v["throughput"] for v in launches], [v["throughput"] for v in again[base]]
            )
            speedup = (e.value, e.low, e.high)
        out[number] = {
            "confirmed": {name: e.value for name, e in means.items()},
            "confirmed_intervals": {name: (e.low, e.high) for name, e in means.items()},
            "confirmed_launches": len(launches),
            "confirmed_speedup": speedup,
        }
    return out


def _params(trial: FrozenTrial) -> dict[str, Value]:
    """A trial's parameters; of a waiting one, those it was enqueued with."""
    fixed: dict[str, Any] = trial.system_attrs.get("fixed_params") or {}
    return trial.params or fixed
