from __future__ import annotations

import dataclasses
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from autotune.errors import FailureKind, LaunchError
from autotune.serving import Identity, Server, VllmInfo, end_leftover, free_port, plan_launch
from autotune.serving.server import _processes
from autotune.spec import ServerSpec

pytestmark = pytest.mark.double

DOUBLE = Path(__file__).with_name("double.py")
INFO = VllmInfo("0.32.0", None, sys.executable, None, None, (), ())
Make = Callable[..., Server]


def ignore(_: float) -> None:
    pass


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes servers from the double; whatever a test leaves is ended."""
    made: list[Server] = []

    def build(
        *, port: int | None = None, n: int = 0, mnbt: int = 2048, timeout: float = 60, **env: str
    ) -> Server:
        spec = ServerSpec(
            command=(sys.executable, str(DOUBLE)),
            model="m",
            env=env,
            speculative={"model": "d"},
            stop_timeout_s=0.2,
            health_timeout_s=timeout,
        )
        launch_id = uuid.uuid4().hex
        plan = plan_launch(
            spec,
            {"num_speculative_tokens": n, "max_num_batched_tokens": mnbt},
            INFO,
            port=port or free_port(),
            launch_id=launch_id,
            resolve=str,
        )
        log = tmp_path / f"{launch_id}.log"
        server = Server(plan, launch_id=launch_id, log_path=log, server=spec, info=INFO)
        made.append(server)
        return server

    yield build
    for server in reversed(made):
        server.stop(force=True)


def up(server: Server) -> Identity:
    identity = server.start()
    assert server.wait_ready(ignore) == "0.32.0"
    return identity


def fails(server: Server) -> LaunchError:
    with pytest.raises(LaunchError) as e:
        up(server)
    server.stop()
    assert not _processes(server.launch_id)
    return e.value


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.02)


def test_from_start_to_proof_of_death(make: Make):
    server = make(n=3)
    identity = up(server)
    assert server.alive()
    assert psutil.Process(identity.pid).create_time() == identity.started
    assert os.getsid(identity.pid) == identity.pid != os.getsid(0)  # no Ctrl-C reaches it
    assert os.getsid(identity.guard_pid) == identity.guard_pid
    assert stat.S_IMODE(server.log_path.stat().st_mode) == 0o600
    report = server.stop()
    assert (report.exit_code, report.killed) == (0, 0)
    assert not server.alive()
    assert not psutil.pid_exists(identity.guard_pid)
    assert not _processes(server.launch_id)
    assert server.stop() is report


def test_waiting_is_reported(make: Make):
    seen: list[float] = []
    server = make(DOUBLE_DELAY_S="0.6")
    server.start()
    server.wait_ready(seen.append)
    assert len(seen) >= 2
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    "env", [{"DOUBLE_STUBBORN": "1"}, {"DOUBLE_CHILD": "stubborn"}, {"DOUBLE_CHILD": "plain"}]
)
def test_stop_leaves_nothing(make: Make, env: dict[str, str]):
    server = make(**env)
    up(server)
    report = server.stop()
    assert report.killed == (0 if env.get("DOUBLE_CHILD") == "plain" else 1)
    assert not _processes(server.launch_id)


def test_stop_by_force_does_not_wait(make: Make):
    server = make(DOUBLE_STUBBORN="1")
    up(server)
    assert server.stop(force=True).exit_code == -signal.SIGKILL


def test_child_of_a_killed_api_process_is_ended(make: Make):
    server = make(DOUBLE_CHILD="stubborn")
    identity = up(server)
    os.kill(identity.pid, signal.SIGKILL)
    wait_until(lambda: not server.alive())
    assert _processes(server.launch_id)
    error = server.failure(FailureKind.CRASH, "the server died")
    assert "SIGKILL" in error.reason
    server.stop()
    assert not _processes(server.launch_id)


def test_stopped_process_is_ended(make: Make):
    server = make()
    identity = up(server)
    os.kill(identity.pid, signal.SIGSTOP)
    assert server.stop().killed == 1


def test_server_is_ended_without_its_guard(make: Make):
    server = make(DOUBLE_STUBBORN="1", DOUBLE_CHILD="stubborn")
    identity = up(server)
    os.kill(identity.guard_pid, signal.SIGKILL)
    wait_until(lambda: not server.alive())
    assert server.stop().killed == 2
    assert not _processes(server.launch_id)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_guard_ends_the_tree(make: Make, number: int):
    server = make(DOUBLE_STUBBORN="1")
    identity = up(server)
    os.kill(identity.guard_pid, number)
    wait_until(lambda: not _processes(server.launch_id))
    server.stop()


OWNER = """
import sys, time, uuid
from pathlib import Path
from autotune.serving import Server, VllmInfo, free_port, plan_launch
from autotune.spec import ServerSpec

command = (sys.executable, {double!r})
spec = ServerSpec(command=command, model="m", env={env!r}, stop_timeout_s={grace})
info = VllmInfo("0.32.0", None, sys.executable, None, None, (), ())
plan = plan_launch(spec, {{}}, info, port=free_port(), launch_id={launch!r}, resolve=str)
server = Server(plan, launch_id={launch!r}, log_path=Path({log!r}), server=spec, info=info)
print(server.start().guard_pid, flush=True)
server.wait_ready(lambda s: None)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("when", "number", "grace"),
    [
        ("started", signal.SIGKILL, 0.2),
        ("ready", signal.SIGTERM, 0.2),
        ("ready", signal.SIGKILL, 60),  # too long for an owner that is dead
    ],
)
def test_death_of_the_owner_ends_the_tree(tmp_path: Path, when: str, number: int, grace: float):
    launch = uuid.uuid4().hex
    code = OWNER.format(
        double=str(DOUBLE),
        env={"DOUBLE_STUBBORN": "1", "DOUBLE_CHILD": "stubborn"},
        launch=launch,
        log=str(tmp_path / "log"),
        grace=grace,
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    owner.stdout.readline()
    if when == "ready":
        assert owner.stdout.readline() == "ready\n"
    owner.send_signal(number)
    owner.wait()
    wait_until(lambda: not _processes(launch))


def test_leftover_of_a_dead_owner_and_guard_is_ended(make: Make):
    server = make(DOUBLE_STUBBORN="1", DOUBLE_CHILD="stubborn")
    identity = up(server)
    other = make()
    up(other)
    os.kill(identity.guard_pid, signal.SIGKILL)
    elsewhere = dataclasses.replace(identity, boot_id="another boot")
    assert end_leftover(elsewhere, grace_s=0.1) == 0
    assert _processes(server.launch_id)
    assert end_leftover(identity, grace_s=0.1) == 2
    assert not _processes(server.launch_id)
    assert end_leftover(identity, grace_s=0.1) == 0
    assert other.alive()


def test_leftover_with_a_guard_is_ended(make: Make):
    server = make()
    identity = up(server)
    assert end_leftover(identity, grace_s=5) == 2  # server and guard
    assert not _processes(server.launch_id)


def test_a_reused_pid_is_not_touched(make: Make):
    server = make()
    identity = up(server)
    impostor = dataclasses.replace(identity, launch_id=uuid.uuid4().hex)
    assert end_leftover(impostor, grace_s=0.1) == 0
    assert server.alive()


@pytest.mark.parametrize(
    ("env", "kind", "words"),
    [
        ({"DOUBLE_FAIL": "oom"}, FailureKind.OOM, "memory"),
        ({"DOUBLE_FAIL": "bad_flag"}, FailureKind.BAD_CONFIG, "--no-such-flag"),
        ({"DOUBLE_FAIL": "model_missing"}, FailureKind.MODEL_MISSING, "model"),
        ({"DOUBLE_FAIL": "crash"}, FailureKind.CRASH, "exit code 1"),
        ({"DOUBLE_FAIL": "segfault"}, FailureKind.CRASH, "SIGSEGV"),
        ({"DOUBLE_FAIL": "wrong_model"}, FailureKind.WRONG_SERVER, "some-other-model"),
        ({"DOUBLE_FAIL": "wrong_version"}, FailureKind.WRONG_SERVER, "0.1.0, not 0.32.0"),
    ],
)
def test_failed_launches_have_a_kind(
    make: Make, env: dict[str, str], kind: FailureKind, words: str
):
    error = fails(make(**env))
    assert error.kind is kind
    assert words in error.reason


def test_budget_too_small_for_n(make: Make):
    error = fails(make(n=15, mnbt=8, DOUBLE_FAIL_IF="num_speculative_tokens<0"))
    assert error.kind is FailureKind.BUDGET
    assert error.evidence


def test_health_that_never_comes_is_a_timeout(make: Make):
    error = fails(make(timeout=0.6, DOUBLE_FAIL="never_healthy"))
    assert error.kind is FailureKind.TIMEOUT
    assert "0.6 s" in error.reason


def test_taken_port_is_said_before_anything_is_launched(make: Make):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        server = make(port=s.getsockname()[1])
        with pytest.raises(LaunchError) as e:
            server.start()
    assert e.value.kind is FailureKind.PORT
    assert not _processes(server.launch_id)


def test_somebody_elses_server_on_the_port_is_noticed(make: Make):
    port = free_port()
    mine = make(port=port)
    mine.plan = dataclasses.replace(mine.plan, argv=("/bin/sleep", "60"))  # listens nowhere
    mine.start()
    up(make(port=port))
    with pytest.raises(LaunchError) as e:
        mine.wait_ready(ignore)
    assert e.value.kind is FailureKind.PORT


def test_program_that_cannot_be_run(make: Make):
    server = make()
    server.plan = dataclasses.replace(server.plan, argv=("/nowhere/python", "x"))
    with pytest.raises(LaunchError, match="/nowhere/python could not be started") as e:
        server.start()
    assert e.value.kind is FailureKind.BAD_CONFIG
    assert not _processes(server.launch_id)


def test_secrets_are_masked_in_the_log(make: Make, tmp_path: Path):
    server = make(MY_TOKEN="tok-planted-1234")
    server.log_path.write_text("using tok-planted-1234 for the hub\n")
    assert server.log_tail() == ["using *** for the hub"]


def test_crash_in_the_middle_of_serving_is_seen(make: Make):
    server = make(DOUBLE_FAIL="crash_mid", DOUBLE_STEP_S="0.001")
    up(server)
    body = '{"model":"m","prompt":"x","max_tokens":50,"stream":true,"ignore_eos":true}'
    request = f"POST /v1/completions HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    with socket.create_connection(("127.0.0.1", server.plan.port)) as s:
        s.sendall(request.encode())
        while s.recv(65536):
            pass
    wait_until(lambda: not server.alive())
    error = server.failure(FailureKind.CRASH, "the server died while it was measured")
    assert error.kind is FailureKind.CRASH
    assert "while it was measured (exit code 1" in error.reason
