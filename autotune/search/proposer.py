"""The proposer of a study: of the points that can launch, the one with the largest expected gain.

The first trials are planned (:func:`seed_points`): the baseline, the largest n, and a small n. The
acceptance of the largest n at each position says most about all other n; the small n shows the time
of a step. Then :mod:`autotune.search.model` chooses among all points that the rules allow and that
are not likely to crash. Launched points are among them; they are then launched again. What begins
while there are too few outcomes for a model fills the space (:mod:`autotune.search.filling`).

A fit to t trials takes t³ operations and memory for t² numbers. Therefore the model sees at most
``MODEL_TRIALS`` trials, which :func:`informative` selects.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from autotune.errors import FailureKind
from autotune.search.alike import Alike, Classes, key_of
from autotune.search.crashes import CrashModel, Kept
from autotune.search.features import unit
from autotune.search.filling import fill
from autotune.search.front import Direction
from autotune.search.informative import informative
from autotune.search.model import Observed, Proposal, optimistic, propose
from autotune.search.places import on_one_slot, place_of
from autotune.search.stated import StatedBounds
from autotune.stats.measurement import Floats
from autotune.study.space import (
    ARM,
    ChoiceParam,
    FloatParam,
    N,
    Point,
    Space,
    Value,
    canonical,
    first_value,
)
from autotune.study.ways import curve_of

# Seeds after the baseline: n, and the level of every other parameter from 0 to 1; None: the
# baseline's value, so that only n differs.
_SEEDS = ((15, None), (3, 0.5))
# Fewest outcomes that a model proposes by.
_OUTCOMES = 2
# Largest number of trials that the model is fitted to.
MODEL_TRIALS = 200
# Number of random points that are drawn before giving up, if a parameter is real-valued.
_DRAWS = 10_000
# Largest number of points in one proposal; of a larger space each proposal has another random part.
_MOST_CANDIDATES = 1500
# Expected improvement of an objective below which the model is challenged, if no search ends.
_DOUBT = 0.005
# Launches that a search has at least, where classes of points saved some: the leaders are launched
# again, because the best of few single launches is often the luckiest one.
LEAST_WITH_CLASSES = 8
# Number of classes that may lead.
_LEADERS = 3


class SearchEnds(Exception):
    """No point should be launched."""


class Converged(SearchEnds):
    """No launch is expected to be worth its time.

    Attributes:
        gain: Largest expected improvement of an objective, or of their geometric mean, as a share.
    """

    def __init__(self, gain: float) -> None:
        super().__init__(f"no objective is expected to improve by more than {gain:.2%}")
        self.gain = gain


class Undecided(SearchEnds):
    """No point should be launched before a running launch has ended."""


class SpaceExhausted(SearchEnds):
    """Every point that can launch has been tried."""


def grid_points(space: Space) -> list[dict[str, Value]]:
    """Return every point that is a distinct launch, by ascending values of the first parameter.

    Raises:
        ValueError: one parameter is real-valued.
    """
    points = space.points()
    if points is None:
        raise ValueError("a grid needs parameters with a list of values; float has none")
    return [q for q in points if canonical(space, q) == q]


def seed_points(
    space: Space, baseline: Point, feasible: Callable[[Point], bool]
) -> list[dict[str, Value]]:
    """Return the baseline, then up to two points that show the space to the model.

    With arms, these two have the baseline's arm, and every other arm has a point: its largest n up
    to that of the first seed, since a draft's acceptance is known from its own launches only.

    Args:
        space: Searched parameters.
        baseline: Point of the first trial, usually with n = 0.
        feasible: Returns whether the rules allow a point; other seeds move to the nearest that is.
    """
    seeds = [dict(baseline)]
    for i, (n, level) in enumerate(_SEEDS):
        point: dict[str, Value] = {}
        for name, p in space.params.items():
            values = p.values()
            if name == ARM:
                point[name] = baseline[name]
            elif name == N:
                point[name] = space.clip(N, n)
            elif level is None:
                point[name] = baseline[name]
            elif isinstance(p, ChoiceParam):
                point[name] = p.choices[i % len(p.choices)]
            elif isinstance(p, FloatParam):
                point[name] = p.low + level * (p.high - p.low)
            elif values:
                point[name] = values[round(level * (len(values) - 1))]
        point = canonical(space, point)
        if space.ways and point in seeds:
            continue  # the arm has one n
        moved = nearest(space, point, lambda q: feasible(q) and q not in seeds)
        if moved is not None:
            seeds.append(moved)
    for arm in space.arms:
        if not any(q[ARM] == arm and q[N] for q in seeds):
            moved = _seed_of(space, arm, baseline, feasible)
            seeds += [] if moved is None else [moved]
    return seeds


def _seed_of(
    space: Space, arm: str, baseline: Point, feasible: Callable[[Point], bool]
) -> dict[str, Value] | None:
    """Return the seed of an arm; None: none of its points is allowed."""
    values = space.ways[arm].params[N].values() or ()
    n = min(_SEEDS[0][0], max(v for v in values if isinstance(v, int)))
    point = canonical(space, {**baseline, **_first_of(space, arm), ARM: arm, N: n})
    return nearest(space, point, lambda q: q[ARM] == arm and q[N] != 0 and feasible(q))


def _first_of(space: Space, arm: str) -> dict[str, Value]:
    """Return an arm's own parameters with their first values."""
    return {name: first_value(p) for name, p in space.ways[arm].params.items()}


def nearest(
    space: Space, point: Point, allowed: Callable[[Point], bool]
) -> dict[str, Value] | None:
    """Return the allowed point that is nearest by the model's features; None: none is allowed.

    If a parameter is real-valued, it is the nearest of the given point and random ones.
    """
    if space.contains(point) and allowed(point):
        return dict(point)
    candidates: Iterator[dict[str, Value]] = space.points() or itertools.islice(
        _random_points(space, np.random.default_rng(0)), _DRAWS
    )
    target = np.array(unit(space, point))
    best: tuple[float, dict[str, Value]] | None = None
    for q in candidates:
        d = float(np.sum((np.array(unit(space, q)) - target) ** 2))
        if (best is None or d < best[0]) and allowed(q):
            best = (d, q)
    return best[1] if best else None


class PointSet:
    """A set of points."""

    def __init__(self, points: Iterable[Point]) -> None:
        self._keys = set(map(key_of, points))

    def __contains__(self, point: Point) -> bool:
        return key_of(point) in self._keys


def tried_points(
    space: Space, trials: Iterable[FrozenTrial], pending: Iterable[Point] = ()
) -> PointSet:
    """Return the points of the trials that have one, and the pending points."""
    tried = (space.decode(t.params) for t in trials if space.has_point(t.params))
    return PointSet(itertools.chain(tried, pending))


def _random_points(space: Space, rng: np.random.Generator) -> Iterator[dict[str, Value]]:
    parts = space.parts()
    while True:
        part = parts[int(rng.integers(len(parts)))] if len(parts) > 1 else space
        point: dict[str, Value] = {}
        for name, p in part.params.items():
            values = p.values()
            if values is not None:
                point[name] = values[int(rng.integers(len(values)))]
            elif isinstance(p, FloatParam):
                u = float(rng.random())
                point[name] = (
                    p.low * (p.high / p.low) ** u if p.log else p.low + u * (p.high - p.low)
                )
        yield point


def launched_of(
    space: Space, trials: Sequence[FrozenTrial], directions: Sequence[Direction]
) -> list[Observed]:
    """Return measured trials as the model sees them.

    Of trials on several slots, how the slots differ is taken out of the logarithms, as far as
    points that they share tell; what is not known of it is added to the variances.

    Args:
        space: Searched parameters.
        trials: Complete trials, each with a point.
        directions: Better direction of each objective.
    """
    values = np.array([t.values for t in trials], dtype=np.float64)
    sign = np.array([-1.0 if d == "maximize" else 1.0 for d in directions])
    positive = np.all(values > 0, axis=0).reshape(-1)
    # an objective that can be zero or negative has no logarithm: its unit is its own spread
    spread = np.maximum(values.std(axis=0), 1e-9)
    costs = sign * np.where(positive, np.log(np.where(positive, values, 1.0)), values / spread)
    keys = [key_of(space.decode(t.params)) for t in trials]
    places = [place_of(t.user_attrs.get("slot")) for t in trials]
    several = len(set(places)) > 1 and bool(positive.any())
    unsure = np.zeros_like(costs)
    if several:
        level, more = on_one_slot(costs[:, positive], keys, places)
        costs[:, positive], unsure[:, positive] = level, more
    out = []
    for t, own, row, more in zip(trials, values, costs, unsure, strict=True):
        variances = t.user_attrs.get("log_variances") or ()
        known = len(variances) == len(row)
        rate = None
        if positive[0]:
            rate = float(own[0] if directions[0] == "maximize" else 1 / own[0])
            rate = math.exp(-row[0]) if several else rate
        point = space.decode(t.params)
        out.append(
            Observed(
                point,
                tuple(float(c) for c in row),
                tuple(
                    float(v) + float(w) if known and v is not None and p else math.nan
                    for v, w, p in zip(variances if known else row, more, positive, strict=True)
                ),
                rate,
                tuple(t.user_attrs.get("acceptance_per_position") or ()),
                t.user_attrs.get("acceptance_length"),
                curve_of(space, point) if point.get(N) != 0 else "",
            )
        )
    return out


class Proposer:
    """Propose the launches of one study.

    Args:
        space: Searched parameters.
        infeasible: Returns why the rules forbid a point, or None.
        directions: Better direction of each objective.
        method: ``gp`` or ``random``; a grid needs no proposer.
        seed: Seed of every random draw, together with the number of trials, including running
            ones. So a resumed study does not repeat the draws of its beginning.
        stop_below: Expected improvement of an objective by a launch, as a share, below which the
            search has converged when the challenges have changed nothing; 0: never.
        fixed_n: n of all points, where it is not searched.
        known: Returns a number on which objectives may depend, or None; see
            :func:`autotune.search.model.propose`.
        alike: Points that are one for the objectives; None: there are none. Only ``gp`` uses them.
    """

    def __init__(
        self,
        space: Space,
        infeasible: Callable[[Point], str | None],
        directions: Sequence[Direction],
        *,
        method: str,
        seed: int,
        stop_below: float = 0.0,
        fixed_n: int | None = None,
        known: Callable[[Point], float] | None = None,
        alike: Alike | None = None,
    ) -> None:
        self._space = space
        self._alike = alike if method == "gp" else None
        self._infeasible = infeasible
        self._directions = directions
        self._method = method
        self._seed = seed
        self._stop_below = stop_below
        self._fixed_n = fixed_n
        self._known = known
        self._kept: Kept = {}

    def propose(
        self,
        trials: Sequence[FrozenTrial],
        running: Sequence[Point] = (),
        throttled: Collection[int] = (),
    ) -> Proposal:
        """Return the next launch after ``trials`` and ``running``.

        Args:
            trials: Trials that have ended; trials in another state count as tried only.
            running: Points of launches before this one whose outcomes are not known yet. A batch is
                proposed one by one, each with those before it as running.
            throttled: Numbers of the trials whose load vLLM throttled. They never win, so to the
                search they are launches that failed: their numbers are not learned from, and the
                points around them are avoided.

        Raises:
            SpaceExhausted: every point that can launch has been tried or is running.
            Converged: no launch is expected to improve an objective by ``stop_below``, and no
                challenge is left.
            Undecided: the same, but a running launch may change it.
        """
        done = [t for t in trials if t.state == TrialState.COMPLETE]
        complete = [t for t in done if t.number not in throttled]
        launched = self._launched(complete) if self._method == "gp" else []
        classes = Classes(self._alike, launched)
        tried = tried_points(self._space, trials, running)
        rng = np.random.default_rng([self._seed, len(trials) + len(running)])
        stated = StatedBounds(self._space, trials)
        own = [*(self._space.decode(t.params) for t in complete), *running]

        def is_new(q: Point) -> bool:
            return q not in tried and stated.why_not(q) is None

        points = self._alone(self._new_points(is_new, rng), own, classes)
        crashes = self._crashes(trials, stated, throttled)
        new, chances = _safe(points, crashes)
        if not new and (self._alike is None or len(complete) < _OUTCOMES):
            raise SpaceExhausted
        if self._method != "gp":
            return Proposal(new[int(rng.integers(len(new)))])
        seen = [self._space.decode(t.params) for t in trials if self._space.has_point(t.params)]
        if len(complete) < _OUTCOMES:
            named = [classes.of(q) for q in new]
            taken = [classes.of(q) for q in (*seen, *running)]
            return Proposal(new[fill(self._space, named, taken, chances, rng)])
        chances = chances * crashes.apart(new, running)
        found = self._ask(launched, new, chances, running, classes, seen)
        ends = not new or (found.settled and self._stop_below > 0)
        relies = found.challenge and not found.fills_gap and self._stop_below > 0  # on the classes
        left = [q for q in self._feasible or () if is_new(q)] if ends or relies else []
        if ends:
            if (again := self._again(found, own, classes, left)) is not None:
                return replace(found, point=again)
            if running:
                raise Undecided
            if (last := self._excluded(launched, points, crashes)) is not None:
                return replace(found, point=last, challenge=True)
            raise Converged(found.gain or 0.0) if new else SpaceExhausted
        if relies and (check := self._check(found.leaders[:1], own, classes, left)) is not None:
            return replace(found, point=check)
        members = classes.smallest(new)
        for q in reversed(own):  # a class that was launched is launched again at its first point
            members[key_of(classes.of(q))] = dict(q)
        return replace(found, point=members[key_of(found.point)])

    def _excluded(
        self, launched: Sequence[Observed], points: Sequence[Point], crashes: CrashModel
    ) -> Point | None:
        """Return the point that is launched although it may crash; None: there is none.

        It is the best optimistic case of the points next to one that ran, in a region where one
        launch failed. So a region costs one more launch, unless the search goes on there.
        """
        near = [q for q, may in zip(points, crashes.retriable(points), strict=True) if may]
        if not near:
            return None
        hopes = optimistic(self._space, launched, near, self._fixed_n, self._known)
        best = int((hopes * crashes.chances(near)).argmax())
        return near[best] if hopes[best] >= self._stop_below else None

    def classes(self, trials: Sequence[FrozenTrial]) -> Classes:
        """Return the classes of points, after what the trials say about the likely ones.

        Args:
            trials: Trials that have ended; only measured ones count.
        """
        return Classes(self._alike, self._launched(trials) if self._alike is not None else ())

    def _launched(self, trials: Sequence[FrozenTrial]) -> list[Observed]:
        """Return the measured trials that the model is fitted to, as it sees them."""
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        if not complete:
            return []
        seen = informative(complete, self._directions, MODEL_TRIALS)
        return launched_of(self._space, seen, self._directions)

    def leader(self, trials: Sequence[FrozenTrial]) -> Point | None:
        """Return a launched point of the class with the best mean of the first objective by belief.

        The model's mean of a class is drawn towards its neighbors, so that a lucky launch leads
        less often than by its own mean.

        Args:
            trials: Trials that have ended.

        Returns:
            The point that was launched first; None: there are no classes, or fewer than two
            measured launches.
        """
        launched = [] if self._alike is None else self._launched(trials)
        if len(launched) < 2:
            return None
        classes = Classes(self._alike, launched)
        found = self._ask(launched, [], np.empty(0), (), classes)
        best = key_of(found.leaders[0])
        return next(x.point for x in launched if key_of(classes.of(x.point)) == best)

    def _ask(
        self,
        launched: Sequence[Observed],
        new: Sequence[Point],
        chances: Floats,
        running: Sequence[Point],
        classes: Classes,
        seen: Sequence[Point] = (),
    ) -> Proposal:
        """Return the model's proposal, of points that stand for their classes."""
        return propose(
            self._space,
            [replace(item, point=classes.of(item.point)) for item in launched],
            [classes.of(q) for q in new],
            chances,
            self._stop_below or _DOUBT,
            self._fixed_n,
            self._known,
            pending=[classes.of(q) for q in running],
            seen=[classes.of(q) for q in seen],
            ends=self._stop_below > 0,
        )

    def _again(
        self,
        found: Proposal,
        own: Sequence[Point],
        classes: Classes,
        untried: Sequence[Point],
    ) -> dict[str, Value] | None:
        """Return the point whose launch the end of the search waits for; None: it may end.

        Args:
            found: The model's last proposal.
            own: Points of the measured launches, then of the running ones.
            classes: Classes of points.
            untried: Points that can launch and were not launched.
        """
        if self._alike is None:
            return None
        leaders = found.leaders[:_LEADERS]
        if (check := self._check(leaders, own, classes, untried)) is not None:
            return check
        if len(own) >= LEAST_WITH_CLASSES:
            return None
        launches = [[q for q in own if classes.of(q) == leader] for leader in leaders]
        return dict(min(launches, key=len)[0])

    def _check(
        self,
        leaders: Sequence[Point],
        own: Sequence[Point],
        classes: Classes,
        untried: Sequence[Point],
    ) -> dict[str, Value] | None:
        """Return the point that checks the class of a leader; None: none is left to check.

        Args:
            leaders: Points that stand for the classes, in the order of their turn.
            own: Points of the measured launches, then of the running ones.
            classes: Classes of points.
            untried: Points that can launch and were not launched.
        """
        if self._alike is None:
            return None
        for leader in leaders:
            first = next(q for q in own if classes.of(q) == leader)
            if (check := classes.to_check(first, own, untried)) is not None:
                return check
        return None

    def _alone(
        self, new: Sequence[dict[str, Value]], own: Sequence[Point], classes: Classes
    ) -> list[dict[str, Value]]:
        """Return one point of each class of which none was launched."""
        if self._alike is None:
            return list(new)
        launched = {key_of(classes.of(q)) for q in own}
        return [q for key, q in classes.smallest(new).items() if key not in launched]

    def _crashes(
        self, trials: Sequence[FrozenTrial], stated: StatedBounds, throttled: Collection[int]
    ) -> CrashModel:
        """Return where launches fail, by the trials so far."""
        placed = [t for t in trials if self._space.has_point(t.params)]
        done = [t for t in placed if t.state == TrialState.COMPLETE]
        return CrashModel(
            self._space,
            [self._space.decode(t.params) for t in done if t.number not in throttled],
            [
                (self._space.decode(t.params), str(t.user_attrs.get("failure_kind")))
                for t in placed
                if crashed(t) and t.number not in stated.trials
            ]
            + [(self._space.decode(t.params), "throttled") for t in done if t.number in throttled],
            self._kept,
        )

    def _new_points(
        self, is_new: Callable[[Point], bool], rng: np.random.Generator
    ) -> list[dict[str, Value]]:
        """Return untried points that rules and bounds allow; of a large space a random part."""
        if self._feasible is not None:
            new = list(filter(is_new, self._feasible))
            if len(new) > _MOST_CANDIDATES:
                picks = rng.choice(len(new), _MOST_CANDIDATES, replace=False)
                new = [new[i] for i in sorted(picks)]
            return new
        points = (canonical(self._space, q) for q in _random_points(self._space, rng))
        draws = itertools.islice(points, _DRAWS)
        allowed = (q for q in draws if is_new(q) and self._infeasible(q) is None)
        return list(itertools.islice(allowed, _MOST_CANDIDATES))

    @cached_property
    def _feasible(self) -> list[dict[str, Value]] | None:
        """Every point that the rules allow; None: a parameter is real-valued."""
        points = self._space.points()
        if points is None:
            return None
        own = (q for q in points if canonical(self._space, q) == q)
        return [q for q in own if self._infeasible(q) is None]


def _safe(
    points: Sequence[dict[str, Value]], crashes: CrashModel
) -> tuple[list[dict[str, Value]], Floats]:
    """Return the points that are not too likely to crash, and their chances to launch.

    If all points are, it is the most likely one to launch, if its chance is above 50 %.
    """
    safe = ~crashes.all_avoided(points)
    chances = crashes.chances(points)
    if not safe.any():
        safe = (chances > 0.5) & (chances == chances.max(initial=0.0))
    return [q for q, s in zip(points, safe, strict=True) if s], chances[safe]


def crashed(trial: FrozenTrial) -> bool:
    """Return whether a trial's launch failed and no rule had foreseen it."""
    kind = trial.user_attrs.get("failure_kind")
    return trial.state == TrialState.FAIL and kind is not None and kind != FailureKind.INFEASIBLE
