"""Adaptive verification, and drafts whose config.json tells what vLLM refuses."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.engine.rule import METHOD, Draft, Known
from autotune.engine.rules import why_infeasible
from autotune.study.space import DRAFT, N

ADAPTIVE = f"{DRAFT}enable_adaptive_verification"
CUDA = Known(platform="cuda")


def why(settings: dict[str, Any], version: str, known: Known = CUDA) -> str:
    return why_infeasible({N: 4, **settings}, version, known) or ""


def refused(settings: dict[str, Any], known: Known = CUDA) -> list[int]:
    """Return the minor versions that refuse the settings."""
    return [minor for minor in range(24, 34) if why(settings, f"0.{minor}.0", known)]


def of(draft: Draft, **more: Any) -> Known:
    return Known(platform="cuda", drafts={None: draft}, **more)


@pytest.mark.parametrize(
    ("settings", "versions"),
    [
        ({METHOD: "dspark"}, range(24, 28)),
        ({METHOD: "dflash"}, range(24, 30)),
        ({METHOD: "eagle3"}, range(24, 30)),
        ({METHOD: "draft_model"}, range(24, 31)),  # by model runner V1 in 0.30
        ({METHOD: "ngram"}, range(24, 32)),
        ({METHOD: "suffix"}, range(24, 34)),
        ({METHOD: "eagle3", f"{DRAFT}parallel_drafting": True}, range(24, 34)),
        ({METHOD: "dspark", "enable_lora": True}, range(24, 34)),
        ({METHOD: "dspark", "pipeline_parallel_size": 2}, range(24, 34)),
        ({METHOD: "dspark", "pipeline_parallel_size": 1}, range(24, 28)),
        ({METHOD: "dspark", "enforce_eager": True}, range(24, 34)),
        ({METHOD: "dspark", "optimization_level": 0}, range(24, 34)),
        ({METHOD: "dspark", "optimization_level": 1}, [*range(24, 28), *range(30, 34)]),
        ({METHOD: "dspark", "optimization_level": 2}, range(24, 28)),
        (
            {METHOD: "dspark", "compilation_config": {"cudagraph_mode": "PIECEWISE"}},
            [*range(24, 28), *range(30, 34)],
        ),
        (
            {METHOD: "dspark", "compilation_config.cudagraph_mode": "full_decode_only"},
            range(24, 28),
        ),
        ({METHOD: "dflash", f"{DRAFT}use_local_argmax_reduction": True}, range(24, 34)),
        ({METHOD: "dspark", f"{DRAFT}use_local_argmax_reduction": True}, range(24, 28)),
    ],
)
def test_adaptive_verification(settings: dict[str, Any], versions: Any) -> None:
    assert refused({ADAPTIVE: True, **settings}) == list(versions)
    assert refused({ADAPTIVE: True, **settings, N: 0}) == []


def test_adaptive_verification_needs_a_gpu_and_runner_v2() -> None:
    settings = {ADAPTIVE: True, METHOD: "dspark"}
    assert "CPU" in why(settings, "0.28.0", Known(platform="cpu"))
    v1 = Known(platform="cuda", v2=False)
    for minor in range(29, 34):
        assert "V2" in why(settings, f"0.{minor}.0", v1)
        assert "V2" in why({METHOD: "dspark"}, f"0.{minor}.0", v1)
        assert why({METHOD: "dflash"}, f"0.{minor}.0", v1) == ""
        head = of(Draft(architectures=frozenset({"DFlash2DraftModel"})), v2=False)
        assert "candidate head" in why({METHOD: "dflash"}, f"0.{minor}.0", head)
        assert "sliding" in why({METHOD: "dflash"}, f"0.{minor}.0", of(Draft(mixed=True), v2=False))
    assert why({METHOD: "dspark"}, "0.28.0", v1) == ""


@pytest.mark.parametrize(
    ("method", "draft", "target", "launches"),
    [
        # method, draft, target's model_type, versions → n that launch, of 1 to 9
        (
            "dspark",
            Draft(dspark_block=7),
            None,
            {24: "", 25: "all", 26: "789", 27: "789", 28: "all"},
        ),
        (
            "dspark",
            Draft(architectures=frozenset({"Gemma4DSparkModel"}), block=4),
            None,
            {25: "12348", 26: "12348", 30: "12348", 31: "all"},
        ),
        ("dspark", Draft(kind="deepseek_v41", dspark_block=4), None, {30: "12348", 31: "all"}),
        ("dspark", Draft(block=7), "qwen3_omni_moe", {28: "all", 29: "7", 33: "7"}),
        ("dspark", Draft(block=7), "qwen3", {33: "all"}),
        (
            "dflash",
            Draft(architectures=frozenset({"LiLiCorrDraftModel"}), block=8),
            None,
            {30: "all", 31: "1234567", 33: "1234567"},
        ),
        ("mtp", Draft(kind="inkling_mm_model"), None, {25: "all", 26: "1", 27: "1", 28: "all"}),
        ("mtp", Draft(kind="inkling_mtp", head_tokens=3), None, {27: "1", 28: "12369"}),
        ("mtp", Draft(one_token=True), None, {32: "all", 33: "1"}),
        ("mtp", Draft(head_tokens=2), None, {24: "12468", 33: "12468"}),
        ("mtp", Draft(), "deepseek_v41", {29: "all", 30: "", 33: ""}),
        ("eagle3", Draft(head_tokens=2, block=4, one_token=True), None, {26: "all", 33: "all"}),
    ],
)
def test_drafts_whose_config_tells(
    method: str, draft: Draft, target: str | None, launches: dict[int, str]
) -> None:
    for minor, expected in launches.items():
        known = of(draft, target=target)
        ns = [n for n in range(1, 10) if not why({METHOD: method, N: n}, f"0.{minor}.0", known)]
        wanted = "123456789" if expected == "all" else expected
        assert "".join(map(str, ns)) == wanted, minor
        assert why({METHOD: method, N: 0}, f"0.{minor}.0", known) == ""


def test_what_only_runner_v2_has_is_refused_with_drafts_of_v1() -> None:
    one_pass = {METHOD: "eagle3", f"{DRAFT}parallel_drafting": True}
    quantized = {**one_pass, f"{DRAFT}draft_lm_head_quantization": "fp8"}
    assert "V2" in why(quantized, "0.33.0")
    asynchronous = {**one_pass, "async_scheduling": True}
    assert why(asynchronous, "0.33.0") == ""
    assert why({**asynchronous, f"{DRAFT}disable_padded_drafter_batch": True}, "0.33.0") != ""


def test_a_draft_model_has_the_targets_vocabulary() -> None:
    for own, launches in ((1000, True), (500, False), (None, True)):
        drafts = {None: Draft(vocabulary=1000), "d": Draft(vocabulary=own)}
        settings = {METHOD: "draft_model", f"{DRAFT}model": "d"}
        known = Known(platform="cuda", drafts=drafts)
        assert refused(settings, known) == ([] if launches else list(range(24, 34)))
        assert refused({**settings, METHOD: "eagle3"}, known) == []
    two = {**settings, f"{DRAFT}use_heterogeneous_vocab": True}
    assert refused(two, Known(drafts={**drafts, "d": Draft(vocabulary=500)})) == [24]


def test_context_parallelism_of_kimi() -> None:
    known = of(Draft(architectures=frozenset({"K3DSparkModel"})))
    settings = {METHOD: "dspark", "decode_context_parallel_size": 2}
    assert refused(settings, known) == [24, 27, 28]  # 0.24 has no DSpark
    assert refused(settings) == [24]


def test_each_draft_has_its_own_facts() -> None:
    known = Known(drafts={"a": Draft(head_tokens=2), "b": Draft(head_tokens=3), None: Draft()})
    for name, launches in (("a", False), ("b", True), ("c", True)):
        settings = {METHOD: "mtp", N: 3, f"{DRAFT}model": name}
        assert (why(settings, "0.32.0", known) == "") is launches
    assert why({METHOD: "mtp", N: 3}, "0.32.0", known) == ""
