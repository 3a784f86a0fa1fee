"""Samples to numbers: pure functions over arrays, no I/O; imports nothing of the rest."""

from __future__ import annotations

from autotune.measure.compare import Estimate, LaunchVariance, Scatter, SingleLaunch, within_launch
from autotune.measure.intervals import Interval, percentile_interval, throughput_interval
from autotune.measure.measurement import LatencyFrom, Measurement
from autotune.measure.stopping import (
    STOPPING_CONFIDENCE,
    Bounded,
    Domination,
    look_sizes,
    precise,
)
from autotune.measure.warmup import drift, warm_from

__all__ = [
    "STOPPING_CONFIDENCE",
    "Bounded",
    "Domination",
    "Estimate",
    "Interval",
    "LatencyFrom",
    "LaunchVariance",
    "Measurement",
    "Scatter",
    "SingleLaunch",
    "drift",
    "look_sizes",
    "percentile_interval",
    "precise",
    "throughput_interval",
    "warm_from",
    "within_launch",
]
