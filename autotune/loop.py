"""The loop of a study: resume, propose, launch, measure, record; knows all other modules.

One trial is one real server: ask → rules → launch → ``/health`` → warm-up → measured requests →
stop, proven dead → tell. Whatever ends the process, the database says where it stood: a launch is
written down before its process exists, and a trial is told only after its server is gone.
"""

from __future__ import annotations

import itertools
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from autotune import sample_size
from autotune.bench import Workload, build_workload
from autotune.bench.interference import disturbed
from autotune.bench.looks import Rival
from autotune.bench.session import Measuring, Result
from autotune.cli.console import Ui
from autotune.engine.cuda_graphs import aligned_sizes, coverage, graphs
from autotune.engine.feasibility import known_for
from autotune.engine.flags import check_flags
from autotune.engine.probe import VllmInfo, probe
from autotune.engine.rules import Known, why_infeasible
from autotune.errors import (
    DatabaseLocked,
    FailureKind,
    MachineError,
    NothingUsable,
    TrialFailure,
    UserError,
)
from autotune.launching import Launched, Launcher
from autotune.ledger import end_unended
from autotune.results.recomputed import LIMIT, Recomputed, measurement_of
from autotune.results.standing import Standing, counts, is_finished, is_outdated, with_points
from autotune.results.text import objective_text, plain
from autotune.results.trials import study_view, trial_view, trial_views
from autotune.results.views import TrialView, cost
from autotune.reuse import Source, find, take
from autotune.search import (
    Converged,
    Proposer,
    SearchEnds,
    SpaceExhausted,
    grid_points,
    plan,
    seed_points,
)
from autotune.search.proposer import CHALLENGES, PointSet, nearest, tried_points
from autotune.serving.machine import machine_line
from autotune.serving.resolve import model_resolver
from autotune.stats import ESTIMATOR, Measurement, expected_between
from autotune.storage.lease import exclusive
from autotune.storage.names import launch_text
from autotune.storage.schema import LaunchRow
from autotune.storage.store import Store, opened
from autotune.study.files import LoadedStudy
from autotune.study.schema import StudySpec
from autotune.study.space import (
    ALIGNED,
    MNBT,
    FloatParam,
    N,
    Point,
    Space,
    Value,
    as_int,
    canonical,
    describe,
)
from autotune.study.weights import weights_id
from autotune.study_objectives import study_objectives
from objectives import Objective

T = TypeVar("T")

# vLLM's default of max_num_batched_tokens for `vllm serve` on a CPU and on a GPU below 70 GiB.
DEFAULT_MNBT = 2048
# vLLM's default of gpu_memory_utilization (vllm/config/cache.py).
DEFAULT_UTILIZATION = 0.92
# So long a database that another program holds is waited for; a backup or a forgotten shell.
LOCKED_S = 600.0
# After so many launches that all failed alike, and none that worked, the study itself is wrong.
SAME_FAILURES = 3


class StopReason(StrEnum):
    """Why a run ended; shown to the user."""

    DONE = "all trials are done"
    TIMEOUT = "the time limit was reached"
    EXHAUSTED = "every point that can launch has been measured"
    CONVERGED = "no further launch is expected to be worth its time"


@dataclass(frozen=True)
class Choice:
    """A trial that is still to be begun.

    Attributes:
        point: Where.
        attrs: The trial's attributes from its beginning.
    """

    point: Point
    attrs: Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A study that was checked against the machine: nothing was launched yet."""

    loaded: LoadedStudy
    info: VllmInfo
    workload: Workload
    confirmation: Workload
    objectives: tuple[Objective, ...]
    resolve: Callable[[str], str]

    @property
    def spec(self) -> StudySpec:
        """The study file."""
        return self.loaded.spec

    @cached_property
    def known(self) -> Known:
        """What the machine and the target tell the rules."""
        return known_for(self.loaded, self.info)

    def infeasible(self, point: Point) -> str | None:
        """Why this vLLM version cannot launch the point, or None."""
        return why_infeasible(self.spec.settings(point), self.info.version, self.known)

    def weights(self) -> dict[str, str]:
        """A hash of the weights of ``target`` and ``draft``, of those that lie on this machine."""
        server = self.spec.server
        named = {"target": server.model, "draft": server.speculative and server.speculative.model}
        places = {role: Path(self.resolve(ref)) for role, ref in named.items() if ref}
        # a name of a hub is no path of ours
        found = {role: weights_id(p) for role, p in places.items() if p.is_absolute()}
        return {role: x for role, x in found.items() if x is not None}


def baseline_point(spec: StudySpec) -> dict[str, Value]:
    """Where the first trial stands: n = 0, vLLM's default budget, else the middle of each axis."""
    space = spec.to_space()
    given = {k.replace("-", "_"): v for k, v in spec.baseline.items()}
    point: dict[str, Value] = {}
    for name, p in space.params.items():
        values = p.values()
        if name in given:
            point[name] = given[name]
        elif name == N:
            point[name] = space.clip(N, 0)
        elif name == MNBT:
            point[name] = space.clip(MNBT, DEFAULT_MNBT)
        elif isinstance(p, FloatParam):
            point[name] = (p.low + p.high) / 2
        elif values is not None:
            point[name] = values[len(values) // 2]
    return point


def prepare(loaded: LoadedStudy, ui: Ui) -> Prepared:
    """Checks everything that can be checked before anything is launched.

    Raises:
        UserError: the user's mistake, as one line with file and key.
    """
    spec = loaded.spec
    sample_size.check(loaded)
    objectives = study_objectives(loaded)
    load = spec.workload
    workload = build_workload(load, loaded.base)
    again = load.model_copy(update={"num_prompts": load.confirm_prompts or load.num_prompts})
    confirmation = build_workload(again, loaded.base)
    space = spec.to_space()
    try:
        space.encode(baseline_point(spec))
    except ValueError as e:
        raise UserError(f"{loaded.path}: baseline: {e}") from e
    if spec.search.method == "grid" and space.size() is None:
        raise UserError(
            f"{loaded.path}: search.method: a grid needs parameters with a list of values; "
            "give `float` parameters as `choice`"
        )

    with ui.waiting("checking vLLM"):
        try:
            info = probe(spec.server)
        except UserError as e:
            raise UserError(f"{loaded.path}: {e}") from e
    resolve = model_resolver(loaded, info, ui.download)
    for key, model in (
        ("server.model", spec.server.model),
        ("server.speculative.model", spec.server.speculative and spec.server.speculative.model),
    ):
        if model:
            try:
                resolve(model)
            except UserError as e:
                raise UserError(f"{loaded.path}: {key}: {e}") from e
    check_flags(loaded, info)
    prepared = Prepared(loaded, info, workload, confirmation, objectives, resolve)
    _check_ahead(prepared)
    _check_some_feasible(prepared, space)
    return prepared


def _check_ahead(prepared: Prepared) -> None:
    """Refuses servers started ahead that vLLM would not start together on a GPU.

    A server that profiles the GPU's memory takes for its own what others take meanwhile, and each
    wants its ``gpu_memory_utilization`` free when it starts, also with a KV cache of fixed size
    (vllm/v1/worker/utils.py:request_memory, gpu_worker.py:determine_available_memory).
    """
    spec, path = prepared.spec, prepared.loaded.path
    ahead = spec.server.ahead
    if not ahead or prepared.info.device != "cuda":
        return
    settings = spec.settings(baseline_point(spec))
    if "kv_cache_memory_bytes" not in settings:
        raise UserError(
            f"{path}: server.ahead: servers that start together disturb each other's memory "
            "profiling. Fix the KV cache with kv-cache-memory-bytes in server.flags"
        )
    share = settings.get("gpu_memory_utilization", DEFAULT_UTILIZATION)
    if isinstance(share, int | float) and share * (ahead + 1) > 1:
        raise UserError(
            f"{path}: server.ahead: vLLM wants {share:g} of the GPU's memory free at every start; "
            f"set gpu-memory-utilization in server.flags to at most {100 // (ahead + 1) / 100:g} "
            "(kv-cache-memory-bytes decides what is used)"
        )


def _check_some_feasible(prepared: Prepared, space: Space) -> None:
    """Refuses a study of which no point can launch."""
    points = space.points()
    if points is None:
        return
    reason: str | None = None
    for point in points:
        why = prepared.infeasible(point)
        if why is None:
            return
        reason = reason or why
    axes = "; ".join(f"{name}: {describe(p)}" for name, p in space.params.items())
    raise UserError(f"{prepared.loaded.path}: space: no point of it can launch ({axes}): {reason}")


def run_study(
    prepared: Prepared,
    *,
    database: Path,
    trials: int,
    seed: int,
    timeout_s: float | None,
    ui: Ui,
    confirm: bool = False,
    stop_below: float | None = None,
    reuse: Sequence[Source] = (),
) -> StopReason:
    """Brings the study to ``trials`` finished trials, from wherever it stands.

    Args:
        database: The SQLite file; made if missing.
        trials: Finished trials that the study shall have in the end, earlier ones included.
            Measured and failed launches count, points that were never launched do not.
        seed: Of a new study; a resumed one keeps its own.
        timeout_s: No launch begins after so many seconds.
        confirm: Search no further: ``trials`` more launches measure the winners again.
        stop_below: The search ends when no launch is expected to gain more, as a share of the
            hypervolume; 0: never. None: as the study says.
        reuse: Earlier studies; their trials are taken, and do not count as ``trials``.

    Raises:
        UserError: the database cannot be used, or belongs to another study; or no trial of
            ``reuse`` can be taken.
        MachineError: the disk is full, the database was damaged or stayed locked; the server is
            gone, and the study resumes.
        NothingUsable: the first launches all failed alike, or there is nothing to confirm.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP; the server is gone, and the study resumes.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def go(store: Store) -> StopReason:
        run = _Run(
            prepared,
            store,
            trials,
            seed,
            deadline,
            ui,
            confirm=confirm,
            stop_below=stop_below,
            reuse=reuse,
        )
        with run.launcher:
            return run.go()

    return run_on(database, ui, go)


def run_on(database: Path, ui: Ui, go: Callable[[Store], T]) -> T:
    """Runs what launches servers, alone on a database, and again when that was locked meanwhile.

    Args:
        database: Made if missing.
        ui: Told that the database is waited for.
        go: Takes up its work from wherever the database says it stands.

    Raises:
        DatabaseLocked: another program held the database for ``LOCKED_S``.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP.
    """
    locked_since: float | None = None
    with exclusive(database), signals():
        while True:
            try:
                with opened(database, create=True) as store:
                    store.take_lease()
                    return go(store)
            except DatabaseLocked as e:  # its server is gone: wait, and go on as after a kill
                now = time.monotonic()
                if locked_since is None or now - locked_since > 2 * LOCKED_S:
                    locked_since = now
                    ui.message(f"{e}. Waiting until it is free")
                if now - locked_since > LOCKED_S:
                    raise


@contextmanager
def signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does, also one that a script started with ``&``.

    And no interrupt is lost: Python prints and forgets what is raised while an object is destroyed,
    as in a garbage collection, which is where a signal's turn comes if it arrives during one. What
    an interrupt broke off, such as SQLAlchemy in the middle of its books, complains when it is
    destroyed; that says nothing to anybody.
    """
    interrupted = False

    def as_interrupt(_signum: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does so for `command &`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)  # again, somewhere else
        elif not interrupted:
            hook(lost)

    hook = sys.unraisablehook
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = {s: signal.signal(s, as_interrupt) for s in numbers}
    sys.unraisablehook = unraisable
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not interrupted:
            sys.unraisablehook = hook
        for s, handler in before.items():
            signal.signal(s, handler)


def graph_misfit(prepared: Prepared) -> Callable[[Point], float] | None:
    """How badly the CUDA graphs of a point fit the study's batches; None: there are none.

    The share of the batch sizes that replay no FULL graph, plus the mean share of padding.
    """
    spec, info = prepared.spec, prepared.info
    if info.device != "cuda" or info.version is None:
        return None
    version, load = info.version, spec.workload.max_concurrency

    def misfit(point: Point) -> float:
        settings = spec.settings(point)
        seqs, mnbt = as_int(settings.get("max_num_seqs")), as_int(settings.get(MNBT))
        if settings.get("enforce_eager") is True or seqs is None or mnbt is None:
            return 0.0
        n = as_int(settings.get(N)) or 0
        given = aligned_sizes(n, seqs, mnbt) if settings.get(ALIGNED) is True else None
        fit = coverage(graphs(n, seqs, mnbt, version, given), min(load or seqs, seqs))
        return 1 - fit.full + fit.padding

    return misfit


class _Run:
    """One run of a study under the database's lock."""

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        trials: int,
        seed: int,
        deadline: float | None,
        ui: Ui,
        *,
        confirm: bool,
        stop_below: float | None,
        reuse: Sequence[Source],
    ) -> None:
        self.p = prepared
        self.spec = prepared.spec
        self.store = store
        self.wanted = trials
        self.held = prepared.spec.budget.confirm_of(trials)  # of the wanted ones, for confirming
        self.confirm_only = confirm
        self.reuse = reuse
        self.stop_below = self.spec.budget.converged if stop_below is None else stop_below
        self.seed = seed
        self.deadline = deadline
        self.ui = ui
        self.space = self.spec.to_space()
        self.launcher = Launcher(prepared, store, self.spec.name)
        self.machine = self.launcher.machine
        self.failures_in_a_row: list[FailureKind] = []
        self.standing = Standing(prepared.objectives)
        self.recomputed = Recomputed(store, self.spec, prepared.objectives)
        self.front: dict[int, Rival] = {}  # as rivals() had it last
        self.searching = True  # False: what is left is to confirm
        self.next: deque[Choice] = deque()  # chosen, so that their servers are started ahead

    def go(self) -> StopReason:
        self.end_leftovers()
        if self.confirm_only:
            self.plan_confirmation()
        earlier = find(self.reuse, self.p, self.machine, self.store)
        row = self.store.begin_study(self.p.loaded, seed=self.seed, wanted=self.wanted)
        self.check_comparable()
        self.proposer = Proposer(
            self.space,
            self.p.infeasible,
            [o.direction for o in self.p.objectives],
            method=self.spec.search.method,
            seed=row.seed,
            stop_below=self.stop_below,
            fixed_n=self.fixed_n(),
            known=graph_misfit(self.p),
        )
        self.study = self.open_study()
        self.space = self.space.kept_as(t.params for t in self.study.get_trials(deepcopy=False))
        if earlier:
            take(earlier, self.store, self.study, self.p, self.fixed_points[0], self.ui.message)
        self.ui.study(study_view(self.store, self.spec.name), self.store.path)
        self.say_infeasible()
        for note in sample_size.notes(self.spec):
            self.ui.message(note)
        if self.launcher.untested is not None:
            self.ui.message(self.launcher.untested)
        self.searching, reason = not self.converged_before(), StopReason.CONVERGED
        while True:
            trial = self.running_trial()
            if trial is None:
                if self.finished() >= self.wanted:
                    return StopReason.DONE if self.searching else reason
                if self.deadline is not None and time.monotonic() >= self.deadline:
                    return StopReason.TIMEOUT
                try:
                    trial = self.ask()
                except SearchEnds as e:
                    if not self.searching:
                        return reason
                    self.searching = False
                    reason = self.search_ended(e)
                    continue
            self.run_trial(trial)

    def fixed_n(self) -> int | None:
        """n of every point, where it is not searched."""
        return as_int(self.spec.settings({}).get(N))

    def converged_before(self) -> bool:
        """Whether an earlier run with this budget found that no launch is worth its time."""
        return self.stop_below > 0 and self.wanted in self.converged()

    def converged(self) -> list[int]:
        """The budgets of which that was found, by trials that all compare with today's."""
        found: list[int] = self.study.user_attrs.get(self.converged_key, [])
        return found

    @cached_property
    def converged_key(self) -> str:
        """The study's attribute of :meth:`converged`."""
        return f"converged_{ESTIMATOR}" if self.outdated() else "converged"

    def search_ended(self, end: SearchEnds) -> StopReason:
        """Keeps that the search is over, so that a resumed run does not take it up again."""
        if not isinstance(end, Converged):
            return StopReason.EXHAUSTED
        self.study.set_user_attr(self.converged_key, [*self.converged(), self.wanted])
        self.ui.message(
            f"converged after {self.finished()} launches: the best next one is expected to gain "
            f"{end.gain:.2%} of the Pareto front's hypervolume, less than {self.stop_below:.2%}, "
            f"and {CHALLENGES} challenges found nothing better"
        )
        return StopReason.CONVERGED

    # -- what an earlier run left --------------------------------------------------------------

    def end_leftovers(self) -> None:
        """Ends servers that an earlier run could not end, of any study in this database."""
        for launch, ended in end_unended(self.store, self.spec.server.stop_timeout_s):
            if ended:
                self.ui.message(
                    f"stopped an orphaned server of an earlier run ({launch_text(launch)}, "
                    f"{ended} processes)"
                )

    def plan_confirmation(self) -> None:
        """Turns "so many launches" into what the loop understands: trials in all, and held back.

        A confirmation that was interrupted is gone on with.
        """
        name = self.spec.name
        if name not in self.store.study_names():
            raise UserError(
                f"{self.store.path}: has no study {name} yet. Start it with `autotune run`"
            )
        self.study = self.store.optuna_study(name)
        trials = self.trials()
        if not trials and self.outdated():
            raise NothingUsable(
                f"{name}: no trial compares with today's numbers; `autotune status` says why, and "
                "`autotune run` measures them again"
            )
        wanted = self.store.load_study(name)[1].wanted
        order = self.confirmation(wanted) or []
        confirmed = sum(t.user_attrs.get("confirmation") == wanted for t in trials)
        if confirmed < len(order):
            self.wanted, self.held = wanted, len(order)
        else:
            self.held = self.wanted
            self.wanted = sum(map(counts, trials)) + self.held

    def check_comparable(self) -> None:
        """Trials of two vLLM versions are not compared; those of two machines with a warning.

        Raises:
            UserError: the earlier trials were measured with another vLLM, or other weights.
        """
        self.check_weights()
        machine, version = self.store.launches.measured_on(self.spec.name)
        if machine is None or version is None:
            return
        now = self.p.info.version
        if now is not None and version.partition("+")[0] != now.partition("+")[0]:
            raise UserError(
                f"{self.store.path}: the trials of {self.spec.name} were measured with vLLM "
                f"{version}, and this is {now}: they are not comparable. Change the study's name "
                "or use another --db"
            )
        if machine_line(machine) != machine_line(self.machine):
            self.ui.message(
                f"earlier trials were measured on another machine ({machine_line(machine)}; "
                f"this is {machine_line(self.machine)}). Compare them with care"
            )

    def check_weights(self) -> dict[str, str]:
        """The weights that are there now.

        Raises:
            UserError: those of the earlier trials were others.
        """
        now = self.p.weights()
        for role, then in self.weights.items():
            if now.get(role, then) != then:
                raise UserError(
                    f"{self.store.path}: the trials of {self.spec.name} were measured with other "
                    f"weights of the {role} ({plain(then)}, now {now[role]}): they are not "
                    "comparable. Restore those weights, change the study's name or use another "
                    "--db"
                )
        return now

    @cached_property
    def weights(self) -> dict[str, str]:
        """Of the study's measured launches, by role: see :meth:`Prepared.weights`."""
        return self.store.launches.weights(self.spec.name)

    def open_study(self) -> optuna.Study:
        directions = [o.direction for o in self.p.objectives]
        names = self.store.storage.get_all_studies()
        new = self.spec.name not in {s.study_name for s in names}
        study = optuna.create_study(
            storage=self.store.storage,
            study_name=self.spec.name,
            directions=directions,
            load_if_exists=True,
        )
        if [d.name.lower() for d in study.directions] != directions:
            raise UserError(
                f"{self.store.path}: has a study {self.spec.name} with other objectives. Change "
                "the study's name or use another --db"
            )
        if new:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names([objective_text(o) for o in self.p.objectives])
        self.store.keep_vllm(self.spec.name, self.p.info.needed_by(self.spec))
        return study

    # -- choosing --------------------------------------------------------------------------------

    def finished(self) -> int:
        """How many trials count towards the wanted ones."""
        return sum(map(counts, self.trials()))

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All trials but those whose numbers do not compare with today's."""
        found = self.recomputed.trials(self.study.get_trials(deepcopy=False))
        return [t for t in found if not is_outdated(t)]

    def outdated(self) -> set[int]:
        """Numbers of the others."""
        found = self.recomputed.trials(self.study.get_trials(deepcopy=False))
        return {t.number for t in found if is_outdated(t)}

    def say_infeasible(self) -> None:
        """How much of the space the rules forbid, with one reason."""
        points = list(self.space.points() or ())
        reasons = [why for why in map(self.p.infeasible, points) if why is not None]
        if reasons:
            self.ui.message(
                f"{len(reasons)} of {len(points)} points are never launched: {reasons[0]}"
            )

    def running_trial(self) -> optuna.trial.FrozenTrial | None:
        """The trial that an ended run was at, to go on with at the same point."""
        for t in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self.space.has_point(t.params):
                return t
            self.never_launched(t, "the run ended before the point was chosen")
        return None

    def never_launched(self, trial: optuna.trial.FrozenTrial, reason: str) -> None:
        """Ends a trial without a point."""
        self.set_attrs(trial, failure_kind=str(FailureKind.INFEASIBLE), failure_reason=reason)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def search_trials(self) -> list[optuna.trial.FrozenTrial]:
        """All trials but those of a confirmation."""
        return [t for t in self.trials() if "confirms" not in t.user_attrs]

    def ask(self) -> optuna.trial.FrozenTrial:
        """Return the next trial.

        Raises:
            SearchEnds: there is nothing left to do.
        """
        waiting = (TrialState.WAITING,)  # a run that ended between the two calls left one
        if not self.study.get_trials(deepcopy=False, states=waiting):
            choice = self.next.popleft() if self.next else self.choose()
            params, attrs = self.space.encode(choice.point), dict(choice.attrs)
            before = self.trials()
            first = next((t.number for t in before if is_finished(t) and t.params == params), None)
            if first is not None and "confirms" not in attrs:
                attrs.setdefault("replicates", first)
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.WAITING,
                    params=params,
                    distributions=self.space.distributions(),
                    user_attrs=attrs,
                )
            )
        trial = self.frozen(self.study.ask().number)
        if self.space.has_point(trial.params):
            return trial
        # autotune 0.1 and 0.2.0 let a trial wait without its parameters
        self.never_launched(trial, "the run ended before the point was chosen")
        return self.ask()

    def choose(self) -> Choice:
        """What follows the trials so far and ``next``: to confirm, planned, or the proposer's.

        Raises:
            SearchEnds: nothing does.
        """
        planned = self.to_confirm()
        if planned is None and not self.searching:
            raise SearchEnds
        return planned or self.planned() or self.suggested()

    def upcoming(self, most: int) -> list[Point]:
        """Points whose turn comes after the running trial's, as far as they can be told by now.

        Winners are chosen when the search is over, so none of the confirmation's before that.

        Args:
            most: So many at most.
        """
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        confirms = any(self.confirming(t.user_attrs) for t in running)
        while len(self.next) < most and self.finished() + 1 + len(self.next) < self.wanted:
            if not confirms and not (self.searching and self.searched() < self.search):
                break
            try:
                self.next.append(self.choose())
            except SearchEnds:
                break
        points = (choice.point for choice in itertools.islice(self.next, most))
        return [q for q in points if self.p.infeasible(q) is None]

    def confirming(self, attrs: Mapping[str, Any]) -> bool:
        """Whether a trial with such attributes is of this budget's confirmation."""
        return attrs.get("confirmation") == self.wanted

    @property
    def search(self) -> int:
        """How many of the wanted trials search."""
        return self.wanted - self.held

    def searched(self) -> int:
        """How many trials of this budget searched, with the running one and those of ``next``."""
        trials = self.trials()
        done = sum(
            (counts(t) or t.state == TrialState.RUNNING) and not self.confirming(t.user_attrs)
            for t in trials
        )
        return done + sum(not self.confirming(choice.attrs) for choice in self.next)

    def suggested(self) -> Choice:
        """Return the proposer's choice.

        Raises:
            SearchEnds: it has none.
        """
        trials = self.trials()
        running = [t for t in trials if t.state == TrialState.RUNNING]
        pending: list[Point] = [self.space.decode(t.params) for t in running]
        pending += [choice.point for choice in self.next]
        proposal = self.proposer.propose(trials, pending)
        attrs: dict[str, Any] = {}
        if proposal.gain is not None:
            attrs["expected_gain"] = proposal.gain
        if proposal.challenge:
            attrs["challenge"] = True
        return Choice(proposal.point, attrs)

    def planned(self) -> Choice | None:
        """The baseline first, then the seeds or the whole grid; None when they are done.

        Raises:
            SpaceExhausted: the whole grid is done.
        """
        tried = tried_points(self.space, self.search_trials())
        chosen = PointSet(choice.point for choice in self.next)
        baseline, *points = self.fixed_points
        if baseline not in tried and baseline not in chosen:
            return Choice(baseline, {"baseline": True})
        if (again := self.to_replicate()) is not None:
            return Choice(self.space.decode(self.frozen(again).params), {"replicates": again})
        point = next((q for q in points if q not in tried and q not in chosen), None)
        if point is None and self.spec.search.method == "grid":
            raise SpaceExhausted
        return None if point is None else Choice(point, {})

    @cached_property
    def fixed_points(self) -> list[dict[str, Value]]:
        """The baseline, then the seeds or the whole grid.

        Raises:
            SpaceExhausted: no point can launch.
        """

        def feasible(q: Point) -> bool:
            return self.p.infeasible(q) is None

        start = canonical(self.space, baseline_point(self.spec))
        baseline = nearest(self.space, start, feasible)
        if baseline is None:
            raise SpaceExhausted
        if self.spec.search.method == "grid":
            return [baseline, *grid_points(self.space)]
        if self.spec.search.method == "gp":
            return seed_points(self.space, baseline, feasible)
        return [baseline]

    def to_replicate(self) -> int | None:
        """The trial whose point the search launches once more, spread over the search.

        In turn the baseline, which every speed-up refers to, and the best so far: launches of one
        point show how far the luck of a launch goes, which no number of requests can tell.
        """
        budget = self.spec.budget
        wanted = budget.replicates_of(self.search)
        if budget.replicates is None and self.spec.search.method == "grid":
            return None
        trials = [t for t in self.search_trials() if counts(t) or t.state == TrialState.RUNNING]
        attrs = [*(t.user_attrs for t in trials), *(choice.attrs for choice in self.next)]
        done = sum("replicates" in a for a in attrs)
        if done >= wanted or len(attrs) < (done + 1) * self.search // (wanted + 1):
            return None
        found = [v for v in self.views() if v.values and v.again is None]
        base = next((v.number for v in found if v.baseline), None)
        if done % 2 == 0 and base is not None:
            return base
        first = self.p.objectives[0]
        front = [v for v in found if v.front and not v.baseline]
        best = min(front, key=lambda v: cost(first, v.value(first)), default=None)
        return best.number if best is not None else base

    def views(self) -> list[TrialView]:
        """Of all trials; takes the longer, the more there are."""
        return trial_views(self.trials(), self.spec, self.p.objectives)

    def placed(self) -> list[optuna.trial.FrozenTrial]:
        """All trials that have a point; afterwards ``standing`` knows every finished one."""
        trials = with_points(self.trials(), self.space)
        self.standing.update(trials)
        return trials

    def to_confirm(self) -> Choice | None:
        """The next launch that measures a candidate again; None while the search goes on.

        The last trials of the wanted ones are held back for it.
        """
        held = self.held
        trials = self.trials()
        begun = [t for t in trials if self.confirming(t.user_attrs)]
        done = len(begun) + sum(self.confirming(choice.attrs) for choice in self.next)
        searched = self.finished() - sum(map(counts, begun))
        if done >= held or (self.searching and searched < self.search):
            return None
        order = self.confirmation(self.wanted)
        if order is None:
            order = self.candidates(held)
            self.study.set_user_attr(f"confirmation_{self.wanted}", order)
        if not order:
            return None
        number = order[done % len(order)]
        point = self.space.decode(self.frozen(number).params)
        return Choice(point, {"confirmation": self.wanted, "confirms": number})

    def confirmation(self, wanted: int) -> list[int] | None:
        """What was planned to confirm in a budget; None: nothing, or what does not compare now."""
        order: list[int] | None = self.study.user_attrs.get(f"confirmation_{wanted}")
        return None if order is not None and self.outdated() & set(order) else order

    def candidates(self, held: int) -> list[int]:
        """Numbers of the trials to confirm, in the order of their ``held`` launches."""
        self.placed()
        found = self.standing.launched()
        directions = [o.direction for o in self.p.objectives]
        try:
            return plan(found.searched, directions, found.baseline, held)
        except ValueError as e:  # an objective that can be zero or negative
            self.ui.message(f"no confirmation: {e}")
            return []

    def frozen(self, number: int) -> optuna.trial.FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def set_attrs(self, trial: optuna.trial.FrozenTrial, **attrs: object) -> None:
        self.store.set_trial_attrs(self.spec.name, trial.number, attrs)

    # -- one trial -------------------------------------------------------------------------------

    def run_trial(self, trial: optuna.trial.FrozenTrial) -> None:
        point = self.space.decode(trial.params)
        self.ui.begin(trial.number, min(self.finished() + 1, self.wanted), point)
        why = self.p.infeasible(point)
        if why is not None:
            self.tell_failure(trial, TrialFailure(FailureKind.INFEASIBLE, why))
            return
        launches = self.store.launches.of_trial(self.spec.name, trial.number)
        measured = [x for x in launches if x.values is not None]
        if measured and not self.repeats(measured):  # but the run ended before the telling
            self.tell(trial, measured[-1].launch_id)
            return
        failed = sum(
            x.failure_kind is not None and not FailureKind(x.failure_kind).of_the_machine
            for x in launches
        )
        attempt = len(launches)
        while True:
            try:
                launch_id = self.launcher.run(
                    trial.number,
                    attempt,
                    point,
                    log=f"trial-{trial.number:04d}",
                    rests=self.rests,
                    measure=lambda launched: self.measure(launched, trial),
                    say=self.ui.stage,
                    then=self.upcoming,
                )
            except TrialFailure as failure:
                failed += 1
                attempt += 1
                if failure.kind.of_the_machine:  # no fault of the point: it is tried again
                    raise MachineError(
                        f"trial {trial.number}: {failure.reason}. Fix that, then run the same "
                        "command again to resume this trial"
                    ) from failure
                if failure.kind.transient and failed < 2:
                    self.ui.message(f"trial {trial.number}: {failure.reason}; retrying once")
                    continue
                self.tell_failure(trial, failure)
                return
            measured.append(self.store.launches.get(launch_id))
            if self.repeats(measured):
                attempt += 1
                why = (measured[-1].quality or {})["disturbed"]
                self.ui.message(f"trial {trial.number}: {why}; measuring again")
                continue
            self.tell(trial, launch_id)
            return

    def repeats(self, measured: Sequence[LaunchRow]) -> bool:
        """True if a trial is launched once more, because its only launch was disturbed."""
        disturbed = (measured[-1].quality or {}).get("disturbed")
        return len(measured) == 1 and bool(disturbed) and self.spec.measure.repeat_disturbed

    def measure(self, launched: Launched, trial: optuna.trial.FrozenTrial) -> None:
        """Warm-up, then the measured requests; stores every request and the objective values."""
        again = "confirms" in trial.user_attrs or "replicates" in trial.user_attrs
        workload = self.p.confirmation if "confirms" in trial.user_attrs else self.p.workload
        measuring = Measuring(
            launched.server,
            self.spec,
            self.p.objectives,
            keep=lambda samples: self.store.requests.add(launched.launch_id, samples),
            progress=self.ui.progress,
        )
        weights = self.check_weights()  # that they were exchanged while the study ran
        self.weights.update(weights)
        rivals = [] if again or trial.user_attrs.get("baseline") else self.rivals()
        self.placed()
        found = self.standing.launched()

        def begin() -> None:
            launched.clock.mark("warm")
            launched.event("warm")
            self.ui.stage("measuring")

        self.ui.stage("warming")
        if self.spec.workload.open_loop:
            measuring.warm(workload.warmup)
        result = measuring.measure(
            workload,
            launched.rest,
            whole="confirms" in trial.user_attrs,
            rivals=rivals,
            between={
                name: expected_between(v.between, v.total.degrees)
                for name, v in found.variance.items()
            },
            finished=len(found.searched),
            begin=begin,
        )
        launched.clock.mark("measured")
        self.store.launches.measured(
            launched.launch_id,
            result.stats,
            result.values,
            {name: (i.low, i.high) for name, i in result.intervals.items()},
            result.quality()
            | {
                "disturbed": self.disturbed(result),
                "beside": launched.beside,
                "weights": weights,
            },
        )
        self.rests.append(launched.rest.kernel_s)
        launched.event("measured")

    def disturbed(self, result: Result) -> str | None:
        """Why the machine was not ours alone, against the study's launches on this machine."""
        return disturbed(result.machine, self.rests)

    @cached_property
    def rests(self) -> list[float]:
        """Seconds of the idle baseline before each measured launch of the study on this machine."""
        return self.store.launches.idle_seconds(self.spec.name, self.machine)

    def rivals(self) -> list[Rival]:
        """The trials of the front, as they were measured."""
        trials = {t.number: t for t in self.placed()}
        before, self.front = self.front, {}
        for number in sorted(self.standing.front()):
            trial = trials[number]
            if trial.state == TrialState.COMPLETE:
                known, others = before.get(number), self.standing.numbers(number)
                if known is None or len(known.again) + 1 != len(others):
                    first, *again = (self.measurement(trials[k]) for k in others)
                    known = Rival(number, first, tuple(again))
                self.front[number] = known
        return list(self.front.values())

    def measurement(self, trial: optuna.trial.FrozenTrial) -> Measurement:
        launch = self.store.launches.get(trial.user_attrs["launch"])
        samples = self.store.requests.samples(launch.launch_id)
        return measurement_of(samples, self.spec.workload, launch.quality)

    # -- telling ---------------------------------------------------------------------------------

    def tell(self, trial: optuna.trial.FrozenTrial, launch_id: str) -> None:
        launch = self.store.launches.get(launch_id)
        values = launch.values
        if values is None:
            raise AssertionError("a launch that failed is never told as measured")
        stats, quality = launch.stats or {}, launch.quality or {}
        errors = [(quality.get("errors") or {}).get(o.name) for o in self.p.objectives]
        self.set_attrs(
            trial,
            point=dict(self.space.decode(trial.params)),
            launch=launch_id,
            vllm_version=launch.vllm_version,
            acceptance_length=stats.get("acceptance_length"),
            acceptance_per_position=stats.get("acceptance_per_position"),
            intervals=launch.intervals,
            log_variances=[None if e is None else e**2 for e in errors],
            quality={k: v for k, v in quality.items() if k != "machine"},
        )
        self.study.tell(trial.number, [values[o.name] for o in self.p.objectives])
        self.store.launches.event(self.spec.name, "told", trial=trial.number, launch_id=launch_id)
        self.failures_in_a_row.clear()
        self.show(trial.number)

    def tell_failure(self, trial: optuna.trial.FrozenTrial, failure: TrialFailure) -> None:
        self.set_attrs(
            trial,
            point=dict(self.space.decode(trial.params)),
            failure_kind=str(failure.kind),
            failure_reason=failure.reason,
            failure_evidence=list(failure.evidence),
        )
        if failure.kind is FailureKind.TIMEOUT:
            self.set_attrs(trial, **{LIMIT: self.spec.server.health_timeout_s})
        self.study.tell(trial.number, state=TrialState.FAIL)
        self.show(trial.number)
        if failure.kind is FailureKind.INFEASIBLE:
            return
        self.failures_in_a_row.append(failure.kind)
        same = len(set(self.failures_in_a_row)) == 1
        nothing_worked = not any(
            counts(t) and t.state == TrialState.COMPLETE for t in self.trials()
        )
        hopeless = failure.kind is FailureKind.MODEL_MISSING or (
            same and len(self.failures_in_a_row) >= SAME_FAILURES
        )
        if nothing_worked and hopeless:
            raise NothingUsable(
                f"{self.spec.name}: all launches failed: {failure.reason}. The last log is in "
                f"{self.launcher.logs.folder}"
            )

    def show(self, number: int) -> None:
        trials = self.placed()
        self.ui.trial(trial_view(trials, number, self.standing, self.space, self.p.objectives))
