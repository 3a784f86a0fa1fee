"""A study as the sections of a report read it, and the words that they have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from optuna.trial import FrozenTrial

from autotune.recomputed import measurement_of
from autotune.stats import Estimate, Measurement
from autotune.storage.records import Quality
from autotune.storage.schema import LaunchRow
from autotune.storage.store import Store
from autotune.study.schema import StudySpec
from autotune.study.space import N
from autotune.views import (
    Bounds,
    StudyView,
    TrialView,
    bounds_text,
    number,
    plain,
    point_text,
)
from objectives import Objective


@dataclass(frozen=True)
class Source:
    """The study, and where the rest of it is read from.

    Attributes:
        store: Has the study.
        view: As every command shows it.
        spec: Its file, as it was run.
        launches: All of them, oldest first.
        trials: Optuna's, in the order of their numbers.
    """

    store: Store
    view: StudyView
    spec: StudySpec
    launches: Sequence[LaunchRow]
    trials: Sequence[FrozenTrial]

    @cached_property
    def best(self) -> TrialView | None:
        """What `autotune best` would serve; None: no trial has numbers."""
        return self.view.best()

    @cached_property
    def baseline(self) -> TrialView | None:
        """What the others are compared with."""
        return next((t for t in self.view.trials if t.baseline), None)

    def trial(self, number: int) -> TrialView:
        """By its number."""
        return next(t for t in self.view.trials if t.number == number)

    def name(self, t: TrialView) -> str:
        """A trial as sentences call it."""
        return f"{'baseline' if t.baseline else f'trial {t.number}'} ({point_text(t.point)})"

    def measured(self, t: TrialView) -> list[TrialView]:
        """The trials whose launches tell of a trial's point: those that confirm it, or its own."""
        again = [x for x in self.view.trials if x.confirms == t.number and x.values]
        if again and t.confirmed:
            return again
        return [t, *(x for x in self.view.trials if x.replicates == t.number and x.values)]

    def requests(self, t: TrialView) -> int:
        """How many were measured in those launches."""
        return sum(x.requests or 0 for x in self.measured(t))

    def measurement(self, t: TrialView) -> Measurement | None:
        """The requests that a trial's numbers are of; None: the database has none."""
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
    """The load in a few words."""
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
    """How far the study is."""
    return f"{s.view.finished} of {s.view.wanted} trials are finished."


def against(s: Source) -> str:
    """What a change is relative to."""
    base = s.baseline
    if base is not None and base.point.get(N) == 0:
        return f"against no speculation ({point_text(base.point)})"
    return "against the baseline" + ("" if base is None else f" ({point_text(base.point)})")


def times(e: Estimate) -> str:
    """A ratio: ``2.40× [2.21, 2.60]``, without bounds where none is known."""
    low, high = ("?" if x is None else f"{x:.2f}" for x in (e.low, e.high))
    known = e.low is not None or e.high is not None
    return f"{e.value:.2f}×" + (f" [{low}, {high}]" if known else "")


def change(e: Estimate, o: Objective) -> str:
    """A ratio of an objective's values: a factor where more is better, else in percent."""
    if o.direction == "maximize":
        return times(e)
    low, high = ("?" if x is None else f"{x - 1:+.0%}" for x in (e.low, e.high))
    known = e.low is not None or e.high is not None
    return (f"{e.value - 1:+.0%}" + (f" [{low}, {high}]" if known else "")).replace("-", "−")


def with_bounds(value: float | None, bounds: Bounds | None) -> str:
    """A cell of a table; where it is broken, it is between the value and its interval."""
    if value is None:
        return ""
    return number(value) + (f" {bounds_text(bounds)}".replace(", ", ",\xa0") if bounds else "")


def count(n: int, what: str) -> str:
    """``1 launch``, ``2 launches``."""
    plural = "es" if what.endswith("ch") else "s"
    return f"{n} {what}{'' if n == 1 else plural}"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def when(at: float) -> str:
    """A time in words, UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def upper(text: str) -> str:
    """A sentence, from its beginning in lower case."""
    return text[:1].upper() + text[1:]


def lower(title: str) -> str:
    """A title within a sentence: ``throughput``, but ``p95 TTFT``."""
    return title[:1].lower() + title[1:]
