"""Parts of every key of a study: what it affects, and limits far above any use.

A value beyond a limit is a slip. It would end in a lack of memory, or in an error far from its
cause.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict

MOST_NUMBER = 2**53  # JSON, floats and SQLite represent all whole numbers up to it
MOST_REQUESTS = 10**6
MOST_TOKENS = 5 * 10**7  # of all random prompts: 2 GB
MOST_SECONDS = 10**7  # four months


class Affects(StrEnum):
    """Effect of a key; every key of a study has one.

    Attributes:
        RESULT: The key decides what a trial's numbers mean. Trials under two values do not compare.
        SCHEDULE: The key decides which trials run, in which order, and how many.
        NOTHING: The key decides no number: names, prose, and time-outs.
    """

    RESULT = "result"
    SCHEDULE = "schedule"
    NOTHING = "nothing"


_T = TypeVar("_T")
Result = Annotated[_T, Affects.RESULT]
Schedule = Annotated[_T, Affects.SCHEDULE]
Nothing = Annotated[_T, Affects.NOTHING]


class Model(BaseModel):
    """Base of the sections of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def key_name(field: str) -> str:
    """Return the key of a study that a model's field has: ``from_`` is ``from``, a word of Python.

    Args:
        field: Name of the field.
    """
    return field.removesuffix("_")
