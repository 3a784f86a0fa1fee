"""A break-even map as a view: how good a draft must be to pay at each load, and the n it wants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from autotune.results.load_map import aligned
from autotune.results.text import (
    count,
    estimate_text,
    number,
    plain,
    point_text,
    ratio_text,
    upper,
    wrapped,
)
from autotune.stats import Estimate, LaunchVariance
from autotune.stats.break_even import (
    BreakEven,
    Family,
    Needed,
    Played,
    Range,
    Speed,
    break_even,
    family,
    needed,
    rate_between,
)
from autotune.stats.crossover import Rate, mean_rate, ratio
from autotune.study.space import Value

# A check lies so far from the line, as a share of the acceptance length, or at its interval's end.
LEAST_MARGIN = 0.05
UNKNOWN_MARGIN = 0.1  # where the break-even has no interval
_LEAST_LENGTH, _MOST_SHARE = 1.02, 0.97  # of a check: 1.02 … 1 + 0.97 n
NOTE = "acceptance was given, not measured: step times are real, and what a draft accepts is not"


@dataclass(frozen=True)
class Launched:
    """One launch of the map.

    Attributes:
        n: Tokens drafted per step.
        length: Acceptance length that was given; 1 without drafts.
        rates: Throughput, by load.
        lengths: Counted acceptance length, by load, where the server counted it.
        failure: Kind and reason of a launch that failed for good; None: it has numbers.
        load: Of a check: the load whose break-even it is next to; None: it is no check.
    """

    n: int
    length: float
    rates: Mapping[int, Rate]
    lengths: Mapping[int, float] = field(default_factory=dict)
    failure: tuple[str, str] | None = None
    load: int | None = None

    def played(self, load: int) -> Played:
        """Return what it tells of a load that it has numbers of."""
        rate = self.rates[load]
        return Played(self.lengths.get(load, self.length), Speed(rate.value, rate.within))


@dataclass(frozen=True)
class CheckPlan:
    """A point next to the line that is worth a launch.

    Attributes:
        n: Tokens drafted per step.
        length: Acceptance length.
        load: The load whose break-even it is next to.
        pays: Whether the map says that it pays there.
    """

    n: int
    length: float
    load: int
    pays: bool


@dataclass(frozen=True)
class Checked:
    """A check at one load: what the map says, and what its launch gave.

    Attributes:
        n: Tokens drafted per step.
        load: Concurrency.
        length: Its counted acceptance length.
        expected: Throughput over n = 0 by the map.
        found: Throughput over n = 0 of its launch.
        at_line: Whether this is the load whose break-even it is next to.
    """

    n: int
    load: int
    length: float
    expected: float
    found: Estimate
    at_line: bool

    @property
    def verdict(self) -> str:
        """Whether the launch agrees with the map about which of the two is faster."""
        low, high = self.found.low, self.found.high
        pays = self.expected >= 1
        if (pays and low is not None and low > 1) or (not pays and high is not None and high < 1):
            return "as the map says"
        if (pays and high is not None and high < 1) or (not pays and low is not None and low > 1):
            return "the map is wrong here"
        return "too close to tell"


@dataclass(frozen=True)
class BreakEvenView:
    """A whole break-even map.

    Attributes:
        study: Name of the study.
        label: What of it is real and what is not, in one line.
        vllm: Version of the servers.
        machine: Description of the machine in one line.
        point: The other parameters.
        loads: Concurrencies, ascending.
        launches: Launches without checks, in their order.
        checks: Launches of checks.
        variance: Launch-to-launch variance of the study; None: the intervals are within launches.
        decay: Factor on the conditional acceptance from one position to the next.
    """

    study: str
    label: str
    vllm: str | None
    machine: str
    point: Mapping[str, Value]
    loads: tuple[int, ...]
    launches: tuple[Launched, ...]
    checks: tuple[Launched, ...]
    variance: LaunchVariance | None
    decay: float

    @cached_property
    def none(self) -> dict[int, Speed]:
        """Throughput without speculation by load: the geometric mean of its launches."""
        found: dict[int, list[Rate]] = {}
        for x in self.launches:
            if x.n == 0:
                for load, rate in x.rates.items():
                    found.setdefault(load, []).append(rate)
        return {load: _mean(rates) for load, rates in sorted(found.items())}

    @cached_property
    def pairs(self) -> dict[int, tuple[Launched, Launched]]:
        """Launches with the lower and the higher acceptance, by n."""
        by_n: dict[int, list[Launched]] = {}
        for x in self.launches:
            if x.n > 0 and x.rates:
                by_n.setdefault(x.n, []).append(x)
        out = {}
        for n, found in sorted(by_n.items()):
            low, high = (f(found, key=lambda x: x.length) for f in (min, max))
            if low.length < high.length:
                out[n] = low, high
        return out

    @property
    def most_n(self) -> int | None:
        """The n at which a draft's quality is said; None: no n has two launches."""
        return max(self.pairs, default=None)

    @cached_property
    def family(self) -> Family | None:
        """Drafts of ascending quality; None: no n has two launches."""
        return family(self.decay, list(self.pairs)) if self.pairs else None

    @cached_property
    def even(self) -> dict[int, tuple[BreakEven, ...]]:
        """Break-even of each n, by load."""
        out = {}
        for load, none in self.none.items():
            found = []
            for n, (low, high) in self.pairs.items():
                if load not in low.rates or load not in high.rates:
                    continue
                lower, higher = low.played(load), high.played(load)
                if 1 < lower.length < higher.length:
                    found.append(break_even(n, lower, higher, none, self.variance))
            if found:
                out[load] = tuple(found)
        return out

    @cached_property
    def needed(self) -> dict[int, Needed]:
        """What a draft must reach, by load."""
        if self.family is None:
            return {}
        return {
            load: needed(found, self.none[load], self.family, self.variance)
            for load, found in self.even.items()
        }

    def checked(self) -> list[Checked]:
        """Return what the checks gave, at each load that the map has."""
        out = []
        for x in self.checks:
            for load, rate in x.rates.items():
                pair = self.pairs.get(x.n)
                if pair is None or load not in self.none or any(load not in p.rates for p in pair):
                    continue
                length, none = x.lengths.get(load, x.length), self.none[load]
                expected = rate_between(pair[0].played(load), pair[1].played(load), length)
                found = ratio(rate, Rate(none.value, none.within), self.variance)
                out.append(Checked(x.n, load, length, expected / none.value, found, load == x.load))
        return out

    def check_plans(self) -> list[CheckPlan]:
        """Return a point just below the line and one just above it; empty: there is no line.

        They are at the middle one of the loads at which a draft can pay, and at the n that pays
        first there.
        """
        known = [
            (load, x)
            for load, found in self.even.items()
            for x in found
            if x.n == self.needed[load].n and _LEAST_LENGTH < x.length.value < 1 + _MOST_SHARE * x.n
        ]
        if not known:
            return []
        load, x = known[len(known) // 2]
        e, most = x.length, 1 + _MOST_SHARE * x.n
        below, above = e.value * (1 - UNKNOWN_MARGIN), e.value * (1 + UNKNOWN_MARGIN)
        if e.low is not None and e.high is not None:
            below = min(e.low, e.value * (1 - LEAST_MARGIN))
            above = max(e.high, e.value * (1 + LEAST_MARGIN))
        return [
            CheckPlan(x.n, max(below, _LEAST_LENGTH), load, pays=False),
            CheckPlan(x.n, min(above, most), load, pays=True),
        ]


def _mean(rates: Sequence[Rate]) -> Speed:
    """Return the mean of launches of one point; ``within`` is that of a single one of them."""
    mean = mean_rate(rates)
    within = None if mean.within is None else mean.within * math.sqrt(len(rates))
    return Speed(mean.value, within, len(rates))


# -- text ----------------------------------------------------------------------------------------


def break_even_lines(view: BreakEvenView) -> list[str]:
    """Return the map for people, in 80 columns."""
    about = ", ".join(
        filter(None, [f"vLLM {view.vllm}" if view.vllm else "", point_text(view.point)])
    )
    lines = [
        *wrapped(f"{view.study}: {', '.join(filter(None, [about, view.machine]))}"),
        *wrapped(f"{upper(view.label)}."),
        "",
    ]
    if not view.needed:
        lines += wrapped(
            "There is no break-even yet: it takes n = 0 and an n with two launches, at the same "
            "concurrency."
        )
    else:
        for table in (_needed_table(view), _even_table(view), _ranges_table(view)):
            lines += [*table, ""]
        if checks := _checks_table(view):
            lines += [*checks, ""]
        for text in break_even_texts(view):
            lines += wrapped(text)
    return [plain(line) for line in lines]


def quality_name(view: BreakEvenView) -> str:
    """Return what the quality of a draft is said as: ``tok/step at n = 15``."""
    return f"tok/step at n = {view.most_n}"


def length_text(length: float, n: int | None = None) -> str:
    """Return an acceptance length; one that a draft of n cannot have as ``none``."""
    if math.isinf(length) or (n is not None and length > n + 1):
        return "none"
    return f"{length:.2f}" if length >= 1 else "any"


def length_estimate(e: Estimate, n: int | None = None) -> str:
    """Return an acceptance length with its interval: ``1.42 [1.31, 1.56]``.

    Args:
        e: The length.
        n: The n that it is of, if a length above n + 1 is to be ``none``.
    """
    value = length_text(e.value, n)
    if value == "none" and (e.low is None or length_text(e.low, n) == "none"):
        return "none"
    low, high = ("?" if x is None else length_text(x, n) for x in (e.low, e.high))
    return f"{value} [{low}, {high}]"


def _needed_table(view: BreakEvenView) -> list[str]:
    rows = []
    for load, x in view.needed.items():
        own = next((e for e in view.even[load] if e.n == x.n), None)
        rows.append(
            [
                str(load),
                number(view.none[load].value),
                length_estimate(x.quality),
                "" if x.n is None else str(x.n),
                "" if own is None else length_text(own.length.value),
            ]
        )
    header = ("concurrency", "tok/s at n = 0", f"{quality_name(view)} [95 %]", "n", "tok/step at n")
    title = "What a draft must reach to pay, and the n that pays first:"
    return [title, *aligned(header, rows)]


def _even_table(view: BreakEvenView) -> list[str]:
    ns = list(view.pairs)
    rows = []
    for load, found in view.even.items():
        by_n = {x.n: x for x in found}
        cells = [length_text(by_n[n].length.value, n) if n in by_n else "" for n in ns]
        rows.append([str(load), *cells])
    title = "Tokens per step at which each n is as fast as n = 0 (none: beyond n + 1):"
    return [title, *aligned(("concurrency", *(f"n = {n}" for n in ns)), rows)]


def ranges_text(ranges: Sequence[Range]) -> str:
    """Return the best n by quality: ``0 below 1.42, 3 below 2.10, then 7``."""
    parts = [f"{r.n} below {r.high:.2f}" for r in ranges[:-1]]
    last = ranges[-1].n
    return ", ".join([*parts, f"then {last}"]) if parts else f"always {last}"


def _ranges_table(view: BreakEvenView) -> list[str]:
    lines = [f"Fastest n by the draft's {quality_name(view)}:"]
    for load, x in view.needed.items():
        lines += wrapped(f"concurrency {load}: {ranges_text(x.ranges)}", indent="  ")
    return lines


def _checks_table(view: BreakEvenView) -> list[str]:
    rows = [
        [
            f"{x.load}{' *' if x.at_line else ''}",
            f"n = {x.n}",
            f"{x.length:.2f}",
            f"{x.expected:.3f}",
            estimate_text(x.found, ratio_text),
            x.verdict,
        ]
        for x in view.checked()
    ]
    if not rows:
        return []
    header = ("concurrency", "n", "tok/step", "by the map", "rehearsed", "")
    title = "Launched next to the line, tok/s over n = 0 (* the load of that line):"
    return [title, *aligned(header, rows)]


def break_even_texts(view: BreakEvenView) -> list[str]:
    """Return what the map assumes, how it was checked, and what is missing, in sentences."""
    shape = (
        "all positions have the same conditional acceptance"
        if view.decay == 1
        else f"conditional acceptance changes by a factor of {view.decay:g} from one position to "
        "the next"
    )
    texts = [
        (
            f"A draft is named by its {quality_name(view)}, with a curve on which {shape}. tok/s "
            "of an n are a line in steps per token between its launches with a low and a high "
            f"acceptance; {NOTE}."
        )
    ]
    if view.variance is None:
        texts.append(
            "Intervals are within the launches, without the launch-to-launch variance, which is "
            "not known: `autotune run` of this study measures it."
        )
    errors = [abs(x.expected / x.found.value - 1) for x in view.checked()]
    if errors:
        texts.append(
            f"The checks differ from the map by at most {max(errors):.1%}, over "
            f"{count(len(errors), 'comparison')}."
        )
    else:
        texts.append("No point next to the line was launched yet, so the map is not checked.")
    texts += [
        f"n = {x.n} at {x.length:.2f} tok/step failed: {x.failure[0]}: {x.failure[1]}"
        for x in (*view.launches, *view.checks)
        if x.failure is not None
    ]
    return texts


# -- JSON ----------------------------------------------------------------------------------------


def break_even_json(view: BreakEvenView) -> dict[str, Any]:
    """Return the map as plain data; tok/s, tokens per step; null: unknown, or no draft pays."""
    return {
        "study": view.study,
        "rehearsal": view.label,
        "note": NOTE,
        "vllm": view.vllm,
        "machine": view.machine,
        "params": dict(view.point),
        "decay": view.decay,
        "quality": None if view.most_n is None else quality_name(view),
        "intervals": "within one launch" if view.variance is None else "with launches' scatter",
        "loads": [_load_json(view, load, x) for load, x in view.needed.items()],
        "checks": [
            {
                "n": x.n,
                "load": x.load,
                "at_line": x.at_line,
                "acceptance_length": x.length,
                "expected_over_none": x.expected,
                "found_over_none": _estimate(x.found),
                "verdict": x.verdict,
            }
            for x in view.checked()
        ],
        "launches": [_launch_json(x) for x in (*view.launches, *view.checks)],
    }


def _load_json(view: BreakEvenView, load: int, x: Needed) -> dict[str, Any]:
    return {
        "load": load,
        "tok_s_without_drafts": view.none[load].value,
        "needed": _estimate(x.quality),
        "n": x.n,
        "by_n": [
            {
                "n": e.n,
                "break_even": _estimate(e.length),
                "reachable": e.reachable,
                "needed": _estimate(x.by_n[e.n]),
            }
            for e in view.even[load]
        ],
        "best_n": [{"from": r.low, "to": r.high, "n": r.n} for r in x.ranges],
    }


def _launch_json(x: Launched) -> dict[str, Any]:
    return {
        "n": x.n,
        "given_acceptance_length": x.length,
        "check_of_load": x.load,
        "failure_kind": x.failure and x.failure[0],
        "failure_reason": x.failure and x.failure[1],
        "loads": {
            str(load): {"tok_s": r.value, "acceptance_length": x.lengths.get(load)}
            for load, r in x.rates.items()
        },
    }


def _estimate(e: Estimate) -> dict[str, float | None]:
    """Return an estimate as plain data; what is infinite is null."""
    found = {"value": e.value, "low": e.low, "high": e.high}
    return {k: v if v is not None and math.isfinite(v) else None for k, v in found.items()}
