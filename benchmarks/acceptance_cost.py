"""What `--per-request-spec-decode-metrics` costs a server: none, summary, detailed, in turn.

    python benchmarks/acceptance_cost.py --rounds 4 --out benchmarks/data/acceptance_cost.json

Launches the demo pair (vLLM 0.29 or later on a CPU) at n = 3 with each level, there and back (none,
summary, detailed, detailed, summary, none), and sends all of them the same requests at concurrency
2. Kept of each launch: tok/s, the mean request, and CPU seconds of the server's processes for 1000
tokens. A level is compared with none by the logarithms of the rounds' ratios, with Student's t.

Launches that the file has are kept, so the same command goes on with the next.

A busy machine hides such small costs, so what vLLM and the client do more is timed on its own, too
(``alone``): vLLM's counting of a step, its payload of a request of 400 steps as JSON, and the
client's reading of that, in microseconds of CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import psutil
from scipy import stats

from autotune.bench.client import run_phase
from autotune.bench.request_drafts import request_drafts
from autotune.bench.workload import build_workload
from autotune.engine.acceptance import ACCEPTANCE
from autotune.engine.command import free_port, plan_launch
from autotune.engine.entry import hiding
from autotune.engine.probe import VllmInfo, probe
from autotune.serving.machine import describe_machine, machine_line
from autotune.serving.server import Server
from autotune.study.files import load_bundled
from autotune.study.models import resolve_model
from autotune.study.schema import StudySpec
from autotune.study.space import MNBT, N

LEVELS = ("none", "summary", "detailed")
POINT = {N: 3, MNBT: 512}


def measured(spec: StudySpec, base: Path, info: VllmInfo, level: str, log: Path) -> dict[str, Any]:
    """Launch a server with one level and return what its requests took."""
    flags = {**spec.server.flags, **({} if level == "none" else {ACCEPTANCE: level})}
    server_spec = spec.server.model_copy(update={"flags": flags})
    plan = plan_launch(
        server_spec,
        POINT,
        info,
        port=free_port(),
        launch_id=(launch := uuid.uuid4().hex),
        resolve=lambda ref: resolve_model(ref, base),
    )
    server = Server(plan, launch_id=launch, log_path=log, server=server_spec, info=info)
    try:
        server.start()
        server.wait_ready(lambda _s: None)
        workload = build_workload(spec.workload, base)

        def send(requests: Sequence[Any], phase: str) -> Any:
            return asyncio.run(
                run_phase(
                    plan.base_url,
                    plan.served_name,
                    requests,
                    [0.0] * len(requests),
                    spec.workload,
                    api_key=plan.api_key,
                    phase=phase,
                    hang_timeout_s=120,
                    on_done=lambda _sample: None,
                )
            )

        send(workload.warmup, "warmup")
        before, began = cpu_seconds(server), time.perf_counter()
        done = send(workload.measured, "measure")
        seconds, used = time.perf_counter() - began, cpu_seconds(server) - before
    finally:
        server.stop()
    ok = [s for s in done.samples if s.status == "ok"]
    tokens = sum(s.output_tokens for s in ok)
    return {
        "level": level,
        "requests": len(ok),
        "told": sum(s.drafts is not None for s in ok),
        "steps": sum(s.drafts.steps for s in ok if s.drafts),
        "accepted": sum(s.drafts.accepted for s in ok if s.drafts),
        "tok_s": tokens / seconds,
        "e2el_ms": 1000 * statistics.fmean(s.end - s.start for s in ok),
        "cpu_s_per_1000_tokens": 1000 * used / tokens,
    }


def cpu_seconds(server: Server) -> float:
    """Return the CPU seconds that the server's processes have used."""
    total = 0.0
    for p in server.processes():
        try:
            times = p.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def alone(steps: int = 400) -> dict[str, float]:
    """Return what the levels add, in microseconds: median of seven turns."""
    from vllm.entrypoints.generate.base.protocol import SpeculativeDecodingMetrics
    from vllm.v1.metrics.stats import RequestSpecDecodeMetrics

    def counted(*, detailed: bool) -> Any:
        told = RequestSpecDecodeMetrics.new(POINT[N])
        for k in range(steps):
            told.observe(POINT[N], k % (POINT[N] + 1), detailed)
        return told

    def payload(told: Any) -> str:
        return str(SpeculativeDecodingMetrics(**told.to_dict()).model_dump_json(exclude_none=True))

    def read(text: str) -> object:
        return request_drafts({"speculative_decoding": orjson.loads(text)})

    def timed(what: Callable[[], object], each: int) -> float:
        turns = [timeit.timeit(what, timer=time.process_time, number=each) / each for _ in range(7)]
        return 1e6 * statistics.median(turns)

    out: dict[str, float] = {}
    for level in LEVELS[1:]:
        told = counted(detailed=level == "detailed")
        text = payload(told)
        out[f"{level}: count a step"] = (
            timed(partial(counted, detailed=level == "detailed"), 200) / steps
        )
        out[f"{level}: write a request of {steps} steps"] = timed(partial(payload, told), 200)
        out[f"{level}: read it in the client"] = timed(partial(read, text), 200)
        out[f"{level}: bytes of it"] = float(len(text))
    return out


def alone_elsewhere(info: VllmInfo) -> dict[str, float]:
    """Return :func:`alone` of a process that can import vLLM, as its server can."""
    env = {**os.environ, **hiding(info.hidden, os.environ)}
    done = subprocess.run(
        [info.python or sys.executable, __file__, "--alone"],
        env=env,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratio(rows: Sequence[dict[str, Any]], key: str, level: str) -> dict[str, float]:
    """Return a level's mean over that of `none`, by pairs of launches, with a 95 % interval."""
    of = {x: [math.log(r[key]) for r in rows if r["level"] == x] for x in (level, "none")}
    differences = [a - b for a, b in zip(of[level], of["none"], strict=False)]  # of whole rounds
    if not differences:
        return {}
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return {"ratio": math.exp(mean)}
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return {
        "ratio": math.exp(mean),
        "low": math.exp(mean - half),
        "high": math.exp(mean + half),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="launches of each level")
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--most", type=int, default=10**6, help="launches of this call")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/data/acceptance_cost.json"))
    parser.add_argument("--alone", action="store_true", help="print the times of the code alone")
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(alone()))
        return
    loaded = load_bundled("demo-cpu")
    load = loaded.spec.workload.model_copy(
        update={"num_prompts": args.requests, "warmup_prompts": 2}
    )
    spec = loaded.spec.model_copy(update={"workload": load})
    info = probe(spec.server)
    rows: list[dict[str, Any]] = (
        json.loads(args.out.read_text())["launches"] if args.out.exists() else []
    )
    order = [x for i in range(args.rounds) for x in (LEVELS if i % 2 == 0 else LEVELS[::-1])]
    with tempfile.TemporaryDirectory(prefix="autotune-cost-") as folder:
        for level in order[len(rows) :][: args.most]:
            log = Path(folder, f"{len(rows)}.log")
            rows.append(measured(spec, loaded.base, info, level, log))
            print(json.dumps(rows[-1]), flush=True)
    found = {
        "command": f"python benchmarks/acceptance_cost.py --rounds {args.rounds} "
        f"--requests {args.requests}",
        "vllm": info.version,
        "machine": machine_line(describe_machine()),
        "launches": rows,
        "alone_us": alone_elsewhere(info) if len(rows) == len(order) else None,
        "over_none": {
            level: {k: ratio(rows, k, level) for k in ("tok_s", "e2el_ms", "cpu_s_per_1000_tokens")}
            for level in LEVELS[1:]
        },
    }
    print(json.dumps({k: found[k] for k in ("over_none", "alone_us")}, indent=2))
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
