"""A load that vLLM throttles: refused where that is certain, else marked, and never the best."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import FrozenTrial, create_trial

from autotune.api import Result
from autotune.bench import running
from autotune.engine.probe import VllmInfo
from autotune.errors import NothingUsable, UserError
from autotune.results.standing import Standing
from autotune.storage.records import Quality, Role, TrialAttrs, may_win
from autotune.study.files import load_study
from autotune.study.schema import StudySpec
from autotune.study.space import MNBT, N
from autotune.tuning import prepare as preparing
from autotune.tuning.prepare import Prepared, prepare
from autotune.tuning.progress import Progress
from tests.studies import autotune, front, trials, use_tools, write_study
from tests.tuning.test_load_map import Instant, no_wait
from tests.tuning.test_planner import OBJECTIVES, World

GRID = {
    N: {"type": "choice", "choices": [0, 3]},
    MNBT: {"type": "choice", "choices": [2048]},
}
LINE = (
    "n = 15 with MNBT = 128: vLLM 0.33.0 lets 8 requests run at once (MNBT // 16), not 16; they "
    "need MNBT of at least 256; search.allow_throttled: true launches it all the same"
)


class Silent:
    """Takes the place of what tells the user."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Prepared:
    """A study on vLLM 0.33 at concurrency 16, checked; nothing is launched."""
    loads = {"workload__max_concurrency": 16, "workload__num_prompts": 64}
    flags = {"server__flags": {"max-num-seqs": 64}}
    study = write_study(folder, **{**loads, **flags, **changes})
    info = VllmInfo("0.33.0", None, None, "cuda", None, (), ())
    monkeypatch.setattr(preparing, "probe", lambda _: info)
    silent: Any = Silent()
    given: Progress = silent
    return prepare(load_study(str(study)), given)


def test_what_is_certain_is_refused_before_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = prepared(tmp_path, monkeypatch)
    assert p.infeasible({N: 15, MNBT: 128}) == LINE
    assert p.infeasible({N: 15, MNBT: 256}) is None
    allowed = prepared(tmp_path, monkeypatch, search={"allow_throttled": True})
    assert allowed.infeasible({N: 15, MNBT: 128}) is None
    # a load sweep goes by its lowest concurrency
    assert dataclasses.replace(p, load=8).infeasible({N: 15, MNBT: 128}) is None
    assert p.asked({N: 15, MNBT: 256}) == running.Asked(16, 64)
    assert p.asked({N: 15, MNBT: 256}, 100) == running.Asked(64, 64)


def test_a_study_of_nothing_else_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {
        **GRID,
        MNBT: {"type": "choice", "choices": [64]},
        N: {"type": "int", "low": 4, "high": 9},
    }
    with pytest.raises(UserError) as e:
        prepared(tmp_path, monkeypatch, space=few)
    assert "no point of it can launch" in str(e.value)
    assert "lets 12 requests run at once (MNBT // 5), not 16" in str(e.value)
    assert "search.allow_throttled: true" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("allowed", [False, True])
def test_explain_draws_it_as_its_own_kind(tmp_path: Path, allowed: bool) -> None:
    space = {
        N: {"type": "choice", "choices": [0, 7, 15]},
        MNBT: {"type": "choice", "choices": [64, 128, 256]},
    }
    write_study(
        tmp_path,
        space=space,
        server__flags={"max-num-seqs": 16},
        workload__max_concurrency=16,
        workload__num_prompts=200,
        search={"allow_throttled": allowed},
    )
    text = autotune("explain", "double.yaml", "--vllm", "0.33.0", cwd=tmp_path).stdout
    assert "~ would be throttled" in text
    assert "9 points, 9 can launch, 3 of them would be throttled" in text or not allowed
    assert "9 points, 6 can launch, 3 would be throttled" in text or allowed
    assert ("3 would measure another load" in text) is not allowed
    shown = autotune("explain", "double.yaml", "--vllm", "0.33.0", "--json", cwd=tmp_path).stdout
    found = json.loads(shown)
    assert (found["throttled"], found["allow_throttled"]) == (3, allowed)
    assert found["launches_saved"] == (0 if allowed else 3)
    assert found["cannot_launch"] == 0


# -- a run ---------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gauges be read so often that a double's short trial is enough."""
    monkeypatch.setattr(running, "PACE_S", 0.01)


def run(folder: Path, *turns: dict[str, str], **changes: object) -> None:
    """Run a grid of two points whose servers have these settings, in turn."""
    file = folder / "turns"
    file.write_text("".join(f"{json.dumps(turn)}\n" for turn in turns))
    given: dict[str, object] = {
        "server__env": {"DOUBLE_TURNS": str(file)},
        "space": GRID,
        "search": {"method": "grid"},
        "workload__num_prompts": 60,
        "workload__output_len": 24,
        "measure__precision": 0.001,
        "measure__dominated_error": 0,
    }
    study = write_study(folder, **{**given, **changes})
    done = autotune("run", str(study), "--trials", str(len(turns)), cwd=folder)
    assert done.returncode == (0 if turns != (ONE, ONE) else 1), done.stderr
    throttled = [t["trial"] for t in trials(folder) if t["throttled"]]
    for number in throttled:
        assert f"trial {number} is throttled: vLLM ran at most 1 request at once" in done.stdout


FULL = {"DOUBLE_SPEED": "4", "DOUBLE_AT_ONCE": "2"}
SLOW = {"DOUBLE_SPEED": "1", "DOUBLE_AT_ONCE": "2"}  # a sixth of the tokens a second of ONE
ONE = {"DOUBLE_AT_ONCE": "1"}  # of the two that are sent


@pytest.mark.double
@pytest.mark.usefixtures("quick")
def test_a_throttled_trial_is_shown_everywhere_and_never_wins(tmp_path: Path) -> None:
    run(tmp_path, SLOW, ONE, workload__num_prompts=40)
    full, throttled = trials(tmp_path)
    assert (full["throttled"], full["running_peak"], full["running_asked"]) == (False, 2, 2)
    assert (throttled["throttled"], throttled["running_peak"]) == (True, 1)
    assert throttled["tok_s"] > full["tok_s"]  # type: ignore[operator]
    assert throttled["speedup"] is None
    assert [t["trial"] for t in front(tmp_path)] == [0]
    # every view names it
    line = "throttled, so never the best: trial 1: at most 1 of 2 requests ran at once"
    for command in (["status"], ["best"]):
        assert line in " ".join(autotune(*command, cwd=tmp_path).stdout.split()), command
    assert (
        "throttled: vLLM ran at most 1" in autotune("status", "--trial", "1", cwd=tmp_path).stdout
    )
    autotune("report", "--format", "md", "--out", "r.md", cwd=tmp_path)
    assert line[1:] in " ".join((tmp_path / "r.md").read_text().split())
    result = Result.from_database(tmp_path / "autotune.db")
    assert result.best().number == 0
    assert [t.number for t in result.front()] == [0]
    # what is asked for by its number is written, and says so
    asked = autotune("export", "--trial", "1", "--format", "shell", cwd=tmp_path)
    words = " ".join(asked.stdout.replace("#", " ").split())
    assert "Careful: it was throttled: vLLM ran at most 1 request at once, not 2" in words


@pytest.mark.double
@pytest.mark.usefixtures("quick")
def test_a_throttled_baseline_is_no_measure_of_others(tmp_path: Path) -> None:
    run(tmp_path, ONE, FULL)
    base, other = trials(tmp_path)
    assert (base["throttled"], other["throttled"]) == (True, False)
    assert other["speedup"] is None
    assert [t["trial"] for t in front(tmp_path)] == [1]
    autotune("report", "--format", "md", "--out", "r.md", cwd=tmp_path)
    text = (tmp_path / "r.md").read_text()
    assert "Serve n = 3" in text
    assert "against no speculation" not in text.partition("## ")[0]
    shell = autotune("export", "--format", "shell", cwd=tmp_path).stdout
    assert "speed-up is unknown" in " ".join(shell.replace("#", " ").split())


@pytest.mark.double
@pytest.mark.usefixtures("quick")
def test_nothing_is_recommended_where_all_are_throttled(tmp_path: Path) -> None:
    run(tmp_path, ONE, ONE)
    best = autotune("best", cwd=tmp_path)
    assert best.returncode != 0
    assert (
        "no trial can be recommended; throttled, so never the best: trials 0, 1: at most 1 of 2 "
        "requests ran at once"
    ) in " ".join(best.stderr.split())
    with pytest.raises(NothingUsable, match="no trial can be recommended"):
        Result.from_database(tmp_path / "autotune.db").best()
    autotune("report", "--format", "md", "--out", "r.md", cwd=tmp_path)
    assert "Nothing can be recommended" in (tmp_path / "r.md").read_text()
    assert autotune("pareto", cwd=tmp_path).returncode == 0


@pytest.mark.double
@pytest.mark.usefixtures("quick")
def test_a_comparison_leaves_it_out_and_says_so(tmp_path: Path) -> None:
    for folder, turns in (("a", (FULL, FULL)), ("b", (FULL, ONE))):
        (tmp_path / folder).mkdir()
        run(tmp_path / folder, *turns)
    shown = autotune("compare", "a/autotune.db", "b/autotune.db", cwd=tmp_path)
    assert "B: throttled, so never the best: trial 1" in " ".join(shown.stdout.split())
    found = autotune("compare", "a/autotune.db", "b/autotune.db", "--json", cwd=tmp_path)
    body = json.loads(found.stdout)
    assert [p["params"][N] for p in body["pairs"]] == [0]
    assert body["throttled"] == {"a": [], "b": [{"trial": 1, "peak": 1, "asked": 2}]}


@pytest.mark.double
@pytest.mark.usefixtures("quick")
def test_a_reused_one_does_not_win_either(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    run(tmp_path / "old", FULL, ONE)
    (tmp_path / "old" / "turns").write_text("{}\n")
    given = load_study(str(tmp_path / "old" / "double.yaml"))
    new = tmp_path / "new.yaml"
    new.write_text(given.path.read_text().replace("name: double", "name: again"))
    done = autotune("run", str(new), "--trials", "1", "--reuse", "old/autotune.db", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    taken = trials(tmp_path)
    assert [(t["throttled"], t["running_peak"]) for t in taken[:2]] == [(False, 2), (True, 1)]
    assert [t["trial"] for t in front(tmp_path)] == [0]


# -- what decides --------------------------------------------------------------------------------


def test_one_predicate_says_what_may_win() -> None:
    assert may_win(truncated=False, outdated=False, throttled=False)
    for name in ("truncated", "outdated", "throttled"):
        given = {**dict.fromkeys(("truncated", "outdated", "throttled"), False), name: True}
        assert not may_win(**given)
    assert not Quality(throttled=True).may_win
    assert not Quality(stop="dominated").may_win
    assert Quality(throttled=False, running_peak=2, running_asked=2).may_win
    assert Quality.read({"stop": "all"}).may_win  # of a database that knows nothing of it


def test_quality_survives_the_database() -> None:
    kept = Quality(throttled=False, running_peak=2, running_asked=2)
    assert Quality.read(kept.to_json()) == kept
    assert not {"throttled", "running_peak", "running_asked"} & Quality().to_json().keys()


def told(number: int, rate: float, *, throttled: bool, again: int | None = None) -> FrozenTrial:
    attrs = TrialAttrs(
        Role.SEARCH if again is None else Role.REPLICATE,
        replicates=again,
        quality=Quality(estimator=2, stop="all", throttled=throttled),
    )
    trial = create_trial(values=[rate, 1e5 / rate], user_attrs=attrs.to_json())
    trial.number = number
    return trial


def standing(given: Sequence[FrozenTrial]) -> Standing:
    found = Standing(OBJECTIVES)
    found.update(given)
    return found


def test_a_launch_that_repeats_a_throttled_one_does_not_let_it_win() -> None:
    found = standing([told(0, 100, throttled=False), told(1, 900, throttled=True)])
    assert found.front() == {0}
    found = standing(
        [
            told(0, 100, throttled=False),
            told(1, 900, throttled=True),
            told(2, 500, throttled=False, again=1),
        ]
    )
    assert found.front() == {0}
    assert set(found.launched().searched) == {0}


class Throttles(World):
    """A study whose launches with n of at least 8 are throttled, and so seem the fastest."""

    def end(self, number: int) -> None:
        super().end(number)
        done = self.trials[number]
        if int(self.begun[number].point[N]) < 8:
            return
        attrs = TrialAttrs.read(done.user_attrs)
        attrs = dataclasses.replace(
            attrs, quality=dataclasses.replace(attrs.quality, throttled=True)
        )
        self.trials[number] = create_trial(
            values=[1000.0, 10.0],
            params=done.params,
            distributions=done.distributions,
            user_attrs=attrs.to_json(),
        )
        self.trials[number].number = number


def test_the_search_neither_believes_nor_repeats_nor_confirms_it(tmp_path: Path) -> None:
    world = Throttles(tmp_path, 24)
    world.run(1)
    n_of = [int(c.point[N]) for c in world.begun]
    throttled = {i for i, n in enumerate(n_of) if n >= 8}
    assert throttled
    assert world.order
    assert not throttled & set(world.order)
    assert not throttled & {c.attrs.replicates for c in world.begun}
    # those around one are avoided as around a crash
    assert len(throttled) <= 3
    best = max(set(range(len(n_of))) - throttled, key=lambda i: world.trials[i].values[0])
    assert abs(n_of[best] - 5) <= 1


def test_a_search_of_nothing_but_throttled_launches_ends(tmp_path: Path) -> None:
    class All(Throttles):
        def end(self, number: int) -> None:
            super().end(number)
            done = self.trials[number]
            attrs = TrialAttrs.read(done.user_attrs)
            quality = dataclasses.replace(attrs.quality, throttled=True)
            done.user_attrs.update(dataclasses.replace(attrs, quality=quality).to_json())

    world = All(tmp_path, 16)
    world.run(1)
    assert len(world.trials) <= 16
    assert not world.order


# -- a load sweep --------------------------------------------------------------------------------


class Throttling(Instant):
    """Stands in for servers that run fewer requests at once than they are sent.

    Attributes:
        peaks: The most that ran at once, by n and load.
    """

    def __init__(self, peaks: dict[tuple[int, int], int]) -> None:
        super().__init__()
        self.peaks = peaks

    def measuring(self, server: Any, spec: StudySpec, objectives: object, **kw: Any) -> Any:
        given = super().measuring(server, spec, objectives, **kw)
        load = spec.workload.max_concurrency or 0

        def measure(*args: Any, asked: running.Asked, **more: Any) -> Any:
            assert asked.requests == load
            peak = self.peaks.get((server.n, load), load)
            seen = running.AtOnce(load, peak, running.FEWEST, throttled=peak < load)
            return dataclasses.replace(given.measure(*args, **more), at_once=seen)

        return SimpleNamespace(warm=given.warm, measure=measure)


def sweep(
    folder: Path, monkeypatch: pytest.MonkeyPatch, peaks: dict[tuple[int, int], int], *args: str
) -> Any:
    servers = Throttling(peaks)
    use_tools(
        monkeypatch,
        server=servers.server,
        measuring=servers.measuring,
        take_idle_baseline=no_wait,
    )
    study = write_study(folder)
    return autotune("map", str(study), "--concurrency", "1,2,4,8,16", *args, cwd=folder)


def test_a_load_sweep_leaves_out_the_loads_that_are_throttled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # n = 3 and 2 are the best of 1 and 2 here, 1 of 4
    done = sweep(tmp_path, monkeypatch, {(2, 2): 1, (1, 4): 3, (1, 8): 3}, "--json")
    assert done.returncode == 0, done.stderr
    assert "n = 2, load 2 part 1, is throttled: vLLM ran at most 1 request at once" in done.stderr
    found = json.loads(done.stdout)
    best = {x["load"]: x["best_n"] for x in found["loads"]}
    assert best[2] != 2
    assert best[4] != 1
    at = {p["n"]: p["loads"] for p in found["points"] if p["schedule"] is None}
    assert (at[2]["2"]["throttled"], at[2]["2"]["running_peak"]) == (True, 1)
    assert (at[2]["4"]["throttled"], at[2]["4"]["running_peak"]) == (False, None)
    shown = autotune("map", "double.yaml", "--show", cwd=tmp_path).stdout
    assert (
        "n = 1 at 4; n = 1 at 8; n = 2 at 2: throttled: such as vLLM ran at most 3 requests at "
        "once, not 4, so this is another load"
    ) in " ".join(shown.split())


def test_a_load_sweep_says_which_loads_it_cannot_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {(n, load): 6 for n in range(16) for load in (8, 16)}
    done = sweep(tmp_path, monkeypatch, peaks)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "Concurrency 8, 16 is left out of all comparisons: vLLM throttled n = 0 there." in text
    found = json.loads(autotune("map", "double.yaml", "--show", "--json", cwd=tmp_path).stdout)
    assert found["loads_not_compared"] == [8, 16]
    assert [x["load"] for x in found["loads"]] == [1, 2, 4]


def test_a_load_sweep_without_a_full_load_of_n_0_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = sweep(tmp_path, monkeypatch, {(0, load): 0 for load in (1, 2, 4, 8, 16)})
    assert done.returncode == 1
    assert "n = 0 was throttled at every concurrency" in done.stderr
