"""Fast tests first, then those with the server double or a browser, then real servers."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest


def pytest_configure() -> None:
    # a shell starts `pytest &` with Ctrl-C ignored, and tests that press it would wait for ever
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def stage(item: pytest.Item) -> int:
        marks = {mark.name for mark in item.iter_markers()}
        return 2 if "real" in marks else 1 if marks & {"double", "browser"} else 0

    items.sort(key=stage)


@pytest.fixture(autouse=True)
def unraisable_hook() -> Iterator[None]:
    """An interrupted run leaves a hook of its own: its process is to end, the tests' is not."""
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
