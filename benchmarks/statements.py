"""What a study says of itself, against the truth: whether a parameter is seen to matter.

    python benchmarks/statements.py [--seeds 60] [--jobs 2] [--out FILE]
    python benchmarks/statements.py --show benchmarks/data/statements.json

A search is replayed in worlds of `benchmarks/surfaces.py`, and in worlds made here whose largest
difference from the baseline is known, as `autotune run --all-trials` does it, without replicates
and confirmation. Launches differ by the stated noise, beyond that of their requests (1.5 % in
tok/s, 3 % in p95).

**Importance.** After 8, 14, 20, 30 and 40 launches: in how many of the studies that have enough
points n, or MNBT, is seen to matter for tok/s or p95. Of several launches of a point it is the
mean. Where nothing matters, at most 5 % may say that anything does.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrices are tiny: threads wait for each other

import argparse
import json
import multiprocessing
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from search import DIRECTIONS
from surfaces import World, world
from surfaces_base import SIGNS

import objectives
from autotune.output.report.importance import importances
from autotune.results.tables import Column, Row, Table, text_lines
from autotune.search.proposer import Proposer, SearchEnds, nearest, seed_points
from autotune.study.space import MNBT, N, Point

NOISE = (0.005, 0.03, 0.1)
ASKED_AT = (8, 14, 20, 30, 40)
# Worlds of the importance: name or shape, and the size of what is made here.
WORLDS: Sequence[tuple[str, float | None]] = (
    ("flat", None),
    ("slope", 0.2),
    ("budget", 0.2),
    ("gen-cpu", None),
    ("gen-8", None),
    ("two-peaks", None),
    ("load-64", None),
)
CHUNK = 5  # replays of a task


@dataclass(frozen=True)
class Launch:
    """One measured launch: its point, tok/s and p95, and the variances of their logarithms."""

    point: Point
    values: tuple[float, float]
    variances: tuple[float, float]


# -- worlds ----------------------------------------------------------------------------------------


def nearly_flat(shape: str, difference: float, sigma: float, seed: int) -> World:
    """Return a world whose largest true difference from the baseline is known.

    Args:
        shape: ``slope`` along n, ``budget``: a step in MNBT, ``bump`` at three n, ``smooth``: any.
        difference: Largest difference from the baseline, of the logarithms of tok/s and p95.
        sigma: Standard deviation of a launch.
        seed: Of what is drawn: whether it is better or worse, and where.
    """
    base = world("gen-8", sigma)
    rng = np.random.default_rng([seed, 7])
    ns = np.array([int(q[N]) for q in base.points])
    budgets = np.log2([int(q[MNBT]) for q in base.points])
    at = base.place(base.baseline())
    match shape:
        case "slope":
            gain = ns / 15
        case "budget":
            gain = (budgets > budgets[at]) * 1.0
        case "bump":
            gain = (abs(ns - rng.integers(2, 15)) <= 1) * 1.0
        case "smooth":
            centers = rng.uniform([0, budgets.min()], [15, budgets.max()], (4, 2))
            far = [((ns - n) / 4) ** 2 + ((budgets - b) / 2) ** 2 for n, b in centers]
            gain = np.exp(-np.array(far) / 2).T @ rng.normal(size=4)
        case _:
            gain = np.zeros(len(ns))
    gain = gain - gain[at]
    size = np.nanmax(abs(gain[base.launchable()])) or 1.0
    gain = gain * difference / size * rng.choice([-1, 1])
    level = base.logs[at]
    return replace(
        base, name=shape, logs=np.where(np.isnan(base.logs), np.nan, level - SIGNS * gain[:, None])
    )


# -- replays ---------------------------------------------------------------------------------------


def searched(w: World, seed: int, most: int) -> list[Launch]:
    """Return the measured launches of a search, in their order."""
    rng = np.random.default_rng([seed, 1])

    def feasible(point: Point) -> bool:
        return w.infeasible(point) is None

    baseline = nearest(w.space, w.baseline(), feasible)
    assert baseline is not None
    proposer = Proposer(w.space, w.infeasible, DIRECTIONS, method="gp", seed=seed)
    study = optuna.create_study(directions=DIRECTIONS)
    points = seed_points(w.space, baseline, feasible)
    found: list[Launch] = []
    while points:
        for point in points:
            study.enqueue_trial(w.space.encode(point))
            trial = study.ask(w.space.distributions())
            outcome = w.launch(point, rng)
            if outcome.values is None:
                trial.set_user_attr("failure_kind", str(outcome.failure))
                study.tell(trial, state=TrialState.FAIL)
                continue
            assert outcome.log_variances is not None
            trial.set_user_attr("log_variances", list(outcome.log_variances))
            trial.set_user_attr("acceptance_per_position", list(outcome.acceptance_per_position))
            trial.set_user_attr("acceptance_length", outcome.acceptance_length)
            study.tell(trial, outcome.values)
            found.append(Launch(dict(point), outcome.values, outcome.log_variances))
        if len(study.trials) >= most:
            return found
        try:
            points = [proposer.propose(study.get_trials(deepcopy=False)).point]
        except SearchEnds:
            return found
    return found


# -- importance ------------------------------------------------------------------------------------


def matters(w: World, launches: Sequence[Launch]) -> dict[str, bool] | None:
    """Return whether each parameter is seen to matter for anything; None: too few points."""
    by: dict[int, list[Launch]] = {}
    for x in launches:
        by.setdefault(w.place(x.point), []).append(x)
    found = importances(
        w.space,
        [group[0].point for group in by.values()],
        np.array([np.mean([x.values for x in group], axis=0) for group in by.values()]),
        [objectives.get("throughput"), objectives.get("p95_latency")],
    )
    if not found:
        return None
    return {name: any(name in x.shares for x in found.values()) for name in w.space.params}


Task = tuple[str, float | None, float, list[int]]  # world, its difference, noise, seeds


def run_task(task: Task) -> tuple[Task, list[list[dict[str, bool] | None]]]:
    """Return for each seed, and each of ``ASKED_AT``, which parameters are seen to matter."""
    name, difference, sigma, seeds = task
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    out = []
    for seed in seeds:
        w = _world(name, difference, sigma, seed)
        launches = searched(w, seed, ASKED_AT[-1])
        out.append([matters(w, launches[:count]) for count in ASKED_AT])
    return task, out


def _world(name: str, difference: float | None, sigma: float, seed: int) -> World:
    if difference is None:
        return world(name, sigma)
    return nearly_flat(name, difference, sigma, seed)


def run(seeds: int, jobs: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of each world and noise."""
    counts = {name: seeds if name == "flat" else -(-seeds // 3) for name, _ in WORLDS}
    tasks: list[Task] = [
        (name, difference, sigma, list(range(i, min(i + CHUNK, counts[name]))))
        for name, difference in WORLDS
        for sigma in NOISE
        for i in range(0, counts[name], CHUNK)
    ]
    found: dict[tuple[str, float | None, float], list[list[dict[str, bool] | None]]] = {}
    for task, answers in _each(tasks, jobs):
        key = task[:3]
        found[key] = found.get(key, []) + answers
        if len(found[key]) == counts[task[0]]:
            yield _figures(*key, found.pop(key))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _each(
    tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[Task, list[list[dict[str, bool] | None]]]]:
    if jobs == 1:
        yield from map(run_task, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(run_task, tasks)


def _figures(
    name: str,
    difference: float | None,
    sigma: float,
    answers: Sequence[Sequence[dict[str, bool] | None]],
) -> dict[str, Any]:
    by_count = zip(*answers, strict=True)
    asked = [[x for x in column if x is not None] for column in by_count]
    return {
        "world": name,
        "difference": difference,
        "noise": sigma,
        "studies": len(answers),
        "launches": ASKED_AT,
        "asked": [len(x) for x in asked],
        "n": [sum(x[N] for x in column) for column in asked],
        "mnbt": [sum(x[MNBT] for x in column) for column in asked],
        "any": [sum(any(x.values()) for x in column) for column in asked],
    }


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the figures in lines."""
    heads = ["world", "noise", "seen", *(f"{k} launches" for k in ASKED_AT)]
    rows = []
    for cell in result["importance"]:
        size = "" if cell["difference"] is None else f", {cell['difference']:.0%}"
        for seen in ("n", "mnbt", "any"):
            shares = (
                f"{k / of:.0%}" if of else "–"
                for k, of in zip(cell[seen], cell["asked"], strict=True)
            )
            rows.append(Row((f"{cell['world']}{size}", f"{cell['noise']:.1%}", seen, *shares)))
    yield from text_lines(Table(tuple(map(Column, heads)), tuple(rows)))


def main() -> None:
    """Run the replays, or show those of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=60, help="of flat; others: a third")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("statements.json"))
    parser.add_argument("--show", type=Path, help="show this earlier result, and replay nothing")
    args = parser.parse_args()
    if args.show is not None:
        print("\n".join(table(json.loads(args.show.read_text()))))
        return
    result: dict[str, Any] = {"seeds": args.seeds, "importance": []}
    for cell in run(args.seeds, args.jobs):
        result["importance"].append(cell)
        args.out.write_text(json.dumps(result) + "\n")
    print("\n".join(table(result)))


if __name__ == "__main__":
    main()
