"""Beyond the trials: other n and drafts by prediction, other loads, and which parameter decides."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import partial

import numpy as np

from autotune.errors import NothingUsable, UserError
from autotune.mapplot import map_figure
from autotune.mapresults import stored_view
from autotune.mapview import Advice, MapView, crossover_text
from autotune.prediction import NOTE, Outlook, outlook
from autotune.report import figures
from autotune.report.content import (
    Block,
    Code,
    Figure,
    Paragraph,
    Points,
    Table,
)
from autotune.report.figures import searched
from autotune.report.importance import LEAST_TRIALS, importances
from autotune.report.source import Source, count, load_text, times, with_bounds
from autotune.study.space import EXPONENT
from autotune.views import (
    number,
    plain,
    point_text,
)


def prediction(s: Source) -> Iterator[Block]:
    """As `autotune predict` has it."""
    try:
        found = outlook(s.view, s.spec.to_space())
    except NothingUsable as e:
        yield Paragraph(f"{plain(str(e)).removeprefix(f'{s.view.name}: ').capitalize()}.")
        return
    yield Paragraph(
        f"From acceptance alone, {NOTE}. Each n stands for its fastest trial; a launched n is "
        "predicted from the launches at other n only, so the error shows how far to trust it."
    )
    yield Figure(
        "prediction",
        f"tok/s by n, predicted and measured.{_error_text(found)} Open squares lie beyond the "
        "launched n.",
        partial(figures.prediction_figure, found),
    )
    yield Table(
        "Predicted against measured",
        (
            "n",
            "tok/step predicted",
            "tok/step measured",
            "tok/s predicted",
            "tok/s measured",
            "error",
            "trial",
        ),
        tuple(
            (
                str(r.n),
                _form(r.predicted_length, ".2f"),
                _form(r.measured_length, ".2f"),
                ""
                if r.predicted is None
                else number(r.predicted) + (" *" if r.extrapolated else ""),
                "" if r.measured is None else number(r.measured),
                _form(r.error, "+.0%"),
                "" if r.trial is None else str(r.trial),
            )
            for r in found.rows
        ),
        folded=True,
    )
    yield Table(
        "What a better or worse draft would give: each drafted token accepted more often, where "
        "those before it were",
        ("draft quality", "best n", "tok/step", "tok/s", "over no speculation"),
        tuple(
            (
                f"{d.gain:+.0%}".replace("-", "−") if d.gain else "as is",
                str(d.n),
                f"{d.tokens_per_step:.2f}",
                number(d.rate),
                "" if d.speedup is None else f"{d.speedup:.2f}×",
            )
            for d in found.drafts
        ),
        frozenset({0}),
    )


def _error_text(found: Outlook) -> str:
    errors = {r.n: abs(r.error) for r in found.rows if r.error is not None}
    if not errors:
        return ""
    worst = max(errors, key=lambda n: errors[n])
    typical = float(np.median(list(errors.values())))
    return f" Off by {typical:.0%} in the median, {errors[worst]:.0%} at n = {worst}."


def _form(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def other_loads(s: Source) -> Iterator[Block]:
    """The map, as `autotune map --show` has it."""
    loaded, row = s.store.load_study(s.view.name)
    try:
        view = stored_view(s.store, loaded, {row.fingerprint})
    except UserError:
        yield Paragraph(
            f"All of this holds for {load_text(s)}. The database has no map of other loads; "
            "autotune map measures one, and says above which load drafting loses."
        )
        return
    if not view.at:
        yield Paragraph("The map has no numbers of no speculation yet, nothing to compare with.")
    else:
        text = crossover_text(view.crossover, view.at)
        yield Figure(
            "load",
            f"Speed-up over no speculation by load, a line for each n, with 95% intervals. {text}",
            lambda theme: figures.untitled(map_figure(view, 440, theme)),
        )
        yield from _map_tables(view)
    failed = [p for p in view.points if p.failure_kind is not None]
    if failed:
        yield Points(
            tuple(
                f"n = {p.n} failed: {plain(p.failure_kind or '')}: {plain(p.failure_reason or '')}"
                for p in failed
            )
        )


def _map_tables(view: MapView) -> Iterator[Block]:
    p95 = {
        (p.n, load): x.p95_ms
        for p in view.points
        if p.schedule is None
        for load, x in p.loads.items()
    }
    yield Table(
        "The best n at each load; ties are n that are not certainly worse",
        ("requests at a time", "best n", "ties", "tok/s", "over no speculation", "p95 (ms)"),
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
    none = view.rates.get(0, {})
    drafts = sorted(n for n in view.rates if n)
    yield Table(
        "Speed-up over no speculation",
        ("requests at a time", *(f"n = {n}" for n in drafts)),
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
    about = [
        f"vLLM {view.vllm}" if view.vllm else "",
        point_text(view.point),
        ", ".join(f"{k.replace('_', '-')} {v}".lower() for k, v in view.flags.items()),
        view.machine,
    ]
    what = f"n = {view.fixed}" if view.fixed else "no speculation"
    if view.advice is Advice.SCHEDULE:
        what = "a schedule of n by batch size"
    yield Paragraph(
        f"Recommended for these loads: {what} ({view.advice}). Measured with "
        f"{plain(', '.join(filter(None, about)))}."
    )
    if view.argument is not None:
        yield Code(
            "For all these loads together", f"--speculative-config {shlex.quote(view.argument)}"
        )


def importance(s: Source) -> Iterator[Block]:
    """Which parameter decides over which objective."""
    objectives = s.view.objectives
    counted = {t.number for t in searched(s.view)}
    trials = [t for t in s.trials if t.number in counted]
    found = importances(trials, objectives)
    if not found:
        few = len(trials) < LEAST_TRIALS
        yield Paragraph(
            f"Not said: {count(len(trials), 'point')} with numbers, and of fewer than "
            f"{LEAST_TRIALS} it would be chance."
            if few
            else "A single parameter was searched, so it is the one."
        )
        return
    found = {
        o: {k.removeprefix(EXPONENT): v for k, v in shares.items()} for o, shares in found.items()
    }
    yield Figure(
        "importance",
        "How differently each parameter is spread over the best quarter of the trials and over "
        "all of them (PED-ANOVA), for each objective in its own direction; shares of one.",
        partial(figures.importance_figure, found, objectives),
    )
    names = list(dict.fromkeys(name for shares in found.values() for name in shares))
    yield Table(
        f"Importance by {len(trials)} trials",
        ("parameter", *(plain(o.title) for o in objectives)),
        tuple(
            (plain(name), *(f"{found[o.name].get(name, 0.0):.0%}" for o in objectives))
            for name in names
        ),
        folded=True,
    )
