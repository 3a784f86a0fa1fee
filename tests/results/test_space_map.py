"""`autotune explain`: the map of a space before anything is launched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.engine.feasibility import known_for
from autotune.engine.gpus import Gpu
from autotune.engine.probe import VllmInfo
from autotune.engine.rule import Known
from autotune.engine.rules import why_infeasible
from autotune.errors import UserError
from autotune.results.space_map import State, explain, space_map
from autotune.results.views import TrialView
from autotune.study.files import LoadedStudy, load_study, parse_study
from autotune.study.space import MNBT, N
from tests.studies import autotune, write_study

DRAFT_TP = "speculative.draft_tensor_parallel_size"


def wide(folder: Path, **changes: object) -> LoadedStudy:
    """A grid with max_num_seqs 256, n = 0 to 15 and MNBT from 256 to 8192."""
    values = {
        "search": {"method": "grid"},
        "server__flags": {"max-num-seqs": 256},
        "space__max_num_batched_tokens": {"type": "pow2", "low": 256, "high": 8192},
        **changes,
    }
    return load_study(str(write_study(folder, **values)))


def trial(number: int, state: str, n: int, mnbt: int) -> TrialView:
    return TrialView(
        number=number,
        state=state,
        point={N: n, MNBT: mnbt},
        values=None,
        acceptance_length=None,
        acceptance_per_position=(),
        speedup=None,
        baseline=False,
        front=False,
        failure_kind=None,
        failure_reason=None,
        seconds=None,
    )


def test_the_map_says_of_every_point_what_the_rules_say(tmp_path: Path) -> None:
    loaded = wide(tmp_path)
    found = space_map(loaded.spec, "0.26.0")
    assert len(found.cells) == 96
    for c in found.cells:
        why = why_infeasible(loaded.spec.settings(c.point), "0.26.0")
        assert (c.state is State.CANNOT) is (why is not None)
    assert found.saved == found.count(State.CANNOT) == 45
    assert found.count(State.DOUBTFUL) == 4
    assert sum(r.count for r in found.reasons) == 49


def test_two_parameters_make_a_table_of_80_columns(tmp_path: Path) -> None:
    trials = [
        trial(0, "complete", 0, 2048),
        trial(1, "failed", 7, 2048),
        trial(2, "running", 1, 256),
    ]
    lines = space_map(wide(tmp_path).spec, "0.26.0", trials=trials).lines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "double on vLLM 0.26.0: 96 points, 51 can launch, 4 of them are doubtful"
    assert lines[2].split() == ["n", *map(str, range(16))]
    rows = {x.split()[-17]: x.split()[-16:] for x in lines[3:9]}
    assert rows["256"] == ["·", "?", *"×" * 14]
    assert rows["2048"] == ["●", *"·" * 6, "!", "?", *"×" * 7]
    assert rows["8192"] == ["·"] * 16
    text = "\n".join(lines)
    assert "· can launch   × cannot launch   ? doubtful   ● measured   ! failed" in text
    assert "45 points: MNBT with room for every request's drafts" in text
    assert "needs MNBT of at least 768 on vLLM 0.26.0; 256" in text
    assert lines[-1] == "launches saved: 45 (45 would fail)"


def test_more_parameters_are_counted_by_reason(tmp_path: Path) -> None:
    loaded = wide(
        tmp_path,
        **{
            "server__flags": {"tensor-parallel-size": 4},
            "space__max_num_seqs": {"type": "choice", "choices": [8, 512]},
            f"space__{DRAFT_TP}": {"type": "choice", "choices": [1, 2, 4]},
            "space__gpu_memory_utilization": {"type": "float", "low": 0.5, "high": 0.9},
        },
    )
    found = space_map(loaded.spec, "0.32.0")
    assert found.sampled
    assert len(found.cells) == 16 * 6 * 2 * 3 * 2
    counts = {r.rule: (r.state, r.count) for r in found.reasons}
    assert counts == {
        "draft_tensor_parallel_size 1 or the target's": (State.CANNOT, 15 * (6 + 5) * 2),
        "MNBT of at least max_num_seqs": (State.CANNOT, 16 * 3 * 2),
        "at n = 0 nothing of the draft matters": (State.SAME, (6 + 5) * 2 * 2),
    }
    assert found.saved == 330 + 96 + 44
    lines = found.lines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "such as n = 1, MNBT 256" in text
    assert "real-valued parameters are shown at their two ends" in text
    assert "launches saved: 470 (426 would fail, 44 would start a server that another" in text


def test_holes_of_the_graphs_are_told_on_a_gpu(tmp_path: Path) -> None:
    loaded = wide(tmp_path, server__flags={"max-num-seqs": 32}, workload__max_concurrency=8)
    found = space_map(loaded.spec, "0.26.0", Known(platform="cuda"))
    assert {n: found.holes[n] for n in (2, 4, 5)} == {2: (4, 5), 4: (3, 6), 5: (5,)}
    assert not {1, 3, 6, 7} & found.holes.keys()
    text = " ".join(" ".join(found.lines()).split())
    assert "requests without a full CUDA graph: n = 2: 4, 5; n = 4: 3, 6; n = 5: 5" in text
    assert space_map(loaded.spec, "0.26.0").holes == {}
    assert space_map(loaded.spec, "0.32.0", Known(platform="cuda")).holes == {}
    eager = wide(tmp_path, server__flags={"max-num-seqs": 32, "enforce-eager": True})
    assert space_map(eager.spec, "0.26.0", Known(platform="cuda")).holes == {}


def test_blackwell_has_graphs_of_more_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 0.28 on the list ends at 1024 tokens there: at n = 15 that is 64 requests, not 32."""
    loaded = wide(
        tmp_path,
        server__flags={"max-num-seqs": 128},
        workload__max_concurrency=65,
        space__num_speculative_tokens={"type": "choice", "choices": [0, 15]},
    )
    monkeypatch.setattr("autotune.results.space_map.has_gpu", lambda: True)
    for major, missed in ((10, (65,)), (9, tuple(range(33, 66)))):
        gpus = (Gpu("a GPU", 180 << 30, (major, 0)),)
        info = VllmInfo("0.33.0", "vllm", "/p", "cuda", None, (), (), gpus=gpus)
        assert explain(loaded, ask=lambda server, info=info: info).holes[15] == missed
        monkeypatch.setattr("autotune.results.space_map.vllms_gpus", lambda gpus=gpus: gpus)
        assert explain(loaded, "0.33.0").holes[15] == missed
        assert explain(loaded, "0.27.0").holes[15] == tuple(range(33, 66))


def test_a_doubt_is_told_with_its_own_name_and_source(tmp_path: Path) -> None:
    loaded = wide(tmp_path, server__speculative={"method": "suffix"})
    found = space_map(loaded.spec, "0.32.0", Known(platform="cuda"))
    doubtful = [r for r in found.reasons if r.state is State.DOUBTFUL]
    assert [(r.rule, r.count) for r in doubtful] == [("package for suffix decoding", 15 * 6)]
    assert doubtful[0].source.startswith("config/speculative.py: ")
    assert "arctic-inference" in doubtful[0].text


def test_what_the_targets_folder_tells(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = {"model_type": "llama", "max_position_embeddings": 64}
    (model / "config.json").write_text(json.dumps(config))
    loaded = wide(tmp_path, server__model="./model")
    info = VllmInfo("0.32.0", None, None, "cpu", None, (), ())
    known = known_for(loaded, info)
    assert (known.platform, known.model_max_len, known.plain_attention) == ("cpu", 64, True)
    allowed = wide(
        tmp_path, server__model="./model", server__env={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    )
    assert known_for(allowed, info).model_max_len is None
    assert known_for(wide(tmp_path), info).plain_attention is None  # a hub name


def test_the_demo_is_not_made_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not-made"))
    found = explain(load_study("demo-cpu"), "0.32.0")
    assert found.saved == 0
    assert list(tmp_path.iterdir()) == []


def test_the_vllm_of_the_study_is_asked(tmp_path: Path) -> None:
    info = VllmInfo("0.26.0", "vllm", "/p", "cpu", None, (), ())
    found = explain(wide(tmp_path), ask=lambda server: info)
    assert (found.vllm, found.platform) == ("0.26.0", "cpu")
    assert found.count(State.DOUBTFUL) == 0  # a matter of GPUs

    def none(server: object) -> VllmInfo:
        raise UserError("there is no vLLM in /p")

    with pytest.raises(UserError, match="no vLLM in /p; or name a version with --vllm"):
        explain(wide(tmp_path), ask=none)


def test_an_unknown_vllm_is_said(tmp_path: Path) -> None:
    lines = space_map(wide(tmp_path).spec, None).lines()
    assert "a vLLM of unknown version" in lines[0]
    assert "name one with --vllm" in " ".join(lines[1:3])


def test_the_command(tmp_path: Path) -> None:
    wide(tmp_path)
    done = autotune("explain", "double.yaml", "--vllm", "0.26.0", cwd=tmp_path)
    assert done.returncode == 0
    assert "launches saved: 45" in done.stdout
    done = autotune("explain", "double.yaml", "--vllm", "0.26.0", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (found["points"], found["cannot_launch"], found["launches_saved"]) == (96, 45, 45)
    assert found["reasons"][0]["points"] == 45
    assert "_set_max_num_scheduled_tokens" in found["reasons"][0]["source"]
    assert len(found["map"]) == 96
    assert not (tmp_path / "autotune.db").exists()
    done = autotune("explain", "double.yaml", "--vllm", "newest", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "autotune: --vllm: newest is no version; such as 0.32.0\n"


def test_budgets_that_cannot_bind_are_drawn_as_one() -> None:
    loaded = load_study("gemma-4-26b-rtx5090")
    for version in ("0.26.0", "0.32.0", "0.33.0"):
        found = explain(loaded, version)
        assert found.launched == 16
        assert found.count(State.ALIKE) == found.saved == 48
        assert found.to_json()["can_launch"] == 64
        assert found.to_json()["differ"] == 16
        text = " ".join("\n".join(found.lines()).split())
        assert "64 points, 64 can launch, 16 of them differ" in text
        assert "MNBT from 2048 up is the same here: one request of 256 tokens" in text
    likely = explain(loaded, "0.40.0")
    assert (likely.launched, likely.count(State.LIKELY)) == (16, 48)
    assert "that vLLM 0.40.0 schedules as 0.32 and 0.33 do" in " ".join(
        " ".join(likely.lines()).split()
    )


def test_a_grid_launches_every_budget(tmp_path: Path) -> None:
    one = {"server__flags": {"max-num-seqs": 1}, "workload__max_concurrency": 1}
    assert space_map(wide(tmp_path, **one).spec, "0.32.0").alike == 0
    searched = wide(tmp_path, **one, search={"method": "gp"})
    assert space_map(searched.spec, "0.32.0").alike > 0


def with_arms(folder: Path, arms: dict[str, Any]) -> LoadedStudy:
    raw = yaml.safe_load(write_study(folder).read_text())
    del raw["server"]["speculative"]
    raw["server"]["arms"] = arms
    raw["search"] = {"method": "grid"}
    raw["space"] = {
        N: {"type": "int", "low": 0, "high": 2},
        MNBT: {"type": "choice", "choices": [512, 1024]},
    }
    return parse_study(yaml.safe_dump(raw, sort_keys=False), folder / "arms.yaml")


def test_each_arm_has_a_map_and_is_asked_by_its_own_rules(tmp_path: Path) -> None:
    draft = {"method": "dflash", "model": "org/draft"}
    loaded = with_arms(
        tmp_path,
        {
            "fixed": draft,
            "adaptive": {**draft, "enable_adaptive_verification": True},
            "fly": {**draft, "rejection_sample_method": "fly"},
            "ngram": {
                "method": "ngram",
                "space": {
                    N: {"type": "int", "low": 1, "high": 4},
                    "prompt_lookup_max": {"type": "choice", "choices": [2, 4]},
                },
            },
        },
    )
    reasons = {
        version: {str(r.example["arm"]): r.text for r in space_map(loaded.spec, version).reasons}
        for version in ("0.27.0", "0.29.0", "0.33.0")
    }
    old = reasons["0.27.0"]
    assert "has no key enable_adaptive_verification in --speculative-config" in old["adaptive"]
    assert "has no rejection_sample_method fly" in old["fly"]
    assert "for dspark only, not for method dflash" in reasons["0.29.0"]["adaptive"]
    assert reasons["0.33.0"]["fly"].endswith("fly needs n of at least 2, not 1")
    on_cpu = space_map(loaded.spec, "0.32.0", Known(platform="cpu"))
    told = {r.example["arm"]: r.text for r in on_cpu.reasons}
    assert "needs model runner V2 and CUDA graphs; vLLM on a CPU has neither" in told["adaptive"]

    found = space_map(loaded.spec, "0.33.0")
    assert len(found.cells) == 2 * (1 + 2 + 2 + 2 + 4 * 2)
    assert [c.point for c in found.cells if c.point[N] == 0] == [
        {N: 0, MNBT: 512},
        {N: 0, MNBT: 1024},
    ]
    lines = found.lines()
    for name in ("fixed", "adaptive", "fly"):
        at = lines.index(f"arm {name}")
        assert lines[at + 1].split() == ["n", "0", "1", "2"]
    assert "arm ngram: 16 can launch" in lines
    assert max(map(len, lines)) <= 80
    # what is measured is marked in every map that has the point
    seen = [trial(0, "complete", 0, 512)]
    again = space_map(loaded.spec, "0.33.0", trials=seen)
    assert [c.point for c in again.cells if c.outcome] == [{N: 0, MNBT: 512}]


def test_a_lossy_arm_is_told_before_a_launch(tmp_path: Path) -> None:
    lossy = {"method": "dflash", "model": "org/draft", "rejection_sample_method": "fly"}
    found = explain(with_arms(tmp_path, {"risky": lossy}), "0.33.0")
    words = "arm risky: rejection_sample_method: fly is lossy"
    assert any(note.startswith(words) for note in found.notes)
