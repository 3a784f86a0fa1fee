"""One study from one database to another, in one transaction: all of it is there, or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from autotune.errors import UserError
from autotune.storage.certificates import moved_launch
from autotune.storage.lease import exclusive, is_free
from autotune.storage.location import Database, is_same
from autotune.storage.names import break_even_name, load_sweep_name, verification_name
from autotune.storage.reading import Reader, Row
from autotune.storage.schema import (
    NO_TRIAL,
    AnswerRow,
    CertificateRow,
    CompileCacheRow,
    EventRow,
    LaunchRow,
    LoadRow,
    MapPointRow,
    RequestAcceptanceRow,
    RequestRow,
    StagesRow,
    StudyRow,
)
from autotune.storage.store import Store, is_there, opened

if TYPE_CHECKING:  # a database is read without it
    from sqlalchemy import Connection, Table

# Optuna's tables of a study and of its trials, each with its own key.
_OF_STUDY = {
    "study_directions": "study_direction_id",
    "study_user_attributes": "study_user_attribute_id",
    "study_system_attributes": "study_system_attribute_id",
}
_OF_TRIAL = {
    "trial_user_attributes": "trial_user_attribute_id",
    "trial_system_attributes": "trial_system_attribute_id",
    "trial_params": "param_id",
    "trial_values": "trial_value_id",
    "trial_intermediate_values": "trial_intermediate_value_id",
}
# autotune's tables of a launch.
_OF_LAUNCH: tuple[type[Row], ...] = (
    RequestRow,
    RequestAcceptanceRow,
    StagesRow,
    CompileCacheRow,
)
# A key of optuna-dashboard that has the id of a trial: a note or an artifact of it.
_TRIALS_KEY = re.compile(r"(dashboard:(?:artifacts:)?)(\d+)(:.*)", re.DOTALL)


@dataclass(frozen=True)
class Copied:
    """Counts of what was copied.

    Attributes:
        study: Name of the study.
        trials: Its trials.
        launches: Its launches, those of its load sweep included.
        requests: Requests of these launches.
    """

    study: str
    trials: int
    launches: int
    requests: int


def copy_study(source: Database, study: str | None, target: Database) -> Copied:
    """Copy a study with everything that the database has of it.

    Files are not copied: server logs, plots, artifacts of the dashboard.

    Args:
        source: Database that has the study; it is only read.
        study: Name of the study; None: the only one in it.
        target: Database that gets it, made if missing.

    Returns:
        What was copied.

    Raises:
        UserError: there is no such study, the target has one of this name, or one of them is used
            by a run now.
        MachineError: the target cannot be written; nothing of the study is in it.
    """
    if is_same(source, target) and is_there(source):
        raise UserError(f"{target}: is the database itself; name another one")
    with opened(source) as old:
        name = old.pick_study(study)
        old.load_study(name)  # refuses a false name
        _check_free(source)
        with exclusive(target), opened(target, create=True) as new:
            new.take_lease()
            if name in new.study_names() or new.ran(name):
                raise UserError(
                    f"{target}: has a study {name} already, and nothing was changed in it; name "
                    "another database"
                )
            return new.again(lambda: _copy(old, new, name, source))


def _check_free(source: Database) -> None:
    if not is_free(source):
        raise UserError(
            f"{source}: autotune is running on it, so that a copy would not be whole; wait for it"
        )


def _copy(old: Store, new: Store, name: str, source: Database) -> Copied:
    with new.storage.engine.begin() as c:
        work = _Work(old._reader, c, name)
        trials = work.copy_optuna()
        launches, requests = work.copy_autotune()
        _check_free(source)
    return Copied(name, trials, launches, requests)


class _Work:
    """Copies the rows of one study into a transaction.

    Args:
        reader: Reads the source.
        c: Has the transaction.
        name: Name of the study.
    """

    def __init__(self, reader: Reader, c: Connection, name: str) -> None:
        from optuna.storages._rdb import models

        from autotune.storage.tables import METADATA

        self._reader, self._c, self._name = reader, c, name
        self._optuna, self._autotune = models.BaseModel.metadata.tables, METADATA.tables

    def copy_optuna(self) -> int:
        """Copy Optuna's side; return the number of trials. A study that never ran has none."""
        found = self._reader.rows("SELECT * FROM studies WHERE study_name = :name", name=self._name)
        if not found:
            return 0
        old = found[0].pop("study_id")
        study = self._insert(self._optuna["studies"], found[0])
        trials: dict[int, int] = {}
        rows = self._reader.rows(
            "SELECT * FROM trials WHERE study_id = :study ORDER BY trial_id", study=old
        )
        for row in rows:
            was = row.pop("trial_id")
            trials[was] = self._insert(self._optuna["trials"], {**row, "study_id": study})
        for name, key in _OF_STUDY.items():
            rows = self._rows_of(name, key, "study_id = :study", old)
            self._insert_all(
                self._optuna[name],
                [{**_with_key(row, trials), "study_id": study} for row in rows],
            )
        for name, key in _OF_TRIAL.items():
            of = "trial_id IN (SELECT trial_id FROM trials WHERE study_id = :study)"
            rows = self._rows_of(name, key, of, old)
            self._insert_all(
                self._optuna[name],
                [{**_with_key(row, trials), "trial_id": trials[row["trial_id"]]} for row in rows],
            )
        return len(trials)

    def _rows_of(self, table: str, key: str, which: str, study: int) -> list[dict[str, Any]]:
        """Return rows of a table of Optuna in the order of their own key, which is left out."""
        query = f"SELECT * FROM {table} WHERE {which} ORDER BY {key}"  # noqa: S608 – our names
        rows = self._reader.rows(query, study=study)
        return [{k: v for k, v in row.items() if k != key} for row in rows]

    def copy_autotune(self) -> tuple[int, int]:
        """Copy autotune's side; return the numbers of launches and of requests."""
        verified = verification_name(self._name)
        names = self._name, load_sweep_name(self._name), break_even_name(self._name), verified
        self._insert_rows(StudyRow, self._of(StudyRow, "name", self._name))
        points: dict[int, int] = {}
        for name in names:
            for row in self._of(MapPointRow, "study", name, "ORDER BY id"):
                was = row.pop("id")
                points[was] = self._insert(self._autotune[MapPointRow.__tablename__], row)
        certificates: dict[int, int] = {}
        for row in self._of(CertificateRow, "study", self._name, "ORDER BY id"):
            was = row.pop("id")
            table = self._autotune[CertificateRow.__tablename__]
            certificates[was] = self._insert(table, row)
        launches, requests = 0, 0
        for name in names:
            for row in self._of(LaunchRow, "study", name, "ORDER BY planned_at"):
                row |= {"worker": None, "lease_epoch": None}  # those of the other database
                if name == verified and row["trial"] != NO_TRIAL:
                    row["trial"] = moved_launch(row["trial"], certificates)
                elif name != self._name and row["trial"] != NO_TRIAL:
                    row["trial"] = points[row["trial"]]
                self._insert_rows(LaunchRow, [row])
                launches += 1
                requests += self._copy_launch(row["launch_id"], points)
                answers = self._of(AnswerRow, "launch_id", row["launch_id"], "ORDER BY id")
                moved = [{**x, "certificate": certificates[x["certificate"]]} for x in answers]
                self._insert_rows(AnswerRow, moved)
        for name in names:
            self._insert_rows(EventRow, self._of(EventRow, "study", name, "ORDER BY id"))
        return launches, requests

    def _copy_launch(self, launch: str, points: Mapping[int, int]) -> int:
        """Copy what belongs to a launch; return the number of its requests."""
        for kind in _OF_LAUNCH:
            order = "ORDER BY id" if any(f.name == "id" for f in fields(kind)) else ""
            rows = self._of(kind, "launch_id", launch, order)
            if kind is RequestRow:
                requests = len(rows)
            self._insert_rows(kind, rows)
        loads = self._of(LoadRow, "launch_id", launch, "ORDER BY id")
        self._insert_rows(LoadRow, [{**x, "point": points[x["point"]]} for x in loads])
        return requests

    def _of(self, kind: type[Row], column: str, value: str, rest: str = "") -> list[dict[str, Any]]:
        """Return rows of a table of autotune as plain data."""
        found = self._reader.records(kind, f"WHERE {column} = :value {rest}", value=value)
        return [{f.name: getattr(row, f.name) for f in fields(kind)} for row in found]

    def _insert_rows(self, kind: type[Row], rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows of a table of autotune; the database numbers them, where it does so."""
        own = [f.name for f in fields(kind) if not f.init]
        left = [{k: v for k, v in row.items() if k not in own} for row in rows]
        self._insert_all(self._autotune[kind.__tablename__], left)

    def _insert(self, table: Table, row: Mapping[str, Any]) -> int:
        """Insert a row; return the number that the database gives it."""
        from sqlalchemy import insert

        made = self._c.execute(insert(table), next(_typed([row], table))).inserted_primary_key
        return int(next(iter(made or ())))

    def _insert_all(self, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        from sqlalchemy import insert

        if rows:
            self._c.execute(insert(table), list(_typed(rows, table)))


def _typed(rows: Sequence[Mapping[str, Any]], table: Table) -> Iterator[dict[str, Any]]:
    """Yield rows with times as SQLAlchemy wants them: SQLite keeps text."""
    from sqlalchemy import DateTime

    times = [c.name for c in table.columns if isinstance(c.type, DateTime)]
    for row in rows:
        found = {
            name: datetime.fromisoformat(row[name])
            for name in times
            if isinstance(row.get(name), str)
        }
        yield {**row, **found}


def _with_key(row: Mapping[str, Any], trials: Mapping[int, int]) -> dict[str, Any]:
    """Return a row whose key has a trial's id, if it has one, as the new database numbers it."""
    found = _TRIALS_KEY.fullmatch(str(row.get("key", "")))
    if found is None or int(found[2]) not in trials:
        return dict(row)
    return {**row, "key": f"{found[1]}{trials[int(found[2])]}{found[3]}"}
