"""Keys with dots and mappings become one value of their option."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.errors import UserError
from autotune.study.options import Clash, draft_config, merged


@pytest.mark.parametrize(
    ("settings", "whole"),
    [
        ({"seed": 3, "enforce_eager": True}, {"seed": 3, "enforce_eager": True}),
        ({"c": {"mode": 0}, "c.backend": "eager"}, {"c": {"mode": 0, "backend": "eager"}}),
        ({"c.backend": "eager", "c": {"mode": 0}}, {"c": {"backend": "eager", "mode": 0}}),
        ({"c.a.b": True, "c.a.d": None}, {"c": {"a": {"b": True, "d": None}}}),
        ({"c.l": [1, 2]}, {"c": {"l": [1, 2]}}),
        ({"c": '{"mode": 0}', "c.backend": "x"}, {"c": {"mode": 0, "backend": "x"}}),
        ({"c": '{"mode": 0}'}, {"c": '{"mode": 0}'}),  # alone it is what the user wrote
        ({"c.l+": "a,b", "c": {"l": ["z"]}}, {"c": {"l": ["z", "a", "b"]}}),
        ({"c.l+": [1]}, {"c": {"l": [1]}}),
        ({"c": {}, "c.a": 1}, {"c": {"a": 1}}),
    ],
)
def test_one_value_for_each_option(settings: dict[str, Any], whole: dict[str, Any]) -> None:
    assert merged(settings) == whole


@pytest.mark.parametrize(
    "settings",
    [
        {"c": {"mode": 0}, "c.mode": 3},
        {"c.mode": 3, "c": {"mode": 0}},
        {"c": 3, "c.mode": 3},
        {"c": "O3", "c.mode": 3},
        {"c.a": 1, "c.a.b": 2},
        {"c.a.b": 2, "c.a": 1},
        {"c": {"a": {"b": 1}}, "c.a": {"b": 2}},
        {"c.l": "text", "c.l+": "a"},
        {"c.l": 1, "c.l.m+": "a"},
    ],
)
def test_a_key_in_two_places_is_a_clash(settings: dict[str, Any]) -> None:
    with pytest.raises(Clash) as e:
        merged(settings)
    assert "\n" not in str(e.value)


def test_the_settings_stay_as_they_are() -> None:
    inner = {"a": {"b": 1}}
    merged({"c": inner, "c.a.d": 2})
    assert inner == {"a": {"b": 1}}


def test_the_drafts_keys_are_nested_too() -> None:
    settings = {"model": "d", "hf_overrides.rope": {"x": 1}, "hf_overrides.n": 2}
    assert draft_config(settings, str.upper) == {
        "model": "D",
        "hf_overrides": {"rope": {"x": 1}, "n": 2},
    }
    assert draft_config({"method": "ngram"}, str.upper) == {"method": "ngram"}
    with pytest.raises(UserError, match=r"server\.speculative: h\.n is also given in h"):
        draft_config({"h": {"n": 1}, "h.n": 2}, str)
