"""What a study says of all settings: that none differs from the baseline, or is better, by much.

It is computed from the stored launches (:mod:`autotune.search.flatness`), whatever chose them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autotune.engine.rules import why_infeasible
from autotune.results.budget_note import compared_launches, rules_of
from autotune.results.text import HEADINGS, count, lower, plain, ranges
from autotune.results.views import StudyView
from autotune.search.alike import Classes, Launched, key_of
from autotune.search.flatness import LEVEL, MOST_POINTS, Flatness, flatness
from autotune.storage.store import Store
from autotune.study.space import ARM, ChoiceParam, N, Point, Space, Value, canonical
from objectives import Objective

# Largest difference that is worth a statement: a quarter. Who drafts hopes for 1.3 times and more.
WORTH = 0.25
# Where launches of one setting differ by more, it is so many times their standard deviation: fewer
# launches than a search makes cannot show less. It is half at most.
_TIMES_BETWEEN, _MOST_WORTH = 5.0, 0.5
_MOST_SIZE = 5_000  # points of a space that are looked at for those that can launch


@dataclass(frozen=True)
class Statement:
    """How far any setting can differ from the baseline, where that is little.

    Attributes:
        differs: Largest difference in either direction, as a share (0.12 is 12 %), by objective
            name; empty: it is more than is worth a statement in one of them, or unknown. A quarter
            is; where launches of one setting differ by more than 5 % (standard deviation), five
            times that, half at most.
        better: Largest improvement, likewise, of the objectives in which it is at most a quarter,
            or of all where none differs by more; empty: it is more, or unknown, in the first one.
        settings: Number of settings that can launch, without those that were launched and only
            failed; those that are one for the objectives count once.
        measured: Number of them of which a launch gave numbers.
        unmeasured: Values of n, and of parameters that are a choice, of which none was measured, by
            parameter: a jump there is not seen.
    """

    differs: Mapping[str, float]
    better: Mapping[str, float]
    settings: int
    measured: int
    unmeasured: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def lines(self, objectives: Sequence[Objective]) -> list[str]:
        """Return it in words: what holds, then for what; empty: nothing is to be said.

        Args:
            objectives: Objectives of the study.
        """
        if self.differs:
            what, by = "differs from", self.differs
        elif self.better:
            what, by = "is better than", self.better
        else:
            return []
        names = {o.name: plain(lower(o.title)) for o in objectives}
        parts = [f"{_percent(share)} in {names[name]}" for name, share in by.items()]
        most = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
        about = f"This is about {count(self.settings, 'setting')}, of which {self.measured} were"
        jump = "a jump between measured ones"
        if self.unmeasured:
            at = " or ".join(
                f"{HEADINGS.get(k, k)} = {_in_words(x)}" for k, x in self.unmeasured.items()
            )
            jump = f"a jump at {at}, where none was measured,"
        return [
            f"No setting {what} the baseline by more than {most}, with {LEVEL:.0%} probability.",
            f"{about} measured, and assumes that neighbors are similar: {jump} would not be seen.",
        ]

    def to_json(self) -> dict[str, object]:
        """Return it as plain data."""
        return {
            "differs_at_most": dict(self.differs) or None,
            "better_at_most": dict(self.better) or None,
            "probability": LEVEL,
            "settings": self.settings,
            "measured": self.measured,
            "never_measured": {name: list(values) for name, values in self.unmeasured.items()},
        }


def statement_of(store: Store, view: StudyView) -> Statement | None:
    """Return what a study says of all settings; None: it has too few launches to say anything.

    Args:
        store: Database of the study.
        view: The study.
    """
    base = next((t for t in view.trials if t.baseline and t.values and t.may_win), None)
    if base is None or (rules := rules_of(store, view, base)) is None:
        return None
    if any(x <= 0 for t in view.trials if t.comparable for x in (t.values or {}).values()):
        return None  # such a value has no ratio
    spec = rules.loaded.spec
    space = spec.to_space()
    if (size := space.size()) is None or size > _MOST_SIZE:
        return None
    numbers = {key_of(t.point) for t in view.trials if t.values is not None}
    failed = {key_of(t.point) for t in view.trials if t.state == "failed"} - numbers
    points = [
        q
        for q in space.points() or ()
        if canonical(space, q) == q
        and key_of(q) not in failed
        and why_infeasible(spec.settings(q), rules.version, rules.known) is None
    ]
    launched = list(compared_launches(store, spec, view.name, view.objectives))
    classes = Classes(rules.families.alike(space), launched)
    return stated(space, launched, points, canonical(space, base.point), classes, view.objectives)


def stated(
    space: Space,
    launched: Sequence[Launched],
    points: Sequence[Point],
    baseline: Point,
    classes: Classes,
    objectives: Sequence[Objective],
) -> Statement | None:
    """Return what launches say of all points; None: they are too few, or the points too many.

    Args:
        space: Searched parameters.
        launched: Launches that compare.
        points: Points that can launch.
        baseline: Point that they are compared with.
        classes: Points that are one for the objectives.
        objectives: The objectives, in the order of the launches' costs.
    """
    named = [_Of(classes.of(x.point), x.costs, x.variances) for x in launched]
    own = {key_of(x.point): x.point for x in named}
    every = {key_of(q): q for q in map(classes.of, points)} | own
    if len(every) > MOST_POINTS:
        return None
    found = flatness(space, named, list(every.values()), classes.of(baseline))
    if found is None:
        return None
    differs, better = _shares(found, objectives)
    limits = np.clip(_TIMES_BETWEEN * found.between, WORTH, _MOST_WORTH)
    flat = all(share <= limit for share, limit in zip(differs.values(), limits, strict=True))
    little = {name: share for name, share in better.items() if flat or share <= WORTH}
    return Statement(
        differs if flat else {},
        little if objectives[0].name in little else {},
        len(every),
        len(own),
        _unmeasured(space, list(every.values()), list(own.values())),
    )


def _unmeasured(
    space: Space, points: Sequence[Point], measured: Sequence[Point]
) -> dict[str, tuple[Value, ...]]:
    """Return the values of n and of each choice that only points without numbers have."""
    names = [k for k, p in space.params.items() if k == N or isinstance(p, ChoiceParam)]
    found = {}
    for name in names:
        # without a draft, a point belongs to all arms
        known = {q[name] for q in measured if name != ARM or q.get(N) != 0}
        values = {q[name]: None for q in points if name != ARM or q.get(N) != 0}
        if left := [v for v in values if v not in known]:
            found[name] = tuple(sorted(left) if name == N else left)
    return found


def _in_words(values: Sequence[Value]) -> str:
    """Return values of one parameter, numbers as ranges."""
    numbers = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
    return ranges(numbers) if len(numbers) == len(values) else ", ".join(map(str, values))


@dataclass(frozen=True)
class _Of:
    """A launch, as that of the point that stands for its class."""

    point: Point
    costs: Sequence[float]
    variances: Sequence[float]


def _shares(
    found: Flatness, objectives: Sequence[Objective]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return both bounds as shares, by objective name."""
    names = [o.name for o in objectives]
    differs = {name: math.expm1(x) for name, x in zip(names, found.differs, strict=True)}
    better = {
        o.name: math.expm1(x) if o.direction == "maximize" else -math.expm1(-x)
        for o, x in zip(objectives, found.better, strict=True)
    }
    return differs, better


def _percent(share: float) -> str:
    """Return a share in percent, rounded up, as a bound is."""
    return f"{max(1, math.ceil(100 * share - 1e-9))}%"
