"""The end of a trial, in one transaction; Optuna takes one for each attribute and for the end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:  # a database is read without them
    from optuna.storages import RDBStorage
    from sqlalchemy.orm import Session


def write_end(
    session: Session,
    storage: RDBStorage,
    trial_id: int,
    attrs: Mapping[str, object],
    values: Sequence[float] | None,
) -> None:
    """End a trial as Optuna's ``tell`` does, with user attributes; do not commit.

    Args:
        session: Has the transaction.
        storage: Optuna's storage in the same database.
        trial_id: Optuna's id of the trial, which has not ended.
        attrs: What JSON can hold, by key.
        values: Value of each objective; None: it failed.

    Raises:
        ValueError: a value is not a number.
    """
    from optuna.storages._rdb.models import (
        TrialModel,
        TrialUserAttributeModel,
        TrialValueModel,
    )
    from optuna.trial import TrialState
    from sqlalchemy.dialects import postgresql, sqlite

    if values is not None and any(map(math.isnan, values)):
        raise ValueError("a value of an objective is not a number")
    trial = TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
    storage.check_trial_is_updatable(trial_id, cast("TrialState", trial.state))
    if attrs:
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
    for objective, value in enumerate(values or ()):
        stored, of = TrialValueModel.value_to_stored_repr(float(value))
        session.add(
            TrialValueModel(trial_id=trial_id, objective=objective, value=stored, value_type=of)
        )
    trial.state = TrialState.FAIL if values is None else TrialState.COMPLETE
    trial.datetime_complete = datetime.now()
