"""Measurements that are complete and not written down yet, on the disk of the host that made them.

The process of a slot measures, and the driver writes. Between the two the driver, the network or
the database may fail. So the process keeps a measurement in a file until the driver has written it
down. What is left of such files is taken later: by the next run, or by the same one when it reaches
the host again. It is taken once, by the id of its launch, and only while its trial still waits for
numbers; otherwise the trial has been launched again, and has others.

A file begins with the hash of the rest, so one that a disk damaged or that was not written to its
end is never read. Nor is one of another version of autotune whose measurements have other parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from autotune.bench.request_drafts import RequestDrafts
from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.storage.store import Store

# A file that nobody has taken for so long is removed.
KEEP_S = 86400.0


@dataclass(frozen=True)
class LateOutcome:
    """A complete measurement of one launch.

    Attributes:
        launch_id: The launch.
        samples: Its requests, phase by phase.
        stats: What its server told.
        values: By objective.
        intervals: Their bounds, by objective.
        quality: How it came about, as :class:`autotune.storage.records.Quality` is kept.
    """

    launch_id: str
    samples: Sequence[Sequence[Sample]]
    stats: ServerStats
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float | None, float | None]]
    quality: Mapping[str, Any]


_PARTS = {part.name for part in fields(LateOutcome)}


def keep(outcome: LateOutcome) -> None:
    """Keep a measurement on this host's disk; a full disk is no reason to lose it."""
    path = _path(outcome.launch_id)
    draft = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(draft, "wb", opener=_private) as file:
            file.write(_sealed(json.dumps(asdict(outcome)).encode()))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    with contextlib.suppress(OSError):
        draft.unlink(missing_ok=True)


def forget(launch_id: str) -> None:
    """Remove a measurement that was written down, or that nobody needs."""
    with contextlib.suppress(OSError):
        _path(launch_id).unlink(missing_ok=True)


def kept() -> list[LateOutcome]:
    """Return the measurements that this host has, and remove those that are too old."""
    found = []
    for file in sorted(_folder().glob("*.json")):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > KEEP_S:
                file.unlink()
                continue
            outcome = _read(file.read_bytes())
            if outcome is not None:
                found.append(outcome)
    return found


def accept(store: Store, outcome: LateOutcome) -> bool:
    """Write a late measurement down, if its launch is of this database and still has none.

    Args:
        store: The database.
        outcome: The measurement.

    Returns:
        Whether the file is no longer needed.
    """
    launch_id = outcome.launch_id
    if not store.launches.has(launch_id):
        return False  # another database's
    row = store.launches.get(launch_id)
    if row.measured_at is not None:
        return True  # it was written down, and only the answer got lost
    rows = store.launches.of_trial(row.study, row.trial)
    others = [x for x in rows if x.launch_id != launch_id]
    taken = any(x.measured_at is not None or x.ended_at is None for x in others)
    try:
        number = store.trial_id(row.study, row.trial)
    except KeyError:
        return True  # the study or the trial was deleted
    if taken or store.storage.get_trial(number).state.is_finished():
        what = "a late outcome was not needed: the trial was launched again"
    else:
        what = "a late outcome arrived"
        phases = {r.phase for r in store.requests.of_launch(launch_id)}
        for samples in outcome.samples:
            if samples and samples[0].phase not in phases:
                store.requests.add(launch_id, samples)
        store.launches.measured(
            launch_id, outcome.stats, outcome.values, outcome.intervals, outcome.quality
        )
    store.launches.event(row.study, what, trial=row.trial, launch_id=launch_id)
    return True


def take_here(store: Store) -> None:
    """Write down what this host has of a database's measurements."""
    for outcome in kept():
        if accept(store, outcome):
            forget(outcome.launch_id)


def _sealed(kept: bytes) -> bytes:
    """Return a measurement with its hash before it."""
    return hashlib.sha256(kept).digest() + kept


def _read(sealed: bytes) -> LateOutcome | None:
    """Return the measurement of a file; None: it is damaged, or another version wrote it."""
    kept = sealed[hashlib.sha256().digest_size :]
    if sealed != _sealed(kept):
        return None
    try:
        found = json.loads(kept)
        if found.keys() != _PARTS:
            return None
        stats = found["stats"]
        stats["acceptance_per_position"] = tuple(stats["acceptance_per_position"])
        return LateOutcome(
            found["launch_id"],
            [[_sample(x) for x in phase] for phase in found["samples"]],
            ServerStats(**stats),
            found["values"],
            {name: (low, high) for name, (low, high) in found["intervals"].items()},
            found["quality"],
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _sample(kept: dict[str, Any]) -> Sample:
    """Return a request as it was before it was kept as JSON, which has no tuples."""
    drafts = kept["drafts"]
    if drafts is not None:
        by_step = tuple((accepted, drafted) for accepted, drafted in drafts["by_step"])
        drafts = RequestDrafts(tuple(drafts["histogram"]), drafts["drafted"], by_step)
    return Sample(**{**kept, "chunks": tuple(kept["chunks"]), "drafts": drafts})


def _folder() -> Path:
    return Path(user_cache_dir("dflash-autotune"), "outcomes")


def _path(launch_id: str) -> Path:
    return _folder() / f"{launch_id}.json"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
