"""The target as a teacher: a Llama in plain torch, from an ordinary checkpoint folder.

It gives what a draft learns from: the residual stream after some of its layers, of whole sequences
at once, and next-token logits over a cache, for writing the sequences. Plain functions over plain
tensors, so that `torch.compile` can have a layer by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from autotune.errors import UserError

MOST_POSITIONS = 4096
BUCKET = 64  # keys are read in whole buckets: few shapes
_FILLED = 2**16  # tokens that are read at once

Config = Mapping[str, Any]  # a config.json


class Geometry(NamedTuple):
    """Heads of an attention layer, and the epsilon of its norms."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float


class TargetWeights(NamedTuple):
    """A layer's weights, projections of the same input fused."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    o: torch.Tensor
    post_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


TargetLayer = Callable[..., torch.Tensor]


def rope_theta(config: Config) -> float:
    """Base of the rotary embedding; transformers 5 writes it below `rope_parameters`."""
    return float(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])


def rope_table(
    head_dim: int, theta: float, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine by position, [MOST_POSITIONS, head_dim] each, both halves alike."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    positions = torch.arange(MOST_POSITIONS, dtype=torch.float32, device=device)
    angles = torch.outer(positions, 1.0 / theta ** (steps / head_dim))
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the halves of the last axis against each other (GPT-NeoX's way, not interleaved)."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def target_layer(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, w: TargetWeights, g: Geometry
) -> torch.Tensor:
    """One causal decoder layer over whole sequences, x [rows, length, hidden]."""
    return _layer_and_keys(x, cos, sin, w, g)[0]


def _layer_and_keys(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, w: TargetWeights, g: Geometry
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a layer makes of x, and its keys and values [rows, kv_heads, length, head_dim]."""
    rows, length, hidden = x.shape
    h = F.rms_norm(x, (hidden,), w.input_norm, g.eps)
    q, k, v = (
        (h @ w.qkv.t())
        .view(rows, length, g.heads + 2 * g.kv_heads, g.head_dim)
        .split([g.heads, g.kv_heads, g.kv_heads], 2)
    )
    cos, sin = cos[None, :, None], sin[None, :, None]
    q, k, v = (
        rope(q, cos, sin).transpose(1, 2),
        rope(k, cos, sin).transpose(1, 2),
        v.transpose(1, 2),
    )
    group = g.heads // g.kv_heads
    o = F.scaled_dot_product_attention(
        q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), is_causal=True
    )
    x = x + o.transpose(1, 2).reshape(rows, length, g.heads * g.head_dim) @ w.o.t()
    return _mlp(x, w, g), k, v


def _mlp(x: torch.Tensor, w: TargetWeights, g: Geometry) -> torch.Tensor:
    h = F.rms_norm(x, (x.shape[-1],), w.post_norm, g.eps)
    gate, up = (h @ w.gate_up.t()).chunk(2, -1)
    return x + (F.silu(gate) * up) @ w.down.t()


class Target:
    """A Llama with tied embeddings.

    Attributes:
        config: Its config.json.
        embedding: [vocabulary, hidden], the output head too; the draft uses both.
        norm: The last norm's weight.
        layers: The weights of each layer.
    """

    def __init__(
        self,
        config: Config,
        state: Mapping[str, torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self.hidden, self.vocabulary = config["hidden_size"], config["vocab_size"]
        heads = config["num_attention_heads"]
        self.geometry = Geometry(
            heads,
            config["num_key_value_heads"],
            config.get("head_dim") or self.hidden // heads,
            config["rms_norm_eps"],
        )

        def get(name: str) -> torch.Tensor:
            return state[name].to(device=device, dtype=dtype).contiguous()

        self.embedding, self.norm = get("model.embed_tokens.weight"), get("model.norm.weight")
        self.layers = []
        for i in range(config["num_hidden_layers"]):
            of = f"model.layers.{i}."
            self.layers.append(
                TargetWeights(
                    get(of + "input_layernorm.weight"),
                    torch.cat([get(of + f"self_attn.{x}_proj.weight") for x in "qkv"]),
                    get(of + "self_attn.o_proj.weight"),
                    get(of + "post_attention_layernorm.weight"),
                    torch.cat([get(of + f"mlp.{x}_proj.weight") for x in ("gate", "up")]),
                    get(of + "mlp.down_proj.weight"),
                )
            )
        self.cos, self.sin = rope_table(self.geometry.head_dim, rope_theta(config), device, dtype)

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> Target:
        """Reads a checkpoint folder.

        Raises:
            UserError: the folder holds no Llama with tied embeddings in safetensors.
        """
        from safetensors.torch import load_file

        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: is no checkpoint folder (no config.json)")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") != "llama" or not config.get("tie_word_embeddings"):
            raise UserError(
                f"{folder}: training knows Llama models with tied embeddings only, such as "
                f"demo:target; this is {config.get('model_type')}"
            )
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            raise UserError(f"{folder}: has no *.safetensors; convert the weights to them")
        state: dict[str, torch.Tensor] = {}
        for shard in shards:
            state.update(load_file(shard))
        return cls(config, state, device, dtype)

    def streams(
        self, ids: torch.Tensor, layers: Sequence[int], layer: TargetLayer = target_layer
    ) -> torch.Tensor:
        """The residual stream after each of ``layers`` (from 0), side by side.

        vLLM counts the embedding as 0 and so adds 1 to these numbers; no norm is applied.

        Args:
            ids: Tokens [rows, length].
            layers: Which layers, ascending.
            layer: `target_layer`, or what was compiled of it.

        Returns:
            [rows, length, hidden · len(layers)].
        """
        length = ids.shape[1]
        with torch.no_grad():
            x = F.embedding(ids, self.embedding)
            found = []
            for i in range(max(layers) + 1):
                x = layer(x, self.cos[:length], self.sin[:length], self.layers[i], self.geometry)
                if i in layers:
                    found.append(x)
            return torch.cat(found, -1)


class Cache:
    """Keys and values of rows that are all at the same position.

    Args:
        target: Whose.
        rows: Sequences written side by side.
        length: The most positions of one.
    """

    def __init__(self, target: Target, rows: int, length: int) -> None:
        self.target, self.rows, self.length = target, rows, length
        g = target.geometry
        shape = (len(target.layers), rows, g.kv_heads, length, g.head_dim)
        self.keys = torch.zeros(shape, device=target.device, dtype=target.dtype)
        self.values = torch.zeros_like(self.keys)

    def fill(self, tokens: torch.Tensor) -> None:
        """Puts the same number of tokens into each row, from position 0, in one go."""
        t, length = self.target, tokens.shape[1]
        step = max(1, _FILLED // length)
        for at in range(0, self.rows, step):
            part = slice(at, at + step)
            x = F.embedding(tokens[part], t.embedding)
            for i, w in enumerate(t.layers):
                x, k, v = _layer_and_keys(x, t.cos[:length], t.sin[:length], w, t.geometry)
                self.keys[i, part, :, :length], self.values[i, part, :, :length] = k, v

    def keep(self, rows: torch.Tensor) -> None:
        """Forgets all rows but these."""
        self.rows = len(rows)
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]

    def logits(self, tokens: torch.Tensor, position: int) -> torch.Tensor:
        """Puts one token of each row at ``position``; returns what follows, [rows, vocabulary]."""
        t, g, rows = self.target, self.target.geometry, self.rows
        group, span = (
            g.heads // g.kv_heads,
            min(self.length, position // BUCKET * BUCKET + BUCKET),
        )
        cos, sin = t.cos[position], t.sin[position]
        later = torch.arange(span, device=t.device) > position
        mask = torch.zeros(group, span, device=t.device, dtype=t.dtype)
        mask = mask.masked_fill_(later, float("-inf")).expand(rows, g.kv_heads, -1, -1)
        x = F.embedding(tokens, t.embedding)
        for i, w in enumerate(t.layers):
            h = F.rms_norm(x, (t.hidden,), w.input_norm, g.eps)
            qkv = (h @ w.qkv.t()).view(rows, g.heads + 2 * g.kv_heads, g.head_dim)
            qk = rope(qkv[:, : g.heads + g.kv_heads], cos, sin)
            self.keys[i, :, :, position] = qk[:, g.heads :]
            self.values[i, :, :, position] = qkv[:, g.heads + g.kv_heads :]
            # the query heads of one key head take the place of queries
            q = qk[:, : g.heads].reshape(rows, g.kv_heads, group, g.head_dim)
            o = F.scaled_dot_product_attention(
                q, self.keys[i][:, :, :span], self.values[i][:, :, :span], attn_mask=mask
            )
            x = _mlp(x + o.reshape(rows, g.heads * g.head_dim) @ w.o.t(), w, g)
        return F.rms_norm(x, (t.hidden,), t.norm, g.eps) @ t.embedding.t()
