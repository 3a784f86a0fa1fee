"""Families of budgets in a study, and what `best` and the report say of a winner's MNBT."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.engine.rule import Known
from autotune.results import budget_note
from autotune.results.batch_budget import Families, families_of, load_of
from autotune.results.measured import Measured
from autotune.results.measured import measured as measured_launch
from autotune.results.space_map import State, space_map
from autotune.results.trials import study_view
from autotune.storage.store import opened
from autotune.study.files import load_study
from autotune.study.space import MNBT, N
from tests.paths import ROOT
from tests.studies import autotune, write_study

ONE = {
    "server__flags": {"max-num-seqs": 1, "max-model-len": 64},
    "workload__max_concurrency": 1,
}


def families(folder: Path, version: str = "0.33.0", **changes: object) -> Families:
    spec = load_study(str(write_study(folder, **{**ONE, **changes}))).spec
    return families_of(spec, version, Known(platform="cpu"))


def test_a_study_s_load(tmp_path: Path) -> None:
    load = load_of(load_study(str(write_study(tmp_path, **ONE))).spec.workload)
    assert (load.concurrency, load.prompt, load.output, load.images) == (1, 16, 12, False)
    chats = load_of(load_study("demo-cpu").spec.workload)
    assert (chats.concurrency, chats.prompt, chats.output, chats.images) == (1, None, 16, None)


def test_the_smallest_budget_that_can_launch_stands_for_the_others(tmp_path: Path) -> None:
    found = families(tmp_path)
    assert found.stands_for({N: 3, MNBT: 2048}, certain=True) == {N: 3, MNBT: 32}
    assert found.stands_for({N: 3, MNBT: 32}, certain=True) == {N: 3, MNBT: 32}
    assert found.sentence({N: 3, MNBT: 64}) == (
        "MNBT from 32 up is the same here: one request of 16 tokens never fills it"
    )
    seqs = {"server__flags": {"max-num-seqs": 100, "max-model-len": 64}}
    many = families(tmp_path, **seqs)  # vLLM refuses MNBT below max_num_seqs
    assert many.of({N: 3, MNBT: 64}) is None
    assert many.stands_for({N: 3, MNBT: 64}, certain=True) == {N: 3, MNBT: 64}
    assert many.stands_for({N: 3, MNBT: 2048}, certain=True) == {N: 3, MNBT: 128}


def test_a_budget_that_binds_stands_for_itself(tmp_path: Path) -> None:
    found = families(tmp_path, "0.28.0", workload__random={"input_len": 50})
    for n, least in ((0, 64), (14, 64), (15, 128)):  # 50 + n
        stands = found.stands_for({N: n, MNBT: 1024}, certain=True)
        assert stands == {N: n, MNBT: least}
    assert found.stands_for({N: 0, MNBT: 32}, certain=False) == {N: 0, MNBT: 32}
    assert found.sentence({N: 0, MNBT: 32}) is None


def test_a_study_without_classes_has_none(tmp_path: Path) -> None:
    spec = load_study(str(write_study(tmp_path, **ONE))).spec
    long = load_study(str(write_study(tmp_path, **ONE, workload__random={"input_len": 5000}))).spec
    no_length = {"server__flags": {"max-num-seqs": 1}}
    flags = {**ONE, **no_length, "workload__random": {"input_len": 5000}}
    long = load_study(str(write_study(tmp_path, **flags))).spec
    assert families_of(long, "0.33.0").alike(long.to_space()) is None
    assert families_of(spec, "0.33.0").alike(spec.to_space()) is not None


@pytest.mark.parametrize("version", ["0.26.0", "0.33.0"])
def test_explain_and_search_have_the_same_classes(tmp_path: Path, version: str) -> None:
    spec = load_study(str(write_study(tmp_path, **ONE))).spec
    known = Known(platform="cpu")
    alike = families_of(spec, version, known).alike(spec.to_space())
    assert alike is not None
    for cell in space_map(spec, version, known).cells:
        stands = alike.likely(cell.point)
        assert (stands != cell.point) is (cell.state in {State.ALIKE, State.LIKELY})
        if cell.state is State.ALIKE:
            assert alike.certain(cell.point) == stands


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A folder with the database of a study at concurrency 1 whose winner has MNBT 16384."""
    shutil.copy(ROOT / "studies/results/smollm2-h200/autotune.db", tmp_path)
    return tmp_path


def test_best_and_the_report_say_which_budget_is_enough(measured: Path) -> None:
    why = "MNBT from 4096 up is the same here: one request of up to 2048 tokens and 224 for"
    said = " ".join(autotune("best", cwd=measured).stdout.split())
    assert why in said
    assert "Serve MNBT 4096, the smallest that does not bind: it needs less memory." in said
    assert autotune("report", "--out", "page.md", cwd=measured).returncode == 0
    assert why in " ".join((measured / "page.md").read_text().split())


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ((), "MNBT 4096 likely serves as well"),
        ((900.0, 930.0), "A launch with a larger one was no different. Serve MNBT 4096"),
        ((900.0, 1200.0), None),
    ],
)
def test_a_check_settles_what_was_likely(
    measured: Path,
    monkeypatch: pytest.MonkeyPatch,
    rates: tuple[float, ...],
    words: str | None,
) -> None:
    launches = [
        budget_note.ComparedLaunch({N: 8, MNBT: mnbt}, (-math.log(rate), 0.0), (1e-4, 1e-4))
        for mnbt, rate in zip((4096, 16384), rates, strict=False)
    ]
    monkeypatch.setattr(budget_note, "compared_launches", lambda *_: launches)

    def unread(*args: Any) -> Measured | None:
        found = measured_launch(*args)
        return found and replace(found, info=replace(found.info, version="0.40.0"))

    monkeypatch.setattr(budget_note, "measured", unread)
    with opened(measured / "autotune.db") as store:
        view = study_view(store, "smollm2-h200")
        trial = view.best()
        assert trial is not None
        note = budget_note.budget_note(store, view, trial)
    assert (note is None) if words is None else (note is not None and words in note)


def test_launches_are_as_the_search_sees_them(measured: Path) -> None:
    with opened(measured / "autotune.db") as store:
        view, spec = study_view(store, "smollm2-h200"), store.load_study("smollm2-h200")[0].spec
        found = list(budget_note.compared_launches(store, spec, "smollm2-h200", view.objectives))
    own = [t for t in view.trials if t.values]
    assert [x.point for x in found] == [t.point for t in own]
    assert all(x.costs[0] < 0 < x.costs[1] for x in found)
    assert all(0 < v < 0.02 for x in found for v in x.variances)


def test_classes_are_of_one_arm(tmp_path: Path) -> None:
    arms = {
        "parallel": {"method": "dflash", "model": "org/draft"},
        "text": {"method": "ngram", "prompt_lookup_max": 4},
    }
    file = write_study(tmp_path, **ONE, workload__random={"input_len": 50}, server__arms=arms)
    raw = yaml.safe_load(file.read_text())
    del raw["server"]["speculative"]
    file.write_text(yaml.safe_dump(raw))
    spec = load_study(str(file)).spec
    alike = families_of(spec, "0.28.0", Known(platform="cpu")).alike(spec.to_space())
    assert alike is not None
    found = {
        (q["arm"], alike.certain(q)[MNBT])
        for q in spec.to_space().points() or ()
        if q[N] == 15 and int(q[MNBT]) >= 64
    }
    # the drafts of DFlash take 15 tokens more, and those of n-gram none
    assert found == {("parallel", 64), ("parallel", 128), ("text", 64)}


@pytest.mark.parametrize("length", [-1, 0, "auto"])
def test_a_length_that_vllm_chooses_bounds_no_prompt(tmp_path: Path, length: object) -> None:
    flags = {"server__flags": {"max-num-seqs": 1, "max-model-len": length}}
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "text {i}"}}\n' for i in range(40)))
    unknown = {"workload__random": None, "workload__prompts": str(prompts)}
    found = families(tmp_path, **flags, **unknown)
    assert found.alike(load_study(str(tmp_path / "double.yaml")).spec.to_space()) is None
    drawn = families(tmp_path, **flags, workload__random={"input_len": 100})
    assert drawn.stands_for({N: 3, MNBT: 64}, certain=False) == {N: 3, MNBT: 64}
    assert drawn.sentence({N: 3, MNBT: 2048}) == (
        "MNBT from 128 up is the same here: one request of 100 tokens never fills it"
    )


def test_what_is_proven_is_told_apart_from_what_is_likely(tmp_path: Path) -> None:
    # preempted requests read 16 + 12 tokens again: 2 of them fit into 64
    flags = {"max-num-seqs": 2, "max-model-len": 64, "num-gpu-blocks-override": 1000}
    write_study(tmp_path, server__flags=flags, workload__max_concurrency=2)
    done = autotune("explain", "double.yaml", "--vllm", "0.32.0", "--json", cwd=tmp_path)
    reasons = {r["state"]: r for r in json.loads(done.stdout)["reasons"]}
    same, likely = (reasons[s]["reason"] for s in (State.ALIKE, State.LIKELY))
    assert same.startswith("MNBT from 64 up is the same here")
    assert likely.startswith("MNBT from 32 up is likely the same here")


def test_a_search_of_very_many_budgets_has_no_families(tmp_path: Path) -> None:
    many = families(
        tmp_path, space__max_num_batched_tokens={"type": "int", "low": 32, "high": 50000}
    )
    assert many.of({N: 3, MNBT: 2048}) is None  # at once
    assert many.sentence({N: 3, MNBT: 2048}) is None
