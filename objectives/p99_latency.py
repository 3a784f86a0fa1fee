"""99th percentile of end-to-end latency, ms."""

from __future__ import annotations

from objectives._percentiles import E2EL, percentile

OBJECTIVE = percentile(99, E2EL)
