"""Whole studies on two slots over the server double, and what ends them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.api import Event, StopTuning, Study, tune
from autotune.errors import UserError
from tests.studies import (
    PATIENCE_S,
    UNENDED,
    Forked,
    autotune,
    finished,
    processes_of,
    query,
    start_autotune,
    trials,
    wait_for_event,
    wait_until,
    write_study,
)

pytestmark = [
    pytest.mark.double,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two slots need two cores"),
]

QUICK = {"DOUBLE_STEP_S": "0.01"}


def write(folder: Path, **changes: Any) -> str:
    return str(write_study(folder, **{"server__env": QUICK, **changes}))


def in_turn(folder: Path, *steps: float, **env: str) -> dict[str, str]:
    """Of servers whose first launches take so many seconds a step, and all others are quick.

    What is to be hit while two are measured lasts long enough for a busy machine to bring both to
    that point, and what is measured afterwards takes no time.
    """
    file = folder / "turns"
    file.write_text("".join(f'{{"DOUBLE_STEP_S": "{step}"}}\n' for step in steps))
    return {**QUICK, "DOUBLE_TURNS": str(file), **env}


def slots_of(folder: Path) -> dict[int, int]:
    """The slot of each trial that has one."""
    return {t["trial"]: t["slot"]["number"] for t in trials(folder) if t["slot"]}  # type: ignore[index, misc]


def slots_of_blocks(folder: Path) -> dict[int, set[int]]:
    """The slots that launched something of each block of the confirmation."""
    found: dict[int, set[int]] = {}
    slots = slots_of(folder)
    rows = query(
        folder,
        "select t.number, a.value_json from trials t join trial_user_attributes a using (trial_id) "
        "where a.key = 'confirmation_block'",
    )
    for number, block in rows:
        found.setdefault(int(str(block)), set()).add(slots[int(str(number))])
    return found


def launches(folder: Path, columns: str) -> list[tuple[Any, ...]]:
    return query(folder, f"select {columns} from autotune_launches order by planned_at")  # noqa: S608


def own_processes(run: Forked) -> list[psutil.Process]:
    """The processes of a run's slots, and all below them."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(run.pid).children(recursive=True)
    return []


def both_measure(folder: Path, run: Forked) -> list[psutil.Process]:
    """Waits until two servers are measured at once; all processes of the run's slots."""
    wait_for_event(folder, "warm", 2)
    sql = (
        "select count(*) from autotune_launches l where ended_at is null and exists "
        "(select 1 from autotune_events e where e.launch_id = l.launch_id and what = 'warm')"
    )
    wait_until(lambda: query(folder, sql) == [(2,)])
    return own_processes(run)


def none_left(folder: Path, processes: list[psutil.Process]) -> None:
    """Waits until neither servers nor processes of the slots are left."""
    begun = time.monotonic()
    while left := [*processes_of(folder), *(p for p in processes if p.is_running())]:
        left = [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return
        assert time.monotonic() - begun < PATIENCE_S, left
        time.sleep(0.05)


def check_whole(folder: Path, wanted: int, *, failed: int = 0) -> None:
    """Exactly the wanted trials, none twice, nothing open."""
    rows = trials(folder)
    states = Counter(t["state"] for t in rows)
    assert states == Counter({"complete": wanted - failed, "failed": failed} if failed else states)
    assert finished(folder) == wanted
    searched = [json.dumps(t["params"]) for t in rows if t["replicates"] is t["confirms"] is None]
    assert len(set(searched)) == len(searched)
    told = query(
        folder,
        "select value_json from trial_user_attributes where key = 'launch'",
    )
    assert len(set(told)) == len(told) == wanted - failed
    assert query(folder, UNENDED) == [(0,)]
    assert query(folder, "pragma integrity_check") == [("ok",)]
    assert processes_of(folder) == []


def test_two_slots_make_one_study(tmp_path: Path) -> None:
    study = write(tmp_path)
    done = autotune("run", study, "--trials", "12", "--parallel", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path, 12)
    slots = slots_of(tmp_path)
    assert set(slots.values()) == {0, 1}
    assert len(slots) == 12
    rows = trials(tmp_path)
    confirming = {t["trial"] for t in rows if t["confirms"] is not None}
    assert confirming
    assert {slots[n] for n in confirming} == {0, 1}  # type: ignore[index]
    assert slots_of_blocks(tmp_path) == {0: {0}, 1: {1}}

    # two of the search were measured at the same time, two of the confirmation too, in two blocks
    events = query(tmp_path, "select trial, what, at from autotune_events order by at")
    during: dict[int, tuple[float, float]] = {}
    for number in slots:
        at = {what: when for of, what, when in events if of == number}
        during[number] = (at["launching"], at["stopped"])  # type: ignore[assignment]

    def beside(number: int) -> set[int]:
        begin, end = during[number]
        return {k for k, (a, b) in during.items() if k != number and a < end and b > begin}

    assert any(beside(number) for number in slots.keys() - confirming)
    assert any(beside(number) for number in confirming)  # type: ignore[arg-type]
    assert all(beside(number) <= confirming for number in confirming)  # type: ignore[arg-type]

    # each on a core and on ports of its own
    machines = [json.loads(m) for (m,) in launches(tmp_path, "machine")]
    assert {m["cores"] for m in machines} == {len(os.sched_getaffinity(0)) // 2}
    assert len({m["slot"]["cores"] for m in machines}) == 2
    ports: dict[int, set[int]] = {0: set(), 1: set()}
    for machine, port in launches(tmp_path, "machine, port"):
        ports[json.loads(machine)["slot"]["number"]].add(port)
    assert not ports[0] & ports[1]

    # and everybody says which
    lines = done.stdout.splitlines()
    assert any(line.startswith("slot 0  [1/12] trial 0") for line in lines)
    assert any(line.startswith("slot 1  [2/12] trial 1") for line in lines)
    assert "; each block of the confirmation stays on one of them" in done.stdout
    story = autotune("status", "--trial", "1", cwd=tmp_path).stdout
    assert f"slot {slots[1]} of 2: core" in story
    assert "slot 1" in autotune("status", cwd=tmp_path).stdout
    page = tmp_path / "page.html"
    assert autotune("report", "--out", str(page), cwd=tmp_path).returncode == 0
    assert "1 of 2: core" in page.read_text()

    # it goes on with as many slots, and not without: a server would have more cores
    for command in (("run", study, "--trials", "14"), ("confirm", study)):
        other = autotune(*command, cwd=tmp_path)
        assert other.returncode == 2
        assert "and a server without slots has" in other.stderr
        assert "--parallel" in other.stderr
        assert other.stderr.count("\n") == 1
    more = autotune("run", study, "--trials", "14", "--parallel", "2", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert finished(tmp_path) == 14

    # the winners are confirmed again, with blocks on both slots at the same time
    again = autotune("confirm", study, "--launches", "4", "--parallel", "2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    check_whole(tmp_path, 18)
    last = [t["trial"] for t in trials(tmp_path)][-4:]
    assert all(t["confirms"] is not None for t in trials(tmp_path)[-4:])
    slots = slots_of(tmp_path)
    assert {slots[n] for n in last} == {0, 1}  # type: ignore[index]
    assert "slot 1  [16/18] trial" in again.stdout


def test_a_study_of_one_slot_is_not_continued_with_fewer_cores(tmp_path: Path) -> None:
    study = write(tmp_path)
    assert autotune("run", study, "--trials", "2", cwd=tmp_path).returncode == 0
    assert slots_of(tmp_path) == {}
    done = autotune("run", study, "--trials", "4", "--parallel", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert f"and a slot has {len(os.sched_getaffinity(0)) // 2}: they are not" in done.stderr
    assert done.stderr.count("\n") == 1
    same = autotune("run", study, "--trials", "3", "--parallel", "auto", cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    assert finished(tmp_path) == 3
    for words in ("0", "many", "-1", "1.5"):
        wrong = autotune("run", study, "--parallel", words, cwd=tmp_path)
        assert wrong.returncode == 2
        assert "neither auto nor a number" in wrong.stderr


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])  # SIGINT: twice, below
def test_a_run_that_ends_takes_both_along_and_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    study = write(tmp_path, server__env=in_turn(tmp_path, 0.01, 1.0, 1.0))
    run = start_autotune("run", study, "--trials", "6", "--parallel", "2", cwd=tmp_path)
    wait_for_event(tmp_path, "told", 1)
    before = {t["trial"]: t["objectives"] for t in trials(tmp_path) if t["state"] == "complete"}
    processes = both_measure(tmp_path, run)
    under_way = query(tmp_path, "select number from trials where state = 'RUNNING'")
    assert len(under_way) == 2
    assert "were interrupted" not in autotune("status", cwd=tmp_path).stdout
    running = [t["slot"] for t in trials(tmp_path) if t["state"] == "running"]
    assert {slot["number"] for slot in running} == {0, 1}  # type: ignore[index]
    run.send_signal(how)
    _, err = run.communicate()
    assert "were interrupted" in autotune("status", cwd=tmp_path).stdout
    assert run.returncode == (-how if how == signal.SIGKILL else 130), err
    none_left(tmp_path, processes)
    assert "Traceback" not in err
    assert len(err.splitlines()) == (how != signal.SIGKILL)
    if how != signal.SIGKILL:
        assert query(tmp_path, UNENDED) == [(0,)]
    done = autotune("run", study, "--trials", "6", "--parallel", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path, 6)
    after = {t["trial"]: t["objectives"] for t in trials(tmp_path)}
    assert {k: after[k] for k in before} == before
    for (number,) in under_way:  # launched again as the same trial, unless it was just measured
        attempts = query(
            tmp_path,
            "select attempt, measured_at is not null from autotune_launches "  # noqa: S608
            f"where trial = {number} order by attempt",
        )
        assert attempts in ([(0, 0), (1, 1)], [(0, 1)])


@pytest.mark.parametrize("told", [8, 9, 10])
def test_a_block_of_the_confirmation_stays_on_its_slot_when_the_run_was_killed(
    tmp_path: Path, told: int
) -> None:
    study = write(tmp_path, server__env={"DOUBLE_STEP_S": "0.03"})
    run = start_autotune("run", study, "--trials", "12", "--parallel", "2", cwd=tmp_path)
    wait_for_event(tmp_path, "told", told)
    wait_for_event(tmp_path, "launching", told + 1)
    processes = own_processes(run)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    none_left(tmp_path, processes)
    done = autotune("run", study, "--trials", "12", "--parallel", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path, 12)
    found = slots_of_blocks(tmp_path)
    assert found.keys() == {0, 1}
    assert all(len(of) == 1 for of in found.values())
    assert set.union(*found.values()) == {0, 1}


def test_interrupted_twice_it_does_not_wait_for_stubborn_servers(tmp_path: Path) -> None:
    env = in_turn(tmp_path, 0.3, 0.3, DOUBLE_STUBBORN="1")
    study = write(tmp_path, server__env=env, server__stop_timeout_s=1200)
    run = start_autotune("run", study, "--trials", "4", "--parallel", "2", cwd=tmp_path)
    processes = both_measure(tmp_path, run)
    run.send_signal(signal.SIGINT)
    run.wait_for_words("slot 0  [1/4] trial 0  n = 0, MNBT 2048  stopping")
    run.wait_for_words("slot 1  [2/4] trial 1  n = 15, MNBT 64  stopping")
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    _, err = run.communicate()
    assert run.returncode == 130, err
    assert "Traceback" not in err
    none_left(tmp_path, processes)
    assert query(tmp_path, UNENDED) == [(0,)]


def test_a_server_that_is_killed_is_launched_again_and_the_other_goes_on(tmp_path: Path) -> None:
    study = write(tmp_path, server__env=in_turn(tmp_path, 0.2, 0.2))
    run = start_autotune("run", study, "--trials", "3", "--parallel", "2", cwd=tmp_path)
    both_measure(tmp_path, run)
    [(pid,)] = query(
        tmp_path,
        "select json_extract(identity, '$.pid') from autotune_launches where trial = 1",
    )
    psutil.Process(int(str(pid))).kill()
    _, err = run.communicate()
    assert run.returncode == 0, err
    check_whole(tmp_path, 3)
    counts = query(tmp_path, "select trial, count(*) from autotune_launches group by trial")
    assert counts == [(0, 1), (1, 2), (2, 1)]


@pytest.mark.parametrize("fault", ["crash_mid", "hang", "crash"])
def test_a_trial_that_fails_does_not_touch_the_other_slot(tmp_path: Path, fault: str) -> None:
    env = {
        "DOUBLE_STEP_S": "0.02",
        "DOUBLE_FAIL": fault,
        "DOUBLE_FAIL_IF": "num_speculative_tokens>=15",
    }
    hangs = {"workload__hang_timeout_s": 5} if fault == "hang" else {}
    study = write(tmp_path, server__env=env, budget={"confirm": 0}, **hangs)
    done = autotune("run", study, "--trials", "4", "--parallel", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    failed = [t for t in trials(tmp_path) if t["state"] == "failed"]
    assert {t["failure_kind"] for t in failed} == {fault.partition("_")[0]}
    assert all(t["slot"] for t in failed)
    check_whole(tmp_path, 4, failed=len(failed))
    again = query(tmp_path, "select count(*) from autotune_launches where failure_kind is not null")
    assert again == [(2 * len(failed),)]  # transient: each was tried once more, and only once


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_slots_process_that_breaks_is_replaced(tmp_path: Path, how: signal.Signals) -> None:
    study = write(tmp_path, server__env=in_turn(tmp_path, 0.2, 0.2))
    run = start_autotune("run", study, "--trials", "4", "--parallel", "2", cwd=tmp_path)
    both_measure(tmp_path, run)
    victim = next(p for p in psutil.Process(run.pid).children() if p.is_running())
    below = [victim, *victim.children(recursive=True)]
    victim.send_signal(how)
    none_left(tmp_path / "nothing", below)
    out, err = run.communicate()
    assert (run.returncode, err) == (0, "")
    assert "ended with exit code -9; its log is" in out
    assert "The trial is launched again" in out
    check_whole(tmp_path, 4)
    again = query(tmp_path, "select count(*) from autotune_launches where measured_at is null")
    assert again == [(1,)]  # the other one was not touched


def test_what_was_measured_while_the_driver_stood_still_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "dflash-autotune" / "outcomes"
    study = write(tmp_path, server__env=in_turn(tmp_path, 0.2, 0.2))
    run = start_autotune("run", study, "--trials", "2", "--parallel", "2", cwd=tmp_path)
    processes = both_measure(tmp_path, run)
    run.send_signal(signal.SIGSTOP)
    wait_until(lambda: len(list(kept.glob("*.json"))) == 2)
    run.kill()
    run.communicate()
    none_left(tmp_path, processes)
    done = autotune("run", study, "--trials", "2", "--parallel", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path, 2)
    assert query(tmp_path, "select count(*) from autotune_launches") == [(2,)]
    late = "select count(*) from autotune_events where what = 'a late outcome arrived'"
    assert query(tmp_path, late) == [(2,)]
    assert list(kept.iterdir()) == []


def test_a_fault_of_the_machine_ends_both(tmp_path: Path) -> None:
    env = {
        "DOUBLE_STEP_S": "0.1",
        "DOUBLE_FAIL": "driver",
        "DOUBLE_FAIL_IF": "num_speculative_tokens>=15",
    }
    study = write(tmp_path, server__env=env)
    before = psutil.Process().children()
    done = autotune("run", study, "--trials", "4", "--parallel", "2", cwd=tmp_path)
    assert done.returncode == 1
    assert "driver is too old" in done.stderr
    assert processes_of(tmp_path) == []
    assert query(tmp_path, UNENDED) == [(0,)]
    assert psutil.Process().children() == before


def test_ps_says_the_slot_and_reap_leaves_both_alone(tmp_path: Path) -> None:
    study = write(tmp_path, server__env=in_turn(tmp_path, 0.3, 0.3))
    run = start_autotune("run", study, "--trials", "4", "--parallel", "2", cwd=tmp_path)
    both_measure(tmp_path, run)
    said = autotune("ps", cwd=tmp_path).stdout
    left = autotune("reap", cwd=tmp_path).stdout
    run.terminate()
    run.communicate()
    for slot in (0, 1):
        assert f"trial {slot} of double, slot {slot}; owner: autotune {run.pid}" in said
    assert left.count(f"left alone: it belongs to autotune {run.pid}") == 2
    assert processes_of(tmp_path) == []


def test_from_python_each_event_has_its_slot_and_a_callback_ends_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = Study.from_file(write(tmp_path, server__env=in_turn(tmp_path, 0.2, 0.2)))
    with pytest.raises(UserError, match="parallel must be at least 1, not 0"):
        tune(study, trials=4, parallel=0)
    seen: dict[int, set[str]] = {0: set(), 1: set()}

    def on_event(event: Event) -> None:
        if event.trial is not None:
            assert event.slot == event.trial  # the first two
            seen[event.slot].add(event.text if event.what == "stage" else event.what)
        if all("measuring" in whats for whats in seen.values()):
            raise StopTuning

    result = tune(study, trials=4, parallel=2, on_event=on_event)
    assert result.reason == "a callback ended it"
    assert all({"begin", "launching", "warming", "measuring"} <= whats for whats in seen.values())
    assert processes_of(tmp_path) == []
    assert query(tmp_path, UNENDED) == [(0,)]
    again = tune(study, trials=2, parallel=2)
    assert [t.slot["number"] for t in again.trials if t.slot] == [0, 1]
