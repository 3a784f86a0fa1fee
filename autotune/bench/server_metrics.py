"""The server's own counters, before and after: acceptance, preemptions, prefix-cache hits.

Names are those of vLLM's v1 engine (``vllm/v1/metrics/loggers.py``,
``vllm/v1/spec_decode/metrics.py``). The engines of one server are added up. A value is unknown
(None, never 0) if the server does not report it, reports NaN or two values, or counted backwards
because it was restarted. So is an impossible acceptance: more tokens accepted than drafted.

Several API servers (``--api-server-count``) write one common page, on which data-parallel engines
have labels of their own. Two servers behind a proxy do not: their pages do not compare.
"""

from __future__ import annotations

import math
import re
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from autotune.errors import FailureKind, MeasureError
from autotune.serving.interrupts import held_back

_PREFIX = "vllm:"
_DRAFTS = "vllm:spec_decode_num_drafts_total"
_GENERATED = "vllm:generation_tokens_total"
_PER_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
_STARTED = "process_start_time_seconds"
# By the first part of their metrics' names.
_WHOSE = {
    "sglang": "SGLang",
    "llamacpp": "llama.cpp",
    "tgi": "TGI",
    "lmdeploy": "LMDeploy",
    "trtllm": "TensorRT-LLM",
    "envoy": "a proxy (Envoy)",
    "istio": "a proxy (Istio)",
    "nginx": "a proxy (nginx)",
    "traefik": "a proxy (Traefik)",
    "haproxy": "a proxy (HAProxy)",
    "caddy": "a proxy (Caddy)",
    "litellm": "a proxy (LiteLLM)",
}
_TIMEOUT_S = 30.0  # for each read, and for the whole page
_MOST_PAGE = 2**24  # bytes; a real page has some 100 KiB
# The server speaks plain HTTP. Without this, httpx loads all root certificates, which takes 0.1 s.
_NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass(frozen=True)
class Counters:
    """All counters of a server at one moment, each summed over its labels.

    Attributes:
        values: Counters by sample name, such as ``vllm:num_preemptions_total``.
        accepted_per_position: Numbers of draft tokens that were accepted at position 1, 2, … of
            the draft; empty without speculation.
        started: When the process that answered was started, unix time in seconds; None: it does not
            tell, as several API servers of one vLLM do not.
        others: Whose page it is, if it has no counter of vLLM: the first part of its names.
    """

    values: Mapping[str, float]
    accepted_per_position: tuple[float, ...]
    started: float | None = None
    others: str | None = None


@dataclass(frozen=True)
class ServerStats:
    """Changes of the server's counters between two scrapes; None or empty: unknown.

    Attributes:
        drafts: Number of verification steps with a draft.
        draft_tokens: Number of drafted tokens.
        accepted_tokens: Number of drafted tokens that the target accepted.
        acceptance_length: Tokens per verification step, 1 + accepted / drafts.
        acceptance_per_position: Shares of the drafts whose token at position 1, 2, … was accepted.
        preemptions: Number of requests that were put back for lack of KV cache.
        prefix_cache_queries: Number of prompt tokens that were looked up in the prefix cache.
        prefix_cache_hits: Number of prompt tokens that were found there.
        generated: Number of generated tokens.
        speculates: Whether the server has the counters of speculation, next to vLLM's others.
        unknown: Why nothing is known, if something else than one vLLM answers ``/metrics``.
    """

    drafts: int | None
    draft_tokens: int | None
    accepted_tokens: int | None
    acceptance_length: float | None
    acceptance_per_position: tuple[float, ...]
    preemptions: int | None
    prefix_cache_queries: int | None
    prefix_cache_hits: int | None
    generated: int | None = None
    speculates: bool | None = None
    unknown: str | None = None


def scrape(base_url: str, api_key: str) -> Counters:
    """Read ``/metrics``; a server without that endpoint (404) has empty counters.

    Args:
        base_url: URL of the server, such as ``http://127.0.0.1:8000``.
        api_key: API key, sent as bearer token.

    Raises:
        MeasureError: there was no answer, or it is not Prometheus' text format.
    """
    page = read_page(f"{base_url}/metrics", api_key)
    if page is None:
        return Counters({}, ())
    try:
        return parse(page.decode(errors="replace"))
    except ValueError as e:
        raise _no_page(f"{base_url}/metrics", e) from e


def read_page(url: str, api_key: str) -> bytes | None:
    """Return a page of a server; None: there is none (404).

    Args:
        url: Address of the page.
        api_key: API key, sent as bearer token.

    Raises:
        MeasureError: there was no answer, or an error.
    """
    import httpx

    page = bytearray()
    end = time.monotonic() + _TIMEOUT_S
    try:
        with (
            held_back(),
            httpx.stream(
                "GET",
                url,
                headers={"Authorization": f"Bearer {api_key}"},
                timeout=_TIMEOUT_S,
                trust_env=False,
                verify=_NO_CERTIFICATES,
            ) as response,
        ):
            if response.status_code == 404:
                return None
            response.raise_for_status()
            for piece in response.iter_bytes():
                page += piece
                if len(page) > _MOST_PAGE:
                    raise ValueError(f"a page of more than {_MOST_PAGE >> 20} MiB")
                if time.monotonic() > end:
                    raise ValueError(f"a page without an end for {_TIMEOUT_S:g} s")
        return bytes(page)
    except httpx.TimeoutException as e:
        words = f"GET {url}: no answer within {_TIMEOUT_S:g} s"
        raise MeasureError(FailureKind.HANG, words) from e
    except (httpx.HTTPError, ValueError) as e:
        raise _no_page(url, e) from e


def _no_page(url: str, error: Exception) -> MeasureError:
    words = " ".join((str(error) or type(error).__name__)[:1000].split())[:300]
    words = "".join(c if c.isprintable() else "\ufffd" for c in words)
    return MeasureError(FailureKind.REQUESTS, f"GET {url}: {words}")


def parse(text: str) -> Counters:
    """Return the counters of a page in Prometheus' text format.

    Raises:
        ValueError: it is not in that format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    values: dict[str, float] = defaultdict(float)
    positions: dict[str, float] = defaultdict(float)
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    started: float | None = None
    others: Counter[str] = Counter()
    try:
        for family in text_string_to_metric_families(text):
            others[_owner(family.name)] += 1
            for sample in family.samples:
                if sample.name == _STARTED:
                    started = sample.value
                if not (sample.name.startswith(_PREFIX) and sample.name.endswith("_total")):
                    continue
                series = (sample.name, tuple(sorted(sample.labels.items())))
                value = sample.value
                # of two values either may be wrong, and no counter is below 0
                if family.type != "counter" or series in seen or value < 0:
                    value = math.nan
                seen.add(series)
                if sample.name == _PER_POSITION:
                    positions[sample.labels.get("position", "")] += value
                else:
                    values[sample.name] += value
    except (LookupError, TypeError, AttributeError, OverflowError) as e:  # a broken line
        raise ValueError(f"not Prometheus' text format ({e})") from e
    names = [str(i) for i in range(len(positions))]
    whole = set(positions) == set(names)
    del others[""]
    return Counters(
        dict(values),
        tuple(positions[i] for i in names) if whole else (),
        started,
        None if values or not others else others.most_common(1)[0][0],
    )


def _owner(name: str) -> str:
    """Return whose metric it is by the first part of its name; empty: vLLM's, or Python's own."""
    first = re.split("[:_]", name, maxsplit=1)[0]
    return "" if first in {"python", "process", "http", "go", "vllm"} else first


def difference(before: Counters, after: Counters) -> ServerStats:
    """Return the changes of the counters from ``before`` to ``after``.

    A counter that a page of vLLM did not have yet was 0: one of several API servers writes its own
    when it has served its first request.
    """
    if (unknown := _unknown(before, after)) is not None:
        return ServerStats(None, None, None, None, (), None, None, None, unknown=unknown)
    missing = 0.0 if before.values else math.nan

    def grown(name: str) -> int | None:
        key = f"{_PREFIX}{name}_total"
        return _grown(before.values.get(key, missing), after.values.get(key, math.nan))

    drafts = grown("spec_decode_num_drafts")
    accepted = grown("spec_decode_num_accepted_tokens")
    per_position: list[int | None] = []
    earlier = before.accepted_per_position
    if before.values and _DRAFTS not in before.values:
        earlier = (0.0,) * len(after.accepted_per_position)
    if len(earlier) == len(after.accepted_per_position):
        pairs = zip(earlier, after.accepted_per_position, strict=True)
        per_position = [_grown(a, b) for a, b in pairs]
    drafted = grown("spec_decode_num_draft_tokens")
    can_be = accepted is not None and (drafted is None or accepted <= drafted)
    shares = tuple(
        n / drafts for n in per_position if drafts and n is not None and 0 <= n <= drafts
    )
    return ServerStats(
        drafts=drafts,
        draft_tokens=drafted,
        accepted_tokens=accepted,
        acceptance_length=1 + (accepted or 0) / drafts if drafts and can_be else None,
        acceptance_per_position=shares if len(shares) == len(per_position) else (),
        preemptions=grown("num_preemptions"),
        prefix_cache_queries=grown("prefix_cache_queries"),
        prefix_cache_hits=grown("prefix_cache_hits"),
        generated=grown("generation_tokens"),
        speculates=_DRAFTS in after.values if _GENERATED in after.values else None,
    )


def _unknown(before: Counters, after: Counters) -> str | None:
    """Return why two pages cannot be compared; None: they can."""
    if after.others is not None:
        whose = _WHOSE.get(after.others, f"{after.others!r}")
        return f"/metrics is a page of {whose}, without a counter of vLLM"
    if None not in {before.started, after.started} and before.started != after.started:
        return "two processes answered /metrics in turn, such as servers behind one proxy"
    return None


def _grown(before: float, after: float) -> int | None:
    change = after - before
    # above 2**53 a counter no longer counts single things
    return round(change) if 0 <= change < 2**53 and after < 2**53 else None
