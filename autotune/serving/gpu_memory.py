"""Did a GPU's memory come back?

A server's GPUs are those whose used memory grew while it ran. After its end each must be back at
what it was before, give or take ``SLACK_MIB``; memory that another program took meanwhile is its
own, as far as the driver tells who holds what.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from autotune.serving.nvml import nvml, visible_gpus

SLACK_MIB = 256  # a driver's own bookkeeping moves; the smallest server takes several times that


@dataclass(frozen=True)
class GpuMemory:
    """One GPU at one moment.

    Attributes:
        used_mib: Used memory, of all processes and the driver.
        by_process: What the driver says that each process holds, MiB by pid; empty in containers
            whose driver tells nothing.
    """

    used_mib: int
    by_process: dict[int, int]


def gpu_memory() -> tuple[GpuMemory, ...]:
    """Each NVIDIA GPU as NVML sees it now, in its order; empty without any, or without NVML."""
    with nvml() as library:
        if library is None:
            return ()

        def holders(gpu: Any) -> dict[int, int]:
            try:
                found = library.nvmlDeviceGetComputeRunningProcesses(gpu)
            except library.NVMLError:
                return {}
            return {p.pid: (p.usedGpuMemory or 0) >> 20 for p in found}

        try:
            return tuple(
                GpuMemory(library.nvmlDeviceGetMemoryInfo(g).used >> 20, holders(g))
                for g in visible_gpus(library)
            )
        except library.NVMLError:  # a GPU that fell off the bus, or is split
            return ()


def held(
    before: Sequence[GpuMemory],
    full: Sequence[GpuMemory],
    after: Sequence[GpuMemory],
    ours: Set[int],
) -> dict[int, int]:
    """Memory that did not come back: MiB by the GPU's number.

    Args:
        before: Before the launch.
        full: At the end of the server's life, while it still held what it had.
        after: Now, when its processes are gone.
        ours: Their pids. A driver that names pids of another namespace, as in a container, names
            none of these; then who came while the server ran is taken for a part of it.
    """
    lost = {}
    for i, (b, f, a) in enumerate(zip(before, full, after, strict=False)):
        if f.used_mib < b.used_mib + SLACK_MIB:
            continue  # not a GPU of this server, or it was back before we asked
        strangers = {pid for pid in f.by_process if pid not in ours}
        if len(strangers) == len(f.by_process):
            strangers &= b.by_process.keys()
        others = sum(
            max(0, mib - b.by_process.get(pid, 0))
            for pid, mib in a.by_process.items()
            if pid in strangers or pid not in f.by_process
        )
        excess = a.used_mib - b.used_mib - others
        if excess > SLACK_MIB:
            lost[i] = excess
    return lost
