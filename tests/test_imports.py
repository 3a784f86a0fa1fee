"""What commands import: little to print a help page, no search and no SciPy to read a database."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.cli.main import main

ROOT = Path(__file__).parents[1]
DATABASE = ROOT / "studies/results/smollm2-h200/autotune.db"
HEAVY = ("numpy", "optuna", "sqlalchemy")
NOT_TO_READ = (
    "torch",
    "scipy",
    "vllm",
    "autotune.search.proposer",
    "autotune.search.surrogate",
    "autotune.search.model",
    "autotune.search.gain",
    "autotune.search.crashes",
)
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


def test_the_package_is_imported_without_what_is_heavy(tmp_path: Path) -> None:
    found = imported(tmp_path, f"{IMPORTED}import autotune\nsaid()")
    assert "autotune" in found
    assert not found & {*HEAVY, *NOT_TO_READ}


@pytest.mark.parametrize("command", [None, *sorted(main.commands)])
def test_help_imports_nothing_heavy(tmp_path: Path, command: str | None) -> None:
    words = [] if command is None else [command]
    found = imported(tmp_path, COMMAND, *words, "--help")
    assert "click" in found
    assert not found & {*HEAVY, *NOT_TO_READ}


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "--json"],
        ["status", "--time"],
        ["best"],
        ["export", "--format", "compose"],
    ],
    ids=" ".join,
)
def test_a_database_is_read_without_the_search(tmp_path: Path, words: list[str]) -> None:
    shutil.copy(DATABASE, tmp_path)
    found = imported(tmp_path, COMMAND, *words)
    assert "sqlalchemy" in found
    assert not found & set(NOT_TO_READ)
