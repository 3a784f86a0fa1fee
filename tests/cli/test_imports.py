"""What commands import: little for a help page, neither search nor Optuna to read a database."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.cli.main import main
from tests.paths import ROOT

DATABASE = ROOT / "studies/results/demo-cpu/autotune.db"
TIMED = ROOT / "studies/results/demo-cpu-against-grid/autotune.db"
SWEPT = ROOT / "studies/results/smollm2-h200/autotune.db"
HEAVY = ("numpy", "optuna", "sqlalchemy")
NOT_TO_READ = ("torch", "scipy", "vllm", "optuna", "alembic", "sqlalchemy")
# Of these rooms a command that reads imports nothing but pure functions on what was measured, and
# the events of a run, which the terminal can show.
ROOMS_TO_RUN = ("autotune.search", "autotune.tuning")
PURE = {
    "autotune.search",
    "autotune.search.acceptance",
    "autotune.search.alike",
    "autotune.search.confirmation",
    "autotune.search.features",
    "autotune.search.flatness",
    "autotune.search.confirmation_verdict",
    "autotune.search.draft_quality",
    "autotune.search.front",
    "autotune.search.noise",
    "autotune.search.places",
    "autotune.search.spending",
    "autotune.tuning",
    "autotune.tuning.progress",
}
IMPORTED = """
import json, os, sys
def said():
    print(json.dumps(sorted(sys.modules)), file=os.fdopen(3, "w"))
"""
COMMAND = f"""{IMPORTED}
from autotune.cli.main import main
sys.argv[0] = "autotune"
try:
    main()
finally:
    said()
"""

HELP = f"""{IMPORTED}
import contextlib
from autotune.cli.main import main
with open("pages", "w") as pages, contextlib.redirect_stdout(pages):
    for name in sys.argv[1:]:
        with contextlib.suppress(SystemExit):
            main([*filter(None, [name]), "--help"], prog_name="autotune")
said()
"""


def imported(folder: Path, code: str, *words: str) -> set[str]:
    """Return the modules that a program imported; it must succeed."""
    read, write = os.pipe()
    with os.fdopen(read) as answer:
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", f"import os; os.dup2({write}, 3)\n{code}", *words],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[write],
            )
        finally:
            os.close(write)
        modules = answer.read()
        _, complaint = process.communicate()
    assert process.returncode == 0, complaint
    return set(json.loads(modules))


def of_a_run(modules: set[str]) -> set[str]:
    """Return the modules that only a command needs which runs a study."""
    return {m for m in modules - PURE if m.startswith(ROOMS_TO_RUN)}


def test_the_package_is_imported_without_what_is_heavy(tmp_path: Path) -> None:
    found = imported(tmp_path, f"{IMPORTED}import autotune\nsaid()")
    assert "autotune" in found
    assert not found & {*HEAVY, *NOT_TO_READ}
    assert not of_a_run(found)


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """One process prints all help pages; whatever one of them imports is there at the end."""
    found = imported(tmp_path, HELP, "", *sorted(main.commands))
    pages = (tmp_path / "pages").read_text()
    assert pages.count("Usage: autotune") == 1 + len(main.commands)
    assert "click" in found
    assert not found & {*HEAVY, *NOT_TO_READ}


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "--json"],
        ["status", "--trial", "0"],
        ["best"],
        ["best", "--json"],
        *(
            ["export", "--format", kind]
            for kind in ("shell", "vllm-config", "compose", "kubernetes", "systemd")
        ),
        ["predict"],
        ["explain", "demo-cpu"],
        ["compare", "autotune.db", "b.db", "--threshold", "99%"],
        ["report", "--out", "report.md"],
        ["pareto"],
        ["map", "smollm2-h200", "--show"],
        ["status", "--time", "--db", "timed.db"],
    ],
    ids=" ".join,
)
def test_a_database_is_read_without_what_runs_a_study(tmp_path: Path, words: list[str]) -> None:
    source = SWEPT if words[0] == "map" else TIMED if "timed.db" in words else DATABASE
    for name in ("autotune.db", "b.db", "timed.db"):
        shutil.copy(source, tmp_path / name)
    found = imported(tmp_path, COMMAND, *words)
    assert "autotune.storage.reading" in found
    assert not found & set(NOT_TO_READ)
    assert not of_a_run(found)
