"""Owns a server from birth to proof of death; nothing else in autotune touches processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune._lazy import importer

if TYPE_CHECKING:
    from autotune.serving.logs import LogFolder
    from autotune.serving.orphans import LivingLaunch, end_living, living_launches
    from autotune.serving.process_tree import Identity, StopError, boot_id, end_leftover
    from autotune.serving.server import Server, StopReport
    from autotune.serving.warm_start import TEMPLATE, WarmStart

__all__ = [
    "TEMPLATE",
    "Identity",
    "LivingLaunch",
    "LogFolder",
    "Server",
    "StopError",
    "StopReport",
    "WarmStart",
    "boot_id",
    "end_leftover",
    "end_living",
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
        "StopError": "process_tree",
        "boot_id": "process_tree",
        "end_leftover": "process_tree",
        "Server": "server",
        "StopReport": "server",
        "TEMPLATE": "warm_start",
        "WarmStart": "warm_start",
    },
)
