"""Samples to numbers: pure functions over arrays, no I/O; imports nothing of the rest."""

from __future__ import annotations

from autotune.measure.compare import Estimate, Scatter
from autotune.measure.intervals import Interval, percentile_interval, throughput_interval
from autotune.measure.measurement import LatencyFrom, Measurement, latency_origin

__all__ = [
    "Estimate",
    "Interval",
    "LatencyFrom",
    "Measurement",
    "Scatter",
    "latency_origin",
    "percentile_interval",
    "throughput_interval",
]
