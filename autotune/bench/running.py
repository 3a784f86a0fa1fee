"""Whether vLLM throttles a measured load: how many requests its scheduler runs at once.

A closed loop keeps its concurrency in the server. vLLM may run fewer of them and let the others
wait: for ``max_num_active_seqs``, which 0.33 lowers on its own, for lack of KV cache, or because a
step's batch budget is used up. The numbers are then those of another load. A thread reads vLLM's
gauges while the measured requests run, and keeps the peak.

The peak counts because the gauge dips: it is set at the end of a step, when the requests that ended
in it are gone and those that take their places have not come (``v1/core/sched/scheduler.py:
make_stats``, ``v1/metrics/loggers.py: record``, the same in 0.24 to 0.33). Where answers are as
short as a step, it may never be full. Therefore a load counts as throttled only if

- no sample reached what was asked for, of at least :data:`FEWEST`, and
- requests waited in the server in at least half of them. A request that takes the place of one that
  ended is not seen to wait: it comes while a step runs, and is scheduled before the next one.

A page of ``/metrics`` takes time from the server that is measured (``benchmarks/scrape_cost.py``).
Therefore the first full sample is the last one, and so is the one from which on it is known that
nothing waits; the two gauges are asked for by name where the server can do that, and later samples
wait in proportion to what one takes.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from autotune.bench.server_metrics import read_page
from autotune.engine.active_requests import Asked
from autotune.errors import MeasureError

FEWEST = 20
"""Fewest samples of which all must be below what was asked for."""

PACE_S = 0.25
"""Seconds between the first samples."""

_SHARE = 0.02  # of the time that later ones may take
_LONGEST_S = 5.0  # between two samples
_LINE = re.compile(rb"^vllm:num_requests_(running|waiting)(\{.*\})? ([0-9.eE+]+)\s*$", re.MULTILINE)
_BY_NAME = "/metrics/?name[]=vllm:num_requests_running&name[]=vllm:num_requests_waiting"


@dataclass(frozen=True)
class Gauges:
    """Requests in a server at one moment.

    Attributes:
        running: Number of running requests of each engine, at least one number.
        waiting: Number of waiting requests of all engines; None: unknown.
    """

    running: tuple[int, ...]
    waiting: int | None


@dataclass(frozen=True)
class AtOnce:
    """Requests that ran at once while a load was measured.

    Attributes:
        asked: Number of requests that the load and ``max_num_seqs`` ask for.
        peak: Largest number that was seen; None: none was.
        samples: Number of times that the server was asked.
        throttled: Whether the peak stayed below ``asked``; None: too little was seen.
    """

    asked: int
    peak: int | None
    samples: int
    throttled: bool | None


def parse_gauges(page: bytes) -> Gauges | None:
    """Return the gauges of a page in Prometheus' text format; None: it has none, or one twice."""
    found: dict[str, dict[bytes, float]] = {"running": {}, "waiting": {}}
    for name, labels, value in _LINE.findall(page):
        series = found[name.decode()]
        if labels in series:
            return None
        try:
            series[labels] = float(value)
        except ValueError:
            return None
    running, waiting = found["running"], found["waiting"]
    if not running:
        return None
    return Gauges(
        tuple(int(x) for x in running.values()), int(sum(waiting.values())) if waiting else None
    )


class GaugeReader:
    """Reads the gauges of one server.

    A page with nothing else takes the server far less than the whole one. vLLM's ``/metrics`` has
    no such page, but the application that is mounted below it has
    (``entrypoints/serve/instrumentator/metrics.py: attach_router``). Several API servers answer
    with an empty one.

    Args:
        base_url: URL of the server, such as ``http://127.0.0.1:8000``.
        api_key: API key, sent as bearer token.
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        self._urls = [base_url + _BY_NAME, f"{base_url}/metrics"]
        self._api_key = api_key

    def __call__(self) -> Gauges | None:
        """Return the gauges; None: the server has none.

        Raises:
            MeasureError: there was no answer, or an error.
        """
        while True:
            try:
                page = read_page(self._urls[0], self._api_key)
            except MeasureError:
                if len(self._urls) == 1:
                    raise
                page = None
            found = None if page is None else parse_gauges(page)
            if found is not None or len(self._urls) == 1:
                return found
            del self._urls[0]


class RunningWatch:
    """Watches the running requests in a ``with`` block, until it has seen as many as asked for.

    Args:
        asked: Number of requests that should run at once.
        read: Reads the server's gauges.
        pace_s: Seconds between the first samples; None: :data:`PACE_S`.
    """

    def __init__(
        self, asked: Asked, read: Callable[[], Gauges | None], *, pace_s: float | None = None
    ) -> None:
        self._asked = asked
        self._read = read
        self._pace_s = PACE_S if pace_s is None else pace_s
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._peak: int | None = None
        self._samples = 0
        self._waited = 0
        self._full = False
        self._thread = threading.Thread(target=self._watch, name="running", daemon=True)

    def __enter__(self) -> RunningWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(self._pace_s)  # one that waits for an answer ends on its own

    def _watch(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                found = self._read()
            except MeasureError:  # whoever measures sees that, too
                return
            if found is None or self._over.is_set() or self._is_full(found):
                return
            took = time.monotonic() - began
            many = self._samples >= FEWEST
            if many and not self._waits:
                return
            self._over.wait(min(max(self._pace_s, took / _SHARE if many else 0.0), _LONGEST_S))

    def _is_full(self, now: Gauges) -> bool:
        """Note a sample; return whether the server runs as many requests as it should.

        Of several engines, one that runs ``max_num_seqs`` is full: the others have fewer requests
        because of how they are shared out.
        """
        with self._lock:
            self._samples += 1
            self._peak = max(self._peak or 0, sum(now.running))
            self._waited += now.waiting is None or now.waiting > 0
            self._full = (
                sum(now.running) >= self._asked.requests
                or max(now.running) >= self._asked.of_replica
            )
            return self._full

    @property
    def _waits(self) -> bool:
        return 2 * self._waited >= self._samples

    @property
    def seen(self) -> AtOnce:
        """What was seen so far."""
        with self._lock:
            enough = self._samples >= FEWEST and self._waits
            throttled = False if self._full else True if enough else None
            return AtOnce(self._asked.requests, self._peak, self._samples, throttled)
