"""What a vLLM version cannot launch: each rule on both sides of its boundary."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from autotune.engine.cuda_graphs import most_tokens
from autotune.engine.draft_schedule import schedule_problem
from autotune.engine.entry import hiding
from autotune.engine.gpus import Gpu
from autotune.engine.probe import probe
from autotune.engine.rule import METHOD, Draft, Known
from autotune.engine.rules import (
    READ,
    RULES,
    doubts_of,
    infeasible,
    known_of,
    why_doubtful,
    why_infeasible,
    why_unread,
)
from autotune.study.schema import ServerSpec
from autotune.study.space import DRAFT, MNBT, N
from autotune.study.speculative import SCHEDULE

VERSIONS = [f"0.{minor}.0" for minor in range(24, 34)]
CPU, CUDA = Known(platform="cpu"), Known(platform="cuda")
BY_BATCH = f"{DRAFT}{SCHEDULE}"
TP, DRAFT_TP = "tensor_parallel_size", "speculative.draft_tensor_parallel_size"


def check(
    settings: Mapping[str, object],
    version: str | None,
    launches: bool,
    known: Known = CUDA,
    words: str = "",
) -> None:
    why = why_infeasible({METHOD: "dflash", **settings}, version, known)
    assert (why is None) is launches, why
    if why is not None:
        assert words in why
        assert "\n" not in why


OLD, MIDDLE, NEW = VERSIONS[:4], VERSIONS[4:9], VERSIONS[9:]


@pytest.mark.parametrize(
    ("versions", "n", "mnbt", "seqs", "launches"),
    [
        # 0.24 to 0.27: MNBT - (n - 1)·max_num_seqs tokens are left, and none is too few
        (OLD, 15, 2048, 256, False),
        (OLD, 15, 14 * 256, 256, False),
        (OLD, 15, 14 * 256 + 1, 256, True),
        (OLD, 12, 2048, 192, False),
        (OLD, 15, 2048, 128, True),
        (OLD, 8, 7, 1, False),
        (OLD, 8, 8, 1, True),
        (OLD, 1, 256, 256, True),
        # 0.28 to 0.32: MNBT > n
        (MIDDLE, 15, 2048, 256, True),
        (MIDDLE, 15, 16, 2, True),
        (MIDDLE, 15, 15, 2, False),
        # 0.33: MNBT > n + 1
        (NEW, 15, 2048, 256, True),
        (NEW, 15, 17, 2, True),
        (NEW, 15, 16, 2, False),
        (NEW, 11, 12, 2, False),
        (["0.33.1"], 15, 16, 2, False),
        # and never below max_num_seqs
        (VERSIONS, 0, 8, 16, False),
        (VERSIONS, 0, 16, 16, True),
        # unknown and older: only what all refuse
        ([None, "0.23.0"], 15, 2048, 256, True),
        ([None, "0.23.0"], 15, 16, 2, True),
        ([None, "0.23.0"], 15, 15, 2, False),
        # newer: what 0.32 and 0.33 refuse
        (["0.34.0", "1.0.0"], 15, 16, 2, True),
        (["0.34.0", "1.0.0"], 15, 15, 2, False),
    ],
)
def test_the_budget_has_room_for_drafts(
    versions: list[str | None], n: int, mnbt: int, seqs: int, launches: bool
) -> None:
    for version in versions:
        check({N: n, MNBT: mnbt, "max_num_seqs": seqs}, version, launches, words="at least")


def test_a_version_that_nobody_read_is_said_to_be_one() -> None:
    settings = {METHOD: "dflash", N: 15, MNBT: 15, "max_num_seqs": 2}
    newer = (
        "n = 15 with max_num_seqs = 2 needs MNBT of at least 16 on vLLM 0.32, "
        "17 to run on both 0.32 and 0.33; 15 would fail on both; 0.34.0 was not read"
    )
    unknown = (
        "n = 15 with max_num_seqs = 2 needs MNBT of at least 16 on vLLM 0.28 to 0.32, "
        "32 to run on all of 0.24 to 0.33; 15 would fail on all; the version is unknown"
    )
    for version, words in (("0.34.0", newer), (None, unknown)):
        assert why_infeasible(settings, version) == words
        assert why_infeasible({**settings, MNBT: 32}, version) is None
    # what they say is what each version says
    for version in VERSIONS:
        assert why_infeasible({**settings, MNBT: 32}, version) is None
        launches = why_infeasible({**settings, MNBT: 16}, version) is None
        assert launches is (version in MIDDLE)
    assert why_infeasible({**settings, N: 0, MNBT: 1}, None) == (
        "n = 0 with max_num_seqs = 2 needs MNBT of at least 2 on vLLM 0.24 to 0.33; "
        "1 would fail on all; the version is unknown"
    )
    assert (why_infeasible({N: 3, f"{DRAFT}synthetic_acceptance_length": 2}, None) or "").endswith(
        "needs rejection_sample_method: synthetic"
    )
    for version in VERSIONS:
        assert why_unread(version) is None
    # of a vLLM that was built without its version
    assert str(why_unread("dev")).startswith("the source of vLLM dev was not read")
    assert why_infeasible({MNBT: 0}, "dev") is not None
    assert doubts_of({MNBT: 64}, "dev") == ()
    assert most_tokens("dev", ()) == most_tokens(None, ())
    assert why_unread("0.34.0rc1") == (
        "the source of vLLM 0.34.0rc1 was not read: the rules of 0.33 are applied where 0.32 has "
        "them too"
    )
    for version in ("0.23.0", None):
        said = why_unread(version) or ""
        assert "only where 0.24 to 0.33 all refuse it" in said


def test_the_reason_reads_as_the_issue_asks() -> None:
    settings = {METHOD: "dflash", N: 15, MNBT: 2048, "max_num_seqs": 256}
    why = why_infeasible(settings, "0.26.0")
    assert why == (
        "n = 15 with max_num_seqs = 256 needs MNBT of at least 4096 on vLLM 0.26.0; 2048 would fail"
    )


@pytest.mark.parametrize(
    ("version", "method", "parallel", "fails", "works"),
    [
        ("0.26.0", "eagle3", False, 1, 2),  # no drafts in the batch; 1 is below max_num_seqs
        ("0.26.0", "draft_model", False, 2, 3),
        ("0.26.0", "draft_model", True, 10, 11),
        ("0.26.0", "eagle3", True, 8, 9),
        ("0.27.0", "draft_model", False, 2, 3),
        ("0.27.0", "dspark", False, 8, 9),
        ("0.28.0", "draft_model", False, 1, 2),
        ("0.28.0", "dspark", False, 4, 5),
        ("0.33.0", "dspark", False, 5, 6),  # 6 if it has a bonus token
        ("0.33.0", "eagle3", False, 5, 6),
        ("0.33.0", "eagle3", True, 5, 6),
        ("0.33.0", "mtp", False, 5, 6),
        ("0.33.0", "draft_model", False, 5, 6),
        ("0.33.0", "draft_model", True, 5, 6),
        ("0.33.0", "ngram", False, 1, 2),
        ("0.33.0", "dflash", False, 6, 7),
        ("0.32.0", "eagle3", True, 4, 5),
        ("0.32.0", "dspark", False, 4, 5),
        ("0.32.0", "draft_model", True, 5, 6),
        ("0.32.0", "dflash", False, 5, 6),
    ],
)
def test_other_methods_take_other_room(
    version: str, method: str, parallel: bool, fails: int, works: int
) -> None:
    settings: dict[str, object] = {N: 5, "max_num_seqs": 2, "speculative.method": method}
    if parallel:
        settings["speculative.parallel_drafting"] = True
    check({**settings, MNBT: fails}, version, False)
    check({**settings, MNBT: works}, version, True)


def test_a_default_of_max_num_seqs_counts_only_where_the_device_is_known() -> None:
    settings = {N: 15, MNBT: 2048}
    check(settings, "0.26.0", True, Known())
    check(settings, "0.26.0", False, CUDA, "vLLM's own max_num_seqs of 256 or more")
    check(settings, "0.26.0", True, CPU)  # 128: 14·128 = 1792
    check({**settings, TP: 2}, "0.26.0", False, CPU, "of 256 needs")
    check({N: 2, MNBT: 64}, "0.26.0", False, CUDA)  # it is lowered to MNBT, and still too many
    check({N: 1, MNBT: 64}, "0.26.0", True, CUDA)
    check({**settings, "max_num_seqs": "many"}, "0.26.0", True, CUDA)
    check({**settings, "pipeline_parallel_size": 2}, "0.26.0", False, CPU, "of 256 needs")
    check({**settings, "performance_mode": "throughput"}, "0.26.0", False, CPU, "of 256 needs")
    h100 = Known(platform="cuda", gpus=(Gpu("NVIDIA H100", 80 << 30, (9, 0)),))
    check({N: 4, MNBT: 3073}, "0.26.0", True, CUDA)
    check({N: 4, MNBT: 3073}, "0.26.0", True, h100)
    check({N: 4, MNBT: 3072}, "0.26.0", False, h100, "vLLM's own max_num_seqs of 1024 needs")
    check({N: 4, MNBT: 3072}, "0.26.0", True, CUDA)


@pytest.mark.parametrize("version", [*VERSIONS, None])
def test_adapters_need_room_for_all_drafts(version: str | None) -> None:
    settings = {N: 7, "max_num_seqs": 16, "enable_lora": True, METHOD: "eagle3"}
    check({**settings, MNBT: 127}, version, False, words="128")
    check({**settings, MNBT: 128}, version, True)
    check({**settings, MNBT: 127, N: 0}, version, True)
    check({**settings, MNBT: 127, "enable_lora": False}, version, True)


def test_a_draft_in_pipeline_stages() -> None:
    for version in VERSIONS:
        old = version in VERSIONS[:6]
        for method in ("dflash", "eagle", "eagle3"):
            stages = {METHOD: method, N: 3, MNBT: 2048, "max_num_seqs": 4}
            check({**stages, "pipeline_parallel_size": 2}, version, not old, words="stages")
            check({**stages, "pipeline_parallel_size": 1}, version, True)
            check({**stages, "pipeline_parallel_size": 2, N: 0}, version, True)
        check({**stages, "pipeline_parallel_size": 2, METHOD: "ngram"}, version, True)
        for kind, without in (("glm4_moe", True), ("nemotron_h", False)):
            known = Known(drafts={None: Draft(kind=kind)})
            staged = {**stages, "pipeline_parallel_size": 2, METHOD: "mtp"}
            check(staged, version, not (old and without), known)


@pytest.mark.parametrize("version", [*VERSIONS, None])
def test_numbers_that_cannot_be(version: str | None) -> None:
    for name in (MNBT, "max_num_seqs", "block_size"):
        check({name: 0}, version, False, words="at least 1")
        check({name: 1}, version, True)
    check({N: -1}, version, False, words="below 0")
    for share, launches in ((0, False), (0.0001, True), (1, True), (1.0001, False)):
        check({"gpu_memory_utilization": share}, version, launches)


@pytest.mark.parametrize("version", [*VERSIONS, None])
def test_the_budget_holds_every_request_and_a_whole_prompt(version: str | None) -> None:
    check({MNBT: 63, "max_num_seqs": 64}, version, False, words="max_num_seqs = 64")
    check({MNBT: 64, "max_num_seqs": 64}, version, True)
    flags = {"max_model_len": 1024, "enable_chunked_prefill": False}
    check({MNBT: 1023, **flags}, version, False, words="at least max_model_len")
    check({MNBT: 1024, **flags}, version, True)
    check({MNBT: 512, "max_model_len": 1024}, version, True)
    check({MNBT: 512, **flags, "max_model_len": "auto"}, version, True)


def test_rules_of_the_scheduler_that_came_or_went() -> None:
    active = {"max_num_active_seqs": 9, "max_num_seqs": 8}
    check(active, "0.32.0", False, words="max_num_active_seqs")
    check({**active, "max_num_seqs": 9}, "0.32.0", True)
    check(active, "0.31.0", False)
    check(active, "0.30.0", True)
    check({"max_num_active_seqs": 0}, "0.31.0", False, words="at least 1")
    for most, launches in ((129, False), (128, True)):
        check({"max_num_active_seqs": most}, "0.33.0", launches, CPU, "vLLM's own max_num_seqs")
    check({"max_num_active_seqs": 65, MNBT: 64}, "0.33.0", False, CPU, "max_num_seqs = 64")
    check({"max_num_active_seqs": 2000}, "0.33.0", True, CUDA)  # 256 or 1024
    long = {"long_prefill_token_threshold": 65, "max_model_len": 64}
    check(long, "0.32.0", False)
    check({**long, "max_model_len": 65}, "0.32.0", True)
    check(long, "0.26.0", True)
    check({"long_prefill_token_threshold": -1}, "0.25.0", False, words="at least 0")
    check({"long_prefill_token_threshold": -1}, "0.24.0", True)
    own = Known(model_max_len=64)
    for version in VERSIONS[:3]:
        check(long, version, True)
        for name in ("max_num_partial_prefills", "max_long_partial_prefills"):
            check({name: 2}, version, False, words="one prompt at a time")
            check({name: 1}, version, True)
    for version in VERSIONS[3:]:
        check(long, version, False, words="long_prefill_token_threshold")
        check({"long_prefill_token_threshold": 65}, version, False, own, "max_model_len = 64")
        check({"long_prefill_token_threshold": 64}, version, True, own)
        check({"max_long_partial_prefills": 2}, version, True)  # it has no such flag
    for version in VERSIONS:
        check({"prefill_schedule_interval": 0}, version, False, words="at least 1")


@pytest.mark.parametrize("version", [*VERSIONS, None])
def test_the_draft_has_one_worker_or_the_targets(version: str | None) -> None:
    for own, target, launches in ((1, 4, True), (4, 4, True), (2, 4, False), (2, 1, False)):
        check({N: 3, TP: target, DRAFT_TP: own}, version, launches)
    check({N: 3, DRAFT_TP: 2}, version, False, words="tensor_parallel_size = 1")
    check({N: 0, TP: 4, DRAFT_TP: 2}, version, True)  # no draft
    check({N: 3, "speculative.tensor_parallel_size": 1}, version, False)
    check({N: 3, DRAFT_TP: 2, "speculative.method": "ngram"}, version, True)


def test_lengths() -> None:
    own = {N: 3, "speculative.max_model_len": 2049, "max_model_len": 2048}
    check(own, "0.32.0", False, words="2049")
    check({**own, "max_model_len": 2049}, "0.32.0", True)
    check({**own, N: 0}, "0.32.0", True)
    check({"max_model_len": 2049}, "0.26.0", False, Known(model_max_len=2048), "the model's own")
    check({"max_model_len": 2048}, "0.26.0", True, Known(model_max_len=2048))
    check({"max_model_len": 2049}, "0.26.0", True)
    overridden = {"max_model_len": 2049, "hf_overrides": {}}
    check(overridden, "0.26.0", True, Known(model_max_len=2048))


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ([[1, 4, 7], [5, 64, 3]], None),
        ([[5, 64, 3], [1, 4, 7]], None),  # it is sorted
        ([[1, 4, 7], [9, 64, 0]], None),  # a gap goes on with what was before
        ([], None),
        ("1-4:7", "must be a list"),
        ([[1, 4]], "[1, 4] must be"),
        ([[2, 4, 7]], "begin at batch size 1, not 2"),
        ([[1, 4, 7], [4, 8, 3]], "two ranges have batch size 4"),
        ([[1, 0, 3]], "no range"),
        ([[0, 4, 3]], "no range"),
        ([[1, 4, -1]], "below 0"),
    ],
)
def test_a_schedule_of_n_by_batch_size(schedule: object, words: str | None) -> None:
    for version in VERSIONS:
        check({N: 7, BY_BATCH: schedule}, version, words is None, words=words or "")
        check({N: 0, BY_BATCH: schedule}, version, True)
    check({N: 7, BY_BATCH: schedule, "data_parallel_size": 2}, "0.32.0", True)

    with_replicas = {N: 7, BY_BATCH: [[2, 4, 7]], "data_parallel_size": 2}
    check(with_replicas, "0.25.0", False, words="begin at")
    check(with_replicas, "0.26.0", True)  # it is ignored
    check({N: 7, BY_BATCH: [[2, 4, 7]], METHOD: "suffix"}, "0.33.0", True)  # so here
    check({N: 7, BY_BATCH: [[2, 4, 7]], METHOD: "suffix"}, "0.32.0", False)


@pytest.mark.parametrize(
    ("dtype", "since"),
    [
        ("nvfp4", 24),
        ("int4_per_token_head", 25),
        ("nvfp4_4over6", 28),
        ("nvfp4_ds_mla", 30),
        ("ultraquant_4bit", 32),
        ("octave_k3v4", 33),
    ],
)
def test_a_cache_dtype_is_one_of_the_version(dtype: str, since: int) -> None:
    for minor in range(24, 33):
        check({"kv_cache_dtype": dtype}, f"0.{minor}.0", minor >= since, words="has no kv_cache")
    for version in ("0.33.0", "0.34.0", None):  # a plugin, or a later version, may have it
        check({"kv_cache_dtype": dtype}, version, True)
        check({"kv_cache_dtype": "int7"}, version, True)
    assert "only a plugin" in (why_doubtful({"kv_cache_dtype": "int7"}, "0.33.0") or "")
    assert why_doubtful({"kv_cache_dtype": dtype}, "0.33.0") is None


def test_drawn_tokens_with_drafts_on_a_cpu_are_doubted() -> None:
    drawing = replace(CPU, draws=True)
    assert "#55005" in (why_doubtful({N: 3}, "0.32.0", drawing) or "")
    for settings, known in (({N: 0}, drawing), ({N: 3}, CPU), ({N: 3}, replace(CUDA, draws=True))):
        assert why_doubtful(settings, "0.32.0", known) is None


def test_a_16_bit_cache_is_as_the_weights() -> None:
    weights = Known(platform="cuda", dtype="bfloat16")
    check({"kv_cache_dtype": "float16"}, "0.33.0", False, weights, "with weights in bfloat16")
    check({"kv_cache_dtype": "float16"}, "0.32.0", True, weights)
    check({"kv_cache_dtype": "bfloat16"}, "0.33.0", True, weights)
    check({"kv_cache_dtype": "float16", "dtype": "half"}, "0.33.0", True, weights)
    check({"kv_cache_dtype": "bfloat16", "dtype": "half"}, "0.33.0", False, weights)
    check({"kv_cache_dtype": "bfloat16", "dtype": "float32"}, "0.33.0", False, CUDA)
    check({"kv_cache_dtype": "fp8"}, "0.33.0", True, weights)
    check({"kv_cache_dtype": "float16"}, "0.33.0", True, CUDA)  # weights unknown


def test_the_weights_are_as_the_device_takes_them() -> None:
    llama = {"model_type": "llama", "dtype": "bfloat16"}
    new, old = Gpu("L4", 24 << 30, (8, 9)), Gpu("T4", 15 << 30, (7, 5))
    assert known_of(llama, "cuda", None, (new,)).dtype == "bfloat16"
    assert known_of(llama, "cuda", None, (old,)).dtype is None  # it takes float16 instead
    assert known_of(llama, "cuda", None).dtype is None
    assert known_of(llama, "cpu", None).dtype == "bfloat16"
    half = {"model_type": "llama", "torch_dtype": "float16"}
    assert known_of(half, "cuda", None, (old,)).dtype == "float16"
    assert known_of(half, "cpu", False).dtype == "float16"
    assert known_of(half, "cpu", None).dtype is None  # POWER takes bfloat16 instead
    assert known_of({**half, "model_type": "gemma3"}, "cuda", None, (old,)).dtype is None


def test_what_a_cpu_takes() -> None:
    plain = Known(platform="cpu", plain_attention=True)
    check({"block_size": 16}, "0.26.0", True, plain)
    check({"block_size": 24}, "0.26.0", False, plain, "multiple of 16")
    check({"block_size": 16}, "0.28.0", True, plain)
    check({"block_size": 16}, "0.29.0", False, plain, "multiple of 32")
    check({"block_size": 32}, "0.32.0", True, plain)
    check({"block_size": 24}, "0.32.0", True, CPU)  # another size is set for MLA
    check({"block_size": 24}, "0.32.0", True, Known(platform="cuda", plain_attention=True))
    old = Known(platform="cpu", cpu_fp8=False)
    check({"kv_cache_dtype": "fp8"}, "0.32.0", False, old, "AVX-512")
    check({"kv_cache_dtype": "auto"}, "0.32.0", True, old)
    check({"kv_cache_dtype": "fp8"}, "0.32.0", True, Known(platform="cpu", cpu_fp8=True))
    check({"kv_cache_dtype": "fp8"}, "0.32.0", True, CPU)


def test_graph_sizes() -> None:
    sizes, most = "cudagraph_capture_sizes", "max_cudagraph_capture_size"
    listed = {MNBT: 64, sizes: [8, 16, 128]}
    check({**listed, most: 16}, "0.26.0", True)  # 128 is above MNBT and left out
    check({**listed, most: 128}, "0.26.0", False, words="the largest of")
    check({**listed, most: 128, "enforce_eager": True}, "0.26.0", True)
    check({**listed, most: 128, "compilation_config": {"cudagraph_mode": "NONE"}}, "0.26.0", True)
    check({**listed, most: 128}, "0.26.0", True, CPU)
    check({**listed, most: 128}, "0.26.0", True, Known())
    twice = {sizes: [8], "compilation_config": {sizes: [8]}}
    check(twice, "0.24.0", False, words="given twice")
    check({sizes: [8], "compilation_config": {"mode": 3}}, "0.24.0", True)


def test_a_whole_prompt_is_as_long_as_the_models_own() -> None:
    own = Known(model_max_len=2048)
    for mnbt, launches in ((2047, False), (2048, True)):
        whole = {MNBT: mnbt, "enable_chunked_prefill": False, "max_num_seqs": 1}
        check(whole, "0.33.0", launches, own, "without chunked prefill")
        check({**whole, "max_model_len": 1024}, "0.33.0", True, own)


def test_a_budget_between_refused_and_sound_is_doubtful() -> None:
    # 7·256 < 2048 < 9·256
    settings: dict[str, object] = {METHOD: "dflash", N: 8, MNBT: 2048, "max_num_seqs": 256}
    assert why_infeasible(settings, "0.26.0") is None
    assert why_doubtful(settings, "0.26.0") == (
        "n = 8 with max_num_seqs = 256 drafts up to 2304 tokens at once: "
        "with MNBT = 2048 vLLM 0.26.0 may crash on a GPU"
    )
    assert why_doubtful({**settings, MNBT: 2304}, "0.26.0") is None
    assert why_doubtful({**settings, N: 15}, "0.26.0") is None  # refused for certain
    assert why_doubtful({**settings, N: 0}, "0.26.0") is None
    assert why_doubtful(settings, "0.26.0", CPU) is None
    for version in VERSIONS[4:7]:
        assert "may crash on a GPU" in (why_doubtful(settings, version) or "")
    for version in (*VERSIONS[7:], "0.34.0", None):
        assert why_doubtful(settings, version) is None


def test_a_draft_may_guess_beyond_its_block() -> None:
    for version in VERSIONS:
        known = Known(drafts={None: Draft(block=16)})
        check({N: 40, MNBT: 8192, "max_num_seqs": 4}, version, True, known)


def test_a_draft_that_a_version_does_not_have_is_doubted() -> None:
    """A plugin may add the architecture, so no rule forbids it."""
    since = {"LiLiCorrDraftModel": 31, "DFlash2DraftModel": 28, "DFlashDraftModel": 24}
    for name, first in since.items():
        known = Known(drafts={None: Draft(architectures=frozenset({name}))})
        for version in VERSIONS:
            settings = {METHOD: "dflash", N: 3, MNBT: 2048, "max_num_seqs": 16}
            has = int(version.split(".")[1]) >= first
            assert (f"no draft {name}" in (why_doubtful(settings, version, known) or "")) is not has
            assert why_infeasible(settings, version, known) is None


@pytest.mark.parametrize("version", [*VERSIONS, None])
def test_mtp_needs_a_head(version: str | None) -> None:
    mtp = {METHOD: "mtp", N: 1}
    without = Known(drafts={None: Draft(kind="qwen3", headless=True)})
    check(mtp, version, False, without, "the target (qwen3) has no head")
    check({**mtp, N: 0}, version, True, without)
    check({**mtp, "hf_overrides": {}}, version, True, without)
    check(mtp, version, True, Known(drafts={None: Draft(kind="glm4_moe")}))


def test_dspark_has_no_more_candidates_than_words() -> None:
    known = Known(drafts={None: Draft(drafted_vocabulary=1000)})
    top = {METHOD: "dspark", N: 3, MNBT: 64, f"{DRAFT}dspark_draft_topk": 1001}
    check(top, "0.28.0", False, known, "above the 1000 tokens")
    check({**top, f"{DRAFT}dspark_draft_topk": 1000}, "0.28.0", True, known)
    check(top, "0.28.0", True)  # the vocabulary is unknown


def test_what_a_models_config_tells() -> None:
    llama = {"model_type": "llama", "max_position_embeddings": 8192}
    assert known_of(llama, "cpu", False) == Known("cpu", 8192, True, False)
    for scaled in (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"model_max_length": 9000},
        {"seq_length": 4096},
    ):
        assert known_of({**llama, **scaled}, "cpu", None).model_max_len is None
    assert known_of({"model_type": "deepseek_v3"}, "cuda", None) == CUDA


def test_every_rule_says_where_it_was_read() -> None:
    for rule in RULES:
        assert ".py: " in rule.source, rule.name
        assert any(rule.holds(minor) for minor in READ)
    found = infeasible({METHOD: "dflash", N: 15, MNBT: 15}, "0.32.0")
    assert found is not None
    assert "_set_max_num_scheduled_tokens" in found.rule.source


# -- against the installed vLLM ------------------------------------------------------------------

_ASK = """
import json, sys
from types import SimpleNamespace as Fake
from typing import get_args
from vllm.config.cache import CacheConfig, CacheDType
from vllm.config.scheduler import SchedulerConfig
from vllm.config.speculative import SpeculativeConfig
from vllm.config.vllm import VllmConfig
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.spec_decode.dynamic.utils import validate_and_normalize_dynamic_sd_schedule
from vllm.v1.worker.utils import select_common_block_size

def ok(f, *args, **kwargs):
    try:
        f(*args, **kwargs)
    except (ValueError, AssertionError):
        return False
    return True

def batch(max_model_len=4096, **kwargs):
    SchedulerConfig(max_model_len=max_model_len, is_encoder_decoder=False, **kwargs)

def slots(method, parallel, n, mnbt):
    draft = Fake(
        num_speculative_tokens=n,
        parallel_drafting=parallel or method in ("dflash", "dspark"),
        use_dflash=lambda: method == "dflash",
        uses_draft_model=lambda: method == "draft_model",
    )
    own = SpeculativeConfig.max_num_new_slots_for_drafting.fget(draft)
    scheduler = Fake(max_num_batched_tokens=mnbt, max_num_scheduled_tokens=None, max_num_seqs=2)
    spec = Fake(max_num_new_slots_for_drafting=own)
    config = Fake(speculative_config=spec, scheduler_config=scheduler)
    VllmConfig._set_max_num_scheduled_tokens(config)

def workers(target, own):
    SpeculativeConfig._verify_and_get_draft_tp(Fake(tensor_parallel_size=target), own, Fake())

asked = json.load(sys.stdin)
do = {
    "batch": batch, "cache": CacheConfig, "slots": slots, "workers": workers,
    "schedule": validate_and_normalize_dynamic_sd_schedule,
    "cpu_blocks": lambda size: select_common_block_size(size, [CPUAttentionBackend]),
}
answers = [ok(do[what], **args) for what, args in asked]
print(json.dumps([answers, list(get_args(CacheDType))]))
"""


def _cases() -> list[tuple[str, dict[str, Any], bool]]:
    """What is asked of vLLM's own classes, and what our rules say of the same."""
    v = "0.32.0"
    cases: list[tuple[str, dict[str, Any], bool]] = []

    def add(what: str, args: dict[str, Any], settings: dict[str, object], known: Known) -> None:
        cases.append((what, args, why_infeasible(settings, v, known) is None))

    for mnbt, seqs, chunked in ((63, 64, True), (64, 64, True), (64, 8, False), (4096, 8, False)):
        flags = {MNBT: mnbt, "max_num_seqs": seqs, "enable_chunked_prefill": chunked}
        add("batch", flags, {**flags, "max_model_len": 4096}, CUDA)
    for active in (8, 9):
        flags = {"max_num_active_seqs": active, "max_num_seqs": 8}
        add("batch", flags, dict(flags), CUDA)
    for long in (4096, 4097):
        flags = {"long_prefill_token_threshold": long}
        add("batch", flags, {**flags, "max_model_len": 4096}, CUDA)
    add("batch", {"max_num_seqs": 0}, {"max_num_seqs": 0}, CUDA)
    for share in (0, 0.5, 1, 1.01):
        add("cache", {"gpu_memory_utilization": share}, {"gpu_memory_utilization": share}, CUDA)
    for size in (0, 16):
        add("cache", {"block_size": size}, {"block_size": size}, CUDA)
    for size in (16, 24, 32, 64, 128):
        plain = Known(platform="cpu", plain_attention=True)
        add("cpu_blocks", {"size": size}, {"block_size": size}, plain)
    for method in ("dflash", "dspark", "eagle3", "draft_model"):
        for parallel in (False, True):
            for mnbt in (2, 4, 5, 6):
                settings: dict[str, object] = {N: 5, MNBT: mnbt, "speculative.method": method}
                if parallel:
                    settings["speculative.parallel_drafting"] = True
                args = {"method": method, "parallel": parallel, "n": 5, "mnbt": mnbt}
                add("slots", args, settings, Known())
    for target, own in ((4, 1), (4, 2), (4, 4), (1, 2)):
        add(
            "workers",
            {"target": target, "own": own},
            {METHOD: "dflash", N: 3, TP: target, DRAFT_TP: own},
            CUDA,
        )
    for schedule in (
        [[1, 4, 7], [5, 64, 3]],
        [[5, 64, 3], [1, 4, 7]],
        [[2, 4, 7]],
        [[1, 4, 7], [4, 8, 3]],
        [[1, 0, 3]],
        [[1, 4, -1]],
        [[1, 4]],
        "1-4:7",
    ):
        args = {"num_speculative_tokens_per_batch_size": schedule}
        cases.append(("schedule", args, schedule_problem(schedule) is None))
    return cases


@pytest.mark.real
def test_the_installed_vllm_agrees() -> None:
    """One Python that imports vLLM: ten seconds."""
    info = probe(ServerSpec(model="demo:target"))
    if info.python is None or not (info.version or "").startswith("0.32."):
        pytest.skip(f"the rules of 0.32 are asked about, not of {info.version}")
    cases = _cases()
    done = subprocess.run(
        [info.python, "-c", _ASK],
        input=json.dumps([(what, args) for what, args, _ in cases]),
        env={**os.environ, **hiding(info.hidden, os.environ)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    answers, dtypes = json.loads(done.stdout.splitlines()[-1])
    wrong = [
        (what, args, "vLLM takes it" if theirs else "vLLM refuses it")
        for (what, args, ours), theirs in zip(cases, answers, strict=True)
        if ours is not theirs
    ]
    assert wrong == []
    for dtype in dtypes:
        check({"kv_cache_dtype": dtype}, "0.32.0", True)
    check({"kv_cache_dtype": "int7"}, "0.32.0", False)
