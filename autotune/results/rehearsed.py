"""The acceptance that a rehearsal takes from another study, and what to say of a rehearsal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from autotune.errors import UserError
from autotune.results.load_map_ways import COUNTED
from autotune.results.text import plain
from autotune.results.trials import study_view
from autotune.results.views import TrialView
from autotune.search.acceptance import Prediction, SpeculationLaunch
from autotune.storage.location import Database, is_url, parse_database, parse_named
from autotune.storage.names import break_even_name
from autotune.storage.store import Store, is_there, opened
from autotune.study.files import LoadedStudy
from autotune.study.messages import refused
from autotune.study.schema import StudySpec
from autotune.study.space import N, as_int
from autotune.study.unsaid import unsaid_text

_KEY = "rehearsal.acceptance.from"
_DIGITS = 6  # of a rate


def with_counted_acceptance(loaded: LoadedStudy) -> LoadedStudy:
    """Return a study whose rehearsal has the acceptance that another study's launches counted.

    Each n that was launched has what its own launches counted. One between them is interpolated
    (:mod:`autotune.search.acceptance`), because a draft of 3 is not the first 3 of a draft of 15.
    Any other study stays as it is.

    Args:
        loaded: The study with its method, from :mod:`autotune.engine.draft_method`.

    Raises:
        UserError: the other study cannot be read or has another method, its acceptance is given or
            biased, or a larger n was not measured and no ``decay`` says what to assume.
    """
    how = loaded.spec.rehearsal
    if how is None or how.acceptance is None or how.acceptance.resolved:
        return loaded
    return _with_rates(loaded, _counted(loaded, how.acceptance.from_ or ""))


def with_kept_acceptance(loaded: LoadedStudy, database: Database) -> LoadedStudy:
    """Return a rehearsal with the counted acceptance that its own database keeps of it.

    The study that it was counted in may have more launches by now, be moved, or be gone. What was
    begun with its rates, a run or a map, goes on with them. Any other study stays as it is.

    Args:
        loaded: The study.
        database: Where its trials are; it need not be there.

    Raises:
        UserError: the database cannot be used.
    """
    how = loaded.spec.rehearsal
    if how is None or how.acceptance is None or how.acceptance.resolved or not is_there(database):
        return loaded
    with opened(database) as store:
        kept = dict(_kept(store, loaded.spec.name))
    rates = kept.get(how.acceptance.from_ or "")  # another source is another acceptance
    return loaded if rates is None else _with_rates(loaded, rates)


def _kept(store: Store, name: str) -> Iterator[tuple[str, list[list[float]]]]:
    """Yield each counted acceptance that a database keeps of a study, with its source."""
    for points in (break_even_name(name), name):
        for row in store.load_maps.points(points):
            if found := row.setting.get(COUNTED):
                yield found["from"], found["by_n"]
    if name in store.study_names():
        how = store.load_study(name)[0].spec.rehearsal
        if how is not None and how.acceptance is not None and how.acceptance.by_n is not None:
            yield how.acceptance.from_ or "", how.acceptance.by_n


def _with_rates(loaded: LoadedStudy, rates: list[list[float]]) -> LoadedStudy:
    """Return a rehearsal with counted rates, by position for each n.

    Raises:
        UserError: they do not go together with the study.
    """
    how = loaded.spec.rehearsal
    if how is None or how.acceptance is None:
        return loaded
    try:
        spec = loaded.spec.rehearsed_with(how.acceptance.model_copy(update={"by_n": rates}))
    except ValueError as e:
        raise refused(loaded.path, str(e)) from e
    return loaded.model_copy(update={"spec": spec})


def _counted(loaded: LoadedStudy, source: str) -> list[list[float]]:
    """Return the acceptance by position, for each n from 1 up to the largest that was launched."""
    where = _KEY  # of a URL that is refused nothing is quoted: it may have a password in it
    try:
        named = _named(loaded, source)
        where = f"{_KEY}: {plain(source)[:200]}"
        if named is None:
            raise UserError(
                "no such database; give FILE.db or FILE.db:STUDY, relative to the study file, or "
                "write the rates"
            )
        database, study = named
        with opened(database) as store:
            name = _source_of(store, study, loaded.spec.name)
            spec = store.load_study(name)[0].spec
            trials = study_view(store, name).trials
    except UserError as e:
        # the option of a command does not say where this database is
        raise refused(loaded.path, f"{where}: {e}".replace("another --db", "another one")) from e
    if why := _why_not(loaded.spec, spec):
        raise refused(loaded.path, f"{where}: {why}")
    launches = [
        SpeculationLaunch(n, 1.0, t.acceptance_per_position, t.acceptance_length)
        for t in trials
        if (n := as_int(t.point.get(N))) and _counts(t)
    ]
    found = Prediction.fit(launches)
    if found is None:
        biased = any(t.curve is None for t in trials)
        why = "only of a schedule or adaptive verification, which bias it" if biased else "none"
        raise refused(loaded.path, f"{where}: has no acceptance of a fixed n: {why}")
    return [_falling(found.positions[n]) for n in range(1, max(found.launched) + 1)]


def _source_of(store: Store, study: str | None, own: str) -> str:
    """Return the study of a database whose acceptance is taken.

    Unless it is named, it is the only one that may be: neither the study itself, which is often
    kept in the same database, nor another rehearsal.

    Raises:
        UserError: there is none, or several and none is named.
    """
    names = [name for name in store.study_names() if name != own]
    if study is not None or len(names) < 2:
        return store.pick_study(study or next(iter(names), None))
    counting = [x for x in names if store.load_study(x)[0].spec.rehearsal is None]
    if len(counting) == 1:
        return counting[0]
    raise UserError(f"holds several studies; add one behind a colon: {', '.join(names)}")


def _named(loaded: LoadedStudy, source: str) -> tuple[Database, str | None] | None:
    """Return the database and the study that a text names; None: there is no such file."""
    if is_url(source):
        return parse_named(source)
    parse_database(source)  # refuses what was meant as a URL
    return parse_named(str(loaded.base / Path(source).expanduser()))


def production_note(spec: StudySpec) -> str | None:
    """Return what a rehearsal's command lacks to serve somebody; None: it is no rehearsal.

    A study without the key may have the same settings of its own. They are in its command, too.
    """
    how = spec.rehearsal
    if how is None:
        return _unsaid_note(spec)
    draft = spec.server.speculative
    dummies = [f"the target ({plain(spec.server.model)})"] if how.dummy("target") else []
    if draft is not None and draft.model is not None and how.dummy("draft"):
        dummies.append(f"the draft ({plain(draft.model)})")
    missing = [f"the real weights of {' and '.join(dummies)}"] if dummies else []
    missing.append(
        "a run without `rehearsal`, which counts the real acceptance; another point may be best "
        "with it"
    )
    return (
        f"From a {spec.rehearsal_label}. Dummy weights and synthetic acceptance are left out of "
        f"the command. Still missing: {', and '.join(missing)}."
    )


def _unsaid_note(spec: StudySpec) -> str | None:
    """Return that a study without `rehearsal` plays weights or acceptance; None: it does not."""
    if not (found := unsaid_text(spec)):
        return None
    return (
        f"This study sets {found} itself, so its numbers are those of no real model, "
        "and the command has it, too: it must not serve anybody. Write it as `rehearsal`: then "
        "every table says so, and no command has it."
    )


def _why_not(own: StudySpec, other: StudySpec) -> str | None:
    """Return why another study's acceptance says nothing of this one's draft; None: it does."""
    if other.rehearsal is not None and other.rehearsal.acceptance is not None:
        return "is a rehearsal itself, whose acceptance was given, not counted"
    if other.rehearsal is not None:
        return "is a rehearsal itself, whose acceptance is what random weights give"
    if other.server.arms:
        return "has several ways to draft; take a study with one"
    if own.server.speculative is None or other.server.speculative is None:
        return None  # nothing is counted, or nothing is played
    mine, theirs = own.server.speculative.method, other.server.speculative.method
    if mine != theirs:
        return f"drafts with method {theirs}, and this study with {mine}"
    return None


def _counts(trial: TrialView) -> bool:
    """Return whether a trial counted the acceptance of a fixed n."""
    return (
        trial.curve is not None
        and trial.state == "complete"
        and not trial.lossy
        and bool(trial.acceptance_per_position)
    )


def _falling(rates: Sequence[float]) -> list[float]:
    """Return rates as vLLM takes them: rounded, and none above the one before it."""
    out: list[float] = []
    for rate in rates:
        out.append(min(round(max(rate, 0.0), _DIGITS), *out[-1:], 1.0))
    return out
