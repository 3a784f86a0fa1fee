"""Prelaunched servers of several slots, over the server double."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.studies import (
    UNENDED,
    autotune,
    query,
    trials,
)
from tests.tuning.test_parallel import check_whole, slots_of, slots_of_blocks, write
from tests.tuning.test_prelaunch import events

pytestmark = [
    pytest.mark.double,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two slots need two cores"),
]


def test_each_slot_prelaunches_what_it_measures(tmp_path: Path) -> None:
    study = write(tmp_path, server__ahead=3, budget={"confirm": 4})
    done = autotune("run", study, "--trials", "16", "--parallel", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path, 16)
    slots = slots_of(tmp_path)
    print(slots, Counter(slots.values()), slots_of_blocks(tmp_path))
    for r in query(tmp_path, "select trial, what, round(at - (select min(at) from autotune_events), 2), launch_id from autotune_events order by at"):
        print(r)
    assert 0
