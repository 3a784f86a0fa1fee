"""The objectives of a measurement with their intervals, and whether a look ends the measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial

from autotune.bench.energy import with_energy
from autotune.bench.looks import EarlyEnd, Rival
from autotune.bench.sample import Sample
from autotune.errors import FailureKind, MeasureError
from autotune.serving.nvml import Energy
from autotune.stats import (
    STOPPING_CONFIDENCE,
    Bounded,
    Domination,
    Interval,
    Measurement,
    averaged,
    expected_between,
    narrow_enough,
    precise,
)
from autotune.stats.stopping import Stop
from autotune.study.schema import StudySpec
from objectives import Objective, WithEnergy


class Judge:
    """Computes the objectives of one study's launches, and says when enough is known.

    Args:
        spec: The study.
        objectives: The objectives to compute.
    """

    def __init__(self, spec: StudySpec, objectives: Sequence[Objective]) -> None:
        self._spec = spec
        self._objectives = objectives

    @property
    def metered(self) -> bool:
        """Whether an objective needs the energy of the server's GPUs."""
        return any(o.needs_energy for o in self._objectives)

    def at_looks(
        self,
        sizes: Sequence[int],
        rivals: Sequence[Rival],
        between: Mapping[str, float],
        finished: int | None,
    ) -> Callable[[Measurement], tuple[tuple[float, ...], EarlyEnd | None]]:
        """Return the function that computes each objective at a look, and whether to end there.

        Args:
            sizes: Numbers of requests at which it looks.
            rivals: Finished trials of which one may be better in everything.
            between: Standard deviation of the logarithm between launches, by objective name.
            finished: Number of trials of which the rivals are the best; None: the rivals are all.
        """
        domination = Domination(
            len(sizes),
            [o.direction for o in self._objectives],
            [between.get(o.name, expected_between(0.0, 0)) for o in self._objectives],
            self._spec.measure.dominated_error,
            finished,
        )
        known: list[tuple[int, list[Bounded]]] = []
        for r in rivals:
            launches = [r.measurement, *r.again]
            if self.metered and not all(isinstance(m, WithEnergy) for m in launches):
                continue
            columns = list(zip(*map(self.bounded, launches), strict=True))
            if all(b.value > 0 for column in columns for b in column):
                known.append((r.trial, [_cached(averaged(column)) for column in columns]))
        others = [bounded for _, bounded in known]
        domination.prepare(others)

        def judge(m: Measurement) -> tuple[tuple[float, ...], EarlyEnd | None]:
            now = self.bounded(m)
            values = tuple(b.value for b in now)
            if any(b.value == 0 for b in now):  # an interval as a share of 0 does not exist
                return values, None
            found = ((b.value, b.interval(STOPPING_CONFIDENCE)) for b in now)
            if narrow_enough(len(m), m.concurrency) and precise(
                found, self._spec.measure.precision
            ):
                return values, EarlyEnd(Stop.PRECISE)
            by = domination.by(now, others) if all(b.value > 0 for b in now) else None
            return values, None if by is None else EarlyEnd(Stop.DOMINATED, known[by][0])

        return judge

    def measurement(
        self, samples: Sequence[Sample], busy: bool, energy: Energy | None
    ) -> Measurement:
        """Return the measurement of the samples, with its energy.

        Raises:
            MeasureError: too few requests ran while the load was full.
        """
        load = self._spec.workload
        with _as_failure():
            m = Measurement.of(samples, load.latency_origin, load.places, busy=busy)
        return m if energy is None else with_energy(m, energy)

    def bounded(self, measurement: Measurement) -> list[Bounded]:
        """Return each objective with its interval; one without bounds is never precise.

        Raises:
            MeasureError: an objective cannot be computed, or later its interval.
        """

        def interval(o: Objective, confidence: float) -> Interval:
            with _as_failure():
                return o.bounds(measurement, confidence)

        with _as_failure():
            return [Bounded(o.value(measurement), partial(interval, o)) for o in self._objectives]


def _cached(b: Bounded) -> Bounded:
    """Return the same value, each of whose intervals is computed once."""
    return replace(b, interval=cache(b.interval))


@contextmanager
def _as_failure() -> Iterator[None]:
    """Turn the error of an objective that cannot be computed into a trial's failure."""
    try:
        yield
    except ValueError as e:
        raise MeasureError(FailureKind.REQUESTS, str(e)) from e
