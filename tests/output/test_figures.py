"""The Pareto figure: what it says, in which direction, and that nothing in it runs."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.output.figures.browser import find_chromium, write_html, write_png
from autotune.output.figures.pareto import pareto_figure
from tests.studies import PATIENCE_S
from tests.study_views import P95, ROWS, THROUGHPUT, study, trial

needs_chromium = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine"),
]


def traces(figure: Any) -> dict[str, Any]:
    return {t.name: t for t in figure.data}


def labels(figure: Any) -> list[str]:
    return [a.text for a in figure.layout.annotations]


def test_axes_say_unit_and_which_way_is_better() -> None:
    layout = pareto_figure(study()).layout
    assert layout.xaxis.title.text == "Throughput (tok/s)  →  better"
    assert layout.yaxis.title.text == "better  ←  p95 latency (ms)"


def test_every_group_of_trials_is_shown_once() -> None:
    by_name = traces(pareto_figure(study()))
    assert list(by_name["Pareto front"].x) == [110.2, 106.6, 100.1]
    assert list(by_name["dominated"].y) == [2600]
    assert list(by_name["baseline"].x) == [98.1]
    assert by_name["baseline"].marker.symbol != by_name["Pareto front"].marker.symbol
    assert list(by_name["failed"].y) == ["budget"]
    assert by_name["failed"].yaxis == "y2"


@pytest.mark.parametrize(
    ("first", "second", "shape"),
    [
        ("maximize", "minimize", "vh"),
        ("maximize", "maximize", "vh"),
        ("minimize", "minimize", "hv"),
        ("minimize", "maximize", "hv"),
    ],
)
def test_the_staircase_never_promises_what_no_trial_gave(
    first: str, second: str, shape: str
) -> None:
    objectives = (replace(THROUGHPUT, direction=first), replace(P95, direction=second))
    line = traces(pareto_figure(study(objectives=objectives)))["front line"]
    assert line.line.shape == shape
    points = list(zip(line.x, line.y, strict=True))
    assert points == sorted(points)
    # the corner that the shape draws between two points is no better than one of them
    sign = (1 if first == "maximize" else -1, 1 if second == "maximize" else -1)
    points = [(1, 4), (2, 3)] if sign[0] == sign[1] else [(1, 3), (2, 4)]
    (ax, ay), (bx, by) = points
    corner = (ax, by) if shape == "vh" else (bx, ay)
    assert any(all(s * c <= s * v for s, c, v in zip(sign, corner, p, strict=True)) for p in points)


def test_the_front_is_labelled_without_overlap() -> None:
    figure = pareto_figure(study())
    assert {"n = 3, MNBT 512", "n = 2, MNBT 1024", "baseline, n = 0, MNBT 2048"} <= set(
        labels(figure)
    )


def test_crowded_labels_are_left_out_rather_than_laid_over_each_other() -> None:
    rows = tuple((1, 512, 100 + i / 1000, 2000 + i / 1000, 1.5, True) for i in range(60))
    shown = [t for t in labels(pareto_figure(study(rows))) if "MNBT" in t]
    assert 1 <= len(shown) < 60


def test_hover_has_parameters_objectives_acceptance_and_speed_up() -> None:
    hover = traces(pareto_figure(study(extra={"max_num_seqs": 4})))["Pareto front"].hovertext[0]
    for part in (
        "trial 1",
        "num_speculative_tokens = 3",
        "max_num_batched_tokens = 512",
        "max_num_seqs = 4",
        "Throughput: 110.2 tok/s",
        "p95 latency: 2361 ms",
        "1.12×",
        "1.88 tokens a step",
        "0.60 0.30",
    ):
        assert part in hover


def test_hover_of_a_failed_trial_says_why() -> None:
    assert "budget: MNBT is too small" in traces(pareto_figure(study()))["failed"].hovertext[0]


def test_intervals_become_error_bars() -> None:
    known = replace(trial(0, ROWS[1]), intervals={"throughput": (105.0, 114.0)}, baseline=False)
    unknown = replace(trial(1, ROWS[2]))
    front = traces(pareto_figure(study(trials=[known, unknown])))["Pareto front"]
    assert front.error_x.array == pytest.approx((3.8, 0))
    assert front.error_x.arrayminus == pytest.approx((5.2, 0))
    assert front.error_y.array is None
    assert "[105.0, 114.0]" in front.hovertext[0]


def test_confirmed_points_are_tied_to_the_searched_ones() -> None:
    t = replace(trial(1, ROWS[1]), confirmed={"throughput": 107.0, "p95_latency": 2400.0})
    by_name = traces(pareto_figure(study(trials=[trial(0, ROWS[0]), t])))
    assert list(by_name["confirmed"].x) == [107.0]
    assert by_name["search to confirmation"].x == (110.2, 107.0, None)


def test_one_objective_stands_over_the_trial_number() -> None:
    figure = pareto_figure(study(objectives=(P95,)))
    assert figure.layout.xaxis.title.text == "trial"
    assert "front line" not in traces(figure)
    assert list(traces(figure)["dominated"].x) == [3]


def test_three_objectives_have_the_third_as_colour() -> None:
    third = replace(P95, name="p95_ttft", title="p95 TTFT")
    trials = [
        replace(t, values={**t.values, "p95_ttft": 100.0 + t.number}) if t.values else t
        for t in study().trials
    ]
    figure = pareto_figure(study(trials=trials, objectives=(THROUGHPUT, P95, third)))
    assert list(traces(figure)["Pareto front"].marker.color) == [101.0, 102.0, 105.0]
    assert "p95 TTFT (ms)" in figure.layout.coloraxis.colorbar.title.text


@pytest.mark.parametrize("rows", [(), ROWS[4:5], ROWS[:1]], ids=["none", "failed", "baseline"])
def test_few_trials_make_a_figure(rows: Any) -> None:
    figure = pareto_figure(study(rows))
    assert ("no trial has finished yet" in labels(figure)) == (not rows)


def test_a_number_that_is_none_is_not_drawn() -> None:
    odd = replace(trial(0, ROWS[0]), values={"throughput": float("nan"), "p95_latency": 1.0})
    assert "no trial has finished yet" in labels(pareto_figure(study(trials=[odd])))


def test_texts_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    view = study(name=evil, machine=evil, extra={evil: evil})
    failed = replace(
        trial(9, ROWS[4]), failure_reason=f"{evil} \x1b[31mred\x1b[0m", failure_kind=evil
    )
    view = replace(view, trials=[*view.trials, failed])
    figure = pareto_figure(view)
    texts = re.findall(r'"(?:text|hovertext|title)[^}]*', figure.to_json())
    assert texts
    assert not any("<script" in t or "\\u001b" in t for t in texts)
    write_html(figure, tmp_path / "x.html", view.name)
    assert evil not in (tmp_path / "x.html").read_text()


def test_html_needs_no_network(tmp_path: Path) -> None:
    write_html(pareto_figure(study()), tmp_path / "x.html", "demo-cpu")
    page = (tmp_path / "x.html").read_text()
    assert "<title>demo-cpu</title>" in page
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page)
    assert len(page) < 5_300_000


def test_no_chromium_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "missing"))
    assert write_png(pareto_figure(study()), tmp_path / "x.png") is False
    assert not (tmp_path / "x.png").exists()


def test_a_chromium_that_hangs_is_given_up_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pid = tmp_path / "pid"
    hung = tmp_path / "chromium"
    hung.write_text(f"#!/bin/sh\necho $$ > {pid}\nexec sleep 600\n")
    hung.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(hung))
    assert write_png(pareto_figure(study()), tmp_path / "x.png", timeout_s=6) is False
    assert "no answer within 6 s" in caplog.text
    assert_gone(int(pid.read_text()))


def assert_gone(pid: int) -> None:
    """Dead, or only waiting for init to collect it."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is alive")


class TestBrowser:
    pytestmark = needs_chromium

    def test_png_is_drawn_and_leaves_no_process(self, tmp_path: Path) -> None:
        before = {p.pid for p in psutil.process_iter()}
        assert write_png(pareto_figure(study()), tmp_path / "x.png") is True
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
        left = [
            p
            for p in psutil.process_iter(["name", "status"])
            if p.pid not in before
            and "chrom" in (p.info["name"] or "")
            and p.info["status"] != psutil.STATUS_ZOMBIE
            and "kaleido" in " ".join(p.cmdline())
        ]
        assert left == []

    def test_the_page_draws_itself_and_runs_nothing_of_ours(self, tmp_path: Path) -> None:
        page = tmp_path / "x.html"
        view = study(name="<img src=x onerror=\"document.title='owned'\">")
        write_html(pareto_figure(view), page, view.name)
        dom = subprocess.run(
            [
                find_chromium() or sys.exit("no Chromium"),
                *("--headless=new", "--no-sandbox", "--disable-gpu"),
                *("--virtual-time-budget=8000", "--dump-dom"),
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=True,
        ).stdout
        assert "n = 3, MNBT 512" in dom
        assert "<title>owned</title>" not in dom
