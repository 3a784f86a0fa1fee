"""95th percentile of the time to the first token."""

from __future__ import annotations

import numpy as np

from autotune.measure import percentile_interval
from objectives import Objective

OBJECTIVE = Objective(
    name="p95_ttft",
    title="p95 TTFT",
    unit="ms",
    direction="minimize",
    formula="95th percentile of TTFT, interpolated linearly between order statistics (NumPy)",
    source="vllm/benchmarks/serve.py, p95_ttft_ms",
    compute=lambda m: float(np.percentile(m.first_token, 95, method="linear")) * 1000,
    interval=lambda m, confidence: percentile_interval(m.first_token, 95, confidence).scaled(1000),
)
