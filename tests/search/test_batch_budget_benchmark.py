"""`benchmarks/batch_budget.py`: its worlds, its replays and its committed table."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from autotune.study.space import MNBT, N
from tests.paths import ROOT

DATA = ROOT / "benchmarks/data/batch_budget.json"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import batch_budget

    return batch_budget


def test_the_world_is_the_table_that_was_measured(bench: Any) -> None:
    w = bench.world("gemma-c1")
    assert w.truth({N: 13, MNBT: 4096}) == pytest.approx((678, 1679))
    assert w.truth({N: 0, MNBT: 2048})[0] == pytest.approx(249, abs=0.5)
    rates = {mnbt: w.truth({N: 9, MNBT: mnbt}) for mnbt in (2048, 16384)}
    assert rates[2048] == rates[16384]
    assert len({w.alike.certain(q)[N] for q in w.points}) == 16
    assert {w.alike.certain(q)[MNBT] for q in w.points} == {2048}


def test_where_mnbt_binds_for_large_n_only_it_stays_a_choice(bench: Any) -> None:
    w = bench.world("gemma-12")
    for q in w.points:
        alone = int(q[N]) >= 12 and q[MNBT] == 2048
        smallest = 4096 if int(q[N]) >= 12 and not alone else 2048
        assert w.alike.certain(q)[MNBT] == smallest
    assert w.truth({N: 15, MNBT: 4096})[0] > 1.1 * w.truth({N: 15, MNBT: 2048})[0]


def test_a_replay_ends_and_judges_by_the_truth(bench: Any) -> None:
    w = bench.world("gemma-c1")
    new = bench.replay(w, 3, new=True)
    assert new == bench.replay(w, 3, new=True)
    assert new.launches >= 8
    assert 0 <= new.missing < 0.2
    assert 0 <= new.confirmed < 0.1


def test_the_committed_replays_keep_what_the_docs_say(bench: Any) -> None:
    worlds = json.loads(DATA.read_text())["worlds"]
    for name in ("gemma-c1", "gemma-c1-likely", "gemma-slow", "gemma-slow-likely"):
        old, new = (worlds[name][way] for way in bench.WAYS)
        assert worlds[name]["seeds"] == len(old) == len(new) == 60
        assert np.median([r["launches"] for r in new]) <= 8
        for key in ("missing", "at_end", "confirmed"):
            medians = [np.median([r[key] for r in way]) for way in (old, new)]
            assert medians[1] <= medians[0] + 1e-9
    for name, found in worlds.items():
        difference = [
            b["confirmed"] - a["confirmed"] for a, b in zip(found["old"], found["new"], strict=True)
        ]
        error = np.std(difference, ddof=1) / len(difference) ** 0.5
        assert np.mean(difference) <= 2 * error, name
    text = list(bench.lines(worlds))
    assert max(map(len, text)) <= 100
    docs = (ROOT / "docs/search.md").read_text()
    for name, found in worlds.items():
        (row,) = (
            line for line in docs.splitlines() if line.startswith(f"| {name} | {found['seeds']} |")
        )
        for way in bench.WAYS:
            launches = [r["launches"] for r in found[way]]
            assert f"{np.median(launches):.0f} ({np.mean(launches):.1f})" in row
