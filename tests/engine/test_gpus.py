"""What vLLM decides by the GPUs that it sees."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autotune.engine import _probe
from autotune.engine.gpus import Gpu, data_center_blackwell, default_seqs, have_bfloat16
from autotune.serving import machine

GIB = 1 << 30
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, (9, 0))
A100 = Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, (8, 0))
T4 = Gpu("Tesla T4", 15 * GIB, (7, 5))
B200 = Gpu("NVIDIA B200", 180 * GIB, (10, 0))
GB10 = Gpu("NVIDIA GB10", 120 * GIB, (12, 1))
RTX = Gpu("NVIDIA RTX PRO 6000", 96 * GIB, (12, 0))


@pytest.mark.parametrize(
    ("gpus", "minor", "seqs"),
    [
        ((H100,), (0, 24), 1024),
        ((H100, H100), (0, 33), 1024),
        ((A100,), (0, 33), 256),
        ((T4,), (0, 33), 256),
        ((B200,), (0, 27), 1024),
        ((Gpu("A100 of the future", 161 * GIB),), (0, 27), 256),
        ((Gpu("A100 of the future", 161 * GIB),), (0, 28), 1024),
        ((GB10,), (0, 32), 1024),
        ((GB10,), (0, 33), 256),
        ((RTX,), (0, 33), 1024),
        ((H100, T4), (0, 33), None),  # either may be the server's
        ((H100,), None, None),
        ((), (0, 33), None),
    ],
)
def test_its_own_max_num_seqs(
    gpus: tuple[Gpu, ...], minor: tuple[int, int] | None, seqs: int | None
) -> None:
    assert default_seqs(gpus, minor) == seqs


def test_several_gpus_are_what_each_of_them_is() -> None:
    assert data_center_blackwell((B200, B200))
    assert not data_center_blackwell((B200, H100))
    assert not data_center_blackwell((GB10,))
    assert not data_center_blackwell(())
    assert have_bfloat16((A100, H100))
    assert not have_bfloat16((A100, T4))
    assert not have_bfloat16((Gpu("?", GIB),))
    assert not have_bfloat16(())


class _Platform:
    """As vLLM's `current_platform` answers on two GPUs."""

    def is_cuda(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def get_device_name(self, i: int) -> str:
        return (H100, B200)[i].name

    def get_device_total_memory(self, i: int) -> int:
        return (H100, B200)[i].memory

    def get_device_capability(self, i: int) -> Any:
        return SimpleNamespace(major=9, minor=0) if i == 0 else None


def test_the_probe_tells_each_gpu() -> None:
    assert _probe.gpus_of(_Platform()) == [
        {"name": H100.name, "memory": H100.memory, "capability": [9, 0]},
        {"name": B200.name, "memory": B200.memory, "capability": None},
    ]
    broken = _Platform()
    broken.get_device_name = lambda i: 1 / 0  # type: ignore[method-assign]
    assert _probe.gpus_of(broken) == []
    other = _Platform()
    other.is_cuda = lambda: False  # type: ignore[method-assign]
    assert _probe.gpus_of(other) == []


def test_nvml_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened:
        def __init__(self, library: Any) -> None:
            self.library = library

        def __enter__(self) -> Any:
            return self.library

        def __exit__(self, *_: object) -> None: ...

    library = SimpleNamespace(
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetName=lambda h: B200.name,
        nvmlDeviceGetMemoryInfo=lambda h: SimpleNamespace(total=B200.memory),
        nvmlDeviceGetCudaComputeCapability=lambda h: [10, 0],
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "nvml", lambda: Opened(library))
    assert machine.vllms_gpus() == (B200,)
    monkeypatch.setattr(machine, "nvml", lambda: Opened(None))
    assert machine.vllms_gpus() == ()
