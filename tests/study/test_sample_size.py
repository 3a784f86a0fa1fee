"""What a study is told of its number of requests, before anything is launched."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.cli.doctor import checks
from autotune.errors import UserError
from autotune.results.space_map import space_map
from autotune.study import sample_size
from autotune.study.files import load_study
from tests.studies import autotune, write_study


def said(folder: Path, **changes: object) -> list[str]:
    return list(sample_size.notes(load_study(write_study(folder, **changes)).spec))


def test_enough_requests_need_no_words(tmp_path: Path) -> None:
    enough = {"workload__num_prompts": 1024, "workload__warmup_prompts": 512}
    assert said(tmp_path, **enough, workload__max_concurrency=128) == []
    assert said(tmp_path, **enough, workload__max_concurrency=1) == []


@pytest.mark.parametrize(
    ("requests", "places", "words"),
    [
        (1023, 128, "Give 1024 or more (8 × max_concurrency)"),
        (12, 1, "give no interval of tok/s. Give 16 or more"),
        (71, 1, "leave p95 without an upper bound. Give 72 or more"),
        (32, 1, "too few for a trial to end early, so each is measured whole. Give 139 or more"),
        (512, 128, "few at concurrency 128, only 4.0 for each. Give 1024 or more"),
        (
            80,
            2,
            "once 2 have finished, because p95 is too uncertain. Give 139 or more",
        ),
        (138, 2, "to end a worse trial early once 30 have finished"),
    ],
)
def test_too_few_requests_are_said_with_how_many_would_do(
    tmp_path: Path, requests: int, places: int, words: str
) -> None:
    notes = said(
        tmp_path,
        workload__num_prompts=requests,
        workload__warmup_prompts=512,
        workload__max_concurrency=places,
    )
    assert any(words in note for note in notes), notes
    assert all(note.startswith(f"workload.num_prompts: {requests} ") for note in notes)


@pytest.mark.parametrize(("warmup", "places", "least"), [(5, 1, 8), (31, 16, 32)])
def test_a_warmup_that_can_tell_nothing_is_said(
    tmp_path: Path, warmup: int, places: int, least: int
) -> None:
    load = {"workload__num_prompts": 1024, "workload__max_concurrency": places}

    def of_warmup(requests: int) -> list[str]:
        notes = said(tmp_path, workload__warmup_prompts=requests, **load)
        return [note for note in notes if "server is warm" in note]

    [note] = of_warmup(warmup)
    assert note.startswith(f"workload.warmup_prompts: {warmup} are too few to see whether")
    assert f"Give {least} or more" in note
    assert of_warmup(least) == of_warmup(0) == []


def test_one_who_follows_an_advice_gets_no_higher_one(tmp_path: Path) -> None:
    one = {"workload__max_concurrency": 1, "workload__warmup_prompts": 8}
    notes = said(tmp_path, workload__num_prompts=20, **one)
    wanted = max(int(n.rpartition("Give ")[2].split()[0]) for n in notes)
    assert said(tmp_path, workload__num_prompts=wanted, **one) == []
    means = {"workload__num_prompts": 20, "objectives": ["throughput", "mean_ttft"]}
    (note,) = said(tmp_path, **{**one, **means})
    assert "Give 33 or more" in note, "a mean needs no tail"


def test_p99_needs_more_than_p95(tmp_path: Path) -> None:
    objectives = ["throughput", "p99_ttft"]
    found = {"workload__num_prompts": 367, "workload__warmup_prompts": 8, "objectives": objectives}
    assert "p99 without an upper bound. Give 368 or more" in said(tmp_path, **found)[0]
    assert said(tmp_path, **{**found, "workload__num_prompts": 368}) == []


def test_without_early_ends_only_precision_ends_a_trial(tmp_path: Path) -> None:
    never = {"measure__dominated_error": 0, "workload__warmup_prompts": 8}
    (note,) = said(tmp_path, workload__num_prompts=81, **never)
    assert "too few for p95 to become precise" in note
    assert "Give 82 or more" in note
    assert said(tmp_path, workload__num_prompts=82, **never) == []


def test_an_open_loop_has_no_concurrency_to_keep(tmp_path: Path) -> None:
    load = {"workload__request_rate": 5.0, "workload__warmup_prompts": 0}
    assert said(tmp_path, **load, workload__num_prompts=200, workload__max_concurrency=64) == []


def test_few_warmup_requests_cost_measured_ones(tmp_path: Path) -> None:
    load = {"workload__max_concurrency": 32, "workload__warmup_prompts": 31}
    notes = said(tmp_path, **load, workload__num_prompts=512)
    assert any("do not keep concurrency 32" in n and "Give 32 or more" in n for n in notes), notes


@pytest.mark.parametrize(
    ("sent", "key"),
    [((95, None), "num_prompts"), ((512, 95), "confirm_prompts")],
)
def test_a_load_that_is_never_full_is_refused(
    tmp_path: Path, sent: tuple[int, int | None], key: str
) -> None:
    file = write_study(
        tmp_path,
        workload__max_concurrency=32,
        workload__warmup_prompts=31,
        workload__num_prompts=sent[0],
        workload__confirm_prompts=sent[1],
    )
    done = autotune("run", str(file), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{file.name}: workload.warmup_prompts: 31" in done.stderr
    assert f"Give warmup_prompts: 32 or more, or {key}: 96 or more" in done.stderr
    assert not list(tmp_path.glob("*.db"))
    loaded = load_study(file)
    with pytest.raises(UserError, match="warmup_prompts"):
        sample_size.check(loaded)
    (load,) = [c for c in checks(loaded, tmp_path / "autotune.db") if c.name == "load"]
    assert load.ok is False


def test_doctor_explain_and_run_say_it(tmp_path: Path) -> None:
    file = write_study(tmp_path, workload__num_prompts=12, workload__warmup_prompts=4)
    loaded = load_study(file)
    words = "are few at concurrency 2"
    found = space_map(loaded.spec, "0.32.0")
    assert any(words in note for note in found.to_json()["notes"])
    assert words in " ".join(" ".join(found.lines()).split())
    of_load = [c for c in checks(loaded, tmp_path / "autotune.db") if c.name == "load"]
    assert [c.ok for c in of_load] == [None] * len(of_load)
    assert any(words in c.text for c in of_load)
    done = autotune("run", str(file), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0
    assert words in " ".join(done.stdout.split())
