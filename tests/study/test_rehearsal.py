"""The key `rehearsal` of a study: what it sets, what it refuses, and what it is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.errors import UserError
from autotune.study.differences import (
    differences,
    fingerprint_of_0_1,
    fingerprint_with,
    why_not_same,
)
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.rehearsal import AcceptanceSpec, experts_in
from autotune.study.schema import StudySpec
from autotune.study.space import MNBT, N
from autotune.study.stored import text_to_store

RAW: dict[str, Any] = {
    "name": "mine",
    "server": {
        "model": "org/model",
        "flags": {"max-num-seqs": 2},
        "speculative": {"method": "dflash", "model": "org/draft"},
    },
    "space": {
        N: {"type": "int", "low": 0, "high": 7},
        MNBT: {"type": "choice", "choices": [512]},
    },
    "workload": {
        "random": {"input_len": 16},
        "output_len": 12,
        "num_prompts": 6,
        "max_concurrency": 2,
    },
}
DUMMY = {"weights": "dummy"}
# What 0.1 and 0.2 computed for this study.
FINGERPRINT = "5dabd8025ae01aadece342423bf05351777df2b8884ab62b11d644439022d75d"
FIRST_FINGERPRINT = "e4e2c097f387b31b180f382181db92d0e163397c23100c6efea14e462352bf47"
# What was computed for it as a rehearsal, before it could say how tokens are routed.
REHEARSED_FINGERPRINT = "070972965182b5b5d239d110edd0affed304352e6acc8e1bd906543f501da7f6"
SEVEN = [0.75, 0.58, 0.46, 0.37, 0.3, 0.24, 0.19]


def loaded(rehearsal: object, **changes: object) -> LoadedStudy:
    """A study with this rehearsal; ``changes`` are dotted keys with ``__`` between."""
    raw: dict[str, Any] = yaml.safe_load(yaml.safe_dump(RAW))
    for key, value in changes.items():
        *path, last = key.split("__")
        at = raw
        for part in path:
            at = at.setdefault(part, {})
        if value is None:
            del at[last]
        else:
            at[last] = value
    if rehearsal is not None:
        raw["rehearsal"] = rehearsal
    return parse_study(yaml.safe_dump(raw), Path("s.yaml"))


def spec_of(rehearsal: object, **changes: object) -> StudySpec:
    return loaded(rehearsal, **changes).spec


def told(rehearsal: object, **changes: object) -> str:
    with pytest.raises(UserError) as e:
        loaded(rehearsal, **changes)
    return str(e.value)


@pytest.mark.parametrize(
    ("acceptance", "at"),
    [
        (SEVEN, {1: [0.75], 3: [0.75, 0.58, 0.46], 7: SEVEN}),
        ({"rates": SEVEN}, {2: [0.75, 0.58]}),
        ({"rate": 0.5}, {1: [0.5], 3: [0.5, 0.25, 0.125]}),
        ({"rates": [0.8, 0.4], "decay": 0.5}, {2: [0.8, 0.4], 3: [0.8, 0.4, 0.1]}),
        ({"length": 8.0, "decay": 1.0, "positions": 7}, {2: [1.0, 1.0]}),
        # a draft of 3 is not the first 3 of a draft of 7
        (
            {"by_n": [SEVEN, [0.8, 0.7, 0.6]]},
            {2: [0.8, 0.7], 3: [0.8, 0.7, 0.6], 4: SEVEN[:4]},
        ),
    ],
)
def test_each_n_gets_exactly_its_rates(acceptance: object, at: dict[int, list[float]]) -> None:
    spec = spec_of({"acceptance": acceptance, **DUMMY})
    for n, rates in at.items():
        draft = spec.server.draft_settings({N: n})
        assert draft["rejection_sample_method"] == "synthetic"
        assert draft["synthetic_acceptance_rates"] == pytest.approx(rates, abs=1e-6)
    none = spec.server.draft_settings({N: 0})
    assert not any("synthetic" in str(x) for x in (*none, *none.values()))


def test_a_length_with_a_decay_is_that_length() -> None:
    spec = spec_of({"acceptance": {"length": 4.3, "decay": 0.95, "positions": 15}})
    rates = spec.server.draft_settings({N: 15})["synthetic_acceptance_rates"]
    assert 1 + sum(rates) == pytest.approx(4.3, abs=1e-4)
    conditional = [b / a for a, b in zip([1.0, *rates], rates, strict=False)]
    assert conditional[5] / conditional[4] == pytest.approx(0.95, abs=1e-3)


@pytest.mark.parametrize(
    ("weights", "target", "draft"),
    [
        ("dummy", "dummy", None),  # the draft is loaded as the target
        ({"target": "dummy", "draft": "dummy"}, "dummy", None),
        ({"target": "dummy"}, "dummy", {"load_format": "auto"}),
        ({"draft": "dummy"}, None, {"load_format": "dummy"}),
    ],
)
def test_whose_weights_are_random(weights: object, target: object, draft: object) -> None:
    server = spec_of({"weights": weights}).server
    assert server.settings({N: 3}).get("load_format") == target
    assert server.settings({N: 0}).get("load_format") == target
    assert server.draft_settings({N: 3}).get("draft_load_config") == draft
    assert "draft_load_config" not in server.draft_settings({N: 0})


@pytest.mark.parametrize(
    ("rehearsal", "changes", "words"),
    [
        ({}, {}, "rehearses nothing"),
        ({"weights": {"target": "real"}}, {}, "rehearses nothing"),
        ({"weights": "none"}, {}, "rehearsal.weights.target"),
        ({"weights": ["dummy"]}, {}, "weights: must be dummy or a mapping such as {target: dummy}"),
        ({"acceptance": 0.5}, {}, "acceptance: must be a list of rates or a mapping such as"),
        ({"acceptance": {"from_": "a.db"}}, {}, "from_: unknown key; did you mean from?"),
        ({"acceptance": {"rate": 1.0000001}}, {}, "conditional rate 1.0000001 is not from 0 to 1"),
        (
            {"acceptance": SEVEN},
            {f"space__{N}": {"type": "choice", "choices": [0]}},
            "rehearsal.acceptance: no launch is known to draft",
        ),
        ({"acceptance": SEVEN}, {f"space__{N}": None}, "no launch is known to draft"),
        (DUMMY, {"server__model": "shape:gema"}, "server.model: gema: no such shape"),
        (DUMMY, {"server__model": "Shape:qwen3-8b"}, "a shape is written shape:NAME:QUANT"),
        (
            DUMMY,
            {"server__model": "shape:qwen3-8b:draft"},
            "server.model: shape:qwen3-8b:draft is a draft; the target is shape:qwen3-8b",
        ),
        (
            DUMMY,
            {"server__speculative__model": "shape:qwen3-8b"},
            "server.speculative.model: shape:qwen3-8b is a target; its DFlash draft is",
        ),
        ({"acceptance": {}}, {}, "rehearsal.acceptance: needs one of"),
        ({"acceptance": {"rat": 0.7}}, {}, "did you mean rate? allowed are rates, by_n, rate"),
        ({"acceptance": {"rate": 0.7, "rates": SEVEN}}, {}, "keep one of the two"),
        ({"acceptance": {"rate": 0.7, "from": "a.db"}}, {}, "leave one of the two out"),
        ({"acceptance": {"length": 3.0, "decay": 0.9}}, {}, "positions: goes with length"),
        ({"acceptance": {"length": 3.0, "positions": 7}}, {}, "decay: is missing"),
        ({"acceptance": {"length": 9.0, "decay": 0.9, "positions": 7}}, {}, "length 9 is not from"),
        ({"acceptance": {"rate": 1.5}}, {}, "rehearsal.acceptance: conditional rate 1.5"),
        ({"acceptance": [0.5, 0.6]}, {}, "rate 0.6 of position 2 is above 0.5"),
        ({"acceptance": {"by_n": [[0.5], [0.6]]}}, {}, "by_n: two lists have the same length"),
        ({"acceptance": {"by_n": [[0.5], []]}}, {}, "by_n: needs at least one rate"),
        ({"acceptance": {"by_n": []}}, {}, "by_n: needs at least one rate"),
        ({"acceptance": []}, {}, "rates: needs at least one rate"),
        ({"acceptance": SEVEN[:3]}, {}, "is given up to n = 3, and n goes up to 7"),
        (DUMMY, {"server__flags": {"load-format": "dummy"}}, "server.flags.load_format: rehearsal"),
        (DUMMY, {"space__load-format": {"type": "choice", "choices": ["a"]}}, "space.load_format"),
        (
            DUMMY,
            {"server__speculative__draft_load_config": {"load_format": "auto"}},
            "server.speculative.draft_load_config: rehearsal.weights sets it",
        ),
        (
            {"acceptance": SEVEN},
            {"server__speculative__rejection_sample_method": "standard"},
            "server.speculative.rejection_sample_method: rehearsal.acceptance sets it",
        ),
        (
            DUMMY,
            {"server__speculative__rejection_sample_method": "synthetic"},
            "write it as rehearsal.acceptance",
        ),
        (
            {"acceptance": SEVEN},
            {"server__speculative__synthetic_acceptance_length": 2.0},
            "synthetic_acceptance_length: rehearsal.acceptance sets it",
        ),
        (
            {"acceptance": SEVEN},
            {"server__speculative__enable_adaptive_verification": True},
            "adaptive verification goes by what the draft itself expects",
        ),
        ({"acceptance": SEVEN}, {"workload__ignore_eos": False}, "workload.ignore_eos"),
        ({**DUMMY, "routing": "evenly"}, {}, "rehearsal.routing"),
        ({"routing": "uniform"}, {}, "rehearses nothing"),
        (
            {**DUMMY, "routing": "uniform"},
            {"server__env": {"VLLM_MOE_ROUTING_SIMULATION_STRATEGY": "uniform_random"}},
            "server.env.VLLM_MOE_ROUTING_SIMULATION_STRATEGY: rehearsal.routing sets it",
        ),
        (
            {"acceptance": SEVEN},
            {"server__speculative": {"method": "ngram"}},
            "method ngram drafts only where the text repeats",
        ),
        (
            {"weights": {"draft": "dummy"}},
            {"server__speculative": {"method": "ngram"}},
            "no draft with weights of its own",
        ),
        (
            DUMMY,
            {"server__speculative": None, "server__arms": {"a": {"method": "ngram"}}},
            "server.speculative instead of server.arms",
        ),
        (
            DUMMY,
            {"server__command": ["vllm", "serve", "--load-format", "auto"]},
            "server.command: --load-format must not be in it: rehearsal.weights sets it",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    rehearsal: object, changes: dict[str, object], words: str
) -> None:
    said = told(rehearsal, **changes)
    assert words in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("rehearsal", "words"),
    [
        (
            {"acceptance": SEVEN, **DUMMY},
            "weights are random, acceptance was given, step times are real",
        ),
        (DUMMY, "weights are random, acceptance is what random weights give, step times are real"),
        (
            {"acceptance": SEVEN, "weights": {"target": "dummy"}},
            "the target's weights are random, acceptance was given, step times are real",
        ),
        ({"acceptance": SEVEN}, "weights are real, acceptance was given, step times are real"),
        (
            {"acceptance": {"from": "a.db", "by_n": [SEVEN]}, **DUMMY},
            "weights are random, acceptance was given (as counted in a.db), step times are real",
        ),
        (
            {"acceptance": {"length": 2.0, "decay": 0.9, "positions": 3}},
            (
                "weights are real, acceptance was given, and is assumed beyond n = 3, step times "
                "are real"
            ),
        ),
        (
            {"acceptance": {"rates": SEVEN[:3], "decay": 0.9}, **DUMMY},
            (
                "weights are random, acceptance was given, and is assumed beyond n = 3, step times "
                "are real"
            ),
        ),
        (
            {"acceptance": SEVEN, **DUMMY, "routing": "uniform"},
            (
                "weights are random, experts are drawn evenly (one end of a band), acceptance was "
                "given, step times are real"
            ),
        ),
        (
            {"acceptance": SEVEN, **DUMMY, "routing": "collapsed"},
            (
                "weights are random, every token has the same experts (one end of a band), "
                "acceptance was given, step times are real"
            ),
        ),
    ],
)
def test_what_is_real_is_said(rehearsal: object, words: str) -> None:
    assert spec_of(rehearsal).rehearsal_label == f"rehearsal: {words}"


@pytest.mark.parametrize(("model", "is_one"), [("gemma-4-26b-a4b", True), ("qwen3-8b", False)])
def test_a_mixture_of_experts_is_one_point_of_a_band(model: str, is_one: bool) -> None:
    spec = spec_of(DUMMY, server__model=f"shape:{model}:bf16")
    words = ", and so is routing to experts (one point of a band)"
    assert (words in spec.rehearsal_label) is is_one
    real = spec_of({"acceptance": SEVEN}, server__model=f"shape:{model}:bf16")
    assert "band" not in real.rehearsal_label  # its own weights route its tokens


@pytest.mark.parametrize(
    ("config", "experts"),
    [
        ({"num_experts": 128, "top_k_experts": 8}, (128, 8)),
        ({"text_config": {"num_local_experts": 32, "num_experts_per_tok": 4}}, (32, 4)),
        ({"n_routed_experts": 256, "num_experts_per_tok": 8}, (256, 8)),
        ({"thinker_config": {"text_config": {"moe_num_experts": 64, "moe_k": 6}}}, (64, 6)),
        ({"num_experts": None, "text_config": None}, None),
        ({"hidden_size": 8}, None),
    ],
)
def test_experts_of_a_config(config: dict[str, Any], experts: tuple[int, int] | None) -> None:
    assert experts_in(config) == experts


BAND = ", and so is routing to experts (one point of a band)"


@pytest.mark.parametrize(
    ("config", "rehearsal", "banded"),
    [
        ({"num_local_experts": 8}, DUMMY, True),
        ({"text_config": {"n_routed_experts": 256}}, {"weights": {"target": "dummy"}}, True),
        ({"num_experts": 1}, DUMMY, False),
        ({"hidden_size": 8}, DUMMY, False),
        # its own weights route its tokens
        ({"num_local_experts": 8}, {"acceptance": SEVEN}, False),
        ({"num_local_experts": 8}, {"weights": {"draft": "dummy"}}, False),
        ({"num_local_experts": 8}, {**DUMMY, "routing": "uniform"}, False),
        ({"num_local_experts": 8}, {**DUMMY, "mixture": False}, False),
        # it is not on this disk, and the study says it
        (None, {**DUMMY, "mixture": True}, True),
        (None, DUMMY, False),
    ],
)
def test_a_config_says_that_a_figure_is_one_point_of_a_band(
    tmp_path: Path, config: dict[str, Any] | None, rehearsal: dict[str, Any], banded: bool
) -> None:
    if config is not None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    raw = {**RAW, "server": {**RAW["server"], "model": "model"}, "rehearsal": rehearsal}
    text = f"# mine\n{yaml.safe_dump(raw)}"
    found = parse_study(text, tmp_path / "s.yaml")
    assert (BAND in found.spec.rehearsal_label) is banded
    plain = parse_study(text, tmp_path / "elsewhere" / "s.yaml").spec
    assert fingerprint_with(found.spec, {}) == fingerprint_with(plain, {})
    # the database keeps it, where the model may be gone
    kept = text_to_store(found)
    assert kept.startswith("# mine\n")
    again = parse_study(kept, Path("s.yaml"), check_files=False, stored=True)
    assert again.spec.rehearsal_label == found.spec.rehearsal_label
    # another acceptance keeps it, too
    rate = AcceptanceSpec(rate=0.5)
    assert (BAND in again.spec.rehearsed_with(rate).rehearsal_label) is banded


def test_a_draft_with_random_weights_may_have_experts(tmp_path: Path) -> None:
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "config.json").write_text('{"num_experts": 16}')
    server = {**RAW["server"], "speculative": {"method": "dflash", "model": "draft"}}
    raw = {**RAW, "server": server, "rehearsal": {"weights": {"draft": "dummy"}}}
    label = parse_study(yaml.safe_dump(raw), tmp_path / "s.yaml").spec.rehearsal_label
    assert label.startswith(f"rehearsal: the draft's weights are random{BAND}")


def test_a_rehearsal_of_before_goes_on() -> None:
    spec = spec_of({"acceptance": SEVEN, **DUMMY})
    assert fingerprint_with(spec, {}) == REHEARSED_FINGERPRINT
    by_weights = spec_of({"acceptance": SEVEN, **DUMMY, "routing": "weights"})
    assert fingerprint_with(by_weights, {}) == REHEARSED_FINGERPRINT
    uniform = spec_of({"acceptance": SEVEN, **DUMMY, "routing": "uniform"})
    assert fingerprint_with(uniform, {}) != REHEARSED_FINGERPRINT
    assert [d.key for d in differences(spec, uniform)] == ["rehearsal.routing"]


def test_a_study_without_the_key_is_as_before() -> None:
    real = spec_of(None)
    assert real.rehearsal_label == ""
    assert "rehearsal" not in str(real.server.settings({N: 3}))
    assert real.without_rehearsal() == real
    assert fingerprint_with(real, {}) == FINGERPRINT
    assert fingerprint_of_0_1(real, {}) == FIRST_FINGERPRINT


def test_the_key_is_part_of_the_experiment() -> None:
    real, dummy = loaded(None), loaded({"acceptance": SEVEN, **DUMMY})
    other = loaded({"acceptance": [*SEVEN[:6], 0.1], **DUMMY})
    prints = {fingerprint_with(x.spec, {}) for x in (real, dummy, other)}
    assert len(prints) == 3
    assert why_not_same(real, "", dummy) == "kind of run (real then, a rehearsal now)"
    assert why_not_same(dummy, "", real) == "kind of run (a rehearsal then, real now)"
    assert [d.key for d in differences(dummy.spec, other.spec)] == ["rehearsal.acceptance.rates"]
    seed = spec_of({**DUMMY, "seed": 3})
    assert [d.key for d in differences(spec_of(DUMMY), seed)] == ["rehearsal.seed"]


def test_where_the_acceptance_is_from_is_no_part_of_it() -> None:
    one, two = (
        spec_of({"acceptance": {"from": name, "by_n": [SEVEN]}, **DUMMY})
        for name in ("a.db", "moved/a.db")
    )
    assert fingerprint_with(one, {}) == fingerprint_with(two, {})


def test_an_acceptance_that_was_not_read_yet_lets_nothing_draft() -> None:
    spec = spec_of({"acceptance": {"from": "a.db"}})
    assert spec.server.draft_settings({N: 3})["synthetic_acceptance_rates"] == []


def test_without_its_rehearsal_a_study_plays_nothing() -> None:
    real = spec_of({"acceptance": SEVEN, **DUMMY}).without_rehearsal()
    assert real == spec_of(None)
    assert real.server.settings({N: 3}) == spec_of(None).server.settings({N: 3})


@pytest.mark.parametrize("url", ["u:hidden-word@h/db", "h/db?user=u&password=hidden-word"])
def test_a_password_is_neither_kept_nor_shown(url: str) -> None:
    given = {"from": f"postgresql+psycopg://{url}", "by_n": [[0.5] * n for n in range(1, 16)]}
    line = told({"acceptance": given})
    assert "from: has a password" in line
    assert "hidden-word" not in line
    given["from"] = "postgresql+psycopg://h/db?passfile=/home/u/pass"
    assert "(as counted in db)" in spec_of({"acceptance": given}).rehearsal_label
