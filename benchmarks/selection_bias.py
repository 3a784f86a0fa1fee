"""How far promised numbers are from the truth: the luckiest launch against the confirmation.

    python benchmarks/selection_bias.py [GRID.npz | STUDY.db] [--runs 1000]
    python benchmarks/selection_bias.py --loads [--runs 2000] [--json FILE]

Whole studies are replayed on a measured grid. A launch of a point is a block bootstrap of its
measured requests (blocks of four, as neighbours are alike) times the luck of the launch, log-normal
with sigma: tok/s divided by it, latencies multiplied. A point's truth is the geometric mean over
such launches. A study searches the baseline and 27 random points (all, if the grid has fewer) and
launches the baseline twice more and its best once more; then comes the confirmation, by default
with 2 candidates in 4 launches, with 3 in 8.

    luckiest        the best single launch of the search, as most tuners report it
    means           the best mean of the confirmation's launches
    confirmed       `autotune.search.confirmation_verdict.verdict`, as `autotune` reports it

For the choices by tok/s, by p95 and the balanced one: bias (promised over true, geometric mean,
minus 1) of tok/s, p95 and the speed-up over the baseline; how often the speed-up's 95 % interval
holds the truth, and its mean half-width; "close": how often the choice is within 2 % of the best
point of the search by its own rule (balanced: 4 %, of two objectives). Then, of choices that were
said to beat their runner-up with such a chance, how many really do: as `verdict` states it, and as
Student's t with a flat prior would from the means of the confirmation.

With ``--loads`` the launches are simulated ones of the loads of `coverage.py`, at concurrency 1 and
64 with eight requests a place (at least 100): a baseline and sixteen points whose tok/s and p95
differ by 10 % (standard deviation of the logarithms). Told is the bias of what is confirmed, with 8
launches and 3 candidates, the largest of the three rules.
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
from coverage import serve, shapes
from grid import MEASURED, POOL, describe, load, resampled
from scipy import special

from autotune.search.confirmation_verdict import verdict
from autotune.search.front import Direction
from autotune.stats import Estimate
from autotune.stats.measurement import Floats, Ints

DIRECTIONS: tuple[Direction, Direction] = ("maximize", "minimize")
RULES = ("tok/s", "p95", "balanced")
WEIGHTS = np.array([[1, 0], [0, -1], [1, -1]])  # what each rule maximises, of the logarithms
CLOSE = np.array([0.02, 0.02, 0.04])
SEARCHED = 28
PLANS = ((4, 2), (8, 2), (8, 3), (8, 4))  # launches and candidates; 4, 2 and 8, 3 are the default
SIMULATED, SPREAD = 16, 0.1  # points beside the baseline, and how far they differ
LUCKS = (0.03, 0.1)
BINS = (0.5, 0.7, 0.9, 0.95, 1.0)


def simulated(name: str, places: int, size: int, rng: np.random.Generator) -> Floats:
    """Launches of a load without luck; as of :func:`resampled`."""
    served = serve(shapes()[name], places, size, POOL, rng)
    seconds, tokens = served.seconds[:, :size], served.tokens[:, :size]
    rate = np.log(places * tokens.sum(axis=1) / seconds.sum(axis=1))
    p95 = np.log(1000 * np.percentile(seconds, 95, axis=1, method="median_unbiased"))
    launches = np.column_stack([rate, p95])
    points = np.concatenate([np.zeros((1, 2)), rng.normal(0, SPREAD, (SIMULATED, 2))])
    return np.array([rng.permutation(launches) + point for point in points])


@dataclass(frozen=True)
class World:
    """What can be launched, and with how much luck.

    Attributes:
        pool: As of :func:`resampled`.
        sigma: Of the logarithm of a launch's luck.
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
        luck = rng.normal(0, self.sigma, (len(points), 1)) * [-1, 1]
        return np.asarray(np.exp(self.pool[points, picks] + luck))


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

    ways: dict[str, list[Promise]] = {"luckiest": [], "means": [], "confirmed": []}
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


def of_loads(runs: int, seed: int) -> list[dict[str, Any]]:
    """Print the bias of confirmed numbers on simulated loads, and return it."""
    held, most = PLANS[2]
    print(
        f"{'load':<22}{'C':>5}{'N':>6}{'luck':>7}{'tok/s':>8}{'p95':>8}{'speed-up':>10}{'holds':>8}"
    )
    rows = []
    for name in shapes():
        for places in (1, 64):
            size = max(100, 8 * places)
            pool = simulated(name, places, size, np.random.default_rng([seed, places]))
            for luck in LUCKS:
                rng = np.random.default_rng([seed, places, 1])
                found = [replay(World(pool, luck), held, most, rng)[0] for _ in range(runs)]
                promises = [[w["confirmed"][rule] for w in found] for rule in range(len(RULES))]
                bias = np.array(
                    [np.expm1(np.mean([p.errors for p in of], axis=0)) for of in promises]
                )
                worst = bias[np.abs(bias).argmax(axis=0), range(bias.shape[1])]
                sure = [p.covered for of in promises for p in of if not math.isnan(p.half)]
                rows.append(
                    {
                        "load": name,
                        "places": places,
                        "requests": size,
                        "luck": luck,
                        "bias": worst.round(4).tolist(),
                        "holds": round(float(np.mean(sure)), 3),
                    }
                )
                print(
                    f"{name:<22}{places:>5}{size:>6}{luck:>7.1%}{worst[0]:>+8.1%}{worst[1]:>+8.1%}"
                    f"{worst[2]:>+10.1%}{np.mean(sure):>8.0%}",
                    flush=True,
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path, nargs="?", default=MEASURED)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loads", action="store_true", help="simulated loads instead of a grid")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.loads:
        rows = of_loads(args.runs, args.seed)
        if args.json:
            args.json.write_text(json.dumps({"runs": args.runs, "cells": rows}, indent=1) + "\n")
        return
    grid = load(args.grid)
    rng = np.random.default_rng(args.seed)
    pool = resampled(grid.points(), rng)
    within = math.sqrt(float(pool[:, :, 0].var(axis=1).mean()))
    print(describe(grid))
    for sigma in (0.03, math.sqrt(max(0.0, 0.1**2 - within**2))):
        world = World(pool, sigma)
        print(
            f"\nluck of a launch {sigma:.1%}, with its requests {math.hypot(sigma, within):.1%} "
            f"of tok/s; {args.runs} studies"
        )
        print(
            f"{'choice by':<10}{'launches':>9}{'points':>7} {'':<10}{'tok/s':>8}{'p95':>8}"
            f"{'speed-up':>10}{'holds':>8}{'±':>7}{'close':>7}"
        )
        for held, most in PLANS:
            runs = [replay(world, held, most, rng) for _ in range(args.runs)]
            for rule, name in enumerate(RULES):
                for way in ("luckiest", "means", "confirmed"):
                    promises = [ways[way][rule] for ways, _ in runs]
                    print(f"{name:<10}{held:>9}{most:>7} {way:<10}{_row(promises, CLOSE[rule])}")
            _print_claims([claim for _, claims in runs for claim in claims])


def _row(promises: Sequence[Promise], close: float) -> str:
    bias = np.expm1(np.mean([p.errors for p in promises], axis=0))
    near = np.mean([p.behind < close for p in promises])
    with_interval = [p for p in promises if not math.isnan(p.half)]
    text = f"{bias[0]:>+8.1%}{bias[1]:>+8.1%}{bias[2]:>+10.1%}"
    if with_interval:
        covered = np.mean([p.covered for p in with_interval])
        half = np.expm1(np.mean([p.half for p in with_interval]))
        text += f"{covered:>8.0%}{half:>7.1%}"
    else:
        text += f"{'':>15}"
    return f"{text}{near:>7.0%}"


def _print_claims(claims: Sequence[Claim]) -> None:
    true = np.array([c.true for c in claims])
    for name, stated in (
        ("stated", np.array([c.stated for c in claims])),
        ("flat prior", np.array([c.flat for c in claims])),
    ):
        parts = []
        for low, high in pairwise(BINS):
            which = (stated >= low) & (stated < high + (high == BINS[-1]))
            if which.any():
                parts.append(
                    f"{stated[which].mean():.0%}: {true[which].mean():.0%} of {which.sum()}"
                )
        print(f"  chance to beat the runner-up, {name}: {'; '.join(parts)}")


if __name__ == "__main__":
    main()
