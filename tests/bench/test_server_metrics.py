from __future__ import annotations

import http.server
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from autotune.bench.server_metrics import Counters, difference, parse, scrape
from autotune.errors import FailureKind, MeasureError


def page(scale: int = 1, engines: int = 1) -> str:
    """A page as vLLM writes it: prometheus_client counters with model and engine labels."""
    registry = CollectorRegistry()
    labels = ["model_name", "engine"]
    counters = {
        "vllm:spec_decode_num_drafts": 100,
        "vllm:spec_decode_num_draft_tokens": 300,
        "vllm:spec_decode_num_accepted_tokens": 90,
        "vllm:num_preemptions": 2,
        "vllm:prefix_cache_queries": 640,
        "vllm:prefix_cache_hits": 16,
    }
    per_position = Counter(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "x",
        [*labels, "position"],
        registry=registry,
    )
    gauge = Gauge("vllm:kv_cache_usage_perc", "x", labels, registry=registry)
    for name, value in counters.items():
        counter = Counter(name, "x", labels, registry=registry)
        for engine in range(engines):
            counter.labels("m", str(engine)).inc(value * scale)
    for engine in range(engines):
        gauge.labels("m", str(engine)).set(0.5)
        for position, value in enumerate((60, 20, 10)):
            per_position.labels("m", str(engine), str(position)).inc(value * scale)
    return generate_latest(registry).decode()


def test_counters_are_read_and_engines_added_up() -> None:
    counters = parse(page(engines=2))
    assert counters.values["vllm:spec_decode_num_drafts_total"] == 200
    assert counters.values["vllm:num_preemptions_total"] == 4
    assert counters.accepted_per_position == (120, 40, 20)
    assert not [name for name in counters.values if "kv_cache" in name or "created" in name]


def test_difference_of_two_scrapes() -> None:
    stats = difference(parse(page()), parse(page(scale=3)))
    assert (stats.drafts, stats.draft_tokens, stats.accepted_tokens) == (200, 600, 180)
    assert stats.acceptance_length == pytest.approx(1.9)
    assert stats.acceptance_per_position == pytest.approx((0.6, 0.2, 0.1))
    assert stats.preemptions == 4
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (1280, 32)


def test_without_speculation_there_is_no_acceptance() -> None:
    def plain(preemptions: int) -> Counters:
        return parse(
            f"# TYPE vllm:num_preemptions_total counter\nvllm:num_preemptions_total {preemptions}\n"
        )

    stats = difference(plain(1), plain(1))
    assert stats.preemptions == 0  # reported, and it is zero
    assert stats.drafts is None
    assert stats.accepted_tokens is None
    assert stats.acceptance_length is None
    assert stats.acceptance_per_position == ()
    assert stats.prefix_cache_hits is None  # not reported, so unknown


def test_no_draft_between_the_scrapes_is_no_acceptance_length() -> None:
    stats = difference(parse(page()), parse(page()))
    assert stats.drafts == 0
    assert stats.acceptance_length is None
    assert stats.acceptance_per_position == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1.0])
def test_nan_and_backwards_are_unknown(bad: float) -> None:
    name = "vllm:spec_decode_num_drafts_total"
    before, after = parse(page()), parse(page(scale=2))
    stats = difference(before, Counters({**after.values, name: bad}, after.accepted_per_position))
    assert stats.drafts is None
    assert stats.acceptance_length is None
    assert stats.acceptance_per_position == ()
    assert stats.draft_tokens == 300  # the others are as they were
    stats = difference(before, Counters(after.values, (bad, 40, 20)))
    assert stats.acceptance_per_position == ()
    assert stats.acceptance_length == pytest.approx(1.9)


def test_positions_that_do_not_fit_are_unknown() -> None:
    before, after = parse(page()), parse(page(scale=2))
    shorter = Counters(after.values, after.accepted_per_position[:2])
    assert difference(before, shorter).acceptance_per_position == ()
    gap = "\n".join(line for line in page().splitlines() if 'position="1"' not in line) + "\n"
    assert parse(gap).accepted_per_position == ()


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server, in a thread, that answers by this handler."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            return

    with serving(Handler) as url:
        yield url


def test_scrape_over_http() -> None:
    with answering(200, page()) as url:
        assert scrape(url, "k") == parse(page())
    with answering(404, "") as url:
        assert scrape(url, "k") == Counters({}, ())


@pytest.mark.parametrize(("status", "body"), [(500, "x"), (200, "<html>not {metrics")])
def test_a_page_that_cannot_be_read_is_a_measure_error(status: int, body: str) -> None:
    with answering(status, body) as url, pytest.raises(MeasureError) as e:
        scrape(url, "k")
    assert e.value.kind is FailureKind.REQUESTS
    assert "/metrics" in e.value.reason
    assert "\n" not in e.value.reason


def test_nobody_answers() -> None:
    with answering(200, "") as url:
        pass
    with pytest.raises(MeasureError, match="/metrics"):
        scrape(url, "k")


# -- several servers, and others ---------------------------------------------------------------


def test_what_an_api_server_has_not_written_yet_was_zero() -> None:
    """One of several API servers has its counters on the common page after its first request."""
    empty = "# TYPE vllm:num_preemptions_total counter\nvllm:num_preemptions_total 0\n"
    stats = difference(parse(empty), parse(page()))
    assert (stats.drafts, stats.accepted_tokens, stats.preemptions) == (100, 90, 2)
    assert stats.acceptance_per_position == pytest.approx((0.6, 0.2, 0.1))
    nothing = difference(parse(""), parse(page()))  # that was no page of vLLM
    assert nothing.drafts is None
    assert nothing.acceptance_per_position == ()


def test_engines_of_one_server_are_added_up_in_the_difference() -> None:
    stats = difference(parse(page(engines=4)), parse(page(scale=2, engines=4)))
    assert (stats.drafts, stats.preemptions) == (400, 8)
    assert stats.acceptance_per_position == pytest.approx((0.6, 0.2, 0.1))


def test_names_of_models_may_have_slashes_and_quotes() -> None:
    for name in ("org/model", "/data/models/a b", "org/model:v1,other", 'a"b'):
        registry = CollectorRegistry()
        counter = Counter("vllm:generation_tokens", "x", ["model_name"], registry=registry)
        counter.labels(name).inc(7)
        assert (
            difference(
                Counters({"vllm:generation_tokens_total": 0}, ()),
                parse(generate_latest(registry).decode()),
            ).generated
            == 7
        )


def test_two_servers_behind_one_proxy_are_not_compared() -> None:
    def started(at: int) -> Counters:
        head = f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {at}\n"
        return parse(head + page(scale=at))

    assert difference(started(1), started(1)).drafts == 0
    stats = difference(started(1), started(2))
    assert stats.drafts is None
    assert stats.unknown is not None
    assert "two processes" in stats.unknown


@pytest.mark.parametrize(
    ("names", "whose"),
    [
        (("sglang:num_running_reqs", "sglang:token_usage"), "SGLang"),
        (("llamacpp:prompt_tokens_total",), "llama.cpp"),
        (("tgi_request_count", "tgi_batch_current_size"), "TGI"),
        (("envoy_cluster_upstream_rq", "process_open_fds"), "Envoy"),
        (("litellm_requests_metric_total",), "LiteLLM"),
        (("mine_up", "mine_requests_total"), "'mine'"),
    ],
)
def test_a_page_of_somebody_else_says_whose(names: tuple[str, ...], whose: str) -> None:
    text = "".join(f"# TYPE {n} gauge\n{n} 1\n" for n in names)
    stats = difference(parse(text), parse(text))
    assert stats.unknown is not None
    assert whose in stats.unknown
    assert (stats.drafts, stats.speculates) == (None, None)


def test_whether_a_server_speculates() -> None:
    plain = "# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total 5\n"
    assert difference(parse(plain), parse(plain)).speculates is False
    assert difference(parse(plain), parse(page() + plain)).speculates is True
    assert difference(parse(page()), parse(page())).speculates is None  # no vLLM writes this


def test_a_server_without_statistics_is_not_somebody_else() -> None:
    # as with --disable-log-stats
    text = (
        "# TYPE python_info gauge\npython_info 1\n# TYPE http_requests_total counter\n"
        "http_requests_total 5\n# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info 1\n"
    )
    stats = difference(parse(text), parse(text))
    assert (stats.unknown, stats.drafts, stats.speculates) == (None, None, None)
