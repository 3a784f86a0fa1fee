"""Measures a whole grid of launches, several servers side by side, for replays without a server.

    python benchmarks/measure_grid.py STUDY.yaml --out DIR --n 0-15 --mnbt 64,256,1024 \\
        --concurrency 1,2,4 --requests 36,48,64 --workers 8
    python benchmarks/measure_grid.py STUDY.yaml --out DIR --assemble

Every point (n, MNBT) gets one real server, through autotune's own modules: launched, warmed up,
measured at every concurrency, stopped. Points come in random order, and the order of concurrencies
rotates from point to point, so that no drift of the machine falls on one of them. All requests of a
phase are sent, none ends early. What was measured is kept at once in DIR/points; the same command
goes on where an interrupted one ended, and failed launches are written down there too, with kind
and reason. At the end, or with ``--assemble``, DIR gets one archive for each concurrency, which
`benchmarks/grid.py` describes and reads.

Every phase sends the study's requests in their order, from the first one, and begins again after
the last: so all points and all concurrencies see the same prompts. Where that repeats prompts (at
several concurrencies, or with more requests than the study has), the study must set
``enable-prefix-caching: false``.

Side by side without being in each other's way: each of the ``--workers`` has cores of its own, for
its server and its client. With ``--gpus 0,1`` there is one worker for each GPU; it starts
``--servers-per-gpu`` servers together, waits until none is starting any more, and measures one
after the other while the rest are idle.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from autotune.bench.objectives import study_objectives
from autotune.bench.sending import send
from autotune.bench.server_metrics import difference, scrape
from autotune.bench.workload import Request, build_workload
from autotune.engine.command import free_port, plan_launch
from autotune.engine.probe import VllmInfo, probe
from autotune.engine.rules import why_infeasible
from autotune.errors import (
    AutotuneError,
    FailureKind,
    MeasureError,
    StopError,
    TrialFailure,
    UserError,
)
from autotune.serving.machine import describe_machine
from autotune.serving.server import Server
from autotune.serving.supervisor import PR_SET_PDEATHSIG
from autotune.serving.warm_start import WarmStart
from autotune.stats import Measurement
from autotune.study.files import LoadedStudy, load_study, parse_study, text_without_secrets
from autotune.study.models import resolve_model
from autotune.study.space import MNBT, N, Value

sys.path.insert(0, str(Path(__file__).parent))
from grid import Grid, Launch, describe, load, save

STOP_S = 90.0  # for a worker to end all its servers


@dataclass(frozen=True)
class Job:
    """One point.

    Attributes:
        place: In the random order, from 0.
        point: n and MNBT.
        concurrencies: To measure, in this order.
    """

    place: int
    point: dict[str, Value]
    concurrencies: tuple[int, ...]

    @property
    def stem(self) -> str:
        return f"n{self.point[N]:02d}-mnbt{self.point[MNBT]}"


@dataclass(frozen=True)
class Plan:
    """What all workers share.

    Attributes:
        studies: By concurrency: the study with that ``workload.max_concurrency``.
        requests: By concurrency: how many are measured.
        warmup: Requests before the first phase of a launch.
        info: The vLLM of the study.
        jobs: All points that are still to be measured.
        out: The folder.
        end: No server is started after this reading of the monotonic clock.
        servers: Started together by one worker.
    """

    studies: dict[int, LoadedStudy]
    requests: dict[int, int]
    warmup: int
    info: VllmInfo
    jobs: tuple[Job, ...]
    out: Path
    end: float
    servers: int

    def file(self, job: Job, concurrency: int) -> Path:
        return self.out / "points" / f"{job.stem}-c{concurrency}.npz"

    def failure_file(self, job: Job) -> Path:
        return self.out / "points" / f"{job.stem}.json"

    def is_done(self, job: Job, concurrency: int) -> bool:
        """True if it was measured, or failed in a way that it would fail again."""
        if self.file(job, concurrency).exists():
            return True
        failed = self.failure_file(job)
        if not failed.exists():
            return False
        return not FailureKind(json.loads(failed.read_text())["kind"]).transient


@dataclass(frozen=True)
class Started:
    """A server under way."""

    job: Job
    server: Server
    planned_at: float


class Worker:
    """One process: starts servers on its own cores, measures and stops them."""

    def __init__(self, plan: Plan, taken: Any) -> None:
        self.plan = plan
        self.taken = taken  # how many jobs are given away; shared by all workers
        self.version: str | None = None  # what the servers answer
        self.machine = describe_machine()  # with the cores of this worker only
        some = next(iter(plan.studies.values()))
        self.workload = build_workload(some.spec.workload, some.base)
        self.objectives = study_objectives(some)  # the same at every concurrency
        log = plan.out / "logs" / f"fork-server-{os.getpid()}.log"
        self.warm = WarmStart(some.spec.server, plan.info, log)

    def run(self) -> None:
        with self.warm:
            self.run_jobs()

    def run_jobs(self) -> None:
        while jobs := list(self.take()):
            started: list[Started] = []
            try:
                for job in jobs:
                    self.launch(job, started)
                ready = [x for x in started if self.wait(x)]  # all of them, before any is measured
                for x in ready:
                    self.measure(x)
            finally:
                stuck = stop_all([x.server for x in started])
            if stuck:
                raise SystemExit(1)

    def take(self) -> Iterator[Job]:
        for _ in range(self.plan.servers):
            with self.taken.get_lock():
                if self.taken.value == len(self.plan.jobs) or time.monotonic() > self.plan.end:
                    return
                job = self.plan.jobs[self.taken.value]
                self.taken.value += 1
            yield job

    def launch(self, job: Job, started: list[Started]) -> None:
        """Starts a server and adds it to ``started``, before it can fail."""
        study = self.plan.studies[job.concurrencies[0]]
        launch_id = uuid.uuid4().hex
        launch = plan_launch(
            study.spec.server,
            job.point,
            self.plan.info,
            port=free_port(),
            launch_id=launch_id,
            resolve=lambda ref: resolve_model(ref, study.base),
        )
        server = Server(
            launch,
            launch_id=launch_id,
            log_path=self.plan.out / "logs" / f"{job.stem}.log",
            server=study.spec.server,
            info=self.plan.info,
            warm=self.warm,
        )
        started.append(x := Started(job, server, time.time()))
        try:
            server.start()
        except TrialFailure as e:
            self.failed(x, e)

    def wait(self, x: Started) -> bool:
        """Waits until it answers; False if it failed."""
        if self.plan.failure_file(x.job).exists():  # at its start
            return False
        try:
            self.version = x.server.wait_ready(lambda _seconds: None)
        except TrialFailure as e:
            self.failed(x, e)
            return False
        return True

    def measure(self, x: Started) -> None:
        """One launch at every concurrency; what is measured is kept, whatever comes after it."""
        ready = time.time()
        told = []
        try:
            for i, concurrency in enumerate(x.job.concurrencies):
                # each phase warms up at its own concurrency; the first one also a new server
                warmup = 2 * concurrency + (0 if i else self.plan.warmup)
                launch = self.phase(x, concurrency, warmup)
                self.keep(x.job, concurrency, launch)
                values = (f"{launch.values[o.name]:.4g} {o.unit}" for o in self.objectives)
                told.append(f"c={concurrency} {', '.join(values)}")
        except TrialFailure as e:
            self.failed(x, e)
        if told:
            seconds = f"{ready - x.planned_at:.0f} + {time.time() - ready:.0f} s"
            self.say(x.job, f"{seconds}: {'; '.join(told)}")

    def phase(self, x: Started, concurrency: int, warmup: int) -> Launch:
        """Warm-up and measurement at one concurrency.

        Raises:
            TrialFailure: the server died, a request failed, or an objective cannot be computed.
        """
        spec = self.plan.studies[concurrency].spec
        plan = x.server.plan

        def put(requests: Sequence[Request], phase: str) -> Any:
            arrivals = [0.0] * len(requests)
            return send(x.server, spec.workload, requests, arrivals, phase, lambda _: None)

        put(cycled(self.workload.warmup, warmup), "warmup")
        before = scrape(plan.base_url, plan.api_key)
        samples = put(cycled(self.workload.measured, self.plan.requests[concurrency]), "measure")
        stats = difference(before, scrape(plan.base_url, plan.api_key))
        m = Measurement.of(samples, spec.workload.latency_origin)
        try:  # without those that ran while the batch filled and emptied
            full = Measurement.of(samples, m.latency_from, spec.workload.places, busy=False)
            values = {o.name: o.value(full) for o in self.objectives}
        except ValueError as e:
            raise MeasureError(FailureKind.REQUESTS, str(e)) from e
        order = sorted(samples, key=lambda s: s.start)
        return Launch(
            trial=0,  # numbered when all are put together
            confirms=None,
            params=x.job.point,
            planned_at=x.planned_at,
            values=values,
            stats=asdict(stats),
            start=m.start,
            ttft=m.ttft,
            e2el=m.end - m.start,
            index=np.array([s.index for s in order], dtype=np.int64),
            prompt_tokens=m.prompt_tokens,
            output_tokens=m.output_tokens,
            chunks=np.array([len(c) for c in m.chunks], dtype=np.int64),
        )

    def keep(self, job: Job, concurrency: int, launch: Launch) -> None:
        study = self.plan.studies[concurrency]
        text = text_without_secrets(study)
        grid = Grid(study.spec.name, text, self.machine, self.version, (launch,), concurrency)
        path = self.plan.file(job, concurrency)
        draft = path.with_name(f".{path.name}")
        save(grid, draft)
        draft.replace(path)

    def failed(self, x: Started, failure: TrialFailure) -> None:
        failure = x.server.plan.masked_failure(failure)
        note(self.plan, x.job, failure, x.planned_at)
        self.say(x.job, f"failed: {failure}")

    def say(self, job: Job, words: str) -> None:
        at = f"{job.place + 1}/{len(self.plan.jobs)}"
        print(f"{at:>7}  n={job.point[N]} MNBT={job.point[MNBT]}  {words}", flush=True)


def note(plan: Plan, job: Job, failure: TrialFailure, planned_at: float) -> None:
    """Writes down why a point has no numbers."""
    body = {
        "params": job.point,
        "planned_at": planned_at,
        "kind": str(failure.kind),
        "reason": failure.reason,
        "evidence": failure.evidence,
    }
    plan.failure_file(job).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def stop_all(servers: Sequence[Server]) -> bool:
    """Ends all servers at the same time; True if a process of them is left.

    The proof that a GPU's memory came back fails for a server whose neighbours still hold theirs,
    where the driver does not tell who holds what; so they end together.
    """
    if not servers:
        return False

    def stop(server: Server) -> bool:
        try:
            server.stop()
        except StopError as e:
            print(f"         {e}", file=sys.stderr, flush=True)
            return bool(server.processes())
        return False

    with ThreadPoolExecutor(len(servers)) as pool:
        return any(list(pool.map(stop, servers)))


def cycled(requests: Sequence[Request], count: int) -> list[Request]:
    """``count`` requests in their order, from the first again after the last."""
    if not requests and count:
        raise UserError("workload.warmup_prompts: must not be 0, each phase needs a warm-up")
    return [replace(requests[i % len(requests)], index=i) for i in range(count)]


def work(plan: Plan, taken: Any, cores: Sequence[int], gpu: str | None) -> None:
    """What a worker's process runs."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # so do the supervisors
    signal.signal(signal.SIGTERM, _interrupt)
    os.sched_setaffinity(0, cores)  # threads and children inherit it
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    else:
        # vLLM's own choice of cores looks at the machine's NUMA nodes, and can come out empty for
        # a few cores; the last one, with its sibling, is left to the API server and the client
        whole = [c for c in cores if c == min(set(siblings(c)) & set(cores))]
        ours = ",".join(map(str, whole[:-1] or whole))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ours)
    try:
        Worker(plan, taken).run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except AutotuneError as e:
        print(e, file=sys.stderr, flush=True)
        raise SystemExit(e.exit_code) from None


def siblings(cpu: int) -> list[int]:
    """The CPUs that are threads of the same core, itself included."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return whole_numbers(path.read_text().strip())
    except OSError:  # the machine does not say
        return [cpu]


def _interrupt(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)  # the one that is held back in bad moments


def run(plan: Plan, cores: Sequence[Sequence[int]], gpus: Sequence[str | None]) -> bool:
    """Runs the workers to their end; True if all ended well."""
    context = multiprocessing.get_context("spawn")
    taken = context.Value("i", 0)
    workers: list[BaseProcess] = [
        context.Process(target=work, args=(plan, taken, mine, gpu))
        for mine, gpu in zip(cores, gpus, strict=True)
    ]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        print("interrupted: ending the servers", file=sys.stderr, flush=True)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            if worker.pid is not None:
                worker.join(STOP_S)
    return all(worker.exitcode == 0 for worker in workers)


def at_concurrency(loaded: LoadedStudy, concurrency: int, output_len: int | None) -> LoadedStudy:
    """The study as it is measured at one concurrency."""
    raw = yaml.safe_load(loaded.text)
    raw["workload"]["max_concurrency"] = concurrency
    if output_len is not None:
        raw["workload"]["output_len"] = output_len
    text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    return parse_study(text, loaded.path)


def assemble(out: Path, concurrencies: Sequence[int]) -> bool:
    """One archive for each concurrency from the points; True if there is any."""
    found = False
    for c in concurrencies:
        grids = [load(path) for path in (out / "points").glob(f"n*-c{c}.npz")]
        if not grids:
            continue
        found = True
        launches = sorted((x for g in grids for x in g.launches), key=lambda x: x.planned_at)
        numbered = tuple(replace(x, trial=i) for i, x in enumerate(launches))
        grid = replace(grids[0], launches=numbered)
        path = out / f"{grid.study}-c{c}.npz"
        save(grid, path)
        print(f"{describe(grid)}: {path}, {path.stat().st_size / 1000:.0f} kB")
    for path in sorted((out / "points").glob("n*.json")):
        failure = json.loads(path.read_text())
        print(f"left out: {path.stem}: {failure['kind']}: {failure['reason']}")
    return found


def whole_numbers(text: str) -> list[int]:
    """``0-15`` or ``64,256,1024``, or both."""
    out: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        out += range(int(low), int(high) + 1) if dash else [int(low)]
    if len(set(out)) < len(out) or not out:
        raise ValueError(text)
    return out


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="a study file, or the name of a bundled study")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--assemble", action="store_true", help="only put together what is there")
    parser.add_argument("--n", type=whole_numbers, default="0-15", help="values of n")
    parser.add_argument("--mnbt", type=whole_numbers, default="64,256,1024", help="values of MNBT")
    parser.add_argument("--concurrency", type=whole_numbers, default="1,2,4")
    # counts may be equal, unlike the others
    parser.add_argument("--requests", default="36,48,64", help="measured, for each concurrency")
    parser.add_argument("--warmup", type=int, default=8, help="requests to a new server")
    parser.add_argument("--output-len", type=int, help="instead of the study's")
    parser.add_argument("--workers", type=int, default=1, help="without --gpus")
    parser.add_argument("--cores-per-server", type=int, default=2)
    parser.add_argument("--gpus", help="such as 0,1: one worker for each")
    parser.add_argument("--servers-per-gpu", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the order of points")
    parser.add_argument("--deadline", type=float, default=float("inf"), metavar="SECONDS")
    args = parser.parse_args()
    try:
        args.requests = [int(x) for x in args.requests.split(",")]
    except ValueError:
        parser.error(f"--requests: {args.requests!r} is no list of whole numbers")
    if len(args.requests) != len(args.concurrency):
        parser.error("--requests: needs as many numbers as --concurrency")
    if min(args.requests + args.concurrency) < 1:
        parser.error("--requests, --concurrency: must be 1 or more")
    if args.gpus is None and args.servers_per_gpu != 1:
        parser.error("--servers-per-gpu: needs --gpus")
    args.gpus = args.gpus.split(",") if args.gpus else [None] * args.workers
    per_worker = args.cores_per_server * args.servers_per_gpu
    cores = sorted(os.sched_getaffinity(0), key=lambda c: (min(siblings(c)), c))
    if per_worker * len(args.gpus) > len(cores):
        parser.error(
            f"{len(args.gpus)} workers × {per_worker} cores are more than the {len(cores)} there "
            "are: lower --workers, --servers-per-gpu or --cores-per-server"
        )
    args.cores = [cores[i * per_worker :][:per_worker] for i in range(len(args.gpus))]
    return args


def planned(args: argparse.Namespace) -> Plan:
    """What is still to do; infeasible points are written down as such.

    Raises:
        UserError: the study cannot be used.
    """
    loaded = load_study(args.study)
    spec = loaded.spec
    for name in (N, MNBT):
        if name not in spec.space:
            raise UserError(f"{loaded.path}: space.{name}: is missing; it is what is measured")
    repeats = len(args.concurrency) > 1 or max(args.requests) > spec.workload.num_prompts
    if repeats and spec.server.flags.get("enable_prefix_caching") is not False:
        raise UserError(
            f"{loaded.path}: server.flags.enable-prefix-caching: must be false, because prompts "
            "are repeated"
        )
    if any(o.needs_energy for o in study_objectives(loaded)):
        raise UserError(f"{loaded.path}: objectives: energy is not measured here")
    concurrencies = args.concurrency
    plan = Plan(
        studies={c: at_concurrency(loaded, c, args.output_len) for c in concurrencies},
        requests=dict(zip(concurrencies, args.requests, strict=True)),
        warmup=args.warmup,
        info=probe(spec.server),
        jobs=(),
        out=args.out,
        end=time.monotonic() + args.deadline,
        servers=args.servers_per_gpu,
    )
    (args.out / "points").mkdir(parents=True, exist_ok=True)
    points: list[dict[str, Value]] = [{N: n, MNBT: m} for n in args.n for m in args.mnbt]
    random.Random(args.seed).shuffle(points)
    jobs: list[Job] = []
    for i, point in enumerate(points):
        turn = i % len(concurrencies)
        job = Job(len(jobs), point, (*concurrencies[turn:], *concurrencies[:turn]))
        why = why_infeasible(spec.settings(point), plan.info.version)
        if why is not None:
            note(plan, job, TrialFailure(FailureKind.INFEASIBLE, why), time.time())
            continue
        left = tuple(c for c in job.concurrencies if not plan.is_done(job, c))
        if left:
            plan.failure_file(job).unlink(missing_ok=True)
            jobs.append(replace(job, concurrencies=left))
    for ref in (spec.server.model, spec.server.speculative and spec.server.speculative.model):
        if ref and jobs:
            resolve_model(ref, loaded.base)  # the demo target is made once, not by every worker
    return replace(plan, jobs=tuple(jobs))


def main() -> None:
    args = parsed()
    well = True
    try:
        if not args.assemble:
            plan = planned(args)
            print(f"{len(plan.jobs)} points, {len(args.gpus)} workers", flush=True)
            well = run(plan, args.cores, args.gpus)
        found = assemble(args.out, args.concurrency)
    except AutotuneError as e:
        print(e, file=sys.stderr)
        raise SystemExit(e.exit_code) from None
    raise SystemExit(0 if well and found else 1)


if __name__ == "__main__":
    main()
