"""Rows of plain data, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from autotune import Result
from autotune.results.rows import chosen_by
from tests.paths import ROOT
from tests.studies import autotune

STORED = ROOT / "studies" / "results" / "demo-cpu" / "autotune.db"


def test_rows_are_what_the_command_prints(tmp_path: Path) -> None:
    rows = Result.from_database(STORED).rows()
    printed = autotune("status", "--json", "--db", str(STORED), cwd=tmp_path)
    assert json.loads(json.dumps(rows)) == json.loads(printed.stdout)
    assert rows[0]["tok_s"] == rows[0]["objectives"]["throughput"]["value"]


def test_a_chosen_trial_has_its_rules() -> None:
    result = Result.from_database(STORED)
    verdict = result.view.verdict
    assert verdict is not None
    found = chosen_by(result.view, verdict.balanced.number)
    assert "balanced" in found
    assert found["balanced"]["ties"] == list(verdict.balanced.ties)
    numbers = {t.number for t in result.trials}
    others = numbers - {c.number for c in (*verdict.winners, verdict.balanced)}
    assert all(chosen_by(result.view, n) == {} for n in others)
