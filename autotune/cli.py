"""The command line: thin, every command is one call into the library.

Exit codes: 0 done, 1 nothing usable came out, 2 the user's mistake, 3 worse than the study that it
is compared with, 130 interrupted.
"""

from __future__ import annotations

import io
import json
import math
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from autotune._version import __version__
from autotune.errors import AutotuneError, NothingUsable, UserError, in_short, one_line

if TYPE_CHECKING:  # the modules behind a command are imported by it: --help answers at once
    from autotune.storage.store import Store
    from autotune.study.schema import LoadedStudy
    from autotune.tuning.reuse import Source
    from autotune.ui import Ui
    from autotune.views import StudyView, TrialView

F = TypeVar("F", bound=Callable[..., Any])

REGRESSION = 3
INTERRUPTED = 130


class _Group(click.Group):
    """Turns our errors into one line on stderr and the right exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AutotuneError as e:
            click.echo(one_line(f"autotune: {e}"), err=True)
            ctx.exit(e.exit_code)
        except KeyboardInterrupt:
            resumes = ctx.invoked_subcommand in {"run", "confirm", "map"}
            more = "; run the same command again to resume" if resumes else ""
            click.echo(f"autotune: interrupted{more}", err=True)
            ctx.exit(INTERRUPTED)


class _Path(click.Path):
    """A path that can be looked at; files are regular ones, and no special ones such as /dev/null.

    Click leaves it to its caller that a path is too long or has a character that no path has.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path, raw = Path(value), str(value).encode(errors="replace")
        if b"\0" in raw or raw.decode() != str(value):  # SQLite takes UTF-8 only
            self.fail(f"{str(value)[:60]!r} has a character that a path cannot have", param, ctx)
        if value == "":
            self.fail("a path cannot be empty", param, ctx)
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):  # to be made, or said by who opens it
            mode = stat.S_IFREG
        except OSError as e:
            self.fail(f"{str(value)[:60]!r}: {e.strerror}", param, ctx)
        if self.file_okay and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            self.fail(f"{str(value)[:60]!r} is not a regular file", param, ctx)
        return super().convert(value, param, ctx)


def _a_number(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """Refuses NaN, which click's ranges let through."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number.")
    return value


def _database(f: F) -> F:
    return click.option(
        "--db",
        "database",
        type=_Path(dir_okay=False, path_type=Path),
        default=Path("autotune.db"),
        show_default=True,
        help="SQLite database of the studies.",
    )(f)


def _study(f: F) -> F:
    return click.option("--study", help="Study to use if the database holds several.")(f)


def _timeout(f: F) -> F:
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        callback=_a_number,
        metavar="MINUTES",
        help="Start no new trial after this time.",
    )(f)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="autotune")
def main() -> None:
    """Find the speculative-decoding settings that serve a model fastest.

    \b
    autotune run --trials 40        search with real vLLM servers
    autotune best --shell           print the command for production
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal without × must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@main.command()
@click.argument("study", required=False)
@click.option(
    "--trials",
    type=click.IntRange(1, 10**6),
    help="Total number of finished trials, earlier ones included. Default: `budget.trials` of the "
    "study.",
)
@_database
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Random seed of a new study.",
)
@_timeout
@click.option(
    "--until-converged/--all-trials",
    default=True,
    help="Stop when no further launch is expected to be worth its time (the default; see "
    "`budget.converged` of the study), or use up all trials.",
)
@click.option(
    "--reuse",
    multiple=True,
    metavar="DB[:STUDY]",
    help="Copy the trials of an earlier study with the same server, machine and workload instead "
    "of launching them again. They do not count toward --trials. Can be repeated.",
)
def run(
    study: str | None,
    trials: int | None,
    database: Path,
    seed: int,
    timeout: float | None,
    until_converged: bool,
    reuse: tuple[str, ...],
) -> None:
    """Search for the best settings with real vLLM servers.

    Each trial launches one server. The search stops after --trials trials, or earlier when no
    further launch is expected to be worth its time. Run the same command again to resume. STUDY is
    a YAML file or the name of a bundled study. Default: gemma-4-26b-rtx5090 with an NVIDIA GPU,
    demo-cpu without one.

    \b
    Examples:
      autotune run studies/gemma-4-26b-rtx5090.yaml --trials 40
      autotune run wider.yaml --db wider.db --reuse autotune.db
    """
    from autotune.serving.machine import has_gpu
    from autotune.study.schema import load_study
    from autotune.tuning.reuse import Source

    if study is None:
        study = "gemma-4-26b-rtx5090" if has_gpu() else "demo-cpu"
    loaded = load_study(study)
    budget = loaded.spec.budget
    _run(
        loaded,
        database,
        trials or budget.trials,
        seed,
        timeout or budget.timeout_minutes,
        stop_below=None if until_converged else 0.0,
        reuse=[Source.parse(text) for text in reuse],
    )


@main.command()
@click.argument("study")
@click.option(
    "--launches",
    type=click.IntRange(4, 10**6),
    default=8,
    show_default=True,
    help="Number of launches, over all candidates.",
)
@_database
@_timeout
def confirm(study: str, launches: int, database: Path, timeout: float | None) -> None:
    """Launch the winners and the baseline again (A B B A).

    `autotune run` reserves its last trials for this confirmation; `confirm` adds more launches,
    interleaved.
    STUDY is the file or bundled name that was run. Run the same command again to resume.

    \b
    Example:
      autotune confirm studies/gemma-4-26b-rtx5090.yaml --launches 12
    """
    from autotune.study.schema import load_study

    _run(load_study(study), database, launches, 0, timeout, confirm=True)


def _run(
    loaded: LoadedStudy,
    database: Path,
    trials: int,
    seed: int,
    minutes: float | None,
    *,
    confirm: bool = False,
    stop_below: float | None = None,
    reuse: Sequence[Source] = (),
) -> None:
    import optuna

    from autotune.tuning.prepare import prepare
    from autotune.tuning.study_run import run_study
    from autotune.tuning.supervise import StopReason
    from autotune.ui import Ui

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ui = Ui()
    with ui:
        prepared = prepare(loaded, ui)
        _say_trust(ui, loaded)
        reason = run_study(
            prepared,
            database=database,
            trials=trials,
            seed=seed,
            timeout_s=minutes * 60 if minutes else None,
            progress=ui,
            confirm=confirm,
            stop_below=stop_below,
            reuse=reuse,
        )
    if reason is not StopReason.DONE:
        how = "done" if reason is StopReason.CONVERGED else "stopped"
        ui.message(f"{how}: {reason}")
    _finish(ui, database, loaded.spec.name)


def _say_trust(ui: Ui, loaded: LoadedStudy) -> None:
    """Says it where a model's own code is run."""
    from autotune.engine.command import runs_model_code

    if runs_model_code(loaded.spec):
        ui.message("trust-remote-code is set: Python code that comes with the model will run")


def _finish(ui: Ui, database: Path, name: str) -> None:
    """Plots, the dashboard's pages and the summary of a study."""
    from autotune.dashboard import publish
    from autotune.report import build
    from autotune.results import study_view
    from autotune.storage.failures import database_errors
    from autotune.storage.lease import output_folder
    from autotune.storage.store import opened

    @contextmanager
    def not_worth_a_run(what: str, again: str) -> Iterator[None]:
        """Says in one line what was not made: the numbers are in the database."""
        try:
            with database_errors(database):
                yield
        except Exception as e:  # noqa: BLE001 – whatever it is
            ui.message(f"{what}: {in_short(e)}. No measurement is lost; {again}")

    with opened(database) as store:
        view = study_view(store, name)
        trial = _best(view)
        plots: list[Path] = []
        with ui.waiting("drawing the plots"):
            with not_worth_a_run("plots not drawn", "draw them with `autotune pareto`"):
                plots = _draw(view, output_folder(database, name))
            with not_worth_a_run("dashboard not updated", "update it with `autotune dashboard`"):
                publish(store, view, build(store, view))
        ui.summary(view, _serve(store, name, trial), database, plots)


def _draw(view: StudyView, folder: Path) -> list[Path]:
    """Writes the front's plots; returns those that could be made here."""
    from autotune.plots import pareto_figure, write_html, write_png
    from autotune.plots3d import front_figure

    figure = front_figure(view) if len(view.objectives) == 3 else pareto_figure(view)
    html, png = folder / "pareto.html", folder / "pareto.png"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_html(figure, html, view.name)
        return [html, png] if write_png(figure, png) else [html]
    except OSError as e:
        raise UserError(f"{folder}: cannot be written: {e.strerror}") from e


def _best(view: StudyView, objective: str | None = None, *, balanced: bool = False) -> TrialView:
    """The best trial by one objective, the study's first one by default, or by all."""
    named = {o.name: o for o in view.objectives}
    if objective is not None and objective not in named:
        raise UserError(f"--objective: this study has no {objective}; it has {', '.join(named)}")
    trial = view.best(named[objective] if objective else None, balanced=balanced)
    if trial is None:
        raise NothingUsable(f"{view.name}: no trial has results; `autotune status` shows why")
    return trial


def _serve(store: Store, name: str, trial: TrialView) -> str:
    """The command that serves a trial's point in production."""
    from autotune.export import shell_command

    return shell_command(store, name, trial)


@main.command()
@_database
@_study
@click.option("--json", "as_json", is_flag=True, help="Print all trials as JSON.")
@click.option("--trial", type=click.IntRange(0, 10**9), help="Show everything about this trial.")
@click.option("--time", "times", is_flag=True, help="Show how long each stage of a trial took.")
def status(
    database: Path, study: str | None, as_json: bool, trial: int | None, times: bool
) -> None:
    """Show the progress and all trials, with reasons for failures.

    \b
    Examples:
      autotune status --db autotune.db
      autotune status --trial 7
      autotune status --time
    """
    from autotune.results import study_view, trial_story
    from autotune.stages import time_json, time_lines, time_view
    from autotune.storage.store import opened
    from autotune.ui import Ui
    from autotune.views import plain

    if as_json and trial is not None:
        raise click.UsageError("--json and --trial exclude each other")
    if times and trial is not None:
        raise click.UsageError("--time and --trial exclude each other")
    with opened(database) as store:
        name = store.pick_study(study)
        if trial is not None:
            for line in trial_story(store, name, trial):
                click.echo(plain(line))
            return
        if times:
            spent = time_view(store, name)
            if as_json:
                click.echo(json.dumps(time_json(spent), indent=2))
            else:
                click.echo("\n".join(time_lines(spent)))
            return
        view = study_view(store, name)
    if as_json:
        click.echo(json.dumps([_trial_json(view, t) for t in view.trials], indent=2))
    else:
        Ui().status(view)


@main.command()
@_database
@_study
@click.option("--json", "as_json", is_flag=True, help="Print the front as a JSON list.")
@click.option("--shell", is_flag=True, help="Print only the serving command.")
@click.option("--objective", help="Choose by this objective. Default: the study's first.")
@click.option("--balanced", is_flag=True, help="Choose by all objectives, equally weighted.")
def best(
    database: Path,
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
    from autotune.results import study_view
    from autotune.storage.store import opened
    from autotune.ui import Ui

    if as_json and shell:
        raise click.UsageError("--json and --shell exclude each other")
    if balanced and objective:
        raise click.UsageError("--balanced and --objective exclude each other")
    with opened(database) as store:
        view = study_view(store, store.pick_study(study))
        trial = _best(view, objective, balanced=balanced)
        if as_json:
            front = [_trial_json(view, t) for t in view.trials if t.front]
            click.echo(json.dumps(front, indent=2))
        elif shell:
            click.echo(_serve(store, view.name, trial))
        else:
            ui = Ui()
            ui.best(view, trial, _serve(store, view.name, trial))
            _say_trust(ui, store.load_study(view.name)[0])


@main.command()
@_database
@_study
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
    type=_Path(dir_okay=False, path_type=Path),
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
def export(
    database: Path,
    study: str | None,
    form: str,
    objective: str | None,
    balanced: bool,
    trial: int | None,
    out: Path | None,
    host: str | None,
    port: int,
    version: str | None,
) -> None:
    """Write the winner's configuration for production.

    Formats: shell script, vLLM config, Docker Compose, Kubernetes and systemd. Secrets appear by
    name only, and the exported server does not use autotune's API key.

    \b
    Examples:
      autotune export --format compose --out compose.yaml
      autotune export --format kubernetes --objective p95_latency
    """
    from autotune.export import Endpoint, Format, as_asked, chosen, measured_trial, write
    from autotune.export import export as text_of
    from autotune.results import study_view
    from autotune.storage.store import opened

    if (objective is not None) + balanced + (trial is not None) > 1:
        raise click.UsageError("--objective, --balanced and --trial exclude each other")
    with opened(database) as store:
        view = study_view(store, store.pick_study(study))
        if trial is not None:
            choice = as_asked(view, measured_trial(view, trial))
        else:
            best = _best(view, objective, balanced=balanced)
            choice = chosen(view, best, objective=objective, balanced=balanced)
        where = Endpoint(host, port)
        text = text_of(
            store,
            view,
            choice,
            Format(form),
            where=where,
            version=version,
            file=out.name if out else None,
        )
    if out is None:
        click.echo(text, nl=False)
    else:
        write(text, Format(form), out)
        click.echo(out)


def _threshold(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    """A share, such as ``5%`` or ``0.05``."""
    number, percent, rest = value.strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if rest or not 0 <= share < 1:
        raise click.BadParameter(f"{value[:60]!r} is not a share below 1, such as 5% or 0.05")
    return share


@main.command()
@click.argument("a")
@click.argument("b")
@click.option("--study-a", help="Study of A if its database holds several.")
@click.option("--study-b", help="Study of B if its database holds several.")
@click.option(
    "--threshold",
    default="5%",
    show_default=True,
    callback=_threshold,
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

    from autotune.comparison import Where, tables
    from autotune.comparison import compare as compare_studies

    found = compare_studies(
        Where.parse(a, study_a),
        Where.parse(b, study_b),
        threshold=threshold,
        objective=objective,
    )
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        Console(highlight=False).print(tables(found))
    if found.regression:
        click.get_current_context().exit(REGRESSION)


_JSON_NAMES = {"throughput": "tok_s", "p95_latency": "p95_ms"}


def _trial_json(view: StudyView, t: TrialView) -> dict[str, Any]:
    """A trial as plain data; objectives by name with their unit, the usual two by short name."""
    values = t.values or {}
    short = {_JSON_NAMES[o]: v for o, v in values.items() if o in _JSON_NAMES}
    return {
        "trial": t.number,
        "state": t.state,
        "params": dict(t.point),
        **short,
        "objectives": {
            o.name: {
                "value": values[o.name],
                "interval": (t.intervals or {}).get(o.name),
                "interval_within_launch": (t.within or {}).get(o.name),
                "unit": o.unit,
                "direction": o.direction,
            }
            for o in view.objectives
            if o.name in values
        },
        "acceptance_length": t.acceptance_length,
        "acceptance_per_position": list(t.acceptance_per_position),
        "speedup": t.speedup,
        "speedup_interval": t.speedup_interval,
        "launches": t.launches,
        "requests": t.requests,
        "stop": t.stop,
        "truncated": t.truncated,
        "outdated": t.outdated,
        "recomputed": t.recomputed,
        "warnings": list(t.warnings),
        "baseline": t.baseline,
        "front": t.front,
        "replicates": t.replicates,
        "confirms": t.confirms,
        "reused": t.reused and asdict(t.reused),
        "confirmed": t.confirmed
        and {
            "launches": t.confirmed_launches,
            "values": t.confirmed,
            "intervals": t.confirmed_intervals,
            "speedup": t.confirmed_speedup,
            "chosen": _chosen_json(view, t.number),
        },
        "failure_kind": t.failure_kind,
        "failure_reason": t.failure_reason,
        "seconds": t.seconds,
    }


def _chosen_json(view: StudyView, number: int) -> dict[str, Any]:
    """By which rules the confirmation chose a trial, what it gives, and how sure that is."""
    if view.verdict is None:
        return {}
    names = [o.name for o in view.objectives]
    choices = [*zip(names, view.verdict.winners, strict=True), ("balanced", view.verdict.balanced)]
    return {
        rule: {
            "values": {n: asdict(e) for n, e in zip(names, c.values, strict=True)},
            "over_baseline": c.over_baseline
            and {n: asdict(e) for n, e in zip(names, c.over_baseline, strict=True)},
            "runner_up": c.runner_up,
            "chance": c.chance,
            "ties": list(c.ties),
        }
        for rule, c in choices
        if c.number == number
    }


@main.command()
@_database
@_study
@click.option(
    "--out",
    type=_Path(file_okay=False, path_type=Path),
    help="Folder for pareto.html and pareto.png. Default: the study's own folder.",
)
def pareto(database: Path, study: str | None, out: Path | None) -> None:
    """Draw the Pareto front as HTML and PNG.

    The HTML is interactive. The PNG needs Chromium and is left out without it.

    \b
    Example:
      autotune pareto --out plots
    """
    from autotune.results import study_view
    from autotune.storage.lease import output_folder
    from autotune.storage.store import opened

    with opened(database) as store:
        view = study_view(store, store.pick_study(study))
    _best(view)
    for path in _draw(view, out or output_folder(database, view.name)):
        click.echo(path)


@main.command()
@_database
@_study
@click.option(
    "--out",
    type=_Path(dir_okay=False, path_type=Path),
    help="File to write. Default: report.html (.md, .pdf) in the study's own folder.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "md", "pdf"]),
    help="Format of the report. Default: by the ending of --out, else html. PDF needs Chromium.",
)
def report(database: Path, study: str | None, out: Path | None, form: str | None) -> None:
    """Write a report of the study as HTML, Markdown or PDF.

    The report says what to serve, how certain that is, and how it was measured. The HTML is a
    single file that needs no network.

    \b
    Examples:
      autotune report
      autotune report --out report.pdf
    """
    import optuna
    from rich.console import Console

    from autotune.report import Format, build, place, write
    from autotune.results import study_view
    from autotune.storage.store import opened
    from autotune.ui import Ui

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ui = Ui(Console(stderr=True, highlight=False))
    with opened(database) as store:
        name = store.pick_study(study)
        store.load_study(name)  # refuses a false name, before a folder is made of it
        path, kind = place(out, None if form is None else Format(form), database, name)
        with ui.waiting("writing the report"):
            write(build(store, study_view(store, name)), path, kind)
    click.echo(path)


@main.command()
@_database
@_study
@click.option("--json", "as_json", is_flag=True, help="Print the predictions as JSON.")
def predict(database: Path, study: str | None, as_json: bool) -> None:
    """Predict tok/s for every n from the acceptance.

    It also predicts tok/s with better drafts. Nothing is launched. For each n that was launched,
    the prediction error is shown.

    \b
    Example:
      autotune predict --json
    """
    from rich.console import Console

    from autotune.prediction import outlook, tables
    from autotune.results import study_view
    from autotune.storage.store import opened

    with opened(database) as store:
        view = study_view(store, store.pick_study(study))
        found = outlook(view, store.load_study(view.name)[0].spec.to_space())
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        Console(highlight=False).print(tables(found))


@main.command()
@_database
@_study
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8080,
    show_default=True,
    help="Port of the dashboard.",
)
@click.option("--open/--no-open", "open_browser", default=False, help="Open it in a browser.")
def dashboard(database: Path, study: str | None, port: int, open_browser: bool) -> None:
    """Show the study in optuna-dashboard, on 127.0.0.1.

    \b
    Example:
      autotune dashboard --port 8080
    """
    from autotune.dashboard import serve

    serve(database, study, port, open_browser, click.echo)


@main.command()
@_database
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def ps(database: Path, as_json: bool) -> None:
    """List autotune's running servers and their owners.

    \b
    Example:
      autotune ps
    """
    from autotune.tuning.recovery import living_json, living_lines

    if as_json:
        click.echo(json.dumps(living_json(database), indent=2))
        return
    click.echo("\n".join(living_lines(database) or ["no autotune server is running here"]))


@main.command()
@_database
def reap(database: Path) -> None:
    """Stop orphaned servers.

    A server is orphaned when its autotune is no longer running. `run` does this for its own
    database before it starts; `reap` stops the others as well.

    \b
    Example:
      autotune reap
    """
    from autotune.tuning.recovery import reap as end_ownerless

    lines = 0
    for line in end_ownerless(database):
        click.echo(line)
        lines += 1
    if not lines:
        click.echo("no autotune server is running here")


@main.command()
@click.argument("study")
@click.option(
    "--n",
    type=click.IntRange(0, 10**6),
    help="Tokens drafted per step. Default: 3, or the baseline's n if 3 cannot launch.",
)
@click.option(
    "--rounds",
    type=click.IntRange(2, 10**6),
    default=2,
    show_default=True,
    help="Number of runs of each client.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.option(
    "--out",
    type=_Path(file_okay=False, path_type=Path),
    help="New folder for the raw data. Default: inside the study's own folder.",
)
def crosscheck(study: str, n: int | None, rounds: int, as_json: bool, out: Path | None) -> None:
    """Measure one server with autotune and `vllm bench serve`.

    Both clients send the same requests alternately. The command says whether they agree.

    \b
    Example:
      autotune crosscheck demo-cpu --rounds 4
    """
    from rich.console import Console

    from autotune.results.client_agreement import Agreement
    from autotune.study.schema import load_study
    from autotune.tuning.crosscheck import crosscheck as compare
    from autotune.tuning.prepare import prepare
    from autotune.tuning.supervise import signals
    from autotune.ui import Ui

    ui = Ui(Console(stderr=True, highlight=False))
    with ui, signals():
        prepared = prepare(load_study(study), ui)
        _say_trust(ui, prepared.loaded)
        result = compare(prepared, n=n, rounds=rounds, out=out, progress=ui)
    click.echo(json.dumps(result.to_json(), indent=2) if as_json else "\n".join(result.lines()))
    if differing := result.figures(Agreement.DIFFER):
        raise NothingUsable(f"{result.study}: the clients differ in {', '.join(differing)}")


def _loads(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    """Parse concurrencies such as ``1,2,4``: ascending, each once."""
    try:
        loads = sorted({int(word) for word in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value[:60]!r} is not a list such as 1,2,4,8") from None
    if not 1 <= loads[0] <= loads[-1] <= 10**4:
        raise click.BadParameter("a concurrency must be from 1 to 10000")
    return tuple(loads)


@main.command("map")
@click.argument("study")
@click.option(
    "--concurrency",
    "loads",
    default="1,2,4,8,16",
    show_default=True,
    callback=_loads,
    metavar="LOADS",
    help="Concurrencies to measure, separated by commas.",
)
@_database
@click.option(
    "--launches",
    type=click.IntRange(2, 10**6),
    default=6,
    show_default=True,
    help="Most values of n to launch, n = 0 included. Checking a schedule takes one more.",
)
@_timeout
@click.option("--show", is_flag=True, help="Show the latest load sweep; launch nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the load sweep as JSON.")
@click.option(
    "--plot",
    type=_Path(dir_okay=False, path_type=Path),
    help="HTML file to write: speed-up by concurrency.",
)
def load_map(
    study: str,
    loads: tuple[int, ...],
    database: Path,
    launches: int,
    timeout: float | None,
    show: bool,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Run a load sweep: the best n at each concurrency.

    It also shows the concurrency above which drafting stops paying. STUDY need not have been run.
    If it has, its best trial sets the other parameters. Run the same command again to resume; a
    finished load sweep is only shown.

    \b
    Example:
      autotune map demo-cpu --concurrency 1,2,4,8 --plot map.html
    """
    from rich.console import Console

    from autotune.mapresults import stored_view
    from autotune.mapview import map_json, map_lines
    from autotune.storage.store import opened
    from autotune.study.schema import load_study
    from autotune.tuning.load_map import map_study
    from autotune.tuning.prepare import prepare
    from autotune.tuning.supervise import StopReason
    from autotune.ui import Ui

    if plot is not None and not plot.parent.is_dir():
        raise UserError(f"{plot}: the folder {plot.parent} does not exist; make it first")
    loaded = load_study(study)
    ui = Ui(Console(stderr=True, highlight=False))
    if show:
        with opened(database) as store:
            view = stored_view(store, loaded, store.fingerprints(loaded))
    else:
        with ui:
            prepared = prepare(loaded, ui)
            _say_trust(ui, loaded)
            view, reason = map_study(
                prepared,
                database=database,
                loads=loads,
                launches=launches,
                timeout_s=timeout * 60 if timeout else None,
                progress=ui,
            )
        if reason is not StopReason.DONE:
            ui.message(f"stopped: {reason}; run the same command again to resume")
    click.echo(json.dumps(map_json(view), indent=2) if as_json else "\n".join(map_lines(view)))
    if plot is not None:
        from autotune.mapplot import write_map

        write_map(view, plot)


@main.command()
@click.argument("study", required=False)
@_database
@click.option("--json", "as_json", is_flag=True, help="Print the checks as a JSON list.")
def doctor(study: str | None, database: Path, as_json: bool) -> None:
    """Check this machine: vLLM, GPU, port, disk, models.

    Each check is one line: ok, or what to do.

    \b
    Examples:
      autotune doctor
      autotune doctor studies/gemma-4-26b-rtx5090.yaml
    """
    from autotune.doctor import checks
    from autotune.study.schema import load_study
    from autotune.ui import Ui

    ui = Ui()
    loaded = load_study(study) if study is not None else None
    with ui.waiting("looking at this machine"):
        found = list(checks(loaded, database))
    if as_json:
        click.echo(json.dumps([asdict(check) for check in found], indent=2))
    else:
        for check in found:
            ui.check(check.name, check.ok, check.text)
    bad = sum(check.ok is False for check in found)
    if bad:
        raise NothingUsable(f"{bad} check{'' if bad == 1 else 's'} failed")


@main.command()
@click.argument("study", required=False)
@click.option("--vllm", "version", help="vLLM version to check; it need not be installed.")
@_database
@click.option("--json", "as_json", is_flag=True, help="Print every point as JSON.")
def explain(study: str | None, version: str | None, database: Path, as_json: bool) -> None:
    """Show which points can launch, and why the others cannot.

    STUDY is a YAML file or the name of a bundled study, as in `autotune run`. Nothing is launched.
    Points that the database has measured are marked.

    \b
    Example:
      autotune explain demo-cpu --vllm 0.26.0
    """
    from autotune.explain import explain as space_map
    from autotune.results import study_view
    from autotune.serving.machine import has_gpu
    from autotune.storage.store import opened
    from autotune.study.schema import load_study

    loaded = load_study(study or ("gemma-4-26b-rtx5090" if has_gpu() else "demo-cpu"))
    trials: Sequence[TrialView] = ()
    if database.exists():
        with opened(database) as store:
            if loaded.spec.name in store.study_names():
                trials = study_view(store, loaded.spec.name).trials
    found = space_map(loaded, version, trials)
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else "\n".join(found.lines()))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--out",
    type=_Path(dir_okay=False, path_type=Path),
    default=Path("study.yaml"),
    show_default=True,
    help="Study file to write; an existing file is not overwritten.",
)
@click.option("--name", default="my-study", show_default=True, help="Name of the study.")
def init(command: tuple[str, ...], out: Path, name: str) -> None:
    """Write a study file, from scratch or from a vLLM command.

    \b
    Examples:
      autotune init --name mine
      autotune init -- vllm serve org/model --max-num-seqs 8
    """
    from autotune.study.from_command import study_from_command, template
    from autotune.study.schema import parse_study

    text = study_from_command(command, name) if command else template(name)
    parse_study(text, out, check_files=False)
    try:
        with out.open("x", encoding="utf-8") as f:
            f.write(text)
    except FileExistsError:
        raise UserError(f"{out}: already exists; give another --out") from None
    except OSError as e:
        raise UserError(f"{out}: cannot be written: {e.strerror}") from e
    click.echo(f"wrote {out}; check it, then run `autotune run {out}`")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of your shell.

    It completes autotune's commands and options.

    \b
    Examples:
      eval "$(autotune completion bash)"      in ~/.bashrc
      eval "$(autotune completion zsh)"       in ~/.zshrc
      autotune completion fish > ~/.config/fish/completions/autotune.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise AssertionError("click knows these three shells")
    click.echo(found(main, {}, "autotune", "_AUTOTUNE_COMPLETE").source())


if __name__ == "__main__":
    sys.exit(main())
