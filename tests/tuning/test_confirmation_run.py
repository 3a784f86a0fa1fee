"""A confirmation in steps with real launches, interrupted after each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.api import _Listener
from autotune.results.views import TrialView
from autotune.storage.records import attrs_of
from autotune.storage.store import opened
from autotune.study.files import load_study
from autotune.tuning.prepare import prepare
from autotune.tuning.progress import At
from autotune.tuning.study_run import run_study
from autotune.tuning.supervise import StopReason
from tests.studies import write_study

pytestmark = pytest.mark.double

HELD, TRIALS = 8, 16


class Impatient(_Listener):
    """Presses Ctrl-C after each launch that confirms."""

    def trial(self, at: At, view: TrialView) -> None:
        super().trial(at, view)
        if view.confirms is not None:
            raise KeyboardInterrupt


def test_a_confirmation_is_interrupted_after_each_launch(tmp_path: Path) -> None:
    path = write_study(
        tmp_path,
        space__num_speculative_tokens__high=3,
        space__max_num_batched_tokens__high=32,
        search__method="grid",
        budget={"confirm": HELD},
    )
    database = tmp_path / "autotune.db"

    def run() -> StopReason:
        shown = Impatient(None, None)
        return run_study(
            prepare(load_study(str(path)), shown),
            database=database,
            trials=TRIALS,
            seed=0,
            timeout_s=None,
            progress=shown,
        )

    interrupted = 0
    while True:
        try:
            run()
        except KeyboardInterrupt:
            interrupted += 1
            continue
        break
    assert interrupted == HELD
    with opened(database) as store:
        study = store.optuna_study("double")
        confirms = [attrs_of(t).confirms for t in study.get_trials()][-HELD:]
        kept = study.user_attrs
    assert kept[f"confirmation_{TRIALS}"] == confirms
    assert kept[f"confirmation_steps_{TRIALS}"]["held"] == HELD
    first, rest = confirms[:6], confirms[6:]
    assert first == first[::-1]
    assert len(set(first)) == 3
    assert len(set(rest)) == 2
    assert set(rest) <= set(first)
