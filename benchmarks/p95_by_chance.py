"""How often do two runs of 20 requests differ in p95 latency by chance alone?

    python benchmarks/p95_by_chance.py DATABASE [DATABASE …] [--requests 20] [--by 0.31]

The launches are real ones that a database keeps, with at least twice as many measured requests.
Each is cut at random into two runs of `--requests` requests, none in both, again and again. One
server served both, at one load and with one setting, so that any difference is chance. What is
told is how often the larger p95 (as vLLM's own benchmark takes it: `numpy.percentile`) is at least
`--by` above the smaller one, by launch. A difference between two launches comes on top of it.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DRAWS = 20_000

_LATENCIES = """
    SELECT r.launch_id, r."end" - r.start AS latency FROM autotune_requests r
    WHERE r.phase = 'measure' AND r.status = 'ok' ORDER BY r.launch_id, r."index"
"""


def launches(database: Path) -> list[NDArray[np.float64]]:
    """Latencies of the measured requests of each launch, in the order they were sent, s."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as c:
        rows = c.execute(_LATENCIES).fetchall()
    by_launch: dict[str, list[float]] = {}
    for launch, latency in rows:
        by_launch.setdefault(launch, []).append(latency)
    return [np.array(x) for x in by_launch.values()]


def larger_over_smaller(
    latencies: NDArray[np.float64], requests: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The larger p95 over the smaller one of two runs, of shape (draws,)."""
    drawn = rng.permuted(np.tile(latencies, (DRAWS, 1)), axis=1)[:, : 2 * requests]
    p95 = np.percentile(drawn.reshape(DRAWS, 2, requests), 95, axis=2)
    return np.asarray(p95.max(axis=1) / p95.min(axis=1))


def table(databases: Sequence[Path], requests: int, by: float) -> Iterator[str]:
    """Yield the shares in Markdown."""
    yield f"| database | launches | requests each | differ by {by:.0%}, median | worst launch |"
    yield "|---|--:|--:|--:|--:|"
    for database in databases:
        rng = np.random.default_rng(0)
        found = [x for x in launches(database) if len(x) >= 2 * requests]
        if not found:
            yield f"| {database.parent.name} | 0 | | | |"
            continue
        shares = [float(np.mean(larger_over_smaller(x, requests, rng) >= 1 + by)) for x in found]
        sizes = sorted({len(x) for x in found})
        yield (
            f"| {database.parent.name} | {len(found)} | {sizes[0]} to {sizes[-1]} | "
            f"{np.median(shares):.1%} | {max(shares):.1%} |"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("databases", nargs="+", type=Path, metavar="DATABASE")
    parser.add_argument("--requests", type=int, default=20, help="of each run")
    parser.add_argument("--by", type=float, default=0.31, help="difference that is looked for")
    args = parser.parse_args()
    print("\n".join(table(args.databases, args.requests, args.by)))


if __name__ == "__main__":
    main()
