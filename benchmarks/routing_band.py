"""A rehearsal of a mixture of experts as a band: how routing changes its step time and speed-up.

    python benchmarks/routing_band.py STUDY.yaml --out FILE.json [--n 0,13] [--load C] [--mnbt M]
        [--routing collapsed,uniform] [--rounds 3] [--answers K] [--together 4] [--most K]
    python benchmarks/routing_band.py --show FILE.json

The time of a step depends on how many experts its tokens touch. Random weights decide that by
accident, and trained ones in another way. So the study, a rehearsal, is launched with every token
on the same experts (`collapsed`: as few as there can be), with experts that are drawn evenly
(`uniform`: about as many as there can be), and, if it is asked for, as the random weights have it
(`weights`). Each round launches every n under every routing, in an order that turns around from
round to round. `--together` starts so many servers at once, which needs a KV cache of fixed size;
each is measured alone, while the others idle. A launch whose log does not say that vLLM routed as
it was told ends the benchmark.

A speed-up is tok/s at n over tok/s at n = 0 of the same routing and round, with a 95 % interval
(Student's t of the logarithms of the rounds' ratios, so two rounds at least). The band goes from
the lowest to the highest of the routings. A step is the time between two tokens, times tokens a
step. A launch is written as soon as it has been measured; the same command goes on where it was
interrupted, and `--most` ends it after so many launches.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from idle_neighbours import (
    Machine,
    objectives,
    ratio,
    served,
    shown_or_measured,
    started_together,
)

from autotune.bench.sample import Sample
from autotune.engine.draft_method import with_method
from autotune.engine.probe import VllmInfo, probe
from autotune.engine.rehearsal import why_no_experts, why_not_here
from autotune.errors import UserError
from autotune.serving.machine import describe_machine, machine_line
from autotune.serving.server import Server
from autotune.stats import Measurement
from autotune.study.checkpoints import config_of
from autotune.study.files import LoadedStudy, load_study
from autotune.study.rehearsal import (
    BY_WEIGHTS,
    COLLAPSED,
    ROUTING_VARIABLE,
    UNIFORM,
    experts_in,
    played,
)
from autotune.study.space import MNBT, N

THROUGHPUT = "throughput"
Key = tuple[int, int, str]  # round, n, routing


def routed(study: LoadedStudy, routing: str) -> LoadedStudy:
    """The study with another routing of its tokens to experts."""
    how = study.spec.rehearsal
    if how is None:
        raise UserError(f"{study.path}: is no rehearsal; write `rehearsal: {{weights: dummy}}`")
    change = {"rehearsal": how.model_copy(update={"routing": routing})}
    spec = study.spec.model_copy(update=change)
    server = spec.server.playing(played(spec))
    return study.model_copy(update={"spec": spec.model_copy(update={"server": server})})


def order(ns: Sequence[int], routings: Sequence[str], rounds: int) -> Iterator[Key]:
    """Round, n and routing of each launch."""
    for i in range(rounds):
        turn = [(i, n, routing) for n in ns for routing in routings]
        yield from turn[:: 1 if i % 2 == 0 else -1]


def step_ms(samples: Sequence[Sample], tokens_per_step: float) -> float:
    """Milliseconds of a step: the mean time of a token after the first, times tokens a step."""
    times = [
        (s.end - s.start - s.ttft) / (s.output_tokens - 1)
        for s in samples
        if s.status == "ok" and s.ttft is not None and (s.output_tokens or 0) > 1
        if s.output_tokens is not None
    ]
    return 1000 * float(np.mean(times)) * tokens_per_step


def figures(study: LoadedStudy, server: Server, args: argparse.Namespace) -> dict[str, Any]:
    """What a healthy server gives under the load."""
    places = args.load or study.spec.workload.max_concurrency or 1
    answers = max(args.answers or study.spec.workload.num_prompts, places)
    change = {"max_concurrency": places, "num_prompts": answers}
    load = study.spec.workload.model_copy(update=change)
    sent, counted = served(server, load, study.base)
    m = Measurement.of(sent, load.latency_origin, load.places, busy=False)
    tokens = counted.acceptance_length or 1.0
    return {
        "load": places,
        "values": {o.name: o.value(m) for o in objectives(study)},
        "tokens_per_step": tokens,
        "step_ms": step_ms(sent, tokens),
    }


def check_routed(server: Server, routing: str) -> None:
    """Refuse a server that has not routed as it was told; vLLM says so at the first token."""
    if routing != BY_WEIGHTS and "MoE routing" not in server.log_path.read_text(errors="replace"):
        raise UserError(
            f"{server.log_path}: vLLM does not say that it routes as {ROUTING_VARIABLE} has it, so "
            "that the figures of this routing would be those of the weights"
        )


def group(
    machines: dict[str, Machine],
    study: LoadedStudy,
    todo: Sequence[Key],
    args: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Start the servers of some launches together, measure each alone, and end them."""
    with ExitStack() as ends:
        at = study.spec.baseline | {MNBT: args.mnbt}
        starts = [(machines[routing], {**at, N: n}) for _, n, routing in todo]
        servers = started_together(starts, ends)
        for server, (i, n, routing) in zip(servers, todo, strict=True):
            found = figures(study, server, args)
            check_routed(server, routing)
            yield {"round": i, "n": n, "routing": routing, **found}


def touched(experts: tuple[int, int], tokens: int, routing: str) -> float | None:
    """Experts of a layer that a step's tokens touch; None: the weights decide it."""
    total, used = experts
    if routing == BY_WEIGHTS:
        return None
    return used if routing == COLLAPSED else total * (1 - (1 - used / total) ** tokens)


def summary(
    launches: Sequence[dict[str, Any]], experts: tuple[int, int] | None
) -> list[dict[str, Any]]:
    """Figures of each n and routing over the rounds, with the speed-up over n = 0."""
    out = []
    kept = {(x["round"], x["n"], x["routing"]): x for x in launches}
    for n, routing in dict.fromkeys((x["n"], x["routing"]) for x in launches):
        own = [x for (_, m, how), x in kept.items() if (m, how) == (n, routing)]
        pairs = [
            {"with": x["values"], "without": kept[x["round"], 0, routing]["values"]}
            for x in own
            if n and (x["round"], 0, routing) in kept
        ]
        row = {
            "n": n,
            "routing": routing,
            "launches": len(own),
            "experts": touched(experts, own[0]["load"] * (n + 1), routing) if experts else None,
            THROUGHPUT: float(np.mean([x["values"][THROUGHPUT] for x in own])),
            "step_ms": float(np.mean([x["step_ms"] for x in own])),
            "step_ms_of_launches": [x["step_ms"] for x in own],
            "tokens_per_step": float(np.mean([x["tokens_per_step"] for x in own])),
            "speed_up": ratio(pairs, "with", "without", THROUGHPUT) if pairs else None,
        }
        out.append(row)
    return out


def bands(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The speed-up of each n from the lowest to the highest of its routings."""
    out = []
    for n in dict.fromkeys(row["n"] for row in rows if row["speed_up"]):
        own = {r["routing"]: r["speed_up"] for r in rows if r["n"] == n and r["speed_up"]}
        by = sorted(own, key=lambda routing: own[routing]["ratio"])
        low, high = (own[x]["ratio"] for x in (by[0], by[-1]))
        out.append({"n": n, "low": low, "low_of": by[0], "high": high, "high_of": by[-1]})
    return out


def table(found: dict[str, Any]) -> Iterator[str]:
    """Yield the figures in Markdown, and the band of each n."""
    yield (
        "| n | routing | launches | experts a layer | step ms | tokens a step | tok/s | speed-up |"
    )
    yield f"|{'--:|' * 8}"
    for row in found["summary"]:
        speed, experts = row["speed_up"], row["experts"]
        said = ""
        if speed is not None:
            within = f" [{speed['low']:.2f}, {speed['high']:.2f}]" if row["launches"] > 1 else ""
            said = f"{speed['ratio']:.2f}{within}"
        yield (
            f"| {row['n']} | {row['routing']} | {row['launches']} "
            f"| {'' if experts is None else f'{experts:.0f}'} | {row['step_ms']:.2f} "
            f"| {row['tokens_per_step']:.2f} | {row[THROUGHPUT]:.0f} | {said} |"
        )
    for band in found["bands"]:
        yield (
            f"\nn = {band['n']}: {band['low']:.2f} ({band['low_of']}) to {band['high']:.2f} "
            f"({band['high_of']}) times the tok/s of n = 0."
        )


def checked(study: LoadedStudy, info: VllmInfo, args: argparse.Namespace) -> None:
    """Refuse what could not be launched, or would not be routed."""
    for routing in args.routing:
        one = routed(study, routing)
        if why := why_not_here(one.spec.server, info) or why_no_experts(one, info):
            raise UserError(f"{study.path}: {why}")
    fixed = info.device != "cuda" or "kv_cache_memory_bytes" in study.spec.server.flags
    if args.together > 1 and not fixed:
        raise UserError("--together: needs kv-cache-memory-bytes in server.flags; take 1 without")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Launch what is missing; return everything."""
    study = with_method(load_study(args.study))
    info = probe(study.spec.server)
    checked(study, info, args)
    found = json.loads(args.out.read_text()) if args.out.exists() else {"launches": []}
    launches: list[dict[str, Any]] = found["launches"]
    there = {(x["round"], x["n"], x["routing"]) for x in launches}
    todo = [k for k in order(args.n, args.routing, args.rounds) if k not in there][: args.most]
    experts = experts_in(config_of(study.spec.server.model, study.base) or {})
    with ExitStack() as ends:
        logs = args.out.parent / f"{args.out.stem}-logs"
        machines = {x: Machine(routed(study, x), info, logs / x, ends) for x in args.routing}
        groups = (todo[i : i + args.together] for i in range(0, len(todo), args.together))
        for row in (x for some in groups for x in group(machines, study, some, args)):
            print(json.dumps(row), flush=True)
            launches.append(row)
            rows = summary(launches, experts)
            found = {
                "command": " ".join(["python", *sys.argv]),
                "study": study.spec.name,
                "rehearsal": study.spec.rehearsal_label,
                "vllm": info.version,
                "machine": machine_line(describe_machine()),
                "mnbt": args.mnbt,
                "experts": experts,
                "launches": launches,
                "summary": rows,
                "bands": bands(rows),
            }
            args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return dict(found)


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between."""
    return [int(x) for x in text.split(",")]


def names(text: str) -> list[str]:
    """Routings with commas between."""
    found = text.split(",")
    if wrong := set(found) - {COLLAPSED, UNIFORM, BY_WEIGHTS}:
        raise argparse.ArgumentTypeError(f"no such routing: {', '.join(sorted(wrong))}")
    return found


def main() -> None:
    """Measure or show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=numbers, default=[0, 13], help="with commas between")
    parser.add_argument("--routing", type=names, default=[COLLAPSED, UNIFORM])
    parser.add_argument("--load", type=int, help="requests at once. Default: the study's")
    parser.add_argument("--mnbt", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, help="of each launch. Default: the study's")
    parser.add_argument("--together", type=int, default=1, help="servers started at once")
    found = shown_or_measured(parser, measure)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
