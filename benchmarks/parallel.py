"""What several slots save: whole studies in virtual time, with the driver of `autotune run`.

    python benchmarks/parallel.py --out new.jsonl [--worlds …] [--slots 1 2 4 8 16 32 64]
                                  [--ahead 0 3] [--seeds 10] [--trials 40] [--jobs 2]
    python benchmarks/parallel.py --show new.jsonl … [--pack FILE.json]
    python benchmarks/parallel.py --show benchmarks/data/parallel.json [--picture FILE.html]

Search, confirmation, planner, driver and database are autotune's; only launches are made up
(`parallel_slots.py`). How long one takes is drawn from the launches of a committed study
(`studies/results`): to the first answer of `/health`, warm-up, measured requests, stop; those of a
confirmation from those of its confirmation. Or it is what launches on H200s took
(`data/stages_h200.json`). With `--ahead` so many next points start together with a launch there, on
its slot, from the first launch on. The time of the measured requests follows the speed of the
point. What a launch gives is a world's answer, with its noise and the luck of the launch, and what
a study found is judged by the truth. The driver takes `DRIVER_S` for each trial, one after the
other.

A cell is a world with the study that its stages are from, and `server.ahead`. In the table, medians
over the seeds, [quartiles]:

    99 %     time until the launched points have 99 % of the true hypervolume, min
    search   time until the last trial of the search has ended, min
    all      time until the last launch of the confirmation has ended: the winner is confirmed, min
    faster   geometric mean of the ratios of `all` with one slot, of the same seeds, and its 95 %
             interval
    saves    as `faster`, against the same slots without prelaunched servers
    busy     share of the slots' time in which they had a launch
    missing  hypervolume missing at the end, in percent: mean
    worse    how much less tok/s the confirmed winner by tok/s truly has than the best point, in
             percent: mean

What is left out: servers do not slow each other down, other than in starting together, several
starts of one point share no compile cache, and no trial ends early.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrices are tiny: threads wait for each other

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from parallel_slots import (
    DRIVER_S,
    Clock,
    Driver,
    Run,
    VirtualSlots,
    run,
    stages,
    stages_h200,
    temporary,
)
from scipy.stats import t as student
from search_replay import REACHED, Judge
from surfaces import world

from autotune.results.standing import study_verdict
from autotune.storage.records import Role, attrs_of
from autotune.tuning.local_slots import Served

H200 = "H200"  # stages that are not of a committed study
# World and the study whose stages its launches take.
CELLS = {
    "gen-cpu": "demo-cpu",
    "gen-8": H200,
    "gen-32": H200,
    "demo-cpu-c2": "demo-cpu",  # too small for 40 trials
}
SHOWN = ("gen-cpu", "gen-8", "gen-32")
PRELAUNCHES = (0, 3)
SLOTS = (1, 2, 4, 8, 16, 32, 64)
TRIALS = 40
COLORS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7")  # Okabe and Ito's

Record = dict[str, Any]
# World, stages, slots, seed, trials, whether all of them, server.ahead.
Task = tuple[str, str, int, int, int, bool, int]


def replay(task: Task) -> Record:
    """Run one study; return what is kept of it."""
    name, of, slots, seed, trials, every, ahead = task
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    w, judge, clock = world(name), Judge(world(name)), Clock()
    runs: list[Run] = []
    found: Record = {
        "world": name,
        "stages": of,
        "slots": slots,
        "seed": seed,
        "trials": trials,
        "every": every,
        "ahead": ahead,
    }
    drawn, together = stages_h200() if of == H200 else (stages(of), 0.0)

    def make(served: Served) -> VirtualSlots:
        prelaunch = {"ahead": ahead, "together": together}
        return VirtualSlots(w, slots, drawn, served, seed, clock, ended=runs.append, **prelaunch)

    def look(driver: Driver) -> None:
        driver.log.placed()
        verdict = study_verdict(driver.log.standing.launched(), driver.p.objectives)
        points = {t.number: driver.planner.space.decode(t.params) for t in driver.log.trials()}
        if verdict is None:
            return
        rate, p95 = (judge.shortfall(w.place(points[x.number])) for x in verdict.winners)
        found["worse"] = [round(rate[0], 5), round(p95[1], 5)]
        found["confirming"] = sum(attrs_of(t).confirms is not None for t in driver.log.trials())

    cpu = time.process_time()
    with temporary() as folder:
        below = 0.0 if every else None
        run(w, folder, trials, seed, clock, slots, make, stop_below=below, look=look)
    found["cpu_s"] = round(time.process_time() - cpu, 2)
    return found | _times(runs, judge, w.place, slots)


def _times(runs: Sequence[Run], judge: Judge, place: Any, slots: int) -> Record:
    """Return when a study had what, s."""
    seen: list[int] = []
    reached = None
    for x in runs:
        if x.numbers.values is not None:
            seen.append(place(x.trial.point))
        if reached is None and judge.share(seen) >= REACHED:
            reached = x.end
    end = max(x.end for x in runs)
    search = max(x.end for x in runs if x.trial.attrs.role is not Role.CONFIRMATION)
    return {
        "launches": len(runs),
        "reached_s": None if reached is None else round(reached, 1),
        "search_s": round(search, 1),
        "end_s": round(end, 1),
        "busy": round(sum(x.end - x.begin for x in runs) / (slots * end), 4),
        "missing": round(1 - judge.share(seen), 5),
    }


# -- running ---------------------------------------------------------------------------------------


def key_of(r: Record) -> tuple[Any, ...]:
    """Return what a replay is known by."""
    return tuple(r[k] for k in ("world", "stages", "slots", "seed", "trials", "every", "ahead"))


def read(files: Sequence[Path]) -> list[Record]:
    """Return the replays of files, each once."""
    found: dict[tuple[Any, ...], Record] = {}
    for file in files:
        text = file.read_text()
        packed = file.suffix == ".json"
        rows = json.loads(text)["replays"] if packed else map(json.loads, text.splitlines())
        found |= {key_of(r): r for r in rows}
    return list(found.values())


def write(args: argparse.Namespace) -> None:
    """Run what is asked for and missing; write each study as it ends."""
    have = {key_of(r) for r in (read([args.out]) if args.out.exists() else [])}
    tasks: list[Task] = [
        (name, CELLS[name], slots, seed, args.trials, not args.ends, ahead)
        for seed in range(args.first, args.first + args.seeds)
        for name in args.worlds
        for ahead in args.ahead
        if not ahead or CELLS[name] == H200
        for slots in args.slots
    ]
    tasks = [task for task in tasks if task not in have]
    with args.out.open("a") as file:
        for count, found in enumerate(_each(tasks, args.jobs), 1):
            file.write(json.dumps(found, separators=(",", ":")) + "\n")
            file.flush()
            print(f"\r{count} of {len(tasks)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _each(tasks: Sequence[Task], jobs: int) -> Iterator[Record]:
    if jobs == 1:
        yield from map(replay, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(replay, tasks)


# -- showing ---------------------------------------------------------------------------------------


def ratio(own: Sequence[Record], alone: Sequence[Record]) -> tuple[float, float, float]:
    """Return how many times faster studies are than others with the same seeds.

    Returns:
        Geometric mean, and the low and high end of its 95 % interval (Student's, of logarithms).
    """
    one = {r["seed"]: r["end_s"] for r in alone}
    logs = [math.log(one[r["seed"]] / r["end_s"]) for r in own if r["seed"] in one]
    if not logs:
        return math.nan, math.nan, math.nan
    mean, half = statistics.fmean(logs), 0.0
    if len(logs) > 1:
        half = float(student.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / len(logs) ** 0.5
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def groups(records: Sequence[Record]) -> dict[tuple[Any, ...], dict[int, list[Record]]]:
    """Return the replays by cell, and in it by slots."""
    found: dict[tuple[Any, ...], dict[int, list[Record]]] = {}
    keys = ("world", "trials", "every", "ahead", "slots")
    for r in sorted(records, key=lambda r: tuple(r[k] for k in keys)):
        cell = (r["world"], r["stages"], r["trials"], r["every"], r["ahead"])
        found.setdefault(cell, {}).setdefault(r["slots"], []).append(r)
    return found


def table(records: Sequence[Record]) -> Iterator[str]:
    """Yield the figures in Markdown."""
    cells_of = groups(records)
    for (name, of, trials, every, ahead), by_slots in cells_of.items():
        ends = "all of them" if every else "the search may end itself"
        without = cells_of.get((name, of, trials, every, 0), {}) if ahead else {}
        title = f"`server.ahead: {ahead}`" if ahead else "nothing is prelaunched"
        yield f"**{name}**, stages of {of}, {trials} trials ({ends}), {title}:"
        yield ""
        saves = (" saves |", "--:|") if ahead else ("", "")
        yield (
            "| slots | 99 %, min | search, min | all, min | faster |"
            f"{saves[0]} busy | missing | worse |"
        )
        yield f"|--:|--:|--:|--:|--:|{saves[1]}--:|--:|--:|"
        for slots, own in by_slots.items():
            cells = [str(slots)]
            cells += [_minutes([r[k] for r in own]) for k in ("reached_s", "search_s", "end_s")]
            cells.append("" if slots == 1 else _times_faster(ratio(own, by_slots.get(1, ()))))
            if ahead:
                cells.append(_times_faster(ratio(own, without.get(slots, ()))))
            cells.append(f"{statistics.fmean(r['busy'] for r in own):.0%}")
            cells.append(f"{100 * statistics.fmean(r['missing'] for r in own):.1f} %")
            worse = [r["worse"][0] for r in own if "worse" in r]
            cells.append(f"{100 * statistics.fmean(worse):.1f} %" if worse else "–")
            yield f"| {' | '.join(cells)} |"
        yield ""


def _times_faster(found: tuple[float, float, float]) -> str:
    """Return a ratio with its interval; – where there is nothing to compare."""
    return "–" if math.isnan(found[0]) else "{:.1f}× [{:.1f}, {:.1f}]".format(*found)


def _minutes(seconds: Sequence[float | None]) -> str:
    """Return median and quartiles; one that was not reached is later than all others."""
    values = sorted(math.inf if s is None else s / 60 for s in seconds)
    low, middle, high = (float(np.quantile(values, q, method="nearest")) for q in (0.25, 0.5, 0.75))
    words = ["–" if math.isinf(x) else f"{x:.0f}" for x in (low, middle, high)]
    return f"{words[1]} [{words[0]}, {words[2]}]"


def draw(records: Sequence[Record], page: Path) -> None:
    """Write the figure as HTML, and as PNG where a Chromium is found."""
    import plotly.graph_objects as go

    from autotune.output.figures.browser import write_html, write_png

    fig = go.Figure()
    shown = [(cell, by) for cell, by in groups(records).items() if cell[3] and 1 in by]
    for ((name, of, *_, ahead), by_slots), color in zip(shown, COLORS, strict=False):
        slots = list(by_slots)
        ratios = [ratio(by_slots[k], by_slots[1]) for k in slots]
        fig.add_scatter(
            x=slots,
            y=[mean for mean, _, _ in ratios],
            error_y={
                "array": [high - mean for mean, _, high in ratios],
                "arrayminus": [mean - low for mean, low, _ in ratios],
                "thickness": 1,
                "width": 3,
            },
            name=f"{name}, stages of {of}" + (f", ahead: {ahead}" if ahead else ""),
            line={"color": color, "width": 2},
            mode="lines+markers",
        )
    most = max((max(by) for _, by in shown), default=1)
    fig.add_scatter(
        x=[1, most],
        y=[1, most],
        name="as many times as there are slots",
        line={"color": "#8A94A0", "width": 1, "dash": "dot"},
        mode="lines",
    )
    ticks = [2**k for k in range(most.bit_length())]
    axis = {"type": "log", "tickvals": ticks, "gridcolor": "#E8EAED"}
    fig.update_xaxes(title="slots", **axis)
    fig.update_yaxes(title="times faster than one slot", range=[0, math.log10(16)], **axis)
    fig.update_layout(
        template="plotly_white",
        font={"family": "Inter, Segoe UI, Helvetica, Arial, sans-serif", "size": 13},
        title={
            "text": f"<b>A study of {TRIALS} trials with its confirmation, by slots</b><br>"
            '<span style="font-size: 12px">virtual time; means and 95 % intervals</span>'
        },
        legend={"x": 0.02, "y": 0.98},
        width=760,
        height=460,
        margin={"t": 80, "l": 70, "r": 24, "b": 60},
    )
    write_html(fig, page, "Wall time of a study by slots")
    picture = page.with_suffix(".png")
    print(page, picture if write_png(fig, picture) else "(no Chromium, no PNG)")


def packed(records: Sequence[Record]) -> dict[str, Any]:
    """Return everything that is shown, with its sources."""
    sources = sorted({r["stages"] for r in records})
    return {
        "driver_s": DRIVER_S,
        "stages": {
            name: {
                "source": "benchmarks/data/stages_h200.json"
                if name == H200
                else f"studies/results/{name}/autotune.db, autotune_events of each launch",
                "seconds": [
                    {k: v if isinstance(v, bool) else round(v, 3) for k, v in asdict(x).items()}
                    for x in (stages_h200()[0] if name == H200 else stages(name))
                ],
            }
            for name in sources
        },
        "replays": [r for by in groups(records).values() for own in by.values() for r in own],
    }


def main() -> None:
    """Run, show or draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worlds", nargs="+", default=list(SHOWN), choices=list(CELLS))
    parser.add_argument("--slots", type=int, nargs="+", default=list(SLOTS))
    parser.add_argument(
        "--ahead", type=int, nargs="+", default=list(PRELAUNCHES), help="of stages on H200s"
    )
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument(
        "--ends", action="store_true", help="the search may end itself; default: all trials"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="run, and add to this file")
    what.add_argument("--show", type=Path, nargs="+", metavar="FILE", help="print the table")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="write all that is shown here")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the figure here")
    args = parser.parse_args()
    if args.out is not None:
        write(args)
        return
    records = read(args.show)
    if args.pack is not None:
        args.pack.write_text(json.dumps(packed(records), separators=(",", ":")) + "\n")
    if args.picture is not None:
        draw(records, args.picture)
    print("\n".join(table(records)))


if __name__ == "__main__":
    main()
