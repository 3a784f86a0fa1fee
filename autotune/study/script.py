"""Which commands a shell text runs, each with the variables that it sees; nothing is run.

Variables that the text itself sets are followed. One that is set where the text may not get to (in
an ``if``, a loop, a function, after ``||``) is not known afterwards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autotune.study.shell import (
    Operator,
    Redirection,
    Token,
    Word,
    expand,
    joined,
    marked,
    tokens,
)

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?)=")
_DECLARE = {"export", "declare", "typeset", "local", "readonly"}
_OPENS = {"if": "an `if`", "while": "a loop", "until": "a loop", "for": "a loop"}
_OPENS |= {"select": "a loop", "case": "a `case`"}
_CLOSES = {"fi", "done", "esac"}
_BETWEEN = {"then", "else", "elif", "do", "!"}
_TESTS = {"[", "test", "[[", "grep"}
Value = str | tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """A simple command.

    Attributes:
        words: Its words after all expansions.
        env: Variables that it gets: those exported before it, and the assignments in front of it.
        inside: What surrounds it, such as ``a loop``; None: the text runs it once.
        dropped: Redirections and the operator that puts it into the background.
    """

    words: tuple[str, ...]
    env: Mapping[str, str]
    inside: str | None
    dropped: tuple[str, ...]


@dataclass
class Script:
    """The commands of a shell text.

    Attributes:
        commands: Its simple commands, in order.
        said: Sentences on what was assumed.
    """

    commands: list[Command] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def script_of(text: str, env: Mapping[str, str] | None = None) -> Script:
    """Return the commands of a shell text.

    Args:
        text: The text.
        env: Variables that it starts with.

    Raises:
        UserError: a quote or bracket does not end.
    """
    reader = _Reader(env or {})
    for token in (*tokens(text), Operator("\n")):
        reader.take(token)
    return reader.script


class _Reader:
    """Reader of tokens that keeps the variables and what surrounds the current command."""

    def __init__(self, env: Mapping[str, str]) -> None:
        home = os.environ.get("HOME") or str(Path.home())
        self.script = Script()
        self.values: dict[str, Value] = {"HOME": home, "PWD": str(Path.cwd()), **env}
        self.exported = dict.fromkeys(env)  # in order
        self.every = False  # `set -a`
        self.around: list[str] = []
        self.words: list[Word] = []
        self.dropped: list[str] = []
        self.skipping = ""  # up to this word
        self.perhaps = False  # whether the current command depends on one before it
        self.tested = False  # whether the command before was a test

    def take(self, token: Token) -> None:
        """Take in the next token."""
        if isinstance(token, Redirection):
            here = token.text.startswith("<<")  # its text may be a secret
            self.dropped.append(token.text[:2] if here else token.text)
        elif isinstance(token, Operator):
            self._operator(token.text)
        elif self.skipping:
            if token.plain == self.skipping:
                self.skipping = ""
        elif self.words or not self._reserved(token.plain):
            self.words.append(token)

    def _reserved(self, word: str | None) -> bool:
        """Take in a word that is one of the shell's own where a command begins."""
        if word in _OPENS:
            self.around.append(_OPENS[word])
            if word in ("for", "select"):
                return False  # the words up to `do` follow: a command of no interest
        elif word in _CLOSES:
            if self.around:
                self.around.pop()
        elif word == "[[":
            self.skipping = "]]"
            self.tested = True
        elif word == "function":
            return False
        elif word == "{":
            self.around.append("")
        elif word == "}":
            if self.around:
                self.around.pop()
        elif word not in _BETWEEN:
            return False
        return True

    def _operator(self, operator: str) -> None:
        if self.skipping == "]]":
            return
        if operator == "(":
            if self.words:  # `name()` begins a function
                self.words = []
                self.around.append("a function")
                self.skipping = "{"
            else:
                self.around.append("")
            return
        if operator == ")":
            if self.skipping == "{":
                return
            if self.around and self.around[-1] == "a `case`":
                self.words = []  # a pattern
                return
            self._end("\n")
            if self.around and self.around[-1] == "":
                self.around.pop()
            return
        self._end(operator)

    def _end(self, operator: str) -> None:
        """End the current command at an operator."""
        if self.words:
            first = self.words[0].plain
            if first == "function":
                self.around.append("a function")
                if all(w.plain != "{" for w in self.words):
                    self.skipping = "{"
            elif first in ("for", "select"):
                name = self.words[1].plain if len(self.words) > 1 else None
                self.values[name or ""] = marked(f"${name}")
            else:
                self._run(["&"] if operator == "&" else [])
                self.tested = first in _TESTS
        self.words, self.dropped = [], []
        self.perhaps = operator == "||" or (operator == "&&" and (self.tested or self.perhaps))
        if operator not in ("&&", "||"):
            self.tested = False

    def _run(self, dropped: list[str]) -> None:
        """Take in a whole simple command."""
        before: dict[str, str] = {}
        words = list(self.words)
        alone = all(_assigned(w) for w in words)
        said: list[str] = []
        while words and (name := _assigned(words[0])):
            word = words.pop(0)
            if alone:
                self._assign(name, word, exported=self.every)
            else:
                before[name[0]] = self._text(word, name, said)
        found = [x for w in words for x in self._expanded(w, said)]
        self.script.said = list(dict.fromkeys([*self.script.said, *said]))
        if not found:
            return
        if found[0] in _DECLARE:
            self._declare(words[1:], found[0])
        elif found[0] == "unset":
            for name_ in found[1:]:
                self.values.pop(name_, None)
                self.exported.pop(name_, None)
        elif found[0] == "set" and len(found) > 1:
            if re.fullmatch(r"-\w*a\w*", found[1]) or found[2:3] == ["allexport"]:
                self.every = True
            elif found[1] == "+a":
                self.every = False
        env = {k: v for k in self.exported if isinstance(v := self.values.get(k), str)}
        inside = next((a for a in reversed(self.around) if a), None)
        dropped = [*self.dropped, *dropped]
        self.script.commands.append(
            Command(tuple(found), {**env, **before}, inside, tuple(dropped))
        )

    def _expanded(self, word: Word, said: list[str]) -> list[str]:
        found = expand(word, self.values, said)
        home = str(self.values["HOME"])
        if word.parts and word.parts[0].kind == "text" and not word.parts[0].quoted:
            found = [re.sub(r"^~(?=/|$)", lambda _: home, w) for w in found]
        return found

    def _declare(self, words: Iterable[Word], verb: str) -> None:
        options = ""
        for word in words:
            text = joined(word, self.values, [])
            if text.startswith("-"):
                options += text
            elif name := _assigned(word):
                self._assign(name, word, exported=verb == "export" or "x" in options)
            elif verb == "export" or "x" in options:
                if "n" in options:
                    self.exported.pop(text, None)
                else:
                    self.exported[text] = None

    def _assign(self, name: tuple[str, bool], word: Word, *, exported: bool) -> None:
        """Set a variable, or forget its value where it may not be set."""
        key, _ = name
        if exported:
            self.exported[key] = None
        if self.perhaps or any(self.around):
            self.values[key] = marked(f"${key}")
            return
        said: list[str] = []
        if word.elements is not None:
            old = self.values.get(key, ())
            kept = old if isinstance(old, tuple) else (old,)
            words = tuple(x for w in word.elements for x in self._expanded(w, said))
            self.values[key] = (*kept, *words) if name[1] else words
        else:
            old = self.values.get(key, "")
            text = self._text(word, name, said)
            self.values[key] = f"{old}{text}" if name[1] and isinstance(old, str) else text
        self.script.said = list(dict.fromkeys([*self.script.said, *said]))

    def _text(self, word: Word, name: tuple[str, bool], said: list[str]) -> str:
        """Return the value of an assignment."""
        whole = joined(word, self.values, said)
        text = whole[len(name[0]) + (2 if name[1] else 1) :]
        home = str(self.values["HOME"])
        return re.sub(r"^~(?=/|$)", lambda _: home, text)


def _assigned(word: Word) -> tuple[str, bool] | None:
    """Return the name that a word assigns to, and whether it appends; None: it is no assignment."""
    start = ""
    for part in word.parts:
        if part.kind != "text" or part.quoted:
            break
        start += part.text
    match = _ASSIGNMENT.match(start)
    return (match[1], bool(match[2])) if match else None
