"""Infer why a server failed from its log and exit code.

The rules are texts of vLLM, torch and Python, read in vLLM 0.24 to 0.32 and in the real logs of
tests/logs. They are tried in order and the first that finds a line wins, so the specific ones come
first. Only lines that report an error count, because vLLM warns with the same words.

Memory can run out in any stage. The functions in the traceback say in which one. Without a
traceback (the kernel ends a process without a message), vLLM's last line that names a stage does.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence, Set
from dataclasses import dataclass

from autotune.errors import FailureKind, LeastBudget

MAX_EVIDENCE = 8  # lines
MAX_WIDTH = 400  # characters of each

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# "(EngineCore pid=10841) ERROR 11-23 21:52:49 [core.py:1510] text"
_PROCESS = re.compile(r"^\([\w-]+ pid=\d+\) ?")
_HEADER = re.compile(
    r"^(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) (?:\d\d(?:\d\d)?-)?\d\d-\d\d \d\d:\d\d:\d\d "
    r"\[[^\]]*\] ?"
)
# uvicorn's own form; torch's, in Python ("[rank0]:W1124 …") and in C++ ("[W1124 …")
_QUIET = re.compile(r"^(?:DEBUG|INFO|WARNING):\s|^(?:\[rank\d+\]:|\[)?[VIW]\d{4} \d\d:\d\d:\d\d")
_FRAME = re.compile(r'^  File ".+", line \d+, in (\w+)')
# the last line of a traceback: no indent, a dotted name, a colon
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Failure|Exit)\b:?")
# errors that only report that another process had one
_WRAPPER = re.compile(
    r"See root cause above|See stack trace for root cause|EngineDeadError|EngineCore failed to|"
    r"KeyboardInterrupt|WorkerProc failed to start|RuntimeError: cancelled|SystemExit|"
    r"See stack trace \(above\) for the root cause"
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
class _Rule:
    """A text of a log that decides the kind of a failure."""

    kind: FailureKind
    pattern: re.Pattern[str]
    sentence: str  # may name the groups of both patterns; `when`: kind and words are the stage's
    context: re.Pattern[str] | None = None  # must match somewhere in the log too


def _rule(kind: FailureKind, pattern: str, sentence: str, context: str | None = None) -> _Rule:
    return _Rule(
        kind, re.compile(pattern), sentence, None if context is None else re.compile(context)
    )


@dataclass(frozen=True)
class _Stage:
    """A part of a server's life in which memory can run out."""

    kind: FailureKind
    when: str
    functions: frozenset[str]  # names of functions, one of which is in the traceback
    line: re.Pattern[str]  # beginning of a line that vLLM prints when the stage is reached


def _stage(kind: FailureKind, when: str, functions: str, line: str) -> _Stage:
    return _Stage(kind, when, frozenset(functions.split()), re.compile(line))


K = FailureKind  # short, because every rule has it
# matches a log if the draft was being loaded or run
_DRAFTING = r"self\.(?:drafter|speculator)\.load_model|spec_decode/[\w/]+\.py|qwen3_dflash\.py"
_TORN = r"SafetensorError: Error while deserializing header: (?P<what>.+)"
# The functions are those of vLLM's workers and model runners (GPU, GPU V2 and CPU). A traceback can
# have functions of several stages, for example in the trial capture before the KV cache is sized:
# the first stage of this table wins.
_STAGES = (
    _stage(
        K.OOM_CAPTURE,
        "while capturing CUDA graphs",
        "capture_model profile_cudagraph_memory",
        r"Capturing CUDA graphs|Profiling CUDA graph memory",
    ),
    _stage(K.OOM_LOAD, "before the weights were loaded", "init_device", r"Initializing a V1 LLM"),
    _stage(
        K.OOM_LOAD,
        "while loading the weights",
        "load_model",
        r"Starting to load model|Loading (?:model from scratch|drafter|weights|\w+ checkpoint)",
    ),
    _stage(
        K.KV_CACHE,
        "while trying a full batch, to see what is left for the KV cache",
        "determine_available_memory profile_run",
        r"Model loading took|Warming up model for the compilation",
    ),
    _stage(
        K.KV_CACHE,
        "while allocating the KV cache",
        "initialize_kv_cache initialize_kv_cache_tensors allocate_kv_cache",
        r"Available KV cache memory|\w+ KV cache size|(?:Explicitly|Auto) set .* for KV cache",
    ),
    _stage(
        K.OOM,
        "while warming up",
        "compile_or_warm_up_model warmup_kernels",
        r"Compile and warming up model|Graph capturing finished|init engine \(",
    ),
    _stage(
        K.OOM,
        "while serving",
        "run_busy_loop execute_model sample_tokens",
        r"INFO:\s+Application startup complete",
    ),
)
_RULES = (
    _rule(
        K.DISK,
        r"(?:No space left on device|Disk quota exceeded): '(?P<path>[^']+)'",
        "the disk is full: {path} could not be written",
    ),
    _rule(
        K.DISK,
        r"No space left on device|Disk quota exceeded",
        "the disk is full, or the one of vLLM's cache (VLLM_CACHE_ROOT) or of TMPDIR",
    ),
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
        "max_num_batched_tokens leaves {left} tokens to schedule next to the draft tokens",
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
    # This is before loading. It has that kind because it depends on neither n nor the batch budget.
    _rule(
        K.OOM_LOAD,
        r"Free memory on device (?P<device>\S*) ?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on "
        r"startup is less than",
        "only {free} of {total} GiB are free on {device}: something else holds its memory, or "
        "gpu_memory_utilization is too high",
    ),
    _rule(
        K.OOM,
        r"CUDA out of memory occurred when warming up \w+ with (?P<n>\d+) dummy requests",
        "the device is out of memory{when}: it cannot sample for {n} requests at once",
    ),
    _rule(
        K.OOM,
        r"(?:CUDA|HIP|XPU|NPU) out of memory\. Tried to allocate (?P<size>[\d.]+ \w+)",
        "the device is out of memory{when}: {size} more could not be allocated",
    ),
    _rule(
        K.OOM,
        r"(?:CUDA|HIP|XPU|NPU) out of memory|(?:CUDA|HIP) error: out of memory|"
        r"CUDA_ERROR_OUT_OF_MEMORY|OutOfMemoryError|not enough GPU memory|"
        r"CUBLAS_STATUS_ALLOC_FAILED",
        "the device is out of memory{when}",
    ),
    _rule(
        K.OOM,
        r"can't allocate memory: you tried to allocate (?P<size>\d+) bytes",
        "the machine is out of memory{when}: {size} bytes more could not be allocated",
    ),
    _rule(
        K.OOM,
        r"^MemoryError|std::bad_alloc|Cannot allocate memory|unable to mmap .* bytes",
        "the machine is out of memory{when}",
    ),
    # An incomplete file counts as missing, for the user and for every further launch
    _rule(
        K.MODEL_MISSING,
        _TORN,
        "the weights of the draft {model} cannot be read ({what}): fetch them again",
        context=r"(?s)SpeculativeConfig\([^)]*?model='(?P<model>[^']+)'.*" + _DRAFTING,
    ),
    _rule(
        K.MODEL_MISSING,
        _TORN,
        "the weights in {model} cannot be read ({what}): fetch them again",
        context=r"LLM engine \(v\S+ with config: model='(?P<model>[^']+)'",
    ),
    _rule(K.MODEL_MISSING, _TORN, "the weights cannot be read ({what}): fetch them again"),
    _rule(
        K.MODEL_MISSING,
        r"(?:Repo id must be in the form|Invalid repository ID or local directory specified).*?"
        r"'(?P<model>/[^']*)'",
        "there is no model in {model} (no such folder, or it has no config.json)",
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
        context=_DRAFTING,
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


@dataclass(frozen=True)
class _Error:
    """A line that reports an error."""

    text: str  # without process name and header
    logged: bool  # whether vLLM logged it as an error
    at: int  # index in the log


def _split(line: str) -> tuple[str, str | None, str]:
    """Return a line's process, its level (None without a header) and its text."""
    line = _ANSI.sub("", line).rstrip()
    process = _PROCESS.match(line)
    text = _PROCESS.sub("", line)
    header = _HEADER.match(text)
    return (
        "" if process is None else process[0],
        None if header is None else header["level"],
        _HEADER.sub("", text),
    )


def _errors(log: Sequence[str]) -> list[_Error]:
    """Return the lines that report errors.

    The last words of a process and the output of libraries have no header. Lines of source code in
    a traceback are left out: ``raise SomeError(`` is not what was raised.
    """
    found = []
    for at, line in enumerate(log):
        _, level, text = _split(line)
        if level in {"DEBUG", "INFO", "WARNING"} or _QUIET.match(text) is not None:
            continue
        if not text.startswith(("    ", '  File "')):
            found.append(_Error(text, level is not None, at))
    return found


def _stage_at(log: Sequence[str], at: int) -> _Stage | None:
    """Return the stage in which the error in line ``at`` was raised.

    The traceback that ends there decides. If it does not, a later one does: the cause's own begins
    only where it was caught, but that of its consequence is complete. Otherwise the last line
    before the error decides.
    """
    process, _, _ = _split(log[at])
    functions: set[str] = set()
    for line in reversed(log[:at]):
        whose, _, text = _split(line)
        if whose == process:  # other processes write in between
            if not text.startswith("  "):
                break
            functions.update(_FRAME.findall(text))
    if (stage := _stage_in(functions)) is not None:
        return stage
    functions = set()
    for line in log[at + 1 :]:
        _, _, text = _split(line)
        if text.startswith("Traceback"):
            if (stage := _stage_in(functions)) is not None:
                return stage
            functions = set()
        functions.update(_FRAME.findall(text))
    return _stage_in(functions) or _last_stage(log[:at])


def _stage_in(functions: Set[str]) -> _Stage | None:
    return next((stage for stage in _STAGES if stage.functions & functions), None)


def _last_stage(log: Sequence[str]) -> _Stage | None:
    """Return the last stage that vLLM logged."""
    for line in reversed(log):
        _, level, text = _split(line)
        if level in {None, "INFO"}:
            for stage in _STAGES:
                if stage.line.match(text) is not None:
                    return stage
    return None


def classify(
    log: Sequence[str],
    *,
    exit_code: int | None,
    default: FailureKind,
    reason: str,
    oom_killed: bool = False,
) -> Cause:
    """Return kind, sentence and evidence of a failure.

    Args:
        log: Lines of the server's log, oldest first.
        exit_code: Exit code of the server's first process, negative for a signal; None: it runs.
        default: Kind if no rule matches.
        reason: Sentence for ``default``, without the exit code.
        oom_killed: Whether the kernel killed a process for lack of memory while the server ran.
    """
    reported = _errors(log)
    errors = [e.text for e in reported]
    roots = _roots(reported)
    if (found := _by_rule(log, reported, roots)) is not None:
        return found
    bereft = next((i for i, line in enumerate(errors) if _BEREFT.search(line)), None)
    if roots:
        bereft = None
    evidence = _evidence(errors, bereft, roots)
    if oom_killed:
        stage = _last_stage(log)
        return Cause(
            K.OOM if stage is None else stage.kind,
            f"the kernel killed it{'' if stage is None else f' {stage.when}'}: "
            "the machine is out of memory",
            evidence,
        )
    if roots:
        said = f": {errors[roots[0]]}"
    elif bereft is not None:
        said = ": one of its processes ended without a word, as by SIGKILL"
    else:
        said = ""
    ended = _ended(exit_code)
    text = f"{reason} ({ended}{said})" if ended else f"{reason}{said}"
    return Cause(default, _cut(text), evidence)


def _roots(reported: Sequence[_Error]) -> list[int]:
    """Return the indices of the errors that may be the cause: raised ones, else logged ones."""
    raised = [
        i for i, e in enumerate(reported) if _RAISED.match(e.text) and not _WRAPPER.search(e.text)
    ]
    return raised or [
        i
        for i, e in enumerate(reported)
        if e.logged and not _AROUND.match(e.text) and not _WRAPPER.search(e.text)
    ]


def _by_rule(log: Sequence[str], reported: Sequence[_Error], roots: Sequence[int]) -> Cause | None:
    """Return the verdict of the first rule that matches; None: none does."""
    errors = [e.text for e in reported]
    whole = "\n".join(log)
    for rule in _RULES:
        hit = next((i for i, line in enumerate(errors) if rule.pattern.search(line)), None)
        if hit is None:
            continue
        context = None if rule.context is None else rule.context.search(whole)
        if rule.context is not None and context is None:
            continue
        found = rule.pattern.search(errors[hit])
        groups = {
            k: v or "?" for m in (found, context) if m is not None for k, v in m.groupdict().items()
        }
        stage = _stage_at(log, reported[hit].at) if "{when}" in rule.sentence else None
        return Cause(
            rule.kind if stage is None else stage.kind,
            _cut(rule.sentence.format(**groups, when="" if stage is None else f" {stage.when}")),
            _evidence(errors, hit, roots),
        )
    return None


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
    """Return the line that the rule found, and the first error that was raised."""
    wanted: list[int] = []
    for i in [*([] if hit is None else [hit]), *roots[:1]]:
        wanted.append(i)
        if errors[i].startswith(" ") and i > 0 and _RAISED.match(errors[i - 1]):
            wanted.append(i - 1)  # pydantic: the error's name, then an indented line of text
        if errors[i].endswith(("error for", "errors for")) or " validation error" in errors[i]:
            wanted.append(i + 1)
    lines = [errors[i] for i in sorted(set(wanted)) if i < len(errors)]
    if not lines:  # nothing was raised: the last lines
        lines = [line for line in errors if not _NOISE.search(line)][-MAX_EVIDENCE:]
    unique = dict.fromkeys(_cut(line.strip()) for line in lines)
    return tuple(unique)[:MAX_EVIDENCE]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_WIDTH else text[: MAX_WIDTH - 1] + "…"
