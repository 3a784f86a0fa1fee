"""Errors of PostgreSQL, of libpq and of pgbouncer in words, and which of them may pass."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Words:
    """What to say of one kind of error.

    Attributes:
        states: Beginnings of its SQLSTATE.
        text: Finds it in a message without an SQLSTATE, as those of a connection that failed.
        says: The words; ``{said}`` is the server's message.
        passes: Whether the same may work a little later.
    """

    states: tuple[str, ...]
    text: str
    says: str
    passes: bool = False


_KINDS = (
    _Words(
        ("28P01",),
        r"password authentication failed|SASL authentication failed",
        "the password is wrong, or the user is not known ({said}). It is taken from PGPASSWORD, "
        "from the file of ?passfile=FILE, or from ~/.pgpass",
    ),
    _Words(
        (),
        r"no password supplied",
        "asks for a password, and there is none: put it into ~/.pgpass (mode 0600), PGPASSWORD, "
        "or a file that ?passfile=FILE names",
    ),
    _Words(
        ("3D000",),
        r"database .* does not exist|no such database",
        "there is no such database ({said}); `createdb NAME` on the server makes it",
    ),
    _Words(
        (),
        r"no encryption|SSL (connection )?is required|TLS required|SSL required",
        "the server wants an encrypted connection ({said}); add ?sslmode=require",
    ),
    _Words(
        (),
        r"server does not support SSL",
        "the server offers no encryption, and sslmode asks for it; turn it on there, or take "
        "sslmode out of the URL",
    ),
    _Words(
        (),
        r"certificate|SSL error",
        "the encrypted connection was refused ({said}); look at sslmode and sslrootcert",
    ),
    _Words(
        ("28000",),
        r"role .* does not exist|pg_hba\.conf|authentication failed|is not permitted to log in",
        "the server does not let this user in ({said}); name another with USER@ in the URL, or "
        "let pg_hba.conf allow it",
    ),
    _Words(
        ("53300",),
        r"too many (clients|connections)|connection slots are reserved|no more connections allowed",
        "the server has no connection left ({said}); raise max_connections, or use pgbouncer",
        passes=True,
    ),
    _Words(("53100",), r"No space left on device", "the server's disk is full ({said}); make room"),
    _Words(
        ("42501",),
        r"permission denied",
        "this user may not do that ({said}); the owner of the database can allow it: `GRANT ALL ON "
        "SCHEMA public TO user`",
    ),
    _Words(
        ("25006",),
        r"read-only transaction",
        "the server only reads, as a standby does; name the primary one",
    ),
    _Words(
        ("57P03",),
        r"the database system is (starting up|shutting down|not yet accepting|in recovery)",
        "the server is starting or stopping ({said}); try again",
        passes=True,
    ),
    _Words(
        ("08", "57P01", "57P02", "57P05", "25P03"),
        r"server closed the connection|connection (is|was|not) (lost|closed|open)|no answer for|"
        r"consuming input failed|sending query failed|terminating connection|socket closed|"
        r"the connection is (lost|closed|bad)|server conn crashed|SSL SYSCALL|connection reset|"
        r"server login has been failing|query_wait_timeout|server_login_retry|pgbouncer",
        "the connection was lost ({said})",
        passes=True,
    ),
    _Words(
        (),
        r"[Cc]onnection refused|could not connect|No such file or directory|timeout expired|"
        r"unreachable|No route to host|timed out|[Tt]ry again|getaddrinfo|resolve|"
        r"Name or service not known|could not translate|failure in name resolution",
        "the server cannot be reached ({said}): look whether it runs, and at host and port",
        passes=True,
    ),
    _Words(
        ("42P01", "42703"),
        r"(?!)",
        "is incomplete ({said}): another program changed it; put back a copy of it",
    ),
    _Words(
        (),
        r"invalid (URI|connection option)|missing \"=\"|invalid port|URI query parameter|"
        r"invalid .* value|unexpected character",
        "the URL cannot be used ({said})",
    ),
)


def find_server_error(error: BaseException | None) -> Any:
    """Return the error of psycopg that SQLAlchemy or Optuna wrapped; None: there is none."""
    psycopg = sys.modules.get("psycopg")
    seen: set[int] = set()
    while psycopg is not None and error is not None and id(error) not in seen:
        if isinstance(error, psycopg.Error):
            return error
        seen.add(id(error))
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__
    return None


def server_words(error: Any) -> str:
    """Return an error of psycopg in one line, without the end that says what happened to data."""
    said = _said(error)
    kind = _kind(error)
    return (kind.says if kind else "cannot be used ({said})").format(said=said)


def is_lost(error: BaseException) -> bool:
    """Return whether a connection was lost, or cannot be had now, and may be had again later."""
    found = find_server_error(error)
    if found is None:
        return False
    kind = _kind(found)
    return kind is not None and kind.passes


def _kind(error: Any) -> _Words | None:
    state = getattr(error, "sqlstate", None)
    if state:
        return next((k for k in _KINDS if state.startswith(k.states or ("?",))), None)
    return next((k for k in _KINDS if re.search(k.text, str(error))), None)


def _said(error: Any) -> str:
    """Return the message without the parts that repeat the address or the statement."""
    diagnosis = getattr(getattr(error, "diag", None), "message_primary", None)
    text = " ".join(str(diagnosis or error).split())
    tries = re.findall(r"(?:FATAL|ERROR): +(.+?)(?= connection to server|$)", text)
    text = tries[-1] if tries else text
    text = text.partition(" Multiple connection attempts failed")[0]
    return re.sub(r"^(connection failed|connection is bad): ", "", text).removesuffix(".")[:300]
