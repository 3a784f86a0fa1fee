"""The planner in a replay, for one slot and for many; attempts and outcomes of one trial."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

import objectives
from autotune.api import _Listener
from autotune.errors import FailureKind, MeasureError, TrialFailure
from autotune.results.standing import Standing, counts
from autotune.search.proposer import Proposer, SearchEnds, SpaceExhausted
from autotune.search.spending import Spending
from autotune.storage.records import Quality, Role, TrialAttrs, attrs_of
from autotune.storage.store import opened
from autotune.study.files import load_study
from autotune.study.space import MNBT, N, Point
from autotune.tuning import study_run
from autotune.tuning.executor import OneSlot
from autotune.tuning.launcher import no_prelaunch
from autotune.tuning.planner import Planner
from autotune.tuning.prepare import prepare
from autotune.tuning.situation import Budget, Choice, Situation
from autotune.tuning.supervise import StopReason
from autotune.tuning.trial import (
    Failed,
    Infeasible,
    MachineFailed,
    Measured,
    Outcome,
    Trial,
    TrialRunner,
    attempts,
)
from tests.studies import write_study

OBJECTIVES = tuple(map(objectives.get, ("throughput", "p95_latency")))


def infeasible(point: Point) -> str | None:
    return "too small" if int(point[N]) > 11 else None


class World:
    """A study whose launches give numbers at once: nothing but what the planner is given.

    Attributes:
        trials: As Optuna would have them.
        begun: The choices, in the order in which their trials began.
    """

    def __init__(self, folder: Path, wanted: int, *, slots: int = 1, **changes: object) -> None:
        spec = load_study(str(write_study(folder, **changes))).spec
        self.space = spec.to_space()
        self.budget = Budget(wanted, spec.budget.confirm_of(wanted))
        ways = [o.direction for o in OBJECTIVES]
        method = spec.search.method
        proposer = Proposer(self.space, infeasible, ways, method=method, seed=1, stop_below=0.0)
        args = (spec, OBJECTIVES, self.budget, self.space, infeasible, proposer)
        self.planner, self.slots = Planner(*args), slots
        self.trials: list[FrozenTrial] = []
        self.begun: list[Choice] = []
        self.planned: Spending | None = None

    @property
    def order(self) -> list[int] | None:
        return None if self.planned is None else list(self.planned.order)

    def situation(self, pending: Sequence[Choice] = (), *, searching: bool = True) -> Situation:
        blocks = () if self.planned is None else self.planned.blocks
        now = Situation(self.trials, pending, searching, self.order, blocks, self.slots)
        if self.planner.confirmation.awaits_step(now):
            standing = Standing(OBJECTIVES)
            standing.update(self.trials)
            self.planned = self.planner.confirmation.next_step(
                standing, self.trials, self.planned, slots=self.slots
            )
            now = replace(now, confirmation=self.order, blocks=self.planned.blocks)
        return now

    def begin(self, choice: Choice) -> None:
        attrs = self.planner.begun(choice, self.trials)
        trial = create_trial(
            state=TrialState.RUNNING,
            params=self.space.encode(choice.point),
            distributions=self.space.distributions(),
            user_attrs=attrs.to_json(),
        )
        trial.number = len(self.trials)
        self.trials.append(trial)
        self.begun.append(Choice(choice.point, attrs))

    def end(self, number: int) -> None:
        """A trial has numbers, best at n = 5."""
        n = int(self.begun[number].point[N])
        running = self.trials[number]
        rate = 100 - (n - 5) ** 2 + 0.01 * (number % 7)
        errors = {o.name: 0.01 for o in OBJECTIVES}
        quality = Quality(estimator=2, errors=errors, stop="all")
        attrs = replace(attrs_of(running), quality=quality, log_variances=[1e-4, 1e-4])
        done = create_trial(
            values=[rate, 1e5 / rate],
            params=running.params,
            distributions=running.distributions,
            user_attrs=attrs.to_json(),
        )
        done.number = number
        self.trials[number] = done

    def running(self) -> list[int]:
        return [t.number for t in self.trials if t.state == TrialState.RUNNING]

    def run(self, slots: int) -> None:
        """Keep so many slots busy until nothing more begins; the latest to begin ends first."""
        searching = True
        while True:
            choice: Choice | None = None
            if len(self.running()) < slots:
                try:
                    choice = self.planner.choose(self.situation(searching=searching))
                except SearchEnds:
                    if not self.running():
                        if not searching:
                            return
                        searching = False
                        continue
            if choice is not None:
                self.begin(choice)
            elif self.running():
                self.end(self.running()[-1])
            else:
                return


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_a_budget_is_used_up_whatever_the_number_of_slots(tmp_path: Path, slots: int) -> None:
    world = World(tmp_path, 24)
    world.run(slots)
    assert sum(map(counts, world.trials)) == len(world.trials) == 24
    roles = [c.attrs.role for c in world.begun]
    held = world.budget.held
    assert roles[0] is Role.BASELINE
    assert roles[-held:] == [Role.CONFIRMATION] * held
    assert Role.CONFIRMATION not in roles[:-held]
    # each step of the confirmation is there and back, whoever ends first
    confirmed = [c.attrs.confirms for c in world.begun[-held:]]
    assert confirmed == world.order
    first, second = confirmed[:6], confirmed[6:]
    assert first == first[::-1]
    assert len(set(second)) == 2
    assert set(second) <= set(first)
    # no point is searched twice but as a replicate, which names the first
    first: dict[frozenset[Any], int] = {}
    for number, c in enumerate(world.begun[:-held]):
        earlier = first.setdefault(frozenset(c.point.items()), number)
        assert (c.attrs.replicates is not None) == (earlier != number)
    assert all(infeasible(c.point) is None for c in world.begun)


class OnSlots(World):
    """A study on several slots: the free one of the smallest number launches, the oldest ends."""

    def __init__(self, folder: Path, wanted: int, slots: int, **changes: object) -> None:
        super().__init__(folder, wanted, slots=slots, **changes)
        self.at: dict[int, int] = {}

    def situation(self, pending: Sequence[Choice] = (), *, searching: bool = True) -> Situation:
        running = {n: str(self.at[n]) for n in self.running()}
        free = next((str(s) for s in range(self.slots) if str(s) not in running.values()), None)
        now = super().situation(pending, searching=searching)
        return replace(now, place=f":{free}", places={n: f":{s}" for n, s in running.items()})

    def begin(self, choice: Choice) -> None:
        busy = {self.at[n] for n in self.running()}
        number = len(self.trials)
        super().begin(choice)
        self.at[number] = next(s for s in range(self.slots) if s not in busy)

    def end(self, number: int) -> None:
        super().end(number)
        self.trials[number].user_attrs["slot"] = {"cores": self.at[number]}

    def search(self) -> None:
        while sum(map(counts, self.trials)) < self.budget.search:
            choice = None
            if len(self.running()) < self.slots and len(self.trials) < self.budget.search:
                choice = self.planner.choose(self.situation())
            if choice is not None:
                self.begin(choice)
            else:
                self.end(self.running()[0])


@pytest.mark.parametrize("slots", [2, 3, 4, 8])
def test_slots_share_points_for_at_most_one_launch_in_eight(tmp_path: Path, slots: int) -> None:
    world = OnSlots(tmp_path, 40, slots, budget__replicates=0)
    world.search()
    where: dict[frozenset[Any], set[int]] = {}
    again = 0
    for number, choice in enumerate(world.begun):
        has = where.setdefault(frozenset(choice.point.items()), set())
        again += bool(has - {world.at[number]})
        has.add(world.at[number])
        assert 8 * again <= number + 1
    limit = min(2 * (slots - 1), world.budget.search // 8)
    assert limit - 1 <= again <= limit  # the last one may be for a slot that is busy until the end
    shared = [has for has in where.values() if len(has) > 1]
    assert len(set.union(*shared)) == min(slots, 1 + again)


def test_links_take_the_place_of_replicates(tmp_path: Path) -> None:
    world = OnSlots(tmp_path, 40, 2)
    world.search()
    where: dict[frozenset[Any], set[int]] = {}
    for number, choice in enumerate(world.begun):
        where.setdefault(frozenset(choice.point.items()), set()).add(world.at[number])
    replicates = [c for c in world.begun if c.attrs.replicates is not None]
    assert len(replicates) == 3
    assert any(len(has) == 2 for has in where.values())


@pytest.mark.parametrize("ahead", [0, 3])
def test_what_slots_reserve_is_no_other_slots_and_links_stay_rare(
    tmp_path: Path, ahead: int
) -> None:
    world = OnSlots(tmp_path, 40, 2, budget__replicates=0)
    reserved: list[list[Choice]] = [[], []]
    chosen: list[tuple[int, Choice]] = []

    def now(slot: int) -> Situation:
        found = world.situation([*reserved[1 - slot], *reserved[slot]])
        return replace(found, place=f":{slot}")

    while sum(map(counts, world.trials)) < world.budget.search:
        for slot in range(2):
            if slot in {world.at[n] for n in world.running()}:
                continue
            again = bool(reserved[slot])
            choice = reserved[slot].pop(0) if again else world.planner.choose(now(slot))
            if choice is None:
                continue
            world.begin(choice)
            world.at[len(world.trials) - 1] = slot
            if not again:
                chosen.append((slot, choice))
                other, left = len(reserved[1 - slot]), world.planner.left(now(slot))
                more = world.planner.ahead(now(slot), other + ahead)[other:]
                assert len(more) == min(ahead, left)
                assert all(c.place == f":{slot}" for c in more)
                reserved[slot] = more
                chosen += [(slot, c) for c in more]
        world.end(world.running()[0])
    assert len(chosen) == world.budget.search
    where: dict[frozenset[Any], set[int]] = {}
    spent = 0
    for number, (slot, choice) in enumerate(chosen):
        has = where.setdefault(frozenset(choice.point.items()), set())
        spent += bool(has - {slot})
        has.add(slot)
        assert 8 * spent <= number + 1 + ahead
    assert sum(len(has) == 2 for has in where.values()) >= 1


def test_the_confirmation_waits_for_the_last_trial_of_the_search(tmp_path: Path) -> None:
    world = World(tmp_path, 16)
    search = world.budget.search
    for _ in range(search):
        choice = world.planner.choose(world.situation())
        assert choice is not None
        world.begin(choice)
    for number in range(search - 1):
        world.end(number)
        assert world.planner.choose(world.situation()) is None
    world.end(search - 1)
    choice = world.planner.choose(world.situation())
    assert choice is not None
    assert choice.attrs.role is Role.CONFIRMATION


class Confirms(World):
    """A study whose search is over, as of its database at any time."""

    def __init__(
        self, folder: Path, wanted: int = 36, *, slots: int = 1, **changes: object
    ) -> None:
        super().__init__(folder, wanted, slots=slots, **changes)
        while len(self.trials) < self.budget.search:
            choice = self.planner.choose(self.situation())
            assert choice is not None
            self.begin(choice)
            self.end(len(self.trials) - 1)

    def end(self, number: int) -> None:
        """No two points are equal."""
        super().end(number)
        less = 0.5 * math.log2(int(self.begun[number].point[MNBT]))
        done = self.trials[number]
        done.values = [done.values[0] - less, done.values[1] * (1 + less / 100)]

    def resume(self) -> None:
        """A new process has what the database keeps, and nothing else."""
        if self.planned is not None:
            kept = json.loads(json.dumps(self.planned.to_json()))
            self.planned = Spending.read(list(self.planned.order), kept)

    def confirms(self) -> list[int | None]:
        return [c.attrs.confirms for c in self.begun if c.attrs.role is Role.CONFIRMATION]


def all_ended(world: Confirms, held: int) -> list[int | None]:
    while len(world.confirms()) < held:
        choice = world.planner.choose(world.situation())
        assert choice is not None
        world.begin(choice)
        world.end(len(world.trials) - 1)
    return world.confirms()


def test_an_interrupted_confirmation_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    whole = Confirms(tmp_path, budget__confirm=12)
    expected = all_ended(whole, 12)
    assert len(set(expected[8:])) < len(set(expected[:8])) == 4  # something was dropped
    assert whole.planned is not None
    assert set(whole.planned.dropped) == set(expected[:8]) - set(expected[8:])
    world = Confirms(tmp_path, budget__confirm=12)
    for done in range(12):
        world.resume()
        choice = world.planner.choose(world.situation())
        assert choice is not None
        assert choice.attrs.confirms == expected[done]
        world.begin(choice)
        world.resume()  # while it runs, what follows is known as far as the step goes
        ahead = [c.attrs.confirms for c in world.planner.ahead(world.situation(), 20)]
        end = 8 if done < 8 else 12
        assert ahead == expected[done + 1 : end]
        world.end(len(world.trials) - 1)
    assert world.confirms() == expected
    assert world.planned == whole.planned


@pytest.mark.parametrize("slots", [4, 8])
def test_many_slots_get_a_whole_step_and_wait_for_its_end(tmp_path: Path, slots: int) -> None:
    expected = all_ended(Confirms(tmp_path, budget__confirm=12), 12)
    world = Confirms(tmp_path, budget__confirm=12)
    most = []
    while len(world.confirms()) < 12 or world.running():
        while len(world.running()) < slots:
            choice = world.planner.choose(world.situation())
            if choice is None:
                break
            world.begin(choice)
        most.append(len(world.running()))
        if len(world.confirms()) == 8:  # nothing of the next step while one of this runs
            assert world.planner.choose(world.situation()) is None
            assert world.planner.ahead(world.situation(), 20) == []
        world.end(world.running()[-1])  # the latest first
    assert max(most) == slots
    assert world.confirms() == expected


@pytest.mark.parametrize(("slots", "rounds"), [(2, 6), (4, 4), (8, 4)])
def test_blocks_run_at_the_same_time_and_the_launches_of_each_in_turn(
    tmp_path: Path, slots: int, rounds: int
) -> None:
    world = Confirms(tmp_path, budget__confirm=12, slots=slots)
    done = 0
    while len(world.confirms()) < 12 or world.running():
        while len(world.running()) < slots:
            choice = world.planner.choose(world.situation())
            if choice is None:
                break
            world.begin(choice)
        blocks = [attrs_of(world.trials[n]).confirmation_block for n in world.running()]
        assert len(set(blocks)) == len(blocks)  # never two of one block
        for number in reversed(world.running()):
            world.end(number)
        world.resume()
        done += 1
    assert done == rounds
    assert world.planned is not None
    by_block: dict[int | None, list[int | None]] = {}
    for choice in world.begun[-12:]:
        by_block.setdefault(choice.attrs.confirmation_block, []).append(choice.attrs.confirms)
    found = [by_block[block] for block in sorted(by_block, key=str)]
    assert [k for block in found for k in block] == world.order
    assert [*map(len, found)] == list(world.planned.blocks)
    assert found[0] == found[1][::-1]


def test_one_slot_goes_on_with_blocks_and_several_with_what_one_began(tmp_path: Path) -> None:
    several = Confirms(tmp_path, budget__confirm=12, slots=2)
    choice = several.planner.choose(several.situation())
    one = Confirms(tmp_path, budget__confirm=12)
    one.planned = several.planned
    assert one.planner.choose(one.situation()) == choice
    assert len(all_ended(one, 12)) == 12
    begun = Confirms(tmp_path, budget__confirm=12)
    all_ended(begun, 3)
    more = Confirms(tmp_path, budget__confirm=12, slots=2)
    more.planned, more.trials, more.begun = begun.planned, begun.trials, begun.begun
    first = more.planner.choose(more.situation())
    assert first is not None
    assert (first.attrs.confirms, first.attrs.confirmation_block) == ((begun.order or [])[3], 0)
    more.begin(first)
    assert more.planner.choose(more.situation()) is None  # all of one slot, one after the other
    more.end(len(more.trials) - 1)
    assert len(all_ended(more, 12)) == 12


def test_a_confirmation_that_an_older_version_planned_goes_on_as_planned(tmp_path: Path) -> None:
    world = Confirms(tmp_path)
    held = world.budget.held
    base, best = 0, 3
    order = [base, best, best, base, base, best, best, base]
    assert held == len(order)
    world.planned = Spending.read(order, None)
    assert all_ended(world, held) == order
    # with more launches held than it knew, it goes on with what is in question
    more = Confirms(tmp_path, budget__confirm=12)
    more.planned = Spending.read(order, None)
    found = all_ended(more, 12)
    assert found[:8] == order
    assert 0 in found[8:]


def test_failed_launches_of_the_confirmation_count_and_end_in_a_drop(tmp_path: Path) -> None:
    world = Confirms(tmp_path)
    failing = None
    while len(world.confirms()) < world.budget.held:
        choice = world.planner.choose(world.situation())
        assert choice is not None
        failing = choice.attrs.confirms if len(world.confirms()) == 1 else failing
        world.begin(choice)
        number = len(world.trials) - 1
        if choice.attrs.confirms == failing:
            trial = world.trials[number]
            attrs = replace(attrs_of(trial), failure_kind="crash", failure_reason="it went")
            trial.user_attrs.update(attrs.to_json())
            trial.state = TrialState.FAIL
        else:
            world.end(number)
    assert world.planned is not None
    assert world.planned.dropped[failing or 0].better is None
    assert failing not in world.confirms()[6:]


def test_more_launches_go_on_with_what_is_in_question(tmp_path: Path) -> None:
    world = Confirms(tmp_path, budget__confirm=12)
    all_ended(world, 12)
    assert world.planned is not None
    dropped = set(world.planned.dropped)
    assert dropped
    # `autotune confirm --launches 4`: a budget of its own, in which all launches confirm
    world.planner.budget = world.planner.confirmation.budget = Budget(36 + 4, 4)
    world.planned = None
    begun = len(world.begun)
    for _ in range(4):
        choice = world.planner.choose(world.situation(searching=False))
        assert choice is not None
        world.begin(choice)
        world.end(len(world.trials) - 1)
    more = [c.attrs.confirms for c in world.begun[begun:]]
    assert more == more[::-1]
    assert 0 in more
    assert not set(more) & dropped
    assert world.planned is not None
    assert world.planned.held == 4


def test_a_search_that_converged_waits_for_what_still_runs(tmp_path: Path) -> None:
    world = World(tmp_path, 16)
    for _ in range(3):
        choice = world.planner.choose(world.situation())
        assert choice is not None
        world.begin(choice)
    world.end(0)
    world.end(1)
    assert world.planner.choose(world.situation(searching=False)) is None
    world.end(2)
    found = world.planner.choose(world.situation(searching=False))
    assert found is not None
    assert found.attrs.confirmation == 16


def test_what_is_chosen_ahead_is_what_one_slot_would_choose(tmp_path: Path) -> None:
    world = World(tmp_path, 12, search__method="grid", space__max_num_batched_tokens__high=32)
    choice = world.planner.choose(world.situation())
    assert choice is not None
    world.begin(choice)
    now = world.situation()
    ahead = world.planner.ahead(now, 3)
    assert ahead == world.planner.ahead(now, 3)  # nothing is remembered
    assert world.planner.ahead(replace(now, pending=ahead[:1]), 3) == ahead
    world.end(0)
    for expected in ahead:
        found = world.planner.choose(world.situation())
        assert found == expected
        world.begin(expected)
        world.end(len(world.trials) - 1)
    # none of the confirmation's while the search goes on
    world.begin(Choice({**ahead[0].point, N: 7}))
    most = world.planner.ahead(world.situation(), 20)
    assert all(c.attrs.role is not Role.CONFIRMATION for c in most)
    assert len(most) < 20


def test_a_grid_ends_with_its_last_point(tmp_path: Path) -> None:
    changes = {"space__num_speculative_tokens__high": 2, "space__max_num_batched_tokens__high": 32}
    world = World(tmp_path, 40, search__method="grid", budget__confirm=0, **changes)
    for _ in range(3):
        choice = world.planner.choose(world.situation())
        assert choice is not None
        world.begin(choice)
        world.end(len(world.trials) - 1)
    with pytest.raises(SpaceExhausted):
        world.planner.choose(world.situation())


# -- attempts ----------------------------------------------------------------------------------


class Bench:
    """A task, its ledger and its launcher: each launch gives what ``outcomes`` says next."""

    number, point, server = 4, {N: 3}, None

    def __init__(self, outcomes: Sequence[FailureKind | str | None]) -> None:
        self.outcomes = list(outcomes)  # a failure, why it was disturbed, None: measured
        self.rows: list[Any] = []
        self.said: list[str] = []

    def run(self, number: int, attempt: int, point: Point, *, log: str, **_: object) -> str:
        assert (number, point, log) == (4, {N: 3}, f"x-{attempt}.log")
        assert attempt == len(self.rows)
        found = self.outcomes.pop(0)
        row = SimpleNamespace(launch_id=f"l{attempt}", values=None, failure_kind=None, why=None)
        self.rows.append(row)
        if isinstance(found, FailureKind):
            row.failure_kind = str(found)
            raise MeasureError(found, "it went")
        row.values, row.why = {"throughput": 1.0}, found
        return str(row.launch_id)

    def launches(self, trial: int) -> list[Any]:
        return list(self.rows)

    def log(self, attempt: int) -> str:
        return f"x-{attempt}.log"

    def stage(self, text: str) -> None: ...

    def measure(self, live: object) -> None: ...

    def failed(self, failure: TrialFailure, *, retried: bool) -> None:
        self.said.append(f"{failure.kind} {retried}")

    def why_again(self, measured: Sequence[Any]) -> str | None:
        return measured[-1].why if len(measured) == 1 else None

    def repeated(self, why: str) -> None:
        self.said.append(why)

    def outcome(self) -> Outcome:
        task: Any = self
        return attempts(task, task, task, ())


CRASH, BUDGET = FailureKind.CRASH, FailureKind.BUDGET


@pytest.mark.parametrize(
    ("outcomes", "found", "said"),
    [
        ([None], Measured("l0"), []),
        ([CRASH, None], Measured("l1"), ["crash True"]),
        ([CRASH, CRASH], CRASH, ["crash True", "crash False"]),
        ([BUDGET], BUDGET, ["budget False"]),
        ([CRASH, BUDGET], BUDGET, ["crash True", "budget False"]),
        (["busy", None], Measured("l1"), ["busy"]),
        (["busy", "busy"], Measured("l1"), ["busy"]),  # it counts, and says so
        (["busy", CRASH, None], Measured("l2"), ["busy", "crash True"]),
    ],
)
def test_attempts(outcomes: list[Any], found: object, said: list[str]) -> None:
    bench = Bench(outcomes)
    outcome = bench.outcome()
    if isinstance(found, FailureKind):
        assert isinstance(outcome, Failed)
        assert outcome.failure.kind is found
    else:
        assert outcome == found
    assert bench.said == said
    assert bench.outcomes == []


@pytest.mark.parametrize("kind", [FailureKind.DISK, FailureKind.MACHINE])
def test_a_fault_of_the_machine_is_no_attempt_of_the_point_and_an_ended_run_s_count(
    kind: FailureKind,
) -> None:
    bench = Bench([CRASH, kind])
    assert isinstance(bench.outcome(), MachineFailed)
    bench.outcomes = [CRASH]  # the next run: the second crash is final
    assert isinstance(bench.outcome(), Failed)
    done = Bench([None])
    done.outcome()
    assert done.outcome() == Measured("l0")  # the run ended before it was told: no launch


def test_one_slot_runs_what_was_submitted_when_it_is_waited_for() -> None:
    ran: list[int] = []

    def run(trial: Trial, ahead: Callable[[int], Sequence[Point]]) -> Outcome:
        ran.append(trial.number)
        return Infeasible("no") if ahead is no_prelaunch else Measured("x")

    runner: Any = SimpleNamespace(run=run)
    slot = OneSlot(runner, no_prelaunch)
    assert (slot.capacity, slot.completed()) == (1, [])
    slot.submit(Trial(7, {N: 3}))
    assert (slot.capacity, ran) == (0, [])
    with pytest.raises(RuntimeError):
        slot.submit(Trial(8, {N: 3}))
    [(trial, outcome)] = slot.completed()
    assert (trial.number, outcome, ran) == (7, Infeasible("no"), [7])
    slot.submit(Trial(8, {N: 3}))
    slot.cancel()
    assert (slot.capacity, slot.completed()) == (1, [])
    slot.close()
    assert slot.capacity == 0
    assert ran == [7]


def test_a_second_ctrl_c_does_not_lose_the_requests_of_a_trial() -> None:
    kept: list[object] = []

    def add(launch_id: str, samples: Sequence[object]) -> None:
        signal.raise_signal(signal.SIGINT)  # the first one ended the measurement
        kept.extend(samples)

    def measuring(*_: object, keep: Callable[[Sequence[object]], None], **__: object) -> Any:
        def measure(*_: object, **__: object) -> None:
            try:
                raise KeyboardInterrupt
            finally:
                keep(["a", "b"])

        return SimpleNamespace(measure=measure)

    prepared: Any = SimpleNamespace(
        spec=SimpleNamespace(workload=SimpleNamespace(open_loop=False)),
        objectives=OBJECTIVES,
        workload=None,
        asked=lambda point: None,
    )
    store: Any = SimpleNamespace(requests=SimpleNamespace(add=add))
    none: Any = mock.Mock()
    tools: Any = SimpleNamespace(measuring=measuring)
    runner = TrialRunner(prepared, store, none, none, none, dict, tools=tools)
    with pytest.raises(KeyboardInterrupt):
        runner.measure(none, Trial(0, {N: 3}))
    assert kept == ["a", "b"]


# -- records -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "role"),
    [
        ({}, Role.SEARCH),
        ({"baseline": True}, Role.BASELINE),
        ({"replicates": 0}, Role.REPLICATE),
        ({"confirms": 0, "confirmation": 8}, Role.CONFIRMATION),
        ({"reused": {"trial": 1}, "baseline": True}, Role.REUSED),
        ({"baseline": True, "replicates": 0}, Role.BASELINE),
        ({"role": "confirmation", "confirms": 0}, Role.CONFIRMATION),
        ({"role": "of the future"}, Role.SEARCH),
    ],
)
def test_roles_of_databases_that_keep_none(kept: dict[str, Any], role: Role) -> None:
    attrs = TrialAttrs.read(kept)
    assert attrs.role is role
    assert TrialAttrs.read(attrs.to_json()) == attrs
    assert attrs.baseline == bool(kept.get("baseline"))
    assert (attrs.replicates, attrs.confirms) == (kept.get("replicates"), kept.get("confirms"))


def test_attributes_of_a_user_stay_and_quality_survives() -> None:
    kept = {"mine": 1, "quality": {"requests": 9, "stop": "precise", "errors": {"x": 0.1}}}
    attrs = TrialAttrs.read(kept)
    assert (attrs.quality.requests, attrs.quality.estimator) == (9, 1)
    assert (attrs.quality.busy, attrs.quality.machine, attrs.quality.weights) == (False, None, {})
    out = replace(attrs, role=Role.REPLICATE, replicates=3).put_into(kept)
    assert (out["mine"], out["role"], out["replicates"]) == (1, "replicate", 3)
    assert Quality.read(out["quality"]) == attrs.quality


# -- the driver --------------------------------------------------------------------------------


class TwoSlots:
    """An executor whose trials all turn out infeasible, the latest submitted first."""

    def __init__(self, *_: object) -> None:
        self.running: list[Trial] = []
        self.seen: list[Trial] = []
        self.most = 0
        self.closed = False

    @property
    def capacity(self) -> int:
        return 2 - len(self.running)

    def submit(self, trial: Trial) -> None:
        self.running.append(trial)
        self.seen.append(trial)
        self.most = max(self.most, len(self.running))

    def completed(self) -> list[tuple[Trial, Outcome]]:
        return [(self.running.pop(), Infeasible("not today"))]

    def cancel(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def test_the_driver_keeps_two_slots_busy_and_tells_each_trial_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = TwoSlots()
    monkeypatch.setattr(study_run, "OneSlot", lambda *_: executor)
    path = write_study(
        tmp_path,
        search__method="grid",
        space__num_speculative_tokens__high=4,
        space__max_num_batched_tokens__high=32,
    )
    shown = _Listener(None, None)
    reason = study_run.run_study(
        prepare(load_study(str(path)), shown),
        database=tmp_path / "autotune.db",
        trials=9,
        seed=0,
        timeout_s=None,
        progress=shown,
    )
    assert reason is StopReason.EXHAUSTED
    assert (executor.most, executor.running, executor.closed) == (2, [], True)
    assert sorted(int(t.point[N]) for t in executor.seen) == [0, 1, 2, 3, 4]
    assert executor.seen[0].attrs.role is Role.BASELINE
    with opened(tmp_path / "autotune.db") as store:
        trials = store.optuna_study("double").get_trials()
    assert [t.number for t in trials] == [t.number for t in executor.seen]
    assert [t.state for t in trials] == [TrialState.FAIL] * 5
    assert {attrs_of(t).failure_reason for t in trials} == {"not today"}
