"""Arms: what a study file may say of them, their points, and what a launch has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, IntDistribution

from autotune.engine.draft_method import with_method
from autotune.engine.draft_notes import draft_notes
from autotune.engine.flags import check_flags
from autotune.engine.probe import UNKNOWN
from autotune.errors import UserError
from autotune.study.differences import fingerprint_of_0_1
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.owned import ACCEPTANCE
from autotune.study.space import ARM, DRAFT, MNBT, N, canonical, effective
from autotune.study.speculative import ADAPTIVE, REJECTION, SCHEDULE
from autotune.study.stored import text_to_store
from autotune.study.ways import arms_by_curve, curve_of, is_lossy, skips_steps
from autotune.tuning.prepare import baseline_point, never_launched

LOOKUP = f"{DRAFT}prompt_lookup_max"
FIXED: dict[str, Any] = {"method": "dflash", "model": "org/d"}
BY_LOAD: dict[str, Any] = {**FIXED, SCHEDULE: [[1, 2, 3], [3, 8, 0]]}
NGRAM: dict[str, Any] = {
    "method": "ngram",
    "space": {
        N: {"type": "int", "low": 1, "high": 4},
        "prompt_lookup_max": {"type": "choice", "choices": [2, 4]},
    },
}
ARMS = {"fixed": FIXED, "by-load": BY_LOAD, "ngram": NGRAM}
WIDE = {"type": "int", "low": 1, "high": 10**6}
SHARED = {
    N: {"type": "int", "low": 0, "high": 15},
    MNBT: {"type": "pow2", "low": 512, "high": 2048},
}


def study(arms: object = ARMS, space: object = SHARED, **changes: object) -> LoadedStudy:
    raw = {
        "name": "arms",
        "server": {"model": "org/t", "arms": arms},
        "space": space,
        "workload": {
            "random": {"input_len": 8},
            "output_len": 8,
            "num_prompts": 40,
            "max_concurrency": 2,
        },
        **changes,
    }
    return parse_study(yaml.safe_dump(raw, sort_keys=False), Path("study.yaml"))


def test_each_arm_has_its_own_points_and_the_baseline_is_one() -> None:
    space = study().spec.to_space()
    points = list(space.points() or ())
    assert len(points) == space.size() == 3 * (1 + 15 + 1 + 4 * 2)
    assert all(canonical(space, q) == q and space.decode(space.encode(q)) == q for q in points)
    without = [q for q in points if q[N] == 0]
    assert [q[ARM] for q in without] == ["fixed"] * 3
    assert {q[N] for q in points if q[ARM] == "by-load"} == {3}
    assert {q[N] for q in points if q[ARM] == "ngram"} == {1, 2, 3, 4}
    assert {q[LOOKUP] for q in points if q[ARM] != "ngram"} == {2}
    found = space.distributions()
    assert found[ARM] == CategoricalDistribution(("fixed", "by-load", "ngram"))
    assert found[N] == IntDistribution(0, 15)
    assert (space.fixed_n("by-load"), space.fixed_n("ngram")) == (3, None)


def test_what_stands_for_a_point_and_what_is_shown_of_it() -> None:
    space = study().spec.to_space()
    first = {ARM: "ngram", N: 0, LOOKUP: 4, MNBT: 512}
    base = {ARM: "fixed", N: 0, LOOKUP: 2, MNBT: 512}
    assert canonical(space, first) == base
    assert space.shown(base) == effective(first) == {N: 0, MNBT: 512}
    assert canonical(space, space.shown(base)) == base
    scheduled = {ARM: "by-load", N: 3, LOOKUP: 2, MNBT: 512}
    assert canonical(space, {**scheduled, N: 7, LOOKUP: 4}) == scheduled
    assert space.shown(scheduled) == {ARM: "by-load", N: 3, MNBT: 512}
    assert (space.n_of({**scheduled, N: 7}), space.n_of(base)) == (3, 0)
    assert not space.contains({**first, N: 5})
    with pytest.raises(ValueError, match=rf"{N} = 5 is outside arm ngram \(1 to 4\)"):
        space.encode({**first, N: 5})


def test_a_launch_has_the_keys_of_its_arm_only() -> None:
    server = study().spec.server
    point = {ARM: "ngram", N: 3, LOOKUP: 4, MNBT: 512}
    assert server.draft_settings(point) == {"method": "ngram", N: 3, "prompt_lookup_max": 4}
    assert server.settings(point) == {
        f"{DRAFT}method": "ngram",
        N: 3,
        LOOKUP: 4,
        MNBT: 512,
    }
    assert server.draft_settings({**point, ARM: "by-load"}) == {**BY_LOAD, N: 3}
    assert server.of_arm("by-load").draft_settings({N: 3}) == {**BY_LOAD, N: 3}
    assert list(server.drafts) == list(ARMS)
    assert server.draft_at({N: 0}) is None


def test_the_acceptance_of_an_arm_is_told_by_launches_of_the_same_keys_only() -> None:
    arms = {
        **ARMS,
        "wide": {**FIXED, "space": {N: {"type": "int", "low": 20, "high": 30}}},
        "adaptive": {**FIXED, "enable_adaptive_verification": True},
        "lossy": {**FIXED, "rejection_sample_method": "fly"},
    }
    space = study(arms).spec.to_space()
    assert list(arms_by_curve(space).values()) == [("fixed", "wide"), ("ngram",), ("lossy",)]
    point = {N: 3, LOOKUP: 2, MNBT: 512}
    curves = {name: curve_of(space, {**point, ARM: name}) for name in arms}
    assert curves["fixed"] == curves["wide"] != curves["ngram"] != curves["lossy"]
    assert (curves["by-load"], curves["adaptive"]) == (None, None)
    drafts = {name: space.draft_of({**point, ARM: name}) for name in arms}
    assert [name for name in arms if is_lossy(drafts[name])] == ["lossy"]
    # vLLM counts no steps without drafts: at n = 0 of a schedule, and where nothing repeats
    assert [x for x in arms if skips_steps(drafts[x])] == ["by-load", "ngram"]
    assert not skips_steps({SCHEDULE: [[1, 2, 3], [3, 8, 1]]})


def test_a_study_without_arms_is_as_before() -> None:
    loaded = study()
    raw = yaml.safe_load(loaded.text)
    del raw["server"]["arms"]
    raw["server"]["speculative"] = FIXED
    loaded = parse_study(yaml.safe_dump(raw, sort_keys=False), Path("study.yaml"))
    space = loaded.spec.to_space()
    assert (space.arms, list(space.params)) == ((), [N, MNBT])
    assert curve_of(space, {N: 3, MNBT: 512}) == ""
    assert space.shown({N: 0, MNBT: 512}) == {N: 0, MNBT: 512}
    assert "arms" in loaded.spec.shown({})["server"]
    before = fingerprint_of_0_1(loaded.spec, {})
    raw["server"]["arms"] = {}
    assert fingerprint_of_0_1(parse_study(yaml.safe_dump(raw), Path("s.yaml")).spec, {}) == before


@pytest.mark.parametrize(
    ("arms", "space", "words"),
    [
        ({"a b": FIXED}, SHARED, "server.arms.a b: an arm's name has letters, digits"),
        ({"v1.0": FIXED}, SHARED, "server.arms.v1.0: an arm's name has letters, digits"),
        ({"a": "ngram"}, SHARED, "server.arms.a: "),
        ([FIXED], SHARED, "server.arms: "),
        ({"a": {"prompt_lookup_max": 3}}, SHARED, "server.arms.a: model is missing"),
        ({"a": {**FIXED, N: 0}}, {MNBT: SHARED[MNBT]}, "server.arms.a: num_speculative_tokens"),
        ({"a": FIXED}, {MNBT: SHARED[MNBT]}, "server.arms.a: num_speculative_tokens is missing"),
        ({"a": {**FIXED, N: 3}}, SHARED, "space.num_speculative_tokens: every arm has its own"),
        (
            {"a": {**FIXED, SCHEDULE: 7}},
            SHARED,
            f"server.arms.a: {SCHEDULE}: must be a list of [first batch size",
        ),
        (
            {"a": {**NGRAM, "space": {N: {"type": "int", "low": 0, "high": 2}}}},
            SHARED,
            "server.arms.a: space.num_speculative_tokens: must be whole numbers from 1 up",
        ),
        (
            {"a": {**NGRAM, "prompt_lookup_max": 3}},
            SHARED,
            "server.arms.a: space.prompt_lookup_max: is also fixed in the arm",
        ),
        (
            {"a": {**FIXED, "space": {"model": {"type": "choice", "choices": ["x"]}}}},
            SHARED,
            "server.arms.a.space: model cannot be searched: an arm has one model",
        ),
        (
            {"a": {**NGRAM, "space": {"x": {"type": "int", "low": 1, "hgh": 2}}}},
            SHARED,
            "server.arms.a.space.x.high: is missing",
        ),
        (
            {
                "a": {**FIXED, "space": {"x": {"type": "int", "low": 1, "high": 2}}},
                "b": {**FIXED, "space": {"x": {"type": "choice", "choices": [1, 2]}}},
            },
            SHARED,
            "server.arms: two arms search x as different types",
        ),
        (
            {
                "a": {**FIXED, "space": {"x": {"type": "choice", "choices": [True, False]}}},
                "b": {**FIXED, "space": {"x": {"type": "choice", "choices": [1, 2]}}},
            },
            SHARED,
            "server.arms: two arms search x as different types",
        ),
        (
            ARMS,
            {**SHARED, LOOKUP: {"type": "int", "low": 1, "high": 2}},
            "a study with arms has it per arm: server.arms.NAME.space.prompt_lookup_max",
        ),
        (
            {"a": FIXED},
            {**SHARED, ARM: {"type": "choice", "choices": ["a"]}},
            "space: arm cannot be searched",
        ),
        (
            {"a": FIXED},
            {**SHARED, N: {"type": "choice", "choices": [0]}},
            "server.arms.a: space.num_speculative_tokens has no n above 0",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_key(
    arms: object, space: object, words: str
) -> None:
    with pytest.raises(UserError) as e:
        study(arms, space)
    assert words in str(e.value)
    assert "\n" not in str(e.value)


def test_a_draft_beside_the_arms_is_refused() -> None:
    with pytest.raises(UserError, match="speculative: write it as one of the arms"):
        study(server={"model": "org/t", "arms": ARMS, "speculative": FIXED})


def test_a_key_of_an_arm_that_is_said_twice_is_named() -> None:
    arms = {"a": FIXED, "b": {**FIXED, "x": {"y": 1}, "x.y": 2}}
    with pytest.raises(UserError) as e:
        study(arms)
    words = "server.arms.b.x.y: also given in server.arms.b.x; keep it in one of the two"
    assert str(e.value) == f"study.yaml: {words}"


@pytest.mark.parametrize(
    ("arms", "space", "changes", "words"),
    [
        ({"a": 3}, SHARED, {}, "server.arms.a: must be a mapping, not 3"),
        ([FIXED], SHARED, {}, "server.arms: must be a mapping, not ["),
        ({f"a{i}": FIXED for i in range(65)}, SHARED, {}, "server.arms: must have at most 64"),
        ({"a": {**NGRAM, "space": {"x": 3}}}, SHARED, {}, "server.arms.a.space.x: must be a mapp"),
        (
            {"a": {**FIXED, "space": {SCHEDULE: {"type": "choice", "choices": [[[1, 2, 5]]]}}}},
            SHARED,
            {},
            f"server.arms.a.space.{SCHEDULE}.choices.0: must be a number, a word, true or false",
        ),
        ({"a": {**FIXED, "model": ""}}, SHARED, {}, "server.arms.a: model is missing"),
        ({"a": {**FIXED, "method": ""}}, SHARED, {}, "server.arms.a: method is empty"),
        # an n that no list of values can have, wherever it is written
        ({"a": {**FIXED, N: 10**15}}, {MNBT: SHARED[MNBT]}, {}, f"server.arms.a: {N} must be at"),
        (
            {"a": {**FIXED, SCHEDULE: [[1, 8, 10**9]]}},
            {MNBT: SHARED[MNBT]},
            {},
            f"server.arms.a: {N} must be at most 99999, not 1000000000",
        ),
        (
            {"a": FIXED},
            {N: {"type": "pow2", "low": 1, "high": 2**30}},
            {},
            f"server.arms.a: {N} must be at most 99999",
        ),
        (
            {
                "a": {**FIXED, "space": {"x": {"type": "int", "low": 1, "high": 9}}},
                "b": {
                    **FIXED,
                    "space": {"x": {**WIDE, "step": 99}},
                },
            },
            SHARED,
            {},
            "server.arms: x has more than 99999 values from 1 to 1000000",
        ),
        # a schedule that drafts nothing is not told as a wrong n
        ({"a": {**FIXED, SCHEDULE: [[1, 8, 0]]}}, {MNBT: SHARED[MNBT]}, {}, f"{SCHEDULE}: one n"),
        ({"a": {**FIXED, SCHEDULE: [[1, 8, 2.5]]}}, {MNBT: SHARED[MNBT]}, {}, "n], whole numbers"),
        # vLLM would convert these, and autotune reads them as they are
        (
            {"a": {**FIXED, ADAPTIVE: "true"}},
            SHARED,
            {},
            f'server.arms.a.{ADAPTIVE}: must be true or false, not "true"',
        ),
        (
            {"a": {**FIXED, "space": {ADAPTIVE: {"type": "choice", "choices": [0, 1]}}}},
            SHARED,
            {},
            f"server.arms.a.space.{ADAPTIVE}: must be true or false, not 0",
        ),
        (
            {"a": {**FIXED, REJECTION: True}},
            SHARED,
            {},
            f"server.arms.a.{REJECTION}: must be a word such as standard, not True",
        ),
        # the baseline has what its launch has
        (ARMS, SHARED, {"baseline": {ARM: "z"}}, "baseline.arm: must be one of server.arms: fixed"),
        (ARMS, SHARED, {"baseline": {ARM: 1}}, "baseline.arm: must be one of server.arms: fixed"),
        (ARMS, SHARED, {"baseline": {ARM: "ngram"}}, "baseline.arm: n = 0 has no arm"),
        (
            ARMS,
            SHARED,
            {"baseline": {ARM: "by-load", N: 9}},
            f"baseline.{N}: arm by-load has n = 3, not 9",
        ),
        (
            ARMS,
            SHARED,
            {"baseline": {N: 3, LOOKUP: 4}},
            f"baseline.{LOOKUP}: arm fixed does not search it",
        ),
        (
            ARMS,
            {**SHARED, ACCEPTANCE: {"type": "choice", "choices": ["none", "detailed"]}},
            {},
            f"space.{ACCEPTANCE}: cannot be searched: no launch at n = 0 has it",
        ),
    ],
)
def test_a_contradiction_is_refused_with_its_key(
    arms: object, space: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as e:
        study(arms, space, **changes)
    assert words in str(e.value)
    assert str(e.value).startswith("study.yaml: ")
    assert "\n" not in str(e.value)


def test_a_baseline_may_draft_with_an_arm() -> None:
    point = {ARM: "ngram", N: 3, LOOKUP: 4}
    assert baseline_point(study(baseline=point).spec) == {**point, MNBT: 2048}
    assert baseline_point(study(baseline={N: 0}).spec)[N] == 0


@pytest.mark.parametrize(
    ("schedule", "why"),
    [
        ([[1, 4, 3], [3, 8, 1]], "two ranges have batch size 3"),
        ([[2, 4, 3]], "the first range must begin at batch size 1, not 2"),
        ([[0, 8, 3]], "batch sizes 0 to 8 are no range from 1 up"),
    ],
)
def test_a_schedule_that_every_vllm_refuses_is_refused(schedule: object, why: str) -> None:
    loaded = study({"a": {**FIXED, SCHEDULE: schedule}, "b": FIXED})
    with pytest.raises(UserError) as e:
        check_flags(loaded, UNKNOWN)
    assert str(e.value) == f"study.yaml: server.arms.a.{SCHEDULE}: {why}"


def test_arms_of_which_no_point_can_launch_are_known() -> None:
    space = study().spec.to_space()
    refused = {"ngram": "no n-grams here"}
    found = never_launched(space, lambda point: refused.get(str(point[ARM])))
    assert found == refused
    assert never_launched(space, lambda point: "odd" if point[N] == 3 else None) == {
        "by-load": "odd"
    }


def test_a_secret_in_an_arm_is_refused() -> None:
    with pytest.raises(UserError, match=r"server\.arms\.a\.hf_token: "):
        check_flags(study({"a": {**FIXED, "hf_token": "hf_" + "a" * 30}}), UNKNOWN)


def test_the_method_of_each_arm_is_found_told_and_stored(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text('{"architectures": ["DFlashDraftModel"]}')
    arms = {"a": {"model": "d"}, "b": {"model": "d", SCHEDULE: [[1, 8, 2]]}, "ngram": NGRAM}
    loaded = parse_study(study(arms).text, tmp_path / "study.yaml")
    notes = list(draft_notes(loaded))
    assert [x.split(":")[0] for x in notes if "method is dflash" in x] == ["arms a, b"], "said once"
    found = with_method(loaded)
    assert {k: v.method for k, v in found.spec.server.drafts.items()} == {
        "a": "dflash",
        "b": "dflash",
        "ngram": "ngram",
    }
    again = parse_study(text_to_store(found), tmp_path / "study.yaml", stored=True)
    assert again.spec == found.spec
    lossy = study({"a": {**FIXED, "rejection_sample_method": "fly"}})
    assert any(
        x.startswith("arm a: rejection_sample_method: fly is lossy") for x in draft_notes(lossy)
    )


def test_an_arm_may_have_any_name() -> None:
    server = study({"None": FIXED}).spec.server
    assert server.draft_settings({N: 0}) == {N: 0}
    assert server.draft_settings({ARM: "None", N: 2}) == {**FIXED, N: 2}
    assert server.draft_at({N: 0}) is None


def test_a_lossy_value_that_is_searched_is_told() -> None:
    ways = {"type": "choice", "choices": ["standard", "fly"]}
    loaded = study({"a": {**FIXED, "space": {"rejection_sample_method": ways}}, "b": FIXED})
    told = [note for note in draft_notes(loaded) if "is lossy" in note]
    assert [note.partition(":")[0] for note in told] == ["arm a"]
