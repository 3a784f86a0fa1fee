"""One SQLite file: how it comes to be, who may use it, and what is said of its errors."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from autotune.errors import DatabaseLocked, MachineError, UserError
from autotune.storage.lease import exclusive, is_free
from autotune.storage.store import Store, opened


def test_a_new_database_is_there_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr("autotune.storage.store.upgrade", killed)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path / "a.db", create=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.db.new").write_text("what a kill left")
    with opened(tmp_path / "a.db", create=True) as s:
        assert s.study_names() == []
    assert {p.name for p in tmp_path.iterdir()} <= {"a.db", "a.db-wal", "a.db-shm"}


def test_two_links_to_one_database_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    (tmp_path / "b.db").symlink_to("a.db")
    assert is_free(tmp_path / "b.db")
    with exclusive(tmp_path / "a.db"):
        assert not is_free(tmp_path / "b.db")
        with pytest.raises(UserError, match="another autotune"), exclusive(tmp_path / "b.db"):
            raise AssertionError("two runners")
    assert is_free(tmp_path / "a.db")


def test_errors_of_the_database_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.storage.store.BUSY_TIMEOUT_S", 0)
    file = tmp_path / "a.db"
    with opened(file, create=True):
        pass
    other = sqlite3.connect(file)

    def while_locked() -> None:
        with opened(file) as s:
            other.execute("begin exclusive")
            s.launches.event("x", "y")

    def on_a_full_disk() -> None:
        with opened(file) as s, s._engine.begin() as c:
            c.execute(text("pragma max_page_count = 1"))
            row = text("insert into autotune_events values (null, 0, 'x', 0, '', :w)")
            c.execute(row, {"w": "z" * 99999})

    with pytest.raises(DatabaseLocked, match="another program holds it locked"):
        while_locked()
    other.close()
    with pytest.raises(MachineError, match="disk is full; make room"):
        on_a_full_disk()
    with opened(file) as s:
        assert s.launches.events("x") == []
