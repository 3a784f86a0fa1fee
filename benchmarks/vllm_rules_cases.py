"""The settings that each vLLM is asked about: the draft budget here, the rest in vllm_rules_more.

What a group is, is in `benchmarks/vllm_rules_base.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import vllm_rules_more as more
from benchmarks.vllm_rules_base import CPU, CUDA, GPUS, H100, METHODS, MNBT, SEQS, Group, N, draft

# On a CPU: one method of each count of slots. DSpark needs a model runner that a CPU has not.
_ON_CPU = ("dflash", "draft_model")
_BUDGET = {
    N: list(range(1, 16)),
    MNBT: [8, 12, 16, 17, 64, 256, 1024, 2048, 3072, 4096, 8192],
    SEQS: [None, 1, 32, 128, 192, 256],
}


def _budget() -> Iterator[Group]:
    for platform in (CUDA, CPU):
        for method in METHODS if platform == CUDA else _ON_CPU:
            yield {
                "method": method,
                "kind": "draft budget",
                "platform": platform,
                "fixed": draft(method),
                "axes": _BUDGET,
                "gets": ["active"],
            }


def _by_gpu() -> Iterator[Group]:
    """Yield vLLM's own max_num_seqs, which depends on the GPU."""
    for gpu in GPUS:
        for mode in (None, "throughput"):
            yield {
                "method": "dflash",
                "kind": "draft budget of a GPU",
                "platform": CUDA,
                **({} if gpu == H100 else {"gpu": gpu}),
                "fixed": draft("dflash") | ({} if mode is None else {"performance_mode": mode}),
                "axes": {N: [1, 2, 5, 9, 15], MNBT: [256, 1024, 1025, 3584, 4096, 8192, 16384]},
                "gets": ["active", "seqs"],
            }


def groups() -> list[Group]:
    """Return every group, always in the same order."""
    return [
        *_budget(),
        *_by_gpu(),
        *more.plain(),
        *more.graph_keys(),
        *more.of_draft(),
        *more.of_method(),
        *more.graphs(),
    ]


def settings_of(group: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the settings of a group, in the order of its answers."""
    fixed = group.get("fixed", {})
    if "cases" in group:
        for case in group["cases"]:
            yield {**fixed, **{k: v for k, v in case.items() if v is not None}}
        return
    names = list(group["axes"])
    for values in itertools.product(*group["axes"].values()):
        chosen = {k: v for k, v in zip(names, values, strict=True) if v is not None}
        yield {**fixed, **chosen}
