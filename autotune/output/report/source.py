"""A study as the sections of a report read it, and the words that they have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from autotune.results.recomputed import measurement_of
from autotune.results.text import Bounds, plain, value_and_bounds
from autotune.results.views import StudyView, TrialView
from autotune.stats import Measurement
from autotune.storage.records import Quality
from autotune.storage.schema import LaunchRow
from autotune.storage.store import Store
from autotune.storage.trials import Trial
from autotune.study.schema import StudySpec
from autotune.study.space import N


@dataclass(frozen=True)
class Source:
    """The study, and the database that the rest of it is read from.

    Attributes:
        store: Database of the study.
        view: The study as every command shows it.
        spec: The study file, as it was run.
        launches: All launches, oldest first.
        trials: Optuna's trials, in the order of their numbers.
    """

    store: Store
    view: StudyView
    spec: StudySpec
    launches: Sequence[LaunchRow]
    trials: Sequence[Trial]

    @cached_property
    def best(self) -> TrialView | None:
        """Trial that `autotune best` would serve; None: no trial has results."""
        return self.view.best()

    @cached_property
    def baseline(self) -> TrialView | None:
        """Trial that the others are compared with."""
        return next((t for t in self.view.trials if t.baseline), None)

    def trial(self, number: int) -> TrialView:
        """Return the trial of this number."""
        return next(t for t in self.view.trials if t.number == number)

    def name(self, t: TrialView) -> str:
        """Return a trial's name within a sentence."""
        return f"{'baseline' if t.baseline else f'trial {t.number}'} ({t.setting})"

    def measured(self, t: TrialView) -> list[TrialView]:
        """Return the trials that measured a trial's point: those that confirm it, else its own."""
        again = [x for x in self.view.trials if x.confirms == t.number and x.values]
        if again and t.confirmed:
            return again
        return [t, *(x for x in self.view.trials if x.replicates == t.number and x.values)]

    def requests(self, t: TrialView) -> int:
        """Return the number of requests that were measured in those trials."""
        return sum(x.requests or 0 for x in self.measured(t))

    def measurement(self, t: TrialView) -> Measurement | None:
        """Return the requests that a trial's numbers are from; None: the database has none."""
        of = [
            x
            for x in self.launches
            if x.trial == t.number and x.measured_at is not None and x.failure_kind is None
        ]
        samples = self.store.requests.samples(of[-1].launch_id) if of else []
        quality = Quality.read(of[-1].quality if of else None)
        try:
            return measurement_of(samples, self.spec.workload, quality)
        except ValueError:
            return None


def load_text(s: Source) -> str:
    """Return the load in a few words."""
    load = s.spec.workload
    parts = []
    if load.max_concurrency is not None:
        parts.append(f"concurrency {load.max_concurrency}")
    if not math.isinf(load.request_rate):
        spread = "at random (Poisson)" if load.arrivals == "poisson" else "evenly spread"
        parts.append(f"{load.request_rate:g} requests per second, {spread}")
    if load.replay is not None:
        parts.append(f"arrivals as recorded, at {load.replay.speed:g} times their speed")
    if load.random is not None:
        what = f"prompts of {load.random.input_len} random tokens"
    else:
        what = f"prompts of {load.source[1].name}" if load.source else "prompts"
    long = "as recorded" if load.output_len == "recorded" else f"of {load.output_len} tokens"
    return f"{', '.join(parts)}; {plain(what)}, answers {long}"


def progress(s: Source) -> str:
    """Return the progress of the study, in a sentence."""
    return f"{s.view.finished} of {s.view.wanted} trials are finished."


def against(s: Source) -> str:
    """Return what a change is relative to."""
    base = s.baseline
    if base is not None and base.point.get(N) == 0:
        return f"against no speculation ({base.setting})"
    return "against the baseline" + ("" if base is None else f" ({base.setting})")


def with_bounds(value: float | None, bounds: Bounds | None) -> str:
    """Return a cell of a table that is broken only between the value and its interval."""
    return value_and_bounds(value, bounds).replace(", ", ",\xa0")


def when(at: float) -> str:
    """Return a time in words, UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
