"""Seeds, proposals that can launch and are new, and the front."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.engine.rules import why_infeasible
from autotune.search import model as model_module
from autotune.search import proposer as proposer_module
from autotune.search.front import Direction, baseline_speedup, front_numbers
from autotune.search.gain import Belief, improvements, potential
from autotune.search.informative import informative
from autotune.search.model import propose
from autotune.search.proposer import (
    Converged,
    Proposer,
    SpaceExhausted,
    grid_points,
    launched_of,
    seed_points,
)
from autotune.study.space import MNBT, ChoiceParam, FloatParam, IntParam, N, Point, Pow2Param, Space
from tests.paths import ROOT

BOTH: tuple[Direction, ...] = ("maximize", "minimize")

SPACE = Space(
    {
        N: IntParam(type="int", low=0, high=15),
        MNBT: Pow2Param(type="pow2", low=8, high=64),
    }
)


def infeasible(point: Point) -> str | None:
    return why_infeasible({"speculative.method": "dflash", **point, "max_num_seqs": 4}, "0.26.0")


def test_seeds_begin_with_the_baseline_and_can_launch() -> None:
    seeds = seed_points(SPACE, {N: 0, MNBT: 64}, lambda q: infeasible(q) is None)
    assert seeds[0] == {N: 0, MNBT: 64}
    assert seeds[1] == {N: 15, MNBT: 64}  # nothing but n differs: its acceptance tells most
    assert len(seeds) == 3
    assert all(infeasible(q) is None for q in seeds)
    assert {q[N] for q in seeds} == {0, 3, 15}


def test_every_feasible_point_is_drawn_once_and_no_other() -> None:
    small = Space({N: IntParam(type="int", low=1, high=3), MNBT: SPACE.params[MNBT]})
    feasible = [q for q in grid_points(small) if infeasible(q) is None]
    assert 0 < len(feasible) < small.size()  # type: ignore[operator]
    proposer = Proposer(small, infeasible, BOTH, method="random", seed=1)
    seen: list[Point] = []
    trials: list[FrozenTrial] = []
    for _ in feasible:
        point = proposer.propose(trials).point
        seen.append(point)
        # a failed launch is not proposed again either
        values = None if point[N] == 2 else (float(point[N]), float(point[MNBT]))
        trials.append(finished(len(trials), point, values, space=small))
    key = lambda q: (q[N], q[MNBT])  # noqa: E731
    assert sorted(seen, key=key) == sorted(feasible, key=key)
    with pytest.raises(SpaceExhausted):
        proposer.propose(trials)


def test_the_model_goes_to_the_best_points_that_can_launch() -> None:
    proposer = Proposer(SPACE, infeasible, BOTH, method="gp", seed=5)
    seeds = seed_points(SPACE, {N: 0, MNBT: 64}, lambda q: infeasible(q) is None)
    seen: list[Point] = []
    trials: list[FrozenTrial] = []
    for _ in range(10):
        point = seeds.pop(0) if seeds else proposer.propose(trials).point
        assert infeasible(point) is None
        # the corner that cannot launch would be the best: large n, small budget
        rate = 50.0 + 5 * int(point[N])
        values = (rate, 1e5 / rate + int(point[MNBT]))
        trials.append(finished(len(trials), point, values, noise=()))
        seen.append(point)
    assert seen.count({N: 15, MNBT: 64}) >= 1
    assert sum(int(q[N]) >= 12 for q in seen) >= 3


def test_the_model_ends_when_no_launch_is_worth_its_time_and_challenges_found_nothing() -> None:
    proposer = Proposer(SPACE, lambda _q: None, BOTH, method="gp", seed=0, stop_below=0.005)
    trials: list[FrozenTrial] = []
    for point in seed_points(SPACE, {N: 0, MNBT: 64}, lambda _q: True):
        trials.append(finished(len(trials), point, smooth(point)))
    challenges = []

    def search() -> None:
        for _ in range(60):
            found = proposer.propose(trials)
            challenges.append(found.challenge)
            trials.append(finished(len(trials), found.point, smooth(found.point), found.challenge))

    with pytest.raises(Converged) as end:
        search()
    assert end.value.gain < 0.005
    assert challenges[-1]
    launched = {int(SPACE.decode(t.params)[N]) for t in trials}
    best = max(grid_points(SPACE), key=lambda q: smooth(q)[0])
    assert {int(best[N]) + k for k in (-1, 0, 1)} <= launched
    # no n is further than one step from one that was launched
    assert all({n - 1, n, n + 1} & launched for n in range(16))
    # without a limit the search goes on
    more = Proposer(SPACE, lambda _q: None, BOTH, method="gp", seed=0).propose(trials)
    assert more.challenge


def test_draft_parameters_are_not_searched_without_a_draft() -> None:
    space = Space(
        {
            N: IntParam(type="int", low=0, high=1),
            "speculative.draft_tensor_parallel_size": ChoiceParam(type="choice", choices=(1, 2)),
        }
    )
    assert len(grid_points(space)) == 3
    proposer = Proposer(space, lambda _q: None, ["maximize"], method="random", seed=0)
    seen: list[Point] = []
    trials: list[FrozenTrial] = []
    for _ in range(3):
        seen.append(proposer.propose(trials).point)
        trials.append(finished(len(trials), seen[-1], [1.0], space=space))
    assert sorted(map(str, seen)) == sorted(map(str, grid_points(space)))
    with pytest.raises(SpaceExhausted):
        proposer.propose(trials)


def test_the_same_seed_proposes_the_same_and_resumes_with_new_draws() -> None:
    def run(seed: int, rounds: int) -> list[Point]:
        out: list[Point] = []
        trials: list[FrozenTrial] = []
        for _ in range(rounds):
            # a new proposer each time, as after a resume
            proposer = Proposer(SPACE, infeasible, BOTH, method="random", seed=seed)
            out.append(proposer.propose(trials).point)
            trials.append(finished(len(trials), out[-1], (1.0, 1.0)))
        return out

    assert run(3, 8) == run(3, 8)
    assert run(3, 8) != run(4, 8)
    assert len({tuple(q.values()) for q in run(3, 8)}) == 8


def measured(count: int, *, seed: int = 0) -> list[FrozenTrial]:
    """Finished trials at points of ``SPACE`` that can launch, with noisy numbers."""
    rng = random.Random(seed)
    points = [q for q in grid_points(SPACE) if infeasible(q) is None]
    trials = []
    for number in range(count):
        point = rng.choice(points)
        n, noise = int(point[N]), rng.lognormvariate(0, 0.05)
        trial = create_trial(
            values=[(100 + 9 * n - n * n) / noise, (2 + 0.1 * n + int(point[MNBT]) / 64) * noise],
            params=SPACE.encode(point),
            distributions=SPACE.distributions(),
        )
        trial.number = number
        trials.append(trial)
    return trials


def finished(
    number: int,
    point: Point,
    values: Sequence[float] | None,
    challenge: bool = False,
    *,
    noise: Sequence[float] = (1e-4, 1e-4),
    space: Space = SPACE,
) -> FrozenTrial:
    attrs = {"log_variances": list(noise)} | ({"challenge": True} if challenge else {})
    trial = create_trial(
        state=TrialState.FAIL if values is None else TrialState.COMPLETE,
        values=values,
        params=space.encode(point),
        distributions=space.distributions(),
        user_attrs=attrs,
    )
    trial.number = number
    return trial


def smooth(point: Point) -> tuple[float, float]:
    """Best at n = 6, whatever the budget."""
    rate = 100 - (int(point[N]) - 6) ** 2 / 2
    return rate, 1e5 / rate


def test_as_many_trials_as_the_model_takes_are_all_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    proposals = []
    for most in (200, 13, 12):
        monkeypatch.setattr(proposer_module, "MODEL_TRIALS", most)
        proposer = Proposer(SPACE, lambda _q: None, BOTH, method="gp", seed=5)
        proposals.append(proposer.propose(measured(12)))
    assert proposals[0] == proposals[1] == proposals[2]


def test_the_model_of_a_long_study_sees_the_front_and_no_more_than_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proposer_module, "MODEL_TRIALS", 12)
    seen: list[list[float]] = []

    def spy(space: Space, launched: Sequence[Any], *rest: Any, **named: Any) -> Any:
        seen.append([x.rate for x in launched])
        return propose(space, launched, *rest, **named)

    monkeypatch.setattr(proposer_module, "propose", spy)
    proposer = Proposer(SPACE, lambda _q: None, BOTH, method="gp", seed=5)
    trials = measured(30)
    for _ in range(3):
        point = proposer.propose(trials).point
        trials.append(finished(len(trials), point, (1.0, 100.0), noise=()))
    assert [len(rates) for rates in seen] == [12, 12, 12]
    for i, rates in enumerate(seen):
        values = {t.number: t.values for t in trials[: 30 + i]}
        front = front_numbers(values, BOTH)
        assert len(front) <= 6
        assert {values[k][0] for k in front} <= set(rates)
        assert {values[k][0] for k in (29 + i, 28 + i)} <= set(rates)  # the latest


def test_half_of_what_the_model_sees_is_the_best_and_half_the_latest() -> None:
    def trial(number: int, *values: float) -> FrozenTrial:
        made = create_trial(values=values)
        made.number = number
        return made

    # trials 0 and 2 are the front, 1 is dominated by 2 alone, the others by more and more
    values = [(9.0, 1.0), (5.0, 0.6), (6.0, 0.5), *((5.0 - k, 2.0 + k) for k in range(7))]
    trials = [trial(number, *v) for number, v in enumerate(values)]

    def chosen(most: int) -> list[int]:
        return [t.number for t in informative(trials, BOTH, most)]

    assert chosen(4) == [0, 2, 8, 9]
    assert chosen(5) == [0, 1, 2, 8, 9]
    assert chosen(2) == [2, 9]  # of two that are alike, the later one
    assert chosen(10) == chosen(99) == list(range(10))


def test_a_real_valued_space_is_searched() -> None:
    space = Space(
        {
            N: IntParam(type="int", low=0, high=3),
            "gpu_memory_utilization": FloatParam(type="float", low=0.5, high=0.9),
        }
    )

    def forbid(q: Point) -> str | None:
        return "too much" if float(q["gpu_memory_utilization"]) > 0.8 else None

    proposer = Proposer(space, forbid, ["maximize"], method="gp", seed=0)
    rng = random.Random(0)
    trials: list[FrozenTrial] = []
    for _ in range(5):
        point = proposer.propose(trials).point
        assert forbid(point) is None
        values = [float(point["gpu_memory_utilization"]) + rng.random() * 0.01]
        trials.append(finished(len(trials), point, values, noise=(), space=space))


def test_front() -> None:
    values = {0: (98.0, 2.0), 1: (110.0, 2.4), 2: (99.0, 2.5), 3: (98.0, 2.0), 4: (90.0, 2.1)}
    assert front_numbers(values, ["maximize", "minimize"]) == {0, 1, 3}
    assert front_numbers({}, ["maximize"]) == set()
    assert front_numbers({7: (1.0,), 8: (2.0,)}, ["maximize"]) == {8}


def test_speedup_needs_both_numbers() -> None:
    assert baseline_speedup(228.0 * 2.5, 228.0) == 2.5
    assert baseline_speedup(None, 228.0) is None
    assert baseline_speedup(100.0, None) is None


def batch_of(proposer: Proposer, trials: Sequence[FrozenTrial], count: int) -> list[Point]:
    points: list[Point] = []
    while len(points) < count:
        points.append(proposer.propose(trials, points).point)
    return points


@pytest.mark.parametrize("method", ["random", "gp"])
def test_pending_points_are_not_drawn_again(method: str) -> None:
    """Without two complete trials both methods draw blindly."""
    small = Space({N: IntParam(type="int", low=1, high=3), MNBT: SPACE.params[MNBT]})
    feasible = [q for q in grid_points(small) if infeasible(q) is None]
    proposer = Proposer(small, infeasible, BOTH, method=method, seed=2)
    first = finished(0, feasible[0], (1.0, 1.0), space=small)
    batch = batch_of(proposer, [first], len(feasible) - 1)
    assert sorted(map(str, [feasible[0], *batch])) == sorted(map(str, feasible))
    with pytest.raises(SpaceExhausted):
        proposer.propose([first], batch)


def test_the_draw_is_that_of_the_launch_whether_those_before_it_have_ended_or_not() -> None:
    proposer = Proposer(SPACE, infeasible, BOTH, method="random", seed=3)
    trials = measured(4)
    batch = batch_of(proposer, trials, 3)
    ended = list(trials)
    for point in batch:
        assert proposer.propose(ended).point == point
        ended.append(finished(len(ended), point, (1.0, 1.0)))


def test_a_batch_does_not_ask_again_for_what_a_pending_launch_will_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offered = []

    def spy(space: Space, launched: Any, new: Sequence[Point], *rest: Any, **named: Any) -> Any:
        offered.append((list(new), list(named["pending"])))
        return propose(space, launched, new, *rest, **named)

    monkeypatch.setattr(proposer_module, "propose", spy)
    proposer = Proposer(SPACE, infeasible, BOTH, method="gp", seed=0)
    trials = measured(6)
    batch = batch_of(proposer, trials, 4)
    tried = [SPACE.decode(t.params) for t in trials]
    for i, (new, pending) in enumerate(offered):
        assert pending == batch[:i]
        assert not [q for q in new if q in pending or q in tried]
    first = proposer.propose(trials)
    again = proposer.propose(trials, [first.point])
    assert first.point not in tried
    assert again.point != first.point
    assert again.gain is not None
    assert first.gain is not None
    assert again.gain < first.gain


def test_the_model_learns_from_launches_without_how_their_slots_differ() -> None:
    def on(slot: int, trial: FrozenTrial) -> FrozenTrial:
        faster = 1 + 0.1 * slot
        trial.values = [trial.values[0] * faster, trial.values[1] / faster]
        trial.user_attrs["slot"] = {"cores": str(slot)}
        return trial

    base, shared, *points = [q for q in grid_points(SPACE) if infeasible(q) is None][::9]
    order = [(base, 0), (base, 1), (shared, 1), (shared, 0)]
    order += [(q, i % 2) for i, q in enumerate(points)]
    blind = [finished(i, q, smooth(q)) for i, (q, _) in enumerate(order)]
    trials = [on(slot, finished(i, q, smooth(q))) for i, (q, slot) in enumerate(order)]
    true = np.array([x.costs for x in launched_of(SPACE, blind, BOTH)])
    found = launched_of(SPACE, trials, BOTH)
    off = np.array([x.costs for x in found]) - true
    assert np.ptp(off, axis=0).max() < 0.032  # of 10 % a third is left, at most
    assert all(x.variances > (1e-4, 1e-4) for x in found)
    assert all(x.rate == pytest.approx(np.exp(-x.costs[0])) for x in found)
    # on one slot, whichever it is, nothing changes
    for t in trials:
        t.user_attrs["slot"] = {"cores": "0-7"}
    for t, same in zip(trials, blind, strict=True):
        t.values = same.values
    assert launched_of(SPACE, trials, BOTH) == launched_of(SPACE, blind, BOTH)


def test_a_pending_point_is_believed_in_as_one_that_was_launched_with_its_expected_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, list[Sequence[Belief]]] = {"improvements": [], "potential": []}

    def spy(name: str, of: Callable[..., Any]) -> None:
        def call(beliefs: Sequence[Belief], *reference: Any) -> Any:
            seen[name].append(beliefs)
            return of(beliefs, *reference)

        monkeypatch.setattr(model_module, name, call)

    spy("improvements", improvements)
    spy("potential", potential)
    launched = launched_of(SPACE, measured(6), BOTH)
    own = [x.point for x in launched]
    points = len({frozenset(q.items()) for q in own})
    other, *new = [q for q in grid_points(SPACE) if infeasible(q) is None and q not in own]
    ones = np.ones(len(new) + 1)

    before = propose(SPACE, launched, [other, *new], ones, 9.0)  # a gain that nothing promises
    after = propose(SPACE, launched, new, ones[1:], 9.0, pending=[own[0], other])
    assert before.challenge
    assert after.challenge
    assert after.point in new
    for was, now in seen.values():
        for a, b in zip(was, now, strict=True):
            assert len(a.covariance) == points
            assert len(b.covariance) == points + 1  # it can be recommended
            assert np.array_equal(a.mean, b.mean)
            # by hand, at what was launched: own[0] is the first, `other` right behind the last
            c = np.array([a.covariance[0, :points], a.covariance[:, points]])
            k = np.array([[a.variance[0], c[1, 0]], [c[1, 0], a.variance[points]]])
            told = (c * np.linalg.solve(k + a.noise * np.eye(2), c)).sum(axis=0)
            assert b.variance[:points] == pytest.approx(a.variance[:points] - told, abs=1e-10)
            assert (b.variance[[0, points]] < a.variance[[0, points]]).all()


def test_the_search_needs_no_torch() -> None:
    """It is no dependency: whoever has vLLM in another environment has none."""
    look = (
        "import sys; from tests.search import test_proposer as t; "
        "t.Proposer(t.SPACE, t.infeasible, t.BOTH, method='gp', seed=0).propose(t.measured(6)); "
        "print('torch' in sys.modules)"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", look], cwd=root, check=True, capture_output=True, text=True
    )
    assert done.stdout == "False\n"
