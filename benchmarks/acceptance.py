"""How far off tok/s predicted from acceptance is, by n, on measured grids.

    python benchmarks/acceptance.py [GRID.npz | STUDY.db …]
    python benchmarks/acceptance.py --simulated

By default every grid in benchmarks/data. The launches of a grid that share all parameters but n are
one *setting*. In each, every n ≥ 1 is predicted from every choice of one, two and three other n,
of which one is the largest, and from all others; n = 0, where the setting has it, is always given
(it cannot be predicted: no draft says how fast it is without one).

    tokens per step E(n)   truncation: P(accept ≥ i) as at the largest n. `Prediction` with that
                           launch alone is the same, and then learns from a second and a third one
    tok/s                  E(n) / T(n), against the measured launch, with its noise

Median of |predicted / measured − 1| over settings and choices, and the largest. "choice": how much
slower than the fastest n of its setting the n is that a prediction from so many launches calls the
fastest, by the measured tok/s.

--simulated: texts with easy and hard stretches, and a draft whose token at a place of the text is
right or not whatever n is. It is the first n of 15 by construction, and yet truncation is off,
because a step begins where the last one ended: this is how much of the correction is owed to that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from grid import ROOT, Launch, describe, load

from autotune.search.acceptance import Prediction, SpeculationLaunch, without
from autotune.study.space import N

MOST_LAUNCHES = 3
ALL = "others"  # every other launch of the setting
COLUMNS = {"1": "truncation", "2": "2 launches", "3": "3 launches", ALL: "all others"}
TEXTS = ((0.8, 0.7, 0.2), (0.95, 0.9, 0.4), (0.9, 0.95, 0.6))
SIMULATED_N = (1, 2, 3, 5, 7, 11, 15)
SIMULATED_TOKENS = 100_000

Setting = Mapping[int, Sequence[SpeculationLaunch]]
Errors = dict[tuple[str, int], list[float]]  # by what was given and n


def settings(launches: Sequence[Launch]) -> dict[str, Setting]:
    """Launches by n, of each setting with at least two n ≥ 1 whose acceptance is known."""
    groups: dict[str, dict[int, list[SpeculationLaunch]]] = {}
    for x in launches:
        others = {k: v for k, v in x.params.items() if k != N}
        stats = x.stats
        groups.setdefault(json.dumps(others, sort_keys=True), {}).setdefault(
            int(x.params[N]), []
        ).append(
            SpeculationLaunch(
                int(x.params[N]),
                x.values["throughput"],
                tuple(stats["acceptance_per_position"]),
                stats["acceptance_length"],
            )
        )
    return {k: v for k, v in groups.items() if len(known(v)) > 1}


def known(setting: Setting) -> list[int]:
    """Every n ≥ 1 of which acceptance is known, ascending."""
    return sorted(n for n, xs in setting.items() if n and length(xs) is not None)


def length(launches: Sequence[SpeculationLaunch]) -> float | None:
    """Measured tokens per step, mean of the launches of one n."""
    found = [x.acceptance_length for x in launches if x.acceptance_length is not None]
    return float(np.mean(found)) if found else None


def speed(launches: Sequence[SpeculationLaunch]) -> float:
    """Measured tok/s, geometric mean of the launches of one n."""
    return math.exp(float(np.mean([math.log(x.rate) for x in launches])))


def predictions(setting: Setting) -> Iterator[tuple[str, tuple[int, ...], Prediction]]:
    """What was given, at which n ≥ 1, and what is predicted from it."""
    ns = known(setting)
    base = list(setting.get(0, []))
    for count in range(1, MOST_LAUNCHES + 1):
        for chosen in itertools.combinations(ns[:-1], count - 1):
            given = (*chosen, ns[-1])
            found = Prediction.fit([*base, *(x for n in given for x in setting[n])])
            assert found is not None
            yield str(count), given, found


def evaluate(setting: Setting) -> tuple[Errors, Errors, dict[str, list[float]]]:
    """Relative errors of E(n) and of tok/s(n), and how much slower the chosen n is."""
    lengths: Errors = defaultdict(list)
    rates: Errors = defaultdict(list)
    slower: dict[str, list[float]] = defaultdict(list)
    ns = known(setting)
    measured = {n: speed(xs) for n, xs in setting.items()}
    fastest = max(measured.values())

    def compare(what: str, n: int, found: Prediction) -> None:
        measured_length = length(setting[n])
        assert measured_length is not None
        lengths[what, n].append(found.tokens_per_step(n) / measured_length - 1)
        rates[what, n].append(found.rate(n) / measured[n] - 1)

    for what, given, found in predictions(setting):
        for n in ns:
            if n not in given:
                compare(what, n, found)
        choice = max(measured, key=found.rate)
        slower[what].append(1 - measured[choice] / fastest)
    everything = [x for xs in setting.values() for x in xs]
    for n in ns:
        left = without(everything, n)
        assert left is not None
        compare(ALL, n, left)
    return lengths, rates, slower


def simulated(stay: float, easy: float, hard: float, tokens: int, seed: int = 0) -> Setting:
    """Launches over one text; tok/s without noise.

    Args:
        stay: Chance that the next token is as easy, or hard, as this one.
        easy: Chance that the draft is right in an easy stretch.
        hard: … in a hard one.
        tokens: Length of the text.
        seed: Of text and draft.
    """
    rng = np.random.default_rng(seed)
    easily = np.cumsum(rng.random(tokens) > stay) % 2 == 0
    right = rng.random(tokens) < np.where(easily, easy, hard)
    setting: dict[int, list[SpeculationLaunch]] = {0: [SpeculationLaunch(0, 50.0)]}
    for n in SIMULATED_N:
        accepted = np.zeros(n)
        place = drafts = 0
        while place + n < tokens:
            wrong = np.flatnonzero(~right[place : place + n])
            count = int(wrong[0]) if len(wrong) else n
            accepted[:count] += 1
            drafts += 1
            place += count + 1
        positions = tuple(float(x) for x in accepted / drafts)
        total = 1 + sum(positions)
        setting[n] = [SpeculationLaunch(n, total / (0.03 + 0.002 * n), positions, total)]
    return setting


def simulation() -> list[str]:
    """The table of tokens per step for each kind of text."""
    lines = []
    for stay, easy, hard in TEXTS:
        lines += ["", f"right in easy stretches {easy:.0%}, in hard ones {hard:.0%}, of "]
        lines[-1] += f"{1 / (1 - stay):.0f} tokens in the mean"
        lengths = evaluate(simulated(stay, easy, hard, SIMULATED_TOKENS))[0]
        lines += table("tokens per step: median |error| (largest)", lengths, COLUMNS)
    return lines


def row(name: str, cells: Sequence[str]) -> str:
    return f"{name:>10}  " + "  ".join(f"{cell:>15}" for cell in cells)


def summary(errors: Sequence[float]) -> str:
    """Median and largest size."""
    if not errors:
        return ""
    sizes = np.abs(errors)
    return f"{np.median(sizes):.1%} ({sizes.max():.1%})"


def table(title: str, errors: Errors, columns: Mapping[str, str]) -> list[str]:
    """A line for each n, and one over all."""
    ns = sorted({n for _, n in errors})
    lines = ["", title, row("n", list(columns.values()))]
    lines += [row(str(n), [summary(errors.get((c, n), [])) for c in columns]) for n in ns]
    total = [[e for n in ns for e in errors.get((c, n), [])] for c in columns]
    return [*lines, row("all", [summary(x) for x in total])]


def report(path: Path) -> list[str]:
    """Every table of one grid."""
    grid = load(path)
    lines = [describe(grid)]
    found = settings(grid.launches)
    if not found:
        return [*lines, "no setting with two n whose acceptance is known"]
    lengths: Errors = defaultdict(list)
    rates: Errors = defaultdict(list)
    slower: dict[str, list[float]] = defaultdict(list)
    for setting in found.values():
        found_lengths, found_rates, found_slower = evaluate(setting)
        for key in found_lengths:
            lengths[key] += found_lengths[key]
            rates[key] += found_rates[key]
        for what, losses in found_slower.items():
            slower[what] += losses
    lines += table("tokens per step: median |error| (largest)", lengths, COLUMNS)
    lines += table("tok/s: median |error| (largest)", rates, {**COLUMNS, "1": "1 launch"})
    lines.append(row("choice", [summary(slower.get(c, [])) for c in COLUMNS]))
    lines += ["", "by setting: fastest n, and as all its launches together predict it"]
    for name, setting in found.items():
        measured = {n: speed(xs) for n, xs in setting.items()}
        everything = Prediction.fit([x for xs in setting.values() for x in xs])
        assert everything is not None
        best, guess = max(measured, key=lambda n: measured[n]), max(measured, key=everything.rate)
        lines.append(
            f"  {name}: n = {best} with {measured[best]:.1f} tok/s; n = {guess}, predicted "
            f"{everything.rate(guess):.1f}, measured {measured[guess]:.1f}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grids", nargs="*", type=Path)
    parser.add_argument("--simulated", action="store_true")
    args = parser.parse_args()
    if args.simulated:
        print("\n".join(simulation()).strip())
        return
    grids = args.grids or sorted((ROOT / "benchmarks" / "data").glob("*.npz"))
    print("\n\n".join("\n".join(report(path)) for path in grids))


if __name__ == "__main__":
    main()
