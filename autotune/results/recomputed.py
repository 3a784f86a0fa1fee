"""Numbers of an earlier estimator, computed again from the requests that the database kept.

The way to compute values and intervals has a version (:data:`autotune.stats.ESTIMATOR`); values of
two versions do not compare. A database keeps every request, so trials of an earlier version are
computed again whenever they are read, and the file stays as it is.

A closed loop of autotune 0.1 began and ended below its concurrency. So the first and the last
requests of each of its concurrent streams are left out.

A trial cannot be computed again if too few requests are left, or if an objective is a user's own:
reading a database runs no user's code. Such a trial is shown with its old numbers and is compared
with nothing. The launches that confirm it are not compared either. The first launch of the search
that repeats its point and can be computed again replaces it.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from autotune.bench.energy import with_energy
from autotune.bench.sample import Sample
from autotune.serving.nvml import Energy
from autotune.stats import ESTIMATOR, STOPPING_CONFIDENCE, Measurement, standard_error
from autotune.stats.stopping import Stop
from autotune.storage.records import Quality, Role, TrialAttrs, attrs_of
from autotune.storage.store import Store
from autotune.storage.trials import FINISHED, State, T
from autotune.study.schema import StudySpec
from autotune.study.workload import WorkloadSpec
from objectives import Objective


def measurement_of(samples: Sequence[Sample], load: WorkloadSpec, quality: Quality) -> Measurement:
    """Return what stored requests measure.

    Args:
        samples: Measured requests of a launch.
        load: Load of the study.
        quality: Quality of the launch's measurement.

    Raises:
        ValueError: there is no such request, or too few ran at the full concurrency.
    """
    m = Measurement.of(samples, load.latency_origin, load.places, busy=quality.busy)
    if energy := quality.energy:
        joules = {int(k): float(v) for k, v in energy["joules"].items()}
        m = with_energy(m, Energy(float(energy["seconds"]), joules))
    return m


class Recomputed:
    """Trials of one study as the present estimator has them; each is computed once.

    Args:
        store: Database with the study.
        spec: The study.
        objectives: Objectives with the study's directions.
    """

    def __init__(self, store: Store, spec: StudySpec, objectives: Sequence[Objective]) -> None:
        self._store, self._spec, self._objectives = store, spec, objectives
        self._known: dict[int, Any] = {}  # finished ones, which do not change
        self._gone: set[int] = set()  # of these, those that cannot be compared

    def trials(self, found: Sequence[T]) -> list[T]:
        """Return the trials, those of an earlier estimator computed again or marked.

        Args:
            found: All trials of the study, in the order of their numbers.
        """
        out = [self._known.get(t.number) or self._trial(t) for t in found]
        return list(_without(self._gone, out, found)) if self._gone else out

    def _trial(self, t: T) -> T:
        if t.state not in FINISHED:
            return t
        out = self._known[t.number] = self._finished(t)
        if out is not t and attrs_of(out).quality.outdated is not None:
            self._gone.add(t.number)
        return out

    def _finished(self, t: T) -> T:
        attrs = attrs_of(t)
        limit = attrs.health_timeout_s
        if limit is not None and limit < self._spec.server.health_timeout_s:
            return _outdated(t, f"server.health_timeout_s was {limit:g} s then")
        if t.state != State.COMPLETE or attrs.quality.estimator == ESTIMATOR:
            return t
        try:
            values, again = self._again(attrs)
        except ValueError as e:
            return _outdated(t, str(e))
        out: Any = _with_attrs(t, again)
        out.values = values
        return cast(T, out)

    def _again(self, attrs: TrialAttrs) -> tuple[list[float], TrialAttrs]:
        """Return values and attributes of a trial.

        Raises:
            ValueError: they cannot be computed.
        """
        quality = attrs.quality
        if quality.estimator > ESTIMATOR:
            raise ValueError("that version is later than this one")
        if own := next((o.name for o in self._objectives if o.origin is not None), None):
            raise ValueError(f"{own} is an objective of your own")
        launch = attrs.launch or ""
        samples = self._store.requests.samples(launch)
        full = Quality.read(self._store.launches.get(launch).quality if samples else None)
        then = len(samples) if full.requests is None else full.requests
        if then != len(samples):
            raise ValueError(f"of its {then} requests the database has {len(samples)}")
        m = measurement_of(samples, self._spec.workload, full)
        precise = quality.stop == Stop.PRECISE.name.lower()
        confidence = STOPPING_CONFIDENCE if precise else 0.95
        again = figures_again(self._objectives, m, quality, confidence)
        errors = [again.quality.errors[o.name] for o in self._objectives]
        return [again.values[o.name] for o in self._objectives], replace(
            attrs,
            intervals=again.intervals,
            log_variances=[None if e is None else e**2 for e in errors],
            quality=again.quality,
        )


@dataclass(frozen=True)
class Again:
    """Figures of stored requests by the present estimator.

    Attributes:
        values: Value of each objective by its name, in its unit.
        intervals: Low and high of each value.
        quality: Stored quality with the present estimator and its errors.
    """

    values: Mapping[str, float]
    intervals: Mapping[str, list[float | None]]
    quality: Quality


def figures_again(
    objectives: Sequence[Objective], m: Measurement, quality: Quality, confidence: float = 0.95
) -> Again:
    """Compute the figures of a measurement of an earlier estimator.

    Args:
        objectives: Objectives to compute.
        m: Stored requests.
        quality: Quality of their measurement.
        confidence: Confidence of the intervals.
    """
    values = {o.name: o.value(m) for o in objectives}
    bounds = {o.name: o.bounds(m, confidence) for o in objectives}
    return Again(
        values,
        {name: [i.low, i.high] for name, i in bounds.items()},
        replace(
            quality,
            estimator=ESTIMATOR,
            errors={name: standard_error(values[name], i) for name, i in bounds.items()},
            requests=len(m),
            recomputed=quality.estimator,
        ),
    )


def _without(gone: Container[int], trials: Iterable[T], stored: Iterable[T]) -> Iterator[T]:
    """Yield the trials so that none refers to one that cannot be compared.

    Args:
        gone: Numbers of the trials that cannot be compared.
        trials: Trials, computed again, in the order of their numbers.
        stored: The same trials as the database has them.
    """
    heirs: dict[int, int] = {}
    bases: set[int] = set()
    for t, before in zip(trials, stored, strict=True):
        attrs = attrs_of(t)
        again = -1 if t.state == State.FAIL or attrs.replicates is None else attrs.replicates
        if t.number in gone:
            if attrs.baseline:
                bases.add(t.number)
            yield t
        elif attrs.confirms in gone and attrs.quality.recomputed is not None:
            yield _outdated(before, f"trial {attrs.confirms}, which it confirms, cannot")
        elif again in gone and heirs.setdefault(again, t.number) == t.number:
            yield _with_attrs(t, _heir(attrs, baseline=attrs.baseline or again in bases))
        elif again in gone:
            yield _with_attrs(t, replace(attrs, replicates=heirs[again]))
        else:
            yield t


def _heir(attrs: TrialAttrs, *, baseline: bool) -> TrialAttrs:
    """Return the attributes of a replicate that replaces the trial whose point it repeats."""
    role = attrs.role
    if role is not Role.REUSED:
        role = Role.BASELINE if baseline else Role.SEARCH
    return replace(attrs, role=role, baseline=baseline, replicates=None)


def _outdated(t: T, why: str) -> T:
    attrs = attrs_of(t)
    return _with_attrs(t, replace(attrs, quality=replace(attrs.quality, outdated=why)))


def _with_attrs(t: T, attrs: TrialAttrs) -> T:
    out: Any = copy.copy(t)
    out.user_attrs = attrs.put_into(t.user_attrs)
    return cast(T, out)
