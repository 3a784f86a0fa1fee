"""What a study says of all settings: when, in which words, and where it stays silent."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import objectives
from autotune.api import Result
from autotune.output.report import build, html
from autotune.results import flatness as results_flatness
from autotune.results.budget_note import ComparedLaunch
from autotune.results.flatness import WORTH, Statement, stated, statement_of
from autotune.results.text import ranges
from autotune.results.trials import study_view
from autotune.search.alike import Alike, Classes
from autotune.storage.store import Store, opened
from autotune.study.space import ARM, MNBT, ChoiceParam, IntParam, N, Point, Pow2Param, Space
from tests.paths import ROOT
from tests.study_views import P95, THROUGHPUT

BUSY = ROOT / "studies/results/smollm2-h200-c32/autotune.db"
FAST = ROOT / "studies/results/smollm2-h200/autotune.db"
DEMO = ROOT / "studies/results/demo-cpu/autotune.db"
PLANE = Space(
    {N: IntParam(type="int", low=0, high=15), MNBT: Pow2Param(type="pow2", low=512, high=8192)}
)
BASELINE: Point = {N: 0, MNBT: 2048}
NONE = Classes(None, ())


def launches(
    cost: Callable[[Point], float],
    *,
    count: int = 14,
    noise: float = 0.01,
    of: int = 2,
    budgets: tuple[int, ...] = (512, 1024, 2048, 4096, 8192),
) -> list[ComparedLaunch]:
    rng = np.random.default_rng(2)
    points = [q for q in PLANE.points() or () if q[MNBT] in budgets]
    chosen = [BASELINE, BASELINE, {N: 15, MNBT: 2048}]
    chosen += [points[i] for i in rng.permutation(len(points))[: count - 3]]
    return [
        ComparedLaunch(q, tuple(cost(q) + rng.normal(0, noise, of)), (noise**2,) * of)
        for q in chosen
    ]


def told(own: list[ComparedLaunch], classes: Classes = NONE, of: int = 2) -> Statement:
    every = (THROUGHPUT, P95, objectives.get("p95_ttft"))[:of]
    found = stated(PLANE, own, list(PLANE.points() or ()), BASELINE, classes, every)
    assert found is not None
    return found


def test_a_flat_study_says_that_nothing_differs() -> None:
    found = told(launches(lambda _q: 0.0))
    assert set(found.differs) == {"throughput", "p95_latency"}
    assert all(0 < share < 0.12 for share in found.differs.values())
    assert (found.settings, found.measured) == (80, 13)
    own = {int(x.point[N]) for x in launches(lambda _q: 0.0)}
    assert set(found.unmeasured[N]) == set(range(16)) - own
    percent = [math.ceil(100 * x) for x in found.differs.values()]
    assert found.lines((THROUGHPUT, P95)) == [
        (
            f"No setting differs from the baseline by more than {percent[0]}% in throughput and "
            f"{percent[1]}% in p95 latency, with 95% probability."
        ),
        (
            "This is about 80 settings, of which 13 were measured, and assumes that neighbors "
            f"are similar: a jump at n = {ranges(list(found.unmeasured[N]))}, where none was "
            "measured, would not be seen."
        ),
    ]


def test_where_drafts_only_hurt_no_setting_is_better() -> None:
    found = told(launches(lambda q: 0.6 * (int(q[N]) / 15) ** 0.5))
    assert not found.differs
    assert found.better["throughput"] <= WORTH
    assert found.lines((THROUGHPUT, P95))[0].startswith("No setting is better than the baseline by")


def test_where_drafts_help_or_noise_is_large_nothing_is_said() -> None:
    helped = told(launches(lambda q: -0.6 * (int(q[N]) / 15) ** 0.5))
    assert helped.lines((THROUGHPUT, P95)) == []
    assert helped.to_json()["differs_at_most"] is None
    noisy = told(launches(lambda _q: 0.0, count=7, noise=0.3))
    assert noisy.lines((THROUGHPUT, P95)) == []


def test_where_launches_differ_by_more_a_larger_difference_is_stated() -> None:
    rng = np.random.default_rng(5)
    at = [BASELINE, BASELINE, *({N: n, MNBT: 2048} for n in (15, 3, 9, 6, 12, 1, 4, 2, 7, 10, 13))]
    found = {}
    for noise in (0.02, 0.11):
        costs = rng.normal(0, noise, (len(at), 2))
        own = [ComparedLaunch(q, tuple(y), (1e-4,) * 2) for q, y in zip(at, costs, strict=True)]
        found[noise] = told(own)
    assert max(found[0.02].differs.values()) <= WORTH
    assert WORTH < max(found[0.11].differs.values()) <= 0.5
    assert set(found[0.11].better) == set(found[0.11].differs)
    # launches that hardly differ, and a setting that does: a quarter is the most
    steady = told(launches(lambda q: 0.35 * (int(q[N]) / 15), noise=0.01))
    assert not steady.differs


def test_three_objectives_and_one() -> None:
    three = told(launches(lambda _q: 0.0, of=3), of=3)
    assert list(three.differs) == ["throughput", "p95_latency", "p95_ttft"]
    assert "% in throughput, " in three.lines((THROUGHPUT, P95, objectives.get("p95_ttft")))[0]
    one = told(launches(lambda _q: 0.0, of=1), of=1)
    assert " and " not in one.lines((THROUGHPUT,))[0]
    assert one.differs["throughput"] <= three.differs["throughput"]  # more is said with three


def test_points_that_are_one_count_once_and_say_more() -> None:
    def smallest(q: Point) -> Point:
        return {**q, MNBT: 512}

    own = launches(lambda _q: 0.0, count=9, budgets=(512,))
    alone = told(own)
    classes = told(own, Classes(Alike(MNBT, smallest, smallest), own))
    assert (classes.settings, alone.settings) == (16, 80)
    assert classes.differs["throughput"] < alone.differs["throughput"]


def test_where_every_n_was_launched_none_is_named() -> None:
    own = [ComparedLaunch({N: n, MNBT: 2048}, (0.0, 0.0), (1e-4, 1e-4)) for n in range(16)]
    found = told(own)
    assert found.unmeasured == {}
    assert "a jump between measured ones would not be seen" in found.lines((THROUGHPUT, P95))[1]


def test_choices_that_were_never_measured_are_named_too() -> None:
    choice = ChoiceParam(type="choice", choices=("auto", "fp8", "fp4"))
    space = Space({N: IntParam(type="int", low=0, high=7), "kv_cache_dtype": choice})
    own = [ComparedLaunch({N: n, "kv_cache_dtype": "auto"}, (0.0,), (1e-4,)) for n in range(6)]
    baseline, every = own[0].point, list(space.points() or ())
    found = stated(space, own, every, baseline, NONE, (THROUGHPUT,))
    assert found is not None
    assert found.unmeasured == {N: (6, 7), "kv_cache_dtype": ("fp8", "fp4")}
    at = "a jump at n = 6, 7 or kv_cache_dtype = fp8, fp4, where none was measured, would not be"
    assert at in replace(found, differs={"throughput": 0.1}).lines((THROUGHPUT,))[1]
    assert found.to_json()["never_measured"] == {N: [6, 7], "kv_cache_dtype": ["fp8", "fp4"]}


def test_shares_are_rounded_up() -> None:
    lines = Statement({"throughput": 0.0301}, {}, 8, 3).lines((THROUGHPUT,))
    assert "more than 4% in" in lines[0]
    lines = Statement({}, {"throughput": 0.001}, 8, 3).lines((THROUGHPUT,))
    assert "more than 1% in" in lines[0]


# -- of databases ---------------------------------------------------------------------------------


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Store]:
    """The study in the repository in which drafts do not pay; SQLite must not write beside it."""
    shutil.copy(BUSY, tmp_path / "autotune.db")
    with opened(tmp_path / "autotune.db") as store:
        yield store


def test_a_committed_study_says_that_nothing_is_better(busy: Store, tmp_path: Path) -> None:
    view = study_view(busy, busy.pick_study(None))
    found = statement_of(busy, view)
    assert found is not None
    assert not found.differs
    assert 0.05 < found.better["throughput"] <= WORTH
    line = found.lines(view.objectives)[0]
    assert line.startswith("No setting is better than the baseline by more than ")
    report = build(busy, view)
    assert any(line in note for note in report.answer.notes)
    assert line in html(report)
    assert Result.from_database(tmp_path / "autotune.db").all_settings() == found


@pytest.mark.parametrize("database", [FAST, DEMO])
def test_other_committed_studies_say_nothing(database: Path, tmp_path: Path) -> None:
    """In one drafts help by half, in the other they cost nearly half, and few were launched."""
    shutil.copy(database, tmp_path / "autotune.db")
    with opened(tmp_path / "autotune.db") as store:
        view = study_view(store, store.pick_study(None))
        found = statement_of(store, view)
        assert found is None or found.lines(view.objectives) == []


def test_a_study_without_a_baseline_or_with_a_zero_says_nothing(busy: Store) -> None:
    view = study_view(busy, busy.pick_study(None))
    without = [replace(t, baseline=False) for t in view.trials]
    assert statement_of(busy, replace(view, trials=without)) is None
    throttled = [replace(t, throttled=t.baseline) for t in view.trials]
    assert statement_of(busy, replace(view, trials=throttled)) is None
    zero = [replace(view.trials[0], values={"throughput": 0.0}), *view.trials]
    assert statement_of(busy, replace(view, trials=zero)) is None


def test_best_prints_it_and_has_it_as_json(busy: Store, tmp_path: Path) -> None:
    from tests.studies import autotune

    words = " ".join(autotune("best", cwd=tmp_path).stdout.split())
    assert "No setting is better than the baseline by more than" in words
    rows = json.loads(autotune("best", "--json", cwd=tmp_path).stdout)
    every = rows[0]["all_settings"]
    assert every["differs_at_most"] is None
    assert every["better_at_most"]["throughput"] <= WORTH
    assert (every["probability"], every["settings"]) == (0.95, 64)


def test_a_setting_that_only_failed_is_not_spoken_of(busy: Store) -> None:
    view = study_view(busy, busy.pick_study(None))
    every = statement_of(busy, view)
    measured = {t.point[N] for t in view.trials if t.values}
    other = next(n for n in range(16) if n not in measured)
    point = {**view.trials[0].point, N: other}
    crash = replace(view.trials[0], point=point, state="failed", values=None, baseline=False)
    found = statement_of(busy, replace(view, trials=[*view.trials, crash]))
    assert every is not None
    assert found is not None
    assert found.settings == every.settings - 1
    again = replace(crash, state="complete", values=view.trials[0].values)
    with_numbers = statement_of(busy, replace(view, trials=[*view.trials, crash, again]))
    assert with_numbers is not None
    assert with_numbers.settings == every.settings


def test_a_large_space_says_nothing(busy: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    view = study_view(busy, busy.pick_study(None))
    monkeypatch.setattr(results_flatness, "_MOST_SIZE", 10)
    assert statement_of(busy, view) is None


def test_arms_without_launches_are_not_said_to_be_alike() -> None:
    space = Space({ARM: ChoiceParam(type="choice", choices=("a", "b")), **PLANE.params})
    own = [
        replaced._replace(point={ARM: "a", **replaced.point})
        for replaced in launches(lambda _q: 0.0)
    ]
    points = list(space.points() or ())
    found = stated(space, own, points, {ARM: "a", **BASELINE}, NONE, (THROUGHPUT, P95))
    alone = told(launches(lambda _q: 0.0))
    assert found is not None
    assert min(found.differs.values(), default=1.0) > min(alone.differs.values())
