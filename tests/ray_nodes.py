"""A Ray cluster of several nodes on this machine, in processes of its own.

Ray's own cluster utility makes it. Its home folder and files are in a folder of their own, since
Ray keeps a token in the one and logs in the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from tests.paths import ROOT

_STORE = 80 << 20  # bytes of a node's object store, the least that Ray takes
_MARK = "TESTS_RAY_NODES"


def why_not() -> str | None:
    """Return why there can be no cluster here; None: there can."""
    try:
        import ray  # noqa: F401
    except ImportError as e:
        return f"Ray cannot be imported: {e}"
    return None


def marked_with(variable: str, value: str) -> list[psutil.Process]:
    """Return the processes of a cluster, and what they started: a variable of theirs says so."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone, or another user's
            if process.environ().get(variable) == value:
                found.append(process)
    return found


class RayNodes:
    """The cluster; a context manager.

    Attributes:
        address: Of its head.
        env: The environment of its drivers.
    """

    def __init__(self, nodes: int, *, gpus: int = 0, **env: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="atr"))  # short: Ray's sockets are below it
        (self.folder / "home").mkdir()
        self.env = {
            **os.environ,
            "HOME": str(self.folder / "home"),
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_gcs_server_port_wait_time_s": "120",  # of 30; the machine may be busy
            "PYTHONPATH": str(ROOT),
            _MARK: self.folder.name,
            **env,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_nodes", str(nodes), str(gpus)],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "stderr").open("w"),
            text=True,
            start_new_session=True,
        )
        try:
            self.address = self._ask(None)["address"]
        except BaseException:
            self.__exit__()
            raise

    def _ask(self, word: str | None) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if word is not None:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise AssertionError((self.folder / "stderr").read_text()[-3000:])

    def add(self) -> None:
        """Let one more node join."""
        self._ask("add")

    def kill(self) -> None:
        """End the node that joined last, at once."""
        self._ask("kill")

    def __enter__(self) -> RayNodes:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        left = marked_with(_MARK, self.folder.name)
        for process in left:
            process.kill()
        psutil.wait_procs(left, 10)
        shutil.rmtree(self.folder, ignore_errors=True)


def main() -> None:
    from ray.cluster_utils import Cluster

    def say(**said: object) -> None:
        print(json.dumps(said), flush=True)  # noqa: T201 – its parent reads it

    cluster = Cluster()
    for _ in range(int(sys.argv[1])):
        cluster.add_node(
            num_cpus=1,
            num_gpus=int(sys.argv[2]),
            object_store_memory=_STORE,
            include_dashboard=False,
        )
    say(address=cluster.address)
    for line in sys.stdin:
        if line.strip() == "add":
            cluster.add_node(num_cpus=1, object_store_memory=_STORE)
        else:
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        say(done=line.strip())
    cluster.shutdown()


if __name__ == "__main__":
    main()
