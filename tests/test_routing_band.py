"""`benchmarks/routing_band.py`: what it launches, how it resumes, and what it makes of it."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.engine.probe import UNKNOWN
from autotune.engine.rehearsal import rehearsing
from autotune.errors import UserError
from autotune.study.files import LoadedStudy
from autotune.study.rehearsal import ROUTING_VARIABLE
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def options(tmp_path: Path, **changes: object) -> Namespace:
    given: dict[str, object] = {
        "study": "gemma-4-26b-h200-rehearsal",
        "out": tmp_path / "found.json",
        "n": [0, 13],
        "routing": ["collapsed", "uniform"],
        "mnbt": 4096,
        "rounds": 2,
        "most": 3,
        "together": 2,
        "load": None,
        "answers": None,
    }
    return Namespace(**(given | changes))


def test_it_launches_in_turn_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import routing_band as script

    groups: list[list[Any]] = []

    def group(
        machines: dict[str, LoadedStudy], _study: LoadedStudy, todo: Sequence[Any], _args: Namespace
    ) -> list[dict[str, Any]]:
        groups.append(list(todo))
        rows = []
        for i, n, routing in todo:
            env = rehearsing(machines[routing].spec.server, {})
            assert env[ROUTING_VARIABLE] == f"autotune_{routing}"
            step = 4.0 if n == 0 else 5.0 if routing == "collapsed" else 8.0
            tokens = 4.4 if n else 1.0
            rows.append(
                {
                    **{"round": i, "n": n, "routing": routing, "load": 1, "step_ms": step},
                    **{"tokens_per_step": tokens, "values": {"throughput": 1000 * tokens / step}},
                }
            )
        return rows

    monkeypatch.setattr(script, "group", group)
    monkeypatch.setattr(script, "Machine", lambda study, *_: study)
    info = replace(UNKNOWN, device="cuda", version="0.26.0")
    monkeypatch.setattr(script, "probe", lambda _server: info)
    args = options(tmp_path)
    script.measure(args)
    args.most = 100
    found = script.measure(args)
    first = [(0, n, x) for n in (0, 13) for x in ("collapsed", "uniform")]
    second = [(1, n, x) for _, n, x in reversed(first)]
    assert [x for group in groups for x in group] == [*first, *second]
    assert max(map(len, groups)) == 2
    assert json.loads(args.out.read_text()) == json.loads(json.dumps(found))
    [band] = found["bands"]
    assert (band["low_of"], band["high_of"]) == ("uniform", "collapsed")
    assert (band["low"], band["high"]) == pytest.approx((2.2, 3.52))
    touched = {(x["n"], x["routing"]): x["experts"] for x in found["summary"]}
    assert touched[13, "collapsed"] == 8
    assert touched[13, "uniform"] == pytest.approx(76.1, abs=0.1)
    text = "\n".join(script.table(found))
    assert "| 13 | uniform | 2 | 76 | 8.00 | 4.40 | 550 | 2.20 [2.20, 2.20] |" in text
    assert "n = 13: 2.20 (uniform) to 3.52 (collapsed) times the tok/s of n = 0." in text
    one = script.summary(found["launches"][:4], (128, 8))  # one round has no interval
    assert "| 2.20 |" in "\n".join(script.table({"summary": one, "bands": script.bands(one)}))


def test_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import routing_band as script

    info = replace(UNKNOWN, device="cuda", version="0.26.0")
    monkeypatch.setattr(script, "probe", lambda _server: info)
    with pytest.raises(UserError, match="is no rehearsal"):
        script.measure(options(tmp_path, study="demo-cpu"))
    with pytest.raises(UserError, match="--together: needs kv-cache-memory-bytes"):
        script.measure(options(tmp_path, study="gemma-4-26b-rehearsal"))
    log = tmp_path / "log"
    server = SimpleNamespace(log_path=log)
    log.write_text("Simulating MoE routing using a autotune_uniform strategy.")
    script.check_routed(server, "uniform")
    log.write_text("")
    script.check_routed(server, "weights")
    with pytest.raises(UserError, match="does not say that it routes"):
        script.check_routed(server, "uniform")


def test_a_step_is_the_time_between_two_tokens_times_tokens_a_step() -> None:
    import routing_band as script

    sample = SimpleNamespace(status="ok", start=1.0, end=2.1, ttft=0.1, output_tokens=101)
    failed = SimpleNamespace(status="error", start=0.0, end=9.0, ttft=None, output_tokens=None)
    assert script.step_ms([sample, failed], 4.0) == pytest.approx(40.0)
