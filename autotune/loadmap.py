"""Should I speculate at all? For each load the best n, and the load above which drafting loses.

`autotune map` launches one n after the other, n = 0 first, and measures each at every load; which n
is next is chosen from what was measured (:mod:`autotune.stats.crossover`). A load is a closed
loop: so many requests at a time, whatever rate the study's own workload has.

One launch serves all loads, each in two parts: 1 2 4 8 8 4 2 1. So a machine that grows faster or
slower does so for all loads alike, and each part is a unit of resuming: it is in the database when
it is whole, and never measured again. A launch that failed gives no numbers, of no load. In the end
a schedule of n by batch size is launched, where the numbers ask for one
(:mod:`autotune.results.read_load_map`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.bench import Request, Sample, Workload, build_workload
from autotune.bench.interference import disturbed
from autotune.bench.session import Measuring
from autotune.cli.console import Ui
from autotune.engine.draft_schedule import SCHEDULE, scheduled, why_no_schedule
from autotune.errors import (
    MachineError,
    NothingUsable,
    TrialFailure,
    UserError,
)
from autotune.launching import Launched, Launcher
from autotune.ledger import end_unended
from autotune.loop import (
    Prepared,
    StopReason,
    baseline_point,
    run_on,
)
from autotune.results.load_map import MapView
from autotune.results.read_load_map import (
    MAX_NUM_SEQS,
    PARTS,
    THROUGHPUT,
    Setting,
    comparable_loads,
    failure_of_point,
    launched_version,
    map_view,
    rates_of,
    schedule_of,
    study_in,
)
from autotune.results.text import number, point_text
from autotune.serving.machine import machine_line
from autotune.stats.crossover import Rate, Schedule, propose
from autotune.stats.intervals import MIN_REQUESTS
from autotune.storage.names import launch_text, map_name
from autotune.storage.schema import MapPointRow
from autotune.storage.store import Store
from autotune.study.differences import fingerprint
from autotune.study.schema import FlagValue, StudySpec
from autotune.study.space import MNBT, N, Value
from autotune.study.workload import WorkloadSpec

LADDER = (1, 2, 3, 5, 7, 11, 15)
FIRST_N = 3  # the first n with drafts, where the study knows no winner
# No n is launched of which less is expected at every load: launches differ by more.
LEAST_GAIN = 0.01
_PREFIX_CACHING = "enable_prefix_caching"
# vLLM's smallest default of max_num_seqs: a study that does not set it has at least this
_DEFAULT_SEQS = 128
_MOST_SCALE = 4  # times the study's num_prompts, at high loads
# What the requests of a part are called in the database, by the client's phase.
_PHASES = {"measure": "{}", "warmup": "warm-up, {}", "fill": "fill, {}"}


@dataclass(frozen=True)
class Requests:
    """What a launch is sent.

    Attributes:
        warmup: Before the first part.
        lead: Keep the places busy before and after each part, by load and part.
        measured: By load and part.
        repeated: The prompts are too few, so some are sent several times.
    """

    warmup: Sequence[Request]
    lead: Mapping[tuple[int, int], Sequence[Request]]
    measured: Mapping[tuple[int, int], Sequence[Request]]
    repeated: bool


def part_sizes(spec: StudySpec, load: int) -> tuple[int, int]:
    """Fewest and most requests of one part at a load.

    At a higher load more requests take the same time.
    """
    workload, measure = spec.workload, spec.measure
    scale = min(_MOST_SCALE, load / (workload.max_concurrency or load))
    most = max(math.ceil(workload.num_prompts * scale), measure.min_prompts, 4 * load)
    most = max(MIN_REQUESTS, math.ceil(most / PARTS))
    return min(most, max(MIN_REQUESTS, math.ceil(measure.min_prompts / PARTS), 2 * load)), most


def order(loads: Sequence[int]) -> list[tuple[int, int]]:
    """Load and part, in the order in which they are measured."""
    up = sorted(loads)
    return [(x, part) for part in range(PARTS) for x in (up if part % 2 == 0 else up[::-1])]


def closed_loop(workload: WorkloadSpec, load: int) -> WorkloadSpec:
    """The study's workload with so many requests at a time."""
    return workload.model_copy(
        update={"max_concurrency": load, "request_rate": math.inf, "latency_from": "send"}
    )


def map_requests(prepared: Prepared, loads: Sequence[int]) -> Requests:
    """The requests of a map: other prompts in each part, as long as there are enough of them."""
    spec = prepared.spec
    sizes = {(x, part): part_sizes(spec, x)[1] for x, part in order(loads)}
    first = spec.workload.most_warmup
    wanted = closed_loop(spec.workload, min(loads)).model_copy(
        update={
            "num_prompts": sum(sizes.values()),
            "warmup_prompts": first or max(loads),  # the places are kept busy in any case
        }
    )
    try:
        found = build_workload(wanted, prepared.loaded.base)
        repeated = False
    except UserError:  # the study's own requests can be built: there are too few for this
        found, repeated = prepared.workload, True
    measured = itertools.cycle(found.measured) if repeated else iter(found.measured)
    lead = itertools.cycle(found.warmup or (found.measured if repeated else ()))
    return Requests(
        warmup=_take(lead, first),
        lead={(x, part): _take(lead, x) for x, part in sizes},
        measured={key: _take(measured, count) for key, count in sizes.items()},
        repeated=repeated,
    )


def _take(requests: Iterable[Request], count: int) -> list[Request]:
    taken = itertools.islice(requests, count)
    return [dataclasses.replace(r, index=i) for i, r in enumerate(taken)]


def map_study(
    prepared: Prepared,
    *,
    database: Path,
    loads: Sequence[int],
    launches: int,
    timeout_s: float | None,
    ui: Ui,
) -> tuple[MapView, StopReason]:
    """Brings the map of a study to ``launches`` points, from wherever it stands.

    Args:
        database: The SQLite file; made if missing. It need not have the study.
        loads: Requests at a time, different ones.
        launches: Most n that are launched, n = 0 included; that of a schedule comes on top.
        timeout_s: No launch begins after so many seconds.

    Raises:
        UserError: nothing can be launched, or the database cannot be used.
        MachineError: the disk is full, the database was damaged or stayed locked.
        NothingUsable: there is no number of n = 0, so nothing to compare with.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP; the server is gone, and the map resumes.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def go(store: Store) -> tuple[MapView, StopReason]:
        run = _Map(prepared, store, sorted(loads), launches, deadline, ui)
        with run.launcher:
            reason = run.go()
        return run.view(), reason

    return run_on(database, ui, go)


class _Map:
    """One run of a map under the database's lock."""

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        loads: Sequence[int],
        launches: int,
        deadline: float | None,
        ui: Ui,
    ) -> None:
        self.store = store
        self.loads = loads
        self.launches = launches
        self.deadline = deadline
        self.ui = ui
        self.loaded = prepared.loaded  # as it is in the file
        self.name = prepared.spec.name
        self.ledger = map_name(self.name)
        self.requests = map_requests(prepared, loads)
        self.fingerprint = fingerprint(self.loaded)
        self.fingerprints = store.fingerprints(self.loaded)
        store.load_maps.rename(self.name, self.fingerprints, self.fingerprint)
        self.known = study_in(store, self.name, self.fingerprints)
        self.p, self.setting = self.settle(prepared)
        self.candidates = self.feasible()
        self.launcher = Launcher(self.p, store, self.ledger)
        self.machine = self.launcher.machine
        self.rests = store.launches.idle_seconds(self.name, self.machine)

    def view(self) -> MapView:
        """What the map amounts to by now."""
        return map_view(
            self.store, self.loaded, self.fingerprints, self.loads, self.setting, self.p.resolve
        )

    def go(self) -> StopReason:
        for launch, ended in end_unended(self.store, self.p.spec.server.stop_timeout_s):
            if ended:
                self.ui.message(
                    f"stopped an orphaned server of an earlier run ({launch_text(launch)}, "
                    f"{ended} processes)"
                )
        self.say_other_machine()
        if self.launcher.untested is not None:
            self.ui.message(self.launcher.untested)
        while (point := self.next_point()) is not None:
            if self.late():
                return StopReason.TIMEOUT
            self.run_point(point)
        if (point := self.schedule_point()) is not None:
            if self.late():
                return StopReason.TIMEOUT
            self.run_point(point)
        return StopReason.DONE

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    # -- what is launched ------------------------------------------------------------------------

    def settle(self, prepared: Prepared) -> tuple[Prepared, Setting]:
        """The study as it is launched, and what the points of this map have in common.

        Raises:
            UserError: there is nothing to map, or n = 0 cannot be launched.
        """
        spec, path = prepared.spec, prepared.loaded.path
        if spec.server.speculative is None or N not in spec.space:
            missing = "space" if spec.server.speculative else "server.speculative"
            raise UserError(
                f"{path}: {missing}: a map compares values of {N}; it needs the draft in "
                f"server.speculative, and space.{N}"
            )
        best = None if self.known is None else self.known.best(balanced=True)
        if self.known is None and self.name in self.store.study_names():
            self.ui.message(f"{self.name} in {self.store.path} is of another file: it is not used")
        point = baseline_point(spec) if best is None else dict(best.point)
        params = {k: v for k, v in point.items() if k != N}
        self.ui.message(
            f"the other parameters are those of the {'baseline' if best is None else 'best trial'}"
            f": {point_text(params) or 'none'}"
        )
        flags: dict[str, FlagValue] = {}

        def change(name: str, value: int | bool, why: str) -> None:
            params.pop(name, None)
            flags[name] = value
            words = str(value).lower() if isinstance(value, bool) else value
            self.ui.message(f"{name.replace('_', '-')} is {words} in this map: {why}")

        seqs = spec.settings(params).get(MAX_NUM_SEQS)
        seqs = seqs if isinstance(seqs, int) and not isinstance(seqs, bool) else _DEFAULT_SEQS
        if seqs < max(self.loads):
            change(
                MAX_NUM_SEQS, max(self.loads), f"with {seqs}, requests would wait at higher loads"
            )
        caching = spec.settings(params).get(_PREFIX_CACHING)
        if self.requests.repeated and caching is not False:
            change(_PREFIX_CACHING, value=False, why="too few prompts, some are sent twice")
        if SCHEDULE in (spec.server.speculative.model_extra or {}):
            self.ui.message(f"the study's own {SCHEDULE} is left out in this map")
        adapted = _adapted(prepared, flags)
        self.raise_mnbt(adapted, params)
        version = prepared.info.version
        return adapted, Setting(
            fingerprint=self.fingerprint,
            vllm=None if version is None else version.partition("+")[0],
            params=params,
            flags=flags,
            weights=prepared.weights(),
        )

    def raise_mnbt(self, adapted: Prepared, params: dict[str, Value]) -> None:
        """Takes the next larger budget at which anything can be compared, where that needs one.

        Raises:
            UserError: there is none.
        """

        def why_not(point: Mapping[str, Value]) -> str | None:
            if (why := adapted.infeasible({N: 0, **point})) is not None:
                return why
            drafts = [adapted.infeasible({N: n, **point}) for n in _drafts(adapted.spec)]
            return drafts[0] if drafts and None not in drafts else None

        if (why := why_not(params)) is None:
            return
        values = adapted.spec.space[MNBT].values() if MNBT in adapted.spec.space else None
        for value in values or ():
            above = isinstance(value, int) and value > int(params.get(MNBT, 0))
            if above and why_not({**params, MNBT: value}) is None:
                params[MNBT] = value
                self.ui.message(f"MNBT is {value} in this map: {why}")
                return
        raise UserError(
            f"{adapted.loaded.path}: nothing can be launched at a load of {max(self.loads)}: {why}"
        )

    def feasible(self) -> list[int]:
        """Which n of at least 1 may be launched, ascending; says which cannot.

        Raises:
            UserError: the space has none.
        """
        wanted = sorted({*_drafts(self.p.spec), *self.winners()})
        if not wanted:
            raise UserError(
                f"{self.p.loaded.path}: space.{N}: has no value of at least 1, so nothing to map"
            )
        reasons = {n: self.p.infeasible(self.point(n)) for n in wanted}
        if bad := {n: why for n, why in reasons.items() if why is not None}:
            n, why = next(iter(bad.items()))
            rest = f" ({len(bad) - 1} larger ones likewise)" if len(bad) > 1 else ""
            self.ui.message(f"n = {n} is never launched: {why}{rest}")
        return [n for n, why in reasons.items() if why is None]

    def winners(self) -> list[int]:
        """The n that the study found good, the balanced choice first."""
        if self.known is None:
            return []
        found = [self.known.best(balanced=True), *self.known.front()]
        ns = [t.point[N] for t in found if t is not None]
        return list(dict.fromkeys(n for n in ns if isinstance(n, int) and n > 0))

    def point(self, n: int) -> dict[str, Value]:
        return {N: n, **self.setting.params}

    # -- choosing --------------------------------------------------------------------------------

    def points(self) -> list[MapPointRow]:
        """Those of this setting, oldest first."""
        setting = self.setting.plain()
        return [x for x in self.store.load_maps.points(self.name) if x.setting == setting]

    def missing(self, point: MapPointRow) -> list[tuple[int, int]]:
        """Load and part that were not measured, in their order; none of a point that failed."""
        if failure_of_point(self.store, self.ledger, point) is not None:
            return []
        done = {(x.concurrency, x.part) for x in comparable_loads(self.store, point.id)}
        return [x for x in order(self.loads) if x not in done]

    def next_point(self) -> MapPointRow | None:
        """The next fixed n: one that is begun, n = 0, the first guess, the most promising.

        Raises:
            NothingUsable: n = 0 failed.
        """
        points = [x for x in self.points() if x.schedule is None]
        for point in points:
            if self.missing(point):
                return point
        begun = {x.n: x for x in points}
        if (none := begun.get(0)) is None:
            return self.add(0)
        if (why := failure_of_point(self.store, self.ledger, none)) is not None:
            raise NothingUsable(
                f"{self.name}: n = 0 gave no numbers, so there is nothing to compare with: {why[1]}"
            )
        free = [n for n in self.candidates if n not in begun]
        if len(begun) >= self.launches or not free:
            return None
        rates = self.rates()
        if max(rates) == 0:  # none with drafts yet, or all that were tried failed
            wanted = next((n for n in self.winners() if n in free), FIRST_N)
            return self.add(min(free, key=lambda n: (abs(n - wanted), n)))
        found = propose(rates, free)
        if found is None or found.gain < LEAST_GAIN:
            self.ui.message(
                f"no further n is launched: none promises {LEAST_GAIN:.0%} more at any load"
            )
            return None
        return self.add(found.n)

    def add(self, n: int, schedule: Schedule | None = None) -> MapPointRow:
        return self.store.load_maps.add_point(self.name, self.setting.plain(), n, schedule)

    def rates(self) -> dict[int, dict[int, Rate]]:
        """What was measured, by fixed n and load."""
        points = [x for x in self.points() if x.schedule is None]
        return rates_of({x.n: comparable_loads(self.store, x.id) for x in points}, self.loads)

    def schedule_point(self) -> MapPointRow | None:
        """The schedule to check; None: there is none, or it is done."""
        found = schedule_of(self.rates(), self.loads, self.p.spec, self.setting)
        if found is None or why_no_schedule(self.setting.vllm, self.ledger_version()) is not None:
            return None
        plain = [list(x) for x in found]
        largest = max(n for _, _, n in found)
        point = next((x for x in self.points() if x.schedule == plain), None)
        if point is None:
            return self.add(largest, found)
        return point if self.missing(point) else None

    def ledger_version(self) -> str | None:
        return launched_version(self.store, self.ledger)

    # -- one point -------------------------------------------------------------------------------

    def run_point(self, point: MapPointRow) -> None:
        """Launches until every part is measured, or the point failed."""
        while parts := self.missing(point):
            try:
                self.launch_and_measure(point, parts)
            except TrialFailure as failure:
                if failure.kind.of_the_machine:
                    raise MachineError(
                        f"{self.words(point)}: {failure.reason}; mend that, and the same command "
                        "goes on from there"
                    ) from failure
                again = "; retrying once" if self.missing(point) else ""
                self.ui.message(
                    f"{self.words(point)} failed: {failure.kind}: {failure.reason}{again}"
                )
        loads = comparable_loads(self.store, point.id)
        found = rates_of({point.n: loads}, self.loads).get(point.n, {})
        if found and failure_of_point(self.store, self.ledger, point) is None:
            shown = ", ".join(f"{number(x.value)} at {load}" for load, x in found.items())
            self.ui.message(f"{self.words(point)}: tok/s {shown}")

    def words(self, point: MapPointRow) -> str:
        return "the schedule" if point.schedule is not None else f"n = {point.n}"

    def launch_and_measure(self, point: MapPointRow, parts: Sequence[tuple[int, int]]) -> None:
        """One launch of a point, for all parts that are missing.

        Raises:
            TrialFailure: it did not come up, or gave nothing that may be called a number.
        """
        server = self.p.spec.server
        self.launcher.run(
            point.id,
            len(self.store.launches.of_trial(self.ledger, point.id)),
            self.point(point.n),
            log=f"map-{point.id:04d}",
            rests=self.rests,
            measure=lambda launched: self.measure(launched, point, parts),
            say=lambda stage: self.ui.stage(f"{self.words(point)}: {stage}"),
            server=server if point.schedule is None else scheduled(server, point.schedule),
        )

    def measure(
        self, launched: Launched, point: MapPointRow, parts: Sequence[tuple[int, int]]
    ) -> None:
        """Warm-up, then the parts that are missing; each is kept when it is whole."""
        for i, (load, part) in enumerate(parts):
            kept: list[Sample] = []
            measuring = Measuring(
                launched.server,
                self.part_spec(load),
                (THROUGHPUT,),
                keep=kept.extend,
                progress=self.ui.progress,
            )
            phase = f"load {load} part {part + 1}"
            try:
                if i == 0:
                    self.ui.stage(f"{self.words(point)}: warming")
                    measuring.warm(self.requests.warmup)
                    launched.clock.mark("warm")
                    launched.event("warm")
                self.ui.stage(f"{self.words(point)}: measuring {load} at a time, part {part + 1}")
                requests = self.requests.measured[load, part]
                lead = self.requests.lead[load, part]
                workload = Workload(tuple(lead), tuple(requests), (0.0,) * len(requests))
                result = measuring.measure(workload, launched.rest, whole=False, until_steady=False)
            finally:
                named = [dataclasses.replace(x, phase=_PHASES[x.phase].format(phase)) for x in kept]
                self.store.requests.add(launched.launch_id, named)
            self.store.load_maps.add_load(
                launched.launch_id,
                point.id,
                concurrency=load,
                part=part,
                phase=phase,
                stats=result.stats,
                values=result.values,
                intervals={name: (x.low, x.high) for name, x in result.intervals.items()},
                quality=result.quality() | {"disturbed": disturbed(result.machine, self.rests)},
            )
            launched.event("measured")
        launched.clock.mark("measured")
        self.rests.append(launched.rest.kernel_s)

    def part_spec(self, load: int) -> StudySpec:
        """The study with this load, and measured until the whole of its parts is precise."""
        spec = self.p.spec
        measure = spec.measure.model_copy(
            update={
                "min_prompts": part_sizes(spec, load)[0],
                "precision": min(0.99, spec.measure.precision * math.sqrt(PARTS)),
            }
        )
        workload = closed_loop(spec.workload, load).model_copy(update={"replay": None})
        return spec.model_copy(update={"workload": workload, "measure": measure})

    def say_other_machine(self) -> None:
        earlier = [
            x for p in self.points() for x in self.store.launches.of_trial(self.ledger, p.id)
        ]
        if earlier and machine_line(earlier[-1].machine) != machine_line(self.machine):
            self.ui.message(
                f"a part of this map was measured on another machine "
                f"({machine_line(earlier[-1].machine)}): compare with care"
            )


def _drafts(spec: StudySpec) -> list[int]:
    """The values of n in the space that are nearest to the ladder's, ascending."""
    values = [v for v in spec.space[N].values() or () if isinstance(v, int) and v > 0]
    if not values:
        return []
    return sorted({min(values, key=lambda v: (abs(v - n), v)) for n in LADDER if n <= max(values)})


def _adapted(prepared: Prepared, flags: Mapping[str, FlagValue]) -> Prepared:
    """The study with other flags."""
    server = prepared.spec.server
    server = server.model_copy(update={"flags": {**server.flags, **flags}})
    if server.speculative is not None:  # a fixed n is fixed
        extra = {k: v for k, v in server.speculative.model_dump().items() if k != SCHEDULE}
        draft = type(server.speculative).model_validate(extra)
        server = server.model_copy(update={"speculative": draft})
    spec = prepared.spec.model_copy(update={"server": server})
    return dataclasses.replace(prepared, loaded=prepared.loaded.model_copy(update={"spec": spec}))
