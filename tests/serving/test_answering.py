"""Who answers on a port: engines that speak the same API, and proxies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from autotune.serving.answering import engine_behind, engine_of, said


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
