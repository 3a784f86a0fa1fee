from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.errors import FailureKind
from autotune.serving.gpu_memory import SLACK_MIB, GpuMemory, held
from autotune.serving.logs import LogFolder
from autotune.storage.store import opened
from autotune.tuning import recovery, supervise
from tests.studies import (
    PATIENCE_S,
    autotune,
    finished,
    processes_of,
    start_autotune,
    wait_for_event,
    wait_until,
    write_study,
)

SLOW = {"DOUBLE_STEP_S": "1", "DOUBLE_STUBBORN": "1", "DOUBLE_CHILD": "stubborn"}


def pids(processes: list[psutil.Process]) -> set[int]:
    return {p.pid for p in processes}


@pytest.mark.double
def test_ps_shows_what_runs_and_reap_leaves_it_alone(tmp_path: Path) -> None:
    study = write_study(tmp_path, server__env=SLOW)
    run = start_autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    try:
        wait_for_event(tmp_path, "healthy", 1)
        shown = autotune("ps", cwd=tmp_path).stdout
        assert f"trial 0 of double; owner: autotune {run.pid}\n          3 processes, " in shown
        assert all(len(line) <= 80 for line in shown.splitlines())
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        shown = autotune("ps", cwd=elsewhere).stdout
        assert "not in this --db" in shown
        assert all(len(line) <= 80 for line in shown.splitlines())
        [found] = [
            x
            for x in json.loads(autotune("ps", "--json", cwd=elsewhere).stdout)
            if x["owner"] == run.pid
        ]
        assert "tests.faults.start" in found["owner_command"]
        assert found["owner_folder"] == str(tmp_path)
        before = pids(processes_of(tmp_path))
        reaped = autotune("reap", cwd=tmp_path)
        assert f"left alone: it belongs to autotune {run.pid}" in reaped.stdout
        assert pids(processes_of(tmp_path)) == before != set()
    finally:
        run.kill()
        run.communicate()


@pytest.mark.double
def test_reap_ends_what_nobody_owns(tmp_path: Path) -> None:
    study = write_study(tmp_path, server__env=SLOW)
    run = start_autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    wait_for_event(tmp_path, "healthy", 1)
    [launch] = [x for x in recovery.living_launches() if x.owner == run.pid]
    supervisor = next(p for p in launch.processes if "supervisor.py" in " ".join(p.cmdline()))
    run.send_signal(signal.SIGSTOP)
    supervisor.kill()
    run.kill()  # nobody is left to end it
    run.communicate()
    assert "owner: nobody" in autotune("ps", cwd=tmp_path).stdout
    done = autotune("reap", cwd=tmp_path)
    assert done.returncode == 0
    assert f"{launch.launch_id[:8]}  ended 2 processes" in done.stdout
    assert not processes_of(tmp_path)
    assert launch.launch_id[:8] not in autotune("reap", cwd=tmp_path).stdout
    with opened(tmp_path / "autotune.db") as store:
        assert store.launches.unended() == []


def test_a_full_gpu_is_told_from_another_programs() -> None:
    idle, full = GpuMemory(500, {1: 500}), GpuMemory(9000, {1: 500, 2: 8500})
    big = 10 * SLACK_MIB
    assert held([idle], [full], [idle], {2}) == {}
    assert held([idle], [full], [full], {2}) == {0: 8500}
    assert held([idle, idle], [idle, full], [full, full], {2}) == {1: 8500}  # 0 is not its GPU
    # a program that came while the server ran, or after it, or grew
    assert held([idle], [full], [GpuMemory(500 + big, {1: 500, 3: big})], {2}) == {}
    came = GpuMemory(9000 + big, {1: 500, 2: 8500, 3: big})
    assert held([idle], [came], [GpuMemory(500 + big, {1: 500, 3: big})], {2}) == {}
    assert held([idle], [full], [GpuMemory(500 + big, {1: 500 + big})], {2}) == {}
    # a driver that names nobody, or pids of another namespace
    assert held([GpuMemory(500, {})], [GpuMemory(9000, {})], [GpuMemory(9000, {})], {2}) == {
        0: 8500
    }
    assert held([idle], [full], [full], {77}) == {0: 8500}


def test_old_logs_go_when_they_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.serving.logs.MOST", 3)
    monkeypatch.setattr("autotune.serving.logs.MOST_BYTES", 100)
    folder = LogFolder(tmp_path)
    for i, size in enumerate([10, 10, 10, 10, 95]):
        path = folder.path(f"{i}.log")
        path.write_bytes(b"x" * size)
        os.utime(path, (i, i))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2.log", "3.log", "4.log"]
    folder.path("5.log")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4.log"]


@pytest.mark.double
def test_a_locked_database_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.storage.store.BUSY_TIMEOUT_S", 0.2)
    turns = tmp_path / "turns"
    turns.write_text('{"DOUBLE_STEP_S": "0.2"}\n')  # it still measures when it is locked
    study = write_study(tmp_path, server__env={"DOUBLE_TURNS": str(turns)})
    opens: list[object] = []
    held_s = threading.Event()

    def counted(*args: Any, **options: Any) -> Any:
        opens.append(args)
        return opened(*args, **options)

    monkeypatch.setattr(supervise, "opened", counted)

    def hold() -> None:
        wait_for_event(tmp_path, "warm", 1)
        c = sqlite3.connect(tmp_path / "autotune.db", timeout=PATIENCE_S)
        c.execute("begin exclusive")
        before = len(opens)
        wait_until(lambda: len(opens) > before)  # longer than it is waited for at once
        held_s.set()
        c.rollback()
        c.close()

    thread = threading.Thread(target=hold)
    thread.start()
    done = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    thread.join()
    assert held_s.is_set()
    assert done.returncode == 0, done.stderr
    assert "another program holds it locked" in done.stdout
    assert finished(tmp_path) == 2
    assert not processes_of(tmp_path)


@pytest.mark.double
def test_a_database_that_stays_locked_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.storage.store.BUSY_TIMEOUT_S", 0.2)
    monkeypatch.setattr(supervise, "LOCKED_S", 0.5)
    study = write_study(tmp_path)
    assert autotune("run", str(study), "--trials", "1", cwd=tmp_path).returncode == 0
    c = sqlite3.connect(tmp_path / "autotune.db")
    c.execute("begin exclusive")
    done = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    c.close()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "another program holds it locked" in done.stderr
    assert finished(tmp_path) == 1


@pytest.mark.double
def test_a_full_disk_ends_the_run_and_costs_no_trial(tmp_path: Path) -> None:
    study = write_study(
        tmp_path, server__env={"DOUBLE_FAIL": "disk", "DOUBLE_FAIL_ONCE": str(tmp_path / "once")}
    )
    done = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert done.returncode == 1
    assert "trial 0: the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1
    assert finished(tmp_path) == 0
    done = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert finished(tmp_path) == 2


@pytest.mark.double
def test_a_machine_that_slept_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps = iter([0.0, 3600.0])  # before and after warm-up and measurement, which are one
    monkeypatch.setattr("autotune.bench.sending._asleep", lambda: next(naps, 3600.0))
    study = write_study(tmp_path)
    done = autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the machine slept for 3600 s" in done.stdout
    with opened(tmp_path / "autotune.db") as store:
        first, second = store.launches.of_study("double")
    assert (first.failure_kind, first.values) == (str(FailureKind.CLOCK), None)
    assert second.values
