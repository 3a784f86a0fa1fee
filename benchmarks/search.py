"""How many launches a search needs: strategies replayed on measured and generated worlds.

    python benchmarks/search.py [--worlds gen-8 …] [--strategies ours gp …] [--seeds 200]
    python benchmarks/search.py --draw search.json     # figures of an earlier run, once more

A world (`benchmarks/surfaces.py`) answers a launch within microseconds, with the noise of its
requests and the luck of the launch; what a search visited is then judged by the truth.

    random          any point of the space, again and again
    grid            every point that can launch, in the order of the study file, or shuffled
    sweep           n from 0 up at the default MNBT, then each other parameter at the best n
    tpe, nsga2, gp  Optuna's multivariate TPESampler, NSGAIISampler, GPSampler with their defaults;
                    what cannot launch is told as failed
    botorch         qLogNEHVI over all untried points, where BoTorch is installed
    ours            `search.proposer.Proposer` in a study that is kept as `autotune run` does
    ours-4          the same after the seeds in batches of four, whose outcomes are known together

`grid` and `sweep` know the rules for nothing, which makes them look better than they are; the
others learn of a forbidden point by launching it. Every launch counts, also a failed or repeated
one.

**Hypervolume** is that of the true values of all points that a search launched, over that of the
true front; its reference is the worst value of each objective over all points that can launch.
Where all points are within 0.5 %, nothing can be missing.
*Launches to 99 %* counts launches until it first is that large. *Winner*: after 14 launches, how
often the point with the best mean of its launches is within 2 % of the true best, by tok/s and by
tok/s over p95 (4 %: it is two objectives). *Wasted* are launches until 99 %: forbidden, crashed,
repeated. A replay ends when it is beyond 99.9 % and has made 14 launches: later ones could change
no figure but the last 0.1 % of the curves. Seconds are the world's launches plus the proposals.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrices are tiny: threads wait for each other

import argparse
import contextlib
import functools
import importlib.util
import json
import math
import multiprocessing
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from surfaces import Outcome, World, names, world

from autotune.results.tables import Column, Row, Table, text_lines
from autotune.search.front import Direction
from autotune.search.proposer import Proposer, SearchEnds, nearest, seed_points
from autotune.study.space import MNBT, ChoiceParam, N, Value

Floats = NDArray[np.float64]
Launch = Callable[[dict[str, Value]], Outcome]
Strategy = Callable[[World, Launch, int], None]

DIRECTIONS: list[Direction] = ["maximize", "minimize"]
COSTS = np.array([-1.0, 1.0])  # less is better
REACHED, ENOUGH = 0.99, 0.999
NEARLY_FLAT = 0.005  # largest difference of a logarithm where nothing matters
WINNER_AT = 14
MOST = 40  # launches of a model's replay; of four parameters half as many more
CHUNK = 5  # replays of a task
FEWEST = 16  # points of a world that is worth a replay, unless it is asked for


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


@dataclass
class Replay:
    """One search in one world.

    Attributes:
        shares: Hypervolume after each launch.
        seconds: Until the end of each launch, proposals included.
        forbidden: After each launch, how many were forbidden by a rule.
        crashed: … failed unforeseen.
        repeated: … had been launched before.
        regions: Crashes by region.
        close: Whether the named winners after `WINNER_AT` launches are close to the best.
        proposing: Seconds of all proposals.
    """

    shares: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    forbidden: list[int] = field(default_factory=list)
    crashed: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    regions: dict[str, int] = field(default_factory=dict)
    close: tuple[bool, bool] = (False, False)
    proposing: float = 0.0

    @property
    def reached(self) -> int | None:
        """Launches until 99 %."""
        return next((i + 1 for i, x in enumerate(self.shares) if x >= REACHED), None)


def replay(w: World, strategy: str, seed: int, most: int) -> Replay:
    """One search of at most ``most`` launches."""
    judge, found = _judge(w.name, w), Replay()
    rng = np.random.default_rng([seed, 1])
    seen: dict[int, list[Floats]] = {}
    state = {"since": time.perf_counter(), "clock": 0.0}

    def launch(point: dict[str, Value]) -> Outcome:
        proposing = time.perf_counter() - state["since"]
        found.proposing += proposing
        outcome, place = w.launch(point, rng), w.place(point)
        state["clock"] += proposing + outcome.seconds
        before = found.forbidden[-1] if found.forbidden else 0
        found.forbidden.append(before + (w.reasons[place] is not None))
        before = found.crashed[-1] if found.crashed else 0
        region = None if w.reasons[place] is not None else w.crash(point)
        found.crashed.append(before + (region is not None))
        if region is not None:
            found.regions[region] = found.regions.get(region, 0) + 1
        before = found.repeated[-1] if found.repeated else 0
        found.repeated.append(before + (place in seen))
        seen.setdefault(place, [])
        if outcome.values is not None:
            seen[place].append(np.log(outcome.values))
        found.shares.append(judge.share([k for k, v in seen.items() if v]))
        found.seconds.append(state["clock"])
        count = len(found.shares)
        if count == WINNER_AT:
            found.close = _close(judge, seen)
        if count >= most or (count >= WINNER_AT and found.shares[-1] >= ENOUGH):
            raise Enough
        state["since"] = time.perf_counter()
        return outcome

    with contextlib.suppress(Enough):
        STRATEGIES[strategy](w, launch, seed)
    if len(found.shares) < WINNER_AT:
        found.close = _close(judge, seen)
    return found


_judges: dict[str, Judge] = {}


def _judge(name: str, w: World) -> Judge:
    if name not in _judges:
        _judges[name] = Judge(w)
    return _judges[name]


def _close(judge: Judge, seen: Mapping[int, Sequence[Floats]]) -> tuple[bool, bool]:
    """Whether the best means are close to the best truths: by tok/s, balanced."""
    means = {k: np.mean(v, axis=0) for k, v in seen.items() if v}
    if not means:
        return False, False
    rate = max(means, key=lambda k: float(means[k][0]))
    balanced = max(means, key=lambda k: float(means[k][0] - means[k][1]))
    return (
        bool(judge.best[0] - judge.gains[rate, 0] < 0.02),
        bool(judge.best[1] - judge.gains[balanced, 1] < 0.04),
    )


# -- strategies ------------------------------------------------------------------------------------


def _random(w: World, launch: Launch, seed: int) -> None:
    rng = np.random.default_rng([seed, 2])
    while True:
        launch(w.points[rng.integers(len(w.points))])


def _grid(w: World, launch: Launch, _seed: int) -> None:
    for point, why in zip(w.points, w.reasons, strict=True):
        if why is None:
            launch(point)


def _shuffled(w: World, launch: Launch, seed: int) -> None:
    for i in np.random.default_rng([seed, 2]).permutation(len(w.points)):
        if w.reasons[i] is None:
            launch(w.points[i])


def _sweep(w: World, launch: Launch, _seed: int) -> None:
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


def _asked(w: World, launch: Launch, sampler: BaseSampler) -> None:
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


def _tpe(w: World, launch: Launch, seed: int) -> None:
    _asked(w, launch, optuna.samplers.TPESampler(multivariate=True, seed=seed))


def _nsga2(w: World, launch: Launch, seed: int) -> None:
    _asked(w, launch, optuna.samplers.NSGAIISampler(seed=seed))


def _gp(w: World, launch: Launch, seed: int) -> None:
    import torch

    torch.set_num_threads(1)
    _asked(w, launch, optuna.samplers.GPSampler(seed=seed))


def _botorch(w: World, launch: Launch, seed: int) -> None:
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


def _ours(w: World, launch: Launch, seed: int, batch: int = 1) -> None:
    """As `autotune.tuning` does it, without replicates and confirmation, which it plans itself.

    Args:
        w: The world.
        launch: Answers.
        seed: Of the proposer.
        batch: Launches that are proposed before the first of them has an outcome; seeds are not.
    """

    def feasible(point: Mapping[str, Value]) -> bool:
        return w.infeasible(point) is None

    baseline = nearest(w.space, w.baseline(), feasible)
    assert baseline is not None
    proposer = Proposer(w.space, w.infeasible, DIRECTIONS, method="gp", seed=seed)
    study = optuna.create_study(directions=DIRECTIONS)
    points = seed_points(w.space, baseline, feasible)
    while points:
        for point in points:
            study.enqueue_trial(w.space.encode(point))
            trial = study.ask(w.space.distributions())
            outcome = launch(point)
            if outcome.values is None:
                assert outcome.failure is not None
                trial.set_user_attr("failure_kind", str(outcome.failure))
                study.tell(trial, state=TrialState.FAIL)
                continue
            assert outcome.log_variances is not None
            trial.set_user_attr("log_variances", list(outcome.log_variances))
            trial.set_user_attr("acceptance_per_position", list(outcome.acceptance_per_position))
            trial.set_user_attr("acceptance_length", outcome.acceptance_length)
            study.tell(trial, outcome.values)
        trials, points = study.get_trials(deepcopy=False), []
        with contextlib.suppress(SearchEnds):
            while len(points) < batch:
                points.append(proposer.propose(trials, points).point)


STRATEGIES: Mapping[str, Strategy] = {
    "random": _random,
    "grid": _grid,
    "shuffled": _shuffled,
    "sweep": _sweep,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "gp": _gp,
    "botorch": _botorch,
    "ours": _ours,
    "ours-4": functools.partial(_ours, batch=4),
}
_CHEAP = {"random", "grid", "shuffled", "sweep"}


def missing(strategy: str) -> str | None:
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


# -- running ---------------------------------------------------------------------------------------

Task = tuple[str, str, list[int], int, float]  # world, strategy, seeds, most, sigma


def run_task(task: Task) -> tuple[str, str, list[Replay]]:
    """Some replays of one strategy in one world."""
    name, strategy, seeds, most, sigma = task
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    w = world(name, sigma)
    limit = most_launches(w, strategy, most)
    return name, strategy, [replay(w, strategy, seed, limit) for seed in seeds]


def run(
    worlds: Sequence[str],
    strategies: Sequence[str],
    seeds: int,
    *,
    most: int = MOST,
    sigma: float = 0.03,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, list[Replay]]]:
    """Replays by world and strategy, in the order of their seeds."""
    tasks: list[Task] = [
        (name, strategy, list(range(i, min(i + CHUNK, seeds))), most, sigma)
        for i in range(0, seeds, CHUNK)
        for strategy in strategies
        for name in worlds
    ]
    found: dict[str, dict[str, list[Replay]]] = {
        name: {strategy: [] for strategy in strategies} for name in worlds
    }
    for done, (name, strategy, replays) in enumerate(_each(tasks, jobs), 1):
        found[name][strategy] += replays
        if progress is not None:
            progress(done, len(tasks))
    return found


def _each(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[str, str, list[Replay]]]:
    if jobs == 1:
        yield from map(run_task, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(run_task, tasks)


# -- what came out ---------------------------------------------------------------------------------


def summary(found: Mapping[str, Mapping[str, Sequence[Replay]]], sigma: float) -> dict[str, Any]:
    """Figures of all worlds, as JSON."""
    out: dict[str, Any] = {}
    for name, by in found.items():
        w = world(name, sigma)
        judge = _judge(name, w)
        ends = [r.seconds[-1] for replays in by.values() for r in replays if r.seconds]
        clock = np.linspace(0, float(np.quantile(ends, 0.9)) if ends else 1.0, 60)
        out[name] = {
            "words": w.words,
            "points": len(w.points),
            "launchable": judge.points,
            "regions": [r.words for r in w.regions],
            "clock": clock.round(1).tolist(),
            "strategies": {s: _figures(replays, clock) for s, replays in by.items() if replays},
        }
    return out


def _figures(replays: Sequence[Replay], clock: Floats) -> dict[str, Any]:
    longest = max(len(r.shares) for r in replays)
    regret = np.array([_held([1 - x for x in r.shares], longest) for r in replays])
    by_time = np.array([_at(r, clock) for r in replays])
    reached = [r.reached for r in replays]
    ends = [(len(r.shares) if n is None else n) - 1 for r, n in zip(replays, reached, strict=True)]
    hit = [r.seconds[n - 1] if n else math.inf for r, n in zip(replays, reached, strict=True)]
    worst: dict[str, int] = {}
    more: dict[str, int] = {}
    for r in replays:
        for region, count in r.regions.items():
            worst[region] = max(worst.get(region, 0), count)
            more[region] = more.get(region, 0) + (count > 1)
    return {
        "replays": len(replays),
        "reached": reached,
        "launches": _quartiles([math.inf if n is None else n for n in reached]),
        "seconds": _quartiles(hit),
        "winner": [float(np.mean([r.close[i] for r in replays])) for i in (0, 1)],
        "forbidden": float(np.mean([r.forbidden[e] for r, e in zip(replays, ends, strict=True)])),
        "crashed": float(np.mean([r.crashed[e] for r, e in zip(replays, ends, strict=True)])),
        "repeated": float(np.mean([r.repeated[e] for r, e in zip(replays, ends, strict=True)])),
        "most_forbidden": max(r.forbidden[-1] for r in replays),
        "most_crashes": worst,
        "replays_with_more_crashes": more,
        "proposal_s": float(
            sum(r.proposing for r in replays) / sum(len(r.shares) for r in replays)
        ),
        "regret": np.quantile(regret, [0.25, 0.5, 0.75], axis=0).round(5).tolist(),
        "regret_by_time": np.quantile(by_time, [0.25, 0.5, 0.75], axis=0).round(5).tolist(),
    }


def _held(values: Sequence[float], length: int) -> list[float]:
    """The last value goes on: an ended replay learns nothing more."""
    return [*values, *[values[-1]] * (length - len(values))]


def _at(r: Replay, clock: Floats) -> Floats:
    regret = np.array([1.0, *(1 - x for x in r.shares)])
    return np.asarray(regret[np.searchsorted(r.seconds, clock, side="right")])


def _quartiles(values: Sequence[float]) -> list[float | None]:
    """None: beyond what was replayed. The lower of two neighbours, as no launch is a half one."""
    found = np.quantile(values, [0.25, 0.5, 0.75], method="lower")
    return [None if math.isinf(x) else float(x) for x in found]


def table(result: Mapping[str, Any]) -> Iterator[str]:
    """All worlds in lines of at most 100 columns."""
    for name, found in result["worlds"].items():
        yield f"\n{name}: {found['words']}"
        yield (
            f"{found['points']} points, {found['launchable']} of them can launch; "
            f"median [quartiles] of {result['seeds']} replays, –: never"
        )
        rows = (_row(strategy, f) for strategy, f in found["strategies"].items())
        yield from text_lines(Table(_COLUMNS, tuple(rows), gap=0))
        yield from _claims(found)


_COLUMNS = (
    Column("", right=False, width=9),
    Column("launches to 99 %", width=18),
    Column("minutes to 99 %", width=20),
    Column("winner", width=9),
    Column("balanced", width=9),
    Column("forbid.", width=9),
    Column("crash", width=7),
    Column("repeat", width=8),
    Column("propose", width=9),
)


def _row(strategy: str, f: Mapping[str, Any]) -> Row:
    return Row(
        (
            strategy,
            _quartiles_text(f["launches"], 1),
            _quartiles_text(f["seconds"], 60),
            f"{f['winner'][0]:.0%}",
            f"{f['winner'][1]:.0%}",
            f"{f['forbidden']:.1f}",
            f"{f['crashed']:.1f}",
            f"{f['repeated']:.1f}",
            f"{1000 * f['proposal_s']:.0f} ms",
        )
    )


def _quartiles_text(quartiles: Sequence[float | None], unit: float) -> str:
    low, middle, high = ("–" if x is None else f"{x / unit:.0f}" for x in quartiles)
    return f"{middle} [{low}, {high}]"


def _claims(found: Mapping[str, Any]) -> Iterator[str]:
    """What issue and README promise of ours, in figures."""
    by = found["strategies"]
    if "ours" not in by:
        return
    median = by["ours"]["launches"][1]
    ours = math.inf if median is None else median
    fifth = found["launchable"] / 5
    yield f"ours against a fifth of the grid: {_against(ours, fifth)}"
    if "gp" in by:
        gp = by["gp"]["launches"][1]
        if gp is None:
            least = len(by["gp"]["regret"][1])
            yield f"ours against half of Optuna's GP: {_against(ours, least / 2)} at least"
        else:
            yield f"ours against half of Optuna's GP: {_against(ours, gp / 2)}"
    yield f"ours launched {by['ours']['most_forbidden']} forbidden points in the worst replay"
    for region in found["regions"]:
        most = by["ours"]["most_crashes"].get(region, 0)
        more = by["ours"]["replays_with_more_crashes"].get(region, 0)
        share = more / by["ours"]["replays"]
        yield from textwrap.wrap(
            f"ours crashed {most} times at most, more than once in {share:.0%}: {region}", 100
        )


def _against(ours: float, aim: float) -> str:
    words = "met" if ours <= aim else "missed"
    return f"{words} ({'never' if math.isinf(ours) else f'{ours:.0f}'} against {aim:.1f} launches)"


# -- pictures --------------------------------------------------------------------------------------

# Okabe and Ito's colours, as in autotune/output/figures/pareto.py; ours stands out
COLOURS = {
    "ours": "#D55E00",
    "ours-4": "#F0E442",
    "gp": "#0072B2",
    "tpe": "#009E73",
    "nsga2": "#CC79A7",
    "botorch": "#56B4E9",
    "sweep": "#E69F00",
    "shuffled": "#8A94A0",
    "grid": "#333333",
    "random": "#C0C4C8",
}
FLOOR = 0.001  # the curves' logarithm has no zero, and replays end beyond 99.9 %


def figure(result: Mapping[str, Any], *, by_time: bool = False) -> Any:
    """Median regret of each strategy with its quartiles as a band, a panel a world."""
    from plotly.subplots import make_subplots

    worlds = result["worlds"]
    columns = min(3, len(worlds))
    rows = math.ceil(len(worlds) / columns)
    fig = make_subplots(
        rows,
        columns,
        subplot_titles=list(worlds),
        horizontal_spacing=0.07,
        vertical_spacing=0.32 / rows,
    )
    for k, found in enumerate(worlds.values()):
        place = {"row": k // columns + 1, "col": k % columns + 1}
        for strategy, f in found["strategies"].items():
            low, middle, high = np.maximum(f["regret_by_time" if by_time else "regret"], FLOOR)
            x = np.array(found["clock"]) / 60 if by_time else np.arange(1, len(middle) + 1)
            colour = COLOURS.get(strategy, "#8A94A0")
            if strategy in ("ours", "gp"):
                fig.add_scatter(
                    x=[*x, *x[::-1]],
                    y=[*high, *low[::-1]],
                    fill="toself",
                    fillcolor=colour,
                    opacity=0.15,
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                    legendgroup=strategy,
                    **place,
                )
            fig.add_scatter(
                x=x,
                y=middle,
                name=strategy,
                legendgroup=strategy,
                showlegend=k == 0,
                line={"color": colour, "width": 3 if strategy == "ours" else 1.6},
                mode="lines",
                **place,
            )
        fig.add_hline(y=1 - REACHED, line={"color": "#8A94A0", "width": 1, "dash": "dot"}, **place)
        end = found["clock"][-1] / 60 if by_time else min(_MOST_SHOWN, found["launchable"])
        fig.update_xaxes(range=[0, end], title="minutes" if by_time else "launches", **place)
    fig.update_yaxes(
        type="log",
        range=[math.log10(FLOOR), 0],
        tickvals=[1, 0.1, 0.01, 0.001],
        ticktext=["100 %", "10 %", "1 %", "0.1 %"],
        gridcolor="#E8EAED",
    )
    fig.update_xaxes(gridcolor="#E8EAED", rangemode="tozero")
    fig.update_layout(
        template="plotly_white",
        font={"family": "Inter, Segoe UI, Helvetica, Arial, sans-serif", "size": 13},
        title={
            "text": "<b>Hypervolume still missing</b><br>"
            f'<span style="font-size: 12px">median of {result["seeds"]} replays, bands: quartiles; '
            "dotted: 99 % reached</span>",
            "font": {"size": 18},
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 24},
        },
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1 - 78 / (190 + 280 * rows),
            "yref": "container",
            "yanchor": "top",
        },
        height=190 + 280 * rows,
        margin={"t": 150, "l": 70, "r": 24, "b": 60},
    )
    return fig


_MOST_SHOWN = 60


def draw(result: Mapping[str, Any], base: Path) -> None:
    """Writes HTML, and PNG where a Chromium is found, of both pictures beside ``base``."""
    for suffix, by_time in (("launches", False), ("time", True)):
        fig = figure(result, by_time=by_time)
        page = base.with_name(f"{base.stem}-{suffix}.html")
        try:
            from autotune.output.figures.browser import write_html, write_png
        except ImportError as e:
            fig.write_html(page)
            print(f"{page}; no PNG: {e}")
            continue
        write_html(fig, page, "Hypervolume still missing")
        picture = page.with_suffix(".png")
        print(page, picture if write_png(fig, picture) else "(no Chromium, no PNG)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--worlds", nargs="+", help=f"{', '.join(names())}, or a grid's file; default: the large"
    )
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--most", type=int, default=MOST, help="launches of a model's replay")
    parser.add_argument("--sigma", type=float, default=0.03, help="of a launch's luck")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("search.json"))
    parser.add_argument("--no-pictures", action="store_true", help="the table and the JSON only")
    parser.add_argument("--draw", type=Path, help="draw this earlier result, and replay nothing")
    args = parser.parse_args()
    if args.draw is not None:
        result = json.loads(args.draw.read_text())
        print("\n".join(table(result)))
        draw(result, args.draw)
        return
    strategies = []
    for strategy in args.strategies:
        why = missing(strategy)
        if why is None:
            strategies.append(strategy)
        else:
            print(f"{strategy}: {why}")

    def progress(done: int, of: int) -> None:
        print(f"\r{done} of {of}", end="", file=sys.stderr, flush=True)

    found = run(
        args.worlds or [n for n in names() if len(world(n).launchable()) >= FEWEST],
        strategies,
        args.seeds,
        most=args.most,
        sigma=args.sigma,
        jobs=args.jobs,
        progress=progress,
    )
    print(file=sys.stderr)
    worlds = summary(found, args.sigma)
    result = {"seeds": args.seeds, "sigma": args.sigma, "most": args.most, "worlds": worlds}
    args.out.write_text(json.dumps(result) + "\n")
    print("\n".join(table(result)))
    if not args.no_pictures:
        draw(result, args.out)


if __name__ == "__main__":
    main()
