"""A database on a PostgreSQL server: what is refused, in which words, and who may write."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from autotune.cli.main import main
from autotune.errors import FailureKind, TrialFailure, UserError
from autotune.storage.location import Server, parse_database, parse_named
from autotune.storage.migrations import REVISIONS, revision_of
from autotune.storage.store import Store, is_there, opened
from tests.postgresql import PASSWORD, Cluster, free_port
from tests.storage.test_repositories import STATS, plan

# -- URLs, which need no server --------------------------------------------------------------------

SECRET = "hunter2"  # noqa: S105 – an example


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://me:{SECRET}@host/db",
        f"postgresql://me:{SECRET}/x@host:5432/db",
        f"postgres://me:{SECRET}?x@host/db",
        f"postgresql://me:a@{SECRET}@host/db",
        f"postgresql://host/db?user=me&password={SECRET}",
        f"postgresql://host/db?sslpassword={SECRET}",
        f"mysql://me:{SECRET}@host/db",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_shown(url: str) -> None:
    for command in (["status", "--db", url], ["run", "demo-cpu", "--db", url]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2
        assert SECRET not in result.output
        [line] = result.stderr.splitlines()
        assert "~/.pgpass" in line
        assert "PGPASSWORD" in line
    with pytest.raises(UserError, match="passfile") as e:
        parse_named(f"{url}:study")
    assert SECRET not in str(e.value)


def test_other_urls_are_refused() -> None:
    for url, words in (
        ("mysql://host/db", "no database of this kind"),
        ("sqlite:///a.db", "no database of this kind"),
        ("postgresql://host/db#x", "write it as %23"),
        ("postgresql://[::1/db", "is no URL"),
    ):
        with pytest.raises(UserError, match=words):
            parse_database(url)


@pytest.mark.parametrize("begin", ["postgresql:/", "postgresql:", "postgresql//", "POSTGRES+x:"])
def test_what_is_nearly_a_url_is_no_file(
    begin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.db").touch()
    url = f"{begin}me:{SECRET}@db"
    for command in (
        ["status", "--db", url],
        ["run", "demo-cpu", "--db", url],
        ["compare", url, url],
        ["copy", url, "x.db"],
        ["copy", "x.db", url],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2, result.output
        assert SECRET not in result.output
        assert "postgresql+psycopg://HOST/NAME" in result.stderr
    assert [x.name for x in tmp_path.iterdir()] == ["x.db"]
    assert parse_database(f"./{url}") == Path(url)


def test_a_url_may_name_a_study() -> None:
    server = parse_database("postgresql+psycopg://me@host:5432/db?sslmode=require")
    assert isinstance(server, Server)
    assert (server.name, server.options) == ("db", {"sslmode": "require"})
    for text, study in (
        ("postgresql://me@host:5432/db?sslmode=require", None),
        ("postgresql+psycopg://me@host:5432/db?sslmode=require:s", "s"),
    ):
        assert parse_named(text) == (server, study)
    assert parse_named("postgresql://host:5432/db") == (Server("//host:5432/db"), None)
    assert parse_named("postgresql:///db:s") == (Server("///db"), "s")


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"pip install 'dflash-autotune\[postgresql\]'"):
        Store(Server("//host/db"))


# -- errors in words -------------------------------------------------------------------------------


def refused(*command: str) -> str:
    """The one line of a command that fails with exit code 2."""
    result = CliRunner().invoke(main, list(command))
    assert result.exit_code == 2, result.output
    assert PASSWORD not in result.output
    [line] = result.stderr.splitlines()
    return line


def test_a_server_that_is_not_there() -> None:
    pytest.importorskip("psycopg")
    for place in (f"127.0.0.1:{free_port()}", "no.such.host.invalid"):
        line = refused("status", "--db", f"postgresql://{place}/db")
        assert "the server cannot be reached" in line
        assert "look whether it runs" in line
    assert "cannot be reached" in refused("status", "--db", "postgresql:///db?host=/nonexistent")


def test_passwords(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.new()
    name = cluster.new().name
    url = str(cluster.by_network(name))
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    assert "asks for a password, and there is none" in refused("status", "--db", url)
    monkeypatch.setenv("PGPASSWORD", "wrong")
    assert "the password is wrong" in refused("status", "--db", url)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert "has no tables of autotune" in refused("best", "--db", url)
    monkeypatch.delenv("PGPASSWORD")
    kept = tmp_path / "pass"
    escaped = PASSWORD.replace(":", r"\:")
    kept.write_text(f"127.0.0.1:{cluster.port}:{name}:autotune:{escaped}\n")
    kept.chmod(0o600)
    with opened(cluster.by_network(name, f"?passfile={kept}"), create=True) as store:
        plan(store, "a")
        said = f"{store.database} {vars(store.launches.get('a'))}"
    assert PASSWORD not in said
    dump = cluster.execute("SELECT * FROM autotune_launches", name)
    assert PASSWORD not in str(dump)


def test_what_the_server_refuses(cluster: Cluster) -> None:
    server = cluster.new()
    missing = str(cluster.server("nothing"))
    assert "there is no such database" in refused("status", "--db", missing)
    assert "createdb" in refused("run", "demo-cpu", "--db", missing)
    stranger = str(server).replace("user=autotune", "user=stranger")
    assert "does not let this user in" in refused("status", "--db", stranger)
    ssl = str(cluster.by_network(server.name, "?sslmode=require"))
    assert "offers no encryption" in refused("status", "--db", ssl)
    assert "cannot be used" in refused("status", "--db", f"{server}&port=notaport&x=1")
    latin = cluster.new("ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    assert "keeps text as LATIN1" in refused("status", "--db", str(latin))


def test_too_few_rights_and_connections(cluster: Cluster) -> None:
    server = cluster.new()
    cluster.execute("CREATE ROLE guest LOGIN CONNECTION LIMIT 5")
    guest = parse_database(str(server).replace("user=autotune", "user=guest"))
    try:
        with pytest.raises(UserError, match=r"this user may not do that.*GRANT"):
            Store(guest, create=True)
        assert not is_there(guest)
        with opened(server, create=True) as store:
            plan(store, "a")
        cluster.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO guest", server.name)
        with opened(guest) as store:
            assert store.launches.get("a").port == 8000
            with pytest.raises(UserError, match=r"no connection left.*max_connections"):
                _hold(guest, 6)
    finally:
        cluster.execute("DROP OWNED BY guest", server.name)
        cluster.execute("DROP ROLE guest")


def _hold(database: Any, connections: int) -> None:
    """Open a database so many times at once."""
    stores = []
    try:
        for _ in range(connections):
            stores.append(Store(database))
    finally:
        for store in stores:
            store.close()


def test_an_old_server_is_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.storage.postgresql.OLDEST", 99)
    assert "autotune needs 99 or later" in refused("status", "--db", str(cluster.new()))


def test_another_programs_tables_and_revisions(cluster: Cluster) -> None:
    server = cluster.new()
    cluster.execute("CREATE TABLE customers (id int)", server.name)
    with pytest.raises(UserError, match="holds another program's tables"):
        Store(server, create=True)
    server = cluster.new()
    with opened(server, create=True):
        pass
    cluster.execute("UPDATE autotune_alembic_version SET version_num = '0099'", server.name)
    for mode in ({}, {"write": True}, {"create": True}):
        with pytest.raises(UserError, match=r"another version of autotune \(tables 0099"):
            Store(server, **mode)


# -- what is kept ----------------------------------------------------------------------------------


def test_many_make_the_tables_at_once(cluster: Cluster) -> None:
    server = cluster.new()

    def make(_: int) -> list[str]:
        with opened(server, create=True) as store:
            return store.study_names()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(make, range(4))) == [[]] * 4
    with opened(server) as store:
        assert revision_of(store._reader) == REVISIONS[-1]


def test_values_that_postgresql_does_not_take_as_they_are(cluster: Cluster) -> None:
    with opened(cluster.new(), create=True) as store:
        plan(store, "a")
        store.launches.measured("a", STATS, {"x": nan, "y": inf}, {"x": (-inf, None)}, {})
        store.launches.failed("a", TrialFailure(FailureKind.CLOCK, "a\0b", ("\0",)), ["c\0d"])
        row = store.launches.get("a")
        assert row.values is not None
        assert isnan(row.values["x"])
        assert (row.values["y"], row.intervals) == (inf, {"x": [-inf, None]})
        assert (row.failure_reason, row.log_tail) == ("a␀b", "c␀d")
        assert row.evidence == ["\0"]  # in JSON


def test_an_older_revision_is_read_as_it_is(cluster: Cluster) -> None:
    server = cluster.new()
    with opened(server, create=True) as store:
        plan(store, "a")
    for sql in (
        "ALTER TABLE autotune_map_points DROP COLUMN way",
        "DROP TABLE autotune_request_acceptance",
        "ALTER TABLE autotune_lease DROP COLUMN written",
        "UPDATE autotune_alembic_version SET version_num = '0003'",
    ):
        cluster.execute(sql, server.name)
    with opened(server) as store:
        assert store.launches.get("a").port == 8000
        assert store.load_maps.points("s") == []
        assert not store.requests.has_acceptance("a")
    version = "SELECT version_num FROM autotune_alembic_version"
    assert cluster.execute(version, server.name) == [("0003",)]
