"""The streaming client: it makes one :class:`~autotune.bench.sample.Sample` of each request.

**Times.** ``start`` is taken when the request is written to a connection that is already open.
TTFT runs from there to the first chunk with text; a chat's first chunk, which has only a role, does
not count. ``end`` is the time of the last chunk with a choice, as in ``vllm bench serve``; the
usage event and ``[DONE]`` after it do not count. All events of one network read have the same time,
taken as soon as the read returns. Tokens are counted by the server's ``usage`` only, because under
speculation one chunk has several.

**Why not httpx.** 32 streams that start together would wait for httpx's own work, about 1 ms for
each request. That adds 26 ms to the median TTFT, and 90 ms when tokens come fast. This client adds
1 ms and 6 ms, at a seventh of the cost per token (``benchmarks/client_fidelity.py``, two cores). An
asyncio protocol reads the answers, and httptools (Node's llhttp, as in uvicorn) parses HTTP.

**Failures are values.** A failed request becomes a sample whose ``status`` says what went wrong and
which has no measured number:

=========== ================================================================================
``connect`` refused, or the connection broke before the answer began
``http``    an HTTP status other than 200 that is not 5xx
``server``  an HTTP status 5xx, or an error event with such a code: the server failed
``stream``  the answer broke: an error event, broken JSON, a reset, no ``[DONE]`` at its end, or
            more than the limits below
``usage``   the answer is whole but cannot be counted: usage missing, no token, no text, more
            tokens than requested, or fewer although ``ignore_eos`` was set
``timeout`` no token for ``hang_timeout_s`` (the error says "hang"), or no end after
            ``workload.request_timeout_s``
=========== ================================================================================

A request keeps a limited part of any answer: one event of at most 8 MiB, 64 KiB of HTTP around the
text or of an error's text, and the times of a million chunks. A longer answer is a failure. Data
after ``[DONE]`` is not read.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httptools
import orjson

from autotune.bench.request_drafts import RequestDrafts, request_drafts
from autotune.bench.sample import Phase, Sample
from autotune.bench.workload import Request
from autotune.study.workload import WorkloadSpec

# vLLM closes connections that were idle for 5 s; no request may be sent at that moment
_KEEPALIVE_S = 2.0
# a valid answer stays far below all of these limits
_MOST_LINE = 2**23  # bytes of one line of the stream; the last one may have two numbers a step
_MOST_CHUNKS = 10**6  # with text
_MOST_HTTP = 2**16  # bytes of headers, chunk sizes and the like between two pieces of a body
_MOST_ERROR = 2**16  # bytes kept of an answer that is no stream
_MOST_TOKENS = 2**31  # largest number in a usage; the database cannot store 2**63


async def run_phase(
    base_url: str,
    model: str,
    requests: Sequence[Request],
    arrivals: Sequence[float],
    spec: WorkloadSpec,
    *,
    api_key: str,
    phase: str,
    hang_timeout_s: float,
    on_done: Callable[[Sample], None],
    more: Callable[[], bool] = lambda: True,
    choose: Callable[[], tuple[int, str] | None] | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> Phase:
    """Send the requests in their order, none before its arrival time, and wait for all answers.

    With ``spec.max_concurrency`` a request also waits, first come first served, until fewer
    requests than that are under way; ``Sample.start`` is the time after this wait. Arrival times
    are the workload's and never change, so the wait of a request is ``start`` less ``intended``.

    Cancelling this coroutine closes every connection at once; only ``on_done`` has the samples
    then.

    Args:
        base_url: URL of the server, such as ``http://127.0.0.1:8000``.
        model: Name of the served model.
        requests: Requests to send.
        arrivals: Intended start of each request, ascending, in seconds from the phase's start.
        spec: Output length, concurrency, sampling and longest duration of a request.
        api_key: API key, sent with every request as bearer token.
        phase: ``warmup`` or ``measure``.
        hang_timeout_s: Longest wait for the next token, in seconds.
        on_done: Called with every sample as soon as it exists. It runs in the event loop, so it
            must be quick. An exception that it raises ends the phase and is raised unchanged.
        more: Called before each request that may be sent now. False ends the sending for good;
            requests that are under way are still waited for. Same rules as ``on_done``.
        choose: Returns the number of the next request, from 0, and the phase of its sample, when a
            request may be sent; None ends the sending for good. A request may be sent several
            times. Without it each request is sent once, in their order, all in ``phase``. Same
            rules as ``on_done``.
        enough: Called after each sample. True ends the phase: requests that are under way are
            aborted and leave no sample. Same rules as ``on_done``.
    """
    address = urlsplit(base_url)
    host, port = address.hostname or "", address.port or 80
    # before the clock runs
    specs = [_own(spec, r) for r in requests]
    each = zip(requests, specs, strict=True)
    messages = [_message(host, port, api_key, model, r, own) for r, own in each]
    samples: list[tuple[int, Sample]] = []
    queue = iter([(i, phase) for i in range(len(requests))])
    following = choose or partial(next, queue, None)
    closed = False
    senders: list[asyncio.Task[None]] = []
    turn = asyncio.Lock()  # its waiters are served in their order

    async def take() -> tuple[int, str] | None:
        """Return the next request and its phase, when it may be sent; None if no other will be."""
        nonlocal closed
        async with turn:
            found = None if closed else following()
            if found is not None:
                if (wait := zero + arrivals[found[0]] - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                if more():
                    return found
            closed = True
            return None

    def end() -> None:
        """Abort the other senders; an exception instead could hide an interrupt."""
        nonlocal closed
        closed = True
        for other in senders:
            if other is not asyncio.current_task():
                other.cancel()

    async def sender() -> None:
        """Send one request after the other; as many senders run as requests may be under way."""
        line = _Line(host, port)
        try:
            while (taken := await take()) is not None:
                i, of = taken
                start, answer = await line.ask(messages[i], specs[i], hang_timeout_s)
                ok = answer.status == "ok"
                sample = Sample(
                    index=requests[i].index,
                    phase=of,
                    intended=arrivals[i],
                    start=start - zero,
                    ttft=answer.stamps[0] - start if ok else None,
                    end=answer.end - zero,
                    prompt_tokens=answer.prompt_tokens if ok else None,
                    output_tokens=answer.output_tokens if ok else None,
                    status=answer.status,
                    error=answer.error,
                    chunks=tuple(at - start for at in answer.stamps) if ok else (),
                    drafts=answer.drafts if ok else None,
                    category=requests[i].category,
                )
                samples.append((i, sample))
                on_done(sample)
                if enough():
                    end()
                    return
        finally:
            line.hang_up()

    with _no_garbage_pauses():
        started_at, zero = time.time(), time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(spec.max_concurrency or len(requests), len(requests))):
                    senders.append(group.create_task(sender()))
        except BaseExceptionGroup as e:
            raise e.exceptions[0] from None
        seconds = time.perf_counter() - zero
    samples.sort(key=lambda x: (x[0], x[1].start))
    return Phase(tuple(sample for _, sample in samples), seconds, started_at)


@contextmanager
def _no_garbage_pauses() -> Iterator[None]:
    """Keep the garbage collector from visiting, during a phase, objects that are older than it.

    A full collection takes some 0.1 s with Optuna and torch loaded; one of the phase's own objects
    takes next to nothing.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _own(spec: WorkloadSpec, request: Request) -> WorkloadSpec:
    """Return the workload's settings for one request, with the request's own length."""
    if request.output_len is None:
        return spec
    return spec.model_copy(update={"output_len": request.output_len})


def _message(
    host: str, port: int, api_key: str, model: str, request: Request, spec: WorkloadSpec
) -> bytes:
    """Return the whole HTTP request."""
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": spec.output_len,
        "temperature": spec.temperature,
        # one seed for all would make the random draws of all requests equal
        "seed": spec.seed + request.index,
    }
    if spec.ignore_eos:
        body["ignore_eos"] = True
        # Special tokens follow the end of the text; without a text of their own, their chunks
        # could not be distinguished from empty ones.
        body["skip_special_tokens"] = False
    if request.messages is not None:
        path, body["messages"] = "/v1/chat/completions", request.messages
        body |= request.tool_keys
    else:
        path, body["prompt"] = "/v1/completions", request.prompt
    content = orjson.dumps(body)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Authorization: Bearer {api_key}\r\nContent-Type: application/json\r\n"
        f"Accept-Encoding: identity\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class _Line:
    """A connection that is opened again when needed; carries one request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._connection: _Connection | None = None

    async def ask(
        self, message: bytes, spec: WorkloadSpec, hang_timeout_s: float
    ) -> tuple[float, Answer]:
        """Send one request; return the time of sending and the answer."""
        start = time.perf_counter()
        if self._connection is None or not self._connection.reusable():
            self.hang_up()
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(min(hang_timeout_s, spec.request_timeout_s)):
                    _, self._connection = await loop.create_connection(
                        _Connection, self._host, self._port
                    )
            except OSError as e:  # TimeoutError is one
                why = os.strerror(e.errno) if e.errno else "no answer"
                answer = Answer()
                answer.fail("connect", f"cannot connect to {self._host}:{self._port}: {why}")
                answer.close(spec, time.perf_counter())
                return start, answer
        start = time.perf_counter()
        answer, ended = self._connection.send(message)
        while not ended.done():
            # checked when the time is up, not moved with every token
            last_token = answer.stamps[-1] if answer.stamps else start
            left = min(last_token + hang_timeout_s, start + spec.request_timeout_s)
            if (left := left - time.perf_counter()) > 0:
                await asyncio.wait((ended,), timeout=left)
                continue
            came = f"{len(answer.stamps)} chunks"
            if time.perf_counter() >= start + spec.request_timeout_s:
                limit = f"{spec.request_timeout_s:g} s (workload.request_timeout_s)"
                answer.fail("timeout", f"no end after {limit}, {came} came")
            else:
                answer.fail("timeout", f"hang: no token for {hang_timeout_s:g} s after {came}")
            break
        answer.close(spec, time.perf_counter())
        if answer.status != "ok":
            self.hang_up()  # so that the server stops working on it
        return start, answer

    def hang_up(self) -> None:
        """Close the connection at once."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection; the ``on_…`` methods are called by the parser."""

    def __init__(self) -> None:
        self._idle_since: float | None = time.perf_counter()  # None: busy or not to be used again

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 – TCP
        self._transport = transport

    def reusable(self) -> bool:
        """Return whether the next request can be sent over this connection."""
        idle_since = self._idle_since
        return (
            idle_since is not None
            and not self._transport.is_closing()
            and time.perf_counter() - idle_since < _KEEPALIVE_S
        )

    def abort(self) -> None:
        """Close the connection without sending buffered data."""
        self._transport.abort()

    def send(self, message: bytes) -> tuple[Answer, asyncio.Future[None]]:
        """Write a request; the future is done when the answer has ended."""
        self._idle_since = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._http_error: bytes | None = None
        self._began = False
        self._no_body = 0  # bytes since the last piece of the body
        self._transport.write(message)
        return self._answer, self._ended

    def data_received(self, data: bytes) -> None:
        self._at = time.perf_counter()
        if self._idle_since is not None:  # no request is under way
            self.abort()
            return
        self._no_body += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            words = "another protocol" if isinstance(e, httptools.HttpParserUpgrade) else _short(e)
            self._answer.fail("stream" if self._began else "connect", f"not HTTP: {words}")
        if self._no_body > _MOST_HTTP:  # the parser keeps a header until it ends
            self._answer.fail(
                "stream" if self._began else "connect",
                f"not HTTP: {_MOST_HTTP >> 10} KiB without an end of the headers or a text",
            )
        if self._answer.status != "ok":
            self._end()

    def on_headers_complete(self) -> None:
        self._no_body = 0
        if self._ended.done():  # a second answer to one request
            return
        self._began = True
        if self._parser.get_status_code() != 200:
            self._http_error = b""

    def on_body(self, body: bytes) -> None:
        self._no_body = 0
        if self._ended.done():
            return
        if self._http_error is None:
            self._answer.feed(body, self._at)
            return
        self._http_error += body
        if len(self._http_error) > _MOST_ERROR:
            self._end()

    def on_message_complete(self) -> None:
        if self._ended.done():
            self._idle_since = None
        elif self._parser.should_keep_alive():
            self._idle_since = self._at
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle_since is None:
            if self._http_error is None:
                words = _short(exc) if exc else "the server closed the connection"
                self._answer.fail(
                    "stream" if self._began else "connect",
                    f"{words} after {len(self._answer.stamps)} chunks",
                )
            self._end()

    def _end(self) -> None:
        if self._ended.done():
            return
        if self._http_error is not None:
            code = self._parser.get_status_code()
            kind = "server" if code >= 500 else "http"
            self._answer.fail(kind, f"HTTP {code}: {_server_message(self._http_error)}")
        self._ended.set_result(None)


def _server_message(body: bytes) -> str:
    """Return the error text of an answer that is no stream, on one line."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _short(body)
    if isinstance(content, dict):
        error = content.get("error", content)
        for place in (error, content):
            for key in ("message", "detail"):
                if isinstance(place, dict) and place.get(key):
                    return _short(place[key])
        return _short(error if isinstance(error, str) else body)
    return _short(body)


def _short(text: object, limit: int = 300) -> str:
    """Return a server's text on one line, without control characters."""
    try:
        words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    except RecursionError:
        words = "…"
    line = " ".join(words[: 20 * limit].split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < _MOST_TOKENS else None


def _word(value: object) -> str:
    """Return a text of an event; null and a missing key are an empty one."""
    if value is not None and not isinstance(value, str):
        raise TypeError
    return value or ""


class Answer:
    """One answer while its bytes arrive, without I/O.

    Attributes:
        status: ``ok`` until something fails; the first failure stays.
        error: Error in one line; None: nothing has failed.
        stamps: Clock readings of all chunks with text.
        end: Clock reading of the last chunk with a choice, or of giving up.
        prompt_tokens: Number of prompt tokens, by usage; None: unknown.
        output_tokens: Number of output tokens, by usage; None: unknown.
        drafts: Accepted drafts; None: the server does not tell them.
    """

    def __init__(self) -> None:
        self.status = "ok"
        self.error: str | None = None
        self.stamps: list[float] = []
        self.end = 0.0
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.drafts: RequestDrafts | None = None
        self._rest = bytearray()  # beginning of a line that has not ended
        self._done = False
        self._finish: str | None = None

    def fail(self, status: str, error: str) -> None:
        """Note a failure, unless there is one already or the answer is complete."""
        if self.status == "ok" and not self._done:
            self.status, self.error = status, error

    def feed(self, data: bytes, at: float) -> None:
        """Take the next bytes, which were read at clock reading ``at``."""
        first, *others = data.split(b"\n")
        self._rest += first
        for line in others:
            self._line(bytes(self._rest), at)
            self._rest = bytearray(line)
        if len(self._rest) > _MOST_LINE:
            self._line(bytes(self._rest), at)
            self._rest.clear()

    def _line(self, line: bytes, at: float) -> None:
        if self._done or self.status != "ok":
            return
        if len(line) > _MOST_LINE:
            self.fail("stream", f"a line of more than {_MOST_LINE >> 20} MiB in the stream")
        elif line.startswith(b"data:"):
            payload = line[5:].strip()
            if payload == b"[DONE]":
                self._done = True
                return
            try:
                self._event(orjson.loads(payload), at)
            except orjson.JSONDecodeError:
                self.fail("stream", f"broken JSON in the stream: {_short(payload, 80)}")
            except (AttributeError, LookupError, TypeError):
                self.fail("stream", f"not an OpenAI chunk: {_short(payload, 80)}")

    def _event(self, event: dict[str, Any], at: float) -> None:
        if choices := event.get("choices"):
            self.end = at
            choice = choices[0]
            if (delta := choice.get("delta")) is None:
                text = _word(choice.get("text"))
            else:
                names = ("content", "reasoning_content", "reasoning")
                text = "".join(_word(delta.get(name)) for name in names)
            if text:
                self.stamps.append(at)
                if len(self.stamps) > _MOST_CHUNKS:
                    self.fail("stream", f"more than {_MOST_CHUNKS} chunks with text")
            self._finish = _word(choice.get("finish_reason")) or self._finish
        if usage := event.get("usage"):
            self.prompt_tokens = _count(usage.get("prompt_tokens"))
            self.output_tokens = _count(usage.get("completion_tokens"))
            self.drafts = request_drafts(event.get("metrics"))
        if error := event.get("error"):
            words, code = error, None
            if isinstance(error, dict):
                words, code = error.get("message", error), error.get("code")
            # as an HTTP status: vLLM says so when its engine died under a stream
            kind = "server" if type(code) is int and 500 <= code < 600 else "stream"
            self.fail(kind, f"the server reports: {_short(words)}")

    def close(self, spec: WorkloadSpec, at: float) -> None:
        """Judge the answer when it has ended, at clock reading ``at``."""
        if self.status == "ok":
            self.status, self.error = self._judge(spec)
        if self.status != "ok":
            self.end = at

    def _judge(self, spec: WorkloadSpec) -> tuple[str, str | None]:
        if not self._done:
            return "stream", f"the stream ended without [DONE] after {len(self.stamps)} chunks"
        if self._finish in {"abort", "error"}:
            return "stream", f"the server ended it with finish_reason {self._finish}"
        prompt, output = self.prompt_tokens, self.output_tokens
        if prompt is None or output is None:
            return "usage", "no usage in the stream, so no count of tokens"
        if output == 0:
            return "usage", "zero output tokens"
        if not self.stamps:
            return "usage", f"{output} output tokens but no text, so no time of the first one"
        asked = spec.output_len
        assert isinstance(asked, int)  # noqa: S101 – of this request, see _own
        if output > asked:
            return "usage", f"{output} output tokens, more than the {asked} asked for"
        if spec.ignore_eos and output < asked:
            return "usage", (
                f"{output} of {asked} output tokens although ignore_eos is set "
                f"(finish_reason {self._finish}, {prompt} prompt tokens): does max_model_len "
                "leave room for them?"
            )
        return "ok", None
