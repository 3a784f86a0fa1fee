"""The ways to speculate that a load sweep compares, and which of them a confirmation launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from autotune.engine.adaptive_verification import verified
from autotune.engine.draft_schedule import scheduled
from autotune.engine.given_acceptance import with_acceptance
from autotune.stats.crossover import AtLoad, Rate, Schedule, best_fixed, over_loads
from autotune.storage.schema import MapPointRow
from autotune.study.schema import ServerSpec, StudySpec
from autotune.study.space import DRAFT, Value
from autotune.study.speculative import ADAPTIVE, SCHEDULE

# In the setting of a point of a break-even map, next to what all its points have in common:
RATES = "rates"  # acceptance by position that vLLM plays
CHECK = "check"  # the load whose break-even this point is next to
LABEL = "label"  # what of the launch is real and what is not
COUNTED = "counted"  # the acceptance that the study took from another one, and from where
_LONGEST = 26  # characters of a way's name, or a terminal has no room for the row


class WayKind(StrEnum):
    """What makes a way different from the others."""

    FIXED = "fixed"
    SCHEDULE = "schedule"
    ADAPTIVE = "adaptive"
    ARM = "arm"
    GIVEN = "given"


class Advice(StrEnum):
    """Reason for a recommendation."""

    SCHEDULE = "launched, it is better than the best fixed n"
    ADAPTIVE = "launched, adaptive verification is better than the best fixed n"
    ARM = "launched, this arm is better than the best fixed n"
    FIXED = "launched, the schedule is not certainly better"
    FIXED_RIVALS = "launched, no other way to speculate is certainly better"
    FIXED_AGAIN = "a way that was faster in one launch failed when it was launched again"
    FIXED_FAILED = "the schedule failed"
    FIXED_UNCHECKED = "the schedule was not launched yet; the same command goes on with it"
    FIXED_ENOUGH = "a schedule has no certain gain: one n is near the best at every concurrency"
    FIXED_ONE_LOAD = "a schedule needs numbers at two or more concurrencies"
    FIXED_ONLY = "this vLLM is given no schedule"


@dataclass(frozen=True)
class MapWay:
    """One way to speculate: what a launch of a load sweep serves with.

    Attributes:
        n: Draft tokens per step; the largest n of a schedule.
        schedule: Ranges of batch sizes with their n, also those of an arm; None: none.
        adaptive: Whether vLLM decides how many drafts it verifies.
        arm: Arm of the study, where it is not that of the fixed n.
        rates: Acceptance by position that vLLM plays; None: drafts are verified.
    """

    n: int
    schedule: Schedule | None = None
    adaptive: bool = False
    arm: str | None = None
    rates: tuple[float, ...] | None = None

    @property
    def kind(self) -> WayKind:
        """What makes it different from a fixed n."""
        if self.rates is not None:
            return WayKind.GIVEN
        if self.arm is not None:
            return WayKind.ARM
        if self.schedule is not None:
            return WayKind.SCHEDULE
        return WayKind.ADAPTIVE if self.adaptive else WayKind.FIXED

    @property
    def name(self) -> str:
        """Name in tables and messages."""
        if self.schedule is not None:
            text = f"schedule {schedule_text(self.schedule)}"
        elif self.adaptive:
            text = f"adaptive n = {self.n}"
        elif self.rates is not None:
            text = f"n = {self.n} at {1 + sum(self.rates):.2f} tok/step"
        else:
            text = f"n = {self.n}"
        text = text if self.arm is None else f"{self.arm} {text}"
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

    @property
    def family(self) -> tuple[WayKind, object]:
        """What ways that differ in n alone have in common; each schedule and arm is its own."""
        return self.kind, self.arm if self.kind is WayKind.ARM else self.schedule

    @property
    def biased(self) -> bool:
        """Whether its acceptance is no measure of another n: some drafts are left out."""
        return self.schedule is not None or self.adaptive


def way_of(point: MapPointRow) -> MapWay:
    """Return the way of a stored point."""
    ranges, rates = point.schedule, point.setting.get(RATES)
    return MapWay(
        n=point.n,
        schedule=None if ranges is None else tuple((int(a), int(b), int(n)) for a, b, n in ranges),
        adaptive=point.way == WayKind.ADAPTIVE,
        arm=point.arm,
        rates=None if rates is None else tuple(map(float, rates)),
    )


def counted(spec: StudySpec) -> dict[str, Any]:
    """Return what a point keeps of the acceptance that a rehearsal took from another study.

    A load sweep or a break-even map needs no run of the study, which would keep it.
    """
    given = None if spec.rehearsal is None else spec.rehearsal.acceptance
    if given is None or given.from_ is None or given.by_n is None:
        return {}
    return {COUNTED: {"from": given.from_, "by_n": given.by_n}}


def common(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all points of a sweep have in common, of one point's setting."""
    return {k: v for k, v in setting.items() if k not in (RATES, CHECK, LABEL, COUNTED)}


def draft_server(server: ServerSpec, arm: str | None, *, plain: bool) -> ServerSpec:
    """Return the server with one way to draft.

    Args:
        server: The study's server.
        arm: Name of its arm; None: it has none.
        plain: Whether its draft has a fixed n, also where the study gives it a schedule or adaptive
            verification.

    Raises:
        KeyError: there is no such arm.
    """
    server = server if arm is None else server.of_arm(arm)
    if server.speculative is None or not plain:
        return server
    given = {k: v for k, v in server.speculative.given().items() if k not in (SCHEDULE, ADAPTIVE)}
    draft = type(server.speculative).model_validate(given)
    return server.model_copy(update={"speculative": draft})


def way_params(
    way: MapWay, params: Mapping[str, Value], arms: Mapping[str, Mapping[str, Value]]
) -> dict[str, Value]:
    """Return the parameters of a way, without n.

    Args:
        way: The way.
        params: Parameters of the fixed n.
        arms: Parameters of the draft of the other arms, by the arm.
    """
    if way.arm is None:
        return dict(params)
    shared = {k: v for k, v in params.items() if not k.startswith(DRAFT)}
    return {**shared, **arms.get(way.arm, {})}


def way_server(server: ServerSpec, way: MapWay) -> ServerSpec:
    """Return the server of a way.

    Args:
        server: Server with the draft of the way: :func:`draft_server`.
        way: The way.

    Raises:
        ValueError: the server has no draft, and the way needs one.
    """
    if way.schedule is not None:
        server = scheduled(server, way.schedule)
    if way.rates is not None:
        server = with_acceptance(server, way.rates)
    return verified(server) if way.adaptive else server


def schedule_text(ranges: Schedule) -> str:
    """Return a schedule as `--schedule` takes it.

    >>> schedule_text(((1, 7, 7), (8, 16, 3)))
    '1:7,8:3'
    """
    return ",".join(f"{first}:{n}" for first, _, n in ranges)


@dataclass(frozen=True)
class Plan:
    """What a confirmation launches.

    Attributes:
        ways: Ways in the order of their launches: fixed n first, then rivals.
        fixed: The best fixed n by load, where one of ``ways`` is the best or a tie.
        left_out: Rivals for which there are too few launches.
    """

    ways: tuple[MapWay, ...]
    fixed: Mapping[int, MapWay]
    left_out: tuple[MapWay, ...]


def confirmation(
    rates: Mapping[MapWay, Mapping[int, Rate]], at: Sequence[AtLoad], launches: int
) -> Plan | None:
    """Return what a confirmation launches; None: there is nothing to compare.

    One rival stands for the ways that differ in n alone: the fastest as the mean over all loads. As
    many ways are launched as can be launched twice. The best fixed n over all loads comes first,
    then the best rival, then the best fixed n of each load and the other rivals in turn.

    Args:
        rates: Rates of the launches so far, by way and load.
        at: Best fixed n at each load.
        launches: Launches that the confirmation may have.
    """
    by_n = {way.n: row for way, row in rates.items() if way.kind is WayKind.FIXED}
    loads = [x.load for x in at]
    rivals = best_rivals(rates, loads)
    if not by_n.get(0) or not rivals:
        return None
    overall = best_fixed(by_n)
    good = {x.load: {x.best, *x.ties} for x in at}
    fixed = [overall]
    for x in at:  # the best at the loads of which none is launched yet
        if x.best not in fixed and not good[x.load].intersection(fixed):
            fixed.append(x.best)
    fixed += [n for n in dict.fromkeys(x.best for x in at) if n not in fixed]
    most = max(2, launches // 2)
    turns: list[MapWay] = [MapWay(overall)]
    others, waiting = [MapWay(n) for n in fixed[1:]], list(rivals)
    while len(turns) < most and (others or waiting):
        for queue in (waiting, others):
            if queue and len(turns) < most:
                turns.append(queue.pop(0))
    ways = sorted(turns, key=lambda w: w.kind is not WayKind.FIXED)
    return Plan(tuple(ways), fixed_of(by_n, good, ways), tuple(waiting))


def best_rivals(rates: Mapping[MapWay, Mapping[int, Rate]], loads: Sequence[int]) -> list[MapWay]:
    """Return the fastest way of each family of rivals over all loads, the fastest family first.

    Args:
        rates: Rates by way and load. Loads may be missing, such as throttled ones: a way with more
            of them is preferred.
        loads: The loads.
    """

    def rank(way: MapWay) -> tuple[int, float]:
        here = [load for load in loads if load in rates[way]]
        return -len(here), -over_loads(rates[way], here).value

    rivals = [way for way in rates if way.kind is not WayKind.FIXED]
    ranked = sorted((w for w in rivals if not rates[w].keys().isdisjoint(loads)), key=rank)
    found: dict[object, MapWay] = {}
    for way in ranked:
        found.setdefault(way.family, way)
    return list(found.values())


def fixed_of(
    by_n: Mapping[int, Mapping[int, Rate]], good: Mapping[int, set[int]], ways: Sequence[MapWay]
) -> dict[int, MapWay]:
    """Return the fixed n to beat at each load, of those among some ways; the best, or a tie of it.

    Args:
        by_n: Rates by fixed n and load.
        good: The best n and its ties, by load.
        ways: The ways that are launched.
    """
    out = {}
    for load, ns in good.items():
        known = [w for w in ways if w.kind is WayKind.FIXED and w.n in ns]
        if known:
            out[load] = max(known, key=lambda w: by_n[w.n][load].value)
    return out
