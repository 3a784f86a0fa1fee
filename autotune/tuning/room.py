"""How many more servers a machine, or a slot of it, has room for next to one that is started.

Once a server was measured it is known what one takes. Before that it is what the study states, on
a GPU with a KV cache of fixed size: vLLM wants its ``gpu_memory_utilization`` free at every start
(vllm/v1/worker/utils.py:request_memory), and does not keep to it with a fixed KV cache, so weights
and KV cache count, too, as far as they are known. No such thing is stated of a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from autotune.bench.interference import GPU_OURS_MIB
from autotune.engine.memory_fit import DEFAULT_UTILIZATION, GIB, need_of
from autotune.serving.gpu_memory import gpu_memory
from autotune.serving.machine import available_memory
from autotune.serving.server import Server
from autotune.study.files import LoadedStudy
from autotune.tuning.prepare import Prepared

# Of the free memory that prelaunched servers may take: another point may need more than those
# that were seen.
_SHARE = 0.8
# Memory of the host that a server on a GPU is assumed to take before one was seen.
_HOST_BYTES = 4 * GIB


@dataclass(frozen=True)
class _Taken:
    """What a server takes.

    Attributes:
        memory: Bytes of the host's memory.
        gpus_mib: Of each GPU, in NVML's order.
    """

    memory: int
    gpus_mib: tuple[int, ...]

    def most(self, other: _Taken) -> _Taken:
        """Return the larger of each."""
        return _Taken(
            max(self.memory, other.memory),
            tuple(map(max, self.gpus_mib, other.gpus_mib)),
        )


class Room:
    """Room for prelaunched servers of one run, on the whole host or one slot.

    Args:
        prepared: The study.
        gpus: The GPUs, as the machine is written down.
        neighbors: Number of other slots on this host, which start servers at the same time.
        known: Whether the study's points were launched before: on a GPU, as many then start
            together as the study shares its memory out for
            (:func:`autotune.tuning.prepare.check_ahead`).
    """

    def __init__(
        self,
        prepared: Prepared,
        gpus: Sequence[Mapping[str, Any]],
        neighbors: int,
        *,
        known: bool = False,
    ) -> None:
        self._p = prepared
        self._gpus = gpus
        self._neighbors = neighbors
        self._seen: _Taken | None = None  # None: no server was measured yet
        self._known = known
        self._asked = False

    def learn(self, process: Server) -> None:
        """Note what a server takes, while it is there and no other one."""
        if not process.known_processes:
            return
        before = process.gpus_before
        now = gpu_memory() if before else ()
        taken = _Taken(
            process.memory(),
            tuple(max(0, b.used_mib - a.used_mib) for a, b in zip(before, now, strict=False)),
        )
        self._seen = taken if self._seen is None else self._seen.most(taken)

    def more(self) -> int:
        """Return how many more servers fit next to the one just started.

        Until one was measured, only the first launch is given what the study states: if that did
        not come up, the next one is alone.
        """
        first, self._asked = not self._asked, True
        taken = self._seen
        if taken is not None:
            found = self._fitting(taken.memory)
            for mib, gpu, now in zip(taken.gpus_mib, self._gpus, gpu_memory(), strict=False):
                if mib >= GPU_OURS_MIB:
                    found = min(found, int(_SHARE * (gpu["memory_mib"] - now.used_mib) / mib))
            return max(0, found - 1)
        if self._p.info.device != "cuda" or self._p.info.python is None:
            return 0  # the processes of a container cannot be seen, then or later
        if self._known:
            return self._p.spec.server.ahead
        if not first:
            return 0
        found = self._fitting(_HOST_BYTES)
        stated = [
            (gpu["memory_mib"] - now.used_mib) // each
            for gpu, now in zip(self._gpus, gpu_memory(), strict=False)
            if (each := stated_mib(self._p.loaded, gpu["memory_mib"])) is not None
        ]
        return max(0, min(found, *stated) - 1) if stated else 0

    def _fitting(self, memory: int) -> int:
        """Return how many servers fit into the slot's share of the host's free memory."""
        return int(_SHARE * available_memory() / (1 + self._neighbors) / max(1, memory))


def stated_mib(loaded: LoadedStudy, memory_mib: int) -> int | None:
    """Return what each server of a study takes of a GPU, MiB; None: it is not fixed.

    Args:
        loaded: The study.
        memory_mib: Memory of the GPU.
    """
    flags = loaded.spec.server.flags
    cache = flags.get("kv_cache_memory_bytes")
    share = flags.get("gpu_memory_utilization", DEFAULT_UTILIZATION)
    if not isinstance(cache, int) or not isinstance(share, int | float) or share <= 0:
        return None
    if "gpu_memory_utilization" in loaded.spec.space:
        return None
    need = need_of(loaded)
    known = cache if need is None else need.total
    return max(1, ceil(share * memory_mib), ceil(known / _SHARE / 2**20))
