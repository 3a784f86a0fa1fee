"""Databases of autotune 0.1: what is computed again when they are read, and what is only shown.

Its closed loops began with a burst and ended with empty places; its numbers were over a window.
Those here are of two places, which both take 10 s at first and at last, and in between 2 s, 4 s,
2 s, 4 s, … for 12 tokens each. So the sixteen requests that count took 48 s for 192 tokens.
"""

from __future__ import annotations

import json
import math
import sqlite3
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

import objectives
from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.engine.command import plan_launch
from autotune.engine.probe import VllmInfo
from autotune.output.figures.pareto import pareto_figure
from autotune.output.report import build, markdown
from autotune.results.comparison import Where, compare
from autotune.results.objectives import stored_objectives
from autotune.results.ratios import Finding
from autotune.results.read_load_map import comparable_loads
from autotune.results.recomputed import Recomputed
from autotune.results.standing import counts
from autotune.results.trials import study_view
from autotune.results.views import StudyView, TrialView
from autotune.serving.machine import describe_machine
from autotune.serving.process_tree import Identity
from autotune.stats import ESTIMATOR, Estimate
from autotune.stats.intervals import MEAN_FACTOR
from autotune.storage.records import Quality, attrs_of
from autotune.storage.store import Store, opened
from autotune.storage.trials import Trial
from autotune.study.files import load_study
from autotune.study.space import MNBT, N, Point
from tests.studies import UNENDED, autotune, front, processes_of, query, trials, write_study

optuna.logging.set_verbosity(optuna.logging.WARNING)

INFO = VllmInfo("0.32.0", "vllm", sys.executable, "cpu", None, (), ())
THROUGHPUT = objectives.get("throughput")
TOKENS = 12
# By hand: two places, 16 · 12 tokens in 8 · 2 s + 8 · 4 s; the (16 + 1/3) 0.95 + 1/3 = 15.85th of
# 16 latencies, of which the last eight are 4 s.
RATE, P95_MS = 2 * 192 / 48, 4000.0
# Of the rate's logarithm: eight batches of two, each 2 s below or above its share of 48 s in turn,
# so that none follows another one (φ = 0): √(8/7 · 8 · 2²/16/16)/3 s; the standard error is without
# the widening of intervals.
BATCHES_ERROR = math.sqrt(8 / 7 * 8 * 4 / 16 / 16) / 3
ERROR = BATCHES_ERROR / math.sqrt(MEAN_FACTOR)
T7 = {0.95: 2.3646, 0.97: 2.7146}  # Student's t at 7 degrees, two-sided
# A little study, all of whose points are tried.
GRID: Mapping[str, object] = {
    "space": {
        "num_speculative_tokens": {"type": "choice", "choices": [0, 3, 7]},
        "max_num_batched_tokens": {"type": "choice", "choices": [2048]},
    },
    "search": {"method": "grid"},
    "budget": {"confirm": 0, "replicates": 0},
}


def burst(factor: float = 1.0, inner: int = 8) -> list[Sample]:
    """Pairs of requests at two places: the first, ``inner`` others and the last."""
    seconds = [10.0, *(factor * (2 + 2 * (i % 2)) for i in range(inner)), 10.0]
    starts = [0.0, *accumulate(seconds)]
    return [
        Sample(
            *(2 * i + place, "measure", 0.0, starts[i], took / TOKENS, starts[i] + took),
            *(5, TOKENS, "ok", None, tuple(took * (k + 1) / TOKENS for k in range(TOKENS))),
        )
        for i, took in enumerate(seconds)
        for place in range(2)
    ]


FEW = burst(inner=1)[:-1]  # of five requests one ran while both places were busy


@dataclass(frozen=True)
class Old:
    """A trial as autotune 0.1 wrote it: with numbers that mean nothing today."""

    n: int
    samples: Sequence[Sample] = field(default_factory=burst)
    rate: float = 5.0
    stop: str = "all"
    attrs: Mapping[str, Any] = field(default_factory=dict)


def write(folder: Path, rows: Sequence[Old], *, wanted: int = 3, **changes: object) -> Path:
    """A study ``double`` with these trials, the first one its baseline, as 0.1 left it."""
    given = {"workload__num_prompts": 20, **GRID, **changes}
    loaded = load_study(str(write_study(folder, **given)))
    spec, space = loaded.spec, loaded.spec.to_space()
    ways = {o.name: o.direction or "minimize" for o in spec.objectives}
    ways |= {n: objectives.get(n).direction for n in ways if n in objectives.names()}
    with opened(folder / "autotune.db", create=True) as store:
        store.begin_study(loaded, seed=0, wanted=wanted)
        study = optuna.create_study(
            storage=store.storage, study_name=spec.name, directions=list(ways.values())
        )
        for number, row in enumerate(rows):
            point: Point = {N: row.n, MNBT: 2048}
            values = {n: row.rate if w == "maximize" else 1e4 / row.rate for n, w in ways.items()}
            bounds = {n: [0.9 * v, 1.1 * v] for n, v in values.items()}
            quality = {
                **{"requests": len(row.samples), "stop": row.stop, "dominated_by": None},
                **{"warmup_requests": 2, "steady": True, "drift": None, "disturbed": None},
            }
            launch = _launch(store, spec.name, number, point, loaded.spec.server, row.samples)
            store.launches.measured(
                launch,
                ServerStats(*[None] * 4, (), *[None] * 3),
                values,
                {n: (low, high) for n, (low, high) in bounds.items()},
                quality | {"machine": {"rest": {"kernel_s": 1.0}}},
            )
            store.launches.ended(launch, 0, 0)
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    values=list(values.values()),
                    params=space.encode(point),
                    distributions=space.distributions(),
                    user_attrs={
                        **{"point": dict(point), "launch": launch, "vllm_version": "0.32.0"},
                        **{"intervals": bounds, "log_variances": [0.01] * len(values)},
                        **{"quality": quality},
                        **({} if number else {"baseline": True}),
                        **row.attrs,
                    },
                )
            )
    return folder / "autotune.db"


def _launch(
    store: Store, name: str, trial: int, point: Point, server: Any, samples: Sequence[Sample]
) -> str:
    launch = uuid.uuid4().hex
    store.launches.plan(
        launch,
        study=name,
        trial=trial,
        attempt=0,
        plan=plan_launch(server, point, INFO, port=8000, launch_id=launch, resolve=lambda r: r),
        machine=describe_machine(),
        log_path=Path("/nowhere.log"),
    )
    store.launches.started(Identity(launch, "boot"))
    store.launches.ready(launch, "0.32.0")
    store.requests.add(launch, samples)
    return launch


def view_of(database: Path) -> StudyView:
    with opened(database) as store:
        return study_view(store, "double")


def rows_of(database: Path) -> dict[str, list[tuple[object, ...]]]:
    """Everything that the file has of trials, launches and requests."""
    tables = {
        "trials": "number",
        "trial_values": "trial_value_id",
        "trial_params": "param_id",
        "trial_user_attributes": "trial_user_attribute_id",
        "autotune_launches": "planned_at",
        "autotune_requests": "id",
        "autotune_studies": "name",
    }
    with closing(sqlite3.connect(database)) as c:
        return {
            table: c.execute(f"select * from {table} order by {order}").fetchall()  # noqa: S608
            for table, order in tables.items()
        }


def value(t: TrialView, name: str) -> float:
    return (t.values or {})[name]


def as_measured_today(database: Path, number: int) -> None:
    """Makes of a trial one of the present estimator, with the numbers that it has."""
    errors = {"throughput": 0.05, "p95_latency": 0.05}
    quality = {"estimator": ESTIMATOR, "errors": errors, "busy": True, "requests": 20}
    with closing(sqlite3.connect(database)) as c:
        c.execute(
            "update trial_user_attributes set value_json = ? where key = 'quality' and trial_id = "
            "(select trial_id from trials where number = ?)",
            (json.dumps(quality | {"stop": "all", "steady": True}), number),
        )
        c.commit()


# -- computed again ------------------------------------------------------------------------------


def test_the_version_of_an_estimator() -> None:
    for kept in (None, {}, {"steady": True}, {"estimator": None}):
        assert Quality.read(kept).estimator == 1
    assert Quality.read({"estimator": ESTIMATOR}).estimator == ESTIMATOR == 2


@pytest.mark.parametrize(("stop", "confidence"), [("all", 0.95), ("precise", 0.97)])
def test_an_old_trial_has_the_numbers_that_its_requests_give_today(
    tmp_path: Path, stop: str, confidence: float
) -> None:
    database = write(tmp_path, [Old(0, stop=stop), Old(3, burst(0.5))])
    before = rows_of(database)
    view = view_of(database)
    first, fast = view.trials
    assert first.values == {"throughput": pytest.approx(RATE), "p95_latency": P95_MS}
    assert fast.values == {"throughput": pytest.approx(2 * RATE), "p95_latency": P95_MS / 2}
    assert (fast.speedup, first.requests, first.stop) == (pytest.approx(2), 16, stop)
    assert first.errors is not None
    assert first.errors["throughput"] == pytest.approx(ERROR)
    assert first.within is not None
    factor = math.exp(T7[confidence] * BATCHES_ERROR)
    assert first.within["throughput"] == pytest.approx((RATE / factor, RATE * factor), rel=1e-4)
    assert (first.recomputed, first.outdated, first.warnings) == (True, False, ())
    assert view.finished == 2
    # every request is kept, and nothing is written
    assert rows_of(database) == before
    shown = autotune("status", cwd=tmp_path)
    assert "trials 0, 1: measured by autotune 0.1, computed again" in shown.stdout
    story = autotune("status", "--trial", "0", cwd=tmp_path).stdout
    assert "computed again" in story
    assert "measure: 20 of 20 requests ok" in story
    assert [t["recomputed"] for t in trials(tmp_path)] == [True, True]
    assert rows_of(database) == before


def test_what_an_open_loop_sent_counts_to_the_last_request(tmp_path: Path) -> None:
    database = write(tmp_path, [Old(0)], workload__request_rate=2.0, workload__max_concurrency=None)
    [t] = view_of(database).trials
    # 10 + 24 + 10 s to the last end, before which the last was sent; all 20 count
    assert t.requests == 20
    assert value(t, "throughput") == pytest.approx(20 * TOKENS / 44)


def test_a_place_alone_is_never_empty(tmp_path: Path) -> None:
    alone = [s for s in burst() if s.index % 2 == 0]
    database = write(tmp_path, [Old(0, alone)], workload__max_concurrency=1)
    [t] = view_of(database).trials
    assert t.requests == 10
    assert value(t, "throughput") == pytest.approx(10 * TOKENS / 44)


def test_old_and_new_trials_are_compared_by_the_same_numbers(tmp_path: Path) -> None:
    rows = [Old(0, rate=100.0), Old(3, burst(0.5), rate=1.0), Old(7, rate=10.0)]
    database = write(tmp_path, rows)
    as_measured_today(database, 2)
    view = view_of(database)
    assert [t.recomputed for t in view.trials] == [True, True, False]
    assert [value(t, "throughput") for t in view.trials] == pytest.approx([RATE, 2 * RATE, 10.0])
    # by what the file says the baseline would be the best
    # 1 has most tokens a second, 2 the shortest latencies, 1e4 / 10 ms
    assert [t.number for t in view.front()] == [1, 2]
    best = view.best()
    assert best is not None
    assert best.number == 1
    assert [x["tok_s"] for x in front(tmp_path)] == pytest.approx([2 * RATE, 10.0])
    shell = autotune("best", "--shell", cwd=tmp_path).stdout
    assert '"num_speculative_tokens": 3' in shell


def test_old_studies_are_compared_as_they_are_computed_today(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    again = {"replicates": 0}

    def rows(factor: float, rate: float) -> list[Old]:
        of = [Old(0, burst(f * factor), rate) for f in (1.0, 1.01, 0.99, 1.0)]
        return [of[0], *(Old(x.n, x.samples, x.rate, attrs=again) for x in of[1:])]

    a = write(tmp_path / "a", rows(1.0, 5.0))
    b = write(tmp_path / "b", rows(2.0, 500.0))  # by what the file says a hundred times as fast
    c = compare(Where(a, None), Where(b, None), objective="throughput")
    [pair] = c.pairs
    assert pair.launches == (4, 4)
    ratio: Estimate = pair.differences["throughput"].ratio
    assert ratio.value == pytest.approx(0.5)
    assert ratio.high is not None
    assert ratio.high < 0.95
    assert c.finding(THROUGHPUT) is Finding.WORSE
    assert c.regression


def test_the_baseline_s_launches_tell_how_launches_differ(tmp_path: Path) -> None:
    again = {"replicates": 0}
    rows = [Old(0), *(Old(0, burst(f), attrs=again) for f in (1.02, 0.98))]
    view = view_of(write(tmp_path, rows))
    assert view.trials[0].launches == 3
    mean = (1 + 1 / 1.02 + 1 / 0.98) / 3
    assert value(view.trials[0], "throughput") == pytest.approx(RATE * mean)
    assert view.variance["throughput"].total.sigma == pytest.approx(0.02, rel=0.01)
    assert view.variance["throughput"].within == pytest.approx(ERROR)


# -- shown only ----------------------------------------------------------------------------------


def test_too_few_requests_are_shown_and_compared_with_nothing(tmp_path: Path) -> None:
    rows = [Old(0), Old(3, burst(0.5)), Old(7, FEW, rate=1e6)]
    database = write(tmp_path, rows)
    before = rows_of(database)
    view = view_of(database)
    left = view.trials[2]
    assert (left.outdated, left.recomputed, left.front, left.speedup) == (True, False, False, None)
    assert value(left, "throughput") == 1e6  # as it was measured
    [warning] = left.warnings
    assert warning.startswith("not compared: measured by another version of autotune")
    assert warning.endswith("of 5 requests fewer than 2 ran at the full concurrency of 2")
    assert view.finished == 2
    assert [t.number for t in view.front()] == [1]
    assert (view.best() or left).number == 1
    assert (view.best(balanced=True) or left).number == 1
    shown = autotune("status", cwd=tmp_path).stdout
    assert "2 of 3 trials finished" in shown
    assert "not compared" in shown
    told = trials(tmp_path)[2]
    assert (told["outdated"], told["front"], told["state"]) == (True, False, "complete")
    assert [x["trial"] for x in front(tmp_path)] == [1]
    assert rows_of(database) == before


def test_an_outdated_trial_is_in_no_picture_and_no_other_command(tmp_path: Path) -> None:
    rows = [Old(0), Old(3, burst(0.5)), Old(7, FEW, rate=1e6)]
    database = write(tmp_path, rows)
    drawn = pareto_figure(view_of(database)).to_json()
    assert "1000000" not in drawn
    with opened(database) as store:
        page = markdown(build(store, study_view(store, "double")))
    assert "Serve n = 3, MNBT 2048" in page
    assert "not compared" in page
    (tmp_path / "other").mkdir()
    c = compare(Where(database, None), Where(write(tmp_path / "other", rows), None))
    assert [p.point[N] for p in c.pairs] == [0, 3]


MINE = """
from objectives import Objective
OBJECTIVE = Objective(
    name="mine", title="Mine", unit="tok/s", direction="maximize", formula="f", source="s",
    compute=lambda m: 1 / 0,
)
"""


def test_an_objective_of_a_user_is_not_run_to_look_at_a_database(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    mine = {"file": "mine.py", "direction": "maximize"}
    database = write(tmp_path, [Old(0), Old(3)], objectives=[mine, "p95_latency"])
    view = view_of(database)
    assert [t.outdated for t in view.trials] == [True, True]
    assert all(t.warnings[0].endswith("mine is an objective of your own") for t in view.trials)
    assert [value(t, "mine") for t in view.trials] == [5.0, 5.0]
    assert (view.finished, view.front(), view.best()) == (0, [], None)
    assert not any(t.baseline for t in view.trials)  # none that others could be compared with
    done = autotune("best", cwd=tmp_path)
    assert done.returncode == 1
    assert "no trial has results" in done.stderr
    assert autotune("report", "--format", "md", cwd=tmp_path).returncode == 0
    assert autotune("status", cwd=tmp_path).returncode == 0


def test_requests_that_are_gone_make_a_trial_outdated(tmp_path: Path) -> None:
    database = write(tmp_path, [Old(0), Old(3, ()), Old(7)])
    with closing(sqlite3.connect(database)) as c:
        c.execute(
            "delete from autotune_requests where id in (select id from autotune_requests "
            "order by id desc limit 1)"
        )
        c.commit()
    view = view_of(database)
    assert [t.outdated for t in view.trials] == [False, True, True]
    (warning,) = view.trials[2].warnings
    assert warning.endswith("of its 20 requests the database has 19")


def test_trials_that_failed_or_run_are_left_as_they_are(tmp_path: Path) -> None:
    database = write(tmp_path, [Old(0)])
    with opened(database) as store:
        loaded, _ = store.load_study("double")
        study = store.optuna_study("double")
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"failure_kind": "oom"}))
        study.add_trial(create_trial(state=TrialState.RUNNING))
        stored = store.stored_study("double")
        found = stored.trials
        again = Recomputed(store, loaded.spec, stored_objectives(loaded, stored)).trials(found)
    assert again[1:] == found[1:]
    assert again[0] is not found[0]
    assert attrs_of(found[0]).quality.recomputed is None


# -- what refers to an outdated trial ------------------------------------------------------------


def recomputed(database: Path) -> list[Trial]:
    with opened(database) as store:
        loaded, _ = store.load_study("double")
        study = store.stored_study("double")
        return Recomputed(store, loaded.spec, stored_objectives(loaded, study)).trials(study.trials)


def test_the_first_launch_that_can_be_compared_takes_the_place_of_its_point_s(
    tmp_path: Path,
) -> None:
    again, confirms = {"replicates": 0}, {"confirms": 0, "confirmation": 8}
    rows = [
        Old(0, FEW),
        Old(3, burst(1.5)),
        Old(0, FEW, attrs=again),
        Old(0, attrs=again),
        Old(0, burst(0.5), attrs=again),
        Old(0, burst(0.1), attrs=confirms),
        Old(3, burst(1.5), attrs={"confirms": 1, "confirmation": 8}),
    ]
    database = write(tmp_path, rows)
    before = rows_of(database)
    view = view_of(database)
    # a launch that confirms says something only beside what it confirms
    assert [t.outdated for t in view.trials] == [True, False, True, False, False, True, False]
    assert [w.rpartition(": ")[2] for w in view.trials[5].warnings] == [
        "trial 0, which it confirms, cannot"
    ]
    assert value(view.trials[5], "throughput") == 5.0
    assert [t.number for t in view.trials if t.baseline] == [3]
    assert (view.trials[3].replicates, view.trials[4].replicates) == (None, 3)
    assert view.trials[3].launches == 2
    assert value(view.trials[3], "throughput") == pytest.approx((RATE + 2 * RATE) / 2)
    assert view.trials[1].speedup == pytest.approx(1 / 1.5 / 1.5)
    assert [t.number for t in view.front()] == [3]
    assert view.finished == 4
    assert view.verdict is not None
    assert set(view.verdict.candidates) == {1}
    assert rows_of(database) == before
    assert sum(map(counts, recomputed(database))) == 4
    assert [attrs_of(t).quality.outdated is not None for t in recomputed(database)] == [
        t.outdated for t in view.trials
    ]


# -- a run that goes on --------------------------------------------------------------------------


@pytest.mark.double
def test_a_resumed_run_measures_outdated_points_again(tmp_path: Path) -> None:
    database = write(tmp_path, [Old(0, FEW), Old(3), Old(7, FEW)])
    before = rows_of(database)
    command = ("run", str(tmp_path / "double.yaml"), "--trials", "3")
    done = autotune(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = trials(tmp_path)
    assert [(t["params"][N], t["outdated"], t["baseline"]) for t in rows] == [  # type: ignore[index]
        (0, True, False),
        (3, False, False),
        (7, True, False),
        (0, False, True),
        (7, False, False),
    ]
    assert [t["replicates"] for t in rows] == [None] * 5
    assert rows[3]["speedup"] == 1.0
    assert rows[1]["speedup"] == pytest.approx(RATE / rows[3]["tok_s"])  # type: ignore[operator]
    assert (rows[0]["speedup"], rows[2]["speedup"]) == (None, None)
    assert not {t["trial"] for t in front(tmp_path)} & {0, 2}
    # what was there is there as it was
    now = rows_of(database)
    for table, was in before.items():
        assert now[table][: len(was)] == was, table
    assert query(tmp_path, "select count(*) from autotune_launches") == [(5,)]
    # and it is done
    again = autotune(*command, cwd=tmp_path)
    assert again.returncode == 0
    assert query(tmp_path, "select count(*) from autotune_launches") == [(5,)]
    assert query(tmp_path, UNENDED) == [(0,)]
    assert processes_of(tmp_path) == []


@pytest.mark.double
def test_what_an_old_run_found_by_outdated_trials_is_found_anew(tmp_path: Path) -> None:
    """That the search was over, and what to confirm."""
    budget = {"confirm": 3, "replicates": 0}
    database = write(tmp_path, [Old(n, FEW) for n in (0, 3, 7)], wanted=6, budget=budget)
    with opened(database) as store:
        study = store.optuna_study("double")
        study.set_user_attr("converged", [6])
        study.set_user_attr("confirmation_6", [0, 1, 0])
    refused = autotune("confirm", str(tmp_path / "double.yaml"), cwd=tmp_path)
    assert refused.returncode == 1
    assert "no trial compares" in refused.stderr
    done = autotune("run", str(tmp_path / "double.yaml"), "--trials", "6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = trials(tmp_path)[3:]
    assert [t["params"][N] for t in rows[:3]] == [0, 3, 7]  # type: ignore[index]
    assert [t["confirms"] for t in rows[:3]] == [None] * 3
    confirmed = [t["confirms"] for t in rows[3:]]
    assert len(confirmed) == 3
    assert confirmed[0] == confirmed[2] == 3  # the new baseline
    assert confirmed[1] in {4, 5}
    view = view_of(database)
    assert view.finished == 6
    assert view.verdict is not None
    assert set(view.verdict.candidates) == set(confirmed)
    more = autotune("confirm", str(tmp_path / "double.yaml"), "--launches", "4", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert [t["confirms"] in {3, 4, 5} for t in trials(tmp_path)[9:]] == [True] * 4


@pytest.mark.double
def test_a_rival_may_have_been_measured_by_an_earlier_autotune(tmp_path: Path) -> None:
    """A trial ends early by one whose requests are read, and computed, as they are today."""
    rows = [Old(0, burst(0.001, 400)), Old(0, burst(0.001, 400), attrs={"replicates": 0})]
    database = write(
        tmp_path,
        rows,
        wanted=4,
        workload__num_prompts=400,
        workload__output_len=4,
        server__env={"DOUBLE_SPEED": "2"},
        measure__precision=0.001,
        measure__dominated_error=0.2,
    )
    done = autotune("run", str(tmp_path / "double.yaml"), "--trials", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    view = view_of(database)
    assert view.trials[0].recomputed
    assert view.trials[0].requests == 800
    early = [t for t in view.trials[2:] if t.truncated]
    assert len(early) == 2
    assert all((t.requests or 400) < 400 for t in early)


# -- maps ----------------------------------------------------------------------------------------


def test_parts_of_an_old_map_are_computed_again_or_measured_again(tmp_path: Path) -> None:
    database = write(tmp_path, [])
    with opened(database) as store:
        server = load_study(str(tmp_path / "double.yaml")).spec.server
        point = store.load_maps.add_point("double", {"flags": {}}, 0, None)
        named = [("load 2 part 1", burst()), ("load 2 part 2", FEW)]
        launch = _launch(
            store,
            "the load sweep of double",
            point.id,
            {N: 0, MNBT: 2048},
            server,
            [replace(s, phase=phase) for phase, of in named for s in of],
        )
        for part, (phase, of) in enumerate(named):
            store.load_maps.add_load(
                launch,
                point.id,
                concurrency=2,
                part=part,
                phase=phase,
                stats=ServerStats(*[None] * 4, (), *[None] * 3),
                values={"throughput": 5.0},
                intervals={"throughput": (4.0, 6.0)},
                quality={"requests": len(of), "stop": "all", "steady": True},
            )
        kept = [
            (x.values, x.intervals, x.quality, x.requests) for x in store.load_maps.loads(point.id)
        ]
        [part_1] = comparable_loads(store, point.id)
        assert (part_1.part, part_1.requests) == (0, 16)
        assert part_1.values["throughput"] == pytest.approx(RATE)
        assert part_1.quality["errors"]["throughput"] == pytest.approx(ERROR)
        assert Quality.read(part_1.quality).recomputed == 1
        factor = math.exp(T7[0.95] * BATCHES_ERROR)
        assert part_1.intervals["throughput"] == pytest.approx(
            [RATE / factor, RATE * factor], rel=1e-4
        )
        again = [
            (x.values, x.intervals, x.quality, x.requests) for x in store.load_maps.loads(point.id)
        ]
        assert again == kept
