"""Fast tests first, then those with the server double or a browser, then real servers."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def stage(item: pytest.Item) -> int:
        marks = {mark.name for mark in item.iter_markers()}
        return 2 if "real" in marks else 1 if marks & {"double", "browser"} else 0

    items.sort(key=stage)
