"""How often a confirmation calls a winner a tie, and how often it names a wrong one.

    python benchmarks/confirmation_power.py [--runs 400] [--processes 16] [--json FILE]
    python benchmarks/confirmation_power.py --at-once …    # all launches planned at once, as before

Whole confirmations are simulated. A study has a baseline and 16 points, one launch of each, and a
second launch of the baseline and of the best. One point is better than all others, which are equal:
in tok/s, in p95, or in both. Launches of a point differ by ``between`` (tok/s and p95 in opposite
ways, as a slow machine does), and by 1 % (tok/s) and 2 % (p95) that their requests add. The held
launches are spent as `autotune` spends them: each step is planned by
`autotune.search.confirmation_steps` from the launches before it. A machine may drift while the
confirmation runs: it becomes slower by 10 % in all, at an even rate or in one step at its middle.

The question is what launches are worth: how often a known winner is found. Whether what is said of
a winner is true, among points that differ at random, is the question of `confirmed_worlds.py`.

    tie        the choice by the rule is said to be a tie
    false      it is not, although the choice is not the best point or is equal to others
    behind     how far the choice is behind the best point by its rule, on average
    holds      share of studies whose interval of the speed-up (choice by tok/s over the baseline)
               holds the truth, of those whose choice is not the baseline
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from autotune.search.confirmation import Launches, plan
from autotune.search.confirmation_verdict import verdict
from autotune.search.front import Direction
from autotune.stats.measurement import Floats

try:
    from autotune.search.confirmation_steps import next_step
    from autotune.search.spending import Spending
except ImportError:  # an earlier autotune, which plans all launches at once
    pass

DIRECTIONS: tuple[Direction, Direction] = ("maximize", "minimize")
RULES = ("tok/s", "p95", "balanced")
WEIGHTS = np.array([[1, 0], [0, -1], [1, -1]])  # what each rule maximizes, of the logarithms
POINTS = 16
WITHIN = np.array([0.01, 0.02])
HELD = (4, 6, 8, 12)
BETWEEN = (0.005, 0.03, 0.1)
BETTER = (0.0, 0.03, 0.1)
WAYS = {"both": (1, -1), "tok/s": (1, 0), "p95": (0, -1)}
DRIFTS = ("none", "steady", "step")
DRIFT = 0.1

Launch = Callable[[int], Sequence[float]]


def spend(
    searched: Launches,
    directions: Sequence[Direction],
    baseline: int | None,
    held: int,
    launch: Launch,
    *,
    leader: int | None = None,
    most: int | None = None,
) -> tuple[list[int], dict[int, list[Sequence[float]]]]:
    """Return the order of a whole confirmation, and what ``launch`` gave for each point."""
    first = plan(searched, directions, baseline, held, leader=leader, most=most)
    spent = Spending(first, held)
    confirmed: dict[int, list[Sequence[float]]] = {k: [] for k in first}
    begun = 0
    while True:
        for k in spent.order[begun:]:
            confirmed.setdefault(k, []).append(launch(k))
        begun = len(spent.order)
        if begun >= held:
            return list(spent.order), confirmed
        spent = next_step(spent, confirmed, searched, directions, baseline)


def spend_at_once(
    searched: Launches,
    directions: Sequence[Direction],
    baseline: int | None,
    held: int,
    launch: Launch,
) -> tuple[list[int], dict[int, list[Sequence[float]]]]:
    """Return the same of a confirmation of which all launches are planned before the first."""
    first = plan(searched, directions, baseline, held)
    there = list(islice(cycle(dict.fromkeys(first)), math.ceil(held / 2)))
    order = [*there, *reversed(there[: held // 2])]
    confirmed: dict[int, list[Sequence[float]]] = {}
    for k in order:
        confirmed.setdefault(k, []).append(launch(k))
    return order, confirmed


@dataclass(frozen=True)
class World:
    """What a study meets; shares and logarithms."""

    held: int
    between: float
    better: float
    way: str = "both"
    drift: str = "none"

    def truth(self) -> Floats:
        """Return (points + 1) × (log tok/s, log p95); 0 is the baseline, 1 the better one."""
        out = np.zeros((POINTS + 1, 2))
        out[1] = math.log1p(self.better) * np.array(WAYS[self.way])
        return out

    def slower(self, begun: int) -> float:
        """Return how much slower the machine is at a launch of the confirmation; a logarithm."""
        done = begun / max(self.held - 1, 1)
        at = {"none": 0.0, "steady": done, "step": float(begun >= self.held / 2)}[self.drift]
        return DRIFT * at


@dataclass(frozen=True)
class Row:
    """One world, by rule: the shares and differences that the module names."""

    world: World
    tie: list[float]
    false: list[float]
    behind: list[float]
    holds: float | None
    width: float | None
    launched: float


def run(world: World, runs: int, seed: int, *, at_once: bool = False) -> Row:
    """Return what came of so many studies of a world."""
    rng = np.random.default_rng(seed)
    truth = world.truth()
    gains = truth @ WEIGHTS.T
    best = gains.max(axis=0)
    only = (np.sort(gains, axis=0)[-1] - np.sort(gains, axis=0)[-2]) > 0
    ties, wrong, behind, holds, widths, launched = [], [], [], [], [], []
    way = spend_at_once if at_once else spend
    for _ in range(runs):
        begun = 0

        def launch(k: int, late: float = 0.0) -> list[float]:
            luck = np.array([-1, 1]) * (rng.normal(0, world.between) + late)
            return np.exp(truth[k] + luck + rng.normal(0, WITHIN)).tolist()  # type: ignore[no-any-return]

        def again(k: int) -> list[float]:
            nonlocal begun
            begun += 1
            return launch(k, world.slower(begun - 1))

        searched = {k: [launch(k)] for k in range(POINTS + 1)}
        ahead = max(range(1, POINTS + 1), key=lambda k: searched[k][0][0])
        for k in (0, ahead):
            searched[k].append(launch(k))
        order, confirmed = way(searched, DIRECTIONS, 0, world.held, again)
        found = verdict({k: x for k, x in confirmed.items() if x}, searched, DIRECTIONS, 0)
        assert found is not None
        choices = (*found.winners, found.balanced)
        ties.append([c.tie for c in choices])
        right = [bool(only[i]) and gains[c.number, i] >= best[i] for i, c in enumerate(choices)]
        wrong.append([not c.tie and not ok for c, ok in zip(choices, right, strict=True)])
        behind.append([best[i] - gains[c.number, i] for i, c in enumerate(choices)])
        launched.append(len(set(order)))
        fastest = found.winners[0]
        over = fastest.over_baseline
        if over is not None and fastest.number != 0 and over[0].low and over[0].high:
            true = math.exp(truth[fastest.number, 0])
            holds.append(over[0].low <= true <= over[0].high)
            widths.append(math.log(over[0].high / over[0].low) / 2)
    return Row(
        world,
        np.mean(ties, axis=0).round(4).tolist(),
        np.mean(wrong, axis=0).round(4).tolist(),
        np.mean(behind, axis=0).round(5).tolist(),
        round(float(np.mean(holds)), 4) if holds else None,
        round(float(np.mean(widths)), 4) if widths else None,
        round(float(np.mean(launched)), 2),
    )


def worlds() -> list[World]:
    """Return every world of the table."""
    out = [
        World(held, between, better, way)
        for between in BETWEEN
        for better in BETTER
        for way in (WAYS if better else ("both",))
        for held in HELD
    ]
    out += [World(8, 0.03, better, "both", d) for d in DRIFTS[1:] for better in (0.0, 0.1)]
    return out + [World(12, 0.03, better, "both", d) for d in DRIFTS[1:] for better in (0.0, 0.1)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", action="store_true", help="plan all launches at once")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        help="like 8,0.03,0.1,both,steady: held, between, better, way, drift",
    )
    parser.add_argument("--between", type=float, help="only worlds with this between launches")
    parser.add_argument("--way", choices=WAYS, help="only worlds whose winner is better in this")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    chosen = [
        w for w in worlds() if args.between in {None, w.between} and args.way in {None, w.way}
    ]
    if args.only:
        chosen = []
        for words in args.only:
            held, between, better, *way = words.split(",")
            chosen.append(World(int(held), float(between), float(better), *way))
    print(f"{args.runs} studies a row; by tok/s, by p95, balanced")
    print(
        f"{'launches differ':>15}{'better by':>10} {'in':<6}{'drift':<7}{'held':>5}{'points':>7}"
        f"{'tie':>19}{'false':>20}{'behind':>22}{'holds':>8}{'±':>7}"
    )
    one = partial(run, runs=args.runs, seed=args.seed, at_once=args.at_once)
    with ProcessPoolExecutor(args.processes) as pool:
        _show(pool.map(one, chosen), args)


def _show(found: Iterable[Row], args: argparse.Namespace) -> None:
    """Print the rows as they come, and write them."""
    rows = []
    for row in found:
        world = row.world
        rows.append(asdict(row))
        cells = "".join(f"{x:>7.1%}" for x in (*row.tie, *row.false))
        cells += "".join(f"{x:>7.2%}" for x in row.behind)
        cells += f"{row.holds:>8.1%}{row.width:>7.1%}" if row.holds is not None else ""
        print(
            f"{world.between:>15.1%}{world.better:>10.0%} {world.way:<6}{world.drift:<7}"
            f"{world.held:>5}{row.launched:>7.1f}{cells}",
            flush=True,
        )
        if args.json:
            out = {"runs": args.runs, "at_once": args.at_once, "rows": rows}
            args.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
