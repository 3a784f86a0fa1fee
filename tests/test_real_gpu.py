"""Out of memory on purpose, with real vLLM servers beside a program that holds most of the GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.serving.gpu_memory import SLACK_MIB, gpu_memory
from tests.studies import query, spawn_autotune, write_study

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not gpu_memory(), reason="no NVIDIA GPU here, or no NVML"),
]

HOLDER = """
import sys
import torch
_, total = torch.cuda.mem_get_info()
held = torch.empty(int(0.6 * total), dtype=torch.uint8, device="cuda")
print("holding", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def competitor() -> Iterator[None]:
    """Another program that holds 60 % of the GPU."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "holding\n"
        yield
    finally:
        holder.stdin.close()
        holder.wait(timeout=30)


def study(folder: Path, name: str, utilization: list[float], **flags: object) -> str:
    """A study of the demo pair that tries shares of the GPU's memory, 0.3 of it first."""
    file = write_study(
        folder,
        name=name,
        server__command=None,
        server__model="demo:target",
        server__speculative={"method": "dflash", "model": "demo:draft"},
        server__flags={
            "max-num-seqs": 8,
            "max-model-len": 2048,
            "max-num-batched-tokens": 2048,
            "enforce-eager": True,
            **flags,
        },
        server__env={"VLLM_USE_FLASHINFER_SAMPLER": "0"},
        server__health_timeout_s=300,
        server__stop_timeout_s=20,
        space={"gpu-memory-utilization": {"type": "choice", "choices": utilization}},
        baseline={"gpu-memory-utilization": 0.3},
        search={"method": "grid"},
        budget={"trials": len(utilization), "confirm": 0, "replicates": 0, "converged": 0},
    )
    return file.name


def test_out_of_memory_is_told_apart(tmp_path: Path, competitor: None) -> None:
    before = gpu_memory()[0].used_mib
    fits_or_not = study(tmp_path, "share", [0.3, 0.9, 0.004])
    too_large = study(tmp_path, "cache", [0.3], **{"kv-cache-memory-bytes": 64 << 30})
    # a run without any number says so by its exit code
    for file, code in ((fits_or_not, 0), (too_large, 1)):
        run = spawn_autotune("run", file, cwd=tmp_path)
        _, words = run.communicate(timeout=300)
        assert run.returncode == code, words
        assert gpu_memory()[0].used_mib < before + SLACK_MIB
    kinds = query(
        tmp_path, "select study, trial, failure_kind, ended_at is null from autotune_launches"
    )
    assert sorted(kinds) == [
        ("cache", 0, "kv_cache", 0),  # 64 GiB of it where 32 are free
        ("share", 0, None, 0),
        ("share", 1, "oom_load", 0),  # more than is free, which vLLM sees before it loads
        ("share", 2, "kv_cache", 0),  # less than the weights take
    ]
