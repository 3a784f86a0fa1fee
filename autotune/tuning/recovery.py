"""What earlier runs left: which servers run, and the end of those that nobody owns."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator
from socket import gethostname
from typing import Any

import psutil

from autotune.results.text import plain, shortened
from autotune.serving.orphans import LivingLaunch, end_living, living_launches
from autotune.serving.process_tree import Identity, end_orphan
from autotune.serving.slots import slot_text
from autotune.serving.warm_start import FORK_SERVER
from autotune.storage.lease import exclusive, is_free
from autotune.storage.location import Database
from autotune.storage.names import launch_text
from autotune.storage.schema import LaunchRow
from autotune.storage.store import Store, is_there, opened
from autotune.study.secrets import without_passwords
from autotune.tuning.late_outcomes import LateOutcome, accept, take_here
from autotune.tuning.lost_hosts import Elsewhere, is_elsewhere, unended_elsewhere

# After SIGTERM, before SIGKILL; a vLLM server takes 1 to 2 s.
GRACE_S = 10.0
_NOT_HERE = "not in this --db"


def end_unended(store: Store, grace_s: float) -> Iterator[tuple[LaunchRow, int]]:
    """End what is left of each launch whose end was never written down, and write it down.

    The caller holds the database (:func:`autotune.storage.lease.exclusive`), so no launch in it
    belongs to another run.

    Args:
        store: Its ledger; launches of all studies in it.
        grace_s: Wait after SIGTERM before SIGKILL, seconds.

    Yields:
        Each launch, and how many processes of it were ended.

    Raises:
        StopError: a process survives SIGKILL.
    """
    for launch in store.launches.unended():
        if is_elsewhere(launch, store.database):
            continue  # processes of another host, which only that one can end
        ended = end_orphan(_identity(launch), grace_s=grace_s)
        store.launches.ended(launch.launch_id, None, ended)
        _note_found(store, launch, ended)
        yield launch, ended


def launches_elsewhere(store: Store) -> list[tuple[str, Identity]]:
    """Return launches of other hosts whose end was never written down, each with its host.

    Those of a run that has just taken the lease are of earlier runs only.
    """
    return [(x.launch.host or "", _identity(x.launch)) for x in unended_elsewhere(store)]


def note_left(store: Store, launch_id: str, ended: int) -> None:
    """Write down that a launch whose process or host was gone is ended; once.

    Args:
        store: Its ledger.
        launch_id: Id of the launch; nothing is done if it was never written down.
        ended: Number of its processes that were found and ended.
    """
    launch = next((x for x in store.launches.unended() if x.launch_id == launch_id), None)
    if launch is None:
        return
    store.launches.ended(launch_id, None, ended)
    _note_found(store, launch, ended)


class StoreOfLeft:
    """Writes down what was left behind on other hosts (``LeftBehind`` of the slots).

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def ended(self, launch_id: str, ended: int) -> None:
        """Write down that a launch has ended."""
        note_left(self._store, launch_id, ended)

    def measured(self, outcome: LateOutcome) -> bool:
        """Write a late measurement down if its trial has none; return whether it is not needed."""
        return accept(self._store, outcome)


def _note_found(store: Store, launch: LaunchRow, ended: int) -> None:
    store.launches.event(
        launch.study,
        f"found a launch without an end; ended {ended} processes",
        trial=launch.trial,
        launch_id=launch.launch_id,
    )


def end_orphans(store: Store, grace_s: float, say: Callable[[str], None]) -> None:
    """End the servers that an earlier run could not end, of every study in this database.

    Args:
        store: Its ledger.
        grace_s: Wait after SIGTERM before SIGKILL, seconds.
        say: Told of each server.

    What their slots had measured, and nobody had written down, is taken, too.
    """
    take_here(store)
    for launch, ended in end_unended(store, grace_s):
        if ended:
            say(
                f"stopped an orphaned server of an earlier run ({launch_text(launch)}, "
                f"{ended} processes)"
            )


def _identity(launch: LaunchRow) -> Identity:
    """Return a launch as the ledger knows it; no pids if the run ended before they were known."""
    known = launch.identity or {"launch_id": launch.launch_id, "boot_id": launch.boot_id}
    return Identity.from_stored(known)


def living(database: Database) -> list[tuple[LivingLaunch, str]]:
    """Return every server of autotune on this machine, and what it was started for.

    Args:
        database: Its ledger says which trial a server is of; it may be missing.
    """
    trials = {}
    if is_there(database):
        with opened(database) as store:
            trials = {x.launch_id: x for x in store.launches.unended()}
    found = []
    for x in living_launches():
        row = trials.get(x.launch_id)
        of = _purpose(row) if row else _NOT_HERE
        if FORK_SERVER.name in x.command:
            of = "what warm starts are forked from"
        found.append((x, of))
    return found


def _owners_command(owner: int | None) -> tuple[str, str] | None:
    """Return the command of the autotune that owns a launch, and its folder; None: none is told."""
    if owner is None:
        return None
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(owner)
        command = shlex.join(without_passwords(word) for word in process.cmdline())
        return plain(command), plain(process.cwd())
    return None


def _owner_json(owner: int | None) -> dict[str, str | None]:
    command, folder = _owners_command(owner) or (None, None)
    return {"owner_command": command, "owner_folder": folder}


def open_elsewhere(database: Database) -> list[tuple[Elsewhere, str]]:
    """Return the launches without an end that are on other hosts, and what each was made for.

    Args:
        database: Its ledger; it may be missing.
    """
    if not is_there(database):
        return []
    with opened(database) as store:
        return [(x, _purpose(x.launch)) for x in unended_elsewhere(store)]


def _purpose(launch: LaunchRow) -> str:
    """Return what a launch was made for, and on which slot it is: ``trial 3 of demo, slot 1``."""
    return ", ".join(filter(None, [launch_text(launch), slot_text(launch.machine.get("slot"))]))


def living_json(database: Database) -> list[dict[str, Any]]:
    """Return what :func:`living_lines` shows as plain data; memory in bytes, times in seconds.

    Of launches on other hosts only what the database says is known: ``silent_seconds`` since the
    host was last heard of, and ``host_gone``, whether it counts as gone.
    """
    elsewhere: list[dict[str, Any]] = [
        {
            "launch": x.launch.launch_id,
            "of": of,
            "host": x.launch.host,
            "owner": None,
            **_owner_json(None),
            "pids": [],
            "containers": [],
            "memory": None,
            "seconds": time.time() - x.launch.planned_at,
            "command": plain(shlex.join(x.launch.argv)),
            "host_gone": x.gone,
            "silent_seconds": x.silent_s,
        }
        for x, of in open_elsewhere(database)
    ]
    return elsewhere + [
        {
            "launch": x.launch_id,
            "of": of,
            "host": gethostname(),
            "owner": x.owner,
            **_owner_json(x.owner),
            "pids": [p.pid for p in x.processes],
            "containers": list(x.containers),
            "memory": x.memory,
            "seconds": x.seconds,
            "command": plain(x.command),
        }
        for x, of in living(database)
    ]


def living_lines(database: Database) -> list[str]:
    """Return the servers here, and the launches on other hosts, for people; two lines each.

    Servers here are those of every database. One that this database has not is told by the command
    that owns it.
    """
    lines = []
    for x, of in living(database):
        owner = f"autotune {x.owner}" if x.owner else "nobody, `autotune reap` ends it"
        size = f"{x.size}, {x.memory / 2**30:.1f} GiB, {x.seconds / 60:.1f} min"
        lines.append(f"{x.launch_id[:8]}  {of}; owner: {owner}")
        lines.append(shortened(f"          {size}: {plain(x.command)}"))
        if of == _NOT_HERE and (owners := _owners_command(x.owner)) is not None:
            command, folder = owners
            lines.append(shortened(f"          of: {command}"))
            lines.append(shortened(f"          in: {folder}"))
    for found, of in open_elsewhere(database):
        row, host = found.launch, plain(str(found.launch.host))
        minutes = (time.time() - row.planned_at) / 60
        lines.append(f"{row.launch_id[:8]}  {of}; on host {host}")
        if found.state:
            how = f": `autotune ps --forget {host}` closes it" if found.gone else ""
            lines.append(f"          {found.state}{how}")
        command = plain(shlex.join(row.argv))
        lines.append(shortened(f"          by the database, {minutes:.1f} min: {command}"))
    return lines


def reap(database: Database) -> Iterator[str]:
    """End every server of autotune that no living autotune owns; a line for each.

    Args:
        database: Its ledger knows servers that lost their marks; it may be missing. While another
            autotune runs on it, its launches are that one's.

    Raises:
        StopError: a process survives SIGKILL.
        UserError: the database is there, but cannot be used.
    """
    for x in living_launches():
        if x.owner is None:
            ended = end_living(x, grace_s=GRACE_S)
            yield f"{x.launch_id[:8]}  ended {x.size if x.containers else f'{ended} processes'}"
        else:
            why = f"it belongs to autotune {x.owner}; Ctrl-C there ends it"
            yield f"{x.launch_id[:8]}  left alone: {why}"
    if not is_there(database) or not is_free(database):
        return
    with exclusive(database):
        yield from _reap_by_ledger(database)


def _reap_by_ledger(database: Database) -> Iterator[str]:
    with opened(database) as store:
        if not store.launches.unended():
            return  # nothing to write
    with opened(database, write=True) as store:
        store.take_lease()
        for launch, ended in end_unended(store, GRACE_S):
            if ended:
                yield f"{launch.launch_id[:8]}  ended {ended} processes, by the ledger"
