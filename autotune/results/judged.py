"""The numbers behind a verdict on a point's output, as the database keeps them.

They have no text of an answer, because reports show them. The database may be somebody else's, so
they are checked as they are read.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Numbers(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class TokenTest(_Numbers):
    """One test of tokens.

    Attributes:
        name: What was tested.
        p: Its p value.
        fault: Whether it finds a fault at the level of all tests.
    """

    name: str
    p: float
    fault: bool


class TextTest(_Numbers):
    """One test of texts; attributes as of :class:`autotune.stats.text_faults.Compared`."""

    fault: str
    chosen: int
    plain: int
    answers: int
    plain_answers: int
    p: float
    found: bool


class WorstCase(_Numbers):
    """A token that n = 0 finds unlikely.

    Attributes:
        prompt: Index of the request.
        position: Index of the token in the answer, from 0.
        value: Greedy: log-probability of the likeliest token less that of this one, in nats; else
            minus its log-probability.
    """

    prompt: int
    position: int
    value: float


class Judged(_Numbers):
    """What was judged, and how.

    Attributes:
        why: Why it is not judged; None for any other verdict.
        temperature: Of the sampling; 0: greedy.
        found: Names of the tests that found a fault.
        level: Probability of a false alarm over all tests of tokens.
        text_level: The same of texts.
        prompts: Number of prompts that all launches answered.
        tokens: Number of judged tokens of the point.
        differences: Those that are not the likeliest (greedy), or are unlikely.
        null_launches: Number of launches of n = 0.
        null_tokens: Number of their tokens.
        null_differences: As ``differences``.
        largest: Largest value of the point's tokens, in nats; see :class:`WorstCase`.
        null_largest: That of n = 0.
        tests: Tests of tokens.
        texts: Tests of texts.
        worst: Worst cases, the worst first.
        same_answers: Number of the point's answers with the same tokens as the first n = 0.
        null_same_answers: The same of the second n = 0.
        detectable: Smallest share of wrong tokens that would be found; None: not known.
        detectable_shift: Smallest shift of the mean log-likelihood that would be found, in nats a
            token; None: not known.
        power: Probability with which both would be found.
        notes: Sentences on what else was seen.
    """

    why: str | None
    temperature: float
    found: tuple[str, ...]
    level: float
    text_level: float
    prompts: int
    tokens: int
    differences: int
    null_launches: int
    null_tokens: int
    null_differences: int
    largest: float
    null_largest: float
    tests: tuple[TokenTest, ...]
    texts: tuple[TextTest, ...]
    worst: tuple[WorstCase, ...]
    same_answers: int
    null_same_answers: int
    detectable: float | None
    detectable_shift: float | None
    power: float = Field(ge=0, le=1)
    notes: tuple[str, ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token was asked for."""
        return self.temperature == 0

    @property
    def found_text(self) -> str:
        """Names of the tests that found a fault, in one line."""
        return ", ".join(self.found)
