"""Points of load sweeps, and what was measured of each at each concurrency."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from autotune.storage.backend import Sessions, patient
from autotune.storage.reading import Reader
from autotune.storage.schema import LoadRow, MapPointRow

if TYPE_CHECKING:  # a database is read without them
    from sqlalchemy.orm import Session

    from autotune.bench.server_metrics import ServerStats


class LoadMaps:
    """Load sweeps of all studies of one database.

    Args:
        reader: Reads it.
        sessions: Opens a session on it, to write.
    """

    def __init__(self, reader: Reader, sessions: Sessions) -> None:
        self._reader, self._sessions = reader, sessions

    @patient
    def add_point(
        self,
        study: str,
        setting: Mapping[str, Any],
        n: int,
        schedule: Sequence[Any] | None,
        *,
        way: str | None = None,
        arm: str | None = None,
        repeat: int | None = None,
    ) -> MapPointRow:
        """Store a point before its first launch; arguments as the columns of the row."""
        with self._sessions() as s:
            row = MapPointRow(
                study=study,
                setting=dict(setting),
                n=n,
                schedule=None if schedule is None else [list(x) for x in schedule],
                created_at=time.time(),
                way=way,
                arm=arm,
                repeat=repeat,
            )
            s.add(row)
            s.commit()
            s.refresh(row)
            s.expunge(row)
        return row

    def points(self, study: str) -> list[MapPointRow]:
        """Return a study's points of all settings, oldest first."""
        return self._reader.records(MapPointRow, "WHERE study = :study ORDER BY id", study=study)

    @patient
    def rename(self, study: str, known: Collection[str], now: str) -> None:
        """Give the load sweeps of a study its present fingerprint.

        Args:
            study: Its name.
            known: Fingerprints that are the same experiment:
                :meth:`autotune.storage.store.Store.fingerprints`.
            now: The present one.
        """
        with self._sessions() as s:
            rename_points(s, study, known, now)
            s.commit()

    @patient
    def add_load(
        self,
        launch_id: str,
        point: int,
        *,
        concurrency: int,
        part: int,
        phase: str,
        stats: ServerStats,
        values: Mapping[str, float],
        intervals: Mapping[str, tuple[float | None, float | None]],
        quality: Mapping[str, Any],
    ) -> None:
        """Keep one measured part; arguments as of ``Launches.measured``."""
        with self._sessions() as s:
            s.add(
                LoadRow(
                    launch_id=launch_id,
                    point=point,
                    concurrency=concurrency,
                    part=part,
                    phase=phase,
                    requests=quality["requests"],
                    stats=asdict(stats),
                    values=dict(values),
                    intervals={name: list(bounds) for name, bounds in intervals.items()},
                    quality=dict(quality),
                    measured_at=time.time(),
                )
            )
            s.commit()

    def loads(self, point: int) -> list[LoadRow]:
        """Return what was measured of a point in the launches that did not fail, oldest first."""
        return self._reader.records(
            LoadRow,
            "JOIN autotune_launches USING (launch_id) "
            "WHERE point = :point AND failure_kind IS NULL ORDER BY id",
            point=point,
        )


def rename_points(session: Session, study: str, known: Collection[str], now: str) -> None:
    """Give the points of a study's load sweeps its present fingerprint; the caller commits."""
    from sqlalchemy import select

    for point in session.scalars(select(MapPointRow).filter_by(study=study)):
        if point.setting["fingerprint"] in known:
            point.setting = {**point.setting, "fingerprint": now}
