"""Split the wall time of one launch into stages, from the server's log and autotune's clock.

vLLM's lines carry a stamp of whole seconds (``INFO MM-DD HH:MM:SS [file:line]``, vllm/logger.py)
and, from 0.24 on, the process that wrote them (``(EngineCore pid=7)``, vllm/logger.py too). Some
also state a duration with two or more digits, which then counts. Half a second is added to every
stamp, so a stage between two stamps is right on average, with an error of one second at most.

=============  =================================================================================
``tuner``      autotune's clock: from the end of the launch before, or the start of the run, to the
               start of this one.
``spawn``      autotune's clock: until the supervisor has started the server's first process.
``imports``    The API server up to its first line (entrypoints/openai/api_server.py imports all
               of it before), EngineCore from the API server's last line before it to its own
               first (v1/engine/core.py "Initializing a V1 LLM engine"), a worker from EngineCore's
               last line before it to its own first; the start of those processes included. A GPU
               alone has no worker process.
``weights``    "Model loading took … seconds" (v1/worker/gpu_model_runner.py, v1/worker/gpu/
               model_runner.py). On a CPU, where that is not said, from "Starting to load model"
               (v1/worker/cpu_model_runner.py) to the start of "init engine".
``profile``    "init engine (profile, create kv cache, warmup model) took … s" (v1/engine/core.py)
               without the next two: memory profiling, the KV cache, warm-up of kernels.
``compile``    "torch.compile took … s in total" (compilation/monitor.py; "takes" before 0.19), or
               on a CPU from "Warming up model for the compilation" to "Warming up done" (v1/worker/
               cpu_model_runner.py).
``capture``    "Graph capturing finished in … secs" (v1/worker/gpu_model_runner.py, v1/worker/gpu/
               model_runner.py), whole seconds.
``first``      autotune's client: from /health to the end of the first request.
``warm-up``    autotune's clock: the rest of the warm-up.
``measuring``  autotune's clock.
``stop``       autotune's clock: from SIGTERM to the proof of death.
``other``      Time that no stage above explains: vLLM's checks of its arguments, EngineCore's
               scheduler, the set-up of the HTTP server, waiting for the next check of /health.
=============  =================================================================================

A stage that nothing states is None, never 0. Its time, if it took any, is in ``other``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

STAGES = (
    "tuner",
    "spawn",
    "imports",
    "weights",
    "profile",
    "compile",
    "capture",
    "first",
    "warm-up",
    "measuring",
    "stop",
    "other",
)
_READ_BYTES = 1 << 20  # of a log: all of a start, and the part of a long log that is kept
_ZONES_S = 900  # time zones differ by multiples of it, and years too

_LINE = re.compile(
    r"^(?:\((?P<who>[A-Za-z]+)[\w-]*(?: pid=(?P<pid>\d+))?\) )?"
    r"(?:DEBUG|INFO|WARNING|ERROR) (?P<month>\d\d)-(?P<day>\d\d) "
    r"(?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d) (?:\[[^\]]*\] )?(?P<text>.*)"
)
_NUMBER = r"(\d{1,6}(?:\.\d{1,9})?)"
_LOADED = re.compile(rf"Model loading took .{{1,40}} and {_NUMBER} s")
_COMPILED = re.compile(rf"torch\.compile (?:took|takes) {_NUMBER} s in total")
_CAPTURED = re.compile(rf"Graph capturing finished in {_NUMBER} secs")
_INIT = re.compile(rf"init engine \(profile, create kv cache, warmup model\) took {_NUMBER} s")
_LOADING = "Starting to load model "
_COMPILING, _COMPILED_CPU = "Warming up model for the compilation", "Warming up done"


@dataclass(frozen=True)
class Stages:
    """The stages of one launch.

    Attributes:
        seconds: Seconds by stage; None: unknown. They add up to the wall time from the end of the
            launch before to the end of this one.
        imports: Seconds of the known parts of ``imports``: ``api``, ``engine``, ``worker``.
    """

    seconds: Mapping[str, float | None]
    imports: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Wall time of the launch, seconds."""
        return sum(s for s in self.seconds.values() if s is not None)


class StageClock:
    """Notes when a launch reached each mark, on a clock that nobody can set.

    Args:
        free_since: Value of :func:`time.monotonic` at the end of the launch before.

    Attributes:
        free_since: As the argument.
        marks: Unix times by mark, of the wall clock at the launch's start.
    """

    def __init__(self, free_since: float) -> None:
        self.free_since = free_since
        self._begun = time.monotonic()
        self._wall = time.time()
        self.marks: dict[str, float] = {"begun": self._wall}

    def mark(self, what: str) -> None:
        """Note that a mark is reached now.

        Args:
            what: ``started``, ``healthy``, ``warm``, ``measured``, ``stopping`` or ``ended``.
        """
        self.marks[what] = self._wall + time.monotonic() - self._begun

    @property
    def tuner_s(self) -> float:
        """Seconds between the launch before and this one."""
        return self._begun - self.free_since


@dataclass(frozen=True)
class _Stamped:
    """A line of a log that has a time."""

    who: str  # APIServer, EngineCore, Worker; empty: the line does not say
    pid: str
    at: float  # s, of an unknown time zone
    text: str


def head_of(log: Path) -> list[str]:
    """Return the lines of a server's start; none if the log is gone."""
    try:
        with log.open("rb") as f:
            return f.read(_READ_BYTES).decode(errors="replace").splitlines()
    except OSError:  # somebody removed it
        return []


def stages_of(
    lines: Iterable[str],
    marks: Mapping[str, float],
    *,
    tuner_s: float | None = None,
    first_s: float | None = None,
) -> Stages:
    """Return the stages of one launch.

    Args:
        lines: Lines of the server's log, or of its beginning.
        marks: Unix times: ``begun`` and ``ended``, and those that the launch reached of
            ``started``, ``healthy``, ``warm``, ``measured``, ``stopping``.
        tuner_s: Seconds between the launch before and this one; None: unknown.
        first_s: Seconds from the start of the warm-up to the end of its first request.
    """
    begun, ended = marks["begun"], marks["ended"]
    started, stopping = marks.get("started"), marks.get("stopping", ended)
    healthy, warm = marks.get("healthy"), marks.get("warm")
    seconds: dict[str, float | None] = dict.fromkeys(STAGES)
    seconds["tuner"] = tuner_s
    imports: dict[str, float] = {}
    if started is not None:
        seconds["spawn"] = started - begun
        until = stopping if healthy is None else healthy
        start, imports = _start(_stamped(lines, begun), started, until)
        seconds |= start
    if healthy is not None:
        spent = (stopping if warm is None else warm) - healthy
        if first_s is not None:
            seconds["first"] = min(first_s, spent)
        seconds["warm-up"] = spent - (seconds["first"] or 0.0)
    if warm is not None:
        seconds["measuring"] = marks.get("measured", stopping) - warm
    seconds["stop"] = ended - stopping
    known = sum(s for s in seconds.values() if s is not None)
    seconds["other"] = max(0.0, (tuner_s or 0.0) + ended - begun - known)
    return Stages(seconds, imports)


def _stamped(lines: Iterable[str], begun: float) -> list[_Stamped]:
    """Return the lines that have a stamp, in unix time; the first is not before ``begun``."""
    year = datetime.fromtimestamp(begun, UTC).year
    found = []
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        numbers = (int(match[x]) for x in ("month", "day", "h", "m", "s"))
        try:
            at = datetime(year, *numbers, tzinfo=UTC).timestamp()  # type: ignore[misc, arg-type]
        except ValueError:  # no such day: the line is not vLLM's
            continue
        who = (match["who"] or "").removeprefix("Vllm")
        found.append(_Stamped(who, match["pid"] or "", at + 0.5, match["text"]))
    if not found:
        return []
    # A log does not state its time zone. It begins within a quarter of an hour after the launch.
    zone = -((found[0].at + 1 - begun) // _ZONES_S) * _ZONES_S
    return [_Stamped(x.who, x.pid, x.at + zone, x.text) for x in found]


def _start(
    lines: list[_Stamped], started: float, until: float
) -> tuple[dict[str, float | None], dict[str, float]]:
    """Return the stages between the first process and /health, and the parts of ``imports``."""
    lines = [x for x in lines if x.at < until + 1]  # later lines are not of the start
    between = {
        part: _between(lines, of, started, until)
        for part, of in (
            ("api", ("", "APIServer")),
            ("engine", ("APIServer", "EngineCore")),
            ("worker", ("EngineCore", "Worker")),
        )
    }
    imports = {part: s for part, s in between.items() if s is not None}
    compiled, captured = _stated(lines, _COMPILED), _stated(lines, _CAPTURED)
    if compiled is None:
        compiled = _from_to(lines, _COMPILING, _COMPILED_CPU)
    loaded, init = _stated(lines, _LOADED), _stated(lines, _INIT)
    derived = {}
    if loaded is None and init is not None:
        loading = next((x.at for x in lines if _LOADING in x.text), None)
        ready = next(x.at for x in lines if _INIT.search(x.text)) - init
        if loading is not None:
            derived["weights"] = max(0.0, ready - loading)
    stated = {
        "weights": loaded,
        "profile": None if init is None else max(0.0, init - (compiled or 0) - (captured or 0)),
        "compile": compiled,
        "capture": captured,
    }
    found = {name: s for name, s in stated.items() if s is not None}
    _shrink(imports, derived, until - started - sum(found.values()))
    if imports:
        derived["imports"] = sum(imports.values())
    found |= derived
    total = sum(found.values())
    if total > until - started:  # a log whose times cannot be true
        found = {name: s * (until - started) / total for name, s in found.items()}
    return dict(found), imports


def _between(
    lines: list[_Stamped], of: tuple[str, str], started: float, until: float
) -> float | None:
    """Return the seconds from the last line of one process to the first line of another."""
    before, after = of
    index = next((i for i, x in enumerate(lines) if x.who == after), None)
    if index is None:
        return None
    begun = started
    if before:
        found = [x.at for x in lines[:index] if x.who == before]
        if not found:
            return None
        begun = found[-1]
    return max(0.0, min(lines[index].at, until) - max(begun, started))


def _stated(lines: list[_Stamped], what: re.Pattern[str]) -> float | None:
    """Return the seconds that the log states; of several concurrent processes the slowest."""
    by_process: dict[str, float] = {}
    for x in lines:
        match = what.search(x.text)
        if match is not None:  # a target and a draft have a line each
            by_process[x.pid] = by_process.get(x.pid, 0.0) + float(match[1])
    return max(by_process.values(), default=None)


def _from_to(lines: list[_Stamped], first: str, last: str) -> float | None:
    """Return the seconds between two lines of one process; None if one of them is missing."""
    begun = next((x for x in lines if first in x.text), None)
    ended = begun and next((x for x in lines if last in x.text and x.pid == begun.pid), None)
    return None if begun is None or ended is None else max(0.0, ended.at - begun.at)


def _shrink(imports: dict[str, float], derived: dict[str, float], most: float) -> None:
    """Shorten what was derived from whole seconds, the longest first, until all fits."""
    excess = sum(imports.values()) + sum(derived.values()) - most
    while excess > 0:
        of = max((imports, derived), key=lambda x: max(x.values(), default=0.0))
        name = max(of, key=lambda x: of[x], default=None)
        if name is None or of[name] <= 0:
            return
        taken = min(of[name], excess)
        of[name] -= taken
        excess -= taken
