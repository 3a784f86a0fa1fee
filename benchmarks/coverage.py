"""How often intervals hold the truth and early ends are right, by simulation in virtual time.

    python benchmarks/coverage.py [--part 1 2 3 4] [--only LOAD …] [--runs 2000] [--json FILE]

A closed loop of C places serves 2·C requests before the N measured ones and others after them, so
every place is busy throughout, as when autotune measures. Loads differ in how the requests' times
and tokens are drawn; their true tok/s and p95 are known, or taken from four million requests.

1. Measurements of a fixed size: coverage of the 95 % intervals of tok/s, p95 and goodput (a limit
   that 80 % of the requests meet), bias of the estimates, share of the runs in which p95 has no
   upper bound, and what the standard errors tell of the variance (mean of their squares over the
   truth). At the end a server under Poisson arrivals.
2. Measurements that end when tok/s and p95 are within ±5 %, from eight requests a place on:
   coverage where they ended, and the share of the N requests that they took.
3. Trials that end because finished ones are better in both objectives: how often that happens to
   trials that are as good as all of these in truth, 20 % better, equal in one objective and far
   worse in the other, or half as fast; and after which share of the requests. Nothing else ends
   them. All times of a launch are multiplied with its luck. The standard deviation between launches
   that the test reckons with is 10 %, as until a study has launched a point again.
4. Points and ratios of points by `LaunchVariance`, from points that were launched twice.

Estimates and verdicts are computed over all runs at once. They are checked against those of
`autotune.stats`, whose `Looks` is told what ends and when, on 30 runs of each cell.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy import signal, special

import objectives
from autotune.stats import (
    STOPPING_CONFIDENCE,
    Bounded,
    Domination,
    LaunchVariance,
    Looks,
    Measurement,
    SingleLaunch,
    expected_between,
    first_look,
    look_sizes,
    narrow_enough,
    percentile_interval,
    precise,
    quantile,
    rivals_need,
    throughput_interval,
)
from autotune.stats.intervals import BATCHES, MEAN_FACTOR, MIN_REQUESTS
from autotune.stats.measurement import Floats, Ints
from autotune.stats.stopping import LAUNCH_DEGREES

Bools = NDArray[np.bool_]
Size = int | tuple[int, ...]

TOKENS = 96
GOOD = 0.8  # share of the requests that meet the limit of goodput
Q = 0.95
MIN_PROMPTS, PRECISION, ALPHA = 32, 0.05, 0.05  # defaults of a study
CHECKED = 30
SIZES = {
    1: (20, 32, 64, 100, 200, 512),
    8: (20, 32, 64, 100, 128, 200, 512),
    32: (32, 64, 100, 200, 256, 512, 800),
    64: (64, 100, 200, 512, 1024, 1600),
    128: (200, 512, 1024, 2048, 3200),
    256: (512, 1024, 2048, 4096),
}
TURNS = 8  # of each place, in the cells of the parts 2 and 3
ENDED_SIZES = {
    1: (64, 100, 200, 512),
    8: (64, 128, 200, 512),
    32: (256, 512, 800),
    64: (512, 1024),
    128: (1024, 2048),
    256: (2048, 4096),
}
SCATTERS = (0.005, 0.03, 0.10)
TAILS = ("normal", "t")
RIVALS = (1, 8, 20)
LUCKS = [(s, t, r) for s in SCATTERS for t in TAILS for r in RIVALS]
# Factors of a trial's place-seconds of a token and of its p95, against those of its rivals
KINDS = {
    "equal": (1.0, 1.0),
    "better": (1 / 1.2, 1 / 1.2),
    "equal tok/s": (1.0, 2.0),
    "equal p95": (2.0, 1.0),
    "half": (2.0, 2.0),
}


# -- loads


@dataclass(frozen=True)
class Shape:
    """How the requests of a load are drawn, in the order of sending.

    Attributes:
        name: In the tables.
        draw: Seconds in a place, without what ``waits`` adds.
        exact: True tokens per place-second and p95, where known.
        tokens: Of requests with such seconds; None: 96 each.
        waits: Who makes all requests under way wait: ``arrivals`` of others, ``stalls``, or none.
    """

    name: str
    draw: Callable[[np.random.Generator, Size], Floats]
    exact: tuple[float, float] | None = None
    tokens: Callable[[np.random.Generator, Floats], Ints] | None = None
    waits: str | None = None

    def requests(self, rng: np.random.Generator, size: Size) -> tuple[Floats, Floats]:
        """Return seconds and tokens of so many requests; neighbours along the last axis."""
        seconds = self.draw(rng, size)
        if self.tokens is None:
            return seconds, np.full(seconds.shape, float(TOKENS))
        return seconds, self.tokens(rng, seconds).astype(np.float64)


def _modes(
    shares: Sequence[float], means: Sequence[float], sds: Sequence[float]
) -> Callable[[np.random.Generator, Size], Floats]:
    def draw(rng: np.random.Generator, size: Size) -> Floats:
        mode = np.searchsorted(np.cumsum(shares)[:-1], rng.random(size), side="right")
        return np.asarray(rng.normal(np.take(means, mode), np.take(sds, mode)))

    return draw


def _bursts(rng: np.random.Generator, size: Size) -> Floats:
    """As bimodal, but half of the preempted are followed by another one."""
    stays, begins = rng.random(size) < 0.5, rng.random(size) < 0.1 * 0.5 / 0.9
    slow = np.empty(np.shape(stays), dtype=bool)
    slow[..., 0] = rng.random(slow.shape[:-1]) < 0.1
    for i in range(1, slow.shape[-1]):
        slow[..., i] = np.where(slow[..., i - 1], stays[..., i], begins[..., i])
    return np.asarray(np.where(slow, rng.normal(2.2, 0.2, size), rng.normal(1.0, 0.1, size)))


def _ar1(phi: float, sigma: float) -> Callable[[np.random.Generator, Size], Floats]:
    """Log-normal, the logarithm an AR(1) process with correlation ``phi`` between neighbours."""

    def draw(rng: np.random.Generator, size: Size) -> Floats:
        noise = rng.normal(0, sigma * math.sqrt(1 - phi**2), size)
        noise[..., 0] = rng.normal(0, sigma, noise.shape[:-1])
        return np.asarray(np.exp(signal.lfilter([1], [1, -phi], noise, axis=-1)))

    return draw


def _drifting(rng: np.random.Generator, size: Size) -> Floats:
    """Independent, on a machine whose speed wanders by 10 % with a memory of ten requests."""
    return np.asarray(
        rng.lognormal(0, math.sqrt(0.3**2 - 0.1**2), size) * _ar1(0.9, 0.1)(rng, size)
    )


def _near_instant(rng: np.random.Generator, size: Size) -> Floats:
    """Of 30 % the answer ends at once."""
    at_once = rng.random(size) < 0.3
    return np.where(at_once, rng.uniform(0.01, 0.03, size), rng.lognormal(0, 0.3, size))


def _recorded(rng: np.random.Generator, size: Size) -> Floats:
    """Answers of 1 to 2048 tokens, 10 ms each, after about 50 ms of prefill."""
    tokens = np.clip(np.ceil(rng.lognormal(math.log(100), 1.1, size)), 1, 2048)
    return np.asarray(0.05 * rng.lognormal(0, 0.3, size) + 0.01 * tokens)


def _recorded_tokens(rng: np.random.Generator, seconds: Floats) -> Ints:
    """Those of ``_recorded``, whose pace varies by 10 %."""
    tokens = (seconds - 0.05) / 0.01 * rng.lognormal(0, 0.1, seconds.shape)
    return np.maximum(1, np.rint(tokens)).astype(np.int64)


def _prefix_hits(rng: np.random.Generator, size: Size) -> Floats:
    """Half of the prompts are known up to their ends, and their prefill takes a tenth."""
    prefill = rng.lognormal(math.log(0.6), 0.4, size)
    hit = rng.random(size) < 0.5
    return np.asarray(np.where(hit, prefill / 10, prefill) + rng.lognormal(-0.02, 0.2, size))


def _speculating(rng: np.random.Generator, size: Size) -> Floats:
    """Each request has its own acceptance: 1 to 6 tokens a step of 25 ms."""
    return np.asarray(0.05 + TOKENS * 0.025 / (1 + 5 * rng.beta(2.0, 3.0, size)))


def _lognormal(name: str, sigma: float) -> Shape:
    mean, p95 = math.exp(sigma**2 / 2), math.exp(sigma * float(special.ndtri(Q)))
    return Shape(name, lambda rng, size: rng.lognormal(0, sigma, size), (TOKENS / mean, p95))


def shapes() -> dict[str, Shape]:
    """Return the loads by name."""
    narrow, middle, wide, heavy = (
        _lognormal(name, sigma)
        for name, sigma in (
            ("fixed lengths", 0.02),
            ("log-normal", 0.3),
            ("log-normal, wide", 0.6),
            ("log-normal, heavy", 1.0),
        )
    )
    slowed = (TOKENS / (0.9 * 1.0 + 0.1 * 2.2), 2.2)  # fast and slow ones do not overlap
    third = 3.5 + 0.2 * float(special.ndtri(1 - 0.05 / 0.08))
    listed = [
        middle,
        wide,
        narrow,
        Shape("bimodal", _modes((0.9, 0.1), (1.0, 2.2), (0.1, 0.2)), slowed),
        Shape(
            "three-modal",
            _modes((0.6, 0.32, 0.08), (1.0, 1.8, 3.5), (0.05, 0.1, 0.2)),
            (TOKENS / (0.6 + 0.32 * 1.8 + 0.08 * 3.5), third),
        ),
        Shape(
            "zero-inflated",
            _near_instant,
            tokens=lambda rng, s: np.where(s < 0.031, rng.integers(1, 4, s.shape), TOKENS),
        ),
        Shape(
            "Weibull 0.5",
            lambda rng, size: rng.weibull(0.5, size),
            (TOKENS / 2, math.log(20) ** 2),
        ),
        heavy,
        Shape("recorded lengths", _recorded, tokens=_recorded_tokens),
        Shape("prefix hits", _prefix_hits),
        Shape("speculation", _speculating),
        Shape("drifting", _drifting, middle.exact),
        Shape("AR(1) 0.5", _ar1(0.5, 0.3), middle.exact),
        Shape("AR(1) 0.8", _ar1(0.8, 0.3), middle.exact),
        Shape("bimodal, in bursts", _bursts, slowed),
        Shape("neighbours' prefills", middle.draw, waits="arrivals"),
        Shape("stalls", middle.draw, waits="stalls"),
    ]
    return {s.name: s for s in listed}


# -- the loop


@dataclass(frozen=True)
class Served:
    """Measured requests of many runs: runs × requests, in the order of sending.

    Attributes:
        start: Sending.
        end: Last token.
        seconds: From sending to end.
        tokens: Whole numbers.
        places: Concurrency.
    """

    start: Floats
    end: Floats
    seconds: Floats
    tokens: Floats
    places: int

    def part(self, start: int, stop: int) -> Served:
        """Return some of the runs."""
        arrays = (self.start, self.end, self.seconds, self.tokens)
        return Served(*(x[start:stop] for x in arrays), self.places)

    def measurement(self, run: int, size: int, factor: float = 1.0) -> Measurement:
        """Return the first requests of a run, all times multiplied."""
        return _measurement(
            self.start[run, :size] * factor,
            self.seconds[run, :size] * factor,
            self.tokens[run, :size],
            self.places,
        )

    def events(self, run: int, size: int) -> Iterator[int]:
        """What happens to the first requests of a run: -1 for a sending, else what has ended."""
        times = np.concatenate([self.end[run, :size], self.start[run, :size]])
        order = np.argsort(times, kind="stable")  # a place is free before it is taken again
        return iter(np.where(order < size, order, -1).tolist())

    def under_way(self, size: int, most: int) -> tuple[Ints, Ints]:
        """When the first ``size`` have ended: how many are complete, and sent, of ``most``."""
        at = self.end[:, :size].max(axis=1)
        late = self.end[:, :most] > at[:, None]
        complete = np.where(late.any(axis=1), late.argmax(axis=1), most)
        return complete, (self.start[:, :most] < at[:, None]).sum(axis=1)


def _measurement(start: Floats, seconds: Floats, tokens: Floats, places: int) -> Measurement:
    return Measurement(
        intended=np.zeros(len(start)),
        start=start,
        ttft=seconds / 8,
        end=start + seconds,
        prompt_tokens=np.ones(len(start), dtype=np.int64),
        output_tokens=tokens.astype(np.int64),
        chunks=(),
        latency_from="send",
        concurrency=places,
    )


def serve(shape: Shape, places: int, count: int, runs: int, rng: np.random.Generator) -> Served:
    """Run the loop until ``count`` measured requests have ended, after two of each place."""
    rows = max(1, 200_000 // max(places, 100))
    parts = [_serve(shape, places, count, min(rows, runs - at), rng) for at in range(0, runs, rows)]
    start, end, seconds, tokens = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Served(start, end, seconds, tokens, places)


def _serve(
    shape: Shape, places: int, count: int, runs: int, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats, Floats]:
    lead = 2 * places
    measured = slice(lead, lead + count)
    # what comes after them matters only where arrivals delay others
    total = lead + count + (8 * places if shape.waits == "arrivals" else 0)
    work, tokens = shape.requests(rng, (runs, total))
    start = _sendings(work, places)
    end = start + work
    if shape.waits is not None:
        wait = _arrivals if shape.waits == "arrivals" else _stalls
        start, end = wait(start, end, places, rng)
    start, end = start[:, measured], end[:, measured]
    seconds = end - start if shape.waits else work[:, measured]
    return start, end, seconds, tokens[:, measured]


def _sendings(seconds: Floats, places: int) -> Floats:
    """Return when each request is sent: in order, each in the place that is free first."""
    runs, count = seconds.shape
    if places == 1:
        return np.cumsum(seconds, axis=1) - seconds
    start = np.empty((count, runs))
    free, rows = np.zeros((runs, places)), np.arange(runs)
    for i in range(count):
        at = free.argmin(axis=1)
        start[i] = free[rows, at]
        free[rows, at] = start[i] + seconds[:, i]
    return np.ascontiguousarray(start.T)


def _arrivals(
    start: Floats, end: Floats, places: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Each prefill stalls all: they are together as long as 30 % of the decoding.

    ``start`` and ``end`` are of the clock of decoding, which stands still in a prefill.
    """
    size = start.shape
    prefill = rng.lognormal(-0.5, 1.0, size) * 0.3 * math.exp(0.3**2 / 2) / places
    before = np.concatenate([np.zeros((size[0], 1)), np.cumsum(prefill, axis=1)], axis=1)
    for run in range(size[0]):
        # those that were sent before it ended
        sent = np.searchsorted(start[run], end[run], side="left")
        start[run] += before[run, :-1]
        end[run] += before[run, sent]
    return start, end


def _stalls(
    start: Floats, end: Floats, places: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Every other second, on average, everything stands still for a tenth of a second."""
    for run in range(start.shape[0]):
        last = float(end[run].max())
        at = np.sort(rng.uniform(0, last, rng.poisson(last / 2)))
        waits = np.concatenate([[0.0], np.cumsum(rng.exponential(0.1, len(at)))])
        start[run] += waits[np.searchsorted(at, start[run])]
        end[run] += waits[np.searchsorted(at, end[run])]
    return start, end


def closed_loop(seconds: Floats, places: int, tokens: int = TOKENS, chunks: int = 8) -> Measurement:
    """Return the measurement of requests with such times in a loop whose places are all busy."""
    start = _sendings(seconds[None, :], places)[0]
    return Measurement(
        intended=np.zeros(len(seconds)),
        start=start,
        ttft=seconds / chunks,
        end=start + seconds,
        prompt_tokens=np.ones(len(seconds), dtype=np.int64),
        output_tokens=np.full(len(seconds), tokens),
        chunks=tuple(np.outer(seconds, np.linspace(1 / chunks, 1, chunks))),
        latency_from="send",
        concurrency=places,
    )


@dataclass(frozen=True)
class Truth:
    """Of a load at a concurrency.

    Attributes:
        rate: Tokens per second.
        p95: Of the requests' seconds.
        limit: That 80 % of the requests meet, seconds.
        goodput: Requests per second that meet it.
    """

    rate: float
    p95: float
    limit: float
    goodput: float


@cache
def truth(name: str, places: int) -> Truth:
    """Return what is true of a load, as far as it is not known exactly by four million requests."""
    shape = shapes()[name]
    rate, p95, mean, limit = _by_many(name, places if shape.waits else 0)
    if shape.exact:
        rate, p95 = shape.exact
        mean = TOKENS / rate
    return Truth(places * rate, p95, limit, places * GOOD / mean)


@cache
def _by_many(name: str, places: int) -> tuple[float, float, float, float]:
    """Tokens per place-second, p95, mean and 80th percentile; of no places where none matter."""
    shape, rng = shapes()[name], np.random.default_rng([77, places])
    if places:
        count = max(4000, 8 * places)
        served = serve(shape, places, count, 4_000_000 // count, rng)
        seconds, tokens = served.seconds, served.tokens
    else:
        seconds, tokens = shape.requests(rng, (1000, 4000))
    p95, limit = np.quantile(seconds, (Q, GOOD)).tolist()
    return float(tokens.sum() / seconds.sum()), p95, float(seconds.mean()), limit


# -- estimates of many runs at once


class Many:
    """What `autotune.stats` tells of the first requests of each run.

    Args:
        seconds: Runs × requests.
        tokens: Runs × requests.
        sizes: How many of each run count, or one number for all.
        places: Concurrency.
    """

    def __init__(self, seconds: Floats, tokens: Floats, sizes: int | Ints, places: int) -> None:
        self.n = np.broadcast_to(np.asarray(sizes), (len(seconds),))
        most = int(self.n.max())
        self._seconds, self.places = seconds[:, :most], places
        self._counts = None if np.all(self.n == most) else np.arange(most) < self.n[:, None]
        self._edges = np.arange(BATCHES + 1) * self.n[:, None] // BATCHES
        self._of_seconds = self._batches(self._seconds)
        of_tokens = self._batches(tokens[:, :most])
        self.sum = self._of_seconds.sum(axis=1)
        ratio = self.sum / of_tokens.sum(axis=1)
        self.rate = places / ratio
        residuals = self._of_seconds - ratio[:, None] * of_tokens
        variance = self._long_run(residuals) * self.n / self.sum**2
        variance[self.n < MIN_REQUESTS] = np.nan
        self.rate_error = np.sqrt(variance)
        masked = (
            self._seconds if self._counts is None else np.where(self._counts, self._seconds, np.inf)
        )
        self._ordered = np.sort(masked, axis=1)
        self._spread = self._ratio()
        self._size = self._effective(self._spread)
        self.p95 = self._at(self.n * Q + 1 / 3 + Q / 3)

    def _batches(self, values: Floats) -> Floats:
        sums = np.zeros((len(values), values.shape[1] + 1))
        np.cumsum(values, axis=1, out=sums[:, 1:])
        return np.diff(np.take_along_axis(sums, self._edges, axis=1), axis=1)

    def _long_run(self, sums: Floats) -> Floats:
        """`long_run_variance`."""
        total = (sums**2).sum(axis=1)
        with np.errstate(invalid="ignore"):
            r1 = np.where(total > 0, (sums[:, 1:] * sums[:, :-1]).sum(axis=1) / total, 0.0)
        phi = np.clip((r1 + 1 / BATCHES) / (1 - 4 / BATCHES), 0.0, 0.6)
        return total * BATCHES / (BATCHES - 1) / self.n * (1 + phi) / (1 - phi)

    def _ratio(self) -> Floats:
        """`_long_run_ratio`."""
        mean = self.sum / self.n
        off = self._seconds - mean[:, None]
        if self._counts is not None:
            off[~self._counts] = 0.0
        variance = (off**2).sum(axis=1) / self.n
        residuals = self._of_seconds - np.diff(self._edges, axis=1) * mean[:, None]
        return np.where(self.n < MIN_REQUESTS, 1.0, self._long_run(residuals) / variance)

    def _effective(self, ratio: Floats) -> Floats:
        """`_effective_size`."""
        rho = np.maximum(0.0, (ratio - 1) / (ratio + 1))
        z = float(special.ndtri(Q))
        density2 = math.exp(-(z**2)) / (2 * math.pi) / (Q * (1 - Q))
        widened = 1 + sum(
            h**2 * density2 / math.factorial(k) * 2 * rho**k / (1 - rho**k)
            for k, h in enumerate((1.0, z, z**2 - 1), start=1)
        )
        return np.asarray(self.n / widened)

    def _at(self, position: Floats) -> Floats:
        """The values in ascending order, at positions that count from 1."""
        position = np.clip(position, 1, self.n)
        low = np.minimum(np.floor(position).astype(np.int64), np.maximum(self.n - 1, 1))
        low_values = np.take_along_axis(self._ordered, low[:, None] - 1, axis=1)[:, 0]
        high = np.minimum(low, self.n - 1)
        high_values = np.take_along_axis(self._ordered, high[:, None], axis=1)[:, 0]
        return np.asarray(low_values + (position - low) * (high_values - low_values))

    def rate_half(self, level: float) -> Floats:
        """Return tok/s's distance to its one-sided bound at ``level``, as a logarithm."""
        return float(special.stdtrit(BATCHES - 1, level)) * self.rate_error

    def p95_bound(self, level: float, size: Floats | None = None) -> Floats:
        """`quantile_bound`; NaN where there is none."""
        n, size = self.n, self._size if size is None else size
        none = ((1 - Q) ** n > level) | (Q**n > 1 - level)
        below = special.bdtrik(level, size, Q)
        position = (below + 1) * (n + 1) / (size + 1)
        with np.errstate(invalid="ignore"):
            none |= ~((below > 0) & (position >= 1) & (position <= n))
        found = self._at(np.where(none, 1, position))
        found[none] = np.nan
        return found

    def p95_error(self) -> Floats:
        """Return the standard error of p95's logarithm."""
        tail, size = float(special.ndtr(-1)), self._effective(self._spread / MEAN_FACTOR)
        halves = np.abs([np.log(self.p95_bound(x, size) / self.p95) for x in (tail, 1 - tail)])
        known = ~np.isnan(halves)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(known, halves, 0).sum(axis=0) / known.sum(axis=0))

    def precise(self, precision: float = PRECISION) -> Bools:
        """Return whether both intervals at the stopping confidence are narrow enough."""
        tail = (1 - STOPPING_CONFIDENCE) / 2
        rate = np.sinh(self.rate_half(1 - tail)) < precision
        width = self.p95_bound(1 - tail) - self.p95_bound(tail)
        with np.errstate(invalid="ignore"):
            return np.asarray(rate & (width / 2 / self.p95 < precision))

    def goodput(self, limit: float, confidence: float) -> tuple[Floats, Floats, Floats]:
        """Return goodput with its bounds."""
        good = (self._seconds <= limit).astype(np.float64)
        if self._counts is not None:
            good *= self._counts
        of_good = self._batches(good)
        count, n, tail = of_good.sum(axis=1), self.n, (1 - confidence) / 2
        rate = self.places * n / self.sum
        value = rate * count / n
        low = rate * np.where(count > 0, special.betaincinv(count, n - count + 1, tail), 0.0)
        most = np.where(count < n, special.betaincinv(count + 1, n - count, 1 - tail), 1.0)
        high = rate * most
        residuals = of_good - (count / self.sum)[:, None] * self._of_seconds
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.sqrt(self._long_run(residuals) / n) / (count / n)
        factor = np.exp(float(special.stdtrit(BATCHES - 1, 1 - tail)) * error)
        some = count > 0
        low = np.where(some, np.minimum(low, value / factor), low)
        return value, low, np.where(some, np.maximum(high, value * factor), high)


def _many(served: Served, sizes: int | Ints) -> Many:
    return Many(served.seconds, served.tokens, sizes, served.places)


def _p95(m: Measurement) -> Bounded:
    return Bounded(quantile(m.e2el, 100 * Q), cache(partial(percentile_interval, m.e2el, 100 * Q)))


def bounded(m: Measurement) -> tuple[Bounded, Bounded]:
    """Return throughput and p95 of a measurement."""
    return Bounded(m.throughput, cache(partial(throughput_interval, m))), _p95(m)


def _same(ours: Any, theirs: Any) -> None:
    theirs = [math.nan if x is None else x for x in np.atleast_1d(theirs).tolist()]
    np.testing.assert_allclose(np.atleast_1d(ours), theirs, rtol=1e-6, atol=1e-12)


def _checked(runs: int) -> range:
    return range(min(runs, CHECKED))


def _check_estimates(served: Served, size: int, limit: float) -> None:
    """Compare with the package, on some runs."""
    found = _many(served, size)
    value, low, high = found.goodput(limit, 0.95)
    good = objectives.get("goodput").given({"e2el_ms": 1000 * limit})
    p95_error, p95_bounds = found.p95_error(), [found.p95_bound(x) for x in (0.025, 0.975)]
    for r in _checked(len(served.start)):
        m = served.measurement(r, size)
        rate, p95 = bounded(m)
        i, j, g = rate.interval(0.95), p95.interval(0.95), good.bounds(m)
        half = found.rate_half(0.975)[r]
        told = found.rate_error[r] / math.sqrt(MEAN_FACTOR)
        _same(
            [found.rate[r], found.rate[r] * math.exp(-half), told],
            [rate.value, i.low, i.error],
        )
        _same(
            [found.p95[r], p95_bounds[0][r], p95_bounds[1][r], p95_error[r]],
            [p95.value, j.low, j.high, j.error],
        )
        _same([value[r], low[r], high[r]], [good.value(m), g.low, g.high])


# -- 1. fixed size


def _held(low: Floats, high: Floats, true: float) -> float:
    """Share of intervals that hold the truth; a missing bound is infinite."""
    return float(np.mean(~(low > true) & ~(high < true)))


@dataclass(frozen=True)
class Fixed:
    """Of measurements of one size; see the module.

    Attributes:
        load: Its name.
        places: Concurrency.
        requests: Measured ones.
        throughput: Coverage.
        p95: Coverage.
        goodput: Coverage.
        throughput_bias: Mean of the logarithm less that of the truth.
        p95_bias: Mean of the logarithm less that of the truth.
        p95_median: Share of the runs whose p95 is below the truth.
        p95_open: Share of the runs without an upper bound of p95.
        throughput_told: Mean squared standard error of the logarithm over its variance.
        p95_told: The same.
    """

    load: str
    places: int
    requests: int
    throughput: float
    p95: float
    goodput: float
    throughput_bias: float
    p95_bias: float
    p95_median: float
    p95_open: float
    throughput_told: float
    p95_told: float


def fixed(served: Served, size: int, name: str, true: Truth) -> Fixed:
    """Return how measurements of one size do."""
    _check_estimates(served, size, true.limit)
    found = _many(served, size)
    half = np.exp(found.rate_half(0.975))
    low, high = found.p95_bound(0.025), found.p95_bound(0.975)
    _, good_low, good_high = found.goodput(true.limit, 0.95)
    rate, p95 = np.log(found.rate), np.log(found.p95)
    return Fixed(
        name,
        served.places,
        size,
        _held(found.rate / half, found.rate * half, true.rate),
        _held(low, high, true.p95),
        _held(good_low, good_high, true.goodput),
        float(rate.mean()) - math.log(true.rate),
        float(p95.mean()) - math.log(true.p95),
        float(np.mean(found.p95 < true.p95)),
        float(np.isnan(high).mean()),
        float(np.mean(found.rate_error**2) / MEAN_FACTOR / rate.var()),
        float(np.nanmean(found.p95_error() ** 2) / p95.var()),
    )


# -- an open loop


OPEN_SERVERS, OPEN_UTILISATION = 16, 0.6
OPEN_SIZES = (64, 100, 200, 400)


def open_loop(arrivals: Floats, seconds: Floats, servers: int = OPEN_SERVERS) -> Measurement:
    """Serve requests that arrive at given times; those that find no server free wait."""
    free, end = np.zeros(servers), np.empty(len(seconds))
    begin = np.empty(len(seconds))
    for i, (at, s) in enumerate(zip(arrivals, seconds, strict=True)):
        k = int(free.argmin())
        begin[i] = max(at, free[k])
        free[k] = end[i] = begin[i] + s
    share = np.linspace(1 / 8, 1, 8)
    return Measurement(
        intended=arrivals,
        start=arrivals,
        ttft=begin - arrivals + seconds / 8,
        end=end,
        prompt_tokens=np.ones(len(seconds), dtype=np.int64),
        output_tokens=np.full(len(seconds), TOKENS),
        chunks=tuple((begin - arrivals)[:, None] + np.outer(seconds, share)),
        latency_from="intended",
    )


def opened(size: int, runs: int, seed: int) -> Fixed:
    """Return how measurements at fixed Poisson arrivals do; their mean is the truth."""
    rng = np.random.default_rng([seed, size])
    gaps = rng.exponential(math.exp(0.6**2 / 2) / OPEN_SERVERS / OPEN_UTILISATION, size)
    arrivals = np.cumsum(gaps)
    found = [open_loop(arrivals, rng.lognormal(0, 0.6, size)) for _ in range(runs)]
    seconds = np.concatenate([m.e2el for m in found])
    limit = float(np.quantile(seconds, GOOD))
    good = objectives.get("goodput").given({"e2el_ms": 1000 * limit})
    values, covered, told = [], [], []
    for m in found:
        rate, p95 = bounded(m)
        values.append((rate.value, p95.value, good.value(m)))
        bounds = rate.interval(0.95), p95.interval(0.95), good.bounds(m)
        covered.append([(i.low, i.high) for i in bounds])
        told.append([i.error for i in bounds])
    of_all = np.array(values)
    true = of_all.mean(axis=0)
    true[1] = np.quantile(seconds, Q)
    ends, logs = np.array(covered, dtype=np.float64), np.log(of_all)
    squares = np.nanmean(np.array(told, dtype=np.float64) ** 2, axis=0) / logs.var(axis=0)
    held = [_held(ends[:, i, 0], ends[:, i, 1], x) for i, x in enumerate(true.tolist())]
    return Fixed(
        f"Poisson, {OPEN_SERVERS} servers",
        0,
        size,
        held[0],
        held[1],
        held[2],
        float(logs[:, 0].mean() - math.log(true[0])),
        float(logs[:, 1].mean() - math.log(true[1])),
        float(np.mean(of_all[:, 1] < true[1])),
        float(np.isnan(ends[:, 1, 1]).mean()),
        float(squares[0]),
        float(squares[1]),
    )


# -- 2. until precise


@dataclass(frozen=True)
class Stopped:
    """Of measurements that end when both intervals are narrow; see the module.

    Attributes:
        load: Its name.
        places: Concurrency.
        requests: At most.
        throughput: Coverage at the end.
        p95: Coverage at the end.
        early: Share of the runs that ended before all requests were sent.
        early_throughput: Coverage of these; None: there are fewer than 100.
        early_p95: Coverage of these.
        used: Mean share of the requests that a run took.
        throughput_bias: Mean of the logarithm less that of the truth, at the end.
        p95_bias: The same.
    """

    load: str
    places: int
    requests: int
    throughput: float
    p95: float
    early: float
    early_throughput: float | None
    early_p95: float | None
    used: float
    throughput_bias: float
    p95_bias: float


def watched(looks: Looks[Any], events: Iterator[int]) -> int:
    """Tell a measurement what happens until it is over; return its size."""
    for event in events:
        if event < 0:
            looks.sent()
        else:
            looks.ended(event)
            if looks.over:
                break
    return looks.size


def ends_when_precise(served: Served, most: int) -> Ints:
    """Return the size of each run, by `Looks`."""
    sizes = look_sizes(first_look(MIN_PROMPTS, served.places), most)
    known = {n: _many(served, n).precise() & narrow_enough(n, served.places) for n in sizes[:-1]}
    found = np.full(len(served.start), most)

    def really(run: int, size: int) -> bool:
        m = served.measurement(run, size)
        now = bounded(m)
        narrow = precise(((b.value, b.interval(STOPPING_CONFIDENCE)) for b in now), PRECISION)
        return narrow and narrow_enough(size, served.places)

    def ask(run: int, size: int) -> bool | None:
        told = bool(known[size][run]) if size in known else really(run, size)
        return told or None

    # no look of the others finds anything
    some = np.any(list(known.values()), axis=0) if known else np.zeros(len(found), dtype=bool)
    for run in np.flatnonzero(some):
        looks = Looks(sizes, partial(ask, int(run)))
        found[run] = watched(looks, served.events(int(run), most))
    for run in _checked(len(found)):
        looks = Looks(sizes, lambda size, run=run: really(run, size) or None)  # type: ignore[misc]
        assert watched(looks, served.events(run, most)) == found[run]
    return found


def stopped(served: Served, most: int, name: str, true: Truth) -> Stopped:
    """Return how measurements that may end do."""
    sizes = ends_when_precise(served, most)
    early = sizes < most
    found = _many(served, sizes)

    def bounds(level: float) -> tuple[Floats, ...]:
        half = np.exp(found.rate_half(1 - level))
        ends = found.p95_bound(level), found.p95_bound(1 - level)
        return found.rate / half, found.rate * half, *ends

    tails = [(1 - x) / 2 for x in (STOPPING_CONFIDENCE, 0.95)]
    low, high, p95_low, p95_high = (
        np.where(early, *pair) for pair in zip(*map(bounds, tails), strict=True)
    )

    def of_early(low: Floats, high: Floats, true: float) -> float | None:
        return _held(low[early], high[early], true) if early.sum() >= 100 else None

    return Stopped(
        name,
        served.places,
        most,
        _held(low, high, true.rate),
        _held(p95_low, p95_high, true.p95),
        float(early.mean()),
        of_early(low, high, true.rate),
        of_early(p95_low, p95_high, true.p95),
        float(sizes.mean()) / most,
        float(np.log(found.rate).mean()) - math.log(true.rate),
        float(np.log(found.p95).mean()) - math.log(true.p95),
    )


# -- 3. until dominated


@dataclass(frozen=True)
class Ended:
    """Of trials of one kind against finished ones; see the module.

    Attributes:
        load: Its name.
        places: Concurrency.
        requests: Of every launch, at most.
        kind: Of :data:`KINDS`.
        unsent: Share of the trials that had requests to send at a look; no more can end early.
        used: Mean share of the requests of those that ended; None: none did.
        shares: Of the trials, that ended early, for each of :data:`LUCKS`; None: the p95 of so few
            requests has no upper bound at the test's level.
    """

    load: str
    places: int
    requests: int
    kind: str
    unsent: float
    used: float | None
    shares: tuple[float | None, ...]


@dataclass
class Contest:
    """Trials and finished rivals of equal truth, without the luck of their launches.

    Args:
        trials: One a run.
        rivals: A pool.
        most: Requests of each.
        sigma: Standard deviation between launches that the test reckons with.
    """

    trials: Served
    rivals: Served
    most: int
    directions: ClassVar[tuple[Literal["maximize", "minimize"], ...]] = ("maximize", "minimize")
    sigma: float = field(default_factory=lambda: expected_between(0.0, 0))

    def __post_init__(self) -> None:
        self.sizes = look_sizes(first_look(MIN_PROMPTS, self.trials.places), self.most)
        shape = len(self.trials.start), len(self.sizes) - 1
        self._asked, self._sent = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int64)
        level = ALPHA / 2 / max(1, len(self.sizes) - 1)
        at_look, again = [], []
        for j, n in enumerate(self.sizes[:-1]):
            complete, self._sent[:, j] = self.trials.under_way(n, self.most)
            # an end that completes several sizes is one look, at the largest
            following = self.sizes[j + 1]
            self._asked[:, j] = (complete < following) | (following == self.most)
            at_look.append(_facing(_many(self.trials, n), level, 1 - level))
            again.append(_facing(_many(self.trials, self._sent[:, j]), level, 1 - level))
        # runs × looks × objectives: logarithms with "larger is worse", and how far they are sure
        self._at_look, self._again = (
            tuple(np.stack(x, axis=1) for x in zip(*found, strict=True))
            for found in (at_look, again)
        )
        self._of_rivals = {
            count: _facing(_many(self.rivals, self.most), 1 - ALPHA / 2 / count, ALPHA / 2 / count)
            for count in RIVALS
        }

    @property
    def unsent(self) -> float:
        """Share of the trials that have requests to send at a look."""
        return float(np.mean((self._asked & (self._sent < self.most)).any(axis=1)))

    def verdicts(
        self, kind: str, luck: Floats, of_rivals: Floats, chosen: Ints
    ) -> tuple[Bools, Ints]:
        """Return which trials ended early, and the sizes of all.

        Args:
            kind: Of :data:`KINDS`.
            luck: Of each run's trial, a logarithm.
            of_rivals: Of each run's rivals: runs × rivals.
            chosen: Which rivals, out of the pool.
        """
        count = chosen.shape[1]
        values, halves = self._of_rivals[count]
        t = float(special.stdtrit(LAUNCH_DEGREES, 1 - ALPHA / 2 / count))
        launch2 = 2 * (t * self.sigma) ** 2
        rivals = values[chosen] + of_rivals[..., None]  # runs × rivals × objectives
        sure2 = halves[chosen] ** 2 + launch2
        shift = np.log(KINDS[kind]) + luck[:, None]

        def worse(of: tuple[Floats, Floats], look: int) -> Bools:
            value, half2 = of[0][:, look] + shift, of[1][:, look] ** 2
            beyond = np.ones(chosen.shape, dtype=bool)
            for i in range(len(self.directions)):
                gap = value[:, i, None] - rivals[..., i]
                beyond &= gap > 0
                beyond &= gap**2 > sure2[..., i] + half2[:, i, None]
            return np.asarray(beyond.any(axis=1))

        looks = range(len(self.sizes) - 1)
        first = np.stack([worse(self._at_look, j) for j in looks], axis=1)
        second = np.stack([worse(self._again, j) for j in looks], axis=1)
        found = first & self._asked
        at = found.argmax(axis=1)
        runs = np.arange(len(at))
        size, sent = np.array(self.sizes)[at], self._sent[runs, at]
        alone = sent <= size  # nothing was under way
        ends = found.any(axis=1) & (alone | ((sent < self.most) & second[runs, at]))
        ended = np.where(ends, np.where(alone, size, sent), self.most)
        # where the second answer is "no", it goes on: rare, and by `Looks` itself
        for run in np.flatnonzero(found.any(axis=1) & ~ends & (sent < self.most)):
            known = dict(zip(self._sent[run].tolist(), second[run].tolist(), strict=True))
            known |= dict(zip(self.sizes, first[run].tolist(), strict=False))
            at_rivals = [
                (int(k), float(x)) for k, x in zip(chosen[run], of_rivals[run], strict=True)
            ]
            really = self.really(int(run), kind, float(luck[run]), at_rivals)

            def ask(
                size: int,
                known: dict[int, bool] = known,
                really: Callable[[int], int | None] = really,
            ) -> int | None:
                if size in known:
                    return 0 if known[size] else None
                return really(size)

            looks_ = Looks(self.sizes, ask)
            ended[run] = watched(looks_, self.trials.events(int(run), self.most))
        return ended < self.most, ended

    def really(
        self, run: int, kind: str, luck: float, rivals: Sequence[tuple[int, float]]
    ) -> Callable[[int], int | None]:
        """Return what `Domination` says of a run at a size."""
        test = Domination(
            len(self.sizes),
            self.directions,
            (self.sigma, self.sigma),
            ALPHA,
            len(rivals),
        )
        others: list[tuple[Bounded, Bounded]] = []
        of_rate, of_p95 = KINDS[kind]

        def ask(size: int) -> int | None:
            if not others:
                others.extend(
                    bounded(self.rivals.measurement(k, self.most, math.exp(x))) for k, x in rivals
                )
            rate = bounded(self.trials.measurement(run, size, of_rate * math.exp(luck)))[0]
            p95 = bounded(self.trials.measurement(run, size, of_p95 * math.exp(luck)))[1]
            return test.by((rate, p95), others)

        return ask


def _facing(found: Many, rate_level: float, p95_level: float) -> tuple[Floats, Floats]:
    """Return values and distances of the bounds: runs × (tok/s, p95), larger is worse.

    Args:
        found: Of all runs.
        rate_level: Above 1/2 the bound below tok/s, else the one above.
        p95_level: Above 1/2 the bound above p95, else the one below.
    """
    level = max(rate_level, 1 - rate_level)
    # worse of tok/s is less, of p95 more: a trial's better bounds, a rival's worse ones
    p95 = found.p95_bound(1 - p95_level)
    halves = [found.rate_half(level), np.abs(np.log(p95 / found.p95))]
    values = [-np.log(found.rate), np.log(found.p95)]
    return np.stack(values, axis=1), np.stack(halves, axis=1)


def lucks(rng: np.random.Generator, tail: str, scatter: float, size: Size) -> Floats:
    """Return logarithms with that standard deviation."""
    if tail == "normal":
        return np.asarray(rng.normal(0, scatter, size))
    return np.asarray(rng.standard_t(4, size) * scatter / math.sqrt(2))


def dominate(
    contest: Contest,
    kind: str,
    scatter: float,
    tail: str,
    count: int,
    rng: np.random.Generator,
    checked: int = 0,
) -> tuple[Bools, Ints]:
    """Return which trials ended early and the sizes of all, each against its own draw of rivals."""
    runs, pool = len(contest.trials.start), len(contest.rivals.start)
    luck = lucks(rng, tail, scatter, runs)
    of_rivals = lucks(rng, tail, scatter, (runs, count))
    chosen = np.stack([rng.permutation(pool)[:runs] for _ in range(count)], axis=1)
    ended, sizes = contest.verdicts(kind, luck, of_rivals, chosen)
    for run in rng.integers(runs, size=checked).tolist():
        rivals = [(int(k), float(x)) for k, x in zip(chosen[run], of_rivals[run], strict=True)]
        ask = contest.really(run, kind, float(luck[run]), rivals)
        looks: Looks[int] = Looks(contest.sizes, ask)
        assert watched(looks, contest.trials.events(run, contest.most)) == sizes[run]
    return ended, sizes


def contests(contest: Contest, name: str, rng: np.random.Generator) -> list[Ended]:
    """Return all kinds of trials, with all lucks and numbers of rivals."""
    shape = len(KINDS), len(LUCKS)
    checked = np.bincount(rng.integers(math.prod(shape), size=CHECKED), minlength=math.prod(shape))
    checked = checked.reshape(shape)
    rows = []
    for kind, of_kind in zip(KINDS, checked.tolist(), strict=True):
        shares: list[float | None] = []
        used = []
        for (scatter, tail, count), some in zip(LUCKS, of_kind, strict=True):
            ended, sizes = dominate(contest, kind, scatter, tail, count, rng, some)
            can = contest.most >= rivals_need(count, ALPHA)
            assert can or not ended.any()
            shares.append(float(ended.mean()) if can else None)
            used.append(sizes[ended])
        sizes = np.concatenate(used)
        mean = float(sizes.mean()) / contest.most if len(sizes) else None
        rows.append(
            Ended(
                name,
                contest.trials.places,
                contest.most,
                kind,
                contest.unsent,
                mean,
                tuple(shares),
            )
        )
    return rows


# -- 4. launches


@dataclass(frozen=True)
class Launches:
    """Of points that were launched twice.

    Attributes:
        between: Standard deviation between launches, of the logarithm.
        within: Standard error within a launch.
        points: How many were launched twice.
        point: Coverage of a point by its two launches.
        single: Coverage of another point, by its only launch.
        ratio: Coverage of the ratio of two points by two launches each.
        single_ratio: Coverage of the ratio of two other points, by one launch each.
        zero: How often ``between`` comes out as 0.
        none: How often the single launches' ratio has no interval.
    """

    between: float
    within: float
    points: int
    point: float
    single: float
    ratio: float
    single_ratio: float
    zero: float
    none: float


def launches(between: float, within: float, points: int, runs: int, seed: int) -> Launches:
    """Return how `LaunchVariance` does."""
    rng = np.random.default_rng([seed, round(1000 * between), round(1000 * within), points])

    def launch() -> SingleLaunch:
        # eight batches tell a standard error with seven degrees of freedom
        told = within * math.sqrt(rng.chisquare(BATCHES - 1) / (BATCHES - 1))
        return SingleLaunch(math.exp(rng.normal(0, math.hypot(between, within))), told)

    def mean(group: Sequence[SingleLaunch]) -> SingleLaunch:
        value = math.exp(sum(math.log(x.value) for x in group) / len(group))
        return SingleLaunch(value, math.sqrt(sum(x.within**2 for x in group) / len(group)))

    held = np.zeros((runs, 4), dtype=bool)
    zero = none = 0
    for run in range(runs):
        groups = [[launch(), launch()] for _ in range(points)]
        found = LaunchVariance.of(groups)
        assert found is not None
        zero += found.between == 0
        # the ratio of two of the points that were launched twice
        a, b = mean(groups[0]), mean(groups[1])
        single, other = launch(), launch()
        estimates = (
            found.point(a, 2),
            found.point(single, 1),
            found.ratio(a, b, (2, 2)),
            found.ratio(single, other),
        )
        none += estimates[3].low is None
        held[run] = [e.low is None or e.high is None or e.low <= 1 <= e.high for e in estimates]
    shares = held.mean(axis=0).tolist()
    return Launches(between, within, points, *shares, zero / runs, none / runs)


# -- tables


def _loops(
    names: Sequence[str], sizes: Mapping[int, Sequence[int]], runs: int, seed: int
) -> Iterator[tuple[str, Served, Sequence[int], np.random.Generator]]:
    listed = list(shapes())
    for name in names:
        for places, counts in sizes.items():
            rng = np.random.default_rng([seed, listed.index(name), places])
            yield name, serve(shapes()[name], places, max(counts), runs, rng), counts, rng


def part1(names: Sequence[str], runs: int, seed: int) -> list[Fixed]:
    """Print and return the table of fixed sizes."""
    print(
        f"{'':<22}{'':>9}  coverage, %          no upper  bias, %       told variance\n"
        f"{'fixed size':<22}{'C':>4}{'N':>5}  tok/s   p95 goodput  bound  tok/s   p95  tok/s   p95"
    )
    rows = []
    for name, served, counts, _ in _loops(names, SIZES, runs, seed):
        true = truth(name, served.places)
        rows += [_told(fixed(served, size, name, true)) for size in counts]
    if len(names) == len(shapes()):
        rows += [_told(opened(size, runs, seed)) for size in OPEN_SIZES]
    return rows


def _told(x: Fixed) -> Fixed:
    print(
        f"{x.load:<22}{x.places or '':>4}{x.requests:>5}{100 * x.throughput:>7.1f}"
        f"{100 * x.p95:>6.1f}{100 * x.goodput:>8.1f}{100 * x.p95_open:>7.0f}"
        f"{100 * x.throughput_bias:>+7.1f}{100 * x.p95_bias:>+6.1f}"
        f"{x.throughput_told:>7.2f}{x.p95_told:>6.2f}",
        flush=True,
    )
    return x


def part2(names: Sequence[str], runs: int, seed: int) -> list[Stopped]:
    """Print and return the table of measurements that end when they are precise."""
    print(
        f"{'':<22}{'':>9}  coverage, %  early, coverage of these, %   used   bias, %\n"
        f"{'until precise':<22}{'C':>4}{'N':>5}  tok/s   p95     %          tok/s   p95     %"
        "  tok/s   p95"
    )
    sizes = {c: [n for n in counts if n >= TURNS * c] for c, counts in SIZES.items()}
    rows = []
    for name, served, counts, _ in _loops(names, sizes, runs, seed):
        for size in counts:
            x = stopped(served, size, name, truth(name, served.places))
            early = [
                f"{100 * y:.1f}" if y is not None else "" for y in (x.early_throughput, x.early_p95)
            ]
            print(
                f"{name:<22}{x.places:>4}{size:>5}{100 * x.throughput:>7.1f}{100 * x.p95:>6.1f}"
                f"{100 * x.early:>6.0f}{early[0]:>15}{early[1]:>6}{100 * x.used:>6.0f}"
                f"{100 * x.throughput_bias:>+7.1f}{100 * x.p95_bias:>+6.1f}",
                flush=True,
            )
            rows.append(x)
    return rows


def part3(names: Sequence[str], runs: int, seed: int) -> list[Ended]:
    """Print, for each cell, the extremes over all lucks and numbers of rivals; return the table."""
    print(
        f"{'':<22}{'':>9}  most that ended, %: as good in      half as fast, %:    unsent  used\n"
        f"{'until dominated':<22}{'C':>4}{'N':>5}   both +20 %  tok/s    p95        least   most"
        "      %     %"
    )
    rows = []
    for name, served, counts, rng in _loops(names, ENDED_SIZES, 2 * runs, seed):
        trials, rivals = served.part(0, runs), served.part(runs, 2 * runs)
        for size in counts:
            found = {x.kind: x for x in contests(Contest(trials, rivals, size), name, rng)}
            rows += found.values()
            known = {k: [y for y in x.shares if y is not None] for k, x in found.items()}
            line = f"{name:<22}{served.places:>4}{size:>5}"
            half = known.pop("half")
            if half:
                line += "".join(f"{100 * max(x):>7.1f}" for x in known.values())
                used = found["half"].used
                line += f"{100 * min(half):>14.1f}{100 * max(half):>7.1f}"
                line += f"{100 * found['half'].unsent:>7.0f}"
                line += f"{100 * used:>6.0f}" if used is not None else ""
            else:
                line += "  p95 of so few requests has no upper bound"
            print(line, flush=True)
    return rows


def part4(runs: int, seed: int) -> list[Launches]:
    """Print and return the table of launches."""
    print(
        f"{'':>9}{'':>7}{'':>7}  coverage, %: two launches, one     between is 0,\n"
        f"{'between,%':>9}{'within':>7}{'points':>7}  point  ratio         point  ratio     %"
    )
    rows = []
    for between in (0.0, 0.005, 0.03, 0.10):
        for within in (0.01, 0.03):
            for points in range(2, 11):
                x = launches(between, within, points, runs, seed)
                print(
                    f"{100 * between:>9.1f}{100 * within:>7.0f}{points:>7}{100 * x.point:>7.1f}"
                    f"{100 * x.ratio:>7.1f}{100 * x.single:>14.1f}{100 * x.single_ratio:>7.1f}"
                    f"{100 * x.zero:>6.0f}",
                    flush=True,
                )
                rows.append(x)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", type=int, nargs="+", choices=range(1, 5), default=range(1, 5))
    parser.add_argument("--only", nargs="+", metavar="LOAD", choices=list(shapes()))
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file in which the parts that run are replaced")
    args = parser.parse_args()
    names = args.only or list(shapes())
    tables: dict[int, Callable[[], Sequence[Any]]] = {
        1: partial(part1, names, args.runs, args.seed),
        2: partial(part2, names, args.runs, args.seed),
        3: partial(part3, names, args.runs, args.seed),
        4: partial(part4, args.runs, args.seed),
    }
    for part in args.part:
        began = time.monotonic()
        rows = tables[part]()
        took = time.monotonic() - began
        print(f"part {part}: {took:.0f} s\n", flush=True)
        if args.json:
            command = f"python benchmarks/coverage.py --part {part} --runs {args.runs}"
            command += f" --seed {args.seed}"
            if args.only:
                command += "".join(f' --only "{name}"' for name in names)
            about = {
                "command": command,
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "runs": args.runs,
                "seed": args.seed,
                "numpy": np.__version__,
                "scipy": scipy.__version__,
                "seconds": round(took),
            }
            if part == 3:
                about["lucks"] = [list(x) for x in LUCKS]
            _store(args.json, str(part), about, rows)


def _store(path: Path, part: str, about: dict[str, Any], rows: Sequence[Any]) -> None:
    """Replace a part of the file; a row of a table takes a line."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    names = list(vars(rows[0]))
    table = [[_rounded(getattr(x, name)) for name in names] for x in rows]
    kept[part] = {**about, "columns": names, "rows": table}
    parts = []
    for key, value in sorted(kept.items()):
        lines = [f'  "{k}": {json.dumps(v)}' for k, v in value.items() if k != "rows"]
        of_rows = ",\n   ".join(json.dumps(row) for row in value["rows"])
        lines.append(f'  "rows": [\n   {of_rows}\n  ]')
        parts.append(f' "{key}": {{\n' + ",\n".join(lines) + "\n }")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(x) for x in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
