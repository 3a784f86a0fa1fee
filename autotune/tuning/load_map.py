"""Should I speculate at all? For each load the best n, and the load above which drafting loses.

`autotune map` launches one n after the other, n = 0 first, and measures each at every load; which n
is next is chosen from what was measured (:mod:`autotune.stats.crossover`). A load is a closed
loop: a fixed concurrency, independent of the rate of the study's own workload.

One launch serves all loads, each in two parts: 1 2 4 8 8 4 2 1. So a machine that grows faster or
slower affects all loads equally, and each part is a unit of resuming: it is in the database when
it is whole, and never measured again. A launch that failed gives no numbers, of no load.

Then other ways to speculate are launched (:mod:`autotune.tuning.load_map_choice`): a schedule of n
by batch size, adaptive verification, other arms of the study. A confirmation launches the best of
them and the best fixed n again, there and back (:mod:`autotune.stats.referee`).

A break-even map (:mod:`autotune.tuning.break_even`) is launched and measured in the same way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from autotune.bench.sample import Sample
from autotune.bench.workload import Workload
from autotune.errors import MachineError, TrialFailure
from autotune.results.load_map import LoadSweepView
from autotune.results.load_map_ways import MapWay, WayKind, way_of
from autotune.results.read_load_map import (
    PARTS,
    THROUGHPUT,
    comparable_loads,
    failure_of_point,
    load_sweep_view,
    rates_of,
    study_in,
)
from autotune.results.text import number, upper
from autotune.serving.interrupts import held_back
from autotune.serving.machine import machine_line
from autotune.storage.location import Database
from autotune.storage.names import load_sweep_name, output_folder
from autotune.storage.schema import LaunchRow, MapPointRow
from autotune.storage.store import Store
from autotune.study.differences import fingerprint
from autotune.study.schema import ServerSpec, StudySpec
from autotune.study.space import Value
from autotune.tuning.comparable import warn_of_variables
from autotune.tuning.launcher import Launcher, LiveServer
from autotune.tuning.ledger import StoredLedger
from autotune.tuning.load_map_choice import Chooser, Rivals
from autotune.tuning.load_map_requests import closed_loop, map_requests, part_sizes
from autotune.tuning.load_map_setting import Settled, settle
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import OUTSIDE, Progress
from autotune.tuning.recovery import end_orphans
from autotune.tuning.rehearsing import refuse_other_kind
from autotune.tuning.supervise import StopReason, run_on
from autotune.tuning.tools import Tools, real
from autotune.tuning.trial import MachineFailed, attempts, drafts_note, quality_of, throttled_note

DEFAULT_RIVALS = Rivals()
# What the requests of a part are called in the database, by the client's phase.
_PHASES = {"measure": "{}", "warmup": "warm-up, {}", "fill": "fill, {}"}


def map_study(
    prepared: Prepared,
    *,
    database: Database,
    loads: Sequence[int],
    launches: int,
    timeout_s: float | None,
    progress: Progress,
    rivals: Rivals = DEFAULT_RIVALS,
    tools: Tools | None = None,
) -> tuple[LoadSweepView, StopReason]:
    """Bring the map of a study to ``launches`` points, from wherever it is.

    Args:
        prepared: The study, checked.
        database: A file, or a database of a server; its tables are made if missing.
            It need not have the study.
        loads: Requests at a time, different ones.
        launches: Most fixed n that are launched, n = 0 included; other ways come on top.
        timeout_s: Seconds after which no launch begins.
        progress: Told of what happens.
        rivals: The other ways, and how often they are launched.
        tools: What servers are made and measured with; None: this machine's.

    Raises:
        UserError: nothing can be launched, or the database cannot be used.
        MachineError: the disk is full, the database was damaged or stayed locked.
        NothingUsable: there is no number of n = 0, so nothing to compare with.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP; the server is gone, and the map resumes.
    """
    used = real(tools)
    deadline = None if timeout_s is None else used.clock() + timeout_s

    def go(store: Store) -> tuple[LoadSweepView, StopReason]:
        name = prepared.spec.name

        def choose(sweep: Sweep, settled: Settled) -> Chooser:
            return Chooser(
                store,
                name,
                load_sweep_name(name),
                settled,
                sweep.loads,
                launches,
                rivals,
                lambda: view(sweep),
                progress.message,
            )

        def view(sweep: Sweep) -> LoadSweepView:
            return load_sweep_view(
                store, sweep.loaded, sweep.fingerprints, sweep.loads, sweep.setting, sweep.p.resolve
            )

        run = Sweep(
            prepared,
            store,
            sorted(loads),
            launched_as=load_sweep_name(name),
            kept_as=name,
            choose=choose,
            deadline=deadline,
            progress=progress,
            tools=used,
        )
        with run.launcher:
            reason = run.go()
        return view(run), reason

    return run_on(database, progress, go)


class PointChooser(Protocol):
    """Chooses what a sweep launches next, from what was measured."""

    def next(self) -> MapPointRow | None:
        """Return the point to launch; None: there is none left."""

    def points(self) -> Sequence[MapPointRow]:
        """Return the points so far, oldest first."""

    def missing(self, point: MapPointRow) -> list[tuple[int, int]]:
        """Return load and part that were not measured, in their order; none of a failed point."""

    def prepared_of(self, way: MapWay) -> Prepared:
        """Return the study as a way launches it."""

    def point_of(self, way: MapWay) -> dict[str, Value]:
        """Return the parameters of a way."""


class Sweep:
    """One run of launches that are each measured at every load, under the database's lock.

    Args:
        prepared: The study, checked.
        store: Database.
        loads: Concurrencies, ascending.
        launched_as: Name under which the launches are kept.
        kept_as: Name under which the points are kept.
        choose: Makes what chooses the points.
        deadline: Time after which no launch begins; None: no limit.
        progress: Told of what happens.
        tools: What servers are made and measured with.
    """

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        loads: Sequence[int],
        *,
        launched_as: str,
        kept_as: str,
        choose: Callable[[Sweep, Settled], PointChooser],
        deadline: float | None,
        progress: Progress,
        tools: Tools,
    ) -> None:
        self.store = store
        self.loads = loads
        self.deadline = deadline
        self.progress = progress
        self.tools = tools
        self.loaded = prepared.loaded  # as it is in the file
        self.name = prepared.spec.name
        self.launched_as = launched_as
        self.ledger = StoredLedger(store, self.launched_as)
        self.requests = map_requests(prepared, loads)
        now = fingerprint(self.loaded)
        self.fingerprints = store.fingerprints(self.loaded)
        store.load_maps.rename(kept_as, self.fingerprints, now)
        known = study_in(store, self.name, self.fingerprints)
        unused = known is None and self.name in store.study_names()
        if unused:
            refuse_other_kind(store, self.loaded)
        if prepared.spec.rehearsal_label:
            progress.message(upper(prepared.spec.rehearsal_label))
        settled = settle(
            prepared,
            sorted(loads),
            repeated=self.requests.repeated,
            known=known,
            other=f"{self.name} in {store.database} is of another file: it is not used"
            if unused
            else None,
            fingerprint=now,
            say=progress.message,
        )
        self.p, self.setting = settled.prepared, settled.setting
        self.chooser = choose(self, settled)
        logs = output_folder(store.database, self.name) / "logs"
        self.launcher = Launcher(self.p, self.ledger, logs, tools=tools)
        self.machine = self.launcher.machine
        self.rests = store.launches.idle_baselines(self.name, self.machine)

    def go(self) -> StopReason:
        end_orphans(self.store, self.p.spec.server.stop_timeout_s, self.progress.message)
        self.say_what_differs()
        if self.launcher.untested is not None:
            self.progress.message(self.launcher.untested)
        while (point := self.chooser.next()) is not None:
            if self.late():
                return StopReason.TIMEOUT
            self.run_point(point)
        return StopReason.DONE

    def late(self) -> bool:
        return self.deadline is not None and self.tools.clock() >= self.deadline

    # -- one point -------------------------------------------------------------------------------

    def run_point(self, point: MapPointRow) -> None:
        """Launch a point until every part is measured, or it has failed.

        Raises:
            MachineError: the machine gave way; the map goes on when it does.
        """
        outcome = attempts(_Point(self, point), self.launcher, self.ledger, self.rests)
        if isinstance(outcome, MachineFailed):
            raise MachineError(
                f"{self.words(point)}: {outcome.failure.reason}; mend that, and the same command "
                "goes on from there"
            ) from outcome.failure
        loads = comparable_loads(self.store, point.id)
        found = rates_of({point.n: loads}, self.loads).get(point.n, {})
        if found and failure_of_point(self.store, self.launched_as, point) is None:
            shown = ", ".join(f"{number(x.value)} at {load}" for load, x in found.items())
            self.progress.message(f"{self.words(point)}: tok/s {shown}")

    def words(self, point: MapPointRow) -> str:
        name = way_of(point).name
        return name if point.repeat is None else f"{name}, launch {point.repeat} to confirm"

    def stage(self, point: MapPointRow, text: str) -> None:
        self.progress.stage(OUTSIDE, f"{self.words(point)}: {text}")

    def measure(self, live: LiveServer, point: MapPointRow) -> None:
        """Warm a server up and measure the parts that are missing; keep each when it is whole."""
        way = way_of(point)
        for i, (load, part) in enumerate(self.chooser.missing(point)):
            kept: list[Sample] = []
            measuring = self.tools.measuring(
                live.server,
                self.part_spec(load),
                (THROUGHPUT,),
                keep=kept.extend,
                progress=lambda done, total: self.progress.progress(OUTSIDE, done, total),
            )
            phase = f"load {load} part {part + 1}"
            try:
                if i == 0:
                    self.stage(point, "warming")
                    measuring.warm(self.requests.warmup)
                    live.clock.mark("warm")
                    live.event("warm")
                self.stage(point, f"measuring {load} at a time, part {part + 1}")
                result = measuring.measure(
                    self.workload(load, part),
                    live.rest,
                    whole=False,
                    until_steady=False,
                    asked=self.chooser.prepared_of(way).asked(self.chooser.point_of(way), load),
                )
            finally:
                named = [dataclasses.replace(x, phase=_PHASES[x.phase].format(phase)) for x in kept]
                with held_back():  # a second Ctrl-C must not lose them
                    self.store.requests.add(live.launch_id, named)
            task = _Point(self, point)
            server = task.server or self.p.spec.server
            if note := drafts_note(result, server, task.point, live.version):
                self.progress.message(f"{self.words(point)}, {phase}: {note}")
            if note := throttled_note(result):
                self.progress.message(f"{self.words(point)}, {phase}, is throttled: {note}")
            disturbed = self.tools.disturbed(result.machine, self.rests)
            self.store.load_maps.add_load(
                live.launch_id,
                point.id,
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
        self.rests.append(live.rest.kernel_s)

    def workload(self, load: int, part: int) -> Workload:
        """Return what is sent in one part."""
        requests = self.requests.measured[load, part]
        lead = self.requests.lead[load, part]
        return Workload(tuple(lead), tuple(requests), (0.0,) * len(requests))

    def part_spec(self, load: int) -> StudySpec:
        """Return the study with this load, measured until the whole of its parts is precise."""
        spec = self.p.spec
        measure = spec.measure.model_copy(
            update={
                "min_prompts": part_sizes(spec, load)[0],
                "precision": min(0.99, spec.measure.precision * math.sqrt(PARTS)),
            }
        )
        workload = closed_loop(spec.workload, load).model_copy(update={"replay": None})
        return spec.model_copy(update={"workload": workload, "measure": measure})

    def say_what_differs(self) -> None:
        earlier = [
            x
            for p in self.chooser.points()
            for x in self.store.launches.of_trial(self.launched_as, p.id)
        ]
        if earlier and machine_line(earlier[-1].machine) != machine_line(self.machine):
            self.progress.message(
                f"a part of this map was measured on another machine "
                f"({machine_line(earlier[-1].machine)}): compare with care"
            )
        warn_of_variables(self.p, self.store, self.launched_as, self.progress.message)


class _Point:
    """A point of the map as a task of :func:`autotune.tuning.trial.attempts`."""

    def __init__(self, run: Sweep, row: MapPointRow) -> None:
        self._run = run
        self._row = row
        self.number = row.id
        self.point = run.chooser.point_of(way_of(row))

    @property
    def server(self) -> ServerSpec | None:
        way = way_of(self._row)
        fixed = way.kind is WayKind.FIXED
        return None if fixed else self._run.chooser.prepared_of(way).spec.server

    def log(self, attempt: int) -> str:
        return f"map-{self.number:04d}-{attempt}.log"

    def stage(self, text: str) -> None:
        self._run.stage(self._row, text)

    def measure(self, live: LiveServer) -> None:
        self._run.measure(live, self._row)

    def failed(self, failure: TrialFailure, *, retried: bool) -> None:
        again = "; retrying once" if retried else ""
        self._run.progress.message(
            f"{self._run.words(self._row)} failed: {failure.kind}: {failure.reason}{again}"
        )

    def why_again(self, measured: Sequence[LaunchRow]) -> str | None:
        """Return None: its parts are kept one by one, so no launch is measured again."""

    def repeated(self, why: str) -> None:
        """Do nothing: see :meth:`why_again`."""
