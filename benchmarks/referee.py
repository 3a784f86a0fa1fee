"""How often the verdicts of `autotune map --confirm` are right, by simulation.

    python benchmarks/referee.py [--runs 2000] [--only NAME …] [--json FILE] [--table]

Worlds have one fixed n and one rival (or three) at the concurrencies 4, 8, … 256, launched there
and back. The true ratio is 1 everywhere, or 1.1, or it passes 1 at concurrency 44 as in the table
of vllm#52362, and grows by 8 % each time the concurrency doubles. A launch has a deviation that all
its concurrencies share and one for each; both have half of the variance between launches. Requests
add 1 % to each value, and a launch's own estimate of that has seven degrees of freedom. The machine
is steady, gets steadily slower (15 % over the confirmation), or wanders (a random walk of 1 % a
launch).

Shown are the coverage of the ratios' intervals, the share of concurrencies at which a rival of
equal speed is called faster, the share of sweeps with such a verdict at any concurrency, how often
a rival that is 10 % faster is found, and, of sweeps with a crossover, how often its interval holds
the true one, how often it has both bounds, and how wide it then is (upper over lower bound,
median).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autotune.stats.crossover import Rate
from autotune.stats.referee import Runs, Verdict, compare, crossing, there_and_back

LOADS = (4, 8, 16, 32, 64, 128, 256)
TRUE_CROSSOVER = 44.0
STEP = math.log(1.08)  # of the crossing world's ratio, when the concurrency doubles
WITHIN, DEGREES = 0.01, 7
DRIFT, WANDER = -0.15, 0.01
FASTER = math.log(1.10)
FIXED = "fixed"


@dataclass(frozen=True)
class Cell:
    """One simulated setting.

    Attributes:
        between: Standard deviation of a launch's logarithm beyond its requests.
        launches: Launches of the whole confirmation.
        rivals: Number of rivals.
        machine: ``steady``, ``drifting`` or ``wandering``.
    """

    between: float
    launches: int
    rivals: int = 1
    machine: str = "steady"

    @property
    def name(self) -> str:
        """Name in the tables and of `--only`."""
        return f"{self.between:.1%} {self.launches} launches {self.rivals} rivals {self.machine}"


def cells() -> Iterator[Cell]:
    """Yield every cell."""
    for between in (0.004, 0.03, 0.10):
        for launches in (4, 8, 16):
            yield Cell(between, launches)
    for machine in ("drifting", "wandering"):
        yield Cell(0.03, 8, machine=machine)
    for launches in (8, 16):
        yield Cell(0.03, launches, rivals=3)


def simulated(
    cell: Cell, truth: NDArray[np.float64], rng: np.random.Generator
) -> tuple[Runs[str], list[str]]:
    """Return the launches of one confirmation, and its rivals.

    Args:
        cell: The setting.
        truth: True logarithm of each rival's ratio at each load.
        rng: Source of chance.
    """
    rivals = [f"rival {i}" for i in range(cell.rivals)]
    order = there_and_back([FIXED, *rivals], cell.launches)
    half = cell.between / math.sqrt(2)
    machine = np.zeros(len(order))
    if cell.machine == "drifting":
        machine = DRIFT * np.arange(len(order)) / (len(order) - 1)
    elif cell.machine == "wandering":
        machine = np.cumsum(WANDER * rng.standard_normal(len(order)))
    runs: dict[str, list[dict[int, Rate]]] = {way: [] for way in (FIXED, *rivals)}
    for way, drifted in zip(order, machine, strict=True):
        logs = half * rng.standard_normal() + half * rng.standard_normal(len(LOADS)) + drifted
        logs += WITHIN * rng.standard_normal(len(LOADS)) + (0.0 if way == FIXED else truth)
        errors = WITHIN * np.sqrt(rng.chisquare(DEGREES, len(LOADS)) / DEGREES)
        values = [Rate(float(v), float(e)) for v, e in zip(np.exp(logs), errors, strict=True)]
        runs[way].append(dict(zip(LOADS, values, strict=True)))
    return runs, rivals


def measured(cell: Cell, runs: int, seed: int = 0) -> dict[str, float]:
    """Return the shares of one cell; see the module."""
    rng = np.random.default_rng(seed)
    crossed = np.array([STEP * math.log2(load / TRUE_CROSSOVER) for load in LOADS])
    fixed = dict.fromkeys(LOADS, FIXED)
    hold, wrong, anywhere, found, crossings = [], [], [], [], []
    for _ in range(runs):
        launched, rivals = simulated(cell, np.zeros(len(LOADS)), rng)
        here = compare(launched, fixed, rivals, None)
        for x in here:
            low, high = x.ratio.low or 0.0, x.ratio.high or math.inf
            hold.append(low <= 1 <= high)
        # of a load, not of a rival: one wrong rival is enough
        lost = {x.load for x in here if x.verdict is Verdict.RIVAL}
        wrong.append(len(lost) / len(LOADS))
        anywhere.append(bool(lost))
        launched, rivals = simulated(cell, np.full(len(LOADS), FASTER), rng)
        found += [x.verdict is Verdict.RIVAL for x in compare(launched, fixed, rivals, None)]
        launched, rivals = simulated(cell, crossed, rng)
        compared = compare(launched, fixed, rivals, None)
        cross = crossing({x.load: x.ratio for x in compared if x.rival == rivals[0]})
        if cross is not None and cross.load is not None:
            crossings.append((cross.low or 0.0, cross.high or math.inf))
    held = [low <= TRUE_CROSSOVER <= high for low, high in crossings]
    both = [high / low for low, high in crossings if low > 0 and math.isfinite(high)]
    return {
        "coverage": _mean(hold),
        "wrong_at_a_load": _mean(wrong),
        "wrong_at_any_load": _mean(anywhere),
        "ten_percent_found": _mean(found),
        "crossover_found": len(crossings) / runs,
        "crossover_coverage": _mean(held),
        "crossover_bounded": len(both) / max(1, len(crossings)),
        "crossover_width": float(np.median(both)) if both else math.nan,
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


HEADER = (
    "launches differ by",
    "launches",
    "rivals",
    "machine",
    "ratio held",
    "equal rival called faster: at a load",
    "at any of 7",
    "+10 % found",
    "crossover held",
    "with both bounds",
    "its width",
)


def table(results: Sequence[dict[str, object]]) -> list[str]:
    """Return the table of the docs.

    Args:
        results: As in the JSON file.
    """
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    for row in results:
        x = {k: v for k, v in row.items() if isinstance(v, int | float)}
        width = x["crossover_width"]
        words = [
            f"{100 * x['between']:g} %",
            f"{x['launches']:.0f}",
            f"{x['rivals']:.0f}",
            str(row["machine"]),
            f"{100 * x['coverage']:.1f} %",
            f"{100 * x['wrong_at_a_load']:.1f} %",
            f"{100 * x['wrong_at_any_load']:.0f} %",
            f"{100 * x['ten_percent_found']:.0f} %",
            f"{100 * x['crossover_coverage']:.1f} %",
            f"{100 * x['crossover_bounded']:.0f} %",
            "–" if math.isnan(width) else f"{width:.1f}×",
        ]
        lines.append(f"| {' | '.join(words)} |")
    return lines


def main() -> None:
    """Run the cells and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="print the docs' table of such a file")
    args = parser.parse_args()
    if args.table is not None:
        print(*table(json.loads(args.table.read_text())["cells"]), sep="\n")
        return
    results: list[dict[str, object]] = []
    for cell in cells():
        if args.only and cell.name not in args.only:
            continue
        row = {
            "name": cell.name,
            "between": cell.between,
            "launches": len(there_and_back([FIXED, *map(str, range(cell.rivals))], cell.launches)),
            "rivals": cell.rivals,
            "machine": cell.machine,
            **measured(cell, args.runs),
        }
        results.append(row)
        print(table([row])[-1], flush=True)
    if args.json is not None:
        found = {"runs": args.runs, "cells": results}
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
