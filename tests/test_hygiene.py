"""The tests themselves: which run one after the other, and which are quick."""

from __future__ import annotations

import os

import pytest

from tests.conftest import SLOW


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="on one worker (-n 0)")
def test_tests_are_in_groups(request: pytest.FixtureRequest) -> None:
    assert request.node.nodeid.endswith("@fast-tests/test_hygiene.py")


def test_quick_is_what_needs_nothing_slow(request: pytest.FixtureRequest) -> None:
    quick = {item.nodeid for item in request.session.items if item.get_closest_marker("quick")}
    slow = {
        item.nodeid
        for item in request.session.items
        if any(item.get_closest_marker(name) for name in SLOW)
    }
    assert request.node.nodeid in quick
    assert quick.isdisjoint(slow)
    assert quick | slow == {item.nodeid for item in request.session.items}
