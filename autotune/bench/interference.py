"""Interference check: whether other work used the machine while a trial was measured.

Both parts of the check are cheap, and neither runs during a measurement:

- **Idle baseline.** Before a launch a fixed computation is timed: the best of five rounds, about
  0.3 s. It is the best because disturbances only add time (J. Chen, J. Revels, "Robust benchmarking
  in noisy environments", 2016). It is wall time because lost time is what is asked for. On shared
  hosts a neighbor on the other hyperthread makes a core 1.5 × slower for a second or a few.
  Therefore a slow result is timed again before it is believed. What stays is heat, low clocks, or a
  machine that others use, too.
- **Load.** CPU time is counted around the measured requests: ``foreign = busy - own``. ``busy`` is
  that of all cores that this process may use (``/proc/stat``); ``own`` is the CPU time of the
  server's process tree and of this process. Steal, which the hypervisor gave to others, is counted
  separately.

Counters are read at both ends only, because a sampling thread would itself disturb. GPUs are read
through NVML only, because a CUDA context would take memory that the server wants.
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

# Largest shares of the usable cores, on average over the measurement. On a shared two-core VM
# ordinary trials saw 2 % of foreign load and up to 10 % of steal; one process that uses a whole
# core is 50 %. Launches differ by 10 % and more anyway, which hides a load that costs less.
FOREIGN_SHARE = 0.1
STEAL_SHARE = 0.2
# Largest ratio to the study's median. Two series of 40 single timings on an idle 16-core cloud VM
# went up to 1.17 and 1.33; with a busy process on every core the ratio is about 2.
SLOWER = 1.25
# Largest share of the measurement in which heat held a GPU's clock down.
THERMAL_SHARE = 0.01
# Largest foreign use of a GPU, in percent; a desktop needs a few.
GPU_SHARE = 10
# The server uses a GPU whose used memory grew by at least this since the idle baseline, in MiB.
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
    """One GPU at one moment; None: its driver does not report the value.

    Attributes:
        sm_mhz: Clock of the multiprocessors, in MHz.
        temperature_c: Temperature of the chip, in °C.
        utilisation: Percentage of the last moments (up to 1 s) in which a kernel ran.
        foreign: Percentage used by processes that are not the server's, since the measurement
            began; None also at its beginning, and where the driver sees pids of another namespace.
        memory_mib: Memory used by all processes, in MiB.
        slowed: Reasons why the clock is held down, in words; empty if it is not.
        thermal_s: Seconds so far in which heat held the clock down.
    """

    sm_mhz: int | None
    temperature_c: int | None
    utilisation: int | None
    foreign: int | None
    memory_mib: int | None
    slowed: tuple[str, ...]
    thermal_s: float | None


@dataclass(frozen=True)
class IdleBaseline:
    """The idle machine before a launch, while no server of this run was alive.

    Attributes:
        kernel_s: Seconds of the fixed computation.
        mhz: Clock of the fastest core right after it; None: the kernel does not report it.
        gpus: Readings of all GPUs, in NVML's order; empty without any.
    """

    kernel_s: float
    mhz: float | None
    gpus: tuple[GpuReading, ...]


@dataclass(frozen=True)
class MachineState:
    """The machine while one launch was measured; ``dataclasses.asdict`` of it is JSON.

    Attributes:
        rest: Idle baseline before the launch.
        seconds: Length of the measurement.
        cores: Number of cores that this process may use. The next four are averages over the
            measurement, in these cores.
        busy: Cores that any process used.
        foreign: Cores that neither the server nor this process used; None: the server's processes
            are unknown.
        steal: Cores that were wanted but that the hypervisor gave to other machines.
        iowait: Cores that were idle while they waited for a disk.
        gpus_before: Readings of all GPUs when the measurement began.
        gpus_after: Readings of all GPUs when it ended.
    """

    rest: IdleBaseline
    seconds: float
    cores: int
    busy: float
    foreign: float | None
    steal: float
    iowait: float
    gpus_before: tuple[GpuReading, ...]
    gpus_after: tuple[GpuReading, ...]


def take_idle_baseline(
    earlier: Sequence[float] = (),
    *,
    look: Callable[[], float] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> IdleBaseline:
    """Measure the machine while no server of this run is alive.

    It takes half a second, and up to six where the fixed computation is slow.

    Args:
        earlier: ``kernel_s`` of the study's earlier launches on this machine.
        look: Returns the seconds of the fixed computation; :func:`kernel_seconds` by default.
        pause: Waits for a number of seconds between two computations.
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
    return IdleBaseline(kernel_s, mhz, read_gpus())


def kernel_seconds() -> float:
    """Return the seconds of the fixed computation on one core: the best of five rounds.

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
    """Count who uses the machine in a ``with`` block.

    Args:
        idle: Idle baseline taken before the launch.
        server: Returns the server's processes; called at both ends. None: they cannot be
            distinguished from others, as in a container, so foreign load stays unknown.
        known: Other processes of this run, whose load is not foreign.

    Attributes:
        state: The machine during the block, after it.
    """

    state: MachineState

    def __init__(
        self,
        idle: IdleBaseline,
        server: Callable[[], Iterable[psutil.Process]] | None,
        known: Iterable[psutil.Process] = (),
    ) -> None:
        self._idle = idle
        self._server = server
        self._known = {psutil.Process(), *known}

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
        own = self._processes()
        before, after = self._before, _count(own)
        seconds = after.at - before.at
        busy = (after.busy - before.busy) / seconds
        foreign = None
        if before.own is not None and after.own is not None:
            # may be below 0: the kernel counts the machine's time in ticks, a process's exactly
            foreign = max(0.0, busy - (after.own - before.own) / seconds)
        self.state = MachineState(
            rest=self._idle,
            seconds=seconds,
            cores=len(os.sched_getaffinity(0)),
            busy=busy,
            foreign=foreign,
            steal=(after.steal - before.steal) / seconds,
            iowait=(after.iowait - before.iowait) / seconds,
            gpus_before=self._gpus,
            gpus_after=read_gpus({p.pid for p in own or ()}, self._unix),
        )

    def _processes(self) -> set[psutil.Process] | None:
        return None if self._server is None else {*self._known, *self._server()}


@dataclass(frozen=True)
class _Count:
    """CPU seconds so far at clock reading ``at``."""

    at: float
    busy: float
    steal: float
    iowait: float
    own: float | None


def _count(own: Set[psutil.Process] | None) -> _Count:
    usable = os.sched_getaffinity(0)
    at = time.perf_counter()
    cores = [t for i, t in enumerate(psutil.cpu_times(percpu=True)) if i in usable]
    return _Count(
        at=at,
        busy=sum(t.user + t.nice + t.system + t.irq + t.softirq for t in cores),
        steal=sum(t.steal for t in cores),
        iowait=sum(t.iowait for t in cores),
        own=None if own is None else sum(map(_cpu_seconds, own)),
    )


def _cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and of its ended children; 0 if the process is gone.

    A gone process is among the ended children of its parent, which is in the tree, too.
    """
    try:
        t = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(t.user + t.system + t.children_user + t.children_system)


def read_gpus(own: Set[int] = frozenset(), since: float = 0.0) -> tuple[GpuReading, ...]:
    """Read every NVIDIA GPU through NVML, in its order; empty without GPUs or without NVML.

    Args:
        own: Pids of the server; without them ``foreign`` is None.
        since: Unix time from which ``foreign`` counts.
    """
    with nvml() as library:
        if library is None:
            return ()

        def ask(name: str, *args: Any) -> Any:
            try:
                return getattr(library, name)(*args)
            except library.NVMLError:  # not every GPU reports everything
                return None

        def foreign(gpu: Any) -> int | None:
            used = ask("nvmlDeviceGetProcessUtilization", gpu, int(since * 1e6)) if own else None
            # in a container the driver may name the host's pids, among which is none of `own`
            if not used or own.isdisjoint(u.pid for u in used):
                return None
            return sum(int(u.smUtil) for u in used if u.pid not in own)

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
    """Return why the machine was disturbed during a launch, in one line; None if it was not.

    Args:
        state: The machine during the launch.
        earlier: ``rest.kernel_s`` of the study's earlier launches on this machine; may be empty.
    """
    cores, reasons = state.cores, []
    if state.foreign is not None and state.foreign > FOREIGN_SHARE * cores:
        of = "one core" if cores == 1 else f"{cores} cores"
        reasons.append(f"other processes used {state.foreign:.1f} of {of}")
    if state.steal > STEAL_SHARE * cores:
        reasons.append(f"the hypervisor withheld {state.steal / cores:.0%} of the CPU time")
    if _slower(state.rest.kernel_s, earlier):
        times = state.rest.kernel_s / statistics.median(earlier)
        reasons.append(f"before it a fixed computation took {times:.2f} × as long as usual")
    gpus = zip(state.rest.gpus, state.gpus_before, state.gpus_after, strict=False)
    for index, (idle, before, after) in enumerate(gpus):
        reasons += [f"GPU {index} {what}" for what in _gpu(idle, before, after, state.seconds)]
    return "; ".join(reasons) or None


def _gpu(idle: GpuReading, before: GpuReading, after: GpuReading, seconds: float) -> list[str]:
    """Return what disturbed a GPU; nothing for one that the server does not use."""
    if (
        idle.memory_mib is not None
        and after.memory_mib is not None
        and after.memory_mib < idle.memory_mib + GPU_OURS_MIB
    ):
        return []
    reasons = []
    if (idle.utilisation or 0) > GPU_SHARE:
        reasons.append(f"was {idle.utilisation} % busy before the server was started")
    if (after.foreign or 0) > GPU_SHARE:
        reasons.append(f"was used to {after.foreign} % by other processes")
    if slowed := sorted({*before.slowed, *after.slowed}):
        reasons.append(f"was slowed: {', '.join(slowed)}")
    if before.thermal_s is not None and after.thermal_s is not None:
        share = (after.thermal_s - before.thermal_s) / seconds
        if share > THERMAL_SHARE:
            reasons.append(f"was slowed by heat for {share:.0%} of the time")
    return reasons
