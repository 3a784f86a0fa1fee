"""What can be optimised: one module each, with an ``OBJECTIVE``; a study names it by its module.

To add one, put a module into this folder whose ``OBJECTIVE`` has the module's name. It sees a
:class:`autotune.measure.Measurement` and nothing else.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from autotune.measure import Interval, Measurement

__all__ = ["Direction", "Objective", "get", "names"]

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Objective:
    """A number that a study makes large or small.

    Attributes:
        name: Its module, and its key in a study.
        title: For tables and axes, without the unit.
        unit: Of what ``compute`` gives.
        direction: The better way, unless a study says otherwise.
        formula: How it is computed, in one line.
        source: Whose definition it is.
        compute: Raises ValueError if the measurement cannot give it.
        interval: Its interval within one launch for a confidence, in ``unit``; None: no method is
            known.
    """

    name: str
    title: str
    unit: str
    direction: Direction
    formula: str
    source: str
    compute: Callable[[Measurement], float]
    interval: Callable[[Measurement, float], Interval] | None = None

    def bounds(self, measurement: Measurement, confidence: float = 0.95) -> Interval:
        """Its interval within one launch; without bounds where no method is known."""
        if self.interval is None:
            return Interval(None, None, confidence)
        return self.interval(measurement, confidence)


def names() -> tuple[str, ...]:
    """Names of all objectives, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


@cache
def get(name: str) -> Objective:
    """The objective of that name.

    Raises:
        KeyError: there is none.
    """
    if name not in names():
        raise KeyError(name)
    objective = importlib.import_module(f"{__name__}.{name}").OBJECTIVE
    if not isinstance(objective, Objective) or objective.name != name:
        raise TypeError(f"objectives/{name}.py: OBJECTIVE must be an Objective named {name!r}")
    return objective
