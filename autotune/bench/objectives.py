"""Objectives of a study that is about to be measured on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import objectives as objective_registry
from autotune.errors import UserError
from autotune.serving.nvml import why_no_energy
from autotune.study.files import LoadedStudy
from autotune.study.objective_spec import ObjectiveSpec
from objectives import Objective
from objectives import _own as own_objectives


def study_objectives(loaded: LoadedStudy) -> tuple[Objective, ...]:
    """Return the objectives of a study, with the directions and settings that it gives them.

    This runs the code of a user's objectives.

    Raises:
        UserError: an objective is unknown, lacks its setting, cannot be run, or cannot be measured
            on this machine.
    """
    out = []
    for i, o in enumerate(loaded.spec.objectives):
        where = f"{loaded.path}: objectives.{i}"
        if o.file is not None or o.name not in objective_registry.names():
            found = _own_objective(where, loaded.base, o)
        else:
            found = objective_registry.get(o.name)
        found = with_setting(where, found, o)
        if found.origin is not None:
            try:
                own_objectives.try_out(found)
            except own_objectives.BadObjective as e:
                raise UserError(f"{where}: {e}") from e
        if found.needs_energy and (why := why_no_energy()):
            raise UserError(f"{where}.name: {o.name} cannot be measured here: {why}")
        out.append(replace(found, direction=o.direction) if o.direction else found)
    return tuple(out)


def with_setting(where: str, found: Objective, o: ObjectiveSpec) -> Objective:
    """Return an objective with the setting that a study gives it.

    Args:
        where: File and key, for messages.
        found: The objective.
        o: Its section of the study.

    Raises:
        UserError: the setting is missing, or the objective has no such setting.
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


def _own_objective(where: str, base: Path, o: ObjectiveSpec) -> Objective:
    """Return a user's objective, from its file or its package."""
    builtin = objective_registry.names()
    try:
        if o.file is None:
            packaged = own_objectives.packaged()
            if o.name in packaged:
                return own_objectives.from_package(packaged[o.name])
            known = ", ".join([*builtin, *sorted(packaged.keys() - set(builtin))])
            raise UserError(f"{where}.name: {o.name} is unknown; known are {known}")
        if o.name in builtin:
            raise UserError(
                f"{where}.file: {o.name} is a built-in objective; give the file another name"
            )
        return own_objectives.from_file(base / o.file, o.name)
    except own_objectives.BadObjective as e:
        raise UserError(f"{where}: {e}") from e
