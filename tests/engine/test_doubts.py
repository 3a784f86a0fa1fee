"""What may go wrong although no rule forbids it, in the versions where it may and in the others."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.engine.rule import METHOD, Draft, Known
from autotune.engine.rules import doubts_of, why_doubtful
from autotune.study.space import DRAFT, MNBT, N
from autotune.study.speculative import SCHEDULE

CPU, CUDA = Known(platform="cpu"), Known(platform="cuda")
BY_BATCH = {f"{DRAFT}{SCHEDULE}": [[1, 4, 4], [5, 8, 1]]}
ADAPTIVE = {f"{DRAFT}enable_adaptive_verification": True}


def doubted(settings: dict[str, Any], words: str, known: Known = CUDA) -> list[int]:
    """Return the minor versions with a doubt that has some words."""
    return [
        minor
        for minor in range(24, 34)
        if any(words in x.text for x in doubts_of({N: 4, **settings}, f"0.{minor}.0", known))
    ]


@pytest.mark.parametrize(
    ("settings", "words", "versions", "known"),
    [
        ({METHOD: "dflash", "data_parallel_size": 2, **BY_BATCH}, "ignores", range(26, 34), CUDA),
        ({METHOD: "dflash", "data_parallel_size": 1, **BY_BATCH}, "ignores", [], CUDA),
        ({METHOD: "suffix", **BY_BATCH}, "ignores", [33], CUDA),
        ({METHOD: "dflash", **BY_BATCH}, "no full CUDA graphs", [24], CUDA),
        (
            {METHOD: "dflash", **BY_BATCH},
            "no full CUDA graphs",
            range(24, 34),
            Known(platform="cuda", v2=False),
        ),
        ({METHOD: "suffix"}, "arctic-inference", range(24, 34), CUDA),
        ({METHOD: "dspark", **ADAPTIVE}, "attention backends", range(28, 34), CUDA),
        ({METHOD: "ngram", **ADAPTIVE}, "logits", [32, 33], CUDA),
        ({METHOD: "dspark"}, "Triton", range(25, 34), CPU),
        ({METHOD: "ngram", "async_scheduling": True}, "Triton", [33], CPU),
        ({METHOD: "dspark"}, "Triton", [], CUDA),
        ({METHOD: "eagle3", "use_replayssm": True, "replayssm_buffer_len": 4}, "5", [32, 33], CUDA),
        ({METHOD: "eagle3", "use_replayssm": True, "replayssm_buffer_len": 5}, "5", [], CUDA),
    ],
)
def test_doubts(settings: dict[str, Any], words: str, versions: Any, known: Known) -> None:
    assert doubted(settings, words, known) == list(versions)
    if METHOD in settings:
        assert doubted({**settings, N: 0}, words, known) == []


def test_a_shorter_draft_shortens_the_target() -> None:
    known = Known(drafts={None: Draft(length=2048)})
    for length, versions in ((2048, []), (2049, [33])):
        settings = {METHOD: "draft_model", "max_model_len": length}
        assert doubted(settings, "lowers max_model_len", known) == versions
        assert doubted({**settings, METHOD: "eagle3"}, "lowers max_model_len", known) == []


def test_a_bonus_token_may_throttle_a_dspark_draft() -> None:
    settings = {METHOD: "dspark", N: 15, MNBT: 256, "max_num_seqs": 64}
    for load, versions in ((16, []), (17, [33]), (18, []), (None, [])):
        known = Known(platform="cuda", load=load)
        assert doubted(settings, "may let 16 requests run", known) == versions
    sure = Known(load=17, drafts={None: Draft(from_anchor=True)})
    assert doubted(settings, "may let", sure) == []


def test_several_doubts_are_one_line() -> None:
    settings = {METHOD: "dflash", N: 4, "data_parallel_size": 2, **BY_BATCH, "kv_cache_dtype": "x"}
    said = why_doubtful(settings, "0.33.0", CUDA) or ""
    assert said.count("; ") == 1
    assert "\n" not in said
    assert why_doubtful({**settings, "gpu_memory_utilization": 2.0}, "0.33.0", CUDA) is None
