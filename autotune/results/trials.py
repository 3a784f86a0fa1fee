"""Read a study back from the database, as figures, tables and exports need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from autotune.results.objectives import stored_objectives
from autotune.results.recomputed import OUTDATED, RECOMPUTED, Recomputed, quality_of
from autotune.results.standing import (
    LEAST_DEGREES,
    Launched,
    Standing,
    counts,
    failure_of,
    is_baseline,
    is_outdated,
    is_truncated,
    origin_of,
    single_launch,
    study_verdict,
    with_points,
)
from autotune.results.views import StudyView, TrialView
from autotune.search.confirmation import Verdict
from autotune.search.front import baseline_speedup
from autotune.serving.machine import machine_line
from autotune.stats import SingleLaunch
from autotune.storage.store import Store
from autotune.storage.trials import State, TrialLike
from autotune.study.schema import StudySpec
from autotune.study.space import Space
from objectives import Objective

# A chat template's own words are the same in every prompt; more than that is a repeated prompt.
PREFIX_CACHE_SHARE = 0.2


_STATES = {
    State.COMPLETE: "complete",
    State.FAIL: "failed",
    State.PRUNED: "failed",
    State.RUNNING: "running",
    State.WAITING: "waiting",
}


def study_view(store: Store, name: str) -> StudyView:
    """Return a whole study: every trial that has a point, in the order of their numbers."""
    loaded, row = store.load_study(name)
    spec = loaded.spec
    machine, version = store.launches.measured_on(name)
    study = store.stored_study(name)
    objectives = stored_objectives(loaded, study)
    every = Recomputed(store, spec, objectives).trials(study.trials)
    trials, found, judged = _views(every, spec, objectives)
    return StudyView(
        name=name,
        objectives=objectives,
        trials=trials,
        wanted=row.wanted,
        finished=sum(map(counts, every)),
        machine=machine_line(machine) if machine else "",
        vllm_version=version,
        created=datetime.fromtimestamp(row.created_at, UTC),
        verdict=judged,
        variance=found.variance,
    )


def trial_views(
    trials: Sequence[TrialLike], spec: StudySpec, objectives: Sequence[Objective]
) -> list[TrialView]:
    """Return every trial of a study that has a point.

    Args:
        trials: All, as :class:`autotune.results.recomputed.Recomputed` gives them.
        spec: The study.
        objectives: With the study's directions.
    """
    return _views(trials, spec, objectives)[0]


def trial_view(
    trials: Sequence[TrialLike],
    number: int,
    standing: Standing,
    space: Space,
    objectives: Sequence[Objective],
) -> TrialView:
    """Return one trial, as :func:`trial_views` would show it.

    Args:
        trials: All of the study that were given a point.
        number: Of one of them.
        standing: Of all of them.
        space: The study's.
        objectives: With the study's directions.
    """
    found = standing.launched()
    base = next((t for t in trials if is_baseline(t)), None)
    shown = [t for t in trials if t is base or t.number == number]
    views = [_view(t, standing, space, objectives) for t in shown]
    judged = study_verdict(found, objectives) if found.confirmed else None
    return next(v for v in _compared(views, objectives, found, judged) if v.number == number)


def _views(
    every: Sequence[TrialLike], spec: StudySpec, objectives: Sequence[Objective]
) -> tuple[list[TrialView], Launched, Verdict | None]:
    """Return every trial that has a point, their launches and the verdict on all of them."""
    space = spec.to_space()
    trials = with_points(every, space)
    standing = Standing(objectives)
    standing.update(trials)
    found = standing.launched()
    judged = study_verdict(found, objectives)
    views = [_view(t, standing, space, objectives) for t in trials]
    return _compared(views, objectives, found, judged), found, judged


def _view(
    t: TrialLike,
    standing: Standing,
    space: Space,
    objectives: Sequence[Objective],
) -> TrialView:
    """Return one trial alone; :func:`_compared` adds the rest."""
    kind, reason = failure_of(t)
    quality = quality_of(t)
    values = (standing.means(t.number) or t.values) if t.state == State.COMPLETE else None
    return TrialView(
        number=t.number,
        state=_STATES[t.state],
        point=space.decode(t.params),
        values=None
        if values is None
        else {o.name: v for o, v in zip(objectives, values, strict=True)},
        acceptance_length=t.user_attrs.get("acceptance_length"),
        acceptance_per_position=tuple(t.user_attrs.get("acceptance_per_position") or ()),
        speedup=None,
        baseline=is_baseline(t),
        front=t.number in standing.front(),
        failure_kind=kind,
        failure_reason=reason,
        failure_evidence=tuple(t.user_attrs.get("failure_evidence") or ()),
        within={
            name: (bounds[0], bounds[1])
            for name, bounds in (t.user_attrs.get("intervals") or {}).items()
        },
        errors=standing.errors(t.number) or quality.get("errors") or {},
        launches=standing.launches(t.number),
        requests=quality.get("requests"),
        stop=quality.get("stop"),
        truncated=is_truncated(quality),
        outdated=is_outdated(t),
        recomputed=RECOMPUTED in quality,
        warnings=quality_warnings(quality),
        replicates=t.user_attrs.get("replicates"),
        confirms=t.user_attrs.get("confirms"),
        reused=origin_of(t),
        seconds=t.duration.total_seconds() if t.duration else None,
    )


def _compared(
    views: Sequence[TrialView],
    objectives: Sequence[Objective],
    found: Launched,
    judged: Verdict | None,
) -> list[TrialView]:
    """Add what takes more than one launch: intervals between launches, speed-up, confirmation."""
    base = next((v for v in views if v.baseline), None)
    names = [o.name for o in objectives]
    known = {k: v for k, v in found.variance.items() if v.total.degrees >= LEAST_DEGREES}
    out = []
    for v in views:
        changes: dict[str, Any] = {"intervals": dict(v.within or {})}
        for name, variance in known.items():
            if not v.outdated and (one := as_single(v, name)) is not None:
                e = variance.point(one, v.launches)
                changes["intervals"][name] = (e.low, e.high)
        if base is not None and not (v.outdated or base.outdated):
            changes["speedup"] = baseline_speedup(
                (v.values or {}).get("throughput"), (base.values or {}).get("throughput")
            )
            a, b = as_single(v, "throughput"), as_single(base, "throughput")
            if "throughput" in known and not v.baseline and a and b:
                e = known["throughput"].ratio(a, b, (v.launches, base.launches))
                changes["speedup_interval"] = (e.low, e.high)
        if judged is not None and v.number in judged.candidates:
            c = judged.candidates[v.number]
            named = dict(zip(names, c.values, strict=True))
            changes["confirmed"] = {name: e.value for name, e in named.items()}
            changes["confirmed_intervals"] = {name: (e.low, e.high) for name, e in named.items()}
            changes["confirmed_launches"] = c.launches
            if c.over_baseline is not None and "throughput" in names:
                e = c.over_baseline[names.index("throughput")]
                changes["confirmed_speedup"] = (e.value, e.low, e.high)
        out.append(replace(v, **changes))
    return out


def as_single(view: TrialView, name: str) -> SingleLaunch | None:
    """Return a point's value with the error of one launch; None where that is unknown."""
    return single_launch((view.values or {}).get(name), (view.errors or {}).get(name))


def quality_warnings(quality: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what was wrong with a measurement: ``in short: in words``."""
    found = []
    if disturbed := quality.get("disturbed"):
        found.append(f"disturbed: {disturbed}")
    if quality.get("steady") is False:
        found.append(f"not steady: {quality['warmup_requests']} warm-up requests were too few")
    if held := quality.get("unanswered"):
        found.append(
            f"slow warm-up: {held} of its requests ran until the last measured one had ended"
        )
    if drift := quality.get("drift"):
        way = "faster" if drift > 0 else "slower"
        found.append(f"drifting: the last requests were {abs(drift):.0%} {way} than the first")
    if (share := quality.get("prefix_cache_share")) and share > PREFIX_CACHE_SHARE:
        found.append(f"prefix cache: {share:.0%} of the prompt tokens came from it")
    if why := quality.get(OUTDATED):
        found.append(
            "not compared: measured by another version of autotune, whose numbers do not compare "
            f"with today's and cannot be computed again: {why}"
        )
    return tuple(found)
