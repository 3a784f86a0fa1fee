"""What the driver itself costs with many slots: processor time and memory by trial.

    python benchmarks/driver_cost.py [--slots 64] [--at 100 300 1000] [--lasts 100] [--out FILE]
    python benchmarks/driver_cost.py --show FILE

One process is the driver of a study as `autotune run` has it: search, planner, Optuna, the database
(SQLite) and the terminal's lines. Its slots are in virtual time (`parallel_slots.py`), so that all
of the processor time is its own. What the process of a slot would send is pickled and read again,
with progress told for each measured request; the sockets themselves, the redrawing of a real
terminal and the processes of the slots are left out. The trials are of a space of 2304 points and
end at different times.

So that this takes minutes, the search draws points at random, and is the usual one, with all slots
busy, for the last `WINDOW` trials before each place that is looked at; the driver's other work is
the same in all trials.

    CPU, s a trial    processor time: means over those trials
    of it choosing    until the point was chosen
    cores             of the driver, if a trial takes `--lasts` seconds: slots / lasts × CPU
    RSS               memory of the process
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
from autotune.results.views import StudyView, TrialView
from autotune.storage.location import Database
from autotune.study.space import IntParam, Point
from autotune.tuning.local_slots import Served
from autotune.tuning.progress import At

WINDOW = 20
AT = (100, 300, 1000)
REQUESTS = (64, 64)  # of a launch, and chunks of each


class Watch(Ui):
    """The terminal's lines go nowhere; every trial that is done leaves its figures."""

    def __init__(self, text: Any) -> None:
        super().__init__(Console(file=text, highlight=False))
        self._me = psutil.Process()
        self.rows: list[dict[str, float]] = []
        self._before = self._begun = 0
        self._choosing, self._since = 0.0, time.process_time()

    def study(self, view: StudyView, database: Database) -> None:
        """Know how many trials there are already."""
        super().study(view, database)
        self._before = len(view.trials)

    def begin(self, at: At, position: int, point: Point) -> None:
        """A trial has its point."""
        now = time.process_time()
        self._choosing += now - self._since
        self._begun += 1
        super().begin(at, position, point)
        self._since = time.process_time()

    def trial(self, at: At, trial: TrialView) -> None:
        """A trial is done."""
        super().trial(at, trial)
        self._since = time.process_time()
        self.rows.append(
            {
                "before": self._before,
                "begun": self._begun,
                "done": len(self.rows) + 1,
                "cpu": round(self._since, 4),
                "choosing": round(self._choosing, 4),
                "rss": self._me.memory_info().rss,
            }
        )


def measure(slots: int, at: Sequence[int], lasts: float) -> dict[str, Any]:
    """Run the study; return a row for each place that is looked at."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    space = ladders(32, 8192, **{SEQS: IntParam(type="int", low=1, high=16)})
    w, clock = generated("wide", "2304 points", Physics(), space), Clock()

    def make(served: Served) -> VirtualSlots:
        drawn = constant(lasts)
        return VirtualSlots(w, slots, drawn, served, 0, clock, 0.0, sends=True, requests=REQUESTS)

    rows = []
    with temporary() as folder, Path(os.devnull).open("w") as nowhere:

        def go(trials: int, method: str, begun: int) -> list[dict[str, float]]:
            """Run to a number of trials; return the figures from a number of begun ones on."""
            with Watch(nowhere) as ui:
                run(
                    *(w, folder, trials, 0, clock, slots, make),
                    method=method,
                    confirm=0,
                    stop_below=0.0,
                    progress=ui,
                )
            return [row for row in ui.rows if row["begun"] > begun]

        for place in at:
            go(max(1, place - WINDOW - slots), "random", 0)
            # the slots are busy from here on; no trial begins once all wanted ones have
            a, *_, b = [x for x in go(place, "gp", slots) if x["begun"] < place - x["before"]]
            steps = b["done"] - a["done"]
            rows.append(
                {"trial": place, "rss": b["rss"]}
                | {k: round((b[k] - a[k]) / steps, 4) for k in ("cpu", "choosing")}
            )
    return {
        "python": platform.python_version(),
        "slots": slots,
        "lasts_s": lasts,
        "requests": list(REQUESTS),
        "rows": rows,
    }


def table(found: dict[str, Any]) -> Iterator[str]:
    """Yield the figures in Markdown."""
    yield f"{found['slots']} slots, trials of {found['lasts_s']:.0f} s:"
    yield ""
    yield "| trial | CPU, s a trial | of it choosing | cores | RSS, MiB |"
    yield "|--:|--:|--:|--:|--:|"
    for row in found["rows"]:
        cores = found["slots"] / found["lasts_s"] * row["cpu"]
        cells = [row["trial"], f"{row['cpu']:.2f}", f"{row['choosing']:.2f}", f"{cores:.2f}"]
        yield f"| {' | '.join(map(str, cells))} | {row['rss'] / 2**20:.0f} |"


def main() -> None:
    """Run or show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--at", type=int, nargs="+", default=list(AT), help="trials to look at")
    parser.add_argument("--lasts", type=float, default=100.0, help="seconds of a trial")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--show", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.show is not None:
        found = json.loads(args.show.read_text())
    else:
        found = measure(args.slots, args.at, args.lasts)
    if args.out is not None:
        args.out.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
