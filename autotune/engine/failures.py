"""Infer why a server failed from its log and exit code.

Three things tell it, in this order: errors of a model hub (:mod:`hub_errors`), texts that decide by
themselves (:mod:`failure_rules`), and what vLLM raised, by place and words (:mod:`refusals`). Only
lines that report an error count, because vLLM and its libraries warn with the same words
(:mod:`log_lines`). What was reported before a server was up did not keep it from that, and what its
API server says of requests after that is not its end.

Memory can run out in any stage. The functions in the traceback say in which one. Without a
traceback (the kernel ends a process without a message), vLLM's last line that names a stage does.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence, Set
from dataclasses import dataclass

from autotune.engine.failure_rules import LAST_RULES, RULES, Rule
from autotune.engine.hub_errors import hub_error
from autotune.engine.log_lines import RAISED, Line, Raised, raised, read
from autotune.engine.refusals import in_draft, kind_of
from autotune.errors import FailureKind, LeastBudget

MAX_EVIDENCE = 8  # lines
MAX_WIDTH = 400  # characters of each

_FRAME = re.compile(r'^\s*File ".+", line \d+, in (\w+)')
# errors that only report that another process had one
_WRAPPER = re.compile(
    r"See root cause above|See stack trace for root cause|EngineDeadError|EngineCore failed to|"
    r"KeyboardInterrupt|WorkerProc failed to start|RuntimeError: cancelled|SystemExit|"
    r"See stack trace \(above\) for the root cause|check the stack trace above for the root|"
    r"Worker proc \S+ died unexpectedly, shutting|ray\.exceptions\.\w*ActorDied"
)
# … and those of them that are all there is if the other process was killed
_BEREFT = re.compile(
    r"EngineDeadError|Engine core initialization failed|WorkerProc initialization failed"
)
# lines that vLLM logs at level ERROR around the cause
_AROUND = re.compile(
    r"^(?:\s|Traceback|Dumping |EngineCore encountered|AsyncLLM output_handler|"
    r"Error in [\w ]+ generator|$)"
)
# lines that Python and nanobind print after the end
_NOISE = re.compile(r"Warning: |warnings\.warn|nanobind|^ - (?:leaked|\.\.\.)|^\s*$")


@dataclass(frozen=True)
class Cause:
    """Classification of a failure.

    Attributes:
        kind: Kind of the failure.
        reason: Reason in one line.
        evidence: Lines of the log that show it, oldest first, at most :data:`MAX_EVIDENCE`.
        least: Bound of MNBT that vLLM stated; None: it stated none.
    """

    kind: FailureKind
    reason: str
    evidence: tuple[str, ...]
    least: LeastBudget | None = None


@dataclass(frozen=True)
class _Stage:
    """A part of a server's life in which memory can run out."""

    kind: FailureKind
    when: str
    functions: frozenset[str]  # names of functions, one of which is in the traceback
    line: re.Pattern[str]  # beginning of a line that vLLM prints when the stage is reached


def _stage(kind: FailureKind, when: str, functions: str, line: str) -> _Stage:
    return _Stage(kind, when, frozenset(functions.split()), re.compile(line))


# The functions are those of vLLM's workers and model runners (GPU, GPU V2 and CPU). A traceback can
# have functions of several stages, for example in the trial capture before the KV cache is sized:
# the first stage of this table wins.
_STAGES = (
    _stage(
        FailureKind.OOM_CAPTURE,
        "while capturing CUDA graphs",
        "capture_model profile_cudagraph_memory",
        r"Capturing CUDA graphs|Profiling CUDA graph memory",
    ),
    _stage(
        FailureKind.OOM_LOAD,
        "before the weights were loaded",
        "init_device",
        r"Initializing a V1 LLM",
    ),
    _stage(
        FailureKind.OOM_LOAD,
        "while loading the weights",
        "load_model",
        r"Starting to load model|Loading (?:model from scratch|drafter|weights|\w+ checkpoint)",
    ),
    _stage(
        FailureKind.KV_CACHE,
        "while trying a full batch, to see what is left for the KV cache",
        "determine_available_memory profile_run",
        r"Model loading took|Warming up model for the compilation",
    ),
    _stage(
        FailureKind.KV_CACHE,
        "while allocating the KV cache",
        "initialize_kv_cache initialize_kv_cache_tensors allocate_kv_cache",
        r"Available KV cache memory|\w+ KV cache size|(?:Explicitly|Auto) set .* for KV cache",
    ),
    _stage(
        FailureKind.OOM,
        "while warming up",
        "compile_or_warm_up_model warmup_kernels",
        r"Compile and warming up model|Graph capturing finished|init engine \(",
    ),
    _stage(
        FailureKind.OOM,
        "while serving",
        "run_busy_loop execute_model sample_tokens",
        r"INFO:\s+Application startup complete",
    ),
)


@dataclass(frozen=True)
class _Error:
    """A line that reports an error."""

    text: str  # without process name and header
    logged: bool  # whether it was logged as an error
    at: int  # index in the log


# the text within pydantic's own words
_PYDANTIC = re.compile(r"^\s*(?P<kind>Value error|Assertion failed), (?P<text>.*)$")
_INPUT = re.compile(r" \[type=\w+, input_value=.*$")
# lines of a tool's output that say what is wrong, and those that only say that something is
_TELLING = re.compile(
    r"(?i)\bfatal\b|\berror\b:|not found|not defined|no such file|undefined|cannot find|"
    r"unsupported|is not supported|invalid|permission denied"
)
_EMPTY = re.compile(
    r"(?i)^(?:\w*:? ?build stopped|FAILED|ninja: |make|.*returned non-zero exit status)|stderr:?$"
)
_HINTS = {
    7: ", as when shared memory (/dev/shm) is full: --ipc=host or --shm-size of a container",
    9: ", as by the kernel or a container's limit where memory ends",
}
_EXITS = {125: "Docker's own error", 126: "cannot be run", 127: "not found"}
# how a process that does not end by a Python exception says why
_LAST_WORDS = re.compile(r"\s*what\(\):|terminate called|Fatal |fatal error|FATAL|\S+: error: ")
_UP = re.compile(r"Application startup complete")
# Frames of an API server that answers requests, and those of everything else
_ANSWERS = re.compile(r"^entrypoints/")
_STARTS = re.compile(r"^(?:v1/(?:engine/core\.py|worker/|executor/)|worker/|executor/|config/)")
_STARTING = frozenset(
    {"run_server", "run_server_worker", "build_async_engine_client", "create_engine_config",
     "run_headless", "run_multi_api_server", "setup_server"}
)  # fmt: skip
_ADDRESS = re.compile(r"[Ss]tarting vLLM (?:API )?server.* on http://(?P<address>\S+:\d+)")
_PORT = re.compile(r"'?port'?[:=] ?(?P<port>\d+)")


def _errors(lines: Sequence[Line]) -> list[_Error]:
    """Return the lines that report errors.

    The last words of a process and the output of libraries have no header. Lines of source code in
    a traceback are left out: ``raise SomeError(`` is not what was raised.
    """
    return [
        _Error(line.text, line.level is not None, at)
        for at, line in enumerate(lines)
        if not line.warns and not line.text.startswith("    ") and not _FRAME.match(line.text)
    ]


def _stage_at(lines: Sequence[Line], at: int) -> _Stage | None:
    """Return the stage in which the error in line ``at`` was raised.

    The traceback that ends there decides. If it does not, a later one does: the cause's own begins
    only where it was caught, but that of its consequence is complete. Otherwise the last line
    before the error decides.
    """
    process = lines[at].process
    functions: set[str] = set()
    for line in reversed(lines[:at]):
        if line.process == process:  # other processes write in between
            if not line.text.startswith("  "):
                break
            functions.update(_FRAME.findall(line.text))
    if (stage := _stage_in(functions)) is not None:
        return stage
    functions = set()
    for line in lines[at + 1 :]:
        if line.text.startswith("Traceback"):
            if (stage := _stage_in(functions)) is not None:
                return stage
            functions = set()
        functions.update(_FRAME.findall(line.text))
    return _stage_in(functions) or _last_stage(lines[:at])


def _stage_in(functions: Set[str]) -> _Stage | None:
    return next((stage for stage in _STAGES if stage.functions & functions), None)


def _last_stage(lines: Sequence[Line]) -> _Stage | None:
    """Return the last stage that vLLM logged."""
    for line in reversed(lines):
        if line.level in {None, "INFO"}:
            for stage in _STAGES:
                if stage.line.match(line.text) is not None:
                    return stage
    return None


def classify(
    log: Sequence[str],
    *,
    exit_code: int | None,
    default: FailureKind,
    reason: str,
    oom_killed: bool = False,
    up: bool = False,
) -> Cause:
    """Return kind, sentence and evidence of a failure.

    Args:
        log: Lines of the server's log, oldest first.
        exit_code: Exit code of the server's first process, negative for a signal; None: it runs.
        default: Kind if nothing tells it.
        reason: Sentence for ``default``, without the exit code.
        oom_killed: Whether the kernel killed a process for lack of memory while the server ran.
        up: Whether the server was up, for a log whose beginning is not at hand.
    """
    lines = read(log)
    found = _Found(lines, up)
    if (cause := _by_rule(found, RULES)) is not None:
        return cause
    if (cause := _by_hub(found, log)) is not None:
        return cause
    if (cause := _by_refusal(found)) is not None:
        return cause
    if exit_code in _EXITS and (cause := _by_rule(found, LAST_RULES)) is not None:
        return cause
    if oom_killed:
        stage = _last_stage(lines)
        return Cause(
            FailureKind.OOM if stage is None else stage.kind,
            f"the kernel killed it{'' if stage is None else f' {stage.when}'}: "
            "the machine is out of memory",
            found.evidence(found.bereft),
        )
    if default is FailureKind.TIMEOUT and any(_UP.search(x.text) for x in lines):
        return Cause(
            FailureKind.BAD_CONFIG,
            f"{reason}, although the log says that the server is up: it is not reachable on "
            f"127.0.0.1{_port(lines)}. A container needs --network host, or this port published",
            (),
        )
    return _unexplained(found, exit_code, default, reason)


class _Found:
    """What a log shows of errors."""

    def __init__(self, lines: Sequence[Line], up: bool) -> None:
        self.lines = lines
        since = next((i for i, line in enumerate(lines) if _UP.search(line.text)), None)
        since = 0 if since is None and up else since
        self.reported = [e for e in _errors(lines) if since is None or e.at >= since]
        self.raised = [
            x
            for x in raised(lines)
            if not _WRAPPER.search(lines[x.at].text)
            and (since is None or (x.at >= since and not _of_request(x)))
        ]
        self.errors = [e.text for e in self.reported]
        self.began = any(line.own for line in lines)
        self.exceptions = [text for x in self.raised for text in (lines[x.at].text, *x.more)]
        self.roots = self._roots()
        bereft = (i for i, line in enumerate(self.errors) if _BEREFT.search(line))
        self.bereft = None if self.roots else next(bereft, None)

    def _roots(self) -> list[int]:
        """Return the indices of the errors that may be the cause: raised, else logged ones."""
        at = {x.at for x in self.raised}
        return [i for i, e in enumerate(self.reported) if e.at in at] or [
            i
            for i, e in enumerate(self.reported)
            if e.logged and not _AROUND.match(e.text) and not _WRAPPER.search(e.text)
        ]

    def texts(self, rule: Rule) -> list[str]:
        """Return the texts that a rule is tried on."""
        if rule.anywhere:
            return self.errors
        if self.exceptions:
            failed = rule.after is not None and any(map(rule.after.search, self.exceptions))
            return [*self.exceptions, *self.errors] if failed else self.exceptions
        # vLLM and its libraries report errors that they can do without; last words have no level
        words = [e.text for e in self.reported if not e.logged]
        return [x for x in words if _LAST_WORDS.match(x)] if self.began else words

    def index(self, at: int) -> int:
        """Return the index of the error in a line of the log."""
        return next(i for i, e in enumerate(self.reported) if e.at == at)

    @property
    def root(self) -> Raised | None:
        """First exception that is not about another process."""
        return self.raised[0] if self.raised else None

    def evidence(self, hit: int | None, more: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the line that decided, the first error that was raised, and what explains it."""
        if hit is None and not self.roots and self.bereft is None and not more:
            lines = [x for x in self.errors if not _NOISE.search(x)][-MAX_EVIDENCE:]
        else:
            lines = [*self._lines(hit), *more]
        unique = dict.fromkeys(_cut(line.strip()) for line in lines)
        return tuple(unique)[:MAX_EVIDENCE]

    def _lines(self, hit: int | None) -> list[str]:
        wanted: list[int] = []
        for i in [*([] if hit is None else [hit]), *self.roots[:1]]:
            wanted.append(i)
            if self.errors[i].startswith(" ") and i > 0 and RAISED.match(self.errors[i - 1]):
                wanted.append(i - 1)  # pydantic: the error's name, then an indented line of text
            if " validation error" in self.errors[i]:
                wanted.append(i + 1)
        return [self.errors[i] for i in sorted(set(wanted)) if i < len(self.errors)]


def _of_request(one: Raised) -> bool:
    """Return whether an API server raised an exception while it answered a request."""
    files = [f.in_vllm for f in one.frames if f.in_vllm is not None]
    return (
        any(map(_ANSWERS.match, files))
        and not any(map(_STARTS.match, files))
        and not one.functions & _STARTING
    )


def _by_rule(found: _Found, rules: Sequence[Rule]) -> Cause | None:
    """Return the verdict of the first rule that matches; None: none does."""
    whole = "\n".join(line.text for line in found.lines)
    for rule in rules:
        if found.began and not rule.begun:
            continue
        texts = found.texts(rule)
        if rule.warnings:
            texts = [line.text for line in found.lines]
        match = next((m for m in map(rule.pattern.search, texts) if m is not None), None)
        if match is None:
            continue
        context = None if rule.context is None else rule.context.search(whole)
        if rule.context is not None and context is None:
            continue
        groups = {
            k: v or "?" for m in (match, context) if m is not None for k, v in m.groupdict().items()
        }
        hit = next((i for i, e in enumerate(found.errors) if e == match.string), None)
        stage = None
        if "{when}" in rule.sentence and hit is not None:
            stage = _stage_at(found.lines, found.reported[hit].at)
        when = "" if stage is None else f" {stage.when}"
        line = _short(match.string)
        return Cause(
            rule.kind if stage is None else stage.kind,
            _cut(rule.sentence.format(**{**groups, "when": when, "line": line})),
            found.evidence(hit, () if hit is not None else (match.string,)),
            rule.bound(groups),
        )
    return None


def _by_hub(found: _Found, log: Sequence[str]) -> Cause | None:
    """Return the verdict of an error of a model hub; None: there is none."""
    error = hub_error(found.raised, "\n".join(log))
    if error is None:
        return None
    evidence = found.evidence(found.index(error.at), error.more)
    return Cause(FailureKind.MODEL_MISSING, _cut(error.reason), evidence)


def _by_refusal(found: _Found) -> Cause | None:
    """Return the verdict of what vLLM raised in its own words; None: it refused nothing."""
    for one in found.raised:
        one, text = _words(one)
        if (kind := kind_of(one, text)) is None:
            continue
        shown = text or _frame_words(one)
        if kind is FailureKind.DRAFT_MISMATCH:
            sentence = f"the draft does not fit its target or this vLLM: {shown}"
            if in_draft(one) and one.name == "KeyError":
                sentence = f"the draft's weights do not fit its configuration: it has no {shown}"
        else:
            sentence = f"vLLM rejected the configuration: {shown}"
        more = () if text else (_frame_words(one),)
        return Cause(kind, _cut(sentence), found.evidence(found.index(one.at), more))
    return None


def _words(one: Raised) -> tuple[Raised, str]:
    """Return an exception and its text in one line, without pydantic's words around it."""
    for i, line in enumerate(one.more):
        if (inner := _PYDANTIC.match(line)) is not None:
            name = "ValueError" if inner["kind"] == "Value error" else "AssertionError"
            texts = [inner["text"]]
            if not _INPUT.search(inner["text"]):
                texts += one.more[i + 1 : i + 6]
            words = _INPUT.sub("", " ".join(" ".join(texts).split()))
            return Raised(one.at, name, words, (), one.frames), words
    if one.name in {"ValidationError"} and one.more:
        words = " ".join(_INPUT.sub("", " ".join(one.more[:2])).split())
        return one, words
    return one, " ".join(" ".join((one.text, *one.more[:6])).split())


def _frame_words(one: Raised) -> str:
    """Return where an exception without a text was raised: file, line, function, code."""
    place = one.frames[-1]
    file = f"vllm/{place.in_vllm}" if place.in_vllm is not None else place.file
    code = f": {place.code}" if place.code else ""
    return f"{one.name} in {file}:{place.line}, {place.function}{code}"


def _telling(one: Raised) -> tuple[str, ...]:
    """Return the lines of a tool's output in an exception's text that say what is wrong."""
    lines = [x for x in one.more if _TELLING.search(x) and not _EMPTY.search(x.strip())]
    return tuple(lines[:3])


def _unexplained(found: _Found, exit_code: int | None, default: FailureKind, reason: str) -> Cause:
    """Return a failure of which only the last words and the exit code are known."""
    more: tuple[str, ...] = ()
    said = ""
    if found.roots:
        said = f": {found.errors[found.roots[0]]}"
        one = found.root
        if one is not None:
            more = _telling(one)
            said += f" {more[0].strip()}" if more else ""
            if not one.text and not one.more and one.frames:
                said = f": {_frame_words(one)}"
                more = (_frame_words(one),)
    elif found.bereft is not None:
        said = ": one of its processes ended without a word, as by SIGKILL"
    ended = _ended(exit_code)
    text = f"{reason} ({ended}{said})" if ended else f"{reason}{said}"
    return Cause(default, _cut(text), found.evidence(found.bereft, more))


def _ended(exit_code: int | None) -> str:
    if exit_code is None:
        return ""
    if exit_code in _EXITS:
        return f"exit code {exit_code}, {_EXITS[exit_code]}"
    number = -exit_code if exit_code < 0 else exit_code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"exit code {exit_code}" if exit_code >= 0 else f"ended by signal {-exit_code}"
    if exit_code < 0:
        return f"ended by {name}"
    return f"ended by {name}, exit code {exit_code} = 128 + {number}{_HINTS.get(number, '')}"


def _port(lines: Sequence[Line]) -> str:
    """Return the port that a server says that it listens on, after a colon; empty: it does not."""
    for line in reversed(lines):
        if (found := _ADDRESS.search(line.text)) is not None:
            return ":" + found["address"].rpartition(":")[2]
    found = next((m for m in (_PORT.search(x.text) for x in lines) if m is not None), None)
    return "" if found is None else f":{found['port']}"


def _short(line: str) -> str:
    """Return a line of an error without the name of its class."""
    line = " ".join(line.split())
    found = RAISED.match(line)
    return (found["text"] or line) if found is not None else line


def _cut(text: str) -> str:
    return text if len(text) <= MAX_WIDTH else text[: MAX_WIDTH - 1] + "…"
