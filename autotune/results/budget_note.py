"""From which MNBT on a recommended point is the same, and which of them to serve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from autotune.engine.batch_budget import Verdict
from autotune.engine.draft_method import with_method
from autotune.engine.feasibility import known_for
from autotune.engine.rule import Known
from autotune.errors import UserError
from autotune.results.batch_budget import Families, families_of
from autotune.results.measured import measured
from autotune.results.recomputed import Recomputed
from autotune.results.standing import is_outdated
from autotune.results.views import StudyView, TrialView
from autotune.search.alike import Classes, key_of
from autotune.search.places import on_one_slot, place_of
from autotune.storage.records import attrs_of
from autotune.storage.store import Store
from autotune.storage.trials import State
from autotune.study.files import LoadedStudy
from autotune.study.schema import StudySpec
from autotune.study.space import MNBT, Point
from objectives import Objective


class ComparedLaunch(NamedTuple):
    """A measured launch, as :class:`autotune.search.alike.Launched` describes it."""

    point: Point
    costs: tuple[float, ...]
    variances: tuple[float, ...]


def budget_note(store: Store, view: StudyView, trial: TrialView) -> str | None:
    """Return from which MNBT on a trial's point is the same, why, and what to serve.

    Args:
        store: Database of the study.
        view: The study.
        trial: Trial that is recommended.

    Returns:
        One or two sentences; None: MNBT may bind at this point, or is not searched.
    """
    if MNBT not in trial.point:
        return None
    known = rules_of(store, view, trial)
    if known is None:
        return None
    loaded, families = known.loaded, known.families
    family = families.of(trial.point)
    mnbt = int(trial.point[MNBT])
    if family is None or family.sentence(mnbt, certain=False) is None:
        return None
    least = family.smallest(mnbt, certain=False)
    proven, checked, split = family.budgets[least].verdict is Verdict.SAME, "", False
    if not proven:
        classes = _classes(store, loaded.spec, families, view)
        proven, split = classes.checked, classes.split
        checked = "A launch with a larger one was no different. " if proven and not split else ""
    least = family.smallest(mnbt, certain=split)
    if (why := family.sentence(mnbt, certain=split)) is None:
        return None
    if mnbt == least:
        serve = f"{least} is the smallest that does not bind"
    elif proven:
        serve = f"Serve MNBT {least}, the smallest that does not bind: it needs less memory"
    else:
        serve = f"MNBT {least} likely serves as well, with less memory"
    return f"{why}. {checked}{serve}."


class Rules(NamedTuple):
    """What a study's rules depend on, as its launches tell it.

    Attributes:
        loaded: The study, with the method of its draft where that can be read.
        version: vLLM's version; None: unknown.
        known: Facts about machine and target.
        families: Points that differ in MNBT only.
    """

    loaded: LoadedStudy
    version: str | None
    known: Known
    families: Families


def rules_of(store: Store, view: StudyView, trial: TrialView) -> Rules | None:
    """Return what the rules of a study depend on; None: no launch of the trial can be read."""
    found = measured(store, view.name, trial.number)
    if found is None:
        return None
    try:
        loaded = with_method(found.loaded)
    except UserError:  # the draft is not on this machine
        loaded = found.loaded
    known = known_for(loaded, found.info)
    version = found.info.version
    return Rules(loaded, version, known, families_of(loaded.spec, version, known))


def _classes(store: Store, spec: StudySpec, families: Families, view: StudyView) -> Classes:
    """Return the classes of points, after what the study's launches say."""
    return Classes(
        families.alike(spec.to_space()),
        list(compared_launches(store, spec, view.name, view.objectives)),
    )


def compared_launches(
    store: Store, spec: StudySpec, name: str, objectives: Sequence[Objective]
) -> Iterator[ComparedLaunch]:
    """Yield the measured launches of a study that have positive values.

    Of several slots, how they differ is taken out (:func:`autotune.search.places.on_one_slot`).
    """
    space = spec.to_space()
    found: list[tuple[ComparedLaunch, str]] = []
    signs = [-1.0 if o.direction == "maximize" else 1.0 for o in objectives]
    trials = Recomputed(store, spec, objectives).trials(store.stored_study(name).trials)
    for t in trials:
        if t.state != State.COMPLETE or not space.has_point(t.params) or is_outdated(t):
            continue
        if t.values is None or min(t.values) <= 0 or attrs_of(t).quality.throttled:
            continue
        within = attrs_of(t).log_variances or [None] * len(signs)
        launch = ComparedLaunch(
            space.decode(t.params),
            tuple(s * math.log(v) for s, v in zip(signs, t.values, strict=True)),
            tuple(math.nan if v is None else v for v in within),
        )
        found.append((launch, place_of(attrs_of(t).slot)))
    places = [place for _, place in found]
    if len(set(places)) < 2:
        yield from (launch for launch, _ in found)
        return
    costs = np.array([launch.costs for launch, _ in found])
    level, more = on_one_slot(costs, [key_of(launch.point) for launch, _ in found], places)
    for (launch, _), own, unsure in zip(found, level, more, strict=True):
        variances = (v + w for v, w in zip(launch.variances, unsure.tolist(), strict=True))
        yield ComparedLaunch(launch.point, tuple(own.tolist()), tuple(variances))
