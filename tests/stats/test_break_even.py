"""Break-even of drafting: exact where the law is, covered where launches scatter."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autotune.stats import LaunchVariance, Scatter
from autotune.stats.acceptance_curve import from_conditional, from_length
from autotune.stats.break_even import (
    Family,
    Played,
    Speed,
    break_even,
    family,
    needed,
    rate_between,
)

NS = (1, 3, 7)
# seconds of a step of the demo pair on two cores, and of the prompt of each output token
BASE, TOKEN, DRAFT, PREFILL = 18e-3, 1.4e-3, 6e-3, 2e-3


def step_s(n: int, load: int) -> float:
    return BASE + TOKEN * load * (n + 1) + (DRAFT if n else 0.0)


def speed(n: int, load: int, length: float) -> float:
    """tok/s by the law: prefill and steps of every output token."""
    return load / (PREFILL * load + step_s(n, load) / length)


def pair(n: int) -> tuple[float, float]:
    low, high = (from_conditional(a, n).length(n) for a in (0.2, 0.8))
    return low, high


def truth(n: int, load: int) -> float:
    """The prompt costs the same with and without drafts, so the steps decide."""
    return step_s(n, load) / step_s(0, load)


def found_at(n: int, load: int, within: float | None = 0.001) -> tuple[Played, Played, Speed]:
    low, high = (Played(x, Speed(speed(n, load, x), within)) for x in pair(n))
    return low, high, Speed(speed(0, load, 1.0), within, 2)


@pytest.mark.parametrize("n", NS)
@pytest.mark.parametrize("load", [1, 4, 32])
def test_the_law_is_found_exactly(n: int, load: int) -> None:
    low, high, none = found_at(n, load)
    found = break_even(n, low, high, none, None)
    assert found.length.value == pytest.approx(truth(n, load))
    assert found.reachable == (truth(n, load) <= n + 1)
    assert found.length.low is not None
    assert found.length.high is not None
    assert found.length.low < found.length.value < found.length.high
    for length in (1.1, 1.7, n + 1.0):
        assert found.rate(length) == pytest.approx(speed(n, load, length))
        assert rate_between(low, high, length) == pytest.approx(speed(n, load, length))


def test_without_scatter_the_interval_is_a_point() -> None:
    low, high, none = found_at(3, 4, within=0.0)
    found = break_even(3, low, high, none, None).length
    assert found.low == pytest.approx(found.value)
    assert found.high == pytest.approx(found.value)


def test_what_launches_cannot_tell_has_no_bounds() -> None:
    low, high, none = found_at(3, 4, within=None)
    found = break_even(3, low, high, none, None).length
    assert (found.low, found.high) == (None, None)
    assert found.value == pytest.approx(truth(3, 4))
    # acceptance changes less than launches scatter
    noisy = break_even(
        3, Played(1.5, Speed(100, 0.3)), Played(2.0, Speed(101, 0.3)), Speed(90, 0.3), None
    )
    assert (noisy.length.low, noisy.length.high) == (None, None)
    # more accepted tokens are slower, which is noise: slower or faster than n = 0 throughout
    for base, value in ((120.0, math.inf), (80.0, 1.0)):
        flat = break_even(
            3, Played(1.5, Speed(100, 0.01)), Played(2.0, Speed(99, 0.01)), Speed(base, 0.01), None
        )
        assert (flat.length.value, flat.length.low) == (value, None)
    with pytest.raises(ValueError, match="ascending"):
        break_even(3, high, low, none, None)


def test_a_family_has_the_lengths_of_its_curves() -> None:
    for decay in (1.0, 0.9, 1.1):
        drafts = family(decay, NS)
        assert drafts.quality[0] == 1
        assert drafts.quality[-1] == pytest.approx(8)
        for quality in (1.5, 3.0, 6.0):
            curve = from_length(quality, decay, 7)
            for n in NS:
                assert drafts.length_of(n, quality) == pytest.approx(curve.length(n), rel=1e-3)
                least = drafts.quality_of(n, curve.length(n))
                if curve.conditional[n - 1] < 1:  # else better drafts have this length, too
                    assert least == pytest.approx(quality, rel=1e-3)
                assert least <= quality * 1.001
                assert drafts.length_of(n, least) == pytest.approx(curve.length(n), rel=1e-3)
        assert drafts.quality_of(3, 4.1) == math.inf
    for decay, ns in ((0.0, NS), (math.nan, NS), (1.0, ()), (1.0, (0, 3))):
        with pytest.raises(ValueError, match=r"family|decay"):
            family(decay, ns)


def true_quality(load: int, drafts: Family) -> tuple[float, int]:
    return min((drafts.quality_of(n, truth(n, load)), n) for n in NS)


@pytest.mark.parametrize("load", [1, 4, 32])
def test_a_draft_needs_the_least_over_all_n(load: int) -> None:
    drafts = family(1.0, NS)
    _, _, none = found_at(1, load)
    even = [break_even(n, *found_at(n, load), None) for n in NS]
    found = needed(even, none, drafts, None)
    quality, n = true_quality(load, drafts)
    assert (found.quality.value, found.n) == (pytest.approx(quality), n)
    assert found.ranges[0].n == 0
    assert found.ranges[0].high == pytest.approx(quality, abs=0.02)
    assert (found.ranges[0].low, found.ranges[-1].high) == (1, pytest.approx(8))
    # a better draft wants a larger n
    assert [r.n for r in found.ranges] == sorted(r.n for r in found.ranges)
    for a, b in zip(found.ranges, found.ranges[1:], strict=False):
        assert a.high == b.low


def test_no_draft_of_the_family_may_pay() -> None:
    drafts = family(1.0, NS)
    even = [
        break_even(
            n, Played(1.2, Speed(20, 0.01)), Played(1.8, Speed(25, 0.01)), Speed(99, 0.01), None
        )
        for n in NS
    ]
    found = needed(even, Speed(99, 0.01), drafts, None)
    assert (found.n, found.quality.value) == (None, math.inf)
    assert [r.n for r in found.ranges] == [0]


def test_the_true_break_even_is_covered() -> None:
    """Launches differ by 1.5 %, requests of a launch give 0.7 %; the scatter is estimated, too."""
    random = np.random.default_rng(20)
    between, within, degrees, runs = 0.015, 0.007, 6, 400
    drafts = family(1.0, NS)
    hits = dict.fromkeys((*NS, "quality"), 0)
    for i in range(runs):
        load = (1, 4)[i % 2]
        total = math.hypot(between, within) * math.sqrt(random.chisquare(degrees) / degrees)
        known = LaunchVariance(
            Scatter(total, degrees), within, math.sqrt(max(0.0, total**2 - within**2))
        )

        def launched(value: float) -> float:
            return value * math.exp(random.normal(0, math.hypot(between, within)))

        def error() -> float:
            return within * math.sqrt(random.chisquare(7) / 7)

        values = [launched(speed(0, load, 1.0)) for _ in range(2)]
        none = Speed(math.sqrt(values[0] * values[1]), error(), 2)
        even = []
        for n in NS:
            low, high = (Played(x, Speed(launched(speed(n, load, x)), error())) for x in pair(n))
            even.append(break_even(n, low, high, none, known))
        for x in even:
            hits[x.n] += _holds(x.length.low, x.length.high, truth(x.n, load))
        found = needed(even, none, drafts, known).quality
        hits["quality"] += _holds(found.low, found.high, true_quality(load, drafts)[0])
    assert {k: v for k, v in hits.items() if v < 0.93 * runs} == {}


def _holds(low: float | None, high: float | None, value: float) -> bool:
    return (low is None or low <= value) and (high is None or value <= high)
