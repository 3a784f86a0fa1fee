"""What a run of a study begins with: its planner, a confirmation's budget, what cannot launch."""

from __future__ import annotations

from collections.abc import Iterator

from autotune.errors import NothingUsable, UserError
from autotune.results.batch_budget import families_of
from autotune.results.standing import counts
from autotune.results.text import upper
from autotune.search.proposer import Proposer
from autotune.storage.records import attrs_of
from autotune.storage.store import Store
from autotune.study import sample_size
from autotune.study.space import ARM, N, Space, as_int
from autotune.tuning.planner import Planner
from autotune.tuning.prepare import Prepared, graph_misfit, never_launched
from autotune.tuning.situation import Budget
from autotune.tuning.trial_log import TrialLog


def confirmation_budget(store: Store, log: TrialLog, name: str, launches: int) -> Budget:
    """Return the budget of a number of further launches that all confirm.

    A confirmation that was interrupted is continued.

    Args:
        store: The database.
        log: Trials of the study; it is opened.
        name: Name of the study.
        launches: Number of launches.

    Raises:
        UserError: the database has no such study.
        NothingUsable: there is nothing to confirm.
    """
    if name not in store.study_names():
        raise UserError(f"{store.database}: has no study {name} yet. Start it with `autotune run`")
    log.reopen()
    trials = log.trials()
    if not trials and log.outdated():
        raise NothingUsable(
            f"{name}: no trial compares with today's numbers; `autotune status` says why, and "
            "`autotune run` measures them again"
        )
    wanted = store.load_study(name)[1].wanted
    planned = log.confirmation(wanted)
    confirmed = sum(attrs_of(t).confirmation == wanted for t in trials)
    finished = sum(map(counts, trials))
    interrupted = planned is not None and planned.order and confirmed < planned.held
    if planned is not None and interrupted and finished < wanted:
        return Budget(wanted, planned.held)
    return Budget(finished + launches, launches)


def planner_of(
    prepared: Prepared, space: Space, budget: Budget, seed: int, stop_below: float
) -> Planner:
    """Return what chooses the trials of a study.

    Args:
        prepared: The study.
        space: The searched parameters, as the study keeps them.
        budget: How many trials there are.
        seed: Of the study.
        stop_below: The search ends when no launch is expected to improve by this share; 0: never.
    """
    spec, forbidden = prepared.spec, prepared.infeasible
    families = families_of(spec, prepared.info.version, prepared.known)
    same = families.alike(spec.to_space())
    proposer = Proposer(
        spec.to_space(),
        forbidden,
        [o.direction for o in prepared.objectives],
        method=spec.search.method,
        seed=seed,
        stop_below=stop_below,
        fixed_n=as_int(spec.settings({}).get(N)),
        known=graph_misfit(prepared),
        alike=same,
    )
    return Planner(spec, prepared.objectives, budget, space, forbidden, proposer, same)


def infeasible_notes(prepared: Prepared, space: Space) -> Iterator[str]:
    """Yield how much of the space the rules forbid, with one reason, a line each."""
    dead = never_launched(space, prepared.infeasible)
    for arm, why in dead.items():
        yield f"arm {arm} is never launched: {why}"
    points = [x for x in space.points() or () if x.get(N) == 0 or str(x.get(ARM)) not in dead]
    reasons = [why for why in map(prepared.infeasible, points) if why is not None]
    if reasons:
        yield f"{len(reasons)} of {len(points)} points are never launched: {reasons[0]}"


def notes_before(prepared: Prepared, space: Space, untested: str | None) -> Iterator[str]:
    """Yield what is said before the first trial, a line each.

    Args:
        prepared: The study.
        space: The searched parameters, as the study keeps them.
        untested: What is not known of the machine; None: nothing.
    """
    spec = prepared.spec
    if spec.rehearsal_label:
        yield upper(spec.rehearsal_label)
    yield from infeasible_notes(prepared, space)
    yield from sample_size.notes(spec)
    yield from prepared.workload.notes
    if untested is not None:
        yield untested
