"""Common steps of commands: choose the best trial, draw, print warnings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import NothingUsable, UserError

if TYPE_CHECKING:  # a command imports what it needs when it runs: --help answers at once
    from autotune.cli.console import Ui
    from autotune.results.views import StudyView, TrialView
    from autotune.storage.store import Store
    from autotune.study.files import LoadedStudy


def best_trial(
    view: StudyView, objective: str | None = None, *, balanced: bool = False
) -> TrialView:
    """Return the best trial by one objective, the study's first one by default, or by all.

    Raises:
        UserError: the study has no such objective.
        NothingUsable: no trial has results that can win.
    """
    named = {o.name: o for o in view.objectives}
    if objective is not None and objective not in named:
        raise UserError(f"--objective: this study has no {objective}; it has {', '.join(named)}")
    trial = view.best(named[objective] if objective else None, balanced=balanced)
    if trial is None:
        from autotune.results.views import why_no_best

        raise NothingUsable(f"{view.name}: {why_no_best(view)}; `autotune status` shows why")
    return trial


def serving_command(store: Store, name: str, trial: TrialView) -> str:
    """Return the command that serves a trial's point in production."""
    from autotune.output.export.write import shell_command

    return shell_command(store, name, trial)


def serving_note(store: Store, name: str, trial: TrialView, *, alone: bool = False) -> str | None:
    """Return what to know of that command; None: nothing, and it was measured on this machine.

    Args:
        store: The database of the study.
        name: Name of the study.
        trial: The trial that is served.
        alone: Whether the command is printed without the verdict on its output.
    """
    from autotune.output.export.served import served
    from autotune.results.certificates import output_line
    from autotune.study.ways import LOSSY

    output = trial.certificate
    unsure = output is not None and not output.is_good and not trial.lossy
    notes = [
        f"{LOSSY}." if trial.lossy else "",
        output_line(output, trial.number) if output is not None and unsure and alone else "",
        served(store, name, trial).note or "",
    ]
    return " ".join(filter(None, notes)) or None


def said_of_all(store: Store, view: StudyView) -> list[str]:
    """Return the sentences on all settings of a study; empty: nothing is to be said."""
    from autotune.results.flatness import statement_of

    found = statement_of(store, view)
    return [] if found is None else found.lines(view.objectives)


def say_budget(ui: Ui, store: Store, view: StudyView, trial: TrialView) -> None:
    """Print from which MNBT on the trial's point is the same, if there is such a one."""
    from autotune.results.budget_note import budget_note

    if note := budget_note(store, view, trial):
        ui.prose(note)


def say_trust(ui: Ui, loaded: LoadedStudy) -> None:
    """Print that a model's own code will run, if that is so."""
    from autotune.engine.command import runs_model_code

    if runs_model_code(loaded.spec):
        ui.message("trust-remote-code is set: Python code that comes with the model will run")


def draw(view: StudyView, folder: Path, *, chosen: bool = False) -> list[Path]:
    """Write the plots of the Pareto front and return those that could be made here.

    Args:
        view: The study.
        folder: Where they go.
        chosen: Whether the user can choose the folder, as the message then says.

    Raises:
        UserError: the folder cannot be written.
    """
    from autotune.output.figures.browser import write_html, write_png
    from autotune.output.figures.pareto import pareto_figure
    from autotune.output.figures.pareto3d import front_figure

    figure = front_figure(view) if len(view.objectives) == 3 else pareto_figure(view)
    html, png = folder / "pareto.html", folder / "pareto.png"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_html(figure, html, view.name)
        return [html, png] if write_png(figure, png) else [html]
    except OSError as e:
        hint = "; give another --out" if chosen else ""
        raise UserError(f"{folder}: cannot be written: {e.strerror}{hint}") from e
