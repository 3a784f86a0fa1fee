"""Trials of other weights are not compared, although nothing in the study file differs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from autotune.study.weights import PIECE, SAMPLES, weights_id
from autotune.tuning.prepare import Prepared
from tests.studies import UNENDED, autotune, processes_of, query, trials, write_study


def write_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_the_same_weights_are_the_same_anywhere(tmp_path: Path) -> None:
    one = weights_id(write_model(tmp_path / "a"))
    assert one is not None
    assert weights_id(write_model(tmp_path / "b")) == one
    (tmp_path / "b" / "config.json").write_text('{"transformers_version": "5"}')
    (tmp_path / "b" / "README.md").write_text("words")
    assert weights_id(tmp_path / "b") == one
    shutil.copy(tmp_path / "a" / "model.safetensors", tmp_path / "b" / "more.safetensors")
    assert weights_id(tmp_path / "b") != one
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"weights")
    assert weights_id(gguf) not in {None, one}  # by the file's name, too


@pytest.mark.parametrize("size", [1, PIECE, PIECE + 1, SAMPLES * PIECE, 5 * SAMPLES * PIECE + 7])
def test_first_last_and_small_files_count_wholly(tmp_path: Path, size: int) -> None:
    weights = bytearray(size)
    seen = {weights_id(write_model(tmp_path / "m", weights))}
    changed = {0, size - 1, size // 3, size // 2}
    if size > SAMPLES * PIECE:  # sampled
        changed = {0, PIECE - 1, size - PIECE, size - 1}
    for at in changed:
        weights[at] = 1
        seen.add(weights_id(write_model(tmp_path / "m", weights)))
    assert len(seen) == len(changed) + 1
    assert weights_id(write_model(tmp_path / "m", weights + b"\0")) not in seen


def test_no_weights_have_no_hash(tmp_path: Path) -> None:
    assert weights_id(tmp_path / "nowhere") is None
    assert weights_id(tmp_path) is None
    assert weights_id(Path("/proc/self/mem")) is None


@pytest.mark.double
def test_a_study_does_not_go_on_with_other_weights(tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft")
    study = write_study(tmp_path, server__speculative={"method": "dflash", "model": "draft"})
    assert autotune("run", str(study), "--trials", "1", cwd=tmp_path).returncode == 0
    kept = query(tmp_path, "select json_extract(quality, '$.weights') from autotune_launches")
    assert kept == [(f'{{"draft":"{weights_id(draft)}"}}',)]  # the target is a hub's
    write_model(draft, b"learnt on")
    refused = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert refused.returncode == 2
    [line] = refused.stderr.strip().splitlines()
    assert f"other weights of the draft ({weights_id(write_model(draft))}, now " in line
    done = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"(dflash, weights {weights_id(draft)})" in report(tmp_path)


def report(folder: Path) -> str:
    done = autotune("report", "--format", "md", "--out", "report.md", cwd=folder)
    assert done.returncode == 0, done.stderr
    return (folder / "report.md").read_text()


@pytest.mark.double
def test_weights_that_change_meanwhile_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(tmp_path)
    found = iter(["a"] * 3 + ["b"] * 9)  # at the start, for two launches, and then
    with monkeypatch.context() as m:
        m.setattr(Prepared, "weights", lambda _: {"target": next(found)})
        ended = autotune("run", str(study), "--trials", "4", cwd=tmp_path)
    assert ended.returncode == 2
    assert "other weights of the target (a, now b)" in ended.stderr
    assert len([t for t in trials(tmp_path) if t["state"] == "complete"]) == 2
    assert query(tmp_path, UNENDED) == [(0,)]
    assert processes_of(tmp_path) == []
    with monkeypatch.context() as m:
        m.setattr(Prepared, "weights", lambda _: {"target": "a"})
        done = autotune("run", str(study), "--trials", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len([t for t in trials(tmp_path) if t["state"] == "complete"]) == 4
