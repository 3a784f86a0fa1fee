"""Tables of a study's trials, as `status`, `best` and the live view of a run show them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from autotune.results.certificates import word_of
from autotune.results.tables import Block, Column, Line, Row, Table, Tone
from autotune.results.text import (
    HEADINGS,
    optional,
    other_parameters,
    plain,
    upper,
    value_and_bounds,
    value_text,
)
from autotune.results.views import (
    StudyView,
    TrialView,
    origin_lines,
    steps_notes,
    throttled_lines,
)
from autotune.serving.slots import slot_text
from autotune.study.space import ARM, MNBT, N
from objectives import Objective

# Columns of parameters, in their order, and their width.
_PARAMETERS = {ARM: 8, N: 2, MNBT: 5}
_INTERVAL_WIDTH = 15  # of a value with its interval


def trials_page(view: StudyView) -> list[Block]:
    """Return every trial with its state; below, where some were measured and why others failed."""
    notes = (*steps_notes(view.trials), *origin_lines(view), *throttled_lines(view))
    below: list[Block] = [Line(text) for text in notes]
    below += [
        Line(
            f"trial {t.number} failed: {t.failure_kind}: {plain(t.failure_reason or '')}",
            Tone.FAILED,
        )
        for t in view.failures()
    ]
    table = trial_table(view.objectives, view.parameters(), view.trials)
    return [*rehearsal_lines(view), table, *([Line(), *below] if below else [])]


def front_page(view: StudyView) -> list[Block]:
    """Return the Pareto front, best by the first objective first, and the baseline.

    The values have their intervals if any is known.
    """
    trials = view.front()
    trials += [t for t in view.trials if t.baseline and not t.front and t.state == "complete"]
    intervals = any(t.intervals for t in trials)
    what = "Pareto front" if len(view.objectives) > 1 else "Best trial"
    what += " and baseline" if any(t.baseline for t in trials) else ""
    what += ", with 95% intervals:" if intervals else ":"
    table = trial_table(view.objectives, view.parameters(), trials, intervals=intervals)
    notes = (*steps_notes(trials), *throttled_lines(view))
    return [*rehearsal_lines(view), Line(what), table, *(Line(text) for text in notes)]


def rehearsal_lines(view: StudyView) -> list[Line]:
    """Return what is not real in a rehearsal, and an empty line; nothing for other studies."""
    return [Line(plain(upper(view.rehearsal)), Tone.WARNING), Line()] if view.rehearsal else []


def trial_table(
    objectives: Sequence[Objective],
    parameters: Sequence[str],
    trials: Iterable[TrialView],
    *,
    intervals: bool = False,
) -> Table:
    """Return a table of trials with columns of fixed width.

    So rows that are printed one by one are aligned.

    Args:
        objectives: Objectives of the study.
        parameters: Names of the searched parameters.
        trials: Trials, a row for each.
        intervals: Show each value's interval below it.
    """
    shown = [name for name in _PARAMETERS if name in parameters]
    rows = (_row(t, objectives, shown, intervals=intervals) for t in trials)
    # with more, a terminal of 80 columns has no room for the note
    gap = 1 if len(objectives) > 2 or ARM in shown else 2
    return Table(_columns(objectives, shown, intervals=intervals), tuple(rows), gap)


def _columns(
    objectives: Sequence[Objective], shown: Sequence[str], *, intervals: bool
) -> tuple[Column, ...]:
    width = _INTERVAL_WIDTH if intervals else None
    if len(objectives) > 2:
        width = 10
    titles = [
        [
            *textwrap.wrap(plain(o.title), min(width or 12, 12)),
            *(textwrap.wrap(plain(o.unit), width or _INTERVAL_WIDTH) or [""]),
        ]
        for o in objectives
    ]
    height = max(2, *map(len, titles))

    def column(lines: Sequence[str], width: int | None) -> Column:
        heading = "\n".join([""] * (height - len(lines)) + list(lines))
        return Column(heading, width is not None, width, folds=True, stretches=width is None)

    return (
        column(["#"], 3),
        *(column([HEADINGS[name]], _PARAMETERS[name]) for name in shown),
        *(column(title, width or max(8, *map(len, title))) for title in titles),
        column(["accepted", "tok/step"], 8),
        column(["speed-up", "×"], 8),
        column(["note"], None),
    )


def _row(
    trial: TrialView, objectives: Sequence[Objective], shown: Sequence[str], *, intervals: bool
) -> Row:
    cells = [str(trial.number)]
    cells += [value_text(trial.point[name]) if name in trial.point else "" for name in shown]
    for o in objectives:
        bounds = (trial.intervals or {}).get(o.name) if intervals else None
        cells.append(value_and_bounds(trial.value(o), bounds, "\n"))
    cells += [trial.length_text, optional(trial.speedup, ".2f")]
    cells.append(", ".join(filter(None, [note(trial), *other_parameters(trial.point)])))
    tone = Tone.FAILED if trial.state == "failed" else Tone.GOOD if trial.front else Tone.NONE
    return Row(tuple(cells), tone)


def note(trial: TrialView) -> str:
    """Return the remarks on a trial in a few words: ``baseline, front``."""
    if trial.state == "failed":
        return f"failed: {trial.failure_kind or 'unknown'}"
    words = ["baseline" if trial.baseline else "", "front" if trial.front else ""]
    words.append("" if trial.reused is None else "reused")
    words.append("" if trial.confirms is None else f"confirms #{trial.confirms}")
    words.append("" if trial.replicates is None else f"repeats #{trial.replicates}")
    words.append(f"mean of {trial.launches}" if trial.launches > 1 else "")
    words.append("ended early" if trial.truncated else "")
    words.append("lossy" if trial.lossy else "")
    words.append(word_of(trial.certificate))
    words.append(slot_text(trial.slot))
    words += [w.partition(":")[0] for w in trial.warnings]
    if trial.state != "complete":
        words.append(trial.state)
    return ", ".join(filter(None, words))
