"""How the held launches are spent: in steps, each by what the launches before it gave."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from autotune.search.confirmation import Launches, plan, step_of
from autotune.search.confirmation_steps import next_step
from autotune.search.front import Direction
from autotune.search.spending import Dropped, Spending
from autotune.stats.measurement import Floats
from tests.paths import ROOT

BOTH: tuple[Direction, Direction] = ("maximize", "minimize")

# 0 is the baseline, 1 the best by far, 2 and 3 look good in the search, 4 and 5 are slow
SEARCHED: Launches = {
    0: [(100, 1000), (102, 990)],
    1: [(150, 700), (148, 705)],
    2: [(130, 800)],
    3: [(128, 805)],
    4: [(90, 1200)],
    5: [(91, 1150)],
}
TRUE = {0: (101, 995), 1: (150, 700), 2: (110, 950), 3: (128, 806), 4: (90, 1200), 5: (91, 1150)}


def measured(order: Sequence[int], noise: float = 0.004) -> dict[int, list[tuple[float, float]]]:
    """Launches whose noise depends on their place in the order only."""
    found: dict[int, list[tuple[float, float]]] = {}
    for i, k in enumerate(order):
        off = noise * np.sin(3.7 * i + 1)
        found.setdefault(k, []).append((TRUE[k][0] * (1 + off), TRUE[k][1] * (1 - off)))
    return found


def spent(held: int, searched: Launches = SEARCHED, baseline: int | None = 0) -> Spending:
    so_far = Spending(plan(searched, BOTH, baseline, held), held)
    while len(so_far.order) < held:
        found = measured(so_far.order)
        then = next_step(so_far, found, searched, BOTH, baseline)
        assert then == next_step(so_far, found, searched, BOTH, baseline)  # nothing is remembered
        assert list(then.order[: len(so_far.order)]) == list(so_far.order)
        assert len(then.order) > len(so_far.order)
        so_far = then
    assert len(so_far.order) == held
    return so_far


@pytest.mark.parametrize("candidates", [1, 2, 3, 4])
@pytest.mark.parametrize("left", range(1, 20))
def test_a_step_goes_there_and_back(candidates: int, left: int) -> None:
    order = np.array(step_of(list(range(candidates)), left))
    assert 0 < len(order) <= left
    assert left - len(order) != 1  # one launch alone has nothing next to it
    if len(order) == 2 < left or len(order) > 2 or candidates == 1:
        assert order.tolist() == order.tolist()[::-1]
        middles = [np.flatnonzero(order == k).mean() for k in set(order.tolist())]
        assert middles == pytest.approx([(len(order) - 1) / 2] * len(middles))
    else:
        assert order.tolist() == list(range(len(order)))
    # the most important ones first, and each as often as the others but for an odd one
    assert set(order.tolist()) == set(range(len(set(order.tolist()))))
    counts = np.bincount(order)
    assert counts.max() - counts.min() <= 1
    assert left < 4 or counts.min() >= 2


def test_what_is_hopeless_is_launched_no_more() -> None:
    found = spent(12)
    assert list(found.order[:8]) == [0, 1, 2, 3, 3, 2, 1, 0]
    # the choice and the baseline go on, there and back
    assert list(found.order[8:]) in ([1, 0, 0, 1], [0, 1, 1, 0])
    assert set(found.dropped) == {2, 3}
    for why in found.dropped.values():
        assert (why.launches, why.better) == (2, 1)
        assert why.chance is not None
        assert 0.95 <= why.chance <= 1


@pytest.mark.parametrize("held", [6, 7, 8, 12, 16, 20])
def test_a_machine_that_gets_slower_favors_none_of_those_that_go_on(held: int) -> None:
    found = spent(held)
    places = np.arange(held)
    going = [k for k in set(found.order) if list(found.order).count(k) > held // 4]
    assert {0, 1} <= set(going)
    steady = [places[np.array(found.order) == k].mean() for k in going]
    # two launches that are left over have one place between them
    assert max(steady) - min(steady) <= (0.5 if held == 8 else 0.0)
    for begins in (3, (held + 1) // 2):  # a step at the middle of the first step, or of all
        slow = [float((places[np.array(found.order) == k] >= begins).mean()) for k in going]
        assert max(slow) - min(slow) <= 0.25


@pytest.mark.parametrize("held", range(2, 21))
def test_all_held_launches_are_spent_and_the_baseline_is_in_each_step(held: int) -> None:
    found = spent(held)
    assert 0 in found.order
    counts = {k: list(found.order).count(k) for k in found.order}
    others = max((n for k, n in counts.items() if k > 1), default=0)
    assert held < 8 or min(counts[0], counts[1]) > others
    assert 0 not in found.dropped
    assert 1 not in found.dropped


def test_rivals_that_are_near_go_on_with_the_choice() -> None:
    searched = {0: [(100.0,), (101.0,)], 1: [(150.0,), (149.0,)], 2: [(149.5,)], 3: [(90.0,)]}
    order = [0, 1, 2, 2, 1, 0]
    near = {0: [(100.0,), (101.0,)], 1: [(150.0,), (151.0,)], 2: [(150.5,), (149.0,)]}
    found = next_step(Spending(order, 8), near, searched, ("maximize",), 0)
    # two launches do not suffice for three: the baseline is beaten for certain, and waits
    assert set(found.order[6:]) == {1, 2}
    assert found.dropped == {}
    found = next_step(Spending(order, 12), near, searched, ("maximize",), 0)
    assert sorted(found.order[6:]) == [0, 0, 1, 1, 2, 2]
    assert list(found.order[6:]) == list(found.order[6:])[::-1]


def test_a_candidate_whose_launches_failed_is_dropped() -> None:
    first = [0, 1, 2, 2, 1, 0]
    launches = measured(first)
    del launches[2]
    found = next_step(Spending(first, 10), launches, SEARCHED, BOTH, 0)
    assert found.dropped == {2: Dropped(0)}
    assert set(found.order[6:]) == {0, 1}
    # one of its two launches gave numbers: it is in question
    searched = {**SEARCHED, 2: [(150.0, 700.0)]}
    found = next_step(Spending(first, 12), {**launches, 2: [(149.5, 702.0)]}, searched, BOTH, 0)
    assert found.dropped == {}
    assert 2 in found.order[6:]
    # nothing worked: everything is tried again
    found = next_step(Spending(first, 12), {}, SEARCHED, BOTH, 0)
    assert list(found.order) == [*first, *first]
    assert found.dropped == {}


def test_values_without_a_ratio_drop_nothing() -> None:
    first = [0, 1, 1, 0]
    zero = {0: [(100.0, 0.0)] * 2, 1: [(150.0, 700.0)] * 2}
    found = next_step(Spending(first, 8), zero, SEARCHED, BOTH, 0)
    assert list(found.order) == [*first, *first]


def test_more_launches_go_on_with_what_is_still_in_question() -> None:
    before = measured([0, 1, 2, 3, 3, 2, 1, 0])
    found = next_step(Spending([], 4), before, SEARCHED, BOTH, 0)
    assert set(found.order) == {0, 1}
    assert list(found.order) == list(found.order)[::-1]
    assert set(found.dropped) == {2, 3}


@pytest.mark.parametrize("held", [2, 3, 4, 5, 6, 8])
def test_the_winner_is_never_left_out_where_launches_do_not_suffice_for_all(held: int) -> None:
    # 3 is the best by tok/s, 1 by p95, 2 by both together, and nothing is certain
    searched = {0: [(100.0, 900.0)], 1: [(101.0, 700.0)], 2: [(128.0, 750.0)], 3: [(134.0, 930.0)]}
    before = {k: [(x * f, y / f) for f in (0.8, 1.25)] for k, ((x, y),) in searched.items()}
    found = next_step(Spending([], held), before, searched, BOTH, 0)
    assert found.dropped == {}
    assert found.order[0] == 3
    assert list(found.order).count(3) == max(map(list(found.order).count, set(found.order)))
    three = {k: x for k, x in before.items() if k}
    found = next_step(Spending([], held), three, searched, BOTH, None)
    assert found.order[0] == 3
    assert held not in (4, 5) or set(found.order) == {1, 2, 3}


def test_without_a_baseline_two_are_left_at_least() -> None:
    searched = {k: x for k, x in SEARCHED.items() if k}
    found = spent(12, searched, None)
    assert 1 in found.order[-2:]
    last = list(found.order[8:])
    assert len(set(last)) == 2
    assert not set(last) & set(found.dropped)
    # nothing to compare with: it is launched all the same
    alone = {1: [(150.0, 700.0)]}
    assert spent(5, alone, None).order == [1] * 5


def test_one_objective_and_three() -> None:
    for ways in (("maximize",), ("maximize", "minimize", "minimize")):
        directions: list[Direction] = list(ways)  # type: ignore[arg-type]
        searched = {k: [(*x, x[1])[: len(ways)] for x in of] for k, of in SEARCHED.items()}
        first = plan(searched, directions, 0, 12)
        again = {k: [(*x, x[1])[: len(ways)] for x in of] for k, of in measured(first).items()}
        found = next_step(Spending(first, 12), again, searched, directions, 0)
        assert set(found.dropped) == {2, 3}
        assert set(found.order[8:]) == {0, 1}


def test_what_a_study_keeps_is_read_back() -> None:
    found = spent(12)
    kept = json.loads(json.dumps(found.to_json()))
    assert Spending.read(found.order, kept) == found
    # an earlier autotune planned all launches at once, and kept nothing but their order
    assert Spending.read([0, 1, 1, 0], None) == Spending([0, 1, 1, 0], 4)


class TestWholeConfirmations:
    """By simulation: benchmarks/confirmation_power.py has the table."""

    @pytest.fixture(autouse=True)
    def benchmarks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def test_a_winner_is_found_where_launches_differ_by_3_percent(self) -> None:
        from confirmation_power import World, run

        found = run(World(8, 0.03, 0.1), 30, seed=3)
        assert max(found.tie) <= 0.3
        assert max(found.false) <= 0.03
        assert max(found.behind) < 0.02

    @pytest.mark.parametrize("drift", ["steady", "step"])
    def test_equals_are_ties_on_a_machine_that_gets_slower(self, drift: str) -> None:
        from confirmation_power import World, run

        found = run(World(8, 0.03, 0.0, "both", drift), 15, seed=4)
        assert max(found.false) <= 0.03


@pytest.mark.parametrize("baseline", [None, 0])
def test_what_is_launched_again_is_not_listed_as_dropped(baseline: int | None) -> None:
    """Without a baseline one candidate may be left alone, and needs one to compare it with."""
    for seed in (1, 63, 69, 81, 111, 135):
        rng = np.random.default_rng(seed)
        means = rng.normal(0, 0.05, 6)

        def launch(k: int, rng: np.random.Generator = rng, means: Floats = means) -> list[float]:
            return [float(100 * np.exp(means[k] + rng.normal(0, 0.02)))]

        searched = {k: [launch(k)] for k in range(6)}
        so_far = Spending(plan(searched, ["maximize"], baseline, 16), 16)
        found: dict[int, list[list[float]]] = {}
        begun = 0
        while len(so_far.order) < 16:
            for k in so_far.order[begun:]:
                found.setdefault(k, []).append(launch(k))
            begun = len(so_far.order)
            so_far = next_step(so_far, found, searched, ["maximize"], baseline)
            assert not set(so_far.order[begun:]) & set(so_far.dropped)
