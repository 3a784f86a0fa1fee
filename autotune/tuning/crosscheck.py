"""Measures one launch of a real server with our client and with ``vllm bench serve``.

Both send the same requests with the same sampling, concurrency and arrival times, one after the
other in the order A B B A A B …, so that a slower or faster machine affects both equally.
Prefix caching is off, or the second client would find the prompts cached. What the runs amount to:
:mod:`autotune.results.client_agreement`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from autotune.bench.sample import Sample
from autotune.bench.sending import blamed, send
from autotune.bench.server_metrics import difference, scrape
from autotune.bench.vllm_bench import bench_argv, bench_vllm, read_result, run_bench
from autotune.bench.workload import Request
from autotune.engine.probe import VllmInfo
from autotune.errors import FailureKind, MeasureError, NothingUsable, TrialFailure, UserError
from autotune.results.client_agreement import (
    BENCH,
    OURS,
    Crosscheck,
    Run,
    check_summary,
    figures_of,
    notes_of,
    samples_of,
)
from autotune.results.text import point_text, upper
from autotune.serving.machine import machine_line
from autotune.serving.server import Server
from autotune.stats import Measurement
from autotune.storage.schema import LaunchRow
from autotune.study.schema import StudySpec
from autotune.study.space import N, Point, Value
from autotune.study.workload import WorkloadSpec
from autotune.tuning.launcher import Launcher, LiveServer
from autotune.tuning.ledger import Ledger
from autotune.tuning.prepare import Prepared, baseline_point
from autotune.tuning.progress import OUTSIDE, Progress
from autotune.tuning.tools import Tools
from autotune.tuning.trial import Measured, attempts

DEFAULT_N = 3
_BENCH_START_S = 300.0  # it imports vLLM: 10 s on two idle cores
_PREFIX_CACHING = "enable_prefix_caching"


def crosscheck(
    prepared: Prepared,
    *,
    n: int | None,
    rounds: int,
    out: Path | None,
    progress: Progress,
    tools: Tools | None = None,
) -> Crosscheck:
    """Launch one server and measure it with both clients in turn.

    Args:
        prepared: The study, checked.
        n: Tokens drafted per step; None: 3 where that can launch, or the study's baseline.
        rounds: Runs of each client.
        out: Folder for the raw data and a README; made, must be empty. None: a new one in the
            study's own folder.
        progress: Told of what happens.
        tools: What the server is made with; None: this machine's.

    Raises:
        UserError: the point cannot be launched, bench cannot send the requests or be run, or
            ``out`` is in use.
        NothingUsable: the launch or a run failed.
    """
    spec = prepared.spec
    point = chosen_point(prepared, n)
    chat = _one_endpoint(prepared)
    bench_info = bench_vllm(prepared.info)
    folder = _folder(spec, out)
    task = _Runs(prepared, point, chat, bench_info, folder, rounds, progress)
    ledger = Ledger()
    with Launcher(prepared, ledger, folder / "logs", warm=False, tools=tools) as launcher:
        outcome = attempts(task, launcher, ledger, ())
        machine = launcher.machine
    if not isinstance(outcome, Measured):
        reason, logs = outcome.failure.reason, folder / "logs"
        raise NothingUsable(f"{spec.name}: {reason}; the logs are in {logs}") from outcome.failure
    result = Crosscheck(
        study=spec.name,
        point=point,
        requests=len(prepared.workload.measured),
        vllm=task.version,
        bench_vllm=bench_info.version,
        machine=machine_line(machine),
        runs=task.runs,
        notes=[
            *([upper(spec.rehearsal_label) + "."] if spec.rehearsal_label else []),
            *notes_of(spec.workload, rounds, chat=chat),
        ],
    )
    (folder / "crosscheck.json").write_text(json.dumps(result.to_json(), indent=2) + "\n")
    title = f"# {spec.name}: {OURS} against `{BENCH}`"
    (folder / "README.md").write_text("\n".join([title, "", *result.lines(), ""]))
    progress.message(f"raw data: {folder}")
    return result


def chosen_point(prepared: Prepared, n: int | None) -> dict[str, Value]:
    """Return the study's baseline, with ``n`` tokens drafted per step.

    Raises:
        UserError: it cannot be launched.
    """
    baseline = baseline_point(prepared.spec)
    space = prepared.spec.to_space()

    def why_not(point: Point) -> str | None:
        try:
            space.encode(point)
        except ValueError as e:
            return str(e)
        return prepared.infeasible(point)

    for wanted in (DEFAULT_N, None) if n is None else (n,):
        point = baseline if wanted is None else {**baseline, N: wanted}
        if (why := why_not(point)) is None:
            return point
    raise UserError(f"{prepared.loaded.path}: {point_text(point)} cannot be launched: {why}")


def _one_endpoint(prepared: Prepared) -> bool:
    """Return True if the requests are chats, False if they are prompts.

    Raises:
        UserError: there are both, and bench sends to one endpoint only.
    """
    chats = {r.messages is not None for r in prepared.workload.measured}
    if len(chats) == 2:
        load = prepared.spec.workload
        where = "workload"
        if load.source is not None:
            key, file = load.source
            where += f".{key}: {prepared.loaded.base / file}"
        raise UserError(
            f"{prepared.loaded.path}: {where}: has requests with `messages` and requests with "
            "`prompt`; vllm bench serve sends all requests of a run to one endpoint"
        )
    return chats.pop()


def _folder(spec: StudySpec, out: Path | None) -> Path:
    folder = out or Path(f"autotune-{spec.name}", f"crosscheck-{datetime.now():%Y%m%d-%H%M%S}")
    try:
        if out is None:
            folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "logs").mkdir(mode=0o700, exist_ok=False)
    except FileExistsError:
        raise UserError(f"{folder}: holds another crosscheck; give another --out") from None
    except OSError as e:
        raise UserError(f"{folder}: cannot be written: {e.strerror}") from e
    return folder.absolute()


def bench_request(request: Request, arrival: float | None, load: WorkloadSpec) -> dict[str, Any]:
    """Return a request as vLLM's ``SampleRequest``, with the same seed as our client gives it."""
    if request.messages is not None:
        body: dict[str, Any] = {"prompt": "", "chat_messages": request.messages}
    else:
        body = {"prompt": request.prompt}
    body |= {"prompt_len": 0, "expected_output_len": request.output_len or load.output_len}
    body["request_overrides"] = {"seed": load.seed + request.index, **request.tool_keys}
    return body if arrival is None else {**body, "timestamp": arrival}


# of one run: its file, its samples, and what the client itself reports
_Raw = tuple[str, Sequence[Sample], dict[str, float]]


class _Runs:
    """The runs on one server, as a task of :func:`autotune.tuning.trial.attempts`.

    Attributes:
        runs: What was measured in the last launch.
        version: vLLM's version of its server.
    """

    number = 0

    def __init__(
        self,
        prepared: Prepared,
        point: Point,
        chat: bool,
        bench_info: VllmInfo,
        folder: Path,
        rounds: int,
        progress: Progress,
    ) -> None:
        self.point = {k: v for k, v in point.items() if k != _PREFIX_CACHING}
        self.runs: list[Run] = []
        self.version: str | None = None
        self._load = prepared.spec.workload
        self._workload = prepared.workload
        self._chat = chat
        self._bench_info = bench_info
        self._folder = folder
        self._rounds = rounds
        self._progress = progress
        self._longest_s = 0.0  # of our runs; the first run is one
        spec = prepared.spec.server
        flags = {**spec.flags, _PREFIX_CACHING: False}
        self.server = spec.model_copy(update={"flags": flags})

    def log(self, attempt: int) -> str:
        return f"server-{attempt}.log" if attempt else "server.log"

    def stage(self, text: str) -> None:
        self._progress.stage(OUTSIDE, text)

    def failed(self, failure: TrialFailure, *, retried: bool) -> None:
        if retried:
            self._progress.message(f"{failure.reason}; retrying once")

    def why_again(self, measured: Sequence[LaunchRow]) -> str | None:
        """Return None: what was measured counts."""

    def repeated(self, why: str) -> None:
        """Do nothing: see :meth:`why_again`."""

    def measure(self, live: LiveServer) -> None:
        """Run both clients in turn.

        Raises:
            MeasureError: the runs do not compare.
        """
        timed = self._load.open_loop
        each = zip(self._workload.measured, self._workload.arrivals, strict=True)
        rows = [bench_request(r, at if timed else None, self._load) for r, at in each]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self._folder / "requests.jsonl").write_text(text)
        turns = [(OURS, BENCH) if i % 2 == 0 else (BENCH, OURS) for i in range(self._rounds)]
        order = [client for turn in turns for client in turn]
        self.runs, self.version = [], live.version
        self.stage("warming")
        warmup = self._workload.warmup
        self._send(live.server, warmup, [0.0] * len(warmup), "warmup")
        tokens: set[tuple[tuple[int | None, ...], ...]] = set()
        for i, client in enumerate(order, start=1):
            self.stage(f"measuring with {client}, run {i} of {len(order)}")
            run, samples = self._run(live.server, client, i)
            tokens.add(tuple((s.prompt_tokens, s.output_tokens) for s in samples))
            self.runs.append(run)
        if len(tokens) > 1 and self._load.ignore_eos:
            raise MeasureError(
                FailureKind.REQUESTS, "the two clients did not send the same tokens, by usage"
            )

    def _run(self, server: Server, client: str, number: int) -> tuple[Run, Sequence[Sample]]:
        """Run one client.

        Raises:
            MeasureError: prompts came from the prefix cache.
        """
        plan = server.plan
        before = scrape(plan.base_url, plan.api_key)
        run = self._bench if client == BENCH else self._ours
        file, samples, own = run(server, number)
        stats = difference(before, scrape(plan.base_url, plan.api_key))
        if stats.prefix_cache_hits:
            raise MeasureError(
                FailureKind.REQUESTS,
                f"{stats.prefix_cache_hits} prompt tokens came from the prefix cache, although it "
                "was switched off: the runs do not compare",
            )
        figures = figures_of(Measurement.of(samples, "send")) | own
        return Run(client, file, figures, stats), samples

    def _ours(self, server: Server, number: int) -> _Raw:
        """Run our client."""
        samples = self._send(server, self._workload.measured, self._workload.arrivals, "measure")
        file = f"run-{number}-autotune.jsonl"
        lines = [json.dumps(dataclasses.asdict(s)) + "\n" for s in samples]
        (self._folder / file).write_text("".join(lines))
        self._longest_s = max(self._longest_s, *(s.end for s in samples))
        return file, samples, {}

    def _bench(self, server: Server, number: int) -> _Raw:
        """Run bench."""
        plan = server.plan
        file = self._folder / f"run-{number}-bench.json"
        count = len(self._workload.measured)
        assert self._bench_info.python is not None  # noqa: S101 – bench_vllm gives no other
        argv = bench_argv(
            self._bench_info.python,
            base_url=plan.base_url,
            model=plan.served_name,
            chat=self._chat,
            requests=self._folder / "requests.jsonl",
            count=count,
            load=self._load,
            result=file,
        )
        try:
            run_bench(
                argv,
                self.server,
                self._bench_info,
                api_key=plan.api_key,
                log_path=self._folder / "logs" / f"run-{number}-bench.log",
                timeout_s=_BENCH_START_S + 5 * self._longest_s,
            )
            if file.is_file():  # it holds what the server said in errors
                text = file.read_text(errors="replace")
                if (clean := plan.masked(text)) != text:
                    file.write_text(clean)
            result = read_result(file, count)
        except TrialFailure as e:
            raise blamed(server, e) from e
        check_summary(result)
        own = {"output_throughput": result.figures["output_throughput"]}
        return file.name, samples_of(result), own

    def _send(
        self, server: Server, requests: Sequence[Request], arrivals: Sequence[float], phase: str
    ) -> Sequence[Sample]:
        """Return our client's samples, in the order of the requests; all of them ok."""
        done = 0

        def on_done(_sample: Sample) -> None:
            nonlocal done
            done += 1
            self._progress.progress(OUTSIDE, done, len(requests))

        return send(server, self._load, requests, arrivals, phase, on_done)
