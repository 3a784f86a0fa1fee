"""Faults that are more than a signal: the disk, the database, the terminal."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import pty
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.inject import (
    CONFIRMED,
    RUN_S,
    TURNS,
    Hit,
    Outcome,
    Site,
    allowed,
    check_end,
    reach,
    run_stages,
)
from tests.faults.plan import Fault, Run, Stage
from tests.faults.start import ROOT, Starter
from tests.studies import NO_BROWSER

# -- at a stage of a run -------------------------------------------------------------------------


def paused(hit: Hit) -> None:
    """The tuner stands still for a while, as under a debugger or Ctrl-Z."""
    hit.run.signal(signal.SIGSTOP)
    time.sleep(1.5)
    hit.run.signal(signal.SIGCONT)


def locked(hit: Hit, seconds: float = 2.0) -> None:
    """Another program holds the write lock."""
    code = (
        "import sqlite3, sys, time\n"
        "c = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n"
        "c.execute('begin exclusive')\n"
        "print('locked', flush=True)\n"
        "time.sleep(float(sys.argv[2]))\n"
        "c.execute('commit')\n"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, str(hit.site.database), str(seconds)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == "locked\n", done.stderr


def locked_long(hit: Hit) -> None:
    """Longer than the 20 s that SQLite itself waits, twice."""
    locked(hit, 45.0)


def second_runner(hit: Hit) -> None:
    """Somebody starts the same command again, then by another name of the file.

    The first run stands still meanwhile: it must not be over before the second ones look.
    """
    site = hit.site
    hit.run.signal(signal.SIGSTOP)
    link = site.folder / "link.db"
    link.symlink_to(site.database.name)
    try:
        for database in (site.database, link):
            name = str(site.said / database.stem)
            words = (*site.command(), "--db", database.name)
            second = site.starter.start(*words, cwd=site.folder, name=name)
            problems = check_end(second, Run.REFUSES)
            said = second.err.read_text()
            if f"pid {hit.run.pid}" not in said:
                problems.append(f"does not name the pid of the first: {said}")
            hit.outcome.problems += [f"{database.name}: {p}" for p in problems]
    finally:
        hit.run.signal(signal.SIGCONT)


def fork_server_killed(hit: Hit) -> None:
    """What the launch was forked from, or would have been."""
    found = [p for p in hit.site.processes() if p.environ()["AUTOTUNE_LAUNCH"] != hit.launch_id]
    if len(found) != 1:
        hit.outcome.problems.append(f"there are {len(found)} fork servers")
    for process in found:
        process.kill()


def database_deleted(hit: Hit) -> None:
    for name in ("autotune.db", "autotune.db-wal", "autotune.db-shm"):
        (hit.site.folder / name).unlink(missing_ok=True)


def folder_deleted(hit: Hit) -> None:
    shutil.rmtree(hit.site.folder / "autotune-double")


def disk_full(hit: Hit) -> Callable[[], None]:
    filler = hit.site.folder / "filler"
    fill(filler)
    return filler.unlink


def fill(filler: Path) -> None:
    """Takes every free block of the file system."""
    with filler.open("wb", buffering=0) as f:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while f.write(b"x" * size) == size:
                    continue
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise


_IMMUTABLE = 0x10  # FS_IMMUTABLE_FL
_GET, _SET = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, 64 bit


def immutable(path: Path, on: bool) -> None:
    """As `chattr ±i`: not even root may write, also through files that are open already."""
    fd = os.open(path, os.O_RDONLY)
    try:
        flags = ctypes.c_long()
        fcntl.ioctl(fd, _GET, flags)
        flags.value = flags.value | _IMMUTABLE if on else flags.value & ~_IMMUTABLE
        fcntl.ioctl(fd, _SET, flags)
    finally:
        os.close(fd)


def read_only(hit: Hit) -> Callable[[], None]:
    # not -shm: it is mapped into memory, and a page that cannot be written there is a SIGBUS
    names = ("autotune.db", "autotune.db-wal")
    paths = [p for n in names if (p := hit.site.folder / n).exists()]
    for path in paths:
        immutable(path, True)

    def undo() -> None:
        for path in paths:
            immutable(path, False)

    return undo


def cannot_be_immutable(folder: Path) -> str:
    """Why files cannot be made immutable here; empty if they can."""
    probe = folder / "probe"
    probe.touch()
    try:
        immutable(probe, True)
        immutable(probe, False)
    except OSError as e:
        return f"files cannot be made immutable here ({e.strerror})"
    finally:
        probe.unlink()
    return ""


AT_A_STAGE = {
    f.__name__: f
    for f in (
        paused,
        locked,
        locked_long,
        second_runner,
        fork_server_killed,
        database_deleted,
        folder_deleted,
        disk_full,
        read_only,
    )
}

# -- a database that a run finds -----------------------------------------------------------------


def older_tables(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as c:
        c.execute("update autotune_alembic_version set version_num = '0000'")
        c.commit()


def older_optuna(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as c:
        c.execute("update alembic_version set version_num = 'v2.6.0.a'")
        c.commit()


def page_overwritten(database: Path) -> None:
    data = bytearray(database.read_bytes())
    page = int.from_bytes(data[16:18], "big")
    middle = len(data) // 2 // page * page
    data[middle : middle + page] = random.Random(1).randbytes(page)
    database.write_bytes(data)


def truncated(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2)


def random_bytes(database: Path) -> None:
    database.write_bytes(random.Random(2).randbytes(database.stat().st_size))


FOUND = {
    f.__name__: f for f in (older_tables, older_optuna, page_overwritten, truncated, random_bytes)
}
_DAMAGED = (page_overwritten, truncated, random_bytes)


def finished_site(folder: Path, starter: Starter) -> Site:
    """A study that is done, after one trial."""
    site = Site(folder, starter, wanted=1)
    problems = check_end(site.start(), Run.GOES_ON) + site.check_whole()
    assert not problems, problems
    return site


def run_found(fault: Fault, site: Site) -> Outcome:
    """Damages the database of a finished study, and puts the good one back in the end."""
    outcome = Outcome(fault.name, Stage.OPENING)
    good = site.database.read_bytes()
    neighbour = site.folder / "neighbour.db"
    neighbour.write_bytes(good)
    damage = FOUND[fault.special]
    damage(site.database)
    damaged = site.database.read_bytes()
    assert damaged != good
    try:
        run = site.start()
        outcome.problems += check_end(run, Run.REFUSES)
        said = run.err.read_text()
        outcome.note = said.strip()
        if "autotune.db" not in said:
            outcome.problems.append(f"does not name the file: {said}")
        if damage in _DAMAGED and "recover" not in said and "--db" not in said:
            outcome.problems.append(f"does not say what to do: {said}")
        if site.database.read_bytes() != damaged:
            outcome.problems.append("the file was changed")
        look = site.start((), "status")
        if look.wait(RUN_S) == 0 and damage is not page_overwritten:
            outcome.problems.append("`autotune status` takes it for a good one")
        outcome.problems += [
            f"`autotune status`: {p}" for p in check_end(look, Run.ENDS) if "lines" in p
        ]
        if neighbour.read_bytes() != good:
            outcome.problems.append("another database in the folder was changed")
    finally:
        for tail in ("-wal", "-shm"):
            site.database.with_name(site.database.name + tail).unlink(missing_ok=True)
        site.database.write_bytes(good)
    outcome.problems += check_end(site.start(), Run.GOES_ON) + site.check_whole()
    return outcome


# -- a file system of its own --------------------------------------------------------------------

TMPFS = ["disk_full", "disk_full_before", "read_only_before"]


def no_namespace() -> str:
    """Why a file system cannot be mounted here; empty if it can."""
    argv = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs none /mnt"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "there is no unshare(1)"
    return "" if done.returncode == 0 else f"no mount namespace: {done.stderr.strip()}"


def mount_tmpfs(folder: Path, mib: int = 24) -> None:
    """A small file system; it is gone with the namespace of this process."""
    folder.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", str(folder)],  # noqa: S607
        check=True,
    )


def disk_full_before(folder: Path, starter: Starter, outcome: Outcome) -> None:
    """A new study on a disk that is full already."""
    site = Site(folder, starter, wanted=1)
    filler = folder / "filler"
    fill(filler)
    run = site.start()
    outcome.problems += check_end(run, Run.REFUSES)
    outcome.note = run.err.read_text().strip()
    filler.unlink()
    outcome.problems += check_end(site.start(), Run.GOES_ON) + site.check_whole()


def read_only_before(folder: Path, starter: Starter, outcome: Outcome) -> None:
    """The file system was mounted read-only since the study's last run."""
    site = finished_site(folder, starter)
    good = site.database.read_bytes()
    remount = ["mount", "-o", "remount,bind,ro", str(folder)]
    subprocess.run(remount, check=True)
    name = str(site.said / "read-only")
    run = starter.start(*site.command(), cwd=folder, name=name)  # writes no turns
    outcome.problems += check_end(run, Run.REFUSES)
    outcome.note = run.err.read_text().strip()
    if site.database.read_bytes() != good:
        outcome.problems.append("the file was changed")
    subprocess.run(["mount", "-o", "remount,bind,rw", str(folder)], check=True)  # noqa: S607
    outcome.problems += check_end(site.start(), Run.GOES_ON) + site.check_whole()


def run_on_tmpfs(
    fault: Fault, stages: Sequence[Stage], folder: Path, starter: Starter
) -> list[Outcome]:
    """Within the namespace: see :func:`no_namespace` for whether there is one."""
    small = folder / "small"
    mount_tmpfs(small)
    if fault.special == "disk_full":
        return run_stages(fault, stages, small, starter, disk_full)
    outcome = Outcome(fault.name, Stage.OPENING)
    of = {"disk_full_before": disk_full_before, "read_only_before": read_only_before}
    of[fault.special](small, starter, outcome)
    return [outcome]


# -- a caller of its own -------------------------------------------------------------------------


def _last(site: Site, outcome: Outcome, wanted: int | None = None) -> Outcome:
    """The run by hand is over: nothing is left, and the same command again finishes the study."""
    outcome.seconds = site.until_gone(None, None, 10)
    outcome.problems += check_end(site.start(), Run.GOES_ON) + site.check_whole(wanted=wanted)
    return outcome


def _command_line(site: Site) -> list[str]:
    return [sys.executable, "-m", "autotune.cli.main", *site.command()]


def _environment() -> dict[str, str]:
    return {**os.environ, **NO_BROWSER, "PYTHONPATH": str(ROOT)}


def terminal_closed(site: Site, outcome: Outcome) -> Outcome:
    """A terminal window is closed: the kernel sends SIGHUP, and no byte can be written."""
    site.turns_file.write_text("{}\n" + _turn())
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(site.folder)
        os.execve(sys.executable, _command_line(site), _environment())  # noqa: S606
    try:
        while site.turns_left() or not _warm(site):
            while _readable(master):
                os.read(master, 65536)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended by itself"
    finally:
        os.close(master)
    begun = time.monotonic()
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > begun + allowed(30):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            outcome.problems.append("the tuner still ran long after its terminal was gone")
            return outcome
        time.sleep(0.01)
    outcome.note = f"exit code {os.waitstatus_to_exitcode(ended[1])}"
    return _last(site, outcome)


def _turn() -> str:
    step = TURNS[Stage.MEASURING]["DOUBLE_STEP_S"]
    return f'{{"DOUBLE_STEP_S": "{step}"}}\n'


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0.005)[0])


def _warm(site: Site) -> bool:
    newest = "(select launch_id from autotune_launches order by planned_at desc limit 1)"
    sql = f"select 1 from autotune_events where what = 'warm' and launch_id = {newest}"  # noqa: S608
    return bool(site.query(sql))


def pipe_closed(site: Site, outcome: Outcome) -> Outcome:
    """Whoever reads stdout goes away after the first line, as in `| head -1`."""
    site.turns_file.write_text(_turn())
    with subprocess.Popen(
        _command_line(site),
        cwd=site.folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        outcome.note = "said " + run.stdout.readline().strip()[:20] + " …"
        run.stdout.close()
        err = run.stderr.read()
        code = run.wait(RUN_S)
    outcome.note = f"exit code {code}"
    lines = [line for line in err.splitlines() if line.strip()]
    if "Traceback" in err or len(lines) > 1:
        outcome.problems.append(f"stderr has {len(lines)} lines: {err[-1500:]}")
    return _last(site, outcome)


def under_timeout(site: Site, outcome: Outcome) -> Outcome:
    """`timeout`, whose time is up while something is measured: SIGALRM is what its timer sends."""
    site.turns_file.write_text(_turn() * 20)
    with subprocess.Popen(
        ["timeout", f"{RUN_S:g}", *_command_line(site)],  # noqa: S607
        cwd=site.folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        while not site.database.exists() or not _warm(site):
            assert run.poll() is None, "it ended by itself"
            time.sleep(0.02)
        run.send_signal(signal.SIGALRM)
        _, err = run.communicate()
    outcome.note = f"exit code {run.returncode}"
    if run.returncode != 124:
        outcome.problems.append(f"exit code {run.returncode} instead of 124")
    if err.count("\n") != 1 or "Traceback" in err:
        outcome.problems.append(f"stderr: {err[-1500:]}")
    return _last(site, outcome)


def confirm_killed(site: Site, outcome: Outcome) -> Outcome:
    """`autotune confirm` on a searched study, killed, and given again."""
    outcome.problems += check_end(site.start(), Run.GOES_ON)
    confirm = ("confirm", str(site.file), "--launches", str(CONFIRMED))
    run = site.start([{}, TURNS[Stage.MEASURING]], *confirm)
    reach(site, run, Stage.CONFIRMING, 0)
    trials, launches = site.finished(), site.measured()
    run.signal(signal.SIGKILL)
    outcome.seconds = site.until_gone(None, run, 10)
    outcome.problems += check_end(run, Run.DIES) + site.check_kept(trials, launches)
    outcome.problems += check_end(site.start((), *confirm), Run.GOES_ON)
    outcome.problems += site.check_whole(wanted=site.wanted + CONFIRMED)
    [(again,)] = site.query("select count(*) from trial_user_attributes where key = 'confirms'")
    if again != CONFIRMED:
        outcome.problems.append(f"{again} launches confirm instead of {CONFIRMED}")
    return outcome


def _made(site: Site) -> set[tuple[str, int]]:
    """The files of a database with the times of their last changes."""
    found = set()
    for path in site.folder.glob("*autotune.db*"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return {x for x in found if not x[0].endswith(".lock")}


def killed_while_made(site: Site, outcome: Outcome) -> Outcome:
    """A new database: the run is killed while it makes the tables, later each time."""
    kills = 0
    for delay_s in (0.0, 0.02, 0.04, 0.06, 0.08, 0.1):
        left = _made(site)
        run = site.start()
        while _made(site) <= left:  # what an earlier kill left is no sign of this run
            assert run.poll() is None, run.err.read_text()
            time.sleep(0.001)
        time.sleep(delay_s)
        run.signal(signal.SIGKILL)
        site.until_gone(None, run, 10)
        outcome.problems += check_end(run, Run.DIES)
        kills += 1
    outcome.note = f"{kills} kills"
    _last(site, outcome)
    if drafts := sorted({p.name for p in site.folder.glob("*autotune.db*")} - _KEPT):
        outcome.problems.append(f"files are left: {drafts}")
    return outcome


_KEPT = {"autotune.db", "autotune.db.lock"}
BY_HAND = {
    f.__name__: f
    for f in (terminal_closed, pipe_closed, under_timeout, confirm_killed, killed_while_made)
}
