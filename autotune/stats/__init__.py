"""From samples to numbers: pure functions over arrays, without I/O; imports no other room."""

from __future__ import annotations

from autotune.stats.intervals import (
    Interval,
    percentile_interval,
    quantile,
    standard_error,
    throughput_interval,
)
from autotune.stats.launch_variance import Estimate, LaunchVariance, Scatter, SingleLaunch
from autotune.stats.measurement import LatencyFrom, Measurement
from autotune.stats.stopping import (
    STOPPING_CONFIDENCE,
    Bounded,
    Domination,
    Looks,
    averaged,
    bound_needs,
    expected_between,
    first_look,
    look_sizes,
    narrow_enough,
    precise,
    precise_needs,
    rivals_need,
)
from autotune.stats.warmup import drift, warm_from

# Version of what is computed here from the requests of a launch. Values and standard errors of two
# versions are not comparable. 1: autotune 0.1. 2: throughput by the time of each request,
# median-unbiased percentiles, a full load from the first measured request to the end of the last.
ESTIMATOR = 2

__all__ = [
    "ESTIMATOR",
    "STOPPING_CONFIDENCE",
    "Bounded",
    "Domination",
    "Estimate",
    "Interval",
    "LatencyFrom",
    "LaunchVariance",
    "Looks",
    "Measurement",
    "Scatter",
    "SingleLaunch",
    "averaged",
    "bound_needs",
    "drift",
    "expected_between",
    "first_look",
    "look_sizes",
    "narrow_enough",
    "percentile_interval",
    "precise",
    "precise_needs",
    "quantile",
    "rivals_need",
    "standard_error",
    "throughput_interval",
    "warm_from",
]
