"""Points of load sweeps, and what was measured of each at each concurrency."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from autotune.bench import ServerStats
from autotune.storage.schema import LaunchRow, LoadRow, MapPointRow


class LoadMaps:
    """Load sweeps of all studies of one database.

    Args:
        sessions: Opens a session on it.
    """

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def add_point(
        self, study: str, setting: Mapping[str, Any], n: int, schedule: Sequence[Any] | None
    ) -> MapPointRow:
        """Store a point before its first launch."""
        with self._sessions() as s:
            row = MapPointRow(
                study=study,
                setting=dict(setting),
                n=n,
                schedule=None if schedule is None else [list(x) for x in schedule],
                created_at=time.time(),
            )
            s.add(row)
            s.commit()
            s.refresh(row)
            s.expunge(row)
        return row

    def points(self, study: str) -> list[MapPointRow]:
        """Return a study's points of all settings, oldest first."""
        query = select(MapPointRow).where(MapPointRow.study == study).order_by(MapPointRow.id)
        with self._sessions() as s:
            rows = list(s.scalars(query))
            s.expunge_all()
        return rows

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
        query = (
            select(LoadRow)
            .join(LaunchRow, LaunchRow.launch_id == LoadRow.launch_id)
            .where(LoadRow.point == point, LaunchRow.failure_kind.is_(None))
            .order_by(LoadRow.id)
        )
        with self._sessions() as s:
            rows = list(s.scalars(query))
            s.expunge_all()
        return rows


def rename_points(session: Session, study: str, known: Collection[str], now: str) -> None:
    """Give the points of a study's load sweeps its present fingerprint."""
    for point in session.scalars(select(MapPointRow).where(MapPointRow.study == study)):
        if point.setting["fingerprint"] in known:
            point.setting = {**point.setting, "fingerprint": now}
