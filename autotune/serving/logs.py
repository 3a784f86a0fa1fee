"""The folder of a study's server logs, of which the oldest go when they become too many."""

from __future__ import annotations

import contextlib
from pathlib import Path

MOST = 1000  # files; a failed trial's telling lines are in the database, too
MOST_BYTES = 1 << 30


class LogFolder:
    """Server logs of one study.

    Args:
        folder: Made with the first log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where a new log goes; makes room for it."""
        found = []
        for file in self.folder.glob("*.log"):
            with contextlib.suppress(OSError):  # somebody tidied up
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
