"""The supervisor of a server: ends its whole process tree when its owner says so or dies.

:mod:`autotune.serving.server` runs this file as ``python -I -S supervisor.py``, in a session of its
own, with the server's environment. It uses the standard library only, so that nothing of the
environment can break it.

- stdin has lines from the owner. The first is ``{"argv": […], "grace_s": 20, "launch_id": …}``,
  with ``{"container": {"engine": ["docker"], "cidfile": …}}`` where the server is in one.
  With ``{"lease_s": 15}`` the owner says ``renew`` again and again; when it has not for so long, it
  stands still, which counts as its death.
  Then comes ``stop`` (SIGTERM, wait, SIGKILL) or ``kill`` (SIGKILL now). The end of stdin means
  that the owner died, by SIGKILL too; it is a ``stop`` with a short grace. SIGTERM, SIGINT and
  SIGHUP are a ``stop``. The SIGTERM is for the first process; when half of the grace is over, or
  when that process has ended and others have not, it is for all: a wrapper may not pass it on.
- stdout gets lines of JSON: ``{"started": pid, "cgroup": path}`` or ``{"failed": "why"}``;
  ``{"exited": code}`` when the server's first process has ended; ``{"gone": n}`` when nothing is
  left, where n processes needed SIGKILL.
- stderr is the server's log. Its middle is cut out when it grows too large.

As a child subreaper (``man 2 prctl``) the supervisor adopts every process below it that lost its
parent, such as EngineCore after its API process was killed (vLLM issue #55510). So none escapes.
Where this user may make one, the server also gets a control group (cgroup v2), which no process can
leave and which the kernel ends as a whole. If the supervisor is killed, the server gets SIGTERM by
its parent-death signal, and the owner finds what is left by the control group and by the launch id
in its environment.

A container is no child of its client: it belongs to the engine. It is found by its label and ended
by its id, with the engine's own commands (:class:`Containers`), before the client is.
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
ORPHANED_GRACE_S = 4.0  # after the owner's death nothing may be left after 10 s
LINGER_S = 1.0  # for helpers to end and clean up on their own, once the server is gone
LOOK_S = 5.0  # between two checks of the log's size
LOG_BYTES = 64 << 20  # size of a log above which its middle is cut out
HEAD_BYTES, TAIL_BYTES = 1 << 20, 8 << 20  # the parts of a log that are kept
LABEL = "autotune.launch"  # of a container: the launch id
ENGINE_S = 15.0  # for one answer of a container engine
CONTAINER_S = 20.0  # for a container to be gone after SIGKILL
CLIENT_S = 5.0  # for the client of a container to clean up after the container's end

# Start a server from its argv, after running the callable in it, and return its pid.
Spawn = Callable[[list[str], Callable[[], None]], int]


def say(**event: object) -> None:
    """Send an event to the owner, which may be dead."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(event).encode() + b"\n")


def descendants() -> set[int]:
    """Return every living process below this one, by the parents in /proc."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text(errors="replace")
        except OSError:
            continue  # it has ended in the meantime
        state, parent = stat.rpartition(")")[2].split()[
            :2
        ]  # the name before it may have any character
        if state not in "ZX":
            children.setdefault(int(parent), []).append(int(entry.name))
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found


def make_cgroup(name: str) -> str | None:
    """Make a control group below this process's own; None where that is not allowed."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        root = next(line.split()[4] for line in mounts if " - cgroup2 " in line)
        own = Path("/proc/self/cgroup").read_text().splitlines()
        path = next(line[3:] for line in own if line.startswith("0::"))
        group = Path(root + path, name)
        group.mkdir()
    except (OSError, StopIteration):  # cgroup v1 only, or no permission
        return None
    return str(group)


def members(cgroup: str | None) -> set[int]:
    """Return the living processes of a control group."""
    if cgroup is None:
        return set()
    try:
        return set(map(int, Path(cgroup, "cgroup.procs").read_text().split()))
    except OSError:  # it is gone, as after a reboot
        return set()


def remove_cgroup(cgroup: str | None) -> None:
    """Remove a control group whose processes are gone; do nothing if it is gone too."""
    if cgroup is None:
        return
    for _ in range(20):
        try:
            Path(cgroup).rmdir()
        except FileNotFoundError:
            return
        except OSError:  # the last process has not quite left it
            time.sleep(0.05)


def execute(argv: list[str], in_child: Callable[[], None]) -> int:
    """Start a program and return its pid."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=2,
        start_new_session=True,
        preexec_fn=in_child,
    )
    process.returncode = 0  # the supervisor reaps it
    return process.pid


class Containers:
    """The containers of one launch, as their engine tells of them.

    Args:
        engine: Words that call the engine, such as ``["docker"]``.
        launch_id: Launch id, which each has as label.
        cidfile: File that has the id of the container; None: the engine wrote none.
        env: Environment of the calls; None: this process's own.
    """

    def __init__(
        self,
        engine: list[str],
        launch_id: str,
        cidfile: str | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.engine = engine
        self.launch_id = launch_id
        self.cidfile = cidfile
        self.env = env

    def ids(self) -> set[str]:
        """Return the ids of every container of the launch, running or not.

        Raises:
            OSError: the engine does not answer.
        """
        by_label = f"label={LABEL}={self.launch_id}"
        code, out, err = self.call("ps", "-a", "-q", "--no-trunc", "--filter", by_label)
        if code != 0:
            last = err.strip().splitlines()[-1:] or [f"exit code {code}"]
            raise OSError(f"{' '.join(self.engine)} does not answer: {last[0]}")
        return set(out.split())

    def written_id(self) -> set[str]:
        """Return the id in the cidfile, which is known even if the engine does not answer."""
        try:
            return set(Path(self.cidfile or "").read_text().split())
        except OSError:  # not made yet, or the engine writes none
            return set()

    def stopping(self, ids: set[str], grace_s: float) -> subprocess.Popen[bytes]:
        """Begin to stop containers: SIGTERM, and SIGKILL after a grace."""
        argv = [*self.engine, "stop", "-t", str(max(1, round(grace_s))), *sorted(ids)]
        null = subprocess.DEVNULL
        return subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, env=self.env)

    def remove(self, ids: set[str]) -> None:
        """Send SIGKILL to containers and remove them; whether they are gone is :meth:`ids`'s."""
        with contextlib.suppress(OSError):
            self.call("kill", *sorted(ids))  # `podman rm -f` alone would wait 10 s
            self.call("rm", "-f", *sorted(ids))

    def end_all(self) -> set[str]:
        """Kill and remove every container of the launch; return their ids.

        Raises:
            OSError: the engine does not answer, or one survives for :data:`CONTAINER_S` seconds.
        """
        ended: set[str] = set()
        deadline = time.monotonic() + CONTAINER_S
        while left := self.ids():
            if time.monotonic() > deadline:
                raise OSError(f"container {min(left)[:12]} survives SIGKILL")
            self.remove(left)
            ended |= left
            time.sleep(0.1)
        return ended

    def call(self, *words: str) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr of a call of the engine.

        Raises:
            OSError: it cannot be called, or does not answer in :data:`ENGINE_S` seconds.
        """
        try:
            done = subprocess.run(
                [*self.engine, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ENGINE_S,
                check=False,
                env=self.env,
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"{' '.join(self.engine)} does not answer in {ENGINE_S:g} s") from None
        return done.returncode, done.stdout, done.stderr


class Supervisor:
    """Watches one server.

    Args:
        libc: The C library, for ``prctl``.

    Attributes:
        server: Pid of the server's first process; None: not started, or reaped.
        cgroup: Folder of the server's control group; None: it has none.
        childless: Whether the tree was empty when children were reaped last. The kernel tells it
            exactly. A walk through /proc misses a process whose parent ends meanwhile.
        killed: Pids of the processes that needed SIGKILL.
        containers: Containers of the launch; None: the server is in none.
        latest: End of every grace, by the monotonic clock: the owner is in a hurry, or dead.
        own: Files of the supervisor that the server must not have.
    """

    def __init__(self, libc: ctypes.CDLL) -> None:
        self.libc = libc
        self.server: int | None = None
        self.cgroup: str | None = None
        self.childless = False
        self.killed: set[int] = set()
        self.containers: Containers | None = None
        self.latest = float("inf")
        self.inbox = b""
        self.selector = selectors.DefaultSelector()
        self.own: list[int] = []

    def start(self, argv: list[str], launch_id: str, spawn: Spawn) -> bool:
        """Start the server and tell the owner; return False if it could not be started."""
        me = os.getpid()
        self.cgroup = make_cgroup(f"autotune-{launch_id}")

        def in_child() -> None:  # runs between fork and exec; the supervisor has one thread only
            self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != me:
                os._exit(1)  # the supervisor died before the line above
            if self.cgroup is not None:
                try:
                    Path(self.cgroup, "cgroup.procs").write_text("0")
                except OSError:  # made, but without the permission to enter it
                    self.cgroup = None
            # when memory runs out, the kernel should kill the server, not the tuner
            with contextlib.suppress(OSError):  # some containers forbid it
                Path("/proc/self/oom_score_adj").write_text("500")
            self.selector.close()
            for fd in self.own:
                os.close(fd)

        try:
            self.server = spawn(argv, in_child)
        except (OSError, subprocess.SubprocessError) as e:
            say(failed=str(e))
            return False
        if not members(self.cgroup):  # the child could not enter it, or ended already
            self.leave_cgroup()
        say(started=self.server, cgroup=self.cgroup)
        return True

    def leave_cgroup(self) -> None:
        """Remove the control group, which must be empty."""
        remove_cgroup(self.cgroup)
        self.cgroup = None

    def reap(self) -> None:
        """Reap every child that has ended, adopted ones too; see :attr:`childless`."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return
            self.childless = False
            if pid == 0:
                return
            if pid == self.server:
                self.server = None
                say(exited=os.waitstatus_to_exitcode(status))

    def wait(self, timeout: float | None) -> str | None:
        """Return the next command of the owner; None after a timeout or a child's end.

        The command is ``orphaned`` if the owner has died.

        Args:
            timeout: Seconds; None: no limit.
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
        """End the tree; return when nothing is left.

        Args:
            grace_s: Wait after SIGTERM before SIGKILL, seconds.
        """
        if self.containers is not None and self.end_containers(self.containers, grace_s):
            grace_s = min(grace_s, LINGER_S)  # what is left is the client
        begun = time.monotonic()
        self._terminate(set() if self.server is None else {self.server})
        if self._until(begun + grace_s / 2, lambda: self.server is None):
            self._until(time.monotonic() + LINGER_S, lambda: self.childless)
        if left := descendants():  # a wrapper did not pass the signal on, such as `sh -c`
            self._terminate(left)
            self._until(begun + grace_s, lambda: self.childless)
        self.reap()
        while not self.childless or members(self.cgroup):
            left = descendants() | members(self.cgroup)
            if self.cgroup is not None:
                with contextlib.suppress(OSError):  # kernels before 5.14: one by one
                    Path(self.cgroup, "cgroup.kill").write_text("1")
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self.killed |= left
            time.sleep(0.02)
            self.reap()
        self.reap()
        self.leave_cgroup()
        if self.containers is not None:  # the client may have made it while it was ended
            with contextlib.suppress(OSError):  # the owner asks again, and says so
                self.containers.end_all()
        say(gone=len(self.killed))

    def _terminate(self, pids: set[int]) -> None:
        """Send SIGTERM to processes of the tree; none is reaped yet, so the pids are theirs."""
        for pid in pids:
            # PermissionError: `sudo docker`, which ends with its container
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)

    def end_containers(self, containers: Containers, grace_s: float) -> bool:
        """Stop the containers of the launch, then kill them; return whether there was one.

        Args:
            containers: The containers.
            grace_s: Wait after SIGTERM before SIGKILL, seconds.
        """
        try:
            found = containers.ids()
        except OSError:
            found = containers.written_id()
        if found and grace_s > 0:
            stop = containers.stopping(found, grace_s)
            # the engine sends SIGKILL itself after the grace, and may need a while for it
            if not self._until(
                time.monotonic() + grace_s + CLIENT_S, lambda: stop.poll() is not None
            ):
                stop.kill()
                stop.wait()
        elif found:
            containers.remove(found)
        if found:
            self._until(time.monotonic() + CLIENT_S, lambda: self.server is None)
            self._until(time.monotonic() + CLIENT_S, lambda: self.childless)
            with contextlib.suppress(OSError):
                containers.end_all()
        return bool(found)

    def trim_log(self) -> None:
        """Cut out the middle of a log that grew too large; the server continues to append."""
        with contextlib.suppress(OSError):  # no file, or a full disk
            size = os.fstat(2).st_size
            if size <= LOG_BYTES:
                return
            with Path("/proc/self/fd/2").open("rb") as f:
                head = f.read(HEAD_BYTES)
                f.seek(size - TAIL_BYTES)
                tail = f.read()
            os.ftruncate(2, 0)
            cut = f"\n… autotune left out {size - len(head) - len(tail)} bytes of this log …\n"
            os.write(2, head + cut.encode() + tail)

    def _until(self, deadline: float, done: Callable[[], bool]) -> bool:
        """Wait for ``done``; return False at the deadline, or when the owner says ``kill``."""
        self.reap()
        while not done():
            left = min(deadline, self.latest) - time.monotonic()
            if left <= 0:
                return False
            command = self.wait(min(left, 0.05))
            if command == "kill":
                self.latest = time.monotonic()
            elif command == "orphaned":
                self.latest = min(self.latest, time.monotonic() + ORPHANED_GRACE_S)
            self.reap()
        return True


class Lease:
    """The owner's lease of a server, by this process's own clock.

    Args:
        seconds: Its length; None: the owner need not renew it.

    Attributes:
        look_s: Longest time between two looks at it.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.look_s = LOOK_S if seconds is None else min(LOOK_S, seconds / 5)
        self.looked = self.renewed = time.monotonic()

    def is_over(self, *, renewed: bool) -> bool:
        """Return whether it has run out; time in which this process stood still does not count."""
        now = time.monotonic()
        self.renewed += max(0.0, now - self.looked - 2 * self.look_s)
        self.looked = now
        if renewed:
            self.renewed = now
        return self.seconds is not None and now - self.renewed > self.seconds


def watch(*, owner: int | None, spawn: Spawn) -> None:
    """Start the server that the first line of stdin names, and watch it to its end.

    Args:
        owner: Pidfd of the owner; None where the kernel has no pidfds.
        spawn: Function that starts the server in a session of its own and returns its pid.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        say(failed=f"prctl: {os.strerror(ctypes.get_errno())}")
        return
    supervisor = Supervisor(libc)
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    supervisor.own += [read_end, write_end]
    supervisor.selector.register(read_end, selectors.EVENT_READ, "signals")
    supervisor.selector.register(0, selectors.EVENT_READ, "commands")
    # the pipe is not enough: a child that the owner forked may keep it open
    if owner is not None:
        supervisor.own.append(owner)
        supervisor.selector.register(owner, selectors.EVENT_READ, "owner")
    line = None
    while line is None:
        line = supervisor.wait(None)
    if line in {"stop", "kill", "orphaned"}:
        return
    request = json.loads(line)
    grace_s = float(request["grace_s"])
    if box := request.get("container"):
        supervisor.containers = Containers(box["engine"], request["launch_id"], box["cidfile"])
    if not supervisor.start(request["argv"], request["launch_id"], spawn):
        supervisor.leave_cgroup()
        return
    lease = Lease(request.get("lease_s"))
    while True:
        command = supervisor.wait(lease.look_s)
        supervisor.reap()
        supervisor.trim_log()
        over = lease.is_over(renewed=command == "renew")
        if command not in (None, "renew"):
            break
        if over:
            command = "orphaned"
            break
    supervisor.end({"stop": grace_s, "orphaned": min(grace_s, ORPHANED_GRACE_S)}.get(command, 0.0))


def main() -> None:
    """Supervise a server that is a program."""
    try:
        owner = os.pidfd_open(os.getppid())
    except (AttributeError, OSError):  # kernels before 5.3: the end of stdin is the only sign
        owner = None
    watch(owner=owner, spawn=execute)


if __name__ == "__main__":
    main()
