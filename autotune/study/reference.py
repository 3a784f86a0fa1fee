"""Write the reference of the study file, from the models that check it.

``python -m autotune.study.reference > docs/study-reference.md``; a test fails when the file is old.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from autotune.study.differences import TABLE, affects
from autotune.study.keys import key_name
from autotune.study.schema import StudySpec
from autotune.study.space import ChoiceParam, FloatParam, IntParam, Pow2Param

_HEAD = """# The study file, key by key

Made from the models in `autotune/study/` by `python -m autotune.study.reference`; do not edit it.
[study-file.md](study-file.md) shows a whole study with comments, `autotune init` writes one, and
[datasets.md](datasets.md) says more about `workload`. Keys that are not listed are an error.

The last column says what a key affects. A key that affects the `result` cannot change in a study
that has begun, refuses `--reuse`, and is a difference to `compare`. One that affects the
`schedule`, or `nothing`, may change at any time: the same command resumes with the new value.
"""
_PARAMS = (IntParam, Pow2Param, FloatParam, ChoiceParam)
# Units by the end of a key; the longest end that fits counts.
_UNITS = {
    "_s": "s",
    "_ms": "ms",
    "_minutes": "min",
    "_len": "tokens",
    "_prompts": "requests",
    "max_concurrency": "requests",
    "request_rate": "1/s",
    "usd_per_hour": "USD/h",
    "speed": "×",
    "precision": "share",
    "dominated_error": "share",
    "converged": "share",
    "trials": "trials",
    "confirm": "trials",
    "replicates": "trials",
}
_WORDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    dict: "mapping",
    list: "list",
    tuple: "list",
}


def reference() -> str:
    """Return the whole text, in Markdown.

    Raises:
        ValueError: a key has no description.
    """
    parts = [_HEAD]
    for place, model in _models(StudySpec, ""):
        title = f"`{place}`" if place else "The whole file"
        about = (model.__doc__ or "").split("\n\n")[0]
        parts.append(f"## {title}\n\n{_cell(about)}\n\n{_table(place, model)}")
        if not place:
            parts.append(_space())
    return "\n".join(parts)


def _models(model: type[BaseModel], place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Return a model and those inside it, in the order of their keys, with their places."""
    yield place, model
    for key, field in model.model_fields.items():
        for inner in _members(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel) and inner not in _PARAMS:
                many = "[]" if get_origin(field.annotation) is list else ""
                yield from _models(inner, f"{place}.{key}{many}".removeprefix("."))


def _members(annotation: Any) -> Iterator[Any]:
    """Return the types that a value may have, also those of a list's or a mapping's values."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, UnionType, list, dict):
        for arg in get_args(annotation):
            yield from _members(arg)
    else:
        yield annotation


def _table(place: str, model: type[BaseModel]) -> str:
    rows = ["| key | type | default | meaning | unit | affects |", "|---|---|---|---|---|---|"]
    for key, field in model.model_fields.items():
        if not field.description:
            raise ValueError(f"{model.__name__}.{key} has no description")
        kind = _kind(field.annotation) + _range(field.annotation, field.metadata)
        cells = [f"`{key_name(key)}`", kind, _default(field), field.description, _unit(key)]
        cells.append(affects(field) or "")
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    if model.model_config.get("extra") == "allow":
        effect = TABLE[f"{place}.*"]
        rows.append(f"| any other | any | | goes to vLLM as it is | | {effect} |")
    return "\n".join(rows) + "\n"


def _space() -> str:
    """Return the section about the kinds of parameters."""
    rows = ["| `type` | keys | values |", "|---|---|---|"]
    for param in _PARAMS:
        fields = {k: f for k, f in param.model_fields.items() if k != "type"}
        keys = [
            f"`{k}`" if f.is_required() else f"`{k}` ({_default(f)} without it)"
            for k, f in fields.items()
        ]
        kind = get_args(param.model_fields["type"].annotation)[0]
        about = (param.__doc__ or "").replace("``", "`")
        rows.append(f"| {' | '.join(map(_cell, (f'`{kind}`', ', '.join(keys), about)))} |")
    return "## `space`\n\nA mapping of parameters to their ranges.\n\n" + "\n".join(rows) + "\n"


def _kind(annotation: Any) -> str:
    """Return a type in words."""
    origin = get_origin(annotation)
    if origin is Annotated:
        member, *more = get_args(annotation)
        limits = [m for x in more if isinstance(x, FieldInfo) for m in x.metadata]
        return _kind(member) + _range(member, limits)
    if origin is Literal:
        return " or ".join(f"`{x}`" for x in get_args(annotation))
    if origin in (Union, UnionType):
        words = [_kind(x) for x in get_args(annotation) if x is not NoneType]
        return " or ".join(dict.fromkeys(words))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return _WORDS[origin or annotation]


def _range(annotation: Any, limits: Sequence[Any]) -> str:
    """Return the limits in words; those that only catch slips are left out."""
    found = []
    whole = int in _members(annotation)
    for limit in limits:
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            value = getattr(limit, name, None)
            if value is None or (name in ("lt", "le") and value > 1):
                continue
            if whole and name == "gt":
                sign, value = "≥", value + 1
            found.append(f"{sign} {value:g}")
    return f" {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    if field.default_factory is not None:
        value = field.get_default(call_default_factory=True, validated_data={})
        if isinstance(value, list):
            return ", ".join(f"`{x.name}`" for x in value)
        return "its defaults" if isinstance(value, BaseModel) else ""
    if field.default in (None, "", PydanticUndefined):
        return ""
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, float):
        return "`.inf`" if math.isinf(field.default) else f"`{field.default:g}`"
    return f"`{field.default}`"


def _unit(key: str) -> str:
    return next((_UNITS[end] for end in sorted(_UNITS, key=len)[::-1] if key.endswith(end)), "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


if __name__ == "__main__":
    sys.stdout.write(reference())
