"""A server double: looks like ``vllm serve`` over HTTP, starts in a fraction of a second.

    python tests/double.py --model M --host 127.0.0.1 --port P [any vLLM flags]

Its times follow a small model of the demo pair on two cores, ten times faster: a
step costs a base, plus each token in it, plus a draft; requests differ in how well they can be
drafted, unless `synthetic_acceptance_rates` says it. So n and MNBT trade throughput against the
slowest requests, as on a real server.

Environment:

    DOUBLE_SPEED       how many times faster than the demo pair (10)
    DOUBLE_DELAY_S     seconds before the port opens (0)
    DOUBLE_TTFT_S      seconds added to every request's first token (0)
    DOUBLE_STEP_S      seconds of every step, instead of the model above
    DOUBLE_N           n of this server, whatever its command line says: something else set it
    DOUBLE_AT_ONCE     requests that it runs at once at most, whatever its command line says
    DOUBLE_IDLE        1: the draft never runs, although there is one
    DOUBLE_OWNER       owned_by of /v1/models (vllm)
    DOUBLE_VERSION     what /version answers (0.32.0)
    DOUBLE_CHILD       `plain` or `stubborn`: fork a child such as EngineCore, which outlives a
                       SIGKILL of this process; `stubborn` ignores SIGTERM. It ends by itself after
                       twenty minutes; as with a real vLLM, its death is this process's end.
    DOUBLE_GPU_MIB     take so much memory of the first GPU
    DOUBLE_STUBBORN    1: this process ignores SIGTERM
    DOUBLE_TURNS       a file with a JSON object of these settings in each line: every launch takes
                       the first line away, so that launches of one study can differ
    DOUBLE_WRONG, DOUBLE_LOOPS, DOUBLE_SCORES  what it writes, where token ids or probabilities are
                       asked for: double_tokens.py
    DOUBLE_FAIL        what goes wrong, see below
    DOUBLE_FAIL_IF     only for some launches: `num_speculative_tokens>=8`, `max_num_seqs==4`, …
    DOUBLE_FAIL_ONCE   a file: fail only while it is missing, and make it (a transient failure)
    DOUBLE_FAIL_AFTER  requests that are still served well (0), for failures while serving
    DOUBLE_SAY_ENV     names of variables, with commas: printed with their values at the start, and
                       echoed in the texts of HTTP errors and of `stream_error`

``DOUBLE_FAIL`` at launch: the name of a real log in tests/logs without the version (`budget`,
`oom`, …), which is printed before exit 1; `bad_flag`; `crash` (exit 1 without a word); `segfault`;
`never_healthy`. While serving: `wrong_model`, `wrong_version`, `crash_mid` (exits in the middle of
a stream), `hang` (no more tokens, /health answers), `http500`, `http400`, `stream_error` (an error
object inside the stream), `truncated` (the stream just ends), `bad_sse` (broken JSON), `no_usage`,
`zero_tokens`, `nan_metrics`, `other_metrics` (no vLLM names), `no_metrics` (404).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import random
import re
import signal
import socket
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def settings() -> dict[str, str]:
    """The environment, and what the turn of this launch adds to it."""
    env = dict(os.environ)
    if turns := env.get("DOUBLE_TURNS"):
        with Path(turns).open("r+") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            turn, *later = f.read().splitlines() or ["{}"]
            f.seek(0)
            f.truncate()
            f.write("".join(f"{line}\n" for line in later))
        env |= json.loads(turn)
    return env


ENV = settings()
OWNER = ENV.get("DOUBLE_OWNER", "vllm")
SPEED = float(ENV.get("DOUBLE_SPEED", "10"))
BASE_S, TOKEN_S, PREFILL_S, DRAFT_S = 18e-3, 1.4e-3, 0.5e-3, 6e-3
# P(position i accepted | those before it): FACTS' acceptance lengths 1.54, 1.77, 1.88, … 1.94
ACCEPT = (0.54, 0.43, 0.48, 0.35)


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(allow_abbrev=False)
    p.add_argument("--model", required=True)
    p.add_argument("--served-model-name")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, required=True)
    p.add_argument("--speculative-config", type=json.loads)
    p.add_argument("--max-num-batched-tokens", type=int, default=2048)
    p.add_argument("--max-num-seqs", type=int, default=128)
    p.add_argument("--per-request-spec-decode-metrics", default="none")
    p.add_argument("--max-num-active-seqs", type=int)
    p.add_argument("--max-model-len", type=int)
    return p.parse_known_args()[0]


def failing(args: argparse.Namespace) -> str:
    """The failure of this launch, or an empty string."""
    fail = ENV.get("DOUBLE_FAIL", "")
    if condition := ENV.get("DOUBLE_FAIL_IF"):
        found = re.fullmatch(r"(\w+)(>=|<=|==|>|<)(\d+)", condition)
        if found is None:
            sys.exit(f"DOUBLE_FAIL_IF: cannot read {condition!r}")
        name, op, limit = found[1], found[2], int(found[3])
        value = n_of(args) if name == "num_speculative_tokens" else getattr(args, name)
        holds = {
            ">=": value >= limit,
            "<=": value <= limit,
            "==": value == limit,
            ">": value > limit,
            "<": value < limit,
        }[op]
        if not holds:
            return ""
    if fail and (once := ENV.get("DOUBLE_FAIL_ONCE")):
        if Path(once).exists():
            return ""
        Path(once).touch()
    return fail


def said() -> str:
    """The variables that shall be said, with their values."""
    names = filter(None, ENV.get("DOUBLE_SAY_ENV", "").split(","))
    return " ".join(f"{name}={ENV.get(name)}" for name in names)


def n_of(args: argparse.Namespace) -> int:
    return int((args.speculative_config or {}).get("num_speculative_tokens", 0))


def print_log(name: str) -> bool:
    """Prints the real log of a failure; False if there is none of this name."""
    logs = sorted((Path(__file__).parent / "logs").glob(f"*-{name}.log"))
    if logs:
        sys.stderr.write(logs[-1].read_text())
        sys.stderr.flush()
    return bool(logs)


@dataclass(eq=False)
class Running:
    """A request in the engine."""

    prompt_tokens: int
    max_tokens: int
    ease: float
    draws: random.Random
    prefilled: int = 0
    produced: int = 0
    accepted: list[int] = field(default_factory=list)  # by step with a draft
    queue: asyncio.Queue[int] = field(default_factory=asyncio.Queue)  # tokens; 0 ends it


class Engine:
    """Steps over the running requests with vLLM's rules of batch budget and chunked prefill."""

    def __init__(self, args: argparse.Namespace, fail: str) -> None:
        self.n = int(ENV.get("DOUBLE_N", n_of(args)))
        self.budget = args.max_num_batched_tokens
        self.seqs = args.max_num_seqs
        self.at_once = int(ENV.get("DOUBLE_AT_ONCE", args.max_num_active_seqs or self.seqs))
        self.hangs = fail == "hang"
        self.stuck = False
        self.waiting: list[Running] = []
        self.running: list[Running] = []
        self.work = asyncio.Event()
        self.drafts = self.draft_tokens = self.accepted = self.prompt = self.generated = 0
        self.served = 0
        self.per_position = [0] * self.n
        # unconditional, as vLLM takes them
        self.played = (args.speculative_config or {}).get("synthetic_acceptance_rates") or []

    def add(self, request: Running) -> None:
        self.waiting.append(request)
        self.work.set()

    def drop(self, request: Running) -> None:
        for queue in (self.waiting, self.running):
            if request in queue:
                queue.remove(request)

    async def run(self) -> None:
        clock = time.perf_counter()
        while True:
            if not (self.running or self.waiting) or self.stuck:
                self.work.clear()
                await self.work.wait()
                clock = time.perf_counter()
                continue
            while self.waiting and len(self.running) < min(self.seqs, self.at_once):
                self.running.append(self.waiting.pop(0))
            left, cost, moved = self.budget, BASE_S, []
            for r in self.running:
                ready = r.prefilled >= r.prompt_tokens
                want = 1 + self.n if ready else r.prompt_tokens - r.prefilled
                take = want if left >= want else 0 if ready else left
                if take <= 0:
                    continue
                left -= take
                cost += take * (TOKEN_S if ready else PREFILL_S)
                moved.append((r, ready, take))
            cost = cost + (DRAFT_S if self.n else 0.0)
            step = float(ENV["DOUBLE_STEP_S"]) if "DOUBLE_STEP_S" in ENV else cost / SPEED
            clock = max(clock + step, time.perf_counter() - 5 * step)
            await asyncio.sleep(max(0.0, clock - time.perf_counter()))
            for r, ready, take in moved:
                self._advance(r, ready, take)
            if self.hangs and self.served >= int(ENV.get("DOUBLE_FAIL_AFTER", "0")):
                self.stuck = True

    def _chance(self, good: int, r: Running) -> float:
        """P(the next position is accepted), if those before it were."""
        if not self.played:
            return min(0.97, ACCEPT[min(good, len(ACCEPT) - 1)] * r.ease)
        before = self.played[good - 1] if good else 1.0
        return self.played[good] / before if before else 0.0

    def _advance(self, r: Running, ready: bool, take: int) -> None:
        if not ready:
            r.prefilled += take
            self.prompt += take
            if r.prefilled < r.prompt_tokens:
                return
        new = 1
        if ready and self.n:
            good = 0
            idle = ENV.get("DOUBLE_IDLE") == "1"
            while not idle and good < self.n:
                chance = self._chance(good, r)
                if r.draws.random() >= chance:
                    break
                self.per_position[good] += 1
                good += 1
            self.drafts += not idle
            self.draft_tokens += 0 if idle else self.n
            self.accepted += good
            if not idle:
                r.accepted.append(good)
            new += good
        new = min(new, r.max_tokens - r.produced)
        r.produced += new
        self.generated += new
        if new:
            r.queue.put_nowait(new)
        if r.produced >= r.max_tokens:
            if r in self.running:
                self.running.remove(r)
            self.served += 1
            r.queue.put_nowait(0)

    def metrics(self, model: str, fail: str) -> str:
        label = f'engine="0",model_name="{model}"'
        counters: dict[str, float] = {
            "num_preemptions": 0,
            "prompt_tokens": self.prompt,
            "generation_tokens": self.generated,
            "prefix_cache_queries": self.prompt,
            "prefix_cache_hits": 0,
        }
        if self.n:
            counters |= {
                "spec_decode_num_drafts": self.drafts,
                "spec_decode_num_draft_tokens": self.draft_tokens,
                "spec_decode_num_accepted_tokens": self.accepted,
            }
        prefix = "other:" if fail == "other_metrics" else "vllm:"
        out = []
        for name, value in counters.items():
            shown = "NaN" if fail == "nan_metrics" else str(float(value))
            out += [
                f"# HELP {prefix}{name}_total Of the double.",
                f"# TYPE {prefix}{name}_total counter",
                f"{prefix}{name}_total{{{label}}} {shown}",
                f"# TYPE {prefix}{name}_created gauge",
                f"{prefix}{name}_created{{{label}}} 1.763e+09",
            ]
        if self.n:
            name = f"{prefix}spec_decode_num_accepted_tokens_per_pos_total"
            out.append(f"# TYPE {name} counter")
            for i, value in enumerate(self.per_position):
                shown = "NaN" if fail == "nan_metrics" else str(float(value))
                out.append(f'{name}{{{label},position="{i}"}} {shown}')
        for name, value in (
            ("num_requests_running", len(self.running)),
            ("num_requests_waiting", len(self.waiting)),
            ("kv_cache_usage_perc", len(self.running) / self.seqs),
        ):
            out += [
                f"# TYPE {prefix}{name} gauge",
                f"{prefix}{name}{{{label}}} {float(value)}",
            ]
        return "\n".join(out) + "\n"


class Api:
    """HTTP/1.1 with keep-alive, as little of it as clients need."""

    def __init__(self, args: argparse.Namespace, engine: Engine, fail: str) -> None:
        self.args, self.engine, self.fail = args, engine, fail
        self.name = args.served_model_name or args.model
        self.version = ENV.get("DOUBLE_VERSION", "0.32.0")
        self.seen = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                method, path, _ = line.decode().split(" ", 2)
                length, key = 0, None
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode().partition(":")
                    if name.lower() == "content-length":
                        length = int(value)
                    elif name.lower() == "authorization":
                        key = value.strip().removeprefix("Bearer ")
                body = await reader.readexactly(length)
                if path.startswith("/v1") and key != ENV.get("VLLM_API_KEY"):
                    await reply(writer, 401, {"error": "Unauthorized"})  # as vLLM: only these
                    continue
                await self.answer(writer, method, path, body)
        writer.close()

    async def answer(
        self, writer: asyncio.StreamWriter, method: str, path: str, body: bytes
    ) -> None:
        name = "some-other-model" if self.fail == "wrong_model" else self.name
        match (method, path):
            case ("GET", "/health"):
                await reply(writer, 200, b"")
            case ("GET", "/version"):
                version = "0.1.0" if self.fail == "wrong_version" else self.version
                await reply(writer, 200, {"version": version})
            case ("GET", "/v1/models"):
                card = {"id": name, "object": "model", "owned_by": OWNER, "root": self.args.model}
                card |= {"max_model_len": self.args.max_model_len or 4096}
                await reply(writer, 200, {"object": "list", "data": [card]})
            case ("GET", "/metrics") if self.fail != "no_metrics":
                text = self.engine.metrics(self.name, self.fail).encode()
                await reply(writer, 200, text, "text/plain; version=0.0.4; charset=utf-8")
            case ("POST", "/v1/completions" | "/v1/chat/completions"):
                await self.complete(writer, json.loads(body), chat="chat" in path)
            case _:
                await reply(writer, 404, {"detail": "Not Found"})

    async def complete(
        self, writer: asyncio.StreamWriter, request: dict[str, Any], *, chat: bool
    ) -> None:
        self.seen += 1
        fail = self.fail if self.seen > int(ENV.get("DOUBLE_FAIL_AFTER", "0")) else ""
        if request.get("model") != self.name:
            await error(writer, 404, f"The model `{request.get('model')}` does not exist.")
            return
        if fail == "http500":
            await error(writer, 500, f"EngineCore encountered an issue. {said()}")
            return
        if fail == "http400":
            await error(writer, 400, f"This model's maximum context length is 8 tokens. {said()}")
            return
        source = request["messages"] if chat else request["prompt"]
        raw = json.dumps(source).encode()
        if isinstance(source, list) and source and isinstance(source[0], int):
            prompt_tokens = len(source)
        else:
            prompt_tokens = 1 + len(raw) // 4
        draws = random.Random(zlib.crc32(raw))
        ease = draws.choice((0.4, 0.8, 1.0, 1.3, 1.6, 1.9))
        limit = request.get("max_completion_tokens") or request.get("max_tokens") or 16
        tokens = limit if request.get("ignore_eos") else draws.randint(1, limit)
        running = Running(prompt_tokens, tokens, ease, draws)
        if extra := float(ENV.get("DOUBLE_TTFT_S", "0")):
            await asyncio.sleep(extra)
        if fail == "zero_tokens":
            running.queue.put_nowait(0)
        else:
            self.engine.add(running)
        try:
            if request.get("stream"):
                await self.stream(writer, request, running, fail, chat=chat)
            else:
                while await running.queue.get():
                    pass
                body = self.whole(request, source, raw, running, limit, chat=chat)
                await reply(writer, 200, body | {"usage": usage(running)})
        finally:
            self.engine.drop(running)

    def whole(
        self,
        request: dict[str, Any],
        source: object,
        raw: bytes,
        running: Running,
        limit: int,
        *,
        chat: bool,
    ) -> dict[str, Any]:
        """The body of an answer that is no stream."""
        text, reason, more = "tok " * running.produced, "length", {}
        if request.get("return_token_ids") or request.get("prompt_logprobs"):
            from double_tokens import prompt_ids, score, write  # a script of this folder

            ids = prompt_ids(source, raw)
            if request.get("prompt_logprobs"):
                more["prompt_logprobs"] = score(ids, ENV)
            if request.get("return_token_ids"):
                n, ended = self.engine.n, running.produced < limit
                own = f"{n} {self.args.max_num_batched_tokens}"
                env = ENV
                if self.engine.played:
                    env = ENV | {"DOUBLE_WRONG": str(self.engine.played[0] / 2)}
                out = write(ids, running.produced, request, env, own, drafts=n > 0, ended=ended)
                text, reason = " ".join(f"w{x}" for x in out), "stop" if ended else "length"
                more |= {"token_ids": out} if chat else {"token_ids": out, "prompt_token_ids": ids}
        choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        body = self.chunk(chat, text, reason, whole=choice | more)
        if chat and request.get("return_token_ids"):
            body["prompt_token_ids"] = ids
        return body

    async def stream(
        self,
        writer: asyncio.StreamWriter,
        request: dict[str, Any],
        running: Running,
        fail: str,
        *,
        chat: bool,
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        first = True
        while new := await running.queue.get():
            if writer.is_closing():
                return
            if first and chat:
                await event(writer, self.chunk(chat, "", None, role="assistant"))
            if not first:
                match fail:
                    case "crash_mid":
                        print_log("crash_mid")
                        os._exit(1)
                    case "truncated":
                        await end(writer)
                        return
                    case "stream_error":
                        body = {
                            "message": f"EngineCore died {said()}",
                            "type": "Internal",
                            "code": 500,
                        }
                        await event(writer, {"error": body})
                        await end(writer)
                        return
                    case "bad_sse":
                        await raw_event(writer, b'data: {"choices": [{"te\n\n')
                        await end(writer)
                        return
            first = False
            last = running.produced >= running.max_tokens and running.queue.qsize() == 1
            await event(writer, self.chunk(chat, "tok " * new, "length" if last else None))
        options = request.get("stream_options") or {}
        if options.get("include_usage") and fail != "no_usage":
            last_chunk = {"choices": [], "usage": usage(running)}
            level = self.args.per_request_spec_decode_metrics
            if self.engine.n and level != "none":
                told = accepted_drafts(running, self.engine.n, level)
                last_chunk["metrics"] = {"speculative_decoding": told}
            await event(writer, self.chunk(chat, "", None) | last_chunk)
        await raw_event(writer, b"data: [DONE]\n\n")
        await end(writer)

    def chunk(
        self,
        chat: bool,
        text: str,
        reason: str | None,
        *,
        role: str | None = None,
        whole: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
        if whole is not None:
            choice |= whole
        elif chat:
            choice["delta"] = {"role": role, "content": text} if role else {"content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if chat else "text_completion"
        return {
            "id": f"cmpl-{self.seen}",
            "object": kind + (".chunk" if chat and whole is None else ""),
            "created": int(time.time()),
            "model": self.name,
            "choices": [choice],
        }


def accepted_drafts(r: Running, n: int, level: str) -> dict[str, Any]:
    """As 0.32's ``RequestSpecDecodeMetrics.to_dict`` has it."""
    histogram = [r.accepted.count(j) for j in range(n + 1)]
    steps, accepted = len(r.accepted), sum(r.accepted)
    told: dict[str, Any] = {
        "mean_acceptance_length": 1.0 + accepted / steps if steps else 1.0,
        "draft_acceptance_rate": accepted / (n * steps) if steps else 0.0,
        "acceptance_histogram": histogram,
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": n * steps,
        "num_spec_tokens": n,
    }
    if level == "detailed" and r.accepted:
        told |= {"per_step_accepted": r.accepted, "per_step_drafted": [n] * steps}
    return told


def usage(r: Running) -> dict[str, int]:
    return {
        "prompt_tokens": r.prompt_tokens,
        "total_tokens": r.prompt_tokens + r.produced,
        "completion_tokens": r.produced,
    }


async def reply(
    writer: asyncio.StreamWriter, status: int, body: object, kind: str = "application/json"
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()


async def error(writer: asyncio.StreamWriter, status: int, message: str) -> None:
    body = {"message": message, "type": "Error", "param": None, "code": status}
    await reply(writer, status, {"error": body})


async def raw_event(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


async def event(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
    await raw_event(writer, b"data: " + json.dumps(body).encode() + b"\n\n")


async def end(writer: asyncio.StreamWriter) -> None:
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def fork_child(kind: str) -> int:
    """A child such as EngineCore; the caller's SIGTERM handler ends it."""
    pid = os.fork()
    if pid == 0:
        os.closerange(3, 256)  # as a spawned process, it does not hold the port
        signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "stubborn" else signal.SIG_DFL)
        time.sleep(1200)
        os._exit(0)
    return pid


def engine_died() -> None:
    sys.stderr.write("double: EngineCore died unexpectedly, shutting down\n")
    sys.stderr.flush()
    os._exit(1)


def take_gpu_memory(mib: int) -> None:
    """As much of the first GPU's memory, held until this process ends."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, address = ctypes.c_void_p(), ctypes.c_void_p()
    for code in (
        cuda.cuInit(0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
        cuda.cuCtxSetCurrent(context),
        cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(mib << 20)),
    ):
        if code:
            sys.exit(f"CUDA error {code}")


async def main(args: argparse.Namespace, sock: socket.socket, fail: str, child: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    if ENV.get("DOUBLE_STUBBORN") == "1":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    if child:
        loop.add_signal_handler(signal.SIGCHLD, engine_died)
        if os.waitpid(child, os.WNOHANG)[0]:  # it died before there was a handler
            engine_died()
    delay = float(ENV.get("DOUBLE_DELAY_S", "0")) if fail != "never_healthy" else 1e6
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), delay)
    if not stop.is_set():
        engine = Engine(args, fail)
        steps = asyncio.create_task(engine.run())
        await asyncio.start_server(Api(args, engine, fail).serve, sock=sock)
        sys.stderr.write(f"double: serving {args.model} on port {args.port}\n")
        sys.stderr.flush()
        await stop.wait()
        steps.cancel()
    if child:
        loop.remove_signal_handler(signal.SIGCHLD)
        os.kill(child, signal.SIGTERM)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # also where the stand-in runs it
    args = parse()
    fail = failing(args)
    if words := said():
        sys.stderr.write(f"RuntimeError: {words}\n")
        sys.stderr.flush()
    n, mnbt = n_of(args), args.max_num_batched_tokens
    if mnbt < args.max_num_seqs or (n and mnbt <= n):
        fail = "budget"
    if fail == "bad_flag":
        sys.exit("api_server.py: error: unrecognized arguments: --no-such-flag 1")
    if fail == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fail == "crash" or (fail not in {"crash_mid", "hang"} and print_log(fail)):
        sys.exit(1)
    # with its protocol named, asyncio turns Nagle off, as uvloop does for a real vLLM
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((args.host, args.port))
    except OSError:
        print_log("port")
        sys.exit(1)
    if mib := int(ENV.get("DOUBLE_GPU_MIB", "0")):
        take_gpu_memory(mib)
    child = fork_child(ENV["DOUBLE_CHILD"]) if ENV.get("DOUBLE_CHILD") else 0
    asyncio.run(main(args, sock, fail, child))
    os._exit(0)
