"""What the groups of settings for `benchmarks/vllm_rules.py` are made of: models and methods.

A group is a mapping with ``method``, ``kind``, ``platform``, the name of its ``gpu`` in
:data:`GPUS` where it is not :data:`H100`, what is fixed, and either ``axes`` (name → values; all
combinations, the last axis fastest; None: left out) or ``cases``. Settings are
named as the rules of autotune name them; ``model`` and ``speculative.model`` name a model of
:data:`MODELS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.engine.gpus import Gpu

CPU, CUDA = "cpu", "cuda (faked)"
N, MNBT, SEQS = "num_speculative_tokens", "max_num_batched_tokens", "max_num_seqs"
D = "speculative."

Group = dict[str, Any]

_TARGET: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "torch_dtype": "bfloat16",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}
_SMALL = {**_TARGET, "num_hidden_layers": 2}
_LLAMA = {**_SMALL, "model_type": "llama", "num_hidden_layers": 1}
_DFLASH = {
    **_SMALL,
    "architectures": ["DFlashDraftModel"],
    "block_size": 16,
    "dflash_config": {"mask_token_id": 5, "target_layer_ids": [1, 4]},
}
_DSPARK = {
    **_SMALL,
    "architectures": ["Qwen3DSparkModel"],
    "mask_token_id": 5,
    "target_layer_ids": [1, 4],
}
_MOE = {
    **_TARGET,
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}

# Content of ``config.json`` by name. The folders of a run must not have a method's name in their
# path, for vLLM would take the method from there.
MODELS: dict[str, dict[str, Any]] = {
    "target": _TARGET,
    "small": _SMALL,
    "half": {**_TARGET, "torch_dtype": "float16"},
    "pard": {**_SMALL, "pard_token": 5},
    "dflash": _DFLASH,
    # a block above every n: 0.26 and 0.27 compare the two
    "dspark": {**_DSPARK, "block_size": 32, "dspark_block_size": 32},
    "eagle": {**_LLAMA, "architectures": ["LlamaForCausalLM"]},
    "eagle3": {**_LLAMA, "architectures": ["LlamaForCausalLMEagle3"]},
    "peagle": {**_LLAMA, "architectures": ["LlamaForCausalLMEagle3"], "ptd_token_id": 5},
    "dspark-7": {**_DSPARK, "block_size": 7},
    "dspark-own-7": {**_DSPARK, "dspark_block_size": 7},
    "dspark-few": {**_DSPARK, "block_size": 32, "draft_vocab_size": 500},
    "dspark-fill": {**_DSPARK, "block_size": 32, "sample_from_anchor": False},
    "dflash-7": {**_DFLASH, "block_size": 7},
    "dflash-mixed": {
        **_DFLASH,
        "layer_types": ["sliding_attention", "full_attention"],
        "use_sliding_window": True,
        "sliding_window": 128,
    },
    "lilicorr": {**_DFLASH, "architectures": ["LiLiCorrDraftModel"], "block_size": 8},
    "dflash2": {**_DFLASH, "architectures": ["DFlash2DraftModel"]},
    "xpress": {**_DFLASH, "architectures": ["Qwen3XPressModel"]},
    "other-words": {**_SMALL, "vocab_size": 500},
    "medusa": {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "hidden_size": 64,
        "vocab_size": 1000,
        "num_heads": 16,
        "num_hidden_layers": 1,
    },
    **{f"mtp-{k}": {**_MOE, "num_nextn_predict_layers": k} for k in (1, 2, 3)},
}

# The GPUs that are faked; vLLM asks them for nothing else that matters here. A100 and GB10 have the
# memory of a large GPU, and the defaults of a small one.
H100 = "H100"
GPUS = {
    H100: Gpu("NVIDIA H100 80GB HBM3", 80 << 30, (9, 0)),
    "A100": Gpu("NVIDIA A100-SXM4-80GB", 80 << 30, (8, 0)),
    "B200": Gpu("NVIDIA B200", 180 << 30, (10, 0)),
    "GB10": Gpu("NVIDIA GB10", 120 << 30, (12, 1)),
}

# Method → (what the draft is, target), for the draft budget.
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "dflash": ({"method": "dflash", "model": "dflash"}, "target"),
    "dspark": ({"method": "dspark", "model": "dspark"}, "target"),
    "eagle": ({"method": "eagle", "model": "eagle"}, "target"),
    "eagle3": ({"method": "eagle3", "model": "eagle3"}, "target"),
    "eagle3 parallel": (
        {"method": "eagle3", "model": "peagle", "parallel_drafting": True},
        "target",
    ),
    "mtp": ({"method": "mtp"}, "mtp-1"),
    "draft_model": ({"method": "draft_model", "model": "small"}, "target"),
    "draft_model parallel": (
        {"method": "draft_model", "model": "pard", "parallel_drafting": True},
        "target",
    ),
    "medusa": ({"method": "medusa", "model": "medusa"}, "target"),
    "ngram": ({"method": "ngram", "prompt_lookup_max": 4}, "target"),
    "suffix": ({"method": "suffix"}, "target"),
}


def draft(method: str, **more: Any) -> dict[str, Any]:
    """Return the settings of a method of :data:`METHODS`, with further keys of the draft."""
    keys, target = METHODS[method]
    return {"model": target} | {f"{D}{k}": v for k, v in (keys | more).items()}


def group(method: str, kind: str, platform: str, fixed: Mapping[str, Any], **more: Any) -> Group:
    """Return a group."""
    return {"method": method, "kind": kind, "platform": platform, "fixed": dict(fixed), **more}
