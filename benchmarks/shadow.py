"""Early ends in shadow mode: every look of real measurements is recorded, and nothing is ended.

    python benchmarks/shadow.py run benchmarks/shadow-gpu.yaml --out DIR [--loads 64,128]
    python benchmarks/shadow.py judge DIR... [--json FILE]

``run`` launches every point of a study once, in the order of its space, and measures each at every
load with sixteen requests a place, all of them sent. The looks are those of a study: its rivals are
the launches before that no other one beats. Each measurement becomes one file of DIR, so a run that
is broken off goes on.

``judge`` reads these files. A look is right about tok/s and p95 as far as they are those of the
same launch's own end; a verdict "dominated" is wrong where the launch's own end is not worse than
the rival in both. To have more verdicts than the runs give, every launch of all DIRs is judged
against every other one at its load as the only rival, too; two launches of one point are equal.
Next to it stands what autotune 0.1 would have seen at the same moments: the requests that had ended
by then, over a window from the first sending.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autotune.bench.looks import EarlyEnd, Look, Rival
from autotune.bench.sample import Sample
from autotune.bench.session import Measuring
from autotune.cli.console import Ui
from autotune.errors import AutotuneError
from autotune.search.front import front_numbers
from autotune.serving.machine import machine_line
from autotune.stats import (
    STOPPING_CONFIDENCE,
    Bounded,
    Domination,
    Looks,
    Measurement,
    expected_between,
    first_look,
    look_sizes,
    narrow_enough,
    percentile_interval,
    precise,
    quantile,
    throughput_interval,
)
from autotune.stats.stopping import Stop
from autotune.storage.lease import exclusive
from autotune.storage.names import output_folder
from autotune.storage.store import Store, opened
from autotune.study.files import load_study
from autotune.study.space import N, Point
from autotune.tuning.launcher import Launcher, LiveServer
from autotune.tuning.ledger import StoredLedger
from autotune.tuning.prepare import Prepared, prepare

TURNS = 16  # requests of each place
DIRECTIONS = ("maximize", "minimize")


# -- run ---------------------------------------------------------------------------------------


def run(study: Path, folder: Path, loads: Sequence[int]) -> None:
    """Measure what DIR does not have yet."""
    folder.mkdir(parents=True, exist_ok=True)
    loaded = load_study(study)
    database = folder / "launches.db"
    with Ui() as ui, exclusive(database), opened(database, create=True) as store:
        store.take_lease()
        prepared = prepare(loaded, ui)
        points = [q for q in prepared.spec.to_space().points() or () if not prepared.infeasible(q)]
        missing = [q for q in points if not all(_file(folder, x, q).exists() for x in loads)]
        ledger = StoredLedger(store, prepared.spec.name)
        logs = output_folder(database, prepared.spec.name) / "logs"
        with Launcher(prepared, ledger, logs) as launcher:
            for i, point in enumerate(missing):
                launcher.run(
                    points.index(point),
                    0,
                    point,
                    log=f"shadow-{points.index(point)}-0.log",
                    rests=[],
                    measure=partial(_measure, prepared, store, folder, loads, point),
                    say=lambda stage: print(f"{datetime.now(UTC):%H:%M:%S} {stage}", flush=True),
                    then=lambda most, i=i: missing[i + 1 :][:most],
                )


def _measure(
    prepared: Prepared,
    store: Store,
    folder: Path,
    loads: Sequence[int],
    point: Point,
    launched: LiveServer,
) -> None:
    """One launch at every load that is missing."""
    for load in loads:
        file = _file(folder, load, point)
        if file.exists():
            continue
        workload = prepared.spec.workload.model_copy(
            update={"max_concurrency": load, "num_prompts": TURNS * load}
        )
        spec = prepared.spec.model_copy(update={"workload": workload})
        sent = replace(
            prepared.workload,
            measured=prepared.workload.measured[: TURNS * load],
            arrivals=prepared.workload.arrivals[: TURNS * load],
        )
        kept: list[Sample] = []
        looks: list[Look] = []
        measuring = Measuring(
            launched.server,
            spec,
            prepared.objectives,
            keep=kept.extend,
            progress=lambda done, most: None,
        )
        others = list(launches_of(folder, load))
        result = measuring.measure(
            sent,
            launched.rest,
            whole=False,
            rivals=_front(others),
            finished=max(1, len(others)),
            shadow=looks.append,
        )
        ok = sorted((s for s in kept if s.phase == "measure"), key=lambda s: s.start)
        about = {
            "point": dict(point),
            "load": load,
            "values": result.values,
            "intervals": {k: [i.low, i.high] for k, i in result.intervals.items()},
            "errors": result.errors,
            "acceptance_length": result.stats.acceptance_length,
            "warmup_requests": result.warmup_requests,
            "steady": result.steady,
            "drift": result.drift,
            "looks": [asdict(x) for x in looks],
            "vllm": store.launches.get(launched.launch_id).vllm_version,
            "machine": machine_line(store.launches.get(launched.launch_id).machine),
            "measured": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        }
        draft = file.with_suffix(".new.npz")
        np.savez_compressed(
            draft,
            start=np.array([s.start for s in ok], dtype=np.float32),
            end=np.array([s.end for s in ok], dtype=np.float32),
            ttft=np.array([s.ttft for s in ok], dtype=np.float32),
            output_tokens=np.array([s.output_tokens for s in ok], dtype=np.int32),
            prompt_tokens=np.array([s.prompt_tokens for s in ok], dtype=np.int32),
            about=np.array(json.dumps(about)),
        )
        draft.replace(file)
        print(f"n = {point[N]} at {load}: {result.values}, {len(looks)} looks", flush=True)


def _file(folder: Path, load: int, point: Point) -> Path:
    return folder / f"load-{load}-n-{point[N]}.npz"


def _front(launches: Sequence[Shadowed]) -> list[Rival]:
    values = {i: list(x.values) for i, x in enumerate(launches)}
    return [Rival(launches[i].n, launches[i].m) for i in front_numbers(values, DIRECTIONS)]


# -- judge -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shadowed:
    """One measurement.

    Attributes:
        n: Drafted tokens a step.
        m: All of its requests.
        about: What was written down beside them.
    """

    n: int
    m: Measurement
    about: dict[str, Any]

    @property
    def values(self) -> tuple[float, float]:
        """tok/s and p95 E2EL in ms, at its end."""
        return self.m.throughput, 1000 * quantile(self.m.e2el, 95)


def launches_of(folder: Path, load: int) -> Iterator[Shadowed]:
    """What was measured at one load, in the order in which it was."""
    found = []
    for file in folder.glob(f"load-{load}-n-*.npz"):
        if file.name.endswith(".new.npz"):
            continue
        with np.load(file) as data:
            about = json.loads(str(data["about"]))
            start, end, ttft = (data[k].astype(np.float64) for k in ("start", "end", "ttft"))
            # the chunks themselves are not kept: evenly spread, for what 0.1 would have seen
            chunks = tuple(np.linspace(t, s, 16) for t, s in zip(ttft, end - start, strict=True))
            m = Measurement(
                intended=np.zeros(len(start)),
                start=start,
                ttft=ttft,
                end=end,
                prompt_tokens=data["prompt_tokens"],
                output_tokens=data["output_tokens"],
                chunks=chunks,
                latency_from="send",
                concurrency=load,
            )
        found.append(Shadowed(about["point"][N], m, about))
    return iter(sorted(found, key=lambda x: x.about["measured"]))


def bounded(m: Measurement) -> list[Bounded]:
    """tok/s and p95 of E2EL, s."""
    return [
        Bounded(m.throughput, partial(throughput_interval, m)),
        Bounded(quantile(m.e2el, 95), partial(percentile_interval, m.e2el, 95)),
    ]


@dataclass(frozen=True)
class Judged:
    """One launch as a trial, with a verdict or none.

    Attributes:
        size: Requests that counted when it ended, all of them without a verdict.
        verdict: What ended it.
        first: tok/s at the first look, as a share of that of its own end.
        ended: The same of the requests that had ended by that moment, as 0.1 counted them.
    """

    size: int
    verdict: EarlyEnd | None
    first: float
    ended: float


def judge(trial: Shadowed, rivals: Sequence[Shadowed], minimum: int, precision: float) -> Judged:
    """Replay a measurement's looks with given rivals, early ends on."""
    m, places = trial.m, trial.m.concurrency
    sizes = look_sizes(first_look(minimum, places), len(m))
    sigma = expected_between(0.0, 0)
    test = Domination(len(sizes), DIRECTIONS, (sigma, sigma))
    others = [bounded(r.m) for r in rivals]
    seen: list[tuple[float, float]] = []
    now = 0.0

    def ask(size: int) -> EarlyEnd | None:
        head = m.head(size)
        if not seen:
            seen.append((head.throughput / m.throughput, _by_window(m, now) / m.throughput))
        found = bounded(head)
        narrow = precise([(b.value, b.interval(STOPPING_CONFIDENCE)) for b in found], precision)
        if narrow and narrow_enough(size, places):
            return EarlyEnd(Stop.PRECISE)
        by = test.by(found, others)
        return None if by is None else EarlyEnd(Stop.DOMINATED, rivals[by].n)

    looks: Looks[EarlyEnd] = Looks(sizes, ask)
    events = sorted(
        [(t, 1, i) for i, t in enumerate(m.start)] + [(t, 0, i) for i, t in enumerate(m.end)]
    )
    for at, sent, i in events:
        if looks.over:
            break
        now = at
        if sent:
            looks.sent()
        else:
            looks.ended(i)
    return Judged(looks.size, looks.verdict, *(seen or [(math.nan, math.nan)])[0])


def _by_window(m: Measurement, at: float) -> float:
    """tok/s of the requests that have ended, from the first sending to the first end after the last
    of their sendings."""
    ended = np.flatnonzero(m.end <= at)
    starts, ends = m.start[ended], m.end[ended]
    close = ends[ends > starts.max()].min() if (ends > starts.max()).any() else at
    tokens = 0.0
    for i in ended:
        share = 1.0 if m.end[i] <= close else np.mean(m.chunks[i] <= close - m.start[i])
        tokens += m.output_tokens[i] * share
    return float(tokens / (close - m.start.min()))


def worse(a: Shadowed, b: Shadowed) -> bool:
    """Whether A's own end is worse than B's in both objectives."""
    return a.values[0] < b.values[0] and a.values[1] > b.values[1]


def report(folders: Sequence[Path]) -> dict[str, Any]:
    """Print what the looks found, and return it."""
    loads = sorted({int(f.name.split("-")[1]) for d in folders for f in d.glob("load-*-n-*.npz")})
    return {"loads": {load: _at(load, folders) for load in loads}}


def _at(load: int, folders: Sequence[Path]) -> dict[str, Any]:
    """One load."""
    every: list[Shadowed] = []
    rows = []
    for folder in folders:
        launches = list(launches_of(folder, load))
        every += launches
        about = launches[0].about
        print(f"\n{load} at a time; vLLM {about['vllm']}, {about['machine']}, {about['measured']}")
        print(
            f"{'n':>3}{'tok/s':>9}{'p95 ms':>9}{'first look':>12}{'0.1 saw':>9}"
            f"{'in the run':>30}{'judged':>8}"
        )
        for x in launches:
            alone = judge(x, [], 32, 1e-9)
            verdict = _verdict_of(x)
            right = _right(x, verdict, launches)
            rows.append(
                {
                    "folder": folder.name,
                    "n": x.n,
                    "values": x.values,
                    "first_look": alone.first,
                    "as_0.1": alone.ended,
                    "verdict": verdict,
                    "right": right,
                }
            )
            words = "none" if verdict is None else f"{verdict['words']} at {verdict['size']}"
            held = {None: "", True: "right", False: "WRONG"}[right]
            print(
                f"{x.n:>3}{x.values[0]:>9.0f}{x.values[1]:>9.0f}{alone.first:>12.1%}"
                f"{alone.ended:>9.1%}{words:>30}{held:>8}"
            )
    pairs = [(x, y, judge(x, [y], 32, 1e-9)) for x in every for y in every if x is not y]
    groups = {
        "equal": [p for p in pairs if p[0].n == p[1].n],
        "better": [p for p in pairs if p[0].n != p[1].n and not worse(p[0], p[1])],
        "worse": [p for p in pairs if p[0].n != p[1].n and worse(p[0], p[1])],
        "half": [p for p in pairs if p[0].n != p[1].n and _half(p[0], p[1])],
    }
    words = {
        "equal": "two launches of one point",
        "better": "not worse in both at its own end",
        "worse": "worse in both at its own end",
        "half": "of these with half the tok/s and twice the p95, or worse",
    }
    out: dict[str, Any] = {"rows": rows, "pairs": {}}
    for name, found in groups.items():
        ended = [(x, j) for x, _, j in found if j.verdict is not None]
        share = float(np.mean([j.size / len(x.m) for x, j in ended])) if ended else None
        out["pairs"][name] = {"pairs": len(found), "ended": len(ended), "share": share}
        at = "" if share is None else f" at {share:.0%} of their requests"
        print(f"{words[name]}: {len(ended)} of {len(found)} ended early{at}")
    return out


def _half(a: Shadowed, b: Shadowed) -> bool:
    return 2 * a.values[0] <= b.values[0] and a.values[1] >= 2 * b.values[1]


def _verdict_of(x: Shadowed) -> dict[str, Any] | None:
    """The first verdict that was recorded in the run."""
    for look in x.about["looks"]:
        if (v := look["verdict"]) is not None:
            words = "precise" if v["by"] is None else f"dominated by n = {v['by']}"
            return {"size": look["size"], "by": v["by"], "words": words}
    return None


def _right(
    x: Shadowed, verdict: dict[str, Any] | None, launches: Sequence[Shadowed]
) -> bool | None:
    """Whether a verdict holds at the launch's own end; None: there is none."""
    if verdict is None:
        return None
    if verdict["by"] is not None:
        return worse(x, next(y for y in launches if y.n == verdict["by"]))
    head = x.m.head(verdict["size"])
    found = (
        (throughput_interval(head, STOPPING_CONFIDENCE), x.m.throughput),
        (
            percentile_interval(head.e2el, 95, STOPPING_CONFIDENCE),
            quantile(x.m.e2el, 95),
        ),
    )
    return all(
        i.low is not None and i.high is not None and i.low <= end <= i.high for i, end in found
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("study", type=Path)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--loads", default="64,128")
    two = commands.add_parser("judge")
    two.add_argument("folders", type=Path, nargs="+")
    two.add_argument("--json", type=Path)
    args = parser.parse_args()
    try:
        if args.command == "run":
            run(args.study, args.out, [int(x) for x in args.loads.split(",")])
        else:
            found = report(args.folders)
            if args.json:
                args.json.write_text(json.dumps(found, indent=1) + "\n")
    except AutotuneError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from e


if __name__ == "__main__":
    main()
