"""Options whose value is JSON: one value from a mapping and from keys with dots.

vLLM's parser joins ``--compilation-config.mode 3 --compilation-config.backend eager`` into one JSON
value, but drops ``--compilation-config '{…}'`` without a word where a key with a dot is given, too
(``utils/argparse_utils.py: FlexibleArgumentParser.parse_args``). So autotune joins them before the
launch: a root option gets one JSON value, in which fixed and searched keys are nested.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from autotune.errors import UserError


class Clash(ValueError):
    """Two settings say the same key of one option.

    Attributes:
        first: Name of the setting that came first.
        second: Name of the other one.
    """

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{second} is also given in {first}")
        self.first = first
        self.second = second


def merged(settings: Mapping[str, object]) -> dict[str, Any]:
    """Return settings with the keys with dots nested under their root.

    >>> merged({"a": {"b": 1}, "a.c.d": True, "e": 2})
    {'a': {'b': 1, 'c': {'d': True}}, 'e': 2}
    >>> merged({"a.b": [1], "a.b+": "2,3"})
    {'a': {'b': [1, '2', '3']}}

    Args:
        settings: Values by name with underscores. A name that ends with ``+`` adds to a list, a
            text at its commas.

    Raises:
        Clash: two settings say the same key, or one says a value and the other a key of it.
    """
    dotted = {name.partition(".")[0] for name in settings if "." in name}
    out: dict[str, Any] = {}
    origin: dict[tuple[str, ...], str] = {}
    # additions to a list come last
    for name in sorted(settings, key=lambda x: x.endswith("+")):
        path, value = tuple(name.removesuffix("+").split(".")), settings[name]
        if path[0] not in dotted:
            out[name] = value
            continue
        if name.endswith("+"):
            _add(out, path, value)
            continue
        if len(path) == 1 and isinstance(value, str):
            value = _read(value)
        if len(path) == 1 and value == {}:
            continue
        for leaf, x in _leaves(path, value):
            _put(out, origin, leaf, x, name)
    return {name: out[name] for name in _in_order(settings, out)}


def draft_config(draft: Mapping[str, Any], resolve: Callable[[str], str]) -> dict[str, Any]:
    """Return the value of ``--speculative-config``.

    Args:
        draft: Settings from :meth:`autotune.study.schema.ServerSpec.draft_settings`.
        resolve: Function that turns a model reference of the study into what vLLM is given.

    Raises:
        UserError: a key is given twice, or ``resolve`` raises it.
    """
    try:
        config = merged(draft)
    except Clash as e:
        raise UserError(f"server.speculative: {e}; keep it in one of the two") from e
    if "model" in config:
        config["model"] = resolve(config["model"])
    return config


def _in_order(settings: Mapping[str, object], out: Mapping[str, Any]) -> list[str]:
    return [x for x in dict.fromkeys(name.partition(".")[0] for name in settings) if x in out]


def _read(text: str) -> object:
    """Return a JSON object that was written as text; other texts stay as they are."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _leaves(path: tuple[str, ...], value: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield each value inside a mapping with its path; an empty mapping is a value."""
    if isinstance(value, Mapping) and value:
        for key, x in value.items():
            yield from _leaves((*path, str(key)), x)
    else:
        yield path, value


def _put(
    out: dict[str, Any],
    origin: dict[tuple[str, ...], str],
    path: tuple[str, ...],
    value: object,
    name: str,
) -> None:
    """Write one value; see :func:`merged`."""
    place = out
    for i, key in enumerate(path[:-1], 1):
        if path[:i] in origin:
            raise Clash(origin[path[:i]], name)
        place = place.setdefault(key, {})
    if path[-1] in place:
        first = next(n for p, n in origin.items() if p[: len(path)] == path)
        raise Clash(first, name)
    place[path[-1]] = deepcopy(value)
    origin[path] = name


def _add(out: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    """Add to a list; see :func:`merged`."""
    place = out
    for key in path[:-1]:
        inner = place.setdefault(key, {})
        if not isinstance(inner, dict):
            raise Clash(".".join(path[:-1]), f"{'.'.join(path)}+")
        place = inner
    more = value.split(",") if isinstance(value, str) else value
    there = place.get(path[-1], [])
    if not isinstance(there, list):
        raise Clash(".".join(path), f"{'.'.join(path)}+")
    place[path[-1]] = [*there, *(more if isinstance(more, list) else [more])]
