"""Attributes of a trial, written in one transaction; Optuna takes one for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:  # a database is read without them
    from optuna.storages import RDBStorage
    from sqlalchemy.orm import Session


def write_attrs(
    session: Session, storage: RDBStorage, trial_id: int, attrs: Mapping[str, object]
) -> None:
    """Write user attributes of a trial as ``RDBStorage.set_trial_user_attr`` does; do not commit.

    Args:
        session: Has the transaction.
        storage: Optuna's storage in the same database.
        trial_id: Optuna's id of the trial, which has not ended.
        attrs: What JSON can hold, by key.
    """
    from optuna.storages._rdb.models import TrialModel, TrialUserAttributeModel
    from sqlalchemy.dialects import postgresql, sqlite

    trial = TrialModel.find_or_raise_by_id(trial_id, session)
    storage.check_trial_is_updatable(trial_id, cast("Any", trial.state))
    kind = postgresql if storage.engine.dialect.name == "postgresql" else sqlite
    rows = [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        for key, value in attrs.items()
    ]
    statement = kind.insert(TrialUserAttributeModel).values(rows)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["trial_id", "key"],
            set_={"value_json": statement.excluded.value_json},
        )
    )
