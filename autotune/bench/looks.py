"""Why measuring ends, and what a look at a running measurement finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from autotune.stats.measurement import Measurement


class Stop(StrEnum):
    """Why the measuring of a trial ended; shown to the user."""

    ALL = "every request was sent"
    PRECISE = "the intervals are narrow enough"
    DOMINATED = "another trial is better in everything"


@dataclass(frozen=True)
class Rival:
    """A finished trial that the running one is compared with.

    Attributes:
        trial: Its number.
        measurement: What was measured of it.
        again: The same of further launches of its point.
    """

    trial: int
    measurement: Measurement
    again: tuple[Measurement, ...] = ()


@dataclass(frozen=True)
class EarlyEnd:
    """Why a look would end the measuring.

    Attributes:
        stop: The reason.
        by: The trial that is better in everything, with ``Stop.DOMINATED``.
    """

    stop: Stop
    by: int | None = None


@dataclass(frozen=True)
class Look:
    """One look at a measurement that runs.

    Attributes:
        size: Requests that it saw, the first ones that were sent.
        sent: Measured requests that had been sent by then.
        values: Each objective of those requests, in the study's order.
        verdict: What it found; None: not enough.
    """

    size: int
    sent: int
    values: tuple[float, ...]
    verdict: EarlyEnd | None
