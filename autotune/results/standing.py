"""What the trials of a study amount to: which ones count, their launches, the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autotune.errors import FailureKind
from autotune.results.views import Origin
from autotune.search.confirmation import Launches
from autotune.search.confirmation_verdict import ConfirmationVerdict, verdict
from autotune.search.front import front_numbers
from autotune.search.places import Places, place_of
from autotune.stats import LaunchVariance, SingleLaunch
from autotune.storage.records import attrs_of
from autotune.storage.trials import FINISHED, State, T, TrialLike
from autotune.study.space import Space
from objectives import Objective

# Two launches of one point are one degree of freedom, whose interval is far too wide.
LEAST_DEGREES = 2


def failure_of(trial: TrialLike) -> tuple[str | None, str | None]:
    """Return kind and reason of a failed trial; None, None for any other.

    The kind is a :class:`FailureKind`, or one that another version of autotune knew.
    """
    attrs = attrs_of(trial)
    return attrs.failure_kind, attrs.failure_reason


def is_finished(trial: TrialLike) -> bool:
    """Return whether a trial was launched and ended, measured or failed."""
    if trial.state == State.COMPLETE:
        return True
    return trial.state == State.FAIL and failure_of(trial)[0] != FailureKind.INFEASIBLE


def counts(trial: TrialLike) -> bool:
    """Return whether a trial counts as one of the wanted trials.

    It counts if it is finished and was launched for its own study, unless its numbers do not
    compare any more.
    """
    attrs = attrs_of(trial)
    return is_finished(trial) and attrs.reused is None and attrs.quality.outdated is None


def is_outdated(trial: TrialLike) -> bool:
    """Return whether a trial has numbers of an earlier estimator that cannot be computed again.

    Args:
        trial: Trial as :class:`autotune.results.recomputed.Recomputed` returns it.
    """
    return attrs_of(trial).quality.outdated is not None


def origin_of(trial: TrialLike) -> Origin | None:
    """Return where a trial was measured, if another study measured it."""
    found = attrs_of(trial).reused
    return None if found is None else Origin(**found)


def with_points(trials: Sequence[T], space: Space) -> list[T]:
    """Return the trials that have a point."""
    return [t for t in trials if space.has_point(t.params)]


@dataclass(frozen=True)
class Launched:
    """Every measured launch of a study that may be compared, as points with their launches.

    Attributes:
        searched: Objective values of a point's launches during the search, in their order, by the
            number of the trial that first measured the point. A point is left out if a launch gave
            0 for an objective to maximize, such as goodput: it cannot win, and 0 has no ratio.
        confirmed: The same for launches of the confirmation.
        baseline: Number of the trial that the others are compared with; None: it has no numbers.
        variance: Launch-to-launch variance, by objective; empty: no point has two launches.
        places: On which slot each of the launches was.
    """

    searched: Launches
    confirmed: Launches
    baseline: int | None
    variance: Mapping[str, LaunchVariance]
    places: Places = field(default_factory=Places)


class Standing:
    """State of a study's trials, updated with each finished trial.

    A running study needs the state after each trial. Computing it from all trials would make each
    trial more expensive than the last one. The state is the same whether it grew with the trials or
    was made of all of them at once, as after a resume or for a report.

    Args:
        objectives: Objectives with the study's directions.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives
        self._directions = [o.direction for o in objectives]
        self._clear()

    def _clear(self) -> None:
        self._searched: dict[int, list[Sequence[float]]] = {}
        self._confirmed: dict[int, list[Sequence[float]]] = {}
        self._searched_at: dict[int, list[str]] = {}  # places of those launches
        self._confirmed_at: dict[int, list[str]] = {}
        self._singles: dict[int, list[list[SingleLaunch | None]]] = {}  # by point: launches
        self._numbers: dict[int, list[int]] = {}  # by point: trials of the search
        self._confirming: dict[int, list[int]] = {}  # the same of the confirmation
        self._within: dict[int, list[list[SingleLaunch | None]]] = {}  # the same: what they gave
        self._repeated: set[int] = set()  # points of several launches
        self._empty: set[int] = set()  # points with a launch that gave nothing
        self._throttled: set[int] = set()  # trials
        self._means: dict[int, list[float]] = {}
        self._front: set[int] = set()
        self._candidates: set[int] = set()  # points that the front is looked for among; see _add
        self._baseline: int | None = None
        self._seen: set[int] = set()
        self._newest: dict[int, int] = {}  # by point: its last measured trial

    def update(self, trials: Sequence[TrialLike]) -> None:
        """Add the trials that finished since the last call.

        Args:
            trials: All trials of the study that have a point, in the order of their numbers.
        """
        new = [t for t in trials if t.state in FINISHED and t.number not in self._seen]
        if any(self._comes_late(t) for t in new):
            self._clear()
            new = [t for t in trials if t.state in FINISHED]
        for t in new:
            self._seen.add(t.number)
            if t.state == State.COMPLETE:
                self._newest[self._point(t)] = t.number
                self._take(t)
        if self._candidates:
            among = {k: self._means[k] for k in self._candidates}
            self._front, self._candidates = front_numbers(among, self._directions), set()
        base = baseline_of(trials)
        self._baseline = None if base is None else base.number

    @staticmethod
    def _point(trial: TrialLike) -> int:
        """Return the number of the trial that first measured the point."""
        first = attrs_of(trial).first
        return trial.number if first is None else first

    def _comes_late(self, trial: TrialLike) -> bool:
        """Return whether later launches of a trial's point were added before it.

        Slots do not finish trials in the order of their numbers, but a point's launches are kept in
        it, and whether its first one was throttled decides about the others. Other points do not
        notice.
        """
        return (
            trial.state == State.COMPLETE
            and self._newest.get(self._point(trial), -1) > trial.number
        )

    def _take(self, trial: TrialLike) -> None:
        """Add a measured trial, unless it takes no part in any comparison."""
        attrs = attrs_of(trial)
        if attrs.quality.throttled:
            self._throttled.add(trial.number)
        # a point is named after its first trial, which must never win if it was throttled
        if attrs.quality.may_win and attrs.first not in self._throttled:
            self._add(trial)

    def _add(self, trial: TrialLike) -> None:
        attrs = attrs_of(trial)
        of = self._point(trial)
        errors = attrs.quality.errors
        singles = [
            single_launch(value, errors.get(o.name))
            for o, value in zip(self._objectives, trial.values, strict=True)
        ]
        group = self._singles.setdefault(of, [])
        group.append(singles)
        ways = zip(trial.values, self._directions, strict=True)
        if any(value == 0 and way == "maximize" for value, way in ways):
            self._empty.add(of)
        if len(group) > 1:
            self._repeated.add(of)
        if attrs.confirms is not None:
            self._confirmed.setdefault(of, []).append(trial.values)
            self._confirming.setdefault(of, []).append(trial.number)
            self._confirmed_at.setdefault(of, []).append(place_of(attrs.slot))
            return
        known = of in self._searched
        self._searched.setdefault(of, []).append(trial.values)
        self._searched_at.setdefault(of, []).append(place_of(attrs.slot))
        self._numbers.setdefault(of, []).append(trial.number)
        self._within.setdefault(of, []).append(singles)
        self._means[of] = _mean(self._searched[of])
        # a point whose mean gets worse may let others onto the Pareto front
        self._candidates |= self._means.keys() if known else {*self._front, of}

    def front(self) -> set[int]:
        """Return the numbers of the trials on the Pareto front."""
        return self._front

    def launches(self, number: int) -> int:
        """Return the search's launches of a trial's point, if the trial is its first; else 1."""
        return len(self._searched.get(number, [()]))

    def numbers(self, number: int) -> list[int]:
        """Return the search's trials of a trial's point, if the trial is its first."""
        return self._numbers.get(number, [number])

    def errors(self, number: int) -> dict[str, float] | None:
        """Return the standard error within one launch of a point, by objective, root mean square.

        None: the trial is not the first of its point.
        """
        launches = self._within.get(number)
        if launches is None:
            return None
        out = {}
        for o, column in zip(self._objectives, zip(*launches, strict=True), strict=True):
            squares = [x.within**2 for x in column if x is not None]
            if squares:
                out[o.name] = float(np.sqrt(np.mean(squares)))
        return out

    def means(self, number: int) -> list[float] | None:
        """Return the mean of each objective over a point's launches; None: there is none."""
        return self._means.get(number)

    def launched(self) -> Launched:
        """Return every launch that may be compared; later trials change this view."""
        variance = {}
        for i, o in enumerate(self._objectives):
            groups = [[x[i] for x in self._singles[k]] for k in sorted(self._repeated)]
            found = LaunchVariance.of([[x for x in g if x is not None] for g in groups])
            if found is not None:
                variance[o.name] = found
        searched = _by_first_launch(self._searched, self._numbers)
        confirmed = _by_first_launch(self._confirmed, self._confirming)
        if self._empty:
            searched = {k: x for k, x in searched.items() if k not in self._empty}
            confirmed = {k: x for k, x in confirmed.items() if k not in self._empty}
        base = self._baseline if self._baseline in searched else None
        places = Places(self._searched_at, self._confirmed_at)
        return Launched(searched, confirmed, base, variance, places)


def _by_first_launch(
    launches: Mapping[int, list[Sequence[float]]], numbers: Mapping[int, list[int]]
) -> dict[int, list[Sequence[float]]]:
    """Return points in the order of their first launches, in whatever order those ended."""
    return {k: launches[k] for k in sorted(launches, key=lambda k: numbers[k][0])}


def launched(trials: Sequence[TrialLike], objectives: Sequence[Objective]) -> Launched:
    """Return what was measured, without trials that never win."""
    standing = Standing(objectives)
    standing.update(trials)
    return standing.launched()


def study_verdict(found: Launched, objectives: Sequence[Objective]) -> ConfirmationVerdict | None:
    """Return the confirmation's verdict; None without one, or where values make no ratios.

    There is none either as long as only the baseline has launches in the confirmation: the run
    ended after the first one, or the others failed. It would be the best of itself.
    """
    confirmed = {k: v for k, v in found.confirmed.items() if v and k in found.searched}
    if confirmed.keys() == {found.baseline} != found.searched.keys():
        return None
    directions = [o.direction for o in objectives]
    try:
        return verdict(confirmed, found.searched, directions, found.baseline, found.places)
    except ValueError:  # an objective that can be zero or negative
        return None


def is_baseline(trial: TrialLike) -> bool:
    """Return whether other trials are compared with this one as soon as it has numbers."""
    attrs = attrs_of(trial)
    return attrs.baseline and attrs.quality.outdated is None


def baseline_of(trials: Sequence[TrialLike]) -> TrialLike | None:
    """Return the trial that others are compared with; None: there is none.

    One that runs or has failed is it, too, unless another one took its place: a baseline moves
    where vLLM stated that its batch budget is too small.
    """
    found = [t for t in trials if is_baseline(t)]
    measured = (t for t in found if t.state == State.COMPLETE)
    return next(measured, found[0] if found else None)


def single_launch(value: float | None, error: float | None) -> SingleLaunch | None:
    """Return a value with its error within the launch; None where that is unknown."""
    if value is None or value <= 0 or error is None:
        return None
    return SingleLaunch(value, error)


def _mean(launches: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each objective over the launches of one point."""
    return [float(x) for x in np.mean(launches, axis=0)]
