"""One SQLite file: how it comes to be, who may use it, and what is said of its errors."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from autotune.cli.main import main
from autotune.errors import DatabaseLocked, MachineError, UserError
from autotune.storage.lease import exclusive, is_free
from autotune.storage.reading import log_of
from autotune.storage.sqlite import writable
from autotune.storage.store import Store, opened
from tests.results.test_comparison import BASELINE, Run, stored


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


# -- a file that may only be read ------------------------------------------------------------------


@contextmanager
def nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let SQLite fail where it would write into a folder, as it does where it may not.

    Modes would do, but not for root: so connections are refused that do not say that they only
    read.
    """
    connect = sqlite3.connect

    def connected(name: object, **options: Any) -> sqlite3.Connection:
        path = str(name).removeprefix("file://").partition("?")[0]
        if Path(path).parent == folder and "immutable=1" not in str(name):
            error = sqlite3.OperationalError("unable to open database file")
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error
        return connect(str(name), **options)

    with monkeypatch.context() as m:
        m.setattr("autotune.storage.reading.sqlite3.connect", connected)
        yield


def database_of(folder: Path) -> Path:
    """A database with a study of this name in a folder whose name SQLite's URIs would misread."""
    folder.mkdir()
    with opened(folder / "a.db", create=True):
        pass
    return folder / "a.db"


def add_study(connection: sqlite3.Connection, name: str) -> None:
    connection.execute(
        "INSERT INTO autotune_studies VALUES (?, '', '', '', 0, 1, 0.0, '')",
        [name],
    )
    connection.commit()


def test_a_file_is_read_where_nothing_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = database_of(tmp_path / "read only?#%20")
    with closing(sqlite3.connect(file)) as c:
        add_study(c, "written back")
    assert log_of(file) is None
    before = {p.name: p.read_bytes() for p in file.parent.iterdir()}
    with nothing_is_written(file.parent, monkeypatch), opened(file) as store:
        assert store.study_names() == ["written back"]
    assert {p.name: p.read_bytes() for p in file.parent.iterdir()} == before


def test_what_a_killed_run_left_in_the_log_is_read_from_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = database_of(tmp_path / "run")
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with closing(sqlite3.connect(file)) as c:
        add_study(c, "in the log")
        for part in ("a.db", "a.db-wal"):  # as it is while somebody writes, or after a kill
            shutil.copyfile(file.parent / part, kept / part)
    assert log_of(kept / "a.db") is not None
    with nothing_is_written(kept, monkeypatch), opened(kept / "a.db") as store:
        assert store.study_names() == ["in the log"]
        assert list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "tmp").iterdir())  # the copy is gone
    assert {p.name for p in kept.iterdir()} == {"a.db", "a.db-wal"}


def test_what_may_not_be_written_is_shown_as_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = database_of(tmp_path / "run")
    with writable(file) as same:
        assert same == file
    monkeypatch.setattr("autotune.storage.sqlite.os.access", lambda *_, **__: False)
    with writable(file) as copy:
        assert copy != file
        with opened(copy) as store:
            assert store.study_names() == []
    assert not copy.exists()


@pytest.mark.parametrize("table", ["trials", "studies", "trial_values", "autotune_launches"])
def test_a_table_that_is_gone_is_one_line(tmp_path: Path, table: str) -> None:
    database = stored(tmp_path, [Run(BASELINE, 100.0)])
    with closing(sqlite3.connect(database)) as c:
        c.execute("PRAGMA foreign_keys = OFF")
        c.execute(f"DROP TABLE {table}")
        c.commit()
    for command in ("status", "best", "report", "export"):
        result = CliRunner().invoke(main, [command, "--db", str(database)])
        assert result.exit_code in {1, 2}, (command, result.output)
        [line] = result.stderr.strip().splitlines()[-1:]
        assert f"no such table: {table}" in line
        assert "goes on" not in line
        assert "nothing was changed" in line
