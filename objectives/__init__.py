"""Objectives: the numbers that a study can optimize.

A study names an objective by its module, which has an ``OBJECTIVE``. Percentiles of latencies, such
as ``p95_latency``, are entries of one table (:mod:`objectives._percentiles`). To add an objective,
put a module into this folder whose ``OBJECTIVE`` has the module's name. An objective of a single
study may also be in a file or in a package (``docs/objectives.md``). An objective sees a
:class:`autotune.stats.Measurement` and nothing else.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from numbers import Real
from typing import Any, Literal

from autotune.stats import Interval, Measurement
from objectives._batches import batch_interval
from objectives._energy import WithEnergy, joules

__all__ = ["Broken", "Direction", "Objective", "WithEnergy", "get", "joules", "names", "raised"]

Direction = Literal["maximize", "minimize"]


class Broken(ValueError):
    """The code of a user's objective failed; the text is one line with its file and line."""


@dataclass(frozen=True)
class Objective:
    """A number that a study makes large or small.

    Attributes:
        name: Key in a study; also the name of its module, or its key in the table.
        title: Title for tables and axes, without the unit.
        unit: Unit of the value that ``compute`` returns.
        direction: Better direction, unless a study sets another one.
        formula: Formula, in one line.
        source: Origin of the definition.
        compute: Returns the value of a measurement. It also takes the ``setting`` by its name, if
            there is one. It raises a ValueError if the measurement does not have such a value.
        interval: Returns the interval within one launch, in ``unit``. It takes a measurement, a
            confidence, and the ``setting``. None: :func:`objectives._batches.batch_interval`.
        setting: Key that a study has to give together with the name, such as ``slo``; None: the
            objective needs none, or already has it.
        words: Returns a setting's value in words.
        needs_energy: Whether the measurement must be a :class:`WithEnergy`, for which a GPU must
            report its energy or power.
        origin: File or package of a user's own objective; None: a built-in one.
    """

    name: str
    title: str
    unit: str
    direction: Direction
    formula: str
    source: str
    compute: Callable[..., float]
    interval: Callable[..., Interval] | None = None
    setting: str | None = None
    words: Callable[[Any], str] = str
    needs_energy: bool = False
    origin: str | None = None

    def given(self, value: object) -> Objective:
        """Return the objective with its setting, whose value is then part of the title.

        Raises:
            TypeError: the objective has no setting.
        """
        if self.setting is None:
            raise TypeError(f"{self.name} has no setting")
        setting = {self.setting: value}
        return replace(
            self,
            title=f"{self.title} ({self.words(value)})",
            compute=partial(self.compute, **setting),
            interval=self.interval and partial(self.interval, **setting),
            setting=None,
        )

    def value(self, measurement: Measurement) -> float:
        """Return the value of a measurement, in ``unit``.

        Raises:
            ValueError: the measurement has no such value, or (:class:`Broken`) the code of a user's
                objective fails.
        """
        value = self._run(self.compute, measurement)
        if not isinstance(value, Real):
            raise Broken(f"{self.origin or self.name}: compute gave {value!r}, which is no number")
        if not math.isfinite(value):
            raise ValueError(f"{self.origin or self.name}: compute gave {value}")
        return float(value)

    def bounds(self, measurement: Measurement, confidence: float = 0.95) -> Interval:
        """Return the interval within one launch; it has no bounds for too few requests.

        Raises:
            ValueError: as in :meth:`value`.
        """
        if self.interval is None:
            return batch_interval(measurement, self.compute, confidence)
        found = self._run(self.interval, measurement, confidence)
        if not isinstance(found, Interval):
            raise Broken(f"{self.origin}: interval gave {found!r}, not an Interval")
        if self.origin is None:
            return found
        low, high, error = (self._bound(x) for x in (found.low, found.high, found.error))
        return replace(found, low=low, high=high, error=error)

    def _bound(self, x: object) -> float | None:
        """Return a bound of a user's interval; None for one that is infinite or NaN."""
        if x is None:
            return None
        if not isinstance(x, Real):
            raise Broken(f"{self.origin}: interval gave the bound {x!r}, which is no number")
        return float(x) if math.isfinite(x) else None

    def _run(self, function: Callable[..., Any], *args: object) -> Any:
        try:
            return function(*args)
        except Exception as e:
            if self.origin is None:
                raise
            if isinstance(e, ValueError):
                raise ValueError(f"{self.origin}: {e}") from e
            raise Broken(f"{self.origin}: {raised(e, self.origin)}") from e


def raised(error: BaseException, path: str) -> str:
    """Return what a user's code raised, in one line, with the line number if it is in ``path``."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    said = str(error).splitlines()[0] if str(error) else ""
    words = f"{type(error).__name__}{': ' if said else ''}{said}"
    return f"{words} (line {line})" if line else words


def _table() -> dict[str, Objective]:
    from objectives._percentiles import OBJECTIVES  # imports this module

    return OBJECTIVES


def names() -> tuple[str, ...]:
    """Return the names of all built-in objectives, sorted."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted([*_table(), *(x for x in modules if not x.startswith("_"))]))


@cache
def get(name: str) -> Objective:
    """Return the built-in objective of that name.

    Raises:
        KeyError: there is none.
    """
    if name not in names():
        raise KeyError(name)
    if name in _table():
        return _table()[name]
    objective = importlib.import_module(f"{__name__}.{name}").OBJECTIVE
    if not isinstance(objective, Objective) or objective.name != name:
        raise TypeError(f"objectives/{name}.py: OBJECTIVE must be an Objective named {name!r}")
    return objective
