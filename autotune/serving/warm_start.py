"""Warm starts: servers forked from a process that has imported vLLM.

A small model's server is healthy after 35 s on two cores. About 30 of them are the same Python
imports, done in three processes one after the other; on an H200 28 of 42. A fork server
(:mod:`autotune.serving._fork_server`) does them once. It forks the same server: the same arguments,
environment, processes and supervisor.

Where a fork server is not possible, the launch is an ordinary one: nothing here raises.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import socket
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedWriter, FileIO
from pathlib import Path

import psutil
from platformdirs import user_cache_dir

from autotune.engine.command import LAUNCH_VARIABLE, LaunchPlan
from autotune.engine.probe import VllmInfo
from autotune.serving._fork_server import PACKET, openmp
from autotune.study.schema import ServerSpec

FORK_SERVER = Path(__file__).with_name("_fork_server.py")
# Versions whose internals the fork server was tested with: 0.26.0 on GPUs, 0.32.0 on CPUs.
TESTED = ("0.26.0", "0.32.0")
_FORK_S = 30.0  # for a fork server to fork; only a broken machine needs that long
_END_S = 5.0  # for a fork server to end after its socket, or after SIGKILL
# Variables that differ between launches of one study.
_OF_A_LAUNCH = (LAUNCH_VARIABLE, "VLLM_API_KEY")


@dataclass(frozen=True)
class ForkedSupervisor:
    """A supervisor that a fork server forked, with the part of ``subprocess.Popen`` that is used.

    Attributes:
        pid: Pid of the supervisor.
        stdin: Pipe for its commands.
        stdout: Pipe with its events.
        pidfd: Pidfd that reports its end, because it is not a child of this process.
    """

    pid: int
    stdin: BufferedWriter
    stdout: FileIO
    pidfd: FileIO

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end; do nothing if ``pidfd`` is closed, which happens after the end.

        Args:
            timeout: Seconds; None: no limit.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        if self.pidfd.closed:
            return
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired("supervisor", timeout or 0.0)


class WarmStart:
    """The fork server of a run: started for the first launch that can use it, ended with the run.

    Args:
        server: The study's server; with ``launch: cold`` there is no fork server.
        info: The vLLM that is imported.
        log_path: Log of the imports.

    Attributes:
        untested: Line for the user that says why this vLLM is never started warm; None: it is
            tested, or the study wants no warm start, or the server is no Python that can be forked.
    """

    def __init__(self, server: ServerSpec, info: VllmInfo, log_path: Path) -> None:
        self._server = server
        self._info = info
        self._log_path = log_path
        # the variables of a worker on a CPU are known from a launch, of this or an earlier run
        self._openmp: Mapping[str, str] | None = None if info.device == "cpu" else {}
        self._remembered: Path | None = None  # file that keeps them
        self._corrected = False  # whether they differed from those of an earlier run
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._setting: tuple[object, ...] = ()
        self._ready = False
        self._proven = False  # whether one of its servers came up
        self.untested = _untested(server, info)
        tested = self.untested is None
        self._given_up = server.launch == "cold" or not tested or not _has_pidfds()

    def __enter__(self) -> WarmStart:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def learn(self, processes: list[psutil.Process]) -> None:
        """Read the OpenMP variables that vLLM gave a server's worker; keep them for later launches.

        A forked worker has them from the fork server. vLLM spawns a worker that needs other ones
        (:mod:`autotune.serving._fork_server`). Then the fork server starts again, once in a run.

        Args:
            processes: Processes of a healthy server.
        """
        if self._info.device != "cpu" or self._given_up:
            return
        found: list[dict[str, str]] = []
        for process in processes:
            with contextlib.suppress(psutil.Error, OSError):
                found.append(openmp(process.environ()))
        # The worker has the most. One with fewer than the fork server has is not noticed, and
        # imports again.
        given = max(found, key=lambda x: (len(x), x != self._openmp), default={})
        if given == self._openmp or self._corrected:
            return
        if self._openmp is not None:
            self._corrected = True
            self.close()
        self._openmp = given
        if self._remembered is not None:
            draft = self._remembered.with_suffix(f".{os.getpid()}")
            with contextlib.suppress(OSError):  # the next run learns it again
                draft.parent.mkdir(parents=True, exist_ok=True)
                draft.write_text(json.dumps(given))
                draft.replace(self._remembered)

    def prepare(self, plan: LaunchPlan, env: Mapping[str, str]) -> None:
        """Start the fork server, if a launch can use one and there is none; it takes a while.

        Args:
            plan: The launch.
            env: Whole environment of the supervisor.
        """
        entry = self._entry(plan)
        if entry is None or self._given_up or self._alive():
            return
        if self._openmp is None:
            self._remembered = _memory(self._info, env)
            self._openmp = _recalled(self._remembered)
            if self._openmp is None:
                return
        if self._process is not None:
            # what ended it may do so again: one launch without it, then a new one
            self.close()
            return
        self._given_up = True  # unless it gets ready
        self._setting = _setting(env)
        self._start(entry, env)
        if "ready" in self._receive(self._server.health_timeout_s):
            self._ready = True
            self._given_up = False
        else:
            self.close()

    def _start(self, entry: str, env: Mapping[str, str]) -> None:
        """Start the fork server's process, if it can be started."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        argv = [str(self._info.python), str(FORK_SERVER), str(os.getpid()), str(theirs.fileno())]
        with theirs:
            try:
                log = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            except OSError:  # the launch reports what is wrong with the folder
                return
            try:
                self._process = subprocess.Popen(
                    [*argv, entry, cpus],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={
                        **_common(env),
                        **(self._openmp or {}),
                        LAUNCH_VARIABLE: uuid.uuid4().hex,  # so that `autotune reap` finds it
                        # or NumPy's import starts threads, which a fork loses
                        "OPENBLAS_NUM_THREADS": "1",
                    },
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except OSError:
                return
            finally:
                os.close(log)

    def fork(self, log: int, env: Mapping[str, str]) -> ForkedSupervisor | None:
        """Return a forked supervisor that waits for its first line; None: start one without a fork.

        Args:
            log: Open file for the output of supervisor and server.
            env: Whole environment of the supervisor, with the launch's id.
        """
        if not self._alive() or self._socket is None or _setting(env) != self._setting:
            return None
        environment = json.dumps(dict(env)).encode()
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            try:
                owner = os.pidfd_open(os.getpid())
                theirs.callback(os.close, owner)
                (read, write), (events, say) = os.pipe(), os.pipe()
                for fd in (read, say):
                    theirs.callback(os.close, fd)
                stdin = ours.enter_context(FileIO(write, "w"))
                stdout = ours.enter_context(FileIO(events, "r"))
                packet = json.dumps({"bytes": len(environment)}).encode()
                socket.send_fds(self._socket, [packet], [read, say, log, owner])
                pid = int(str(self._receive(_FORK_S)["pid"]))
                pidfd = ours.enter_context(FileIO(os.pidfd_open(pid), "r"))
                theirs.close()  # or the end of the supervisor would go unnoticed
                while environment:
                    environment = environment[stdin.write(environment) :]
            except (OSError, KeyError):  # the fork server or the supervisor died, or hangs
                self.close()
                return None
            ours.pop_all()
        return ForkedSupervisor(pid, BufferedWriter(stdin), stdout, pidfd)

    def judge(self, *, healthy: bool) -> None:
        """Note whether a forked server came up; no more are forked if none ever did.

        Args:
            healthy: Whether it came up; False: it did not, and its log does not say why.
        """
        self._proven = self._proven or healthy
        if not self._proven:
            self._given_up = True
            self.close()

    def close(self) -> None:
        """End the fork server; servers that it forked live on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self._ready:  # else it does not read its socket yet
                    self._process.wait(_END_S)
            with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel or a driver holds it
                self._process.kill()
                self._process.wait(_END_S)
            self._process = None
        self._ready = False

    def _entry(self, plan: LaunchPlan) -> str | None:
        """Return the module of vLLM or the console script that starts a server; None: neither."""
        if self._info.python is None or self._info.version is None:
            return None
        if plan.argv[0] == self._info.python and plan.argv[1] == "-m":
            return plan.argv[2] if plan.argv[2].startswith("vllm.") else None
        return plan.argv[0] if plan.argv[1] == "serve" else None

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _receive(self, timeout: float) -> dict[str, object]:
        """Return the fork server's next packet; empty if it ends, or sends nothing in time."""
        if self._socket is None:
            return {}
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(timeout * 1000):
            return {}
        try:
            packet = self._socket.recv(PACKET)
        except OSError:
            return {}
        return dict(json.loads(packet)) if packet else {}


def _untested(server: ServerSpec, info: VllmInfo) -> str | None:
    """Return why this vLLM is never started warm; None: it may be, or it can never be forked."""
    if server.launch == "cold" or info.python is None or info.version is None:
        return None
    if info.version.partition("+")[0] in TESTED:  # the local part names the build, as in +cu129
        return None
    return (
        f"every server starts cold: warm starts were tested with vLLM {' and '.join(TESTED)}, and "
        f"this is {info.version}"
    )


def _has_pidfds() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # kernels before 5.3, and Pythons that were built for them
        return False
    return True


def _memory(info: VllmInfo, env: Mapping[str, str]) -> Path:
    """Return the file that keeps the variables of this vLLM's worker for an environment."""
    read = {k: v for k, v in env.items() if k.startswith("VLLM_") and k not in _OF_A_LAUNCH}
    read |= openmp(env)
    cores = sorted(os.sched_getaffinity(0))
    asked = [info.python, env.get("PYTHONPATH"), info.version, cores, sorted(read.items())]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:20]
    return Path(user_cache_dir("dflash-autotune"), f"worker-{key}.json")


def _recalled(path: Path) -> dict[str, str] | None:
    """Return the variables that an earlier run has read; None: no file, or a damaged one."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not all(isinstance(x, str) for x in found.values()):
        return None
    return openmp(found)


def _common(env: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in env.items() if k not in _OF_A_LAUNCH}


def _setting(env: Mapping[str, str]) -> tuple[object, ...]:
    """Return what a server inherits, which must be the same as for the fork server."""
    return _common(env), Path("/proc/self/cwd").readlink(), os.sched_getaffinity(0)
