"""One driver writes to a database on a server, and what it wrote is there once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState
from sqlalchemy import text

from autotune.cli.main import main
from autotune.errors import LeaseLost, MachineError, UserError
from autotune.serving.interrupts import held_back, is_held
from autotune.storage import postgresql, server_lease
from autotune.storage.lease import check_free, is_free
from autotune.storage.location import Server
from autotune.storage.postgresql import connect
from autotune.storage.store import Store, opened
from autotune.study.files import load_study
from tests.paths import ROOT
from tests.postgresql import PASSWORD, Cluster, Proxy, a_cluster, a_pgbouncer
from tests.storage.test_repositories import SAMPLES, plan
from tests.studies import PATIENCE_S, wait_until, write_study

pytestmark = pytest.mark.slow  # leases end by the clock of a real server

EVENTS = "SELECT count(*) FROM autotune_events"
RENEWED = "SELECT expires_at FROM autotune_lease"
IN_TRANSACTION = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
SOON_S = 1.5


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease ends within a test, and not because its renewal had to wait for a busy machine."""
    monkeypatch.setattr(server_lease, "LEASE_S", PATIENCE_S)
    monkeypatch.setattr(server_lease, "RENEW_S", 0.3)
    monkeypatch.setattr(server_lease, "SEEN_S", 1.3)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


@pytest.fixture
def server(cluster: Cluster) -> Server:
    return cluster.new()


def driver(server: Server) -> Store:
    """A store that holds the lease."""
    store = Store(server, create=True)
    store.take_lease()
    return store


def stand_still(store: Store) -> None:
    """Renew the lease of a store no more, as if its process were frozen; it ends in a moment."""
    lease = store._backend._lease  # type: ignore[attr-defined]
    lease._end.set()
    lease._renewing.join()
    with connect(lease._server) as c:
        c.execute(f"UPDATE autotune_lease SET expires_at = {server_lease._NOW} + {SOON_S}")  # noqa: S608


def test_a_second_driver_is_refused_and_a_third_one_is_next(
    server: Server, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_free(server)
    with opened(server, create=True) as first:
        assert is_free(server)
        check_free(server)
        first.take_lease()
        assert not is_free(server)
        monkeypatch.setattr(server_lease, "SEEN_S", PATIENCE_S)
        study = write_study(tmp_path)
        result = CliRunner().invoke(main, ["run", str(study), "--db", str(server)])
        assert result.exit_code == 2
        line = result.stderr.splitlines()[-1]
        assert f"another autotune (pid {os.getpid()} on {socket.gethostname()}) is running" in line
        before = cluster.execute(RENEWED, server.name)
        wait_until(lambda: cluster.execute(RENEWED, server.name) > before)
        with pytest.raises(UserError, match="is running on it"):
            check_free(server)
        plan(first, "a")
    assert is_free(server)
    check_free(server)
    with opened(server, create=True) as third:
        third.take_lease()
        plan(third, "b")
        assert [third.launches.get(x).lease_epoch for x in "ab"] == [1, 2]


def test_a_driver_that_stood_still_writes_nothing_more(server: Server, tmp_path: Path) -> None:
    frozen = driver(server)
    study = optuna.create_study(storage=frozen.storage, study_name="s")
    trial, ended = study.ask(), study.ask()
    plan(frozen, "a")
    stand_still(frozen)
    check_free(server)  # nobody renews it
    with opened(server, create=True) as taker:
        taker.take_lease()
        plan(taker, "b")
        optuna.load_study(study_name="s", storage=taker.storage).tell(ended.number, 2.0)
        loaded = load_study(str(write_study(tmp_path)))
        writes: list[Callable[[], object]] = [
            lambda: frozen.launches.event("s", "x"),
            lambda: frozen.launches.ready("a", "1"),
            lambda: frozen.requests.add("a", SAMPLES),
            lambda: frozen.begin_study(loaded, seed=0, wanted=1),
            lambda: study.tell(trial, 1.0),
            lambda: study.ask(),
            lambda: study.set_user_attr("x", 1),
            lambda: trial.set_user_attr("x", 1),
            lambda: ended.set_user_attr("x", 1),  # which Optuna refuses in its own words
            lambda: frozen.end_trial(trial._trial_id, {"x": 1}, [1.0]),
            frozen.check_lease,
        ]
        for write in writes:
            with pytest.raises(LeaseLost, match=r"another autotune \(pid \d+ on .*\) took it over"):
                write()
        assert taker.launches.events("s") == []
        assert taker.launches.get("a").ready_at is None
        assert taker.requests.of_launch("a") == []
        assert taker.study_names() == []
        kept, _ = taker.optuna_study("s").get_trials()
        assert (kept.state, kept.user_attrs) == (TrialState.RUNNING, {})
        frozen.close()  # gives nothing back that is another's
        assert not is_free(server)


FROZEN = """
import sys
from autotune.storage import postgresql, server_lease
from autotune.storage.location import parse_database
from autotune.storage.store import opened
server_lease.LEASE_S, server_lease.RENEW_S = 1.5, 0.3
postgresql._BEGIN = postgresql._BEGIN.replace("10s", "3s")
with opened(parse_database(sys.argv[1])) as store:
    store.take_lease()
    for i in range(10**6):
        store.launches.event("frozen", str(i))
        print(i, flush=True)
"""


def test_a_process_that_is_frozen_and_wakes_is_ended_by_one_line(
    server: Server, cluster: Cluster
) -> None:
    with opened(server, create=True):
        pass
    process = subprocess.Popen(
        [sys.executable, "-c", FROZEN, str(server)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: cluster.execute(EVENTS, server.name) > [(20,)])
        process.send_signal(signal.SIGSTOP)  # in the middle of a transaction, as likely as not
        with opened(server, create=True) as taker:
            taker.take_lease()
            before = cluster.execute(EVENTS, server.name)
            process.send_signal(signal.SIGCONT)
            _, said = process.communicate(timeout=PATIENCE_S)
            assert "LeaseLost" in said.splitlines()[-1]
            assert f"(pid {os.getpid()} on {socket.gethostname()}) took it over" in said
            assert cluster.execute(EVENTS, server.name) == before
    finally:
        process.kill()
        process.wait()


def test_what_holds_a_lock_while_it_is_frozen_is_ended_by_the_server(
    server: Server, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_lease, "LEASE_S", SOON_S)
    monkeypatch.setattr(postgresql, "_BEGIN", postgresql._BEGIN.replace("10s", "3s"))
    frozen = driver(server)
    session = frozen._sessions()
    session.execute(text("UPDATE autotune_lease SET written = 5"))  # has the row, and stands still
    lease = frozen._backend._lease  # type: ignore[attr-defined]
    lease._end.set()
    lease._renewing.join()
    with opened(server, create=True) as taker:
        taker.take_lease()
        assert cluster.execute(f"{IN_TRANSACTION} AND datname = '{server.name}'") == [(0,)]
    session.close()
    frozen.close()


# -- a server that goes away -----------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[Cluster]:
    """A server that only this test uses, to be killed."""
    with a_cluster() as found:
        yield found


def test_a_server_is_killed_and_started_again(
    own: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_lease, "LEASE_S", SOON_S)
    server = own.new()
    said: list[str] = []
    store = Store(server, create=True)
    store.take_lease(said.append)
    study = optuna.create_study(storage=store.storage, study_name="s")
    ended, count = threading.Event(), 0

    def kill() -> None:
        try:
            for _ in range(2):
                at = count
                wait_until(lambda at=at: count > at + 1)  # type: ignore[misc]  # it is back
                before = len(said)
                own.stop(signal.SIGQUIT)
                time.sleep(2 * SOON_S)  # the lease runs out, and nobody takes it
                wait_until(lambda before=before: len(said) > before)  # type: ignore[misc]
                own.start()
        finally:
            own.revive()
            ended.set()

    killer = threading.Thread(target=kill)
    killer.start()
    while not ended.is_set() or count < 20:
        store.launches.event("s", str(count))
        trial = study.ask()
        trial.set_user_attr("count", count)
        study.tell(trial, float(count))
        assert [e.what for e in store.launches.events("s")][-1] == str(count)
        count += 1
    killer.join()
    assert [e.what for e in store.launches.events("s")] == [str(i) for i in range(count)]
    found = [(t.number, t.value, t.user_attrs) for t in study.get_trials()]
    assert found == [(i, float(i), {"count": i}) for i in range(count)]
    assert any("Trying again for 10 min" in line for line in said)
    assert store.launches.holder is not None
    assert store.launches.holder.epoch == 1
    store.close()


def test_a_server_that_stays_away_is_one_line(
    own: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_lease, "AWAY_S", 1.0)
    server = own.new()

    def write() -> None:
        with opened(server, create=True) as store:
            store.take_lease()
            own.stop(signal.SIGQUIT)
            store.launches.event("s", "x")

    with pytest.raises(MachineError, match="the same command goes on from there") as e:
        write()
    assert "\n" not in str(e.value)
    own.start()


@pytest.mark.parametrize("held", [False, True], ids=["cleaning up", "held back"])
def test_an_interrupted_run_does_not_wait_for_a_server_that_is_away(
    own: Cluster, monkeypatch: pytest.MonkeyPatch, *, held: bool
) -> None:
    monkeypatch.setattr(server_lease, "INTERRUPTED_S", 1.0)
    server = own.new()
    said: list[str] = []

    def interrupted() -> None:
        with opened(server, create=True) as store:
            store.take_lease(said.append)
            plan(store, "a")
            try:
                own.stop(signal.SIGQUIT)
                with held_back() if held else nullcontext():
                    signal.raise_signal(signal.SIGINT)
                    store.launches.event("s", "x")
            finally:
                store.launches.ended("a", 0, 0)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert said == []
    assert not is_held()
    own.start()
    with opened(server) as store:
        assert store.launches.get("a").ended_at is None
        assert store.launches.events("s") == []


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
def test_a_commit_without_an_answer_counts_once(cluster: Cluster, *, done: bool) -> None:
    """The connection is cut when the commit was sent, and before: nothing is lost or twice."""
    direct = cluster.new()
    proxy = Proxy(cluster.port)
    try:
        store = driver(cluster.by_network(direct.name, port=proxy.port))
        study = optuna.create_study(storage=store.storage, study_name="s")
        for i in range(3):
            proxy.cut_at = b"COMMIT" if done else b"SET written"
            store.launches.event("s", str(i))
            assert proxy.cut_at == b""
            proxy.cut_at = b"COMMIT" if done else b"INSERT INTO trials"
            assert study.ask().number == i
            assert proxy.cut_at == b""
            proxy.cut_at = b"COMMIT" if done else b"autotune_map_points"
            point = store.load_maps.add_point("s", {"fingerprint": "x"}, i, None)
            assert point.n == i
        assert [e.what for e in store.launches.events("s")] == ["0", "1", "2"]
        assert [p.n for p in store.load_maps.points("s")] == [0, 1, 2]
        assert len(study.get_trials()) == 3
        store.close()
    finally:
        proxy.close()


def test_a_half_open_connection_is_given_up(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_lease, "LEASE_S", 2 * SOON_S)  # so long, its renewal waits, too
    direct = cluster.new()
    proxy = Proxy(cluster.port)
    said: list[str] = []

    def mend() -> None:
        """It answers again once it was missed, and another connection was tried."""
        missed = len(said)
        wait_until(lambda: len(said) > missed)
        tried = proxy.accepted
        wait_until(lambda: proxy.accepted > tried)
        proxy.silent = False

    try:
        store = Store(cluster.by_network(direct.name, port=proxy.port), create=True)
        store.take_lease(said.append)
        # from here on, what takes longer on a busy machine is done again
        monkeypatch.setattr(server_lease, "SILENT_S", 1.0)
        monkeypatch.setitem(postgresql._DEFAULTS, "connect_timeout", 2)
        store._engine.dispose()
        store.launches.event("s", "before")
        for _ in range(2):
            proxy.silent = True
            mending = threading.Thread(target=mend)
            mending.start()
            store.launches.event("s", "while silent")
            mending.join()
            assert len(store.launches.events("s")) > 0
        assert [e.what for e in store.launches.events("s")] == ["before", *["while silent"] * 2]
        assert "Trying again for 10 min" in said[0]
        store.close()
    finally:
        proxy.close()


def test_pgbouncer_gives_each_transaction_another_connection(cluster: Cluster) -> None:
    direct = cluster.new()
    with a_pgbouncer(cluster) as port:
        server = cluster.by_network(direct.name, port=port)
        with opened(server, create=True) as first:
            first.take_lease()
            with pytest.raises(UserError, match="another autotune"):
                Store(server, create=True).take_lease()
            study = optuna.create_study(storage=first.storage, study_name="s")
            for i in range(20):
                first.launches.event("s", str(i))
                study.tell(study.ask(), float(i))
            plan(first, "a")
            first.requests.add("a", SAMPLES)
            assert first.requests.samples("a") == SAMPLES[1:]
            assert [t.value for t in study.get_trials()] == [float(i) for i in range(20)]
            stand_still(first)
            with opened(server, create=True) as second:
                second.take_lease()
                with pytest.raises(LeaseLost):
                    first.launches.event("s", "late")
        cluster.execute("ALTER TABLE autotune_lease DROP COLUMN written", direct.name)
        version = "UPDATE autotune_alembic_version SET version_num = '0005'"
        cluster.execute(version, direct.name)
        with opened(server) as old:  # through views of its own transaction
            assert len(old.launches.events("s")) == 20
            assert old.launches.get("a").port == 8000
