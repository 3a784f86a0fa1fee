"""Slots: what one server may use while others run next to it, on this host or on others.

A slot is a set of GPUs, by UUID, and a set of cores. No two slots of a run share one. The process
that runs a slot's trials is bound to its cores, and names its GPUs in ``CUDA_VISIBLE_DEVICES``;
servers inherit both. So what is counted for a slot, such as the CPU time that others used, is of
its own GPUs and cores only.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.serving.nvml import nvml, visible_gpus

# Variables that a slot sets for its servers: which GPUs they see, and in which order.
SLOT_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
# Slots on several hosts, whose number changes, have ports by their number modulo this one.
_PORT_PARTS = 16
# From this number of cores for each slot on, one is left to autotune itself.
_ROOMY = 4
_TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class SlotGpu:
    """One NVIDIA GPU.

    Attributes:
        index: Number among all GPUs of the host, in the order of the PCI bus.
        uuid: UUID, such as ``GPU-5d5ba0d6-…``.
        name: Name of the model.
        split: Whether MIG splits it.
        cores: Cores that are near to it; empty: all are, or the driver does not tell.
    """

    index: int
    uuid: str
    name: str
    split: bool = False
    cores: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Slot:
    """What the servers of one slot may use.

    Attributes:
        number: Number of the slot, from 0.
        count: Number of slots of the run.
        cores: Numbers of its cores.
        gpus: Its GPUs; empty: none.
        host: Name of its host, where slots are on several hosts; empty: this one.
    """

    number: int
    count: int
    cores: tuple[int, ...]
    gpus: tuple[SlotGpu, ...] = ()
    host: str = ""

    @property
    def name(self) -> str:
        """Name of the slot in texts."""
        return slot_text({"number": self.number, "host": self.host})

    def stored(self) -> dict[str, Any]:
        """Return what is kept with each of its launches."""
        return {
            "number": self.number,
            "count": self.count,
            "cores": ranges(self.cores),
            "gpus": [gpu.uuid for gpu in self.gpus],
            **({"host": self.host} if self.host else {}),
        }

    def owns_port(self, port: int) -> bool:
        """Return whether a port is one that only this slot of its host takes."""
        parts = max(self.count, _PORT_PARTS) if self.host else self.count  # more may join
        return port // 2 % parts == self.number % parts  # Linux gives servers odd ports only

    def machine(self, host: Mapping[str, Any]) -> dict[str, Any]:
        """Return a machine with the cores and GPUs of the slot only.

        Args:
            host: Description by :func:`autotune.serving.machine.describe_machine`, whose GPUs are
                those of :func:`slot_gpus`.
        """
        mine = {gpu.uuid for gpu in self.gpus}
        gpus = [of for of, gpu in zip(host["gpus"], slot_gpus(), strict=False) if gpu.uuid in mine]
        return {**host, "cores": len(self.cores), "gpus": gpus}


def slot_text(kept: Mapping[str, Any] | None) -> str:
    """Return a kept slot in a few words, such as ``slot 1 on node-b``; empty: none is kept."""
    return "" if not kept else f"slot {kept.get('number')}{_on(kept)}"


def _on(kept: Mapping[str, Any]) -> str:
    """Return the host of a kept slot in words; empty: there was one host."""
    return f" on {kept['host']}" if kept.get("host") else ""


def slot_details(kept: Mapping[str, Any]) -> str:
    """Return all that is kept of a slot: ``slot 1 of 2 on node-b: GPU-5d5b…, cores 4-7``."""
    gpus, cores = [str(uuid) for uuid in kept.get("gpus") or ()], str(kept.get("cores"))
    what = ", ".join([*gpus, f"{'core' if cores.isdecimal() else 'cores'} {cores}"])
    return f"slot {kept.get('number')} of {kept.get('count')}{_on(kept)}: {what}"


def ranges(cores: Sequence[int]) -> str:
    """Return numbers of cores as the kernel writes them.

    >>> ranges([0, 1, 2, 5])
    '0-2,5'
    """
    out: list[list[int]] = []
    for core in sorted(cores):
        if out and core == out[-1][-1] + 1:
            out[-1] = [out[-1][0], core]
        else:
            out.append([core])
    return ",".join("-".join(map(str, part)) for part in out)


def slot_gpus() -> list[SlotGpu]:
    """Return the NVIDIA GPUs that servers may use, by NVML; empty without GPUs or NVML."""
    with nvml() as library:
        if library is None:
            return []

        def ask(name: str, *args: Any) -> Any:
            try:
                return getattr(library, name)(*args)
            except (library.NVMLError, AttributeError):  # not every GPU or version has it
                return None

        words = (os.cpu_count() or 1) // 64 + 1
        found = []
        for handle in visible_gpus(library):
            mode = ask("nvmlDeviceGetMigMode", handle)
            masks = ask("nvmlDeviceGetCpuAffinity", handle, words) or ()
            near = {64 * i + bit for i, m in enumerate(masks) for bit in range(64) if m >> bit & 1}
            found.append(
                SlotGpu(
                    index=library.nvmlDeviceGetIndex(handle),
                    uuid=library.nvmlDeviceGetUUID(handle),
                    name=library.nvmlDeviceGetName(handle),
                    split=bool(mode) and mode[0] == 1,
                    cores=frozenset(near & os.sched_getaffinity(0)),
                )
            )
        return found


def cores_of_slots(
    usable: Sequence[int], groups: Sequence[Sequence[SlotGpu]]
) -> list[tuple[int, ...]]:
    """Split cores among slots: each has as many, hyperthreads of one core stay together.

    Slots with GPUs get cores that are near to their first GPU, where the driver tells which are.
    With plenty of cores, one or more are left to autotune itself.

    Args:
        usable: Numbers of the cores that this process may use; at least one for each slot.
        groups: GPUs of each slot; empty ones on a machine without.
    """
    ordered = sorted(usable, key=_place_of_core)
    near: dict[frozenset[int], list[int]] = defaultdict(list)
    for number, gpus in enumerate(groups):
        near[gpus[0].cores if gpus else frozenset()].append(number)
    parts = {cores: [c for c in ordered if c in cores] for cores in near}
    disjoint = sum(map(len, parts.values())) == len(set().union(*parts.values()))
    if not disjoint or any(len(parts[cores]) < len(slots) for cores, slots in near.items()):
        near, parts = {frozenset(): list(range(len(groups)))}, {frozenset(): ordered}
    each = min(len(parts[cores]) // len(slots) for cores, slots in near.items())
    if each > _ROOMY and each * len(groups) == len(ordered) and any(groups):
        each -= 1
    found = {
        slot: tuple(sorted(parts[cores][i * each : (i + 1) * each]))
        for cores, slots in near.items()
        for i, slot in enumerate(slots)
    }
    return [found[number] for number in range(len(groups))]


def shares_a_core(slots: Sequence[Slot]) -> bool:
    """Return whether two slots have hyperthreads of one core."""
    places = [{_place_of_core(core)[:2] for core in slot.cores} for slot in slots]
    return sum(map(len, places)) > len(set().union(*places))


def _place_of_core(core: int) -> tuple[int, int, int]:
    """Return package and number of the physical core behind a core's number, and that number."""
    try:
        of = _TOPOLOGY / f"cpu{core}" / "topology"
        package = int((of / "physical_package_id").read_text())
        return package, int((of / "core_id").read_text()), core
    except (OSError, ValueError):  # no such file on this kernel
        return 0, core, core
