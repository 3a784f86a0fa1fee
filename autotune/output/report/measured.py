"""What was measured: trials, Pareto front, by n, by n and MNBT, acceptance, latencies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from autotune.output.figures import trials as figures
from autotune.output.figures.pareto import pareto_figure
from autotune.output.figures.pareto3d import lines_figure, space_figure
from autotune.output.figures.trials import Latencies, best_by_way, n_of, searched
from autotune.output.report.content import (
    Block,
    DataTable,
    Figure,
    Paragraph,
    Points,
)
from autotune.output.report.source import Source, with_bounds
from autotune.results.certificates import word_of
from autotune.results.read_request_acceptance import read_request_acceptance
from autotune.results.request_acceptance import length_text
from autotune.results.text import (
    count,
    heading,
    lower,
    number,
    objective_text,
    plain,
    times,
    upper,
    value_text,
)
from autotune.results.views import (
    StudyView,
    TrialView,
    cost,
    dropped_lines,
    off_front_lines,
    steps_notes,
    verdict_lines,
)
from autotune.serving.slots import slot_text
from autotune.stats import Estimate, quantile
from autotune.study.space import MNBT, N
from objectives import Objective

_PERCENTILES = (50, 90, 95, 99)


def front(s: Source) -> Iterator[Block]:
    """Yield the trials, the Pareto front, and what of it was measured again."""
    view = s.view
    if not searched(view):
        yield Paragraph("No trial gave numbers.")
    else:
        yield Paragraph(
            "Each trial is one launch of a real server. The Pareto front holds every trial that no "
            "other trial beats in one objective without losing in another."
        )
        yield from _front_figures(view)
        yield _trials_table("The Pareto front", view, view.front(), folded=False)
    if view.verdict is not None:
        yield _confirmed_table(s)
        lines = (*dropped_lines(view), *verdict_lines(view), *off_front_lines(view))
        yield Points(tuple(f"{upper(line)}." for line in lines))
    if view.trials:
        yield _trials_table("Every trial", view, view.trials, folded=True)


def _front_figures(view: StudyView) -> Iterator[Figure]:
    """Yield the trials by the objectives; three of them in space, and in parallel coordinates."""
    names = [plain(lower(o.title)) for o in view.objectives]
    about = f"{len(view.front())} of them on the Pareto front. Bars are 95% intervals."
    if view.verdict is not None:
        about += " A dotted line leads from what the search saw to what was confirmed."
    if len(names) < 3:
        yield Figure(
            "front",
            f"The trials by {' and '.join(names)}, {about}",
            lambda theme: figures.untitled(pareto_figure(view, 520, theme)),
        )
        return
    yield Figure(
        "front",
        f"The trials by {names[0]}, {names[1]} and {names[2]}, {about} A stem leads down to the "
        f"worst {names[2]}.",
        lambda theme: figures.untitled(space_figure(view, 560, theme)),
    )
    yield Figure(
        "lines",
        "The same in parallel coordinates: a line is a trial, an axis an objective, better "
        "upwards, or a parameter. A line above another one in every objective beats it.",
        lambda theme: figures.untitled(lines_figure(view, 400, theme)),
    )


def _trials_table(
    caption: str, view: StudyView, trials: Sequence[TrialView], *, folded: bool
) -> DataTable:
    names = view.parameters()
    head = [
        "trial",
        *map(heading, names),
        *(objective_text(o) for o in view.objectives),
        "speed-up",
        "tok/step",
        "requests",
        "launches",
        "note",
    ]
    rows = []
    for t in trials:
        rows.append(
            (
                str(t.number),
                *(value_text(t.point[name]) if name in t.point else "" for name in names),
                *(
                    with_bounds(t.value(o), (t.intervals or {}).get(o.name))
                    for o in view.objectives
                ),
                _speedup(t),
                t.length_text,
                "" if t.requests is None else str(t.requests),
                str(t.launches) if t.values else "",
                remarks(t),
            )
        )
    caption = "; ".join([caption, *steps_notes(trials)])
    return DataTable.of(caption, tuple(head), tuple(rows), {len(head) - 1}, folded=folded)


def remarks(t: TrialView) -> str:
    """Return what a trial is, in a few words: ``baseline, front``."""
    words = []
    if t.baseline:
        words.append("baseline")
    if t.front:
        words.append("front")
    if t.confirms is not None:
        words.append(f"confirms #{t.confirms}")
    if t.replicates is not None:
        words.append(f"repeats #{t.replicates}")
    if t.reused is not None:
        words.append("reused")
    if t.truncated:
        words.append("ended early, rough")
    if t.lossy:
        words.append("lossy")
    words += filter(None, [word_of(t.certificate)])
    if t.slot:
        words.append(plain(slot_text(t.slot)))
    if t.state != "complete":
        words.append(f"failed: {plain(t.failure_kind or 'unknown')}" if t.failure_kind else t.state)
    words += [plain(w.partition(":")[0]) for w in t.warnings]
    return ", ".join(words)


def _speedup(t: TrialView) -> str:
    low, high = t.speedup_interval or (None, None)
    return "" if t.speedup is None else times(Estimate(t.speedup, low, high))


def _confirmed_table(s: Source) -> DataTable:
    """Return what the search saw next to what was confirmed."""
    view, first = s.view, s.view.objectives[0]
    rows = []
    for t in sorted(
        (t for t in view.trials if t.confirmed),
        key=lambda t: cost(first, (t.confirmed or {})[first.name]),
    ):
        cells = []
        for o in view.objectives:
            again = (t.confirmed or {}).get(o.name)
            cells += [
                with_bounds(t.value(o), (t.intervals or {}).get(o.name)),
                with_bounds(again, (t.confirmed_intervals or {}).get(o.name)),
            ]
        over = ""
        if t.baseline:
            over = "1.00×"
        elif t.confirmed_speedup is not None:
            over = times(Estimate(*t.confirmed_speedup))
        rows.append(
            (s.name(t), *cells, over, str(t.confirmed_launches), str(s.requests(t))),
        )
    head = ["point"]
    for o in view.objectives:
        head += [f"{objective_text(o)}, searched", f"{objective_text(o)}, confirmed"]
    head += ["speed-up", "launches", "requests"]
    return DataTable.of("Measured again, side by side", tuple(head), tuple(rows), {0})


def by_n(s: Source) -> Iterator[Block]:
    """Yield every objective by n."""
    view = s.view
    if not any(n_of(t) is not None for t in searched(view)):
        yield Paragraph(_no_n(s))
        return
    yield Figure(
        "by-n",
        "Every trial by n; a line through the best trial of each n, whose other parameters may "
        "differ, with 95% intervals. The dashed line is the baseline.",
        partial(figures.by_n_figure, view),
    )
    first, *others = view.objectives
    best = best_by_way(searched(view), first)
    rows = []
    for way, t in best.items():
        values = [with_bounds(t.value(first), (t.intervals or {}).get(first.name))]
        for o in others:  # another trial may be the best by it
            b = best_by_way(searched(view), o)[way]
            values.append(with_bounds(b.value(o), (b.intervals or {}).get(o.name)))
        rows.append((*_way_cells(view, way), *values, _speedup(t), str(t.number)))
    head = (*_way_heads(view), *(objective_text(o) for o in view.objectives), "speed-up", "trial")
    about = "" if not others else f"; speed-up and trial are of the best by {lower(first.title)}"
    yield DataTable.of(
        f"The best of each n, by each objective{plain(about)}", head, tuple(rows), folded=True
    )


def _no_n(s: Source) -> str:
    if not searched(s.view):
        return "No trial gave numbers."
    return "The study does not search num_speculative_tokens."


def grid(s: Source) -> Iterator[Block]:
    """Yield every objective by n and MNBT."""
    view = s.view
    trials = [t for t in searched(view) if N in t.point and MNBT in t.point]
    if not trials:
        both = {N, MNBT} <= set(s.spec.to_space().params)
        yield Paragraph(
            "No trial gave numbers."
            if both
            else "The study does not search num_speculative_tokens and max_num_batched_tokens both."
        )
        return
    failed = any(N in t.point and MNBT in t.point for t in view.failures())
    cross = " × marks pairs of which every launch failed." if failed else ""
    for i, o in enumerate(view.objectives):
        yield Figure(
            f"grid-{i}",
            f"{plain(o.title)} by n and MNBT (max_num_batched_tokens), the best trial of each "
            f"pair{' of all arms' if view.arms else ''}; the brighter, the better.{cross}",
            partial(figures.grid_figure, view, o),
        )
        yield _grid_table(trials, o)


def _grid_table(trials: Sequence[TrialView], o: Objective) -> DataTable:
    best: dict[tuple[str, str], float] = {}
    ordered = sorted(trials, key=lambda t: cost(o, t.value(o)))
    for t in ordered:
        best.setdefault((value_text(t.point[N]), value_text(t.point[MNBT])), t.value(o) or 0.0)
    ns, budgets = (sorted({pair[i] for pair in best}, key=lambda x: (len(x), x)) for i in (0, 1))
    rows = tuple((b, *(number(best[n, b]) if (n, b) in best else "" for n in ns)) for b in budgets)
    return DataTable.of(objective_text(o), ("MNBT", *(f"n = {n}" for n in ns)), rows, folded=True)


def acceptance(s: Source) -> Iterator[Block]:
    """Yield the accepted drafts by position."""
    first = s.view.objectives[0]
    drafting = [t for t in searched(s.view) if t.acceptance_per_position]
    best = best_by_way(drafting, first)
    if not best:
        yield Paragraph("No trial with drafts has counters of what was accepted.")
        return
    yield Figure(
        "acceptance",
        "Share of the drafted tokens that were accepted, by position in the draft, from the "
        "server's own counters; one line for each n, of its best trial. Where a line is low, "
        f"longer drafts are wasted work.{_biased(best.values())}",
        partial(figures.acceptance_figure, best),
    )
    most = max(len(t.acceptance_per_position) for t in best.values())
    rows = []
    for way, t in best.items():
        shares = [f"{x:.0%}" for x in t.acceptance_per_position]
        cells = (*_way_cells(s.view, way), t.length_text, *shares)
        rows.append((*cells, *[""] * (most - len(shares))))
    head = (*_way_heads(s.view), "tokens per step", *(str(k) for k in range(1, most + 1)))
    yield DataTable.of(
        "; ".join(
            [
                "Tokens per step (1 + accepted drafts), and share accepted by position",
                *steps_notes(best.values()),
            ]
        ),
        head,
        tuple(rows),
        folded=True,
    )
    yield from _by_request(s, list(best.values()))


def _by_request(s: Source, drafting: Sequence[TrialView]) -> Iterator[Block]:
    """Yield the accepted drafts by kind of request, of the best trial that drafts."""
    first = s.view.objectives[0]
    ordered = sorted(drafting, key=lambda t: (t is not s.best, cost(first, t.value(first))))
    for t in ordered:
        told = read_request_acceptance(s.store, s.view.name, t.number, t.point)
        if told is not None:
            break
    else:
        return
    low, middle, high = told.spread
    yield Paragraph(
        f"Of {plain(s.name(t))} vLLM told the accepted drafts of each of "
        f"{count(told.requests, 'request')}: {length_text(told.whole)} tokens per step. A single "
        f"request has {low:.2f} to {high:.2f} (10th to 90th percentile), {middle:.2f} in the "
        "median. Intervals take the request as the unit; they do not hold for other launches."
    )
    for i, (title, of) in enumerate(told.tables):
        yield Figure(
            f"by-request-{i}",
            f"Tokens per step by {title}, with 95% intervals; the dashed line is that of all "
            "requests.",
            partial(figures.request_acceptance_figure, told, of),
        )
        yield DataTable.of(
            f"Accepted drafts by {title}",
            (title, "tokens per step", "drafts accepted", "steps", "requests"),
            tuple(
                (
                    plain(g.name),
                    length_text(g).replace(", ", ",\xa0"),
                    "" if g.share is None else f"{g.share:.0%}",
                    str(g.steps),
                    str(g.requests),
                )
                for g in of
            ),
            {0},
            folded=True,
        )
    if told.notes:
        yield Points(tuple(f"{upper(note)}." for note in told.notes))


def _way_heads(view: StudyView) -> tuple[str, ...]:
    return ("arm", "n") if view.arms else ("n",)


def _way_cells(view: StudyView, way: tuple[str, int]) -> tuple[str, ...]:
    arm, n = way
    return (arm, str(n)) if view.arms else (str(n),)


def _biased(trials: Iterable[TrialView]) -> str:
    """Return that some shares are biased, if they are."""
    if all(t.curve is not None for t in trials):
        return ""
    return (
        " With a schedule or adaptive verification the shares are biased: fewer drafts are "
        "verified where they would fail or where many requests run."
    )


def latency(s: Source) -> Iterator[Block]:
    """Yield latencies of winner, baseline and runner-up, request by request."""
    curves = [c for role, t in _compared(s).items() if (c := _latencies(s, role, t)) is not None]
    if not curves:
        yield Paragraph("The database has no requests of a measured trial.")
        return
    yield Figure(
        "latency",
        f"Share of the requests that were done within a time: {'; '.join(c.name for c in curves)}. "
        "Above, the whole request (E2EL); below, its first token (TTFT). The dotted line is the "
        "95th percentile: what lies above it is the tail that p95 speaks of.",
        partial(figures.latency_figure, curves),
    )
    rows = []
    for c in curves:
        for kind, values in (("E2EL", c.e2el), ("TTFT", c.ttft)):
            found = [quantile(values, p) * 1000 for p in _PERCENTILES]
            rows.append((c.name, kind, *map(number, found), str(len(values)), str(c.launches)))
    yield DataTable.of(
        "Percentiles in ms, of all launches' requests together (a trial's p95 is the mean of its "
        "launches')",
        ("point", "of", *(f"p{p}" for p in _PERCENTILES), "requests", "launches"),
        tuple(rows),
        {0, 1},
    )
    fewest = min(len(c.e2el) // c.launches for c in curves)
    above = max(1, round(fewest * 0.05))
    yield Paragraph(
        f"A launch had {fewest} requests or more, so that about {above} of them lie above "
        "its 95th percentile. The interval of a p95 shows its uncertainty: an upper bound takes 72 "
        "requests, and where launches differ only more launches make it narrower."
    )


def _compared(s: Source) -> dict[str, TrialView]:
    """Return winner, baseline and runner-up by these names, as far as there are any."""
    if s.best is None:
        return {}
    first, base = s.view.objectives[0], s.baseline
    others = sorted(searched(s.view), key=lambda t: cost(first, t.value(first)))
    if s.view.verdict is not None:
        others = [*(s.trial(k) for k in s.view.verdict.winners[0].chances), *others]
    found = {"winner": s.best}
    if base is not None and base is not s.best and base.values and base.comparable:
        found["baseline"] = base
    for t in others:
        if t is not s.best and t is not base:
            found["runner-up"] = t
            break
    return found


def _latencies(s: Source, role: str, t: TrialView) -> Latencies | None:
    found = []
    for x in s.measured(t):
        if (m := s.measurement(x)) is not None:
            found.append(m)
    if not found:
        return None
    return Latencies(
        f"{role}: {t.setting}",
        len(found),
        np.concatenate([m.e2el for m in found]),
        np.concatenate([m.first_token for m in found]),
    )
