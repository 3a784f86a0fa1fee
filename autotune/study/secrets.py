"""Secrets: which variables and arguments hold one, and how texts are masked.

A secret reaches a server by its environment only. A command line must have none, because every user
of the machine can read it, and because a study's command is stored and shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote, quote_plus

MASK = "***"
# Names of environment variables that are passed on but never stored or printed.
SECRET_NAME = re.compile(
    r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|(?:^|_)(?:PASS|PAT|DSN)(?:_|$)|CREDENTIAL|COOKIE|"
    r"AUTH",
    re.IGNORECASE,
)
# The password of `http://user:password@host`, as in the URLs of proxies and package mirrors.
_IN_URL = re.compile(r"(?<=://)(?P<user>[^\s/?#@:]*):(?P<password>[^\s/?#@]+)@")
# Tokens by their form, whatever their name is: of Hugging Face, OpenAI, NVIDIA, GitHub and AWS
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|nvapi-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|"
    r"AKIA[A-Z0-9]{16})"
)
# Names of arguments that are a secret, in vLLM and elsewhere; `max_num_batched_tokens` is none.
_SECRET_ARGUMENT = re.compile(
    r"(?:^|_)(?:password|passwd|passphrase|secret|credentials?|(?:api|access|private)_?key|"
    r"(?:hf|hub|auth|access|bearer|api)_?token)(?:_|$)"
)
# `-e HF_TOKEN=…` of a container, or `env HF_TOKEN=… vllm serve`
_ASSIGNMENT = re.compile(r"(?:-e|--env=)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)=.+", re.DOTALL)
# Shorter values are words (`TOKENIZERS_PARALLELISM=false`), which occur everywhere.
_SHORTEST = 8
_SHORTEST_BEGINNING = 4


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable is never stored or printed, by its name or by its value."""
    if value == MASK or SECRET_NAME.search(name):
        return True
    return _IN_URL.search(value) is not None or _TOKEN.search(value) is not None


def secret_values(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the texts to mask in the output of a program with an environment, longest first.

    They are every secret of at least 8 characters, its forms in JSON, in Python, in a URL and on
    one line, and each of its lines.
    """
    found: set[str] = set()
    for name, value in env.items():
        if SECRET_NAME.search(name):
            found.update(_forms(value))
        for match in _IN_URL.finditer(value):
            found.update(_forms(match["password"]))
        found.update(_TOKEN.findall(value))
    return tuple(sorted((v for v in found if len(v) >= _SHORTEST), key=len, reverse=True))


def _forms(value: str) -> Iterator[str]:
    """Return the forms that a secret may have in a text."""
    yield value
    yield from (line.strip() for line in value.splitlines())
    yield " ".join(value.split())
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield repr(value)[1:-1]
    yield quote(value, safe="")
    yield quote_plus(value)


def masked(text: str, secrets: Sequence[str]) -> str:
    """Return a text with ``***`` for every secret.

    Args:
        text: The text. One that ends with ``…`` was cut, perhaps in the middle of a secret.
        secrets: Secrets from :func:`secret_values`.
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
    """Return a text with ``***`` for user and password of every URL in it, and for tokens."""
    return without_tokens(_IN_URL.sub(f"{MASK}@", text))


def without_tokens(text: str) -> str:
    """Return a text with ``***`` for every token that its form gives away."""
    return _TOKEN.sub(MASK, text)


def public(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment as it may be stored and shown."""
    return {k: MASK if SECRET_NAME.search(k) else without_passwords(v) for k, v in env.items()}


def argument_secret(name: str, value: object) -> str | None:
    """Return what is a secret in a command-line argument, in words; None: nothing is.

    Args:
        name: Name of the flag, with underscores; empty for a word of a command.
        value: Value of the flag; a list or a mapping is searched.
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
        if isinstance(value, str) and _TOKEN.search(value):
            return "it has a token"
        return None
    return next((why for k, v in pairs if (why := argument_secret(k, v))), None)


def command_secret(words: Sequence[str]) -> str | None:
    """Return what is a secret in the words of a command, in words; None: nothing is."""
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
