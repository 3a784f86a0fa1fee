"""Beyond the trials: other n and drafts by prediction, other loads, and which parameter decides."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import partial

import numpy as np

from autotune.errors import NothingUsable, UserError
from autotune.output.figures import trials as figures
from autotune.output.figures.break_even import break_even_figure
from autotune.output.figures.load_map import load_sweep_figure
from autotune.output.figures.trials import searched
from autotune.output.report.content import (
    Block,
    Code,
    DataTable,
    Figure,
    Paragraph,
    Points,
)
from autotune.output.report.importance import (
    ERROR,
    LEAST_POINTS,
    Importance,
    importances,
    nothing_seen_text,
)
from autotune.output.report.source import Source, load_text, with_bounds
from autotune.results.break_even import break_even_texts, length_estimate, quality_name
from autotune.results.load_map import LoadSweepView, crossover_text
from autotune.results.prediction import (
    NOTE,
    Outlook,
    at_n_text,
    length_name,
    outlooks,
    quality_text,
    shown_ns,
)
from autotune.results.read_break_even import stored_break_even
from autotune.results.read_load_map import stored_view
from autotune.results.referee import RefereeView, referee_texts
from autotune.results.text import (
    count,
    number,
    optional,
    plain,
    plural,
    point_text,
    times,
    upper,
    value_and_bounds,
)
from autotune.study.space import canonical
from autotune.study.ways import LOSSY


def prediction(s: Source) -> Iterator[Block]:
    """Yield what `autotune predict` shows."""
    try:
        every = outlooks(s.view, s.spec.to_space(), closed=not s.spec.workload.open_loop)
    except NothingUsable as e:
        yield Paragraph(f"{plain(str(e)).removeprefix(f'{s.view.name}: ').capitalize()}.")
        return
    for i, found in enumerate(every):
        yield from _predicted(found, f"-{i}" if i else "")


def _predicted(found: Outlook, suffix: str) -> Iterator[Block]:
    arms = plain(", ".join(found.arms))
    of = f"{plural(len(found.arms), 'Arm')} {arms}: from" if arms else "From"
    yield Paragraph(
        f"{of} acceptance alone, {NOTE}. The fastest trial of each n represents it. A launched n "
        "is predicted from the launches at other n only, so the error shows how far to trust it."
    )
    yield Figure(
        f"prediction{suffix}",
        f"tok/s by n, predicted and measured.{_error_text(found)} Open squares are extrapolated: "
        "their n is outside of the range of the other launches.",
        partial(figures.prediction_figure, found),
    )
    yield _prediction_table(found)
    yield _drafts_table(found)
    yield _lengths_table(found)
    yield Paragraph(quality_text(found))


def _prediction_table(found: Outlook) -> DataTable:
    lengths = ("tok/step predicted", "tok/step measured")
    rates = ("tok/s predicted", "tok/s measured")
    return DataTable.of(
        "Predicted against measured",
        ("n", *lengths, *rates, "error", "trial"),
        tuple(
            (
                str(r.n),
                optional(r.predicted_length, ".2f"),
                optional(r.measured_length, ".2f"),
                ""
                if r.predicted is None
                else number(r.predicted) + (" *" if r.extrapolated else ""),
                value_and_bounds(r.measured, None),
                optional(r.error, "+.0%"),
                "" if r.trial is None else str(r.trial),
            )
            for r in found.rows
        ),
        folded=True,
    )


def _drafts_table(found: Outlook) -> DataTable:
    latencies = found.latencies
    return DataTable.of(
        "What a better or worse draft would give",
        (
            f"tok/step at n = {found.drafts[0].at_n}",
            *("best n", "tok/step", "tok/s", "over no speculation"),
            *(f"{plain(x.objective.title)} ({x.objective.unit})" for x in latencies),
        ),
        tuple(
            (
                length_name(d),
                str(d.best.n),
                f"{d.best.tokens_per_step:.2f}",
                number(d.best.rate),
                "" if d.speedup is None else f"{d.speedup:.2f}×",
                *(value_and_bounds(x.of(d.best.n, d.best.rate), None) for x in latencies),
            )
            for d in found.drafts
        ),
        {0},
    )


def _lengths_table(found: Outlook) -> DataTable:
    return DataTable.of(
        f"tok/s (tokens per step) by n, for each acceptance length at n = {found.drafts[0].at_n}",
        ("n", *map(length_name, found.drafts)),
        tuple((str(n), *(at_n_text(d, n) for d in found.drafts)) for n in shown_ns(found)),
        folded=True,
    )


def _error_text(found: Outlook) -> str:
    errors = {r.n: abs(r.error) for r in found.rows if r.error is not None}
    if not errors:
        return ""
    worst = max(errors, key=lambda n: errors[n])
    typical = float(np.median(list(errors.values())))
    return (
        f" Predictions are off by {typical:.0%} in the median, at most by {errors[worst]:.0%} "
        f"(n = {worst})."
    )


def break_even(s: Source) -> Iterator[Block]:
    """Yield the break-even map that `autotune map --break-even --show` shows; nothing without."""
    loaded, row = s.store.load_study(s.view.name)
    try:
        view = stored_break_even(s.store, loaded, {row.fingerprint}, 1.0)
    except UserError:
        return
    if not view.needed:
        return
    yield Paragraph(f"{upper(plain(view.label))}.")
    yield Figure(
        "break-even",
        "The fastest n by concurrency and by the acceptance length of the draft, with the "
        "break-even and its 95% interval. Triangles were launched next to the line.",
        lambda theme: figures.untitled(break_even_figure(view, 440, theme)),
    )
    yield DataTable.of(
        "What a draft must reach to pay",
        ("concurrency", "tok/s at n = 0", quality_name(view), "n that pays first"),
        tuple(
            (
                str(load),
                number(view.none[load].value),
                length_estimate(x.quality),
                "" if x.n is None else str(x.n),
            )
            for load, x in view.needed.items()
        ),
    )
    yield DataTable.of(
        "Tokens per step at which each n is as fast as no speculation",
        ("concurrency", *(f"n = {n}" for n in view.pairs)),
        tuple(
            (
                str(load),
                *(
                    next((length_estimate(e.length, n) for e in found if e.n == n), "")
                    for n in view.pairs
                ),
            )
            for load, found in view.even.items()
        ),
        folded=True,
    )
    checked = view.checked()
    if checked:
        yield DataTable.of(
            "Launched next to the line: tok/s over no speculation",
            ("concurrency", "n", "tok/step", "by the map", "rehearsed", ""),
            tuple(
                (
                    str(x.load),
                    str(x.n),
                    f"{x.length:.2f}",
                    f"{x.expected:.3f}",
                    times(x.found),
                    x.verdict,
                )
                for x in checked
            ),
            folded=True,
        )
    yield Points(tuple(plain(text) for text in break_even_texts(view)))


def other_loads(s: Source) -> Iterator[Block]:
    """Yield the load sweep that `autotune map --show` shows."""
    loaded, row = s.store.load_study(s.view.name)
    try:
        view = stored_view(s.store, loaded, {row.fingerprint})
    except UserError:
        yield Paragraph(
            f"All of this holds for {load_text(s)}. The database has no load sweep; autotune map "
            "runs one, and shows the concurrency above which drafting loses."
        )
        return
    if not view.at:
        yield Paragraph(
            "The load sweep has no numbers without speculation yet, so there is nothing to compare "
            "with."
        )
    else:
        text = crossover_text(view.crossover, view.at, view.crossing)
        lines = "a line for each n, with 95% intervals."
        if view.referee is not None:
            lines = (
                "a line for each way to speculate, with 95% intervals. Gray bands are where "
                "another way passes the best fixed n."
            )
        yield Figure(
            "load",
            f"Speed-up over no speculation by concurrency, {lines} {text}",
            lambda theme: figures.untitled(load_sweep_figure(view, 440, theme)),
        )
        yield _loads_table(view)
        yield _speedups_table(view)
        if view.referee is not None:
            yield _referee_table(view.referee)
            yield Points(tuple(plain(text) for text in referee_texts(view.referee)))
        if view.lossy:
            yield Points(tuple(f"{plain(name)}: {LOSSY}." for name in view.lossy))
        yield from _recommended(view)
    failed = [p for p in view.points if p.failure_kind is not None]
    if failed:
        yield Points(
            tuple(
                plain(f"{p.way.name} failed: {p.failure_kind or ''}: {p.failure_reason or ''}")
                for p in failed
            )
        )
    throttled = [
        f"{plain(p.way.name)} at {load}: throttled, because at most {x.running_peak} requests ran "
        "at once; it is compared with nothing"
        for p in view.points
        for load, x in p.loads.items()
        if x.throttled
    ]
    if throttled:
        yield Points(tuple(throttled))


def _loads_table(view: LoadSweepView) -> DataTable:
    p95 = {(p.n, load): x.p95_ms for p in view.points if p.is_fixed for load, x in p.loads.items()}
    return DataTable.of(
        "The best n at each concurrency; ties are n that are not certainly worse",
        ("concurrency", "best n", "ties", "tok/s", "over no speculation", "p95 (ms)"),
        tuple(
            (
                str(x.load),
                str(x.best),
                ", ".join(map(str, x.ties)),
                with_bounds(x.value.value, (x.value.low, x.value.high)),
                times(x.speedup) if x.best else "1.00×",
                number(p95[x.best, x.load]),
            )
            for x in view.at
        ),
    )


def _speedups_table(view: LoadSweepView) -> DataTable:
    none = view.rates.get(0, {})
    drafts = sorted(n for n in view.rates if n)
    return DataTable.of(
        "Speed-up over no speculation",
        ("concurrency", *(f"n = {n}" for n in drafts)),
        tuple(
            (
                str(load),
                *(
                    f"{view.rates[n][load].value / none[load].value:.2f}×"
                    if load in view.rates[n] and load in none
                    else ""
                    for n in drafts
                ),
            )
            for load in view.loads
        ),
        folded=True,
    )


def _referee_table(view: RefereeView) -> DataTable:
    return DataTable.of(
        "Other ways to speculate against the best fixed n",
        ("concurrency", "best fixed", "against it", "ratio", "verdict", "launches"),
        tuple(
            (
                str(x.load),
                x.fixed.name,
                plain(x.rival.name),
                times(x.ratio),
                str(x.verdict),
                f"{x.launches[0]} and {x.launches[1]}",
            )
            for x in view.compared
        ),
    )


def _recommended(view: LoadSweepView) -> Iterator[Block]:
    about = [
        f"vLLM {view.vllm}" if view.vllm else "",
        point_text(view.point),
        ", ".join(f"{k.replace('_', '-')} {v}".lower() for k, v in view.flags.items()),
        view.machine,
    ]
    what = f"n = {view.fixed}" if view.fixed else "no speculation"
    if view.recommended_rival is not None:
        what = plain(view.recommended_rival.name)
    yield Paragraph(
        f"Recommended for these concurrencies: {what} ({view.advice}). Measured with "
        f"{plain(', '.join(filter(None, about)))}."
    )
    if view.argument is not None:
        yield Code(
            "For all these concurrencies together",
            f"--speculative-config {shlex.quote(view.argument)}",
        )


def importance(s: Source) -> Iterator[Block]:
    """Yield the importance of each parameter for each objective, where one is seen to matter."""
    objectives = s.view.objectives
    trials = searched(s.view)
    values = np.array([[t.value(o) or 0.0 for o in objectives] for t in trials])
    space = s.spec.to_space()
    found = importances(space, [canonical(space, t.point) for t in trials], values, objectives)
    if not found:
        few = len(trials) < LEAST_POINTS
        yield Paragraph(
            f"Not known: {count(len(trials), 'point')} with numbers are too few, below "
            f"{LEAST_POINTS}."
            if few
            else "A single parameter was searched, so it is the one."
        )
        return
    if not any(x.shares for x in found.values()):
        yield Paragraph(f"{nothing_seen_text(len(trials))} {_SHUFFLED}")
        return
    yield Figure(
        "importance",
        "Variance over the launched points that each parameter explains, for each objective: "
        "shares of the parameters that are seen to matter.",
        partial(figures.importance_figure, {o: x.shares for o, x in found.items()}, objectives),
    )
    names = sorted({name for x in found.values() for name in x.chances})
    names.sort(key=lambda name: -max(x.shares.get(name, 0.0) for x in found.values()))
    yield DataTable.of(
        f"Importance by {len(trials)} points",
        ("parameter", *(plain(o.title) for o in objectives)),
        tuple((plain(name), *(_share(found[o.name], name) for o in objectives)) for name in names),
        folded=True,
    )
    yield Paragraph(_SHUFFLED)


_SHUFFLED = (
    "A parameter is seen to matter if it explains more than with shuffled values; an error of "
    f"{ERROR:.0%} is shared by all parameters and objectives. A parameter that is not seen to "
    "matter may still do so, by less than these points show."
)


def _share(found: Importance, name: str) -> str:
    if name in found.shares:
        return f"{found.shares[name]:.0%}"
    return "not seen to matter"
