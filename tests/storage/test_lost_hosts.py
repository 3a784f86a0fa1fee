"""Launches of hosts that do not come back get an end, and only those."""

from __future__ import annotations

import time
from pathlib import Path
from socket import gethostname

import pytest

from autotune.engine.command import LaunchPlan
from autotune.errors import UserError
from autotune.storage.hosts import LOST, Hosts
from autotune.storage.lease import Place, exclusive
from autotune.storage.location import Database
from autotune.storage.schema import NO_TRIAL
from autotune.storage.store import Store, opened
from autotune.tuning.lost_hosts import GONE_S, close_lost, forget, unended_elsewhere
from autotune.tuning.recovery import living_json, living_lines
from tests.studies import autotune

PLAN = LaunchPlan(("vllm", "serve"), {}, {}, "key", 8000, "m", "m")


def plan(store: Store, launch_id: str, host: str, trial: int = 0) -> None:
    store.launches.plan(
        launch_id,
        study="double",
        trial=trial,
        attempt=0,
        plan=PLAN,
        machine={"gpus": [], "slot": {"number": 1, "host": host}},
        log_path=Path("/x.log"),
        place=Place(host, "1", "another boot"),
    )


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The clock that leases go by is ahead from here on."""
    monkeypatch.setattr(Hosts, "now", lambda _self: time.time() + seconds)


def test_a_host_that_is_gone_is_forgotten_by_name_or_by_the_next_run(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exclusive(database), opened(database, create=True) as run:
        run.take_lease()
        plan(run, "a", "pod-1")
        plan(run, "b", "pod-2", trial=1)
        plan(run, "here", gethostname(), trial=2)
        later(monkeypatch, 10 * GONE_S)  # a measurement takes hours: its run renews the lease
        assert [(x.held, x.state) for x in unended_elsewhere(run)] == [(True, "")] * 2
        with pytest.raises(UserError, match="a run is using it"):
            forget(database, "pod-1")
        close_lost(run, pytest.fail)

    later(monkeypatch, 60)  # the run is over: the servers may still be ending
    with opened(database) as store:
        assert {x.state.split(",")[0] for x in unended_elsewhere(store)} == {"host not heard of"}
    with pytest.raises(UserError, match="its servers may still be ending"):
        forget(database, "pod-1")

    later(monkeypatch, 3 * 3600)
    lines = "\n".join(living_lines(database))
    assert "trial 0 of double, slot 1 on pod-1; on host pod-1\n          host gone, 3 h 0" in lines
    assert "`autotune ps --forget pod-1` closes it" in lines
    rows = {x["launch"]: x for x in living_json(database)}
    assert rows["a"]["host_gone"]
    assert rows["a"]["silent_seconds"] > GONE_S
    for host, words in (
        (gethostname(), "is this host; `autotune reap`"),
        ("pod-9", "has no open launch of it; it has those of pod-1, pod-2"),
    ):
        with pytest.raises(UserError, match=words):
            forget(database, host)
    said = forget(database, "pod-1")
    assert said == "closed 1 launch of host pod-1 as lost; nothing was ended there"

    with exclusive(database), opened(database, create=True) as run:
        run.take_lease()
        [left] = unended_elsewhere(run)
        assert (left.launch.launch_id, left.gone) == ("b", True)
        told: list[str] = []
        close_lost(run, told.append)
        close_lost(run, told.append)
        assert [x.split(":")[0] for x in told] == ["closed 1 launch of host pod-2 as lost"]
        assert [x.launch_id for x in run.launches.unended()] == ["here"]  # this host proves its own
        assert [e.what for e in run.launches.events("double")] == [LOST, LOST]
        assert run.launches.get("a").killed == 0
    with pytest.raises(UserError, match="has no open launch of it, nor of any other host"):
        forget(database, "pod-2")


def test_a_host_counts_as_gone_while_its_run_goes_on_elsewhere(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exclusive(database), opened(database, create=True) as run:
        run.take_lease()
        plan(run, "a", "pod-1")
        plan(run, "b", "pod-2")  # the same trial: its process on pod-1 was lost
        later(monkeypatch, 2 * GONE_S)
        assert {x.launch.launch_id: (x.held, x.gone) for x in unended_elsewhere(run)} == {
            "a": (False, True),
            "b": (True, False),
        }


def test_servers_that_wait_for_their_trial_are_held_by_their_run(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exclusive(database), opened(database, create=True) as run:
        run.take_lease()
        for launch_id in ("a", "b"):
            plan(run, launch_id, "pod-1", trial=NO_TRIAL)
        later(monkeypatch, 2 * GONE_S)
        assert [(x.held, x.gone) for x in unended_elsewhere(run)] == [(True, False)] * 2


def test_forgetting_a_host_has_no_json(tmp_path: Path) -> None:
    done = autotune("ps", "--forget", "pod-1", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "autotune: --json: is for the list; leave it out with --forget\n"
