"""Batch budgets that are one for a study's objectives: which points, why, and what to serve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from autotune.engine.batch_budget import Budget, Load, Verdict, batch_budget
from autotune.engine.rule import NOTHING, Known
from autotune.engine.rules import infeasible
from autotune.search.alike import Alike, Key, key_of
from autotune.study.schema import StudySpec
from autotune.study.space import MNBT, Point, Space, Value, as_int
from autotune.study.workload import WorkloadSpec

# Of a larger space, or of more budgets, classes are not looked for: that would take seconds.
_MOST_POINTS, _MOST_BUDGETS = 20_000, 2_000
_MOST_KEPT = 2 * _MOST_POINTS


def load_of(workload: WorkloadSpec) -> Load:
    """Return what a study's load asks of a step.

    Only random prompts have a known length: those of a file get a chat template, and text is
    counted by the server's tokenizer.
    """
    drawn = workload.random
    return Load(
        concurrency=workload.max_concurrency,
        prompt=None if drawn is None else drawn.input_len,
        output=as_int(workload.output_len),
        images=None if drawn is None else False,
    )


@dataclass(frozen=True)
class Family:
    """The budgets of points that differ in MNBT only.

    Attributes:
        budgets: What is known of each MNBT that can launch, ascending.
    """

    budgets: Mapping[int, Budget]

    def smallest(self, mnbt: int, *, certain: bool) -> int:
        """Return the smallest MNBT that is one with another; that one itself if it may bind.

        Args:
            mnbt: One of the budgets.
            certain: Go by what is proven only.
        """
        allowed = {Verdict.SAME} if certain else {Verdict.SAME, Verdict.LIKELY}
        if self.budgets[mnbt].verdict not in allowed:
            return mnbt
        return next(x for x, b in self.budgets.items() if b.verdict in allowed)

    def sentence(self, mnbt: int, *, certain: bool) -> str | None:
        """Return why MNBT does not matter from some value up; None: it may, or it is alone.

        Args:
            mnbt: One of the budgets.
            certain: Go by what is proven only.
        """
        least = self.smallest(mnbt, certain=certain)
        own = self.budgets[least]
        unproven = certain and own.verdict is not Verdict.SAME
        if own.verdict is Verdict.BINDS or unproven or least == max(self.budgets):
            return None
        text = f"MNBT from {least} up is {own.verdict} here: {own.why}"
        return f"{text} (not proven: {'; '.join(own.conditions)})" if own.conditions else text


class Families:
    """The families of points.

    Args:
        values: Values of MNBT; of more than :data:`_MOST_BUDGETS` none is in a family.
        budget: Returns what is known of a point's MNBT; None: the point cannot launch.
    """

    def __init__(self, values: Iterable[int], budget: Callable[[Point], Budget | None]) -> None:
        found = sorted(set(values))
        self._values = dict.fromkeys(found if len(found) <= _MOST_BUDGETS else ())
        self._budget = budget
        self._found: dict[Key, Family] = {}
        self._smallest: dict[tuple[Key, bool], int | None] = {}

    def of(self, point: Point) -> Family | None:
        """Return the family of a point; None: the point is in none."""
        if point.get(MNBT) not in self._values:
            return None
        key = key_of({k: v for k, v in point.items() if k != MNBT})
        if key not in self._found:
            budgets = {x: self._budget({**point, MNBT: x}) for x in self._values}
            self._found[key] = Family({x: b for x, b in budgets.items() if b is not None})
        family = self._found[key]
        return family if point[MNBT] in family.budgets else None

    def sentence(self, point: Point, *, certain: bool = False) -> str | None:
        """Return why a point's MNBT does not matter from some value up; None: it may.

        Args:
            point: A point of the space.
            certain: Go by what is proven only.
        """
        family = self.of(point)
        return None if family is None else family.sentence(int(point[MNBT]), certain=certain)

    def stands_for(self, point: Point, *, certain: bool) -> dict[str, Value]:
        """Return the point with the smallest MNBT that is one with a point's.

        Args:
            point: A point of the space.
            certain: Go by what is proven only.
        """
        key = key_of(point), certain
        if key not in self._smallest:  # the search asks for every point again and again
            if len(self._smallest) >= _MOST_KEPT:
                self._smallest.clear()
            family = self.of(point)
            self._smallest[key] = (
                None if family is None else family.smallest(int(point[MNBT]), certain=certain)
            )
        least = self._smallest[key]
        return dict(point) if least is None else {**point, MNBT: least}

    def alike(self, space: Space) -> Alike | None:
        """Return the classes of a space; None: no two points are one, or it is too large."""
        size = space.size()
        if size is None or size > _MOST_POINTS:
            return None
        if all(self.stands_for(q, certain=False) == q for q in space.points() or ()):
            return None
        return Alike(
            MNBT,
            lambda q: self.stands_for(q, certain=True),
            lambda q: self.stands_for(q, certain=False),
        )


def families_of(spec: StudySpec, vllm: str | None, known: Known = NOTHING) -> Families:
    """Return the families of a study's points.

    Args:
        spec: The study.
        vllm: vLLM's version; None: unknown.
        known: Facts about machine and target.
    """
    load, searched = load_of(spec.workload), spec.to_space().params.get(MNBT)
    values = () if searched is None else searched.values() or ()

    def budget(point: Point) -> Budget | None:
        settings = spec.settings(point)
        if infeasible(settings, vllm, known) is not None:
            return None
        return batch_budget(settings, vllm, load, known)

    return Families([x for x in values if type(x) is int], budget)
