"""Bounds that a refused launch stated: what they rule out, and that the planner keeps to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

import objectives
from autotune.errors import FailureKind, LeastBudget, TrialFailure
from autotune.search.proposer import Proposer, SearchEnds
from autotune.search.stated import StatedBounds
from autotune.storage.records import Role, TrialAttrs, attrs_of
from autotune.study.files import load_study
from autotune.study.space import MNBT, ChoiceParam, IntParam, N, Point, Pow2Param, Space
from autotune.tuning.planner import Planner
from autotune.tuning.situation import Budget, Choice, Situation
from tests.studies import write_study

SPACE = Space(
    {N: IntParam(type="int", low=0, high=15), MNBT: Pow2Param(type="pow2", low=256, high=8192)}
)
BLOCK = LeastBudget(2096, every_n=True)
SLOTS = LeastBudget(1000, every_n=False)


def trial(
    number: int,
    point: Point,
    least: object = None,
    *,
    space: Space = SPACE,
    attrs: TrialAttrs | None = None,
) -> FrozenTrial:
    """A trial that failed with a stated bound, or that ran."""
    kept = TrialAttrs() if attrs is None else attrs
    extra: Mapping[str, object] = {}
    if least is not None:
        kind = {"failure_kind": str(FailureKind.BUDGET), "failure_reason": "too small"}
        bound = asdict(least) if isinstance(least, LeastBudget) else least
        extra = {**kind, "failure_least": bound}
    found = create_trial(
        state=TrialState.COMPLETE if least is None else TrialState.FAIL,
        values=[100.0 - int(point[N]), 5.0] if least is None else None,
        params=space.encode(point),
        distributions=space.distributions(),
        user_attrs={**kept.to_json(), **extra},
    )
    found.number = number
    return found


def ruled_out(bounds: StatedBounds) -> set[tuple[int, int]]:
    return {
        (int(q[N]), int(q[MNBT])) for q in SPACE.points() or () if bounds.why_not(q) is not None
    }


def test_a_bound_that_n_has_no_part_in_holds_at_every_n() -> None:
    bounds = StatedBounds(SPACE, [trial(4, {N: 7, MNBT: 512}, BLOCK)])
    assert ruled_out(bounds) == {(n, m) for n in range(16) for m in (256, 512, 1024, 2048)}
    why = bounds.why_not({N: 0, MNBT: 2048})
    assert why is not None
    assert "2096" in why
    assert "trial 4" in why


def test_another_holds_from_the_launch_s_n_on() -> None:
    bounds = StatedBounds(SPACE, [trial(0, {N: 7, MNBT: 512}, SLOTS)])
    assert ruled_out(bounds) == {(n, m) for n in range(7, 16) for m in (256, 512)}


def test_it_says_nothing_of_other_settings() -> None:
    """A block is larger with another cache; a bound of one says nothing of the other."""
    cache = ChoiceParam(type="choice", choices=("auto", "fp8"))
    space = Space({**SPACE.params, "kv_cache_dtype": cache})
    failed: Point = {N: 0, MNBT: 512, "kv_cache_dtype": "auto"}
    bounds = StatedBounds(space, [trial(0, failed, BLOCK, space=space)])
    assert bounds.why_not({**failed, MNBT: 256}) is not None
    assert bounds.why_not({**failed, "kv_cache_dtype": "fp8"}) is None


def test_a_launch_that_ran_below_it_is_believed_more() -> None:
    ran = trial(1, {N: 3, MNBT: 1024})
    assert ruled_out(StatedBounds(SPACE, [trial(0, {N: 7, MNBT: 512}, BLOCK), ran])) == set()
    above = trial(1, {N: 3, MNBT: 4096})
    assert ruled_out(StatedBounds(SPACE, [trial(0, {N: 7, MNBT: 512}, BLOCK), above]))


@pytest.mark.parametrize("kept", ["2096", {"mnbt": None}, {"mnbt": True}, {}, [2096]])
def test_what_cannot_be_read_is_no_bound(kept: object) -> None:
    assert ruled_out(StatedBounds(SPACE, [trial(0, {N: 7, MNBT: 512}, kept)])) == set()


def test_a_study_with_one_fixed_budget_has_no_bound() -> None:
    space = Space({N: SPACE.params[N]})
    bounds = StatedBounds(space, [trial(0, {N: 7}, BLOCK, space=space)])
    assert all(bounds.why_not(q) is None for q in space.points() or ())


@pytest.mark.parametrize("method", ["gp", "random"])
def test_the_search_never_proposes_below_a_bound_and_is_not_shy_above(method: str) -> None:
    small = Space({N: IntParam(type="int", low=0, high=3), MNBT: SPACE.params[MNBT]})
    proposer = Proposer(
        small, lambda _: None, ["maximize", "minimize"], method=method, seed=2, stop_below=0.0
    )
    trials = [
        trial(0, {N: 0, MNBT: 512}, BLOCK),
        trial(1, {N: 0, MNBT: 8192}),
        trial(2, {N: 3, MNBT: 8192}),
    ]
    seen: set[tuple[int, int]] = set()
    for _ in range(6):
        try:
            point = proposer.propose(trials).point
        except SearchEnds:
            break
        trials.append(trial(len(trials), point))
        seen.add((int(point[N]), int(point[MNBT])))
    assert {mnbt for _, mnbt in seen} == {4096, 8192}  # a crash model alone avoids 4096
    assert {n for n, mnbt in seen if mnbt == 4096} == {0, 1, 2, 3} or method == "gp"


def nothing_forbidden(_: Point) -> str | None:
    return None


def planner(
    folder: Path,
    method: str = "gp",
    infeasible: Callable[[Point], str | None] = nothing_forbidden,
) -> Planner:
    path = write_study(folder, space__max_num_batched_tokens__high=8192, search__method=method)
    spec = load_study(str(path)).spec
    names = ("throughput", "p95_latency")
    chosen = tuple(map(objectives.get, names))
    space = spec.to_space()
    ways = [o.direction for o in chosen]
    proposer = Proposer(
        space, lambda _: None, ways, method=spec.search.method, seed=1, stop_below=0.0
    )
    return Planner(spec, chosen, Budget(9, 0), space, infeasible, proposer)


def replay(planner: Planner, least: int) -> list[tuple[Choice, str | None]]:
    """Trials of a server that needs that MNBT and says so, with why they are ruled out."""
    trials: list[FrozenTrial] = []
    out: list[tuple[Choice, str | None]] = []
    while sum(t.state == TrialState.COMPLETE for t in trials) < 3:
        choice = planner.choose(Situation(trials))
        assert choice is not None
        why = planner.ruled_out(choice.point, trials)
        fails = int(choice.point[MNBT]) < least
        attrs = planner.begun(choice, trials)
        bound = LeastBudget(least, every_n=True) if fails else None
        trials.append(trial(len(trials), choice.point, bound, space=planner.space, attrs=attrs))
        if why is not None:
            trials[-1].set_user_attr("failure_kind", str(FailureKind.INFEASIBLE))
        out.append((choice, why))
    return out


def test_a_baseline_below_a_bound_moves_and_nothing_else_fails(tmp_path: Path) -> None:
    found = replay(planner(tmp_path), 2096)
    failed = [c for c, _ in found if int(c.point[MNBT]) < 2096]
    assert [c.attrs.role for c in failed] == [Role.BASELINE]
    again = found[1][0]
    assert again.attrs.baseline
    assert again.point == {N: 0, MNBT: 4096}
    assert not any(c.attrs.baseline for c, _ in found[2:])


def test_a_grid_names_the_reason_and_launches_nothing_below_it(tmp_path: Path) -> None:
    found = replay(planner(tmp_path, "grid"), 4000)
    below = [(c, why) for c, why in found if int(c.point[MNBT]) < 4000]
    assert below[0][1] is None  # the launch that found it
    assert len(below) > 1
    assert all(why is not None and "4000" in why for _, why in below[1:])
    assert all(why is None for c, why in found if int(c.point[MNBT]) >= 4000)


def test_a_failure_keeps_its_bound(tmp_path: Path) -> None:
    failure = TrialFailure(FailureKind.BUDGET, "too small", least=BLOCK)
    kept = TrialAttrs(failure_kind="budget", failure_least=asdict(BLOCK)).to_json()
    assert failure.least == BLOCK
    found = attrs_of(trial(0, {N: 1, MNBT: 256}, BLOCK))
    assert found.failure_least == kept["failure_least"] == {"mnbt": 2096, "every_n": True}


def test_the_space_is_walked_through_once_for_each_set_of_bounds(tmp_path: Path) -> None:
    asked: list[Point] = []

    def infeasible(q: Point) -> str | None:  # the baseline moves, so every point may be asked for
        asked.append(q)
        return "too small" if int(q[MNBT]) < 8192 else None

    plan = planner(tmp_path, infeasible=infeasible)
    first = plan.fixed_points()
    walked = len(asked)
    assert walked > 2
    ran = trial(0, {N: 0, MNBT: 8192}, space=plan.space)
    assert plan.fixed_points([ran]) == first
    assert len(asked) == walked
    stated = trial(1, {N: 0, MNBT: 512}, BLOCK, space=plan.space)
    plan.fixed_points([ran, stated])
    assert len(asked) > walked
