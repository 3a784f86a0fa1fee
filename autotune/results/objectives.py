"""The objectives of a stored study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import objectives as objective_registry
from autotune.errors import UserError
from autotune.storage.trials import StoredStudy
from autotune.study.files import LoadedStudy
from autotune.study.schema import ObjectiveSpec
from objectives import Direction, Objective
from objectives import _own as own_objectives


def stored_objectives(loaded: LoadedStudy, study: StoredStudy) -> tuple[Objective, ...]:
    """Return the objectives of a stored study, to be shown; no user's code runs.

    Raises:
        UserError: the database has another number of them than the study file in it.
    """
    if len(study.maximized) != len(loaded.spec.objectives):
        raise UserError(f"{loaded.path}: the database has other objectives than its study file")
    shown: Sequence[str | None] = study.metric_names or [None] * len(loaded.spec.objectives)
    out = []
    for i, (o, maximized) in enumerate(zip(loaded.spec.objectives, study.maximized, strict=True)):
        way: Direction = "maximize" if maximized else "minimize"
        if o.file is None and o.name in objective_registry.names():
            found = objective_registry.get(o.name)
            where = f"{loaded.path}: objectives.{i}"
            out.append(replace(with_setting(where, found, o), direction=way))
        else:
            origin = str(o.file) if o.file else f"the entry point {o.name}"
            out.append(own_objectives.remembered(o.name, shown[i], way, origin))
    return tuple(out)


def with_setting(where: str, found: Objective, o: ObjectiveSpec) -> Objective:
    """Return an objective with the setting that a study gives it.

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
