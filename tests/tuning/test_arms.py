"""A study with arms from its first launch to the command for production, over the server double."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.study.speculative import SCHEDULE
from tests.studies import autotune, front, query, trials, write_study

pytestmark = pytest.mark.double

N = "num_speculative_tokens"
BY_LOAD = {"method": "dflash", "model": "org/draft", SCHEDULE: [[1, 1, 3], [2, 8, 0]]}
ARMS: dict[str, Any] = {
    "fixed": {"method": "dflash", "model": "org/draft"},
    "by-load": BY_LOAD,
    "ngram": {
        "method": "ngram",
        "space": {
            N: {"type": "int", "low": 1, "high": 4},
            "prompt_lookup_max": {"type": "choice", "choices": [2, 4]},
        },
    },
}


def write(folder: Path, arms: dict[str, Any] = ARMS, **changes: object) -> Path:
    file = write_study(folder, **changes)
    raw = yaml.safe_load(file.read_text())
    del raw["server"]["speculative"]
    raw["server"]["arms"] = arms
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    return file


def config_of(argv: str) -> dict[str, Any] | None:
    words = json.loads(argv)
    if "--speculative-config" not in words:
        return None
    found: dict[str, Any] = json.loads(words[words.index("--speculative-config") + 1])
    return found


def test_each_arm_is_launched_shown_and_served_as_it_is(tmp_path: Path) -> None:
    study = write(tmp_path)
    done = autotune("run", str(study), "--trials", "7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = trials(tmp_path)
    assert [t["state"] for t in found] == ["complete"] * 7
    params: list[dict[str, Any]] = [t["params"] for t in found]  # type: ignore[misc]
    assert params[0] == {N: 0, "max_num_batched_tokens": 2048}
    assert {p.get("arm") for p in params} == {None, "fixed", "by-load", "ngram"}

    # what each launch had, and what is shown of it
    argvs = query(tmp_path, "select argv from autotune_launches order by planned_at")
    for p, (argv,) in zip(params, argvs, strict=True):
        config = config_of(str(argv))
        match p.get("arm"):
            case None:
                assert config is None
            case "fixed":
                assert config == {"method": "dflash", "model": "org/draft", N: p[N]}
            case "by-load":
                assert (config, p[N]) == ({**BY_LOAD, N: 3}, 3)
            case _:
                lookup = p["speculative.prompt_lookup_max"]
                assert config == {"method": "ngram", N: p[N], "prompt_lookup_max": lookup}
        assert ("speculative.prompt_lookup_max" in p) == (p.get("arm") == "ngram")
    skips = {p.get("arm"): t["skips_steps"] for p, t in zip(params, found, strict=True)}
    assert skips == {None: False, "fixed": False, "by-load": True, "ngram": True}

    status = autotune("status", cwd=tmp_path).stdout
    assert "arm" in status.replace("arms", "").split()
    assert "by-load" in status
    assert "* tokens in a step that has drafts" in status
    story = autotune(
        "status", "--trial", str([p.get("arm") for p in params].index("by-load")), cwd=tmp_path
    )
    assert "arm by-load, n = 3" in story.stdout
    assert "in the steps that have drafts" in story.stdout

    # the winner of each arm is served with exactly its launch's keys
    for number, (p, (argv,)) in enumerate(zip(params, argvs, strict=True)):
        shell = autotune("export", "--trial", str(number), cwd=tmp_path)
        assert shell.returncode == 0, shell.stderr
        words = shlex.split(shell.stdout.replace("\\\n", " "), comments=True)
        assert config_of(json.dumps(words)) == config_of(str(argv)), p
    assert front(tmp_path)

    predicted = autotune("predict", "--json", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert [x["arms"] for x in json.loads(predicted.stdout)] == [["fixed"], ["ngram"]]
    for command in (["report"], ["predict"], ["export", "--format", "compose"], ["best"]):
        shown = autotune(*command, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr

    # the same command again, and a study without one of the arms
    assert autotune("run", str(study), "--trials", "7", cwd=tmp_path).returncode == 0
    fewer = write(tmp_path, {k: ARMS[k] for k in ("fixed", "ngram")})
    refused = autotune("run", str(fewer), "--trials", "8", cwd=tmp_path)
    assert refused.returncode == 2
    assert "server.arms.by-load.method (dflash then, not set now)" in refused.stderr


def test_trials_are_reused_and_compared_by_what_an_arm_is(tmp_path: Path) -> None:
    grid = {
        N: {"type": "choice", "choices": [0, 3]},
        "max_num_batched_tokens": {"type": "choice", "choices": [2048]},
    }
    alone = write_study(tmp_path, name="alone", space=grid, search={"method": "grid"})
    assert autotune("run", str(alone), "--trials", "2", cwd=tmp_path).returncode == 0
    arms = {"other": {**BY_LOAD, SCHEDULE: [[1, 8, 3]]}, "same": ARMS["fixed"]}
    both = write(tmp_path, arms, name="both", space=grid, search={"method": "grid"})
    done = autotune(
        "run",
        str(both),
        "--trials",
        "3",
        "--reuse",
        "autotune.db:alone",
        "--db",
        "b.db",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(autotune("status", "--json", "--db", "b.db", cwd=tmp_path).stdout)
    assert {t["params"].get("arm"): t["reused"] is not None for t in found} == {
        None: True,
        "other": False,
        "same": True,
    }
    # launches that were taken from a study are not compared with it, so these are new
    assert autotune("run", str(both), "--trials", "3", "--db", "c.db", cwd=tmp_path).returncode == 0
    compared = autotune("compare", "autotune.db:alone", "c.db:both", "--json", cwd=tmp_path)
    pairs = json.loads(compared.stdout)["pairs"]
    assert [p["params"].get("arm") for p in pairs] == [None, "same"]


def test_arms_in_another_order_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    grid = {
        N: {"type": "choice", "choices": [0, 3]},
        "max_num_batched_tokens": {"type": "choice", "choices": [2048]},
    }
    arms = {"a": ARMS["fixed"], "b": {**ARMS["fixed"], N: 4}}
    study = write(tmp_path, arms, space=grid, search={"method": "grid"})
    assert autotune("run", str(study), "--trials", "2", cwd=tmp_path).returncode == 0
    turned = dict(reversed(arms.items()))
    write(tmp_path, turned, space=grid, search={"method": "grid"})
    refused = autotune("run", str(study), "--trials", "3", cwd=tmp_path)
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert "another order of server.arms (a, b then, b, a now" in line
    write(tmp_path, arms, space=grid, search={"method": "grid"})
    assert autotune("run", str(study), "--trials", "3", cwd=tmp_path).returncode == 0
    assert [t["state"] for t in trials(tmp_path)] == ["complete"] * 3


def test_arms_that_no_point_can_launch_are_named(tmp_path: Path) -> None:
    grid = {
        N: {"type": "choice", "choices": [0, 3]},
        "max_num_batched_tokens": {"type": "choice", "choices": [2048]},
    }
    typo = {"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 2}
    study = write(tmp_path, {"typo": typo}, space=grid, search={"method": "grid"})
    refused = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert refused.returncode == 2
    last = refused.stderr.splitlines()[-1]
    assert "double.yaml: server.arms: no arm can launch; typo: " in last
    assert "prompt_lookup_min = 5 is above prompt_lookup_max = 2" in last
    arms = {"typo": typo, "good": ARMS["fixed"]}
    write(tmp_path, arms, space=grid, search={"method": "grid"})
    done = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "arm typo is never launched: " in done.stdout
    assert "points are never launched" not in done.stdout
    found = trials(tmp_path)
    done_with = [t["params"] for t in found if t["state"] == "complete"]
    assert [p.get("arm") for p in done_with] == [None, "good"]  # type: ignore[attr-defined]


def test_a_lossy_arm_is_called_lossy_wherever_it_is_shown(tmp_path: Path) -> None:
    lossy = {"method": "dflash", "model": "org/draft", "rejection_sample_method": "fly"}
    grid = {
        N: {"type": "choice", "choices": [0, 3]},
        "max_num_batched_tokens": {"type": "choice", "choices": [2048]},
    }
    study = write(tmp_path, {"risky": lossy}, space=grid, search={"method": "grid"})
    assert autotune("run", str(study), "--trials", "2", cwd=tmp_path).returncode == 0
    found = trials(tmp_path)
    assert [t["lossy"] for t in found] == [False, True]
    for words in (
        ["status"],
        ["status", "--trial", "1"],
        ["export", "--trial", "1", "--vllm", "0.33.0"],
        ["export", "--trial", "1", "--vllm", "0.33.0", "--format", "kubernetes"],
    ):
        shown = autotune(*words, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "lossy" in shown.stdout, words
    report = tmp_path / "report.md"
    made = autotune("report", "--format", "md", "--out", str(report), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "lossy" in report.read_text()
