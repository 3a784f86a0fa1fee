"""Check that a server's GPUs have their memory back after its end.

A server's GPUs are those whose used memory grew while it ran. After its end, each must be within
:data:`SLACK_MIB` of the memory before. Memory that another program took in the meantime does not
count, as far as the driver tells which process holds it.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from autotune.serving.nvml import nvml, visible_gpus

SLACK_MIB = 256  # the driver's own use varies; the smallest server takes several times as much


@dataclass(frozen=True)
class GpuMemory:
    """Memory of one GPU at one moment.

    Attributes:
        used_mib: Memory of all processes and the driver, MiB.
        by_process: Memory of each process, MiB by pid, as the driver reports it; empty in
            containers where it reports none.
    """

    used_mib: int
    by_process: dict[int, int]


def gpu_memory() -> tuple[GpuMemory, ...]:
    """Return the memory of each NVIDIA GPU, in NVML's order; empty without GPUs or NVML."""
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
    pids: Set[int],
) -> dict[int, int]:
    """Return the memory that did not come back, MiB by the number of the GPU.

    Args:
        before: Memory before the launch.
        full: Memory at the end of the server's life, while it held its own.
        after: Memory now, when its processes are gone.
        pids: Pids of its processes. In a container the driver may report pids of another namespace,
            none of which is among these. Then a process that came while the server ran counts as
            one of it.
    """
    lost = {}
    for i, (b, f, a) in enumerate(zip(before, full, after, strict=False)):
        if f.used_mib < b.used_mib + SLACK_MIB:
            continue  # not a GPU of this server, or it was back before the question
        strangers = {pid for pid in f.by_process if pid not in pids}
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
