"""The command line: help, one-line errors, exit codes, and databases that are not ours."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from autotune.cli.main import main
from autotune.serving.orphans import LivingLaunch
from autotune.storage.store import Store
from autotune.study.files import load_study
from tests.paths import ROOT
from tests.studies import autotune, query, write_study


def call(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def one_line(result: Result, *words: str) -> None:
    """Exit code 2, and one line on stderr that has these words."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_shows_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"autotune {command}" in result.output
    assert max(map(len, result.output.splitlines())) <= 80


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_script_that_completes_commands(shell: str) -> None:
    result = call("completion", shell)
    assert result.exit_code == 0
    assert f"_AUTOTUNE_COMPLETE={shell}_complete" in result.output
    typed = {
        "_AUTOTUNE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "autotune rep",
        "COMP_CWORD": "rep" if shell == "fish" else "1",
    }
    words = CliRunner().invoke(main, [], env=typed, prog_name="autotune")
    assert "report" in words.output


def test_what_lives_as_json(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = LivingLaunch("ab12", None, (), 2**30, 61.5, "python -m vllm")
    monkeypatch.setattr("autotune.tuning.recovery.living_launches", lambda: [lives])
    (found,) = json.loads(call("ps", "--json").output)
    assert found == {
        "launch": "ab12",
        "of": "not in this --db",
        "host": socket.gethostname(),
        "owner": None,
        "owner_command": None,
        "owner_folder": None,
        "pids": [],
        "containers": [],
        "memory": 2**30,
        "seconds": 61.5,
        "command": "python -m vllm",
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["status", "best", "pareto", "export", "report", "predict"])
def test_a_study_whose_first_run_died_before_it_began(here: Path, command: str) -> None:
    store = Store(here / "autotune.db", create=True)
    store.begin_study(load_study(write_study(here)), seed=0, wanted=1)
    store.close()
    result = call(command)
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]  # a report says before that it is being written
    assert "never ran" in last
    assert "autotune run" in last


def test_studies_that_are_not_there(here: Path) -> None:
    one_line(call("run", "demo-cp"), "did you mean demo-cpu")
    one_line(call("run", "no.yaml"), "no.yaml", "autotune init")
    assert not (here / "autotune.db").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workload__promts": "x"}, ["workload.promts", "did you mean prompts?"]),
        ({"objectives": ["throughputs"]}, ["objectives.0.name", "throughput"]),
        ({"server__model": "./no-such-folder"}, ["server.model", "no-such-folder"]),
        ({"server__speculative__model": "./nothing"}, ["server.speculative.model", "nothing"]),
        ({"server__command": "no-such-program serve"}, ["server.command", "no-such-program"]),
        ({"space__max_num_batched_tokens": {"type": "int", "low": 1, "high": 1}}, ["space", "1"]),
        ({"baseline": {"num_speculative_tokens": 99}}, ["baseline", "99", "0 to 15"]),
    ],
)
def test_mistakes_in_a_study_are_told_before_anything_is_launched(
    here: Path, changes: dict[str, object], words: list[str]
) -> None:
    study = write_study(here, **changes)
    one_line(call("run", str(study)), str(study), *words)
    assert not (here / "autotune.db").exists()


def test_databases_that_are_not_ours(here: Path) -> None:
    study = str(write_study(here))
    one_line(call("status"), "autotune.db", "no such database")
    one_line(call("run", study, "--db", "no/such/x.db"), "no/such", "folder")

    Path("text.db").write_text("this is no database, but it is long enough to be mistaken for one")
    one_line(call("status", "--db", "text.db"), "text.db")
    one_line(call("run", study, "--db", "text.db"), "text.db")
    assert Path("text.db").read_text().startswith("this is no")

    with sqlite3.connect("other.db") as c:
        c.execute("create table theirs (x)")
    one_line(call("run", study, "--db", "other.db"), "other.db", "another program")
    with sqlite3.connect("other.db") as c:
        assert c.execute("select name from sqlite_master").fetchall() == [("theirs",)]


def test_a_database_of_another_version(here: Path) -> None:
    Store(here / "autotune.db", create=True).close()
    with sqlite3.connect("autotune.db") as c:
        c.execute("update autotune_alembic_version set version_num = '0099'")
    before = Path("autotune.db").read_bytes()
    one_line(call("status"), "another version", "0099")
    one_line(call("run", str(write_study(here))), "another version", "0099")
    assert Path("autotune.db").read_bytes() == before


def test_an_empty_database(here: Path) -> None:
    Store(here / "autotune.db", create=True).close()
    for command in ("status", "best", "pareto"):
        one_line(call(command), "holds no study yet")


def test_options_that_make_no_sense(here: Path) -> None:
    for args in (["--trials", "0"], ["--trials", "x"], ["--timeout", "-1"], ["--nonsense"]):
        result = call("run", *args)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
    assert call("best", "--json", "--shell").exit_code == 2


@pytest.mark.double
def test_several_studies_in_one_database(here: Path) -> None:
    for name in ("one", "two"):
        study = write_study(here, name=name)
        assert autotune("run", str(study), "--trials", "1", cwd=here).returncode == 0
    one_line(call("status"), "--study", "one", "two")
    one_line(call("status", "--study", "three"), "three", "one, two")
    result = call("best", "--study", "two", "--json")
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)) == 1


def test_init_writes_a_study_that_loads_and_never_overwrites(here: Path) -> None:
    result = call("init", "--", "vllm", "serve", "org/model", "--max-num-seqs", "8")
    assert result.exit_code == 0, result.output
    text = Path("study.yaml").read_text()
    assert "org/model" in text
    one_line(call("init"), "study.yaml", "exists")
    assert Path("study.yaml").read_text() == text
    assert call("init", "--out", "t.yaml").exit_code == 0


def test_a_long_environment_variable_is_shown_in_short_and_kept_whole(here: Path) -> None:
    stored = ROOT / "studies" / "results" / "smollm2-h200" / "autotune.db"
    (here / "autotune.db").write_bytes(stored.read_bytes())
    lines = call("status", "--trial", "3").output.splitlines()
    shown = [line.partition("=") for line in lines if line.startswith("  environment: ")]
    values = {name.removeprefix("  environment: "): value for name, _, value in shown}
    assert values["CUDA_VISIBLE_DEVICES"] == "0"
    short = values["NVIDIA_REQUIRE_CUDA"]
    assert short.startswith("cuda>=13.0 brand=unknown")
    assert short.endswith("…")
    assert max(map(len, values.values())) <= 100
    ((kept,),) = query(
        here,
        "select json_extract(env, '$.NVIDIA_REQUIRE_CUDA') from autotune_launches "
        "where study = 'smollm2-h200' and trial = 3",
    )
    assert isinstance(kept, str)
    assert len(kept) > 1000
    assert kept.startswith(short[:-1])


# CPython ends `python -m` by SIGINT if an interrupt ever left a string's code.
_INTERRUPTED = """
from autotune.cli.main import main

@main.command()
def interrupted():
    exec("raise KeyboardInterrupt")

main(["interrupted"])
"""


def test_the_exit_code_is_ours_wherever_an_interrupt_came(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(_INTERRUPTED)
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130
    assert done.stderr.splitlines() == ["autotune: interrupted"]
