"""How far promised numbers are from the truth: the luckiest launch against the confirmation.

    python benchmarks/selection_bias.py [GRID.npz | STUDY.db] [--runs 1000] [--json FILE]

Whole studies are replayed on a measured grid. A launch of a point is a block bootstrap of its
measured requests (blocks of four, because neighboring requests are similar) times the deviation of
the launch, log-normal with sigma: tok/s divided by it, latencies multiplied. A point's truth is the
geometric mean over such launches. A study searches the baseline and 27 random points (all, if the
grid has fewer), and launches the baseline twice more and its best once more. Then comes the
confirmation in its steps, by default with 2 candidates in 4 launches and 3 in 8. Worlds that are
not from a grid, with equal points too, are in `confirmed_worlds.py`.

    luckiest        the best single launch of the search, as most tuners report it
    means           the best mean of the confirmation's launches
    confirmed       `autotune.search.confirmation_verdict.verdict`, as `autotune` reports it

For the choices by tok/s, by p95 and the balanced one: bias (promised over true, geometric mean,
minus 1) of tok/s, p95 and the speed-up over the baseline; of the studies whose choice is not the
baseline (their share is "told"), how often the speed-up's 95 % interval holds the truth, and its
mean half-width; "close": how often the choice is within 2 % of the best point of the search by its
own rule (balanced: 4 %, of two objectives). Then, of choices that were said to beat their runner-up
with such a chance, how many really do: as `verdict` states it, and as Student's t with a flat prior
would from the means of the confirmation.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from confirmation_power import spend
from grid import MEASURED, describe, load, resampled
from scipy import special

from autotune.search.confirmation_verdict import verdict
from autotune.search.front import Direction
from autotune.stats import Estimate
from autotune.stats.measurement import Floats, Ints

DIRECTIONS: tuple[Direction, Direction] = ("maximize", "minimize")
RULES = ("tok/s", "p95", "balanced")
WAYS = ("luckiest", "means", "confirmed")
WEIGHTS = np.array([[1, 0], [0, -1], [1, -1]])  # what each rule maximises, of the logarithms
CLOSE = np.array([0.02, 0.02, 0.04])
SEARCHED = 28
PLANS = ((4, 2), (8, 2), (8, 3), (8, 4))  # launches and candidates; 4, 2 and 8, 3 are the default
BINS = (0.5, 0.7, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class World:
    """What can be launched, and by how much launches of one point differ.

    Attributes:
        pool: As :func:`resampled` returns it.
        sigma: Standard deviation of the logarithm of a launch's deviation.
    """

    pool: Floats
    sigma: float

    @property
    def truth(self) -> Floats:
        """Points × (log tok/s, log p95)."""
        return np.asarray(self.pool.mean(axis=1))

    def launch(self, points: Ints, rng: np.random.Generator) -> Floats:
        """One launch of each point: launches × (tok/s, p95)."""
        picks = rng.integers(self.pool.shape[1], size=len(points))
        deviation = rng.normal(0, self.sigma, (len(points), 1)) * [-1, 1]
        return np.asarray(np.exp(self.pool[points, picks] + deviation))


@dataclass(frozen=True)
class Promise:
    """What one way says of its choice by one rule, and what is true of it; logarithms.

    Attributes:
        errors: Promised minus true: tok/s, p95, speed-up.
        behind: How far the choice is behind the best by the rule.
        half: Half-width of the speed-up's interval; NaN: none, or the choice is the baseline.
        covered: Whether that interval holds the truth.
    """

    errors: tuple[float, float, float]
    behind: float
    half: float = math.nan
    covered: bool = False


@dataclass(frozen=True)
class Claim:
    """A choice against its runner-up: the chance as stated and by a flat prior; what is true."""

    stated: float
    flat: float
    true: bool


def replay(
    world: World, held: int, most: int, rng: np.random.Generator
) -> tuple[dict[str, list[Promise]], list[Claim]]:
    """One study: for each way the promises by the three rules, and the verdict's claims."""
    total = len(world.pool)
    visited = rng.choice(np.arange(1, total), min(SEARCHED, total) - 1, replace=False)
    visited = np.concatenate([[0], visited])
    singles = world.launch(visited, rng)
    again = [0, int(visited[singles[:, 0].argmax()]), 0]
    searched = {int(k): [v] for k, v in zip(visited, singles.tolist(), strict=True)}
    for k, v in zip(again, world.launch(np.array(again), rng).tolist(), strict=True):
        searched[k].append(v)

    def launch(k: int) -> list[float]:
        values: list[float] = world.launch(np.array([k]), rng)[0].tolist()
        return values

    _, confirmed = spend(searched, DIRECTIONS, 0, held, launch, most=most)
    found = verdict(confirmed, searched, DIRECTIONS, 0)
    assert found is not None

    truth = world.truth
    best = (truth[visited] @ WEIGHTS.T).max(axis=0)

    def promise(rule: int, k: int, values: Floats, speedup: float) -> Promise:
        errors = np.log(values) - truth[k]
        error = math.log(speedup) - (truth[k, 0] - truth[0, 0])
        behind = best[rule] - truth[k] @ WEIGHTS[rule]
        return Promise((float(errors[0]), float(errors[1]), error), float(behind))

    ways: dict[str, list[Promise]] = {way: [] for way in WAYS}
    claims = []
    means = {k: np.exp(np.log(v).mean(axis=0)) for k, v in confirmed.items()}
    for rule, weights in enumerate(WEIGHTS):
        k = int(visited[(np.log(singles) @ weights).argmax()])
        ways["luckiest"].append(
            promise(rule, k, np.array(searched[k][0]), searched[k][0][0] / searched[0][0][0])
        )
        k = max(means, key=lambda k: float(np.log(means[k]) @ weights))
        ways["means"].append(promise(rule, k, means[k], means[k][0] / means[0][0]))
        choice = (*found.winners, found.balanced)[rule]
        k = choice.number
        assert choice.over_baseline is not None
        gain = choice.over_baseline[0]
        of = promise(rule, k, np.array([e.value for e in choice.values]), gain.value)
        ways["confirmed"].append(of if k == 0 else _with_interval(of, gain))
        if rule < len(DIRECTIONS) and choice.runner_up is not None and choice.chance is not None:
            rivals = [k, choice.runner_up]
            measured = weights @ (np.log(means[k]) - np.log(means[choice.runner_up]))
            scatter = found.scatters[rule]
            error = scatter.sigma * math.sqrt(sum(1 / len(confirmed[x]) for x in rivals))
            flat = float(special.stdtr(scatter.degrees, measured / error))
            true = weights @ (truth[k] - truth[choice.runner_up]) > 0
            claims.append(Claim(choice.chance, flat, bool(true)))
    return ways, claims


def _with_interval(p: Promise, e: Estimate) -> Promise:
    assert e.low is not None
    assert e.high is not None
    half = math.log(e.high / e.low) / 2
    return Promise(p.errors, p.behind, half, abs(p.errors[2]) <= half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path, nargs="?", default=MEASURED)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    grid = load(args.grid)
    rng = np.random.default_rng(args.seed)
    pool = resampled(grid.points(), rng)
    within = math.sqrt(float(pool[:, :, 0].var(axis=1).mean()))
    print(describe(grid))
    cells: list[dict[str, Any]] = []
    for sigma in (0.03, math.sqrt(max(0.0, 0.1**2 - within**2))):
        world = World(pool, sigma)
        whole = math.hypot(sigma, within)
        print(
            f"\nlaunches differ by {sigma:.1%}, with their requests by {whole:.1%} in tok/s; "
            f"{args.runs} studies"
        )
        print(
            f"{'choice by':<10}{'launches':>9}{'points':>7} {'':<10}{'tok/s':>8}{'p95':>8}"
            f"{'speed-up':>10}{'told':>7}{'holds':>8}{'±':>7}{'close':>7}"
        )
        for held, most in PLANS:
            runs = [replay(world, held, most, rng) for _ in range(args.runs)]
            rows = [
                {"rule": name, "way": way, **_summary([x[way][rule] for x, _ in runs], CLOSE[rule])}
                for rule, name in enumerate(RULES)
                for way in WAYS
            ]
            for row in rows:
                print(f"{row['rule']:<10}{held:>9}{most:>7} {row['way']:<10}{_words(row)}")
            claims = _claims([claim for _, claims in runs for claim in claims])
            for name, parts in claims.items():
                said = "; ".join(f"{x:.0%}: {true:.0%} of {count}" for x, true, count in parts)
                print(f"  chance to beat the runner-up, {name}: {said}", flush=True)
            cells.append(
                {
                    "differ": round(whole, 4),
                    "held": held,
                    "candidates": most,
                    "rows": rows,
                    "claims": claims,
                }
            )
            if args.json:
                out = {"runs": args.runs, "seed": args.seed, "cells": cells}
                args.json.write_text(json.dumps(out, indent=1) + "\n")


def _summary(promises: Sequence[Promise], close: float) -> dict[str, float | None]:
    """Return the shares and biases that the module names."""
    bias = np.expm1(np.mean([p.errors for p in promises], axis=0)).round(4).tolist()
    with_interval = [p for p in promises if not math.isnan(p.half)]
    holds = half = None
    if with_interval:
        holds = round(float(np.mean([p.covered for p in with_interval])), 4)
        half = round(float(np.expm1(np.mean([p.half for p in with_interval]))), 4)
    near = round(float(np.mean([p.behind < close for p in promises])), 4)
    told = dict(zip(("tok/s", "p95", "speed-up"), bias, strict=True))
    share = round(len(with_interval) / len(promises), 4)
    return {**told, "told": share, "holds": holds, "half": half, "close": near}


def _words(row: dict[str, Any]) -> str:
    text = f"{row['tok/s']:>+8.1%}{row['p95']:>+8.1%}{row['speed-up']:>+10.1%}"
    text += (
        " " * 22
        if row["holds"] is None
        else f"{row['told']:>7.0%}{row['holds']:>8.0%}{row['half']:>7.1%}"
    )
    return f"{text}{row['close']:>7.0%}"


def _claims(claims: Sequence[Claim]) -> dict[str, list[tuple[float, float, int]]]:
    """Return mean stated chance, share that is true and number, for each way and bin."""
    true = np.array([c.true for c in claims])
    out: dict[str, list[tuple[float, float, int]]] = {}
    for name, stated in (
        ("stated", np.array([c.stated for c in claims])),
        ("flat prior", np.array([c.flat for c in claims])),
    ):
        out[name] = []
        for low, high in pairwise(BINS):
            which = (stated >= low) & (stated < high + (high == BINS[-1]))
            if which.any():
                shares = (round(float(x[which].mean()), 4) for x in (stated, true))
                out[name].append((*shares, int(which.sum())))  # type: ignore[arg-type]
    return out


if __name__ == "__main__":
    main()
