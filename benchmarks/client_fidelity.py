"""How much the client distorts what it measures, and what it costs.

    python benchmarks/client_fidelity.py

A server double in a process of its own streams tokens at a known pace and notes when each request
came and when it wrote each chunk, on the same monotonic clock. The error of a time is the client's
value less the server's: all of it is the client, and the loopback between them. The last column
is the CPU time of the client's process for each token; the last row lets the server stream as fast
as it can. Below the table stands which aims were met.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import orjson

from autotune.bench.client import run_phase
from autotune.bench.sample import Phase
from autotune.bench.workload import Request
from autotune.study.workload import WorkloadSpec

Log = dict[int, tuple[float, list[float]]]  # request -> when it came, when each chunk was written

AIM_STREAMS = (1, 32)
AIM_ERRORS = {50: 1.0, 99: 5.0}  # ms, by percentile
AIM_TOKENS = 20_000  # for each CPU second of the client, with many streams
FEWEST = 32  # requests of a row: a p99 of fewer is just the largest

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def http_chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(choices: list[Any], **fields: Any) -> bytes:
    """An event with all the keys that vLLM sends."""
    body = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1700000000}
    return http_chunk(
        b"data: " + orjson.dumps({**body, "model": "m", "choices": choices, **fields}) + b"\n\n"
    )


CHOICE = {"index": 0, "text": " word", "logprobs": None, "finish_reason": None}
TOKEN = event([CHOICE])


class Double(asyncio.Protocol):
    """Streams ``max_tokens`` chunks: the first after ``first`` s, then one every ``gap`` s."""

    def __init__(self, first: float, gap: float, log: Log) -> None:
        self.first, self.gap, self.log = first, gap, log
        self.buffer = b""
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().split(b"content-length:")[1].split()[0]):
            return
        came, self.buffer = time.perf_counter(), b""
        task = asyncio.create_task(self.answer(came, orjson.loads(body)))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, came: float, body: dict[str, Any]) -> None:
        written: list[float] = []
        self.log[body["prompt"][0]] = (came, written)
        self.transport.write(HEAD)
        loop, n = asyncio.get_running_loop(), body["max_tokens"]
        for i in range(n):
            due = came + self.first + i * self.gap
            if self.gap == 0 and i % 8 == 0:
                await asyncio.sleep(0)
            elif (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            written.append(time.perf_counter())
            self.transport.write(TOKEN)
        self.transport.write(
            event([], usage={"prompt_tokens": 1, "completion_tokens": n})
            + http_chunk(b"data: [DONE]\n\n")
            + b"0\r\n\r\n"
        )


def serve(pipe: Connection, first: float, gap: float) -> None:
    log: Log = {}

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Double(first, gap, log), "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await loop.run_in_executor(None, pipe.recv)
        pipe.send(log)

    asyncio.run(main())


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(streams: int, rounds: int, tokens: int, first: float, gap: float) -> dict[str, Any]:
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, first, gap))
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}"
    n = streams * rounds
    spec = WorkloadSpec.model_validate(
        {"random": {"input_len": 1}, "output_len": tokens, "num_prompts": n}
        | {"max_concurrency": streams}
    )

    async def load(n: int, base: int) -> Phase:
        requests = [Request(base + i, [base + i], None) for i in range(n)]
        return await run_phase(
            url,
            "m",
            requests,
            [0.0] * n,
            spec,
            api_key="",
            phase="measure",
            hang_timeout_s=60,
            on_done=lambda sample: None,
        )

    asyncio.run(load(1, n))  # imports of the first request
    before = cpu_seconds()
    phase = asyncio.run(load(n, 0))
    cpu = cpu_seconds() - before
    ours.send(None)
    log = ours.recv()
    server.join()

    ttft: list[float] = []
    itl: list[float] = []
    e2el: list[float] = []
    for s in phase.samples:
        if s.ttft is None:
            raise SystemExit(f"request {s.index}: {s.error}")
        came, written = log[s.index]
        ttft.append(s.ttft - (written[0] - came))
        itl.extend(np.diff(s.chunks) - np.diff(written))
        e2el.append(s.end - s.start - (written[-1] - came))
    errors = {"TTFT": ttft, "ITL": itl, "E2EL": e2el}
    return {
        "errors": {k: np.abs(np.array(v)) * 1000 for k, v in errors.items()},
        "rate": n * tokens / phase.seconds,
        "cost": cpu / (n * tokens) * 1e6,
    }


def aims(rows: list[tuple[int, dict[str, Any]]]) -> Iterator[str]:
    """Each aim that the rows can tell of, with what was measured; the last row is the unpaced."""
    for streams, got in rows[:-1]:
        if streams not in AIM_STREAMS:
            continue
        for name, errors in got["errors"].items():
            for percentile, aim in AIM_ERRORS.items():
                error = np.percentile(errors, percentile)
                yield (
                    f"{'met   ' if error < aim else 'missed'}  {streams:>3} streams: p{percentile} "
                    f"of {name}'s error {error:.2f} ms (aim: below {aim:g} ms)"
                )
    for streams, got in rows:
        if streams > 1:
            rate = 1e6 / got["cost"]
            yield (
                f"{'met   ' if rate >= AIM_TOKENS else 'missed'}  {streams:>3} streams at "
                f"{got['rate']:.0f} tok/s: {rate:.0f} tokens per CPU second (aim: {AIM_TOKENS})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--rounds", type=int, default=12, help="requests of each stream, at least")
    parser.add_argument("--tokens", type=int, default=100, help="of each request")
    parser.add_argument("--ttft", type=float, default=50, help="of the server, ms")
    parser.add_argument("--itl", type=float, default=20, help="of the server, ms")
    args = parser.parse_args()
    head = "  ".join(f"{k + ' p50':>9} {'p99':>6}" for k in ("TTFT", "ITL", "E2EL"))
    print(f"{'streams':>8} {'tok/s':>8}  {head}  {'cost':>11}   (absolute errors, ms)")
    paces = [(s, args.ttft / 1000, args.itl / 1000) for s in args.streams]
    rows = []
    for streams, first, gap in [*paces, (32, 0.0, 0.0)]:
        got = measure(streams, max(args.rounds, FEWEST // streams), args.tokens, first, gap)
        rows.append((streams, got))
        cells = "  ".join(
            f"{np.percentile(e, 50):9.3f} {np.percentile(e, 99):6.2f}"
            for e in got["errors"].values()
        )
        pace = f"{got['rate']:8.0f}  {cells}  {got['cost']:5.1f} µs/tok"
        print(f"{streams:>8} {pace}{'' if gap else '   as fast as it can'}", flush=True)
    print("\n" + "\n".join(aims(rows)))


if __name__ == "__main__":
    main()
