"""Servers in containers of a real podman, where it runs; the rest is in test_containers.py."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autotune.engine.command import free_port, plan_launch
from autotune.engine.probe import VllmInfo
from autotune.serving import containers
from autotune.serving.orphans import end_living, living_launches
from autotune.serving.process_tree import Identity, processes_of
from autotune.serving.server import Server
from autotune.study.schema import ServerSpec
from tests.paths import TESTS
from tests.podman import IMAGE, Podman, podman_here
from tests.studies import wait_until

pytestmark = pytest.mark.double

Make = Callable[..., Server]


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """A podman that runs containers here."""
    with tempfile.TemporaryDirectory(prefix="pod") as folder:  # its runroot may have 50 characters
        found = podman_here(Path(folder))
        if isinstance(found, str):
            pytest.skip(found)
        yield found


@pytest.fixture
def make(podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes servers in containers; nothing of one is left by a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made: list[Server] = []

    def build(**env: str) -> Server:
        inside = (sys.executable, str(TESTS / "double.py"))
        spec = ServerSpec(
            command=(*podman.words, "run", *podman.mounts, IMAGE, *inside),
            model="m",
            env=env,
            stop_timeout_s=2,
            health_timeout_s=60,
        )
        info = VllmInfo(None, None, None, None, None, (), ())
        launch_id = uuid.uuid4().hex
        plan = plan_launch(spec, {}, info, port=free_port(), launch_id=launch_id, resolve=str)
        log = tmp_path / f"{launch_id}.log"
        made.append(Server(plan, launch_id=launch_id, log_path=log, server=spec, info=info))
        return made[-1]

    yield build
    for server in reversed(made):
        server.stop(force=True)
        assert not processes_of(server.launch_id)
        assert containers.record_of(server.launch_id) is None
    assert podman.ids() == []


def up(server: Server) -> Identity:
    identity = server.start()
    server.wait_ready(lambda _: None)
    return identity


def test_from_start_to_proof_of_death(make: Make, podman: Podman) -> None:
    server = make()
    up(server)
    [box] = podman.ids()
    name = podman.call("inspect", "--format", "{{.Name}} {{.Config.Labels}}", box)
    assert name.startswith(f"autotune-{server.launch_id} ")
    assert f"autotune.launch:{server.launch_id}" in name
    report = server.stop()
    assert report.exit_code == 0
    assert podman.ids() == []


def test_a_container_that_swallows_sigterm_is_killed(make: Make, podman: Podman) -> None:
    server = make(DOUBLE_STUBBORN="1")
    up(server)
    assert server.stop().exit_code == 128 + signal.SIGKILL
    assert podman.ids() == []


@pytest.mark.parametrize("who", ["pid", "supervisor_pid"])
def test_a_killed_client_or_supervisor_leaves_no_container(
    make: Make, podman: Podman, who: str
) -> None:
    server = make(DOUBLE_STUBBORN="1")
    identity = up(server)
    os.kill(getattr(identity, who), signal.SIGKILL)
    wait_until(lambda: not server.alive())
    server.stop()
    assert podman.ids() == []


def test_what_is_left_is_listed_and_reaped(make: Make, podman: Podman) -> None:
    server = make(DOUBLE_STUBBORN="1")
    identity = up(server)
    os.kill(identity.supervisor_pid, signal.SIGKILL)
    [left] = [x for x in living_launches() if x.launch_id == server.launch_id]
    assert left.containers == tuple(podman.ids())
    end_living(left, grace_s=0.5)
    assert podman.ids() == []
