"""Which point is launched next: the baseline, seeds, replicates, the search, the confirmation.

The planner is pure: finished trials, running ones, those that are chosen and not begun yet, budget
and space go in, the next choice comes out. It knows no database, no terminal and no clock, so it
can be run in a replay, for one slot or for many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from optuna.trial import FrozenTrial, TrialState

from autotune.results.standing import counts, is_finished, with_points
from autotune.results.trials import trial_views
from autotune.results.views import cost
from autotune.search.alike import Alike
from autotune.search.proposer import (
    PointSet,
    Proposer,
    SearchEnds,
    SpaceExhausted,
    Undecided,
    grid_points,
    nearest,
    seed_points,
    tried_points,
)
from autotune.search.stated import StatedBounds
from autotune.storage.records import Role, TrialAttrs, attrs_of
from autotune.study.schema import StudySpec
from autotune.study.space import Point, Space, Value, canonical
from autotune.tuning.confirmation_planner import ConfirmationPlanner
from autotune.tuning.placement import Links
from autotune.tuning.prepare import baseline_point
from autotune.tuning.situation import Budget, Choice, Situation
from objectives import Objective


class Planner:
    """Chooses the trials of one study.

    Args:
        spec: The study.
        objectives: With the study's directions.
        budget: How many trials there are.
        space: The searched parameters, as the study keeps them.
        infeasible: Why the rules forbid a point; None: they do not.
        proposer: Proposes the points of the search.
        alike: Points that are one for the objectives; None: there are none.

    Attributes:
        confirmation: Chooses what is launched again.
    """

    def __init__(
        self,
        spec: StudySpec,
        objectives: Sequence[Objective],
        budget: Budget,
        space: Space,
        infeasible: Callable[[Point], str | None],
        proposer: Proposer,
        alike: Alike | None = None,
    ) -> None:
        self._alike = alike if spec.search.method == "gp" else None
        self.budget = budget
        self.space = space
        self._spec = spec
        self._objectives = objectives
        self._infeasible = infeasible
        self._proposer = proposer
        self.confirmation = ConfirmationPlanner(objectives, budget, space, proposer, self._alike)
        self._fixed: dict[tuple[object, ...], list[dict[str, Value]]] = {}  # by stated bounds

    def choose(self, now: Situation) -> Choice | None:
        """Return what follows: to confirm, planned, or the search's proposal.

        Returns:
            None: nothing until a running trial has ended, because it may still change whether the
                search goes on, or all wanted trials are begun.

        Raises:
            SearchEnds: nothing is left to launch.
        """
        if now.begun >= self.budget.wanted:
            return None
        if not now.searching and not all(map(self.confirmation.confirming, now.unfinished)):
            return None  # the last trials of the search may still be winners
        if self.confirmation.confirms(now) and (now.confirmation is None or len(now.confirmation)):
            return self.confirmation.choose(now)
        if not now.searching:
            raise SearchEnds
        if self._awaits_search(now):
            return None
        try:
            return self._planned(now) or self._suggested(now)
        except Undecided:
            return None

    def ahead(self, now: Situation, most: int) -> list[Choice]:
        """Return the choices that come after the running trials, as far as they are known.

        Winners are chosen when the search is over, so none of the confirmation's before that.

        Args:
            now: The situation; its pending choices come first, and those that follow are for its
                place.
            most: How many at most, those that are pending included.
        """
        chosen = list(now.pending)
        confirms = any(map(self.confirmation.confirming, now.running))
        while len(chosen) < most:
            then = replace(now, pending=chosen)
            if not confirms and (not now.searching or self._search_is_begun(then)):
                break
            try:
                choice = self.choose(then)
            except SearchEnds:
                break
            if choice is None:
                break
            chosen.append(replace(choice, place=now.place))
        return chosen

    def left(self, now: Situation) -> int:
        """Return how many launches are known to follow those that are begun or chosen.

        They are the rest of the search or, when it is over, of the confirmation's present step.
        """
        if now.confirmation is not None:
            return max(0, len(now.confirmation) - self.confirmation.confirmed(now))
        begun = sum(not self.confirmation.confirming(x) for x in now.unfinished)
        return max(0, self.budget.search - self.confirmation.searched(now) - begun)

    # -- the search ------------------------------------------------------------------------------

    def _search_is_begun(self, now: Situation) -> bool:
        """Return whether all trials of the search are finished, run, or are chosen."""
        begun = sum(not self.confirmation.confirming(x) for x in now.unfinished)
        return self.confirmation.searched(now) + begun >= self.budget.search

    def _awaits_search(self, now: Situation) -> bool:
        """Return whether the search must end before anything else can be chosen."""
        return self._search_is_begun(now) and self.confirmation.searched(now) < self.budget.search

    def _planned(self, now: Situation) -> Choice | None:
        """Return the baseline, then replicates, the seeds or the whole grid; None: all are done.

        Raises:
            SpaceExhausted: the whole grid is done.
        """
        searched = _searched(now.trials)
        tried = tried_points(self.space, searched)
        chosen = PointSet(choice.point for choice in now.pending)
        baseline, *points = self.fixed_points(now.trials)
        if baseline not in tried and baseline not in chosen:
            return Choice(baseline, TrialAttrs(Role.BASELINE, baseline=True))
        again = self._to_replicate(now)
        again = self._to_link(now) if again is None else again
        if again is not None:
            return Choice(
                now.point(again, self.space), TrialAttrs(Role.REPLICATE, replicates=again)
            )
        placed = with_points(searched, self.space)
        known = PointSet(self._one(self.space.decode(t.params)) for t in placed)
        left = (q for q in points if q not in tried and q not in chosen)
        point = next((q for q in left if self._alike is None or self._one(q) not in known), None)
        if point is None and self._spec.search.method == "grid":
            raise SpaceExhausted
        return None if point is None else Choice(point)

    def fixed_points(self, trials: Sequence[FrozenTrial] = ()) -> list[dict[str, Value]]:
        """Return the baseline, then the seeds or the whole grid.

        The baseline and the seeds move where a failed launch stated that their MNBT is too small.

        Args:
            trials: Trials so far.

        Raises:
            SpaceExhausted: no point can launch.
        """
        stated = StatedBounds(self.space, trials)
        if stated.bounds not in self._fixed:  # it may walk through the whole space
            self._fixed[stated.bounds] = self._find_fixed(stated)
        return self._fixed[stated.bounds]

    def _find_fixed(self, stated: StatedBounds) -> list[dict[str, Value]]:
        """Return the points of :meth:`fixed_points` under bounds that vLLM stated."""

        def feasible(q: Point) -> bool:
            return stated.why_not(q) is None and self._infeasible(q) is None

        start = canonical(self.space, baseline_point(self._spec))
        baseline = nearest(self.space, start, feasible)
        if baseline is None:
            raise SpaceExhausted
        if self._spec.search.method == "grid":
            return [baseline, *grid_points(self.space)]
        if self._spec.search.method == "gp":
            seeds = seed_points(self.space, baseline, feasible)
            return [baseline, *(self._smallest(q, feasible) for q in seeds[1:])]
        return [baseline]

    def _one(self, point: Point) -> Point:
        """Return the point that stands for a point's class, as far as it is likely."""
        return point if self._alike is None else self._alike.likely(point)

    def _smallest(
        self, point: dict[str, Value], feasible: Callable[[Point], bool]
    ) -> dict[str, Value]:
        """Return the point of a seed's class with the smallest budget, if it can launch."""
        smallest = dict(self._one(point))
        return smallest if feasible(smallest) else point

    def ruled_out(self, point: Point, trials: Sequence[FrozenTrial]) -> str | None:
        """Return why a point cannot launch by what earlier launches stated; None: it may."""
        return StatedBounds(self.space, trials).why_not(point)

    def _to_replicate(self, now: Situation) -> int | None:
        """Return the trial whose point the search launches once more, spread over the search.

        In turn the baseline, which every speed-up refers to, and the best so far: launches of one
        point show how far launches differ, which no number of requests can tell.
        """
        budget = self._spec.budget
        wanted = budget.replicates_of(self.budget.search)
        if budget.replicates is None and self._spec.search.method == "grid":
            return None
        searched = _searched(now.trials)
        trials = [t for t in searched if counts(t) or t.state == TrialState.RUNNING]
        attrs = [*map(attrs_of, trials), *(choice.attrs for choice in now.pending)]
        done = sum(a.replicates is not None for a in attrs)
        if done >= wanted or len(attrs) < (done + 1) * self.budget.search // (wanted + 1):
            return None
        base, best = self._base_and_best(now)
        again = base if best is None or (done % 2 == 0 and base is not None) else best
        if again is None or now.place is None or len(attrs) + now.slots >= self.budget.search:
            return again
        # a slot that has not launched it will be free soon, and is linked by it
        links = Links.of(now.trials, now.places, self.space, now.pending)
        return None if links.wants_elsewhere(now.point(again, self.space), now.place) else again

    def _to_link(self, now: Situation) -> int | None:
        """Return the trial whose point the next slot launches, too, so that slots compare."""
        grid = self._spec.budget.replicates is None and self._spec.search.method == "grid"
        if now.place is None or grid:
            return None
        links = Links.of(now.trials, now.places, self.space, now.pending)
        if not links.wants_link(now.place):
            return None
        found = [k for k in self._base_and_best(now) if k is not None]
        new = (k for k in found if not links.has(now.point(k, self.space), now.place))
        return next(new, found[0] if found else None)

    def _base_and_best(self, now: Situation) -> tuple[int | None, int | None]:
        """Return the baseline's trial and the best one so far; None: there is none with values."""
        views = trial_views(now.trials, self._spec, self._objectives)
        found = [v for v in views if v.values and v.again is None]
        base = next((v.number for v in found if v.baseline and v.may_win), None)
        first = self._objectives[0]
        front = [v for v in found if v.front and not v.baseline]
        best = min(front, key=lambda v: cost(first, v.value(first)), default=None)
        return base, None if best is None else best.number

    def _suggested(self, now: Situation) -> Choice:
        """Return the proposer's choice.

        Raises:
            SearchEnds: it has none.
        """
        pending: list[Point] = [self.space.decode(t.params) for t in now.running]
        pending += [choice.point for choice in now.pending]
        throttled = {t.number for t in now.trials if attrs_of(t).quality.throttled}
        found = self._proposer.propose(now.trials, pending, throttled)
        attrs = TrialAttrs(expected_improvement=found.gain, challenge=found.challenge)
        return Choice(found.point, attrs)

    def begun(self, choice: Choice, trials: Sequence[FrozenTrial]) -> TrialAttrs:
        """Return the attributes of a choice's trial, which names an earlier one of its point.

        Args:
            choice: What is begun.
            trials: All trials that compare.
        """
        attrs = choice.attrs
        if not attrs.searches or attrs.replicates is not None:
            return attrs
        params: Mapping[str, object] = self.space.encode(choice.point)
        first = next((t.number for t in trials if is_finished(t) and t.params == params), None)
        if first is None:
            return attrs
        role = Role.BASELINE if attrs.baseline else Role.REPLICATE
        return replace(attrs, role=role, replicates=first)


def _searched(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return all trials but those of a confirmation."""
    return [t for t in trials if attrs_of(t).searches]
