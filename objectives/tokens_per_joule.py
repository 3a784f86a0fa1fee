"""Output tokens for each joule that the server's GPUs used.

The energy is that of whole GPUs, including idle power, without the CPUs, memory and fans of the
machine. It is read just before the first sending and just after the last end
(:mod:`autotune.serving.nvml`). A closed loop also serves other requests in that time, so only the
share of the energy counts that the measured requests have of the time.
"""

from __future__ import annotations

from autotune.stats import Interval, Measurement, throughput_interval
from objectives import Objective, joules


def _compute(m: Measurement) -> float:
    if (energy := joules(m)) <= 0:
        raise ValueError("the GPUs' energy counters did not move")
    return float(m.output_tokens.sum()) / energy


def _interval(m: Measurement, confidence: float) -> Interval:
    """Return an interval that is as wide as throughput's, relative to the value.

    Power is read once, so its variation is unknown. A faster moment needs more power, so tokens per
    joule vary less than tokens per second, and this interval is rather too wide.
    """
    return throughput_interval(m, confidence).scaled(_compute(m) / m.throughput)


OBJECTIVE = Objective(
    name="tokens_per_joule",
    title="Tokens per joule",
    unit="tok/J",
    direction="maximize",
    formula="throughput / mean power of the server's GPUs from the first sending to the last end",
    source="autotune; NVML, nvmlDeviceGetTotalEnergyConsumption, or the integral of "
    "nvmlDeviceGetPowerUsage",
    compute=_compute,
    interval=_interval,
    needs_energy=True,
)
