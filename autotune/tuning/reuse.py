"""Trials of an earlier study, taken over instead of launching them again (``run --reuse``).

A trial may be taken where a launch of its point today would be the same experiment:

- **the study**: server (command, model, flags, draft, environment), workload (the prompts by their
  content) and measure settings are the same, and so are the objectives. A flag may be fixed in one
  study and searched in the other: what counts is what a trial was launched with. A study that
  differs in anything else is refused as a whole, by the first key that differs.
- **the launch**: the same weights, vLLM version and machine, and the variables of the user's own
  environment by which a server may be faster or slower.
- **the numbers**: each objective, computed again from the requests that the database kept, is what
  was measured then; a definition that was changed since shows there. What an earlier estimator
  measured is computed again wherever it is read (:mod:`autotune.results.recomputed`), if it can be.
- **the point**: it lies in the present space.

Failed trials are not taken, for what made them fail may have been mended; nor launches of a
confirmation, which say something only next to each other; nor a trial that was ended early for
another one that is not taken. All of that is counted and said.

A taken trial is a finished one to the search, the front and the plots, and no launch of its study:
it does not use up ``--trials``. Of two taken trials of one point the later one is a replicate. What
was measured of it is copied, every request included, so that the database needs no other one.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

import objectives as objective_registry
from autotune.engine.variables import changed, deciding
from autotune.errors import UserError
from autotune.results.recomputed import Recomputed, measurement_of
from autotune.results.standing import failure_of, is_outdated, origin_of, with_points
from autotune.results.text import plain
from autotune.results.views import Origin
from autotune.serving.machine import machine_line
from autotune.stats import ESTIMATOR
from autotune.storage.location import Database, full_text, is_same, parse_named
from autotune.storage.records import Quality, Role, TrialAttrs, attrs_of
from autotune.storage.schema import LaunchRow
from autotune.storage.store import Store, opened
from autotune.study.differences import (
    POINTS,
    Difference,
    differences,
    digest,
    files_of,
    fingerprints,
    in_any_order,
)
from autotune.study.files import LoadedStudy
from autotune.study.schema import StudySpec
from autotune.study.space import ARM, DRAFT, N, Point, Value, canonical, first_value
from autotune.study.weights import draft_role
from autotune.tuning.comparable import environment_of
from autotune.tuning.prepare import Prepared

# Compared by what a trial was launched with.
_BY_TRIAL = ("server.model", "server.flags.", "server.speculative.", "server.arms.", *POINTS)
# Requests are kept with the times of their chunks in single precision.
_SAME = 1e-3


@dataclass(frozen=True)
class Source:
    """What ``--reuse`` names.

    Attributes:
        database: The other study's database.
        study: Its name; None: the only one in it.
    """

    database: Database
    study: str | None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read ``DB`` or ``DB:STUDY``; DB is a file, whose name may have a colon, or a URL.

        Raises:
            UserError: there is no such file.
        """
        if (found := parse_named(text)) is not None:
            return cls(*found)
        raise UserError(
            f"--reuse {plain(text)[:200]}: no such database; give OTHER.db or OTHER.db:STUDY"
        )


@dataclass(frozen=True)
class Candidate:
    """One trial that can be taken.

    Attributes:
        trial: There.
        launch: Id of its measured launch there.
        point: In the present space.
        values: By objective name, in its unit.
        launches: Ids of all its launches there, oldest first.
        origin: Where it was measured.
    """

    trial: FrozenTrial
    launch: str
    point: dict[str, Value]
    values: Mapping[str, float]
    launches: tuple[str, ...]
    origin: Origin


@dataclass(frozen=True)
class Found:
    """One study that trials are taken from.

    Attributes:
        database: Its database.
        study: Its name.
        objectives: Names of its objectives, in its order.
        candidates: In the order of their numbers there.
        left: Why others are not taken, in words, and how many.
    """

    database: Database
    study: str
    objectives: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    left: Mapping[str, int]

    @property
    def name(self) -> str:
        """As the user gave it."""
        return f"{plain(str(self.database))}:{plain(self.study)}"


def find(
    sources: Sequence[Source], prepared: Prepared, machine: Mapping[str, Any], store: Store
) -> list[Found]:
    """Return what can be taken; change nothing.

    Args:
        sources: Where to look.
        prepared: The present study.
        machine: That it runs on.
        store: Its database.

    Raises:
        UserError: a source cannot be read, is another experiment, or has nothing to take.
    """
    return [_find(source, prepared, machine, store) for source in sources]


def _find(source: Source, prepared: Prepared, machine: Mapping[str, Any], store: Store) -> Found:
    with opened(source.database) as other:
        names = other.study_names()
        if source.study is None and len(names) > 1:
            raise UserError(
                f"--reuse {source.database}: holds several studies; name one, such as "
                f"{source.database}:{names[0]}"
            )
        name = other.pick_study(source.study)
        itself = is_same(source.database, store.database)
        if itself and name == prepared.spec.name:
            raise UserError(f"--reuse {source.database}:{name}: is the study itself")
        loaded, row = other.load_study(name)
        where = f"--reuse {source.database}:{name}"
        if why := next(_differences(loaded, row.fingerprint, prepared.loaded), None):
            raise UserError(f"{where}: {why}; its trials would not compare")
        candidates, left = _candidates(other, loaded, prepared, machine)
    if not candidates:
        reasons = _counted(left) or "it has none"
        raise UserError(f"{where}: no trial of it can be taken: {reasons}")
    objectives = tuple(o.name for o in loaded.spec.objectives)
    return Found(source.database, name, objectives, tuple(candidates), left)


def take(
    found: Sequence[Found],
    store: Store,
    study: optuna.Study,
    prepared: Prepared,
    baseline: Point,
    say: Callable[[str], None],
) -> None:
    """Write what was found into the present study; nothing is taken twice.

    Args:
        found: By :func:`find`.
        store: The present study's database.
        study: Optuna's side of it.
        prepared: The study.
        baseline: Its baseline's point.
        say: Told how many were taken, and why not others.
    """
    for source in found:
        taken = _take(source, store, study, prepared, baseline)
        if taken:
            rest = _counted(source.left)
            more = f"; not taken: {rest}" if rest else ""
            say(f"took {taken} trial{'s' if taken > 1 else ''} from {source.name}{more}")


def _take(
    source: Found, store: Store, study: optuna.Study, prepared: Prepared, baseline: Point
) -> int:
    space = prepared.spec.to_space().kept_as(t.params for t in study.get_trials(deepcopy=False))
    distributions = space.distributions()
    recomputed = Recomputed(store, prepared.spec, prepared.objectives)
    taken = 0
    with opened(source.database) as other:
        for c in source.candidates:
            trials = study.get_trials(deepcopy=False)
            ids = {old: _new_id(study.study_name, old) for old in c.launches}
            measured = ids[c.launch]
            there = next((t for t in trials if _is_of(t, c.origin)), None)
            if there is not None:
                if attrs_of(there).launch == measured:  # a run may have ended between the two
                    _give(store, ids.values(), there.number)
                continue
            for old, new in ids.items():
                store.launches.copy(other.launches, old, new_id=new, study=study.study_name)
            params = space.encode(c.point)
            valid = [t for t in recomputed.trials(trials) if not is_outdated(t)]
            same = (t for t in valid if t.state == TrialState.COMPLETE and t.params == params)
            # a launch of a throttled one's point must not count for it
            first = next((t for t in same if not attrs_of(t).quality.throttled), None)
            attrs = replace(
                _attributes(c, source, trials, prepared),
                point=c.point,
                launch=measured,
                baseline=c.point == baseline and not any(attrs_of(t).baseline for t in valid),
                replicates=None if first is None else _first_of(first),
            )
            trial = create_trial(
                state=TrialState.COMPLETE,
                values=[c.values[o.name] for o in prepared.objectives],
                params=params,
                distributions=distributions,
                user_attrs=attrs.to_json(),
            )
            trial.datetime_start = c.trial.datetime_start
            trial.datetime_complete = c.trial.datetime_complete
            study.add_trial(trial)
            number = len(trials)
            _give(store, ids.values(), number)
            store.launches.event(
                study.study_name, f"reused: {c.origin.text}", trial=number, launch_id=measured
            )
            taken += 1
    return taken


def _first_of(trial: FrozenTrial) -> int:
    """Return the number of the first trial of a trial's point."""
    replicates = attrs_of(trial).replicates
    return trial.number if replicates is None else replicates


def _give(store: Store, launches: Iterable[str], trial: int) -> None:
    for launch_id in launches:
        store.launches.give(launch_id, trial)


def _is_of(trial: FrozenTrial, origin: Origin) -> bool:
    """Return whether a trial of the present study is that measurement, taken before or its own."""
    of = origin_of(trial)
    return (attrs_of(trial).launch if of is None else of.launch) == origin.launch


def _new_id(study: str, launch_id: str) -> str:
    """Return a copied launch's id: the same at every copy, and of this study only."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{study}\n{launch_id}").hex


def _attributes(
    c: Candidate, source: Found, trials: Sequence[FrozenTrial], prepared: Prepared
) -> TrialAttrs:
    """Return what is known of a measured trial, in the terms of the present study."""
    there = attrs_of(c.trial)
    variances, quality = there.log_variances, there.quality
    if variances is not None:
        named = dict(zip(source.objectives, variances, strict=True))
        variances = [named[o.name] for o in prepared.objectives]
    if (by := quality.dominated_by) is not None:
        of = next(x.origin for x in source.candidates if x.trial.number == by)
        here = next(t.number for t in trials if _is_of(t, of))
        quality = replace(quality, dominated_by=here)
    return TrialAttrs(
        Role.REUSED,
        vllm_version=there.vllm_version,
        acceptance_length=there.acceptance_length,
        acceptance_per_position=there.acceptance_per_position,
        intervals=there.intervals,
        log_variances=variances,
        quality=quality,
        reused=asdict(c.origin),
    )


def _counted(left: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in left.items())


# -- the study ---------------------------------------------------------------------------------


def _differences(old: LoadedStudy, fingerprint: str, new: LoadedStudy) -> Iterator[str]:
    """Tell the keys in which two studies differ so that no trial can be the same, with both values.

    Args:
        old: As the database has it.
        fingerprint: Of ``old`` when it was run, the content of its prompts included.
        new: The present one.
    """
    kinds = ["real" if x.spec.rehearsal is None else "a rehearsal" for x in (old, new)]
    if kinds[0] != kinds[1]:
        yield f"is {kinds[0]}, and this study is {kinds[1]}"
    there, here = (_place(x.spec.server.model, x.base) for x in (old, new))
    if there != here:
        yield _both("server.model", there, here)
    one, two = (in_any_order(x.spec, _directions(x.spec)) for x in (old, new))
    found = [d for d in differences(one, two) if not d.key.startswith(_BY_TRIAL)]
    # what a rehearsal changes shows in the settings, too
    server = [d for d in found if d.key.startswith(("server.", "rehearsal."))]
    yield from (_told(d) for d in server)
    yield from _settings(old, new)
    yield from (_told(d) for d in found if d not in server)
    yield from _requests(old, fingerprint, new)


def _told(d: Difference) -> str:
    return plain(f"{d.key} differs {d.values('there', 'here')}")


def _both(key: str, there: object, here: object) -> str:
    return _told(Difference(key, there, here))


def _directions(spec: StudySpec) -> dict[str, str]:
    """Return the directions of our own objectives; nothing that a study brings is run for it."""
    ours = {o.name for o in spec.objectives} & set(objective_registry.names())
    return {name: objective_registry.get(name).direction for name in ours}


def _place(model: str, base: Path) -> str:
    """Return a model reference that means the same in every folder."""
    path = base / Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def _fixed(loaded: LoadedStudy) -> dict[str, object]:
    """Return the launch settings that all trials of a study share."""
    spec = loaded.spec
    out: dict[str, object] = {**spec.settings({})}
    if N not in spec.to_space().params:
        out.setdefault(N, 0)
    if (draft := spec.server.speculative) is not None and draft.model is not None:
        out[f"{DRAFT}model"] = _place(draft.model, loaded.base)
    return out


def _settings(old: LoadedStudy, new: LoadedStudy) -> Iterator[str]:
    """Launch settings that differ, but for those that one of the studies searches."""
    a, b = _fixed(old), _fixed(new)
    arms = _have_arms(old, new)
    for name in dict.fromkeys([*a, *old.spec.space, *b, *new.spec.space]):
        if arms and (name == N or name.startswith(DRAFT)):
            continue  # told trial by trial
        searched = (name in old.spec.space, name in new.spec.space)
        there, here = a.get(name), b.get(name)
        if all(searched) or (any(searched) and (name in a or name in b)):
            continue  # told trial by trial
        if any(searched):
            words = ["searched" if s else None for s in searched]
            yield _both(f"space.{name}", *words)
        elif there != here or type(there) is not type(here):
            key = f"server.{name}" if name.startswith(DRAFT) else f"server.flags.{name}"
            yield _both(N if name == N else key, there, here)


def _have_arms(*studies: LoadedStudy) -> bool:
    return any(study.spec.server.arms for study in studies)


def _requests(old: LoadedStudy, fingerprint: str, new: LoadedStudy) -> Iterator[str]:
    """Tell whether the studies send other texts: by the old study's hash with the present file."""
    there, here = old.spec.workload.source, new.spec.workload.source
    if there is None or here is None or there[0] != here[0]:
        return  # another kind is told before
    (key, then), (_, now) = there, here
    mine, theirs = files_of(new.spec), files_of(old.spec)
    # an objective that was changed since is told by its numbers
    own = {k: old.base / file for k, file in theirs.items() if k != f"workload.{key}"}
    if not all(file.is_file() for file in own.values()):
        own = {k: new.base / mine[k] for k in own if k in mine}
    found = {k: digest(file) for k, file in {**own, f"workload.{key}": new.base / now}.items()}
    if found.keys() != theirs.keys() or fingerprint not in fingerprints(old.spec, found):
        yield _both(f"content of workload.{key}", str(old.base / then), str(new.base / now))


# -- its trials --------------------------------------------------------------------------------


def _candidates(
    other: Store, old: LoadedStudy, prepared: Prepared, machine: Mapping[str, Any]
) -> tuple[list[Candidate], Counter[str]]:
    """Return the trials that can be taken, and why others cannot, with their numbers."""
    name = old.spec.name
    space = old.spec.to_space()
    environment = environment_of(prepared)
    weights = prepared.weights()
    left: Counter[str] = Counter()
    out: list[Candidate] = []
    for trial in with_points(other.optuna_study(name).get_trials(deepcopy=False), space):
        if trial.state != TrialState.COMPLETE:
            if failure_of(trial)[0] is not None:
                left["failed"] += 1
            continue
        attrs = attrs_of(trial)
        if not attrs.searches:
            left["of a confirmation"] += 1
            continue
        point = _point(old, space.decode(trial.params), prepared)
        if point is None:
            left["outside the present space"] += 1
            continue
        by = attrs.quality.dominated_by
        if by is not None and by not in {c.trial.number for c in out}:
            left["ended early for a trial that is not taken"] += 1
            continue
        launches = other.launches.of_trial(name, trial.number)
        launch = next((x for x in launches if x.launch_id == attrs.launch), None)
        if launch is None or launch.values is None:
            left["without its launch"] += 1
            continue
        here = weights
        if _have_arms(old, prepared.loaded):
            here = _weights_of(weights, prepared.loaded, point, old, space.decode(trial.params))
        why = _other_launch(launch, prepared, machine, environment, here)
        why = why or _other_definition(other, launch, prepared)
        if why is not None:
            left[why] += 1
            continue
        origin = origin_of(trial) or Origin(
            database=full_text(other.database),
            study=name,
            trial=trial.number,
            launch=launch.launch_id,
            measured_at=launch.measured_at or launch.planned_at,
        )
        ids = tuple(x.launch_id for x in launches if x.ended_at is not None)
        if launch.launch_id in ids:
            out.append(Candidate(trial, launch.launch_id, point, launch.values, ids, origin))
    return out, left


def _point(old: LoadedStudy, there: Point, prepared: Prepared) -> dict[str, Value] | None:
    """Return a trial's point in the present space; None if it lies outside.

    With arms in one of the studies, its draft must have the same keys as one of the present arms.
    """
    settings: dict[str, Any] = {N: 0, **old.spec.settings(there)}
    new, arms = prepared.loaded, _have_arms(old, prepared.loaded)
    space = new.spec.to_space()
    fixed = new.spec.settings({})
    for name in old.spec.space:
        if arms and (name == N or name.startswith(DRAFT)):
            continue
        if name not in space.params and settings[name] != fixed.get(name, 0 if name == N else None):
            return None
    for arm in space.arms or (None,):
        point = {k: settings.get(k, first_value(p)) for k, p in space.params.items()}
        if arm is not None:
            point[ARM] = arm
        point = canonical(space, point)
        if not space.contains(point) or (arms and _draft(old, there) != _draft(new, point)):
            continue
        return point if prepared.infeasible(point) is None else None
    return None


def _draft(loaded: LoadedStudy, point: Point) -> dict[str, Any]:
    """Return what a launch has as ``--speculative-config``; empty at n = 0."""
    keys = loaded.spec.server.draft_settings(point)
    if not keys.get(N, 0):
        return {}
    model = keys.get("model")
    return keys if model is None else {**keys, "model": _place(model, loaded.base)}


def _weights_of(
    weights: Mapping[str, str], new: LoadedStudy, point: Point, old: LoadedStudy, there: Point
) -> dict[str, str]:
    """Return the weights of target and draft of a point, by the names of the old study.

    Args:
        weights: Hashes that are here, by the names of the new study.
        new: The new study.
        point: A point of it.
        old: The old study.
        there: The same point in it.
    """
    found = {k: v for k, v in weights.items() if k == "target"}
    here, then = (_draft_role(study, at) for study, at in ((new, point), (old, there)))
    if here is not None and then is not None and here in weights:
        found[then] = weights[here]
    return found


def _draft_role(loaded: LoadedStudy, point: Point) -> str | None:
    """Return what the weights of a launch's draft are for; None: it has no draft with weights."""
    server = loaded.spec.server
    draft = server.draft_at(point) if _draft(loaded, point) else None
    if draft is None or draft.model is None:
        return None
    return draft_role(str(point[ARM]) if server.arms else None, draft.model)


def _other_launch(
    launch: LaunchRow,
    prepared: Prepared,
    machine: Mapping[str, Any],
    environment: Mapping[str, str],
    weights: Mapping[str, str],
) -> str | None:
    """Return why a launch was not what it would be today; None if it was."""
    then, now = launch.vllm_version, prepared.info.version
    if now is not None and str(then).partition("+")[0] != now.partition("+")[0]:
        return f"measured with another vLLM ({then} there, {now} here)"
    for role, there in Quality.read(launch.quality).weights.items():
        if (here := weights.get(role, there)) != there:
            return f"with other weights of the {role} ({plain(there)} there, {here} here)"
    there, here = machine_line(launch.machine), machine_line(dict(machine))
    if there != here:
        return f"measured on another machine ({there} there, {here} here)"
    study = prepared.spec.server.env
    before = deciding(launch.env, study)
    for key, old, new in changed(before, environment, complete=launch.host is not None):
        return f"with another environment: {_both(key, old, new)}"
    return None


def _other_definition(other: Store, launch: LaunchRow, prepared: Prepared) -> str | None:
    """Return which objective is another one today, by a launch's requests; None: none is."""
    samples = other.requests.samples(launch.launch_id)
    quality = Quality.read(launch.quality)
    earlier = quality.estimator != ESTIMATOR
    try:
        measurement = measurement_of(samples, prepared.spec.workload, quality)
    except ValueError as e:
        return f"measured by autotune 0.1: {e}" if earlier and samples else "without its requests"
    if earlier:  # its numbers are computed again wherever they are read
        own = any(o.origin is not None for o in prepared.objectives)
        return "measured by autotune 0.1, with an objective of your own" if own else None
    for o in prepared.objectives:
        then = (launch.values or {})[o.name]
        try:
            now = o.value(measurement)
        except ValueError:  # it needs more than the requests
            continue
        if not math.isclose(then, now, rel_tol=_SAME):
            return f"with another definition of {o.name} (first {then:.6g} there, {now:.6g} here)"
    return None
