"""The text that a database keeps of a study: its draft's method is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.study.differences import fingerprint, why_not_same
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.stored import text_to_store
from autotune.study.yaml import load

REST = """\
space: {num_speculative_tokens: {type: int, low: 0, high: 3}}
workload: {random: {input_len: 8}, output_len: 8, num_prompts: 2, max_concurrency: 1}
"""
BLOCK = """\
name: mine # a remark
server:
  model: org/t
  speculative:
    # the draft
    model: org/d
    revision: main
"""
FLOW = "name: mine\nserver: {model: org/t, speculative: {model: org/d}}\n"
ALIAS = "name: mine\nserver: {model: org/t, speculative: &x {model: org/d}, env: {A: b}}\n"


def read(text: str, **options: bool) -> LoadedStudy:
    return parse_study(text + REST, Path("s.yaml"), **options)


def with_method(loaded: LoadedStudy, method: str | None) -> LoadedStudy:
    return loaded.model_copy(update={"spec": loaded.spec.with_method(method)})


@pytest.mark.parametrize("text", [BLOCK, FLOW, ALIAS])
@pytest.mark.parametrize("method", ["mtp", "eagle3", None])
def test_the_method_is_in_the_text_and_the_rest_stays(text: str, method: str | None) -> None:
    loaded = with_method(read(text), method)
    kept = text_to_store(loaded)
    raw = load(text + REST)
    raw["server"]["speculative"]["method"] = method
    assert load(kept) == raw
    assert "# a remark" in kept or "# a remark" not in text
    again = parse_study(kept, Path("s.yaml"), stored=True)
    assert again.spec == loaded.spec
    assert text_to_store(again) == kept


def test_a_text_that_says_it_stays_as_it_is() -> None:
    text = BLOCK + "    method: mtp\n"
    assert text_to_store(read(text)) == text + REST


def test_a_study_of_an_older_release_was_run_with_dflash() -> None:
    old = read(BLOCK, stored=True)
    assert old.spec.server.draft_settings({})["method"] == "dflash"
    said = with_method(read(BLOCK), "dflash")
    assert fingerprint(old) == fingerprint(said)
    assert why_not_same(old, fingerprint(old), said) is None
    other = with_method(read(BLOCK), "mtp")
    assert fingerprint(old) != fingerprint(other)
    assert (
        "server.speculative.method (dflash then, mtp now); write server.speculative.method: dflash"
        in (why_not_same(old, fingerprint(old), other) or "")
    )
    unknown = read(BLOCK)
    assert fingerprint(unknown) not in {fingerprint(old), fingerprint(other)}
