"""Encodings, and which points are one launch."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.distributions import IntDistribution
from pydantic import ValidationError

from autotune.engine.command import plan_launch
from autotune.engine.flags import check_flags
from autotune.engine.gpus import Gpu
from autotune.engine.probe import VllmInfo
from autotune.errors import UserError
from autotune.storage.store import opened
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.space import (
    ALIGNED,
    MNBT,
    ChoiceParam,
    FloatParam,
    IntParam,
    N,
    Pow2Param,
    Space,
    Value,
    canonical,
    effective,
    same_launch,
)
from tests.paths import ROOT

DRAFT_TP = "speculative.draft_tensor_parallel_size"
CHOICE = {"type": "choice", "choices": [1, 2]}
SWITCH = {"type": "choice", "choices": [False, True]}


def space() -> Space:
    return Space(
        {
            N: IntParam(type="int", low=0, high=15),
            MNBT: Pow2Param(type="pow2", low=32, high=2048),
            "kv_cache_dtype": ChoiceParam(type="choice", choices=("auto", "fp8")),
        }
    )


def test_every_point_survives_encoding() -> None:
    s = space()
    points = list(s.points() or [])
    assert len(points) == s.size() == 16 * 7 * 2
    assert all(s.decode(s.encode(p)) == p for p in points)
    assert set(s.distributions()) == {N, MNBT, "kv_cache_dtype"}
    assert s.encode(points[5]) == points[5]
    assert s.distributions()[MNBT] == IntDistribution(32, 2048, log=True)


def test_a_study_of_an_earlier_version_keeps_its_exponents() -> None:
    plain = {N: 3, MNBT: 256, "kv_cache_dtype": "fp8"}
    earlier = {N: 3, "log2_max_num_batched_tokens": 8, "kv_cache_dtype": "fp8"}
    s = space()
    kept = s.kept_as([{}, earlier])
    assert kept.encode(plain) == earlier
    assert kept.distributions()["log2_max_num_batched_tokens"] == IntDistribution(5, 11)
    assert set(kept.distributions()) == set(earlier)
    for either in (s, kept):  # what is read does not depend on what is written
        assert either.decode(earlier) == either.decode(plain) == plain
        assert either.has_point(earlier)
        assert either.has_point(plain)
        assert not either.has_point({N: 3, MNBT: 256})
    assert s.kept_as([{}, plain]) == kept.kept_as([]) == s


@pytest.mark.parametrize("name", ["demo-cpu", "smollm2-h200", "smollm2-h200-c32"])
def test_committed_studies_are_read_as_they_were_kept(tmp_path: Path, name: str) -> None:
    results = ROOT / "studies" / "results"
    database = shutil.copy(results / name / "autotune.db", tmp_path / "autotune.db")
    with opened(Path(database)) as store:
        s = store.load_study(name)[0].spec.to_space()
        trials = store.optuna_study(name).get_trials()
    kept = s.kept_as(t.params for t in trials)
    assert kept.exponents
    for t in trials:
        assert kept.decode(t.params) == t.user_attrs["point"]
        assert kept.encode(t.user_attrs["point"]) == t.params
        assert kept.distributions() == t.distributions


@pytest.mark.parametrize(
    ("point", "word"),
    [
        ({N: 3, MNBT: 100, "kv_cache_dtype": "auto"}, "powers of two"),
        ({N: 16, MNBT: 64, "kv_cache_dtype": "auto"}, "0 to 15"),
        ({N: 3, MNBT: 64, "kv_cache_dtype": "int4"}, "one of auto, fp8"),
        ({N: 3, MNBT: 64}, "missing"),
        ({N: 3, MNBT: 64, "kv_cache_dtype": "auto", "x": 1}, "not a parameter"),
    ],
)
def test_points_outside_the_space_are_refused(point: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        space().encode(point)  # type: ignore[arg-type]


def test_a_continuum_has_no_grid() -> None:
    s = Space({"gpu_memory_utilization": FloatParam(type="float", low=0.5, high=0.9)})
    assert s.size() is None
    assert s.points() is None
    assert s.decode(s.encode({"gpu_memory_utilization": 0.7})) == {"gpu_memory_utilization": 0.7}


def test_clip_takes_the_nearest_value() -> None:
    assert space().clip(MNBT, 2000) == 2048
    assert space().clip(MNBT, 8192) == 2048
    assert space().clip(N, 3) == 3


def test_a_power_of_two_is_asked_for() -> None:
    with pytest.raises(ValidationError, match="take 32 or 64"):
        Pow2Param(type="pow2", low=33, high=2048)


def test_at_n_0_nothing_of_the_draft_is_launched() -> None:
    s = Space(
        {
            N: IntParam(type="int", low=0, high=3),
            DRAFT_TP: ChoiceParam(type="choice", choices=(2, 4)),
            "speculative.threshold": FloatParam(type="float", low=0.1, high=0.9),
            "speculative.lookup": Pow2Param(type="pow2", low=2, high=8),
            MNBT: Pow2Param(type="pow2", low=32, high=64),
        }
    )
    a: dict[str, Value] = {
        N: 0,
        DRAFT_TP: 4,
        "speculative.threshold": 0.5,
        "speculative.lookup": 4,
        MNBT: 64,
    }
    first = {**a, DRAFT_TP: 2, "speculative.threshold": 0.1, "speculative.lookup": 2}
    assert canonical(s, a) == first
    assert effective(a) == {N: 0, MNBT: 64}
    assert same_launch(a, first)
    assert not same_launch(a, {**a, MNBT: 32})
    with_draft = {**a, N: 1}
    assert canonical(s, with_draft) == effective(with_draft) == with_draft
    assert not same_launch(with_draft, {**with_draft, DRAFT_TP: 2})
    fixed_n = {DRAFT_TP: 4, MNBT: 64}  # n is not searched, and above 0
    assert effective(fixed_n) == fixed_n
    assert s.decode(s.encode(first)) == first


def study(**changes: object) -> LoadedStudy:
    raw: dict[str, object] = {
        "name": "x",
        "server": {
            "command": [sys.executable, "-c", ""],
            "model": "org/m",
            "speculative": {
                "method": "dflash",
                "model": "org/d",
                "attention_backend": "flash_attn",
            },
            "flags": {"max-num-seqs": 2},
        },
        "space": {N: {"type": "int", "low": 0, "high": 3}, DRAFT_TP: CHOICE},
        "workload": {
            "random": {"input_len": 16},
            "output_len": 12,
            "num_prompts": 6,
            "max_concurrency": 2,
        },
        **changes,
    }
    return parse_study(json.dumps(raw), Path("x.yaml"))


def test_a_searched_parameter_of_the_draft_goes_into_its_configuration() -> None:
    spec = study().spec
    info = VllmInfo(None, None, None, None, {"max_num_seqs": None}, (), ())
    check_flags(study(), info)

    def command(n: int) -> tuple[str, ...]:
        point = {N: n, DRAFT_TP: 2}
        return plan_launch(
            spec.server, point, info, port=1, launch_id="x", resolve=lambda ref: ref
        ).argv

    argv = command(3)
    assert json.loads(argv[argv.index("--speculative-config") + 1]) == {
        "method": "dflash",
        "model": "org/d",
        "attention_backend": "flash_attn",
        N: 3,
        "draft_tensor_parallel_size": 2,
    }
    assert not any(a.startswith("--speculative.") for a in argv)
    assert not any("specul" in a for a in command(0))
    assert spec.settings({N: 3, DRAFT_TP: 2}) == {
        "max_num_seqs": 2,
        "speculative.method": "dflash",
        "speculative.model": "org/d",
        "speculative.attention_backend": "flash_attn",
        N: 3,
        DRAFT_TP: 2,
    }


def test_aligned_graphs_are_sizes_that_follow_n() -> None:
    """The tuner may set them: a switch of ours, which becomes vLLM's flag."""
    space = {N: {"type": "int", "low": 0, "high": 4}, ALIGNED: SWITCH}
    loaded = study(space=space)
    info = VllmInfo("0.26.0", None, None, None, {"max_num_seqs": None}, (), ())
    check_flags(loaded, info)

    def sizes(**point: Value) -> list[str]:
        server, resolve = loaded.spec.server, str
        argv = plan_launch(server, point, info, port=1, launch_id="x", resolve=resolve).argv
        flag = "--cudagraph-capture-sizes"
        assert not any("aligned" in word for word in argv)
        after = argv[argv.index(flag) + 1 :] if flag in argv else ()
        return list(itertools.takewhile(str.isdigit, after))

    assert sizes(**{N: 4, ALIGNED: True}) == ["5", "10", "20"]
    assert sizes(**{N: 0, ALIGNED: True}) == ["1", "2", "4"]
    assert sizes(**{N: 4, ALIGNED: False}) == []
    # as long as vLLM's own list: up to 1024 tokens on Blackwell, from 0.28 on
    server = loaded.spec.server.model_copy(update={"flags": {"max_num_seqs": 200}})
    for version, last in (("0.27.0", 200 * 5), ("0.28.0", 1020)):
        b200 = replace(info, version=version, gpus=(Gpu("B200", 180 << 30, (10, 0)),))
        found = plan_launch(server, {N: 4, ALIGNED: True}, b200, port=1, launch_id="x", resolve=str)
        at = found.argv.index("--cudagraph-capture-sizes") + 1
        assert [*itertools.takewhile(str.isdigit, found.argv[at:])][-1] == str(last)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {ALIGNED: CHOICE}}, "is a switch"),
        ({"space": {ALIGNED: SWITCH}, "server": {"model": "m"}}, "needs max_num_seqs"),
        (
            {
                "space": {ALIGNED: SWITCH},
                "server": {
                    "model": "m",
                    "flags": {
                        "max-num-seqs": 2,
                        "compilation-config": {"cudagraph_capture_sizes": [1]},
                    },
                },
            },
            "also set by hand",
        ),
        ({"space": {"speculative.num-speculative-tokens": CHOICE}}, "write it as num_spec"),
        ({"space": {"speculative.model": CHOICE}}, "write several drafts as server.arms"),
        ({"space": {"speculative.attention_backend": CHOICE}}, "also fixed in server.speculative"),
        ({"server": {"model": "m"}, "space": {DRAFT_TP: CHOICE}}, "needs server.speculative"),
        ({"server": {"model": "m"}, "space": {N: {"type": "int", "low": 0, "high": 2}}}, "`ngram`"),
        ({"server": {"model": "m", "flags": {DRAFT_TP: 2}}}, "goes into server.speculative"),
    ],
)
def test_parameters_of_ours_that_make_no_sense(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        study(**changes)
