"""Studies from Python: what is checked without a server, then whole runs over the double."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import inspect
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

import autotune
from autotune import Event, Result, StopTuning, Study, tune
from autotune.api import _Listener
from autotune.errors import NothingUsable, UserError
from autotune.results.views import TrialView
from autotune.study.differences import fingerprint
from autotune.tuning.progress import At
from tests import study_views
from tests.paths import ROOT
from tests.studies import processes_of, write_study

STORED = ROOT / "studies" / "results" / "demo-cpu" / "autotune.db"


def example(**changes: Any) -> dict[str, Any]:
    return {
        "name": "example",
        "server": {"model": "org/target", "speculative": {"model": "org/draft"}},
        "space": {"num_speculative_tokens": {"type": "int", "low": 0, "high": 3}},
        "workload": {
            "random": {"input_len": 8},
            "output_len": 8,
            "num_prompts": 4,
            "max_concurrency": 1,
        },
        **changes,
    }


def with_examples() -> list[str]:
    """Modules of the package whose docstrings have examples."""
    files = sorted((ROOT / "autotune").rglob("*.py"))
    return [
        ".".join(f.relative_to(ROOT).with_suffix("").parts)
        for f in files
        if ">>> " in f.read_text()
    ]


@pytest.mark.parametrize("module", with_examples())
def test_the_examples_in_the_docstrings(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # they read the stored study
    found = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0


def test_names_of_the_package_are_there_and_imported_when_they_are_asked_for() -> None:
    code = (
        "import sys, autotune, autotune.cli.main\n"
        "assert not {'optuna', 'pydantic', 'torch'} & sys.modules.keys()\n"
        "from autotune import tune\n"
        "assert tune.__module__ == 'autotune.api'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert all(hasattr(autotune, name) for name in autotune.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        autotune.nothing  # noqa: B018
    assert list(inspect.signature(tune).parameters)[:2] == ["study", "trials"]


def test_a_study_is_the_same_from_a_file_a_mapping_and_a_model(tmp_path: Path) -> None:
    raw = example(server={"model": Path("m"), "flags": {"max-num-seqs": 2, "x": ("a", "b")}})
    raw["space"] = {"max_num_batched_tokens": {"type": "pow2", "low": 32, "high": 64}}
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
    raw["workload"] = {**raw["workload"], "prompts": Path("p.jsonl")}
    del raw["workload"]["random"]
    one = Study(raw, base=tmp_path)
    file = tmp_path / "example.yaml"
    file.write_text(one.loaded.text)
    same = [
        Study.from_file(file),
        Study(one.spec, tmp_path),
        Study(yaml.safe_load(file.open()), tmp_path),
    ]
    assert [s.spec for s in same] == [one.spec] * 3
    prints = {fingerprint(s.loaded) for s in [one, *same]}
    assert len(prints) == 1
    assert one.name == "example"
    assert repr(one) == "Study('example', 1 parameter)"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (example(spaces={}), "spaces: unknown key; did you mean space?"),
        (example(description={1, 2}) | {"x": object()}, "a value that no study file can hold"),
        (example(name="a b"), "name: "),
    ],
)
def test_a_mistake_is_one_line_with_its_key(raw: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError) as e:
        Study(raw)
    assert why in str(e.value)
    assert "<python>" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_stored_study_is_read_without_a_server(tmp_path: Path) -> None:
    result = Result.from_database(STORED)
    assert len(result.trials) == result.view.finished
    assert result.best() in result.trials
    assert result.best("p95_latency").state == "complete"
    assert set(map(id, result.front())) <= set(map(id, result.trials))
    best = result.best()
    samples = result.samples(best)
    assert len(samples) >= (best.requests or 0) > 0
    assert {s.phase for s in samples} == {"measure"}
    assert result.reason is None
    with pytest.raises(UserError, match="throughput, p95_latency"):
        result.best("luck")
    with pytest.raises(UserError, match="no such database"):
        Result.from_database(tmp_path / "none.db")
    rows = [row for row in study_views.ROWS if row[2] is None]
    with pytest.raises(NothingUsable):
        Result(study_views.study(rows), STORED).best()


def test_callbacks_see_what_a_terminal_shows_and_can_end_a_run() -> None:
    seen: list[Event] = []
    trial = study_views.trial(3, study_views.ROWS[3])
    listener = _Listener(None, seen.append)
    listener.begin(At(3), 1, trial.point)
    listener.stage(At(), "launching")
    listener.progress(At(), 1, 6)
    listener.message("two\nlines")
    listener.trial(At(), trial)
    listener.stage(At(), "drawing")
    point = trial.point
    assert seen == [
        Event("begin", "", 3, point),
        Event("stage", "launching", 3, point),
        Event("progress", "launching", 3, point, 1, 6),
        Event("message", "two lines", 3, point),
        Event("stage", "drawing"),
    ]
    with pytest.raises(StopTuning):
        _Listener(lambda view: view.number < 3, None).trial(At(), trial)
    _Listener(lambda view: None, None).trial(At(), trial)


def test_what_a_callback_raises_never_comes_up_while_a_server_is_stopped() -> None:
    def on_event(event: Event) -> None:
        if event.text == "stopping":
            raise KeyError("mine")

    told: list[TrialView] = []
    listener = _Listener(told.append, on_event)
    trial = study_views.trial(0, study_views.ROWS[0])
    listener.begin(At(0), 1, trial.point)
    listener.stage(At(), "stopping")  # the loop ends its server after this
    with pytest.raises(KeyError, match="mine"):
        listener.trial(At(), trial)
    assert told == []


def test_a_thread_is_told_where_to_run_it(tmp_path: Path) -> None:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            tune(Study(example()), database=tmp_path / "a.db")
        except UserError as e:
            raised.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("numbers", [{"trials": 0}, {"seed": -1}])
def test_numbers_that_make_no_sense(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(numbers))} must be at least"):
        tune(Study(example()), database=tmp_path / "a.db", **numbers)


def test_the_study_is_checked_before_anything_is_made(tmp_path: Path) -> None:
    raw = example(server={"model": "no/such/folder", "command": ["/nonexistent"]})
    raw["space"] = {"max_num_batched_tokens": {"type": "pow2", "low": 32, "high": 64}}
    with pytest.raises(UserError, match=r"<python>: "):
        tune(Study(raw), trials=1, database=tmp_path / "a.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.double
def test_a_study_is_run_ended_by_a_callback_and_taken_up_again(tmp_path: Path) -> None:
    study = Study.from_file(write_study(tmp_path))
    database = tmp_path / "autotune.db"
    told: list[TrialView] = []
    events: list[Event] = []

    def first(view: TrialView) -> bool:
        told.append(view)
        return len(told) < 2

    result = tune(study, trials=3, database=database, on_trial=first, on_event=events.append)
    assert [t.number for t in told] == [0, 1]
    assert told[0].baseline
    assert (result.view.finished, result.reason) == (2, "a callback ended it")
    assert {"launching", "warming", "measuring", "stopping"} <= {e.text for e in events}
    assert any(e.what == "progress" and e.total for e in events)

    def impatient(event: Event) -> None:
        if event.what == "progress" and event.text == "measuring":
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        tune(study, trials=3, database=database, on_event=impatient)
    assert processes_of(tmp_path) == []

    async def cell() -> Result:  # as a notebook's
        done = tune(study, trials=3, database=database, until_converged=False)
        await asyncio.sleep(0)  # its loop goes on
        return done

    result = asyncio.run(cell())
    assert result.view.finished == 3
    assert [t.state for t in result.trials] == ["complete"] * 3
    assert "--max-num-batched-tokens" in result.command()
    assert result.best() in result.front()
    assert len(result.samples(result.trials[0])) == 6
    assert processes_of(tmp_path) == []
