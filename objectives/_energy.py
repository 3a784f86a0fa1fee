"""A measurement with its energy, and how an objective reads it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from autotune.stats import Measurement


@dataclass(frozen=True, kw_only=True)
class WithEnergy(Measurement):
    """A measurement with the energy of the GPUs that its server used.

    Attributes:
        joules: Energy of all of these GPUs together, in joules, over the time that the measured
            requests' tokens take at the measured throughput.
    """

    joules: float

    @classmethod
    def added(cls, m: Measurement, joules: float) -> WithEnergy:
        """Return the measurement with its energy, in joules."""
        return cls(**{f.name: getattr(m, f.name) for f in fields(Measurement)}, joules=joules)


def joules(m: Measurement) -> float:
    """Return the energy of a measurement, in joules.

    Raises:
        ValueError: it is unknown.
    """
    if not isinstance(m, WithEnergy):
        raise ValueError("the energy of the measurement is not known")
    return m.joules
