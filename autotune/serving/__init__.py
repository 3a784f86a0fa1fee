"""Owns a server from birth to proof of death; nothing else in autotune touches processes."""

from autotune.serving.command import (
    LaunchPlan,
    VllmInfo,
    check_flags,
    free_port,
    plan_launch,
    probe,
    serve_command,
)
from autotune.serving.server import (
    Identity,
    Server,
    StopError,
    StopReport,
    boot_id,
    end_leftover,
)

__all__ = [
    "Identity",
    "LaunchPlan",
    "Server",
    "StopError",
    "StopReport",
    "VllmInfo",
    "boot_id",
    "check_flags",
    "end_leftover",
    "free_port",
    "plan_launch",
    "probe",
    "serve_command",
]
