"""Every command line of vLLM's own documentation, examples and recipes, given to `autotune init`.

``benchmarks/vllm_commands.py`` collects them. Each gives a study, or a refusal that the data names.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache

import pytest

from autotune.engine.flags import check_flags
from autotune.engine.probe import probe
from autotune.study.files import LoadedStudy
from autotune.study.schema import ServerSpec
from autotune.study.serve_flags import LEFT_OUT
from autotune.study.space import MNBT
from benchmarks.vllm_commands import DATA, answer, parsed, study_of

# Settings that autotune sets itself, and those that hold the model or the draft.
_OWN = {flag.replace("-", "_") for flag in LEFT_OUT} | {
    "model",
    "model_tag",
    "config",
    "speculative_config",
    "spec_method",
    "spec_model",
    "spec_tokens",
    MNBT,
}


@cache
def commands() -> tuple[dict[str, str], ...]:
    return tuple(json.loads(DATA.read_text(encoding="utf-8")))


@cache
def studies() -> dict[str, LoadedStudy]:
    return {c["text"]: study_of(c["text"]) for c in commands() if not c["refused"]}


@pytest.mark.slow
def test_each_gives_a_study_or_the_refusal_that_is_expected() -> None:
    wrong = [{**c, "now": now} for c in commands() if (now := answer(c["text"])) != c["refused"]]
    assert not wrong


@pytest.mark.slow
def test_most_are_taken_many_with_a_draft() -> None:
    counts = Counter(c["refused"] for c in commands())
    assert counts[""] > 0.85 * counts.total()
    assert sum(s.spec.server.speculative is not None for s in studies().values()) > 140


@pytest.mark.vllm
def test_vllms_parser_takes_what_the_studies_launch() -> None:
    info = probe(ServerSpec(model="m"))
    refused = {c["text"]: c.get("parser", "") for c in commands()}
    for text, got in parsed(studies()).items():
        assert not got["drafts"], (text, got)  # the baseline speculates with nothing
        # what vLLM refuses in a study, it refuses in the command: a flag of another version, a slip
        assert got["found"] == refused[text], (text, got)
        if got["found"]:
            continue
        assert (got["n0"], got["n3"]) == ("", ""), (text, got)
        assert not set(got["differ"]) - _OWN, (text, got)
        assert not got["unknown"], (text, got)
        check_flags(studies()[text], info)
