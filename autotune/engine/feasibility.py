"""Facts about this machine and the target that :mod:`autotune.engine.rules` reads."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from autotune.engine.draft_method import tokens_of_head
from autotune.engine.probe import VllmInfo
from autotune.engine.rule import Known
from autotune.engine.rules import known_of
from autotune.study.checkpoints import config_of
from autotune.study.files import LoadedStudy


def known_for(loaded: LoadedStudy, info: VllmInfo) -> Known:
    """Return the facts for the rules, from this machine and the target's folder.

    Nothing is downloaded. With ``VLLM_ALLOW_LONG_MAX_MODEL_LEN``, vLLM does not compare
    ``max_model_len`` with the model's, so the model's is left out.

    Args:
        loaded: The study.
        info: The study's vLLM.
    """
    server, draft = loaded.spec.server, loaded.spec.server.speculative
    config = config_of(server.model, loaded.base) or {}
    known = known_of(config, info.device, _cpu_has_fp8() if info.device == "cpu" else None)
    if draft is not None:
        # without a model of its own, the head is in the target's checkpoint
        own = config if draft.model is None else config_of(draft.model, loaded.base) or {}
        known = replace(known, head_tokens=tokens_of_head(own))
    longer = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
    if longer in server.env or longer in os.environ:
        return replace(known, model_max_len=None)
    return known


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
