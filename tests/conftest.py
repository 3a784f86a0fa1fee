"""Which tests run when and where, and what is the same around all of them."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

from autotune.bench import sending
from tests.surroundings import cheap_surroundings

# Markers of tests that are not quick.
SLOW = {"real", "double", "browser", "vllm", "slow"}
# Groups, or what their names begin with, in the order in which they run.
REAL, FAST, ORPHANS, BROWSER, DOUBLE = GROUPS = ("real", "fast", "orphans", "browser", "double")


# Neither the time that an example takes, 200 ms by default, nor luck decides about a test.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


def pytest_configure() -> None:
    # a shell starts `pytest &` with Ctrl-C ignored, and tests that press it would wait for ever
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)  # before pytest-xdist reads the groups, and pytest the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Mark the quick tests; put all in order, and in groups, which pytest-xdist does not split."""
    weights: Counter[str] = Counter()
    for item in items:
        if _marks(item) & SLOW:
            weights[_group(item)] += 1
        else:
            item.add_marker(pytest.mark.quick)
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: _turn(_group(item), weights))
    yield


def _marks(item: pytest.Item) -> set[str]:
    return {mark.name for mark in item.iter_markers()}


def _turn(group: str, weights: Counter[str]) -> tuple[int, int, str]:
    """Return when a group runs: the longest first, for one worker would be left with them.

    Real servers keep one worker busy for minutes, so the other ones run the fast tests meanwhile.

    Args:
        group: Name of the group.
        weights: Number of tests that are not quick, by group.
    """
    return GROUPS.index(group.partition("-")[0]), -weights[group], group


def _group(item: pytest.Item) -> str:
    """Return the group of those that share a fixture, or would be in each other's way."""
    marks = _marks(item)
    if "real" in marks:
        return REAL  # two real servers at a time are too much for two cores
    if "browser" in marks:
        return BROWSER  # one test looks whether a browser is left
    module = item.nodeid.partition("::")[0]
    if "double" not in marks:
        return f"{FAST}-{module}"
    if module.endswith(("test_faults.py", "test_recovery.py")):
        return ORPHANS  # `autotune reap` ends those of every test
    return f"{DOUBLE}-{module}"


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


@pytest.fixture
def lives_on() -> Iterator[None]:
    """Servers outlive their bad answers: nobody waits for three seconds whether they die."""
    with mock.patch.object(sending, "DYING_S", 0.1):
        yield
