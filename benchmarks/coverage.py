"""How often the 95 % intervals hold the truth, by simulation.

    python benchmarks/coverage.py [--runs 2000]

A closed loop of C places serves N requests of 96 tokens whose times in service are drawn from
shapes with a known mean and a known 95th percentile. Nominal is 95 %; "none" is the share of runs
in which an interval has not both bounds. The percentile's interval promises its coverage for
independent times only, and the rows marked * show what dependence does to it.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from autotune.measure import Measurement, percentile_interval, throughput_interval
from autotune.measure.measurement import Floats

TOKENS = 96


@dataclass(frozen=True)
class Shape:
    """Times in service, in the order of sending; ``mean`` and ``p95`` are the true ones."""

    name: str
    independent: bool
    draw: Callable[[np.random.Generator, int], Floats]
    mean: float
    p95: float


def _bimodal(rng: np.random.Generator, n: int) -> Floats:
    """A tenth of the requests is preempted and takes more than twice as long.

    The two do not overlap, so the 95th percentile of all is the median of the slow.
    """
    slow = rng.random(n) < 0.1
    return np.asarray(np.where(slow, rng.normal(2.2, 0.2, n), rng.normal(1.0, 0.1, n)))


def _ar1(phi: float, sigma: float) -> Callable[[np.random.Generator, int], Floats]:
    """Log-normal, the logarithm an AR(1) process with correlation ``phi`` between neighbours."""

    def draw(rng: np.random.Generator, n: int) -> Floats:
        noise = rng.normal(0, sigma * math.sqrt(1 - phi**2), n)
        noise[0] = rng.normal(0, sigma)
        for i in range(1, n):
            noise[i] += phi * noise[i - 1]
        return np.asarray(np.exp(noise))

    return draw


def _drifting(rng: np.random.Generator, n: int) -> Floats:
    """Independent, on a machine whose speed wanders by 10 % with a memory of ten requests."""
    return np.asarray(rng.lognormal(0, math.sqrt(0.3**2 - 0.1**2), n) * _ar1(0.9, 0.1)(rng, n))


def _lognormal(sigma: float) -> tuple[float, float]:
    return math.exp(sigma**2 / 2), math.exp(sigma * float(stats.norm.ppf(0.95)))


def shapes() -> list[Shape]:
    return [
        Shape("log-normal", True, lambda rng, n: rng.lognormal(0, 0.3, n), *_lognormal(0.3)),
        Shape("log-normal, wide", True, lambda rng, n: rng.lognormal(0, 0.6, n), *_lognormal(0.6)),
        Shape("bimodal", True, _bimodal, 0.9 * 1.0 + 0.1 * 2.2, 2.2),
        Shape("drifting", False, _drifting, *_lognormal(0.3)),
        Shape("AR(1) 0.5", False, _ar1(0.5, 0.3), *_lognormal(0.3)),
        Shape("AR(1) 0.9", False, _ar1(0.9, 0.3), *_lognormal(0.3)),
    ]


def closed_loop(seconds: Floats, places: int, chunks: int = 8) -> Measurement:
    """Serves the requests in order, each in the place that is free first."""
    free = [0.0] * places
    start = np.empty(len(seconds))
    for i, s in enumerate(seconds):
        start[i] = free[0]
        heapq.heapreplace(free, free[0] + s)
    stamps = np.linspace(1 / chunks, 1, chunks)
    return Measurement(
        intended=np.zeros(len(seconds)),
        start=start,
        ttft=seconds / chunks,
        end=start + seconds,
        prompt_tokens=np.ones(len(seconds), dtype=np.int64),
        output_tokens=np.full(len(seconds), TOKENS),
        chunks=tuple(s * stamps for s in seconds),
        latency_from="send",
    )


@dataclass(frozen=True)
class Coverage:
    """Shares of the runs."""

    throughput: float
    throughput_none: float
    p95: float
    p95_none: float


def simulate(shape: Shape, n: int, places: int, runs: int, seed: int) -> Coverage:
    """Coverage of both intervals, of the runs that had them (NaN if none had)."""
    rng = np.random.default_rng(seed)
    truth = places * TOKENS / shape.mean
    hits: dict[str, list[bool]] = {"throughput": [], "p95": []}
    for _ in range(runs):
        m = closed_loop(shape.draw(rng, n), places)
        for name, interval, true in (
            ("throughput", throughput_interval(m), truth),
            ("p95", percentile_interval(m.e2el, 95), shape.p95),
        ):
            if interval.low is not None and interval.high is not None:
                hits[name].append(interval.low <= true <= interval.high)
    share = {k: float(np.mean(v)) if v else math.nan for k, v in hits.items()}
    none = {k: 1 - len(v) / runs for k, v in hits.items()}
    return Coverage(share["throughput"], none["throughput"], share["p95"], none["p95"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{'shape':<22}{'N':>5}{'C':>4}{'throughput':>12}{'none':>6}{'p95':>8}{'none':>6}")
    for shape in shapes():
        for n, places in ((32, 2), (100, 2), (200, 4), (400, 8), (200, 32)):
            got = simulate(shape, n, places, args.runs, args.seed)
            mark = " " if shape.independent else "*"
            print(
                f"{shape.name:<22}{n:>5}{places:>4}{got.throughput:>12.1%}"
                f"{got.throughput_none:>6.0%}{got.p95:>7.1%}{mark}{got.p95_none:>6.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
