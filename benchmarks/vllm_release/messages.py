"""Messages of a newer vLLM, by what autotune takes them for, and its documented commands."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.study.vllm_flags import find
from benchmarks import failure_messages, vllm_commands
from benchmarks.failure_messages import Answer, answers, counts
from benchmarks.failure_scope import scope_of
from benchmarks.vllm_release.page import Section, Todo, code, listed, table

_CRASH = "crash"
_ALIKE = 0.55  # least likeness of a message in other words
# Where a server's start is, for files that no scope names.
_STARTS = ("config/", "engine/", "entrypoints/", "platforms/", "v1/", "transformers_utils/")


def failures_section(old: Mapping[str, Any], new: Mapping[str, Any]) -> Section:
    """Return the messages that only the newer version has, those that nothing classifies first.

    Args:
        old: What `failure_messages.extract` gives for the older version.
        new: The same of the newer one.
    """
    had = {e["id"]: e for e in old["entries"]}
    has = {e["id"] for e in new["entries"]}
    added = [e for e in new["entries"] if e["id"] not in had]
    gone = [e for e in old["entries"] if e["id"] not in has]
    found = answers({**new, "entries": added})
    kinds = Counter(a.kind for a in found)
    lines = [
        f"{len(added)} messages are new, {len(gone)} are gone, {len(has) - len(added)} are as they "
        f"were. What autotune takes the new ones for: "
        + ", ".join(f"{kind} {k}" for kind, k in kinds.most_common())
        + ". A crash is also what no rule knows.",
        "",
    ]
    scored = counts(found)
    if labeled := sum(scored["all"].get(word, 0) for word in ("right", "wrong")):
        lines += [
            f"{labeled} of them have a label that counts; {scored['share_right']:.0%} are right.",
            "The labels measure the rules, so no rule is written after them.",
            "",
        ]
    for title, crash in (("Nothing classifies these", True), ("Classified", False)):
        chosen = [a for a in found if (a.kind == _CRASH) is crash]
        lines += [f"### {title} ({len(chosen)})", ""]
        lines += _listing(chosen, with_kind=not crash)
    words, moved = _reworded(gone, found, old)
    if words:
        lines += ["", f"### In other words, and now another kind ({len(words)})", ""]
        head = (old["version"], "kind", new["version"], "kind")
        lines += table(head, words)
    todo = _labels(old, new, added, kinds[_CRASH])
    if words:
        todo.append(
            Todo(
                "look",
                f"{len(words)} of {moved} messages in other words are classified otherwise now: "
                "`autotune/engine/refusals.py`, `failure_rules.py`",
            )
        )
    if outside := list(_outside(old["files"], new["files"])):
        lines += ["", "### New files that no scope names", ""]
        lines += table(("file", "raised with a text"), [(code(f), str(k)) for f, k in outside])
        todo.append(
            Todo(
                "look",
                f"{len(outside)} new files raise errors and are in no scope: "
                "`benchmarks/failure_scope.py` (`SCOPES`), for those that a start runs",
            )
        )
    return Section("Failure messages", lines, todo)


def _labels(
    old: Mapping[str, Any], new: Mapping[str, Any], added: Sequence[Any], crashes: int
) -> list[Todo]:
    version = new["version"]
    if (failure_messages.DATA / f"{version}.json").is_file():
        return []
    command = (
        f"`python -m benchmarks.failure_messages extract --version {version} --source FOLDER "
        f"--carry {old['version']}`"
    )
    return [
        Todo(
            "then",
            f"{len(added)} new messages have no label ({crashes} of them look like a crash): "
            f"{command}, label them by reading their places before any rule is written, then "
            f"`… score --version {version} --without {old['version']}`",
        )
    ]


def _listing(found: Sequence[Answer], *, with_kind: bool) -> Iterator[str]:
    """Yield messages by file, folded."""
    if not found:
        yield "None."
        return
    yield "<details><summary>show</summary>"
    yield ""
    rows = []
    for answer in sorted(found, key=lambda a: (a.kind, a.entry["file"], a.entry["line"])):
        entry = answer.entry
        place = code(f"{entry['file']}:{entry['line']}")
        said = f"{entry['exception'].rpartition('.')[2]}: {entry['template']}"
        rows.append((*([answer.kind] if with_kind else []), place, code(said)))
    yield from table((*(["kind"] if with_kind else []), "place", "message"), rows)
    yield ""
    yield "</details>"
    yield ""


def _reworded(
    gone: Sequence[dict[str, Any]], found: Sequence[Answer], old: Mapping[str, Any]
) -> tuple[list[tuple[str, ...]], int]:
    """Return messages that changed words and kind, and how many changed their words.

    A gone and a new message of one file and class of exception are one message if they are alike.
    """
    rows, moved, left = [], 0, list(found)
    for before in answers({**old, "entries": list(gone)}):
        entry = before.entry
        same = [
            a
            for a in left
            if a.entry["file"] == entry["file"] and a.entry["exception"] == entry["exception"]
        ]
        likeness = {
            id(a): difflib.SequenceMatcher(None, entry["template"], a.entry["template"]).ratio()
            for a in same
        }
        best = max(same, key=lambda a: likeness[id(a)], default=None)
        if best is None or likeness[id(best)] < _ALIKE:
            continue
        left.remove(best)
        moved += 1
        if best.kind != before.kind:
            texts = (code(e["template"]) for e in (entry, best.entry))
            rows.append((next(texts), before.kind, next(texts), best.kind))
    return rows, moved


def _outside(before: Mapping[str, int], now: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield new files of a start that raise errors with a text, and that no scope names."""
    for file, number in sorted(now.items()):
        if file not in before and number and file.startswith(_STARTS) and scope_of(file) is None:
            yield file, number


def extracted(root: Path, version: str) -> dict[str, Any]:
    """Return the messages of a version, and the number of errors with a text by file.

    Args:
        root: Folder that has the package ``vllm``.
        version: Its version.
    """
    found = failure_messages.extract(root, version)
    package = root / "vllm"
    files = {}
    for path in package.rglob("*.py"):
        file = path.relative_to(package).as_posix()
        if file.startswith(_STARTS):
            files[file] = path.read_text(encoding="utf-8").count("raise ")
    return {**found, "files": files}


def commands_section(
    old: Path, new: Path, version: str, options: Collection[str] | None = None
) -> Section:
    """Return what `autotune init` makes of the documented commands that are new.

    Args:
        old: Unpacked source distribution of the older version.
        new: That of the newer one.
        version: The newer version.
        options: Flags that the newer version's parser takes, with underscores; None: unknown.
    """
    title = "Documented commands"
    if not all((root / "docs").is_dir() for root in (old, new)):
        return Section(title, ["A wheel has no documentation: give source distributions."])
    had = {" ".join(c["text"].split()) for c in vllm_commands.found_in(old)}
    found = list(vllm_commands.found_in(new))
    added = [c for c in found if " ".join(c["text"].split()) not in had]
    refused = {c["at"]: (c, why) for c in added if (why := vllm_commands.answer(c["text"]))}
    reasons = Counter(why for _, why in refused.values())
    taken = len(added) - len(refused)
    lines = [
        f"{len(found)} commands start a server, {len(added)} are new; `init` takes {taken}.",
    ]
    if refused:
        rows = [(str(k), code(why)) for why, k in reasons.most_common()]
        lines += ["", *table(("new, refused", "why"), rows)]
    todo = []
    expected = set(vllm_commands.REASONS.values())
    for place, (command, why) in refused.items():
        if why not in expected:
            text = code(command["text"], 120)
            todo.append(Todo("look", f"`init` refuses {text} ({place}): {code(why)}"))
    used = {
        word.partition("=")[0].partition(".")[0].replace("_", "-")
        for command in added
        for word in command["text"].split()
        if word.startswith("--")
    }
    lacks = [f for f in sorted(used) if f[2:].replace("-", "_") in (options or ()) and not find(f)]
    if lacks:
        lines += ["", f"Flags in them that autotune's table lacks: {listed(lacks)}."]
    todo.append(
        Todo(
            "then",
            f"When the `cpu` extra of pyproject.toml moves to {version}: "
            "`python -m benchmarks.vllm_commands --source FOLDER`",
        )
    )
    return Section(title, lines, todo)
