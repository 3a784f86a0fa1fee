"""The answer: what to serve, how sure that is, and the command."""

from __future__ import annotations

from collections.abc import Iterator

from autotune.engine.command import runs_model_code
from autotune.errors import UserError
from autotune.output.export.endpoint import Endpoint
from autotune.output.export.served import served, shell_of
from autotune.output.figures.trials import searched
from autotune.output.report.content import (
    Answer,
    Block,
    Code,
    Fact,
    Paragraph,
    Points,
)
from autotune.output.report.source import Source, against, load_text, progress
from autotune.results.budget_note import budget_note
from autotune.results.certificates import Verdict, judged_text, judgement_lines, output_line
from autotune.results.flatness import statement_of
from autotune.results.rehearsed import production_note
from autotune.results.standing import LEAST_DEGREES
from autotune.results.text import (
    bounds_text,
    change,
    count,
    lower,
    number,
    plain,
    upper,
    value_with_interval,
)
from autotune.results.trials import as_single
from autotune.results.views import (
    TrialView,
    cost,
    kinds_text,
    throttled_lines,
    tied_text,
    variable_lines,
    why_no_best,
)
from autotune.stats import Estimate
from autotune.study.space import MNBT, N


def answer(s: Source) -> Answer:
    """Return what to serve and how sure that is; without results, that there is no answer."""
    t, view = s.best, s.view
    if t is None:
        return Answer(
            "Nothing can be recommended",
            f"{progress(s)} {plain(upper(why_no_best(view)))}.",
            certain=False,
            notes=(f"Failed trials: {plain(kinds_text(view.failures()))}.",)
            if view.failures()
            else (),
        )
    without = " without speculation:" if t.point.get(N) == 0 else ""
    head, end = ("Best in the rehearsal", ":") if view.rehearsal else ("Serve", "")
    sure, certain = _sure(s, t)
    return Answer(
        f"{head}{without or end} {t.setting}",
        sure,
        certain,
        (*_facts(s, t), _evidence(s, t), *_output(t)),
        tuple(_notes(s, t)),
    )


def _facts(s: Source, t: TrialView) -> Iterator[Fact]:
    """Yield the value of each objective, and its ratio to the baseline's."""
    choice = s.view.verdict.winners[0] if s.view.verdict is not None else None
    for i, o in enumerate(s.view.objectives):
        if choice is not None:
            e: Estimate | None = choice.values[i]
        else:
            value = t.value(o)
            low, high = (t.intervals or {}).get(o.name) or (None, None)
            e = None if value is None else Estimate(value, low, high)
        if e is None:
            continue
        notes = ["no interval: too few repeated launches to estimate how far launches differ"]
        if e.low is not None or e.high is not None:
            notes = [f"95% interval {bounds_text((e.low, e.high))}"]
        if t.baseline:
            notes.append("the baseline itself")
        elif (ratio := _over_baseline(s, t, i)) is not None:
            notes.append(f"{change(ratio, o)} {against(s)}")
        yield Fact(plain(o.title), f"{number(e.value)} {plain(o.unit)}", tuple(notes))


def _evidence(s: Source, t: TrialView) -> Fact:
    launches, requests = len(s.measured(t)), s.requests(t)
    what = f"{count(requests, 'request')} in {count(launches, 'launch')}"
    if not t.confirmed:
        return Fact("Evidence", "not confirmed", (f"only {what} of the search",))
    base = s.baseline
    against: tuple[str, ...] = ()
    if base is not None and base is not t and base.confirmed:
        of = f"{count(s.requests(base), 'request')} in {count(base.confirmed_launches, 'launch')}"
        against = (f"compared with {of} of the baseline",)
    return Fact("Evidence", "confirmed", (f"with {what}", *against))


def _output(t: TrialView) -> Iterator[Fact]:
    """Yield whether its answers are those of n = 0; no text of an answer is in a report."""
    if t.certificate is not None:
        found = t.certificate
        of = found.judgement
        notes = ["nothing was compared" if of is None else judged_text(of)]
        yield Fact("Output", found.verdict.value, tuple(notes))


def output(s: Source) -> Iterator[Block]:
    """Yield whether the answers are those of n = 0, in numbers."""
    found = None if s.best is None else s.best.certificate
    if s.best is None or found is None:
        return
    yield Paragraph(output_line(found, s.best.number))
    if lines := [upper(x) for x in judgement_lines(found)]:
        yield Points(tuple(lines))
    if found.verdict is Verdict.FAULT:
        yield Paragraph(
            "A report quotes no answer. autotune verify shows the three worst ones side by side."
        )


def _over_baseline(s: Source, t: TrialView, i: int) -> Estimate | None:
    """Return an objective of the best trial over the baseline's, as the commands show it."""
    o, verdict, base = s.view.objectives[i], s.view.verdict, s.baseline
    if verdict is not None:
        ratios = verdict.winners[0].over_baseline
        return None if ratios is None else ratios[i]
    if (
        base is None
        or not base.comparable
        or not (value := t.value(o))
        or not (other := base.value(o))
    ):
        return None
    variance = s.view.variance.get(o.name)
    a, b = (as_single(x, o.name) for x in (t, base))
    if variance is None or variance.total.degrees < LEAST_DEGREES or a is None or b is None:
        return Estimate(value / other, None, None)
    return variance.ratio(a, b, (t.launches, base.launches))


def _sure(s: Source, t: TrialView) -> tuple[str, bool]:
    """Return how sure the answer is, in words, and whether it is certain."""
    if s.view.verdict is None or not t.confirmed:
        words = (
            "This result is not confirmed. The best of many single launches usually looks better "
            "than it is (selection bias). Treat it as a candidate and run autotune confirm."
        )
        return words, False
    choice = s.view.verdict.winners[0]
    by = lower(s.view.objectives[0].title)
    if choice.rival is None:
        return f"Best by {plain(by)} and confirmed, but without a rival to compare it with.", False
    rival, chance = _named(s, choice.rival), choice.chances[choice.rival]
    if chance is None:
        return f"Not comparable with {rival} yet, because no point was launched twice.", False
    if choice.tie:
        others = [_named(s, k) for k in choice.ties]
        words = (
            f"A tie with {', '.join(others)}: by {plain(by)} this is better with only "
            f"{tied_text(chance)} probability. From 95% on it would not be called a tie."
        )
        return words, False
    sure = "more than 99%" if chance > 0.99 else f"{chance:.0%}"
    return f"By {plain(by)} it is better than {rival} with {sure} probability.", True


def _named(s: Source, number: int) -> str:
    """Return a trial's name within a sentence, with its article."""
    t = s.trial(number)
    return f"the {s.name(t)}" if t.baseline else s.name(t)


def _notes(s: Source, t: TrialView) -> Iterator[str]:
    view, verdict = s.view, s.view.verdict
    if (note := production_note(s.spec)) is not None:
        yield note
    if verdict is not None and t.baseline:
        others = [k for k in verdict.winners[0].chances if verdict.candidates[k].over_baseline]
        for k in others[:1]:
            ratios = verdict.candidates[k].over_baseline or ()
            parts = [
                f"{plain(lower(o.title))} {change(e, o)}"
                for o, e in zip(view.objectives, ratios, strict=True)
            ]
            yield f"The next best, {s.name(s.trial(k))}: {', '.join(parts)} {against(s)}."
    elif t.baseline:
        rivals = [x for x in searched(view) if not x.baseline]
        first = view.objectives[0]
        if rivals:
            rival = min(rivals, key=lambda x: cost(first, x.value(first)))
            values = [
                value_with_interval(rival.value(o) or 0.0, (rival.intervals or {}).get(o.name), o)
                for o in view.objectives
            ]
            yield f"The next best, {s.name(rival)}: {', '.join(values)}."
    for o in view.objectives[1:]:
        other = view.best(o)
        if other is not None and other is not t:
            yield (
                f"This is the best by {plain(lower(view.objectives[0].title))}. "
                f"The best by {plain(lower(o.title))} is {s.name(other)}."
            )
    found = statement_of(s.store, view)
    if found is not None and (said := found.lines(view.objectives)):
        yield " ".join(said)
    yield f"The answer holds for this load: {load_text(s)}."
    if N in t.point or MNBT in t.point:
        yield (
            "n is num_speculative_tokens, the number of tokens drafted per step (0: no "
            "speculation). MNBT is max_num_batched_tokens, the most tokens processed per step."
        )
    if (note := budget_note(s.store, view, t)) is not None:
        yield note
    for w in dict.fromkeys(w for x in s.measured(t) for w in x.warnings):
        yield f"Warning: {plain(w)}."
    for line in throttled_lines(view):
        yield f"{plain(upper(line))}."
    for line in variable_lines(view):
        yield f"Warning: trials were {line}."
    if view.finished < view.wanted or any(x.state in {"running", "waiting"} for x in view.trials):
        yield progress(s)


def command(s: Source) -> Iterator[Block]:
    """Yield the command that serves the answer."""
    if s.best is None:
        yield Paragraph(f"{plain(upper(why_no_best(s.view)))}, so there is no command.")
        return
    try:
        found = served(s.store, s.view.name, s.best)
        text = shell_of(found, Endpoint())
    except UserError as e:
        yield Paragraph(f"The command cannot be shown: {plain(str(e))}.")
        return
    known = found.measured is not None and found.measured.launch.host is not None
    host = f", {found.measured.host}" if found.measured is not None and known else ""
    if (note := production_note(s.spec)) is not None:
        yield Paragraph(note)
    yield Code(f"Serves {s.best.setting}", text)
    yield Paragraph(
        f"Paths are those of the measured machine{host}; a variable that holds a secret appears by "
        "its name only. autotune export writes the same for vLLM's --config, Compose, Kubernetes "
        "and systemd."
    )
    if runs_model_code(s.spec):
        yield Paragraph("trust-remote-code is set: Python code that comes with the model will run.")
