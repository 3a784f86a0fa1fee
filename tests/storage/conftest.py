"""A database of each kind that autotune keeps studies in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from autotune.storage.location import Database
from autotune.storage.store import Store, opened
from tests.postgresql import Cluster, a_cluster

OpenStore = Callable[[], Store]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server of this test process."""
    with a_cluster() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A database that is not there yet, or empty."""
    if request.param == "sqlite":
        return tmp_path / "store.db"
    found: Cluster = request.getfixturevalue("cluster")
    return found.new()


@pytest.fixture
def open_store(database: Database) -> Iterator[OpenStore]:
    """Open the database to be written; it is closed when the test ends."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(opened(database, create=True))


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """A new database."""
    return open_store()
