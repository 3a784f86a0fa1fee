"""Puts requests on a server: the same requests, at the same times, for every trial of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune._lazy import importer

if TYPE_CHECKING:
    from autotune.bench.client import run_phase
    from autotune.bench.sample import Phase, Sample
    from autotune.bench.server_metrics import Counters, ServerStats, difference, scrape
    from autotune.bench.workload import Request, Workload, build_workload

__all__ = [
    "Counters",
    "Phase",
    "Request",
    "Sample",
    "ServerStats",
    "Workload",
    "build_workload",
    "difference",
    "run_phase",
    "scrape",
]

__getattr__ = importer(
    __name__,
    {
        "Phase": "sample",
        "Sample": "sample",
        "run_phase": "client",
        "Counters": "server_metrics",
        "ServerStats": "server_metrics",
        "difference": "server_metrics",
        "scrape": "server_metrics",
        "Request": "workload",
        "Workload": "workload",
        "build_workload": "workload",
    },
)
