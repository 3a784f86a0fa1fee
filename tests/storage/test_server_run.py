"""Whole runs over the double on a PostgreSQL server."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from autotune.storage.location import Server
from tests.output.test_dashboard import visit
from tests.postgresql import Cluster
from tests.studies import autotune, write_study

pytestmark = pytest.mark.double


@pytest.fixture
def server(cluster: Cluster) -> Server:
    return cluster.new()


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
    assert f"{url}:double" in autotune("status", "--db", "b.db", cwd=tmp_path).stdout
    again = run(tmp_path, server, 4)
    assert "resuming double: 3 of 4" in again


def test_the_dashboard_shows_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, server)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()

    def look(url: str) -> None:
        found = httpx.get(httpx.URL(url).join("/api/studies/1")).json()
        assert len(found["trials"]) == 3
        assert found["plotly_graph_objects"]
        meta = httpx.get(httpx.URL(url).join("/api/meta")).json()
        assert meta["artifact_is_available"]

    assert "double" in visit(server, look=look)  # type: ignore[arg-type]
