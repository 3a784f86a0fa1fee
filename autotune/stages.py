"""Where the time of a study's trials went, as `autotune status --time` shows it."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.engine.compile_cache import CacheUse
from autotune.engine.launch_stages import STAGES, Stages
from autotune.errors import UserError
from autotune.storage.store import Store
from autotune.views import plain

# Headings of two lines, so that all stages fit into 80 columns; the lower one is never empty.
_COLUMNS = {
    "tuner": ("", "tuner"),
    "spawn": ("", "spawn"),
    "imports": ("im-", "ports"),
    "weights": ("", "weights"),
    "profile": ("pro-", "file"),
    "compile": ("com-", "pile"),
    "capture": ("cap-", "ture"),
    "first": ("first", "req."),
    "warm-up": ("warm-", "up"),
    "measuring": ("meas-", "uring"),
    "stop": ("", "stop"),
    "other": ("", "other"),
    "total": ("", "total"),
}
_PROCESSES = {"api": "API server", "engine": "EngineCore", "worker": "worker"}


@dataclass(frozen=True)
class TrialTime:
    """One trial.

    Attributes:
        trial: Its number.
        launches: So many launches were split; the seconds are their sum.
        seconds: By stage; None: nothing tells of it.
        imports: Seconds of the known parts of ``imports``.
        total: Wall time, s.
        compile_cache: What torch.compile's cache did in each launch whose log tells.
    """

    trial: int
    launches: int
    seconds: Mapping[str, float | None]
    imports: Mapping[str, float]
    total: float
    compile_cache: Sequence[CacheUse] = ()


@dataclass(frozen=True)
class TimeView:
    """A study.

    Attributes:
        study: Its name.
        trials: In their order; those that were launched and ended under this autotune.
    """

    study: str
    trials: Sequence[TrialTime] = field(default_factory=tuple)

    def median(self, stage: str) -> float | None:
        """Of the trials that know the stage, s."""
        return _median(t.total if stage == "total" else t.seconds.get(stage) for t in self.trials)

    def share(self, stage: str) -> float | None:
        """Of the time of all trials; None: no trial knows the stage."""
        known = [s for t in self.trials if (s := t.seconds.get(stage)) is not None]
        return sum(known) / self.total if known and self.total > 0 else None

    @property
    def total(self) -> float:
        """Of all trials, s."""
        return sum(t.total for t in self.trials)


def time_view(store: Store, name: str) -> TimeView:
    """Where the time of a study went.

    Raises:
        UserError: nothing is known of it.
    """
    found = store.launches.stages(name)
    caches = store.launches.compile_caches(name)
    by_trial: dict[int, list[Stages]] = {}
    uses: dict[int, list[CacheUse]] = {}
    for launch in store.launches.of_study(name):
        if launch.launch_id in found:
            by_trial.setdefault(launch.trial, []).append(found[launch.launch_id])
        if launch.launch_id in caches:
            uses.setdefault(launch.trial, []).append(caches[launch.launch_id].use)
    if not by_trial:
        raise UserError(
            f"{store.path}: {name} has no launch whose time was split; launches before this "
            "version of autotune have none, and the next one will"
        )
    trials = [_sum(k, by_trial[k], uses.get(k, ())) for k in sorted(by_trial)]
    return TimeView(name, trials)


def _sum(trial: int, launches: Sequence[Stages], uses: Sequence[CacheUse]) -> TrialTime:
    return TrialTime(
        trial,
        len(launches),
        {s: _added(x.seconds.get(s) for x in launches) for s in STAGES},
        {
            process: s
            for process in _PROCESSES
            if (s := _added(x.imports.get(process) for x in launches)) is not None
        },
        sum(x.total for x in launches),
        tuple(uses),
    )


def _added(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def time_lines(view: TimeView) -> list[str]:
    """A table of 80 columns: a row for each trial, below it the medians and the shares."""
    lines = [f"{plain(view.study)}: seconds by stage", ""]
    for i in (0, 1):
        names = [heading[i].rjust(_width(s)) for s, heading in _COLUMNS.items()]
        lines.append(" ".join([("", "#")[i].rjust(4), *names]).rstrip())
    for t in view.trials:
        lines.append(_row(str(t.trial), {**t.seconds, "total": t.total}))
    lines.append("-" * len(_row("", {})))
    lines.append(_row("med.", {s: view.median(s) for s in _COLUMNS}))
    shares = {s: share for s in STAGES if (share := view.share(s)) is not None}
    lines.append(_row("%", {s: 100 * share for s, share in shares.items()}))
    about = (
        f"med.: median of the trials that know the stage; %: of all {view.total:.0f} s. A stage "
        "that nothing tells of is empty; what it took is in `other`. Between two log lines, a "
        "second is the resolution."
    )
    notes = [about]
    parts = {p: _median(t.imports.get(p) for t in view.trials) for p in _PROCESSES}
    words = [f"{_PROCESSES[p]} {s:.1f} s" for p, s in parts.items() if s is not None]
    if words:
        notes.append(f"Imports (medians): {', '.join(words)}.")
    notes += _cache_notes(view)
    if ahead := [str(t.trial) for t in view.trials if t.seconds.get("spawn") is None]:
        notes.append(f"Started ahead, together with an earlier one of these: {', '.join(ahead)}.")
    several = [t for t in view.trials if t.launches > 1]
    if several:
        numbers = ", ".join(f"{t.trial} ({t.launches})" for t in several)
        notes.append(f"Sums of several launches: {numbers}.")
    lines = [line.rstrip() for line in lines]
    return [*lines, "", *(line for note in notes for line in textwrap.wrap(note, 80))]


def _cache_notes(view: TimeView) -> list[str]:
    """What torch.compile's cache did, in a sentence; none where nothing was compiled."""
    by_use = {
        use: [str(t.trial) for t in view.trials if use in t.compile_cache] for use in CacheUse
    }
    words = [f"{use} in {', '.join(trials)}" for use, trials in by_use.items() if trials]
    return [f"torch.compile's cache, by trial: {'; '.join(words)}."] if words else []


def _width(stage: str) -> int:
    return max(4, *map(len, _COLUMNS[stage]))


def _row(label: str, numbers: Mapping[str, float | None]) -> str:
    cells = [_cell(numbers.get(s)).rjust(_width(s)) for s in _COLUMNS]
    return " ".join([label.rjust(4), *cells])


def _cell(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 99.95:
        return f"{seconds:.1f}"
    return f"{seconds:.0f}" if seconds < 9999.5 else f"{seconds / 3600:.0f}h"


def time_json(view: TimeView) -> dict[str, Any]:
    """The same as plain data; times in seconds, shares from 0 to 1."""
    return {
        "study": view.study,
        "total": view.total,
        "trials": [
            {
                "trial": t.trial,
                "launches": t.launches,
                "total": t.total,
                "seconds": dict(t.seconds),
                "imports": dict(t.imports),
                "compile_cache": list(t.compile_cache),
            }
            for t in view.trials
        ],
        "median": {s: view.median(s) for s in _COLUMNS},
        "share": {s: view.share(s) for s in STAGES},
    }
