"""Output tokens per second by the definition of ``vllm bench serve``.

Its time includes the beginning and the end of the measurement, when fewer measured requests run
than the concurrency allows; that of ``throughput`` does not.
"""

from __future__ import annotations

from objectives import Objective

OBJECTIVE = Objective(
    name="output_throughput",
    title="Output throughput (vllm bench)",
    unit="tok/s",
    direction="maximize",
    formula="all output tokens / (last end - first sending)",
    source="vllm/benchmarks/serve.py, output_throughput",
    compute=lambda m: m.output_throughput,
)
