"""The run of a study: resume, plan, launch, measure, record; the driver of all of it.

One trial is one real server: plan → rules → launch → ``/health`` → warm-up → measured requests →
stop, proven dead → tell. At any time the database says how far a run is: a launch is written down
before its process exists, and a trial is told only after its server is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial

from autotune.errors import FailureKind, MachineError, TrialFailure
from autotune.results.trials import study_view
from autotune.search.places import place_of
from autotune.search.proposer import Converged, SearchEnds
from autotune.search.spending import Spending
from autotune.serving.slots import Slot
from autotune.stats import expected_between
from autotune.storage.location import Database
from autotune.storage.names import output_folder
from autotune.storage.records import Role, attrs_of
from autotune.storage.store import Store
from autotune.study.space import Point
from autotune.tuning.comparable import WeightsCheck, check_comparable, class_of_slot
from autotune.tuning.executor import Executor, OneSlot, slot_for
from autotune.tuning.hope import FailuresInARow
from autotune.tuning.launcher import Launcher
from autotune.tuning.ledger import StoredLedger
from autotune.tuning.local_slots import served_by, slots_of
from autotune.tuning.lost_hosts import close_lost
from autotune.tuning.placement import home_of
from autotune.tuning.planner import Planner
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import At, Progress
from autotune.tuning.recovery import StoreOfLeft, end_orphans, launches_elsewhere
from autotune.tuning.reserved import Reserved
from autotune.tuning.reuse import Source, find, take
from autotune.tuning.situation import Budget, Choice, Situation
from autotune.tuning.slot_pool import Cluster, SlotPool
from autotune.tuning.slots import check_slots, slot_notes
from autotune.tuning.study_begin import confirmation_budget, notes_before, planner_of
from autotune.tuning.supervise import StopReason, run_on
from autotune.tuning.tools import Tools, real
from autotune.tuning.trial import Failed, Infeasible, Measured, Outcome, Trial, TrialRunner
from autotune.tuning.trial_log import TrialLog


def run_study(
    prepared: Prepared,
    *,
    database: Database,
    trials: int,
    seed: int,
    timeout_s: float | None,
    progress: Progress,
    confirm: bool = False,
    stop_below: float | None = None,
    reuse: Sequence[Source] = (),
    tools: Tools | None = None,
    slots: Sequence[Slot] = (),
    cluster: Cluster | None = None,
) -> StopReason:
    """Bring a study to ``trials`` finished trials, from wherever it is.

    Args:
        prepared: The study, checked.
        database: A file, or a database of a server; its tables are made if missing.
        trials: Finished trials that the study is to have in the end, earlier ones included.
            Measured and failed launches count, points that were never launched do not.
        seed: Of a new study; a resumed one keeps its own.
        timeout_s: Seconds after which no launch begins.
        progress: Told of what happens.
        confirm: Search no further: ``trials`` more launches measure the winners again.
        stop_below: The search ends when no launch is expected to improve an objective, or the
            geometric mean of all, by this share; 0: never. None: as the study says.
        reuse: Earlier studies; their trials are taken, and do not count as ``trials``.
        tools: What servers are made and measured with; None: this machine's.
        slots: Slots that launch at the same time (:func:`autotune.tuning.slots.slots_of_host`);
            empty: one server at a time, which may use the whole host.
        cluster: Has slots on several hosts instead; its ``prepared`` is the study.

    Raises:
        UserError: the database cannot be used, or belongs to another study; or no trial of
            ``reuse`` can be taken.
        MachineError: the disk is full, the database was damaged or stayed locked; the server is
            gone, and the study resumes.
        NothingUsable: the first launches all failed for one reason, or there is nothing to confirm.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP; the server is gone, and the study resumes.
    """
    used = real(tools)
    deadline = None if timeout_s is None else used.clock() + timeout_s

    def go(store: Store) -> StopReason:
        driver = _Driver(prepared, store, deadline, progress, used, slots, cluster)
        driver.end_orphans()
        if confirm:
            budget = confirmation_budget(store, driver.log, prepared.spec.name, trials)
        else:
            budget = Budget(trials, prepared.spec.budget.confirm_of(trials))
        driver.open(budget, seed, stop_below, reuse)
        with driver.launcher:
            return driver.go()

    return run_on(database, progress, go)


class _Driver:
    """One run of a study under the database's lock: plans, submits and tells."""

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        deadline: float | None,
        progress: Progress,
        tools: Tools,
        slots: Sequence[Slot],
        cluster: Cluster | None,
    ) -> None:
        self.p = prepared
        self.spec = prepared.spec
        self.store = store
        self.deadline = deadline
        self.progress = progress
        self.tools = tools
        self._slots = tuple(slots)
        self.cluster = cluster
        self.taken: dict[int, int] = {}  # slots of submitted trials, by trial
        self.positions: dict[int, int] = {}  # of these trials
        self.ledger = StoredLedger(store, self.spec.name)
        logs = output_folder(store.database, self.spec.name) / "logs"
        self.launcher = Launcher(prepared, self.ledger, logs, tools=tools)
        self.log = TrialLog(prepared, store, progress)
        self.searching = True  # False: what is left is to confirm
        self.reason = StopReason.DONE  # why the search ended
        self.reserved = Reserved()  # choices whose servers are prelaunched
        self.failures = FailuresInARow(self.log, self.spec.name, self.launcher.logs.folder)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots that can be used now; empty: one server at a time, on the whole host."""
        return self._slots if self.cluster is None else tuple(self.cluster.slots.values())

    @property
    def machine(self) -> dict[str, Any]:
        """What all slots are slots of."""
        return self.launcher.machine if self.cluster is None else self.cluster.machine

    # -- before the first trial ------------------------------------------------------------------

    def end_orphans(self) -> None:
        """End servers that an earlier run could not end, of any study in this database."""
        end_orphans(self.store, self.spec.server.stop_timeout_s, self.progress.message)
        if self.cluster is not None:
            left = launches_elsewhere(self.store)
            self.cluster.open(self.launcher.logs.folder, left, StoreOfLeft(self.store))
        close_lost(self.store, self.progress.message)

    def open(
        self, budget: Budget, seed: int, stop_below: float | None, reuse: Sequence[Source]
    ) -> None:
        """Open the study, take earlier trials, and say what is ahead."""
        self.budget = budget
        self.stop_below = self.spec.budget.converged if stop_below is None else stop_below
        machine = self.machine
        if self._slots:
            machine = self._slots[0].machine(machine)
        check_slots(self.p, self.store, machine, in_slots=bool(self.slots))
        earlier = find(reuse, self.p, machine, self.store)
        row = self.store.begin_study(self.p.loaded, seed=seed, wanted=budget.wanted)
        weights = WeightsCheck(self.p, self.store)
        check_comparable(self.p, self.store, machine, self.progress.message, weights)
        self.log.open(self.p)
        self.planner = self.make_planner(row.seed)
        self.executor = self.make_executor(weights)
        if earlier:
            baseline = self.planner.fixed_points()[0]
            take(earlier, self.store, self.log.study, self.p, baseline, self.progress.message)
            self.log.changed()
        self.progress.study(study_view(self.store, self.spec.name), self.store.database)
        slots = slot_notes(self._slots) if self.cluster is None else self.cluster.notes()
        for note in (*notes_before(self.p, self.planner.space, self.launcher.untested), *slots):
            self.progress.message(note)

    def make_planner(self, seed: int) -> Planner:
        """Return what chooses the trials."""
        return planner_of(self.p, self.log.space, self.budget, seed, self.stop_below)

    def make_executor(self, weights: WeightsCheck) -> Executor[Trial]:
        """Return what runs the trials: one slot in this thread, or a process for each slot."""
        if self.cluster is not None or self._slots:
            return SlotPool(
                self.cluster or slots_of(self.p, self._slots, self.launcher.logs),
                {
                    **served_by(self.store, self.ledger, self.progress, weights.of_launch),
                    "ahead": lambda number, most: self.upcoming(most, self.taken[number]),
                },
                stop_timeout_s=self.spec.server.stop_timeout_s * (1 + self.spec.server.ahead),
                moved=self.moved,
            )
        runner = TrialRunner(
            self.p,
            self.store,
            self.ledger,
            self.launcher,
            self.progress,
            weights.of_launch,
            tools=self.tools,
        )
        return OneSlot(runner, self.upcoming)

    # -- the loop --------------------------------------------------------------------------------

    def go(self) -> StopReason:
        """Run trials until the budget, the time or the search ends."""
        if self.stop_below > 0 and self.budget.wanted in self.log.converged():
            self.search_ended(StopReason.CONVERGED)  # an earlier run found it
        unfinished = deque(self.log.unfinished())
        try:
            while True:
                stopped: StopReason | None = None
                while stopped is None and self.executor.capacity:
                    stopped, trial, slot = self.next_trial(unfinished)
                    if trial is None:
                        break
                    self.executor.submit(self.begun(trial, slot))
                if not self.taken:
                    return self.reason if stopped is None else stopped
                for done, outcome in self.executor.completed():
                    del self.taken[done.number]
                    self.record(done, outcome)
        finally:
            self.executor.close()

    def next_trial(
        self, unfinished: deque[FrozenTrial]
    ) -> tuple[StopReason | None, FrozenTrial | None, int | None]:
        """Return the next trial, and the slot that it was reserved for.

        Or None, and why no more begin, if that is for good.
        """
        if unfinished:
            return None, unfinished.popleft(), None
        if self.log.finished() >= self.budget.wanted:
            return self.reason, None, None
        if self.deadline is not None and self.tools.clock() >= self.deadline:
            return StopReason.TIMEOUT, None, None
        if self.log.waits():
            trial = self.log.begin()
            return (None, trial, None) if trial is not None else self.next_trial(unfinished)
        if self.slots:
            self.reserved.release({slot.number for slot in self.slots})
        slot, choice = self.reserved.take(self.taken.values()) or (None, self.choose())
        if choice is None:
            return None, None, None
        attrs = self.planner.begun(choice, self.log.trials())
        return None, self.log.choose(choice.point, attrs), slot

    def choose(self) -> Choice | None:
        """Return the next choice; where the search ends, that of the confirmation."""
        while True:
            now = self.situation()
            try:
                return self.planner.choose(now)
            except SearchEnds as e:
                if now.running or not self.searching:
                    return None
                self.search_ended(self.why(e))

    def situation(self, slot: int | None = None) -> Situation:
        """Return what the next choice depends on; plans the confirmation when it is time.

        Args:
            slot: Slot of the choice, whose own pending ones come last; None: the first free one.
        """
        wanted = self.budget.wanted
        pending = self.reserved.elsewhere(slot)
        if slot is not None:
            pending = (*pending, *self.reserved.of(slot))
        now = Situation(self.log.trials(), pending, self.searching)
        now = on_slots(now, self.slots, self.taken, slot)
        if not self.planner.confirmation.confirms(now):
            return now
        planned = self.log.confirmation(wanted)
        if planned is not None:
            now = replace(now, confirmation=planned.order, blocks=planned.blocks)
        if not self.planner.confirmation.awaits_step(now):
            return now
        self.log.placed()
        try:
            standing, trials = self.log.standing, self.log.trials()
            planned = self.planner.confirmation.next_step(
                standing, trials, planned, slots=now.slots
            )
        except ValueError as e:  # an objective that can be zero or negative
            self.progress.message(f"no confirmation: {e}")
            planned = Spending([], self.budget.held)
        self.log.keep_confirmation(wanted, planned)
        return replace(now, confirmation=planned.order, blocks=planned.blocks)

    def upcoming(self, most: int, slot: int = 0) -> list[Point]:
        """Return points whose trials follow on a slot, and reserve them, as far as they are known.

        With several slots, each leaves the others as much as it has.
        """
        now, before = self.situation(slot), len(self.reserved.elsewhere(slot))
        if self.slots:
            usable = [x.number for x in self.slots]
            fair = self.reserved.fair(slot, self.taken, usable, self.planner.left(now))
            most = min(most, fair)
        chosen = self.planner.ahead(now, before + most)[before:]
        self.reserved.keep(slot, chosen)
        points = [choice.point for choice in chosen][:most]
        trials = self.log.trials()
        return [
            q
            for q in points
            if self.p.infeasible(q) is None and self.planner.ruled_out(q, trials) is None
        ]

    def search_ended(self, reason: StopReason) -> None:
        """Note that what is left is to confirm."""
        self.searching = False
        self.reason = reason

    def why(self, end: SearchEnds) -> StopReason:
        """Return why the search is over, and keep that it converged."""
        if not isinstance(end, Converged):
            return StopReason.EXHAUSTED
        self.log.keep_converged(self.budget.wanted)
        text = converged_text(self.log.finished(), end.gain, self.stop_below)
        self.progress.message(text)
        return StopReason.CONVERGED

    # -- one trial -------------------------------------------------------------------------------

    def begun(self, trial: FrozenTrial, home: int | None = None) -> Trial:
        """Return a trial as a value, with what it is compared with; says that it begins.

        Args:
            trial: The trial.
            home: Slot that it was reserved for; None: that of its block, or any.
        """
        attrs = attrs_of(trial)
        point = self.planner.space.decode(trial.params)
        if home is None:
            home = home_of(trial, self.log.trials(), self.taken, self.slots, self.ledger.launches)
        slot = self.taken[trial.number] = slot_for(self.taken.values(), home)
        position = min(self.log.finished() + len(self.taken), self.budget.wanted)
        self.positions[trial.number] = position
        self.progress.begin(At(trial.number, slot), position, self.planner.space.shown(point))
        again = attrs.role is Role.CONFIRMATION or attrs.replicates is not None
        like = class_of_slot(self.p, self.machine, self.slots, slot)
        rivals = [] if again or attrs.baseline else self.log.rivals(like)
        self.log.placed()
        found = self.log.standing.launched()
        return Trial(
            trial.number,
            point,
            attrs,
            rivals=rivals,
            between={
                name: expected_between(v.between, v.total.degrees)
                for name, v in found.variance.items()
            },
            searched=len(found.searched),
            ruled_out=self.planner.ruled_out(point, self.log.trials()),
            slot=slot,
        )

    def moved(self, trial: Trial) -> None:
        """Note that a trial goes to another slot: its own has gone."""
        self.taken[trial.number] = trial.slot
        shown = self.planner.space.shown(trial.point)
        self.progress.begin(At(trial.number, trial.slot), self.positions[trial.number], shown)

    def record(self, done: Trial, outcome: Outcome) -> None:
        """Tell what came of a trial.

        Raises:
            MachineError: the machine gave way; the trial goes on when the run does.
            NothingUsable: the launches all fail.
        """
        trial = next(t for t in self.log.running() if t.number == done.number)
        match outcome:
            case Measured(launch_id):
                self.failures.end()
                self.log.tell(trial, launch_id, done.slot)
            case Infeasible(reason):
                never = TrialFailure(FailureKind.INFEASIBLE, reason)
                self.log.tell_failure(trial, never, done.slot)
            case Failed(failure):
                self.log.tell_failure(trial, failure, done.slot)
                self.failures.add(done.number, failure, self.taken)
            case _:
                raise MachineError(
                    f"trial {done.number}: {outcome.failure.reason}. Fix that, then run the same "
                    "command again to resume this trial"
                ) from outcome.failure


def on_slots(
    now: Situation, slots: Sequence[Slot], taken: Mapping[int, int], slot: int | None = None
) -> Situation:
    """Return a situation with the slots that there are, and those that are in use.

    Args:
        now: The situation.
        slots: Slots of the run; empty: one server at a time.
        taken: Slots of the trials that were submitted and have not ended, by trial.
        slot: Slot of the next launch; None: the first one that is free.
    """
    if not slots:
        return now
    places = {slot.number: place_of(slot.stored()) for slot in slots}
    return replace(
        now,
        slots=len(slots),
        place=places.get(slot_for(taken.values(), slot)),
        places={k: places[slot] for k, slot in taken.items() if slot in places},
    )


def converged_text(launches: int, gain: float, stop_below: float) -> str:
    """Return why a search has converged.

    Args:
        launches: Number of finished launches.
        gain: Largest expected improvement of an objective by a launch, as a share.
        stop_below: Improvement that the study asks for; where launches differ by much, more is
            asked for (:func:`autotune.search.model.propose`).
    """
    least = f"{stop_below:.2%}" if gain < stop_below else "a tenth of what one launch is off by"
    return (
        f"converged after {launches} launches: the best next one is expected to improve an "
        f"objective by {gain:.2%}, less than {least}, and no launch that could prove this wrong is "
        "left"
    )
