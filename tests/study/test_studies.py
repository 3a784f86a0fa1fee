"""The bundled studies load, say what the documentation says, and their prompts fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.bench.workload import build_workload
from autotune.engine.feasibility import known_for
from autotune.engine.gpus import Gpu
from autotune.engine.memory_fit import need_of, why_no_weights, why_too_large
from autotune.engine.probe import UNKNOWN
from autotune.engine.rules import why_infeasible
from autotune.storage.store import opened
from autotune.study.checkpoints import config_of
from autotune.study.files import bundled_studies, load_study, studies_folder
from autotune.study.model_size import kv_cache_of
from autotune.study.space import MNBT, IntParam, N, Pow2Param
from autotune.tuning.load_map_requests import part_sizes

DEMO = ("demo-cpu", "demo-cpu-random")
GEMMA = ("gemma-4-26b-rtx5090", "gemma-4-26b-rtx5090-sweep")
ARMS = "demo-cpu-arms"
LOAD = "gemma-4-26b-h200-load-rehearsal"
REHEARSALS = ("gemma-4-26b-rehearsal", "gemma-4-26b-h200-rehearsal")
H200 = ("smollm2-h200", "smollm2-h200-c8", "smollm2-h200-c32")


def test_exactly_the_documented_studies_are_bundled() -> None:
    assert set(bundled_studies()) == {*DEMO, ARMS, *GEMMA, *REHEARSALS, LOAD, *H200}


@pytest.mark.parametrize("name", DEMO + GEMMA + REHEARSALS + H200)
def test_study_loads_and_its_workload_can_be_built(name: str) -> None:
    loaded = load_study(name)
    spec = loaded.spec
    assert spec.name == name
    assert spec.space[N] == IntParam(type="int", low=0, high=15)
    assert [o.name for o in spec.objectives][:2] == ["throughput", "p95_latency"]
    workload = build_workload(spec.workload, loaded.base)
    assert len(workload.measured) == spec.workload.num_prompts


@pytest.mark.parametrize("name", DEMO)
def test_demo_studies(name: str) -> None:
    spec = load_study(name).spec
    assert spec.server.model == "demo:target"
    assert spec.server.command is None
    assert spec.server.speculative is not None
    assert spec.server.draft_settings({"num_speculative_tokens": 3}) == {
        "method": "dflash",
        "model": "demo:draft",
        N: 3,
    }
    assert spec.server.flags == {
        "max_num_seqs": 4,
        "max_model_len": 1024,
        "dtype": "float32",
        "enforce_eager": True,
    }
    assert spec.server.env == {"VLLM_CPU_KVCACHE_SPACE": "1"}
    assert spec.space[MNBT] == Pow2Param(type="pow2", low=64, high=512)
    w = spec.workload
    assert (w.num_prompts, w.warmup_prompts, w.output_len, w.max_concurrency) == (24, 2, 16, 1)
    assert w.ignore_eos
    assert w.temperature == 0.0
    assert (w.prompts is None) == (name == "demo-cpu-random")


def test_the_demo_with_arms_differs_from_the_demo_in_how_it_drafts() -> None:
    spec, demo = load_study(ARMS).spec, load_study("demo-cpu").spec
    assert list(spec.server.drafts) == ["fixed", "by-load", "ngram"]
    assert spec.server.of_arm("fixed").speculative == demo.server.speculative
    # two at a time: with one, a schedule by load would always draft the same
    assert (spec.workload.max_concurrency, demo.workload.max_concurrency) == (2, 1)
    space = spec.to_space()
    assert (space.fixed_n("by-load"), space.fixed_n("ngram")) == (3, None)


def test_a_database_of_the_earlier_demo_goes_on_with_its_text(tmp_path: Path) -> None:
    results = studies_folder() / "results"
    database = shutil.copy(results / "demo-cpu-against-grid" / "autotune.db", tmp_path)
    text = load_study(str(results / "demo-cpu-again" / "study.yaml"))
    with opened(Path(database)) as store:
        row = store.load_study(text.spec.name)[1]
        assert row.fingerprint in store.fingerprints(text)
        assert row.fingerprint not in store.fingerprints(load_study("demo-cpu"))


@pytest.mark.parametrize("name", [*DEMO, ARMS])
def test_every_point_of_the_demo_can_be_launched(name: str) -> None:
    spec = load_study(name).spec
    points = spec.to_space().points()
    assert points is not None
    assert not [p for p in points if why_infeasible(spec.settings(p), "0.32.0")]


@pytest.mark.parametrize(("name", "load"), list(zip(H200, (1, 8, 32), strict=True)))
def test_h200_studies(name: str, load: int) -> None:
    spec = load_study(name).spec
    assert (spec.server.model, spec.server.command) == ("demo:target", None)
    assert spec.server.flags.items() >= {"max_num_seqs": 32, "max_model_len": 2048}.items()
    assert spec.space[MNBT] == Pow2Param(type="pow2", low=2048, high=16384)
    assert (spec.workload.max_concurrency, spec.workload.output_len) == (load, 256)
    points = spec.to_space().points()
    assert points is not None
    assert not [p for p in points if why_infeasible(spec.settings(p), "0.26.0")]


@pytest.mark.parametrize("name", GEMMA)
def test_gemma_studies(name: str) -> None:
    spec = load_study(name).spec
    assert spec.server.model == "cyankiwi/gemma-4-26B-A4B-it-AWQ-4bit"
    assert spec.server.speculative is not None
    assert spec.server.draft_settings({"num_speculative_tokens": 15}) == {
        "method": "dflash",
        "model": "z-lab/gemma-4-26B-A4B-it-DFlash",
        "attention_backend": "flash_attn",
        N: 15,
    }
    assert spec.server.env == {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
    flags = dict(spec.server.flags)
    fixed_mnbt = flags.pop(MNBT, None)
    assert flags == {
        "max_num_seqs": 1,
        "max_model_len": 2048,
        "gpu_memory_utilization": 0.93,
        "kv_cache_dtype": "fp8",
        "trust_remote_code": True,
    }
    w = spec.workload
    assert w.random is not None
    assert (w.random.input_len, w.output_len) == (256, 1024)
    assert (w.request_rate, w.max_concurrency, w.ignore_eos) == (1, 1, True)
    assert w.latency_origin == "send"
    assert (w.temperature, w.confirm_prompts or w.num_prompts) == (0.0, 20)
    if name.endswith("-sweep"):
        assert fixed_mnbt == 4096
        assert spec.search.method == "grid"
        assert spec.to_space().size() == 16
        assert spec.budget.trials == 16 + spec.budget.confirm_of(spec.budget.trials)
    else:
        assert fixed_mnbt is None
        assert spec.space[MNBT] == Pow2Param(type="pow2", low=2048, high=16384)
        assert spec.search.method == "gp"
        assert spec.budget.trials == 40


@pytest.mark.parametrize("name", REHEARSALS)
def test_rehearsals_of_gemma(name: str) -> None:
    """They fit the GPU that they are for, and every point of them can launch."""
    loaded = load_study(name)
    spec = loaded.spec
    assert spec.rehearsal_label == (
        "rehearsal: weights are random, and so is routing to experts (one point of a band), "
        "acceptance was given, step times are real"
    )
    assert spec.workload == load_study(GEMMA[0]).spec.workload.model_copy(
        update={
            "request_rate": float("inf"),
            "latency_from": spec.workload.latency_from,
            "warmup_prompts": spec.workload.warmup_prompts,
        }
    )
    assert why_no_weights(loaded) is None
    gpu = Gpu("a GPU", (24 if name == REHEARSALS[0] else 140) << 30, (8, 9))
    info = replace(UNKNOWN, device="cuda", version="0.26.0", gpus=(gpu,))
    assert why_too_large(loaded, info, None) is None
    need = need_of(loaded)
    assert need is not None
    assert need.total * (spec.server.ahead + 1) < 0.92 * gpu.memory
    points = spec.to_space().points()
    assert points is not None
    known = known_for(loaded, info)
    for version in ("0.26.0", "0.32.0"):
        bad = [p for p in points if why_infeasible(spec.settings(p), version, known)]
        assert bad == []
    config = spec.server.draft_settings({N: 13})
    assert len(config["synthetic_acceptance_rates"]) == 13


def test_the_rehearsal_under_load() -> None:
    """Every n can launch with both MNBT, and the KV cache has room for all requests at once."""
    loaded = load_study(LOAD)
    spec = loaded.spec
    gpu = Gpu("a GPU", 140 << 30, (9, 0))
    info = replace(UNKNOWN, device="cuda", version="0.26.0", gpus=(gpu,))
    assert why_too_large(loaded, info, None) is None
    points = [*(spec.to_space().points() or ())]
    assert len(points) == 8
    known = known_for(loaded, info)
    for version in ("0.26.0", "0.32.0"):
        assert not [p for p in points if why_infeasible(spec.settings(p), version, known)]
    kv = kv_cache_of(config_of(spec.server.model, loaded.base) or {})
    length, places = spec.server.flags["max_model_len"], spec.server.flags["max_num_seqs"]
    assert kv is not None
    assert isinstance(length, int)
    assert isinstance(places, int)
    assert places * kv.of_request(length) < int(str(spec.server.flags["kv_cache_memory_bytes"]))
    assert spec.workload.max_concurrency == places
    sizes = [part_sizes(spec, load) for load in (1, 4, 16, 64)]
    assert sizes == [(16, 16), (16, 16), (32, 64), (128, 256)]


def test_demo_prompts_are_varied_and_end_with_the_user() -> None:
    path = studies_folder() / "prompts" / "demo-chat.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({r["id"] for r in rows}) == len(rows) >= 60
    assert len({json.dumps(r["messages"]) for r in rows}) == len(rows)
    words = [sum(len(m["content"].split()) for m in r["messages"]) for r in rows]
    assert sum(w >= 150 for w in words) >= len(rows) // 4
    assert max(words) <= 500
    for r in rows:
        roles = [m["role"] for m in r["messages"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        assert all(m["content"].strip() for m in r["messages"])
