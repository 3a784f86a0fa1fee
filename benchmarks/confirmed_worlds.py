"""What a confirmation promises and what is true, where the truth is known.

    python benchmarks/confirmed_worlds.py [--runs 2000] [--jobs 16] [--only PART] [--json FILE]
    PYTHONPATH=EARLIER python benchmarks/confirmed_worlds.py --package NAME --json FILE

A study is simulated: a baseline and sixteen points, whose tok/s and p95 differ by `spread`
(standard deviation of the logarithms, independent of each other), or are all equal but one, which
is 10 % better in both. A launch multiplies both by chance deviations with the standard deviation
`scatter` (correlation 0.7), which may be another one for the baseline. The search launches each
point once, then the baseline, the best by tok/s and the baseline once more. Then comes the
confirmation: in the steps of the package that runs, or in the fixed order of earlier packages
(`--fixed` asks for it). The earlier package's folder goes into PYTHONPATH. How often a known winner
is found, by the number of launches, is the question of `confirmation_power.py`.

For each world and rule (tok/s, p95, balanced):

    told        share of the studies in which the choice is not the baseline
    tok/s, p95  bias of the choice's values, of all studies: promised over true, minus 1
    speed-up    bias of the choice's tok/s over the baseline's, of the studies in which it is told
    holds, ±    how often its 95 % interval holds the truth, and its median half-width
    sure        share of the studies without a tie
    false       share of the studies without a tie in which the choice is not better than the
                runner-up, or is equal to it
    claims      by stated chance to beat the runner-up: number, mean stated, share that is true;
                of two that are exactly equal, half a claim is true
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import autotune
from autotune.search.confirmation import plan
from autotune.search.front import Direction
from autotune.stats.measurement import Floats

try:
    from autotune.search.confirmation_verdict import verdict
except ImportError:  # an earlier package
    from autotune.search.confirmation import verdict
try:
    from autotune.search.confirmation_steps import next_step
    from autotune.search.spending import Spending
except ImportError:
    next_step = None

POINTS = 16
ONE = 0.1  # how much better the one good point is
CORRELATION = 0.7
RULES = ("tok/s", "p95", "balanced")
BINS = (0.0, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
MANY = 200  # claims from which a bin is judged


@dataclass(frozen=True)
class World:
    """A kind of study.

    Attributes:
        spread: Standard deviation of the points' logarithms; None: all are equal but one.
        scatter: Standard deviation of a launch's logarithm: of the points, and of the baseline.
        held: Launches of the confirmation.
        points: Number of points besides the baseline.
        again: Launches of the search that repeat a point; 1: of the baseline.
        objectives: Number of objectives; the third one is to maximize.
        done: Launches of the confirmation that have ended; None: all.
    """

    spread: float | None
    scatter: tuple[float, float]
    held: int
    points: int = POINTS
    again: int = 3
    objectives: int = 2
    done: int | None = None

    @property
    def directions(self) -> tuple[Direction, ...]:
        every: tuple[Direction, ...] = ("maximize", "minimize", "maximize")
        return every[: self.objectives]

    @property
    def signs(self) -> Floats:
        return np.array([1 if d == "maximize" else -1 for d in self.directions])

    def truth(self, rng: np.random.Generator) -> Floats:
        """Return the true gains, of shape (points + 1, objectives); the first is the baseline."""
        shape = (self.points + 1, self.objectives)
        if self.spread is not None:
            return rng.normal(0, self.spread, shape)
        truth = np.zeros(shape)
        truth[1 + rng.integers(self.points)] = math.log1p(ONE)
        return truth

    def launch(self, truth: Floats, points: Sequence[int], rng: np.random.Generator) -> Floats:
        """Return the values of one launch of each point, of shape (launches, objectives)."""
        of = np.array(points)
        noise = rng.standard_normal((len(of), self.objectives))
        noise[:, 1:] = CORRELATION * noise[:, :1] + math.sqrt(1 - CORRELATION**2) * noise[:, 1:]
        sigma = np.where(of == 0, self.scatter[1], self.scatter[0])
        return np.asarray(np.exp(self.signs * (truth[of] + sigma[:, None] * noise)))


def worlds(part: str) -> Iterator[World]:
    """Yield the worlds of a part of the table."""
    spreads = (0.0, 0.01, 0.03, 0.1, None)
    if part == "equal":
        for held in (4, 6, 8):
            for scatter in (0.005, 0.03, 0.1):
                for spread in spreads:
                    yield World(spread, (scatter, scatter), held)
    elif part == "unequal":
        for held in (4, 6, 8):
            for scatter in ((0.1, 0.005), (0.005, 0.1)):
                for spread in (0.0, 0.03, 0.1):
                    yield World(spread, scatter, held)
    elif part == "more":
        for spread in (0.0, 0.03, 0.1):
            both = (0.03, 0.03)
            yield World(spread, both, 2)
            yield World(spread, both, 4, again=1)
            yield World(spread, both, 8, done=5)
            yield World(spread, both, 8, points=3)
            yield World(spread, both, 8, objectives=3)
            yield World(spread, both, 16)


@dataclass(frozen=True)
class Study:
    """What one study promised by one rule; logarithms.

    Attributes:
        errors: Promised minus true gain, for the first two objectives.
        lead: Error of the speed-up's logarithm; None: the choice is the baseline.
        half: Half-width of its interval; None: there is none.
        sure: Whether the choice is no tie.
        better: Whether the choice is truly better than the runner-up: 1, 0, or 0.5 if equal.
        stated: Stated chance; None: there is none.
    """

    errors: tuple[float, float]
    lead: float | None
    half: float | None
    sure: bool
    better: float
    stated: float | None


def study(world: World, fixed: bool, rng: np.random.Generator) -> list[Study]:
    """Return the promises of one simulated study, for each rule."""
    truth = world.truth(rng)
    every = list(range(world.points + 1))
    singles = world.launch(truth, every, rng)
    searched: dict[int, list[list[float]]] = {
        k: [x] for k, x in zip(every, singles.tolist(), strict=True)
    }
    again = [0, int(singles[:, 0].argmax()), 0][: world.again]
    if again:
        for k, x in zip(again, world.launch(truth, again, rng).tolist(), strict=True):
            searched[k].append(x)
    confirmed: dict[int, list[list[float]]] = {}

    def launch(order: Sequence[int]) -> None:
        for k, x in zip(order, world.launch(truth, order, rng).tolist(), strict=True):
            confirmed.setdefault(k, []).append(x)

    order = list(plan(searched, world.directions, 0, world.held))
    if fixed or next_step is None:
        launch(order[: world.done])
    else:
        most = world.held if world.done is None else world.done
        spent = Spending(order, world.held)
        launch(order[:most])
        while len(spent.order) < most:
            begun = len(spent.order)
            spent = next_step(spent, confirmed, searched, world.directions, 0)
            launch(list(spent.order[begun:most]))
    found = verdict(confirmed, searched, world.directions, 0)
    assert found is not None
    weights = np.vstack([np.eye(world.objectives)[:2], np.ones(world.objectives)])
    gains = truth @ weights.T
    out = []
    for rule, choice in enumerate((*found.winners[:2], found.balanced)):
        k = choice.number
        values = np.log([e.value for e in choice.values]) * world.signs - truth[k]
        lead = half = None
        if k != 0:
            assert choice.over_baseline is not None
            ratio = choice.over_baseline[0]
            lead = math.log(ratio.value) - float(truth[k, 0] - truth[0, 0])
            if ratio.low is not None and ratio.high is not None:
                half = math.log(ratio.high / ratio.low) / 2
        better = 0.5
        if choice.runner_up is not None:
            ahead = gains[k, rule] - gains[choice.runner_up, rule]
            better = 0.5 if ahead == 0 else float(ahead > 0)
        sure = choice.runner_up is not None and not choice.tie
        out.append(
            Study((float(values[0]), float(values[1])), lead, half, sure, better, choice.chance)
        )
    return out


def cell(job: tuple[World, bool, int, int]) -> list[dict[str, Any]]:
    """Return the rows of one world, for each rule."""
    world, fixed, runs, seed = job
    rng = np.random.default_rng(seed)
    found = [study(world, fixed, rng) for _ in range(runs)]
    return [
        {**asdict(world), "rule": name, **_row([s[rule] for s in found], world)}
        for rule, name in enumerate(RULES)
    ]


def _row(studies: Sequence[Study], world: World) -> dict[str, Any]:
    errors = np.array([s.errors for s in studies]) * world.signs[:2]
    told = [s for s in studies if s.lead is not None]
    leads = np.array([s.lead for s in told])
    held = [(abs(s.lead), s.half) for s in told if s.half is not None and s.lead is not None]
    bias = np.expm1(errors.mean(axis=0))
    return {
        "told": round(len(told) / len(studies), 3),
        "tok/s": round(float(bias[0]), 4),
        "p95": round(float(bias[1]), 4),
        "speed-up": round(float(np.expm1(leads.mean())), 4) if told else None,
        "error": round(float(np.sqrt((leads**2).mean())), 4) if told else None,
        "holds": round(float(np.mean([e <= h for e, h in held])), 4) if held else None,
        "half": round(float(np.expm1(np.median([h for _, h in held]))), 4) if held else None,
        "sure": round(float(np.mean([s.sure for s in studies])), 4),
        "false": round(float(np.mean([s.sure and s.better < 1 for s in studies])), 4),
        "claims": _claims([(s.stated, s.better) for s in studies if s.stated is not None]),
    }


def _claims(claims: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Return number, sum of stated chances and of true claims, for each bin."""
    stated = np.array([c[0] for c in claims])
    true = np.array([c[1] for c in claims])
    out = []
    for low, high in pairwise(BINS):
        which = (stated >= low) & (stated < high + (high == BINS[-1]))
        out.append(
            [int(which.sum()), round(float(stated[which].sum()), 3), float(true[which].sum())]
        )
    return out


def reliability(rows: Sequence[dict[str, Any]]) -> str:
    """Return stated and true percentages of the bins of some rows, with the number of claims."""
    total = np.array([r["claims"] for r in rows]).sum(axis=0)
    parts = [
        f"{s / n:.0%}: {t / n:.0%} ({n:.0f}){' !' if n >= MANY and s / n - t / n > 0.05 else ''}"
        for n, s, t in total
        if n >= 20
    ]
    return "; ".join(parts)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows of one world."""
    for r in rows:
        a, b = r["scatter"]
        spread = "one" if r["spread"] is None else f"{r['spread']:.0%}"
        more = f"{r['points']}/{r['again']}/{r['objectives']}/{r['done'] or r['held']}"
        numbers = [
            "-" if r[k] is None else f"{r[k]:+.2%}"
            for k in ("tok/s", "p95", "speed-up", "error", "holds", "half", "sure", "false")
        ]
        print(
            f"{r['held']:>4}{a:>6.1%}{b:>6.1%}{spread:>6} {more:<12}{r['rule']:<9}"
            f"{r['told']:>6.0%}" + "".join(f"{x:>9}" for x in numbers),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", choices=("equal", "unequal", "more"), nargs="*")
    parser.add_argument("--fixed", action="store_true", help="all launches in one fixed order")
    parser.add_argument("--scatter", type=float, help="only worlds with this scatter")
    parser.add_argument("--held", type=int, help="only worlds with so many launches")
    parser.add_argument("--package", default="today", help="name of the package in the file")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"package: {Path(inspect.getfile(autotune)).parent}")
    cells = [
        w
        for part in args.only or ("equal", "unequal", "more")
        for w in worlds(part)
        if (args.scatter is None or args.scatter in w.scatter)
        and (args.held is None or args.held == w.held)
    ]
    print(
        "held scatter     spread n/again/obj/done rule told  tok/s  p95  speed-up  error  holds  "
        "half  sure  false"
    )
    rows = []
    jobs = [(w, args.fixed, args.runs, args.seed) for w in cells]
    with ProcessPoolExecutor(args.jobs) as workers:
        for found in workers.map(cell, jobs):
            show(found)
            rows += found
            if args.json:
                known = json.loads(args.json.read_text()) if args.json.exists() else {}
                known[args.package] = {"runs": args.runs, "seed": args.seed, "cells": rows}
                args.json.write_text(json.dumps(known, indent=1) + "\n")
    print("\nstated chance: true (claims)")
    for name in RULES:
        print(f"  {name}: {reliability([r for r in rows if r['rule'] == name])}")
    for spread in dict.fromkeys(r["spread"] for r in rows):
        print(f"  spread {spread}: {reliability([r for r in rows if r['spread'] == spread])}")
    for scatter in dict.fromkeys(tuple(r["scatter"]) for r in rows):
        which = [r for r in rows if tuple(r["scatter"]) == scatter]
        print(f"  scatter {scatter}: {reliability(which)}")
    print(f"  all: {reliability(rows)}")


if __name__ == "__main__":
    main()
