"""The energy of a measurement."""

from __future__ import annotations

from autotune.serving.nvml import Energy
from autotune.stats import Measurement
from objectives import WithEnergy


def with_energy(m: Measurement, energy: Energy) -> Measurement:
    """Return the measurement with its energy, in joules.

    Its part of the counted energy is the time that its tokens take at the measured throughput, as a
    share of the seconds over which the energy was counted.
    """
    if not m.throughput or not energy.seconds:
        return WithEnergy.added(m, energy.total)
    seconds = float(m.output_tokens.sum()) / m.throughput
    return WithEnergy.added(m, energy.total / energy.seconds * seconds)
