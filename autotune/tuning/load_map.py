"""Should I speculate at all? For each load the best n, and the load above which drafting loses.

`autotune map` launches one n after the other, n = 0 first, and measures each at every load; which n
is next is chosen from what was measured (:mod:`autotune.stats.crossover`). A load is a closed
loop: a fixed concurrency, independent of the rate of the study's own workload.

One launch serves all loads, each in two parts: 1 2 4 8 8 4 2 1. So a machine that grows faster or
slower affects all loads equally, and each part is a unit of resuming: it is in the database when
it is whole, and never measured again. A launch that failed gives no numbers, of no load.

With several slots, points are launched at the same time, as :mod:`autotune.tuning.load_map_choice`
chooses them, each with all its loads on one slot, and compared without how slots differ
(:mod:`autotune.results.sweep_slots`).

Then other ways to speculate are launched (:mod:`autotune.tuning.load_map_choice`): a schedule of n
by batch size, adaptive verification, other arms of the study. A confirmation launches the best of
them and the best fixed n again, there and back (:mod:`autotune.stats.referee`).

A break-even map (:mod:`autotune.tuning.break_even`) is run in the same way, on one slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from autotune.errors import MachineError
from autotune.results.load_map import LoadSweepView
from autotune.results.load_map_ways import WayKind, way_of
from autotune.results.read_load_map import (
    comparable_loads,
    load_sweep_view,
    rates_of,
    study_in,
)
from autotune.results.sweep_slots import is_link, is_swept
from autotune.results.text import number, upper
from autotune.search.places import place_of
from autotune.serving.machine import machine_line
from autotune.serving.slots import Slot
from autotune.storage.location import Database
from autotune.storage.names import load_sweep_name, output_folder
from autotune.storage.schema import MapPointRow
from autotune.storage.store import Store
from autotune.study.differences import fingerprint
from autotune.tuning.comparable import warn_of_variables
from autotune.tuning.executor import Executor, OneSlot
from autotune.tuning.launcher import Launcher, no_prelaunch
from autotune.tuning.ledger import StoredLedger
from autotune.tuning.load_map_choice import NOTHING, Chooser, Rivals
from autotune.tuning.load_map_point import SweepPoint, SweepRunner
from autotune.tuning.load_map_requests import map_requests
from autotune.tuning.load_map_setting import settle
from autotune.tuning.load_map_state import SweepState, Underway
from autotune.tuning.local_slots import served_by_sweep, slots_of
from autotune.tuning.lost_hosts import close_lost
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import At, Progress
from autotune.tuning.recovery import StoreOfLeft, end_orphans, launches_elsewhere
from autotune.tuning.rehearsing import refuse_other_kind
from autotune.tuning.slot_messages import Sweep
from autotune.tuning.slot_pool import Cluster, SlotPool
from autotune.tuning.slots import check_slots, slot_notes
from autotune.tuning.supervise import StopReason, run_on
from autotune.tuning.tools import Tools, real
from autotune.tuning.trial import MachineFailed, Outcome

DEFAULT_RIVALS = Rivals()
V = TypeVar("V")


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
    slots: Sequence[Slot] = (),
    cluster: Cluster | None = None,
) -> tuple[LoadSweepView, StopReason]:
    """Bring the map of a study to ``launches`` points, from wherever it is.

    Args:
        prepared: The study, checked.
        database: A file, or a database of a server; its tables are made if missing.
            It need not have the study.
        loads: Requests at a time, different ones.
        launches: Most fixed n that are launched, n = 0 included; other ways come on top, and so
            do launches of n = 0 that compare slots.
        timeout_s: Seconds after which no launch begins.
        progress: Told of what happens.
        rivals: The other ways, and how often they are launched.
        tools: What servers are made and measured with; None: this machine's.
        slots: Slots that launch at the same time; empty: one server at a time, which may use the
            whole host.
        cluster: Has slots on several hosts instead; its ``prepared`` is the study.

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

        def choose(run: SweepRun[LoadSweepView]) -> Chooser:
            return Chooser(
                store,
                name,
                run.launched_as,
                run.settled,
                run.loads,
                launches,
                rivals,
                run.view,
                progress.message,
            )

        def show(run: SweepRun[LoadSweepView]) -> LoadSweepView:
            return load_sweep_view(
                store, run.loaded, run.fingerprints, run.loads, run.setting, run.p.resolve
            )

        run = SweepRun(
            prepared,
            store,
            sorted(loads),
            kept_as=name,
            launched_as=load_sweep_name(name),
            choose=choose,
            show=show,
            deadline=deadline,
            progress=progress,
            tools=used,
            slots=slots,
            cluster=cluster,
        )
        with run.launcher:
            reason = run.go()
        return run.view(), reason

    return run_on(database, progress, go)


class PointChooser(Protocol):
    """Chooses what a sweep launches next."""

    @property
    def state(self) -> SweepState:
        """The points so far."""

    def next(self, now: Underway = NOTHING) -> MapPointRow | None:
        """Return the point to launch; None: none is left, or something has to end before."""


class SweepRun(Generic[V]):
    """One run of a sweep under the database's lock: submits points and says what came of them.

    Args:
        prepared: The study, checked.
        store: Database.
        loads: Concurrencies, ascending.
        kept_as: Name under which the points are stored.
        launched_as: Name under which their launches are stored.
        choose: Makes what chooses the points.
        show: Returns what the sweep amounts to by now.
        deadline: Time after which no launch begins; None: no limit.
        progress: Told of what happens.
        tools: What servers are made and measured with.
        slots: Slots that launch at the same time; empty: one server at a time.
        cluster: Has slots on several hosts instead.
    """

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        loads: Sequence[int],
        *,
        kept_as: str,
        launched_as: str,
        choose: Callable[[SweepRun[V]], PointChooser],
        show: Callable[[SweepRun[V]], V],
        deadline: float | None,
        progress: Progress,
        tools: Tools,
        slots: Sequence[Slot] = (),
        cluster: Cluster | None = None,
    ) -> None:
        self.store = store
        self.loads = loads
        self.deadline = deadline
        self.progress = progress
        self.tools = tools
        self._slots = tuple(slots)
        self.cluster = cluster
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
        self.settled = settle(
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
        self.p, self.setting = self.settled.prepared, self.settled.setting
        self._show = show
        self.shown: V | None = None
        self.chooser = choose(self)
        logs = output_folder(store.database, self.name) / "logs"
        self.launcher = Launcher(self.p, self.ledger, logs, tools=tools)
        self.taken: dict[int, int] = {}  # slots of submitted points, by the point's id
        self.rows: dict[int, MapPointRow] = {}  # these points

    @property
    def slots(self) -> dict[int, str]:
        """The slots that can be used now, each with what it is, by number; empty: there is one."""
        found = self._slots if self.cluster is None else self.cluster.slots.values()
        return {slot.number: place_of(slot.stored()) for slot in found}

    @property
    def machine(self) -> dict[str, Any]:
        """What one server has."""
        if self.cluster is not None:
            return self.cluster.machine
        whole = self.launcher.machine
        return self._slots[0].machine(whole) if self._slots else whole

    @property
    def in_slots(self) -> bool:
        """Whether there is a process for each slot."""
        return self.cluster is not None or bool(self._slots)

    def view(self) -> V:
        """Return what the sweep amounted to when a point ended last."""
        if self.shown is None:
            self.shown = self._show(self)
        return self.shown

    # -- the loop --------------------------------------------------------------------------------

    def go(self) -> StopReason:
        end_orphans(self.store, self.p.spec.server.stop_timeout_s, self.progress.message)
        if self.cluster is not None:
            left = launches_elsewhere(self.store)
            sweep = Sweep(self.p.loaded, self.requests)
            self.cluster.open(self.launcher.logs.folder, left, StoreOfLeft(self.store), sweep)
        close_lost(self.store, self.progress.message)
        check_slots(
            self.p, self.store, self.machine, in_slots=self.in_slots, launched_as=self.launched_as
        )
        self.say_what_differs()
        if self.launcher.untested is not None:
            self.progress.message(self.launcher.untested)
        notes = slot_notes(self._slots) if self.cluster is None else self.cluster.notes()
        for note in notes:
            self.progress.message(note)
        self.executor = self.make_executor()
        try:
            while True:
                stopped = self.submit()
                if not self.taken:
                    return stopped
                for done, outcome in self.executor.completed():
                    del self.taken[done.number]
                    self.record(done, outcome)
        finally:
            self.executor.close()

    def make_executor(self) -> Executor[SweepPoint]:
        """Return what runs the points: one slot in this thread, or a process for each slot."""
        if self.in_slots:
            return SlotPool(
                self.cluster or slots_of(self.p, self._slots, self.launcher.logs, self.requests),
                served_by_sweep(
                    self.store, self.ledger, self.progress, self.p.weights, self.missing
                ),
                stop_timeout_s=self.p.spec.server.stop_timeout_s,
                moved=self.moved,
            )
        runner = SweepRunner(
            self.p,
            self.requests,
            self.store,
            self.ledger,
            self.launcher,
            self.progress,
            self.missing,
            rests=self.store.launches.idle_baselines(self.name, self.launcher.machine),
            tools=self.tools,
        )
        return OneSlot(runner, no_prelaunch)

    def submit(self) -> StopReason:
        """Submit the points that can be launched now; return why, if nothing runs then."""
        while self.executor.capacity:
            if self.deadline is not None and self.tools.clock() >= self.deadline:
                return StopReason.TIMEOUT
            found = self.choose()
            if found is None:
                break
            row, slot = found
            self.taken[row.id], self.rows[row.id] = slot, row
            self.executor.submit(self.task(row, slot))
        return StopReason.DONE

    def choose(self) -> tuple[MapPointRow, int] | None:
        """Return the next point and its slot; None: nothing until something has ended."""
        places = self.slots
        if not places:  # one server at a time, or a point that waits for a host to come back
            row = None if self.taken else self.chooser.next()
            return None if row is None else (row, 0)
        running = {k: places.get(slot, "") for k, slot in self.taken.items()}
        now = Underway(running, None, frozenset(places.values()))
        linked = self.chooser.state.linked(now)
        free = [n for n in sorted(places) if n not in self.taken.values()]
        for slot in sorted(free, key=lambda n: places[n] not in linked):
            row = self.chooser.next(Underway(running, places[slot], now.places))
            if row is not None:
                return row, slot
        return None

    def moved(self, point: SweepPoint) -> None:
        """Note that a point goes to another slot: its own has gone."""
        self.taken[point.number] = point.slot

    # -- one point -------------------------------------------------------------------------------

    def task(self, row: MapPointRow, slot: int) -> SweepPoint:
        """Return a point as a value."""
        way = way_of(row)
        prepared, point = self.settled.prepared_of(way), self.settled.point_of(way)
        server = None
        if way.kind is not WayKind.FIXED:
            server = prepared.spec.server.model_copy(update={"env": {}})
        asked = {load: prepared.asked(point, load) for load in self.loads}
        return SweepPoint(row.id, self.words(row), point, server, asked, slot)

    def missing(self, point: int) -> list[tuple[int, int]]:
        """Return load and part of a point that were not measured, in their order."""
        self.chooser.state.changed()  # a launch of it may just have failed
        return self.chooser.state.missing(self.rows[point])

    def record(self, done: SweepPoint, outcome: Outcome) -> None:
        """Say what came of a point.

        Raises:
            MachineError: the machine gave way; the map goes on when it does.
        """
        if isinstance(outcome, MachineFailed):
            raise MachineError(
                f"{done.words}: {outcome.failure.reason}; mend that, and the same command goes on "
                "from there"
            ) from outcome.failure
        if self.in_slots:
            self.progress.stage(At(done.number, done.slot), "")
        self.chooser.state.changed()
        self.shown = None
        row = self.rows[done.number]
        loads = comparable_loads(self.store, row.id)
        found = rates_of({row.n: loads}, self.loads).get(row.n, {})
        if found and self.chooser.state.failure(row) is None:
            shown = ", ".join(f"{number(x.value)} at {load}" for load, x in found.items())
            self.progress.message(f"{done.words}: tok/s {shown}")

    def words(self, row: MapPointRow) -> str:
        name = way_of(row).name
        if is_link(row):
            return f"{name}, to compare slots"
        return name if is_swept(row) else f"{name}, launch {row.repeat} to confirm"

    def say_what_differs(self) -> None:
        earlier = [
            x
            for p in self.chooser.state.points()
            for x in self.store.launches.of_trial(self.launched_as, p.id)
        ]
        if earlier and machine_line(earlier[-1].machine) != machine_line(self.machine):
            self.progress.message(
                f"a part of this map was measured on another machine "
                f"({machine_line(earlier[-1].machine)}): compare with care"
            )
        warn_of_variables(self.p, self.store, self.launched_as, self.progress.message)
