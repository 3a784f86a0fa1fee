"""One point of a load sweep on one slot: launched, measured at each load, kept part by part.

The same runs in the driver of a sweep with one slot, and in the process of each of several slots,
where what is kept goes to the driver (:mod:`autotune.tuning.slot_worker`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.bench.workload import Workload
from autotune.engine.active_requests import Asked
from autotune.errors import TrialFailure
from autotune.results.read_load_map import PARTS, THROUGHPUT
from autotune.serving.interrupts import held_back
from autotune.storage.schema import LaunchRow
from autotune.study.schema import ServerSpec, StudySpec
from autotune.study.space import Point
from autotune.tuning.launcher import Launcher, LiveServer, no_prelaunch
from autotune.tuning.ledger import Ledger
from autotune.tuning.load_map_requests import Requests, closed_loop, part_sizes
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import At
from autotune.tuning.tools import Tools, real
from autotune.tuning.trial import (
    Outcome,
    TrialProgress,
    TrialRequests,
    attempts,
    drafts_note,
    quality_of,
    throttled_note,
)

# What the requests of a part are called in the database, by the client's phase.
_PHASES = {"measure": "{}", "warmup": "warm-up, {}", "fill": "fill, {}"}


@dataclass(frozen=True)
class SweepPoint:
    """What is launched: a value that any slot can take.

    Attributes:
        number: Id of the point.
        name: Name of its way to speculate, in texts.
        point: Its parameters.
        server: Server to launch, without the study's variables, which may be secrets; None: the
            study's own.
        asked: How many requests it should run at once, by concurrency.
        slot: Number of the slot that runs it.
    """

    kind: ClassVar[str] = "point"

    number: int
    name: str
    point: Point
    server: ServerSpec | None = None
    asked: Mapping[int, Asked | None] = dataclasses.field(default_factory=dict)
    slot: int = 0

    @property
    def words(self) -> str:
        """What it is, in texts."""
        return self.name

    def on_slot(self, slot: int) -> Self:
        """Return the same for another slot."""
        return dataclasses.replace(self, slot=slot)


class SweepLoads(Protocol):
    """Where the measured parts are kept (:class:`autotune.storage.load_maps.LoadMaps`)."""

    def add_load(
        self,
        launch_id: str,
        point: int,
        *,
        concurrency: int,
        part: int,
        phase: str,
        stats: ServerStats,
        values: Mapping[str, float],
        intervals: Mapping[str, tuple[float | None, float | None]],
        quality: Mapping[str, Any],
    ) -> None:
        """Keep one measured part."""


class SweepStore(Protocol):
    """The part of :class:`autotune.storage.store.Store` that a point writes to."""

    @property
    def requests(self) -> TrialRequests:
        """Requests of all launches."""

    @property
    def load_maps(self) -> SweepLoads:
        """Measured parts of all points."""


class SweepRunner:
    """Runs the points of one load sweep on one slot, and returns what came of each.

    Args:
        prepared: The study as the sweep launches it.
        requests: What each launch is sent.
        store: Where requests and measured parts are kept.
        ledger: Where launches are written down.
        launcher: Starts and ends the servers; the caller enters it.
        progress: Told of stages, requests and retries.
        missing: Returns load and part of a point that were not measured, in their order.
        rests: Seconds of the interference check before earlier launches on this machine.
        tools: What servers are measured with; None: this machine's.
    """

    def __init__(
        self,
        prepared: Prepared,
        requests: Requests,
        store: SweepStore,
        ledger: Ledger,
        launcher: Launcher,
        progress: TrialProgress,
        missing: Callable[[int], Sequence[tuple[int, int]]],
        *,
        rests: Sequence[float] = (),
        tools: Tools | None = None,
    ) -> None:
        self.spec = prepared.spec
        self._requests = requests
        self._store = store
        self._ledger = ledger
        self._launcher = launcher
        self.progress = progress
        self._missing = missing
        self._rests = [*rests]
        self._tools = real(tools)

    def run(
        self, point: SweepPoint, _ahead: Callable[[int], Sequence[Point]] = no_prelaunch
    ) -> Outcome:
        """Launch a point until every part is measured, or it has failed."""
        task = _Launching(self, point)
        return attempts(task, self._launcher, self._ledger, self._rests)

    def measure(self, live: LiveServer, of: SweepPoint, server: ServerSpec | None) -> None:
        """Warm a server up and measure the parts that are missing; keep each when it is whole."""
        at = At(of.number, of.slot)
        for i, (load, part) in enumerate(self._missing(of.number)):
            kept: list[Sample] = []
            measuring = self._tools.measuring(
                live.server,
                self._part_spec(load),
                (THROUGHPUT,),
                keep=kept.extend,
                progress=lambda done, total: self.progress.progress(at, done, total),
            )
            phase = f"load {load} part {part + 1}"
            try:
                if i == 0:
                    self.stage(of, "warming")
                    measuring.warm(self._requests.warmup)
                    live.clock.mark("warm")
                    live.event("warm")
                self.stage(of, f"measuring {load} at a time, part {part + 1}")
                result = measuring.measure(
                    self._workload(load, part),
                    live.rest,
                    whole=False,
                    until_steady=False,
                    asked=of.asked.get(load),
                )
            finally:
                named = [dataclasses.replace(x, phase=_PHASES[x.phase].format(phase)) for x in kept]
                with held_back():  # a second Ctrl-C must not lose them
                    self._store.requests.add(live.launch_id, named)
            used = server or self.spec.server
            if note := drafts_note(result.stats, result.requests, used, of.point, live.version):
                self.progress.message(f"{of.words}, {phase}: {note}", at)
            if note := throttled_note(result):
                self.progress.message(f"{of.words}, {phase}, is throttled: {note}", at)
            disturbed = self._tools.disturbed(result.machine, self._rests)
            self._store.load_maps.add_load(
                live.launch_id,
                of.number,
                concurrency=load,
                part=part,
                phase=phase,
                stats=result.stats,
                values=result.values,
                intervals={name: (x.low, x.high) for name, x in result.intervals.items()},
                quality=quality_of(result, disturbed=disturbed).to_json(),
            )
            live.event("measured")
        live.clock.mark("measured")
        self._rests.append(live.rest.kernel_s)

    def stage(self, of: SweepPoint, text: str) -> None:
        """Tell the user of a stage."""
        self.progress.stage(At(of.number, of.slot), f"{of.words}: {text}")

    def _workload(self, load: int, part: int) -> Workload:
        """Return what is sent in one part."""
        requests = self._requests.measured[load, part]
        lead = self._requests.lead[load, part]
        return Workload(tuple(lead), tuple(requests), (0.0,) * len(requests))

    def _part_spec(self, load: int) -> StudySpec:
        """Return the study with this load, measured until the whole of its parts is precise."""
        spec = self.spec
        measure = spec.measure.model_copy(
            update={
                "min_prompts": part_sizes(spec, load)[0],
                "precision": min(0.99, spec.measure.precision * math.sqrt(PARTS)),
            }
        )
        workload = closed_loop(spec.workload, load).model_copy(update={"replay": None})
        return spec.model_copy(update={"workload": workload, "measure": measure})


class _Launching:
    """A point as a task of :func:`autotune.tuning.trial.attempts`."""

    def __init__(self, runner: SweepRunner, of: SweepPoint) -> None:
        self._runner = runner
        self._of = of
        self.number = of.number
        self.point = of.point
        env = runner.spec.server.env
        self.server = None if of.server is None else of.server.model_copy(update={"env": env})

    def log(self, attempt: int) -> str:
        return f"map-{self.number:04d}-{attempt}.log"

    def stage(self, text: str) -> None:
        self._runner.stage(self._of, text)

    def measure(self, live: LiveServer) -> None:
        self._runner.measure(live, self._of, self.server)

    def failed(self, failure: TrialFailure, *, retried: bool) -> None:
        again = "; retrying once" if retried else ""
        self._runner.progress.message(
            f"{self._of.words} failed: {failure.kind}: {failure.reason}{again}",
            At(self._of.number, self._of.slot),
        )

    def why_again(self, measured: Sequence[LaunchRow]) -> str | None:
        """Return None: its parts are kept one by one, so no launch is measured again."""

    def repeated(self, why: str) -> None:
        """Do nothing: see :meth:`why_again`."""
