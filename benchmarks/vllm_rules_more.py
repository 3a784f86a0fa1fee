"""Settings for every rule but the draft budget, for `benchmarks/vllm_rules_cases.py`.

Each function yields the groups of one matter. A kind names the rule that it is about; a group may
also have settings that other rules decide.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from benchmarks.vllm_rules_base import (
    CPU,
    CUDA,
    METHODS,
    MNBT,
    SEQS,
    D,
    Group,
    N,
    draft,
    group,
)

_DTYPES = [
    *("auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla"),
    *("nvfp4", "nvfp4_ds_mla", "nvfp4_4over6", "ultraquant_4bit", "turboquant_k8v4"),
    *("turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc", "int4_per_token_head"),
    *("int8_per_token_head", "fp8_per_token_head", "octave_k3v4", "octave_k3v3"),
    *("octave_k3v3_compact", "int4", "fp16"),
]


def plain() -> Iterator[Group]:
    """Settings without a draft: numbers, the batch, lengths, dtypes, blocks."""
    target = {"model": "target"}
    for platform in (CPU, CUDA):
        yield group("none", "numbers", platform, target, cases=_numbers())
        yield group(
            "none",
            "batch",
            platform,
            target,
            axes={
                MNBT: [None, 1, 16, 64, 2048, 4095, 4096, 8192],
                SEQS: [None, 1, 16, 17, 256],
                "enable_chunked_prefill": [None, False],
                "max_model_len": [None, 64],
            },
        )
        yield group("none", "kv_cache_dtype", platform, target, axes={"kv_cache_dtype": _DTYPES})
        for model in ("target", "half"):
            yield group(
                "none",
                f"data types, {model}",
                platform,
                {"model": model},
                axes={
                    "dtype": [None, "auto", "half", "float16", "bfloat16", "float", "float32"],
                    "kv_cache_dtype": ["auto", "float16", "bfloat16", "fp8"],
                },
            )
    yield group("none", "scheduler", CUDA, target, cases=_scheduler())
    yield group(
        "none",
        "block_size",
        CPU,
        target,
        axes={"block_size": [1, 8, 16, 24, 32, 48, 64, 96, 100, 128, 160]},
    )
    yield group(
        "dflash",
        "block_size",
        CPU,
        {**draft("dflash"), N: 3, MNBT: 2048, SEQS: 16},
        axes={"block_size": [16, 32, 48, 64]},
    )


def _numbers() -> list[dict[str, Any]]:
    return [
        *({name: x} for name in (MNBT, SEQS, "block_size") for x in (-1, 0, 1)),
        *({"gpu_memory_utilization": x} for x in (-0.5, 0, 0.001, 0.5, 1, 1.001, 2)),
        *({"max_model_len": x} for x in (64, 4096, 4097, 100000)),
        {"max_model_len": 5000, "hf_overrides": {"max_position_embeddings": 8192}},
    ]


def _scheduler() -> list[dict[str, Any]]:
    partial = ("max_num_partial_prefills", "max_long_partial_prefills")
    return [
        *(
            {SEQS: seqs, "max_num_active_seqs": active}
            for seqs, active in itertools.product((None, 1, 16), (0, 1, 16, 17, 1024, 1025))
        ),
        *(
            {"max_model_len": length, "long_prefill_token_threshold": long}
            for length, long in itertools.product((64, None), (-1, 0, 1, 64, 65, 4096, 4097))
        ),
        *(
            {"max_model_len": 64, "long_prefill_token_threshold": long, partial[0]: 2}
            for long in (0, 64, 65)
        ),
        *(dict(zip(partial, (a, b), strict=True)) for a in (1, 2, 4) for b in (1, 2, 3)),
        *({partial[0]: x, "enable_chunked_prefill": False, MNBT: 8192} for x in (1, 2)),
        {partial[1]: 2},
        *({"performance_mode": x} for x in ("balanced", "interactivity", "throughput", "fast")),
        *({"prefill_schedule_interval": x} for x in (0, 1, 4)),
        *({"async_scheduling": x} for x in (True, False)),
        *({"scheduling_policy": x} for x in ("fcfs", "priority", "other")),
        *({"optimization_level": x} for x in (0, 2, 3)),
        {"max_num_scheduled_tokens": 64, MNBT: 2048},
        {"kv_sharing_fast_prefill": True},
    ]


def graph_keys() -> Iterator[Group]:
    """CUDA-graph sizes that are given."""
    lists = [[1, 2, 4], [8, 16], [4, 64, 4096], [3], [512, 1024]]
    cases: list[dict[str, Any]] = [
        *({"cudagraph_capture_sizes": x} for x in lists),
        *({"max_cudagraph_capture_size": x} for x in (1, 4, 16, 100)),
        *(
            {"cudagraph_capture_sizes": x, "max_cudagraph_capture_size": most}
            for x, most in itertools.product(lists, (4, 16, 64, 1024))
        ),
        {"cudagraph_capture_sizes": [1], "compilation_config": {"cudagraph_capture_sizes": [1]}},
        {"max_cudagraph_capture_size": 8, "compilation_config": {"max_cudagraph_capture_size": 8}},
        {"cudagraph_capture_sizes": [8], "compilation_config": {"max_cudagraph_capture_size": 8}},
        {"cudagraph_capture_sizes": [8], "compilation_config": {"max_cudagraph_capture_size": 9}},
        {"cudagraph_capture_sizes": [1, 8], "max_cudagraph_capture_size": 4, "enforce_eager": True},
        *({"compilation_config": {"cudagraph_mode": x}} for x in ("NONE", "PIECEWISE", "FULL")),
    ]
    for mnbt in (64, 2048):
        fixed = {"model": "target", SEQS: 16, MNBT: mnbt}
        yield group("none", "CUDA graph sizes given", CUDA, fixed, cases=cases)


def of_draft() -> Iterator[Group]:
    """Keys of ``--speculative-config`` that every method has."""
    batch = {SEQS: 16, MNBT: 2048}
    for method in ("dflash", "dspark", "eagle3", "draft_model", "mtp", "ngram", "suffix"):
        fixed = draft(method) | batch
        yield group(method, "synthetic acceptance", CUDA, fixed, cases=_synthetic())
        yield group(method, "sampling", CUDA, fixed, cases=_sampling())
        yield group(method, "adaptive verification", CUDA, fixed, cases=_adaptive())
        yield group(method, "keys of the draft", CUDA, fixed, cases=_keys())
    for method in ("dflash", "dspark", "eagle3"):
        fixed = draft(method) | batch | {N: 3, f"{D}enable_adaptive_verification": True}
        yield group(
            method,
            "adaptive verification on runner V1",
            CUDA,
            fixed,
            cases=[{}],
            env={"VLLM_USE_V2_MODEL_RUNNER": "0"},
        )
    for method in ("dflash", "eagle3", "ngram"):
        fixed = draft(method) | batch
        yield group(method, "schedule", CUDA, fixed, cases=_schedules())
    for method in ("dflash", "eagle3", "draft_model"):
        fixed = draft(method) | batch
        yield group(method, "workers of the draft", CUDA, fixed | {N: 3}, cases=_workers())
        yield group(
            method,
            "length of the draft",
            CUDA,
            fixed | {N: 3},
            axes={
                "max_model_len": [None, 512],
                f"{D}max_model_len": [0, 1, 64, 512, 513, 4096, 5000],
            },
        )
    for method in ("none", "dflash", "ngram"):
        fixed = {"model": "target"} if method == "none" else draft(method) | batch
        yield group(
            method,
            "metrics of each request",
            CUDA,
            fixed,
            axes={
                N: [0] if method == "none" else [0, 1, 3],
                "per_request_spec_decode_metrics": [None, "none", "summary", "detailed", "all"],
            },
        )


def _synthetic() -> list[dict[str, Any]]:
    how, rates, length = (
        f"{D}{x}"
        for x in (
            "rejection_sample_method",
            "synthetic_acceptance_rates",
            "synthetic_acceptance_length",
        )
    )
    played = {N: 3, how: "synthetic"}
    return [
        *({**played, rates: x} for x in ([0.9, 0.5, 0.1], [0.9, 0.5], [0.9] * 4, [], [1, 1, 0])),
        *({**played, rates: x} for x in ([0.5, 0.9, 0.1], [1.5, 0.5, 0.1], [0.5, 0.2, -0.1])),
        *({**played, length: x} for x in (0.5, 0, 1, 1.0, 2.5, 4, 4.5, 5)),
        {**played, length: 2, rates: [0.9, 0.5, 0.1]},
        played,
        *({N: 3, how: x, rates: [0.9, 0.5, 0.1]} for x in ("standard", "block")),
        {N: 3, rates: [0.9, 0.5, 0.1]},
        {N: 3, length: 2},
        {N: 0, length: 2},
        *({N: n, how: "synthetic", length: 3} for n in (1, 2, 3)),
    ]


def _sampling() -> list[dict[str, Any]]:
    how, window = f"{D}rejection_sample_method", f"{D}fly_window_size"
    return [
        *({N: 3, how: x} for x in ("standard", "block", "strict", "probabilistic")),
        *({N: 3, f"{D}draft_sample_method": x} for x in ("greedy", "probabilistic", "gumbel")),
        *({N: n, how: "fly"} for n in (1, 2, 3, 8)),
        *({N: n, how: "fly", window: w} for n in (2, 4, 8) for w in (0, 1, 2, 3, 4, 7, 8)),
        {N: 4, window: 2},
        *({N: 4, how: "fly", f"{D}fly_entropy_threshold": x} for x in (-1, 0, 0.3)),
    ]


def _adaptive() -> list[dict[str, Any]]:
    on = {N: 3, f"{D}enable_adaptive_verification": True}
    mode = {x: {"compilation_config": {"cudagraph_mode": x}} for x in ("NONE", "PIECEWISE", "FULL")}
    return [
        {N: 3, f"{D}enable_adaptive_verification": False},
        on,
        {**on, "enable_lora": True},
        {**on, "pipeline_parallel_size": 2},
        {**on, "tensor_parallel_size": 2},
        {**on, "enforce_eager": True},
        *({**on, **x} for x in mode.values()),
        {**on, "compilation_config": {"cudagraph_mode": "FULL_DECODE_ONLY"}},
        {**on, f"{D}use_local_argmax_reduction": True},
        {N: 3, f"{D}use_local_argmax_reduction": True},
        {**on, f"{D}rejection_sample_method": "block"},
        {**on, f"{D}num_speculative_tokens_per_batch_size": [[1, 8, 3], [9, 64, 1]]},
    ]


def _keys() -> list[dict[str, Any]]:
    keys: dict[str, list[Any]] = {
        "num_speculative_tokens_typo": [3],
        "prompt_lookup_max": [0, 1, 4],
        "prompt_lookup_min": [0, 2, 8],
        "disable_padded_drafter_batch": [True],
        "kv_cache_dtype": ["auto", "fp8"],
        "dspark_draft_topk": [0, 1, 8, 100000],
        "index_share_for_mtp_iteration": [True],
        "disable_eagle_block_drop": [True],
        "disable_lookahead_block_hashes": [True],
        "draft_lm_head_quantization": ["fp8", "int8"],
        "xpress_topc": [0, 4],
        "use_heterogeneous_vocab": [True],
        "suffix_decoding_max_tree_depth": [0, 24],
        "suffix_decoding_min_token_prob": [-0.1, 0.1, 1.1],
        "suffix_decoding_max_cached_requests": [-1, 0, 1000],
        "suffix_decoding_max_spec_factor": [-1, 0, 1.5],
        "parallel_drafting": [False],
        "enforce_eager": [True],
    }
    one = [{N: 3, f"{D}{k}": v} for k, values in keys.items() for v in values]
    return [
        *one,
        {N: 3, f"{D}use_heterogeneous_vocab": True, f"{D}draft_sample_method": "probabilistic"},
        {N: 3, f"{D}use_heterogeneous_vocab": True, f"{D}use_local_argmax_reduction": True},
        {N: 3, "async_scheduling": True},
        {N: 3, "async_scheduling": True, f"{D}disable_padded_drafter_batch": True},
        {N: 3, "kv_sharing_fast_prefill": True},
        {N: -1},
    ]


def _schedules() -> list[dict[str, Any]]:
    name = f"{D}num_speculative_tokens_per_batch_size"
    lists: list[list[list[int]]] = [
        [[1, 8, 3], [9, 64, 1]],
        [[1, 8, 3], [9, 64, 0]],
        [[1, 4, 3]],
        [[1, 4, 9]],
        [[9, 64, 1], [1, 8, 3]],
        [[2, 8, 3]],
        [[0, 8, 3]],
        [[1, 8, 3], [8, 64, 1]],
        [[1, 8, 3], [12, 64, 1]],
        [[8, 1, 3]],
        [[1, 8, -1]],
        [[1, 8]],
        [],
    ]
    return [
        *({N: 3, name: x} for x in lists),
        *({N: 3, name: x, "data_parallel_size": 2} for x in (lists[0], lists[5])),
    ]


def _workers() -> list[dict[str, Any]]:
    own, wrong = f"{D}draft_tensor_parallel_size", f"{D}tensor_parallel_size"
    return [
        *(
            {"tensor_parallel_size": tp, own: x}
            for tp, x in itertools.product((1, 2, 4), (0, 1, 2, 3, 4))
        ),
        {wrong: 1},
        {wrong: 2, "tensor_parallel_size": 2},
    ]


def of_method() -> Iterator[Group]:
    """What single methods and drafts need."""
    ns = list(range(1, 13))
    for heads in (1, 2, 3):
        yield group(
            "mtp",
            f"n with {heads} tokens of a head",
            CUDA,
            {"model": f"mtp-{heads}", f"{D}method": "mtp", MNBT: 2048, SEQS: 16},
            axes={N: ns},
        )
    yield from _with_others()
    for model in ("target", "eagle"):
        yield group(
            "mtp",
            f"a model without a head, {model}",
            CUDA,
            {"model": model, f"{D}method": "mtp", MNBT: 2048, SEQS: 16},
            axes={N: [0, 1, 3]},
        )
    for model in ("dspark", "dspark-few"):
        yield group(
            "dspark",
            f"candidates of the draft, {model}",
            CUDA,
            {**draft("dspark"), f"{D}model": model, MNBT: 2048, SEQS: 16, N: 3},
            axes={f"{D}dspark_draft_topk": [1, 500, 501, 1000, 1001]},
        )
    for name, model, method in (
        ("dspark, block 7", "dspark-7", "dspark"),
        ("dspark, block 7 by its own key", "dspark-own-7", "dspark"),
        ("dspark that fills in", "dspark-fill", "dspark"),
        ("dflash, block 7", "dflash-7", "dflash"),
        ("dflash of two kinds of attention", "dflash-mixed", "dflash"),
        ("LiLiCorr", "lilicorr", "dflash"),
        ("DFlash2", "dflash2", "dflash"),
        ("XPress", "xpress", "dflash"),
    ):
        yield group(
            method,
            f"n: {name}",
            CUDA,
            {"model": "target", f"{D}method": method, f"{D}model": model},
            axes={N: ns, MNBT: [8, 12, 64, 2048], SEQS: [1, 32]},
            gets=["active"],
        )
    yield group(
        "every method",
        "method that the version has",
        CUDA,
        {"model": "target", N: 3, MNBT: 2048, SEQS: 16},
        cases=[
            *(
                {f"{D}method": m, f"{D}model": d}
                for m, d in (
                    *(("medusa", "medusa"), ("dspark", "dspark"), ("dflash", "dflash")),
                    *(("eagle", "eagle"), ("eagle3", "eagle3"), ("draft_model", "small")),
                    *(("peagle", "peagle"), ("pard", "pard"), ("dflash2", "dflash2")),
                )
            ),
            *({f"{D}method": m} for m in ("ngram", "ngram_gpu", "suffix", "lookahead", "mtp")),
            {f"{D}method": "draft_model", f"{D}model": "other-words"},
        ],
    )
    yield group(
        "dflash",
        "active requests",
        CUDA,
        {**draft("dflash"), MNBT: 256},
        axes={N: [3, 7, 15], SEQS: [8, 32, 64], "max_num_active_seqs": [None, 4, 16, 32]},
        gets=["active"],
    )


def _with_others() -> Iterator[Group]:
    """What drafting does not go with, or only with more room: LoRA, pipelines, a CPU's runner."""
    for method in ("dflash", "eagle3", "draft_model", "ngram"):
        yield group(
            method,
            "LoRA and drafts",
            CUDA,
            {**draft(method), "enable_lora": True},
            axes={N: [0, 1, 3, 7], MNBT: [64, 127, 128, 256, 2048], SEQS: [None, 16, 32]},
        )
    for method in METHODS:
        yield group(
            method,
            "pipelines and drafts",
            CUDA,
            {**draft(method), MNBT: 2048, SEQS: 16},
            axes={N: [0, 1], "pipeline_parallel_size": [1, 2]},
        )
    for model in ("mtp-1", "eagle"):
        yield group(
            "none",
            f"lengths and data types, {model}",
            CUDA,
            {"model": model, SEQS: 16},
            cases=[
                *({MNBT: x, "enable_chunked_prefill": False} for x in (4095, 4096)),
                *({"long_prefill_token_threshold": x} for x in (4096, 4097)),
                *({"kv_cache_dtype": x} for x in ("float16", "bfloat16")),
                *({"max_model_len": x} for x in (4096, 4097)),
            ],
        )
    batch = {MNBT: 2048, SEQS: 16}
    for method in ("dflash", "dspark", "draft_model", "ngram"):
        yield group(
            method,
            "model runner of a CPU",
            CPU,
            {**draft(method), **batch, N: 3},
            cases=[
                {},
                {"async_scheduling": True},
                {f"{D}enable_adaptive_verification": True},
                {f"{D}draft_lm_head_quantization": "fp8"},
            ],
        )
    for model in ("dflash-mixed", "dflash2", "lilicorr"):
        fixed = {"model": "target", f"{D}method": "dflash", f"{D}model": model, **batch, N: 3}
        yield group("dflash", f"model runner of a CPU, {model}", CPU, fixed, cases=[{}])


def graphs() -> Iterator[Group]:
    """The list of CUDA-graph sizes, and the rows of FULL and piecewise graphs."""
    gets = ["sizes", "full", "replays", "runner"]
    for method in ("none", "dflash"):
        fixed = {"model": "target"} if method == "none" else draft(method)
        yield group(
            method,
            "CUDA graph sizes",
            CUDA,
            fixed,
            axes={
                N: [0] if method == "none" else [1, 2, 3, 4, 6, 7, 11, 15],
                SEQS: [1, 5, 32, 100],
                MNBT: [300, 2048, 8192],
            },
            gets=gets,
        )
    yield group(
        "dflash",
        "CUDA graph sizes",
        CUDA,
        {**draft("dflash"), SEQS: 32, MNBT: 2048},
        axes={N: [1, 3, 4, 7], "cudagraph_capture_sizes": [[1, 2, 4, 8, 16, 32], [5, 10, 20, 40]]},
        gets=gets,
    )
    # the list ends at 1024 tokens on Blackwell for data centers, from 0.28 on
    yield group(
        "dflash",
        "CUDA graph sizes of Blackwell",
        CUDA,
        draft("dflash"),
        gpu="B200",
        axes={N: [1, 4, 7, 15], SEQS: [32, 100, 256], MNBT: [600, 2048, 8192]},
        gets=gets,
    )
