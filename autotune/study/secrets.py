"""Secrets: which variables hold one, and texts without them.

A secret reaches a server by its environment only. Command lines are no place for one: every user of
a machine can read them, and a study's are stored and shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote, quote_plus

MASK = "***"
# Environment variables by these names are passed on but never stored or printed.
SECRET_NAME = re.compile(
    r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|(?:^|_)(?:PASS|PAT|DSN)(?:_|$)|CREDENTIAL|COOKIE|"
    r"AUTH",
    re.IGNORECASE,
)
# The password of `http://user:password@host`; proxies and package mirrors are written so.
_IN_URL = re.compile(r"(?<=://)(?P<user>[^\s/?#@:]*):(?P<password>[^\s/?#@]+)@")
# Arguments that are a secret, by vLLM's names or those of others; `max_num_batched_tokens` is none.
_SECRET_ARGUMENT = re.compile(
    r"(?:^|_)(?:password|passwd|passphrase|secret|credentials?|(?:api|access|private)_?key|"
    r"(?:hf|hub|auth|access|bearer|api)_?token)(?:_|$)"
)
# `-e HF_TOKEN=…` of a container, or `env HF_TOKEN=… vllm serve`
_ASSIGNMENT = re.compile(r"(?:-e|--env=)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)=.+", re.DOTALL)
# Shorter ones are words (`TOKENIZERS_PARALLELISM=false`), and would be found everywhere.
_SHORTEST = 8
_SHORTEST_BEGINNING = 4


def is_secret(name: str, value: str) -> bool:
    """True for a variable that is never stored or printed, by its name or for a URL's password."""
    return value == MASK or bool(SECRET_NAME.search(name) or _IN_URL.search(value))


def secret_values(env: Mapping[str, str]) -> tuple[str, ...]:
    """What to look for in the texts of a program with this environment, longest first.

    Every secret of at least 8 characters, and how it looks in JSON, in Python, in a URL, on one
    line, and each line of it.
    """
    found: set[str] = set()
    for name, value in env.items():
        if SECRET_NAME.search(name):
            found.update(_forms(value))
        for match in _IN_URL.finditer(value):
            found.update(_forms(match["password"]))
    return tuple(sorted((v for v in found if len(v) >= _SHORTEST), key=len, reverse=True))


def _forms(value: str) -> Iterator[str]:
    yield value
    yield from (line.strip() for line in value.splitlines())
    yield " ".join(value.split())
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield repr(value)[1:-1]
    yield quote(value, safe="")
    yield quote_plus(value)


def masked(text: str, secrets: Sequence[str]) -> str:
    """The text with ``***`` for every secret.

    Args:
        text: One that ends with ``…`` was cut, perhaps in the middle of a secret.
        secrets: Of :func:`secret_values`.
    """
    for secret in secrets:
        text = text.replace(secret, MASK)
    if text.endswith("…"):
        for secret in secrets:
            for size in range(len(secret) - 1, _SHORTEST_BEGINNING - 1, -1):
                if text.endswith(f"{secret[:size]}…"):
                    return f"{text[: -size - 1]}{MASK}…"
    return text


def without_passwords(text: str) -> str:
    """The text with ``***`` for user and password of every URL in it."""
    return _IN_URL.sub(f"{MASK}@", text)


def public(env: Mapping[str, str]) -> dict[str, str]:
    """An environment as it may be stored and shown."""
    return {k: MASK if SECRET_NAME.search(k) else without_passwords(v) for k, v in env.items()}


def argument_secret(name: str, value: object) -> str | None:
    """What of a command-line argument is a secret, in words; None: nothing is.

    Args:
        name: Of the flag, with underscores; empty for a word of a command.
        value: Its value: looked through, where it is a list or a mapping.
    """
    named = any(_SECRET_ARGUMENT.search(part.lower()) for part in name.split("."))
    if named and isinstance(value, str) and value:  # `allow_credentials: true` is none
        return f"{name} is a secret"
    if isinstance(value, Mapping):
        pairs = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [("", v) for v in value]
    else:
        if isinstance(value, str) and _IN_URL.search(value):
            return "it has a URL with a password"
        return None
    return next((why for k, v in pairs if (why := argument_secret(k, v))), None)


def command_secret(words: Sequence[str]) -> str | None:
    """What of the words of a command is a secret, in words; None: nothing is."""
    for i, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            value = value if equals else " ".join(words[i + 1 : i + 2])
            if why := argument_secret(name.replace("-", "_"), value):
                return why
        match = _ASSIGNMENT.fullmatch(word)
        if match is not None and SECRET_NAME.search(match["name"]) and match["name"].isupper():
            return f"{match['name']} is a secret"
        if why := argument_secret("", word):
            return why
    return None
