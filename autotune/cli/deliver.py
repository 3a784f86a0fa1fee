"""Commands that hand something out: export, report, pareto, dashboard, copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotune.cli.common import best_trial, draw
from autotune.cli.options import DatabaseType, PathType, database_option, study_option

if TYPE_CHECKING:  # a command imports what it needs when it runs: --help answers at once
    from autotune.output.export.choice import Chosen
    from autotune.results.views import StudyView
    from autotune.storage.location import Database


@click.command()
@database_option
@study_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["shell", "vllm-config", "compose", "kubernetes", "systemd"]),
    default="shell",
    show_default=True,
    help="Format of the output.",
)
@click.option("--objective", help="Choose by this objective. Default: the study's first.")
@click.option("--balanced", is_flag=True, help="Choose by all objectives, equally weighted.")
@click.option("--trial", type=click.IntRange(0, 10**9), help="Export this trial instead.")
@click.option(
    "--out",
    type=PathType(dir_okay=False, path_type=Path),
    help="File to write; an existing file is not overwritten. Default: the terminal.",
)
@click.option(
    "--host", help="Address to listen on; with compose, to publish on. Default: 127.0.0.1."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on.",
)
@click.option("--vllm", "version", help="Target vLLM version. Default: the measured one.")
@click.option(
    "--uncertified",
    is_flag=True,
    help="Export a point although `autotune verify` found that its answers differ.",
)
def export(
    database: Database,
    study: str | None,
    form: str,
    objective: str | None,
    balanced: bool,
    trial: int | None,
    out: Path | None,
    host: str | None,
    port: int,
    version: str | None,
    uncertified: bool,
) -> None:
    """Write the winner's configuration for production.

    Formats: shell script, vLLM config, Docker Compose, Kubernetes and systemd. Secrets appear by
    name only, and the exported server does not use autotune's API key.

    \b
    Examples:
      autotune export --format compose --out compose.yaml
      autotune export --format kubernetes --objective p95_latency
    """
    from autotune.output.export.choice import refuse_fault
    from autotune.output.export.endpoint import Endpoint
    from autotune.output.export.job import Format
    from autotune.output.export.write import export as text_of
    from autotune.output.export.write import write
    from autotune.results.trials import study_view
    from autotune.storage.store import opened

    if (objective is not None) + balanced + (trial is not None) > 1:
        raise click.UsageError("--objective, --balanced and --trial exclude each other")
    with opened(database) as store:
        view = study_view(store, store.pick_study(study))
        choice = _choice(view, trial, objective, balanced=balanced)
        if not uncertified:
            refuse_fault(choice.trial)
        text = text_of(
            store,
            view,
            choice,
            Format(form),
            where=Endpoint(host, port),
            version=version,
            file=out.name if out else None,
        )
    if out is None:
        click.echo(text, nl=False)
    else:
        write(text, Format(form), out)
        click.echo(out)


def _choice(view: StudyView, trial: int | None, objective: str | None, *, balanced: bool) -> Chosen:
    from autotune.output.export.choice import as_asked, chosen, measured_trial

    if trial is not None:
        return as_asked(view, measured_trial(view, trial))
    best = best_trial(view, objective, balanced=balanced)
    return chosen(view, best, objective=objective, balanced=balanced)


@click.command()
@database_option
@study_option
@click.option(
    "--out",
    type=PathType(dir_okay=False, path_type=Path),
    help="File to write. Default: report.html (.md, .pdf) in the study's own folder.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "md", "pdf"]),
    help="Format of the report. Default: by the ending of --out, else html. PDF needs Chromium.",
)
def report(database: Database, study: str | None, out: Path | None, form: str | None) -> None:
    """Write a report of the study as HTML, Markdown or PDF.

    The report says what to serve, how certain that is, and how it was measured. The HTML is a
    single file that needs no network.

    \b
    Examples:
      autotune report
      autotune report --out report.pdf
    """
    from rich.console import Console

    from autotune.cli.console import Ui
    from autotune.output.report import Format, build, place, write
    from autotune.results.trials import study_view
    from autotune.storage.store import opened

    ui = Ui(Console(stderr=True, highlight=False))
    with opened(database) as store:
        name = store.pick_study(study)
        store.load_study(name)  # refuses a false name, before a folder is made of it
        path, kind = place(out, None if form is None else Format(form), database, name)
        with ui.waiting("writing the report"):
            write(build(store, study_view(store, name)), path, kind)
    click.echo(path)


@click.command()
@database_option
@study_option
@click.option(
    "--out",
    type=PathType(file_okay=False, path_type=Path),
    help="Folder for pareto.html and pareto.png. Default: the study's own folder.",
)
def pareto(database: Database, study: str | None, out: Path | None) -> None:
    """Draw the Pareto front as HTML and PNG.

    The HTML is interactive. The PNG needs Chromium and is left out without it.

    \b
    Example:
      autotune pareto --out plots
    """
    from autotune.results.trials import study_view
    from autotune.storage.names import output_folder
    from autotune.storage.store import opened

    with opened(database) as store:
        view = study_view(store, store.pick_study(study))
    if not any(t.throttled for t in view.trials):  # these are drawn, although none is the best
        best_trial(view)
    for path in draw(view, out or output_folder(database, view.name), chosen=True):
        click.echo(path)


@click.command()
@database_option
@study_option
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8080,
    show_default=True,
    help="Port of the dashboard.",
)
@click.option("--open/--no-open", "open_browser", default=False, help="Open it in a browser.")
def dashboard(database: Database, study: str | None, port: int, open_browser: bool) -> None:
    """Show the study in optuna-dashboard, on 127.0.0.1.

    \b
    Example:
      autotune dashboard --port 8080
    """
    from autotune.output.dashboard import serve

    serve(database, study, port, open_browser, click.echo)


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO", type=DatabaseType(dir_okay=False, path_type=Path))
def copy(source: str, target: Database) -> None:
    """Copy a study to another database.

    All of it is copied, with every launch and request. FROM is a database, or DB:STUDY if it holds
    several. Both are SQLite files or URLs of PostgreSQL. TO is made if missing, and must not have
    the study. A copy that breaks leaves nothing of it.

    \b
    Examples:
      autotune copy autotune.db postgresql+psycopg://host/tuning
      autotune copy postgresql+psycopg://host/tuning:my-study my-study.db
    """
    from autotune.errors import UserError
    from autotune.storage.copying import copy_study
    from autotune.storage.location import parse_named

    named = parse_named(source)
    if named is None:
        raise UserError(f"{source[:200]}: no such database; give FILE.db, FILE.db:STUDY or a URL")
    done = copy_study(*named, target)
    click.echo(
        f"copied {done.study}: {done.trials} trials, {done.launches} launches and "
        f"{done.requests} requests"
    )
