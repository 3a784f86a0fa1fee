"""Families of budgets in a study, and what `best` and the report say of a winner's MNBT."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.engine.rule import Known
from autotune.results.batch_budget import Families, families_of, load_of
from autotune.results.space_map import State, space_map
from autotune.study.files import load_study
from autotune.study.space import MNBT, N
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
    assert (chats.concurrency, chats.prompt, chats.output, chats.images) == (2, None, 24, None)


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


def test_best_and_the_report_say_which_budget_is_enough(tmp_path: Path) -> None:
    study = write_study(
        tmp_path,
        **ONE,
        space={
            "num_speculative_tokens": {"type": "choice", "choices": [0, 3]},
            "max_num_batched_tokens": {"type": "choice", "choices": [512, 2048]},
        },
    )
    assert autotune("run", str(study), "--trials", "3", cwd=tmp_path).returncode == 0
    said = " ".join(autotune("best", cwd=tmp_path).stdout.split())
    # the double has no version, so that nothing is certain, and the third launch checks it
    assert "MNBT from 512 up is likely the same here: one request of 16 tokens" in said
    assert "A launch with a larger one was no different." in said
    assert "smallest that does not bind" in said
    assert autotune("report", "--out", "page.md", cwd=tmp_path).returncode == 0
    assert "smallest that does not bind" in " ".join((tmp_path / "page.md").read_text().split())
