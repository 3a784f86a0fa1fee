"""What a new release of vLLM changes for autotune, as a page that a maintainer can act on.

    python -m benchmarks.vllm_release NEW --against OLD [--out PAGE.md] [--tables FOLDER]
                                      [--only PART …]

NEW and OLD are each a wheel, a source distribution, an unpacked folder, or a version such as
``0.34.0``, which pip downloads from the index that it has. No server is started, nothing is
compiled: most is read in the Python source, and vLLM's own parser and configuration code are asked
in processes of their own (`benchmarks/vllm_rules_worker.py` says what stands in for what).

The tables of `benchmarks/vllm_rules.py` are used where they were made of this very source. Else
vLLM is asked, which takes minutes, and the answers go to ``--tables``; by default they are not
kept.

Exit status: 0 if every part is known, 1 if the page says of a part that it is not, 2 for wrong
words.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.vllm_release import accepts, messages, reads, tables
from benchmarks.vllm_release.page import Page, Section
from benchmarks.vllm_release.source import Read, read_source
from benchmarks.vllm_rules import Source, asked_of, packages, source_of
from benchmarks.vllm_rules_base import GPUS, H100, MODELS
from benchmarks.vllm_rules_compare import judged

_WORKER = Path(__file__).with_name("worker.py")
_VERSION = re.compile(r"\d+(\.\d+)+\w*")
# Parts of the page, and what each does.
PARTS = {
    "rules": "what vLLM's configuration starts and refuses, and autotune's rules against it",
    "accepts": "flags, ways to speculate, vLLM's own batch",
    "failures": "vLLM's own error messages",
    "reads": "counters, API, log, modules, environment",
    "commands": "documented commands, given to `autotune init`",
}


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def answers_of(source: Source, platform: str) -> dict[str, Any]:
    """Return what one vLLM's own code says of its flags and defaults, by part.

    Args:
        source: Its source.
        platform: ``cpu`` or ``cuda``, which is faked.
    """
    request = {
        "source": str(source.root.resolve()),
        "version": source.version,
        "platform": platform,
        "gpu": vars(GPUS[H100]),
        "models": MODELS,
    }
    say(f"vLLM {source.version} lists what it accepts ({platform}) …")
    try:
        found: dict[str, Any] = asked_of(_WORKER, request, f"vLLM {source.version} on {platform}")
    except SystemExit as e:
        why = [str(e).splitlines()[-1].strip()]
        return dict.fromkeys(("flags", "options", "spec", "defaults", "metrics"), why)
    return found


class Comparison:
    """Two versions of vLLM, and the sections on what differs.

    Attributes:
        old: Source of the older version.
        new: Source of the newer one.
        folder: Folder for tables that are asked.
    """

    def __init__(self, old: Source, new: Source, folder: Path) -> None:
        self.old, self.new, self.folder = old, new, folder
        self._read: dict[str, Read] = {}
        self._answers: dict[tuple[str, str], dict[str, Any]] = {}

    def sections(self, parts: Sequence[str]) -> list[Section]:
        """Return the sections of some parts, in their order."""
        makers: dict[str, Callable[[], list[Section]]] = {
            "rules": self._rules,
            "accepts": self._accepts,
            "failures": self._failures,
            "reads": self._reads,
            "commands": self._commands,
        }
        return [section for part in PARTS if part in parts for section in makers[part]()]

    def _source(self, of: Source) -> Read:
        if of.version not in self._read:
            say(f"vLLM {of.version} is read …")
            self._read[of.version] = read_source(of.root)
        return self._read[of.version]

    def _asked(self, of: Source, platform: str) -> dict[str, Any]:
        key = of.version, platform
        if key not in self._answers:
            self._answers[key] = answers_of(of, platform)
        return self._answers[key]

    def _rules(self) -> list[Section]:
        try:
            old, new = (tables.table_of(x, self.folder, say) for x in (self.old, self.new))
        except SystemExit as e:
            words = str(e).splitlines()
            return [Section("Rules", [], [], f"{words[0]} {words[-1]}")]
        with tables.heard("autotune's rules answer the same settings", say):
            found = list(judged(new))
        return [
            tables.rules_that_disagree(new, found),
            tables.settings_changed(old, new, found),
            tables.columns(old, new),
        ]

    def _accepts(self) -> list[Section]:
        old, new = self.old.version, self.new.version
        a, b = ([self._asked(x, p) for p in ("cpu", "cuda")] for x in (self.old, self.new))
        drafts = self._source(self.old), self._source(self.new)
        return [
            accepts.speculative_section(old, new, a[0], b[0], drafts),
            accepts.flags_section(old, new, a[0], b[0]),
            accepts.defaults_section(old, new, a, b),
        ]

    def _failures(self) -> list[Section]:
        with tables.heard("the error messages of both are read and classified", say):
            old, new = (messages.extracted(x.root, x.version) for x in (self.old, self.new))
            return [messages.failures_section(old, new)]

    def _reads(self) -> list[Section]:
        a, b = self._source(self.old), self._source(self.new)
        old, new = self.old.version, self.new.version
        before, now = (self._asked(x, "cpu") for x in (self.old, self.new))
        return [
            reads.metrics_section((old, a, before), (new, b, now)),
            reads.logs_section(old, new, a.logs, b.logs),
            reads.modules_section((old, a), (new, b)),
            reads.environment_section(a, b, new),
        ]

    def _commands(self) -> list[Section]:
        options = self._asked(self.new, "cpu")["options"]
        known = options if isinstance(options, dict) else None
        roots = self.old.root, self.new.root
        with tables.heard("documented commands are given to `autotune init`", say):
            return [messages.commands_section(*roots, self.new.version, known)]


def page_of(old: Source, new: Source, folder: Path, parts: Sequence[str]) -> Page:
    """Return the page on what differs between two versions.

    Args:
        old: Source of the older version.
        new: Source of the newer one.
        folder: Folder for tables that are asked.
        parts: Keys of :data:`PARTS`.
    """
    only = "".join(f" --only {p}" for p in PARTS if p in parts) if len(parts) < len(PARTS) else ""
    within = ", ".join(f"{name} {version}" for name, version in packages().items())
    command = f"python -m benchmarks.vllm_release {new.version} --against {old.version}{only}"
    head = [
        f"Written by `{command}`, which reads the Python source of both versions and asks",
        f"their parsers and configuration code, with {within}.",
        "No server was started, and the GPU is faked.",
    ]
    title = f"vLLM {new.version} against {old.version}"
    return Page(title, head, Comparison(old, new, folder).sections(parts))


def opened(stack: ExitStack, given: str) -> Source:
    """Return the source of a path or a version; what is unpacked goes with the stack.

    Raises:
        SystemExit: there is none, in one line.
    """
    if not given:
        raise SystemExit("a version or a path is empty: give one such as 0.34.0")
    download = _VERSION.fullmatch(given) is not None and not Path(given).exists()
    if not download and not Path(given).exists():
        raise SystemExit(f"{given}: no such file or folder, and no version such as 0.34.0")
    try:
        return stack.enter_context(source_of(given, download=download))
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError) as e:
        why = " ".join(str(e).split()).partition(": - method")[0][:200]
        raise SystemExit(f"{given}: cannot be read as wheel or source distribution: {why}") from e


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vllm_release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("new", help="wheel, source distribution, folder or version")
    parser.add_argument("--against", required=True, metavar="OLD", help="the same of an older one")
    parser.add_argument("--out", type=Path, help="file for the page; without, it is printed")
    parser.add_argument("--tables", type=Path, help="folder for the tables that are asked")
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        help="; ".join(f"{k}: {v}" for k, v in PARTS.items()),
    )
    args = parser.parse_args(argv)
    with ExitStack() as stack:
        try:
            old, new = (opened(stack, given) for given in (args.against, args.new))
            if old.version == new.version:
                raise SystemExit(f"both are vLLM {old.version}: give another version to --against")
            if args.out is not None and not args.out.parent.is_dir():
                raise SystemExit(f"--out: there is no folder {args.out.parent}")
            if args.out is not None and args.out.is_dir():
                raise SystemExit(f"--out: {args.out} is a folder; give a file such as 0.34.0.md")
            if args.tables is not None and args.tables.exists() and not args.tables.is_dir():
                raise SystemExit(f"--tables: {args.tables} is no folder")
        except SystemExit as e:
            if not isinstance(e.code, str):
                raise
            print(f"error: {'; '.join(e.code.splitlines())}", file=sys.stderr)
            return 2
        kept = stack.enter_context(tempfile.TemporaryDirectory(prefix="tables-"))
        page = page_of(old, new, args.tables or Path(kept), args.only or list(PARTS))
    if args.out is None:
        print(page.markdown(), end="")
    else:
        args.out.write_text(page.markdown(), encoding="utf-8")
        say(f"{args.out} is written")
    return 0 if page.complete else 1


if __name__ == "__main__":
    sys.exit(main())
