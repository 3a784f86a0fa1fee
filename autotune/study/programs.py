"""Names of programs, and the words of a command that start vLLM's server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

API_SERVER = "vllm.entrypoints.openai.api_server"  # starts a server without the console script
CONSOLE_MODULE = "vllm.entrypoints.cli.main"  # the console script as a module
SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh"})
ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)", re.DOTALL)


def program_name(word: str) -> str:
    """Return the name of a program without its folder."""
    return word.rpartition("/")[2]


def is_python(word: str) -> bool:
    """Return whether a word is a Python by its name."""
    return re.fullmatch(r"(python|pypy)[\d.]*t?", program_name(word)) is not None


def start_end(words: Sequence[str]) -> int:
    """Return the number of words up to the last one that starts vLLM; 0: none does.

    >>> start_end(["nice", "vllm", "serve", "org/m"]), start_end(["python", "-m", API_SERVER])
    (3, 3)
    """
    for i, (first, second) in enumerate(pairwise(words)):
        if second == "serve" and (program_name(first) == "vllm" or first == CONSOLE_MODULE):
            return i + 2
        if first == "-m" and second.startswith("vllm."):
            return i + 3 if words[i + 2 : i + 3] and words[i + 2] == "serve" else i + 2
    return 0
