"""Commands that launch servers: run, confirm, map, crosscheck."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from autotune.cli.common import best_trial, draw, said_of_all, say_trust, serving_command
from autotune.cli.options import (
    PathType,
    a_number,
    concurrencies,
    confirmation_launches,
    database_option,
    no_slots,
    parallel_option,
    ray_option,
    schedule_starts,
    timeout_option,
    ways,
)
from autotune.cli.verify import end, verified_winner
from autotune.errors import NothingUsable, UserError, in_short

if TYPE_CHECKING:  # a command imports what it needs when it runs: --help answers at once
    from autotune.cli.console import Ui
    from autotune.results.load_map import LoadSweepView
    from autotune.results.views import StudyView
    from autotune.serving.slots import Slot
    from autotune.storage.location import Database
    from autotune.storage.store import Store
    from autotune.study.files import LoadedStudy
    from autotune.tuning.load_map_choice import Rivals
    from autotune.tuning.prepare import Prepared
    from autotune.tuning.reuse import Source
    from autotune.tuning.slot_pool import Cluster


@click.command()
@click.argument("study", required=False)
@click.option(
    "--trials",
    type=click.IntRange(1, 10**6),
    help="Total number of finished trials, earlier ones included. Default: `budget.trials` of the "
    "study.",
)
@database_option
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Random seed of a new study.",
)
@timeout_option
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
@click.option(
    "--verify",
    is_flag=True,
    help="Then check that the winner writes what n = 0 writes, and exit as `autotune verify` does: "
    "0 certified, 3 it does not, 4 not judged.",
)
@parallel_option
@ray_option
def run(
    study: str | None,
    trials: int | None,
    database: Database,
    seed: int,
    timeout: float | None,
    until_converged: bool,
    reuse: tuple[str, ...],
    verify: bool,
    parallel: int | None,
    ray: str | None,
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
    from autotune.study.files import load_study
    from autotune.tuning.reuse import Source

    if verify and ray is not None:
        raise click.UsageError("--verify launches on this host: leave it out with --ray")
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
        verify=verify,
        parallel=parallel,
        ray=ray,
    )


@click.command()
@click.argument("study")
@click.option(
    "--launches",
    type=click.IntRange(4, 10**6),
    default=8,
    show_default=True,
    help="Number of launches, over all candidates.",
)
@database_option
@timeout_option
@parallel_option
@ray_option
def confirm(
    study: str,
    launches: int,
    database: Database,
    timeout: float | None,
    parallel: int | None,
    ray: str | None,
) -> None:
    """Launch the winners and the baseline again (A B B A).

    `autotune run` reserves its last trials for this confirmation; `confirm` adds more launches,
    interleaved.
    STUDY is the file or bundled name that was run. Run the same command again to resume.

    \b
    Examples:
      autotune confirm studies/gemma-4-26b-rtx5090.yaml --launches 12
      autotune confirm STUDY --launches 24 --parallel auto
    """
    from autotune.study.files import load_study

    loaded = load_study(study)
    _run(loaded, database, launches, 0, timeout, confirm=True, parallel=parallel, ray=ray)


def _run(
    loaded: LoadedStudy,
    database: Database,
    trials: int,
    seed: int,
    minutes: float | None,
    *,
    confirm: bool = False,
    stop_below: float | None = None,
    reuse: Sequence[Source] = (),
    verify: bool = False,
    parallel: int | None = 1,
    ray: str | None = None,
) -> None:
    import optuna

    from autotune.cli.console import Ui
    from autotune.tuning.study_run import run_study
    from autotune.tuning.supervise import StopReason

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ui = Ui()
    with _on_slots(ui, loaded, database, parallel, ray) as (prepared, slots, cluster):
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
            slots=slots,
            cluster=cluster,
        )
        found = verified_winner(ui, prepared, database) if verify else None
    if reason is not StopReason.DONE:
        how = "done" if reason is StopReason.CONVERGED else "stopped"
        ui.message(f"{how}: {reason}")
    _finish(ui, database, loaded.spec.name)
    if found is not None:
        end(found, loaded.spec.name)


@contextmanager
def _on_slots(
    ui: Ui, loaded: LoadedStudy, database: Database, parallel: int | None, ray: str | None
) -> Iterator[tuple[Prepared, Sequence[Slot], Cluster | None]]:
    """Yield a study that is ready to run, slots of this host or a cluster; each has a live line."""
    from autotune.results.rehearsed import with_kept_acceptance
    from autotune.tuning.prepare import prepare
    from autotune.tuning.slots import cluster_of, slots_of_host

    with ui:
        prepared = prepare(with_kept_acceptance(loaded, database), ui, here=ray is None)
        say_trust(ui, loaded)
        with cluster_of(prepared, ray, parallel, ui.message, database) as cluster:
            slots = slots_of_host(prepared, parallel) if cluster is None else ()
            ui.slots = max(1, len(slots if cluster is None else cluster.slots))
            ui.slot_name = None if cluster is None else cluster.name
            yield prepared if cluster is None else cluster.prepared, slots, cluster


def _finish(ui: Ui, database: Database, name: str) -> None:
    """Write the plots and the dashboard's pages of a study, and print its summary."""
    from autotune.results.rehearsed import production_note
    from autotune.results.trials import study_view
    from autotune.storage.failures import database_errors
    from autotune.storage.names import output_folder
    from autotune.storage.store import opened

    @contextmanager
    def not_worth_a_run(what: str, again: str) -> Iterator[None]:
        """Turn a failure into one line that says what was not made; the numbers are stored."""
        try:
            with database_errors(database):
                yield
        except Exception as e:  # noqa: BLE001 – no failure here is worth a run
            ui.message(f"{what}: {in_short(e)}. No measurement is lost; {again}")

    with opened(database) as store:
        view = study_view(store, name)
        trial = best_trial(view)
        plots: list[Path] = []
        with ui.waiting("drawing the plots"):
            with not_worth_a_run("plots not drawn", "draw them with `autotune pareto`"):
                plots = draw(view, output_folder(database, name))
            with not_worth_a_run("dashboard not updated", "update it with `autotune dashboard`"):
                update_dashboard(store, view)
        note = production_note(store.load_study(name)[0].spec)
        said = [*([note] if note else []), *said_of_all(store, view)]
        ui.summary(view, serving_command(store, name, trial), database, plots, said)


def update_dashboard(store: Store, view: StudyView) -> None:
    """Save a study's figures and notes where optuna-dashboard shows them."""
    from autotune.output.dashboard import publish
    from autotune.output.report import build

    publish(store, view, build(store, view))


@click.command("map")
@click.argument("study")
@click.option(
    "--concurrency",
    "loads",
    default="1,2,4,8,16",
    show_default=True,
    callback=concurrencies,
    metavar="LOADS",
    help="Concurrencies to measure, separated by commas.",
)
@database_option
@click.option(
    "--launches",
    type=click.IntRange(2, 10**6),
    default=6,
    show_default=True,
    help="Most values of n to launch, n = 0 included. Other ways to speculate come on top.",
)
@click.option(
    "--ways",
    default="schedule",
    show_default=True,
    callback=ways,
    metavar="WAYS",
    help="Other ways to launch, separated by commas: schedule (n by batch size), adaptive "
    "(adaptive verification), arms (the study's other arms); or none.",
)
@click.option(
    "--schedule",
    callback=schedule_starts,
    metavar="RANGES",
    help="Schedule to launch, also if the numbers suggest none. 1:7,8:3 is n = 7 below a batch of "
    "8 requests, then 3.",
)
@click.option(
    "--way-launches",
    type=click.IntRange(1, 10**6),
    default=2,
    show_default=True,
    help="Most values of n to launch with adaptive verification, and of each arm.",
)
@click.option(
    "--confirm",
    type=click.IntRange(0, 10**6),
    default=0,
    show_default=True,
    callback=confirmation_launches,
    metavar="LAUNCHES",
    help="Further launches of the best fixed n and the best other ways, interleaved (A B B A).",
)
@timeout_option
@parallel_option
@ray_option
@click.option(
    "--break-even",
    is_flag=True,
    help="Find how good a draft must be to pay at each concurrency, with a given acceptance "
    "(needs a GPU).",
)
@click.option(
    "--decay",
    type=click.FloatRange(0, 10, min_open=True),
    default=1.0,
    show_default=True,
    callback=a_number,
    metavar="FACTOR",
    help="With --break-even: factor on a draft's conditional acceptance from one position to the "
    "next. Changes what is shown, and nothing that is launched but the checks.",
)
@click.option("--show", is_flag=True, help="Show the latest load sweep; launch nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the load sweep as JSON.")
@click.option(
    "--plot",
    type=PathType(dir_okay=False, path_type=Path),
    help="HTML file to write: speed-up by concurrency, or the break-even.",
)
def load_map(
    study: str,
    loads: tuple[int, ...],
    database: Database,
    launches: int,
    ways: frozenset[str],
    schedule: tuple[tuple[int, int], ...] | None,
    way_launches: int,
    confirm: int,
    timeout: float | None,
    parallel: int | None,
    ray: str | None,
    break_even: bool,
    decay: float,
    show: bool,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Run a load sweep: the best n at each concurrency.

    It also shows the concurrency above which drafting stops paying, and whether another way to
    speculate beats the best fixed n. STUDY need not have been run. If it has, its best trial sets
    the other parameters. Run the same command again to resume; a finished load sweep is only shown.

    \b
    Examples:
      autotune map demo-cpu --concurrency 1,2,4,8 --plot map.html
      autotune map STUDY --ways schedule,adaptive --confirm 8
      autotune map STUDY --schedule 1:7,8:3 --confirm 8
      autotune map STUDY --parallel auto
      autotune map STUDY --break-even --launches 5 --plot break-even.html
    """
    from rich.console import Console

    from autotune.cli.console import Ui
    from autotune.engine.draft_method import with_method
    from autotune.results.load_map import load_sweep_json, load_sweep_lines
    from autotune.study.files import load_study

    if plot is not None and not plot.parent.is_dir():
        raise UserError(f"{plot}: the folder {plot.parent} does not exist; make it first")
    ui = Ui(Console(stderr=True, highlight=False))
    source = click.get_current_context().get_parameter_source
    if break_even:
        if ParameterSource.COMMANDLINE in map(source, ("ways", "way_launches")):
            raise click.UsageError("--break-even excludes --ways and --way-launches")
        if schedule is not None or confirm:
            raise click.UsageError("--break-even excludes --schedule and --confirm")
        if parallel != 1 or ray is not None:
            raise click.UsageError(
                "--break-even launches one server at a time: leave out --parallel and --ray"
            )
        _break_even(ui, study, database, loads, launches, decay, timeout, show, as_json, plot)
        return
    if decay != 1.0:
        raise click.UsageError("--decay is for --break-even: add it, or leave --decay out")
    if show:
        view = _stored_map(study, database)
    else:
        from autotune.tuning.load_map_choice import Rivals

        loaded = with_method(load_study(study))
        rivals = Rivals(
            schedule="schedule" in ways,
            adaptive="adaptive" in ways,
            arms="arms" in ways,
            asked=schedule,
            launches=way_launches,
            confirm=confirm,
        )
        view = _measured_map(
            ui, loaded, database, loads, launches, rivals, timeout, parallel=parallel, ray=ray
        )
    click.echo(
        json.dumps(load_sweep_json(view), indent=2)
        if as_json
        else "\n".join(load_sweep_lines(view))
    )
    if plot is not None:
        from autotune.output.figures.load_map import write_load_sweep

        write_load_sweep(view, plot)


def _break_even(
    ui: Ui,
    study: str,
    database: Database,
    loads: tuple[int, ...],
    launches: int,
    decay: float,
    minutes: float | None,
    show: bool,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Make or show a break-even map."""
    from autotune.engine.draft_method import with_method
    from autotune.results.break_even import break_even_json, break_even_lines
    from autotune.study.files import load_study

    if show:
        from autotune.results.read_break_even import stored_break_even

        with _stored(study, database) as (store, loaded, known):
            view = stored_break_even(store, loaded, known, decay)
    else:
        from autotune.results.rehearsed import with_kept_acceptance
        from autotune.tuning.break_even import map_break_even
        from autotune.tuning.prepare import prepare
        from autotune.tuning.supervise import StopReason

        loaded = with_kept_acceptance(with_method(load_study(study)), database)
        with ui:
            prepared = prepare(loaded, ui)
            say_trust(ui, loaded)
            view, reason = map_break_even(
                prepared,
                database=database,
                loads=loads,
                launches=launches,
                decay=decay,
                timeout_s=minutes * 60 if minutes else None,
                progress=ui,
            )
        if reason is not StopReason.DONE:
            ui.message(f"stopped: {reason}; run the same command again to resume")
    lines = break_even_lines(view)
    click.echo(json.dumps(break_even_json(view), indent=2) if as_json else "\n".join(lines))
    if plot is not None:
        from autotune.output.figures.break_even import write_break_even

        write_break_even(view, plot)


@contextmanager
def _stored(study: str, database: Database) -> Iterator[tuple[Store, LoadedStudy, Collection[str]]]:
    """Yield a study file, or a study that only the database has, with its fingerprints."""
    from autotune.engine.draft_method import with_method
    from autotune.results.rehearsed import with_counted_acceptance, with_kept_acceptance
    from autotune.storage.store import opened
    from autotune.study.files import load_study

    with opened(database) as store:
        try:
            loaded = with_kept_acceptance(with_method(load_study(study)), database)
            loaded = with_counted_acceptance(loaded)
        except UserError:
            if study not in store.study_names():
                raise
            loaded, row = store.load_study(study)
            yield store, loaded, {row.fingerprint}
        else:
            yield store, loaded, store.fingerprints(loaded)


def _stored_map(study: str, database: Database) -> LoadSweepView:
    """Return a load sweep of a study file, or of a study that only the database has."""
    from autotune.results.read_load_map import stored_view

    with _stored(study, database) as (store, loaded, known):
        return stored_view(store, loaded, known)


def _measured_map(
    ui: Ui,
    loaded: LoadedStudy,
    database: Database,
    loads: tuple[int, ...],
    launches: int,
    rivals: Rivals,
    minutes: float | None,
    *,
    parallel: int | None,
    ray: str | None,
) -> LoadSweepView:
    from autotune.tuning.load_map import map_study
    from autotune.tuning.supervise import StopReason

    with _on_slots(ui, loaded, database, parallel, ray) as (prepared, slots, cluster):
        view, reason = map_study(
            prepared,
            database=database,
            loads=loads,
            launches=launches,
            rivals=rivals,
            timeout_s=minutes * 60 if minutes else None,
            progress=ui,
            slots=slots,
            cluster=cluster,
        )
    if reason is not StopReason.DONE:
        ui.message(f"stopped: {reason}; run the same command again to resume")
    return view


@click.command()
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
    type=PathType(file_okay=False, path_type=Path),
    help="New folder for the raw data. Default: inside the study's own folder.",
)
@no_slots("--parallel")
@no_slots("--ray")
def crosscheck(study: str, n: int | None, rounds: int, as_json: bool, out: Path | None) -> None:
    """Measure one server with autotune and `vllm bench serve`.

    Both clients send the same requests alternately. The command says whether they agree.

    \b
    Example:
      autotune crosscheck demo-cpu --rounds 4
    """
    from rich.console import Console

    from autotune.cli.console import Ui
    from autotune.results.client_agreement import Agreement
    from autotune.study.files import load_study
    from autotune.tuning.crosscheck import crosscheck as compare
    from autotune.tuning.prepare import prepare
    from autotune.tuning.supervise import signals

    ui = Ui(Console(stderr=True, highlight=False))
    with ui, signals():
        prepared = prepare(load_study(study), ui)
        say_trust(ui, prepared.loaded)
        result = compare(prepared, n=n, rounds=rounds, out=out, progress=ui)
    click.echo(json.dumps(result.to_json(), indent=2) if as_json else "\n".join(result.lines()))
    if differing := result.figures(Agreement.DIFFER):
        raise NothingUsable(f"{result.study}: the clients differ in {', '.join(differing)}")
