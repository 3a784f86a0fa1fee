"""A load sweep on several slots: where its points were launched, and rates without the slots' part.

Slots differ by some percent by nature. Each slot that launches points of a sweep launches n = 0,
too. What these launches tell of the slots is taken out of all rates, at each concurrency for
itself, and what they do not tell widens the intervals (:mod:`autotune.stats.slot_effects`).

A pass of the confirmation launches every way on one slot, so slots cancel in the ratios: these
rates stay as measured, and how slots differ is a part of their scatter. Only where a launch failed
is the slots' part taken out of them, too. With one slot nothing changes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from autotune.results.load_map_ways import MapWay, way_of
from autotune.search.places import on_one_slot, place_of
from autotune.stats.crossover import Rate, mean_rate
from autotune.storage.schema import LoadRow, MapPointRow
from autotune.storage.store import Store

# Launch of n = 0 that is there to compare a slot with the others, in the column `repeat`.
LINK = 0


def is_swept(point: MapPointRow) -> bool:
    """Return whether a point is of the sweep: neither to compare slots nor to confirm."""
    return point.repeat is None


def is_link(point: MapPointRow) -> bool:
    """Return whether a point is there to compare its slot with the others."""
    return point.repeat == LINK


def is_confirming(point: MapPointRow) -> bool:
    """Return whether a point is of the confirmation."""
    return not is_swept(point) and not is_link(point)


def place_of_point(store: Store, ledger: str, point: int) -> str | None:
    """Return the slot that a point was launched on last; empty: none; None: it was not launched.

    Args:
        store: Database with the load sweep.
        ledger: Name under which its launches are stored.
        point: Id of the point.
    """
    found = store.launches.of_trial(ledger, point)
    return place_of(found[-1].machine.get("slot")) if found else None


def rates_without_slots(
    store: Store,
    ledger: str,
    points: Sequence[MapPointRow],
    rows: Mapping[int, Sequence[LoadRow]],
    rates: Mapping[int, Mapping[int, Rate]],
) -> dict[int, dict[int, Rate]]:
    """Return the rates of a sweep's points without how their slots differ.

    n = 0 of the sweep gets the mean of all its launches, those that compare slots included.

    Args:
        store: Database with the load sweep.
        ledger: Name under which its launches are stored.
        points: Points of one setting.
        rows: Their measured parts, by the point's id.
        rates: Rates as measured, by the point's id and concurrency.

    Returns:
        Rates by the point's id and concurrency; as measured where there was one slot.
    """
    out = {k: dict(row) for k, row in rates.items()}
    known = [p for p in points if p.id in rates]
    for group in (
        [p for p in known if not is_confirming(p)],
        [p for p in known if is_confirming(p)],
    ):
        ways = [way_of(p) for p in group]
        places = [_place_of_parts(store, ledger, p, rows[p.id]) for p in group]
        if any(map(is_confirming, group)) and is_balanced(ways, places):
            continue
        found = without_slots(ways, places, [rates[p.id] for p in group])
        out |= {p.id: row for p, row in zip(group, found, strict=True)}
    none = [p for p in known if not is_confirming(p) and way_of(p) == MapWay(0)]
    main = next((p for p in none if is_swept(p)), None)
    if main is not None and len(none) > 1:
        out[main.id] = {
            load: mean_rate([out[p.id][load] for p in none if load in out[p.id]])
            for load in out[main.id]
        }
    return out


def is_balanced(ways: Sequence[Hashable], places: Sequence[str]) -> bool:
    """Return whether each slot has launched every way equally often, so that slots cancel.

    Args:
        ways: What each launch served with.
        places: Slot of each launch.
    """
    counts = Counter(zip(places, ways, strict=True))
    every = set(ways)
    return all(len({counts[place, way] for way in every}) == 1 for place in set(places))


def without_slots(
    ways: Sequence[Hashable], places: Sequence[str], rows: Sequence[Mapping[int, Rate]]
) -> list[dict[int, Rate]]:
    """Return the rates of launches without how their slots differ.

    Args:
        ways: What each launch served with.
        places: Slot of each launch.
        rows: Rates of each launch, by concurrency.
    """
    out = [dict(row) for row in rows]
    for load in sorted({load for row in rows for load in row}):
        at = [i for i, row in enumerate(rows) if load in row]
        if len({places[i] for i in at}) < 2:
            continue  # rates stay as they are, to the last digit
        logs = np.log([[rows[i][load].value] for i in at])
        less, unknown = on_one_slot(logs, [ways[i] for i in at], [places[i] for i in at])
        for i, value, variance in zip(at, less[:, 0], unknown[:, 0], strict=True):
            within = rows[i][load].within
            wider = None if within is None else math.sqrt(within**2 + float(variance))
            out[i][load] = Rate(math.exp(float(value)), wider)
    return out


def _place_of_parts(store: Store, ledger: str, point: MapPointRow, rows: Sequence[LoadRow]) -> str:
    """Return the slot of a point's parts; several together are a place that nothing links."""
    launches = store.launches.of_trial(ledger, point.id)
    slots = {x.launch_id: x.machine.get("slot") for x in launches}
    return " and ".join(sorted({place_of(slots.get(row.launch_id)) for row in rows}))
