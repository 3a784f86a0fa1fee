"""What a study says of ``--compilation-config``, as a flag of its own, with a dot, or inside it."""

from __future__ import annotations

from collections.abc import Mapping

# cudagraph_mode that an optimization level sets by default (config/vllm.py: OPTIMIZATION_LEVEL_00,
# _01), the same in 0.24.0 to 0.33.0; the levels above have full graphs.
_BY_LEVEL = {0: "NONE", 1: "PIECEWISE"}


def compilation(settings: Mapping[str, object], name: str) -> list[object]:
    """Return every value of a key of the compilation config, given as a flag or inside it."""
    whole = settings.get("compilation_config")
    inside = [whole[name]] if isinstance(whole, Mapping) and name in whole else []
    dotted = f"compilation_config.{name}"
    return [*inside, *(settings[k] for k in (dotted, name) if k in settings)]


def cudagraph_mode(settings: Mapping[str, object]) -> str | None:
    """Return the mode of CUDA graphs that a study asks for; None: vLLM's own, or unknown."""
    given = compilation(settings, "cudagraph_mode")
    if given:
        return given[0].upper() if len(given) == 1 and isinstance(given[0], str) else None
    level = settings.get("optimization_level")
    return _BY_LEVEL.get(level) if type(level) is int else None
