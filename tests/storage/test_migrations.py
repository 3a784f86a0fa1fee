"""Databases of every revision are read as they are, and brought to the last one when written."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from autotune.errors import DatabaseLocked, UserError
from autotune.storage import migrations
from autotune.storage.location import Database
from autotune.storage.migrations import REVISIONS, VERSION_TABLE, revision_of, upgrade
from autotune.storage.store import Store, opened
from autotune.storage.tables import METADATA
from tests.paths import ROOT

COMMITTED = sorted((ROOT / "studies" / "results").rglob("*.db"))
LATER = ("autotune_map_points", "autotune_loads", "autotune_stages", "autotune_compile_cache")
LATEST = (
    *("autotune_lease", "autotune_workers", "autotune_request_acceptance"),
    *("autotune_answers", "autotune_certificates"),
)


@pytest.fixture(params=COMMITTED, ids=lambda p: f"{p.parent.name}-{p.stem}")
def committed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(request.param, tmp_path / "study.db"))


def rows(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(database)) as c:
        tables = c.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        every = "SELECT * FROM [{}] ORDER BY rowid"
        return {t: c.execute(every.format(t)).fetchall() for (t,) in tables}


def schema(database: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as c:
        return c.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


def test_there_are_committed_databases_with_and_without_the_later_tables() -> None:
    found = [{t in rows(path) for t in LATER} for path in COMMITTED]
    assert {True} in found
    assert {False} in found


def test_every_row_is_there_after_the_upgrade(committed: Path) -> None:
    before = rows(committed)
    with opened(committed, write=True) as store:
        [name] = store.study_names()
        first = store.launches.of_study(name)[0]
        unowned = (first.host, first.worker, first.lease_epoch) == (None, None, None)
        assert unowned is (VERSION_TABLE not in before)  # revisions came with owners
        assert revision_of(store._reader) == REVISIONS[-1]
    after = rows(committed)
    assert before.pop("autotune_meta") == [(2 if before.pop(VERSION_TABLE, None) is None else 3,)]
    assert after.pop("autotune_meta") == [(3,)]  # refused by an autotune that knows no revisions
    for table, kept in before.items():
        width = len(kept[0]) if kept else 0
        assert [row[:width] for row in after.pop(table)] == kept, table
    assert after.pop(VERSION_TABLE) == [(REVISIONS[-1],)]
    assert {table for table, found in after.items() if found} == set()


def contents(store: Store) -> list[object]:
    [name] = store.study_names()
    launches = store.launches.of_study(name)
    plain = [{f.name: getattr(x, f.name) for f in fields(x)} for x in launches]
    points = store.load_maps.points(name)
    return [
        plain,
        [store.requests.samples(x.launch_id) for x in launches],
        [p.setting for p in points],
        [[(x.values, x.quality) for x in store.load_maps.loads(p.id)] for p in points],
        store.launches.stages(name),
        store.launches.compile_caches(name),
        [(e.at, e.what) for e in store.launches.events(name)],
        [t.params for t in store.optuna_study(name).get_trials(deepcopy=False)],
    ]


def test_reading_changes_nothing_and_says_the_same(committed: Path) -> None:
    before = committed.read_bytes()
    with opened(committed) as store:
        found = contents(store)
    assert committed.read_bytes() == before
    assert [p.name for p in committed.parent.iterdir()] == [committed.name]
    with opened(committed, write=True) as store:
        assert contents(store) == found


def test_a_read_only_file_of_an_older_revision_is_read(committed: Path) -> None:
    committed.chmod(0o444)
    committed.parent.chmod(0o555)
    try:
        with opened(committed) as store:
            assert contents(store)
    finally:
        committed.parent.chmod(0o755)


def test_a_launch_of_an_older_database_can_be_copied(committed: Path, tmp_path: Path) -> None:
    with opened(committed) as old, opened(tmp_path / "new.db", create=True) as new:
        [name] = old.study_names()
        launch = old.launches.of_study(name)[0].launch_id
        new.launches.copy(old.launches, launch, new_id="copy", study="new")
        assert new.requests.samples("copy") == old.requests.samples(launch)


def test_revisions_give_the_tables_of_the_code(database: Database) -> None:
    def ours(name: str | None, kind: str, _parents: object) -> bool:
        return kind != "table" or str(name).startswith("autotune_")

    with opened(database, create=True) as store, store._engine.connect() as c:
        options = {
            "compare_type": True,
            "include_name": ours,
            "version_table": VERSION_TABLE,
        }
        assert compare_metadata(MigrationContext.configure(c, opts=options), METADATA) == []


def test_every_revision_is_named() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    walked = [x.revision for x in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(walked)) == REVISIONS


def as_first_release(database: Path) -> None:
    """Take away what the later revisions added, and the table that knows of revisions."""
    with closing(sqlite3.connect(database)) as c:
        for table in (*LATER, *LATEST, VERSION_TABLE):
            c.execute(f'DROP TABLE "{table}"')
        for column in ("host", "worker", "lease_epoch"):
            c.execute(f"ALTER TABLE autotune_launches DROP COLUMN {column}")
        c.execute("UPDATE autotune_meta SET schema = 2")
        c.commit()


def test_an_upgrade_that_is_killed_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with opened(path, create=True):
        pass
    as_first_release(path)
    before = schema(path), rows(path)
    killed = (
        "import os, sys\nfrom pathlib import Path\nfrom alembic import op\n"
        "from autotune.storage.store import Store\n"
        # the tables are made by then, and the first revisions run
        "op.batch_alter_table = lambda *a, **k: os._exit(9)\n"
        "Store(Path(sys.argv[1]), write=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(path)], cwd=ROOT, check=False)
    assert done.returncode == 9
    assert (schema(path), rows(path)) == before
    with opened(path, write=True) as store:
        assert revision_of(store._reader) == REVISIONS[-1]
        assert {*LATER} <= {*inspect(store._engine).get_table_names()}


def test_an_upgrade_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    with opened(path, create=True) as store:
        as_first_release(path)
        before = schema(path)
        monkeypatch.setattr("alembic.op.batch_alter_table", _raise)
        with pytest.raises(RuntimeError, match="no space"):
            upgrade(store._engine, store._reader, 1.0)
        assert schema(path) == before


def test_a_locked_database_is_said_to_be_locked_and_not_upgraded(
    committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.storage.store.BUSY_TIMEOUT_S", 0)
    before = schema(committed)
    with closing(sqlite3.connect(committed)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseLocked):
            Store(committed, write=True)
    assert schema(committed) == before


def _raise(*_: object) -> None:
    raise RuntimeError("no space")


def set_revision(database: Path, found: str) -> None:
    with closing(sqlite3.connect(database)) as c:
        c.execute("UPDATE autotune_alembic_version SET version_num = ?", (found,))
        c.commit()


def set_number(database: Path, found: str) -> None:
    with closing(sqlite3.connect(database)) as c:
        c.execute(f"DROP TABLE {VERSION_TABLE}")
        c.execute("UPDATE autotune_meta SET schema = ?", (int(found),))
        c.commit()


@pytest.mark.parametrize("mode", [{}, {"write": True}, {"create": True}], ids=str)
@pytest.mark.parametrize(
    ("change", "found"), [(set_revision, "0099"), (set_number, "99"), (set_number, "1")]
)
def test_another_version_is_one_line_and_nothing_changes(
    tmp_path: Path,
    change: Callable[[Path, str], None],
    found: str,
    mode: dict[str, bool],
) -> None:
    path = tmp_path / "a.db"
    with opened(path, create=True):
        pass
    change(path, found)
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"another version of autotune \(tables {found}, ") as e:
        Store(path, **mode)
    assert "\n" not in str(e.value)
    assert path.read_bytes() == before


def test_a_database_of_optuna_gets_the_tables(tmp_path: Path) -> None:
    import optuna

    path = tmp_path / "a.db"
    optuna.create_study(storage=f"sqlite:///{path}", study_name="mine")
    with opened(path, create=True) as store:
        assert store.study_names() == []
        assert store.optuna_study("mine").study_name == "mine"
