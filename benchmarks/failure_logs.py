"""How vLLM logs an exception at its start: the frames that lead to it and the lines around it.

A server's start runs in three processes. The API server parses the arguments and builds the
configuration; most of that happens in pydantic's validators, which wrap ValueError and
AssertionError. EngineCore starts the workers, sizes the KV cache and builds the scheduler. A worker
is a process of its own with several GPUs and on CPU; with one GPU it lives in EngineCore. What
EngineCore or a worker raises is logged there with a traceback, and the API server ends with
"Engine core initialization failed".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PREFIX = "/venv/lib/python3.11/site-packages/vllm/"
_ENTRY = "entrypoints/launchers/api_server/entry.py|entrypoints/openai/api_server.py"
_SERVE = (
    f"{_ENTRY}:run_server:await run_server_worker",
    f"{_ENTRY}:run_server_worker:async with build_async_engine_client",
    f"{_ENTRY}:build_async_engine_client:async with build_async_engine_client_from",
)
_CONFIG = (
    *_SERVE,
    f"{_ENTRY}:build_async_engine_client_from_engine_args:create_engine_config",
)
_CLIENT = (
    *_SERVE,
    f"{_ENTRY}:build_async_engine_client_from_engine_args:from_vllm_config",
    "v1/engine/async_llm.py:AsyncLLM.from_vllm_config:return cls",
    "v1/engine/async_llm.py:AsyncLLM.__init__:make_async_mp_client",
    "v1/engine/core_client.py:EngineCoreClient.make_async_mp_client:return AsyncMPClient",
    "v1/engine/core_client.py:AsyncMPClient.__init__:super",
    "v1/engine/core_client.py:MPClient.__init__:launch_core_engines",
)
_FAILED = (
    *_CLIENT,
    "v1/engine/utils.py:launch_core_engines:wait_for_engine_startup",
    "v1/engine/utils.py:wait_for_engine_startup:raise RuntimeError",
)
_CORE = (
    "v1/engine/core.py:EngineCoreProc.run_engine_core:engine_core = EngineCoreProc",
    "v1/engine/core.py:EngineCoreProc.__init__:super",
)
_KV = (*_CORE, "v1/engine/core.py:EngineCore.__init__:self._initialize_kv_caches")
_EXECUTOR = (
    *_CORE,
    "v1/engine/core.py:EngineCore.__init__:executor_class(vllm_config)",
    "v1/executor/abstract.py:Executor.__init__:self._init_executor",
)
_CALLED = "v1/executor/uniproc_executor.py:UniProcExecutor.collective_rpc:run_method"
_MULTI = (
    *_EXECUTOR,
    "v1/executor/multiproc_executor.py:MultiprocExecutor._init_executor:WorkerProc.wait_for_ready",
    "v1/executor/multiproc_executor.py:WorkerProc.wait_for_ready:raise e",
)
_RUNNER = "v1/worker/gpu_model_runner.py:GPUModelRunner"
_LOAD = (
    "v1/worker/gpu_worker.py:Worker.load_model:load_model",
    f"{_RUNNER}.load_model:model_loader.load_model",
)
_BASE = "model_executor/model_loader/base_loader.py:BaseModelLoader"
_INITIALIZE = "model_executor/model_loader/utils.py:initialize_model:model_class(vllm_config"
_PROPOSER = "v1/spec_decode/llm_base_proposer.py:SpecDecodeBaseProposer"
_DRAFT = (
    "v1/worker/gpu_worker.py:Worker.load_model:load_model",
    f"{_RUNNER}.load_model:drafter.load_model",
    f"{_PROPOSER}.load_model:self._get_model",
    f"{_PROPOSER}._get_model:model = get_model(",
    "model_executor/model_loader/__init__.py:get_model:loader.load_model",
)
_DEFAULT = "model_executor/model_loader/default_loader.py:DefaultModelLoader"
# frames of a worker, below the executor (one process) or WorkerProc (a process of its own)
_WORKER: dict[str, tuple[str, ...]] = {
    "init_device": ("v1/worker/worker_base.py:WorkerWrapperBase.init_device:init_device",
                    "v1/worker/gpu_worker.py:Worker.init_device:init_worker_distributed"),
    "model_init": (*_LOAD, f"{_BASE}.load_model:self.create_model|initialize_model(",
                   f"{_BASE}.create_model:initialize_model", _INITIALIZE),
    "load_weights": (*_LOAD, f"{_BASE}.load_model:self.load_weights",
                     f"{_DEFAULT}.load_weights:model.load_weights"),
    "draft_init": (*_DRAFT, f"{_BASE}.load_model:self.create_model|initialize_model(",
                   f"{_BASE}.create_model:initialize_model", _INITIALIZE),
    "draft_weights": (*_DRAFT, f"{_BASE}.load_model:self.load_weights",
                      f"{_DEFAULT}.load_weights:model.load_weights"),
    "load_model": ("v1/worker/gpu_worker.py:Worker.load_model:load_model",
                   f"{_RUNNER}.load_model:drafter.load_model"),
    "profile_run": ("v1/worker/gpu_worker.py:Worker.determine_available_memory:profile_run",
                    f"{_RUNNER}.profile_run:_dummy_run"),
    "kv_init": ("v1/worker/gpu_worker.py:Worker.initialize_from_config:initialize_kv_cache",
                f"{_RUNNER}.initialize_kv_cache:initialize_attn_backend"),
    "capture": ("v1/worker/gpu_worker.py:Worker.compile_or_warm_up_model:capture_model",
                f"{_RUNNER}.capture_model:_capture_cudagraphs"),
}  # fmt: skip
_INIT_KV = "v1/engine/core.py:EngineCore._initialize_kv_caches"
_ABSTRACT = "v1/executor/abstract.py:Executor"
_UNI = "v1/executor/uniproc_executor.py:UniProcExecutor._init_executor"
_CALLS: dict[str, tuple[str, ...]] = {
    "init_device": (f"{_UNI}:driver_worker.init_device",),
    "model_init": (f"{_UNI}:driver_worker.load_model",),
    "load_weights": (f"{_UNI}:driver_worker.load_model",),
    "load_model": (f"{_UNI}:driver_worker.load_model",),
    "draft_init": (f"{_UNI}:driver_worker.load_model",),
    "draft_weights": (f"{_UNI}:driver_worker.load_model",),
    "profile_run": (f"{_INIT_KV}:executor.determine_available_memory",
                    f"{_ABSTRACT}.determine_available_memory:collective_rpc", _CALLED),
    "kv_init": (f"{_INIT_KV}:executor.initialize_from_config",
                f"{_ABSTRACT}.initialize_from_config:collective_rpc", _CALLED),
    "capture": (f"{_INIT_KV}:executor.compile_or_warm_up_model",
                f"{_ABSTRACT}.compile_or_warm_up_model:collective_rpc", _CALLED),
}  # fmt: skip
_PROC = "v1/executor/multiproc_executor.py:WorkerProc"
_CREATE = "engine/arg_utils.py:EngineArgs.create_engine_config"
_SPECULATIVE = "engine/arg_utils.py:EngineArgs.create_speculative_config"


def _proc(step: str) -> tuple[str, ...]:
    """Return the frames of a worker process."""
    if "_init_executor" not in _CALLS[step][0]:
        return (f"{_PROC}.worker_busy_loop|_execute_worker_rpc:output = func", *_WORKER[step])
    call = "worker.init_device()" if step == "init_device" else "worker.load_model()"
    first = f"{_PROC}.worker_main:worker = WorkerProc"
    return (first, f"{_PROC}.__init__:{call}", *_WORKER[step])


def _uni(step: str) -> tuple[str, ...]:
    """Return the frames of a worker that lives in EngineCore."""
    core = _EXECUTOR if "_init_executor" in _CALLS[step][0] else _KV
    return (*core, *_CALLS[step], *_WORKER[step])


STEPS: dict[str, tuple[str, ...]] = {
    "arguments": ("entrypoints/cli/main.py:main:cmds[args.subparser].validate|validate",),
    "engine_arguments": _CONFIG,
    "engine_config": (*_CONFIG, f"{_CREATE}:VllmConfig("),
    "model_config": (*_CONFIG, f"{_CREATE}:create_model_config"),
    "speculative_config": (
        *_CONFIG,
        f"{_CREATE}:create_speculative_config",
        f"{_SPECULATIVE}:SpeculativeConfig(",
    ),
    "engine_client": _CLIENT,
    "engine": _EXECUTOR,
    "kv_cache": (*_KV, f"{_INIT_KV}:get_kv_cache_configs"),
    "scheduler": (*_CORE, "v1/engine/core.py:EngineCore.__init__:Scheduler("),
    "failed": _FAILED,
    "multi": _MULTI,
    **{f"uni {step}": _uni(step) for step in _CALLS},
    **{f"proc {step}": _proc(step) for step in _CALLS},
    **dict.fromkeys(_WORKER, ()),
}
"""Frames of each step of the start as FILE:FUNCTION:WORDS OF THE LINE, outermost first."""

_API = {"arguments", "engine_arguments", "engine_config", "model_config", "speculative_config",
        "engine_client"}  # fmt: skip


def process_of(step: str) -> str:
    """Return the process that runs a step of the start: api, engine or worker."""
    return "api" if step in _API else "worker" if step in _WORKER else "engine"


_PLACES = (
    (r"config/compilation.py:(resolve_cudagraph|adjust_cudagraph)", "kv_init"),
    (r"config/compilation.py:init_backend", "profile_run"),
    (r"config/cache.py:get_resolved", "kv_init"),
    (r"config/vllm.py:get_current", "model_init"),
    (r"config/vllm.py:validate_block_size", "kv_cache"),
    (r"config/(model|multimodal|model_arch).py", "model_config"),
    (r"v1/kv_cache_interface.py:(create_kv|compute_)", "kv_init"),
    (r"utils/hashing.py", "scheduler"),
    (r"utils/ompmultiprocessing.py", "engine"),
    (r"platforms/interface.py:(_align_het|_preferred_block|_check_aligned)", "engine"),
    (r"platforms/interface.py:(verify_quantization|validate_environ)", "model_config"),
)
"""Steps of functions that do not run where their files do."""


def step_of(file: str, functions: Sequence[str], owner: str | None, step: str) -> str:
    """Return the step of the start that raises an entry, where the file alone does not say it.

    Weights that do not fit are shown in a draft: a target's are the same in every trial.
    """
    last = functions[-1] if functions else ""
    for places, found in _PLACES:
        if re.match(places, f"{file}:{'.'.join(functions)}"):
            return found
    if "quantization/" in file and owner is not None and owner.endswith("Config"):
        built = {"get_quant_method", "_get_method_cls", "get_moe_method", "get_scheme"}
        if not built & set(functions) and not re.match(r"_?(get|check)_", last):
            return "engine_config"
    if file.startswith("platforms/") and re.match(
        r"get_(attn|mla|vit|max_threads)|pack_kv|check_runner|check_if_supports|num_compute", last
    ):
        return "model_init" if "dtype" not in last else "init_device"
    if file.startswith(("v1/worker/", "v1/spec_decode/")) and step != "engine_config":
        return _worker_step(last, step)
    if file.startswith("v1/attention/") and re.match(r"_?build", last):
        return "capture"
    if file.startswith("v1/attention/backends/utils.py") or "Builder" in (owner or ""):
        return "kv_init" if "resolve" not in last else "kv_cache"
    if step == "draft_init" and re.match(r"load_|_read|_build_fused|combine", last):
        return "draft_weights"
    if step == "draft_weights" and last == "__init__":
        return "model_init"
    if last in ("default_weight_loader", "track_weights_loading"):
        return "draft_weights"
    if last == "process_weights_after_loading":
        return "load_weights"
    return step


def _worker_step(function: str, step: str) -> str:
    if function == "request_memory":
        return "init_device"
    if function in ("load_model", "load_draft_model") or "share" in function:
        return "load_model"
    if "profile" in function or "dummy" in function or function == "determine_available_memory":
        return "profile_run"
    if "capture" in function:
        return "capture"
    if "kv_cache" in function or "attn" in function or "input_batch" in function:
        return "kv_init"
    return step


_Function = ast.FunctionDef | ast.AsyncFunctionDef
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def _calls(function: ast.AST) -> set[str]:
    return {n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute)} | {
        n.id for n in ast.walk(function) if isinstance(n, ast.Name)
    }


Validated = dict[tuple[str, str | None, str], str]
"""Name that pydantic gives what it validates, by file, class and function that its validation runs:
CLASS, or CLASS.FIELD."""


def validated(root: Path) -> Validated:
    """Return what the validation of the configuration's classes runs, in a version's source."""
    found: Validated = {}
    methods: dict[tuple[str, str], dict[str, _Function]] = {}
    modules: dict[str, dict[str, _Function]] = {}
    for path in sorted((root / "config").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        file = f"config/{path.name}"
        modules[file] = {n.name: n for n in tree.body if isinstance(n, _FUNCTION)}
        for owner in (n for n in tree.body if isinstance(n, ast.ClassDef)):
            methods[file, owner.name] = {n.name: n for n in owner.body if isinstance(n, _FUNCTION)}
    for (file, owner), own in methods.items():
        for name, method in own.items():
            marks = " ".join(ast.unparse(d) for d in method.decorator_list)
            field = re.search(r"field_validator\('(\w+)'", marks)
            if name == "__post_init__" or "model_validator" in marks:
                _reach(found, file, owner, name, owner, own, modules[file])
            elif field is not None:
                _reach(found, file, owner, name, f"{owner}.{field[1]}", own, modules[file])
    # what VllmConfig calls of the configurations that it holds
    top = {k for k, v in found.items() if v.startswith("VllmConfig")}
    called = {n for f, o, name in top if o for n in _calls(methods[f, o][name])}
    for (file, owner), own in methods.items():
        for name in (called & set(own)) - {"compute_hash"}:
            if not name.startswith("__"):
                _reach(found, file, owner, name, "VllmConfig", own, modules[file])
    return found


def _reach(
    found: Validated,
    file: str,
    owner: str,
    name: str,
    label: str,
    own: dict[str, _Function],
    module: dict[str, _Function],
) -> None:
    """Add a method, and what it calls of its class and module, to what a validation runs."""
    todo: list[tuple[str | None, str]] = [(owner, name)]
    while todo:
        place, function = todo.pop()
        if (file, place, function) in found:
            continue
        found[file, place, function] = label
        calls = _calls(own[function] if place else module[function])
        todo += [(None, n) for n in calls & set(module)]
        if place:
            todo += [(owner, n) for n in calls & set(own)]


def validated_as(
    file: str,
    functions: Sequence[str],
    owner: str | None,
    exception: str,
    step: str,
    found: Validated,
) -> str | None:
    """Return how pydantic names what it validates: CLASS or CLASS.FIELD; None: it wraps nothing."""
    if exception not in ("ValueError", "AssertionError") or step not in _API:
        return None
    if functions and (file, owner, functions[0]) in found:
        return found[file, owner, functions[0]]
    if file in ("model_executor/models/config.py", "v1/spec_decode/dynamic/utils.py") or (
        file.startswith("platforms/") and "check_and_update_config" in functions
    ):
        return "VllmConfig"
    if "quantization/" in file:
        return "VllmConfig"
    if file.startswith(("transformers_utils/config.py", "model_executor/models/registry.py")):
        return "ModelConfig"
    if file.startswith("platforms/") and {"verify_quantization", "verify_model_arch"} & {
        *functions
    }:
        return "ModelConfig"
    return None


def _functions(tree: ast.AST, around: str = "") -> Iterator[tuple[str, _Function]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{around}.{node.name}".lstrip(".")
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from _functions(node, name)


def _frame(root: Path, place: str) -> list[Any] | None:
    """Return file, line, function and code of a frame; None: this version has no such place."""
    files, function, words = place.split(":", 2)
    for file in files.split("|"):
        if not (root / file).exists():
            continue
        source = (root / file).read_text(encoding="utf-8")
        lines = source.splitlines()
        owner, _, names = function.rpartition(".")
        wanted = {f"{owner}.{n}".lstrip(".") for n in names.split("|")}
        for name, node in _functions(ast.parse(source)):
            if name not in wanted:
                continue
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                line = lines[number - 1].strip()
                if line.startswith(("#", "def ", "async def ")):
                    continue
                if any(w in line for w in words.split("|")):
                    return [file, number, name.split(".")[-1], line]
    return None


def frames(root: Path) -> dict[str, list[list[Any]]]:
    """Return the frames of each step in a version's source."""
    return {
        step: [f for place in places if (f := _frame(root, place)) is not None]
        for step, places in STEPS.items()
        if places
    }


_VALUES = (
    (r"max_num_batched_tokens|max_num_scheduled", "2048"),
    (r"num_spec", "7"),
    (r"max_num_seqs|max_num_reqs", "256"),
    (r"gpu_memory_utilization", "0.92"),
    (r"format_gib", "3.41"),
    (r"^(len|max|min|sum|int)\(|_size\b|\bsize\b|_len\b|_count\b|_rank\b", "16"),
    (r"__class__|type\(|cls\b|class", "Qwen3ForCausalLM"),
    (r"__name__|\.name\b", "FLASH_ATTN"),
    (r"sorted|list\(|set\(|valid|supported|choices|options|\.join|all_", "['auto', 'fp8']"),
    (r"max_model_len|seq_len", "8192"),
    (r"memory|bytes|gib", "3.41 GiB"),
    (r"^e$|^err|exception|error|reason|^exc", "unexpected value"),
    (r"dtype", "torch.bfloat16"),
    (r"device", "cuda:0"),
    (r"capability", "75"),
    (r"shape|\.size\(", "torch.Size([4096, 2560])"),
    (r"path|file|dir|folder", "/models/target"),
    (r"url|address|addr|host", "127.0.0.1"),
    (r"model_type", "qwen3"),
    (r"arch", "Qwen3ForCausalLM"),
    (r"method", "dflash"),
    (r"backend", "FLASH_ATTN"),
    (r"quant", "fp8"),
    (r"model|repo", "org/target"),
    (r"layer|prefix|name|key|param", "model.layers.0.self_attn"),
    (r"\bport\b|_port\b", "8000"),
    (r"size|num|len|max|min|count|tokens|rank|world|pid|dim|head|index|idx|bits|block", "16"),
)


def value(expression: str) -> str:
    """Return a plausible value of a placeholder, by the words of its expression."""
    words = expression.lower().removesuffix("!r")
    found = next((v for pattern, v in _VALUES if re.search(pattern, words)), "auto")
    quoted = expression.endswith("!r") and not found.isdigit()
    return repr(found) if quoted else found


def message(template: str) -> str:
    """Return a message with values in its placeholders."""
    parts = re.split(r"(\{\{|\}\}|\{(?:[^{}]|\{[^{}]*\})*\})", template)
    plain = {"{{": "{", "}}": "}"}
    return "".join(
        plain.get(p) or (value(p[1:-1]) if len(p) > 1 and p[0] == "{" else p) for p in parts
    )


def _shown(found: Sequence[Sequence[Any]]) -> list[str]:
    lines = []
    for file, number, function, code in found:
        lines += [f'  File "{PREFIX}{file}", line {number}, in {function}', f"    {code}"]
    return lines


_PYDANTIC = "/venv/lib/python3.11/site-packages/pydantic/_internal/_dataclasses.py"
_VALIDATES = "s.__pydantic_validator__.validate_python(ArgsKwargs(args, kwargs), self_instance=s)"
_ENDED = (
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
)
_HIT = (
    "RuntimeError: Worker failed with error '{}', please check the stack trace above for the root"
)
_NOT_READY = (
    "Exception: WorkerProc initialization failed due to an exception in a background process. See"
    " stack trace for root cause."
)


def _raised(entry: dict[str, Any], before: Sequence[Sequence[Any]]) -> list[str]:
    """Return a traceback that ends with an entry's exception."""
    text = message(entry["template"])
    lines = ["Traceback (most recent call last):", *_shown(before)]
    if entry["validated"] is not None:
        owner, _, field = entry["validated"].partition(".")
        kind = "Assertion failed" if entry["exception"] == "AssertionError" else "Value error"
        mark = "assertion_error" if kind.startswith("A") else "value_error"
        return [
            *lines,
            f'  File "{_PYDANTIC}", line 121, in __init__',
            f"    {_VALIDATES}",
            f"pydantic_core._pydantic_core.ValidationError: 1 validation error for {owner}",
            *([field] if field else []),
            *f"  {kind}, {text} [type={mark}, input_value=ArgsKwargs((), {{'model':"
            " ...orkers': 1}), input_type=ArgsKwargs]".split("\n"),
            "    For further information visit https://errors.pydantic.dev/2.14/v/" + mark,
        ]
    last = (entry["file"], entry["line"], entry["function"].split(".")[-1], entry["code"])
    return [*lines, *_shown([last]), *f"{entry['exception']}: {text}".split("\n")]


def _logged(process: str, place: str, lines: Sequence[str]) -> list[str]:
    return [f"({process}) ERROR 11-23 21:52:49 [{place}] {line}" for line in lines]


_INFO = "INFO 11-23 21:52:09"
_API_PID, _CORE_PID, _WORKER_PID = "APIServer pid=4200", "EngineCore pid=4242", "Worker pid=4250"


def _before(entry: dict[str, Any]) -> list[str]:
    lines = [f"({_API_PID}) {_INFO} [api_utils.py:286] non-default args: {{'model': 'org/target'}}"]
    if entry["step"] in ("arguments", "engine_arguments"):
        return lines
    lines.append(f"({_API_PID}) {_INFO} [model.py:733] Resolved architecture: Qwen3ForCausalLM")
    if entry["process"] != "api":
        lines.append(
            f"({_CORE_PID}) {_INFO} [core.py:130] Initializing a V1 LLM engine with config:"
            " model='org/target', speculative_config=SpeculativeConfig(method='dflash',"
            " model='org/draft', num_spec_tokens=7), tokenizer='org/target'"
        )
    return lines


def _ended(frames_: dict[str, list[list[Any]]]) -> list[str]:
    return [
        f"({_API_PID}) {line}"
        for line in (
            "Traceback (most recent call last):",
            *_shown(frames_["failed"]),
            _ENDED,
        )
    ]


def rendered(entry: dict[str, Any], frames_: dict[str, list[list[Any]]]) -> tuple[list[str], int]:
    """Return the log of a server that ended with an entry's exception, and its exit code."""
    before = _before(entry)
    step = entry["step"]
    if entry["exception"].endswith("ArgumentTypeError"):
        text = message(entry["template"])
        usage = "usage: vllm serve [model_tag] [options]"
        return [usage, f"vllm serve: error: argument --speculative-config: {text}"], 2
    if entry["process"] == "api":
        lines = _raised(entry, frames_.get(step, []))
        return [*before, *(f"({_API_PID}) {line}" for line in lines)], 1
    at = f"core.py:{frames_['engine'][0][1] + 28}"
    alone = int(entry["id"], 16) % 2 == 0  # one GPU: the worker lives in EngineCore
    if entry["process"] == "engine" or alone:
        key = step if entry["process"] == "engine" else f"uni {step}"
        lines = _raised(entry, frames_.get(key, []))
        core = ["EngineCore failed to start.", *lines]
        again = ["Process EngineCore:", *(f"({_CORE_PID}) {line}" for line in lines)]
        return [*before, *_logged(_CORE_PID, at, core), *again, *_ended(frames_)], 1
    return [*before, *_of_a_worker(entry, frames_, at), *_ended(frames_)], 1


def _of_a_worker(entry: dict[str, Any], frames_: dict[str, list[list[Any]]], at: str) -> list[str]:
    """Return what a worker process and EngineCore log of a worker's exception."""
    step = entry["step"]
    lines = _raised(entry, frames_.get(f"proc {step}", []))
    if step in ("profile_run", "kv_init", "capture"):
        first = "WorkerProc hit an exception."
        last = _HIT.format(message(entry["template"])) + " cause"
        before = frames_["uni " + step][:4]
    else:
        first, before = "WorkerProc failed to start.", frames_["multi"]
        last = _NOT_READY
    core = ["Traceback (most recent call last):", *_shown(before), *last.split("\n")]
    return [
        *_logged(_WORKER_PID, "multiproc_executor.py:953", [first, *lines]),
        *_logged(_CORE_PID, at, ["EngineCore failed to start.", *core]),
        "Process EngineCore:",
        *(f"({_CORE_PID}) {line}" for line in core),
    ]
