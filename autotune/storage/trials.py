"""Trials as Optuna keeps them, read without Optuna, whose import is longer than such a command."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from math import inf
from typing import Any, Protocol, TypeVar

from autotune.storage.reading import Reader

# Revisions of Optuna's tables that the queries below are right for.
REVISIONS = ("v3.2.0.a",)


class State(IntEnum):
    """State of a trial, equal to Optuna's ``TrialState`` of the same name."""

    RUNNING = 0
    COMPLETE = 1
    PRUNED = 2
    FAIL = 3
    WAITING = 4


FINISHED = frozenset({State.COMPLETE, State.PRUNED, State.FAIL})


class TrialLike(Protocol):
    """A :class:`Trial`, or Optuna's ``FrozenTrial``."""

    @property
    def number(self) -> int: ...
    @property
    def state(self) -> Any: ...
    @property
    def values(self) -> Any: ...
    @property
    def params(self) -> dict[str, Any]: ...
    @property
    def user_attrs(self) -> dict[str, Any]: ...
    @property
    def duration(self) -> timedelta | None: ...


T = TypeVar("T", bound=TrialLike)


@dataclass
class Trial:
    """One trial of a study.

    Attributes:
        number: Number in its study, from 0.
        state: Whether it waits, runs or has ended, and how.
        values: By objective, in the study's order; None: it has none.
        params: Value of each parameter, as it is given to the study's space.
        distributions: Optuna's distribution of each parameter, as JSON.
        user_attrs: What autotune keeps of it.
        started: When it began to run.
        completed: When it ended.
    """

    number: int
    state: State
    values: list[float] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, str] = field(default_factory=dict)
    user_attrs: dict[str, Any] = field(default_factory=dict)
    started: datetime | None = None
    completed: datetime | None = None

    @property
    def duration(self) -> timedelta | None:
        """Time from its start to its end."""
        if self.started is None or self.completed is None:
            return None
        return self.completed - self.started


@dataclass(frozen=True)
class StoredStudy:
    """Optuna's side of a study.

    Attributes:
        maximized: Whether each objective is maximized, in their order.
        metric_names: How each is shown; None: an early autotune kept no names.
        trials: All, in the order of their numbers.
        user_attrs: What autotune keeps of the study.
    """

    maximized: tuple[bool, ...]
    metric_names: list[str] | None
    trials: list[Trial]
    user_attrs: dict[str, Any] = field(default_factory=dict)


def revision_of(reader: Reader) -> str | None:
    """Return the revision of Optuna's tables; None if there are none."""
    if "alembic_version" not in reader.tables():
        return None
    found = reader.one("SELECT version_num FROM alembic_version")
    return None if found is None else str(found)


def study_id(reader: Reader, name: str) -> int | None:
    """Return Optuna's id of a study; None if it has none yet."""
    found: int | None = reader.one(
        "SELECT study_id FROM studies WHERE study_name = :name", name=name
    )
    return found


def stored_study(reader: Reader, name: str) -> StoredStudy | None:
    """Return Optuna's side of a study; None if it has none yet."""
    found = study_id(reader, name)
    if found is None:
        return None
    directions = reader.rows(
        "SELECT direction FROM study_directions WHERE study_id = :study ORDER BY objective",
        study=found,
    )
    return StoredStudy(
        maximized=tuple(row["direction"] == "MAXIMIZE" for row in directions),
        metric_names=system_attr(reader, name, "study:metric_names"),
        trials=_trials(reader, found),
        user_attrs={
            row["key"]: json.loads(row["value_json"])
            for row in reader.rows(
                "SELECT key, value_json FROM study_user_attributes WHERE study_id = :study",
                study=found,
            )
        },
    )


def system_attr(reader: Reader, name: str, key: str) -> Any:
    """Return what a study keeps under a key of Optuna's system attributes; None: nothing."""
    found = reader.one(
        "SELECT value_json FROM study_system_attributes JOIN studies USING (study_id) "
        "WHERE study_name = :name AND key = :key",
        name=name,
        key=key,
    )
    return None if found is None else json.loads(found)


def _trials(reader: Reader, study: int) -> list[Trial]:
    found = {
        row["trial_id"]: Trial(
            number=row["number"],
            state=State[row["state"]],
            started=_time(row["datetime_start"]),
            completed=_time(row["datetime_complete"]),
        )
        for row in reader.rows(
            "SELECT * FROM trials WHERE study_id = :study ORDER BY trial_id", study=study
        )
    }
    for row in _of_trials(reader, study, found, "trial_values", "objective"):
        trial = found[row["trial_id"]]
        trial.values = [*(trial.values or ()), _value(row)]
    for row in _of_trials(reader, study, found, "trial_params", "param_id"):
        trial = found[row["trial_id"]]
        trial.distributions[row["param_name"]] = row["distribution_json"]
        trial.params[row["param_name"]] = _param(row)
    for row in _of_trials(reader, study, found, "trial_user_attributes", "trial_user_attribute_id"):
        found[row["trial_id"]].user_attrs[row["key"]] = json.loads(row["value_json"])
    return sorted(found.values(), key=lambda t: t.number)


def _of_trials(
    reader: Reader, study: int, trials: Container[int], table: str, order: str
) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of trials; a run may have begun further trials since they were read."""
    known = "SELECT trial_id FROM trials WHERE study_id = :study"
    query = f"SELECT * FROM {table} WHERE trial_id IN ({known}) ORDER BY {order}"  # noqa: S608
    yield from (row for row in reader.rows(query, study=study) if row["trial_id"] in trials)


def _time(kept: str | datetime | None) -> datetime | None:
    found = datetime.fromisoformat(kept) if isinstance(kept, str) else kept
    return None if found is None else found.replace(tzinfo=UTC)


def _value(row: Mapping[str, Any]) -> float:
    special = {"INF_POS": inf, "INF_NEG": -inf}
    return special[row["value_type"]] if row["value"] is None else float(row["value"])


def _param(row: Mapping[str, Any]) -> Any:
    """Return a parameter's value: Optuna keeps a float, for a choice its index."""
    distribution = json.loads(row["distribution_json"])
    value = row["param_value"]
    if distribution["name"] == "CategoricalDistribution":
        return distribution["attributes"]["choices"][int(value)]
    return int(value) if distribution["name"].startswith("Int") else float(value)
