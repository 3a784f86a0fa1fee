"""Studies over the server double, for tests that need a whole run in seconds."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import httpx
import psutil
import pytest
import yaml
from click.testing import CliRunner

from autotune.cli.main import main
from autotune.engine.command import OWNER_VARIABLE
from autotune.tuning import tools

if TYPE_CHECKING:
    from tests.faults.start import Started, Starter

DOUBLE = str(Path(__file__).parent / "double.py")
# Longest wait for what comes within seconds on an idle machine: how busy it is decides nothing.
PATIENCE_S = 120.0
# Launches whose end was never written down.
UNENDED = "select count(*) from autotune_launches where ended_at is null"


def use_tools(monkeypatch: pytest.MonkeyPatch, **given: object) -> None:
    """Let runs use other :class:`autotune.tuning.tools.Tools` than this machine's."""
    monkeypatch.setattr(tools, "REAL", dataclasses.replace(tools.REAL, **given))  # type: ignore[arg-type]


def model_of(folder: Path) -> str:
    """A hub name that no other folder's study has."""
    return f"org/{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"


def write_study(folder: Path, *, name: str = "double", **changes: object) -> Path:
    """A study file over the double; ``changes`` are dotted keys with ``__`` between.

    Its servers serve :func:`model_of` the folder, by which :func:`processes_of` knows them.
    """
    raw: dict[str, object] = {
        "name": name,
        "server": {
            "command": [sys.executable, DOUBLE],
            "model": model_of(folder),
            "flags": {"max-num-seqs": 2},
            "speculative": {"method": "dflash", "model": "org/draft"},
            "env": {},
            "health_timeout_s": PATIENCE_S,
            "stop_timeout_s": 30,
        },
        "space": {
            "num_speculative_tokens": {"type": "int", "low": 0, "high": 15},
            "max_num_batched_tokens": {"type": "pow2", "low": 32, "high": 2048},
        },
        "workload": {
            "random": {"input_len": 16},
            "output_len": 12,
            "num_prompts": 6,
            "warmup_prompts": 2,
            "max_concurrency": 2,
        },
        "measure": {"repeat_disturbed": False},  # other tests, or a browser, may run beside it
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        at = raw
        for part in path:
            at = at.setdefault(part, {})  # type: ignore[assignment]
        at[last] = value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    return file


def write_study_with_a_bad_point(folder: Path, **changes: object) -> Path:
    """A grid of n = 0 and n = 15 that sends 400 requests, and serves the second five times slower.

    So a few requests show that it is worse in everything, however busy the machine is.
    """
    turns = folder / "turns"
    turns.write_text('{}\n{"DOUBLE_SPEED": "2"}\n')
    return write_study(
        folder,
        server__env={"DOUBLE_TURNS": str(turns)},
        space={
            "num_speculative_tokens": {"type": "choice", "choices": [0, 15]},
            "max_num_batched_tokens": {"type": "choice", "choices": [2048]},
        },
        search={"method": "grid"},
        workload__num_prompts=400,
        workload__output_len=4,
        measure__precision=0.001,
        measure__dominated_error=0.2,
        **changes,
    )


# No PNGs: each start of a browser takes seconds, and tests/output/test_figures.py draws them.
NO_BROWSER = {"BROWSER_PATH": "/nonexistent"}


def autotune(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command line to its end, in this process: importing everything takes seconds."""
    with contextlib.chdir(cwd), mock.patch.dict(os.environ, NO_BROWSER):
        result = CliRunner().invoke(main, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(args, result.exit_code, result.stdout, result.stderr)


def spawn_autotune(*args: str, cwd: Path) -> subprocess.Popen[str]:
    """Start the command line as a user does: a Python that imports everything first."""
    return subprocess.Popen(
        [sys.executable, "-m", "autotune.cli.main", *args],
        cwd=cwd,
        env={**os.environ, **NO_BROWSER},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Forked:
    """The command line in a process of its own, with the face of :class:`subprocess.Popen`."""

    def __init__(self, started: Started) -> None:
        self._started = started
        self.pid = started.pid

    def poll(self) -> int | None:
        return self._started.poll()

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            self._started.signal(signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def said(self) -> str:
        """What it has said on stdout and stderr so far."""
        with contextlib.suppress(FileNotFoundError):  # it has not opened them yet
            return self._started.out.read_text() + self._started.err.read_text()
        return ""

    def wait_for_words(self, words: str, count: int = 1, timeout_s: float = PATIENCE_S) -> None:
        """Waits until it has said this so many times."""
        deadline = time.monotonic() + timeout_s
        while self.said().count(words) < count:
            late = time.monotonic() > deadline or self.poll() is not None
            # it may have said it between the two looks
            assert not late or self.said().count(words) >= count, f"{words!r}: {self.said()}"
            time.sleep(0.02)

    def communicate(self, timeout: float = 2 * PATIENCE_S) -> tuple[str, str]:
        """Wait for its end; what it said on stdout and stderr."""
        self._started.wait(timeout)
        return self._started.out.read_text(), self._started.err.read_text()


_numbers = itertools.count()


@functools.cache
def own_starter() -> Starter:
    """The forking server of this test process: what it imports, it imports once."""
    from tests.faults.start import Starter

    starter = Starter()
    atexit.register(starter.__exit__)
    return starter


def start_autotune(*args: str, cwd: Path) -> Forked:
    """Start the command line as a process of its own, to be killed or interrupted."""
    said = cwd.with_name(f"{cwd.name}-said-{next(_numbers)}")
    env = {**os.environ, **NO_BROWSER}
    return Forked(own_starter().start(*args, cwd=cwd, name=str(said), env=env))


def query(cwd: Path, sql: str) -> list[tuple[object, ...]]:
    """Rows of the study's database."""
    with contextlib.closing(sqlite3.connect(cwd / "autotune.db")) as c:
        return c.execute(sql).fetchall()


def wait_until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {timeout_s} s"
        time.sleep(0.02)


def wait_for_event(cwd: Path, what: str, count: int, timeout_s: float = PATIENCE_S) -> None:
    """Waits until the database has seen ``what`` so many times."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            rows = query(cwd, "select what from autotune_events")
        except sqlite3.OperationalError:  # not made yet
            rows = []
        if sum(w == what for (w,) in rows) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} events {what!r} within {timeout_s} s")


def wait_for_tokens(cwd: Path, count: int, timeout_s: float = PATIENCE_S) -> None:
    """Waits until the double that was launched last has generated so many tokens."""
    [(argv,)] = query(cwd, "select argv from autotune_launches order by planned_at desc limit 1")
    words = json.loads(str(argv))
    page = f"http://127.0.0.1:{words[words.index('--port') + 1]}/metrics"
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = re.search(
            r"^vllm:generation_tokens_total\S* (\S+)$",
            httpx.get(page, timeout=PATIENCE_S).text,
            re.M,
        )
        assert found is not None
        if float(found[1]) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"not {count} tokens within {timeout_s} s")


def trials(cwd: Path) -> list[dict[str, object]]:
    """`autotune status --json`."""
    done = autotune("status", "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def finished(cwd: Path) -> int:
    """Trials that were launched and came to an end."""
    return sum(
        t["state"] == "complete" or (t["state"] == "failed" and t["failure_kind"] != "infeasible")
        for t in trials(cwd)
    )


def front(cwd: Path, *args: str) -> list[dict[str, object]]:
    """`autotune best --json`."""
    done = autotune("best", "--json", *args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Living servers of the studies in this folder."""
    found = []
    for p in psutil.process_iter():
        try:
            if p.status() != psutil.STATUS_ZOMBIE and model_of(folder) in p.cmdline():
                found.append(p)
        except psutil.NoSuchProcess:
            continue
    return found


def owned(owner: int) -> list[psutil.Process]:
    """Return every living fork server, supervisor and server that a process started."""
    mark = f"{owner}:"
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(OWNER_VARIABLE, "").startswith(mark):
                found.append(process)
        except (psutil.Error, OSError):  # gone, or a zombie
            continue
    return found
