"""Median of the time to the first token, ms."""

from __future__ import annotations

from objectives._percentiles import TTFT, percentile

OBJECTIVE = percentile(50, TTFT)
