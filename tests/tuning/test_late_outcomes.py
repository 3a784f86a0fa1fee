"""Measurements that nobody has written down yet: kept on the disk, taken once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pytest
from sqlalchemy import text

from autotune.bench.request_drafts import RequestDrafts
from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.engine.command import LaunchPlan
from autotune.storage.lease import Place
from autotune.storage.store import Store, opened
from autotune.study.files import load_study
from autotune.tuning import late_outcomes
from autotune.tuning.late_outcomes import LateOutcome, accept, take_here
from autotune.tuning.recovery import end_unended, launches_elsewhere, note_left
from tests.studies import write_study

PLAN = LaunchPlan(("vllm", "serve"), {}, {}, "key", 8000, "m", "m")
STATS = ServerStats(3, 30, 20, 7.5, (0.9, 0.5), 0, None, None)


def sample(phase: str) -> Sample:
    return Sample(0, phase, 0.0, 0.0, 0.25, 0.5, 16, 2, "ok", None, (0.25, 0.5))


def outcome(launch_id: str) -> LateOutcome:
    phases = [[sample("warmup")], [sample("measure")]]
    return LateOutcome(launch_id, phases, STATS, {"x": 1.5}, {"x": (1.0, 2.0)}, {"requests": 1})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A study ``double`` with one trial that runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with opened(tmp_path / "a.db", create=True) as made:
        made.begin_study(load_study(str(write_study(tmp_path))), seed=0, wanted=2)
        optuna.create_study(storage=made.storage, study_name="double").ask()
        yield made


def plan(store: Store, launch_id: str, place: Place | None = None, **machine: object) -> str:
    store.launches.plan(
        launch_id,
        study="double",
        trial=0,
        attempt=0,
        plan=PLAN,
        machine={"gpus": [], **machine},
        log_path=Path("/x.log"),
        place=place,
    )
    return launch_id


def events(store: Store) -> list[str]:
    return [e.what for e in store.launches.events("double")]


def test_it_is_taken_once_by_the_id_of_its_launch(store: Store) -> None:
    plan(store, "a")
    store.requests.add("a", [sample("warmup")])  # so far the driver had come
    late_outcomes.keep(outcome("a"))
    late_outcomes.keep(outcome("of another database"))
    take_here(store)
    row = store.launches.get("a")
    assert (row.values, row.intervals) == ({"x": 1.5}, {"x": [1.0, 2.0]})
    assert [r.phase for r in store.requests.of_launch("a")] == ["warmup", "measure"]
    assert events(store) == ["a late outcome arrived"]
    assert [x.launch_id for x in late_outcomes.kept()] == ["of another database"]
    assert accept(store, replace(outcome("a"), values={"x": 9.0}))  # its file is not needed
    assert store.launches.get("a").values == {"x": 1.5}
    assert events(store) == ["a late outcome arrived"]


@pytest.mark.parametrize("what", ["measured again", "under way again", "told"])
def test_it_is_not_taken_when_its_trial_was_launched_again(store: Store, what: str) -> None:
    plan(store, "a")
    if what != "told":
        plan(store, "b")
    if what == "measured again":
        store.launches.measured("b", STATS, {"x": 2.0}, {}, {})
        store.launches.ended("b", 0, 0)
    if what == "told":
        optuna.load_study(storage=store.storage, study_name="double").tell(0, 2.0)
    assert accept(store, outcome("a"))
    assert store.launches.get("a").measured_at is None
    assert events(store) == ["a late outcome was not needed: the trial was launched again"]


def test_one_after_a_failed_launch_counts(store: Store) -> None:
    plan(store, "a")
    plan(store, "b")
    store.launches.ended("b", 1, 0)
    assert accept(store, outcome("a"))
    assert store.launches.get("a").measured_at is not None


def test_it_is_read_as_it_was(store: Store) -> None:
    drafts = RequestDrafts((1, 0, 2), 6, ((0, 2), (2, 2), (2, 2)))
    told = replace(sample("measure"), end=0.1 + 0.2, drafts=drafts, category="math")
    kept = replace(outcome("a"), samples=[[], [told]], intervals={"x": (None, 1 / 3)})
    late_outcomes.keep(kept)
    assert late_outcomes.kept() == [kept]


def test_what_cannot_be_read_is_left_and_what_is_old_goes(store: Store) -> None:
    late_outcomes.keep(outcome("a"))
    late_outcomes.keep(outcome("b"))
    folder = late_outcomes._folder()
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    whole = (folder / "a.json").read_bytes()
    (folder / "torn.json").write_bytes(whole[:-1])
    (folder / "empty.json").write_bytes(b"")
    (folder / "other.json").write_bytes(late_outcomes._sealed(b'"crash"'))
    (folder / "folder.json").mkdir()
    old = time.time() - late_outcomes.KEEP_S - 1
    os.utime(folder / "b.json", (old, old))
    assert [x.launch_id for x in late_outcomes.kept()] == ["a"]
    left = {"a", "torn", "empty", "other", "folder"}
    assert {p.stem for p in folder.iterdir()} == left


def test_what_a_disk_damaged_is_never_taken_for_a_measurement(store: Store) -> None:
    late_outcomes.keep(outcome("a"))
    [file] = late_outcomes._folder().iterdir()
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :])
        assert late_outcomes.kept() == []


@pytest.mark.parametrize("part", ["quality", "ttft", "speculates"])
def test_what_another_version_wrote_is_left(store: Store, part: str) -> None:
    other = json.dumps(asdict(outcome("a"))).replace(f'"{part}"', '"of_another_version"').encode()
    late_outcomes.keep(outcome("a"))
    [file] = late_outcomes._folder().iterdir()
    file.write_bytes(late_outcomes._sealed(other))
    take_here(store)
    assert file.exists()
    assert events(store) == []


@pytest.mark.parametrize("what", ["trial", "study"])
def test_one_whose_trial_was_deleted_is_not_taken(store: Store, what: str) -> None:
    plan(store, "a")
    late_outcomes.keep(outcome("a"))
    if what == "study":
        optuna.delete_study(storage=store.storage, study_name="double")
    else:
        with store.launches._sessions() as session:
            session.execute(text("pragma foreign_keys = off"))
            session.execute(text("delete from trials"))
            session.commit()
    take_here(store)
    assert store.launches.get("a").measured_at is None
    assert late_outcomes.kept() == []


def test_launches_of_other_hosts_are_left_to_them(store: Store) -> None:
    elsewhere = Place("host-b", "1", "another boot")
    plan(store, "a", elsewhere, slot={"number": 1, "host": "host-b"})
    plan(store, "carried", elsewhere)  # a file that was carried to this host
    assert [x.launch_id for x, _ in end_unended(store, 1)] == ["carried"]
    [(host, identity)] = launches_elsewhere(store)
    assert (host, identity.launch_id, identity.boot_id) == ("host-b", "a", "another boot")
    for _ in range(2):
        note_left(store, "a", 2)
    note_left(store, "never written down", 2)
    assert (store.launches.get("a").killed, launches_elsewhere(store)) == (2, [])
    assert events(store).count("found a launch without an end; ended 2 processes") == 1
