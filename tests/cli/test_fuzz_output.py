"""Whatever a server answers becomes a good sample, or a failure without a number."""

from __future__ import annotations

import asyncio
import dataclasses
import http.server
import itertools
import json
import math
import re
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autotune.bench.client import Answer, _Connection
from autotune.bench.server_metrics import Counters, ServerStats, difference, parse, scrape
from autotune.errors import FailureKind, MeasureError
from tests.bench.test_client import (
    DONE,
    GOOD,
    HEAD,
    Handler,
    Seen,
    Writer,
    event,
    failed,
    one,
    spec,
    stream,
    text,
    usage,
)
from tests.bench.test_server_metrics import page, serving
from tests.fuzzing import fuzz
from tests.studies import autotune, query, trials, write_study

pytestmark = pytest.mark.slow

# -- streams -----------------------------------------------------------------------------------

DEEP = "[" * 900 + "]" * 900
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**53, 2**63, 2**64, 10**30, -1, 0, 4, 4.0, 1e308, "", "4", "NaN"])
    | st.floats()
    | st.text(max_size=4),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
    max_leaves=5,
)
CHUNK = st.fixed_dictionaries(
    {},
    optional={
        "choices": JSON
        | st.lists(
            JSON
            | st.fixed_dictionaries(
                {},
                optional={
                    "text": JSON,
                    "finish_reason": JSON | st.sampled_from(["stop", "length", "abort", "error"]),
                    "delta": JSON
                    | st.fixed_dictionaries(
                        {}, optional={"content": JSON, "reasoning": JSON, "role": JSON}
                    ),
                },
            ),
            max_size=2,
        ),
        "usage": JSON
        | st.fixed_dictionaries({}, optional={"prompt_tokens": JSON, "completion_tokens": JSON}),
        "error": JSON | st.fixed_dictionaries({"message": JSON}),
    },
)
CHUNKS = CHUNK.map(lambda x: b"data: " + json.dumps(x).encode() + b"\n\n")
ODD = st.sampled_from(
    [
        *(
            b"",
            b"\n",
            b"\r\n",
            b"\0",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b": ping\n\n",
            b"event: error\n",
        ),
        *(b"data:\n\n", b"data: {\n\n", b"data: [DONE\n\n", b"data: [done]\n\n", b"[DONE]\n\n"),
        *(b"data: NaN\n\n", b"data: 1e999\n\n", b'data: {"choices": [{"text": "\xff"}]}\n\n'),
        *(b'data: {"choices": "abc"}\n\n', b'data: {"error": {}}\n\n', b"data: null\n\n"),
        f"data: {DEEP}\n\n".encode(),
        f'data: {{"error": {DEEP}}}\n\n'.encode(),
        f'data: {{"choices": [{{"text": {DEEP}}}]}}\n\n'.encode(),
        b'data: {"usage": {"prompt_tokens": ' + b"9" * 5000 + b', "completion_tokens": 4}}\n\n',
        b'data: {"choices": [{"text": "a", "finish_reason": ["stop"]}]}\n\n',
        b'data: {"error": "\\u001b[2J\\u0000\\u2028"}\n\n',
    ]
)
PARTS = st.sampled_from(GOOD) | CHUNKS | ODD | st.binary(max_size=8)
# the good answer with pieces taken out, put in, in another order, cut or damaged
STREAMS = st.one_of(
    st.permutations(GOOD),
    st.lists(PARTS, max_size=8),
    st.tuples(st.integers(0, 5), PARTS).map(lambda t: [*GOOD[: t[0]], t[1], *GOOD[t[0] :]]),
    st.tuples(st.integers(0, 4), PARTS).map(lambda t: [*GOOD[: t[0]], t[1], *GOOD[t[0] + 1 :]]),
    st.integers(0, sum(map(len, GOOD))).map(lambda n: [b"".join(GOOD)[:n]]),
    st.tuples(st.integers(0, sum(map(len, GOOD)) - 1), st.binary(max_size=2)).map(
        lambda t: [b"".join(GOOD)[: t[0]] + t[1] + b"".join(GOOD)[t[0] + 1 :]]
    ),
)


def cut(whole: bytes, places: list[int]) -> list[bytes]:
    at = [0, *sorted(p % (len(whole) + 1) for p in places), len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(at)]


def told(pieces: list[bytes], **changes: Any) -> Answer:
    """The closed answer of a stream that came in these reads."""
    answer = Answer()
    for i, piece in enumerate(pieces):
        answer.feed(piece, float(i + 1))
    answer.close(spec(**changes), 1e9)
    return answer


def is_judged(answer: Answer) -> None:
    """A failure has a kind and one clean line; a good answer has all its numbers."""
    if answer.status == "ok":
        assert answer.error is None
        assert answer.stamps
        assert all(a <= b for a, b in itertools.pairwise(answer.stamps))
        assert answer.end >= answer.stamps[-1]
        for count in (answer.prompt_tokens, answer.output_tokens):
            assert type(count) is int
            assert 0 <= count < 2**31
    else:
        assert answer.status in {"stream", "usage"}
        assert answer.error
        assert answer.error.isprintable(), ascii(answer.error)
        assert len(answer.error) < 500


def by_the_book(whole: bytes, output_len: int, *, ignore_eos: bool) -> bool:
    """Whether a stream is good, by rules written a second time with Python's own JSON."""
    chunks, finish, counts = 0, "", (None, None)
    for line in whole.split(b"\n")[:-1]:
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            break
        try:
            data = json.loads(payload.decode())
        except (ValueError, RecursionError):
            return False
        if not isinstance(data, dict):
            return False
        if choices := data.get("choices"):
            if not isinstance(choices, list) or not isinstance(choices[0], dict):
                return False
            choice, delta = choices[0], choices[0].get("delta")
            names = ("content", "reasoning_content", "reasoning")
            if delta is not None and not isinstance(delta, dict):
                return False
            words = [choice.get("text")] if delta is None else [delta.get(n) for n in names]
            if not all(isinstance(w, str | None) for w in [*words, choice.get("finish_reason")]):
                return False
            chunks += any(words)
            finish = choice.get("finish_reason") or finish
        if use := data.get("usage"):
            if not isinstance(use, dict):
                return False
            counts = (use.get("prompt_tokens"), use.get("completion_tokens"))
        if data.get("error"):
            return False
    else:
        return False
    if finish in {"abort", "error"} or not chunks:
        return False
    prompt, output = counts
    if not (type(prompt) is int and type(output) is int and 0 <= prompt < 2**31):
        return False
    return output == output_len if ignore_eos else 0 < output <= output_len


@fuzz(300)
@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=6), st.booleans())
@example([*GOOD, usage(output=9)], [], True)
@example([*GOOD[:4], DONE, text("more"), b"data: {\n\n"], [3], True)
@example([*GOOD[:4], b"data: [DONE]"], [], True)
def test_a_stream_is_good_by_the_book_or_a_failure_however_it_is_cut(
    parts: list[bytes], places: list[int], ignore_eos: bool
) -> None:
    whole = b"".join(parts)
    answer = told([whole], ignore_eos=ignore_eos)
    is_judged(answer)
    for pieces in (cut(whole, places), [whole[i : i + 1] for i in range(len(whole))]):
        other = told(pieces, ignore_eos=ignore_eos)
        is_judged(other)
        assert (other.status, other.error) == (answer.status, answer.error)
        if answer.status == "ok":
            assert len(other.stamps) == len(answer.stamps)
            assert other.prompt_tokens == answer.prompt_tokens
            assert other.output_tokens == answer.output_tokens
    if b"e999" not in whole and b"Infinity" not in whole and b"NaN" not in whole:
        # JSON of Python's own making is not always JSON
        assert (answer.status == "ok") == by_the_book(whole, 4, ignore_eos=ignore_eos)


@pytest.mark.parametrize(
    ("pieces", "status", "words"),
    [
        ((event(choices=[{"text": "a", "finish_reason": ["x"]}]), DONE), "stream", "not an OpenAI"),
        ((event(choices=[{"text": {"a": 1}}]), usage(), DONE), "stream", "not an OpenAI"),
        ((event(choices=[{"text": True}]), usage(), DONE), "stream", "not an OpenAI"),
        ((event(choices=[{"delta": {"content": 5}}]), usage(), DONE), "stream", "not an OpenAI"),
        ((*GOOD[:3], usage(prompt=2**63), DONE), "usage", "no usage"),
        ((*GOOD[:3], usage(prompt=-1), DONE), "usage", "no usage"),
        ((*GOOD[:3], usage(output=4.0), DONE), "usage", "no usage"),
        ((f'data: {{"error": {DEEP}}}\n\n'.encode(),), "stream", "the server reports"),
        ((event(error="\x1b[2J\x00boom"),), "stream", "[2J\ufffdboom"),
        ((event(error={"message": "x" * 10**5}),), "stream", "x…"),
    ],
)
def test_what_is_no_answer(pieces: tuple[bytes, ...], status: str, words: str) -> None:
    failed(one(stream(*pieces)), status, words)
    is_judged(told(list(pieces)))


def test_what_comes_after_done_counts_for_nothing() -> None:
    late = (text("d"), usage(output=9, prompt=9), event(error="boom"), b"data: {\n\n")
    answer = told([*GOOD, *late])
    assert (answer.status, answer.prompt_tokens, answer.output_tokens) == ("ok", 3, 4)
    assert answer.stamps == [1.0, 2.0, 3.0]
    assert answer.end == 3.0


LINE = 2**23  # most bytes of one line of a stream


@pytest.mark.parametrize("size", [1000, 2**16, 2**21])
def test_a_line_without_an_end_is_a_failure_that_keeps_little(size: int) -> None:
    answer = Answer()
    tracemalloc.start()
    try:
        for _ in range(4 * LINE // size):
            answer.feed(b"x" * size, 1.0)
        assert tracemalloc.get_traced_memory()[1] < 3 * LINE + 3 * size
    finally:
        tracemalloc.stop()
    assert (answer.status, answer.error) == ("stream", "a line of more than 8 MiB in the stream")


def test_a_long_line_fails_alike_in_one_read_and_in_many() -> None:
    for length in (LINE - 1, LINE, LINE + 1):
        line = b": " + b"x" * (length - 2) + b"\n"
        whole = b"".join([line, *GOOD])
        one_read = told([whole])
        assert one_read.status == ("ok" if length <= LINE else "stream")
        for size in (2**12, 2**16, 2**20):
            many = told([whole[i : i + size] for i in range(0, len(whole), size)])
            assert (many.status, many.error) == (one_read.status, one_read.error)


def test_chunks_without_an_end_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.bench.client._MOST_CHUNKS", 1000)  # a million take seconds
    answer = Answer()
    for _ in range(3000):
        answer.feed(text("x"), 1.0)
    assert answer.status == "stream"
    assert answer.error == "more than 1000 chunks with text"
    assert len(answer.stamps) <= 1001


# -- HTTP --------------------------------------------------------------------------------------


class Pipe(asyncio.Transport):
    """A transport to nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: object) -> None:
        return

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


def over_http(pieces: list[bytes], *, closes: bool) -> tuple[Answer, bool, bool]:
    """The answer to these reads, whether its end was seen, and whether the line is used again."""

    async def main() -> tuple[Answer, bool, bool]:
        connection = _Connection()
        connection.connection_made(Pipe())
        answer, ended = connection.send(b"GET")
        for piece in pieces:
            if piece and not connection._transport.is_closing():
                connection.data_received(piece)
        if closes:
            connection._transport.abort()
            connection.connection_lost(None)
        seen = ended.done()
        answer.close(spec(), 1e9)
        return answer, seen, connection.reusable()

    return asyncio.run(main())


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces if p) + b"0\r\n\r\n"


WHOLE = HEAD + chunked(*GOOD)
HEADS = [
    *(HEAD, b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 X\r\nContent-Length: 3\r\n\r\nabc"),
    *(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n", b"HTTP/1.1 304 No\r\n\r\n"),
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
    *(
        b"HTTP/1.1 999 X\r\n\r\n",
        b"HTTP/1.1 9999 X\r\n\r\n",
        b"HTTP/0.9 200\r\n\r\n",
        b"HTTP/2.0\r\n",
    ),
    *(
        b"\r\n",
        b"\0",
        b"ffffffffffffffff\r\n",
        b"0\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"zz\r\n",
        b"1;a=b\r\nx",
    ),
]


@fuzz(300)
@given(
    st.one_of(
        st.lists(
            st.sampled_from([*HEADS, chunked(*GOOD), *map(chunked, GOOD), WHOLE])
            | st.binary(max_size=6),
            max_size=4,
        ).map(b"".join),
        st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 3), st.binary(max_size=3)).map(
            lambda t: WHOLE[: t[0]] + t[2] + WHOLE[t[0] + t[1] :]
        ),
    ),
    st.lists(st.integers(0, 10_000), max_size=5),
    st.booleans(),
)
@example(HEADS[6], [], False)  # once the parser's own exception
@example(HEAD + b"0\r\n\r\n" + WHOLE, [], False)  # a second answer in the same read
@example(HEADS[2] + WHOLE, [], False)
def test_any_bytes_are_a_good_answer_or_a_failure(
    raw: bytes, places: list[int], closes: bool
) -> None:
    answer, ended, reusable = over_http(cut(raw, places), closes=closes)
    assert ended or not closes
    if answer.status == "ok":
        assert b"data: [DONE]" in raw
        assert (answer.prompt_tokens, answer.output_tokens) == (3, 4)
        assert answer.stamps
    else:
        assert answer.status in {"connect", "http", "server", "stream", "usage"}
        assert answer.error
        assert answer.error.isprintable(), ascii(answer.error)
        assert len(answer.error) < 500
    if reusable:
        assert ended
        assert not closes


def test_a_second_answer_is_not_taken_for_the_first() -> None:
    nothing = HEAD + b"0\r\n\r\n"
    for cuts in ([], [len(nothing)], [len(nothing) + 20]):
        answer, ended, reusable = over_http(cut(nothing + WHOLE, cuts), closes=False)
        assert ended
        assert answer.status == "stream"
        assert not reusable


def endless(*pieces: bytes) -> tuple[Handler, Callable[[], int]]:
    """Sends the pieces once, then the last one for ever; and how many bytes it got rid of."""
    sent = 0

    async def handler(_: Seen, writer: Writer) -> None:
        nonlocal sent
        for piece in itertools.chain(pieces, itertools.repeat(pieces[-1])):
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    return handler, lambda: sent


MUCH = b"x" * 2**16


@pytest.mark.parametrize(
    ("pieces", "status", "words"),
    [
        ((HEAD, b"%x\r\n%b\r\n" % (len(MUCH), MUCH)), "stream", "a line of more than 8 MiB"),
        ((b"HTTP/1.1 200 OK\r\nX: ", MUCH), "connect", "64 KiB without an end of the headers"),
        ((b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 10_000), "connect", "64 KiB without an end"),
        ((HEAD + b"1;x=", MUCH), "stream", "64 KiB without"),
        ((HEAD + b"0\r\nX: ", MUCH), "stream", "64 KiB without"),
        ((b"HTTP/1.1 503 No\r\n\r\n", MUCH), "server", "HTTP 503: xxx"),
        ((b"HTTP/1.1 404 No\r\n\r\n", MUCH), "http", "HTTP 404: xxx"),
        ((MUCH,), "connect", "not HTTP"),
    ],
)
def test_a_server_that_never_ends_is_a_failure_soon(
    pieces: tuple[bytes, ...], status: str, words: str
) -> None:
    handler, sent = endless(*pieces)
    failed(one(handler, hang=3600.0, request_timeout_s=3600.0), status, words)
    assert sent() < 64 * 2**20  # the buffers of both sockets, and what is kept


def test_an_upgrade_is_a_failure() -> None:
    async def handler(_: Seen, writer: Writer) -> None:
        writer.write(HEADS[6])
        await writer.drain()

    sample = one(handler, hang=60.0)
    failed(sample, sample.status, "")
    assert sample.status in {"http", "stream"}


@fuzz(15)
@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=4), st.booleans())
def test_over_a_socket_the_verdict_is_the_same(
    parts: list[bytes], places: list[int], end: bool
) -> None:
    whole = b"".join(parts)
    answer = told([whole])
    sample = one(stream(*filter(None, cut(whole, places)), end=end))
    if answer.status == "ok":
        assert sample.status == "ok"
        assert (sample.prompt_tokens, sample.output_tokens) == (3, answer.output_tokens)
    else:
        failed(sample, answer.status)


# -- /metrics ----------------------------------------------------------------------------------

PAGE = page()
SERIES = [line for line in PAGE.splitlines() if line.startswith("vllm:")]
VALUES = st.sampled_from(
    [
        *("NaN", "+Inf", "-Inf", "-1.0", "-0.0", "0.0", "1e308", "1.8e308", "1e15", "9" * 400),
        *(
            "0.5",
            "x",
            "",
            "0x10",
            "1_0",
            "1 1763000000",
            "1 # {} 1",
            "\u0663",
            "5",
            "400",
            "1e-320",
        ),
    ]
)
LABELS = st.sampled_from(
    [
        *('position="x"', 'position="-1"', 'position="00"', 'position="1.0"', 'position="\u0661"'),
        *('position="' + "9" * 5000 + '"', 'position=""', 'positio="1"', 'position="1', "position"),
    ]
)


@st.composite
def pages(draw: st.DrawFn) -> str:
    """A page of vLLM's with up to four lines changed."""
    lines = page(scale=draw(st.integers(0, 3))).splitlines()
    for _ in range(draw(st.integers(0, 4))):
        i = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["drop", "twice", "value", "label", "name", "raw", "type"])):
            case "drop":
                del lines[i]
            case "twice":
                lines.insert(draw(st.integers(0, len(lines))), lines[i])
            case "value":
                lines[i] = lines[i].rpartition(" ")[0] + " " + draw(VALUES)
            case "label":
                label = re.search(r'position="\d+"', lines[i])
                lines[i] = lines[i].replace(label[0] if label else "\0", draw(LABELS))
            case "name":
                lines[i] = lines[i].replace("vllm:", draw(st.sampled_from(["other:", "", "vllm"])))
            case "raw":
                lines[i] = draw(st.text(max_size=20) | st.sampled_from(['a{b="', "a{", "# TYPE a"]))
            case "type":
                lines[i] = lines[i].replace("counter", draw(st.sampled_from(["gauge", "x", ""])))
        if not lines:
            break
    return "\n".join(lines) + draw(st.sampled_from(["\n", "", "\n\n"]))


def counted(text: str, name: str) -> float | None:
    """What a page says of a counter, read without the parser; None: nothing, or not one thing."""
    found = re.findall(rf"^vllm:{name}_total\{{.*\}} (\S+)", text, re.MULTILINE)
    if len(found) != 1:
        return None
    try:
        value = float(found[0])
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


_NO_NUMBERS = {"speculates", "unknown"}  # of a server's statistics


def are_numbers(stats: ServerStats) -> None:
    for name, value in dataclasses.asdict(stats).items():
        if name in _NO_NUMBERS:
            continue
        numbers = value if isinstance(value, tuple) else [value]
        for number in numbers:
            assert number is None or math.isfinite(number), name
            assert number is None or number >= 0, name
    assert stats.acceptance_length is None or stats.acceptance_length >= 1
    assert all(share <= 1 for share in stats.acceptance_per_position)
    if stats.draft_tokens is not None and stats.acceptance_length is not None:
        assert stats.accepted_tokens is not None
        assert stats.accepted_tokens <= stats.draft_tokens
    json.dumps(dataclasses.asdict(stats), allow_nan=False)


@fuzz(200)
@given(pages(), pages())
@example(PAGE, PAGE.replace('position="1"', 'positio="1"'))
@example(PAGE, PAGE + "\n".join(SERIES))
def test_counters_are_of_the_page_or_unknown(first: str, second: str) -> None:
    try:
        stats = difference(parse(first), parse(second))
    except ValueError:
        return
    are_numbers(stats)
    for name, value in (
        ("spec_decode_num_drafts", stats.drafts),
        ("spec_decode_num_draft_tokens", stats.draft_tokens),
        ("spec_decode_num_accepted_tokens", stats.accepted_tokens),
        ("num_preemptions", stats.preemptions),
        ("prefix_cache_queries", stats.prefix_cache_queries),
        ("prefix_cache_hits", stats.prefix_cache_hits),
    ):
        if value is not None:
            before, after = counted(first, name), counted(second, name)
            if f"vllm:{name}_total{{" not in first:  # not written yet, so nothing was counted
                before = 0
            assert before is not None, name
            assert after is not None, name
            assert value == round(after - before)


@fuzz(300)
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode(errors="replace")))
def test_any_text_is_counters_or_a_value_error(text: str) -> None:
    for whole in (text, PAGE + text, text + PAGE):
        try:
            counters = parse(whole)
        except ValueError:
            continue
        are_numbers(difference(counters, counters))


@fuzz(100)
@given(st.dictionaries(st.sampled_from([s.split("{")[0] for s in SERIES]), st.floats()))
def test_any_counters_are_numbers_or_unknown(values: dict[str, float]) -> None:
    whole = parse(PAGE)
    others = Counters({**whole.values, **values}, tuple(values.values()))
    for before, after in ((whole, others), (others, whole), (others, others)):
        are_numbers(difference(before, after))


def test_a_series_that_is_there_twice_is_unknown() -> None:
    twice = "\n".join(s for s in SERIES if "num_drafts_total" in s or 'position="1"' in s)
    stats = difference(parse(PAGE), parse(page(scale=2) + twice + "\n"))
    assert stats.drafts is None
    assert stats.acceptance_length is None
    assert stats.acceptance_per_position == ()
    assert stats.draft_tokens == 300


def test_a_value_beyond_all_numbers_is_no_page() -> None:
    with pytest.raises(ValueError, match="Prometheus"):
        parse(re.sub(r" 60\.0\n", f" {'9' * 400}\n", PAGE))


@pytest.mark.parametrize("label", ['positio="1"', 'position="01"', 'position="\u0661"'])
def test_a_position_that_is_none_makes_all_of_them_unknown(label: str) -> None:
    odd = page(scale=2).replace('position="1"', label)
    stats = difference(parse(PAGE), parse(odd))
    assert stats.acceptance_per_position == ()
    assert stats.acceptance_length == pytest.approx(1.9)


def test_more_accepted_than_drafted_is_no_acceptance() -> None:
    name = "vllm:spec_decode_num_accepted_tokens_total"
    before, after = parse(PAGE), parse(page(scale=2))
    stats = difference(before, Counters({**after.values, name: 10_000}, (400, 40, 20)))
    assert stats.acceptance_length is None
    assert stats.acceptance_per_position == ()


@contextmanager
def metrics(pieces: Callable[[], Iterator[bytes]]) -> Iterator[str]:
    """A server whose page is these pieces, until the client has enough."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            try:
                for piece in pieces():
                    self.wfile.write(piece)
            except ConnectionError:
                return

        def log_message(self, *_: object) -> None:
            return

    with serving(Page) as url:
        yield url


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (lambda: itertools.chain([b"\r\n"], itertools.repeat(MUCH)), "more than 16 MiB"),
        (lambda: itertools.repeat(b"X-Y: " + MUCH[:1000] + b"\r\n"), "/metrics"),
        (lambda: iter([b"\r\n", b"\x1b[2J{\n" * 1000]), "/metrics"),
        (lambda: iter([b"Content-Encoding: gzip\r\n\r\n", b"nonsense"]), "/metrics"),
    ],
    ids=["endless", "endless headers", "control characters", "no gzip"],
)
def test_a_page_without_sense_or_end_is_a_measure_error(
    pieces: Callable[[], Iterator[bytes]], words: str
) -> None:
    with metrics(pieces) as url, pytest.raises(MeasureError) as e:
        scrape(url, "k")
    assert e.value.kind is FailureKind.REQUESTS
    assert words in e.value.reason
    assert e.value.reason.isprintable()
    assert len(e.value.reason) < 500


# -- whole runs --------------------------------------------------------------------------------

DRAFTED = {
    "num_speculative_tokens": {"type": "choice", "choices": [3]},
    "max_num_batched_tokens": {"type": "choice", "choices": [2048]},
}


@pytest.mark.double
@pytest.mark.parametrize(
    ("fail", "kind", "words"),
    [
        ("bad_sse", "requests", "broken JSON"),
        ("truncated", "requests", "without [DONE]"),
        ("no_usage", "requests", "no usage"),
        ("zero_tokens", "requests", "zero output tokens"),
        ("stream_error", "server_error", "EngineCore died"),
        ("http500", "server_error", "HTTP 500"),
        ("http400", "requests", "HTTP 400"),
    ],
)
@pytest.mark.usefixtures("lives_on")
def test_a_trial_with_bad_answers_has_no_number_anywhere(
    tmp_path: Path, fail: str, kind: str, words: str
) -> None:
    # the warm-up is answered well: it goes wrong while it is measured
    env = {"DOUBLE_FAIL": fail, "DOUBLE_FAIL_AFTER": "4"}
    study = write_study(tmp_path, space=DRAFTED, server__env=env)
    done = autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [t] = trials(tmp_path)
    assert (t["state"], t["failure_kind"], t["objectives"]) == ("failed", kind, {})
    assert words in str(t["failure_reason"])
    assert "\n" not in str(t["failure_reason"])
    assert (t["acceptance_length"], t["acceptance_per_position"]) == (None, [])
    assert not {"tok_s", "p95_ms"} & set(t)
    assert query(tmp_path, "select count(*) from trial_values") == [(0,)]
    assert query(
        tmp_path,
        "select count(*) from autotune_requests where status != 'ok' and"
        " (ttft is not null or output_tokens is not null or prompt_tokens is not null)",
    ) == [(0,)]
    failures = "select count(*) from autotune_requests where status != 'ok' and phase = 'measure'"
    assert query(tmp_path, failures) > [(0,)]


@pytest.mark.double
@pytest.mark.parametrize("fail", ["nan_metrics", "other_metrics", "no_metrics"])
def test_a_trial_without_the_servers_counters_counts_and_says_nothing_of_acceptance(
    tmp_path: Path, fail: str
) -> None:
    study = write_study(tmp_path, space=DRAFTED, server__env={"DOUBLE_FAIL": fail})
    done = autotune("run", str(study), "--trials", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [t] = trials(tmp_path)
    assert t["state"] == "complete"
    assert t["params"]["num_speculative_tokens"] == 3  # type: ignore[index]
    assert set(t["objectives"]) == {"throughput", "p95_latency"}  # type: ignore[call-overload]
    assert (t["acceptance_length"], t["acceptance_per_position"]) == (None, [])
    [(stats,)] = query(tmp_path, "select stats from autotune_launches")
    numbers = {k: v for k, v in json.loads(str(stats)).items() if k not in _NO_NUMBERS}
    assert not any(numbers.values())
    assert "NaN" not in str(stats)
    assert autotune("best", cwd=tmp_path).returncode == 0
