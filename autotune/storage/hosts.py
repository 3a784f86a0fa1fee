"""What a database says of the hosts that launch for it: its lease, its clock, signs of life."""

from __future__ import annotations

import time

from autotune.storage.location import Database, Server
from autotune.storage.reading import Reader
from autotune.storage.schema import LeaseRow

# Event of a launch that was closed because its host did not come back.
LOST = "lost with its host; nothing was ended there"


class Hosts:
    """Hosts of one database.

    Args:
        reader: Reads it.
        database: Where it is.
    """

    def __init__(self, reader: Reader, database: Database) -> None:
        self._reader, self._database = reader, database

    def lease(self) -> LeaseRow | None:
        """Return the row of the lease; None: no run has taken it yet."""
        found = self._reader.records(LeaseRow, "WHERE id = 1")
        return found[0] if found else None

    def now(self) -> float:
        """Return the Unix time by the clock that leases go by."""
        if isinstance(self._database, Server):
            return float(self._reader.one("SELECT extract(epoch FROM clock_timestamp())"))
        return time.time()

    def last_heard(self, host: str) -> float | None:
        """Return the Unix time of the last sign of life of a host's launches; None: there is none.

        That a launch was closed as lost is no sign of life.
        """
        launched = self._reader.one(
            "SELECT max(coalesce(measured_at, ready_at, planned_at)) FROM autotune_launches "
            "WHERE host = :host",
            host=host,
        )
        told = self._reader.one(
            "SELECT max(at) FROM autotune_events JOIN autotune_launches USING (launch_id) "
            "WHERE host = :host AND what <> :lost",
            host=host,
            lost=LOST,
        )
        return max((float(x) for x in (launched, told) if x is not None), default=None)
