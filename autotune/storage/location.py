"""Where a database is: a file of SQLite, or a URL of PostgreSQL. A password is never part of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

from autotune.errors import UserError, one_line

# Schemes that people give for PostgreSQL; the first one is shown.
SCHEMES = ("postgresql+psycopg", "postgresql", "postgres")
# The beginning of a URL with a character too few.
_NEARLY = re.compile(r"postgres(ql)?(\+\w+)?(:|//)", re.IGNORECASE)
# libpq's parameters that hold a secret.
_SECRET = {"password", "sslpassword", "oauth_client_secret"}
_REFUSED = (
    "a password does not belong into a database's URL: `ps` and the shell's history would show it. "
    "Put it into ~/.pgpass, PGPASSWORD, or a file that ?passfile=FILE names "
    "(an @ that is not the end of a user name is written %40)"
)


@dataclass(frozen=True)
class Server:
    """A database of a PostgreSQL server.

    Attributes:
        rest: URL without its scheme: ``//user@host:port/name?options``. It has no password.
    """

    rest: str

    def __str__(self) -> str:
        return f"{SCHEMES[0]}:{self.rest}"

    @property
    def conninfo(self) -> str:
        """The URL as libpq takes it."""
        return f"postgresql:{self.rest}"

    @property
    def options(self) -> dict[str, str]:
        """Parameters of libpq that the URL sets."""
        return dict(parse_qsl(urlsplit(self.conninfo).query))

    @property
    def name(self) -> str:
        """Name of the database; empty if the URL leaves it to libpq."""
        return unquote(urlsplit(self.conninfo).path.strip("/")) or self.options.get("dbname", "")


Database: TypeAlias = Path | Server


def is_url(text: str) -> bool:
    """Return whether a text names a database by a URL."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def parse_database(text: str | Path | Server) -> Database:
    """Return the database that a text names: a URL, or else a path.

    Raises:
        UserError: a URL of something else than PostgreSQL, with a password, or unreadable.
    """
    if not isinstance(text, str):
        return text
    if not is_url(text):
        _check_no_url(text)
        return Path(text)
    scheme, _, rest = text.partition(":")
    # before anything else: no other message may quote it
    before, at, _ = rest.partition("@")
    if (at and ":" in before) or any(
        key in _SECRET for key, _ in parse_qsl(rest.partition("?")[2], keep_blank_values=True)
    ):
        raise UserError(_REFUSED)
    if scheme.lower() not in SCHEMES:
        raise UserError(
            f"{scheme}://…: no database of this kind is known. Give a file (SQLite) or "
            f"{SCHEMES[0]}://HOST/NAME"
        )
    try:
        urlsplit(rest)
        if not rest.isprintable():
            raise ValueError("it has a character that is not printable")
    except ValueError as e:
        raise UserError(f"{one_line(text, 200)}: is no URL: {e}") from e
    if "#" in rest:
        raise UserError(f"{one_line(text, 200)}: has a `#`; write it as %23")
    return Server(rest)


def _check_no_url(path: str) -> None:
    """Refuse a path that was meant as a URL: it would be made, and may have a password in it."""
    if (found := _NEARLY.match(path)) is not None:
        raise UserError(
            f"{found[0]}…: is neither a file nor a URL; write {SCHEMES[0]}://HOST/NAME (a file of "
            "such a name is ./NAME)"
        )


def parse_named(text: str) -> tuple[Database, str | None] | None:
    """Read ``DATABASE`` or ``DATABASE:STUDY``; a colon may also stand in a file's name.

    Returns:
        The database and the study, if it is named; None: there is no such file.

    Raises:
        UserError: a URL that :func:`parse_database` refuses.
    """
    if is_url(text):
        head, _, study = text.rpartition(":")
        if study and "/" in head.partition("://")[2] and not re.search(r"[/@?]", study):
            return parse_database(head), study
        return parse_database(text), None
    _check_no_url(text)
    try:
        if Path(text).is_file():
            return Path(text), None
        file, _, study = text.rpartition(":")
        if study and file and Path(file).is_file():
            return Path(file), study
    except (OSError, ValueError):  # a name too long, a NUL
        pass
    return None


def file_identity(database: Database) -> tuple[int, int] | None:
    """Return which file a path leads to now; None if there is none."""
    if isinstance(database, Server):
        return None
    try:
        found = database.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_same(a: Database, b: Database) -> bool:
    """Return whether two names are of one database, as far as the names tell."""
    if isinstance(a, Server) or isinstance(b, Server):
        return a == b
    return file_identity(a) == file_identity(b)


def full_text(database: Database) -> str:
    """Return a database as it is named from any folder."""
    return str(database if isinstance(database, Server) else database.resolve())
