"""Candidates that a confirmation dropped are named with the reason, wherever its result is."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from autotune.cli.main import main
from autotune.results.trials import study_view
from autotune.results.views import dropped_lines, verdict_lines
from autotune.search.spending import Dropped, Spending
from autotune.storage.store import opened
from tests.paths import ROOT

DEMO = ROOT / "studies" / "results" / "demo-cpu" / "autotune.db"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "autotune.db"
    shutil.copy(DEMO, path)
    return path


def keep(database: Path, wanted: int, planned: Spending) -> None:
    rows = {
        f"confirmation_{wanted}": list(planned.order),
        f"confirmation_steps_{wanted}": planned.to_json(),
    }
    with sqlite3.connect(database) as connection:
        for key, value in rows.items():
            connection.execute("DELETE FROM study_user_attributes WHERE key = ?", (key,))
            connection.execute(
                "INSERT INTO study_user_attributes (study_id, key, value_json) "
                "SELECT study_id, ?, ? FROM studies",
                (key, json.dumps(value)),
            )


def lines_of(database: Path) -> list[str]:
    with opened(database) as store:
        [name] = store.study_names()
        return dropped_lines(study_view(store, name))


def test_a_study_of_before_dropped_nothing(database: Path) -> None:
    assert lines_of(database) == []


def test_every_drop_is_a_line_with_its_reason(database: Path) -> None:
    why = {1: Dropped(2, 0, 0.973), 2: Dropped(0), 3: Dropped(4, 0, 0.9996), 999: Dropped(0)}
    keep(database, 20, Spending([0, 1, 2, 3], 8, why))
    first, second, third = lines_of(database)
    assert first.startswith("trial 1 (n = ")
    assert "dropped after 2 launches, because baseline (n = 0" in first
    assert first.endswith("is better with 97% probability")
    assert second.endswith("dropped, because its launches failed")
    assert third.endswith("is better with more than 99% probability")
    for command in ("status", "best"):
        said = CliRunner().invoke(main, [command, "--db", str(database)])
        assert said.exit_code == 0, said.output
        for line in (first, second, third):
            assert line[1:] in said.output


def test_what_a_later_confirmation_launched_again_is_not_dropped(database: Path) -> None:
    keep(database, 20, Spending([0, 1, 2], 8, {1: Dropped(2, 0, 0.97), 2: Dropped(2, 0, 0.99)}))
    keep(database, 30, Spending([0, 1, 1, 0], 4))
    [line] = lines_of(database)
    assert line.startswith("trial 2 (n = ")


@pytest.mark.parametrize("chance", [0.947, 0.9499, 0.83])
def test_a_tie_names_the_candidate_that_it_is_with(database: Path, chance: float) -> None:
    """The next best may be beaten for certain and one with fewer launches not."""
    with opened(database) as store:
        view = study_view(store, store.pick_study(None))
    assert view.verdict is not None
    choice = replace(view.verdict.winners[0], number=0, chances={7: 0.99, 1: chance})
    assert (choice.runner_up, choice.rival, choice.ties) == (7, 1, (1,))
    line = verdict_lines(replace(view, verdict=replace(view.verdict, winners=(choice,) * 2)))[0]
    said = line.split("a tie with trial 1 (n = ")[1]
    assert said.endswith(f": better with only {min(chance, 0.94):.0%} probability")
    assert "95%" not in said
