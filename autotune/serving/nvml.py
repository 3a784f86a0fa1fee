"""NVIDIA's management library: reads GPUs without a CUDA context, which would take memory.

Energy is the growth of a GPU's counter (``nvmlDeviceGetTotalEnergyConsumption``, from Volta on;
millijoules since the driver was loaded). The power of a GPU without a counter is read ten times a
second (``nvmlDeviceGetPowerUsage``) and integrated by the trapezoid rule. Both are of the whole
board, and no better than its sensor, which on A100 and H100 samples a quarter of the time only (Z.
Yang, K. Adámek, W. Armour, "Accurate and convenient energy measurements for GPUs: a detailed study
of NVIDIA GPU's built-in power sensor", SC24). They are good enough to compare launches of one
machine under a load of many seconds, and do not replace a wattmeter.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

SAMPLED_S = 0.1  # between two readings of the power


@contextmanager
def nvml() -> Iterator[Any]:
    """Open the library (``pynvml``) for the block; None without it, its driver or a GPU."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def visible_gpus(library: Any) -> list[Any]:
    """Return handles of the GPUs that a server may use, in NVML's order.

    They are the ones that ``CUDA_VISIBLE_DEVICES`` names by number (CUDA and NVML number equal GPUs
    in the same way) or by UUID. Without the variable, or where it names something else, they are
    all GPUs.

    Args:
        library: The library of :func:`nvml`.
    """
    count = library.nvmlDeviceGetCount()
    handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    words = [] if named is None else [word.strip() for word in named.split(",")]
    if not words or not all(word.isdecimal() or word.startswith("GPU-") for word in words):
        return handles

    def is_named(index: int, handle: Any) -> bool:
        uuids = tuple(word for word in words if word.startswith("GPU-"))
        return str(index) in words or (
            bool(uuids) and library.nvmlDeviceGetUUID(handle).startswith(uuids)
        )

    return [handle for i, handle in enumerate(handles) if is_named(i, handle)]


@dataclass(frozen=True)
class Energy:
    """Energy that GPUs took in a period.

    Attributes:
        seconds: Length of the period.
        joules: Joules by the number of the GPU among :func:`visible_gpus`; a GPU that reports none
            is left out.
    """

    seconds: float
    joules: Mapping[int, float]

    def of(self, gpus: Set[int]) -> Energy | None:
        """Return the energy of some GPUs; None: the set is empty, or one of them reports none."""
        if not gpus or not gpus <= self.joules.keys():
            return None
        return Energy(self.seconds, {k: self.joules[k] for k in sorted(gpus)})

    @property
    def total(self) -> float:
        """Joules of all GPUs."""
        return sum(self.joules.values())


class EnergyMeter:
    """Counts the energy of every GPU from its entry on; without GPUs or NVML it counts none.

    Args:
        sample: Whether to integrate the power of GPUs without a counter. That takes a thread, which
            reads it ten times a second.
    """

    def __init__(self, *, sample: bool) -> None:
        self._sample = sample
        self._stack = ExitStack()
        self._counters: dict[int, tuple[Any, int]] = {}  # GPU and mJ at the entry
        self._integrals: dict[int, _Integral] = {}
        self._ended = threading.Event()

    def __enter__(self) -> EnergyMeter:
        self._library = self._stack.enter_context(nvml())
        for i, gpu in enumerate(self._gpus()):
            if (counted := self._ask("nvmlDeviceGetTotalEnergyConsumption", gpu)) is not None:
                self._counters[i] = gpu, counted
            elif (power := self._ask("nvmlDeviceGetPowerUsage", gpu)) is not None and self._sample:
                self._integrals[i] = _Integral(gpu, time.monotonic(), power / 1000)
        self._start = time.monotonic()
        if self._integrals:
            thread = threading.Thread(target=self._keep_asking, daemon=True)
            thread.start()
            self._stack.callback(thread.join)
            self._stack.callback(self._ended.set)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def read(self) -> Energy:
        """Return the energy since the entry.

        A counter that went back, as after a reload of the driver, is left out.
        """
        joules: dict[int, float] = {}
        for i, (gpu, before) in self._counters.items():
            now = self._ask("nvmlDeviceGetTotalEnergyConsumption", gpu)
            if now is not None and now >= before:
                joules[i] = (now - before) / 1000
        for i, integral in self._integrals.items():
            if self._add(integral):
                joules[i] = integral.joules
        return Energy(time.monotonic() - self._start, dict(sorted(joules.items())))

    def _gpus(self) -> list[Any]:
        """Return the GPUs that a server may use; none where the driver does not answer."""
        if self._library is None:
            return []
        try:
            return visible_gpus(self._library)
        except self._library.NVMLError:
            return []

    def _keep_asking(self) -> None:
        while not self._ended.wait(SAMPLED_S):
            for integral in self._integrals.values():
                self._add(integral)

    def _add(self, integral: _Integral) -> bool:
        """Integrate up to now; return False if the GPU does not report its power any more."""
        with integral.lock:
            power = self._ask("nvmlDeviceGetPowerUsage", integral.gpu)
            if power is None:
                integral.known = False
            else:
                integral.add(time.monotonic(), power / 1000)
            return integral.known

    def _ask(self, name: str, *args: Any) -> Any:
        try:
            return getattr(self._library, name)(*args)
        except self._library.NVMLError:  # not every GPU reports everything
            return None


class _Integral:
    """Integral of the power of one GPU: joules from watts, by the trapezoid rule."""

    def __init__(self, gpu: Any, at: float, watts: float) -> None:
        self.gpu = gpu
        self.lock = threading.Lock()
        self.known = True
        self.joules = 0.0
        self._at, self._watts = at, watts

    def add(self, at: float, watts: float) -> None:
        """Add a reading.

        Args:
            at: Time of :func:`time.monotonic`.
            watts: Power at that time.
        """
        self.joules += (at - self._at) * (self._watts + watts) / 2
        self._at, self._watts = at, watts


def why_no_energy() -> str | None:
    """Return why no GPU of this machine reports the energy it takes; None: one does."""
    with nvml() as library:
        if library is None:
            return (
                "no NVIDIA GPU answers through NVML (the package nvidia-ml-py); the energy of CPUs "
                "is not measured"
            )
    with EnergyMeter(sample=True) as meter:
        if not meter.read().joules:
            return "no GPU here tells NVML its energy or its power"
    return None
