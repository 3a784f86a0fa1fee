"""Shared parts of commands: the group, options, and types of their values."""

from __future__ import annotations

import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from autotune.errors import AutotuneError, UserError, one_line
from autotune.storage.location import Server, parse_database

F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = 130


class Group(click.Group):
    """Turn errors of autotune into one line on stderr and the right exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AutotuneError as e:
            click.echo(one_line(f"autotune: {e}"), err=True)
            ctx.exit(e.exit_code)
        except KeyboardInterrupt:
            resumes = ctx.invoked_subcommand in {"run", "confirm", "map", "verify"}
            more = "; run the same command again to resume" if resumes else ""
            click.echo(f"autotune: interrupted{more}", err=True)
            # CPython remembers an interrupt that left a string's code (dataclasses and SQLAlchemy
            # run such code), also one that was caught, and would end `python -m` by SIGINT instead
            # of with our exit code; the next string that it runs makes it forget.
            eval("None")  # noqa: S307
            ctx.exit(INTERRUPTED)


class PathType(click.Path):
    """Path of a regular file or a folder, not of a special file such as /dev/null.

    It also refuses paths that click accepts: too long ones, and ones with a character that no path
    can have.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path, raw = Path(value), str(value).encode(errors="replace")
        if b"\0" in raw or raw.decode() != str(value):  # SQLite takes UTF-8 only
            self.fail(f"{str(value)[:60]!r} has a character that a path cannot have", param, ctx)
        if value == "":
            self.fail("a path cannot be empty", param, ctx)
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):  # to be made, or refused by what opens it
            mode = stat.S_IFREG
        except OSError as e:
            self.fail(f"{str(value)[:60]!r}: {e.strerror}", param, ctx)
        if self.file_okay and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            self.fail(f"{str(value)[:60]!r} is not a regular file", param, ctx)
        return super().convert(value, param, ctx)


def a_number(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """Refuse NaN, which click's ranges let through."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number.")
    return value


class DatabaseType(PathType):
    """A database: the path of an SQLite file, or a URL of PostgreSQL."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str):
            found = parse_database(value)  # an error of it never quotes a password
            if isinstance(found, Server):
                return found
        return super().convert(value, param, ctx)


def database_option(f: F) -> F:
    """Add ``--db``."""
    return click.option(
        "--db",
        "database",
        type=DatabaseType(dir_okay=False, path_type=Path),
        default=Path("autotune.db"),
        show_default=True,
        metavar="FILE|URL",
        help="Database of the studies: an SQLite file, or postgresql+psycopg://HOST/NAME.",
    )(f)


def study_option(f: F) -> F:
    """Add ``--study``."""
    return click.option("--study", help="Study to use if the database holds several.")(f)


def timeout_option(f: F) -> F:
    """Add ``--timeout``, in minutes."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        callback=a_number,
        metavar="MINUTES",
        help="Start no new trial after this time.",
    )(f)


PARALLEL_HELP = (
    "Servers to launch at the same time, each on GPUs or cores of its own: a number, or auto for "
    "one on each group of GPUs that a server needs. Default: one server at a time."
)


def parallel(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Parse a number of slots; ``auto`` is None, and without the option there is one."""
    if value is None:
        return 1
    if value == "auto":
        return None
    if not value.isdecimal() or not 1 <= int(value) <= 10**4:
        raise click.BadParameter(f"{value[:60]!r} is neither auto nor a number from 1 on")
    return int(value)


def parallel_option(f: F) -> F:
    """Add ``--parallel``."""
    return click.option("--parallel", callback=parallel, metavar="auto|N", help=PARALLEL_HELP)(f)


def ray_option(f: F) -> F:
    """Add ``--ray``."""
    return click.option(
        "--ray",
        metavar="auto|HOST:PORT",
        help="Launch on the nodes of a Ray cluster: auto for that of this host, or its head. With "
        "--parallel N, a node without GPUs has N servers at a time.",
    )(f)


def no_slots(option: str) -> Callable[[F], F]:
    """Refuse an option of several slots, in one line, where a command has one server."""

    def refuse(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise UserError(
                f"{option}: {ctx.command.name} measures one server with two clients in turn, so it "
                f"has nothing to launch on other slots; leave {option} out"
            )

    return click.option(option, callback=refuse, expose_value=False, hidden=True)


def share(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    """Parse a share, such as ``5%`` or ``0.05``."""
    number, percent, rest = value.strip().partition("%")
    try:
        found = float(number) / (100 if percent else 1)
    except ValueError:
        found = math.nan
    if rest or not 0 <= found < 1:
        raise click.BadParameter(f"{value[:60]!r} is not a share below 1, such as 5% or 0.05")
    return found


def concurrencies(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    """Parse concurrencies such as ``1,2,4``: ascending, each once."""
    try:
        loads = sorted({int(word) for word in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value[:60]!r} is not a list such as 1,2,4,8") from None
    if not 1 <= loads[0] <= loads[-1] <= 10**4:
        raise click.BadParameter("a concurrency must be from 1 to 10000")
    return tuple(loads)


_MOST_LENGTHS = 20  # acceptance lengths of one table


def acceptance_lengths(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Parse acceptance lengths such as ``3.5,4,5``: ascending, each once."""
    if value is None:
        return None
    try:
        found = sorted({float(word) for word in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value[:60]!r} is not a list such as 3.5,4,5") from None
    if any(not 1 < x < math.inf for x in found):
        raise click.BadParameter(
            "an acceptance length is a finite number above 1, in tokens per step"
        )
    if len(found) > _MOST_LENGTHS:
        raise click.BadParameter(f"at most {_MOST_LENGTHS} acceptance lengths fit into a table")
    return tuple(found)


WAYS = ("schedule", "adaptive", "arms")
LEAST_CONFIRM = 4


def ways(_ctx: click.Context, _param: click.Parameter, value: str) -> frozenset[str]:
    """Parse ways to speculate such as ``schedule,adaptive``, or ``none``."""
    words = {word.strip() for word in value.split(",")}
    if words == {"none"}:
        return frozenset()
    if unknown := sorted(words - {*WAYS}):
        raise click.BadParameter(f"{unknown[0][:60]!r} is none of {', '.join(WAYS)}, none")
    return frozenset(words)


def schedule_starts(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[tuple[int, int], ...] | None:
    """Parse a schedule such as ``1:7,8:3`` into first batch sizes, each with its n."""
    if value is None:
        return None
    found = []
    for part in value.split(","):
        first, _, n = part.partition(":")
        try:
            found.append((int(first), int(n)))
        except ValueError:
            raise click.BadParameter(
                f"{value[:60]!r} is not a schedule such as 1:7,8:3, which is n = 7 from a batch "
                "size of 1 and n = 3 from 8"
            ) from None
    return tuple(found)


def confirmation_launches(_ctx: click.Context, _param: click.Parameter, value: int) -> int:
    """Refuse too few launches for a comparison: two ways, there and back, take four."""
    if 0 < value < LEAST_CONFIRM:
        raise click.BadParameter(
            f"a confirmation takes at least {LEAST_CONFIRM} launches: two ways, each twice"
        )
    return value
