"""Launches as a database holds them: read without SQLAlchemy, and never written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from autotune.engine.compile_cache import CacheUse, CompileCache
from autotune.engine.launch_stages import Stages
from autotune.storage.reading import Reader
from autotune.storage.schema import CompileCacheRow, EventRow, LaunchRow, StagesRow

# Rows of another table that belong to a study's launches.
_OF_STUDY = "JOIN autotune_launches USING (launch_id) WHERE study = :study"


def weights_of(quality: Mapping[str, Any] | None) -> dict[str, str]:
    """Return hashes of the weights that a launch was measured with, by role; empty if unknown."""
    kept = (quality or {}).get("weights")
    return {str(k): str(v) for k, v in kept.items()} if isinstance(kept, dict) else {}


class StoredLaunches:
    """Launches of all studies of one database.

    Args:
        reader: Reads it.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def get(self, launch_id: str) -> LaunchRow:
        """Return one launch."""
        [row] = self._reader.records(LaunchRow, "WHERE launch_id = :launch", launch=launch_id)
        return row

    def has(self, launch_id: str) -> bool:
        """Return whether there is such a launch."""
        sql = "SELECT 1 FROM autotune_launches WHERE launch_id = :launch"
        return self._reader.one(sql, launch=launch_id) is not None

    def of_study(self, study: str) -> list[LaunchRow]:
        """Return every launch of a study, oldest first."""
        return self._oldest_first("study = :study", study=study)

    def of_trial(self, study: str, trial: int) -> list[LaunchRow]:
        """Return every launch of one trial, or of one point of a load sweep, oldest first."""
        return self._oldest_first("study = :study AND trial = :trial", study=study, trial=trial)

    def latest(self, study: str) -> LaunchRow | None:
        """Return the latest launch of a study that came up; None: there is none."""
        found = self._reader.records(
            LaunchRow,
            "WHERE study = :study AND ready_at IS NOT NULL ORDER BY planned_at DESC LIMIT 1",
            study=study,
        )
        return found[0] if found else None

    def measuring(self, study: str, trial: int) -> LaunchRow | None:
        """Return the launch that a trial's numbers are from; None: it has none."""
        found = self._oldest_first(
            "study = :study AND trial = :trial AND measured_at IS NOT NULL "
            "AND failure_kind IS NULL",
            study=study,
            trial=trial,
        )
        return found[-1] if found else None

    def environments(self, study: str) -> dict[str, tuple[dict[str, str], bool]]:
        """Return the variables of every launch of a study, by launch id.

        The flag says whether every family of variables was kept, which autotune 0.1 did not.
        """
        rows = self._reader.rows(
            "SELECT launch_id, env, host FROM autotune_launches WHERE study = :study", study=study
        )
        return {r["launch_id"]: (json.loads(r["env"]), r["host"] is not None) for r in rows}

    def unended(self) -> list[LaunchRow]:
        """Return launches of all studies whose end was never noted."""
        return self._oldest_first("ended_at IS NULL")

    def _oldest_first(self, which: str, **values: object) -> list[LaunchRow]:
        return self._reader.records(LaunchRow, f"WHERE {which} ORDER BY planned_at", **values)

    def measured_on(self, study: str) -> tuple[dict[str, Any] | None, str | None]:
        """Return the machine of a study's latest launch, and the latest known vLLM version."""
        machine = self._reader.one(
            "SELECT machine FROM autotune_launches WHERE study = :study "
            "ORDER BY planned_at DESC LIMIT 1",
            study=study,
        )
        version = self._reader.one(
            "SELECT vllm_version FROM autotune_launches WHERE study = :study "
            "AND vllm_version IS NOT NULL ORDER BY planned_at DESC LIMIT 1",
            study=study,
        )
        return None if machine is None else json.loads(machine), version

    def versions(self, study: str) -> dict[int, str]:
        """Return the version of vLLM that the latest server of each trial told, by its number."""
        rows = self._reader.rows(
            "SELECT trial, vllm_version FROM autotune_launches WHERE study = :study "
            "AND vllm_version IS NOT NULL ORDER BY planned_at",
            study=study,
        )
        return {r["trial"]: r["vllm_version"] for r in rows}

    def weights(self, study: str) -> dict[str, str]:
        """Return the latest hashes of the weights that a study was measured with, by role."""
        found: dict[str, str] = {}
        for _machine, quality in self._qualities(study):
            found |= weights_of(quality)
        return found

    def idle_baselines(self, study: str, machine: Mapping[str, Any]) -> list[float]:
        """Return the idle baselines of a study on this machine, oldest first.

        An idle baseline is the duration of the interference check before a measured launch, in
        seconds.
        """
        return [
            quality["machine"]["rest"]["kernel_s"]
            for of, quality in self._qualities(study)
            if quality and of == machine
        ]

    def _qualities(self, study: str) -> list[tuple[Any, Any]]:
        """Return machine and quality of a study's measured launches, oldest first."""
        rows = self._reader.rows(
            "SELECT machine, quality FROM autotune_launches WHERE study = :study "
            "AND quality IS NOT NULL ORDER BY planned_at",
            study=study,
        )
        return [(json.loads(row["machine"]), json.loads(row["quality"])) for row in rows]

    def events(self, study: str) -> list[EventRow]:
        """Return what happened in a study, oldest first."""
        return self._reader.records(EventRow, "WHERE study = :study ORDER BY id", study=study)

    def stages(self, study: str) -> dict[str, Stages]:
        """Return the stages of a study's launches, by launch id."""
        rows = self._reader.records(StagesRow, _OF_STUDY, study=study)
        return {row.launch_id: Stages(row.seconds, row.imports) for row in rows}

    def compile_caches(self, study: str) -> dict[str, CompileCache]:
        """Return what torch.compile's cache did, by launch id, for launches whose log says so."""
        rows = self._reader.records(CompileCacheRow, _OF_STUDY, study=study)
        return {row.launch_id: CompileCache(CacheUse[row.use], row.folder) for row in rows}
