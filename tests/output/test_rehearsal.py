"""A whole rehearsal over the double: every place that shows it says so, and none serves it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.engine.rehearsal import LABEL_VARIABLE, PLUGIN
from autotune.output.dashboard import _known_of, publish
from autotune.output.figures.pareto import pareto_figure
from autotune.output.figures.theme import LIGHT
from autotune.output.report import build
from autotune.output.report.content import DataTable, Figure
from autotune.results.trials import study_view
from autotune.storage.store import Store
from autotune.study.space import MNBT, N
from tests.results.test_comparison import runs, stored
from tests.studies import autotune, query, write_study

RATES = [0.8, 0.6, 0.4]
LABEL = "rehearsal: weights are random, acceptance was given, step times are real"
# Words that no command for production may have.
PLAYED = ("dummy", "synthetic", "draft_load_config", PLUGIN.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a rehearsal that was run; the server says which variables it has."""
    folder = tmp_path_factory.mktemp("rehearsal")
    file = write_study(
        folder,
        server__env={"DOUBLE_SAY_ENV": LABEL_VARIABLE},
        space={
            N: {"type": "choice", "choices": [0, 3]},
            MNBT: {"type": "choice", "choices": [512]},
        },
        search={"method": "grid"},
        workload__num_prompts=40,
        workload__output_len=40,
        rehearsal={"acceptance": RATES, "weights": "dummy"},
    )
    done = autotune("run", str(file), "--trials", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert one_line(done.stdout).count(LABEL[1:]) >= 2  # before the first launch, and in the end
    assert not any(word in done.stdout.partition("To serve")[2] for word in PLAYED)
    return folder


def one_line(text: str) -> str:
    return " ".join(text.split())


def said(folder: Path, *args: str) -> str:
    done = autotune(*args, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_launches_and_trials_say_it(folder: Path) -> None:
    launches = query(folder, "select argv, env, log_path from autotune_launches order by trial")
    for argv, env, log in launches:
        words = json.loads(str(argv))
        assert words[words.index("--load-format") + 1] == "dummy"
        assert json.loads(str(env))[LABEL_VARIABLE] == LABEL
        assert f"{LABEL_VARIABLE}={LABEL}" in (folder / str(log)).read_text()
    kept = query(folder, "select value_json from trial_user_attributes where key = 'rehearsal'")
    assert [json.loads(str(x)) for (x,) in kept] == [LABEL, LABEL]


def test_the_given_acceptance_is_what_the_server_counts(folder: Path) -> None:
    _, drafted = json.loads(said(folder, "status", "--json"))
    assert drafted["params"][N] == 3
    assert drafted["acceptance_per_position"] == pytest.approx(RATES, abs=0.15)
    assert drafted["rehearsal"] == LABEL


@pytest.mark.parametrize(
    "args",
    [
        ("status",),
        ("status", "--trial", "1"),
        ("status", "--time"),
        ("best",),
        ("predict",),
        ("predict", "--json"),
        ("best", "--json"),
        ("status", "--time", "--json"),
        ("explain", "double.yaml"),
        ("explain", "double.yaml", "--json"),
        *(("export", "--format", form) for form in ("shell", "vllm-config", "systemd")),
    ],
    ids=" ".join,
)
def test_every_command_says_it(folder: Path, args: tuple[str, ...]) -> None:
    text = one_line(said(folder, *args).replace("\n# ", "\n").replace("\n#", "\n"))
    assert LABEL[1:] in text


def test_no_command_serves_what_is_played(folder: Path) -> None:
    for form in ("shell", "vllm-config", "systemd"):
        text = said(folder, "export", "--format", form, "--trial", "1")
        body = "\n".join(x for x in text.splitlines() if not x.startswith("#"))
        assert not any(word in body for word in PLAYED)
        assert "org/draft" in body
        words = one_line(text.replace("\n# ", "\n"))
        assert "Still missing: the real weights of the target" in words
        assert "and the draft (org/draft), and a run without `rehearsal`" in words
    shell = autotune("best", "--shell", cwd=folder)
    assert not any(word in shell.stdout for word in PLAYED)
    assert "Still missing" in shell.stderr


def test_the_report_says_it_with_every_table_and_figure(folder: Path) -> None:
    with_store = Store(folder / "autotune.db")
    try:
        view = study_view(with_store, "double")
        report = build(with_store, view)
        blocks = [b for section in report.sections for b in section.blocks]
        shown = [b for b in blocks if isinstance(b, DataTable | Figure)]
        assert len(shown) > 4
        assert all(LABEL in b.caption for b in shown)
        for b in shown:
            if isinstance(b, Figure):
                texts = [a.text for a in b.draw(LIGHT).layout.annotations]
                assert any(LABEL in str(x) for x in texts)
        assert report.about[0] == LABEL.capitalize()
        assert report.answer.headline.startswith("Best in the rehearsal")
        assert any("Still missing" in note for note in report.answer.notes)
        assert LABEL in pareto_figure(view).layout.title.text
        publish(with_store, view, report)
        attrs = with_store.storage.get_study_system_attrs(
            with_store.storage.get_study_id_from_name("double")
        )
        assert any(LABEL[1:] in str(v) for k, v in attrs.items() if "note" in k)
        assert {of["rehearsal"] for of in _known_of(with_store, "double").words.values()} == {LABEL}
    finally:
        with_store.close()
    text = said(folder, "report", "--out", "r.md") and (folder / "r.md").read_text()
    code = re.findall(r"```sh\n(.*?)```", text, re.S)
    assert code
    assert not any(word in code[0] for word in PLAYED)


def test_a_rehearsal_and_a_real_run_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    raw: dict[str, Any] = yaml.safe_load((folder / "double.yaml").read_text())
    del raw["rehearsal"]
    file = tmp_path / "double.yaml"
    file.write_text(yaml.safe_dump(raw))
    for command in ("run", "map"):
        done = autotune(command, str(file), cwd=folder)
        assert done.returncode == 2
        [line] = [x for x in done.stderr.splitlines() if "rehearsal" in x]
        assert "give another --db" in line
    raw["name"] = "other"
    file.write_text(yaml.safe_dump(raw))
    taken = autotune("run", str(file), "--db", "o.db", "--reuse", "autotune.db", cwd=folder)
    assert taken.returncode == 2
    assert "is a rehearsal, and this study is real" in taken.stderr


def test_compare_says_what_is_real(folder: Path, tmp_path: Path) -> None:
    both = (str(folder / "autotune.db"), str(stored(tmp_path, runs(), name="real")))
    text = one_line(said(folder, "compare", *both))
    assert LABEL in text
    assert "none:" in text
    found = json.loads(said(folder, "compare", *both, "--json"))
    [different] = [x for x in found["different"] if x["what"].startswith("rehearsal")]
    assert different["a"] == LABEL
    assert found["a"]["rehearsal"] == LABEL
    assert "rehearsal" not in found["b"]


def test_a_load_sweep_says_it_and_recommends_the_real_thing(folder: Path) -> None:
    raw: dict[str, Any] = yaml.safe_load((folder / "double.yaml").read_text())
    raw["workload"] |= {"num_prompts": 8, "output_len": 8}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**raw, "name": "sweep"}))
    args = ("map", "sweep.yaml", "--concurrency", "2", "--launches", "2", "--ways", "none")
    done = autotune(*args, "--json", "--db", "map.db", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rehearsal"] == LABEL
    assert not any(word in str(found["recommended"]) for word in PLAYED)
    assert LABEL[1:] in one_line(said(folder, *args, "--show", "--db", "map.db"))
