"""A database of each kind that autotune keeps studies in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL

from autotune.storage.sqlite import url_of
from autotune.storage.store import Store, opened

OpenStore = Callable[[], Store]


@pytest.fixture(params=["sqlite"])
def store_url(tmp_path: Path) -> URL:
    """URL of a database that is not there yet."""
    return url_of(tmp_path / "store.db")


@pytest.fixture
def open_store(store_url: URL) -> Iterator[OpenStore]:
    """Open the database to be written; it is closed when the test ends."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(opened(Path(store_url.database or ""), create=True))


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """A new database."""
    return open_store()
