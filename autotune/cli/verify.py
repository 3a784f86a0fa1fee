"""The command verify: whether answers are the same with speculation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.common import best_trial, say_trust
from autotune.cli.options import database_option
from autotune.errors import NothingUsable, NotJudged, UserError

if TYPE_CHECKING:  # a command imports what it needs when it runs: --help answers at once
    from autotune.cli.console import Ui
    from autotune.results.views import TrialView
    from autotune.storage.location import Database
    from autotune.storage.store import Store
    from autotune.study.files import LoadedStudy
    from autotune.tuning.prepare import Prepared
    from autotune.tuning.verify import Verification

FAULT = 3


@click.command()
@click.argument("study")
@database_option
@click.option("--trial", type=click.IntRange(0, 10**9), help="Verify this trial.")
@click.option("--best", is_flag=True, help="Verify the winner (the default).")
@click.option("--objective", help="Choose the winner by this objective. Default: the first.")
@click.option("--balanced", is_flag=True, help="Choose the winner by all objectives.")
@click.option(
    "--sampling",
    is_flag=True,
    help="Draw tokens at temperature 1 where the study's temperature is 0.",
)
@click.option(
    "--prompts",
    type=click.IntRange(2, 10**6),
    help="Most prompts to send. Default: 40, up to 64 where answers have fewer than 24 tokens, or "
    "4 × the study's max_concurrency if that is more.",
)
@click.option(
    "--answers/--no-answers",
    "keep",
    default=True,
    help="Keep the answers in the database, which only you can read (the default), or not. "
    "Without them an interrupted verification begins again.",
)
@click.option("--again", is_flag=True, help="Launch again, although there is a verdict.")
@click.option("--show", is_flag=True, help="Show the latest verdict; launch nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the certificate as JSON.")
def verify(
    study: str,
    database: Database,
    trial: int | None,
    best: bool,
    objective: str | None,
    balanced: bool,
    sampling: bool,
    prompts: int | None,
    keep: bool,
    again: bool,
    show: bool,
    as_json: bool,
) -> None:
    """Check that the winner writes what n = 0 writes.

    Three servers answer the study's prompts: n = 0, the winner, and n = 0 again. The last one
    scores every token that they wrote. STUDY is the file or bundled name that was run. Run the same
    command again to resume; a finished verification is only shown. Exit code 3 means that the
    answers differ more than those of n = 0 do, 4 that they could not be judged.

    \b
    Examples:
      autotune verify studies/gemma-4-26b-rtx5090.yaml
      autotune verify STUDY --trial 7 --no-answers
      autotune verify STUDY --show
    """
    from rich.console import Console

    from autotune.cli.console import Ui
    from autotune.results.trials import study_view
    from autotune.storage.store import is_there, opened
    from autotune.study.files import load_study

    if best + balanced + (trial is not None) > 1 or (trial is not None and objective is not None):
        raise click.UsageError("--trial, --best, --balanced and --objective exclude each other")
    if show and (again or sampling or prompts is not None):
        raise click.UsageError("--show launches nothing: leave --again, --sampling, --prompts out")
    loaded = None if show and is_there(database) else load_study(study)
    with opened(database) as store:
        name = _stored_name(store, study) if loaded is None else loaded.spec.name
        view = study_view(store, store.pick_study(name))
        if trial is None:
            chosen = best_trial(view, objective, balanced=balanced)
        else:
            from autotune.output.export.choice import measured_trial

            chosen = measured_trial(view, trial)
        if trial is None and chosen.certificate is None:
            say_nothing(chosen, as_json=as_json)
            return
        if loaded is None:
            shown = _shown(store, view.name, chosen)
    if loaded is None:
        _tell(shown, view.name, chosen, as_json=as_json)
        return
    ui = Ui(Console(stderr=True, highlight=False))
    with ui:
        found = verified(
            ui,
            loaded,
            database,
            chosen,
            sampling=sampling,
            prompts=prompts,
            keep=keep,
            again=again,
        )
    _tell(found, loaded.spec.name, chosen, as_json=as_json)


def say_nothing(winner: TrialView, *, as_json: bool) -> None:
    """Print that there is nothing to verify: the winner drafts nothing."""
    if as_json:
        data: dict[str, Any] = {"trial": winner.number, "params": dict(winner.point)}
        none = dict.fromkeys(("judged_at", "vllm", "judgement"))
        why = "the winner drafts nothing"
        click.echo(json.dumps(data | {"verdict": None, "why": why} | none, indent=2))
    else:
        click.echo(
            f"Nothing to verify: the winner, trial {winner.number}, drafts nothing. --trial names "
            "another one."
        )


def _stored_name(store: Store, study: str) -> str:
    """Return the name of a study of the database, which is named or has a file."""
    from autotune.study.files import load_study

    return study if study in store.study_names() else load_study(study).spec.name


def _shown(store: Store, name: str, trial: TrialView) -> Verification:
    """Return what is known of a trial.

    Raises:
        NothingUsable: it was not verified.
    """
    from autotune.results.certificates import Verdict, output_line
    from autotune.tuning.verify import Verification

    found = trial.certificate
    if found is not None and found.number is None and found.verdict is Verdict.NOT_JUDGED:
        return Verification(found)
    if found is None or found.number is None:
        why = "it drafts nothing" if found is None else output_line(found, trial.number)
        raise NothingUsable(f"{name}: trial {trial.number} has no verdict: {why}")
    return Verification(found, store.certificates.answers(found.number))


def _tell(found: Verification, name: str, trial: TrialView, *, as_json: bool) -> None:
    """Print what was found, and end the command by the verdict."""
    if as_json:
        data: dict[str, Any] = {"trial": trial.number, "params": dict(trial.point)}
        click.echo(json.dumps(data | found.certificate.to_json(), indent=2))
    else:
        say(found, trial)
    end(found, name)


def verified(
    ui: Ui,
    loaded: LoadedStudy,
    database: Database,
    trial: TrialView,
    *,
    sampling: bool = False,
    prompts: int | None = None,
    keep: bool = True,
    again: bool = False,
    prepared: Prepared | None = None,
) -> Verification:
    """Verify a trial; ``prepared`` is the study where it was checked already."""
    from autotune.results.rehearsed import with_kept_acceptance
    from autotune.tuning.prepare import prepare
    from autotune.tuning.verify import Asked, verify_study

    if prepared is None:
        prepared = prepare(with_kept_acceptance(loaded, database), ui)
        say_trust(ui, loaded)
    asked = Asked(trial.number, sampling=sampling, prompts=prompts, keep=keep, again=again)
    return verify_study(prepared, database=database, asked=asked, progress=ui)


def verified_winner(ui: Ui, prepared: Prepared, database: Database) -> Verification | None:
    """Verify the winner of a study that was run; None: there is none to verify.

    Where a launch fails or is refused the study still has its results, and the winner no verdict.
    """
    from autotune.results.certificates import Certificate, Verdict
    from autotune.results.trials import study_view
    from autotune.storage.store import opened
    from autotune.tuning.verify import Verification

    loaded = prepared.loaded
    with opened(database) as store:
        best = study_view(store, loaded.spec.name).best()
    if best is None or best.certificate is None:
        why = "no winner" if best is None else "the winner drafts nothing"
        ui.message(f"nothing is verified: {why}")
        return None
    try:
        return verified(ui, loaded, database, best, prepared=prepared)
    except (NothingUsable, UserError) as e:
        return Verification(Certificate(Verdict.MISSING, str(e)))


def say(found: Verification, trial: TrialView) -> None:
    """Print the verdict, the numbers behind it, and the worst cases side by side."""
    from autotune.cli.console import Ui
    from autotune.results.answer_cases import case_lines
    from autotune.results.certificates import Verdict, judgement_lines, output_line

    ui = Ui()
    ui.prose(output_line(found.certificate, trial.number))
    for line in judgement_lines(found.certificate):
        ui.prose(line, indent="  ")
    if found.certificate.verdict is Verdict.FAULT:
        for line in case_lines(found.certificate, found.answers, trial.number):
            ui.prose(line, indent="  ")


def end(found: Verification, name: str) -> None:
    """End the command by the verdict, the same for `verify` and for `run --verify`.

    Args:
        found: What was found; certified is exit code 0, a fault 3.
        name: Name of the study.

    Raises:
        NotJudged: there is no verdict, which is exit code 4.
    """
    from autotune.results.certificates import Verdict

    certificate = found.certificate
    if certificate.verdict is Verdict.FAULT:
        click.get_current_context().exit(FAULT)
    if certificate.verdict is not Verdict.CERTIFIED:
        raise NotJudged(f"{name}: the output is {certificate.verdict.value}: {certificate.why}")
