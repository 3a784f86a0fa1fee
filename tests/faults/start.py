"""Starts `autotune` in a process of its own, without the seconds that imports take.

A small server (``python -m tests.faults.start FD``) imports everything once, starts no thread, and
forks for every run. What runs is the product's own entry point in a process with its own pid, own
files for stdout and stderr, and the signal handlers of a fresh interpreter.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.paths import ROOT
from tests.studies import NO_BROWSER

_MESSAGE = 1 << 16


@dataclass(eq=False)
class Started:
    """A run that was forked; its output goes to files."""

    starter: Starter
    pid: int
    out: Path
    err: Path

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        self.starter.collect(0)
        return self.starter.codes.get(self.pid)

    def wait(self, timeout_s: float) -> int:
        """The exit code.

        Raises:
            TimeoutError: it still runs.
        """
        deadline = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"autotune (pid {self.pid}) still runs after {timeout_s:g} s")
            self.starter.collect(left)
        return code

    def signal(self, signum: int) -> None:
        """Sends a signal.

        Raises:
            ProcessLookupError: it has ended.
        """
        os.kill(self.pid, signum)


class Starter:
    """The forking server; use it from one thread, as a context manager.

    Args:
        real: Over real servers: nothing of the product is replaced by something cheaper.
        cache: For what a vLLM accepts; without it, the user's own.
        wrapper: Words before the server's command: it, and all runs, are where they put it.
    """

    def __init__(
        self, *, real: bool = False, cache: Path | None = None, wrapper: Sequence[str] = ()
    ) -> None:
        self.codes: dict[int, int] = {}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*wrapper, sys.executable, "-m", "tests.faults.start", str(theirs.fileno())]
                + ["real"] * real,
                cwd=ROOT,
                # one thread: a fork copies only the one that calls it
                env={
                    **os.environ,
                    **NO_BROWSER,
                    **({} if cache is None else {"XDG_CACHE_HOME": str(cache)}),
                    "OPENBLAS_NUM_THREADS": "1",
                },
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def __enter__(self) -> Starter:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait()

    def start(
        self, *args: str, cwd: Path, name: str, env: Mapping[str, str] | None = None
    ) -> Started:
        """Start ``autotune ARGS``; stdout and stderr go to ``name.out`` and ``name.err``.

        Args:
            args: The command line.
            cwd: Where it runs, and where the two files are unless ``name`` is an absolute path.
            name: Of the files, without their endings.
            env: The whole environment; that of the forking server by default.
        """
        out, err = cwd / f"{name}.out", cwd / f"{name}.err"
        self._send(args=args, cwd=str(cwd), out=str(out), err=str(err), env=env and dict(env))
        while True:
            message = self._receive()
            if "code" not in message:
                return Started(self, message["pid"], out, err)

    def collect(self, timeout_s: float) -> None:
        """Takes in the exit codes that are there, waiting for the first one."""
        while select.select([self._socket], [], [], timeout_s)[0]:
            self._receive()
            timeout_s = 0

    def _send(self, **message: object) -> None:
        self._socket.send(json.dumps(message).encode())

    def _receive(self) -> dict[str, int]:
        data = self._socket.recv(_MESSAGE)
        if not data:
            raise RuntimeError("the forking server ended")
        message: dict[str, int] = json.loads(data)
        if "code" in message:
            self.codes[message["pid"]] = message["code"]
        return message


def serve(sock: socket.socket) -> dict[str, Any] | None:
    """Forks for every request; returns it in the child, and None when nobody asks any more."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([sock, read_end], [], [])
        if read_end in ready:
            os.read(read_end, 4096)
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == 0:
                    break
                code = os.waitstatus_to_exitcode(status)
                sock.send(json.dumps({"pid": pid, "code": code}).encode())
        if sock in ready:
            data = sock.recv(_MESSAGE)
            if not data:
                return None
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                os.close(read_end)
                os.close(write_end)
                sock.close()
                request: dict[str, Any] = json.loads(data)
                return request
            sock.send(json.dumps({"pid": pid}).encode())


def become(request: dict[str, Any]) -> None:
    """Makes the forked process look like one that a shell started."""
    for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    if request["env"] is not None:
        os.environ.clear()
        os.environ.update(request["env"])
    for fd, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        flags = os.O_RDONLY if fd == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, fd)
        os.close(opened)


# What a run imports by and by; each of it takes a while.
MODULES = (
    "autotune.output.dashboard",
    "autotune.output.figures.pareto",
    "autotune.results.trials",
    "autotune.tuning.study_run",
)

if __name__ == "__main__":
    from autotune.cli.main import main
    from tests.surroundings import cheap_surroundings

    for module in MODULES:
        importlib.import_module(module)
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        sys.exit("tests.faults.start: an import started a thread; a fork would lose it")
    with contextlib.nullcontext() if "real" in sys.argv else cheap_surroundings():
        asked = serve(socket.socket(fileno=int(sys.argv[1])))
        if asked is not None:
            become(asked)
            main(list(asked["args"]), prog_name="autotune")
