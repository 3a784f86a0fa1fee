"""Study files: what is accepted, and one clear line for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import UserError
from autotune.study.files import find_study, load_study, parse_study
from autotune.study.schema import BudgetSpec

GOOD = """\
name: mine
server:
  model: org/model
  flags: {max-num-seqs: 2, enforce-eager: true}
  speculative: {method: dflash, model: org/draft, attention_backend: flash_attn}
space:
  num_speculative_tokens: {type: int, low: 0, high: 15}
  max_num_batched_tokens: {type: pow2, low: 32, high: 2048}
workload: {random: {input_len: 256}, output_len: 96, num_prompts: 4, max_concurrency: 2}
"""


def parse(text: str) -> object:
    return parse_study(text, Path("s.yaml")).spec


def told(text: str) -> str:
    """What the user is told about this study file; empty if it is a good one."""
    try:
        parse(text)
    except UserError as e:
        return str(e)
    return ""


def test_a_good_study_is_read() -> None:
    spec = parse_study(GOOD, Path("s.yaml")).spec
    assert spec.server.flags == {"max_num_seqs": 2, "enforce_eager": True}
    assert [o.name for o in spec.objectives] == ["throughput", "p95_latency"]
    assert spec.server.speculative is not None
    assert spec.server.draft_settings({"num_speculative_tokens": 3}) == {
        "method": "dflash",
        "model": "org/draft",
        "attention_backend": "flash_attn",
        "num_speculative_tokens": 3,
    }


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: mine", "nam: mine", ["nam", "did you mean name?"]),
        ("input_len: 256", "input_length: 256", ["workload.random.input_length", "input_len"]),
        ("low: 32", "low: 33", ["space.max_num_batched_tokens", "32 or 64"]),
        ("type: pow2", "type: power", ["space.max_num_batched_tokens.type", "pow2"]),
        ("low: 0, high: 15", "low: 15, high: 0", ["space.num_speculative_tokens", "above high"]),
        ("output_len: 96", "output_len: many", ["workload.output_len", '"many"']),
        ("max-num-seqs: 2", "port: 2", ["server.flags", "port", "free port"]),
        ("max-num-seqs: 2", "max-num-seqs: null", ["server.flags", "max-num-seqs has no value"]),
        ("max-num-seqs: 2", "max_num_batched_tokens: 2", ["max_num_batched_tokens", "also fixed"]),
        ("max-num-seqs: 2", "max_num_seqs: 1, max-num-seqs: 2", ["max-num-seqs", "twice"]),
        ("max_concurrency: 2", "max_concurrency: 0", ["workload.max_concurrency", "greater than"]),
        (", max_concurrency: 2", "", ["workload", "max_concurrency", "request_rate"]),
        ("method: dflash, model: org/draft, ", "method: dflash, ", ["server.speculative", "model"]),
        ("method: dflash, model: org/draft, ", "", ["model is missing", "ngram"]),
        (
            "  speculative: {method: dflash, model: org/draft, attention_backend: flash_attn}\n",
            "",
            ["draft"],
        ),
        ("name: mine", "name: a/b", ["name", "pattern"]),
        ("name: mine", "name: mine\nname: yours", ["line 2", "twice"]),
        ("name: mine", "name: [mine", ["s.yaml, line"]),
        ("name: mine", "name: mine\nobjectives: [throughput, throughput]", ["listed twice"]),
        ("name: mine", "name: mine\nbaseline: {foo: 1}", ["baseline.foo", "not a parameter"]),
        ("random: {input_len: 256}", "prompts: no.jsonl", ["workload.prompts", "does not exist"]),
    ],
)
def test_one_clear_line(old: str, new: str, words: list[str]) -> None:
    assert old in GOOD
    with pytest.raises(UserError) as e:
        parse(GOOD.replace(old, new))
    line = str(e.value)
    assert "\n" not in line
    assert "s.yaml" in line
    for word in words:
        assert word in line


@pytest.mark.parametrize("text", ["", "3", "- a", "!!python/object/apply:os.system [ls]", "\x00"])
def test_what_is_no_study(text: str) -> None:
    with pytest.raises(UserError, match=r"s\.yaml"):
        parse(text)


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_gives_a_study_or_one_line(text: str) -> None:
    assert "\n" not in told(text)


@settings(deadline=None)
@given(
    st.sampled_from(GOOD.splitlines()),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
        max_leaves=6,
    ),
)
def test_any_value_for_any_key_gives_a_study_or_one_line(line: str, value: object) -> None:
    import yaml

    key = line.strip().split(":")[0]
    raw = yaml.safe_load(GOOD)
    for part in (raw, raw["server"], raw["space"]):
        if key in part:
            part[key] = value
    assert "\n" not in told(yaml.safe_dump(raw))


def test_names_of_bundled_studies(tmp_path: Path) -> None:
    assert find_study("demo-cpu").name == "demo-cpu.yaml"
    with pytest.raises(UserError, match="did you mean demo-cpu"):
        find_study("demo-cp")
    with pytest.raises(UserError, match="autotune init"):
        find_study(str(tmp_path / "no.yaml"))
    with pytest.raises(UserError, match="folder"):
        find_study(str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(UserError, match="UTF-8"):
        load_study(str(tmp_path / "latin.yaml"))


@pytest.mark.parametrize(
    ("trials", "confirm", "held"),
    [
        (40, None, 8),
        (24, None, 8),
        (12, None, 4),
        (11, None, 0),
        (6, None, 0),
        (1, None, 0),
        (20, 4, 4),
        (3, 8, 1),
        (6, 4, 3),
        (1, 4, 0),
        (40, 0, 0),
    ],
)
def test_trials_held_back_for_the_confirmation(trials: int, confirm: int | None, held: int) -> None:
    assert BudgetSpec(confirm=confirm).confirm_of(trials) == held
