"""A search over ways to draft: seeds, predictions of each draft alone, and the best arm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.errors import FailureKind
from autotune.search.crashes import CrashModel
from autotune.search.front import Direction
from autotune.search.model import _predictions
from autotune.search.proposer import Converged, Proposer, grid_points, launched_of, seed_points
from autotune.study.arms import ArmSpec
from autotune.study.space import ARM, DRAFT, MNBT, IntParam, N, Point, Pow2Param, Space, canonical
from autotune.study.speculative import SCHEDULE
from autotune.study.ways import curve_of, space_of

BOTH: tuple[Direction, ...] = ("maximize", "minimize")
SHARED = {
    N: IntParam(type="int", low=0, high=15),
    MNBT: Pow2Param(type="pow2", low=1024, high=4096),
}
RAW: dict[str, dict[str, Any]] = {
    "old": {"model": "org/old"},
    "new": {"model": "org/new"},
    "by-load": {"model": "org/old", SCHEDULE: [[1, 1, 5], [2, 64, 2]]},
    "ngram": {
        "method": "ngram",
        "space": {
            N: {"type": "int", "low": 1, "high": 4},
            "prompt_lookup_max": {"type": "choice", "choices": [2, 4]},
        },
    },
}
SPACE = space_of(SHARED, arms={k: ArmSpec.model_validate(v) for k, v in RAW.items()})
LOOKUP = f"{DRAFT}prompt_lookup_max"
# Chance of each drafted token, where those before it were accepted.
CHANCE = {"old": 0.5, "new": 0.8, "by-load": 0.5, "ngram": 0.3}
BASE = {ARM: "old", N: 0, LOOKUP: 2, MNBT: 2048}


def shares(point: Point) -> list[float]:
    """Accepted share at each position; a schedule counts too few."""
    chance = CHANCE[str(point[ARM])] * (0.8 if point[ARM] == "by-load" else 1.0)
    return [chance**k for k in range(1, int(point[N]) + 1)]


def rate(point: Point) -> float:
    n = int(point[N])
    if n == 0:
        return 100.0
    length = 1 + sum(CHANCE[str(point[ARM])] ** k for k in range(1, n + 1))
    return 100 * length / (1.2 + 0.06 * n)


def finished(number: int, point: Point) -> FrozenTrial:
    tok_s = rate(point) * float(np.exp(np.random.default_rng(number).normal(0, 0.02)))
    drafts = point[N] != 0
    return create_trial(
        state=TrialState.COMPLETE,
        values=[tok_s, 1e5 / tok_s],
        params=SPACE.encode(point),
        distributions=SPACE.distributions(),
        user_attrs={
            "log_variances": [1e-4, 1e-4],
            "acceptance_per_position": shares(point) if drafts else None,
            "acceptance_length": 1 + sum(shares(point)) if drafts else None,
        },
    )


def test_every_arm_has_a_seed_and_the_baseline_is_the_first() -> None:
    seeds = seed_points(SPACE, BASE, lambda _q: True)
    assert seeds[0] == BASE
    assert [(q[ARM], q[N]) for q in seeds[1:]] == [
        ("old", 15),
        ("old", 3),
        ("new", 15),
        ("by-load", 5),
        ("ngram", 4),
    ]
    assert all(SPACE.contains(q) and canonical(SPACE, q) == q for q in seeds)
    # an arm that this vLLM cannot launch has none
    some = seed_points(SPACE, BASE, lambda q: q[ARM] != "new")
    assert [q[ARM] for q in some] == ["old", "old", "old", "by-load", "ngram"]
    # an arm with one n has one seed
    reverse = Space(SPACE.params, ways={k: SPACE.ways[k] for k in ("by-load", "old")})
    first = {**BASE, ARM: "by-load"}
    assert [(q[ARM], q[N]) for q in seed_points(reverse, first, lambda _q: True)] == [
        ("by-load", 0),
        ("by-load", 5),
        ("old", 15),
    ]


def test_a_grid_has_every_arm_and_one_baseline_for_each_budget() -> None:
    points = grid_points(SPACE)
    assert len(points) == len({frozenset(q.items()) for q in points})
    assert len(points) == SPACE.size() == 3 * (1 + 15 + 15 + 1 + 4 * 2)


def test_each_draft_is_predicted_from_its_own_unbiased_launches_only() -> None:
    points = seed_points(SPACE, BASE, lambda _q: True)
    launched = launched_of(SPACE, [finished(i, q) for i, q in enumerate(points)], BOTH)
    found = _predictions(np.array([int(q[N]) for q in points]), launched)
    old, new, by_load, ngram = (curve_of(SPACE, {**BASE, ARM: name, N: 3}) for name in RAW)
    assert by_load is None
    assert set(found) == {old, new, ngram}
    for curve, name in ((old, "old"), (new, "new")):
        assert found[str(curve)].tokens_per_step(7) == pytest.approx(
            1 + sum(CHANCE[name] ** k for k in range(1, 8)), rel=0.02
        )
    # a study whose only draft has a schedule predicts nothing
    alone = Space(SHARED, draft={SCHEDULE: [[1, 8, 2]]})
    assert curve_of(alone, {N: 2, MNBT: 2048}) is None
    adaptive = f"{DRAFT}enable_adaptive_verification"
    assert curve_of(Space(SHARED), {N: 2, adaptive: True}) is None
    assert curve_of(Space(SHARED), {N: 2, adaptive: False}) == ""


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_arm_is_found(seed: int) -> None:
    proposer = Proposer(SPACE, lambda _q: None, BOTH, method="gp", seed=seed, stop_below=0.005)
    points = seed_points(SPACE, BASE, lambda _q: True)
    trials = [finished(i, q) for i, q in enumerate(points)]
    try:
        for _ in range(10):
            points.append(dict(proposer.propose(trials).point))
            trials.append(finished(len(trials), points[-1]))
    except Converged:
        pass
    best = max(rate(q) for q in grid_points(SPACE))
    assert max(map(rate, points)) > 0.97 * best
    assert all(canonical(SPACE, q) == q and SPACE.contains(q) for q in points)


def test_a_failure_without_drafts_says_nothing_of_an_arm() -> None:
    one = CrashModel(SPACE, [], [(BASE, str(FailureKind.CRASH))])
    assert one.chance({**BASE, ARM: "old", N: 3}) == one.chance({**BASE, ARM: "new", N: 3})
