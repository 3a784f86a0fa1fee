"""Median of the time per output token after the first, ms."""

from __future__ import annotations

from objectives._percentiles import TPOT, percentile

OBJECTIVE = percentile(50, TPOT)
