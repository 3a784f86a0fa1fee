"""What only launches of a rehearsal have: a general plugin of vLLM.

It fills the weights of the load format ``dummy``, and gives tokens their experts where a study
says how.

vLLM fills floating-point weights with small random numbers, the same for every start, and leaves
integers as they lie in memory (``model_executor/model_loader/weight_utils.py``, 0.26 and 0.32).
Packed weights of 4 bits are such integers. What lies in memory differs between starts, and zeros
can cost a GPU less power than weights do. So here they are filled from a seed.

Only launches of a rehearsal have this folder on their ``PYTHONPATH``. It runs in the user's Python
with vLLM, so it uses nothing of autotune. It keeps the name ``dummy``, because vLLM asks for that
name elsewhere (0.32: ``config/vllm.py``, ``models/minimax_m3``); the log names the class.

For the experts it adds two strategies to those of vLLM's variable for it, which is read where the
router of a layer is made (``fused_moe/router/router_factory.py``, the same in 0.26 and 0.32).
vLLM's own ``uniform_random`` draws in every layer of every step, which takes several kernels a
layer, and in 0.26 an expert twice for one token. Here a layer copies rows of a table that is made
once.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from typing import Any

SEED_VARIABLE = "AUTOTUNE_REHEARSAL_SEED"
LOAD_FORMAT = "dummy"
# Parameters that are no weights, by a part of their name: orders, shapes, and where experts are.
_NO_WEIGHTS = ("idx", "index", "indices", "shape", "map", "perm", "offset")
_GROUPS = "g_idx"  # group of each row; garbage would be read as an address
# Of scales in E8M0, which are bytes with the value 2^(x - 127): 2^-12. With weights of 4 bits it
# gives the size of vLLM's own dummy weights. 255 would be NaN.
_SCALE = 115

_BUFFERS = "_build_fused_kv_buffers"

ROUTING_VARIABLE = "VLLM_MOE_ROUTING_SIMULATION_STRATEGY"
UNIFORM, COLLAPSED = "autotune_uniform", "autotune_collapsed"
_ROWS = 1 << 14  # of the table; more where more tokens come at once
_APART = 16  # rows from the experts of one layer to those of the next, which keeps memory aligned

_log = logging.getLogger(f"vllm.{__name__}")  # vLLM shows the loggers below its own


def register() -> None:
    """Take the places that the launch asks for; vLLM calls it in each of its processes."""
    if (seed := os.environ.get(SEED_VARIABLE)) is not None:
        _fill_dummies(int(seed))
    if (routing := os.environ.get(ROUTING_VARIABLE, "").lower()) in (UNIFORM, COLLAPSED):
        from vllm.model_executor.layers.fused_moe.router.routing_simulator_router import (
            RoutingSimulator,
        )

        RoutingSimulator.register_strategy(routing, Routing(collapsed=routing == COLLAPSED))


def _fill_dummies(seed: int) -> None:
    """Put the loader in the place of vLLM's own."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    class SeededDummyLoader(DummyModelLoader):  # type: ignore[misc]
        """vLLM's random weights, and packed integers from a seed."""

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Fill every weight of a model; what vLLM does to weights afterwards comes after it."""
            super().load_weights(model, model_config)
            tensors, size = fill(model, seed)
            for module in model.modules():
                # DFlash drafts do this at the end of a real load. vLLM makes up for it at the
                # first use, when a CPU's weights are packed and gone (0.32: qwen3_dflash.py).
                if not hasattr(module, "_num_attn_layers") and hasattr(module, _BUFFERS):
                    getattr(module, _BUFFERS)()
            _log.info(
                "autotune rehearsal: load format %s by %s: %d tensors of packed integers "
                "(%.2f GiB) filled from seed %d",
                LOAD_FORMAT,
                type(self).__name__,
                tensors,
                size / 2**30,
                seed,
            )

    register_model_loader(LOAD_FORMAT)(SeededDummyLoader)


def experts_of(rows: int, experts: int, top_k: int, *, collapsed: bool, device: Any = None) -> Any:
    """Return the experts of each token, ``[rows, top_k]`` of int64; a token has none twice.

    Evenly routed, each token begins at a hashed expert and goes on in equal strides, so that any
    expert is a token's with the probability ``top_k / experts``, and tokens are independent: T of
    them touch ``experts * (1 - (1 - top_k / experts) ** T)`` on average.

    Args:
        rows: Number of tokens.
        experts: Number of experts of a layer.
        top_k: Experts of each token, at most ``experts``.
        collapsed: Whether all tokens have the same ones, instead of evenly routed.
        device: Device of the result; None: the CPU.
    """
    import torch

    place = torch.arange(top_k, device=device)
    if collapsed:
        return place.expand(rows, top_k).contiguous()
    stride = next(s for s in range(max(1, round(0.618 * experts)), 0, -1) if _coprime(s, experts))
    x = (torch.arange(rows, device=device) + 1) * 0x9E3779B1 & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x85EBCA6B) & 0xFFFFFFFF  # of two factors below 2^32, modulo 2^64
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return ((x ^ (x >> 16))[:, None] + place * stride) % experts


def _coprime(a: int, b: int) -> bool:
    return math.gcd(a, b) == 1


class Routing:
    """A strategy of vLLM's ``RoutingSimulator``: even routing, or the same experts for all."""

    def __init__(self, *, collapsed: bool) -> None:
        """Keep no table yet: the numbers of experts come with the first tokens."""
        self._collapsed = collapsed
        self._tables: dict[object, Any] = {}
        self._calls = 0

    def route_tokens(
        self, hidden_states: Any, router_logits: Any, top_k: int, indices_type: Any = None
    ) -> tuple[Any, Any]:
        """Return the weights and the experts of tokens, both ``[tokens, top_k]``.

        A captured graph keeps the rows of each of its layers; other layers have other rows.

        Args:
            hidden_states: Tokens, ``[tokens, width]``.
            router_logits: What the router of the model says, ``[tokens, experts]``.
            top_k: Experts of each token.
            indices_type: Type of the experts' numbers; None: int32.
        """
        import torch

        tokens, device = hidden_states.shape[0], hidden_states.device
        # as the routers themselves have it, and as kernels want it
        dtype = torch.int32 if indices_type is None else indices_type
        weights = torch.full((tokens, top_k), 1 / top_k, dtype=torch.float32, device=device)
        wanted, how = router_logits.shape[-1], {"collapsed": self._collapsed, "device": device}
        if device.type == "cpu":  # traced into the model's own graph there, so nothing is kept
            return weights, experts_of(tokens, wanted, top_k, **how).to(dtype)
        key = (wanted, top_k, dtype, device)
        table = self._tables.get(key)
        if table is None or table.shape[0] < tokens + _APART:
            table = experts_of(max(_ROWS, 2 * tokens), wanted, top_k, **how).to(dtype)
            self._tables[key] = table
        self._calls += 1
        first = self._calls * _APART % (table.shape[0] - tokens) // _APART * _APART
        return weights, table[first : first + tokens].clone()


def fill(model: Any, seed: int) -> tuple[int, int]:
    """Fill the integer weights of a model; return how many tensors and bytes they are.

    What a tensor gets depends on the seed and its name, not on the order.

    Args:
        model: A ``torch.nn.Module``; its floating-point parameters stay as they are.
        seed: Seed of all.
    """
    import torch

    packed = {torch.int32: (-(2**31), 2**31), torch.int8: (-128, 128), torch.uint8: (0, 256)}
    tensors = size = 0
    with torch.no_grad():
        for name, p in model.named_parameters():
            leaf = name.rpartition(".")[2]
            own = getattr(p, "dummy_weight_value", None) is not None  # vLLM has filled it
            if p.dtype not in packed or own or p.device.type == "meta":
                continue
            if _GROUPS in leaf:
                p.zero_()
            elif any(word in leaf for word in _NO_WEIGHTS):
                continue
            elif "scale" in leaf and p.dtype == torch.uint8:
                p.fill_(_SCALE)
            elif p.dim() >= 2:
                generator = torch.Generator(device=p.device)
                digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
                generator.manual_seed(int.from_bytes(digest[:7], "big"))
                low, high = packed[p.dtype]
                p.random_(low, high, generator=generator)
                tensors, size = tensors + 1, size + p.numel() * p.element_size()
    return tensors, size
