"""A systemd unit, or an ``ExecStart=`` line of one → the words that it runs and its variables.

The grammar is that of ``systemd.service(5)`` and ``systemd.syntax(7)``: a backslash at the end of a
line joins lines, words may be quoted, ``$$`` is a dollar sign and ``%%`` a percent sign.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from autotune.errors import UserError
from autotune.study.shell import marked

_SECTION = re.compile(r"\[[\w-]+\]")
_EXEC = "ExecStart="
_PREFIXES = "-@:+!|"  # of a program in ExecStart: what systemd does with its end and its rights
_ESCAPE = re.compile(r"\\[^\\'\"]")
_VARIABLE = re.compile(r"\$\$|\$\{([A-Za-z_]\w*)\}")
# Keys of a unit that may make a server faster or slower.
_SPEED = {
    "CPUAffinity",
    "NUMAPolicy",
    "NUMAMask",
    "Nice",
    "CPUQuota",
    "AllowedCPUs",
    "LimitMEMLOCK",
}
_SPEED |= {"MemoryMax", "MemoryHigh", "CPUWeight", "CPUSchedulingPolicy", "CPUSchedulingPriority"}


@dataclass
class Unit:
    """What a systemd unit runs.

    Attributes:
        commands: Words of each ``ExecStart=``.
        env: Variables that it sets.
        notes: What was left out.
    """

    commands: list[list[str]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def is_unit(text: str) -> bool:
    """Return whether a text is a systemd unit or one of its ``ExecStart=`` lines."""
    first = next((s for line in text.splitlines() if (s := line.strip()) and s[0] not in "#;"), "")
    if first.replace(" ", "").startswith(_EXEC):
        return True
    return _SECTION.fullmatch(first) is not None and re.search(r"(?m)^\s*\w+\s*=", text) is not None


def without_key(words: list[str]) -> list[str]:
    """Return the words of a command that was pasted with ``ExecStart=`` in front, without it."""
    if not words[:1] or not words[0].startswith(_EXEC):
        return words
    first = words[0].removeprefix(_EXEC).lstrip(_PREFIXES)
    return [*([first] if first else []), *words[1:]]


def unit_of(text: str) -> Unit:
    """Return what a systemd unit runs.

    Raises:
        UserError: a line of it cannot be understood for certain.
    """
    unit, found, files, speed = Unit(), list[str](), list[str](), list[str]()
    for key, value in _settings(text):
        if key == "ExecStart":
            found = [*found, value] if value else []  # an empty one forgets those before it
        elif key == "Environment":
            pairs = (w.partition("=") for w in _words(key, value))
            unit.env |= {k: _without_percent(key, v) for k, equals, v in pairs if equals}
        elif key == "EnvironmentFile":
            files.append(value)
        elif key in _SPEED:
            speed.append(f"{key}={value}")
        elif key == "WorkingDirectory":
            unit.notes.append(f"left out: {key}={value} (run autotune there if a path is relative)")
        elif key == "User":
            unit.notes.append(f"left out: {key}={value} (servers run as you)")
    unit.notes += [f"left out: EnvironmentFile={f} (write its variables into env)" for f in files]
    if speed:
        unit.notes.append(
            f"left out: {', '.join(speed)} (may change the speed: write taskset, numactl or nice "
            "in front of server.command)"
        )
    unit.commands = [_command(value, unit.env) for value in found]
    return unit


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of a unit with their values, in order."""
    joined = ""
    for line in text.splitlines():
        bare = line.strip()
        if bare[:1] in ("#", ";"):  # a comment, between joined lines too
            continue
        joined += bare
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        key, equals, value = joined.partition("=")
        if equals:
            yield key.strip(), value.strip()
        joined = ""


def _command(value: str, env: Mapping[str, str]) -> list[str]:
    """Return the words of an ``ExecStart=``."""
    program = value.lstrip(_PREFIXES)
    literal = ":" in value[: len(value) - len(program)]  # then `$` is a dollar sign
    words = [_without_percent("ExecStart", w) for w in _words("ExecStart", program)]
    if literal:
        return words
    return [*words[:1], *(x for w in words[1:] for x in _substituted(w, env))]


def _words(key: str, value: str) -> list[str]:
    """Return the words of a value.

    Raises:
        UserError: a quote does not end, or an escape means more than the character behind it.
    """
    if escape := _ESCAPE.search(value):
        raise UserError(
            f"{key}: {escape[0]} of the unit is not understood; write what it stands for"
        )
    lexer = shlex.shlex(value, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    lexer.escapedquotes = "\"'"
    try:
        return list(lexer)
    except ValueError as e:
        raise UserError(f"{key}: a quote does not end; give the whole line of the unit") from e


def _without_percent(key: str, word: str) -> str:
    """Return a word with its ``%%`` resolved.

    Raises:
        UserError: it has another specifier.
    """
    if other := re.search(r"%(.)", word.replace("%%", "")):
        raise UserError(f"{key}: only systemd knows what {other[0]} is; write its value")
    return word.replace("%%", "%")


def _substituted(word: str, env: Mapping[str, str]) -> list[str]:
    """Return the words that a word becomes with the unit's variables."""
    alone = re.fullmatch(r"\$([A-Za-z_]\w*)", word)
    if alone:  # without braces its value is split at blanks
        return env[alone[1]].split() if alone[1] in env else [marked(word)]

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return "$"
        return env[name] if name in env else marked(match[0])

    return [_VARIABLE.sub(value, word)]
