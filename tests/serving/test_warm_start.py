"""Warm starts over a stand-in for vLLM; with a real one: tests/test_real_server.py."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.engine.command import LAUNCH_VARIABLE, free_port, plan_launch
from autotune.engine.probe import VllmInfo
from autotune.errors import FailureKind, LaunchError
from autotune.serving import warm_start
from autotune.serving._fork_server import OPENMP, changes, leave_ports, openmp
from autotune.serving.process_tree import Identity, processes_of, start_ticks
from autotune.serving.server import Server
from autotune.serving.warm_start import WarmStart
from autotune.study.schema import ServerSpec
from autotune.tuning import recovery
from tests.paths import ROOT
from tests.standin import DUMPS, MODULE, write_vllm
from tests.studies import PATIENCE_S, autotune, owned, query, wait_until, write_study

double = pytest.mark.double


class Bench:
    """A stand-in, servers that are started from it, and what they inherited."""

    def __init__(self, folder: Path, **code: str) -> None:
        self.folder = folder
        self.dumps = folder / "dumps"
        self.dumps.mkdir()
        self.log = folder / "logs" / "fork-server.log"
        self.vllm = write_vllm(folder / "vllm", **code)
        self.info = VllmInfo("0.32.0", "vllm", sys.executable, "cuda", None, (), ())
        self.made: list[Server] = []
        self.warm = self.warm_start()

    def spec(self, **env: str) -> ServerSpec:
        # one that does not end at SIGTERM is waited for in vain, any other as long as it needs
        deaf = {"DOUBLE_STUBBORN": "1", "DOUBLE_CHILD": "stubborn"}.items() & env.items()
        return ServerSpec(
            command=(sys.executable, "-m", MODULE),
            model="m",
            env={"PYTHONPATH": str(self.vllm), DUMPS: str(self.dumps), **env},
            stop_timeout_s=0.5 if deaf else PATIENCE_S,
            health_timeout_s=PATIENCE_S,
        )

    def warm_start(self, **changes: Any) -> WarmStart:
        spec = self.spec().model_copy(update=changes)
        return WarmStart(spec, self.info, self.log)

    def make(self, warm: WarmStart | None, **env: str) -> Server:
        spec, launch_id = self.spec(**env), uuid.uuid4().hex
        plan = plan_launch(
            spec, {}, self.info, port=free_port(), launch_id=launch_id, resolve=lambda ref: ref
        )
        log = self.folder / "logs" / f"{launch_id}.log"  # a folder that the first server makes
        server = Server(
            plan, launch_id=launch_id, log_path=log, server=spec, info=self.info, warm=warm
        )
        self.made.append(server)
        return server

    def up(self, warm: WarmStart | None, **env: str) -> Server:
        server = self.make(warm, **env)
        server.start()
        assert server.wait_ready(lambda _: None) == "0.32.0"
        return server

    def is_warm(self, **env: str) -> bool:
        """Whether the next launch is; it is over afterwards."""
        server = self.up(self.warm, **env)
        assert server.stop().exit_code == 0, server.log_tail()
        return identity(server).warm

    def inherited(self, server: Server) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.dumps / server.launch_id).read_text())
        return found

    @property
    def fork_server(self) -> subprocess.Popen[bytes]:
        assert self.warm._process is not None
        return self.warm._process

    def close(self) -> None:
        for server in self.made:
            server.stop(force=True)
        self.warm.close()
        assert owned(os.getpid()) == []


def identity(server: Server) -> Identity:
    return server.identity


Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes the bench; whatever a test leaves is ended, and nothing is left."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made: list[Bench] = []

    def build(**code: str) -> Bench:
        made.append(Bench(tmp_path, **code))
        return made[-1]

    yield build
    for bench in made:
        bench.close()


@double
def test_a_forked_server_inherits_what_a_started_one_does(make: Make) -> None:
    bench = make()
    cold = bench.up(None)
    warm = [bench.up(bench.warm), bench.up(bench.warm)]  # side by side, from one fork server
    assert [identity(s).warm for s in (cold, *warm)] == [False, True, True]
    expected: dict[str, Any] | None = None
    for server in (cold, *warm):
        found = bench.inherited(server)
        environ = found["environ"]
        assert environ.pop(LAUNCH_VARIABLE) == server.launch_id
        assert environ.pop("VLLM_API_KEY") == server.plan.api_key
        assert environ["STANDIN_IMPORTED"] == "1"
        assert found["argv"].pop() == str(server.plan.port)
        assert found["files"].pop("1") == found["files"].pop("2") == str(server.log_path)
        expected = expected or found
        assert found == expected
        assert not any("Warning" in line for line in server.log_tail())
        assert "".join(server.log_tail()).count("imported") == (server is cold)


@double
def test_every_process_is_marked_and_none_shows_the_key(make: Make) -> None:
    bench = make()
    server = bench.up(bench.warm, DOUBLE_CHILD="plain")
    me = identity(server)
    found = server.processes()
    assert {me.pid, me.supervisor_pid} < {p.pid for p in found}
    assert len(found) == 3
    assert bench.fork_server.pid not in {p.pid for p in found}
    assert start_ticks(me.pid) == me.ticks is not None
    assert os.getsid(me.pid) == me.pid
    assert os.getsid(me.supervisor_pid) == me.supervisor_pid
    for process in found:
        environ = Path(f"/proc/{process.pid}/environ").read_text()
        assert server.launch_id in environ
        assert server.plan.api_key not in environ
    report = server.stop()
    assert (report.exit_code, report.killed) == (0, 0)
    assert not processes_of(server.launch_id)
    assert not psutil.pid_exists(me.supervisor_pid)


@double
def test_many_launches_leave_no_files_open(make: Make) -> None:
    bench = make()
    assert bench.is_warm()
    processes = [psutil.Process(), psutil.Process(bench.fork_server.pid)]
    before = [p.num_fds() for p in processes]
    assert all(bench.is_warm() for _ in range(5))
    assert [p.num_fds() for p in processes] == before
    assert processes[1].children() == []  # no zombies


@double
def test_an_environment_may_be_larger_than_a_packet(make: Make) -> None:
    bench = make()
    big = {f"BIG_{i}": "ä" * 50_000 for i in range(5)}
    server = bench.up(bench.warm, **big)
    assert identity(server).warm
    assert big.items() <= bench.inherited(server)["environ"].items()


@double
def test_a_killed_fork_server_costs_one_cold_launch(make: Make) -> None:
    bench = make()
    living = bench.up(bench.warm)
    bench.fork_server.kill()
    bench.fork_server.wait()
    assert not bench.is_warm()
    assert bench.is_warm()
    assert living.alive()  # whose fork server it was
    assert living.stop().exit_code == 0


@double
def test_a_fork_server_that_hangs_costs_one_cold_launch(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make()
    assert bench.is_warm()
    bench.fork_server.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(warm_start, "_FORK_S", 0.2)
    monkeypatch.setattr(warm_start, "_END_S", 0.2)
    assert not bench.is_warm()


@double
@pytest.mark.parametrize(
    "code",
    [
        "raise RuntimeError",
        "sys.exit(3)",
        "os.kill(os.getpid(), 9)",
        "import _thread, time; _thread.start_new_thread(time.sleep, (9,))",
        "import torch; torch.cuda.is_initialized = lambda: True",
    ],
)
def test_what_cannot_be_forked_is_launched_cold(make: Make, code: str) -> None:
    bench = make(on_import=f"if in_fork_server: {code}")
    assert not bench.is_warm()
    assert bench.warm._process is None
    bench.log.unlink()
    assert not bench.is_warm()
    assert not bench.log.exists()  # nor tried again


@double
def test_imports_that_never_end_are_not_waited_for(make: Make) -> None:
    bench = make(on_import="if in_fork_server: import time; time.sleep(600)")
    bench.warm = bench.warm_start(health_timeout_s=0.5)
    assert not bench.is_warm()
    assert bench.warm._process is None


@double
def test_what_only_fails_when_it_is_forked_fails_once(make: Make) -> None:
    bench = make(on_start="if forked: sys.exit(1)")
    server = bench.make(bench.warm)
    server.start()
    with pytest.raises(LaunchError) as e:
        server.wait_ready(lambda _: None)
    assert e.value.kind is FailureKind.CRASH
    assert server.stop().exit_code == 1
    assert not bench.is_warm()
    assert bench.warm._process is None


@double
def test_a_server_that_would_inherit_something_else_is_launched_cold(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make()
    assert bench.is_warm()
    assert not bench.is_warm(VLLM_CPU_OMP_THREADS_BIND="nobind")
    with monkeypatch.context() as m:
        m.chdir(bench.folder)
        assert not bench.is_warm()
    assert bench.is_warm()


@double
def test_a_study_may_want_cold_launches(make: Make) -> None:
    bench = make()
    bench.warm = bench.warm_start(launch="cold")
    assert not bench.is_warm()
    assert bench.warm._process is None


@double
def test_without_pidfds_every_launch_is_cold(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    with monkeypatch.context() as m:
        m.delattr(os, "pidfd_open")
        bench.warm = bench.warm_start()
    assert not bench.is_warm()
    assert bench.warm._process is None


class CpuBench(Bench):
    """One that calls its device a CPU; its runs come one after the other."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.info = dataclasses.replace(self.info, device="cpu")
        self.new_run()

    def new_run(self) -> None:
        self.warm.close()
        self.warm = self.warm_start()

    def given(self) -> dict[str, str]:
        """What the fork server has for a worker."""
        return openmp(psutil.Process(self.fork_server.pid).environ())


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CpuBench]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in OPENMP:
        monkeypatch.delenv(name, raising=False)
    bench = CpuBench(tmp_path)
    yield bench
    bench.close()


@double
def test_on_a_cpu_the_first_launch_tells_what_a_worker_is_given(cpu: CpuBench) -> None:
    # the stand-in is one process, whose variables are a worker's; forked, it has the fork server's
    first = cpu.up(cpu.warm, KMP_BLOCKTIME="1")
    assert not identity(first).warm
    assert cpu.warm._process is None
    second = cpu.up(cpu.warm)
    assert identity(second).warm
    assert cpu.given() == {"KMP_BLOCKTIME": "1"}
    assert "KMP_BLOCKTIME" not in cpu.inherited(second)["environ"]


@double
def test_what_a_worker_is_given_is_known_to_the_next_run(cpu: CpuBench) -> None:
    assert not cpu.is_warm()
    [kept] = (cpu.folder / "cache" / "dflash-autotune").glob("worker-*.json")
    assert kept.read_text() == "{}"
    kept.write_text('{"KMP_BLOCKTIME": "1", "HOME": "/"}')
    cpu.new_run()
    assert cpu.is_warm()
    assert cpu.given() == {"KMP_BLOCKTIME": "1"}  # and nothing that is no business of OpenMP
    for text in ("{", "[]", '{"KMP_BLOCKTIME": 1}'):
        kept.write_text(text)
        cpu.new_run()
        assert not cpu.is_warm()
        assert kept.read_text() == "{}"  # learnt again


@double
def test_what_a_worker_is_given_may_have_changed(cpu: CpuBench) -> None:
    assert not cpu.is_warm()
    cpu.new_run()
    forked = cpu.up(cpu.warm)
    assert identity(forked).warm
    before = cpu.fork_server
    # as vLLM's worker, which it spawns where the fork server has something else for it
    environ = {**os.environ, "OMP_PLACES": "{0}"}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, env=environ) as spawned:
        cpu.warm.learn([*forked.processes(), psutil.Process(spawned.pid)])
    assert before.poll() is not None
    assert forked.alive()
    assert forked.stop().exit_code == 0
    assert cpu.is_warm()
    assert cpu.given() == {"OMP_PLACES": "{0}"}
    cpu.new_run()
    assert cpu.is_warm()
    assert cpu.given() == {"OMP_PLACES": "{0}"}


@double
def test_a_version_that_was_not_tested_starts_cold(make: Make) -> None:
    bench = make()
    assert bench.warm.untested is None
    tested = bench.info
    bench.info = replace(tested, version="0.33.0")
    untested = bench.warm_start()
    assert untested.untested == (
        "every server starts cold: warm starts were tested with vLLM 0.26.0 and 0.32.0, and this "
        "is 0.33.0"
    )
    bench.info = tested  # the stand-in's own, which a server is checked against
    bench.warm = untested
    assert not bench.is_warm()
    assert bench.warm._process is None
    assert not bench.log.exists()
    for version, launch in (("0.33.0", "cold"), ("0.26.0+cu129", "warm"), (None, "warm")):
        bench.info = replace(tested, version=version)
        assert bench.warm_start(launch=launch).untested is None


@double
def test_a_run_says_once_that_a_version_was_not_tested(tmp_path: Path) -> None:
    vllm = write_vllm(tmp_path / "vllm", version="0.33.0")
    study = write_study(
        tmp_path,
        server__command=[sys.executable, "-m", MODULE],
        server__env={"PYTHONPATH": str(vllm), "DOUBLE_VERSION": "0.33.0"},
    )
    done = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()).count("every server starts cold: warm starts were") == 1
    warm = query(tmp_path, "select json_extract(identity, '$.warm') from autotune_launches")
    assert warm == [(0,), (0,)]


@double
def test_a_command_that_is_no_python_is_launched_cold(make: Make) -> None:
    bench = make()
    plan = bench.make(None).plan
    for argv in (("/usr/bin/env", *plan.argv), (plan.argv[0], "-u", *plan.argv[1:])):
        bench.warm.prepare(dataclasses.replace(plan, argv=argv), plan.env)
        assert bench.warm._process is None


@double
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_supervisor_takes_its_server_along(make: Make, sent: signal.Signals) -> None:
    bench = make()
    server = bench.up(bench.warm, DOUBLE_CHILD="stubborn")
    os.kill(identity(server).supervisor_pid, sent)
    wait_until(lambda: not server.alive())
    server.stop()
    assert not processes_of(server.launch_id)
    assert identity(bench.up(bench.warm, DOUBLE_CHILD="stubborn")).warm


@double
def test_stop_may_be_interrupted_after_the_supervisor_has_ended(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    bench = make()
    server = bench.up(bench.warm)
    with monkeypatch.context() as m:
        m.setattr("autotune.serving.server._prove_port", interrupted)
        with pytest.raises(KeyboardInterrupt):
            server.stop()
    assert server.stop(force=True).killed == 0


@double
def test_ctrl_c_during_the_imports(make: Make) -> None:
    bench = make(
        on_import="if in_fork_server: open('importing', 'w'); import time; time.sleep(600)"
    )
    here = Path.cwd()
    os.chdir(bench.folder)
    server = bench.make(bench.warm)

    def press() -> None:
        wait_until(Path("importing").exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt), bench.warm:
            server.start()
    finally:
        thread.join()
        os.chdir(here)
        server.stop()
    assert owned(os.getpid()) == []


@double
def test_ctrl_c_during_a_fork(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> dict[str, object]:
        raise KeyboardInterrupt

    bench = make()
    assert bench.is_warm()
    server = bench.make(bench.warm)
    with monkeypatch.context() as m:
        m.setattr(WarmStart, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            server.start()
    server.stop()
    wait_until(lambda: [p.pid for p in owned(os.getpid())] == [bench.fork_server.pid])


@double
def test_the_end_of_a_run_is_the_end_of_its_fork_server(make: Make) -> None:
    bench = make()
    with bench.warm:
        server = bench.up(bench.warm)
        pid = bench.fork_server.pid
        lines = "\n".join(recovery.living_lines(bench.folder / "none.db"))
        assert f"what warm starts are forked from; owner: autotune {os.getpid()}" in lines
    assert not psutil.pid_exists(pid)
    assert server.alive()
    bench.warm.close()  # again


@double
@pytest.mark.parametrize("stage", ["importing", "ready", "forked", "stopped"])
def test_nothing_outlives_a_killed_owner(tmp_path: Path, stage: str) -> None:
    code = {"on_import": "if in_fork_server: open('importing', 'w'); import time; time.sleep(600)"}
    folder = tmp_path / "bench"
    folder.mkdir()
    program = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from tests.serving.test_warm_start import Bench\n"
        f"bench = Bench(Path({str(folder)!r}), **{code if stage == 'importing' else {}})\n"
        "os.chdir(bench.folder)\n"
        f"server = bench.up(bench.warm, DOUBLE_CHILD='stubborn', DOUBLE_STUBBORN='1')\n"
        "second = bench.make(bench.warm)\n"
        "second.start()\n"
        + ("server.stop()\nsecond.stop()\n" if stage == "stopped" else "")
        + ("second.wait_ready(lambda _: None)\n" if stage == "ready" else "")
        + "Path('forked').touch()\n"
        "time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    wait_until((folder / ("importing" if stage == "importing" else "forked")).exists)
    processes = {"importing": 1, "stopped": 1}.get(stage, 1 + 3 + 2)
    wait_until(lambda: len(owned(owner.pid)) >= processes)
    owner.kill()
    owner.wait()
    # 10 s are promised where the machine is not busy with other tests
    wait_until(lambda: not owned(owner.pid))


@double
def test_a_fork_server_whose_owner_died_before_it_looked_ends(make: Make) -> None:
    bench = make()
    done = subprocess.run(
        [sys.executable, str(warm_start.FORK_SERVER), "1", "0", MODULE, "0"],
        env={**os.environ, "PYTHONPATH": str(bench.vllm)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_the_imports_change_in_an_environment() -> None:
    before = {"KEPT": "1", "CHANGED": "1", "GONE": "1"}
    after = {"KEPT": "1", "CHANGED": "2", "NEW": "1"}
    assert changes(before, after) == {"CHANGED": "2", "GONE": None, "NEW": "1"}


@pytest.mark.parametrize(
    "name",
    [
        "serving/_fork_server.py",
        "serving/supervisor.py",
        "engine/_probe.py",
        "bench/_vllm_bench.py",
    ],
)
def test_what_runs_in_the_vllms_python_may_be_read_by_an_older_one(name: str) -> None:
    source = (ROOT / "autotune" / name).read_text()
    assert ast.parse(source, feature_version=(3, 10)).body


def test_a_forked_engine_leaves_the_ports_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as unbound:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = os.fork()
            if pid == 0:
                try:
                    leave_ports()
                    files = [f"/proc/self/fd/{s.fileno()}" for s in (server, unbound)]
                    theirs.send(json.dumps([str(Path(f).readlink()) for f in files]).encode())
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            ours.settimeout(0)
            left, kept = json.loads(ours.recv(1024))
        assert left == os.devnull
        assert kept.startswith("socket:")
        with socket.create_connection(server.getsockname()):  # of which the parent knows nothing
            pass
