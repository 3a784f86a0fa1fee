"""Batch budgets that are one for a study's objectives: which points, why, and what to serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.engine.batch_budget import Budget, Load, Verdict, batch_budget
from autotune.engine.rule import NOTHING, Known
from autotune.search.alike import Alike, key_of
from autotune.study.schema import StudySpec
from autotune.study.space import MNBT, Point, Value, as_int
from autotune.study.workload import WorkloadSpec

# Of a larger space classes are not looked for.
_MOST_POINTS = 20_000


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
        budgets: What is known of each MNBT, ascending.
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

    def sentence(self, mnbt: int) -> str | None:
        """Return why MNBT does not matter from some value up; None: it may, or it is alone.

        Args:
            mnbt: One of the budgets.
        """
        least = self.smallest(mnbt, certain=False)
        own = self.budgets[least]
        others = [b for x, b in self.budgets.items() if x > least]
        if own.verdict is Verdict.BINDS or not others:
            return None
        text = f"MNBT from {least} up is {own.verdict} here: {own.why}"
        return f"{text}, given {_listed(own.conditions)}" if own.conditions else text


def _listed(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


class Families:
    """The families of a study's points.

    Args:
        spec: The study.
        vllm: vLLM's version; None: unknown.
        known: Facts about machine and target.
    """

    def __init__(self, spec: StudySpec, vllm: str | None, known: Known = NOTHING) -> None:
        self._spec, self._vllm, self._known = spec, vllm, known
        self._load = load_of(spec.workload)
        searched = spec.space.get(MNBT)
        values = () if searched is None else searched.values() or ()
        self._values = sorted(x for x in values if type(x) is int)
        self._found: dict[frozenset[tuple[str, Value]], Family] = {}

    def of(self, point: Point) -> Family | None:
        """Return the family of a point; None: MNBT is not searched among several values."""
        if len(self._values) < 2 or point.get(MNBT) not in self._values:
            return None
        key = key_of({k: v for k, v in point.items() if k != MNBT})
        if key not in self._found:
            self._found[key] = Family({x: self._budget(point, x) for x in self._values})
        return self._found[key]

    def _budget(self, point: Point, mnbt: int) -> Budget:
        settings = self._spec.settings({**point, MNBT: mnbt})
        return batch_budget(settings, self._vllm, self._load, self._known)

    def stands_for(self, point: Point, *, certain: bool) -> dict[str, Value]:
        """Return the point with the smallest MNBT that is one with a point's.

        Args:
            point: A point of the space.
            certain: Go by what is proven only.
        """
        family = self.of(point)
        if family is None:
            return dict(point)
        return {**point, MNBT: family.smallest(int(point[MNBT]), certain=certain)}


def alike(spec: StudySpec, vllm: str | None, known: Known = NOTHING) -> Alike | None:
    """Return the classes of a study's points; None: no two points are one, or it is too large.

    Args:
        spec: The study.
        vllm: vLLM's version; None: unknown.
        known: Facts about machine and target.
    """
    space, families = spec.to_space(), Families(spec, vllm, known)
    size = space.size()
    if size is None or size > _MOST_POINTS:
        return None
    if all(families.stands_for(q, certain=False) == q for q in space.points() or ()):
        return None
    return Alike(
        MNBT,
        lambda q: families.stands_for(q, certain=True),
        lambda q: families.stands_for(q, certain=False),
    )
