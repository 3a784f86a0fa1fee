"""Owns a server from birth to proof of death; nothing else in autotune touches processes."""

from autotune.serving.leftovers import LivingLaunch, end_living, living_launches
from autotune.serving.logs import LogFolder
from autotune.serving.server import (
    Identity,
    Server,
    StopError,
    StopReport,
    boot_id,
    end_leftover,
)
from autotune.serving.template import TEMPLATE, WarmStart

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
