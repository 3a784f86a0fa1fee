"""Is what a rehearsal measures true? Real servers against rehearsed ones, launched in turn.

    python benchmarks/rehearsal_truth.py STUDY.yaml --out FILE.json [--n 0 3 7 15] [--loads 1 8 32]
        [--rounds 4] [--answers 64] [--together 4] [--most K]
    python benchmarks/rehearsal_truth.py --show FILE.json

The study has real weights. Each round launches a real server and a rehearsed one at each n, in turn
(rehearsed, real; real, rehearsed), and each of them serves all loads. The rehearsed server has
random weights for target and draft, and the acceptance by position that the real server of this n
counted in the first round, over all loads; that round launches all real ones first. Everything else
is the same: flags, requests, tokens per answer. With `--together` so many start at the same time
and are then measured one after the other, as with `server.ahead`, whose needs the study then must
meet. On a CPU, where vLLM plays no acceptance, only n = 0 can be compared.

A ratio is rehearsed over real, of tok/s and p95 latency, with a 95 % interval (Student's t of the
logarithms of the rounds' ratios, so two rounds at least). Tokens per step that both counted are
next to it. A launch is written as soon as it has been measured, and the same command goes on where
it was interrupted; `--most` ends it after so many launches.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from idle_neighbours import (
    Machine,
    objectives,
    ratio,
    served,
    shown_or_measured,
    started_together,
)

from autotune.engine.draft_method import with_method
from autotune.engine.probe import VllmInfo, probe
from autotune.serving.machine import describe_machine, machine_line
from autotune.serving.server import Server
from autotune.stats import Measurement
from autotune.study.files import LoadedStudy, load_study
from autotune.study.rehearsal import AcceptanceSpec, RehearsalSpec, WeightsSpec, played
from autotune.study.space import MNBT, ChoiceParam, N, Point

REAL, REHEARSED = "real", "rehearsed"
WARMUP_REQUESTS = 8  # of each load but the first, which has the study's own warm-up


def rehearsed(study: LoadedStudy, rates: Sequence[float] | None) -> LoadedStudy:
    """The study with random weights and a given acceptance; without one, for n = 0."""
    given = None if rates is None else AcceptanceSpec(rates=list(rates))
    how = RehearsalSpec(acceptance=given, weights=WeightsSpec(target="dummy", draft="dummy"))
    spec = study.spec.model_copy(update={"rehearsal": how})
    n = {N: ChoiceParam(type="choice", choices=tuple(sorted({0, len(rates or ())})))}
    shown = spec.model_copy(update={"space": spec.space | n})  # no n beyond the counted ones
    server = spec.server.playing(played(shown))
    return study.model_copy(update={"spec": spec.model_copy(update={"server": server})})


def at_loads(study: LoadedStudy, server: Server, loads: Sequence[int], answers: int) -> Any:
    """What a server gives at each load, with what it counted."""
    rows = []
    for i, places in enumerate(loads):
        change = {"max_concurrency": places, "num_prompts": max(answers, 4 * places)}
        if i:
            change["warmup_prompts"] = WARMUP_REQUESTS
        load = study.spec.workload.model_copy(update=change)
        sent, counted = served(server, load, study.base)
        m = Measurement.of(sent, load.latency_origin, load.places, busy=False)
        rows.append(
            {
                "load": places,
                "values": {o.name: o.value(m) for o in objectives(study)},
                "drafts": counted.drafts,
                "tokens_per_step": counted.acceptance_length,
                "acceptance": list(counted.acceptance_per_position),
            }
        )
    return rows


def counted_rates(launches: Sequence[dict[str, Any]], n: int) -> list[float] | None:
    """Acceptance by position of the first real launch of an n, over all its loads."""
    first = next(x for x in launches if x["n"] == n and x["which"] == REAL)
    drafts = sum(row["drafts"] or 0 for row in first["loads"])
    if not drafts:
        return None
    shares = [
        sum(row["drafts"] * row["acceptance"][i] for row in first["loads"]) / drafts
        for i in range(n)
    ]
    return [
        min(shares[: i + 1]) for i in range(n)
    ]  # a count may exceed its predecessor by rounding


def order(ns: Sequence[int], rounds: int) -> Iterator[tuple[int, int, str]]:
    """Round, n and kind of each launch."""
    for which in (REAL, REHEARSED):
        for n in ns:
            yield 0, n, which
    for i in range(1, rounds):
        for n in ns:
            for which in (REAL, REHEARSED)[:: 1 if i % 2 == 0 else -1]:
                yield i, n, which


def together(
    todo: Sequence[tuple[int, int, str]], launches: Sequence[dict[str, Any]], most: int
) -> Sequence[tuple[int, int, str]]:
    """The next launches that can start now: the acceptance of each is known."""
    counted = {x["n"] for x in launches if x["which"] == REAL}
    known = [which == REAL or n in counted for _i, n, which in todo[:most]]
    return todo[: known.index(False) if False in known else most]


def served_in_turn(
    parts: Sequence[tuple[LoadedStudy, Point]], info: VllmInfo, args: argparse.Namespace
) -> Iterator[list[dict[str, Any]]]:
    """Start a server for each study and point; yield what each of them gives, and end it."""
    with ExitStack() as ends:
        logs = args.out.parent / f"{args.out.stem}-logs"
        machines: dict[str, Machine] = {}
        starts = []
        for study, point in parts:
            key = study.spec.server.model_dump_json()
            if key not in machines:
                machines[key] = Machine(study, info, logs, ends)
            starts.append((machines[key], point))
        servers = started_together(starts, ends)
        for server, (study, _point) in zip(servers, parts, strict=True):
            yield list(at_loads(study, server, args.loads, args.answers))
            server.stop(last=False)  # others hold their memory meanwhile


def compared(launches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rehearsed over real of each n and load."""
    out = []
    kept = {(x["round"], x["n"], x["which"]): x["loads"] for x in launches}
    for n in dict.fromkeys(x["n"] for x in launches):
        pairs = [
            (kept[i, n, REAL], kept[i, n, REHEARSED])
            for i in dict.fromkeys(x["round"] for x in launches)
            if (i, n, REAL) in kept and (i, n, REHEARSED) in kept
        ]
        if len(pairs) < 2:
            continue
        for k, row in enumerate(pairs[0][0]):
            rounds = [{REAL: a[k]["values"], REHEARSED: b[k]["values"]} for a, b in pairs]
            steps = [[x[i][k]["tokens_per_step"] for x in pairs] for i in (0, 1)]
            out.append(
                {
                    "n": n,
                    "load": row["load"],
                    "rounds": len(pairs),
                    "tokens_per_step": dict(zip((REAL, REHEARSED), steps, strict=True)),
                    "ratios": {o: ratio(rounds, REHEARSED, REAL, o) for o in row["values"]},
                }
            )
    return out


def table(found: dict[str, Any]) -> Iterator[str]:
    """Yield the ratios in Markdown."""
    rows = found["compared"]
    names = list(rows[0]["ratios"]) if rows else []
    yield f"| n | load | rounds | {' | '.join(names)} | tokens a step, real | rehearsed |"
    yield f"|{'--:|' * (5 + len(names))}"
    for row in rows:
        cells = [
            f"{r['ratio']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for r in row["ratios"].values()
        ]
        for which in (REAL, REHEARSED):
            known = [x for x in row["tokens_per_step"][which] if x is not None]
            cells.append(f"{sum(known) / len(known):.2f}" if known else "1")
        yield f"| {row['n']} | {row['load']} | {row['rounds']} | {' | '.join(cells)} |"


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Launch what is missing; return everything."""
    study = with_method(load_study(args.study))
    workload = study.spec.workload.model_copy(update={"ignore_eos": True})
    study = study.model_copy(update={"spec": study.spec.model_copy(update={"workload": workload})})
    info = probe(study.spec.server)
    if info.device == "cpu" and any(args.n):
        raise SystemExit("on a CPU vLLM plays no acceptance, so that only --n 0 can be compared")
    found = json.loads(args.out.read_text()) if args.out.exists() else {"launches": []}
    launches = found["launches"]
    point = study.spec.baseline | {MNBT: args.mnbt}
    todo = list(order(args.n, args.rounds))[len(launches) :][: args.most]
    while batch := together(todo, launches, args.together):
        todo = todo[len(batch) :]
        given = [None if w == REAL or n == 0 else counted_rates(launches, n) for _i, n, w in batch]
        parts = [
            (study if which == REAL else rehearsed(study, rates), {**point, N: n})
            for (_i, n, which), rates in zip(batch, given, strict=True)
        ]
        results = served_in_turn(parts, info, args)
        for (i, n, which), rates, loads in zip(batch, given, results, strict=True):
            launches.append({"round": i, "n": n, "which": which, "rates": rates, "loads": loads})
            print(json.dumps(launches[-1]), flush=True)
            found = {
                "command": " ".join(["python", *sys.argv]),
                "study": study.spec.name,
                "vllm": info.version,
                "machine": machine_line(describe_machine()),
                "mnbt": args.mnbt,
                "launches": launches,
                "compared": compared(launches),
            }
            args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return dict(found)


def main() -> None:
    """Measure or show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[0, 3, 7, 15])
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--mnbt", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--answers", type=int, default=64, help="of each load, at least")
    parser.add_argument("--together", type=int, default=1, help="servers that start together")
    found = shown_or_measured(parser, measure)
    print("\n".join(table(found | {"compared": compared(found["launches"])})))


if __name__ == "__main__":
    main()
