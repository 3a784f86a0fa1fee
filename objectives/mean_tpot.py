"""Mean time per output token after the first."""

from __future__ import annotations

from autotune.stats import Measurement
from objectives import Objective


def _compute(m: Measurement) -> float:
    if not len(tpot := m.tpot):
        raise ValueError("mean_tpot needs requests of at least two output tokens")
    return float(tpot.mean()) * 1000


OBJECTIVE = Objective(
    name="mean_tpot",
    title="Mean TPOT",
    unit="ms",
    direction="minimize",
    formula="mean over requests of (E2EL - TTFT) / (output tokens - 1)",
    source="vllm/benchmarks/serve.py, mean_tpot_ms",
    compute=_compute,
)
