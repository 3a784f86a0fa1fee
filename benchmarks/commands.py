"""What commands that start nothing cost, next to an earlier commit: wall time and peak memory.

    python benchmarks/commands.py --since COMMIT [--rounds 7] [--out FILE.json]

Both trees run the same commands on a copy of a committed database of twelve trials, in turns (then,
now; now, then), so that what drifts on the machine affects both. A round runs each command once in
each tree. The result is the ratio now/then of the wall time and of the largest resident memory: the
geometric mean of the rounds' ratios, with their smallest and largest. One round before the others
is not counted: it compiles the modules and fills the disk's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DATABASE = "studies/results/smollm2-h200/autotune.db"
COMMANDS = (
    ("--help",),
    ("status", "--help"),
    ("status",),
    ("status", "--json"),
    ("best",),
    ("export",),
    ("export", "--format", "compose"),
)


def tree_of(commit: str, folder: Path) -> Path:
    """Unpack a commit into a folder."""
    folder.mkdir()
    packed = folder.with_suffix(".tar")
    # not through this process: what it holds would count as the commands' peak memory
    subprocess.run(["git", "archive", "--output", packed, commit], cwd=ROOT, check=True)  # noqa: S607
    subprocess.run(["tar", "-xf", packed, "-C", folder], check=True)  # noqa: S607
    packed.unlink()
    return folder


def measure(root: Path, words: Sequence[str], folder: Path) -> tuple[float, float]:
    """Run a tree's command once; return its wall time in s and its peak memory in MB."""
    about = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, name = about["project"]["scripts"]["autotune"].partition(":")
    code = f"import sys; from {module} import {name} as main; sys.argv[0] = 'autotune'; main()"
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, *words],
        cwd=folder,
        env={
            **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
            "PYTHONPATH": str(root),
            "PYTHONPYCACHEPREFIX": str(folder.parent / "compiled"),
            "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{root}: autotune {' '.join(words)}: exit code {process.returncode}")
    return wall, usage.ru_maxrss / 1024


def compared(then: Path, now: Path, folder: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Run all commands in both trees, in turns; return times, memory and ratios by command."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {
        " ".join(words): {"then": [], "now": []} for words in COMMANDS
    }
    for number in range(-1, rounds):
        order = [("then", then), ("now", now)]
        if number % 2:
            order.reverse()
        for words in COMMANDS:
            for side, root in order:
                one = measure(root, words, folder)
                if number >= 0:
                    found[" ".join(words)][side].append(one)
    return {words: summary(sides["then"], sides["now"]) for words, sides in found.items()}


def summary(
    then: Sequence[tuple[float, float]], now: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Return medians and ratios of one command's rounds."""
    out: dict[str, Any] = {}
    for i, what in enumerate(("wall_s", "memory_mb")):
        ratios = [b[i] / a[i] for a, b in zip(then, now, strict=True)]
        out[what] = {
            "then": round(statistics.median(a[i] for a in then), 3),
            "now": round(statistics.median(b[i] for b in now), 3),
            "ratio": round(statistics.geometric_mean(ratios), 3),
            "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return out


def main() -> None:
    """Measure, print a table, and write the result where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--since", metavar="COMMIT", required=True, help="commit to compare with")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds; default: 7")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autotune-commands-") as name:
        folder = Path(name, "work")
        folder.mkdir()
        then = tree_of(asked.since, Path(name, "tree"))
        shutil.copy(then / DATABASE, folder)
        found = compared(then, ROOT, folder, asked.rounds)
    print(f"{'command':28} {'wall s':>14} {'ratio':>6}   {'memory MB':>12} {'ratio':>6}")
    for words, one in found.items():
        wall, memory = one["wall_s"], one["memory_mb"]
        print(
            f"{words:28} {wall['then']:6.2f} {wall['now']:7.2f} {wall['ratio']:6.2f}   "
            f"{memory['then']:5.0f} {memory['now']:6.0f} {memory['ratio']:6.2f}"
        )
    if asked.out:
        about = {
            "since": asked.since,
            "database": DATABASE,
            "rounds": asked.rounds,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        }
        asked.out.write_text(json.dumps({**about, "commands": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
