"""Processes on this host: a server from its start to the proof of its end, and what it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune._lazy import importer

if TYPE_CHECKING:
    from autotune.serving.logs import LogFolder
    from autotune.serving.orphans import LivingLaunch, end_living, living_launches
    from autotune.serving.process_tree import Identity, boot_id, end_orphan
    from autotune.serving.server import Server, StopReport
    from autotune.serving.warm_start import FORK_SERVER, WarmStart

__all__ = [
    "FORK_SERVER",
    "Identity",
    "LivingLaunch",
    "LogFolder",
    "Server",
    "StopReport",
    "WarmStart",
    "boot_id",
    "end_living",
    "end_orphan",
    "living_launches",
]

__getattr__ = importer(
    __name__,
    {
        "LogFolder": "logs",
        "LivingLaunch": "orphans",
        "end_living": "orphans",
        "living_launches": "orphans",
        "Identity": "process_tree",
        "boot_id": "process_tree",
        "end_orphan": "process_tree",
        "Server": "server",
        "StopReport": "server",
        "FORK_SERVER": "warm_start",
        "WarmStart": "warm_start",
    },
)
