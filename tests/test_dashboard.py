"""optuna-dashboard on our database: empty, with a study, in a browser."""

from __future__ import annotations

import json
import os
import signal
import socket
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
from sqlalchemy.orm import Session

import objectives
from autotune.dashboard import publish, serve
from autotune.errors import UserError
from autotune.plots import find_chromium
from autotune.store import Store, StudyRow
from autotune.views import StudyView
from tests.study_views import P95, THROUGHPUT, study

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def make(path: Path, *views: StudyView) -> None:
    """A database with these studies, as a run leaves them."""
    store = Store(path, create=True)
    for view in views:
        with Session(store.storage.engine) as s:
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
        publish(optuna_study(store, view), view)
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
    answer = httpx.get(httpx.URL(url).join(path))
    assert answer.status_code == 200
    return answer.json()


def test_a_study_is_shown_with_figure_units_and_notes(tmp_path: Path) -> None:
    make(tmp_path / "a.db", study())

    def look(url: str) -> None:
        assert url.startswith("http://127.0.0.1:")
        assert url.endswith("/dashboard/studies/1")
        assert httpx.get(url).status_code == 200
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
    publish(made, view)
    version = made._storage.get_study_system_attrs(made._study_id)["dashboard:note_ver"]
    key = f"dashboard:{made.trials[4]._trial_id}:note_str:0"
    made._storage.set_study_system_attr(made._study_id, key, "mine")
    publish(made, view)
    attrs = made._storage.get_study_system_attrs(made._study_id)
    assert attrs[key] == "mine"
    assert attrs["dashboard:note_ver"] == version  # nothing new, nothing written
    assert optuna_dashboard.get_note(made).startswith("# demo-cpu")
    store.close()


def test_a_log_cannot_leave_its_fence(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db", create=True)
    view = study()
    trials = list(view.trials)
    trials[4] = replace(trials[4], failure_evidence=("````", "# <script>", "\x1b[31mred\x1b[0m"))
    made = optuna_study(store, view)
    publish(made, replace(view, trials=trials))
    body = made._storage.get_study_system_attrs(made._study_id)[
        f"dashboard:{made.trials[4]._trial_id}:note_str:0"
    ]
    assert body.splitlines()[4:] == [
        "`````text",
        "MNBT is too small",
        "````",
        "# <script>",
        "red",
        "`````",
    ]
    store.close()


@pytest.mark.browser
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
        timeout=120,
        check=True,
    ).stdout


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")
def test_a_browser_shows_front_and_figure(tmp_path: Path) -> None:
    make(tmp_path / "a.db", study())

    def look(url: str) -> None:
        dom = dom_of(url)
        assert "Pareto Front" in dom
        assert "Throughput (tok/s)" in dom
        assert "n = 3, MNBT 512" in dom  # our figure

    visit(tmp_path / "a.db", look=look)
