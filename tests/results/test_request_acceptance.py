"""Accepted drafts by kind of request and by position in the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from autotune import Result
from autotune.bench.request_drafts import RequestDrafts, counted
from autotune.bench.sample import Sample
from autotune.engine.acceptance import ACCEPTANCE_OPTION
from autotune.engine.draft_schedule import SCHEDULE
from autotune.results.read_request_acceptance import why_biased
from autotune.results.request_acceptance import (
    CATEGORY,
    PROMPT_LENGTH,
    RequestAcceptance,
    acceptance_lines,
    request_acceptance,
)
from autotune.study.space import MNBT, N
from tests.studies import autotune, query, trials, write_study

N_DRAFTS = 3


def request(
    index: int,
    accepted: Sequence[int],
    *,
    prompt: int = 10,
    category: str | None = None,
    detailed: bool = True,
    extra: int = 0,
) -> Sample:
    """A request; ``extra`` tokens came from steps without a draft."""
    by_step = tuple((a, N_DRAFTS) for a in accepted) if detailed else ()
    drafts = RequestDrafts(counted(accepted, N_DRAFTS), N_DRAFTS * len(accepted), by_step)
    tokens = 1 + sum(a + 1 for a in accepted) + extra
    return Sample(
        index,
        "measure",
        0.0,
        0.0,
        0.1,
        1.0,
        prompt,
        tokens,
        "ok",
        None,
        (0.1, 1.0),
        drafts,
        category,
    )


def found(samples: Sequence[Sample]) -> RequestAcceptance:
    out = request_acceptance(samples)
    assert out is not None
    return out


def test_by_category_with_the_request_as_the_unit() -> None:
    samples = [request(i, [3, 3, 3 - i % 2], category="code") for i in range(8)]
    samples += [request(8 + i, [0, 1], category="chat") for i in range(8)]
    told = found(samples)
    assert told.kind == CATEGORY
    code, chat = told.classes
    assert (code.name, code.requests, code.steps) == ("code", 8, 24)
    assert code.length.value == pytest.approx(1 + 8.5 / 3)
    assert code.length.low is not None
    assert code.length.low < code.length.value < (code.length.high or 0)
    assert (chat.name, chat.length.value, chat.share) == ("chat", 1.5, pytest.approx(1 / 6))
    assert chat.length.low is None  # all alike: no interval, instead of one of width 0
    assert told.whole.steps == 40
    assert told.spread[0] == pytest.approx(1.5)


def test_rare_categories_are_taken_together() -> None:
    samples = [request(i, [1, i % 3], category=f"c{i % 20}") for i in range(40)]
    samples += [request(99, [2])]
    names = [g.name for g in found(samples).classes]
    assert len(names) == 13
    assert set(names[-2:]) == {"others", "without a category"}


def test_by_prompt_length_where_the_dataset_has_no_category() -> None:
    lengths = [9, 16, 17, 32, 33, 1000]
    told = found([request(i, [1, 2], prompt=p) for i, p in enumerate(lengths)])
    assert told.kind == PROMPT_LENGTH
    assert [(g.name, g.requests) for g in told.classes] == [
        ("9 to 16", 2),
        ("17 to 32", 2),
        ("33 to 64", 1),
        ("513 to 1024", 1),
    ]
    many = found([request(i, [1], prompt=2**i) for i in range(14)])
    assert len(many.classes) <= 6
    assert sum(g.requests for g in many.classes) == 14
    assert found([request(i, [1]) for i in range(3)]).classes == ()  # one class is none


def test_by_position_in_the_answer() -> None:
    """Ten steps that accept all, then none: of 1 + 40 tokens the first steps begin at 2, 6, …."""
    told = found([request(i, [3] * 10 + [0] * 24) for i in range(9)])
    assert [g.name for g in told.parts] == [
        "1 to 8",
        "9 to 16",
        "17 to 32",
        "33 to 64",
        "65 to 128",
    ]
    assert [g.steps // 9 for g in told.parts] == [2, 2, 4, 25, 1]
    assert [g.length.value for g in told.parts] == pytest.approx([4, 4, 4, 1 + 6 / 25, 1])
    assert sum(g.steps for g in told.parts) == told.whole.steps


def test_the_summary_has_no_positions() -> None:
    told = found([request(i, [3, 0], detailed=False) for i in range(4)])
    assert told.parts == ()
    assert told.whole.length.value == 2.5
    assert told.notes == []


def test_tokens_of_steps_without_drafts_hide_the_positions() -> None:
    told = found([request(i, [1, 1], extra=5) for i in range(4)])
    assert told.unseen == pytest.approx(0.5)
    assert told.parts == ()
    assert "50% of the tokens came from steps without a draft" in told.notes[0]


def test_requests_that_told_nothing_are_counted() -> None:
    silent = Sample(7, "measure", 0.0, 0.0, 0.1, 1.0, 10, 4, "ok", None, (0.1,))
    failed = Sample(8, "measure", 0.0, 0.0, None, 1.0, None, None, "http", "HTTP 400", ())
    told = found([request(0, [1]), silent, failed])
    assert (told.requests, told.untold) == (1, 1)
    assert told.notes == ["the server told nothing of 1 request"]
    assert request_acceptance([silent, failed]) is None


def test_in_words_and_as_json() -> None:
    told = found([request(i, [3, 3, 3 - i % 2], category="ab"[i % 2]) for i in range(16)])
    lines = list(acceptance_lines(told))
    assert lines[0].startswith("accepted drafts of 16 requests: 3.83 [3.")
    assert "  by category:" in lines
    assert "  by position in the answer (tokens):" in lines
    body = json.loads(json.dumps(told.to_json()))
    assert body["whole"]["length"]["value"] == told.whole.length.value
    assert [g["name"] for g in body["classes"]] == ["a", "b"]


def test_where_the_figures_are_biased() -> None:
    assert why_biased({"method": "dflash"}) is None
    assert "adaptive" in (why_biased({"enable_adaptive_verification": True}) or "")
    assert "schedule" in (why_biased({SCHEDULE: [[1, 4, 3]]}) or "")
    told = request_acceptance([request(0, [1])], "biased")
    assert told is not None
    assert told.notes == ["biased"]


@pytest.mark.double
def test_a_run_keeps_and_shows_them(tmp_path: Path) -> None:
    """The study's own flag is in the launch that drafts, and not in the baseline."""
    rows = [{"prompt": f"word {i} " * (3 + i % 9), "category": f"c{i % 2}"} for i in range(40)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    study = write_study(
        tmp_path,
        server__flags={"max-num-seqs": 2, "per-request-spec-decode-metrics": "detailed"},
        workload={
            **{"prompts": "p.jsonl", "output_len": 24, "num_prompts": 24, "warmup_prompts": 2},
            "max_concurrency": 2,
        },
        space={
            N: {"type": "choice", "choices": [0, 3]},
            MNBT: {"type": "choice", "choices": [2048]},
        },
        search={"method": "grid"},
        budget={"confirm": 0},
    )
    assert autotune("run", str(study), "--trials", "2", cwd=tmp_path).returncode == 0
    argvs = [
        str(a) for (a,) in query(tmp_path, "select argv from autotune_launches order by trial")
    ]
    assert [ACCEPTANCE_OPTION in a for a in argvs] == [False, True]

    baseline, drafted = (
        json.loads(autotune("status", "--trial", k, "--json", cwd=tmp_path).stdout) for k in "01"
    )
    assert baseline["request_acceptance"] is None
    told = drafted["request_acceptance"]
    assert {k: drafted[k] for k in ("trial", "acceptance_length")} == {
        k: trials(tmp_path)[1][k] for k in ("trial", "acceptance_length")
    }
    assert (told["requests"], told["untold"], told["kind"]) == (24, 0, CATEGORY)
    assert {g["name"] for g in told["classes"]} == {"c0", "c1"}
    assert sum(g["requests"] for g in told["classes"]) == 24
    assert told["unseen"] == 0
    # the server's own counters are of the same requests, and of those that kept the load full
    assert told["whole"]["length"]["value"] == pytest.approx(drafted["acceptance_length"], rel=0.2)
    story = autotune("status", "--trial", "1", cwd=tmp_path).stdout
    assert "  by category:\n    c" in story
    assert "  by position in the answer (tokens):\n    1 to 8: " in story
    result = Result.from_database(tmp_path / "autotune.db")
    found = result.request_acceptance(result.trials[1])
    assert found is not None
    assert json.loads(json.dumps(found.to_json())) == told
    assert result.request_acceptance(result.trials[0]) is None
