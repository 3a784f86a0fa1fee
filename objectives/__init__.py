"""What can be optimised: a study names an objective by its module, which has an ``OBJECTIVE``.

Percentiles of latencies are a table (:mod:`objectives._percentiles`), named ``p95_latency`` and so
on. To add an objective, put a module into this folder whose ``OBJECTIVE`` has the module's name; a
study's own one may also be in a file or in a package (``docs/objectives.md``). It sees a
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
    """The code of a user's objective failed; one line that names its file and line."""


@dataclass(frozen=True)
class Objective:
    """A number that a study makes large or small.

    Attributes:
        name: Its key in a study, and its module or its key in the table.
        title: For tables and axes, without the unit.
        unit: Of what ``compute`` gives.
        direction: The better way, unless a study says otherwise.
        formula: How it is computed, in one line.
        source: Whose definition it is.
        compute: Of a measurement, and of the ``setting`` by its name if there is one. Raises
            ValueError if the measurement cannot give it.
        interval: Its interval within one launch, in ``unit``: of a measurement and a confidence,
            and of the ``setting``; None: by :func:`objectives._batches.batch_interval`.
        setting: Key that a study has to give beside the name, such as ``slo``; None: it needs none,
            or has it.
        words: A setting's value in words.
        needs_energy: The measurement must be a :class:`WithEnergy`: what takes a GPU that tells it.
        origin: The file or the package of a user's own objective; None: it is one of ours.
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
        """The objective with its setting, which its title tells then."""
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
        """What ``compute`` gives.

        Raises:
            ValueError: the measurement cannot give it, or (:class:`Broken`) the code of a user's
                objective fails.
        """
        value = self._run(self.compute, measurement)
        if not isinstance(value, Real):
            raise Broken(f"{self.origin or self.name}: compute gave {value!r}, which is no number")
        if not math.isfinite(value):
            raise ValueError(f"{self.origin or self.name}: compute gave {value}")
        return float(value)

    def bounds(self, measurement: Measurement, confidence: float = 0.95) -> Interval:
        """Its interval within one launch; without bounds where there are too few requests.

        Raises:
            ValueError: as of :meth:`value`.
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
        """A bound of a user's interval; one that is infinite or NaN bounds nothing."""
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
    """What a user's code raised, in one line, with the line of the file where it is in one."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    said = str(error).splitlines()[0] if str(error) else ""
    words = f"{type(error).__name__}{': ' if said else ''}{said}"
    return f"{words} (line {line})" if line else words


def _table() -> dict[str, Objective]:
    from objectives._percentiles import OBJECTIVES  # which needs this module

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
