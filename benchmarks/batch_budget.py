"""What knowing the budgets that cannot bind saves a search, and what it costs: old against new.

    python benchmarks/batch_budget.py [--worlds gemma-c1 …] [--seeds 60] [--out FILE]
    python benchmarks/batch_budget.py --show benchmarks/data/batch_budget.json

A study is replayed in a world of `benchmarks/surfaces.py` until its search ends, by convergence at
0.5 % or after 32 launches, and then confirmed with 8 launches, as `autotune run --trials 40` does.
Its replicates, one in eight launches, are left out. *Old* knows nothing of budgets that are one
server; *new* has the classes that the rules give for that world. Both have the same seeds, so that
differences are paired.

*Missing* is the hypervolume of the true values of what the search launched, below that of the true
front. *Regret* is how far the true tok/s of the named point is below the best of the world: of the
point with the best mean when the search ends (`at the end`), and of the winner of the confirmation
(`confirmed`), which is what a study recommends. Of a class, the launches of all its points count.
The last column is the mean of new less old with its standard error, in points.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrices are tiny: threads wait for each other

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from confirmation_power import spend
from optuna.trial import FrozenTrial, TrialState
from search_replay import CONFIRMS, CONVERGED, DIRECTIONS, ENDS_AT, Judge, first_points, tell
from surfaces import Outcome, World, names, world
from surfaces_held_out import HELD_OUT

from autotune.results.tables import Column, Row, Table, text_lines
from autotune.search.alike import Key, key_of
from autotune.search.confirmation_verdict import verdict
from autotune.search.proposer import Proposer, SearchEnds
from autotune.study.space import MNBT, Point

WAYS = ("old", "new")


@dataclass(frozen=True)
class Replay:
    """One study: its launches until the search ended, and shares that are missing."""

    launches: int
    missing: float
    at_end: float
    confirmed: float


def replay(w: World, seed: int, *, new: bool) -> Replay:
    """Return what one study came to."""
    rng = np.random.default_rng([seed, 1])
    w = w if new else replace(w, alike=None)
    proposer = Proposer(
        w.space,
        w.infeasible,
        DIRECTIONS,
        method="gp",
        seed=seed,
        stop_below=CONVERGED,
        alike=w.alike,
    )
    study = optuna.create_study(directions=DIRECTIONS)

    def launch(point: Point) -> Outcome:
        return w.launch(point, rng)

    for point in first_points(w):
        tell(study, w, point, launch)
    with contextlib.suppress(SearchEnds):
        while len(study.trials) < ENDS_AT:
            found = proposer.propose(study.get_trials(deepcopy=False))
            tell(study, w, found.point, launch, found)
    trials = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    of = proposer.classes(trials).of
    groups: dict[Key, list[FrozenTrial]] = {}
    for t in trials:
        groups.setdefault(key_of(of(w.space.decode(t.params))), []).append(t)
    searched = {g[0].number: [t.values for t in g] for g in groups.values()}
    points = {t.number: w.space.decode(t.params) for t in trials}
    best = max(searched, key=lambda k: float(np.mean(np.log([x[0] for x in searched[k]]))))
    leader = proposer.leader(trials)
    leading = None if leader is None else groups[key_of(of(leader))][0].number

    def again_of(number: int) -> Sequence[float]:
        values = w.launch(points[number], rng).values
        assert values is not None
        return values

    base = trials[0].number
    _, again = spend(searched, DIRECTIONS, base, CONFIRMS, again_of, leader=leading)
    final = verdict(again, searched, DIRECTIONS, trials[0].number)
    assert final is not None
    judge = Judge(w)
    own = [w.place(q) for q in points.values()]
    return Replay(
        len(study.trials),
        1 - judge.share(own),
        *(
            float(judge.best[0] - judge.gains[w.place(points[k]), 0])
            for k in (best, final.winners[0].number)
        ),
    )


# -- what came out ---------------------------------------------------------------------------------


def run(worlds: Mapping[str, int], progress: bool) -> dict[str, Any]:
    """Return the replays of each world, old and new with the same seeds."""
    out: dict[str, Any] = {}
    for name, seeds in worlds.items():
        w = world(name)
        each = {"old": [replay(w, s, new=False) for s in range(seeds)]}
        # without classes the new search is the old one
        new = w.alike is not None
        each["new"] = [replay(w, s, new=True) for s in range(seeds)] if new else each["old"]
        one = (lambda q: q) if w.alike is None else w.alike.likely
        differ = {key_of(one(q)) for q in w.points}
        out[name] = {
            "words": w.words,
            "points": len(w.points),
            "differ": len(differ),
            "seeds": seeds,
            **{way: [asdict(r) for r in replays] for way, replays in each.items()},
        }
        if progress:
            print("\n".join(lines({name: out[name]})), file=sys.stderr, flush=True)
    return out


_COLUMNS = (
    Column("world", right=False, width=17),
    Column("points", width=8),
    Column("", right=False, width=5),
    Column("launches", width=13),
    Column("missing %", width=14),
    Column("at the end %", width=15),
    Column("confirmed %", width=14),
    Column("new - old", width=14),
)


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Return a table: the median and the mean of each figure, shares in percent."""
    rows = []
    for name, world_ in found.items():
        for way in WAYS:
            replays = world_[way]
            cells = [_figures([r["launches"] for r in replays], 1, 1)]
            for key in ("missing", "at_end", "confirmed"):
                cells.append(_figures([100 * r[key] for r in replays], 2, 2))
            first = way == WAYS[0]
            counts = f"{world_['points']}" if first else f"{world_['differ']}"
            difference = "" if first else _difference(world_)
            label = f"{name} ({world_['seeds']})" if first else ""
            rows.append(Row((label, counts, way, *cells, difference)))
    yield "median (mean); points: all, and those that differ; seeds after the world's name"
    yield from text_lines(Table(_COLUMNS, tuple(rows), gap=0))


def _figures(values: Sequence[float], digits: int, more: int) -> str:
    median = float(np.median(values))
    middle = f"{median:.0f}" if digits == 1 else f"{median:.{digits}f}"
    return f"{middle} ({np.mean(values):.{more}f})"


def _difference(world_: Mapping[str, Any]) -> str:
    """Return how much worse new is when confirmed, with the standard error over the seeds."""
    old, new = ([100 * r["confirmed"] for r in world_[way]] for way in WAYS)
    d = np.subtract(new, old)
    return f"{d.mean():+.2f} ± {d.std(ddof=1) / np.sqrt(len(d)):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=60, help="of the worlds of Gemma")
    parser.add_argument("--others", type=int, default=20, help="seeds of all other worlds")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--show", type=Path, metavar="FILE", help="a table of an earlier run")
    args = parser.parse_args()
    if args.show is not None:
        print("\n".join(lines(json.loads(args.show.read_text())["worlds"])))
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    chosen = args.worlds or [
        n for n in names() if n not in HELD_OUT and MNBT in world(n).space.params
    ]
    seeds = {n: args.seeds if n.startswith("gemma") else args.others for n in chosen}
    found = {
        "most": ENDS_AT,
        "confirm": CONFIRMS,
        "converged": CONVERGED,
        "worlds": run(seeds, True),
    }
    if args.out is not None:
        args.out.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    else:
        print("\n".join(lines(found["worlds"])))


if __name__ == "__main__":
    main()
