"""Objectives of users: in a file, or in a package that names them as entry points.

Their code runs only where a study is run. A database may come from somebody else, so commands that
show a study use what the study stored about them (:func:`remembered`).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import get_args

import numpy as np

from autotune.stats import Measurement
from objectives import Broken, Direction, Objective, WithEnergy, raised

GROUP = "autotune.objectives"
_TEXTS = ("name", "title", "unit", "formula", "source")


class BadObjective(ValueError):
    """A user's objective cannot be used; the text is one line with its file or its package."""


def from_file(path: Path, name: str) -> Objective:
    """Return the ``OBJECTIVE`` of a Python file, which has the name of the file.

    Raises:
        BadObjective: the file cannot be run, or has no usable ``OBJECTIVE``.
    """
    spec = importlib.util.spec_from_file_location(f"_objective_{name}", path)
    if spec is None or spec.loader is None:
        raise BadObjective(f"{path}: is no Python file; its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in it
    loader = spec.loader
    _run(lambda: loader.exec_module(module), str(path))
    if not hasattr(module, "OBJECTIVE"):
        raise BadObjective(f"{path}: has no OBJECTIVE; docs/objectives.md has an example")
    return _checked(module.OBJECTIVE, name, str(path))


def packaged() -> dict[str, EntryPoint]:
    """Return the entry points of the objectives of installed packages, by name."""
    return {e.name: e for e in entry_points(group=GROUP)}


def from_package(entry: EntryPoint) -> Objective:
    """Return the objective that an entry point names.

    Raises:
        BadObjective: it cannot be imported, or is not a usable objective.
    """
    origin = f"{entry.dist.name if entry.dist else 'a package'}: {entry.value}"
    found: list[object] = []
    _run(lambda: found.append(entry.load()), origin)
    return _checked(found[0], entry.name, origin)


def _run(load: Callable[[], object], origin: str) -> None:
    try:
        load()
    except OSError as e:
        raise BadObjective(f"{origin}: cannot be read: {e.strerror or e}") from e
    except (Exception, SystemExit) as e:
        raise BadObjective(f"{origin}: cannot be run: {raised(e, origin)}") from e


def _checked(found: object, name: str, origin: str) -> Objective:
    """Return an objective with its origin, checked as far as possible without a measurement.

    Raises:
        BadObjective: it is not an objective, or one of its attributes is wrong.
    """
    if not isinstance(found, Objective):
        raise BadObjective(
            f"{origin}: OBJECTIVE is a {type(found).__name__}; it must be an objectives.Objective"
        )
    for key in _TEXTS:
        text = getattr(found, key)
        if not isinstance(text, str) or not text.strip():
            raise BadObjective(f"{origin}: OBJECTIVE.{key} must be a text, not {text!r}")
    if found.name != name:
        raise BadObjective(f"{origin}: OBJECTIVE.name must be {name!r}, not {found.name!r}")
    if found.direction not in get_args(Direction):
        raise BadObjective(
            f"{origin}: OBJECTIVE.direction must be maximize or minimize, not {found.direction!r}"
        )
    for key in ("compute", "interval"):
        function = getattr(found, key)
        if not callable(function) and not (key == "interval" and function is None):
            raise BadObjective(f"{origin}: OBJECTIVE.{key} must be a function, not {function!r}")
    return replace(found, origin=origin)


def try_out(objective: Objective) -> None:
    """Compute a user's objective of a made-up measurement, before a server is launched for it.

    Raises:
        BadObjective: its code fails. A ValueError of the code is no failure, because the objective
            may need more than the made-up measurement has.
    """
    m = _made_up()
    if objective.needs_energy:
        m = WithEnergy.added(m, 1000.0)
    try:
        objective.value(m)
        objective.bounds(m)
    except Broken as e:
        raise BadObjective(str(e)) from e
    except ValueError:
        return


def _made_up() -> Measurement:
    """Return a measurement of forty requests of sixteen tokens, at a concurrency of two."""
    n, tokens = 40, 16
    place = np.arange(n, dtype=np.float64)
    start, seconds = 0.5 * place, 1.0 + 0.1 * np.sin(place)
    return Measurement(
        intended=start.copy(),
        start=start,
        ttft=np.full(n, 0.2),
        end=start + seconds,
        prompt_tokens=np.full(n, 100),
        output_tokens=np.full(n, tokens),
        chunks=tuple(np.linspace(0.2, s, tokens) for s in seconds),
        latency_from="send",
    )


def remembered(name: str, shown: str | None, direction: Direction, origin: str) -> Objective:
    """Return a user's objective as a stored study describes it: it can be shown, not computed.

    Args:
        name: Key of the objective in the study.
        shown: ``title (unit)``, as Optuna has it; None: it is unknown.
        direction: Better direction, by the study.
        origin: File or package that the objective came from.
    """
    title, bracket, unit = (shown or name).removesuffix(")").rpartition(" (")
    return Objective(
        name=name,
        title=title if bracket else shown or name,
        unit=unit if bracket else "",
        direction=direction,
        formula=f"see {origin}",
        source=origin,
        compute=_not_here,
        origin=origin,
    )


def _not_here(_m: Measurement) -> float:
    raise ValueError("a user's objective is computed only where its study is run")
