"""Arguments of ``vllm serve`` → model and flags, as vLLM's own parser takes them.

Source: ``vllm/utils/argparse_utils.py``, ``FlexibleArgumentParser``, in 0.32; the flags are those
of :mod:`autotune.study.vllm_flags`. A flag that the table lacks is one of another vLLM, and counts
as a switch if another flag or nothing follows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from autotune.errors import UserError
from autotune.study.owned import HTTP, UNUSABLE
from autotune.study.schema import OWNED_FLAGS, FlagValue
from autotune.study.secrets import argument_secret
from autotune.study.shell import abridged, unknown
from autotune.study.vllm_flags import Flag, find, known, table_version, was_switch
from autotune.study.yaml import load

MOST_TEXT = 100_000  # characters of a --config file
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
_HUMAN = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)([kmgtKMGT]?)")
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZES |= {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_PLACEHOLDER = re.compile(
    r"\.{3,}|…|\[(?:[A-Z][\w .|-]*|options|model|flags|args)\]|\[\.{3}\]|\{[A-Za-z_]\w*\}|<[^<>]+>"
)


_DASHES = "‐‑‒–—―−"
_QUOTES = "“”„‘’‚«»"
_SPELLING = re.compile(r"--?[A-Za-z0-9][\w-]*", re.ASCII)
# Flags of a server in use that a server under measure does not need, and why.
LEFT_OUT = {
    **{k: OWNED_FLAGS[k.replace("-", "_")] for k in ("host", "port", "uds", "api-key")},
    **{k: UNUSABLE[k.replace("-", "_")] for k in ("hf-token", "enable-ssl-refresh", "root-path")},
    **dict.fromkeys(
        ("ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "ssl-cert-reqs", "ssl-ciphers"), HTTP
    ),
    "grpc-port": UNUSABLE["grpc"],
    "disable-log-stats": "autotune reads the counters of /metrics",
}


@dataclass
class Arguments:
    """What follows ``vllm serve``.

    Attributes:
        model: The model; None: none is named.
        flags: Values of the flags, by name with dashes; keys with dots are nested in a mapping.
        notes: Sentences on what vLLM does not take from the words as they are.
    """

    model: str | None = None
    flags: dict[str, FlagValue] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def arguments_of(words: Sequence[str], *, console: bool, base: Path) -> Arguments:
    """Return model and flags of the arguments of vLLM's server.

    Args:
        words: The arguments.
        console: Whether the program is ``vllm serve``, which takes the model without a flag.
        base: Folder from which a ``--config`` file is found.

    Raises:
        UserError: vLLM would refuse them, or a word is known to the user's shell only.
    """
    reader = _Reader()
    reader.read(_with_config(list(words), base, reader.out.notes))
    return reader.result(console=console)


class _Reader:
    """Reader of the words, in their order."""

    def __init__(self) -> None:
        self.out = Arguments()
        self.positional: list[str] = []
        self.nested: dict[str, tuple[str, dict[str, Any]]] = {}  # by spelling: flag's name, value
        self.doubtful: list[str] = []  # unknown flags that took words

    def read(self, words: list[str]) -> None:
        """Take in all words."""
        while words:
            word = words.pop(0)
            if word == "--":
                self.positional += words
                return
            if _is_flag(word):
                self._flag(word, words)
            elif word[0:1] and word[0] in _DASHES:
                raise UserError(f"{word:.60}: begins with a dash of print; write it with --")
            else:
                self.positional.append(word)

    def result(self, *, console: bool) -> Arguments:
        """Return the whole."""
        for spelling, (name, value) in self.nested.items():
            self._say_lost(spelling, name, value)
            self.out.flags[name] = value
        named = self.out.flags.pop("model", None)
        model = self.positional[0] if self.positional else None
        extra = self.positional[1:]
        if model is not None:
            self._check_known("", model)
        if named is not None:
            extra, model = self.positional, str(named)
        elif not console and model is not None:
            raise UserError(
                f"`python -m` takes no model without a flag: vLLM would serve its default in place "
                f"of {model:.60}; write --model {model:.60}"
            )
        for word in extra:
            self._check_known("", word)
            raise UserError(f"`{word:.60}` belongs to no flag and is no model; leave it out")
        if model is None and self.doubtful:
            raise UserError(
                f"the command names no model, unless it is the word after {self.doubtful[-1]}, "
                f"which vLLM {table_version()} does not have; write the model first"
            )
        if model is not None and " -" in model:
            raise UserError(f"the model is `{model:.60}`, flags included; take the quotes away")
        if model is not None and re.search(r"\$[A-Za-z_{(]", model):
            raise UserError(
                f"the model is {model:.60}, which no shell replaces here; write its value"
            )
        self.out.model = model
        return self.out

    def _check_known(self, spelling: str, word: str) -> None:
        """Refuse a word that is not a value yet.

        Raises:
            UserError: it has a variable of the user's shell, or is a placeholder.
        """
        where = f"{spelling}: " if spelling else ""
        if (what := unknown(word)) is not None:
            if what.startswith("<"):
                raise UserError(f"{where}{what:.60} is a placeholder; write the value")
            raise UserError(f"{where}only your shell knows what {what:.60} is; write its value")
        if _PLACEHOLDER.fullmatch(word):
            raise UserError(f"{where}{word:.60} is a placeholder; write the value")
        if word[:1] and word[0] in _QUOTES:
            raise UserError(f"{where}{word:.60} has quotation marks of print; write ' or \"")

    def _flag(self, word: str, words: list[str]) -> None:
        """Take in a flag and its values."""
        head, equals, joined = word.partition("=")
        if unknown(head) is not None:
            self._check_known("", word)
        spelling, dot, key = head.partition(".")
        if any(c in _DASHES for c in spelling):
            raise UserError(f"{word:.60}: begins with a dash of print; write it with --")
        if not _SPELLING.fullmatch(spelling) and spelling != "-":
            raise UserError(f"{ascii(spelling)[1:-1]:.60}: no flag has such a name; write it again")
        if head.startswith("-O") and len(head) > 2:  # -O3
            spelling, dot, equals, joined = "--optimization-level", "", "=", head[2:]
        elif head == "-O" and (equals or (words and words[0] in "0123")):
            spelling = "--optimization-level"
        if spelling.startswith("--"):
            spelling = f"--{spelling[2:].replace('_', '-')}"
        if dot and key:
            self._dotted(spelling, key, joined if equals else None, words)
            return
        flag = find(spelling)
        if flag is None and not spelling.startswith("--"):
            flag, joined = self._attached(spelling)
            equals = "="
        if flag is None:
            self._unknown(spelling, joined if equals else None, words)
            return
        values = [joined] if equals else _values(flag, spelling, words)
        self._keep(flag, spelling, values)

    def _attached(self, spelling: str) -> tuple[Flag, str]:
        """Return the flag of a word such as ``-n2``, and its value."""
        flag = known().get(spelling[:2])
        if flag is not None and flag.takes != "none":
            return flag, spelling[2:]
        short = next((s for s in (spelling[:4], spelling[:3]) if s in known()), None)
        if spelling == "-O":
            raise UserError("-O: takes 0 to 3 in vLLM; JSON goes into --compilation-config")
        hint = f"write {short} {spelling[len(short) :]}" if short else "write it in full, with --"
        raise UserError(f"{spelling:.60}: is no short flag of vLLM; {hint}")

    def _keep(self, flag: Flag, spelling: str, values: list[str]) -> None:
        """Keep the values of a known flag."""
        name = flag.name.replace("_", "-")
        value: FlagValue
        if flag.takes == "none":
            if values:
                raise UserError(f"{spelling}: is a switch, for which vLLM takes no value")
            value = not flag.negated
        else:
            for v in values:
                if name not in LEFT_OUT:
                    self._check_known(spelling, v)
            value = _typed(flag, values)
        if flag.repeats:
            before = self.out.flags.get(name, [])
            value = [*(before if isinstance(before, list) else []), *values]
        elif name in self.out.flags:
            old = self.out.flags[name]
            hidden = name in LEFT_OUT or argument_secret(flag.name, old) is not None
            kept = "" if hidden else f", {_shown(old)}"
            self.out.notes.append(f"--{name} is given twice: vLLM drops the first{kept}")
            del self.out.flags[name]
        self.out.flags[name] = value

    def _unknown(self, spelling: str, joined: str | None, words: list[str]) -> None:
        """Keep a flag of another vLLM; what it takes is a guess."""
        values = [joined] if joined is not None else []
        name = spelling[2:]
        if joined is None and not was_switch(name):
            while words and not _is_flag(words[0]):
                values.append(words.pop(0))
            if values:
                self.doubtful.append(spelling)
        for v in values:
            self._check_known(spelling, v)
        value: FlagValue
        if not values:
            value, name = (False, name[3:]) if name.startswith("no-") else (True, name)
        elif len(values) == 1:
            value = _mapping(spelling, values[0]) if values[0][:1] == "{" else _scalar(values[0])
        else:
            value = [v if isinstance(v, int | float) else str(v) for v in map(_scalar, values)]
        if name in self.out.flags:
            self.out.notes.append(f"--{name} is given twice: the first is left out")
        self.out.flags[name] = value

    def _dotted(self, spelling: str, key: str, joined: str | None, words: list[str]) -> None:
        """Take in ``--compilation-config.mode 3``; the next word is the value, whatever it is."""
        if joined is None:
            if not words:
                raise UserError(f"{spelling}.{key}: needs a value")
            joined = words.pop(0)
        self._check_known(f"{spelling}.{key}", joined)
        flag = find(spelling)
        if flag is None and not spelling.startswith("--"):
            raise UserError(f"{spelling:.60}: is no short flag of vLLM; write it in full, with --")
        name = flag.name.replace("_", "-") if flag is not None else spelling[2:]
        value: Any = _json_or_text(joined)
        if key.endswith("+"):
            key, value = key[:-1], joined.split(",")
        whole = self.nested.setdefault(spelling, (name, {}))[1]
        *path, last = key.split(".")
        for step in path:
            inner = whole.get(step)
            if not isinstance(inner, dict):
                inner = whole[step] = {}
            whole = inner
        if isinstance(value, list) and isinstance(whole.get(last), list):
            whole[last] += value
        elif isinstance(value, dict) and isinstance(whole.get(last), dict):
            _update(whole[last], value)
        else:
            whole[last] = value

    def _say_lost(self, spelling: str, name: str, value: dict[str, Any]) -> None:
        """Say which keys vLLM drops where an option is given in more than one form."""
        old = self.out.flags.get(name)
        if old is None:
            return
        lost = [k for k in _leaves(old) if k not in set(_leaves(value))]
        changed = [k for k in _leaves(value) if k in set(_leaves(old))]
        what = f"; the command loses {', '.join(lost)} today" if lost else ""
        if changed and not lost:
            what = f"; it overrides {', '.join(changed)}"
        self.out.notes.append(
            f"--{name} is given as JSON and with dots, or in two spellings: vLLM takes the last "
            f"form, here {spelling}.…, and drops the other{what}"
        )


def _update(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Nest one mapping into another, as vLLM does."""
    for k, v in new.items():
        if isinstance(v, dict) and isinstance(old.get(k), dict):
            _update(old[k], v)
        elif isinstance(v, list) and isinstance(old.get(k), list):
            old[k] += v
        else:
            old[k] = v


def _leaves(value: object, at: str = "") -> Iterator[str]:
    """Yield the keys of a mapping, with dots."""
    if not isinstance(value, dict) or not value:
        yield at
        return
    for k, v in value.items():
        yield from _leaves(v, f"{at}.{k}" if at else str(k))


def _shown(value: object) -> str:
    """Return a value as a note shows it."""
    return abridged(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _is_flag(word: str) -> bool:
    """Return whether argparse takes a word for a flag."""
    return (
        word.startswith("-")
        and len(word) > 1
        and not _NUMBER.fullmatch(word)
        and (" " not in word.partition("=")[0])
    )


def _values(flag: Flag, spelling: str, words: list[str]) -> list[str]:
    """Take a flag's values from the words that follow it."""
    if flag.takes == "none":
        return []
    most = math.inf if flag.takes == "some" else 1
    values: list[str] = []
    while words and len(values) < most and not _is_flag(words[0]):
        values.append(words.pop(0))
    if not values and flag.takes != "maybe":
        raise UserError(f"{spelling}: needs a value")
    return values


def _typed(flag: Flag, values: list[str]) -> FlagValue:
    """Return the value of a known flag as a study holds it."""
    read = [_text(v) if flag.text else _scalar(v) for v in values]
    if flag.takes == "some":
        return read if len(read) > 1 else (read[0] if read else True)
    if not values:
        return True
    if flag.mapping and values[0].lstrip().startswith("{"):
        return _mapping(f"--{flag.name.replace('_', '-')}", values[0])
    return read[0]


def _mapping(spelling: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{spelling:.60}: is not JSON: {e}; put it in single quotes") from e
    return dict(value)


def _text(text: str) -> int | str:
    """Return a text, or the whole number that is written just so."""
    return int(text) if len(text) <= 15 and re.fullmatch(r"-?[1-9]\d*|0", text) else text


def _scalar(text: str) -> int | float | str:
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > 30 or math.isinf(float(text)):
        return text
    return float(text) if match[2] or match[3] else int(text)


def _json_or_text(text: str) -> Any:
    """Return the value of a key with a dot, as vLLM reads it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return human(text)


def human(value: object) -> Any:
    """Return a flag's value, with vLLM's 4k (4000) and 4K (4096) as numbers."""
    match = _HUMAN.fullmatch(value) if isinstance(value, str) else None
    return int(float(match[1]) * _SIZES[match[2]]) if match else value


def _with_config(words: list[str], base: Path, notes: list[str]) -> list[str]:
    """Return the words with those of a ``--config`` file, where vLLM puts them.

    Raises:
        UserError: the file cannot be read.
    """
    for word in words:
        if re.match(r"--config=", word):
            raise UserError(
                f"{word:.60}: vLLM reads a file of flags only as `--config FILE`, two words"
            )
    if "--config" not in words:
        return words
    if words.count("--config") > 1:
        raise UserError("--config: vLLM takes one file only")
    at = words.index("--config")
    if at + 1 == len(words):
        raise UserError("--config: needs a file")
    name = words[at + 1]
    rest = [*words[:at], *words[at + 2 :]]
    model = rest[:1] if rest and not rest[0].startswith("-") else []
    notes.append(f"the flags of {name:.60} are written out here")
    given = _config_words(name, base)
    if model and any(w.startswith("--model=") for w in given):
        given = [w for w in given if not w.startswith("--model=")]
        notes.append(f"the model of {name:.60} is not taken, because the command names one")
    return [*model, *given, *rest[len(model) :]]


def _config_words(name: str, base: Path) -> list[str]:
    """Return the content of a ``--config`` file as words, as vLLM does.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """
    if (what := unknown(name)) is not None:
        raise UserError(f"--config: only your shell knows what {what:.60} is; write its value")
    if name.rpartition(".")[2] not in ("yaml", "yml"):
        raise UserError(f"--config: vLLM takes a .yaml or .yml file, not {name:.60}")
    path = base / Path(name)
    try:
        with path.open(encoding="utf-8") as f:
            content = load(f.read(MOST_TEXT))
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or "it is no text"
        raise UserError(
            f"--config: {name:.60} cannot be read: {why}; run `autotune init` where vLLM finds it"
        ) from e
    except (yaml.YAMLError, RecursionError, AttributeError, LookupError, TypeError) as e:
        raise UserError(f"--config: {name:.60} is no YAML") from e
    if not isinstance(content, dict):
        raise UserError(f"--config: {name:.60} must be a mapping of flags to values")
    return [word for key, value in content.items() for word in _config_flag(str(key), value)]


def _config_flag(key: str, value: object) -> list[str]:
    """Return a key of a ``--config`` file as words."""
    match value:
        case True:
            return [f"--{key}"]
        case False:
            return [f"--no-{key}"] if f"--no-{key}" in known() else []
        case list():
            return [f"--{key}", *map(str, value)] if value else []
        case dict():
            return [f"--{key}={json.dumps(value, default=str)}"]
        case _:
            return [f"--{key}={value}"]
