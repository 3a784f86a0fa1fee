"""What every database must do; a further kind of database is a parameter of ``database``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from sqlalchemy import select

from autotune.bench.request_drafts import RequestDrafts
from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.engine.command import LaunchPlan
from autotune.engine.compile_cache import CacheUse, CompileCache
from autotune.engine.launch_stages import Stages
from autotune.engine.probe import VllmInfo
from autotune.errors import FailureKind, TrialFailure, UserError
from autotune.serving.process_tree import Identity
from autotune.storage.location import Database
from autotune.storage.names import launch_text, load_sweep_name
from autotune.storage.schema import NO_TRIAL, LaunchRow, LeaseRow, WorkerRow
from autotune.storage.store import Store, opened
from autotune.study.files import LoadedStudy, load_study
from tests.paths import ROOT
from tests.storage.conftest import OpenStore
from tests.studies import write_study

PLAN = LaunchPlan(("vllm", "serve"), {"A": "secret"}, {"A": "***"}, "key", 8000, "m", "m")
MACHINE = {"cpu": "a", "gpus": []}
STATS = ServerStats(3, 30, 20, 7.5, (0.9, 0.5), 0, None, None)
SAMPLES = [
    Sample(0, "warmup", 0.0, 0.0, 0.25, 0.5, 16, 2, "ok", None, (0.25, 0.5)),
    Sample(
        *(0, "measure", 0.5, 0.5, 0.25, 1.5, 16, 3, "ok", None, (0.25, 0.5, 1.0)),
        RequestDrafts((1, 0, 0, 1), 6, ((3, 3), (0, 3))),
        "code",
    ),
    Sample(1, "measure", 0.5, 0.75, None, 2.0, None, None, "error", "reset", ()),
]


def plan(store: Store, launch_id: str, trial: int = 0, study: str = "s", attempt: int = 0) -> str:
    store.launches.plan(
        launch_id,
        study=study,
        trial=trial,
        attempt=attempt,
        plan=PLAN,
        machine=MACHINE,
        log_path=Path("/x.log"),
    )
    return launch_id


def quality(**more: object) -> dict[str, object]:
    return {"requests": 2, "machine": {"rest": {"kernel_s": 0.05}}, **more}


ENDS = """
import sys
from autotune.storage.location import parse_database
from autotune.storage.store import opened
with opened(parse_database(sys.argv[1]), write=True) as store:
    store.launches.ended("a", None, 2)
"""


def test_a_new_process_first_ends_the_launches_of_a_killed_one(
    open_store: OpenStore, database: Database
) -> None:
    plan(open_store(), "a")
    subprocess.run([sys.executable, "-c", ENDS, str(database)], check=True, cwd=ROOT)
    with opened(database) as store:
        assert (store.launches.get("a").killed, store.launches.unended()) == (2, [])


def ids(rows: list[LaunchRow]) -> list[str]:
    return [row.launch_id for row in rows]


def test_a_launch_from_plan_to_end(store: Store) -> None:
    plan(store, "a", 3)
    planned = store.launches.get("a")
    assert (planned.argv, planned.env, planned.port) == (["vllm", "serve"], {"A": "***"}, 8000)
    assert (planned.identity, planned.ready_at, planned.values) == (None, None, None)
    store.launches.started(Identity("a", "boot", supervisor_pid=6, pid=7))
    store.launches.ready("a", "0.32.0")
    bounds = {"tok/s": (90.0, None)}
    store.launches.measured("a", STATS, {"tok/s": 100.5}, bounds, quality())
    assert ids(store.launches.unended()) == ["a"]
    store.launches.ended("a", 0, 1)
    assert store.launches.unended() == []
    row = store.launches.get("a")
    assert row.identity is not None
    # databases of every version have these keys
    assert (row.identity["guard_pid"], row.identity["pid"]) == (6, 7)
    assert Identity.from_stored(row.identity).supervisor_pid == 6
    assert row.planned_at <= (row.ready_at or 0) <= (row.measured_at or 0) <= (row.ended_at or 0)
    assert (row.values, row.intervals) == ({"tok/s": 100.5}, {"tok/s": [90.0, None]})
    assert row.stats == {**STATS.__dict__, "acceptance_per_position": [0.9, 0.5]}
    assert (row.exit_code, row.killed, row.failure_kind) == (0, 1, None)


def test_a_failed_launch_says_why(store: Store) -> None:
    plan(store, "a")
    failure = TrialFailure(FailureKind.CLOCK, "the machine slept", ("line",))
    store.launches.failed("a", failure, ["one", "two"])
    row = store.launches.get("a")
    assert (row.failure_kind, row.failure_reason) == (str(FailureKind.CLOCK), "the machine slept")
    assert (row.evidence, row.log_tail) == (["line"], "one\ntwo")


def test_launches_of_a_study_and_of_a_trial(store: Store) -> None:
    for launch_id, trial, attempt in (("c", 0, 0), ("a", 1, 0), ("b", 1, 1)):
        plan(store, launch_id, trial, attempt=attempt)
    plan(store, "other", 1, study="t")
    assert ids(store.launches.of_study("s")) == ["c", "a", "b"]
    assert ids(store.launches.of_trial("s", 1)) == ["a", "b"]
    assert store.launches.of_trial("s", 9) == []
    store.launches.give("a", 0, attempt=2)
    store.launches.give("b", 2)
    assert [(x.launch_id, x.attempt) for x in store.launches.of_trial("s", 0)] == [
        ("c", 0),
        ("a", 2),
    ]
    assert [x.attempt for x in store.launches.of_trial("s", 2)] == [1]


def test_what_a_study_was_measured_on(store: Store) -> None:
    assert store.launches.measured_on("s") == (None, None)
    for launch_id, version, weights in (("a", "0.31", "x"), ("b", "0.32", "y"), ("c", None, None)):
        plan(store, launch_id)
        store.launches.ready(launch_id, version)
        kept = quality(weights={"draft": weights}) if weights else quality()
        store.launches.measured(launch_id, STATS, {}, {}, kept)
    assert store.launches.measured_on("s") == (MACHINE, "0.32")
    assert store.launches.weights("s") == {"draft": "y"}
    assert store.launches.idle_baselines("s", MACHINE) == [0.05] * 3
    assert store.launches.idle_baselines("s", MACHINE | {"cpu": "b"}) == []


def test_requests_come_back_as_they_were(store: Store) -> None:
    plan(store, "a")
    store.requests.add("a", SAMPLES[:1])
    store.requests.add("a", SAMPLES[1:])
    assert store.requests.samples("a") == SAMPLES[1:]
    assert store.requests.samples("a", "warmup") == SAMPLES[:1]
    assert [r.phase for r in store.requests.of_launch("a")] == ["warmup", "measure", "measure"]
    assert store.requests.first_end("a") == 0.5
    assert store.requests.first_end("b") is None
    assert store.requests.has_acceptance("a")
    assert not store.requests.has_acceptance("b")


def test_a_request_that_came_again_has_its_own_drafts(store: Store) -> None:
    plan(store, "a")
    fill = [
        Sample(*(0, "fill", 0.0, at, 0.1, at + 1, 16, 3, "ok", None, ()), RequestDrafts((k, 1), 9))
        for at, k in ((0.0, 5), (2.0, 6))
    ]
    broken = Sample(0, "fill", 0.0, 1.0, None, 2.0, None, None, "stream", "reset", ())
    store.requests.add("a", [fill[0], broken, fill[1]])
    assert store.requests.samples("a", "fill") == [fill[0], broken, fill[1]]


def test_time_and_events_of_a_study(store: Store) -> None:
    plan(store, "a")
    plan(store, "b", study="t")
    store.launches.keep_stages("a", Stages({"spawn": 1.5, "weights": None}, {"api": 2.0}))
    store.launches.keep_compile_cache("a", CompileCache(CacheUse.HIT, "/cache"))
    assert store.launches.stages("s") == {
        "a": Stages({"spawn": 1.5, "weights": None}, {"api": 2.0})
    }
    assert store.launches.compile_caches("s") == {"a": CompileCache(CacheUse.HIT, "/cache")}
    assert (store.launches.stages("t"), store.launches.compile_caches("t")) == ({}, {})
    store.launches.event("s", "healthy", trial=1, launch_id="a")
    store.launches.event("s", "told")
    found = [(e.what, e.trial, e.launch_id) for e in store.launches.events("s")]
    assert found == [("healthy", 1, "a"), ("told", None, None)]


def test_a_copied_launch_is_of_no_trial_until_it_is_given_one(store: Store, tmp_path: Path) -> None:
    with opened(tmp_path / "old.db", create=True) as old:
        old.take_lease()
        plan(old, "a", 5, study="old")
        old.requests.add("a", SAMPLES)
        for _again in range(2):
            store.launches.copy(old.launches, "a", new_id="b", study="s")
        there = old.launches.get("a")
    copied = store.launches.get("b")
    assert (copied.study, copied.trial) == ("s", NO_TRIAL)
    assert launch_text(copied) == "prelaunched for s"
    assert (copied.planned_at, copied.host) == (there.planned_at, there.host)
    assert (copied.worker, copied.lease_epoch) == (None, None)
    assert store.requests.samples("b") == SAMPLES[1:]
    store.launches.give("b", 4)
    assert launch_text(store.launches.get("b")) == "trial 4 of s"


def test_a_load_map_leaves_out_launches_that_failed(store: Store) -> None:
    point = store.load_maps.add_point("s", {"flags": {}}, 3, [(1, 4, 3)])
    study = load_sweep_name("s")
    for launch_id in ("a", "b"):
        plan(store, launch_id, point.id, study=study)
        store.load_maps.add_load(
            launch_id,
            point.id,
            concurrency=4,
            part=0,
            phase="4-0",
            stats=STATS,
            values={"tok/s": 7.0},
            intervals={"tok/s": (None, 8.0)},
            quality=quality(),
        )
    store.launches.failed("b", TrialFailure(FailureKind.CLOCK, "slept"), [])
    [load] = store.load_maps.loads(point.id)
    assert (load.launch_id, load.requests, load.values) == ("a", 2, {"tok/s": 7.0})
    [kept] = store.load_maps.points("s")
    assert (kept.n, kept.schedule, kept.setting) == (3, [[1, 4, 3]], {"flags": {}})
    assert launch_text(store.launches.get("a")) == "the load sweep of s"


def begin(store: Store, loaded: LoadedStudy, wanted: int = 1) -> None:
    store.begin_study(loaded, seed=0, wanted=wanted)


def test_a_study_is_begun_once_and_gone_on_with(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no study yet"):
        store.pick_study(None)
    loaded = load_study(str(write_study(tmp_path)))
    begin(store, loaded)
    begin(store, loaded, wanted=5)
    assert store.pick_study(None) == "double"
    again, row = store.load_study("double")
    assert (again.spec.name, row.wanted) == ("double", 5)
    changed = load_study(str(write_study(tmp_path, workload__num_prompts=7)))
    with pytest.raises(UserError, match="begun with another"):
        begin(store, changed)
    begin(store, load_study(str(write_study(tmp_path, name="second"))))
    with pytest.raises(UserError, match=r"several studies.*double, second"):
        store.pick_study(None)
    with pytest.raises(UserError, match="has no study third"):
        store.pick_study("third")


def test_what_vllm_said_is_kept_with_the_study(store: Store) -> None:
    with pytest.raises(UserError, match="was begun and never ran"):
        store.optuna_study("s")
    optuna.create_study(storage=store.storage, study_name="s")
    assert store.vllm("s") is None
    info = VllmInfo("0.32.0", "vllm", "/python", "cpu", {"--model": ("a",)}, (), ("note",))
    store.keep_vllm("s", info)
    assert store.vllm("s") == info
    assert store.optuna_study("s").study_name == "s"


def test_each_holder_of_the_lease_has_a_larger_epoch(open_store: OpenStore) -> None:
    first = open_store()
    plan(first, "before")
    first.take_lease()
    plan(first, "a")
    first.close()
    second = open_store()
    second.take_lease()
    plan(second, "b")
    before, a, b = (second.launches.get(x) for x in ("before", "a", "b"))
    assert (before.host, before.worker, before.lease_epoch) == (None, None, None)
    assert (a.host, a.worker) == (b.host, b.worker)
    assert a.host
    assert (a.lease_epoch, b.lease_epoch) == (1, 2)
    with second._sessions() as s:
        [lease] = s.scalars(select(LeaseRow))
        assert (lease.epoch, lease.host) == (2, a.host)
        assert (lease.expires_at is None) == isinstance(second.database, Path)
        workers = list(s.scalars(select(WorkerRow).order_by(WorkerRow.id)))
    assert [(w.lease_epoch, w.name, w.ended_at is None) for w in workers] == [
        (1, a.worker, False),
        (2, b.worker, True),
    ]
