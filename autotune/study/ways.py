"""The space of a study with arms: one parameter for the arm, and what each arm searches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from autotune.study.arms import ArmSpec
from autotune.study.space import (
    ARM,
    DRAFT,
    MOST_N,
    AnyParam,
    ChoiceParam,
    FloatParam,
    IntParam,
    N,
    Point,
    Pow2Param,
    Space,
    Value,
    Way,
    as_int,
    describe,
)
from autotune.study.speculative import (
    ADAPTIVE,
    FLY,
    FROM_TEXT,
    REJECTION,
    SCHEDULE,
    SpeculativeSpec,
)

# What a lossy way to draft does, where a study is explained.
LOSSY = (
    f"{REJECTION}: {FLY} is lossy: drafts are accepted that the target would not have written, so "
    "answers differ from those without speculation"
)


def space_of(
    params: Mapping[str, AnyParam],
    speculative: SpeculativeSpec | None = None,
    arms: Mapping[str, ArmSpec] | None = None,
) -> Space:
    """Return the space of a study.

    Args:
        params: Shared parameters by name: the study's ``space``.
        speculative: The only way to draft of a study without arms.
        arms: The study's arms.

    Raises:
        ValueError: two arms search one key in ways that do not go together, or an arm has no n.
    """
    if not arms:
        return Space(params, draft={} if speculative is None else speculative.given())
    ways = {name: _way(name, arm, params) for name, arm in arms.items()}
    own = dict.fromkeys(key for way in ways.values() for key in way.params if key != N)
    out: dict[str, AnyParam] = {ARM: ChoiceParam(type="choice", choices=tuple(arms)), N: _n(ways)}
    for key in own:
        out[key] = _union(key, [w.params[key] for w in ways.values() if key in w.params])
    return Space({**out, **{k: p for k, p in params.items() if k != N}}, ways=ways)


def _way(name: str, arm: ArmSpec, shared: Mapping[str, AnyParam]) -> Way:
    params: dict[str, AnyParam] = arm.own_params()
    if N not in params:
        if N not in shared or (n := _from_one(shared[N])) is None:
            raise ValueError(f"server.arms.{name}: space.{N} has no n above 0 for it")
        params[N] = n
    return Way(params, {k: v for k, v in arm.given().items() if k != N})


def _from_one(param: AnyParam) -> AnyParam | None:
    """Return a parameter of n without 0; None: nothing is left."""
    values = [n for v in param.values() or () if (n := as_int(v)) is not None and n > 0]
    if not values:
        return None
    if isinstance(param, IntParam):
        return param.model_copy(update={"low": values[0]})
    if isinstance(param, ChoiceParam):
        return ChoiceParam(type="choice", choices=tuple(values))
    return param


def _n(ways: Mapping[str, Way]) -> IntParam:
    """Return n of all arms and of the baseline."""
    most = 0
    for name, way in ways.items():
        most = max(most, *(as_int(v) or 0 for v in way.params[N].values() or ()))
        if most > MOST_N:
            raise ValueError(f"server.arms.{name}: {N} must be at most {MOST_N}, not {most}")
    return IntParam(type="int", low=0, high=most)


def _union(key: str, params: list[AnyParam]) -> AnyParam:
    """Return a parameter with the values of several arms."""
    first = params[0]
    if all(p == first for p in params):
        return first
    if all(isinstance(p, ChoiceParam) for p in params):
        choices = list(_choices(params))
        types = {(v, type(v)) for v in choices}
        if len(types) == len(set(choices)):  # Optuna would mix up 1, 1.0 and true
            return ChoiceParam(type="choice", choices=tuple(dict.fromkeys(choices)))
    ranges = [p for p in params if not isinstance(p, ChoiceParam)]
    if len(ranges) == len(params) and all(type(p) is type(first) for p in params):
        low, high = min(p.low for p in ranges), max(p.high for p in ranges)
        logs = {p.log for p in ranges if isinstance(p, FloatParam)}
        if isinstance(first, Pow2Param):
            return Pow2Param(type="pow2", low=int(low), high=int(high))
        if isinstance(first, IntParam) and high - low > MOST_N:
            raise ValueError(
                f"server.arms: {key.removeprefix(DRAFT)} has more than {MOST_N} values from "
                f"{low} to {high}, the ranges of all arms together; give choices"
            )
        if isinstance(first, IntParam):
            return IntParam(type="int", low=int(low), high=int(high))
        if len(logs) == 1:
            return FloatParam(type="float", low=low, high=high, log=logs.pop())
    name = key.removeprefix(DRAFT)
    raise ValueError(f"server.arms: two arms search {name} as different types; give both one type")


def _choices(params: Iterable[AnyParam]) -> Iterable[Value]:
    for p in params:
        yield from p.choices if isinstance(p, ChoiceParam) else ()


def why_no_baseline(space: Space, baseline: Mapping[str, Value]) -> str | None:
    """Return which key of the baseline its launch would not have, key first; None: all are in it.

    Args:
        space: Space of a study; without arms there is nothing to check.
        baseline: Values of the study's ``baseline``, which are parameters of the space.
    """
    if not space.ways:
        return None
    n, arm = baseline.get(N, 0), baseline.get(ARM, space.arms[0])
    if arm not in space.arms:
        return f"baseline.{ARM}: must be one of server.arms: {', '.join(space.arms)}"
    own = space.ways[str(arm)].params
    if n == 0:
        lost = next((k for k in baseline if k == ARM or k.startswith(DRAFT)), None)
        why = f"n = 0 has no arm; leave it out, or give baseline.{N}"
        return None if lost is None else f"baseline.{lost}: {why}"
    if not any(type(v) is type(n) and v == n for v in own[N].values() or ()):
        fixed = space.fixed_n(str(arm))
        has = f"n of {describe(own[N])}" if fixed is None else f"n = {fixed}"
        return f"baseline.{N}: arm {arm} has {has}, not {n!s:.60}"
    lost = next((k for k in baseline if k.startswith(DRAFT) and k not in own), None)
    return None if lost is None else f"baseline.{lost}: arm {arm} does not search it"


def curve_of(space: Space, point: Point) -> str | None:
    """Return whose acceptance the launch of a point tells of.

    Arms of the same keys have the same text, for any n. Without arms there is one text.

    Args:
        space: Searched parameters.
        point: A point of it, with n of at least 1.

    Returns:
        None: the counted acceptance is not that of a fixed n; see :func:`is_biased`.
    """
    if is_biased(space.draft_of(point)):
        return None
    return json.dumps(space.ways[str(point[ARM])].draft, sort_keys=True) if space.ways else ""


def arms_by_curve(space: Space) -> dict[str, tuple[str, ...]]:
    """Return the arms of each acceptance that can be counted; see :func:`curve_of`."""
    found: dict[str, tuple[str, ...]] = {}
    for name, way in space.ways.items():
        if not is_biased(way.draft):
            curve = json.dumps(way.draft, sort_keys=True)
            found[curve] = (*found.get(curve, ()), name)
    return found


def is_biased(draft: Mapping[str, Any]) -> bool:
    """Return whether a launch's counted acceptance is not that of a fixed n.

    A schedule and adaptive verification verify fewer drafts where these are expected to fail or
    where many requests run, so that acceptance by position is biased (vLLM PR #52992: 2 to 35 %
    too low).

    Args:
        draft: Keys of ``--speculative-config``.
    """
    return draft.get(ADAPTIVE) is True or draft.get(SCHEDULE) is not None


def is_lossy(draft: Mapping[str, Any]) -> bool:
    """Return whether drafts are accepted that the target would not have written.

    Args:
        draft: Keys of ``--speculative-config``.
    """
    return draft.get(REJECTION) == FLY


def skips_steps(draft: Mapping[str, Any]) -> bool:
    """Return whether a request may have steps without drafts, which vLLM does not count.

    vLLM counts a draft only where a request has draft tokens (``v1/core/sched/scheduler.py:
    update_from_output``, 0.32.0: 2129, 2969). Then tokens per step are those of the steps with
    drafts. A schedule may say n = 0, and n-grams and suffixes draft nothing where nothing repeats.
    Adaptive verification counts a draft that it does not verify as not accepted.

    Args:
        draft: Keys of ``--speculative-config``.
    """
    schedule = draft.get(SCHEDULE)
    if isinstance(schedule, list | tuple):
        entries = [x for x in schedule if isinstance(x, list | tuple) and len(x) == 3]
        if any(x[2] == 0 for x in entries):
            return True
    return draft.get("method") in FROM_TEXT
