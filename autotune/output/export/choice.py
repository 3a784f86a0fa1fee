"""The trial of a study that is served, and what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autotune.errors import UserError
from autotune.results.certificates import Verdict, output_line
from autotune.results.text import count, plain, value_with_interval
from autotune.results.views import StudyView, TrialView, verdict_lines


@dataclass(frozen=True)
class Chosen:
    """The point that is served, and why.

    Attributes:
        trial: Trial of the point, with results.
        why: Reason of the choice in one line.
        values: Value of each objective with its unit and interval, in words.
        speedup: Throughput over the baseline's: value, low, high; None: unknown.
    """

    trial: TrialView
    why: str
    values: str
    speedup: tuple[float, float | None, float | None] | None


def chosen(
    view: StudyView, trial: TrialView, *, objective: str | None = None, balanced: bool = False
) -> Chosen:
    """Return what is known of the best trial, which :meth:`StudyView.best` named by the same rule.

    Args:
        view: The study.
        trial: The best trial.
        objective: Name of the objective that decided; the study's first one by default.
        balanced: Whether all objectives decided instead.
    """
    names = [o.name for o in view.objectives]
    index = names.index(objective) if objective else 0
    if view.verdict is None:
        rule = "all objectives" if balanced else plain(view.objectives[index].title)
        return replace(
            as_asked(view, trial),
            why=f"the best by {rule} of single launches, which usually looks better than it is "
            "(selection bias); it was not measured again (`autotune confirm`)",
        )
    choice = view.verdict.balanced if balanced else view.verdict.winners[index]
    values = [
        value_with_interval(e.value, (e.low, e.high), o)
        for o, e in zip(view.objectives, choice.values, strict=True)
    ]
    speedup = None
    if choice.over_baseline is not None and "throughput" in names:
        e = choice.over_baseline[names.index("throughput")]
        speedup = (e.value, e.low, e.high)
    return Chosen(
        trial,
        verdict_lines(view)[-1 if balanced else index],
        _valued(view, values) + f", measured again in {count(trial.confirmed_launches, 'launch')}",
        speedup,
    )


def measured_trial(view: StudyView, number: int) -> TrialView:
    """Return the trial of this number, or the one whose point it measured again.

    Raises:
        UserError: there is no such trial, or it has no results.
    """
    trial = next((t for t in view.trials if t.number == number), None)
    if trial is None:
        raise UserError(
            f"--trial {number}: {view.name} has no such trial; `autotune status` lists them"
        )
    trial = next((t for t in view.trials if t.number == trial.again), trial)
    if trial.state != "complete":
        why = f"{trial.state}: {trial.failure_kind}" if trial.failure_kind else trial.state
        raise UserError(
            f"--trial {number}: has no numbers ({why}); `autotune status` lists those that have"
        )
    return trial


def refuse_fault(trial: TrialView) -> None:
    """Refuse a trial whose answers are not those of n = 0.

    Raises:
        UserError: a verification found that.
    """
    found = trial.certificate
    if found is not None and found.verdict is Verdict.FAULT:
        raise UserError(
            f"{output_line(found, trial.number)} Export another trial with --trial, or this one "
            "with --uncertified"
        )


def as_asked(view: StudyView, trial: TrialView) -> Chosen:
    """Return a trial with the results of its own launches, of the confirmation's if there are any.

    Args:
        view: The study.
        trial: The trial that was named.
    """
    confirmed = trial.confirmed is not None
    numbers = (trial.confirmed if confirmed else trial.values) or {}
    bounds = (trial.confirmed_intervals if confirmed else trial.intervals) or {}
    values = [value_with_interval(numbers[o.name], bounds.get(o.name), o) for o in view.objectives]
    speedup = trial.confirmed_speedup
    if not confirmed and trial.speedup is not None:
        speedup = (trial.speedup, *(trial.speedup_interval or (None, None)))
    launches = trial.confirmed_launches if confirmed else trial.launches
    how = ("measured again in " if confirmed else "") + count(launches, "launch")
    return Chosen(trial, "chosen by its number", f"{_valued(view, values)}, {how}", speedup)


def _valued(view: StudyView, values: Sequence[str]) -> str:
    return ", ".join(f"{plain(o.title)} {v}" for o, v in zip(view.objectives, values, strict=True))
