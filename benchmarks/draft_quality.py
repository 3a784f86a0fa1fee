"""How far off `autotune predict` is for a draft of another acceptance length, by rehearsal.

    python benchmarks/draft_quality.py STUDY.yaml autotune.db --length 3.5,5 --out checked.json

For each length it launches the best n that `autotune predict --length` names, with vLLM's synthetic
acceptance of that row's curve, and n = 0, there and back (0, row, row, row, row, 0). All launches
have the other parameters of the study's best trial and the study's own requests. Kept of each
launch: tok/s and the counted acceptance length. A row's error is predicted over measured tok/s, and
the same of its speed-up over n = 0, which does not depend on the machine's speed on that day.

It needs a GPU: on a CPU vLLM's synthetic acceptance ends the engine at the first request. The
study's closed loop is sent whole, so a study with an open loop is refused. Launches that the file
has are kept, so the same command goes on with the next.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from idle_neighbours import served

from autotune.engine.command import free_port, plan_launch
from autotune.engine.draft_method import with_method
from autotune.engine.given_acceptance import with_acceptance
from autotune.engine.probe import VllmInfo, probe
from autotune.results.prediction import Outlook, Wanted, outlooks
from autotune.results.trials import study_view
from autotune.search.draft_quality import WhatIf
from autotune.serving.machine import describe_machine, machine_line
from autotune.serving.resolve import model_resolver
from autotune.serving.server import Server
from autotune.stats import Measurement
from autotune.storage.store import opened
from autotune.study.files import LoadedStudy, load_study
from autotune.study.schema import ServerSpec
from autotune.study.space import N, Value

ROUNDS = 2


def measured(
    loaded: LoadedStudy, info: VllmInfo, point: Mapping[str, Value], server: ServerSpec, log: Path
) -> dict[str, Any]:
    """Launch a server and return tok/s and the counted acceptance length."""
    load = loaded.spec.workload
    plan = plan_launch(
        server,
        point,
        info,
        port=free_port(),
        launch_id=(launch := uuid.uuid4().hex),
        resolve=model_resolver(loaded, info),
    )
    running = Server(plan, launch_id=launch, log_path=log, server=server, info=info)
    try:
        running.start()
        running.wait_ready(lambda _stage: None)
        samples, stats = served(running, load, loaded.base)
    finally:
        running.stop()
    m = Measurement.of(samples, "send", load.max_concurrency, busy=False)
    return {"n": point[N], "tok_s": m.throughput, "acceptance_length": stats.acceptance_length}


def compared(rows: Sequence[WhatIf], launches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return predicted against measured, for each row."""

    def mean(row: int | None) -> float:
        logs = [math.log(x["tok_s"]) for x in launches if x["row"] == row]
        return math.exp(statistics.fmean(logs)) if logs else math.nan

    out = []
    for i, row in enumerate(rows):
        rate, speedup = mean(i), mean(i) / mean(None)
        found = [x["acceptance_length"] for x in launches if x["row"] == i]
        out.append(
            {
                "acceptance_length": row.length,
                "at_n": row.at_n,
                "n": row.best.n,
                "tokens_per_step": row.best.tokens_per_step,
                "counted_tokens_per_step": found,
                "predicted_tok_s": row.best.rate,
                "measured_tok_s": rate,
                "error": row.best.rate / rate - 1,
                "predicted_speedup": row.speedup,
                "measured_speedup": speedup,
                "error_of_speedup": row.speedup and row.speedup / speedup - 1,
            }
        )
    return out


def asked(
    loaded: LoadedStudy, database: Path, lengths: Sequence[float], at_n: int | None
) -> tuple[Outlook, list[WhatIf], dict[str, Value]]:
    """Return the outlook, its rows of these lengths, and the point of the study's best trial."""
    with opened(database) as store:
        view = study_view(store, loaded.spec.name)
    best = view.best(balanced=True)
    if best is None:
        sys.exit(f"{database}: {loaded.spec.name} has no trial with numbers")
    found = outlooks(view, loaded.spec.to_space(), Wanted(tuple(lengths), at_n), closed=True)[0]
    rows = [row for row in found.drafts if row.shift != 0]
    if unwanted := [row.length for row in rows if row.best.n == 0]:
        sys.exit(f"at length {unwanted[0]:g} no n pays by the prediction: nothing to rehearse")
    return found, rows, dict(best.point)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("database", type=Path)
    parser.add_argument("--length", required=True, help="acceptance lengths, with commas")
    parser.add_argument("--at-n", type=int)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="launches of each row")
    parser.add_argument("--most", type=int, default=10**6, help="launches of this call")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    loaded = with_method(load_study(args.study))
    if loaded.spec.workload.open_loop:
        sys.exit(f"{args.study}: workload is an open loop, whose tok/s are given")
    info = probe(loaded.spec.server)
    if info.device == "cpu":
        sys.exit("synthetic acceptance needs a GPU: on a CPU vLLM ends at the first request")
    lengths = [float(x) for x in args.length.split(",")]
    found, rows, point = asked(loaded, args.database, lengths, args.at_n)
    there: list[int | None] = [None, *range(len(rows))]
    order = [x for i in range(args.rounds) for x in (there if i % 2 == 0 else there[::-1])]
    launches: list[dict[str, Any]] = (
        json.loads(args.out.read_text())["launches"] if args.out.exists() else []
    )
    with tempfile.TemporaryDirectory(prefix="autotune-quality-") as folder:
        for row in order[len(launches) :][: args.most]:
            n = 0 if row is None else rows[row].best.n
            server = loaded.spec.server
            if row is not None:
                server = with_acceptance(server, rows[row].per_position)
            log = Path(folder, f"{len(launches)}.log")
            one = measured(loaded, info, {**point, N: n}, server, log)
            launches.append({"row": row, **one})
            print(json.dumps(launches[-1]), flush=True)
            out = {
                "command": " ".join(["python", *sys.argv]),
                "vllm": info.version,
                "machine": machine_line(describe_machine()),
                "launches": launches,
                "compared": compared(rows, launches),
                "error_by_n": {r.n: r.error for r in found.rows if r.error is not None},
            }
            args.out.write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps(compared(rows, launches), indent=2))


if __name__ == "__main__":
    main()
