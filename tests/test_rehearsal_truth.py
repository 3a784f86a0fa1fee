"""`benchmarks/rehearsal_truth.py`: what it launches, with which acceptance, and how it resumes."""

from __future__ import annotations

import json
from argparse import Namespace
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

    def launch(study: LoadedStudy, _info: VllmInfo, point: Point, _args: Namespace) -> list[Any]:
        settings = study.spec.settings(point)
        rates = settings.get("speculative.synthetic_acceptance_rates")
        seen.append((point[N], settings.get("load_format") == "dummy", rates))
        n = point[N]
        assert isinstance(n, int)
        counted = {"drafts": 10 * n, "tokens_per_step": 1.5, "acceptance": [0.5] * n}
        rate = 90.0 + len(seen)
        return [{"load": 1, "values": {"throughput": rate}, **counted}]

    monkeypatch.setattr(script, "launch", launch)
    monkeypatch.setattr(script, "probe", lambda _server: replace(UNKNOWN, device="cuda"))
    args = Namespace(
        study="demo-cpu", out=tmp_path / "found.json", n=[0, 3], mnbt=256, rounds=2, most=3
    )
    script.measure(args)
    args.most = 100
    found = script.measure(args)
    played = [0.5, 0.5, 0.5]
    first = [(0, False, None), (0, True, None), (3, False, None), (3, True, played)]
    assert seen == [*first, first[1], first[0], first[3], first[2]]
    assert json.loads(args.out.read_text()) == found
    assert [(x["n"], x["rounds"]) for x in found["compared"]] == [(0, 2), (3, 2)]
    assert len([*script.table(found)]) == 4
    monkeypatch.setattr(script, "probe", lambda _server: replace(UNKNOWN, device="cpu"))
    with pytest.raises(SystemExit, match="only --n 0"):
        script.measure(args)
