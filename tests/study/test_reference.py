"""docs/study-reference.md says what the models say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, Field

from autotune.study import reference
from autotune.study.keys import key_name
from autotune.study.schema import StudySpec
from tests.paths import ROOT

FILE = ROOT / "docs" / "study-reference.md"


def keys(model: type[BaseModel]) -> Iterator[str]:
    yield from map(key_name, model.model_fields)
    for field in model.model_fields.values():
        for inner in reference._members(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys(inner)


def test_the_file_is_up_to_date() -> None:
    assert FILE.read_text() == reference.reference(), (
        "run `python -m autotune.study.reference > docs/study-reference.md`"
    )


def test_every_key_of_every_model_is_in_it() -> None:
    text = reference.reference()
    assert [k for k in keys(StudySpec) if f"`{k}`" not in text] == []
    for words in (
        "| `request_rate` | number ≥ 1e-06 | `.inf` |",
        "| `output_len` | whole number ≥ 1 or `recorded` | **required** |",
        "| `hang_timeout_s` | number > 0 | `120` | longest time without a token",
        "## `workload.sharegpt`",
        "## `objectives[]`",
        "| `int` | `low`, `high`, `step` (`1` without it) |",
    ):
        assert words in text


def test_a_key_without_a_description_is_refused() -> None:
    class Bare(BaseModel):
        told: int = Field(description="what it is")
        untold: int

    with pytest.raises(ValueError, match=r"Bare.untold has no description"):
        reference._table("", Bare)
