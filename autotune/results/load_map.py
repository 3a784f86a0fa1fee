"""A load sweep as a view: tables for a terminal, JSON, and the sentence on the crossover."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autotune.results.load_map_ways import Advice, MapWay, Plan, WayKind, confirmation
from autotune.results.referee import (
    RefereeView,
    crossing_text,
    load_text,
    referee,
    referee_json,
    referee_lines,
    way_json,
)
from autotune.results.tables import Column, Row, Table, text_lines
from autotune.results.text import (
    Bounds,
    estimate_text,
    number,
    plain,
    point_text,
    ratio_text,
    upper,
    wrapped,
)
from autotune.stats import Estimate, LaunchVariance
from autotune.stats.crossover import (
    AtLoad,
    Crossover,
    Rate,
    Rates,
    Schedule,
    Where,
    best_fixed,
    by_load,
    crossover,
    interval,
    over_loads,
    ratio,
)
from autotune.stats.referee import Crossing, crossing
from autotune.study.schema import FlagValue
from autotune.study.space import Value
from autotune.study.ways import LOSSY

# Of acceptance under a schedule or adaptive verification.
BIASED = (
    "of the steps that drafted, and with drafts that were left out; no measure of another n, so "
    "predictions do not use it"
)
_MOST_TIES = 4  # that are shown of one concurrency


@dataclass(frozen=True)
class LoadView:
    """One point at one concurrency.

    Attributes:
        rate: Tokens per second.
        p95_ms: 95th percentile of E2EL, of all parts together.
        p95_bounds: Interval of ``p95_ms`` within the launch.
        requests: Number of measured requests.
        acceptance_length: Tokens per verification step; None without drafts.
        warnings: Warnings as of a trial: ``in short: in words``.
        throttled: Whether vLLM ran fewer requests at once than it should: it never wins.
        running_peak: Largest number of requests that were seen to run at once, where it was
            throttled.
    """

    rate: Rate
    p95_ms: float
    p95_bounds: Bounds
    requests: int
    acceptance_length: float | None
    warnings: tuple[str, ...]
    throttled: bool = False
    running_peak: int | None = None


@dataclass(frozen=True)
class PointView:
    """One way to speculate at all concurrencies; a failed point has no numbers."""

    n: int
    schedule: Schedule | None
    failure_kind: str | None
    failure_reason: str | None
    loads: Mapping[int, LoadView]
    adaptive: bool = False
    arm: str | None = None
    asked: bool = False  # a schedule that the user gave

    @property
    def way(self) -> MapWay:
        """Way to speculate."""
        return MapWay(self.n, self.schedule, self.adaptive, self.arm)

    @property
    def is_fixed(self) -> bool:
        """Whether it is a fixed n of the study's own draft."""
        return self.way.kind is WayKind.FIXED

    def rates(self) -> dict[int, Rate]:
        """Return tokens per second, by concurrency, without those that vLLM throttled."""
        return {load: x.rate for load, x in self.loads.items() if not x.throttled}


@dataclass(frozen=True)
class LoadSweepView:
    """A whole load sweep.

    Attributes:
        study: Name of the study.
        vllm: Version of the servers.
        machine: Description of the machine in one line.
        point: The other parameters.
        flags: Flags that differ from the study's.
        loads: Concurrencies, ascending.
        points: Points in the order of their launches.
        variance: Launch-to-launch variance; None: the intervals are within one launch.
        schedule: Schedule of n by batch size that the numbers suggest; None: one n is enough.
        why_no_schedule: Reason why this vLLM gets no schedule; None: it accepts one.
        arguments: ``--speculative-config`` of each measured n of at least 1.
        same_file: Whether the study file is the one that this was measured with.
        way_arguments: ``--speculative-config`` of the ways that are no fixed n.
        confirmed: Launches of the confirmation, oldest first.
        arm: Arm of the fixed n; None: the study has no arms.
        lossy: Names of the launched arms that are lossy.
        outdated: Concurrencies of which a part was measured by autotune 0.1 and has too few
            requests to be computed again.
        slots: Number of slots that launched its points; rates are without how these differ.
        rehearsal: What of a rehearsal is real and what is not; empty: it is none.
    """

    study: str
    vllm: str | None
    machine: str
    point: Mapping[str, Value]
    flags: Mapping[str, FlagValue]
    loads: tuple[int, ...]
    points: tuple[PointView, ...]
    variance: LaunchVariance | None
    schedule: Schedule | None
    why_no_schedule: str | None
    arguments: Mapping[int, str]
    same_file: bool
    outdated: tuple[int, ...] = ()
    way_arguments: Mapping[MapWay, str] = dataclasses.field(default_factory=dict)
    confirmed: tuple[PointView, ...] = ()
    arm: str | None = None
    lossy: tuple[str, ...] = ()
    rehearsal: str = ""
    slots: int = 1

    @cached_property
    def rates(self) -> Rates:
        """Rates of each fixed n, by concurrency."""
        return {p.n: row for p in self.points if p.is_fixed and (row := p.rates())}

    @cached_property
    def rivals(self) -> tuple[PointView, ...]:
        """Points that are no fixed n, without schedules that fewer numbers had suggested."""
        return tuple(p for p in self.points if not p.is_fixed and not self._is_earlier(p))

    def _is_earlier(self, point: PointView) -> bool:
        derived = point.way.kind is WayKind.SCHEDULE and not point.asked
        return derived and point is not self.checked

    @cached_property
    def way_rates(self) -> dict[MapWay, Mapping[int, Rate]]:
        """Rates of each way in the sweep's single launches, by concurrency."""
        rates: dict[MapWay, Mapping[int, Rate]] = {MapWay(n): row for n, row in self.rates.items()}
        return rates | {p.way: row for p in self.rivals if (row := p.rates())}

    def confirmation_plan(self, launches: int) -> Plan | None:
        """Return what a confirmation of that many launches compares; None: there is no rival."""
        return confirmation(self.way_rates, self.at, launches)

    @cached_property
    def referee(self) -> RefereeView | None:
        """Other ways against the best fixed n; None: none was launched."""
        confirmed: dict[MapWay, list[Mapping[int, Rate]]] = {}
        failed: dict[MapWay, list[str]] = {}
        for p in self.confirmed:
            if rates := p.rates():
                confirmed.setdefault(p.way, []).append(rates)
            elif p.failure_kind is not None:
                failed.setdefault(p.way, []).append(f"{p.failure_kind}: {p.failure_reason}")
        return referee(self.way_rates, confirmed, self.at, self.variance, failed)

    @cached_property
    def at(self) -> list[AtLoad]:
        """Best n at each concurrency."""
        return by_load(self.rates, self.variance)

    @cached_property
    def not_compared(self) -> tuple[int, ...]:
        """Concurrencies at which vLLM throttled n = 0: nothing is compared with it there."""
        none = next((p.loads for p in self.points if p.way == MapWay(0)), {})
        return tuple(load for load, x in none.items() if x.throttled)

    @cached_property
    def crossover(self) -> Crossover | None:
        """Concurrency above which speculation stops paying."""
        return crossover(self.at)

    @cached_property
    def crossing(self) -> Crossing | None:
        """The crossover with its interval; None: no n of at least 1 was measured."""
        speedups = {x.load: x.draft_speedup for x in self.at if x.draft_speedup is not None}
        return crossing(speedups)

    @cached_property
    def fixed(self) -> int | None:
        """Best n over all concurrencies; None: n = 0 has no numbers."""
        return best_fixed(self.rates) if self.rates.get(0) else None

    @property
    def compared(self) -> list[int]:
        """Concurrencies that the means are over: those at which n = 0 has numbers."""
        return sorted(self.rates.get(0, {}))

    @cached_property
    def fixed_over_none(self) -> Estimate | None:
        """Geometric mean of the best fixed n's rates, as a ratio to that of n = 0."""
        if self.fixed is None:
            return None
        a, b = (over_loads(self.rates[n], self.compared) for n in (self.fixed, 0))
        return ratio(a, b, self.variance)

    @cached_property
    def checked(self) -> PointView | None:
        """Schedule that the numbers suggest, as it was launched; None: it was not."""
        of = [p for p in self.points if p.schedule is not None and p.way.arm is None]
        of = [p for p in of if p.schedule == self.schedule]
        return of[-1] if of else None

    @cached_property
    def over_fixed(self) -> Estimate | None:
        """Mean rate of the schedule as a ratio to the best fixed n's; None: it was not launched."""
        if self.fixed is None or self.checked is None:
            return None
        loads, rates = self.compared, self.checked.rates()
        if not all(load in rates for load in loads):
            return None
        fixed = over_loads(self.rates[self.fixed], loads)
        return ratio(over_loads(rates, loads), fixed, self.variance)

    @cached_property
    def advice(self) -> Advice:
        """Recommendation with its reason."""
        if self.referee is not None:
            if (best := self.referee.best) is not None:
                return Advice[best.rival.kind.name]
            if self.referee.overall_faster:
                return Advice.FIXED_AGAIN
            if any(x.rival.schedule != self.schedule for x in self.referee.overall):
                return Advice.FIXED_RIVALS
        if self.schedule is None:
            return Advice.FIXED_ENOUGH if len(self.compared) > 1 else Advice.FIXED_ONE_LOAD
        if self.why_no_schedule is not None:
            return Advice.FIXED_ONLY
        if self.checked is not None and self.checked.failure_kind is not None:
            return Advice.FIXED_FAILED
        return Advice.FIXED_UNCHECKED if self.over_fixed is None else Advice.FIXED

    @property
    def recommended_rival(self) -> MapWay | None:
        """Recommended way, where it is no fixed n."""
        best = None if self.referee is None else self.referee.best
        return None if best is None else best.rival

    @property
    def argument(self) -> str | None:
        """Recommended ``--speculative-config``; None: serve without one."""
        if self.recommended_rival is not None:
            return self.way_arguments.get(self.recommended_rival)
        return None if self.fixed is None else self.arguments.get(self.fixed)


def load_sweep_lines(view: LoadSweepView) -> list[str]:
    """Return the load sweep for people; only the argument to paste may exceed 80 columns."""
    flags = [f"{k.replace('_', '-')} {str(v).lower()}" for k, v in view.flags.items()]
    about = (
        f"vLLM {view.vllm}" if view.vllm else "",
        f"fixed n of arm {view.arm}" if view.arm is not None else "",
        point_text(view.point),
        ", ".join(flags),
        view.machine,
    )
    lines = [*wrapped(upper(view.rehearsal)), ""] if view.rehearsal else []
    lines += [*wrapped(f"{view.study}: {', '.join(filter(None, about))}"), ""]
    for table in (_loads_table(view), _points_table(view)):
        lines += [*table, ""] if table else []
    if view.referee is not None:
        lines += [*referee_lines(view.referee), ""]
    if view.not_compared:
        loads = ", ".join(map(str, view.not_compared))
        lines += wrapped(
            f"Concurrency {loads} is left out of all comparisons: vLLM throttled n = 0 there."
        )
    lines += wrapped(crossover_text(view.crossover, view.at, view.crossing))
    lines += ["", *_schedule_lines(view), ""]
    lines += wrapped(_scatter_text(view))
    if view.slots > 1:
        lines += wrapped(
            f"Measured on {view.slots} slots: tok/s are without how these differ, as far as "
            "launches of one way on several slots tell."
        )
    for name in view.lossy:
        lines += wrapped(f"Lossy, {name}: {LOSSY}.")
    if view.outdated:
        loads = ", ".join(map(str, view.outdated))
        lines += wrapped(
            f"At concurrency {loads}, parts were measured by autotune 0.1 with too few requests to "
            "be computed again; they are left out, and `autotune map` measures them again."
        )
    if not view.same_file:
        lines += wrapped("The study file has been changed since this was measured.")
    return [plain(line) for line in [*lines, *_warnings(view)]]


def _warnings(view: LoadSweepView) -> list[str]:
    """Return a line for each kind of warning: where it occurs, and the first text."""
    where: dict[str, dict[str, None]] = {}
    words: dict[str, dict[str, None]] = {}
    for p in view.points:
        name = p.way.name
        for load, x in p.loads.items():
            for w in x.warnings:
                kind, _, text = w.partition(": ")
                where.setdefault(kind, {})[f"{name} at {load}"] = None
                words.setdefault(kind, {})[text] = None
    lines = []
    for kind, at in where.items():
        more = f" and {len(at) - 3} more" if len(at) > 3 else ""
        first = f"{'such as ' if len(words[kind]) > 1 else ''}{next(iter(words[kind]))}"
        lines += wrapped(f"warning: {'; '.join([*at][:3])}{more}: {kind}: {first}")
    return lines


def _loads_table(view: LoadSweepView) -> list[str]:
    if not view.at:
        return []
    rows = []
    for x in view.at:
        more = ", …" if len(x.ties) > _MOST_TIES else ""  # or a terminal has no room for the row
        ties = f" ({', '.join(map(str, x.ties[:_MOST_TIES]))}{more})" if x.ties else ""
        p95 = next(
            p.loads[x.load].p95_ms
            for p in view.points
            if p.n == x.best and p.is_fixed and x.load in p.loads
        )
        rows.append(
            [
                str(x.load),
                f"{x.best}{ties}",
                estimate_text(x.value),
                "1.00" if x.best == 0 else estimate_text(x.speedup, ratio_text),
                number(p95),
            ]
        )
    header = ("concurrency", "best n (ties)", "tok/s [95 %]", "speed-up [95 %]", "p95 ms")
    return ["Best n at each concurrency:", *aligned(header, rows)]


def _points_table(view: LoadSweepView) -> list[str]:
    """Return the speed-up of every n at every concurrency, and what failed."""
    none = view.rates.get(0, {})
    columns = [["concurrency", *map(str, view.loads), "tok/step"]]
    notes = []
    fixed = sorted((p for p in view.points if p.is_fixed), key=lambda p: p.n)
    for p in (*fixed, *view.rivals):
        if p.failure_kind is not None:
            notes += wrapped(f"{p.way.name} failed: {p.failure_kind}: {p.failure_reason}")
            continue
        if p.way == MapWay(0) or not p.loads or not (p.is_fixed or p is view.checked):
            continue  # the referee's table has the other ways
        rates = p.rates()
        cells = [
            f"{rates[c].value / none[c].value:.2f}"
            if c in rates and c in none
            else "throttled"
            if c in p.loads and p.loads[c].throttled
            else ""
            for c in view.loads
        ]
        lengths = [x.acceptance_length for x in p.loads.values() if x.acceptance_length]
        mean = sum(lengths) / len(lengths) if lengths else None
        name = p.way.name if p.is_fixed else "schedule"
        columns.append([name, *cells, "" if mean is None else f"{mean:.2f}"])
    if len(columns) == 1:
        return notes
    header, *rows = zip(*columns, strict=True)
    if view.checked is not None and view.checked.loads:
        notes += wrapped(f"Tokens per step of the schedule: {BIASED}.")
    return ["Speed-up over n = 0, and tokens per step:", *aligned(header, rows), *notes]


def crossover_text(
    found: Crossover | None, at: Sequence[AtLoad], interval: Crossing | None = None
) -> str:
    """Return where speculation stops paying, in a sentence or two.

    Args:
        found: The crossover.
        at: Best n at each load.
        interval: The same crossover with its interval, where that is known.
    """
    if found is None:
        return "No n of at least 1 gave numbers: whether speculation pays is not known."
    by = {x.load: x for x in at}

    def shown(load: int) -> str:
        x = by[load]
        if x.draft is None or x.draft_speedup is None:
            raise ValueError("a concurrency without drafts has no crossover")
        return f"{estimate_text(x.draft_speedup, ratio_text)} × at {load} with n = {x.draft}"

    if found.where is Where.ABOVE and found.wins is not None:
        text = f"Speculation pays up to the highest concurrency measured: {shown(found.wins)}. "
        text += "The crossover lies above."
    elif found.where is Where.BELOW and found.loses is not None:
        text = f"Speculation loses at every concurrency measured: {shown(found.loses)}. "
        text += "The crossover lies below."
    elif found.wins is not None and found.loses is not None and found.load is not None:
        bounded = interval is not None and interval.load is not None and not interval.wins_above
        load = crossing_text(interval) if interval and bounded else load_text(found.load)
        text = f"Speculation pays up to a concurrency of about {load}: "
        text += f"{shown(found.wins)}, {shown(found.loses)}."
    else:
        raise ValueError("a crossover between two concurrencies has a win and a loss")
    last, first = found.surely_wins, found.surely_loses
    wins = "no win is sure" if last is None else f"the last sure win is at {last}"
    losses = "no loss is sure" if first is None else f"the first sure loss is at {first}"
    if last is None and first is None:
        text += " By the intervals none of this is certain."
    elif (last, first) != (found.wins, found.loses):
        text += f" By the intervals {wins}, and {losses}."
    if found.also_loses:
        text += f" It also loses at {', '.join(map(str, found.also_loses))}, below that."
    return text


def _schedule_lines(view: LoadSweepView) -> list[str]:
    """Return the schedule, what its launch showed, and what to serve."""
    lines = []
    if view.schedule is not None:
        ranges = "; ".join(f"{a} to {b}: n = {n}" for a, b, n in view.schedule)
        lines += wrapped(f"Schedule of n by batch size: {ranges}.")
        if view.why_no_schedule is not None:
            lines += wrapped(f"{view.why_no_schedule}.")
        elif view.checked is not None and view.over_fixed is not None:
            lines += wrapped(
                f"Launched, it is at {estimate_text(view.over_fixed, '{:.3f}'.format)} of the best "
                f"fixed n, n = {view.fixed}, {_over(view)}."
            )
    if view.fixed is None:
        return [*lines, "There are no numbers of n = 0: nothing can be recommended."]
    lines += wrapped(f"Recommended: {_recommended(view)}; {view.advice}.")
    if view.argument is None:
        return [*lines, "", "To serve it: no --speculative-config at all."]
    return [*lines, "", "To serve it:", f"  --speculative-config {shlex.quote(view.argument)}"]


def _recommended(view: LoadSweepView) -> str:
    if view.recommended_rival is not None:
        return view.recommended_rival.name
    e = view.fixed_over_none
    if not view.fixed or e is None:
        return "no speculation"
    tie = "" if e.low is not None and e.low > 1 else ", a tie"
    over = estimate_text(e, "{:.3f}".format)
    return f"n = {view.fixed}, at {over} of no speculation {_over(view)}{tie}"


def _over(view: LoadSweepView) -> str:
    """Return which concurrencies a mean is over."""
    loads = view.compared
    if len(loads) == 1:
        only = ", the only one with numbers" if len(view.loads) > 1 else ""
        return f"at concurrency {loads[0]}{only}"
    if len(loads) < len(view.loads):
        return f"as the mean over concurrencies {', '.join(map(str, loads))}"
    return "as the mean over all concurrencies"


def _scatter_text(view: LoadSweepView) -> str:
    variance, rivals = view.variance, view.referee
    besides = (
        "Apart from the confirmation, intervals" if rivals and rivals.confirmed else "Intervals"
    )
    if variance is None:
        return (
            f"{besides} are within one launch each, without the launch-to-launch variance, which "
            "is not known. A study that launches a point several times measures it (`autotune "
            "run`)."
        )
    return (
        f"{besides} include the launch-to-launch variance of this study: "
        f"{variance.between:.1%} beyond request noise."
    )


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first column is aligned to the right."""
    columns = tuple(Column(h, right=i == 0) for i, h in enumerate(header))
    return text_lines(Table(columns, tuple(Row(tuple(row)) for row in rows)))


def load_sweep_json(view: LoadSweepView) -> dict[str, Any]:
    """Return the load sweep as plain data; tok/s, milliseconds."""
    return {
        "study": view.study,
        **({"rehearsal": view.rehearsal} if view.rehearsal else {}),
        "vllm": view.vllm,
        "machine": view.machine,
        "arm": view.arm,
        "lossy": list(view.lossy),
        "params": dict(view.point),
        "flags": dict(view.flags),
        "intervals": "within one launch" if view.variance is None else "with launches' scatter",
        **({"slots": view.slots} if view.slots > 1 else {}),
        "loads": [_load_json(x) for x in view.at],
        "loads_not_compared": list(view.not_compared),
        "crossover": _crossover_json(view),
        "referee": referee_json(view.referee),
        "points": [_point_json(p, view.variance) for p in view.points],
        "confirmation": [_point_json(p, view.variance) for p in view.confirmed],
        "best_fixed_n": view.fixed,
        "best_fixed_over_none": _estimate_json(view.fixed_over_none),
        "schedule": view.schedule and [list(x) for x in view.schedule],
        "why_no_schedule": view.why_no_schedule,
        "schedule_over_best_fixed": _estimate_json(view.over_fixed),
        "recommended": None
        if view.fixed is None
        else {
            "what": "fixed" if view.recommended_rival is None else str(view.recommended_rival.kind),
            "why": view.advice.name.lower(),
            "speculative_config": view.argument,
        },
    }


def _crossover_json(view: LoadSweepView) -> dict[str, Any] | None:
    if view.crossover is None:
        return None
    found, cross = dataclasses.asdict(view.crossover), view.crossing
    known = cross is not None and view.crossover.load is not None and not cross.wins_above
    return {**found, "interval": [cross.low, cross.high] if cross and known else None}


def _estimate_json(e: Estimate | None) -> dict[str, float | None] | None:
    return None if e is None else dataclasses.asdict(e)


def _load_json(x: AtLoad) -> dict[str, Any]:
    return {
        "load": x.load,
        "best_n": x.best,
        "ties": list(x.ties),
        "tok_s": _estimate_json(x.value),
        "speedup": _estimate_json(x.speedup),
        "best_draft_n": x.draft,
        "best_draft_speedup": _estimate_json(x.draft_speedup),
    }


def _point_json(p: PointView, variance: LaunchVariance | None) -> dict[str, Any]:
    intervals = {load: interval(x.rate, variance) for load, x in p.loads.items()}
    return {
        "n": p.n,
        "schedule": p.schedule and [list(x) for x in p.schedule],
        "way": way_json(p.way),
        "acceptance_biased": p.way.biased,
        "failure_kind": p.failure_kind,
        "failure_reason": p.failure_reason,
        "loads": {
            str(load): {
                "tok_s": x.rate.value,
                "interval": [intervals[load].low, intervals[load].high],
                "p95_ms": x.p95_ms,
                "p95_interval": list(x.p95_bounds),
                "requests": x.requests,
                "acceptance_length": x.acceptance_length,
                "warnings": list(x.warnings),
                "throttled": x.throttled,
                "running_peak": x.running_peak,
            }
            for load, x in p.loads.items()
        },
    }
