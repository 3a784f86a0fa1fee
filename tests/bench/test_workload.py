from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.bench.workload import Workload, build_workload
from autotune.errors import UserError
from autotune.study.workload import WorkloadSpec


def spec(**changes: Any) -> WorkloadSpec:
    base: dict[str, Any] = {
        "prompts": "p.jsonl",
        "output_len": 8,
        "num_prompts": 6,
        "warmup_prompts": 2,
        "max_concurrency": 2,
    }
    if "random" in changes:
        del base["prompts"]
    return WorkloadSpec.model_validate({**base, **changes})


def write(folder: Path, rows: list[Any]) -> None:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "p.jsonl").write_text(text)


def chats(n: int) -> list[Any]:
    return [{"messages": [{"role": "user", "content": f"question {i}"}]} for i in range(n)]


def keys(requests: tuple[Any, ...]) -> list[str]:
    return [json.dumps([r.prompt, r.messages]) for r in requests]


def test_same_seed_same_requests_and_another_seed_others(tmp_path: Path) -> None:
    write(tmp_path, chats(20))
    one = build_workload(spec(seed=3), tmp_path)
    assert one == build_workload(spec(seed=3), tmp_path)
    assert keys(one.measured) != keys(build_workload(spec(seed=4), tmp_path).measured)


def test_warmup_and_measured_prompts_are_disjoint(tmp_path: Path) -> None:
    write(tmp_path, chats(8))
    work = build_workload(spec(), tmp_path)
    assert len(work.measured) == 6
    assert len(work.warmup) == 2
    assert not set(keys(work.measured)) & set(keys(work.warmup))
    assert [r.index for r in work.measured] == list(range(6))
    assert [r.index for r in work.warmup] == [0, 1]


def test_a_short_file_is_sent_again_if_the_study_says_so(tmp_path: Path) -> None:
    write(tmp_path, chats(5))
    work = build_workload(spec(num_prompts=12, warmup_prompts=7, repeat=True), tmp_path)
    measured, warmup = keys(work.measured), keys(work.warmup)
    assert len(set(measured[:5])) == 5
    assert measured == (measured[:5] * 3)[:12]
    assert warmup == (measured[4::-1] * 2)[:7]
    assert [r.index for r in work.measured] == list(range(12))
    write(tmp_path, [])
    with pytest.raises(UserError, match="has 0 prompts"):
        build_workload(spec(repeat=True), tmp_path)


@pytest.mark.parametrize("source", ["file", "random"])
def test_more_prompts_leave_the_first_ones_alone(tmp_path: Path, source: str) -> None:
    write(tmp_path, chats(60))
    extra = {"random": {"input_len": 5}} if source == "random" else {}

    def build(measured: int, warmup: int) -> Workload:
        changes = {"num_prompts": measured, "warmup_prompts": warmup, "request_rate": 2.0, **extra}
        return build_workload(spec(**changes), tmp_path)

    small, large = build(6, 2), build(30, 9)
    assert keys(large.measured)[:6] == keys(small.measured)
    assert keys(large.warmup)[:2] == keys(small.warmup)
    assert large.arrivals[:6] == small.arrivals


def test_text_and_chat_lines_and_blank_lines(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    write(tmp_path, [{"prompt": "Once", "id": 7}, "", {"messages": parts}, "  "])
    work = build_workload(spec(num_prompts=2, warmup_prompts=0), tmp_path)
    assert {r.prompt for r in work.measured} == {"Once", None}
    assert parts in [r.messages for r in work.measured]


def test_too_few_prompts_is_one_clear_line(tmp_path: Path) -> None:
    write(tmp_path, chats(34))
    with pytest.raises(UserError) as e:
        build_workload(spec(num_prompts=32, warmup_prompts=4), tmp_path)
    assert str(e.value).endswith(
        "p.jsonl has 34 prompts, the study needs 36 (32 measured + up to 4 warm-up)"
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{nope", "is not JSON"),
        ("[1]", "must be an object"),
        ({"text": "x"}, "needs exactly one of `messages` and `prompt`"),
        ({"prompt": "x", "messages": []}, "needs exactly one"),
        ({"prompt": ""}, "prompt: must be a text"),
        ({"prompt": [1, 2]}, "prompt: must be a text"),
        ({"messages": []}, "messages: must be a list"),
        ({"messages": ["hi"]}, "messages[0]: must be an object"),
        ({"messages": [{"content": "x"}]}, "messages[0].role: must be"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content: must be"),
        ({"messages": [{"role": "user", "content": "question 0"}]}, "is the same prompt as line 1"),
    ],
)
def test_a_wrong_line_is_named_with_its_key(tmp_path: Path, row: Any, words: str) -> None:
    write(tmp_path, [*chats(2), row])
    with pytest.raises(UserError) as e:
        build_workload(spec(), tmp_path)
    assert f"{tmp_path / 'p.jsonl'}, line 3: {words}" in str(e.value)


def test_a_prompts_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p\.jsonl: workload.prompts cannot be read: No such file"):
        build_workload(spec(), tmp_path)


def test_random_prompts_have_the_exact_length_and_range_and_differ(tmp_path: Path) -> None:
    random = {"input_len": 3, "vocab_low": 10, "vocab_high": 14}
    work = build_workload(spec(random=random, num_prompts=50, warmup_prompts=14, seed=1), tmp_path)
    prompts = [r.prompt for r in work.measured + work.warmup]
    assert all(isinstance(p, list) and len(p) == 3 for p in prompts)
    assert {i for p in prompts for i in p or ()} == {10, 11, 12, 13}
    assert len(set(map(str, prompts))) == 64  # all there are
    json.dumps(prompts)  # plain ints


def test_more_random_prompts_than_exist(tmp_path: Path) -> None:
    random = {"input_len": 1, "vocab_low": 0, "vocab_high": 7}
    with pytest.raises(UserError, match=r"only 7 different prompts exist .* needs 8"):
        build_workload(spec(random=random), tmp_path)


def test_arrivals_are_all_zero_in_a_closed_loop(tmp_path: Path) -> None:
    write(tmp_path, chats(8))
    assert build_workload(spec(), tmp_path).arrivals == (0.0,) * 6


def test_arrivals_are_a_poisson_process_from_zero(tmp_path: Path) -> None:
    changes = {"num_prompts": 4001, "random": {"input_len": 4}, "request_rate": 8.0}
    arrivals = build_workload(spec(**changes), tmp_path).arrivals
    gaps = np.diff(arrivals)
    assert arrivals[0] == 0.0
    assert len(arrivals) == 4001
    # exponential: mean = standard deviation = 1/8; 5 standard errors
    assert math.isclose(gaps.mean(), 1 / 8, rel_tol=0.08)
    assert math.isclose(gaps.std(), 1 / 8, rel_tol=0.12)


def test_constant_arrivals_come_evenly(tmp_path: Path) -> None:
    changes = {"num_prompts": 5, "random": {"input_len": 4}, "request_rate": 4.0}
    arrivals = build_workload(spec(**changes, arrivals="constant"), tmp_path).arrivals
    assert arrivals == (0.0, 0.25, 0.5, 0.75, 1.0)


def test_where_latency_begins_and_how_much_warm_up() -> None:
    closed = spec(max_concurrency=8, warmup_prompts=None)
    assert closed.latency_origin == "send"
    assert closed.most_warmup == 32
    both = spec(max_concurrency=8, request_rate=2.0)
    assert both.latency_origin == "intended"  # users do not wait for a free place to be counted
    assert spec(request_rate=2.0, latency_from="send").latency_origin == "send"
