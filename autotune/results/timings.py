"""Where the time of a study's trials went, as `autotune status --time` shows it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.engine.compile_cache import CacheUse
from autotune.engine.launch_stages import STAGES, Stages
from autotune.errors import UserError
from autotune.results.tables import Column, Row, Table, text_lines
from autotune.results.text import plain, upper, wrapped
from autotune.storage.store import Store

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
        launches: Number of launches whose seconds are added up here.
        seconds: Seconds by stage; None: unknown.
        imports: Seconds of the known parts of ``imports``.
        total: Wall time, s.
        compile_cache: Use of torch.compile's cache in each launch whose log shows it.
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
        trials: Trials with known stages, in their order.
        rehearsal: What of a rehearsal is real and what is not; empty: it is none.
    """

    study: str
    trials: Sequence[TrialTime] = field(default_factory=tuple)
    rehearsal: str = ""

    def median(self, stage: str) -> float | None:
        """Return the median in seconds over the trials whose time in this stage is known."""
        return _median(t.total if stage == "total" else t.seconds.get(stage) for t in self.trials)

    def share(self, stage: str) -> float | None:
        """Return the stage's share of the time of all trials; None: unknown in every trial."""
        known = [s for t in self.trials if (s := t.seconds.get(stage)) is not None]
        return sum(known) / self.total if known and self.total > 0 else None

    @property
    def total(self) -> float:
        """Wall time of all trials, s."""
        return sum(t.total for t in self.trials)


def time_view(store: Store, name: str) -> TimeView:
    """Return where the time of a study went.

    Raises:
        UserError: no launch has stages.
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
            f"{store.database}: {name} has no launch whose time was split; launches before this "
            "version of autotune have none, and the next one will"
        )
    trials = [_sum(k, by_trial[k], uses.get(k, ())) for k in sorted(by_trial)]
    return TimeView(name, trials, store.load_study(name)[0].spec.rehearsal_label)


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
    """Return a table of 80 columns: a row for each trial, below it the medians and the shares."""
    notes = (line for note in _notes(view) for line in wrapped(note))
    title = f"{plain(view.study)}: seconds by stage"
    label = [*wrapped(upper(view.rehearsal)), ""] if view.rehearsal else []
    return [*label, title, "", *text_lines(_table(view)), "", *notes]


def _table(view: TimeView) -> Table:
    columns = [Column("\n#", width=4)]
    columns += [
        Column("\n".join(lines), width=max(4, *map(len, lines))) for lines in _COLUMNS.values()
    ]
    shares = {s: 100 * share for s in STAGES if (share := view.share(s)) is not None}
    rows = [_row(str(t.trial), {**t.seconds, "total": t.total}) for t in view.trials]
    rows.append(_row("med.", {s: view.median(s) for s in _COLUMNS}, ruled=True))
    return Table(tuple(columns), (*rows, _row("%", shares)), gap=1)


def _row(label: str, numbers: Mapping[str, float | None], *, ruled: bool = False) -> Row:
    return Row((label, *(_seconds(numbers.get(s)) for s in _COLUMNS)), ruled=ruled)


def _notes(view: TimeView) -> list[str]:
    """Return notes on the columns of the table and on single trials."""
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
        notes.append(f"Prelaunched, together with an earlier one of these: {', '.join(ahead)}.")
    several = [t for t in view.trials if t.launches > 1]
    if several:
        numbers = ", ".join(f"{t.trial} ({t.launches})" for t in several)
        notes.append(f"Sums of several launches: {numbers}.")
    return notes


def _cache_notes(view: TimeView) -> list[str]:
    """Return a sentence on torch.compile's cache; none if nothing was compiled."""
    by_use = {
        use: [str(t.trial) for t in view.trials if use in t.compile_cache] for use in CacheUse
    }
    words = [f"{use} in {', '.join(trials)}" for use, trials in by_use.items() if trials]
    return [f"torch.compile's cache, by trial: {'; '.join(words)}."] if words else []


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 99.95:
        return f"{seconds:.1f}"
    return f"{seconds:.0f}" if seconds < 9999.5 else f"{seconds / 3600:.0f}h"


def time_json(view: TimeView) -> dict[str, Any]:
    """Return the times as plain data; in seconds, shares from 0 to 1."""
    return {
        "study": view.study,
        **({"rehearsal": view.rehearsal} if view.rehearsal else {}),
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
