"""Trials are read without Optuna, and are what Optuna says."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from datetime import UTC
from math import inf
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.errors import UserError
from autotune.storage.location import Database
from autotune.storage.reading import Reader
from autotune.storage.store import Store, opened
from autotune.storage.trials import FINISHED, REVISIONS, State, Trial, stored_study
from tests.paths import ROOT

COMMITTED = sorted(ROOT.glob("studies/results/**/*.db"))


def of_optuna(t: FrozenTrial) -> dict[str, Any]:
    return {
        "number": t.number,
        "state": t.state.name,
        "values": t.values,
        "params": t.params,
        "distributions": {k: distribution_to_json(d) for k, d in t.distributions.items()},
        "user_attrs": t.user_attrs,
        "started": t.datetime_start and t.datetime_start.astimezone(UTC),
        "completed": t.datetime_complete and t.datetime_complete.astimezone(UTC),
        "duration": t.duration,
    }


def as_plain(t: Trial) -> dict[str, Any]:
    return {**vars(t), "state": t.state.name, "duration": t.duration}


def compare(store: Store, name: str) -> list[Trial]:
    """Assert that a study reads as with Optuna; return its trials."""
    ours, theirs = store.stored_study(name), store.optuna_study(name)
    assert [as_plain(t) for t in ours.trials] == [of_optuna(t) for t in theirs.trials]
    params = [list(t.params) for t in ours.trials]
    assert params == [list(t.params) for t in theirs.trials]  # in the order of the columns shown
    assert ours.maximized == tuple(d.name == "MAXIMIZE" for d in theirs.directions)
    assert ours.metric_names == theirs.metric_names
    return ours.trials


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("committed", COMMITTED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_committed_studies_are_read_as_optuna_reads_them(committed: Path, tmp_path: Path) -> None:
    shutil.copy(committed, tmp_path / "a.db")
    with opened(tmp_path / "a.db") as store:
        [name] = store.study_names()
        assert compare(store, name)


def test_states_are_those_of_optuna() -> None:
    assert {s.name: s.value for s in State} == {s.name: s.value for s in TrialState}
    assert {s.name for s in FINISHED} == {s.name for s in TrialState if s.is_finished()}
    assert State.FAIL == TrialState.FAIL


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_kind_of_trial_is_read_as_optuna_reads_it(database: Database) -> None:
    distributions = {
        "n": IntDistribution(1, 64, log=True),
        "share": FloatDistribution(0.0, 1.0),
        "way": CategoricalDistribution(["a", 1, None, True]),
    }
    with opened(database, create=True) as store:
        study = optuna.create_study(
            study_name="s", storage=store.storage, directions=["minimize", "maximize"]
        )
        optuna.create_study(study_name="other", storage=store.storage).ask()
        assert store.stored_study("s").metric_names is None
        study.set_metric_names(["x", "y"])
        for way in ("a", 1, None, True):
            study.add_trial(
                create_trial(
                    values=[inf, -inf],
                    params={"way": way, "share": 0.5, "n": 8},
                    distributions=distributions,
                    user_attrs={"z": {"a": [1, None]}, "b": "x"},
                )
            )
        for state in (TrialState.FAIL, TrialState.PRUNED, TrialState.WAITING):
            study.add_trial(create_trial(state=state))
        study.ask()  # takes the one that waits
        trials = compare(store, "s")
        assert trials[0].values == [inf, -inf]
        assert {t.state for t in trials} == {*State} - {State.WAITING}


def test_a_trial_that_begins_while_a_study_is_read_is_left_out(database: Database) -> None:
    class Between(Reader):
        """Begins a trial with a parameter after the trials were read."""

        def rows(self, sql: str, **values: object) -> list[dict[str, Any]]:
            found = store._reader.rows(sql, **values)
            if sql.startswith("SELECT * FROM trials "):
                study.ask({"n": IntDistribution(0, 15)}).set_user_attr("late", True)
            return found

        def tables(self) -> dict[str, set[str]]:
            return store._reader.tables()

    with opened(database, create=True) as store:
        study = optuna.create_study(study_name="s", storage=store.storage)
        study.ask({"n": IntDistribution(0, 15)})
        read = stored_study(Between(), "s")
        assert read is not None
        assert [t.number for t in read.trials] == [0]
        assert [t.number for t in store.stored_study("s").trials] == [0, 1]


def test_a_study_that_never_ran_is_said_so(database: Database) -> None:
    with opened(database, create=True) as store:
        assert not store.ran("s")
        with pytest.raises(UserError, match="s was begun and never ran"):
            store.stored_study("s")


@pytest.mark.parametrize("mode", [{}, {"write": True}, {"create": True}], ids=str)
def test_tables_of_another_optuna_are_one_line(tmp_path: Path, mode: dict[str, bool]) -> None:
    path = tmp_path / "a.db"
    with opened(path, create=True) as store:
        found = store._reader.one("SELECT version_num FROM alembic_version")
    assert found in REVISIONS  # else the installed Optuna is one that is not known
    with closing(sqlite3.connect(path)) as c:
        c.execute("UPDATE alembic_version SET version_num = 'v9.0.0.a'")
        c.commit()
    with pytest.raises(UserError, match=r"another version of Optuna \(tables v9.0.0.a, ") as e:
        Store(path, **mode)
    assert "\n" not in str(e.value)
