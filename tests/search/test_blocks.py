"""Confirmations on several slots: blocks, and verdicts of which a slot is no part."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from autotune.search.confirmation import Launches, candidates_of, passes_of, plan, step_of
from autotune.search.confirmation_steps import next_step, with_step
from autotune.search.confirmation_verdict import verdict
from autotune.search.front import Direction
from autotune.search.places import Places, linked, place_of
from autotune.search.spending import Spending
from autotune.stats.measurement import Floats

BOTH: tuple[Direction, Direction] = ("maximize", "minimize")


@pytest.mark.parametrize("slots", [2, 3, 4, 8])
@pytest.mark.parametrize("candidates", [1, 2, 3, 4])
@pytest.mark.parametrize("left", range(1, 20))
def test_a_step_has_a_block_for_each_slot(candidates: int, left: int, slots: int) -> None:
    blocks = passes_of(list(range(candidates)), left, slots)
    launches = sum(map(len, blocks))
    assert 0 < launches <= left
    assert left - launches != 1
    assert len(blocks) <= slots + (candidates == 1)
    for i, block in enumerate(blocks):
        used = len(set(block))
        assert used == max(block) + 1  # the most important ones
        assert len(block) <= used + 1
        assert used > 1 or candidates == 1 or left == 1
        if len(block) == used:
            assert block == (sorted(block, reverse=True) if i % 2 else sorted(block))
        else:
            assert block == [*range(used), 0]
    full = [b for b in blocks if len(b) >= max(map(len, map(set, blocks)))]  # type: ignore[arg-type]
    assert len(full) >= len(blocks) - 1


def test_eight_launches_take_as_long_as_two_or_three() -> None:
    assert passes_of([7, 3], 8, 4) == [[7, 3], [3, 7], [7, 3], [3, 7]]
    assert passes_of([7, 3, 5], 8, 4) == [[7, 3, 5], [5, 3, 7], [7, 3]]
    assert passes_of([7, 3, 5], 8, 2) == [[7, 3, 5], [5, 3, 7]]
    assert passes_of([7, 3], 5, 2) == [[7, 3, 7], [3, 7]]
    assert passes_of([], 8, 2) == []


def test_steps_on_one_slot_are_as_before_and_others_keep_their_blocks() -> None:
    one = with_step(Spending([], 8), [0, 1, 2], 1)
    assert (list(one.order), one.blocks) == (step_of([0, 1, 2], 8), ())
    assert one.to_json() == {"held": 8, "dropped": {}}
    # what was begun on one slot goes on with several, and the other way round
    two = with_step(one, [0, 1], 2)
    assert (list(two.order[6:]), two.blocks) == ([0, 1], (6, 2))
    several = with_step(Spending([], 8), [0, 1, 2], 2)
    assert (list(several.order), several.blocks) == ([0, 1, 2, 2, 1, 0], (3, 3))
    back = with_step(several, [0, 1], 1)
    assert (list(back.order[6:]), back.blocks) == ([0, 1], (3, 3, 2))
    kept = json.loads(json.dumps(back.to_json()))
    assert Spending.read(list(back.order), kept) == back


def test_three_candidates_with_few_launches_are_on_two_slots_at_once() -> None:
    assert with_step(Spending([], 4), [0, 1, 2], 1).blocks == ()
    four = with_step(Spending([], 4), [0, 1, 2], 2)
    assert (list(four.order), four.blocks) == ([0, 1, 2, 0], (2, 2))
    five = with_step(Spending([], 5), [0, 1, 2], 8)
    assert (list(five.order), five.blocks) == ([0, 1, 2, 1, 0], (3, 2))


def test_places_have_names_and_links() -> None:
    assert place_of(None) == place_of({}) == ""
    assert place_of({"number": 1, "count": 2, "cores": "4-7", "gpus": ["GPU-a"]}) == "GPU-a"
    cores = {"number": 1, "count": 2, "cores": "4-7", "gpus": []}
    assert place_of(cores) != place_of({**cores, "cores": "0-3"})
    assert place_of({**cores, "host": "a"}) != place_of({**cores, "host": "b"})
    points = {"a": {1, 2}, "b": {2, 3}, "c": {3}, "d": {4}}
    assert linked(points, "a", "a")
    assert linked(points, "c", "a")
    assert not linked(points, "d", "a")
    assert not linked(points, "e", "a")


class Slots:
    """Slots that differ: launches of equal points, or of others."""

    def __init__(self, effects: Sequence[float], noise: float, seed: int) -> None:
        self.effects = np.array(effects)
        self.noise = noise
        self.rng = np.random.default_rng(seed)

    def launch(self, truth: float, slot: int) -> tuple[float, float]:
        off = truth + self.effects[slot] + self.rng.normal(0, self.noise)
        return float(100 * np.exp(off)), float(1000 * np.exp(-off))


def same(a: object, b: object) -> bool:
    return repr(a) == repr(b)


def test_one_place_is_as_if_places_were_not_known() -> None:
    slots = Slots([0.0], 0.03, 1)
    searched = {k: [slots.launch(0.01 * k, 0) for _ in range(1 + (k < 2))] for k in range(6)}
    confirmed = {k: [slots.launch(0.01 * k, 0) for _ in range(2)] for k in (0, 4, 5)}
    at = Places({k: ["x"] * len(v) for k, v in searched.items()}, {k: ["x"] * 2 for k in confirmed})
    assert same(verdict(confirmed, searched, BOTH, 0, at), verdict(confirmed, searched, BOTH, 0))
    found = candidates_of(searched, BOTH, 0, 8, places=at)
    assert step_of(found, 8) == plan(searched, BOTH, 0, 8)
    so_far = Spending([0, 4, 5, 5, 4, 0], 8)
    assert next_step(so_far, confirmed, searched, BOTH, 0, places=at) == next_step(
        so_far, confirmed, searched, BOTH, 0
    )


def blocks_of(
    slots: Slots, truth: Sequence[float], blocks: Sequence[Sequence[int]]
) -> tuple[dict[int, list[tuple[float, float]]], dict[int, list[str]]]:
    """Launches of blocks, each on a slot of its own."""
    launches: dict[int, list[tuple[float, float]]] = {}
    places: dict[int, list[str]] = {}
    for slot, block in enumerate(blocks):
        for k in block:
            launches.setdefault(k, []).append(slots.launch(truth[k], slot % len(slots.effects)))
            places.setdefault(k, []).append(str(slot % len(slots.effects)))
    return launches, places


def test_how_slots_differ_is_no_part_of_a_ratio_in_whole_blocks() -> None:
    """Launches that differ by the slot only: whatever it is, the ratio has no scatter of it."""
    truth = [0.0, 0.1, 0.05]
    found = []
    for far in (0.0, 0.05, 0.4):
        slots = Slots([far, -far], 0.01, 3)
        again, places = blocks_of(slots, truth, [[0, 1, 2], [2, 1, 0]])
        searched: Launches = {k: [slots.launch(truth[k], k % 2)] for k in range(3)}
        at = Places({k: [str(k % 2)] for k in range(3)}, places)
        judged = verdict(again, searched, BOTH, 0, at)
        assert judged is not None
        found.append(judged.candidates[1].over_baseline)
    widths: list[float] = []
    for over in found:
        assert over is not None
        assert over[0].value == pytest.approx(found[0][0].value, rel=1e-9)  # type: ignore[index]
        assert over[0].low is not None
        assert over[0].high is not None
        widths.append(np.log(over[0].high / over[0].low))
    assert max(widths[1:]) < 2 * widths[0]
    without = verdict(again, searched, BOTH, 0)
    assert without is not None
    over = without.candidates[1].over_baseline
    assert over is not None  # 40 % between slots, taken for scatter
    assert over[0].low is None or np.log(over[0].value / over[0].low) > 5 * max(widths)


def played(slots: Slots, truth: Floats, held: int) -> tuple[Places, Launches, Launches, Spending]:
    """A whole study: a search that goes round the slots, and a confirmation in blocks."""
    count = len(slots.effects)
    searched: dict[int, list[tuple[float, float]]] = {}
    at: dict[int, list[str]] = {}
    order = [*range(8), 0, *range(8, len(truth)), 0]
    for i, k in enumerate(order):
        searched.setdefault(k, []).append(slots.launch(truth[k], i % count))
        at.setdefault(k, []).append(str(i % count))
    confirmed: dict[int, list[tuple[float, float]]] = {}
    again: dict[int, list[str]] = {}
    places = Places(at, again)
    spent = with_step(
        Spending([], held), candidates_of(searched, BOTH, 0, held, places=places), count
    )
    while True:
        start = 0
        done = sum(map(len, confirmed.values()))
        for i, length in enumerate(spent.blocks):
            for k in spent.order[max(start, done) : start + length]:
                confirmed.setdefault(k, []).append(slots.launch(truth[k], i % count))
                again.setdefault(k, []).append(str(i % count))
            start += length
        if start >= held:
            return places, searched, confirmed, spent
        spent = next_step(spent, confirmed, searched, BOTH, 0, slots=count, places=places)


def test_no_slots_luck_becomes_a_winner() -> None:
    """Equal points, slots that differ by 5 %; the whole table is that of benchmarks/slots.py."""
    wrong = held = told = 0
    studies = 150
    for seed in range(studies):
        rng = np.random.default_rng([seed, 7])
        slots = Slots(rng.normal(0, 0.05, (2, 4)[seed % 2]), 0.03, seed)
        places, searched, confirmed, _ = played(slots, np.zeros(17), 8)
        judged = verdict(confirmed, searched, BOTH, 0, places)
        assert judged is not None
        wrong += not judged.winners[0].tie
        for k, c in judged.candidates.items():
            if k and c.over_baseline is not None:
                low, high = c.over_baseline[0].low, c.over_baseline[0].high
                told += 1
                held += low is None or high is None or low <= 1 <= high
    assert wrong / studies <= 0.03
    assert 0.93 <= held / told <= 0.98
