"""What a long study costs the tuner itself: memory, files, processor time and disk by trial.

    python benchmarks/unattended.py FOLDER [--trials 1000] [--method gp]

A study runs through the real loop (`prepare` and `run_study`, as `autotune run` calls them) in this
process, over the server double: every trial is a launch, a canary, requests, a stop and its rows in
the database; only the model behind the server is missing. Study, database and figures are kept in
FOLDER, so that the same command goes on where an interrupted one ended. After the run, a row of the
table for some of the trials says:

    RSS, files, threads   of this process, when the trial was done
    choosing              processor time from the end of a trial to the next point, search included
    trial                 processor time of everything else of ours but the canary: database,
                          requests, statistics, terminal
    canary                processor time of the fixed computation at rest, which costs what it costs
    server, ours          wall time from launch to proof of death, and the rest without the canary
    database              size of the file, with its write-ahead log of 4 MiB at most

Times are means over the 20 trials before, without the first one of a process, which starts up.

With ``--filled N`` the first N trials are made up and written straight into the database, to look
at what a trial costs at that place without waiting for it: a profile, no result.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import psutil
import yaml
from optuna.trial import TrialState, create_trial
from rich.console import Console
from sqlalchemy import insert

from autotune.bench.interference import IdleBaseline
from autotune.bench.objectives import study_objectives
from autotune.cli.console import Ui
from autotune.results.views import TrialView
from autotune.search.proposer import grid_points
from autotune.serving.machine import describe_machine
from autotune.stats import ESTIMATOR, Interval, standard_error
from autotune.storage.schema import LaunchRow, RequestRow
from autotune.storage.store import Store
from autotune.study.files import LoadedStudy, load_study
from autotune.study.space import MNBT, N, Point
from autotune.tuning import tools
from autotune.tuning.prepare import baseline_point, prepare
from autotune.tuning.progress import At
from autotune.tuning.study_run import run_study

DOUBLE = Path(__file__).parents[1] / "tests" / "double.py"
NAME = "unattended"
SHOWN = (10, 20, 50, 100, 200, 300, 500, 700, 1000, 2000, 5000)
WINDOW = 20


def write_study(folder: Path, method: str) -> Path:
    """A study of 2304 points whose trials are as short as they can be."""
    study = {
        "name": NAME,
        "server": {
            "command": [sys.executable, str(DOUBLE)],
            "model": "org/model",
            "speculative": {"model": "org/draft"},
            "env": {"DOUBLE_SPEED": "1000"},
            "health_timeout_s": 60,
            "stop_timeout_s": 5,
        },
        "space": {
            N: {"type": "int", "low": 0, "high": 15},
            MNBT: {"type": "pow2", "low": 32, "high": 8192},
            "max_num_seqs": {"type": "int", "low": 1, "high": 16},
        },
        "workload": {
            "random": {"input_len": 16},
            "output_len": 12,
            "num_prompts": 4,
            "warmup_prompts": 2,
            "max_concurrency": 2,
        },
        "search": {"method": method},
        "budget": {"confirm": 0},  # the last trials search, too: a confirmation costs less
        # other work on the machine costs repeats, which are no cost of ours
        "measure": {"repeat_disturbed": False},
    }
    file = folder / f"{NAME}.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return file


class Watch(Ui):
    """The terminal's lines go into a file; every trial that is done leaves its figures."""

    def __init__(self, folder: Path) -> None:
        self._text = (folder / "terminal.log").open("a")
        super().__init__(Console(file=self._text, highlight=False))
        self._figures = (folder / "figures.jsonl").open("a")
        self._database = folder / "autotune.db"
        self._me = psutil.Process()
        self._run = time.time()
        self.choosing = self.canary = self.canary_wall = 0.0
        self._since = time.process_time()

    def begin(self, at: At, position: int, point: Point) -> None:
        """A trial has its point."""
        self.choosing += time.process_time() - self._since
        super().begin(at, position, point)

    def trial(self, at: At, trial: TrialView) -> None:
        """A trial is done."""
        super().trial(at, trial)
        wal = self._database.with_name(self._database.name + "-wal")
        row = {
            "run": self._run,
            "trial": trial.number,
            "at": time.time(),
            "rss": self._me.memory_info().rss,
            "files": self._me.num_fds(),
            "threads": self._me.num_threads(),
            "cpu": time.process_time(),
            "choosing": self.choosing,
            "canary": self.canary,
            "canary_wall": self.canary_wall,
            "database": self._database.stat().st_size + (wal.stat().st_size if wal.exists() else 0),
        }
        self._figures.write(json.dumps(row) + "\n")
        self._figures.flush()
        self._since = time.process_time()

    def close(self) -> None:
        """Closes the files, too."""
        super().close()
        self._text.flush()

    def timed_rest(self, earlier: Sequence[float]) -> IdleBaseline:
        """Counts what the look at the resting machine costs."""
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            return tools.REAL.take_idle_baseline(earlier)
        finally:
            self.canary += time.process_time() - cpu
            self.canary_wall += time.perf_counter() - wall


def run(folder: Path, loaded: LoadedStudy, trials: int, seed: int = 0) -> None:
    """Brings the study in ``folder`` to so many finished trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with Watch(folder) as ui:
        run_study(
            prepare(loaded, ui),
            database=folder / "autotune.db",
            trials=trials,
            seed=seed,
            timeout_s=None,
            progress=ui,
            stop_below=0.0,  # every trial
            tools=replace(tools.REAL, take_idle_baseline=ui.timed_rest),
        )


def fill(
    database: Path, loaded: LoadedStudy, count: int, *, seed: int = 0, out_of_reach: bool = False
) -> None:
    """Writes ``count`` made-up trials with their launches and requests, as if they had been run.

    Args:
        database: Made if missing; has no trials of the study yet.
        loaded: A study with throughput and p95 as objectives.
        count: Of trials, with the baseline.
        seed: Of the points and their numbers.
        out_of_reach: The baseline is so good that no other trial is ever on the front.
    """
    spec = loaded.spec
    space = spec.to_space()
    rng = random.Random(seed)
    baseline = baseline_point(spec)
    others = [q for q in grid_points(space) if q != baseline and int(q[MNBT]) > max(16, int(q[N]))]
    points = [baseline, *rng.sample(others, count - 1)]
    again = {count // 4, count // 2, 3 * count // 4} - {0}
    points = [baseline if i in again else q for i, q in enumerate(points)]
    machine = describe_machine()
    objectives = study_objectives(loaded)
    store = Store(database, create=True)
    try:
        store.begin_study(loaded, seed=seed, wanted=count)
        study = optuna.create_study(
            storage=store.storage,
            study_name=spec.name,
            directions=[o.direction for o in objectives],
        )
        launches, requests = [], []
        for number, point in enumerate(points):
            luck = rng.lognormvariate(0, 0.05)
            n, budget, seqs = int(point[N]), int(point[MNBT]), int(point["max_num_seqs"])
            rate = 9e3 * (1 + 0.1 * n - 0.011 * n * n) * (1 + 0.03 * seqs) / luck
            p95 = (2 + 0.05 * (n - 5) ** 2 + 0.2 * seqs + 0.1 * math.log2(budget)) * luck
            if out_of_reach and point == baseline:
                rate, p95 = 1e9, 1e-9
            named = {"throughput": rate, "p95_latency": p95}
            values = [named[o.name] for o in objectives]
            intervals = {
                o.name: [0.9 * v, 1.1 * v] for o, v in zip(objectives, values, strict=True)
            }
            errors = {k: standard_error(named[k], Interval(*i, 0.95)) for k, i in intervals.items()}
            quality = {"requests": 4, "stop": "all", "dominated_by": None, "warmup_requests": 2}
            quality |= {"steady": True, "drift": None, "prefix_cache_share": None}
            quality |= {"estimator": ESTIMATOR, "errors": errors, "busy": True}
            launch_id = f"{number:032x}"
            attrs: dict[str, Any] = {
                "point": dict(point),
                "launch": launch_id,
                "vllm_version": "0.32.0",
                "acceptance_length": None,
                "acceptance_per_position": None,
                "intervals": intervals,
                "quality": quality | {"disturbed": None},
            }
            if number == 0:
                attrs["baseline"] = True
            if number in again:
                attrs["replicates"] = 0
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    values=values,
                    params=space.encode(point),
                    distributions=space.distributions(),
                    user_attrs=attrs,
                )
            )
            now = time.time()
            launches.append(
                {
                    "launch_id": launch_id,
                    "study": spec.name,
                    "trial": number,
                    "attempt": 0,
                    "argv": [sys.executable, str(DOUBLE), "--model", "org/model", "--port", "8000"],
                    "env": {"DOUBLE_SPEED": "1000"},
                    "machine": machine,
                    "port": 8000,
                    "log_path": "",
                    "boot_id": "",
                    "vllm_version": "0.32.0",
                    "planned_at": now,
                    "ready_at": now,
                    "measured_at": now,
                    "ended_at": now,
                    "exit_code": 0,
                    "killed": 0,
                    "stats": {},
                    "values": named,
                    "intervals": intervals,
                    "quality": quality
                    | {"disturbed": None, "machine": {"rest": {"kernel_s": 0.05}, "cores": 2}},
                }
            )
            requests += [
                {
                    "launch_id": launch_id,
                    "phase": phase,
                    "index": i,
                    "intended": 0.0,
                    "start": 0.001 * i,
                    "ttft": 0.001,
                    "end": 0.001 * i + 0.005,
                    "prompt_tokens": 16,
                    "output_tokens": 12,
                    "status": "ok",
                    "error": None,
                    "chunks": bytes(4 * 12),
                }
                for phase, k in (("warmup", 2), ("measure", 4))
                for i in range(k)
            ]
        with store._sessions() as s:
            s.execute(insert(LaunchRow), launches)
            s.execute(insert(RequestRow), requests)
            s.commit()
    finally:
        store.close()


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """What :class:`Watch` wrote, with the seconds of wall time from launch to proof of death."""
    lines = (folder / "figures.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    times: dict[int, dict[str, float]] = {}
    store = Store(folder / "autotune.db")
    try:
        for e in store.launches.events(NAME):
            if e.trial is not None:
                times.setdefault(e.trial, {})[e.what] = e.at
    finally:
        store.close()
    for row in rows:
        of = times.get(row["trial"], {})
        row["server"] = of.get("stopped", 0.0) - of.get("launching", of.get("stopped", 0.0))
    return rows


def table(folder: Path) -> Iterator[str]:
    """The figures in Markdown."""
    rows = read_figures(folder)
    steps: dict[int, dict[str, float]] = {}  # what one trial cost, by its number
    for a, b in pairwise(rows):
        if a["run"] == b["run"]:  # the first trial of a run also has its start
            wall = b["at"] - a["at"]
            canary, canary_wall = (b[k] - a[k] for k in ("canary", "canary_wall"))
            choosing = b["choosing"] - a["choosing"]
            steps[b["trial"]] = {
                "choosing": choosing,
                "trial": b["cpu"] - a["cpu"] - choosing - canary,
                "canary": canary,
                "server": b["server"],
                "ours": wall - b["server"] - canary_wall,
            }
    logs = folder / f"autotune-{NAME}" / "logs"
    log_bytes = sum(f.stat().st_size for f in logs.glob("*")) / max(1, len(rows))
    yield (
        "| trial | RSS, MiB | files | threads | choosing, CPU ms | trial, CPU ms | canary, CPU ms "
        "| server, s | ours, s | database, MiB |"
    )
    yield "|" + " ---: |" * 10
    last = rows[-1]["trial"] + 1
    for row in rows:
        done = row["trial"] + 1
        if done not in {*SHOWN, last}:
            continue
        window = [steps[k] for k in range(done - WINDOW, done) if k in steps]
        if not window:
            continue
        mean = {k: sum(s[k] for s in window) / len(window) for k in window[0]}
        cells = [f"{row['rss'] / 2**20:.0f}", row["files"], row["threads"]]
        cells += [f"{1e3 * mean[k]:.0f}" for k in ("choosing", "trial", "canary")]
        cells += [f"{mean[k]:.2f}" for k in ("server", "ours")]
        cells.append(f"{row['database'] / 2**20:.1f}")
        yield f"| {done} | " + " | ".join(map(str, cells)) + " |"
    yield ""
    runs = [[r for r in rows if r["run"] == run] for run in dict.fromkeys(r["run"] for r in rows)]
    yield f"Processes that ran these trials, one after the other: {len(runs)}."
    yield f"Server logs: {log_bytes / 1024:.1f} KiB a trial."
    longest = max(runs, key=len)
    if len(longest) > 3 * WINDOW:
        early, late = longest[WINDOW : 2 * WINDOW], longest[-WINDOW:]
        trials = len(longest) - 2 * WINDOW
        for what, key in (("memory", "rss"), ("the database", "database")):
            a, b = (sum(r[key] for r in part) / WINDOW for part in (early, late))
            yield (
                f"Over the last {trials} of {len(longest)} trials of one process {what} grew by "
                f"{(b - a) / 2**20:.1f} MiB: {(b - a) / 1024 / trials:.1f} KiB a trial."
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the study; the same one again resumes")
    parser.add_argument("--trials", type=int, default=1000, help="finished trials in all")
    parser.add_argument("--method", choices=("gp", "random"), default="gp")
    parser.add_argument("--filled", type=int, metavar="N", help="made-up trials before, a profile")
    parser.add_argument("--profile", type=Path, help="where cProfile's figures go")
    parser.add_argument("--show", action="store_true", help="run nothing, print the table")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / f"{NAME}.yaml"
    if not args.show:
        loaded = load_study(str(write_study(args.folder, args.method)))
        if args.filled and not (args.folder / "autotune.db").exists():
            fill(args.folder / "autotune.db", loaded, args.filled)
        profile = cProfile.Profile()
        try:
            if args.profile:
                profile.enable()
            run(args.folder, loaded, args.trials)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on", file=sys.stderr)
            return 130
        finally:
            if args.profile:
                profile.disable()
                profile.dump_stats(args.profile)
    made_up = f"; the first {args.filled} are made up: a profile, no result" if args.filled else ""
    method = yaml.safe_load(file.read_text())["search"]["method"]
    print(f"{args.trials} trials over the server double, search by {method}{made_up}\n")
    print("\n".join(table(args.folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
