"""Rules for what a vLLM version cannot launch, applied before the launch.

A launch that fails costs a minute and teaches nothing that the source of vLLM does not say. Each
rule was read in the source of 0.24.0, 0.26.0 and 0.32.0; its ``source`` names file and function.
Only what fails **for certain** is a rule, because forbidding a point that launches is worse than a
failed launch. A rule is not applied where a setting or fact that it needs is None. For versions
between 0.26 and 0.32, and for unknown ones, a rule must hold on both sides.

Not rules, on purpose:

- n above the draft's ``block_size``: nothing in the three versions compares the two for DFlash
  (``config/speculative.py`` reads ``block_size`` for DSpark only). vLLM launches and drafts beyond
  what the draft was trained for, badly.
- FP8 KV cache under a DFlash draft (vLLM issue #41559): FlashAttention 3 on Hopper and FA4 take it
  (``v1/attention/backends/fa_utils.py``), other GPUs have other backends: not certain.
- block_size on a GPU: FlexAttention takes any (``get_supported_kernel_block_sizes``).
- vLLM's default MNBT: models with images raise it
  (``engine/arg_utils.py:_set_default_max_num_seqs_and_batched_tokens_args``).
- (n - 1)·max_num_seqs < MNBT < (n + 1)·max_num_seqs: see :func:`why_doubtful`.

The module is pure: settings in, words out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from packaging.version import Version

from autotune.engine.draft_rules import DRAFT_RULES
from autotune.engine.rule import NOTHING, SEQS, Infeasible, Known, Launch, Rule
from autotune.study.space import MNBT, as_int

# Values of --kv-cache-dtype by minor version, for the versions that were read
# (config/cache.py, CacheDType; argparse refuses everything else).
_DTYPES_024 = [
    *("auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla"),
    *("turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc"),
    *("int8_per_token_head", "fp8_per_token_head", "nvfp4"),
]
_DTYPES_026 = [*_DTYPES_024, "int4_per_token_head"]
_DTYPES = {
    (0, 24): _DTYPES_024,
    (0, 26): _DTYPES_026,
    (0, 32): [*_DTYPES_026, "nvfp4_ds_mla", "ultraquant_4bit", "nvfp4_4over6"],
}
# Architectures (``model_type``) with plain attention in every layer.
_PLAIN = {"llama", "mistral", "qwen2", "qwen3"}
# Sources of several rules.
_BATCH = "config/scheduler.py: SchedulerConfig.verify_max_model_len"


def known_of(config: Mapping[str, object], platform: str | None, cpu_fp8: bool | None) -> Known:
    """Return what the target's ``config.json`` says about the facts that the rules read.

    Only some architectures are known; for the others all is unknown.

    Args:
        config: Content of ``config.json``.
        platform: vLLM's name of the device.
        cpu_fp8: Whether the CPU has AVX-512 or AMX.
    """
    if config.get("model_type") not in _PLAIN:
        return Known(platform=platform, cpu_fp8=cpu_fp8)
    length = config.get("max_position_embeddings")
    scaled = any(config.get(k) for k in ("rope_scaling", "model_max_length", "sliding_window"))
    rope = config.get("rope_parameters")
    if isinstance(rope, Mapping) and rope.get("rope_type", "default") != "default":
        scaled = True
    known_length = length if isinstance(length, int) and not scaled else None
    return Known(platform, known_length, plain_attention=True, cpu_fp8=cpu_fp8)


def why_infeasible(
    settings: Mapping[str, object], vllm_version: str | None, known: Known = NOTHING
) -> str | None:
    """Return why a vLLM version cannot launch some settings, in words; None: no rule forbids it.

    Args:
        settings: Every flag of the launch that the rules read, fixed and searched, by vLLM's
            argument name with underscores. Keys of ``--speculative-config`` begin with
            ``speculative.``, except ``num_speculative_tokens``, which is 0 without speculation.
        vllm_version: Version such as ``"0.32.0"``. With None (unknown), only the rules that hold
            for all versions that were read are applied.
        known: Facts about machine and target.
    """
    found = infeasible(settings, vllm_version, known)
    return None if found is None else found.reason


def infeasible(
    settings: Mapping[str, object], vllm_version: str | None, known: Known = NOTHING
) -> Infeasible | None:
    """Return the rule that settings break, with the reason; see :func:`why_infeasible`."""
    launch = _launch(settings, vllm_version, known)
    for rule in _rules_of(launch.minor):
        if reason := rule.check(launch):
            return Infeasible(rule, reason)
    return None


def why_doubtful(
    settings: Mapping[str, object], vllm_version: str | None, known: Known = NOTHING
) -> str | None:
    """Return why a launch that no rule forbids may still crash, in words; None: nothing says so.

    A DFlash draft makes (n + 1) tokens for each request in one pass. Before 0.32 model runner V2
    keeps them in buffers of MNBT tokens, and dummy runs at the start try max_num_seqs requests
    (``v1/worker/gpu/spec_decode/dflash/speculator.py:propose``, ``v1/worker/gpu/model_runner.py:
    _dummy_run``; vLLM PRs #53970, #56448, which see the GPU fail with an index out of bounds). That
    depends on model, GPU and runner: a warning, no rule. 0.32 tries only as many as fit, and its
    scheduler keeps within the buffers.

    The arguments are those of :func:`why_infeasible`.
    """
    launch = _launch(settings, vllm_version, known)
    mnbt, (seqs, words) = launch.number(MNBT), launch.seqs()
    if launch.n < 1 or mnbt is None or seqs is None or launch.method != "dflash":
        return None
    if launch.minor is None or not (0, 24) <= launch.minor < (0, 32):
        return None
    if known.platform == "cpu" or infeasible(settings, vllm_version, known) is not None:
        return None
    needed = (launch.n + 1) * (seqs if SEQS in settings else min(seqs, mnbt))
    if mnbt >= needed:
        return None
    return (
        f"n = {launch.n} with {words} drafts up to {needed} tokens at once: "
        f"with MNBT = {mnbt} {launch.vllm} may crash on a GPU"
    )


def _launch(settings: Mapping[str, object], vllm_version: str | None, known: Known) -> Launch:
    vllm = "vLLM" if vllm_version is None else f"vLLM {vllm_version}"
    return Launch(settings, known, vllm, _minor(vllm_version))


@cache  # a search asks for each of its points
def _minor(version: str | None) -> tuple[int, int] | None:
    if version is None:
        return None
    v = Version(version)
    return v.major, v.minor


@cache
def _rules_of(minor: tuple[int, int] | None) -> tuple[Rule, ...]:
    return tuple(rule for rule in RULES if rule.holds(minor))


# -- numbers that cannot be ----------------------------------------------------------------------


def _below_least(launch: Launch) -> str | None:
    if launch.n < 0:
        return f"n = {launch.n} is below 0"
    for name in (MNBT, SEQS, "block_size"):
        value = launch.number(name)
        if value is not None and value < 1:
            return f"{_word(name)} must be at least 1, not {value}"
    return None


def _memory_share(launch: Launch) -> str | None:
    share = launch.settings.get("gpu_memory_utilization")
    if isinstance(share, bool) or not isinstance(share, int | float) or 0 < share <= 1:
        return None
    return f"gpu_memory_utilization must be above 0 and at most 1, not {share:g}"


def _cache_dtype(launch: Launch) -> str | None:
    dtype = launch.settings.get("kv_cache_dtype")
    allowed = _DTYPES.get(launch.minor or (0, 0))
    if not isinstance(dtype, str) or allowed is None or dtype in allowed:
        return None
    return f"{launch.vllm} has no kv_cache_dtype {dtype:.40}; it has {', '.join(allowed)}"


# -- the batch -----------------------------------------------------------------------------------


def _budget_holds_requests(launch: Launch) -> str | None:
    mnbt, seqs = launch.number(MNBT), launch.number(SEQS)
    if mnbt is None or seqs is None or mnbt >= seqs:
        return None
    return f"{launch.vllm} needs MNBT of at least max_num_seqs = {seqs}; {mnbt} would fail"


def _budget_holds_a_prompt(launch: Launch) -> str | None:
    mnbt, length = launch.number(MNBT), launch.number("max_model_len")
    chunked = launch.settings.get("enable_chunked_prefill", True)
    if chunked is not False or mnbt is None or length is None or mnbt >= length:
        return None
    return (
        f"without chunked prefill {launch.vllm} needs MNBT of at least max_model_len = {length}; "
        f"{mnbt} would fail"
    )


def _active_requests(launch: Launch) -> str | None:
    active, seqs = launch.number("max_num_active_seqs"), launch.number(SEQS)
    if active is None or seqs is None or active <= seqs:
        return None
    return f"max_num_active_seqs = {active} is above max_num_seqs = {seqs}"


def _long_prefill(launch: Launch) -> str | None:
    long = launch.number("long_prefill_token_threshold")
    length = launch.number("max_model_len")
    if long is None or length is None or length < 1 or long <= length:
        return None
    return f"long_prefill_token_threshold = {long} is above max_model_len = {length}"


def _partial_prefills(launch: Launch) -> str | None:
    partial = launch.number("max_num_partial_prefills")
    long = launch.number("max_long_partial_prefills")
    partial = 1 if partial is None else partial
    if partial > 1 and launch.settings.get("enable_chunked_prefill") is False:
        return f"max_num_partial_prefills = {partial} needs chunked prefill"
    if long is not None and long > partial:
        return f"max_long_partial_prefills = {long} is above max_num_partial_prefills = {partial}"
    return None


def _model_length(launch: Launch) -> str | None:
    length, most = launch.number("max_model_len"), launch.known.model_max_len
    if length is None or most is None or length <= most or "hf_overrides" in launch.settings:
        return None
    return f"max_model_len = {length} is above the model's own {most}"


# -- memory blocks and graphs --------------------------------------------------------------------


def _cpu_blocks(launch: Launch) -> str | None:
    size, known = launch.number("block_size"), launch.known
    if known.platform != "cpu" or known.plain_attention is not True or size is None:
        return None
    unit = 32 if launch.minor is not None and launch.minor >= (0, 32) else 16
    if size % unit == 0:
        return None
    return f"on a CPU {launch.vllm} needs a block_size that is a multiple of {unit}, not {size}"


def _cpu_fp8(launch: Launch) -> str | None:
    dtype, known = launch.settings.get("kv_cache_dtype"), launch.known
    if known.platform != "cpu" or known.cpu_fp8 is not False:
        return None
    if dtype not in ("fp8", "fp8_e4m3", "fp8_e5m2"):
        return None
    return f"kv_cache_dtype {dtype} needs a CPU with AVX-512 or AMX, which this one has not"


def _compilation(settings: Mapping[str, object], name: str) -> list[object]:
    """Return every value of a key of the compilation config, given as a flag or inside it."""
    whole = settings.get("compilation_config")
    inside = [whole[name]] if isinstance(whole, Mapping) and name in whole else []
    dotted = f"compilation_config.{name}"
    return [*inside, *(settings[k] for k in (dotted, name) if k in settings)]


def _sizes_twice(launch: Launch) -> str | None:
    for name in ("cudagraph_capture_sizes", "max_cudagraph_capture_size"):
        if name in launch.settings and len(_compilation(launch.settings, name)) > 1:
            return f"{name} is given twice, as a flag and in compilation_config"
    return None


def _largest_size(launch: Launch) -> str | None:
    s = launch.settings
    if launch.known.platform != "cuda" or s.get("enforce_eager") is True:
        return None
    if any(_compilation(s, k) for k in ("cudagraph_mode", "mode", "level")):
        return None  # graphs may be off
    if "optimization_level" in s:
        return None
    sizes = _compilation(s, "cudagraph_capture_sizes")
    most = _compilation(s, "max_cudagraph_capture_size")
    mnbt = launch.number(MNBT)
    if len(sizes) != 1 or len(most) != 1 or mnbt is None:
        return None
    listed, largest = sizes[0], as_int(most[0])
    if not isinstance(listed, list) or not all(type(x) is int for x in listed) or largest is None:
        return None
    if not listed:
        return "cudagraph_capture_sizes is empty"
    kept = max((x for x in listed if x <= mnbt), default=0)
    if kept == largest:
        return None
    return (
        f"max_cudagraph_capture_size = {largest} must be the largest of cudagraph_capture_sizes "
        f"up to MNBT, {kept}"
    )


def _word(name: str) -> str:
    return "MNBT" if name == MNBT else name


RULES = (
    Rule(
        "a number below its least",
        _below_least,
        "config/scheduler.py: SchedulerConfig (ge=1), config/cache.py: CacheConfig (gt=0), "
        "config/speculative.py: SpeculativeConfig._verify_args",
    ),
    Rule(
        "gpu_memory_utilization within 0 and 1",
        _memory_share,
        "config/cache.py: CacheConfig.gpu_memory_utilization (gt=0, le=1)",
    ),
    Rule(
        "kv_cache_dtype that the version has",
        _cache_dtype,
        "config/cache.py: CacheDType, engine/arg_utils.py: EngineArgs.add_cli_args",
        unknown=False,
    ),
    Rule("MNBT of at least max_num_seqs", _budget_holds_requests, _BATCH),
    Rule("MNBT of a prompt without chunked prefill", _budget_holds_a_prompt, _BATCH),
    Rule(
        "max_num_active_seqs within max_num_seqs",
        _active_requests,
        _BATCH,
        first=(0, 32),
        unknown=False,
    ),
    Rule(
        "long_prefill_token_threshold within max_model_len",
        _long_prefill,
        _BATCH,
        first=(0, 32),
        unknown=False,
    ),
    Rule("partial prefills", _partial_prefills, _BATCH, last=(0, 26), unknown=False),
    Rule(
        "max_model_len within the model's",
        _model_length,
        "config/model.py: _get_and_verify_max_len",
    ),
    *DRAFT_RULES,
    Rule(
        "block_size on a CPU",
        _cpu_blocks,
        "v1/attention/backends/cpu_attn.py: CPUAttentionBackend.get_supported_kernel_block_sizes, "
        "v1/worker/utils.py: select_common_block_size; MLA and hybrid models get another size",
    ),
    Rule(
        "FP8 KV cache on a CPU",
        _cpu_fp8,
        "v1/attention/backends/cpu_attn.py: _get_attn_isa",
    ),
    Rule(
        "CUDA graph sizes given once",
        _sizes_twice,
        "engine/arg_utils.py: EngineArgs.create_engine_config",
    ),
    Rule(
        "the largest CUDA graph size",
        _largest_size,
        "config/vllm.py: VllmConfig._set_cudagraph_sizes",
    ),
)
