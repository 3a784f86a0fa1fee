"""Early ending compares within a class of machines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from autotune.api import _Listener
from autotune.storage.store import opened
from autotune.study.space import MNBT, N
from autotune.tuning.comparable import MachineClass, class_of_slot
from autotune.tuning.trial_log import TrialLog
from tests.tuning.test_reuse import BASELINE, MACHINE, add_trial, begin, prepared_study

GPU = {"name": "H200", "memory_mib": 143771, "driver": "550.1"}


def of(
    gpus: list[Mapping[str, Any]],
    vllm: str | None = "0.33.0",
    weights: Mapping[str, str] | None = None,
    cores: int = 8,
) -> MachineClass:
    machine = {"cpu": "EPYC", "cores": cores, "gpus": gpus}
    return MachineClass.of(machine, vllm, weights or {})


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (of([GPU]), of([GPU, GPU]), None),  # the flags say how many a server has
        (of([GPU]), of([GPU | {"name": "H100"}]), "hardware H200, not H100"),
        (of([GPU]), of([GPU | {"driver": "560.2"}]), "GPU driver 550.1, not 560.2"),
        (of([GPU]), of([]), "hardware H200, not EPYC, 8 cores"),
        (of([]), of([], cores=4), "hardware EPYC, 8 cores, not EPYC, 4 cores"),
        (of([GPU]), of([GPU], "0.33.0+cu130"), None),
        (of([GPU]), of([GPU], "0.32.0"), "vLLM 0.33.0, not 0.32.0"),
        (of([GPU]), of([GPU], None), None),
        (of([GPU], weights={"target": "a"}), of([GPU], weights={"draft": "b"}), None),
        (
            of([GPU], weights={"target": "a", "draft": "c"}),
            of([GPU], weights={"target": "b", "draft": "c"}),
            "weights of the target",
        ),
    ],
)
def test_classes(one: MachineClass, other: MachineClass, why: str | None) -> None:
    assert one.other(other) == why
    assert (other.other(one) is None) == (why is None)


def test_a_rival_of_another_class_ends_no_measurement(tmp_path: Path) -> None:
    prepared = prepared_study(tmp_path)
    with opened(tmp_path / "autotune.db", create=True) as store:
        begin(store, prepared)
        add_trial(store, prepared, BASELINE, rate=50.0)
        here = add_trial(store, prepared, {N: 3, MNBT: 512}, rate=100.0)
        there = {**MACHINE, "cpu": "another processor"}
        best = add_trial(store, prepared, {N: 7, MNBT: 64}, rate=200.0, machine=there)
        log = TrialLog(prepared, store, _Listener(None, None))
        log.open(prepared)
        assert [r.trial for r in log.rivals()] == [best]
        like = class_of_slot(prepared, MACHINE, (), 0)
        # the front is of all trials: what is better is of no use here
        assert [r.trial for r in log.rivals(like)] == []
        assert [r.trial for r in log.rivals(class_of_slot(prepared, there, (), 0))] == [best]
        assert here != best
