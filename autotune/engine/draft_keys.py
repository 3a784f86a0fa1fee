"""Which keys and values ``--speculative-config`` has in each version of vLLM, and what they need.

Read in ``config/speculative.py`` of 0.24.0 to 0.33.0. Its class refuses a key that it does not
have, and a value that is none of a key's words.
"""

from __future__ import annotations

from collections.abc import Iterator

from autotune.engine.rule import METHOD, Launch, Minor, Rule, minor_text
from autotune.study.space import DRAFT, as_int
from autotune.study.speculative import ADAPTIVE

_SPEC = "config/speculative.py: SpeculativeConfig"
_EAGLE = {"eagle", "eagle3", "mtp", "dflash", "dspark"}
_DRAFT_MODEL = "draft_model"

# Methods of all versions that were read, and first and last of the others.
_METHODS = {
    *("ngram", "ngram_gpu", "suffix", "custom_class", "draft_model", "extract_hidden_states"),
    *(
        "eagle",
        "eagle3",
        "dflash",
        "mtp",
        "deepseek_mtp",
        "mimo_mtp",
        "mimo_v2_mtp",
        "glm4_moe_mtp",
    ),
    *("glm4_moe_lite_mtp", "glm_ocr_mtp", "ernie_mtp", "nemotron_h_mtp", "exaone_moe_mtp"),
    *("exaone4_5_mtp", "qwen3_next_mtp", "qwen3_5_mtp", "longcat_flash_mtp", "minimax_m3_mtp"),
    *("pangu_ultra_moe_mtp", "step3p5_mtp", "hy_v3_mtp", "gemma4_mtp"),
}
_LATER_METHODS: dict[str, Minor] = {
    "dspark": (0, 25),
    "bailing_hybrid_mtp": (0, 25),
    "inkling_mtp": (0, 26),
    "kimi_k3_mtp": (0, 27),
    "dots3_note_mtp": (0, 28),
    "bailing_hybrid_v3_mtp": (0, 28),
    "qwen4_exp_mtp": (0, 29),
    "hy_v4_mtp": (0, 29),
    "glm5_next_mtp": (0, 30),
    "step5_mtp": (0, 33),
}
_DROPPED_METHODS: dict[str, Minor] = {"medusa": (0, 32), "mlp_speculator": (0, 32)}

_KEYS = {
    *("enforce_eager", "model", "method", "draft_tensor_parallel_size", "tensor_parallel_size"),
    *("quantization", "moe_backend", "attention_backend", "max_model_len", "revision"),
    *("code_revision", "disable_padded_drafter_batch", "use_local_argmax_reduction"),
    *("prompt_lookup_max", "prompt_lookup_min", "parallel_drafting", "draft_load_config"),
    *("num_speculative_tokens", "num_speculative_tokens_per_batch_size"),
    *("suffix_decoding_max_tree_depth", "suffix_decoding_max_cached_requests"),
    *("suffix_decoding_max_spec_factor", "suffix_decoding_min_token_prob"),
    *("rejection_sample_method", "synthetic_acceptance_rates", "synthetic_acceptance_length"),
    *("draft_sample_method", "target_model_config", "target_parallel_config"),
    *("draft_model_config", "draft_parallel_config"),
}
_LATER_KEYS: dict[str, Minor] = {
    "use_heterogeneous_vocab": (0, 25),
    "kv_cache_dtype": (0, 26),
    "dspark_draft_topk": (0, 28),
    ADAPTIVE: (0, 28),
    "index_share_for_mtp_iteration": (0, 29),
    "disable_eagle_block_drop": (0, 30),
    **dict.fromkeys(
        (
            *("disable_lookahead_block_hashes", "draft_lm_head_quantization", "xpress_topc"),
            *("fly_window_size", "fly_entropy_threshold", "fly_entropy_top_k"),
        ),
        (0, 33),
    ),
}
# Words of a key, with the first version that has them.
_WORDS: dict[str, dict[str, Minor]] = {
    "rejection_sample_method": {
        "standard": (0, 24),
        "synthetic": (0, 24),
        "block": (0, 25),
        "fly": (0, 33),
    },
    "draft_sample_method": {"greedy": (0, 24), "probabilistic": (0, 24)},
    "draft_lm_head_quantization": {"fp8": (0, 33), "nvfp4": (0, 33)},
}
_LEAST = {
    **dict.fromkeys(("draft_tensor_parallel_size", "max_model_len", "prompt_lookup_max"), 1),
    **dict.fromkeys(("prompt_lookup_min", "dspark_draft_topk", "fly_window_size"), 1),
    **{"fly_entropy_top_k": 1, "xpress_topc": 0, "fly_entropy_threshold": 0},
}
# Least and greatest of the keys of suffix decoding; None: no greatest.
_SUFFIX: dict[str, tuple[float, float | None]] = {
    "suffix_decoding_max_tree_depth": (1, None),
    "suffix_decoding_max_cached_requests": (0, None),
    "suffix_decoding_max_spec_factor": (0, None),
    "suffix_decoding_min_token_prob": (0, 1),
}
# Keys that belong to some methods only.
_ONLY_FOR = {
    "dspark_draft_topk": {"dspark"},
    "index_share_for_mtp_iteration": {"mtp"},
    "draft_lm_head_quantization": {"eagle", "eagle3", "mtp"},
    "xpress_topc": {"dflash"},
}
# vLLM compares these two with the method only where the draft is a model.
_LOOKED_AT_WITH_A_MODEL = {"dspark_draft_topk", "xpress_topc"}
_WITHOUT_MODEL = {"ngram", "ngram_gpu", "suffix", "custom_class", "extract_hidden_states"}
_XPRESS = {"Qwen3XPressModel", "DFlashQwen3XPressModel"}


def _given(launch: Launch) -> Iterator[tuple[str, object]]:
    """Yield the keys of the launch's ``--speculative-config`` that have a value."""
    if launch.n < 1:
        return
    for name, value in launch.settings.items():
        if name.startswith(DRAFT) and value is not None:
            yield name.removeprefix(DRAFT).rstrip("+").partition(".")[0], value


def _unknown_key(launch: Launch) -> str | None:
    for key, _ in _given(launch):
        since = _LATER_KEYS.get(key)
        if key in _KEYS or (
            since is not None and launch.minor is not None and since <= launch.minor
        ):
            continue
        later = "" if since is None else f"; {minor_text(since)} and later have"
        return f"{launch.vllm} has no key {key:.60} in --speculative-config{later}"
    return None


def _unknown_method(launch: Launch) -> str | None:
    given, minor = launch.settings.get(METHOD), launch.minor
    if launch.n < 1 or not isinstance(given, str) or given in _METHODS or minor is None:
        return None
    first, last = _LATER_METHODS.get(given), _DROPPED_METHODS.get(given)
    if (first is not None and first <= minor) or (last is not None and minor <= last):
        return None
    when = f"; {minor_text(first)} and later have" if first is not None else ""
    when = f"; it went after {minor_text(last)}" if last is not None else when
    return f"{launch.vllm} has no speculative method {given:.40}{when}"


def _unknown_word(launch: Launch) -> str | None:
    for key, value in _given(launch):
        words = _WORDS.get(key)
        if words is None or not isinstance(value, str) or launch.minor is None:
            continue
        if key in _LATER_KEYS and launch.minor < _LATER_KEYS[key]:
            continue
        allowed = [word for word, since in words.items() if since <= launch.minor]
        if value not in allowed:
            return f"{launch.vllm} has no {key} {value:.40}; it has {', '.join(allowed)}"
    return None


def _too_small(launch: Launch) -> str | None:
    for key, value in _given(launch):
        if key not in _LEAST or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value < _LEAST[key]:
            return f"speculative.{key} must be at least {_LEAST[key]}, not {value:g}"
    return None


def _lookup(launch: Launch) -> str | None:
    least, most = (as_int(launch.of_draft(f"prompt_lookup_{x}")) for x in ("min", "max"))
    if launch.n < 1 or launch.method not in {"ngram", "ngram_gpu"} or least is None or most is None:
        return None
    if least <= most:
        return None
    return f"prompt_lookup_min = {least} is above prompt_lookup_max = {most}"


def _suffix(launch: Launch) -> str | None:
    if launch.method != "suffix":
        return None
    for key, value in _given(launch):
        if key not in _SUFFIX or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least, most = _SUFFIX[key]
        if value < least or (most is not None and value > most):
            bound = f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"
            return f"{key} must be {bound}, not {value:g}"
    return None


def _of_method(launch: Launch) -> str | None:
    """Check the keys that belong to some methods only."""
    if launch.n < 1 or launch.method is None:
        return None
    for key, methods in _ONLY_FOR.items():
        if launch.of_draft(key) is None or launch.method in methods:
            continue
        if key in _LOOKED_AT_WITH_A_MODEL and launch.method in _WITHOUT_MODEL:
            continue
        return f"{key} is for {_or(methods)}, not for method {launch.method}"
    names = launch.draft.architectures
    if launch.method != "dflash" or launch.of_draft("xpress_topc") is None:
        return None
    if names and not names & _XPRESS:
        return "xpress_topc is for an XPress draft, which this one is not"
    return None


def _candidates(launch: Launch) -> str | None:
    top, known = as_int(launch.of_draft("dspark_draft_topk")), launch.draft.drafted_vocabulary
    if launch.n < 1 or launch.method != "dspark" or top is None or known is None or top <= known:
        return None
    return f"dspark_draft_topk = {top} is above the {known} tokens of the draft's vocabulary"


def _two_vocabularies(launch: Launch) -> str | None:
    if launch.n < 1 or launch.of_draft("use_heterogeneous_vocab") is not True:
        return None
    if launch.method is not None and launch.method != _DRAFT_MODEL:
        return f"use_heterogeneous_vocab is for draft_model, not for method {launch.method}"
    if launch.of_draft("draft_sample_method") == "probabilistic":
        return "use_heterogeneous_vocab needs draft_sample_method: greedy"
    return None


def _argmax_of_two(launch: Launch) -> str | None:
    both = ("use_heterogeneous_vocab", "use_local_argmax_reduction")
    if launch.n < 1 or any(launch.of_draft(x) is not True for x in both):
        return None
    return "use_heterogeneous_vocab and use_local_argmax_reduction do not go together"


def _fly(launch: Launch) -> str | None:
    n, window = launch.n, as_int(launch.of_draft("fly_window_size"))
    if n < 1 or launch.of_draft("rejection_sample_method") != "fly":
        return None
    if launch.method == "extract_hidden_states":
        return "rejection_sample_method: fly is not for method extract_hidden_states"
    if n < 2:
        return f"rejection_sample_method: fly needs n of at least 2, not {n}"
    if window is not None and window >= n:
        return f"fly_window_size = {window} must be below n = {n}"
    return None


def _async(launch: Launch) -> str | None:
    if launch.n < 1 or launch.settings.get("async_scheduling") is not True:
        return None
    late = launch.since((0, 33))
    # from 0.33 on only model runner V1 refuses, which these two always have
    without = {"suffix", "custom_class"}
    if not late:
        without |= {"ngram", "medusa", "mlp_speculator"}
    if launch.method in without:
        return f"async_scheduling does not go with method {launch.method} on {launch.vllm}"
    if not late and launch.of_draft("disable_padded_drafter_batch") is True:
        return f"async_scheduling does not go with disable_padded_drafter_batch on {launch.vllm}"
    return None


def _fast_prefill(launch: Launch) -> str | None:
    if launch.n < 1 or launch.settings.get("kv_sharing_fast_prefill") is not True:
        return None
    if launch.method not in _EAGLE:
        return None
    return f"kv_sharing_fast_prefill does not go with method {launch.method}"


def _or(words: set[str]) -> str:
    return " or ".join(sorted(words))


KEY_RULES = (
    Rule(
        "speculative method that the version has", _unknown_method, f"{_SPEC}.method", unread=False
    ),
    Rule("key of --speculative-config that the version has", _unknown_key, _SPEC, unread=False),
    Rule("value of a key of --speculative-config", _unknown_word, _SPEC, unread=False),
    Rule("number of --speculative-config below its least", _too_small, _SPEC),
    Rule("prompt_lookup_min within prompt_lookup_max", _lookup, f"{_SPEC}.__post_init__"),
    Rule("suffix decoding", _suffix, f"{_SPEC}._validate_suffix_decoding"),
    Rule(
        "key of --speculative-config for its method",
        _of_method,
        f"{_SPEC}.__post_init__, _verify_args",
    ),
    Rule(
        "dspark_draft_topk within the draft's vocabulary",
        _candidates,
        f"{_SPEC}.__post_init__",
        first=(0, 28),
    ),
    Rule("two vocabularies", _two_vocabularies, f"{_SPEC}._verify_args", first=(0, 25)),
    Rule(
        "two vocabularies and local argmax", _argmax_of_two, f"{_SPEC}._verify_args", first=(0, 33)
    ),
    Rule("lossy verification (fly)", _fly, f"{_SPEC}._verify_args", first=(0, 33)),
    Rule("async scheduling with the method", _async, "config/vllm.py: VllmConfig.__post_init__"),
    Rule("fast prefill with the method", _fast_prefill, "config/vllm.py: VllmConfig.__post_init__"),
)
