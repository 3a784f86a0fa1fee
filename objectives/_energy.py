"""A measurement that also knows what energy it took, and how an objective asks for it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from autotune.stats import Measurement


@dataclass(frozen=True, kw_only=True)
class WithEnergy(Measurement):
    """A measurement with the energy of the GPUs that its server used.

    Attributes:
        joules: Of all of these GPUs together, in the time that the measured requests' tokens take
            at the measured throughput.
    """

    joules: float

    @classmethod
    def added(cls, m: Measurement, joules: float) -> WithEnergy:
        """The same measurement with its energy."""
        return cls(**{f.name: getattr(m, f.name) for f in fields(Measurement)}, joules=joules)


def joules(m: Measurement) -> float:
    """Energy of a measurement, in joules.

    Raises:
        ValueError: it is not known.
    """
    if not isinstance(m, WithEnergy):
        raise ValueError("the energy of the measurement is not known")
    return m.joules
