"""`autotune map --break-even`: what is launched, resumed, shown and refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from autotune.cli.run import load_map
from autotune.engine.command import LaunchPlan
from autotune.errors import FailureKind
from autotune.tuning.break_even import spread
from tests.results.test_rehearsed import counted
from tests.search.test_acceptance import measured_study
from tests.stats.test_break_even import speed, truth
from tests.studies import (
    UNENDED,
    autotune,
    processes_of,
    query,
    use_tools,
    write_study,
)
from tests.tuning.test_load_map import Instant, no_wait, with_vllm

ARGS = ("--break-even", "--concurrency", "1,4", "--launches", "3")
LAUNCHED = "select n, repeat, json_extract(setting, '$.check') from autotune_map_points order by id"


class Given(Instant):
    """An :class:`Instant` whose servers have the speed of the acceptance that they play."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[float] = []
        self.rates: list[list[float]] = []
        self.dummy: list[bool] = []
        self.speed = lambda n, load, _adaptive, launch: speed(n, load, self.lengths[launch - 1])

    def server(self, plan: LaunchPlan, **given: Any) -> Any:
        words = list(plan.argv)
        flag = "--speculative-config"
        config = json.loads(words[words.index(flag) + 1]) if flag in words else {}
        rates = config.get("synthetic_acceptance_rates", [])
        assert config.get("rejection_sample_method", "synthetic") == "synthetic"
        self.rates.append(rates)
        self.dummy.append("dummy" in words)
        self.lengths.append(1 + sum(rates))
        return super().server(plan, **given)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    found = Given()
    use_tools(
        monkeypatch, server=found.server, measuring=found.measuring, take_idle_baseline=no_wait
    )
    return found


def study(folder: Path, **changes: object) -> str:
    space = {"type": "choice", "choices": [0, 1, 3]}
    return str(write_study(folder, space__num_speculative_tokens=space, **changes))


def test_two_acceptances_of_each_n_find_the_line_and_check_it(tmp_path: Path, given: Given) -> None:
    done = autotune("map", study(tmp_path), *ARGS, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [n for n, _ in given.launched[:6]] == [0, 1, 1, 3, 3, 0]
    assert given.rates[1:3] == [[0.2], [0.8]]
    assert given.rates[3:5] == [[0.2, 0.04, 0.008], [0.8, 0.64, 0.512]]
    assert [x["load"] for x in found["loads"]] == [1, 4]
    for x in found["loads"]:
        for e in x["by_n"]:
            assert e["break_even"]["value"] == pytest.approx(truth(e["n"], x["load"]), rel=1e-4)
    assert "acceptance was given" in found["rehearsal"]
    # one below the line and one above it, each at all loads
    assert len(given.launched) == 8
    at_line = [x for x in found["checks"] if x["at_line"]]
    assert [x["expected_over_none"] >= 1 for x in at_line] == [False, True]
    for x in found["checks"]:
        assert x["found_over_none"]["value"] == pytest.approx(x["expected_over_none"], rel=1e-3)
    # finished: the same command launches nothing, and --show shows the same
    again = autotune("map", study(tmp_path), *ARGS, "--json", cwd=tmp_path)
    assert json.loads(again.stdout) == found
    assert len(given.launched) == 8
    shown = autotune("map", study(tmp_path), "--break-even", "--show", "--json", cwd=tmp_path)
    assert json.loads(shown.stdout) == found
    other = autotune(
        "map", study(tmp_path), "--break-even", "--show", "--decay", "0.8", cwd=tmp_path
    )
    assert "changes by a factor of 0.8" in " ".join(other.stdout.split())
    # it is no load sweep
    sweep = autotune("map", study(tmp_path), "--show", cwd=tmp_path)
    assert sweep.returncode == 2
    assert "has no load sweep" in sweep.stderr


def test_a_rehearsal_keeps_its_random_weights(tmp_path: Path, given: Given) -> None:
    file = study(tmp_path, rehearsal={"weights": "dummy", "acceptance": {"rate": 0.9}})
    done = autotune("map", file, *ARGS, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    label = "rehearsal: weights are random, acceptance was given, step times are real"
    assert json.loads(done.stdout)["rehearsal"] == label
    assert given.rates[1:3] == [[0.2], [0.8]]
    assert all(given.dummy)


@pytest.mark.parametrize("how", [ARGS, ("--concurrency", "1", "--launches", "2")])
def test_a_map_goes_on_when_the_source_of_its_acceptance_is_gone(
    tmp_path: Path, given: Given, how: tuple[str, ...]
) -> None:
    """The study was never run: the map itself keeps what was counted."""
    source = counted(tmp_path, {1: [0.7], 3: [0.7, 0.5, 0.4]}).rename(tmp_path / "source.db")
    rehearsal = {"weights": "dummy", "acceptance": {"from": "source.db"}}
    file = study(tmp_path, rehearsal=rehearsal)
    given.interrupts = {3}
    assert autotune("map", file, *how, cwd=tmp_path).returncode == 130
    source.unlink()
    done = autotune("map", file, *how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = autotune("map", file, *how, "--show", cwd=tmp_path)
    assert shown.stdout == done.stdout
    another = {**rehearsal, "acceptance": {"from": "another.db"}}
    other = autotune("map", study(tmp_path, rehearsal=another), *how, cwd=tmp_path)
    assert other.returncode == 2
    assert "another.db: no such database" in " ".join(other.stderr.split())


@pytest.mark.parametrize("part", [1, 6, 23, 26, 31])
def test_an_interrupted_map_goes_on(tmp_path: Path, given: Given, part: int) -> None:
    given.interrupts = {part}
    file = study(tmp_path)
    assert autotune("map", file, *ARGS, cwd=tmp_path).returncode == 130
    assert given.alive == 0
    done = autotune("map", file, *ARGS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert given.parts == 8 * 4 + 1
    rows = query(tmp_path, LAUNCHED)
    assert [(n, repeat) for n, repeat, _ in rows[:6]] == [
        (0, None),
        *((n, None) for n in (1, 1, 3, 3)),
        (0, 2),
    ]
    assert [check is None for *_, check in rows] == [True] * 6 + [False] * 2
    assert query(tmp_path, UNENDED) == [(0,)]


def test_a_failed_launch_leaves_its_n_out(tmp_path: Path, given: Given) -> None:
    given.fails = {(3, 4): FailureKind.OOM}
    done = autotune("map", study(tmp_path), *ARGS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert re.search(r"n = 3 at 1\.25 tok/step failed: oom: it went", text)
    assert "tok/step at n = 1 [95 %]" in text
    given.fails = {(0, 1): FailureKind.OOM}
    (tmp_path / "autotune.db").unlink()
    none = autotune("map", study(tmp_path), *ARGS, cwd=tmp_path)
    assert none.returncode == 1
    assert "n = 0 gave no numbers" in none.stderr.strip().splitlines()[-1]


def test_a_cpu_plays_no_acceptance(
    tmp_path: Path, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vllm(monkeypatch, "0.32.0", "cpu")
    done = autotune("map", study(tmp_path), *ARGS, cwd=tmp_path)
    assert done.returncode == 2
    assert "map --break-even: vLLM 0.32.0 has no synthetic acceptance on a CPU" in done.stderr
    assert given.launched == []


@pytest.mark.parametrize(
    ("changes", "args", "words"),
    [
        ({}, ("--schedule", "1:3"), "--break-even excludes --schedule and --confirm"),
        ({}, ("--confirm", "4"), "--break-even excludes --schedule and --confirm"),
        ({}, ("--decay", "0"), "--decay"),
        ({}, ("--decay", "nan"), "nan is not a number"),
        ({"workload__ignore_eos": False}, (), "workload.ignore_eos: must be true"),
        (
            {"server__speculative": {"method": "ngram"}},
            (),
            "server.speculative.method: ngram drafts only where the text repeats",
        ),
        ({}, ("--ways", "none"), "--break-even excludes --ways and --way-launches"),
        ({}, ("--way-launches", "3"), "--break-even excludes --ways and --way-launches"),
        ({}, ("--show",), "has no break-even map of double yet"),
    ],
)
def test_mistakes_are_told_before_anything_is_launched(
    tmp_path: Path, given: Given, changes: dict[str, object], args: tuple[str, ...], words: str
) -> None:
    if "--show" in args:  # a database without one
        autotune("map", study(tmp_path), "--concurrency", "1", "--launches", "2", cwd=tmp_path)
        given.launched.clear()
    done = autotune("map", study(tmp_path, **changes), "--break-even", *args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in " ".join(done.stderr.split())
    assert given.launched == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--decay", "0.9"), "--decay is for --break-even"),
        (("--break-even", "--parallel", "2"), "leave out --parallel and --ray"),
    ],
)
def test_options_that_do_not_go_together(args: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(load_map, ["demo-cpu", *args])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_few_n_are_spread_over_the_candidates() -> None:
    assert spread((1, 2, 3, 5, 7, 11, 15), 5) == (1, 2, 5, 7, 15)
    assert spread((1, 3), 5) == (1, 3)
    assert spread((1, 3, 7), 1) == (3,)


@pytest.mark.usefixtures("given")
def test_the_report_has_the_map_only_where_it_was_run(tmp_path: Path) -> None:
    measured_study(tmp_path)
    report = ("report", "--out", "report.md")
    autotune(*report, cwd=tmp_path)
    assert "How good must a draft be?" not in (tmp_path / "report.md").read_text()
    file = str(tmp_path / "double.yaml")
    done = autotune("map", file, *ARGS, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "report.md").unlink()
    made = autotune(*report, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "report.md").read_text()
    assert "How good must a draft be?" in text
    assert "Rehearsal: weights are real, acceptance was given, step times are real." in text
    quality = json.loads(done.stdout)["loads"][0]["needed"]["value"]
    assert f"{quality:.2f} [" in text


@pytest.mark.double
def test_a_map_over_real_servers_counts_what_it_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tools(monkeypatch, take_idle_baseline=no_wait)
    file = study(tmp_path, workload__num_prompts=32, measure__precision=0.5)
    args = ("--break-even", "--concurrency", "2", "--launches", "2", "--json")
    done = autotune("map", file, *args, "--plot", "map.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    launches = [x for x in found["launches"] if x["n"] > 0]
    assert len(launches) >= 2
    for x in launches:
        counted = x["loads"]["2"]["acceptance_length"]
        assert counted == pytest.approx(x["given_acceptance_length"], abs=0.5)
    assert "break-even" in (tmp_path / "map.html").read_text()
    assert query(tmp_path, UNENDED) == [(0,)]
    assert processes_of(tmp_path) == []
