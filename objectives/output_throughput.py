"""Output tokens per second by the definition of ``vllm bench serve``.

That time holds the first requests' beginning and the last ones' end, when fewer of the measured
requests run than there are places; ``throughput`` does not.
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
