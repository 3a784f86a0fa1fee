"""optuna-dashboard on our database: empty, with a study, in a browser."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import optuna
import optuna_dashboard
import pytest

import objectives
from autotune.errors import UserError
from autotune.output.dashboard import publish, serve
from autotune.output.figures.browser import find_chromium
from autotune.output.report import build
from autotune.output.report.content import Answer, Figure, Report
from autotune.results.trials import study_view
from autotune.results.views import StudyView
from autotune.stats import ESTIMATOR
from autotune.storage.schema import StudyRow
from autotune.storage.store import Store, opened
from tests.output import test_report
from tests.output.test_report import CONFIRMED, EVIL, STORED, Row
from tests.studies import PATIENCE_S
from tests.study_views import P95, THROUGHPUT, study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


# A report without figures
NOTHING = Report("x", (), Answer("x", "x", certain=False), (), "x")


def make(path: Path, *views: StudyView) -> None:
    """A database with these studies, as a run leaves them."""
    store = Store(path, create=True)
    for view in views:
        with store._sessions() as s:
            s.add(
                StudyRow(
                    name=view.name,
                    path="x.yaml",
                    yaml="",
                    fingerprint="x",
                    seed=0,
                    wanted=view.wanted,
                    created_at=time.time(),
                    autotune_version="0",
                )
            )
            s.commit()
        optuna_study(store, view)
        publish(store, view, NOTHING)
    store.close()


def optuna_study(store: Store, view: StudyView) -> optuna.Study:
    made = optuna.create_study(
        storage=store.storage,
        study_name=view.name,
        directions=[o.direction for o in view.objectives],
    )
    made.set_metric_names([f"{o.title} ({o.unit})" for o in view.objectives])
    n = optuna.distributions.IntDistribution(0, 15)
    for t in view.trials:
        made.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE
                if t.values
                else optuna.trial.TrialState.FAIL,
                params={"num_speculative_tokens": t.point["num_speculative_tokens"]},
                distributions={"num_speculative_tokens": n},
                values=[t.values[o.name] for o in view.objectives] if t.values else None,
            )
        )
    return made


def visit(
    database: Path, name: str | None = None, look: Callable[[str], None] = lambda url: None
) -> str:
    """Serves, looks at it from a thread, then presses Ctrl-C; gives the line that was said."""
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        looks: list[Future[None]] = []

        def ready(line: str) -> None:
            said.append(line)
            looks.append(pool.submit(look, url_of(line)))
            looks[0].add_done_callback(lambda _: os.kill(os.getpid(), signal.SIGINT))

        serve(database, name, 0, False, ready)
    looks[0].result()
    return said[0]


def url_of(line: str) -> str:
    return next(word for word in line.split() if word.startswith("http://"))


def get(url: str, path: str) -> Any:
    answer = httpx.get(httpx.URL(url).join(path), timeout=PATIENCE_S)
    assert answer.status_code == 200
    return answer.json()


def test_a_study_is_shown_with_figure_units_and_notes(tmp_path: Path) -> None:
    make(tmp_path / "a.db", study())

    def look(url: str) -> None:
        assert url.startswith("http://127.0.0.1:")
        assert url.endswith("/dashboard/studies/1")
        assert httpx.get(url, timeout=PATIENCE_S).status_code == 200
        shown = get(url, "/api/studies/1")
        assert shown["objective_names"] == ["Throughput (tok/s)", "p95 latency (ms)"]
        figures = {f["id"]: json.loads(f["graph_object"]) for f in shown["plotly_graph_objects"]}
        assert figures["pareto-front"]["layout"]["height"] <= 450  # the dashboard's card
        assert "| 1 | n = 3, MNBT 512 | 110.2 | 2361 | 1.88 | 1.12 |" in shown["note"]["body"]
        failed = shown["trials"][4]
        assert failed["note"]["body"].startswith("# Failed: budget")
        assert "MNBT is too small" in failed["note"]["body"]

    assert visit(tmp_path / "a.db", look=look).startswith("dashboard (demo-cpu): http")


def test_three_objectives_are_shown_in_space(tmp_path: Path) -> None:
    three = study(objectives=(THROUGHPUT, P95, objectives.get("p95_ttft")))
    trials = [replace(t, values=t.values and {**t.values, "p95_ttft": 9.0}) for t in three.trials]
    make(tmp_path / "a.db", replace(three, trials=trials))

    def look(url: str) -> None:
        [shown] = get(url, "/api/studies/1")["plotly_graph_objects"]
        figure = json.loads(shown["graph_object"])
        assert {trace["type"] for trace in figure["data"]} == {"scatter3d"}
        assert not figure["layout"].get("annotations")
        assert figure["layout"]["height"] <= 450

    visit(tmp_path / "a.db", look=look)


@pytest.mark.parametrize("touch", [True, False], ids=["zero bytes", "tables without a study"])
def test_an_empty_database_is_shown_and_said(tmp_path: Path, touch: bool) -> None:
    database = tmp_path / "a.db"
    if touch:
        database.touch()
    else:
        make(database)

    def look(url: str) -> None:
        assert get(url, "/api/studies") == {"study_summaries": []}

    assert "holds no study yet" in visit(database, look=look)


def test_several_studies_open_the_list_or_the_named_one(tmp_path: Path) -> None:
    make(tmp_path / "a.db", study(), study(name="other"))
    assert url_of(visit(tmp_path / "a.db")).endswith("/dashboard")
    assert url_of(visit(tmp_path / "a.db", "other")).endswith("/dashboard/studies/2")


def refuse(line: str) -> None:
    raise AssertionError(line)


def test_what_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such database"):
        serve(tmp_path / "missing.db", None, 0, False, refuse)
    assert not (tmp_path / "missing.db").exists()
    make(tmp_path / "a.db", study())
    with pytest.raises(UserError, match="has no study other"):
        serve(tmp_path / "a.db", "other", 0, False, refuse)
    (tmp_path / "text.db").write_text("this is no database, but some other text of a user\n" * 9)
    with pytest.raises(UserError, match=r"text\.db"):
        serve(tmp_path / "text.db", None, 0, False, refuse)


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    make(tmp_path / "a.db")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is taken"):
            serve(tmp_path / "a.db", None, port, False, refuse)


def test_artifacts_beside_the_database_are_shown(tmp_path: Path) -> None:
    make(tmp_path / "a.db", study())
    (tmp_path / "artifacts").mkdir()

    def look(url: str) -> None:
        assert get(url, "/api/meta")["artifact_is_available"] is True

    visit(tmp_path / "a.db", look=look)


def test_publishing_again_keeps_what_a_user_wrote_to_a_trial(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db", create=True)
    view = study()
    made = optuna_study(store, view)
    publish(store, view, NOTHING)
    study_id = store.storage.get_study_id_from_name(view.name)
    version = store.storage.get_study_system_attrs(study_id)["dashboard:note_ver"]
    trial = optuna.Trial(made, store.trial_id(view.name, 4))
    optuna_dashboard.save_note(trial, "mine")
    publish(store, view, NOTHING)
    assert optuna_dashboard.get_note(trial) == "mine"
    attrs = store.storage.get_study_system_attrs(study_id)
    assert attrs["dashboard:note_ver"] == version  # nothing new, nothing written
    assert optuna_dashboard.get_note(made).startswith("# demo-cpu")
    store.close()


def test_a_log_cannot_leave_its_fence(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db", create=True)
    view = study()
    trials = list(view.trials)
    trials[4] = replace(trials[4], failure_evidence=("````", "# <script>", "\x1b[31mred\x1b[0m"))
    made = optuna_study(store, view)
    publish(store, replace(view, trials=trials), NOTHING)
    body = optuna_dashboard.get_note(optuna.Trial(made, store.trial_id(view.name, 4)))
    assert body.splitlines()[4:] == [
        "`````text",
        "MNBT is too small",
        "````",
        "# <script>",
        "red",
        "`````",
    ]
    store.close()


def dom_of(url: str) -> str:
    """What a browser made of a page, a while after it was loaded."""
    return subprocess.run(
        [
            find_chromium() or "",
            *("--headless=new", "--no-sandbox", "--disable-gpu"),
            *("--virtual-time-budget=15000", "--dump-dom"),
            url,
        ],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=True,
    ).stdout


def stored(folder: Path, name: str = "demo-cpu") -> Path:
    """A study in the repository, copied, since the dashboard writes into it."""
    return Path(shutil.copy(STORED.parents[1] / name / "autotune.db", folder / "autotune.db"))


def figures_of(url: str) -> dict[str, Any]:
    objects = get(url, "/api/studies/1")["plotly_graph_objects"]
    return {f["id"]: json.loads(f["graph_object"]) for f in objects}


def test_opening_it_shows_the_figures_of_the_report(tmp_path: Path) -> None:
    database = stored(tmp_path)

    def look(url: str) -> None:
        figures = figures_of(url)
        wanted = {"by-n", "grid-0", "grid-1", "acceptance", "prediction", "latency"}
        assert set(figures) == {"pareto-front"} | wanted
        assert all(f["layout"]["height"] <= 450 for f in figures.values())
        titles = {k: f["layout"]["title"]["text"] for k, f in figures.items()}
        assert titles["by-n"] == "<b>By number of drafted tokens</b>"
        assert "demo-cpu" in titles["pareto-front"]
        assert [t["name"] for t in figures["latency"]["data"]][:2] == [
            "winner: n = 0, MNBT 2048",
            "runner-up: n = 1, MNBT 2048",
        ]

    visit(database, look=look)
    with opened(database) as store:
        saved = store.storage.get_study_system_attrs(1)
    with contextlib.closing(sqlite3.connect(database)) as c:
        before = list(c.iterdump())
    visit(database, look=look)
    with contextlib.closing(sqlite3.connect(database)) as c:
        assert list(c.iterdump()) == before  # nothing new, nothing written
    size = sum(len(v) for k, v in saved.items() if k.startswith("dashboard:plot_data:"))
    assert size < 100_000


@pytest.mark.parametrize("name", ["demo-cpu", "smollm2-h200"])
def test_the_figures_stand_in_the_report_s_order(tmp_path: Path, name: str) -> None:
    database = stored(tmp_path, name)
    with opened(database) as store:
        report = build(store, study_view(store, name))
    names = [b.name for s in report.sections for b in s.blocks if isinstance(b, Figure)]

    def look(url: str) -> None:
        assert list(figures_of(url)) == ["pareto-front", *(n for n in names if n != "front")]

    visit(database, name, look)


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of ``#rrggbb``."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_the_figures_are_read_on_a_light_and_on_a_dark_page(tmp_path: Path) -> None:
    def look(url: str) -> None:
        for figure in figures_of(url).values():
            layout = figure["layout"]
            drawn = layout["template"]["layout"]
            for place in ("paper_bgcolor", "plot_bgcolor"):
                assert drawn[place] == "rgba(0, 0, 0, 0)"
                assert place not in layout
            texts = [drawn["font"]["color"]]
            texts += [a["font"]["color"] for a in layout.get("annotations", ()) if "font" in a]
            for page in ("#FFFFFF", "#1E1E1E"):  # of optuna-dashboard's cards
                # no colour has 4.1 to both
                assert min(contrast(text, page) for text in texts) > 3.7
            hover = layout["hoverlabel"]
            assert contrast(hover["font"]["color"], hover["bgcolor"]) > 7  # over any plot

    visit(stored(tmp_path), look=look)


def test_the_figures_follow_the_study(tmp_path: Path) -> None:
    database = test_report.make(tmp_path, CONFIRMED[:2])
    shown: list[dict[str, Any]] = []
    visit(database, look=lambda url: shown.append(figures_of(url)))
    with opened(database) as store:
        first, study = CONFIRMED[2], store.optuna_study("double")
        again = study.get_trials()[1]
        again.params["num_speculative_tokens"], again.values = first.n, [first.rate or 0, first.p95]
        study.add_trial(again)
    visit(database, look=lambda url: shown.append(figures_of(url)))
    before, after = shown
    assert before.keys() <= after.keys()
    assert before["by-n"] != after["by-n"]


def test_many_trials_stay_small(tmp_path: Path) -> None:
    rows = [Row(i % 16, 32 << i % 7, 80 + 3.0 * (i % 16), 2000 + 10 * (i % 5)) for i in range(60)]
    with opened(test_report.make(tmp_path, rows, split=True)) as store:
        view = study_view(store, "double")
        publish(store, view, build(store, view))
        study_id = store.storage.get_study_id_from_name("double")
        saved = store.storage.get_study_system_attrs(study_id)
    plots = {k: len(v) for k, v in saved.items() if k.startswith("dashboard:plot_data:")}
    assert {k.split(":")[2] for k in plots} >= {"importance", "time", "by-n"}
    assert sum(plots.values()) < 5_000 * len(rows)  # a launch with its requests takes more


def test_a_card_of_importance_is_replaced_once_nothing_is_seen_to_matter(tmp_path: Path) -> None:
    rows = [Row(i % 16, 32 << i % 7, 80 + 3.0 * (i % 16), 2000 + 10 * (i % 5)) for i in range(24)]
    flat = [replace(r, rate=100.0 + (7 * i) % 5, p95=2000.0) for i, r in enumerate(rows)]
    (tmp_path / "flat").mkdir()
    with (
        opened(test_report.make(tmp_path, rows)) as store,
        opened(test_report.make(tmp_path / "flat", flat)) as other,
    ):
        view, nothing = study_view(store, "double"), study_view(other, "double")
        study_id = store.storage.get_study_id_from_name("double")
        publish(store, view, build(store, view))
        publish(store, view, build(other, nothing))
        saved = store.storage.get_study_system_attrs(study_id)
        note = optuna_dashboard.get_note(store.optuna_study("double"))
    card = "".join(v for k, v in sorted(saved.items()) if ":importance:" in k)
    assert "No parameter is seen to matter" in card
    assert '"bar"' not in card
    assert "## Which parameter matters\n\nNo parameter is seen to matter by 24 points." in note
    assert note.count("\n\noptuna-dashboard's own plot of importances") == 1


def test_three_objectives_have_their_lines_too(tmp_path: Path) -> None:
    names = ["throughput", "p95_latency", "p95_ttft"]
    database = test_report.make(tmp_path, CONFIRMED, objectives=names)

    def look(url: str) -> None:
        figures = figures_of(url)
        assert {t["type"] for t in figures["pareto-front"]["data"]} == {"scatter3d"}
        assert [t["type"] for t in figures["lines"]["data"]] == ["parcoords"]

    visit(database, look=look)


def attributes(of: Any) -> dict[str, str]:
    return {a["key"]: a["value"] for a in of["user_attrs"]}


def test_what_is_known_of_a_trial_has_readable_names_and_units(tmp_path: Path) -> None:
    database = stored(tmp_path)
    with opened(database) as store:
        trials = store.optuna_study("demo-cpu").get_trials(deepcopy=False)
    machine = {key for t in trials for key in t.user_attrs}
    assert "acceptance_length" in machine

    def look(url: str) -> None:
        shown = get(url, "/api/studies/1")
        assert attributes(shown) == {
            "trials launched again, in this order (--trials 12)": "[0, 7, 7, 0]"
        }
        told = {t["number"]: attributes(t) for t in shown["trials"]}
        assert told[0]["remarks"] == "baseline, front"
        assert told[0]["speed-up (×)"] == "1.0"
        assert float(told[0]["launch to healthy (s)"]) > 0
        assert "acceptance length (tokens/step)" not in told[0]  # it drafts nothing
        length = trials[1].user_attrs["acceptance_length"]
        assert told[1]["acceptance length (tokens/step)"] == f"{length:.4g}"
        assert told[1]["accepted by position"].count("%") == 3
        assert told[1]["p95 latency (ms), 95% interval"].startswith("[")
        assert float(told[7]["Throughput (tok/s), confirmed"]) > 0
        assert told[8]["remarks"] == "confirms #0"
        every = {a["key"]: a["sortable"] for a in shown["union_user_attrs"]}
        assert set(every) == {key for of in told.values() for key in of}
        assert not set(every) & machine
        assert every["acceptance length (tokens/step)"]  # a number: an axis of plots
        assert not every["remarks"]
        best = {t["number"]: attributes(t) for t in shown["best_trials"]}
        assert all(best[k] == told[k] for k in best)

    visit(database, look=look)
    with opened(database) as store:  # the names that programs read are the only ones stored
        stays = store.optuna_study("demo-cpu").get_trials(deepcopy=False)
    assert [t.user_attrs for t in stays] == [t.user_attrs for t in trials]


@pytest.mark.parametrize("key", ["converged", f"converged_{ESTIMATOR}"])
def test_what_a_study_found_is_told_in_words(tmp_path: Path, key: str) -> None:
    database = test_report.make(tmp_path, CONFIRMED)
    with opened(database) as store:
        store.optuna_study("double").set_user_attr(key, [12])
        store.optuna_study("double").set_user_attr("mine", 7)

    def look(url: str) -> None:
        told = attributes(get(url, "/api/studies/1"))
        assert told == {"--trials that the search did not need": "[12]", "mine": "7"}

    visit(database, look=look)


def test_a_failure_and_what_a_user_noted_are_told(tmp_path: Path) -> None:
    database = test_report.make(tmp_path, (Row(0, 2048, 98.0), Row(15, 32, None, reason=EVIL)))
    with contextlib.closing(sqlite3.connect(database)) as c:
        c.execute(
            "insert into trial_user_attributes (trial_id, key, value_json) values (1, 'mine', '7')"
        )
        c.commit()

    def look(url: str) -> None:
        shown = get(url, "/api/studies/1")
        good, failed = map(attributes, shown["trials"])
        assert good["mine"] == "7"
        assert {"key": "mine", "sortable": True} in shown["union_user_attrs"]
        assert failed["failure reason"] == EVIL
        assert failed["remarks"] == "failed: oom"

    visit(database, look=look)


def test_a_study_that_is_not_ours_is_shown_as_it_is(tmp_path: Path) -> None:
    database = test_report.make(tmp_path, CONFIRMED)
    with opened(database) as store:
        other = optuna.create_study(storage=store.storage, study_name="by hand")
        other.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"baseline": "x"}))

    def look(url: str) -> None:
        [trial] = get(url, "/api/studies/2")["trials"]
        assert attributes(trial) == {"baseline": "x"}

    visit(database, look=look)


def test_what_cannot_be_made_anew_is_shown_as_it_was_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "a.db", study())  # which has no study file

    def look(url: str) -> None:
        assert set(figures_of(url)) == {"pareto-front"}
        assert get(url, "/api/studies/1")["trials"][0]["user_attrs"] == []

    visit(tmp_path / "a.db", look=look)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    about = [w.partition(":")[0] for w in warnings]
    assert about == [
        "figures and notes are as they were saved",
        "user attributes are shown as they are stored",
    ]


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")
def test_a_browser_shows_front_and_figures(tmp_path: Path) -> None:
    def look(url: str) -> None:
        dom = dom_of(url)
        assert "Pareto Front" in dom
        assert "Throughput (tok/s)" in dom
        for words in (  # of our figures
            "n = 1, MNBT 2048",
            "By number of drafted tokens",
            "Latency of single requests",
            "How many drafted tokens are accepted",
        ):
            assert words in dom
        assert "acceptance length (tokens/step)" in dom_of(f"{url}/trials?numbers=1")

    visit(stored(tmp_path), look=look)


def test_a_throttled_trial_is_no_best_one(tmp_path: Path) -> None:
    database = test_report.make(tmp_path, CONFIRMED[:3])
    with opened(database) as store:
        study = store.optuna_study("double")
        again = study.get_trials()[1]
        again.values = [10_000.0, 1.0]  # better than all others, of another load
        quality = {**again.user_attrs.get("quality", {}), "throttled": True}
        again.user_attrs["quality"] = {**quality, "running_peak": 16, "running_asked": 32}
        study.add_trial(again)
        front = {t.number for t in study_view(store, "double").front()}
        optuna = {t.number for t in study.best_trials}
    assert optuna == {3}
    assert front
    assert 3 not in front

    def look(url: str) -> None:
        for page in ("/api/studies/1", "/api/studies/1?after=3"):
            shown = get(url, page)
            best = {t["number"]: attributes(t) for t in shown["best_trials"]}
            assert best.keys() == front
            assert all("remarks" in told or "requests" in told for told in best.values())
            [told] = [attributes(t) for t in shown["trials"] if t["number"] == 3]
            assert "throttled" in told["remarks"]
            assert "at most 16 requests at once, not 32" in told["warnings"]
        notes = str(get(url, "/api/studies/1")["note"])
        assert "at most 16 of 32 requests ran at once" in notes

    visit(database, look=look)
