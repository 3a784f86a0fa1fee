"""Whole runs over the double on a PostgreSQL server."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.storage import server_lease
from autotune.storage.location import Server
from autotune.storage.store import is_there, opened
from tests.output.test_dashboard import get, visit
from tests.postgresql import Cluster, a_cluster
from tests.studies import autotune, processes_of, start_autotune, wait_until, write_study

pytestmark = pytest.mark.double


@pytest.fixture
def server(cluster: Cluster) -> Server:
    return cluster.new()


@pytest.fixture
def own() -> Iterator[Cluster]:
    """A server that only this test uses, to be killed."""
    with a_cluster() as found:
        yield found


def run(folder: Path, server: Server, trials: int = 3) -> str:
    study = write_study(folder, search={"method": "random"})
    done = autotune("run", str(study), "--trials", str(trials), "--db", str(server), cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_takes_a_url(server: Server, tmp_path: Path) -> None:
    url = str(server)
    said = run(tmp_path, server)
    assert f"--db '{url}'" in said
    for command in (
        ("status",),
        ("status", "--trial", "0"),
        ("status", "--time"),
        ("best",),
        ("predict",),
        ("export",),
        ("report",),
        ("pareto",),
        ("explain", "double.yaml"),
        ("ps",),
        ("reap",),
    ):
        done = autotune(*command, "--db", url, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    assert {p.name for p in tmp_path.iterdir()} == {"double.yaml", "autotune-double"}
    assert {"logs", "report.html", "pareto.html"} <= {
        p.name for p in (tmp_path / "autotune-double").iterdir()
    }
    done = autotune("compare", url, f"{url}:double", cwd=tmp_path)
    assert "is compared with itself" in done.stderr
    done = autotune("doctor", "double.yaml", "--db", url, "--json", cwd=tmp_path)
    [found] = [
        c for c in json.loads(done.stdout[done.stdout.index("[") :]) if c["name"] == "database"
    ]
    assert (found["ok"], found["text"]) == (True, f"{url} is there")
    study = write_study(tmp_path, name="again")
    options = ("--reuse", url, "--trials", "1", "--db", "b.db")
    done = autotune("run", str(study), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = autotune("status", "--db", "b.db", cwd=tmp_path).stdout
    assert f"{url}:double" in shown.replace("\n", "")
    again = run(tmp_path, server, 4)
    assert "resuming double: 3 of 4" in again


def test_the_dashboard_shows_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, server)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()

    def look(url: str) -> None:
        found = get(url, "/api/studies/1")
        assert len(found["trials"]) == 3
        assert found["plotly_graph_objects"]
        meta = get(url, "/api/meta")
        assert meta["artifact_is_available"]

    assert "double" in visit(server, look=look)  # type: ignore[arg-type]


AGAIN = "Trying again for 10 min"


def numbers(server: Server) -> list[tuple[int, str]]:
    """Number and state of each trial."""
    with opened(server) as store:
        return [(t.number, t.state.name) for t in store.stored_study("double").trials]


def launches(server: Server) -> list[tuple[int, bool]]:
    """Trial of each launch that was measured, and whether its end was written down."""
    with opened(server) as store:
        rows = store.launches.of_study("double")
        return [(x.trial, x.ended_at is not None) for x in rows if x.measured_at is not None]


def test_a_server_that_is_killed_in_the_middle_of_a_run(own: Cluster, tmp_path: Path) -> None:
    server = own.new()
    study = write_study(tmp_path, search={"method": "random"}, measure={"repeat_disturbed": False})
    options = ("--trials", "5", "--all-trials", "--db", str(server))
    process = start_autotune("run", str(study), *options, cwd=tmp_path)
    try:
        wait_until(lambda: is_there(server))
        for done in (1, 2):
            wait_until(lambda done=done: len(launches(server)) >= done)  # type: ignore[misc]
            before = process.said().count(AGAIN)
            own.stop(signal.SIGQUIT)
            process.wait_for_words(AGAIN, before + 1)  # something was to be written meanwhile
            own.start()
        _, errors = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert numbers(server) == [(i, "COMPLETE") for i in range(5)]
    assert launches(server) == [(i, True) for i in range(5)]
    assert processes_of(tmp_path) == []


def test_the_next_run_waits_for_the_lease_of_a_killed_one(
    server: Server, cluster: Cluster, tmp_path: Path
) -> None:
    study = write_study(tmp_path, search={"method": "random"})
    options = ("--trials", "3", "--db", str(server))
    process = start_autotune("run", str(study), *options, cwd=tmp_path)
    wait_until(lambda: is_there(server) and len(launches(server)) >= 1)
    process.kill()
    process.communicate()
    # the lease ends when the next run has seen it, however long that takes to come so far
    ends = f"UPDATE autotune_lease SET expires_at = {server_lease._NOW}"  # noqa: S608
    assert cluster.execute("SELECT owner IS NULL FROM autotune_lease", server.name) == [(False,)]
    cluster.execute(f"{ends} + 600", server.name)
    following = start_autotune("run", str(study), *options, cwd=tmp_path)
    try:
        following.wait_for_words("seems to be gone. Waiting up to")
        cluster.execute(ends, server.name)
        _, errors = following.communicate()
    finally:
        following.kill()
    assert following.returncode == 0, errors
    assert [s for _, s in numbers(server)].count("COMPLETE") == 3
    assert processes_of(tmp_path) == []
