"""Values of ``--kv-cache-dtype`` in each version of vLLM."""

from __future__ import annotations

from autotune.engine.rule import Minor

# First version of each (config/cache.py: CacheDType, 0.24.0 to 0.33.0).
_SINCE: dict[str, Minor] = {
    **dict.fromkeys(
        (
            *("auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"),
            *("fp8_ds_mla", "turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc"),
            *("turboquant_3bit_nc", "int8_per_token_head", "fp8_per_token_head", "nvfp4"),
        ),
        (0, 24),
    ),
    "int4_per_token_head": (0, 25),
    "nvfp4_4over6": (0, 28),
    "nvfp4_ds_mla": (0, 30),
    "ultraquant_4bit": (0, 32),
    **dict.fromkeys(("octave_k3v4", "octave_k3v3", "octave_k3v3_compact"), (0, 33)),
}


def cache_dtypes(minor: Minor) -> tuple[str, ...]:
    """Return the values that a version has without plugins, which may add some from 0.33 on."""
    return tuple(name for name, since in _SINCE.items() if since <= minor)
