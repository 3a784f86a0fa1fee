"""The owner's end of a supervisor: its commands, and the events that it reports."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time

from autotune.serving.warm_start import ForkedSupervisor


class Channel:
    """A supervisor, started or forked, as its owner sees it.

    :mod:`autotune.serving.supervisor` documents the lines in both directions.

    Args:
        supervisor: The supervisor's process, with pipes for stdin and stdout.

    Attributes:
        pid: Pid of the server's first process; None until it was started.
        cgroup: Folder of the server's control group; None where it has none.
        failed: Reason why the server could not be started; None: nothing went wrong.
        exited: Whether the server's first process has ended.
        exit_code: Exit code of that process, negative for a signal; None if nobody saw it end.
        killed: Number of processes that needed SIGKILL; None: the supervisor did not report that
            nothing is left.
        lost: Whether the supervisor has ended, with or without a report.
    """

    def __init__(self, supervisor: subprocess.Popen[bytes] | ForkedSupervisor) -> None:
        self._supervisor = supervisor
        self._inbox = b""
        self.pid: int | None = None
        self.cgroup: str | None = None
        self.failed: str | None = None
        self.exited = False
        self.exit_code: int | None = None
        self.killed: int | None = None
        self.lost = False

    @property
    def supervisor_pid(self) -> int:
        """Pid of the supervisor."""
        return self._supervisor.pid

    def tell(self, line: str) -> None:
        """Send a command; if the supervisor has died, the caller sees it in :attr:`lost`."""
        if self._supervisor.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # closed by an earlier stop()
                self._supervisor.stdin.write(line.encode() + b"\n")
                self._supervisor.stdin.flush()

    def pump(self, timeout: float) -> None:
        """Take in the events that the supervisor reports.

        Args:
            timeout: Longest wait for one, seconds.
        """
        if self._supervisor.stdout is None or self.lost:
            time.sleep(max(0.0, timeout))
            return
        poll = select.poll()
        poll.register(self._supervisor.stdout, select.POLLIN)
        if not poll.poll(max(0.0, timeout) * 1000):
            return
        data = os.read(self._supervisor.stdout.fileno(), 65536)
        if not data:
            self.lost = True
            return
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            self.pid = event.get("started", self.pid)
            self.cgroup = event.get("cgroup", self.cgroup)
            self.failed = event.get("failed", self.failed)
            self.killed = event.get("gone", self.killed)
            if "exited" in event:
                self.exited = True
                self.exit_code = event["exited"]

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end of the supervisor.

        Args:
            timeout: Seconds; None: no limit.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        self._supervisor.wait(timeout=timeout)

    def close(self) -> None:
        """Close the pipes to a supervisor that has ended."""
        for file in (
            self._supervisor.stdin,
            self._supervisor.stdout,
            self._supervisor.pidfd if isinstance(self._supervisor, ForkedSupervisor) else None,
        ):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        self.lost = True
