"""What the ``config.json`` of a draft tells the rules.

In speculators format vLLM rewrites some keys (``transformers_utils/configs/speculators/algos.py``,
0.27.0 and 0.33.0): a DSpark draft starts from a bonus token unless ``sample_from_anchor`` says
otherwise, while in its own format it starts from the anchor (``config/vllm.py:
num_lookahead_tokens``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.engine.draft_method import tokens_of_head
from autotune.engine.rule import Draft
from autotune.engine.rules import known_of
from autotune.study.checkpoints import speculators_of
from autotune.study.space import as_int

# Models for which no version has a head (config/speculative.py: hf_config_override), unless
# Transformers' own implementation of them has one.
_HEADLESS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_INKLING = frozenset({"inkling_mm_model", "inkling_model", "inkling_mtp"})


def draft_facts(config: Mapping[str, Any]) -> Draft:
    """Return the facts of a draft.

    Args:
        config: Its ``config.json``, or that of the target for a head in the target's checkpoint.
    """
    speculators = speculators_of(config)
    inner = config.get("transformer_layer_config") if speculators is not None else None
    layers: Mapping[str, Any] = inner if isinstance(inner, Mapping) else config
    kind, names = config.get("model_type"), config.get("architectures")
    anchor = config.get("sample_from_anchor", speculators is None)
    kinds = layers.get("layer_types")
    sliding = {x == "sliding_attention" for x in kinds} if isinstance(kinds, list) else set()
    return Draft(
        kind=kind if isinstance(kind, str) else None,
        architectures=frozenset(x for x in names if isinstance(x, str))
        if isinstance(names, list)
        else frozenset(),
        block=_block(config),
        dspark_block=as_int(config.get("dspark_block_size")),
        head_tokens=_head_tokens(config),
        headless=isinstance(kind, str)
        and names == [_HEADLESS.get(kind)]
        and config.get("num_mtp_layers") is None,
        one_token=_one_token(config),
        from_anchor=anchor if isinstance(anchor, bool) else None,
        length=as_int(layers.get("max_position_embeddings")),
        model_max_len=None if speculators else known_of(config, None, None).model_max_len,
        mixed=len(sliding) == 2,
        vocabulary=as_int(config.get("vocab_size")) if "text_config" not in config else None,
        drafted_vocabulary=_drafted(config) if speculators is None else None,
    )


def _drafted(config: Mapping[str, Any]) -> int | None:
    return as_int(config.get("draft_vocab_size")) or as_int(config.get("vocab_size"))


def _block(config: Mapping[str, Any]) -> int | None:
    """Return the trained block size, as vLLM looks for it: in the inner mapping first."""
    for section in ("dflash_config", "eagle_config"):
        inner = config.get(section)
        if isinstance(inner, Mapping) and (size := as_int(inner.get("block_size"))) is not None:
            return size
    return as_int(config.get("block_size"))


def _head_tokens(config: Mapping[str, Any]) -> int | None:
    if config.get("model_type") in _INKLING:
        inner = config.get("mtp_config")
        depth = as_int(inner.get("num_nextn_predict_layers")) if isinstance(inner, Mapping) else 0
        return depth if depth else None
    return tokens_of_head(config)


def _one_token(config: Mapping[str, Any]) -> bool:
    """Return whether it is the head of Parse 3.5, with one trained step."""
    names, decoder = config.get("architectures"), config.get("decoder")
    return (
        isinstance(names, list)
        and names[:1] == ["RadioMBartPrefixForCausalLM"]
        and isinstance(decoder, Mapping)
        and decoder.get("causal_vision_prefix") is True
    )
