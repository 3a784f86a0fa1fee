"""Times of recorded requests: dates, or numbers in a unit that the file itself does not say."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["s", "ms", "us", "ns"]
_SECONDS: dict[Unit, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_NAMES: dict[Unit, str] = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
}
KEY = "workload.replay.timestamp_unit"
_MOST_SECONDS = 10**11  # the year 5138; milliseconds since 1970 lie beyond it
_2001 = 10**9  # seconds since 1970; as milliseconds they would lie in January 1970
# Whole numbers that mean fewer requests than one in so many seconds may well be milliseconds …
_DOUBTED_GAP_S = 10.0
# … and milliseconds that mean more requests a second than this may well be seconds.
_DOUBTED_RATE = 1000.0
_HOURS = 7200
_DAYS = 2 * 86400
# Keys under which other programs log the time of a request, in lower case.
_OTHER = (
    *("starttime", "start_time", "@timestamp", "created_at", "createdat", "created", "ts", "time"),
    *("datetime", "date", "arrived_at", "arrival_time", "arrival_timestamp", "request_time"),
    *("requested_at", "time_created", "event_time", "start", "started_at"),
)


class Times:
    """Times of the requests of one file, in the order of its rows.

    Args:
        unit: Unit of numbers, as the study has it; None: the study does not say.

    Attributes:
        unit: The same.
    """

    def __init__(self, unit: Unit | None) -> None:
        self.unit = unit
        self._found = array("d")
        self._dates: bool | None = None
        self._whole = True

    def add(self, row: Mapping[str, Any], key: str = "timestamp") -> None:
        """Read the time of a row; a ValueError says what is wrong, beginning with the key."""
        if key not in row:
            other = next((k for k in row if str(k).lower() in _OTHER), None)
            hint = f"; the line has `{other}`: write its value as `{key}`" if other else ""
            raise ValueError(f"{key}: is missing{hint}")
        value = row[key]
        dated = isinstance(value, str)
        found = _date(key, value) if dated else self._number(key, value)
        if self._dates is None:
            self._dates = dated
        elif self._dates is not dated:
            raise ValueError(f"{key}: numbers and dates in one log; write all in one form")
        self._found.append(found)

    def _number(self, key: str, value: Any) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"{key}: must be seconds, or an ISO 8601 date")
        if abs(value) * _SECONDS[self.unit or "s"] > _MOST_SECONDS:
            raise ValueError(f"{key}: must be in {_NAMES[self.unit or 's']}, {_finer(value)}")
        self._whole = self._whole and isinstance(value, int)
        return float(value)

    def seconds(self, *, milliseconds: bool = False, known: bool = False) -> NDArray[np.float64]:
        """Return the times in seconds; a ValueError says that the unit must be given.

        Args:
            milliseconds: Whether whole numbers in this format are milliseconds.
            known: Whether numbers in this format are seconds in any case.
        """
        times = np.array(self._found, dtype=np.float64)
        if self._dates or len(times) == 0:
            return times
        unit = self.unit
        if unit is None:
            unit = "ms" if milliseconds and self._whole else "s"
            if not known and (doubt := self._doubt(times, unit)):
                raise ValueError(doubt)
        return times * _SECONDS[unit]

    def _doubt(self, times: NDArray[np.float64], unit: Unit) -> str | None:
        """Return why the unit is uncertain, in words; None: it is not."""
        count, span = len(times), float(times.max() - times.min())
        if not self._whole or count < 2 or span == 0 or times.min() >= _2001:
            return None
        if unit == "s" and span / (count - 1) < _DOUBTED_GAP_S:
            return None
        if unit == "ms" and (count - 1) / (span * _SECONDS["ms"]) <= _DOUBTED_RATE:
            return None
        return (
            f"timestamp: {count} requests in {span_text(span)} if the numbers are seconds, in "
            f"{span_text(span * _SECONDS['ms'])} if they are milliseconds; write {KEY}: s or ms"
        )

    @property
    def in_whole_numbers(self) -> bool:
        """Whether all times are whole numbers."""
        return self._dates is False and self._whole


def _finer(value: float) -> str:
    """Return which finer unit a number since 1970 has, and what to write."""
    units: Iterable[Unit] = ("ms", "us", "ns")
    for unit in units:
        if abs(value) * _SECONDS[unit] <= _MOST_SECONDS:
            return f"not in {_NAMES[unit]} or less; if it is since 1970, write {KEY}: {unit}"
    return "and no later than the year 5138"


def _date(key: str, value: str) -> float:
    """Return a date in seconds since 1970.

    A date without an offset is taken as UTC, because only the gaps matter.
    """
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(
            f"{key}: is no ISO 8601 date such as 2026-01-31T12:00:00.250Z; numbers go "
            "without quotes"
        ) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def span_text(seconds: float) -> str:
    """Return a span in words: ``0.48 s``, ``19 s``, ``6.7 min``, ``5.2 h``, ``3.1 days``.

    >>> span_text(18720), span_text(18.72)
    ('5.2 h', '19 s')
    """
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < _HOURS:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < _DAYS else f"{seconds / 86400:.1f} days"
