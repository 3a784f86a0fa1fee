"""A study's measured launches as one small file, for replays without a server.

    python benchmarks/grid.py STUDY.db OUT.npz [--study NAME] [--only PARAMETER …]

The database is opened read-only; a study that is still running can be exported. Launches that
failed or were cut short are left out. With ``--only`` other parameters are left out, too, where
they were not seen to matter: the points need not be a whole grid of all of them. Of each measured
request its times and counts are kept, of its chunks only how many came. The file is a NumPy
archive without pickles: one JSON header (study file, machine, versions, a list of launches) and one
array a column, requests in the order of launches and then of sending.
"""

from __future__ import annotations

import argparse
import json
import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from autotune.serving.machine import machine_line
from autotune.stats.measurement import Floats, Ints

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks" / "data" / "demo-cpu-grid.npz"
POOL, BLOCK = 2000, 4  # resampled launches of a point, and requests that stay together
_TIMES = ("start", "ttft", "e2el")
_COUNTS = ("index", "prompt_tokens", "output_tokens", "chunks")


@dataclass(frozen=True)
class Launch:
    """One measured launch; arrays over its requests, in the order of sending.

    Attributes:
        trial: Number of its trial.
        confirms: The trial whose point it measured again; None for a trial of the search.
        params: The searched parameters with their plain values.
        planned_at: Unix time, s.
        values: Objective values as the study computed them, by name.
        stats: The server's counters over the measurement (`bench.server_metrics.ServerStats`).
        start: Sending, s on the phase's clock.
        ttft: s after ``start``.
        e2el: Last chunk, s after ``start``.
        index: Place in the study's list of requests.
        prompt_tokens: By usage.
        output_tokens: By usage.
        chunks: How many chunks with text came; under speculation, one a verification step.
    """

    trial: int
    confirms: int | None
    params: dict[str, Any]
    planned_at: float
    values: dict[str, float]
    stats: dict[str, Any]
    start: Floats = field(repr=False)
    ttft: Floats = field(repr=False)
    e2el: Floats = field(repr=False)
    index: Ints = field(repr=False)
    prompt_tokens: Ints = field(repr=False)
    output_tokens: Ints = field(repr=False)
    chunks: Ints = field(repr=False)


@dataclass(frozen=True)
class Grid:
    """The launches of one study, oldest first.

    Attributes:
        study: Its name.
        yaml: Its file.
        machine: What it ran on, as `autotune.serving.machine` describes it.
        vllm_version: Of the servers.
        launches: Measured ones.
        concurrency: Most requests at a time; None: as the study's file says.
    """

    study: str
    yaml: str
    machine: dict[str, Any]
    vllm_version: str | None
    launches: tuple[Launch, ...]
    concurrency: int | None = None

    def points(self) -> list[list[Launch]]:
        """Launches of the same parameters together, oldest point first."""
        groups: dict[str, list[Launch]] = {}
        for x in self.launches:
            groups.setdefault(json.dumps(x.params, sort_keys=True), []).append(x)
        return list(groups.values())


def from_database(path: Path, study: str | None = None) -> Grid:
    """Reads a study's database without writing to it.

    Raises:
        ValueError: it holds several studies and none is named, or no measured launch.
        sqlite3.Error: it is no database of autotune.
    """
    with closing(_open(path)) as db:
        studies = dict(db.execute("select name, yaml from autotune_studies"))
        if study is None and len(studies) != 1:
            raise ValueError(f"{path} holds the studies {', '.join(studies)}: name one")
        name = study or next(iter(studies))
        trials = {
            number: {k: json.loads(v) for k, v in db.execute(_TRIAL_ATTRS, (trial_id,))}
            for trial_id, number in db.execute(_TRIALS, (name,))
        }
        rows = db.execute(_LAUNCHES, (name,)).fetchall()
        columns = {row[1] for row in db.execute("pragma table_info(autotune_launches)")}
        cut_short = set(db.execute(_CUT_SHORT, (name,))) if "quality" in columns else set()
        launches = []
        for launch_id, trial, planned_at, values, stats, _, _ in rows:
            attrs = trials[trial]
            if "point" not in attrs or (launch_id,) in cut_short:
                continue  # measured, but not told yet; or cut short
            requests = np.array(db.execute(_REQUESTS, (launch_id,)).fetchall(), dtype=np.float64)
            launches.append(
                Launch(
                    trial,
                    attrs.get("confirms"),
                    attrs["point"],
                    planned_at,
                    json.loads(values),
                    json.loads(stats),
                    *_columns(list(requests.T)),
                )
            )
    if not launches:
        raise ValueError(f"{path} holds no measured launch of {name}")
    machine, version = rows[-1][-2:]
    return Grid(name, studies[name], json.loads(machine), version, tuple(launches))


def _open(path: Path) -> sqlite3.Connection:
    """Read-only; a database at rest is not even given the -shm file that WAL readers share."""
    wal = path.with_name(path.name + "-wal")
    at_rest = not wal.exists() or wal.stat().st_size == 0
    mode = "immutable=1" if at_rest else "mode=ro"
    return sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True)


_TRIALS = """
select t.trial_id, t.number from trials t join studies s using (study_id) where s.study_name = ?
"""
_TRIAL_ATTRS = "select key, value_json from trial_user_attributes where trial_id = ?"
_LAUNCHES = """
select launch_id, trial, planned_at, "values", stats, machine, vllm_version from autotune_launches
where study = ? and "values" is not null order by planned_at
"""
_CUT_SHORT = """
select launch_id from autotune_launches
where study = ? and json_extract(quality, '$.dominated_by') is not null
"""
_REQUESTS = """
select start, ttft, "end" - start, "index", prompt_tokens, output_tokens, length(chunks) / 4
from autotune_requests where launch_id = ? and phase = 'measure' and status = 'ok' order by start
"""


def _columns(arrays: Sequence[Floats]) -> list[Any]:
    times, counts = arrays[: len(_TIMES)], arrays[len(_TIMES) :]
    return [*times, *(np.asarray(c, dtype=np.int64) for c in counts)]


def save(grid: Grid, path: Path) -> None:
    """Writes the archive; times as float32, which is 10 µs in 100 s."""
    header = {
        "study": grid.study,
        "yaml": grid.yaml,
        "machine": grid.machine,
        "vllm_version": grid.vllm_version,
        "concurrency": grid.concurrency,
        "launches": [
            {
                "trial": x.trial,
                "confirms": x.confirms,
                "params": x.params,
                "planned_at": x.planned_at,
                "values": x.values,
                "stats": x.stats,
                "requests": len(x.start),
            }
            for x in grid.launches
        ],
    }
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(x, name) for x in grid.launches]).astype(
            np.float32 if name in _TIMES else np.int32
        )
        for name in (*_TIMES, *_COUNTS)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, header=np.array(json.dumps(header)), **columns)


def load(path: Path) -> Grid:
    """Reads what :func:`save` wrote, or a study's database.

    Raises:
        OSError: it cannot be read.
        ValueError: it is neither.
    """
    if path.suffix != ".npz":
        return from_database(path)
    with np.load(path, allow_pickle=False) as archive:
        header = json.loads(str(archive["header"]))
        cuts = np.cumsum([x.pop("requests") for x in header["launches"]])[:-1]
        columns = [np.split(archive[name], cuts) for name in (*_TIMES, *_COUNTS)]
    launches = tuple(
        Launch(**x, **dict(zip((*_TIMES, *_COUNTS), _columns_of(parts), strict=True)))
        for x, parts in zip(header.pop("launches"), zip(*columns, strict=True), strict=True)
    )
    return Grid(**header, launches=launches)


def _columns_of(parts: Sequence[Any]) -> list[Any]:
    return _columns([np.asarray(p, dtype=np.float64) for p in parts])


def resampled(points: Sequence[Sequence[Launch]], rng: np.random.Generator) -> Floats:
    """Launches without luck: points × POOL × (log tok/s, log p95 in ms)."""
    return np.array([_resampled_point(launches, rng) for launches in points])


def _resampled_point(launches: Sequence[Launch], rng: np.random.Generator) -> Floats:
    """Requests of all launches of the point, each launch brought to the point's mean."""
    logs = np.log([[x.values["throughput"], x.values["p95_latency"]] for x in launches])
    out = []
    for launch, log in zip(launches, logs, strict=True):
        n = len(launch.e2el)
        starts = rng.integers(n, size=(math.ceil(POOL / len(launches)), math.ceil(n / BLOCK)))
        picks = ((starts[..., None] + np.arange(BLOCK)) % n).reshape(len(starts), -1)[:, :n]
        seconds, tokens = launch.e2el[picks], launch.output_tokens[picks]
        pace = np.log(tokens.sum(axis=1) / seconds.sum(axis=1))
        pace -= np.log(launch.output_tokens.sum() / launch.e2el.sum())
        p95 = np.percentile(seconds, 95, axis=1, method="median_unbiased")
        p95 = np.log(1000 * p95) - log[1]
        out.append(np.column_stack([pace, p95]) + logs.mean(axis=0))
    return rng.permutation(np.concatenate(out))[:POOL]


def describe(grid: Grid) -> str:
    """Where the numbers come from, in one line."""
    requests = sum(len(x.start) for x in grid.launches)
    at = "" if grid.concurrency is None else f" at concurrency {grid.concurrency}"
    return (
        f"{grid.study}{at}: {len(grid.points())} points, {len(grid.launches)} launches, "
        f"{requests} requests; vLLM {grid.vllm_version} on {machine_line(grid.machine)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--study")
    parser.add_argument("--only", nargs="+", metavar="PARAMETER", help="the others do not matter")
    args = parser.parse_args()
    grid = from_database(args.database, args.study)
    if args.only:
        kept = (replace(x, params={k: x.params[k] for k in args.only}) for x in grid.launches)
        grid = replace(grid, launches=tuple(kept))
    save(grid, args.out)
    print(f"{describe(grid)}: {args.out}, {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
