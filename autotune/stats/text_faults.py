"""Faults that show in the text of answers, compared with what n = 0 does itself.

A model that loops without speculation loops with it, which is no fault of speculation. So each
fault is counted among the answers of the chosen point and compared with the answers of n = 0 to the
same prompts.

========  ==================================================================================
``x_i``   1 if the chosen point's answer to prompt i has the fault, else 0
``k_i``   number of answers to prompt i that have it, of the chosen point and n = 0 together
``a_i``   number of these answers
``X``     sum of ``x_i``
========  ==================================================================================

Where speculation changes nothing, the answers to one prompt are exchangeable. Given ``k_i``, then,
``x_i`` is 1 with probability ``k_i / a_i``, independently of the other prompts, and X has a
Poisson binomial distribution. The p value is the probability of X or more: the exact permutation
test with the prompt as its unit (Good, Permutation, Parametric, and Bootstrap Tests of Hypotheses,
3rd edition, chapter 3).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from autotune.stats.measurement import Floats

LEVEL = 0.01  # of all kinds of faults together: chance of a false alarm
_PERIODS = range(1, 33)  # tokens of what is repeated
_LEAST_LOOP = 16  # tokens
_LEAST_REPEATS = 4
# special tokens as models write them: <|im_end|>, <s>, </s>, <pad>, [PAD], <unk>, <|eot|>
_SPECIAL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:unk|pad|mask|bos|eos)>|\[(?:PAD|UNK|MASK)\]")


class TextFault(StrEnum):
    """What may be wrong with an answer's text."""

    EMPTY = "empty answers"
    LOOP = "loops"
    BROKEN = "broken characters"
    SPECIAL = "special tokens in the text"
    CUT = "answers cut at their longest length"
    ENDED = "answers that the model ended"
    STOP = "other reasons to stop"


@dataclass(frozen=True)
class Compared:
    """How often a fault is in the answers.

    Attributes:
        fault: The fault.
        chosen: Number of the chosen point's answers with it.
        plain: Number of n = 0's answers with it.
        answers: Number of the chosen point's answers.
        plain_answers: Number of n = 0's answers.
        p: Probability of as many or more if speculation changes nothing.
    """

    fault: TextFault
    chosen: int
    plain: int
    answers: int
    plain_answers: int
    p: float

    @property
    def found(self) -> bool:
        """Whether the chosen point has more of it than n = 0."""
        return self.p < LEVEL / len(TextFault)


def faults_of(text: str, tokens: Sequence[int], stop: str) -> frozenset[TextFault]:
    """Return the faults of one answer.

    Args:
        text: Its text.
        tokens: Its token ids.
        stop: Why it ended.
    """
    return frozenset(_found(text, tokens, stop))


def _found(text: str, tokens: Sequence[int], stop: str) -> Iterator[TextFault]:
    if not text.strip():
        yield TextFault.EMPTY
    if is_loop(tokens) or is_loop(tokens[:-1]):  # the last one may be the end of the text
        yield TextFault.LOOP
    # the last character of an answer that was cut may be incomplete
    whole = text.rstrip("\ufffd") if stop == "length" else text
    if "\ufffd" in whole or any("\ud800" <= c <= "\udfff" for c in whole):
        yield TextFault.BROKEN
    if _SPECIAL.search(text):
        yield TextFault.SPECIAL
    if stop == "length":
        yield TextFault.CUT
    elif stop == "stop":
        yield TextFault.ENDED
    else:
        yield TextFault.STOP


def is_loop(tokens: Sequence[int]) -> bool:
    """Return whether tokens end in a repetition: at least four times, and 16 tokens.

    Args:
        tokens: Token ids.
    """
    ids = np.asarray(tokens)
    for period in _PERIODS:
        least = max(_LEAST_LOOP, _LEAST_REPEATS * period)
        if len(ids) < least:
            if period * _LEAST_REPEATS > len(ids):
                return False
            continue
        tail = ids[-least:]
        if (tail[period:] == tail[:-period]).all():
            return True
    return False


def compare_faults(
    chosen: Mapping[int, frozenset[TextFault]], plain: Sequence[Mapping[int, frozenset[TextFault]]]
) -> list[Compared]:
    """Return how often each fault is in the answers of a point and of n = 0.

    Args:
        chosen: Faults of the point's answers, by prompt.
        plain: The same of each launch of n = 0; answers to other prompts are left out.
    """
    out = []
    for fault in TextFault:
        observed, total, count, chances = 0, 0, 0, []
        for prompt, found in chosen.items():
            others = [fault in x[prompt] for x in plain if prompt in x]
            mine = fault in found
            observed, total, count = observed + mine, total + sum(others), count + len(others)
            chances.append((mine + sum(others)) / (1 + len(others)))
        out.append(
            Compared(fault, observed, total, len(chosen), count, poisson_tail(chances, observed))
        )
    return out


def poisson_tail(chances: Sequence[float], least: int) -> float:
    """Return the probability of at least ``least`` successes.

    Args:
        chances: Probability of each success, independent.
        least: Number of successes.
    """
    mass: Floats = np.ones(1)
    for p in chances:
        mass = np.convolve(mass, np.array([1 - p, p])).astype(np.float64)
    return float(min(1.0, mass[least:].sum()))
