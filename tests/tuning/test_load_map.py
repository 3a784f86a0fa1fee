"""`autotune map`: what is sent and shown, and whole maps over the server double."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from autotune.bench.interference import IdleBaseline, MachineState
from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.bench.session import Result
from autotune.bench.workload import Request, Workload, build_workload
from autotune.engine.adaptive_verification import why_no_adaptive
from autotune.engine.command import LaunchPlan, plan_launch
from autotune.engine.draft_schedule import (
    scheduled,
    speculative_argument,
    why_no_schedule,
)
from autotune.engine.probe import VllmInfo
from autotune.errors import FailureKind, LaunchError, MeasureError
from autotune.output.figures.load_map import load_sweep_figure
from autotune.results.load_map import (
    LoadSweepView,
    LoadView,
    PointView,
    load_sweep_json,
    load_sweep_lines,
)
from autotune.results.load_map_ways import Advice, MapWay
from autotune.results.measured import resolver_of
from autotune.results.read_load_map import PARTS
from autotune.serving.process_tree import Identity
from autotune.stats import Interval
from autotune.stats.crossover import Rate, Schedule
from autotune.stats.stopping import Stop
from autotune.study.files import LoadedStudy, load_study
from autotune.study.schema import StudySpec
from autotune.study.speculative import SCHEDULE
from autotune.tuning.load_map_requests import map_requests, order, part_sizes
from autotune.tuning.prepare import Prepared
from tests.stats.test_referee import TABLE
from tests.storage.test_migrations import as_first_release
from tests.studies import (
    DOUBLE,
    UNENDED,
    autotune,
    finished,
    processes_of,
    query,
    start_autotune,
    trials,
    use_tools,
    wait_for_event,
    write_study,
)

LAUNCHES = "select trial, attempt, failure_kind from autotune_launches order by planned_at"
PARTS_DONE = "select point, concurrency, part from autotune_loads order by id"
INFO = VllmInfo("0.32.0", "vllm", sys.executable, "cpu", None, (), ())


def prepared(loaded: LoadedStudy) -> Prepared:
    workload = build_workload(loaded.spec.workload, loaded.base)
    return Prepared(loaded, INFO, workload, workload, (), lambda ref: ref)


# -- what is sent ------------------------------------------------------------------------------


def test_loads_are_measured_there_and_back() -> None:
    assert order([4, 1, 2]) == [(1, 0), (2, 0), (4, 0), (4, 1), (2, 1), (1, 1)]


def test_a_higher_load_gets_more_requests() -> None:
    spec = load_study("demo-cpu-arms").spec  # 80 requests, two at a time
    sizes = [part_sizes(spec, load) for load in (1, 2, 4, 64)]
    assert [most for _, most in sizes] == [20, 40, 80, 160]
    assert all(16 <= fewest <= most for fewest, most in sizes)
    assert all(fewest >= 2 * load for (fewest, _), load in zip(sizes[:3], (1, 2, 4), strict=True))


def prompts(*of: Sequence[Request]) -> list[tuple[int, ...]]:
    return [tuple(r.prompt or ()) for requests in of for r in requests]


@pytest.mark.parametrize("warmup", [0, 2, 40])
def test_no_measured_prompt_of_a_launch_was_sent_before(tmp_path: Path, warmup: int) -> None:
    loads = [1, 4, 16]
    study = write_study(tmp_path, workload__warmup_prompts=warmup)
    found = map_requests(prepared(load_study(str(study))), loads)
    assert not found.repeated
    assert len(found.warmup) == warmup
    measured = prompts(*found.measured.values())
    assert len(set(measured)) == len(measured) > 100
    # those that keep the places busy are few, and may come again
    others = prompts(found.warmup, *found.lead.values())
    assert not set(measured) & set(others)
    assert len(set(others)) == (warmup or max(loads))
    assert found.measured.keys() == {(x, part) for x in loads for part in range(PARTS)}
    for (load, part), requests in found.measured.items():
        assert [r.index for r in requests] == list(range(len(requests)))
        lead = found.lead[load, part]
        assert [r.index for r in lead] == list(range(load))  # as many as there are places


def test_too_few_prompts_are_sent_again() -> None:
    demo = prepared(load_study("demo-cpu"))  # a file of 144 prompts
    assert not map_requests(demo, [1, 4]).repeated  # the command that its study names
    found = map_requests(demo, [1, 2, 4])
    assert found.repeated
    assert [len(found.measured[x, 1]) for x in (1, 2, 4)] == [16, 24, 48]


# -- what is recommended, and how it is written ------------------------------------------------

RANGES: Schedule = ((1, 2, 3), (3, 16, 0))
DRAFT = {"method": "dflash", "model": "org/draft"}


def point(n: int, values: dict[int, float], ranges: Schedule | None = None) -> PointView:
    loads = {
        load: LoadView(Rate(v, 0.01), 1000 / v, (None, None), 64, 1.5 if n else None, ())
        for load, v in values.items()
    }
    return PointView(n, ranges, None, None, loads)


def view(*schedule: PointView, **changes: Any) -> LoadSweepView:
    points = (
        point(0, {1: 50, 4: 170, 16: 400}),
        point(1, {1: 57, 4: 175, 16: 360}),
        point(3, {1: 63, 4: 162, 16: 270}),
    )
    given: dict[str, Any] = {
        "study": "demo",
        "vllm": "0.32.0",
        "machine": "a machine with a long name, 2 cores, 24 GiB",
        "point": {"max_num_batched_tokens": 2048},
        "flags": {"max_num_seqs": 16},
        "loads": (1, 4, 16),
        "points": (*points, *schedule),
        "variance": None,
        "schedule": RANGES,
        "why_no_schedule": None,
        "arguments": {1: '{"n": 1}', 3: '{"n": 3}'},
        "way_arguments": {MapWay(3, RANGES): '{"schedule": 1}'},
        "same_file": True,
    }
    return LoadSweepView(**given | changes)


def test_a_schedule_is_recommended_only_if_its_launch_won() -> None:
    best = {1: 57, 4: 175, 16: 360}  # n = 1 is the best fixed one
    won = view(point(3, {1: 63, 4: 175, 16: 400}, RANGES))
    assert won.fixed == 1
    assert won.over_fixed is not None
    assert won.over_fixed.low is not None
    assert won.over_fixed.low > 1
    assert (won.advice, won.argument) == (Advice.SCHEDULE, '{"schedule": 1}')
    for same in (
        best,
        {k: 1.01 * v for k, v in best.items()},
        {k: 0.9 * v for k, v in best.items()},
    ):
        tied = view(point(3, same, RANGES))
        assert (tied.advice, tied.argument) == (Advice.FIXED, '{"n": 1}')
    failed = view(PointView(3, RANGES, "crash", "the server died", {}))
    assert failed.advice is Advice.FIXED_FAILED
    assert view().advice is Advice.FIXED_UNCHECKED
    assert view(schedule=None).advice is Advice.FIXED_ENOUGH
    assert view(why_no_schedule="too old").advice is Advice.FIXED_ONLY
    # of other numbers than now
    assert view(point(3, {1: 99, 4: 999, 16: 999}, ((1, 9, 3),))).advice is Advice.FIXED_UNCHECKED


def test_a_recommendation_says_which_concurrencies_it_is_for() -> None:
    every = "\n".join(load_sweep_lines(view(schedule=None)))
    assert "over all concurrencies" in " ".join(every.split())
    some = (point(0, {1: 50, 4: 170}), point(1, {1: 57, 4: 175, 16: 360}))
    two = " ".join(load_sweep_lines(view(points=some, schedule=None)))
    assert "as the mean over concurrencies 1, 4" in " ".join(two.split())
    lone = view(points=(point(0, {1: 50}), point(1, {1: 57, 4: 175, 16: 360})), schedule=None)
    assert lone.advice is Advice.FIXED_ONE_LOAD
    text = " ".join(" ".join(load_sweep_lines(lone)).split())
    assert "at concurrency 1, the only one with numbers" in text
    assert "every concurrency" not in text


@pytest.mark.parametrize(
    "shown",
    [
        view(),
        view(point(3, {1: 63, 4: 175, 16: 400}, RANGES)),
        view(schedule=None, machine="", vllm=None, same_file=False),
        view(PointView(7, None, "oom", "no memory " * 20, {})),
        view(points=()),
        view(points=(point(0, {1: 50, 4: 170, 16: 400}),), schedule=None),
        view(loads=tuple(range(1, 33))),
        view(lossy=("fly",), arm="fixed"),
        view(points=tuple(point(n, {1: 60, 4: 170, 16: 300}) for n in (0, 1, 2, 3, 5, 7, 11, 15))),
    ],
)
def test_a_map_fits_a_terminal_of_80_columns(shown: LoadSweepView) -> None:
    lines = load_sweep_lines(shown)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert ("To serve it" in text) == (shown.fixed is not None)
    found = load_sweep_json(shown)
    json.dumps(found)
    assert (found["recommended"] is None) == (shown.fixed is None)
    assert load_sweep_figure(shown).layout.xaxis.type == "log"


def test_a_map_says_what_it_found() -> None:
    text = " ".join(" ".join(load_sweep_lines(view())).split())
    # a standard error of 1 % by eight batches: 63 and 63/50 times exp(± 2.365 · 0.01 [· √2])
    assert "1 3 63.0 [61.5, 64.5] 1.26 [1.22, 1.30] 15.9" in text
    assert "pays up to a concurrency of about 5.4 [3.9, 7.6]: 1.03 [1.00, 1.06] × at 4" in text
    assert "0.90 [0.87, 0.93] × at 16 with n = 1." in text
    assert "concurrency n = 1 n = 3 1 1.14 1.26 4 1.03 0.95 16 0.90 0.68 tok/step 1.50 1.50" in text
    assert "1 to 2: n = 3; 3 to 16: n = 0" in text
    assert "within one launch" in text
    lossy = " ".join(" ".join(load_sweep_lines(view(lossy=("quick",), arm="plain"))).split())
    assert "Lossy, quick: rejection_sample_method: fly is lossy" in lossy
    assert "fixed n of arm plain" in lossy
    uncertain = PointView(
        3,
        None,
        None,
        None,
        {
            load: LoadView(Rate(v, 0.3), 1, (None, None), 64, 1.5, ("disturbed: by much", w))
            for load, v, w in ((1, 63, "drifting: 9%"), (4, 162, "drifting: 7%"))
        },
    )
    none = point(0, {1: 50, 4: 170})
    shown = load_sweep_lines(view(points=(none, uncertain), loads=(1, 4), schedule=None))
    assert shown[-2:] == [
        "warning: n = 3 at 1; n = 3 at 4: disturbed: by much",
        "warning: n = 3 at 1; n = 3 at 4: drifting: such as 9%",
    ]
    assert "By the intervals none of this is certain." in " ".join(" ".join(shown).split())
    failed = " ".join(load_sweep_lines(view(PointView(7, None, "oom", "no memory", {}))))
    assert "n = 7 failed: oom: no memory" in failed


def test_the_picture_has_a_line_for_each_n_and_the_crossover() -> None:
    figure = load_sweep_figure(view(point(3, {1: 63, 4: 175, 16: 400}, RANGES)))
    assert [t.name for t in figure.data] == ["n = 1", "n = 3", "schedule"]
    assert list(figure.data[1].y) == pytest.approx([63 / 50, 162 / 170, 270 / 400])
    assert all(e > 0 for e in figure.data[0].error_y.array)
    texts = [a.text for a in figure.layout.annotations]
    assert texts == [" no speculation", " crossover 5.4"]


def test_the_picture_has_the_other_ways_and_where_they_pass() -> None:
    loads = tuple(TABLE["0"])
    fixed = (point(0, TABLE["0"]), point(7, TABLE["7"]))
    other = dataclasses.replace(point(7, TABLE["adaptive"]), adaptive=True)
    shown = view(points=(*fixed, other), loads=loads, schedule=None)
    figure = load_sweep_figure(shown)
    assert [t.name for t in figure.data] == ["n = 7", "adaptive n = 7"]
    assert figure.data[1].line.dash != figure.data[0].line.dash
    texts = [a.text for a in figure.layout.annotations]
    assert " adaptive n = 7: faster above 44" in texts
    [band] = [s for s in figure.layout.shapes if s.type == "rect"]
    assert 32 < band.x0 < 44.3 < band.x1 < 64
    # the first point has not been confirmed, and it says so
    assert "Not confirmed: each way was launched once" in " ".join(
        " ".join(load_sweep_lines(shown)).split()
    )


def test_the_argument_is_what_vllm_takes(tmp_path: Path) -> None:
    server = load_study(str(write_study(tmp_path))).spec.server
    params = {"max_num_batched_tokens": 64, "speculative.draft_tensor_parallel_size": 1}
    shown = speculative_argument(server, 3, params, RANGES, lambda ref: ref)
    assert json.loads(shown) == {
        **DRAFT,
        "draft_tensor_parallel_size": 1,
        "num_speculative_tokens": 3,
        SCHEDULE: [[1, 2, 3], [3, 16, 0]],
    }
    argv = plan_launch(
        scheduled(server, RANGES),
        {"num_speculative_tokens": 3, **params},
        INFO,
        port=1,
        launch_id="x",
        resolve=lambda ref: ref,
    ).argv
    given = json.loads(argv[argv.index("--speculative-config") + 1])
    assert given == json.loads(shown)
    fixed = speculative_argument(scheduled(server, RANGES), 3, {}, None, lambda ref: ref)
    assert SCHEDULE not in json.loads(fixed)


def test_which_versions_take_a_schedule() -> None:
    for version in ("0.24.0", "0.26.0", "0.32.0+cpu", "0.40.1"):
        assert why_no_schedule(version) is None
    assert "0.23.0" in str(why_no_schedule("0.23.0"))
    assert "unknown" in str(why_no_schedule(None))
    assert why_no_schedule(None, "0.32.0") is None
    assert why_no_schedule("dev", "0.32.0+cpu") is None
    assert "unknown" in str(why_no_adaptive("dev"))
    assert "0.27.0" in str(why_no_adaptive("dev", "0.27.0"))


# -- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "args", "words"),
    [
        (
            {"server__speculative": None, "space__num_speculative_tokens__high": 0},
            (),
            "speculative",
        ),
        ({"space__num_speculative_tokens__high": 0}, (), "space.num_speculative_tokens"),
        ({"space__max_num_batched_tokens__high": 32}, ("--concurrency", "1,64"), "load of 64"),
        ({}, ("--concurrency", "0,1"), "--concurrency"),
        ({}, ("--concurrency", "1,,2"), "--concurrency"),
        ({}, ("--concurrency", "many"), "many"),
        ({}, ("--plot", "no/such/map.html"), "no/such"),
        ({}, ("--launches", "1"), "--launches"),
        ({}, ("--show",), "no such database"),
    ],
)
def test_mistakes_are_told_before_anything_is_launched(
    tmp_path: Path, changes: dict[str, object], args: tuple[str, ...], words: str
) -> None:
    study = write_study(tmp_path, **changes)
    done = autotune("map", str(study), *args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    if (tmp_path / "autotune.db").exists():
        assert query(tmp_path, LAUNCHES) == []


def test_a_database_of_before_there_were_maps(tmp_path: Path) -> None:
    study = write_study(tmp_path, space__max_num_batched_tokens__high=32)
    autotune("map", str(study), "--concurrency", "64", cwd=tmp_path)  # makes it, and is refused
    as_first_release(tmp_path / "autotune.db")
    done = autotune("map", str(study), "--show", cwd=tmp_path)
    assert done.returncode == 2
    assert "has no load sweep of double yet" in done.stderr
    autotune("map", str(study), "--concurrency", "64", cwd=tmp_path)
    assert query(tmp_path, PARTS_DONE) == []  # it is there again


# -- the loop over a server that answers at once -----------------------------------------------


def demo_speed(n: int, load: int) -> float:
    """tok/s of the demo pair: a step costs a base, each token in it, and a draft."""
    length = {0: 1.0, 1: 1.54, 2: 1.77, 3: 1.88, 5: 1.92}.get(n, 1.94)
    return load * length / (18e-3 + 1.4e-3 * load * (n + 1) + 6e-3 * (n > 0))


N_FLAG = "--speculative-config"


class Instant:
    """Stands in for Server and Measuring: no process, and numbers without a measurement.

    Attributes:
        fails: Kind of failure of a part, by n and load.
        interrupts: The parts, counted from 1, that are interrupted.
        schedule_factor: How many times as fast as its n a schedule is.
        speed: Returns tok/s by n, load, whether it is adaptive, and number of the launch.
        adaptive: Of each launch, whether it has adaptive verification.
        methods: Of each launch, how it drafts.
        faster: How many times as fast a method is.
        version: Of its servers.
    """

    def __init__(self) -> None:
        self.fails: dict[tuple[int, int], FailureKind] = {}
        self.interrupts: set[int] = set()
        self.schedule_factor = 1.0
        self.version = "0.32.0"
        self.parts = 0
        self.launched: list[tuple[int, list[list[int]] | None]] = []
        self.adaptive: list[bool] = []
        self.methods: list[str | None] = []
        self.faster: dict[str, float] = {}
        self.speed: Callable[[int, int, bool, int], float] = lambda n, load, *_: demo_speed(n, load)
        self.alive = 0

    def server(self, plan: LaunchPlan, *, launch_id: str, **_: object) -> Any:
        words = plan.argv
        text = words[words.index("--speculative-config") + 1] if N_FLAG in words else "{}"
        config = json.loads(text)
        n, ranges = config.get("num_speculative_tokens", 0), config.get(SCHEDULE)

        def start(_gpus: object) -> Identity:
            self.launched.append((n, ranges))
            self.methods.append(config.get("method"))
            self.adaptive.append(config.get("enable_adaptive_verification") is True)
            self.alive += 1
            return Identity(launch_id, "boot", 1, 1, 1, 1, None)

        def stop(**_: object) -> Any:
            self.alive -= 1
            return SimpleNamespace(exit_code=0, killed=0)

        return SimpleNamespace(
            start=start,
            wait_ready=lambda _: self.version,
            stop=stop,
            gpus_before=(),
            log_tail=list,
            n=n,
            ranges=ranges,
        )

    def measuring(self, server: Any, spec: StudySpec, _objectives: object, **kw: Any) -> Any:
        load = spec.workload.max_concurrency or 0

        def measure(workload: Workload, rest: IdleBaseline, **_: object) -> Result:
            self.parts += 1
            if self.parts in self.interrupts:
                raise KeyboardInterrupt
            if (kind := self.fails.get((server.n, load))) is not None:
                raise MeasureError(kind, "it went")
            n, factor = server.n, self.faster.get(str(self.methods[-1]), 1.0)
            if server.ranges is not None:
                n = next(k for a, b, k in server.ranges if a <= load <= b)
                factor = self.schedule_factor
            value = factor * self.speed(n, load, self.adaptive[-1], len(self.launched))
            kw["keep"]([sample(i) for i in range(len(workload.measured))])
            return Result(
                values={"throughput": value},
                intervals={"throughput": Interval(value * 0.98, value * 1.02, 0.97)},
                errors={"throughput": 0.01},
                stats=ServerStats(*[None] * 4, (), *[None] * 3),
                requests=len(workload.measured),
                stop=Stop.ALL,
                dominated_by=None,
                warmup_requests=0,
                steady=True,
                busy=True,
                unanswered=0,
                drift=None,
                machine=MachineState(rest, 1.0, 2, 1.0, 0.0, 0.0, 0.0, (), ()),
            )

        return SimpleNamespace(warm=lambda _: None, measure=measure)


def sample(i: int) -> Sample:
    return Sample(i, "measure", 0.0, 0.1 * i, 0.01, 0.1 * i + 0.5, 5, 12, "ok", None, (0.01, 0.5))


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> Instant:
    return stand_in(monkeypatch)


def no_wait(_earlier: object) -> IdleBaseline:
    return IdleBaseline(0.1, None, ())


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Instant:
    """Servers and measurements are an :class:`Instant`'s from here on."""
    found = Instant()
    use_tools(
        monkeypatch, server=found.server, measuring=found.measuring, take_idle_baseline=no_wait
    )
    return found


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside other tests the machine is never at rest, and each launch would wait 6 s for it."""
    use_tools(monkeypatch, take_idle_baseline=no_wait)


WIDE = ("--concurrency", "1,2,4,8,16", "--json")


def test_few_launches_find_the_best_n_of_every_load(tmp_path: Path, instant: Instant) -> None:
    done = autotune("map", str(write_study(tmp_path)), *WIDE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [n for n, ranges in instant.launched if ranges is None] == [0, 3, 7, 1, 2]
    assert "no further n is launched" in done.stderr
    assert [x["best_n"] for x in found["loads"]] == [3, 2, 1, 0, 0]
    assert (found["crossover"]["wins"], found["crossover"]["loses"]) == (4, 8)
    assert found["schedule"] == [[1, 5, 2], [6, 16, 0]]
    assert found["recommended"]["what"] == "schedule"
    assert found["points"][-1]["loads"]["16"]["requests"] >= 64
    assert instant.alive == 0


@pytest.mark.parametrize(("factor", "what"), [(1.0, "schedule"), (0.94, "fixed"), (0.7, "fixed")])
def test_a_schedule_that_does_not_win_is_not_recommended(
    tmp_path: Path, instant: Instant, factor: float, what: str
) -> None:
    instant.schedule_factor = factor
    done = autotune("map", str(write_study(tmp_path)), *WIDE, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert instant.launched[-1] == (2, [[1, 5, 2], [6, 16, 0]])
    assert found["recommended"]["what"] == what
    assert (SCHEDULE in found["recommended"]["speculative_config"]) == (what == "schedule")


def test_a_suggested_schedule_that_is_asked_for_is_launched_once(
    tmp_path: Path, instant: Instant
) -> None:
    study = write_study(tmp_path)
    first = json.loads(autotune("map", str(study), *WIDE, cwd=tmp_path).stdout)
    assert first["schedule"] == [[1, 5, 2], [6, 16, 0]]
    launched = len(instant.launched)
    asked = autotune("map", str(study), *WIDE, "--schedule", "1:2,6:0", cwd=tmp_path)
    assert json.loads(asked.stdout) == first
    assert len(instant.launched) == launched


@pytest.mark.parametrize("part", [1, 10, 11, 17, 55])
def test_an_interrupted_map_goes_on_at_the_same_part(
    tmp_path: Path, instant: Instant, part: int
) -> None:
    study = write_study(tmp_path)
    instant.interrupts = {part}
    assert autotune("map", str(study), *WIDE, cwd=tmp_path).returncode == 130
    assert instant.alive == 0
    before = query(tmp_path, PARTS_DONE)
    assert len(before) == part - 1
    done = autotune("map", str(study), *WIDE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = query(tmp_path, PARTS_DONE)
    assert rows[: len(before)] == before
    assert len(set(rows)) == len(rows) == 6 * 10  # five n and the schedule
    assert instant.parts == 60 + 1
    assert query(tmp_path, UNENDED) == [(0,)]


@pytest.mark.parametrize(
    ("kind", "launches"), [(FailureKind.OOM, 1), (FailureKind.CRASH, 2), (FailureKind.HANG, 2)]
)
def test_a_failure_at_one_load_takes_the_numbers_of_all(
    tmp_path: Path, instant: Instant, kind: FailureKind, launches: int
) -> None:
    instant.fails = {(3, 4): kind}
    done = autotune("map", str(write_study(tmp_path)), *WIDE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert instant.launched.count((3, None)) == launches
    [failed] = [p for p in json.loads(done.stdout)["points"] if p["failure_kind"]]
    assert (failed["n"], failed["failure_kind"], failed["loads"]) == (3, str(kind), {})


@pytest.mark.parametrize("kind", [FailureKind.DISK, FailureKind.MACHINE])
def test_a_fault_of_the_machine_is_none_of_an_n(
    tmp_path: Path, instant: Instant, kind: FailureKind
) -> None:
    study = write_study(tmp_path)
    instant.fails = {(3, 4): kind}
    done = autotune("map", str(study), *WIDE, cwd=tmp_path)
    assert done.returncode == 1
    assert "mend that" in done.stderr.strip().splitlines()[-1]
    instant.fails = {}
    found = json.loads(autotune("map", str(study), *WIDE, cwd=tmp_path).stdout)
    assert {p["n"]: p["failure_kind"] for p in found["points"]}[3] is None


def run_map(folder: Path, study: Path, *args: str) -> dict[str, Any]:
    done = autotune("map", str(study), "--concurrency", "1,8", "--json", *args, cwd=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_vllm_without_schedules_is_given_none(tmp_path: Path, instant: Instant) -> None:
    instant.version = "0.23.0"
    done = autotune("map", str(write_study(tmp_path)), *WIDE[:2], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(instant.launched) == 5
    assert all(ranges is None for _, ranges in instant.launched)
    text = " ".join(done.stdout.split())
    assert "1 to 5: n = 2; 6 to 16: n = 0. vLLM 0.23.0 has no schedule" in text
    assert "Recommended: n = 1, at" in text
    assert "; this vLLM is given no schedule." in text


def test_the_budget_grows_with_max_num_seqs(tmp_path: Path, instant: Instant) -> None:
    study = write_study(tmp_path, baseline={"max_num_batched_tokens": 32})
    done = autotune(
        "map", str(study), "--concurrency", "1,64", "--launches", "2", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["params"] == {"max_num_batched_tokens": 64}
    assert found["flags"] == {"max_num_seqs": 64}
    assert "MNBT is 64 in this map" in done.stderr
    assert "max-num-seqs is 64 in this map" in done.stderr
    [argv, *_] = query(tmp_path, "select argv from autotune_launches")
    assert '"--max-num-batched-tokens", "64"' in str(argv)


def test_more_loads_and_launches_add_to_a_map(tmp_path: Path, instant: Instant) -> None:
    study = write_study(tmp_path, server__flags={"max-num-seqs": 8})
    autotune("map", str(study), "--concurrency", "1", "--launches", "2", cwd=tmp_path)
    first = query(tmp_path, PARTS_DONE)
    assert [r[1:] for r in first] == [(1, 0), (1, 1)] * 2
    assert [n for n, _ in instant.launched] == [0, 3]
    run_map(tmp_path, study, "--launches", "3")
    rows = query(tmp_path, PARTS_DONE)
    assert rows[:4] == first
    assert [r[1:] for r in rows[4:8]] == [(8, 0), (8, 1)] * 2  # of n = 0 and 3: what was missing
    assert [r[1:] for r in rows[8:12]] == [(1, 0), (8, 0), (8, 1), (1, 1)]
    assert [n for n, ranges in instant.launched if ranges is None] == [0, 3, 0, 3, 7]


@pytest.mark.double
@pytest.mark.usefixtures("no_rest")
def test_the_study_gives_the_other_parameters_and_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(
        tmp_path, space__max_num_batched_tokens={"type": "pow2", "low": 8, "high": 8}
    )
    assert autotune("run", str(study), "--trials", "2", cwd=tmp_path).returncode == 0
    before = trials(tmp_path)
    instant = stand_in(monkeypatch)
    found = run_map(tmp_path, study, "--launches", "2")
    assert found["params"] == {"max_num_batched_tokens": 8}
    assert found["points"][0]["n"] == 0
    assert len(instant.launched) == len(found["points"]) >= 2
    assert trials(tmp_path) == before
    assert finished(tmp_path) == 2
    # neither is the map's a study of its own
    assert query(tmp_path, "select name from autotune_studies") == [("double",)]


def test_the_time_may_be_up_at_once(tmp_path: Path, instant: Instant) -> None:
    study = write_study(tmp_path)
    done = autotune("map", str(study), "--timeout", "0.00001", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the time limit was reached" in done.stderr
    assert "nothing can be recommended" in done.stdout
    assert instant.launched == []


# -- other ways to speculate ---------------------------------------------------------------------


def with_vllm(monkeypatch: pytest.MonkeyPatch, version: str, device: str = "cuda") -> None:
    """The study's vLLM is known, as that of the double is not."""
    info = VllmInfo(version, "vllm", sys.executable, device, None, (), ())
    monkeypatch.setattr("autotune.tuning.prepare.probe", lambda _server: info)


def published(n: int, load: int, adaptive: bool, launch: int) -> float:
    """tok/s of vllm#52362 by concurrency; launches differ by 0.4 %."""
    value = TABLE["adaptive" if adaptive else str(n)][load]
    return value * (1 + 0.004 * (-1) ** (launch // 2))


def test_the_published_table_is_refereed(
    tmp_path: Path, instant: Instant, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vllm(monkeypatch, "0.32.0")
    instant.speed = published
    study = write_study(
        tmp_path,
        space__num_speculative_tokens={"type": "choice", "choices": [0, 7]},
        space__max_num_batched_tokens__high=8192,
        baseline={"max_num_batched_tokens": 8192},
    )
    loads = ",".join(map(str, TABLE["0"]))
    args = ("map", str(study), "--concurrency", loads, "--ways", "adaptive", "--confirm", "8")
    done = autotune(*args, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "that launch takes longer" in done.stderr
    found = json.loads(done.stdout)
    # the sweep, then there and back: the best fixed n over all loads and at 256, and the rival
    sweep = [(0, False), (7, False), (7, True)]
    launched = [(n, a) for (n, _), a in zip(instant.launched, instant.adaptive, strict=True)]
    assert launched[:3] == sweep
    assert launched[3:] == launched[:2:-1]  # there and back
    assert sorted(set(launched[3:])) == [(0, False), (7, False), (7, True)]
    served = {int(load): way["name"] for load, way in found["referee"]["serve"].items()}
    assert served == {load: "adaptive n = 7" if load >= 64 else "n = 7" for load in TABLE["0"]}
    [cross] = found["referee"]["crossovers"]
    assert 32 < cross["low"] < 44 < cross["high"] < 64
    assert cross["wins_above"]
    assert found["recommended"]["what"] == "adaptive"
    assert json.loads(found["recommended"]["speculative_config"])["enable_adaptive_verification"]
    assert [p["acceptance_biased"] for p in found["points"]] == [False, False, True]
    assert found["referee"]["only_fixed_draft_n"] == 7
    text = " ".join(autotune("map", str(study), "--show", cwd=tmp_path).stdout.split())
    assert "To serve, by concurrency: 4 to 32: n = 7; 64 to 256: adaptive n = 7." in text
    assert "n = 7 is the only n of at least 1 that was measured" in text
    assert "Adaptive n = 7 is faster above a concurrency of about 4" in text
    # finished: nothing is launched again
    count = len(instant.launched)
    assert json.loads(autotune(*args, "--json", cwd=tmp_path).stdout) == found
    assert len(instant.launched) == count


def test_a_schedule_is_launched_though_no_n_differs(tmp_path: Path, instant: Instant) -> None:
    instant.speed = lambda n, load, *_: 100.0 * load * (2 if n else 1)  # every n is as good
    study = write_study(tmp_path)
    plain_map = autotune("map", str(study), *WIDE, cwd=tmp_path)
    assert "the numbers suggest no schedule" in plain_map.stderr
    assert json.loads(plain_map.stdout)["referee"] is None
    done = autotune(
        "map", str(study), *WIDE, "--schedule", "1:7,4:3", "--confirm", "4", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    scheduled_at = [i for i, (_, ranges) in enumerate(instant.launched) if ranges is not None]
    assert [instant.launched[i] for i in scheduled_at] == [(7, [[1, 3, 7], [4, 16, 3]])] * 3
    confirming = instant.launched[scheduled_at[0] + 1 :]
    assert confirming == confirming[::-1]
    assert [ranges is None for _, ranges in confirming] == [True, False, False, True]
    assert found["referee"]["confirmed_loads"] == [1, 2, 4, 8, 16]
    assert {x["verdict"] for x in found["referee"]["loads"]} == {"tie"}
    assert found["recommended"]["what"] == "fixed"
    assert found["recommended"]["why"] == "fixed_rivals"
    # what `--show` and a smaller request show is the same
    shown = autotune("map", str(study), "--show", "--json", cwd=tmp_path)
    assert json.loads(shown.stdout) == found


def test_the_schedule_of_the_study_is_a_rival(tmp_path: Path, instant: Instant) -> None:
    instant.speed = lambda n, load, *_: 100.0 * load * (2 if n else 1)
    ranges = [[1, 3, 7], [4, 16, 3]]
    draft = {**DRAFT, SCHEDULE: ranges}
    study = write_study(tmp_path, server__speculative=draft)
    done = autotune("map", str(study), *WIDE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the study's own num_speculative_tokens_per_batch_size" in done.stderr
    assert instant.launched[-1] == (7, ranges)
    assert all(x is None for _, x in instant.launched[:-1])
    [rival] = {x["rival"]["name"] for x in json.loads(done.stdout)["referee"]["loads"]}
    assert rival == "schedule 1:7,4:3"
    none = autotune("map", str(study), *WIDE, "--ways", "none", "--launches", "9", cwd=tmp_path)
    assert none.returncode == 0
    assert instant.launched[-1] == (7, ranges)


@pytest.mark.parametrize("part", [5, 10, 13, 36])
def test_an_interrupted_confirmation_goes_on(tmp_path: Path, instant: Instant, part: int) -> None:
    study = write_study(
        tmp_path, space__num_speculative_tokens={"type": "choice", "choices": [0, 3]}
    )
    args = ("map", str(study), "--concurrency", "1,8", "--ways", "none")
    args = (*args, "--schedule", "1:3,4:0", "--confirm", "6")
    instant.interrupts = {part}
    first = autotune(*args, cwd=tmp_path)
    assert first.returncode == 130
    done = autotune(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = query(tmp_path, PARTS_DONE)
    assert len(set(rows)) == len(rows) == 4 * (3 + 6)
    repeats = query(tmp_path, "select way, repeat from autotune_map_points order by id")
    assert repeats[:3] == [(None, None), (None, None), ("schedule", None)]
    assert sorted(repeats[3:], key=str) == sorted(
        [*[(None, 1), (None, 2)] * 2, ("schedule", 1), ("schedule", 2)], key=str
    )
    # more launches add to it
    more = autotune(*args[:-1], "12", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert len(query(tmp_path, PARTS_DONE)) == 4 * (3 + 12)


class FailsLater(Instant):
    """Stands in for servers of which some do not start again.

    Attributes:
        good: Number of launches that start, whatever they are.
    """

    good = 4

    def server(self, plan: LaunchPlan, *, launch_id: str, **_: object) -> Any:
        found = super().server(plan, launch_id=launch_id)

        def wait_ready(_: object) -> str:
            if found.ranges is not None and len(self.launched) > self.good:
                raise LaunchError(FailureKind.CRASH, "it went away")
            return self.version

        found.wait_ready = wait_ready
        return found


def test_a_rival_that_does_not_start_again_is_not_recommended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = FailsLater()
    use_tools(
        monkeypatch,
        server=servers.server,
        measuring=servers.measuring,
        take_idle_baseline=no_wait,
    )
    study = write_study(tmp_path)
    args = ("map", str(study), "--concurrency", "1,8", "--launches", "3")
    # one launch of it is 11 % faster than the best fixed n, its mean over both loads
    args = (*args, "--schedule", "1:3,4:0", "--confirm", "4")
    done = autotune(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "Not confirmed, because launches of the confirmation failed" in text
    assert (
        "Launched to confirm, schedule 1:3,4:0 failed 2 times: crash: it went away. It is not "
        "recommended."
    ) in text
    assert "launches them again" not in text
    assert "Recommended: no speculation; a way that was faster in one launch failed" in text
    assert max(map(len, done.stdout.splitlines())) <= 80
    count = len(servers.launched)
    found = json.loads(autotune(*args, "--json", cwd=tmp_path).stdout)
    assert len(servers.launched) == count  # what failed twice is not launched again
    [failed] = found["referee"]["failed_to_confirm"]
    assert (failed["way"]["name"], len(failed["reasons"])) == ("schedule 1:3,4:0", 2)
    assert found["recommended"]["why"] == "fixed_again"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--ways", "schedule,luck"), "'luck' is none of schedule, adaptive, arms, none"),
        (("--ways", "adaptive"), "--ways adaptive: enable_adaptive_verification needs "),
        (("--schedule", "1:99"), "--schedule: "),
        (("--schedule", "1:7,8"), "is not a schedule such as 1:7,8:3"),
        (("--schedule", "2:7"), "--schedule: the first batch size must be 1"),
        (("--schedule", "1:7,8:3,4:1"), "--schedule: the batch sizes must ascend"),
        (("--schedule", "1:0"), "--schedule: one n must be at least 1"),
        (("--schedule", "1:7,99:3"), "--schedule: batch size 99 is never reached"),
        (("--confirm", "3"), "takes at least 4 launches"),
        (("--way-launches", "0"), "--way-launches"),
    ],
)
def test_ways_that_cannot_be_are_refused(
    tmp_path: Path,
    instant: Instant,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    words: str,
) -> None:
    with_vllm(monkeypatch, "0.32.0", "cpu")
    study = write_study(tmp_path, space__max_num_batched_tokens__high=64)
    done = autotune("map", str(study), *WIDE, *args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert words in last
    assert "Traceback" not in done.stderr
    assert instant.launched == []


def test_a_vllm_without_adaptive_verification(
    tmp_path: Path, instant: Instant, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vllm(monkeypatch, "0.26.0")
    args = (*WIDE, "--ways", "adaptive")
    done = autotune("map", str(write_study(tmp_path)), *args, cwd=tmp_path)
    assert done.returncode == 2
    assert "vLLM 0.26.0 has no adaptive verification; 0.28 has it for DSpark" in done.stderr
    assert instant.launched == []


def test_adaptive_verification_has_its_own_n(
    tmp_path: Path, instant: Instant, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vllm(monkeypatch, "0.32.0")

    def speed(n: int, load: int, adaptive: bool, _launch: int) -> float:
        return demo_speed(n, load) if not adaptive else load * (60 + n)

    instant.speed = speed
    study = write_study(
        tmp_path, space__max_num_batched_tokens={"type": "int", "low": 64, "high": 64}
    )
    done = autotune("map", str(study), *WIDE, "--ways", "adaptive", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ns = [n for (n, _), a in zip(instant.launched, instant.adaptive, strict=True) if a]
    assert len(ns) == 2  # --way-launches
    assert ns[0] == 3  # the largest best n at any load
    assert ns[1] > 3
    found = json.loads(done.stdout)
    # the faster one stands for both
    assert {x["rival"]["n"] for x in found["referee"]["loads"]} == {ns[1]}


ARMS: dict[str, object] = {
    "by-load": {**DRAFT, SCHEDULE: [[1, 3, 3], [4, 16, 1]]},
    "fixed": DRAFT,
    "ngram": {
        "method": "ngram",
        "prompt_lookup_max": 4,
        "space": {"num_speculative_tokens": {"type": "int", "low": 1, "high": 4}},
    },
}


def test_the_arms_of_a_study_are_rivals(tmp_path: Path, instant: Instant) -> None:
    instant.faster = {"ngram": 1.2}
    study = write_study(tmp_path, server__speculative=None, server__arms=ARMS)
    args = ("map", str(study), *WIDE, "--ways", "arms", "--confirm", "12")
    done = autotune(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the fixed n are those of arm fixed" in done.stderr
    found = json.loads(done.stdout)
    assert found["arm"] == "fixed"
    sweep = [(p["way"]["name"], p["acceptance_biased"]) for p in found["points"]]
    assert sweep[:2] == [("n = 0", False), ("n = 3", False)]
    assert ("by-load schedule 1:3,4:1", True) in sweep
    ngrams = [
        n for (n, _), m in zip(instant.launched, instant.methods, strict=True) if m == "ngram"
    ]
    assert ngrams[:2] == [3, 2]  # the nearest to the best fixed n, and the most promising
    assert all(1 <= n <= 4 for n in ngrams)
    assert found["recommended"]["what"] == "arm"
    config = json.loads(found["recommended"]["speculative_config"])
    assert (config["method"], config["prompt_lookup_max"]) == ("ngram", 4)
    # the schedule of the arm stays with it
    assert [ranges for _, ranges in instant.launched if ranges] == [[[1, 3, 3], [4, 16, 1]]] * (
        len([p for p in found["confirmation"] if p["way"]["arm"] == "by-load"]) + 1
    )
    assert {x["rival"]["arm"] for x in found["referee"]["loads"]} == {"ngram", "by-load"}
    assert json.loads(autotune(*args, cwd=tmp_path).stdout) == found
    assert "ngram n = " in autotune("map", str(study), "--show", cwd=tmp_path).stdout


def test_each_arm_has_the_draft_that_its_launches_had(tmp_path: Path) -> None:
    arms = {"fixed": DRAFT, "other": {**DRAFT, "model": "other"}}
    loaded = load_study(str(write_study(tmp_path, server__speculative=None, server__arms=arms)))
    launches = []
    for n, arm in ((0, "fixed"), (3, "other"), (3, "fixed")):
        point = {"num_speculative_tokens": n, "arm": arm}
        plan = plan_launch(
            loaded.spec.server, point, INFO, port=1, launch_id="x", resolve=lambda ref: f"/at/{ref}"
        )
        launches.append((mock.Mock(argv=list(plan.argv)), arm))
    resolve = resolver_of(loaded, launches)
    assert [resolve(x) for x in (str(DRAFT["model"]), "other", "unknown")] == [
        f"/at/{DRAFT['model']}",
        "/at/other",
        "unknown",
    ]


def test_a_lossy_value_that_is_searched_is_told(tmp_path: Path, instant: Instant) -> None:
    fly = {"type": "choice", "choices": ["fly"]}
    space = {"num_speculative_tokens": {"type": "int", "low": 0, "high": 3}}
    study = write_study(tmp_path, space={**space, "speculative.rejection_sample_method": fly})
    done = autotune("map", str(study), *WIDE, "--launches", "2", "--ways", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lossy"] == ["the draft"]


def test_the_baseline_of_a_study_with_arms_sets_the_other_parameters(
    tmp_path: Path, instant: Instant
) -> None:
    baseline = {"arm": "by-load", "num-speculative-tokens": 3, "max-num-batched-tokens": 512}
    study = write_study(tmp_path, server__speculative=None, server__arms=ARMS, baseline=baseline)
    done = autotune("map", str(study), *WIDE, "--launches", "2", "--ways", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["params"] == {"max_num_batched_tokens": 512}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "--ways arms: "),
        (
            {"server__speculative": None, "server__arms": {"by-load": ARMS["by-load"]}},
            "server.arms: each has a schedule or adaptive verification",
        ),
    ],
)
def test_arms_that_are_no_rivals(
    tmp_path: Path, instant: Instant, changes: dict[str, object], words: str
) -> None:
    if "server__arms" in changes:  # an n in space is for the arms that have none
        space = {"max_num_batched_tokens": {"type": "pow2", "low": 32, "high": 2048}}
        changes = {**changes, "space": space}
    study = write_study(tmp_path, **changes)
    done = autotune("map", str(study), *WIDE, "--ways", "arms", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr.strip().splitlines()[-1]
    assert instant.launched == []


# -- whole maps over the double ----------------------------------------------------------------

# The double, its drafts made so fast that with n = 15 twice as many tokens a second are expected at
# load 1 and 0.4 times as many at 32: beyond any luck, also on a busy machine. It refuses what vLLM
# would refuse of a schedule; with one it is four times as fast.
SCHEDULED = """
import json, os, sys
from pathlib import Path
double = Path({double!r}).read_text()
speed = 1.5
if "--speculative-config" in sys.argv:
    config = json.loads(sys.argv[sys.argv.index("--speculative-config") + 1])
    ranges = config.get("num_speculative_tokens_per_batch_size")
    speed *= 2.5
    if ranges is not None:
        assert ranges[0][0] == 1 and all(a[1] + 1 == b[0] for a, b in zip(ranges, ranges[1:]))
        assert max(r[2] for r in ranges) == config["num_speculative_tokens"] > 0
        speed *= 4
os.environ["DOUBLE_SPEED"] = str(speed)
__file__ = {double!r}
exec(compile(double, {double!r}, "exec"))
"""


@pytest.mark.double
@pytest.mark.usefixtures("no_rest")
def test_a_whole_map_with_its_schedule(tmp_path: Path) -> None:
    script = tmp_path / "scheduled.py"
    script.write_text(SCHEDULED.format(double=DOUBLE))
    study = write_study(
        tmp_path,
        server__command=[sys.executable, str(script)],
        space__num_speculative_tokens={"type": "choice", "choices": [0, 15]},
    )
    args = ("map", str(study), "--concurrency", "1,32", "--json")
    done = autotune(*args, "--plot", "map.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["flags"] == {"max_num_seqs": 32}  # the study has 2
    assert found["params"] == {"max_num_batched_tokens": 2048}
    assert [(p["n"], p["schedule"]) for p in found["points"]] == [
        (0, None),
        (15, None),
        (15, found["schedule"]),
    ]
    for p in found["points"]:
        assert p["loads"].keys() == {"1", "32"}
        for load, x in p["loads"].items():
            low, high = x["interval"]
            assert low < x["tok_s"] < high
            assert x["requests"] >= 2 * max(16, 2 * int(load))
            assert (x["acceptance_length"] is None) == (p["n"] == 0)
    assert [x["best_n"] for x in found["loads"]] == [15, 0]
    assert (found["crossover"]["surely_wins"], found["crossover"]["surely_loses"]) == (1, 32)
    assert 1 < found["crossover"]["load"] < 32
    # launched, the schedule won; so it is what to serve
    assert found["schedule"] == [[1, 5, 15], [6, 32, 0]]
    assert found["schedule_over_best_fixed"]["low"] > 1
    assert found["recommended"]["what"] == "schedule"
    assert json.loads(found["recommended"]["speculative_config"])[SCHEDULE] == found["schedule"]
    assert (tmp_path / "map.html").stat().st_size > 10_000

    # one launch serves all loads, there and back, and each is in the database
    launches = query(tmp_path, LAUNCHES)
    assert len(launches) == 3
    rows = query(tmp_path, PARTS_DONE)
    assert [r[1:] for r in rows] == [(1, 0), (32, 0), (32, 1), (1, 1)] * 3
    argv = [str(a) for (a,) in query(tmp_path, "select argv from autotune_launches")]
    assert all('"--max-num-seqs", "32"' in a for a in argv)
    assert [SCHEDULE in a for a in argv] == [False, False, True]
    asked = "select count(*) from autotune_requests where phase = 'load 1 part 1' and status = 'ok'"
    assert query(tmp_path, asked) == [(16 * 3,)]
    assert query(tmp_path, UNENDED) == [(0,)]
    assert processes_of(tmp_path) == []

    # again, and --show: the same without a launch
    assert json.loads(autotune(*args, cwd=tmp_path).stdout) == found
    shown = autotune("map", str(study), "--show", "--json", cwd=tmp_path)
    assert json.loads(shown.stdout) == found
    assert query(tmp_path, LAUNCHES) == launches
    # it is no study: what shows studies does not see it
    assert "holds no study yet" in autotune("status", cwd=tmp_path).stderr


@pytest.mark.double
@pytest.mark.usefixtures("no_rest")
def test_what_is_measured_is_not_measured_again(tmp_path: Path) -> None:
    study = write_study(tmp_path, server__env={"DOUBLE_STEP_S": "0.005"})
    args = ("map", str(study), "--concurrency", "1,8", "--launches", "2")
    kept = "select id, launch_id, measured_at from autotune_loads order by id"
    before: list[tuple[object, ...]] = []
    for signum in (signal.SIGINT, signal.SIGKILL):
        run = start_autotune(*args, cwd=tmp_path)
        wait_for_event(tmp_path, "measured", len(before) + 1)
        run.send_signal(signal.SIGSTOP)  # it must not be over before it is hit
        assert "the load sweep of double; owner: autotune" in autotune("ps", cwd=tmp_path).stdout
        run.send_signal(signum)
        run.send_signal(signal.SIGCONT)
        _, err = run.communicate()
        assert "Traceback" not in err
        if signum == signal.SIGINT:
            assert run.returncode == 130
            assert "run the same command again to resume" in err
            assert query(tmp_path, UNENDED) == [(0,)]
        now = query(tmp_path, kept)
        assert now[: len(before)] == before
        assert len(before) < len(now) < 8
        before = now
    done = autotune(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert query(tmp_path, kept)[: len(before)] == before
    rows = query(tmp_path, PARTS_DONE)
    assert len(set(rows)) == len(rows)
    for one in {r[0] for r in rows}:
        assert {r[1:] for r in rows if r[0] == one} == {(1, 0), (8, 0), (8, 1), (1, 1)}
    assert len({r[0] for r in query(tmp_path, LAUNCHES)}) < len(query(tmp_path, LAUNCHES))
    assert query(tmp_path, UNENDED) == [(0,)]
    assert processes_of(tmp_path) == []


@pytest.mark.double
@pytest.mark.usefixtures("no_rest")
def test_a_launch_that_dies_is_a_value_without_numbers(tmp_path: Path) -> None:
    env = {
        "DOUBLE_FAIL": "crash_mid",
        "DOUBLE_FAIL_IF": "num_speculative_tokens==3",
        "DOUBLE_FAIL_AFTER": "30",  # after the first part
    }
    study = write_study(tmp_path, server__env=env)
    found = run_map(tmp_path, study, "--launches", "2")
    none, failed = found["points"]
    assert (none["n"], none["failure_kind"], none["loads"].keys()) == (0, None, {"1", "8"})
    assert (failed["n"], failed["failure_kind"], failed["loads"]) == (3, "crash", {})
    assert [r[2] for r in query(tmp_path, LAUNCHES)] == [None, "crash", "crash"]
    text = autotune("map", str(study), "--show", cwd=tmp_path).stdout
    assert "n = 3 failed: crash: " in text
    # it stays a value: the same command does not launch it again
    before = query(tmp_path, LAUNCHES)
    run_map(tmp_path, study, "--launches", "2")
    assert query(tmp_path, LAUNCHES) == before
    assert query(tmp_path, UNENDED) == [(0,)]
    assert processes_of(tmp_path) == []


@pytest.mark.double
@pytest.mark.usefixtures("no_rest")
def test_without_a_number_of_n_0_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    study = write_study(tmp_path, server__env={"DOUBLE_FAIL": "oom"})
    done = autotune("map", str(study), "--concurrency", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert "n = 0 gave no numbers" in done.stderr.strip().splitlines()[-1]
    assert len(query(tmp_path, LAUNCHES)) == 1
