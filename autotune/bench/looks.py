"""Why measuring ends, and what a look at a running measurement finds."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.stats.measurement import Measurement
from autotune.stats.stopping import Stop


@dataclass(frozen=True)
class Rival:
    """A finished trial that the running one is compared with.

    Attributes:
        trial: Number of the trial.
        measurement: Measurement of its first launch.
        again: Measurements of further launches of its point.
    """

    trial: int
    measurement: Measurement
    again: tuple[Measurement, ...] = ()


@dataclass(frozen=True)
class EarlyEnd:
    """Reason of a look to end the measuring.

    Attributes:
        stop: The reason.
        by: Number of the trial that is better in everything, with ``Stop.DOMINATED``.
    """

    stop: Stop
    by: int | None = None


@dataclass(frozen=True)
class Look:
    """One look at a running measurement.

    Attributes:
        size: Number of requests that it saw: the first ones that were sent.
        sent: Number of measured requests that had been sent by then.
        values: Value of each objective over the seen requests, in the study's order.
        verdict: Reason to end; None: not enough is known.
    """

    size: int
    sent: int
    values: tuple[float, ...]
    verdict: EarlyEnd | None
