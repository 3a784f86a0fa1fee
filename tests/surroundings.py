"""What is slow around every test, and is no test's point, made cheap."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import alembic.util

from autotune.bench import client, interference
from autotune.cli import run
from autotune.serving import server
from autotune.tuning import launcher

_FIRST_PORT, _PORTS = 20_000, 4_000


@contextmanager
def cheap_surroundings() -> Iterator[None]:
    """Leave out what only real measurements need, and what is the same in every test.

    - The interference check does not time its computation: next to other tests it is slow, and a
      launch would look again and again, for up to 6 s.
    - The client does not collect all garbage before each phase: 0.1 to 0.2 s with everything
      loaded. It still freezes the collector.
    - Alembic executes each file of revisions once, not two or three times for each database.
    - A server of the double is up in a fraction of a second, so /health is asked 20 times a second.
    - At the end of a run, the dashboard's figures are not drawn: half of what a short run over the
      double takes. :func:`updated_dashboard` draws them after all.

    And a server's port is none that the kernel, or another worker's test, gives to somebody else
    before the server listens there: the launch would be tried once more.
    """
    uncollected = SimpleNamespace(collect=int, freeze=gc.freeze, unfreeze=gc.unfreeze)
    with (
        mock.patch.object(interference, "kernel_seconds", return_value=0.05),
        mock.patch.object(client, "gc", uncollected),
        mock.patch.object(alembic.util, "load_python_file", _load_once),
        mock.patch.object(launcher, "free_port", _port_of_worker),
        mock.patch.object(server, "_POLL_S", 0.05),
        mock.patch.object(run, "update_dashboard"),
    ):
        yield


_free_port = launcher.free_port


def _port_of_worker() -> int:
    """Return a free port of those that only this worker of pytest-xdist takes."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    of_kernel = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    if not worker or int(of_kernel[0]) < _FIRST_PORT + 3 * _PORTS:
        return _free_port()
    first = _FIRST_PORT + int(worker.removeprefix("gw")) % 3 * _PORTS
    while True:
        port = first + 1 + 2 * secrets.randbelow(_PORTS // 2)  # odd, as the kernel's are
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


_kernel_seconds = interference.kernel_seconds


def timed_idle_baseline() -> AbstractContextManager[object]:
    """Let the interference check time its computation after all."""
    return mock.patch.object(interference, "kernel_seconds", _kernel_seconds)


_update_dashboard = run.update_dashboard


def updated_dashboard() -> AbstractContextManager[object]:
    """Let a run update the dashboard at its end after all."""
    return mock.patch.object(run, "update_dashboard", _update_dashboard)


_load = alembic.util.load_python_file
_kept = functools.cache(_load)


def _load_once(folder: str | os.PathLike[str], name: str | os.PathLike[str]) -> ModuleType:
    # env.py is a script: Alembic means to run it at every call
    return (_load if str(name) == "env.py" else _kept)(folder, name)
