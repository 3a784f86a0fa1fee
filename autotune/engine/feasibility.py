"""Facts about this machine and the target that :mod:`autotune.engine.rules` reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

from autotune.engine.probe import VllmInfo
from autotune.engine.rules import Known, known_of
from autotune.study.files import LoadedStudy
from autotune.study.models import target_folder


def known_for(loaded: LoadedStudy, info: VllmInfo) -> Known:
    """Return the facts for the rules, from this machine and the target's folder.

    Nothing is downloaded. With ``VLLM_ALLOW_LONG_MAX_MODEL_LEN``, vLLM does not compare
    ``max_model_len`` with the model's, so the model's is left out.

    Args:
        loaded: The study.
        info: The study's vLLM.
    """
    server = loaded.spec.server
    ref = server.model
    folder = target_folder() if ref == "demo:target" else loaded.base / Path(ref).expanduser()
    config: object = None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None  # a hub name, or a model that is not made yet: unknown
    known = known_of(
        config if isinstance(config, dict) else {},
        info.device,
        _cpu_has_fp8() if info.device == "cpu" else None,
    )
    longer = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
    if longer in server.env or longer in os.environ:
        return Known(known.platform, None, known.plain_attention, known.cpu_fp8)
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
