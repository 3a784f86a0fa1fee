"""What a load sweep has by now, and where: its points, their parts and slots."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from autotune.results.load_map_ways import MapWay, WayKind, common, way_of
from autotune.results.read_load_map import (
    Setting,
    comparable_loads,
    failure_of_point,
    leveled_rates,
)
from autotune.results.sweep_slots import is_confirming, is_link, is_swept, place_of_point
from autotune.stats.crossover import Rate
from autotune.storage.schema import MapPointRow
from autotune.storage.store import Store
from autotune.tuning.load_map_requests import order

T = TypeVar("T")


@dataclass(frozen=True)
class Underway:
    """What a sweep launches now.

    Attributes:
        running: Slots of the points that are being launched
            (:func:`autotune.search.places.place_of`), by the point's id.
        place: The free slot that is chosen for; None: there is one server at a time.
        places: All slots.
    """

    running: Mapping[int, str] = field(default_factory=dict)
    place: str | None = None
    places: Collection[str] = ()


class SweepState:
    """The points of one load sweep.

    Args:
        store: Database.
        study: Name under which its points are stored.
        launched_as: Name under which its launches are stored.
        setting: What all points have in common.
        loads: Concurrencies, ascending.
    """

    def __init__(
        self, store: Store, study: str, launched_as: str, setting: Setting, loads: Sequence[int]
    ) -> None:
        self._store, self._study, self._launched_as = store, study, launched_as
        self._setting, self._loads = setting, loads
        self._known: dict[tuple[str, int], Any] = {}

    def changed(self) -> None:
        """Read the database again: a launch has begun or ended."""
        self._known.clear()

    def _of_database(self, what: str, of: int, find: Callable[[], T]) -> T:
        """Return what the database says; it is asked once until something has changed."""
        if (what, of) not in self._known:
            self._known[what, of] = find()
        found: T = self._known[what, of]
        return found

    def points(self) -> list[MapPointRow]:
        """Return the points of this setting, oldest first."""
        setting = self._setting.plain()

        def find() -> list[MapPointRow]:
            found = self._store.load_maps.points(self._study)
            return [x for x in found if common(x.setting) == setting]

        return self._of_database("points", 0, find)

    def failure(self, point: MapPointRow) -> tuple[str, str] | None:
        """Return kind and reason of a point that is not launched again; None: it did not fail."""
        return self._of_database(
            "failure", point.id, lambda: failure_of_point(self._store, self._launched_as, point)
        )

    def missing(self, point: MapPointRow) -> list[tuple[int, int]]:
        """Return load and part that were not measured, in their order; none of a failed point."""
        if self.failure(point) is not None:
            return []
        rows = self._of_database("loads", point.id, lambda: comparable_loads(self._store, point.id))
        done = {(x.concurrency, x.part) for x in rows}
        return [x for x in order(self._loads) if x not in done]

    def of(self, family: tuple[WayKind, object]) -> dict[int, MapPointRow]:
        """Return the sweep's points of one family of ways, by n."""
        found = [x for x in self.points() if is_swept(x) and way_of(x).family == family]
        return {x.n: x for x in found}

    def none(self) -> list[MapPointRow]:
        """Return the launches of n = 0 in the sweep: its own, and those that compare slots."""
        of = [x for x in self.points() if not is_confirming(x)]
        return [x for x in of if way_of(x) == MapWay(0)]

    def rates(self, points: Mapping[int, MapPointRow]) -> dict[int, dict[int, Rate]]:
        """Return what was measured, by n and load, without how slots differ."""
        found = self._of_database(
            "rates",
            0,
            lambda: leveled_rates(self._store, self._launched_as, self.points(), self._loads),
        )
        return {n: found[x.id] for n, x in points.items() if x.id in found}

    # -- slots -------------------------------------------------------------------------------------

    def place_of(self, point: MapPointRow, now: Underway) -> str | None:
        """Return the slot that launches a point now, or did last; None: none has."""
        if point.id in now.running:
            return now.running[point.id]
        return self._of_database(
            "place", point.id, lambda: place_of_point(self._store, self._launched_as, point.id)
        )

    def is_due(self, point: MapPointRow, now: Underway) -> bool:
        """Return whether a point that is begun is to be continued, on the free slot.

        It goes on where it was begun, or where that slot is gone anywhere.
        """
        if point.id in now.running or not self.missing(point):
            return False
        home = None if now.place is None else self.place_of(point, now)
        if is_link(point):  # it says something of its own slot only
            return now.place is not None and home in (None, now.place)
        return home is None or home == now.place or home not in now.places

    def linked(self, now: Underway) -> set[str]:
        """Return the slots that have launched n = 0, so that their points compare; none failed."""
        return {
            place
            for x in self.none()
            if x.id not in now.running
            and self.failure(x) is None
            and (place := self.place_of(x, now)) is not None
        }

    def compares(self, now: Underway) -> bool:
        """Return whether what the free slot launches compares with the rest of the sweep."""
        return now.place is None or now.place in self.linked(now)

    def needs_link(self, left: int, now: Underway) -> bool:
        """Return whether the free slot is to launch n = 0, so that it can launch other points.

        Args:
            left: Most points that are still to be launched.
            now: What is being launched.
        """
        none = self.none()
        if now.place is None or now.place in {self.place_of(x, now) for x in none}:
            return False
        idle = self.linked(now).intersection(now.places) - {*now.running.values()}
        return left > sum(x.id in now.running for x in none) + len(idle)
