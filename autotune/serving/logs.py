"""Logs of servers: their folder, which has a limit, and their text, which has no secrets."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

from autotune.engine.command import LaunchPlan
from autotune.errors import FailureKind, LaunchError, UserError

MOST = 1000  # files; the evidence of a failed trial is in the database too
MOST_BYTES = 1 << 30
_READ_BYTES = 4 << 20  # the end of a log that is read to classify a failure


class LogFolder:
    """Server logs of one study; the oldest are removed when there are too many.

    Args:
        folder: Path of the folder, which is made with the first log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the path of a new log, after making room for it."""
        found = []
        for file in self.folder.glob("*.log"):
            with contextlib.suppress(OSError):  # somebody removed it
                s = file.stat()
                found.append((s.st_mtime, s.st_size, file))
        found.sort(reverse=True)
        total = 0
        for i, (_, size, file) in enumerate(found, start=2):
            total += size
            if i > MOST or total > MOST_BYTES:
                with contextlib.suppress(OSError):
                    file.unlink()
        return self.folder / name


def open_log(path: Path) -> int:
    """Open a new, empty log for appending, readable by its owner only; return its file descriptor.

    Raises:
        LaunchError: the disk is full.
        UserError: the file cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    try:
        logs = path.parent
        logs.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        logs.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, flags, 0o600)
    except OSError as e:
        if e.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise LaunchError(FailureKind.DISK, f"{path}: the disk is full") from e
        raise UserError(f"{path}: cannot be written: {e.strerror}") from e


def log_lines(path: Path, plan: LaunchPlan) -> list[str]:
    """Return the lines of the end of a log, with the launch's secrets masked."""
    try:
        with path.open("rb") as f:
            f.seek(max(0, path.stat().st_size - _READ_BYTES))
            text = f.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return plan.masked(text).splitlines()


def mask_log(path: Path, plan: LaunchPlan) -> None:
    """Mask the launch's secrets in a log that nothing writes to any more."""
    draft = path.with_suffix(".masked")
    how: dict[str, Any] = {"errors": "surrogateescape", "newline": ""}
    changed = False
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with (
            path.open(**how) as log,
            os.fdopen(os.open(draft, flags, 0o600), "w", **how) as out,
        ):
            for line in log:
                clean = plan.masked(line)
                changed = changed or clean != line
                out.write(clean)
        if changed:
            draft.replace(path)
    except OSError:  # no space on the disk: the log stays as it is, readable by its owner only
        return
    finally:
        draft.unlink(missing_ok=True)
