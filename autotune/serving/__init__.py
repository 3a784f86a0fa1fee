"""Owns a server from birth to proof of death; nothing else in autotune touches processes."""

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
