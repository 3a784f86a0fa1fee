"""How often a losslessness verdict cries wolf, and how often it finds a fault, by simulation.

    python benchmarks/losslessness.py [--runs 200] [--only WORD …] [--json FILE]
    python benchmarks/losslessness.py --table benchmarks/data/losslessness.json

Each run draws two launches of n = 0 and one of the tested server, which answer the same prompts,
and judges them at the level of the product (:data:`autotune.stats.losslessness.LEVEL`), over all
tests of that kind of answers.

**Greedy.** Nulls, of which each token has a difference g > 0 with a given chance and size:

- *identical*: g is always 0, as in float32.
- *ties*: 0.5 % of the tokens, exponential of mean 0.15 nats. *rare ties*: 0.05 %.
- *coarse*: 2 %, and g is a multiple of 1/8, as logits of bfloat16 are.
- *repeated*: prompts differ (gamma, shape 0.3), and a tie comes back 5 times on average in its
  answer, as in a text that repeats itself.
- *heavy tails*: 0.5 %, Lomax with shape 1.2 and scale 0.15: one in 25 is above 2 nats.
- *launches ± x*: ties whose rate (log-normal, x) and size (x/2) are those of the launch.
- *other load*: the tested server, without a fault, has 1.25 times the ties, and they are 1.1 times
  as large, as with kernels for batches of other sizes.

Faults, planted into some of them: tokens replaced at random by wrong ones (exponential, mean 3
nats), and a layer that is a little off (more ties, and larger ones).

**Sampled.** Tokens are drawn from distributions over 40 words, log-normal, another one each, whose
sharpness differs by prompt; each answer sees other ones. Faults: another temperature, tokens that
are replaced by random words, and by draws of a draft (temperature 2).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.stats.losslessness import (
    LEVEL,
    Answer,
    Evidence,
    compare_greedy,
    compare_sampled,
    detectable_share,
    find_faults,
)

Floats = NDArray[np.float64]
PROMPTS = 128
NULL_LAUNCHES = 2
WRONG = 3.0  # mean g of a wrong token
WORDS = 40


@dataclass(frozen=True)
class Ties:
    """How often g > 0, and how large it is, in answers without a fault.

    Attributes:
        rate: Share of tokens.
        size: Mean g, in nats.
        shape: Shape of Lomax sizes; 0: exponential.
        grid: Step of g; 0: none.
        repeats: Mean number of times that a tie comes back in its answer.
        prompts: Gamma shape of the rate over prompts; 0: prompts are equal.
        launches: Standard deviation of the logarithm of a launch's rate; that of its size is half.
    """

    rate: float = 0.005
    size: float = 0.15
    shape: float = 0.0
    grid: float = 0.0
    repeats: float = 0.0
    prompts: float = 0.0
    launches: float = 0.0

    def draw(
        self, rng: np.random.Generator, by_prompt: Floats, tokens: int, times: float, larger: float
    ) -> Floats:
        """Return g of one launch; shape (prompts, tokens)."""
        shape = (len(by_prompt), tokens)
        rate = self.rate * times * math.exp(rng.normal(0, self.launches)) / (1 + self.repeats)
        size = self.size * larger * math.exp(rng.normal(0, self.launches / 2))
        hits = rng.random(shape) < rate * by_prompt[:, None]
        g = rng.pareto(self.shape, shape) if self.shape else rng.exponential(1, shape)
        g = np.where(hits, size * g, 0.0)
        if self.repeats:
            for p, t in zip(*np.nonzero(hits), strict=True):
                again = t + 4 * np.arange(1, 1 + rng.geometric(1 / self.repeats))
                g[p, again[again < tokens]] = g[p, t]
        if self.grid:
            g = np.where(g > 0, np.ceil(g / self.grid) * self.grid, 0.0)
        return np.minimum(g, 30.0)


@dataclass(frozen=True)
class Fault:
    """What the tested server does wrong; the defaults are nothing.

    Attributes:
        wrong: Share of tokens that are replaced by wrong ones.
        times: Factor of the rate of ties.
        larger: Factor of their size.
    """

    wrong: float = 0.0
    times: float = 1.0
    larger: float = 1.0


@dataclass(frozen=True)
class Cell:
    """One setting.

    Attributes:
        name: What is simulated.
        ok: Whether the tested server has no fault.
        draw: Returns the evidence of one run.
        prompts: Number of prompts.
        tokens: Number of tokens of an answer.
    """

    name: str
    ok: bool
    draw: Callable[[np.random.Generator], Evidence] = field(compare=False)
    prompts: int = PROMPTS
    tokens: int = 64


def greedy(name: str, ties: Ties, fault: Fault, prompts: int, tokens: int, ok: bool) -> Cell:
    """Return a cell of greedy answers."""

    def draw(rng: np.random.Generator) -> Evidence:
        by_prompt = np.ones(prompts)
        if ties.prompts:
            by_prompt = rng.gamma(ties.prompts, 1 / ties.prompts, prompts)
        null = [ties.draw(rng, by_prompt, tokens, 1, 1) for _ in range(NULL_LAUNCHES)]
        g = ties.draw(rng, by_prompt, tokens, fault.times, fault.larger)
        g = np.where(rng.random(g.shape) < fault.wrong, rng.exponential(WRONG, g.shape), g)
        return compare_greedy(answers(null), answers([g]))

    return Cell(f"greedy: {name}", ok, draw, prompts, tokens)


def answers(launches: Sequence[Floats], entropies: Sequence[Floats] | None = None) -> list[Answer]:
    """Return the answers of launches, given g or u of each token."""
    return [
        Answer(p, i, row, None if entropies is None else entropies[i][p])
        for i, launch in enumerate(launches)
        for p, row in enumerate(launch)
    ]


@dataclass(frozen=True)
class Sampler:
    """How the tested server draws.

    Attributes:
        temperature: Temperature, where that of n = 0 is 1.
        wrong: Share of tokens that are replaced …
        by_draft: … by a draft's draws; otherwise by random words.
        entropies: Whether the entropies are known.
    """

    temperature: float = 1.0
    wrong: float = 0.0
    by_draft: bool = False
    entropies: bool = True

    def draw(self, rng: np.random.Generator, sharp: Floats, tokens: int) -> tuple[Floats, Floats]:
        """Return u and the entropy of each token; shape (prompts, tokens)."""
        logits = rng.normal(0, 1, (len(sharp), tokens, WORDS)) * sharp[:, None, None]
        log_p = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))

        def tokens_at(temperature: float) -> NDArray[np.int64]:
            noise = -np.log(-np.log(rng.random(logits.shape)))  # Gumbel
            return np.asarray((logits / temperature + noise).argmax(axis=2))

        chosen = tokens_at(self.temperature)
        if self.wrong:
            other = tokens_at(2.0) if self.by_draft else rng.integers(WORDS, size=chosen.shape)
            chosen = np.where(rng.random(chosen.shape) < self.wrong, other, chosen)
        u = -np.take_along_axis(log_p, chosen[..., None], axis=2)[..., 0]
        return u, -(np.exp(log_p) * log_p).sum(axis=2)


def sampled(name: str, sampler: Sampler, prompts: int, tokens: int, ok: bool) -> Cell:
    """Return a cell of sampled answers."""

    def draw(rng: np.random.Generator) -> Evidence:
        sharp = rng.gamma(9, 3 / 9, prompts)
        both = [Sampler().draw(rng, sharp, tokens) for _ in range(NULL_LAUNCHES)]
        both.append(sampler.draw(rng, sharp, tokens))
        values = [u for u, _ in both]
        entropies = [h for _, h in both] if sampler.entropies else None
        null = answers(values[:-1], entropies[:-1] if entropies else None)
        return compare_sampled(null, answers(values[-1:], entropies[-1:] if entropies else None))

    return Cell(f"sampled: {name}", ok, draw, prompts, tokens)


NULLS = {
    "identical": Ties(rate=0.0),
    "ties": Ties(),
    "rare ties": Ties(rate=0.0005),
    "coarse": Ties(rate=0.02, grid=1 / 8),
    "repeated": Ties(rate=0.01, repeats=5, prompts=0.3),
    "heavy tails": Ties(shape=1.2),
    "launches ± 0.2": Ties(launches=0.2),
    "launches ± 0.3": Ties(launches=0.3),
}
SHORT, LONG = (80, 24), (PROMPTS, 256)


def cells() -> Iterator[Cell]:
    """Yield every cell."""
    usual = (PROMPTS, 64)
    for name, ties in NULLS.items():
        yield greedy(name, ties, Fault(), *usual, True)
    yield greedy("ties, other load", NULLS["ties"], Fault(times=1.25, larger=1.1), *usual, True)
    for size in (SHORT, LONG):
        for name in ("ties", "coarse", "launches ± 0.2"):
            yield greedy(name, NULLS[name], Fault(), *size, True)
    for name in ("ties", "coarse"):
        off = Fault(times=1.25, larger=1.1)
        yield greedy(f"{name}, other load", NULLS[name], off, *LONG, True)
    for name in ("identical", "ties", "coarse", "repeated", "heavy tails", "launches ± 0.2"):
        ties = NULLS[name]
        for wrong in (0.01, 0.003, 0.001):
            yield greedy(f"{name}, {wrong:.1%} wrong", ties, Fault(wrong), *usual, False)
    yield greedy("ties, 1.0% wrong", NULLS["ties"], Fault(0.01), *SHORT, False)
    yield greedy("ties, 0.1% wrong", NULLS["ties"], Fault(0.001), *LONG, False)
    for times in (2, 4, 8):
        off = Fault(times=times, larger=1.5)
        yield greedy(f"ties, {times} times as many", NULLS["ties"], off, *usual, False)
    yield greedy("rare ties, 8 times as many", NULLS["rare ties"], Fault(times=8), *usual, False)
    for size in (usual, SHORT):
        yield sampled("equal", Sampler(), *size, True)
    yield sampled("equal, entropies unknown", Sampler(entropies=False), *usual, True)
    for t in (1.05, 1.1, 0.9):
        yield sampled(f"temperature {t}", Sampler(t), *usual, False)
    unknown = Sampler(1.05, entropies=False)
    yield sampled("temperature 1.05, entropies unknown", unknown, *usual, False)
    yield sampled("1% random words", Sampler(wrong=0.01), *usual, False)
    yield sampled("5% of a draft", Sampler(wrong=0.05, by_draft=True), *usual, False)


def simulate(cell: Cell, runs: int, seed: int) -> dict[str, Any]:
    """Return the shares of runs with a fault, over all tests and by test."""
    rng = np.random.default_rng(seed)
    by_test: dict[str, int] = {}
    faults = 0
    for _ in range(runs):
        evidence = cell.draw(rng)
        tested = find_faults(evidence.tests, LEVEL)
        faults += any(t.fault for t in tested)
        for t in tested:
            by_test[t.name] = by_test.get(t.name, 0) + t.fault
    found = {
        "cell": cell.name,
        "prompts": cell.prompts,
        "tokens": cell.tokens,
        "ok": cell.ok,
        "runs": runs,
        "faults": faults / runs,
        "by_test": {name: hits / runs for name, hits in by_test.items()},
    }
    if cell.name.startswith("greedy") and cell.ok:
        found["detectable"] = detectable_share(evidence, LEVEL / 2)
    return found


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a table of Markdown."""
    lines = [
        "| answers | prompts × tokens | runs | fault | by test | 80 % of |",
        "|---|---|---|---|---|---|",
    ]
    for ok in (True, False):
        for r in results:
            if r["ok"] == ok:
                tests = ", ".join(f"{name} {share:.1%}" for name, share in r["by_test"].items())
                share = r.get("detectable")
                lines.append(
                    f"| {r['cell']} | {r['prompts']} × {r['tokens']} | {r['runs']} "
                    f"| {r['faults']:.1%} | {tests} | {f'{share:.2%}' if share else ''} |"
                )
    return "\n".join(lines)


def main() -> None:
    """Run the cells, and write a table and a JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="runs of a cell")
    parser.add_argument("--only", nargs="+", default=[""], help="words in the names of the cells")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--table", type=Path, help="only show what such a file has")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())["cells"]))
        return
    began, results = time.process_time(), []
    for seed, cell in enumerate(cells()):
        if any(word in cell.name for word in args.only):
            runs = args.runs if cell.ok or "1.0% wrong" in cell.name else max(args.runs // 4, 1)
            results.append(simulate(cell, runs, seed))
            if args.json:
                kept = {"level": LEVEL, "cells": results}
                args.json.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    print(table(results))
    print(f"\n{time.process_time() - began:.0f} seconds of one core")


if __name__ == "__main__":
    main()
