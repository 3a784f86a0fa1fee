"""Which launch of the confirmation is next, and when its next step is planned.

Pure, as :mod:`autotune.tuning.planner`, of which it is a part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from optuna.trial import FrozenTrial

from autotune.results.standing import Launched, Standing, counts, is_finished
from autotune.search.alike import Alike, Key, key_of
from autotune.search.confirmation import candidates_of
from autotune.search.confirmation_steps import next_step, with_step
from autotune.search.places import Places
from autotune.search.proposer import Proposer
from autotune.search.spending import Spending
from autotune.storage.records import Role, TrialAttrs, attrs_of
from autotune.study.space import Space
from autotune.tuning.placement import next_of_blocks
from autotune.tuning.situation import Budget, Choice, Situation, attrs_at_begin, is_unfinished
from objectives import Objective

T = TypeVar("T")


class ConfirmationPlanner:
    """Chooses the launches of one study's confirmation.

    Args:
        objectives: With the study's directions.
        budget: How many trials there are.
        space: The searched parameters, as the study keeps them.
        proposer: Proposes the points of the search; its model says which one is the best.
        alike: Points that are one for the objectives; None: there are none.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        budget: Budget,
        space: Space,
        proposer: Proposer,
        alike: Alike | None,
    ) -> None:
        self._objectives = objectives
        self.budget = budget
        self.space = space
        self._proposer = proposer
        self._alike = alike

    def confirms(self, now: Situation) -> bool:
        """Return whether the next choice is of the confirmation, whose order must be known then.

        The last of the wanted trials are held back for it.
        """
        if self.confirmed(now) >= self.budget.held:
            return False
        return not now.searching or self.searched(now) >= self.budget.search

    def awaits_step(self, now: Situation) -> bool:
        """Return whether the next step of the confirmation is to be planned now.

        That is when all launches of its steps so far have ended, and those of the search.
        """
        if not self.confirms(now):
            return False
        if now.confirmation is None:
            return all(map(self.confirming, now.unfinished))
        if not 0 < len(now.confirmation) <= self.confirmed(now):
            return False
        left: list[FrozenTrial | Choice] = [*filter(is_unfinished, now.trials), *now.pending]
        return not any(map(self.confirming, left))

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

    def choose(self, now: Situation) -> Choice | None:
        """Return the next launch of the confirmation; None: first its step has to end."""
        if now.confirmation is None:
            if not all(map(self.confirming, now.unfinished)):
                return None  # of the search
            raise ValueError("a confirmation needs an order")
        begun = self.confirmed(now)
        if begun >= len(now.confirmation):
            return None
        number, block = now.confirmation[begun], None
        if now.slots > 1 or now.blocks:
            every: list[FrozenTrial | Choice] = [*now.trials, *now.pending]
            own = filter(self.confirming, every)
            states = [
                (attrs_at_begin(x).confirmation_block, is_unfinished(x), now.is_here(x))
                for x in own
            ]
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

    def confirmed(self, now: Situation) -> int:
        """Return how many launches of this budget's confirmation are begun or chosen."""
        begun: list[FrozenTrial | Choice] = [*now.trials, *now.pending]
        return sum(map(self.confirming, begun))

    def confirming(self, x: FrozenTrial | Choice) -> bool:
        """Return whether a trial is of this budget's confirmation."""
        return attrs_at_begin(x).confirmation == self.budget.wanted

    def searched(self, now: Situation) -> int:
        """Return how many finished trials of this budget searched."""
        return sum(counts(t) and not self.confirming(t) for t in now.trials)


def _ends_with_confirmation(trials: Sequence[FrozenTrial]) -> bool:
    """Return whether no trial of the search has ended since the last one of a confirmation."""
    ended = [t for t in trials if is_finished(t)]
    return bool(ended) and not attrs_of(ended[-1]).searches
