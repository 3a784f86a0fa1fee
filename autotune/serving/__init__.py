"""Owns a server from birth to proof of death; nothing else in autotune touches processes."""

from autotune.serving.command import (
    LaunchPlan,
    Production,
    VllmInfo,
    check_flags,
    free_port,
    plan_launch,
    probe,
    production,
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
from autotune.serving.template import TEMPLATE, WarmStart

__all__ = [
    "TEMPLATE",
    "Identity",
    "LaunchPlan",
    "LivingLaunch",
    "LogFolder",
    "Production",
    "Server",
    "StopError",
    "StopReport",
    "VllmInfo",
    "WarmStart",
    "boot_id",
    "check_flags",
    "end_leftover",
    "end_living",
    "free_port",
    "living_launches",
    "plan_launch",
    "probe",
    "production",
    "runs_model_code",
    "serve_command",
    "unasked",
]
