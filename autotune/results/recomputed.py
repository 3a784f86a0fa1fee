"""Numbers of an earlier estimator, computed again from the requests that the database kept.

How values and intervals are computed has a version (:data:`autotune.stats.ESTIMATOR`), and what
two versions gave does not compare. A database keeps every request, so trials of an earlier version
are computed again whenever they are read; nothing is changed in the file. autotune 0.1 began with
empty places and ended with them, so of its closed loops the first and the last requests of each
place are left out. Where too few are left, or an objective is a user's own, whose code is not run
for a look at a database, the trial is shown as it was and takes no part in anything. Nor do
launches that confirm such a trial; the first launch of the search that repeats one, and can be
computed again, takes its place.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from autotune.bench.energy import with_energy
from autotune.bench.sample import Sample
from autotune.serving.nvml import Energy
from autotune.stats import ESTIMATOR, STOPPING_CONFIDENCE, Measurement, standard_error
from autotune.stats.stopping import Stop
from autotune.storage.store import Store
from autotune.storage.trials import State, T, TrialLike
from autotune.study.schema import StudySpec
from autotune.study.workload import WorkloadSpec
from objectives import Objective

# Of a trial's quality: the version that measured it, and why it could not be computed again.
RECOMPUTED = "recomputed"
OUTDATED = "outdated"
# Of a trial whose server did not answer in time: how long it was given, s.
LIMIT = "health_timeout_s"


def estimator_of(quality: Mapping[str, Any] | None) -> int:
    """Return the version of the estimator that numbers were computed with; 1 is autotune 0.1's."""
    return int((quality or {}).get("estimator") or 1)


def measurement_of(
    samples: Sequence[Sample], load: WorkloadSpec, quality: Mapping[str, Any] | None
) -> Measurement:
    """Return what stored requests measure.

    Args:
        samples: The measured ones of a launch.
        load: The study's.
        quality: Of the launch.

    Raises:
        ValueError: there is no such request, or too few ran while all places were busy.
    """
    found = quality or {}
    m = Measurement.of(
        samples, load.latency_origin, load.places, busy=bool(found.get("busy", False))
    )
    if energy := found.get("energy"):
        joules = {int(k): float(v) for k, v in energy["joules"].items()}
        m = with_energy(m, Energy(float(energy["seconds"]), joules))
    return m


class Recomputed:
    """Trials of one study as the present estimator has them; each is computed once.

    Args:
        store: Has the study.
        spec: The study.
        objectives: With the study's directions.
    """

    def __init__(self, store: Store, spec: StudySpec, objectives: Sequence[Objective]) -> None:
        self._store, self._spec, self._objectives = store, spec, objectives
        self._known: dict[int, Any] = {}

    def trials(self, found: Sequence[T]) -> list[T]:
        """Return the trials, those of an earlier estimator computed again or marked.

        Args:
            found: All of the study, in the order of their numbers.
        """
        out = [self._known.get(t.number) or self._trial(t) for t in found]
        gone = {t.number for t in out if OUTDATED in quality_of(t)}
        return list(_without(gone, out, found)) if gone else out

    def _trial(self, t: T) -> T:
        quality = quality_of(t)
        limit = t.user_attrs.get(LIMIT)
        if limit is not None and limit < self._spec.server.health_timeout_s:
            return _outdated(t, f"server.health_timeout_s was {limit:g} s then")
        if t.state != State.COMPLETE or estimator_of(quality) == ESTIMATOR:
            return t
        try:
            values, attrs = self._again(t, quality)
        except ValueError as e:
            out = _outdated(t, str(e))
        else:
            again: Any = _with_attrs(t, {**t.user_attrs, **attrs})
            again.values = values
            out = again
        self._known[t.number] = out
        return out

    def _again(
        self, t: TrialLike, quality: Mapping[str, Any]
    ) -> tuple[list[float], dict[str, Any]]:
        """Return values and attributes of a trial, computed from its requests.

        Raises:
            ValueError: they cannot be computed.
        """
        if estimator_of(quality) > ESTIMATOR:
            raise ValueError("that version is later than this one")
        if own := next((o.name for o in self._objectives if o.origin is not None), None):
            raise ValueError(f"{own} is an objective of your own")
        launch = str(t.user_attrs.get("launch", ""))
        samples = self._store.requests.samples(launch)
        full = self._store.launches.get(launch).quality if samples else None
        if (then := (full or {}).get("requests", len(samples))) != len(samples):
            raise ValueError(f"of its {then} requests the database has {len(samples)}")
        m = measurement_of(samples, self._spec.workload, full)
        precise = quality.get("stop") == Stop.PRECISE.name.lower()
        confidence = STOPPING_CONFIDENCE if precise else 0.95
        values = [o.value(m) for o in self._objectives]
        intervals = [o.bounds(m, confidence) for o in self._objectives]
        names = [o.name for o in self._objectives]
        errors = [standard_error(v, i) for v, i in zip(values, intervals, strict=True)]
        return values, {
            "intervals": {name: [i.low, i.high] for name, i in zip(names, intervals, strict=True)},
            "log_variances": [None if e is None else e**2 for e in errors],
            "quality": {
                **quality,
                "estimator": ESTIMATOR,
                "errors": dict(zip(names, errors, strict=True)),
                "requests": len(m),
                RECOMPUTED: estimator_of(quality),
            },
        }


def _without(gone: Container[int], trials: Iterable[T], stored: Iterable[T]) -> Iterator[T]:
    """Yield the trials so that none refers to one that cannot be compared.

    Args:
        gone: Numbers of those.
        trials: Computed again, in the order of their numbers.
        stored: The same as the database has them.
    """
    heirs: dict[int, int] = {}
    bases: set[int] = set()
    for t, before in zip(trials, stored, strict=True):
        confirms = t.user_attrs.get("confirms")
        again = -1 if t.state == State.FAIL else t.user_attrs.get("replicates", -1)
        if t.number in gone:
            if t.user_attrs.get("baseline"):
                bases.add(t.number)
            yield t
        elif confirms in gone and RECOMPUTED in quality_of(t):
            yield _outdated(before, f"trial {confirms}, which it confirms, cannot")
        elif again in gone and heirs.setdefault(again, t.number) == t.number:
            attrs = {k: v for k, v in t.user_attrs.items() if k != "replicates"}
            yield _with_attrs(t, attrs | ({"baseline": True} if again in bases else {}))
        elif again in gone:
            yield _with_attrs(t, {**t.user_attrs, "replicates": heirs[again]})
        else:
            yield t


def quality_of(t: TrialLike) -> Mapping[str, Any]:
    """Return what a trial keeps of how it was measured; empty: nothing."""
    found: Mapping[str, Any] = t.user_attrs.get("quality") or {}
    return found


def _outdated(t: T, why: str) -> T:
    return _with_attrs(t, {**t.user_attrs, "quality": {**quality_of(t), OUTDATED: why}})


def _with_attrs(t: T, attrs: dict[str, Any]) -> T:
    out: Any = copy.copy(t)
    out.user_attrs = attrs
    return cast(T, out)
