"""Two nodes of a Ray cluster on this machine, each with a network and a host name of its own.

The nodes are in namespaces of the kernel with one link between them, which can be cut: then both
still run, and no packet arrives. Making those needs root; without it both nodes are on 127.0.0.1,
and nothing can be cut. The second node also has its own folder for Ray's files, as another host
would have.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil

from tests.paths import ROOT
from tests.postgresql import free_port
from tests.ray_nodes import marked_with

HEAD, OTHER = "fault-head", "fault-other"
_ADDRESSES = {HEAD: "10.213.77.1", OTHER: "10.213.77.2"}
_LINKS = {HEAD: "fault-a", OTHER: "fault-b"}
_NOBODY = "02:00:00:00:00:01"  # a card that nobody has: what is sent to it is dropped
_MARK = "FAULTS_NODES"
_START_S = 120.0
# A node's first process ends the others at SIGTERM, which it gets when this one is gone.
_ENDS_WITH_THIS = ("setpriv", "--pdeathsig", "TERM", "--") if shutil.which("setpriv") else ()


def why_no_cut() -> str | None:
    """Why the link between two nodes cannot be cut here; None: it can."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"there is no `{program}`"
    done = subprocess.run(
        [
            *("unshare", "--net", "--uts", "--mount", "ip", "link", "add"),
            *("name", "fault-a", "type", "veth", "peer", "name", "fault-b"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else f"no network namespaces: {done.stderr.strip()[:100]}"


class Nodes:
    """The cluster; use it as a context manager.

    Attributes:
        address: Of its head, for ``--ray``.
        env: The environment of what uses it.
        apart: Whether the nodes are in namespaces, so that the link can be cut.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="afr-"))  # short: Ray's sockets are below it
        self._mark = uuid.uuid4().hex
        self.apart = why_no_cut() is None
        port = free_port()
        self.address = f"{_ADDRESSES[HEAD] if self.apart else '127.0.0.1'}:{port}"
        home = self.folder / "home"
        home.mkdir()
        self.env = {
            **os.environ,
            "HOME": str(home),  # Ray keeps a token there
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_gcs_server_port_wait_time_s": "120",  # of 30; the machine may be busy
            "RAY_TMPDIR": str(self.folder / "ray"),
            "OMP_NUM_THREADS": "1",
            _MARK: self._mark,
        }
        (self.folder / "ray").mkdir()
        self._spaces: dict[str, subprocess.Popen[str]] = {}
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._cards: dict[str, str] = {}

    def __enter__(self) -> Nodes:
        try:
            if self.apart:
                self._make_spaces()
            self._start(HEAD)
            self._start(OTHER)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the namespaces --------------------------------------------------------------------------

    def inside(self, node: str) -> list[str]:
        """Words that run a command where a node is, with this machine's files."""
        return self._inside(node, "--net", "--uts")

    def _inside(self, node: str, *kinds: str) -> list[str]:
        if not self.apart:
            return []
        return ["nsenter", "--target", str(self._spaces[node].pid), *kinds, "--"]

    def _make_spaces(self) -> None:
        files = self.folder / "ray"
        for node in (HEAD, OTHER):
            own = f"mount -t tmpfs tmpfs {files} && " if node == OTHER else ""
            self._spaces[node] = subprocess.Popen(
                [
                    *("unshare", "--net", "--uts", "--mount", "--propagation", "private"),
                    *("sh", "-c"),
                    f"{own}hostname {node} && ip link set lo up && echo made && exec cat",
                ],
                env=self.env,
                stdin=subprocess.PIPE,  # it ends with this process
                stdout=subprocess.PIPE,
                text=True,
            )
            said = self._spaces[node].stdout
            assert said is not None
            assert said.readline() == "made\n"
        peer = str(self._spaces[OTHER].pid)
        pair = ("name", _LINKS[HEAD], "type", "veth", "peer", "name", _LINKS[OTHER])
        self._ip(HEAD, "link", "add", *pair, "netns", peer)
        for node in (HEAD, OTHER):
            self._ip(node, "addr", "add", f"{_ADDRESSES[node]}/30", "dev", _LINKS[node])
            self._ip(node, "link", "set", _LINKS[node], "up")
        for node, other in ((HEAD, OTHER), (OTHER, HEAD)):  # by it Ray finds its own address
            self._ip(node, "route", "add", "default", "via", _ADDRESSES[other])

    def _ip(self, node: str, *words: str) -> str:
        done = subprocess.run(
            [*self._inside(node, "--net"), "ip", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
        return done.stdout

    def cut(self) -> None:
        """Let no packet arrive at the other node, in either direction; nobody is told."""
        for node, other in ((HEAD, OTHER), (OTHER, HEAD)):
            words = ("neigh", "replace", _ADDRESSES[other], "lladdr", _NOBODY)
            self._ip(node, *words, "nud", "permanent", "dev", _LINKS[node])
        assert not self._reaches_head(), "the link was not cut"

    def mend(self) -> None:
        """Let packets arrive again."""
        for node, other in ((HEAD, OTHER), (OTHER, HEAD)):
            self._ip(node, "neigh", "del", _ADDRESSES[other], "dev", _LINKS[node])
        assert self._reaches_head(), "the link was not mended"

    def _reaches_head(self) -> bool:
        """True if a connection from the other node to the head is made within a second."""
        host, port = self.address.split(":")
        code = f"import socket; socket.create_connection(({host!r}, {port}), 1)"
        words = [*self._inside(OTHER, "--net"), sys.executable, "-I", "-S", "-c", code]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    # -- the nodes -------------------------------------------------------------------------------

    def _start(self, node: str) -> None:
        """Start a node, and wait until it has joined."""
        ip, port = self.address.split(":")
        if self.apart:
            ip = _ADDRESSES[node]
        mine = ["--head", f"--port={port}", "--include-dashboard=false"]
        mine.append(f"--ray-client-server-port={free_port()}")
        words = [
            *_ENDS_WITH_THIS,
            *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={ip}"),
            *(mine if node == HEAD else [f"--address={self.address}"]),
            *("--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000"),
            *("--disable-usage-stats", "--block"),
        ]
        if node == HEAD:
            words.append(f"--temp-dir={self.folder / 'ray'}")
        log = self.folder / f"{node}-{len(list(self.folder.glob(f'{node}-*')))}.log"
        with log.open("wb") as f:
            self._nodes[node] = subprocess.Popen(
                [*self._inside(node, "--net", "--uts", "--mount"), *words],
                env=self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=f,
                stderr=f,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while b"Ray runtime started" not in log.read_bytes():
            assert self._nodes[node].poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)

    def raylet(self, node: str) -> psutil.Process | None:
        """The process that is the node, if it lives."""
        started = self._nodes.get(node)
        with contextlib.suppress(psutil.Error):
            if started is not None and started.poll() is None:
                below = psutil.Process(started.pid).children(recursive=True)
                return next((p for p in below if p.name() == "raylet"), None)
        return None

    def has(self, process: psutil.Process, node: str) -> bool:
        """True if a process is below a node."""
        raylet = self.raylet(node)
        with contextlib.suppress(psutil.Error):
            return raylet is not None and raylet in process.parents()
        return False

    def restore(self) -> None:
        """Start a node again that a case has ended."""
        for node in (HEAD, OTHER):
            if self.raylet(node) is None:
                self._end(node)
                if node == HEAD:  # the other one has nothing to join
                    self._end(OTHER)
                self._start(node)

    def renew(self) -> None:
        """Start the other node again."""
        self._end(OTHER)
        self._start(OTHER)

    def _end(self, node: str) -> None:
        started = self._nodes.pop(node, None)
        if started is None:
            return
        with contextlib.suppress(psutil.Error):
            below = psutil.Process(started.pid).children(recursive=True)
            started.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(20)
            for process in below:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        started.kill()
        started.wait()

    def close(self) -> None:
        """End everything, and prove it."""
        for node in (OTHER, HEAD):
            self._end(node)
        while found := marked_with(_MARK, self._mark):
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.02)
        for space in self._spaces.values():
            space.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
