"""The replay benchmark of `benchmarks/search.py`: its worlds, its figures, every strategy once."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.search.acceptance import Prediction, SpeculationLaunch
from autotune.study.space import MNBT, ChoiceParam, IntParam, N, Pow2Param
from tests.paths import ROOT

CHEAP, OURS = ("random", "grid", "shuffled", "sweep"), ("ours", "ours-4", "ours-8")
STRATEGIES = (*CHEAP, "tpe", "nsga2", "gp", *OURS)


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture
def bench() -> Any:
    import search

    return search


@pytest.fixture
def replays() -> Any:
    import search_replay

    return search_replay


@pytest.fixture
def tables() -> Any:
    import search_table

    return search_table


@pytest.fixture
def figure() -> Any:
    import search_figure

    return search_figure


@pytest.fixture
def surfaces() -> Any:
    import surfaces

    return surfaces


def _records(bench: Any, *strategies: str, seeds: int = 2, most: int = 6) -> list[dict[str, Any]]:
    return list(bench.run(["gen-kernel"], strategies, range(seeds), most=most))


def test_all_strategies_are_replayed_and_shown(bench: Any) -> None:
    found = _records(bench, *STRATEGIES)
    assert Counter(r["strategy"] for r in found) == dict.fromkeys(STRATEGIES, 2)
    for r in json.loads(json.dumps(found)):
        assert r["shares"] == sorted(r["shares"])
        assert r["reached"] is None or r["shares"][r["reached"] - 1] >= 0.99
        assert len(r["shares"]) <= r["most"]
        assert r["strategy"] in (*CHEAP, *OURS) or r["most"] == 6
        assert (r["end"] is None) == (r["missing"] is None) == (r["short"] is None)
    lines = list(bench.table({"new": found}))
    head, _, *rows = lines[: lines.index("")]
    assert [f"99 %: {s}" in head for s in ("gp", "tpe", "sweep", "ours")] == [True] * 3 + [False]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| gen-kernel", "3 %", batch] for batch in ("1", "4", "8")
    ]
    assert all(line.count("|") == head.count("|") for line in rows)


def test_the_curves_of_all_strategies_are_drawn(bench: Any, figure: Any) -> None:
    found = _records(bench, "random", "ours")
    assert {t.name for t in figure.figure(found).data if t.name} == {"random", "ours"}


def test_the_same_seed_gives_the_same_replay(bench: Any) -> None:
    world = bench.world("gen-8")
    one, two = (bench.replay(world, "ours", 3, 7) for _ in range(2))
    assert one.shares == two.shares
    assert bench.replay(world, "ours", 4, 7).shares != one.shares


def test_a_batch_begins_as_one_launch_after_the_other_does(bench: Any) -> None:
    world = bench.world("gen-8")
    one, four = (bench.replay(world, strategy, 3, 12) for strategy in ("ours", "ours-4"))
    assert one.shares[:4] == four.shares[:4]  # the seeds, and the first launch that was proposed
    assert one.shares != four.shares
    assert four.forbidden[-1] == 0


def test_a_search_ends_itself_and_goes_on_to_its_last_launch(bench: Any) -> None:
    """What is judged at its end is what it had then, not what `--all-trials` would add."""
    world = bench.world("two-peaks")
    found = bench.replay(world, "ours", 0, 36, enough=2.0)
    assert len(found.shares) == 36
    assert found.end is not None
    assert found.end < 36
    assert found.missing == 1 - found.shares[found.end - 1]
    assert found.short is not None
    assert min(found.short) >= 0
    assert max(found.short) < 0.5


@pytest.mark.parametrize("strategy", ["ours", "ours-4"])
def test_no_search_of_a_study_has_more_launches_than_it_may(bench: Any, strategy: str) -> None:
    world = replace(bench.world("gen-4d"), sigma=0.3)  # so noisy that it does not converge
    found = bench.replay(world, strategy, 0, 34)
    assert found.end is not None
    assert found.end <= 32


def test_a_replay_of_a_search_lasts_to_its_end_at_least(bench: Any) -> None:
    """Else a lucky search that found the front at once would have no end to be judged at."""
    found = bench.replay(bench.world("gen-1"), "ours", 0, 40)
    assert found.reached == 2
    assert found.end is not None
    assert found.end >= 8
    assert len(found.shares) == found.end


def test_a_study_says_that_nothing_differs_where_nothing_does(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = [bench.replay(bench.world("flat"), "ours", seed, 33).says for seed in range(5)]
    bounds = [says["differs"] for says in flat if says["differs"]]
    assert len(bounds) >= 3
    assert 0 < np.min(bounds) <= np.max(bounds) <= 0.25
    assert bench.replay(bench.world("two-peaks"), "ours", 0, 33).says["differs"] == []
    # of older code, which had no such sentence
    monkeypatch.setitem(sys.modules, "autotune.results.flatness", None)
    assert bench.replay(bench.world("flat"), "ours", 0, 7).says is None


def test_a_stopped_run_goes_on_and_slices_are_shown_together(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(*args: object) -> str:
        monkeypatch.setattr(sys, "argv", ["search.py", *map(str, args)])
        bench.main()
        return capsys.readouterr().out

    def write(path: Path, *args: object) -> list[dict[str, Any]]:
        main("--out", path, "--worlds", "flat", "--most", 5, "--jobs", 1, *args)
        return [json.loads(x) for x in path.read_text().splitlines()]

    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    assert [r["seed"] for r in write(one, "--seeds", 2)] == [0, 1]
    whole = one.read_text()
    one.write_text(whole[: whole.index("\n") + 30])  # killed in the second line
    with one.open("a") as file:
        file.write("\n")
    assert len(bench.read([one])["new"]) == 1
    write(other, "--seeds", 3, "--strategies", "ours", "random", "--sigma", 0.03, 0.1)
    shown = main("--show", one, other, "--old", other, "--pack", tmp_path / "all.json")
    assert shown == main("--show", tmp_path / "all.json")
    assert "| flat | 10 % | 1 |" in shown
    assert "new, ours: replays 3" in shown
    assert "new, random: replays 3" in shown


def test_the_committed_replays_keep_what_the_docs_say(tables: Any) -> None:
    found = tables.read([ROOT / "benchmarks/data/search.json"])
    shown = [line for line in tables.table(found) if line.startswith("| ")]
    docs = (ROOT / "docs/search.md").read_text().splitlines()
    assert len(shown) > 90
    assert set(shown[1:]) <= set(docs)
    at_3 = [r for r in found["new"] if r["sigma"] == 0.03]
    for world in ("two-peaks", "crash-above-7"):
        for strategy in OURS:
            own = [r for r in at_3 if (r["world"], r["strategy"]) == (world, strategy)]
            assert len(own) == 60
            assert np.median([r["missing"] for r in own]) <= 0.02
    flat = [r for r in at_3 if r["world"] == "flat" and r["strategy"] in OURS]
    assert np.mean([r["end"] <= 10 and bool(r["says"]["differs"]) for r in flat]) >= 0.9


def test_old_and_new_are_compared_seed_by_seed(tables: Any) -> None:
    def rows(*reached: int | None) -> dict[int, dict[str, Any]]:
        return {s: {"most": 40, "reached": x} for s, x in enumerate(reached)}

    old, new = rows(10, 20, None), rows(8, 22, 34, 1)
    assert tables.difference(old, new, tables._capped) == pytest.approx(
        (-2, np.std([-2, 2, -6], ddof=1) / math.sqrt(3))
    )
    assert tables.difference(rows(1), rows(2), tables._capped) is None
    assert tables._paired(rows(9, 9), rows(11, 11), tables._capped) == "**+2.0 ± 0.0**"
    assert tables._paired(rows(11, 11), rows(9, 9), tables._capped) == "−2.0 ± 0.0"


def test_ours_launches_nothing_that_a_rule_forbids(bench: Any) -> None:
    world = bench.world("gen-oom")
    assert any(world.reasons)
    assert bench.replay(world, "ours", 0, 12).forbidden[-1] == 0


def test_the_whole_grid_reaches_the_whole_front(bench: Any) -> None:
    world = bench.world("gen-oom")
    replay = bench.replay(world, "grid", 0, len(world.points), enough=1.0)
    assert replay.shares[-1] > 0.999
    assert replay.reached is not None
    assert set(replay.regions) == {r.words for r in world.regions}


def test_hypervolume_is_the_area_below_the_reference(replays: Any) -> None:
    reference = np.array([4.0, 4.0])
    assert replays.hypervolume(np.array([[1.0, 3.0], [3.0, 1.0], [3.5, 3.5]]), reference) == 5
    assert replays.hypervolume(np.array([[5.0, 0.0]]), reference) == 0
    assert replays.hypervolume(np.empty((0, 2)), reference) == 0


def test_what_was_not_reached_is_never_and_not_a_number(tables: Any) -> None:
    assert tables.quartiles([3, 5, math.inf]) == [3, 5, 5]
    rows = [{"reached": x} for x in (3, None, None)]
    assert tables._launches(rows) == "– [3, –]"


def test_every_generated_world_can_be_searched(surfaces: Any) -> None:
    for name in surfaces.GENERATED:
        w = surfaces.world(name)
        can = w.launchable()
        assert len(can) >= len(w.points) / 2
        assert np.isfinite(w.logs[can]).all()
        assert w.infeasible(w.baseline()) is None
        assert w.crash(w.baseline()) is None
        for region in w.regions:
            assert any(region.holds(q) for q in w.points)
        for i in can:
            n = int(w.points[i][N])
            assert len(w.acceptance[i]) == n
            assert list(w.acceptance[i]) == sorted(w.acceptance[i], reverse=True)


def _rates(w: Any, budget: int) -> list[float]:
    """True tok/s by n; 0 where a launch crashes."""
    points = ({N: n, MNBT: budget} for n in range(16))
    return [0.0 if w.crash(q) else w.truth(q)[0] for q in points]


def _peaks(values: Any) -> list[int]:
    padded = [0.0, *values, 0.0]
    return [
        i - 1 for i in range(1, len(padded) - 1) if padded[i] > max(padded[i - 1], padded[i + 1])
    ]


def test_acceptance_foretells_one_peak_where_there_are_two(surfaces: Any) -> None:
    w = surfaces.world("two-peaks")
    rates = _rates(w, 2048)
    assert _peaks(rates) == [3, 12]
    # what the launches at n = 0, 3 and 15, which every search begins with, say of the others
    seen = [
        SpeculationLaunch(n, rates[n], w.acceptance[i], w.lengths[i])
        for n in (0, 3, 15)
        for i in [w.place({N: n, MNBT: 2048})]
    ]
    prediction = Prediction.fit(seen)
    assert prediction is not None
    foretold = [prediction.rate(n) for n in range(16)]
    assert len(_peaks(foretold)) == 1
    assert foretold[12] < 0.8 * rates[12]


def test_above_seven_all_launches_crash_and_seven_is_best(surfaces: Any) -> None:
    w = surfaces.world("crash-above-7")
    rng = np.random.default_rng(0)
    for n in range(16):
        outcome = w.launch({N: n, MNBT: 2048}, rng)
        assert str(outcome.failure) == ("crash" if n > 7 else "None")
    assert _peaks(_rates(w, 2048)) == [7]


def test_nothing_is_missing_where_nothing_matters(replays: Any, surfaces: Any) -> None:
    w = surfaces.world("flat")
    judge = replays.Judge(w)
    assert [judge.share([]), judge.share([0]), judge.share([5, 9])] == [0, 1, 1]
    assert {judge.shortfall(i) for i in range(len(w.points))} == {(0.0, 0.0)}
    rng = np.random.default_rng(0)
    values = np.log([w.launch(q, rng).values for q in w.points])
    assert (values.std(axis=0) > 0.02).all()  # launches differ nevertheless


def test_a_nearly_flat_world_is_not_judged_by_its_last_tenth_of_a_percent(
    replays: Any, surfaces: Any
) -> None:
    flat = surfaces.world("flat")
    slope = np.linspace(0, 1, len(flat.points))[:, None] * [1.0, -1.0]
    for steep, missing in ((0.004, 0), (0.1, 1)):
        judge = replays.Judge(replace(flat, logs=flat.logs + steep * slope))
        assert judge.share([0]) == 1 - missing
        assert judge.shortfall(0) == pytest.approx((-math.expm1(-steep), math.expm1(steep)))
        assert judge.shortfall(len(flat.points) - 1) == (0, 0)


def test_a_mixture_of_experts_makes_few_drafts_dear(surfaces: Any) -> None:
    """One draft more costs the most experts at first; no experts, no such cost."""
    w = surfaces.world("moe")

    def steps(w: Any) -> Any:  # milliseconds for each answer's step, by n
        places = [w.place({N: n, MNBT: 2048}) for n in range(16)]
        lengths = [w.lengths[i] or 1.0 for i in places]
        return np.array(lengths) / np.exp(w.logs[places, 0])

    growth = np.diff(steps(w)[1:])
    assert (growth > 0).all()
    assert growth[0] > 5 * growth[-1]
    assert 3 < int(np.argmax(_rates(w, 2048))) < 8


def test_the_best_n_falls_with_the_load(surfaces: Any) -> None:
    best = [int(np.argmax(_rates(surfaces.world(f"load-{c}"), 2048))) for c in (1, 4, 16, 64)]
    assert best == sorted(best, reverse=True)
    assert best[0] > 2 * best[-1] > 0


def test_mnbt_matters_from_twelve_drafts_on_only(surfaces: Any) -> None:
    w = surfaces.world("mnbt-from-12")
    small, large = (np.array(_rates(w, budget)) for budget in (1024, 2048))
    assert small[:12] == pytest.approx(large[:12])
    assert (small[12:] < 0.95 * large[12:]).all()
    assert int(np.argmax(large)) >= 12


def test_launches_scatter_around_the_truth(surfaces: Any) -> None:
    w = surfaces.world("gen-8")
    rng = np.random.default_rng(0)
    point = {N: 3, MNBT: 2048}
    values = np.log([w.launch(point, rng).values for _ in range(4000)])
    assert values.mean(axis=0) == pytest.approx(np.log(w.truth(point)), abs=0.003)
    inside = np.array(w.launch(point, rng).log_variances)
    assert values.var(axis=0) == pytest.approx(inside + w.sigma**2, rel=0.1)


def test_a_crash_gives_a_kind_and_no_numbers(surfaces: Any) -> None:
    w = surfaces.world("gen-oom")
    outcome = w.launch({N: 15, MNBT: 8192}, np.random.default_rng(0))
    assert (outcome.values, str(outcome.failure)) == (None, "oom")


def test_a_measured_grid_becomes_a_world_of_its_whole_part(surfaces: Any) -> None:
    """The grid of issue 4: n = 0, 1, 3, 7 at two budgets, n = 15 at one of them."""
    w = surfaces.world("demo-cpu-grid")
    assert w.space.params[N] == ChoiceParam(type="choice", choices=(0, 1, 3, 7))
    assert [q[MNBT] for q in w.points[:2]] == [64, 2048]
    assert len(w.launchable()) == 8
    rng = np.random.default_rng(0)
    point = {N: 3, MNBT: 2048}
    outcome = w.launch(point, rng)
    assert len(outcome.acceptance_per_position) == 3
    assert outcome.acceptance_length == pytest.approx(1 + sum(outcome.acceptance_per_position))
    values = np.log([w.launch(point, rng).values for _ in range(4000)])
    assert values.mean(axis=0) == pytest.approx(np.log(w.truth(point)), abs=0.01)


def test_values_become_a_ladder_where_they_are_one(surfaces: Any) -> None:
    assert surfaces._param([0, 1, 2]) == IntParam(type="int", low=0, high=2)
    assert surfaces._param([2048, 8192]) == IntParam(type="int", low=2048, high=8192, step=6144)
    assert surfaces._param([32, 64, 128]) == Pow2Param(type="pow2", low=32, high=128)
    assert surfaces._param([64, 128, 512]) == ChoiceParam(type="choice", choices=(64, 128, 512))
    assert surfaces._param(["auto", "fp8"]) == ChoiceParam(type="choice", choices=("auto", "fp8"))


def test_holes_of_a_grid_cost_the_values_with_the_most_of_them(surfaces: Any) -> None:
    known = {(n, m) for n in range(6) for m in (1, 2, 4)} - {(5, 1), (5, 2)}
    columns = surfaces._whole([list(range(6)), [1, 2, 4]], known.__contains__)
    assert columns == [[0, 1, 2, 3, 4], [1, 2, 4]]


@pytest.mark.parametrize("name", ["smollm2-h200-c1", "smollm2-h200-c32"])
def test_a_study_on_a_gpu_is_a_world_of_n_alone(surfaces: Any, name: str) -> None:
    w = surfaces.world(name)
    assert list(w.space.params) == [N]
    assert len(w.launchable()) == 7
    assert np.isfinite(w.logs).all()
    assert all(w.acceptance[i] for i, q in enumerate(w.points) if q[N])
