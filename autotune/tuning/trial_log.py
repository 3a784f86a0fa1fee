"""The trials of a study as Optuna keeps them: asked for, told, shown, and those so far.

Only the driver of a run uses it. What a trial amounts to is written here and nowhere else; its
launches were written down before, by :mod:`autotune.tuning.launcher`. Nobody else writes trials
meanwhile, so they are read again only after this process has written one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.bench.looks import Rival
from autotune.errors import FailureKind, TrialFailure, UserError
from autotune.results.recomputed import Recomputed, measurement_of
from autotune.results.standing import Standing, counts, is_outdated, with_points
from autotune.results.text import objective_text
from autotune.results.trials import trial_view
from autotune.search.spending import STEPS, Spending
from autotune.stats import ESTIMATOR, Measurement
from autotune.storage.records import Quality, TrialAttrs, attrs_of
from autotune.storage.store import Store
from autotune.study.space import Point
from autotune.tuning.comparable import MachineClass
from autotune.tuning.prepare import Prepared
from autotune.tuning.progress import At, Progress


class TrialLog:
    """The trials of one study.

    Args:
        prepared: The study.
        store: Has it, or will have it.
        progress: Told of every trial that ends.

    Attributes:
        study: Optuna's side of the study.
        space: The searched parameters, as this study keeps them.
        standing: What the trials so far amount to, as of the last call of :meth:`placed`.
    """

    def __init__(self, prepared: Prepared, store: Store, progress: Progress) -> None:
        self._spec = prepared.spec
        self._objectives = prepared.objectives
        self._store = store
        self._progress = progress
        self.space = prepared.spec.to_space()
        self._recomputed = Recomputed(store, prepared.spec, prepared.objectives)
        self._front: dict[int, Rival] = {}  # as rivals() had it last
        self._classes: dict[str, MachineClass] = {}  # by launch
        self._converged_key: str | None = None
        self._read: list[FrozenTrial] | None = None  # as stored; None: something was written
        self._compared: tuple[list[FrozenTrial], set[int]] | None = None  # as _split() had it last
        self.standing = Standing(prepared.objectives)
        self.study: optuna.Study

    def open(self, prepared: Prepared) -> None:
        """Open the study, or begin it.

        Raises:
            UserError: it has other objectives.
        """
        directions = [o.direction for o in self._objectives]
        names = self._store.storage.get_all_studies()
        new = self._spec.name not in {s.study_name for s in names}
        self.study = optuna.create_study(
            storage=self._store.storage,
            study_name=self._spec.name,
            directions=directions,
            load_if_exists=True,
        )
        if [d.name.lower() for d in self.study.directions] != directions:
            raise UserError(
                f"{self._store.database}: has a study {self._spec.name} with other objectives. "
                "Change the study's name or use another --db"
            )
        if new:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self.study.set_metric_names([objective_text(o) for o in self._objectives])
        self.changed()
        self.space = self.space.kept_as(t.params for t in self._stored())
        self._store.keep_vllm(self._spec.name, prepared.info.needed_by(self._spec))

    def reopen(self) -> None:
        """Open the study only if it exists.

        Raises:
            UserError: its first run ended before it was made.
        """
        self.study = self._store.optuna_study(self._spec.name)
        self.changed()

    # -- those so far ----------------------------------------------------------------------------

    def trials(self) -> list[FrozenTrial]:
        """Return all trials but those whose numbers do not compare with today's."""
        return self._split()[0]

    def outdated(self) -> set[int]:
        """Return the numbers of the others."""
        return self._split()[1]

    def _split(self) -> tuple[list[FrozenTrial], set[int]]:
        if self._compared is None:
            stored = self._stored()
            found = self._recomputed.trials(stored)
            changed = (t for t, was in zip(found, stored, strict=True) if t is not was)
            gone = {t.number for t in changed if is_outdated(t)}
            self._compared = [t for t in found if t.number not in gone], gone
        return self._compared

    def _stored(self) -> list[FrozenTrial]:
        """Return all trials as they are stored, in the order of their numbers."""
        if self._read is None:
            self._read = self.study.get_trials(deepcopy=False)
        return self._read

    def changed(self) -> None:
        """Note that trials were written, so that they are read again."""
        self._read = self._compared = None

    def finished(self) -> int:
        """Return how many trials count towards the wanted ones."""
        return sum(map(counts, self.trials()))

    def nothing_worked(self) -> bool:
        """Return whether no trial that was launched for this study has numbers."""
        return not any(counts(t) and t.state == TrialState.COMPLETE for t in self.trials())

    def placed(self) -> list[FrozenTrial]:
        """Return all trials that have a point; brings ``standing`` up to date."""
        trials = with_points(self.trials(), self.space)
        self.standing.update(trials)
        return trials

    def rivals(self, like: MachineClass | None = None) -> list[Rival]:
        """Return the trials of the Pareto front, as they were measured.

        Args:
            like: Class of the launch that is compared with them; trials of another class are left
                out. None: all are of one.
        """
        trials = {t.number: t for t in self.placed()}
        before, self._front = self._front, {}
        for number in sorted(self.standing.front()):
            trial = trials[number]
            if trial.state == TrialState.COMPLETE:
                if like is not None and like.other(self._class_of(trial)) is not None:
                    continue
                known, others = before.get(number), self.standing.numbers(number)
                if known is None or len(known.again) + 1 != len(others):
                    first, *again = (self._measurement(trials[k]) for k in others)
                    known = Rival(number, first, tuple(again))
                self._front[number] = known
        return list(self._front.values())

    def _class_of(self, trial: FrozenTrial) -> MachineClass:
        launch = attrs_of(trial).launch or ""
        if launch not in self._classes:
            row = self._store.launches.get(launch)
            weights = Quality.read(row.quality).weights
            self._classes[launch] = MachineClass.of(row.machine, row.vllm_version, weights)
        return self._classes[launch]

    def _measurement(self, trial: FrozenTrial) -> Measurement:
        launch = self._store.launches.get(attrs_of(trial).launch or "")
        samples = self._store.requests.samples(launch.launch_id)
        return measurement_of(samples, self._spec.workload, Quality.read(launch.quality))

    # -- what is known of the study --------------------------------------------------------------

    def converged(self) -> list[int]:
        """Return the budgets with which the search converged, by trials that all compare."""
        found: list[int] = self.study.user_attrs.get(self._converged, [])
        return found

    def keep_converged(self, wanted: int) -> None:
        """Keep that the search is over, so that a resumed run does not take it up again."""
        self.study.set_user_attr(self._converged, [*self.converged(), wanted])

    @property
    def _converged(self) -> str:
        if self._converged_key is None:
            self._converged_key = f"converged_{ESTIMATOR}" if self.outdated() else "converged"
        return self._converged_key

    def confirmation(self, wanted: int) -> Spending | None:
        """Return what was planned to confirm in a budget; None: nothing that compares today."""
        kept = self.study.user_attrs
        order: list[int] | None = kept.get(f"confirmation_{wanted}")
        if order is None or self.outdated() & set(order):
            return None
        return Spending.read(order, kept.get(f"{STEPS}{wanted}"))

    def keep_confirmation(self, wanted: int, planned: Spending) -> None:
        """Keep what is confirmed in a budget, in the order of the launches as far as it is known.

        The order is kept last: without it, the step is planned once more.
        """
        self.study.set_user_attr(f"{STEPS}{wanted}", planned.to_json())
        self.study.set_user_attr(f"confirmation_{wanted}", list(planned.order))

    # -- beginning and telling -------------------------------------------------------------------

    def unfinished(self) -> list[FrozenTrial]:
        """Return the trials that an ended run was at, to go on with at the same points."""
        running = self.running()
        for t in running:
            if not self.space.has_point(t.params):
                self._never_launched(t)
        return [t for t in running if self.space.has_point(t.params)]

    def _never_launched(self, trial: FrozenTrial) -> None:
        """End a trial without a point."""
        reason = "the run ended before the point was chosen"
        kind = str(FailureKind.INFEASIBLE)
        self._end(trial, replace(attrs_of(trial), failure_kind=kind, failure_reason=reason))

    def waits(self) -> bool:
        """Return whether an ended run chose a trial and did not begin it."""
        return any(t.state == TrialState.WAITING for t in self._stored())

    def choose(self, point: Point, attrs: TrialAttrs) -> FrozenTrial:
        """Begin a trial at a point, and return it; it is stored as a whole, in one transaction."""
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=self.space.encode(point),
                distributions=self.space.distributions(),
                user_attrs=replace(attrs, rehearsal=self._spec.rehearsal_label or None).to_json(),
            )
        )
        self.changed()
        return self._stored()[-1]

    def begin(self) -> FrozenTrial | None:
        """Begin the trial that waits, and return it; None: it had no point, and has ended.

        Only autotune 0.1 and 0.2.0 let trials wait.
        """
        number = self.study.ask().number
        self.changed()
        trial = self._stored()[number]
        if self.space.has_point(trial.params):
            return trial
        self._never_launched(trial)  # one may wait without its parameters
        return None

    def running(self) -> list[FrozenTrial]:
        """Return the trials that were begun and not told."""
        return [t for t in self._stored() if t.state == TrialState.RUNNING]

    def tell(self, trial: FrozenTrial, launch_id: str, slot: int = 0) -> None:
        """Tell Optuna what a trial's launch measured, and show it."""
        launch = self._store.launches.get(launch_id)
        values = launch.values
        if values is None:
            raise AssertionError("a launch that failed is never told as measured")
        stats, quality = launch.stats or {}, Quality.read(launch.quality)
        errors = [quality.errors.get(o.name) for o in self._objectives]
        attrs = replace(
            attrs_of(trial),
            point=dict(self.space.decode(trial.params)),
            launch=launch_id,
            vllm_version=launch.vllm_version,
            acceptance_length=stats.get("acceptance_length"),
            acceptance_per_position=stats.get("acceptance_per_position"),
            intervals=launch.intervals,
            log_variances=[None if e is None else e**2 for e in errors],
            quality=quality.of_trial,
            slot=launch.machine.get("slot"),
        )
        self._end(trial, attrs, [values[o.name] for o in self._objectives])
        self._show(trial.number, slot)

    def tell_failure(self, trial: FrozenTrial, failure: TrialFailure, slot: int = 0) -> None:
        """Tell Optuna why a trial has no numbers, and show it."""
        launches = self._store.launches.of_trial(self._spec.name, trial.number)
        attrs = replace(
            attrs_of(trial),
            point=dict(self.space.decode(trial.params)),
            failure_kind=str(failure.kind),
            failure_reason=failure.reason,
            failure_evidence=list(failure.evidence),
            failure_least=None if failure.least is None else asdict(failure.least),
            health_timeout_s=self._spec.server.health_timeout_s
            if failure.kind is FailureKind.TIMEOUT
            else None,
            slot=launches[-1].machine.get("slot") if launches else None,
        )
        self._end(trial, attrs)
        self._show(trial.number, slot)

    def _end(
        self, trial: FrozenTrial, attrs: TrialAttrs, values: Sequence[float] | None = None
    ) -> None:
        """End a running trial: with its values, or failed; write those attributes that changed."""
        before: Mapping[str, object] = trial.user_attrs
        new = attrs.to_json()
        changed = {k: v for k, v in new.items() if k not in before or before[k] != v}
        told = (self._spec.name, trial.number, attrs.launch)
        self._store.end_trial(trial._trial_id, changed, values, None if values is None else told)
        self.changed()

    def _show(self, number: int, slot: int) -> None:
        trials = self.placed()
        view = trial_view(trials, number, self.standing, self.space, self._objectives)
        self._progress.trial(At(number, slot), view)
