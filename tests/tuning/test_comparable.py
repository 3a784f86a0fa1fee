"""Whether launches of today compare with those that a study has: what is said at a resume."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from autotune.engine.variables import is_kept
from autotune.storage.store import Store, opened
from autotune.tuning.comparable import check_comparable, environment_of, warn_of_variables
from autotune.tuning.prepare import Prepared
from tests.results.test_comparison import BASELINE, MACHINE, Run, stored
from tests.tuning.test_reuse import prepared_study

NAME = "VLLM_USE_V2_MODEL_RUNNER"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in filter(is_kept, [*os.environ]):
        monkeypatch.delenv(name)


class NoCheck:
    """Weights that are as they were."""

    def check(self) -> dict[str, str]:
        return {}


def said(prepared: Prepared, store: Store) -> list[str]:
    lines: list[str] = []
    check_comparable(prepared, store, MACHINE, lines.append, NoCheck())  # type: ignore[arg-type]
    return lines


def test_a_resume_in_another_environment_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = stored(tmp_path / "db", [Run(BASELINE, 100.0, own={NAME: "1", "HF_HOME": "/x"})])
    prepared = prepared_study(tmp_path / "now", "double")
    with opened(database) as store:
        [line] = said(prepared, store)
        assert line.startswith(
            f'earlier launches had another environment: {NAME} ("1" then, not set now). '
        )
        monkeypatch.setenv(NAME, "1")
        monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")  # changes no figure
        assert said(prepared, store) == []
        assert environment_of(prepared) == {NAME: "1"}
        monkeypatch.setenv(NAME, "0")
        [line] = said(prepared, store)
        assert f'{NAME} ("1" then, "0" now)' in line


def test_what_an_earlier_autotune_did_not_keep_is_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = stored(tmp_path / "db", [Run(BASELINE, 100.0)])
    prepared = prepared_study(tmp_path / "now", "double")
    monkeypatch.setenv("FLASHINFER_X", "1")
    with opened(database) as store:
        assert said(prepared, store) == []
    with closing(sqlite3.connect(database)) as c:
        c.execute("UPDATE autotune_launches SET host = 'a host'")
        c.commit()
    with opened(database) as store:
        [line] = said(prepared, store)
        assert 'FLASHINFER_X (not set then, "1" now)' in line


def test_a_study_without_launches_has_nothing_to_compare(tmp_path: Path) -> None:
    prepared = prepared_study(tmp_path / "now", "double")
    with opened(tmp_path / "new.db", create=True) as store:
        lines: list[str] = []
        warn_of_variables(prepared, store, "double:map", lines.append)
    assert lines == []
