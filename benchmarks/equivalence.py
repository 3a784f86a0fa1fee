"""Are two batch budgets one and the same? Servers of both in turn, and a test for equality.

    python benchmarks/equivalence.py STUDY --out FILE.json [--n 13] [--mnbt 4096 8192]
        [--launches 6] [--margin 0.05] [--together 4] [--most K]
    python benchmarks/equivalence.py --show FILE.json

Every launch serves the requests of the study, whole. The launches take turns (A B, B A, …), and a
launch is the unit: requests of one server share its luck. Two budgets are called equal in p95
latency if their means surely differ by less than a margin that is set beforehand, a share of the
mean of all launches: two one-sided tests at 5 %, each as Welch's t (Schuirmann 1987, J.
Pharmacokin. Biopharm. 15:657). If they are neither equal nor different, it says how many launches
of each would find equality in 80 % of the cases, if they are equal and differ as these did.

A launch is written as soon as it has been measured, and the same command goes on where it was
interrupted; `--most` ends it after so many launches. With `--together` so many start at the same
time and are then measured one after the other, as with `server.ahead`, whose needs the study then
must meet.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from idle_neighbours import Machine, served, shown_or_measured, started_together
from scipy import stats

from autotune.bench.sample import Sample
from autotune.engine.draft_method import with_method
from autotune.engine.probe import probe
from autotune.serving.machine import describe_machine, machine_line
from autotune.stats import Measurement
from autotune.study.files import load_study
from autotune.study.space import MNBT, N
from autotune.study.workload import WorkloadSpec

LEVEL = 0.05
POWER = 0.8
MOST_LAUNCHES = 1000


def tested(a: Sequence[float], b: Sequence[float], margin: float) -> dict[str, Any]:
    """Return what two groups of launches say of each other.

    Args:
        a: A value of each launch of the first group, two at least.
        b: The same of the second one.
        margin: Largest difference of equal groups, as a share of the mean of all values.
    """
    most = margin * float(np.mean([*a, *b]))
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    above = stats.ttest_ind(first + most, second, equal_var=False, alternative="greater")
    below = stats.ttest_ind(first - most, second, equal_var=False, alternative="less")
    two_sided = stats.ttest_ind(second, first, equal_var=False)
    low, high = two_sided.confidence_interval(1 - LEVEL)
    equal = float(max(above.pvalue, below.pvalue))
    spread = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
    return {
        "means": [float(first.mean()), float(second.mean())],
        "difference": float(second.mean() - first.mean()),
        "interval": [float(low), float(high)],
        "margin": most,
        "p_equal": equal,
        "p_different": float(two_sided.pvalue),
        "verdict": "equal"
        if equal < LEVEL
        else "different"
        if two_sided.pvalue < LEVEL
        else "undecided",
        "launches_needed": needed(spread, most),
    }


def needed(spread: float, margin: float) -> int | None:
    """Return the launches of each group that find equal ones equal in 80 %; None: over 1000.

    Args:
        spread: Standard deviation of a launch.
        margin: Largest difference of equal groups, in the same unit.
    """
    for k in range(2, MOST_LAUNCHES + 1):
        free = 2 * k - 2
        t = stats.t.ppf(1 - LEVEL, free) + stats.t.ppf(1 - (1 - POWER) / 2, free)
        if margin >= t * spread * math.sqrt(2 / k):
            return k
    return None


def order(budgets: Sequence[int], launches: int) -> list[int]:
    """Budget of each launch: A B, B A, …"""
    return [x for i in range(launches) for x in budgets[:: 1 if i % 2 == 0 else -1]]


def values(sent: Sequence[Sample], load: WorkloadSpec) -> dict[str, Any]:
    """What a launch gave."""
    m = Measurement.of(sent, load.latency_origin, load.places, busy=False)
    latencies = [x.end - x.start for x in sent]
    return {
        "tok_s": m.throughput,
        "p95_s": float(np.percentile(latencies, 95)),
        "latencies": [round(x, 4) for x in latencies],
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Launch what is missing; return everything."""
    study = with_method(load_study(args.study))
    load = study.spec.workload
    info = probe(study.spec.server)
    found = json.loads(args.out.read_text()) if args.out.exists() else {"launches": []}
    launches: list[dict[str, Any]] = found["launches"]
    todo = order(args.mnbt, args.launches)[len(launches) :][: args.most]
    batches = [todo[i : i + args.together] for i in range(0, len(todo), args.together)]
    with ExitStack() as whole:
        machine = Machine(study, info, args.out.parent / f"{args.out.stem}-logs", whole)
        for batch in batches:
            at = study.spec.baseline | {N: args.n}
            with ExitStack() as ends:
                servers = started_together([(machine, {**at, MNBT: x}) for x in batch], ends)
                for server, mnbt in zip(servers, batch, strict=True):
                    sent, _ = served(server, load, study.base)
                    server.stop(last=False)  # others hold their memory meanwhile
                    launches.append({"mnbt": mnbt, **values(sent, load)})
                    shown = {k: v for k, v in launches[-1].items() if k != "latencies"}
                    print(json.dumps(shown), flush=True)
                    found = {
                        "command": " ".join(["python", *sys.argv]),
                        "study": study.spec.name,
                        "rehearsal": study.spec.rehearsal_label,
                        "vllm": info.version,
                        "machine": machine_line(describe_machine()),
                        "n": args.n,
                        "mnbt": args.mnbt,
                        "share": args.margin,
                        "launches": launches,
                    }
                    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return dict(found)


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield what was found, in words."""
    groups = [[x for x in found["launches"] if x["mnbt"] == mnbt] for mnbt in found.get("mnbt", ())]
    if len(groups) != 2 or min(map(len, groups)) < 2:
        yield "two launches of each budget are needed"
        return
    if found["rehearsal"]:
        yield found["rehearsal"]
    for name, unit in (("p95_s", "s"), ("tok_s", "tok/s")):
        one, other = ([x[name] for x in g] for g in groups)
        said = tested(one, other, found["share"])
        (a, b), (low, high) = said["means"], said["interval"]
        yield (
            f"{name}: {a:.4g} and {b:.4g} {unit} at MNBT {' and '.join(map(str, found['mnbt']))}, "
            f"difference {said['difference']:+.3g} [{low:+.3g}, {high:+.3g}], margin "
            f"{said['margin']:.3g}: {said['verdict']} (p {said['p_equal']:.3f} of equality, "
            f"{said['p_different']:.3f} of a difference; {len(groups[0])} and {len(groups[1])} "
            f"launches, {said['launches_needed']} of each would do)"
        )


def main() -> None:
    """Measure or show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=13)
    parser.add_argument("--mnbt", type=int, nargs=2, default=[4096, 8192])
    parser.add_argument("--launches", type=int, default=6, help="of each budget")
    parser.add_argument("--together", type=int, default=1, help="servers that start together")
    parser.add_argument("--margin", type=float, default=0.05, help="share of the mean")
    found = shown_or_measured(parser, measure)
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
