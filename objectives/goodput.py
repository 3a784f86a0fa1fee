"""Requests per second that meet a service level, as ``vllm bench serve --goodput`` counts them.

In a closed loop their rate is max_concurrency · good requests / Σ seconds, as for tokens
(:mod:`autotune.stats.measurement`). ``vllm bench serve`` divides by the time from the first sending
to the last end, in which the load is not always full.

The interval combines two, and the wider bound counts on either side. The first is that of the ratio
of good requests to the seconds of all requests, by batch means as for throughput
(:mod:`autotune.stats.intervals`). Slow requests are both rarer and more often bad, which the ratio
includes. The second is the binomial interval of the share of good requests (C. J. Clopper, E. S.
Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
Biometrika 26, 1934), at the measured rate. It is needed where all requests are good, or none is,
because the ratio's interval would be too narrow there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autotune.stats import Interval, Measurement, quantiles
from autotune.stats.intervals import MIN_REQUESTS, ratio_interval
from objectives import Objective


def _good(m: Measurement, slo: Mapping[str, float]) -> NDArray[np.bool_]:
    """Return for each request whether it meets every limit; TPOT of one token is 0, as in vLLM."""
    several = m.output_tokens > 1
    tpot = np.zeros(len(m))
    tpot[several] = m.tpot
    values = {"ttft_ms": m.first_token, "tpot_ms": tpot, "e2el_ms": m.e2el}
    good = np.ones(len(m), dtype=np.bool_)
    for key, limit in slo.items():
        good &= values[key] * 1000 <= limit
    return good


def _rate(m: Measurement) -> float:
    """Return all requests per second.

    A closed loop divides by the requests' seconds, an open one by the time from the first sending
    to the last end.
    """
    if m.concurrency is not None:
        return m.concurrency * len(m) / float(m.seconds.sum())
    return len(m) / float(m.end.max() - m.start.min())


def _compute(m: Measurement, slo: Mapping[str, float]) -> float:
    return float(_good(m, slo).mean()) * _rate(m)


def _interval(m: Measurement, confidence: float, slo: Mapping[str, float]) -> Interval:
    n = len(m)
    if n < MIN_REQUESTS:
        return Interval(None, None, confidence)
    good, rate, tail = _good(m, slo), _rate(m), (1 - confidence) / 2
    count, value = int(good.sum()), float(good.mean()) * rate
    low = rate * quantiles.beta(count, n - count + 1, tail) if count else 0.0
    high = rate * quantiles.beta(count + 1, n - count, 1 - tail) if count < n else rate
    if not count:
        return Interval(low, high, confidence)
    seconds = m.seconds
    residuals = good - count / seconds.sum() * seconds
    batches = ratio_interval(value, residuals, float(good.mean()), confidence)
    assert batches.low is not None  # noqa: S101 – a ratio of positive numbers has both
    assert batches.high is not None  # noqa: S101
    return Interval(min(low, batches.low), max(high, batches.high), confidence, batches.error)


def _words(slo: Mapping[str, float]) -> str:
    return ", ".join(f"{k.removesuffix('_ms').upper()} ≤ {limit:g} ms" for k, limit in slo.items())


OBJECTIVE = Objective(
    name="goodput",
    title="Goodput",
    unit="req/s",
    direction="maximize",
    formula="requests that meet every limit of `slo` per second: closed loop: max_concurrency · "
    "good / Σ seconds of the requests; open loop: good / (last end - first sending)",
    source="vllm/benchmarks/serve.py, request_goodput (`--goodput`); Y. Zhong et al., "
    '"DistServe", OSDI 2024',
    compute=_compute,
    interval=_interval,
    setting="slo",
    words=_words,
)
