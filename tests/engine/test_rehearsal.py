"""Launches of a rehearsal: flags by version, the plugin, and what production leaves out."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from autotune.engine.command import LaunchPlan, plan_launch, production
from autotune.engine.launched import launched
from autotune.engine.probe import VllmInfo
from autotune.engine.rehearsal import (
    LABEL_VARIABLE,
    PLUGIN,
    PLUGIN_NAME,
    ROUTING_VARIABLE,
    SEED_VARIABLE,
    rehearsing,
    why_loaded_alike,
    why_no_experts,
    why_not_here,
    why_not_rehearsed,
)
from autotune.engine.rule import Known
from autotune.engine.rules import why_infeasible
from autotune.study.schema import StudySpec
from autotune.study.space import MNBT, N
from tests.study.test_rehearsal import DUMMY, SEVEN, loaded, spec_of

BOTH = {"acceptance": SEVEN, **DUMMY, "seed": 5}
BOXED = ["docker", "run", "--rm", "vllm/vllm-openai:v0.32.0"]
VERSIONS = [f"0.{minor}.0" for minor in range(24, 34)]


def info_of(version: str, device: str = "cuda") -> VllmInfo:
    return VllmInfo(version, "vllm", sys.executable, device, None, (), ())


def plan(spec: StudySpec, n: int, version: str = "0.32.0") -> LaunchPlan:
    return plan_launch(
        spec.server,
        {N: n, MNBT: 512},
        info_of(version),
        port=4321,
        launch_id="f00",
        resolve=lambda ref: ref,
    )


def draft_of(argv: tuple[str, ...]) -> dict[str, Any]:
    if "--speculative-config" not in argv:
        return {}
    found: dict[str, Any] = json.loads(argv[argv.index("--speculative-config") + 1])
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_gets_as_many_rates_as_it_wants(version: str) -> None:
    spec = spec_of(BOTH)
    known = Known(platform="cuda")
    for n in range(8):
        argv = plan(spec, n, version).argv
        assert argv[argv.index("--load-format") + 1] == "dummy"
        draft = draft_of(argv)
        assert bool(draft) is (n > 0)
        assert len(draft.get("synthetic_acceptance_rates", ())) == n
        assert "draft_load_config" not in draft  # both are loaded alike
        assert why_infeasible(spec.settings({N: n, MNBT: 512}), version, known) is None


def test_the_drafts_own_load_format() -> None:
    draft = draft_of(plan(spec_of({"weights": {"target": "dummy"}}), 3).argv)
    assert draft["draft_load_config"] == {"load_format": "auto"}
    p = plan(spec_of({"weights": {"draft": "dummy"}}), 3)
    assert draft_of(p.argv)["draft_load_config"] == {"load_format": "dummy"}
    assert "--load-format" not in p.argv
    # a version without the key is told by name, as for every key of a draft
    settings = spec_of({"weights": {"draft": "dummy"}}).settings({N: 3, MNBT: 512})
    assert all(why_infeasible(settings, v, Known(platform="cuda")) is None for v in VERSIONS)


def test_only_a_rehearsal_has_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    spec = spec_of(BOTH)
    p = plan(spec, 3)
    assert p.env["PYTHONPATH"] == os.pathsep.join((str(PLUGIN), "/mine"))
    assert p.env[SEED_VARIABLE] == "5"
    assert p.public_env[LABEL_VARIABLE] == spec.rehearsal_label
    assert "VLLM_PLUGINS" not in p.env
    real = plan(spec.without_rehearsal(), 3)
    assert real.env["PYTHONPATH"] == "/mine"
    assert not {LABEL_VARIABLE, SEED_VARIABLE} & real.env.keys()
    given = plan(spec_of({"acceptance": SEVEN}), 3)  # real weights need no plugin
    assert given.env["PYTHONPATH"] == "/mine"
    assert LABEL_VARIABLE in given.env


def test_a_list_of_plugins_gets_the_plugin() -> None:
    found = rehearsing(spec_of(DUMMY).server, {"VLLM_PLUGINS": "lora_filesystem_resolver"})
    assert found["VLLM_PLUGINS"] == f"lora_filesystem_resolver,{PLUGIN_NAME}"
    assert rehearsing(spec_of(DUMMY).server, {"VLLM_PLUGINS": ""})["VLLM_PLUGINS"] == PLUGIN_NAME


@pytest.mark.parametrize("by_study", [False, True])
def test_the_kept_list_of_plugins_is_the_users(
    monkeypatch: pytest.MonkeyPatch, by_study: bool
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "mine")
    spec = spec_of(DUMMY)
    if by_study:
        server = spec.server.model_copy(update={"env": {"VLLM_PLUGINS": "its"}})
        spec = spec.model_copy(update={"server": server})
    own = "its" if by_study else "mine"
    p = plan(spec, 3)
    assert p.env["VLLM_PLUGINS"] == f"{own},{PLUGIN_NAME}"
    # else the next run would say that it has changed, and a production command would have it
    assert p.public_env["VLLM_PLUGINS"] == own


def test_python_finds_the_plugin_by_its_path() -> None:
    [found] = metadata.distributions(path=[str(PLUGIN)])
    [entry] = found.entry_points
    assert (entry.group, entry.name) == ("vllm.general_plugins", PLUGIN_NAME)
    module, _, function = entry.value.partition(":")
    assert f"def {function}(" in (PLUGIN / f"{module}.py").read_text()


def plugin() -> ModuleType:
    sys.path.insert(0, str(PLUGIN))
    try:
        import autotune_rehearsal
    finally:
        sys.path.remove(str(PLUGIN))
    return autotune_rehearsal


def test_the_plugin_does_nothing_without_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SEED_VARIABLE, raising=False)
    plugin().register()  # would import vLLM
    assert plugin().SEED_VARIABLE == SEED_VARIABLE


@pytest.mark.parametrize("routing", ["uniform", "collapsed"])
def test_a_launch_routes_as_the_study_says(routing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    module = plugin()
    spec = spec_of({"acceptance": SEVEN, "routing": routing})  # the weights may be real
    p = plan(spec, 3)
    assert p.env[ROUTING_VARIABLE] in (module.UNIFORM, module.COLLAPSED)
    assert p.env[ROUTING_VARIABLE].endswith(routing)
    assert p.env["PYTHONPATH"] == str(PLUGIN)
    assert SEED_VARIABLE not in p.env
    assert module.ROUTING_VARIABLE == ROUTING_VARIABLE
    assert ROUTING_VARIABLE not in plan(spec_of(BOTH), 3).env
    words = launched(p.argv, None)
    assert words is not None
    real = spec.without_rehearsal().server
    assert "autotune" not in str(words.production(real, p.public_env, {}, lambda path: path))


def test_where_tokens_cannot_be_routed() -> None:
    def why(version: str, device: str = "cuda", **changes: object) -> str | None:
        study = loaded({**DUMMY, "routing": "uniform"}, **changes)
        info = info_of(version, device)
        return why_not_here(study.spec.server, info) or why_no_experts(study, info)

    shape = {"server__model": "shape:gemma-4-26b-a4b:w4a16"}
    plain = {"server__model": "shape:gemma-4-26b-a4b:bf16"}
    assert why("0.26.0", **shape) is None
    eager = {"server__flags": {"enforce-eager": True}}
    assert why("0.32.0", "cpu", **plain, **eager) is None
    assert "set enforce-eager: true in server.flags" in (why("0.32.0", "cpu", **plain) or "")
    assert why("0.32.0") is None  # a model that is not here yet
    assert "0.25.1 may not route tokens as it is told" in (why("0.25.1", **shape) or "")
    assert "on a CPU vLLM 0.32.0 routes quantized experts" in (
        why("0.32.0", "cpu", **shape, **eager) or ""
    )
    dense = why("0.32.0", server__model="shape:qwen3-8b:bf16") or ""
    assert dense == (
        "rehearsal.routing: shape:qwen3-8b:bf16 is no mixture of experts, so there is nothing to "
        "route; leave routing out"
    )
    study = loaded({"acceptance": SEVEN, "routing": "uniform"}, server__command=BOXED)
    assert "rehearsal.routing: needs a plugin" in (
        why_not_here(study.spec.server, info_of("0.32.0")) or ""
    )
    assert (
        why_no_experts(loaded(DUMMY, server__model="shape:qwen3-8b:bf16"), info_of("0.32.0"))
        is None
    )


@pytest.mark.parametrize(("experts", "top_k"), [(128, 8), (256, 8), (32, 4), (60, 4)])
def test_even_routing_touches_as_many_experts_as_independent_tokens(
    experts: int, top_k: int
) -> None:
    pytest.importorskip("torch")
    even = plugin().experts_of(6400, experts, top_k, collapsed=False)
    assert all(len(set(row)) == top_k for row in even[:200].tolist())
    assert (int(even.min()), int(even.max())) == (0, experts - 1)
    for tokens in (1, 14, 64):
        found = [len(x.unique()) for x in even.split(tokens) if len(x) == tokens]
        expected = experts * (1 - (1 - top_k / experts) ** tokens)
        assert sum(found) / len(found) == pytest.approx(expected, rel=0.02)
    same = plugin().experts_of(64, experts, top_k, collapsed=True)
    assert same.unique(dim=0).tolist() == [list(range(top_k))]


def test_layers_of_a_gpu_copy_rows_of_one_table() -> None:
    """The device is torch's `meta`, which has shapes and no numbers, as any but a CPU."""
    torch = pytest.importorskip("torch")
    routing = plugin().Routing(collapsed=False)

    def routed(tokens: int) -> Any:
        hidden, logits = (torch.empty(tokens, x, device="meta") for x in (64, 128))
        return routing.route_tokens(hidden, logits, top_k=8, indices_type=None)

    for tokens in (8192, 14, 1, 14):
        weights, experts = routed(tokens)
        assert (weights.shape, weights.dtype) == ((tokens, 8), torch.float32)
        assert (experts.shape, experts.dtype) == ((tokens, 8), torch.int32)
        assert experts.is_contiguous()
        [table] = routing._tables.values()
        assert table.shape == (1 << 14, 8)
    assert routed(1 << 15)[1].shape == (1 << 15, 8)  # more than the table had
    assert routed(14)[1].shape == (14, 8)


def test_packed_integers_are_filled_from_the_seed() -> None:
    torch = pytest.importorskip("torch")

    def model() -> Any:
        def integers(*shape: int, dtype: Any = torch.int32) -> Any:
            return torch.nn.Parameter(torch.full(shape, 77, dtype=dtype), requires_grad=False)

        layer = torch.nn.Linear(8, 4)
        layer.weight_packed = integers(64, 8)
        layer.weight_scale = integers(4, 4, dtype=torch.uint8)
        layer.weight_g_idx = integers(8)
        layer.weight_shape = integers(2)
        layer.w13_expert_map = integers(4, 4)
        layer.w2_blocks = integers(4, 64, dtype=torch.uint8)
        layer.qweight = integers(4, 64, dtype=torch.int8)
        layer.filled = integers(4, 64)
        layer.filled.dummy_weight_value = 77
        layer.register_buffer("positions", torch.arange(8, dtype=torch.int32))
        return torch.nn.ModuleList([layer])

    fill = plugin().fill
    one, two, other = model(), model(), model()
    floats = {k: v.clone() for k, v in one.named_parameters() if v.is_floating_point()}
    packed = {"weight_packed", "w2_blocks", "qweight"}
    size = 64 * 8 * 4 + 4 * 64 + 4 * 64
    assert fill(one, 5) == (len(packed), size)
    fill(two, 5)
    fill(other, 6)
    a, b, c = (dict(x[0].named_parameters()) for x in (one, two, other))
    for name in packed:
        assert torch.equal(a[name], b[name])
        assert not torch.equal(a[name], c[name])
        assert len(a[name].unique()) > 50
    assert a["weight_packed"].min() < 0 < a["weight_packed"].max()  # all bits are used
    assert a["weight_scale"].unique().tolist() == [115]
    assert a["weight_g_idx"].unique().tolist() == [0]
    for name in ("weight_shape", "w13_expert_map", "filled"):
        assert a[name].unique().tolist() == [77]
    assert one[0].positions.tolist() == list(range(8))
    assert all(torch.equal(v, dict(one.named_parameters())[k]) for k, v in floats.items())


@pytest.mark.parametrize("weights", [{"target": "dummy"}, {"draft": "dummy"}])
def test_a_version_that_loads_both_alike_is_refused(
    weights: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    one = spec_of({"weights": weights}).server
    v1 = spec_of({"weights": weights}, server__env={"VLLM_USE_V2_MODEL_RUNNER": "0"}).server
    for version in VERSIONS:
        said = why_loaded_alike(one, info_of(version))
        assert (said is None) is (version >= "0.31.0")
        assert said is None or f"vLLM {version} loads the draft as the target" in said
        assert said is None or why_not_here(one, info_of(version)) == said
        assert why_loaded_alike(one, info_of(version, "cpu")) is None
        assert why_loaded_alike(v1, info_of(version)) is None
        assert why_loaded_alike(spec_of(DUMMY).server, info_of(version)) is None
    small = {"server__speculative": {"method": "draft_model", "model": "org/small"}}
    told = why_loaded_alike(spec_of({"weights": weights}, **small).server, info_of("0.33.0"))
    assert "method draft_model loads the draft as the target" in (told or "")
    assert why_loaded_alike(spec_of(None).server, info_of("0.26.0")) is None


def test_where_it_cannot_be_rehearsed() -> None:
    gpu, cpu = info_of("0.32.0"), info_of("0.32.0", "cpu")
    both, dummy = spec_of(BOTH).server, spec_of(DUMMY).server
    assert "rehearsal.acceptance: vLLM 0.32.0 has no synthetic" in (why_not_here(both, cpu) or "")
    assert why_not_here(dummy, cpu) is None
    assert why_not_here(both, gpu) is None
    words = BOXED
    boxed = spec_of(DUMMY, server__command=words).server
    assert "rehearsal.weights: dummy weights need a plugin" in (why_not_here(boxed, gpu) or "")
    given = spec_of({"acceptance": SEVEN}, server__command=words).server
    assert why_not_here(given, gpu) is None
    assert why_not_here(spec_of(None).server, cpu) is None
    adaptive = {"speculative.enable_adaptive_verification": True}
    assert "adaptive verification" in (why_not_rehearsed(both, adaptive) or "")
    assert why_not_rehearsed(dummy, adaptive) is None
    assert why_not_rehearsed(both, {}) is None


@pytest.mark.parametrize("weights", ["dummy", {"target": "dummy"}])
def test_production_plays_nothing(weights: object) -> None:
    """Neither of the study nor of the words of a launch, which is all that another machine has."""
    spec = spec_of({"acceptance": SEVEN, "weights": weights})
    p = plan(spec, 3)
    real = spec.without_rehearsal()
    flags = production(
        real.server, {N: 3, MNBT: 512}, info_of("0.32.0"), resolve=lambda ref: ref
    ).flags
    words = launched(p.argv, None)
    assert words is not None
    kept = {**p.public_env, "AUTOTUNE_HIDE": "torchvision"}
    again = words.production(real.server, kept, {}, lambda path: path)
    assert again.flags == flags
    text = str((flags, again))
    assert not any(x in text for x in ("dummy", "synthetic", "load_config", PLUGIN.name))
    assert draft_of(tuple(w for flag in again.flags for w in flag)) == {
        "method": "dflash",
        "model": "org/draft",
        N: 3,
    }


def test_a_rehearsal_by_hand_is_exported_as_it_was_launched() -> None:
    flags = {"server__flags": {"load-format": "dummy"}}
    p = plan(spec_of(None, **flags), 0)
    words = launched(p.argv, None)
    assert words is not None
    again = words.production(spec_of(None).server, p.public_env, {}, lambda path: path)
    assert ("--load-format", "dummy") in again.flags


def test_the_plugin_is_in_the_package() -> None:
    assert PLUGIN.is_dir()
    assert (PLUGIN / "autotune_rehearsal-1.dist-info" / "entry_points.txt").is_file()
    assert Path(PLUGIN).parent.name == "engine"
