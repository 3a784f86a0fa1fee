"""Prelaunched servers, over a stand-in for vLLM."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from autotune.serving import machine
from autotune.serving.gpu_memory import GpuMemory
from autotune.tuning import room
from tests.standin import MODULE, write_vllm
from tests.studies import (
    UNENDED,
    autotune,
    finished,
    owned,
    query,
    start_autotune,
    trials,
    wait_for_event,
    wait_until,
    write_study,
)
from tests.tuning.test_parallel import in_turn

pytestmark = pytest.mark.double

FLAGS: dict[str, object] = {
    "max-num-seqs": 2,
    "kv-cache-memory-bytes": 2**30,
    "gpu-memory-utilization": 0.1,
}


def write(
    folder: Path, *, env: dict[str, str] | None = None, flags: dict[str, object] = FLAGS
) -> Path:
    """A study whose servers may be prelaunched."""
    vllm = write_vllm(folder / "vllm")
    return write_study(
        folder,
        server__command=[sys.executable, "-m", MODULE],
        server__env={"PYTHONPATH": str(vllm), **(env or {})},
        server__flags=flags,
        server__ahead=3,
    )


def events(folder: Path, what: str) -> dict[str, float]:
    """When something happened to each launch that it happened to."""
    rows = query(folder, "select launch_id, at, what from autotune_events order by id")
    return {str(launch): float(str(at)) for launch, at, found in rows if found == what}


def beside(folder: Path) -> list[int]:
    """How many servers idled beside each measured launch, in the order of the trials."""
    sql = "select quality from autotune_launches where quality is not null order by trial, attempt"
    return [json.loads(str(q))["beside"] for (q,) in query(folder, sql)]


def test_nothing_starts_while_something_is_measured(tmp_path: Path) -> None:
    study = write(tmp_path, env={"DOUBLE_DELAY_S": "0.5"})
    done = autotune("run", str(study), "--trials", "12", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [t["state"] for t in trials(tmp_path)] == ["complete"] * 12

    ahead = events(tmp_path, "prelaunching")
    assert ahead.keys() == events(tmp_path, "trial begins").keys()  # each was used
    # the first launch shows how much room one takes, then come batches of four
    found = beside(tmp_path)
    assert found[0] == 0
    assert max(found) == 3
    assert sum(later == before - 1 for before, later in itertools.pairwise(found)) >= 6
    begins = [*events(tmp_path, "launching").values(), *ahead.values()]
    healthy, warm = events(tmp_path, "healthy"), events(tmp_path, "warm")
    for launch, turn in events(tmp_path, "trial begins").items():
        assert healthy[launch] < turn
    for launch, end in events(tmp_path, "measured").items():
        assert not any(warm[launch] < at < end for at in [*begins, *healthy.values()])

    assert query(tmp_path, UNENDED) == [(0,)]
    assert owned(os.getpid()) == []
    # what the launches took adds up to the run, however many started together
    view = json.loads(autotune("status", "--time", "--json", cwd=tmp_path).stdout)
    (((first, last),)) = query(
        tmp_path, "select min(planned_at), max(ended_at) from autotune_launches"
    )
    seconds = [t["total"] - t["seconds"]["tuner"] for t in view["trials"]]
    assert sum(seconds) <= float(str(last)) - float(str(first))
    adopted = [t for t in view["trials"] if t["seconds"]["spawn"] is None]
    assert len(adopted) == len(ahead)
    table = autotune("status", "--time", cwd=tmp_path).stdout
    numbers = ", ".join(str(t["trial"]) for t in adopted)
    assert f"Prelaunched, together with an earlier one of these: {numbers}." in " ".join(
        table.split()
    )


def test_the_confirmation_starts_only_when_the_search_is_over(tmp_path: Path) -> None:
    study = write(tmp_path)
    done = autotune("run", str(study), "--trials", "12", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = trials(tmp_path)
    confirming = [t["trial"] for t in rows if t["confirms"] is not None]
    assert confirming == list(range(12 - len(confirming), 12))
    assert len(confirming) >= 2
    measured = events(tmp_path, "measured")
    launches = dict(query(tmp_path, "select launch_id, trial from autotune_launches"))
    last_search = max(at for x, at in measured.items() if launches[x] not in confirming)
    begun = events(tmp_path, "launching") | events(tmp_path, "prelaunching")
    assert all(at > last_search for x, at in begun.items() if launches[x] in confirming)
    # no point is searched twice but as a replicate
    points = [json.dumps(t["params"]) for t in rows if t["replicates"] is t["confirms"] is None]
    assert len(set(points)) == len(points)


def test_one_that_fails_in_company_is_launched_again_by_itself(tmp_path: Path) -> None:
    study = write(
        tmp_path,
        env={
            "DOUBLE_FAIL": "crash",
            "DOUBLE_FAIL_IF": "num_speculative_tokens==3",  # the second seed
            "DOUBLE_FAIL_ONCE": str(tmp_path / "failed"),
        },
    )
    done = autotune("run", str(study), "--trials", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [t["state"] for t in trials(tmp_path)] == ["complete"] * 4
    assert (tmp_path / "failed").exists()
    sql = "select what, trial from autotune_events where what like 'failed next to other servers%'"
    assert len(query(tmp_path, sql)) == 1
    assert query(tmp_path, "select count(*) from autotune_launches where trial = -1") == [(1,)]
    assert query(tmp_path, UNENDED) == [(0,)]
    assert owned(os.getpid()) == []


def test_those_beside_one_that_fails_are_measured(tmp_path: Path) -> None:
    env = {"DOUBLE_FAIL": "crash", "DOUBLE_FAIL_IF": "num_speculative_tokens==15"}  # first seed
    study = write(tmp_path, env=env)
    done = autotune("run", str(study), "--trials", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = trials(tmp_path)
    assert [t["state"] for t in rows] == ["complete", "failed", *["complete"] * 3]
    assert rows[1]["failure_kind"] == "crash"
    assert len(events(tmp_path, "trial begins")) >= 1
    sql = "select trial, count(*) from autotune_launches where trial >= 0 group by trial"
    assert query(tmp_path, sql) == [(0, 1), (1, 2), (2, 1), (3, 1), (4, 1)]
    assert query(tmp_path, UNENDED) == [(0,)]
    assert owned(os.getpid()) == []


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU that nobody uses, and much memory."""
    found = [{"name": "NVIDIA H200", "memory_mib": 141 << 10, "driver": "580.1"}]
    monkeypatch.setattr(machine, "gpus", lambda: found)
    monkeypatch.setattr(room, "gpu_memory", lambda: (GpuMemory(600, {}),))
    monkeypatch.setattr(room, "available_memory", lambda: 64 << 30)


@pytest.mark.usefixtures("gpu")
def test_with_fixed_memory_the_first_launch_starts_the_next_ones_with_it(tmp_path: Path) -> None:
    study = write(tmp_path)
    done = autotune("run", str(study), "--trials", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [t["state"] for t in trials(tmp_path)] == ["complete"] * 4
    assert beside(tmp_path) == [3, 2, 1, 0]
    healthy, warm = events(tmp_path, "healthy"), events(tmp_path, "warm")
    assert len(warm) == 4
    assert max(healthy.values()) < min(warm.values())
    assert query(tmp_path, UNENDED) == [(0,)]
    assert owned(os.getpid()) == []


def ends(folder: Path) -> list[tuple[int, float]]:
    """The trial of each launch that has ended, and when it had, in this order."""
    rows = query(folder, "select trial, ended_at from autotune_launches order by ended_at")
    return [(int(str(trial)), float(str(at))) for trial, at in rows if at is not None]


@pytest.mark.usefixtures("gpu")
def test_a_wrong_flag_ends_those_that_were_started_with_it(tmp_path: Path) -> None:
    study = write(tmp_path, env={"DOUBLE_FAIL": "bad_flag"})
    done = autotune("run", str(study), "--trials", "8", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("vLLM does not know --no-such-flag") == 1
    # the three of the first batch have ended before it is told; then each launch is alone
    assert [trial for trial, _ in ends(tmp_path)] == [-1, -1, -1, 0, 1, 2]
    assert query(tmp_path, UNENDED) == [(0,)]
    assert owned(os.getpid()) == []


@pytest.mark.usefixtures("gpu")
def test_a_first_one_without_memory_next_to_others_is_launched_again_alone(tmp_path: Path) -> None:
    env = {
        "DOUBLE_FAIL": "oom_load",
        "DOUBLE_FAIL_IF": "num_speculative_tokens==0",  # the baseline
        "DOUBLE_FAIL_ONCE": str(tmp_path / "failed"),
    }
    study = write(tmp_path, env=env)
    done = autotune("run", str(study), "--trials", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [t["state"] for t in trials(tmp_path)] == ["complete"] * 3
    sql = "select what from autotune_events where what like 'failed next to other servers%'"
    assert len(query(tmp_path, sql)) == 1
    assert [trial for trial, _ in ends(tmp_path)][:5] == [*[-1] * 2, 0, 0, 1]
    assert beside(tmp_path) == [0, 1, 0]  # what one takes was seen then
    assert query(tmp_path, UNENDED) == [(0,)]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_ends_takes_all_of_them_along(tmp_path: Path, how: signal.Signals) -> None:
    study = write(tmp_path, env=in_turn(tmp_path, 0.01, 0.3, 0.3, 0.3, 0.3))
    run = start_autotune("run", str(study), "--trials", "8", cwd=tmp_path)
    wait_for_event(tmp_path, "warm", 2)  # three others idle beside the second trial
    assert len(owned(run.pid)) >= 8  # a supervisor and a server each, and the fork server
    run.send_signal(how)
    _, err = run.communicate()
    assert run.returncode == (130 if how == signal.SIGINT else -how), err
    wait_until(lambda: not owned(run.pid))
    if how == signal.SIGINT:
        assert query(tmp_path, UNENDED) == [(0,)]
    # the same command goes on, and what was started in vain is nobody's trial
    done = autotune("run", str(study), "--trials", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert finished(tmp_path) == 8
    assert query(tmp_path, UNENDED) == [(0,)]
    assert owned(os.getpid()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "kv-cache-memory-bytes in server.flags"),
        ({"kv-cache-memory-bytes": 2**30}, "at most 0.25"),
        ({"kv-cache-memory-bytes": 2**30, "gpu-memory-utilization": 0.3}, "at most 0.25"),
    ],
)
def test_on_a_gpu_the_memory_must_be_fixed(
    tmp_path: Path, flags: dict[str, object], words: str
) -> None:
    study = write(tmp_path, flags=flags)
    done = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert "server.ahead" in done.stderr
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "autotune.db").exists()
