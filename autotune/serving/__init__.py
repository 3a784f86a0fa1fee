"""Owns a server from birth to proof of death; nothing else in autotune touches processes."""

from autotune.serving.command import (
    LaunchPlan,
    VllmInfo,
    check_flags,
    free_port,
    plan_launch,
    probe,
    runs_model_code,
    serve_command,
    unasked,
)
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

__all__ = [
    "Identity",
    "LaunchPlan",
    "LivingLaunch",
    "LogFolder",
    "Server",
    "StopError",
    "StopReport",
    "VllmInfo",
    "boot_id",
    "check_flags",
    "end_leftover",
    "end_living",
    "free_port",
    "living_launches",
    "plan_launch",
    "probe",
    "runs_model_code",
    "serve_command",
    "unasked",
]
