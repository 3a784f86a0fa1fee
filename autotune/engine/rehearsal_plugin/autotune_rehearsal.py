"""Random integer weights for rehearsals: a general plugin of vLLM for its load format ``dummy``.

vLLM fills floating-point weights with small random numbers, the same for every start, and leaves
integers as they lie in memory (``model_executor/model_loader/weight_utils.py``, 0.26 and 0.32).
Packed weights of 4 bits are such integers. What lies in memory differs between starts, and zeros
can cost a GPU less power than weights do. So here they are filled from a seed.

Only launches of a rehearsal have this folder on their ``PYTHONPATH``. It runs in the user's Python
with vLLM, so it uses nothing of autotune. It keeps the name ``dummy``, because vLLM asks for that
name elsewhere (0.32: ``config/vllm.py``, ``models/minimax_m3``); the log names the class.
"""

from __future__ import annotations

import hashlib
import logging
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

_log = logging.getLogger(f"vllm.{__name__}")  # vLLM shows the loggers below its own


def register() -> None:
    """Put the loader in the place of vLLM's own; vLLM calls it in each of its processes."""
    given = os.environ.get(SEED_VARIABLE)
    if given is None:
        return
    seed = int(given)
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
