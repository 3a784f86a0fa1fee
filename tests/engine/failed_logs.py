"""Logs of servers that failed, put together as vLLM writes them."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.engine.failures import Cause, classify
from autotune.errors import FailureKind

SITE = "/env/lib/python3.12/site-packages"
CORE, API, WORKER = "(EngineCore pid=61)", "(APIServer pid=7)", "(Worker_TP1 pid=77)"
ENDED = f"{API} RuntimeError: Engine core initialization failed. See root cause above. {{}}"
# the frames that lead to a place, as FILE:FUNCTION
BOOT = ("v1/engine/core.py:run_engine_core", "v1/engine/core.py:__init__")
LOAD = (*BOOT, "v1/worker/gpu_worker.py:load_model", "v1/worker/gpu_model_runner.py:load_model")
DRAFT = (*LOAD, "v1/spec_decode/llm_base_proposer.py:load_model")
PROFILE = (*BOOT, "v1/worker/gpu_worker.py:determine_available_memory")
SERVE = ("v1/engine/core.py:run_busy_loop", "v1/worker/gpu_model_runner.py:execute_model")
CONFIG = (
    "entrypoints/openai/api_server.py:run_server",
    "engine/arg_utils.py:create_engine_config",
)


def engine_line(target: str = "org/big", draft: str | None = "org/small") -> str:
    """The line in which EngineCore logs its configuration."""
    spec = "None"
    if draft is not None:
        spec = f"SpeculativeConfig(method='eagle3', model='{draft}', num_spec_tokens=3)"
    return (
        f"{CORE} INFO 04-02 10:00:00 [core.py:120] Initializing a V1 LLM engine (v0.30.1) with "
        f"config: model='{target}', speculative_config={spec}, tokenizer='{target}'"
    )


def traceback(frames: Sequence[str], *error: str, code: str = "step()") -> list[str]:
    """A traceback; a frame with a path of its own is not below vLLM."""
    lines = ["Traceback (most recent call last):"]
    for frame in frames:
        file, _, function = frame.rpartition(":")
        path = file if file.startswith("/") else f"{SITE}/vllm/{file}"
        lines += [f'  File "{path}", line 218, in {function}', f"    {code}"]
    return [*lines, *error]


def logged(frames: Sequence[str], *error: str, code: str = "step()") -> list[str]:
    """What EngineCore logs of an exception, and how the API server ends."""
    head = f"{CORE} ERROR 04-02 10:00:09 [core.py:1001] "
    body = [head + line for line in traceback(frames, *error, code=code)]
    return [engine_line(), head + "EngineCore failed to start.", *body, ENDED]


def bare(frames: Sequence[str], *error: str, process: str = API) -> list[str]:
    """What a process writes at its end, without a logger."""
    return [f"{process} {line}" for line in traceback(frames, *error)]


def verdict(
    log: Sequence[str], exit_code: int | None = 1, default: FailureKind = FailureKind.CRASH
) -> Cause:
    return classify(log, exit_code=exit_code, default=default, reason="the server died")
