"""The section of docs/reliability.md about several servers, Ray and PostgreSQL."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Sequence
from textwrap import fill

from autotune import __version__
from autotune.serving.machine import describe_machine, machine_line
from tests.faults.inject import Outcome
from tests.faults.scale import AWAY_S, LEASE_S, LEFT_S, SCALE_FAULTS, WANTED, Place
from tests.faults.table import cell, notes_of, seconds_text
from tests.postgresql import program

HEADING = "## Several servers, Ray and PostgreSQL"
_HELD = f"""\
Studies of {WANTED} trials over the server double. A run is hit when it has told a trial and
launches or measures on each of its slots. A ✓ says that **all** of this held: nothing was left
of what was hit (the number: seconds until then; {LEFT_S:g} s at most, where a process was
killed); every trial and every request that was there before was there unchanged, and the
database was whole (SQLite: `PRAGMA integrity_check`; PostgreSQL: amcheck); the run ended as the
second column says, with at most one line on stderr; in the same run or with the same command
again, the study ended with exactly the wanted number of trials, none twice, none lost, none
failed, each with the numbers of its launch, and no launch without an end. Where PostgreSQL was
away, no launch was lost: there was one for each trial. A process that stands still gives no
sign: it is replaced after {LEASE_S:g} s without one. The two nodes are on one machine, each
with a host name and a network of its own, so that the link between them can be cut (for
{AWAY_S:g} s here). The launch of a node that was lost, or cut off when it ended, has its end
written down when that node is back and the command is given again."""


def section(outcomes: Sequence[Outcome], *, parts: bool = False) -> str:
    """The section, from its heading on, without an empty line at its end.

    Args:
        outcomes: What the injections came to.
        parts: Whether they are of several runs.
    """
    versions = [
        f"autotune {__version__}",
        f"Ray {_ray()}",
        _postgresql(),
        f"Python {platform.python_version()}",
    ]
    notes: list[str] = []
    lines = [
        HEADING,
        "",
        "Written by `python -m tests.faults --cluster --write docs/reliability.md`:",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {', '.join(versions)};",
        f"{machine_line(describe_machine())}."
        + " Rows that had found a fault were made again once it was mended." * parts,
        "",
        fill(" ".join(_HELD.split()), 100, break_on_hyphens=False, break_long_words=False),
        "",
        "| fault | the run | " + " | ".join(Place) + " |",
        "|---|---|" + "---|" * len(Place),
    ]
    for fault in SCALE_FAULTS:
        mine = [o for o in outcomes if o.fault == fault.name]
        if not mine:
            continue
        runs = sorted({str(fault.of(place)) for place in fault.places})
        cells = [cell([o for o in mine if o.stage == place], notes) for place in Place]
        lines.append(f"| {fault.name} | {' / '.join(runs)} | " + " | ".join(cells) + " |")
    held = sum(not o.problems and not o.skipped for o in outcomes)
    skipped = sum(bool(o.skipped) for o in outcomes)
    lines += [
        "",
        f"{held} of {len(outcomes) - skipped} held"
        + (f", {skipped} were skipped" if skipped else "")
        + f". Seconds, median / largest: {seconds_text(o.seconds for o in outcomes)}.",
        *notes_of(notes),
    ]
    return "\n".join(lines)


def _ray() -> str:
    try:
        return importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _postgresql() -> str:
    found = program("postgres")
    if found is None:
        return "PostgreSQL not installed"
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"\d+(\.\d+)*", done.stdout)
    return f"PostgreSQL {version[0] if version else done.stdout.strip()}"


def found_in(page: str) -> str:
    """The section in a page; empty: it has none."""
    found = re.search(rf"^{re.escape(HEADING)}$.*?(?=^## |\Z)", page, re.M | re.S)
    return found[0].strip() if found else ""


def put_into(page: str, text: str) -> str:
    """A page with the section in the place of its old one, or before the warm starts."""
    old = found_in(page)
    if old:
        return page.replace(old, text, 1)
    before = "## Warm starts"
    return page.replace(before, f"{text}\n\n{before}", 1)
