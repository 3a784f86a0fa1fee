"""Why a server failed, told from its log and exit code.

The rules are texts of vLLM, torch and Python, read in vLLM 0.24 to 0.32 and in the real logs that
tests/logs keeps. They are tried in order; the first that finds a line wins, so the specific ones
stand first. Only lines that report an error count: vLLM warns in the same words that it fails in.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.errors import FailureKind

MAX_EVIDENCE = 8  # lines
MAX_WIDTH = 400  # characters of each

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# "(EngineCore pid=10841) ERROR 11-23 21:52:49 [core.py:1510] text"
_PROCESS = re.compile(r"^\([\w-]+ pid=\d+\) ?")
_HEADER = re.compile(
    r"^(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) (?:\d\d(?:\d\d)?-)?\d\d-\d\d \d\d:\d\d:\d\d "
    r"\[[^\]]*\] ?"
)
_QUIET = re.compile(r"^(DEBUG|INFO|WARNING):\s")  # uvicorn's own form
# the last line of a traceback: no indent, a dotted name, a colon
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Failure|Exit)\b:?")
# errors that only say that another process had one
_WRAPPER = re.compile(
    r"See root cause above|See stack trace for root cause|EngineDeadError|EngineCore failed to|"
    r"KeyboardInterrupt|WorkerProc failed to start|RuntimeError: cancelled|SystemExit|"
    r"See stack trace \(above\) for the root cause"
)
# what vLLM says at level ERROR around the cause
_AROUND = re.compile(r"^(?:\s|Traceback|Dumping |EngineCore encountered|AsyncLLM output_handler|$)")
# what Python and nanobind print after the end
_NOISE = re.compile(r"Warning: |warnings\.warn|nanobind|^ - (?:leaked|\.\.\.)|^\s*$")


@dataclass(frozen=True)
class Verdict:
    """What is known about a failure."""

    kind: FailureKind
    reason: str  # one line
    evidence: tuple[str, ...]  # lines of the log, oldest first


@dataclass(frozen=True)
class _Rule:
    kind: FailureKind
    pattern: re.Pattern[str]
    sentence: str  # may name the pattern's groups
    context: re.Pattern[str] | None = None  # must be somewhere in the log too


def _rule(kind: FailureKind, pattern: str, sentence: str, context: str | None = None) -> _Rule:
    return _Rule(
        kind, re.compile(pattern), sentence, None if context is None else re.compile(context)
    )


K = FailureKind  # short: it stands in every rule
_RULES = (
    _rule(K.DISK, r"No space left on device|Disk quota exceeded", "the disk is full"),
    _rule(
        K.PORT,
        r"Address already in use|address already in use|EADDRINUSE",
        "somebody else holds the port",
    ),
    _rule(
        K.BUDGET,
        r"not have enough slots .*max_num_batched_tokens=(?P<mnbt>\d+) and "
        r"scheduled_token_delta=(?P<n>\d+)",
        "max_num_batched_tokens = {mnbt} leaves no room for {n} draft tokens",
    ),
    _rule(
        K.BUDGET,
        r"max_num_scheduled_tokens is set to (?P<left>-?\d+) based on",
        "max_num_batched_tokens leaves {left} tokens to schedule beside the draft tokens",
    ),
    _rule(
        K.BUDGET,
        r"max_num_batched_tokens \((?P<mnbt>\d+)\) must be greater than or equal to "
        r"max_num_seqs \((?P<seqs>\d+)\)",
        "max_num_batched_tokens = {mnbt} is below max_num_seqs = {seqs}",
    ),
    _rule(
        K.BUDGET,
        r"max_num_batched_tokens \((?P<mnbt>\d+)\) is smaller than max_model_len \((?P<len>\d+)\)",
        "max_num_batched_tokens = {mnbt} is below max_model_len = {len} without chunked prefill",
    ),
    _rule(
        K.KV_CACHE,
        r"No available memory for the cache blocks",
        "no memory is left for the KV cache",
    ),
    _rule(
        K.KV_CACHE,
        r"max seq len \((?P<len>\d+)\).*?(?P<needed>[\d.]+) GiB KV cache is needed.*?"
        r"memory \((?P<there>[\d.]+) GiB\)",
        "a KV cache of {needed} GiB is needed for max_model_len = {len}, {there} GiB is there",
    ),
    _rule(
        K.KV_CACHE,
        r"Available memory on node \S+ \((?P<there>[\d.]+)/[\d.]+ GiB\).*requested memory for kv "
        r"\((?P<needed>[\d.]+) GiB\)",
        "a KV cache of {needed} GiB is asked for, {there} GiB are free",
    ),
    _rule(
        K.KV_CACHE,
        r"larger than the maximum number of tokens that can be stored in KV cache",
        "max_model_len does not fit into the KV cache",
    ),
    _rule(
        K.OOM,
        r"Free memory on device (?P<device>\S*) ?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on "
        r"startup is less than",
        "only {free} of {total} GiB are free on {device}: something else holds its memory, or "
        "gpu_memory_utilization is too high",
    ),
    _rule(
        K.OOM,
        r"(?:CUDA|HIP|XPU|NPU) out of memory\. Tried to allocate (?P<size>[\d.]+ \w+)",
        "the device is out of memory: {size} more could not be allocated",
    ),
    _rule(
        K.OOM,
        r"(?:CUDA|HIP|XPU|NPU) out of memory|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|"
        r"OutOfMemoryError|not enough GPU memory|CUBLAS_STATUS_ALLOC_FAILED",
        "the device is out of memory",
    ),
    _rule(
        K.OOM,
        r"can't allocate memory: you tried to allocate (?P<size>\d+) bytes",
        "the machine is out of memory: {size} bytes more could not be allocated",
    ),
    _rule(
        K.OOM,
        r"^MemoryError|std::bad_alloc|Cannot allocate memory|unable to mmap .* bytes",
        "the machine is out of memory",
    ),
    _rule(
        K.MODEL_MISSING,
        r"(?:Repo id must be in the form|Invalid repository ID or local directory specified).*?"
        r"'(?P<model>/[^']*)'",
        "there is no model in {model}",
    ),
    _rule(
        K.MODEL_MISSING,
        r"Invalid repository ID or local directory specified: '(?P<model>[^']*)'",
        "there is no model {model}, as a folder or on the hub",
    ),
    _rule(
        K.MODEL_MISSING,
        r"RepositoryNotFoundError|LocalEntryNotFoundError|GatedRepoError|"
        r"is not a local folder and is not a valid model identifier|"
        r"Cannot find any model weights|No such file or directory: '[^']*\.safetensors",
        "the model is not there, or not for you",
    ),
    _rule(
        K.DRAFT_MISMATCH,
        r"(?:Attempted|Tried) to load weights? .*of size .*to a parameter of size|size mismatch|"
        r"shapes? cannot be multiplied|is not a parameter|There is no module or parameter named",
        "the draft's weights do not fit its configuration or the target",
        context=r"self\.drafter\.load_model|spec_decode/\w+\.py|qwen3_dflash\.py",
    ),
    _rule(
        K.DRAFT_MISMATCH,
        r"(?i)draft\w* .*(?:must match|mismatch|does not match|not compatible)|"
        r"(?:vocab_size|vocabulary).*draft|target_layer_ids|"
        r"must have the same vocabulary size",
        "the draft does not fit its target",
    ),
    _rule(
        K.BAD_CONFIG,
        r"error: unrecognized arguments: (?P<flags>.+)",
        "vLLM does not know {flags}",
    ),
    _rule(
        K.BAD_CONFIG,
        r"error: (?P<what>argument .+)",
        "vLLM rejected its command line: {what}",
    ),
    _rule(
        K.BAD_CONFIG,
        r"^\s*Value error, (?P<what>.+?)(?: \[type=|$)",
        "vLLM rejected the configuration: {what}",
    ),
    _rule(
        K.BAD_CONFIG,
        r"^(?:ValueError|NotImplementedError|AssertionError|TypeError): (?P<what>.+)",
        "vLLM rejected the configuration: {what}",
        context=r"create_engine_config|__post_init__|validate_parsed_serve_args|"
        r"validate_configuration|get_attn_backend",
    ),
)


def _errors(log: Sequence[str]) -> list[tuple[str, bool]]:
    """The lines that report errors, cleaned; True for those that vLLM logged as such.

    Without a header come the last words of a process and whatever libraries print. Lines of source
    code in a traceback are left out: ``raise SomeError(`` is not what was raised.
    """
    found = []
    for line in log:
        text = _PROCESS.sub("", _ANSI.sub("", line).rstrip())
        header = _HEADER.match(text)
        if header is not None and header["level"] not in {"ERROR", "CRITICAL"}:
            continue
        text = _HEADER.sub("", text)
        if _QUIET.match(text) is None and not text.startswith(("    ", '  File "')):
            found.append((text, header is not None))
    return found


def classify(
    log: Sequence[str],
    *,
    exit_code: int | None,
    default: FailureKind,
    reason: str,
    oom_killed: bool = False,
) -> Verdict:
    """Kind, sentence and evidence of a failure.

    Args:
        log: Lines of the server's log, oldest first.
        exit_code: Of the server's first process, negative for a signal; None if it still runs.
        default: The kind if no rule finds anything.
        reason: The sentence for ``default``, without the exit code.
        oom_killed: The kernel killed a process for want of memory while the server ran.
    """
    reported = _errors(log)
    errors = [text for text, _ in reported]
    roots = [
        i for i, line in enumerate(errors) if _RAISED.match(line) and not _WRAPPER.search(line)
    ] or [
        i
        for i, (line, logged) in enumerate(reported)
        if logged and not _AROUND.match(line) and not _WRAPPER.search(line)
    ]
    whole = "\n".join(log)
    for rule in _RULES:
        if rule.context is not None and rule.context.search(whole) is None:
            continue
        for i, line in enumerate(errors):
            found = rule.pattern.search(line)
            if found is not None:
                groups = {k: v or "?" for k, v in found.groupdict().items()}
                return Verdict(
                    rule.kind,
                    _cut(rule.sentence.format(**groups)),
                    _evidence(errors, i, roots),
                )
    ended = _ended(exit_code)
    if oom_killed:
        text = "the kernel killed it: the machine is out of memory"
        return Verdict(K.OOM, text, _evidence(errors, None, roots))
    said = f": {errors[roots[0]]}" if roots else ""
    text = f"{reason} ({ended}{said})" if ended else f"{reason}{said}"
    return Verdict(default, _cut(text), _evidence(errors, None, roots))


def _ended(exit_code: int | None) -> str:
    if exit_code is None:
        return ""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"ended by signal {-exit_code}"


def _evidence(errors: Sequence[str], hit: int | None, roots: Sequence[int]) -> tuple[str, ...]:
    """The telling lines: what the rule found, and the first error that was raised."""
    wanted: list[int] = []
    for i in [*([] if hit is None else [hit]), *roots[:1]]:
        wanted.append(i)
        if errors[i].startswith(" ") and i > 0 and _RAISED.match(errors[i - 1]):
            wanted.append(i - 1)  # pydantic: the error's name, then an indented line of text
        if errors[i].endswith(("error for", "errors for")) or " validation error" in errors[i]:
            wanted.append(i + 1)
    lines = [errors[i] for i in sorted(set(wanted)) if i < len(errors)]
    if not lines:  # nobody raised: the last words
        lines = [line for line in errors if not _NOISE.search(line)][-MAX_EVIDENCE:]
    unique = dict.fromkeys(_cut(line.strip()) for line in lines)
    return tuple(unique)[:MAX_EVIDENCE]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_WIDTH else text[: MAX_WIDTH - 1] + "…"
