"""Shell text → words: comments, quotes, line continuations, redirections, operators, expansions.

This is the lexer; :mod:`autotune.study.script` says which commands a text runs. Python's
:mod:`shlex` forgets which characters were quoted, so it cannot tell ``$X`` from ``'$X'``; bashlex
is under the GPL. Nothing is run.

A part of a word that only the user's shell knows (``$HOST``, ``$(date)``) stays between two marks,
so that whoever uses the word sees it: :func:`unknown`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from autotune.errors import UserError, one_line
from autotune.study.secrets import MASK, is_secret

_OPEN, _CLOSE = "\ue000", "\ue001"  # of the private use area, which no text in use has
_BLANK = " \t\u00a0\u2002\u2003\u2007\u2009\u202f\u3000"  # those of print, too
_INVISIBLE = "\ufeff\u200b\u2060\u00ad"  # of web pages; no part of a word that has no quotes
_OPERATORS = ("&&", "||", ";;&", ";;", ";&", "|&", ";", "|", "&", "(", ")")
_REDIRECT = re.compile(r"\d*(?:<<<|<<-?|<>|<&|<|>>|>\||>&|>)|&>>?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLACEHOLDER = re.compile(r"<[A-Za-z](?:[^<>|&;\n$]*[\w.)\]])?>")
_ARRAY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "a": "\a",
    "b": "\b",
    "e": "\x1b",
    "f": "\f",
    "v": "\v",
}


@dataclass(frozen=True)
class Part:
    """A part of a word.

    Attributes:
        kind: ``text``, ``var`` (``$NAME`` and its forms) or ``run`` (a command substitution).
        text: The text, the name of the variable, or the source.
        quoted: Whether the shell leaves its blanks alone.
        source: As it is written.
        operator: What follows a name in braces: ``:-``, ``-``, ``:=``, ``=``, ``:+``, ``+``,
            ``:?``, ``?``, ``[@]``, or something else, which is not understood.
        operand: Word after the operator.
    """

    kind: str
    text: str
    quoted: bool = False
    source: str = ""
    operator: str = ""
    operand: Word | None = None


@dataclass(frozen=True)
class Word:
    """A word before its expansions, or an array or operand with its words.

    Attributes:
        parts: Its parts.
        elements: Words of ``NAME=(…)``, or of an operand; None: it is one word.
    """

    parts: tuple[Part, ...]
    elements: tuple[Word, ...] | None = None

    @property
    def plain(self) -> str | None:
        """The word, if it is written without quotes and expansions."""
        if all(p.kind == "text" and not p.quoted for p in self.parts) and self.elements is None:
            return "".join(p.text for p in self.parts)
        return None


class _Fields(tuple[str, ...]):
    """Words that a shell splits no further, such as those of ``${X:-"a b" c}``."""


@dataclass(frozen=True)
class Operator:
    """An operator between commands; ``text`` is a line break for the end of a line."""

    text: str


@dataclass(frozen=True)
class Redirection:
    """A redirection with its target, as it is written."""

    text: str


Token = Word | Operator | Redirection


def marked(source: str) -> str:
    """Return a text that only the user's shell knows, between marks."""
    return f"{_OPEN}{source}{_CLOSE}"


def unknown(text: str) -> str | None:
    """Return what only the user's shell knows of a text; None: nothing."""
    start = text.find(_OPEN)
    return None if start < 0 else text[start + 1 : text.index(_CLOSE, start)]


def unmarked(text: str) -> str:
    """Return a text without marks."""
    return text.replace(_OPEN, "").replace(_CLOSE, "")


def abridged(text: str) -> str:
    """Return a text as a message shows it: on one line, without marks, cut where it is long."""
    return one_line(" ".join(unmarked(text).split()), 60)


def tokens(text: str) -> list[Token]:
    """Return the words, operators and redirections of a shell text.

    Raises:
        UserError: a quote or bracket does not end.
    """
    return list(_Lexer(_prepared(text)).tokens())


def word_of(text: str) -> Word:
    """Return a text as one word, as if it stood in double quotes."""
    return Word(tuple(_Lexer(unmarked(text)).quoted_parts(until=None)))


def _prepared(text: str) -> str:
    """Return a text with the line ends of Unix, and lines joined as their author meant it.

    Blanks after the backslash at a line's end, or a comment there, end the command for a shell;
    pasted texts have them, and the lines below them are meant to belong to the command.
    """
    text = unmarked(text).replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"(?m)^[ \t]*(?:\([\w.-]+\) ?)?(?:\$|!)[ \t]+(?=\S)", "", text)  # a prompt
    return re.sub(r"(?<!\\)\\[ \t\u00a0]+(?:#[^\n]*)?(?=\n|$)", r"\\", text)


class _Lexer:
    """Reader of one shell text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.documents: list[tuple[str, bool]] = []  # ends of here-documents, with <<- or not

    def tokens(self, until: str = "") -> Iterator[Token]:
        """Yield the tokens up to the end, or up to a closing bracket."""
        while self.at < len(self.text):
            c = self.text[self.at]
            if self.text.startswith("\\\n", self.at):
                self.at += 2
            elif c in _BLANK or c in _INVISIBLE:
                self.at += 1
            elif c == "\n":
                self.at += 1
                self._skip_documents()
                yield Operator("\n")
            elif c == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif c == until:
                return
            elif _PLACEHOLDER.match(self.text, self.at) or self._substitutes():
                yield self._word()
            elif redirect := _REDIRECT.match(self.text, self.at):
                yield self._redirection(redirect[0])
            elif operator := self._operator():
                self.at += len(operator)
                yield Operator(operator)
            else:
                yield self._word()
        if until:
            raise self._broken(until)

    def _operator(self) -> str | None:
        return next((o for o in _OPERATORS if self.text.startswith(o, self.at)), None)

    def _substitutes(self) -> bool:
        """Return whether a process substitution begins here, which is a word."""
        return self.text.startswith(("<(", ">("), self.at)

    def _broken(self, what: str) -> UserError:
        return UserError(f"the command cannot be split into words: no closing {what}")

    def _redirection(self, operator: str) -> Redirection:
        start = self.at
        self.at += len(operator)
        while self.at < len(self.text) and self.text[self.at] in _BLANK:
            self.at += 1
        target = self._word()
        if "<<" in operator and "<<<" not in operator:
            self.documents.append(("".join(p.text for p in target.parts), operator.endswith("-")))
        return Redirection(self.text[start : self.at])

    def _skip_documents(self) -> None:
        """Skip the here-documents that begin at this line."""
        for end, tabs in self.documents:
            while self.at < len(self.text):
                stop = self.text.find("\n", self.at)
                stop = len(self.text) if stop < 0 else stop
                line = self.text[self.at : stop]
                self.at = stop + 1
                if (line.lstrip("\t") if tabs else line) == end:
                    break
        self.at = min(self.at, len(self.text))
        self.documents.clear()

    def _word(self) -> Word:
        start = self.at
        parts = self._parts()
        if self.text.startswith("(", self.at) and _ARRAY.fullmatch(self.text[start : self.at]):
            self.at += 1
            elements = tuple(t for t in self.tokens(until=")") if isinstance(t, Word))
            self.at += 1
            return Word(tuple(parts), elements)
        return Word(tuple(parts))

    def _parts(self) -> list[Part]:
        """Return the parts of the word that begins here."""
        parts: list[Part] = []
        while self.at < len(self.text):
            c = self.text[self.at]
            if placeholder := _PLACEHOLDER.match(self.text, self.at):
                self.at = placeholder.end()
                parts.append(Part("run", placeholder[0], quoted=True, source=placeholder[0]))
                continue
            if not parts and self._substitutes():
                start, self.at = self.at, self.at + 1
                self._skip_brackets("(", ")")
                parts.append(self._source("run", start, quoted=True))
                continue
            if c in _BLANK or c in "\n;|&()<>":
                break
            if c in _INVISIBLE:
                self.at += 1
            elif c == "'":
                parts.append(self._single())
            elif c == '"':
                self.at += 1
                parts += [Part("text", "", quoted=True), *self.quoted_parts(until='"')]
            elif c == "\\":
                if self.text.startswith("\n", self.at + 1):
                    self.at += 2
                    continue
                parts.append(Part("text", self.text[self.at + 1 : self.at + 2], quoted=True))
                self.at += 2
            elif c in "$`":
                parts.append(self._expansion(quoted=False))
            else:
                parts.append(Part("text", c))
                self.at += 1
        return parts

    def _single(self) -> Part:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise self._broken("quotation mark '")
        text, self.at = self.text[self.at + 1 : end], end + 1
        return Part("text", text, quoted=True)

    def quoted_parts(self, until: str | None) -> Iterator[Part]:
        """Yield the parts in double quotes, up to their end or that of the text."""
        while self.at < len(self.text):
            c = self.text[self.at]
            if c == until:
                self.at += 1
                return
            following = self.text[self.at + 1 : self.at + 2]
            if c == "\\" and following and following in '$`"\\\n':
                if following != "\n":
                    yield Part("text", following, quoted=True)
                self.at += 2
            elif c in "$`":
                yield self._expansion(quoted=True)
            else:
                yield Part("text", c, quoted=True)
                self.at += 1
        if until is not None:
            raise self._broken(f"quotation mark {until}")

    def _expansion(self, *, quoted: bool) -> Part:
        """Return the part that begins with ``$`` or a backtick."""
        start = self.at
        if self.text[start] == "`":
            end = self.text.find("`", start + 1)
            if end < 0:
                raise self._broken("backtick")
            self.at = end + 1
            return self._source("run", start, quoted=quoted)
        if self.text.startswith("$'", start) and not quoted:
            return self._ansi()
        if self.text.startswith('$"', start) and not quoted:
            self.at += 1
            return Part("text", "", quoted=True)
        if self.text.startswith("$(", start):
            self._skip_brackets("(", ")")
            return self._source("run", start, quoted=quoted)
        if self.text.startswith("${", start):
            return self._braces(quoted=quoted)
        if name := _NAME.match(self.text, start + 1):
            self.at = name.end()
            return Part("var", name[0], quoted, self.text[start : self.at])
        if self.text[start + 1 : start + 2] and self.text[start + 1] in "0123456789@*#?!$-_":
            self.at += 2
            return Part("var", self.text[start + 1], quoted, self.text[start : self.at])
        self.at += 1
        return Part("text", "$", quoted)

    def _source(self, kind: str, start: int, *, quoted: bool) -> Part:
        source = self.text[start : self.at]
        return Part(kind, source, quoted, source)

    def _ansi(self) -> Part:
        found = re.compile(r"\$'((?:[^'\\]|\\.)*)'", re.DOTALL).match(self.text, self.at)
        if found is None:
            raise self._broken("quotation mark '")
        self.at = found.end()
        text = re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), found[1], flags=re.DOTALL)
        return Part("text", text, quoted=True)

    def _skip_brackets(self, opening: str, closing: str) -> None:
        """Move behind the bracket that closes the next one, past quotes and nested brackets."""
        depth = 0
        while self.at < len(self.text):
            c = self.text[self.at]
            if c == "\\":
                self.at += 1
            elif c == "'":
                self._single()
                continue
            elif c == opening:
                depth += 1
            elif c == closing:
                depth -= 1
                if depth == 0:
                    self.at += 1
                    return
            self.at += 1
        raise self._broken(f"bracket {closing}")

    def _braces(self, *, quoted: bool) -> Part:
        start = self.at
        self._skip_brackets("{", "}")
        source = self.text[start : self.at]
        inner = source[2:-1]
        name = _NAME.match(inner) or re.match(r"[0-9@*]+", inner)
        if name is None:
            return Part("var", "", quoted, source, operator="?!")
        rest = inner[name.end() :]
        operator = re.match(r":?[-=+?]|\[[@*]\]|", rest)
        found = operator[0] if operator else ""
        operand = rest[len(found) :]
        if (not found or found.startswith("[")) and operand:
            return Part("var", name[0], quoted, source, operator="?!")
        if not found or found.startswith("["):
            return Part("var", name[0], quoted, source, operator=found)
        found_in = list(_Lexer(operand).tokens())
        words = tuple(t for t in found_in if isinstance(t, Word))
        if quoted or len(words) < len(found_in):  # in there, `;` or `>` is a letter
            whole = words[0] if len(words) == len(found_in) == 1 else word_of(operand)
        else:
            whole = Word((), words)
        return Part("var", name[0], quoted, source, operator=found, operand=whole)


def expand(word: Word, values: Mapping[str, str | tuple[str, ...]], said: list[str]) -> list[str]:
    """Return the words that a word expands to; no file names are looked up.

    Args:
        word: The word.
        values: Variables that are known; the words of an array as a tuple.
        said: List that gets a sentence for each default that was taken.
    """
    fields: list[str | None] = [None]
    nothing = False

    def add(text: str) -> None:
        fields[-1] = (fields[-1] or "") + text

    for part in word.parts:
        found = part.text if part.kind == "text" else _value(part, values, said)
        if isinstance(found, tuple):
            apart = part.quoted or isinstance(found, _Fields)
            pieces = list(found) if apart else [w for f in found for w in f.split()]
            nothing = nothing or not pieces
        elif part.quoted or part.kind == "text" or _OPEN in found:
            add(found)
            continue
        else:
            pieces = found.split()
            if found[:1].isspace() and fields[-1] is not None:
                fields.append(None)
        for i, piece in enumerate(pieces):
            if i:
                fields.append(None)
            add(piece)
        if isinstance(found, str) and found[-1:].isspace() and fields[-1] is not None:
            fields.append(None)
    if nothing and fields == [""]:
        return []  # "$@" without arguments is no word
    return [f for f in fields if f is not None]


def joined(word: Word, values: Mapping[str, str | tuple[str, ...]], said: list[str]) -> str:
    """Return the one text that a word expands to where the shell splits nothing."""
    out = ""
    for part in word.parts:
        found = part.text if part.kind == "text" else _value(part, values, said)
        out += " ".join(found) if isinstance(found, tuple) else found
    return out


def _value(
    part: Part, values: Mapping[str, str | tuple[str, ...]], said: list[str]
) -> str | tuple[str, ...]:
    """Return what a variable or a command substitution stands for, marked if it is not known."""
    if part.kind == "run":
        here = values.get("PWD") if part.source in ("$(pwd)", "`pwd`") else None
        return marked(part.source) if here is None else here
    if part.text in ("@", "*") and part.operator in ("", ":-", "-"):
        return ()  # arguments of the script, which gets none
    value = values.get(part.text)
    empty = value is None or value in ("", ())
    operand: str | _Fields = ""
    if part.operand is not None and part.operand.elements is not None:
        words = part.operand.elements
        operand = _Fields(f for w in words for f in expand(w, values, said))
    elif part.operand is not None:
        operand = joined(part.operand, values, said)
    match part.operator:
        case "" | "[@]" | "[*]" if value is not None:
            array = isinstance(value, tuple)
            if part.operator == "" and array:
                return value[0] if value else ""
            return value
        case ":-" | ":=" | "-" | "=":
            if value is None:
                text = operand if isinstance(operand, str) else " ".join(operand)
                shown = MASK if is_secret(part.text, text) else repr(text)
                said.append(
                    f"${{{part.text}}} is not set in the text; its default {shown} is taken"
                )
            unset = empty if part.operator.startswith(":") else value is None
            return operand if unset or value is None else value
        case ":+" | "+" if value is not None:
            return "" if empty and part.operator == ":+" else operand
        case ":?" | "?" if value is not None and not empty:
            return value
        case ":+" | "+":
            said.append(f"${{{part.text}}} is not set in the text; what depends on it is left out")
            return ""
    return marked(part.source)
