"""`benchmarks/rehearsal_truth.py`: what it launches, with which acceptance, and how it resumes."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.engine.probe import UNKNOWN, VllmInfo
from autotune.study.files import LoadedStudy
from autotune.study.space import N, Point
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_a_rehearsed_server_plays_what_the_real_one_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rehearsal_truth as script

    seen: list[tuple[Any, bool, Any]] = []
    batches = []

    def served_in_turn(
        parts: list[tuple[LoadedStudy, Point]], _info: VllmInfo, _args: Namespace
    ) -> Iterator[list[Any]]:
        batches.append(len(parts))
        for study, point in parts:
            settings = study.spec.settings(point)
            rates = settings.get("speculative.synthetic_acceptance_rates")
            seen.append((point[N], settings.get("load_format") == "dummy", rates))
            n = point[N]
            assert isinstance(n, int)
            counted = {"drafts": 10 * n, "tokens_per_step": 1.5, "acceptance": [0.5] * n}
            rate = 90.0 + len(seen)
            yield [{"load": 1, "values": {"throughput": rate}, **counted}]

    monkeypatch.setattr(script, "served_in_turn", served_in_turn)
    monkeypatch.setattr(script, "probe", lambda _server: replace(UNKNOWN, device="cuda"))
    args = Namespace(
        study="demo-cpu",
        out=tmp_path / "found.json",
        n=[0, 3],
        mnbt=256,
        rounds=2,
        most=3,
        together=4,
    )
    script.measure(args)
    args.most = 100
    found = script.measure(args)
    played = [0.5, 0.5, 0.5]
    real, random = [(0, False, None), (3, False, None)], [(0, True, None), (3, True, played)]
    assert seen == [*real, *random, random[0], real[0], random[1], real[1]]
    assert batches == [2, 1, 4, 1]  # no rehearsed one before its real one has counted
    assert json.loads(args.out.read_text()) == found
    assert [(x["n"], x["rounds"]) for x in found["compared"]] == [(0, 2), (3, 2)]
    assert len([*script.table(found)]) == 4
    monkeypatch.setattr(script, "probe", lambda _server: replace(UNKNOWN, device="cpu"))
    with pytest.raises(SystemExit, match="only --n 0"):
        script.measure(args)
