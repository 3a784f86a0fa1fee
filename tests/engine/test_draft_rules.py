"""Rules for drafts: what is played, heads for several tokens, and methods that are not known."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.engine.rule import METHOD, Draft, Known
from autotune.engine.rules import why_doubtful, why_infeasible
from autotune.study.space import MNBT, N

VERSIONS = [f"0.{minor}.0" for minor in range(24, 34)]
CPU, CUDA = Known(platform="cpu"), Known(platform="cuda")
PLAYED: dict[str, Any] = {
    METHOD: "dflash",
    "speculative.rejection_sample_method": "synthetic",
    "speculative.synthetic_acceptance_rates": [0.8, 0.6, 0.6],
}
RATES, LENGTH = "speculative.synthetic_acceptance_rates", "speculative.synthetic_acceptance_length"


def why(settings: dict[str, Any], known: Known = CUDA, version: str | None = "0.32.0") -> str:
    return why_infeasible(settings, version, known) or ""


@pytest.mark.parametrize("version", ["0.26.0", "0.32.0", "0.33.0", None])
def test_synthetic_rates_belong_to_one_n(version: str | None) -> None:
    for n in range(6):
        said = why({**PLAYED, N: n}, version=version)
        assert bool(said) is (n not in {0, 3})
        assert not said or f"n = {n} needs {n}" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({RATES: [0.8, 0.9, 0.1]}, "must not increase"),
        ({RATES: [1.2, 0.9, 0.1]}, "between 0 and 1"),
        ({RATES: None}, "needs one of"),
        ({LENGTH: 2.0}, "needs one of"),
        ({RATES: None, LENGTH: 4.5}, "from 1 to n + 1 = 4"),
        ({RATES: None, LENGTH: 4.0}, ""),
        ({"speculative.rejection_sample_method": "standard"}, "needs rejection_sample_method"),
    ],
)
def test_synthetic_acceptance_is_as_vllm_checks_it(change: dict[str, Any], words: str) -> None:
    said = why({**PLAYED, N: 3, **change})
    assert words in said
    assert bool(said) is bool(words)


def test_a_cpu_plays_no_acceptance() -> None:
    assert "CPU" in why({**PLAYED, N: 3}, CPU)
    assert why({**PLAYED, N: 0}, CPU) == ""
    assert why({**PLAYED, N: 3}, Known()) == ""
    for version in VERSIONS:
        assert "CPU" in why({**PLAYED, N: 3}, CPU, version)


def test_a_head_takes_multiples_of_its_tokens() -> None:
    for n, launches in ((0, True), (1, True), (2, True), (3, False), (4, True), (5, False)):
        for method, counts in (("mtp", True), ("deepseek_mtp", True), ("eagle3", False)):
            said = why({METHOD: method, N: n}, Known(drafts={None: Draft(head_tokens=2)}))
            assert bool(said) is (counts and not launches)
    assert why({METHOD: "mtp", N: 3}, Known()) == ""


def test_the_drafts_length_is_within_its_own_and_the_targets() -> None:
    known = Known(drafts={None: Draft(model_max_len=2048)})
    own = "speculative.max_model_len"
    for length, launches in ((2048, True), (2049, False)):
        settings = {METHOD: "eagle3", N: 3, own: length}
        assert (why(settings, known) == "") is launches
        assert why({**settings, METHOD: "ngram"}, known) == ""  # it has no model
        assert why(settings) == ""
        assert (why(settings, Known(model_max_len=2048)) == "") is launches
        assert bool(why({**settings, "max_model_len": 2048})) is not launches


def test_without_a_method_no_rule_guesses_one() -> None:
    settings = {N: 15, MNBT: 2048, "max_num_seqs": 256}
    for version in (*VERSIONS, None):
        assert why(settings, version=version) == ""
    assert why_doubtful({N: 8, MNBT: 2048, "max_num_seqs": 256}, "0.26.0") is None
    assert "max_num_seqs = 256" in why({**settings, MNBT: 64})
    for method in ("ngram", "suffix", "mtp"):
        assert why({**settings, METHOD: method}, version="0.26.0") == ""
