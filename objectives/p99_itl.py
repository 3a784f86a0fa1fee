"""99th percentile of inter-token latency: the gaps between the chunks of a request, ms."""

from __future__ import annotations

from objectives._percentiles import ITL, percentile

OBJECTIVE = percentile(99, ITL)
