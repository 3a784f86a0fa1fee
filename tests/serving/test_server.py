from __future__ import annotations

import contextlib
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

from autotune.engine.command import LAUNCH_VARIABLE, free_port, plan_launch
from autotune.engine.probe import VllmInfo
from autotune.errors import FailureKind, LaunchError, StopError, UserError
from autotune.serving.gpu_memory import SLACK_MIB, gpu_memory
from autotune.serving.process_tree import Identity, end_orphan, processes_of, start_ticks
from autotune.serving.server import Server
from autotune.serving.supervisor import HEAD_BYTES, LOG_BYTES, TAIL_BYTES
from autotune.study.schema import ServerSpec
from tests.paths import TESTS
from tests.studies import PATIENCE_S, wait_until

pytestmark = pytest.mark.double

DOUBLE = TESTS / "double.py"
INFO = VllmInfo("0.32.0", None, sys.executable, None, None, (), ())
Make = Callable[..., Server]


def ignore(_: float) -> None:
    pass


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes servers from the double; whatever a test leaves is ended."""
    made: list[Server] = []

    def build(
        *,
        port: int | None = None,
        n: int = 0,
        mnbt: int = 2048,
        timeout: float = PATIENCE_S,
        lease_s: float | None = None,
        grace: float | None = None,
        **env: str,
    ) -> Server:
        # those that do not end at SIGTERM are waited for in vain, all others as long as they need
        deaf = {"DOUBLE_STUBBORN": "1", "DOUBLE_CHILD": "stubborn"}.items() & env.items()
        spec = ServerSpec(
            command=(sys.executable, str(DOUBLE)),
            model="m",
            env=env,
            speculative={"model": "d"},
            stop_timeout_s=grace or (0.2 if deaf else PATIENCE_S),
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
        server = Server(
            plan, launch_id=launch_id, log_path=log, server=spec, info=INFO, lease_s=lease_s
        )
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
    assert not processes_of(server.launch_id)
    return e.value


def test_from_start_to_proof_of_death(make: Make):
    server = make(n=3)
    identity = up(server)
    assert server.alive()
    assert start_ticks(identity.pid) == identity.ticks is not None
    assert os.getsid(identity.pid) == identity.pid != os.getsid(0)  # no Ctrl-C reaches it
    assert os.getsid(identity.supervisor_pid) == identity.supervisor_pid
    assert stat.S_IMODE(server.log_path.stat().st_mode) == 0o600
    report = server.stop()
    assert (report.exit_code, report.killed) == (0, 0)
    assert not server.alive()
    assert not psutil.pid_exists(identity.supervisor_pid)
    assert not processes_of(server.launch_id)
    assert server.stop() is report


def test_waiting_is_reported(make: Make):
    seen: list[float] = []
    server = make(DOUBLE_DELAY_S="2")
    server.start()
    server.wait_ready(seen.append)
    assert len(seen) >= 2
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("env", "grace"),
    [
        ({"DOUBLE_STUBBORN": "1"}, 0.2),
        ({"DOUBLE_CHILD": "stubborn"}, 6),  # half of it is the API process's, which ends by itself
        ({"DOUBLE_CHILD": "plain"}, PATIENCE_S),
    ],
)
def test_stop_leaves_nothing(make: Make, env: dict[str, str], grace: float):
    server = make(grace=grace, **env)
    up(server)
    report = server.stop()
    assert report.killed == (0 if env.get("DOUBLE_CHILD") == "plain" else 1)
    assert not processes_of(server.launch_id)


def test_stop_by_force_does_not_wait(make: Make):
    server = make(DOUBLE_STUBBORN="1")
    up(server)
    assert server.stop(force=True).exit_code == -signal.SIGKILL


def test_child_of_a_killed_api_process_is_ended(make: Make):
    server = make(DOUBLE_CHILD="stubborn")
    identity = up(server)
    os.kill(identity.pid, signal.SIGKILL)
    wait_until(lambda: not server.alive())
    assert processes_of(server.launch_id)
    error = server.failure(FailureKind.CRASH, "the server died")
    assert "SIGKILL" in error.reason
    server.stop()
    assert not processes_of(server.launch_id)


def test_stopped_process_is_ended(make: Make):
    server = make(grace=0.2)
    identity = up(server)
    os.kill(identity.pid, signal.SIGSTOP)
    assert server.stop().killed == 1


def test_server_is_ended_without_its_supervisor(make: Make):
    server = make(DOUBLE_STUBBORN="1", DOUBLE_CHILD="stubborn")
    identity = up(server)
    os.kill(identity.supervisor_pid, signal.SIGKILL)
    wait_until(lambda: not server.alive())
    assert server.stop().killed == 2
    assert not processes_of(server.launch_id)


def test_a_server_lives_as_long_as_its_lease_is_renewed(make: Make):
    server = make(lease_s=6)
    server.start()
    for _ in range(35):
        time.sleep(0.2)
        assert server.renew()
    assert server.alive()
    wait_until(lambda: not server.alive())
    wait_until(lambda: not processes_of(server.launch_id))
    server.stop()
    assert not server.renew()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_supervisor_ends_the_tree(make: Make, number: int):
    server = make(DOUBLE_STUBBORN="1")
    identity = up(server)
    os.kill(identity.supervisor_pid, number)
    wait_until(lambda: not processes_of(server.launch_id))
    server.stop()


OWNER = """
import sys, time, uuid
from pathlib import Path
from autotune.engine.command import free_port, plan_launch
from autotune.engine.probe import VllmInfo
from autotune.serving.server import Server
from autotune.study.schema import ServerSpec

command = (sys.executable, {double!r})
spec = ServerSpec(command=command, model="m", env={env!r}, stop_timeout_s={grace})
info = VllmInfo("0.32.0", None, sys.executable, None, None, (), ())
plan = plan_launch(spec, {{}}, info, port=free_port(), launch_id={launch!r}, resolve=str)
server = Server(plan, launch_id={launch!r}, log_path=Path({log!r}), server=spec, info=info)
print(server.start().supervisor_pid, flush=True)
server.wait_ready(lambda s: None)
print("ready", flush=True)
time.sleep(1200)
"""


@pytest.mark.parametrize(
    ("when", "number", "grace"),
    [
        ("started", signal.SIGKILL, 0.2),
        ("ready", signal.SIGTERM, 0.2),
        ("ready", signal.SIGKILL, 1200),  # too long for an owner that is dead
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
    wait_until(lambda: not processes_of(launch))


def test_orphan_of_a_dead_owner_and_supervisor_is_ended(make: Make):
    server = make(DOUBLE_STUBBORN="1", DOUBLE_CHILD="stubborn")
    identity = up(server)
    other = make()
    up(other)
    os.kill(identity.supervisor_pid, signal.SIGKILL)
    elsewhere = dataclasses.replace(identity, boot_id="another boot")
    assert end_orphan(elsewhere, grace_s=0.1) == 0
    assert processes_of(server.launch_id)
    assert end_orphan(identity, grace_s=0.1) == 2
    assert not processes_of(server.launch_id)
    assert end_orphan(identity, grace_s=0.1) == 0
    assert other.alive()


def test_orphan_with_a_supervisor_is_ended(make: Make):
    server = make()
    identity = up(server)
    assert end_orphan(identity, grace_s=5) == 2  # server and supervisor
    assert not processes_of(server.launch_id)


def test_a_reused_pid_is_not_touched(make: Make):
    server = make()
    identity = up(server)
    # what an earlier launch had under the same pids, and what a crash left of the ledger
    earlier = {"supervisor_ticks": identity.supervisor_ticks - 1, "ticks": None, "cgroup": None}
    impostor = dataclasses.replace(identity, launch_id=uuid.uuid4().hex, **earlier)
    assert end_orphan(impostor, grace_s=0.1) == 0
    assert server.alive()


def test_the_ledger_finds_what_lost_its_mark(make: Make):
    server = make()
    server.plan = dataclasses.replace(
        server.plan, argv=("/usr/bin/env", "-u", LAUNCH_VARIABLE, *server.plan.argv)
    )
    identity = server.start()
    wait_until(lambda: LAUNCH_VARIABLE not in psutil.Process(identity.pid).environ())
    os.kill(identity.supervisor_pid, signal.SIGSTOP)
    assert [p.pid for p in processes_of(server.launch_id)] == [identity.supervisor_pid]
    assert end_orphan(identity, grace_s=0.1) == 2
    with contextlib.suppress(psutil.NoSuchProcess):  # or nobody has collected it yet
        assert psutil.Process(identity.pid).status() == psutil.STATUS_ZOMBIE


def test_a_control_group_of_its_own_where_that_is_allowed(make: Make):
    server = make(DOUBLE_CHILD="plain")
    identity = up(server)
    if identity.cgroup is None:
        pytest.skip("this user may make no control group (cgroup v2) here")
    inside = set(map(int, Path(identity.cgroup, "cgroup.procs").read_text().split()))
    assert inside == {p.pid for p in server.processes()} - {identity.supervisor_pid}
    server.stop()
    assert not Path(identity.cgroup).exists()


def used_gpu_mib() -> int:
    return gpu_memory()[0].used_mib


@pytest.mark.skipif(not gpu_memory(), reason="no NVIDIA GPU here, or no NVML")
@pytest.mark.parametrize("force", [False, True])
def test_a_gpus_memory_is_back_when_stop_returns(make: Make, force: bool):
    before = used_gpu_mib()
    server = make(DOUBLE_GPU_MIB="8192")
    up(server)
    assert used_gpu_mib() > before + 8192
    server.stop(force=force)
    assert used_gpu_mib() < before + SLACK_MIB


@pytest.mark.skipif(not gpu_memory(), reason="no NVIDIA GPU here, or no NVML")
def test_gpu_memory_that_does_not_come_back_is_said(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("autotune.serving.server._GPU_S", 0.5)
    server, other = make(DOUBLE_GPU_MIB="2048"), make(DOUBLE_GPU_MIB="4096")
    server.start()
    # holds it next to the server, but is none of its processes: like a driver that frees nothing
    server.gpus_before = (dataclasses.replace(server.gpus_before[0], by_process={}),)
    up(other)
    server.wait_ready(ignore)
    monkeypatch.setattr(
        "autotune.serving.server.gpu_memory",
        lambda: tuple(dataclasses.replace(g, by_process={}) for g in gpu_memory()),
    )
    with pytest.raises(StopError, match=r"GPU 0 holds .* MiB more than before the launch"):
        server.stop()
    other.stop()
    server.stop()


def test_a_huge_log_keeps_its_beginning_and_its_end(tmp_path: Path):
    log = tmp_path / "log"
    with log.open("ab") as f:
        f.write(b"first words\n" + b"x" * LOG_BYTES + b"\nlast words\n")
        code = "import autotune.serving.supervisor as g; g.Supervisor(None).trim_log()"
        subprocess.run([sys.executable, "-c", code], stderr=f, check=True)
        f.write(b"more\n")
    text = log.read_bytes()
    assert HEAD_BYTES + TAIL_BYTES < len(text) < HEAD_BYTES + TAIL_BYTES + 200
    assert text.startswith(b"first words\n")
    assert text.endswith(b"\nlast words\nmore\n")
    assert f"left out {LOG_BYTES + 24 - HEAD_BYTES - TAIL_BYTES} bytes".encode() in text


def test_a_log_that_cannot_be_written_is_one_line(make: Make, tmp_path: Path):
    server = make()
    (tmp_path / "file").touch()
    server.log_path = tmp_path / "file" / "log"
    with pytest.raises(UserError, match="file/log: cannot be written: File exists"):
        server.start()


@pytest.mark.parametrize(
    ("env", "kind", "words"),
    [
        ({"DOUBLE_FAIL": "oom"}, FailureKind.OOM, "memory"),
        ({"DOUBLE_FAIL": "bad_flag"}, FailureKind.BAD_CONFIG, "--no-such-flag"),
        ({"DOUBLE_FAIL": "model_missing"}, FailureKind.MODEL_MISSING, "model"),
        ({"DOUBLE_FAIL": "crash"}, FailureKind.CRASH, "exit code 1"),
        ({"DOUBLE_FAIL": "segfault"}, FailureKind.CRASH, "SIGSEGV"),
        ({"DOUBLE_FAIL": "wrong_model"}, FailureKind.WRONG_SERVER, "some-other-model"),
        ({"DOUBLE_OWNER": "sglang"}, FailureKind.WRONG_SERVER, "is SGLang, not vLLM"),
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
    assert not processes_of(server.launch_id)


def test_somebody_elses_server_on_the_port_is_noticed(make: Make):
    port = free_port()
    mine = make(port=port)
    mine.plan = dataclasses.replace(mine.plan, argv=("/bin/sleep", "1200"))  # listens nowhere
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
    assert not processes_of(server.launch_id)


def test_secrets_are_masked_in_the_log(make: Make, tmp_path: Path):
    server = make(MY_TOKEN="tok-planted-1234")
    server.log_path.write_text("using tok-planted-1234 for the hub\n")
    assert server.log_tail() == ["using *** for the hub"]


def test_crash_in_the_middle_of_serving_is_seen(make: Make):
    server = make(DOUBLE_FAIL="crash_mid", DOUBLE_STEP_S="0.001")
    up(server)
    body = '{"model":"m","prompt":"x","max_tokens":50,"stream":true,"ignore_eos":true}'
    head = f"authorization: Bearer {server.plan.api_key}\r\ncontent-length: {len(body)}"
    request = f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n{body}"
    with socket.create_connection(("127.0.0.1", server.plan.port)) as s:
        s.sendall(request.encode())
        while s.recv(65536):
            pass
    wait_until(lambda: not server.alive())
    error = server.failure(FailureKind.CRASH, "the server died while it was measured")
    assert error.kind is FailureKind.CRASH
    assert "while it was measured (exit code 1" in error.reason
