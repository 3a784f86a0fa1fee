"""What a study says of itself, against the truth: what matters, and whether anything differs.

    python benchmarks/statements.py [--part importance bounds] [--seeds 60] [--jobs 2] [--out FILE]
    python benchmarks/statements.py --show benchmarks/data/statements.json

A search is replayed in worlds of `benchmarks/surfaces.py`, and in worlds made here whose largest
difference from the baseline is known, as `autotune run --all-trials` does it, without replicates
and confirmation. Launches differ by the stated noise, beyond that of their requests (1.5 % in
tok/s, 3 % in p95). A file that exists is continued: cells that it has are not replayed again.

**Importance.** After 8, 14, 20, 30 and 40 launches: in how many of the studies that have enough
points n, or MNBT, is seen to matter for tok/s or p95. Of several launches of a point it is the
mean. Where nothing matters, at most 5 % may say that anything does. `flat` has all seeds, the
others a third of them.

**Bounds.** After 8, 12 and 20 launches: in how many of the studies "no setting differs from the
baseline by more than x", and "none is better by more than x", hold for tok/s and p95 together, of
all studies and of those in which x is little enough to be said; how often that is; and the median
of x. All have a third of the seeds. A `bump` of three values of n is what no bound can foresee
before one of them is launched.
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
from search_replay import DIRECTIONS
from surfaces import World, world
from surfaces_base import SIGNS

import objectives
from autotune.output.report.importance import importances
from autotune.results.flatness import stated
from autotune.results.tables import Column, Row, Table, text_lines
from autotune.search.alike import Classes
from autotune.search.flatness import flatness
from autotune.search.model import Observed
from autotune.search.proposer import Proposer, SearchEnds, nearest, seed_points
from autotune.study.space import MNBT, N, Point

PARTS = ("importance", "bounds")
SIZES = (0.02, 0.05, 0.1)
OBJECTIVES = [objectives.get("throughput"), objectives.get("p95_latency")]
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
BOUNDS_AT = (8, 12, 20)
# Worlds of the bounds: shape and largest difference.
NEAR: Sequence[tuple[str, float]] = (
    ("flat", 0.0),
    *((shape, size) for shape in ("smooth", "slope", "budget", "bump") for size in SIZES),
)


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
        OBJECTIVES,
    )
    if not found:
        return None
    return {name: any(name in x.shares for x in found.values()) for name in w.space.params}


# -- bounds ----------------------------------------------------------------------------------------


def bounds(w: World, launches: Sequence[Launch]) -> dict[str, Any] | None:
    """Return both bounds, whether they are said and whether they hold; None: too few launches."""
    own = [Observed(x.point, tuple(SIGNS * np.log(x.values)), x.variances) for x in launches]
    places = w.launchable()
    points = [w.points[i] for i in places]
    baseline = launches[0].point
    found = flatness(w.space, own, points, baseline)
    told = stated(w.space, own, points, baseline, Classes(None, own), OBJECTIVES)
    if found is None or told is None:
        return None
    costs = SIGNS * (w.logs[places] - w.logs[w.place(baseline)])
    return {
        "differs": found.differs.tolist(),
        "better": found.better.tolist(),
        "said": [bool(told.differs), bool(told.better)],
        "hold": [
            bool((abs(costs).max(axis=0) <= found.differs + 1e-12).all()),
            bool(((-costs).max(axis=0) <= found.better + 1e-12).all()),
        ],
    }


# -- running ---------------------------------------------------------------------------------------

Cell = tuple[str, str, float | None, float]  # part, world, its difference, noise


def run_task(task: tuple[Cell, list[int]]) -> tuple[Cell, list[list[dict[str, Any] | None]]]:
    """Return the answers of each seed, in the order of the launches that are asked at."""
    (part, name, difference, sigma), seeds = task
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    asked, ask = (ASKED_AT, matters) if part == "importance" else (BOUNDS_AT, bounds)
    out = []
    for seed in seeds:
        known = None if difference is None else nearly_flat(name, difference, sigma, seed)
        w = known or world(name, sigma)
        launches = searched(w, seed, asked[-1])
        out.append([ask(w, launches[:count]) for count in asked])
    return task[0], out


def cells(parts: Sequence[str]) -> list[Cell]:
    """Return all cells of the parts."""
    made: list[Cell] = []
    if "importance" in parts:
        made += [("importance", name, size, s) for name, size in WORLDS for s in NOISE]
    if "bounds" in parts:
        made += [("bounds", name, size, s) for s in NOISE for name, size in NEAR]
    return made


def run(wanted: Sequence[Cell], seeds: int, jobs: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of each cell."""
    third = -(-seeds // 3)
    counts = {c: seeds if c[:2] == ("importance", "flat") else third for c in wanted}
    tasks = [
        (c, list(range(i, min(i + CHUNK, counts[c]))))
        for c in wanted
        for i in range(0, counts[c], CHUNK)
    ]
    found: dict[Cell, list[list[dict[str, Any] | None]]] = {}
    for cell, answers in _each(tasks, jobs):
        found[cell] = found.get(cell, []) + answers
        if len(found[cell]) == counts[cell]:
            yield _figures(cell, found.pop(cell))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _each(
    tasks: Sequence[tuple[Cell, list[int]]], jobs: int
) -> Iterator[tuple[Cell, list[list[dict[str, Any] | None]]]]:
    if jobs == 1:
        yield from map(run_task, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(run_task, tasks)


def _figures(cell: Cell, answers: Sequence[Sequence[dict[str, Any] | None]]) -> dict[str, Any]:
    part, name, difference, sigma = cell
    columns = [[x for x in column if x is not None] for column in zip(*answers, strict=True)]
    common = {"world": name, "difference": difference, "noise": sigma, "studies": len(answers)}
    common |= {"part": part, "asked": [len(x) for x in columns]}
    if part == "importance":
        return common | {
            "launches": ASKED_AT,
            "n": [sum(x[N] for x in column) for column in columns],
            "mnbt": [sum(x[MNBT] for x in column) for column in columns],
            "any": [sum(any(x.values()) for x in column) for column in columns],
        }
    out = common | {"launches": BOUNDS_AT}
    for i, kind in enumerate(("differs", "better")):
        out[kind] = {
            "median": [
                np.median([x[kind] for x in column], axis=0).round(4).tolist() if column else None
                for column in columns
            ],
            "held": [sum(x["hold"][i] for x in column) for column in columns],
            "said": [sum(x["said"][i] for x in column) for column in columns],
            "said_and_held": [
                sum(x["said"][i] and x["hold"][i] for x in column) for column in columns
            ],
        }
    return out


# -- what came out ---------------------------------------------------------------------------------


def table(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the figures in lines."""
    rows = []
    for cell in (c for c in found if c["part"] == "importance"):
        for seen in ("n", "mnbt", "any"):
            shares = map(_share, cell[seen], cell["asked"])
            rows.append(Row((_name(cell), f"{cell['noise']:.1%}", seen, *shares)))
    heads = ["world", "noise", "seen", *(f"{k} launches" for k in ASKED_AT)]
    yield from text_lines(Table(tuple(map(Column, heads)), tuple(rows)))
    yield ""
    yield "Bounds held (said), of both objectives together; median bound of tok/s / p95"
    heads = ["noise", "truth", "launches", "differs", "", "better", ""]
    yield from text_lines(Table(tuple(map(Column, heads)), tuple(_bounds_rows(found))))


def _bounds_rows(found: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield a row for each noise, largest difference and number of launches, over the shapes."""
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for cell in (c for c in found if c["part"] == "bounds"):
        where = " at three n" if cell["world"] == "bump" else ""
        groups.setdefault((cell["noise"], f"{cell['difference']:.0%}{where}"), []).append(cell)
    for (noise, truth), own in groups.items():
        for i, count in enumerate(BOUNDS_AT):
            asked = sum(c["asked"][i] for c in own)
            parts = []
            for kind in ("differs", "better"):
                held, said = (sum(c[kind][k][i] for c in own) for k in ("held", "said"))
                medians = [c[kind]["median"][i] for c in own if c[kind]["median"][i] is not None]
                typical = np.median(medians, axis=0).tolist() if medians else None
                parts += [f"{_share(held, asked)} ({_share(said, asked)})", _sizes(typical)]
            yield Row((f"{noise:.1%}", truth, f"{count}, {asked} studies", *parts))


def _name(cell: Mapping[str, Any]) -> str:
    size = cell["difference"]
    return cell["world"] + (f", {size:.0%}" if size else "")


def _sizes(bounds: Sequence[float] | None) -> str:
    return "–" if bounds is None else " / ".join(f"{np.expm1(x):.0%}" for x in bounds)


def _share(count: int, of: int) -> str:
    return f"{count / of:.0%}" if of else "–"


def main() -> None:
    """Run the replays, or show those of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("statements.json"))
    parser.add_argument("--show", type=Path, help="show this earlier result, and replay nothing")
    args = parser.parse_args()
    if args.show is not None:
        print("\n".join(table(json.loads(args.show.read_text()))))
        return
    found = json.loads(args.out.read_text()) if args.out.exists() else []
    known = {(c["part"], c["world"], c["difference"], c["noise"]) for c in found}
    for cell in run([c for c in cells(args.part) if c not in known], args.seeds, args.jobs):
        found.append(cell)
        args.out.write_text(json.dumps(found) + "\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
