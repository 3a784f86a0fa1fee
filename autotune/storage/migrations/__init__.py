"""Revisions of autotune's tables, oldest first in ``versions/``; Optuna has its own for its tables.

A revision is a file written by hand that imports nothing of autotune. It is final as soon as a
user's database may have it: a later change is a new revision. :data:`REVISIONS` names all of them,
so that a database can be checked without Alembic.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.storage.reading import Reader

if TYPE_CHECKING:  # a database is read without it
    from sqlalchemy import Connection, Engine

# A name of its own: Optuna's `alembic_version` is in the same database.
VERSION_TABLE = "autotune_alembic_version"
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
# PostgreSQL's lock of the one that makes or changes tables, until its transaction ends.
MAKING = int.from_bytes(b"autotune")
# What autotune 0.1 and the first 0.2, which knew no revisions, wrote into `autotune_meta`.
_BEFORE_REVISIONS = 2


def revision_of(reader: Reader) -> str | None:
    """Return the revision of the tables in a database; None if it has none of autotune's.

    A database from before there were revisions has "0001"; what "0002" adds may be there already.
    Any other value is returned as it is: another version of autotune wrote it.
    """
    tables = reader.tables()
    if VERSION_TABLE in tables:
        return str(reader.one(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
    if "autotune_meta" in tables:
        found = reader.one("SELECT schema FROM autotune_meta")
        return REVISIONS[0] if found == _BEFORE_REVISIONS else str(found)
    return None


def upgrade(engine: Engine, reader: Reader, busy_timeout_s: float) -> None:
    """Bring a database to the last revision in one transaction, from any known one or from none.

    If the process is killed meanwhile, the database stays as it was.

    Args:
        engine: Engine of the database; a file gets a connection of its own.
        reader: Reads the same database.
        busy_timeout_s: How long to wait for another program's lock of a file, in seconds.
    """
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    if revision_of(reader) == REVISIONS[-1]:
        return
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MAKING})
            _run(connection, revision_of(reader))
        return
    mine = create_engine(engine.url, poolclass=NullPool)
    _one_transaction(mine, busy_timeout_s)
    with mine.begin() as connection:
        _run(connection, revision_of(reader))


def _one_transaction(engine: Engine, busy_timeout_s: float) -> None:
    """Let SQLAlchemy begin transactions: Python's sqlite3 begins none before a CREATE TABLE."""
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {round(busy_timeout_s * 1000)}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _run(connection: Connection, found: str | None) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import inspect

    config = Config(attributes={"connection": connection, "version_table": VERSION_TABLE})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    if found is not None and not inspect(connection).has_table(VERSION_TABLE):
        command.stamp(config, found)
    command.upgrade(config, "head")
