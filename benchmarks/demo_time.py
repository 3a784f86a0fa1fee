"""Wall time of the first trials of two studies, such as the demo before and after a change.

    python benchmarks/demo_time.py FOLDER STUDY STUDY [--trials 2] [--rounds 2] [--blocks N]

A block is what a user types: ``autotune run STUDY --trials N`` into a new database, all of it, from
the start of the process to its end. The studies take turns, there and back (A B, B A), so that a
machine that grows slower hits both alike. A finished block is kept at once in ``--out``, and the
same command goes on after the last one; ``--blocks`` ends it sooner.

The seconds of each stage are those of ``autotune status --time``. ``waited`` is the share of the
block's time in which something on the machine waited for a core (Linux' pressure of the CPU), which
tells a quiet machine from a busy one. On a busy one a disturbed trial is launched again, so all
seconds are those of a launch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from trial_cost import order

from autotune.results.timings import time_view
from autotune.serving.machine import describe_machine, machine_line
from autotune.storage.records import attrs_of
from autotune.storage.store import opened
from autotune.study.files import load_study
from autotune.study.space import MNBT, N

OUT = Path(__file__).parent / "data" / "demo_time.json"


def run_block(study: str, trials: int, folder: Path) -> dict[str, Any]:
    """Run the first trials of a study, and return their points, values and seconds."""
    shutil.rmtree(folder, ignore_errors=True)  # of a block that was interrupted
    folder.mkdir(parents=True)
    database = folder / "autotune.db"
    argv = [sys.executable, "-m", "autotune.cli.main", "run", study, "--db", str(database)]
    waited = _waited()
    begun = time.monotonic()
    with (folder / "autotune.log").open("w") as log:
        subprocess.run(
            [*argv, "--trials", str(trials)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
        )
    wall = time.monotonic() - begun
    waited = (_waited() - waited) / wall
    name = load_study(study).spec.name
    found = []
    with opened(database) as store:
        times = {t.trial: t for t in time_view(store, name).trials}
        for t in store.optuna_study(name).get_trials(deepcopy=False):
            attrs = attrs_of(t)
            seconds = {s: v for s, v in times[t.number].seconds.items() if v is not None}
            requests = 0 if attrs.launch is None else len(store.requests.samples(attrs.launch))
            found.append(
                {
                    "n": t.params[N],
                    "mnbt": t.params[MNBT],
                    "values": t.values,
                    "requests": requests,
                    "launches": times[t.number].launches,
                    "seconds": seconds,
                }
            )
    return {"wall": wall, "waited": waited, "trials": found}


def _waited() -> float:
    """Return the seconds since the machine's start in which something waited for a core."""
    some = Path("/proc/pressure/cpu").read_text().splitlines()[0]
    return float(some.rpartition("total=")[2]) / 1e6


def table(results: dict[str, Any]) -> Iterator[str]:
    """Yield the results as Markdown: seconds a launch by stage, and the ratio of each round."""
    studies = results["studies"]
    of = {s: [b for b in results["blocks"] if b["study"] == s] for s in studies}
    trials = {x: [t for b in of[x] for t in b["trials"]] for x in studies}
    stages = dict.fromkeys(stage for x in studies for t in trials[x] for stage in t["seconds"])
    yield f"{results['trials']} trials a block, {machine_line(results['machine'])}"
    yield ""
    yield "| seconds a launch | " + " | ".join(studies) + " |"
    yield "| --- |" + " ---: |" * len(studies)
    launches = {x: max(1, sum(t["launches"] for t in trials[x])) for x in studies}
    for stage in stages:
        sums = {x: sum(t["seconds"].get(stage, 0.0) for t in trials[x]) for x in studies}
        yield f"| {stage} | " + " | ".join(f"{sums[x] / launches[x]:.1f}" for x in studies) + " |"
    walls = {x: sum(b["wall"] for b in of[x]) for x in studies}
    yield "| whole run | " + " | ".join(f"{walls[x] / launches[x]:.1f}" for x in studies) + " |"
    yield "| launches | " + " | ".join(str(launches[x]) for x in studies) + " |"
    shares = [np.mean([b["waited"] for b in of[x]]) for x in studies]
    yield "| waited for a core | " + " | ".join(f"{x:.0%}" for x in shares) + " |"
    yield ""
    for r in sorted({b["round"] for b in results["blocks"]}):
        pair = {b["study"]: b for b in results["blocks"] if b["round"] == r}
        if len(pair) == len(studies):
            first, second = (_of_a_launch(pair[s]) for s in studies)
            yield f"round {r + 1}: {first:.0f} s, {second:.0f} s, ratio {first / second:.2f}"


def _of_a_launch(block: dict[str, Any]) -> float:
    """Return the seconds of a launch in a block, all of autotune's own time included."""
    return float(block["wall"]) / sum(t["launches"] for t in block["trials"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="takes logs and databases of all blocks")
    parser.add_argument("studies", nargs=2, help="name or file")
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--blocks", type=int, help="most blocks to run now")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    results: dict[str, Any] = {
        "studies": args.studies,
        "trials": args.trials,
        "machine": describe_machine(),
        "blocks": [],
    }
    if args.out.exists():
        stored = json.loads(args.out.read_text())
        if (stored["studies"], stored["trials"]) != (args.studies, args.trials):
            raise SystemExit(f"{args.out}: holds results of other studies; give --out")
        results = stored
    done = {(b["round"], b["study"]) for b in results["blocks"]}
    left = [x for x in order(args.studies, args.rounds) if x not in done][: args.blocks]
    for r, study in left:
        index = args.studies.index(study)
        block = run_block(study, args.trials, args.folder / f"{r}-{index}")
        results["blocks"].append({"round": r, "study": study, **block})
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(results)))


if __name__ == "__main__":
    os.environ.setdefault("BROWSER_PATH", "/nonexistent")  # no PNG: it starts a browser
    main()
