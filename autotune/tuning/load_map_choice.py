"""What a load sweep launches next: a fixed n, another way to speculate, or a repeated launch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from autotune.engine.adaptive_verification import LAUNCH_NOTE, why_no_adaptive
from autotune.engine.draft_schedule import ranges_of, why_no_schedule
from autotune.errors import NothingUsable, UserError
from autotune.results.load_map import LoadSweepView
from autotune.results.load_map_ways import MapWay, WayKind, way_of, way_params, way_server
from autotune.results.read_load_map import (
    comparable_loads,
    failure_of_point,
    largest_batch,
    launched_version,
    rates_of,
)
from autotune.stats.crossover import Rate, Schedule, propose
from autotune.stats.referee import there_and_back
from autotune.storage.schema import MapPointRow
from autotune.storage.store import Store
from autotune.study.space import N, Value
from autotune.tuning.load_map_requests import order
from autotune.tuning.load_map_setting import ArmRival, Settled
from autotune.tuning.prepare import Prepared

FIRST_N = 3  # the first n with drafts, where the study knows no winner
# No n is launched of which less is expected at every load: launches differ by more.
LEAST_GAIN = 0.01


@dataclass(frozen=True)
class Rivals:
    """Which ways are launched besides the fixed n, and how often.

    Attributes:
        schedule: The schedule of n by batch size that the numbers suggest, or else the study's own.
        adaptive: Adaptive verification.
        asked: A schedule that the user gives, as pairs of first batch size and n; None: none.
        arms: The other arms of the study.
        launches: Most n that are launched with adaptive verification, and of each arm.
        confirm: Launches of the confirmation; 0: there is none.
    """

    schedule: bool = True
    adaptive: bool = False
    arms: bool = False
    asked: Sequence[tuple[int, int]] | None = None
    launches: int = 2
    confirm: int = 0


class Chooser:
    """Chooses the points of one load sweep, from what was measured.

    Args:
        store: Database.
        study: Name of the study.
        launched_as: Name under which its launches are stored.
        settled: The study as the load sweep launches it.
        loads: Concurrencies, ascending.
        launches: Most fixed n, n = 0 included.
        rivals: The other ways.
        view: Returns what the load sweep amounts to by now.
        say: Told of what is not launched, and why; once each.

    Raises:
        UserError: a way that was asked for cannot be launched.
    """

    def __init__(
        self,
        store: Store,
        study: str,
        launched_as: str,
        settled: Settled,
        loads: Sequence[int],
        launches: int,
        rivals: Rivals,
        view: Callable[[], LoadSweepView],
        say: Callable[[str], None],
    ) -> None:
        self.store, self.study, self.launched_as = store, study, launched_as
        self.setting, self.p = settled.setting, settled.prepared
        self.winners, self.candidates = settled.winners, settled.candidates
        self.own_schedule, self.arms = settled.schedule, settled.arms
        self.loads, self.launches, self.rivals = loads, launches, rivals
        self._view, self._say = view, say
        self._said: set[str] = set()
        self._check()

    def say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    def _check(self) -> None:
        """Refuse what can be known not to launch before anything is launched.

        Raises:
            UserError: it is one of the ways that were asked for.
        """
        if self.rivals.arms and not self.arms:
            raise UserError(
                f"--ways arms: {self.p.loaded.path} has no other arm; server.arms has several"
            )
        asked = None if self.rivals.asked is None else self._asked()
        if self.setting.vllm is None:  # its first launch tells, and then what it refuses is said
            return
        if asked is not None and (why := self._why_not(asked)) is not None:
            raise UserError(f"--schedule: {why}")
        if self.rivals.adaptive:
            reasons = [self._why_not(MapWay(n, adaptive=True)) for n in self.candidates]
            if None not in reasons:
                raise UserError(f"--ways adaptive: {reasons[0] if reasons else 'no n to launch'}")

    # -- what there is -----------------------------------------------------------------------------

    def points(self) -> list[MapPointRow]:
        """Return the points of this setting, oldest first."""
        setting = self.setting.plain()
        return [x for x in self.store.load_maps.points(self.study) if x.setting == setting]

    def missing(self, point: MapPointRow) -> list[tuple[int, int]]:
        """Return load and part that were not measured, in their order; none of a failed point."""
        return missing_parts(self.store, self.launched_as, point, self.loads)

    def _of(self, family: tuple[WayKind, object]) -> dict[int, MapPointRow]:
        """Return the sweep's points of one family of ways, by n."""
        found = [x for x in self.points() if x.repeat is None and way_of(x).family == family]
        return {x.n: x for x in found}

    def _rates(self, points: dict[int, MapPointRow]) -> dict[int, dict[int, Rate]]:
        """Return what was measured, by n and load."""
        rows = {n: comparable_loads(self.store, x.id) for n, x in points.items()}
        return rates_of(rows, self.loads)

    # -- what comes next ---------------------------------------------------------------------------

    def next(self) -> MapPointRow | None:
        """Return the point to launch: a fixed n, then a rival, then of the confirmation.

        Raises:
            NothingUsable: n = 0 gave no numbers.
        """
        for choose in (self._fixed, self._schedule, self._adaptive, self._arm, self._confirmation):
            if (point := choose()) is not None:
                return point
        return None

    def _fixed(self) -> MapPointRow | None:
        """Return the next fixed n: one that is begun, n = 0, the first guess, the most promising.

        Raises:
            NothingUsable: n = 0 failed.
        """
        begun = self._of(MapWay(0).family)
        for point in begun.values():
            if self.missing(point):
                return point
        if (none := begun.get(0)) is None:
            return self._add(MapWay(0))
        if (why := failure_of_point(self.store, self.launched_as, none)) is not None:
            raise NothingUsable(
                f"{self.study}: n = 0 gave no numbers, so there is nothing to compare with: "
                f"{why[1]}"
            )
        rates = self._rates(begun)
        if 0 not in rates:
            raise NothingUsable(
                f"{self.study}: n = 0 was throttled at every concurrency, so there is nothing to "
                "compare with: take lower ones"
            )
        free = [n for n in self.candidates if n not in begun]
        if len(begun) >= self.launches or not free:
            return None
        if max(rates) == 0:  # none with drafts yet, or all that were tried failed
            wanted = next((n for n in self.winners if n in free), FIRST_N)
            return self._add(MapWay(min(free, key=lambda n: (abs(n - wanted), n))))
        found = propose(rates, free)
        if found is None or found.gain < LEAST_GAIN:
            self.say(f"no further n is launched: none promises {LEAST_GAIN:.0%} more at any load")
            return None
        return self._add(MapWay(found.n))

    def _schedule(self) -> MapPointRow | None:
        """Return a schedule to launch: the one that was asked for, and the one of the numbers."""
        if self.rivals.asked is not None and (point := self._launch(self._asked(), asked=True)):
            return point
        if not self.rivals.schedule:
            return None
        found = self._view().schedule
        if found is not None:
            return self._launch(_scheduled_way(found), asked=False)
        if self.own_schedule is not None:
            return self._launch(_scheduled_way(self.own_schedule), asked=True)
        if self.rivals.asked is None:
            self.say(
                "the numbers suggest no schedule: one n is near the best at every load; "
                "--schedule 1:7,8:3 launches one all the same, n = 7 below a batch of 8, then 3"
            )
        return None

    def _asked(self) -> MapWay:
        """Return the schedule that was asked for.

        Raises:
            UserError: it is none.
        """
        most = largest_batch(self.loads, self.p.spec, self.setting)
        try:
            return _scheduled_way(ranges_of(self.rivals.asked or (), most))
        except ValueError as e:
            raise UserError(f"--schedule: {e}") from e

    def _adaptive(self) -> MapPointRow | None:
        if not self.rivals.adaptive:
            return None
        return self._one_of(lambda n: MapWay(n, adaptive=True), self.candidates)

    def _arm(self) -> MapPointRow | None:
        for name, arm in self.arms.items() if self.rivals.arms else ():
            point = self._one_of(partial(_way_of_arm, name, arm), arm.candidates)
            if point is not None:
                return point
        return None

    def _one_of(
        self, make: Callable[[int], MapWay], candidates: Sequence[int]
    ) -> MapPointRow | None:
        """Return the next n of ways that differ in n alone; None: there is no more.

        The first is the largest n that is the best fixed one at any load, since drafts that are not
        worth it are left out. Each further one is the most promising, as among fixed n.
        """
        begun = self._of(make(1).family)
        for point in begun.values():
            if self.missing(point):
                return point
        reasons = {n: self._why_not(make(n)) for n in candidates if n not in begun}
        free = [n for n, why in reasons.items() if why is None]
        if not free and not begun:
            what = make(1).arm or make(1).kind
            self.say(f"{what} is not launched: {next(iter(reasons.values()), 'no n')}")
        if not free or len(begun) >= self.rivals.launches:
            return None
        rates = self._rates(begun)
        if not rates:
            best = [x.draft for x in self._view().at if x.draft is not None]
            wanted = max(best, default=FIRST_N)
            return self._add(make(min(free, key=lambda n: (abs(n - wanted), n))))
        found = propose({0: self._rates(self._of(MapWay(0).family))[0], **rates}, free)
        return None if found is None or found.gain < LEAST_GAIN else self._add(make(found.n))

    def _confirmation(self) -> MapPointRow | None:
        """Return the next launch of the confirmation: there and back, each way as often."""
        if not self.rivals.confirm:
            return None
        plan = self._view().confirmation_plan(self.rivals.confirm)
        if plan is None:
            self.say("nothing is confirmed: no other way than a fixed n has numbers at every load")
            return None
        if plan.left_out:
            names = ", ".join(w.name for w in plan.left_out)
            self.say(f"not confirmed, for lack of launches: {names}")
        known = {(way_of(x), x.repeat): x for x in self.points() if x.repeat is not None}
        done: dict[MapWay, int] = {}
        for way in there_and_back(plan.ways, self.rivals.confirm):
            done[way] = done.get(way, 0) + 1
            point = known.get((way, done[way]))
            if point is None:
                return self._add(way, repeat=done[way])
            if self.missing(point):
                return point
        return None

    def _launch(self, way: MapWay, *, asked: bool) -> MapPointRow | None:
        """Return the point of a way if it is to be launched; say why it is not."""
        if (why := self._why_not(way)) is not None:
            self.say(f"{way.name} is not launched: {why}")
            return None
        same = [x for x in self.points() if x.repeat is None and way_of(x) == way]
        known = next((x for x in same if (x.way is not None) == asked), None)
        # of a suggestion that no longer is one, the numbers are shown only if it is asked for
        if known is None and same and (not asked or way.schedule == self._view().schedule):
            known = same[0]
        if known is None:
            return self._add(way, asked=asked)
        return known if self.missing(known) else None

    def _why_not(self, way: MapWay) -> str | None:
        """Return why this vLLM cannot launch a way; None: nothing is known against it."""
        versions = (self.setting.vllm, launched_version(self.store, self.launched_as))
        if way.schedule is not None and (why := why_no_schedule(*versions)) is not None:
            return why
        if way.adaptive and (why := why_no_adaptive(*versions)) is not None:
            return why
        return self.prepared_of(way).infeasible(self.point_of(way))

    def prepared_of(self, way: MapWay) -> Prepared:
        """Return the study as a way launches it."""
        base = self.p if way.arm is None else self.arms[way.arm].prepared
        return as_launched(base, way)

    def point_of(self, way: MapWay) -> dict[str, Value]:
        """Return the parameters of a way."""
        return {N: way.n, **way_params(way, self.setting.params, self.setting.arms)}

    def _add(self, way: MapWay, *, asked: bool = False, repeat: int | None = None) -> MapPointRow:
        if way.adaptive:
            self.say(LAUNCH_NOTE)
        kind = None if way.kind is WayKind.FIXED else str(way.kind)
        if way.adaptive:  # also of an arm
            kind = str(WayKind.ADAPTIVE)
        if way.kind is WayKind.SCHEDULE and not asked and repeat is None:
            kind = None  # as the first load sweeps have it
        return self.store.load_maps.add_point(
            self.study,
            self.setting.plain(),
            way.n,
            way.schedule,
            way=kind,
            arm=way.arm,
            repeat=repeat,
        )


def missing_parts(
    store: Store, launched_as: str, point: MapPointRow, loads: Sequence[int]
) -> list[tuple[int, int]]:
    """Return load and part of a point that were not measured, in their order; none if it failed.

    Args:
        store: Database.
        launched_as: Name under which its launches are stored.
        point: The point.
        loads: Concurrencies, ascending.
    """
    if failure_of_point(store, launched_as, point) is not None:
        return []
    done = {(x.concurrency, x.part) for x in comparable_loads(store, point.id)}
    return [x for x in order(loads) if x not in done]


def as_launched(prepared: Prepared, way: MapWay) -> Prepared:
    """Return a study as a way launches it.

    Args:
        prepared: The study with the draft of the way.
        way: The way.
    """
    spec = prepared.spec.model_copy(update={"server": way_server(prepared.spec.server, way)})
    return dataclasses.replace(prepared, loaded=prepared.loaded.model_copy(update={"spec": spec}))


def _way_of_arm(name: str, arm: ArmRival, n: int) -> MapWay:
    return MapWay(n, schedule=arm.schedule, adaptive=arm.adaptive, arm=name)


def _scheduled_way(ranges: Schedule) -> MapWay:
    return MapWay(max(n for _, _, n in ranges), schedule=ranges)
