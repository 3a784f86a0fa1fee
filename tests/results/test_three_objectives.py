"""A study with three objectives, and one with a single one, from the search to what people see."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import plotly.graph_objects as go
import pytest

import objectives
from autotune.output.figures.browser import find_chromium, write_html
from autotune.output.figures.pareto3d import front_figure, lines_figure, space_figure
from autotune.results.standing import Standing
from autotune.results.views import StudyView
from autotune.search.confirmation import Launches, plan
from autotune.search.confirmation_verdict import verdict
from autotune.search.front import Direction, front_numbers
from autotune.search.gain import Belief, gains, reference_point
from tests import study_views
from tests.studies import autotune, front, trials, write_study

WAYS: tuple[Direction, Direction, Direction] = ("maximize", "minimize", "maximize")
GOODPUT = {"name": "goodput", "slo": {"e2el_ms": 500}}


@pytest.mark.double
def test_a_whole_run_with_three_objectives(tmp_path: Path) -> None:
    study = write_study(
        tmp_path,
        objectives=["throughput", "p95_latency", GOODPUT],
        budget={"replicates": 1, "confirm": 8},
    )
    run = autotune("run", str(study), "--trials", "14", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    rows = trials(tmp_path)
    names = ["throughput", "p95_latency", "goodput"]
    assert all(list(t["objectives"]) == names for t in rows)  # type: ignore[call-overload]
    points = {
        t["trial"]: [t["objectives"][n]["value"] for n in names]  # type: ignore[index]
        for t in rows
        if t["replicates"] is None and t["confirms"] is None
    }
    on_front = {t["trial"] for t in front(tmp_path)}
    assert on_front == front_numbers(points, WAYS)  # type: ignore[arg-type]
    again = [t["confirms"] for t in rows if t["confirms"] is not None]
    assert again
    assert again == again[::-1]  # there and back
    for name in names:
        shell = autotune("best", "--shell", "--objective", name, cwd=tmp_path)
        assert shell.returncode == 0, shell.stderr
    words = autotune("best", cwd=tmp_path).stdout
    assert "best by goodput (E2EL ≤ 500 ms)" in words
    assert "best by all, equally weighted" in words
    assert "(E2EL ≤" in autotune("status", cwd=tmp_path).stdout  # over two lines
    html = (tmp_path / "autotune-double" / "pareto.html").read_text()
    assert all(kind in html for kind in ('"type":"scatter3d"', '"type":"parcoords"'))


@pytest.mark.double
def test_a_whole_run_with_one_objective(tmp_path: Path) -> None:
    study = write_study(tmp_path, objectives=["p99_latency"])
    run = autotune("run", str(study), "--trials", "12", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    best = front(tmp_path)
    assert len(best) == 1
    values = [
        t["objectives"]["p99_latency"]["value"]  # type: ignore[index]
        for t in trials(tmp_path)
        if t["replicates"] is None and t["confirms"] is None
    ]
    assert best[0]["objectives"]["p99_latency"]["value"] == min(values)  # type: ignore[index]
    assert "Best trial and baseline" in autotune("best", cwd=tmp_path).stdout
    assert autotune("pareto", cwd=tmp_path).returncode == 0


@pytest.mark.double
def test_a_run_in_which_no_request_is_ever_good(tmp_path: Path) -> None:
    never = {"name": "goodput", "slo": {"ttft_ms": 1e-6}}
    study = write_study(
        tmp_path,
        objectives=["throughput", never],
        budget={"confirm": 2, "replicates": 0},
        workload__num_prompts=12,
        measure__min_prompts=4,
    )
    run = autotune("run", str(study), "--trials", "6", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    rows = trials(tmp_path)
    assert {t["state"] for t in rows} == {"complete"}
    assert {t["objectives"]["goodput"]["value"] for t in rows} == {0}  # type: ignore[index]
    assert {t["requests"] for t in rows} == {12}  # never known precisely
    assert all(t["confirms"] is None for t in rows)
    best = front(tmp_path)
    assert best[0]["tok_s"] == max(t["tok_s"] for t in rows)  # type: ignore[type-var]
    assert "0.000 req/s" in autotune("status", "--trial", "0", cwd=tmp_path).stdout


def test_the_best_by_each_of_three_is_launched_again() -> None:
    searched: Launches = {
        0: [(100, 1000, 5.0)],
        1: [(150, 1400, 4.0)],
        2: [(105, 800, 6.0)],
        3: [(101, 1100, 9.0)],
        4: [(90, 1500, 3.0)],
    }
    assert plan(searched, WAYS, 0, 8) == [0, 1, 2, 3, 3, 2, 1, 0]
    assert plan(searched, WAYS, 0, 4) == [0, 1, 1, 0]
    confirmed = {k: [np.array(x[0]) * f for f in (0.99, 1.01)] for k, x in searched.items()}
    found = verdict(confirmed, searched, WAYS, 0)  # type: ignore[arg-type]
    assert found is not None
    assert [w.number for w in found.winners] == [1, 2, 3]
    assert found.balanced.number == 3  # 101 · 9 / 1100 is the largest
    assert found.balanced.over_baseline is not None
    assert [e.value for e in found.balanced.over_baseline] == pytest.approx([1.01, 1.1, 1.8])


def test_what_a_launch_is_worth_counts_the_third_objective() -> None:
    """Two equal candidates but for the third objective, where one may be better."""

    def belief(mean: list[float], sd: list[float]) -> Belief:
        covariance = np.diag(np.array(sd) ** 2)
        return Belief(np.array(mean), np.diag(covariance), covariance[:2], 1e-4)

    same = belief([0.0, 0.4, 0.3, 0.3], [0.01] * 4)
    third = belief([0.0, 0.4, 0.3, 0.3], [0.01, 0.01, 0.01, 0.4])
    three = [same, same, third]
    worth = gains(three, reference_point(np.stack([b.mean[:2] for b in three], axis=-1)))
    assert worth.argmax() == 3
    assert worth[2] < worth[3] / 10
    two = gains(three[:2], np.ones(2))
    assert two[2] == pytest.approx(two[3])


def view() -> StudyView:
    """The usual study with a third objective, confirmed at one point, failed at another."""
    goodput = objectives.get("goodput").given({"ttft_ms": 200.0, "tpot_ms": 20.0})
    three = (study_views.THROUGHPUT, study_views.P95, goodput)
    found = study_views.study(objectives=three)
    made = []
    for t in found.trials:
        values = t.values and {**t.values, "goodput": 0.5 + 0.1 * t.number}
        bounds = {k: (v * 0.95, None) for k, v in (values or {}).items()}
        made.append(replace(t, values=values, intervals=bounds or None))
    made[1] = replace(made[1], confirmed=made[1].values, confirmed_launches=2)
    return replace(found, trials=made)


def test_three_objectives_are_drawn_in_space_and_as_lines() -> None:
    fig = front_figure(view())
    named = {trace.name: trace for trace in fig.data}
    assert set(named) >= {"Pareto front", "baseline", "dominated", "confirmed", "trials", "stems"}
    assert list(named["baseline"].z) == [0.5]
    assert named["Pareto front"].error_z.arrayminus == pytest.approx((0.03, 0.035, 0.05), abs=0.006)
    assert "Goodput" in named["Pareto front"].hovertext[0]
    assert "TTFT ≤ 200 ms, TPOT ≤ 20 ms" in named["Pareto front"].hovertext[0]
    lines = named["trials"]
    assert isinstance(lines, go.Parcoords)
    assert [d.label for d in lines.dimensions[-2:]] == ["n", "MNBT"]
    rate, p95, good, *_ = lines.dimensions
    assert all(len(d.values) == 5 for d in lines.dimensions)  # the failed one has no numbers
    assert rate.range[0] < rate.range[1]  # better is up …
    assert p95.range[0] > p95.range[1]  # … also where less is better
    assert good.range[0] < good.range[1]
    assert list(lines.line.color) == sorted(lines.line.color)  # the front above the others
    assert "1 failed" in fig.layout.title.text


def test_each_of_both_pictures_stands_alone() -> None:
    space, lines = space_figure(view(), 500), lines_figure(view(), 400)
    assert {trace.type for trace in space.data} == {"scatter3d"}
    assert not space.layout.annotations
    assert tuple(space.layout.scene.domain.y) == (0, 1)
    assert [trace.type for trace in lines.data] == ["parcoords"]
    assert "up is better" in lines.layout.annotations[0].text
    assert (space.layout.height, lines.layout.height) == (500, 400)
    both = front_figure(view())
    assert [t.name for t in both.data] == [t.name for t in (*space.data, *lines.data)]
    assert both.data[-1].domain.y[1] < both.layout.scene.domain.y[0]


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")
def test_a_browser_draws_both_pictures_without_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pareto.html"
    write_html(front_figure(view()), path, "x")
    seen = subprocess.run(
        [
            find_chromium() or "",
            *("--headless=new", "--no-sandbox", "--enable-unsafe-swiftshader"),
            *("--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom"),
            f"--user-data-dir={tmp_path / 'profile'}",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert '<div id="scene"' in seen.stdout
    titles = re.findall(r'class="axis-title"[^>]*data-unformatted="([^"]*)"', seen.stdout)
    assert titles[0] == "Throughput (tok/s)"
    assert titles[-2:] == ["n", "MNBT"]
    assert "ERROR:CONSOLE" not in seen.stderr
    assert "Uncaught" not in seen.stderr


def test_a_study_without_numbers_yet_is_drawn() -> None:
    nothing = replace(view(), trials=[t for t in view().trials if t.values is None])
    assert len(front_figure(nothing).data) == 0


def test_texts_of_a_study_are_escaped(tmp_path: Path) -> None:
    evil = view()
    bad = replace(evil.objectives[0], title="<img src=x onerror=alert(1)>")
    evil = replace(evil, objectives=(bad, *evil.objectives[1:]), name="<script>")
    path = tmp_path / "p.html"
    write_html(front_figure(evil), path, evil.name)
    shown = json.dumps(front_figure(evil).to_plotly_json(), default=list)
    assert "<img" not in shown
    assert "<script>" not in shown
    assert "<script>" not in path.read_text().partition("<title>")[2].partition("</title>")[0]


def test_the_goodput_of_a_point_that_meets_nothing_is_no_candidate() -> None:
    two = (study_views.THROUGHPUT, objectives.get("goodput").given({"e2el_ms": 1.0}))
    study = optuna.create_study(directions=["maximize", "maximize"])
    for i, values in enumerate([(100.0, 0.0), (110.0, 1.0), (90.0, 2.0)]):
        study.add_trial(
            optuna.trial.create_trial(values=values, user_attrs={"baseline": True} if not i else {})
        )
    standing = Standing(two)
    standing.update(study.get_trials(deepcopy=False))
    found = standing.launched()
    assert found.baseline is None  # trial 0 met nothing: there is no ratio to it
    assert set(found.searched) == {1, 2}
    assert standing.front() == {1, 2}
    assert standing.means(0) == [100.0, 0.0]
    assert set(plan(found.searched, ("maximize", "maximize"), found.baseline, 4)) == {1, 2}
