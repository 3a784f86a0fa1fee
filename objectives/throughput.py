"""Output tokens per second while the load is full."""

from __future__ import annotations

from autotune.stats import throughput_interval
from objectives import Objective

OBJECTIVE = Objective(
    name="throughput",
    title="Throughput",
    unit="tok/s",
    direction="maximize",
    formula="closed loop: max_concurrency · Σ output tokens / Σ seconds of the requests, at full "
    "concurrency; open loop: output tokens from the first sending to the first end after the last "
    "sending, divided by that time",
    source="autotune: the rate at which a full loop delivers; `output_throughput` is the "
    "definition of vllm bench serve, which also counts the filling and emptying",
    compute=lambda m: m.throughput,
    interval=throughput_interval,
)
