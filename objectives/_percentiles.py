"""Percentiles of the latencies of ``vllm bench serve``: one table of objectives.

Median, 95th and 99th percentile of the requests' TTFT, TPOT and E2EL, and of all ITL, in
milliseconds. :mod:`autotune.stats.measurement` defines the four as ``vllm bench serve`` does
(``vllm/benchmarks/serve.py``, ``calculate_metrics``). The estimator is the median-unbiased one, not
NumPy's default, which vLLM uses and which is too small for few requests.
:mod:`autotune.stats.intervals` says why, and defines the intervals of TTFT, TPOT and E2EL, which
have one value for each request.

**ITL** has many values for each request, and those of one request are similar. Intervals that treat
them as independent are too narrow (at the median they hold 83 to 90 % instead of 95 % by
simulation). Therefore the share of gaps below the percentile is bounded, as in samples of clusters
(R. S. Woodruff, "Confidence intervals for medians and other position measures", Journal of the
American Statistical Association 47, 1952). The variance of that share is that of the eight batches
of neighboring requests, with Student's t at 7 degrees of freedom. The gaps at the two ends of the
share's interval are the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from autotune.stats import Interval, Measurement, percentile_interval, quantile, quantiles
from autotune.stats.intervals import BATCHES, MEAN_FACTOR, MIN_REQUESTS, long_run_variance
from autotune.stats.measurement import Floats
from objectives import Objective


@dataclass(frozen=True)
class Latency:
    """One kind of latency.

    Attributes:
        name: Name as part of the objectives' names.
        short: Abbreviation that vLLM uses.
        title: Title for tables.
        meaning: Beginning and end of the latency, in words.
        seconds: Returns the values of a measurement, in seconds, in the order of sending.
        needs: Requests that have a value, in words.
        clustered: Whether a request has many values, which are similar.
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
    """Return the objective ``p<percent>_<latency>``, in milliseconds."""
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
    """Return the interval of the ``q`` quantile of values with similar neighbors."""
    center = quantile(values, 100 * q)
    below = (values <= center).astype(np.float64)
    error = float(np.sqrt(long_run_variance(below - below.mean()) / len(values)))
    half = quantiles.student_t(BATCHES - 1, (1 + confidence) / 2) * error

    def at(share: float) -> float | None:
        return quantile(values, 100 * share) if 0 < share < 1 else None

    one = error / math.sqrt(MEAN_FACTOR)
    near = [x for x in (at(q - one), at(q + one)) if x is not None and x > 0]
    known = bool(near) and center > 0
    log_error = sum(abs(math.log(x / center)) for x in near) / len(near) if known else None
    return Interval(at(q - half), at(q + half), confidence, log_error)


# Objectives by name, from p50_ttft to p99_latency.
OBJECTIVES = {
    objective.name: objective
    for latency in (TTFT, TPOT, ITL, E2EL)
    for objective in (percentile(percent, latency) for percent in (50, 95, 99))
}
