"""Cost of a million output tokens on a machine that is paid by the hour."""

from __future__ import annotations

from autotune.stats import Interval, Measurement, throughput_interval
from objectives import Objective


def _price(tokens_per_s: float, usd_per_hour: float) -> float:
    return usd_per_hour / 3600 / tokens_per_s * 1e6


def _compute(m: Measurement, usd_per_hour: float) -> float:
    return _price(m.throughput, usd_per_hour)


def _interval(m: Measurement, confidence: float, usd_per_hour: float) -> Interval:
    """Return the interval of throughput, as costs: its upper bound becomes the lower one."""
    tokens = throughput_interval(m, confidence)
    low, high = (x and _price(x, usd_per_hour) for x in (tokens.high, tokens.low))
    return Interval(low, high, confidence, tokens.error)


OBJECTIVE = Objective(
    name="cost",
    title="Cost",
    unit="USD/1M tokens",
    direction="minimize",
    formula="usd_per_hour / (3600 · throughput) · 10⁶, with the objective `throughput`",
    source="autotune: the server under the study's load, all of its hours paid and full",
    compute=_compute,
    interval=_interval,
    setting="usd_per_hour",
    words=lambda usd_per_hour: f"{usd_per_hour:g} USD/h",
)
