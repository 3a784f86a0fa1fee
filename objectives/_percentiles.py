"""Percentiles of the latencies of ``vllm bench serve``: one table of objectives.

Median, 95th and 99th percentile of the requests' TTFT, TPOT and E2EL, and of all ITL, in
milliseconds. :mod:`autotune.stats.measurement` defines the four as ``vllm bench serve`` does
(``vllm/benchmarks/serve.py``, ``calculate_metrics``). The estimator is the median-unbiased one, not
NumPy's default, which vLLM takes and which is too small for few requests;
:mod:`autotune.stats.intervals` says why, and what the intervals are of the three that have one
value a request.

**ITL** has many values a request, and those of one request are alike: taken as single ones they
would be too sure (at the median 83 to 90 % instead of 95 % by simulation). So the share of gaps
below the percentile is what is bounded, as in samples of clusters (R. S. Woodruff, "Confidence
intervals for medians and other position measures", Journal of the American Statistical Association
47, 1952): its variance by the eight batches of neighbouring requests, Student's t at 7 degrees of
freedom, and the gaps at the two ends of that share are the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import special

from autotune.stats import Interval, Measurement, percentile_interval, quantile
from autotune.stats.intervals import BATCHES, MEAN_FACTOR, MIN_REQUESTS, long_run_variance
from autotune.stats.measurement import Floats
from objectives import Objective


@dataclass(frozen=True)
class Latency:
    """One kind of latency.

    Attributes:
        name: In the names of objectives.
        short: As vLLM abbreviates it.
        title: In tables.
        meaning: From when to when.
        seconds: Its values, in the order of sending.
        needs: Which requests have one.
        clustered: A request has many, and they are alike.
    """

    name: str
    short: str
    title: str
    meaning: str
    seconds: Callable[[Measurement], Floats]
    needs: str = "requests"
    clustered: bool = False


TTFT = Latency(
    "ttft",
    "TTFT",
    "TTFT",
    "from a request's origin to its first token",
    lambda m: m.first_token,
)
TPOT = Latency(
    "tpot",
    "TPOT",
    "TPOT",
    "(E2EL - TTFT) / (output tokens - 1)",
    lambda m: m.tpot,
    "requests of at least two output tokens",
)
ITL = Latency(
    "itl",
    "ITL",
    "ITL",
    "between two chunks of a request, all gaps of all requests; under speculation a chunk is a "
    "verification step",
    lambda m: m.itl,
    "requests of at least two chunks",
    clustered=True,
)
E2EL = Latency(
    "latency",
    "E2EL",
    "latency",
    "from a request's origin to its last chunk",
    lambda m: m.e2el,
)


def percentile(percent: int, latency: Latency) -> Objective:
    """The objective ``p<percent>_<latency>``."""
    median = percent == 50
    which = "median" if median else f"{percent}th percentile"
    statistic = "median" if median else f"p{percent}"
    return Objective(
        name=f"p{percent}_{latency.name}",
        title=f"{'Median' if median else statistic} {latency.title}",
        unit="ms",
        direction="minimize",
        formula=f"{which} of {latency.short} (median-unbiased estimator): {latency.meaning}",
        source=f"vllm/benchmarks/serve.py, {statistic}_{latency.short.lower()}_ms, by type 8 of "
        "Hyndman & Fan 1996 where vLLM has type 7",
        compute=partial(_compute, percent, latency),
        interval=partial(_interval, percent, latency),
    )


def _compute(percent: int, latency: Latency, m: Measurement) -> float:
    seconds = latency.seconds(m)
    if not len(seconds):
        raise ValueError(f"p{percent}_{latency.name} needs {latency.needs}")
    return quantile(seconds, percent) * 1000


def _interval(percent: int, latency: Latency, m: Measurement, confidence: float) -> Interval:
    seconds = latency.seconds(m)
    if latency.clustered:
        if len(m) < MIN_REQUESTS:
            return Interval(None, None, confidence)
        return _of_clusters(seconds, percent / 100, confidence).scaled(1000)
    return percentile_interval(seconds, percent, confidence).scaled(1000)


def _of_clusters(values: Floats, q: float, confidence: float) -> Interval:
    """Of the ``q`` quantile of values whose neighbours are alike; see the module."""
    center = quantile(values, 100 * q)
    below = (values <= center).astype(np.float64)
    error = float(np.sqrt(long_run_variance(below - below.mean()) / len(values)))
    half = float(special.stdtrit(BATCHES - 1, (1 + confidence) / 2)) * error

    def at(share: float) -> float | None:
        return quantile(values, 100 * share) if 0 < share < 1 else None

    one = error / math.sqrt(MEAN_FACTOR)
    near = [x for x in (at(q - one), at(q + one)) if x is not None and x > 0]
    told = sum(abs(math.log(x / center)) for x in near) / len(near) if near and center > 0 else None
    return Interval(at(q - half), at(q + half), confidence, told)


# By name: p50_ttft to p99_latency.
OBJECTIVES = {
    objective.name: objective
    for latency in (TTFT, TPOT, ITL, E2EL)
    for objective in (percentile(percent, latency) for percent in (50, 95, 99))
}
