"""How large a model is, from its ``config.json`` alone: parameters, bytes of weights, KV cache.

Only the architectures of :mod:`autotune.study.shapes` are known, and DFlash drafts of any target;
of any other model nothing is said. What vLLM allocates in addition (activations, CUDA graphs,
blocks that are not full) is left out, so every number of bytes is a lower bound.

============  =======================================================================
notation      meaning
============  =======================================================================
r × c         shape of a matrix: outputs × inputs
b             bits of a weight; 16 without a quantization
g             weights that share a scale: `group_size`; c where a row has one
s             bits of a scale: 16 of int4 (bfloat16), 32 of fp8 (float32), 8 of MXFP4
============  =======================================================================

A matrix has ``r c b / 8 + r c s / (8 g)`` bytes (compressed-tensors: ``pack-quantized`` and
``float-quantized``; MXFP4: OCP Microscaling Formats 1.0, with g = 32).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autotune.study.space import as_int

_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
_LAYER = "model.layers.0"
_SLIDING, _LINEAR = "sliding_attention", "linear_attention"


@dataclass(frozen=True)
class Matrix:
    """Matrices of one shape.

    Attributes:
        name: Name of the first of them in a checkpoint, as a quantization's ``ignore`` sees it.
        rows: Outputs.
        columns: Inputs.
        count: Number of them in the model.
        active: Number of them that one token uses.
        linear: Whether it is a linear layer, which a quantization can cover.
        expert: Whether it is a part of an expert.
        stored: Whether a checkpoint has it; vLLM keeps a second copy of keys that are values, too.
    """

    name: str
    rows: int
    columns: int = 1
    count: int = 1
    active: int | None = None
    linear: bool = False
    expert: bool = False
    stored: bool = True

    @property
    def size(self) -> int:
        """Number of weights of one of them."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Parameters:
    """Number of parameters of a model.

    Attributes:
        total: All of them.
        active: Those that one token uses, without its row of an embedding that is not the head.
    """

    total: int
    active: int


@dataclass(frozen=True)
class KvCache:
    """What a request keeps in the KV cache.

    Attributes:
        full: Elements of keys and values per token, over the layers that see all tokens.
        sliding: The same over the layers that see a window.
        window: Tokens of the window.
        state_bytes: Bytes that a request takes in linear layers, whatever its length.
    """

    full: int
    sliding: int = 0
    window: int = 0
    state_bytes: int = 0

    def per_token(self, element_bytes: int = 2) -> int:
        """Return the bytes that one more token takes, while it is within the window.

        Args:
            element_bytes: Bytes of an element: 1 with an FP8 cache.
        """
        return (self.full + self.sliding) * element_bytes

    def of_request(self, tokens: int, element_bytes: int = 2) -> int:
        """Return the bytes that a request takes.

        Args:
            tokens: Its length with the answer.
            element_bytes: Bytes of an element: 1 with an FP8 cache.
        """
        kept = self.full * tokens + self.sliding * min(tokens, self.window)
        return kept * element_bytes + self.state_bytes


def parameters_of(config: Mapping[str, Any]) -> Parameters | None:
    """Return the number of parameters of a model; None: its architecture is not known.

    Args:
        config: Its ``config.json``.
    """
    found = _matrices(config)
    if found is None:
        return None
    stored = [m for m in found if m.stored]
    return Parameters(
        total=sum(m.size * m.count for m in stored),
        active=sum(m.size * (m.count if m.active is None else m.active) for m in stored),
    )


def weight_bytes(config: Mapping[str, Any]) -> int | None:
    """Return the bytes of a model's weights in vLLM's memory; None: unknown.

    Args:
        config: Its ``config.json``, with its quantization.
    """
    found, bits = _matrices(config), _bits_of(config)
    if found is None or bits is None:
        return None
    return round(sum(m.size * m.count * bits(m) for m in found) / 8)


def kv_cache_of(config: Mapping[str, Any]) -> KvCache | None:
    """Return what a request of a model keeps in the KV cache; None: unknown.

    Args:
        config: Its ``config.json``.
    """
    if _matrices(config) is None:
        return None
    full = sliding = 0
    for kind in _layer_types(config):
        if kind == _LINEAR:
            continue
        heads, width = _kv_heads(config, kind)
        if kind == _SLIDING:
            sliding += 2 * heads * width
        else:
            full += 2 * heads * width
    linear = _layer_types(config).count(_LINEAR)
    window = (as_int(config.get("sliding_window")) or 0) if sliding else 0
    return KvCache(full, sliding, window, linear * _state(config) if linear else 0)


# -- bytes ---------------------------------------------------------------------------------------


def _bits_of(config: Mapping[str, Any]) -> Callable[[Matrix], float] | None:
    """Return a function that gives the bits of a weight of a matrix, with its share of a scale."""
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    plain = 8 * _BYTES.get(str(dtype).removeprefix("torch."), 2)
    match config.get("quantization_config"):
        case None:
            return lambda m: plain
        case {"quant_method": "mxfp4"}:
            return lambda m: 4 + 8 / 32 if m.expert and m.linear else plain
        case {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": int(bits), **more}}},
            **rest,
        }:
            given = rest.get("ignore")
            ignored = [str(x) for x in given] if isinstance(given, list) else []

            def covered(m: Matrix) -> float:
                if not m.linear or _is_ignored(m.name, ignored):
                    return plain
                group = as_int(more.get("group_size")) or m.columns
                return bits + (16 if more.get("type") == "int" else 32) / group

            return covered
    return None


def _is_ignored(name: str, patterns: list[str]) -> bool:
    return any(
        re.match(p.removeprefix("re:"), name) is not None if p.startswith("re:") else p == name
        for p in patterns
    )


# -- matrices ------------------------------------------------------------------------------------


def _matrices(config: Mapping[str, Any]) -> tuple[Matrix, ...] | None:
    """Return the matrices of a model; None: its architecture is not known, or a number missing."""
    names = config.get("architectures")
    kind = config.get("model_type")
    if isinstance(names, list) and names[:1] == ["DFlashDraftModel"]:
        make: Callable[[Mapping[str, Any]], Iterator[Matrix]] | None = _dflash
    else:
        make = _FAMILIES.get(kind) if isinstance(kind, str) else None
    if make is None or (kind == "gemma4_text" and not _is_plain_gemma(config)):
        return None
    try:
        return tuple(make(config))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _is_plain_gemma(config: Mapping[str, Any]) -> bool:
    """Return whether a Gemma 4 has neither per-layer inputs nor shared caches (E2B and E4B do)."""
    keys = ("hidden_size_per_layer_input", "num_kv_shared_layers", "use_double_wide_mlp")
    return "hidden_size_per_layer_input" in config and not any(config.get(k) for k in keys)


def _layer_types(config: Mapping[str, Any]) -> list[str]:
    given, layers = config.get("layer_types"), int(config["num_hidden_layers"])
    return list(given) if isinstance(given, list) else ["full_attention"] * layers


def _head_dim(config: Mapping[str, Any]) -> int:
    given = as_int(config.get("head_dim"))
    return given or int(config["hidden_size"]) // int(config["num_attention_heads"])


def _kv_heads(config: Mapping[str, Any], kind: str) -> tuple[int, int]:
    """Return the number of heads of keys, and the width of each, in a kind of layer."""
    heads, width = int(config["num_key_value_heads"]), _head_dim(config)
    if config.get("model_type") == "gemma4_text" and kind != _SLIDING:
        width = as_int(config.get("global_head_dim")) or 512
        own = as_int(config.get("num_global_key_value_heads"))
        heads = own if own and config.get("attention_k_eq_v") else heads
    return heads, width


def _state(config: Mapping[str, Any]) -> int:
    """Return the bytes of one linear layer's state: a convolution, and a float32 matrix a head."""
    key = int(config["linear_num_key_heads"]) * int(config["linear_key_head_dim"])
    heads, width = int(config["linear_num_value_heads"]), int(config["linear_value_head_dim"])
    tail = int(config["linear_conv_kernel_dim"]) - 1
    matrix = heads * width * int(config["linear_key_head_dim"])
    return (2 * key + heads * width) * tail * 2 + matrix * 4


def _ends(config: Mapping[str, Any]) -> Iterator[Matrix]:
    """Yield the embedding, the last norm, and the head unless it is the embedding."""
    hidden, words = int(config["hidden_size"]), int(config["vocab_size"])
    tied = bool(config.get("tie_word_embeddings"))
    # a token looks up one row; as the head all of it is used
    yield Matrix("model.embed_tokens", words, hidden, active=1 if tied else 0)
    yield Matrix("model.norm", hidden)
    if not tied:
        yield Matrix("lm_head", words, hidden, linear=True)


def _attention(
    config: Mapping[str, Any],
    kind: str,
    count: int,
    *,
    normed: bool,
    gated: bool = False,
    sinks: bool = False,
) -> Iterator[Matrix]:
    """Yield the matrices of attention layers of one kind."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kv_heads, width = _kv_heads(config, kind)
    place = f"{_LAYER}.self_attn"
    copied = config.get("model_type") == "gemma4_text" and kind != _SLIDING
    copied = copied and bool(config.get("attention_k_eq_v"))
    outputs = {
        "q_proj": heads * width * (2 if gated else 1),
        "k_proj": kv_heads * width,
        "v_proj": kv_heads * width,
    }
    for name, rows in outputs.items():
        stored = not (copied and name == "v_proj")
        yield Matrix(f"{place}.{name}", rows, hidden, count, linear=True, stored=stored)
    yield Matrix(f"{place}.o_proj", hidden, heads * width, count, linear=True)
    if config.get("attention_bias"):
        yield Matrix(f"{place}.bias", sum(outputs.values()) + hidden, 1, count)
    if normed:
        yield Matrix(f"{place}.norms", 2 * width, 1, count)
    if sinks:
        yield Matrix(f"{place}.sinks", heads, 1, count)


def _mlp(place: str, hidden: int, inner: int, count: int) -> Iterator[Matrix]:
    for name in ("gate_proj", "up_proj"):
        yield Matrix(f"{place}.{name}", inner, hidden, count, linear=True)
    yield Matrix(f"{place}.down_proj", hidden, inner, count, linear=True)


def _experts(
    place: str, hidden: int, inner: int, layers: int, each: int, used: int
) -> Iterator[Matrix]:
    for m in _mlp(f"{place}.0", hidden, inner, layers * each):
        yield Matrix(m.name, m.rows, m.columns, m.count, layers * used, linear=True, expert=True)


def _dense(config: Mapping[str, Any]) -> Iterator[Matrix]:
    """Yield the matrices of a Llama or Qwen3."""
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    yield from _ends(config)
    yield from _blocks(config, normed=config.get("model_type") == "qwen3")
    if config.get("mlp_bias"):
        yield Matrix(f"{_LAYER}.mlp.bias", 2 * int(config["intermediate_size"]) + hidden, 1, layers)


def _blocks(config: Mapping[str, Any], *, normed: bool) -> Iterator[Matrix]:
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    yield from _attention(config, "full_attention", layers, normed=normed)
    yield from _mlp(f"{_LAYER}.mlp", hidden, int(config["intermediate_size"]), layers)
    yield Matrix(f"{_LAYER}.norms", 2 * hidden, 1, layers)


def _dflash(config: Mapping[str, Any]) -> Iterator[Matrix]:
    """Yield the matrices of a DFlash draft, which has the target's embedding and head."""
    hidden = int(config["hidden_size"])
    read = config["dflash_config"]["target_layer_ids"]
    wide = as_int(config.get("target_hidden_size")) or hidden
    yield Matrix("fc", hidden, len(read) * wide)
    yield Matrix("norms", 2 * hidden)
    yield from _blocks(config, normed=True)


def _gemma4(config: Mapping[str, Any]) -> Iterator[Matrix]:
    hidden, kinds = int(config["hidden_size"]), _layer_types(config)
    layers = len(kinds)
    yield from _ends(config)
    for kind in sorted(set(kinds)):
        yield from _attention(config, kind, kinds.count(kind), normed=True)
    yield from _mlp(f"{_LAYER}.mlp", hidden, int(config["intermediate_size"]), layers)
    yield Matrix(f"{_LAYER}.norms", 4 * hidden, 1, layers)
    if experts := as_int(config.get("num_experts")):
        inner, used = int(config["moe_intermediate_size"]), int(config["top_k_experts"])
        yield from _experts(f"{_LAYER}.experts", hidden, inner, layers, experts, used)
        yield Matrix(f"{_LAYER}.router.proj", experts, hidden, layers, linear=True)
        yield Matrix(f"{_LAYER}.router.scales", hidden + experts, 1, layers)
        yield Matrix(f"{_LAYER}.expert_norms", 3 * hidden, 1, layers)


def _qwen3_5(config: Mapping[str, Any]) -> Iterator[Matrix]:
    hidden, kinds = int(config["hidden_size"]), _layer_types(config)
    layers, linear = len(kinds), kinds.count(_LINEAR)
    yield from _ends(config)
    yield from _attention(config, "full_attention", layers - linear, normed=True, gated=True)
    yield from _gated_delta_net(config, linear)
    yield Matrix(f"{_LAYER}.norms", 2 * hidden, 1, layers)
    experts = as_int(config.get("num_experts"))
    if not experts:
        yield from _mlp(f"{_LAYER}.mlp", hidden, int(config["intermediate_size"]), layers)
        return
    inner, used = int(config["moe_intermediate_size"]), int(config["num_experts_per_tok"])
    yield from _experts(f"{_LAYER}.mlp.experts", hidden, inner, layers, experts, used)
    yield Matrix(f"{_LAYER}.mlp.gate", experts, hidden, layers, linear=True)
    shared = int(config["shared_expert_intermediate_size"])
    yield from _mlp(f"{_LAYER}.mlp.shared_expert", hidden, shared, layers)
    yield Matrix(f"{_LAYER}.mlp.shared_expert_gate", 1, hidden, layers, linear=True)


def _gated_delta_net(config: Mapping[str, Any], count: int) -> Iterator[Matrix]:
    """Yield the matrices of linear layers (transformers: Qwen3_5GatedDeltaNet)."""
    hidden, heads = int(config["hidden_size"]), int(config["linear_num_value_heads"])
    key = int(config["linear_num_key_heads"]) * int(config["linear_key_head_dim"])
    value = heads * int(config["linear_value_head_dim"])
    place = f"{_LAYER}.linear_attn"
    rows = {"in_proj_qkv": 2 * key + value, "in_proj_z": value, "in_proj_b": heads}
    for name, outputs in {**rows, "in_proj_a": heads}.items():
        yield Matrix(f"{place}.{name}", outputs, hidden, count, linear=True)
    yield Matrix(f"{place}.out_proj", hidden, value, count, linear=True)
    yield Matrix(f"{place}.conv1d", 2 * key + value, int(config["linear_conv_kernel_dim"]), count)
    rest = 2 * heads + int(config["linear_value_head_dim"])  # dt_bias, A_log, norm
    yield Matrix(f"{place}.rest", rest, 1, count)


def _gpt_oss(config: Mapping[str, Any]) -> Iterator[Matrix]:
    hidden, kinds = int(config["hidden_size"]), _layer_types(config)
    layers, inner = len(kinds), int(config["intermediate_size"])
    experts, used = int(config["num_local_experts"]), int(config["num_experts_per_tok"])
    yield from _ends(config)
    yield from _attention(config, "full_attention", layers, normed=False, sinks=True)
    yield Matrix(f"{_LAYER}.norms", 2 * hidden, 1, layers)
    yield from _experts(f"{_LAYER}.mlp.experts", hidden, inner, layers, experts, used)
    bias = 2 * inner + hidden
    yield Matrix(f"{_LAYER}.mlp.experts.bias", bias, 1, layers * experts, layers * used)
    yield Matrix(f"{_LAYER}.mlp.router", experts, hidden, layers)
    yield Matrix(f"{_LAYER}.mlp.router.bias", experts, 1, layers)


_FAMILIES: dict[str, Callable[[Mapping[str, Any]], Iterator[Matrix]]] = {
    "llama": _dense,
    "qwen3": _dense,
    "gemma4_text": _gemma4,
    "qwen3_5_text": _qwen3_5,
    "qwen3_5_moe_text": _qwen3_5,
    "gpt_oss": _gpt_oss,
}
