"""The sampler of a study: only points that can launch, none of them twice.

Optuna's ``GPSampler`` proposes (in replay on this shape of problem it had the best hypervolume of
Optuna's samplers after 40 trials); its proposal is then moved to the nearest point of the
space that the rules allow and that has not been measured. It knows nothing of rules: without the
move, it would propose the same forbidden corner again and again, since a trial without numbers
teaches it nothing.

Fitting a Gaussian process to t trials takes t³ operations, and memory for t². The process is
therefore conditioned on ``GP_TRIALS`` trials at most: :func:`informative` says which. A study with
fewer measured trials is searched as by Optuna's sampler alone.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune.space import ChoiceParam, FloatParam, N, Point, Space, Value

# Seeds beside the baseline: n doubles (acceptance falls off geometrically, so the steps between
# small n matter most), each at another level of every other parameter, like a Latin square.
_SEED_N = (3, 7, 1)
_SEED_LEVEL = (1.0, 0.5, 0.0)
# What the model is conditioned on at most. A proposal from 1000 trials took 14 s on one core.
GP_TRIALS = 200
# For spaces with a real-valued parameter: how often a random point is drawn before giving up.
_DRAWS = 10_000


class SpaceExhausted(Exception):
    """Every point that can launch has been tried."""


def grid_points(space: Space) -> list[dict[str, Value]]:
    """Every point, the small ones of the first parameter first.

    Raises:
        ValueError: one parameter is real-valued.
    """
    points = space.points()
    if points is None:
        raise ValueError("a grid needs parameters with a list of values; float has none")
    return list(points)


def seed_points(
    space: Space, baseline: Point, feasible: Callable[[Point], bool]
) -> list[dict[str, Value]]:
    """The baseline, then up to three points that show the space to the model.

    Args:
        baseline: The first trial, usually n = 0.
        feasible: Whether the rules allow a point; seeds are moved to where they do.
    """
    seeds = [dict(baseline)]
    for i, (n, level) in enumerate(zip(_SEED_N, _SEED_LEVEL, strict=True)):
        point: dict[str, Value] = {}
        for name, p in space.params.items():
            values = p.values()
            if name == N:
                point[name] = space.clip(N, n)
            elif isinstance(p, ChoiceParam):
                point[name] = p.choices[i % len(p.choices)]
            elif isinstance(p, FloatParam):
                point[name] = p.low + level * (p.high - p.low)
            elif values:
                point[name] = values[round(level * (len(values) - 1))]
        moved = nearest(space, point, lambda q: feasible(q) and q not in seeds)
        if moved is not None:
            seeds.append(moved)
    return seeds


def nearest(
    space: Space, point: Point, allowed: Callable[[Point], bool]
) -> dict[str, Value] | None:
    """The allowed point that is nearest in the unit cube of encoded values; None if none is.

    Where one parameter is real-valued, the nearest of the given point and random draws.
    """
    if allowed(point):
        return dict(point)
    candidates: Iterator[dict[str, Value]] = space.points() or itertools.islice(
        _random_points(space, np.random.default_rng(0)), _DRAWS
    )
    target = _unit(space, point)
    best: tuple[float, dict[str, Value]] | None = None
    for q in candidates:
        d = float(np.sum((_unit(space, q) - target) ** 2))
        if (best is None or d < best[0]) and allowed(q):
            best = (d, q)
    return best[1] if best else None


def informative(
    trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], most: int
) -> list[FrozenTrial]:
    """The measured trials that a model of at most ``most`` trials is fitted to.

    Half of them are the best: those that the fewest others dominate (C. M. Fonseca, P. J. Fleming,
    "Genetic algorithms for multiobjective optimization", ICGA 1993, rank by this number), so the
    front first, and the latest first where that is equal. The other half are the latest of the
    rest: where the search has been lately, also in vain, so that it does not go there again.

    Args:
        trials: Complete ones.
        directions: What is better, for each objective.
        most: At least 1.

    Returns:
        In the order in which they were given; all of them if there are no more than ``most``.
    """
    if len(trials) <= most:
        return list(trials)
    sign = [-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in directions]
    costs = np.array([t.values for t in trials]) * sign  # less is better
    no_worse = (costs[:, None, :] <= costs[None, :, :]).all(axis=2)
    dominators = (no_worse & ~no_worse.T).sum(axis=0)
    latest_first = np.arange(len(trials))[::-1]
    ranked = latest_first[np.argsort(dominators[latest_first], kind="stable")]
    best = ranked[: (most + 1) // 2]
    rest = np.setdiff1d(latest_first, best)[::-1]
    return [trials[i] for i in sorted([*best, *rest[: most - len(best)]])]


class _Part:
    """A study with some of its finished trials only, as far as a sampler looks at one."""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self._whole = study
        self._trials = trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As :meth:`optuna.Study.get_trials`."""
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        """What ``GPSampler`` calls."""
        found = [t for t in self._trials if states is None or t.state in states]
        return copy.deepcopy(found) if deepcopy else found


def _conditioning(study: optuna.Study, complete: Sequence[FrozenTrial]) -> optuna.Study:
    """The study as the model sees it; the study itself while it is small enough."""
    if len(complete) <= GP_TRIALS:
        return study
    part = _Part(study, informative(complete, study.directions, GP_TRIALS))
    return cast(optuna.Study, part)


class PointSet:
    """Points, to be asked whether one is among them."""

    def __init__(self, points: Iterable[Point]) -> None:
        self._keys = {frozenset(q.items()) for q in points}

    def __contains__(self, point: Point) -> bool:
        return frozenset(point.items()) in self._keys


def tried_points(space: Space, trials: Iterable[FrozenTrial]) -> PointSet:
    """The points of those trials that have one."""
    names = space.distributions().keys()
    return PointSet(space.decode(t.params) for t in trials if names <= t.params.keys())


def _unit(space: Space, point: Point) -> np.ndarray:
    """A point in the unit cube; a choice is one-hot with side ½, so that any two differ alike."""
    out: list[float] = []
    for name, p in space.params.items():
        v = point[name]
        match p:
            case ChoiceParam():
                out += [0.5 if c == v and type(c) is type(v) else 0.0 for c in p.choices]
            case FloatParam():
                f = math.log if p.log else float
                span = f(p.high) - f(p.low)
                out.append((f(float(v)) - f(p.low)) / span if span else 0.0)
            case _:
                values = p.values()
                out.append(values.index(int(v)) / max(1, len(values) - 1))
    return np.array(out)


def _random_points(space: Space, rng: np.random.Generator) -> Iterator[dict[str, Value]]:
    while True:
        point: dict[str, Value] = {}
        for name, p in space.params.items():
            values = p.values()
            if values is not None:
                point[name] = values[int(rng.integers(len(values)))]
            elif isinstance(p, FloatParam):
                u = float(rng.random())
                point[name] = (
                    p.low * (p.high / p.low) ** u if p.log else p.low + u * (p.high - p.low)
                )
        yield point


class StudySampler(BaseSampler):
    """Optuna sampler of one study.

    Args:
        space: The searched parameters.
        infeasible: Why the rules forbid a point, or None.
        method: ``gp`` or ``random``; a grid is enqueued and needs no sampler.
        seed: Together with the number of trials it decides every draw, so that a resumed study
            does not replay the draws of its beginning.

    Attributes:
        moved: Why the last proposal was moved, in words, or None.
    """

    def __init__(
        self,
        space: Space,
        infeasible: Callable[[Point], str | None],
        *,
        method: str,
        seed: int,
    ) -> None:
        self._space = space
        self._infeasible = infeasible
        self._method = method
        self._seed = seed
        self._random = RandomSampler(seed=seed)
        self.moved: str | None = None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters, always: the space of a study is fixed."""
        return self._space.distributions()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The model's proposal, moved to the nearest point that can launch and is untried.

        Raises:
            SpaceExhausted: there is no such point.
        """
        self.moved = None
        trials = study.get_trials(deepcopy=False)
        tried = tried_points(self._space, (t for t in trials if t.number != trial.number))

        def allowed(q: Point) -> bool:
            return q not in tried and self._infeasible(q) is None

        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        searched = {k: d for k, d in search_space.items() if not d.single()}
        if self._method == "gp" and len(complete) >= 2 and searched:
            params = self._gp(len(trials)).sample_relative(
                _conditioning(study, complete), trial, searched
            )
            single = {k: d for k, d in search_space.items() if d.single()}
            params |= {
                k: self._random.sample_independent(study, trial, k, d) for k, d in single.items()
            }
            wanted = self._space.decode(params)
            point = nearest(self._space, wanted, allowed)
            if point is not None and point != wanted:
                self.moved = self._infeasible(wanted) or "this point has been measured already"
        else:
            rng = np.random.default_rng([self._seed, len(trials)])
            draws = itertools.islice(_random_points(self._space, rng), _DRAWS)
            point = next((q for q in draws if allowed(q)), None)
            if point is None:  # few points are left: look at every one
                point = nearest(self._space, next(_random_points(self._space, rng)), allowed)
        if point is None:
            raise SpaceExhausted
        return self._space.encode(point)

    def _gp(self, trials: int) -> GPSampler:
        import torch

        torch.set_num_threads(1)  # the matrices are tiny: more threads only wait for each other
        return GPSampler(
            seed=self._seed + trials, n_startup_trials=2, warn_independent_sampling=False
        )

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Never reached for a parameter of the space; Optuna asks for the method."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Nothing to keep: every proposal is made from what the storage holds."""
