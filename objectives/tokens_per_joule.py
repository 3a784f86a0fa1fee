"""Output tokens for each joule that the server's GPUs took.

The energy is that of whole GPUs, idle power included, without the CPUs, memory and fans of the
machine. It is read just before the first sending and just after the last end
(``autotune.serving.nvml``); a closed loop's places are busy with other requests then, too, so what
counts is the share of it that the measured requests' place-seconds have.
"""

from __future__ import annotations

from autotune.stats import Interval, Measurement, throughput_interval
from objectives import Objective, joules


def _compute(m: Measurement) -> float:
    if (energy := joules(m)) <= 0:
        raise ValueError("the GPUs' energy counters did not move")
    return float(m.output_tokens.sum()) / energy


def _interval(m: Measurement, confidence: float) -> Interval:
    """As sure as throughput is, as a share.

    Power is read once, so nothing is known of how it wanders; as a faster moment takes more power,
    tokens per joule wander less than tokens per second, and this is rather too wide.
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
