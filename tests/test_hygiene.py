"""The tree itself: linted, formatted, typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "argv",
    [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]],
    ids=["lint", "format", "types"],
)
def test_clean(argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="on one worker (-n 0)")
def test_tests_are_in_groups(request: pytest.FixtureRequest) -> None:
    assert request.node.nodeid.endswith("@0-tests/test_hygiene.py")
