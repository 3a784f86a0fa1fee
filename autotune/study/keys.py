"""What all keys of a study have: what they affect, and limits far above any use.

What is beyond a limit is a slip, and would end in a lack of memory or in an error far from its
cause.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict

MOST_NUMBER = 2**53  # JSON, floats and SQLite know all whole numbers up to it
MOST_REQUESTS = 10**6
MOST_TOKENS = 5 * 10**7  # of all random prompts: 2 GB
MOST_SECONDS = 10**7  # four months


class Affects(StrEnum):
    """What the value of a key decides; every key of a study carries one of these.

    Attributes:
        RESULT: What a trial's numbers mean. Trials under two values do not compare.
        SCHEDULE: Which trials run, in which order, and how many.
        NOTHING: No number: names, prose, and how long to wait for something that hangs.
    """

    RESULT = "result"
    SCHEDULE = "schedule"
    NOTHING = "nothing"


_T = TypeVar("_T")
Result = Annotated[_T, Affects.RESULT]
Schedule = Annotated[_T, Affects.SCHEDULE]
Nothing = Annotated[_T, Affects.NOTHING]


class Model(BaseModel):
    """A section of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
