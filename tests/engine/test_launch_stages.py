"""Where the time goes: one launch split by its log and our clock, and a study's table of it."""

from __future__ import annotations

import json
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autotune.engine.launch_stages import STAGES, StageClock, Stages, head_of, stages_of
from autotune.output.figures.timings import time_figure
from autotune.results.timings import TimeView, TrialTime, time_json, time_lines
from tests.paths import ROOT, TESTS
from tests.studies import autotune, query, write_study

LOGS = TESTS / "logs"
REAL = LOGS / "0.32.0-engine_killed.log"  # it started, on two CPU cores, and was killed later

# What a GPU's server says, put together from vLLM's source: 0.26 and 0.32 v1/worker/
# gpu_model_runner.py, v1/engine/core.py, compilation/monitor.py, entrypoints. No worker process.
GPU = """\
(APIServer pid=7) INFO 01-02 10:00:14 [utils.py:233] non-default args: {'model': 'm'}
(APIServer pid=7) INFO 01-02 10:00:15 [model.py:530] Resolved architecture: LlamaForCausalLM
(EngineCore pid=9) INFO 01-02 10:00:29 [core.py:93] Initializing a V1 LLM engine (v0.26.0) with
(EngineCore pid=9) INFO 01-02 10:00:31 [gpu_model_runner.py:3480] Starting to load model m...
(EngineCore pid=9) INFO 01-02 10:00:34 [default_loader.py:308] Loading weights took 2.91 seconds
(EngineCore pid=9) INFO 01-02 10:00:35 [gpu_model_runner.py:3553] Model loading took 0.28 GiB \
memory and 4.105233 seconds
(EngineCore pid=9) INFO 01-02 10:00:42 [monitor.py:53] torch.compile took 5.25 s in total
(EngineCore pid=9) INFO 01-02 10:00:43 [monitor.py:53] torch.compile took 1.25 s in total
(EngineCore pid=9) INFO 01-02 10:00:43 [monitor.py:81] Initial profiling/warmup run took 0.40 s
(EngineCore pid=9) INFO 01-02 10:00:47 [gpu_model_runner.py:4587] Graph capturing finished in 3 \
secs, took 0.39 GiB
(EngineCore pid=9) INFO 01-02 10:00:47 [core.py:259] init engine (profile, create kv cache, \
warmup model) took 11.75 s (compilation: 6.50 s)
(APIServer pid=7) INFO 01-02 10:00:49 [api_server.py:971] Starting vLLM server on http://[::1]:9
"""
NEW_YEAR_2026 = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
TEN = NEW_YEAR_2026 + 34 * 3600  # 01-02 10:00:00


def marks(begun: float, **seconds: float) -> dict[str, float]:
    """Marks so many seconds after the begin."""
    return {"begun": begun} | {name: begun + s for name, s in seconds.items()}


WHOLE = {"started": 0.25, "healthy": 50, "warm": 60, "measured": 90, "stopping": 90.5, "ended": 92}


def adds_up(found: Stages, wall: float) -> None:
    assert list(found.seconds) == list(STAGES)
    assert found.total == pytest.approx(wall)
    assert all(s is None or s >= 0 for s in found.seconds.values())


def test_a_real_start_on_cpus() -> None:
    begun = datetime(2026, 11, 24, 19, 28, 12, tzinfo=UTC).timestamp()
    at = marks(begun, started=0.2, healthy=46.2, warm=50, measured=55, stopping=55.1, ended=56)
    found = stages_of(head_of(REAL), at, tuner_s=0.7, first_s=3.1)
    adds_up(found, 56.7)
    # the log: API server 19:28:21, EngineCore :33, worker :46, init engine 3.74 s until :55
    assert found.imports == pytest.approx({"api": 9.3, "engine": 12, "worker": 13})
    assert found.seconds == pytest.approx(
        {
            "tuner": 0.7,
            "spawn": 0.2,
            "imports": 34.3,
            "weights": 9 - 3.74,  # from :46
            "profile": 3.74,
            "compile": None,
            "capture": None,
            "first": 3.1,
            "warm-up": 0.7,
            "measuring": 5,
            "stop": 0.9,
            "other": 46 - 34.3 - 9 + 0.1,
        }
    )


@pytest.mark.parametrize("zone", [0, -8 * 3600, 5.75 * 3600, 14 * 3600])
def test_a_gpu_states_most_durations_whatever_its_time_zone(zone: float) -> None:
    found = stages_of(GPU.splitlines(), marks(TEN + zone, **WHOLE), tuner_s=0.5, first_s=2)
    adds_up(found, 92.5)
    assert found.imports == pytest.approx({"api": 14.25, "engine": 14})
    assert found.seconds["weights"] == 4.105233
    assert found.seconds["compile"] == 6.5  # target and draft
    assert found.seconds["capture"] == 3
    assert found.seconds["profile"] == pytest.approx(11.75 - 6.5 - 3)
    assert found.seconds["measuring"] == pytest.approx(30)
    assert found.seconds["stop"] == pytest.approx(1.5)


def test_over_new_year() -> None:
    lines = [line.replace("01-02 10:00", "12-31 23:59") for line in GPU.splitlines()]
    begun = NEW_YEAR_2026 - 60
    local = stages_of(lines, marks(begun, **WHOLE))  # the log of a machine on UTC
    east = stages_of(lines, marks(begun + 3600, **WHOLE))  # it is next year already in UTC
    assert local.imports == pytest.approx({"api": 14.25, "engine": 14})
    assert east.seconds == pytest.approx(local.seconds)


def test_of_several_workers_the_slowest_counts() -> None:
    lines = [
        f"(Worker_TP{i} pid={i}) INFO 01-02 10:00:2{i} [gpu_model_runner.py:1] Model loading took "
        f"1.0 GiB memory and {s} seconds"
        for i, s in enumerate((3.5, 4.5))
    ]
    assert stages_of(lines, marks(TEN, **WHOLE)).seconds["weights"] == 4.5


def test_a_cpus_compilation_is_between_two_lines() -> None:
    lines = """\
(Worker pid=3) INFO 01-02 10:00:20 [cpu_model_runner.py:87] Warming up model for the compilation...
(Worker pid=3) INFO 01-02 10:00:31 [cpu_model_runner.py:91] Warming up done.
(EngineCore pid=2) INFO 01-02 10:00:33 [core.py:402] init engine (profile, create kv cache, \
warmup model) took 14.50 s
""".splitlines()
    found = stages_of(lines, marks(TEN, **WHOLE)).seconds
    assert found["compile"] == 11
    assert found["profile"] == pytest.approx(3.5)
    assert stages_of(lines[:1], marks(TEN, **WHOLE)).seconds["compile"] is None


def test_without_a_log_only_our_own_clock_tells() -> None:
    found = stages_of([], marks(TEN, **WHOLE), tuner_s=None, first_s=None)
    adds_up(found, 92)
    assert {s for s, seconds in found.seconds.items() if seconds is None} == {
        *("tuner", "imports", "weights", "profile", "compile", "capture", "first")
    }
    assert found.seconds["other"] == pytest.approx(50 - 0.25 + 0.5)


@pytest.mark.parametrize(
    ("reached", "known"),
    [
        ({}, {"stop", "other"}),
        ({"started": 1}, {"spawn", "imports", "stop", "other"}),
        ({"started": 1, "healthy": 30}, {"spawn", "imports", "warm-up", "stop", "other"}),
        (
            {"started": 1, "healthy": 30, "warm": 40},
            {"spawn", "imports", "warm-up", "measuring", "stop", "other"},
        ),
    ],
)
def test_a_launch_that_failed_is_split_as_far_as_it_came(
    reached: dict[str, float], known: set[str]
) -> None:
    lines = GPU.splitlines()[:2]
    found = stages_of(lines, marks(TEN, **reached, stopping=50, ended=52))
    adds_up(found, 52)
    assert {s for s, seconds in found.seconds.items() if seconds is not None} == known
    assert found.seconds["stop"] == pytest.approx(2)


def test_a_log_that_cannot_be_true_never_exceeds_the_wall_time() -> None:
    lines = GPU.replace("took 11.75 s", "took 9999 s").replace("4.105", "777.1").splitlines()
    adds_up(stages_of(lines, marks(TEN, **WHOLE)), 92)
    rounded = GPU.replace("10:00:29", "10:00:31").splitlines()
    short = WHOLE | {"healthy": 46.5}  # less than the stamps say, by their resolution
    adds_up(stages_of(rounded, marks(TEN, **short)), 92)


def test_whatever_a_log_says_the_stages_add_up() -> None:
    chance = random.Random(7)
    every = [*GPU.splitlines(), *head_of(REAL), "(X) INFO 13-45 99:99:99 [a] b", "", "\x00"]
    for _ in range(300):
        lines = chance.sample(every, chance.randrange(len(every)))
        times = sorted(chance.uniform(0, 80) for _ in WHOLE)
        at = marks(TEN, **dict(zip(WHOLE, times, strict=True)))
        tuner, first = chance.choice((None, 1.5)), chance.choice((None, 2.5))
        found = stages_of(lines, at, tuner_s=tuner, first_s=first)
        adds_up(found, times[-1] + (tuner or 0))


def test_the_clock_tells_the_tuners_time_and_keeps_the_order() -> None:
    first = StageClock(0.0)
    clock = StageClock(first.tuner_s)  # free when the first one began
    for what in ("started", "healthy", "ended"):
        clock.mark(what)
    times = list(clock.marks.values())
    assert list(clock.marks) == ["begun", "started", "healthy", "ended"]
    assert times == sorted(times)
    assert 0 <= clock.tuner_s < first.tuner_s


def test_a_log_that_is_gone_has_no_lines(tmp_path: Path) -> None:
    assert head_of(tmp_path / "none.log") == []
    assert len(head_of(REAL)) == len(REAL.read_text().splitlines())


# -- what people see ---------------------------------------------------------------------------


def trial(number: int, scale: float = 1.0, launches: int = 1) -> TrialTime:
    seconds: dict[str, float | None] = {s: scale * (i + 1) for i, s in enumerate(STAGES)}
    seconds |= {"compile": None, "capture": None}
    total = sum(s for s in seconds.values() if s is not None)
    return TrialTime(number, launches, seconds, {"api": scale, "worker": 2 * scale}, total)


VIEW = TimeView("demo", [trial(0), trial(1, 3), trial(2, 2, launches=2)])


@pytest.mark.parametrize(
    "view", [VIEW, TimeView("a" * 50, [trial(9999, 800, 3)]), TimeView("d", [trial(0, 1e-9)])]
)
def test_the_table_fits_80_columns(view: TimeView) -> None:
    lines = time_lines(view)
    assert max(map(len, lines)) <= 80
    assert sum(line.lstrip().startswith("med. ") for line in lines) == 1
    json.dumps(time_json(view))


def test_the_table_has_a_row_for_each_trial_medians_and_shares() -> None:
    rows = {line.split()[0]: line.split()[1:] for line in time_lines(VIEW) if line}
    # tuner, spawn, imports, weights, profile, first, warm-up, measuring, stop, other, total
    assert rows["1"] == [*(f"{3 * i:.1f}" for i in (1, 2, 3, 4, 5, 8, 9, 10, 11, 12)), "195"]
    assert rows["med."][:3] == ["2.0", "4.0", "6.0"]
    assert rows["%"] == [f"{100 * i / 65:.1f}" for i in (1, 2, 3, 4, 5, 8, 9, 10, 11, 12)]
    text = " ".join(" ".join(time_lines(VIEW)).split())
    assert "Imports (medians): API server 2.0 s, worker 4.0 s." in text
    assert "Sums of several launches: 2 (2)." in text


def test_the_figure_stacks_what_is_known() -> None:
    fig = time_figure(VIEW)
    assert [bar.name for bar in fig.data] == [s for s in STAGES if s not in {"compile", "capture"}]
    assert fig.layout.barmode == "stack"
    for i, t in enumerate(VIEW.trials):
        assert sum(bar.y[i] for bar in fig.data) == pytest.approx(t.total)
    looks = {(bar.marker.color, bar.marker.pattern.shape) for bar in fig.data}
    assert len(looks) == len(fig.data)


@pytest.mark.double
def test_a_run_splits_every_launch_and_says_so(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    done = autotune("run", str(study), "--trials", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = autotune("status", "--time", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    found = json.loads(autotune("status", "--time", "--json", cwd=tmp_path).stdout)
    launches = query(tmp_path, "select planned_at, ended_at from autotune_launches order by 1")
    assert [t["trial"] for t in found["trials"]] == [0, 1]
    for t in found["trials"]:
        known = {s for s, seconds in t["seconds"].items() if seconds is not None}
        assert known >= {"tuner", "spawn", "first", "warm-up", "measuring", "stop", "other"}
        assert t["seconds"]["imports"] is None  # the double has no log
        assert sum(s for s in t["seconds"].values() if s is not None) == pytest.approx(t["total"])
    spans = [float(str(e)) - float(str(p)) for p, e in launches]
    for t, span in zip(found["trials"], spans, strict=True):
        # begins before the row is written; another clock, which somebody may set a little
        assert t["total"] - t["seconds"]["tuner"] > 0.99 * span
    refused = autotune("status", "--time", "--trial", "0", cwd=tmp_path)
    assert refused.returncode == 2


def test_a_database_from_before_time_was_split_says_so(tmp_path: Path) -> None:
    results = ROOT / "studies" / "results"
    shutil.copy(results / "demo-cpu" / "autotune.db", tmp_path)
    old = autotune("status", "--time", cwd=tmp_path)
    assert old.returncode == 2
    assert "no launch whose time was split" in old.stderr
    assert len(old.stderr.strip().splitlines()) == 1
