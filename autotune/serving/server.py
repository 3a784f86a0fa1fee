"""One server, owned from its start to the proof of its end.

The server runs under a supervisor (:mod:`autotune.serving.supervisor`), which ends the whole tree
when this process says so or dies. Every process of the tree carries the launch id in its
environment. By it the tree is recognized, even if pids and parents have changed or the supervisor
is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil

from autotune.engine.command import OWNER_VARIABLE, LaunchPlan
from autotune.engine.failures import classify
from autotune.engine.probe import VllmInfo
from autotune.errors import FailureKind, LaunchError, StopError
from autotune.serving.answering import own_version
from autotune.serving.channel import Channel
from autotune.serving.containers import marked
from autotune.serving.gpu_memory import GpuMemory, gpu_memory, held
from autotune.serving.interrupts import held_back
from autotune.serving.logs import log_lines, mask_log, open_log
from autotune.serving.process_tree import (
    KILL_S,
    Identity,
    boot_id,
    kill_all,
    oom_kills,
    port_is_free,
    processes_of,
    start_ticks,
)
from autotune.serving.warm_start import WarmStart
from autotune.study.schema import ServerSpec

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_POLL_S = 0.25  # between two checks of /health
_START_S = 30.0  # for the supervisor to start a process; only a broken machine needs that long
_GPU_S = 30.0  # for a driver to give back the memory of processes that are gone


@dataclass(frozen=True)
class StopReport:
    """The end of a server.

    Attributes:
        exit_code: Exit code of its first process, negative for a signal; None if nobody saw it end.
        seconds: Seconds from the call to the proof of death.
        killed: Number of processes that needed SIGKILL.
    """

    exit_code: int | None
    seconds: float
    killed: int


class Server:
    """One server process tree.

    Args:
        plan: Plan of the launch.
        launch_id: Launch id that the plan was made with.
        log_path: File for the server's stdout and stderr. It is truncated, and readable by its
            owner only.
        server: The study's server, for its time-outs.
        info: The study's vLLM, which the running server must agree with.
        warm: Warm starts, which fork the server where that is possible.
        owner: Pid of the autotune that the server belongs to, where it is not this process.
        lease_s: Seconds after the last :meth:`renew` when the server is ended; None: it need not be
            renewed.

    Attributes:
        gpus_before: Memory of each GPU before the start; empty for a server that uses none.
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
        owner: int | None = None,
        lease_s: float | None = None,
    ) -> None:
        self.plan = plan
        self.launch_id = launch_id
        self.log_path = log_path
        self.gpus_before: tuple[GpuMemory, ...] = ()
        self._spec = server
        self._info = info
        self._warm = warm
        self._owner = os.getpid() if owner is None else owner
        self._lease_s = lease_s
        self._channel: Channel | None = None
        self._identity = Identity(launch_id, boot_id())
        self._oom_kills = 0
        self._up = False
        self._report: StopReport | None = None

    @property
    def identity(self) -> Identity:
        """Identity of the tree, as far as it is known."""
        return self._identity

    def start(self, gpus: tuple[GpuMemory, ...] | None = None) -> Identity:
        """Start the supervisor, which starts the server; the first warm start takes longer.

        Args:
            gpus: ``gpus_before`` of the first of several servers that are started together: the
                state that they all must restore.

        Raises:
            LaunchError: the port is taken, the disk is full, or the program cannot be run.
            UserError: the log cannot be written.
        """
        if not port_is_free(self.plan.port):
            raise LaunchError(FailureKind.PORT, f"somebody else holds port {self.plan.port}")
        env = {**self.plan.env, OWNER_VARIABLE: f"{self._owner}:{start_ticks(self._owner)}"}
        log = open_log(self.log_path)
        try:
            if self._warm is not None:
                self._warm.prepare(self.plan, env)
            self._oom_kills = oom_kills()
            # a server for CPUs does not depend on what others do on this machine's GPUs
            if self._info.device != "cpu":
                self.gpus_before = gpu_memory() if gpus is None else gpus
            forked = self._warm and self._warm.fork(log, env)
            channel = self._channel = Channel(
                forked
                or subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_SUPERVISOR)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=env,
                    start_new_session=True,  # Ctrl-C in the terminal does not reach it
                )
            )
        finally:
            os.close(log)
        self._identity = replace(
            self._identity,
            supervisor_pid=channel.supervisor_pid,
            supervisor_ticks=start_ticks(channel.supervisor_pid),
            warm=forked is not None,
        )
        pid = self._first_process(channel, env)
        self._identity = replace(
            self._identity, pid=pid, ticks=start_ticks(pid), cgroup=channel.cgroup
        )
        return self._identity

    def _first_process(self, channel: Channel, env: Mapping[str, str]) -> int:
        """Let the supervisor start the server; return the pid of its first process.

        Raises:
            LaunchError: the program cannot be run.
        """
        request: dict[str, object] = {
            "grace_s": self._spec.stop_timeout_s,
            "launch_id": self.launch_id,
            "lease_s": self._lease_s,
        }
        argv, container = marked(self.plan.argv, self.launch_id, env)
        channel.tell(json.dumps({**request, "argv": argv, "container": container}))
        deadline = time.monotonic() + _START_S
        while channel.pid is None and channel.failed is None and not channel.lost:
            channel.pump(deadline - time.monotonic())
            if time.monotonic() > deadline:
                channel.failed = f"no process after {_START_S:g} s"
        if channel.pid is not None:
            return channel.pid
        self.stop(force=True)
        if self._warm is not None and self._identity.warm:
            self._warm.judge(healthy=False)
        why = channel.failed or "the supervisor ended"
        raise LaunchError(
            FailureKind.BAD_CONFIG if channel.failed else FailureKind.CRASH,
            f"{self.plan.argv[0]} could not be started: {why}",
            tuple(self.log_tail(8)),
        )

    def wait_ready(self, on_wait: Callable[[float], None]) -> str | None:
        """Wait for /health, then make sure that the right server answers.

        Args:
            on_wait: Function that is called before every check, with the seconds waited.

        Returns:
            The server's vLLM version; None if it does not tell and none was expected.

        Raises:
            LaunchError: the server died, did not answer within ``health_timeout_s``, or another
                server answers.
        """
        client = httpx.Client(
            base_url=self.plan.base_url,
            headers={"Authorization": f"Bearer {self.plan.api_key}"},
            trust_env=False,
            timeout=5,
        )
        try:
            self._wait_healthy(client, on_wait)
            with held_back():
                version = own_version(client, self.plan, self.launch_id, self._info, self.failure)
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

    def _wait_healthy(self, client: httpx.Client, on_wait: Callable[[float], None]) -> None:
        """Wait for /health; see :meth:`wait_ready`."""
        begun = time.monotonic()
        while True:
            waited = time.monotonic() - begun
            on_wait(waited)
            if not self.alive():
                raise self.failure(FailureKind.CRASH, "the server died while starting")
            if waited > self._spec.health_timeout_s:
                why = f"/health did not answer within {self._spec.health_timeout_s:g} s"
                raise self.failure(FailureKind.TIMEOUT, why)
            with contextlib.suppress(httpx.HTTPError), held_back():
                if client.get("/health").status_code == 200:
                    self._up = True
                    return
            self._pump(_POLL_S)

    def failure(self, default: FailureKind, reason: str) -> LaunchError:
        """Return the failure that is inferred from the exit code and the log.

        Args:
            default: Kind if they do not tell.
            reason: One line for that case.
        """
        # its end may be on the way
        self._pump(0 if self._channel is not None and self._channel.exited else 0.5)
        verdict = classify(
            log_lines(self.log_path, self.plan),
            exit_code=None if self._channel is None else self._channel.exit_code,
            default=default,
            reason=reason,
            oom_killed=oom_kills() > self._oom_kills,
            up=self._up,
        )
        return LaunchError(verdict.kind, verdict.reason, verdict.evidence, verdict.least)

    def alive(self) -> bool:
        """Return whether the server's first process runs."""
        self._pump(0)
        channel = self._channel
        if channel is None or channel.pid is None:
            return False
        return not channel.exited and not channel.lost

    @property
    def known_processes(self) -> bool:
        """Whether its processes can be distinguished from others; not in a container."""
        return self._info.python is not None

    def processes(self) -> list[psutil.Process]:
        """Return every living process of its tree, the supervisor included."""
        return processes_of(self.launch_id)

    def died(self, within_s: float) -> bool:
        """Return whether the server's first process ends within some seconds."""
        deadline = time.monotonic() + within_s
        while self.alive() and time.monotonic() < deadline:
            self._pump(deadline - time.monotonic())
        return not self.alive()

    def renew(self) -> bool:
        """Renew the lease; any thread may. Return whether the server has not been stopped."""
        if self._channel is not None and self._report is None:
            self._channel.tell("renew")
        return self._report is None

    def memory(self) -> int:
        """Return the bytes that its processes do not share with others (unique set size)."""
        found = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):  # it just ended
                found += process.memory_full_info().uss
        return found

    def stop(self, *, force: bool = False, last: bool = True) -> StopReport:
        """End the server; return only when nothing of it is left. May be called again.

        The tree gets SIGTERM, and what is left of it after ``stop_timeout_s`` gets SIGKILL.

        Args:
            force: Whether to send SIGKILL at once.
            last: Whether it is the last of the servers that were started together. They share a
                GPU's memory, so its return is proven when the last of them has ended.

        Raises:
            StopError: a process survives, the port stays taken, or a GPU's memory does not come
                back.
        """
        if self._report is not None:
            return self._report
        begun = time.monotonic()
        gpus_full = gpu_memory() if self.gpus_before and last else ()
        pids = {p.pid for p in self.processes()} if gpus_full else set()
        channel, killed = self._channel, 0
        if channel is not None:
            grace_s = 0 if force else self._spec.stop_timeout_s
            killed = _end_by_supervisor(channel, "kill" if force else "stop", grace_s)
        # Nothing is left, unless the supervisor was killed or hangs: it is part of the launch too.
        killed += len(kill_all(self._identity))
        if channel is not None:
            channel.wait()
            channel.close()
            mask_log(self.log_path, self.plan)
            _prove_port(self.plan.port)
            _prove_gpu_memory(self.gpus_before, gpus_full, pids)
        exit_code = None if channel is None else channel.exit_code
        self._report = StopReport(exit_code, time.monotonic() - begun, killed)
        return self._report

    def log_tail(self, lines: int = 60) -> list[str]:
        """Return the last lines of the server's log, with secrets masked."""
        return log_lines(self.log_path, self.plan)[-lines:]

    def _pump(self, timeout: float) -> None:
        """Take in the supervisor's events; wait for them at most ``timeout`` seconds."""
        if self._channel is None:
            time.sleep(max(0.0, timeout))
        else:
            self._channel.pump(timeout)


def _end_by_supervisor(channel: Channel, command: str, grace_s: float) -> int:
    """Let the supervisor end its tree; return the number of processes that needed SIGKILL."""
    channel.tell(command)
    deadline = time.monotonic() + grace_s + KILL_S
    while channel.killed is None and not channel.lost and time.monotonic() < deadline:
        channel.pump(0.5)
    with contextlib.suppress(subprocess.TimeoutExpired):
        channel.wait(timeout=5 if channel.killed is not None else 0)
    return channel.killed or 0


def _prove_port(port: int) -> None:
    """Wait until a port is free, at most 5 s."""
    deadline = time.monotonic() + 5
    while not port_is_free(port):
        if time.monotonic() > deadline:
            raise StopError(
                f"port {port} is still taken after the server's end: something of "
                "it lives on outside its process tree (a container?); end it by hand"
            )
        time.sleep(0.05)


def _prove_gpu_memory(
    before: tuple[GpuMemory, ...], full: tuple[GpuMemory, ...], pids: set[int]
) -> None:
    """Wait until each GPU has its memory back; see :func:`held` for the arguments."""
    deadline = time.monotonic() + _GPU_S
    while lost := held(before, full, gpu_memory() if full else (), pids):
        if time.monotonic() > deadline:
            gpu, mib = next(iter(lost.items()))
            raise StopError(
                f"GPU {gpu} holds {mib} MiB more than before the launch, although every "
                "process of it is gone, and no other process has them: look at `nvidia-smi`, "
                "the driver may need a reset"
            )
        time.sleep(0.2)
