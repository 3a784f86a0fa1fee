"""Description of this machine, which is stored with the numbers."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

import psutil

from autotune.engine.gpus import Gpu
from autotune.serving.nvml import nvml, visible_gpus

_CGROUP = Path("/sys/fs/cgroup")


def gpus() -> list[dict[str, Any]]:
    """Return name, memory in MiB and driver of the NVIDIA GPUs that servers may use, by NVML."""
    with nvml() as library:
        if library is None:
            return []
        driver = library.nvmlSystemGetDriverVersion()
        return [
            {
                "name": library.nvmlDeviceGetName(h),
                "memory_mib": library.nvmlDeviceGetMemoryInfo(h).total >> 20,
                "driver": driver,
            }
            for h in visible_gpus(library)
        ]


def vllms_gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs of this machine as vLLM would see them, by NVML; empty: none."""
    with nvml() as library:
        if library is None:
            return ()
        return tuple(
            Gpu(
                library.nvmlDeviceGetName(h),
                library.nvmlDeviceGetMemoryInfo(h).total,
                tuple(library.nvmlDeviceGetCudaComputeCapability(h)),
            )
            for h in visible_gpus(library)
        )


def has_gpu() -> bool:
    """Return whether an NVIDIA driver is loaded; this needs no NVML, so no `gpu` extra either."""
    return Path("/proc/driver/nvidia/version").exists()


def describe_machine() -> dict[str, Any]:
    """Return processor, usable cores, memory in GiB, kernel, Python and GPUs."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "gpus": gpus(),
    }


def available_memory() -> int:
    """Return the bytes that new processes can have without swapping, within a container's limit.

    The inactive part of the page cache counts as free, although a control group uses it.
    """
    found = int(psutil.virtual_memory().available)
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),  # cgroup v2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit_file, used_file = _CGROUP / limit, _CGROUP / used
        with contextlib.suppress(OSError, ValueError, KeyError):  # missing, or "max"
            most = int(limit_file.read_text())
            lines = (limit_file.parent / "memory.stat").read_text().splitlines()
            stat = dict(line.split(maxsplit=1) for line in lines)
            found = min(found, most - int(used_file.read_text()) + int(stat[cache]))
    return max(0, found)


def memory_size() -> int:
    """Return the bytes of memory that this machine has, or a container's limit if it is less."""
    found = int(psutil.virtual_memory().total)
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2 and v1
        with contextlib.suppress(OSError, ValueError):  # missing, or "max"
            found = min(found, int((_CGROUP / limit).read_text()))
    return found


def machine_line(machine: dict[str, Any]) -> str:
    """Return the machine in one line for people."""
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    text = f"{machine['cpu']}, {cores}, {machine['memory_gib']:g} GiB"
    names = [str(g["name"]) for g in machine["gpus"]]
    return f"{', '.join(names)}; {text}" if names else text


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()
