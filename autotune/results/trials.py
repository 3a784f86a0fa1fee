"""Read a study from the database into the views of figures, tables and exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from autotune.results.certificates import certificate_of, told_versions
from autotune.results.environment import environments, mixed
from autotune.results.objectives import stored_objectives
from autotune.results.recomputed import Recomputed
from autotune.results.standing import (
    LEAST_DEGREES,
    Launched,
    Standing,
    baseline_of,
    counts,
    is_baseline,
    origin_of,
    single_launch,
    study_verdict,
    with_points,
)
from autotune.results.text import count
from autotune.results.views import StudyView, TrialView
from autotune.search.confirmation_verdict import ConfirmationVerdict
from autotune.search.front import baseline_speedup
from autotune.search.spending import STEPS, Dropped, Spending
from autotune.serving.machine import machine_line
from autotune.stats import SingleLaunch
from autotune.stats.warmup import fewest
from autotune.storage.records import Quality, attrs_of
from autotune.storage.schema import CertificateRow
from autotune.storage.store import Store
from autotune.storage.trials import State, TrialLike
from autotune.study.schema import StudySpec
from autotune.study.space import Space
from autotune.study.ways import curve_of, is_lossy, skips_steps
from objectives import Objective

# A chat template's own words are equal in every prompt; a larger share means a repeated prompt.
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
    verified = store.certificates.of_study(name)
    told = told_versions(store, name) if verified else {}
    return StudyView(
        name=name,
        objectives=objectives,
        trials=[_certified(_on_its_slot(store, name, v), spec, verified, told) for v in trials],
        wanted=row.wanted,
        finished=sum(map(counts, every)),
        machine=machine_line(machine) if machine else "",
        vllm_version=version,
        created=datetime.fromtimestamp(row.created_at, UTC),
        verdict=judged,
        variance=found.variance,
        variables=mixed(environments(store, name, study.trials, spec.server.env)),
        arms=tuple(spec.server.arms),
        dropped=_dropped(study.user_attrs),
        rehearsal=spec.rehearsal_label,
    )


def _on_its_slot(store: Store, name: str, view: TrialView) -> TrialView:
    """Return a running trial with the slot that launches it; any other unchanged."""
    if view.state != "running" or view.slot is not None:
        return view
    launches = store.launches.of_trial(name, view.number)
    if not launches or launches[-1].ended_at is not None:
        return view
    return replace(view, slot=launches[-1].machine.get("slot"))


def _certified(
    view: TrialView, spec: StudySpec, rows: Sequence[CertificateRow], told: Mapping[int, str]
) -> TrialView:
    """Return a measured trial with what is known of its answers; any other unchanged."""
    if view.state != "complete":
        return view
    number = view.number if view.again is None else view.again
    return replace(view, certificate=certificate_of(rows, spec, number, view.point, told))


def _dropped(kept: Mapping[str, Any]) -> dict[int, Dropped]:
    """Return the dropped candidates of all confirmations, unless a later one launched them again.

    Args:
        kept: User attributes of the study.
    """
    keys = [key for key in kept if key.startswith(STEPS)]
    found: dict[int, Dropped] = {}
    for wanted in sorted(int(key.removeprefix(STEPS)) for key in keys):
        order = kept.get(f"confirmation_{wanted}", ())
        planned = Spending.read(order, kept[f"{STEPS}{wanted}"])
        found = {k: why for k, why in found.items() if k not in planned.order}
        found |= planned.dropped
    return found


def trial_views(
    trials: Sequence[TrialLike], spec: StudySpec, objectives: Sequence[Objective]
) -> list[TrialView]:
    """Return every trial of a study that has a point.

    Args:
        trials: All trials, as :class:`autotune.results.recomputed.Recomputed` returns them.
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
        trials: All trials of the study that have a point.
        number: Number of the trial.
        standing: State of all trials.
        space: Space of the study.
        objectives: Objectives with the study's directions.
    """
    found = standing.launched()
    base = baseline_of(trials)
    shown = [t for t in trials if t is base or t.number == number]
    views = [_view(t, standing, space, objectives) for t in shown]
    judged = study_verdict(found, objectives) if found.confirmed else None
    return next(v for v in _compared(views, objectives, found, judged) if v.number == number)


def _views(
    every: Sequence[TrialLike], spec: StudySpec, objectives: Sequence[Objective]
) -> tuple[list[TrialView], Launched, ConfirmationVerdict | None]:
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
    attrs = attrs_of(t)
    quality = attrs.quality
    point = space.decode(t.params)
    draft = space.draft_of(point)
    values = (standing.means(t.number) or t.values) if t.state == State.COMPLETE else None
    return TrialView(
        number=t.number,
        state=_STATES[t.state],
        point=space.shown(point),
        values=None
        if values is None
        else {o.name: v for o, v in zip(objectives, values, strict=True)},
        acceptance_length=attrs.acceptance_length,
        acceptance_per_position=tuple(attrs.acceptance_per_position or ()),
        speedup=None,
        baseline=is_baseline(t),
        front=t.number in standing.front(),
        failure_kind=attrs.failure_kind,
        failure_reason=attrs.failure_reason,
        failure_evidence=tuple(attrs.failure_evidence or ()),
        within={name: (bounds[0], bounds[1]) for name, bounds in (attrs.intervals or {}).items()},
        errors=standing.errors(t.number) or quality.errors,
        launches=standing.launches(t.number),
        requests=quality.requests,
        stop=quality.stop,
        truncated=quality.truncated,
        throttled=bool(quality.throttled),
        running_peak=quality.running_peak,
        running_asked=quality.running_asked,
        outdated=quality.outdated is not None,
        recomputed=quality.recomputed is not None,
        warnings=quality_warnings(quality),
        replicates=attrs.replicates,
        confirms=attrs.confirms,
        reused=origin_of(t),
        seconds=t.duration.total_seconds() if t.duration else None,
        curve=curve_of(space, point) if draft else "",
        lossy=is_lossy(draft),
        skips_steps=skips_steps(draft),
        slot=attrs.slot,
    )


def _compared(
    views: Sequence[TrialView],
    objectives: Sequence[Objective],
    found: Launched,
    judged: ConfirmationVerdict | None,
) -> list[TrialView]:
    """Add values that need several launches: intervals between them, speed-up, confirmation."""
    own = [v for v in views if v.baseline]
    base = next((v for v in own if v.values), own[0] if own else None)
    names = [o.name for o in objectives]
    known = {k: v for k, v in found.variance.items() if v.total.degrees >= LEAST_DEGREES}
    out = []
    for v in views:
        changes: dict[str, Any] = {"intervals": dict(v.within or {})}
        for name, variance in known.items():
            if v.comparable and (one := as_single(v, name)) is not None:
                e = variance.point(one, v.launches)
                changes["intervals"][name] = (e.low, e.high)
        if base is not None and base.comparable and v.comparable:
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


def throttled_text(peak: int, asked: int) -> str:
    """Return how far a load was throttled, in words.

    Args:
        peak: Largest number of requests that ran at once.
        asked: Number of requests that the load and ``max_num_seqs`` ask for.
    """
    return (
        f"vLLM ran at most {count(peak, 'request')} at once, not {asked}, so this is another load"
    )


def quality_warnings(quality: Quality) -> tuple[str, ...]:
    """Return the warnings of a measurement: ``in short: in words``."""
    found = []
    if quality.throttled and quality.running_peak is not None and quality.running_asked:
        found.append(f"throttled: {throttled_text(quality.running_peak, quality.running_asked)}")
    if disturbed := quality.disturbed:
        found.append(f"disturbed: {disturbed}")
    sent = quality.warmup_requests or 0
    if quality.steady is False and sent >= fewest(quality.running_asked or 1):  # fewer tell nothing
        found.append(f"not steady: {sent} warm-up requests were too few")
    if held := quality.unanswered:
        found.append(
            f"slow warm-up: {held} of its requests ran until the last measured one had ended"
        )
    if drift := quality.drift:
        way = "faster" if drift > 0 else "slower"
        found.append(f"drifting: the last requests were {abs(drift):.0%} {way} than the first")
    if (share := quality.prefix_cache_share) and share > PREFIX_CACHE_SHARE:
        found.append(f"prefix cache: {share:.0%} of the prompt tokens came from it")
    if why := quality.outdated:
        found.append(
            "not compared: measured by another version of autotune, whose numbers do not compare "
            f"with today's and cannot be computed again: {why}"
        )
    return tuple(found)
