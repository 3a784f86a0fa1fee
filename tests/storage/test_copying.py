"""A study that is copied to another database is the same there, or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
import pytest
from click.testing import CliRunner
from optuna.trial import Trial

from autotune.bench.written import Scored, Written
from autotune.cli.main import main
from autotune.engine.compile_cache import CacheUse, CompileCache
from autotune.engine.launch_stages import Stages
from autotune.errors import UserError
from autotune.results.rows import study_rows
from autotune.results.trial_story import trial_story
from autotune.results.trials import study_view
from autotune.storage import copying
from autotune.storage.certificates import AnswerRole, launch_number
from autotune.storage.copying import copy_study
from autotune.storage.lease import exclusive
from autotune.storage.location import Database, Server
from autotune.storage.names import load_sweep_name, verification_name
from autotune.storage.schema import NO_TRIAL
from autotune.storage.store import Store, opened
from autotune.study.files import load_study
from tests.paths import ROOT
from tests.postgresql import Cluster
from tests.storage.test_repositories import SAMPLES, STATS, begin, plan, quality
from tests.studies import write_study

RESULTS = ROOT / "studies" / "results"
STUDIES = ("demo-cpu", "demo-cpu-against-grid")


def database_of(study: str) -> Path:
    return RESULTS / study / "autotune.db"


def with_a_load_sweep(folder: Path, study: str) -> Path:
    """A database of an earlier autotune, to which rows of every later table were added."""
    found = Path(shutil.copy(database_of(study), folder / "a.db"))
    with opened(found, write=True) as store:
        name = store.pick_study(None)
        sweep = load_sweep_name(name)
        setting = {"fingerprint": "x"}
        points = [
            store.load_maps.add_point(name, setting, 0, None),
            store.load_maps.add_point(name, setting, 3, [(1, 4, 3)], way="schedule", repeat=1),
        ]
        for point in points:
            launch = plan(store, f"launch-{point.id}", point.id, study=sweep)
            store.requests.add(launch, SAMPLES)
            store.load_maps.add_load(
                launch,
                point.id,
                concurrency=4,
                part=0,
                phase="measure",
                stats=STATS,
                values={"tok/s": 7.0},
                intervals={"tok/s": (None, 8.0)},
                quality=quality(),
            )
            store.launches.keep_stages(launch, Stages({"import": 1.5}, {"api": 0.5}))
            store.launches.keep_compile_cache(launch, CompileCache(CacheUse.MISSED, "/cache"))
            store.launches.event(sweep, "measured", launch_id=launch)
        plan(store, "prelaunched", NO_TRIAL, study=sweep)
        with_a_verification(store, name)
    return found


def with_a_verification(store: Store, study: str) -> None:
    """Two certificates, of which the second one has answers with every kind of character."""
    verified = verification_name(study)
    store.certificates.begin(study, 0, {"prompts": 1})
    row = store.certificates.begin(study, 1, {"prompts": 2})
    for role in AnswerRole:
        launch = plan(store, f"verify-{role}", launch_number(row.id, role), study=verified)
        answers = [Written(i, (1, 2), (7, 2**20), f"\0\ud83d é {i}", "stop") for i in (0, 1)]
        store.certificates.add_answers(row.id, launch, role, answers)
    store.certificates.add_scores(
        row.id, AnswerRole.CHOSEN, {i: Scored((-0.5, -i), (-0.25, 0.0)) for i in (0, 1)}
    )
    store.certificates.judge(row.id, "certified", {"tests": [{"p": 0.5}], "why": None})


def columns(rows: list[Any], *without: str) -> list[dict[str, Any]]:
    return [{f.name: getattr(r, f.name) for f in fields(r) if f.name not in without} for r in rows]


def contents(store: Store, name: str) -> dict[str, Any]:
    """All that a database has of a study, without what each database numbers itself."""
    view = study_view(store, name)
    own = ("worker", "lease_epoch")
    sweep = load_sweep_name(name)
    verified = verification_name(name)
    launches = [x for k in (name, sweep, verified) for x in store.launches.of_study(k)]
    certificates = store.certificates.of_study(name)
    verifying = {launch_number(c.id, role): role for c in certificates for role in AnswerRole}
    points = store.load_maps.points(name)
    order = {p.id: i for i, p in enumerate(points)}
    loads = [columns(store.load_maps.loads(p.id), "id", "point") for p in points]
    swept = [order.get(x.trial, x.trial) for x in store.launches.of_study(sweep)]
    return {
        "rows": json.dumps(study_rows(view)),
        "study": columns([store.load_study(name)[1]]),
        "optuna": [vars(t) for t in store.stored_study(name).trials],
        "launches": [x | {"trial": 0} for x in columns(launches, *own)],
        "swept": swept,
        "trials": [x.trial for x in store.launches.of_study(name)],
        "requests": [columns(store.requests.of_launch(x.launch_id), "id") for x in launches],
        "samples": [store.requests.samples(x.launch_id) for x in launches],
        "points": columns(points, "id"),
        "certificates": columns(certificates, "id"),
        "answers": [store.certificates.answers(c.id) for c in certificates],
        "verifying": [verifying.get(x.trial) for x in store.launches.of_study(verified)],
        "loads": loads,
        "stages": [store.launches.stages(x) for x in (name, sweep)],
        "caches": [store.launches.compile_caches(x) for x in (name, sweep)],
        "events": columns(store.launches.events(name) + store.launches.events(sweep), "id"),
        "vllm": store.vllm(name),
        "attrs": store.optuna_study(name).user_attrs,
        "story": list(trial_story(store, name, view.trials[0].number)),
    }


def filled(cluster: Cluster) -> Server:
    """A server whose numbers differ from those of a file: it has a study already."""
    server = cluster.new()
    copy_study(database_of("smollm2-h200"), None, server)
    return server


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_there_and_back_again(study: str, cluster: Cluster, tmp_path: Path) -> None:
    first = with_a_load_sweep(tmp_path, study)
    server, last = filled(cluster), tmp_path / "b.db"
    with opened(first) as store:
        name = store.pick_study(None)
        before = contents(store, name)
    done = copy_study(first, None, server)
    assert done.trials == len(before["optuna"])
    assert done.launches == len(before["launches"])
    assert done.requests == sum(map(len, before["requests"]))
    with opened(server) as store:
        assert contents(store, name) == before
    copy_study(server, name, last)
    with opened(last) as store:
        assert contents(store, name) == before


def with_notes(store: Store) -> tuple[optuna.Study, int]:
    """A study with notes of the dashboard; the id of its trial."""
    study = optuna.create_study(study_name="s", storage=store.storage)
    study.ask().suggest_float("x", 0, 1)
    trial = Trial(study, store.trial_id("s", 0))
    optuna_dashboard.save_note(study, "of the study")
    optuna_dashboard.save_note(trial, "of the trial")
    return study, trial._trial_id


def test_notes_stay_with_their_trials(database: Database, tmp_path: Path) -> None:
    with opened(tmp_path / "a.db", create=True) as store:
        optuna.create_study(study_name="earlier", storage=store.storage).ask()
        begin(store, load_study(str(write_study(tmp_path, name="s"))))
        with_notes(store)
    copy_study(tmp_path / "a.db", None, database)
    with opened(database) as store:
        study = store.optuna_study("s")
        trial = Trial(study, store.trial_id("s", 0))
        assert trial._trial_id == 1
        assert optuna_dashboard.get_note(study) == "of the study"
        assert optuna_dashboard.get_note(trial) == "of the trial"
        [kept] = study.get_trials()
        assert list(kept.params) == ["x"]


def test_what_is_refused(database: Database, tmp_path: Path) -> None:
    source = Path(shutil.copy(database_of("demo-cpu"), tmp_path / "a.db"))
    with pytest.raises(UserError, match="is the database itself"):
        copy_study(source, None, source)
    with exclusive(source), pytest.raises(UserError, match="autotune is running on it"):
        copy_study(source, None, database)
    copy_study(source, None, database)
    with pytest.raises(UserError, match=r"has a study .* already, and nothing was changed") as e:
        copy_study(source, None, database)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="has no study other"):
        copy_study(source, "other", database)


@pytest.mark.parametrize("broken", ["autotune_requests", "autotune_events", "trial_values"])
def test_a_copy_that_breaks_leaves_nothing(
    database: Database, tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copy(database_of("demo-cpu"), tmp_path / "a.db"))
    insert = copying._Work._insert_all

    def breaking(self: Any, table: Any, rows: Any) -> None:
        insert(self, table, rows)
        if table.name == broken and rows:
            raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(copying._Work, "_insert_all", breaking)
        with pytest.raises(KeyboardInterrupt):
            copy_study(source, None, database)
    with opened(database) as store:
        assert store.study_names() == []
        for table in (
            "studies",
            "trials",
            "trial_values",
            "autotune_launches",
            "autotune_requests",
        ):
            assert store._reader.one(f"SELECT count(*) FROM {table}") == 0  # noqa: S608
    copy_study(source, None, database)


@pytest.mark.parametrize("name", ["pipe", "link", "folder", "", "a\0b"])
def test_a_copy_takes_the_place_of_nothing_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")  # as a device of root's would be
    Path("folder").mkdir()
    before = {x: x.lstat() for x in tmp_path.iterdir()}
    source = database_of("demo-cpu")
    result = CliRunner().invoke(main, ["copy", str(source), name])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    if name and "\0" not in name:
        with pytest.raises(UserError, match="is not a regular file"):
            copy_study(source, None, Path(name))
    assert {x: x.lstat() for x in tmp_path.iterdir()} == before


def test_the_command(database: Database, tmp_path: Path) -> None:
    source = database_of("demo-cpu")
    result = CliRunner().invoke(main, ["copy", f"{source}:demo-cpu", str(database)])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("copied demo-cpu: ")
    result = CliRunner().invoke(main, ["copy", str(tmp_path / "none.db"), str(database)])
    assert result.exit_code == 2
    assert "no such database" in result.stderr
