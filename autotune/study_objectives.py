"""The objectives of a study that is about to be measured on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import objectives as objective_registry
from autotune.errors import UserError
from autotune.results.objectives import with_setting
from autotune.serving.nvml import why_no_energy
from autotune.study.files import LoadedStudy
from autotune.study.schema import ObjectiveSpec
from objectives import Objective
from objectives import _own as own_objectives


def study_objectives(loaded: LoadedStudy) -> tuple[Objective, ...]:
    """Return the study's objectives with its directions and settings, to be measured here.

    This runs the code of a user's objectives.

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


def _own_objective(where: str, base: Path, o: ObjectiveSpec) -> Objective:
    """Return a user's objective, from its file or its package."""
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
