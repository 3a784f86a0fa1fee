"""Objectives of a stored study, to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import objectives as objective_registry
from autotune.bench.objectives import with_setting
from autotune.errors import UserError
from autotune.storage.trials import StoredStudy
from autotune.study.files import LoadedStudy
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
