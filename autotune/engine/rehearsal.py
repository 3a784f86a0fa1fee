"""What a launch of a rehearsal adds to a server's environment, and what production leaves out.

vLLM's load format ``dummy`` leaves packed integers (W4 and the like) as they lie in memory
(``model_executor/model_loader/weight_utils.py: initialize_dummy_weights``). The folder
``rehearsal_plugin`` has a general plugin of vLLM, which only launches of a rehearsal have on their
``PYTHONPATH``. It takes the place of that load format and fills them from a seed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotune.engine.feasibility import chosen_runner
from autotune.engine.probe import VllmInfo
from autotune.engine.rule import minor_of
from autotune.study.checkpoints import config_of
from autotune.study.containers import is_container
from autotune.study.files import LoadedStudy
from autotune.study.rehearsal import (
    BY_WEIGHTS,
    DRAFT_LOAD,
    DUMMY,
    LENGTH,
    RATES,
    ROUTING_VARIABLE,
    SYNTHETIC,
    experts_in,
)
from autotune.study.schema import ServerSpec
from autotune.study.space import DRAFT
from autotune.study.speculative import ADAPTIVE, REJECTION

PLUGIN = Path(__file__).with_name("rehearsal_plugin")
PLUGIN_NAME = "autotune_rehearsal"
LABEL_VARIABLE = "AUTOTUNE_REHEARSAL"  # what of the launch is real: each kept launch says so
SEED_VARIABLE = "AUTOTUNE_REHEARSAL_SEED"
PLUGINS_VARIABLE = "VLLM_PLUGINS"  # names of the plugins that are loaded; not set: all
_PATH = "PYTHONPATH"
# Methods whose drafts are loaded as the target in every version, and the first version in which
# those of the others have a load format of their own on model runner V2.
_OWN_LOADERS = {"draft_model", "medusa"}
_ON_V2 = (0, 31)
# First version whose routers are known to ask the variable (read in 0.26 and 0.32).
_ROUTED_SINCE = (0, 26)
_OWN = "autotune_"  # how the plugin's strategies begin
_FLAG = "--load-format"
_DRAFT = "--speculative-config"


def rehearsing(server: ServerSpec, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a launch of a rehearsal adds; empty: it is none.

    Args:
        server: The study's server.
        env: Environment that they are added to; its ``PYTHONPATH`` stays in effect.
    """
    how = server.played
    if how is None:
        return {}
    found = {LABEL_VARIABLE: how.label}
    routed = how.routing != BY_WEIGHTS
    if routed:
        found[ROUTING_VARIABLE] = f"{_OWN}{how.routing}"
    if how.target or how.draft:
        found[SEED_VARIABLE] = str(how.seed)
    if how.target or how.draft or routed:
        path = [str(PLUGIN), *([env[_PATH]] if env.get(_PATH) else [])]
        found[_PATH] = os.pathsep.join(path)
        if PLUGINS_VARIABLE in env:
            names = filter(None, (env[PLUGINS_VARIABLE], PLUGIN_NAME))
            found[PLUGINS_VARIABLE] = ",".join(names)
    return found


def why_not_here(server: ServerSpec, info: VllmInfo) -> str | None:
    """Return why a vLLM cannot run a rehearsal, key first; None: it can, or there is none.

    Args:
        server: The study's server.
        info: Its vLLM.
    """
    how = server.played
    if how is None:
        return None
    if how.curves is not None and info.device == "cpu":
        return (
            f"rehearsal.acceptance: vLLM {info.version} has no synthetic acceptance on a CPU: the "
            "first request would end the engine. Rehearse on a GPU, or leave acceptance out: "
            "drafts are then really verified"
        )
    if why := why_loaded_alike(server, info):
        return why
    if (how.target or how.draft) and is_container(server.command or ()):
        return (
            "rehearsal.weights: dummy weights need a plugin of vLLM that autotune does not bring "
            "into containers; start vLLM without one"
        )
    return why_not_routed(server, info)


def why_not_routed(server: ServerSpec, info: VllmInfo) -> str | None:
    """Return why a vLLM cannot route tokens as a rehearsal says, key first; None: it can.

    Args:
        server: The study's server.
        info: Its vLLM.
    """
    if server.played is None or server.played.routing == BY_WEIGHTS:
        return None
    minor = minor_of(info.version)
    if minor is not None and minor < _ROUTED_SINCE:
        return (
            f"rehearsal.routing: vLLM {info.version} may not route tokens as it is told; take "
            "0.26 or later, or leave routing out"
        )
    if is_container(server.command or ()):
        return (
            "rehearsal.routing: needs a plugin of vLLM that autotune does not bring into "
            "containers; start vLLM without one, or leave routing out"
        )
    if info.device == "cpu" and server.flags.get("enforce_eager") is not True:
        # there the router is traced into the model's graph, which ends at vLLM's own log line
        return (
            "rehearsal.routing: on a CPU vLLM cannot compile a model whose tokens it routes as it "
            "is told; set enforce-eager: true in server.flags, or leave routing out"
        )
    return None


def why_no_experts(loaded: LoadedStudy, info: VllmInfo) -> str | None:
    """Return why a model cannot be routed as a rehearsal says, key first; None: it may.

    A model that is not on this disk yet is vLLM's to judge.

    Args:
        loaded: The study.
        info: Its vLLM.
    """
    server = loaded.spec.server
    if server.played is None or server.played.routing == BY_WEIGHTS:
        return None
    config = config_of(server.model, loaded.base)
    if config is None:
        return None
    if (experts_in(config) or (1, 1))[0] < 2:
        return (
            f"rehearsal.routing: {server.model} is no mixture of experts, so there is nothing to "
            "route; leave routing out"
        )
    if info.device == "cpu" and config.get("quantization_config"):
        # (0.32: fused_moe/experts/cpu_int4_moe.py)
        return (
            f"rehearsal.routing: on a CPU vLLM {info.version} routes quantized experts inside "
            "their kernel; take a model without quantization, or leave routing out"
        )
    return None


def why_loaded_alike(server: ServerSpec, info: VllmInfo) -> str | None:
    """Return why a vLLM would load the draft as it loads the target, key first; None: it does not.

    ``draft_load_config`` counts on model runner V1 (``v1/spec_decode/llm_base_proposer.py``), and
    since 0.31 on V2, too (``v1/worker/gpu/spec_decode/``, read in 0.26, 0.29 to 0.32). A draft
    model and Medusa have loaders of their own, which never ask for it. A key that is ignored would
    make every label of the rehearsal wrong.

    Args:
        server: The study's server.
        info: Its vLLM.
    """
    how, draft = server.played, server.speculative
    if how is None or draft is None or how.target == how.draft:
        return None
    both = "random weights of both (`weights: dummy`)"
    if draft.method in _OWN_LOADERS:
        return (
            f"rehearsal.weights: method {draft.method} loads the draft as the target: take {both}"
        )
    minor = minor_of(info.version)
    runs_v1 = info.device == "cpu" or chosen_runner({**os.environ, **server.env}) is False
    if minor is None or minor >= _ON_V2 or runs_v1:
        return None
    return (
        f"rehearsal.weights: vLLM {info.version} loads the draft as the target on model runner V2: "
        f'take {both}, or set VLLM_USE_V2_MODEL_RUNNER: "0" in server.env'
    )


def why_not_rehearsed(server: ServerSpec, settings: Mapping[str, object]) -> str | None:
    """Return why a launch cannot be rehearsed; None: it can, or is none of a rehearsal.

    Args:
        server: The study's server.
        settings: Settings of the launch.
    """
    how = server.played
    if how is None or how.curves is None or settings.get(f"{DRAFT}{ADAPTIVE}") is not True:
        return None
    return (
        "adaptive verification goes by what the draft itself expects, which a given acceptance "
        "says nothing of"
    )


def without_rehearsal(
    flags: Sequence[tuple[str, ...]],
) -> tuple[tuple[str, ...], ...]:
    """Return the flags of a launch of a rehearsal without what only a rehearsal has.

    Args:
        flags: Flags, each with its values.
    """
    out = []
    for name, *values in flags:
        if name == _FLAG and values == [DUMMY]:
            continue
        out.append((name, *(_real(values) if name == _DRAFT else values)))
    return tuple(out)


def _real(values: Sequence[str]) -> list[str]:
    """Return the value of ``--speculative-config`` without synthetic acceptance."""
    try:
        config = json.loads(" ".join(values))
    except ValueError:
        return list(values)
    if not isinstance(config, dict):
        return list(values)
    own = {RATES, LENGTH, DRAFT_LOAD} | (
        {REJECTION} if config.get(REJECTION) == SYNTHETIC else set()
    )
    return [json.dumps({k: v for k, v in config.items() if k not in own})]


def without_plugin(path: str) -> str:
    """Return a ``PYTHONPATH`` without the plugin's folder, of any installation of autotune."""
    return os.pathsep.join(p for p in path.split(os.pathsep) if Path(p).name != PLUGIN.name)
