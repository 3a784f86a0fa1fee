"""One search in one world: strategies, what is kept of them, and what is true."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from surfaces import Outcome, World
from surfaces_base import Floats

import objectives
from autotune.search.alike import Classes, Key, key_of
from autotune.search.front import Direction
from autotune.search.proposer import (
    Proposal,
    Proposer,
    SearchEnds,
    launched_of,
    nearest,
    seed_points,
)
from autotune.study.space import MNBT, ChoiceParam, N, Point, Value

DIRECTIONS: list[Direction] = ["maximize", "minimize"]
COSTS = np.array([-1.0, 1.0])  # less is better
REACHED = 0.99
NEARLY_FLAT = 0.005  # largest difference of a logarithm where nothing matters
MOST = 40  # launches of a model's replay; of four parameters half as many more
ENDS_AT = 32  # launches of a search in a study of 40 trials: the others confirm
CONFIRMS = 8
CONVERGED = 0.005  # `budget.converged`


class Enough(Exception):
    """The replay has shown what it can."""


# -- judging ---------------------------------------------------------------------------------------


def hypervolume(costs: Floats, reference: Floats) -> float:
    """Area that two costs dominate below the reference."""
    total, height = 0.0, float(reference[1])
    for x, y in sorted(map(tuple, costs)):
        if x < reference[0] and y < height:
            total += (reference[0] - x) * (height - y)
            height = y
    return float(total)


class Judge:
    """What is true of a world.

    Where the true values of all points are within `NEARLY_FLAT` of each other, any point is as good
    as the front: nothing is missing as soon as one was measured.
    """

    def __init__(self, w: World) -> None:
        places = w.launchable()
        self.logs = w.logs * COSTS
        self.costs = np.exp(w.logs) * COSTS
        self.reference = self.costs[places].max(axis=0)
        self.whole = hypervolume(self.costs[places], self.reference)
        self.flat = bool(np.ptp(w.logs[places], axis=0).max() < NEARLY_FLAT)
        self.gains = np.column_stack([w.logs[:, 0], w.logs[:, 0] - w.logs[:, 1]])
        self.best = self.gains[places].max(axis=0)
        self.least = self.logs[places].min(axis=0)
        self.points = len(places)

    def share(self, places: Sequence[int]) -> float:
        """Hypervolume of points, over the front's."""
        if not places:
            return 0.0
        if self.flat or self.whole <= 0:  # one point is worst and best
            return 1.0
        return hypervolume(self.costs[sorted(set(places))], self.reference) / self.whole

    def shortfall(self, place: int) -> tuple[float, float]:
        """How far one point is from the best of each objective: shares of tok/s and of p95."""
        off = self.logs[place] - self.least
        return float(1 - np.exp(-off[0])), float(np.exp(off[1]) - 1)


# -- recording -------------------------------------------------------------------------------------


@dataclass
class Replay:
    """One search in one world.

    Attributes:
        shares: Hypervolume after each launch.
        seconds: Until the end of each launch, with the CPU seconds of all proposals.
        forbidden: After each launch, how many were forbidden by a rule.
        crashed: … failed unforeseen.
        regions: Crashes by region.
        proposing: CPU seconds of all proposals.
        end: Launches when the search ended itself; None: it has no end of its own.
        short: Of the points with the best mean tok/s and the best mean p95 at that end, how much
            less tok/s and more p95 they truly have than the best, as shares.
        says: By how much the study then said that no setting ``differs`` from the baseline and that
            none is ``better``, in both objectives, after a confirmation of `CONFIRMS` launches;
            empty: it did not say so; None: it says nothing of the kind.
    """

    shares: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    forbidden: list[int] = field(default_factory=list)
    crashed: list[int] = field(default_factory=list)
    regions: dict[str, int] = field(default_factory=dict)
    proposing: float = 0.0
    end: int | None = None
    short: tuple[float, float] | None = None
    says: Mapping[str, Sequence[float]] | None = None

    @property
    def reached(self) -> int | None:
        """Launches until 99 %."""
        return next((i + 1 for i, x in enumerate(self.shares) if x >= REACHED), None)

    @property
    def missing(self) -> float | None:
        """Hypervolume missing when the search ended itself, as a share."""
        return None if self.end is None else 1 - self.shares[self.end - 1]


class Launcher:
    """Launches points of a world, and keeps what a search came to.

    Args:
        w: The world.
        seed: Of the noise.
        most: Launches at which the replay ends.
        enough: Hypervolume at which it ends.
        ends: Whether the search ends itself: then it goes on until it has.
    """

    def __init__(self, w: World, seed: int, most: int, enough: float, *, ends: bool) -> None:
        self.found = Replay()
        self._w, self._judge = w, Judge(w)
        self._most, self._enough, self._ends = most, enough, ends
        self._rng = np.random.default_rng([seed, 1])
        self._seen: dict[int, list[Floats]] = {}
        self._since, self._clock = time.process_time(), 0.0

    def __call__(self, point: Point) -> Outcome:
        """One launch.

        Raises:
            Enough: it was the last one.
        """
        w, found = self._w, self.found
        proposing = time.process_time() - self._since
        found.proposing += proposing
        outcome, place = w.launch(point, self._rng), w.place(point)
        self._clock += proposing + outcome.seconds
        forbidden = w.reasons[place] is not None
        region = None if forbidden else w.crash(point)
        if region is not None:
            found.regions[region] = found.regions.get(region, 0) + 1
        for counts, one in (
            (found.forbidden, forbidden),
            (found.crashed, region is not None),
        ):
            counts.append((counts[-1] if counts else 0) + one)
        self._seen.setdefault(place, [])
        if outcome.values is not None:
            self._seen[place].append(np.log(outcome.values))
        found.shares.append(self._judge.share([k for k, v in self._seen.items() if v]))
        found.seconds.append(self._clock)
        self._since = time.process_time()
        if len(found.shares) >= self._most or (self._done() and not self._ends):
            raise Enough
        return outcome

    def end(self, says: Mapping[str, Sequence[float]] | None) -> None:
        """Note that the search ends itself here; the launches that follow are beyond it.

        Args:
            says: As of :class:`Replay`.

        Raises:
            Enough: nothing is left to see.
        """
        found, means = self.found, self._means()
        found.end, found.says, self._ends = len(found.shares), says, False
        if means:
            best = (min(means, key=lambda k: float((means[k] * COSTS)[j])) for j in (0, 1))
            rate, p95 = (self._judge.shortfall(k)[j] for j, k in enumerate(best))
            found.short = (rate, p95)
        if self._done():
            raise Enough

    def _means(self) -> dict[int, Floats]:
        return {k: np.mean(v, axis=0) for k, v in self._seen.items() if v}

    def _done(self) -> bool:
        return self.found.shares[-1] >= self._enough


Strategy = Callable[[World, Launcher, int], None]


def replay(w: World, strategy: str, seed: int, most: int, enough: float = REACHED) -> Replay:
    """One search of at most ``most`` launches."""
    launch = Launcher(w, seed, most, enough, ends=strategy in OURS)
    with contextlib.suppress(Enough):
        STRATEGIES[strategy](w, launch, seed)
    if strategy in OURS and launch.found.end is None:  # its budget was ``most``
        with contextlib.suppress(Enough):
            launch.end(None)
    return launch.found


# -- strategies ------------------------------------------------------------------------------------


def _random(w: World, launch: Launcher, seed: int) -> None:
    rng = np.random.default_rng([seed, 2])
    while True:
        launch(w.points[rng.integers(len(w.points))])


def _grid(w: World, launch: Launcher, _seed: int) -> None:
    for point, why in zip(w.points, w.reasons, strict=True):
        if why is None:
            launch(point)


def _shuffled(w: World, launch: Launcher, seed: int) -> None:
    for i in np.random.default_rng([seed, 2]).permutation(len(w.points)):
        if w.reasons[i] is None:
            launch(w.points[i])


def _sweep(w: World, launch: Launcher, _seed: int) -> None:
    """One parameter after the other, each at the best by tok/s so far: n first."""
    at = w.baseline()
    done: dict[tuple[Value, ...], float] = {}
    order = [N, MNBT, *(k for k in w.space.params if k not in (N, MNBT))]
    for name in (k for k in order if k in w.space.params):
        best = (-math.inf, at)
        for value in w.space.params[name].values() or ():
            point = at | {name: value}
            key = tuple(point.values())
            if w.infeasible(point) is not None:
                continue
            if key not in done:
                values = launch(point).values
                done[key] = -math.inf if values is None else values[0]
            best = max(best, (done[key], point), key=lambda x: x[0])
        at = best[1]


def _asked(w: World, launch: Launcher, sampler: BaseSampler) -> None:
    """Optuna's ask and tell, as its documentation shows it."""
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    space = replace(w.space, exponents=True)  # a sampler draws powers of two only
    distributions = space.distributions()
    while True:
        trial = study.ask(distributions)
        values = launch(space.decode(trial.params)).values
        if values is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, values)


def _tpe(w: World, launch: Launcher, seed: int) -> None:
    _asked(w, launch, optuna.samplers.TPESampler(multivariate=True, seed=seed))


def _nsga2(w: World, launch: Launcher, seed: int) -> None:
    _asked(w, launch, optuna.samplers.NSGAIISampler(seed=seed))


def _gp(w: World, launch: Launcher, seed: int) -> None:
    import torch

    torch.set_num_threads(1)
    _asked(w, launch, optuna.samplers.GPSampler(seed=seed))


def _botorch(w: World, launch: Launcher, seed: int) -> None:
    """A model an objective over the unit cube; the best of all untried points by qLogNEHVI.

    Ten random points first, as Optuna's GPSampler does.
    """
    import torch
    from botorch.acquisition.multi_objective.logei import (
        qLogNoisyExpectedHypervolumeImprovement as NEHVI,
    )
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.models.transforms import Standardize
    from gpytorch.mlls import SumMarginalLogLikelihood

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 2])
    unit = torch.tensor(_unit(w))
    order = [int(i) for i in rng.permutation(len(w.points))]
    tried: list[int] = []
    rows: list[int] = []
    values: list[list[float]] = []
    while len(tried) < len(w.points):
        if len(rows) < 10:
            place = next(i for i in order if i not in tried)
        else:
            y = torch.tensor(values, dtype=torch.float64) * torch.tensor(-COSTS)
            x = unit[rows]
            parts = [SingleTaskGP(x, y[:, [i]], outcome_transform=Standardize(1)) for i in (0, 1)]
            model = ModelListGP(*parts)
            fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
            reference = (y.min(0).values - 0.1 * (y.max(0).values - y.min(0).values)).tolist()
            worth = NEHVI(model, ref_point=reference, X_baseline=x, prune_baseline=True)
            untried = [i for i in range(len(w.points)) if i not in tried]
            with torch.no_grad():
                best = int(worth(unit[untried].unsqueeze(1)).argmax())
            place = untried[best]
        tried.append(place)
        outcome = launch(w.points[place])
        if outcome.values is not None:
            rows.append(place)
            values.append(list(outcome.values))


def _unit(w: World) -> Floats:
    """All points in the unit cube; a choice has a side for each of its values."""
    columns = []
    for name, p in w.space.params.items():
        values = list(p.values() or ())
        places = np.array([values.index(q[name]) for q in w.points])
        if isinstance(p, ChoiceParam):
            columns += [(places == i) / 2 for i in range(len(values))]
        else:
            columns.append(places / max(1, len(values) - 1))
    return np.column_stack(columns).astype(np.float64)


def first_points(w: World) -> Iterator[dict[str, Value]]:
    """The baseline and the seeds, as `autotune.tuning.planner` has them."""

    def feasible(point: Point) -> bool:
        return w.infeasible(point) is None

    baseline = nearest(w.space, w.baseline(), feasible)
    assert baseline is not None
    known = []
    for i, point in enumerate(seed_points(w.space, baseline, feasible)):
        stands = point if w.alike is None or i == 0 else dict(w.alike.likely(point))
        one = key_of(point if w.alike is None else w.alike.likely(point))
        if one not in known:
            yield stands if feasible(stands) else point
        known.append(one)


def tell(
    study: optuna.Study,
    w: World,
    point: Point,
    launch: Callable[[Point], Outcome],
    found: Proposal | None = None,
) -> None:
    """Launch a point, and tell Optuna as a study does.

    Args:
        study: With all trials so far.
        w: The world.
        point: What is launched.
        launch: Answers.
        found: Why it is; None: it is a seed.
    """
    study.enqueue_trial(w.space.encode(point))
    trial, outcome = study.ask(w.space.distributions()), launch(point)
    for name, value in _attributes(found).items():
        trial.set_user_attr(name, value)
    if outcome.values is None:
        trial.set_user_attr("failure_kind", str(outcome.failure))
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_user_attr("log_variances", list(outcome.log_variances or ()))
    trial.set_user_attr("acceptance_per_position", list(outcome.acceptance_per_position))
    trial.set_user_attr("acceptance_length", outcome.acceptance_length)
    study.tell(trial, outcome.values)


def _attributes(found: Proposal | None) -> dict[str, Any]:
    """What a trial keeps of its proposal."""
    if found is None:
        return {}
    own = {f.name: getattr(found, f.name) for f in fields(found)}
    gain = own.pop("gain")
    return {"expected_improvement": gain} | {
        k: v for k, v in own.items() if k not in ("point", "leaders")
    }


def _ours(w: World, launch: Launcher, seed: int, batch: int = 1) -> None:
    """As `autotune run` does it, without replicates and confirmation, which it plans itself.

    It ends itself, as `budget.converged` says or after `ENDS_AT` launches. What follows is what
    `--all-trials` would launch.

    Args:
        w: The world.
        launch: Answers.
        seed: Of the proposer.
        batch: Launches that are proposed before the first of them has an outcome; seeds are not.
    """

    def proposer(stop_below: float) -> Proposer:
        return Proposer(
            w.space,
            w.infeasible,
            DIRECTIONS,
            method="gp",
            seed=seed,
            stop_below=stop_below,
            alike=w.alike,
        )

    study = optuna.create_study(directions=DIRECTIONS)
    for point in first_points(w):
        tell(study, w, point, launch)
    searching = proposer(CONVERGED)
    _search(w, study, searching, launch, batch, ENDS_AT)
    launch.end(_says(w, searching, study.get_trials(deepcopy=False), seed))
    _search(w, study, proposer(0.0), launch, batch, math.inf)


def _search(
    w: World,
    study: optuna.Study,
    proposer: Proposer,
    launch: Launcher,
    batch: int,
    most: float,
) -> None:
    """Launch what is proposed, until nothing is or a study has ``most`` trials."""
    while True:
        trials, found = study.get_trials(deepcopy=False), list[Proposal]()
        with contextlib.suppress(SearchEnds):
            while len(found) < min(batch, most - len(trials)):
                found.append(proposer.propose(trials, [x.point for x in found]))
        if not found:
            return
        for x in found:
            tell(study, w, x.point, launch, x)


@dataclass(frozen=True)
class _Measured:
    """A launch, as a statement about all settings takes it."""

    point: Point
    costs: Sequence[float]
    variances: Sequence[float]


def _says(
    w: World, proposer: Proposer, trials: Sequence[FrozenTrial], seed: int
) -> dict[str, list[float]] | None:
    """What a study says of all settings after its search and its confirmation.

    Returns:
        By how much no setting differs from the baseline, and by how much none is better, in both
        objectives; an empty list where it does not say so. None: this autotune cannot say it.
    """
    try:
        from confirmation_power import spend

        from autotune.results.flatness import stated
    except ImportError:  # replays of older code
        return None
    rng = np.random.default_rng([seed, 3])  # the search that goes on sees nothing of it
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    launched: list[Any] = list(launched_of(w.space, complete, DIRECTIONS))
    points = {t.number: w.space.decode(t.params) for t in complete}
    classes = Classes(w.alike, launched)
    first: dict[Key, int] = {}
    searched: dict[int, list[Sequence[float]]] = {}
    for t in complete:
        number = first.setdefault(key_of(classes.of(points[t.number])), t.number)
        searched.setdefault(number, []).append(t.values)
    leader = proposer.leader(trials)

    def again(number: int) -> Sequence[float]:
        outcome = w.launch(points[number], rng)
        assert outcome.values is not None
        costs = (np.log(outcome.values) * COSTS).tolist()
        launched.append(_Measured(points[number], costs, outcome.log_variances or ()))
        return outcome.values

    leads = None if leader is None else first[key_of(classes.of(leader))]
    spend(searched, DIRECTIONS, complete[0].number, CONFIRMS, again, leader=leads)
    feasible = [q for q, why in zip(w.points, w.reasons, strict=True) if why is None]
    named = [objectives.get("throughput"), objectives.get("p95_latency")]
    found = stated(w.space, launched, feasible, points[complete[0].number], classes, named)
    bounds = ({}, {}) if found is None else (found.differs, found.better)
    every = [list(x.values()) if len(x) == len(named) else [] for x in bounds]
    return dict(zip(("differs", "better"), every, strict=True))


OURS: Mapping[str, int] = {"ours": 1, "ours-4": 4, "ours-8": 8}
STRATEGIES: Mapping[str, Strategy] = {
    "random": _random,
    "grid": _grid,
    "shuffled": _shuffled,
    "sweep": _sweep,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "gp": _gp,
    "botorch": _botorch,
    **{name: functools.partial(_ours, batch=batch) for name, batch in OURS.items()},
}
_CHEAP = {"random", "grid", "shuffled", "sweep"}


def absent(strategy: str) -> str | None:
    """Why a strategy cannot be run here, or None."""
    needed = {"botorch": "botorch", "gp": "torch"}.get(strategy)
    if needed is not None and importlib.util.find_spec(needed) is None:
        return f"{needed} is not installed"
    return None


def most_launches(w: World, strategy: str, most: int) -> int:
    """Where a replay ends: the cheap ones may see all of a world."""
    if strategy in _CHEAP:
        return 2 * len(w.points)
    return most if len(w.space.params) <= 2 else most * 3 // 2
