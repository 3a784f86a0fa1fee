"""NVIDIA's management library as a host with four GPUs has it, for processes of its own."""

from __future__ import annotations

from types import SimpleNamespace


class NVMLError(Exception):
    """An error of the library."""


def nvmlInit() -> None: ...


def nvmlShutdown() -> None: ...


def nvmlSystemGetDriverVersion() -> str:
    return "580.1"


def nvmlDeviceGetCount() -> int:
    return 4


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetIndex(gpu: int) -> int:
    return gpu


def nvmlDeviceGetUUID(gpu: int) -> str:
    return f"GPU-{gpu}{gpu}"


def nvmlDeviceGetName(gpu: int) -> str:
    return "NVIDIA H200"


def nvmlDeviceGetMemoryInfo(gpu: int) -> SimpleNamespace:
    return SimpleNamespace(total=141 << 30, used=0)
