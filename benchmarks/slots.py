"""Whole studies on slots that differ: what taking the differences out is worth.

    python benchmarks/slots.py [--studies 120] [--replays 4] [--json benchmarks/data/slots.json]

Slots differ by a planted amount (standard deviation of the logarithm of tok/s; p95 moves the other
way, with a correlation of 0.7), launches of a point on one slot by 3 %. Each study searches on its
slots in turn, with the planner's own rule of which slot launches a point that another one has
launched (`autotune.tuning.placement`), and confirms in blocks as `autotune` plans them. *with*
knows the slots, *without* is not told them: the same studies, launches taken as they come.

Two parts. **drawn**: a baseline and sixteen points, equal or N(0, spread²) apart, each launched
once, in a random order (the worlds of `confirmed_worlds.py`). **replayed**: the proposer searches
in worlds of `surfaces.py`, 24 launches, `slots` of them at a time.

    false       studies in which a winner by tok/s is named (no tie) that is not better than the
                runner-up
    sure        studies without a tie
    holds       candidates of which the 95 % interval of the speed-up holds the truth
    half        its median half-width
    short       how much less tok/s the choice truly has than the best point, on average
    links       launches of a point that another slot has launched before, on average
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import confirmed_worlds
import numpy as np
from optuna.trial import FrozenTrial, TrialState, create_trial
from search_replay import DIRECTIONS, first_points
from surfaces import world
from surfaces_base import Floats
from surfaces_base import World as Surface

from autotune.search.confirmation import Launches, candidates_of
from autotune.search.confirmation_steps import next_step, with_step
from autotune.search.confirmation_verdict import verdict
from autotune.search.places import Places
from autotune.search.proposer import Proposer, SearchEnds
from autotune.search.spending import Spending
from autotune.tuning.placement import Links

SLOTS = (2, 4, 8)
DIFFER = (0.0, 0.05)
NOISE = 0.03
HELD = 8
SPREADS = (0.0, 0.1)
WORLDS = ("flat", "demo-cpu-grid")
LAUNCHES = 24  # of a replayed search
SIGNS = np.array([1.0, -1.0])  # of tok/s and p95: more gain is more, and less


@dataclass
class Played:
    """The launches of a study.

    Attributes:
        searched: Values of the search's launches, by point.
        at: Their slots.
        order: Point and slot of each of them, as they came.
    """

    searched: dict[int, list[Sequence[float]]] = field(default_factory=dict)
    at: dict[int, list[str]] = field(default_factory=dict)
    order: list[tuple[int, int]] = field(default_factory=list)

    def add(self, point: int, slot: int, values: Sequence[float]) -> None:
        """Add a launch."""
        self.searched.setdefault(point, []).append(values)
        self.at.setdefault(point, []).append(str(slot))
        self.order.append((point, slot))

    def shared(self, slot: int, running: Sequence[tuple[int, int]] = ()) -> int | None:
        """Return the point that a slot launches, too, if it is to be linked; 0 is the baseline.

        Args:
            slot: The slot.
            running: Point and slot of launches that have not ended.
        """
        order = [*self.order, *running]
        launched: Any = [(frozenset({("point", k)}), str(s)) for k, s in order]
        if not self.order or not Links(launched).wants_link(str(slot)):
            return None
        return next((k for k in (0, self.best) if (k, slot) not in order), 0)

    @property
    def best(self) -> int:
        """The point with the largest mean tok/s."""
        return max(self.searched, key=lambda k: float(np.mean([x[0] for x in self.searched[k]])))

    @property
    def links(self) -> int:
        """Number of launches of a point that another slot has launched before."""
        seen: dict[int, set[int]] = {}
        found = 0
        for k, slot in self.order:
            has = seen.setdefault(k, set())
            found += bool(has) and slot not in has
            has.add(slot)
        return found


Launch = Callable[[int, int], Sequence[float]]  # point and slot → values


@dataclass(frozen=True)
class Judged:
    """What a study said, and what is true; see the module."""

    false: bool
    sure: bool
    holds: Sequence[bool]
    halves: Sequence[float]
    short: float
    links: int


def confirmed(
    played: Played, truth: Floats, best: float, slots: int, launch: Launch, *, known: bool
) -> Judged:
    """Return what came of a study after its search.

    Args:
        played: The search; point 0 is the baseline.
        truth: True gains, of shape (points, 2).
        best: Largest true gain of tok/s of all points.
        slots: Number of slots.
        launch: Launches a point.
        known: Whether it is known which launch was on which slot.
    """
    again: dict[int, list[Sequence[float]]] = {}
    at: dict[int, list[str]] = {}
    places = Places(played.at, at) if known else None
    searched: Launches = played.searched
    first = candidates_of(searched, DIRECTIONS, 0, HELD, places=places)
    spent, begun = with_step(Spending([], HELD), first, slots), 0
    while True:
        start = step = 0
        for length in spent.blocks or (len(spent.order),):
            for k in spent.order[start : start + length] if start >= begun else ():
                again.setdefault(k, []).append(launch(k, step % slots))
                at.setdefault(k, []).append(str(step % slots))
            step += start >= begun
            start += length
        begun = start
        if begun >= HELD:
            break
        spent = next_step(spent, again, searched, DIRECTIONS, 0, slots=slots, places=places)
    found = verdict(again, searched, DIRECTIONS, 0, places)
    assert found is not None
    choice = found.winners[0]
    rate = truth[:, 0]
    better = choice.runner_up is not None and rate[choice.number] > rate[choice.runner_up]
    holds, halves = [], []
    for k, candidate in found.candidates.items():
        over = candidate.over_baseline
        if k == 0 or over is None:
            continue
        low, high = over[0].low, over[0].high
        if low is not None and high is not None:
            holds.append(bool(low <= math.exp(rate[k] - rate[0]) <= high))
            halves.append(math.log(high / low) / 2)
    short = float(1 - math.exp(rate[choice.number] - best))
    return Judged(not choice.tie and not better, not choice.tie, holds, halves, short, played.links)


def effects_of(rng: np.random.Generator, slots: int, differ: float) -> Floats:
    """Return how the slots differ, in gains, of shape (slots, 2)."""
    z = rng.standard_normal((slots, 2))
    z[:, 1] = 0.7 * z[:, 0] + math.sqrt(1 - 0.7**2) * z[:, 1]
    return np.asarray(differ * z)


# -- drawn -----------------------------------------------------------------------------------------


def drawn(spread: float, slots: int, differ: float, seed: int, *, known: bool) -> Judged:
    """Return what came of a study of a baseline and sixteen points."""
    rng = np.random.default_rng([seed, slots, round(1000 * differ), round(1000 * spread)])
    w = confirmed_worlds.World(spread, (NOISE, NOISE), HELD)
    truth, off = w.truth(rng), effects_of(rng, slots, differ)

    def launch(k: int, slot: int) -> Sequence[float]:
        values = w.launch(truth, [k], rng)[0]
        return np.asarray(values * np.exp(SIGNS * off[slot])).tolist()  # type: ignore[no-any-return]

    played = Played()
    queue = [0, *(1 + rng.permutation(w.points)).tolist()]
    repeats = [6, 12, 18]  # the baseline, the best, the baseline: as `budget.replicates`
    while queue or repeats:
        slot = len(played.order) % slots
        shared = played.shared(slot)
        if shared is None and repeats and (len(played.order) >= repeats[0] or not queue):
            shared = played.best if repeats.pop(0) == 12 else 0
        k = queue.pop(0) if shared is None else shared
        played.add(k, slot, launch(k, slot))
    return confirmed(played, truth, float(truth[:, 0].max()), slots, launch, known=known)


# -- replayed --------------------------------------------------------------------------------------


def replayed(name: str, slots: int, differ: float, seed: int, *, known: bool) -> Judged:
    """Return what came of a study whose points the proposer chose."""
    w: Surface = world(name)
    rng = np.random.default_rng([seed, slots, round(1000 * differ)])
    off = effects_of(rng, slots, differ)
    points = [w.place(w.baseline())]  # places in the world, by the number of a point
    trials: list[FrozenTrial] = []
    played = Played()

    def launch(k: int, slot: int) -> Sequence[float]:
        outcome = w.launch(w.points[points[k]], rng)
        assert outcome.values is not None
        return tuple(float(v) for v in outcome.values * np.exp(SIGNS * off[slot]))

    def tell(place: int, slot: int) -> None:
        point = w.points[place]
        outcome = w.launch(point, rng)
        attrs: dict[str, Any] = {"slot": {"cores": str(slot)}} if known else {}
        values = None
        if outcome.values is None:
            attrs["failure_kind"] = str(outcome.failure)
        else:
            values = [float(v) for v in outcome.values * np.exp(SIGNS * off[slot])]
            attrs |= {
                "log_variances": list(outcome.log_variances or ()),
                "acceptance_per_position": list(outcome.acceptance_per_position),
                "acceptance_length": outcome.acceptance_length,
            }
            if place not in points:
                points.append(place)
            played.add(points.index(place), slot, values)
        trial = create_trial(
            state=TrialState.FAIL if values is None else TrialState.COMPLETE,
            values=values,
            params=w.space.encode(point),
            distributions=w.space.distributions(),
            user_attrs=attrs,
        )
        trial.number = len(trials)
        trials.append(trial)

    proposer = Proposer(
        w.space, w.infeasible, DIRECTIONS, method="gp", seed=seed, stop_below=0.0, alike=w.alike
    )
    first = [w.place(q) for q in first_points(w)]
    points[0] = first[0]
    while len(trials) < LAUNCHES:
        batch: list[int] = []
        for slot in range(min(slots, LAUNCHES - len(trials))):
            pending = [w.points[i] for i in batch]
            shared = played.shared(slot, [(-1 - i, s) for s, i in enumerate(batch)])
            if shared is not None:
                batch.append(points[shared])
                continue
            if first:
                batch.append(first.pop(0))
                continue
            try:
                batch.append(w.place(proposer.propose(trials, pending).point))
            except SearchEnds:
                batch.append(points[0])
        for slot, place in enumerate(batch):
            tell(place, slot)
    best = float(w.logs[w.launchable(), 0].max())
    return confirmed(played, w.logs[points] * SIGNS, best, slots, launch, known=known)


# -- the table -------------------------------------------------------------------------------------


def row(judged: Sequence[Judged], about: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one cell."""
    holds = [x for j in judged for x in j.holds]
    halves = [x for j in judged for x in j.halves]
    return about | {
        "studies": len(judged),
        "false": round(float(np.mean([j.false for j in judged])), 4),
        "sure": round(float(np.mean([j.sure for j in judged])), 4),
        "holds": round(float(np.mean(holds)), 4) if holds else None,
        "of": len(holds),
        "half": round(float(np.median(halves)), 4) if halves else None,
        "short": round(float(np.mean([j.short for j in judged])), 4),
        "links": round(float(np.mean([j.links for j in judged])), 2),
    }


@dataclass(frozen=True)
class Cell:
    """One cell: part, world or spread, slots, how they differ, and whether that is known."""

    part: str
    world: str
    slots: int
    differ: float
    known: bool

    def judge(self, seed: int) -> Judged:
        """Return what came of one study."""
        if self.part == "drawn":
            spread = float(self.world)
            return drawn(spread, self.slots, self.differ, seed, known=self.known)
        return replayed(self.world, self.slots, self.differ, seed, known=self.known)


def cells(slots: Sequence[int], parts: Sequence[str]) -> Iterator[Cell]:
    """Yield the cells of the table."""
    for part, worlds in (("drawn", [str(x) for x in SPREADS]), ("replayed", WORLDS)):
        for name in worlds if part in parts else ():
            for count in slots:
                for differ in DIFFER:
                    for known in (True, False):
                        yield Cell(part, name, count, differ, known)


def main() -> None:
    """Print the table, and write it as it grows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=120, help="of each cell of the drawn part")
    parser.add_argument("--replays", type=int, default=4, help="of each cell of the replayed part")
    parser.add_argument("--slots", type=int, nargs="+", default=SLOTS)
    parser.add_argument("--part", nargs="+", choices=("drawn", "replayed"), default=None)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    print(
        "part     world          slots differ slots are  false  sure holds (of)  half short links"
    )
    for cell in cells(args.slots, args.part or ("drawn", "replayed")):
        begun = time.process_time()
        many = args.studies if cell.part == "drawn" else args.replays
        found = row([cell.judge(seed) for seed in range(many)], asdict(cell))
        rows.append(found)
        holds = "-" if found["holds"] is None else f"{found['holds']:.1%}"
        half = "-" if found["half"] is None else f"{found['half']:.1%}"
        print(
            f"{cell.part:<9}{cell.world:<15}{cell.slots:>5}{cell.differ:>7.0%} "
            f"{'known' if cell.known else 'unknown':<9}{found['false']:>7.1%}{found['sure']:>6.0%}"
            f"{holds:>7} ({found['of']}){half:>7}{found['short']:>7.2%}{found['links']:>6}"
            f"   {time.process_time() - begun:.0f} s",
            flush=True,
        )
        if args.json:
            kept = {"studies": args.studies, "replays": args.replays, "cells": rows}
            args.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
