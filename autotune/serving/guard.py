"""The process that ends a server's whole tree when its owner says so or dies.

Run by :mod:`autotune.serving.server` as ``python -I -S guard.py`` in a session of its own, with
the server's environment; standard library only, so that nothing of the environment can break it.

stdin, lines from the owner: first ``{"argv": […], "grace_s": 20}``, then ``stop`` (SIGTERM, wait,
SIGKILL) or ``kill`` (SIGKILL now). Its end means that the owner died, by SIGKILL too, and is a
``stop`` with a short grace. SIGTERM, SIGINT and SIGHUP are a ``stop``.

stdout, lines of JSON: ``{"started": pid}`` or ``{"failed": "why"}``; ``{"exited": code}`` when the
server's first process ended; ``{"gone": n}`` when nothing is left, n processes of which needed
SIGKILL. stderr is the server's log.

As a child subreaper (``man 2 prctl``) the guard adopts every orphan below it, such as EngineCore
after its API process was killed (vLLM issue #55510), so nothing escapes by losing its parent.
Should the guard itself be killed, the server gets SIGTERM by its parent-death signal, and the
owner finds what is left by the launch id in its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ORPHANED_GRACE_S = 4.0  # an owner that died must leave nothing behind within 10 s
LINGER_S = 1.0  # for helpers that end by themselves, and clean up, once the server is gone


def say(**event: object) -> None:
    """One event to the owner; it may be dead."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(event).encode() + b"\n")


def descendants() -> set[int]:
    """Every living process below this one, by the parents in /proc."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text(errors="replace")
        except OSError:
            continue  # it ended between the two looks
        state, parent = stat.rpartition(")")[2].split()[:2]  # the name before may hold anything
        if state not in "ZX":
            children.setdefault(int(parent), []).append(int(entry.name))
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found


class Guard:
    """Watches one server."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        self.libc = libc
        self.server: int | None = None  # None: not started, or reaped
        self.killed: set[int] = set()
        self.inbox = b""
        self.selector = selectors.DefaultSelector()

    def start(self, argv: list[str]) -> bool:
        me = os.getpid()

        def in_child() -> None:  # runs between fork and exec; the guard has one thread only
            self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != me:
                os._exit(1)  # the guard died before the line above
            # when memory runs out, the kernel shall take the server, not the tuner
            with contextlib.suppress(OSError):  # some containers forbid it
                Path("/proc/self/oom_score_adj").write_text("500")

        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=2,
                start_new_session=True,
                preexec_fn=in_child,
            )
        except (OSError, subprocess.SubprocessError) as e:
            say(failed=str(e))
            return False
        self.server = process.pid
        process.returncode = 0  # we reap it ourselves
        say(started=process.pid)
        return True

    def reap(self) -> None:
        """Collects every child that ended, adopted ones too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.server:
                self.server = None
                say(exited=os.waitstatus_to_exitcode(status))

    def wait(self, timeout: float | None) -> str | None:
        """The next command of the owner, or None after ``timeout`` seconds or a child's end.

        ``orphaned`` if the owner died.
        """
        if b"\n" not in self.inbox:
            for key, _ in self.selector.select(timeout):
                if key.data == "signals":
                    numbers = os.read(key.fd, 4096)
                    if any(n != signal.SIGCHLD for n in numbers):
                        return "stop"
                elif key.data == "owner":
                    self.selector.unregister(key.fd)
                    return "orphaned"
                elif data := os.read(key.fd, 65536):
                    self.inbox += data
                else:
                    self.selector.unregister(key.fd)
                    return "orphaned"
        line, end, rest = self.inbox.partition(b"\n")
        if not end:
            return None
        self.inbox = rest
        return line.decode()

    def end(self, grace_s: float) -> None:
        """Ends the tree; returns when nothing is left."""
        now = time.monotonic()
        if self.server is not None:
            os.kill(self.server, signal.SIGTERM)  # not reaped yet, so the pid is still its own
        if self._until(now + grace_s, lambda: self.server is None):
            self._until(time.monotonic() + LINGER_S, lambda: not descendants())
        while left := descendants():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.killed |= left
            time.sleep(0.02)
            self.reap()
        self.reap()
        say(gone=len(self.killed))

    def _until(self, deadline: float, done: Callable[[], bool]) -> bool:
        """Waits for ``done``; False at the deadline or when the owner says ``kill``."""
        self.reap()
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            command = self.wait(min(left, 0.05))
            if command == "kill":
                return False
            if command == "orphaned":
                deadline = min(deadline, time.monotonic() + ORPHANED_GRACE_S)
            self.reap()
        return True


def main() -> None:
    """Starts the server that the first line of stdin names and watches it to its end."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        say(failed=f"prctl: {os.strerror(ctypes.get_errno())}")
        return
    guard = Guard(libc)
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    guard.selector.register(read_end, selectors.EVENT_READ, "signals")
    guard.selector.register(0, selectors.EVENT_READ, "commands")
    # the pipe alone would not tell if the owner had forked a child that keeps it open
    with contextlib.suppress(OSError):  # kernels before 5.3: the pipe has to do
        guard.selector.register(os.pidfd_open(os.getppid()), selectors.EVENT_READ, "owner")
    line = None
    while line is None:
        line = guard.wait(None)
    if line in {"stop", "kill", "orphaned"}:
        return
    request = json.loads(line)
    grace_s = float(request["grace_s"])
    if not guard.start(request["argv"]):
        return
    while True:
        command = guard.wait(None)
        guard.reap()
        if command is not None:
            break
    guard.end({"stop": grace_s, "orphaned": min(grace_s, ORPHANED_GRACE_S)}.get(command, 0.0))


if __name__ == "__main__":
    main()
