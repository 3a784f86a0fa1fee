"""What a trial costs the tuner itself with PostgreSQL, against SQLite.

    python benchmarks/database.py [--rounds 6] [--trials 12] [--out benchmarks/data/database.json]

A study runs through the real loop over the server double (see `unattended.py`), into a new file
and into a new database of a PostgreSQL server that this starts on this machine, in turn (A B B A)
and each in a process of its own. The cost of a trial is the wall time from the end of the trial
before to its own end, without the server's part (launch to proof of death) and without the
interference check, which cost the same with any database. The points are drawn at random, so that
the database's share of the cost is as large as it gets. PostgreSQL has its defaults, `fsync`
included; SQLite does not sync each commit. The first trial of a process starts up, and does not
count.

The ratio of a round is that of the two means; the interval is Student's over the logarithms of the
rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
from scipy.stats import t as student
from unattended import NAME, Watch, write_study

from autotune.storage.location import Database, parse_database
from autotune.storage.store import opened
from autotune.study.files import load_study
from autotune.tuning import tools
from autotune.tuning.prepare import prepare
from autotune.tuning.study_run import run_study


def run(folder: Path, database: Database, trials: int) -> list[float]:
    """Run a study; return the cost of each trial but the first, s."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    loaded = load_study(str(write_study(folder, "random")))
    with Watch(folder) as ui:
        run_study(
            prepare(loaded, ui),
            database=database,
            trials=trials,
            seed=0,
            timeout_s=None,
            progress=ui,
            stop_below=0.0,
            tools=replace(tools.REAL, take_idle_baseline=ui.timed_rest),
        )
    rows = [json.loads(x) for x in (folder / "figures.jsonl").read_text().splitlines()]
    times: dict[int, dict[str, float]] = {}
    with opened(database) as store:
        for e in store.launches.events(NAME):
            if e.trial is not None:
                times.setdefault(e.trial, {})[e.what] = e.at
    server = {trial: of["stopped"] - of["launching"] for trial, of in times.items()}
    return [
        now["at"] - last["at"] - (now["canary_wall"] - last["canary_wall"]) - server[now["trial"]]
        for last, now in pairwise(rows)
    ]


def one(side: str, database: str, trials: int) -> list[float]:
    """Run a study in a process of its own; return the cost of each trial but the first, s."""
    with tempfile.TemporaryDirectory(prefix="autotune-") as folder:
        where = str(Path(folder) / "autotune.db") if side == "sqlite" else database
        argv = [sys.executable, __file__, "--one", where, "--folder", folder]
        done = subprocess.run(
            [*argv, "--trials", str(trials)], check=True, stdout=subprocess.PIPE, text=True
        )
        found: list[float] = json.loads(done.stdout.splitlines()[-1])
        return found


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return the geometric mean of ratios and its 95 % interval."""
    logs = [math.log(r) for r in ratios]
    mean = statistics.fmean(logs)
    half = 0.0
    if len(logs) > 1:
        half = float(student.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / len(logs) ** 0.5
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def measure(rounds: int, trials: int) -> dict[str, Any]:
    """Run all rounds; return their figures, in s."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.postgresql import a_cluster

    found: list[dict[str, list[float]]] = []
    with a_cluster(settings=()) as cluster:
        [(version,)] = cluster.execute("SHOW server_version")
        for i in range(rounds):
            order = ("sqlite", "postgresql") if i % 2 == 0 else ("postgresql", "sqlite")
            found.append({x: one(x, str(cluster.new()), trials) for x in order})
            means = {x: statistics.fmean(found[-1][x]) for x in order}
            ratio = means["postgresql"] / means["sqlite"]
            print(
                f"round {i + 1}: SQLite {means['sqlite']:.3f} s, PostgreSQL "
                f"{means['postgresql']:.3f} s a trial, {ratio:.2f}x",
                file=sys.stderr,
            )
    ratios = [statistics.fmean(x["postgresql"]) / statistics.fmean(x["sqlite"]) for x in found]
    mean, low, high = interval(ratios)
    return {
        "postgresql": str(version),
        "python": platform.python_version(),
        "trials": trials,
        "rounds": found,
        "ratios": ratios,
        "ratio": mean,
        "interval": [low, high],
    }


def main() -> None:
    """Run the benchmark, or one study of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        if "://" in args.one:
            (args.folder / "autotune.db").touch()  # whose size is asked for
        print(json.dumps(run(args.folder, parse_database(args.one), args.trials)))
        return
    found = measure(args.rounds, args.trials)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    low, high = found["interval"]
    print(f"PostgreSQL / SQLite: {found['ratio']:.2f}x [{low:.2f}, {high:.2f}] a trial")


if __name__ == "__main__":
    main()
