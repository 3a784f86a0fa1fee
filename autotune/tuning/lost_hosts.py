"""Launches of hosts that do not come back, such as pods: who is gone, and how they get an end.

Only a host itself can prove that nothing is left of a launch: the next run on it does, or
`autotune reap`, or an actor of Ray there. A host that was removed never will. Its launches would
stay open for good, although nothing of them can run:

- a server ends with its driver, or 15 s after a slot's lease has run out;
- a driver that cannot reach its database ends after 10 minutes.

So a launch whose run no longer holds the database, on a host of which nothing was heard for
:data:`GONE_S`, counts as lost. It is closed by the next run on the database, or by `autotune ps
--forget`. That ends nothing, and only writes: a host that does come back finds its processes by
their marks, and what it measured is still taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from socket import gethostname

from autotune.errors import UserError
from autotune.results.text import count, duration, plain
from autotune.storage.hosts import LOST
from autotune.storage.lease import LEASE_S, exclusive, is_free
from autotune.storage.location import Database, Server
from autotune.storage.schema import NO_TRIAL, LaunchRow, LeaseRow
from autotune.storage.store import Store, opened

# From now on a host that nobody hears counts as gone: more than a driver waits for its database.
GONE_S = 900.0


@dataclass(frozen=True)
class Elsewhere:
    """A launch on another host whose end was never written down.

    Attributes:
        launch: The launch.
        held: Whether the run that it belongs to holds the database, and has not launched its trial
            again.
        silent_s: Seconds since its host was last heard of, by the clock of the database.
    """

    launch: LaunchRow
    held: bool
    silent_s: float

    @property
    def gone(self) -> bool:
        """Whether its host counts as gone."""
        return not self.held and self.silent_s >= GONE_S

    @property
    def state(self) -> str:
        """What is known of its host, in words; empty: its run goes on."""
        if self.held:
            return ""
        return f"{'host gone' if self.gone else 'host not heard of'}, {duration(self.silent_s)} ago"


def is_elsewhere(launch: LaunchRow, database: Database) -> bool:
    """Return whether a launch is one of another host; a file may have been carried here."""
    shared = isinstance(database, Server) or bool((launch.machine.get("slot") or {}).get("host"))
    return shared and launch.host not in {None, gethostname()}


def unended_elsewhere(store: Store) -> list[Elsewhere]:
    """Return the launches of other hosts whose end was never written down, oldest first."""
    found = [x for x in store.launches.unended() if is_elsewhere(x, store.database)]
    if not found:
        return []
    now, lease, free = store.hosts.now(), store.hosts.lease(), is_free(store.database)
    heard = {host: store.hosts.last_heard(host) for host in {x.host or "" for x in found}}
    out = []
    for x in found:
        own = lease is not None and lease.epoch == x.lease_epoch
        # servers that wait for their trial are not each other's launches again
        again = x.trial != NO_TRIAL and any(
            y.planned_at > x.planned_at for y in store.launches.of_trial(x.study, x.trial)
        )
        last = heard[x.host or ""] or x.planned_at
        if own and not again:
            last = max(last, _renewed(lease))
        out.append(Elsewhere(x, own and not free and not again, max(0.0, now - last)))
    return out


def _renewed(lease: LeaseRow | None) -> float:
    """Return when a lease was last renewed; of a file, when it was taken."""
    if lease is None:
        return 0.0
    return (lease.taken_at or 0.0) if lease.expires_at is None else lease.expires_at - LEASE_S


def close_lost(store: Store, say: Callable[[str], None]) -> None:
    """Close the launches of hosts that are gone; the caller holds the database.

    Args:
        store: The database, whose nodes were asked for what is left on them.
        say: Told of each host, as one line.
    """
    lost: dict[str, list[Elsewhere]] = defaultdict(list)
    for x in unended_elsewhere(store):
        if x.gone:
            lost[x.launch.host or ""].append(x)
    for host, found in lost.items():
        _close(store, found)
        since = duration(min(x.silent_s for x in found))
        say(
            f"closed {count(len(found), 'launch')} of host {plain(host)} as lost: it was last "
            f"heard of {since} ago"
        )


def forget(database: Database, host: str) -> str:
    """Close the launches of a host that is gone; return what was done, in one line.

    Args:
        database: Has the launches.
        host: Name of the host, as ``autotune ps`` shows it.

    Raises:
        UserError: it is this host, has no open launch, may still answer, or a run holds the
            database.
    """
    if host == gethostname():
        raise UserError(f"--forget {host}: is this host; `autotune reap` ends what is left on it")
    with opened(database) as store:
        _check_gone(store, host)
    with exclusive(database), opened(database, write=True) as store:
        store.take_lease()
        found = _check_gone(store, host)
        _close(store, found)
    launches = count(len(found), "launch")
    return f"closed {launches} of host {plain(host)} as lost; nothing was ended there"


def _check_gone(store: Store, host: str) -> list[Elsewhere]:
    """Return the open launches of a host.

    Raises:
        UserError: there is none, or the host may still answer.
    """
    every = unended_elsewhere(store)
    found = [x for x in every if x.launch.host == host]
    if not found:
        others = ", ".join(sorted({plain(str(x.launch.host)) for x in every}))
        raise UserError(
            f"--forget {host}: {store.database} has no open launch of it"
            + (f"; it has those of {others}" if others else ", nor of any other host")
        )
    answers = next((x for x in found if not x.gone), None)
    if answers is not None:
        if answers.held:
            raise UserError(
                f"--forget {host}: a run is using it: {store.database} is held by the run that "
                "launched there. Stop that run first"
            )
        raise UserError(
            f"--forget {host}: was heard of {duration(answers.silent_s)} ago, and its servers may "
            f"still be ending. Wait until {GONE_S / 60:.0f} min have passed, or run "
            "`autotune reap` there"
        )
    return found


def _close(store: Store, found: list[Elsewhere]) -> None:
    for x in found:
        store.launches.ended(x.launch.launch_id, None, 0)
        store.launches.event(
            x.launch.study,
            LOST,
            trial=x.launch.trial,
            launch_id=x.launch.launch_id,
        )
