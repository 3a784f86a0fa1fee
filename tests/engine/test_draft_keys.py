"""Keys, methods and words of --speculative-config, and the versions that have them."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.engine.rule import METHOD, Draft, Known
from autotune.engine.rules import why_infeasible
from autotune.study.space import DRAFT, N

MINORS = range(24, 34)


def why(settings: dict[str, Any], version: str | None = "0.33.0", n: int = 4) -> str:
    named = {k if k in FLAGS else f"{DRAFT}{k}": v for k, v in settings.items()}
    return why_infeasible({METHOD: "eagle3", N: n, **named}, version) or ""


FLAGS = {"async_scheduling", "kv_sharing_fast_prefill"}


@pytest.mark.parametrize(
    ("method", "first", "last"),
    [
        ("dflash", 24, 33),
        ("deepseek_mtp", 24, 33),
        ("dspark", 25, 33),
        ("hy_v4_mtp", 29, 33),
        ("step5_mtp", 33, 33),
        ("medusa", 24, 32),
        ("mlp_speculator", 24, 32),
        ("dflash3", 99, 0),
    ],
)
def test_a_method_is_one_of_the_version(method: str, first: int, last: int) -> None:
    for minor in MINORS:
        said = why({"method": method}, f"0.{minor}.0")
        assert ("has no speculative method" in said) is not (first <= minor <= last), minor
    for version in ("0.34.0", "0.23.0", None):  # may have more
        assert why({"method": method}, version) == ""
    assert why({"method": method}, "0.24.0", n=0) == ""


@pytest.mark.parametrize(
    ("key", "value", "method", "since"),
    [
        ("use_local_argmax_reduction", True, "eagle3", 24),
        ("use_heterogeneous_vocab", True, "draft_model", 25),
        ("kv_cache_dtype", "fp8", "eagle3", 26),
        ("dspark_draft_topk", 8, "dspark", 28),
        ("enable_adaptive_verification", True, "dspark", 28),
        ("index_share_for_mtp_iteration", True, "mtp", 29),
        ("disable_eagle_block_drop", True, "eagle3", 30),
        ("draft_lm_head_quantization", "fp8", "eagle3", 33),
        ("xpress_topc", 4, "dflash", 33),
        ("fly_window_size", 2, "eagle3", 33),
        ("n_of_drafts", 2, "eagle3", 99),
    ],
)
def test_a_key_is_one_of_the_version(key: str, value: object, method: str, since: int) -> None:
    for minor in MINORS:
        if method == "dspark" and minor == 24:
            continue
        said = why({"method": method, key: value}, f"0.{minor}.0")
        assert (f"has no key {key}" in said) is (minor < since), (minor, said)
        assert (said == "") is (minor >= since), (minor, said)
    for version in ("0.34.0", None):
        assert why({"method": method, key: value}, version) == ""


def test_a_key_with_a_dot_is_its_root() -> None:
    assert why({"draft_load_config.load_format": "dummy"}) == ""
    assert "no key draft_load" in why({"draft_load.format": "dummy"})


def test_words_of_a_key() -> None:
    for minor in MINORS:
        for word, since in (("standard", 24), ("block", 25), ("fly", 33), ("typical", 99)):
            said = why({"rejection_sample_method": word}, f"0.{minor}.0")
            assert (said == "") is (minor >= since), (minor, word, said)
    assert "it has greedy, probabilistic" in why({"draft_sample_method": "random"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt_lookup_min": 0}, "at least 1, not 0"),
        ({"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 4}, "is above"),
        ({"method": "ngram", "prompt_lookup_min": 4, "prompt_lookup_max": 4}, ""),
        ({"method": "suffix", "suffix_decoding_min_token_prob": 1.5}, "from 0 to 1"),
        ({"method": "suffix", "suffix_decoding_min_token_prob": 1.0}, ""),
        ({"method": "ngram", "suffix_decoding_min_token_prob": 1.5}, ""),  # not looked at
        ({"dspark_draft_topk": 8}, "is for dspark"),
        ({"method": "ngram", "dspark_draft_topk": 8}, ""),  # not looked at
        ({"method": "ngram", "index_share_for_mtp_iteration": True}, "is for mtp"),
        ({"method": "dflash", "draft_lm_head_quantization": "fp8"}, "is for eagle or eagle3 or"),
        ({"use_heterogeneous_vocab": True}, "is for draft_model"),
        (
            {
                "method": "draft_model",
                "use_heterogeneous_vocab": True,
                "draft_sample_method": "probabilistic",
            },
            "greedy",
        ),
        ({"tensor_parallel_size": 1}, "must be draft_tensor_parallel_size"),
    ],
)
def test_keys_and_their_methods(settings: dict[str, Any], words: str) -> None:
    said = why(settings)
    assert words in said
    assert bool(said) is bool(words)


def test_fly_needs_two_drafts_and_a_smaller_window() -> None:
    fly = {"rejection_sample_method": "fly"}
    assert "at least 2" in why(fly, n=1)
    assert why(fly, n=2) == ""
    assert "must be below n = 4" in why({**fly, "fly_window_size": 4})
    assert why({**fly, "fly_window_size": 3}) == ""
    assert why({"fly_window_size": 9}) == ""


def test_the_narrowing_of_xpress_is_for_xpress() -> None:
    settings = {METHOD: "dflash", N: 4, f"{DRAFT}xpress_topc": 4}
    for name, launches in (("Qwen3XPressModel", True), ("DFlashDraftModel", False)):
        known = Known(drafts={None: Draft(architectures=frozenset({name}))})
        assert (why_infeasible(settings, "0.33.0", known) is None) is launches


def test_async_scheduling_is_refused_with_some_methods() -> None:
    for minor in MINORS:
        version = f"0.{minor}.0"
        for method, last in (("ngram", 32), ("suffix", 33), ("eagle3", 0), ("draft_model", 0)):
            said = why({"async_scheduling": True, "method": method}, version)
            assert bool(said) is (minor <= last), (minor, method, said)
        padded = {"async_scheduling": True, "disable_padded_drafter_batch": True}
        assert bool(why(padded, version)) is (minor < 33)
    assert why({"async_scheduling": False, "method": "ngram"}) == ""


def test_fast_prefill_is_refused_with_drafts_from_hidden_states() -> None:
    for method, refused in (("eagle3", True), ("dflash", True), ("ngram", False)):
        assert bool(why({"kv_sharing_fast_prefill": True, "method": method})) is refused
        assert why({"kv_sharing_fast_prefill": True, "method": method}, n=0) == ""
