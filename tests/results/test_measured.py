"""A database on another machine: whose words its commands have; what it was measured with."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from autotune.api import Result as StudyResult
from autotune.cli.main import main
from autotune.engine.probe import VllmInfo
from autotune.output.export.job import Format
from autotune.output.report import build
from autotune.output.report.content import Code
from autotune.results.comparison import Where, compare
from autotune.results.measured import one_of
from autotune.results.trials import study_view
from autotune.results.views import variable_lines
from autotune.storage.store import opened
from autotune.study.files import bundled_studies
from tests.paths import ROOT
from tests.results.test_comparison import BASELINE, GOOD, MACHINE, Run, runs, stored

ON_A_GPU = ROOT / "studies/results/smollm2-h200/autotune.db"
THERE = VllmInfo("0.32.0", "vllm", "/there/venv/bin/python", "cuda", None, (), ())
GPU = {**MACHINE, "gpus": [{"name": "NVIDIA H100", "memory_mib": 81559, "driver": "570"}]}
OWN = {"VLLM_USE_V2_MODEL_RUNNER": "1", "CUDA_VISIBLE_DEVICES": "3", "HF_HOME": "/there/hf"}


def moved(folder: Path, *, host: str | None = "gpu-7", **changes: object) -> Path:
    """A database that was measured on another machine, whose study file is gone."""
    database = stored(folder, runs(), info=THERE, machine=GPU, own=OWN, **changes)  # type: ignore[arg-type]
    with closing(sqlite3.connect(database)) as c:
        for launch, argv in c.execute("SELECT launch_id, argv FROM autotune_launches").fetchall():
            words = json.loads(argv)
            words[0] = "/there/venv/bin/python"
            words = ["/there/models/big" if w == "org/model" else w for w in words]
            c.execute(
                "UPDATE autotune_launches SET argv = ?, host = ?, boot_id = 'x' "
                "WHERE launch_id = ?",
                [json.dumps(words), host, launch],
            )
        c.commit()
    (folder / "double.yaml").unlink(missing_ok=True)
    return database


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved(
        tmp_path_factory.mktemp("moved") / "db",
        server__speculative={"model": "org/draft", "method": "dflash"},
        server__env={"VLLM_X": "1"},
    )


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words)], env={"COLUMNS": "80"})


def said(text: str) -> str:
    return " ".join(line.removeprefix("#").strip() for line in text.splitlines())


UNVERIFIED = (
    "Output not verified: trial 1's answers were never compared with those of n = 0 "
    "(autotune verify STUDY --trial 1)."
)
WHY = (
    "The command is for the machine that was measured, gpu-7 (NVIDIA H100; TestCPU, 4 cores, "
    "16 GiB), with its paths: this machine has no /there/venv/bin/python or /there/models/big."
)


def test_every_command_reads_it_without_model_vllm_and_study(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(subprocess, "run", None)  # nothing is run to read
    for words in (["status"], ["status", "--trial", 1], ["best", "--json"]):
        assert call(*words, "--db", database).exit_code == 0
    best = call("best", "--db", database)
    assert best.exit_code == 0
    assert WHY in said(best.stdout)
    shell = call("best", "--shell", "--db", database)
    assert shell.stderr == f"autotune: {UNVERIFIED} {WHY}\n"
    assert "this machine" not in shell.stdout
    assert StudyResult.from_database(database).command() + "\n" == shell.stdout
    page = tmp_path / "report.md"
    assert call("report", "--db", database, "--out", page).exit_code == 0
    assert "/there/venv/bin/python -m vllm" in page.read_text()
    assert "those of the measured machine, gpu-7 (NVIDIA H100; TestCPU" in said(page.read_text())


@pytest.mark.parametrize("form", list(Format))
def test_all_paths_are_those_of_one_machine(database: Path, form: Format) -> None:
    text = call("export", "--db", database, "--format", form).stdout
    assert WHY in said(text)
    assert sys.prefix not in text
    in_container = form in {Format.COMPOSE, Format.KUBERNETES}
    body = "".join(x for x in text.splitlines(keepends=True) if not x.startswith("#"))
    assert ("/there/venv/bin/python" in body) is (form in {Format.SHELL, Format.SYSTEMD})
    assert "/there/models/big" in text
    assert "VLLM_USE_V2_MODEL_RUNNER" in text  # measured with it, and it matters
    assert "HF_HOME" not in text  # a place
    assert ("said which devices" in said(text)) is in_container
    if form is Format.SYSTEMD:
        assert "Environment=PATH=/there/venv/bin:/usr/local/bin" in text
        assert "ExecStart=/there/venv/bin/python -m vllm" in text
        assert "User=vllm" in text.splitlines()
        assert "Environment=CUDA_VISIBLE_DEVICES=3" in text
    if form is Format.COMPOSE:
        env = yaml.safe_load(text)["services"]["vllm"]["environment"]
        assert env == {"VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_X": "1", "HF_TOKEN": None}


def test_the_measured_machine_is_known_by_name_boot_and_paths(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def why(**columns: str | None) -> str:
        copy = Path(shutil.copy(database, tmp_path / "copy.db"))
        with closing(sqlite3.connect(copy)) as c:
            for name, value in columns.items():
                c.execute(f"UPDATE autotune_launches SET {name} = ?", [value])  # noqa: S608
            c.commit()
        said = call("best", "--shell", "--db", copy).stderr
        return said.removeprefix(f"autotune: {UNVERIFIED}").strip()

    everything = json.dumps(
        ["/bin/sh", "-m", "vllm.x", "--model", "/etc", "--host", "h", "--port", "1"]
    )
    monkeypatch.setattr("autotune.results.measured.socket.gethostname", lambda: "laptop")
    monkeypatch.setattr("autotune.results.measured.boot_id", lambda: "now")
    assert "with its paths: this machine is laptop." in why(argv=everything)
    assert "no /there/venv" in why(host="laptop")
    # here, a study's model is looked for as a launch would
    for columns in ({"host": "laptop"}, {"boot_id": "now"}, {"host": None}):
        assert why(argv=everything, **columns) == ""  # type: ignore[arg-type]


def test_a_replaced_autotune_hides_modules_from_where_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    database = stored(tmp_path / "db", runs())
    kept = {"AUTOTUNE_HIDE": "torchvision", "PYTHONPATH": "/gone/shim"}
    with closing(sqlite3.connect(database)) as c:  # as autotune 0.1, which kept nothing of its vLLM
        c.execute("DELETE FROM study_system_attributes WHERE key = 'autotune:vllm'")
        c.execute("UPDATE autotune_launches SET env = ?", [json.dumps(kept)])
        c.commit()
    shown = call("best", "--shell", "--db", database)
    assert shown.stderr == f"autotune: {UNVERIFIED}\n"
    [path] = re.findall(r"PYTHONPATH=(\S+)", shown.stdout)
    assert Path(path, "sitecustomize.py").is_file()
    assert "AUTOTUNE_HIDE=torchvision" in shown.stdout
    assert sys.executable in shown.stdout


def test_one_of() -> None:
    assert [one_of(x) for x in (["a"], ["a", "b"], ["a", "b", "a", "c"])] == [
        *("a", "a or b", "a, b or c")
    ]


def test_a_load_sweep_is_shown_as_it_was_launched(tmp_path: Path) -> None:
    copy = Path(shutil.copy(ON_A_GPU, tmp_path / "x.db"))
    old = ["smollm2-h200"]
    with closing(sqlite3.connect(copy)) as c:  # a study of one's own, whose file is elsewhere
        for table, column in (
            *(("autotune_studies", "name"), ("autotune_launches", "study")),
            *(("autotune_map_points", "study"), ("studies", "study_name")),
        ):
            c.execute(f"UPDATE {table} SET {column} = replace({column}, ?, 'mine')", old)  # noqa: S608
        c.execute("UPDATE autotune_studies SET yaml = replace(yaml, ?, 'mine')", old)
        c.commit()
    assert "mine" not in bundled_studies()
    shown = call("map", "mine", "--show", "--db", copy)
    assert shown.exit_code == 0, shown.output
    assert '"model": "/tmp/src/autotune/models/smollm2-135m-dflash"' in shown.stdout
    missing = call("map", "yours", "--show", "--db", copy)
    assert missing.exit_code == 2
    assert "yours" in missing.stderr


def test_a_report_minds_no_file_that_is_named_like_a_bundled_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for make in (Path.mkdir, lambda path: path.rmdir() or path.write_text("no study")):
        make(tmp_path / "smollm2-h200")
        with opened(ON_A_GPU) as store:
            report = build(store, study_view(store, "smollm2-h200"))
        codes = [b.text for s in report.sections for b in s.blocks if isinstance(b, Code)]
        assert any(text.startswith("autotune run smollm2-h200") for text in codes)


# -- variables of the user's environment -----------------------------------------------------------


def with_variables(folder: Path, *values: str | None) -> Path:
    """Trials that were measured one after another, with these values of a variable."""
    points = [BASELINE, GOOD, {**GOOD, "max_num_batched_tokens": 1024}]
    name = "VLLM_USE_V2_MODEL_RUNNER"
    made = [
        Run(point, 100.0 + i, own={"VLLM_LOGGING_LEVEL": str(i), **({name: v} if v else {})})
        for i, (point, v) in enumerate(zip(points, values, strict=False))
    ]
    return stored(folder, made)


def test_trials_of_several_environments_are_not_mixed_in_silence(tmp_path: Path) -> None:
    database = with_variables(tmp_path / "a", "1", None, "1")
    with opened(database) as store:
        view = study_view(store, "double")
        [line] = variable_lines(view)
        notes = build(store, view).answer.notes
    assert line == (
        "measured with different values of VLLM_USE_V2_MODEL_RUNNER: 1 in trials 0, 2, not set "
        "in trial 1"
    )
    assert f"Warning: trials were {line}." in notes
    assert line in said(call("status", "--db", database).stdout)
    same = with_variables(tmp_path / "b", "1", "1", "1")
    with opened(same) as store:
        assert study_view(store, "double").variables == {}


def test_a_comparison_names_the_variables_that_differ(tmp_path: Path) -> None:
    one = with_variables(tmp_path / "a", "1", "1")
    for values, text in (((None, None), "not set"), (("1", "0"), "0 and 1")):
        other = with_variables(tmp_path / f"b {text}", *values)
        c = compare(Where(one, None), Where(other, None), threshold=0.05)
        assert ("variable VLLM_USE_V2_MODEL_RUNNER", "1", text) in c.different
        assert not c.incomparable
        assert "VLLM_USE_V2_MODEL_RUNNER" in call("compare", one, other).stdout
    assert variables(one, one) == {}


def variables(a: Path, b: Path) -> Mapping[str, object]:
    other = Path(shutil.copy(b, b.with_name("copy.db")))
    c = compare(Where(a, None), Where(other, None), threshold=0.05)
    return {what: x for what, *x in c.different if what.startswith("variable")}
