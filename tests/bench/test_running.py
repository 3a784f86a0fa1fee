"""Whether a load counts as throttled: by what a server's gauges say while it is measured."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from autotune.bench.running import (
    FEWEST,
    AtOnce,
    GaugeReader,
    Gauges,
    RunningWatch,
    parse_gauges,
)
from autotune.engine.active_requests import Asked
from autotune.errors import FailureKind, MeasureError

PACE_S = 0.001
FULL = Asked(32, 32)


class Server:
    """Gauges of a server, one after the other; the last one lasts."""

    def __init__(self, *gauges: Gauges | None) -> None:
        self.read_count = 0
        self.enough = threading.Event()
        self._gauges = itertools.chain(gauges, itertools.repeat(gauges[-1]))

    def __call__(self) -> Gauges | None:
        self.read_count += 1
        if self.read_count > 2 * FEWEST:
            self.enough.set()
        return next(self._gauges)


def watched(server: Server, asked: Asked = FULL) -> AtOnce:
    """What is seen of a server until it was asked often, or is not asked any more."""
    with RunningWatch(asked, server, pace_s=PACE_S) as watch:
        while not server.enough.wait(0.02) and any(
            t.name == "running" for t in threading.enumerate()
        ):
            pass
    return watch.seen


def one(running: int, waiting: int | None = None) -> Gauges:
    return Gauges((running,), waiting)


def test_a_server_that_never_runs_all_of_them_is_throttled() -> None:
    found = watched(Server(one(15, 16), one(16, 16), one(14, 18), one(15, 17)))
    assert (found.asked, found.peak, found.throttled) == (32, 16, True)
    assert found.samples > FEWEST


def test_one_full_sample_is_enough_and_the_last_one() -> None:
    server = Server(one(31, 0), one(30, 0), one(32, 0), one(16, 16))
    assert watched(server) == AtOnce(32, 32, 3, throttled=False)
    assert server.read_count == 3


def test_a_few_samples_say_nothing() -> None:
    few = [one(16, 16)] * (FEWEST - 1)
    assert watched(Server(*few, None)) == AtOnce(32, 16, FEWEST - 1, throttled=None)
    assert watched(Server(None)) == AtOnce(32, None, 0, throttled=None)


def test_requests_that_do_not_wait_in_the_server_are_not_held_back_by_it() -> None:
    # answers of one step: those that ended are gone, and the next ones are still on their way
    assert watched(Server(one(30, 0))) == AtOnce(32, 30, FEWEST, throttled=None)  # then no more
    assert watched(Server(*[one(30, 1), one(30, 0)] * 2 * FEWEST)).throttled is True
    assert watched(Server(one(16, None))).throttled is True  # it does not say who waits


@pytest.mark.parametrize(
    ("gauges", "throttled"),
    [
        (Gauges((16, 16), 32), True),
        (Gauges((32, 20), 3), False),  # badly shared out, but one is full
        (Gauges((31, 31), 2), True),
        (Gauges((32, 32), 0), False),
    ],
)
def test_replicas(gauges: Gauges, throttled: bool) -> None:
    assert watched(Server(gauges), Asked(64, 32)).throttled is throttled


def test_a_server_that_stops_answering_ends_the_watch() -> None:
    def broken() -> Gauges:
        raise MeasureError(FailureKind.HANG, "no answer")

    with RunningWatch(FULL, broken, pace_s=PACE_S) as watch:
        for thread in threading.enumerate():
            if thread.name == "running":
                thread.join(60)
    assert watch.seen == AtOnce(32, None, 0, throttled=None)


def test_leaving_does_not_wait_for_an_answer() -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow() -> Gauges:
        asked.set()
        answer.wait(60)
        return one(16, 16)

    with RunningWatch(FULL, slow, pace_s=PACE_S) as watch:
        assert asked.wait(60)
    assert watch.seen.samples == 0
    answer.set()


PAGE = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a} b"} 3.0
vllm:num_requests_running{engine="1",model_name="a} b"} 4.0
vllm:num_requests_waiting{engine="0",model_name="a} b"} 1.0
vllm:num_requests_waiting{engine="1",model_name="a} b"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:num_requests_running_more{engine="0"} 9.0
"""


def test_the_gauges_of_a_page() -> None:
    assert parse_gauges(PAGE) == Gauges((3, 4), 1)
    assert parse_gauges(b"vllm:num_requests_running 2\n") == Gauges((2,), None)
    assert parse_gauges(PAGE + PAGE) is None  # two values of one gauge
    assert parse_gauges(b"vllm:num_requests_running NaN\n") is None
    assert parse_gauges(b"vllm:num_requests_running 1e+e\n") is None
    assert parse_gauges(b"other:num_requests_running 2\n") is None
    assert parse_gauges(b"") is None


@contextmanager
def serving(answer: Callable[[str], tuple[int, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A server of pages, with the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, body = answer(self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_is_asked_for_the_gauges_alone_where_it_can_do_that() -> None:
    with serving(lambda path: (200, PAGE)) as (url, asked):
        read = GaugeReader(url, "key")
        assert [read(), read()] == [Gauges((3, 4), 1)] * 2
    assert all(path.startswith("/metrics/?name[]=vllm:num_requests_running&") for path in asked)
    assert len(asked) == 2


@pytest.mark.parametrize("other", [(404, b""), (307, b""), (200, b""), (500, b"broken")])
def test_any_other_server_is_asked_for_the_whole_page(other: tuple[int, bytes]) -> None:
    with serving(lambda path: (200, PAGE) if path == "/metrics" else other) as (url, asked):
        read = GaugeReader(url, "key")
        assert [read(), read()] == [Gauges((3, 4), 1)] * 2
    assert asked[1:] == ["/metrics"] * 2


def test_a_server_without_gauges() -> None:
    with serving(lambda path: (404, b"")) as (url, _):
        assert GaugeReader(url, "key")() is None
    with serving(lambda path: (500, b"")) as (url, _), pytest.raises(MeasureError):
        GaugeReader(url, "key")()
