"""How many launches a search needs, and what it misses when it ends itself: replays in worlds.

    python benchmarks/search.py --out new.jsonl [--worlds gen-8 …] [--strategies ours gp …]
                                [--sigma 0.03 …] [--seeds 60] [--jobs 2]
    python benchmarks/search.py --show new.jsonl … [--old old.jsonl …] [--pack FILE.json]
    python benchmarks/search.py --show benchmarks/data/search.json
    python benchmarks/search.py --draw new.jsonl … --picture FILE

The first writes one line for each replay as it ends, and leaves out what its file already has: it
can be stopped, and several files (slices of one run) are shown together. `--old` are replays with
the autotune of another commit, of the same worlds and seeds:

    git worktree add --detach ../old fa47d4c
    PYTHONPATH=../old python benchmarks/search.py --out old.jsonl --strategies ours ours-4 ours-8

A world (`benchmarks/surfaces.py`) answers a launch within microseconds, with the noise of its
requests and the luck of the launch; what a search visited is then judged by the truth.

    random          any point of the space, again and again
    grid            every point that can launch, in the order of the study file, or shuffled
    sweep           n from 0 up at the default MNBT, then each other parameter at the best n
    tpe, nsga2, gp  Optuna's multivariate TPESampler, NSGAIISampler, GPSampler with their defaults;
                    what cannot launch is told as failed
    botorch         qLogNEHVI over all untried points, where BoTorch is installed
    ours            `search.proposer.Proposer` in a study that is kept as `autotune run` does, with
                    `budget.converged` at its default and at most 32 launches, and then as with
                    `--all-trials`
    ours-4, ours-8  the same after the seeds in batches of four and eight, whose outcomes are known
                    together

`grid` and `sweep` know the rules for nothing, which makes them look better than they are; the
others learn of a forbidden point by launching it. Every launch counts, also a failed or repeated
one.

**Hypervolume** is that of the true values of all points that a search launched, over that of the
true front; its reference is the worst value of each objective over all points that can launch.
Where all points are within 0.5 %, nothing can be missing. A replay ends when the search has ended
and has `--enough` of the hypervolume. The table has

    99 %       launches until 99 % of the hypervolume, also beyond the end of the search: median
               [quartiles]; –: not within the replay
    ends       launches when the search ended itself: median (ninth decile)
    crash      launches that had crashed by then: means; empty: none
    missing    hypervolume then missing, in percent: median (mean)
    short      how much less tok/s and more p95 the points with the best means then truly have than
               the best ones, in percent: means
    says so    how often the study said, after a confirmation of 8 launches, that no setting differs
               from the baseline by more than a stated share, a quarter at most (half where launches
               differ by 10 %), and that none is better; in brackets the medians of the first one
               for tok/s and p95
    new - old  mean of the differences with the same seeds, and its standard error; bold: worse by
               more than two of them. Launches to 99 % count as 40 where a replay did not get there
               (60 with four parameters), and missing hypervolume counts in points of percent

The file also has the minutes until 99 %, by the launches of the world and the proposals.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrices are tiny: threads wait for each other

import argparse
import itertools
import json
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from search_replay import MOST, REACHED, STRATEGIES, Replay, absent, most_launches, replay
from search_table import Key, Record, key_of, packed, read, table
from surfaces import World, names, world

CHUNK = 5  # replays of a task
FEWEST = 16  # points of a world that is worth a replay, unless it is asked for

Task = tuple[str, float, str, list[int], int, float]  # world, sigma, strategy, seeds, most, enough


def record(w: World, strategy: str, seed: int, most: int, found: Replay) -> Record:
    """What is kept of a replay, as JSON."""
    last = (found.reached or len(found.shares)) - 1
    end = found.end or 0
    return {
        "world": w.name,
        "sigma": w.sigma,
        "strategy": strategy,
        "seed": seed,
        "most": most,
        "reached": found.reached,
        "minutes": round(found.seconds[last] / 60, 1),
        "same_region": max(found.regions.values(), default=0),
        "end": found.end,
        "crashed": found.crashed[end - 1] if end else None,
        "missing": None if found.missing is None else round(found.missing, 5),
        "short": None if found.short is None else [round(x, 5) for x in found.short],
        "says": found.says
        and {what: [round(x, 4) for x in bounds] for what, bounds in found.says.items()},
        "proposal_s": round(found.proposing / len(found.shares), 4),
        "shares": [round(x, 4) for x in found.shares],
    }


def run_task(task: Task) -> list[Record]:
    """Some replays of one strategy in one world."""
    name, sigma, strategy, seeds, most, enough = task
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    w = world(name, sigma)
    limit = most_launches(w, strategy, most)
    return [
        record(w, strategy, seed, limit, replay(w, strategy, seed, limit, enough)) for seed in seeds
    ]


def run(
    worlds: Sequence[str],
    strategies: Sequence[str],
    seeds: Sequence[int],
    *,
    sigmas: Sequence[float] = (0.03,),
    most: int = MOST,
    enough: float = REACHED,
    jobs: int = 1,
    done: Sequence[Record] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Record]:
    """Replays as they end, without those that are done."""
    have: set[Key] = {key_of(r) for r in done}
    tasks: list[Task] = []
    for at in range(0, len(seeds), CHUNK):
        for strategy, sigma, name in itertools.product(strategies, sigmas, worlds):
            w = world(name, sigma)
            left = [s for s in seeds[at : at + CHUNK] if (w.name, sigma, strategy, s) not in have]
            if left:
                tasks.append((name, sigma, strategy, left, most, enough))
    for count, found in enumerate(_each(tasks, jobs), 1):
        yield from found
        if progress is not None:
            progress(count, len(tasks))


def _each(tasks: Sequence[Task], jobs: int) -> Iterator[list[Record]]:
    if jobs == 1:
        yield from map(run_task, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run_task, tasks)


def _write(args: argparse.Namespace) -> None:
    """Run what is asked for, and write each replay as it ends."""
    strategies = []
    for strategy in args.strategies:
        why = absent(strategy)
        if why is None:
            strategies.append(strategy)
        else:
            print(f"{strategy}: {why}", file=sys.stderr)

    def progress(done: int, of: int) -> None:
        print(f"\r{done} of {of}", end="", file=sys.stderr, flush=True)

    worlds = args.worlds or [n for n in names() if len(world(n).launchable()) >= FEWEST]
    done = read([args.out])["new"] if args.out.exists() else []
    with args.out.open("a") as file:
        for found in run(
            worlds,
            strategies,
            range(args.first, args.first + args.seeds),
            sigmas=args.sigma,
            most=args.most,
            enough=args.enough,
            jobs=args.jobs,
            done=done,
            progress=progress,
        ):
            file.write(json.dumps(found, separators=(",", ":")) + "\n")
            file.flush()
    print(file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--worlds", nargs="+", help=f"{', '.join(names())}, or a grid's file; default: the large"
    )
    parser.add_argument("--strategies", nargs="+", default=["ours"], choices=STRATEGIES)
    parser.add_argument("--seeds", type=int, default=60, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument(
        "--sigma", type=float, nargs="+", default=[0.03], help="of a launch's luck, one or more"
    )
    parser.add_argument("--most", type=int, default=MOST, help="launches of a model's replay")
    parser.add_argument("--enough", type=float, default=REACHED, help="hypervolume; see above")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="replay, and add to this file")
    what.add_argument("--show", type=Path, nargs="+", metavar="FILE", help="print the table")
    what.add_argument("--draw", type=Path, nargs="+", metavar="FILE", help="draw the curves")
    parser.add_argument(
        "--old", type=Path, nargs="+", default=[], metavar="FILE", help="replays of other code"
    )
    parser.add_argument("--pack", type=Path, metavar="FILE", help="write all that is shown here")
    parser.add_argument("--picture", type=Path, default=Path("search.html"), metavar="FILE")
    args = parser.parse_args()
    if args.out is not None:
        _write(args)
        return
    found: dict[str, Any] = read(args.show or args.draw, args.old)
    if args.draw is not None:
        from search_figure import draw

        draw(found["new"], args.picture)
        return
    if args.pack is not None:
        args.pack.write_text(json.dumps(packed(found), separators=(",", ":")) + "\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
