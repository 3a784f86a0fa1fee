"""`autotune map` with several slots: what is launched where, and what it comes to."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import FailureKind
from autotune.serving.slots import Slot
from autotune.tuning import load_map
from autotune.tuning.launcher import Launcher
from autotune.tuning.load_map_point import SweepPoint, SweepRunner
from autotune.tuning.trial import Outcome
from tests.studies import (
    UNENDED,
    autotune,
    processes_of,
    query,
    start_autotune,
    wait_for_event,
    wait_until,
    write_study,
)
from tests.tuning.test_load_map import Instant, demo_speed, stand_in

RUN = (
    "select point, concurrency, part, json_extract(machine, '$.slot.number') from autotune_loads "
    "join autotune_launches using (launch_id) order by autotune_loads.id"
)
POINTS = "select id, n, schedule, repeat from autotune_map_points order by id"


class Pool:
    """An executor of slots that launch nothing: points end in the order in which they began.

    Attributes:
        rounds: Points that were under way at the same time, by their ids.
        interrupts: The outcome, counted from 1, instead of which the run is interrupted.
    """

    def __init__(self, run: Any, instant: Instant, slots: Sequence[Slot]) -> None:
        self.run, self.instant, self.slots = run, instant, slots
        self.waiting: deque[SweepPoint] = deque()
        self.rounds: list[list[int]] = []
        self.interrupts = 0
        self.ended = 0

    @property
    def capacity(self) -> int:
        return len(self.slots) - len(self.waiting)

    def submit(self, point: SweepPoint) -> None:
        assert point.slot not in [x.slot for x in self.waiting]
        self.waiting.append(point)

    def completed(self) -> list[tuple[SweepPoint, Outcome]]:
        self.rounds.append([x.number for x in self.waiting])
        self.ended += 1
        if self.ended == self.interrupts:
            raise KeyboardInterrupt
        point = self.waiting.popleft()
        run, slot = self.run, next(s for s in self.slots if s.number == point.slot)
        tools = dataclasses.replace(
            run.tools,
            server=self.instant.server,
            measuring=lambda *a, **k: self.instant.measuring(*a, **k, slot=slot.number),
        )
        launcher = Launcher(run.p, run.ledger, run.launcher.logs.folder, tools=tools, slot=slot)
        launcher.machine["cores"] = len(slot.cores)
        runner = SweepRunner(
            run.p,
            run.requests,
            run.store,
            run.ledger,
            launcher,
            run.progress,
            run.missing,
            tools=tools,
        )
        with launcher:
            return [(point, runner.run(point))]

    def close(self) -> None:
        self.waiting.clear()


class SlotInstant(Instant):
    """Numbers that depend on the slot, too."""

    def __init__(self, factors: Sequence[float]) -> None:
        super().__init__()
        self.factors = factors

    def measuring(self, *args: Any, slot: int, **kw: Any) -> Any:
        usual: Callable[..., float] = self.speed
        made = super().measuring(*args, **kw)
        measure = made.measure

        def on_slot(*a: Any, **k: Any) -> Any:
            self.speed = lambda n, load, *more: usual(n, load, *more) * self.factors[slot]
            try:
                return measure(*a, **k)
            finally:
                self.speed = usual

        made.measure = on_slot
        return made


def on_slots(
    monkeypatch: pytest.MonkeyPatch, factors: Sequence[float]
) -> tuple[SlotInstant, list[Pool]]:
    """Let the next runs have slots that differ by these factors."""
    stand_in(monkeypatch)
    instant, pools = SlotInstant(factors), []
    slots = tuple(Slot(i, len(factors), (i,)) for i in range(len(factors)))
    monkeypatch.setattr("autotune.tuning.slots.slots_of_host", lambda *_: slots)

    def make(run: Any) -> Pool:
        pools.append(Pool(run, instant, slots))
        return pools[-1]

    monkeypatch.setattr(load_map.SweepRun, "make_executor", make)
    return instant, pools


WIDE = ("--concurrency", "1,4,16", "--json", "--parallel", "auto")


def test_eight_slots_that_differ_find_what_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = (1.0, 1.05, 0.96, 1.03, 0.97, 1.05, 0.95, 1.02)
    instant, pools = on_slots(monkeypatch, factors)
    study = write_study(tmp_path)
    args = ("map", str(study), *WIDE, "--launches", "7", "--confirm", "8")
    done = autotune(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    points = {row[0]: row for row in query(tmp_path, POINTS)}
    swept = [n for _, n, ranges, repeat in points.values() if repeat is None and ranges is None]
    links = [row for row in points.values() if row[3] == 0]
    assert swept[:2] == [0, 3]
    assert len(set(swept)) == len(swept)
    assert 1 <= len(links) <= 5  # n = 0 again, on each slot that launched another n
    assert {n for _, n, _, _ in links} == {0}
    # the first wait was for n = 0 on several slots, the second one for several n
    assert {points[k][1] for k in pools[0].rounds[0]} == {0}
    assert len(pools[0].rounds[0]) == 1 + len(links)
    assert max(sum(points[k][1] > 0 for k in of) for of in pools[0].rounds) >= 3
    # each point was launched on one slot, and each slot of the sweep has n = 0
    at: dict[int, set[int]] = {}
    for point, _, _, slot in query(tmp_path, RUN):
        at.setdefault(int(str(point)), set()).add(int(str(slot)))
    assert all(len(of) == 1 for of in at.values())
    with_none = {min(at[k]) for k, (_, n, _, r) in points.items() if n == 0 and r in (None, 0)}
    assert {min(at[k]) for k, row in points.items() if row[3] is None} <= with_none
    # each pass of the confirmation on one slot, at the same time as others
    passes: dict[int, set[int]] = {}
    for k, row in points.items():
        if row[3]:
            passes.setdefault(int(str(row[3])), set()).update(at[k])
    assert len(passes) >= 2
    assert all(len(of) == 1 for of in passes.values())
    assert len({min(of) for of in passes.values()}) == len(passes)
    # speed-ups are those of the n, not of the slots: 8 % lie between some of them
    assert found["slots"] == len(set.union(*at.values()))
    none = {p["n"]: p for p in found["points"] if p["schedule"] is None}
    for n, p in none.items():
        for load in (1, 4, 16):
            truth = demo_speed(n, load) / demo_speed(0, load)
            shown = p["loads"][str(load)]["tok_s"] / none[0]["loads"][str(load)]["tok_s"]
            assert shown == pytest.approx(truth, rel=0.04), (n, load)
    assert (found["crossover"]["wins"], found["crossover"]["loses"]) == (4, 16)
    # finished: nothing is launched again
    launched = len(instant.launched)
    again = autotune(*args, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == found
    assert len(instant.launched) == launched
    text = " ".join(autotune("map", str(study), "--show", cwd=tmp_path).stdout.split())
    assert f"Measured on {found['slots']} slots" in text


@pytest.mark.parametrize("outcome", [1, 3, 5, 8])
def test_an_interrupted_sweep_goes_on_with_the_slots_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: int
) -> None:
    _, pools = on_slots(monkeypatch, (1.0, 1.02, 0.98))
    study = write_study(tmp_path)
    args = ("map", str(study), *WIDE, "--launches", "5")
    make = load_map.SweepRun.make_executor

    def interrupted(run: Any) -> Any:
        pool: Any = make(run)
        pool.interrupts = outcome if len(pools) == 1 else 0
        return pool

    monkeypatch.setattr(load_map.SweepRun, "make_executor", interrupted)
    assert autotune(*args, cwd=tmp_path).returncode == 130
    before = query(tmp_path, RUN)
    done = autotune(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = query(tmp_path, RUN)
    assert rows[: len(before)] == before
    measured = Counter(row[:3] for row in rows)
    assert set(measured.values()) == {1}
    points = query(tmp_path, POINTS)
    assert len(rows) == 6 * len(points)
    assert query(tmp_path, UNENDED) == [(0,)]


def test_a_slot_whose_n_0_failed_launches_no_other_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instant, pools = on_slots(monkeypatch, (1.0, 1.0))
    fails = instant.measuring

    def failing(*args: Any, slot: int, **kw: Any) -> Any:
        instant.fails = {(0, load): FailureKind.OOM for load in (1, 8)} if slot == 1 else {}
        made = fails(*args, slot=slot, **kw)
        measure = made.measure

        def on_slot(*a: Any, **k: Any) -> Any:
            instant.fails = {(0, load): FailureKind.OOM for load in (1, 8)} if slot == 1 else {}
            return measure(*a, **k)

        made.measure = on_slot
        return made

    monkeypatch.setattr(instant, "measuring", failing)
    study = write_study(tmp_path)
    args = ("--concurrency", "1,8", "--json", "--parallel", "auto", "--launches", "3")
    done = autotune("map", str(study), *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "n = 0, to compare slots failed: oom" in done.stderr
    assert {row[3] for row in query(tmp_path, RUN)} == {0}
    assert {p["n"] for p in json.loads(done.stdout)["points"]} >= {0, 3}
    assert len(pools) == 1


def test_a_point_waits_for_a_slot_when_there_is_none_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pools = on_slots(monkeypatch, (1.0, 1.0))
    usual = load_map.SweepRun.slots.fget
    assert usual is not None

    def slots(run: load_map.SweepRun[Any]) -> dict[int, str]:
        return usual(run) if pools[-1:] and pools[-1].ended else {}  # the nodes have left

    monkeypatch.setattr(load_map.SweepRun, "slots", property(slots))
    args = ("--concurrency", "1,8", "--json", "--parallel", "auto", "--launches", "3")
    done = autotune("map", str(write_study(tmp_path)), *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(pools[0].rounds[0]) == 1
    assert {0, 3} < {p["n"] for p in json.loads(done.stdout)["points"]}


@pytest.mark.parametrize("option", ["--parallel", "--ray"])
def test_a_crosscheck_has_one_server(tmp_path: Path, option: str) -> None:
    done = autotune("crosscheck", str(write_study(tmp_path)), option, "auto", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"autotune: {option}: crosscheck measures one server with two")
    assert done.stderr.count("\n") == 1


@pytest.mark.double
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two slots need two cores")
def test_two_slots_make_one_sweep_that_is_killed_and_goes_on(tmp_path: Path) -> None:
    env = {"DOUBLE_STEP_S": "0.03"}
    study = str(write_study(tmp_path, server__env=env))
    args = ("map", study, "--concurrency", "1,2", "--launches", "3", "--parallel", "2")
    args = (*args, "--ways", "none", "--json")
    run = start_autotune(*args, cwd=tmp_path)
    wait_until(lambda: (tmp_path / "autotune.db").exists())
    wait_for_event(tmp_path, "measured", 3)
    run.send_signal(signal.SIGSTOP)  # it must not be over before it is hit
    shown = autotune("ps", cwd=tmp_path).stdout
    run.send_signal(signal.SIGKILL)
    run.communicate()
    wait_until(lambda: processes_of(tmp_path) == [])
    assert "the load sweep of double, slot " in shown
    before = query(tmp_path, RUN)
    done = autotune(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "slot 0  n = " in done.stderr
    rows = query(tmp_path, RUN)
    assert rows[: len(before)] == before
    assert set(Counter(row[:3] for row in rows).values()) == {1}
    assert {row[3] for row in rows} == {0, 1}
    found = json.loads(done.stdout)
    assert found["slots"] == 2
    assert sorted(p["n"] for p in found["points"]) == [0, 3, 15]
    assert query(tmp_path, UNENDED) == [(0,)]
    assert processes_of(tmp_path) == []
    without = autotune("map", study, cwd=tmp_path)
    assert without.returncode == 2
    assert "and a server without slots has" in without.stderr
