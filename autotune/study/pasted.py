"""Texts that hold a command in another form → the shell text that they stand for.

These are Markdown's code blocks, JSON arrays of words, Dockerfiles, and the line ends and variables
of PowerShell, cmd and fish. :mod:`autotune.study.script` reads the result, and
:mod:`autotune.study.unit` reads units of systemd.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from autotune.errors import UserError

_FENCE = re.compile(r"(?m)^[ \t>]*(?:```|~~~)[\w. {}-]*$\n?")
_WHOLE = re.compile(r"\s*([`\"'])((?:(?!\1).)*\s(?:(?!\1).)*)\1\s*", re.DOTALL)  # in quotes
_NOTEBOOK = re.compile(r"(?m)^[ \t]*!(?=[A-Za-z/])")
_DOCKER = re.compile(r"(FROM|ENTRYPOINT|CMD|ENV|ARG|RUN|COPY|WORKDIR|EXPOSE|USER)\s", re.IGNORECASE)
_CONTINUED = re.compile(r"[ \t][`^][ \t]*\n(?=[ \t]*-)")  # PowerShell's and cmd's \
_POWERSHELL = re.compile(r"(?mi)(^|;)[ \t]*\$env:([A-Za-z_]\w*)[ \t]*=[ \t]*")
_CMD = re.compile(r'(?mi)(^|&&|;)[ \t]*set[ \t]+"?([A-Za-z_]\w*)=([^"&;\n]*?)"?[ \t]*(?=$|&&|;)')
_FISH = re.compile(r"(?m)(^|;)[ \t]*set[ \t]+-g?xg?[ \t]+([A-Za-z_]\w*)[ \t]+([^;\n]*)")


class Pasted(NamedTuple):
    """A shell text, and what to know about where it comes from.

    Attributes:
        text: The text.
        notes: Comments for the study.
    """

    text: str
    notes: tuple[str, ...] = ()


def bare(text: str) -> str:
    """Return a pasted text without what only a page put around it: code fences, quotes, prompts."""
    text = _FENCE.sub("", text.replace("\r\n", "\n").lstrip("\ufeff"))
    if whole := _WHOLE.fullmatch(text):
        text = whole[2]
    return _NOTEBOOK.sub("", text)


def shell_of(text: str) -> Pasted:
    """Return the shell text that a pasted text stands for; that of a shell stays as it is.

    Args:
        text: Text of :func:`bare`.

    Raises:
        UserError: it is a Dockerfile that starts nothing.
    """
    if (words := _array(text)) is not None:
        return Pasted(shlex.join(words))
    lines = [line for line in text.splitlines() if line.strip() and line.lstrip()[0] not in "#;"]
    if lines and _DOCKER.match(lines[0]) and any(_starts(line) for line in lines):
        return _of_dockerfile(text)
    text = _CONTINUED.sub(" ", text)
    text = _POWERSHELL.sub(r"\1 export \2=", text)
    for other in (_CMD, _FISH):
        text = other.sub(lambda m: f"{m[1]} export {m[2]}={_quoted(m[3])}", text)
    return Pasted(text)


def _quoted(value: str) -> str:
    """Return a value in quotes of a shell, unless it has its own."""
    value = value.strip()
    return value if value[:1] in ("'", '"', "$") else shlex.quote(value)


def _array(text: str) -> list[str] | None:
    """Return the words of a JSON array; None: it is none."""
    if not text.lstrip().startswith("["):
        return None
    try:
        words = json.loads(text.strip().rstrip(","))
    except (ValueError, RecursionError):
        return None
    return words if words and all(isinstance(w, str) for w in words) else None


def _joined(text: str) -> Iterator[str]:
    """Yield the lines of a text with those that a backslash continues; comments are left out."""
    whole = ""
    for line in text.splitlines():
        if line.lstrip()[:1] in ("#", ";"):
            continue
        whole += line.strip()
        if whole.endswith("\\"):
            whole = f"{whole[:-1]} "
            continue
        if whole:
            yield whole
        whole = ""
    if whole:
        yield whole


def _settings(value: str) -> Iterator[str]:
    """Yield the ``NAME=value`` of a line, each as a word of a shell.

    Raises:
        UserError: a quote does not end.
    """
    try:
        words = shlex.split(value)
    except ValueError as e:
        raise UserError(f"the variables of the text cannot be split into words: {e}") from e
    for word in words:
        name, equals, text = word.partition("=")
        if equals and re.fullmatch(r"[A-Za-z_]\w*", name):
            yield f"{name}={shlex.quote(text)}"


def _starts(line: str) -> bool:
    return re.match(r"(ENTRYPOINT|CMD)\s", line, re.IGNORECASE) is not None


def _of_dockerfile(text: str) -> Pasted:
    """Return what an image of a Dockerfile starts, by its last stage.

    Raises:
        UserError: ``CMD`` goes to a program that the text does not show.
    """
    before, entry, command, image = list[str](), "", "", ""
    for line in _joined(text):
        instruction, _, value = line.partition(" ")
        value = value.strip()
        match instruction.upper():
            case "FROM":
                image, entry, command = value, "", ""
                before.clear()
            case "ENV" if re.match(r"[A-Za-z_]\w*=", value):
                before.append(f"export {value}")
            case "ENV":
                name, _, setting = value.partition(" ")
                before.append(f"export {name}={shlex.quote(setting.strip())}")
            case "ARG" if "=" in value:
                before.append(value)
            case "ENTRYPOINT":
                entry, command = value, ""
            case "CMD":
                command = value
    first, rest = _array(entry), _array(command)
    if entry and first is None:
        start = entry  # a shell runs it, and CMD does not count
    elif rest is not None:
        start = shlex.join([*(first or []), *rest])
    elif first is not None:
        start = shlex.join(first)
    else:
        start = command
    if not entry and rest and (rest[0].startswith("-") or _is_openai(image, rest)):
        if "vllm" not in image:
            raise UserError("the Dockerfile has no ENTRYPOINT; write `vllm serve` before its CMD")
        start = f"vllm serve {start}"
    note = "the command of a Dockerfile: run autotune in a container of its image"
    return Pasted("\n".join([*before, start]), (note,))


def _is_openai(image: str, words: list[str]) -> bool:
    """Return whether words are arguments of the program of vLLM's own image."""
    return "vllm-openai" in image and "vllm" not in words[0] and not words[0].startswith("/")
