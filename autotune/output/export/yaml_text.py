"""YAML that every parser reads the same way.

Words are quoted always: a parser of YAML 1.1 or 1.2 takes ``1e3``, ``on`` or ``0o7`` for something
else, and Kubernetes refuses arguments that are not text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml


class Word(str):
    """A text that is quoted in YAML, no matter what it looks like."""

    def __new__(cls, text: object) -> Word:
        return super().__new__(cls, text)


def literal(text: str) -> Word:
    """Return a text for a reader who takes ``$`` for a variable, and ``$$`` for a dollar."""
    return Word(text.replace("$", "$$"))


class _Dumper(yaml.SafeDumper):
    """Indents lists deeper than their key, and writes no alias."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted(dumper: yaml.SafeDumper, text: Word) -> yaml.ScalarNode:
    style = '"' if "\n" in text else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style=style)


_Dumper.add_representer(Word, _quoted)


def yaml_text(data: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, in the order of its keys."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
