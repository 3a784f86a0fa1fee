"""A trial costs the tuner the same at the twentieth and at the two-hundredth place of a study."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import pytest
from optuna.trial import FrozenTrial
from rich.console import Console
from sqlalchemy import event
from sqlalchemy.engine import Engine

from autotune.bench.interference import IdleBaseline
from autotune.bench.objectives import study_objectives
from autotune.cli.console import Ui
from autotune.results import standing as standing_module
from autotune.results.standing import Standing, launched, with_points
from autotune.results.trials import trial_view, trial_views
from autotune.search.front import front_numbers
from autotune.serving.machine import describe_machine
from autotune.storage.reading import Reader
from autotune.storage.store import Store
from autotune.study.files import LoadedStudy, load_study
from autotune.study.space import Point
from autotune.tuning.prepare import prepare
from autotune.tuning.progress import At
from autotune.tuning.study_run import run_study
from objectives import Objective
from tests.paths import ROOT
from tests.studies import use_tools
from tests.surroundings import timed_idle_baseline

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmarks/unattended.py`, which makes studies of any length."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import unattended

    return unattended


class Counting(Ui):
    """Counts statements and the rows they give, for each trial by itself."""

    def __init__(self) -> None:
        super().__init__(Console(file=Path("/dev/null").open("w")))  # noqa: SIM115
        self.statements: list[list[str]] = [[]]
        self.rows = [0]

    def begin(self, at: At, position: int, point: Point) -> None:
        """From here on it is the next trial's."""
        self.statements.append([])
        self.rows.append(0)
        super().begin(at, position, point)

    def close(self) -> None:
        """The console's file, too."""
        super().close()
        self.console.file.flush()

    def executed(
        self, connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any
    ) -> None:
        """SQLAlchemy's ``after_cursor_execute``."""
        # the number of variables of an IN is that of what was found, which is counted as rows
        of_any = re.sub(r"IN \([?, ]*\)", "IN (?)", statement)
        if statement.startswith("INSERT INTO autotune_requests"):
            # how many were answered that only fill places is luck, and how often they are written
            of_any = re.sub(r"(\([?, ]+\))(, \([?, ]+\))+", r"\1", of_any)
            if of_any == self.statements[-1][-1]:
                return
        self.statements[-1].append(of_any)
        if statement.startswith("SELECT"):
            cursor = connection.connection.cursor()
            cursor.execute(f"SELECT count(*) FROM ({statement})", parameters)  # noqa: S608
            self.rows[-1] += cursor.fetchone()[0]
            cursor.close()


def run_counted(folder: Path, loaded: LoadedStudy, trials: int) -> Counting:
    def rows(self: Reader, sql: str, **values: object) -> list[dict[str, Any]]:
        found = read(self, sql, **values)
        ui.statements[-1].append(sql)
        ui.rows[-1] += len(found)
        return found

    read = Reader.rows
    with Counting() as ui, mock.patch.object(Reader, "rows", rows):
        prepared = prepare(loaded, ui)
        event.listen(Engine, "after_cursor_execute", ui.executed)
        try:
            run_study(
                prepared,
                database=folder / "autotune.db",
                trials=trials,
                seed=0,
                timeout_s=None,
                progress=ui,
                stop_below=0.0,  # every trial
            )
        finally:
            event.remove(Engine, "after_cursor_execute", ui.executed)
    return ui


@pytest.mark.double
def test_what_a_trial_reads_does_not_grow_with_the_study(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tools(monkeypatch, take_idle_baseline=lambda _earlier: IdleBaseline(0.05, None, ()))
    counted = {}
    for filled in (20, 200):
        folder = tmp_path / str(filled)
        folder.mkdir()
        loaded = load_study(str(bench.write_study(folder, "random")))
        # no trial can reach the front, so that the rivals are as many in both
        bench.fill(folder / "autotune.db", loaded, filled, out_of_reach=True)
        ui = run_counted(folder, loaded, filled + 4)
        assert len(ui.statements) == 5  # what is before the first trial reads the whole study
        assert ui.rows[0] > filled
        # the second and third of the run, from their points to those of the next
        counted[filled] = (ui.statements[2:4], ui.rows[2:4])
    assert counted[20] == counted[200]
    statements, rows = counted[200]
    assert all(len(s) > 20 for s in statements)
    assert all(0 < r < 200 for r in rows)


def filled_study(bench: Any, folder: Path, count: int) -> tuple[LoadedStudy, Store]:
    loaded = load_study(str(bench.write_study(folder, "random")))
    bench.fill(folder / "autotune.db", loaded, count)
    return loaded, Store(folder / "autotune.db")


def test_a_study_stands_alike_after_a_resume(bench: Any, tmp_path: Path) -> None:
    loaded, store = filled_study(bench, tmp_path, 40)
    try:
        objectives = study_objectives(loaded)
        space = loaded.spec.to_space()
        study = store.optuna_study(loaded.spec.name)
        trials = with_points(study.get_trials(deepcopy=False), space)
        growing = Standing(objectives)
        for k in range(len(trials) + 1):
            growing.update(trials[:k])
            assert growing.launched() == launched(trials[:k], objectives)
        anew = Standing(objectives)
        anew.update(trials)
        assert growing.front() == anew.front()
        views = trial_views(trials, loaded.spec, objectives)
        assert growing.front() == {v.number for v in views if v.front}
        assert len(growing.front()) > 1
        assert growing.launched().variance  # the baseline was launched again
        for v in views:
            assert trial_view(trials, v.number, growing, space, objectives) == v
    finally:
        store.close()


def number_of(trial: FrozenTrial) -> int:
    return trial.number


@pytest.mark.parametrize("key", [number_of, lambda t: -t.number])
def test_a_study_stands_alike_in_whatever_order_its_trials_end(
    bench: Any, tmp_path: Path, key: Callable[[FrozenTrial], int]
) -> None:
    loaded, store = filled_study(bench, tmp_path, 24)
    try:
        objectives = study_objectives(loaded)
        trials = store.optuna_study(loaded.spec.name).get_trials(deepcopy=False)
        standing = Standing(objectives)
        ended: list[FrozenTrial] = []
        for t in sorted(trials, key=key):
            ended = sorted([*ended, t], key=number_of)
            standing.update(ended)
        assert standing.launched() == launched(trials, objectives)
    finally:
        store.close()


def test_trials_that_end_out_of_order_cost_no_more_than_in_order(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots end trials in any order; that must not make each of them compare all again."""
    loaded, store = filled_study(bench, tmp_path, 60)
    try:
        trials = store.optuna_study(loaded.spec.name).get_trials(deepcopy=False)
        pairs = 0

        def counted(values: Mapping[int, Any], directions: Any) -> set[int]:
            nonlocal pairs
            pairs += len(values) ** 2
            return front_numbers(values, directions)

        monkeypatch.setattr(standing_module, "front_numbers", counted)

        def compared(order: Sequence[FrozenTrial]) -> int:
            nonlocal pairs
            pairs, standing = 0, Standing(study_objectives(loaded))
            ended: list[FrozenTrial] = []
            for t in order:
                ended = sorted([*ended, t], key=number_of)
                standing.update(ended)
            return pairs

        in_order = compared(trials)
        swapped = [t for pair in zip(trials[1::2], trials[::2], strict=True) for t in pair]
        assert swapped != trials
        assert compared(swapped) <= 1.5 * in_order
    finally:
        store.close()


def without(
    trials: Sequence[FrozenTrial], number: int, objectives: Sequence[Objective]
) -> set[int]:
    """The front, had there been no such trial."""
    standing = Standing(objectives)
    standing.update([t for t in trials if t.number != number])
    return standing.front()


def test_a_point_that_gets_worse_lets_others_onto_the_front(bench: Any, tmp_path: Path) -> None:
    loaded, store = filled_study(bench, tmp_path, 24)
    try:
        objectives = study_objectives(loaded)
        trials = store.optuna_study(loaded.spec.name).get_trials(deepcopy=True)
        standing = Standing(objectives)
        standing.update(trials[:-1])
        best = max(standing.front(), key=lambda k: len(without(trials[:-1], k, objectives)))
        others = without(trials[:-1], best, objectives)
        assert others - standing.front()  # it alone keeps these off
        again = trials[-1]
        again.values = [v * f for v, f in zip(trials[best].values, (1e-3, 1e3), strict=True)]
        again.set_user_attr("replicates", best)
        standing.update(trials)
        assert standing.front() == others
    finally:
        store.close()


def test_the_error_of_a_point_is_that_of_the_search_s_launches(bench: Any, tmp_path: Path) -> None:
    """A confirmation may lie between them, where a study was given more trials."""
    loaded, store = filled_study(bench, tmp_path, 3)
    try:
        objectives = study_objectives(loaded)
        trials = store.optuna_study(loaded.spec.name).get_trials(deepcopy=True)
    finally:
        store.close()
    for t, error in zip(trials, (0.01, 0.5, 0.03), strict=True):
        errors = {o.name: error for o in objectives}
        t.set_user_attr("quality", {**t.user_attrs["quality"], "errors": errors})
        t.user_attrs.pop("replicates", None)
    trials[1].set_user_attr("confirms", 0)
    trials[2].set_user_attr("replicates", 0)
    standing = Standing(objectives)
    standing.update(trials)
    rms = math.sqrt((0.01**2 + 0.03**2) / 2)
    assert standing.errors(0) == {o.name: pytest.approx(rms) for o in objectives}
    assert (standing.errors(1), standing.errors(2)) == (None, None)


def test_the_idle_baseline_of_a_resumed_run_is_compared_with_the_same_times(
    bench: Any, tmp_path: Path
) -> None:
    loaded, store = filled_study(bench, tmp_path, 20)
    try:
        machine = describe_machine()
        assert store.launches.idle_baselines(loaded.spec.name, machine) == [0.05] * 20
        assert store.launches.idle_baselines(loaded.spec.name, machine | {"cores": -1}) == []
        assert store.launches.idle_baselines("another", machine) == []
    finally:
        store.close()


def test_queries_of_one_trial_and_one_phase_give_what_is_theirs(bench: Any, tmp_path: Path) -> None:
    loaded, store = filled_study(bench, tmp_path, 20)
    try:
        whole = store.launches.of_study(loaded.spec.name)
        assert len(whole) == 20
        for number in (0, 7):
            (one,) = store.launches.of_trial(loaded.spec.name, number)
            assert one.launch_id == next(x.launch_id for x in whole if x.trial == number)
        assert store.launches.of_trial(loaded.spec.name, 99) == []
        requests = store.requests.of_launch(one.launch_id)
        measured = store.requests.of_launch(one.launch_id, "measure")
        assert [r.id for r in measured] == [r.id for r in requests if r.phase == "measure"]
        assert len(store.requests.samples(one.launch_id)) == len(measured) == 4
    finally:
        store.close()


@pytest.mark.double
def test_the_benchmark_resumes_and_reports_each_trial(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # what the idle baseline costs is one of the figures
    with mock.patch.object(bench, "SHOWN", (2,)), timed_idle_baseline():
        for trials in (2, 4):
            arguments = [str(tmp_path), "--trials", str(trials), "--method", "random"]
            assert bench.main(arguments) == 0
    out = capsys.readouterr().out
    assert "Processes that ran these trials, one after the other: 2." in out
    last = [line.split("|") for line in out.splitlines() if line.startswith("|")][-1]
    assert int(last[1]) == 4
    assert all(float(cell) > 0 for cell in last[2:-1])
