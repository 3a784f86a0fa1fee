"""Does a measured server notice that another slot's server launches, or serves, at the same time?

    python benchmarks/launching_neighbours.py STUDY.yaml --out FILE.json [--rounds 4]

This host is split into two slots, as `autotune run --parallel 2` splits it. The server of the first
one is measured all the time with the same requests. Each round measures it three times: alone;
while a server is launched in the other slot, again and again, as the study launches it (warm, or
with all imports under `server.launch: cold`); and while one serves the same requests there. The
order turns from round to round, so that what drifts affects all equally. The result has the ratios
launching/alone, serving/alone and launching/serving of tok/s and p95 latency with 95 % intervals
(Student's t of the logarithms of the rounds' ratios).
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

from idle_neighbours import Machine, objectives, options, phase, ratio, written

from autotune.bench.sending import send
from autotune.bench.workload import Workload, build_workload
from autotune.engine.probe import probe
from autotune.serving.machine import describe_machine
from autotune.serving.server import Server
from autotune.serving.slots import Slot, cores_of_slots, slot_gpus
from autotune.study.files import LoadedStudy, load_study
from autotune.study.space import MNBT, N, Point
from autotune.tuning.slots import slot_environment

SITUATIONS = ("alone", "launching", "serving")
RATIOS = (("launching", "alone"), ("serving", "alone"), ("launching", "serving"))


def two_slots() -> tuple[Slot, Slot]:
    """Two slots of this host: a GPU each, or half of the cores."""
    gpus = slot_gpus()
    groups = [(gpu,) for gpu in gpus[:2]] if gpus else [(), ()]
    if len(groups) < 2:
        raise SystemExit("two slots need two GPUs, or a host without")
    first, second = cores_of_slots(sorted(os.sched_getaffinity(0)), groups)
    return Slot(0, 2, first, groups[0]), Slot(1, 2, second, groups[1])


@contextmanager
def bound_to(slot: Slot) -> Iterator[None]:
    """Let this thread, and what it starts, run on a slot's cores."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, slot.cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class Neighbour:
    """The other slot, which does something until it is told to end.

    Args:
        does: Is called again and again.
    """

    def __init__(self, does: Callable[[], None]) -> None:
        self._does = does
        self._over = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self.times = 0

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._does()
                self.times += 1
        except BaseException as e:  # noqa: BLE001 – raised where the neighbour is left
            self._failed = e


class Bench:
    """Two slots, and a server in the first one."""

    def __init__(self, args: argparse.Namespace, ends: ExitStack) -> None:
        self.study: LoadedStudy = load_study(args.study)
        self.info = probe(self.study.spec.server)
        load = {"num_prompts": args.requests, "warmup_prompts": args.warmup}
        self.load = self.study.spec.workload.model_copy(update=load)
        self.work: Workload = build_workload(self.load, self.study.base)
        self.point: Point = {N: args.n, MNBT: args.mnbt}
        self.slots = two_slots()
        logs = args.out.parent / f"{args.out.stem}-logs"
        self.machines = [  # each with what its warm starts are forked from, on the slot's cores
            Machine(self.study, self.info, logs / f"slot-{slot.number}", ends)
            for slot in self.slots
        ]
        with bound_to(self.slots[0]):
            self.server = self.started(0, ends)
            self.warm_up(self.server)

    def started(self, slot: int, ends: ExitStack) -> Server:
        """A healthy server of a slot, whose cores this thread is bound to."""
        names = slot_environment(self.slots[slot], self.info.version)
        os.environ.update(names)  # nothing else is started meanwhile
        try:
            (server,) = self.machines[slot].started(self.point, 1, ends)
        finally:
            for name in names:
                del os.environ[name]
        return server

    def warm_up(self, server: Server) -> None:
        none = [0.0] * len(self.work.warmup)
        send(server, self.load, self.work.warmup, none, "warmup", lambda _: None)

    def launch(self) -> None:
        """Bring a server of the second slot up, with one request, and end it."""
        with bound_to(self.slots[1]), ExitStack() as ends:
            server = self.started(1, ends)
            send(server, self.load, self.work.warmup[:1], [0.0], "warmup", lambda _: None)

    def measure(self) -> dict[str, float]:
        with bound_to(self.slots[0]):
            return phase(self.study, self.server, self.work.measured)

    def situation(self, which: str) -> dict[str, Any]:
        """What a measurement in one situation gives, and how often the neighbour did its part."""
        if which == "alone":
            return self.measure()
        with ExitStack() as ends:
            does = self.launch
            if which == "serving":
                with bound_to(self.slots[1]):
                    other = self.started(1, ends)
                    self.warm_up(other)

                def does() -> None:
                    with bound_to(self.slots[1]):
                        phase(self.study, other, self.work.measured)

            with Neighbour(does) as neighbour:
                found = self.measure()
            return {**found, "times": neighbour.times}


def measured(args: argparse.Namespace) -> dict[str, Any]:
    rounds: list[dict[str, Any]] = []
    with ExitStack() as ends:
        bench = Bench(args, ends)
        for i in range(args.rounds):
            order = [SITUATIONS[(i + k) % 3] for k in range(3)][:: 1 if i % 2 == 0 else -1]
            rounds.append({which: bench.situation(which) for which in order})
            print(i + 1, json.dumps(rounds[-1]), flush=True)
    names = [o.name for o in objectives(bench.study)]
    return {
        "study": bench.study.spec.name,
        "point": bench.point,
        "requests": args.requests,
        "concurrency": bench.load.max_concurrency,
        "vllm": bench.info.version,
        "machine": describe_machine(),
        "slots": [slot.stored() for slot in bench.slots],
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "rounds": rounds,
        "ratios": {
            f"{over}/{under}": {name: ratio(rounds, over, under, name) for name in names}
            for over, under in RATIOS
        },
    }


def main() -> None:
    parser = options(__doc__, n=0, mnbt=2048, rounds=4, requests=16)
    parser.add_argument("--warmup", type=int, default=4)
    args = parser.parse_args()
    if min(args.rounds, args.requests, args.warmup) < 2:
        parser.error("--rounds, --requests and --warmup must be 2 or more")
    found = written(measured, args)
    for name, by_objective in found["ratios"].items():
        for objective, x in by_objective.items():
            print(f"{name} {objective}: {x['ratio']:.3f} [{x['low']:.3f}, {x['high']:.3f}]")


if __name__ == "__main__":
    main()
