"""One real server, owned from birth to proof of death.

The server runs under a guard (:mod:`autotune.serving.guard`), which ends the whole tree when this
process says so or dies. Every process of the tree carries the launch id in its environment, which
is how the tree is recognised whatever happened to its pids, its parents, or the guard.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from autotune.engine.command import OWNER_VARIABLE, LaunchPlan
from autotune.engine.failures import classify
from autotune.engine.probe import VllmInfo
from autotune.errors import FailureKind, LaunchError, UserError
from autotune.serving.gpu_memory import GpuMemory, gpu_memory, held
from autotune.serving.interrupts import held_back
from autotune.serving.process_tree import (
    _KILL_S,
    Identity,
    StopError,
    _kill_all,
    _oom_kills,
    _port_is_free,
    _processes,
    boot_id,
    start_ticks,
)
from autotune.serving.warm_start import WarmGuard, WarmStart
from autotune.study.schema import ServerSpec

_GUARD = Path(__file__).with_name("guard.py")

_POLL_S = 0.25  # between two looks at /health

_START_S = 30.0  # for the guard to start a process; only a broken machine needs it

_GPU_S = 30.0  # for a driver to give back the memory of processes that are gone

_LOG_BYTES = 4 << 20  # the end of a log that is read to classify a failure


@dataclass(frozen=True)
class StopReport:
    """How a server ended.

    Attributes:
        exit_code: Of its first process, negative for a signal; None if nobody saw it end.
        seconds: From the call to the proof of death.
        killed: Processes that needed SIGKILL.
    """

    exit_code: int | None
    seconds: float
    killed: int


class Server:
    """One server process tree.

    Args:
        plan: What to run.
        launch_id: The one that the plan was made with.
        log_path: Takes the server's stdout and stderr; made anew, readable by its owner only.
        server: The study's server, for its time-outs.
        info: What is known of its vLLM; the running server must agree.
        warm: Forks it from a process that has imported vLLM, where it can.

    Attributes:
        gpus_before: Each GPU before its start; empty for a server that uses none.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        *,
        launch_id: str,
        log_path: Path,
        server: ServerSpec,
        info: VllmInfo,
        warm: WarmStart | None = None,
    ) -> None:
        self.plan = plan
        self.launch_id = launch_id
        self.log_path = log_path
        self._spec = server
        self._info = info
        self._warm = warm
        self._guard: subprocess.Popen[bytes] | WarmGuard | None = None
        self._guard_lost = False  # it ended, whether it said so or not
        self._inbox = b""
        self._pid: int | None = None
        self._cgroup: str | None = None
        self._identity = Identity(launch_id, boot_id())
        self.gpus_before: tuple[GpuMemory, ...] = ()
        self._failed: str | None = None
        self._exited = False
        self._exit_code: int | None = None
        self._killed: int | None = None  # None: the guard did not say that nothing is left
        self._oom_kills = 0
        self._report: StopReport | None = None

    def start(self, gpus: tuple[GpuMemory, ...] | None = None) -> Identity:
        """Starts the guard, which starts the server; before, once, what the guard is forked from.

        Args:
            gpus: ``gpus_before`` of the first of several servers that are started together: what
                they all must give back.

        Raises:
            LaunchError: the port is taken, the disk is full, or the program cannot be run.
            UserError: the log cannot be written.
        """
        if not _port_is_free(self.plan.port):
            raise LaunchError(FailureKind.PORT, f"somebody else holds port {self.plan.port}")
        env = {**self.plan.env, OWNER_VARIABLE: f"{os.getpid()}:{start_ticks(os.getpid())}"}
        log = self._open_log()
        try:
            if self._warm is not None:
                self._warm.prepare(self.plan, env)
            self._oom_kills = _oom_kills()
            # what others do on this machine's GPUs is nothing to a server for CPUs
            if self._info.device != "cpu":
                self.gpus_before = gpu_memory() if gpus is None else gpus
            forked = self._warm and self._warm.fork(log, env)
            self._guard = forked or subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                start_new_session=True,  # Ctrl-C in the terminal is for us only
            )
        finally:
            os.close(log)
        self._identity = replace(
            self._identity,
            guard_pid=self._guard.pid,
            guard_ticks=start_ticks(self._guard.pid),
            warm=forked is not None,
        )
        request = {"argv": self.plan.argv, "grace_s": self._spec.stop_timeout_s}
        self._tell(json.dumps({**request, "launch_id": self.launch_id}))
        deadline = time.monotonic() + _START_S
        while self._pid is None and self._failed is None and not self._guard_lost:
            self._pump(deadline - time.monotonic())
            if time.monotonic() > deadline:
                self._failed = f"no process after {_START_S:g} s"
        if self._pid is None:
            self.stop(force=True)
            if self._warm is not None and forked is not None:
                self._warm.judge(healthy=False)
            why = self._failed or "the guard ended"
            raise LaunchError(
                FailureKind.BAD_CONFIG if self._failed else FailureKind.CRASH,
                f"{self.plan.argv[0]} could not be started: {why}",
                tuple(self.log_tail(8)),
            )
        self._identity = replace(
            self._identity, pid=self._pid, ticks=start_ticks(self._pid), cgroup=self._cgroup
        )
        return self._identity

    def _open_log(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        try:
            logs = self.log_path.parent
            logs.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            logs.mkdir(mode=0o700, exist_ok=True)
            return os.open(self.log_path, flags, 0o600)
        except OSError as e:
            if e.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise LaunchError(FailureKind.DISK, f"{self.log_path}: the disk is full") from e
            raise UserError(f"{self.log_path}: cannot be written: {e.strerror}") from e

    def wait_ready(self, on_wait: Callable[[float], None]) -> str | None:
        """Waits for /health, then makes sure that the server is the one we asked for.

        Args:
            on_wait: Called before every look with the seconds waited so far.

        Returns:
            The server's vLLM version; None if it does not tell and none was expected.

        Raises:
            LaunchError: it died, did not answer within ``health_timeout_s``, or another server
                answers.
        """
        begun = time.monotonic()
        client = httpx.Client(
            base_url=self.plan.base_url,
            headers={"Authorization": f"Bearer {self.plan.api_key}"},
            trust_env=False,
            timeout=5,
        )
        try:
            while True:
                waited = time.monotonic() - begun
                on_wait(waited)
                if not self.alive():
                    raise self.failure(FailureKind.CRASH, "the server died while starting")
                if waited > self._spec.health_timeout_s:
                    raise self.failure(
                        FailureKind.TIMEOUT,
                        f"/health did not answer within {self._spec.health_timeout_s:g} s",
                    )
                with contextlib.suppress(httpx.HTTPError), held_back():
                    if client.get("/health").status_code == 200:
                        break
                self._pump(_POLL_S)
            with held_back():
                version = self._check_identity(client)
            if self._warm is not None:
                if self._identity.warm:
                    self._warm.judge(healthy=True)
                self._warm.learn(self.processes())
            return version
        except LaunchError as e:
            if self._warm is not None and self._identity.warm and e.kind.transient:
                self._warm.judge(healthy=False)
            raise
        finally:
            with held_back():
                client.close()

    def _check_identity(self, client: httpx.Client) -> str | None:
        if self._info.python is not None and not self._owns_port():
            # a container's port belongs to its daemon; there the model's name has to do
            raise LaunchError(
                FailureKind.PORT, f"somebody else's server answers on port {self.plan.port}"
            )
        try:
            models = [m["id"] for m in client.get("/v1/models").raise_for_status().json()["data"]]
            answer = client.get("/version")
            version = answer.json()["version"] if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as e:
            raise self.failure(
                FailureKind.WRONG_SERVER, f"what answers on the port is no vLLM ({e!r})"
            ) from e
        if self.plan.served_name not in models:
            raise LaunchError(
                FailureKind.WRONG_SERVER,
                f"the server on port {self.plan.port} serves {', '.join(models) or 'nothing'}, "
                f"not {self.plan.served_name}",
            )
        if self._info.version is not None and not _same_version(version, self._info.version):
            raise LaunchError(
                FailureKind.WRONG_SERVER,
                f"the server on port {self.plan.port} is vLLM {version}, not {self._info.version}",
            )
        return None if version is None else str(version)

    def _owns_port(self) -> bool:
        """True if a process of ours listens on our port."""
        for process in _processes(self.launch_id):
            with contextlib.suppress(psutil.Error):
                for c in process.net_connections(kind="tcp"):
                    if c.status == psutil.CONN_LISTEN and c.laddr.port == self.plan.port:
                        return True
        return False

    def failure(self, default: FailureKind, reason: str) -> LaunchError:
        """What went wrong, told from the exit code and the log.

        Args:
            default: The kind if they tell nothing.
            reason: One line for that case.
        """
        self._pump(0 if self._exited else 0.5)  # its end may be on the way
        verdict = classify(
            self._log_lines(),
            exit_code=self._exit_code,
            default=default,
            reason=reason,
            oom_killed=_oom_kills() > self._oom_kills,
        )
        return LaunchError(verdict.kind, verdict.reason, verdict.evidence)

    def alive(self) -> bool:
        """True while the server's first process runs."""
        self._pump(0)
        return self._pid is not None and not self._exited and not self._guard_lost

    @property
    def known_processes(self) -> bool:
        """False if its processes cannot be told from others, as in a container."""
        return self._info.python is not None

    def processes(self) -> list[psutil.Process]:
        """Every living process of its tree, the guard included."""
        return _processes(self.launch_id)

    def died(self, within_s: float) -> bool:
        """True if the server's first process ends within so many seconds."""
        deadline = time.monotonic() + within_s
        while self.alive() and time.monotonic() < deadline:
            self._pump(deadline - time.monotonic())
        return not self.alive()

    def memory(self) -> int:
        """Bytes that its processes have to themselves (unique set size)."""
        found = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):  # it just ended
                found += process.memory_full_info().uss
        return found

    def stop(self, *, force: bool = False, last: bool = True) -> StopReport:
        """Ends the server; returns only when nothing of it is left. May be called again.

        SIGTERM, then after ``stop_timeout_s`` SIGKILL to everything that is left of the tree.

        Args:
            force: SIGKILL at once.
            last: No server lives on that was started together with it. A GPU's memory is that of
                them all, so it is proven when the last of them has ended.

        Raises:
            StopError: a process survives, the port stays taken, or a GPU's memory does not come
                back.
        """
        if self._report is not None:
            return self._report
        begun = time.monotonic()
        gpus_full = gpu_memory() if self.gpus_before and last else ()
        ours = {p.pid for p in self.processes()} if gpus_full else set()
        killed = 0
        if self._guard is not None:
            self._tell("kill" if force else "stop")
            deadline = begun + (0 if force else self._spec.stop_timeout_s) + _KILL_S
            while self._killed is None and not self._guard_lost and time.monotonic() < deadline:
                self._pump(0.5)
            killed = self._killed or 0
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(timeout=5 if self._killed is not None else 0)
        # nothing is left, unless the guard was killed or is stuck: it is in the launch too
        killed += len(_kill_all(self._identity))
        if self._guard is not None:
            self._guard.wait()
            for file in (
                self._guard.stdin,
                self._guard.stdout,
                self._guard.pidfd if isinstance(self._guard, WarmGuard) else None,
            ):
                if file is not None:
                    with contextlib.suppress(OSError):
                        file.close()
            self._guard_lost = True
            self._mask_log()
            self._prove_port()
            self._prove_gpu_memory(gpus_full, ours)
        self._report = StopReport(self._exit_code, time.monotonic() - begun, killed)
        return self._report

    def _prove_port(self) -> None:
        deadline = time.monotonic() + 5
        while not _port_is_free(self.plan.port):
            if time.monotonic() > deadline:
                raise StopError(
                    f"port {self.plan.port} is still taken after the server's end: something of "
                    "it lives on outside its process tree (a container?); end it by hand"
                )
            time.sleep(0.05)

    def _prove_gpu_memory(self, full: tuple[GpuMemory, ...], ours: set[int]) -> None:
        deadline = time.monotonic() + _GPU_S
        while lost := held(self.gpus_before, full, gpu_memory() if full else (), ours):
            if time.monotonic() > deadline:
                gpu, mib = next(iter(lost.items()))
                raise StopError(
                    f"GPU {gpu} holds {mib} MiB more than before the launch, although every "
                    "process of it is gone, and no other process has them: look at `nvidia-smi`, "
                    "the driver may need a reset"
                )
            time.sleep(0.2)

    def log_tail(self, lines: int = 60) -> list[str]:
        """The last lines of the server's log, secrets masked."""
        return self._log_lines()[-lines:]

    def _log_lines(self) -> list[str]:
        try:
            with self.log_path.open("rb") as f:
                f.seek(max(0, self.log_path.stat().st_size - _LOG_BYTES))
                text = f.read().decode(errors="replace")
        except FileNotFoundError:
            return []
        return self.plan.masked(text).splitlines()

    def _mask_log(self) -> None:
        """Takes secrets out of the log, when nobody writes to it any more."""
        draft = self.log_path.with_suffix(".masked")
        how: dict[str, Any] = {"errors": "surrogateescape", "newline": ""}
        changed = False
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with (
                self.log_path.open(**how) as log,
                os.fdopen(os.open(draft, flags, 0o600), "w", **how) as out,
            ):
                for line in log:
                    clean = self.plan.masked(line)
                    changed = changed or clean != line
                    out.write(clean)
            if changed:
                draft.replace(self.log_path)
        except OSError:  # no room on the disk: the log stays as it is, for its owner's eyes only
            return
        finally:
            draft.unlink(missing_ok=True)

    def _tell(self, line: str) -> None:
        """A command to the guard; if it died, the caller sees it in ``_guard_lost``."""
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # closed by an earlier stop()
                self._guard.stdin.write(line.encode() + b"\n")
                self._guard.stdin.flush()

    def _pump(self, timeout: float) -> None:
        """Takes in what the guard says; waits up to ``timeout`` seconds for it."""
        if self._guard is None or self._guard.stdout is None or self._guard_lost:
            time.sleep(max(0.0, timeout))
            return
        poll = select.poll()
        poll.register(self._guard.stdout, select.POLLIN)
        if not poll.poll(max(0.0, timeout) * 1000):
            return
        data = os.read(self._guard.stdout.fileno(), 65536)
        if not data:
            self._guard_lost = True
            return
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            self._pid = event.get("started", self._pid)
            self._cgroup = event.get("cgroup", self._cgroup)
            self._failed = event.get("failed", self._failed)
            self._killed = event.get("gone", self._killed)
            if "exited" in event:
                self._exited = True
                self._exit_code = event["exited"]


def _same_version(answered: object, expected: str) -> bool:
    """The local part differs between a package's metadata and its own word: ``0.26.0+cu129``."""
    return str(answered).partition("+")[0] == expected.partition("+")[0]
