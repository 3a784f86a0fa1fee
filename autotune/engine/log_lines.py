"""Lines of a server's log: whose they are, how serious, what was raised and where.

Several processes write into one log, each line with its process in front. vLLM's own lines have a
header with level, time and place. Other libraries have headers of their own, in Python's, Google's,
Ray's and other forms; their warnings use the words of errors without being the cause of anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

QUIET = frozenset({"TRACE", "DEBUG", "VERBOSE", "INFO", "NOTICE", "WARNING", "WARN"})
_LEVEL = r"TRACE|DEBUG|VERBOSE|INFO|NOTICE|WARNING|WARN|ERROR|CRITICAL|FATAL"

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PREFIXES = (
    # "(EngineCore_DP0 pid=68)", "(RayWorkerProc pid=773, ip=10.0.0.2)", "(pid=7)"
    re.compile(r"\((?:[\w.:-]+ )?pid=\d+(?:, ip=[\w.:]+)?\) ?"),
    re.compile(r"\((?:raylet|autoscaler|gcs_server)(?:, ip=[\w.:]+)?\) ?"),
    re.compile(r"\[rank\d+\]: ?(?!\[?[VIWEF]\d{4})"),  # torch, of what a process writes at its end
    re.compile(r"[\w.-]+-\d+ +\| "),  # docker compose
)
# "ERROR 11-23 21:52:49 [core.py:1510] text"; before 0.8 "core.py:1510] text"
_HEADER = re.compile(
    r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) (?:\d\d(?:\d\d)?-)?\d\d-\d\d \d\d:\d\d:\d\d"
    r"(?:[.,]\d+)? (?:\[[^\]]*\]|[\w./]+:\d+\]) ?"
)
_OWN = re.compile(
    r"\((?:[\w.:-]+ )?pid=\d+|(?:INFO|WARNING|ERROR) (?:\d{4}-)?\d\d-\d\d |Traceback \("
)
# What collectors of logs write in front of every line: Compose, Kubernetes, journald, …
_COLLECTED = (
    re.compile(r"[\w.-]+ +\| ?"),  # "vllm  | "
    re.compile(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d) (?:std(?:out|err) [FP] )?"
    ),
    re.compile(r"\[pod/\S+\] "),  # kubectl logs --prefix
    # journald: "Nov 30 01:02:03 host vllm[123]: ", also after a time as above
    re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)? \S+ [^\s\[:]+(?:\[\d+\])?: "),
    re.compile(r"[\w.-]+ [\w./-]+\[\d+\]: "),
    re.compile(r"[\w.-]+-[a-z0-9]{5} [\w.-]+ "),  # stern: pod and container
    re.compile(r"\[?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)?\]? "),  # ts, `moreutils`
    re.compile(r" ?\d+: "),  # srun --label
    re.compile(r"\[[\w.-]+\]:? ?"),  # "[vllm] ", torchrun's "[default0]:"
)
_COMMON = 0.6  # share of a log's lines that have what a collector writes
_TIME = r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"
# Headers of other loggers; "level" is a word or its first letter.
_FOREIGN = (
    # Python: "2026-07-06 23:18:23,723 - flashinfer.jit - WARNING - text", in any order; Ray's
    # "2026-07-06 23:18:23,723<tab>WARNING utils.py:597 -- text"; loguru's and brackets
    re.compile(
        rf"[\[(]?{_TIME}[\])]?[\s|:,-]*(?:(?!(?:{_LEVEL})\b)[\[(]?[\w./:<>-]+[\])]?[\s|:,-]+){{0,4}}?"
        rf"[\[(]?(?P<level>{_LEVEL})\b[\])]?[\s|:-]*(?:[\w./]+:\d+ -- )?"
    ),
    # "WARNING:root:text", "WARNING 2026-07-06 …", "[WARNING] text", uvicorn's "INFO:     text"
    re.compile(rf"(?P<level>{_LEVEL}):[\w.]+:"),
    re.compile(rf"(?P<level>{_LEVEL})[ :|-]+{_TIME}[\]\s|:,-]*"),
    re.compile(rf"\[(?P<level>{_LEVEL})\][\s:-]*"),
    re.compile(r"(?P<level>TRACE|DEBUG|INFO|NOTICE|WARNING|WARN)(?::\s+|\s+(?=\S))"),
    # UCX: "[1732931234.123456] [host:123  :0]  file.c:233  UCX  ERROR text"
    re.compile(rf"\[\d+\.\d+\] \[\S+:\d+ *:\S+\] +\S+:\d+ +UCX +(?P<level>{_LEVEL}) +"),
    # glog, absl and torch: "W0706 23:18:23.723 12345 file.cc:88] text", also with "[rank0]:" or "["
    re.compile(r"(?:\[rank\d+\]: ?)?\[?(?P<level>[VIWEF])\d{3,4} \d\d:\d\d:\d\d\S*[^\]]*\] ?"),
    # Ray's C++: "[2026-07-06 23:18:23,723 W 123 456] core_worker.cc:88: text"
    re.compile(rf"\[{_TIME} (?P<level>[DIWEF]) \d+ \d+\] (?:\(\w+\) )?"),
    # TensorFlow: "2026-07-06 23:18:23.723: E external/file.cc:266] text"
    re.compile(rf"{_TIME}: (?P<level>[VIWEF]) \S+:\d+\] "),
    # JSON
    re.compile(rf'\{{.*"(?:level|levelname|severity)": ?"(?P<level>(?i:{_LEVEL}))"'),
)
_LETTERS = {"V": "DEBUG", "D": "DEBUG", "I": "INFO", "W": "WARNING", "E": "ERROR", "F": "FATAL"}
# Lines without a level that warn or show progress: NCCL's own, Python's warnings, tqdm
_WARNS = re.compile(
    r"^\S+:\d+:\d+ \[[-\d]+\] .*?NCCL (?:WARN|INFO|TRACE|VERSION)|^NCCL version |"
    r"^.*?\.py:\d+: \w*Warning: |^\w*Warning: |^\s+warnings\.warn\(|"
    r"^.*?\d+%\|.*\||^.*?\d+% Completed \| "
)
_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)')
# the last line of a traceback: no indent, a dotted name, a colon
RAISED = re.compile(
    r"^(?P<name>(?:[A-Za-z_]\w*\.)*[A-Z]\w*"
    r"(?:Error|Exception|Interrupt|Failure|Exit|NotFound|TimedOut|OutOfMemory)|"
    r"(?:[a-z_]\w*\.)+[A-Z]\w+|Exception|(?:[\w.]*\.)?DeprecationWarning)"
    r"(?:\([\w.]+\))?(?::(?: (?P<text>.*))?)?$"
)
_MARKS = ("Traceback", "The above exception", "During handling of")
_MOST_WORDS = 60  # lines of one exception's text that are read


@dataclass(frozen=True)
class Line:
    """One line of a log.

    Attributes:
        process: Prefixes that name the process; empty: none.
        level: Level of its header, in capitals; None: it has none.
        text: What follows prefixes and header.
        warns: Whether it is less than an error: a warning, information or progress.
        own: Whether it has vLLM's own header.
    """

    process: str
    level: str | None
    text: str
    warns: bool
    own: bool = False


@dataclass(frozen=True)
class Frame:
    """One frame of a traceback: a file with its line, the function, and the code if it is shown."""

    file: str
    line: int
    function: str
    code: str

    @property
    def in_vllm(self) -> str | None:
        """Path below ``vllm/``; None: the file is not vLLM's."""
        _, found, path = self.file.rpartition("/vllm/")
        return path if found else None


@dataclass(frozen=True)
class Raised:
    """An exception that the log shows.

    Attributes:
        at: Index of its line.
        name: Name of its class, without modules.
        text: First line of its text; empty: it has none.
        more: Further lines of its text.
        frames: Frames of its traceback, outermost first; empty: the log shows none.
    """

    at: int
    name: str
    text: str
    more: tuple[str, ...]
    frames: tuple[Frame, ...]

    @property
    def functions(self) -> frozenset[str]:
        """Names of the functions of its traceback."""
        return frozenset(f.function for f in self.frames)

    @property
    def innermost(self) -> Frame | None:
        """Last frame in vLLM's own code."""
        return next((f for f in reversed(self.frames) if f.in_vllm is not None), None)


def read_line(line: str) -> Line:
    """Return the parts of a line."""
    line = _ANSI.sub("", line).rstrip()
    if "\r" in line:  # a progress bar was drawn over
        line = line.rpartition("\r")[2]
    process, level = "", None
    while True:  # an outer process repeats the lines of its own
        if (found := next((m for p in _PREFIXES if (m := p.match(line))), None)) is not None:
            process += found[0].strip()
        elif level is None and (found := _HEADER.match(line)) is not None:
            level = found["level"]
        else:
            break
        line = line[found.end() :]
    own = level is not None
    if level is None and not line.startswith((" ", "Traceback")):
        for pattern in _FOREIGN:
            if (found := pattern.match(line)) is not None:
                level = _LETTERS.get(found["level"], found["level"].upper())
                if level not in QUIET and pattern is not _FOREIGN[-1]:
                    line = line[found.end() :]
                break
    return Line(process, level, line, level in QUIET or _WARNS.match(line) is not None, own)


def read(log: Sequence[str]) -> list[Line]:
    """Return the parts of each line of a log."""
    return list(map(read_line, _without_collector(log)))


def _without_collector(log: Sequence[str]) -> Sequence[str]:
    """Return the lines without what a collector of logs wrote in front of each.

    Only a form that most lines have, and behind which vLLM's own lines begin, is a collector's:
    other loggers begin with the time, too.
    """
    found: Sequence[str] = [_ANSI.sub("", line) for line in log]
    for _ in range(3):  # one collector within another
        filled = [line for line in found if line.strip()]
        if any(map(_OWN.match, filled)):
            return found
        for pattern in _COLLECTED:
            if sum(pattern.match(x) is not None for x in filled) > _COMMON * len(filled):
                found = [
                    pattern.sub("", line, count=1) if pattern.match(line) else line
                    for line in found
                ]
                break
        else:
            break
    return found if any(map(_OWN.match, found)) else log


def raised(lines: Sequence[Line]) -> Iterator[Raised]:
    """Yield the exceptions of a log, in the order of its lines."""
    frames: dict[str, list[Frame]] = {}
    for at, line in enumerate(lines):
        if line.warns:
            continue
        own = frames.setdefault(line.process, [])
        if line.text.startswith("Traceback"):
            own.clear()
        elif (found := _FRAME.match(line.text)) is not None:
            own.append(_frame(found, lines, at))
        elif (found := RAISED.match(line.text)) is not None:
            name = found["name"].rpartition(".")[2]
            more = tuple(_more(lines, at))
            yield Raised(at, name, (found["text"] or "").strip(), more, tuple(own))
            own.clear()


def _frame(found: re.Match[str], lines: Sequence[Line], at: int) -> Frame:
    """Return a frame, with the next line of its process as its code."""
    process = lines[at].process
    code = next((x.text for x in lines[at + 1 : at + 20] if x.process == process), "")
    shown = "" if not code.startswith("    ") or _FRAME.match(code) else code.strip()
    return Frame(found["file"], int(found["line"]), found["function"], shown)


def _more(lines: Sequence[Line], at: int) -> Iterator[str]:
    """Yield the lines of an exception's text after its first one."""
    first, count = lines[at], 0
    for line in lines[at + 1 :]:
        if line.process != first.process:
            continue  # other processes write in between
        text = line.text
        if line.warns or text.startswith(_MARKS) or RAISED.match(text) or _FRAME.match(text):
            return
        if line.level != first.level or count == _MOST_WORDS:
            return
        if text.strip():
            count += 1
            yield text
