"""Which point is launched next: the baseline, seeds, replicates, the search, the confirmation.

The planner is pure: finished trials, running ones, those that are chosen and not begun yet, budget
and space go in, the next choice comes out. It knows no database, no terminal and no clock, so it
can be run in a replay, for one slot or for many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from optuna.trial import FrozenTrial, TrialState

from autotune.results.standing import Launched, Standing, counts, is_finished, with_points
from autotune.results.trials import trial_views
from autotune.results.views import cost
from autotune.search.alike import Alike, Key, key_of
from autotune.search.confirmation import candidates_of
from autotune.search.confirmation_steps import next_step, with_step
from autotune.search.places import Places
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
from autotune.search.spending import Spending
from autotune.search.stated import StatedBounds
from autotune.storage.records import Role, TrialAttrs, attrs_of
from autotune.study.schema import StudySpec
from autotune.study.space import Point, Space, Value, canonical
from autotune.tuning.placement import Links, next_of_blocks
from autotune.tuning.prepare import baseline_point
from objectives import Objective

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """A trial that is still to be begun.

    Attributes:
        point: What is launched.
        attrs: The trial's attributes at its begin.
    """

    point: Point
    attrs: TrialAttrs = field(default_factory=TrialAttrs)


@dataclass(frozen=True)
class Budget:
    """How many trials a study is to have in the end.

    Attributes:
        wanted: Finished trials, those of earlier runs included.
        held: How many of them are held back for the confirmation.
    """

    wanted: int
    held: int

    @property
    def search(self) -> int:
        """Number of the wanted trials that search."""
        return self.wanted - self.held


@dataclass(frozen=True)
class Situation:
    """What a choice depends on.

    Attributes:
        trials: All trials that compare, in the order of their numbers; running ones included.
        pending: Choices that are not begun yet.
        searching: Whether the search goes on; False: what is left is to confirm.
        confirmation: Numbers of the trials to confirm, in the order of their launches, as far as
            its steps are planned; None: none is.
        blocks: Lengths of the blocks of that order; empty: it is one block.
        slots: Number of slots that launch at the same time; it may change during a run.
        place: Slot of the next launch (:func:`autotune.search.places.place_of`); None: there is one
            slot.
        places: Slots of the running trials, by number.
    """

    trials: Sequence[FrozenTrial]
    pending: Sequence[Choice] = ()
    searching: bool = True
    confirmation: Sequence[int] | None = None
    blocks: Sequence[int] = ()
    slots: int = 1
    place: str | None = None
    places: Mapping[int, str] = field(default_factory=dict)

    @property
    def running(self) -> list[FrozenTrial]:
        """Trials that were begun and have not ended."""
        return [t for t in self.trials if t.state == TrialState.RUNNING]

    @property
    def unfinished(self) -> list[FrozenTrial | Choice]:
        """Trials that run, then those that are chosen."""
        return [*self.running, *self.pending]

    @property
    def finished(self) -> int:
        """Number of trials that count towards the wanted ones."""
        return sum(map(counts, self.trials))

    @property
    def begun(self) -> int:
        """Number of trials that count, run, or are chosen."""
        return self.finished + len(self.unfinished)

    def point(self, number: int, space: Space) -> Point:
        """Return the point of a trial."""
        return space.decode(next(t for t in self.trials if t.number == number).params)


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
        if not now.searching and not all(map(self._confirming, now.unfinished)):
            return None  # the last trials of the search may still be winners
        if self.confirms(now) and (now.confirmation is None or len(now.confirmation)):
            return self._to_confirm(now)
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
            now: The situation; its pending choices come first.
            most: How many at most, those that are pending included.
        """
        chosen = list(now.pending)
        confirms = any(map(self._confirming, now.running))
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
            chosen.append(choice)
        return chosen

    # -- the confirmation ------------------------------------------------------------------------

    def confirms(self, now: Situation) -> bool:
        """Return whether the next choice is of the confirmation, whose order must be known then.

        The last of the wanted trials are held back for it.
        """
        if self._confirmed(now) >= self.budget.held:
            return False
        return not now.searching or self._searched(now) >= self.budget.search

    def awaits_step(self, now: Situation) -> bool:
        """Return whether the next step of the confirmation is to be planned now.

        That is when all launches of its steps so far have ended, and those of the search.
        """
        if not self.confirms(now):
            return False
        if now.confirmation is None:
            return all(map(self._confirming, now.unfinished))
        if not 0 < len(now.confirmation) <= self._confirmed(now):
            return False
        left: list[FrozenTrial | Choice] = [*_unfinished(now.trials), *now.pending]
        return not any(map(self._confirming, left))

    def next_step(
        self,
        standing: Standing,
        trials: Sequence[FrozenTrial] = (),
        so_far: Spending | None = None,
        *,
        slots: int = 1,
    ) -> Spending:
        """Return the confirmation with the launches of its next step.

        Points that are one for the objectives are one candidate, with the launches of all of them,
        and the one that the search's model takes for the best is among the candidates. What
        follows a confirmation, without new trials of the search, goes on with what is still in
        question.

        Args:
            standing: Of all trials.
            trials: All trials that compare.
            so_far: Its steps so far; None: it begins.
            slots: Number of slots that launch at the same time.

        Raises:
            ValueError: an objective can be zero or negative.
        """
        found = standing.launched()
        directions = [o.direction for o in self._objectives]
        leader = None
        if self._alike is not None:
            found, leader = self._merged(found, trials)
        searched, base, places = found.searched, found.baseline, found.places
        held = self.budget.held
        if so_far is None:
            so_far = Spending([], held)
            if not (found.confirmed.keys() & searched.keys() and _ends_with_confirmation(trials)):
                first = candidates_of(
                    searched, directions, base, held, leader=leader, places=places
                )
                return with_step(so_far, first, slots)
        so_far = replace(so_far, held=held)
        return next_step(
            so_far,
            found.confirmed,
            searched,
            directions,
            base,
            slots=slots,
            places=places,
        )

    def _merged(
        self, found: Launched, trials: Sequence[FrozenTrial]
    ) -> tuple[Launched, int | None]:
        """Return what was launched by class, and the leader."""
        points = {
            t.number: self.space.decode(t.params) for t in trials if t.number in found.searched
        }
        trials = [t for t in trials if not attrs_of(t).quality.throttled]
        of = self._proposer.classes(trials).of
        numbers: dict[Key, list[int]] = {}
        for number in sorted(found.searched, key=lambda k: (k != found.baseline, k)):
            numbers.setdefault(key_of(of(points[number])), []).append(number)

        def merge(launches: Mapping[int, Sequence[T]]) -> dict[int, list[T]]:
            merged = {
                same[0]: [launch for k in same for launch in launches.get(k, ())]
                for same in numbers.values()
            }
            return {k: x for k, x in merged.items() if x}

        best = self._proposer.leader(trials)
        leading = None if best is None else numbers.get(key_of(of(best)))
        leader = None if leading is None else leading[0]
        searched, confirmed = merge(found.searched), merge(found.confirmed)
        places = Places(merge(found.places.searched), merge(found.places.confirmed))
        return replace(found, searched=searched, confirmed=confirmed, places=places), leader

    def _to_confirm(self, now: Situation) -> Choice | None:
        """Return the next launch of the confirmation; None: first its step has to end."""
        if now.confirmation is None:
            if not all(map(self._confirming, now.unfinished)):
                return None  # of the search
            raise ValueError("a confirmation needs an order")
        begun = self._confirmed(now)
        if begun >= len(now.confirmation):
            return None
        number, block = now.confirmation[begun], None
        if now.slots > 1 or now.blocks:
            every: list[FrozenTrial | Choice] = [*now.trials, *now.pending]
            own = filter(self._confirming, every)
            states = [(_attrs(x).confirmation_block, _is_unfinished(x)) for x in own]
            following = next_of_blocks(states, now.confirmation, now.blocks)
            if following is None:
                return None
            number, block = following
        attrs = TrialAttrs(
            Role.CONFIRMATION,
            confirms=number,
            confirmation=self.budget.wanted,
            confirmation_block=block,
        )
        return Choice(now.point(number, self.space), attrs)

    def _confirmed(self, now: Situation) -> int:
        """Return how many launches of this budget's confirmation are begun or chosen."""
        begun: list[FrozenTrial | Choice] = [*now.trials, *now.pending]
        return sum(map(self._confirming, begun))

    def _confirming(self, x: FrozenTrial | Choice) -> bool:
        """Return whether a trial is of this budget's confirmation."""
        return _attrs(x).confirmation == self.budget.wanted

    # -- the search ------------------------------------------------------------------------------

    def _searched(self, now: Situation) -> int:
        """Return how many finished trials of this budget searched."""
        return sum(counts(t) and not self._confirming(t) for t in now.trials)

    def _search_is_begun(self, now: Situation) -> bool:
        """Return whether all trials of the search are finished, run, or are chosen."""
        begun = sum(not self._confirming(x) for x in now.unfinished)
        return self._searched(now) + begun >= self.budget.search

    def _awaits_search(self, now: Situation) -> bool:
        """Return whether the search must end before anything else can be chosen."""
        return self._search_is_begun(now) and self._searched(now) < self.budget.search

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
        links = Links.of(now.trials, now.places, self.space)
        return None if links.wants_elsewhere(now.point(again, self.space), now.place) else again

    def _to_link(self, now: Situation) -> int | None:
        """Return the trial whose point the next slot launches, too, so that slots compare."""
        grid = self._spec.budget.replicates is None and self._spec.search.method == "grid"
        if now.place is None or grid:
            return None
        links = Links.of(now.trials, now.places, self.space)
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


def _attrs(x: FrozenTrial | Choice) -> TrialAttrs:
    """Return the attributes of a trial that was begun, or will be."""
    return x.attrs if isinstance(x, Choice) else attrs_of(x)


def _is_unfinished(x: FrozenTrial | Choice) -> bool:
    """Return whether a trial waits, runs, or was not begun."""
    return isinstance(x, Choice) or not x.state.is_finished()


def _searched(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return all trials but those of a confirmation."""
    return [t for t in trials if attrs_of(t).searches]


def _unfinished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that wait or run."""
    return [t for t in trials if _is_unfinished(t)]


def _ends_with_confirmation(trials: Sequence[FrozenTrial]) -> bool:
    """Return whether no trial of the search has ended since the last one of a confirmation."""
    ended = [t for t in trials if is_finished(t)]
    return bool(ended) and not attrs_of(ended[-1]).searches
