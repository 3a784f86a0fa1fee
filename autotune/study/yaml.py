"""Read the YAML that a study may have; no other module parses YAML."""

from __future__ import annotations

import json
import math
from typing import Any

import yaml

from autotune.study.keys import MOST_NUMBER

MOST_VALUES = 20_000  # of a file, with every alias expanded
MOST_DEPTH = 50  # of a value; pydantic writes 255


class Loader(yaml.SafeLoader):
    """Loader of safe YAML that refuses what a study must not have.

    It refuses a key that is given twice (PyYAML would silently keep the last), aliases that grow
    without bounds ("a billion laughs"), and aliases that contain themselves.
    """

    def get_single_node(self) -> yaml.Node | None:
        """Return the root node, unless its aliases make it too large."""
        node = super().get_single_node()
        if node is not None and _written_out(node, {}) > MOST_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"has more than {MOST_VALUES} values, its aliases written out"
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping, unless it has a key twice."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _written_out(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return how many values a node has with every alias in it expanded."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if (size := known.get(id(node), 0)) is None:
        raise yaml.MarkedYAMLError(
            problem="an alias refers to itself", problem_mark=node.start_mark
        )
    if size == 0:
        known[id(node)] = None  # under way
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        size = known[id(node)] = 1 + sum(_written_out(part, known) for part in parts)
    return size


def not_plain(value: object, key: str = "", depth: int = 0) -> tuple[str, str] | None:
    """Return key and reason of the first value that JSON, argv or the database cannot take."""
    if depth > MOST_DEPTH:
        return key, "is nested too deeply"
    inner: list[tuple[str, object]] = []
    dot = f"{key}." if key else ""
    match value:
        case dict():
            for k, v in value.items():
                if not isinstance(k, str):
                    return key, f"the key {shown(k)} is no text; put it in quotes"
                if why := _no_text(k):
                    return key, f"the key {shown(k)} {why}"
                inner.append((f"{dot}{k[:60]}", v))
        case list():
            inner = [(f"{dot}{i}", v) for i, v in enumerate(value)]
        case str():
            return (key, why) if (why := _no_text(value)) else None
        case bool() | None:
            return None
        case int():
            if abs(value) > MOST_NUMBER:
                return key, f"must be a number of at most {MOST_NUMBER}"
        case float():
            if math.isnan(value) or (math.isinf(value) and key != "workload.request_rate"):
                return key, "must be a finite number"
        case _:
            return key, f"is a {type(value).__name__} to YAML; put it in quotes to make it a text"
    return next((bad for k, v in inner if (bad := not_plain(v, k, depth + 1))), None)


def _no_text(text: str) -> str | None:
    """Return why a program, a terminal or a file does not take a text; None: all of them do."""
    bad = next((c for c in text if (c < " " and c not in "\t\n\r") or c == "\x7f"), None)
    bad = bad or next((c for c in text if "\x80" <= c < "\xa0" or "\ud800" <= c <= "\udfff"), None)
    return None if bad is None else f"has the character U+{ord(bad):04X}, which it must not"


def shown(value: object) -> str:
    """Return a value of a study file as a message shows it."""
    if isinstance(value, int) and abs(value) > MOST_NUMBER:
        return "a huge number"
    text = json.dumps(value, default=str) if isinstance(value, str | list) else str(value)
    return text if len(text) <= 60 else text[:60] + "…"


def load(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, Loader=Loader)  # noqa: S506 – a SafeLoader


def load_all(text: str) -> list[Any]:
    """Return the values of the documents of a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return list(yaml.load_all(text, Loader=Loader))


def compose(text: str) -> Any:
    """Return the root node of a YAML text; nodes have their places in it."""
    return yaml.compose(text, Loader=Loader)
