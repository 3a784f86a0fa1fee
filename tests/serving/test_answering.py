"""Who answers on a port: engines that speak the same API, and proxies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from autotune.serving.answering import answer_of, engine_behind, engine_of, said


def client(pages: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> httpx.Client:
    def answer(request: httpx.Request) -> httpx.Response:
        page = pages.get(request.url.path)
        if isinstance(page, int):
            return httpx.Response(page, headers=headers)
        if page is None:
            return httpx.Response(404, headers=headers)
        text = page if isinstance(page, str) else json.dumps(page)
        return httpx.Response(200, text=text, headers=headers)

    return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("vllm", None),
        ("sglang", "SGLang"),
        ("llamacpp", "llama.cpp"),
        ("library", "Ollama"),
        ("somebody", None),
        (None, None),
    ],
)
def test_a_list_of_models_says_whose_it_is(owner: str | None, name: str | None) -> None:
    cards = [{"id": "org/m", "owned_by": owner}]
    with client({"/v1/models": {"data": cards}}) as c:
        assert engine_of(cards, c.get("/v1/models")) == name


def test_a_header_says_it_too() -> None:
    with client({"/v1/models": {"data": []}}, {"server": "llama.cpp"}) as c:
        assert engine_of([], c.get("/v1/models")) == "llama.cpp"
    with client({"/v1/models": {"data": []}}, {"server": "uvicorn"}) as c:
        assert engine_of([], c.get("/v1/models")) is None


@pytest.mark.parametrize(
    ("pages", "name"),
    [
        ({"/get_model_info": {"model_path": "org/m"}}, "SGLang"),
        ({"/props": {"default_generation_settings": {}}}, "llama.cpp"),
        ({"/info": {"model_id": "org/m", "max_concurrent_requests": 128}}, "TGI"),
        ({"/info": "<html>"}, None),
        ({"/props": 500}, None),
        ({}, None),
    ],
)
def test_an_endpoint_of_its_own_says_it(pages: Mapping[str, Any], name: str | None) -> None:
    with client(pages) as c:
        assert engine_behind(c) == name


def test_what_was_wrong_with_an_answer() -> None:
    with client({"/v1/models": 401}, {"server": "nginx/1.27"}) as c:
        with pytest.raises(httpx.HTTPStatusError) as e:
            c.get("/v1/models").raise_for_status()
        words = said(e.value)
    assert words == "GET /v1/models gave HTTP 401 for the launch's own key (server nginx/1.27)"
    assert said(KeyError("data")) == "KeyError: 'data'"


@pytest.mark.parametrize(
    ("version", "expected", "words"),
    [
        ({"version": "0.32.0"}, "0.32.0+cu129", None),
        ({"version": "0.32.0"}, None, None),
        ({"version": "0.31.0"}, "0.32.0", "is vLLM 0.31.0, not 0.32.0"),
        (404, "0.32.0", "tells no version (GET /version gave HTTP 404), and 0.32.0 was expected"),
        (404, None, None),
    ],
)
def test_what_a_server_says_of_itself_is_compared_with_the_launch(
    version: Any, expected: str | None, words: str | None
) -> None:
    pages = {"/v1/models": {"data": [{"id": "org/m", "owned_by": "vllm"}]}, "/version": version}
    with client(pages) as c:
        answer = answer_of(c.get("/v1/models"), c.get("/version"))
    why = answer.why_another("org/m", expected)
    assert (why or "").startswith(words or "")
    assert (why is None) == (words is None)
    assert answer.why_another("org/x", expected) == "serves org/m, not org/x"
