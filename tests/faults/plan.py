"""What is injected, when, and what must hold: the list behind docs/reliability.md.

In every case ``tests.faults.inject`` checks all of this:

- no process of launch, supervisor or tuner is left after ``within_s`` seconds (where
  ``stays`` says so: the next run or `autotune reap` ends what is left);
- the launch's port is free;
- the database opens and ``PRAGMA integrity_check`` says ok;
- every trial that was finished before is there with the same values, and every launch that was
  measured before with the same numbers and as many requests;
- the run ends as ``run`` says, with at most one line on stderr and no traceback;
- the same command again ends with exactly the wanted number of finished trials, none twice, no
  launch without its end.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, field
from enum import StrEnum


class Stage(StrEnum):
    """Where a run stands when the fault comes."""

    OPENING = "opening"  # the run begins with the database as the fault left it
    LAUNCHING = "launching"  # the server process exists and loads
    WARMING = "warming"
    MEASURING = "measuring"
    STOPPING = "stopping"  # measured; the server is asked to end
    TELLING = "telling"  # the server is gone, the trial is not told yet
    CONFIRMING = "confirming"  # measuring, in the confirmation of the winners


# The event that the loop writes when a stage begins.
EVENTS = {
    Stage.LAUNCHING: "launching",
    Stage.WARMING: "healthy",
    Stage.MEASURING: "warm",
    Stage.STOPPING: "measured",
    Stage.TELLING: "stopped",
    Stage.CONFIRMING: "warm",
}
SERVING = (Stage.LAUNCHING, Stage.WARMING, Stage.MEASURING, Stage.STOPPING)
ALL = (*SERVING, Stage.TELLING, Stage.CONFIRMING)


class Target(StrEnum):
    """The process that gets a signal."""

    TUNER = "tuner"
    SUPERVISOR = "supervisor"
    API = "API process"
    ENGINE = "EngineCore"
    WORKER = "worker"  # below EngineCore; the double has none


class Run(StrEnum):
    """What becomes of the run."""

    DIES = "is killed"
    INTERRUPTED = "ends with one line, exit code 130"
    FAILS = "ends with one line, exit code 1"
    REFUSES = "ends with one line, exit code 2"
    ENDS = "ends"  # with whatever code the caller's own tools give it
    GOES_ON = "goes on to its end, exit code 0"


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: Unique; the row's head.
        run: What must become of the run.
        stages: Where it is injected.
        hits: Signals, in order: to whom and which.
        special: Name of the function in ``tests.faults.special`` instead of ``hits``.
        env: Of every server of the study, for the double.
        wrapper: Words before the server's command.
        container: Its servers are in containers of a stand-in engine, which the signals for the
            API process do not reach: they are for the engine's client.
        warm: Its servers are forked from a fork server.
        spaced: A trial more between two stages.
        within_s: Until nothing of the launch is left.
        stays: What is left until the next run or `autotune reap`; empty: nothing.
        reaped: The stages after which `autotune reap` ends what stays; else the next run does.
        quick: The stages that pytest runs.
        alone: Not side by side with others: it looks at more than its own folder.
    """

    name: str
    run: Run
    stages: tuple[Stage, ...]
    hits: tuple[tuple[Target, signal.Signals], ...] = ()
    special: str = ""
    env: dict[str, str] = field(default_factory=dict)
    wrapper: tuple[str, ...] = ()
    container: bool = False
    warm: bool = False
    spaced: bool = False
    within_s: float = 10.0
    stays: str = ""
    reaped: tuple[Stage, ...] = ()
    quick: tuple[Stage, ...] = ()
    alone: bool = False


# Of the studies over the double, seconds. A server that hangs is noticed after the first two.
HEALTH_S, HANG_S, STOP_S = 8.0, 3.0, 2.0
TERMINATED = (Stage.LAUNCHING, Stage.STOPPING, Stage.TELLING, Stage.CONFIRMING)
PLAIN, STUBBORN = {"DOUBLE_CHILD": "plain"}, {"DOUBLE_CHILD": "stubborn"}
DEAF = {"DOUBLE_CHILD": "stubborn", "DOUBLE_STUBBORN": "1"}

PROCESSES = (
    Fault(
        "SIGKILL of the tuner",
        Run.DIES,
        ALL,
        hits=((Target.TUNER, signal.SIGKILL),),
        env=STUBBORN,
        quick=ALL,
    ),
    *(
        Fault(
            f"{signum.name} to the tuner",
            Run.INTERRUPTED,
            ALL,
            hits=((Target.TUNER, signum),),
            env=STUBBORN,
            # SIGINT: tests/tuning/test_study_run.py; SIGHUP: with the terminal, below
            quick=TERMINATED if signum is signal.SIGTERM else (),
        )
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    ),
    Fault(
        "SIGKILL of the tuner of `autotune confirm`",
        Run.DIES,
        (Stage.CONFIRMING,),
        special="confirm_killed",
        quick=(Stage.CONFIRMING,),
    ),
    Fault(
        "SIGKILL of the API process",
        Run.GOES_ON,
        SERVING,
        hits=((Target.API, signal.SIGKILL),),
        env=PLAIN,
    ),
    Fault(
        "SIGKILL of the API process; EngineCore ignores SIGTERM",
        Run.GOES_ON,
        SERVING,
        hits=((Target.API, signal.SIGKILL),),
        env=STUBBORN,
        quick=SERVING,
    ),
    Fault(
        "SIGKILL of EngineCore",
        Run.GOES_ON,
        SERVING,
        hits=((Target.ENGINE, signal.SIGKILL),),
        env=PLAIN,
        quick=(Stage.LAUNCHING, Stage.MEASURING),
    ),
    Fault(
        "SIGSTOP of the server (it hangs)",
        Run.GOES_ON,
        SERVING,
        hits=((Target.API, signal.SIGSTOP),),
        env=PLAIN,
        within_s=10 + HEALTH_S + STOP_S,
        quick=(Stage.MEASURING,),
    ),
    Fault(
        "SIGKILL of the supervisor",
        Run.GOES_ON,
        SERVING,
        hits=((Target.SUPERVISOR, signal.SIGKILL),),
        env=STUBBORN,
        quick=(Stage.LAUNCHING, Stage.MEASURING),
    ),
    Fault(
        "SIGSTOP of the supervisor",
        Run.GOES_ON,
        (Stage.MEASURING,),
        hits=((Target.SUPERVISOR, signal.SIGSTOP),),
        env=STUBBORN,
        within_s=60,  # the tuner waits half a minute for it before it ends all by itself
    ),
    Fault(
        "SIGSTOP of the supervisor, then SIGKILL of the tuner",
        Run.DIES,
        (Stage.LAUNCHING, Stage.MEASURING),
        hits=((Target.SUPERVISOR, signal.SIGSTOP), (Target.TUNER, signal.SIGKILL)),
        env=STUBBORN,
        stays="all of it stays until the next run or `autotune reap`",
        reaped=(Stage.LAUNCHING,),
        alone=True,
    ),
    Fault(
        "SIGKILL of supervisor and tuner together",
        Run.DIES,
        SERVING[:-1],  # a server that takes its time to end is the next row's
        hits=((Target.SUPERVISOR, signal.SIGKILL), (Target.TUNER, signal.SIGKILL)),
        env=PLAIN,
    ),
    Fault(
        "SIGKILL of supervisor and tuner together; the server ignores SIGTERM",
        Run.DIES,
        (Stage.LAUNCHING, Stage.MEASURING),
        hits=((Target.SUPERVISOR, signal.SIGKILL), (Target.TUNER, signal.SIGKILL)),
        env=DEAF,
        stays="the server stays until the next run or `autotune reap`",
        reaped=(Stage.MEASURING,),
        quick=(Stage.MEASURING,),
        alone=True,
    ),
    Fault(
        "SIGSTOP of the tuner, SIGCONT 1.5 s later",
        Run.GOES_ON,
        ALL,
        special="paused",
        quick=(Stage.MEASURING,),
    ),
    Fault(
        "the terminal is closed (hang-up of a pseudo-terminal)",
        Run.ENDS,
        (Stage.MEASURING,),
        special="terminal_closed",
        quick=(Stage.MEASURING,),
    ),
    Fault(
        "`autotune run | head -1`",
        Run.ENDS,
        (Stage.MEASURING,),
        special="pipe_closed",
        quick=(Stage.MEASURING,),
    ),
    Fault(
        "`timeout 5 autotune run`",
        Run.ENDS,
        (Stage.MEASURING,),
        special="under_timeout",
        quick=(Stage.MEASURING,),
    ),
)

# What stands between the supervisor and the server in a user's command. `"$@"` is the server.
SHELL = ("/bin/sh", "-c", '"$@"; true', "sh")  # ends at SIGTERM and tells nobody
SWALLOWS = ("/bin/sh", "-c", 'trap "" TERM; "$@"; true', "sh")
WAITS = (  # as launchers written in Python: it ignores SIGTERM and waits for its child
    sys.executable,
    "-c",
    (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    ),
)
WRAPPERS = (
    *(
        Fault(
            f"{name}: {hit.name} to the tuner",
            Run.INTERRUPTED if hit is signal.SIGTERM else Run.DIES,
            (Stage.LAUNCHING, Stage.MEASURING),
            hits=((Target.TUNER, hit),),
            env=PLAIN,
            wrapper=wrapper,
            quick=(Stage.MEASURING,) if wrapper is WAITS else (),
        )
        for name, wrapper in {
            'behind `sh -c "…; true"`': SHELL,
            "behind a shell that ignores SIGTERM": SWALLOWS,
            "behind a launcher that does not pass SIGTERM on": WAITS,
            "behind `nohup`": ("nohup",),
        }.items()
        for hit in (signal.SIGTERM, signal.SIGKILL)
    ),
    Fault(
        'behind `sh -c "…; true"`: SIGKILL of the shell',
        Run.GOES_ON,
        (Stage.LAUNCHING, Stage.MEASURING),
        hits=((Target.API, signal.SIGKILL),),
        env=PLAIN,
        wrapper=SHELL,
        quick=(Stage.MEASURING,),
    ),
)

# Servers in containers, of a stand-in engine; tests/serving/test_podman.py has a real one.
CONTAINERS = (
    Fault(
        "in a container: SIGKILL of the tuner",
        Run.DIES,
        SERVING,
        hits=((Target.TUNER, signal.SIGKILL),),
        env=STUBBORN,
        container=True,
        quick=(Stage.LAUNCHING, Stage.MEASURING),
    ),
    Fault(
        "in a container: SIGTERM to the tuner",
        Run.INTERRUPTED,
        SERVING,
        hits=((Target.TUNER, signal.SIGTERM),),
        container=True,
    ),
    Fault(
        "in a container that ignores SIGTERM: SIGTERM to the tuner",
        Run.INTERRUPTED,
        (Stage.LAUNCHING, Stage.MEASURING),
        hits=((Target.TUNER, signal.SIGTERM),),
        env=DEAF,
        container=True,
        quick=(Stage.MEASURING,),
    ),
    Fault(
        "in a container: SIGKILL of the engine's client",
        Run.GOES_ON,
        SERVING,
        hits=((Target.API, signal.SIGKILL),),
        env=STUBBORN,
        container=True,
        quick=(Stage.MEASURING,),
    ),
    Fault(
        "in a container: SIGKILL of the supervisor",
        Run.GOES_ON,
        SERVING,
        hits=((Target.SUPERVISOR, signal.SIGKILL),),
        env=STUBBORN,
        container=True,
    ),
    Fault(
        "in a container that ignores SIGTERM: SIGKILL of supervisor and tuner together",
        Run.DIES,
        (Stage.LAUNCHING, Stage.MEASURING),
        hits=((Target.SUPERVISOR, signal.SIGKILL), (Target.TUNER, signal.SIGKILL)),
        env=DEAF,
        container=True,
        stays="the container stays until the next run or `autotune reap`",
        reaped=(Stage.MEASURING,),
        quick=(Stage.MEASURING,),
        alone=True,
    ),
)

# The same with servers that are forked from a process that has imported vLLM: of a stand-in for it.
WARM = (
    Fault(
        "warm start: SIGKILL of the tuner",
        Run.DIES,
        SERVING,
        hits=((Target.TUNER, signal.SIGKILL),),
        env=STUBBORN,
        warm=True,
        quick=(Stage.LAUNCHING, Stage.MEASURING),
    ),
    Fault(
        "warm start: SIGINT to the tuner",
        Run.INTERRUPTED,
        SERVING,
        hits=((Target.TUNER, signal.SIGINT),),
        env=STUBBORN,
        warm=True,
        quick=(Stage.LAUNCHING,),
    ),
    Fault(
        "warm start: SIGKILL of the API process",
        Run.GOES_ON,
        SERVING,
        hits=((Target.API, signal.SIGKILL),),
        env=STUBBORN,
        warm=True,
    ),
    Fault(
        "warm start: SIGKILL of the supervisor",
        Run.GOES_ON,
        SERVING,
        hits=((Target.SUPERVISOR, signal.SIGKILL),),
        env=STUBBORN,
        warm=True,
        quick=(Stage.MEASURING,),
    ),
    Fault(
        "warm start: SIGKILL of what servers are forked from",
        Run.GOES_ON,
        (*SERVING, Stage.TELLING),
        special="fork_server_killed",
        warm=True,
        spaced=True,  # the next launch has none
        quick=(Stage.LAUNCHING, Stage.TELLING),
    ),
)

STORAGE = (
    Fault(
        "the disk is full",
        Run.FAILS,
        (*SERVING, Stage.TELLING),
        special="disk_full",
        quick=(Stage.MEASURING,),
    ),
    Fault(
        "the disk is full before the run",
        Run.REFUSES,
        (Stage.OPENING,),
        special="disk_full_before",
        quick=(Stage.OPENING,),
    ),
    Fault(
        "the database is on a read-only file system",
        Run.REFUSES,
        (Stage.OPENING,),
        special="read_only_before",
        quick=(Stage.OPENING,),
    ),
    Fault(
        "the database becomes unwritable",
        Run.FAILS,
        (Stage.LAUNCHING, Stage.MEASURING, Stage.TELLING),
        special="read_only",
        quick=(Stage.MEASURING,),
    ),
    Fault(
        "SIGKILL of the tuner while it makes a new database",
        Run.DIES,
        (Stage.OPENING,),
        special="killed_while_made",
        quick=(Stage.OPENING,),
    ),
    Fault(
        "the database is from an older autotune",
        Run.REFUSES,
        (Stage.OPENING,),
        special="older_tables",
        quick=(Stage.OPENING,),
    ),
    Fault(
        "the database is from an older Optuna",
        Run.REFUSES,
        (Stage.OPENING,),
        special="older_optuna",
        quick=(Stage.OPENING,),
    ),
    Fault(
        "a page in the middle of the database is overwritten",
        Run.REFUSES,
        (Stage.OPENING,),
        special="page_overwritten",
        quick=(Stage.OPENING,),
    ),
    Fault(
        "the database is cut to half its length",
        Run.REFUSES,
        (Stage.OPENING,),
        special="truncated",
    ),
    Fault(
        "the database is random bytes",
        Run.REFUSES,
        (Stage.OPENING,),
        special="random_bytes",
        quick=(Stage.OPENING,),
    ),
    Fault(
        "another program locks the database for 2 s",
        Run.GOES_ON,
        (Stage.LAUNCHING, Stage.MEASURING, Stage.TELLING),
        special="locked",
        quick=(Stage.MEASURING,),
    ),
    Fault(
        "another program locks the database for 45 s",
        Run.GOES_ON,
        (Stage.MEASURING,),
        special="locked_long",
    ),
    Fault(
        "a second runner, also by a symlink",
        Run.GOES_ON,
        (Stage.MEASURING,),
        special="second_runner",
        quick=(Stage.MEASURING,),
    ),
    Fault(
        "the database file is deleted",
        Run.FAILS,
        (Stage.LAUNCHING, Stage.MEASURING, Stage.TELLING),
        special="database_deleted",
        quick=(Stage.MEASURING,),
    ),
    Fault(
        "the folder of logs and plots is deleted",
        Run.GOES_ON,
        (Stage.LAUNCHING, Stage.MEASURING),
        special="folder_deleted",
        quick=(Stage.MEASURING,),
    ),
)

FAULTS = (*PROCESSES, *WRAPPERS, *CONTAINERS, *WARM, *STORAGE)


def named(name: str) -> Fault:
    """The fault of this name."""
    return next(f for f in FAULTS if f.name == name)
