"""A real vLLM whose answers have some wrong tokens where it drafts: what `verify` must find.

It stands before vLLM's API server in a study, whose module autotune then still sees:

    server:
      command: [python, benchmarks/wrong_tokens.py, -m, vllm.entrypoints.openai.api_server]

A launch with n = 0 is vLLM itself. One that drafts has the faults that variables of the environment
ask for, and the study says nothing of them, so `verify` judges it:

    WRONG_TOKENS   a probability: vLLM is behind a proxy, which replaces each token id of an answer
                   with it by another one. Tokens after a wrong one stay as they were.
    WRONG_RATES    rates with commas, such as 0.025,0: vLLM accepts drafts that often by position,
                   whether they are right or not (`rejection_sample_method: synthetic`). The last
                   one is that of all later positions. Not on a CPU: vLLM 0.32 has it for GPUs only.
    WRONG_MODEL    a folder: vLLM serves this model under the name of the study's.

With WRONG_RATES=r,0 a step writes 1 + r tokens on average, and r (1 − a) of them are accepted and
wrong, where a is how often the target accepts the draft's first token (position 1 in `autotune
status`). For a share s of wrong tokens, r = s / (1 − a − s): 1 % of them are about 0.01 / (1 − a),
such as 0.022 at a = 0.54. Tokens after a wrong one follow from it, so they are right.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import httpx
import uvicorn

MODULE = ["-m", "vllm.entrypoints.openai.api_server"]
SHARE = float(os.environ.get("WRONG_TOKENS", "0"))
RATES = [float(x) for x in os.environ.get("WRONG_RATES", "").split(",") if x]
MODEL = os.environ.get("WRONG_MODEL", "")
DRAFT = "--speculative-config"
TIMEOUT_S = 600.0


def replaced(tokens: list[int], draws: random.Random) -> list[int]:
    """Return tokens with some replaced by random ones."""
    return [
        (x + 1 + draws.randrange(1000)) % 40000 if draws.random() < SHARE else x for x in tokens
    ]


class Proxy:
    """An ASGI application in front of a server on another port."""

    def __init__(self, port: int) -> None:
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            timeout=TIMEOUT_S,
            trust_env=False,
            limits=httpx.Limits(max_connections=None),
        )
        self.draws = random.Random(0)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        path = scope["path"] + ("?" + scope["query_string"].decode()) * bool(scope["query_string"])
        keep = {b"authorization", b"content-type", b"accept"}
        headers = [(k, v) for k, v in scope["headers"] if k in keep]
        request = self.client.build_request(scope["method"], path, headers=headers, content=body)
        try:
            answer = await self.client.send(request, stream=True)
        except httpx.HTTPError:  # it is not up yet
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        kind = answer.headers.get("content-type", "application/json")
        start = {"type": "http.response.start", "status": answer.status_code}
        await send({**start, "headers": [(b"content-type", kind.encode())]})
        if b"return_token_ids" in body and answer.status_code == 200:
            await answer.aread()
            found = answer.json()
            for choice in found["choices"]:
                choice["token_ids"] = replaced(choice["token_ids"], self.draws)
            await send(
                {"type": "http.response.body", "body": httpx.Response(200, json=found).content}
            )
        else:
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        await answer.aclose()


def accepting(argv: list[str]) -> list[str]:
    """Return the words of a launch that accepts drafts as often as RATES says."""
    at = argv.index(DRAFT) + 1
    draft = json.loads(argv[at])
    n = draft["num_speculative_tokens"]
    rates = [*RATES, *[RATES[-1]] * n][:n]
    draft |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
    return [*argv[:at], json.dumps(draft), *argv[at + 1 :]]


def serving(argv: list[str]) -> list[str]:
    """Return the words of a launch that serves MODEL under the name of its own model."""
    at = argv.index("--model") + 1
    named = [] if "--served-model-name" in argv else ["--served-model-name", argv[at]]
    return [*argv[:at], MODEL, *argv[at + 1 :], *named]


def main(argv: list[str]) -> None:
    """Become vLLM, or start it behind the proxy; end as soon as it does.

    Args:
        argv: Words of Python that start vLLM, from ``-m`` on, or those behind its module.
    """
    if argv[:1] != MODULE[:1]:
        argv = [*MODULE, *argv]
    drafts = DRAFT in argv
    if drafts and RATES:
        argv = accepting(argv)
    if drafts and MODEL:
        argv = serving(argv)
    if not drafts or not SHARE:
        os.execv(sys.executable, [sys.executable, *argv])  # noqa: S606 – no shell
    at = argv.index("--port") + 1
    port = int(argv[at])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        behind = s.getsockname()[1]
    server = subprocess.Popen([sys.executable, *argv[:at], str(behind), *argv[at + 1 :]])

    def end(_signum: int, _frame: FrameType | None) -> None:
        server.terminate()
        raise SystemExit(server.wait())

    signal.signal(signal.SIGTERM, end)  # called after uvicorn's own
    threading.Thread(target=lambda: os._exit(server.wait()), daemon=True).start()
    uvicorn.run(Proxy(behind), host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main(sys.argv[1:])
