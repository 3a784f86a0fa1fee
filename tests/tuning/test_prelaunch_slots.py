"""Prelaunched servers of several slots, over a stand-in for vLLM."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.tuning.placement import next_of_blocks
from autotune.tuning.reserved import Reserved
from autotune.tuning.situation import Choice
from tests.standin import MODULE, write_vllm
from tests.studies import (
    UNENDED,
    autotune,
    query,
    start_autotune,
    trials,
    wait_until,
    write_study,
)
from tests.tuning.test_parallel import (
    QUICK,
    check_whole,
    in_turn,
    none_left,
    own_processes,
    slots_of,
    slots_of_blocks,
)
from tests.tuning.test_prelaunch import events

double = pytest.mark.double
two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two slots need two cores")
# Slots of launches that were prelaunched, are up, and belong to no trial yet.
IDLE = (
    "select distinct json_extract(machine, '$.slot.number') from autotune_launches "
    "where trial = -1 and ended_at is null and ready_at is not null order by 1"
)


def write(folder: Path, *, env: dict[str, str] = QUICK, **changes: Any) -> str:
    """A study on CPUs whose servers may be prelaunched."""
    vllm = write_vllm(folder / "vllm", device="cpu")
    study = write_study(
        folder,
        server__command=[sys.executable, "-m", MODULE],
        server__env={"PYTHONPATH": str(vllm), **env},
        server__ahead=3,
        **changes,
    )
    return str(study)


def slots_of_launches(folder: Path) -> dict[str, int]:
    """The slot of each launch."""
    rows = query(folder, "select launch_id, machine from autotune_launches")
    return {str(launch): json.loads(str(m))["slot"]["number"] for launch, m in rows}


@double
@two_cores
def test_each_slot_prelaunches_what_it_measures(tmp_path: Path) -> None:
    study = write(tmp_path, budget={"confirm": 4})
    done = autotune("run", study, "--trials", "12", "--parallel", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path, 12)
    assert "server.ahead" not in done.stdout

    ahead, at = events(tmp_path, "prelaunching"), slots_of_launches(tmp_path)
    turns = events(tmp_path, "trial begins")
    assert ahead.keys() == turns.keys()  # each was used
    slots = slots_of(tmp_path)
    of = dict(query(tmp_path, "select launch_id, trial from autotune_launches"))
    assert all(slots[int(str(number))] == at[str(launch)] for launch, number in of.items())
    assert slots_of_blocks(tmp_path) == {0: {0}, 1: {1}}
    confirming = {t["trial"] for t in trials(tmp_path) if t["confirms"] is not None}
    assert {of[launch] for launch in ahead} & confirming

    # on a slot nothing starts while something is measured
    begins = {**events(tmp_path, "launching"), **ahead}
    healthy, warm = events(tmp_path, "healthy"), events(tmp_path, "warm")
    assert all(healthy[launch] < turn for launch, turn in turns.items())
    for launch, end in events(tmp_path, "measured").items():
        own = [x for x in begins if at[x] == at[launch]]
        assert not any(warm[launch] < when < end for x in own for when in (begins[x], healthy[x]))


def slot_with_idle_ones(folder: Path) -> int:
    """Waits until a slot has servers that are up and idle; that slot."""
    wait_until((folder / "autotune.db").exists)
    found: list[int] = []

    def there() -> bool:
        with contextlib.suppress(sqlite3.OperationalError):  # not made yet
            found[:] = [int(str(slot)) for (slot,) in query(folder, IDLE)]
        return bool(found)

    wait_until(there)
    return found[0]


@double
@two_cores
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_ends_takes_all_of_them_along_and_goes_on(
    tmp_path: Path, how: signal.Signals
) -> None:
    study = write(tmp_path, env=in_turn(tmp_path, 0.01, 0.01, *[0.3] * 4), budget={"confirm": 0})
    run = start_autotune("run", study, "--trials", "6", "--parallel", "2", cwd=tmp_path)
    slot = slot_with_idle_ones(tmp_path)
    processes = own_processes(run)
    assert f"prelaunched for double, slot {slot}" in autotune("ps", cwd=tmp_path).stdout
    run.send_signal(how)
    _, err = run.communicate()
    assert run.returncode == (-how if how == signal.SIGKILL else 130), err
    assert "Traceback" not in err
    none_left(tmp_path, processes)
    if how != signal.SIGKILL:
        assert query(tmp_path, UNENDED) == [(0,)]
    done = autotune("run", study, "--trials", "6", "--parallel", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path, 6)


@double
@two_cores
def test_a_slots_process_that_dies_takes_its_own_along_only(tmp_path: Path) -> None:
    study = write(tmp_path, env=in_turn(tmp_path, *[0.1] * 6), budget={"confirm": 0})
    run = start_autotune("run", study, "--trials", "6", "--parallel", "2", cwd=tmp_path)
    slot = slot_with_idle_ones(tmp_path)
    [(pid,)] = query(
        tmp_path,
        "select json_extract(identity, '$.pid') from autotune_launches where trial >= 0 and "  # noqa: S608
        f"ended_at is null and json_extract(machine, '$.slot.number') = {slot}",
    )
    victim = next(
        p
        for p in psutil.Process(run.pid).children()
        if int(str(pid)) in {x.pid for x in p.children(recursive=True)}
    )
    below = [victim, *victim.children(recursive=True)]
    victim.kill()
    none_left(tmp_path / "nothing", below)
    out, err = run.communicate()
    assert (run.returncode, err) == (0, "")
    assert "The trial is launched again" in out
    check_whole(tmp_path, 6)
    unused = "select launch_id from autotune_launches where trial = -1"
    at = slots_of_launches(tmp_path)
    assert {at[str(launch)] for (launch,) in query(tmp_path, unused)} == {slot}


# -- which choices a slot gets -------------------------------------------------------------------


def choices(*numbers: int) -> list[Choice]:
    return [Choice({"n": n}) for n in numbers]


def test_choices_are_reserved_for_one_slot_and_given_back_when_it_is_gone() -> None:
    reserved = Reserved()
    one, two, three = choices(1, 2, 3)
    reserved.keep(1, [one, two])
    reserved.keep(3, [three])
    assert (reserved.of(1), reserved.of(0)) == ((one, two), ())
    assert (reserved.elsewhere(1), reserved.elsewhere()) == ((three,), (one, two, three))
    assert reserved.take([1]) == (3, three)
    assert reserved.take([0, 2]) == (1, one)
    assert reserved.take([1]) is None
    reserved.release([0, 1])
    assert reserved.of(1) == (two,)
    reserved.release([0])
    assert reserved.elsewhere() == ()


@pytest.mark.parametrize(
    ("loads", "left", "fair"),
    [
        ([1, 1], 10, 5),
        ([1, 1], 3, 2),
        ([1, 1], 1, 1),
        ([1, 1], 0, 0),
        ([1, 4], 2, 2),  # the other one has enough
        ([4, 1], 2, 3),  # it keeps its own three, and gets no more
        ([1], 7, 7),
    ],
)
def test_slots_end_at_about_the_same_time(loads: Sequence[int], left: int, fair: int) -> None:
    reserved = Reserved()
    for slot, load in enumerate(loads):
        reserved.keep(slot, choices(*range(load - 1)))
    busy = {10 + slot: slot for slot in range(len(loads))}
    assert reserved.fair(0, busy, range(len(loads)), left) == fair


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        ([(0, True, True)], ("b", 0)),  # its own block goes on
        ([(0, True, True), (0, True, True)], ("a", 1)),  # then one that nobody has begun
        ([(0, True, True), (0, True, True), (1, True, False)], ("c", 2)),
        ([(0, True, False), (1, True, True)], ("b", 1)),
        ([(0, False, False), (1, True, True)], ("b", 1)),  # the first one's slot goes on with it
        ([(0, False, False)], ("b", 0)),
        ([(0, True, False), (1, True, False), (2, True, False)], None),
    ],
)
def test_a_block_is_prelaunched_on_its_own_slot_only(
    begun: list[tuple[int | None, bool, bool]], expected: tuple[str, int] | None
) -> None:
    order = [*"abab", *"cd"]
    found = next_of_blocks(begun, list(range(6)), [2, 2, 2])
    assert (found and (order[found[0]], found[1])) == expected
