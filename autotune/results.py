"""Reads a study back from the database, as the plots, tables and exports want it."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

import objectives as objective_registry
from autotune.bench.session import Stop
from autotune.errors import FailureKind, UserError, one_line
from autotune.recomputed import Recomputed
from autotune.search import Launches, Verdict, baseline_speedup, front_numbers, verdict
from autotune.serving.machine import machine_line
from autotune.serving.nvml import why_no_energy
from autotune.stats import LaunchVariance, SingleLaunch
from autotune.storage.records import Quality, attrs_of
from autotune.storage.store import Store
from autotune.study.schema import LoadedStudy, ObjectiveSpec, StudySpec
from autotune.study.space import Space
from autotune.views import (
    COMPUTED_AGAIN,
    Origin,
    StudyView,
    TrialView,
    plain,
    point_text,
    value_with_interval,
)
from objectives import Direction, Objective
from objectives import _own as own_objectives

# A chat template's own words are the same in every prompt; more than that is a repeated prompt.
PREFIX_CACHE_SHARE = 0.2

# Two launches of one point are one degree of freedom, of which an interval reaches anywhere.
LEAST_DEGREES = 2

# Characters of a variable's value: images of NVIDIA's have one of 2000. The database has it whole.
_MOST_SHOWN = 100

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def failure_of(trial: FrozenTrial) -> tuple[str | None, str | None]:
    """Kind and reason of a failed trial; None, None of any other.

    The kind is a :class:`FailureKind`, or one that another version of autotune knew.
    """
    attrs = attrs_of(trial)
    return attrs.failure_kind, attrs.failure_reason


def is_finished(trial: FrozenTrial) -> bool:
    """True for a trial that was launched and came to an end, measured or failed."""
    if trial.state == TrialState.COMPLETE:
        return True
    return trial.state == TrialState.FAIL and failure_of(trial)[0] != FailureKind.INFEASIBLE


def counts(trial: FrozenTrial) -> bool:
    """True for a finished trial that was launched for its own study: it counts as a wanted one.

    One whose numbers do not compare any more does not.
    """
    attrs = attrs_of(trial)
    return is_finished(trial) and attrs.reused is None and attrs.quality.outdated is None


def is_outdated(trial: FrozenTrial) -> bool:
    """True for one whose numbers are of an earlier estimator and could not be computed again.

    Args:
        trial: As :class:`autotune.recomputed.Recomputed` gives it.
    """
    return attrs_of(trial).quality.outdated is not None


def origin_of(trial: FrozenTrial) -> Origin | None:
    """Where a trial was measured, if not for its own study."""
    found = attrs_of(trial).reused
    return None if found is None else Origin(**found)


def study_objectives(loaded: LoadedStudy) -> tuple[Objective, ...]:
    """The study's objectives, with the study's directions and settings, to be measured here.

    Runs the code of objectives that are not ours.

    Raises:
        UserError: one is unknown, lacks its setting, cannot be run, or cannot be measured on this
            machine.
    """
    out = []
    for i, o in enumerate(loaded.spec.objectives):
        where = f"{loaded.path}: objectives.{i}"
        if o.file is not None or o.name not in objective_registry.names():
            found = _own_objective(where, loaded.base, o)
        else:
            found = objective_registry.get(o.name)
        found = _with_setting(where, found, o)
        if found.origin is not None:
            try:
                own_objectives.try_out(found)
            except own_objectives.BadObjective as e:
                raise UserError(f"{where}: {e}") from e
        if found.needs_energy and (why := why_no_energy()):
            raise UserError(f"{where}.name: {o.name} cannot be measured here: {why}")
        out.append(replace(found, direction=o.direction) if o.direction else found)
    return tuple(out)


def _own_objective(where: str, base: Path, o: ObjectiveSpec) -> Objective:
    """A user's objective, from its file or its package."""
    ours = objective_registry.names()
    try:
        if o.file is None:
            packaged = own_objectives.packaged()
            if o.name in packaged:
                return own_objectives.from_package(packaged[o.name])
            known = ", ".join([*ours, *sorted(packaged.keys() - set(ours))])
            raise UserError(f"{where}.name: {o.name} is unknown; known are {known}")
        if o.name in ours:
            raise UserError(f"{where}.file: {o.name} is one of ours; give the file another name")
        return own_objectives.from_file(base / o.file, o.name)
    except own_objectives.BadObjective as e:
        raise UserError(f"{where}: {e}") from e


def _with_setting(where: str, found: Objective, o: ObjectiveSpec) -> Objective:
    """An objective with the setting that a study gives it.

    Raises:
        UserError: it is missing, or it has none.
    """
    given = {"slo": o.slo and o.slo.limits(), "usd_per_hour": o.usd_per_hour}
    wanted = found.setting
    for key, value in given.items():
        if value is not None and key != wanted:
            raise UserError(f"{where}.{key}: {o.name} has no such setting; leave it out")
    if wanted is None:
        return found
    if wanted not in given:
        raise UserError(f"{where}: {found.origin}: OBJECTIVE.setting must be {' or '.join(given)}")
    if given[wanted] is None:
        raise UserError(f"{where}.{wanted}: is missing; {o.name} needs it")
    return found.given(given[wanted])


def stored_objectives(loaded: LoadedStudy, study: optuna.Study) -> tuple[Objective, ...]:
    """The objectives of a stored study, to be shown; no code of a user is run for it.

    Raises:
        UserError: the database has another number of them than the study file in it.
    """
    if len(study.directions) != len(loaded.spec.objectives):
        raise UserError(f"{loaded.path}: the database has other objectives than its study file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        shown: Sequence[str | None] = study.metric_names or [None] * len(loaded.spec.objectives)
    out = []
    for i, (o, direction) in enumerate(zip(loaded.spec.objectives, study.directions, strict=True)):
        way: Direction = "maximize" if direction == StudyDirection.MAXIMIZE else "minimize"
        if o.file is None and o.name in objective_registry.names():
            found = objective_registry.get(o.name)
            where = f"{loaded.path}: objectives.{i}"
            out.append(replace(_with_setting(where, found, o), direction=way))
        else:
            origin = str(o.file) if o.file else f"the entry point {o.name}"
            out.append(own_objectives.remembered(o.name, shown[i], way, origin))
    return tuple(out)


def study_view(store: Store, name: str) -> StudyView:
    """A whole study: every trial that has a point, in the order of their numbers."""
    loaded, row = store.load_study(name)
    spec = loaded.spec
    machine, version = store.launches.measured_on(name)
    study = store.optuna_study(name)
    objectives = stored_objectives(loaded, study)
    every = Recomputed(store, spec, objectives).trials(study.get_trials(deepcopy=False))
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


@dataclass(frozen=True)
class Launched:
    """Every measured launch of a study that may be compared, as points with their launches.

    Attributes:
        searched: By the number of the trial that first measured a point: the objective values of
            its launches during the search, in their order. Points that in a launch gave nothing of
            what shall be much, as a goodput of 0, are left out: they are no winners, and no ratio.
        confirmed: The same for launches of the confirmation.
        baseline: The trial that the others are compared with; None: it has no numbers.
        variance: How far launches of one point scatter, by objective; empty: no point has two.
    """

    searched: Launches
    confirmed: Launches
    baseline: int | None
    variance: Mapping[str, LaunchVariance]


class Standing:
    """What the trials of a study amount to, kept up to date one finished trial at a time.

    A study that runs needs this after each trial; made anew from all of them, a trial would cost
    the more, the more there are. It is the same whether it grew with the trials or was made of all
    of them, as after a resume, or for a report.

    Args:
        objectives: With the study's directions.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives
        self._directions = [o.direction for o in objectives]
        self._clear()

    def _clear(self) -> None:
        self._searched: dict[int, list[Sequence[float]]] = {}
        self._confirmed: dict[int, list[Sequence[float]]] = {}
        self._singles: dict[int, list[list[SingleLaunch | None]]] = {}  # by point: launches
        self._numbers: dict[int, list[int]] = {}  # by point: trials of the search
        self._within: dict[int, list[list[SingleLaunch | None]]] = {}  # the same: what they gave
        self._repeated: set[int] = set()  # points of several launches
        self._empty: set[int] = set()  # points with a launch that gave nothing
        self._means: dict[int, list[float]] = {}
        self._front: set[int] = set()
        self._baseline: int | None = None
        self._seen: set[int] = set()
        self._last = -1

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Adds those that were finished since.

        Args:
            trials: All of the study that were given a point, in the order of their numbers.
        """
        new = [t for t in trials if t.state.is_finished() and t.number not in self._seen]
        if new and new[0].number < self._last:  # a launch's place in its point is its number's
            self._clear()
            new = [t for t in trials if t.state.is_finished()]
        for t in new:
            self._seen.add(t.number)
            self._last = t.number
            if t.state == TrialState.COMPLETE and not _left_out(t):
                self._add(t)
        # one that runs or has failed is the baseline, too
        self._baseline = next((t.number for t in trials if _is_baseline(t)), None)

    def _add(self, trial: FrozenTrial) -> None:
        attrs = attrs_of(trial)
        of = trial.number if attrs.first is None else attrs.first
        errors = attrs.quality.errors
        singles = [
            _single(value, errors.get(o.name))
            for o, value in zip(self._objectives, trial.values, strict=True)
        ]
        group = self._singles.setdefault(of, [])
        group.append(singles)
        ways = zip(trial.values, self._directions, strict=True)
        if any(value == 0 and way == "maximize" for value, way in ways):
            self._empty.add(of)
        if len(group) > 1:
            self._repeated.add(of)
        if attrs.confirms is not None:
            self._confirmed.setdefault(of, []).append(trial.values)
            return
        known = of in self._searched
        self._searched.setdefault(of, []).append(trial.values)
        self._numbers.setdefault(of, []).append(trial.number)
        self._within.setdefault(of, []).append(singles)
        self._means[of] = _mean(self._searched[of])
        # a point that gets worse may let others onto the front
        numbers = self._means if known else [*self._front, of]
        self._front = front_numbers({k: self._means[k] for k in numbers}, self._directions)

    def front(self) -> set[int]:
        """By their numbers, the trials whose points no other one dominates."""
        return self._front

    def launches(self, number: int) -> int:
        """How many launches the search has of a trial's point, if it is the first; else 1."""
        return len(self._searched.get(number, [()]))

    def numbers(self, number: int) -> list[int]:
        """Trials of the search that launched a trial's point, if it is the first of them."""
        return self._numbers.get(number, [number])

    def errors(self, number: int) -> dict[str, float] | None:
        """Standard error of one launch of a trial's point, by objective, root mean square.

        None: the trial is not the first of its point.
        """
        launches = self._within.get(number)
        if launches is None:
            return None
        out = {}
        for o, column in zip(self._objectives, zip(*launches, strict=True), strict=True):
            squares = [x.within**2 for x in column if x is not None]
            if squares:
                out[o.name] = float(np.sqrt(np.mean(squares)))
        return out

    def means(self, number: int) -> list[float] | None:
        """Of each objective over the launches of a trial's point; None: there is none."""
        return self._means.get(number)

    def launched(self) -> Launched:
        """Every launch that may be compared; a view that later trials change."""
        variance = {}
        for i, o in enumerate(self._objectives):
            groups = [[x[i] for x in self._singles[k]] for k in sorted(self._repeated)]
            found = LaunchVariance.of([[x for x in g if x is not None] for g in groups])
            if found is not None:
                variance[o.name] = found
        searched, confirmed = self._searched, self._confirmed
        if self._empty:
            searched = {k: x for k, x in searched.items() if k not in self._empty}
            confirmed = {k: x for k, x in confirmed.items() if k not in self._empty}
        base = self._baseline if self._baseline in searched else None
        return Launched(searched, confirmed, base, variance)


def launched(trials: Sequence[FrozenTrial], objectives: Sequence[Objective]) -> Launched:
    """What was measured, without trials that were ended early."""
    standing = Standing(objectives)
    standing.update(trials)
    return standing.launched()


def _is_baseline(trial: FrozenTrial) -> bool:
    """Whether others are compared with it, as soon as it has numbers."""
    attrs = attrs_of(trial)
    return attrs.baseline and attrs.quality.outdated is None


def _left_out(trial: FrozenTrial) -> bool:
    """Whether a measured trial takes no part in any comparison."""
    quality = attrs_of(trial).quality
    return _truncated(quality) or quality.outdated is not None


def _truncated(quality: Quality) -> bool:
    return quality.stop == Stop.DOMINATED.name.lower()


def _single(value: float | None, error: float | None) -> SingleLaunch | None:
    """A value with what the requests of its launch say of it; None where that is not known."""
    if value is None or value <= 0 or error is None:
        return None
    return SingleLaunch(value, error)


def study_verdict(found: Launched, objectives: Sequence[Objective]) -> Verdict | None:
    """What the confirmation says; None without one, or where values are no ratios."""
    confirmed = {k: v for k, v in found.confirmed.items() if k in found.searched}
    directions = [o.direction for o in objectives]
    try:
        return verdict(confirmed, found.searched, directions, found.baseline)
    except ValueError:  # an objective that can be zero or negative
        return None


def trial_views(
    trials: Sequence[FrozenTrial], spec: StudySpec, objectives: Sequence[Objective]
) -> list[TrialView]:
    """Every trial of a study that was given a point.

    Args:
        trials: All, as :class:`autotune.recomputed.Recomputed` gives them.
        spec: The study.
        objectives: With the study's directions.
    """
    return _views(trials, spec, objectives)[0]


def with_points(trials: Sequence[FrozenTrial], space: Space) -> list[FrozenTrial]:
    """Those that were given a point."""
    return [t for t in trials if space.has_point(t.params)]


def trial_view(
    trials: Sequence[FrozenTrial],
    number: int,
    standing: Standing,
    space: Space,
    objectives: Sequence[Objective],
) -> TrialView:
    """One trial, as :func:`trial_views` would show it.

    Args:
        trials: All of the study that were given a point.
        number: Of one of them.
        standing: Of all of them.
        space: The study's.
        objectives: With the study's directions.
    """
    found = standing.launched()
    base = next((t for t in trials if _is_baseline(t)), None)
    shown = [t for t in trials if t is base or t.number == number]
    views = [_view(t, standing, space, objectives) for t in shown]
    judged = study_verdict(found, objectives) if found.confirmed else None
    return next(v for v in _compared(views, objectives, found, judged) if v.number == number)


def _views(
    every: Sequence[FrozenTrial], spec: StudySpec, objectives: Sequence[Objective]
) -> tuple[list[TrialView], Launched, Verdict | None]:
    """Every trial that was given a point, and what was made of all of them together."""
    space = spec.to_space()
    trials = with_points(every, space)
    standing = Standing(objectives)
    standing.update(trials)
    found = standing.launched()
    judged = study_verdict(found, objectives)
    views = [_view(t, standing, space, objectives) for t in trials]
    return _compared(views, objectives, found, judged), found, judged


def _view(
    t: FrozenTrial,
    standing: Standing,
    space: Space,
    objectives: Sequence[Objective],
) -> TrialView:
    """One trial by itself; :func:`_compared` adds the rest."""
    attrs = attrs_of(t)
    quality = attrs.quality
    values = (standing.means(t.number) or t.values) if t.state == TrialState.COMPLETE else None
    return TrialView(
        number=t.number,
        state=_STATES[t.state],
        point=space.decode(t.params),
        values=None
        if values is None
        else {o.name: v for o, v in zip(objectives, values, strict=True)},
        acceptance_length=attrs.acceptance_length,
        acceptance_per_position=tuple(attrs.acceptance_per_position or ()),
        speedup=None,
        baseline=_is_baseline(t),
        front=t.number in standing.front(),
        failure_kind=attrs.failure_kind,
        failure_reason=attrs.failure_reason,
        failure_evidence=tuple(attrs.failure_evidence or ()),
        within={name: (bounds[0], bounds[1]) for name, bounds in (attrs.intervals or {}).items()},
        errors=standing.errors(t.number) or quality.errors,
        launches=standing.launches(t.number),
        requests=quality.requests,
        stop=quality.stop,
        truncated=_truncated(quality),
        outdated=quality.outdated is not None,
        recomputed=quality.recomputed is not None,
        warnings=quality_warnings(quality),
        replicates=attrs.replicates,
        confirms=attrs.confirms,
        reused=origin_of(t),
        seconds=t.duration.total_seconds() if t.duration else None,
    )


def _mean(launches: Sequence[Sequence[float]]) -> list[float]:
    """Of each objective over the launches of one point."""
    return [float(x) for x in np.mean(launches, axis=0)]


def _compared(
    views: Sequence[TrialView],
    objectives: Sequence[Objective],
    found: Launched,
    judged: Verdict | None,
) -> list[TrialView]:
    """Adds what takes more than one launch: intervals between launches, speed-up, confirmation."""
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
    """A trial's point as one launch of it, or the mean of ``launches`` with the error of one."""
    return _single((view.values or {}).get(name), (view.errors or {}).get(name))


def quality_warnings(quality: Quality) -> tuple[str, ...]:
    """What was not as it should be with a measurement: ``in short: in words``."""
    found = []
    if disturbed := quality.disturbed:
        found.append(f"disturbed: {disturbed}")
    if quality.steady is False:
        found.append(f"not steady: {quality.warmup_requests} warm-up requests were too few")
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


def trial_story(store: Store, name: str, number: int) -> list[str]:
    """All that the database knows of one trial, as lines: launches, times, requests, failure.

    Raises:
        UserError: the study has no such trial.
    """
    view = study_view(store, name)
    trial = next((t for t in view.trials if t.number == number), None)
    if trial is None:
        raise UserError(f"{name} has no trial {number}; `autotune status` lists them")
    attrs = attrs_of(store.optuna_study(name).get_trials(deepcopy=False)[number])
    lines = [f"trial {number} of {name}: {point_text(trial.point)}, {trial.state}"]
    if trial.again is not None:
        lines.append(f"measures trial {trial.again} again")
    if trial.reused is not None:
        when = datetime.fromtimestamp(trial.reused.measured_at, UTC)
        lines.append(
            f"reused: {trial.reused.text}, measured {when:%Y-%m-%d %H:%M:%S} UTC; nothing was "
            "launched for it here"
        )
    if attrs.challenge:
        lines.append("a challenge: no launch seemed worth its time, and this might prove it wrong")
    elif attrs.expected_gain is not None:
        lines.append(f"chosen for an expected gain of {attrs.expected_gain:.1%} in hypervolume")
    for o in view.objectives:
        value = trial.value(o)
        if value is not None:
            interval = (trial.within or {}).get(o.name)
            lines.append(f"{o.title}: {value_with_interval(value, interval, o)}")
    if trial.requests is not None:
        lines.append(f"{trial.requests} requests: {Stop[(trial.stop or 'all').upper()]}")
    if trial.recomputed:
        lines.append(COMPUTED_AGAIN)
    lines += [f"warning: {plain(w)}" for w in trial.warnings]
    if trial.acceptance_length is not None:
        shares = ", ".join(f"{p:.2f}" for p in trial.acceptance_per_position)
        lines.append(f"acceptance length {trial.acceptance_length:.2f}, by position {shares}")
    if trial.failure_kind is not None:
        lines.append(f"failed: {trial.failure_kind}: {trial.failure_reason}")
    events = store.launches.events(name)
    caches = store.launches.compile_caches(name)
    for launch in store.launches.of_trial(name, number):
        began = datetime.fromtimestamp(launch.planned_at, UTC)
        version = launch.vllm_version or "of unknown version"
        lines += [
            "",
            f"launch {launch.attempt + 1}, {began:%Y-%m-%d %H:%M:%S} UTC",
            f"  vLLM {version} on {machine_line(launch.machine)}",
            f"  command: {shlex.join(launch.argv)}",
            *(f"  environment: {k}={one_line(v, _MOST_SHOWN)}" for k, v in launch.env.items()),
        ]
        for e in events:
            if e.launch_id == launch.launch_id:
                lines.append(f"  {e.at - launch.planned_at:6.1f} s  {plain(e.what)}")
        requests = store.requests.of_launch(launch.launch_id)
        for phase in dict.fromkeys(r.phase for r in requests):
            of = [r for r in requests if r.phase == phase]
            ok = [r for r in of if r.status == "ok"]
            tokens = sum(r.output_tokens or 0 for r in ok)
            lines.append(f"  {phase}: {len(ok)} of {len(of)} requests ok, {tokens} output tokens")
            lines += [f"    request {r.index}: {r.error}" for r in of if r.error][:5]
        lines += [f"  warning: {plain(w)}" for w in quality_warnings(Quality.read(launch.quality))]
        if launch.failure_kind is not None:
            lines.append(f"  failed: {launch.failure_kind}: {launch.failure_reason}")
            lines += [f"    {plain(line)}" for line in launch.evidence or ()]
        if (cache := caches.get(launch.launch_id)) is not None:
            lines.append(f"  torch.compile's cache: {cache.text}")
        if launch.ended_at is not None:
            lines.append(
                f"  exit code {launch.exit_code}, {launch.killed} processes needed SIGKILL; "
                f"log: {launch.log_path}"
            )
    return lines
