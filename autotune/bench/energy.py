"""The energy of a measurement, of what was counted while it ran."""

from __future__ import annotations

from autotune.serving.nvml import Energy
from autotune.stats import Measurement
from objectives import WithEnergy


def with_energy(m: Measurement, energy: Energy) -> Measurement:
    """Return the measurement with the energy of its tokens' share of the time it was counted in."""
    if not m.throughput or not energy.seconds:
        return WithEnergy.added(m, energy.total)
    seconds = float(m.output_tokens.sum()) / m.throughput
    return WithEnergy.added(m, energy.total / energy.seconds * seconds)
