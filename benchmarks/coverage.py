"""How often the 95 % intervals hold the truth, and what stopping early does, by simulation.

    python benchmarks/coverage.py [--runs 3000]

A closed loop of C places serves N requests of 96 tokens whose times in service are drawn from
shapes with a known mean and a known 95th percentile.

1. Measurements of a fixed size. A bound that does not exist is infinite; "open" is the share of the
   runs in which p95 has no upper one, which makes it a 97.5 % interval.
2. Measurements that end when both intervals are within ± the precision: of the runs that ended
   before the last request, and how many requests they took on average.
3. Trials that end because a rival is better in both objectives, with 5 % between launches: how
   often that happens wrongly, when one objective is really equal and the other far worse (at most
   5 % promised), and the share of requests that trials save whose requests take longer.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy import signal, stats

from autotune.measure import (
    STOPPING_CONFIDENCE,
    Bounded,
    Domination,
    Measurement,
    look_sizes,
    percentile_interval,
    precise,
    throughput_interval,
)
from autotune.measure.measurement import Floats

TOKENS = 96
SIZES = ((32, 2), (100, 2), (100, 8), (200, 4), (400, 8), (200, 32))
PRECISION, FEWEST, MOST = 0.1, 32, 800
BETWEEN = 0.05  # standard deviation of the logarithm between launches


@dataclass(frozen=True)
class Shape:
    """Times in service, in the order of sending; ``mean`` and ``p95`` are the true ones."""

    name: str
    draw: Callable[[np.random.Generator, int], Floats]
    mean: float
    p95: float


def _bimodal(rng: np.random.Generator, n: int) -> Floats:
    """A tenth of the requests is preempted and takes more than twice as long.

    The two do not overlap, so the 95th percentile of all is the median of the slow.
    """
    return _slowed(rng, rng.random(n) < 0.1)


def _bursts(rng: np.random.Generator, n: int) -> Floats:
    """As bimodal, but half of the preempted are followed by another one."""
    stays, begins = rng.random(n) < 0.5, rng.random(n) < 0.1 * 0.5 / 0.9
    slow = np.empty(n, dtype=bool)
    slow[0] = rng.random() < 0.1
    for i in range(1, n):
        slow[i] = stays[i] if slow[i - 1] else begins[i]
    return _slowed(rng, slow)


def _slowed(rng: np.random.Generator, slow: np.ndarray) -> Floats:
    n = len(slow)
    return np.asarray(np.where(slow, rng.normal(2.2, 0.2, n), rng.normal(1.0, 0.1, n)))


def _ar1(phi: float, sigma: float) -> Callable[[np.random.Generator, int], Floats]:
    """Log-normal, the logarithm an AR(1) process with correlation ``phi`` between neighbours."""

    def draw(rng: np.random.Generator, n: int) -> Floats:
        noise = rng.normal(0, sigma * math.sqrt(1 - phi**2), n)
        noise[0] = rng.normal(0, sigma)
        return np.asarray(np.exp(signal.lfilter([1], [1, -phi], noise)))

    return draw


def _drifting(rng: np.random.Generator, n: int) -> Floats:
    """Independent, on a machine whose speed wanders by 10 % with a memory of ten requests."""
    return np.asarray(rng.lognormal(0, math.sqrt(0.3**2 - 0.1**2), n) * _ar1(0.9, 0.1)(rng, n))


def _lognormal(sigma: float) -> tuple[float, float]:
    return math.exp(sigma**2 / 2), math.exp(sigma * float(stats.norm.ppf(0.95)))


def shapes() -> dict[str, Shape]:
    slowed = (0.9 * 1.0 + 0.1 * 2.2, 2.2)
    listed = [
        Shape("log-normal", lambda rng, n: rng.lognormal(0, 0.3, n), *_lognormal(0.3)),
        Shape("log-normal, wide", lambda rng, n: rng.lognormal(0, 0.6, n), *_lognormal(0.6)),
        Shape("bimodal", _bimodal, *slowed),
        Shape("drifting", _drifting, *_lognormal(0.3)),
        Shape("AR(1) 0.5", _ar1(0.5, 0.3), *_lognormal(0.3)),
        Shape("bimodal, in bursts", _bursts, *slowed),
        Shape("AR(1) 0.9", _ar1(0.9, 0.3), *_lognormal(0.3)),
    ]
    return {s.name: s for s in listed}


def closed_loop(seconds: Floats, places: int, tokens: int = TOKENS, chunks: int = 8) -> Measurement:
    """Serves the requests in order, each in the place that is free first."""
    free = [0.0] * places
    start = np.empty(len(seconds))
    for i, s in enumerate(seconds.tolist()):
        start[i] = free[0]
        heapq.heapreplace(free, free[0] + s)
    return Measurement(
        intended=np.zeros(len(seconds)),
        start=start,
        ttft=seconds / chunks,
        end=start + seconds,
        prompt_tokens=np.ones(len(seconds), dtype=np.int64),
        output_tokens=np.full(len(seconds), tokens),
        chunks=tuple(np.outer(seconds, np.linspace(1 / chunks, 1, chunks))),
        latency_from="send",
    )


def head(m: Measurement, n: int) -> Measurement:
    """The first requests that were sent."""
    return replace(
        m,
        intended=m.intended[:n],
        start=m.start[:n],
        ttft=m.ttft[:n],
        end=m.end[:n],
        prompt_tokens=m.prompt_tokens[:n],
        output_tokens=m.output_tokens[:n],
        chunks=m.chunks[:n],
    )


def bounded(m: Measurement) -> tuple[Bounded, Bounded]:
    """Throughput and p95."""
    return (
        Bounded(m.throughput, partial(throughput_interval, m)),
        Bounded(float(np.percentile(m.e2el, 95)), partial(percentile_interval, m.e2el, 95)),
    )


@dataclass(frozen=True)
class Coverage:
    """Shares of the runs; ``p95_open`` those without an upper bound, ``requests`` their mean."""

    throughput: float
    p95: float
    throughput_none: float
    p95_open: float
    early: float
    requests: float


def simulate(
    shape: Shape, looks: Sequence[int], places: int, runs: int, seed: int, precision: float = 0.0
) -> Coverage:
    """Coverage of both intervals at the last look, or at the first that is precise.

    With a precision, of the runs that ended before the last look only, and at the confidence that
    makes up for stopping.
    """
    rng = np.random.default_rng([seed, looks[-1], places])
    truths = (places * TOKENS / shape.mean, shape.p95)
    confidence = STOPPING_CONFIDENCE if precision else 0.95
    held, missing, sizes = [], [], []
    for _ in range(runs):
        m = closed_loop(shape.draw(rng, looks[-1]), places)
        for n in looks:
            part = head(m, n)
            found = (
                throughput_interval(part, confidence),
                percentile_interval(part.e2el, 95, confidence),
            )
            if precision:
                values = (part.throughput, float(np.percentile(part.e2el, 95)))
                if precise(zip(values, found, strict=True), precision):
                    break
        if precision and n == looks[-1]:
            continue
        sizes.append(n)
        missing.append((found[0].low is None, found[1].high is None))
        held.append(
            [
                (i.low is None or i.low <= truth) and (i.high is None or truth <= i.high)
                for i, truth in zip(found, truths, strict=True)
            ]
        )
    throughput, p95 = np.mean(held, axis=0)
    none, open_ = np.mean(missing, axis=0)
    return Coverage(throughput, p95, none, open_, len(sizes) / runs, float(np.mean(sizes)))


@dataclass(frozen=True)
class Ended:
    """Share of the runs that were called dominated, and of the requests that were saved."""

    share: float
    saved: float


def dominate(
    shape: Shape,
    most: int,
    places: int,
    runs: int,
    seed: int,
    *,
    slower: float,
    tokens: int = TOKENS,
    rivals: int = 1,
) -> Ended:
    """Trials whose requests take ``slower`` times as long as the rivals' and have ``tokens``."""
    rng = np.random.default_rng([seed, most, places])
    looks = look_sizes(FEWEST, most)
    test = Domination(len(looks), ("maximize", "minimize"), (BETWEEN, BETWEEN))

    def launch(factor: float, tokens: int) -> Measurement:
        luck = math.exp(rng.normal(0, BETWEEN))
        return closed_loop(shape.draw(rng, most) * factor * luck, places, tokens)

    sizes = []
    for _ in range(runs):
        others = [bounded(launch(1, TOKENS)) for _ in range(rivals)]
        m = launch(slower, tokens)
        sizes.append(
            next((n for n in looks[:-1] if test.by(bounded(head(m, n)), others) is not None), most)
        )
    ended = np.asarray(sizes)
    return Ended(float(np.mean(ended < most)), float(1 - ended.mean() / most))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    named = shapes()
    print(f"{'fixed size':<22}{'N':>5}{'C':>4}{'throughput':>12}{'p95':>8}{'open':>6}")
    for shape in named.values():
        for n, places in SIZES:
            got = simulate(shape, [n], places, args.runs, args.seed)
            print(
                f"{shape.name:<22}{n:>5}{places:>4}{got.throughput:>12.1%}{got.p95:>8.1%}"
                f"{got.p95_open:>6.0%}",
                flush=True,
            )
    print(f"\n{f'until ± {PRECISION:.0%}':<22}{'N':>5}{'C':>4}{'throughput':>12}{'p95':>8}")
    for name in ("log-normal", "bimodal", "drifting", "AR(1) 0.5"):
        looks = look_sizes(FEWEST, MOST)
        got = simulate(named[name], looks, 4, args.runs // 2, args.seed, PRECISION)
        print(
            f"{name:<22}{got.requests:>5.0f}{4:>4}{got.throughput:>12.1%}{got.p95:>8.1%}",
            flush=True,
        )
    print(
        f"\n{'until dominated':<22}{'N':>5}{'C':>4}{'p95 equal':>12}{'tok/s equal':>13}"
        f"{'saved at +15%':>15}{'+30%':>6}{'+50%':>6}{'+30%, 3 rivals':>16}"
    )
    few, fewer = max(1, args.runs // 12), max(1, args.runs // 30)
    for name in ("log-normal", "bimodal", "drifting"):
        for n, places in ((100, 2), (200, 4), (400, 8)):
            end = partial(dominate, named[name], n, places, seed=args.seed)
            wrong = [end(few, slower=f, tokens=t) for f, t in ((1, TOKENS // 2), (2, 2 * TOKENS))]
            saved = [end(fewer, slower=f).saved for f in (1.15, 1.3, 1.5)]
            several = end(fewer, slower=1.3, rivals=3).saved
            print(
                f"{name:<22}{n:>5}{places:>4}{wrong[0].share:>12.1%}{wrong[1].share:>13.1%}"
                f"{saved[0]:>15.0%}{saved[1]:>6.0%}{saved[2]:>6.0%}{several:>16.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
