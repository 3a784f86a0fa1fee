"""What a server drafted against what was launched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.bench.drafting import check_drafts
from autotune.bench.server_metrics import ServerStats
from autotune.errors import FailureKind, MeasureError

UNKNOWN = ServerStats(None, None, None, None, (), None, None, None)
PLAIN = replace(UNKNOWN, generated=960, speculates=False)
IDLE = replace(PLAIN, drafts=0, draft_tokens=0, accepted_tokens=0, speculates=True)
DRAFTS = replace(IDLE, drafts=320, draft_tokens=960, accepted_tokens=480, acceptance_length=2.5)
DFLASH = {"method": "dflash", "model": "org/d"}


def check(
    stats: ServerStats,
    n: int,
    version: str | None = "0.32.0",
    draft: dict[str, object] | None = None,
) -> str | None:
    return check_drafts(stats, 10, n, {**DFLASH, **(draft or {})}, version)


@pytest.mark.parametrize(("stats", "n"), [(PLAIN, 0), (IDLE, 0), (DRAFTS, 3)])
def test_a_server_as_launched(stats: ServerStats, n: int) -> None:
    assert check(stats, n) is None


@pytest.mark.parametrize(
    ("stats", "n", "words"),
    [
        (DRAFTS, 0, "acceptance length 2.50"),
        (IDLE, 3, "counted no draft in 960"),
        (PLAIN, 3, "without --speculative-config"),
    ],
)
def test_another_server_is_a_final_failure(stats: ServerStats, n: int, words: str) -> None:
    with pytest.raises(MeasureError, match=words) as e:
        check(stats, n)
    assert e.value.kind is FailureKind.WRONG_SERVER
    assert not e.value.kind.transient
    assert e.value.reason.startswith(f"n = {n}")


@pytest.mark.parametrize(
    "draft",
    [
        {"method": "ngram", "model": None},
        {"method": "suffix", "model": None},
        {"method": "custom_class", "model": "package.Drafter"},
        {"method": None, "model": "ngram"},
        {"enable_adaptive_verification": True},
        {"num_speculative_tokens_per_batch_size": [[1, 4, 3], [5, 64, 0]]},
    ],
)
def test_what_may_draft_nothing_is_a_note(draft: dict[str, object]) -> None:
    note = check(IDLE, 3, draft=draft)
    assert note is not None
    assert "second baseline" in note


def test_short_answers_prove_nothing() -> None:
    note = check(replace(IDLE, generated=20), 3)
    assert note is not None
    assert "too short" in note


@pytest.mark.parametrize("version", [None, "dev", "0.8.5"])
def test_a_server_that_may_have_no_such_counters(version: str | None) -> None:
    note = check(PLAIN, 3, version)
    assert note is not None
    assert "does not tell" in note


@pytest.mark.parametrize("n", [0, 3])
def test_without_counters_nothing_is_known(n: int) -> None:
    assert check(UNKNOWN, n) is None
    assert check(replace(UNKNOWN, generated=960, speculates=True), n) is None  # NaN, or restarted
    note = check(replace(UNKNOWN, unknown="/metrics is a page of Envoy"), n)
    assert note is not None
    assert "Envoy" in note
