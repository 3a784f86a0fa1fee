"""What is asked for, and what is read from a server's JSON."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.bench.answers import _body, _scored, _written
from autotune.bench.workload import Request
from autotune.bench.written import Scored
from autotune.errors import MeasureError
from autotune.study.workload import WorkloadSpec

LOAD = WorkloadSpec.model_validate(
    {"prompts": "p.jsonl", "output_len": 8, "num_prompts": 2, "max_concurrency": 2}
)
# vLLM 0.32.0, shortened
CHAT: dict[str, Any] = {
    "choices": [
        {
            "message": {"role": "assistant", "content": None, "reasoning": "Paris"},
            "finish_reason": "stop",
            "token_ids": [42, 2],
        }
    ],
    "prompt_token_ids": [1, 7, 9],
}
GOOD = {"text": "x", "finish_reason": "stop", "token_ids": [5], "prompt_token_ids": [1]}


def test_an_answer_ends_where_the_model_ends_it() -> None:
    path, body = _body("m", Request(3, "Hi", None), LOAD, 0.0)
    assert path == "/v1/completions"
    assert body["prompt"] == "Hi"
    assert "ignore_eos" not in body
    assert body["return_token_ids"] is True
    # a model's generation_config.json would set these
    assert (body["top_p"], body["top_k"], body["repetition_penalty"]) == (1.0, -1, 1.0)
    chat = Request(0, None, [{"role": "user", "content": "Hi"}], output_len=5)
    path, body = _body("m", chat, LOAD, 1.0)
    assert path == "/v1/chat/completions"
    assert (body["max_tokens"], body["temperature"]) == (5, 1.0)


def test_answers_of_both_endpoints_are_read() -> None:
    found = _written(4, CHAT)
    assert (found.index, found.text, found.stop) == (4, "Paris", "stop")
    assert (found.prompt_ids, found.token_ids) == ((1, 7, 9), (42, 2))
    assert _written(0, {"choices": [GOOD]}).prompt_ids == (1,)


def test_the_score_is_of_the_answer() -> None:
    rows = [
        None,
        {"7": {"logprob": -1.0}},
        {"9": {"logprob": -2.0}, "3": {"logprob": -0.5}},
        {"42": {"logprob": -0.25}},
    ]
    found = _scored({"choices": [{"prompt_logprobs": rows}]}, [1, 7, 9, 42], 2)
    assert found == Scored((-2.0, -0.25), (-0.5, -0.25))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({}, "not of OpenAI's API"),
        ({"choices": []}, "not of OpenAI's API"),
        ({"choices": [{"text": "x", "finish_reason": "stop"}]}, "return_token_ids"),
        *(
            ({"choices": [GOOD | {key: value}]}, "not of OpenAI's API")
            for key, value in (
                ("token_ids", "12"),
                ("token_ids", [2**31]),  # ids are kept as 32 bits
                ("token_ids", [-1]),
                ("token_ids", [float("inf")]),
                ("prompt_token_ids", [1.5]),
                ("text", 5),
                ("finish_reason", "\x00"),  # which PostgreSQL cannot keep
                ("finish_reason", "\ud800"),
                ("finish_reason", ["stop"]),
            )
        ),
    ],
)
def test_what_cannot_be_compared(answer: dict[str, Any], words: str) -> None:
    with pytest.raises(MeasureError, match=words):
        _written(0, answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"choices": [{}]}, "prompt_logprobs"),
        ({"choices": [{"prompt_logprobs": [None]}]}, "prompt_logprobs"),
        ({"choices": [{"prompt_logprobs": [None, {"8": {"logprob": 0}}]}]}, "not of OpenAI's API"),
        *(
            ({"choices": [{"prompt_logprobs": [None, {"7": {"logprob": value}}]}]}, "not finite")
            for value in (float("nan"), -float("inf"), -1e300)  # no finite one in 32 bits
        ),
    ],
)
def test_what_cannot_be_scored(answer: dict[str, Any], words: str) -> None:
    with pytest.raises(MeasureError, match=words):
        _scored(answer, [1, 7], 1)
