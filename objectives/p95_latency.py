"""95th percentile of end-to-end latency."""

from __future__ import annotations

import numpy as np

from autotune.measure import percentile_interval
from objectives import Objective

OBJECTIVE = Objective(
    name="p95_latency",
    title="p95 latency",
    unit="ms",
    direction="minimize",
    formula="95th percentile of E2EL, interpolated linearly between order statistics (NumPy)",
    source="vllm/benchmarks/serve.py, p95_e2el_ms",
    compute=lambda m: float(np.percentile(m.e2el, 95, method="linear")) * 1000,
    interval=lambda m, confidence: percentile_interval(m.e2el, 95, confidence).scaled(1000),
)
