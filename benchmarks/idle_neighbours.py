"""Does a measured server notice others that idle beside it, as `server.ahead` makes them do?

    python benchmarks/idle_neighbours.py STUDY.yaml --out FILE.json [--neighbours 3] [--rounds 8]

One server is measured all the time; the others are started and stopped between the measurements,
never during one. Each round measures it twice with the same requests, alone and beside the idle
ones, in turns (alone, beside; beside, alone), so that what drifts hits both alike. Told is the
ratio beside/alone of tok/s and p95 latency with a 95 % interval (Student's t of the logarithms of
the rounds' ratios), and how much of the CPU the idle ones used meanwhile.

The study needs what `server.ahead` needs: on a GPU, a KV cache of fixed size.
"""

from __future__ import annotations

import json
import math
import sys
import time
import uuid
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from trial_cost import interval

from autotune.bench.objectives import study_objectives
from autotune.bench.sample import Sample
from autotune.bench.sending import send
from autotune.bench.server_metrics import ServerStats, difference, scrape
from autotune.bench.workload import Request, build_workload
from autotune.engine.command import free_port, plan_launch
from autotune.engine.probe import VllmInfo, probe
from autotune.errors import AutotuneError
from autotune.serving.machine import describe_machine
from autotune.serving.resolve import model_resolver
from autotune.serving.server import Server
from autotune.serving.warm_start import WarmStart
from autotune.stats import Measurement
from autotune.study.files import LoadedStudy, load_study
from autotune.study.space import MNBT, N, Point
from autotune.study.workload import WorkloadSpec
from objectives import Objective


class Machine:
    """Starts servers of one study, and ends them."""

    def __init__(self, study: LoadedStudy, info: VllmInfo, logs: Path, ends: ExitStack) -> None:
        self.study = study
        self.info = info
        self.logs = logs
        self.warm = ends.enter_context(WarmStart(study.spec.server, info, logs / "fork-server.log"))

    def started(self, point: Point, count: int, ends: ExitStack) -> list[Server]:
        """Healthy servers of a point that were started together; they end with ``ends``."""
        return started_together([(self, point)] * count, ends)

    def begun(self, point: Point, ends: ExitStack) -> Server:
        """A server of a point that is starting; it ends with ``ends``."""
        launch_id = uuid.uuid4().hex
        plan = plan_launch(
            self.study.spec.server,
            point,
            self.info,
            port=free_port(),
            launch_id=launch_id,
            resolve=model_resolver(self.study, self.info),
        )
        server = Server(
            plan,
            launch_id=launch_id,
            log_path=self.logs / f"{launch_id[:8]}.log",
            server=self.study.spec.server,
            info=self.info,
            warm=self.warm,
        )
        ends.callback(server.stop, last=False)  # others hold their memory meanwhile
        server.start()
        return server


def started_together(starts: Sequence[tuple[Machine, Point]], ends: ExitStack) -> list[Server]:
    """Healthy servers of points that were started together; they end with ``ends``."""
    servers = [machine.begun(point, ends) for machine, point in starts]
    for server in servers:
        server.wait_ready(lambda _seconds: None)
    return servers


def objectives(study: LoadedStudy) -> list[Objective]:
    """Those of the study that a client can tell."""
    return [o for o in study_objectives(study) if not o.needs_energy]


def cpu_seconds(servers: Sequence[Server]) -> float:
    times = [p.cpu_times() for x in servers for p in x.processes()]
    return sum(t.user + t.system for t in times)


def phase(study: LoadedStudy, server: Server, requests: Sequence[Request]) -> dict[str, float]:
    """What one measurement gives, by objective."""
    none = [0.0] * len(requests)
    sent = send(server, study.spec.workload, requests, none, "measure", lambda _: None)
    load = study.spec.workload  # its first and last requests ran while places were empty
    m = Measurement.of(sent, load.latency_origin, load.places, busy=False)
    return {o.name: o.value(m) for o in objectives(study)}


def served(server: Server, load: WorkloadSpec, base: Path) -> tuple[Sequence[Sample], ServerStats]:
    """Warm a server up, and send it the load, whole: what came of it, and what was counted."""
    work = build_workload(load, base)
    send(server, load, work.warmup, [0.0] * len(work.warmup), "warmup", lambda _: None)
    before = scrape(server.plan.base_url, server.plan.api_key)
    sent = send(server, load, work.measured, work.arrivals, "measure", lambda _: None)
    return sent, difference(before, scrape(server.plan.base_url, server.plan.api_key))


def ratio(rounds: Sequence[dict[str, Any]], over: str, under: str, name: str) -> dict[str, float]:
    """over/under of one objective, of what each round measured twice, with a 95 % interval."""
    logs = [math.log(r[over][name] / r[under][name]) for r in rounds]
    return dict(zip(("ratio", "low", "high"), map(math.exp, interval(logs)), strict=True))


def measured(args: Namespace) -> dict[str, Any]:
    study = load_study(args.study)
    info = probe(study.spec.server)
    load = study.spec.workload.model_copy(update={"num_prompts": args.requests})
    workload = build_workload(load, study.base)
    logs = args.out.parent / f"{args.out.stem}-logs"
    point: Point = {N: args.n, MNBT: args.mnbt}
    rounds: list[dict[str, Any]] = []
    with ExitStack() as ends:
        machine = Machine(study, info, logs, ends)
        (server,) = machine.started(point, 1, ends)
        requests = workload.measured
        for part in (workload.warmup, requests):
            send(server, load, part, [0.0] * len(part), "warmup", lambda _: None)
        for i in range(args.rounds):
            found: dict[str, Any] = {}
            for which in ("alone", "beside")[:: 1 if i % 2 == 0 else -1]:
                with ExitStack() as idle_ends:
                    count = args.neighbours if which == "beside" else 0
                    idle = machine.started(point, count, idle_ends)
                    send(server, load, requests[:2], [0.0] * 2, "warmup", lambda _: None)
                    used, begun = cpu_seconds(idle), time.monotonic()
                    found[which] = phase(study, server, requests)
                    seconds = time.monotonic() - begun
                    if idle:
                        found["idle_cores"] = (cpu_seconds(idle) - used) / seconds
            rounds.append(found)
            print(i + 1, json.dumps(found), flush=True)
    return {
        "study": study.spec.name,
        "point": point,
        "neighbours": args.neighbours,
        "requests": args.requests,
        "concurrency": load.max_concurrency,
        "vllm": info.version,
        "machine": describe_machine(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "rounds": rounds,
        "beside_over_alone": {
            o.name: ratio(rounds, "beside", "alone", o.name) for o in objectives(study)
        },
        "idle_cores": float(np.mean([r["idle_cores"] for r in rounds])),
    }


def options(doc: str, *, n: int, mnbt: int, rounds: int = 8, requests: int = 24) -> ArgumentParser:
    """The options of a benchmark that measures one server of a study in rounds."""
    parser = ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("study", help="a study file, or the name of a bundled study")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--n", type=int, default=n)
    parser.add_argument("--mnbt", type=int, default=mnbt)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--requests", type=int, default=requests)
    return parser


def written(measured: Callable[[Namespace], dict[str, Any]], args: Namespace) -> dict[str, Any]:
    """What was measured, which the JSON file has then; one line if the product refuses."""
    found = or_one_line(measured, args)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def shown_or_measured(
    parser: ArgumentParser, measured: Callable[[Namespace], dict[str, Any]]
) -> dict[str, Any]:
    """What `--show` has, or what is measured of STUDY into `--out`; one line if refused."""
    parser.add_argument("study", nargs="?", help="a study file, or the name of a bundled study")
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--show", type=Path, metavar="FILE")
    parser.add_argument("--most", type=int, default=10**6, help="launches of this call")
    args = parser.parse_args()
    if args.show is not None:
        return dict(json.loads(args.show.read_text()))
    if args.study is None or args.out is None:
        parser.error("needs STUDY and --out, or --show")
    return or_one_line(measured, args)


def or_one_line(measured: Callable[[Namespace], dict[str, Any]], args: Namespace) -> dict[str, Any]:
    """What was measured; one line if the product refuses."""
    try:
        return measured(args)
    except AutotuneError as e:
        print(e, file=sys.stderr)
        raise SystemExit(e.exit_code) from None


def main() -> None:
    parser = options(__doc__, n=7, mnbt=8192)
    parser.add_argument("--neighbours", type=int, default=3)
    args = parser.parse_args()
    if min(args.neighbours, args.rounds - 1, args.requests - 1) < 1:
        parser.error("--neighbours must be 1 or more, --rounds and --requests 2 or more")
    found = written(measured, args)
    for name, x in found["beside_over_alone"].items():
        print(f"{name}: {x['ratio']:.3f} [{x['low']:.3f}, {x['high']:.3f}]")
    print(f"the idle ones used {found['idle_cores']:.2f} cores together")


if __name__ == "__main__":
    main()
