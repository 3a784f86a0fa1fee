"""A PostgreSQL server of the tests' own: in a temporary folder, on a socket and 127.0.0.1.

PostgreSQL refuses to run as root, so that root starts it as the user that Debian's package makes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from autotune.storage.location import Server, parse_database
from tests.studies import PATIENCE_S

PASSWORD = "a secret: %@/"  # noqa: S105 – of a server that lives as long as the tests
_names = itertools.count()


def free_port() -> int:
    """Return a port for a server that is bound later, and again after it was killed.

    It is none that the kernel gives to a connection meanwhile: its own client's, tried while the
    server is away, would otherwise meet itself there now and then.
    """
    of_kernel = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    low, high = map(int, of_kernel)
    # between are those of Ray, and of the servers that tests launch
    ports = list(range(high + 1, 65_536)) or list(range(1_024, min(low, 10_000)))
    for port in random.sample(ports, len(ports)):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def program(name: str) -> str | None:
    """A program of PostgreSQL; Debian keeps those of the server outside of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def why_not() -> str | None:
    """Why no server can be started here; None: it can."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed: pip install 'dflash-autotune[postgresql]'"
    if program("postgres") is None or program("initdb") is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    if os.geteuid() == 0 and _user() is None:
        return "PostgreSQL does not run as root, and there is no user `postgres`"
    return None


def _user() -> str | None:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None


class Cluster:
    """A server that is started, killed and started again.

    Attributes:
        folder: Has its data, its socket and its log.
        port: On 127.0.0.1, and in the name of its socket.
        as_user: Options of a process that may run it.

    Args:
        folder: Empty; it is given to the server's user.
        settings: Lines of postgresql.conf.
    """

    def __init__(self, folder: Path, settings: Sequence[str] = ("fsync=off",)) -> None:
        self.folder, self.port, self._settings = folder, free_port(), settings
        self.as_user = {"user": _user(), "group": _user()} if os.geteuid() == 0 else {}
        self._process: subprocess.Popen[bytes] | None = None
        if self.as_user:
            shutil.chown(folder, _user(), _user())
        (folder / "password").write_text(PASSWORD)
        os.chmod(folder / "password", 0o644)  # noqa: PTH101 – in a folder that nobody else reads
        self._run(
            *("initdb", "-D", str(folder / "data"), "-U", "autotune", "-E", "UTF8"),
            *("--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync"),
            f"--pwfile={folder / 'password'}",
        )
        self.start()

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(  # type: ignore[call-overload]
            [str(program(name)), *arguments],
            check=True,
            capture_output=True,
            cwd=self.folder,
            timeout=2 * PATIENCE_S,
            **self.as_user,
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        import psycopg

        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # type: ignore[call-overload]
                [
                    *(str(program("postgres")), "-D", str(self.folder / "data")),
                    *("-k", str(self.folder), "-p", str(self.port), "-h", "127.0.0.1"),
                    *("-c", "max_connections=40", "-c", "restart_after_crash=off"),
                    *(word for setting in self._settings for word in ("-c", setting)),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                **self.as_user,
            )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                self.execute("SELECT 1")
                return
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT ends its connections first, SIGQUIT is as if it had crashed."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE_S)
            self._process = None

    def kill(self) -> None:
        """End every process of it with SIGKILL, as the kernel does when memory is short."""
        import psutil

        if self._process is None:
            return
        all_of_it = psutil.Process(self._process.pid)
        processes = [*all_of_it.children(recursive=True), all_of_it]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(PATIENCE_S)
        self._process = None
        psutil.wait_procs(processes, PATIENCE_S)

    def revive(self) -> None:
        """Start it if it does not run."""
        if self._process is None or self._process.poll() is not None:
            self.start()

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Execute a statement as the owner of everything; return its rows."""
        import psycopg

        of = self.conninfo(database)
        with psycopg.connect(of, autocommit=True, connect_timeout=int(PATIENCE_S)) as c:
            cursor = c.execute(sql)  # type: ignore[call-overload]
            return list(cursor) if cursor.description else []

    def conninfo(self, database: str) -> str:
        return f"host={self.folder} port={self.port} user=autotune dbname={database}"

    def new(self, options: str = "") -> Server:
        """A new database, which is asked for no password: it is reached through the socket."""
        name = f"d{next(_names)}"
        self.execute(f"CREATE DATABASE {name} {options}")
        return self.server(name)

    def server(self, name: str) -> Server:
        return _server(
            f"postgresql+psycopg:///{name}?host={self.folder}&port={self.port}&user=autotune"
        )

    def by_network(self, name: str, more: str = "", port: int | None = None) -> Server:
        """The same database by 127.0.0.1, where a password is asked for."""
        return _server(f"postgresql+psycopg://autotune@127.0.0.1:{port or self.port}/{name}{more}")


def _server(url: str) -> Server:
    found = parse_database(url)
    assert isinstance(found, Server)
    return found


def _memory() -> str | None:
    """Return a folder in memory with room; removing thousands of files from a disk takes 20 s."""
    folder = "/dev/shm"  # noqa: S108 – mkdtemp makes a private folder in it
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    return folder if shutil.disk_usage(folder).free > 4 * 2**30 else None


@contextmanager
def a_cluster(settings: Sequence[str] = ("fsync=off",)) -> Iterator[Cluster]:
    """A server with these settings; a test is skipped where there can be none."""
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="autotune-pg-", dir=_memory()))
    cluster = None
    try:
        cluster = Cluster(folder, settings)
        yield cluster
    finally:
        if cluster is not None:
            cluster.stop(signal.SIGQUIT)  # nothing of it is kept: no checkpoint of each database
        shutil.rmtree(folder)


class Proxy:
    """A network between clients and a server, which a test can cut.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        silent: Whether it passes nothing on, while its connections stay open.
        accepted: Number of connections that clients have made.
        cut_at: Bytes of a client, at which the answer never comes: the connection is cut after
            they were passed on. It is forgotten then.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self.silent, self.accepted, self.cut_at = False, 0, b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                server = socket.create_connection(("127.0.0.1", self._to))
                self._open += [client, server]
                for pair in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket, of_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.silent:
                    continue
                cut = of_client and bool(self.cut_at) and self.cut_at in data
                if cut:
                    self.cut_at = b""
                    source.shutdown(socket.SHUT_RDWR)  # before any answer can be passed on
                to.sendall(data)
                if cut:
                    time.sleep(0.2)  # let the server do what it was told
        for s in (source, to):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for s in (self._listener, *self._open):
            s.close()


@contextmanager
def a_pgbouncer(cluster: Cluster) -> Iterator[int]:
    """pgbouncer in front of a cluster, which gives each transaction any connection; its port."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if found is None:
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
    port, config = free_port(), cluster.folder / "pgbouncer.ini"
    users = cluster.folder / "users.txt"
    users.write_text(f'"autotune" "{PASSWORD}"\n')
    config.write_text(
        f"[databases]\n* = host={cluster.folder} port={cluster.port}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {users}\npool_mode = transaction\n"
        "default_pool_size = 3\n"
    )
    for file in (users, config):
        file.chmod(0o644)
    with (cluster.folder / "pgbouncer.log").open("ab") as log:
        process = subprocess.Popen(  # type: ignore[call-overload]
            [found, str(config)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            **cluster.as_user,
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
                break
            assert time.monotonic() < deadline, (cluster.folder / "pgbouncer.log").read_text()
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
