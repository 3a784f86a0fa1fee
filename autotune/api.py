"""Studies from Python: `autotune run` with callbacks instead of a terminal.

>>> from autotune import Study
>>> study = Study(
...     {
...         "name": "example",
...         "server": {"model": "org/target", "speculative": {"model": "org/draft"}},
...         "space": {
...             "num_speculative_tokens": {"type": "int", "low": 0, "high": 15},
...             "max_num_batched_tokens": {"type": "pow2", "low": 2048, "high": 16384},
...         },
...         "workload": {
...             "random": {"input_len": 256},
...             "output_len": 128,
...             "num_prompts": 100,
...             "max_concurrency": 8,
...         },
...     }
... )
>>> study
Study('example', 2 parameters)

``tune(study, trials=40)`` would now launch servers and return a :class:`Result`. The database of an
earlier run gives one, too:

>>> from autotune import Result
>>> result = Result.from_database("studies/results/demo-cpu/autotune.db")
>>> result
Result('demo-cpu', ... trials finished)
>>> result.best() in result.trials
True

An interrupt (Ctrl-C, "interrupt the kernel") ends the server and raises ``KeyboardInterrupt``; the
same call resumes at the same point. In a notebook, no other cell runs during a call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml

from autotune.bench.sample import Sample
from autotune.errors import NothingUsable, UserError
from autotune.output.export.choice import measured_trial
from autotune.output.export.write import shell_command
from autotune.results.certificates import Certificate
from autotune.results.flatness import Statement, statement_of
from autotune.results.read_request_acceptance import read_request_acceptance
from autotune.results.rehearsed import with_kept_acceptance
from autotune.results.request_acceptance import RequestAcceptance
from autotune.results.rows import study_rows
from autotune.results.text import plain
from autotune.results.trials import study_view
from autotune.results.views import StudyView, TrialView, why_no_best
from autotune.storage.location import Database, parse_database
from autotune.storage.store import opened
from autotune.study.files import LoadedStudy, load_study, parse_study
from autotune.study.schema import StudySpec
from autotune.study.space import Point
from autotune.tuning.prepare import prepare
from autotune.tuning.progress import OUTSIDE, At
from autotune.tuning.slots import cluster_of, slots_of_host
from autotune.tuning.study_run import run_study
from autotune.tuning.verify import Asked, verify_study

__all__ = ["Event", "Result", "StopTuning", "Study", "tune", "verify"]

DATABASE = Path("autotune.db")


class StopTuning(Exception):
    """Exception that a callback raises to end :func:`tune`, which returns the present result."""


class Study:
    """Content of a study file: what to serve, the load on it, and what to search.

    Args:
        spec: The keys of a study file (``docs/study-reference.md``) as a mapping, or as a
            :class:`autotune.study.schema.StudySpec`.
        base: Folder that its relative paths start from; the current one by default.

    Raises:
        UserError: a key is wrong; the text names it and says what is allowed.
    """

    def __init__(self, spec: StudySpec | Mapping[str, Any], base: str | Path | None = None) -> None:
        raw = (
            spec.model_dump(mode="json", exclude_unset=True)
            if isinstance(spec, StudySpec)
            else _plain(spec)
        )
        path = Path(base or Path.cwd()).absolute() / "<python>"
        try:
            text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
        except yaml.YAMLError as e:
            words = " ".join(str(e).split())
            raise UserError(f"{path}: has a value that no study file can hold: {words}") from e
        self._loaded = parse_study(text, path)

    @classmethod
    def from_file(cls, path: str | Path) -> Study:
        """Read a study file, or a bundled study by its name.

        >>> Study.from_file("demo-cpu")
        Study('demo-cpu', 2 parameters)

        Raises:
            UserError: there is no such study, or it has a mistake.
        """
        study = cls.__new__(cls)
        study._loaded = load_study(str(path))
        return study

    @property
    def name(self) -> str:
        """Name of the study, also in the database."""
        return self.spec.name

    @property
    def spec(self) -> StudySpec:
        """Content of the study file, checked."""
        return self._loaded.spec

    @property
    def loaded(self) -> LoadedStudy:
        """The study with its origin, as other modules take it."""
        return self._loaded

    def __repr__(self) -> str:
        count = len(self.spec.to_space().params)
        return f"Study({self.name!r}, {count} parameter{'s' if count > 1 else ''})"


def _plain(value: Any) -> Any:
    """Return mappings, sequences and paths as YAML has them; anything else unchanged."""
    match value:
        case Mapping():
            return {key: _plain(v) for key, v in value.items()}
        case list() | tuple():
            return [_plain(v) for v in value]
        case Path():
            return str(value)
    return value


@dataclass(frozen=True)
class Event:
    """An event between two finished trials.

    Attributes:
        what: Kind of the event. ``begin``: a trial begins. ``stage``: a stage of the trial begins,
            such as ``launching``. ``progress``: one more request is done. ``message``: anything
            else.
        text: Name of the stage, or the message; empty for ``begin``.
        trial: Number of the running trial; None outside of trials.
        point: Parameters of the running trial; None outside of trials.
        done: Number of finished requests of this stage; with ``progress`` only.
        total: Largest number of requests of this stage; with ``progress`` only.
        slot: Number of the slot that runs the trial, from 0.
    """

    what: Literal["begin", "stage", "progress", "message"]
    text: str
    trial: int | None = None
    point: Point | None = None
    done: int | None = None
    total: int | None = None
    slot: int = 0


OnTrial = Callable[[TrialView], object]
OnEvent = Callable[[Event], object]


class _Listener:
    """Calls callbacks at a run's events (:class:`autotune.tuning.progress.Progress`).

    An exception of a callback must not interrupt the stop of a server. So it is kept until the run
    can be left: at the begin or end of a trial, or at the end of a request.
    """

    def __init__(self, on_trial: OnTrial | None, on_event: OnEvent | None) -> None:
        self._on_trial = on_trial
        self._on_event = on_event
        self._raised: BaseException | None = None
        self._points: dict[int, tuple[int | None, Point]] = {}  # by slot: the running trial
        self._stages: dict[int, str] = {}  # by slot

    def study(self, view: StudyView, database: Database) -> None:
        """Raise a callback's exception before the first trial."""
        self._leave()

    def begin(self, at: At, position: int, point: Point) -> None:
        """Report that a trial begins."""
        self._points[at.slot] = at.trial, point
        self._stages[at.slot] = ""
        self._tell("begin", "", at)
        self._leave()

    def stage(self, at: At, text: str) -> None:
        """Report a stage."""
        self._stages[at.slot] = plain(text)
        self._tell("stage", plain(text), at)

    def progress(self, at: At, done: int, total: int) -> None:
        """Report one more request."""
        self._tell("progress", self._stages.get(at.slot, ""), at, done, total)
        self._leave()

    def message(self, text: str, at: At = OUTSIDE) -> None:
        """Report a message."""
        self._tell("message", plain(text), at)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Report a wait outside of trials."""
        self.stage(OUTSIDE, text)
        try:
            yield
        finally:
            self._stages[0] = ""

    def download(self, stage: str, done: float) -> None:
        """Report progress of the demo's target."""
        if done >= 1:
            self._stages[0] = ""
        else:
            self.stage(OUTSIDE, f"demo model: {stage}")

    def trial(self, at: At, trial: TrialView) -> None:
        """Report a finished trial."""
        self._points.pop(at.slot, None)
        self._stages[at.slot] = ""
        if self._on_trial is not None and self._raised is None:
            self._call(self._on_trial, trial)
        self._leave()

    def _tell(
        self,
        what: Literal["begin", "stage", "progress", "message"],
        text: str,
        at: At,
        done: int | None = None,
        total: int | None = None,
    ) -> None:
        if self._on_event is not None and self._raised is None:
            number, point = self._points.get(at.slot, (None, None))
            self._call(self._on_event, Event(what, text, number, point, done, total, at.slot))

    def _call(self, callback: Callable[[Any], object], value: object) -> None:
        try:
            if callback(value) is False:
                raise StopTuning
        except Exception as e:  # noqa: BLE001 – raised again by _leave
            self._raised = e

    def _leave(self) -> None:
        if self._raised is not None:
            raise self._raised


def tune(
    study: Study,
    *,
    trials: int | None = None,
    database: str | Database = DATABASE,
    seed: int = 0,
    timeout_minutes: float | None = None,
    until_converged: bool = True,
    parallel: int | Literal["auto"] = 1,
    ray: str | None = None,
    on_trial: OnTrial | None = None,
    on_event: OnEvent | None = None,
) -> Result:
    """Run a study, or resume it, until it has ``trials`` finished trials.

    Each trial launches a real server.

    Args:
        study: The study.
        trials: Total number of finished trials, earlier ones included; the study's own
            ``budget.trials`` by default.
        database: SQLite file that keeps everything, made if missing, or the URL of a database of
            PostgreSQL, ``postgresql+psycopg://HOST/NAME``. The same call resumes.
        seed: Random seed of a new study.
        timeout_minutes: No trial begins after this time; the study's own by default.
        until_converged: End the search when no launch is expected to be worth its time.
        parallel: Servers to launch at the same time, each on GPUs or cores of its own; ``"auto"``:
            one on each group of GPUs that a server needs.
        ray: Launch on the nodes of a Ray cluster: ``"auto"`` for that of this host, or host and
            port of its head. Then ``parallel`` is the number of servers of a node without GPUs.
        on_trial: Called with every trial when it is done. If it returns False or raises
            :class:`StopTuning`, the run ends; the trial is kept.
        on_event: Called with every other event; may end the run in the same way. The next call
            resumes the trial that it interrupted.

    Returns:
        The present result of the study.

    Raises:
        UserError: the study or the database cannot be used; one line says why.
        NothingUsable: the first launches all failed for the same reason.
        MachineError: the disk is full, or the database is damaged or stayed locked.
        KeyboardInterrupt: the server is gone, and the same call goes on.
        Exception: an exception of a callback; the server is gone then, too.
    """
    _check_thread("tune", "run")
    slots = None if parallel == "auto" else parallel
    for name, value, least in (("trials", trials, 1), ("seed", seed, 0), ("parallel", slots, 1)):
        if value is not None and value < least:
            raise UserError(f"{name} must be at least {least}, not {value}")
    path = parse_database(database)
    budget = study.spec.budget
    minutes = timeout_minutes if timeout_minutes is not None else budget.timeout_minutes
    listener = _Listener(on_trial, on_event)
    with _quiet_optuna(), _outside_of_loops():
        try:
            prepared = prepare(with_kept_acceptance(study.loaded, path), listener, here=ray is None)
            with cluster_of(prepared, ray, slots, listener.message, path) as cluster:
                reason = str(
                    run_study(
                        prepared if cluster is None else cluster.prepared,
                        database=path,
                        trials=budget.trials if trials is None else trials,
                        seed=seed,
                        timeout_s=None if minutes is None else minutes * 60,
                        progress=listener,
                        stop_below=None if until_converged else 0.0,
                        slots=slots_of_host(prepared, slots) if cluster is None else (),
                        cluster=cluster,
                    )
                )
        except StopTuning:
            reason = "a callback ended it"
    return replace(Result.from_database(path, study.name), reason=reason)


def verify(
    study: Study,
    trial: int | None = None,
    *,
    database: str | Database = DATABASE,
    sampling: bool = False,
    prompts: int | None = None,
    keep: bool = True,
    again: bool = False,
    on_event: OnEvent | None = None,
) -> Certificate | None:
    """Check that a trial's point writes what n = 0 writes, as ``autotune verify`` does.

    It launches three servers, unless there is a verdict already. ``docs/verify.md`` says what it
    means.

    Args:
        study: The study, which was run.
        trial: Number of the trial; the winner by default.
        database: SQLite file or URL with the study. The same call resumes.
        sampling: Draw tokens at temperature 1 where the study's temperature is 0.
        prompts: Most prompts, at least 2; by default 40, up to 64 where answers have fewer than 24
            tokens, or four times the study's concurrency if that is more.
        keep: Keep the answers in the database, without which an interrupted call begins again.
        again: Launch although there is a verdict.
        on_event: Called with every stage, request and message. If it returns False or raises
            :class:`StopTuning`, that exception ends the call.

    Returns:
        The certificate, whose ``verdict`` is ``"certified"``, ``"not certified"`` or ``"not
        judged"``; None: the winner drafts nothing.

    Raises:
        UserError: the study, the trial or the database cannot be used; one line says why.
        NothingUsable: the study has no winner, or a launch failed.
        MachineError: the disk is full, or the database is damaged or stayed locked.
        KeyboardInterrupt: the server is gone, and the same call goes on.
        Exception: an exception of the callback; the server is gone then, too.
    """
    _check_thread("verify", "verify")
    if prompts is not None and prompts < 2:
        raise UserError(f"prompts must be at least 2, not {prompts}")
    path = parse_database(database)
    result = Result.from_database(path, study.name)
    chosen = result.best() if trial is None else measured_trial(result.view, trial)
    if trial is None and chosen.certificate is None:
        return None
    asked = Asked(chosen.number, sampling=sampling, prompts=prompts, keep=keep, again=again)
    listener = _Listener(None, on_event)
    with _quiet_optuna(), _outside_of_loops():
        prepared = prepare(with_kept_acceptance(study.loaded, path), listener)
        found = verify_study(prepared, database=path, asked=asked, progress=listener)
    return found.certificate


def _check_thread(function: str, command: str) -> None:
    """Refuse a thread that no interrupt reaches.

    Raises:
        UserError: it is not the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UserError(
            f"{function}() works in the main thread only, for it must hear of interrupts to end "
            f"its servers; run it there, or `autotune {command}` as a process"
        )


@dataclass(frozen=True, repr=False)
class Result:
    """Result of a study; plain values that later trials do not change.

    Attributes:
        view: The whole study: its trials, objectives, verdict and launch-to-launch variance.
        database: Database of the study.
        reason: Reason for the end of the run, in words; None: the study was only loaded.
    """

    view: StudyView
    database: Database
    reason: str | None = None

    @classmethod
    def from_database(cls, database: str | Database, study: str | None = None) -> Result:
        """Read the result of a study from its database; launch nothing.

        Args:
            database: SQLite file of the study, or a URL of PostgreSQL.
            study: Name of the study, if the database holds several.

        Raises:
            UserError: there is no such database, or no such study in it.
        """
        path = parse_database(database)
        with _quiet_optuna(), opened(path) as store:
            return cls(study_view(store, store.pick_study(study)), path)

    @property
    def trials(self) -> Sequence[TrialView]:
        """Every trial, including failed ones, in the order of their numbers."""
        return self.view.trials

    def rows(self) -> list[dict[str, Any]]:
        """Return every trial as plain data, as ``autotune status --json`` prints them.

        :func:`autotune.results.rows.trial_row` documents keys and units.
        """
        return study_rows(self.view)

    def front(self) -> list[TrialView]:
        """Return the Pareto front, best by the first objective first."""
        return self.view.front()

    def best(self, objective: str | None = None, *, balanced: bool = False) -> TrialView:
        """Return the trial to serve: the confirmation's choice if there is one.

        Args:
            objective: Name of the objective that decides; the study's first one by default.
            balanced: Let all objectives decide; one percent of any counts the same.

        Raises:
            UserError: the study has no such objective.
            NothingUsable: no trial has numbers that can win.
        """
        named = {o.name: o for o in self.view.objectives}
        if objective is not None and objective not in named:
            raise UserError(f"{objective} is not one of this study: {', '.join(named)}")
        trial = self.view.best(named[objective] if objective else None, balanced=balanced)
        if trial is None:
            raise NothingUsable(f"{self.view.name}: {why_no_best(self.view)}")
        return trial

    def command(self, trial: TrialView | None = None) -> str:
        """Return the shell command that serves a trial's point; the best trial's by default."""
        with _quiet_optuna(), opened(self.database) as store:
            return shell_command(store, self.view.name, trial or self.best())

    def all_settings(self) -> Statement | None:
        """Return how far any setting can differ from the baseline, where that is little.

        None: the study has too few launches to say anything.
        """
        with _quiet_optuna(), opened(self.database) as store:
            return statement_of(store, self.view)

    def samples(
        self, trial: TrialView, phase: Literal["measure", "warmup", "fill"] = "measure"
    ) -> list[Sample]:
        """Return every request of a trial's last launch, with its times; empty without a launch."""
        with _quiet_optuna(), opened(self.database) as store:
            launches = store.launches.of_trial(self.view.name, trial.number)
            return store.requests.samples(launches[-1].launch_id, phase) if launches else []

    def request_acceptance(self, trial: TrialView) -> RequestAcceptance | None:
        """Return a trial's accepted drafts by kind of request and by position in the answer.

        None: the trial did not draft, or its vLLM, before 0.29, tells nothing of single requests.
        """
        with _quiet_optuna(), opened(self.database) as store:
            return read_request_acceptance(store, self.view.name, trial.number, trial.point)

    def __repr__(self) -> str:
        v = self.view
        return f"Result({v.name!r}, {v.finished} of {v.wanted} trials finished)"


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _outside_of_loops() -> Iterator[None]:
    """Let ``asyncio.run`` work in a notebook, whose cells run inside of a loop.

    The notebook's loop waits until the cell is done, so the two loops cannot interfere. A thread
    would not need this, but no interrupt would reach it.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        yield
        return
    task = asyncio.current_task(loop)
    if task is not None:
        asyncio.tasks._leave_task(loop, task)
    asyncio.events._set_running_loop(None)
    try:
        yield
    finally:
        asyncio.set_event_loop(loop)
        asyncio.events._set_running_loop(loop)
        if task is not None:
            asyncio.tasks._enter_task(loop, task)
