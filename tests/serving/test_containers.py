"""Servers in containers, owned from start to proof of death, over a stand-in engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from autotune.engine.command import free_port, plan_launch
from autotune.engine.probe import VllmInfo
from autotune.errors import FailureKind, LaunchError, StopError
from autotune.serving import containers
from autotune.serving.orphans import end_living, living_launches
from autotune.serving.process_tree import Identity, boot_id, end_orphan, processes_of
from autotune.serving.server import Server
from autotune.study.schema import ServerSpec
from tests.engine_double import Engine, engine
from tests.paths import ROOT, TESTS
from tests.studies import PATIENCE_S, wait_until

pytestmark = pytest.mark.double

DOUBLE = [sys.executable, str(TESTS / "double.py")]
INFO = VllmInfo(None, None, None, None, None, (), ())
Make = Callable[..., Server]


@pytest.fixture
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with the server double as image; no container of it is left by a test."""
    with engine(tmp_path_factory.mktemp("e"), double=DOUBLE) as found:
        yield found
        assert found.running == []


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, for the records of its launches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make(docker: Engine, tmp_path: Path) -> Iterator[Make]:
    """Makes servers in containers; whatever a test leaves is ended."""
    made: list[Server] = []

    def build(
        *options: str,
        image: str = "double",
        grace: float = PATIENCE_S,
        health: float = PATIENCE_S,
        **env: str,
    ) -> Server:
        spec = ServerSpec(
            command=(str(docker.client), "run", *options, image),
            model="m",
            env=env,
            stop_timeout_s=grace,
            health_timeout_s=health,
        )
        launch_id = uuid.uuid4().hex
        plan = plan_launch(spec, {}, INFO, port=free_port(), launch_id=launch_id, resolve=str)
        log = tmp_path / f"{launch_id}.log"
        made.append(Server(plan, launch_id=launch_id, log_path=log, server=spec, info=INFO))
        return made[-1]

    yield build
    for server in reversed(made):
        server.stop(force=True)


def up(server: Server) -> Identity:
    identity = server.start()
    server.wait_ready(lambda _: None)
    return identity


def gone(server: Server, docker: Engine) -> bool:
    """Nothing of a launch is left: no container, no process, no record."""
    return (
        not docker.running
        and not processes_of(server.launch_id)
        and containers.record_of(server.launch_id) is None
    )


def test_a_container_is_marked_and_ends_with_its_server(make: Make, docker: Engine) -> None:
    server = make("--rm", "--gpus", "all")
    up(server)
    [box] = docker.running
    assert box.name == f"autotune-{server.launch_id}"
    assert box.labels["autotune.launch"] == server.launch_id
    assert box.labels["autotune.owner"].startswith(f"{os.getpid()}:")
    assert Path(containers._folder(), f"{server.launch_id}.cid").read_text() == box.id
    assert box.env["VLLM_API_KEY"] == server.plan.api_key
    report = server.stop()
    assert (report.exit_code, report.killed) == (0, 0)
    assert gone(server, docker)
    assert not list(containers._folder().iterdir())


def test_no_secret_is_in_a_command_line(make: Make, docker: Engine) -> None:
    server = make("--rm", "-e", "HF_TOKEN")
    up(server)
    lines = [" ".join(p.cmdline()) for p in server.processes()]
    assert any("-e VLLM_API_KEY" in line for line in lines)
    assert not any(server.plan.api_key in line for line in lines)


def test_another_network_publishes_the_port_on_the_loopback_only(
    make: Make, docker: Engine
) -> None:
    server = make("--network", "llm")
    up(server)
    [call] = [c for c in docker.daemon.calls if c[0] == "run"]
    published = [b for a, b in pairwise(call) if a == "-p"]
    assert published == [f"127.0.0.1:{server.plan.port}:{server.plan.port}"]
    assert call[call.index("--host") + 1] == "0.0.0.0"  # noqa: S104
    server.stop()
    assert gone(server, docker)


def test_a_container_without_network_gets_the_hosts(make: Make, docker: Engine) -> None:
    server = make()
    up(server)
    [call] = [c for c in docker.daemon.calls if c[0] == "run"]
    assert call[call.index("--network") + 1] == "host"
    assert "-p" not in call
    assert call[call.index("--host") + 1] == "127.0.0.1"


def test_what_makes_no_difference_is_left_out(make: Make, docker: Engine) -> None:
    server = make("--name", "mine", "--network", "host", "-p", "8000:8000")
    up(server)
    assert [box.name for box in docker.running] == [f"autotune-{server.launch_id}"]


def test_a_container_that_swallows_sigterm_is_killed(make: Make, docker: Engine) -> None:
    server = make(grace=1, DOUBLE_STUBBORN="1", DOUBLE_CHILD="stubborn")
    up(server)
    assert server.stop().exit_code == 128 + signal.SIGKILL
    assert gone(server, docker)


def test_stop_by_force_does_not_wait(make: Make, docker: Engine) -> None:
    server = make(grace=60, DOUBLE_STUBBORN="1")
    up(server)
    server.stop(force=True)
    assert gone(server, docker)
    assert not [c for c in docker.daemon.calls if c[0] == "stop"]


def test_a_killed_client_leaves_no_container(make: Make, docker: Engine) -> None:
    server = make(DOUBLE_STUBBORN="1", grace=1)
    identity = up(server)
    os.kill(identity.pid, signal.SIGKILL)
    wait_until(lambda: not server.alive())
    assert len(docker.running) == 1
    server.stop()
    assert gone(server, docker)


def test_a_killed_supervisor_leaves_no_container(make: Make, docker: Engine) -> None:
    server = make(DOUBLE_STUBBORN="1", grace=1)
    identity = up(server)
    os.kill(identity.supervisor_pid, signal.SIGKILL)
    wait_until(lambda: not server.alive())
    assert len(docker.running) == 1
    server.stop()
    assert gone(server, docker)


@pytest.mark.parametrize("slow", ["ENGINE_PULL_S", "ENGINE_CREATE_S"])
def test_a_stop_while_the_container_is_made(
    make: Make, docker: Engine, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """The client is ended; what the daemon makes all the same is found by its label."""
    monkeypatch.setenv(slow, "1")
    server = make(grace=1)
    server.start()
    wait_until(lambda: [c for c in docker.daemon.calls if c[0] == "run"])
    if slow == "ENGINE_CREATE_S":
        wait_until(lambda: docker.daemon.making)
        monkeypatch.setattr(containers, "_LATE_S", PATIENCE_S)  # it comes, however late
    server.stop()
    wait_until(lambda: not docker.daemon.making)
    assert gone(server, docker)


def test_an_image_that_does_not_exist_is_a_failure_with_the_engines_words(
    make: Make, docker: Engine
) -> None:
    server = make(image="missing")
    with pytest.raises(LaunchError) as e:
        up(server)
    assert any("No such image" in line for line in (e.value.reason, *e.value.evidence))
    server.stop()
    assert gone(server, docker)


def test_without_a_daemon_the_failure_is_the_engines(
    make: Make, docker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_DOWN", "1")
    server = make()
    with pytest.raises(LaunchError) as e:
        up(server)
    assert any("Cannot connect" in line for line in (e.value.reason, *e.value.evidence))
    server.stop()
    assert gone(server, docker)


def test_an_engine_that_stops_answering_is_said(
    make: Make, docker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(grace=1)
    identity = up(server)
    os.kill(identity.supervisor_pid, signal.SIGKILL)
    monkeypatch.setenv("ENGINE_DOWN", "1")
    with pytest.raises(StopError, match=rf"Cannot connect.*rm -f autotune-{server.launch_id}"):
        server.stop()
    monkeypatch.delenv("ENGINE_DOWN")
    server.stop()
    assert gone(server, docker)


def test_a_dead_container_is_a_dead_server(make: Make, docker: Engine) -> None:
    server = make()
    up(server)
    [box] = docker.running
    docker.daemon.rm(ids=[box.id], fds=[])
    wait_until(lambda: not server.alive())
    assert server.failure(FailureKind.CRASH, "the server died").kind is FailureKind.CRASH
    server.stop()
    assert gone(server, docker)


OWNER = """
import sys, time
from pathlib import Path
from autotune.engine.command import free_port, plan_launch
from autotune.engine.probe import VllmInfo
from autotune.serving.server import Server
from autotune.study.schema import ServerSpec

spec = ServerSpec(command=({client!r}, "run", "double"), model="m", env={env!r}, stop_timeout_s=1)
info = VllmInfo(None, None, None, None, None, (), ())
plan = plan_launch(spec, {{}}, info, port=free_port(), launch_id={launch!r}, resolve=str)
server = Server(plan, launch_id={launch!r}, log_path=Path({log!r}), server=spec, info=info)
print(server.start().supervisor_pid, flush=True)
server.wait_ready(lambda s: None)
print("ready", flush=True)
time.sleep(1200)
"""


@pytest.fixture
def killed(docker: Engine, tmp_path: Path) -> Callable[..., str]:
    """Starts a server by another process, and kills that; returns the launch."""

    def kill(*, supervisor: bool, **env: str) -> str:
        launch = uuid.uuid4().hex
        code = OWNER.format(
            client=str(docker.client), env=env, launch=launch, log=str(tmp_path / "log")
        )
        argv = [sys.executable, "-c", code]
        owner = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert owner.stdout.readline() == "ready\n"
        if supervisor:
            os.kill(pid, signal.SIGKILL)
        owner.kill()
        owner.wait()
        return launch

    return kill


def test_a_killed_tuner_leaves_no_container(docker: Engine, killed: Callable[..., str]) -> None:
    killed(supervisor=False, DOUBLE_STUBBORN="1")
    wait_until(lambda: not docker.running)


def test_what_a_killed_tuner_and_supervisor_leave_is_listed_and_reaped(
    docker: Engine, killed: Callable[..., str]
) -> None:
    launch = killed(supervisor=True, DOUBLE_STUBBORN="1")
    [box] = docker.running
    [left] = [x for x in living_launches() if x.launch_id == launch]
    assert left.owner is None
    assert left.containers == (box.id,)
    assert box.id[:12] in left.size
    assert end_living(left, grace_s=0.5) == 2  # the client waits for its container
    assert docker.running == []
    assert not [x for x in living_launches() if x.launch_id == launch]


def test_a_container_without_any_process_is_listed_and_reaped(
    docker: Engine, killed: Callable[..., str]
) -> None:
    launch = killed(supervisor=True, DOUBLE_STUBBORN="1")
    while clients := processes_of(launch):
        for client in clients:
            client.kill()
    [left] = [x for x in living_launches() if x.launch_id == launch]
    assert (left.owner, left.processes) == (None, ())
    assert "docker run" in left.command
    assert end_living(left, grace_s=0.5) == 1
    assert docker.running == []


def test_the_ledger_ends_a_container_after_a_reboot_too(
    docker: Engine, killed: Callable[..., str]
) -> None:
    launch = killed(supervisor=True, DOUBLE_STUBBORN="1")
    assert end_orphan(Identity(launch, f"not {boot_id()}"), grace_s=0.5) == 1
    assert docker.running == []
    assert end_orphan(Identity(launch, boot_id()), grace_s=0.5) == 0


def test_a_living_container_has_its_owner(make: Make, docker: Engine) -> None:
    server = make()
    up(server)
    [found] = [x for x in living_launches() if x.launch_id == server.launch_id]
    assert found.owner == os.getpid()
    assert found.containers == (docker.running[0].id,)


def test_another_launchs_container_is_not_touched(make: Make, docker: Engine) -> None:
    mine, other = make(), make()
    up(mine)
    up(other)
    mine.stop()
    assert [box.name for box in docker.running] == [f"autotune-{other.launch_id}"]
    assert other.alive()


def test_a_server_that_is_up_but_cannot_be_reached_is_told(make: Make, docker: Engine) -> None:
    """Its image binds another port than the one that it is given."""
    code = "import sys, time; sys.stderr.write('Application startup complete\\n'); time.sleep(1200)"
    docker.daemon.images = {"elsewhere": [sys.executable, "-c", code]}
    server = make(image="elsewhere", grace=1, health=1)
    server.start()
    wait_until(lambda: "startup complete" in "".join(server.log_tail()))
    with pytest.raises(LaunchError, match=r"not reachable on 127\.0\.0\.1") as e:
        server.wait_ready(lambda _: None)
    assert e.value.kind is FailureKind.BAD_CONFIG  # waiting longer does not help
