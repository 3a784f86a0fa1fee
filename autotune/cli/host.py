"""Commands about this machine: ps, reap, doctor, init, completion."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from autotune.cli.options import PathType, database_option
from autotune.errors import NothingUsable, UserError
from autotune.storage.location import Database


@click.command()
@database_option
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.option(
    "--forget",
    metavar="HOST",
    help="Close the launches of another host that is gone, such as a removed pod. Nothing is "
    "ended there, and a host that may still answer is refused.",
)
def ps(database: Database, as_json: bool, forget: str | None) -> None:
    """List autotune's running servers and their owners.

    Servers on this host are those of every database and command of this user; a database says
    which trial is which. Launches on other hosts are those of the database.

    \b
    Examples:
      autotune ps
      autotune ps --db postgresql+psycopg://db.example/tuning --forget worker-7
    """
    if forget is not None:
        if as_json:
            raise UserError("--json: is for the list; leave it out with --forget")
        from autotune.tuning.lost_hosts import forget as close

        click.echo(close(database, forget))
        return
    from autotune.tuning.recovery import living_json, living_lines

    if as_json:
        click.echo(json.dumps(living_json(database), indent=2))
        return
    click.echo("\n".join(living_lines(database) or ["no autotune server is running here"]))


@click.command()
@database_option
def reap(database: Database) -> None:
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


@click.command()
@click.argument("study", required=False)
@database_option
@click.option("--json", "as_json", is_flag=True, help="Print the checks as a JSON list.")
def doctor(study: str | None, database: Database, as_json: bool) -> None:
    """Check this machine: vLLM, GPU, port, disk, models.

    Each check is one line: ok, or what to do.

    \b
    Examples:
      autotune doctor
      autotune doctor studies/gemma-4-26b-rtx5090.yaml
    """
    from autotune.cli.console import Ui
    from autotune.cli.doctor import checks
    from autotune.results.text import count
    from autotune.study.files import load_study

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
        raise NothingUsable(f"{count(bad, 'check')} failed")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--out",
    type=PathType(dir_okay=False, path_type=Path),
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
      autotune init -- serve.sh               a script, or .yaml, .service
    """
    from autotune.study.files import parse_study
    from autotune.study.from_command import study_from_command, template

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


@click.command()
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
    group = click.get_current_context().find_root().command
    click.echo(found(group, {}, "autotune", "_AUTOTUNE_COMPLETE").source())
