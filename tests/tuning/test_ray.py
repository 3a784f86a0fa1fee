"""Studies on two Ray nodes of this machine, over the server double, and what ends them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from autotune.errors import UserError
from autotune.study.files import load_study
from autotune.tuning.late_outcomes import LateOutcome
from autotune.tuning.prepare import Prepared, prepare
from autotune.tuning.progress import OUTSIDE, At
from autotune.tuning.slot_pool import SlotPool
from autotune.tuning.slots import cluster_of
from autotune.tuning.trial import Trial
from tests.ray_nodes import RayNodes, why_not
from tests.standin import MODULE, write_vllm
from tests.studies import (
    UNENDED,
    Forked,
    autotune,
    finished,
    own_starter,
    processes_of,
    query,
    start_autotune,
    trials,
    wait_for_event,
    wait_until,
    write_study,
)
from tests.tuning.executors import check_executor
from tests.tuning.test_parallel import in_turn

pytestmark = [
    pytest.mark.double,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]

SECRET = "hf_thisIsASecretOfTheStudy0123456789"  # noqa: S105 – nobody's


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with RayNodes(2, OMP_NUM_THREADS="3") as made:
        yield made
        assert list(made.folder.rglob("raylet.out"))  # Ray's logs are there
        assert not secrets_in(made.folder)


@pytest.fixture(autouse=True)
def environment(nodes: RayNodes) -> Iterator[None]:
    """Drivers have the cluster's home folder."""
    own_starter()  # it outlives the cluster, so it is none of what ends with that
    with mock.patch.dict(os.environ, {**nodes.env, "OMP_NUM_THREADS": "1"}, clear=True):
        yield


def secrets_in(folder: Path) -> list[Path]:
    """Files of Ray that hold a secret of a study."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    return [p for p in files if SECRET.encode() in p.read_bytes()]


def write(folder: Path, **changes: Any) -> str:
    env = {"DOUBLE_STEP_S": "0.01", "HF_TOKEN": SECRET}
    return str(write_study(folder, **{"server__env": env, **changes}))


def start(nodes: RayNodes, study: str, wanted: int, cwd: Path) -> Forked:
    words = ("run", study, "--trials", str(wanted), "--ray", nodes.address)
    return start_autotune(*words, cwd=cwd)


def check_whole(folder: Path, wanted: int) -> None:
    """Exactly the wanted trials, none twice, nothing open."""
    rows = trials(folder)
    assert [t["state"] for t in rows] == ["complete"] * wanted
    assert finished(folder) == wanted
    told = query(folder, "select value_json from trial_user_attributes where key = 'launch'")
    assert len(set(told)) == len(told) == wanted
    assert query(folder, UNENDED) == [(0,)]
    assert processes_of(folder) == []


def both_measure(folder: Path, run: int = 1) -> None:
    """Waits until two servers of a run, of which there are so many, are measured at once."""
    sql = (
        "select lease_epoch from autotune_events join autotune_launches using (launch_id) "
        "where what = 'warm' and ended_at is null"
    )
    wait_for_event(folder, "warm", 2)
    wait_until(lambda: query(folder, sql).count((run,)) == 2)


def workers(folder: Path) -> dict[int, psutil.Process]:
    """The processes of the slots that have a server now, by slot."""
    sql = (
        "select json_extract(machine, '$.slot.number'), json_extract(identity, '$.guard_pid') "
        "from autotune_launches where ended_at is null"
    )
    rows = query(folder, sql)
    return {int(str(n)): psutil.Process(int(str(pid))).parent() for n, pid in rows}  # type: ignore[misc]


class Nothing:
    """Of what earlier runs left there is nothing."""

    def ended(self, launch_id: str, ended: int) -> None:
        raise AssertionError(launch_id)

    def measured(self, outcome: LateOutcome) -> bool:
        return False


class Told:
    """A progress that keeps its lines."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str, at: At = OUTSIDE) -> None:
        self.said.append(text)


def prepared(folder: Path, **changes: Any) -> Prepared:
    from autotune.cli.console import Ui

    return prepare(load_study(write(folder, **changes)), Ui())


def test_the_executor_does_what_every_executor_does(nodes: RayNodes, tmp_path: Path) -> None:
    from autotune.tuning.ray_slots import RayCluster

    study, told = prepared(tmp_path), Told()
    with RayCluster(
        study, nodes.address, 1, told.message, module="tests.tuning.slot_double"
    ) as cluster:
        assert sorted(cluster.slots) == [0, 1]
        cluster.open(tmp_path, [], Nothing())
        served = {"double": lambda n: 2 * n, "message": told.message}
        pool: SlotPool[Trial] = SlotPool(cluster, served, stop_timeout_s=1)
        cores = {n: f"{[*slot.cores]}" for n, slot in cluster.slots.items()}
        check_executor(pool, 2, cores)
    assert [x for x in told.said if "waiting for a free slot" not in x] == []


def test_two_nodes_make_one_study_and_prelaunch(nodes: RayNodes, tmp_path: Path) -> None:
    vllm = write_vllm(tmp_path / "vllm", device="cpu")
    env = {"DOUBLE_STEP_S": "0.01", "HF_TOKEN": SECRET, "PYTHONPATH": str(vllm)}
    command = [sys.executable, "-m", MODULE]
    study = write(
        tmp_path, server__command=command, server__env=env, server__ahead=3, budget__confirm=0
    )
    run = start(nodes, study, 6, tmp_path)
    out, err = run.communicate()
    assert (run.returncode, err) == (0, ""), out
    check_whole(tmp_path, 6)
    # what a slot prelaunched it measured
    sql = (
        "select l.trial, json_extract(machine, '$.slot.number') from autotune_launches l "
        "join autotune_events e using (launch_id) where e.what = 'prelaunching'"
    )
    found = {int(str(trial)): slot for trial, slot in query(tmp_path, sql)}
    assert found
    measured = {t["trial"]: t["slot"]["number"] for t in trials(tmp_path)}  # type: ignore[index]
    assert all(measured[trial] == slot for trial, slot in found.items())
    slots = [t["slot"] for t in trials(tmp_path)]
    assert {s["number"] for s in slots} == {0, 1}  # type: ignore[index]
    assert len({s["host"] for s in slots}) == 2  # type: ignore[index]
    # everybody says where
    host = next(s["host"] for s in slots if s["number"] == 1)  # type: ignore[index]
    assert f"slot 1 on {host}  [2/6] trial 1" in out
    assert f"node {host}: 1 slot of" in out
    assert f"slot 1 of 2 on {host}" in autotune("status", "--trial", "1", cwd=tmp_path).stdout
    # servers have the variables of their node, neither Ray's nor the driver's
    kept = [json.loads(str(env)) for (env,) in query(tmp_path, "select env from autotune_launches")]
    assert not any(name.startswith("RAY_") for env in kept for name in env)
    assert not any("LD_PRELOAD" in env for env in kept)
    assert {env.get("OMP_NUM_THREADS") for env in kept} == {"3"}
    assert processes_of(tmp_path) == []


def test_two_nodes_make_one_load_sweep(nodes: RayNodes, tmp_path: Path) -> None:
    args = ("--concurrency", "1,2", "--launches", "3")
    run = start_autotune(
        "map", write(tmp_path), *args, "--ways", "none", "--ray", nodes.address, cwd=tmp_path
    )
    out, err = run.communicate()
    assert run.returncode == 0, err
    assert "Measured on 2 slots" in " ".join(out.split())
    hosts = query(
        tmp_path,
        "select point, json_extract(machine, '$.slot.host'), count(*) from autotune_loads "
        "join autotune_launches using (launch_id) group by point, 2",
    )
    assert [(point, parts) for point, _, parts in hosts] == [(k, 4) for k in range(1, 5)]
    assert len({host for _, host, _ in hosts}) == 2
    assert f"slot 0 on {hosts[0][1]}  n = 0: launching" in err
    assert f"slot 1 on {hosts[1][1]}  n = 0, to compare slots: launching" in err
    assert query(tmp_path, UNENDED) == [(0,)]
    assert processes_of(tmp_path) == []


def test_what_ends_the_run_ends_all_servers_and_the_same_command_goes_on(
    nodes: RayNodes, tmp_path: Path
) -> None:
    # of the two runs that are ended, and of the third
    env = in_turn(tmp_path, 0.3, 0.3, 0.3, 0.3, 0.2, 0.2, HF_TOKEN=SECRET)
    study = write(tmp_path, server__env=env)
    run = start(nodes, study, 3, tmp_path)
    both_measure(tmp_path)
    said = autotune("ps", cwd=tmp_path).stdout
    assert "trial 0 of double, slot 0 on" in said
    run.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes_of(tmp_path))

    run = start(nodes, study, 3, tmp_path)
    both_measure(tmp_path, 2)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate()
    assert run.returncode == 130, err
    assert len(err.splitlines()) == 1
    assert query(tmp_path, UNENDED) == [(0,)]
    assert processes_of(tmp_path) == []

    run = start(nodes, study, 3, tmp_path)  # a process and another one's actor die
    both_measure(tmp_path, 3)
    first, second = workers(tmp_path)[0], workers(tmp_path)[1].parent()
    assert "ray::" in " ".join(second.cmdline())  # type: ignore[union-attr]
    first.kill()
    second.kill()  # type: ignore[union-attr]
    out, err = run.communicate()
    assert (run.returncode, err) == (0, ""), out
    assert out.count("The trial is launched again") == 2
    check_whole(tmp_path, 3)


def test_a_node_leaves_and_another_one_joins(nodes: RayNodes, tmp_path: Path) -> None:
    study = write(tmp_path, server__env=in_turn(tmp_path, 0.2, 0.2, HF_TOKEN=SECRET))
    run = start(nodes, study, 5, tmp_path)
    both_measure(tmp_path)
    nodes.kill()
    run.wait_for_words("The trial is launched again")
    nodes.add()
    out, err = run.communicate()
    assert (run.returncode, err) == (0, ""), out
    check_whole(tmp_path, 5)


def test_what_cannot_run_is_refused_in_one_line(nodes: RayNodes, tmp_path: Path) -> None:
    study = prepared(tmp_path)
    for address, words in (
        ("ray://127.0.0.1:1", "must be on a node"),
        ("127.0.0.1:1", "nothing answers there"),
        ("some words", "neither auto nor HOST:PORT"),
        (":6379", "neither auto nor HOST:PORT"),
        ("127.0.0.1:0", "neither auto nor HOST:PORT"),
        ("a..b:6379", "nothing answers there"),
        ("[::1]:1", "nothing answers there"),
        ("ü:1\n", "neither auto nor HOST:PORT"),
    ):
        with pytest.raises(UserError, match=words) as e, cluster_of(study, address, 1, print):
            pass
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ("127.0.0.1:1", r"auto \(127.0.0.1:1 by RAY_ADDRESS\): nothing answers there"),
        ("ray://127.0.0.1:1", "must be on a node"),
    ],
)
def test_what_auto_means_is_looked_at_before_ray_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, words: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", left)
    with (
        pytest.raises(UserError, match=words),
        cluster_of(prepared(tmp_path), "auto", 1, print),
    ):
        pass


def test_a_head_that_was_killed_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = "ray._private.services.get_ray_address_from_environment"
    monkeypatch.setattr(found, lambda *_: "127.0.0.1:1")
    with (
        pytest.raises(UserError, match="by what Ray left on this host"),
        cluster_of(prepared(tmp_path), "auto", 1, print),
    ):
        pass


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "takes connections, and has not answered for 0 s: its head is stopped"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there is no head of a Ray cluster"),
    ],
)
def test_a_head_that_takes_connections_and_never_answers_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, words: str
) -> None:
    monkeypatch.setattr("autotune.tuning.ray_slots._ANSWER_S", 0.3 if answer is None else 60.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                c, _ = listener.accept()
                c.sendall(answer or b"")
                c.recv(1 << 16)
                c.close()

        if answer is not None:  # or the kernel takes the connection
            threading.Thread(target=serve, daemon=True).start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with (
            pytest.raises(UserError, match=words),
            cluster_of(prepared(tmp_path), address, 1, print),
        ):
            pass
