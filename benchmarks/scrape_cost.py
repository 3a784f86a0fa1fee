"""What does it cost a measured server that its running requests are watched?

    python benchmarks/scrape_cost.py STUDY.yaml --out FILE.json [--rounds 8] [--requests 24]

One server is measured all the time with the same requests: unwatched; watched as a throttled trial
is, all the time (:class:`autotune.bench.running.RunningWatch`), with a page that has the two gauges
only; and the same with the whole page of `/metrics`. A trial that is not throttled costs less,
since the first full sample is its last one. Each round measures all three, in turns (A B C, C B A),
so that drift affects all equally. The result has the ratios watched/unwatched of tok/s and p95
latency with 95 % intervals (Student's t of the logarithms of the rounds' ratios), the pages that
were read, the peak of running requests, and the CPU time that the server takes for a page when it
has nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from idle_neighbours import Machine, cpu_seconds, objectives, options, phase, ratio, written

from autotune.bench.running import GaugeReader, Gauges, RunningWatch
from autotune.bench.sending import send
from autotune.bench.server_metrics import read_page
from autotune.bench.workload import build_workload
from autotune.engine.active_requests import Asked
from autotune.engine.probe import probe
from autotune.serving.machine import describe_machine
from autotune.serving.server import Server
from autotune.study.files import load_study
from autotune.study.space import MNBT, N, Point

NEVER_FULL = Asked(10**6, 10**6)
WAYS = ("unwatched", "by name", "whole page")


class Reader:
    """Reads the gauges in one way, and counts the pages and their seconds."""

    def __init__(self, server: Server, way: str) -> None:
        plan = server.plan
        self._read = GaugeReader(plan.base_url, plan.api_key)
        if way == "whole page":
            del self._read._urls[0]
        self.pages = 0
        self.seconds = 0.0

    def __call__(self) -> Gauges | None:
        begun = time.monotonic()
        found = self._read()
        self.pages += 1
        self.seconds += time.monotonic() - begun
        # as of a throttled server, or the watch would end
        return None if found is None else replace(found, waiting=1)

    @property
    def url(self) -> str:
        """The page that it reads."""
        return self._read._urls[0]


def page_cost(server: Server, way: str, pages: int) -> dict[str, float]:
    """What a page costs a server that has nothing else to do."""
    reader = Reader(server, way)
    reader()
    size = len(read_page(reader.url, server.plan.api_key) or b"")
    used, begun = cpu_seconds([server]), time.monotonic()
    for _ in range(pages):
        reader()
    seconds = time.monotonic() - begun
    return {
        "bytes": size,
        "cpu_ms": (cpu_seconds([server]) - used) / pages * 1000,
        "wall_ms": seconds / pages * 1000,
    }


def measured(args: argparse.Namespace) -> dict[str, Any]:
    study = load_study(args.study)
    info = probe(study.spec.server)
    load = study.spec.workload.model_copy(
        update={"num_prompts": args.requests, "warmup_prompts": 4}
    )
    workload = build_workload(load, study.base)
    logs = args.out.parent / f"{args.out.stem}-logs"
    point: Point = {N: args.n, MNBT: args.mnbt}
    rounds: list[dict[str, Any]] = []
    with ExitStack() as ends:
        (server,) = Machine(study, info, logs, ends).started(point, 1, ends)
        requests = workload.measured
        warmup = workload.warmup
        send(server, load, warmup, [0.0] * len(warmup), "warmup", lambda _: None)
        pages = {way: page_cost(server, way, 100) for way in WAYS[1:]}
        print(json.dumps(pages), flush=True)
        for i in range(args.rounds):
            found: dict[str, Any] = {}
            for way in WAYS[:: 1 if i % 2 == 0 else -1]:
                if way == "unwatched":
                    found[way] = phase(study, server, requests)
                    continue
                reader = Reader(server, way)
                with RunningWatch(NEVER_FULL, reader) as watch:
                    found[way] = phase(study, server, requests)
                found[way] |= {"pages": reader.pages, "seconds_of_pages": reader.seconds}
                found[way]["peak"] = watch.seen.peak
            rounds.append(found)
            print(i + 1, json.dumps(found), flush=True)
    return {
        "study": study.spec.name,
        "point": point,
        "requests": args.requests,
        "concurrency": load.max_concurrency,
        "vllm": info.version,
        "machine": describe_machine(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "page": pages,
        "rounds": rounds,
        "over_unwatched": {
            way: {o.name: ratio(rounds, way, "unwatched", o.name) for o in objectives(study)}
            for way in WAYS[1:]
        },
    }


def main() -> None:
    parser = options(__doc__, n=3, mnbt=512)
    args = parser.parse_args()
    if min(args.rounds, args.requests) < 2:
        parser.error("--rounds and --requests must be 2 or more")
    found = written(measured, args)
    for way, by_name in found["over_unwatched"].items():
        for name, x in by_name.items():
            print(f"{way}: {name}: {x['ratio']:.3f} [{x['low']:.3f}, {x['high']:.3f}]")
    for way, x in found["page"].items():
        print(f"{way}: {x['bytes']} bytes, {x['cpu_ms']:.1f} ms of CPU, {x['wall_ms']:.1f} ms")


if __name__ == "__main__":
    main()
