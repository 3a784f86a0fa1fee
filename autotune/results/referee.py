"""A load sweep as a referee: other ways to speculate against the best fixed n, load by load."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.results.load_map_ways import MapWay, WayKind, best_rivals, fixed_of
from autotune.results.tables import Column, Row, Table, text_lines
from autotune.results.text import estimate_text, ratio_text, wrapped
from autotune.stats import LaunchVariance
from autotune.stats.crossover import AtLoad, Rate, best_fixed, over_loads
from autotune.stats.referee import Compared, Crossing, Runs, Verdict, compare, crossing, winners

_WORDS = {Verdict.RIVAL: "faster", Verdict.FIXED: "slower", Verdict.TIE: "tie"}
CONFIRM = 8  # launches that are advised


@dataclass(frozen=True)
class RefereeView:
    """Other ways against the best fixed n.

    Attributes:
        compared: Each rival at each load, by the launches of the confirmation where it has any.
        confirmed: Loads at which they do.
        crossings: Where each rival passes the best fixed n.
        overall: Each rival against the best fixed n as the mean over all loads.
        overall_confirmed: Whether only launches of the confirmation count in that.
        only: The fixed n of at least 1 if a single one was launched, else None.
        left_out: Rivals that the confirmation did not launch.
        failed: Reasons of the confirmation's launches that failed, by way.
        unfit: Rivals of which no launch of the confirmation gave numbers, because each failed: they
            are neither served nor recommended.
    """

    compared: tuple[Compared[MapWay], ...]
    confirmed: tuple[int, ...]
    crossings: Mapping[MapWay, Crossing]
    overall: tuple[Compared[MapWay], ...]
    overall_confirmed: bool
    only: int | None
    left_out: tuple[MapWay, ...]
    failed: Mapping[MapWay, Sequence[str]] = dataclasses.field(default_factory=dict)
    unfit: frozenset[MapWay] = frozenset()

    @property
    def rivals(self) -> tuple[MapWay, ...]:
        """The rivals, in the order of the table."""
        return tuple(dict.fromkeys(x.rival for x in self.compared))

    @property
    def passing(self) -> dict[MapWay, Crossing]:
        """Crossovers of the rivals that are certainly faster at some load."""
        sure = {x.rival for x in self.compared if x.verdict is Verdict.RIVAL}
        return {way: x for way, x in self.crossings.items() if x.load is not None and way in sure}

    @property
    def serve(self) -> dict[int, MapWay]:
        """What to serve at each load."""
        fit = [x for x in self.compared if x.rival not in self.unfit]
        return {x.load: x.fixed for x in self.compared} | winners(fit)

    @property
    def overall_faster(self) -> list[Compared[MapWay]]:
        """Rivals that are certainly better as the mean over all loads."""
        return [x for x in self.overall if x.verdict is Verdict.RIVAL]

    @property
    def best(self) -> Compared[MapWay] | None:
        """The fastest rival that is certainly better as the mean over all loads; None: none is."""
        sure = [x for x in self.overall_faster if x.rival not in self.unfit]
        return max(sure, key=lambda x: x.ratio.value, default=None)


def referee(
    rates: Mapping[MapWay, Mapping[int, Rate]],
    confirmed: Runs[MapWay],
    at: Sequence[AtLoad],
    variance: LaunchVariance | None,
    failed: Mapping[MapWay, Sequence[str]] | None = None,
) -> RefereeView | None:
    """Return what the launches of a load sweep say of its rivals; None: it has none.

    Args:
        rates: Rates of the sweep's single launches, by way and load.
        confirmed: Launches of the confirmation, by way.
        at: Best fixed n at each load.
        variance: Launch-to-launch variance, or None.
        failed: Reasons of the confirmation's launches that failed, by way.
    """
    by_n = {way.n: row for way, row in rates.items() if way.kind is WayKind.FIXED}
    loads = [x.load for x in at]
    rivals = best_rivals(rates, loads)
    if not by_n.get(0) or not rivals:
        return None
    good = {x.load: {x.best, *x.ties} for x in at}
    repeated = [way for way, launches in confirmed.items() if launches]
    again = [way for way in repeated if way.kind is not WayKind.FIXED]
    fixed = fixed_of(by_n, good, repeated)
    # one confirmation: a rival that it left out has no launches that compare with it
    found = compare(confirmed, fixed, again, variance)
    loads_confirmed = {x.load for x in found}
    single = {x.load: MapWay(x.best) for x in at if x.load not in loads_confirmed}
    found += compare({way: [row] for way, row in rates.items()}, single, rivals, variance)
    found.sort(key=lambda x: x.load)
    shown = dict.fromkeys(x.rival for x in found)
    crossings = {
        way: cross
        for way in shown
        if (cross := crossing({x.load: x.ratio for x in found if x.rival == way})) is not None
    }
    overall_fixed = MapWay(best_fixed(by_n))
    means = _means(confirmed, loads)
    overall = compare(means, {0: overall_fixed}, again, variance)
    if not (is_confirmed := bool(overall)):
        single_means = _means({way: [row] for way, row in rates.items()}, loads)
        overall = compare(single_means, {0: overall_fixed}, rivals, variance)
    drafts = [n for n in by_n if n > 0]
    return RefereeView(
        compared=tuple(found),
        confirmed=tuple(sorted(loads_confirmed)),
        crossings=crossings,
        overall=tuple(overall),
        overall_confirmed=is_confirmed,
        only=drafts[0] if len(drafts) == 1 else None,
        left_out=tuple(x for x in rivals if again and x.family not in {y.family for y in again}),
        failed=failed or {},
        unfit=frozenset(way for way in failed or () if way not in again),
    )


def _means(runs: Runs[MapWay], loads: Sequence[int]) -> dict[MapWay, list[dict[int, Rate]]]:
    """Return each launch's mean over all loads, as if it were a load."""
    return {
        way: [{0: over_loads(x, loads)} for x in launches if all(load in x for load in loads)]
        for way, launches in runs.items()
    }


def referee_lines(view: RefereeView) -> list[str]:
    """Return the verdicts for people, in at most 80 columns."""
    columns = ("concurrency", "fixed", "against it", "ratio [95 %]", "verdict")
    rows = []
    for load, group in itertools.groupby(view.compared, key=lambda x: x.load):
        for i, x in enumerate(group):
            first = [str(load), x.fixed.name] if i == 0 else ["", ""]
            rows.append(
                [*first, x.rival.name, estimate_text(x.ratio, ratio_text), _WORDS[x.verdict]]
            )
    table = Table(
        tuple(Column(h, right=i == 0) for i, h in enumerate(columns)),
        tuple(Row(tuple(row)) for row in rows),
    )
    lines = ["Other ways to speculate against the best fixed n:", *text_lines(table)]
    for text in referee_texts(view):
        lines += wrapped(text)
    return lines


def referee_texts(view: RefereeView) -> list[str]:
    """Return the verdicts in sentences: crossovers, what to serve, and how sure that is."""
    texts = [_crossing_text(way, view) for way in view.rivals]
    served = ranges_text(view.serve)
    texts.append(f"To serve, by concurrency: {served}. A tie keeps the fixed n.")
    if view.confirmed:
        counts = sorted({min(x.launches) for x in view.compared if x.load in view.confirmed})
        each = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        texts.append(
            f"Confirmed by {each} further {'launch' if each == '1' else 'launches'} of each way, "
            "there and back; those that chose the ways do not count."
        )
        loads = dict.fromkeys(x.load for x in view.compared)
        missing = [str(x) for x in loads if x not in view.confirmed]
        if missing:
            texts.append(f"By single launches only: concurrency {', '.join(missing)}.")
        if view.left_out:
            names = ", ".join(x.name for x in view.left_out)
            texts.append(f"Not confirmed, and left out here: {names}.")
    elif view.failed:
        texts.append(
            "Not confirmed, because launches of the confirmation failed: each way counts with one "
            "launch, and the best of several single launches is flattered."
        )
    else:
        texts.append(
            "Not confirmed: each way was launched once, and the best of several single launches is "
            f"flattered. `--confirm {CONFIRM}` launches them again, interleaved."
        )
    for way, reasons in view.failed.items():
        times = "once" if len(reasons) == 1 else f"{len(reasons)} times"
        unfit = " It is not recommended." if way in view.unfit and way in view.rivals else ""
        texts.append(f"Launched to confirm, {way.name} failed {times}: {reasons[-1]}.{unfit}")
    if view.only is not None:
        texts.append(
            f"n = {view.only} is the only n of at least 1 that was measured: another fixed n may "
            "be better than it, and than the other ways."
        )
    return texts


def ranges_text(serve: Mapping[int, MapWay]) -> str:
    """Return what to serve at each load, neighbors with the same way in one."""
    parts = []
    for way, group in itertools.groupby(sorted(serve), key=lambda load: serve[load]):
        loads = list(group)
        where = f"{loads[0]} to {loads[-1]}" if len(loads) > 1 else str(loads[0])
        parts.append(f"{where}: {way.name}")
    return "; ".join(parts)


def _crossing_text(way: MapWay, view: RefereeView) -> str:
    """Return where a rival is faster than the best fixed n, and where that is certain."""
    of = [x for x in view.compared if x.rival == way]
    name = f"{way.name[0].upper()}{way.name[1:]}"
    faster, slower = (
        ", ".join(str(x.load) for x in of if x.verdict is verdict)
        for verdict in (Verdict.RIVAL, Verdict.FIXED)
    )
    sure = f"certainly faster at {faster}" if faster else "certainly faster at no concurrency"
    sure += f", certainly slower at {slower}" if slower else ""
    if way not in view.passing:
        return f"{name} is {sure}."
    cross = view.passing[way]
    side = "above" if cross.wins_above else "below"
    return f"{name} is faster {side} a concurrency of about {crossing_text(cross)}; {sure}."


def crossing_text(cross: Crossing) -> str:
    """Return a crossover with its interval, open where the measured loads do not bound it.

    Raises:
        ValueError: there is no crossover.
    """
    if cross.load is None:
        raise ValueError("a ratio on one side of 1 has no crossover")
    if cross.low is None and cross.high is None:
        return f"{load_text(cross.load)} (its interval is wider than what was measured)"
    low = "…" if cross.low is None else load_text(cross.low)
    high = "…" if cross.high is None else load_text(cross.high)
    return f"{load_text(cross.load)} [{low}, {high}]"


def load_text(load: float) -> str:
    """Return an interpolated concurrency, in the digits that are known."""
    return f"{load:.1f}" if load < 10 else f"{load:.0f}"


def referee_json(view: RefereeView | None) -> dict[str, Any] | None:
    """Return the verdicts as plain data; None where there is no rival."""
    if view is None:
        return None
    return {
        "confirmed_loads": list(view.confirmed),
        "only_fixed_draft_n": view.only,
        "loads": _compared_json(view.compared),
        "serve": {str(load): way_json(way) for load, way in view.serve.items()},
        "crossovers": [
            {"way": way_json(way), **dataclasses.asdict(cross)}
            for way, cross in view.crossings.items()
        ],
        "overall_confirmed": view.overall_confirmed,
        "failed_to_confirm": [
            {"way": way_json(way), "reasons": list(reasons)} for way, reasons in view.failed.items()
        ],
        "overall": [
            {k: v for k, v in row.items() if k != "load"} for row in _compared_json(view.overall)
        ],
    }


def _compared_json(compared: Iterable[Compared[MapWay]]) -> list[dict[str, Any]]:
    return [
        {
            "load": x.load,
            "fixed": way_json(x.fixed),
            "rival": way_json(x.rival),
            "ratio": dataclasses.asdict(x.ratio),
            "verdict": x.verdict.name.lower(),
            "launches": {"rival": x.launches[0], "fixed": x.launches[1]},
        }
        for x in compared
    ]


def way_json(way: MapWay) -> dict[str, Any]:
    """Return a way as plain data."""
    return {
        "kind": str(way.kind),
        "name": way.name,
        "n": way.n,
        "schedule": None if way.schedule is None else [list(x) for x in way.schedule],
        "adaptive": way.adaptive,
        "arm": way.arm,
    }
