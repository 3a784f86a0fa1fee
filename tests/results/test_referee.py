"""Which ways a confirmation launches, what it says, and how often it is right."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from autotune.engine.adaptive_verification import verified, why_no_adaptive
from autotune.engine.draft_schedule import ranges_of, schedule_problem
from autotune.results.load_map_ways import (
    MapWay,
    WayKind,
    best_rivals,
    confirmation,
    schedule_text,
    way_server,
)
from autotune.results.referee import (
    crossing_text,
    ranges_text,
    referee,
    referee_json,
    referee_lines,
    referee_texts,
)
from autotune.stats.crossover import Rate, by_load
from autotune.stats.referee import Crossing
from autotune.study.schema import ServerSpec
from tests.paths import ROOT
from tests.stats.test_referee import TABLE, launches

SCHEDULED = MapWay(7, schedule=((1, 7, 7), (8, 16, 0)))
ADAPTIVE = MapWay(7, adaptive=True)


def row(*values: float, loads: tuple[int, ...] = (1, 4, 16)) -> dict[int, Rate]:
    return {load: Rate(v, 0.01) for load, v in zip(loads, values, strict=True)}


RATES = {
    MapWay(0): row(50, 170, 400),
    MapWay(1): row(57, 175, 360),
    MapWay(3): row(63, 162, 270),
    SCHEDULED: row(62, 175, 390),
    ADAPTIVE: row(60, 178, 410),
    MapWay(15, adaptive=True): row(55, 150, 300),
}
AT = by_load({way.n: x for way, x in RATES.items() if way.kind is WayKind.FIXED}, None)


def test_a_way_is_named_by_what_makes_it_different() -> None:
    assert [w.name for w in RATES] == [
        "n = 0",
        "n = 1",
        "n = 3",
        "schedule 1:7,8:0",
        "adaptive n = 7",
        "adaptive n = 15",
    ]
    assert MapWay(3, arm="eagle3").name == "eagle3 n = 3"
    assert MapWay(3, arm="eagle3").kind is WayKind.ARM
    assert len(MapWay(3, arm="a" * 40).name) == 26
    assert [w.biased for w in RATES] == [False] * 3 + [True] * 3
    long = ranges_of([(i, i % 3) for i in range(1, 30)], 64)
    assert len(MapWay(2, schedule=long).name) == 26
    assert schedule_text(ranges_of([(1, 7), (8, 3)], 16)) == "1:7,8:3"
    assert schedule_problem([list(x) for x in long]) is None


def test_the_server_of_a_way() -> None:
    server = ServerSpec.model_validate(
        {"model": "m", "speculative": {"method": "eagle3", "model": "d"}}
    )
    assert way_server(server, MapWay(3)) == server
    given = way_server(server, ADAPTIVE).draft_settings({"num_speculative_tokens": 7})
    assert given["enable_adaptive_verification"] is True
    given = way_server(server, SCHEDULED).draft_settings({"num_speculative_tokens": 7})
    assert given["num_speculative_tokens_per_batch_size"] == [[1, 7, 7], [8, 16, 0]]
    with pytest.raises(ValueError, match="needs a draft"):
        verified(ServerSpec(model="m"))


def test_which_versions_have_adaptive_verification() -> None:
    assert "unknown" in str(why_no_adaptive(None))
    assert "0.27.1 has no adaptive verification" in str(why_no_adaptive(None, "0.27.1"))
    for version in ("0.28.0", "0.32.0+cpu", "0.33.0", "1.0"):
        assert why_no_adaptive(version) is None


def test_the_fastest_of_each_kind_is_confirmed() -> None:
    assert best_rivals(RATES, [1, 4, 16]) == [ADAPTIVE, SCHEDULED]
    assert best_rivals({**RATES, ADAPTIVE: row(60, 178, loads=(1, 4))}, [1, 4, 16]) == [
        SCHEDULED,
        MapWay(15, adaptive=True),
    ]
    plan = confirmation(RATES, AT, 12)
    assert plan is not None
    # n = 1 is the best over all loads, 3 and 0 are certainly better at the ends
    assert plan.ways == (MapWay(1), MapWay(3), MapWay(0), ADAPTIVE, SCHEDULED)
    assert plan.fixed == {1: MapWay(3), 4: MapWay(1), 16: MapWay(0)}
    assert plan.left_out == ()
    four = confirmation(RATES, AT, 4)
    assert four is not None
    assert four.ways == (MapWay(1), ADAPTIVE)
    assert four.left_out == (SCHEDULED,)
    assert set(four.fixed) == {4}  # n = 1 is no match at the other loads
    for launched in range(4, 30):
        found = confirmation(RATES, AT, launched)
        assert found is not None
        assert 2 * len(found.ways) <= launched
        assert len(set(found.ways)) == len(found.ways)
    alone = {way: x for way, x in RATES.items() if way.kind is WayKind.FIXED}
    assert confirmation(alone, AT, 8) is None
    assert confirmation({ADAPTIVE: RATES[ADAPTIVE]}, [], 8) is None


def test_only_the_confirmation_counts_where_there_is_one() -> None:
    # the sweep flattered the rival
    again = {MapWay(1): [row(57, 175, 360)] * 2, ADAPTIVE: [row(50, 160, 330)] * 2}
    found = referee(RATES, again, AT, None)
    assert found is not None
    assert found.confirmed == (4,)
    by_load_and_way = {(x.load, x.rival): x for x in found.compared}
    assert by_load_and_way[4, ADAPTIVE].ratio.value == pytest.approx(160 / 175)
    assert by_load_and_way[4, ADAPTIVE].launches == (2, 2)
    assert (4, SCHEDULED) not in by_load_and_way
    assert by_load_and_way[16, ADAPTIVE].launches == (1, 1)
    assert by_load_and_way[16, ADAPTIVE].fixed == MapWay(0)
    assert found.left_out == (SCHEDULED,)
    assert found.overall_confirmed
    assert found.best is None
    text = " ".join(referee_texts(found))
    assert "Confirmed by 2 further launches" in text
    assert "By single launches only: concurrency 1, 16." in text
    assert "Not confirmed, and left out here: schedule 1:7,8:0." in text
    assert found.passing == {}
    assert "Adaptive n = 7 is certainly faster at no concurrency, certainly slower at 1" in text
    single = referee(RATES, {}, AT, None)
    assert single is not None
    assert single.confirmed == ()
    assert "Not confirmed: each way was launched once" in " ".join(referee_texts(single))
    assert referee({MapWay(0): RATES[MapWay(0)]}, {}, AT, None) is None
    assert referee_json(None) is None


def test_a_rival_whose_launches_to_confirm_failed_is_not_served() -> None:
    fast = {**RATES, ADAPTIVE: row(500, 1600, 3300)}
    single = referee(fast, {}, AT, None)
    assert single is not None
    assert single.best is not None
    assert set(single.serve.values()) == {ADAPTIVE}
    fixed = {MapWay(1): [row(57, 175, 360)]}
    found = referee(fast, fixed, AT, None, {ADAPTIVE: ["oom: no memory"]})
    assert found is not None
    assert found.best is not None
    assert found.best.rival == SCHEDULED
    assert ADAPTIVE in {x.rival for x in found.overall_faster}
    assert ADAPTIVE not in found.serve.values()
    assert set(found.serve) == {x.load for x in AT}
    text = " ".join(referee_texts(found))
    assert "adaptive n = 7 failed once: oom: no memory. It is not recommended." in text
    # one that failed once and ran once is judged by the launch that ran
    ran = {**fixed, ADAPTIVE: [row(500, 1600, 3300)]}
    partly = referee(fast, ran, AT, None, {ADAPTIVE: ["oom: no memory"]})
    assert partly is not None
    assert partly.best is not None
    text = " ".join(referee_texts(partly))
    assert "Confirmed by 1 further launch of each way" in text
    assert "failed once: oom: no memory." in text
    assert "not recommended" not in text


def test_the_verdicts_fit_a_terminal_and_are_plain_data() -> None:
    runs = {
        MapWay(0): launches(TABLE["0"], 3, 0.004, 0),
        MapWay(7): launches(TABLE["7"], 3, 0.004, 1),
        ADAPTIVE: launches(TABLE["adaptive"], 3, 0.004, 2),
        MapWay(15, arm="a very long name of an arm"): launches(TABLE["7"], 3, 0.004, 3),
    }
    rates = {way: x[0] for way, x in runs.items()}
    at = by_load({0: rates[MapWay(0)], 7: rates[MapWay(7)]}, None)
    found = referee(rates, runs, at, None)
    assert found is not None
    lines = referee_lines(found)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "certainly faster at 64, 128, 256, certainly slower at 4, 8, 16, 32." in text
    assert "4 to 32: n = 7; 64 to 256: adaptive n = 7." in text
    plain = json.loads(json.dumps(referee_json(found)))
    assert plain["serve"]["256"]["kind"] == "adaptive"
    assert {x["verdict"] for x in plain["loads"]} == {"rival", "fixed", "tie"}
    assert plain["only_fixed_draft_n"] == 7


def test_an_open_interval_is_said() -> None:
    assert crossing_text(Crossing(44.3, 40.0, 50.2, True)) == "44 [40, 50]"
    assert crossing_text(Crossing(5.43, 3.91, None, True)) == "5.4 [3.9, …]"
    assert "wider than what was measured" in crossing_text(Crossing(44.3, None, None, True))
    with pytest.raises(ValueError, match="no crossover"):
        crossing_text(Crossing(None, None, None, True))
    served = {1: MapWay(3), 4: MapWay(3), 16: MapWay(0), 64: MapWay(3)}
    assert ranges_text(served) == "1 to 4: n = 3; 16: n = 0; 64: n = 3"


# -- the simulation of benchmarks/referee.py -------------------------------------------------------


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import referee as simulation

    return simulation


def test_the_simulation_gives_what_its_committed_figures_say(bench: Any) -> None:
    committed = json.loads((ROOT / "benchmarks/data/referee.json").read_text())
    by_name = {x["name"]: x for x in committed["cells"]}
    assert list(by_name) == [cell.name for cell in bench.cells()]
    [cell] = [c for c in bench.cells() if (c.between, c.launches, c.rivals) == (0.03, 8, 1)][:1]
    found, there = bench.measured(cell, 60, seed=7), by_name[cell.name]
    for key in ("coverage", "wrong_at_a_load", "ten_percent_found", "crossover_coverage"):
        assert found[key] == pytest.approx(there[key], abs=0.06), key
    # what is promised: a rival of equal speed is called faster at a load in at most 2.5 %
    for x in committed["cells"]:
        assert x["coverage"] >= 0.94, x["name"]
        assert x["wrong_at_a_load"] <= 0.03, x["name"]
        assert x["crossover_coverage"] >= 0.94, x["name"]


def test_the_published_table_is_that_of_the_committed_figures(bench: Any) -> None:
    committed = json.loads((ROOT / "benchmarks/data/referee.json").read_text())
    text = (ROOT / "docs/statistics.md").read_text()
    lines = bench.table(committed["cells"])
    assert "\n".join(lines) in text
    assert all(line.count("|") == lines[0].count("|") for line in lines)


@pytest.mark.parametrize(
    ("starts", "words"),
    [
        ([], "must be 1"),
        ([(2, 3)], "must be 1"),
        ([(1, 3), (1, 2)], "ascend"),
        ([(1, -1)], "0 or more"),
        ([(1, 0), (4, 0)], "at least 1"),
        ([(1, 3), (17, 2)], "never reached"),
    ],
)
def test_a_schedule_that_is_none(starts: list[tuple[int, int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ranges_of(starts, 16)


def test_ranges_have_no_gap() -> None:
    ranges = ranges_of([(1, 7), (3, 0), (8, 3)], 16)
    assert ranges == ((1, 2, 7), (3, 7, 0), (8, 16, 3))
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(ranges))
