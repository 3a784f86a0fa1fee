"""Output tokens per second while the load is full."""

from __future__ import annotations

from autotune.measure import throughput_interval
from objectives import Objective

OBJECTIVE = Objective(
    name="throughput",
    title="Throughput",
    unit="tok/s",
    direction="maximize",
    formula="output tokens that came from the first sending to the first end after the last "
    "sending, divided by that time",
    source="autotune: a closed loop is full exactly in that window; `output_throughput` is the "
    "definition of vllm bench serve, which also counts the emptying at the end",
    compute=lambda m: m.throughput,
    interval=throughput_interval,
)
