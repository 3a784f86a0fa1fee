"""What a load sweep launches next: a fixed n, another way to speculate, or a repeated launch.

With several slots, points are launched at the same time, each on one slot. A slot launches n = 0
before any other point of the sweep, and each pass of the confirmation, A B C or C B A, stays on one
slot: so there is something on every slot that compares it with the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from autotune.engine.adaptive_verification import LAUNCH_NOTE, why_no_adaptive
from autotune.engine.draft_schedule import ranges_of, why_no_schedule
from autotune.errors import NothingUsable, UserError
from autotune.results.load_map import LoadSweepView
from autotune.results.load_map_ways import MapWay, WayKind, counted, way_of
from autotune.results.read_load_map import largest_batch, launched_version
from autotune.results.sweep_slots import LINK, is_confirming, is_link, is_swept
from autotune.stats.crossover import Schedule, expect, propose
from autotune.stats.referee import there_and_back
from autotune.storage.schema import MapPointRow
from autotune.storage.store import Store
from autotune.tuning.load_map_setting import ArmRival, Settled
from autotune.tuning.load_map_state import SweepState, Underway

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


NOTHING = Underway()


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
        self.settled, self.setting, self.p = settled, settled.setting, settled.prepared
        self.winners, self.candidates = settled.winners, settled.candidates
        self.own_schedule, self.arms = settled.schedule, settled.arms
        self.loads, self.launches, self.rivals = loads, launches, rivals
        self._view, self._say = view, say
        self.state = SweepState(store, study, launched_as, settled.setting, loads)
        self._said: set[str] = set()
        self._stores = True  # False: only looked at what would be launched
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

    # -- what comes next ---------------------------------------------------------------------------

    def next(self, now: Underway = NOTHING) -> MapPointRow | None:
        """Return the point to launch: a fixed n, then a rival, then of the confirmation.

        Args:
            now: What is being launched.

        Returns:
            None: nothing is left, or something that runs has to end before, on this slot.

        Raises:
            NothingUsable: n = 0 gave no numbers.
        """
        point = self._fixed(now)
        running = [x for x in self.state.points() if x.id in now.running]
        if point is not None or any(
            way_of(x).kind is WayKind.FIXED and not is_confirming(x) for x in running
        ):
            return point
        if self.state.compares(now):
            point = self._rival(now)
        elif not self.state.linked(now).intersection(now.places) and self._has_rival(now):
            point = self._add(MapWay(0), repeat=LINK)
        if point is not None or not all(map(is_confirming, running)):
            return point
        return self._confirmation(now)

    def _rival(self, now: Underway) -> MapPointRow | None:
        """Return the next launch of another way to speculate."""
        for choose in (self._schedule, self._adaptive, self._arm):
            if (point := choose(now)) is not None:
                return point
        return None

    def _has_rival(self, now: Underway) -> bool:
        """Return whether another way is to be launched; stores nothing."""
        self._stores = False
        try:
            return self._rival(dataclasses.replace(now, place=None)) is not None
        finally:
            self._stores = True

    # -- the ways ----------------------------------------------------------------------------------

    def _fixed(self, now: Underway) -> MapPointRow | None:
        """Return the next fixed n: one that is begun, n = 0, the first guess, the most promising.

        Raises:
            NothingUsable: n = 0 failed.
        """
        begun = self.state.of(MapWay(0).family)
        for point in [*begun.values(), *filter(is_link, self.state.points())]:
            if self.state.is_due(point, now):
                return point
        if (none := begun.get(0)) is None:
            return self._add(MapWay(0))
        if (why := self.state.failure(none)) is not None:
            raise NothingUsable(
                f"{self.study}: n = 0 gave no numbers, so there is nothing to compare with: "
                f"{why[1]}"
            )
        free = [n for n in self.candidates if n not in begun]
        left = min(self.launches - len(begun), len(free))
        if self.state.needs_link(left, now):
            return self._add(MapWay(0), repeat=LINK)
        if self.state.missing(none) or not self.state.compares(now):
            return None
        rates = self.state.rates(begun)
        if 0 not in rates:
            raise NothingUsable(
                f"{self.study}: n = 0 was throttled at every concurrency, so there is nothing to "
                "compare with: take lower ones"
            )
        if left <= 0:
            return None
        beside = [n for n, x in begun.items() if x.id in now.running]
        if max(rates) == 0:  # none with drafts yet, or all that were tried failed
            return self._add(MapWay(guess(free, beside, self.winners)))
        found = propose(expect(rates, beside), free)
        if found is None or found.gain < LEAST_GAIN:
            if not beside:
                self.say(
                    f"no further n is launched: none promises {LEAST_GAIN:.0%} more at any load"
                )
            return None
        return self._add(MapWay(found.n))

    def _schedule(self, now: Underway) -> MapPointRow | None:
        """Return a schedule to launch: the one that was asked for, and the one of the numbers."""
        asked = self.rivals.asked is not None
        if asked and (point := self._launch(self._asked(), now, asked=True)) is not None:
            return point
        if not self.rivals.schedule:
            return None
        found = self._view().schedule
        if found is not None:
            return self._launch(_scheduled_way(found), now, asked=False)
        if self.own_schedule is not None:
            return self._launch(_scheduled_way(self.own_schedule), now, asked=True)
        if not asked:
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

    def _adaptive(self, now: Underway) -> MapPointRow | None:
        if not self.rivals.adaptive:
            return None
        return self._one_of(lambda n: MapWay(n, adaptive=True), self.candidates, now)

    def _arm(self, now: Underway) -> MapPointRow | None:
        each = self.arms.items() if self.rivals.arms else ()
        found = (self._one_of(partial(_way_of_arm, k, x), x.candidates, now) for k, x in each)
        return next((point for point in found if point is not None), None)

    def _one_of(
        self, make: Callable[[int], MapWay], candidates: Sequence[int], now: Underway
    ) -> MapPointRow | None:
        """Return the next n of ways that differ in n alone; None: there is no more, or one runs.

        The first is the largest n that is the best fixed one at any load, since drafts that are not
        worth it are left out. Each further one is the most promising, as among fixed n.
        """
        begun = self.state.of(make(1).family)
        for point in begun.values():
            if self.state.is_due(point, now):
                return point
        if any(map(self.state.missing, begun.values())):
            return None
        reasons = {n: self._why_not(make(n)) for n in candidates if n not in begun}
        free = [n for n, why in reasons.items() if why is None]
        if not free and not begun:
            what = make(1).arm or make(1).kind
            self.say(f"{what} is not launched: {next(iter(reasons.values()), 'no n')}")
        if not free or len(begun) >= self.rivals.launches:
            return None
        rates = self.state.rates(begun)
        if not rates:
            best = [x.draft for x in self._view().at if x.draft is not None]
            wanted = max(best, default=FIRST_N)
            return self._add(make(min(free, key=lambda n: (abs(n - wanted), n))))
        found = propose({0: self.state.rates(self.state.of(MapWay(0).family))[0], **rates}, free)
        return None if found is None or found.gain < LEAST_GAIN else self._add(make(found.n))

    def _confirmation(self, now: Underway) -> MapPointRow | None:
        """Return the next launch of the confirmation: there and back, each way as often.

        A pass launches each way once, and stays on the slot that it was begun on.
        """
        if not self.rivals.confirm:
            return None
        plan = self._view().confirmation_plan(self.rivals.confirm)
        if plan is None:
            self.say("nothing is confirmed: no other way than a fixed n has numbers at every load")
            return None
        if plan.left_out:
            names = ", ".join(w.name for w in plan.left_out)
            self.say(f"not confirmed, for lack of launches: {names}")
        known = {(way_of(x), x.repeat): x for x in self.state.points() if is_confirming(x)}
        order = there_and_back(plan.ways, self.rivals.confirm)
        for number in range(1, len(order) // max(1, len(plan.ways)) + 1):
            ways = order[(number - 1) * len(plan.ways) : number * len(plan.ways)]
            begun = [known[way, number] for way in ways if (way, number) in known]
            if any(x.id in now.running for x in begun):
                continue
            homes = {home for x in begun if (home := self.state.place_of(x, now)) is not None}
            if now.place is not None and now.place not in homes and homes.intersection(now.places):
                continue
            for way in ways:
                point = known.get((way, number))
                if point is None:
                    return self._add(way, repeat=number)
                if self.state.missing(point):
                    return point
        return None

    def _launch(self, way: MapWay, now: Underway, *, asked: bool) -> MapPointRow | None:
        """Return the point of a way if it is to be launched; say why it is not."""
        if (why := self._why_not(way)) is not None:
            self.say(f"{way.name} is not launched: {why}")
            return None
        same = [x for x in self.state.points() if is_swept(x) and way_of(x) == way]
        known = next((x for x in same if (x.way is not None) == asked), None)
        # of a suggestion that no longer is one, the numbers are shown only if it is asked for
        if known is None and same and (not asked or way.schedule == self._view().schedule):
            known = same[0]
        if known is None:
            return self._add(way, asked=asked)
        return known if self.state.is_due(known, now) else None

    def _why_not(self, way: MapWay) -> str | None:
        """Return why this vLLM cannot launch a way; None: nothing is known against it."""
        versions = (self.setting.vllm, launched_version(self.store, self.launched_as))
        if way.schedule is not None and (why := why_no_schedule(*versions)) is not None:
            return why
        if way.adaptive and (why := why_no_adaptive(*versions)) is not None:
            return why
        return self.settled.prepared_of(way).infeasible(self.settled.point_of(way))

    def _add(self, way: MapWay, *, asked: bool = False, repeat: int | None = None) -> MapPointRow:
        kind = None if way.kind is WayKind.FIXED else str(way.kind)
        if way.adaptive:  # also of an arm
            self.say(LAUNCH_NOTE)
            kind = str(WayKind.ADAPTIVE)
        if way.kind is WayKind.SCHEDULE and not asked and repeat is None:
            kind = None  # as the first load sweeps have it
        if not self._stores:
            return MapPointRow(
                study=self.study, setting=self.setting.plain(), n=way.n, created_at=0.0, way=kind
            )
        self.state.changed()
        return self.store.load_maps.add_point(
            self.study,
            self.setting.plain() | counted(self.p.spec),
            way.n,
            way.schedule,
            way=kind,
            arm=way.arm,
            repeat=repeat,
        )


def guess(free: Sequence[int], beside: Sequence[int], winners: Sequence[int]) -> int:
    """Return an n where nothing is known: the study's best, then what is farthest from others.

    Args:
        free: The n to choose from.
        beside: The n that are being launched.
        winners: The n that the study found good, the best first.
    """
    if not beside:
        wanted = next((n for n in winners if n in free), FIRST_N)
        return min(free, key=lambda n: (abs(n - wanted), n))
    known = [math.log2(n + 1) for n in (0, *beside)]
    return max(free, key=lambda n: (min(abs(math.log2(n + 1) - x) for x in known), -n))


def _way_of_arm(name: str, arm: ArmRival, n: int) -> MapWay:
    return MapWay(n, schedule=arm.schedule, adaptive=arm.adaptive, arm=name)


def _scheduled_way(ranges: Schedule) -> MapWay:
    return MapWay(max(n for _, _, n in ranges), schedule=ranges)
