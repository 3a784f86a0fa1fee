"""The text of a study as a database keeps it: without secrets, with what was found for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from autotune.study.files import LoadedStudy, text_without_secrets
from autotune.study.speculative import SpeculativeSpec
from autotune.study.yaml import compose, load


def text_to_store(loaded: LoadedStudy) -> str:
    """Return a study's text as a database keeps it.

    The method of each draft is in it, also where the file says none, whether a rehearsal's random
    weights are those of experts, and the acceptance that was taken from another study. A model's
    config.json and that study may be gone, or on another machine, when the database is read.

    Args:
        loaded: The study with its method, from :mod:`autotune.engine.draft_method`.
    """
    text = loaded.text
    for arm, draft in loaded.spec.server.drafts.items():
        place = ("server", "speculative") if arm is None else ("server", "arms", arm)
        text = _with_method(text, place, draft)
    how = loaded.spec.rehearsal
    if how is not None and how.mixture is not None:
        text = _with_key(text, ("rehearsal",), "mixture", how.mixture)
    return text_without_secrets(loaded.model_copy(update={"text": _with_rates(text, loaded)}))


def _with_rates(text: str, loaded: LoadedStudy) -> str:
    """Return a text with the acceptance that a rehearsal took from another study.

    That study may change or be gone when the database is read.
    """
    how = loaded.spec.rehearsal
    if how is None or how.acceptance is None or how.acceptance.from_ is None:
        return text
    raw = load(text)
    given = raw["rehearsal"]["acceptance"]
    if how.acceptance.by_n is None or "by_n" in given:
        return text
    raw = _changed(raw, ("rehearsal", "acceptance"), {**given, "by_n": how.acceptance.by_n})
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _with_method(text: str, place: tuple[str, ...], draft: SpeculativeSpec) -> str:
    """Return a text that says the method of a draft; one that says it stays as it is.

    Args:
        text: The study.
        place: Keys that lead to the draft.
        draft: The draft.
    """
    return _with_key(text, place, "method", draft.method)


def _with_key(text: str, place: tuple[str, ...], key: str, value: str | bool | None) -> str:
    """Return a text with a value at a place inside it; one that has it stays as it is."""
    raw = load(text)
    given: dict[str, Any] = raw
    for part in place:
        given = given[part]
    if key in given and given[key] == value:
        return text
    # an alias may be in two places: only this one changes
    raw = _changed(raw, place, {**given, key: value})
    node: Any = compose(text)
    for part in place:
        node = next((v for k, v in node.value if k.value == part), yaml.MappingNode("", []))
    if node.value and key not in given:
        mark = node.value[0][0].start_mark
        after = ", " if node.flow_style else "\n" + " " * mark.column
        line = f"{key}: {json.dumps(value)}{after}"
        out = text[: mark.index] + line + text[mark.index :]
        try:
            if load(out) == raw:
                return out
        except (yaml.YAMLError, ValueError):
            pass  # an alias, or another form that has no place for a line
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _changed(raw: Mapping[str, Any], place: tuple[str, ...], value: object) -> dict[str, Any]:
    """Return a mapping with another value at a place inside it."""
    first, *rest = place
    inner = _changed(raw[first], tuple(rest), value) if rest else value
    return {**raw, first: inner}
