"""Injects one fault of the plan at one stage after the other, and checks what must hold.

The stages of a fault share one study: a run is started, brought to the stage, hit, and looked at;
"the same command again" is the start for the next stage, and the last one runs to the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from autotune.storage.location import Server
from tests.engine_double import HIDDEN, engine
from tests.faults.kept import ERRORS, Kept, Reading, Row
from tests.faults.plan import EVENTS, HANG_S, HEALTH_S, STOP_S, Fault, Run, Stage, Target
from tests.faults.start import Started, Starter
from tests.standin import MODULE, write_vllm
from tests.studies import DOUBLE, write_study

MARK = "FAULTS_SITE"  # in the environment of every process of a study's servers
CONFIRMED = 4  # launches that confirm, of a study that does
RUN_S = 300.0  # no run over the double takes so long, however busy the machine is
_SLOW = {"DOUBLE_STEP_S": "0.1"}  # a request takes 1.2 s, the measurement 3.6 s
_SLOWER = {"DOUBLE_STEP_S": "0.2"}  # where a hit that comes too late would meet nobody
# Seconds in the environment; see `allowed`.
PATIENCE = "FAULTS_PATIENCE_S"
# What the server does differently so that a stage lasts: the double's settings of that launch.
TURNS: dict[Stage, dict[str, str]] = {
    Stage.LAUNCHING: {"DOUBLE_DELAY_S": "3"},
    Stage.WARMING: _SLOW,
    Stage.MEASURING: _SLOW,
    Stage.STOPPING: {"DOUBLE_STUBBORN": "1"},
    Stage.TELLING: {},
    Stage.CONFIRMING: {},
}
_NEXT = {
    Stage.LAUNCHING: "healthy",
    Stage.WARMING: "warm",
    Stage.MEASURING: "measured",
    Stage.STOPPING: "stopped",
    Stage.TELLING: "told",
}
EXIT_CODES = {Run.DIES: -9, Run.INTERRUPTED: 130, Run.FAILS: 1, Run.REFUSES: 2, Run.GOES_ON: 0}


@dataclass
class Outcome:
    """What one injection came to.

    Attributes:
        fault: Its name in the plan.
        stage: Where.
        problems: What did not hold; empty: everything did.
        seconds: From the fault until nothing of the launch was left; None where that is no
            question.
        note: What is worth saying in the table.
        skipped: Why it was not injected here.
    """

    fault: str
    stage: str
    problems: list[str] = field(default_factory=list)
    seconds: float | None = None
    note: str = ""
    skipped: str = ""


def marked(mark: str, launch_id: str | None = None) -> list[psutil.Process]:
    """Living processes of a study's servers, of one launch or of all."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it ended, or is another user's
            environ = process.environ()
            launch = environ.get("AUTOTUNE_LAUNCH", environ.get(HIDDEN["AUTOTUNE_LAUNCH"]))
            if environ.get(MARK) == mark and launch_id in (None, launch):
                found.append(process)
    return found


def allowed(within_s: float) -> float:
    """Seconds after which something must be over.

    Args:
        within_s: What is promised. Tests that run beside others allow more of it: how busy the
            machine is must not decide. They still see what never ends.
    """
    return max(within_s, float(os.environ.get(PATIENCE, "0")))


def port_is_free(port: int) -> bool:
    """True if a server could listen there; waits a moment for the kernel."""
    for _ in range(round(allowed(5) / 0.1)):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                s.bind(("127.0.0.1", port))
                return True
        time.sleep(0.1)
    return False


class Site:
    """A folder with one study, and what happens to it."""

    def __init__(
        self,
        folder: Path,
        starter: Starter,
        *,
        wanted: int,
        confirm: int = 0,
        env: dict[str, str] | None = None,
        wrapper: Sequence[str] = (),
        container: bool = False,
        warm: bool = False,
        hangs: bool = False,
        server: Server | None = None,
        options: Sequence[str] = (),
        run_env: dict[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        env = env or {}
        command = [*wrapper, sys.executable, DOUBLE]
        self.ending = contextlib.ExitStack()
        if container:
            made = engine(folder.with_name(f"{folder.name}-engine"), double=command)
            command = [str(self.ending.enter_context(made).client), "run", "--rm", "double"]
        if warm:
            command = [sys.executable, "-m", MODULE]
            env = {**env, "PYTHONPATH": str(write_vllm(folder / "vllm"))}
        self.said = folder.with_name(f"{folder.name}-said")  # not where a full disk may be
        self.said.mkdir(exist_ok=True)
        self.folder, self.starter, self.wanted = folder, starter, wanted
        self.mark = uuid.uuid4().hex
        self.database, self.server = folder / "autotune.db", server
        self.kept = Kept(server or self.database)
        self.options = tuple(options)
        self.run_env = run_env
        self.runs: list[Started] = []
        self.turns_file = folder / "turns"
        self.turns_file.touch()
        self.file = write_study(
            folder,
            server__command=command,
            server__env={**env, MARK: self.mark, "DOUBLE_TURNS": str(self.turns_file)},
            server__health_timeout_s=HEALTH_S if hangs else RUN_S,
            server__stop_timeout_s=STOP_S,
            workload__hang_timeout_s=HANG_S if hangs else RUN_S,
            budget={"confirm": confirm},
        )

    # -- running -----------------------------------------------------------------------------

    def command(self) -> list[str]:
        """The command that is given again and again."""
        return ["run", str(self.file), "--trials", str(self.wanted), *self.options]

    def start(self, turns: Sequence[dict[str, str]] = (), *args: str) -> Started:
        """Starts a run whose next launches have these settings."""
        self.turns_file.write_text("".join(json.dumps(t) + "\n" for t in turns))
        name = str(self.said / f"{len(self.runs) + 1}")
        words = args or self.command()
        run = self.starter.start(*words, cwd=self.folder, name=name, env=self.run_env)
        self.runs.append(run)
        return run

    def hurry(self) -> None:
        """Let the launches after this measure quickly."""
        with self.turns_file.open("r+") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            f.truncate()
            f.write(f"{json.dumps({'DOUBLE_STEP_S': '0.01'})}\n" * 20)

    def turns_left(self) -> int:
        with self.turns_file.open() as f:
            fcntl.flock(f, fcntl.LOCK_SH)  # a launch rewrites it
            return len(f.read().splitlines())

    # -- the database ------------------------------------------------------------------------

    def reading(self) -> AbstractContextManager[Reading]:
        """The database, as it stands; it must exist."""
        return self.kept.reading()

    def query(self, sql: str, *values: object) -> list[Row]:
        return self.kept.rows(sql, *values)

    def is_there(self) -> bool:
        """True if a run has made the database."""
        return self.database.exists() if self.server is None else self.kept.has("autotune_events")

    def finished(self) -> dict[int, Row]:
        """Every trial that came to its end, with all that is known of it, by number."""
        return self.kept.finished()

    def measured(self) -> dict[str, Row]:
        """Every launch that was measured, with its numbers and how many requests it has."""
        return self.kept.measured()

    def port(self, launch_id: str) -> int:
        sql = "select port from autotune_launches where launch_id = ?"
        return int(self.query(sql, launch_id)[0][0])

    # -- the processes -----------------------------------------------------------------------

    def processes(self, launch_id: str | None = None) -> list[psutil.Process]:
        return marked(self.mark, launch_id)

    def target(self, what: Target, launch_id: str) -> psutil.Process:
        """The supervisor, the API process or EngineCore of a launch; waits until it is there."""
        deadline = time.monotonic() + allowed(20)
        while time.monotonic() < deadline:
            if (process := self.look(what, launch_id)) is not None:
                return process
            time.sleep(0.005)
        raise AssertionError(f"launch {launch_id} has no {what}")

    def look(self, what: Target, launch_id: str) -> psutil.Process | None:
        """The same, if it is there."""
        words: dict[psutil.Process, str] = {}
        parents: dict[psutil.Process, int] = {}
        for p in self.processes(launch_id):
            with contextlib.suppress(psutil.Error):
                words[p], parents[p] = " ".join(p.cmdline()), p.ppid()

        def below(parent: psutil.Process | None, word: str) -> psutil.Process | None:
            found = [p for p, of in parents.items() if parent is not None and of == parent.pid]
            # vLLM names its processes; the double's only child has no name of its own
            return next((p for p in found if word in words[p]), found[-1] if found else None)

        supervisor = next((p for p, w in words.items() if "supervisor.py" in w), None)
        api = below(supervisor, "")
        engine = below(api, "EngineCore")
        of = {Target.SUPERVISOR: supervisor, Target.API: api, Target.ENGINE: engine}
        return below(engine, "Worker") if what is Target.WORKER else of[what]

    def until_gone(self, launch_id: str | None, run: Started | None, within_s: float) -> float:
        """Waits until nothing of a launch (of any), and of the run, is left; the seconds."""
        begun, within_s = time.monotonic(), allowed(within_s)
        while True:
            left = [str(p.pid) for p in self.processes(launch_id)]
            if run is not None and run.poll() is None:
                left.append(f"tuner {run.pid}")
            seconds = time.monotonic() - begun
            if not left:
                return seconds
            if seconds > within_s:
                raise AssertionError(f"processes {', '.join(left)} are left after {within_s:g} s")
            time.sleep(0.01)

    def clean_up(self) -> None:
        """Ends whatever a failed case left."""
        while found := self.processes():
            for p in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    p.kill()
            time.sleep(0.02)

    # -- checks ------------------------------------------------------------------------------

    def check_kept(self, trials: dict[int, Any], launches: dict[str, Any]) -> list[str]:
        """The database is whole, and holds what it held before."""
        problems = []
        try:
            problems += self.kept.damage()
            now, launched = self.finished(), self.measured()
        except ERRORS as e:
            return [f"the database: {e!r}"]
        problems += [
            f"trial {n} is {'lost' if n not in now else 'another'}"
            for n, row in trials.items()
            if now.get(n) != row
        ]
        problems += [
            f"launch {k} is {'lost' if k not in launched else 'another'}"
            for k, row in launches.items()
            if launched.get(k) != row
        ]
        return problems

    def check_warm(self, warm: bool) -> list[str]:
        """Its servers were forked, or were not."""
        forked = self.kept.forked()
        return [] if bool(forked) == warm else [f"{forked} launches were warm"]

    def check_whole(
        self,
        *,
        failed: int = 0,
        wanted: int | None = None,
        not_ours: Collection[str] = (),
    ) -> list[str]:
        """The study is done: exactly the wanted number, none twice, nothing open.

        Args:
            failed: How many trials have failed.
            wanted: How many there are; the site's by default.
            not_ours: Launches of another host, whose end is not known here.
        """
        try:
            return self._check_whole(failed, wanted or self.wanted, not_ours)
        except ERRORS as e:
            return [f"the database: {e!r}"]

    def _check_whole(self, failed: int, wanted: int, not_ours: Collection[str]) -> list[str]:
        problems = []
        states: list[str] = []
        reasons: list[str] = []  # of the failed ones
        points: list[tuple[object, str]] = []
        launches: list[str] = []
        for number, (state, told, params, texts) in self.finished().items():
            attrs = {k: json.loads(v) for k, v in texts.items()}
            if attrs.get("failure_kind") == "infeasible":
                continue
            states.append(state)
            if state == "FAIL":
                reasons.append(f"trial {number}: {attrs.get('failure_reason')}")
            if not attrs.keys() & {"confirms", "replicates"}:
                points.append((number, str(params)))
            if state == "COMPLETE":
                launches.append(attrs["launch"])
                [(kept,)] = self.query(
                    'select "values" from autotune_launches where launch_id = ?', attrs["launch"]
                )
                if sorted(json.loads(kept).values()) != sorted(told.values()):
                    problems.append(f"trial {number} has not the numbers of its launch")
        if len(states) != wanted:
            problems.append(f"{len(states)} finished trials instead of {wanted}")
        if states.count("FAIL") != failed:
            problems.append(f"{len(reasons)} failed trials instead of {failed}: {reasons}")
        if len({p for _, p in points}) != len(points):
            problems.append(f"a point was searched twice: {points}")
        if len(set(launches)) != len(launches):
            problems.append("a launch counts for two trials")
        if running := self.query("select number from trials where state in ('RUNNING', 'WAITING')"):
            problems.append(f"trials {running} are open")
        unended = self.query(
            "select trial, launch_id from autotune_launches where ended_at is null"
        )
        if open_ones := [trial for trial, launch_id in unended if launch_id not in not_ours]:
            problems.append(f"launches of trials {open_ones} have no end")
        if left := self.processes():
            problems.append(f"processes are left: {[p.pid for p in left]}")
        return problems


def check_end(run: Started, expected: Run) -> list[str]:
    """The exit code, and what was said."""
    problems = []
    code = run.wait(RUN_S)
    err = run.err.read_text(errors="replace")
    if code != EXIT_CODES.get(expected, code):
        problems.append(f"exit code {code} instead of {EXIT_CODES[expected]}")
    lines = [line for line in err.splitlines() if line.strip()]
    if "Traceback" in err + run.out.read_text(errors="replace") or len(lines) > 1:
        problems.append(f"stderr has {len(lines)} lines: " + " ⏎ ".join(lines)[-1500:])
    elif expected in (Run.FAILS, Run.REFUSES, Run.INTERRUPTED) and not lines:
        problems.append("nothing was said on stderr")
    return problems


@dataclass
class Hit:
    """A run that was brought to a stage."""

    site: Site
    stage: Stage
    run: Started
    launch_id: str
    outcome: Outcome

    def reached(self, what: str) -> bool:
        sql = "select 1 from autotune_events where launch_id = ? and what = ?"
        return bool(self.site.query(sql, self.launch_id, what))


# A special injection; it returns what undoes it once the run has ended, if anything does.
Special = Callable[[Hit], Callable[[], None] | None]


def reach(site: Site, run: Started, stage: Stage, turns_left: int) -> str:
    """Waits until the run stands at the stage; the id of its launch.

    Args:
        turns_left: How many of the settings are left once the launch meant has taken its own.
    """
    confirms = stage is Stage.CONFIRMING
    deadline = time.monotonic() + RUN_S
    while not site.is_there() or (not confirms and site.turns_left() > turns_left):
        _still(run, deadline, stage)
    where = (
        "trial in (select number from trials join trial_user_attributes using (trial_id) "
        "where key = 'confirms')"
        if confirms
        else "launch_id = (select launch_id from autotune_launches order by planned_at desc "
        "limit 1)"
    )
    sql = (
        f"select launch_id from autotune_events where what = ? and {where} "  # noqa: S608
        "and id > ? order by id desc limit 1"
    )
    seen = 0
    if confirms:
        [(seen,)] = site.query("select coalesce(max(id), 0) from autotune_events")
    with site.reading() as c:
        while not (rows := c.rows(sql, EVENTS[stage], seen)):
            _still(run, deadline, stage)
    if EVENTS[stage] in ("healthy", "warm"):
        time.sleep(random.uniform(0, 0.1))  # not always between the same two instructions
    return str(rows[0][0])


def _still(run: Started, deadline: float, stage: Stage) -> None:
    if run.poll() is not None:
        err = run.err.read_text(errors="replace")
        raise AssertionError(f"the run ended before it was {stage}: {err[-1500:]}")
    if time.monotonic() > deadline:
        raise AssertionError(f"the run was never {stage}")
    time.sleep(0.002)


def run_stages(
    fault: Fault,
    stages: Sequence[Stage],
    folder: Path,
    starter: Starter,
    special: Special | None,
) -> list[Outcome]:
    """All stages of a fault over one study."""
    confirm = CONFIRMED if Stage.CONFIRMING in stages else 0
    # one before the first fault, one for each stage but for the last one, which the rest is for
    wanted = max(3, len(stages) * (1 + fault.spaced) + 1 + confirm // 2)
    site = Site(
        folder,
        starter,
        wanted=wanted,
        confirm=confirm,
        wrapper=fault.wrapper,
        container=fault.container,
        warm=fault.warm,
        hangs=(Target.API, signal.SIGSTOP) in fault.hits,
    )
    with site.ending:
        try:
            if fault.run is Run.GOES_ON:
                return _going_on(fault, stages, site, special)
            return _ending(fault, stages, site, special)
        finally:
            site.clean_up()


def _inject(fault: Fault, hit: Hit, special: Special | None) -> Callable[[], None] | None:
    if special is not None:
        return special(hit)
    processes = [
        psutil.Process(hit.run.pid) if to is Target.TUNER else hit.site.target(to, hit.launch_id)
        for to, _ in fault.hits
    ]
    for process, (_, signum) in zip(processes, fault.hits, strict=True):
        process.send_signal(signum)
    return None


def _ending(
    fault: Fault, stages: Sequence[Stage], site: Site, special: Special | None
) -> list[Outcome]:
    """The fault ends the run; one run for each stage, and one to the end."""
    outcomes: list[Outcome] = []
    todo = [(stage, 0) for stage in stages]
    while todo:
        stage, tries = todo.pop(0)
        outcome = Outcome(fault.name, stage)
        outcomes.append(outcome)
        turn = TURNS[stage] | fault.env
        turns = [turn] if site.finished() else [{}, turn]
        try:
            run = site.start(turns)
            launch_id = reach(site, run, stage, 0)
            hit = Hit(site, stage, run, launch_id, outcome)
            trials, launches = site.finished(), site.measured()
            port = site.port(launch_id)
            late = stage in _NEXT and hit.reached(_NEXT[stage])
            undo = _inject(fault, hit, special)
            try:
                if fault.stays:
                    run.wait(RUN_S)
                    _clear(hit, by_reap=stage in fault.reaped)
                else:
                    outcome.seconds = site.until_gone(None, run, fault.within_s)
                outcome.problems += check_end(run, fault.run)
            finally:
                if undo is not None:
                    undo()
            if special is None or special.__name__ != "database_deleted":
                outcome.problems += site.check_kept(trials, launches)
            if not port_is_free(port):
                outcome.problems.append(f"port {port} is taken")
            if late and tries < 5:  # the machine was elsewhere for a moment: hit it once more
                outcome.problems or outcomes.pop()
                todo.insert(0, (stage, tries + 1))
        except (AssertionError, TimeoutError, *ERRORS) as e:
            outcome.problems.append(str(e) or repr(e))
            if run.poll() is None:
                run.signal(signal.SIGKILL)
                run.wait(RUN_S)
            site.clean_up()
    last = site.start()
    outcomes[-1].problems += check_end(last, Run.GOES_ON) + site.check_whole()
    outcomes[-1].problems += site.check_warm(fault.warm)
    return outcomes


def _clear(hit: Hit, *, by_reap: bool) -> None:
    """What stays is ended by `autotune reap`, or by the next run before it launches anything."""
    site = hit.site
    left = site.processes(hit.launch_id)
    hit.outcome.note = f"{len(left)} processes stayed"
    if by_reap:
        seen = site.start((), "ps")
        if seen.wait(RUN_S) != 0 or hit.launch_id[:8] not in seen.out.read_text():
            hit.outcome.problems.append(
                f"`autotune ps` does not show launch {hit.launch_id}: {seen.out.read_text()}"
                f"{seen.err.read_text()[-500:]}"
            )
        begun = time.monotonic()
        reaped = site.start((), "reap")
        if (code := reaped.wait(RUN_S)) != 0:
            said = reaped.err.read_text()[-500:]
            hit.outcome.problems.append(f"`autotune reap`: exit code {code}: {said}")
        if still := site.processes(hit.launch_id):
            hit.outcome.problems.append(f"`autotune reap` left {[p.pid for p in still]}")
        hit.outcome.note += "; `autotune reap` ended them"
    else:
        begun = time.monotonic()
        planned = "select count(*) from autotune_launches"
        [(before,)] = site.query(planned)
        following = site.start([TURNS[Stage.LAUNCHING]])  # must still launch when it is looked at
        while site.query(planned) == [(before,)]:
            _still(following, begun + RUN_S, hit.stage)
        if still := site.processes(hit.launch_id):
            pids = [p.pid for p in still]
            hit.outcome.problems.append(f"the next run launched beside {pids}")
        hit.outcome.note += "; the next run ended them"
        following.signal(signal.SIGTERM)
        hit.outcome.problems += check_end(following, Run.INTERRUPTED)
    hit.outcome.seconds = time.monotonic() - begun


def _going_on(
    fault: Fault, stages: Sequence[Stage], site: Site, special: Special | None
) -> list[Outcome]:
    """The run outlives the fault: all stages in one run."""
    turns: list[dict[str, str]] = [{}]
    left: list[int] = []
    for stage in stages:
        if stage is not Stage.CONFIRMING:
            slow = _SLOWER if fault.hits and TURNS[stage] == _SLOW else TURNS[stage]
            turns.append(slow | fault.env)
        left.append(len(turns))
        if fault.spaced or (fault.hits and stage not in (Stage.STOPPING, Stage.CONFIRMING)):
            turns.append({})  # another trial; or this one is tried once more
    run = site.start(turns)
    outcomes: list[Outcome] = []
    for stage, taken in zip(stages, left, strict=True):
        outcome = Outcome(fault.name, stage)
        outcomes.append(outcome)
        try:
            launch_id = reach(site, run, stage, len(turns) - taken)
            hit = Hit(site, stage, run, launch_id, outcome)
            trials, launches = site.finished(), site.measured()
            port = site.port(launch_id)
            undo = _inject(fault, hit, special)
            if fault.hits:
                outcome.seconds = site.until_gone(launch_id, None, fault.within_s)
                if not port_is_free(port):
                    outcome.problems.append(f"port {port} is taken")
                outcome.note = _failure(site, run, launch_id)
            if undo is not None:
                undo()
            outcome.problems += site.check_kept(trials, launches)
        except (AssertionError, TimeoutError, *ERRORS) as e:
            outcome.problems.append(str(e) or repr(e))
            site.clean_up()
            if run.poll() is not None:
                break
    outcomes[-1].problems += check_end(run, Run.GOES_ON) + site.check_whole()
    outcomes[-1].problems += site.check_warm(fault.warm)
    return outcomes


def _failure(site: Site, run: Started, launch_id: str) -> str:
    """What the run wrote down as the launch's failure; it may still be about to."""
    sql = "select failure_kind, ended_at from autotune_launches where launch_id = ?"
    deadline = time.monotonic() + RUN_S
    while (rows := site.query(sql, launch_id))[0][1] is None:
        _still(run, deadline, Stage.STOPPING)
    return rows[0][0] or "measured already"


def outcomes_as_json(outcomes: Sequence[Outcome]) -> str:
    return json.dumps([asdict(o) for o in outcomes])


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
