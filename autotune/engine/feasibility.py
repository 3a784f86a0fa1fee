"""Facts about this machine, the target and its drafts that :mod:`autotune.engine.rules` reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from autotune.engine.draft_facts import draft_facts
from autotune.engine.probe import VllmInfo
from autotune.engine.rule import Draft, Known
from autotune.engine.rules import known_of
from autotune.study.checkpoints import config_of
from autotune.study.files import LoadedStudy

_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"


def known_for(loaded: LoadedStudy, info: VllmInfo) -> Known:
    """Return the facts for the rules, from this machine and the folders of target and drafts.

    Nothing is downloaded. With ``VLLM_ALLOW_LONG_MAX_MODEL_LEN``, vLLM does not compare
    ``max_model_len`` with the model's, so the model's is left out.

    Args:
        loaded: The study.
        info: The study's vLLM.
    """
    spec, server = loaded.spec, loaded.spec.server
    config = config_of(server.model, loaded.base) or {}
    fp8 = _cpu_has_fp8() if info.device == "cpu" else None
    known = known_of(config, info.device, fp8, info.gpus)
    kind = config.get("model_type")
    known = replace(
        known,
        target=kind if isinstance(kind, str) else None,
        drafts=_drafts(loaded, config),
        v2=chosen_runner({**os.environ, **server.env}),
        load=spec.workload.places,
        allow_throttled=spec.search.allow_throttled,
        draws=spec.workload.temperature > 0,
    )
    longer = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
    if longer in server.env or longer in os.environ:
        drafts = {name: replace(d, model_max_len=None) for name, d in known.drafts.items()}
        return replace(known, model_max_len=None, drafts=drafts)
    return known


def _drafts(loaded: LoadedStudy, target: Mapping[str, object]) -> dict[str | None, Draft]:
    """Return the facts of every draft that a launch of the study may have."""
    found: dict[str | None, Draft] = {None: draft_facts(target)} if target else {}
    names = {draft.model for draft in loaded.spec.server.drafts.values()} - {None}
    for name in names:
        if name is not None and (config := config_of(name, loaded.base)) is not None:
            found[name] = draft_facts(config)
    return found


def chosen_runner(env: Mapping[str, str]) -> bool | None:
    """Return which model runner the environment chooses, as ``envs.py`` reads it."""
    given = env.get(_RUNNER)
    return None if given not in ("0", "1") else given == "1"


def _cpu_has_fp8() -> bool | None:
    """Return whether the CPU has AVX-512 or AMX; None: unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    flags = next((x for x in text.splitlines() if x.startswith("flags")), None)
    if flags is None:
        return None
    return not {"avx512f", "amx_tile"}.isdisjoint(flags.split())
