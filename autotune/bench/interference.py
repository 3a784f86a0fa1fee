"""Was the machine ours while a trial was measured?

Two looks, both cheap, neither beside a running measurement:

- At rest, before a launch, a fixed computation is timed: the best of five rounds, about 0.3 s. The
  best, because disturbances only add time (J. Chen, J. Revels, "Robust benchmarking in noisy
  environments", 2016); wall time, because lost time is what is asked for. On shared hosts a
  neighbour on the other hyperthread makes a core 1.5 × slower for a second or a few, so a slow
  result is looked at again before it is believed: what stays is heat, clocks, a machine that is
  not ours alone.
- Around the measured requests, CPU time is counted: ``foreign = busy - ours``, with ``busy`` of all
  cores that this process may use (``/proc/stat``) and ``ours`` the CPU time of the server's tree
  and of this process. Steal, which the hypervisor gave to others, is counted apart.

Counters are read at both ends, since a thread that samples would itself disturb. GPUs are asked
through NVML only: a CUDA context of ours would take memory that the server wants.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import psutil

from autotune.serving.nvml import nvml, visible_gpus

# Of the usable cores, on average over the measurement. On a shared two-core VM ordinary trials saw
# 2 % of foreign load and up to 10 % of steal, and one process that eats a core is 50 %. Launches
# differ by 10 % and more anyway; a load that costs less hides among them.
FOREIGN_SHARE = 0.1
STEAL_SHARE = 0.2
# Times the study's median. Two series of 40 single looks on an idle 16-core cloud VM went up to
# 1.17 and 1.33; with a busy process on every core it is about 2.
SLOWER = 1.25
# Of the measurement, in which heat held a GPU's clock down.
THERMAL_SHARE = 0.01
# Per cent of a GPU; a desktop needs a few.
GPU_SHARE = 10
# A GPU whose used memory grew by this much (MiB) since the rest is one that our server uses.
GPU_OURS_MIB = 256

_ROUNDS = 5
_LOOKS = 5
_PAUSE_S = 1.0
# nvmlClocksEventReasons of nvml.h that mean trouble; a power cap is a busy GPU's ordinary state
_SLOWED = {
    0x08: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one moment; None is what its driver does not tell.

    Attributes:
        sm_mhz: Clock of the multiprocessors.
        temperature_c: Of the chip.
        utilisation: Per cent of the last moments (up to 1 s) in which a kernel ran.
        foreign: Per cent used by other processes than the server's, since the measurement began;
            None also at its beginning, and where the driver sees other pids than we do.
        memory_mib: Used memory, of all processes.
        slowed: Why its clock is held down, in words; empty if it is not.
        thermal_s: Seconds so far in which heat held its clock down.
    """

    sm_mhz: int | None
    temperature_c: int | None
    utilisation: int | None
    foreign: int | None
    memory_mib: int | None
    slowed: tuple[str, ...]
    thermal_s: float | None


@dataclass(frozen=True)
class Rest:
    """The machine while no server of ours was alive.

    Attributes:
        kernel_s: Seconds of the fixed computation.
        mhz: Clock of the fastest core right after it; None where the kernel does not tell.
        gpus: Each GPU, in NVML's order; empty without any.
    """

    kernel_s: float
    mhz: float | None
    gpus: tuple[GpuReading, ...]


@dataclass(frozen=True)
class MachineState:
    """The machine while one launch was measured; ``dataclasses.asdict`` of it is JSON.

    Attributes:
        rest: Before the launch.
        seconds: Length of the measurement.
        cores: How many this process may use. The next four are in cores, on average, of these.
        busy: Used by anybody.
        foreign: Used by others than the server and this process; None: its processes are unknown.
        steal: Wanted, but given to other machines by the hypervisor.
        iowait: Idle while a disk was waited for.
        gpus_before: Each GPU when the measurement began.
        gpus_after: When it ended.
    """

    rest: Rest
    seconds: float
    cores: int
    busy: float
    foreign: float | None
    steal: float
    iowait: float
    gpus_before: tuple[GpuReading, ...]
    gpus_after: tuple[GpuReading, ...]


def take_rest(
    earlier: Sequence[float] = (),
    *,
    look: Callable[[], float] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Rest:
    """Look at the machine while no server of ours is alive.

    Takes half a second, and up to six where the fixed computation is slow.

    Args:
        earlier: ``kernel_s`` of the study's earlier launches on this machine.
        look: Gives the seconds of the fixed computation; :func:`kernel_seconds` by default.
        pause: Waits so many seconds between two looks.
    """
    look = look or kernel_seconds
    kernel_s = look()
    for _ in range(_LOOKS - 1):
        if not _slower(kernel_s, earlier):
            break
        pause(_PAUSE_S)
        kernel_s = min(kernel_s, look())
    clocks = psutil.cpu_freq(percpu=True)
    mhz = max((c.current for c in clocks), default=None) if clocks else None
    return Rest(kernel_s, mhz, read_gpus())


def kernel_seconds() -> float:
    """Seconds of the fixed computation on one core: the best of five rounds.

    A round is 16 Fourier transforms of 2^15 points, and 64 MB copied twice: neither NumPy's FFT
    nor its copying starts threads.
    """
    signal = np.exp(1j * np.arange(1 << 15))
    source = np.ones(8 << 20)
    target = np.zeros_like(source)
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(16):
            np.fft.fft(signal)
        for _ in range(2):
            np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _slower(kernel_s: float, earlier: Sequence[float]) -> bool:
    return bool(earlier) and kernel_s > SLOWER * statistics.median(earlier)


class LoadWatch:
    """Counts who used the machine in a ``with`` block; afterwards ``state`` says it.

    Args:
        rest: Taken before the launch.
        server: Gives the server's processes, asked at both ends; None if they cannot be told from
            others, as in a container, and foreign load stays unknown.
    """

    state: MachineState

    def __init__(self, rest: Rest, server: Callable[[], Iterable[psutil.Process]] | None) -> None:
        self._rest = rest
        self._server = server

    def __enter__(self) -> LoadWatch:
        self._gpus = read_gpus()
        self._unix = time.time()
        self._before = _count(self._processes())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ours = self._processes()
        before, after = self._before, _count(ours)
        seconds = after.at - before.at
        busy = (after.busy - before.busy) / seconds
        foreign = None
        if before.ours is not None and after.ours is not None:
            # the kernel counts the machine's time in ticks, a process's exactly: may be below 0
            foreign = max(0.0, busy - (after.ours - before.ours) / seconds)
        self.state = MachineState(
            rest=self._rest,
            seconds=seconds,
            cores=len(os.sched_getaffinity(0)),
            busy=busy,
            foreign=foreign,
            steal=(after.steal - before.steal) / seconds,
            iowait=(after.iowait - before.iowait) / seconds,
            gpus_before=self._gpus,
            gpus_after=read_gpus({p.pid for p in ours or ()}, self._unix),
        )

    def _processes(self) -> set[psutil.Process] | None:
        return None if self._server is None else {psutil.Process(), *self._server()}


@dataclass(frozen=True)
class _Count:
    """CPU seconds so far at clock reading ``at``."""

    at: float
    busy: float
    steal: float
    iowait: float
    ours: float | None


def _count(ours: Set[psutil.Process] | None) -> _Count:
    usable = os.sched_getaffinity(0)
    at = time.perf_counter()
    cores = [t for i, t in enumerate(psutil.cpu_times(percpu=True)) if i in usable]
    return _Count(
        at=at,
        busy=sum(t.user + t.nice + t.system + t.irq + t.softirq for t in cores),
        steal=sum(t.steal for t in cores),
        iowait=sum(t.iowait for t in cores),
        ours=None if ours is None else sum(map(_cpu_seconds, ours)),
    )


def _cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process and of its children that have ended; 0 if it is gone itself.

    Then its parent, which is in the tree too, has it among its ended children.
    """
    try:
        t = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(t.user + t.system + t.children_user + t.children_system)


def read_gpus(ours: Set[int] = frozenset(), since: float = 0.0) -> tuple[GpuReading, ...]:
    """Each NVIDIA GPU as NVML sees it now, in its order; empty without any, or without NVML.

    Args:
        ours: Pids of the server; without them ``foreign`` is None.
        since: Unix time from which on ``foreign`` counts.
    """
    with nvml() as library:
        if library is None:
            return ()

        def ask(name: str, *args: Any) -> Any:
            try:
                return getattr(library, name)(*args)
            except library.NVMLError:  # not every GPU tells everything
                return None

        def foreign(gpu: Any) -> int | None:
            used = ask("nvmlDeviceGetProcessUtilization", gpu, int(since * 1e6)) if ours else None
            # in a container the driver may name pids of the host; ours among them says it does not
            if not used or ours.isdisjoint(u.pid for u in used):
                return None
            return sum(int(u.smUtil) for u in used if u.pid not in ours)

        def read(gpu: Any) -> GpuReading:
            used = ask("nvmlDeviceGetUtilizationRates", gpu)
            memory = ask("nvmlDeviceGetMemoryInfo", gpu)
            reasons = ask("nvmlDeviceGetCurrentClocksEventReasons", gpu) or 0
            thermal = ask("nvmlDeviceGetViolationStatus", gpu, library.NVML_PERF_POLICY_THERMAL)
            return GpuReading(
                sm_mhz=ask("nvmlDeviceGetClockInfo", gpu, library.NVML_CLOCK_SM),
                temperature_c=ask("nvmlDeviceGetTemperature", gpu, library.NVML_TEMPERATURE_GPU),
                utilisation=None if used is None else used.gpu,
                foreign=foreign(gpu),
                memory_mib=None if memory is None else memory.used >> 20,
                slowed=tuple(words for bit, words in _SLOWED.items() if reasons & bit),
                thermal_s=None if thermal is None else thermal.violationTime / 1e9,
            )

        return tuple(map(read, visible_gpus(library)))


def disturbed(state: MachineState, earlier: Sequence[float]) -> str | None:
    """Why the launch ran on a disturbed machine, in one line; None if it did not.

    Args:
        state: Of the launch.
        earlier: ``rest.kernel_s`` of the study's earlier launches on this machine; may be empty.
    """
    cores, reasons = state.cores, []
    if state.foreign is not None and state.foreign > FOREIGN_SHARE * cores:
        reasons.append(f"other processes used {state.foreign:.1f} of {cores} cores")
    if state.steal > STEAL_SHARE * cores:
        reasons.append(f"the hypervisor withheld {state.steal / cores:.0%} of the CPU time")
    if _slower(state.rest.kernel_s, earlier):
        times = state.rest.kernel_s / statistics.median(earlier)
        reasons.append(f"before it a fixed computation took {times:.2f} × as long as usual")
    gpus = zip(state.rest.gpus, state.gpus_before, state.gpus_after, strict=False)
    for index, (rest, before, after) in enumerate(gpus):
        reasons += [f"GPU {index} {what}" for what in _gpu(rest, before, after, state.seconds)]
    return "; ".join(reasons) or None


def _gpu(rest: GpuReading, before: GpuReading, after: GpuReading, seconds: float) -> list[str]:
    """What disturbed a GPU; nothing for one that our server does not use."""
    if (
        rest.memory_mib is not None
        and after.memory_mib is not None
        and after.memory_mib < rest.memory_mib + GPU_OURS_MIB
    ):
        return []
    reasons = []
    if (rest.utilisation or 0) > GPU_SHARE:
        reasons.append(f"was {rest.utilisation} % busy before the server was started")
    if (after.foreign or 0) > GPU_SHARE:
        reasons.append(f"was used to {after.foreign} % by other processes")
    if slowed := sorted({*before.slowed, *after.slowed}):
        reasons.append(f"was slowed: {', '.join(slowed)}")
    if before.thermal_s is not None and after.thermal_s is not None:
        share = (after.thermal_s - before.thermal_s) / seconds
        if share > THERMAL_SHARE:
            reasons.append(f"was slowed by heat for {share:.0%} of the time")
    return reasons
