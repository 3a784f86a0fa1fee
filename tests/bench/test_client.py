"""The client against small servers in this process that control every byte of the answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import pytest

from autotune.bench.client import Answer, run_phase
from autotune.bench.request_drafts import RequestDrafts
from autotune.bench.sample import Phase, Sample
from autotune.bench.workload import Request
from autotune.study.workload import WorkloadSpec
from tests.studies import PATIENCE_S

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
Handler = Callable[["Seen", Writer], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


class Seen:
    """One request as the server saw it."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.path = head.split()[1].decode()
        self.head = head.decode().lower()
        self.body: dict[str, Any] = json.loads(body)


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[tuple[str, list[Seen]]]:
    seen: list[Seen] = []

    async def connection(reader: Reader, writer: Writer) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split()[0])
                seen.append(Seen(head, await reader.readexactly(length)))
                await handler(seen[-1], writer)
        writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(words: str, finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "text": words, "finish_reason": finish}])


def usage(output: Any = 4, prompt: Any = 3) -> bytes:
    return event(choices=[], usage={"prompt_tokens": prompt, "completion_tokens": output})


async def send(writer: Writer, data: bytes) -> None:
    """One HTTP chunk, flushed."""
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


def stream(*pieces: bytes | float, end: bool = True) -> Handler:
    """Sends the pieces as HTTP chunks; a number is a pause in seconds."""

    async def handler(_: Seen, writer: Writer) -> None:
        writer.write(HEAD)
        for piece in pieces:
            if isinstance(piece, bytes):
                await send(writer, piece)
            else:
                await asyncio.sleep(piece)
        if end:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        else:
            writer.close()

    return handler


GOOD = (text("a"), text("b"), text("c", "length"), usage(), DONE)


def spec(**changes: Any) -> WorkloadSpec:
    base = {"random": {"input_len": 4}, "output_len": 4, "num_prompts": 1, "max_concurrency": 1}
    return WorkloadSpec.model_validate({**base, **changes})


def some(n: int) -> list[Request]:
    return [Request(i, [1, 2, 3 + i], None) for i in range(n)]


async def phase(
    url: str,
    requests: Sequence[Request] | None = None,
    arrivals: Sequence[float] | None = None,
    hang: float = 30.0,
    on_done: Callable[[Sample], None] = lambda sample: None,
    more: Callable[[], bool] = lambda: True,
    choose: Callable[[], tuple[int, str] | None] | None = None,
    enough: Callable[[], bool] = lambda: False,
    **changes: Any,
) -> Phase:
    requests = some(1) if requests is None else requests
    return await run_phase(
        url,
        "m",
        requests,
        [0.0] * len(requests) if arrivals is None else arrivals,
        spec(**changes),
        api_key="k",
        phase="measure",
        hang_timeout_s=hang,
        on_done=on_done,
        more=more,
        choose=choose,
        enough=enough,
    )


def one(handler: Handler, **arguments: Any) -> Sample:
    """The sample of one request to a server that answers so."""

    async def main() -> Sample:
        async with serving(handler) as (url, _):
            return (await phase(url, **arguments)).samples[0]

    return asyncio.run(main())


def failed(sample: Sample, status: str, *words: str) -> None:
    assert sample.status == status, sample.error
    assert sample.error is not None
    assert "\n" not in sample.error
    for word in words:
        assert word in sample.error
    assert (sample.ttft, sample.prompt_tokens, sample.output_tokens) == (None, None, None)
    assert sample.chunks == ()
    assert sample.end >= sample.start


def test_a_good_answer_counts_by_usage_and_times_by_text() -> None:
    sample = one(stream(0.05, GOOD[0], 0.05, *GOOD[1:]))
    assert sample.status == "ok"
    assert sample.error is None
    assert (sample.prompt_tokens, sample.output_tokens) == (3, 4)  # three chunks, four tokens
    assert len(sample.chunks) == 3
    assert sample.ttft == sample.chunks[0]
    assert sample.ttft >= 0.05
    # since the start: it may have been read late, and then the next one follows at once
    assert sample.chunks[1] >= 0.1
    assert sample.chunks[0] < sample.chunks[1] <= sample.chunks[2]
    assert sample.start + sample.chunks[-1] == pytest.approx(sample.end)


TOLD = {"acceptance_histogram": [0, 1], "num_draft_tokens": 1}


@pytest.mark.parametrize(
    ("metrics", "drafts"),
    [
        ({"speculative_decoding": TOLD}, RequestDrafts((0, 1), 1)),
        ({"speculative_decoding": {"acceptance_histogram": {"0": 1}}}, None),
        ({"queue_time_ms": 1.0}, None),
        ("none", None),
        ([TOLD], None),
    ],
)
def test_accepted_drafts_come_with_the_usage_and_never_fail_a_request(
    metrics: object, drafts: RequestDrafts | None
) -> None:
    counts = {"prompt_tokens": 3, "completion_tokens": 4}
    last = event(choices=[], usage=counts, metrics=metrics)
    request = Request(0, [1, 2, 3], None, category="code")
    sample = one(stream(*GOOD[:3], last, DONE), requests=[request])
    assert (sample.status, sample.output_tokens) == ("ok", 4)
    assert (sample.drafts, sample.category) == (drafts, "code")


def test_a_failed_request_has_no_drafts() -> None:
    counts = {"prompt_tokens": 3, "completion_tokens": 0}
    last = event(choices=[], usage=counts, metrics={"speculative_decoding": TOLD})
    assert one(stream(*GOOD[:3], last, DONE)).drafts is None


def test_the_end_is_the_last_choice_not_the_usage_or_done_after_it() -> None:
    async def main() -> None:
        async with serving(stream(*GOOD[:3], 0.2, *GOOD[3:])) as (url, _):
            result = await phase(url)
        assert result.samples[0].status == "ok"
        assert result.seconds - result.samples[0].end >= 0.15

    asyncio.run(main())


def test_a_finish_chunk_without_text_is_an_end_but_no_token() -> None:
    sample = one(stream(text("abcd"), 0.05, text("", "length"), usage(), DONE))
    assert len(sample.chunks) == 1
    assert sample.end - sample.start >= sample.chunks[0] + 0.04


def test_a_chat_starts_with_its_first_text_not_with_its_role() -> None:
    def delta(**fields: str) -> bytes:
        return event(choices=[{"index": 0, "delta": fields}])

    handler = stream(delta(role="assistant", content=""), 0.05, delta(content="hi"), usage(), DONE)
    chat = [Request(0, None, [{"role": "user", "content": "hello"}])]
    sample = one(handler, requests=chat)
    assert sample.status == "ok"
    assert sample.ttft is not None
    assert sample.ttft >= 0.05
    assert len(sample.chunks) == 1
    for name in ("reasoning_content", "reasoning"):
        thinking = one(stream(delta(**{name: "hm"}), delta(content="hi"), usage(), DONE))
        assert len(thinking.chunks) == 2


def test_what_is_sent() -> None:
    async def main() -> list[Seen]:
        async with serving(stream(*GOOD)) as (url, seen):
            tools = [{"type": "function", "function": {"name": "lookup"}}]
            chat = Request(7, None, [{"role": "user", "content": "é"}], tools=tools)
            await phase(url, [*some(1), chat], seed=5, temperature=0.5)
            await phase(url, [Request(0, "Once", None)], ignore_eos=False)
        return seen

    ids, chat, plain = asyncio.run(main())
    assert [s.path for s in (ids, chat, plain)] == [
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/completions",
    ]
    assert ids.body == {
        "model": "m",
        "prompt": [1, 2, 3],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 4,
        "temperature": 0.5,
        "seed": 5,
        "ignore_eos": True,
        "skip_special_tokens": False,
    }
    assert chat.body["messages"] == [{"role": "user", "content": "é"}]
    assert chat.body["seed"] == 12
    # part of the prompt, and the answer is a text in any case
    assert chat.body["tools"] == [{"type": "function", "function": {"name": "lookup"}}]
    assert chat.body["tool_choice"] == "none"
    assert "tools" not in plain.body
    assert plain.body["prompt"] == "Once"
    assert "ignore_eos" not in plain.body
    assert "accept-encoding: identity" in ids.head


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_events_may_be_split_and_joined_anywhere(newline: bytes) -> None:
    whole = b": ping\n\nevent: x\n" + b"".join(GOOD).replace(b"data: ", b"data:", 1)
    whole = whole.replace(b"\n", newline)
    for size in (1, 2, 7, 64, len(whole)):
        answer = Answer()
        for i in range(0, len(whole), size):
            answer.feed(whole[i : i + size], float(i))
        answer.close(spec(), 1e9)
        assert (answer.status, answer.error, answer.output_tokens) == ("ok", None, 4)
        assert len(answer.stamps) == 3


def test_one_stamp_for_all_events_of_a_read() -> None:
    answer = Answer()
    answer.feed(b"".join(GOOD), 2.5)
    assert answer.stamps == [2.5, 2.5, 2.5]
    assert answer.end == 2.5


@pytest.mark.parametrize(
    ("pieces", "status", "words"),
    [
        (GOOD[:4], "stream", "without [DONE] after 3 chunks"),
        ((), "stream", "without [DONE] after 0 chunks"),
        ((*GOOD[:3], DONE), "usage", "no usage"),
        ((*GOOD[:3], usage(output=None), DONE), "usage", "no usage"),
        ((*GOOD[:3], usage(output=True), DONE), "usage", "no usage"),
        ((usage(output=0), DONE), "usage", "zero output tokens"),
        ((text(""), usage(), DONE), "usage", "4 output tokens but no text"),
        ((*GOOD[:3], usage(output=3), DONE), "usage", "3 of 4 output tokens"),
        ((*GOOD[:3], usage(output=5), DONE), "usage", "5 output tokens, more than the 4"),
        ((text("a"), text("b", "abort"), usage(), DONE), "stream", "finish_reason abort"),
        ((text("a"), b'data: {"choices": [\n\n'), "stream", "broken JSON"),
        ((text("a"), b"data: \xff\xfe\n\n"), "stream", "broken JSON"),
        ((event(choices={"a": 1}), DONE), "stream", "not an OpenAI chunk"),
        ((event(choices=["x"]), DONE), "stream", "not an OpenAI chunk"),
        ((b"data: [1]\n\n", DONE), "stream", "not an OpenAI chunk"),
        (
            (text("a"), event(error={"message": "EngineDead\nnow"}), DONE),
            "stream",
            "EngineDead now",
        ),
        ((text("a"), event(error="boom")), "stream", "the server reports: boom"),
        ((text("a"), event(error={"message": "boom", "code": 500})), "server", "reports: boom"),
        ((b'{"object": "text_completion"}',), "stream", "without [DONE]"),
    ],
)
def test_a_bad_answer_is_a_value_without_numbers(
    pieces: tuple[bytes, ...], status: str, words: str
) -> None:
    failed(one(stream(*pieces)), status, words)


def test_fewer_tokens_are_fine_where_the_model_may_stop() -> None:
    sample = one(stream(*GOOD[:3], usage(output=3), DONE), ignore_eos=False)
    assert (sample.status, sample.output_tokens) == ("ok", 3)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "max_tokens is\\n too large"}}', "max_tokens is too large"),
        (b'{"object": "error", "message": "old style"}', "old style"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"error": "plain"}', "plain"),
        (b"[1]", "[1]"),
        (b"Internal Server\nError", "Internal Server Error"),
        (b"x" * 5000, "xxx…"),
    ],
)
def test_an_http_error_tells_the_servers_words(body: bytes, words: str) -> None:
    async def handler(_: Seen, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    failed(one(handler), "server", "HTTP 500: ", words)


def test_the_connection_breaks_in_the_middle() -> None:
    failed(one(stream(*GOOD[:2], end=False)), "stream", "after 2 chunks")


def test_after_done_a_broken_connection_does_no_harm() -> None:
    assert one(stream(*GOOD, end=False)).status == "ok"


def test_the_connection_breaks_before_the_answer() -> None:
    async def handler(_: Seen, writer: Writer) -> None:
        writer.transport.abort()

    failed(one(handler), "connect")


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        failed(asyncio.run(phase(url)).samples[0], "connect")


def test_an_answer_that_is_not_http() -> None:
    async def handler(_: Seen, writer: Writer) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        writer.close()

    failed(one(handler), "connect")


@pytest.mark.parametrize("before", [0, 2])
def test_no_token_for_too_long_is_a_hang(before: int) -> None:
    async def handler(_: Seen, writer: Writer) -> None:
        writer.write(HEAD)
        for chunk in GOOD[:before]:
            await send(writer, chunk)
        while not writer.is_closing():  # bytes, but no token
            await send(writer, b": ping\n\n")
            await asyncio.sleep(0.02)

    hang = 1.5 if before else 0.2
    sample = one(handler, hang=hang)
    failed(sample, "timeout", f"hang: no token for {hang:g} s after {before} chunks")
    assert sample.end - sample.start >= hang - 0.01


def test_a_server_that_does_not_even_begin_is_a_hang() -> None:
    async def handler(_: Seen, writer: Writer) -> None:
        await asyncio.sleep(PATIENCE_S)

    failed(one(handler, hang=0.1), "timeout", "hang: no token for 0.1 s after 0 chunks")


def test_tokens_that_keep_coming_are_no_hang_but_life_is_finite() -> None:
    slow = [piece for chunk in [text("x")] * 12 for piece in (chunk, 0.3)]
    assert one(stream(*slow, usage(), DONE), hang=3.0).status == "ok"
    sample = one(stream(*slow, usage(), DONE), hang=3.0, request_timeout_s=0.45)
    failed(sample, "timeout", "no end after 0.45 s (workload.request_timeout_s)", "chunks came")


def test_concurrency_is_capped_and_first_come_first_served() -> None:
    running, most, order = 0, 0, []

    async def handler(seen: Seen, writer: Writer) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(seen.body["prompt"][2] - 3)
        while most < 3:  # the first ones wait for each other
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        running -= 1
        await stream(*GOOD)(seen, writer)

    done: list[Sample] = []

    async def main() -> Phase:
        async with serving(handler) as (url, _):
            return await phase(url, some(12), on_done=done.append, max_concurrency=3)

    result = asyncio.run(main())
    assert most == 3
    assert order[:3] == [0, 1, 2]
    starts = [s.start for s in result.samples]
    assert starts == sorted(starts)
    assert [s.index for s in result.samples] == list(range(12))
    assert sorted(s.index for s in done) == list(range(12))
    assert all(s.status == "ok" and s.phase == "measure" for s in result.samples)
    assert result.seconds >= max(s.end for s in result.samples)
    # a place that becomes free is taken at once, by the next in line
    ends = sorted(s.end for s in result.samples)
    assert all(start >= end for start, end in zip(starts[3:], ends, strict=False))


def test_an_open_loop_sends_at_its_times_whatever_the_server_does() -> None:
    arrivals = [0.0, 0.05, 0.1, 0.15]
    waiting = 0

    async def main() -> Phase:
        everybody = asyncio.Event()

        async def handler(seen: Seen, writer: Writer) -> None:
            nonlocal waiting
            waiting += 1
            if waiting == len(arrivals):
                everybody.set()
            await everybody.wait()  # nobody is answered before the last has come
            await stream(*GOOD)(seen, writer)

        async with serving(handler) as (url, _):
            return await phase(url, some(4), arrivals, max_concurrency=None, request_rate=20.0)

    result = asyncio.run(main())
    assert [s.intended for s in result.samples] == arrivals
    for sample, arrival in zip(result.samples, arrivals, strict=True):
        assert sample.status == "ok"
        assert sample.start >= arrival


def test_an_open_loop_with_a_cap_waits_for_time_and_place() -> None:
    arrivals = [0.0, 0.02, 0.04, 0.5]

    async def main() -> Phase:
        async with serving(stream(0.1, *GOOD)) as (url, _):
            return await phase(url, some(4), arrivals, request_rate=20.0, max_concurrency=1)

    samples = asyncio.run(main()).samples
    assert samples[1].start >= samples[0].end
    assert samples[2].start >= samples[1].end
    assert samples[3].start >= 0.5
    assert [s.intended for s in samples] == arrivals


def test_one_bad_request_does_not_touch_the_others() -> None:
    async def handler(seen: Seen, writer: Writer) -> None:
        if seen.body["prompt"][2] == 4:
            writer.transport.abort()
        else:
            await stream(*GOOD)(seen, writer)

    async def main() -> Phase:
        async with serving(handler) as (url, _):
            return await phase(url, some(5), max_concurrency=2)

    statuses = [s.status for s in asyncio.run(main()).samples]
    assert statuses == ["ok", "connect", "ok", "ok", "ok"]


def test_cancelling_closes_everything_and_keeps_what_is_done() -> None:
    gone = 0

    async def handler(seen: Seen, writer: Writer) -> None:
        nonlocal gone
        if seen.body["prompt"][2] - 3 < 2:
            await stream(*GOOD)(seen, writer)
            return
        writer.write(HEAD)
        with contextlib.suppress(ConnectionError):
            while True:
                await send(writer, text("x"))
                await asyncio.sleep(0.01)
        gone += 1
        raise ConnectionError

    done: list[Sample] = []

    async def main() -> None:
        async with serving(handler) as (url, seen):
            task = asyncio.create_task(phase(url, some(8), on_done=done.append, max_concurrency=4))
            while len(done) < 2 or len(seen) < 6:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while gone < 4:  # the server sees all four connections end
                await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert sorted(s.index for s in done) == [0, 1]


def test_no_more_ends_the_sending_and_waits_for_what_is_under_way() -> None:
    done: list[Sample] = []
    asked = 0

    def more() -> bool:
        nonlocal asked
        asked += 1
        return len(done) < 4

    async def main() -> tuple[Phase, list[Seen]]:
        async with serving(stream(0.02, *GOOD)) as (url, seen):
            result = await phase(url, some(20), on_done=done.append, more=more, max_concurrency=3)
            return result, seen

    result, seen = asyncio.run(main())
    # the fourth answer ends it; two others may be under way then
    assert [s.index for s in result.samples] == list(range(len(seen)))
    assert 4 <= len(seen) <= 6
    assert sorted(s.index for s in done) == list(range(len(seen)))
    assert all(s.status == "ok" for s in result.samples)
    assert asked == len(seen) + 1  # once for each request, and nobody asks after a no


def test_no_more_from_the_start_sends_nothing() -> None:
    assert asyncio.run(phase("http://127.0.0.1:9", some(3), more=lambda: False)).samples == ()


def test_no_more_in_an_open_loop_does_not_wait_for_the_arrivals_that_are_left() -> None:
    arrivals = [0.0, 0.02, 0.04, 3600.0]
    told = iter([True, True, False])

    async def main() -> Phase:
        async with serving(stream(*GOOD)) as (url, _):
            coroutine = phase(
                url,
                some(4),
                arrivals,
                more=lambda: next(told),
                max_concurrency=None,
                request_rate=50.0,
            )
            return await asyncio.wait_for(coroutine, 60)

    samples = asyncio.run(main()).samples
    assert [s.intended for s in samples] == arrivals[:2]
    assert all(s.start >= s.intended for s in samples)


def test_requests_are_chosen_one_by_one_and_may_come_again() -> None:
    turns = iter([(2, "warmup"), (0, "measure"), (1, "measure"), (2, "fill"), (2, "fill"), None])
    chosen = 0

    def choose() -> tuple[int, str] | None:
        nonlocal chosen
        chosen += 1
        return next(turns)

    async def main() -> tuple[Phase, list[Seen]]:
        async with serving(stream(0.01, *GOOD)) as (url, seen):
            return await phase(url, some(3), choose=choose, max_concurrency=2), seen

    result, seen = asyncio.run(main())
    assert [x.body["prompt"][2] - 3 for x in seen] == [2, 0, 1, 2, 2]
    assert sorted((s.index, s.phase) for s in result.samples) == [
        (0, "measure"),
        (1, "measure"),
        (2, "fill"),
        (2, "fill"),
        (2, "warmup"),
    ]
    assert [s.index for s in result.samples] == [0, 1, 2, 2, 2]
    assert [s.start for s in result.samples[2:]] == sorted(s.start for s in result.samples[2:])
    assert chosen == 6  # nobody asks after a no


def test_a_request_is_chosen_when_a_place_is_free_and_not_before() -> None:
    done: list[Sample] = []
    ended_at_choice: list[int] = []

    def choose() -> tuple[int, str] | None:
        ended_at_choice.append(len(done))
        return (len(ended_at_choice) - 1, "measure") if len(ended_at_choice) <= 6 else None

    async def main() -> Phase:
        async with serving(stream(0.01, *GOOD)) as (url, _):
            return await phase(url, some(6), choose=choose, on_done=done.append, max_concurrency=2)

    assert len(asyncio.run(main()).samples) == 6
    assert ended_at_choice == [0, 0, 1, 2, 3, 4, 5]


def test_enough_breaks_off_what_is_under_way_and_keeps_the_rest() -> None:
    done: list[Sample] = []
    gone = 0

    async def handler(seen: Seen, writer: Writer) -> None:
        nonlocal gone
        if seen.body["prompt"][2] - 3 in {0, 3}:
            await stream(0.01, *GOOD)(seen, writer)
            return
        writer.write(HEAD)
        with contextlib.suppress(ConnectionError):
            while True:
                await send(writer, text("x"))
                await asyncio.sleep(0.01)
        gone += 1
        raise ConnectionError

    async def main() -> Phase:
        async with serving(handler) as (url, _):
            result = await phase(
                url,
                some(20),
                on_done=done.append,
                enough=lambda: len(done) == 2,
                max_concurrency=3,
            )
            while gone < 2:  # the server sees both connections end
                await asyncio.sleep(0.005)
            return result

    result = asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert [(s.index, s.status) for s in result.samples] == [(0, "ok"), (3, "ok")]
    assert list(result.samples) == done


def test_a_cancellation_that_comes_with_enough_is_not_lost() -> None:
    async def main() -> None:
        async with serving(stream(*GOOD)) as (url, _):
            running: asyncio.Task[Phase]

            def enough() -> bool:
                running.cancel()
                return True

            running = asyncio.create_task(phase(url, some(3), enough=enough, max_concurrency=2))
            with pytest.raises(asyncio.CancelledError):
                await running

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_an_error_of_on_done_ends_the_phase_and_comes_out_as_it_is() -> None:
    class Full(Exception):
        pass

    def on_done(_: Sample) -> None:
        raise Full("disk")

    async def main() -> list[Seen]:
        async with serving(stream(0.01, *GOOD)) as (url, seen):
            with pytest.raises(Full, match="disk"):
                await phase(url, some(50), on_done=on_done, max_concurrency=2)
            return seen

    assert len(asyncio.run(main())) <= 4
    assert gc.get_freeze_count() == 0


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert one(stream(*GOOD)).status == "ok"


def test_no_requests_no_samples() -> None:
    result = asyncio.run(phase("http://127.0.0.1:9", []))
    assert result.samples == ()
    assert not math.isnan(result.seconds)


def test_requests_with_lengths_of_their_own() -> None:
    requests = [Request(0, "a", None, 4), Request(1, "b", None, 3), Request(2, "c", None)]

    async def main() -> tuple[Phase, list[Seen]]:
        async with serving(stream(*GOOD)) as (url, seen):
            return await phase(url, requests, output_len=7), seen

    result, seen = asyncio.run(main())
    assert [s.body["max_tokens"] for s in seen] == [4, 3, 7]
    # each answer has 4 tokens, and is held against what its own request asked for
    assert [s.status for s in result.samples] == ["ok", "usage", "usage"]
    assert "4 output tokens, more than the 3 asked for" in (result.samples[1].error or "")
    assert "4 of 7 output tokens" in (result.samples[2].error or "")


def test_a_replay_is_an_open_loop() -> None:
    arrivals = [0.0, 0.05, 0.1]

    async def main() -> Phase:
        last = asyncio.Event()

        async def handler(seen: Seen, writer: Writer) -> None:
            if seen.body["prompt"][2] - 3 == 2:
                last.set()
            await last.wait()  # nobody is answered before the last has come
            await stream(*GOOD)(seen, writer)

        async with serving(handler) as (url, _):
            changes: dict[str, Any] = {"random": None, "replay": "log.jsonl"}
            sending = phase(url, some(3), arrivals, max_concurrency=None, **changes)
            return await asyncio.wait_for(sending, PATIENCE_S)

    samples = asyncio.run(main()).samples
    assert [s.intended for s in samples] == arrivals
    assert samples[2].start < samples[0].end  # nobody waits for an answer
