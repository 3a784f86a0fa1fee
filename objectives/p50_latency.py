"""Median of end-to-end latency."""

from __future__ import annotations

import numpy as np

from autotune.measure import percentile_interval
from objectives import Objective

OBJECTIVE = Objective(
    name="p50_latency",
    title="Median latency",
    unit="ms",
    direction="minimize",
    formula="median of E2EL",
    source="vllm/benchmarks/serve.py, median_e2el_ms",
    compute=lambda m: float(np.median(m.e2el)) * 1000,
    interval=lambda m, confidence: percentile_interval(m.e2el, 50, confidence).scaled(1000),
)
