"""The notebooks run from the top, on the stored study, and are kept as they ran."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from notebooks.execute import NOTEBOOKS, executed
from tests.studies import processes_of, write_study

pytestmark = pytest.mark.slow

MOST_BYTES = 200_000


def by_name(path: Path) -> str:
    return path.stem


def test_which_there_are() -> None:
    names = [
        "first-study",
        "reading-a-result",
        "rehearsal-at-real-size",
        "speculation-on-a-gpu",
    ]
    assert [p.stem for p in NOTEBOOKS] == names


@pytest.fixture(autouse=True)
def jupyter_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("jupyter")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(folder / name))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_it_runs_without_a_server(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOTUNE_NOTEBOOK_LAUNCH", raising=False)
    before = set(path.parent.iterdir())
    notebook = executed(path, renderer="plotly_mimetype")
    assert set(path.parent.iterdir()) == before
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    said = "".join(o.get("text", "") for c in code for o in c.outputs)
    assert "tok/s" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_it_is_kept_with_what_it_shows(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.outputs for c in code), "run `python -m notebooks.execute`"
    kinds = {o.output_type for c in code for o in c.outputs}
    assert "error" not in kinds
    assert not any(o.get("name") == "stderr" for c in code for o in c.outputs)
    home = str(Path.home())
    assert home not in path.read_text()  # nothing of the machine that ran it


@pytest.mark.double
def test_a_study_runs_in_a_cell(tmp_path: Path) -> None:
    run = f"""
import asyncio
from autotune import Study, tune
study = Study.from_file({str(write_study(tmp_path))!r})
result = tune(study, trials=1, database="a.db", on_trial=lambda t: print(t.state))
"""
    after = """
await asyncio.sleep(0)  # the kernel's loop goes on
print(result)
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (run, after)])
    nbformat.write(notebook, tmp_path / "cells.ipynb")
    done = executed(tmp_path / "cells.ipynb", renderer="plotly_mimetype")
    said = "".join(o.get("text", "") for c in done.cells for o in c.outputs)
    assert "complete\nResult('double', 1 of 1 trials finished)" in said
    assert processes_of(tmp_path) == []
