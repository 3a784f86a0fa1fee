"""Fast tests first, then those with the server double or a browser, then real servers."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator, Iterator

import pytest

from tests.surroundings import cheap_surroundings

ORPHANS = "orphans"


def pytest_configure() -> None:
    # a shell starts `pytest &` with Ctrl-C ignored, and tests that press it would wait for ever
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Puts them in order, and in groups: pytest-xdist runs those of a group one after the other."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    # of the groups of one stage the longest first, or one worker would be left with it in the end
    items.sort(key=lambda item: (_stage(item), _group(item) != ORPHANS))
    yield


def _stage(item: pytest.Item) -> int:
    marks = {mark.name for mark in item.iter_markers()}
    return 2 if "real" in marks else 1 if marks & {"double", "browser"} else 0


def _group(item: pytest.Item) -> str:
    """Those that share a fixture, or would be in each other's way."""
    stage = _stage(item)
    if stage == 2:
        return "real"  # two real servers at a time are too much for two cores
    if item.get_closest_marker("browser"):
        return "browser"  # one test looks whether a browser is left
    module = item.nodeid.partition("::")[0]
    if stage == 1 and module.endswith(("test_faults.py", "test_ledger.py")):
        return ORPHANS  # `autotune reap` ends those of every test
    return f"{stage}-{module}"


@pytest.fixture(autouse=True)
def unraisable_hook() -> Iterator[None]:
    """An interrupted run leaves a hook of its own: its process is to end, the tests' is not."""
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook


@pytest.fixture(autouse=True, scope="session")
def surroundings() -> Iterator[None]:
    with cheap_surroundings():
        yield
