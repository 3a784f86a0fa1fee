"""What vLLM decides by the GPUs that it sees: its own max_num_seqs, the end of its graph list.

Read in 0.24.0 to 0.33.0. Of several GPUs only what holds for each of them is said, because a server
may have any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Minor = tuple[int, int]

_GIB = 1 << 30
_FEW, _MANY = 256, 1024
# From these bytes on, with exceptions, a GPU is a large one.
_LARGE, _LARGEST = 70 * _GIB, 160 * _GIB


@dataclass(frozen=True)
class Gpu:
    """A GPU that vLLM sees.

    Attributes:
        name: Its name, such as ``NVIDIA H100 80GB HBM3``.
        memory: Its memory in bytes.
        capability: Compute capability, such as ``(9, 0)``; None: it has none, or it is unknown.
    """

    name: str
    memory: int
    capability: tuple[int, int] | None = None


def default_seqs(gpus: Sequence[Gpu], minor: Minor | None) -> int | None:
    """Return vLLM's own max_num_seqs on GPUs, before MNBT and ``performance_mode`` change it.

    From ``engine/arg_utils.py: EngineArgs.get_batch_defaults``.

    Args:
        gpus: GPUs that vLLM sees.
        minor: Minor version of vLLM that was read; None: unknown.

    Returns:
        A number of requests; None: no GPU is known, or they have different defaults.
    """
    found = {_seqs_of(gpu, minor) for gpu in gpus}
    return found.pop() if len(found) == 1 else None


def data_center_blackwell(gpus: Sequence[Gpu]) -> bool:
    """Return whether every GPU is known to be Blackwell for data centers, capability 10.x."""
    return bool(gpus) and all(g.capability is not None and g.capability[0] == 10 for g in gpus)


def have_bfloat16(gpus: Sequence[Gpu]) -> bool:
    """Return whether every GPU is known to compute in bfloat16, from capability 8.0 on."""
    return bool(gpus) and all(g.capability is not None and g.capability >= (8, 0) for g in gpus)


def _seqs_of(gpu: Gpu, minor: Minor | None) -> int | None:
    if minor is None:
        return None
    if gpu.memory >= _LARGEST and minor >= (0, 28):
        return _MANY
    small = "a100" in gpu.name.lower()
    small |= minor >= (0, 33) and gpu.capability == (12, 1)  # GB10, whose memory is the host's
    return _MANY if gpu.memory >= _LARGE and not small else _FEW
