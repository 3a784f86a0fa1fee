"""Commands that show what a database holds: status, best, compare, predict, explain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from autotune.cli.common import (
    best_trial,
    said_of_all,
    say_budget,
    say_trust,
    serving_command,
    serving_note,
)
from autotune.cli.options import acceptance_lengths, database_option, share, study_option

if TYPE_CHECKING:  # a command imports what it needs when it runs: --help answers at once
    from autotune.results.views import TrialView
    from autotune.storage.location import Database

REGRESSION = 3
INTERRUPTED = (
    "No run is under way on this database: trials that say running were interrupted, and the same "
    "command launches them again."
)


@click.command()
@database_option
@study_option
@click.option("--json", "as_json", is_flag=True, help="Print all trials, or the one, as JSON.")
@click.option("--trial", type=click.IntRange(0, 10**9), help="Show everything about this trial.")
@click.option("--time", "times", is_flag=True, help="Show how long each stage of a trial took.")
def status(
    database: Database, study: str | None, as_json: bool, trial: int | None, times: bool
) -> None:
    """Show the progress and all trials, with reasons for failures.

    \b
    Examples:
      autotune status --db autotune.db
      autotune status --trial 7
      autotune status --time
    """
    from autotune.results.trials import study_view
    from autotune.storage.lease import is_free
    from autotune.storage.store import opened

    if times and trial is not None:
        raise click.UsageError("--time and --trial exclude each other")
    with opened(database) as store:
        name = store.pick_study(study)
        if trial is not None and as_json:
            from autotune.results.trial_story import trial_json

            click.echo(json.dumps(trial_json(store, name, trial), indent=2))
            return
        if trial is not None:
            from autotune.results.text import plain
            from autotune.results.trial_story import trial_story

            for line in trial_story(store, name, trial):
                click.echo(plain(line))
            return
        if times:
            from autotune.results.timings import time_json, time_lines, time_view

            spent = time_view(store, name)
            if as_json:
                click.echo(json.dumps(time_json(spent), indent=2))
            else:
                click.echo("\n".join(time_lines(spent)))
            return
        view = study_view(store, name)
    if as_json:
        from autotune.results.rows import study_rows

        click.echo(json.dumps(study_rows(view), indent=2))
    else:
        from autotune.cli.console import Ui

        Ui().status(view)
        if any(t.state == "running" for t in view.trials) and is_free(database):
            click.echo(INTERRUPTED)


@click.command()
@database_option
@study_option
@click.option("--json", "as_json", is_flag=True, help="Print the Pareto front as a JSON list.")
@click.option("--shell", is_flag=True, help="Print only the serving command.")
@click.option("--objective", help="Choose by this objective. Default: the study's first.")
@click.option("--balanced", is_flag=True, help="Choose by all objectives, equally weighted.")
def best(
    database: Database,
    study: str | None,
    as_json: bool,
    shell: bool,
    objective: str | None,
    balanced: bool,
) -> None:
    """Show the Pareto front, the confirmation and the winner.

    The winner comes with the command that serves it. A trial is on the Pareto front if no other
    trial beats it in one objective without losing in another. --balanced weighs 1 % of each
    objective the same.

    \b
    Examples:
      autotune best
      autotune best --shell --objective p95_latency
    """
    from autotune.cli.console import Ui
    from autotune.results.rows import trial_row
    from autotune.results.trials import study_view
    from autotune.storage.store import opened

    if as_json and shell:
        raise click.UsageError("--json and --shell exclude each other")
    if balanced and objective:
        raise click.UsageError("--balanced and --objective exclude each other")
    with opened(database) as store:
        view = study_view(store, store.pick_study(study))
        trial = best_trial(view, objective, balanced=balanced)
        if as_json:
            from autotune.results.flatness import statement_of

            found = statement_of(store, view)
            every = {"all_settings": None if found is None else found.to_json()}
            front = [trial_row(view, t) | every for t in view.trials if t.front]
            click.echo(json.dumps(front, indent=2))
        elif shell:
            click.echo(serving_command(store, view.name, trial))
            if note := serving_note(store, view.name, trial, alone=True):
                click.echo(f"autotune: {note}", err=True)
        else:
            ui = Ui()
            command = serving_command(store, view.name, trial)
            ui.best(view, trial, command, said_of_all(store, view))
            if note := serving_note(store, view.name, trial):
                ui.prose(note)
            say_budget(ui, store, view, trial)
            say_trust(ui, store.load_study(view.name)[0])


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--study-a", help="Study of A if its database holds several.")
@click.option("--study-b", help="Study of B if its database holds several.")
@click.option(
    "--threshold",
    default="5%",
    show_default=True,
    callback=share,
    metavar="SHARE",
    help="Largest difference that does not matter.",
)
@click.option("--objective", help="Compare this objective only.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def compare(
    a: str,
    b: str,
    study_a: str | None,
    study_b: str | None,
    threshold: float,
    objective: str | None,
    as_json: bool,
) -> None:
    """Compare two studies and report regressions.

    Use it before and after an upgrade, or for two GPUs or drafts. A and B are databases, or
    DB:STUDY. Exit code 3 means that B is certainly worse than A by more
    than the threshold.

    \b
    Examples:
      autotune compare before.db after.db --threshold 3%
      autotune compare autotune.db:draft-1 autotune.db:draft-2 --json
    """
    from rich.console import Console

    from autotune.cli.console import rendered
    from autotune.results.comparison import Where
    from autotune.results.comparison import compare as compare_studies
    from autotune.results.comparison_page import comparison_page

    found = compare_studies(
        Where.parse(a, study_a),
        Where.parse(b, study_b),
        threshold=threshold,
        objective=objective,
    )
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        Console(highlight=False).print(rendered(comparison_page(found)))
    if found.regression:
        click.get_current_context().exit(REGRESSION)


@click.command()
@database_option
@study_option
@click.option(
    "--length",
    "lengths",
    callback=acceptance_lengths,
    metavar="LENGTHS",
    help="Acceptance lengths of other drafts, separated by commas: tokens per step at --at-n. "
    "Default: round ones around the measured one.",
)
@click.option(
    "--at-n",
    type=click.IntRange(1, 1000),
    help="The n of the acceptance lengths. Default: the largest launched one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the predictions as JSON.")
def predict(
    database: Database,
    study: str | None,
    lengths: tuple[float, ...] | None,
    at_n: int | None,
    as_json: bool,
) -> None:
    """Predict tok/s for every n from the acceptance.

    It also predicts tok/s and latency with drafts of other acceptance lengths, and their best n.
    Nothing is launched. For each n that was launched, the prediction error is shown. With arms,
    each draft has a prediction of its own.

    \b
    Examples:
      autotune predict --json
      autotune predict --length 3.5,4,5 --at-n 15
    """
    from rich.console import Console

    from autotune.cli.console import rendered
    from autotune.results.prediction import Wanted, outlook_page, outlooks
    from autotune.results.tables import Line
    from autotune.results.trial_tables import rehearsal_lines
    from autotune.results.trials import study_view
    from autotune.storage.store import opened

    with opened(database) as store:
        view = study_view(store, store.pick_study(study))
        spec = store.load_study(view.name)[0].spec
        space = spec.to_space()
        wanted = Wanted(lengths, at_n)
        found = outlooks(view, space, wanted, closed=not spec.workload.open_loop)
    if as_json:
        label = {"rehearsal": view.rehearsal} if view.rehearsal else {}
        every = [x.to_json() | label for x in found]
        click.echo(json.dumps(every if space.ways else every[0], indent=2))
    else:
        for i, one in enumerate(found):
            head = [Line()] if i else rehearsal_lines(view)
            page = [*head, *outlook_page(one)]
            Console(highlight=False).print(rendered(page))


@click.command()
@click.argument("study", required=False)
@click.option("--vllm", "version", help="vLLM version to check; it need not be installed.")
@database_option
@click.option("--json", "as_json", is_flag=True, help="Print every point as JSON.")
def explain(study: str | None, version: str | None, database: Database, as_json: bool) -> None:
    """Show which points can launch, and why the others cannot.

    STUDY is a YAML file or the name of a bundled study, as in `autotune run`. Nothing is launched.
    Points that the database has measured are marked.

    \b
    Example:
      autotune explain demo-cpu --vllm 0.26.0
    """
    from autotune.results.rehearsed import with_kept_acceptance
    from autotune.results.space_map import explain as space_map
    from autotune.results.trials import study_view
    from autotune.serving.machine import has_gpu
    from autotune.storage.store import is_there, opened
    from autotune.study.files import load_study

    loaded = load_study(study or ("gemma-4-26b-rtx5090" if has_gpu() else "demo-cpu"))
    trials: Sequence[TrialView] = ()
    if is_there(database):
        with opened(database) as store:
            if loaded.spec.name in store.study_names():
                trials = study_view(store, loaded.spec.name).trials
    found = space_map(with_kept_acceptance(loaded, database), version, trials)
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else "\n".join(found.lines()))
