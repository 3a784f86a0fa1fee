"""What is slow around every test, and is no test's point, made cheap."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType, SimpleNamespace
from unittest import mock

import alembic.util

from autotune.bench import client, interference


@contextmanager
def cheap_surroundings() -> Iterator[None]:
    """Leave out what only real measurements need, and what is the same in every test.

    - The interference check does not time its computation: next to other tests it is slow, and a
      launch would look again and again, for up to 6 s.
    - The client does not collect all garbage before each phase: 0.1 to 0.2 s with everything
      loaded. It still freezes the collector.
    - Alembic executes each file of revisions once, not two or three times for each database.
    """
    uncollected = SimpleNamespace(collect=int, freeze=gc.freeze, unfreeze=gc.unfreeze)
    with (
        mock.patch.object(interference, "kernel_seconds", return_value=0.05),
        mock.patch.object(client, "gc", uncollected),
        mock.patch.object(alembic.util, "load_python_file", _load_once),
    ):
        yield


_kernel_seconds = interference.kernel_seconds


def timed_idle_baseline() -> AbstractContextManager[object]:
    """Let the interference check time its computation after all."""
    return mock.patch.object(interference, "kernel_seconds", _kernel_seconds)


_load = alembic.util.load_python_file
_kept = functools.cache(_load)


def _load_once(folder: str | os.PathLike[str], name: str | os.PathLike[str]) -> ModuleType:
    # env.py is a script: Alembic means to run it at every call
    return (_load if str(name) == "env.py" else _kept)(folder, name)
