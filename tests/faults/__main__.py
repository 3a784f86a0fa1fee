"""Injects every fault of the plan and prints the table of docs/reliability.md.

    python -m tests.faults                                  over the server double
    python -m tests.faults --real                           real vLLM servers, too (20 minutes)
    python -m tests.faults --soak --kills 1000              only random faults at random times
    python -m tests.faults --cluster                        several servers, Ray and PostgreSQL
    python -m tests.faults --write docs/reliability.md      into the file, too

Exit code 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults import scale_table
from tests.faults.cases import Bench
from tests.faults.inject import Outcome, outcomes_as_json
from tests.faults.plan import FAULTS, Fault
from tests.faults.real import POINTS, real_site, run_points
from tests.faults.scale import SCALE_FAULTS, Place, ScaleFault, Surroundings
from tests.faults.soak import Kill, Soak
from tests.faults.start import Starter
from tests.faults.table import report

AT_ONCE = 2
SERIES = ((Place.ONE, Place.FILE), (Place.LOCAL,), (Place.RAY,))


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def run_all(faults: list[Fault], folder: Path) -> list[Outcome]:
    """Every stage of these faults, two at once where nothing forbids it."""
    todo = [f for f in faults if not f.alone]
    lock = threading.Lock()
    outcomes: dict[str, list[Outcome]] = {}

    def work(number: int, mine: list[Fault]) -> None:
        with Bench(folder / f"bench-{number}") as bench:
            while True:
                with lock:
                    if not mine:
                        return
                    fault = mine.pop(0)
                outcomes[fault.name] = bench.run(fault, fault.stages)
                bad = sum(bool(o.problems) for o in outcomes[fault.name])
                say(f"{'ok ' if not bad else 'BAD'} {fault.name}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(work, n, todo) for n in range(AT_ONCE)]:
            done.result()
    work(AT_ONCE, [f for f in faults if f.alone])
    return [o for f in faults for o in outcomes[f.name]]


def soak_all(kills: int, seed: int, folder: Path) -> list[Kill]:
    """So many random faults, in two series at once."""

    def work(number: int) -> list[Kill]:
        with Starter() as starter:
            soak = Soak(folder / f"soak-{number}", starter, seed + number)
            return soak.run(kills // AT_ONCE + (number < kills % AT_ONCE))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [k for found in pool.map(work, range(AT_ONCE)) for k in found]


def run_soak(args: argparse.Namespace) -> int:
    """The random faults alone; no page is written."""
    with tempfile.TemporaryDirectory(prefix="autotune-faults-", ignore_cleanup_errors=True) as t:
        kills = soak_all(args.kills, args.seed, Path(t))
    for kill in kills:
        said = f"{kill.action}, {kill.stage}: {'; '.join(kill.problems) or 'held'}"
        sys.stdout.write(f"{said}, {kill.seconds:.1f} s\n")
    bad = sum(bool(k.problems) for k in kills)
    sys.stdout.write(f"{len(kills)} random faults (seed {args.seed}), {bad} with problems\n")
    return int(bad > 0)


def real_all(folder: Path) -> list[Outcome]:
    """Every point of the real servers."""
    with Starter(real=True) as starter:
        return run_points(real_site(folder / "real", starter, POINTS), POINTS)


def cluster_all(faults: list[ScaleFault], places: list[Place], folder: Path) -> list[Outcome]:
    """Every fault of several servers; most of the time one waits, so places go side by side."""

    def work(mine: list[Place]) -> list[Outcome]:
        found = []
        with Surroundings(folder / f"cluster-{mine[0].name.lower()}") as surroundings:
            for fault, place in ((f, p) for f in faults for p in f.places if p in mine):
                found.append(outcome := surroundings.run(fault, place))
                bad = "BAD" if outcome.problems else "---" if outcome.skipped else "ok "
                why = "; ".join(outcome.problems)[:600] or outcome.skipped
                say(f"{bad} {fault.name} [{place}] {outcome.seconds or ''} {why}")
        return found

    series = [[p for p in places if p in some] for some in SERIES]
    with ThreadPoolExecutor(len(SERIES)) as pool:
        return [o for found in pool.map(work, filter(None, series)) for o in found]


def with_earlier(file: Path, outcomes: list[Outcome]) -> list[Outcome]:
    """These outcomes, and those of earlier runs for other faults and places; the file keeps all."""
    kept = json.loads(file.read_text()) if file.exists() else []
    found = {(o.fault, str(o.stage)): o for o in [*(Outcome(**x) for x in kept), *outcomes]}
    file.write_text(outcomes_as_json([*found.values()]))
    return [*found.values()]


def run_cluster(args: argparse.Namespace) -> int:
    """The second part alone; its section of the page is replaced."""
    faults = [f for f in SCALE_FAULTS if not args.only or args.only in f.name]
    places = [p for p in Place if not args.place or p.name.lower() in args.place]
    with tempfile.TemporaryDirectory(prefix="autotune-faults-", ignore_cleanup_errors=True) as t:
        outcomes = cluster_all(faults, places, Path(t))
    if args.outcomes:
        outcomes = with_earlier(args.outcomes, outcomes)
    text = scale_table.section(outcomes, parts=args.outcomes is not None)
    sys.stdout.write(f"{text}\n")
    if args.write:
        args.write.write_text(scale_table.put_into(args.write.read_text(), text))
    return int(any(o.problems for o in outcomes))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--real", action="store_true", help="real vLLM servers, too")
    parser.add_argument("--kills", type=int, default=200, help="random faults (200)")
    parser.add_argument("--seed", type=int, default=1, help="of the random faults (1)")
    parser.add_argument("--only", help="faults whose name contains this")
    parser.add_argument("--write", type=Path, help="file for the table")
    parser.add_argument("--soak", action="store_true", help="only random faults")
    parser.add_argument("--cluster", action="store_true", help="several servers: only these")
    parser.add_argument(
        "--place",
        action="append",
        choices=[p.name.lower() for p in Place],
        help="with --cluster: only there",
    )
    parser.add_argument(
        "--outcomes", type=Path, help="with --cluster: file with those of earlier runs, kept there"
    )
    args = parser.parse_args()
    if args.cluster:
        return run_cluster(args)
    if args.soak:
        return run_soak(args)
    faults = [f for f in FAULTS if not args.only or args.only in f.name]
    with tempfile.TemporaryDirectory(prefix="autotune-faults-", ignore_cleanup_errors=True) as t:
        folder = Path(t)
        outcomes = run_all(faults, folder)
        with ThreadPoolExecutor(2) as pool:  # they share nothing but the machine
            soak = pool.submit(soak_all, args.kills, args.seed, folder) if args.kills else None
            real_ones = pool.submit(real_all, folder) if args.real else None
            kills = soak.result() if soak else []
            real = real_ones.result() if real_ones else []
    kept = args.write.read_text() if args.write and args.write.exists() else ""
    cluster = scale_table.found_in(kept)
    text = report(outcomes, kills, real, seed=args.seed, cluster=cluster)
    sys.stdout.write(text)
    if args.write:
        args.write.write_text(text)
    held = not any(o.problems for o in [*outcomes, *real]) and not any(k.problems for k in kills)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
