"""Every key of a study, changed, seen by all that compare studies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from pydantic import BaseModel, Field

from autotune.bench.objectives import study_objectives
from autotune.errors import UserError
from autotune.results.comparison import Side, _common, _side, compared
from autotune.storage.store import Store, opened
from autotune.study.differences import (
    FILES,
    POINTS,
    TABLE,
    Difference,
    differences,
    fingerprint,
    in_any_order,
    table,
)
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.keys import Affects, Result
from autotune.study.schema import StudySpec
from autotune.tuning.reuse import _differences
from tests.studies import autotune, query, trials, write_study

OWN = """
from objectives import Objective

OBJECTIVE = Objective(
    "mine", "Mine", "s", "maximize", "a number", "the tests", lambda m: m.throughput + {number}
)
"""
RANDOM: dict[str, Any] = {
    "name": "one",
    "server": {
        "command": "vllm serve",
        "model": "org/target",
        "flags": {"max-num-seqs": 8},
        "speculative": {
            "method": "dflash",
            "model": "org/draft",
            "attention_backend": "flash_attn",
        },
        "env": {"VLLM_LOGGING_LEVEL": "INFO"},
    },
    "space": {
        "num_speculative_tokens": {"type": "int", "low": 0, "high": 15},
        "max_num_batched_tokens": {"type": "pow2", "low": 32, "high": 2048},
    },
    "workload": {
        "random": {"input_len": 16},
        "output_len": 12,
        "num_prompts": 64,
        "max_concurrency": 2,
    },
    "objectives": [
        "throughput",
        {"name": "goodput", "slo": {"ttft_ms": 200, "tpot_ms": 20, "e2el_ms": 900}},
        {"name": "cost", "usd_per_hour": 2},
    ],
}


def changed(raw: Mapping[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy of a study with another value; ``objectives.1.slo`` is a key of the second one."""
    copy = yaml.safe_load(yaml.safe_dump(raw))
    *above, last = path.split(".")
    at: Any = copy
    for part in above:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    if isinstance(at, list):
        at[int(last)] = value
    else:
        at[last] = value
    return copy


def with_source(key: str, value: object) -> dict[str, Any]:
    workload = {k: v for k, v in RANDOM["workload"].items() if k != "random"}
    return {**RANDOM, "workload": {**workload, key: value}}


BASES: dict[str, dict[str, Any]] = {
    "random": RANDOM,
    "prompts": with_source("prompts", "a.jsonl"),
    "sharegpt": with_source("sharegpt", {"file": "a.json", "tokenizer": "org/tokens"}),
    "replay": with_source("replay", {"file": "a.jsonl", "speed": 2}),
    "rate": changed(RANDOM, "workload.request_rate", 2.5),
    "mine": changed(RANDOM, "objectives.1", {"file": "a/mine.py"}),
}
_ONE = {k: v for k, v in RANDOM["server"].items() if k != "speculative"}
_NGRAM = {"method": "ngram", "space": {"prompt_lookup_max": {"type": "int", "low": 2, "high": 4}}}
BASES["arms"] = {**RANDOM, "server": {**_ONE, "arms": {"a": {"model": "org/d"}, "b": _NGRAM}}}
_RATES = [round(0.7**i, 6) for i in range(1, 16)]
_LOWER = [round(0.6**i, 6) for i in range(1, 16)]
for _name, _given in (
    ("rates", {"rates": _RATES}),
    ("counted", {"from": "a.db", "by_n": [_RATES], "decay": 0.9}),
    ("one rate", {"rate": 0.7}),
    ("length", {"length": 3.0, "decay": 0.9, "positions": 15}),
):
    _both = {"target": "dummy", "draft": "dummy"}
    assert _name not in BASES
    BASES[_name] = {**RANDOM, "rehearsal": {"acceptance": _given, "weights": _both}}
# Of each key a study, where in it, and another value.
CHANGES: dict[str, tuple[str, str, object]] = {
    "name": ("random", "name", "another"),
    "description": ("random", "description", "other words"),
    "server.command": ("random", "server.command", "other serve"),
    "server.model": ("random", "server.model", "org/other"),
    "server.flags": ("random", "server.flags.max-num-seqs", 4),
    "server.env": ("random", "server.env.VLLM_LOGGING_LEVEL", "DEBUG"),
    "server.speculative.method": ("random", "server.speculative.method", "eagle3"),
    "server.speculative.model": ("random", "server.speculative.model", "org/better"),
    "server.speculative.*": ("random", "server.speculative.attention_backend", "triton"),
    "server.arms.method": ("arms", "server.arms.a.method", "eagle3"),
    "server.arms.model": ("arms", "server.arms.a.model", "org/better"),
    "server.arms.space": ("arms", "server.arms.b.space.prompt_lookup_max.high", 5),
    "server.arms.*": ("arms", "server.arms.a.attention_backend", "triton"),
    "server.launch": ("random", "server.launch", "cold"),
    "server.ahead": ("random", "server.ahead", 3),
    "server.health_timeout_s": ("random", "server.health_timeout_s", 1800),
    "server.stop_timeout_s": ("random", "server.stop_timeout_s", 60),
    "space": ("random", "space.block-size", {"type": "choice", "choices": [16, 32]}),
    "baseline": ("random", "baseline", {"max_num_batched_tokens": 512}),
    "workload.prompts": ("prompts", "workload.prompts", "b.jsonl"),
    "workload.random.input_len": ("random", "workload.random.input_len", 17),
    "workload.random.vocab_low": ("random", "workload.random.vocab_low", 300),
    "workload.random.vocab_high": ("random", "workload.random.vocab_high", 30000),
    "workload.sharegpt.file": ("sharegpt", "workload.sharegpt.file", "b.json"),
    "workload.sharegpt.turns": ("sharegpt", "workload.sharegpt.turns", "all"),
    "workload.sharegpt.tokenizer": ("sharegpt", "workload.sharegpt.tokenizer", "org/other"),
    "workload.sharegpt.min_len": ("sharegpt", "workload.sharegpt.min_len", 8),
    "workload.sharegpt.max_input_len": ("sharegpt", "workload.sharegpt.max_input_len", 512),
    "workload.sharegpt.max_total_len": ("sharegpt", "workload.sharegpt.max_total_len", 4096),
    "workload.replay.file": ("replay", "workload.replay.file", "b.jsonl"),
    "workload.replay.speed": ("replay", "workload.replay.speed", 3),
    "workload.replay.timestamp_unit": ("replay", "workload.replay.timestamp_unit", "ms"),
    "workload.replay.vocab_low": ("replay", "workload.replay.vocab_low", 3),
    "workload.replay.vocab_high": ("replay", "workload.replay.vocab_high", 900),
    "workload.output_len": ("random", "workload.output_len", 13),
    "workload.num_prompts": ("random", "workload.num_prompts", 65),
    "workload.confirm_prompts": ("random", "workload.confirm_prompts", 128),
    "workload.warmup_prompts": ("random", "workload.warmup_prompts", 3),
    "workload.tools": ("prompts", "workload.tools", True),
    "workload.repeat": ("prompts", "workload.repeat", True),
    "workload.request_rate": ("rate", "workload.request_rate", 5),
    "workload.arrivals": ("rate", "workload.arrivals", "constant"),
    "workload.max_concurrency": ("random", "workload.max_concurrency", 4),
    "workload.latency_from": ("rate", "workload.latency_from", "send"),
    "workload.ignore_eos": ("random", "workload.ignore_eos", False),
    "workload.temperature": ("random", "workload.temperature", 0.7),
    "workload.seed": ("random", "workload.seed", 1),
    "workload.request_timeout_s": ("random", "workload.request_timeout_s", 60),
    "workload.hang_timeout_s": ("random", "workload.hang_timeout_s", 60),
    "measure.precision": ("random", "measure.precision", 0.1),
    "measure.min_prompts": ("random", "measure.min_prompts", 48),
    "measure.dominated_error": ("random", "measure.dominated_error", 0),
    "measure.repeat_disturbed": ("random", "measure.repeat_disturbed", False),
    "measure.per_request_acceptance": ("random", "measure.per_request_acceptance", False),
    "objectives.name": ("random", "objectives.0", "p95_latency"),
    "objectives.direction": ("random", "objectives.1.direction", "minimize"),
    "objectives.file": ("mine", "objectives.1", {"file": "b/mine.py"}),
    "objectives.slo.ttft_ms": ("random", "objectives.1.slo.ttft_ms", 100),
    "objectives.slo.tpot_ms": ("random", "objectives.1.slo.tpot_ms", 10),
    "objectives.slo.e2el_ms": ("random", "objectives.1.slo.e2el_ms", 800),
    "objectives.usd_per_hour": ("random", "objectives.2.usd_per_hour", 3),
    "search.method": ("random", "search.method", "random"),
    "search.allow_throttled": ("random", "search.allow_throttled", True),
    "budget.trials": ("random", "budget.trials", 80),
    "budget.confirm": ("random", "budget.confirm", 4),
    "budget.replicates": ("random", "budget.replicates", 1),
    "budget.converged": ("random", "budget.converged", 0),
    "budget.timeout_minutes": ("random", "budget.timeout_minutes", 60),
    "rehearsal.acceptance.rates": ("rates", "rehearsal.acceptance.rates", _LOWER),
    "rehearsal.acceptance.by_n": ("counted", "rehearsal.acceptance.by_n", [_LOWER]),
    "rehearsal.acceptance.rate": ("one rate", "rehearsal.acceptance.rate", 0.6),
    "rehearsal.acceptance.length": ("length", "rehearsal.acceptance.length", 4.0),
    "rehearsal.acceptance.positions": ("length", "rehearsal.acceptance.positions", 16),
    "rehearsal.acceptance.decay": ("length", "rehearsal.acceptance.decay", 0.8),
    "rehearsal.acceptance.from": ("counted", "rehearsal.acceptance.from", "b.db"),
    "rehearsal.mixture": ("one rate", "rehearsal.mixture", True),
    "rehearsal.weights.target": ("one rate", "rehearsal.weights.target", "real"),
    "rehearsal.weights.draft": ("one rate", "rehearsal.weights.draft", "real"),
    "rehearsal.seed": ("one rate", "rehearsal.seed", 1),
    "rehearsal.routing": ("one rate", "rehearsal.routing", "uniform"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the studies name; ``b`` says something else than ``a``."""
    here = tmp_path_factory.mktemp("studies")
    for i, name in enumerate("ab"):
        (here / f"{name}.jsonl").write_text(f'{{"prompt": "{name}"}}\n')
        (here / f"{name}.json").write_text(f'["{name}"]')
        (here / name).mkdir()
        (here / name / "mine.py").write_text(OWN.format(number=i))
    return here


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    """A database for all pairs of studies: making one takes a second."""
    with opened(folder / "autotune.db", create=True) as opened_store:
        yield opened_store


def study(folder: Path, raw: Mapping[str, Any]) -> LoadedStudy:
    return parse_study(yaml.safe_dump(raw), folder / "study.yaml")


def begin(store: Store, loaded: LoadedStudy) -> Side:
    """Begin a study, with a load sweep; return it as `compare` has it."""
    store.begin_study(loaded, seed=0, wanted=4)
    optuna.create_study(
        storage=store.storage,
        study_name=loaded.spec.name,
        directions=[o.direction for o in study_objectives(loaded)],
    )
    store.load_maps.add_point(loaded.spec.name, {"fingerprint": fingerprint(loaded)}, 0, None)
    return _side(store, store.database, loaded.spec.name)


def pair(folder: Path, entry: str, name: str) -> tuple[LoadedStudy, LoadedStudy]:
    """A study and the same one with another value of a key."""
    base, path, value = CHANGES[entry]
    raw = {**BASES[base], "name": name}
    if entry == "workload.repeat":
        raw = changed(raw, "server.flags.enable-prefix-caching", value=False)
    return study(folder, raw), study(folder, changed(raw, path, value))


def entry_of(key: str) -> str:
    """The key in the table of a dotted key with names of flags, objectives and so on."""
    for name in ("goodput", "cost"):
        key = key.replace(f"objectives.{name}.", "objectives.")
    if key == "objectives":
        return "objectives.name"
    for name in ("a", "b"):
        key = key.replace(f"server.arms.{name}.", "server.arms.")
    if key.endswith(".attention_backend"):
        return key.replace("attention_backend", "*")
    return next((k for k in TABLE if key == k or key.startswith(f"{k}.")), key)


def test_every_key_says_what_it_affects() -> None:
    assert set(CHANGES) == set(TABLE)

    class Section(BaseModel):
        told: Result[int] = Field(description="a key")
        untold: int

    with pytest.raises(TypeError, match=r"Section\.untold does not say what it affects"):
        table(Section)
    assert table(StudySpec) == TABLE


@pytest.mark.parametrize("entry", TABLE)
def test_every_key_is_seen_by_all(folder: Path, store: Store, entry: str) -> None:
    name = entry.replace("*", "other")
    old, new = pair(folder, entry, name)
    matters = TABLE[entry] is Affects.RESULT

    # the texts of differences; files count by their content
    for effect in Affects:
        found = {entry_of(d.key) for d in differences(old.spec, new.spec, effect)}
        assert found == ({entry} if effect is TABLE[entry] and entry not in FILES else set())
    assert (fingerprint(old) != fingerprint(new)) == matters

    # compare
    apart = study(folder, {**yaml.safe_load(new.text), "name": f"{name}-apart"})
    sides = begin(store, old), begin(store, apart)
    shown = compared(*sides, _common(*sides, None), 0.05)
    keys = {entry_of(what) for what, _, _ in shown.different}
    if entry in FILES and entry.startswith("workload."):
        assert keys == {"workload's prompts"}
    elif entry in POINTS or entry == "objectives.file":  # by the points, by the definition
        assert keys == set()
    else:
        assert keys == ({entry} if matters else set())
    assert bool(shown.incomparable) == (matters and entry.startswith("workload."))

    # --reuse
    why = next(_differences(old, fingerprint(old), new), None)
    if entry in ("baseline", "objectives.file") or entry.startswith("server.arms."):
        # by the points, by the numbers
        assert why is None
    else:
        assert (why is not None) == matters
        assert why is None or entry_of(why.removeprefix("content of ").split()[0]) == entry

    # resuming, and the load sweep
    if entry == "name":  # by which a study is found
        return
    assert (fingerprint(old) in store.fingerprints(new)) != matters
    if matters:
        with pytest.raises(UserError) as e:
            store.begin_study(new, seed=0, wanted=5)
        words = str(e.value).partition("was begun with another ")[2]
        if entry in FILES:
            assert words.startswith("content of a file that it names; ")
        else:
            assert entry_of(words.split()[0]) == entry
            assert " then, " in words
    else:
        assert store.begin_study(new, seed=0, wanted=5).wanted == 5
    # what is read of a study is what was run
    now = old if matters else new
    assert store.load_study(name)[0].spec == now.spec
    assert [p.setting["fingerprint"] for p in store.load_maps.points(name)] == [fingerprint(now)]


def test_a_file_in_another_place_is_the_same(folder: Path, store: Store) -> None:
    for base, key in (("prompts", "prompts"), ("sharegpt", "sharegpt.file")):
        raw = {**BASES[base], "name": f"{base}-moved"}
        old = study(folder, raw)
        end = ".json" if base == "sharegpt" else ".jsonl"
        shutil.copy(folder / f"a{end}", folder / f"copy{end}")
        new = study(folder, changed(raw, f"workload.{key}", f"copy{end}"))
        assert differences(old.spec, new.spec) == []
        assert fingerprint(old) == fingerprint(new)
        store.begin_study(old, seed=0, wanted=1)
        store.begin_study(new, seed=0, wanted=2)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("workload.warmup_prompts", 24),  # what it is without the key
        ("workload.latency_from", "send"),
        ("measure.precision", 0.05),
    ],
)
def test_a_default_that_is_written_down_is_no_difference(
    folder: Path, path: str, value: object
) -> None:
    old, new = study(folder, RANDOM), study(folder, changed(RANDOM, path, value))
    assert differences(old.spec, new.spec) == []
    assert fingerprint(old) == fingerprint(new)


def test_only_the_key_that_was_changed_is_told(folder: Path) -> None:
    # four times as many requests at once warm up with more, too
    old = study(folder, RANDOM)
    new = study(folder, changed(RANDOM, "workload.max_concurrency", 8))
    assert differences(old.spec, new.spec) == [Difference("workload.max_concurrency", 2, 8)]


def test_one_is_not_true(folder: Path) -> None:
    a, b = (study(folder, changed(RANDOM, "server.flags.x", x)) for x in (1, True))
    [found] = differences(a.spec, b.spec)
    assert found.values("then", "now") == "(1 then, true now)"


def test_the_order_of_objectives_matters_within_a_study_only(folder: Path) -> None:
    old = study(folder, RANDOM)
    new = study(folder, {**RANDOM, "objectives": RANDOM["objectives"][::-1]})
    [found] = differences(old.spec, new.spec)
    assert found.key == "objectives"
    assert found.values("then", "now") == (
        "(throughput, goodput, cost then, cost, goodput, throughput now)"
    )
    same = [in_any_order(x.spec, {}) for x in (old, new)]
    assert differences(*same) == []


@pytest.mark.double
def test_a_run_goes_on_with_other_timeouts_and_another_search(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    assert autotune("run", str(study), "--trials", "1", cwd=tmp_path).returncode == 0
    changes = {
        "server__health_timeout_s": 30,
        "server__stop_timeout_s": 3,
        "server__ahead": 1,
        "workload__request_timeout_s": 60,
        "workload__confirm_prompts": 8,
        "search": {"method": "random"},
    }
    write_study(tmp_path, **changes)
    assert autotune("run", str(study), "--trials", "2", cwd=tmp_path).returncode == 0
    assert len(trials(tmp_path)) == 2
    [(kept,)] = query(tmp_path, "select yaml from autotune_studies")
    assert "method: random" in str(kept)
    write_study(tmp_path, **changes, workload__output_len=13)
    refused = autotune("run", str(study), "--trials", "3", cwd=tmp_path)
    assert refused.returncode == 2
    assert "was begun with another workload.output_len (12 then, 13 now)" in refused.stderr


@pytest.mark.double
def test_what_timed_out_is_launched_again_under_a_higher_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(tmp_path, server__health_timeout_s=0.5)
    monkeypatch.setenv("DOUBLE_FAIL", "never_healthy")
    autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    monkeypatch.delenv("DOUBLE_FAIL")
    assert [t["failure_kind"] for t in trials(tmp_path)] == ["timeout"]
    # under the same limit the trial counts, so nothing is left to do
    autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert len(trials(tmp_path)) == 1
    write_study(tmp_path, server__health_timeout_s=120)
    assert autotune("run", str(study), "--trials", "1", cwd=tmp_path).returncode == 0
    first, again = trials(tmp_path)
    assert (first["state"], again["state"]) == ("failed", "complete")
    assert again["params"] == first["params"]
