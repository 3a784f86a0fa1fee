"""The driver over many slots in virtual time, as `benchmarks/parallel.py` runs it: nobody waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import FailureKind, NothingUsable
from autotune.storage.records import Role, TrialAttrs
from autotune.study.space import N, Point
from autotune.tuning.trial import Measured, Trial
from tests.paths import ROOT

STAGES = "smollm2-h200"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture
def bench() -> Any:
    import parallel

    return parallel


@pytest.fixture
def virtual() -> Any:
    import parallel_slots

    return parallel_slots


@pytest.fixture
def surfaces() -> Any:
    import surfaces

    return surfaces


class Nowhere(dict[str, Callable[..., object]]):
    """Takes whatever the process of a slot asks for."""

    def __missing__(self, name: str) -> Callable[..., object]:
        return lambda *_args: {}


def trials(points: Sequence[Point], slots: int) -> list[Trial]:
    return [Trial(i, point, slot=i % slots) for i, point in enumerate(points)]


def test_stages_are_those_of_committed_launches(virtual: Any) -> None:
    found = virtual.stages(STAGES)
    assert [x.confirms for x in found] == [False] * 8 + [True] * 4
    for x in found:
        seconds = (x.launching, x.warming, x.measuring, x.stopping)
        assert all(0 < s < 100 for s in seconds)
        assert 40 < sum(seconds) < 95  # as the study's page says


def test_trials_end_in_the_order_of_virtual_time(virtual: Any, surfaces: Any) -> None:
    w, clock = surfaces.world("gen-1"), virtual.Clock()
    slots = virtual.VirtualSlots(w, 3, virtual.stages(STAGES), Nowhere(), 0, clock, 0.5)
    launchable = [w.points[i] for i in w.launchable()]
    for trial in trials(launchable[:3], 3):
        slots.submit(trial)
    assert clock.now == 1.5  # the driver's own part, one after the other
    assert slots.capacity == 0
    with pytest.raises(RuntimeError, match="no slot is free"):
        slots.submit(trials(launchable[:1], 1)[0])
    ended: list[float] = []
    numbers = []
    while done := slots.completed():
        for trial, outcome in done:
            assert isinstance(outcome, Measured)
            numbers.append(trial.number)
            ended.append(clock.now)
    assert sorted(numbers) == [0, 1, 2]
    assert ended == sorted(ended)
    assert ended[0] > 40
    assert slots.capacity == 3


def test_a_slot_runs_one_trial_at_a_time(virtual: Any, surfaces: Any) -> None:
    w, clock = surfaces.world("gen-1"), virtual.Clock()
    slots = virtual.VirtualSlots(w, 4, virtual.stages(STAGES), Nowhere(), 0, clock, 0.0)
    runs: list[Any] = []
    slots.ended = runs.append
    point = w.points[w.launchable()[0]]
    for number in range(3):
        slots.submit(Trial(number, point, TrialAttrs(Role.SEARCH), slot=1))
    while slots.completed():
        pass
    first, second, third = runs
    assert first.begin == 0
    assert second.begin == first.end
    assert third.begin == second.end


def study(bench: Any, slots: int) -> dict[str, Any]:
    found: dict[str, Any] = bench.replay(("demo-cpu-c2", "demo-cpu", slots, 0, 24, True, 0))
    found.pop("cpu_s")
    return found


def test_a_study_takes_less_time_with_more_slots_and_the_same_again(bench: Any) -> None:
    one, many = study(bench, 1), study(bench, 8)
    assert one["launches"] == many["launches"] == 24
    assert one["confirming"] == many["confirming"] == 8
    assert one["end_s"] > 2 * many["end_s"]
    assert one["busy"] > 0.97
    assert many["search_s"] < many["end_s"]
    assert study(bench, 8) == many
    lines = list(bench.table([one, many]))
    assert sum(line.startswith("| ") for line in lines) == 3
    assert f"{one['end_s'] / many['end_s']:.1f}×" in lines[-2]


def whole_run(virtual: Any, w: Any, folder: Path, slots: int, **more: Any) -> list[Any]:
    runs: list[Any] = []
    clock = virtual.Clock()

    def make(served: Any) -> Any:
        stages = virtual.stages(STAGES)
        return virtual.VirtualSlots(w, slots, stages, served, 0, clock, ended=runs.append, **more)

    virtual.run(w, folder, 12, 0, clock, slots, make, stop_below=0.0)
    return runs


def test_each_slot_starts_its_next_points_with_its_first_one(
    virtual: Any, surfaces: Any, tmp_path: Path
) -> None:
    """The driver has points for all of them before anything was measured."""
    runs = whole_run(virtual, surfaces.world("gen-8"), tmp_path, 2, ahead=3, together=0.1)
    assert len(runs) == 12
    for slot in (0, 1):
        own = [x for x in runs if x.trial.slot == slot]
        first, *others = own[:4]
        assert first.stage.launching > 0
        assert [x.stage.launching for x in others] == [0.0] * 3
        assert all(x.begin >= y.end for x, y in zip(others, own, strict=False))
    attrs = [x.trial.attrs for x in runs]
    new = [a.searches and a.replicates is None for a in attrs]
    points = {tuple(x.trial.point.items()) for x, is_new in zip(runs, new, strict=True) if is_new}
    assert len(points) == sum(new)  # no two slots are given the same point


def test_failures_on_other_slots_do_not_end_a_run_before_its_first_trial_has(
    virtual: Any, surfaces: Any, tmp_path: Path
) -> None:
    """A launch that fails is over sooner than one that is measured."""
    from surfaces_base import Region

    def all_but(holds: Callable[[Point], bool]) -> Any:
        region = Region("nothing drafts", FailureKind.OOM_LOAD, holds)
        return replace(surfaces.world("gen-8"), regions=(region,))

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    runs = whole_run(virtual, all_but(lambda q: int(q[N]) > 0), tmp_path / "a", 4)
    failed = [x.numbers.values is None for x in runs]
    assert failed[:3] == [True] * 3  # before the baseline had ended
    assert not all(failed)
    with pytest.raises(NothingUsable, match="all launches failed"):
        whole_run(virtual, all_but(lambda _q: True), tmp_path / "b", 4)


def test_the_drivers_own_cost_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    import driver_cost

    monkeypatch.setattr(driver_cost, "REQUESTS", (2, 2))
    monkeypatch.setattr(driver_cost, "WINDOW", 6)
    found = driver_cost.measure(3, [12, 24], 100.0)
    assert [row["trial"] for row in found["rows"]] == [12, 24]
    assert all(0 < row["choosing"] < row["cpu"] for row in found["rows"])
    *_, last = driver_cost.table(found)
    assert last.startswith("| 24 | ")
