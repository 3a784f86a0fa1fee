"""When a search ends itself: replays in worlds that its beliefs are wrong about."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial

from autotune.search.model import Observed, Proposal, Surrogates, propose
from autotune.search.proposer import Proposer, SearchEnds, Undecided, seed_points
from autotune.study.space import MNBT, N, Point
from tests.paths import ROOT
from tests.search.test_proposer import BOTH, SPACE, finished, smooth


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    import search_replay
    import surfaces

    return search_replay, surfaces


def ends(worlds: tuple[Any, Any], name: str, seeds: int, **more: Any) -> list[Any]:
    replays, surfaces = worlds
    w = surfaces.world(name, more.get("sigma", 0.03))
    strategy = more.get("strategy", "ours")
    return [replays.replay(w, strategy, seed, 40, enough=0.0) for seed in range(seeds)]


def test_a_peak_that_acceptance_does_not_foretell_is_found(worlds: tuple[Any, Any]) -> None:
    found = ends(worlds, "two-peaks", 3)
    assert np.median([r.missing for r in found]) < 0.05  # without challenges: 0.18


def test_the_best_point_beside_a_crash_region_is_launched(worlds: tuple[Any, Any]) -> None:
    found = ends(worlds, "crash-above-7", 3)
    assert np.median([r.missing for r in found]) < 0.05  # if it is avoided: 0.18
    assert all(sum(r.regions.values()) == 2 for r in found)  # the first, and the last try


@pytest.mark.parametrize("strategy", ["ours", "ours-8"])
def test_where_nothing_matters_a_search_is_over_soon(
    worlds: tuple[Any, Any], strategy: str
) -> None:
    for sigma in (0.005, 0.03):
        found = ends(worlds, "flat", 2, sigma=sigma, strategy=strategy)
        assert all(r.end is not None and r.end <= 10 for r in found)


def batch_of(proposer: Proposer, trials: list[FrozenTrial], most: int) -> tuple[list[Point], bool]:
    """Points of a batch, and whether the search then waits for them."""
    points: list[Point] = []
    try:
        while len(points) < most:
            points.append(proposer.propose(trials, points).point)
    except SearchEnds as e:
        return points, isinstance(e, Undecided)
    return points, False


def test_a_batch_never_ends_a_search_while_something_runs() -> None:
    proposer = Proposer(SPACE, lambda _q: None, BOTH, method="gp", seed=0, stop_below=0.005)
    trials = [
        finished(i, q, smooth(q))
        for i, q in enumerate(seed_points(SPACE, {N: 0, "max_num_batched_tokens": 64}, bool))
    ]
    waited = 0
    for _ in range(40):
        batch, waits = batch_of(proposer, trials, 8)
        if not batch:
            break
        waited += waits
        assert len({tuple(q.values()) for q in batch}) == len(batch)  # nothing twice
        trials += [finished(len(trials) + i, q, smooth(q)) for i, q in enumerate(batch)]
    assert waited
    with pytest.raises(SearchEnds) as end:
        proposer.propose(trials)
    assert not isinstance(end.value, Undecided)


def test_while_it_is_open_whether_anything_matters_only_n_is_asked_for_next_to_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Surrogates, "expected", lambda own, _first: np.zeros(len(own._x)))
    every = [q for q in SPACE.points() or () if q[MNBT] in (16, 64)]

    def asked(chance: float, launched: list[Observed]) -> Proposal:
        # a function without a setter overrides what a cached property would keep
        monkeypatch.setattr(Surrogates, "chance_of_same", property(lambda _own: chance))
        seen = [x.point for x in launched]
        new = [q for q in every if q not in seen]
        return propose(SPACE, launched, new, np.ones(len(new)), 0.05)

    def launch(n: int, mnbt: int = 64) -> Observed:
        y = 0.1 * abs(n - 6)
        return Observed({N: n, MNBT: mnbt}, (y, y), (1e-6, 1e-6))

    own = [launch(n) for n in (0, 3, 6, 9, 12, 15)]
    for _ in (5, 7):
        found = asked(0.3, own)
        assert found.challenge
        assert not found.settled
        assert found.point in ({N: 5, MNBT: 64}, {N: 7, MNBT: 64})
        own.append(launch(int(found.point[N])))
    again = asked(0.3, own)
    assert again.point == {N: 0, MNBT: 64}  # the baseline, which all differ from
    own.append(launch(0))
    assert asked(0.3, own).settled
    assert asked(0.05, own).point == {N: 6, MNBT: 16}
    assert asked(0.6, own).settled
    twice = [launch(n) for n in (0, 3, 6, 9, 12, 15)] * 2
    assert asked(0.3, twice).settled  # it was open for long enough
    assert not asked(0.05, twice).settled
