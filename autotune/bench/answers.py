"""Whole answers of a server with their token ids, and how likely another server finds each token.

The answers are asked for as users do, at the load of the study, but without a stream and with
everything off that changes probabilities (top-p, top-k, penalties): a model's own
``generation_config.json`` would set some of it. They end where the model ends them.

Scoring is teacher forcing: one server is given the prompt's and the answer's token ids, never
their text, and returns the log-probability of each token, and of the likeliest one in its place
(``prompt_logprobs``).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from autotune.bench.sending import blamed
from autotune.bench.server_metrics import read_page
from autotune.bench.workload import Request
from autotune.bench.written import Scored, Written
from autotune.errors import FailureKind, MeasureError
from autotune.study.workload import WorkloadSpec

if TYPE_CHECKING:
    import httpx

    from autotune.serving.server import Server

# Everything off that changes the probabilities which a token is drawn from.
_PLAIN = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_MOST_NATS = 1e6  # vLLM writes -9999 for a token without any probability
_AT_ONCE = 8  # answers that are scored at a time
_CONNECT_S = 30.0
_TEXTS = ("content", "reasoning_content", "reasoning")


def ask_answers(
    server: Server,
    load: WorkloadSpec,
    requests: Sequence[Request],
    arrivals: Sequence[float],
    *,
    temperature: float,
    on_done: Callable[[Written], None],
) -> list[Written]:
    """Return a server's whole answers to requests, in their order.

    Args:
        server: The server.
        load: Has concurrency, output length, seed and the longest duration of a request.
        requests: Requests to send.
        arrivals: Intended start of each, in seconds from the first.
        temperature: Of the sampling; 0: the likeliest token always.
        on_done: Told of each answer as soon as it is there.

    Raises:
        TrialFailure: a request failed, or the server died.
    """
    zero = time.perf_counter()

    async def one(client: httpx.AsyncClient, i: int) -> Written:
        if (wait := zero + arrivals[i] - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        request = requests[i]
        path, body = _body(server.plan.served_name, request, load, temperature)
        found = _written(request.index, await _posted(client, path, body, load.request_timeout_s))
        on_done(found)
        return found

    return _all(server, len(requests), load.max_concurrency or len(requests), one)


def score_answers(
    server: Server,
    load: WorkloadSpec,
    answers: Sequence[Written],
    on_done: Callable[[int, Scored], None],
) -> list[Scored]:
    """Return how likely a server finds each token of answers, in their order.

    Args:
        server: The server that scores.
        load: Has the longest duration of a request.
        answers: What was written, by this server or others.
        on_done: Told of each answer's position in ``answers`` and its score.

    Raises:
        TrialFailure: a request failed, or the server died.
    """
    most = _context(server)

    async def one(client: httpx.AsyncClient, i: int) -> Scored:
        answer = answers[i]
        ids = [*answer.prompt_ids, *answer.token_ids]
        if most is not None:
            ids = ids[: most - 1]  # the server writes one more token
        body = {
            "model": server.plan.served_name,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 1,
        }
        found = await _posted(client, "/v1/completions", body, load.request_timeout_s)
        scored = _scored(found, ids, len(answer.prompt_ids))
        on_done(i, scored)
        return scored

    return _all(server, len(answers), _AT_ONCE, one)  # nothing is timed: no step waits for us


def _all(
    server: Server, count: int, at_once: int, one: Callable[[httpx.AsyncClient, int], Any]
) -> list[Any]:
    """Return what a coroutine gives for each number, ``at_once`` of them at a time, in order."""
    import httpx

    async def go() -> list[Any]:
        turn = asyncio.Semaphore(at_once)  # its waiters are served in their order
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        head = {"Authorization": f"Bearer {server.plan.api_key}"}

        async def take(client: httpx.AsyncClient, i: int) -> Any:
            async with turn:
                return await one(client, i)

        async with httpx.AsyncClient(
            base_url=server.plan.base_url, headers=head, limits=limits, trust_env=False
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(take(client, i)) for i in range(count)]
            except BaseExceptionGroup as e:
                raise e.exceptions[0] from None
            return [t.result() for t in tasks]

    try:
        return asyncio.run(go())
    except MeasureError as e:
        masked = MeasureError(e.kind, server.plan.masked(e.reason))
        raise blamed(server, masked) from e


async def _posted(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], timeout_s: float
) -> dict[str, Any]:
    """Return the answer to a request as JSON.

    Raises:
        MeasureError: it has none.
    """
    import httpx

    try:
        async with asyncio.timeout(timeout_s):
            answer = await client.post(
                path, json=body, timeout=httpx.Timeout(None, connect=_CONNECT_S)
            )
    except TimeoutError:
        raise MeasureError(
            FailureKind.HANG, f"no answer after {timeout_s:g} s (workload.request_timeout_s)"
        ) from None
    except httpx.HTTPError as e:
        words = str(e) or type(e).__name__
        raise MeasureError(FailureKind.REQUESTS, f"no answer: {words[:300]}") from e
    if answer.status_code != 200:
        failed = answer.status_code >= 500
        kind = FailureKind.SERVER_ERROR if failed else FailureKind.REQUESTS
        words = " ".join(answer.text[:3000].split())[:300]
        raise MeasureError(kind, f"HTTP {answer.status_code}: {words}")
    try:
        found = answer.json()
        if not isinstance(found, dict):
            raise TypeError
    except (ValueError, TypeError, RecursionError):
        raise _not_openai() from None
    return found


def _body(
    model: str, request: Request, load: WorkloadSpec, temperature: float
) -> tuple[str, dict[str, Any]]:
    """Return path and body of a request."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": request.output_len or load.output_len,
        "temperature": temperature,
        "seed": load.seed + request.index,
        "return_token_ids": True,
        **_PLAIN,
    }
    if request.messages is not None:
        return "/v1/chat/completions", {
            **body,
            "messages": request.messages,
            **request.tool_keys,
        }
    return "/v1/completions", {**body, "prompt": request.prompt}


def _written(index: int, found: dict[str, Any]) -> Written:
    """Return a server's JSON as an answer."""
    try:
        choice = found["choices"][0]
        prompt = choice.get("prompt_token_ids") or found.get("prompt_token_ids")
        tokens = choice.get("token_ids")
        if prompt is None or tokens is None:
            raise MeasureError(
                FailureKind.REQUESTS,
                "the server returns no token ids (return_token_ids), which verify compares; it "
                "needs vLLM 0.24 or later",
            )
        message = choice.get("message")
        if message is None:
            text = choice.get("text") or ""
        else:
            text = "".join(message.get(name) or "" for name in _TEXTS)
        stop = choice.get("finish_reason") or "none"
        if not isinstance(text, str) or re.fullmatch(r"\w{1,40}", stop, re.ASCII) is None:
            raise TypeError
        return Written(index, _token_ids(prompt), _token_ids(tokens), text, stop)
    except (AttributeError, LookupError, TypeError, ValueError):
        raise _not_openai() from None


def _token_ids(found: object) -> tuple[int, ...]:
    """Return token ids of a server's JSON.

    Raises:
        TypeError: they are none.
    """
    if not isinstance(found, list) or not all(type(x) is int and 0 <= x < 2**31 for x in found):
        raise TypeError
    return tuple(found)


def _scored(found: dict[str, Any], ids: Sequence[int], first: int) -> Scored:
    """Return a server's JSON as the score of the tokens from ``first`` on."""
    try:
        rows = found["choices"][0].get("prompt_logprobs")
        if rows is None or len(rows) != len(ids):
            raise MeasureError(
                FailureKind.REQUESTS, "the server returns no prompt_logprobs, which verify needs"
            )
        own, best = [], []
        for token, row in zip(ids[first:], rows[first:], strict=True):
            known = {k: float(x["logprob"]) for k, x in row.items()}
            own.append(known[str(token)])
            best.append(max(known.values()))
        if not all(abs(x) <= _MOST_NATS for x in (*own, *best)):  # not NaN either
            raise MeasureError(
                FailureKind.REQUESTS,
                "the server finds log-probabilities that are not finite, so nothing can be "
                "compared with it",
            )
        return Scored(tuple(own), tuple(best))
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        raise _not_openai() from None


def _not_openai() -> MeasureError:
    return MeasureError(FailureKind.REQUESTS, "the server's answer is not of OpenAI's API")


def _context(server: Server) -> int | None:
    """Return the most tokens of prompt and answer together; None: the server does not tell."""
    try:
        page = read_page(f"{server.plan.base_url}/v1/models", server.plan.api_key)
        most = orjson.loads(page or b"{}")["data"][0].get("max_model_len")
    except MeasureError as e:
        raise blamed(server, e) from e
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return most if type(most) is int and most > 1 else None
