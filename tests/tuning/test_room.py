"""Room for prelaunched servers before any was measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.serving.gpu_memory import GpuMemory
from autotune.study.files import LoadedStudy, load_study
from autotune.tuning import room
from autotune.tuning.room import Room, stated_mib
from tests.studies import write_study

GIB = 1 << 30
H200_MIB = 141 << 10
FIXED = {"kv_cache_memory_bytes": 4 * GIB, "gpu_memory_utilization": 0.2}
ALONE: dict[str, Any] = {"gpu_memory_utilization": 0.2}


def study(folder: Path, flags: dict[str, Any], **changes: Any) -> LoadedStudy:
    return load_study(str(write_study(folder, server__flags=flags, **changes)))


@pytest.mark.parametrize(
    ("flags", "mib"),
    [
        (FIXED, 28877),  # 0.2 of the GPU
        ({**FIXED, "gpu_memory_utilization": 0.01}, 5120),  # the cache is more, with a margin
        (ALONE, None),
        ({**FIXED, "kv_cache_memory_bytes": "4G"}, None),
    ],
)
def test_what_a_study_states(tmp_path: Path, flags: dict[str, Any], mib: int | None) -> None:
    assert stated_mib(study(tmp_path, flags), H200_MIB) == mib


def test_a_searched_share_states_nothing(tmp_path: Path) -> None:
    searched = {"gpu-memory-utilization": {"type": "float", "low": 0.1, "high": 0.2}}
    space = {"num_speculative_tokens": {"type": "int", "low": 0, "high": 3}, **searched}
    found = study(tmp_path, {"kv_cache_memory_bytes": 4 * GIB}, space=space)
    assert stated_mib(found, H200_MIB) is None


@pytest.mark.parametrize(
    ("device", "python", "used_mib", "memory_gib", "neighbors", "more"),
    [
        ("cuda", "python", 600, 64, 0, 3),
        ("cuda", "python", 60000, 64, 0, 1),  # others have the rest of the GPU
        ("cuda", "python", 140000, 64, 0, 0),
        ("cuda", "python", 600, 16, 0, 2),  # of the host's memory
        ("cuda", "python", 600, 64, 7, 0),  # and that is shared
        ("cuda", None, 600, 64, 0, 0),  # a container
        ("cpu", "python", 600, 64, 0, 0),
    ],
)
def test_only_the_first_launch_trusts_what_is_stated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    python: str | None,
    used_mib: int,
    memory_gib: int,
    neighbors: int,
    more: int,
) -> None:
    monkeypatch.setattr(room, "gpu_memory", lambda: (GpuMemory(used_mib, {}),))
    monkeypatch.setattr(room, "available_memory", lambda: memory_gib * GIB)
    info = SimpleNamespace(device=device, python=python)
    prepared: Any = SimpleNamespace(loaded=study(tmp_path, FIXED), info=info)
    found = Room(prepared, [{"memory_mib": H200_MIB}], neighbors)
    assert found.more() == more
    assert found.more() == 0  # it did not come up: alone until one was measured
