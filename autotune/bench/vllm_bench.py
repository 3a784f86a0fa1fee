"""``vllm bench serve`` as a child process, and the result file that it writes.

It runs under the same supervisor as a server (:class:`autotune.serving.server.Server`), so that no
process of it outlives an interruption, a time-out, or autotune. It sends the requests that
:mod:`autotune.bench._vllm_bench` reads from a file, and only to the server on 127.0.0.1.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from autotune.engine.command import free_port, plan_launch
from autotune.engine.failures import classify
from autotune.engine.probe import VllmInfo, probe
from autotune.errors import FailureKind, MeasureError, UserError
from autotune.serving.server import Server
from autotune.study.schema import ServerSpec
from autotune.study.workload import WorkloadSpec

_SCRIPT = Path(__file__).with_name("_vllm_bench.py")
METRICS = ("ttft", "tpot", "itl", "e2el")
PERCENTS = (50, 95, 99)
# Environment variables that make a client send its requests elsewhere, or with another key.
_ELSEWHERE = {"http_proxy", "https_proxy", "all_proxy", "openai_api_key"}


class BenchResult(BaseModel):
    """Result of one run (``vllm/benchmarks/serve.py``, ``--save-result --save-detailed``).

    Lists have one entry for each request, in the order of the requests. vLLM's own figures, such as
    ``output_throughput`` and ``p95_e2el_ms``, are in :attr:`figures`.

    Attributes:
        duration: Seconds from before the first request to after the last.
        start_times: Times of sending, in seconds on a clock of the run.
        ttfts: Seconds from the sending to the first chunk with a choice.
        itls: Seconds between such chunks.
        input_lens: Numbers of prompt tokens, by usage.
        output_lens: Numbers of output tokens, by usage; 0 for a request that failed.
        errors: Error texts; empty for a successful request.
        latencies: Seconds from the sending to the end; None: an older vLLM, which saves none.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    duration: float
    start_times: tuple[float, ...]
    ttfts: tuple[float, ...]
    itls: tuple[tuple[float, ...], ...]
    input_lens: tuple[int, ...]
    output_lens: tuple[int, ...]
    errors: tuple[str, ...]
    latencies: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _one_entry_each(self) -> BenchResult:
        lists = [self.ttfts, self.itls, self.input_lens, self.output_lens, self.errors]
        lists += [] if self.latencies is None else [self.latencies]
        if any(len(x) != len(self.start_times) for x in lists):
            raise ValueError("its lists have different lengths")
        return self

    @property
    def figures(self) -> dict[str, float]:
        """vLLM's own figures by vLLM's names."""
        extra = self.model_extra or {}
        return {k: float(v) for k, v in extra.items() if type(v) in (int, float)}


def read_result(path: Path, count: int) -> BenchResult:
    """Read the result file of a run.

    Args:
        path: File written by ``vllm bench serve --save-result --save-detailed``.
        count: Number of requests that it must have.

    Raises:
        MeasureError: the file is missing or no result file, or requests failed or are missing.
    """
    try:
        result = BenchResult.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as e:
        words = " ".join(str(e).split())[:200]
        raise MeasureError(
            FailureKind.REQUESTS, f"{path}: cannot be read as a result of vllm bench serve: {words}"
        ) from e
    failed = [
        error.strip() or "no token"
        for error, tokens in zip(result.errors, result.output_lens, strict=True)
        if error or tokens == 0
    ]
    if failed or len(result.errors) != count:
        why = (
            f"{len(failed)} failed: {failed[0].splitlines()[-1]}" if failed else "the rest is lost"
        )
        raise MeasureError(
            FailureKind.REQUESTS,
            f"vllm bench serve reports {len(result.errors)} of {count} requests, {why}",
        )
    return result


def bench_vllm(info: VllmInfo) -> VllmInfo:
    """Return the vLLM whose ``bench serve`` is run.

    It is the server's, or that of autotune's environment if the server runs in a container.

    Raises:
        UserError: neither can be run.
    """
    if info.python is not None:
        return info
    try:
        return probe(ServerSpec(model=""))
    except UserError as e:
        raise UserError(
            f"server.command: {info.notes[0]}, so its `vllm bench serve` cannot be run, and {e}"
        ) from e


def bench_argv(
    python: str,
    *,
    base_url: str,
    model: str,
    chat: bool,
    requests: Path,
    count: int,
    load: WorkloadSpec,
    result: Path,
) -> list[str]:
    """Return the command line of one run.

    vLLM's own warm-up is off, because it would repeat the first prompt, which is measured.
    """
    argv = [python, str(_SCRIPT)]
    argv += ["--backend", "openai-chat" if chat else "openai"]
    argv += ["--endpoint", "/v1/chat/completions" if chat else "/v1/completions"]
    argv += ["--base-url", base_url, "--model", model]
    argv += ["--dataset-name", "custom", "--dataset-path", str(requests)]
    argv += ["--num-prompts", str(count), "--temperature", str(load.temperature)]
    if load.max_concurrency is not None:
        argv += ["--max-concurrency", str(load.max_concurrency)]
    if not math.isinf(load.request_rate):
        argv += ["--request-rate", str(load.request_rate)]
    if load.ignore_eos:
        # with the text of special tokens, as autotune's client requests it
        argv += ["--ignore-eos", "--extra-body", json.dumps({"skip_special_tokens": False})]
    argv += ["--num-warmups", "0", "--ready-check-timeout-sec", "0", "--disable-tqdm"]
    argv += ["--percentile-metrics", ",".join(METRICS)]
    argv += ["--metric-percentiles", ",".join(map(str, PERCENTS))]
    argv += ["--save-result", "--save-detailed"]
    return [*argv, "--result-dir", str(result.parent), "--result-filename", result.name]


def run_bench(
    argv: Sequence[str],
    server: ServerSpec,
    info: VllmInfo,
    *,
    api_key: str,
    log_path: Path,
    timeout_s: float,
) -> None:
    """Run ``vllm bench serve`` to its end; no process of it is left when this returns or raises.

    Args:
        argv: Command line from :func:`bench_argv`.
        server: The study's server, for its environment.
        info: The vLLM to run, from :func:`bench_vllm`.
        api_key: API key of the server that it measures.
        log_path: File for its output.
        timeout_s: Seconds after which it is ended.

    Raises:
        TrialFailure: it could not be started, did not end in time, or failed.
    """
    launch_id = uuid.uuid4().hex
    # only the environment of this plan is used; nothing listens on its port
    plan = plan_launch(
        server.model_copy(update={"command": None}),
        {},
        info,
        port=free_port(),
        launch_id=launch_id,
        resolve=lambda ref: ref,
    )
    plan = replace(plan, argv=tuple(argv), env=_environment(plan.env, api_key))
    bench = Server(plan, launch_id=launch_id, log_path=log_path, server=server, info=info)
    with owned(bench):
        bench.start()
        deadline = time.monotonic() + timeout_s
        while not bench.died(1.0):
            if time.monotonic() > deadline:
                raise MeasureError(
                    FailureKind.HANG, f"vllm bench serve did not end within {timeout_s:.0f} s"
                )
    code = bench.stop().exit_code
    if code != 0:
        why = classify(
            bench.log_tail(400),
            exit_code=code,
            default=FailureKind.REQUESTS,
            reason="vllm bench serve failed",
        )
        raise MeasureError(why.kind, why.reason, why.evidence)


def _environment(env: Mapping[str, str], api_key: str) -> dict[str, str]:
    kept = {k: v for k, v in env.items() if k.lower() not in _ELSEWHERE}
    return {**kept, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": api_key}


@contextmanager
def owned(server: Server) -> Iterator[None]:
    """Stop a server at the end of the block in any case; at once when interrupted twice."""
    try:
        yield
    finally:
        try:
            server.stop()
        except KeyboardInterrupt:
            server.stop(force=True)
            raise
