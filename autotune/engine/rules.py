"""Rules for what a vLLM version cannot launch, applied before the launch.

A launch that fails costs a minute and teaches nothing that the source of vLLM does not say. Each
rule was read in the source of 0.24.0 to 0.33.0; its ``source`` names file and function. Only what
fails **for certain** is a rule, because forbidding a point that launches is worse than a failed
launch. What may fail is a doubt (:mod:`autotune.engine.doubts`). A rule is not applied where a
setting or fact that it needs is None.

A version that nobody read is treated by those next to it: a newer one than :data:`READ` as its two
newest, where both refuse; an older or an unknown one as all of them, where all refuse. Lists of
words and keys do not speak for such a version, because it may have more.

Not rules, on purpose:

- n above the draft's ``block_size``: vLLM compares the two for DSpark (0.26, 0.27), for DSpark of
  Qwen3-Omni (0.29 and later) and for LiLiCorr (0.31 and later). Another DFlash draft is launched,
  and drafts beyond what it was trained for, badly.
- FP8 KV cache under a DFlash draft (vLLM issue #41559): FlashAttention 3 on Hopper and FA4 take it
  (``v1/attention/backends/fa_utils.py``), other GPUs have other backends: not certain.
- block_size on a GPU: FlexAttention takes any (``get_supported_kernel_block_sizes``).
- vLLM's default MNBT: models with images raise it
  (``engine/arg_utils.py:_set_default_max_num_seqs_and_batched_tokens_args``).
- ``per_request_spec_decode_metrics`` without drafts, which vLLM refuses from 0.29 on
  (``config/vllm.py:__post_init__``): a launch at n = 0 is started without the flag.
- A launch that is throttled starts all the same. :data:`THROTTLED` refuses it only where the load
  of the study is known and it does not allow that, because the numbers would be of another load.
- 0.24 to 0.30: (n - 1)·max_num_seqs < MNBT < (n + 1)·max_num_seqs for DFlash, a doubt.

The module is pure: settings in, words out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from packaging.version import Version

from autotune.engine.active_requests import throttled
from autotune.engine.cache_dtypes import cache_dtypes
from autotune.engine.compilation import compilation
from autotune.engine.doubts import Doubt, found_doubts
from autotune.engine.draft_rules import DRAFT_RULES
from autotune.engine.gpus import Gpu, have_bfloat16
from autotune.engine.rule import (
    NOTHING,
    SEQS,
    Infeasible,
    Known,
    Launch,
    Minor,
    Rule,
    minor_of,
    minor_text,
)
from autotune.study.space import MNBT, as_int

READ: tuple[Minor, ...] = tuple((0, minor) for minor in range(24, 34))
"""Minor versions whose source was read, the oldest first."""

# Architectures (``model_type``) with plain attention in every layer.
_PLAIN = {
    *("llama", "mistral", "qwen2", "qwen3"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe"),
}
# Keys next to max_position_embeddings that change the length that vLLM derives
# (transformers_utils/model_arch_config_convertor.py: derive_max_model_len_and_key).
_OTHER_LENGTHS = (
    *("rope_scaling", "sliding_window", "n_positions", "max_seq_len", "seq_length"),
    *("model_max_length", "max_target_positions", "max_sequence_length", "max_seq_length"),
    "seq_len",
)
_HALVES = ("float16", "bfloat16")
# Sources of several rules.
_BATCH = "config/scheduler.py: SchedulerConfig.verify_max_model_len"


def known_of(
    config: Mapping[str, object],
    platform: str | None,
    cpu_fp8: bool | None,
    gpus: tuple[Gpu, ...] = (),
) -> Known:
    """Return what the target's ``config.json`` says about the facts that the rules read.

    Only some architectures are known; for the others all is unknown.

    Args:
        config: Content of ``config.json``.
        platform: vLLM's name of the device.
        cpu_fp8: Whether an x86 CPU has AVX-512 or AMX; None: unknown, or another CPU.
        gpus: GPUs that vLLM sees.
    """
    if config.get("model_type") not in _PLAIN:
        return Known(platform=platform, cpu_fp8=cpu_fp8, gpus=gpus)
    length = config.get("max_position_embeddings")
    scaled = any(config.get(k) for k in _OTHER_LENGTHS)
    rope = config.get("rope_parameters")
    if isinstance(rope, Mapping) and rope.get("rope_type", "default") != "default":
        scaled = True
    known_length = length if isinstance(length, int) and not scaled else None
    return Known(
        platform,
        known_length,
        plain_attention=True,
        cpu_fp8=cpu_fp8,
        gpus=gpus,
        dtype=_dtype_of(config, platform, gpus, x86=cpu_fp8 is not None),
    )


def _dtype_of(
    config: Mapping[str, object], platform: str | None, gpus: tuple[Gpu, ...], *, x86: bool
) -> str | None:
    """Return the data type of weights that vLLM takes from a config (``_resolve_auto_dtype``)."""
    dtype = config.get("dtype") or config.get("torch_dtype")
    # a POWER CPU takes bfloat16 for float16
    certain = {
        ("bfloat16", "cpu"): True,
        ("float16", "cpu"): x86,
        ("bfloat16", "cuda"): have_bfloat16(gpus),
        ("float16", "cuda"): bool(gpus),
    }
    return str(dtype) if certain.get((str(dtype), platform or ""), False) else None


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
    minors = stand_ins(vllm_version)
    unread = len(minors) > 1
    broken = []
    for minor in minors:
        vllm = f"vLLM {vllm_version}" if not unread else f"vLLM {minor_text(minor)}"
        launch = Launch(settings, known, vllm, minor)
        found = _first_broken(launch, unread=unread)
        if found is None:
            return None
        broken.append((launch, found))
    launch, found = broken[-1]
    if not unread:
        return found
    if all(each.rule.least is not None for _, each in broken):
        reason = _too_small([launch for launch, _ in broken])
    elif launch.vllm not in found.reason:
        return found
    else:
        reason = f"{found.reason}; {_span(minors)} {_all(minors)} refuse it"
    return Infeasible(found.rule, f"{reason}; {_unread(vllm_version)}")


def why_doubtful(
    settings: Mapping[str, object], vllm_version: str | None, known: Known = NOTHING
) -> str | None:
    """Return why a launch that no rule forbids may still fail or be another one, or None.

    The doubts of :func:`doubts_of` in one line. The arguments are those of :func:`why_infeasible`.
    """
    return "; ".join(x.text for x in doubts_of(settings, vllm_version, known)) or None


def doubts_of(
    settings: Mapping[str, object], vllm_version: str | None, known: Known = NOTHING
) -> tuple[Doubt, ...]:
    """Return the doubts about a launch that no rule forbids.

    Of a version that nobody read, only those of the newest one are returned, and only for a newer
    version. The arguments are those of :func:`why_infeasible`.
    """
    minors, minor = stand_ins(vllm_version), minor_of(vllm_version)
    if minor is None or minor < READ[0] or infeasible(settings, vllm_version, known) is not None:
        return ()
    return found_doubts(Launch(settings, known, f"vLLM {vllm_version}", minors[-1]))


def why_unread(vllm_version: str | None) -> str | None:
    """Return in one line how a version that nobody read is treated; None: it was read."""
    minors = stand_ins(vllm_version)
    if len(minors) == 1:
        return None
    which = "vLLM of unknown version" if vllm_version is None else f"vLLM {vllm_version}"
    if minors == READ:
        return (
            f"the source of {which} was not read: a launch is refused only where "
            f"{_span(minors)} all refuse it"
        )
    return (
        f"the source of {which} was not read: the rules of {minor_text(minors[-1])} are applied "
        f"where {minor_text(minors[0])} has them too"
    )


def how_read(vllm_version: str) -> str:
    """Return in one line which source the rules of a version are from, for one that was read."""
    minor, release = minor_of(vllm_version), Version(vllm_version).base_version
    if minor is None or minor not in READ:
        raise ValueError(f"nobody read vLLM {vllm_version}")
    read = f"{minor_text(minor)}.0"
    same = "" if release == read else f"; {vllm_version} is taken for it"
    return f"read in the source of vLLM {read} and compared with its own answers{same}"


def stand_ins(vllm_version: str | None) -> tuple[Minor, ...]:
    """Return the minor versions that were read and speak for a version: itself, if it was read."""
    minor = minor_of(vllm_version)
    if minor in READ:
        return (minor,)
    return READ[-2:] if minor is not None and minor > READ[-1] else READ


@cache
def _rules_of(minor: Minor, unread: bool) -> tuple[Rule, ...]:
    return tuple(rule for rule in RULES if rule.holds(minor) and (rule.unread or not unread))


def _first_broken(launch: Launch, *, unread: bool) -> Infeasible | None:
    """Return the first rule that a launch breaks; ``launch.minor`` is one that was read."""
    if launch.minor is None:
        return None
    for rule in _rules_of(launch.minor, unread):
        if reason := rule.check(launch):
            return Infeasible(rule, reason)
    return None


def _too_small(launches: list[Launch]) -> str:
    """Return in words that MNBT is too small on every one of some versions, and what each needs."""
    first = launches[0]
    least = [(x.minor or READ[0], _least_mnbt(x)) for x in launches]
    most, fewest = max(x for _, x in least), min(x for _, x in least)
    where = [minor for minor, x in least if x == fewest]
    minors = tuple(minor for minor, _ in least)
    if most == fewest:
        needs = f"{most} on vLLM {_span(minors)}"
    else:
        every = "both" if len(minors) == 2 else "all of"
        needs = f"{fewest} on vLLM {_span(tuple(where))}, {most} to run on {every} {_span(minors)}"
    (seqs, words), mnbt = first.seqs(), first.number(MNBT)
    with_seqs = f" with {words}" if seqs is not None else ""
    return (
        f"n = {first.n}{with_seqs} needs MNBT of at least {needs}; "
        f"{mnbt} would fail on {_all(minors)}"
    )


def _least_mnbt(launch: Launch) -> int:
    """Return the smallest MNBT with which no rule about it refuses a launch, in tokens."""
    rules_ = _rules_of(launch.minor, unread=True) if launch.minor is not None else ()
    return max((r.least(launch) or 1 for r in rules_ if r.least is not None), default=1)


def _unread(version: str | None) -> str:
    return "the version is unknown" if version is None else f"{version} was not read"


def _all(minors: tuple[Minor, ...]) -> str:
    return "both" if len(minors) == 2 else "all"


def _span(minors: tuple[Minor, ...]) -> str:
    if len(minors) == 1:
        return minor_text(minors[0])
    return f"{minor_text(minors[0])} {'and' if len(minors) == 2 else 'to'} {minor_text(minors[-1])}"


# -- numbers that cannot be ----------------------------------------------------------------------


def _below_least(launch: Launch) -> str | None:
    if launch.n < 0:
        return f"n = {launch.n} is below 0"
    for name in (MNBT, SEQS, "block_size", "prefill_schedule_interval"):
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
    dtype, minor = launch.settings.get("kv_cache_dtype"), launch.minor
    if not isinstance(dtype, str) or minor is None:
        return None
    allowed = cache_dtypes(minor)
    if dtype in allowed:
        return None
    return f"{launch.vllm} has no kv_cache_dtype {dtype:.40}; it has {', '.join(allowed)}"


def _cache_of_weights(launch: Launch) -> str | None:
    """Check 0.33: a 16-bit KV cache has the data type of the weights."""
    cache = launch.settings.get("kv_cache_dtype")
    weights = launch.settings.get("dtype", "auto")
    weights = launch.known.dtype if weights == "auto" else weights
    weights = {"half": "float16", "float": "float32"}.get(str(weights), weights)
    if cache not in _HALVES or weights not in (*_HALVES, "float32") or cache == weights:
        return None
    return f"{launch.vllm} has no kv_cache_dtype {cache} with weights in {weights}; write auto"


# -- the batch -----------------------------------------------------------------------------------


def _given_seqs(launch: Launch) -> int | None:
    return launch.number(SEQS)


def _budget_holds_requests(launch: Launch) -> str | None:
    mnbt, seqs = launch.number(MNBT), launch.number(SEQS)
    if mnbt is None or seqs is None or mnbt >= seqs:
        return None
    return f"{launch.vllm} needs MNBT of at least max_num_seqs = {seqs}; {mnbt} would fail"


def _budget_holds_a_prompt(launch: Launch) -> str | None:
    mnbt, length = launch.number(MNBT), _length(launch)
    chunked = launch.settings.get("enable_chunked_prefill", True)
    if chunked is not False or mnbt is None or length is None or mnbt >= length:
        return None
    return (
        f"without chunked prefill {launch.vllm} needs MNBT of at least max_model_len = {length}; "
        f"{mnbt} would fail"
    )


def _length(launch: Launch) -> int | None:
    """Return max_model_len, which without the flag is the model's own; None: unknown."""
    if "max_model_len" in launch.settings or "hf_overrides" in launch.settings:
        return launch.number("max_model_len")
    return launch.known.model_max_len


def _active_requests(launch: Launch) -> str | None:
    active, seqs = launch.number("max_num_active_seqs"), launch.most_seqs()
    if active is not None and active < 1:
        return f"max_num_active_seqs must be at least 1, not {active}"
    if active is None or seqs is None or active <= seqs:
        return None
    own = "" if SEQS in launch.settings else "vLLM's own "
    return f"max_num_active_seqs = {active} is above {own}max_num_seqs = {seqs}"


def _throttled(launch: Launch) -> str | None:
    """Return why a launch would measure another load than the study's, although it starts."""
    why = None if launch.known.allow_throttled else throttled(launch)
    return None if why is None else f"{why}; search.allow_throttled: true launches it all the same"


def _long_prefill(launch: Launch) -> str | None:
    long = launch.number("long_prefill_token_threshold")
    length = _length(launch)
    if long is not None and long < 0 and launch.since((0, 25)):
        return f"long_prefill_token_threshold must be at least 0, not {long}"
    if launch.minor is not None and launch.minor < (0, 27):
        return None
    if long is None or length is None or length < 1 or long <= length:
        return None
    return f"long_prefill_token_threshold = {long} is above max_model_len = {length}"


def _partial_prefills(launch: Launch) -> str | None:
    for name in ("max_num_partial_prefills", "max_long_partial_prefills"):
        value = launch.number(name)
        if value is not None and value != 1:
            return f"{launch.vllm} prefills one prompt at a time: {name} must be 1, not {value}"
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
    unit = 32 if launch.since((0, 29)) else 16
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


def _sizes_twice(launch: Launch) -> str | None:
    for name in ("cudagraph_capture_sizes", "max_cudagraph_capture_size"):
        if name in launch.settings and len(compilation(launch.settings, name)) > 1:
            return f"{name} is given twice, as a flag and in compilation_config"
    return None


def _largest_size(launch: Launch) -> str | None:
    s = launch.settings
    if launch.known.platform != "cuda" or s.get("enforce_eager") is True:
        return None
    if any(compilation(s, k) for k in ("cudagraph_mode", "mode", "level")):
        return None  # graphs may be off
    if "optimization_level" in s:
        return None
    sizes = compilation(s, "cudagraph_capture_sizes")
    most = compilation(s, "max_cudagraph_capture_size")
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


THROTTLED = Rule(
    "as many requests at once as the study asks for",
    _throttled,
    "config/vllm.py: VllmConfig._set_max_num_scheduled_tokens, num_lookahead_tokens; "
    "v1/core/sched/scheduler.py: Scheduler.__init__",
    first=(0, 31),
)

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
        last=(0, 32),
        unread=False,
    ),
    Rule(
        "16-bit KV cache as the weights",
        _cache_of_weights,
        "config/vllm.py: VllmConfig._reject_mismatched_float_kv_cache",
        first=(0, 33),
    ),
    Rule("MNBT of at least max_num_seqs", _budget_holds_requests, _BATCH, least=_given_seqs),
    Rule("MNBT of a prompt without chunked prefill", _budget_holds_a_prompt, _BATCH),
    Rule("max_num_active_seqs within max_num_seqs", _active_requests, _BATCH, first=(0, 31)),
    Rule("long_prefill_token_threshold within max_model_len", _long_prefill, _BATCH),
    Rule(
        "partial prefills",
        _partial_prefills,
        "engine/arg_utils.py: EngineArgs._check_feature_supported",
        last=(0, 26),
    ),
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
    THROTTLED,
)
