"""What the driver itself costs with many slots: processor time and memory by trial.

    python benchmarks/driver_cost.py [--slots 64] [--trials 1000] [--lasts 100] [--out FILE.json]
    python benchmarks/driver_cost.py --show benchmarks/data/driver_cost.json

One process is the driver of a study as `autotune run` has it: search, planner, Optuna, the database
(SQLite) and the terminal's lines. Its slots are in virtual time (`parallel_slots.py`), so that all
of the processor time is its own. What the process of a slot would send is pickled and read again,
with progress told for each measured request; the sockets themselves, the redrawing of a real
terminal and the processes of the slots are left out. The trials search a space of 2304 points and
end at different times.

    CPU, s a trial    processor time, and the part of it until the point was chosen
    cores             of the driver, if a trial takes `--lasts` seconds: slots / lasts × CPU
    RSS               memory of the process

Means over the 50 trials before.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import psutil
from parallel_slots import Clock, VirtualSlots, constant, run, temporary
from rich.console import Console
from surfaces_base import SEQS
from surfaces_generated import Physics, generated, ladders

from autotune.cli.console import Ui
from autotune.results.views import TrialView
from autotune.study.space import IntParam, Point
from autotune.tuning.local_slots import Served
from autotune.tuning.progress import At

WINDOW = 50
SHOWN = (50, 100, 200, 300, 500, 700, 1000)
REQUESTS = (64, 64)  # of a launch, and chunks of each


class Watch(Ui):
    """The terminal's lines go nowhere; every trial that is done leaves its figures."""

    def __init__(self, text: Any) -> None:
        super().__init__(Console(file=text, highlight=False))
        self._me = psutil.Process()
        self.rows: list[dict[str, float]] = []
        self._choosing, self._since = 0.0, time.process_time()

    def begin(self, at: At, position: int, point: Point) -> None:
        """A trial has its point."""
        now = time.process_time()
        self._choosing += now - self._since
        super().begin(at, position, point)
        self._since = time.process_time()

    def trial(self, at: At, trial: TrialView) -> None:
        """A trial is done."""
        super().trial(at, trial)
        self._since = time.process_time()
        self.rows.append(
            {
                "cpu": round(self._since, 4),
                "choosing": round(self._choosing, 4),
                "rss": self._me.memory_info().rss,
            }
        )


def measure(slots: int, trials: int, lasts: float) -> dict[str, Any]:
    """Run the study; return a row for each trial that ended, in their order."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    space = ladders(32, 8192, **{SEQS: IntParam(type="int", low=1, high=16)})
    w, clock = generated("wide", "2304 points", Physics(), space), Clock()

    def make(served: Served) -> VirtualSlots:
        drawn = constant(lasts)
        return VirtualSlots(w, slots, drawn, served, 0, clock, 0.0, sends=True, requests=REQUESTS)

    with temporary() as folder, Path(os.devnull).open("w") as nowhere, Watch(nowhere) as ui:
        run(w, folder, trials, 0, clock, slots, make, confirm=0, stop_below=0.0, progress=ui)
    return {
        "python": platform.python_version(),
        "slots": slots,
        "trials": trials,
        "lasts_s": lasts,
        "requests": list(REQUESTS),
        "rows": ui.rows,
    }


def table(found: dict[str, Any]) -> Iterator[str]:
    """Yield the figures in Markdown."""
    rows: Sequence[dict[str, float]] = found["rows"]
    yield f"{found['slots']} slots, trials of {found['lasts_s']:.0f} s:"
    yield ""
    yield "| trial | CPU, s a trial | of it choosing | cores | RSS, MiB |"
    yield "|--:|--:|--:|--:|--:|"
    for done in sorted({*(n for n in SHOWN if n <= len(rows)), len(rows)}):
        first = max(0, done - WINDOW - 1)
        if done - 1 == first:
            continue
        a, b, count = rows[first], rows[done - 1], done - 1 - first
        cpu, choosing = ((b[k] - a[k]) / count for k in ("cpu", "choosing"))
        cores = found["slots"] / found["lasts_s"] * cpu
        yield f"| {done} | {cpu:.2f} | {choosing:.2f} | {cores:.2f} | {b['rss'] / 2**20:.0f} |"


def main() -> None:
    """Run or show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--lasts", type=float, default=100.0, help="seconds of a trial")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--show", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.show is not None:
        found = json.loads(args.show.read_text())
    else:
        found = measure(args.slots, args.trials, args.lasts)
    if args.out is not None:
        args.out.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
