"""Messages about study files, each in one line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from autotune.errors import UserError, one_line
from autotune.study.keys import key_name
from autotune.study.objective_spec import ObjectiveSpec, SloSpec
from autotune.study.rehearsal import AcceptanceSpec, RehearsalSpec, WeightsSpec
from autotune.study.schema import BudgetSpec, MeasureSpec, SearchSpec, ServerSpec, StudySpec
from autotune.study.workload import RandomPrompts, ReplayPrompts, ShareGptPrompts, WorkloadSpec

MOST_LINE = 500  # characters of a message


def refused(path: Path, text: str, where: str = "") -> UserError:
    """Return the error of a study file, as one line.

    Args:
        path: Path of the file.
        text: What is wrong.
        where: Place in the file, such as a line.
    """
    name = str(path)
    name = name if len(name) <= 200 else name[:199] + "…"
    return UserError(one_line(f"{name}{where}: {text}", MOST_LINE))


_SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): StudySpec,
    ("server",): ServerSpec,
    ("workload",): WorkloadSpec,
    ("workload", "random"): RandomPrompts,
    ("workload", "sharegpt"): ShareGptPrompts,
    ("workload", "replay"): ReplayPrompts,
    ("measure",): MeasureSpec,
    ("search",): SearchSpec,
    ("budget",): BudgetSpec,
    ("rehearsal",): RehearsalSpec,
    ("rehearsal", "acceptance"): AcceptanceSpec,
    ("rehearsal", "weights"): WeightsSpec,
    ("objectives",): ObjectiveSpec,
    ("objectives", "slo"): SloSpec,
}
_PARAM_KEYS = {
    "int": ["type", "low", "high", "step"],
    "pow2": ["type", "low", "high"],
    "float": ["type", "low", "high", "log"],
    "choice": ["type", "choices"],
}


def problems(error: ValidationError) -> str:
    """Return all problems of a study file in one line, the first one in full."""
    problems = [_problem(e) for e in error.errors()[:100]]
    # one wrong value tried against a union gives several errors for the same key: keep the first
    first_of_key = list(dict(reversed(problems)).items())[::-1]
    lines = [f"{key}: {text}" if key else text for key, text in first_of_key]
    more = f" (and {len(lines) - 1} more: {'; '.join(lines[1:3])})" if len(lines) > 1 else ""
    return f"{lines[0]}{more}"


def _problem(e: Mapping[str, Any]) -> tuple[str, str]:
    """Return key and message of one of pydantic's errors."""
    loc = [str(part)[:60] for part in e["loc"]]
    kind = None
    if loc[:1] == ["space"] and len(loc) > 2 and loc[2] in _PARAM_KEYS:
        kind = loc.pop(2)  # pydantic puts the union's tag into the path
    if (
        loc[:2] == ["server", "arms"]
        and loc[3:4] == ["space"]
        and loc[5:6]
        and loc[5] in _PARAM_KEYS
    ):
        kind = loc.pop(5)
    if loc[:2] == ["server", "flags"]:
        loc = loc[:3]  # … and the union's member types
    if loc[:1] == ["baseline"]:
        loc = loc[:2]
    if loc[:2] in (["server", "command"], ["workload", "output_len"]):
        loc = loc[:2]
    if "choices" in loc[2:]:
        loc = loc[: loc.index("choices", 2) + 2]  # … and those of a choice
    hide = loc[:2] == ["server", "env"]  # it may be a secret
    key = ".".join(loc)
    if e["type"] == "extra_forbidden":
        section = tuple(p for p in loc[:-1] if not p.isdigit())
        fields = _SECTIONS.get(section, StudySpec).model_fields
        allowed = _PARAM_KEYS[kind] if kind else [*map(key_name, fields)]
        close = difflib.get_close_matches(loc[-1], allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return key, f"unknown key; {hint}allowed are {', '.join(allowed)}"
    if e["type"] == "missing":
        return key, "is missing"
    if e["type"] in {"union_tag_not_found", "union_tag_invalid"}:
        return f"{key}.type", f"must be one of {', '.join(_PARAM_KEYS)}"
    if loc[:2] == ["server", "arms"] and loc[-1] == "[key]":
        return ".".join(loc[:-1]), "an arm's name has letters, digits, `_` and `-`, at most 40"
    message = str(e["msg"]).removeprefix("Value error, ")
    if e["type"] == "value_error":
        return key, message  # the words of a validator
    if loc[:2] == ["server", "flags"]:
        message = "must be true, false, a number, a word, a list or a mapping"
    if e["type"] in {"dict_type", "model_type", "model_attributes_type"}:
        message = "must be a mapping"
    if e["type"] in {"too_long", "too_short"} and isinstance(e.get("input"), dict):
        long, most = e["type"] == "too_long", e["ctx"]
        bound = f"most {most['max_length']}" if long else f"least {most['min_length']}"
        return key, f"must have at {bound} entries"
    if "choices" in loc[-2:-1]:
        message = "must be a number, a word, true or false"
    if loc == ["workload", "output_len"]:
        message = "must be a whole number from 1 up, or recorded"
    message = message[0].lower() + message[1:]
    if hide:
        return key, message
    shown = json.dumps(e.get("input"), default=str)[:61]
    return key, f"{message}, not {shown[:60]}{'…' if len(shown) > 60 else ''}"
