"""Percentiles of latencies, as ``vllm bench serve`` defines them; each is a module of its own.

Median, 95th and 99th percentile of the requests' TTFT, TPOT and E2EL, and of all ITL, in
milliseconds, NumPy's ``linear`` estimator (``vllm/benchmarks/serve.py``, ``calculate_metrics``).
What the four are says :mod:`autotune.measure.measurement`; the intervals of three, which have one
value a request, says :mod:`autotune.measure.intervals`.

**ITL** has many values a request, and those of one request are alike: taken as single ones they
would be too sure (at the median 83 to 90 % instead of 95 % by simulation). So the share of gaps
below the percentile is what is bounded, as in samples of clusters (R. S. Woodruff, "Confidence
intervals for medians and other position measures", Journal of the American Statistical Association
47, 1952): its variance by the eight batches of neighbouring requests, Student's t at 7 degrees of
freedom, and the gaps at the two ends of that share are the bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import special

from autotune.measure import Interval, Measurement, percentile_interval
from autotune.measure.intervals import BATCHES, MIN_REQUESTS, long_run_variance
from autotune.measure.measurement import Floats
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
        formula=f"{which} of {latency.short} (NumPy's linear estimator): {latency.meaning}",
        source=f"vllm/benchmarks/serve.py, {statistic}_{latency.short.lower()}_ms",
        compute=partial(_compute, percent, latency),
        interval=partial(_interval, percent, latency),
    )


def _compute(percent: int, latency: Latency, m: Measurement) -> float:
    seconds = latency.seconds(m)
    if not len(seconds):
        raise ValueError(f"p{percent}_{latency.name} needs {latency.needs}")
    return float(np.percentile(seconds, percent, method="linear")) * 1000


def _interval(percent: int, latency: Latency, m: Measurement, confidence: float) -> Interval:
    seconds = latency.seconds(m)
    if latency.clustered:
        if len(m) < MIN_REQUESTS:
            return Interval(None, None, confidence)
        return _of_clusters(seconds, percent / 100, confidence).scaled(1000)
    return percentile_interval(seconds, percent, confidence).scaled(1000)


def _of_clusters(values: Floats, q: float, confidence: float) -> Interval:
    """Of the ``q`` quantile of values whose neighbours are alike; see the module."""
    below = (values <= np.quantile(values, q)).astype(np.float64)
    error = float(np.sqrt(long_run_variance(below - below.mean()) / len(values)))
    half = float(special.stdtrit(BATCHES - 1, (1 + confidence) / 2)) * error
    low, high = (
        float(np.quantile(values, at)) if 0 < at < 1 else None for at in (q - half, q + half)
    )
    return Interval(low, high, confidence)
